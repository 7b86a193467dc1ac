"""Waveforms of distractors: tones, FM, FSK, single carriers, chirps, GSM, noise and pulses.

Functions (stretch, numpy generator, stream, bursts of `schedules`, settings) -> `Baseband`. Payloads are random.
"""

import math

import numpy as np
import torch

from radio.scenes.baseband import MARGIN, Baseband, flat_response, gaussian_fsk, oscillate
from radio.scenes.ofdm import phasor
from radio.scenes.schedules import DME_LEAD_S, GSM_BIT_RATE_HZ, LORA_PREAMBLE, Burst


def tone(stretch, rng, stream, bursts, *, num_tones, spacing_hz, drift_hz, drift_period_s, burst_s, gap_s):
    """Unmodulated carriers at equal spacing that drift together over `drift_hz` as a sine."""
    keying_hz = 100 / burst_s if gap_s else 0.0
    clock = stretch.clock(max(1.3 * ((num_tones - 1) * spacing_hz + drift_hz), 20e3, keying_hz))
    numbers = np.arange(num_tones) - (num_tones - 1) / 2
    levels_db = {burst.part[0]: burst.level_db for burst in bursts}
    levels = 10 ** (np.array([levels_db[number] for number in range(num_tones)]) / 20)
    levels = levels * np.exp(2j * np.pi * rng.random(num_tones))
    # The sum of tones over (coarse, fine) time is a product of two small matrices.
    fine = 1 << (clock.count.bit_length() // 2)
    coarse = -(-clock.count // fine)
    cycles = spacing_hz / clock.rate_hz * numbers
    rows = [phasor(tone, fine, clock.device) for tone in cycles]
    columns = [phasor(tone * fine, coarse, clock.device) for tone in cycles]
    low = (torch.stack(columns, dim=1) * clock.tensor(levels) @ torch.stack(rows)).flatten()[: clock.count]
    if drift_hz:
        swing = torch.sin((clock.times() / drift_period_s + bursts[0].part[1]) * (2 * math.pi))
        low *= oscillate(swing * (drift_hz * drift_period_s / (4 * math.pi)))
    if gap_s:
        on = sorted({burst.part[2:] for burst in bursts})
        low *= clock.gate([Burst(*time, 0.0, 0.0) for time in on], 20e-6)
    return Baseband(clock.rate_hz, [(0, 0.0, low)])


def fm(stretch, rng, stream, bursts, *, mode, deviation_hz, audio_hz, **_):
    """A voice channel (`mode` "narrow", "am") or a stereo broadcast with RDS ("broadcast")."""
    highest_hz = 60e3 if mode == "broadcast" else audio_hz
    clock = stretch.clock(4 * (deviation_hz + highest_hz))
    time = clock.times()
    first, second = (_programme(clock, rng, stream.child(k), audio_hz) for k in (0, 1))
    if mode == "broadcast":
        # ITU-R BS.450: sum, pilot at 9 %, difference around 38 kHz; weak RDS at 57 kHz (IEC 62106)
        data = _programme(clock, rng, stream.child(2), 1.2e3, voiced=False)
        pilot, stereo, rds = (torch.sin(time * (2 * math.pi * hertz)) for hertz in (19e3, 38e3, 57e3))
        message = 0.45 * (first + second * stereo)
        message += 0.09 * pilot + 0.03 * data * rds
    elif mode == "narrow":
        squelch_hz = rng.uniform(67, 250)
        message = 0.9 * first + 0.1 * torch.sin(time * (2 * math.pi * squelch_hz))
    else:
        message = first
    if mode == "am":
        low = (1 + 0.8 * message).to(torch.complex64)
    else:
        low = oscillate((message * (deviation_hz / clock.rate_hz)).cumsum(0))
    low = clock.keyed(low, bursts, 50e-6)
    return Baseband(clock.rate_hz, [(0, 0.0, low)])


def _programme(clock, rng, stream, audio_hz, voiced=True):
    """Like speech or music: harmonics of a gliding pitch, and noise, from -1 to 1: float64 [count]."""
    time = clock.times()
    noise = stream.complex_normal(clock.count, clock.device).real.double()
    frequency = torch.fft.rfftfreq(clock.count, 1 / clock.rate_hz, dtype=torch.float64, device=clock.device)
    spectrum = torch.fft.rfft(noise) * (frequency < audio_hz) / (1 + (frequency / (0.3 * audio_hz)).square())
    noise = torch.fft.irfft(spectrum, clock.count)
    noise = noise / noise.square().mean().sqrt().clamp_min(1e-12)
    if not voiced:
        return (0.4 * noise).clamp(-1, 1)
    pitch_hz = rng.uniform(90, 260)
    count = min(32, int(audio_hz / pitch_hz / 1.1))
    harmonics = torch.arange(1, count + 1, dtype=torch.float64, device=clock.device)
    levels = torch.from_numpy(rng.standard_normal(len(harmonics))).to(clock.device)
    levels = levels / (1 + (harmonics * pitch_hz / 800) ** 2)
    glide = time * pitch_hz + 0.05 * pitch_hz / 5 * torch.sin(time * (2 * math.pi * 5))
    voice = torch.sin((glide[:, None] * harmonics + harmonics.square() / 7) * (2 * math.pi)) @ levels
    voice = voice / voice.square().mean().sqrt().clamp_min(1e-12)
    share = rng.uniform(0.2, 0.9)
    return (0.6 * (share * voice + (1 - share) * noise)).clamp(-1, 1)


def _fsk_clock(stretch, bit_rate_hz, index):
    return stretch.clock(bit_rate_hz * max(4, math.ceil(2.5 * (index + 1))))


def _packets(clock, rng, stream, bursts, bit_rate_hz, index, bt):
    """GFSK packets with 16 alternating preamble bits and sin² edges: [(first sample, complex64)]."""
    lengths = [max(8, round(burst.length_s * bit_rate_hz)) for burst in bursts]
    bits = stream.octets(sum(lengths), clock.device) & 1
    samples_a_bit = round(clock.rate_hz / bit_rate_hz)
    edge = 2 * samples_a_bit
    ramp = torch.sin((torch.arange(edge, device=clock.device) + 0.5) * (math.pi / 2 / edge)).square()
    packets, begin = [], 0
    for burst, length in zip(bursts, lengths, strict=True):
        frame = bits[begin : begin + length]
        frame[:16] = torch.arange(min(16, length), device=clock.device) & 1
        begin += length
        samples = gaussian_fsk(frame, samples_a_bit, index, bt) * complex(np.exp(2j * np.pi * rng.random()))
        samples[:edge] *= ramp
        samples[-edge:] *= ramp.flip(0)
        packets.append((clock.index(burst.start_s), samples))
    return packets


def gfsk(stretch, rng, stream, bursts, *, bit_rate_hz, index, bt, **_):
    """Packets of Gaussian frequency shift keying on one channel."""
    clock = _fsk_clock(stretch, bit_rate_hz, index)
    if math.isinf(bursts[0].length_s):
        margin_s = MARGIN / clock.rate_hz
        bursts = [Burst(-margin_s, stretch.duration_s + 2 * margin_s, 0.0, 0.0)]
    low = clock.zeros()
    for first, samples in _packets(clock, rng, stream, bursts, bit_rate_hz, index, bt):
        clock.write(low, first, samples)
    return Baseband(clock.rate_hz, [(0, 0.0, low)])


def hopping(stretch, rng, stream, bursts, *, modulation, bit_rate_hz, index, bt, **_):
    """A burst on another channel every dwell; `modulation` "gfsk" or "cw"."""
    clock = _fsk_clock(stretch, bit_rate_hz, index)
    packets = _packets(clock, rng, stream, bursts, bit_rate_hz, index, bt)
    if modulation == "cw":
        packets = [(first, samples.abs().to(torch.complex64)) for first, samples in packets]
    parts = [(*packet[:1], burst.part, packet[1]) for packet, burst in zip(packets, bursts, strict=True)]
    return Baseband(clock.rate_hz, parts)


def qam(stretch, rng, stream, bursts, *, symbol_rate_hz, roll_off, bits_a_symbol, **_):
    """A single carrier with root-raised-cosine pulses. 0 bits a symbol: Gaussian, the sum of many codes."""
    clock = stretch.clock(symbol_rate_hz)
    if bits_a_symbol:
        low = clock.points((clock.count,), bits_a_symbol, stream)
    else:
        low = stream.complex_normal(clock.count, clock.device)
    low = clock.keyed(low, bursts)

    def root_raised_cosine(frequency):
        return np.cos(np.pi / 2 * ((abs(frequency) - (1 - roll_off) / 2) / roll_off).clip(0, 1))

    return Baseband(clock.rate_hz, [(0, 0.0, low)], root_raised_cosine, (1 + roll_off) / 2)


def chirp(stretch, rng, stream, bursts, *, waveform, **settings):
    """Linear frequency sweeps: `waveform` "lora", "fmcw" or "pulsed"."""
    return {"lora": _lora, "fmcw": _fmcw, "pulsed": _pulsed}[waveform](stretch, rng, bursts, **settings)


def _lora(stretch, rng, bursts, *, chirp_hz, spreading_factor, **_):
    """Packets of chirps whose cyclic shift is the symbol (Vangelista, IEEE SPL 24 (12), 2017)."""
    clock = stretch.clock(2 * chirp_hz)
    values = 2**spreading_factor
    length = 2 * values  # samples of a symbol
    time = torch.arange(length, dtype=torch.float64, device=clock.device) / length
    low = clock.zeros()
    sync = 8 * rng.integers(1, min(16, values // 8), 2)
    for burst in bursts:
        data = rng.integers(values, size=burst.part)
        shifts = np.concatenate([np.zeros(LORA_PREAMBLE), sync, data]) / values
        sweeps = (torch.from_numpy(shifts).to(clock.device)[:, None] + time) % 1 - 0.5  # (symbols, length)
        down = (0.5 - time).repeat(3)[: length * 9 // 4]
        head = LORA_PREAMBLE + 2
        steps = torch.cat([sweeps[:head].flatten(), down, sweeps[head:].flatten()]) / 2  # cycles a sample
        clock.write(low, clock.index(burst.start_s), oscillate(steps.cumsum(0)))
    return Baseband(clock.rate_hz, [(0, 0.0, low)])


def _fmcw(stretch, rng, bursts, *, sweep_hz, sweep_s, shape, idle_s):
    """A radar's periodic sweeps, "up", "down" or "triangle", with a pause of `idle_s` after each."""
    clock = stretch.clock(1.25 * sweep_hz)
    sweep = _sweep(clock, round(sweep_s * clock.rate_hz), sweep_hz, shape)
    period = torch.cat([sweep, sweep.new_zeros(round(idle_s * clock.rate_hz))])
    start = (round(-bursts[0].part * clock.rate_hz) - MARGIN) % len(period)
    low = period.repeat(clock.count // len(period) + 2)[start : start + clock.count]
    return Baseband(clock.rate_hz, [(0, 0.0, low)])


def _sweep(clock, length, sweep_hz, shape):
    ramp = (torch.arange(length, dtype=torch.float64, device=clock.device) + 0.5) / length - 0.5
    ramp = {"up": ramp, "down": -ramp, "triangle": 0.5 - 2 * ramp.abs()}[shape]
    return oscillate((ramp * (sweep_hz / clock.rate_hz)).cumsum(0))


def _pulsed(stretch, rng, bursts, *, sweep_hz, burst_s, gap_s, shape):
    """Chirped radar pulses, "up" or "down"."""
    clock = stretch.clock(1.4 * sweep_hz)
    pulse = _sweep(clock, max(8, round(burst_s * clock.rate_hz)), sweep_hz, shape)
    low = clock.zeros()
    for burst in bursts:
        clock.write(low, clock.index(burst.start_s), pulse)
    return Baseband(clock.rate_hz, [(0, 0.0, low)])


_FCCH_FRAMES = (0, 10, 20, 30, 40)  # of 51: TS 45.002 table 3


def gsm(stretch, rng, stream, bursts, *, carriers, spacing_hz, slots, beacon):
    """GMSK carriers. slots: each one's mask of 8 slots. beacon: the first never pauses and sends FCCH."""
    bandwidth_hz = (carriers - 1) * spacing_hz + GSM_BIT_RATE_HZ
    quarter = max(1, math.ceil(1.3 * bandwidth_hz / (4 * GSM_BIT_RATE_HZ)))
    clock = stretch.clock(4 * quarter * GSM_BIT_RATE_HZ)
    slot = 625 * quarter  # samples
    frames = clock.count // (8 * slot) + 2
    bits = (stream.octets(carriers * frames * 1250, clock.device) & 1).view(carriers, frames * 1250)
    on = (np.array(slots)[:, None] >> np.arange(8)) & 1  # (carriers, 8)
    on = torch.from_numpy(np.tile(on, frames).astype(np.float32)).to(clock.device)  # (carriers, 8 * frames)
    # 148 bits in the middle of the slot, between ramps of two bits (TS 45.005 annex B)
    bit = (torch.arange(slot, device=clock.device) + 0.5) / (4 * quarter)
    ramp = ((76 - (bit - 78.125).abs()) / 2).clamp(0, 1)
    gate = (on[:, :, None] * torch.sin(ramp * (math.pi / 2)).square()).flatten(1)  # (carriers, samples)
    if beacon:
        gate[0] = 1.0
        frame = rng.integers(51)
        for number in range(frames):
            if (frame + number) % 51 in _FCCH_FRAMES:
                bits[0, number * 1250 : number * 1250 + 156] = 1
    _, first_s = bursts[0].part
    start = (round(-first_s * clock.rate_hz) - MARGIN) % (8 * slot)
    levels_db = {burst.part[0]: burst.level_db for burst in bursts}
    samples = (gaussian_fsk(bits, 4 * quarter, 0.5, 0.3) * gate)[:, start : start + clock.count]
    low = torch.zeros_like(samples[0])
    for number in range(carriers):
        offset = (number - (carriers - 1) / 2) * spacing_hz / clock.rate_hz
        level = 10 ** (levels_db.get(number, 0.0) / 20)
        low += samples[number] * phasor(offset, len(low), clock.device) * level
    return Baseband(clock.rate_hz, [(0, 0.0, low)])


def noise_burst(stretch, rng, stream, bursts, *, noise_hz, edge, tilt_db, step_db, **_):
    """Gaussian noise within `noise_hz`.

    edge: width of each band edge / band. tilt_db: power at the upper edge over the lower edge.
    step_db: range of a level that changes every `burst_s`, without gaps; 0 for none.
    """
    clock = stretch.clock(1.02 * noise_hz)
    half = 0.5 / 1.02
    low = stream.complex_normal(clock.count, clock.device)
    if step_db:  # levels overlap, so that no sample between them is silent
        low *= clock.gate([burst._replace(length_s=1.1 * burst.length_s) for burst in bursts], 0.0)
    else:
        low = clock.keyed(low, bursts)
    shape = flat_response(half * (1 - 2 * edge), half)

    def response(frequency):
        return shape(frequency) * 10 ** (tilt_db * frequency / (2 * half) / 20)

    grid = np.linspace(-0.5, 0.5, 4097)
    return Baseband(clock.rate_hz, [(0, 0.0, low)], response, 0.5, float((response(grid) ** 2).mean()))


def pulses(stretch, rng, stream, bursts, *, system, **settings):
    """Unmodulated pulses: `system` "mode_s", "dme" or "radar"."""
    return {"mode_s": _mode_s, "dme": _dme, "radar": _radar}[system](stretch, rng, bursts, **settings)


# ICAO Annex 10 volume IV 3.1.2.2: pulses at 0, 1, 3.5 and 4.5 µs; data from 8 µs
MODE_S_PREAMBLE_CHIPS = (0, 2, 7, 9)


def _mode_s(stretch, rng, bursts, **_):
    """Mode S replies: a preamble, 56 or 112 bits: a pulse in the first (1) or second (0) half of 1 µs."""
    clock = stretch.clock(16e6)
    chip = 8
    low = clock.zeros()
    for burst in bursts:
        bits = rng.integers(0, 2, burst.part)
        chips = np.zeros(16 + 2 * len(bits))
        chips[list(MODE_S_PREAMBLE_CHIPS)] = 1
        chips[16 + 2 * np.arange(len(bits)) + (1 - bits)] = 1
        shape = np.convolve(chips.repeat(chip), [0.25, 0.5, 0.25])
        samples = shape * (10 ** (burst.level_db / 20) * np.exp(2j * np.pi * rng.random()))
        clock.write(low, clock.index(burst.start_s), clock.tensor(samples))
    return Baseband(clock.rate_hz, [(0, 0.0, low)], flat_response(0.22, 0.28), 0.28)


def _dme(stretch, rng, bursts, *, spacing_s, **_):
    """Pairs of Gaussian pulses, 3.5 µs wide at half amplitude (ICAO Annex 10 volume I 3.5)."""
    clock = stretch.clock(2e6)
    time_s = np.arange(-8e-6, spacing_s + 8e-6, 1 / clock.rate_hz)
    pair = sum(np.exp2(-(((time_s - t) / 1.75e-6) ** 2)) for t in (0.0, spacing_s))
    low = clock.zeros()
    for burst in bursts:
        first = clock.index(burst.start_s - DME_LEAD_S)
        clock.write(low, first, clock.tensor(pair * np.exp(2j * np.pi * rng.random())))
    return Baseband(clock.rate_hz, [(0, 0.0, low)])


def _radar(stretch, rng, bursts, *, burst_s, **_):
    """Pulses with sin² edges of a fifth of their length."""
    clock = stretch.clock(16 / burst_s)
    low = clock.gate(bursts, burst_s / 5).to(torch.complex64)
    return Baseband(clock.rate_hz, [(0, 0.0, low)])
