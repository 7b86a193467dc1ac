"""The spectrogram set: a folder of memory-mapped float16 spectrograms, written once and read without an STFT."""

import contextlib
import json
import os
import shutil
from pathlib import Path

import numpy as np

from data.sampling import DECIBELS, Source, Subset, split_by_group
from radio.spectrogram import Spectrogram
from util.errors import UserError

FORMAT = 1
DESCRIPTION = "set.json"
SPECTROGRAMS = "spectrograms.npy"
METADATA = "metadata.jsonl"


def is_spectrogram_set(path):
    return (Path(path) / DESCRIPTION).is_file()


class SpectrogramSet(Source):
    """Reads a set. Values are dB about each spectrogram's mean; `level_db` of its metadata line is that mean.

    Raises:
        UserError: a part is missing, or does not agree with `set.json`.
    """

    def __init__(self, path):
        self.path = Path(path)
        try:
            self.description = json.loads((self.path / DESCRIPTION).read_text())
            found = self.description["format"]
            self.shape = tuple(self.description["shape"])  # (N, C, F, T)
            self.front_end_settings = self.description["front_end"]
            self.class_names = self.description["class_names"]
            image_size = tuple(Spectrogram(**self.front_end_settings).image_size)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.path / DESCRIPTION}: expected a spectrogram set's description; {error}") from error
        if found != FORMAT:
            raise UserError(f"{self.path / DESCRIPTION}: expected format {FORMAT}; found {found}")
        self.spectrograms = _open_npy(self.path / SPECTROGRAMS, self.shape, np.float16)
        if not self.shape[0] or self.shape[2:] != image_size:
            raise UserError(f"{self.path}: expected spectrograms of {list(image_size)}; found shape {list(self.shape)}")
        self.in_chans = self.shape[1]
        self.image_size = image_size
        self._metadata = None

    @property
    def metadata(self):
        """A dict for each spectrogram."""
        if self._metadata is None:
            lines = (self.path / METADATA).read_text().splitlines()
            self._metadata = [json.loads(line) for line in lines]
            if len(self._metadata) != len(self):
                raise UserError(f"{self.path / METADATA}: expected {len(self)} lines; found {len(self._metadata)}")
        return self._metadata

    def __len__(self):
        return self.shape[0]

    def load(self, index, rng):
        return DECIBELS, self.spectrograms[index]

    def describe(self, index, rng):
        return self.metadata[index]

    def split(self, fraction, seed):
        """Hold out all spectrograms of some recordings, or of a single one the last of them."""
        recordings = [line["path"] for line in self.metadata]
        if len(set(recordings)) > 1:
            return split_by_group(self, recordings, fraction, seed, "recordings")
        border = len(self) - max(1, round(fraction * len(self)))
        if not border:
            raise UserError(f"--val_fraction: expected two spectrograms or more in {self.path}; found {len(self)}")
        return Subset(self, range(border)), Subset(self, range(border, len(self)))


def _open_npy(path, shape, dtype):
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: expected a float16 array; found a missing or damaged file: {error}") from error
    if array.shape != shape or array.dtype != dtype:
        raise UserError(f"{path}: expected {np.dtype(dtype)} {list(shape)}; found {array.dtype} {list(array.shape)}")
    return np.asarray(array)  # a plain view of the map: to index a np.memmap costs ten times as much


@contextlib.contextmanager
def spectrogram_set_writer(path, count, front_end, in_chans=1, class_names=()):
    """Write a set of `count` spectrograms: yields `add(decibels [C, F, T], metadata)`, to be called `count` times.

    The folder appears under its name when it is complete and on disk; if the block fails, nothing is left behind.

    Raises:
        UserError: the path exists, or cannot be written.
    """
    path = Path(path)
    if path.exists():
        raise UserError(f"{path}: expected a new folder to write; it exists already")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shape = (count, in_chans, *front_end.image_size)
    try:
        try:
            temporary.mkdir(parents=True)
            spectrograms = np.lib.format.open_memmap(temporary / SPECTROGRAMS, "w+", np.float16, shape)
            with open(temporary / SPECTROGRAMS, "r+b") as file:
                # The map is a sparse file: on a full disk, writing to it would kill the process.
                os.posix_fallocate(file.fileno(), 0, os.path.getsize(file.name))
        except OSError as error:
            raise UserError(f"{path}: expected a folder that can be written; {error}") from error
        with open(temporary / METADATA, "w") as metadata_file:
            added = 0

            def add(decibels, metadata):
                nonlocal added
                level_db = float(decibels.mean())
                spectrograms[added] = decibels - level_db
                metadata_file.write(json.dumps({**metadata, "level_db": round(level_db, 3)}) + "\n")
                added += 1

            yield add
        if added != count:
            raise RuntimeError(f"expected {count} spectrograms, {added} were added")
        description = {
            "format": FORMAT,
            "shape": shape,
            "class_names": list(class_names),
            "front_end": front_end.settings(),
        }
        (temporary / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n")
        spectrograms.flush()
        for file in sorted(temporary.iterdir()):
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
