"""From a source's samples to batches of images, with every random choice a function of (seed, epoch, sample)."""

import math

import numpy as np
import torch
from torch.utils.data import Dataset

from radio.rng import SAMPLING, VALIDATION, Stream
from radio.samples import signed
from util.errors import UserError

# What a sample holds: IQ, a spectrogram in dB [C, F, T], or an image ready for the model [C, F, T]. IQ is complex64
# [samples], in a batch also I and Q as they are stored, (u)int8 or (u)int16 [samples, 2].
# A kind may also be a function of (values, front end, device) that makes spectrograms in dB of a batch of values.
IQ, DECIBELS, IMAGE = "iq", "decibels", "image"

SAMPLE, HELD_OUT_SAMPLE, ORDER, MIXING, FITTING = range(5)  # purposes of `stream`


def stream(seed, purpose, epoch=0, index=0):
    """The `Stream` of one purpose of sampling, for a sample of an epoch; epoch: below 2^32."""
    return Stream(seed, SAMPLING, index, (purpose << 32) + epoch)


class Source(Dataset):
    """What training reads. A subclass has `in_chans` and `image_size` (None where the front end decides), and:

    - `__len__()`: samples in an epoch;
    - `load(index, rng, epoch)`: (kind, array) of a sample, `rng` deciding whatever is random about it, None for nothing
      random; `epoch` is for sources that hold other samples in each;
    - `describe(index, rng, epoch)`: a dict with `name`, and where known `start_s`, `sample_rate_hz`, `center_freq_hz`,
      `num_samples`;
    - `split(fraction, seed)`: (training part, held-out part);
    - where it has labels, `target(index, epoch)`: class ids, uint8 [F, T], or an int.

    Sources that can read several samples faster than each alone have `load_many` and `target_many` of their own.
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
            indices: ints; rng_of: called with a place in them, gives the `rng` of `load`, good until the next call.

        Returns:
            A list of (kind, array [n, ...], places in `indices`: a list of n).
        """
        return stacked([self.load(index, rng_of(place), epoch) for place, index in enumerate(indices)])

    def target_many(self, indices, epoch):
        """Targets of a batch: uint8 [n, F, T] or int64 [n]."""
        return np.stack([self.target(index, epoch) for index in indices])


def stacked(loaded):
    """A list of (kind, array) as `Source.load_many` gives it: those that agree in kind and shape together."""
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
            for kind, values, theirs in source.load_many(inner, lambda there, at=places: rng_of(at[there]), epoch)
        ]

    def describe(self, index, rng, epoch=0):
        source, index = self.at(index)
        return source.describe(index, rng, epoch)

    def split(self, fraction, seed):
        parts = [source.split(fraction, seed) for source in self.sources]
        return tuple(Concatenated([part[side] for part in parts]) for side in (0, 1))


def hold_out(groups, fraction, seed):
    """Whole groups for validation: the names of about `fraction` of them, at least one, drawn by the seed."""
    names = sorted(set(groups))
    count = min(len(names) - 1, max(1, round(fraction * len(names))))
    return set(Stream(seed, VALIDATION).generator().permutation(names)[:count].tolist())


def split_by_group(source, groups, fraction, seed, what):
    """(training, held-out) subsets of a source by a group name per sample; see `hold_out`."""
    if len(set(groups)) < 2:
        raise UserError(f"--val_fraction: expected at least two {what} to hold one out; found {len(set(groups))}")
    held_out = hold_out(groups, fraction, seed)
    is_held_out = np.array([group in held_out for group in groups])
    return Subset(source, np.flatnonzero(~is_held_out)), Subset(source, np.flatnonzero(is_held_out))


class MaskedSamples(Dataset):
    """A source's samples, each with the noise that decides its mask.

    Indexed by (epoch, sample), so that workers need not be told of the epoch. In validation nothing is random, and the
    noise, so the mask, is that of epoch 0 whatever the epoch.
    """

    def __init__(self, source, num_patches, seed, training):
        self.source = source
        self.num_patches = num_patches
        self.seed = seed
        self.training = training

    def __len__(self):
        return len(self.source)

    @property
    def sample_bytes(self):
        """Bytes of the largest sample of a batch, noise included."""
        return self.source.sample_bytes + 4 * self.num_patches

    def _rng(self, epoch, index):
        """A sample's random numbers, from their beginning."""
        if not self.training:
            return stream(self.seed, HELD_OUT_SAMPLE, index=index).generator()
        return stream(self.seed, SAMPLE, epoch, index).generator()

    def batch(self, keys):
        """Samples by (epoch, sample), all of one epoch.

        Returns:
            dict of arrays. parts: a list of (kind, [n, ...], places in the batch, a list of n); noise: float32 [B, L];
            index: int64 [B].
        """
        [epoch], indices = {epoch for epoch, _ in keys}, [index for _, index in keys]
        noise = np.empty((len(keys), self.num_patches), np.float32)
        for index, row in zip(indices, noise, strict=True):
            self._rng(epoch, index).random(out=row, dtype=np.float32)
        skipped = np.empty(self.num_patches, np.float32)

        def rng_of(place):
            rng = self._rng(epoch, indices[place])
            rng.random(out=skipped, dtype=np.float32)
            return rng

        parts = self.source.load_many(indices, rng_of if self.training else lambda place: None, epoch)
        return {"parts": parts, "noise": noise, "index": np.array(indices)}

    def describe(self, epoch, index):
        """What sample `index` of an epoch is; see `Source`."""
        rng = self._rng(epoch, index)
        rng.random(self.num_patches, dtype=np.float32)
        return self.source.describe(index, rng if self.training else None, epoch)


class EpochBatches:
    """Batch sampler: the batches of one epoch as lists of (epoch, sample), in an order that (seed, epoch) decides.

    Of several processes, which take `part` 0 to `parts` - 1, each has `batch_size` samples of the `parts` * `batch_size`
    that they see at a time, so that samples meet in the same step however many processes share them. What is left at the end
    is divided in runs of an even number, for pairs to stay together (`data.labelled.mix`). A process that gets none of it
    loads a sample that `real` says is not to count: all have as many batches.

    A last batch with a single sample for somebody is left out with `drop_single`, for models that cannot train on it. Set
    `epoch` and `first_batch` before iterating; `first_batch` starts in the middle.
    """

    def __init__(self, num_samples, batch_size, seed, shuffle, drop_single=False, part=0, parts=1):
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.part = part
        self.together = batch_size * parts  # samples that the processes see at a time
        left = num_samples % self.together
        least = min(self._share(0, left, part) for part in range(parts))
        self.kept_samples = num_samples - (left if drop_single and least < 2 else 0)
        self.epoch = 0
        self.first_batch = 0

    def __len__(self):
        return -(-self.kept_samples // self.together)

    def _share(self, start, stop, part):
        """How many of the samples `start` to `stop` are those of a part."""
        each = -(-(stop - start) * self.batch_size // self.together)
        each = min(each + each % 2, self.batch_size)
        return max(0, min(each, stop - start - part * each))

    def _range(self, number, part):
        start = number * self.together
        stop = min(start + self.together, self.kept_samples)
        each = self._share(start, stop, 0)
        return start + min(part * each, stop - start), self._share(start, stop, part)

    def first(self, number):
        """Place in the epoch of the first sample of this process's batch `number`."""
        return self._range(number, self.part)[0]

    def real(self, number):
        """How many samples of this process's batch `number` count: all of them, or none."""
        return self._range(number, self.part)[1]

    def __iter__(self):
        order = np.arange(self.num_samples)
        if self.shuffle:
            order = stream(self.seed, ORDER, self.epoch).generator().permutation(self.num_samples)
        for number in range(self.first_batch, len(self)):
            first, count = self._range(number, self.part)
            # the sample that does not count: the first of all processes' batch
            chosen = order[first : first + count] if count else order[number * self.together :][:1]
            yield [(self.epoch, int(index)) for index in chosen]


def to_images(parts, front_end, device):
    """A batch's parts to float32 images [B, C, F, T] on the device, through the front end where they need it.

    Args:
        parts: see `MaskedSamples.batch`; tensors or arrays.
    """
    done, order = [], []
    for kind, values, places in parts:
        values = torch.as_tensor(values)
        if callable(kind):
            decibels = kind(values, front_end, device)
        else:
            values = values.to(device, non_blocking=True)
            decibels = front_end.decibels(signed(values)) if kind == IQ else values
        done.append(decibels.float() if kind == IMAGE else front_end.from_decibels(decibels))
        order += places
    if len(done) == 1:
        return done[0]
    return torch.cat(done)[torch.tensor(order).argsort().to(device, non_blocking=True)]
