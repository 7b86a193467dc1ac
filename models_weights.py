"""Build the model of a weights file from its header and the shapes of its tensors, then load it."""

import models_deeplab
import models_mae
import models_presets
import models_vit
from radio.front_end import FRONT_ENDS, from_settings, kind_of, takes_iq
from util import checkpoint
from util.convert import PATCHES
from util.errors import UserError
from util.loading import grid_of
from util.pretrained import pick_norm_eps


def is_deeplab(weights):
    """Whether the weights are of `models_deeplab`."""
    return weights.args.get("model") in models_deeplab.PRESETS


def head_of(weights):
    """See `models_vit.head_of`; for DeepLabV3: `task` and `num_classes`."""
    if not is_deeplab(weights):
        return models_vit.head_of(weights)
    last = weights.state_dict.get("classifier.4.weight")
    return {} if last is None else {"task": "segmentation", "num_classes": len(last)}


def front_end_of(weights, path):
    """The front end that the weights were trained with, or None if the file names no front end.

    Args:
        weights: `util.pretrained.Weights`; path: their file, for messages.

    Raises:
        UserError: the weights were not trained on spectrograms of IQ, or the settings are invalid.
    """
    settings = weights.front_end
    if not settings:
        return None
    if not takes_iq(settings):
        expected = "expected weights trained on spectrograms of IQ, with their front end"
        raise UserError(f"{path}: {expected}; found {settings.get('kind', 'none')}")
    try:
        return from_settings({key: value for key, value in settings.items() if key != "normalization"})
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: expected valid front-end settings; found {error}") from error


def image_size_of(weights, path):
    """(rows, columns) of the encoder's images, from its positions; square if the file has no image size."""
    positions, projection = (weights.state_dict.get(name) for name in ("pos_embed", PATCHES))
    if positions is None or projection is None:
        raise UserError(f"{path}: expected an encoder with pos_embed and {PATCHES}; found none")
    patch_size = projection.shape[-1]
    grid = grid_of(positions.shape[1] - 1, weights.front_end, patch_size, path)
    return tuple(side * patch_size for side in grid)


def create_model(weights, path, **kwargs):
    """`_create_model`, whose images may have cells outside of the recording if the front end makes such."""
    model = _create_model(weights, path, **kwargs)
    model.pads = bool(takes_iq(weights.front_end) and FRONT_ENDS[kind_of(weights.front_end)].pads)
    return model


def _create_model(weights, path, img_size=None, in_chans=None, norm_eps=None, **kwargs):
    """The model of the weights before loading: with a head, a masked autoencoder, or an encoder alone.

    Args:
        weights: `util.pretrained.Weights`; path: their file, for messages.
        img_size: (rows, columns) or one number; None: as in the file.
        in_chans: channels of the images; None: as in the file.
        norm_eps: epsilon of the norms inside blocks; None: see `util.pretrained.pick_norm_eps`.
        kwargs: more arguments of the class.

    Returns:
        A model of `models_vit`, `models_mae` or `models_deeplab`, in train mode.

    Raises:
        UserError: no preset has these sizes, or the model refuses a value.
    """
    head, name = head_of(weights), weights.args.get("model")
    if is_deeplab(weights):
        if norm_eps is not None:
            raise UserError(f"--norm_eps: expected a Vision Transformer, which has such norms; found {name}")
        return models_deeplab.DeepLabV3(name, head.get("num_classes", 2), in_chans or 1)
    preset = models_presets.preset_of(weights, path)
    sizes = kwargs | {
        "img_size": img_size or image_size_of(weights, path),
        "in_chans": in_chans or weights.state_dict[PATCHES].shape[1],
        "norm_eps": pick_norm_eps(norm_eps, weights),
    }
    if head:
        return models_vit.create_model(preset, **head, **{"drop_path": 0.0} | sizes)
    if "mask_token" in weights.state_dict:
        own = {key: weights.args[key] for key in ("norm_pix_loss", "mask_kind") if key in weights.args}
        return models_mae.create_model(f"mae_{preset}", **own | sizes)
    return models_vit.create_encoder(preset, **sizes)


def load(model, weights, path):
    """Load the weights into a model of `create_model`.

    Returns:
        A `util.loading.LoadReport`; None for DeepLabV3, whose tensors must all fit.

    Raises:
        UserError: a tensor of the model is missing in the file or has another shape.
    """
    if is_deeplab(weights):
        return checkpoint.load_model(model, weights.state_dict, path)
    report = weights.load_into(model, path)
    if missing := [name for name in report.new if name not in models_vit.FIXED]:
        found = f"{len(missing)} tensors missing or of another shape, first: {missing[0]}"
        raise UserError(f"{path}: expected the weights of this model; found {found}")
    return report
