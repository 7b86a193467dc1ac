"""Sizes of the models by name. `models_mae` puts "mae_" before these names, as MAE does."""

from util.convert import PATCHES
from util.errors import UserError

ENCODER = ("patch_size", "embed_dim", "depth", "num_heads")
DECODER = ("decoder_embed_dim", "decoder_depth", "decoder_num_heads")


def _sizes(encoder, decoder=(512, 8, 16)):
    return dict(zip((*ENCODER, *DECODER), (*encoder, *decoder), strict=True))


_BASE, _LARGE, _HUGE = _sizes((16, 768, 12, 12)), _sizes((16, 1024, 24, 16)), _sizes((14, 1280, 32, 16))

PRESETS = {
    "vit_tiny_patch16": _sizes((16, 192, 12, 3), (128, 4, 4)),
    # The encoder of WavesFM v1.0 (arXiv 2511.15162). Its decoder is not published; this is the tiny model's.
    "vit_wavesfm_patch16": _sizes((16, 256, 8, 8), (128, 4, 4)),
    "vit_small_patch16": _sizes((16, 512, 12, 8), (256, 8, 16)),
    "vit_medium_patch16": _BASE,
    "vit_base_patch16": _BASE,
    "vit_large_patch16": _LARGE,
    "vit_huge_patch14": _HUGE,
    # MAE's longer names
    "vit_base_patch16_dec512d8b": _BASE,
    "vit_large_patch16_dec512d8b": _LARGE,
    "vit_huge_patch14_dec512d8b": _HUGE,
}
DEFAULT_PRESET = "vit_small_patch16"  # the published one


def look_up(name, presets):
    """The entry `name` of a dict of presets.

    Raises:
        UserError: no such preset.
    """
    if name not in presets:
        raise UserError(f"--model: expected one of {', '.join(presets)}; found {name!r}")
    return presets[name]


def build(model_class, name, **arguments):
    """A model of the preset `name`.

    Raises:
        UserError: the class refuses a value.
    """
    try:
        return model_class(**arguments)
    except ValueError as error:
        raise UserError(f"--model {name}: {error}") from error


def preset_of(weights, path):
    """The name of the preset whose encoder has the sizes of these weights.

    Several presets have the same sizes; the name in the file decides between them.

    Args:
        weights: `util.pretrained.Weights`; path: their file, for messages.

    Raises:
        UserError: no preset has these sizes.
    """
    state = weights.state_dict
    projection = state.get(PATCHES)
    if projection is None or projection.ndim != 4:
        found = ", ".join(list(state)[:3])
        raise UserError(f"{path}: expected an encoder with {PATCHES}; found {found}, ...")
    blocks = {name.split(".")[1] for name in state if name.startswith("blocks.")}
    found = {"patch_size": projection.shape[-1], "embed_dim": len(projection), "depth": len(blocks)}
    fitting = [name for name, sizes in PRESETS.items() if found.items() <= sizes.items()]
    if not fitting:
        sizes = ", ".join(f"{key} {value}" for key, value in found.items())
        raise UserError(f"{path}: expected the encoder of a preset ({', '.join(PRESETS)}); found {sizes}")
    named = str(weights.preset or weights.args.get("model") or "").removeprefix("mae_")
    return named if named in fitting else fitting[0]
