"""Strong blocks, and noise that a model is not sure of."""

import numpy as np
import pytest
import torch

from labelling.strong import SURE_OF_NOISE, strong_blocks, without_doubtful_noise

COLUMN_S = 5e-4  # four columns make a block


@pytest.fixture
def decibels():
    return torch.from_numpy(np.random.default_rng(0).normal(-90, 3, (64, 40)).astype(np.float32))


def planes_of(decibels, noise):
    """Planes [4, F, T] of a model that gives class 0 `noise`, and of the rest three quarters to class 2."""
    chances = [torch.full_like(decibels, one) for one in (noise, 0.25 * (1 - noise), 0.75 * (1 - noise))]
    return torch.stack([*chances, decibels])


def test_a_block_is_strong_where_a_signal_lasts(decibels):
    assert not strong_blocks(decibels, COLUMN_S)[0].any()
    decibels[5:9, 8:24] += 25
    decibels[50, 8:10] += 60  # half of a block
    decibels[30:34] += 60  # at the centre: a receiver's DC
    strong, size = strong_blocks(decibels, COLUMN_S)
    assert (size, tuple(strong.shape)) == (4, (64, 10))
    assert strong.nonzero().tolist() == [[row, block] for row in range(5, 9) for block in range(2, 6)]


def test_cells_outside_of_the_recording_are_no_floor(decibels):
    decibels[5:9, 8:24] += 25
    alone = strong_blocks(decibels, COLUMN_S)[0]
    around = torch.full((3, 104, 160), -torch.inf)
    around[:, 20:84, :40] = decibels
    strong, _ = strong_blocks(around, COLUMN_S)
    assert torch.equal(strong[:, 20:84, :10], alone.expand(3, -1, -1))
    assert strong.sum() == 3 * alone.sum()
    assert not strong_blocks(torch.full((64, 40), -torch.inf), COLUMN_S)[0].any()


def test_doubtful_noise_becomes_the_likeliest_signal(decibels):
    decibels[5:9, 8:24] += 25
    found = without_doubtful_noise(planes_of(decibels, SURE_OF_NOISE - 0.1), COLUMN_S)
    changed = torch.zeros(64, 40, dtype=torch.bool)
    changed[5:9, 8:24] = True
    assert torch.equal(found[0] == 0, changed)
    assert torch.equal(found[:-1].argmax(0) == 2, changed)
    torch.testing.assert_close(found[2][changed], torch.full((64,), 0.75))
    torch.testing.assert_close(found[:-1].sum(0), torch.ones(64, 40))
    assert torch.equal(found[-1], decibels)


@pytest.mark.parametrize(("noise", "loud_db"), [(SURE_OF_NOISE + 0.05, 25), (0.6, 10)])
def test_sure_noise_and_weak_signals_stay(decibels, noise, loud_db):
    decibels[5:9, 8:24] += loud_db
    planes = planes_of(decibels, noise)
    assert torch.equal(without_doubtful_noise(planes.clone(), COLUMN_S), planes)
