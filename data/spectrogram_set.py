"""The spectrogram set: a folder of float16 spectrograms, with or without masks and labels."""

import functools
import json
import os
from pathlib import Path

import numpy as np

from data.array_file import ArrayFiles, open_npy
from data.formats import SET_DESCRIPTION as DESCRIPTION
from data.sampling import DECIBELS, Source, Subset, split_by_group
from radio.front_end import from_settings
from util.errors import UserError
from util.files import parse_json, write_json
from util.state import check_names, is_whole

FORMAT = 1
SPECTROGRAMS = "spectrograms.npy"
MASKS = "masks.npy"
LABELS = "labels.npy"
METADATA = "metadata.jsonl"


class SpectrogramSet(Source):
    """Reads a set. Values are dB relative to each spectrogram's mean, which is `level_db` of its metadata; with
    the front end `grid`, of channel 0 alone, and `radio.grid.OUTSIDE` where a cell lies outside.

    `spectrograms` is an `ArrayFile` of float16 [N, C, F, T]. `masks`, uint8 [N, F, T], and `labels`,
    int64 [N], are `ArrayFile`s or None. Labels are checked when the set is opened, masks when they are read.

    Args:
        held_out: folder of the set that `split` holds out, or None.
    """

    def __init__(self, path, held_out=None):
        self.path = Path(path)
        try:
            self.description = parse_json((self.path / DESCRIPTION).read_text("utf-8"))
            found = self.description["format"]
            self.shape = tuple(self.description["shape"])  # (N, C, F, T)
            self.front_end_settings = self.description["front_end"]
            self.class_names = list(self.description["class_names"])
            image_size = tuple(from_settings(self.front_end_settings).image_size)
            parts = array_parts(self.description)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self.path / DESCRIPTION}: expected a spectrogram set's description; {error}"
            ) from error
        check_names(self.class_names, self.path / DESCRIPTION)
        if not (len(self.shape) == 4 and all(is_whole(side, 1) for side in self.shape)):
            raise UserError(
                f"{self.path / DESCRIPTION}: expected a shape of four sizes; found {list(self.shape)}"
            )
        if found != FORMAT:
            raise UserError(f"{self.path / DESCRIPTION}: expected format {FORMAT}; found {found}")
        self.sets = self._joined()
        if self.sets:
            arrays = {name: ArrayFiles([one.arrays[name] for one in self.sets]) for name in parts}
        else:
            arrays = {name: open_npy(self.path / name, *part) for name, part in parts.items()}
        self.arrays = arrays
        self.spectrograms, self.masks, self.labels = (
            arrays.get(name) for name in (SPECTROGRAMS, MASKS, LABELS)
        )
        if not self.shape[0] or self.shape[2:] != image_size:
            raise UserError(
                f"{self.path}: expected spectrograms of {list(image_size)}; found shape {list(self.shape)}"
            )
        if self.labels is not None and not self.sets:
            _check_classes(self.path / LABELS, self.labels.read(0, len(self.labels)), self.class_names)
        self.in_chans = self.shape[1]
        self.image_size = image_size
        self.held_out = None if held_out is None else SpectrogramSet(held_out)
        if self.held_out:
            for key in ("front_end", "class_names"):
                ours, theirs = self.description[key], self.held_out.description[key]
                if ours != theirs:
                    raise UserError(
                        f"{held_out}: expected {key} {ours}, as {self.path} has it; found {theirs}"
                    )

    def _joined(self):
        """The sets that this one joins, by paths relative to it; [] for a set with arrays of its own."""
        joined = [SpectrogramSet(self.path / str(name)) for name in self.description.get("sets", [])]
        for one in joined:
            ours, theirs = (kind_of_samples(each.description) for each in (self, one))
            if ours != theirs:
                raise UserError(f"{one.path}: expected samples of {ours}; found {theirs}")
        if joined and sum(map(len, joined)) != self.shape[0]:
            found = sum(map(len, joined))
            raise UserError(f"{self.path}: expected {self.shape[0]} spectrograms in its sets; found {found}")
        return joined

    @functools.cached_property
    def metadata(self):
        """A dict for each spectrogram."""
        if self.sets:
            return [line for one in self.sets for line in one.metadata]
        path = self.path / METADATA
        try:
            lines = path.read_bytes().splitlines()
        except OSError as error:
            raise UserError(f"{path}: expected a line a spectrogram; {error}") from error
        found = whole_lines(lines)
        if not len(self) == len(found) == len(lines):
            raise UserError(
                f"{path}: expected {len(self)} lines; found {len(lines)}, the first {len(found)} whole"
            )
        return found

    def __len__(self):
        return self.shape[0]

    @property
    def sample_bytes(self):
        return self.spectrograms.part_bytes

    def load(self, index, rng, epoch=0):
        return DECIBELS, self.spectrograms[index]

    def load_many(self, indices, rng_of, epoch):
        return [(DECIBELS, self.spectrograms.read_many(indices), list(range(len(indices))))]

    def describe(self, index, rng, epoch=0):
        return self.metadata[index]

    def mask(self, index, epoch=0):
        """Class ids: uint8 [F, T]; UserError for an id that is no class of the set."""
        return self.target_many([index], epoch)[0]

    def target(self, index, epoch=0):
        """A sample's mask if the set has masks, else its label."""
        return self.mask(index) if self.masks is not None else int(self.labels[index])

    def target_many(self, indices, epoch):
        if self.masks is None:
            return super().target_many(indices, epoch)
        masks = self.masks.read_many(indices)
        for index, mask in zip(indices, masks, strict=True):
            _check_classes(f"{self.path / MASKS}, spectrogram {index}", mask, self.class_names)
        return masks

    def split(self, fraction, seed):
        """Hold out the set `held_out`, else whole recordings, else the end of the only recording."""
        if self.held_out:
            return self, self.held_out
        recordings = [line.get("path") for line in self.metadata]
        if len(set(recordings)) > 1:
            return split_by_group(self, recordings, fraction, seed, "recordings")
        border = len(self) - max(1, round(fraction * len(self)))
        if not border:
            raise UserError(
                f"--val_fraction: expected two spectrograms or more in {self.path}; found {len(self)}"
            )
        return Subset(self, range(border)), Subset(self, range(border, len(self)))


def kind_of_samples(description):
    """What sets must share to be joined: front end, classes, and what a sample holds."""
    about = {name: description.get(name) for name in ("front_end", "class_names", "masks", "labels")}
    return about | {"shape": description["shape"][1:]}


def join_sets(folders, output):
    """Make a set of the samples of several, in order: a folder with a description, which points to them.

    Raises:
        UserError: the sets differ in front end, classes or what they hold.
    """
    sets = [SpectrogramSet(folder) for folder in folders]
    first = sets[0].description
    kept = {name: first[name] for name in ("format", "shape", "class_names", "front_end")}
    kept |= {name: first.get(name, False) for name in ("masks", "labels")}
    for one in sets:
        if kind_of_samples(one.description) != kind_of_samples(first):
            raise UserError(f"{one.path}: expected the front end and classes of {sets[0].path}; found others")
    kept["shape"] = [sum(map(len, sets)), *first["shape"][1:]]
    kept["sets"] = [os.path.relpath(folder, output) for folder in folders]
    Path(output).mkdir(parents=True, exist_ok=True)
    write_json(Path(output, DESCRIPTION), kept, indent=1)


def array_parts(description):
    """The arrays of a set: file name -> (shape, dtype)."""
    samples, _, rows, columns = shape = tuple(description["shape"])
    parts = {SPECTROGRAMS: (shape, np.float16)}
    if description.get("masks"):  # absent in sets of older versions
        parts[MASKS] = ((samples, rows, columns), np.uint8)
    if description.get("labels"):
        parts[LABELS] = ((samples,), np.int64)
    return parts


def _check_classes(owner, ids, class_names):
    if ids.min() < 0 or ids.max() >= len(class_names):
        raise UserError(
            f"{owner}: expected class ids below {len(class_names)}; found {ids.min()} to {ids.max()}"
        )


def whole_lines(lines):
    """The dicts in lines of JSON, up to the first damaged line."""
    found = []
    for line in lines:
        try:
            about = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(about, dict):
            break
        found.append(about)
    return found
