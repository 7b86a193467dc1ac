"""Distractors: signals that are neither NR nor LTE. Masks label them Noise.

`draw_distractors` draws their settings; `waveforms` and `multicarrier` render them.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from radio.scenes import baseband, multicarrier, waveforms
from radio.scenes import draw_distractors as draws

SEEDS = 2**31


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
    draw_settings, _ = KINDS[kind]
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
    stream = stream.child(distractor.seed)
    _, render = KINDS[distractor.kind]
    signal = render(stretch, stream.child(0).generator(), stream.child(1), **distractor.settings)
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


# kind: (how to draw its settings, how to render it)
KINDS = {
    "tone": (draws.draw_tone, waveforms.tone),
    "fm": (draws.draw_fm, waveforms.fm),
    "gfsk": (draws.draw_gfsk, waveforms.gfsk),
    "hopping": (draws.draw_hopping, waveforms.hopping),
    "qam": (draws.draw_qam, waveforms.qam),
    "ofdm": (draws.draw_ofdm, multicarrier.ofdm),
    "chirp": (draws.draw_chirp, waveforms.chirp),
    "gsm": (draws.draw_gsm, waveforms.gsm),
    "noise_burst": (draws.draw_noise_burst, waveforms.noise_burst),
    "nbiot": (draws.draw_nbiot, multicarrier.nbiot),
    "pulses": (draws.draw_pulses, waveforms.pulses),
}
