"""One stretch of a recording, and how windows of it are read.

Files are not mapped: mapped pages count as memory of the process. They are not kept open: loader workers fork,
and recordings come in hundreds of thousands.
"""

import operator
from dataclasses import dataclass, field
from pathlib import Path

from radio import samples
from radio.samples import Layout
from util.errors import UserError
from util.files import check_size, not_read


@dataclass(frozen=True)
class Recording:
    """One channel of one contiguous stretch of a recording."""

    path: Path  # the file that a user knows: .sigmf-meta, .sigmf, .npy or raw
    name: str  # the path's last part; if there are several, with " [member] [capture 0] [channel 1]"
    sample_rate_hz: float
    center_freq_hz: float | None  # None if the file does not say
    num_samples: int
    datatype: str  # SigMF's name, for example "ci16_le"
    sample_start: int  # in the data file, per channel, without `core:offset`
    layout: Layout = field(repr=False)
    # SigMF annotations that overlap the stretch, for all channels; None for npy and raw files. Their
    # `core:sample_start` counts from the stretch's first sample, and `core:sample_count` is never missing.
    annotations: tuple | None = field(default=None, repr=False, compare=False)  # dicts have no hash
    start_s: float = 0.0  # of the stretch, from the file's first sample
    member: str | None = None  # name of the metadata in an archive

    @property
    def is_real(self):
        """Whether the file holds real samples: the lower half of their spectrum mirrors the upper one."""
        return self.datatype.startswith("r")

    @property
    def duration_s(self):
        return self.num_samples / self.sample_rate_hz

    @property
    def _end_byte(self):
        return self.layout.byte_offset + self.layout.plane_bytes + self.num_samples * self.layout.frame_bytes

    def read(self, start, count):
        """Samples `start` to `start + count` of the stretch: complex64 [count].

        Integers are scaled to [-1, 1); unsigned integers lose half of their range first.
        Real recordings have an imaginary part of zero.

        Raises:
            ValueError: the range is outside of the stretch.
            UserError: a sample is not finite in float32, or the data file was deleted or truncated.
        """
        return self._read(self.layout.read, start, count)

    def read_stored(self, start, count):
        """`read`, but integers of up to 16 bits stay as stored: [count, 2] of `layout.stored_dtype`."""
        return self._read(self.layout.read_stored, start, count)

    def _read(self, read, start, count):
        start = self.checked_start(start, count)
        try:
            values = read(start, operator.index(count))
        except OSError as error:
            raise self.not_read(error) from error
        if len(values) != count:
            raise self.cut(start, count, len(values))
        self.check_finite(values, start)
        return values

    def checked_start(self, start, count):
        """`start` as an int: numpy's int32 would overflow as a byte offset. Raises ValueError, see `read`."""
        start, count = operator.index(start), operator.index(count)
        if start < 0 or count < 0 or start + count > self.num_samples:
            raise ValueError(f"{self.name}: {start=} {count=} is outside of the {self.num_samples} samples")
        return start

    def not_read(self, error):
        """The UserError for an OSError of the data file."""
        file = self.layout.data_file
        return UserError(f"{file}: expected {self._end_byte} bytes or more; found {not_read(file, error)}")

    def cut(self, start, count, found):
        """The UserError for a data file that holds only `found` of `count` samples."""
        check_size(self.layout.data_file, self._end_byte)
        return UserError(f"{self.layout.data_file}: expected {count} samples from {start}; found {found}")

    def check_finite(self, values, start):
        """Refuse samples that are not finite: complex64 or integers, read from sample `start` on."""
        if values.dtype.kind == "c":
            name = self.path.with_name(self.name)
            samples.check_finite(values, self.layout.dtype, name, self.sample_start + start)
