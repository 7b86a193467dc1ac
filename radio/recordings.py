"""Open any IQ recording, SigMF, npy or raw, and read windows of it as complex64.

Opening reads metadata and headers only, reading the window asked for only. Files are neither mapped (mapped pages count
as memory of the process) nor kept open (loader workers fork, and recordings come in thousands).
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
from typing import NamedTuple

import numpy as np

from radio import sigmf_input
from radio.samples import DATATYPES, Layout, component_of, full_datatype, not_finite
from radio.sigmf_input import DATA_SUFFIX, short
from util.errors import UserError
from util.files import check_size, not_read, walk

RAW_DATATYPES = {".cf32": "cf32_le", ".cs16": "ci16_le", ".cs8": "ci8", ".cu8": "cu8",
                 ".dat": None, ".bin": None, ".iq": None}  # None: the suffix does not say
META_SUFFIX, ARCHIVE_SUFFIX, NPY_SUFFIX = ".sigmf-meta", ".sigmf", ".npy"
COMPRESSED_SUFFIXES = (".sigmf.gz", ".sigmf.xz", ".sigmf.zip")
_SIGMF_SUFFIXES = (META_SUFFIX, ARCHIVE_SUFFIX)
SAMPLE_SUFFIXES = (META_SUFFIX, DATA_SUFFIX, ARCHIVE_SUFFIX, *COMPRESSED_SUFFIXES, NPY_SUFFIX, *RAW_DATATYPES)


@dataclass(frozen=True)
class Recording:
    """One channel of one contiguous stretch of a recording.

    path: the file a user knows (.sigmf-meta, .sigmf, .npy or raw). name: the path's last part, and, where the file
    holds several, " [member]" of the archive, " [capture 2]" and " [channel 1]", counted from 0 (the capture is the
    stretch's first entry in the metadata's `captures`). center_freq_hz: None where the file does not say.
    datatype: SigMF's name, e.g. "ci16_le". sample_start: index of the first sample in the file, per channel, counted
    from the file's beginning, that is without `core:offset` and header bytes. annotations: those that overlap the
    stretch, as SigMF has them, but with `core:sample_start` counted from the stretch's first sample (below 0 for what
    began before), and with the `core:sample_count` up to the capture's end where the file leaves it out; all channels
    share them. None where the format has none: npy and raw. layout: where its samples lie. member: of an archive, the
    metadata's name in it.
    """

    path: Path
    name: str
    sample_rate_hz: float
    center_freq_hz: float | None
    num_samples: int
    datatype: str
    sample_start: int
    layout: Layout = field(repr=False)
    annotations: tuple[dict, ...] | None = field(default=None, repr=False, compare=False)  # dicts have no hash
    member: str | None = None

    @property
    def duration_s(self) -> float:
        return self.num_samples / self.sample_rate_hz

    @property
    def _end_byte(self) -> int:
        return self.layout.byte_offset + self.layout.plane_bytes + self.num_samples * self.layout.frame_bytes

    def read(self, start: int, count: int) -> np.ndarray:
        """Samples `start` to `start + count` of the stretch: complex64 [count].

        Integers are scaled to [-1, 1), unsigned ones after half their range is taken off; real recordings have an
        imaginary part of zero. A range outside the stretch is a ValueError; a sample that is not finite in float32, or
        a data file that is gone or has shrunk since, is a UserError.
        """
        return self._read(self.layout.read, start, count)

    def read_stored(self, start: int, count: int) -> np.ndarray:
        """`read`, but integers of up to 16 bits are as they are stored: I and Q [count, 2] of `layout.stored_dtype`."""
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
        """`start` as an int, for which numpy's int32 would overflow as a byte offset; see `read` for the error."""
        start, count = operator.index(start), operator.index(count)
        if start < 0 or count < 0 or start + count > self.num_samples:
            raise ValueError(f"{self.name}: {start=} {count=} is outside of the {self.num_samples} samples")
        return start

    def not_read(self, error):
        """What to raise for an OSError of the data file."""
        file = self.layout.data_file
        return UserError(f"{file}: expected {self._end_byte} bytes or more; found {not_read(file, error)}")

    def cut(self, start, count, found):
        """What to raise where the data file has only some of the samples."""
        check_size(self.layout.data_file, self._end_byte)
        return UserError(f"{self.layout.data_file}: expected {count} samples from {start}; found {found}")

    def check_finite(self, values, start):
        """See that samples `start` and after, complex64 or integers, are finite."""
        if values.dtype.kind == "c" and (bad := not_finite(values, self.layout.dtype)) is not None:
            raise UserError(f"{self.path.with_name(self.name)}: expected finite samples, found {values[bad]} (as float32) "
                            f"at sample {self.sample_start + start + bad}")  # fmt: skip


def is_recording_file(path) -> bool:
    """Whether `path` is of a kind that `open_recording` reads: by its suffix, and for .npy by its header.

    An .npy file whose header cannot be read counts as one, so that opening it says what is wrong.
    """
    name = os.fspath(path).lower()
    if not name.endswith(NPY_SUFFIX):
        return name.endswith(SAMPLE_SUFFIXES)
    try:
        shape, _, dtype, _ = _npy_header(Path(path))
    except (OSError, UserError):
        return True
    return _npy_datatype(shape, dtype) is not None


def open_recording(path, sample_rate_hz=None, datatype=None) -> list[Recording]:
    """The stretches × channels of one file (of a `.sigmf-data`: those of the `.sigmf-meta` beside it).

    sample_rate_hz is for .npy and raw files, and for SigMF metadata without `core:sample_rate`; it does not override
    what the metadata say. datatype, a SigMF name (`ci16` means `ci16_le`; `cs16` is understood too), is for raw
    files, where it goes before the suffix. An .npy of shape [2, 2] is read as [2, N], I row first. A new stretch begins
    where captures change frequency, skip samples (`core:global_index`) or have a header (`core:header_bytes`); samples
    before the first capture are one of unknown frequency. Whatever is wrong with the file is a UserError.
    """
    return opened(path, sample_rate_hz, datatype).recordings


class Opened(NamedTuple):
    """What `open_recording` found, and what that depends on besides the file itself."""

    recordings: list[Recording]
    data: tuple[str | None, int] = (None, 0)  # name and bytes of the data file beside SigMF metadata
    is_certain: bool = True  # not so where a file that is not there would have been taken first


def opened(path, sample_rate_hz=None, datatype=None) -> Opened:
    """See `open_recording`."""
    name = os.fspath(path).lower()
    rate = sample_rate_hz if sample_rate_hz is None else sigmf_input.checked_rate(str(path), sample_rate_hz)
    datatype = datatype if datatype is None else full_datatype(str(path), datatype)
    try:
        if name.endswith((META_SUFFIX, DATA_SUFFIX)):
            return _open_sigmf(os.fspath(path), rate)
        path = Path(path)
        size_bytes = _size_of_file(path)
        if name.endswith(COMPRESSED_SUFFIXES):  # no way to a sample but through all before it
            raise UserError(f"{path}: expected an uncompressed .sigmf archive, found a compressed one: unpack it first")
        if name.endswith(ARCHIVE_SUFFIX):
            return Opened(_open_archive(path, rate))
        if name.endswith(NPY_SUFFIX):
            return Opened(_open_npy(path, size_bytes, rate))
        if path.suffix.lower() in RAW_DATATYPES:
            metadata = sigmf_input.of_samples(datatype or RAW_DATATYPES[path.suffix.lower()])
            return Opened(_recordings(path, path.name, str(path), metadata, (path, 0, size_bytes), rate))
    except FileNotFoundError as error:
        raise UserError(f"{path}: expected a recording, found no such file") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    raise UserError(f"{path}: expected a recording ({' '.join(SAMPLE_SUFFIXES)}), found the suffix {path.suffix!r}")


def find_recordings(paths, sample_rate_hz=None, datatype=None) -> list[Recording]:
    """All recordings of `paths`, files and folders: in the order given, a folder's files sorted by path.

    Folders are searched with their subfolders (not through links to folders), without hidden names and without .npy
    files that are not IQ. A file reached twice is opened once, and a data file that metadata found here name in
    `core:dataset` is not taken for a raw recording. The other arguments: see `open_recording`.
    """
    real = functools.cache(os.path.realpath)  # folders hold many files

    def place(file):
        # Links to files are left alone: a content store may hold equal metadata of two recordings once.
        folder, separator, name = str(file).rpartition(os.sep)
        return f"{real(folder or separator or os.curdir)}{os.sep}{name}"

    def recordings_at(places):
        return {there: open_recording(files[there], sample_rate_hz, datatype) for there in places}

    files = {}  # where a file (for a .sigmf-data, its metadata) really lies -> path as given
    for path in [paths] if isinstance(paths, str | os.PathLike) else paths:
        path = os.fspath(path)
        for file in _folder_files(path) if os.path.isdir(path) else [path]:
            files.setdefault(place(meta_of(file)), file)
    found = recordings_at([there for there in files if there.lower().endswith(_SIGMF_SUFFIXES)])
    if others := [there for there in files if there not in found]:
        described = {place(one.layout.data_file) for several in found.values() for one in several}
        found |= recordings_at([there for there in others if there not in described])
    return [one for there in files for one in found.get(there, [])]


def by_path(files):
    """Files of recordings, sorted as `pathlib` sorts, folder by folder; without data whose metadata are among them."""
    known = set(files)
    ordered = sorted(files, key=lambda file: file.split(os.sep))
    return list(dict.fromkeys(meta if (meta := meta_of(file)) in known else file for file in ordered))


def _folder_files(folder: str) -> list[str]:
    def refuse(error):
        raise UserError(f"{folder}: cannot be searched ({error})") from error

    found = by_path([path for path in walk(folder, refuse)[1] if is_recording_file(path)])
    if not found:
        raise UserError(f"{folder}: expected recordings ({' '.join(SAMPLE_SUFFIXES)}), found none in this folder")
    return found


def meta_of(file: str) -> str:
    """The metadata of a SigMF file, or a file of another kind itself."""
    return file[: -len(DATA_SUFFIX)] + META_SUFFIX if file.lower().endswith(DATA_SUFFIX) else file


def path_of(file: str) -> Path:
    """`Path(file)`, made in half the time where folders hold many files."""
    folder, name = os.path.split(file)
    return _folder(folder) / name


_folder = functools.lru_cache(maxsize=1024)(Path)


def _size_of_file(path) -> int:
    about = os.stat(path)
    if stat.S_ISDIR(about.st_mode):
        raise UserError(f"{path}: expected a recording, found a folder")
    return about.st_size


def _recordings(path: Path, name: str, owner: str, metadata: dict, place: tuple[Path, int, int], rate, member=None):
    """The stretches × channels of a data file. `owner`: how errors call the metadata; `place`: file, offset, bytes."""
    data_file, byte_offset, num_bytes = place
    about = sigmf_input.describe(owner, metadata, num_bytes, rate)
    component = component_of(about.datatype)
    has_annotations = path.name.lower().endswith(_SIGMF_SUFFIXES)
    found = []
    for (first, stop), annotations in zip(about.stretches, about.annotations, strict=True):
        label = " [before the captures]" if first.number is None else f" [capture {first.number}]"
        label = label if len(about.stretches) > 1 else ""
        start_byte = byte_offset + first.header_bytes + first.start * about.frame_bytes
        for channel in range(about.channels):
            own = f"{name}{label} [channel {channel}]" if about.channels > 1 else name + label
            where = Layout(data_file, start_byte, *component, about.channels, channel)
            found.append(Recording(path, own, about.sample_rate_hz, first.center_freq_hz, stop - first.start, about.datatype,
                                   first.start, where, annotations if has_annotations else None, member))  # fmt: skip
    return found


# npy


def _npy_header(path: Path) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Shape, whether in Fortran order, dtype, and the byte where the samples begin."""
    with open(path, "rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            # Version 3 differs from 2 in the encoding of field names only, and IQ has no fields.
            parse = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            return *parse(file), file.tell()
        except Exception as error:  # numpy evaluates the header, and documents ValueError only
            raise UserError(f"{path}: expected an npy file, found an unreadable header ({short(error)})") from error


def _npy_datatype(shape: tuple[int, ...], dtype: np.dtype) -> str | None:
    """SigMF's name of the I and Q in an array, None where it is not IQ or has no name (float16, int64, objects)."""
    kind, bits = ("f", 4 * dtype.itemsize) if dtype.kind == "c" else (dtype.kind, 8 * dtype.itemsize)
    is_iq = len(shape) == 1 if dtype.kind == "c" else len(shape) == 2 and 2 in shape
    name = f"c{kind}{bits}"
    return name + {"<": "_le", ">": "_be"}.get(dtype.str[0], "") if is_iq and name in DATATYPES else None


def _open_npy(path: Path, size_bytes: int, rate: float | None) -> list[Recording]:
    shape, fortran_order, dtype, byte_offset = _npy_header(path)
    datatype = _npy_datatype(shape, dtype)
    if datatype is None:
        pickled = ": Python objects, which are not loaded" if dtype.hasobject else ""
        raise UserError(f"{path}: expected IQ as complex64/128 [N], or float32/64 or (u)int8/16/32 [2, N] or [N, 2], "
                        f"found {dtype} {list(shape)}{pickled}")
    num_bytes = math.prod(shape) * dtype.itemsize
    if size_bytes - byte_offset < num_bytes:
        raise UserError(f"{path}: truncated: expected {num_bytes} bytes of samples, found {size_bytes - byte_offset}")
    metadata = sigmf_input.of_samples(datatype)
    found = _recordings(path, path.name, str(path), metadata, (path, byte_offset, num_bytes), rate)
    if dtype.kind != "c" and (shape[0] == 2) != fortran_order:  # rows in C order or columns in Fortran order lie apart
        found = [replace(one, layout=replace(one.layout, components=1, plane_bytes=num_bytes // 2)) for one in found]
    return found


# SigMF


def _open_sigmf(path: str, rate: float | None) -> Opened:
    meta = path_of(meta_of(path))
    owner = str(meta)
    try:
        if not path.endswith(META_SUFFIX):
            _size_of_file(path)
        with open(owner, "rb", buffering=0) as file:
            text = file.read()
    except OSError:
        path = Path(path)
        _size_of_file(path)
        if not meta.is_file():
            raise UserError(f"{path}: expected its metadata beside it, found no {meta.name}") from None
        raise
    metadata = sigmf_input.parse(owner, text)
    names = sigmf_input.data_names(owner, metadata, meta.name[: -len(META_SUFFIX)])
    for name in names:
        file = os.path.join(os.path.dirname(owner), name)
        try:
            about = os.stat(file)
        except (OSError, ValueError):  # ValueError: no name of a file
            continue
        if stat.S_ISREG(about.st_mode):
            found = _recordings(meta, meta.name, owner, metadata, (path_of(file), 0, about.st_size), rate)
            return Opened(found, (name, about.st_size), name == names[0])
    raise sigmf_input.no_data(owner, metadata, names)


def _open_archive(path: Path, rate: float | None) -> list[Recording]:
    try:
        with tarfile.open(path, "r:") as tar:
            members = {posixpath.normpath(one.name): one for one in tar if one.isfile() and not one.issparse()}
            texts = {name: tar.extractfile(members[name]).read() for name in sorted(members)
                     if name.endswith(META_SUFFIX) and not posixpath.basename(name).startswith(".")}
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise UserError(f"{path}: expected a whole, uncompressed tar archive, found none ({short(error)})") from error
    if not texts:
        raise UserError(f"{path}: expected a {META_SUFFIX} in the archive, found {len(members)} other files")
    found = []
    for member_name, text in texts.items():
        owner, (folder, stem) = f"{path}: {member_name}", posixpath.split(member_name.removesuffix(META_SUFFIX))
        name = f"{path.name} [{stem}]" if len(texts) > 1 else path.name
        metadata = sigmf_input.parse(owner, text)
        names = sigmf_input.data_names(owner, metadata, stem)
        data = next((members[one] for one in (posixpath.join(folder, name) for name in names) if one in members), None)
        if data is None:
            raise sigmf_input.no_data(owner, metadata, names)
        found += _recordings(path, name, owner, metadata, (path, data.offset_data, data.size), rate, member_name)
    return found
