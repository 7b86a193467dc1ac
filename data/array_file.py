"""Arrays of samples in .npy files, read in parts."""

import bisect
import itertools
import math
import operator
import weakref

import numpy as np

from util.errors import UserError
from util.files import check_size, not_read, read_pieces


class ArrayFile:
    """Reads parts of an .npy file, `array[index]`, and reports a file that was truncated since it was opened.

    The file is not mapped: the kernel kills a process that touches a map beyond the end of a truncated file.
    """

    def __init__(self, path, shape, dtype, first_byte):
        self.path, self.shape, self.dtype, self.first_byte = path, shape, np.dtype(dtype), first_byte
        self.part_bytes = math.prod(shape[1:]) * self.dtype.itemsize
        # Kept open, since opening it for each part would ask a file server each time.
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115
        weakref.finalize(self, self._file.close)

    def __reduce__(self):
        return open_npy, (self.path, self.shape, self.dtype)

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, index):
        """Part `index`: [...]; UserError if the file was deleted or truncated since."""
        return self.read_many([operator.index(index)])[0]

    def read(self, start, count):
        """Parts `start` to `start + count`: [count, ...]."""
        return self.read_many(range(start, start + count))

    def read_many(self, indices):
        """Parts by index: [n, ...]. They are read in the order of the file, neighbours together."""
        if len(indices) and not 0 <= min(indices) <= max(indices) < len(self):
            raise IndexError(f"{self.path}: {min(indices)} to {max(indices)} is outside of {len(self)}")
        parts = np.empty((len(indices), *self.shape[1:]), self.dtype)
        pieces = [(self.first_byte + index * self.part_bytes, place) for place, index in enumerate(indices)]
        try:
            short = read_pieces(self._file, pieces, parts)
        except OSError as error:
            raise UserError(
                f"{self.path}: expected a file that can be read; found {not_read(self.path, error)}"
            ) from error
        # After reading, to notice a file that was cut meanwhile.
        check_size(self.path, self.first_byte + len(self) * self.part_bytes)
        if short:
            place, found = short
            sample = f"sample {indices[place]}"
            raise UserError(f"{self.path}: expected {self.part_bytes} bytes of {sample}; found {found}")
        return parts


class ArrayFiles:
    """`ArrayFile`s, one after another, read as one.

    Args:
        files: of equal parts.
    """

    def __init__(self, files):
        self.files = list(files)
        self.ends = list(itertools.accumulate(map(len, self.files)))
        self.shape = (self.ends[-1], *self.files[0].shape[1:])
        self.part_bytes = self.files[0].part_bytes

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, index):
        """See `ArrayFile`."""
        return self.read_many([operator.index(index)])[0]

    def read(self, start, count):
        """See `ArrayFile`."""
        return self.read_many(range(start, start + count))

    def read_many(self, indices):
        """See `ArrayFile`."""
        parts = np.empty((len(indices), *self.shape[1:]), self.files[0].dtype)
        owners = [bisect.bisect_right(self.ends, index) for index in indices]
        for owner in sorted(set(owners)):
            places = [place for place, one in enumerate(owners) if one == owner]
            first = self.ends[owner] - len(self.files[owner])
            parts[places] = self.files[owner].read_many([indices[place] - first for place in places])
        return parts


def open_npy(path, shape, dtype):
    """The `ArrayFile` of a path."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.shape != shape or array.dtype != dtype:
            raise UserError(
                f"{path}: expected {np.dtype(dtype)} {list(shape)}; found {array.dtype} {list(array.shape)}"
            )
        if not array.flags.c_contiguous:
            raise UserError(f"{path}: expected an array in C order; found one in Fortran order")
        return ArrayFile(path, shape, dtype, array.offset)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: expected an array; found a missing or damaged file: {error}") from error
