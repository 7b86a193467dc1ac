"""The front end: what it measures, where it says it measured it, and that no gain or size changes that."""

import numpy as np
import pytest
import torch
from scipy.signal import ShortTimeFFT

from radio import stft
from radio.spectrogram import Spectrogram

SIZES = [
    # n_fft, samples, image size
    (1024, 30720, (224, 224)),
    (256, 5000, (64, 96)),
    (255, 5001, (17, 31)),  # odd everything
    (64, 64, (32, 8)),  # a single FFT
    (64, 70, (128, 50)),  # fewer bins than rows, fewer samples than columns
    (2, 9, (1, 1)),
]


def noise(samples, seed=0, batch=1):
    rng = np.random.default_rng(seed)
    iq = rng.standard_normal((batch, samples)) + 1j * rng.standard_normal((batch, samples))
    return torch.from_numpy((iq / np.sqrt(2)).astype(np.complex64))


def tone(freq_hz, sample_rate_hz, samples):
    return torch.exp(2j * torch.pi * freq_hz / sample_rate_hz * torch.arange(samples, dtype=torch.float64))[
        None
    ]


@pytest.mark.parametrize(("n_fft", "samples", "image_size"), SIZES)
def test_shape_statistics_and_axes_for_any_size(n_fft, samples, image_size):
    front_end = Spectrogram(n_fft, duration_s=samples / 1e6, image_size=image_size)
    image = front_end(noise(samples, batch=3))
    assert image.shape == (3, 1, *image_size)
    assert image.dtype == torch.float32
    assert torch.isfinite(image).all()
    if image.numel() > 3:
        assert image.mean(dim=(2, 3)).abs().max() < 1e-5
    assert front_end.num_samples(1e6) == samples
    frequencies, times = front_end.frequency_axis_hz(1e6, 2.4e9), front_end.time_axis_s(1e6)
    assert frequencies.shape == (image_size[0],)
    assert times.shape == (image_size[1],)
    assert (frequencies.diff() > 0).all()
    assert (times.diff() >= 0).all()
    first_s, last_s, low_hz, high_hz = front_end.extent(1e6, 2.4e9)
    assert times[0] >= 0
    assert times[-1] <= samples / 1e6
    assert first_s < last_s
    assert high_hz - low_hz == pytest.approx(1e6)
    assert low_hz < frequencies[0]
    assert frequencies[-1] < high_hz


@pytest.mark.parametrize(("n_fft", "samples", "image_size"), SIZES)
def test_mean_power_is_kept(n_fft, samples, image_size):
    """The mean over the image is the mean over its STFT, here taken with scipy."""
    front_end = Spectrogram(n_fft, image_size=image_size)
    iq = noise(samples, seed=1)
    starts = front_end.frame_starts(samples)
    window = np.hanning(n_fft + 1)[:-1]
    frames = np.stack([iq[0, s : s + n_fft].numpy() for s in starts.tolist()]) * window / window.sum()
    expected = np.mean(np.abs(np.fft.fft(frames)) ** 2)
    assert (10 ** (front_end.decibels(iq) / 10)).mean().item() == pytest.approx(expected, rel=1e-4)


def test_cells_agree_with_scipy():
    """Where rows are whole bins and columns whole frames, a cell is the mean over scipy's STFT."""
    n_fft, hop, columns, per_column = 128, 64, 10, 4
    samples = n_fft + (columns * per_column - 1) * hop
    iq = noise(samples, seed=2)
    front_end = Spectrogram(n_fft, image_size=(32, columns))
    assert front_end.frame_starts(samples).tolist() == [hop * k for k in range(columns * per_column)]

    window = np.hanning(n_fft + 1)[:-1]
    stft = ShortTimeFFT(window, hop, fs=1.0, fft_mode="centered", scale_to="magnitude")
    first = n_fft // 2 // hop
    spectrum = stft.stft(iq[0].numpy().astype(np.complex128), first, first + columns * per_column)
    power = (np.abs(spectrum) ** 2).reshape(32, n_fft // 32, columns, per_column).mean(axis=(1, 3))
    np.testing.assert_allclose(front_end.decibels(iq)[0, 0], 10 * np.log10(power), atol=1e-3)


@pytest.mark.parametrize("n_fft", [256, 255])
@pytest.mark.parametrize("rows", [32, 100, 255, 256, 300])
@pytest.mark.parametrize("freq_hz", [-480e3, -123e3, -3e3, 0.0, 3e3, 250e3, 470e3])
def test_a_tone_is_in_the_row_whose_edges_hold_its_bin(n_fft, rows, freq_hz):
    rate = 1e6
    bin_hz = rate / n_fft
    freq_hz = round(freq_hz / bin_hz) * bin_hz
    front_end = Spectrogram(n_fft, image_size=(rows, 4))
    strongest = int(front_end.decibels(tone(freq_hz, rate, 4000))[0, 0].mean(dim=1).argmax())
    edges = front_end.frequency_edges_hz(rate)
    # A Hann window spreads over the neighbouring bins; the strongest row overlaps the tone's own.
    assert edges[strongest] < freq_hz + bin_hz / 2
    assert edges[strongest + 1] > freq_hz - bin_hz / 2
    if rows <= n_fft:
        # The middle of the row is no farther from the tone than half a row and half a bin.
        limit_hz = rate / rows / 2 + bin_hz / 2
        assert abs(float(front_end.frequency_axis_hz(rate)[strongest]) - freq_hz) <= limit_hz


@pytest.mark.parametrize("n_fft", [256, 255])
def test_axes_are_those_of_the_bins_where_rows_are_bins(n_fft):
    """No mirror, no shift by half a bin: row k is FFT bin k, and DC is at 0 Hz."""
    front_end = Spectrogram(n_fft, image_size=(n_fft, 4))
    expected = np.fft.fftshift(np.fft.fftfreq(n_fft, 1 / 1e6))
    np.testing.assert_allclose(front_end.frequency_axis_hz(1e6, 915e6), 915e6 + expected, rtol=0, atol=1e-4)
    levels = front_end.decibels(tone(0.0, 1e6, 4000))[0, 0].mean(dim=1)
    assert int(levels.argmax()) == n_fft // 2
    assert levels.max().item() == pytest.approx(0.0, abs=1e-3)  # full scale is 0 dB


@pytest.mark.parametrize("at_s", [0.004, 0.0101, 0.0152])
def test_an_impulse_is_in_the_column_of_its_time(at_s):
    rate, samples = 1e6, 20000
    iq = torch.zeros(1, samples, dtype=torch.complex64)
    iq[0, round(at_s * rate)] = 1
    front_end = Spectrogram(128, duration_s=samples / rate, image_size=(16, 50))
    power = 10 ** (front_end.decibels(iq)[0, 0] / 10)
    column = int(power.mean(dim=0).argmax())
    times = front_end.time_axis_s(rate)
    assert abs(float(times[column]) - at_s) <= float(times[1] - times[0]) / 2 + 64 / rate
    # Its centre of gravity over the columns is its time, to half a column.
    weights = power.mean(dim=0).double()
    weights[weights < weights.max() * 1e-4] = 0
    assert float((weights * times).sum() / weights.sum()) == pytest.approx(
        at_s, abs=float(times[1] - times[0]) / 2
    )


def test_time_axis_covers_the_window_and_is_even():
    times = Spectrogram(1024, 0.016, (224, 224)).time_axis_s(61.44e6)
    steps = times.diff()
    assert float(steps.max() - steps.min()) < 2 / 61.44e6
    assert float(times[0] + times[-1]) == pytest.approx(0.016, abs=1e-6)


@pytest.mark.parametrize("gain", [1e-25, 3e-7, 0.5, 123.0, 1e25, -1j, 1e-30])
def test_gain_and_phase_leave_the_image_unchanged(gain):
    front_end = Spectrogram(256, image_size=(64, 64))
    iq = noise(8000, seed=3) + tone(1e5, 1e6, 8000).to(torch.complex64)
    scaled = (iq.to(torch.complex128) * gain).to(torch.complex64)
    torch.testing.assert_close(front_end(scaled), front_end(iq), atol=2e-3, rtol=0)
    shift_db = front_end.decibels(scaled).mean() - front_end.decibels(iq).mean()
    assert shift_db.item() == pytest.approx(20 * np.log10(abs(gain)), abs=1e-2)


def test_silence_gives_a_constant_image():
    front_end = Spectrogram(256, image_size=(64, 64))
    silent = front_end(torch.zeros(2, 4000, dtype=torch.complex64))
    assert (silent == 0).all()
    mixed = torch.cat([torch.zeros(1, 4000, dtype=torch.complex64), noise(4000)])
    image = front_end(mixed)
    assert (image[0] == 0).all()
    assert image[1].std().item() == pytest.approx(1, abs=0.01)


def test_exact_zeros_do_not_set_the_scale():
    iq = noise(8000, seed=4)
    iq[:, :4000] = 0
    decibels = Spectrogram(256, image_size=(32, 32)).decibels(iq)
    assert decibels.max() - decibels.min() == pytest.approx(100, abs=0.1)


def test_a_batch_is_its_windows_one_by_one_however_it_is_cut(monkeypatch):
    front_end = Spectrogram(256, image_size=(60, 40))
    iq = noise(9000, seed=5, batch=5)
    whole = front_end(iq)
    torch.testing.assert_close(torch.cat([front_end(window[None]) for window in iq]), whole)
    for budget in (1, 256 * 40 * 3, 2**26):
        monkeypatch.setattr("radio.stft.CHUNK_VALUES_CPU", budget)
        torch.testing.assert_close(front_end(iq), whole)


@pytest.mark.parametrize(
    ("kind", "lowest"), [(torch.int16, -(2**15)), (torch.int8, -(2**7)), (torch.float32, -1)]
)
@pytest.mark.parametrize(("n_fft", "samples", "image_size"), SIZES)
def test_i_and_q_give_the_bits_of_complex_samples(n_fft, samples, image_size, kind, lowest):
    """Integers as they lie in files, the lowest of them too, and windows that share memory."""
    front_end = Spectrogram(n_fft, image_size=image_size)
    step = max(1, samples // 3)
    values = (
        torch.randn(samples + 2 * step, 2, generator=torch.Generator().manual_seed(9)) * -lowest / 5
    ).to(kind)
    values[step + samples // 2, 1] = lowest
    windows = values.unfold(0, samples, step).transpose(1, 2)  # (3, samples, 2)
    assert windows.untyped_storage().data_ptr() == values.untyped_storage().data_ptr()
    expected = front_end.decibels(torch.view_as_complex((windows.float() / -lowest).contiguous()))
    assert torch.equal(front_end.decibels(windows), expected)
    assert torch.equal(front_end.decibels(windows.contiguous()), expected)
    channels = torch.stack([torch.zeros_like(windows), windows], dim=2)  # of two receivers, sample by sample
    assert torch.equal(front_end.decibels(channels[:, :, 1]), expected)


@pytest.mark.parametrize("chunk", [1, 3, 40, 1000])
@pytest.mark.parametrize("kind", [torch.int16, torch.int8, torch.float32])
@pytest.mark.parametrize(("n_fft", "samples", "image_size"), SIZES)
def test_an_accelerator_takes_the_power_that_a_cpu_takes(n_fft, samples, image_size, kind, chunk):
    front_end = Spectrogram(n_fft, image_size=image_size)
    step = samples // 2
    values = (torch.randn(samples + 2 * step, 2, generator=torch.Generator().manual_seed(10)) * 25).to(kind)
    windows = values.unfold(0, samples, step).transpose(1, 2)
    starts = front_end.frame_starts(samples).view(image_size[1], -1)
    window = front_end.window * torch.tensor([[1.0], [2.0], [0.5]])
    on_cpu, on_accelerator = torch.zeros(2, 3, len(starts), 2 * n_fft)
    stft._on_cpu(windows, window, starts, on_cpu, chunk)
    stft._on_accelerator(windows, window, starts, on_accelerator, chunk)
    torch.testing.assert_close(on_accelerator, on_cpu, rtol=1e-5, atol=1e-6 * float(on_cpu.max()))


def test_runs_in_float32_under_autocast():
    front_end = Spectrogram(256, image_size=(32, 32))
    iq = noise(5000, seed=6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = front_end(iq)
    assert torch.equal(under, front_end(iq))


def test_settings_make_the_same_front_end():
    front_end = Spectrogram(200, 0.01, (48, 80), "none")
    again = Spectrogram(**front_end.settings())
    iq = noise(5000, seed=7)
    assert torch.equal(again(iq), front_end(iq))
    assert torch.equal(front_end(iq), front_end.decibels(iq))
    assert again.settings() == {"n_fft": 200, "duration_s": 0.01, "image_size": [48, 80], "normalize": "none"}


def test_rounds_to_samples():
    assert Spectrogram(duration_s=0.03).num_samples(1000) == 30


@pytest.mark.parametrize(
    "settings",
    [
        {"n_fft": 1},
        {"image_size": (0, 5)},
        {"duration_s": 0},
        {"duration_s": float("nan")},
        {"normalize": "minmax"},
    ],
)
def test_parameters_out_of_range_are_refused_with_their_values(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Spectrogram(**settings)


@pytest.mark.parametrize(
    "values", [torch.zeros(1, 900, 2, dtype=torch.int32), torch.zeros(1, 900, 3), torch.zeros(900, 2)]
)
def test_what_is_no_iq_is_refused(values):
    with pytest.raises(ValueError, match=r"expected complex .*900"):
        Spectrogram(256)(values)


def test_a_window_shorter_than_an_fft_is_refused():
    with pytest.raises(ValueError, match=r"256.*\[1, 255\]"):
        Spectrogram(256)(noise(255))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_image_of_the_cpu():
    front_end = Spectrogram(1024, image_size=(224, 224))
    iq = noise(300_000, seed=8, batch=3)
    on_gpu = Spectrogram(**front_end.settings()).cuda()
    torch.testing.assert_close(on_gpu(iq.cuda()).cpu(), front_end(iq), atol=1e-3, rtol=0)
    raw = (torch.view_as_real(iq) * 3000).to(torch.int16)
    shared = raw.flatten(0, 1).unfold(0, 300_000, 200_000).transpose(1, 2)  # (4, 300_000, 2)
    on_gpu_shared = on_gpu(raw.cuda().flatten(0, 1).unfold(0, 300_000, 200_000).transpose(1, 2)).cpu()
    torch.testing.assert_close(on_gpu_shared, front_end(shared), atol=1e-3, rtol=0)
