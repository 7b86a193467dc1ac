"""Signals beside NR and LTE: power, place and time of every kind, and the physics that each system is known
by.
"""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch

from radio.rng import Stream
from radio.scenes import baseband
from radio.scenes.distractors import JOIN_GAP_S, KINDS, Distractor, add, boxes, draw

# (sample rate, duration, seed)
CASES = [
    (1.92e6, 40e-3, 0),
    (7.68e6, 80e-3, 1),
    (20e6, 1e-3, 2),
    (30.72e6, 10e-3, 3),
    (61.44e6, 16e-3, 4),
    (122.88e6, 5e-3, 5),
]
IDS = [f"{rate / 1e6:g}MHz" for rate, _, _ in CASES]
EVERY_KIND = [(kind, *case) for kind in KINDS for case in CASES]
every_kind = pytest.mark.parametrize(
    ("kind", "rate", "duration", "seed"),
    EVERY_KIND,
    ids=[f"{kind}-{number}" for kind in KINDS for number in IDS],
)


def rendered(distractor, sample_rate_hz, duration_s, seed=0):
    iq = torch.zeros(round(duration_s * sample_rate_hz), dtype=torch.complex64)
    add(iq, distractor, sample_rate_hz, Stream(seed))
    return iq


def drawn(kind, rate, duration, seed, low=-0.45, high=0.45, snr_db=20.0):
    """A distractor without echoes (which tilt the band), or a skip where none fits."""
    for attempt in range(8):
        found = draw(
            kind, np.random.default_rng((seed, attempt)), rate, duration, low * rate, high * rate, snr_db
        )
        if found is not None:
            return dataclasses.replace(found, delay_spread_s=0.0)
    return pytest.skip(f"no {kind} fits into {(high - low) * rate / 1e6:.1f} MHz")


def made(kind, rate, duration, seed=0, center_hz=0.0, bandwidth_hz=None, **settings):
    """IQ of one signal of known settings; of unit mean power while it sends where no bandwidth is given."""
    distractor = Distractor(kind, center_hz, bandwidth_hz or rate, 0.0, seed, settings)
    return rendered(distractor, rate, duration).numpy()


def energy_share(iq, rate, low_hz, high_hz):
    """Of the energy, weighted over time by a Hann window so that the cuts at both ends do not spread it."""
    window = torch.hann_window(len(iq), dtype=torch.float64).sqrt()
    power = torch.fft.fft(iq.to(torch.complex128) * window).abs().square()
    frequency = torch.fft.fftfreq(len(iq), 1 / rate)
    return float(power[(frequency >= low_hz) & (frequency <= high_hz)].sum() / power.sum())


def runs(on):
    """(first, last + 1) of the runs of true values that do not touch the ends: int [runs, 2]."""
    steps = np.flatnonzero(np.diff(on.astype(int)))
    steps = steps[1 if on[0] else 0 :] + 1
    return steps[: len(steps) // 2 * 2].reshape(-1, 2)


def smoothed_power(iq, length):
    return np.convolve(abs(iq) ** 2, np.ones(length) / length, "same")


# every kind


@every_kind
def test_energy_lies_within_the_bandwidth_it_states(kind, rate, duration, seed):
    one = drawn(kind, rate, duration, seed)
    iq = rendered(one, rate, duration)
    half = one.bandwidth_hz / 2
    assert torch.isfinite(torch.view_as_real(iq)).all()
    assert energy_share(iq, rate, one.center_hz - half, one.center_hz + half) > 0.975


@every_kind
def test_power_while_it_sends_is_its_snr_over_noise_in_its_bandwidth(kind, rate, duration, seed):
    one = drawn(kind, rate, duration, seed, snr_db=13.0)
    power = rendered(one, rate, duration).abs().square().double()
    sends = power > power.square().mean() / power.mean() / 100
    measured_db = 10 * torch.log10(power[sends].mean() / (one.bandwidth_hz / rate))
    assert float(measured_db) == pytest.approx(13.0, abs=0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_its_level_follows_its_snr(kind):
    one = drawn(kind, 15.36e6, 5e-3, 3, snr_db=10.0)
    weak, strong = (rendered(dataclasses.replace(one, snr_db=db), 15.36e6, 5e-3) for db in (10.0, 30.0))
    torch.testing.assert_close(10 * weak, strong, rtol=1e-3, atol=1e-4 * float(strong.abs().max()))


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_a_signal_above_the_centre_lies_above_the_centre(kind, side):
    rate, duration = 61.44e6, 5e-3
    low, high = sorted((side * 0.02, side * 0.47))
    iq = rendered(drawn(kind, rate, duration, 7, low, high), rate, duration)
    assert energy_share(iq, rate, *sorted((0.0, side * rate / 2))) > 0.98


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_makes_it_and_another_seed_makes_another(kind):
    rate, duration = 15.36e6, 4e-3
    one = drawn(kind, rate, duration, 11)
    iq = rendered(one, rate, duration)
    assert torch.equal(iq, rendered(one, rate, duration))
    read = Distractor(**json.loads(json.dumps(dataclasses.asdict(one))))
    assert torch.equal(iq, rendered(read, rate, duration))
    assert not torch.equal(iq, rendered(dataclasses.replace(one, seed=one.seed ^ 1), rate, duration))
    assert not torch.equal(iq, rendered(one, rate, duration, seed=1))


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_added_to_what_is_there(kind):
    one = drawn(kind, 15.36e6, 2e-3, 5)
    alone = rendered(one, 15.36e6, 2e-3)
    iq = torch.full_like(alone, 3 - 4j)
    add(iq, one, 15.36e6, Stream(0))
    torch.testing.assert_close(iq - (3 - 4j), alone, rtol=0, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator here")
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_same_on_an_accelerator(kind):
    one = drawn(kind, 30.72e6, 10e-3, 2)
    alone = rendered(one, 30.72e6, 10e-3)
    iq = torch.zeros_like(alone, device="cuda")
    add(iq, one, 30.72e6, Stream(0))
    torch.testing.assert_close(iq.cpu(), alone, rtol=0, atol=2e-3 * float(alone.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_draws_lie_between_the_frequencies_given_and_vary(kind):
    seen = set()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        rate = float(rng.choice([1.92e6, 15.36e6, 61.44e6, 122.88e6]))
        low_hz, high_hz = np.sort(rng.uniform(-rate / 2, rate / 2, 2))
        one = draw(kind, rng, rate, 10e-3, low_hz, high_hz, 5.0)
        if one is not None:
            assert one.kind == kind
            assert one.snr_db == 5.0
            assert low_hz <= one.center_hz - one.bandwidth_hz / 2
            assert one.center_hz + one.bandwidth_hz / 2 <= high_hz
            seen.add((one.bandwidth_hz, one.seed))
    assert len(seen) > 20


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_drawn_where_nothing_fits(kind):
    assert all(
        draw(kind, np.random.default_rng(seed), 61.44e6, 10e-3, 1e6, 1.001e6, 0.0) is None
        for seed in range(20)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_some_of_it_is_seen_however_short_the_stretch(kind):
    for seed in range(10):
        one = drawn(kind, 30.72e6, 1e-3, seed)
        assert float(rendered(one, 30.72e6, 1e-3).abs().max()) > 0


def test_echoes_keep_the_power_and_colour_the_band():
    settings = {"noise_hz": 20e6, "edge": 0.03, "tilt_db": 0.0, "burst_s": 1.0, "gap_s": 0.0, "step_db": 0.0}
    plain = Distractor("noise_burst", 0.0, 20e6, 0.0, 3, settings)
    echoed = dataclasses.replace(plain, delay_spread_s=100e-9)
    spread = []
    for one in (plain, echoed):
        iq = rendered(one, 30.72e6, 10e-3)
        assert float(iq.abs().square().mean()) == pytest.approx(20 / 30.72, rel=0.1)
        rows = torch.fft.fft(iq[: 256 * 1200].view(1200, 256)).abs().square().mean(0)
        spread.append(float(torch.log10(torch.cat([rows[:70], rows[-70:]])).std()))
    assert spread[0] < 0.04
    assert spread[1] > 3 * spread[0]


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "fax"},
        {"bandwidth_hz": 0.0},
        {"center_hz": float("nan")},
        {"seed": -1},
        {"seed": 2**31},
        {"delay_spread_s": 1.0},
        {"snr_db": float("inf")},
    ],
)
def test_wrong_values_are_named(change):
    with pytest.raises(ValueError, match=str(next(iter(change)))):
        Distractor(**{"kind": "tone", "center_hz": 0.0, "bandwidth_hz": 1e3, "snr_db": 0.0, **change})
    with pytest.raises(ValueError, match="fax"):
        draw("fax", np.random.default_rng(0), 1e6, 1e-3, -1e5, 1e5, 0.0)


# where it is seen


@every_kind
def test_its_boxes_hold_its_power(kind, rate, duration, seed):
    """On a spectrogram: nearly all of it. Every box is 20 dB above what is outside, at both of its ends too."""
    one = drawn(kind, rate, duration, seed, snr_db=60.0)
    iq, size = rendered(one, rate, duration), 256 if rate < 10e6 else 512
    frames = iq.unfold(0, size, size // 4) * torch.hann_window(size)
    power = torch.fft.fftshift(torch.fft.fft(frames), dim=1).abs().square().numpy()
    times_s = (np.arange(len(power)) * (size // 4) + size / 2) / rate
    hertz = (np.arange(size) - size // 2) * rate / size
    found = boxes(one, rate, len(iq), Stream(0))
    assert found

    def cells(start, end, low, high, frames, bins):
        """Of a box that is wider by so many frames and bins, at least one."""
        reach_s, reach_hz = frames * size / rate, bins * rate / size
        columns = (times_s >= start - reach_s) & (times_s < end + reach_s)
        rows = (hertz >= low - reach_hz) & (hertz <= high + reach_hz)
        columns[abs(times_s - (start + end) / 2).argmin()] = True
        rows[abs(hertz - (low + high) / 2).argmin()] = True
        return np.ix_(columns, rows)

    inside = np.zeros(power.shape, bool)
    for box in found:
        inside[cells(*box, 0.6, 2.5)] = True
    assert power[inside].sum() > 0.98 * power.sum()
    outside = power[~inside].mean() if (~inside).any() else 0.0
    ends = max(2, round(60e-6 * rate / (size // 4)))
    for box in found:
        level = power[cells(*box, 0.3, 0.25)].mean(axis=1)
        assert min(level.mean(), level[:ends].max(), level[-ends:].max()) > 100 * outside


BURSTS = {"symbol_rate_hz": 1e6, "roll_off": 0.25, "bits_a_symbol": 2, "burst_s": 1e-3}


@pytest.mark.parametrize(("gap_s", "joined"), [(0.3e-3, True), (0.8e-3, False)])
def test_bursts_close_to_each_other_share_a_box(gap_s, joined):
    assert 0.8 * JOIN_GAP_S > 0.3e-3
    assert 1.2 * JOIN_GAP_S < 0.8e-3  # gaps vary by a fifth
    one = Distractor("qam", 1e6, 1.25e6, 10.0, 3, BURSTS | {"gap_s": gap_s})
    found = boxes(one, 7.68e6, 76_800, Stream(0))
    assert len(found) == 1 if joined else len(found) >= 5
    for start, end, low, high in found:
        assert (low, high) == (0.375e6, 1.625e6)
        assert joined or end - start == pytest.approx(1e-3, abs=1e-9) or start == 0 or end == 10e-3


def test_what_is_not_seen_has_no_box():
    def count(snr_db, loss_db=0.0, **changes):
        one = Distractor("qam", 0.0, 1.25e6, snr_db, 3, BURSTS | {"gap_s": 0.0} | changes)
        return len(boxes(one, 7.68e6, 76_800, Stream(0), lambda frequency_hz: loss_db))

    assert (count(-2.9), count(-3.1)) == (1, 0)
    assert (count(7.0, 9.9), count(7.0, 10.1)) == (1, 0)  # the receiver's filter hides it
    # 5 µs in cells of 50 µs
    assert count(6.9, burst_s=5e-6, gap_s=1e-3) == 0
    assert count(7.1, burst_s=5e-6, gap_s=1e-3) >= 8


def test_weak_lines_of_a_comb_have_no_box():
    settings = {"num_tones": 9, "spacing_hz": 600e3, "drift_hz": 0.0, "drift_period_s": 1.0}
    settings |= {"burst_s": 1.0, "gap_s": 0.0}
    one = Distractor("tone", 1e6, 8 * 600e3 + 20e3, 60.0, 5, settings)
    lines = boxes(one, 15.36e6, 153_600, Stream(0))
    np.testing.assert_allclose(
        [(low + high) / 2 for _, _, low, high in lines], 1e6 + 600e3 * np.arange(-4, 5)
    )
    power = abs(np.fft.fft(rendered(one, 15.36e6, 10e-3).numpy())) ** 2
    frequency = np.fft.fftfreq(len(power), 1 / 15.36e6)
    levels_db = [
        10 * np.log10(power[(frequency > low) & (frequency < high)].sum() / power.sum())
        for *_, low, high in lines
    ]
    limit_db = np.median(levels_db)
    # a line's power over the noise of 1 / 256 of the band
    snr_db = -3 - limit_db - 10 * np.log10(one.bandwidth_hz / (15.36e6 / 256))
    seen = boxes(dataclasses.replace(one, snr_db=snr_db + 0.01), 15.36e6, 153_600, Stream(0))
    assert sorted(seen) == sorted(
        line for line, level in zip(lines, levels_db, strict=True) if level > limit_db - 0.005
    )


def test_boxes_end_with_the_band_and_with_the_scene():
    one = Distractor("qam", 3.5e6, 1.25e6, 10.0, 3, BURSTS | {"gap_s": 0.0})
    assert boxes(one, 7.68e6, 76_800, Stream(0)) == [(0.0, 0.01, 3.5e6 - 0.625e6, 3.84e6)]
    beyond = dataclasses.replace(one, center_hz=5e6)
    assert boxes(beyond, 7.68e6, 76_800, Stream(0)) == []


def test_slow_sweeps_are_labelled_along_the_sweep():
    settings = {"waveform": "fmcw", "sweep_hz": 4e6, "shape": "up", "idle_s": 0.0}
    slow, fast = (
        Distractor("chirp", 0.0, 4.2e6, 20.0, 1, settings | {"sweep_s": sweep_s}) for sweep_s in (5e-3, 1e-3)
    )
    assert boxes(fast, 7.68e6, 76_800, Stream(0)) == [(0.0, 0.01, -2.1e6, 2.1e6)]
    found = boxes(slow, 7.68e6, 76_800, Stream(0))
    assert len(found) >= 32
    assert {round(high - low) for *_, low, high in found} == {round(4.2e6 / 16)}
    for (start, end, low, _), (later, _, after, _) in itertools.pairwise(found):
        assert later == pytest.approx(end)
        assert after > low or after == pytest.approx(-2.1e6)
        assert end - start <= 5e-3 / 16 * 1.001


# from the low rate into the band


@pytest.mark.parametrize("sample_rate", [1.92e6, 20e6, 61.44e6, 122.88e6])
@pytest.mark.parametrize("wanted", [40e3, 270.833e3, 1.0837e6, 7.777e6, 20e6, 80e6])
def test_interpolation_is_exact_for_what_the_band_holds(wanted, sample_rate):
    """Two tones, one of which may lie beyond the band, against their formula."""
    rate = baseband.snapped(wanted, sample_rate)
    assert rate == pytest.approx(wanted, rel=2e-4)
    count, offset, gain = 60_000, 0.11 * sample_rate + 1234.5, 0.7
    tones_hz = [0.31 * min(rate, sample_rate), -0.29 * min(rate, sample_rate)]
    first = -baseband.MARGIN
    low_times = (np.arange(int(count * rate / sample_rate) + 2 * baseband.MARGIN) + first) / rate
    low = sum(np.exp(2j * np.pi * hz * low_times) for hz in tones_hz)
    iq = torch.zeros(count, dtype=torch.complex64)
    baseband.place(iq, torch.from_numpy(low.astype(np.complex64)), first, rate, offset, sample_rate, gain)
    times = np.arange(count) / sample_rate
    expected = gain * sum(np.exp(2j * np.pi * (hz + offset) * times) for hz in tones_hz)
    # the samples of the low rate end just beyond the stretch: where they are the denser ones, its ends miss
    # some
    np.testing.assert_allclose(iq.numpy()[100:-100], expected[100:-100], atol=0.01)
    if rate < sample_rate:
        np.testing.assert_allclose(iq.numpy(), expected, atol=0.02)


def test_the_length_of_blocks_changes_nothing(monkeypatch):
    one = drawn("qam", 30.72e6, 10e-3, 1)
    expected = rendered(one, 30.72e6, 10e-3)
    monkeypatch.setattr(baseband, "CHUNK_VALUES_CPU", 1)
    torch.testing.assert_close(rendered(one, 30.72e6, 10e-3), expected)


@pytest.mark.parametrize("side", [-1, 1])
def test_what_lies_beyond_the_band_is_not_sent(side):
    rate = 30.72e6
    settings = {"noise_hz": 12e6, "edge": 0.03, "tilt_db": 0.0, "burst_s": 1.0, "gap_s": 0.0, "step_db": 0.0}
    iq = rendered(Distractor("noise_burst", side * rate / 2, 12e6, 10.0, 1, settings), rate, 5e-3)
    assert energy_share(iq, rate, *sorted((side * (rate / 2 - 6.1e6), side * rate / 2))) > 0.9995
    assert float(iq.abs().square().mean()) == pytest.approx(10 * 12 / 30.72 / 2, rel=0.1)
    assert not rendered(Distractor("noise_burst", side * rate, 12e6, 10.0, 1, settings), rate, 1e-3).any()


# in time


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("tone", {"num_tones": 1, "spacing_hz": 0.0, "drift_hz": 0.0, "drift_period_s": 1.0}),
        ("gfsk", {"bit_rate_hz": 1e6, "index": 0.32, "bt": 0.5}),
        ("qam", {"symbol_rate_hz": 5e6, "roll_off": 0.25, "bits_a_symbol": 2}),
        ("noise_burst", {"noise_hz": 6e6, "edge": 0.03, "tilt_db": 0.0, "step_db": 0.0}),
        ("nbiot", {"form": "npusch", "tones": 12, "spacing_hz": 15e3}),
        ("fm", {"mode": "narrow", "deviation_hz": 5e3, "audio_hz": 3e3}),
    ],
)
def test_bursts_last_as_the_settings_say(kind, settings):
    rate, burst_s, gap_s = 7.68e6, 2e-3, 1e-3
    iq = made(kind, rate, 60e-3, burst_s=burst_s, gap_s=gap_s, **settings)
    power = smoothed_power(iq, 300)
    lengths_s = np.diff(runs(power > np.median(power[power > power.max() / 30]) / 4), axis=1) / rate
    assert 10 <= len(lengths_s) <= 25
    np.testing.assert_allclose(lengths_s, burst_s, atol=60e-6)


# frequency modulation


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("fm", {"mode": "broadcast", "deviation_hz": 75e3, "audio_hz": 15e3, "burst_s": 1.0, "gap_s": 0.0}),
        ("gfsk", {"bit_rate_hz": 250e3, "index": 1.0, "bt": 0.5, "burst_s": 1.0, "gap_s": 0.0}),
        ("gsm", {"carriers": 1, "spacing_hz": 200e3, "slots": (255,), "beacon": True}),
        (
            "chirp",
            {"waveform": "lora", "chirp_hz": 250e3, "spreading_factor": 9, "burst_s": 1.0, "gap_s": 1.0},
        ),
    ],
)
def test_angle_modulation_has_a_constant_envelope(kind, settings):
    magnitude = abs(made(kind, 7.68e6, 10e-3, **settings))
    magnitude = magnitude[magnitude > 0.5]
    assert magnitude.std() / magnitude.mean() < 0.06


def test_noise_is_gaussian():
    iq = made(
        "noise_burst",
        15.36e6,
        10e-3,
        noise_hz=10e6,
        edge=0.1,
        tilt_db=0.0,
        burst_s=1.0,
        gap_s=0.0,
        step_db=0.0,
    )
    assert (abs(iq) ** 4).mean() / (abs(iq) ** 2).mean() ** 2 == pytest.approx(2.0, abs=0.05)


def test_broadcast_fm_carries_its_pilot_and_its_deviation():
    rate = 1.92e6
    iq = made("fm", rate, 80e-3, mode="broadcast", deviation_hz=75e3, audio_hz=15e3, burst_s=1.0, gap_s=0.0)
    hertz = np.angle(iq[1:] * iq[:-1].conj()) * rate / (2 * np.pi)
    assert 50e3 < abs(hertz).max() < 90e3
    spectrum = abs(np.fft.rfft(hertz * np.hanning(len(hertz))))
    frequency = np.fft.rfftfreq(len(hertz), 1 / rate)
    between = (frequency > 16e3) & (frequency < 22e3)
    assert frequency[between][spectrum[between].argmax()] == pytest.approx(19e3, abs=30)
    # ITU-R BS.450: 8 to 10 % of the deviation; under a Hann window a line is a quarter of its amplitude ×
    # length high
    assert spectrum[between].max() * 4 / len(hertz) == pytest.approx(0.09 * 75e3, rel=0.1)


def test_gaussian_fsk_deviates_by_half_its_index():
    """A long run of equal bits sits at ±index × bit rate / 2 (Bluetooth: 0.32 → 160 kHz); alternating ones
    swing less.
    """
    bits = torch.tensor([0] * 20 + [1] * 20 + [0, 1] * 10, dtype=torch.uint8)
    phase = np.unwrap(np.angle(baseband.gaussian_fsk(bits, 16, 0.32, 0.5).numpy()))
    hertz = np.diff(phase) * 16e6 / (2 * np.pi)
    np.testing.assert_allclose(hertz[40:280], -160e3, rtol=1e-3)
    np.testing.assert_allclose(hertz[360:600], 160e3, rtol=1e-3)
    assert 100e3 < abs(hertz[680:900]).max() < 155e3


def test_bluetooth_hops_every_slot_on_its_channels():
    rate = 61.44e6
    settings = {
        "channels": 40,
        "spacing_hz": 1e6,
        "dwell_s": 625e-6,
        "burst_s": 366e-6,
        "modulation": "gfsk",
        "bit_rate_hz": 1e6,
        "index": 0.32,
        "bt": 0.5,
    }
    iq = made("hopping", rate, 20e-3, **settings)
    bursts = runs(smoothed_power(iq, 600) > 0.5)
    assert len(bursts) >= 30
    np.testing.assert_allclose(np.diff(bursts[:, 0]) / rate, 625e-6, atol=3e-6)
    np.testing.assert_allclose(np.diff(bursts, axis=1) / rate, 366e-6, atol=6e-6)
    centres = []
    for begin, end in bursts:
        power = abs(np.fft.fft(iq[begin:end])) ** 2
        centres.append((power * np.fft.fftfreq(end - begin, 1 / rate)).sum() / power.sum())
    channels = np.array(centres) / 1e6 + 19.5
    assert abs(channels - channels.round()).max() < 0.2
    assert len(set(channels.round())) > 15
    assert (np.diff(channels.round()) != 0).all()


def test_gsm_slots_last_577_us_of_a_frame_of_4615_us():
    rate = 3.84e6
    bursts = runs(
        smoothed_power(made("gsm", rate, 40e-3, carriers=1, spacing_hz=200e3, slots=(1,), beacon=False), 16)
        > 0.5
    )
    np.testing.assert_allclose(
        np.diff(bursts[:, 0]) / rate, 120 / 26 * 1e-3, atol=10e-6
    )  # 26 frames in 120 ms
    # 148 bits of 48 / 13 µs lie within the ramps, which take the guard's 8.25
    lengths_s = np.diff(bursts, axis=1) / rate
    assert (lengths_s > 147 * 48 / 13e6).all()
    assert (lengths_s < 156.25 * 48 / 13e6).all()


def test_gsm_beacon_sends_a_tone_67_7_khz_above_its_carrier():
    """The frequency correction burst: constant bits, a quarter of the bit rate above; ten frames apart at
    most 11.
    """
    rate = 1.92e6
    iq = made("gsm", rate, 60e-3, carriers=1, spacing_hz=200e3, slots=(255,), beacon=True)
    hertz = np.angle(iq[1:] * iq[:-1].conj()) * rate / (2 * np.pi)
    still = abs(hertz - 13e6 / 48 / 4) < 2e3
    lengths_s = np.diff(runs(still), axis=1)[:, 0] / rate
    assert 1 <= (lengths_s > 530e-6).sum() <= 2
    assert np.sort(lengths_s)[-3] < 100e-6


# single carriers and OFDM


def test_root_raised_cosine_pulses_meet_without_interference():
    """Through the matched filter, samples at the symbol times are the QPSK points."""
    symbol_rate, roll_off, count = 1e6, 0.3, 8192
    rate = 4 * symbol_rate
    iq = made(
        "qam",
        rate,
        4 * count / rate,
        symbol_rate_hz=symbol_rate,
        roll_off=roll_off,
        bits_a_symbol=2,
        burst_s=1.0,
        gap_s=0.0,
        bandwidth_hz=symbol_rate,
    )
    frequency = abs(np.fft.fftfreq(len(iq), 1 / rate)) / symbol_rate
    raised = 0.5 * (1 + np.cos(np.pi / roll_off * (frequency - (1 - roll_off) / 2).clip(0, roll_off)))
    symbols = np.fft.ifft(np.fft.fft(iq) * np.sqrt(raised))[::4][100:-100]
    points = (np.sign(symbols.real) + 1j * np.sign(symbols.imag)) / np.sqrt(2)
    scale = (symbols * points.conj()).mean()
    assert abs(scale.imag) < 0.01 * scale.real
    assert np.sqrt((abs(symbols / scale.real - points) ** 2).mean()) < 0.02
    assert {*points.round(2)} == {*(np.array([1 + 1j, 1 - 1j, -1 + 1j, -1 - 1j]) / np.sqrt(2)).round(2)}


WIFI = {
    "system": "wifi",
    "width_hz": 20e6,
    "spacing_hz": 312.5e3,
    "highest": 26,
    "nulls": 1,
    "bits_a_symbol": 4,
    "frame_s": 0.5e-3,
    "idle_s": 0.2e-3,
    "acks": True,
}


def lag_correlation(iq, lag):
    return abs(np.vdot(iq[:-lag], iq[lag:])) / np.vdot(iq, iq).real


def test_wifi_prefix_repeats_after_3_2_us():
    iq = made("ofdm", 20e6, 10e-3, **WIFI)
    assert lag_correlation(iq, 64) > 0.17  # 0.8 of 4 µs, more in the preambles
    assert max(lag_correlation(iq, lag) for lag in (40, 57, 71, 80, 96)) < 0.06


def test_wifi_fills_its_subcarriers_and_no_more():
    """52 of 312.5 kHz without the one at 0 Hz: level to 8.1 MHz, 20 dB down (802.11 17.3.9.3 at 11 MHz) at
    9.5 MHz.
    """
    rate = 25.6e6
    power = (abs(np.fft.fft(made("ofdm", rate, 20e-3, **WIFI).reshape(-1, 512) * np.hanning(512))) ** 2).mean(
        axis=0
    )
    hertz = abs(np.fft.fftfreq(512, 1 / rate))
    middle = power[(hertz > 1e6) & (hertz < 5e6)].mean()
    assert power[(hertz > 7e6) & (hertz < 8.05e6)].mean() > 0.8 * middle
    assert power[hertz > 9.5e6].max() < middle / 100


def test_wifi_frames_begin_with_ten_equal_short_symbols_and_are_answered_after_sifs():
    rate = 20e6
    iq = made("ofdm", rate, 10e-3, **WIFI)
    bursts = runs(smoothed_power(iq, 40) > 0.02)
    assert len(bursts) >= 10
    for begin, end in bursts:
        inside = iq[begin + 20 : end - 20]
        assert lag_correlation(inside[:120], 16) > 0.8  # 0.8 µs, for the first 8 µs
        assert lag_correlation(inside[180:280], 64) > 0.3  # the long symbol, twice 3.2 µs
    lengths_us, gaps_us = (bursts[:, 1] - bursts[:, 0]) / 20, (bursts[1:, 0] - bursts[:-1, 1]) / 20
    answers = abs(lengths_us - 28) < 4  # 20 µs of preamble and SIGNAL, two symbols
    answered = np.flatnonzero(answers[1:] & ~answers[:-1])
    assert len(answered) >= 4
    np.testing.assert_allclose(gaps_us[answered], 16, atol=3)
    assert (gaps_us[answers[:-1]] > 31).all()  # DIFS: 34 µs


@pytest.mark.parametrize(("slower", "lag_us"), [(2, 6.4), (4, 12.8), (10, 32.0)])
def test_wifi_of_a_divided_clock_is_as_much_slower(slower, lag_us):
    rate = 10e6
    settings = WIFI | {"width_hz": 20e6 / slower, "spacing_hz": 312.5e3 / slower, "slower": slower}
    iq = made("ofdm", rate, 20e-3, **settings | {"frame_s": 2e-3, "idle_s": 0.5e-3})
    assert lag_correlation(iq, round(lag_us * 10)) > 0.15
    assert lag_correlation(iq, 32) < 0.1  # 3.2 µs
    begin, _ = runs(smoothed_power(iq, 40) > 0.02)[0]
    short = iq[begin + 20 : begin + 20 + 70 * slower]  # eight of ten short symbols, each 0.8 µs and slower
    assert lag_correlation(short, 8 * slower) > 0.8


DRONE = {
    "spacing_hz": 15e3,
    "subcarriers": 600,
    "prefix": 72 / 1024,
    "long_prefix": 8 / 1024,
    "null_dc": True,
    "pilot_step": 0,
    "bits_a_symbol": 2,
    "sync": ((3, 600), (5, 147)),
    "burst_s": 1e-3,
    "gap_s": 3e-3,
    "answer_db": 0.0,
    "channels": 1,
    "channel_hz": 0.0,
}


def test_a_drones_burst_is_of_ltes_symbols_and_has_its_zadoff_chu_sequences():
    rate = 15.36e6
    iq = made("drone", rate, 30e-3, bandwidth_hz=601 * 15e3, **DRONE)
    bursts = runs(smoothed_power(iq, 64) > 0.1)
    assert len(bursts) >= 5
    np.testing.assert_allclose(np.diff(bursts, axis=1) / rate, 1e-3, atol=10e-6)  # two slots of 0.5 ms
    for begin, end in bursts:
        assert lag_correlation(iq[begin:end], 1024) > 0.05
        starts = np.cumsum([80, 1024, 72, 1024, 72, 1024, 72, 1024, 72, 1024, 72])[::2]  # useful parts
        places = np.r_[-300:0, 1:301]
        for symbol, root in ((3, 600), (5, 147)):
            first = begin + 32 + starts[symbol] - 40  # half the average's length, and within the prefix
            n = np.arange(600)
            expected = np.exp(-1j * np.pi * root * n * (n + 1) / 601)
            best = max(
                abs(np.vdot(expected * np.exp(-2j * np.pi * places * shift / 1024), symbols)) / norm
                for symbols in [np.fft.fft(iq[first : first + 1024])[places]]
                for norm in [np.linalg.norm(symbols) * np.sqrt(600)]
                for shift in np.arange(0, 80, 0.5)
            )
            assert best > 0.95
    spectrum = abs(np.fft.fft(iq[bursts[1][0] + 72 :][:1024])) ** 2
    assert spectrum[0] < spectrum[1:301].mean() / 100  # nothing at the centre


@pytest.mark.parametrize("spacing_hz", [15.625e3, 19.53125e3, 31.25e3, 60e3, 78.125e3])
def test_burst_ofdm_repeats_after_its_symbol_and_hops(spacing_hz):
    rate = round(40e6 / spacing_hz) * spacing_hz
    settings = DRONE | {"spacing_hz": spacing_hz, "subcarriers": 64, "prefix": 0.25, "sync": ((0, 0),)}
    settings |= {"channels": 7, "channel_hz": round(5e6 / spacing_hz) * spacing_hz, "gap_s": 1e-3}
    one = Distractor("burst_ofdm", 0.0, 67 * spacing_hz + 6 * settings["channel_hz"], 0.0, 3, settings)
    iq = rendered(one, rate, 30e-3).numpy()
    assert lag_correlation(iq, round(rate / spacing_hz)) > 0.12
    found = boxes(one, rate, len(iq), Stream(0))
    assert len({low for *_, low, _ in found}) >= 4
    assert {round(high - low) for *_, low, high in found} == {round(67 * spacing_hz)}


@pytest.mark.parametrize(("size", "guard_share"), [(2048, 0.25), (8192, 0.125)])
def test_dvbt_prefix_repeats_after_its_useful_part(size, guard_share):
    rate = 64e6 / 7
    iq = made(
        "ofdm",
        rate,
        20e-3,
        system="dvbt",
        channel_hz=8e6,
        size=size,
        guard_share=guard_share,
        bits_a_symbol=6,
    )
    assert lag_correlation(iq, size) > 0.7 * guard_share / (1 + guard_share)
    assert lag_correlation(iq, size - 500) < 0.05
    assert energy_share(torch.from_numpy(iq), rate, -3.83e6, 3.83e6) > 0.99


def test_dab_pauses_for_its_null_symbol_every_96_ms():
    rate = 2.048e6
    quiet = runs(smoothed_power(made("ofdm", rate, 0.3, system="dab"), 200) < 0.05)
    quiet = quiet[np.diff(quiet, axis=1)[:, 0] > 1000]
    np.testing.assert_allclose(np.diff(quiet, axis=1) / rate, 1.297e-3, atol=0.12e-3)
    np.testing.assert_allclose(np.diff(quiet[:, 0]) / rate, 96e-3, atol=0.1e-3)
    assert len(quiet) >= 2


def test_single_tone_nbiot_is_narrower_than_twelve():
    def width(tones):
        settings = {"form": "npusch", "tones": tones, "spacing_hz": 15e3, "burst_s": 1.0, "gap_s": 0.0}
        iq = torch.from_numpy(made("nbiot", 1.92e6, 20e-3, **settings))
        return next(
            hz for hz in np.arange(5e3, 200e3, 5e3) if energy_share(iq, 1.92e6, -hz / 2, hz / 2) > 0.9
        )

    assert width(1) <= 35e3
    assert 150e3 <= width(12) <= 180e3


# chirps and pulses


def test_dechirped_lora_symbols_are_tones():
    factor, chirp_hz = 8, 125e3
    values = 2**factor
    rate = 2 * chirp_hz  # two samples a chip
    iq = made(
        "chirp",
        rate,
        0.25,
        seed=2,
        waveform="lora",
        chirp_hz=chirp_hz,
        spreading_factor=factor,
        burst_s=40 * values / chirp_hz,
        gap_s=60 * values / chirp_hz,
    )
    begin, end = runs(smoothed_power(iq, 9) > 0.5)[0]
    assert (end - begin) / (2 * values) == pytest.approx(39.25, abs=0.3)
    time = np.arange(values) / values
    down = np.exp(-2j * np.pi * values * (time**2 / 2 - time / 2))
    begin += 2  # samples that the average has smeared, and one between the chips
    symbols = iq[begin : begin + 8 * 2 * values : 2].reshape(8, values)
    spectra = abs(np.fft.fft(symbols * down)) ** 2
    peaks = spectra.argmax(axis=1)
    assert (peaks == peaks[0]).all()  # the preamble: eight equal up-chirps
    shares = (spectra[:, (peaks[0] + np.arange(-1, 2)) % values]).sum(axis=1) / spectra.sum(axis=1)
    assert (shares > 0.85).all()
    payload = begin + round(12.25 * 2 * values)
    spectra = abs(np.fft.fft(iq[payload : payload + 20 * 2 * values : 2].reshape(20, values) * down)) ** 2
    peaks = spectra.argmax(axis=1)
    assert len(set(peaks)) > 10
    assert (np.sort(spectra, axis=1)[:, -4:].sum(axis=1) / spectra.sum(axis=1) > 0.8).all()


@pytest.mark.parametrize(("shape", "slope"), [("up", 1), ("down", -1)])
def test_radar_sweeps_rise_or_fall_at_their_rate(shape, slope):
    rate, sweep_hz, sweep_s = 15.36e6, 8e6, 1e-3
    iq = made(
        "chirp", rate, 8e-3, waveform="fmcw", sweep_hz=sweep_hz, sweep_s=sweep_s, shape=shape, idle_s=0.0
    )
    hertz = np.angle(iq[1:] * iq[:-1].conj()) * rate / (2 * np.pi)
    assert np.median(np.diff(hertz)) * rate == pytest.approx(slope * sweep_hz / sweep_s, rel=0.02)
    assert np.quantile(abs(hertz), 0.99) == pytest.approx(sweep_hz / 2, rel=0.03)


def test_mode_s_messages_have_the_preamble_and_a_pulse_in_every_bit():
    """Pulses of 0.5 µs at 0, 1, 3.5 and 4.5 µs, then from 8 µs on one in either half of each of 56 or 112 µs."""
    rate = 16e6
    iq = made("pulses", rate, 20e-3, system="mode_s", messages_a_s=100.0)
    on = np.convolve(abs(iq) ** 2 > 0.02, np.ones(80), "same") > 0
    lengths = []
    for begin, end in runs(on):
        message = abs(iq[begin + 40 : end])
        start = np.argmax(message > message.max() / 2)
        chips = message[start : start + 240 * 8][4::8] > message.max() / 2
        np.testing.assert_array_equal(np.flatnonzero(chips[:16]), [0, 2, 7, 9])
        halves = chips[16 : 16 + 2 * (len(chips[16:]) // 2)].reshape(-1, 2)
        lengths.append(int((halves.sum(axis=1) == 1).sum()))
        assert (halves[: lengths[-1]].sum(axis=1) == 1).all()
    assert lengths
    assert {*lengths} <= {56, 112}


@pytest.mark.parametrize("spacing_s", [12e-6, 36e-6])
def test_dme_pulses_come_in_pairs_of_3_5_us(spacing_s):
    rate = 7.68e6
    envelope = abs(made("pulses", rate, 20e-3, system="dme", pairs_a_s=50.0, spacing_s=spacing_s))
    begin, end = runs(envelope > envelope.max() / 2)[:2, 0], runs(envelope > envelope.max() / 2)[:2, 1]
    np.testing.assert_allclose((end - begin) / rate, 3.5e-6, atol=0.4e-6)
    assert (begin[1] - begin[0]) / rate == pytest.approx(spacing_s, abs=0.3e-6)


def test_spurs_of_a_comb_are_equally_spaced():
    rate = 15.36e6
    iq = made(
        "tone",
        rate,
        5e-3,
        num_tones=7,
        spacing_hz=600e3,
        drift_hz=0.0,
        drift_period_s=1.0,
        burst_s=1.0,
        gap_s=0.0,
        center_hz=1e6,
    )
    power = abs(np.fft.fft(iq * np.hanning(len(iq)))) ** 2
    frequency = np.fft.fftfreq(len(iq), 1 / rate)
    strong = np.sort(frequency[power > power.max() * 10**-1.8])
    lines = [group.mean() for group in np.split(strong, np.flatnonzero(np.diff(strong) > 100e3) + 1)]
    np.testing.assert_allclose(lines, 1e6 + 600e3 * np.arange(-3, 4), atol=300)
