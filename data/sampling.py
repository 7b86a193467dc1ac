"""Sources of samples, and the random numbers of (seed, epoch, sample)."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from radio.rng import SAMPLING, VALIDATION, Stream
from util.errors import UserError

# Kinds of samples: IQ, a spectrogram in dB [C, F, T], or an image ready for the model [C, F, T]. IQ is
# complex64 [samples]; in a batch, IQ may also be I and Q as stored, (u)int8 or (u)int16 [samples, 2]. IQ for
# the front end `grid` has a `View` as its kind. A kind may also be a function (values, front end,
# device) that turns a batch of values to spectrograms in dB.
IQ, DECIBELS, IMAGE = "iq", "decibels", "image"


class View(NamedTuple):
    """Which image of its window a sample of IQ is, for the front end `grid`; in a batch of n, n images."""

    sample_rate_hz: float
    first_rows: tuple  # of the planes of the windows; negative where an image is wider than the band
    is_real: bool = False

    def __call__(self, iq, front_end, device):
        """IQ of windows, [n, S] or [n, S, 2], to spectrograms [n, C, rows, columns]."""
        at_a_time, images = 1 if iq.device.type == "cpu" else len(iq), []  # a CPU keeps a window in its cache
        for first in range(0, len(iq), at_a_time):
            some = slice(first, first + at_a_time)
            planes = front_end.planes(iq[some], self.sample_rate_hz, self.is_real)
            rows = zip(planes.split(1), self.first_rows[some], strict=True)
            images += [front_end.cut(plane, row) for plane, row in rows]
        return torch.cat(images)


def is_iq(kind):
    """Whether a kind of sample is IQ, to be transformed on the device."""
    return kind == IQ or isinstance(kind, View)


SAMPLE, HELD_OUT_SAMPLE, ORDER, MIXING, FITTING = range(5)  # purposes of `stream`


def stream(seed, purpose, epoch=0, index=0):
    """The `Stream` of one purpose of sampling, for a sample of an epoch (below 2^32)."""
    return Stream(seed, SAMPLING, index, (purpose << 32) + epoch)


class Source(Dataset):
    """Samples to train on. A subclass has `in_chans`, `image_size` (None if the front end decides it), and:

    - `__len__()`: samples in an epoch;
    - `load(index, rng, epoch)`: (kind, array) of a sample. `rng` makes random choices; None: no randomness.
      `epoch` matters to sources with new samples in each epoch;
    - `describe(index, rng, epoch)`: a dict with `name`, and if known `start_s`, `sample_rate_hz`,
      `center_freq_hz`, `num_samples`;
    - `split(fraction, seed)`: (training part, held-out part);
    - with labels, `target(index, epoch)`: class ids, uint8 [F, T], or an int.

    Sources that read many samples faster than one by one override `load_many` and `target_many`.
    """

    in_chans = 1
    image_size = None

    @property
    def sample_bytes(self):
        """Bytes of the largest sample in a batch."""
        return 4 * self.in_chans * math.prod(self.image_size)

    def load_many(self, indices, rng_of, epoch):
        """Samples of a batch, by kind and shape.

        Args:
            indices: ints.
            rng_of: returns the `rng` of `load` for a place in `indices`, valid until the next call.

        Returns:
            A list of (kind, array [n, ...], places in `indices`: a list of n).
        """
        return stacked([self.load(index, rng_of(place), epoch) for place, index in enumerate(indices)])

    def target_many(self, indices, epoch):
        """Targets of a batch: uint8 [n, F, T] or int64 [n]."""
        return np.stack([self.target(index, epoch) for index in indices])


def stacked(loaded):
    """Stack a list of (kind, array) by kind and shape, in the form of `Source.load_many`."""
    groups = {}
    for place, (kind, values) in enumerate(loaded):
        groups.setdefault((kind, values.shape), []).append(place)
    parts = []
    for (kind, _), places in groups.items():
        parts.append((kind, np.stack([loaded[place][1] for place in places]), places))
    return parts


class Subset(Source):
    """Some samples of a source, by index."""

    def __init__(self, source, indices):
        self.source = source
        self.indices = indices
        self.in_chans = source.in_chans
        self.image_size = source.image_size

    def __len__(self):
        return len(self.indices)

    @property
    def sample_bytes(self):
        return self.source.sample_bytes

    def load(self, index, rng, epoch=0):
        return self.source.load(int(self.indices[index]), rng, epoch)

    def load_many(self, indices, rng_of, epoch):
        return self.source.load_many([int(self.indices[index]) for index in indices], rng_of, epoch)

    def describe(self, index, rng, epoch=0):
        return self.source.describe(int(self.indices[index]), rng, epoch)


class Concatenated(Source):
    """Several sources one after another."""

    def __init__(self, sources):
        self.sources = sources
        self.in_chans = sources[0].in_chans
        self.image_size = sources[0].image_size
        if any(source.in_chans != self.in_chans for source in sources):
            channels = sorted({source.in_chans for source in sources})
            raise UserError(f"--data_path: expected one number of channels; found {channels}")
        self.ends = np.cumsum([len(source) for source in sources])

    def __len__(self):
        return int(self.ends[-1])

    def at(self, index):
        """(source, index into that source) of a sample."""
        number = int(np.searchsorted(self.ends, index, side="right"))
        return self.sources[number], index - (int(self.ends[number - 1]) if number else 0)

    @property
    def sample_bytes(self):
        return max(source.sample_bytes for source in self.sources)

    def load(self, index, rng, epoch=0):
        source, index = self.at(index)
        return source.load(index, rng, epoch)

    def load_many(self, indices, rng_of, epoch):
        own = {}  # by source: places in the batch, and indices into the source
        for place, index in enumerate(indices):
            source, index = self.at(index)
            places, inner = own.setdefault(source, ([], []))
            places.append(place)
            inner.append(index)
        return [
            (kind, values, [places[there] for there in theirs])
            for source, (places, inner) in own.items()
            for kind, values, theirs in source.load_many(
                inner, lambda there, at=places: rng_of(at[there]), epoch
            )
        ]

    def describe(self, index, rng, epoch=0):
        source, index = self.at(index)
        return source.describe(index, rng, epoch)

    def split(self, fraction, seed):
        parts = [source.split(fraction, seed) for source in self.sources]
        return tuple(Concatenated([part[side] for part in parts]) for side in (0, 1))


def hold_out(groups, fraction, seed):
    """Draw whole groups for validation: the names of about `fraction` of the groups, at least one."""
    names = sorted(set(groups))
    count = min(len(names) - 1, max(1, round(fraction * len(names))))
    return set(Stream(seed, VALIDATION).generator().permutation(names)[:count].tolist())


def split_by_group(source, groups, fraction, seed, what):
    """(training, held-out) subsets of a source, by a group name for each sample; see `hold_out`."""
    if len(set(groups)) < 2:
        raise UserError(
            f"--val_fraction: expected at least two {what} to hold one out; found {len(set(groups))}"
        )
    held_out = hold_out(groups, fraction, seed)
    is_held_out = np.array([group in held_out for group in groups])
    return Subset(source, np.flatnonzero(~is_held_out)), Subset(source, np.flatnonzero(is_held_out))
