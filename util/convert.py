"""Translate state dicts of other projects' Vision Transformers to our names, which are MAE's, and back.

timm's names for a plain Vision Transformer are MAE's. Hugging Face's transformers has other names for ViTMAE,
and separate query, key and value. No state dict has the epsilon of its norms: see
`util.pretrained.Weights.norm_eps`.
"""

import math
import re

import torch
import torch.nn.functional as F

from util.pos_embed import sincos_2d

# Our modules, then those of transformers: in published files, which every version reads, and in models since
# 5.0, which save decoders under the third. {} is the number of a block.
MODULES = (
    ("cls_token", "vit.embeddings.cls_token"),
    ("pos_embed", "vit.embeddings.position_embeddings"),
    ("patch_embed.proj", "vit.embeddings.patch_embeddings.projection"),
    ("blocks.{}", "vit.encoder.layer.{}", "vit.layers.{}"),
    ("norm", "vit.layernorm"),
    ("mask_token", "decoder.mask_token"),
    ("decoder_embed", "decoder.decoder_embed"),
    ("decoder_pos_embed", "decoder.decoder_pos_embed"),
    ("decoder_blocks.{}", "decoder.decoder_layers.{}", "decoder.decoder_encoder.layer.{}"),
    ("decoder_norm", "decoder.decoder_norm"),
    ("decoder_pred", "decoder.decoder_pred"),
)
IN_BLOCK = (
    ("norm1", "layernorm_before"),
    ("attn.q", "attention.attention.query", "attention.q_proj"),
    ("attn.k", "attention.attention.key", "attention.k_proj"),
    ("attn.v", "attention.attention.value", "attention.v_proj"),
    ("attn.proj", "attention.output.dense", "attention.o_proj"),
    ("norm2", "layernorm_after"),
    ("mlp.fc1", "intermediate.dense", "mlp.fc1"),
    ("mlp.fc2", "output.dense", "mlp.fc2"),
)
THEIR_PATCHES = "embeddings.patch_embeddings.projection.weight"
FUSED = "attn.qkv"  # query above key above value
SEPARATE = ("attn.q", "attn.k", "attn.v")

PATCHES = "patch_embed.proj.weight"
ENCODER = ("cls_token", "pos_embed", "patch_embed.", "blocks.", "norm.")
DECODER = ("mask_token", "decoder_")
IN_OUR_BLOCK = ("norm1.", f"{FUSED}.", "attn.proj.", "norm2.", "mlp.fc1.", "mlp.fc2.")
# Layers of timm's other Vision Transformers: without them the encoder would compute something else.
NOT_OURS = ("reg_token", "dist_token", "norm_pre.", "attn_pool.")

# Keys of state dicts in checkpoints (MAE; Lightning, MoCo; averaged weights of DeiT and timm).
NESTS = ("model", "state_dict", "model_ema", "state_dict_ema")
PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile, before every name

WAVESFM_PATCHES = ("vis_patch_embed.", "vis_patch_embeds.")
# What is changed or left out.
WAVESFM_OWN = (*WAVESFM_PATCHES, "iq_", "channel_adapter.", "mod_ln_", "vis_pos_embed", "cls_token")
WAVESFM_GRID = (14, 14)  # 224 x 224 in patches of 16


def _pairs():
    """Iterate (our module, that of transformers), published names first."""
    for ours, *spellings in MODULES:
        if "{}" not in ours:
            yield from ((ours, theirs) for theirs in spellings)
            continue
        for theirs in spellings:
            for ours_in, *spellings_in in IN_BLOCK:
                yield from ((f"{ours}.{ours_in}", f"{theirs}.{theirs_in}") for theirs_in in spellings_in)


OURS = {theirs: ours for ours, theirs in _pairs()}
THEIRS = dict(reversed(list(_pairs())))  # the last is kept


def from_transformers(state_dict):
    """A state dict of a ViTMAEModel or ViTMAEForPreTraining of any version, under our names.

    Other names (a pooler, a classifier) stay.

    Raises:
        ValueError: a query, key or value is missing.
    """
    found, separate = {}, {}
    for name, tensor in state_dict.items():
        # A ViTMAEModel alone has no prefix.
        ours = _translated(name, OURS) or _translated(f"vit.{name}", OURS) or name
        part = next((part for part in SEPARATE if f".{part}." in ours), None)
        if part and "blocks." in ours:
            ours = ours.replace(part, FUSED)
            separate.setdefault(ours, {})[part] = tensor
        found[ours] = tensor
    for name, parts in separate.items():
        missing = [part for part in SEPARATE if part not in parts]
        if missing:
            raise ValueError(f"expected query, key and value of {name}; found no {missing[0][-1]}")
        found[name] = torch.cat([parts[part] for part in SEPARATE])
    return found


def to_transformers(state_dict):
    """The inverse: our state dict under the names of a published ViTMAEForPreTraining, for `from_pretrained`.

    The encoder alone suits a ViTMAEModel. Other names (`head`, `fc_norm`) stay.
    """
    found = {}
    for name, tensor in state_dict.items():
        own = {name: tensor}
        if f".{FUSED}." in name:
            parts = zip(SEPARATE, tensor.chunk(3), strict=True)
            own = {name.replace(FUSED, part): rows.clone() for part, rows in parts}  # files hold no views
        found |= {_translated(key, THEIRS) or key: value for key, value in own.items()}
    return found


def from_timm(state_dict):
    """A state dict of timm's VisionTransformer as ours.

    With `no_embed_class` timm has no position for the class token, so the number of positions is a square:
    add zeros.

    Raises:
        ValueError: layers that a plain Vision Transformer does not have.
    """
    _refuse_other_layers(state_dict)
    if not _lacks_class_position(state_dict):
        return dict(state_dict)
    positions = F.pad(state_dict["pos_embed"], (0, 0, 1, 0))
    return state_dict | {"pos_embed": positions}


def _refuse_other_layers(state_dict):
    for name in state_dict:
        in_block = re.match(r"blocks\.\d+\.", name)
        if name.startswith(NOT_OURS) or (in_block and not name.startswith(IN_OUR_BLOCK, in_block.end())):
            raise ValueError(f"expected the layers of a plain Vision Transformer; found {name}")


def to_timm(state_dict):
    """Our encoder as timm's VisionTransformer without a classifier.

    A classifier with `global_pool` has `fc_norm` in place of `norm`, as timm's with `global_pool="avg"`.
    """
    return {name: tensor for name, tensor in state_dict.items() if name.startswith((*ENCODER, "fc_norm."))}


def to_ours(state_dict):
    """A state dict of transformers, timm, WavesFM, MAE or its radio fork, under our names.

    Returns:
        (state dict, the changes in words or "").

    Raises:
        ValueError: see `from_transformers`, `from_timm` and `from_wavesfm`.
    """
    changed = []
    while prefix := next((one for one in PREFIXES if all(name.startswith(one) for name in state_dict)), None):
        state_dict = {name.removeprefix(prefix): tensor for name, tensor in state_dict.items()}
        changed.append(f"names without {prefix!r}")
    if any(name.removeprefix("vit.") == THEIR_PATCHES for name in state_dict):
        changed.append("names of transformers -> MAE's")
        state_dict = from_transformers(state_dict)
    elif any(name.startswith(WAVESFM_PATCHES) for name in state_dict):
        changed.append("names of WavesFM -> MAE's")
        state_dict = from_wavesfm(state_dict)
    elif PATCHES in state_dict:
        if _lacks_class_position(state_dict):
            changed.append("pos_embed + zeros for the class token")
        state_dict = from_timm(state_dict)
        renamed = {}
        if "head.0.running_mean" in state_dict:  # MAE's linear probe
            renamed |= {"head.0": "head_norm", "head.1": "head"}
        if _is_segmenter(state_dict):
            renamed["decoder_pred"] = "head"
        for old, new in renamed.items():
            pattern = f"^{re.escape(old)}(?=[.])"
            state_dict = {re.sub(pattern, new, name): tensor for name, tensor in state_dict.items()}
            changed.append(f"{old} -> {new}")
    return state_dict, ", ".join(changed)


def _is_segmenter(state_dict):
    """Whether this is the radio fork's segmenter: its `decoder_pred` predicts classes, not patches."""
    predicted = state_dict.get("decoder_pred.weight")
    if predicted is None:
        return False
    return "mask_token" not in state_dict or len(predicted) != math.prod(state_dict[PATCHES].shape[1:])


def from_wavesfm(state_dict):
    """The image encoder of WavesFM (arXiv 2511.15162) under our names, without its layers for IQ input.

    - `channel_adapter` (1 x 1) is multiplied into the patch embedding.
    - Scale and shift of all tokens (`mod_ln_scale.vision`, `mod_ln_bias.vision`) are multiplied into patch
      embedding, class token and positions.
    - Without `vis_pos_embed`, which is fixed, the positions are those of 224 x 224.
    - Further patch embeddings have their number of channels in their names; `util.loading.load_pretrained`
      chooses.

    Raises:
        ValueError: no patch embedding or no class token, or layers that a plain Vision Transformer does not
            have.
    """
    _refuse_other_layers(state_dict)
    found = {name: tensor for name, tensor in state_dict.items() if not name.startswith(WAVESFM_OWN)}
    patches = _patch_embeddings(state_dict)
    cls_token = _required(state_dict, "cls_token")
    positions = state_dict.get("vis_pos_embed")
    if positions is None:
        positions = sincos_2d(cls_token.shape[-1], WAVESFM_GRID)
    scale, shift = (state_dict.get(f"mod_ln_{part}.vision") for part in ("scale", "bias"))
    if scale is not None and shift is not None:
        per_row = scale[:, None, None, None]
        patches = {channels: (weight * per_row, bias * scale) for channels, (weight, bias) in patches.items()}
        cls_token, positions = cls_token * scale, positions * scale + shift
    found |= {"cls_token": cls_token, "pos_embed": positions}
    for channels, (weight, bias) in sorted(patches.items()):
        place = "patch_embed.proj" if channels == min(patches) else f"patch_embed.{channels}.proj"
        found |= {f"{place}.weight": weight, f"{place}.bias": bias}
    return found


def _patch_embeddings(state_dict):
    """WavesFM's patch embeddings {channels: (weight, bias)}; with a channel adapter, only the adapted one."""
    own = [name for name in state_dict if name.startswith(WAVESFM_PATCHES)]
    places = [name.removesuffix(".weight") for name in own if name.endswith(".proj.weight")]
    patches = {}
    for place in places or [f"{WAVESFM_PATCHES[0]}proj"]:
        weight, bias = (_required(state_dict, f"{place}.{leaf}") for leaf in ("weight", "bias"))
        patches[weight.shape[1]] = weight, bias
    if "channel_adapter.weight" not in state_dict:
        return patches
    adapter = state_dict["channel_adapter.weight"][:, :, 0, 0]  # (channels of patch embedding, of images)
    if len(adapter) not in patches:
        expected = f"a patch embedding of the {len(adapter)} channels of channel_adapter"
        raise ValueError(f"expected {expected}; found {[*patches]}")
    weight, bias = patches[len(adapter)]
    if "channel_adapter.bias" in state_dict:
        bias = bias + torch.einsum("dchw,c->d", weight, state_dict["channel_adapter.bias"])
    return {adapter.shape[1]: (torch.einsum("dchw,ci->dihw", weight, adapter), bias)}


def _required(state_dict, name):
    if name not in state_dict:
        raise ValueError(f"expected the image encoder of WavesFM with {name}; found none")
    return state_dict[name]


def state_dict_of(content):
    """(state dict, the entries beside it) of a checkpoint; up to two of `NESTS` deep."""
    beside = {}
    for _ in range(2):
        nests = [name for name in NESTS if isinstance(content, dict) and isinstance(content.get(name), dict)]
        if nests:
            beside, content = {**content, **beside}, content[nests[0]]
    return content, beside


def _translated(name, table):
    """`blocks.3.norm1.weight` by the table's entry `blocks.{}.norm1`; None without an entry."""
    number = re.search(r"(?<=\.)\d+(?=\.)", name)
    general = name if number is None else f"{name[: number.start()]}{{}}{name[number.end() :]}"
    leaf = next((leaf for leaf in (".weight", ".bias") if general.endswith(leaf)), "")
    module = table.get(general.removesuffix(leaf))
    return module and module.format(number and number[0]) + leaf


def _lacks_class_position(state_dict):
    positions = state_dict.get("pos_embed")
    if "cls_token" not in state_dict or positions is None or positions.ndim != 3:
        return False
    return math.isqrt(positions.shape[1]) ** 2 == positions.shape[1] > 1
