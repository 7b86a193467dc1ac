"""Signals that are neither NR nor LTE: what a scene sets beside carriers, or instead of them, and labels Noise.

A `Distractor` is drawn with the parameters of real systems and added to IQ. `waveforms` and `multicarrier` beside this file
make the signals.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from radio.scenes import baseband, multicarrier, waveforms

SEEDS = 2**31


@dataclass(frozen=True)
class Distractor:
    """One signal.

    Attributes:
        kind: one of `KINDS`.
        center_hz: from the centre of the observed band; parts of the signal may lie beyond the band, and are not sent.
        bandwidth_hz: what holds about 99 % of its energy; of all channels that it hops over, of all carriers that it has.
        snr_db: mean power while it sends (`baseband.mean_power`) over that of noise in `bandwidth_hz`, where noise has
            unit power per complex sample over the sample rate.
        seed: what is random in it, 0 to 2^31 - 1.
        settings: parameters of its kind, plain values: the keyword arguments of its function in `radio.scenes.waveforms` or
            `radio.scenes.multicarrier`.
        delay_spread_s: rms delay of the echoes it arrives with, 0 to 100 ns; 0: none. They do not move. Their frequency
            response has unit mean power in `bandwidth_hz`.
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
        if not (0 < self.bandwidth_hz < math.inf and math.isfinite(self.center_hz) and math.isfinite(self.snr_db)):
            raise ValueError(f"expected finite, bandwidth > 0: {self.center_hz=} {self.bandwidth_hz=} {self.snr_db=}")
        if not 0 <= self.seed < SEEDS:
            raise ValueError(f"expected seed 0 to {SEEDS - 1}: {self.seed=}")
        if not 0 <= self.delay_spread_s <= 100e-9:
            raise ValueError(f"expected a delay spread of 0 to 100 ns: {self.delay_spread_s=}")


def draw(kind, rng, sample_rate_hz, duration_s, low_hz, high_hz, snr_db):
    """A plausible signal of a kind that lies between two frequencies.

    Args:
        kind: one of `KINDS`.
        rng: numpy generator.
        duration_s: of the stretch it is for: rare bursts are placed so that one of them is seen.

    Returns:
        Distractor, or None where no signal of this kind is narrow enough.
    """
    if kind not in KINDS:
        raise ValueError(f"expected kind to be one of {tuple(KINDS)}: {kind=}")
    drawn = KINDS[kind].draw(rng, _Room(high_hz - low_hz, sample_rate_hz, duration_s))
    if drawn is None:
        return None
    bandwidth_hz, settings = drawn
    half = bandwidth_hz / 2
    center_hz, seed = float(rng.uniform(low_hz + half, high_hz - half)), int(rng.integers(SEEDS))
    delay_spread_s = _log_uniform(rng, 5e-9, 100e-9) if rng.random() < 0.6 else 0.0
    settings = {key: value.item() if isinstance(value, np.generic) else value for key, value in settings.items()}
    return Distractor(kind, center_hz, float(bandwidth_hz), float(snr_db), seed, settings, delay_spread_s)


def add(iq, distractor, sample_rate_hz, stream):
    """Add a signal to a stretch of IQ in place, scaled to its own power as measured.

    Args:
        iq: complex64 [samples].
        stream: `radio.rng.Stream` of the sample; the distractor's seed tells apart those of one stream.
    """
    stretch = baseband.Stretch(sample_rate_hz, len(iq), iq.device)
    stream = stream.child(distractor.seed)
    render = KINDS[distractor.kind].render
    signal = render(stretch, stream.child(0).generator(), stream.child(1), **distractor.settings)
    power = baseband.mean_power(signal, baseband.Clock(signal.rate_hz, stretch.duration_s, iq.device))
    if power == 0:
        return
    gain = math.sqrt(10 ** (distractor.snr_db / 10) * distractor.bandwidth_hz / sample_rate_hz / power)
    echoes = _echoes(stream.child(2).generator(), distractor)
    for first, offset_hz, samples in signal.parts:

        def response(frequency, offset_hz=offset_hz):
            return signal.response(frequency) * echoes(offset_hz + frequency * signal.rate_hz)

        baseband.place(iq, samples, first - baseband.MARGIN, signal.rate_hz, distractor.center_hz + offset_hz,
                        sample_rate_hz, gain, response, signal.reach)


def _echoes(rng, distractor):
    """Frequency response, Hz from the signal's centre to complex, of 12 paths of exponential delay and equal mean power."""
    if not distractor.delay_spread_s:
        return np.ones_like
    delays_s = np.minimum(rng.exponential(distractor.delay_spread_s, 12), 4 * distractor.delay_spread_s)
    gains = rng.standard_normal((12, 2)) @ [1, 1j]

    def response(frequency_hz):
        return np.exp(-2j * np.pi * np.multiply.outer(frequency_hz, delays_s)) @ gains

    inside = np.linspace(-0.5, 0.5, 512) * distractor.bandwidth_hz
    scale = np.sqrt((abs(response(inside)) ** 2).mean())
    return lambda frequency_hz: response(frequency_hz) / scale


# How each kind is drawn: (generator, room) -> (bandwidth in Hz, settings), or None


class _Room(NamedTuple):
    width_hz: float
    sample_rate_hz: float
    duration_s: float

    def pick(self, rng, rows):
        """One of those rows, (bandwidth in Hz, ...), that fit; or None."""
        rows = [row for row in rows if row[0] <= self.width_hz]
        return rows[rng.integers(len(rows))] if rows else None


def _log_uniform(rng, low, high):
    return float(np.exp(rng.uniform(math.log(low), math.log(high))))


def _on_off(rng, always, on_s, off_s):
    """Length of bursts and gaps: {"burst_s", "gap_s"}; no gaps with probability `always`."""
    if rng.random() < always:
        return {"burst_s": 1.0, "gap_s": 0.0}
    return {"burst_s": _log_uniform(rng, *on_s), "gap_s": _log_uniform(rng, *off_s)}


def _draw_tone(rng, room):
    # A spur is as wide as a line on a waterfall of a thousand rows: its SNR counts in that width.
    keyed = _on_off(rng, 0.7, (0.5e-3, 20e-3), (0.5e-3, 20e-3))
    line_hz = max(room.sample_rate_hz / 1000, 2e3, 20 / keyed["burst_s"])
    if line_hz > room.width_hz:
        return None
    num_tones, spacing_hz = 1, 0.0
    if rng.random() < 0.4 and room.width_hz > 8 * line_hz:
        num_tones = int(rng.integers(3, 14))
        spacing_hz = _log_uniform(rng, 3 * line_hz, room.width_hz - line_hz) / (num_tones - 1)
        spacing_hz = max(spacing_hz, 3 * line_hz)
        num_tones = min(num_tones, 1 + int((room.width_hz - line_hz) / spacing_hz))
    span_hz = (num_tones - 1) * spacing_hz
    drifts = rng.random() < 0.5 and span_hz < room.sample_rate_hz / 8  # wide combs belong to a clock, which keeps still
    drift_hz = min(_log_uniform(rng, 0.1, 20) * line_hz, room.width_hz - line_hz - span_hz) if drifts else 0.0
    return line_hz + span_hz + drift_hz, {
        "num_tones": num_tones, "spacing_hz": spacing_hz, "drift_hz": drift_hz,
        "drift_period_s": _log_uniform(rng, 5e-3, 0.5), **keyed,
    }


def _draw_fm(rng, room):
    row = room.pick(rng, [(11e3, "narrow", 2.5e3, 3e3), (16e3, "narrow", 5e3, 3e3), (150e3, "broadcast", 75e3, 15e3),
                          (8e3, "am", 0.0, 4e3), (150e3, "broadcast", 75e3, 15e3)])
    if row is None:
        return None
    bandwidth_hz, mode, deviation_hz, audio_hz = row
    keyed = _on_off(rng, 1.0 if mode == "broadcast" else 0.8, (5e-3, 0.1), (5e-3, 0.1))
    return bandwidth_hz, {"mode": mode, "deviation_hz": deviation_hz, "audio_hz": audio_hz, **keyed}


def _fsk_width_hz(bit_rate_hz, index, bt):
    """What holds 99 % of the energy of Gaussian FSK, as measured: the deviation to both sides, and the keying."""
    return bit_rate_hz * (index + 0.1 + 0.9 * bt)


def _draw_gfsk(rng, room):
    if rng.random() < 0.4 and room.width_hz > 1.2e6:
        # Bluetooth: Core specification volume 6 part A 3.1, 1 and 2 Msym/s
        bit_rate_hz, index, bt = float(rng.choice([1e6, 1e6, 2e6])), float(rng.uniform(0.28, 0.35)), 0.5
        keyed = _on_off(rng, 0.0, (80e-6, 2.8e-3), (0.15e-3, 8e-3))
    else:
        # telemetry, meters, remote controls
        rates_hz = np.array([1.2e3, 2.4e3, 4.8e3, 9.6e3, 19.2e3, 38.4e3, 50e3, 100e3, 250e3])
        bit_rate_hz = float(rng.choice(rates_hz[rates_hz * room.duration_s >= 50]))
        index, bt = float(rng.choice([0.5, 1.0, 1.0, 2.0, 4.0])), float(rng.choice([0.5, 1.0]))
        bits = (100, 2000)
        keyed = _on_off(rng, 0.2, [n / bit_rate_hz for n in bits], [n / bit_rate_hz for n in bits])
    bandwidth_hz = _fsk_width_hz(bit_rate_hz, index, bt)
    if bandwidth_hz > room.width_hz:
        return None
    return bandwidth_hz, {"bit_rate_hz": bit_rate_hz, "index": index, "bt": bt, **keyed}


def _draw_hopping(rng, room):
    if rng.random() < 0.5 and room.width_hz > 21e6:
        # Bluetooth: 79 channels, or what adaptive hopping leaves of them (at least 20); packets of 1, 3 or 5 slots
        bit_rate_hz, index, bt, spacing_hz, most = 1e6, 0.32, 0.5, 1e6, 79
        slots = int(rng.choice([1, 1, 3, 5]))
        burst_s, dwell_s = {1: 366e-6, 3: 1622e-6, 5: 2870e-6}[slots], (slots + 1) * 625e-6
        if slots == 1 and rng.random() < 0.5:
            dwell_s = 625e-6  # master and slave in turn, both heard
        modulation, least = "gfsk", 20
    else:
        spacing_hz = float(rng.choice([25e3, 50e3, 100e3, 200e3, 400e3, 500e3, 1e6]))
        bit_rate_hz, index, bt = spacing_hz * 0.5, float(rng.choice([0.5, 1.0])), 0.5
        dwell_s = _log_uniform(rng, max(0.4e-3, 40 / bit_rate_hz), max(20e-3, 50 / bit_rate_hz))
        burst_s = dwell_s * float(rng.uniform(0.4, 0.95))
        modulation, least, most = str(rng.choice(["gfsk", "gfsk", "cw"])), 5, 64
    width_hz = _fsk_width_hz(bit_rate_hz, index, bt)
    channels = min(most, 1 + int((room.width_hz - width_hz) // spacing_hz))
    if channels < least:
        return None
    channels = int(rng.integers(least, channels + 1))
    return (channels - 1) * spacing_hz + width_hz, {
        "channels": channels, "spacing_hz": spacing_hz, "dwell_s": dwell_s, "burst_s": burst_s, "modulation": modulation,
        "bit_rate_hz": bit_rate_hz, "index": index, "bt": bt,
    }


def _draw_qam(rng, room):
    if rng.random() < 0.25 and room.width_hz >= 4.7e6:
        # UTRA downlink, TS 25.104 6.8.1: 3.84 Mchip/s, roll-off 0.22
        return 3.84e6 * 1.22, {"symbol_rate_hz": 3.84e6, "roll_off": 0.22, "bits_a_symbol": 0, "burst_s": 1.0, "gap_s": 0.0}
    roll_off = float(rng.choice([0.1, 0.15, 0.2, 0.25, 0.35, 0.5]))
    widest = min(20e6, room.width_hz / (1 + roll_off))
    if widest < 25e3:
        return None
    symbol_rate_hz = _log_uniform(rng, max(25e3, min(room.sample_rate_hz / 300, widest / 2)), widest)
    keyed = _on_off(rng, 0.6, (max(0.2e-3, 50 / symbol_rate_hz), 10e-3), (0.1e-3, 10e-3))
    return symbol_rate_hz * (1 + roll_off), {
        "symbol_rate_hz": symbol_rate_hz, "roll_off": roll_off, "bits_a_symbol": int(rng.choice([2, 2, 4, 6])), **keyed,
    }


def _draw_ofdm(rng, room):
    #                       bandwidth, system, width, spacing, highest, nulls
    row = room.pick(rng, [(17.4e6, "wifi", 20e6, 312.5e3, 26, 1), (18.4e6, "wifi", 20e6, 312.5e3, 28, 1),
                          (37.0e6, "wifi", 40e6, 312.5e3, 58, 3), (77.0e6, "wifi", 80e6, 312.5e3, 122, 3),
                          (19.2e6, "wifi", 20e6, 78.125e3, 122, 3), (38.3e6, "wifi", 40e6, 78.125e3, 244, 5),
                          (78.3e6, "wifi", 80e6, 78.125e3, 500, 5),
                          (7.65e6, "dvbt", 8e6), (6.7e6, "dvbt", 7e6), (5.74e6, "dvbt", 6e6), (1.56e6, "dab")])
    if row is None:
        return None
    bandwidth_hz, system = row[:2]
    if system == "dab":
        return bandwidth_hz, {"system": system}
    bits_a_symbol = int(rng.choice([2, 4, 6]))
    if system == "dvbt":
        size, guard = int(rng.choice([2048, 8192, 8192])), float(rng.choice([1 / 4, 1 / 8, 1 / 16, 1 / 32]))
        return bandwidth_hz, {"system": system, "channel_hz": row[2], "size": size, "guard_share": guard,
                              "bits_a_symbol": bits_a_symbol}
    busy = rng.random()
    if busy < 0.4:  # saturated
        frame_s, idle_s = _log_uniform(rng, 0.2e-3, 5e-3), 0.0
    elif busy < 0.85:
        frame_s, idle_s = _log_uniform(rng, 0.1e-3, 3e-3), _log_uniform(rng, 0.1e-3, 5e-3)
    else:  # beacons of several stations
        frame_s, idle_s, bits_a_symbol = float(rng.uniform(0.2e-3, 2e-3)), float(rng.uniform(20e-3, 102.4e-3)), 1
    width_hz, spacing_hz, highest, nulls = row[2:]
    return bandwidth_hz, {
        "system": system, "width_hz": width_hz, "spacing_hz": spacing_hz, "highest": highest, "nulls": nulls,
        "bits_a_symbol": bits_a_symbol, "frame_s": frame_s, "idle_s": idle_s, "acks": bits_a_symbol > 1,
    }


def _draw_chirp(rng, room):
    waveform = rng.choice(["lora", "fmcw", "pulsed"])
    if waveform == "lora":
        row = room.pick(rng, [(1.05 * width, width) for width in (125e3, 250e3, 500e3)])
        if row is None:
            return None
        factor = int(rng.integers(7, 13))
        symbol_s = 2**factor / row[1]
        return row[0], {"waveform": "lora", "chirp_hz": row[1], "spreading_factor": factor,
                        "burst_s": symbol_s * int(rng.integers(20, 60)), "gap_s": symbol_s * _log_uniform(rng, 5, 100)}
    widest = room.width_hz / 1.1
    if widest < 200e3:
        return None
    if waveform == "fmcw":
        sweep_hz = _log_uniform(rng, max(200e3, widest / 20), widest)
        # at least some hundred cells of time × bandwidth, or the spectrum is no longer the sweep's
        sweep_s = _log_uniform(rng, max(50e-6, 400 / sweep_hz), max(10e-3, 800 / sweep_hz))
        idle_s = float(rng.choice([0.0, 0.1, 0.5])) * sweep_s
        return 1.05 * sweep_hz, {"waveform": "fmcw", "sweep_hz": sweep_hz, "sweep_s": sweep_s,
                                 "shape": str(rng.choice(["up", "down", "triangle"])), "idle_s": idle_s}
    sweep_hz = _log_uniform(rng, 200e3, min(widest, 20e6))
    burst_s = _log_uniform(rng, max(5e-6, 50 / sweep_hz), max(100e-6, 100 / sweep_hz))
    return 1.1 * sweep_hz, {"waveform": "pulsed", "sweep_hz": sweep_hz, "burst_s": burst_s,
                             "gap_s": _log_uniform(rng, max(3 * burst_s, 0.2e-3), max(6 * burst_s, 4e-3)),
                             "shape": str(rng.choice(["up", "down"]))}


def _draw_gsm(rng, room):
    one_hz = 250e3
    if room.width_hz < one_hz:
        return None
    spacing_hz = float(rng.choice([200e3, 400e3, 600e3]))
    most = min(8, 1 + int((room.width_hz - one_hz) // spacing_hz))
    carriers = int(rng.integers(1, most + 1))
    beacon = bool(rng.random() < 0.6)
    slots = [int(rng.integers(1, 256)) for _ in range(carriers)]
    if beacon:
        slots[0] = 255
    return (carriers - 1) * spacing_hz + one_hz, {"carriers": carriers, "spacing_hz": spacing_hz, "slots": tuple(slots),
                                                  "beacon": beacon}


def _draw_noise_burst(rng, room):
    if room.width_hz < 100e3:
        return None
    noise_hz = _log_uniform(rng, max(100e3, room.width_hz / 100), room.width_hz)
    way, edge = rng.choice(["always", "bursts", "steps"]), float(rng.choice([0.03, 0.03, 0.1, 0.25, 0.5]))
    burst_s = _log_uniform(rng, max(0.1e-3, 50 / noise_hz), 10e-3)
    return noise_hz * (0.98 - 0.6 * edge), {
        "noise_hz": noise_hz, "edge": edge,
        "tilt_db": float(rng.choice([0.0, 0.0, rng.uniform(-6, 6)])), "burst_s": burst_s,
        "gap_s": _log_uniform(rng, 0.1e-3, 10e-3) if way == "bursts" else 0.0,
        "step_db": float(rng.uniform(3, 12)) if way == "steps" else 0.0,
    }


def _draw_nbiot(rng, room):
    # TS 36.211 table 10.1.2.3-1: length of a resource unit by the number of tones; repetitions make the bursts long
    # The keying of a single tone is rectangular: 99 % of its energy spread over several times the spacing.
    row = room.pick(rng, [(60e3, "npusch", 1, 3.75e3, 32e-3), (130e3, "npusch", 1, 15e3, 8e-3),
                          (130e3, "npusch", 3, 15e3, 4e-3), (150e3, "npusch", 6, 15e3, 2e-3),
                          (190e3, "npusch", 12, 15e3, 1e-3), (46e3, "nprach", 12, 3.75e3, 6.4e-3)])
    if row is None:
        return None
    bandwidth_hz, form, tones, spacing_hz, unit_s = row
    burst_s = unit_s * int(2 ** rng.integers(0, 5))
    return bandwidth_hz, {"form": form, "tones": tones, "spacing_hz": spacing_hz, "burst_s": burst_s,
                          "gap_s": _log_uniform(rng, 2e-3, 40e-3)}


def _draw_pulses(rng, room):
    row = room.pick(rng, [(6e6, "mode_s"), (6e6, "mode_s"), (0.4e6, "dme"), (0.2e6, "radar")])
    if row is None:
        return None
    bandwidth_hz, system = row
    if system == "mode_s":
        return bandwidth_hz, {"system": system, "messages_a_s": _log_uniform(rng, 50, 2000)}
    if system == "dme":
        return bandwidth_hz, {"system": system, "pairs_a_s": _log_uniform(rng, 100, 2700),
                              "spacing_s": float(rng.choice([12e-6, 30e-6, 36e-6]))}
    # 99 % of the energy of a pulse with edges of a fifth of its length lies within 5.8 / length
    burst_s = _log_uniform(rng, max(0.5e-6, 5.8 / room.width_hz), 32e-6)
    return 5.8 / burst_s, {"system": system, "burst_s": burst_s, "gap_s": _log_uniform(rng, 0.25e-3, 2e-3),
                           "stagger": float(rng.choice([0.0, 0.2]))}


class _Kind(NamedTuple):
    draw: object
    render: object


KINDS = {
    "tone": _Kind(_draw_tone, waveforms.tone),
    "fm": _Kind(_draw_fm, waveforms.fm),
    "gfsk": _Kind(_draw_gfsk, waveforms.gfsk),
    "hopping": _Kind(_draw_hopping, waveforms.hopping),
    "qam": _Kind(_draw_qam, waveforms.qam),
    "ofdm": _Kind(_draw_ofdm, multicarrier.ofdm),
    "chirp": _Kind(_draw_chirp, waveforms.chirp),
    "gsm": _Kind(_draw_gsm, waveforms.gsm),
    "noise_burst": _Kind(_draw_noise_burst, waveforms.noise_burst),
    "nbiot": _Kind(_draw_nbiot, multicarrier.nbiot),
    "pulses": _Kind(_draw_pulses, waveforms.pulses),
}
