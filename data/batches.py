"""The batches of an epoch, on the device and ready for the model: samples, their order and their masks."""

import math
from functools import partial

import numpy as np
import torch
from torch.utils.data import Dataset

from data.feeding import make_loader
from data.sampling import HELD_OUT_SAMPLE, IMAGE, IQ, ORDER, SAMPLE, View, stream
from radio.samples import signed
from util import distributed


class Batches:
    """Iterates over this process's share of the batches of an epoch.

    A batch is a dict: `images`, float32 [B, C, F, T]; `noise`, float32 [B, numbers]; `target`, if the samples
    have labels; `index`, int64 [B] on the CPU; `real`, the number of samples that count. `real` is B, or 0
    for a batch that only gives this process as many batches as the others have.

    Args:
        dataset: with `batch` and `sample_bytes`, as `data.sampling.MaskedSamples`.
        front_end: makes images on the device.
        args: flags with `batch_size`, `seed`, `num_workers` and `pin_mem`.
        shuffle: draw the order from (seed, epoch); drop_single: see `EpochBatches`.
    """

    def __init__(self, dataset, front_end, device, args, shuffle=False, drop_single=False):
        self.dataset, self.front_end, self.device = dataset, front_end, device
        self._order = EpochBatches(
            len(dataset),
            args.batch_size,
            args.seed,
            shuffle,
            drop_single,
            distributed.rank(),
            distributed.world_size(),
        )
        self._loader = make_loader(
            dataset, self._order, args.num_workers, args.pin_mem and device.type == "cuda"
        )
        self._feed = None

    def start(self, epoch, first=0):
        """Set the epoch and the first batch of the next iteration."""
        self._order.epoch, self._order.first_batch = epoch, first

    @property
    def first(self):
        """The first batch of an iteration."""
        return self._order.first_batch

    def __len__(self):
        """Batches of a whole epoch."""
        return len(self._order)

    def __iter__(self):
        images_of = partial(to_images, front_end=self.front_end, device=self.device)
        self._feed = self._loader.batches(images_of, self.device)
        for number, batch in enumerate(self._feed, self.first):
            yield batch | {"real": self._order.real(number)}

    def names(self, epoch, indices):
        """Samples by number, name and time, for an error: those with NaN or infinity, or all if none has."""
        odd = []
        for index in indices:
            images = to_images(self.dataset.batch([(epoch, index)])["parts"], self.front_end, self.device)
            odd += [] if bool(are_finite(images)) else [index]
        found = []
        for index in odd or indices:
            about = self.dataset.describe(epoch, index)
            at = f" at {about['start_s'] * 1e3:.3f} ms" if "start_s" in about else ""
            found.append(f"{index} ({about['name']}{at})")
        return found

    def waited_s(self):
        """Seconds that training waited for data since the last call."""
        return self._feed.waited_s()

    def place(self, number):
        """Place in the epoch of the first sample of this process's batch."""
        return self._order.first(number)

    def group_samples(self, number, count):
        """Samples of all processes in `count` batches from `number` on; fewer at the end of the epoch."""
        together = self._order.together
        return min(count * together, self._order.kept_samples - number * together)


class MaskedSamples(Dataset):
    """A source's samples, each with the noise that decides its mask, indexed by (epoch, sample).

    In validation nothing is random, and all epochs have the same masks.
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
        """A new generator of a sample's random numbers."""
        if not self.training:
            return stream(self.seed, HELD_OUT_SAMPLE, index=index).generator()
        return stream(self.seed, SAMPLE, epoch, index).generator()

    def batch(self, keys):
        """Samples by (epoch, sample), all of one epoch.

        Returns:
            dict of arrays. parts: a list of (kind, [n, ...], places in the batch, a list of n);
            noise: float32 [B, L]; index: int64 [B].
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
        """Metadata of sample `index` of an epoch; see `Source`."""
        rng = self._rng(epoch, index)
        rng.random(self.num_patches, dtype=np.float32)
        return self.source.describe(index, rng if self.training else None, epoch)


class EpochBatches:
    """Batch sampler: lists of (epoch, sample), in an order that (seed, epoch) decides.

    Processes, `part` 0 to `parts` - 1, share each group of `parts` * `batch_size` samples: the same samples
    meet in a step for any number of processes. The last, smaller group is shared in runs of even length,
    which keeps the pairs of `data.labelled.mix` together. A process without samples of that group loads one
    that does not count (see `real`).

    `drop_single` drops a last group that gives a process a single sample, for models that cannot train on
    one. Set `epoch` and `first_batch` before iterating.
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
        """Number of the samples `start` to `stop` that a part gets."""
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
        """Number of samples that count in this process's batch `number`: all of them, or 0."""
        return self._range(number, self.part)[1]

    def __iter__(self):
        order = np.arange(self.num_samples)
        if self.shuffle:
            order = stream(self.seed, ORDER, self.epoch).generator().permutation(self.num_samples)
        for number in range(self.first_batch, len(self)):
            first, count = self._range(number, self.part)
            # a sample that does not count: the first of the group
            chosen = order[first : first + count] if count else order[number * self.together :][:1]
            yield [(self.epoch, int(index)) for index in chosen]


def decibels_of(kind, values, front_end, device):
    """A batch of samples of one kind (see `data.sampling`) as spectrograms in dB [B, C, F, T]; images stay."""
    if callable(kind) and not isinstance(kind, View):
        return kind(values, front_end, device)
    values = values.to(device, non_blocking=True)
    if kind == IQ:
        return front_end.decibels(signed(values))
    return kind(signed(values), front_end, device) if isinstance(kind, View) else values


def are_finite(images, logits=None):
    """Which samples hold finite numbers, bool [B]: images may be -inf, outside of a recording; logits not."""
    finite = images.flatten(1).amax(dim=1) < math.inf  # NaN is the largest value, and not below
    return finite if logits is None else finite & logits.flatten(1).sum(1, dtype=torch.float32).isfinite()


def to_images(parts, front_end, device):
    """A batch's parts (see `MaskedSamples.batch`) to images, float32 [B, C, F, T], on the device."""
    done, order = [], []
    for kind, values, places in parts:
        decibels = decibels_of(kind, torch.as_tensor(values), front_end, device)
        done.append(decibels.float() if kind == IMAGE else front_end.from_decibels(decibels))
        order += places
    if len(done) == 1:
        return done[0]
    return torch.cat(done)[torch.tensor(order).argsort().to(device, non_blocking=True)]
