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
from util.errors import UserError
from util.files import atomic_path, writable_folder
from util.pretrained import header, write_weights

OPSET = 18
DTYPES = {"float32": torch.float32, "float16": torch.float16}
INPUT, OUTPUT = "spectrogram", "logits"
ONNX_PACKAGES = ("onnx", "onnxscript")
# A protobuf message, which an ONNX file is, has a length of 31 bits; the graph takes a few of these megabytes.
ONNX_LARGEST = 2**31 - 2**24
# What a run that comes to the same weights may have otherwise.
UNRECORDED = {
    "output_dir", "log_dir", "device", "num_workers", "pin_mem", "resume", "eval", "seeds", "keep", "save_every_epochs",
    "save_every_steps", "export", "export_dtype", "licence",
}  # fmt: skip


def check_args(args, onnx):
    """Refuse what cannot be exported, before anything is trained.

    Args:
        onnx: whether the command trains what goes into an ONNX model.

    Raises:
        UserError: another suffix, or a package that is missing.
    """
    if not args.export:
        return
    suffix = Path(args.export).suffix
    if suffix == ".onnx" and not onnx:
        raise UserError(f"--export: expected a .safetensors file of pretraining (main_finetune.py makes .onnx of fine-tuned "
                        f"models); found {args.export}")  # fmt: skip
    if suffix not in (".safetensors", ".onnx"):
        raise UserError(f"--export: expected a file named .safetensors{' or .onnx' * onnx}; found {args.export}")
    if suffix == ".onnx":
        if args.export_dtype != "float32":
            raise UserError(f"--export_dtype: expected float32 with {args.export}; found {args.export_dtype}")
        try:
            for package in ONNX_PACKAGES:
                importlib.import_module(package)
        except ImportError as error:
            raise UserError(f"--export {args.export}: expected {' and '.join(ONNX_PACKAGES)} (pip install "
                            f"{' '.join(ONNX_PACKAGES)}); found that {error}") from error  # fmt: skip


def check_size(path, model):
    """Refuse a model that is too large for an ONNX file."""
    size = sum(value.nbytes for value in model.state_dict().values())
    if path and Path(path).suffix == ".onnx" and size > ONNX_LARGEST:
        raise UserError(f"--export {path}: expected a model below the 2 GiB of an ONNX file; found {size / 2**30:.1f} GiB")


def encoder_alone(path):
    """Whether the name of a file says that it is to hold the encoder and nothing else."""
    return Path(path).suffix == ".safetensors" and "encoder" in Path(path).stem


@contextlib.contextmanager
def destination(path):
    """See that `--export` can be written, its folder made; removed again if the run fails before anything is in it.

    Raises:
        UserError: it cannot be written.
    """
    if not path:
        yield
        return
    if Path(path).is_dir():
        raise UserError(f"--export {path}: expected a file; found a folder")
    with writable_folder(Path(path).parent, f"--export {path}", "a file"):
        yield


def command_line(script, parser, flags):
    """The command with those of its flags that are not the default and decide the weights; of paths, the last part.

    Args:
        flags: a dict, as "args" of a checkpoint.
    """
    words = ["python", script]
    known = {action.dest: action for action in parser._actions}
    for name, value in flags.items():
        if name in UNRECORDED or name not in known or value is None or value == parser.get_default(name):
            continue
        if not isinstance(value, bool):
            words += [f"--{name}", *(last_part(item) for item in (value if isinstance(value, list) else [value]))]
        elif isinstance(known[name], BooleanOptionalAction):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words += next(each.option_strings for each in parser._actions if each.dest == name and each.const is value)
    return shlex.join(words)


def last_part(value):
    """`name` of `/home/me/name`; a URL, and anything that is no path, as it is."""
    text = str(value)
    return text if "://" in text else Path(text).name or text


def about(script, parser, flags, licence, **known):
    """What the header says (see `util.pretrained.header`) of weights that a command trained with these flags.

    Args:
        flags: a dict, as "args" of a checkpoint.
        known: `holds`, `front_end`, `classes` and `args`.
    """
    data = ", ".join(last_part(path) for path in flags["data_path"])
    command = command_line(script, parser, flags)
    return {"preset": flags["model"], "command": command, "data": data, "licence": licence, **known}


def export(path, model, about, dtype="float32"):
    """Write `model` to `path`, whole or not at all, on rank 0. The suffix and the name say what is written.

    Adapters are merged into the weights.

    Args:
        path: `.onnx`, the model; `.safetensors` with "encoder" in its name, `convert.to_timm` of it; else all its tensors.
        about: see `about`; its "args" have "in_chans", its "front_end" "image_size".
        dtype: one of `DTYPES`, of `.safetensors`.
    """
    if not distributed.is_main():
        return
    if Path(path).suffix == ".onnx":
        what = "ONNX model"
        write_onnx(path, model, about)
    elif encoder_alone(path):
        what = "encoder"
        args = {key: about["args"][key] for key in ("model", "in_chans", "norm_eps") if key in about["args"]}
        about = about | {"holds": "encoder", "args": args}
        write_weights(path, convert.to_timm(lora.merged(model.state_dict())), DTYPES[dtype], **about)
    else:
        what = f"{about['holds']} weights"
        write_weights(path, lora.merged(model.state_dict()), DTYPES[dtype], **about)
    print(f"wrote {path}: {what}, {Path(path).stat().st_size / 1e6:.1f} MB")


def write_onnx(path, model, about):
    """Write an ONNX model of operator set `OPSET`: "spectrogram" [batch, channel, frequency, time] -> "logits".

    The input is the front end's image, float32, and any number of them; what the front end is, the classes and all else that
    `header` has is in the file's metadata.

    Raises:
        UserError: it cannot be written.
    """
    model = lora.merge(copy.deepcopy(model)).cpu().float().eval()
    # Two, as torch takes sizes of 0 and 1 for fixed.
    images = torch.zeros(2, about["args"]["in_chans"], *about["front_end"]["image_size"])
    with torch.no_grad(), silence():
        program = torch.onnx.export(
            model, (images,), dynamo=True, opset_version=OPSET, input_names=[INPUT], output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},), verbose=False,
        )  # fmt: skip
    proto = program.model_proto
    graph = proto.graph
    # The exporter notes where in whose files each node comes from.
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
    """What torch's exporter prints, logs and warns of concerns the exporter."""
    level = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(level)
