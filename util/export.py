"""`--export FILE`: trained weights for other programs, as safetensors or as an ONNX model."""

import contextlib
import copy
import importlib
import io
import logging
import shlex
import warnings
from argparse import BooleanOptionalAction
from pathlib import Path

import torch

from util import convert, distributed, lora
from util.errors import RunError, UserError
from util.files import atomic_path, writable_folder
from util.pretrained import header, write_weights
from util.state import tensor_problem

OPSET = 18
DTYPES = {"float32": torch.float32, "float16": torch.float16}
INPUT, OUTPUT = "spectrogram", "logits"
ONNX_PACKAGES = ("onnx", "onnxscript")
# An ONNX file is a protobuf message, whose length has 31 bits; the graph takes a few MB.
ONNX_LARGEST = 2**31 - 2**24
# Flags that do not change the weights.
UNRECORDED = {"output_dir", "log_dir", "device", "num_workers", "pin_mem", "resume", "eval", "seeds", "keep"}
UNRECORDED |= {"save_every_epochs", "save_every_steps", "export", "export_dtype", "licence"}


def check_args(args, onnx):
    """Check `--export` before training.

    Args:
        onnx: whether the command can write ONNX models.

    Raises:
        UserError: another suffix, or a missing package.
    """
    if not args.export:
        return
    suffix = Path(args.export).suffix
    if suffix == ".onnx" and not onnx:
        expected = "a .safetensors file of pretraining (main_finetune.py makes .onnx of fine-tuned models)"
        raise UserError(f"--export: expected {expected}; found {args.export}")
    if suffix not in (".safetensors", ".onnx"):
        expected = f"a file named .safetensors{' or .onnx' * onnx}"
        raise UserError(f"--export: expected {expected}; found {args.export}")
    if suffix == ".onnx":
        if args.export_dtype != "float32":
            raise UserError(f"--export_dtype: expected float32 with {args.export}; found {args.export_dtype}")
        try:
            for package in ONNX_PACKAGES:
                importlib.import_module(package)
        except ImportError as error:
            expected = f"{' and '.join(ONNX_PACKAGES)} (pip install {' '.join(ONNX_PACKAGES)})"
            raise UserError(f"--export {args.export}: expected {expected}; found that {error}") from error


def check_size(path, model):
    """Refuse a model that is too large for an ONNX file."""
    size = sum(value.nbytes for value in model.state_dict().values())
    if path and Path(path).suffix == ".onnx" and size > ONNX_LARGEST:
        found = f"{size / 2**30:.1f} GiB"
        raise UserError(f"--export {path}: expected a model below the 2 GiB of an ONNX file; found {found}")


def encoder_alone(path):
    """Whether a file of this name gets the encoder alone."""
    return Path(path).suffix == ".safetensors" and "encoder" in Path(path).stem


@contextlib.contextmanager
def destination(path):
    """Check that `--export` can be written; see `util.files.writable_folder`.

    Raises:
        UserError: it cannot be written.
    """
    if Path(path).is_dir():
        raise UserError(f"--export {path}: expected a file; found a folder")
    with writable_folder(Path(path).parent, f"--export {path}", "a file"):
        yield


def command_line(script, parser, flags):
    """The command with its flags that decide the weights and differ from the defaults; paths without their
    folders.

    Args:
        flags: a dict, as "args" of a checkpoint.
    """
    words = ["python", script]
    known = {action.dest: action for action in parser._actions}
    for name, value in flags.items():
        if name in UNRECORDED or name not in known or value is None or value == parser.get_default(name):
            continue
        if not isinstance(value, bool):
            words += [f"--{name}", *map(last_part, value if isinstance(value, list) else [value])]
        elif isinstance(known[name], BooleanOptionalAction):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            same = [action for action in parser._actions if action.dest == name and action.const is value]
            words += same[0].option_strings
    return shlex.join(words)


def last_part(value):
    """`name` of `/home/me/name`; URLs and values that are no paths stay."""
    text = str(value)
    return text if "://" in text else Path(text).name or text


def about(script, parser, flags, licence, **known):
    """The arguments of `util.pretrained.header` for weights that a command trained with these flags.

    Args:
        flags: a dict, as "args" of a checkpoint.
        known: `holds`, `front_end`, `classes` and `args`.
    """
    data = ", ".join(last_part(path) for path in flags["data_path"])
    command = command_line(script, parser, flags)
    return {"preset": flags["model"], "command": command, "data": data, "licence": licence, **known}


def export(path, model, about, dtype="float32"):
    """Write `model`, with adapters merged, to `path` on rank 0, whole or not at all.

    Args:
        path: `.onnx`: the ONNX model; `.safetensors` with "encoder" in its name: `convert.to_timm` of the
            model; other `.safetensors`: all tensors.
        about: of `about`; its "args" have "in_chans", its "front_end" has "image_size".
        dtype: one of `DTYPES`, for `.safetensors`.
    """
    if not distributed.is_main():
        return
    for name, value in model.state_dict().items():
        if wrong := tensor_problem(value, floating=value.is_floating_point()):
            raise RunError(f"--export {path}: expected finite weights; found {name}: {wrong}")
    if Path(path).suffix == ".onnx":
        what = "ONNX model"
        write_onnx(path, model, about)
    else:
        what, state_dict = f"{about['holds']} weights", lora.merged(model.state_dict())
        if encoder_alone(path):
            what, state_dict = "encoder", convert.to_timm(state_dict)
            kept = about["args"].keys() & {"model", "in_chans", "norm_eps"}
            about = about | {"holds": "encoder", "args": {key: about["args"][key] for key in kept}}
        write_weights(path, state_dict, DTYPES[dtype], **about)
    print(f"wrote {path}: {what}, {Path(path).stat().st_size / 1e6:.1f} MB")


def write_onnx(path, model, about):
    """Write an ONNX model: "spectrogram" float32 [any, channel, frequency, time], of the front end ->
    "logits".

    The file's metadata is the `header`.

    Raises:
        UserError: it cannot be written.
    """
    model = lora.merge(copy.deepcopy(model)).cpu().float().eval()
    model.is_graph = True  # see `models_mae.ViTEncoder`
    # Two images, as torch takes batches of 0 and 1 for fixed.
    images = torch.zeros(2, about["args"]["in_chans"], *about["front_end"]["image_size"])
    names = {"input_names": [INPUT], "output_names": [OUTPUT]}
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    options = {"dynamo": True, "opset_version": OPSET, "verbose": False}
    with torch.no_grad(), silence():
        program = torch.onnx.export(model, (images,), dynamic_shapes=shapes, **names, **options)
    proto = program.model_proto
    graph = proto.graph
    # The exporter writes paths of source files into each node.
    for part in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer, graph):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for key, value in header(**about).items():
        proto.metadata_props.add(key=key, value=value)
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(proto.SerializeToString(deterministic=True))
    except OSError as error:
        raise UserError(f"{path}: the model could not be written: {error.strerror}") from error


@contextlib.contextmanager
def silence():
    """Silence what torch's exporter prints, logs and warns."""
    level, out = logging.root.manager.disable, io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(level)
