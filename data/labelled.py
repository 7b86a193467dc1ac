"""Labelled samples for fine-tuning: sources with classes, parts of them, and augmentation on the device."""

import math
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from timm.data.mixup import mixup_target
from torch.utils.data import Dataset

from data.sampling import MIXING, SAMPLE, Source, stream
from radio.grid import OUTSIDE

# Random numbers of a training sample that augmentation uses. Those that decide its drop path may follow.
RANDOM_NUMBERS = 4


class ClassSource(Source):
    """A source with a class for each sample.

    A subclass has `class_names` and `labels`, int64 [N]. `groups` maps names of columns to arrays [N].
    """

    task = "classification"
    groups = MappingProxyType({})
    _parts = None

    def __len__(self):
        return len(self.labels)

    def target(self, index, epoch=0):
        """Class of a sample: its place in `class_names`."""
        return int(self.labels[index])

    def parts(self):
        """The parts that the data set publishes, {"train": indices, "test": indices, ...}, or None."""
        return self._parts


@dataclass(frozen=True)
class Part:
    """Some samples of a labelled source: training, validation or test.

    A labelled source is a `data.sampling.Source` with `class_names` and `target(index, epoch)`: class ids,
    uint8 [F, T], for segmentation; an int for classification.
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
    """A part's samples with their targets, indexed by (epoch, number in the part).

    Args:
        fresh: pass the epoch to the source, so that a source of synthetic samples makes new ones.
        more_numbers: random numbers beyond `RANDOM_NUMBERS`.
    """

    def __init__(self, part, seed, fresh=False, more_numbers=0):
        self.part, self.seed, self.fresh = part, seed, fresh
        self.count = RANDOM_NUMBERS + more_numbers

    def __len__(self):
        return len(self.part)

    @property
    def sample_bytes(self):
        """Bytes of the largest sample of a batch, with its target and random numbers."""
        source = self.part.source
        return source.sample_bytes + max(8, math.prod(source.image_size)) + 4 * self.count

    def batch(self, keys):
        """As `data.sampling.MaskedSamples.batch`, and "target": int64 [B] or uint8 [B, F, T].

        "noise" holds the samples' random numbers, "index" their numbers in the part.
        """
        [epoch], source = {epoch for epoch, _ in keys}, self.part.source
        numbers = [number for _, number in keys]
        indices = [int(self.part.indices[number]) for number in numbers]
        source_epoch = epoch if self.fresh else 0
        noise = np.empty((len(keys), self.count), np.float32)
        for index, row in zip(indices, noise, strict=True):
            stream(self.seed, SAMPLE, epoch, index).generator().random(out=row, dtype=np.float32)
        return {
            "parts": source.load_many(indices, lambda place: None, source_epoch),
            "noise": noise,
            "index": np.array(numbers),
            "target": source.target_many(indices, source_epoch),
        }

    def describe(self, epoch, number):
        """Metadata of a sample, for error messages."""
        return self.part.source.describe(int(self.part.indices[number]), None, epoch if self.fresh else 0)


def shift_and_flip(images, masks, numbers, shift=True, flip=True):
    """Roll images and masks in time, and flip about half of them in frequency.

    Neither changes a carrier's class: frames start anywhere, and receivers exist with either sideband.
    Columns after the end of a recording stay where they are.

    Args:
        images: [B, C, F, T]; masks: [B, F, T]; numbers: float [B, 2 or more] in [0, 1), which decide.

    Returns:
        (images, masks), new tensors.
    """
    rows, columns = images.shape[2:]
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    place = torch.arange(columns, device=images.device)
    ends = ((images[:, 0] != OUTSIDE).any(dim=1) * (place + 1)).amax(dim=1, keepdim=True)  # (B, 1)
    moved = (numbers[:, :1] * ends).long() * shift
    times = torch.where(place < ends, (place + moved) % ends.clamp_min(1), place)  # (B, T)
    straight = torch.arange(rows, device=images.device).expand(len(images), -1)  # (B, F)
    frequencies = torch.where((numbers[:, 1:2] < 0.5) & flip, straight.flip(1), straight)
    place = (batch, frequencies[:, :, None], times[:, None, :])
    return images.transpose(0, 1)[:, *place].transpose(0, 1), masks[place]


def mix(images, targets, mixup, seed, epoch, first):
    """timm's Mixup or CutMix of pairs, decided by (seed, epoch, place of the pair in the epoch).

    Image 0 is mixed with image 1, image 2 with image 3, and so on. Batches of even sizes are thus mixed alike
    for any batch size. The last of an odd number of images stays as it is.

    Args:
        images: [B, C, F, T], changed in place; targets: int64 [B]; mixup: a `timm.data.Mixup`;
        first: place of images[0].

    Returns:
        (images, targets as shares of the classes: float [B, classes]).
    """
    paired = len(images) - len(images) % 2
    shares = []
    for start in range(0, paired, 2):
        # timm draws from numpy's global generator, whose state a checkpoint does not hold.
        np.random.seed(int(stream(seed, MIXING, epoch, first + start).generator().integers(2**32)))
        pair = slice(start, start + 2)
        images[pair], mixed = mixup(images[pair], targets[pair])
        shares.append(mixed)
    shares.append(mixup_target(targets[paired:], mixup.num_classes, smoothing=mixup.label_smoothing))
    return images, torch.cat(shares)


def class_weights(part, num_classes, kind, front_end):
    """Weights of the classes in the loss: float32 [classes], or None. Cells outside of the recording do not
    count.

    "median_frequency": the median of all class frequencies, divided by the class's own. A class frequency is
    the class's share of the cells in samples that contain it (Eigen and Fergus, arXiv 1411.4734). A class
    without training samples gets 0.
    """
    if kind == "none":
        return None
    cells, present = np.zeros(num_classes), np.zeros(num_classes)
    for number, target in enumerate(part.targets()):
        if front_end.pads and np.ndim(target):
            target = target[front_end.inside_of(part.describe(number)).numpy()]
        counts = np.bincount(np.ravel(target), minlength=num_classes)
        cells += counts
        present += np.where(counts > 0, counts.sum(), 0)
    frequency = np.divide(cells, present, out=np.full(num_classes, np.nan), where=present > 0)
    weights = np.nanmedian(frequency) / frequency
    return torch.from_numpy(np.nan_to_num(weights)).float()
