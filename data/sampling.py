"""From a source's samples to batches of images, with every random choice a function of (seed, epoch, sample)."""

import os
import signal
import threading

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from util.errors import UserError

# What a sample holds: complex64 IQ [samples], a spectrogram in dB [C, F, T], or an image ready for the model [C, F, T].
# A kind may also be a function of (values, front end, device) that makes spectrograms in dB of a batch of values.
IQ, DECIBELS, IMAGE = "iq", "decibels", "image"

TRAINING, VALIDATION, ORDER = range(3)


def generator(seed, stream, epoch=0, index=0):
    """Independent random numbers for one purpose: numpy's Philox, its key and counter made of these four numbers."""
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, epoch, index]))


class Source(Dataset):
    """What training reads. A subclass has `in_chans` and `image_size` (None where the front end decides), and:

    - `__len__()`: samples in an epoch;
    - `load(index, rng, epoch)`: (kind, array) of a sample, `rng` deciding whatever is random about it, None for nothing
      random; `epoch` is for sources that hold other samples in each;
    - `describe(index, rng, epoch)`: a dict with `name`, and where known `start_s`, `sample_rate_hz`, `center_freq_hz`,
      `num_samples`;
    - `split(fraction, seed)`: (training part, held-out part).
    """

    in_chans = 1
    image_size = None


class Subset(Source):
    """Some samples of a source, by index."""

    def __init__(self, source, indices):
        self.source = source
        self.indices = indices
        self.in_chans = source.in_chans
        self.image_size = source.image_size

    def __len__(self):
        return len(self.indices)

    def load(self, index, rng, epoch=0):
        return self.source.load(int(self.indices[index]), rng, epoch)

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

    def _at(self, index):
        number = int(np.searchsorted(self.ends, index, side="right"))
        return self.sources[number], index - (int(self.ends[number - 1]) if number else 0)

    def load(self, index, rng, epoch=0):
        source, index = self._at(index)
        return source.load(index, rng, epoch)

    def describe(self, index, rng, epoch=0):
        source, index = self._at(index)
        return source.describe(index, rng, epoch)

    def split(self, fraction, seed):
        parts = [source.split(fraction, seed) for source in self.sources]
        return tuple(Concatenated([part[side] for part in parts]) for side in (0, 1))


def hold_out(groups, fraction, seed):
    """Whole groups for validation: the names of about `fraction` of them, at least one, drawn by the seed."""
    names = sorted(set(groups))
    count = min(len(names) - 1, max(1, round(fraction * len(names))))
    return set(generator(seed, VALIDATION).permutation(names)[:count].tolist())


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

    def _generator(self, epoch, index):
        return generator(self.seed, TRAINING, epoch, index) if self.training else generator(self.seed, VALIDATION, 1, index)

    def __getitem__(self, key):
        epoch, index = key
        rng = self._generator(epoch, index)
        noise = rng.random(self.num_patches, dtype=np.float32)
        kind, values = self.source.load(index, rng if self.training else None, epoch)
        return kind, values, noise, index

    def describe(self, epoch, index):
        """What sample `index` of an epoch is; see `Source`."""
        rng = self._generator(epoch, index)
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
            order = generator(self.seed, ORDER, self.epoch).permutation(self.num_samples)
        for number in range(self.first_batch, len(self)):
            first, count = self._range(number, self.part)
            # the sample that does not count: the first of all processes' batch
            chosen = order[first : first + count] if count else order[number * self.together :][:1]
            yield [(self.epoch, int(index)) for index in chosen]


def collate(samples):
    """A list of `MaskedSamples` to a batch.

    Windows of one duration differ in length with their sample rate; those that agree are stacked.

    Returns:
        parts: a list of (kind, tensor [n, ...], positions int64 [n] in the batch); noise: float32 [B, L];
        index: int64 [B].
    """
    groups = {}
    for position, (kind, values, _, _) in enumerate(samples):
        groups.setdefault((kind, values.shape), []).append(position)
    parts = [
        (kind, torch.from_numpy(np.stack([samples[position][1] for position in positions])), torch.tensor(positions))
        for (kind, _), positions in groups.items()
    ]
    noise = torch.from_numpy(np.stack([sample[2] for sample in samples]))
    return {"parts": parts, "noise": noise, "index": torch.tensor([sample[3] for sample in samples])}


def to_images(parts, front_end, device):
    """A batch's parts to float32 images [B, C, F, T] on the device, through the front end where they need it."""
    transform = {IQ: front_end, DECIBELS: front_end.from_decibels, IMAGE: torch.Tensor.float}
    done = [
        (front_end.from_decibels(kind(values, front_end, device)) if callable(kind)
         else transform[kind](values.to(device, non_blocking=True)), positions)
        for kind, values, positions in parts
    ]  # fmt: skip
    if len(done) == 1:
        return done[0][0]
    order = torch.cat([positions for _, positions in done]).argsort()
    return torch.cat([images for images, _ in done])[order.to(device, non_blocking=True)]


def _heed_the_main_process(_worker):
    """Have a worker end by SIGTERM from the process that it works for, and from nobody else.

    A job that is told to stop is told in all its processes; the one that trains answers, and needs its data until it has.
    """
    numbers = {signal.SIGTERM, signal.SIGUSR1}
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)

    def listen():
        while True:
            told = signal.sigwaitinfo(numbers)
            if told.si_signo == signal.SIGTERM and told.si_pid == os.getppid():
                os._exit(0)

    threading.Thread(target=listen, daemon=True).start()


def make_loader(dataset, batches, num_workers, pin_memory, collate_fn=collate):
    """A DataLoader over `EpochBatches` whose workers live as long as it does."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate_fn,
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        worker_init_fn=_heed_the_main_process,
        # Its own generator: drawing the workers' seed from torch's would make the run depend on how often it resumed.
        generator=torch.Generator(),
    )
