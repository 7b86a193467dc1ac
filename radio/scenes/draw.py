"""Drawing a scene's parameters from a configuration."""

import math
from dataclasses import replace

from radio.scenes import channel, distractors, lte, nr, nr_ssb, receiver, traffic
from radio.scenes.scene import PARAMETERS, Scene, Transmission

# System frame numbers start again after so long, TS 36.331, TS 38.331.
_FRAMES_S = 10.24

# Share of a cut carrier's bandwidth that stays in the band: less would be nothing that anybody could name.
_LEAST_VISIBLE = 0.15

# Uplink-downlink patterns in use, by subcarrier spacing in kHz: periods of 2.5 and 5 ms.
_TDD_PATTERNS = {
    15: ("DDDSU", "DDSUU", "DSUUU"),
    30: ("DDDSU", "DDSUU", "DDDDDDDSUU", "DDDSUDDSUU"),
    60: ("DDDDDDDSUU", "DDDDDDDDDDDDDDSUUUUU"),
}
_CORESET_0_RB = (24, 48, 96)  # TS 38.213 tables 13-1 to 13-10
_TRIES = 12

# How far beyond the band a distractor may reach: a Wi-Fi channel; and the least of it, or of the band, that is seen.
_BEYOND_HZ = 20e6
_LEAST_SEEN = 0.3


class _Dice:
    """Draws values of the configuration's fields by name."""

    def __init__(self, config, rng):
        self.config, self.rng = config, rng

    def happens(self, name):
        return bool(self.rng.random() < getattr(self.config, name))

    def choice(self, name):
        return self.of(getattr(self.config, name))

    def of(self, values):
        return values[int(self.rng.integers(len(values)))]

    def number(self, name, log=False):
        values = getattr(self.config, name)
        if len(values) != 2:
            return float(self.of(values))
        low, high = values
        share = self.rng.random()
        if log and low > 0:
            return float(low * (high / low) ** share)
        return float(low + (high - low) * share)

    def integer(self, name):
        values = getattr(self.config, name)
        return int(self.of(values) if len(values) != 2 else self.rng.integers(values[0], values[1] + 1))


def draw(config, stream):
    """The scene that a configuration and a stream (seed, kind, index) decide: a `Scene`."""
    dice = _Dice(config, stream.child(PARAMETERS).generator())
    sample_rate_hz = float(dice.choice("sample_rates_hz"))
    num_samples = max(1, round(dice.number("duration_ms", log=True) * 1e-3 * sample_rate_hz))
    center_freq_hz = round(dice.number("center_freq_hz", log=True), -3)
    clock_error_ppm = 0.0 if dice.happens("exact_clock") else dice.number("clock_error_ppm")
    received = _receiver(dice, sample_rate_hz, num_samples / sample_rate_hz)

    transmissions, taken = (), []
    if not dice.happens("noise_only"):
        placed = _placed(dice, sample_rate_hz, received)
        strongest_db = dice.number("snr_db")
        weakest_db = max(strongest_db - dice.number("power_range_db"), min(config.snr_db))
        levels = [strongest_db, *dice.rng.uniform(weakest_db, strongest_db, len(placed)).tolist()][: len(placed)]
        levels = dice.rng.permutation(levels).tolist()
        error_hz = clock_error_ppm * 1e-6 * center_freq_hz  # the oscillator that makes the clock tunes the mixer too
        transmissions = tuple(
            _transmission(dice, technology, width, spacing, offset + error_hz, snr_db, sample_rate_hz, num_samples,
                          clock_error_ppm)
            for (technology, width, spacing, offset), snr_db in zip(placed, levels, strict=True)
        )  # fmt: skip
        taken = [tuple(offset + error_hz + side * width * 0.5e6 for side in (-1, 1)) for _, width, _, offset in placed]
    others = _distractors(dice, sample_rate_hz, num_samples / sample_rate_hz, taken)
    return Scene(stream, sample_rate_hz, num_samples, center_freq_hz, clock_error_ppm, transmissions, others, received)


# Where carriers lie


def _placed(dice, sample_rate_hz, received):
    """Carriers without overlap: a list of (technology, channel bandwidth in MHz, spacing in kHz, offset in Hz)."""
    count = int(dice.choice("num_carriers"))
    if dice.happens("one_technology"):
        technologies = [dice.choice("technologies")] * count
    else:
        technologies = [dice.choice("technologies") for _ in range(count)]
        both = sorted(set(dice.config.technologies))
        if count >= len(both) > 1:
            technologies = dice.rng.permutation(both + technologies[len(both) :]).tolist()
    inside = dice.happens("inside")
    gap_hz = dice.number("gap_hz", log=True)
    margin_hz = dice.number("margin") * sample_rate_hz
    raster_hz = float(dice.choice("raster_hz")) if count > 1 else 1.0
    # Whole carriers keep to what the channel filter lets through, where it leaves room for one.
    band = tuple(edge * sample_rate_hz for edge in received.passband)

    placed = []
    for technology in technologies:
        for _ in range(_TRIES):
            width, spacing = _size(dice, technology)
            widths_hz = width * 1e6, 12e3 * spacing * _num_rb(technology, width, spacing)
            offset = _offset(dice, *widths_hz, sample_rate_hz, band, margin_hz, inside and not placed)
            if offset is None:
                continue
            offset = round(offset / raster_hz) * raster_hz
            if all(abs(offset - other) >= (width + wide) * 0.5e6 + gap_hz for _, wide, _, other in placed):
                placed.append((technology, width, spacing, offset))
                break
        if placed and inside and width * 1e6 >= sample_rate_hz:
            break
    return placed


def _size(dice, technology):
    """(channel bandwidth in MHz, subcarrier spacing in kHz)."""
    if technology == "LTE":
        return dice.choice("lte_bandwidths_mhz"), 15
    spacing = dice.choice("nr_spacings_khz")
    widths = [width for width in dice.config.nr_bandwidths_mhz if width in nr.RESOURCE_BLOCKS[spacing]]
    if not widths:  # 5 MHz has no 60 kHz
        spacing, widths = 15, [width for width in dice.config.nr_bandwidths_mhz if width in nr.RESOURCE_BLOCKS[15]]
    return dice.of(widths), spacing


def _num_rb(technology, width, spacing):
    return lte.RESOURCE_BLOCKS[width] if technology == "LTE" else nr.RESOURCE_BLOCKS[spacing][width]


def _offset(dice, width_hz, used_hz, sample_rate_hz, band, margin_hz, inside):
    """A place for a carrier's centre: around the whole band, cut by its edge, or within it. None where it does not fit.

    Whole carriers go where the channel filter lets their channel through, else at least what they use of it, and else where
    the sample rate holds that: 18 of 20 MHz at 19.2 Msps are a usual capture.
    """
    config, rng = dice.config, dice.rng
    half_hz = sample_rate_hz / 2
    if inside:
        room = (used_hz - sample_rate_hz) / 2
        return float(rng.uniform(-room, room)) if room >= 0 else None
    low, high = max(band[0], margin_hz - half_hz), min(band[1], half_hz - margin_hz)
    places = ((low, high, width_hz), (low, high, used_hz), (-half_hz, half_hz, used_hz))
    fitting = [(first + needed / 2, last - needed / 2) for first, last, needed in places if last - first >= needed]
    if dice.happens("cut") or (not fitting and (config.cut or config.inside)):
        # In the passband: what lies in the filter's stopband alone, nobody could see.
        visible = rng.uniform(_LEAST_VISIBLE, 0.95) * min(width_hz, 0.8 * (band[1] - band[0]))
        side = int(rng.integers(2))
        return float(band[side] + (2 * side - 1) * (width_hz / 2 - visible))
    return float(rng.uniform(*fitting[0])) if fitting else None


# What they send


def _transmission(dice, technology, width, spacing, offset_hz, snr_db, sample_rate_hz, num_samples, clock_error_ppm):
    """One carrier, of a drawn cell, traffic, channel and moment."""
    rng = dice.rng
    idle = dice.happens("idle")
    cell = _lte_cell(dice, width, idle) if technology == "LTE" else _nr_cell(dice, width, spacing, idle)
    slot_s = 15e-3 / spacing
    interval_s = (1 + clock_error_ppm * 1e-6) / sample_rate_hz

    first_sample_s = int(rng.integers(round(_FRAMES_S * sample_rate_hz))) / sample_rate_hz
    first_slot = math.floor(first_sample_s / slot_s + 1e-6)
    last_slot = math.ceil((first_sample_s + num_samples * interval_s) / slot_s - 1e-6)
    if dice.happens("part_time") and last_slot - first_slot >= 4:
        begin, end = sorted(rng.choice(last_slot - first_slot, 2, replace=False).tolist())
        first_slot, last_slot = first_slot + begin, first_slot + end + 1

    return Transmission(
        cell=cell,
        traffic=_traffic(dice, cell.num_rb, idle, technology, spacing),
        offset_hz=offset_hz,
        first_sample_s=first_sample_s,
        first_slot=first_slot,
        num_slots=last_slot - first_slot,
        snr_db=snr_db,
        fading=_fading(dice),
        backoff_db=dice.number("backoff_db") if dice.happens("compressed") else None,
        edge_s=dice.number("edge_s") if dice.happens("soft_edges") else 0.0,
    )


def _lte_cell(dice, width, idle):
    num_rb = lte.RESOURCE_BLOCKS[width]
    return lte.LteCell(
        num_rb=num_rb,
        cell_id=dice.integer("lte_cell_ids"),
        duplex="TDD" if dice.happens("lte_tdd") else "FDD",
        uldl_config=dice.choice("lte_uldl_configs"),
        special_config=dice.choice("lte_special_configs"),
        num_ports=dice.choice("lte_ports"),
        control_symbols=dice.choice("lte_control_symbols") + (num_rb <= 10),
        control_load=dice.number("lte_control_load") * (0.1 if idle else 1.0),
        crs_boost_db=dice.choice("lte_crs_boost_db"),
        sync_boost_db=dice.choice("lte_sync_boost_db"),
    )


def _nr_cell(dice, width, spacing, idle):
    rng = dice.rng
    num_rb = nr.RESOURCE_BLOCKS[spacing][width]
    bandwidth_hz = num_rb * 12e3 * spacing
    pattern = dice.of(_TDD_PATTERNS[spacing]) if dice.happens("nr_tdd") else ""

    # SSB: case A has 15 kHz, B and C have 30 kHz; narrow carriers hold none of 30 kHz
    cases = {15: ("A",), 30: ("B", "C", "C"), 60: ("A", "B", "C")}[spacing]
    cases = [case for case in cases if 240 * _ssb_spacing_hz(case) <= bandwidth_hz] or ["A"]
    case = dice.of(cases)
    unequal_hz = abs(1e3 * spacing - _ssb_spacing_hz(case))  # bands lie half a subcarrier off their centres
    room = max(0, math.floor((bandwidth_hz - 240 * _ssb_spacing_hz(case) - unequal_hz) / 2 / 15e3))
    ssb_offset_hz = 15e3 * int(rng.integers(-room, room + 1)) if dice.happens("nr_ssb_anywhere") else 0.0
    num_ssb, half_frame, period_ms = dice.of((4, 8)), int(rng.integers(2)), dice.choice("nr_ssb_periods_ms")
    beams = nr_ssb.downlink_beams(spacing, pattern, case, num_ssb, period_ms, half_frame)
    beams = tuple(sorted(rng.permutation(beams)[: int(dice.choice("nr_beams"))].tolist()))

    # control: around the SSB, or all over the carrier
    kind = dice.choice("nr_coresets")
    symbols = dice.choice("nr_coreset_symbols")
    load = dice.number("nr_coreset_load", log=True) * (0.3 if idle else 1.0)
    coresets = []
    initial = [count for count in _CORESET_0_RB if count <= num_rb]
    if kind in ("initial", "both") and initial:
        count = dice.of(initial)
        middle = num_rb / 2 + ssb_offset_hz / (12e3 * spacing)
        first = min(max(0, round(middle - count / 2)), num_rb - count)
        period, offset = dice.of((10, 20)) * spacing // 15, int(rng.integers(4))
        coresets.append(nr.Coreset(first, count, symbols, period_slots=period, offset_slots=offset, load=load,
                                   seed=int(rng.integers(2**31))))  # fmt: skip
    if kind in ("full", "both") and not (idle and kind == "both"):
        count = num_rb // 6 * 6 if dice.happens("nr_coreset_whole") else 6 * int(rng.integers(1, num_rb // 6 + 1))
        coresets.append(nr.Coreset(int(rng.integers(num_rb - count + 1)), count, symbols,
                                   period_slots=dice.choice("nr_coreset_periods_slots"), load=load,
                                   seed=int(rng.integers(2**31))))  # fmt: skip
    csi_rs = ()
    if dice.happens("nr_csi_rs") and not (idle and rng.random() < 0.5):
        csi_rs = _csi_rs(dice, num_rb)

    position = 3 if symbols == 3 else dice.of((2, 2, 3))
    first_data = symbols if coresets and rng.random() < 0.8 else int(rng.integers(0, 3))
    return nr.NrCarrier(
        spacing_khz=spacing,
        num_rb=num_rb,
        cell_id=dice.integer("nr_cell_ids"),
        tdd_pattern=pattern,
        special_symbols=dice.of((3, 6, 10, 10, 11)),
        ssb_case=case,
        ssb_period_ms=period_ms,
        ssb_half_frame=half_frame,
        ssb_beams=beams,
        num_ssb=num_ssb,
        ssb_offset_hz=ssb_offset_hz,
        ssb_power_db=dice.number("nr_ssb_power_db"),
        coresets=tuple(coresets),
        csi_rs=csi_rs,
        pdsch_symbols=(first_data, 14 - first_data if rng.random() < 0.8 else int(rng.integers(5, 14 - first_data))),
        dmrs_type=dice.choice("nr_dmrs_types"),
        dmrs_position=position,
        dmrs_additional=dice.choice("nr_dmrs_additional"),
        dmrs_power_db=dice.choice("nr_dmrs_power_db"),
    )


def _ssb_spacing_hz(case):
    return 15e3 if case == "A" else 30e3


def _csi_rs(dice, num_rb):
    """Tracking reference signals (two symbols, two slots) or one resource for channel state, over most of the carrier."""
    rng = dice.rng
    period = dice.of((10, 20, 40, 80))
    offset = int(rng.integers(period))
    blocks = max(4, num_rb // 4 * 4 if rng.random() < 0.8 else num_rb // 2)
    shared = {"first_rb": 0, "num_rb": min(blocks, num_rb), "period_slots": period, "power_db": dice.of((0.0, 0.0, 3.0))}
    if rng.random() < 0.5:
        subcarrier, symbol = int(rng.integers(4)), int(rng.integers(4, 7))
        return tuple(nr.CsiRs(row=1, symbol=at, subcarrier=subcarrier, offset_slots=(offset + later) % period, **shared)
                     for later in (0, 1) for at in (symbol, symbol + 4))
    subcarrier, symbol = int(rng.integers(12)), int(rng.integers(5, 14))
    return (nr.CsiRs(row=2, symbol=symbol, subcarrier=subcarrier, offset_slots=offset, **shared),)


def _broadcast(dice, num_rb, technology, spacing):
    """System information on PDSCH, which idle cells send too: (period, offset, first resource block, blocks), in slots.

    LTE sends SIB1 in subframe 5 of every other frame (TS 36.331 5.2.1.2); NR cells that are not the anchor send none.
    """
    rng, slots_a_ms = dice.rng, spacing // 15
    messages = [(20, 5)] if technology == "LTE" else []
    for _ in range(int(rng.integers(3)) if technology == "LTE" or dice.happens("nr_broadcast") else 0):
        period = dice.of((10, 20, 40, 80)) * slots_a_ms
        messages.append((period, int(rng.integers(period))))
    broadcast = []
    for period, offset in messages:
        count = min(num_rb, int(rng.integers(4, 17)))
        broadcast.append((period, offset, int(rng.integers(num_rb - count + 1)), count))
    return tuple(broadcast)


def _traffic(dice, num_rb, idle, technology, spacing):
    if dice.config.block_traffic and dice.happens("block_traffic"):
        return traffic.Traffic(blocks=True, modulation_bits=dice.config.modulation_bits)
    group_rb = next(size for most, size in ((10, 1), (26, 2), (63, 3), (110, 4), (10**9, 16)) if num_rb <= most)
    full = not idle and dice.happens("full")
    return traffic.Traffic(
        users=0 if idle else dice.choice("users"),
        busy=1.0 if full else dice.number("busy", log=True),
        filled=1.0 if full else dice.number("filled", log=True),
        dwell_slots=dice.number("dwell_slots", log=True),
        scattered=dice.happens("scattered"),
        modulation_bits=dice.config.modulation_bits,
        power_db=(min(dice.config.user_power_db), max(dice.config.user_power_db)),
        group_rb=group_rb,
        broadcast=_broadcast(dice, num_rb, technology, spacing),
    )


def _fading(dice):
    model = dice.choice("fading_models")
    doppler_hz = 0.0 if dice.happens("still") else dice.number("doppler_hz", log=True)
    delay_spread_s = dice.number("delay_spread_s", log=True) if model.startswith("TDL") else 0.0
    return channel.Fading(model, delay_spread_s, 0.0 if model == "none" else doppler_hz, int(dice.rng.integers(2**31)))


# What else is in the air, and the receiver


def _distractors(dice, sample_rate_hz, duration_s, taken):
    """Distractors in what the carriers leave free of the band."""
    found = []
    for _ in range(int(dice.choice("num_distractors"))):
        edges = sorted(edge for low, high in taken for edge in (low, high))
        borders = [-sample_rate_hz / 2, *(min(max(edge, -sample_rate_hz / 2), sample_rate_hz / 2) for edge in edges),
                   sample_rate_hz / 2]  # fmt: skip
        free = [(low, high) for low, high in zip(borders[::2], borders[1::2], strict=True) if high > low]
        if not free:
            break
        low, high = dice.of(free)
        kind, snr_db = dice.choice("distractor_kinds"), dice.number("distractor_snr_db")
        room = low, high
        if dice.config.beyond and dice.happens("beyond"):
            room = (low - _BEYOND_HZ * (low <= borders[0]), high + _BEYOND_HZ * (high >= borders[-1]))
        drawn = distractors.draw(kind, dice.rng, sample_rate_hz, duration_s, *room, snr_db)
        if drawn is not None and room != (low, high):
            seen, half = _LEAST_SEEN * min(drawn.bandwidth_hz, high - low), drawn.bandwidth_hz / 2
            first, last = max(room[0] + half, low + seen - half), min(room[1] - half, high - seen + half)
            drawn = replace(drawn, center_hz=float(dice.rng.uniform(first, last)))
        if drawn is not None:
            found.append(drawn)
            taken = [*taken, (drawn.center_hz - drawn.bandwidth_hz / 2, drawn.center_hz + drawn.bandwidth_hz / 2)]
    return tuple(found)


def _receiver(dice, sample_rate_hz, duration_s):
    rng, settings = dice.rng, {}
    if dice.happens("filtered"):
        half, shift = dice.number("passband") / 2, float(rng.uniform(-0.02, 0.02))
        widths = tuple(dice.number("transition", log=True) for _ in range(2))
        settings |= {"passband": (max(-0.5, shift - half), min(0.5, shift + half)), "transition": widths,
                     "stopband_db": dice.number("stopband_db"), "tilt_db": dice.number("tilt_db"),
                     "ripple_db": dice.number("ripple_db"), "ripple_cycles": dice.number("ripple_cycles"),
                     "ripple_phase_deg": float(rng.uniform(0, 360)), "floor_db": dice.number("floor_db")}  # fmt: skip
    if dice.happens("noisy_phase"):
        settings |= {"phase_noise_dbc": dice.number("phase_noise_dbc"),
                     "phase_noise_hz": dice.number("phase_noise_hz", log=True)}
    if dice.happens("unbalanced"):
        settings |= {"iq_gain_db": dice.number("iq_gain_db"), "iq_phase_deg": dice.number("iq_phase_deg")}
    if dice.happens("dc_spike"):
        settings |= {"dc_db": dice.number("dc_db"), "dc_phase_deg": float(rng.uniform(0, 360))}
    if dice.happens("agc"):
        moments = sorted(rng.uniform(0, duration_s, dice.integer("agc_steps")).tolist())
        settings["agc_steps"] = tuple((moment, dice.number("agc_step_db")) for moment in moments)
    bits = dice.choice("bits")
    if bits:
        loading_db = dice.number("overdrive_db") if dice.happens("overdriven") else dice.number("loading_db")
        settings |= {"bits": bits, "loading_db": loading_db}
    return receiver.Receiver(**settings)
