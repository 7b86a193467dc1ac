"""OFDM waveforms of distractors: Wi-Fi, DVB-T, DAB and NB-IoT; functions as in `radio.scenes.waveforms`."""

import math

import numpy as np
import torch
from scipy.fft import next_fast_len

from radio.scenes.baseband import Baseband, flat_response, oscillate
from radio.scenes.ofdm import phasor
from radio.scenes.schedules import DAB_GUARD, DAB_RATE_HZ, DAB_SIZE, DAB_SYMBOLS, LONG_PREFIX_EVERY

# Training symbols, IEEE 802.11-2020 17.3.3: long on subcarriers -26 to 26, short on -24, -20, ... 24
_LONG = "++--++-+-++++++--++-+-++++0+--++-+-+-----++--+-+-++++"
_SHORT = "+-+--+0--++++"
_WIFI_SPACING_HZ = 312.5e3
_WIFI_GUARD_S = 0.8e-6


def ofdm(stretch, rng, stream, bursts, *, system, **settings):
    """OFDM of another numerology than LTE and NR: `system` "wifi", "dvbt" or "dab"."""
    return {"wifi": _wifi, "dvbt": _dvbt, "dab": _dab}[system](stretch, rng, stream, bursts, **settings)


def _wifi(
    stretch, rng, stream, bursts, *, width_hz, spacing_hz, highest, nulls, bits_a_symbol, slower=1, **_
):
    """Frames with the legacy preamble; an ACK after SIFS; the next frame after DIFS and a back-off.

    width_hz: 20, 40, 80 or 160 MHz. spacing_hz: 312.5 kHz (802.11a to ac) or 78.125 kHz (ax). Both are
        divided by `slower`: 2 or 4 in channels of 10 or 5 MHz, 10 in those of 802.11ah.
    highest: last used subcarrier; nulls: unused ones around DC.
    """
    clock = stretch.clock(width_hz)
    width_hz, spacing_hz = width_hz * slower, spacing_hz * slower  # as if the clock were not divided
    size, guard = round(width_hz / spacing_hz), round(width_hz * _WIFI_GUARD_S)
    preamble = _wifi_preamble(width_hz, clock.device)
    carriers = np.arange(-highest, highest + 1)
    carriers = carriers[2 * abs(carriers) > nulls]
    count = sum(symbols for symbols, is_ack in (burst.part for burst in bursts) if not is_ack)
    data = _ofdm_symbols(clock, stream.child(0), count, size, guard, carriers, bits_a_symbol)
    used = _without_dc(26)[:, None] + _channels(width_hz)
    legacy = (2 * len(bursts) + 1, round(width_hz / _WIFI_SPACING_HZ), guard, np.sort(used.ravel()))
    answers = _ofdm_symbols(clock, stream.child(1), *legacy, 1)
    low, used, answered = clock.zeros(), 0, 1
    for burst in bursts:
        symbols, is_ack = burst.part
        body = answers[answered : answered + 2] if is_ack else data[used : used + symbols]
        answered, used = answered + 2 * is_ack, used + symbols * (not is_ack)
        level = complex(10 ** (burst.level_db / 20) * np.exp(2j * np.pi * rng.random()))
        clock.write(
            low, clock.index(burst.start_s), torch.cat([preamble, answers[0], body.flatten()]) * level
        )
    return Baseband(clock.rate_hz, [(0, 0.0, low)], flat_response(0.46, 0.5))


def burst_ofdm(
    stretch, rng, stream, bursts, *, spacing_hz, subcarriers, prefix, long_prefix, null_dc, pilot_step,
    bits_a_symbol, sync, **_
):  # fmt: skip
    """Bursts of OFDM symbols with a preamble of their own.

    prefix: cyclic prefix / symbol; every seventh symbol's is longer by `long_prefix`.
    pilot_step: subcarriers from one pilot to the next, twice as strong as data; 0 for none.
    sync: ((symbol, root), ...) of Zadoff-Chu sequences over all subcarriers; root 0: QPSK on every other one.
    """
    size = next_fast_len(math.ceil(1.2 * subcarriers))
    clock = stretch.clock(size * spacing_hz)
    guard, longer = round(size * prefix), round(size * long_prefix)
    highest = subcarriers // 2
    carriers = _without_dc(highest) if null_dc else np.arange(-highest, subcarriers - highest)
    count = sum(symbols for symbols, _ in (burst.part for burst in bursts))
    points = clock.points((count, len(carriers)), bits_a_symbol, stream)
    starts = np.cumsum([0] + [burst.part[0] for burst in bursts])
    number = np.concatenate([np.arange(burst.part[0]) for burst in bursts])
    if pilot_step:
        pilots = rng.choice([-math.sqrt(2), math.sqrt(2)], len(carriers[::pilot_step]))
        points[:, ::pilot_step] = clock.tensor(pilots)
    for symbol, root in sync:
        n = np.arange(len(carriers))
        known = np.exp(-1j * np.pi * root * n * (n + 1) / (len(carriers) + 1)) if root else (n % 2) * 1.414
        signs = 1 if root else rng.choice([-1, 1], len(n))
        points[torch.from_numpy(number == symbol).to(clock.device)] = clock.tensor(known * signs)
    rows = _modulate(points * math.sqrt(size / len(carriers)), carriers, size, guard + longer)
    parts = []
    for burst, first in zip(bursts, starts[:-1].tolist(), strict=True):
        kept = torch.ones(burst.part[0], rows.shape[1], dtype=torch.bool, device=clock.device)
        kept[torch.arange(len(kept), device=clock.device) % LONG_PREFIX_EVERY > 0, :longer] = False
        turn = complex(10 ** (burst.level_db / 20) * np.exp(2j * np.pi * rng.random()))
        samples = rows[first : first + len(kept)][kept] * turn
        parts.append((clock.index(burst.start_s), burst.part[1], samples))
    return Baseband(clock.rate_hz, parts, flat_response(0.45, 0.5))


def _without_dc(highest):
    """Subcarriers -highest to highest without 0."""
    return np.concatenate([np.arange(-highest, 0), np.arange(1, highest + 1)])


def _channels(width_hz):
    """Centres of the 20 MHz channels in subcarriers of 312.5 kHz."""
    count = round(width_hz / 20e6)
    return 64 * np.arange(count) - 32 * (count - 1)


def _wifi_preamble(width_hz, device):
    """Ten short and two long training symbols, 16 µs, on every 20 MHz channel: complex64, unit mean power."""
    size, guard = round(width_hz / _WIFI_SPACING_HZ), round(width_hz * _WIFI_GUARD_S)
    spectra = np.zeros((2, size), np.complex64)
    for centre in _channels(width_hz):
        for field, (signs, step) in enumerate(((_SHORT, 4), (_LONG, 1))):
            values = np.array([{"+": 1, "-": -1, "0": 0}[sign] for sign in signs])
            spectra[field, (np.arange(len(signs)) - len(signs) // 2) * step + centre] = values
    time = np.fft.ifft(spectra)
    time /= np.sqrt((abs(time) ** 2).mean(axis=1, keepdims=True))
    fields = [np.tile(time[0], 3)[: 2 * (size + guard)], time[1, size - 2 * guard :], time[1], time[1]]
    return torch.from_numpy(np.concatenate(fields).astype(np.complex64)).to(device)


def _ofdm_symbols(clock, stream, count, size, guard, carriers, bits_a_symbol):
    """Random symbols of unit mean power; 1 bit a symbol is BPSK: complex64 [count, guard + size]."""
    points = clock.points((count, len(carriers)), max(2, bits_a_symbol), stream)
    if bits_a_symbol == 1:
        points = (points.real * math.sqrt(2)).to(torch.complex64)
    return _modulate(points * math.sqrt(size / len(carriers)), carriers, size, guard)


def _modulate(points, carriers, size, guard):
    """Points on signed subcarriers -> symbols with cyclic prefix, complex64 [count, guard + size]."""
    values = torch.zeros(len(points), size, dtype=torch.complex64, device=points.device)
    values[:, torch.from_numpy(carriers % size).to(points.device)] = points
    time = torch.fft.ifft(values, norm="ortho")
    return torch.cat([time[:, size - guard :], time], dim=-1)


def _dvbt(stretch, rng, stream, bursts, *, channel_hz, size, guard_share, bits_a_symbol):
    """Terrestrial television, ETSI EN 300 744, with scattered pilots at 16/9 of the power (4.5.3)."""
    clock = stretch.clock(channel_hz * 8 / 7)
    guard = round(size * guard_share)
    highest = {2048: 852, 8192: 3408}[size]
    count = clock.count // (size + guard) + 2
    carriers = np.arange(-highest, highest + 1)
    points = clock.points((count, len(carriers)), bits_a_symbol, stream)
    pilots = clock.tensor(rng.choice([-4 / 3, 4 / 3], len(carriers)))
    for phase in range(4):
        points[phase::4, 3 * phase :: 12] = pilots[3 * phase :: 12]
    start = rng.integers(size + guard)
    low = _modulate(points, carriers, size, guard).flatten()[start : start + clock.count]
    return Baseband(clock.rate_hz, [(0, 0.0, low)], flat_response(0.43, 0.5))


def _dab(stretch, rng, stream, bursts):
    """Digital audio, ETSI EN 300 401 mode I (14.2): frames of 96 ms, a null symbol, then 76 symbols."""
    clock = stretch.clock(DAB_RATE_HZ)
    low = clock.zeros()
    for number, burst in enumerate(bursts):
        sizes = (DAB_SYMBOLS, DAB_SIZE, DAB_GUARD, _without_dc(768))
        time = _ofdm_symbols(clock, stream.child(number), *sizes, 2)
        clock.write(low, clock.index(burst.start_s), time.flatten())
    return Baseband(clock.rate_hz, [(0, 0.0, low)])


def nbiot(stretch, rng, stream, bursts, *, form, tones, spacing_hz, **_):
    """NB-IoT uplink, TS 36.211 10.1: `form` "npusch" (one or more tones) or "nprach" (a hopping tone)."""
    clock = stretch.clock(1.92e6)
    if form == "nprach":
        low = _nprach(clock, rng, tones, spacing_hz)
    else:
        size = round(1.92e6 / spacing_hz)
        # Prefixes, 10.1.2.3: of LTE at 15 kHz, 8.3 µs at 3.75 kHz. A guard fills each slot.
        slot, guard = (960, 9) if spacing_hz == 15e3 else (3840, 16)
        count = 7 * (clock.count // slot + 1)
        points = clock.points((count, tones), 2, stream)
        points[1::2] *= complex(math.sqrt(0.5), math.sqrt(0.5))
        symbols = _modulate(torch.fft.fft(points, norm="ortho"), np.arange(tones), size, guard)
        rows = symbols.view(-1, 7 * (size + guard))
        low = torch.nn.functional.pad(rows, (0, slot - rows.shape[1])).flatten()[: clock.count]
        low = low * phasor(-(tones - 1) / 2 * spacing_hz / clock.rate_hz, len(low), clock.device)
    low = low * clock.gate(bursts, 5e-6)
    return Baseband(clock.rate_hz, [(0, 0.0, low)], flat_response(0.05, 0.075), 0.075)


def _nprach(clock, rng, tones, spacing_hz):
    """Symbol groups of format 1 (TS 36.211 10.1.6: 1.6 ms): hops of 1, 6 and 1 tones, then a random hop."""
    group = round(1.6e-3 * clock.rate_hz)
    tone_number, numbers = rng.integers(tones), []
    for position in range(clock.count // group + 2):
        numbers.append(tone_number)
        if position % 4 == 3:
            tone_number = rng.integers(tones)
        elif position % 4 == 1:
            tone_number = (tone_number + tones // 2) % tones
        else:
            tone_number = tone_number ^ 1
    steps = (torch.tensor(numbers, dtype=torch.float64) - (tones - 1) / 2) * (spacing_hz / clock.rate_hz)
    return oscillate(steps.repeat_interleave(group)[: clock.count].to(clock.device).cumsum(0))
