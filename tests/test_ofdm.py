import math

import numpy as np
import pytest
import torch

from radio.rng import Stream
from radio.scenes import ofdm
from radio.scenes.ofdm import TC_PER_S, Grid, modulate, phasor, random_symbols, symbol_times

SPACINGS = (15e3, 30e3, 60e3)


def a_grid(spacing_hz, num_symbols, num_subcarriers, first_symbol, lowest_hz=None):
    """(grid, values [symbols, subcarriers]) of 16-QAM with a silent symbol."""
    order = torch.full((num_symbols, num_subcarriers), 4, dtype=torch.uint8)
    order[num_symbols // 2] = 0
    values = random_symbols(order, Stream(1))
    lowest_hz = -(num_subcarriers // 2) * spacing_hz if lowest_hz is None else lowest_hz
    return Grid(values[None], order > 0, spacing_hz, lowest_hz, first_symbol), values


def by_the_formula(values, grid, offset_hz, interval_s, start_s, num_samples):
    """The sum of TS 36.211 6.12 and TS 38.211 5.3.1, term by term, in float64."""
    mu = {15e3: 0, 30e3: 1, 60e3: 2}[grid.spacing_hz]
    iq = np.zeros(num_samples, complex)
    frequencies = grid.lowest_hz + grid.spacing_hz * np.arange(values.shape[1])
    kept = np.abs(frequencies + offset_hz) * interval_s < 0.5
    time, begin = start_s + interval_s * np.arange(num_samples), 0.0
    for number in range(grid.first_symbol + len(values)):
        prefix = 144 / 30.72e6 / 2**mu + (16 / 30.72e6 if number % (7 * 2**mu) == 0 else 0)
        end = begin + prefix + 1 / grid.spacing_hz
        inside = (time >= begin - 1e-6 * interval_s) & (time < end - 1e-6 * interval_s)
        if number >= grid.first_symbol and inside.any():
            waves = np.exp(2j * math.pi * frequencies[kept] * (time[inside] - begin - prefix)[:, None])
            iq[inside] = waves @ values[number - grid.first_symbol].numpy()[kept]
        begin = end
    return iq * np.exp(2j * math.pi * offset_hz * interval_s * np.arange(num_samples))


@pytest.mark.parametrize("spacing_hz", SPACINGS)
def test_symbols_fill_half_milliseconds(spacing_hz):
    slots_a_half = int(spacing_hz / 15e3) * 7
    starts, prefixes = symbol_times(spacing_hz, 0, 40 * slots_a_half)
    assert (starts[::slots_a_half] == torch.arange(41) * (TC_PER_S // 2000)).all()
    assert torch.equal(starts.diff() - prefixes, torch.full_like(prefixes, round(TC_PER_S / spacing_hz)))
    later, later_prefixes = symbol_times(spacing_hz, 33, 50)
    assert torch.equal(later, starts[33:84])
    assert torch.equal(later_prefixes, prefixes[33:83])


# sample rate, spacing, subcarriers, offset, start and clock error: whole and broken prefixes, rates that no
# FFT divides, carriers that reach beyond the band on either side and on both, a stretch that begins within a
# symbol
CASES = [
    (1.92e6, 15e3, 73, 0.0, 1e-3, 0),
    (1.92e6, 30e3, 40, 1e3, 1e-3 + 2.3e-4, 0),
    (1.92e6, 15e3, 300, 123456.0, 1e-3 + 1.7e-6, 0),
    (2.4e6, 15e3, 120, -3e5, 1e-3 + 1.234e-7, 20),
    (10e6, 15e3, 73, 2.03e6, 1e-3, 0),
    (3.84e6, 60e3, 60, 1.3e6, 1e-3 + 1.1e-4, -10),
    (7.68e6, 30e3, 240, -4.0e6, 1e-3, 0),
    (11.52e6, 60e3, 132, 250e3, 1e-3 - 3e-5, 0),
]


@pytest.mark.parametrize(("rate", "spacing_hz", "subcarriers", "offset_hz", "start_s", "ppm"), CASES)
@pytest.mark.parametrize("chunk", [2**17, 2**11])
def test_samples_are_those_of_the_formula(
    rate, spacing_hz, subcarriers, offset_hz, start_s, ppm, chunk, monkeypatch
):
    monkeypatch.setattr(ofdm, "CHUNK_VALUES_CPU", chunk)
    grid, values = a_grid(spacing_hz, 9, subcarriers, int(14 * spacing_hz / 15e3))
    interval_s = (1 + ppm * 1e-6) / rate
    iq = torch.zeros(round(rate * 0.5e-3), dtype=torch.complex64)
    modulate(iq, values, grid, offset_hz, interval_s, start_s)
    expected = by_the_formula(values, grid, offset_hz, interval_s, start_s, len(iq))
    assert np.abs(expected).max() > 5
    assert np.abs(iq.numpy() - expected).max() < 3e-6 * np.abs(expected).max()


@pytest.mark.parametrize("rate", [1.92e6, 2.4e6])
@pytest.mark.parametrize("num_samples", [1, 5, 9, 10, 11, 30])
def test_a_stretch_may_end_within_the_prefix_of_its_only_symbol(rate, num_samples):
    grid, values = a_grid(15e3, 4, 40, first_symbol=0)
    later = Grid(
        grid.values[:, :1], grid.occupied[:1], 15e3, grid.lowest_hz, 14
    )  # the first symbol of its slot
    iq = torch.zeros(num_samples, dtype=torch.complex64)
    modulate(iq, values[:1], later, 1e4, 1 / rate, 1e-3)
    expected = by_the_formula(values[:1], later, 1e4, 1 / rate, 1e-3, num_samples)
    np.testing.assert_allclose(iq.numpy(), expected, atol=1e-4)


def test_it_is_added_to_what_is_there():
    grid, values = a_grid(15e3, 14, 72, 0)
    once, twice = torch.zeros(1920, dtype=torch.complex64), torch.zeros(1920, dtype=torch.complex64)
    modulate(once, values, grid, 0.0, 1 / 1.92e6, 0.0)
    for _ in range(2):
        modulate(twice, values, grid, 0.0, 1 / 1.92e6, 0.0)
    torch.testing.assert_close(twice, 2 * once)


def test_a_carrier_outside_the_band_adds_nothing():
    grid, values = a_grid(15e3, 14, 72, 0)
    iq = torch.zeros(1920, dtype=torch.complex64)
    modulate(iq, values, grid, 3e6, 1 / 1.92e6, 0.0)
    modulate(iq, torch.zeros_like(values), grid, 0.0, 1 / 1.92e6, 0.0)
    assert not iq.any()


@pytest.mark.parametrize("rate", [30.72e6, 40e6])
def test_soft_edges_keep_the_useful_part_and_lower_the_skirts(rate):
    grid, values = a_grid(15e3, 28, 300, 0)
    sharp, soft = (torch.zeros(round(2e-3 * rate), dtype=torch.complex64) for _ in range(2))
    modulate(sharp, values, grid, 0.0, 1 / rate, 0.0)
    modulate(soft, values, grid, 0.0, 1 / rate, 0.0, edge_s=1.5e-6)

    starts, prefixes = symbol_times(15e3, 0, 28)
    edge = round(1.5e-6 * rate)
    for start, prefix, end in zip(starts[:-1].tolist(), prefixes.tolist(), starts[1:].tolist(), strict=True):
        useful = slice(math.ceil((start + prefix) / TC_PER_S * rate), math.ceil(end / TC_PER_S * rate - 1e-6))
        assert useful.start - math.ceil(start / TC_PER_S * rate) > edge
        torch.testing.assert_close(soft[useful], sharp[useful], atol=1e-4, rtol=0)

    def beside_db(iq):  # 1 MHz beside the carrier, relative to it
        power = np.abs(np.fft.fft(iq.numpy() * np.hanning(len(iq)))) ** 2
        frequency = np.abs(np.fft.fftfreq(len(iq), 1 / rate))
        return 10 * np.log10(
            power[(frequency > 3e6) & (frequency < 4e6)].mean() / power[frequency < 2e6].mean()
        )

    assert beside_db(sharp) > -42
    assert beside_db(soft) < beside_db(sharp) - 15


def test_a_phasor_keeps_its_phase_over_ten_million_samples():
    cycles, count = 0.123456789, 10_000_000
    turning = phasor(cycles, count, "cpu", first=-17)
    number = np.arange(count - 1000, count)
    expected = np.exp(2j * np.pi * ((cycles * (number - 17)) % 1))
    assert np.abs(turning[-1000:].numpy() - expected).max() < 1e-5
    assert len(turning) == count


def test_random_symbols_are_the_constellations():
    for bits in (2, 4, 6, 8):
        symbols = random_symbols(torch.full((200, 100), bits, dtype=torch.uint8), Stream(2)).numpy()
        levels = np.arange(-(2 ** (bits // 2) - 1), 2 ** (bits // 2), 2)
        points = (levels[:, None] + 1j * levels).ravel() / math.sqrt(2 * np.mean(levels**2.0))
        nearest = np.abs(symbols.ravel()[:, None] - points).argmin(axis=1)
        assert np.abs(symbols.ravel() - points[nearest]).max() < 1e-6
        assert np.bincount(nearest, minlength=2**bits).min() > 20_000 / 2**bits * 0.5
    assert not random_symbols(torch.zeros(100, dtype=torch.uint8), Stream(2)).any()
