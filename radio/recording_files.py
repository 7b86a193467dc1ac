"""Open one file of IQ, SigMF, WAV, npy or raw: metadata and headers only.

Sections named here are those of the SigMF specification, version 1.2.
"""

import math
import os
import posixpath
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from radio import file_names, sigmf_input, wav_input
from radio.recording import Recording
from radio.samples import DATATYPES, Layout, component_of, full_datatype
from radio.sigmf_input import DATA_SUFFIX, MOST_META_BYTES, short
from util.errors import UserError
from util.files import file_size

RAW_DATATYPES = {".cf32": "cf32_le", ".cs16": "ci16_le", ".cs8": "ci8", ".cu8": "cu8", ".cu16": "cu16_le"}
RAW_DATATYPES |= dict.fromkeys((".cfile", ".fc32", ".c64"), "cf32_le") | {".cf64": "cf64_le", ".ci8": "ci8"}
RAW_DATATYPES |= dict.fromkeys((".sc16", ".ci16"), "ci16_le") | dict.fromkeys((".cs32", ".ci32"), "ci32_le")
RAW_DATATYPES |= dict.fromkeys((".dat", ".bin", ".iq"))  # None: the suffix does not say
META_SUFFIX, ARCHIVE_SUFFIX, NPY_SUFFIX, WAV_SUFFIX = ".sigmf-meta", ".sigmf", ".npy", ".wav"
COMPRESSED_SUFFIXES = (".sigmf.gz", ".sigmf.xz", ".sigmf.zip")
SIGMF_SUFFIXES = (META_SUFFIX, ARCHIVE_SUFFIX)
SAMPLE_SUFFIXES = (META_SUFFIX, DATA_SUFFIX, ARCHIVE_SUFFIX, *COMPRESSED_SUFFIXES, NPY_SUFFIX, WAV_SUFFIX)
SAMPLE_SUFFIXES += tuple(RAW_DATATYPES)
KNOWN = " ".join(SAMPLE_SUFFIXES)
SWAPPED = "radio_mae:swap_iq"  # in the global object: each Q lies before its I


def is_recording_file(path):
    """Whether `open_recording` reads such a file: by its suffix, for .npy and .wav also by its header.

    A file with an unreadable header counts as a recording, so that opening it reports the damage.
    """
    name = os.fspath(path).lower()
    if name.endswith(WAV_SUFFIX):
        return wav_input.is_iq(path)
    if not name.endswith(NPY_SUFFIX):
        return name.endswith(SAMPLE_SUFFIXES)
    try:
        shape, _, dtype, _ = _npy_header(path)
    except (OSError, UserError):
        return True
    return _npy_datatype(shape, dtype) is not None


@dataclass(frozen=True)
class Given:
    """What the user says of recordings, and `note`, called with a fault that does not keep one from being read."""

    sample_rate_hz: float | None
    datatype: str | None
    swap_iq: bool
    note: object


def open_file(path, given):
    """The `Recording`s of a file, as `radio.recordings.open_recording` gives them."""
    name = os.fspath(path).lower()
    rate, datatype = given.sample_rate_hz, given.datatype
    rate = None if rate is None else sigmf_input.checked_rate(path, rate)
    datatype = None if datatype is None else full_datatype(path, datatype)
    is_raw = rate is not None and datatype is not None  # whatever its suffix
    given = replace(given, sample_rate_hz=rate, datatype=datatype)
    try:
        if path.is_dir():
            raise UserError(f"{path}: expected a recording, found a folder")
        size_bytes = file_size(path)
        if name.endswith(META_SUFFIX) or (
            name.endswith(DATA_SUFFIX) and not (is_raw and not Path(meta_of(str(path))).exists())
        ):
            return _open_sigmf(path, given)
        if name.endswith(COMPRESSED_SUFFIXES):  # reading a sample would unpack all before it
            raise UserError(f"{path}: expected an uncompressed archive, found a compressed one; unpack it")
        if name.endswith(ARCHIVE_SUFFIX):
            return _open_archive(path, given)
        if name.endswith(NPY_SUFFIX):
            return _open_npy(path, size_bytes, given)
        if name.endswith(WAV_SUFFIX):
            return _open_wav(path, size_bytes, given)
        if is_raw or path.suffix.lower() in RAW_DATATYPES:
            metadata = sigmf_input.of_samples(datatype or RAW_DATATYPES[path.suffix.lower()])
            return _with_suggestion(path, metadata, (path, 0, size_bytes), given)
    except FileNotFoundError as error:
        raise UserError(f"{path}: expected a recording, found no such file") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    raw = "other files are raw IQ with --sample_rate and --datatype"
    hint = file_names.suggestion(path.name)
    raise UserError(
        f"{path}: expected a recording ({KNOWN}), found the suffix {path.suffix!r}; {raw}{hint and f'; {hint}'}"
    )


def _with_suggestion(path, metadata, data, given):
    """`_recordings`; an error about a missing rate or datatype says what the file's name suggests."""
    try:
        return _recordings(path, metadata, data, given)
    except UserError as error:
        is_missing = given.sample_rate_hz is None or metadata["global"]["core:datatype"] is None
        if is_missing and (hint := file_names.suggestion(path.name)):
            raise UserError(f"{error}; {hint}") from error
        raise


def meta_of(file):
    """The .sigmf-meta beside a .sigmf-data file; any other file itself."""
    return file[: -len(DATA_SUFFIX)] + META_SUFFIX if file.lower().endswith(DATA_SUFFIX) else file


def _recordings(path, metadata, data, given, member=None, suffix=""):
    """The `Recording`s in `data`, (file, first byte, bytes); their names are the path's and `suffix`."""
    data_file, byte_offset, num_bytes = data
    about = sigmf_input.describe(_owner(path, member), metadata, num_bytes, given.sample_rate_hz, given.note)
    component = component_of(about.datatype)
    swap_iq = about.datatype.startswith("c") and (given.swap_iq or metadata["global"].get(SWAPPED) is True)
    has_annotations = path.name.lower().endswith(SIGMF_SUFFIXES)
    found = []
    for first, stop, start_s, annotations in about.stretches:
        name = path.name + suffix
        if len(about.stretches) > 1:
            name += " [before the captures]" if first.number is None else f" [capture {first.number}]"
        start_byte = byte_offset + first.header_bytes + first.start * about.frame_bytes
        for channel in range(about.channels):
            layout = Layout(data_file, start_byte, *component, about.channels, channel, swap_iq=swap_iq)
            found.append(
                Recording(
                    path,
                    f"{name} [channel {channel}]" if about.channels > 1 else name,
                    first.sample_rate_hz,
                    first.center_freq_hz,
                    stop - first.start,
                    about.datatype,
                    first.start,
                    layout,
                    annotations if has_annotations else None,
                    start_s,
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
    file_size(path)
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


def _open_npy(path, size_bytes, given):
    shape, fortran_order, dtype, byte_offset = _npy_header(path)
    datatype = _npy_datatype(shape, dtype)
    if datatype is None:
        expected = "IQ as complex64/128 [N], or float32/64 or (u)int8/16/32 [2, N] or [N, 2]"
        pickled = ": Python objects, which are not loaded" if dtype.hasobject else ""
        raise UserError(f"{path}: expected {expected}, found {dtype} {list(shape)}{pickled}")
    num_bytes, found_bytes = math.prod(shape) * dtype.itemsize, size_bytes - byte_offset
    if found_bytes < num_bytes:
        raise UserError(f"{path}: truncated: expected {num_bytes} bytes of samples, found {found_bytes}")
    found = _with_suggestion(path, sigmf_input.of_samples(datatype), (path, byte_offset, num_bytes), given)
    if dtype.kind != "c" and (shape[0] == 2) != fortran_order:  # all I lie before all Q
        layout = replace(found[0].layout, components=1, plane_bytes=num_bytes // 2)
        found = [replace(found[0], layout=layout)]
    return found


# WAV


def _open_wav(path, size_bytes, given):
    wav = wav_input.read_header(path, size_bytes)
    if wav.is_cut:
        given.note("the WAV header names more samples than there are; read to the end of the file")
    metadata = sigmf_input.of_samples(wav.datatype)
    metadata["global"] |= {"core:sample_rate": wav.sample_rate_hz, "core:num_channels": wav.channels}
    metadata["captures"] = [{"core:sample_start": 0, "core:frequency": wav.center_freq_hz}]
    return _recordings(path, metadata, (path, wav.byte_offset, wav.num_bytes), given)


# SigMF


def _open_sigmf(path, given):
    meta = Path(meta_of(str(path)))
    try:
        if file_size(meta) > MOST_META_BYTES:
            raise UserError(f"{meta}: expected metadata of at most {MOST_META_BYTES} bytes, found more")
    except FileNotFoundError as error:
        raise UserError(f"{path}: expected its metadata beside it, found no {meta.name}") from error
    metadata = sigmf_input.parse(str(meta), meta.read_bytes(), given.note)

    def data_beside(name):
        file = meta.parent / name
        try:
            return file, 0, file_size(file)
        except FileNotFoundError:
            return None

    data = sigmf_input.find_data(str(meta), metadata, meta.name[: -len(META_SUFFIX)], data_beside)
    return _recordings(meta, metadata, data, given)


def read_archive(path):
    """({member: `TarInfo`} of plain files, {member: text} of the visible metadata) of a SigMF archive."""
    members = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for one in tar:
                if one.size < 0:  # tarfile would go back, for ever
                    raise ValueError(f"a member of {one.size} bytes")
                if one.isfile() and not one.issparse():
                    members[posixpath.normpath(one.name)] = one
            visible = [name for name in sorted(members) if not posixpath.basename(name).startswith(".")]
            metas = [name for name in visible if name.endswith(META_SUFFIX)]
            if large := [name for name in metas if members[name].size > MOST_META_BYTES]:
                expected = f"expected metadata of at most {MOST_META_BYTES} bytes"
                raise UserError(f"{path}: {large[0]}: {expected}, found {members[large[0]].size}")
            return members, {name: tar.extractfile(members[name]).read() for name in metas}
    except (UserError, OSError):
        raise
    except Exception as error:  # damaged archives raise errors of all kinds
        expected = "expected a whole, uncompressed tar archive"
        raise UserError(f"{path}: {expected}, found none ({short(error)})") from error


def _open_archive(path, given):
    members, texts = read_archive(path)
    if not texts:
        raise UserError(f"{path}: expected a {META_SUFFIX} in the archive, found {len(members)} other files")
    found = []
    for member, text in texts.items():
        folder, stem = posixpath.split(member.removesuffix(META_SUFFIX))
        metadata = sigmf_input.parse(_owner(path, member), text, given.note)

        def data_in_archive(name, folder=folder):
            one = members.get(posixpath.join(folder, name))
            return one and (path, one.offset_data, one.size)

        data = sigmf_input.find_data(_owner(path, member), metadata, stem, data_in_archive)
        suffix = f" [{stem}]" if len(texts) > 1 else ""
        found += _recordings(path, metadata, data, given, member, suffix)
    return found
