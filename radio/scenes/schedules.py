"""When and where each kind of distractor sends: both its samples and its labels follow this schedule.

Functions (numpy generator, duration of the scene in s, bandwidth in Hz, settings of the kind) -> [`Burst`].
A burst may begin before the scene and end after it.
"""

import math
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

GSM_BIT_RATE_HZ = 13e6 / 48  # 3GPP TS 45.002 5.2; a slot has 156.25 bits and sends 148; a frame has 8 slots
GSM_SLOT_S = 156.25 / GSM_BIT_RATE_HZ
GSM_CARRIER_HZ = 250e3  # 99 % bandwidth

SLOW_SWEEP_S = 2e-3  # longer sweeps are labelled in pieces along the sweep
_SWEEP_PIECES = 16  # at most

# IEEE 802.11-2020 table 17-21: DIFS is SIFS and two slots. The preamble has training fields and SIGNAL.
WIFI_PREAMBLE_S, WIFI_SYMBOL_S, _SIFS_S, _SLOT_S = 20e-6, 4e-6, 16e-6, 9e-6


class Burst(NamedTuple):
    """A stretch in which a signal is on.

    Attributes:
        start_s: after the scene's first sample; negative if it began before.
        length_s: may be infinite.
        low_hz, high_hz: what it uses, from the signal's centre.
        level_db: its power, relative to the other bursts of the signal.
        part: what the renderer needs to know of it, by kind.
    """

    start_s: float
    length_s: float
    low_hz: float
    high_hz: float
    level_db: float = 0.0
    part: Any = None

    @property
    def end_s(self):
        return self.start_s + self.length_s


def at(offset_hz, width_hz):
    """Lower and upper edge of a band around a frequency."""
    return offset_hz - width_hz / 2, offset_hz + width_hz / 2


def times(rng, duration_s, burst_s, gap_s, jitter=0.0):
    """Times of bursts: [(start s, length s)], at least half of one inside the scene.

    jitter: gaps vary uniformly by this share.
    """
    start = rng.uniform(-0.5 * burst_s, min(gap_s, max(duration_s - burst_s / 2, 0.0)))
    found = []
    while start < duration_s:
        found.append((start, burst_s))
        start += burst_s + gap_s * (1 + jitter * rng.uniform(-1, 1))
    return found


def keyed(jitter):
    """The schedule of a signal in bursts over its whole band. Without a gap, it is always on."""

    def schedule(rng, duration_s, bandwidth_hz, *, burst_s, gap_s, **_):
        on = times(rng, duration_s, burst_s, gap_s, jitter) if gap_s else [(0.0, math.inf)]
        return [Burst(*time, *at(0.0, bandwidth_hz)) for time in on]

    return schedule


def tone(rng, duration_s, bandwidth_hz, *, num_tones, spacing_hz, drift_hz, drift_period_s, burst_s, gap_s):
    """Each tone's line, along its drift. part: (number of the tone, phase of the drift in turns, on, off)."""
    levels_db = -rng.uniform(0, 15, num_tones)
    turn = rng.random()
    on = times(rng, duration_s, burst_s, gap_s, 0.3) if gap_s else [(0.0, duration_s)]
    line_hz = bandwidth_hz - (num_tones - 1) * spacing_hz - drift_hz

    def drift(time_s):
        return drift_hz / 2 * math.cos(2 * math.pi * (time_s / drift_period_s + turn))

    bursts = []
    for start_s, length_s in on:
        first, last = max(start_s, 0.0), min(start_s + length_s, duration_s)
        for begin, end in _pieces(first, last, drift_period_s / 2, drift_hz / line_hz):
            edges = [drift(begin), drift((begin + end) / 2), drift(end)]
            for number in range(num_tones):
                offset_hz = (number - (num_tones - 1) / 2) * spacing_hz
                low, high = offset_hz + min(edges) - line_hz / 2, offset_hz + max(edges) + line_hz / 2
                part = (number, turn, start_s, length_s)
                bursts.append(Burst(begin, end - begin, low, high, levels_db[number], part))
    return bursts


def _pieces(start_s, end_s, sweep_s, widths):
    """[(start s, end s)] of a stretch with sweeps of `sweep_s` over `widths` times the line."""
    length_s = sweep_s / min(_SWEEP_PIECES, max(1, math.ceil(widths)))
    if sweep_s <= SLOW_SWEEP_S or widths <= 1:
        length_s = end_s - start_s
    count = max(1, math.ceil((end_s - start_s) / length_s - 1e-6)) if length_s else 0
    borders = [min(start_s + number * length_s, end_s) for number in range(count + 1)]
    return list(pairwise(borders))


def fsk_width_hz(bit_rate_hz, index, bt):
    """Measured 99 % bandwidth of Gaussian FSK: the deviation to both sides, and the keying."""
    return bit_rate_hz * (index + 0.1 + 0.9 * bt)


def hopping(
    rng,
    duration_s,
    bandwidth_hz,
    *,
    channels,
    spacing_hz,
    dwell_s,
    burst_s,
    modulation,
    bit_rate_hz,
    index,
    bt,
):
    """A burst on another channel every dwell. part: the channel's centre in Hz."""
    start = rng.uniform(-0.5 * burst_s, min(dwell_s - burst_s, duration_s - 0.5 * burst_s))
    width_hz = fsk_width_hz(bit_rate_hz, index, bt) if modulation == "gfsk" else spacing_hz / 4
    channel, bursts = rng.integers(channels), []
    for start_s in np.arange(start, duration_s, dwell_s).tolist():
        offset_hz = (channel - (channels - 1) / 2) * spacing_hz
        bursts.append(Burst(start_s, burst_s, *at(offset_hz, width_hz), 0.0, offset_hz))
        channel = (channel + rng.integers(1, channels)) % channels
    return bursts


def ofdm(rng, duration_s, bandwidth_hz, *, system, **settings):
    """Wi-Fi's frames, DAB's frames without their null symbol; DVB-T is always on."""
    draw = {"wifi": _wifi, "dvbt": _always, "dab": _dab}[system]
    return draw(rng, duration_s, *at(0.0, bandwidth_hz), **settings)


def _always(rng, duration_s, low_hz, high_hz, **_):
    return [Burst(0.0, math.inf, low_hz, high_hz)]


def _wifi(rng, duration_s, low_hz, high_hz, *, spacing_hz, frame_s, idle_s, acks, slower=1, **_):
    """part: (symbols after the preamble, whether it is an ACK)."""
    symbol_s = 1 / spacing_hz + slower * 0.8e-6
    preamble_s, sifs_s, slot_s = slower * WIFI_PREAMBLE_S, slower * _SIFS_S, slower * _SLOT_S
    bursts, ack_db = [], rng.uniform(-10, 6)
    start = rng.uniform(-0.5 * frame_s, min(idle_s + 50e-6, max(duration_s - 0.5 * frame_s, 0)))
    while start < duration_s:
        symbols = max(1, round((rng.uniform(0.3, 1) * frame_s - preamble_s) / symbol_s))
        length_s = preamble_s + symbols * symbol_s
        bursts.append(Burst(start, length_s, low_hz, high_hz, 0.0, (symbols, False)))
        start += length_s
        if acks:
            length_s = preamble_s + 2 * slower * WIFI_SYMBOL_S
            bursts.append(Burst(start + sifs_s, length_s, low_hz, high_hz, ack_db, (2, True)))
            start += sifs_s + length_s
        start += sifs_s + (2 + rng.integers(16)) * slot_s + (rng.exponential(idle_s) if idle_s else 0.0)
    return bursts


# ETSI EN 300 401 mode I (14.2), in samples at 2.048 MHz: a null symbol, then 76 symbols
DAB_RATE_HZ, DAB_NULL, DAB_SIZE, DAB_GUARD, DAB_SYMBOLS = 2.048e6, 2656, 2048, 504, 76


def _dab(rng, duration_s, low_hz, high_hz):
    sent_s = DAB_SYMBOLS * (DAB_SIZE + DAB_GUARD) / DAB_RATE_HZ
    frame_s = DAB_NULL / DAB_RATE_HZ + sent_s
    start = -rng.uniform(0, sent_s)  # on at first: a short scene is not silent
    return [Burst(begin, sent_s, low_hz, high_hz) for begin in np.arange(start, duration_s, frame_s).tolist()]


LONG_PREFIX_EVERY = 7  # symbols, as in LTE


def burst_ofdm(
    rng, duration_s, bandwidth_hz, *, spacing_hz, subcarriers, prefix, long_prefix, burst_s, gap_s, answer_db,
    channels, channel_hz, **_
):  # fmt: skip
    """Bursts of whole symbols, every other one `answer_db` weaker. part: (symbols, the channel's centre in Hz)."""
    symbol_s = (1 + prefix) / spacing_hz
    symbols = max(3, round(burst_s / symbol_s))
    on = times(rng, duration_s, burst_s, gap_s, 0.1)
    if not gap_s:
        symbols = math.ceil(duration_s / symbol_s) + 2
        on = [(-rng.uniform(0, symbol_s), duration_s)]
    length_s = symbols * symbol_s + -(-symbols // LONG_PREFIX_EVERY) * long_prefix / spacing_hz
    width_hz = bandwidth_hz - (channels - 1) * channel_hz
    answers, bursts = int(rng.integers(2)), []
    for number, (start_s, _) in enumerate(on):
        offset_hz = (int(rng.integers(channels)) - (channels - 1) / 2) * channel_hz
        level_db = -answer_db * ((number + answers) % 2)
        bursts.append(Burst(start_s, length_s, *at(offset_hz, width_hz), level_db, (symbols, offset_hz)))
    return bursts


LORA_PREAMBLE = 8  # up-chirps; two network symbols and 2.25 down-chirps follow


def chirp(rng, duration_s, bandwidth_hz, *, waveform, **settings):
    draw = {"lora": _lora, "fmcw": _fmcw, "pulsed": keyed(0.0)}[waveform]
    return draw(rng, duration_s, bandwidth_hz, **settings)


def _lora(rng, duration_s, bandwidth_hz, *, chirp_hz, spreading_factor, burst_s, gap_s):
    """part: symbols of data."""
    symbol_s = 2**spreading_factor / chirp_hz
    data = max(1, round(burst_s / symbol_s) - LORA_PREAMBLE - 5)
    length_s = (LORA_PREAMBLE + 4.25 + data) * symbol_s
    on = times(rng, duration_s, burst_s, gap_s, 0.8)
    return [Burst(start_s, length_s, *at(0.0, bandwidth_hz), 0.0, data) for start_s, _ in on]


def _fmcw(rng, duration_s, bandwidth_hz, *, sweep_hz, sweep_s, shape, idle_s):
    """Sweeps, or the pieces of slow ones. part: start of the first sweep in s, 0 or less."""
    first = -rng.uniform(0, sweep_s + idle_s)
    half_hz, bursts = bandwidth_hz / 2, []
    edges = {"up": (-1, 1), "down": (1, -1), "triangle": (-1, 1, -1)}[shape]
    leg_s = sweep_s / (len(edges) - 1)
    for start_s in np.arange(first, duration_s, sweep_s + idle_s).tolist():
        for number, (begin, end) in enumerate(pairwise(edges)):
            pieces = _pieces(0.0, leg_s, leg_s, _SWEEP_PIECES)
            borders_hz = np.linspace(begin, end, len(pieces) + 1) * half_hz
            for (left, right), band_hz in zip(pieces, pairwise(borders_hz), strict=True):
                at_s = start_s + number * leg_s + left
                bursts.append(Burst(at_s, right - left, *sorted(map(float, band_hz)), 0.0, first))
    return bursts


def gsm(rng, duration_s, bandwidth_hz, *, carriers, spacing_hz, slots, beacon):
    """Slots of each carrier. part: (number of the carrier, start of its frame in s, 0 or less)."""
    frame_s = 8 * GSM_SLOT_S
    first = -rng.uniform(0, frame_s)
    ramp_s = 2 / GSM_BIT_RATE_HZ
    bursts = []
    for number in range(carriers):
        level_db = -rng.uniform(0, 10 if number else 0.1)
        band = (*at((number - (carriers - 1) / 2) * spacing_hz, GSM_CARRIER_HZ), level_db, (number, first))
        if beacon and not number:
            bursts.append(Burst(first, math.inf, *band))
            continue
        on = [slot for slot in range(8) if slots[number] >> slot & 1]
        for frame in range(math.ceil((duration_s - first) / frame_s)):
            starts = [first + frame * frame_s + slot * GSM_SLOT_S + ramp_s for slot in on]
            bursts += [Burst(start_s, GSM_SLOT_S - 2 * ramp_s, *band) for start_s in starts]
    return bursts


def noise_burst(rng, duration_s, bandwidth_hz, *, burst_s, gap_s, step_db, **_):
    """Bursts, steps of a level that never pauses, or one burst without end."""
    band = at(0.0, bandwidth_hz)
    if not step_db:
        return keyed(0.5)(rng, duration_s, bandwidth_hz, burst_s=burst_s, gap_s=gap_s)
    start = -rng.random() * burst_s
    starts = [start - 1e-3, *np.arange(start + burst_s, duration_s, burst_s).tolist()]
    ends = [*starts[1:], math.inf]
    levels_db = -rng.uniform(0, step_db, len(starts))
    return [
        Burst(*row[:1], row[1] - row[0], *band, row[2]) for row in zip(starts, ends, levels_db, strict=True)
    ]


def pulses(rng, duration_s, bandwidth_hz, *, system, **settings):
    draw = {"mode_s": _mode_s, "dme": _dme, "radar": _radar}[system]
    return draw(rng, duration_s, *at(0.0, bandwidth_hz), **settings)


def _mode_s(rng, duration_s, low_hz, high_hz, *, messages_a_s):
    """Messages. part: their bits, 56 or 112."""
    starts = rng.uniform(-60e-6, duration_s, rng.poisson(messages_a_s * duration_s))
    starts = np.append(starts, rng.uniform(0, max(duration_s - 120e-6, 0)))
    bits = rng.choice([56, 112], len(starts))
    levels_db = -rng.uniform(0, 8, len(starts))
    levels_db[rng.integers(len(starts))] = 0.0  # the strongest aircraft
    rows = zip(starts.tolist(), bits.tolist(), levels_db.tolist(), strict=True)
    return [Burst(start_s, (8 + bits) * 1e-6, low_hz, high_hz, level, bits) for start_s, bits, level in rows]


DME_LEAD_S = 5e-6  # from the first sample of a pair to the start of its first pulse


def _dme(rng, duration_s, low_hz, high_hz, *, pairs_a_s, spacing_s):
    starts = rng.uniform(0, max(duration_s - 2 * spacing_s, 0), 1 + rng.poisson(pairs_a_s * duration_s))
    return [Burst(start_s + DME_LEAD_S, spacing_s + 6e-6, low_hz, high_hz) for start_s in starts.tolist()]


def _radar(rng, duration_s, low_hz, high_hz, *, burst_s, gap_s, stagger):
    return [Burst(*time, low_hz, high_hz) for time in times(rng, duration_s, burst_s, gap_s, stagger)]
