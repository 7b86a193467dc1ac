"""Load pretrained weights into a model, and report each tensor that was loaded, adapted or left."""

import math
import re
from dataclasses import dataclass
from itertools import chain

import torch
from torch.nn import functional as F

from radio.grid import CP
from util.convert import DECODER, ENCODER, PATCHES
from util.errors import UserError
from util.state import tensor_problem

POSITIONS = ("pos_embed", "decoder_pos_embed")


@dataclass
class LoadReport:
    """Names of tensors by what `load_pretrained` did.

    loaded: from the checkpoint; adapted: changed to fit, and how; left: only in the checkpoint, or a head of
    another shape; new: only in the model, so still as initialized; norm_eps: epsilon of the norms inside the
    model's blocks.
    """

    loaded: list
    adapted: list
    left: list
    new: list
    norm_eps: float

    def summary(self):
        """A line for each list, with names as `by_module` shows them."""
        lines = []
        for title in ("loaded", "adapted", "left", "new"):
            names = getattr(self, title)
            others = [other for other in (self.loaded, self.left, self.new) if other is not names]
            shown = names if title == "adapted" else by_module(names, chain(*others))
            lines.append(f"{title} {len(names)}{': ' if names else ''}{', '.join(shown)}")
        return "\n".join([*lines, f"norms inside blocks: epsilon {self.norm_eps:g}"])


def load_pretrained(model, state_dict, path, front_end=None, converted=""):
    """Load into `model` the tensors that it has by name. The whole encoder must be there.

    Adapted:
      - `pos_embed` and `decoder_pos_embed` of another grid are resampled (bicubic), except the class token's.
        The checkpoint's grid follows from `front_end["image_size"]`; without it, the grid must be square.
      - Patch embeddings of 1 channel for C: repeated and divided by C, so C equal channels give the same
        response.
      - Patch embeddings of C channels for 1: summed, so an image gives the response of its copy in C
        channels.
      - Predictions (`decoder_pred`) of C channels for 1: their mean; of 1 channel for C: repeated.
      - Of weights with power and cyclic prefix, for another number of channels: the power's, as 1 channel.
      - `fc_norm` of MAE's fine-tuned classifier becomes `norm` if only the model has `norm`.
    Left: a `head` of another shape (other classes); the decoder, if one of its tensors has another shape.

    Args:
        model: of `models_mae` or `models_vit`, changed in place.
        state_dict: names to tensors; ours or MAE's.
        path: its file, for messages.
        front_end: of the checkpoint, or None.
        converted: the changes of `read_weights`, for the report.

    Returns:
        A `LoadReport`.

    Raises:
        UserError: a tensor of the encoder is missing, another shape differs, or the checkpoint's grid is
            unknown.
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
    for name, value in state.items():
        if name in own and (wrong := tensor_problem(value, floating=own[name].is_floating_point())):
            found = "NaN or infinity in" if wrong.startswith("NaN") else f"{wrong}, in"
            raise UserError(f"{path}: expected finite weights; found {found} {name}")
    _adapt_channels(state, own, adapted, front_end or {})
    for name in POSITIONS:
        if name not in own or name not in state:
            continue
        found, expected = state[name].shape, own[name].shape
        if len(found) != 3 or found[::2] != expected[::2] or found[1] < 2:
            continue  # refused below
        grid = grid_of(state[name].shape[1] - 1, front_end, model.patch_size, path)
        if grid != tuple(model.grid_size):
            adapted.append(f"{name} {grid[0]} x {grid[1]} -> {model.grid_size[0]} x {model.grid_size[1]}")
            state[name] = resample_positions(state[name], grid, model.grid_size)

    differ = [name for name in own if name in state and state[name].shape != own[name].shape]
    for part in ("head.", DECODER):
        if any(name.startswith(part) for name in differ):
            state = {name: value for name, value in state.items() if not name.startswith(part)}
    for name in differ:
        if name in state:
            expected, found = list(own[name].shape), list(state[name].shape)
            raise UserError(f"{path}: expected {name} of {expected}; found {found}")

    loaded = {name: state[name] for name in own if name in state}
    model.load_state_dict(loaded, strict=False)
    return LoadReport(
        loaded=list(loaded),
        adapted=adapted,
        left=[name for name in state_dict if name not in loaded],
        new=[name for name in own if name not in loaded],
        norm_eps=model.norm_eps,
    )


def _choose_patches(state_dict, channels):
    """Make the patch embedding for `channels` the model's. The previous one gets its channels in its name."""
    exact, plain = f"patch_embed.{channels}.proj", "patch_embed.proj"
    if f"{exact}.weight" not in state_dict or PATCHES not in state_dict:
        return state_dict
    names = {exact: plain, plain: f"patch_embed.{state_dict[PATCHES].shape[1]}.proj"}
    stems = {name: name.rpartition(".")[0] for name in state_dict}
    return {
        name.replace(stems[name], names.get(stems[name], stems[name])): value
        for name, value in state_dict.items()
    }


def _adapt_channels(state, own, adapted, front_end):
    """Adapt patch embeddings and predictions to the model's number of channels, in place."""
    found, expected = list(state[PATCHES].shape), list(own[PATCHES].shape)
    there, here = found[1], expected[1]
    has_power = CP in front_end.get("channels", ())  # as its first channel
    fits = found[:1] + found[2:] == expected[:1] + expected[2:]
    if there == here or not fits or not (has_power or 1 in (there, here)):
        return
    adapted.append(f"{PATCHES} {there} -> {here} channels")
    patches = state[PATCHES]
    one = patches[:, :1] if has_power else patches.sum(dim=1, keepdim=True)
    state[PATCHES] = one.expand(-1, here, -1, -1) / here
    for name in ("decoder_pred.weight", "decoder_pred.bias"):
        if name in own and name in state and len(state[name]) * here == len(own[name]) * there:
            values = state[name].unflatten(0, (-1, there))  # channels are innermost
            values = values[:, :1] if has_power else values.mean(dim=1, keepdim=True)
            state[name] = values.expand(-1, here, *[-1] * (values.ndim - 2)).flatten(0, 1)
            adapted.append(f"{name} {there} -> {here} channels")


def resample_positions(embedding, grid, new_grid):
    """Position embeddings [1, 1 + rows * columns, D] for another grid; the class token's is the first."""
    patches = embedding[:, 1:].float().unflatten(1, tuple(grid)).permute(0, 3, 1, 2)  # (1, D, rows, columns)
    patches = F.interpolate(patches, size=tuple(new_grid), mode="bicubic", align_corners=False)
    return torch.cat([embedding[:, :1], patches.flatten(2).mT.to(embedding.dtype)], dim=1)


def grid_of(num_patches, front_end, patch_size, path):
    """(rows, columns) of a file's patches: by the image size of its front end, else a square.

    Raises:
        UserError: the number is no square and there is no image size, or both contradict each other.
    """
    image_size = (front_end or {}).get("image_size")
    if image_size is None:
        side = math.isqrt(num_patches)
        if side**2 != num_patches:
            expected = f"an image size with {num_patches} patches, no square"
            raise UserError(f"{path}: expected {expected}; found none")
        return side, side
    try:
        rows, columns = (int(side) // patch_size for side in image_size)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: expected rows and columns as 'image_size'; found {image_size!r}") from error
    if rows * columns != num_patches:
        expected = f"{rows * columns} patches of an image of {image_size}"
        raise UserError(f"{path}: expected {expected}; found {num_patches}")
    return rows, columns


def by_module(names, others):
    """Shortened names: `module.*` for a module with no tensor in `others`, `blocks.0..11.*` for a run."""
    elsewhere = {_module(name) for name in others}
    shown = []  # [name], or [stem, first number, last number]
    for module in dict.fromkeys(name if _module(name) in elsewhere else _module(name) for name in names):
        stem, _, number = module.rpartition(".")
        if not number.isdigit():
            shown.append([module if module in names else f"{module}.*"])
        elif shown and shown[-1][0] == stem and shown[-1][-1] == int(number) - 1:
            shown[-1][-1] += 1
        else:
            shown.append([stem, int(number), int(number)])
    runs = ["..".join(map(str, dict.fromkeys(numbers))) for _, *numbers in shown]
    return [f"{one[0]}.{run}.*" if run else one[0] for one, run in zip(shown, runs, strict=True)]


def _module(name):
    """`blocks.3` of `blocks.3.attn.qkv.weight`; without a number all but the last part, if any."""
    block = re.match(r"\w+\.\d+(?=\.)", name)
    return block[0] if block else name.rpartition(".")[0] or name
