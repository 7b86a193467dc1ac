"""A recording through a model: tilings, averages and pictures, held against doing it all at once."""

import contextlib
import itertools
import math

import numpy as np
import pytest
import torch
from support import write_ci16, write_sigmf
from torch import nn

from engine_segment import PICTURE_COLUMNS, Overview, Segmenter, Tiling
from radio.recordings import open_recording
from radio.spectrogram import Spectrogram

CLASSES = ["Noise", "NR", "LTE"]


class Levels(nn.Module):
    """A network with a memory of where in its window a cell lies, so that overlapping windows differ."""

    def forward(self, images):
        ramp = torch.linspace(0, 1, images.shape[3])
        return torch.cat([torch.zeros_like(images), images + ramp, images * ramp], dim=1)


def segmenter(columns=16, rows=8, n_fft=32, duration_s=1e-3):
    return Segmenter(Levels().eval(), Spectrogram(n_fft, duration_s, (rows, columns)), CLASSES, torch.device("cpu"),
                     contextlib.nullcontext)  # fmt: skip


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.95])
@pytest.mark.parametrize("num_samples", [1000, 1001, 1499, 2000, 10_007, 333])
def test_windows_tile_a_stretch_to_its_end(num_samples, overlap):
    tiling = Tiling.over(num_samples, 1000, 16, overlap)
    starts = [tiling.start(column) for column in tiling.first_columns]
    assert starts[0] == 0
    assert starts[-1] + tiling.window == num_samples
    assert all(0 < b - a <= round(1000 * (1 - overlap) + 1000 / 16) for a, b in itertools.pairwise(starts))
    assert tiling.total == math.ceil(num_samples * 16 / tiling.window)
    assert tiling.window == min(1000, num_samples)
    # a column is at the same time in every window, but in the last, where it is at most one column earlier
    for column, start in zip(tiling.first_columns[:-1], starts, strict=False):
        assert abs(column * tiling.column_samples - start) <= 0.5
    assert -0.5 <= tiling.first_columns[-1] * tiling.column_samples - starts[-1] < tiling.column_samples + 0.5


def whole(recording, one, overlap):
    """All windows at once, summed on the grid of columns."""
    tiling = one.tiling(recording, overlap)
    sums, counts = np.zeros((4, 8, tiling.total)), np.zeros(tiling.total)
    for column in tiling.first_columns:
        iq = recording.read(tiling.start(column), tiling.window)
        probabilities, decibels = one.windows([lambda iq=iq: iq])
        sums[:3, :, column : column + 16] += probabilities[0]
        sums[3, :, column : column + 16] += decibels[0]
        counts[column : column + 16] += 1
    return sums / counts


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("duration_s", [1e-3, 1.03e-3, 12.7e-3, 0.4e-3])
def test_blocks_are_the_means_of_the_windows_over_each_column(tmp_path, duration_s, overlap, workers):
    [recording] = open_recording(write_ci16(tmp_path, duration_s=duration_s, sample_rate_hz=1e6))
    one, done = segmenter(), []
    one.workers = workers
    blocks = list(one.blocks([recording], one.tiling(recording, overlap), done.append))
    expected = whole(recording, one, overlap)
    firsts = np.cumsum([0, *(block[2].shape[1] for block in blocks)])
    assert [block[0] for block in blocks] == firsts[:-1].tolist()
    np.testing.assert_allclose(np.concatenate([block[1] for block in blocks], axis=2), expected[:3], atol=1e-5)
    np.testing.assert_allclose(np.concatenate([block[2] for block in blocks], axis=1), expected[3], rtol=1e-4)
    assert sum(done) == recording.num_samples
    assert one.timings.signal_s == pytest.approx(duration_s)


def test_channels_see_one_band_and_are_averaged(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.integers(-1000, 1000, (4000, 2, 2)).astype("<i2")
    channels = open_recording(write_sigmf(tmp_path, values.tobytes(), "ci16_le", num_channels=2))
    one = segmenter()
    both = [block[1] for block in one.blocks(channels, one.tiling(channels[0], 0.25))]
    each = [[block[1] for block in one.blocks([channel], one.tiling(channel, 0.25))] for channel in channels]
    for mean, *parts in zip(both, *each, strict=True):
        np.testing.assert_allclose(mean, np.mean(parts, axis=0), atol=1e-6)


def test_the_picture_has_few_columns_whatever_the_length():
    rng = np.random.default_rng(0)
    total = 3 * PICTURE_COLUMNS - 5
    probabilities = rng.random((3, 4, total)).astype(np.float32)
    decibels = rng.random((4, total)).astype(np.float32)
    overview = Overview(total, 3, 4)
    for first, end in ((0, 1), (1, 17), (17, 2000), (2000, total)):
        overview.add(first, probabilities[..., first:end], decibels[:, first:end])
    assert overview.image.shape == overview.classes.shape == (4, -(-total // 3))
    np.testing.assert_allclose(overview.image[:, 5], decibels[:, 15:18].mean(axis=1), rtol=1e-5)
    last = decibels[:, 3 * (overview.image.shape[1] - 1) :].mean(axis=1)
    np.testing.assert_allclose(overview.image[:, -1], last, rtol=1e-5)
    assert (overview.classes[:, 5] == probabilities[..., 15:18].sum(axis=2).argmax(axis=0)).all()
