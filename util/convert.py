"""Key names of other projects' Vision Transformers and ours, which are MAE's: from theirs to ours and back, exactly.

timm has MAE's names for a plain Vision Transformer. Hugging Face's transformers has others for ViTMAE, and keeps query, key
and value apart. No state dict says the epsilon of its norms: see `util.pretrained.Weights.norm_eps`.
"""

import math
import re

import torch

from util.pos_embed import sincos_2d

# Modules of ours, then transformers': as in published files, which every version reads; as in models since 5.0, which save
# decoders as the third. {} is the number of a block.
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
FUSED = "attn.qkv"  # query above key above value
SEPARATE = ("attn.q", "attn.k", "attn.v")

PATCHES = "patch_embed.proj.weight"
ENCODER = ("cls_token", "pos_embed", "patch_embed.", "blocks.", "norm.")
DECODER = ("mask_token", "decoder_")
IN_OUR_BLOCK = ("norm1.", f"{FUSED}.", "attn.proj.", "norm2.", "mlp.fc1.", "mlp.fc2.")
# Of timm's other Vision Transformers: left out, the encoder would compute something else.
NOT_OURS = ("reg_token", "dist_token", "norm_pre.", "attn_pool.")

# Where state dicts lie in checkpoints (MAE; Lightning, MoCo; averaged weights of DeiT and timm).
NESTS = ("model", "state_dict", "model_ema", "state_dict_ema")
PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile, before every name

WAVESFM_PATCHES = ("vis_patch_embed.", "vis_patch_embeds.")
WAVESFM_OWN = (*WAVESFM_PATCHES, "iq_", "channel_adapter.", "mod_ln_", "vis_pos_embed", "cls_token")  # not kept as it is
WAVESFM_GRID = (14, 14)  # 224 x 224 in patches of 16


def _pairs():
    """(module of ours, the same of transformers), published names first."""
    for ours, *spellings in MODULES:
        if "{}" not in ours:
            yield from ((ours, theirs) for theirs in spellings)
            continue
        for theirs in spellings:
            for ours_in, *spellings_in in IN_BLOCK:
                yield from ((f"{ours}.{ours_in}", f"{theirs}.{theirs_in}") for theirs_in in spellings_in)


OURS = {theirs: ours for ours, theirs in _pairs()}
THEIRS = dict(reversed(list(_pairs())))  # the last is kept


def is_transformers(state_dict):
    """Whether the names are those of transformers' ViTMAE, or of its ViT."""
    return any(name.removeprefix("vit.") == "embeddings.patch_embeddings.projection.weight" for name in state_dict)


def from_transformers(state_dict):
    """A state dict of a ViTMAEModel or ViTMAEForPreTraining, in memory or from a file of any version, under our names.

    Names that ours has nothing for (a pooler, a classifier) stay as they are.

    Raises:
        ValueError: one or two of a query, key and value.
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
    """The inverse: ours under the names of a published ViTMAEForPreTraining, which `from_pretrained` reads.

    An encoder alone is what a ViTMAEModel needs. Names of what those do not have (`head`, `fc_norm`) stay as they are.
    """
    found = {}
    for name, tensor in state_dict.items():
        if f".{FUSED}." in name:
            # Copies, as files hold no views.
            own = {name.replace(FUSED, part): rows.clone() for part, rows in zip(SEPARATE, tensor.chunk(3), strict=True)}
        else:
            own = {name: tensor}
        found |= {_translated(key, THEIRS) or key: value for key, value in own.items()}
    return found


def from_timm(state_dict):
    """A state dict of timm's VisionTransformer as ours: with a position for the class token, zero, where it has none.

    timm leaves it out with `no_embed_class`, which shows in a number of positions that is a square.

    Raises:
        ValueError: layers that a plain Vision Transformer does not have.
    """
    _refuse_other_layers(state_dict)
    if not _lacks_class_position(state_dict):
        return dict(state_dict)
    positions = state_dict["pos_embed"]
    return state_dict | {"pos_embed": torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)}


def _refuse_other_layers(state_dict):
    """Raise for layers that a plain Vision Transformer does not have."""
    for name in state_dict:
        in_block = re.match(r"blocks\.\d+\.", name)
        if name.startswith(NOT_OURS) or (in_block and not name.startswith(IN_OUR_BLOCK, in_block.end())):
            raise ValueError(f"expected the layers of a plain Vision Transformer; found {name}")


def to_timm(state_dict):
    """The encoder of ours, which is all that timm's VisionTransformer without a classifier has.

    A classifier of the mean of the patches has `fc_norm` in place of `norm`, as timm's with `global_pool="avg"`.
    """
    return {name: tensor for name, tensor in state_dict.items() if name.startswith((*ENCODER, "fc_norm."))}


def to_ours(state_dict):
    """A state dict of any of these, or of the radio fork, WavesFM or MAE's linear probe, under our names.

    Returns:
        (state dict, what was changed, in words, or "").

    Raises:
        ValueError: layers that ours has not; see `from_transformers`, `from_timm` and `from_wavesfm`.
    """
    changed = []
    while prefix := next((one for one in PREFIXES if all(name.startswith(one) for name in state_dict)), None):
        state_dict = {name.removeprefix(prefix): tensor for name, tensor in state_dict.items()}
        changed.append(f"names without {prefix!r}")
    state_dict = _named_as_ours(state_dict, changed)
    return state_dict, ", ".join(changed)


def _named_as_ours(state_dict, changed):
    """See `to_ours`; appends to `changed`."""
    if is_transformers(state_dict):
        changed.append("names of transformers -> MAE's")
        return from_transformers(state_dict)
    if any(name.startswith(WAVESFM_PATCHES) for name in state_dict):
        changed.append("names of WavesFM -> MAE's")
        return from_wavesfm(state_dict)
    if PATCHES not in state_dict:
        return state_dict
    if _lacks_class_position(state_dict):
        changed.append("pos_embed + zeros for the class token")
    state_dict = from_timm(state_dict)
    if "head.0.running_mean" in state_dict:
        names = {"head.0.": "head_norm.", "head.1.": "head."}
        state_dict = {names.get(name[:7], name[:7]) + name[7:]: tensor for name, tensor in state_dict.items()}
        changed.append("head.0 -> head_norm, head.1 -> head")
    if is_segmenter(state_dict):
        state_dict = {re.sub(r"^decoder_pred\.", "head.", name): tensor for name, tensor in state_dict.items()}
        changed.append("decoder_pred -> head")
    return state_dict


def is_segmenter(state_dict):
    """Whether these are of the radio fork's segmentation model: its decoder's last layer predicts classes, not patches."""
    predicted = state_dict.get("decoder_pred.weight")
    if predicted is None:
        return False
    return "mask_token" not in state_dict or len(predicted) != math.prod(state_dict[PATCHES].shape[1:])


def from_wavesfm(state_dict):
    """The image encoder of WavesFM (arXiv 2511.15162) under our names; what belongs to IQ input is left out.

    A 1 x 1 `channel_adapter` becomes part of the patch embedding. Scale and shift of all tokens (`mod_ln_scale.vision`,
    `mod_ln_bias.vision`) become part of patch embedding, class token and positions. The positions are fixed; a file that
    lacks them (`vis_pos_embed`) gets those of 224 x 224. Of several patch embeddings, those after the first keep their
    number of channels in their names, for `util.pretrained.load_pretrained` to choose from.

    Raises:
        ValueError: a patch embedding or the class token is missing, or there are layers that ours has not.
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
        patches = {channels: (weight * scale[:, None, None, None], bias * scale)
                   for channels, (weight, bias) in patches.items()}  # fmt: skip
        cls_token, positions = cls_token * scale, positions * scale + shift
    found |= {"cls_token": cls_token, "pos_embed": positions}
    for channels, (weight, bias) in sorted(patches.items()):
        place = "patch_embed.proj" if channels == min(patches) else f"patch_embed.{channels}.proj"
        found |= {f"{place}.weight": weight, f"{place}.bias": bias}
    return found


def _patch_embeddings(state_dict):
    """WavesFM's: {channels: (weight, bias)}; with a channel adapter, the one that it is part of."""
    names = [name for name in state_dict if name.startswith(WAVESFM_PATCHES) and name.endswith(".proj.weight")]
    places = [name.removesuffix(".weight") for name in names] or [f"{WAVESFM_PATCHES[0]}proj"]
    pairs = [tuple(_required(state_dict, f"{place}.{leaf}") for leaf in ("weight", "bias")) for place in places]
    patches = {weight.shape[1]: (weight, bias) for weight, bias in pairs}
    if "channel_adapter.weight" not in state_dict:
        return patches
    adapter = state_dict["channel_adapter.weight"][:, :, 0, 0]  # (channels of the patch embedding, of the images)
    if len(adapter) not in patches:
        raise ValueError(f"expected a patch embedding of the {len(adapter)} channels of channel_adapter; found {[*patches]}")
    weight, bias = patches[len(adapter)]
    if "channel_adapter.bias" in state_dict:
        bias = bias + torch.einsum("dchw,c->d", weight, state_dict["channel_adapter.bias"])
    return {adapter.shape[1]: (torch.einsum("dchw,ci->dihw", weight, adapter), bias)}


def _required(state_dict, name):
    if name not in state_dict:
        raise ValueError(f"expected the image encoder of WavesFM with {name}; found none")
    return state_dict[name]


def state_dict_of(content):
    """(state dict, what lies beside it) of a checkpoint: all of it, or what is below one of `NESTS`, twice at most."""
    beside = {}
    for _ in range(2):
        nest = next((name for name in NESTS if isinstance(content, dict) and isinstance(content.get(name), dict)), None)
        if nest is None:
            break
        beside, content = {**content, **beside}, content[nest]
    return content, beside


def _translated(name, table):
    """`blocks.3.norm1.weight` by way of the table's `blocks.{}.norm1`; None where it has no such module."""
    number = re.search(r"(?<=\.)\d+(?=\.)", name)
    general = name if number is None else f"{name[: number.start()]}{{}}{name[number.end() :]}"
    module, dot, leaf = general.rpartition(".") if general.endswith((".weight", ".bias")) else (general, "", "")
    return table[module].format(number and number[0]) + dot + leaf if module in table else None


def _lacks_class_position(state_dict):
    positions = state_dict.get("pos_embed")
    if "cls_token" not in state_dict or positions is None or positions.ndim != 3:
        return False
    return math.isqrt(positions.shape[1]) ** 2 == positions.shape[1] > 1
