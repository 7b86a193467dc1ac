"""Open the IQ recordings of files and folders, each once."""

import functools
import os
from collections import Counter
from pathlib import Path

from radio.recording import Recording
from radio.recording_files import (
    KNOWN,
    META_SUFFIX,
    SAMPLE_SUFFIXES,
    SIGMF_SUFFIXES,
    Given,
    is_recording_file,
    meta_of,
    open_file,
)
from radio.samples import DATATYPES
from radio.sigmf_input import DATA_SUFFIX
from util.errors import UserError, few, warn
from util.files import walk

__all__ = ["DATATYPES", "META_SUFFIX", "SAMPLE_SUFFIXES", "Recording", "is_recording_file"]
_SHOWN = 4  # files in a warning


def open_recording(path, sample_rate_hz=None, datatype=None, swap_iq=False):
    """The `Recording`s of one file: a list of all stretches and channels.

    A new stretch begins where captures change frequency or sample rate, skip samples (`core:global_index`) or
    have a header (`core:header_bytes`). Samples before the first capture are a stretch of unknown frequency.
    Faults that do not keep the file from being read are one warning.

    Args:
        path: .sigmf-data stands for the .sigmf-meta beside it. An .npy array [2, 2] has rows of I and Q.
        sample_rate_hz: for .npy and raw files, and for SigMF metadata without `core:sample_rate`.
        datatype: for raw files; overrides the suffix. A SigMF name, `ci16` for `ci16_le`, or `cs16`. With
            `sample_rate_hz`, files of other suffixes are raw too.
        swap_iq: each Q lies before its I.

    Raises:
        UserError: the file is missing, damaged, or does not say what it holds.
    """
    faults = []
    found = open_file(Path(path), Given(sample_rate_hz, datatype, swap_iq, faults.append))
    _warn_of({path: faults} if faults else {})
    return found


def _warn_of(faults):
    """Warn once of faults that did not keep recordings from being read: {path: phrases}."""
    shown = [f"{path}: {'; '.join(dict.fromkeys(some))}" for path, some in list(faults.items())[:_SHOWN]]
    if faults:
        warn(" | ".join(shown) + f" | and {len(faults) - _SHOWN} more recordings" * (len(faults) > _SHOWN))


def find_recordings(paths, sample_rate_hz=None, datatype=None, swap_iq=False, left_out=None, annotated=False):
    """All recordings of `paths`, files and folders, in the order given; a folder's files are sorted by path.

    A search includes subfolders. It skips hidden names, links to folders, and files that are not recordings,
    which one warning counts by suffix. A file reached twice is opened once, and so are data under two names: a
    link, or a copy of the metadata.
    Other arguments and errors: see `open_recording`.

    Args:
        left_out: a folder that a search does not enter, or None.
        annotated: of data under two names, use those with annotations.
    """
    real = functools.cache(os.path.realpath)  # one call a folder, not one a file

    def place(file):
        # Links to files are not followed: two recordings of a content store may share one file of metadata.
        folder, separator, name = str(file).rpartition(os.sep)
        return f"{real(folder or separator or os.curdir)}{os.sep}{name}"

    faults = {}

    def recordings_at(places):
        found = {}
        for there in places:
            own = []
            given = Given(sample_rate_hz, datatype, swap_iq, own.append)
            found[there] = open_file(Path(files[there]), given)
            if own:
                faults[files[there]] = own
        return found

    files = {}  # real place of a file (of the metadata for a .sigmf-data) -> path as given
    for path in [paths] if isinstance(paths, str | os.PathLike) else paths:
        path = os.fspath(path)
        for file in _folder_files(path, left_out) if os.path.isdir(path) else [path]:
            there = place(file if is_raw_data(file, sample_rate_hz, datatype) else meta_of(file))
            files.setdefault(there, file)
    found = recordings_at([there for there in files if there.lower().endswith(SIGMF_SUFFIXES)])
    described = {place(one.layout.data_file) for several in found.values() for one in several}
    found |= recordings_at([there for there in files if there not in found and there not in described])
    _warn_of(faults)
    found = _each_once({files[there]: found[there] for there in files if there in found}, annotated)
    return [one for several in found.values() for one in several]


def is_raw_data(file, sample_rate_hz, datatype):
    """Whether a .sigmf-data file is read without metadata, which are not there."""
    is_described = not file.lower().endswith(DATA_SUFFIX) or os.path.exists(meta_of(file))
    return not is_described and sample_rate_hz is not None and datatype is not None


def _each_once(found, annotated):
    """{path: `Recording`s}, without those whose data lie in another's file, at the same bytes."""
    of_file = {}
    for path, several in found.items():
        about = os.stat(several[0].layout.data_file)
        of_file.setdefault((about.st_dev, about.st_ino), []).append(path)
    repeated = {}
    for paths in of_file.values():
        kept = []

        def rank(path):
            first = found[path][0]
            bare = first.annotations is None, annotated and not any(one.annotations for one in found[path])
            return *bare, os.path.islink(first.layout.data_file)

        for path in sorted(paths, key=rank) if len(paths) > 1 else ():
            first_byte = min(one.layout.byte_offset for one in found[path])
            end_byte = max(one._end_byte for one in found[path])
            other = next((one for one, low, high in kept if first_byte < high and low < end_byte), None)
            if other:
                repeated[path] = other
            else:
                kept.append((path, first_byte, end_byte))
    if repeated:
        shown = few((f"{path} ({other})" for path, other in repeated.items()), _SHOWN)
        warn(f"{len(repeated)} recordings have the data of others, and count once: {shown}")
    return {path: several for path, several in found.items() if path not in repeated}


def by_path(files):
    """Files of recordings, sorted as `pathlib` sorts; a .sigmf-data beside its metadata is left out."""
    known = set(files)
    ordered = sorted(files, key=lambda file: file.split(os.sep))
    return list(dict.fromkeys(meta if (meta := meta_of(file)) in known else file for file in ordered))


def _folder_files(folder, left_out=None):
    def refuse(error):
        raise UserError(f"{folder}: cannot be searched ({error})") from error

    files = walk(folder, refuse, left_out)[1]
    recordings = [path for path in files if is_recording_file(path)]
    if not recordings:
        raise UserError(f"{folder}: expected recordings ({KNOWN}), found none in this folder{_others(files)}")
    known = set(recordings)
    warn_of_others(folder, [path for path in files if path not in known])
    return by_path(recordings)


def warn_of_others(folder, files):
    """Count the files of a folder that are not read, by suffix, in one warning."""
    if files:
        warn(f"{folder}: files that are no recordings are left out{_others(files)}")


def _others(files):
    counts = Counter(os.path.splitext(file)[1] or "no suffix" for file in files).most_common()
    some = ", ".join(f"{suffix} ({count})" for suffix, count in counts[:8])
    return f": {some}{', ...' if len(counts) > 8 else ''}" if counts else ""
