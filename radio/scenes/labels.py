"""What is seen of a scene: its labels, `radio.carriers.Carrier`s."""

import math

from radio.carriers import LTE, OTHER, Carrier
from radio.scenes import distractors, lte, nr_grid, receiver

_HIDING_DB = 3.0  # less loss in the receiver hides no NR or LTE carrier, however weak it is
_LEAST_LOAD = 0.1  # share of an idle carrier's resource elements that are sent


def carriers(scene):
    """The labels of a scene, from the centre of its band.

    "Other" for what is seen of each distractor, then a label for each transmission of which anything is in
    the band. What the receiver's filter or its converter hides has none, nor have zeros around the recording.
    """
    first_s, last_s = scene.recorded_s
    loss_db = _loss(scene)
    found = [*_others(scene, loss_db), *_transmissions(scene, loss_db)]
    kept = []
    for carrier in found:
        start, end = max(carrier.start_s, first_s), min(carrier.end_s, last_s)
        if end > start:
            edges = carrier.freq_lower_hz, carrier.freq_upper_hz
            kept.append(Carrier(carrier.label, start, end - start, *edges))
    return kept


def _loss(scene):
    """A function: what the receiver takes from the SNR at a frequency in Hz, in dB."""
    converter = _converter_noise(scene)

    def loss_db(frequency_hz):
        return receiver.loss_db(scene.receiver, frequency_hz / scene.sample_rate_hz, converter)

    return loss_db


def _converter_noise(scene):
    """Power of the rounding of 8-bit codes, over the thermal noise: a twelfth of a step², in I and in Q."""
    front_end = scene.receiver
    if not 0 < front_end.bits <= 8:
        return 0.0
    power = front_end.noise + 10 ** (front_end.dc_db / 10)
    for number, transmission in enumerate(scene.transmissions):
        bits, _ = scene.schedule(number)
        share = min(1.0, 12 * bits.shape[1] * _spacing_hz(transmission.cell) / scene.sample_rate_hz)
        power += 10 ** (transmission.snr_db / 10) * share * max(_LEAST_LOAD, float((bits > 0).mean()))
    for one in scene.distractors:
        power += 10 ** (one.snr_db / 10) * min(1.0, one.bandwidth_hz / scene.sample_rate_hz)
    codes = 10 ** (front_end.loading_db / 20) * 2 ** (front_end.bits - 1)  # rms of I and of Q
    return power / (12 * codes**2)


def _spacing_hz(cell):
    return lte.SPACING_HZ if isinstance(cell, lte.LteCell) else 1e3 * cell.spacing_khz


def _others(scene, loss_db):
    for number, distractor in enumerate(scene.distractors):
        stream = scene.distractor_stream(number)
        seen = distractors.boxes(distractor, scene.sample_rate_hz, scene.num_samples, stream, loss_db)
        for start, end, low, high in seen:
            yield Carrier(OTHER, start, end - start, low, high)


def _transmissions(scene, loss_db):
    half_hz = scene.sample_rate_hz / 2
    scale = 1 / (scene.interval_s * scene.sample_rate_hz)  # from the carriers' clock to the receiver's
    recorded = [time / scale for time in scene.recorded_s]
    for number, transmission in enumerate(scene.transmissions):
        first_s, last_s = (min(max(time, recorded[0]), recorded[1]) for time in transmission.span_s())
        band = _band_hz(scene, number, first_s, last_s)
        if band is None or last_s <= first_s:
            continue
        low, high = (min(max(edge + transmission.offset_hz, -half_hz), half_hz) for edge in band)
        if high > low and not _hidden(transmission, low, high, loss_db):
            yield Carrier(transmission.label, first_s * scale, (last_s - first_s) * scale, low, high)


def _hidden(transmission, low, high, loss_db):
    """Whether the receiver hides a carrier: all of five places in its band."""
    losses_db = [loss_db(low + (high - low) * (place + 0.5) / 5) for place in range(5)]
    return min(losses_db) >= _HIDING_DB and transmission.snr_db - min(losses_db) < distractors.VISIBLE_DB


def _band_hz(scene, number, first_s, last_s):
    """What a transmission uses of its carrier between two times: (low, high) from its centre, or None."""
    transmission = scene.transmissions[number]
    cell = transmission.cell
    if transmission.label == LTE:
        half_hz = (
            6 * cell.num_rb + 0.5
        ) * lte.SPACING_HZ  # the unused subcarrier in the middle makes one more
        return -half_hz, half_hz
    first_symbol, last_symbol = (
        14 * (time + transmission.first_sample_s) / transmission.slot_s - 14 * transmission.first_slot
        for time in (first_s, last_s)
    )
    first_symbol = math.floor(first_symbol + 1e-3)
    num_symbols = math.ceil(last_symbol - 1e-3) - first_symbol
    if num_symbols <= 0:
        return None
    bits, _ = scene.schedule(number)
    return nr_grid.used_band_hz(cell, transmission.first_slot, bits, first_symbol, num_symbols)
