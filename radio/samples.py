"""How samples lie in files and streams, and how they become complex64.

Sections named here are those of the SigMF specification, version 1.2.
"""

import functools
import operator
import re
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as _brief

import numpy as np
import torch

from util.errors import UserError

# Section "Dataset Format"; with _le or _be where a component has more than 8 bits.
DATATYPES = tuple(a + b for a in "cr" for b in ("f64", "f32", "i32", "i16", "i8", "u32", "u16", "u8"))
PACKED_24 = "ci24_le"  # of WAV files: I and Q of three bytes each. SigMF has no name for them.
_FULL = {name + order for name in DATATYPES for order in ([""] if name.endswith("8") else ["_le", "_be"])}
_FULL.add(PACKED_24)
_SYNONYMS = {"cs": "ci", "sc": "ci", "fc": "cf"}  # of SDR tools and UHD

# Float samples of any receiver are smaller: the largest are 32-bit integers that were not scaled (2.1e9).
GREATEST_FLOAT = 1e10


def full_datatype(owner, name):
    """SigMF's full name of a datatype: little endian by default, also for `cs16`, `sc16`, `fc32` of SDR tools."""
    if isinstance(name, str) and name in _FULL:
        return name
    match = re.fullmatch(r"(\w+?)(_le|_be)?", str(name).lower())
    base = _SYNONYMS.get(match[1][:2], match[1][:2]) + match[1][2:] if match else None
    if base not in DATATYPES:
        known = " ".join(DATATYPES)
        expected = f"core:datatype or --datatype: expected one of {known} (with _le or _be)"
        raise UserError(f"{owner}: {expected}, found {_brief(name)}")
    return base if base.endswith("8") else base + (match[2] or "_le")


@functools.cache
def component_of(datatype):
    """The dtype of a component, and the components of a sample (2 for I and Q), of a full datatype."""
    from sigmf.sigmffile import dtype_info  # programs that only compute spectrograms need no sigmf

    if datatype == PACKED_24:
        return np.dtype("V3"), 2
    types = dtype_info(datatype)
    return types["component_dtype"], 1 + types["is_complex"]


@dataclass(frozen=True)
class Layout:
    """Where samples lie in a file: frames (a sample of every channel) of components (I and Q, or one)."""

    data_file: Path
    byte_offset: int  # of the first frame
    dtype: np.dtype  # of a component
    components: int  # in a frame, per channel: 2 for I and Q, 1 for real samples and for separate planes
    channels: int = 1
    channel: int = 0
    plane_bytes: int = 0  # bytes from an I to its Q, if all I lie before all Q
    swap_iq: bool = False  # each Q lies before its I

    @property
    def frame_bytes(self):
        return self.dtype.itemsize * self.components * self.channels

    @property
    def stored_dtype(self):
        """The dtype of `read_stored`: integers of up to 16 bits in native byte order, else complex64."""
        is_iq = self.components == 2 or self.plane_bytes
        is_small = self.dtype.kind in "iu" and self.dtype.itemsize <= 2
        return self.dtype.newbyteorder("=") if is_iq and is_small else np.dtype(np.complex64)

    @property
    def stored_bytes(self):
        """Bytes of a sample of `read_stored`."""
        return self.stored_dtype.itemsize * (1 if self.stored_dtype.kind == "c" else 2)

    @property
    def is_as_stored(self):
        """Whether frames lie in the file as `read_stored` gives them."""
        component = self.stored_dtype if self.stored_dtype.kind != "c" else np.dtype(np.float32)
        is_plain = self.components == 2 and self.channels == 1 and not self.swap_iq
        return is_plain and self.dtype == component

    def read(self, start, count):
        """Frames `start` to `start + count`: complex64 [count], or fewer where the data file ends."""
        return _complex(self._components(start, count))

    def read_stored(self, start, count):
        """Frames: [count, 2] of integers or complex64 [count], see `stored_dtype`; fewer at the end."""
        values = self._components(start, count)
        dtype = self.stored_dtype
        return _complex(values) if dtype.kind == "c" else values.astype(dtype, copy=False)

    def _components(self, start, count):
        """One channel as stored: [count, 1 or 2], or fewer rows where the data file ends."""
        values = self._plane(self.byte_offset, start, count)
        if self.plane_bytes:
            second = self._plane(self.byte_offset + self.plane_bytes, start, count)
            values = np.concatenate([values[: len(second)], second], axis=1)
        return values[:, ::-1] if self.swap_iq else values

    def _plane(self, byte_offset, start, count):
        per_frame = self.components * self.channels
        offset = byte_offset + start * self.frame_bytes
        values = np.fromfile(self.data_file, self.dtype, count * per_frame, offset=offset)
        values = values[: len(values) // per_frame * per_frame].reshape(-1, self.channels, self.components)
        values = values[:, self.channel]
        if self.dtype.kind != "V":
            return values
        widened = np.zeros((*values.shape, 4), np.uint8)  # integers of 24 bits, times 256
        widened[..., 1:] = np.ascontiguousarray(values)[..., None].view(np.uint8)
        return widened.view("<i4")[..., 0]


class IqStream:
    """Samples of one channel from a pipe or socket, as they come; nothing is kept.

    Args:
        file: binary, unbuffered or buffered; only `readinto` is used.
        datatype: SigMF's full name.
        name: errors call the stream so.
        swap_iq: each Q comes before its I.
    """

    def __init__(self, file, datatype, name, swap_iq=False):
        self.file, self.datatype, self.name = file, datatype, name
        self.dtype, self.components = component_of(datatype)
        self.sample_bytes = self.dtype.itemsize * self.components
        self.swap_iq = swap_iq
        self.num_samples = 0  # read so far
        self._torn_bytes = 0  # of an incomplete last sample

    def read(self, count):
        """The next `count` samples: complex64 [count]; fewer, then none, at the end.

        Raises:
            UserError: only a part of a sample is left, or a sample is not finite in float32.
        """
        buffer = bytearray(0 if self._torn_bytes else count * self.sample_bytes)
        view, filled = memoryview(buffer), 0
        while filled < len(buffer) and (got := self.file.readinto(view[filled:])):
            filled += got
        whole = filled // self.sample_bytes
        if filled < len(buffer):
            self._torn_bytes = filled - whole * self.sample_bytes
        if not whole and self._torn_bytes:
            expected = f"whole samples of {self.sample_bytes} bytes ({self.datatype})"
            found = f"{self._torn_bytes} bytes after the last"
            raise UserError(f"{self.name}: expected {expected}; found {found}")
        values = np.frombuffer(buffer, self.dtype, whole * self.components).reshape(whole, self.components)
        iq = _complex(values[:, ::-1] if self.swap_iq else values)
        check_finite(iq, self.dtype, self.name, self.num_samples)
        self.num_samples += whole
        return iq


def check_finite(iq, dtype, name, first):
    """Refuse complex64 [count] that is not finite or beyond `GREATEST_FLOAT`: no receiver's samples.

    Args:
        dtype: of the components in the file. name: of the recording. first: number of the first sample.
    """
    if dtype.kind != "f":
        return
    parts = iq.view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        energy = np.dot(parts, parts)  # as fast as a sum, and at least the square of the greatest
        if energy <= GREATEST_FLOAT**2:  # false for NaN
            return
        wrong = ~(np.maximum(np.abs(iq.real), np.abs(iq.imag)) <= GREATEST_FLOAT)
    bad = np.flatnonzero(wrong)
    if bad.size:
        value = iq[bad[0]]
        expected = f"samples up to {GREATEST_FLOAT:g}" if np.isfinite(value) else "finite samples"
        found = f"{value} (as float32) at sample {first + bad[0]}"
        hint = "is the datatype, with its byte order, another one?"
        raise UserError(f"{name}: expected {expected}, found {found}; {hint}")


def signed(values, in_place=False):
    """Unsigned integers less half of their range, as signed integers; other values unchanged.

    Args:
        values: array, or tensor of at most 16 bits.
        in_place: write the result into the memory of `values`.
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
    return operator.ixor(values, top_bit) if in_place else values ^ top_bit


def _complex(components):
    """Components [count, 1 or 2] as complex64 [count]: integers become [-1, 1), one component is real."""
    values = signed(components)
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, which `check_finite` reports
        scaled = values.astype(np.float32, order="C", copy=False)
    if values.dtype.kind == "i":
        scaled *= np.float32(2.0 ** (1 - 8 * values.itemsize))
    return scaled.view(np.complex64)[:, 0] if scaled.shape[1] == 2 else scaled[:, 0].astype(np.complex64)
