"""Reading what torch.save wrote: tensors, plain values, and the few objects that checkpoints of this field hold besides."""

import argparse
import pathlib
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
_SCALAR = np.float64(0).__reduce__()[0]
_NUMBERS = [
    np.dtype,
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *(kind for kind in vars(np.dtypes).values() if isinstance(kind, type) and issubclass(kind, np.dtype)
      and kind not in (np.dtypes.ObjectDType, np.dtypes.VoidDType)),
]  # fmt: skip
ALLOWED = [argparse.Namespace, *_PATHS, *_NUMBERS]


def load(path):
    """What is in a file of torch.save, on the CPU; no object is built but tensors, plain values and those of `ALLOWED`.

    Raises:
        pickle.UnpicklingError: it holds other objects, or is damaged; what else torch.load raises.
    """
    with torch.serialization.safe_globals(ALLOWED), warnings.catch_warnings():
        # What torch says of a foreign pickle, our error says.
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True)


def plain(value):
    """The same as tensors, lists, dicts and plain values: a namespace as a dict, a path as text, a NumPy number as Python's.
    """
    if isinstance(value, argparse.Namespace):
        return plain(vars(value))
    if isinstance(value, dict):
        return {plain(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set):
        return type(value)([plain(one) for one in value])
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, pathlib.PurePath | torch.device | torch.dtype | np.dtype):
        return str(value)
    return value
