"""Cell search, against signals that `test_cell_search` makes from the clauses, scenes, real captures and noise.

`tests.cell_search`, which knows nothing of `radio`, is the judge of its sequences.
"""

import math

import numpy as np
import pytest
import torch
from scipy.stats import gamma
from support import CAPTURES, needs_captures

from radio import cell_search
from radio.carriers import LTE, NR
from radio.cell_bandwidth import NUM_RB
from radio.cell_evidence import decades, weigh
from radio.cell_peaks import find_peaks
from radio.cell_search import search
from radio.cell_signals import lte_sync, nr_sync
from radio.recordings import open_recording
from radio.rng import Stream
from radio.scenes import lte
from radio.scenes.channel import Fading
from radio.scenes.receiver import Receiver
from radio.scenes.scene import Scene, Transmission, render
from radio.scenes.traffic import Traffic
from tests import cell_search as judge
from tests.test_cell_search import CASES, apart, lte_frame, noise, nr_frame, received

PSS_AT_S = {
    "FDD": (160 + 6 * 2192) / 30.72e6,
    "TDD": 1e-3 + (160 + 2 * 2192) / 30.72e6,
}  # in LTE's half-frame


def lte_iq(cell_id, duplex, sample_rate_hz, offset_hz=0.0, snr_db=10, repeats=1, delay_s=0.0, seed=0):
    rng = np.random.default_rng(seed)
    frame = lte_frame(cell_id, duplex, rng)
    return received(frame, repeats, 30.72e6, sample_rate_hz, delay_s, offset_hz, snr_db, rng)


def nr_iq(
    cell_id, spacing_hz, sample_rate_hz, offset_hz=0.0, snr_db=10, delay_s=0.0, indices=(0,), case=None
):
    """10 ms; the SSB's subcarrier 120 lies at 40 subcarriers + offset_hz."""
    rng = np.random.default_rng(cell_id)
    _, firsts = CASES[case or {15e3: "A", 30e3: "C"}[spacing_hz]]
    frame = nr_frame(cell_id, spacing_hz, [firsts[index] for index in indices], indices, rng)
    return received(frame, 1, 2048 * spacing_hz, sample_rate_hz, delay_s, offset_hz, snr_db, rng)


def around(hz, reach_hz=100e3):
    return [(hz - reach_hz, hz + reach_hz)]


def ids(cells):
    return [(cell.technology, cell.cell_id) for cell in cells]


# Sequences and statistics


def test_every_sequence_is_the_judges():
    sync = lte_sync()
    np.testing.assert_allclose(sync.pss, judge.LTE.pss, atol=1e-6)
    np.testing.assert_array_equal(sync.sss, judge.LTE.sss.transpose(2, 0, 1, 3))
    np.testing.assert_array_equal(sync.tones, judge.LTE.tones)
    for spacing_hz in (15e3, 30e3):
        sync, theirs = nr_sync(spacing_hz), judge._nr(spacing_hz)
        np.testing.assert_array_equal(sync.pss, theirs.pss)
        np.testing.assert_array_equal(sync.sss, theirs.sss.transpose(2, 0, 1, 3))
        np.testing.assert_array_equal(sync.tones, theirs.tones)
        for root, parts in enumerate(sync.roots):  # cut into parts, each PSS is the same
            for number, middle in parts:
                tones, values = sync.parts[number]
                np.testing.assert_array_equal(values, sync.pss[root][tones + middle - sync.tones[0]].real)


def test_a_shifted_pss_of_lte_is_a_later_one():
    sync = lte_sync()
    for pss, (shift, late) in zip(sync.pss, sync.images, strict=True):
        tones = np.arange(-31, 32)
        whole = np.insert(pss, 31, 0)
        later = whole * np.exp(-2j * np.pi * tones * late)
        assert abs(np.vdot(whole[:-shift], later[shift:])) > 61 - shift - 1.01


def test_decades_are_the_tail_of_a_gamma_distribution():
    count = torch.tensor([1.0, 2.0, 16.0, 3.7, 8.0])
    total = torch.tensor([10.0, 40.0, 70.0, 20.0, 600.0])
    np.testing.assert_allclose(decades(count, total), -gamma.logsf(total, count) / math.log(10), rtol=1e-6)
    far = decades(torch.tensor(4.0), torch.tensor([600.0, 640.0, 650.0, 660.0, 700.0, 3000.0]))
    assert far.diff().min() > 3  # where the tail is below the smallest double, too
    assert far[-1] == pytest.approx(3000 / math.log(10), rel=0.01)


@pytest.mark.parametrize("sync", [lte_sync(), nr_sync(15e3)], ids=["LTE", "NR"])
def test_evidence_of_noise_has_its_distribution(sync):
    """One PSS and one SSS at fixed places: the share with d decades or more is 10^-d, whatever the scale."""
    iq = torch.from_numpy(noise(38_400, np.random.default_rng(1))) * 1e-3
    peaks = find_peaks(iq, 3.84e6, sync, [(-5e5, 5e5)], 20)
    found = weigh(iq, 3.84e6, sync, peaks)
    sss = np.array([one.sss for one in found])  # the best of all identities
    looks = sync.sss[0, ..., 0].size * len(sync.after_s)
    assert len(sss) >= 20
    assert np.log10(looks) - 1 < np.median(sss) < np.log10(looks) + 1
    assert sss.max() < np.log10(looks * len(sss)) + 2.5


# Cells


@pytest.mark.parametrize(
    ("sample_rate_hz", "cell_id", "duplex", "offset_hz"),
    [
        (0.96e6, 167, "FDD", 2e3),
        (1.92e6, 503, "TDD", 35e3),
        (2.4e6, 88, "FDD", -21e3),
        (10e6, 301, "TDD", 3.123e6),
        (30.72e6, 21, "FDD", -9.99e6),
        (61.44e6, 270, "TDD", 25.004e6),
    ],
)
def test_lte_cell_is_found(sample_rate_hz, cell_id, duplex, offset_hz):
    delay_s = np.random.default_rng(cell_id).uniform(0, 0.01)
    iq = lte_iq(cell_id, duplex, sample_rate_hz, offset_hz, delay_s=delay_s)
    cell, *others = search(iq, sample_rate_hz, near_hz=around(offset_hz))
    assert not others
    assert (cell.technology, cell.cell_id, cell.duplex, cell.spacing_hz) == (LTE, cell_id, duplex, 15e3)
    assert cell.center_freq_hz == pytest.approx(offset_hz, abs=300)
    assert apart(cell.start_s, delay_s + PSS_AT_S[duplex], 5e-3) < max(1 / sample_rate_hz, 0.2e-6)
    assert 0 <= cell.start_s < 10e-3
    assert cell.snr_db == pytest.approx(10, abs=2)
    assert cell.metric > 50
    assert cell.occasions_s == ()


@pytest.mark.parametrize(
    ("sample_rate_hz", "cell_id", "spacing_hz", "case", "offset_hz"),
    [
        (1.92e6, 1007, 15e3, "A", -602e3),
        (2.4e6, 334, 15e3, "A", -590e3),
        (10e6, 2, 30e3, "B", 1.1e6),
        (23.04e6, 839, 15e3, "A", -8.4e6),
        (61.44e6, 500, 30e3, "C", 20.02e6),
    ],
)
def test_nr_cell_is_found_at_each_of_its_ssbs(sample_rate_hz, cell_id, spacing_hz, case, offset_hz):
    indices, delay_s = (0, 1, 6), 1e-3
    iq = nr_iq(cell_id, spacing_hz, sample_rate_hz, offset_hz, delay_s=delay_s, indices=indices, case=case)
    center_hz = 39.5 * spacing_hz + offset_hz
    cell, *others = search(iq, sample_rate_hz, near_hz=around(center_hz))
    assert not others
    assert (cell.technology, cell.cell_id, cell.duplex, cell.spacing_hz) == (NR, cell_id, "", spacing_hz)
    assert cell.center_freq_hz == pytest.approx(center_hz, abs=spacing_hz / 50)
    assert cell.num_rb is None
    symbols = np.array([CASES[case][1][index] for index in indices])
    prefix_s, symbol_s = 144 / 2048 / spacing_hz, 2192 / 2048 / spacing_hz
    longer_s = (
        (1 + symbols // round(7 * spacing_hz / 15e3)) * 16 / 30.72e6
    )  # each half millisecond's first prefix
    np.testing.assert_allclose(
        cell.occasions_s, delay_s + longer_s + symbols * symbol_s + prefix_s, atol=0.3e-6
    )
    assert cell.start_s == cell.occasions_s[0]


def test_a_millisecond_is_enough():
    nr = nr_iq(77, 30e3, 7.68e6, delay_s=0.2e-3)[:7680]
    assert ids(search(nr, 7.68e6)) == [(NR, 77)]
    lte = lte_iq(150, "FDD", 1.92e6, delay_s=0.2e-3)[:1920]
    assert ids(search(lte, 1.92e6)) == [(LTE, 150)]


def test_the_centre_may_be_anywhere_and_is_given_at_rf():
    iq = lte_iq(13, "FDD", 7.68e6, -1.2345e6, snr_db=0)
    (cell,) = search(iq, 7.68e6, center_freq_hz=2.1e9)
    assert (cell.cell_id, cell.center_freq_hz) == (13, pytest.approx(2.1e9 - 1.2345e6, abs=500))
    assert search(torch.from_numpy(iq), 7.68e6)[0].center_freq_hz == pytest.approx(-1.2345e6, abs=500)
    assert search(iq, 7.68e6, 2.1e9, near_hz=[(2.0995e9, 2.1005e9)]) == []
    assert ids(search(iq, 7.68e6, 2.1e9, near_hz=[(2.1e9, 2.1e9), (2.0985e9, 2.099e9)])) == [(LTE, 13)]


def test_clocks_that_differ_by_50_ppm():
    rate_hz, ppm = 7.68e6, 50e-6
    center_hz = 3.5e9
    iq = nr_iq(618, 30e3, rate_hz * (1 + ppm), snr_db=3)
    shift = np.exp(2j * np.pi * center_hz * ppm * np.arange(len(iq)) / rate_hz).astype(np.complex64)
    (cell,) = search(iq * shift, rate_hz, center_hz)
    assert cell.cell_id == 618
    assert cell.center_freq_hz == pytest.approx(center_hz * (1 + ppm) + 39.5 * 30e3, abs=1500)
    iq = lte_iq(
        9, "FDD", 1.92e6 * (1 + ppm), snr_db=-5, repeats=4
    )  # half-frames shift by two samples in 40 ms
    assert ids(search(iq, 1.92e6)) == [(LTE, 9)]


def test_two_cells_in_a_band_and_two_on_one_frequency():
    iq = lte_iq(31, "FDD", 10e6, -2.5e6, snr_db=20, delay_s=1e-3) + lte_iq(
        44, "TDD", 10e6, 2.5e6, delay_s=2e-3
    )
    assert set(ids(search(iq, 10e6, near_hz=[*around(-2.5e6), *around(2.5e6)]))) == {(LTE, 31), (LTE, 44)}
    iq = lte_iq(31, "FDD", 1.92e6, delay_s=1e-3) + lte_iq(44, "FDD", 1.92e6, delay_s=1e-3, seed=1)
    assert set(ids(search(iq, 1.92e6))) == {(LTE, 31), (LTE, 44)}


@pytest.mark.parametrize(("image_db", "expected"), [(-26, 1), (-10, 2)])
def test_a_much_weaker_image_is_no_cell(image_db, expected):
    """Another carrier of the same site, with the same identity and timing, is one."""
    rate_hz, move_hz = 7.68e6, 3e6
    iq = torch.as_tensor(lte_scene(6, rate_hz, snr_db=30.0, offset_hz=-1.5e6))
    turns = torch.from_numpy(np.exp(2j * np.pi * move_hz * np.arange(len(iq)) / rate_hz))
    iq = (iq + 10 ** (image_db / 20) * iq * turns).to(torch.complex64)
    found = search(iq, rate_hz, near_hz=[*around(-1.5e6, 5e3), *around(-1.5e6 + move_hz, 5e3)])
    assert ids(found) == [(LTE, 48)] * expected
    assert found[0].center_freq_hz == pytest.approx(-1.5e6, abs=500)


def test_a_barely_heard_lte_cell_shows_reference_signals(monkeypatch):
    """One that is heard well may do without, as in a test signal of PSS and SSS alone."""
    signal = lte_iq(31, "FDD", 1.92e6)
    assert ids(search(signal, 1.92e6)) == [(LTE, 31)]
    monkeypatch.setattr(cell_search, "_SURE_SSS", 1e3)
    assert search(signal, 1.92e6) == []
    assert ids(search(lte_scene(6, 1.92e6), 1.92e6)) == [(LTE, 48)]


def test_channels_are_searched_one_by_one():
    iq = np.stack([lte_iq(31, "FDD", 1.92e6), noise(19_200, np.random.default_rng(0))])
    assert ids(search(iq, 1.92e6)) == ids(search(iq[::-1].copy(), 1.92e6)) == [(LTE, 31)]


def test_real_samples_have_a_cell_at_positive_frequencies_only():
    iq = lte_iq(100, "FDD", 7.68e6, 1.5e6, snr_db=20)
    real = iq.real.astype(np.complex64)
    (cell,) = search(real, 7.68e6, is_real=True)
    assert (cell.cell_id, cell.center_freq_hz) == (100, pytest.approx(1.5e6, abs=300))


@pytest.mark.parametrize("duplex", ["FDD", "TDD"])
def test_poor_receivers_and_padding(duplex):
    """Steps of half the signal's rms, a DC spike a hundred times stronger, zeros before and after."""
    iq = lte_iq(222, duplex, 1.92e6)
    iq = np.pad(iq / np.sqrt(np.mean(np.abs(iq) ** 2)) * 2 * np.sqrt(2), (5000, 7000))
    iq[5000:-7000] += 30 + 20j
    iq = np.round(iq.real) + 1j * np.round(iq.imag)
    assert ids(search(iq.astype(np.complex64) / 128, 1.92e6)) == [(LTE, 222)]


def test_a_cell_without_any_noise():
    iq = lte_iq(222, "TDD", 1.92e6, snr_db=200) * 1e-9
    assert ids(search(iq.astype(np.complex64), 1.92e6)) == [(LTE, 222)]


# No cells


@pytest.mark.parametrize(
    "kind", ["noise", "silence", "tone", "pulses", "repeated", "bursts", "short", "none"]
)
def test_nothing_is_found_in_what_is_no_cell(kind):
    rng = np.random.default_rng(5)
    iq = noise(39_000, rng)
    if kind == "silence":
        iq[:] = 0
    elif kind == "tone":
        iq += 1000 * np.exp(2j * np.pi * np.array([[0.01], [-0.0031], [3e-5]]) * np.arange(len(iq))).sum(
            axis=0
        )
    elif kind == "pulses":
        iq[::192] += 1000
    elif kind == "repeated":  # one half-frame, again and again
        iq = np.tile(iq[:9600], 4) + 0.01 * noise(38_400, rng)
    elif kind == "bursts":
        iq *= 1000 ** (np.arange(len(iq)) // 1500 % 2)
    elif kind == "short":
        iq = iq[:200]
    elif kind == "none":
        iq = iq[:0]
    assert search(iq, 1.92e6) == []


def test_what_repeats_is_no_new_evidence():
    """The strongest likeness of a half-frame of noise, eight times, is as improbable as once."""
    once = noise(9600, np.random.default_rng(8))
    found = {}
    for repeats in (1, 8):
        iq = torch.from_numpy(np.tile(once, repeats))
        found[repeats] = weigh(iq, 1.92e6, lte_sync(), find_peaks(iq, 1.92e6, lte_sync(), [(-4e5, 4e5)], 20))
    assert max(one.sss for one in found[8]) < max(one.sss for one in found[1]) + 1


@pytest.mark.parametrize(
    ("iq", "sample_rate_hz", "options"),
    [
        (np.zeros(100), 1e6, {}),
        (np.zeros((2, 2, 100), complex), 1e6, {}),
        (np.zeros(100, complex), 0.0, {}),
        (np.zeros(100, complex), math.nan, {}),
        (np.full(10_000, np.nan, complex), 1e6, {}),
        (np.zeros(100, complex), 1e6, {"near_hz": [(1e3, -1e3)]}),
        (np.zeros(100, complex), 1e6, {"near_hz": [(math.nan, 1e3)]}),
    ],
)
def test_impossible_input(iq, sample_rate_hz, options):
    with pytest.raises(ValueError, match="expected"):
        search(iq, sample_rate_hz, **options)


# Bandwidth


def lte_scene(num_rb, sample_rate_hz, duplex="FDD", duration_s=0.01, snr_db=15.0, offset_hz=0.0, seed=0):
    cell = lte.LteCell(num_rb, 8 * num_rb % 504, duplex, 2, num_ports=2, control_symbols=3)
    transmission = Transmission(
        cell=cell,
        traffic=Traffic(users=seed % 3, busy=0.5, filled=0.4),
        offset_hz=offset_hz,
        first_sample_s=3.21e-3,
        first_slot=3,
        num_slots=math.ceil(duration_s * 1e3) + 2,
        snr_db=snr_db,
        fading=Fading("TDL-A", 100e-9, 5.0, seed),
        backoff_db=None,
        edge_s=0.0,
    )
    count = round(duration_s * sample_rate_hz)
    return render(Scene(Stream(seed), sample_rate_hz, count, 2e9, 0.0, (transmission,), (), Receiver()))


@pytest.mark.parametrize("duplex", ["FDD", "TDD"])
@pytest.mark.parametrize("num_rb", NUM_RB)
def test_bandwidth_is_that_of_the_reference_signals(num_rb, duplex):
    sample_rate_hz = 30.72e6 if num_rb > 50 else 15.36e6
    iq = lte_scene(num_rb, sample_rate_hz, duplex, seed=num_rb)
    (cell,) = search(iq, sample_rate_hz, near_hz=around(0.0, 5e3))
    assert (cell.duplex, cell.num_rb) == (duplex, num_rb)


def test_bandwidth_beyond_the_band_is_unknown():
    for offset_hz in (0.0, 400e3):
        (cell,) = search(lte_scene(50, 3.84e6, offset_hz=offset_hz), 3.84e6, near_hz=around(offset_hz, 5e3))
        assert cell.num_rb is None
    # one side is enough
    (cell,) = search(lte_scene(25, 7.68e6, offset_hz=2.4e6), 7.68e6, near_hz=around(2.4e6, 5e3))
    assert cell.num_rb == 25


# Captures


def capture(name, longest_s=0.02):
    recording = open_recording(CAPTURES / f"{name}.sigmf-meta")[0]
    count = min(recording.num_samples, round(longest_s * recording.sample_rate_hz))
    return recording.read(0, count), recording.sample_rate_hz, recording.center_freq_hz


LTE_CAPTURES = [
    ("lte-f1815.3-s19.2-bw20-0.08s-hackrf", 300, 14.0e3, 100),
    ("lte-f1815.3-s19.2-bw20-0.08s-hackrf-2", 301, 14.3e3, 100),
    ("lte-f1815.3-s19.2-bw20-0.08s-hackrf-4", 301, 15.9e3, 100),
    ("lte-signal.1.92M", 150, -0.2e3, None),
    ("lte-signal.1.92M.amar", 1, 0.0, 6),
]
NR_CAPTURES = [
    ("nr-amarisoft-n78-20MHz-23.04Msps", 30e3, -1.26e6, 500),
    ("nr-srsran-n3-20MHz-23.04Msps", 15e3, -7.35e6, 1),
    ("nr-srsran-n78-20MHz-23.04Msps", 30e3, -5.58e6, 1),
    ("nr-srsran-n78-3502.8MHz-46.08Msps", 30e3, 9.84e6, 500),
    ("nr-srsran-n78-40MHz-46.08Msps", 30e3, -14.22e6, 1),
]


@needs_captures
@pytest.mark.parametrize(("name", "cell_id", "offset_hz", "num_rb"), LTE_CAPTURES)
def test_lte_captures_have_the_cell_that_the_judge_finds(name, cell_id, offset_hz, num_rb):
    iq, sample_rate_hz, center_freq_hz = capture(name)
    center_hz = offset_hz + (center_freq_hz or 0.0)
    (cell,) = search(iq, sample_rate_hz, center_freq_hz, near_hz=around(center_hz))
    assert (cell.technology, cell.cell_id, cell.duplex, cell.num_rb) == (LTE, cell_id, "FDD", num_rb)
    assert cell.center_freq_hz == pytest.approx(center_hz, abs=500)


@needs_captures
@pytest.mark.parametrize(("name", "spacing_hz", "offset_hz", "cell_id"), NR_CAPTURES)
def test_nr_captures_have_the_cell_that_the_judge_finds(name, spacing_hz, offset_hz, cell_id):
    iq, sample_rate_hz, center_freq_hz = capture(name)
    center_hz = center_freq_hz + offset_hz - spacing_hz / 2
    (cell,) = search(iq, sample_rate_hz, center_freq_hz, near_hz=around(center_hz))
    assert (cell.technology, cell.cell_id, cell.spacing_hz) == (NR, cell_id, spacing_hz)
    assert cell.center_freq_hz == pytest.approx(center_hz, abs=500)


@needs_captures
@pytest.mark.slow
def test_whole_bands_of_captures_have_these_cells_and_no_others():
    """In `nr-srsran-n3` something is like LTE's cell 206, but sends no reference signals that can be seen."""
    expected = {name: [(LTE, cell_id)] for name, cell_id, *_ in LTE_CAPTURES}
    expected |= {name: [(NR, cell_id)] for name, _, _, cell_id in NR_CAPTURES}
    others = ("noise-f2646", "noise-noise", "other-wifi", "other-adsb")
    expected |= {path.stem: [] for path in CAPTURES.glob("*.sigmf-meta") if path.stem.startswith(others)}
    assert len(expected) == 15
    for name, cells in expected.items():
        assert ids(search(*capture(name))) == cells, name
