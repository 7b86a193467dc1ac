"""Batches in which everything random follows (seed, epoch, sample)."""

import signal
import subprocess
from functools import partial

import numpy as np
import pytest
import torch

from data.batches import EpochBatches, MaskedSamples, to_images
from data.feeding import make_loader
from data.sampling import (
    DECIBELS,
    IMAGE,
    IQ,
    ORDER,
    SAMPLE,
    Concatenated,
    Source,
    Subset,
    hold_out,
    split_by_group,
    stacked,
    stream,
)
from radio.spectrogram import Spectrogram
from util.errors import UserError


class Numbers(Source):
    """Sample i is an image full of i plus, in training, something random below 1."""

    def __init__(self, count, in_chans=1):
        self.count = count
        self.in_chans = in_chans
        self.image_size = (4, 4)

    def __len__(self):
        return self.count

    def load(self, index, rng, epoch=0):
        return IMAGE, np.full((self.in_chans, 4, 4), index + (rng.random() if rng else 0), np.float32)

    def describe(self, index, rng, epoch=0):
        return {"name": str(index + (rng.random() if rng else 0))}

    def split(self, fraction, seed):
        return split_by_group(self, [index // 2 for index in range(self.count)], fraction, seed, "pairs")


def all_batches(dataset, batches, workers=0):
    feed = make_loader(dataset, batches, workers, pin_memory=False).batches(
        partial(to_images, front_end=Spectrogram(), device=torch.device("cpu")), torch.device("cpu")
    )
    return [(batch["index"], batch["noise"], batch["images"]) for batch in feed]


def test_streams_of_sampling_are_independent_and_repeatable():
    keys = [(0, SAMPLE), (1, SAMPLE), (0, ORDER), (0, SAMPLE, 1), (0, SAMPLE, 0, 1), (0, SAMPLE, 1, 1)]
    draws = [stream(*key).generator().random(1000) for key in keys]
    assert all(
        (stream(*key).generator().random(1000) == draw).all() for key, draw in zip(keys, draws, strict=True)
    )
    together = np.concatenate(draws)
    assert len(np.unique(together)) == len(together)
    correlation = np.corrcoef(draws) - np.eye(len(keys))
    assert np.abs(correlation).max() < 0.15


def test_an_epoch_has_every_sample_once_in_an_order_of_its_own():
    batches = EpochBatches(10, 4, seed=5, shuffle=True)
    orders = []
    for epoch in range(3):
        batches.epoch = epoch
        listed = list(batches)
        assert [len(batch) for batch in listed] == [4, 4, 2]
        assert len(batches) == 3
        order = [index for batch in listed for _, index in batch]
        assert sorted(order) == list(range(10))
        assert {epoch} == {key[0] for batch in listed for key in batch}
        orders.append(order)
    assert orders[0] != orders[1] != orders[2]
    batches.epoch = 1
    assert [index for batch in batches for _, index in batch] == orders[1]
    batches.first_batch = 2
    assert [index for batch in batches for _, index in batch] == orders[1][8:]


def test_fewer_samples_than_a_batch_make_one():
    assert [len(batch) for batch in EpochBatches(3, 64, 0, shuffle=True)] == [3]


def test_workers_outlive_the_signals_of_others_and_end_by_the_main_process():
    batches = EpochBatches(10, 2, seed=5, shuffle=True)
    loader = make_loader(MaskedSamples(Numbers(10), 6, seed=1, training=True), batches, 1, pin_memory=False)
    iterator = iter(
        loader.batches(
            partial(to_images, front_end=Spectrogram(), device=torch.device("cpu")), torch.device("cpu")
        )
    )
    next(iterator)
    [worker] = loader.workers
    for number in (signal.SIGTERM, signal.SIGUSR1):
        subprocess.run(["kill", f"-{number.value}", str(worker.pid)], check=True)
    assert len(list(iterator)) == 4
    assert worker.is_alive()
    worker.terminate()
    worker.join(20)
    assert not worker.is_alive()


@pytest.mark.parametrize(
    ("num_samples", "batch_size", "parts"),
    [
        (42, 4, 4),
        (42, 8, 2),
        (42, 5, 3),
        (3, 4, 4),
        (16, 4, 4),
        (17, 4, 4),
        (1, 8, 2),
        (23, 3, 2),
    ],
)
def test_processes_share_the_samples_of_each_step(num_samples, batch_size, parts):
    """Every sample once, in the step that a single process would see it in; all have as many batches, pairs
    stay whole.
    """
    alone = list(EpochBatches(num_samples, batch_size * parts, 3, shuffle=True))
    shared = [
        EpochBatches(num_samples, batch_size, 3, shuffle=True, part=part, parts=parts)
        for part in range(parts)
    ]
    drawn = [list(batches) for batches in shared]
    assert {len(batches) for batches in drawn} == {len(alone)} == {len(batches) for batches in shared}
    for number, step in enumerate(alone):
        real = [batches[number][: share.real(number)] for batches, share in zip(drawn, shared, strict=True)]
        assert [key for batch in real for key in batch] == step
        assert all(batches[number] for batches in drawn)  # something to compute with
        assert all(
            share.real(number) in (0, len(batches[number]))
            for batches, share in zip(drawn, shared, strict=True)
        )
        firsts = [share.first(number) for batch, share in zip(real, shared, strict=True) if batch]
        assert firsts == [
            number * batch_size * parts + sum(map(len, real[:part])) for part in range(len(firsts))
        ]
        if batch_size % 2 == 0:
            assert all(first % 2 == 0 for first in firsts)

    shared[0].first_batch = 1
    assert list(shared[0]) == drawn[0][1:]


def test_a_batch_in_which_somebody_has_a_single_sample_can_be_left_out():
    def kept(num_samples):
        return EpochBatches(num_samples, 4, 0, shuffle=False, drop_single=True, parts=2).kept_samples

    assert [kept(num_samples) for num_samples in (16, 17, 18, 20, 21, 22)] == [16, 16, 16, 20, 16, 22]


def test_batches_do_not_depend_on_workers_batch_size_or_start():
    dataset = MaskedSamples(Numbers(10), 6, seed=1, training=True)

    def by_sample(batch_size, workers=0, first_batch=0):
        batches = EpochBatches(10, batch_size, seed=1, shuffle=True)
        batches.epoch, batches.first_batch = 3, first_batch
        return {
            int(index): (noise, values)
            for indices, noises, images in all_batches(dataset, batches, workers)
            for index, noise, values in zip(indices, noises, images, strict=True)
        }

    reference = by_sample(1)
    for other in (by_sample(4), by_sample(3, workers=2), by_sample(2, first_batch=3)):
        assert len(other) in (10, 4)
        for index, (noise, values) in other.items():
            assert torch.equal(noise, reference[index][0])
            assert torch.equal(values, reference[index][1])
    noises = torch.stack([noise for noise, _ in reference.values()])
    assert len(torch.unique(noises)) == noises.numel()


def test_training_changes_with_the_epoch_and_validation_does_not():
    def sample(training, epoch):
        """(noise, image) of a sample."""
        batch = MaskedSamples(Numbers(3), 6, seed=0, training=training).batch([(epoch, 1)])
        return batch["noise"], batch["parts"][0][1]

    for first, second in zip(sample(True, 0), sample(True, 1), strict=True):
        assert not np.array_equal(first, second)
    for first, second in zip(sample(False, 0), sample(False, 7), strict=True):
        assert np.array_equal(first, second)
    assert (sample(False, 0)[1] == 1).all()
    assert not np.array_equal(sample(False, 0)[0], sample(True, 0)[0])


def test_describe_says_what_was_loaded():
    dataset = MaskedSamples(Numbers(9), 6, seed=2, training=True)
    assert np.float32(dataset.describe(4, 7)["name"]) == dataset.batch([(4, 7)])["parts"][0][1].flat[0]


def test_windows_of_any_length_come_back_in_their_places():
    """A batch mixes sample rates; each window's image is the one that it has alone."""
    front_end = Spectrogram(64, image_size=(16, 16))
    rng = np.random.default_rng(0)
    lengths = [300, 200, 300, 64, 200, 300]
    windows = [(rng.standard_normal(n) + 1j * rng.standard_normal(n)).astype(np.complex64) for n in lengths]
    parts = stacked([(IQ, window) for window in windows])
    assert sorted(len(values) for _, values, _ in parts) == [1, 2, 3]
    images = to_images(parts, front_end, torch.device("cpu"))
    expected = torch.cat([front_end(torch.from_numpy(window)[None]) for window in windows])
    torch.testing.assert_close(images, expected)


def test_a_set_and_a_recording_in_one_batch_meet_as_the_same_image():
    front_end = Spectrogram(64, image_size=(16, 16))
    rng = np.random.default_rng(0)
    iq = (rng.standard_normal(500) + 1j * rng.standard_normal(500)).astype(np.complex64)
    decibels = front_end.decibels(torch.from_numpy(iq)[None])[0].numpy()
    packed = (decibels - decibels.mean()).astype(np.float16)
    images = to_images(stacked([(IQ, iq), (DECIBELS, packed), (IQ, iq)]), front_end, torch.device("cpu"))
    assert torch.equal(images[0], images[2])
    torch.testing.assert_close(images[1], images[0], atol=5e-3, rtol=0)


@pytest.mark.parametrize(
    ("count", "fraction", "expected"), [(10, 0.1, 1), (10, 0.25, 2), (2, 0.01, 1), (2, 0.99, 1), (5, 0.5, 2)]
)
def test_hold_out(count, fraction, expected):
    names = [f"r{n:02d}" for n in range(count)]
    held_out = hold_out(names * 3, fraction, seed=4)
    assert len(held_out) == expected
    assert held_out <= set(names)
    assert hold_out(reversed(names), fraction, seed=4) == held_out
    if count == 10:
        assert any(hold_out(names, fraction, seed) != held_out for seed in range(10))


def test_groups_are_never_divided():
    training, held_out = Numbers(9).split(0.4, seed=1)
    sides = [{int(index) // 2 for index in part.indices} for part in (training, held_out)]
    assert not sides[0] & sides[1]
    assert len(training) + len(held_out) == 9
    assert held_out.load(0, None)[1].flat[0] == held_out.indices[0]
    with pytest.raises(UserError, match=r"--val_fraction.*two pairs.*found 1"):
        Numbers(2).split(0.4, seed=1)


def test_concatenated_sources():
    both = Concatenated([Numbers(3), Subset(Numbers(10), [7, 5])])
    assert len(both) == 5
    assert [both.load(i, None)[1].flat[0] for i in range(5)] == [0, 1, 2, 7, 5]
    assert both.describe(4, None) == {"name": "5"}
    parts = Concatenated([Numbers(4), Numbers(6)]).split(0.34, seed=0)
    assert [len(part) for part in parts] == [6, 4]
    with pytest.raises(UserError, match=r"channels.*\[1, 3\]"):
        Concatenated([Numbers(3), Numbers(3, in_chans=3)])
