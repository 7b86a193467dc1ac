"""Weights in files: ours, and those of other projects."""

import argparse
import contextlib
import json
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from util import checkpoint
from util.errors import UserError
from util.files import atomic_path

FORMAT = "1"
HOLDS = ("encoder", "mae", "segmentation", "classification")
NOT_STATED = "not stated"
# Of norms inside blocks. MAE's weights were trained with it; timm's blocks had 1e-5 up to version 1.0.15.
DEFAULT_NORM_EPS = 1e-6


class Weights(NamedTuple):
    """What a file of weights holds; where it does not say, `front_end` is None, and what follows it empty."""

    state_dict: dict
    front_end: dict | None
    classes: list
    args: dict  # what to build the model with: model, task, head, head_depth, global_pool, ...
    holds: str = ""  # one of HOLDS
    preset: str = ""
    command: str = ""
    data: str = ""
    licence: str = ""
    converted: str = ""  # what was changed to make it ours, in words
    norm_eps: float | None = None  # epsilon of the norms inside blocks, where the file or the registry says it

    def load_into(self, model, path):
        """See `util.loading.load_pretrained`."""
        from util.loading import load_pretrained

        return load_pretrained(model, self.state_dict, path, self.front_end, self.converted)


def pick_norm_eps(given, weights=None):
    """The epsilon of the norms inside blocks: what was given, else what the `Weights` say, else `DEFAULT_NORM_EPS`."""
    return given or (weights and weights.norm_eps) or DEFAULT_NORM_EPS


def add_arguments(group):
    """The flags of every command that reads weights."""
    group.add_argument("--norm_eps", type=_epsilon, metavar="EPS",
                       help="epsilon of the norms inside blocks; where not given, as the weights say, else "
                       f"{DEFAULT_NORM_EPS:g}; 1e-5 for blocks of timm up to 1.0.15")  # fmt: skip
    group.add_argument("--offline", action="store_true", default=None, help="fetch nothing; also HF_HUB_OFFLINE=1")


def _epsilon(text):
    """The value of `--norm_eps`."""
    with contextlib.suppress(ValueError):
        if 0 < float(text) < 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"expected a number above 0 and below 1; found {text}")


def header(holds, preset, front_end=None, classes=(), args=None, command="", data="", licence=NOT_STATED):
    """What is said of weights beside their tensors: names to strings, JSON where there is structure, in a fixed order.

    Args:
        holds: one of `HOLDS`.
        preset: name of the model's sizes.
        front_end, classes: as in a checkpoint.
        args: what else the model is to be built with.
        command, data, licence: how and on what it was trained, and what may be done with it.
    """
    structured = {"front_end": front_end or {}, "classes": list(classes), "args": args or {"model": preset}}
    return {
        "radio_mae": FORMAT, "holds": holds, "preset": preset,
        **{key: json.dumps(value, sort_keys=True) for key, value in structured.items()},
        "command": command, "data": data, "licence": licence,
    }  # fmt: skip


def write_weights(path, state_dict, dtype=torch.float32, **about):
    """Write a `.safetensors` file, whole or not at all; the same tensors and words make the same bytes.

    Args:
        state_dict: names to tensors, on any device.
        dtype: that floating point becomes; of float16, values beyond its range are refused.
        about: see `header`.

    Raises:
        UserError: it cannot be written, or a value is beyond the range of `dtype`.
    """
    # Clones, as a file holds neither views nor one tensor under two names.
    tensors = {
        name: (value.to(dtype) if value.is_floating_point() else value).detach().cpu().contiguous().clone()
        for name, value in state_dict.items()
    }
    for name, value in tensors.items():
        if value.is_floating_point() and bool((value.isinf() & state_dict[name].isfinite().cpu()).any()):
            raise UserError(f"{path}: expected values within {torch.finfo(dtype).max:g}, for {dtype}; found more in {name}")
    content = safetensors.torch.save(tensors, {"format": "pt", **header(**about)})
    # The library writes the words in an order that differs from one process to the next.
    length = int.from_bytes(content[:8], "little")
    entries = json.loads(content[8 : 8 + length])
    entries["__metadata__"] = dict(sorted(entries["__metadata__"].items()))
    head = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)  # tensors begin at a multiple of 8
    try:
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            file.writelines((len(head).to_bytes(8, "little"), head, memoryview(content)[8 + length :]))
    except OSError as error:
        raise UserError(f"{path}: the weights could not be written: {error.strerror}") from error


def read_weights(name, offline=None):
    """Read weights onto the CPU, without unpickling anything but what `util.unpickle` allows.

    A `.safetensors` file holds the tensors, and in its header what `header` makes, each or none. Any other file is one of
    torch: a checkpoint of ours, one with its state dict below a name (MAE's "model"), or a bare state dict. Names of other
    projects become ours, see `util.convert`; adapters are merged, see `util.lora`.

    Args:
        name: a file, or a name that `util.fetch` knows.
        offline: see `util.fetch.resolve`.

    Returns:
        `Weights`, that is (state_dict, front_end, classes, args, ...).

    Raises:
        UserError: the file is missing, damaged, of another format, holds other pickled objects or no state dict, or is of a
            model that ours is not.
    """
    from util import convert, lora  # most runs read no weights
    from util.fetch import entry_of, resolve

    path, entry = resolve(name, offline), entry_of(name)
    content = _read_safetensors(path) if Path(path).suffix == ".safetensors" else checkpoint.read(path, "a file of weights")
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a state dict; found a {type(content).__name__}")
    state_dict, about = convert.state_dict_of(content)
    if not isinstance(state_dict, dict) or not state_dict or not all(
        isinstance(name, str) and torch.is_tensor(value) for name, value in state_dict.items()
    ):
        raise UserError(f"{path}: expected a state dict of tensors, bare or as 'model'; found none")
    front_end, classes, args = about.get("front_end"), about.get("classes") or [], about.get("args") or {}
    for key, value, kind in (("front_end", front_end or {}, dict), ("classes", classes, list), ("args", args, dict)):
        if not isinstance(value, kind):
            raise UserError(f"{path}: expected a {kind.__name__} as {key!r}; found a {type(value).__name__}")
    converted = ""
    try:
        if not front_end:  # with one it is ours
            state_dict, converted = convert.to_ours(state_dict)
        state_dict = lora.merged(state_dict)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    said = {key: about[key] for key in ("holds", "preset", "command", "data", "licence") if isinstance(about.get(key), str)}
    said.setdefault("preset", (entry and entry.preset) or "")
    args = args or ({"model": said["preset"]} if said["preset"] else {})
    norm_eps = args.get("norm_eps") or (entry and entry.norm_eps) or (DEFAULT_NORM_EPS if front_end else None)
    if norm_eps is not None and not (isinstance(norm_eps, int | float) and norm_eps > 0):
        raise UserError(f"{path}: expected a number above 0 as 'norm_eps'; found {norm_eps!r}")
    return Weights(state_dict, front_end or None, classes, args, **said, converted=converted, norm_eps=norm_eps)


def _read_safetensors(path):
    try:
        with safe_open(path, framework="pt") as file:
            words = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise UserError(f"{path}: expected a file of weights; found no such file") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: expected a file of weights; found a damaged or unreadable file") from error
    if words.get("radio_mae", FORMAT) != FORMAT:
        raise UserError(f"{path}: expected weights of radio-mae's format {FORMAT}; found {words['radio_mae']!r}")
    if "radio_mae" in words and words.get("holds") not in HOLDS:
        raise UserError(f"{path}: expected one of {', '.join(HOLDS)} as 'holds'; found {words.get('holds')!r}")
    for key in {"front_end", "classes", "args"} & words.keys():
        try:
            words[key] = json.loads(words[key])
        except ValueError as error:
            raise UserError(f"{path}: expected JSON as {key!r} in the header; found {words[key][:40]!r}") from error
    return {**words, "model": tensors}
