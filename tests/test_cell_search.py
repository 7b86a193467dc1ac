"""The cell searcher: against signals made here by other code, real captures and noise.

What a cell sends is written here a second time from the clauses, in another way: tables where the searcher
has formulas, shift registers as integers, the FFT of 2048 with all its prefixes.
"""

import re

import numpy as np
import pytest
from support import CAPTURES, needs_captures

from radio.recordings import open_recording
from tests import cell_search
from tests.cell_search import find_lte, find_nr

PREFIXES = np.array([160] + [144] * 6)  # of a slot of 15 kHz, in samples of 30.72 MHz; TS 36.211 table 6.12-1


def shift_register(taps, start, degree, length):
    """Signs (+1 for a 0) out of the low end of a register of `degree` bits; taps: a mask."""
    signs = np.empty(length)
    for i in range(length):
        signs[i] = 1 - 2 * (start & 1)
        start = start >> 1 | (start & taps).bit_count() % 2 << degree - 1
    return signs


def lte_pss(id_2):
    n = np.delete(np.arange(63), 31)  # a Zadoff-Chu sequence without its middle
    return np.exp(-1j * np.pi * (25, 29, 34)[id_2] * n * (n + 1) / 63)


def lte_sss(cell_id, half):
    id_1, id_2 = divmod(cell_id, 3)
    pairs = [(m, m + gap) for gap in range(1, 8) for m in range(31 - gap)]  # table 6.11.2.1-1, row by row
    first, second = pairs[id_1][:: 1 - 2 * half]
    s, c, z = (shift_register(taps, 16, 5, 31) for taps in (0b00101, 0b01001, 0b10111))
    even = np.roll(s, -first) * np.roll(c, -id_2)
    odd = np.roll(s, -second) * np.roll(c, -id_2 - 3) * np.roll(z, -(first % 8))
    return np.stack([even, odd], axis=1).ravel()


def nr_pss(id_2):
    return np.roll(shift_register(0b0010001, 0b1110110, 7, 127), -43 * id_2)


def nr_sss(cell_id):
    id_1, id_2 = divmod(cell_id, 3)
    x_0, x_1 = (shift_register(taps, 1, 7, 127) for taps in (0b0010001, 0b0000011))
    return np.roll(x_0, -15 * (id_1 // 112) - 5 * id_2) * np.roll(x_1, -(id_1 % 112))


def pbch_dmrs(cell_id, number):
    c_init = 2**11 * (number + 1) * (cell_id // 4 + 1) + 2**6 * (number + 1) + cell_id % 4
    signs = shift_register(0b1001, 1, 31, 1888) * shift_register(0b1111, c_init, 31, 1888)
    return (signs[1600::2] + 1j * signs[1601::2]) / np.sqrt(2)


def qpsk(rng, *shape):
    return (rng.choice([-1, 1], shape) + 1j * rng.choice([-1, 1], shape)) / np.sqrt(2)


def modulate(grid, prefixes, size):
    """grid: [symbols, size], its middle column at 0 Hz -> samples, with the prefixes given for each symbol."""
    symbols = np.fft.ifft(np.fft.ifftshift(grid, axes=1), norm="ortho")
    return np.concatenate(
        [np.r_[one[size - prefix :], one] for one, prefix in zip(symbols, prefixes, strict=True)]
    )


def received(frame, repeats, made_hz, sample_rate_hz, delay_s, offset_hz, snr_db, rng):
    """The periodic `frame` repeated at another sample rate, late by delay_s, off by offset_hz, with noise of
    unit power in all of the band and the carrier snr_db above it.
    """
    count = round(len(frame) * sample_rate_hz / made_hz)
    bins = np.fft.fft(frame) * np.exp(-2j * np.pi * np.fft.fftfreq(len(frame), 1 / made_hz) * delay_s)
    keep = min(count, len(frame)) // 2
    resampled = np.zeros(count, complex)
    resampled[:keep], resampled[-keep:] = bins[:keep], bins[-keep:]
    iq = np.tile(np.fft.ifft(resampled) * count / len(frame), repeats)
    iq *= np.exp(2j * np.pi * offset_hz / sample_rate_hz * np.arange(len(iq)))
    # A subcarrier of power 1 in the grid has the power spectral density of noise with a power of 1 at
    # made_hz.
    return (iq * 10 ** (snr_db / 20) + noise(len(iq), rng) * np.sqrt(sample_rate_hz / made_hz)).astype(
        np.complex64
    )


def noise(count, rng):
    return ((rng.standard_normal(count) + 1j * rng.standard_normal(count)) / np.sqrt(2)).astype(np.complex64)


def lte_frame(cell_id, duplex, rng, blocks=50):
    """10 ms at 30.72 MHz: PSS, SSS and random QPSK on all the rest; of a TDD cell, in the subframes of
    configuration 0.
    """
    grid = np.zeros((20, 7, 2048), complex)  # slot, symbol, subcarrier
    used = 1024 + np.delete(np.arange(-6 * blocks, 6 * blocks + 1), 6 * blocks)
    grid[..., used] = qpsk(rng, 20, 7, len(used))
    if duplex == "TDD":
        grid[4:10], grid[14:20], grid[2:4, 3:], grid[12:14, 3:] = 0, 0, 0, 0
    sync = 1024 + np.r_[-31:0, 1:32]
    pss_at, sss_at = {"FDD": ((0, 6), (0, 5)), "TDD": ((2, 2), (1, 6))}[duplex]  # slot, symbol
    for half in range(2):
        for (slot, symbol), values in ((pss_at, lte_pss(cell_id % 3)), (sss_at, lte_sss(cell_id, half))):
            grid[slot + 10 * half, symbol, 1024 - 36 : 1024 + 37] = 0
            grid[slot + 10 * half, symbol, sync] = values
    return modulate(grid.reshape(140, 2048), np.tile(PREFIXES, 20), 2048)


def nr_frame(cell_id, spacing_hz, firsts, numbers, rng, half=0, center=40, blocks=50):
    """10 ms at 2048 × spacing_hz: SSBs with the numbers given in their DM-RS, from symbols `firsts` of the
    half-frame, and random QPSK around; SSBs are `center` subcarriers above 0 Hz.
    """
    per_half_ms = round(7 * spacing_hz / 15e3)
    grid = np.zeros((20 * per_half_ms, 2048), complex)
    grid[:, 1024 - 6 * blocks : 1024 + 6 * blocks] = qpsk(rng, len(grid), 12 * blocks)
    for first, number in zip(firsts, numbers, strict=True):
        block = np.zeros((4, 240), complex)
        block[1::2] = qpsk(rng, 2, 240)
        block[2, :48], block[2, 192:] = qpsk(rng, 2, 48)
        block[0, 56:183], block[2, 56:183] = nr_pss(cell_id % 3), nr_sss(cell_id)
        k = np.arange(cell_id % 4, 240, 4)
        places = (
            [(1, one) for one in k]
            + [(2, one) for one in k if one < 48 or one >= 192]
            + [(3, one) for one in k]
        )
        block[tuple(np.transpose(places))] = pbch_dmrs(cell_id, number)
        grid[first + 10 * per_half_ms * half + np.arange(4), 1024 + center - 120 : 1024 + center + 120] = (
            block
        )
    grid *= np.exp(2j * np.pi * 0.3 * np.arange(len(grid)))[
        :, None
    ]  # TS 38.211 5.4: any phase from symbol to symbol
    longer = round(16 * spacing_hz / 15e3)
    prefixes = np.tile(np.array([144 + longer] + [144] * (per_half_ms - 1)), 20)
    return modulate(grid, prefixes, 2048)


def tolerance_s(sample_rate_hz):
    return max(2 / sample_rate_hz, 65e-9)


def apart(a, b, modulo):
    return abs((a - b + modulo / 2) % modulo - modulo / 2)


def test_every_sequence_is_the_one_written_here():
    assert len(cell_search.LTE.sss[0]) == 168
    for cell_id in range(504):
        for half in range(2):
            np.testing.assert_array_equal(
                cell_search.LTE.sss[half, cell_id // 3, cell_id % 3], lte_sss(cell_id, half)
            )
    nr = cell_search._nr(30e3)
    assert len(nr.sss[0]) == 336
    for cell_id in range(1008):
        np.testing.assert_array_equal(nr.sss[0, cell_id // 3, cell_id % 3], nr_sss(cell_id))
    for id_2 in range(3):
        np.testing.assert_allclose(cell_search.LTE.pss[id_2], lte_pss(id_2), atol=1e-9)
        np.testing.assert_array_equal(nr.pss[id_2], nr_pss(id_2))


@pytest.mark.parametrize(
    ("sample_rate_hz", "cell_id", "duplex", "offset_hz", "center_hz"),
    [
        (1.92e6, 0, "FDD", 0.0, 0.0),
        (1.92e6, 503, "TDD", 14.9e3, 0.0),
        (2.4e6, 88, "FDD", -15e3, 100e3),
        (7.68e6, 301, "TDD", -6.2e3, -1.3e6),
        (10e6, 167, "FDD", 7.4e3, 2e6),
        (20e6, 334, "TDD", 2.5e3, -3.123e6),
        (30.72e6, 21, "FDD", -9.99e3, 9.5e6),
        (40e6, 475, "FDD", 12.3e3, 0.0),
        (61.44e6, 270, "TDD", -3.7e3, 25e6),
        (122.88e6, 411, "FDD", 5.1e3, -50e6),
    ],
)
def test_lte_cell_is_found_at_10_db(sample_rate_hz, cell_id, duplex, offset_hz, center_hz):
    rng = np.random.default_rng(cell_id)
    delay_s = rng.uniform(0, 0.01)
    repeats = 2 if sample_rate_hz > 20e6 else 4
    frame = lte_frame(cell_id, duplex, rng)
    iq = received(frame, repeats, 30.72e6, sample_rate_hz, delay_s, center_hz + offset_hz, 10, rng)
    found = find_lte(iq, sample_rate_hz, center_hz)
    assert (found.technology, found.cell_id, found.duplex, found.ssb_index) == ("LTE", cell_id, duplex, None)
    assert apart(found.frame_start_s, delay_s, found.frame_modulo_s) < tolerance_s(sample_rate_hz)
    assert found.frame_modulo_s == 0.01
    assert abs(found.offset_hz - offset_hz) < 200


CASES = {
    # case: spacing, first symbol of each index (TS 38.213 4.1)
    "A": (15e3, (2, 8, 16, 22, 30, 36, 44, 50)),
    "B": (30e3, (4, 8, 16, 20, 32, 36, 44, 48)),
    "C": (30e3, (2, 8, 16, 22, 30, 36, 44, 50)),
}


@pytest.mark.parametrize(
    ("sample_rate_hz", "cell_id", "case", "num_ssb", "half", "index", "offset_hz"),
    [
        (7.68e6, 0, "A", 8, 0, 0, -15e3),
        (7.68e6, 1007, "C", 4, 1, 3, 3.3e3),
        (10e6, 333, "A", 8, 1, 7, 7.7e3),
        (20e6, 500, "B", 8, 0, 5, 14.9e3),
        (23.04e6, 77, "C", 8, 0, 6, -400.0),
        (30.72e6, 618, "A", 4, 0, 1, 2.4e3),
        (40e6, 2, "B", 4, 1, 2, -14e3),
        (61.44e6, 839, "C", 8, 0, 4, 10e3),
        (122.88e6, 447, "B", 8, 0, 3, -8.1e3),
    ],
)
def test_nr_cell_is_found_at_10_db(sample_rate_hz, cell_id, case, num_ssb, half, index, offset_hz):
    rng = np.random.default_rng(cell_id)
    spacing_hz, firsts = CASES[case]
    delay_s = rng.uniform(0, 0.01)
    number = index if num_ssb == 8 else index + 4 * half
    frame = nr_frame(cell_id, spacing_hz, [firsts[index]], [number], rng, half)
    iq = received(frame, 2, 2048 * spacing_hz, sample_rate_hz, delay_s, offset_hz, 10, rng)
    found = find_nr(iq, sample_rate_hz, 40 * spacing_hz, spacing_hz, case=case, num_ssb=num_ssb)
    assert (found.technology, found.cell_id, found.duplex, found.ssb_index) == ("NR", cell_id, "", index)
    assert found.frame_modulo_s == (0.005 if num_ssb == 8 else 0.01)
    assert apart(found.frame_start_s, delay_s, found.frame_modulo_s) < tolerance_s(sample_rate_hz)
    assert abs(found.offset_hz - offset_hz) < 500


def test_any_ssb_of_a_burst_gives_the_same_half_frame():
    rng = np.random.default_rng(3)
    spacing_hz, firsts = CASES["C"]
    frame = nr_frame(123, spacing_hz, firsts, range(8), rng)
    iq = received(frame, 1, 61.44e6, 7.68e6, 0.0, 0.0, 20, rng)
    for index, first in enumerate(firsts):
        after = round((first * 0.0005 / 14 - 20e-6) * 7.68e6)  # the four symbols of one SSB and a little more
        alone = np.zeros_like(iq)
        alone[after : after + 1400] = iq[after : after + 1400]
        found = find_nr(alone + noise(len(iq), rng), 7.68e6, 40 * spacing_hz)
        assert (found.cell_id, found.ssb_index) == (123, index)
        assert apart(found.frame_start_s, 0.0, 0.005) < 2 / 7.68e6


def test_a_wider_search_finds_a_cell_far_off():
    rng = np.random.default_rng(4)
    lte = received(lte_frame(200, "FDD", rng), 1, 30.72e6, 7.68e6, 1e-3, 87.6e3, 10, rng)
    assert find_lte(lte, 7.68e6) is None
    assert find_lte(lte, 7.68e6, max_offset_hz=100e3).offset_hz == pytest.approx(87.6e3, abs=200)
    nr = received(nr_frame(200, 30e3, [2], [0], rng), 1, 61.44e6, 30.72e6, 1e-3, 0.0, 10, rng)
    assert find_nr(nr, 30.72e6) is None
    assert find_nr(nr, 30.72e6, max_offset_hz=2e6).offset_hz == pytest.approx(1.2e6, abs=500)


@pytest.mark.slow
def test_metrics_of_noise_stay_far_under_the_threshold(monkeypatch):
    """40 recordings each. Each step of 1 is ten times rarer: of 750, one was over 6."""
    monkeypatch.setattr(cell_search, "THRESHOLD", -np.inf)
    monkeypatch.setattr(cell_search, "DMRS_THRESHOLD", 0)
    for seed in range(40):
        iq = noise(38_400, np.random.default_rng(seed))
        lte, nr = find_lte(iq, 1.92e6), find_nr(iq, (3.84e6, 7.68e6)[seed % 2], 0.0, (15e3, 30e3)[seed % 2])
        assert 0 < lte.metric < 7
        assert 0 < nr.metric < 7


def test_pbch_dmrs_of_noise_fit_no_index():
    nr = cell_search._nr(30e3)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        cell = cell_search._Cell(100.0, int(rng.integers(1008)), "", 0, 100.0, nr.rate_hz, noise(2000, rng))
        assert cell_search._known_dmrs(cell, nr) is None


@pytest.mark.parametrize("kind", ["nothing", "tone", "pulses", "OFDM", "bursts", "empty"])
def test_nothing_is_found_in_what_is_no_cell(kind):
    rng = np.random.default_rng(5)
    count = 153_600  # 20 ms at 7.68 MHz
    iq = noise(count, rng)
    if kind == "nothing":
        iq[:] = 0
    elif kind == "tone":
        iq += 1000 * np.exp(2j * np.pi * np.array([0.01, -0.0031, 3e-5])[:, None] * np.arange(count)).sum(
            axis=0
        )
    elif kind == "pulses":
        iq[:: 7680 // 20] += 1000
    elif kind == "OFDM":  # of an LTE cell, but without PSS and SSS; 15 kHz, loaded
        grid = np.zeros((280, 512), complex)
        grid[:, 256 - 150 : 256 + 150] = qpsk(rng, 280, 300)
        iq = received(modulate(grid, np.tile(PREFIXES // 4, 40), 512), 1, 7.68e6, 7.68e6, 0.0, 0.0, 20, rng)
    elif kind == "bursts":
        iq *= 1000 ** (np.arange(count) // 5000 % 2)
    else:
        iq = iq[:100]
    assert find_lte(iq, 7.68e6) is None
    assert find_nr(iq, 7.68e6) is None


def capture(name):
    recording = open_recording(CAPTURES / f"{name}.sigmf-meta")[0]
    return recording.read(0, recording.num_samples), recording.sample_rate_hz


@needs_captures
@pytest.mark.parametrize(
    ("name", "cell_id", "offset_hz"),
    [
        ("lte-f1815.3-s19.2-bw20-0.08s-hackrf", 300, 14.0e3),
        ("lte-f1815.3-s19.2-bw20-0.08s-hackrf-2", 301, 14.3e3),
        ("lte-f1815.3-s19.2-bw20-0.08s-hackrf-4", 301, 15.9e3),
        ("lte-f796-s19.2-bw20-0.08s-hackrf", 360, 6.2e3),
        ("lte-f806-s19.2-bw20-0.08s-hackrf", 300, 6.0e3),
        ("lte-f796-s1.92-bw1.2-0.08s-rtlsdr", 360, -49.1e3),
        ("lte-capbuf-0000-739MHz", 277, 35.3e3),
        ("lte-signal.1.92M", 150, -0.2e3),
        ("lte-signal.1.92M.amar", 1, 0.0),
    ],
)
def test_lte_captures_have_their_cell(name, cell_id, offset_hz):
    """The first five have it in their annotations, from other software, which found 360 on the carrier of the
    sixth too.
    The ids of the last three, and all the offsets, are what this searcher found: stored against changes."""
    annotated = re.findall(r"pci=(\d+)", (CAPTURES / f"{name}.sigmf-meta").read_text())
    assert all(int(one) == cell_id for one in annotated)
    found = find_lte(*capture(name), max_offset_hz=60e3)
    assert (found.cell_id, found.duplex) == (cell_id, "FDD")
    assert found.offset_hz == pytest.approx(offset_hz, abs=300)
    if name.startswith("lte-signal"):  # cut at a frame's first sample
        assert apart(found.frame_start_s, 0.0, 0.01) < 1 / 1.92e6


@needs_captures
@pytest.mark.parametrize(
    ("name", "spacing_hz", "center_hz", "cell_id"),
    [
        ("nr-amarisoft-n78-20MHz-23.04Msps", 30e3, -1.26e6, 500),
        ("nr-cyberx-n78-40MHz-46.08Msps", 30e3, -0.36e6, 1),
        ("nr-effnet-23.04Msps", 30e3, 0.0, 0),
        ("nr-oai-n78-40mhz-3427.5-46.08Msps", 30e3, 7.38e6, 1),
        ("nr-srsran-n3-20MHz-23.04Msps", 15e3, -7.35e6, 1),
        ("nr-srsran-n5-10MHz-11.52Msps", 15e3, -1.95e6, 1),
        ("nr-srsran-n78-20MHz-23.04Msps", 30e3, -5.58e6, 1),
        ("nr-srsran-n78-3502.8MHz-46.08Msps", 30e3, 9.84e6, 500),
        ("nr-srsran-n78-40MHz-46.08Msps", 30e3, -14.22e6, 1),
    ],
)
def test_nr_captures_have_their_cell_on_the_synchronization_raster(name, spacing_hz, center_hz, cell_id):
    """The ids are what this searcher found, but for 500 of 3502.8MHz, which the metadata say; so the raster
    is the judge.

    Above 3 GHz it is 3 GHz + n · 1.44 MHz, below n · 1.2 MHz + {1, 3, 5} · 50 kHz (TS 38.104 5.4.3.1)."""
    iq, sample_rate_hz = capture(name)
    raster_hz = open_recording(CAPTURES / f"{name}.sigmf-meta")[0].center_freq_hz + center_hz
    if raster_hz > 3e9:
        assert (raster_hz - 3e9) % 1.44e6 == 0
    else:
        assert raster_hz % 1.2e6 in (50e3, 150e3, 250e3)
    found = find_nr(iq, sample_rate_hz, center_hz, spacing_hz)
    assert (found.cell_id, found.ssb_index) == (cell_id, 0)
    assert abs(found.offset_hz) < 300


@needs_captures
def test_captures_of_something_else_have_no_cell():
    names = [path.stem for path in CAPTURES.glob("*.sigmf-meta") if not path.stem.startswith(("lte-", "nr-"))]
    assert len(names) >= 7
    for name in names:
        iq, sample_rate_hz = capture(name)
        if sample_rate_hz > 0.96e6:
            assert find_lte(iq, sample_rate_hz) is None, name
        if sample_rate_hz > 3.84e6:
            assert find_nr(iq, sample_rate_hz) is None, name


@needs_captures
def test_lte_captures_have_no_nr_cell_and_nr_captures_no_lte_cell():
    for path in CAPTURES.glob("*.sigmf-meta"):
        iq, sample_rate_hz = capture(path.stem)
        if path.stem.startswith("nr-"):
            assert find_lte(iq, sample_rate_hz) is None, path.stem
        if path.stem.startswith("lte-") and sample_rate_hz > 3.84e6:
            assert find_nr(iq, sample_rate_hz) is None, path.stem
