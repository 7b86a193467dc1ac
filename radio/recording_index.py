"""What opening recordings found, kept in a file: the next start need not read the metadata of 10^5 recordings again.

An entry stands for as long as the file that was opened, and the size of the data file that its metadata name, are what they
were. With an index a start finds what it would find without one; what it cannot be sure of is opened.
"""

import functools
import json
import multiprocessing
import os
import signal
import time
import zlib
from pathlib import Path

import numpy as np

from radio import recordings, samples, sigmf_stretches
from util.errors import UserError, warn
from util.files import atomic_path, file_state

FORMAT = 1
NAME = "recordings.index"
LEAST_FILES = 1000  # fewer are opened at once, and need no file beside the output

LEAST_FILES_TO_SHARE, CHUNK_FILES = 4000, 500  # processes take a while to begin

# A file that changed so shortly before it was opened may change again within a tick of its file system's clock.
SETTLED_NS = 2 * 10**9


class RecordingIndex:
    """The entries of a file, where it is there, whole, and of this version of the program and these arguments.

    Args:
        path: of the index.
        sample_rate_hz, datatype: what files are opened with that do not say.
        processes: that open files together, where they are many.
    """

    def __init__(self, path, sample_rate_hz=None, datatype=None, processes=1):
        self.path = Path(path)
        self._defaults, self._processes = (sample_rate_hz, datatype), processes
        self._made_by = json.loads(json.dumps([FORMAT, _program(), sample_rate_hz, datatype]))
        self._known = self._read()
        self._used, self._now_ns = {}, time.time_ns()
        self.opened = 0  # files that it did not know

    def _read(self):
        """Place of a file -> its state, name and size of its data file, rows."""
        try:
            head, _, body = self.path.read_bytes().partition(b"\n")
            made_by, checksum = json.loads(head)
            return json.loads(body) if made_by == self._made_by and checksum == zlib.crc32(body) else {}
        except (OSError, ValueError, TypeError, RecursionError):
            return {}

    def open_all(self, files):
        """The recordings of files, by the index or by opening them.

        Args:
            files: dict of where a file really lies, for SigMF its metadata, to its path as given.

        Returns:
            dict of the same keys to lists of `Recording`.

        Raises:
            UserError: of the first file that cannot be opened.
        """
        known = {place: self._known[place] for place, file in files.items() if self._holds(place, file)}
        unknown = [place for place in files if place not in known]
        self.opened += len(unknown)
        entries = self._looked_at([files[place] for place in unknown])
        for place, entry in zip(unknown, entries, strict=True):
            if isinstance(entry, UserError):
                raise entry
            known[place], is_certain = entry
            if is_certain and max(known[place][0][1:3], default=self._now_ns) < self._now_ns - SETTLED_NS:
                self._used[place] = known[place]
        return {place: _recordings(recordings.meta_of(file), *known[place][1:]) for place, file in files.items()}

    def _holds(self, place, file):
        """Whether the entry of a file stands."""
        entry, meta = self._known.get(place), recordings.meta_of(file)
        if entry is None or entry[0] != file_state(meta):
            return False
        data_name, data_bytes = entry[1]
        if data_name is not None:
            data_file = os.path.join(os.path.dirname(meta), data_name)
            if file_state(data_file)[:1] != [data_bytes] or (file != meta and data_name != os.path.basename(file)):
                return False
        self._used[place] = entry
        return True

    def _looked_at(self, files):
        """`_look` at each, in order."""
        if self._processes < 2 or len(files) < LEAST_FILES_TO_SHARE:
            yield from _look(files, *self._defaults)
            return
        chunks = [(files[first : first + CHUNK_FILES], *self._defaults) for first in range(0, len(files), CHUNK_FILES)]
        context = multiprocessing.get_context("fork")
        with context.Pool(self._processes, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
            for entries in pool.imap(_look_at_chunk, chunks):
                yield from entries

    def save(self):
        """Write the entries of all files that were asked for, unless they are as they were read."""
        if len(self._used) < LEAST_FILES or self._used == self._known:
            return
        body = json.dumps(self._used, separators=(",", ":")).encode()
        head = json.dumps([self._made_by, zlib.crc32(body)]).encode()
        try:
            with atomic_path(self.path) as temporary:
                temporary.write_bytes(head + b"\n" + body)
        except OSError as error:
            warn(f"{self.path}: could not be written, so the next start reads all metadata again: {error.strerror}")


@functools.cache
def _program():
    """A checksum of what opens recordings: another version may find something else in the same files."""
    return zlib.crc32(b"".join(Path(module.__file__).read_bytes() for module in (recordings, samples, sigmf_stretches)))


def _look(files, sample_rate_hz, datatype):
    """(entry, whether it may be kept) of each file, or the `UserError` that it is met with."""
    for file in files:
        state = file_state(recordings.meta_of(file))  # before it is opened, so that what changes it later shows
        try:
            found, data, is_certain = recordings.opened(file, sample_rate_hz, datatype)
        except UserError as error:
            yield error
            return
        yield [state, list(data), [_row(one) for one in found]], is_certain


def _look_at_chunk(arguments):
    return list(_look(*arguments))


def _row(one):
    layout = one.layout
    return [one.name[len(one.path.name) :], one.sample_rate_hz, one.center_freq_hz, one.num_samples, one.datatype,
            one.sample_start, one.annotations, one.member, layout.byte_offset, layout.dtype.str, layout.components,
            layout.channels, layout.channel, layout.plane_bytes]  # fmt: skip


def _recordings(file, data, rows):
    path = data_file = recordings.path_of(file)
    if data[0] is not None:
        data_file = recordings.path_of(os.path.join(os.path.dirname(file), data[0]))
    return [_recording(path, data_file, row) for row in rows]


def _recording(path, data_file, row):
    label, rate, center, num_samples, datatype, sample_start, annotations, member, byte_offset, dtype, *shape = row
    layout = samples.Layout(data_file, byte_offset, _dtype(dtype), *shape)
    annotations = annotations if annotations is None else tuple(annotations)
    return recordings.Recording(path, path.name + label, rate, center, num_samples, datatype, sample_start, layout,
                                annotations, member)  # fmt: skip


_dtype = functools.cache(np.dtype)
