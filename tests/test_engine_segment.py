"""A recording through a model: tilings, averages and pictures, held against doing it all at once."""

import contextlib
import itertools
import math
import multiprocessing
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support import ROOT, write_ci16, write_sigmf
from torch import nn

import engine_segment
from engine_segment import Segmenter
from labelling import spans
from labelling.planes import PICTURE_COLUMNS, Overview, Run, Tiling
from labelling.region_pool import RegionPool
from labelling.regions import Limits
from radio.recordings import open_recording
from radio.samples import component_of
from radio.spectrogram import Spectrogram
from util.errors import UserError

CLASSES = ["Noise", "NR", "LTE"]


class Levels(nn.Module):
    """A network with a memory of where in its window a cell lies, so that overlapping windows differ."""

    def forward(self, images):
        ramp = torch.linspace(0, 1, images.shape[3])
        return torch.cat([torch.zeros_like(images), images + ramp, images * ramp], dim=1)


class Loud(nn.Module):
    """NR where it is louder than on the mean."""

    def forward(self, images):
        return torch.cat([torch.zeros_like(images), 9 * images, -99 + 0 * images], dim=1)


def segmenter(columns=16, rows=8, n_fft=32, duration_s=1e-3, model=Levels):
    return Segmenter(
        model().eval(),
        Spectrogram(n_fft, duration_s, (rows, columns)),
        CLASSES,
        torch.device("cpu"),
        contextlib.nullcontext,
    )


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


def planes_of(one, iq):
    """Of a window alone, as its definition has it: probabilities and dB, numpy [4, F, T]."""
    decibels = one.front_end.decibels(torch.from_numpy(iq)[None])
    probabilities = one.model(one.front_end.from_decibels(decibels)).softmax(dim=1)
    return torch.cat([probabilities, decibels], dim=1)[0].numpy()


def whole(recording, one, overlap):
    """All windows at once, summed on the grid of columns."""
    tiling = one.tiling(recording, overlap)
    sums, counts = np.zeros((4, 8, tiling.total)), np.zeros(tiling.total)
    for column in tiling.first_columns:
        sums[:, :, column : column + 16] += planes_of(
            one, recording.read(tiling.start(column), tiling.window)
        )
        counts[column : column + 16] += 1
    return sums / counts


def runs_of(one, channels, overlap, as_accelerator=False):
    """All runs put together: numpy [4, F, columns]; with the code of an accelerator, on the CPU."""
    tiling = one.tiling(channels[0], overlap)
    if as_accelerator:
        one._planes_on_cpu = one._planes_on_accelerator
    runs = list(one.runs(channels, tiling))
    ends = [0, *(run.ends[-1] for run in runs)]
    assert [run.first for run in runs] == ends[:-1]
    assert [run.planes.shape[2] for run in runs] == np.diff(ends).tolist()
    assert [end for run in runs for end in run.ends] == [*tiling.first_columns[1:], tiling.total]
    return torch.cat([run.planes for run in runs], dim=2).numpy()


@pytest.mark.parametrize("as_accelerator", [False, True])
@pytest.mark.parametrize(("windows", "workers"), [(1, 1), (3, 2), (50, 3)])
@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("duration_s", [1e-3, 1.03e-3, 12.7e-3, 0.4e-3])
def test_runs_are_the_means_of_the_windows_over_each_column(
    tmp_path, monkeypatch, duration_s, overlap, windows, workers, as_accelerator
):
    monkeypatch.setattr(engine_segment, "BATCH_WINDOWS_CPU", windows)
    monkeypatch.setattr(spans, "PIECE_BYTES", 4 * 700)
    [recording] = open_recording(write_ci16(tmp_path, duration_s=duration_s, sample_rate_hz=1e6))
    one = segmenter()
    one.workers = workers
    np.testing.assert_allclose(
        runs_of(one, [recording], overlap, as_accelerator), whole(recording, one, overlap), atol=1e-4
    )
    assert one.timings.signal_s == pytest.approx(duration_s)
    assert set(one.timings.seconds) == {"reading", "front end", "network"}


@pytest.mark.parametrize("as_accelerator", [False, True])
@pytest.mark.parametrize("datatype", ["ci16_le", "ci16_be", "cf32_le", "ci8", "cu8"])
def test_channels_see_one_band_and_are_averaged(tmp_path, datatype, as_accelerator):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 100, (4000, 2, 2)).astype(component_of(datatype)[0])
    channels = open_recording(write_sigmf(tmp_path, values.tobytes(), datatype, num_channels=2))
    both = runs_of(segmenter(), channels, 0.25, as_accelerator)
    each = [whole(channel, segmenter(), 0.25) for channel in channels]
    np.testing.assert_allclose(both, np.mean(each, axis=0), atol=1e-4)
    one_alone = runs_of(segmenter(), channels[1:], 0.25, as_accelerator)
    np.testing.assert_allclose(one_alone, each[1], atol=1e-4)


def bursts(tmp_path, datatype="ci16_le"):
    """A recording of 23.7 ms with 27 bursts."""
    rng = np.random.default_rng(0)
    loud = np.where(np.arange(23_700) % 900 < 350, 100, 1)
    values = np.round(rng.standard_normal((23_700, 2)) * loud[:, None]).clip(-127, 127)
    data = values.astype(component_of(datatype)[0]).tobytes()
    [recording] = open_recording(write_sigmf(tmp_path, data, datatype, sample_rate=1e6))
    return recording


def carriers_of(one, recording, overlap=0.3, watchers=(), progress=None):
    tiling = one.tiling(recording, overlap)
    finder = one.finder(1e6, None, tiling.window, recording.num_samples, Limits(0, 0, 0, 0.0))
    one.find([recording], tiling, finder, watchers, progress)
    return finder.finish()


@pytest.mark.parametrize("pooled", [False, True])
def test_a_stretch_is_given_to_its_finder_block_by_block(tmp_path, pooled):
    """By the thread that computes, or by other processes: as one block after another."""
    one, recording = segmenter(model=Loud), bursts(tmp_path)
    one.pool = RegionPool(2) if pooled else None
    tiling = one.tiling(recording, 0.3)
    expected = one.finder(1e6, None, tiling.window, recording.num_samples, Limits(0, 0, 0, 0.0))
    for run in one.runs([recording], tiling):
        for first, end in run.blocks():
            expected.add(run.probabilities[:, :, first:end].numpy(), run.first + first)
    done, seen = [], []
    found = carriers_of(one, recording, 0.3, [SimpleNamespace(add=seen.append)], done.append)
    assert found == expected.finish()
    assert len(found) > 20
    assert sum(done) == recording.num_samples
    assert [run.first for run in seen] == sorted({run.first for run in seen})
    if pooled:
        one.pool.close()
        assert not multiprocessing.active_children()


@pytest.mark.slow
def test_processes_end_with_the_one_that_they_look_for(tmp_path):
    """By SIGKILL too."""
    code = (
        f"import signal, sys; sys.path[:0] = [{str(ROOT)!r}]\nfrom labelling.region_pool import RegionPool\n"
        "pool = RegionPool(2); print(*pool._pool._processes, flush=True); signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert len(process.stdout.readline().split()) == 2
        process.kill()
        process.communicate(timeout=120)  # its output ends with the last process that could write to it


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("datatype", ["ci16_le", "ci8", "cf32_le"])
@pytest.mark.parametrize("overlap", [0.0, 0.3])
def test_a_gpu_finds_what_a_cpu_finds(tmp_path, monkeypatch, datatype, overlap):
    """In batches that follow each other while others are read, copied, and looked at."""
    monkeypatch.setattr(engine_segment, "BATCH_WINDOWS_ACCELERATOR", 3)
    monkeypatch.setattr(spans, "PIECE_BYTES", 4 * 700)
    recording = bursts(tmp_path, datatype)
    expected = carriers_of(segmenter(model=Loud), recording, overlap)
    one = segmenter(model=Loud)
    one.device, one.workers, one.pool = torch.device("cuda"), 4, RegionPool(2)
    one.front_end.to(one.device)
    for _ in range(5):
        found = carriers_of(one, recording, overlap)
        assert [(one.label, one.start_s, one.duration_s) for one in found] == [
            (one.label, one.start_s, one.duration_s) for one in expected
        ]
        edges = np.array(
            [[(one.freq_lower_hz, one.freq_upper_hz) for one in carriers] for carriers in (found, expected)]
        )
        assert abs(edges[0] - edges[1]).max() < 100
    one.pool.close()
    assert set(one.timings.seconds) == {"reading", "front end", "network", "carriers"}


def test_full_batches_are_computed_by_the_compiled_model(tmp_path, monkeypatch):
    """The compiler takes the graph as it is here."""
    compiled, sizes = torch.compile, []

    def backend(graph, inputs):
        return lambda *tensors: sizes.append(len(tensors[-1])) or graph(*tensors)

    monkeypatch.setattr(
        torch, "compile", lambda model, dynamic: compiled(model, dynamic=dynamic, backend=backend)
    )
    [recording] = open_recording(write_ci16(tmp_path, duration_s=10e-3, sample_rate_hz=1e6))
    one = segmenter(model=Loud)
    expected = runs_of(one, [recording], 0)
    one.compile()
    assert np.array_equal(runs_of(one, [recording], 0), expected)
    assert sizes == [4, 4]  # of 10 windows


def test_a_file_that_is_cut_meanwhile_is_named(tmp_path):
    meta = write_ci16(tmp_path, duration_s=20e-3, sample_rate_hz=1e6)
    [recording] = open_recording(meta)
    data = recording.layout.data_file
    os.truncate(data, data.stat().st_size // 2)
    for as_accelerator in (False, True):
        with pytest.raises(UserError, match=f"{data.name}: expected"):
            runs_of(segmenter(), [recording], 0, as_accelerator)


def test_the_picture_has_few_columns_whatever_the_length():
    rng = np.random.default_rng(0)
    total = 3 * PICTURE_COLUMNS - 5
    probabilities = rng.random((3, 4, total)).astype(np.float32)
    decibels = rng.random((4, total)).astype(np.float32)
    overview = Overview(total, 3, 4)
    for first, end in ((0, 1), (1, 2), (2, 17), (17, 2000), (2000, total)):
        planes = np.concatenate([probabilities, decibels[None]])[..., first:end]
        overview.add(Run(first, [end], torch.from_numpy(planes)))
    assert overview.image.shape == overview.classes.shape == (4, -(-total // 3))
    np.testing.assert_allclose(overview.image[:, 5], decibels[:, 15:18].mean(axis=1), rtol=1e-5)
    last = decibels[:, 3 * (overview.image.shape[1] - 1) :].mean(axis=1)
    np.testing.assert_allclose(overview.image[:, -1], last, rtol=1e-5)
    assert (overview.classes[:, 5] == probabilities[..., 15:18].sum(axis=2).argmax(axis=0)).all()


@pytest.mark.parametrize("as_accelerator", [False, True])
def test_real_samples_have_nothing_in_the_lower_half_of_the_band(tmp_path, as_accelerator):
    tone = np.cos(2 * np.pi * 0.2 * np.arange(5000)) + np.random.default_rng(0).normal(0, 1e-3, 5000)
    channels = open_recording(write_sigmf(tmp_path, (tone * 2**14).astype("<i2").tobytes(), "ri16_le"))
    planes = runs_of(segmenter(model=Loud), channels, 0.0, as_accelerator)
    assert planes[1, 4:].max() > 0.5
    assert (planes[0, :4] == 1).all()
    assert (planes[1:3, :4] == 0).all()
