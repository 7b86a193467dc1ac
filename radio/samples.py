"""How samples lie in files and streams, and how they become complex64.

Sections named here are those of the SigMF specification, version 1.2.
"""

import functools
import re
from dataclasses import dataclass, replace
from pathlib import Path
from reprlib import repr as _brief

import numpy as np
import torch

from util.errors import UserError

# Section "Dataset Format"; with _le or _be where a component has more than 8 bits.
DATATYPES = tuple(a + b for a in "cr" for b in ("f64", "f32", "i32", "i16", "i8", "u32", "u16", "u8"))
_FULL = {name + order for name in DATATYPES for order in ([""] if name.endswith("8") else ["_le", "_be"])}


def full_datatype(owner: str, name) -> str:
    """SigMF's full name of a datatype: little endian where the name does not say, `ci` for the `cs` of SDR tools."""
    if isinstance(name, str) and name in _FULL:
        return name
    match = re.fullmatch(r"(\w+?)(_le|_be)?", str(name).lower())
    base = re.sub("^cs", "ci", match[1]) if match else None
    if base not in DATATYPES:
        known = " ".join(DATATYPES)
        raise UserError(f"{owner}: core:datatype or --datatype: expected one of {known} (with _le or _be), "
                        f"found {_brief(name)}")
    return base if base.endswith("8") else base + (match[2] or "_le")


@functools.cache
def component_of(datatype: str) -> tuple[np.dtype, int]:
    """Of a datatype's full name: the dtype of a component, and how many a sample has (2 for I and Q)."""
    from sigmf.sigmffile import dtype_info  # what only computes spectrograms does without sigmf

    types = dtype_info(datatype)
    return types["component_dtype"], 1 + types["is_complex"]


@dataclass(frozen=True)
class Layout:
    """Where samples lie in a data file: frames (a sample of every channel) of components (I and Q, or one)."""

    data_file: Path
    byte_offset: int  # of the first frame
    dtype: np.dtype  # of a component
    components: int  # side by side: 2 for I and Q, 1 for real samples and where I and Q lie apart
    channels: int = 1
    channel: int = 0
    plane_bytes: int = 0  # where I and Q lie apart: the bytes from an I to its Q

    @property
    def frame_bytes(self) -> int:
        return self.dtype.itemsize * self.components * self.channels

    @property
    def stored_dtype(self) -> np.dtype:
        """What `read_stored` gives: integers of up to 16 bits as they are, in this machine's byte order, else complex64."""
        small = self.dtype.kind in "iu" and self.dtype.itemsize <= 2 and (self.components == 2 or self.plane_bytes)
        return self.dtype.newbyteorder("=") if small else np.dtype(np.complex64)

    @property
    def stored_bytes(self) -> int:
        """Bytes of a sample of `read_stored`."""
        return self.stored_dtype.itemsize * (1 if self.stored_dtype.kind == "c" else 2)

    @property
    def is_as_stored(self) -> bool:
        """Whether frames lie in the file as `read_stored` gives them."""
        component = self.stored_dtype if self.stored_dtype.kind != "c" else np.dtype(np.float32)
        return self.components == 2 and self.channels == 1 and self.dtype == component

    def read(self, start: int, count: int) -> np.ndarray:
        """Frames `start` to `start + count`: complex64 [count], or fewer where the data file ends."""
        values = self._read_components(start, count)  # (count, components)
        if self.components == 2 or not self.plane_bytes:
            return _complex(_scaled(values))
        iq = _complex(_scaled(values))
        values = self._read_second_plane(start, len(iq))
        iq = iq[: len(values)]
        iq.imag = _scaled(values)[:, 0]
        return iq

    def read_stored(self, start: int, count: int) -> np.ndarray:
        """Frames as `stored_dtype` says: I and Q [count, 2], or complex64 [count]; fewer where the data file ends."""
        if self.stored_dtype.kind == "c":
            return self.read(start, count)
        values = self._read_components(start, count)
        if self.components == 1:
            second = self._read_second_plane(start, len(values))
            values = np.concatenate([values[: len(second)], second], axis=1)
        return values.astype(self.stored_dtype, copy=False)

    def _read_second_plane(self, start, count):
        return replace(self, byte_offset=self.byte_offset + self.plane_bytes)._read_components(start, count)

    def _read_components(self, start, count):
        """The components of one channel, as they are stored: [count, components], or fewer rows where the data file ends."""
        per_frame = self.components * self.channels
        offset = self.byte_offset + start * self.frame_bytes
        values = np.fromfile(self.data_file, self.dtype, count * per_frame, offset=offset)
        values = values[: len(values) // per_frame * per_frame].reshape(-1, self.channels, self.components)
        return values[:, self.channel]


class IqStream:
    """Samples of a pipe or socket as they come, of one channel; nothing is kept of what was read.

    Args:
        file: binary, unbuffered or buffered; `readinto` is all that is used.
        datatype: SigMF's full name.
        name: what errors call it.
    """

    def __init__(self, file, datatype: str, name: str):
        self.file, self.datatype, self.name = file, datatype, name
        self.dtype, self.components = component_of(datatype)
        self.num_samples = 0  # read so far
        self._torn_bytes = 0

    @property
    def sample_bytes(self) -> int:
        return self.dtype.itemsize * self.components

    def read(self, count: int) -> np.ndarray:
        """The next `count` samples: complex64 [count]; fewer, then none, at the end.

        Raises:
            UserError: nothing but a part of a sample is left, or a sample is not finite in float32.
        """
        buffer = bytearray(0 if self._torn_bytes else count * self.sample_bytes)
        view, filled = memoryview(buffer), 0
        while filled < len(buffer) and (got := self.file.readinto(view[filled:])):
            filled += got
        whole = filled // self.sample_bytes
        if filled < len(buffer):
            self._torn_bytes = filled - whole * self.sample_bytes
        if not whole and self._torn_bytes:
            raise UserError(f"{self.name}: expected whole samples of {self.sample_bytes} bytes ({self.datatype}); found "
                            f"{self._torn_bytes} bytes after the last")  # fmt: skip
        values = np.frombuffer(buffer, self.dtype, whole * self.components).reshape(whole, self.components)
        iq = _complex(_scaled(values))
        if (bad := not_finite(iq, self.dtype)) is not None:
            raise UserError(f"{self.name}: expected finite samples, found {iq[bad]} (as float32) at sample "
                            f"{self.num_samples + bad}")  # fmt: skip
        self.num_samples += whole
        return iq


def not_finite(iq: np.ndarray, dtype: np.dtype) -> int | None:
    """The first sample that is not finite, of complex64 [count] that came from components of `dtype`; None for none."""
    if dtype.kind != "f":
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        total = iq.view(np.float32).sum()
    if np.isfinite(total):  # NaN or infinity would have come through; large finite samples may overflow, so search then
        return None
    bad = np.flatnonzero(~np.isfinite(iq))
    return int(bad[0]) if bad.size else None


def signed(values, in_place=False):
    """Unsigned integers less half of their range, as signed integers; other values as they are.

    Args:
        values: array, or tensor of at most 16 bits; in_place: write the result where they lie.
    """
    if isinstance(values, np.ndarray):
        dtype = values.dtype.str.replace("u", "i") if values.dtype.kind == "u" else None
    else:
        dtype = {torch.uint8: torch.int8, torch.uint16: torch.int16}.get(values.dtype)
    if dtype is None:
        return values
    # Flipping the top bit is exact; sigmf subtracts in float32, which rounds cu32 and ru32.
    values = values.view(dtype)
    top_bit = -(2 ** (8 * values.itemsize - 1))
    if in_place:
        values ^= top_bit
        return values
    return values ^ top_bit


def _complex(values):
    """float32 [count, components] as complex64 [count]; one component is the real part."""
    if values.shape[1] == 2:
        return values.view(np.complex64)[:, 0]
    iq = np.zeros(len(values), np.complex64)
    iq.real = values[:, 0]
    return iq


def _scaled(values):
    """Components of any type as float32 of the same shape, not copied where they are that; integers become [-1, 1)."""
    values = signed(values)
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, and the readers report that
        scaled = values.astype(np.float32, order="C", copy=False)
    if values.dtype.kind == "i":
        scaled *= np.float32(2.0 ** (1 - 8 * values.itemsize))
    return scaled
