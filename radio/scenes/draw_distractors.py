"""Draw the settings of each kind of distractor, with the parameters of real systems.

Each function takes a numpy generator and a `Room`. It returns (bandwidth in Hz, settings).
If no signal of its kind fits, it raises `TooNarrowError`.
"""

import math
from typing import NamedTuple

import numpy as np

from radio.scenes.schedules import fsk_width_hz


class TooNarrowError(Exception):
    """No signal of this kind fits into the room."""


class Room(NamedTuple):
    """A free part of the band: width_hz of sample_rate_hz, for duration_s."""

    width_hz: float
    sample_rate_hz: float
    duration_s: float

    def expect(self, needed_hz):
        if self.width_hz < needed_hz:
            raise TooNarrowError

    def pick(self, rng, rows):
        """One of the rows (bandwidth in Hz, ...) that fit."""
        self.expect(min(row[0] for row in rows))
        rows = [row for row in rows if row[0] <= self.width_hz]
        return rows[rng.integers(len(rows))]


def log_uniform(rng, low, high):
    return float(np.exp(rng.uniform(math.log(low), math.log(high))))


def _on_off(rng, always, on_s, off_s):
    """Lengths of bursts and gaps; no gaps with probability `always`."""
    if rng.random() < always:
        return {"burst_s": 1.0, "gap_s": 0.0}
    return {"burst_s": log_uniform(rng, *on_s), "gap_s": log_uniform(rng, *off_s)}


def draw_tone(rng, room):
    # The SNR of a spur counts in the width of its line on a waterfall of a thousand rows.
    keyed = _on_off(rng, 0.7, (0.5e-3, 20e-3), (0.5e-3, 20e-3))
    line_hz = max(room.sample_rate_hz / 1000, 2e3, 20 / keyed["burst_s"])
    room.expect(line_hz)
    num_tones, spacing_hz = 1, 0.0
    if rng.random() < 0.4 and room.width_hz > 8 * line_hz:
        num_tones = int(rng.integers(3, 14))
        spacing_hz = log_uniform(rng, 3 * line_hz, room.width_hz - line_hz) / (num_tones - 1)
        spacing_hz = max(spacing_hz, 3 * line_hz)
        num_tones = min(num_tones, 1 + int((room.width_hz - line_hz) / spacing_hz))
    span_hz = (num_tones - 1) * spacing_hz
    drift_hz = 0.0
    if rng.random() < 0.5 and span_hz < room.sample_rate_hz / 8:  # wide combs come from stable clocks
        drift_hz = min(log_uniform(rng, 0.1, 20) * line_hz, room.width_hz - line_hz - span_hz)
    settings = {"num_tones": num_tones, "spacing_hz": spacing_hz}
    settings |= {"drift_hz": drift_hz, "drift_period_s": log_uniform(rng, 5e-3, 0.5)}
    return line_hz + span_hz + drift_hz, settings | keyed


def draw_fm(rng, room):
    narrow = [(11e3, "narrow", 2.5e3, 3e3), (16e3, "narrow", 5e3, 3e3)]
    broadcast = [(150e3, "broadcast", 75e3, 15e3)]
    rows = [*narrow, *broadcast, (8e3, "am", 0.0, 4e3), *broadcast]
    bandwidth_hz, mode, deviation_hz, audio_hz = room.pick(rng, rows)
    keyed = _on_off(rng, 1.0 if mode == "broadcast" else 0.8, (5e-3, 0.1), (5e-3, 0.1))
    return bandwidth_hz, {"mode": mode, "deviation_hz": deviation_hz, "audio_hz": audio_hz, **keyed}


def draw_gfsk(rng, room):
    if rng.random() < 0.4 and room.width_hz > 1.2e6:
        # Bluetooth: Core specification volume 6 part A 3.1, 1 and 2 Msym/s
        bit_rate_hz, index, bt = float(rng.choice([1e6, 1e6, 2e6])), float(rng.uniform(0.28, 0.35)), 0.5
        keyed = _on_off(rng, 0.0, (80e-6, 2.8e-3), (0.15e-3, 8e-3))
    else:
        # telemetry, meters, remote controls
        rates_hz = np.array([1.2e3, 2.4e3, 4.8e3, 9.6e3, 19.2e3, 38.4e3, 50e3, 100e3, 250e3])
        bit_rate_hz = float(rng.choice(rates_hz[rates_hz * room.duration_s >= 50]))
        index, bt = float(rng.choice([0.5, 1.0, 1.0, 2.0, 4.0])), float(rng.choice([0.5, 1.0]))
        packet_s = (100 / bit_rate_hz, 2000 / bit_rate_hz)
        keyed = _on_off(rng, 0.2, packet_s, packet_s)
    bandwidth_hz = fsk_width_hz(bit_rate_hz, index, bt)
    room.expect(bandwidth_hz)
    return bandwidth_hz, {"bit_rate_hz": bit_rate_hz, "index": index, "bt": bt, **keyed}


def draw_hopping(rng, room):
    way = rng.random()
    if way < 0.25 and room.width_hz > 12e6:
        # remote controls of drones in 2.4 GHz: packets of milliseconds on channels of 1 or 2 MHz
        bit_rate_hz, spacing_hz = (
            float(rng.choice([250e3, 500e3, 1e6, 2e6])),
            float(rng.choice([1e6, 1.5e6, 2e6])),
        )
        index, least, most, modulation = float(rng.choice([0.5, 1.0])), 5, 64, "gfsk"
        dwell_s = log_uniform(rng, 2e-3, 12e-3)
        burst_s = dwell_s * log_uniform(rng, 0.08, 0.5)
    elif way < 0.6 and room.width_hz > 21e6:
        # Bluetooth: 79 channels, at least 20 with adaptive hopping; packets of 1, 3 or 5 slots
        bit_rate_hz, index, spacing_hz, least, most = 1e6, 0.32, 1e6, 20, 79
        slots = int(rng.choice([1, 1, 3, 5]))
        burst_s, dwell_s = {1: 366e-6, 3: 1622e-6, 5: 2870e-6}[slots], (slots + 1) * 625e-6
        if slots == 1 and rng.random() < 0.5:
            dwell_s = 625e-6  # central and peripheral in turn
        modulation = "gfsk"
    else:
        spacing_hz = float(rng.choice([25e3, 50e3, 100e3, 200e3, 400e3, 500e3, 1e6]))
        bit_rate_hz, index, least, most = spacing_hz * 0.5, float(rng.choice([0.5, 1.0])), 5, 64
        dwell_s = log_uniform(rng, max(0.4e-3, 40 / bit_rate_hz), max(20e-3, 50 / bit_rate_hz))
        burst_s = dwell_s * float(rng.uniform(0.4, 0.95))
        modulation = str(rng.choice(["gfsk", "gfsk", "cw"]))
    width_hz = fsk_width_hz(bit_rate_hz, index, 0.5)
    most = min(most, 1 + int((room.width_hz - width_hz) // spacing_hz))
    if most < least:
        raise TooNarrowError
    channels = int(rng.integers(least, most + 1))
    settings = {"channels": channels, "spacing_hz": spacing_hz, "dwell_s": dwell_s, "burst_s": burst_s}
    settings |= {"modulation": modulation, "bit_rate_hz": bit_rate_hz, "index": index, "bt": 0.5}
    return (channels - 1) * spacing_hz + width_hz, settings


def draw_qam(rng, room):
    if rng.random() < 0.25 and room.width_hz >= 4.7e6:
        # UTRA downlink, TS 25.104 6.8.1: 3.84 Mchip/s, roll-off 0.22
        symbol_rate_hz, roll_off, bits_a_symbol, keyed = 3.84e6, 0.22, 0, {"burst_s": 1.0, "gap_s": 0.0}
    else:
        roll_off = float(rng.choice([0.1, 0.15, 0.2, 0.25, 0.35, 0.5]))
        room.expect(25e3 * (1 + roll_off))
        widest_hz = min(20e6, room.width_hz / (1 + roll_off))
        narrowest_hz = max(25e3, min(room.sample_rate_hz / 300, widest_hz / 2))
        symbol_rate_hz = log_uniform(rng, narrowest_hz, widest_hz)
        keyed = _on_off(rng, 0.6, (max(0.2e-3, 50 / symbol_rate_hz), 10e-3), (0.1e-3, 10e-3))
        bits_a_symbol = int(rng.choice([2, 2, 4, 6]))
    settings = {"symbol_rate_hz": symbol_rate_hz, "roll_off": roll_off, "bits_a_symbol": bits_a_symbol}
    return symbol_rate_hz * (1 + roll_off), settings | keyed


# bandwidth, channel, spacing, highest subcarrier, nulls: IEEE 802.11a to ac (312.5 kHz), ax (78.125 kHz);
# and the clock's divisor: 802.11p and j (2, 4), ah (10)
_WIFI = [
    (17.4e6, 20e6, 312.5e3, 26, 1),
    (18.4e6, 20e6, 312.5e3, 28, 1),
    (37.0e6, 40e6, 312.5e3, 58, 3),
    (77.0e6, 80e6, 312.5e3, 122, 3),
    (19.2e6, 20e6, 78.125e3, 122, 3),
    (38.3e6, 40e6, 78.125e3, 244, 5),
    (78.3e6, 80e6, 78.125e3, 500, 5),
    (156.6e6, 160e6, 312.5e3, 250, 11),
    (156.6e6, 160e6, 78.125e3, 1012, 23),
    (8.7e6, 10e6, 156.25e3, 26, 1, 2),
    (4.35e6, 5e6, 78.125e3, 26, 1, 4),
    (1.84e6, 2e6, 31.25e3, 28, 1, 10),
]
_BROADCAST = [(7.65e6, "dvbt", 8e6), (6.7e6, "dvbt", 7e6), (5.74e6, "dvbt", 6e6), (1.56e6, "dab")]


def draw_ofdm(rng, room):
    bandwidth_hz, *row = room.pick(rng, _WIFI + _BROADCAST)
    if row == ["dab"]:
        return bandwidth_hz, {"system": "dab"}
    bits_a_symbol = int(rng.choice([2, 4, 6]))
    if row[0] == "dvbt":
        settings = {"system": "dvbt", "channel_hz": row[1], "size": int(rng.choice([2048, 8192, 8192]))}
        settings["guard_share"] = float(rng.choice([1 / 4, 1 / 8, 1 / 16, 1 / 32]))
        return bandwidth_hz, settings | {"bits_a_symbol": bits_a_symbol}
    load = rng.random()
    slower = row[4] if row[4:] else 1
    if load < 0.4:  # saturated
        frame_s, idle_s = log_uniform(rng, 0.2e-3, 5e-3), 0.0
    elif load < 0.85:
        frame_s, idle_s = log_uniform(rng, 0.1e-3, 3e-3), log_uniform(rng, 0.1e-3, 5e-3)
    else:  # beacons of several stations
        frame_s, idle_s = float(rng.uniform(0.2e-3, 2e-3)), float(rng.uniform(20e-3, 102.4e-3))
        bits_a_symbol = 1
    frame_s *= min(slower, 4)
    settings = dict(zip(("width_hz", "spacing_hz", "highest", "nulls"), row[:4], strict=True)) | {
        "slower": slower
    }
    settings |= {"bits_a_symbol": bits_a_symbol, "frame_s": frame_s, "idle_s": idle_s}
    return bandwidth_hz, {"system": "wifi", **settings, "acks": bits_a_symbol > 1}


# bandwidth, subcarriers: video and telemetry of DJI drones (OcuSync, O2 to O4) in channels of 10 to 40 MHz
_DRONE = [(601.0, 600), (1201.0, 1200), (2401.0, 2400), (1201.0, 1200)]


def draw_drone(rng, room):
    """LTE's numerology without its signals: symbols of 15 kHz spacing, two Zadoff-Chu symbols a burst."""
    bandwidth_hz, subcarriers = room.pick(rng, [(15e3 * wide, count) for wide, count in _DRONE])
    settings = {"spacing_hz": 15e3, "subcarriers": subcarriers, "prefix": 72 / 1024, "long_prefix": 8 / 1024}
    settings |= {"null_dc": True, "pilot_step": 0, "bits_a_symbol": int(rng.choice([2, 2, 4, 6]))}
    roots = [int(root) for root in rng.integers(1, subcarriers, 2)]
    settings["sync"] = ((int(rng.integers(0, 4)), roots[0]), (int(rng.integers(4, 7)), roots[1]))
    period_s, burst_s = float(rng.choice([2e-3, 2.5e-3, 4e-3, 5e-3, 8e-3])), float(rng.uniform(0.5e-3, 2e-3))
    return bandwidth_hz, settings | {
        "burst_s": burst_s,
        "gap_s": max(period_s - burst_s, 0.1e-3),
        "answer_db": float(rng.choice([0.0, rng.uniform(0, 20)])),
        "channels": 1,
        "channel_hz": 0.0,
    }


# Spacings of links in 2.4 and 5 GHz, and of WiMAX (10.94 kHz, IEEE 802.16 8.4)
_SPACINGS_HZ = (10.9375e3, 15.625e3, 19.53125e3, 31.25e3, 39.0625e3, 60e3, 78.125e3, 156.25e3)


def draw_burst_ofdm(rng, room):
    spacing_hz = float(rng.choice(_SPACINGS_HZ))
    fewest = 26
    room.expect((fewest + 4) * spacing_hz)
    subcarriers = int(log_uniform(rng, fewest, min(2048, 40e6 / spacing_hz, room.width_hz / spacing_hz - 4)))
    subcarriers -= subcarriers % 2
    null_dc = bool(rng.random() < 0.7)
    settings = {"spacing_hz": spacing_hz, "subcarriers": subcarriers, "null_dc": null_dc}
    settings |= {"prefix": float(rng.choice([1 / 4, 1 / 8, 1 / 16, 1 / 32])), "long_prefix": 0.0}
    settings |= {"pilot_step": int(rng.choice([0, 4, 7, 9, 14])), "bits_a_symbol": int(rng.choice([2, 4, 6]))}
    settings["sync"] = ((0, 0), (1, int(rng.integers(1, subcarriers)))) if rng.random() < 0.6 else ((0, 0),)
    least_s = 4 / spacing_hz
    burst_s, gap_s = log_uniform(rng, max(0.15e-3, least_s), 4e-3), log_uniform(rng, 0.1e-3, 8e-3)
    # Sidelobes of few subcarriers reach beyond the last one.
    bandwidth_hz, channels, channel_hz = (subcarriers + 3) * spacing_hz, 1, 0.0
    way = rng.random()
    if way < 0.15:
        gap_s = 0.0
    elif way < 0.4 and room.width_hz > 4 * bandwidth_hz:  # hops
        channel_hz = bandwidth_hz * float(rng.choice([1.0, 1.2, 2.0]))
        channels = min(40, 1 + int((room.width_hz - bandwidth_hz) / channel_hz))
    settings |= {
        "burst_s": burst_s,
        "gap_s": gap_s,
        "answer_db": float(rng.choice([0.0, rng.uniform(0, 20)])),
    }
    settings |= {"channels": channels, "channel_hz": channel_hz}
    return bandwidth_hz + (channels - 1) * channel_hz, settings


def draw_chirp(rng, room):
    waveform = str(rng.choice(["lora", "fmcw", "pulsed"]))
    settings = {"waveform": waveform}
    if waveform == "lora":
        bandwidth_hz, chirp_hz = room.pick(rng, [(1.05 * width, width) for width in (125e3, 250e3, 500e3)])
        factor = int(rng.integers(7, 13))
        symbol_s = 2**factor / chirp_hz
        settings |= {"chirp_hz": chirp_hz, "spreading_factor": factor}
        settings["burst_s"] = symbol_s * int(rng.integers(20, 60))
        settings["gap_s"] = symbol_s * log_uniform(rng, 5, 100)
        return bandwidth_hz, settings
    room.expect(1.1 * 200e3)
    widest_hz = room.width_hz / 1.1
    if waveform == "fmcw":
        sweep_hz = log_uniform(rng, max(200e3, widest_hz / 20), widest_hz)
        # a time-bandwidth product of some hundred keeps the spectrum inside the sweep
        sweep_s = log_uniform(rng, max(50e-6, 400 / sweep_hz), max(10e-3, 800 / sweep_hz))
        idle_s = float(rng.choice([0.0, 0.1, 0.5])) * sweep_s
        shape = str(rng.choice(["up", "down", "triangle"]))
        settings |= {"sweep_hz": sweep_hz, "sweep_s": sweep_s, "shape": shape, "idle_s": idle_s}
        return 1.05 * sweep_hz, settings
    sweep_hz = log_uniform(rng, 200e3, min(widest_hz, 20e6))
    burst_s = log_uniform(rng, max(5e-6, 50 / sweep_hz), max(100e-6, 100 / sweep_hz))
    gap_s = log_uniform(rng, max(3 * burst_s, 0.2e-3), max(6 * burst_s, 4e-3))
    shape = str(rng.choice(["up", "down"]))
    settings |= {"sweep_hz": sweep_hz, "burst_s": burst_s, "gap_s": gap_s, "shape": shape}
    return 1.1 * sweep_hz, settings


def draw_gsm(rng, room):
    one_hz = 250e3
    room.expect(one_hz)
    spacing_hz = float(rng.choice([200e3, 400e3, 600e3]))
    most = min(8, 1 + int((room.width_hz - one_hz) // spacing_hz))
    carriers = int(rng.integers(1, most + 1))
    beacon = bool(rng.random() < 0.6)
    slots = rng.integers(1, 256, carriers).tolist()
    if beacon:
        slots[0] = 255
    settings = {"carriers": carriers, "spacing_hz": spacing_hz, "slots": tuple(slots), "beacon": beacon}
    return (carriers - 1) * spacing_hz + one_hz, settings


def draw_noise_burst(rng, room):
    room.expect(100e3)
    noise_hz = log_uniform(rng, max(100e3, room.width_hz / 100), room.width_hz)
    way, edge = rng.choice(["always", "bursts", "steps"]), float(rng.choice([0.03, 0.03, 0.1, 0.25, 0.5]))
    burst_s = log_uniform(rng, max(0.1e-3, 50 / noise_hz), 10e-3)
    tilt_db = float(rng.choice([0.0, 0.0, rng.uniform(-6, 6)]))
    gap_s = log_uniform(rng, 0.1e-3, 10e-3) if way == "bursts" else 0.0
    step_db = float(rng.uniform(3, 12)) if way == "steps" else 0.0
    settings = {"noise_hz": noise_hz, "edge": edge, "tilt_db": tilt_db}
    return noise_hz * (0.98 - 0.6 * edge), settings | {"burst_s": burst_s, "gap_s": gap_s, "step_db": step_db}


# bandwidth, form, tones, spacing, length of a resource unit (TS 36.211 table 10.1.2.3-1)
# A single tone has rectangular keying: its 99 % bandwidth is several times the spacing.
_NBIOT = [
    (60e3, "npusch", 1, 3.75e3, 32e-3),
    (130e3, "npusch", 1, 15e3, 8e-3),
    (130e3, "npusch", 3, 15e3, 4e-3),
    (150e3, "npusch", 6, 15e3, 2e-3),
    (190e3, "npusch", 12, 15e3, 1e-3),
    (46e3, "nprach", 12, 3.75e3, 6.4e-3),
]


def draw_nbiot(rng, room):
    bandwidth_hz, form, tones, spacing_hz, unit_s = room.pick(rng, _NBIOT)
    burst_s = unit_s * int(2 ** rng.integers(0, 5))  # repetitions
    settings = {"form": form, "tones": tones, "spacing_hz": spacing_hz, "burst_s": burst_s}
    return bandwidth_hz, settings | {"gap_s": log_uniform(rng, 2e-3, 40e-3)}


def draw_pulses(rng, room):
    rows = [(6e6, "mode_s"), (6e6, "mode_s"), (0.4e6, "dme"), (0.2e6, "radar")]
    bandwidth_hz, system = room.pick(rng, rows)
    settings = {"system": system}
    if system == "mode_s":
        settings["messages_a_s"] = log_uniform(rng, 50, 2000)
    elif system == "dme":
        settings["pairs_a_s"] = log_uniform(rng, 100, 2700)
        settings["spacing_s"] = float(rng.choice([12e-6, 30e-6, 36e-6]))
    else:
        # A pulse with edges of a fifth of its length has 99 % of its energy within 5.8 / length.
        burst_s = log_uniform(rng, max(0.5e-6, 5.8 / room.width_hz), 32e-6)
        bandwidth_hz = 5.8 / burst_s
        settings |= {"burst_s": burst_s, "gap_s": log_uniform(rng, 0.25e-3, 2e-3)}
        settings["stagger"] = float(rng.choice([0.0, 0.2]))
    return bandwidth_hz, settings
