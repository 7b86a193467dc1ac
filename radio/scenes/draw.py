"""Draw a scene's parameters from a configuration: its carriers, distractors and receiver."""

import math
from dataclasses import replace

from radio.scenes import distractors, lte, nr
from radio.scenes.config import LOG_RANGES
from radio.scenes.draw_cells import draw_fading, draw_lte_cell, draw_nr_cell, draw_traffic
from radio.scenes.draw_receiver import draw_capture, draw_receiver
from radio.scenes.scene import CAPTURE, PARAMETERS, Scene, Transmission

_FRAMES_S = 10.24  # system frame numbers repeat after this time, TS 36.331, TS 38.331
_TRIES = 12  # to place a carrier
_LEAST_VISIBLE = 0.15  # of a cut carrier's bandwidth, inside the band
_BEYOND_HZ = (20e6, 20e6, 80e6)  # how far a distractor may reach beyond the band: a Wi-Fi channel, a wide one
_BEYOND = 1.5  # and no farther than this many sample rates, since its samples take time
_LEAST_SEEN = 0.3  # of a distractor's bandwidth or of the free band, whichever is less


class _Dice:
    """Draws values of a configuration's fields."""

    def __init__(self, config, rng):
        self.config, self.rng = config, rng

    def happens(self, name):
        return bool(self.rng.random() < getattr(self.config, name))

    def choice(self, name):
        return self.of(getattr(self.config, name))

    def of(self, values):
        return values[int(self.rng.integers(len(values)))]

    def number(self, name):
        values = getattr(self.config, name)
        if len(values) != 2:
            return float(self.of(values))
        low, high = values
        share = self.rng.random()
        if name in LOG_RANGES and low > 0:
            return float(low * (high / low) ** share)
        return float(low + (high - low) * share)

    def numbers(self, *names):
        return {name: self.number(name) for name in names}

    def integer(self, name):
        values = getattr(self.config, name)
        return int(self.of(values) if len(values) != 2 else self.rng.integers(values[0], values[1] + 1))


def draw(config, stream):
    """The scene that a configuration and a stream (seed, kind, index) determine: a `Scene`."""
    dice = _Dice(config, stream.child(PARAMETERS).generator())
    sample_rate_hz = float(dice.choice("sample_rates_hz"))
    num_samples = config.num_samples(dice.number("duration_ms"), sample_rate_hz)
    duration_s = num_samples / sample_rate_hz
    center_freq_hz = round(dice.number("center_freq_hz"), -3)
    clock_error_ppm = 0.0 if dice.happens("exact_clock") else dice.number("clock_error_ppm")
    front_end = draw_receiver(dice, sample_rate_hz, duration_s)
    odd = _Dice(config, stream.child(CAPTURE).generator())
    capture = draw_capture(odd, front_end, num_samples)

    transmissions, taken = (), []
    if not dice.happens("noise_only") and not capture.is_hump:
        if capture.is_real:  # the upper half of the band is a band of its own
            places = _places(dice, sample_rate_hz / 2, (-0.48, 0.48), whole=True)
            places = [(*carrier, offset_hz + sample_rate_hz / 4) for *carrier, offset_hz in places]
        else:
            places = _places(dice, sample_rate_hz, front_end.passband)
        strongest_db = dice.number("snr_db")
        weakest_db = max(strongest_db - dice.number("power_range_db"), min(config.snr_db))
        levels = [strongest_db, *dice.rng.uniform(weakest_db, strongest_db, len(places)).tolist()]
        levels = dice.rng.permutation(levels[: len(places)]).tolist()
        error_hz = clock_error_ppm * 1e-6 * center_freq_hz  # one oscillator drives clock and mixer
        places = [(*carrier, offset_hz + error_hz) for *carrier, offset_hz in places]
        carrier_s = num_samples * ((1 + clock_error_ppm * 1e-6) / sample_rate_hz)  # on the carriers' clock
        transmissions = tuple(
            _transmission(dice, *place, snr_db, sample_rate_hz, carrier_s)
            for place, snr_db in zip(places, levels, strict=True)
        )
        taken = [(offset_hz - width * 0.5e6, offset_hz + width * 0.5e6) for _, width, _, offset_hz in places]
    if capture.is_real:
        taken = [*taken, (-sample_rate_hz / 2, 0.01 * sample_rate_hz)]
    others = _distractors(dice, sample_rate_hz, duration_s, taken)
    sampling = (sample_rate_hz, num_samples, center_freq_hz, clock_error_ppm)
    sent = (transmissions, others, capture.receiver)
    scene = Scene(stream, *sampling, *sent, is_real=capture.is_real, padding=capture.padding)
    if not (capture.receiver.noise or scene.carriers()):  # silence is left
        return replace(scene, receiver=front_end)
    return scene


# Carriers


def _places(dice, sample_rate_hz, passband, whole=False):
    """Carriers without overlap: [(technology, channel bandwidth in MHz, spacing in kHz, offset in Hz)].

    whole: none is cut by the band or wider than it.
    """
    count = int(dice.choice("num_carriers"))
    if dice.happens("one_technology"):
        technologies = [dice.choice("technologies")] * count
    else:
        technologies = [dice.choice("technologies") for _ in range(count)]
        both = sorted(set(dice.config.technologies))
        if count >= len(both) > 1:
            technologies = dice.rng.permutation(both + technologies[len(both) :]).tolist()
    inside = dice.happens("inside") and not whole
    gap_hz = dice.number("gap_hz")
    margin_hz = dice.number("margin") * sample_rate_hz
    raster_hz = float(dice.choice("raster_hz")) if count > 1 else 1.0
    passband_hz = tuple(edge * sample_rate_hz for edge in passband)

    places = []
    for technology in technologies:
        for _ in range(_TRIES):
            width, spacing, num_rb = _size(dice, technology)
            widths_hz = width * 1e6, 12e3 * spacing * num_rb
            edges = (sample_rate_hz, passband_hz, margin_hz)
            offset = _offset(dice, *widths_hz, *edges, inside and not places, whole)
            if offset is None:
                continue
            offset = round(offset / raster_hz) * raster_hz
            if all(abs(offset - other) >= (width + wide) * 0.5e6 + gap_hz for _, wide, _, other in places):
                places.append((technology, width, spacing, offset))
                break
        if places and inside and width * 1e6 >= sample_rate_hz:
            break
    return places


def _size(dice, technology):
    """(channel bandwidth in MHz, subcarrier spacing in kHz, resource blocks)."""
    if technology == "LTE":
        width = dice.choice("lte_bandwidths_mhz")
        return width, 15, lte.RESOURCE_BLOCKS[width]
    # Not every spacing has every bandwidth: 60 kHz lacks 5 MHz, 15 kHz lacks 60 MHz and above.
    for spacing in (dice.choice("nr_spacings_khz"), 15, 30):
        widths = [width for width in dice.config.nr_bandwidths_mhz if width in nr.RESOURCE_BLOCKS[spacing]]
        if widths:
            break
    width = dice.of(widths)
    return width, spacing, nr.RESOURCE_BLOCKS[spacing][width]


def _offset(dice, width_hz, used_hz, sample_rate_hz, passband_hz, margin_hz, inside, whole):
    """A carrier's centre, or None if it does not fit: around the whole band, across an edge, or within.

    Within: the passband holds the channel, else the transmission bandwidth. Else the sample rate holds the
    transmission bandwidth, as in usual captures of 20 MHz at 19.2 Msps.
    """
    config, rng = dice.config, dice.rng
    half_hz = sample_rate_hz / 2
    if inside:
        room = (used_hz - sample_rate_hz) / 2
        return float(rng.uniform(-room, room)) if room >= 0 else None
    low, high = max(passband_hz[0], margin_hz - half_hz), min(passband_hz[1], half_hz - margin_hz)
    rooms = ((low, high, width_hz), (low, high, used_hz), (-half_hz, half_hz, used_hz))
    fitting = [(first + wide / 2, last - wide / 2) for first, last, wide in rooms if last - first >= wide]
    if (dice.happens("cut") or (not fitting and (config.cut or config.inside))) and not whole:
        # The visible part lies in the passband: the stopband would hide it.
        most_hz = min(width_hz, 0.8 * (passband_hz[1] - passband_hz[0]))
        visible_hz, side = rng.uniform(_LEAST_VISIBLE, 0.95) * most_hz, int(rng.integers(2))
        return float(passband_hz[side] + (2 * side - 1) * (width_hz / 2 - visible_hz))
    return float(rng.uniform(*fitting[0])) if fitting else None


def _transmission(dice, technology, width, spacing, offset_hz, snr_db, sample_rate_hz, duration_s):
    """duration_s: of the scene, on the carrier's clock."""
    rng, idle = dice.rng, dice.happens("idle")
    draw_cell = draw_lte_cell if technology == "LTE" else draw_nr_cell
    cell = draw_cell(dice, width, spacing, idle)
    slot_s = 15e-3 / spacing
    first_sample_s = int(rng.integers(round(_FRAMES_S * sample_rate_hz))) / sample_rate_hz
    first_slot = math.floor(first_sample_s / slot_s + 1e-6)
    last_slot = math.ceil((first_sample_s + duration_s) / slot_s - 1e-6)
    if dice.happens("part_time") and last_slot - first_slot >= 4:
        begin, end = sorted(rng.choice(last_slot - first_slot, 2, replace=False).tolist())
        first_slot, last_slot = first_slot + begin, first_slot + end + 1

    return Transmission(
        cell=cell,
        traffic=draw_traffic(dice, cell.num_rb, idle, technology, spacing),
        offset_hz=offset_hz,
        first_sample_s=first_sample_s,
        first_slot=first_slot,
        num_slots=last_slot - first_slot,
        snr_db=snr_db,
        fading=draw_fading(dice),
        backoff_db=dice.number("backoff_db") if dice.happens("compressed") else None,
        edge_s=dice.number("edge_s") if dice.happens("soft_edges") else 0.0,
    )


# Distractors


def _distractors(dice, sample_rate_hz, duration_s, taken):
    """Distractors in the free parts of the band. taken: (low, high) Hz of each carrier."""
    rng, half_hz, found = dice.rng, sample_rate_hz / 2, []
    for _ in range(int(dice.choice("num_distractors"))):
        edges = sorted(min(max(edge, -half_hz), half_hz) for signal in taken for edge in signal)
        edges = [-half_hz, *edges, half_hz]
        free = [(low, high) for low, high in zip(edges[::2], edges[1::2], strict=True) if high > low]
        if not free:
            break
        low, high = room = dice.of(free)
        kind, snr_db = dice.choice("distractor_kinds"), dice.number("distractor_snr_db")
        if dice.config.beyond and dice.happens("beyond"):
            reach_hz = min(dice.of(_BEYOND_HZ), _BEYOND * sample_rate_hz)
            room = (low - reach_hz * (low <= -half_hz), high + reach_hz * (high >= half_hz))
        drawn = distractors.draw(kind, rng, sample_rate_hz, duration_s, *room, snr_db)
        if drawn is None:
            continue
        half = drawn.bandwidth_hz / 2
        if room != (low, high):
            seen = _LEAST_SEEN * min(drawn.bandwidth_hz, high - low)
            first, last = max(room[0] + half, low + seen - half), min(room[1] - half, high - seen + half)
            drawn = replace(drawn, center_hz=float(rng.uniform(first, last)))
        found.append(drawn)
        taken = [*taken, (drawn.center_hz - half, drawn.center_hz + half)]
    return tuple(found)
