"""Labelled samples on their way to fine-tuning: a source's part with its targets, and augmentation on the device."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from timm.data.mixup import mixup_target
from torch.utils.data import Dataset

from data.sampling import MIXING, SAMPLE, stream

# Random numbers that a training sample comes with for augmentation, which makes of them what it likes. Those that decide its
# drop path may follow.
RANDOM_NUMBERS = 4



@dataclass(frozen=True)
class Part:
    """Some samples of a labelled source: training, validation or test.

    A labelled source has besides `data.sampling.Source`'s: `class_names`, and `target(index, epoch)`, class ids: uint8
    [F, T] for segmentation, an int for classification.
    """

    source: object
    indices: np.ndarray

    def __len__(self):
        return len(self.indices)

    def describe(self, number):
        return self.source.describe(int(self.indices[number]), None)

    def targets(self):
        """Iterate the targets, in order."""
        return (self.source.target(int(index)) for index in self.indices)


class LabelledSamples(Dataset):
    """A part's samples with their targets, indexed by (epoch, number in the part), as `EpochBatches` gives them.

    Args:
        fresh: give the source the epoch, so that one that makes its samples makes new ones.
        more_numbers: random numbers beyond `RANDOM_NUMBERS`.
    """

    def __init__(self, part, seed, fresh=False, more_numbers=0):
        self.part, self.seed, self.fresh = part, seed, fresh
        self.count = RANDOM_NUMBERS + more_numbers

    def __len__(self):
        return len(self.part)

    @property
    def sample_bytes(self):
        """Bytes of the largest sample of a batch, its target (at most one of a byte for each cell) included."""
        source = self.part.source
        return source.sample_bytes + max(8, math.prod(source.image_size)) + 4 * self.count

    def batch(self, keys):
        """As `data.sampling.MaskedSamples.batch`, and "target": int64 [B] or uint8 [B, F, T].

        "noise" holds the samples' random numbers, "index" their numbers in the part.
        """
        [epoch], source = {epoch for epoch, _ in keys}, self.part.source
        numbers = [number for _, number in keys]
        indices = [int(self.part.indices[number]) for number in numbers]
        made_in = epoch if self.fresh else 0
        parts = source.load_many(indices, lambda place: None, made_in)
        noise = np.empty((len(keys), self.count), np.float32)
        for index, row in zip(indices, noise, strict=True):
            stream(self.seed, SAMPLE, epoch, index).generator().random(out=row, dtype=np.float32)
        return {"parts": parts, "noise": noise, "index": np.array(numbers),
                "target": source.target_many(indices, made_in)}  # fmt: skip

    def describe(self, epoch, number):
        """What the errors of training name."""
        return self.part.source.describe(int(self.part.indices[number]), None, epoch if self.fresh else 0)


def shift_and_flip(images, masks, numbers, shift=True, flip=True):
    """Move images and masks in time, around their ends, and turn every other pair upside down in frequency.

    Neither changes what a carrier is: frames start anywhere, and receivers exist with either sideband.

    Args:
        images: [B, C, F, T]; masks: [B, F, T]; numbers: float [B, 2 or more] in [0, 1), that decide.

    Returns:
        (images, masks), new tensors.
    """
    rows, columns = images.shape[2:]
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    moved = (numbers[:, :1] * columns).long() if shift else torch.zeros_like(numbers[:, :1], dtype=torch.long)
    times = (torch.arange(columns, device=images.device) + moved) % columns  # (B, T)
    straight = torch.arange(rows, device=images.device).expand(len(images), -1)  # (B, F)
    frequencies = torch.where((numbers[:, 1:2] < 0.5) & flip, straight.flip(1), straight)
    place = (batch, frequencies[:, :, None], times[:, None, :])
    return images.transpose(0, 1)[:, *place].transpose(0, 1), masks[place]


def mix(images, targets, mixup, seed, epoch, first):
    """timm's Mixup or CutMix of pairs, decided by (seed, epoch, place of the pair's first sample in the epoch).

    It mixes the first image with the second, the third with the fourth, and so on, so that batches of even numbers are mixed
    alike however an epoch is cut into them; of an odd number of images the last stays as it is.

    Args:
        images: [B, C, F, T], changed in place; targets: int64 [B]; mixup: a `timm.data.Mixup`; first: place of images[0].

    Returns:
        (images, targets as shares of the classes: float [B, classes]).
    """
    paired = len(images) - len(images) % 2
    shares = []
    for start in range(0, paired, 2):
        # timm draws from numpy's global generator, of which a resumed run would know nothing.
        np.random.seed(int(stream(seed, MIXING, epoch, first + start).generator().integers(2**32)))
        pair = slice(start, start + 2)
        images[pair], mixed = mixup(images[pair], targets[pair])
        shares.append(mixed)
    shares.append(mixup_target(targets[paired:], mixup.num_classes, smoothing=mixup.label_smoothing))
    return images, torch.cat(shares)


def class_weights(part, num_classes, kind):
    """Weights of the classes in the loss: float32 [classes], or None.

    "median_frequency": the median of the classes' frequencies over each class's own, where a frequency is the share of a
    class among the cells of those samples in which it is at all (Eigen and Fergus, arXiv 1411.4734). A class that no
    training sample has gets 0.
    """
    if kind == "none":
        return None
    cells, present = np.zeros(num_classes), np.zeros(num_classes)
    for target in part.targets():
        counts = np.bincount(np.ravel(target), minlength=num_classes)
        cells += counts
        present += np.where(counts > 0, counts.sum(), 0)
    frequency = np.divide(cells, present, out=np.full(num_classes, np.nan), where=present > 0)
    weights = np.nanmedian(frequency) / frequency
    return torch.from_numpy(np.nan_to_num(weights)).float()
