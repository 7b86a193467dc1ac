"""Open an IQ recording, SigMF, npy or raw, and read windows of it as complex64.

Opening reads metadata and headers only. Files are not mapped: mapped pages count as memory of the process.
Files are not kept open: loader workers fork, and recordings come in hundreds of thousands.
Sections named here are those of the SigMF specification, version 1.2.
"""

import functools
import math
import operator
import os
import posixpath
import stat
import tarfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from radio import samples, sigmf_input
from radio.samples import DATATYPES, Layout, component_of, full_datatype
from radio.sigmf_input import DATA_SUFFIX, short
from util.errors import UserError
from util.files import check_size, not_read, walk

RAW_DATATYPES = {".cf32": "cf32_le", ".cs16": "ci16_le", ".cs8": "ci8", ".cu8": "cu8"}
RAW_DATATYPES |= dict.fromkeys((".dat", ".bin", ".iq"))  # None: the suffix does not say
META_SUFFIX, ARCHIVE_SUFFIX, NPY_SUFFIX = ".sigmf-meta", ".sigmf", ".npy"
COMPRESSED_SUFFIXES = (".sigmf.gz", ".sigmf.xz", ".sigmf.zip")
_SIGMF_SUFFIXES = (META_SUFFIX, ARCHIVE_SUFFIX)
SAMPLE_SUFFIXES = (META_SUFFIX, DATA_SUFFIX, ARCHIVE_SUFFIX, *COMPRESSED_SUFFIXES, NPY_SUFFIX, *RAW_DATATYPES)
_KNOWN = " ".join(SAMPLE_SUFFIXES)


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


def is_recording_file(path):
    """Whether `open_recording` reads such a file: by its suffix, for .npy also by its header.

    An .npy file with an unreadable header counts as a recording, so that opening it reports the damage.
    """
    name = os.fspath(path).lower()
    if not name.endswith(NPY_SUFFIX):
        return name.endswith(SAMPLE_SUFFIXES)
    try:
        shape, _, dtype, _ = _npy_header(path)
    except (OSError, UserError):
        return True
    return _npy_datatype(shape, dtype) is not None


def open_recording(path, sample_rate_hz=None, datatype=None):
    """The `Recording`s of one file: a list of all stretches and channels.

    A new stretch begins where captures change frequency, skip samples (`core:global_index`) or have a header
    (`core:header_bytes`). Samples before the first capture are a stretch of unknown frequency.

    Args:
        path: .sigmf-data stands for the .sigmf-meta beside it. An .npy array [2, 2] has rows of I and Q.
        sample_rate_hz: for .npy and raw files, and for SigMF metadata without `core:sample_rate`.
        datatype: for raw files; overrides the suffix. A SigMF name, `ci16` for `ci16_le`, or `cs16`.

    Raises:
        UserError: the file is missing, damaged, or does not say what it holds.
    """
    path, name = Path(path), os.fspath(path).lower()
    rate = None if sample_rate_hz is None else sigmf_input.checked_rate(path, sample_rate_hz)
    datatype = None if datatype is None else full_datatype(path, datatype)
    try:
        about = path.stat()
        if stat.S_ISDIR(about.st_mode):
            raise UserError(f"{path}: expected a recording, found a folder")
        if name.endswith((META_SUFFIX, DATA_SUFFIX)):
            return _open_sigmf(path, rate)
        if name.endswith(COMPRESSED_SUFFIXES):  # reading a sample would unpack all before it
            raise UserError(f"{path}: expected an uncompressed archive, found a compressed one; unpack it")
        if name.endswith(ARCHIVE_SUFFIX):
            return _open_archive(path, rate)
        if name.endswith(NPY_SUFFIX):
            return _open_npy(path, about.st_size, rate)
        if path.suffix.lower() in RAW_DATATYPES:
            metadata = sigmf_input.of_samples(datatype or RAW_DATATYPES[path.suffix.lower()])
            return _recordings(path, metadata, (path, 0, about.st_size), rate)
    except FileNotFoundError as error:
        raise UserError(f"{path}: expected a recording, found no such file") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    raise UserError(f"{path}: expected a recording ({_KNOWN}), found the suffix {path.suffix!r}")


def find_recordings(paths, sample_rate_hz=None, datatype=None):
    """All recordings of `paths`, files and folders, in the order given; a folder's files are sorted by path.

    A search includes subfolders. It skips hidden names, links to folders, and .npy files that are not IQ.
    A file reached twice is opened once, and so is a data file that `core:dataset` names.
    Other arguments and errors: see `open_recording`.
    """
    real = functools.cache(os.path.realpath)  # one call a folder, not one a file

    def place(file):
        # Links to files are not followed: two recordings of a content store may share one file of metadata.
        folder, separator, name = str(file).rpartition(os.sep)
        return f"{real(folder or separator or os.curdir)}{os.sep}{name}"

    def recordings_at(places):
        return {there: open_recording(files[there], sample_rate_hz, datatype) for there in places}

    files = {}  # real place of a file (of the metadata for a .sigmf-data) -> path as given
    for path in [paths] if isinstance(paths, str | os.PathLike) else paths:
        path = os.fspath(path)
        for file in _folder_files(path) if os.path.isdir(path) else [path]:
            files.setdefault(place(meta_of(file)), file)
    found = recordings_at([there for there in files if there.lower().endswith(_SIGMF_SUFFIXES)])
    described = {place(one.layout.data_file) for several in found.values() for one in several}
    found |= recordings_at([there for there in files if there not in found and there not in described])
    return [one for there in files for one in found.get(there, [])]


def by_path(files):
    """Files of recordings, sorted as `pathlib` sorts; a .sigmf-data beside its metadata is left out."""
    known = set(files)
    ordered = sorted(files, key=lambda file: file.split(os.sep))
    return list(dict.fromkeys(meta if (meta := meta_of(file)) in known else file for file in ordered))


def _folder_files(folder):
    def refuse(error):
        raise UserError(f"{folder}: cannot be searched ({error})") from error

    found = by_path([path for path in walk(folder, refuse)[1] if is_recording_file(path)])
    if not found:
        raise UserError(f"{folder}: expected recordings ({_KNOWN}), found none in this folder")
    return found


def meta_of(file):
    """The .sigmf-meta beside a .sigmf-data file; any other file itself."""
    return file[: -len(DATA_SUFFIX)] + META_SUFFIX if file.lower().endswith(DATA_SUFFIX) else file


def _recordings(path, metadata, data, rate, member=None, suffix=""):
    """The `Recording`s in `data`, (file, first byte, bytes); their names are the path's and `suffix`."""
    data_file, byte_offset, num_bytes = data
    about = sigmf_input.describe(_owner(path, member), metadata, num_bytes, rate)
    component = component_of(about.datatype)
    has_annotations = path.name.lower().endswith(_SIGMF_SUFFIXES)
    found = []
    for first, stop, annotations in about.stretches:
        name = path.name + suffix
        if len(about.stretches) > 1:
            name += " [before the captures]" if first.number is None else f" [capture {first.number}]"
        start_byte = byte_offset + first.header_bytes + first.start * about.frame_bytes
        for channel in range(about.channels):
            found.append(
                Recording(
                    path,
                    f"{name} [channel {channel}]" if about.channels > 1 else name,
                    about.sample_rate_hz,
                    first.center_freq_hz,
                    stop - first.start,
                    about.datatype,
                    first.start,
                    Layout(data_file, start_byte, *component, about.channels, channel),
                    annotations if has_annotations else None,
                    member,
                )
            )
    return found


def _owner(path, member):
    """What errors call the metadata."""
    return f"{path}: {member}" if member else str(path)


# npy


def _npy_header(path):
    """Shape, whether in Fortran order, dtype, and the byte where the samples begin."""
    with open(path, "rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            # Version 3 differs from 2 only in the encoding of field names, and IQ has no fields.
            one, two = np.lib.format.read_array_header_1_0, np.lib.format.read_array_header_2_0
            return *(one if version == (1, 0) else two)(file), file.tell()
        except Exception as error:  # numpy evaluates the header, and documents ValueError only
            found = f"found an unreadable header ({short(error)})"
            raise UserError(f"{path}: expected an npy file, {found}") from error


def _npy_datatype(shape, dtype):
    """SigMF's name of an array's I and Q; None if it is not IQ or has no name (float16, int64, objects)."""
    kind, bits = ("f", 4 * dtype.itemsize) if dtype.kind == "c" else (dtype.kind, 8 * dtype.itemsize)
    is_iq = len(shape) == 1 if dtype.kind == "c" else len(shape) == 2 and 2 in shape
    name = f"c{kind}{bits}"
    return name + {"<": "_le", ">": "_be"}.get(dtype.str[0], "") if is_iq and name in DATATYPES else None


def _open_npy(path, size_bytes, rate):
    shape, fortran_order, dtype, byte_offset = _npy_header(path)
    datatype = _npy_datatype(shape, dtype)
    if datatype is None:
        expected = "IQ as complex64/128 [N], or float32/64 or (u)int8/16/32 [2, N] or [N, 2]"
        pickled = ": Python objects, which are not loaded" if dtype.hasobject else ""
        raise UserError(f"{path}: expected {expected}, found {dtype} {list(shape)}{pickled}")
    num_bytes, found_bytes = math.prod(shape) * dtype.itemsize, size_bytes - byte_offset
    if found_bytes < num_bytes:
        raise UserError(f"{path}: truncated: expected {num_bytes} bytes of samples, found {found_bytes}")
    found = _recordings(path, sigmf_input.of_samples(datatype), (path, byte_offset, num_bytes), rate)
    if dtype.kind != "c" and (shape[0] == 2) != fortran_order:  # all I lie before all Q
        layout = replace(found[0].layout, components=1, plane_bytes=num_bytes // 2)
        found = [replace(found[0], layout=layout)]
    return found


# SigMF


def _open_sigmf(path, rate):
    meta = Path(meta_of(str(path)))
    if not meta.is_file():
        raise UserError(f"{path}: expected its metadata beside it, found no {meta.name}")
    metadata = sigmf_input.parse(str(meta), meta.read_bytes())

    def data_beside(name):
        file = meta.parent / name
        return (file, 0, file.stat().st_size) if file.is_file() else None

    data = sigmf_input.find_data(str(meta), metadata, meta.name[: -len(META_SUFFIX)], data_beside)
    return _recordings(meta, metadata, data, rate)


def _open_archive(path, rate):
    try:
        with tarfile.open(path, "r:") as tar:
            files = [one for one in tar if one.isfile() and not one.issparse()]
            members = {posixpath.normpath(one.name): one for one in files}
            visible = [name for name in sorted(members) if not posixpath.basename(name).startswith(".")]
            metas = [name for name in visible if name.endswith(META_SUFFIX)]
            texts = {name: tar.extractfile(members[name]).read() for name in metas}
    except (tarfile.TarError, ValueError, EOFError) as error:
        expected = "expected a whole, uncompressed tar archive"
        raise UserError(f"{path}: {expected}, found none ({short(error)})") from error
    if not texts:
        raise UserError(f"{path}: expected a {META_SUFFIX} in the archive, found {len(members)} other files")
    found = []
    for member, text in texts.items():
        folder, stem = posixpath.split(member.removesuffix(META_SUFFIX))
        metadata = sigmf_input.parse(_owner(path, member), text)

        def data_in_archive(name, folder=folder):
            one = members.get(posixpath.join(folder, name))
            return one and (path, one.offset_data, one.size)

        data = sigmf_input.find_data(_owner(path, member), metadata, stem, data_in_archive)
        found += _recordings(path, metadata, data, rate, member, f" [{stem}]" if len(texts) > 1 else "")
    return found
