"""Key names of other projects' Vision Transformers and ours, which are MAE's: from theirs to ours and back, exactly.

timm has MAE's names for a plain Vision Transformer. Hugging Face's transformers has others for ViTMAE, and keeps query, key
and value apart. No state dict says the epsilon of its norms: ours is 1e-6, as MAE's and timm's (in a ViTMAEConfig it is
`layer_norm_eps`, 1e-12 where not given).
"""

import math
import re

import torch

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

ENCODER = ("cls_token", "pos_embed", "patch_embed.", "blocks.", "norm.")
IN_OUR_BLOCK = ("norm1.", f"{FUSED}.", "attn.proj.", "norm2.", "mlp.fc1.", "mlp.fc2.")
# Of timm's other Vision Transformers: left out, the encoder would compute something else.
NOT_OURS = ("reg_token", "dist_token", "norm_pre.", "attn_pool.")


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
    for name in state_dict:
        in_block = re.match(r"blocks\.\d+\.", name)
        if name.startswith(NOT_OURS) or (in_block and not name.startswith(IN_OUR_BLOCK, in_block.end())):
            raise ValueError(f"expected the layers of a plain Vision Transformer; found {name}")
    if not _lacks_class_position(state_dict):
        return dict(state_dict)
    positions = state_dict["pos_embed"]
    return state_dict | {"pos_embed": torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)}


def to_timm(state_dict):
    """The encoder of ours, which is all that timm's VisionTransformer without a classifier has.

    A classifier of the mean of the patches has `fc_norm` in place of `norm`, as timm's with `global_pool="avg"`.
    """
    return {name: tensor for name, tensor in state_dict.items() if name.startswith((*ENCODER, "fc_norm."))}


def to_ours(state_dict):
    """Any of these under our names: (state dict, what was changed, in words, or "").

    Raises:
        ValueError: see `from_transformers` and `from_timm`.
    """
    if is_transformers(state_dict):
        return from_transformers(state_dict), "names of transformers -> MAE's"
    if "patch_embed.proj.weight" not in state_dict:
        return state_dict, ""
    changed = "pos_embed + zeros for the class token" if _lacks_class_position(state_dict) else ""
    return from_timm(state_dict), changed


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
