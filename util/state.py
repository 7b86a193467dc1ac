"""Check what a checkpoint holds before it is used: plain values, tensors, the optimizer's state."""

import math

import torch

from util.errors import UserError

MOST_CLASSES = 256  # masks are bytes
MOST_CELLS = 2**26  # of an image
MOST = 2**53  # of whole numbers: beyond it floats, and other programs, lose the last digits
POSITION = (
    "step",
    "epoch_step",
    "loss_sum",
    "weight",
)  # the fields of `util.progress.Progress` but its score
# Tensors that an optimizer keeps for each parameter, by its class.
ENTRIES = {"AdamW": {"step", "exp_avg", "exp_avg_sq"}}
MOMENTUM = {"momentum_buffer"}  # of the other classes


def is_number(value):
    """Whether a plain value is a finite number, which truth values are not."""
    return type(value) is int or (type(value) is float and math.isfinite(value))


def is_whole(value, least=0):
    """Whether a plain value is a whole number of at least `least`."""
    return type(value) is int and least <= value <= MOST


def _is_position(value):
    whole = all(is_whole(value.get(name, 0)) for name in POSITION[:2])
    return whole and value.keys() <= {*POSITION} and all(map(is_number, value.values()))


def _is_random_state(value):
    if not isinstance(value, dict) or "cpu" not in value or not isinstance(value.get("cuda", []), list):
        return False
    states = [value["cpu"], *value.get("cuda", [])]
    return all(isinstance(one, torch.Tensor) and one.dtype == torch.uint8 and one.ndim == 1 for one in states)


# Fields of a checkpoint: what is expected, and its test. Those that a checkpoint lacks are not checked here.
FIELDS = {
    "epoch": ("a whole number from -1 on", lambda value: is_whole(value, -1)),
    "step": ("a whole number from 0 on", is_whole),
    "num_samples": ("a whole number from 0 on", is_whole),
    "effective_batch": ("a whole number above 0", lambda value: is_whole(value, 1)),
    "progress": (f"finite numbers as {', '.join(POSITION)}", _is_position),
    "args": ("flags by name", lambda value: all(isinstance(name, str) for name in value)),
    "classes": ("a list of different, printable names", lambda value: not name_problem(value)),
    "front_end": (
        "two numbers as its image_size",
        lambda value: is_image_size(value.get("image_size", (1, 1))),
    ),
    "rng": ("states of random generators, uint8", _is_random_state),
    "scaler": (
        "finite numbers",
        lambda value: isinstance(value, dict) and all(map(is_number, value.values())),
    ),
    "best": ("a finite number", is_number),
    "best_epoch": ("a whole number from -1 on", lambda value: is_whole(value, -1)),
    "seconds_training": ("a finite number", is_number),
}


def check_fields(state, path):
    """Check the plain values of a checkpoint.

    Raises:
        UserError: one is of another type, out of its range, or not finite.
    """
    for name, (expected, is_right) in FIELDS.items():
        if name in state and not is_right(state[name]):
            raise UserError(f"{path}: expected {expected} as {name!r}; found {short(state[name])}")


def name_problem(names):
    """What is wrong with class names, in words; "" for a list of different, printable, non-empty texts."""
    if not isinstance(names, list | tuple):
        return f"a {type(names).__name__}"
    for place, name in enumerate(names):
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            return f"{short(name)} as a name"
        if name in names[:place]:
            return f"{','.join(names[: place + 1])}, {name} twice"
    return f"{len(names)} names" if len(names) > MOST_CLASSES else ""


def check_names(names, owner, expected="a list of different, printable names of classes", least=0):
    """Check class names. Raises a UserError that starts with `owner`."""
    problem = name_problem(names)
    if not problem and len(names) < least:
        problem = f"{', '.join(names) or 'none'}"
    if problem:
        raise UserError(f"{owner}: expected {expected}; found {problem}")


def is_image_size(value):
    """Whether it is (rows, columns) of an image that fits into memory."""
    whole = isinstance(value, list | tuple) and len(value) == 2 and all(is_whole(one, 1) for one in value)
    return whole and value[0] * value[1] <= MOST_CELLS


def short(value):
    """A value for a message, in at most 60 characters."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of {list(value.shape)}, {value.dtype}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def tensor_problem(value, shape=None, floating=True):
    """What is wrong with a value that should be a finite tensor, in words; "" if nothing is.

    Args:
        shape: that it should have; None: any.
        floating: whether it should hold floating-point numbers; else it should hold integers.
    """
    if not isinstance(value, torch.Tensor):
        return f"a {type(value).__name__}, expected a tensor"
    if value.layout != torch.strided or value.is_meta or value.is_quantized:
        return "a tensor without plain values"
    if shape is not None and value.shape != shape:
        return f"{list(value.shape)}, expected {list(shape)}"
    if value.is_floating_point() != floating or value.is_complex() or value.dtype == torch.bool:
        return f"of {value.dtype}, expected {'floating-point numbers' if floating else 'integers'}"
    return "NaN or infinity, expected finite numbers" if floating and not is_finite(value) else ""


def is_finite(tensor):
    """Whether all values of a tensor are finite, in one pass and without a copy of its size."""
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor  # the own part of a sharded tensor
    if local.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        local = local.float()  # torch has few functions of 8-bit numbers
    return not local.numel() or all(math.isfinite(edge) for edge in local.aminmax())


def check_optimizer(saved, optimizer, path, may_lack=False):
    """Check an optimizer's saved state against the optimizer and its parameters.

    Its fused step reads outside of a tensor that is smaller than the parameter.

    Args:
        saved: what `state_dict` gave; optimizer: with parameters on any device.
        may_lack: whether parameters may have no state yet.

    Raises:
        UserError: a parameter's state is missing, unknown, of another shape or type, or not finite.
    """

    def refuse(found):
        raise UserError(f"{path}: expected the optimizer's state of this model; found {found}")

    groups, states = saved.get("param_groups"), saved.get("state")
    if not isinstance(groups, list) or not isinstance(states, dict):
        refuse(f"{', '.join(map(str, saved)) or 'nothing'} instead of state and param_groups")
    own = optimizer.state_dict()["param_groups"]
    found = [one.get("params") if isinstance(one, dict) else None for one in groups]
    if found != [one["params"] for one in own]:
        refuse(f"{len(groups)} groups with other parameters than its {len(own)}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if odd := [key for key in states if key not in range(len(parameters))]:
        refuse(f"a parameter {short(odd[0])} of {len(parameters)}")
    missing = [number for number in range(len(parameters)) if number not in states]
    if missing and not may_lack:
        refuse(f"none for {len(missing)} of {len(parameters)} parameters")
    names = ENTRIES.get(type(optimizer).__name__, MOMENTUM)
    for number, entry in states.items():
        if not isinstance(entry, dict) or entry.keys() != names:
            keys = ", ".join(map(str, entry)) if isinstance(entry, dict) else type(entry).__name__
            refuse(f"{keys or 'nothing'} for parameter {number}, expected {', '.join(sorted(names))}")
        for name, value in entry.items():
            shape = torch.Size() if name == "step" else parameters[number].shape
            wrong = tensor_problem(value, shape)
            if not wrong and name in ("step", "exp_avg_sq") and value.numel() and value.min() < 0:
                wrong = "negative numbers"
            if wrong:
                refuse(f"{name} of parameter {number}: {wrong}")
