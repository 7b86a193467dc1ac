"""Read and write files of weights, ours and those of other projects."""

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
from util.files import atomic_path, parse_json
from util.state import check_fields, is_number, tensor_problem

FORMAT = "1"
HOLDS = ("encoder", "mae", "segmentation", "classification")
NOT_STATED = "not stated"
# Of norms inside blocks. MAE's weights were trained with it; timm's blocks had 1e-5 up to version 1.0.15.
DEFAULT_NORM_EPS = 1e-6


class Weights(NamedTuple):
    """The content of a weights file. Fields that the file lacks are empty or None."""

    state_dict: dict
    front_end: dict | None
    classes: list
    args: dict  # to build the model with: model, task, head, head_depth, global_pool, ...
    holds: str = ""  # one of HOLDS
    preset: str = ""
    command: str = ""
    data: str = ""
    licence: str = ""
    converted: str = ""  # the changes to make it ours, in words
    norm_eps: float | None = None  # of the norms inside blocks, by the file or `util/downloads.json`

    def load_into(self, model, path):
        """See `util.loading.load_pretrained`."""
        from util.loading import load_pretrained

        return load_pretrained(model, self.state_dict, path, self.front_end, self.converted)


def pick_norm_eps(given, weights=None):
    """Epsilon of the norms inside blocks: the flag's, else that of the `Weights`, else `DEFAULT_NORM_EPS`."""
    return given or (weights and weights.norm_eps) or DEFAULT_NORM_EPS


def add_arguments(group):
    """The flags of every command that reads weights."""
    default = f"default: that of the weights, else {DEFAULT_NORM_EPS:g}; 1e-5 for blocks of timm up to 1.0.15"
    norms = f"epsilon of the norms inside blocks; {default}"
    group.add_argument("--norm_eps", type=_epsilon, metavar="EPS", help=norms)
    offline = "download nothing; also HF_HUB_OFFLINE=1"
    group.add_argument("--offline", action="store_true", default=None, help=offline)


def _epsilon(text):
    """The value of `--norm_eps`."""
    with contextlib.suppress(ValueError):
        if 0 < float(text) < 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"expected a number above 0 and below 1; found {text}")


def header(holds, preset, front_end=None, classes=(), args=None, command="", data="", licence=NOT_STATED):
    """The header of a weights file: names to strings, structures as JSON, in a fixed order.

    Args:
        holds: one of `HOLDS`; preset: name of the model's sizes.
        front_end, classes: as in a checkpoint; args: further arguments of the model.
        command, data, licence: of the training.
    """
    structured = {"front_end": front_end or {}, "classes": list(classes), "args": args or {"model": preset}}
    known = {"radio_mae": FORMAT, "holds": holds, "preset": preset}
    known |= {key: json.dumps(value, sort_keys=True) for key, value in structured.items()}
    return known | {"command": command, "data": data, "licence": licence}


def write_weights(path, state_dict, dtype=torch.float32, **about):
    """Write a `.safetensors` file, whole or not at all; the same tensors and header make the same bytes.

    Args:
        state_dict: names to tensors, on any device.
        dtype: of floating-point tensors in the file.
        about: see `header`.

    Raises:
        UserError: the file cannot be written, or a value is beyond the range of `dtype`.
    """
    tensors = {}
    for name, value in state_dict.items():
        if problem := tensor_problem(value, floating=value.is_floating_point()):
            raise UserError(f"{path}: expected finite weights to write; found {name}: {problem}")
        kept = value.detach().cpu().to(dtype) if value.is_floating_point() else value.detach().cpu()
        if kept.is_floating_point() and bool((kept.isinf() & value.isfinite().cpu()).any()):
            most = torch.finfo(dtype).max
            raise UserError(f"{path}: expected values within {most:g}, for {dtype}; found more in {name}")
        tensors[name] = kept.contiguous().clone()  # a file holds neither views nor a tensor under two names
    content = safetensors.torch.save(tensors, {"format": "pt", **header(**about)})
    # The library's order of the header differs between processes.
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
    """Read weights onto the CPU as `Weights`.

    The file is `.safetensors`, with a `header` or without, or of torch.save: a checkpoint, a state dict below
    a name (MAE's "model"), or a bare state dict. Names of other projects become ours (`util.convert`);
    adapters are merged.

    Args:
        name: a file, or a name that `util.fetch` knows.
        offline: see `util.fetch.resolve`.

    Raises:
        UserError: the file is missing, damaged, of another format, has other pickled objects or no state
            dict, or its model has other layers.
    """
    from util import convert, lora  # most runs read no weights
    from util.fetch import entry_of, resolve

    path, entry = resolve(name, offline), entry_of(name)
    is_torch = Path(path).suffix != ".safetensors"
    content = checkpoint.read(path, "a file of weights") if is_torch else _read_safetensors(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a state dict; found a {type(content).__name__}")
    state_dict, about = convert.state_dict_of(content)
    names_tensors = isinstance(state_dict, dict) and {type(name) for name in state_dict} == {str}
    if not names_tensors or not all(map(torch.is_tensor, state_dict.values())):
        raise UserError(f"{path}: expected a state dict of tensors, bare or as 'model'; found none")
    front_end, classes, args = about.get("front_end"), about.get("classes") or [], about.get("args") or {}
    expected = (("front_end", front_end or {}, dict), ("classes", classes, list), ("args", args, dict))
    for key, value, kind in expected:
        if not isinstance(value, kind):
            raise UserError(f"{path}: expected a {kind.__name__} as {key!r}; found a {type(value).__name__}")
    if not isinstance(args.get("model") or "", str):
        raise UserError(f"{path}: expected a name as 'model' in 'args'; found {args['model']!r:.60}")
    check_fields({"front_end": front_end or {}, "classes": classes, "args": args}, path)
    converted = ""
    try:
        if not front_end:  # with a front end it is ours
            state_dict, converted = convert.to_ours(state_dict)
        state_dict = lora.merged(state_dict)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    except (RuntimeError, IndexError, TypeError) as error:  # torch on tensors of other shapes or types
        raise UserError(f"{path}: expected the weights of a Vision Transformer; found {error}") from error
    texts = ("holds", "preset", "command", "data", "licence")
    said = {key: about[key] for key in texts if isinstance(about.get(key), str)}
    said.setdefault("preset", (entry and entry.preset) or "")
    args = args or ({"model": said["preset"]} if said["preset"] else {})
    norm_eps = args.get("norm_eps") or (entry and entry.norm_eps) or (DEFAULT_NORM_EPS if front_end else None)
    if norm_eps is not None and not (is_number(norm_eps) and 0 < norm_eps < 1):
        raise UserError(f"{path}: expected a number above 0 as 'norm_eps'; found {norm_eps!r}")
    said |= {"converted": converted, "norm_eps": norm_eps}
    return Weights(state_dict, front_end or None, classes, args, **said)


def _read_safetensors(path):
    try:
        with safe_open(path, framework="pt") as file:
            words = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise UserError(f"{path}: expected a file of weights; found no such file") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: expected a file of weights; found a damaged or unreadable file") from error
    version, holds = words.get("radio_mae", FORMAT), words.get("holds")
    if version != FORMAT:
        raise UserError(f"{path}: expected weights of radio-mae's format {FORMAT}; found {version!r}")
    if "radio_mae" in words and holds not in HOLDS:
        raise UserError(f"{path}: expected one of {', '.join(HOLDS)} as 'holds'; found {holds!r}")
    for key in {"front_end", "classes", "args"} & words.keys():
        try:
            words[key] = parse_json(words[key])
        except ValueError as error:
            found = words[key][:40]
            raise UserError(f"{path}: expected JSON as {key!r} in the header; found {found!r}") from error
    return {**words, "model": tensors}
