"""Loading pretrained weights into a model: what fits is taken, and nothing is dropped without a word."""

import math
import re
from dataclasses import dataclass
from itertools import groupby

import torch
from torch.nn import functional as F

from util.convert import DECODER, ENCODER, PATCHES
from util.errors import UserError

POSITIONS = ("pos_embed", "decoder_pos_embed")


@dataclass
class LoadReport:
    """What `load_pretrained` did, by name.

    loaded: taken from the checkpoint; adapted: which of them were changed to fit, and how; left: in the checkpoint alone, or
    a head of another shape; new: in the model alone, so as its constructor initialised it; norm_eps: epsilon of the norms
    inside the model's blocks.
    """

    loaded: list
    adapted: list
    left: list
    new: list
    norm_eps: float

    def summary(self):
        """A line for each, whole modules as `name.*` and runs of blocks as `blocks.0..11.*`."""
        lines = []
        for title in ("loaded", "adapted", "left", "new"):
            names = getattr(self, title)
            others = [name for other in (self.loaded, self.left, self.new) if other is not names for name in other]
            shown = names if title == "adapted" else by_module(names, others)
            lines.append(f"{title} {len(names)}{': ' if names else ''}{', '.join(shown)}")
        return "\n".join([*lines, f"norms inside blocks: epsilon {self.norm_eps:g}"])


def by_module(names, others):
    """Names of tensors for people: `module.*` for all of a module if none of `others` is in it, runs of blocks as one."""
    return _collapse(names, {_module(name) for name in others})


def load_pretrained(model, state_dict, path, front_end=None, converted=""):
    """Load into `model` what fits it by name, the whole encoder in any case.

    What is made to fit:
      - `pos_embed` and `decoder_pos_embed` of another grid are resampled in two dimensions (bicubic), all but the class
        token's. The checkpoint's grid follows from `front_end["image_size"]`; without it, it is taken as square.
      - Patch embeddings of one channel, for C: repeated and divided by C, so that C equal channels give the response of one.
      - Patch embeddings of C channels, for one: summed, so that an image gives the response of its copy in C channels; its
        predictions of C channels (`decoder_pred`) become their mean, and those of one channel are repeated for C.
      - `fc_norm` of MAE's fine-tuned classifier becomes `norm` where the model has one and the file has none.
    A `head` of another shape (other classes) is left, weight and bias; so is a decoder that does not fit in all its tensors.

    Args:
        model: of `models_mae` or `models_vit`, changed in place.
        state_dict: names to tensors; ours, or MAE's.
        path: where it comes from, for messages.
        front_end: of the checkpoint; None where it has none.
        converted: what `read_weights` changed already, for the report.

    Returns:
        A `LoadReport`.

    Raises:
        UserError: a tensor of the encoder is missing, a shape differs otherwise, or the checkpoint's grid is not known.
    """
    state_dict = _choose_patches(state_dict, model.in_chans)
    own, state = model.state_dict(), dict(state_dict)
    adapted = [converted] if converted else []
    if "norm.weight" in own and "norm.weight" not in state and "fc_norm.weight" in state:
        state |= {f"norm.{leaf}": state[f"fc_norm.{leaf}"] for leaf in ("weight", "bias")}
        adapted.append("fc_norm -> norm")
    for name, expected in own.items():
        if name.startswith(ENCODER) and name not in state:
            raise UserError(f"{path}: expected an encoder with {name} of {list(expected.shape)}; found none")
    _adapt_channels(state, own, adapted)
    for name in POSITIONS:
        if name not in own or name not in state or not _fits_but_grid(state[name], own[name]):
            continue
        grid = grid_of(state[name].shape[1] - 1, front_end, model.patch_size, path)
        if grid != tuple(model.grid_size):
            adapted.append(f"{name} {grid[0]} x {grid[1]} -> {model.grid_size[0]} x {model.grid_size[1]}")
            state[name] = resample_positions(state[name], grid, model.grid_size)

    for part in ("head.", DECODER):
        if any(_has_other_shape(state, own, name) for name in own if name.startswith(part)):
            state = {name: value for name, value in state.items() if not name.startswith(part)}
    for name, expected in own.items():
        if _has_other_shape(state, own, name):
            raise UserError(f"{path}: expected {name} of {list(expected.shape)}; found {list(state[name].shape)}")

    loaded = {name: state[name] for name in own if name in state}
    for name, value in loaded.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise UserError(f"{path}: expected finite weights; found NaN or infinity in {name}")
    model.load_state_dict(loaded, strict=False)
    return LoadReport(
        loaded=list(loaded),
        adapted=adapted,
        left=[name for name in state_dict if name not in loaded],
        new=[name for name in own if name not in loaded],
        norm_eps=model.norm_eps,
    )


def _choose_patches(state_dict, channels):
    """Of several patch embeddings, make that of `channels` the model's; the other is then named by its own channels."""
    exact, plain = f"patch_embed.{channels}.proj.", "patch_embed.proj."
    if f"{exact}weight" not in state_dict or PATCHES not in state_dict:
        return state_dict
    names = {exact: plain, plain: f"patch_embed.{state_dict[PATCHES].shape[1]}.proj."}
    return {next((new + name.removeprefix(old) for old, new in names.items() if name.startswith(old)), name): value
            for name, value in state_dict.items()}  # fmt: skip


def _adapt_channels(state, own, adapted):
    """Patch embeddings and predictions of one channel for C, and of C for one, in place."""
    found, expected = state[PATCHES].shape, own[PATCHES].shape
    there, here = found[1:2], expected[1:2]
    if there == here or (1,) not in (there, here) or found[:1] + found[2:] != expected[:1] + expected[2:]:
        return
    [there], [here] = there, here
    adapted.append(f"{PATCHES} {there} -> {here} channels")
    state[PATCHES] = _with_channels(state[PATCHES], here)
    for name in ("decoder_pred.weight", "decoder_pred.bias"):
        if name in own and name in state and len(state[name]) * here == len(own[name]) * there:
            values = state[name].unflatten(0, (-1, there)).mean(dim=1, keepdim=True)  # channels are innermost
            state[name] = values.expand(-1, here, *[-1] * (values.ndim - 2)).flatten(0, 1)
            adapted.append(f"{name} {there} -> {here} channels")


def _fits_but_grid(found, expected):
    return found.ndim == expected.ndim == 3 and found.shape[::2] == expected.shape[::2] and found.shape[1] > 1


def resample_positions(embedding, grid, new_grid):
    """Position embeddings [1, 1 + rows * columns, D] of one grid, for another; the first, the class token's, stays."""
    patches = embedding[:, 1:].float().unflatten(1, tuple(grid)).permute(0, 3, 1, 2)  # (1, D, rows, columns)
    patches = F.interpolate(patches, size=tuple(new_grid), mode="bicubic", align_corners=False)
    return torch.cat([embedding[:, :1], patches.flatten(2).mT.to(embedding.dtype)], dim=1)


def _has_other_shape(state, own, name):
    return name in state and state[name].shape != own[name].shape


def _with_channels(weight, channels):
    if weight.shape[1] == 1:
        return weight.expand(-1, channels, -1, -1) / channels
    return weight.sum(dim=1, keepdim=True)


def grid_of(num_patches, front_end, patch_size, path):
    """Rows and columns of the patches that a file has positions for: of its front end's images, else taken as square.

    Raises:
        UserError: the number is no square and there is no image size, or it contradicts the image size.
    """
    image_size = (front_end or {}).get("image_size")
    if image_size is None:
        side = math.isqrt(num_patches)
        if side**2 != num_patches:
            raise UserError(f"{path}: expected an image size with {num_patches} patches, no square; found none")
        return side, side
    try:
        rows, columns = (int(side) // patch_size for side in image_size)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: expected rows and columns as 'image_size'; found {image_size!r}") from error
    if rows * columns != num_patches:
        raise UserError(f"{path}: expected {rows * columns} patches of an image of {image_size}; found {num_patches}")
    return rows, columns


def _module(name):
    """`blocks.3` of `blocks.3.attn.qkv.weight`; without a number, all but the last part, or the name itself."""
    block = re.match(r"\w+\.\d+(?=\.)", name)
    return block[0] if block else name.rpartition(".")[0] or name


def _collapse(names, elsewhere):
    """Names without the modules in `elsewhere` as `module.*`, and consecutive numbers as `blocks.0..11.*`."""
    modules = dict.fromkeys(name if _module(name) in elsewhere else _module(name) for name in names)
    shown = []
    # Consecutive numbers of one stem differ from their places by a constant.
    for (stem, _), run in groupby(enumerate(modules), key=lambda item: _stem_and_offset(*item)):
        run = [module for _, module in run]
        if stem:
            numbers = dict.fromkeys(module.rpartition(".")[2] for module in (run[0], run[-1]))
            shown.append(f"{stem}.{'..'.join(numbers)}.*")
        else:
            shown.append(run[0] if run[0] in names else f"{run[0]}.*")
    return shown


def _stem_and_offset(place, module):
    stem, _, number = module.rpartition(".")
    return (stem, int(number) - place) if number.isdigit() else ("", place)
