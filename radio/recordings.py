"""Open any IQ recording, SigMF, npy or raw, and read windows of it as complex64.

Opening reads metadata and headers only, reading the window asked for only. Files are neither mapped (mapped pages count
as memory of the process) nor kept open (loader workers fork, and recordings come in thousands).
Sections named here are those of the SigMF specification, version 1.2.
"""

import bisect
import itertools
import math
import numbers
import operator
import os
import posixpath
import tarfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from reprlib import repr as _brief
from typing import NamedTuple

import numpy as np
from sigmf import SigMFFile

from radio.samples import DATATYPES, Layout, component_of, full_datatype, not_finite
from util.errors import UserError
from util.files import check_size, not_read

RAW_DATATYPES = {".cf32": "cf32_le", ".cs16": "ci16_le", ".cs8": "ci8", ".cu8": "cu8",
                 ".dat": None, ".bin": None, ".iq": None}  # None: the suffix does not say
META_SUFFIX, DATA_SUFFIX, ARCHIVE_SUFFIX, NPY_SUFFIX = ".sigmf-meta", ".sigmf-data", ".sigmf", ".npy"
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
        start, count = operator.index(start), operator.index(count)  # numpy's int32 would overflow as a byte offset
        if start < 0 or count < 0 or start + count > self.num_samples:
            raise ValueError(f"{self.name}: {start=} {count=} is outside of the {self.num_samples} samples")
        file = self.layout.data_file
        try:
            iq = self.layout.read(start, count)  # complex64 [count]
        except OSError as error:
            raise UserError(f"{file}: expected {self._end_byte} bytes or more; found {not_read(file, error)}") from error
        if len(iq) != count:
            check_size(file, self._end_byte)
            raise UserError(f"{file}: expected {count} samples from {start}; found {len(iq)}")
        if (bad := not_finite(iq, self.layout.dtype)) is not None:
            raise UserError(f"{self.path.with_name(self.name)}: expected finite samples, found {iq[bad]} (as float32) at "
                            f"sample {self.sample_start + start + bad}")
        return iq


def is_recording_file(path) -> bool:
    """Whether `path` is of a kind that `open_recording` reads: by its suffix, and for .npy by its header.

    An .npy file whose header cannot be read counts as one, so that opening it says what is wrong.
    """
    if not str(path).lower().endswith(NPY_SUFFIX):
        return str(path).lower().endswith(SAMPLE_SUFFIXES)
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
    path, name = Path(path), Path(path).name.lower()
    rate = sample_rate_hz if sample_rate_hz is None else _rate(str(path), sample_rate_hz)
    datatype = datatype if datatype is None else full_datatype(str(path), datatype)
    try:
        size_bytes = path.stat().st_size
        if path.is_dir():
            raise UserError(f"{path}: expected a recording, found a folder")
        if name.endswith(COMPRESSED_SUFFIXES):  # no way to a sample but through all before it
            raise UserError(f"{path}: expected an uncompressed .sigmf archive, found a compressed one: unpack it first")
        if name.endswith((META_SUFFIX, DATA_SUFFIX)):
            return _open_sigmf(path, rate)
        if name.endswith(ARCHIVE_SUFFIX):
            return _open_archive(path, rate)
        if name.endswith(NPY_SUFFIX):
            return _open_npy(path, size_bytes, rate)
        if path.suffix.lower() in RAW_DATATYPES:
            info = {"core:datatype": datatype or RAW_DATATYPES[path.suffix.lower()]}
            return _recordings(path, path.name, str(path), SigMFFile(global_info=info), (path, 0, size_bytes), rate)
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
    files = {}  # where a file (for a .sigmf-data, its metadata) really lies -> path as given
    for path in [paths] if isinstance(paths, str | os.PathLike) else paths:
        for file in _folder_files(Path(path)) if os.path.isdir(path) else [Path(path)]:
            files.setdefault(_place(_meta_of(file)), file)
    opened = {place: open_recording(file, sample_rate_hz, datatype)
              for place, file in files.items() if place.lower().endswith(_SIGMF_SUFFIXES)}
    described = {_place(one.layout.data_file) for found in opened.values() for one in found}
    for place in [place for place in files if place not in opened and place not in described]:
        opened[place] = open_recording(files[place], sample_rate_hz, datatype)
    return [one for place in files for one in opened.get(place, [])]


def _place(path: Path) -> str:
    # Links to files are left alone: a content store may hold equal metadata of two recordings once.
    return os.path.join(os.path.realpath(path.parent), path.name)


def _folder_files(folder: Path) -> list[Path]:
    def refuse(error):
        raise UserError(f"{folder}: cannot be searched ({error})") from error

    found = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if not name.startswith(".")]
    found = sorted(path for path in found if is_recording_file(path))
    if not found:
        raise UserError(f"{folder}: expected recordings ({' '.join(SAMPLE_SUFFIXES)}), found none in this folder")
    return found


def _meta_of(path: Path) -> Path:
    return path.with_suffix(META_SUFFIX) if path.name.lower().endswith(DATA_SUFFIX) else path


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
            raise UserError(f"{path}: expected an npy file, found an unreadable header ({_short(error)})") from error


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
    metadata = SigMFFile(global_info={"core:datatype": datatype})
    found = _recordings(path, path.name, str(path), metadata, (path, byte_offset, num_bytes), rate)
    if dtype.kind != "c" and (shape[0] == 2) != fortran_order:  # rows in C order or columns in Fortran order lie apart
        found = [replace(one, layout=replace(one.layout, components=1, plane_bytes=num_bytes // 2)) for one in found]
    return found


# SigMF. The library parses metadata and datatypes. Samples and archives are read here: it maps the data file, counts the
# first header of a core:dataset twice, reads later headers as samples, ignores core:offset, and takes an archive's last
# metadata with its first data. Its schema is not asked: 10 ms a file, and an odd comment would close a recording.


class _Capture(NamedTuple):
    number: int | None  # place in `captures`; None: no capture describes these samples
    start: int  # first frame, counted from the beginning of the data file
    center_freq_hz: float | None
    skipped: int  # core:global_index less core:sample_start
    header_bytes: int  # of this and all earlier captures


def _open_sigmf(path: Path, rate: float | None) -> list[Recording]:
    def find(name):
        file = meta.parent / name
        return (file, 0, file.stat().st_size) if os.path.isfile(file) else None

    meta = _meta_of(path)
    if not meta.is_file():
        raise UserError(f"{path}: expected its metadata beside it, found no {meta.name}")
    metadata = _parse(str(meta), meta.read_bytes())
    return _recordings(meta, meta.name, str(meta), metadata, _find_data(str(meta), metadata, meta.stem, find), rate)


def _open_archive(path: Path, rate: float | None) -> list[Recording]:
    def find(name):
        member = members.get(posixpath.join(folder, name))
        return (path, member.offset_data, member.size) if member else None

    try:
        with tarfile.open(path, "r:") as tar:
            members = {posixpath.normpath(one.name): one for one in tar if one.isfile() and not one.issparse()}
            texts = {name: tar.extractfile(members[name]).read() for name in sorted(members)
                     if name.endswith(META_SUFFIX) and not posixpath.basename(name).startswith(".")}
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise UserError(f"{path}: expected a whole, uncompressed tar archive, found none ({_short(error)})") from error
    if not texts:
        raise UserError(f"{path}: expected a {META_SUFFIX} in the archive, found {len(members)} other files")
    found = []
    for member_name, text in texts.items():
        owner, (folder, stem) = f"{path}: {member_name}", posixpath.split(member_name.removesuffix(META_SUFFIX))
        name = f"{path.name} [{stem}]" if len(texts) > 1 else path.name
        metadata = _parse(owner, text)
        place = _find_data(owner, metadata, stem, find)
        found += [replace(one, member=member_name) for one in _recordings(path, name, owner, metadata, place, rate)]
    return found


def _parse(owner: str, text: bytes) -> SigMFFile:
    try:
        metadata = SigMFFile(metadata=text)
        lists = metadata.get_captures(), metadata.get_annotations()
    except Exception as error:  # JSON of any shape reaches the library, which documents no errors
        raise UserError(f"{owner}: expected SigMF metadata, JSON with a 'global' object ({_short(error)})") from error
    if not all(isinstance(one, list) and all(isinstance(entry, dict) for entry in one) for one in lists):
        raise UserError(f"{owner}: expected captures and annotations to be lists of objects, found {_brief(lists)}")
    return metadata


def _find_data(owner: str, metadata: SigMFFile, stem: str, find) -> tuple[Path, int, int]:
    """File, offset and bytes of the data, as `find` tells of a name; `core:dataset` goes before the .sigmf-data."""
    dataset = metadata.get_global_field("core:dataset")
    if dataset and (not isinstance(dataset, str) or posixpath.basename(dataset) != dataset):
        raise UserError(f"{owner}: expected core:dataset to be a file's name without folder, found {_brief(dataset)}")
    expected = [dataset, stem + DATA_SUFFIX] if dataset else [stem + DATA_SUFFIX]
    for name in expected:
        if place := find(name):
            return place
    only = "metadata only (core:metadata_only)" if metadata.get_global_field("core:metadata_only") else "no such file"
    raise UserError(f"{owner}: expected its data file {expected[0]} beside it, found {only}")


def _recordings(path: Path, name: str, owner: str, metadata: SigMFFile, place: tuple[Path, int, int], rate):
    """The stretches × channels of a data file. `owner`: how errors call the metadata; `place`: file, offset, bytes."""
    info = metadata.get_global_info()
    data_file, byte_offset, num_bytes = place
    datatype = full_datatype(owner, info.get("core:datatype"))
    rate = _rate(owner, rate if info.get("core:sample_rate") is None else info["core:sample_rate"])
    channels = _number(f"{owner}: core:num_channels", info.get("core:num_channels", 1), minimum=1)
    layout = Layout(data_file, byte_offset, *component_of(datatype), channels)
    captures = _captures(owner, metadata)
    num_bytes -= captures[-1].header_bytes + _number(f"{owner}: trailing bytes", info.get("core:trailing_bytes", 0))
    if num_bytes <= 0 or num_bytes % layout.frame_bytes:
        what = "truncated" if num_bytes > 0 else "empty"
        raise UserError(f"{owner}: {what}: expected whole samples of {layout.frame_bytes} bytes, found {num_bytes}")
    total = num_bytes // layout.frame_bytes
    _check_reach(owner, metadata, captures, total)
    stretches, found = _stretches(captures, total), []
    spans = _annotation_spans(metadata, captures, total) if path.name.lower().endswith(_SIGMF_SUFFIXES) else None
    noted = {stop: None if spans is None else _within(spans, first.start, stop) for first, stop in stretches}
    for (first, stop), channel in itertools.product(stretches, range(channels)):
        label = " [before the captures]" if first.number is None else f" [capture {first.number}]"
        label = (label if len(stretches) > 1 else "") + (f" [channel {channel}]" if channels > 1 else "")
        start_byte = byte_offset + first.header_bytes + first.start * layout.frame_bytes
        where = replace(layout, byte_offset=start_byte, channel=channel)
        count = stop - first.start
        found.append(Recording(path, name + label, rate, first.center_freq_hz, count, datatype, first.start, where,
                               noted[stop]))
    return found


def _captures(owner: str, metadata: SigMFFile) -> list[_Capture]:
    """Section "Captures Array"; the first one stands for samples before the captures, and says nothing."""
    found = [_Capture(None, 0, None, 0, 0)]
    # Section "Global Object": indices are absolute, and core:offset is that of the file's first sample.
    offset = _number(f"{owner}: core:offset", metadata.get_global_field("core:offset", 0))
    for number, one in enumerate(metadata.get_captures()):
        where = f"{owner}: capture {number}"
        index = _number(f"{where}: core:sample_start", one.get("core:sample_start"), minimum=found[-1].start + offset)
        skipped = _number(f"{where}: core:global_index", one.get("core:global_index", index)) - index
        header_bytes = found[-1].header_bytes + _number(f"{where}: core:header_bytes", one.get("core:header_bytes", 0))
        center = one.get("core:frequency")
        center = center if center is None else _number(f"{where}: core:frequency", center, float, minimum=-1e12)
        found.append(_Capture(number, index - offset, center, skipped, header_bytes))
    return found


def _check_reach(owner: str, metadata: SigMFFile, captures: list[_Capture], total: int) -> None:
    ends = {f"{owner}: capture {one.number}": one.start for one in captures}
    for number, one in enumerate(metadata.get_annotations()):
        where = f"{owner}: annotation {number}"
        start = _number(f"{where}: core:sample_start", one.get("core:sample_start"))
        count = _number(f"{where}: core:sample_count", one.get("core:sample_count", 0))
        ends[where] = start + count - metadata.get_global_field("core:offset", 0)
    for where, end in ends.items():
        if end > total:
            raise UserError(f"{where}: less data than the metadata say: expected {end} samples, found {total}")


def _annotation_spans(metadata: SigMFFile, captures: list[_Capture], total: int) -> list[tuple[int, int, dict]]:
    """(first sample, end, annotation), in samples from the beginning of the data file."""
    borders = [*(one.start for one in captures), total]
    spans = []
    for one in metadata.get_annotations():
        start = int(one["core:sample_start"]) - metadata.get_global_field("core:offset", 0)
        capture_end = borders[min(bisect.bisect_right(borders, start), len(borders) - 1)]
        spans.append((start, start + int(one["core:sample_count"]) if "core:sample_count" in one else capture_end, one))
    return spans


def _within(spans: list[tuple[int, int, dict]], first: int, stop: int) -> tuple[dict, ...]:
    """The annotations that overlap samples `first` to `stop`, their start counted from `first`."""
    return tuple({**one, "core:sample_start": start - first, "core:sample_count": end - start}
                 for start, end, one in spans if max(start, first) < min(end, stop))


def _stretches(captures: list[_Capture], total: int) -> list[tuple[_Capture, int]]:
    """First capture and end of each run of captures that hold samples, agree and follow one another."""
    stops = [*(one.start for one in captures[1:]), total]
    held = [(one, stop) for one, stop in zip(captures, stops, strict=True) if one.start < stop]
    runs = [list(run) for _, run in itertools.groupby(held, key=lambda pair: pair[0][2:])]
    return [(run[0][0], run[-1][1]) for run in runs]


# Values that a user or a file gives


def _rate(owner: str, value) -> float:
    return _number(f"{owner}: core:sample_rate or --sample_rate (Hz)", value, float, minimum=1e-3)


def _number(what: str, value, kind=int, minimum=0):
    # A float such as 44.0 is a whole number to JSON; true and false are no numbers.
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool) and minimum <= value < 2**63
    if not is_number or value != kind(value):
        noun = "whole number" if kind is int else "number"
        raise UserError(f"{what}: expected a {noun} of at least {minimum}, found {_brief(value)}")
    return kind(value)


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
