"""data.labelled: labelled samples, and what augmentation may and may not do to them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from timm.data import Mixup

from data.labelled import LabelledSamples, Part, class_weights, mix, shift_and_flip
from data.sampling import IMAGE, Source
from radio.grid import OUTSIDE, Grid
from radio.spectrogram import Spectrogram

ROWS, COLUMNS = 6, 10
FRONT_END = Spectrogram()


class Numbered(Source):
    """Images and masks that say which sample of which epoch they are."""

    task = "segmentation"

    def __len__(self):
        return 9

    def load(self, index, rng, epoch=0):
        return IMAGE, np.full((1, 2, 3), index + 100 * epoch, np.float32)

    def target(self, index, epoch=0):
        return np.full((2, 3), (index + 100 * epoch) % 256, np.uint8)

    def describe(self, index, rng, epoch=0):
        return {"name": f"{index} of {epoch}"}


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    masks = rng.integers(0, 3, (8, ROWS, COLUMNS)).astype(np.uint8)
    images = np.stack([masks * 10.0, masks * 20.0], axis=1).astype(
        np.float32
    )  # two channels, that tell the class
    return (
        torch.from_numpy(images),
        torch.from_numpy(masks),
        torch.from_numpy(rng.random((8, 4), dtype=np.float32)),
    )


def test_images_and_masks_move_together_as_numpy_rolls_and_flips(pair):
    images, masks, numbers = pair
    moved, moved_masks = shift_and_flip(images, masks, numbers)

    assert moved_masks.dtype == torch.uint8
    assert 0 < (numbers[:, 1] < 0.5).sum() < 8
    for image, mask, number, found, found_mask in zip(
        images, masks, numbers, moved, moved_masks, strict=True
    ):
        for before, after in ((mask[None], found_mask[None]), (image, found)):
            before = before.numpy()[:, ::-1] if number[1] < 0.5 else before.numpy()
            np.testing.assert_array_equal(after, np.roll(before, -int(number[0] * COLUMNS), axis=2))


@pytest.mark.parametrize(("shift", "flip"), [(True, False), (False, True), (False, False)])
def test_each_augmentation_can_be_left_out(pair, shift, flip):
    images, masks, numbers = pair
    moved, moved_masks = shift_and_flip(images, masks, numbers, shift, flip)

    torch.testing.assert_close(moved[:, 0], moved_masks * 10.0)
    keeps_columns = torch.equal(moved_masks.sort(1).values, masks.sort(1).values)
    keeps_rows = torch.equal(moved_masks.sort(2).values, masks.sort(2).values)
    assert (keeps_columns, keeps_rows) == (not shift, not flip)


@pytest.mark.parametrize("value", [0.0, 1 - 2**-24])
def test_the_ends_of_the_random_numbers_are_in_range(pair, value):
    images, masks, numbers = pair
    moved, _ = shift_and_flip(images, masks, torch.full_like(numbers, value))
    torch.testing.assert_close(moved.sum(), images.sum())


def test_classes_weigh_the_median_frequency_over_their_own():
    """Two samples of 4 cells: class 0 has 3 of 8, class 1 has 1 of 4 (one sample lacks it), class 2 has 4 of
    8.
    """
    masks = [np.array([[0, 0], [1, 2]], np.uint8), np.array([[0, 2], [2, 2]], np.uint8)]
    source = SimpleNamespace(target=lambda index: masks[index])

    assert class_weights(Part(source, np.arange(2)), 4, "none", FRONT_END) is None
    weights = class_weights(Part(source, np.arange(2)), 4, "median_frequency", FRONT_END)
    torch.testing.assert_close(weights, torch.tensor([0.375 / 0.375, 0.375 / 0.25, 0.375 / 0.5, 0.0]))
    labels = SimpleNamespace(target=lambda index: [0, 0, 0, 1][index])  # a class for each sample
    weights = class_weights(Part(labels, np.arange(4)), 2, "median_frequency", FRONT_END)
    torch.testing.assert_close(weights, torch.tensor([1.0, 1.0]))


def test_cells_outside_of_the_recording_are_of_no_class():
    front_end = Grid(image_size=(4, 4), row_khz=100, narrow_row_khz=None, column_us=100)
    mask = np.zeros((4, 4), np.uint8)
    mask[1, :2] = 1  # a narrow and short recording: rows 1 and 2, columns 0 to 2
    about = {"sample_rate_hz": 200e3, "num_samples": 60, "first_row": -1}
    source = SimpleNamespace(target=lambda index: mask, describe=lambda index, rng: about)
    weights = class_weights(Part(source, np.arange(1)), 2, "median_frequency", front_end)
    median = (4 / 6 + 2 / 6) / 2
    torch.testing.assert_close(weights, torch.tensor([median / (4 / 6), median / (2 / 6)]))
    real = front_end.inside_of(about | {"is_real": True})
    assert real.nonzero().tolist() == [[2, 0], [2, 1], [2, 2]]


def test_a_short_recording_is_rolled_within_itself():
    images = torch.arange(12.0).repeat(3, 2, 4, 1)
    images[0, :, :, 5:], images[1, :, 1] = OUTSIDE, OUTSIDE
    images[2] = OUTSIDE
    masks, numbers = images[:, 0].nan_to_num(neginf=0).to(torch.uint8), torch.tensor([[0.5, 0.9]] * 3)
    moved, moved_masks = shift_and_flip(images, masks, numbers, flip=False)
    assert moved[0, 1, 2].tolist() == [2, 3, 4, 0, 1, *[OUTSIDE] * 7]
    assert moved_masks[0, 2].tolist() == [2, 3, 4, 0, 1, *[0] * 7]
    assert torch.equal(moved[1], images[1].roll(-6, dims=2))
    assert torch.equal(moved[2], images[2])


def test_samples_are_those_of_their_part_and_epochs_are_the_same_unless_fresh():
    part = Part(Numbered(), np.array([7, 2, 5]))
    for fresh, first in ((False, 2), (True, 302)):
        batch = LabelledSamples(part, 0, fresh).batch([(3, number) for number in (1, 2)])
        [(kind, images, _)] = batch["parts"]
        assert kind == IMAGE
        assert images[:, 0, 0, 0].tolist() == [first, first + 3]
        assert batch["target"][:, 0, 0].tolist() == [first % 256, (first + 3) % 256]
        assert batch["target"].dtype == np.uint8
        assert batch["index"].tolist() == [1, 2]
    assert LabelledSamples(part, 0, True).describe(3, 1) == {"name": "2 of 3"}
    assert part.describe(0) == {"name": "7 of 0"}


def test_a_samples_random_numbers_depend_on_seed_epoch_and_sample_alone():
    part = Part(Numbered(), np.array([7, 2, 5]))

    def numbers(seed, epoch, number, part=part):
        return tuple(LabelledSamples(part, seed).batch([(epoch, number)])["noise"][0].tolist())

    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    assert len({numbers(*key) for key in keys}) == len(keys)
    assert numbers(0, 1, 2) == numbers(0, 1, 0, Part(Numbered(), np.array([5])))


def one_hot_images(count=7, classes=3):
    """Images that are constant, each of a channel of its own; and labels."""
    images = torch.eye(count)[:, :, None, None].expand(-1, -1, 4, 4).clone()
    return images, torch.arange(count) % classes


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
@pytest.mark.parametrize("count", [6, 7, 1])
def test_labels_are_mixed_as_their_images_are(mixup, cutmix, count):
    images, targets = one_hot_images(count)
    mixed, shares = mix(
        images.clone(), targets, Mixup(mixup, cutmix, label_smoothing=0, num_classes=3), 0, 1, 2
    )

    weights = mixed.mean(dim=(2, 3))  # of each image in each: [B, B]
    torch.testing.assert_close(shares, weights @ torch.nn.functional.one_hot(targets, 3).float())
    torch.testing.assert_close(shares.sum(1), torch.ones(count))
    if count % 2:
        torch.testing.assert_close(mixed[-1], images[-1])
    if count > 1:
        assert not torch.equal(mixed, images)


def test_smoothing_holds_for_mixed_and_odd_samples_alike():
    images, targets = one_hot_images(3)
    _, shares = mix(images, targets, Mixup(0.8, label_smoothing=0.3, num_classes=3), 0, 0, 0)
    assert shares.min() == pytest.approx(0.1)
    torch.testing.assert_close(shares[2], torch.tensor([0.1, 0.1, 0.8]))


def test_pairs_are_mixed_alike_however_an_epoch_is_cut_into_batches():
    images, targets = one_hot_images(6)
    mixup = Mixup(0.8, 1.0, num_classes=3)
    whole = mix(images.clone(), targets, mixup, 0, 1, 10)
    parts = [
        mix(images[rows].clone(), targets[rows], mixup, 0, 1, 10 + rows.start)
        for rows in (slice(0, 2), slice(2, 6))
    ]
    for together, apart in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(together, torch.cat(apart))


def test_mixing_depends_on_seed_epoch_and_place_alone():
    def shares(*key):
        images, targets = one_hot_images(6)
        return mix(images, targets, Mixup(0.8, num_classes=3), *key)[1]

    first = shares(0, 1, 2)
    np.random.seed(5)
    assert torch.equal(shares(0, 1, 2), first)
    for other in ((1, 1, 2), (0, 2, 2), (0, 1, 3)):
        assert not torch.equal(shares(*other), first)
