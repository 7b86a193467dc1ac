"""The front end `grid`: where it says that energy lies, what counts as outside, and what its channels measure."""

import itertools
import math

import numpy as np
import pytest
import torch
from support import CAPTURES, needs_captures
from test_scene import FULL, one_carrier

from data.sampling import View, is_iq
from radio import front_end
from radio.cyclic_prefix import CP_MEAN, CP_SCALE
from radio.grid import OUTSIDE, Grid
from radio.recordings import open_recording
from radio.rng import Stream
from radio.scenes.distractors import Distractor, add
from radio.scenes.lte import LteCell
from radio.scenes.nr import Coreset, NrCarrier
from radio.scenes.receiver import Receiver
from radio.scenes.scene import render
from radio.scenes.traffic import Traffic
from radio.spectrogram import Spectrogram

# Narrow and wide, even and odd FFT lengths, rates that no row and no column divides.
RATES_HZ = (30e3, 480e3, 1.92e6, 2.048e6, 3.36e6, 3.4e6, 10e6, 19.2e6, 20.16e6, 23.04e6, 40e6, 61.44e6)
COLUMN_S = 250e-6 / 7
IDLE = Traffic(users=0)


def grid(columns=24, rows=112, **settings):
    return Grid(image_size=(rows, columns), **settings)


def noise(samples, seed=0, batch=1, level=1.0):
    generator = torch.Generator().manual_seed(seed)
    return level * torch.randn(batch, samples, generator=generator, dtype=torch.complex64)


def tone(freq_hz, rate_hz, samples):
    cycles = torch.arange(samples, dtype=torch.float64) * (freq_hz / rate_hz)
    return torch.polar(torch.ones(samples), (2 * math.pi * cycles).float())[None]


def window_of(one, rate_hz, **kwargs):
    return noise(one.num_samples(rate_hz), **kwargs)


# Where energy lies


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_a_tone_lies_in_the_row_that_the_axis_names(rate_hz):
    one = grid(columns=6)
    count = one.num_samples(rate_hz)
    rows, edges = one.num_rows(rate_hz), one.frequency_edges_hz(rate_hz, 2.4e9)
    centres = one.frequency_axis_hz(rate_hz, 2.4e9)
    assert len(centres) == rows
    assert torch.equal((edges[1:] + edges[:-1]) / 2, centres)
    for row in {0, rows // 3, rows // 2, rows - 1}:
        # the middle of the row's part in the band: beyond it a tone would alias
        low, high = ((edges[row : row + 2] - 2.4e9) / rate_hz).clamp(-0.5, 0.5).tolist()
        plane = one.planes(tone((low + high) / 2 * rate_hz, rate_hz, count), rate_hz)[0, 0]
        assert plane.shape == (rows, 6)
        assert (plane.argmax(dim=0) == row).all()


def test_sizes_and_axes_say_the_same():
    one = grid()
    for rate_hz in RATES_HZ:
        row_hz = one.row_hz(rate_hz)
        assert row_hz == (30e3 if rate_hz <= 3.36e6 else 180e3)  # 112 rows of 30 kHz are 3.36 MHz
        edges = one.frequency_edges_hz(rate_hz)
        torch.testing.assert_close(edges.diff(), torch.full_like(edges[1:], row_hz))
        assert float(edges[0]) == pytest.approx(-float(edges[-1]))  # symmetric about DC
        assert abs(float(edges[-1]) - rate_hz / 2) <= max(row_hz / 2, row_hz - rate_hz / 2)
        assert one.num_columns(one.num_samples(rate_hz), rate_hz) == 24
        assert one.least_samples(rate_hz) >= COLUMN_S * rate_hz
        first = one.first_rows(rate_hz)[0]
        low, high = one.extent(rate_hz, 1e9)[2:]
        assert low == pytest.approx(1e9 + float(edges[0]) + first * row_hz)
        assert high - low == pytest.approx(112 * row_hz)
    assert torch.equal(
        one.time_axis_s(), (torch.arange(24, dtype=torch.float64) + 0.5) * (one.column_us * 1e-6)
    )
    assert one.extent(20e6)[:2] == (0.0, one.duration_s)
    assert one.duration_s == pytest.approx(24 * COLUMN_S)


@pytest.mark.parametrize("rate_hz", [2.4e6, 10e6, 19.2e6, 61.44e6])
def test_an_impulse_lies_in_its_column(rate_hz):
    one = grid(columns=9)
    count = one.num_samples(rate_hz)
    for column in (0, 1, 4, 8):
        iq = noise(count, level=1e-3)
        iq[0, min(count - 1, round(float(one.time_axis_s()[column]) * rate_hz))] = 1
        loudest = one.planes(iq, rate_hz)[0, 0].mean(dim=0).argmax()
        assert loudest == column


@pytest.mark.parametrize("rate_hz", [480e3, 2.048e6, 20e6, 46.08e6])
def test_power_is_that_of_the_samples(rate_hz):
    """White noise of power P has P / rate x row in a row; the transform counts a tone of magnitude 1 as 0 dB."""
    one = grid(columns=200)
    iq = window_of(one, rate_hz)
    power = 10 ** (one.planes(iq, rate_hz)[0, 0, 1:-1] / 10)  # the outer rows may lie half outside
    per_bin = 1.5 / one.least_samples(rate_hz)  # 1.5 bins: the noise bandwidth of Hann's window
    assert power.mean().item() == pytest.approx(per_bin, rel=0.05)


def test_rows_agree_with_a_transform_by_numpy():
    rate_hz, one = 20e6, grid(columns=5)
    iq, n_fft = window_of(one, 20e6), one.least_samples(20e6)
    hann = np.hanning(n_fft + 1)[:-1]
    expected = []
    for middle in (np.arange(10) + 0.5) * (COLUMN_S * rate_hz / 2):
        start = int(np.clip(np.round(middle - n_fft / 2), 0, iq.shape[1] - n_fft))
        bins = np.fft.fftshift(
            np.abs(np.fft.fft(iq[0, start : start + n_fft].numpy() * hann / hann.sum())) ** 2
        )
        hertz = (np.arange(n_fft) - n_fft // 2) * rate_hz / n_fft
        edges = one.frequency_edges_hz(rate_hz).numpy()
        low, high = hertz[:, None] - rate_hz / n_fft / 2, hertz[:, None] + rate_hz / n_fft / 2
        shares = np.clip(np.minimum(high, edges[1:]) - np.maximum(low, edges[:-1]), 0, None)
        expected.append(bins @ (shares / shares.sum(axis=0)))
    expected = np.array(expected).reshape(5, 2, -1).mean(axis=1).T
    np.testing.assert_allclose(one.planes(iq, rate_hz)[0, 0], 10 * np.log10(expected), atol=1e-3)


# What must not matter


@pytest.mark.parametrize("exponent", [-60, -3, 60])
def test_no_gain_changes_an_image(exponent):
    one, rate_hz = grid(channels=("power", "cp")), 10e6
    iq = window_of(one, rate_hz, batch=2)
    first, second = (one(each, rate_hz) for each in (iq, iq * 2.0**exponent))
    torch.testing.assert_close(first, second, atol=1e-4, rtol=0)
    torch.testing.assert_close(one(iq * 0.3, rate_hz), first, atol=1e-3, rtol=0)


def test_integers_floats_and_complex_samples_agree():
    one, rate_hz = grid(channels=("power", "cp")), 2.4e6
    pairs = torch.view_as_real(window_of(one, rate_hz, batch=2, level=20.0)).round()
    expected = one.planes(torch.view_as_complex(pairs / 128), rate_hz)
    for stored in (pairs.to(torch.int8), (pairs * 256).to(torch.int16), pairs / 128):
        torch.testing.assert_close(one.planes(stored, rate_hz), expected, atol=1e-4, rtol=0)
    strided = (pairs / 128).transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(one.planes(strided, rate_hz), expected, atol=1e-4, rtol=0)
    conjugate = torch.view_as_complex(pairs / 128).conj()
    mirrored = one.planes(conjugate, rate_hz)[:, 0].flip(1)
    torch.testing.assert_close(mirrored[:, 1:-1], expected[:, 0, 1:-1], atol=1e-3, rtol=0)


@pytest.mark.parametrize("rate_hz", [1.92e6, 20e6])
def test_a_batch_is_its_samples(rate_hz):
    one = grid(channels=("power", "cp"))
    iq = window_of(one, rate_hz, batch=3)
    together = one.planes(iq, rate_hz)
    for number in range(3):
        torch.testing.assert_close(one.planes(iq[number : number + 1], rate_hz)[0], together[number])


def test_windows_may_share_memory():
    one, rate_hz = grid(), 2e6
    count = one.num_samples(rate_hz)
    pairs = torch.view_as_real(noise(3 * count)[0])
    windows = pairs.unfold(0, count, count // 2).transpose(1, 2)
    expected = one.planes(torch.view_as_complex(windows.contiguous()), rate_hz)
    assert torch.equal(one.planes(windows, rate_hz), expected)


def test_a_signal_looks_alike_at_every_sample_rate():
    """The purpose of the front end: a burst of 2 MHz has the same cells at 10, 23.04 and 61.44 MHz."""
    images, one = [], grid(columns=20)
    for rate_hz in (10e6, 23.04e6, 61.44e6):
        count = one.num_samples(rate_hz)
        spectrum = torch.zeros(count, dtype=torch.complex64)
        hertz = torch.fft.fftfreq(count, 1 / rate_hz)
        band = (hertz.abs() < 1e6).nonzero().flatten()
        phase = torch.rand(1450, generator=torch.Generator().manual_seed(0))  # of 1.4 kHz each
        spectrum[band] = torch.polar(torch.ones(len(band)), 2 * math.pi * phase[: len(band)])
        iq = torch.fft.ifft(spectrum)[None] * count + noise(count, level=0.03 * (rate_hz / 10e6) ** 0.5)
        middle = one.num_rows(rate_hz) / 2
        rows = slice(round(middle) - 3, round(middle) + 3)
        images.append(one.planes(iq, rate_hz)[0, 0, rows].mean())
    assert max(images) - min(images) < 1.0


# What lies outside


def outside_of(images):
    return images[:, 0] == OUTSIDE


def test_a_narrow_recording_lies_in_the_middle_of_its_image():
    one = grid()
    image = one(window_of(one, 10e6), 10e6)  # 55.6 rows, so 56
    assert outside_of(image)[0].all(dim=1).nonzero().flatten().tolist() == [*range(28), *range(84, 112)]
    assert not outside_of(image)[0, 28:84].any()
    counted = image[0, 0, 28:84]
    assert counted.mean().abs() < 1e-5
    assert counted.std(correction=0).item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("columns", "kept"), [(10.0, 10), (10.4, 10), (10.6, 11), (0.9, 1), (24.4, 24)])
def test_a_short_recording_has_the_columns_that_half_of_which_are_there(columns, kept):
    one, rate_hz = grid(), 19.2e6
    count = max(one.least_samples(rate_hz), round(columns * COLUMN_S * rate_hz))
    assert one.num_columns(count, rate_hz) == kept
    image = one(noise(count), rate_hz)
    assert outside_of(image)[0].all(dim=0).nonzero().flatten().tolist() == [*range(kept, 24)]


def test_the_lower_half_of_real_samples_is_outside():
    one = grid()
    for rate_hz in (10e6, 10.08e6, 2.4e6):
        iq = window_of(one, rate_hz).real.to(torch.complex64)
        plane = one.planes(iq, rate_hz, is_real=True)[0, 0]
        rows = len(plane)
        assert (plane[: rows // 2] == OUTSIDE).all()
        assert torch.isfinite(plane[rows // 2 :]).all()


def test_zero_padding_is_outside_and_weak_signals_are_not():
    one, rate_hz = grid(), 10e6
    iq = window_of(one, rate_hz)
    border = iq.shape[1] // 2
    iq[:, border:] = 0
    assert (outside_of(one(iq, rate_hz))[0, 28:84].sum(dim=1) == 11).all()  # the border column has a half
    iq[:, border:] = 1e-12 * noise(iq.shape[1] - border)
    image = one(iq, rate_hz)
    assert not outside_of(image)[0, 28:84].any()
    assert image[0, 0, 28:84].min() > -5  # raised to DYNAMIC_RANGE_DB below the strongest
    assert outside_of(one(torch.zeros_like(iq), rate_hz)).all()


def test_what_lies_outside_changes_no_cell_inside():
    one, rate_hz = grid(channels=("power", "cp")), 19.2e6
    decibels = one.decibels(window_of(one, rate_hz, batch=2), rate_hz) + 37.0
    decibels[:, :, :, 15:] = OUTSIDE
    image = one.from_decibels(decibels)
    inside = decibels[:, 0] != OUTSIDE
    for number in range(2):
        kept = decibels[number, 0][inside[number]]
        expected = (kept - kept.mean()) / kept.std(correction=0)
        torch.testing.assert_close(image[number, 0][inside[number]], expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(image[:, 1:], decibels[:, 1:])
    assert torch.equal(image == OUTSIDE, decibels == OUTSIDE)
    flat = torch.where(decibels == OUTSIDE, OUTSIDE, 5.0)
    assert (one.from_decibels(flat)[:, 0][inside] == 0).all()  # constant
    assert torch.equal(one.from_decibels(decibels.half()) == OUTSIDE, decibels == OUTSIDE)


# Planes and images


@pytest.mark.parametrize("rate_hz", [480e3, 10e6, 20.16e6, 20.4e6, 40e6, 61.44e6, 122.88e6])
def test_images_cover_the_plane_and_their_join_is_the_plane(rate_hz):
    one = grid(columns=3)
    total, firsts = one.num_rows(rate_hz), one.first_rows(rate_hz)
    covered = sorted({row for first in firsts for row in range(first, first + 112)} & {*range(total)})
    assert covered == [*range(total)]
    assert firsts == sorted(set(firsts))
    if total > 112:
        assert (firsts[0], firsts[-1] + 112) == (0, total)
        overlaps = [first + 112 - second for first, second in itertools.pairwise(firsts)]
        assert min(overlaps) >= 16
        assert len(firsts) == math.ceil((total - 16) / 96)  # no more images than needed
    planes = one.planes(window_of(one, rate_hz, batch=2), rate_hz)
    images = one.images_of(planes, rate_hz)
    assert images.shape == (2 * len(firsts), 1, 112, 3)
    for place, first in enumerate(firsts):  # image by image, each of all windows
        assert torch.equal(images[2 * place : 2 * place + 2], one.from_decibels(one.cut(planes, first)))
    # values that depend on the plane alone come back as they are
    number = torch.arange(total).view(1, 1, -1, 1).expand(2, 1, -1, 3) + torch.tensor([0.0, 0.5]).view(
        2, 1, 1, 1
    )
    parts = torch.cat([one.cut(number.contiguous(), first) for first in firsts]).nan_to_num(neginf=0)
    torch.testing.assert_close(one.joined(parts, planes, rate_hz), number)


def test_an_image_counts_more_the_farther_its_border_is():
    one, rate_hz = grid(columns=2), 40e6  # 222 rows: images at 0, 55 and 110
    planes = one.planes(window_of(one, rate_hz), rate_hz)
    parts = torch.stack([torch.full((2, 112, 2), float(number)) for number in range(3)])
    joined = one.joined(parts, planes, rate_hz)[0, 0, :, 0]
    assert joined[:55].tolist() == [0.0] * 55
    assert (joined.diff() >= -1e-6).all()
    low, high = 112 - 80, 80 - 55 + 1  # distances of row 80 to the borders of the first two
    assert joined[80].item() == pytest.approx(high / (low + high))


def test_cells_outside_are_background_for_certain():
    one, rate_hz = grid(columns=8), 10e6
    planes = one.planes(noise(one.num_samples(rate_hz) // 2).real.to(torch.complex64), rate_hz, is_real=True)
    values = torch.full((1, 3, 112, 8), 1 / 3)
    joined = one.joined(values, planes, rate_hz)
    assert joined.shape == (1, 3, 56, 4)
    assert joined[0, :, 0, 0].tolist() == [1, 0, 0]
    assert joined[0, :, -1, 0].tolist() == pytest.approx([1 / 3] * 3)


def test_training_images_lie_anywhere_in_a_wide_plane():
    one, rng = grid(), np.random.default_rng(0)
    drawn = {one.draw_first_row(30e6, rng) for _ in range(2000)}
    assert drawn == {*range(one.num_rows(30e6) - 112 + 1)}
    assert {one.draw_first_row(10e6, rng) for _ in range(9)} == {-28}


def test_a_view_is_an_image_from_its_row_on():
    one, rate_hz = grid(), 40e6
    iq = window_of(one, rate_hz, batch=2)
    view = View(rate_hz, (70, 5))
    assert is_iq(view)
    images = view(iq, one, None)
    for number, row in enumerate(view.first_rows):
        torch.testing.assert_close(images[number, 0], one.planes(iq, rate_hz)[number, 0, row : row + 112])
    assert torch.equal(one(iq, rate_hz), one.images_of(one.planes(iq, rate_hz), rate_hz)[:2])


# Correlation at the symbol lengths


def cp_of(iq, rate_hz, band_hz, columns=560, is_real=False):
    """Mean correlation at 15, 30 and 60 kHz over a band, in percent."""
    one = Grid(image_size=(112, columns), channels=("power", "cp"))
    planes = one.planes(iq[None], rate_hz, is_real)[0]
    rows = one.frequency_axis_hz(rate_hz)
    inside = (rows > band_hz[0]) & (rows < band_hz[1])
    values = planes[1:, inside]
    return [100 * (CP_MEAN + CP_SCALE * one[torch.isfinite(one)].mean().item()) for one in values]


def carrier_of(cell, rate_hz, offset_hz=0.0, traffic=FULL, duration_s=0.02):
    scene = one_carrier(cell, rate_hz, offset_hz, duration_s, 25.0, traffic, receiver=Receiver())
    half = cell.num_rb * 6e3 * getattr(cell, "spacing_khz", 15)
    return render(scene), rate_hz, (offset_hz - half, offset_hz + half)


CELLS = {
    "LTE": (LteCell(num_rb=25), FULL, 0),
    "idle LTE": (LteCell(num_rb=25), IDLE, 0),
    "NR 15": (NrCarrier(15, 25, ssb_case="A", ssb_beams=()), FULL, 0),
    "NR 30": (NrCarrier(30, 24, ssb_beams=()), FULL, 1),
    "NR 60": (NrCarrier(60, 11, ssb_beams=()), FULL, 2),
}


@pytest.mark.parametrize("name", CELLS)
def test_a_cyclic_prefix_shows_at_its_symbol_length_and_no_other(name):
    cell, traffic, lag = CELLS[name]
    for rate_hz, offset_hz in ((10e6, 0.0), (61.44e6, 17.0133e6)):
        found = cp_of(*carrier_of(cell, rate_hz, offset_hz, traffic))
        assert 5.0 < found[lag] < 8.5, (rate_hz, found)
        assert max(found[:lag] + found[lag + 1 :]) < 4.5, (rate_hz, found)


def test_a_narrow_receiver_inside_a_carrier_finds_its_prefix():
    found = cp_of(*carrier_of(LteCell(num_rb=100), 1.92e6))
    assert found[0] > 5.0
    assert max(found[1:]) < 4.5


def test_a_busy_control_region_alone_shows_weakly():
    cell = NrCarrier(30, 24, ssb_beams=(), coresets=(Coreset(0, 24, 1, 0, 1.0),))
    found = cp_of(*carrier_of(cell, 20e6, traffic=IDLE))
    assert found[1] > 4.0


def spectrum_noise(keep, samples, seed=0):
    """Noise through a filter of the spectrum: 1 where a bin stays."""
    spectrum = torch.fft.fft(noise(samples, seed)[0])
    return torch.fft.ifft(spectrum * torch.as_tensor(keep, dtype=torch.float32))


WIFI = Distractor(
    "ofdm",
    1.013e6,
    16.6e6,
    25.0,
    settings={
        "system": "wifi",
        "width_hz": 20e6,
        "spacing_hz": 312.5e3,
        "highest": 26,
        "nulls": 1,
        "bits_a_symbol": 4,
        "frame_s": 2e-3,
        "idle_s": 0.0,
        "acks": True,
    },
)


def signals_without_a_prefix(rate_hz=20e6, count=400_000):
    """Name -> (IQ in noise, where it lies)."""
    hertz, floor = np.fft.fftfreq(count, 1 / rate_hz), noise(count, seed=1)[0]

    def filtered(keep):
        spectrum = torch.fft.fft(noise(count)[0])
        return torch.fft.ifft(spectrum * torch.as_tensor(keep, dtype=torch.float32))

    wifi = floor.clone()
    add(wifi, WIFI, rate_hz, Stream(0))
    return {
        "noise": (floor, (-10e6, 10e6)),
        "a spur": (30 * tone(3.011e6, rate_hz, count)[0] + floor, (2e6, 4e6)),
        "a resource block": (10 * filtered(np.abs(hertz - 90e3) < 90e3) + floor, (-0.5e6, 0.7e6)),
        "every other resource block": (10 * filtered(hertz // 180e3 % 2 == 0) + floor, (-9e6, 9e6)),
        "Wi-Fi": (wifi, (-7e6, 9e6)),
    }


def test_signals_without_such_a_prefix_show_none():
    for name, (iq, band_hz) in signals_without_a_prefix().items():
        found = cp_of(iq, 20e6, band_hz)
        assert 1.5 < min(found) <= max(found) < 4.5, (name, found)


@needs_captures
@pytest.mark.parametrize(
    ("name", "lag"),
    [("lte-f1815.3-s19.2-bw20-0.08s-hackrf", 0), ("lte-signal.1.92M.amar", 0), ("noise-noise", None)],
)
def test_real_captures_have_the_prefix_of_their_spacing(name, lag):
    [recording] = open_recording(CAPTURES / f"{name}.sigmf-meta")
    rate_hz = recording.sample_rate_hz
    iq = torch.from_numpy(recording.read(0, min(recording.num_samples, round(0.02 * rate_hz))))
    found = cp_of(iq, rate_hz, (-0.3 * rate_hz, 0.3 * rate_hz))
    others = [value for place, value in enumerate(found) if place != lag]
    assert max(others) < 4.5, found
    assert lag is None or found[lag] > 5.0, found


# Settings


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {
            "row_khz": 90,
            "narrow_row_khz": None,
            "column_us": 50,
            "image_size": (32, 64),
            "channels": ["power", "cp"],
        },
    ],
)
def test_settings_make_the_same_front_end_again(settings):
    first = Grid(**settings)
    second = front_end.from_settings(first.settings())
    assert isinstance(second, Grid)
    assert second.settings() == first.settings()
    assert second.in_chans == (4 if settings else 1)
    iq = noise(first.num_samples(3e6))
    assert torch.equal(first(iq, 3e6), second(iq, 3e6))
    assert front_end.kind_of(first.settings()) == "grid"
    assert front_end.takes_iq(first.settings())


def test_the_published_front_end_has_no_kind_in_its_settings():
    settings = Spectrogram().settings()
    assert front_end.kind_of(settings) == "band"
    assert isinstance(front_end.from_settings(settings), Spectrogram)
    assert not front_end.takes_iq({"kind": "images"})
    assert not front_end.takes_iq(None)


@pytest.mark.parametrize(
    "settings",
    [
        {"row_khz": 0},
        {"row_khz": -180},
        {"row_khz": math.nan},
        {"row_khz": math.inf},
        {"narrow_row_khz": 0},
        {"column_us": 0},
        {"column_us": math.inf},
        {"image_size": (0, 560)},
        {"channels": ("foo",)},
        {"channels": ("cp",)},
        {"channels": ()},
        {"channels": ("power", "power")},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Grid(**settings)


@pytest.mark.parametrize(
    "iq",
    [
        torch.zeros(100_000),
        torch.zeros(100_000, dtype=torch.complex64),
        torch.zeros(1, 100, dtype=torch.complex64),  # less than a frame
        torch.zeros(1, 100_000, 3),
        torch.zeros(1, 100_000, 2, dtype=torch.float64),
    ],
)
def test_samples_of_another_form_are_refused(iq):
    with pytest.raises(ValueError, match="expected complex"):
        grid().planes(iq, 20e6)
