"""Windows of recordings for the front end `grid`: they cover recordings of any rate and length, and their masks
lie on the energy.
"""

import numpy as np
import pytest
import torch
from support import write_sigmf

from data.annotated import AnnotatedWindows, TiledRecordings
from data.batches import to_images
from data.sampling import View
from data.set_writer import spectrogram_set_writer
from data.spectrogram_set import SpectrogramSet
from data.windows import RecordingWindows
from radio.grid import OUTSIDE, Grid
from radio.recordings import open_recording
from util.errors import UserError

# 1.6 MHz x 2 ms; recordings up to 160 kHz have rows of 10 kHz
ROWS, COLUMNS = 16, 20
GRID = Grid(row_khz=100, narrow_row_khz=10, column_us=100, image_size=(ROWS, COLUMNS))
CENTER_HZ = 2.4e9
# name: (sample rate, duration, datatype, band of the signal from the centre, its time)
RECORDINGS = {
    "wide": (4e6, 6e-3, "ci16_le", (-1.2e6, 0.4e6), (1e-3, 4.5e-3)),
    "narrow": (1e6, 4e-3, "cf32_le", (-0.1e6, 0.3e6), (0.5e-3, 3e-3)),
    "narrow rows": (100e3, 4e-3, "ci16_le", (-30e3, 10e3), (1e-3, 4e-3)),
    "short": (2e6, 0.9e-3, "ci8", (-0.6e6, 0.2e6), (0.2e-3, 0.6e-3)),
    "real": (1e6, 4e-3, "ri16_le", (0.1e6, 0.4e6), (0.5e-3, 3e-3)),
    "wide real": (6e6, 4e-3, "ri16_le", (0.7e6, 2.3e6), (0.5e-3, 3e-3)),
}


def write(folder, name):
    """A recording with one signal, 40 dB above the noise and annotated as NR."""
    rate_hz, duration_s, datatype, (low_hz, high_hz), (start_s, end_s) = RECORDINGS[name]
    rng, count = np.random.default_rng(0), round(rate_hz * duration_s)
    iq, signal = (rng.standard_normal((count, 2)) @ [1, 1j] for _ in range(2))
    hertz, times = np.fft.fftfreq(count, 1 / rate_hz), np.arange(count) / rate_hz
    spectrum = np.fft.fft(signal) * ((hertz > low_hz) & (hertz < high_hz))
    iq += 100 * np.fft.ifft(spectrum) * ((times > start_s) & (times < end_s))
    values = iq.real if datatype.startswith("r") else np.stack([iq.real, iq.imag], axis=1)
    values *= 0.9 / np.abs(values).max()
    full_scale = {"i": 2 ** (7 if "8" in datatype else 15), "f": 1}[datatype[1]]
    dtype = {"16": "<i2", "8": "i1", "32": "<f4"}["8" if "8" in datatype else datatype[2:4]]
    annotation = {
        "core:sample_start": round(start_s * rate_hz),
        "core:sample_count": round((end_s - start_s) * rate_hz),
        "core:freq_lower_edge": CENTER_HZ + low_hz,
        "core:freq_upper_edge": CENTER_HZ + high_hz,
        "core:label": "NR",
    }
    captures = [{"core:sample_start": 0, "core:frequency": CENTER_HZ}]
    data = (values * full_scale).astype(dtype).tobytes()
    meta = write_sigmf(folder, data, datatype, name, captures, [annotation], sample_rate=rate_hz)
    [recording] = open_recording(meta)
    return recording


def image_of(source, index):
    kind, iq = source.load(index, None)
    return to_images([(kind, iq[None], [0])], GRID, torch.device("cpu"))[0]


@pytest.mark.parametrize("name", RECORDINGS)
def test_masks_lie_on_the_energy(tmp_path, name):
    source = AnnotatedWindows([write(tmp_path, name)], GRID, ["Noise", "NR"])
    found = 0
    for index in range(len(source)):
        _, iq = source.load(index, None)
        recording, _, count, row = source.window(index)
        assert len(iq) == count
        decibels = GRID.decibels(torch.from_numpy(iq)[None], recording.sample_rate_hz, row, recording.is_real)
        decibels, inside = decibels[0, 0], decibels[0, 0] != OUTSIDE
        mask = torch.from_numpy(source.target(index)) == 1
        # cells beside a border may go either way
        near, far = inside & ~grown(~mask), inside & ~grown(mask)
        if near.any() and far.any():
            assert decibels[near].min() > decibels[far].max() + 5, index
            for dim in (0, 1):  # means over rows, then over columns, beside each border
                lit = mask.any(dim=dim)
                lines = decibels.masked_fill(~(near.any(dim=1 - dim).unsqueeze(1 - dim) & inside), torch.nan)
                means = lines.nanmean(dim=dim)
                for border in lit.int().diff().nonzero().flatten().tolist():
                    pair = means[border : border + 2]
                    if pair.isfinite().all():
                        assert pair.diff().abs() > 5, (index, dim, border)
                        assert (pair[1] > pair[0]) == lit[border + 1], (index, dim, border)
                        found += 1
        assert torch.equal(image_of(source, index)[0] == OUTSIDE, ~inside)
        assert torch.equal(GRID.inside_of(source.describe(index, None)), inside)
    assert found >= 3


def grown(cells):
    """Cells [F, T] and their neighbours."""
    return torch.nn.functional.max_pool2d(cells[None].float(), 3, 1, 1)[0].bool()


@pytest.mark.parametrize("name", RECORDINGS)
def test_windows_side_by_side_cover_the_recording(tmp_path, name):
    recording = write(tmp_path, name)
    rate_hz = recording.sample_rate_hz
    for source in (TiledRecordings([recording], GRID), RecordingWindows.from_recordings([recording], GRID)):
        cells = set()
        for index in range(len(source)):
            about = source.describe(index, None)
            column = round(about["start_s"] * 1e4)
            rows, columns = GRID.inside_of(about).nonzero().T
            cells |= set(zip((rows + about["first_row"]).tolist(), (columns + column).tolist(), strict=True))
        total, half = GRID.num_rows(rate_hz), GRID.num_rows(rate_hz) // 2 if recording.is_real else 0
        every = {
            (row, column) for row in range(half, total) for column in range(round(recording.duration_s * 1e4))
        }
        assert cells == every


def test_training_windows_start_anywhere_in_time_and_frequency(tmp_path):
    source = RecordingWindows.from_recordings([write(tmp_path, "wide")], GRID)
    rng = np.random.default_rng(0)
    drawn = [source.window(0, rng) for _ in range(400)]
    assert {row for *_, row in drawn} == set(range(40 - ROWS + 1))
    assert len({start for _, start, _, _ in drawn}) > 300
    real = RecordingWindows.from_recordings([write(tmp_path, "wide real")], GRID)
    rows = {real.window(0, rng)[3] for _ in range(400)}
    assert rows == set(range(22, 60 - ROWS + 1))  # half of an image at most is outside
    [narrow] = {RecordingWindows.from_recordings([write(tmp_path, "narrow")], GRID).window(0, rng)[3]}
    assert narrow == -3


def test_a_batch_holds_the_windows_of_its_samples(tmp_path):
    recordings = [write(tmp_path, name) for name in RECORDINGS]
    source = RecordingWindows.from_recordings(recordings, GRID)
    indices = list(np.random.default_rng(0).permutation(len(source)))
    rng_of = [np.random.default_rng(index) for index in indices].__getitem__
    for draws in (lambda place: None, rng_of):
        parts = source.load_many(indices, draws, 0)
        assert all(isinstance(kind, View) for kind, *_ in parts)
        assert len(parts) == len(RECORDINGS)  # windows of one rate, length and type are transformed together
        images = to_images(parts, GRID, torch.device("cpu"))
        assert images.shape == (len(source), 1, ROWS, COLUMNS)
        for place, index in enumerate(indices):
            kind, iq = source.load(index, draws(place) and np.random.default_rng(index))
            own = to_images([(kind, iq[None], [0])], GRID, torch.device("cpu"))[0]
            torch.testing.assert_close(images[place], own, atol=1e-3, rtol=0)


def test_recordings_shorter_than_a_window_are_taken_and_those_below_an_fft_are_not(tmp_path, capsys):
    short = write(tmp_path, "short")
    least = write_sigmf(tmp_path, bytes(2 * 50), "ci8", "least", sample_rate=2e6)
    recordings = [short, *open_recording(least)]
    source = RecordingWindows.from_recordings(recordings, GRID)
    assert len(source) == 2  # side by side in frequency
    assert "1 of 2 recordings skipped" in capsys.readouterr().err
    assert len(TiledRecordings([short], GRID)) == 2
    assert capsys.readouterr().err == ""
    with pytest.raises(
        UserError, match=r"--column_us, --row_khz: expected recordings of at least an FFT.*least"
    ):
        RecordingWindows.from_recordings(recordings[1:], GRID)
    with pytest.raises(UserError, match="--column_us, --row_khz: expected recordings and windows"):
        TiledRecordings(recordings[1:], GRID)


def test_a_set_of_images_keeps_what_lies_outside(tmp_path):
    source = TiledRecordings([write(tmp_path, name) for name in RECORDINGS], GRID)
    with spectrogram_set_writer(tmp_path / "set", len(source), GRID) as packed:
        for index in range(len(source)):
            kind, iq = source.load(index, None)
            packed.add(kind(torch.from_numpy(iq)[None], GRID, None)[0].numpy(), source.describe(index, None))
    packed = SpectrogramSet(tmp_path / "set")
    for index in range(len(source)):
        about = packed.describe(index, None)
        kind, decibels = packed.load(index, None)
        assert np.array_equal(decibels[0] != OUTSIDE, GRID.inside_of(about).numpy())
        image = to_images([(kind, decibels[None], [0])], GRID, torch.device("cpu"))[0]
        torch.testing.assert_close(image, image_of(source, index), atol=0.02, rtol=0)
        assert abs(float(decibels[0][decibels[0] != OUTSIDE].mean())) < 0.02
        assert GRID.extent_of(about) == GRID.extent_of(source.describe(index, None))
        assert about["level_db"] < 0
