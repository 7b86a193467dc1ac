"""Fading against TR 38.901 and Jakes' spectrum, the amplifier against its own formulas on tones."""

import sys

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch.utils._python_dispatch import TorchDispatchMode

from radio.scenes import channel
from radio.scenes.channel import Fading, amplify, propagate, taps

# TR 38.901 V16.1.0 tables 7.7.2-1 to -5: (normalized delay, power in dB) of the paths that scatter. In D and
# E the first is the Rayleigh part of the first tap, and its line of sight is in LINE_OF_SIGHT_DB.
PROFILES = {
    "TDL-A": """0 -13.4, 0.3819 0, 0.4025 -2.2, 0.5868 -4, 0.4610 -6, 0.5375 -8.2, 0.6708 -9.9, 0.5750 -10.5,
    0.7618 -7.5,
        1.5375 -15.9, 1.8978 -6.6, 2.2242 -16.7, 2.1718 -12.4, 2.4942 -15.2, 2.5119 -10.8, 3.0582 -11.3,
        4.0810 -12.7, 4.4579 -16.2, 4.5695 -18.3, 4.7966 -18.9, 5.0066 -16.6, 5.3043 -19.9, 9.6586 -29.7""",
    "TDL-B": """0 0, 0.1072 -2.2, 0.2155 -4, 0.2095 -3.2, 0.2870 -9.8, 0.2986 -1.2, 0.3752 -3.4, 0.5055 -5.2,
    0.3681 -7.6,
        0.3697 -3, 0.5700 -8.9, 0.5283 -9, 1.1021 -4.8, 1.2756 -5.7, 1.5474 -7.5, 1.7842 -1.9, 2.0169 -7.6,
        2.8294 -12.2, 3.0219 -9.8, 3.6187 -11.4, 4.1067 -14.9, 4.2790 -9.2, 4.7834 -11.3""",
    "TDL-C": """0 -4.4, 0.2099 -1.2, 0.2219 -3.5, 0.2329 -5.2, 0.2176 -2.5, 0.6366 0, 0.6448 -2.2, 0.6560
    -3.9, 0.6584 -7.4,
        0.7935 -7.1, 0.8213 -10.7, 0.9336 -11.1, 1.2285 -5.1, 1.3083 -6.8, 2.1704 -8.7, 2.7105 -13.2, 4.2589
        -13.9, 4.6003 -13.9, 5.4902 -15.8, 5.6077 -17.1, 6.3065 -16, 6.6374 -15.7, 7.0427 -21.6, 8.6523
        -22.8""",
    "TDL-D": """0 -13.5, 0.035 -18.8, 0.612 -21, 1.363 -22.8, 1.405 -17.9, 1.804 -20.1, 2.596 -21.9, 1.775
    -22.9,
        4.042 -27.8, 7.937 -23.6, 9.424 -24.8, 9.708 -30, 12.525 -27.7""",
    "TDL-E": """0 -22.03, 0.5133 -15.8, 0.5440 -18.1, 0.5630 -19.8, 0.5440 -22.9, 0.7112 -22.4, 1.9092 -18.6,
    1.9293 -20.8,
        1.9589 -22.6, 2.6426 -22.3, 3.7136 -25.6, 5.4524 -20.2, 12.0034 -29.8, 20.6519 -29.2""",
}
LINE_OF_SIGHT_DB = {"TDL-D": -0.2, "TDL-E": -0.03}
K_FACTOR_DB = {"TDL-D": 13.3, "TDL-E": 22.0}  # of the first tap


def profile(model):
    """(delays, powers with the line of sight in the first, of total 1) by the tables above."""
    rows = np.array([[float(number) for number in row.split()] for row in PROFILES[model].split(",")])
    powers = 10 ** (rows[:, 1] / 10)
    powers[0] += 10 ** (LINE_OF_SIGHT_DB[model] / 10) if model in LINE_OF_SIGHT_DB else 0
    return rows[:, 0], powers / powers.sum()


def random_grid(ports=1, symbols=8, subcarriers=64, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal((ports, symbols, subcarriers, 2)) @ [1, 1j] / 2**0.5).to(
        torch.complex64
    )


def decibels(power):
    return 10 * np.log10(power)


# Fading


@pytest.mark.parametrize("model", PROFILES)
def test_delays_and_mean_powers_of_the_taps_are_those_of_the_table(model):
    delays, powers = profile(model)
    measured = np.zeros(len(powers))
    for seed in range(20):
        gains, delays_s = taps(Fading(model, 300e-9, 50.0, seed), 1000, 1, 1e-3)
        measured += gains.abs().square().double().mean(dim=(0, 2)).numpy() / 20

    assert gains.dtype == torch.complex64
    assert delays_s.dtype == torch.float64
    np.testing.assert_allclose(delays_s, delays * 300e-9, rtol=1e-12)
    np.testing.assert_allclose(measured, powers, rtol=0.04)  # 20 000 exponential draws: 0.7 %
    assert measured.sum() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("model", K_FACTOR_DB)
def test_first_tap_of_tdl_d_and_e_has_its_k_factor_and_its_line_of_sight_at_0_7_of_the_doppler(model):
    doppler_hz, interval_s, times = 100.0, 1e-3, 8192
    gains, _ = taps(Fading(model, 100e-9, doppler_hz, 5), 64, times, interval_s)
    first = gains[:, 0].numpy().astype(complex)
    line = np.exp(2j * np.pi * 0.7 * doppler_hz * interval_s * np.arange(times))
    direct = (first * line.conj()).mean(axis=1)
    scattered = first - direct[:, None] * line
    k_factor = np.mean(np.abs(direct) ** 2) / np.mean(np.abs(scattered) ** 2)
    assert decibels(k_factor) == pytest.approx(K_FACTOR_DB[model], abs=0.5)
    assert abs(np.mean(direct / np.abs(direct))) < 0.4  # each port sees it at a phase of its own


@pytest.mark.parametrize(("model", "path"), [("flat", 0), ("TDL-B", 7), ("TDL-E", 3)])
def test_autocorrelation_of_a_path_is_j0(model, path):
    doppler_hz, interval_s, times = 120.0, 0.5e-3, 64
    correlation = np.zeros(times, complex)
    for seed in range(10):
        gains, _ = taps(Fading(model, 100e-9, doppler_hz, seed), 1000, times, interval_s)
        values = gains[:, path].numpy().astype(complex)
        correlation += (values * values[:, :1].conj()).mean(axis=0) / 10
    expected = special.j0(2 * np.pi * doppler_hz * interval_s * np.arange(times))
    np.testing.assert_allclose(correlation / correlation[0], expected, atol=0.05)  # 10 000 draws: 0.01


def test_flat_fading_is_complex_gaussian():
    gains, delays_s = taps(Fading("flat", 0.0, 30.0, 1), 20_000, 1, 1e-3)
    assert delays_s.tolist() == [0]
    assert stats.kstest(gains.flatten().abs().square().numpy(), "expon").pvalue > 0.01
    assert stats.kstest(gains.flatten().angle().numpy() / (2 * np.pi) + 0.5, "uniform").pvalue > 0.01


def test_time_of_a_gain_does_not_depend_on_how_many_there_are():
    few, _ = taps(Fading("TDL-D", 1e-7, 200.0, 4), 2, 37, 1e-3)
    many, _ = taps(Fading("TDL-D", 1e-7, 200.0, 4), 2, 1500, 1e-3)
    torch.testing.assert_close(few, many[:, :, :37], rtol=0, atol=3e-6)


def test_without_doppler_the_channel_stands_still():
    gains, _ = taps(Fading("TDL-D", 1e-7, 0.0, 2), 3, 500, 1e-3)
    torch.testing.assert_close(gains, gains[:, :, :1].expand_as(gains), rtol=0, atol=1e-6)


def test_model_none_is_one_path_of_gain_one():
    gains, delays_s = taps(Fading("none", seed=3), 2, 5, 1e-3)
    assert torch.equal(gains, torch.ones(2, 1, 5, dtype=torch.complex64))
    assert delays_s.tolist() == [0]
    values = random_grid(symbols=5)
    assert torch.equal(propagate(values, torch.arange(64.0).double(), gains[:1], delays_s), values[0])


def test_ports_and_seeds_fade_independently():
    gains = torch.stack(
        [taps(Fading("flat", 0.0, 10.0, seed), 3, 1, 1e-3)[0].flatten() for seed in range(3000)]
    ).numpy()
    neighbours = np.concatenate([gains[:-1], gains[1:]], axis=1)  # (2999, 6): three ports of two seeds
    correlation = neighbours.conj().T @ neighbours / len(neighbours)
    np.testing.assert_allclose(correlation, np.eye(6), atol=0.08)  # 4 sigma


@pytest.mark.parametrize("model", ["TDL-A", "TDL-E"])
def test_correlation_over_frequency_is_the_transform_of_the_delay_profile(model):
    delays, powers = profile(model)
    frequencies_hz = 60e3 * torch.arange(64, dtype=torch.float64)
    gains, delays_s = taps(Fading(model, 200e-9, 0.0, 9), 4000, 1, 1e-3)
    ones = torch.ones(1, 4000, 64, dtype=torch.complex64)
    response = propagate(
        ones, frequencies_hz, gains.permute(2, 1, 0), delays_s
    ).numpy()  # ports in the place of symbols
    correlation = (response * response[:, :1].conj()).mean(axis=0)
    expected = np.exp(-2j * np.pi * np.outer(frequencies_hz.numpy(), delays * 200e-9)) @ powers
    np.testing.assert_allclose(correlation, expected, atol=0.06)


def test_gains_are_a_function_of_the_seed_and_leave_torchs_generator_alone(monkeypatch):
    state, dtype = torch.get_rng_state(), torch.get_default_dtype()
    channel._profile.cache_clear()
    monkeypatch.setitem(
        sys.modules, "sionna.phy", None
    )  # importing it would fail: it seeds generators and starts CUDA
    first, second, other = (taps(Fading("TDL-C", 1e-7, 30.0, seed), 2, 20, 1e-3)[0] for seed in (77, 77, 78))
    assert torch.equal(first, second)
    assert (first - other).abs().min() > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() == dtype
    assert first.device.type == "cpu"


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": "TDL-F"},
        {"delay_spread_s": -1e-9},
        {"delay_spread_s": 1e-3},
        {"doppler_hz": -1.0},
        {"doppler_hz": 1e6},
        {"doppler_hz": float("nan")},
        {"seed": 2**31},
        {"seed": -1},
    ],
)
def test_wrong_fading_names_the_field_and_its_value(wrong):
    (name, value), *_ = wrong.items()
    with pytest.raises(ValueError, match=f"{name}={value!r}".replace("+", r"\+")):
        Fading(**wrong)


# Propagation


@pytest.mark.parametrize("model", ["flat", "TDL-D"])
@pytest.mark.parametrize("chunk", [1, 2000, 2**21])
def test_propagation_is_the_sum_over_ports_and_paths(model, chunk, monkeypatch):
    monkeypatch.setattr(channel, "_CHUNK_VALUES_CPU", chunk)
    values = random_grid(ports=3, symbols=11, subcarriers=101)
    frequencies_hz = -150e6 + 3e6 * torch.arange(101, dtype=torch.float64)
    gains, delays_s = taps(Fading(model, 1e-6, 300.0, 6), 3, 11, 71e-6)
    expected = np.zeros((11, 101), complex)
    for port in range(3):
        for path, delay in enumerate(delays_s.numpy()):
            turned = np.exp(-2j * np.pi * frequencies_hz.numpy() * delay)
            expected += values[port].numpy() * gains[port, path].numpy()[:, None] * turned
    before = values.clone()
    arrived = propagate(values, frequencies_hz, gains, delays_s)
    assert arrived.dtype == torch.complex64
    np.testing.assert_allclose(arrived, expected, atol=1e-5)
    assert torch.equal(values, before)


def test_a_delay_makes_the_signal_late():
    values = random_grid(symbols=1, subcarriers=256)
    frequencies_hz = 15e3 * torch.arange(256, dtype=torch.float64)
    delay_s = torch.tensor([9 / (256 * 15e3)], dtype=torch.float64)
    arrived = propagate(values, frequencies_hz, torch.ones(1, 1, 1, dtype=torch.complex64), delay_s)
    torch.testing.assert_close(
        torch.fft.ifft(arrived), torch.fft.ifft(values[0]).roll(9, dims=1), rtol=0, atol=1e-6
    )


class Sizes(TorchDispatchMode):
    """Records the number of values of every tensor that an operation gives."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.found += [result.numel()] if isinstance(result, torch.Tensor) else []
        return result


@pytest.mark.parametrize(
    "device", ["cpu", "meta"]
)  # the second stands for an accelerator: sizes without numbers
def test_no_more_than_two_million_values_of_the_response_live_at_once(device):
    values = torch.ones(4, 1200, 1200, dtype=torch.complex64, device=device)
    gains, delays_s = taps(Fading("TDL-C", 1e-7, 30.0), 4, 1200, 1e-3)
    with Sizes() as sizes:
        propagate(values, 15e3 * torch.arange(1200, dtype=torch.float64), gains, delays_s)
    assert max(sizes.found) <= 2**21 < values.numel()


def test_propagation_wants_shapes_that_match():
    gains, delays_s = taps(Fading("TDL-A", 1e-7), 1, 8, 1e-3)
    frequencies_hz = torch.arange(64.0).double()
    for wrong in [
        (random_grid(symbols=9), frequencies_hz, gains),
        (random_grid(ports=2), frequencies_hz, gains),
        (random_grid(), frequencies_hz[1:], gains),
        (random_grid(), frequencies_hz, gains[:, 1:]),
    ]:
        with pytest.raises(ValueError, match="that match"):
            propagate(*wrong, delays_s)


# The amplifier


def test_far_from_saturation_the_amplifier_changes_nothing():
    values = random_grid(ports=2, subcarriers=75)
    amplified = amplify(values, 60.0)
    assert amplified.shape == (2, 8, 225)
    assert amplified.dtype == torch.complex64
    torch.testing.assert_close(amplified[:, :, 75:150], values, rtol=0, atol=1e-5)
    beside = amplified.clone()
    beside[:, :, 75:150] = 0
    assert beside.abs().max() < 1e-5


@pytest.mark.parametrize(("backoff_db", "smoothness"), [(0.0, 2.0), (3.0, 1.5), (-6.0, 3.0)])
def test_a_tone_is_compressed_by_the_formula(backoff_db, smoothness):
    values = torch.zeros(1, 2, 30, dtype=torch.complex64)
    values[0, 0, 11] = 0.3j
    power = 10 ** (-backoff_db / 10)  # over saturation
    gain = (1 + power**smoothness) ** (-1 / (2 * smoothness))
    expected = torch.zeros(1, 2, 90, dtype=torch.complex64)
    expected[0, 0, 30 + 11] = 0.3j * gain
    torch.testing.assert_close(amplify(values, backoff_db, smoothness), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("backoff_db", [20.0, 26.0])
def test_third_order_products_of_two_tones_have_the_level_of_the_series(backoff_db):
    values = torch.zeros(1, 1, 40, dtype=torch.complex64)
    values[0, 0, [8, 20]] = 1
    amplified = amplify(values, backoff_db, smoothness=1.0).abs()[0, 0]
    # x / sqrt(1 + |x|²) = x - x |x|² / 2 + ...: products of a³ / 2 where the mean power is 2 a².
    expected = 10 ** (-backoff_db / 10) / 4
    products = amplified[[40 + 2 * 8 - 20, 40 + 2 * 20 - 8]]
    np.testing.assert_allclose(products, expected, rtol=5 * 10 ** (-backoff_db / 10))
    others = amplified.clone()
    others[[36, 48, 60, 72]] = 0
    assert others.max() < expected * 10 ** (-backoff_db / 10)


def test_distortion_is_that_of_a_finely_sampled_signal():
    values = random_grid(symbols=3, subcarriers=300)
    signal = np.fft.ifft(values[0].numpy().astype(complex), 300 * 64) * 300 * 64
    saturation = np.sqrt(np.mean(np.abs(signal) ** 2)) * 10 ** (4 / 20)
    ratio = np.abs(signal) / saturation
    signal = signal / (1 + ratio**6) ** (1 / 6)
    spectrum = np.fft.fft(signal) / (300 * 64)
    expected = np.concatenate([spectrum[:, -300:], spectrum[:, :600]], axis=1)
    error = amplify(values, 4.0, 3.0)[0].numpy() - expected
    assert decibels(np.mean(np.abs(error) ** 2) / np.mean(np.abs(values.numpy()) ** 2)) < -65  # aliases


def test_regrowth_rises_with_compression_and_lies_within_three_bandwidths():
    values = torch.zeros(1, 40, 500, dtype=torch.complex64)
    values[:, :, 200:300] = random_grid(symbols=40, subcarriers=100)

    def beside(backoff_db, **kwargs):
        power = amplify(values, backoff_db, **kwargs)[0].abs().square().mean(dim=0).numpy()
        return power[600:700].mean() / power[700:800].mean(), power[400:600].mean() / power[700:800].mean()

    near = decibels([beside(backoff_db)[0] for backoff_db in (14.0, 11.0, 8.0, 5.0, 2.0)])
    assert (np.diff(near) > 2).all()
    assert near[-1] < -10

    near, far = beside(20.0, smoothness=1.0)  # the third order governs: relative level 2 dB for each dB
    assert decibels(near) - decibels(far) > 15
    assert decibels(near) - decibels(beside(23.0, smoothness=1.0)[0]) == pytest.approx(6, abs=0.5)


def test_silent_symbols_stay_silent_and_do_not_count_for_the_mean():
    values = random_grid(ports=2, symbols=6)
    values[:, 3:] = 0
    amplified = amplify(values, 3.0)
    assert not amplified[:, 3:].any()
    torch.testing.assert_close(amplified[:, :3], amplify(values[:, :3].contiguous(), 3.0), rtol=0, atol=1e-6)
    assert not amplify(torch.zeros_like(values), 3.0).any()


def test_backoff_is_relative_to_the_signal():
    values = random_grid()
    torch.testing.assert_close(amplify(100 * values, 5.0), 100 * amplify(values, 5.0), rtol=0, atol=1e-3)


def test_chunks_do_not_change_what_is_amplified(monkeypatch):
    values = random_grid(ports=2, symbols=9)
    whole = amplify(values, 5.0)
    monkeypatch.setattr(channel, "_CHUNK_VALUES_CPU", 600)
    torch.testing.assert_close(amplify(values, 5.0), whole, rtol=0, atol=1e-6)
