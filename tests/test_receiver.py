"""The receiver, each step against its formula: on impulses, tones and noise."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from scipy import signal, special

from radio.rng import Stream
from radio.scenes import receiver
from radio.scenes.receiver import Receiver, receive

STREAM = Stream(seed=11, index=5)
RATE_HZ = 1e6

FILTER = {"passband": (-0.31, 0.40), "transition": (0.05, 0.01), "stopband_db": 50.0}
EVERYTHING = Receiver(
    **FILTER,
    tilt_db=3.0,
    ripple_db=1.0,
    floor_db=-20.0,
    phase_noise_dbc=-25.0,
    phase_noise_hz=4e3,
    iq_gain_db=0.5,
    iq_phase_deg=2.0,
    dc_db=-3.0,
    agc_steps=((0.02, -6.0), (0.05, 4.0)),
)


def received(samples, stream=STREAM, sample_rate_hz=RATE_HZ, **fields):
    """What comes out for `samples`, or for that many zeros: complex128 array."""
    iq = (
        torch.zeros(samples, dtype=torch.complex64)
        if isinstance(samples, int)
        else torch.from_numpy(samples).cfloat()
    )
    return receive(iq, Receiver(**fields), sample_rate_hz, stream).numpy().astype(complex)


def tone(cycles, samples):
    return np.exp(2j * np.pi * cycles * np.arange(samples))


def decibels(power):
    return 10 * np.log10(power)


def response_db(**fields):
    """(frequencies in units of the sample rate, gain in dB, phase in rad) by an impulse in the middle of
    silence.
    """
    impulse = np.zeros(8192, complex)
    impulse[4096] = 1
    spectrum = np.fft.fft(np.roll(received(impulse, noise=False, **fields), -4096))
    return np.fft.fftfreq(8192), 2 * decibels(np.abs(spectrum)), np.angle(spectrum)


# Noise


def test_by_default_a_receiver_adds_white_noise_of_unit_power():
    noise = received(400_000)
    assert np.mean(np.abs(noise) ** 2) == pytest.approx(1, abs=0.008)  # 5 sigma
    assert abs(np.mean(noise**2)) < 0.008  # circular
    for lag in (1, 2, 3, 100):
        assert abs(np.mean(noise[lag:] * noise[:-lag].conj())) < 0.008
    _, density = signal.welch(noise, nperseg=64, return_onesided=False, detrend=False)
    np.testing.assert_allclose(density, 1, atol=0.1)


def test_noise_is_added_to_what_is_there():
    samples = 3 * tone(0.01, 5000)
    np.testing.assert_allclose(received(samples) - samples, received(5000), atol=1e-5)


def test_a_receiver_without_noise_does_nothing_else():
    samples = tone(0.123, 1000).astype(np.complex64)
    assert np.array_equal(received(samples, noise=False), samples)


def test_works_in_place_and_leaves_torchs_generator_alone():
    state = torch.get_rng_state()
    iq = torch.zeros(70_000, dtype=torch.complex64)
    assert receive(iq, dataclasses.replace(EVERYTHING, bits=8), RATE_HZ, STREAM) is iq
    assert iq.any()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("samples", [0, 1, 7, 100, 100_003])
def test_any_length_works_and_is_a_function_of_the_stream(samples):
    first, again, other = (
        receive(
            torch.zeros(samples, dtype=torch.complex64),
            dataclasses.replace(EVERYTHING, bits=16),
            RATE_HZ,
            stream,
        )
        for stream in (STREAM, STREAM, dataclasses.replace(STREAM, index=6))
    )
    assert torch.equal(first, again)
    assert not samples or not torch.equal(first, other)
    assert torch.isfinite(torch.view_as_real(first)).all()


@pytest.mark.parametrize("chunk", [4, 1000, 2**15])
def test_chunks_do_not_change_the_result(chunk, monkeypatch):
    samples = tone(0.2, 40_001 if chunk > 4 else 401)
    whole = received(samples, **dataclasses.asdict(EVERYTHING))
    monkeypatch.setattr(receiver, "_CHUNK_CPU", chunk)
    np.testing.assert_allclose(received(samples, **dataclasses.asdict(EVERYTHING)), whole, atol=1e-5)


def test_chunks_do_not_change_phase_noise_of_long_streams(monkeypatch):
    monkeypatch.setattr(receiver, "_PHASE_POINTS", 3000)
    fields = {"noise": False, "phase_noise_dbc": -10.0, "phase_noise_hz": 1e4}
    whole = received(np.ones(40_001), **fields)
    monkeypatch.setattr(receiver, "_CHUNK_CPU", 1000)
    np.testing.assert_allclose(received(np.ones(40_001), **fields), whole, atol=1e-6)


def test_chunks_do_not_change_codes_by_more_than_rounding(monkeypatch):
    whole = received(50_000, bits=8)
    monkeypatch.setattr(receiver, "_CHUNK_CPU", 1000)
    difference = received(50_000, bits=8) - whole
    assert np.mean(difference != 0) < 1e-3
    assert np.abs(difference).max() <= 1.5 / 128


# The channel filter


def test_filter_is_flat_in_the_passband_and_as_deep_as_asked_beyond():
    frequency, gain_db, phase = response_db(**FILTER)
    inside = (frequency > -0.31) & (frequency < 0.40)
    assert np.abs(gain_db[inside]).max() < 0.2
    assert np.abs(phase[inside]).max() < 0.01  # no delay
    beyond = (frequency < -0.31 - 0.05 - 0.002) | (frequency > 0.40 + 0.01 + 0.002)
    np.testing.assert_allclose(gain_db[beyond], -50, atol=0.5)
    for middle in (-0.31 - 0.05 / 2, 0.40 + 0.01 / 2):
        assert gain_db[np.argmin(np.abs(frequency - middle))] == pytest.approx(-25, abs=1.5)


@pytest.mark.parametrize(
    ("fields", "expected_db"),
    [
        ({"tilt_db": 4.0}, lambda frequency: 4 * frequency),
        ({"tilt_db": -3.0}, lambda frequency: -3 * frequency),
        ({"ripple_db": 2.0}, lambda frequency: np.cos(2 * np.pi * 3 * frequency)),
        (
            {"ripple_db": 1.0, "ripple_cycles": 5.5, "ripple_phase_deg": 70.0},
            lambda frequency: 0.5 * np.cos(2 * np.pi * 5.5 * frequency + np.deg2rad(70)),
        ),
        (
            {
                "passband": (-0.4, 0.5),
                "transition": (0.03, 0.0),
                "stopband_db": 80.0,
                "tilt_db": 2.0,
                "ripple_db": 1.0,
            },
            lambda frequency: 2 * frequency + 0.5 * np.cos(2 * np.pi * 3 * frequency),
        ),
    ],
)
def test_tilt_and_ripple_are_those_asked_for(fields, expected_db):
    frequency, gain_db, _ = response_db(**fields)
    inside = np.abs(frequency) < (0.4 if "passband" in fields else 0.495)
    np.testing.assert_allclose(gain_db[inside], expected_db(frequency[inside]), atol=0.02)
    if "passband" in fields:
        np.testing.assert_allclose(gain_db[(frequency > -0.495) & (frequency < -0.435)], -80, atol=4)


def test_noise_has_the_shape_of_the_filter_and_lies_on_the_floor_behind_it():
    noise = received(400_000, **FILTER, floor_db=-30.0)
    frequency, density = signal.welch(noise, nperseg=128, return_onesided=False, detrend=False)
    assert np.mean(density[(frequency > -0.30) & (frequency < 0.39)]) == pytest.approx(1, abs=0.02)
    beyond = density[(frequency < -0.38) | (frequency > 0.43)]
    assert decibels(beyond.mean()) == pytest.approx(decibels(10**-3 + 10**-5), abs=0.2)


def test_the_floor_behind_the_filter_hides_what_it_attenuates():
    receiver_ = Receiver(**FILTER, floor_db=-30.0)
    assert receiver.loss_db(Receiver(**FILTER), -0.45) == pytest.approx(0, abs=1e-9)
    assert receiver.loss_db(Receiver(noise=False), 0.1) < -100  # nothing hides anything
    assert receiver.loss_db(Receiver(), 0.1, later_noise=1.0) == pytest.approx(3.01, abs=0.01)
    assert receiver.loss_db(receiver_, 0.0) == pytest.approx(0.0043, abs=1e-4)
    frequency, density = signal.welch(
        received(400_000, **FILTER, floor_db=-30.0), nperseg=128, return_onesided=False, detrend=False
    )
    beyond = decibels(density[(frequency < -0.38) | (frequency > 0.43)].mean())
    assert receiver.loss_db(receiver_, -0.45) == pytest.approx(beyond + 50, abs=0.3)  # noise over signal


def test_filtered_noise_is_as_strong_at_the_ends_as_in_the_middle():
    narrow = {
        "passband": (-0.02, 0.02),
        "transition": (0.01, 0.01),
        "stopband_db": 50.0,
    }  # some 25 samples of memory
    power = np.mean([np.abs(received(1002, Stream(7, index=i), **narrow)) ** 2 for i in range(600)], axis=0)
    middle = power[100:-100].mean()
    assert 0.04 < middle < 0.05  # the passband and a part of its edges
    assert power[:5].mean() == pytest.approx(middle, rel=0.2)  # 600 draws: 4 %
    assert power[-5:].mean() == pytest.approx(middle, rel=0.2)


# Oscillator and mixer


def test_image_is_rejected_by_the_formula():
    turned = 10 ** (0.8 / 20) * np.exp(1j * np.deg2rad(3))
    spectrum = (
        np.fft.fft(received(tone(100 / 4096, 4096), noise=False, iq_gain_db=0.8, iq_phase_deg=3.0)) / 4096
    )
    assert spectrum[100] == pytest.approx((1 + turned.conj()) / 2, abs=1e-5)
    assert spectrum[-100] == pytest.approx((1 - turned) / 2, abs=1e-5)
    gain, phase = np.abs(turned), np.angle(turned)
    rejection = (1 + 2 * gain * np.cos(phase) + gain**2) / (1 - 2 * gain * np.cos(phase) + gain**2)
    assert decibels(np.abs(spectrum[100] / spectrum[-100]) ** 2) == pytest.approx(
        decibels(rejection), abs=0.01
    )
    others = np.delete(np.abs(spectrum), [100, 4096 - 100])
    assert others.max() < 1e-3 * np.abs(spectrum[-100])


def test_dc_has_its_power_over_the_noise_and_its_phase():
    mean = received(400_000, dc_db=-6.0, dc_phase_deg=30.0).mean()
    assert abs(mean - 10 ** (-6 / 20) * np.exp(1j * np.pi / 6)) < 0.008  # 5 sigma


def test_dc_is_not_filtered():
    assert received(64, noise=False, dc_db=3.0, **FILTER) == pytest.approx(np.full(64, 10 ** (3 / 20)))


@pytest.mark.parametrize(("half_width_hz", "samples"), [(20e3, 100_000), (5e3, 600_000)])
def test_phase_noise_has_its_variance_and_its_lorentzian_spectrum(half_width_hz, samples):
    phase = np.concatenate(
        [
            np.angle(
                received(
                    np.ones(samples),
                    Stream(3, index=i),
                    noise=False,
                    phase_noise_dbc=-24.0,
                    phase_noise_hz=half_width_hz,
                )
            )
            for i in range(4)
        ]
    )
    assert decibels(np.mean(phase**2)) == pytest.approx(-24, abs=0.25)
    assert abs(phase.mean()) < 0.1 * phase.std()

    frequency_hz, density = signal.welch(
        phase, fs=RATE_HZ, nperseg=4096, return_onesided=False, detrend=False
    )
    lorentzian = 10**-2.4 * half_width_hz / np.pi / (half_width_hz**2 + frequency_hz**2)
    for low, high in [(0.0, 0.3), (0.8, 1.2), (2.5, 3.5)]:  # in half-widths
        band = (np.abs(frequency_hz) >= low * half_width_hz) & (np.abs(frequency_hz) < high * half_width_hz)
        assert decibels(density[band].mean() / lorentzian[band].mean()) == pytest.approx(0, abs=0.6)


def test_phase_noise_turns_and_leaves_the_power():
    samples = received(2 * tone(0.3, 50_000), noise=False, phase_noise_dbc=-20.0, phase_noise_hz=1e4)
    np.testing.assert_allclose(np.abs(samples), 2, rtol=1e-5)
    spectrum = np.abs(np.fft.fft(samples) / 50_000) ** 2
    beside = 4 - spectrum[15_000]
    assert decibels(beside / spectrum[15_000]) == pytest.approx(-20, abs=1)  # of a small angle's variance


def test_fast_phase_noise_keeps_its_variance_between_points():
    samples = received(np.ones(600_000), noise=False, phase_noise_dbc=-20.0, phase_noise_hz=150e3)
    assert decibels(np.mean(np.angle(samples) ** 2)) == pytest.approx(-20, abs=0.1)


def test_slow_phase_noise_is_slow():
    samples = received(np.ones(300_000), noise=False, phase_noise_dbc=-10.0, phase_noise_hz=1e-3)
    assert np.abs(np.diff(np.angle(samples))).max() < 1e-3
    spread = [
        np.angle(
            received(np.ones(4), Stream(3, index=i), noise=False, phase_noise_dbc=-10.0, phase_noise_hz=1e-3)[
                0
            ]
        )
        for i in range(600)
    ]
    assert decibels(np.var(spread)) == pytest.approx(-10, abs=1)


# Gain and converter


def test_gain_steps_start_at_their_sample_and_last_until_the_next():
    samples = received(
        np.ones(1000), noise=False, agc_steps=((253 / RATE_HZ, 6.0), (699.5e-6, -4.0), (1.0, 20.0))
    )
    expected = np.repeat(
        [1, 10 ** (6 / 20), 10 ** (-4 / 20)], [253, 447, 300]
    )  # 253 / 1e6 × 1e6 is more than 253
    np.testing.assert_allclose(samples, expected, rtol=1e-6)


@pytest.mark.parametrize("bits", [4, 8, 12, 16])
@pytest.mark.parametrize("loading_db", [-12.0, 3.0])
def test_values_are_codes_of_twos_complement(bits, loading_db):
    samples = received(50_000, bits=bits, loading_db=loading_db)
    codes = np.stack([samples.real, samples.imag]) * 2 ** (bits - 1)
    assert np.array_equal(codes, np.round(codes))
    assert codes.min() >= -(2 ** (bits - 1))
    assert codes.max() <= 2 ** (bits - 1) - 1
    if loading_db > 0:
        assert codes.min() == -(2 ** (bits - 1))
        assert codes.max() == 2 ** (bits - 1) - 1


@pytest.mark.parametrize(("bits", "loading_db"), [(8, -14.0), (12, -14.0), (8, -30.0)])
def test_quantisation_noise_follows_the_6_db_rule(bits, loading_db):
    sent = received(300_000)
    samples = received(300_000, bits=bits, loading_db=loading_db)
    scale = 10 ** (loading_db / 20) / np.sqrt(np.mean(np.abs(sent) ** 2) / 2)
    error = samples - scale * sent
    # Rms of a component L dB below full scale, steps of 2^(1 - bits), error of step² / 12.
    expected = 6.02 * bits + 4.77 + loading_db
    assert decibels(np.mean(np.abs(scale * sent) ** 2) / np.mean(np.abs(error) ** 2)) == pytest.approx(
        expected, abs=0.1
    )


def test_share_that_clips_is_the_gaussian_tail():
    loading_db, full = -6.0, 128
    codes = received(400_000, bits=8, loading_db=loading_db).real * full
    rms = 10 ** (loading_db / 20) * full
    for measured, beyond in ((np.mean(codes == full - 1), full - 1.5), (np.mean(codes == -full), full - 0.5)):
        assert measured == pytest.approx(special.erfc(beyond / rms / math.sqrt(2)) / 2, rel=0.05)


def test_loading_does_not_depend_on_the_level():
    samples = np.random.default_rng(0).standard_normal((5000, 2)) @ [1, 1j]
    weak, strong = (
        received(level * samples, noise=False, bits=12, loading_db=-10.0) for level in (2.0**-20, 2.0**10)
    )
    assert np.array_equal(weak, strong)
    assert decibels(np.mean(np.abs(weak) ** 2) / 2) == pytest.approx(-10, abs=0.05)


def test_loading_by_codes():
    codes = torch.view_as_real(
        receive(
            torch.zeros(100_000).cfloat(), Receiver(bits=8, loading_db=receiver.loading_db(5, 8)), 1e6, STREAM
        )
    )
    assert float((codes * 128).square().mean().sqrt()) == pytest.approx(5, rel=0.01)


def test_silence_stays_silent_in_the_converter():
    assert not received(100, noise=False, bits=8).any()


# Parameters


def test_parameters_are_plain_values():
    plain = json.loads(json.dumps(dataclasses.asdict(EVERYTHING)))
    assert plain["passband"] == [-0.31, 0.40]
    assert plain["agc_steps"] == [[0.02, -6.0], [0.05, 4.0]]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"passband": (-0.6, 0.5)}, "passband"),
        ({"passband": (0.2, 0.1)}, "passband"),
        ({"passband": (-0.4, 0.4), "stopband_db": 20.0}, "transition"),
        ({"passband": (-0.5, 0.4), "transition": (0.0, 0.001), "stopband_db": 20.0}, "transition"),
        ({"stopband_db": -1.0}, "stopband_db"),
        ({"stopband_db": 100.0}, "stopband_db"),
        ({"ripple_db": -1.0}, "ripple_db"),
        ({"phase_noise_hz": 0.0}, "phase_noise_hz"),
        ({"agc_steps": ((0.2, 1.0), (0.1, 1.0))}, "agc_steps"),
        ({"agc_steps": ((-0.1, 1.0),)}, "agc_steps"),
        ({"agc_steps": ((0.1, 1.0, 2.0),)}, "agc_steps"),
        ({"bits": 1}, "bits"),
        ({"bits": 17}, "bits"),
        ({"tilt_db": math.nan}, "finite"),
        ({"loading_db": math.inf}, "finite"),
    ],
)
def test_wrong_parameters_name_the_field(fields, named):
    with pytest.raises(ValueError, match=f"expected .*{named}"):
        Receiver(**fields)


@pytest.mark.parametrize(
    "iq",
    [torch.zeros(2, 8).cfloat(), torch.zeros(8), torch.zeros(8).cdouble(), torch.zeros(16).cfloat()[::2]],
)
def test_streams_are_contiguous_complex64(iq):
    with pytest.raises(ValueError, match=r"expected contiguous complex64 \[samples\]"):
        receive(iq, Receiver(), RATE_HZ, STREAM)
