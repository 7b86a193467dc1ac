"""Variables of MATLAB files before version 7.3."""

import contextlib

from scipy.io import loadmat, whosmat

from util.errors import UserError
from util.files import not_read


def variables(path):
    """All variables: {name: array}, without dimensions of size 1."""
    with _reading(path):
        content = loadmat(path, squeeze_me=True)
    return {name: value for name, value in content.items() if not name.startswith("__")}


def shape(path, key):
    """Shape of a variable, without reading its values."""
    with _reading(path):
        shapes = {name: size for name, size, _ in whosmat(path)}
    if key not in shapes:
        raise UserError(f"{path}: expected the variable {key}; found {', '.join(shapes) or 'none'}")
    return shapes[key]


def numbers(path, key):
    """A variable: an array of real numbers."""
    with _reading(path):
        values = loadmat(path, variable_names=[key]).get(key)
    if values is None:
        shape(path, key)  # raises, and names the variables that the file has
    if values.dtype.kind not in "fiub" or not values.size:
        raise UserError(f"{path}: expected numbers in {key}; found {values.dtype} {list(values.shape)}")
    return values


@contextlib.contextmanager
def _reading(path):
    try:
        yield
    except NotImplementedError as error:
        raise UserError(
            f"{path}: expected a MATLAB file before version 7.3; found version 7.3 (HDF5): save it again with -v7"
        ) from error
    # On damaged files, SciPy raises whatever its reader trips over.
    except Exception as error:
        raise UserError(f"{path}: expected a MATLAB file; found {not_read(path, error)}") from error
