"""Reading what torch.save wrote: tensors, plain values, and the few objects that checkpoints of this field hold besides."""

import argparse
import pathlib
import pickle
import re
import warnings

import numpy as np
import torch

# Beyond torch's own allow-list: what MAE's `save_model`, and projects derived from it, put into "args" and beside it.
# Paths of any system and Python become pure ones, which touch no file system.
_PATHS = [
    (path, f"{module}.{name}")
    for module in ("pathlib", "pathlib._local")
    for path, names in ((pathlib.PurePosixPath, ("PosixPath", "PurePosixPath")),
                        (pathlib.PureWindowsPath, ("WindowsPath", "PureWindowsPath")))
    for name in names
]  # fmt: skip


class _NumpyType:
    """What stands in a pickle for a dtype of numbers or text; NumPy's own, given a crafted state, crashes the process."""

    def __init__(self, code, align=False, copy=False):
        if not re.fullmatch(r"[?biufcSU]\d{0,9}", code):
            raise pickle.UnpicklingError(f"expected a dtype of numbers or text; found {code!r}")
        self.code = code

    def __setstate__(self, state):
        if state[1] in ("<", ">"):  # of the version, byte order, ...
            self.code = state[1] + self.code

    def __str__(self):
        return str(np.dtype(self.code))


def _python_number(numpy_type, content):
    """A NumPy scalar's bytes as a Python number or text."""
    dtype = np.dtype(numpy_type.code)
    if len(content) != dtype.itemsize:
        raise pickle.UnpicklingError(f"expected {dtype.itemsize} bytes of a {dtype}; found {len(content)}")
    return np.ndarray((), dtype, content).item()


_NUMBERS = [(_NumpyType, "numpy.dtype"),
            *((_python_number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core"))]  # fmt: skip
ALLOWED = [argparse.Namespace, *_PATHS, *_NUMBERS]


def load(path, mmap=False):
    """What is in a file of torch.save, on the CPU; no object is built but tensors, plain values and those of `ALLOWED`.

    NumPy's numbers become Python's. mmap: map the tensors instead of reading them.

    Raises:
        pickle.UnpicklingError: it holds other objects, or is damaged; what else torch.load raises.
    """
    with torch.serialization.safe_globals(ALLOWED), warnings.catch_warnings():
        # What torch says of a foreign pickle, our error says.
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def plain(value):
    """The same as tensors, lists, dicts and plain values: a namespace as a dict; a path, device or dtype as text."""
    if isinstance(value, argparse.Namespace):
        return plain(vars(value))
    if isinstance(value, dict):
        return {plain(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set):
        return type(value)([plain(one) for one in value])
    if isinstance(value, pathlib.PurePath | torch.device | torch.dtype | _NumpyType):
        return str(value)
    return value
