"""Statistics of real LTE lie inside the spread of 200 synthetic scenes of the same bandwidth, duplex mode and
sample rate.

The statistics were chosen before they were computed, and all are kept: some 450 numbers.
"""

import dataclasses
from functools import cache

import numpy as np
import pytest
from support import CAPTURES, needs_captures

from radio.recordings import open_recording
from radio.rng import TEST, Stream
from radio.scenes.config import WILD, with_settings
from radio.scenes.draw import draw
from radio.scenes.scene import render

pytestmark = pytest.mark.slow

SCENES = 200
WINDOW_S = 0.015

# capture: (channel bandwidth in MHz, offset of its centre in kHz (tests/test_cell_search.py), annotated band
# in MHz as the captures' README has it, empty parts of the spectrum beside it in MHz). The bandwidths of
# capbuf and lte-signal.1.92M are not known, but wider than the sample rate (what is annotated of the latter
# is less than what is there).
CARRIERS = {
    "lte-f1815.3-s19.2-bw20-0.08s-hackrf": (20, 14.0, (-8.99, 9.01), ((-9.6, -9.15), (9.15, 9.6))),
    "lte-f1815.3-s19.2-bw20-0.08s-hackrf-2": (20, 14.0, (-8.99, 9.01), ((-9.6, -9.15), (9.15, 9.6))),
    "lte-f1815.3-s19.2-bw20-0.08s-hackrf-4": (20, 14.0, (-8.99, 9.01), ((-9.6, -9.15), (9.15, 9.6))),
    "lte-f796-s19.2-bw20-0.08s-hackrf": (10, 6.0, (-4.49, 4.51), ()),
    "lte-f806-s19.2-bw20-0.08s-hackrf": (10, 6.0, (-4.49, 4.51), ()),
    "lte-f796-s1.92-bw1.2-0.08s-rtlsdr": (10, 0.0, (-0.96, 0.96), ()),
    "lte-capbuf-0000-739MHz": (10, 0.0, (-0.96, 0.96), ()),
    "lte-signal.1.92M": (10, 0.0, (-0.54, 0.54), ()),
    "lte-signal.1.92M.amar": (1.4, 0.0, (-0.54, 0.54), ((-0.96, -0.7), (0.7, 0.96))),
}


def statistics(iq, sample_rate_hz, band_mhz, empty_mhz):
    """Of the spectrum in the band, averaged over time, in blocks of 180 kHz; and of the power in the band
    over time, in frames of 1/15 ms.
    """
    size = round(sample_rate_hz / 15e3)
    frames = iq[: len(iq) // size * size].reshape(-1, size) * np.hanning(size + 1)[:size].astype(np.float32)
    power = np.abs(np.fft.fftshift(np.fft.fft(frames), axes=1)) ** 2  # (frames, bins of 15 kHz)
    frequency_mhz = (np.arange(size) - size // 2) * 0.015

    def within(edges):
        return (frequency_mhz >= edges[0]) & (frequency_mhz <= edges[1])

    inside = power[:, within(band_mhz)]
    spectrum = inside.mean(axis=0)
    spectrum = 10 * np.log10(spectrum[: len(spectrum) // 12 * 12].reshape(-1, 12).mean(axis=1))
    course = inside.mean(axis=1)
    strong = np.percentile(course, 90)
    decibels = 10 * np.log10(course + 1e-6 * course.mean())
    normal = (decibels - decibels.mean()) / decibels.std()
    found = {
        "spectrum: standard deviation, dB": spectrum.std(),
        "spectrum: range, dB": np.ptp(spectrum),
        "spectrum: rms step, dB": np.sqrt(np.mean(np.diff(spectrum) ** 2)),
        "duty: share above half of the 90th percentile": np.mean(course > 0.5 * strong),
        "duty: share above a tenth of the 90th percentile": np.mean(course > 0.1 * strong),
        "power: 5th to 95th percentile, dB": np.ptp(np.percentile(decibels, (5, 95))),
        "power: standard deviation, dB": decibels.std(),
        "power: skewness of the dB": np.mean(normal**3),
        "power: kurtosis of the dB": np.mean(normal**4),
    }
    if empty_mhz:
        outside = np.any([within(edges) for edges in empty_mhz], axis=0)
        found["spectrum: in the band over beside it, dB"] = 10 * np.log10(
            inside.mean() / power[:, outside].mean()
        )
    for lag_ms in (1, 5, 10):
        lag = 15 * lag_ms
        if len(course) >= 1.4 * lag:
            found[f"power: autocorrelation at {lag_ms} ms"] = np.corrcoef(course[:-lag], course[lag:])[0, 1]
    return found


def synthetic(bandwidth_mhz, offset_khz, sample_rate_hz, duration_s, count=SCENES, seed=0):
    """Drawn scenes of one FDD carrier, LTE, put where the capture has it, that the receiver's channel filter
    lets through.

    From 5 to 35 dB, as in captures in which a cell was found."""
    inside = bandwidth_mhz * 0.9e6 > sample_rate_hz
    config = with_settings(
        WILD,
        [
            "technologies=LTE",
            f"lte_bandwidths_mhz={bandwidth_mhz}",
            "lte_tdd=0",
            "num_carriers=1",
            "noise_only=0",
            "snr_db=5,35",
            "part_time=0",
            "num_distractors=0",
            "cut=0",
            *["hump=0", "noiseless=0", "faint=0", "real_valued=0", "padded=0"],
            f"inside={int(inside)}",
            f"duration_ms={duration_s * 1e3}",
            f"sample_rates_hz={sample_rate_hz if inside else 61.44e6}",
        ],
    )
    index = 0
    while count:
        scene = draw(config, Stream(seed, TEST, index))
        index += 1
        transmission = dataclasses.replace(scene.transmissions[0], offset_hz=offset_khz * 1e3)
        half_hz = 90e3 * transmission.cell.num_rb
        reach_hz = min(abs(edge) for edge in scene.receiver.passband) * sample_rate_hz
        if inside or half_hz < reach_hz + 0.02 * sample_rate_hz:
            count -= 1
            samples = round(duration_s * sample_rate_hz)
            yield dataclasses.replace(
                scene, sample_rate_hz=sample_rate_hz, num_samples=samples, transmissions=(transmission,)
            )


@cache
def spread(bandwidth_mhz, offset_khz, sample_rate_hz, duration_s, band_mhz, empty_mhz, seed=0):
    """{statistic: values of the scenes, ascending}."""
    scenes = synthetic(bandwidth_mhz, offset_khz, sample_rate_hz, duration_s, seed=seed)
    each = [statistics(render(scene).numpy(), sample_rate_hz, band_mhz, empty_mhz) for scene in scenes]
    return {name: np.sort([one[name] for one in each]) for name in each[0]}


def windows(name):
    """(statistics of each whole window, sample rate, length of a window): the whole capture where it is
    shorter.
    """
    [recording] = open_recording(CAPTURES / f"{name}.sigmf-meta")
    rate_hz = recording.sample_rate_hz
    count = min(recording.num_samples, round(WINDOW_S * rate_hz))
    _, _, band_mhz, empty_mhz = CARRIERS[name]
    starts = range(0, recording.num_samples - count + 1, count)
    return (
        [statistics(recording.read(at, count), rate_hz, band_mhz, empty_mhz) for at in starts],
        rate_hz,
        count / rate_hz,
    )


@needs_captures
@pytest.mark.parametrize("name", CARRIERS)
def test_captures_lie_inside_the_spread_of_scenes(name):
    bandwidth_mhz, offset_khz, band_mhz, empty_mhz = CARRIERS[name]
    real, rate_hz, duration_s = windows(name)
    scenes = spread(bandwidth_mhz, offset_khz, rate_hz, duration_s, band_mhz, empty_mhz)
    outside = {
        statistic
        for one in real
        for statistic, value in one.items()
        if not scenes[statistic][0] <= value <= scenes[statistic][-1]
    }
    assert not outside
