"""Distractors: signals that are neither NR nor LTE. `boxes` says where they are seen.

`draw_distractors` draws their settings, `schedules` their bursts; `waveforms` and `multicarrier` render them.
"""

import math
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from radio.scenes import baseband, multicarrier, schedules, waveforms
from radio.scenes import draw_distractors as draws

SEEDS = 2**31

VISIBLE_DB = -3.0  # a weaker burst has no box
JOIN_GAP_S = 0.5e-3  # bursts at one frequency with a shorter gap have one box
# A usual cell of a spectrogram. A burst that is narrower or shorter is seen in the noise of a whole cell.
_CELL_BANDWIDTH, _CELL_HZ, _CELL_S = 1 / 256, 180e3, 50e-6  # of the sample rate; its most; s


@dataclass(frozen=True)
class Distractor:
    """One signal.

    Attributes:
        kind: one of `KINDS`.
        center_hz: from the centre of the band. Parts of the signal beyond the band are not sent.
        bandwidth_hz: 99 % bandwidth, of all hopping channels or carriers together.
        snr_db: mean power while the signal is on (`baseband.mean_power`) over the noise in `bandwidth_hz`.
            Noise has unit power per complex sample.
        seed: of the signal's random values, 0 to 2^31 - 1.
        settings: keyword arguments of the kind's renderer, plain values.
        delay_spread_s: rms delay spread of a static multipath channel, 0 to 100 ns; 0 for none.
            The channel has unit mean power in `bandwidth_hz`.
    """

    kind: str
    center_hz: float
    bandwidth_hz: float
    snr_db: float
    seed: int = 0
    settings: dict = field(default_factory=dict)
    delay_spread_s: float = 0.0

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"expected kind to be one of {tuple(KINDS)}: {self.kind=}")
        numbers = (self.center_hz, self.bandwidth_hz, self.snr_db)
        if not (np.isfinite(numbers).all() and self.bandwidth_hz > 0):
            raise ValueError(f"expected finite center_hz, bandwidth_hz above 0 and snr_db: {numbers}")
        if not 0 <= self.seed < SEEDS:
            raise ValueError(f"expected seed 0 to {SEEDS - 1}: {self.seed=}")
        if not 0 <= self.delay_spread_s <= 100e-9:
            raise ValueError(f"expected a delay spread of 0 to 100 ns: {self.delay_spread_s=}")


def draw(kind, rng, sample_rate_hz, duration_s, low_hz, high_hz, snr_db):
    """Draw a signal of a kind between two frequencies.

    Args:
        kind: one of `KINDS`.
        rng: numpy generator.
        duration_s: of the scene. Rare bursts are placed so that the scene shows one.

    Returns:
        Distractor, or None if no signal of this kind fits.
    """
    if kind not in KINDS:
        raise ValueError(f"expected kind to be one of {tuple(KINDS)}: {kind=}")
    draw_settings, _, _ = KINDS[kind]
    try:
        bandwidth_hz, settings = draw_settings(rng, draws.Room(high_hz - low_hz, sample_rate_hz, duration_s))
    except draws.TooNarrowError:
        return None
    half = bandwidth_hz / 2
    center_hz, seed = float(rng.uniform(low_hz + half, high_hz - half)), int(rng.integers(SEEDS))
    delay_spread_s = draws.log_uniform(rng, 5e-9, 100e-9) if rng.random() < 0.6 else 0.0
    return Distractor(kind, center_hz, bandwidth_hz, float(snr_db), seed, settings, delay_spread_s)


def add(iq, distractor, sample_rate_hz, stream):
    """Add a signal to IQ in place, scaled by its measured power.

    Args:
        iq: complex64 [samples].
        stream: `radio.rng.Stream`. Distractors of one stream differ by their seed.
    """
    stretch = baseband.Stretch(sample_rate_hz, len(iq), iq.device)
    rng, bursts = _scheduled(distractor, stretch.duration_s, stream)
    stream = stream.child(distractor.seed)
    _, _, render = KINDS[distractor.kind]
    signal = render(stretch, rng, stream.child(1), bursts, **distractor.settings)
    power = baseband.mean_power(signal, baseband.Clock(signal.rate_hz, stretch.duration_s, iq.device))
    if power == 0:
        return
    gain = math.sqrt(10 ** (distractor.snr_db / 10) * distractor.bandwidth_hz / sample_rate_hz / power)
    multipath = _multipath(stream.child(2).generator(), distractor)
    for first, offset_hz, samples in signal.parts:

        def response(frequency, offset_hz=offset_hz):
            return signal.response(frequency) * multipath(offset_hz + frequency * signal.rate_hz)

        part = (samples, first - baseband.MARGIN, signal.rate_hz)
        offset_hz = distractor.center_hz + offset_hz
        baseband.place(iq, *part, offset_hz, sample_rate_hz, gain, response, signal.reach)


def _scheduled(distractor, duration_s, stream):
    """A generator of the signal's random values, and the bursts that it drew first: a list of `Burst`."""
    rng = stream.child(distractor.seed).child(0).generator()
    _, schedule, _ = KINDS[distractor.kind]
    return rng, schedule(rng, duration_s, distractor.bandwidth_hz, **distractor.settings)


def boxes(distractor, sample_rate_hz, num_samples, stream, loss_db=None):
    """Where a signal is seen: [(start s, end s, lower edge Hz, upper edge Hz)] in the scene and the band.

    Bursts weaker than `VISIBLE_DB` have no box, bursts closer than `JOIN_GAP_S` share one.

    Args:
        num_samples: of the scene.
        stream: as of `add`.
        loss_db: what the receiver takes from the SNR at a frequency in Hz, a function; None for nothing.
    """
    duration_s, half_hz = num_samples / sample_rate_hz, sample_rate_hz / 2
    _, bursts = _scheduled(distractor, duration_s, stream)
    bursts = [burst for burst in bursts if burst.start_s < duration_s and burst.end_s > 0]
    power_db = _mean_power_db(bursts, duration_s)
    cell_hz = min(_CELL_BANDWIDTH * sample_rate_hz, _CELL_HZ)
    loss_db = lru_cache(maxsize=None)(loss_db or (lambda frequency_hz: 0.0))

    bands = {}  # (low, high) from the band's centre: [(start, end)]
    for burst in bursts:
        width_hz, length_s = burst.high_hz - burst.low_hz, burst.length_s
        low_hz = max(burst.low_hz + distractor.center_hz, -half_hz)
        high_hz = min(burst.high_hz + distractor.center_hz, half_hz)
        if high_hz <= low_hz:
            continue
        snr_db = distractor.snr_db + burst.level_db - power_db
        snr_db += 10 * math.log10(distractor.bandwidth_hz / max(width_hz, cell_hz))
        snr_db += 10 * math.log10(min(1.0, length_s / _CELL_S))
        if snr_db - loss_db((low_hz + high_hz) / 2) >= VISIBLE_DB:
            times = max(burst.start_s, 0.0), min(burst.end_s, duration_s)
            bands.setdefault((low_hz, high_hz), []).append(times)

    found = []
    for band, times in bands.items():
        (start, end), *rest = sorted(times)
        for later, last in rest:
            if later - end < JOIN_GAP_S:
                end = max(end, last)
            else:
                found.append((start, end, *band))
                start, end = later, last
        found.append((start, end, *band))
    return sorted(found)


def _mean_power_db(bursts, duration_s):
    """Mean power of the bursts together while any is on, on the scale of their levels."""
    if not bursts:
        return 0.0
    starts, ends, levels_db = np.array([(one.start_s, one.end_s, one.level_db) for one in bursts]).T
    starts, ends = np.maximum(starts, 0.0), np.minimum(ends, duration_s)
    times = np.concatenate([starts, ends])
    order = np.argsort(times)
    steps = np.concatenate([np.ones(len(bursts)), -np.ones(len(bursts))])[order]
    on_s = (np.cumsum(steps)[:-1] > 0) @ np.diff(times[order])
    return 10 * math.log10((ends - starts) @ 10 ** (levels_db / 10) / on_s)


def _multipath(rng, distractor):
    """Frequency response (Hz from the signal's centre) of 12 paths of exponential delay, equal mean power."""
    if not distractor.delay_spread_s:
        return np.ones_like
    delays_s = np.minimum(rng.exponential(distractor.delay_spread_s, 12), 4 * distractor.delay_spread_s)
    gains = rng.standard_normal((12, 2)) @ [1, 1j]

    def response(frequency_hz):
        return np.exp(-2j * np.pi * np.multiply.outer(frequency_hz, delays_s)) @ gains

    inside = np.linspace(-0.5, 0.5, 512) * distractor.bandwidth_hz
    scale = np.sqrt((abs(response(inside)) ** 2).mean())
    return lambda frequency_hz: response(frequency_hz) / scale


# kind: (how to draw its settings, when it sends, how to render it)
KINDS = {
    "tone": (draws.draw_tone, schedules.tone, waveforms.tone),
    "fm": (draws.draw_fm, schedules.keyed(0.3), waveforms.fm),
    "gfsk": (draws.draw_gfsk, schedules.keyed(0.5), waveforms.gfsk),
    "hopping": (draws.draw_hopping, schedules.hopping, waveforms.hopping),
    "qam": (draws.draw_qam, schedules.keyed(0.2), waveforms.qam),
    "ofdm": (draws.draw_ofdm, schedules.ofdm, multicarrier.ofdm),
    "chirp": (draws.draw_chirp, schedules.chirp, waveforms.chirp),
    "gsm": (draws.draw_gsm, schedules.gsm, waveforms.gsm),
    "noise_burst": (draws.draw_noise_burst, schedules.noise_burst, waveforms.noise_burst),
    "nbiot": (draws.draw_nbiot, schedules.keyed(0.3), multicarrier.nbiot),
    "pulses": (draws.draw_pulses, schedules.pulses, waveforms.pulses),
    "drone": (draws.draw_drone, schedules.burst_ofdm, multicarrier.burst_ofdm),
    "burst_ofdm": (draws.draw_burst_ofdm, schedules.burst_ofdm, multicarrier.burst_ofdm),
}
