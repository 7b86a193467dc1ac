"""Read files of torch.save: tensors, plain values, and the few other objects in this field's checkpoints."""

import argparse
import pathlib
import pickle
import re
import warnings

import numpy as np
import torch

# The objects that MAE's `save_model`, and projects derived from it, write. Paths become pure paths, which
# touch no file system.
_PATHS = [
    (pure, f"{module}.{prefix}{system}Path")
    for module in ("pathlib", "pathlib._local")
    for system, pure in (("Posix", pathlib.PurePosixPath), ("Windows", pathlib.PureWindowsPath))
    for prefix in ("", "Pure")
]


class _NumpyType:
    """A dtype of numbers or text in a pickle. NumPy's own crashes the process on a crafted state."""

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


_NUMBERS = [(_python_number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
ALLOWED = [argparse.Namespace, *_PATHS, (_NumpyType, "numpy.dtype"), *_NUMBERS]


def load(path, mmap=False):
    """Read a file of torch.save onto the CPU: tensors, plain values and `ALLOWED`; NumPy's numbers become
    Python's.

    Args:
        mmap: map the tensors instead of reading them.

    Raises:
        pickle.UnpicklingError: the file has other objects, or is damaged; torch.load raises more kinds.
    """
    with torch.serialization.safe_globals(ALLOWED), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of foreign pickles
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def plain(value):
    """A nested value without other objects: namespaces become dicts; paths, devices and dtypes text."""
    if isinstance(value, argparse.Namespace):
        return plain(vars(value))
    if isinstance(value, dict):
        return {plain(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set):
        return type(value)([plain(one) for one in value])
    if isinstance(value, pathlib.PurePath | torch.device | torch.dtype | _NumpyType):
        return str(value)
    return value
