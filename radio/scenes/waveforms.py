"""Waveforms of systems other than NR and LTE: tones, FM, FSK, single carriers, chirps, GSM, noise and pulses.

Each is a function (stretch, numpy generator, stream of bulk numbers, settings) -> `Baseband`; those of OFDM systems are in
`radio.scenes.multicarrier`. Clauses and tables are named where a figure comes from one; payloads are random.
"""

import math

import numpy as np
import torch

from radio.scenes.baseband import (
    MARGIN,
    Baseband,
    bursts,
    flat_response,
    gaussian_fsk,
    oscillate,
    random_bits,
    root_raised_cosine,
)
from radio.scenes.ofdm import phasor, random_symbols


def tone(stretch, rng, stream, *, num_tones, spacing_hz, drift_hz, drift_period_s, burst_s, gap_s):
    """Unmodulated carriers at equal spacing that drift together over `drift_hz` as a sine, keyed where `gap_s` is not 0."""
    clock = stretch.clock(max(1.3 * ((num_tones - 1) * spacing_hz + drift_hz), 20e3, 100 / burst_s if gap_s else 0.0))
    numbers = np.arange(num_tones) - (num_tones - 1) / 2
    levels = 10 ** (-rng.uniform(0, 15, num_tones) / 20) * np.exp(2j * np.pi * rng.random(num_tones))
    # a sum of tones over (coarse, fine) time is a product of two small matrices
    fine = 1 << (clock.count.bit_length() // 2)
    rows = [phasor(spacing_hz / clock.rate_hz * k, fine, clock.device) for k in numbers]
    columns = [phasor(spacing_hz / clock.rate_hz * k * fine, -(-clock.count // fine), clock.device) for k in numbers]
    levels = torch.from_numpy(levels.astype(np.complex64)).to(clock.device)
    low = (torch.stack(columns, dim=1) * levels @ torch.stack(rows)).flatten()[: clock.count]
    if drift_hz:
        swing = torch.sin((clock.times() / drift_period_s + rng.random()) * (2 * math.pi))
        low *= oscillate(swing * (drift_hz * drift_period_s / (4 * math.pi)))
    if gap_s:
        low *= clock.gate(bursts(rng, stretch.duration_s, burst_s, gap_s, jitter=0.3), 20e-6)
    return Baseband(clock.rate_hz, [(0, 0.0, low)])


def fm(stretch, rng, stream, *, mode, deviation_hz, audio_hz, burst_s, gap_s):
    """A voice channel ("narrow", "am") or a stereo broadcast ("broadcast": audio, 19 kHz pilot, 38 kHz, 57 kHz)."""
    highest_hz = 60e3 if mode == "broadcast" else audio_hz
    clock = stretch.clock(4 * (deviation_hz + highest_hz))
    time = clock.times()
    first, second = (_programme(clock, rng, stream.child(k), audio_hz) for k in (0, 1))
    if mode == "broadcast":
        # ITU-R BS.450: sum, pilot at 9 %, difference on the suppressed carrier; RDS at 57 kHz (IEC 62106) as a weak band
        data = _programme(clock, rng, stream.child(2), 1.2e3, voiced=False)
        message = 0.45 * (first + second * torch.sin(time * (2 * math.pi * 38e3)))
        message += 0.09 * torch.sin(time * (2 * math.pi * 19e3)) + 0.03 * data * torch.sin(time * (2 * math.pi * 57e3))
    elif mode == "narrow":
        message = 0.9 * first + 0.1 * torch.sin(time * (2 * math.pi * rng.uniform(67, 250)))  # sub-audible tone squelch
    else:
        message = first
    low = (1 + 0.8 * message).to(torch.complex64) if mode == "am" else oscillate(
        (message * (deviation_hz / clock.rate_hz)).cumsum(0)
    )
    if gap_s:
        low = low * clock.gate(bursts(rng, stretch.duration_s, burst_s, gap_s, jitter=0.3), 50e-6)
    return Baseband(clock.rate_hz, [(0, 0.0, low)])


def _programme(clock, rng, stream, audio_hz, voiced=True):
    """Speech- or music-like: harmonics of a gliding pitch, and noise, within -1 to 1: float64 [count]."""
    time = clock.times()
    noise = stream.complex_normal(clock.count, clock.device).real.double()
    frequency = torch.fft.rfftfreq(clock.count, 1 / clock.rate_hz, dtype=torch.float64, device=clock.device)
    spectrum = torch.fft.rfft(noise) * (frequency < audio_hz) / (1 + (frequency / (0.3 * audio_hz)).square())
    noise = torch.fft.irfft(spectrum, clock.count)
    noise = noise / noise.square().mean().sqrt().clamp_min(1e-12)
    if not voiced:
        return (0.4 * noise).clamp(-1, 1)
    pitch_hz = rng.uniform(90, 260)
    harmonics = torch.arange(1, int(audio_hz / pitch_hz / 1.1) + 1, dtype=torch.float64, device=clock.device)[:32]
    levels = torch.from_numpy(rng.standard_normal(len(harmonics))).to(clock.device) / (1 + (harmonics * pitch_hz / 800) ** 2)
    glide = time * pitch_hz + 0.05 * pitch_hz / 5 * torch.sin(time * (2 * math.pi * 5))
    voice = torch.sin((glide[:, None] * harmonics + harmonics.square() / 7) * (2 * math.pi)) @ levels
    voice = voice / voice.square().mean().sqrt().clamp_min(1e-12)
    share = rng.uniform(0.2, 0.9)
    return (0.6 * (share * voice + (1 - share) * noise)).clamp(-1, 1)


def _packets(clock, rng, stream, times, bit_rate_hz, samples_a_bit, index, bt):
    """GFSK packets at `times`: [(first sample, complex64)], each with an alternating preamble of 16 bits and sin² edges."""
    lengths = [max(8, round(length_s * bit_rate_hz)) for _, length_s in times]
    bits = random_bits(stream, sum(lengths), clock.device)
    edge = 2 * samples_a_bit
    ramp = torch.sin((torch.arange(edge, device=clock.device) + 0.5) * (math.pi / 2 / edge)).square()
    packets, begin = [], 0
    for (start_s, _), length in zip(times, lengths, strict=True):
        frame = bits[begin : begin + length]
        frame[:16] = torch.arange(min(16, length), device=clock.device) & 1
        begin += length
        samples = gaussian_fsk(frame, samples_a_bit, index, bt) * complex(np.exp(2j * np.pi * rng.random()))
        samples[:edge] *= ramp
        samples[-edge:] *= ramp.flip(0)
        packets.append((clock.index(start_s), samples))
    return packets


def gfsk(stretch, rng, stream, *, bit_rate_hz, index, bt, burst_s, gap_s):
    """Packets of Gaussian frequency shift keying on one channel."""
    samples_a_bit = max(4, math.ceil(2.5 * (index + 1)))
    clock = stretch.clock(bit_rate_hz * samples_a_bit)
    margin_s = MARGIN / clock.rate_hz
    times = bursts(rng, stretch.duration_s, burst_s, gap_s, jitter=0.5)
    if not gap_s:
        times = [(-margin_s, stretch.duration_s + 2 * margin_s)]
    low = clock.zeros()
    for first, samples in _packets(clock, rng, stream, times, bit_rate_hz, samples_a_bit, index, bt):
        clock.write(low, first, samples)
    return Baseband(clock.rate_hz, [(0, 0.0, low)])


def hopping(stretch, rng, stream, *, channels, spacing_hz, dwell_s, burst_s, modulation, bit_rate_hz, index, bt):
    """A burst on another channel every dwell; `modulation` "gfsk" or "cw"."""
    samples_a_bit = max(4, math.ceil(2.5 * (index + 1)))
    clock = stretch.clock(bit_rate_hz * samples_a_bit)
    start = rng.uniform(-0.5 * burst_s, min(dwell_s - burst_s, stretch.duration_s - 0.5 * burst_s))
    times = [(time_s, burst_s) for time_s in np.arange(start, stretch.duration_s, dwell_s)]
    channel = rng.integers(channels)
    parts = []
    for first, samples in _packets(clock, rng, stream, times, bit_rate_hz, samples_a_bit, index, bt):
        if modulation == "cw":
            samples = samples.abs().to(torch.complex64)
        parts.append((first, (channel - (channels - 1) / 2) * spacing_hz, samples))
        channel = (channel + rng.integers(1, channels)) % channels
    return Baseband(clock.rate_hz, parts)


def qam(stretch, rng, stream, *, symbol_rate_hz, roll_off, bits_a_symbol, burst_s, gap_s):
    """A single carrier with root-raised-cosine pulses; 0 bits a symbol: many codes summed, which is Gaussian."""
    clock = stretch.clock(symbol_rate_hz)
    if bits_a_symbol:
        order = torch.full((clock.count,), bits_a_symbol, dtype=torch.uint8, device=clock.device)
        low = random_symbols(order, stream)
    else:
        low = stream.complex_normal(clock.count, clock.device)
    if gap_s:
        low = low * clock.gate(bursts(rng, stretch.duration_s, burst_s, gap_s, jitter=0.2), 0.0)
    return Baseband(clock.rate_hz, [(0, 0.0, low)], root_raised_cosine(roll_off), (1 + roll_off) / 2)


def chirp(stretch, rng, stream, *, waveform, **settings):
    """Linear frequency sweeps: `waveform` "lora", "fmcw" or "pulsed"."""
    return {"lora": _lora, "fmcw": _fmcw, "pulsed": _pulsed}[waveform](stretch, rng, stream, **settings)


LORA_PREAMBLE = 8  # up-chirps; then two symbols of the network, and two and a quarter down-chirps


def _lora(stretch, rng, stream, *, chirp_hz, spreading_factor, burst_s, gap_s):
    """Packets of chirps over `chirp_hz`, whose cyclic shift is the symbol (Vangelista, IEEE SPL 24 (12), 2017)."""
    clock = stretch.clock(2 * chirp_hz)
    values = 2**spreading_factor
    length = 2 * values  # samples of a symbol
    time = torch.arange(length, dtype=torch.float64, device=clock.device) / length
    count = round(burst_s * chirp_hz / values)
    low = clock.zeros()
    sync = 8 * rng.integers(1, min(16, values // 8), 2)
    for start_s, _ in bursts(rng, stretch.duration_s, burst_s, gap_s, jitter=0.8):
        data = rng.integers(values, size=max(1, count - LORA_PREAMBLE - 5))
        shifts = np.concatenate([np.zeros(LORA_PREAMBLE), sync, data]) / values
        sweeps = (torch.from_numpy(shifts).to(clock.device)[:, None] + time) % 1 - 0.5  # (symbols, length)
        down = (0.5 - time).repeat(3)[: length * 9 // 4]
        head = LORA_PREAMBLE + 2
        steps = torch.cat([sweeps[:head].flatten(), down, sweeps[head:].flatten()]) / 2  # cycles a sample
        clock.write(low, clock.index(start_s), oscillate(steps.cumsum(0)))
    return Baseband(clock.rate_hz, [(0, 0.0, low)])


def _fmcw(stretch, rng, stream, *, sweep_hz, sweep_s, shape, idle_s):
    """A radar's periodic sweeps, "up", "down" or "triangle", with a pause of `idle_s` after each."""
    clock = stretch.clock(1.25 * sweep_hz)
    length = round(sweep_s * clock.rate_hz)
    ramp = (torch.arange(length, dtype=torch.float64, device=clock.device) + 0.5) / length - 0.5
    ramp = {"up": ramp, "down": -ramp, "triangle": 0.5 - 2 * ramp.abs()}[shape]
    sweep = oscillate((ramp * (sweep_hz / clock.rate_hz)).cumsum(0))
    period = torch.cat([sweep, sweep.new_zeros(round(idle_s * clock.rate_hz))])
    start = rng.integers(len(period))
    low = period.repeat(clock.count // len(period) + 2)[start : start + clock.count]
    return Baseband(clock.rate_hz, [(0, 0.0, low)])


def _pulsed(stretch, rng, stream, *, sweep_hz, burst_s, gap_s, shape):
    """Chirped radar pulses, "up" or "down"."""
    clock = stretch.clock(1.4 * sweep_hz)
    length = max(8, round(burst_s * clock.rate_hz))
    ramp = (torch.arange(length, dtype=torch.float64, device=clock.device) + 0.5) / length - 0.5
    pulse = oscillate((ramp * (sweep_hz / clock.rate_hz * (1 if shape == "up" else -1))).cumsum(0))
    low = clock.zeros()
    for start_s, _ in bursts(rng, stretch.duration_s, burst_s, gap_s):
        clock.write(low, clock.index(start_s), pulse)
    return Baseband(clock.rate_hz, [(0, 0.0, low)])


GSM_BIT_RATE_HZ = 13e6 / 48  # 3GPP TS 45.002 5.2; a time slot is 156.25 bits, 148 of them sent, a frame 8 slots
_FCCH_FRAMES = (0, 10, 20, 30, 40)  # of 51: TS 45.002 table 3


def gsm(stretch, rng, stream, *, carriers, spacing_hz, slots, beacon):
    """GMSK carriers, each with a mask of 8 slots in `slots` (bit 0: slot 0); a `beacon`'s first never pauses, has FCCH."""
    bandwidth_hz = (carriers - 1) * spacing_hz + GSM_BIT_RATE_HZ
    quarter = max(1, math.ceil(1.3 * bandwidth_hz / (4 * GSM_BIT_RATE_HZ)))
    clock = stretch.clock(4 * quarter * GSM_BIT_RATE_HZ)
    slot = 625 * quarter  # samples
    frames = clock.count // (8 * slot) + 2
    bits = random_bits(stream, carriers * frames * 1250, clock.device).view(carriers, frames * 1250)
    on = (np.array(slots)[:, None] >> np.arange(8)) & 1  # (carriers, 8)
    on = torch.from_numpy(np.tile(on, frames).astype(np.float32)).to(clock.device)  # (carriers, 8 * frames)
    # the burst's 148 bits in the middle of the slot, between ramps of two bits (TS 45.005 annex B)
    bit = (torch.arange(slot, device=clock.device) + 0.5) / (4 * quarter)
    ramp = ((76 - (bit - 78.125).abs()) / 2).clamp(0, 1)
    gate = (on[:, :, None] * torch.sin(ramp * (math.pi / 2)).square()).flatten(1)  # (carriers, samples)
    if beacon:
        gate[0] = 1.0
        frame = rng.integers(51)
        for number in range(frames):
            if (frame + number) % 51 in _FCCH_FRAMES:
                bits[0, number * 1250 : number * 1250 + 156] = 1
    start = rng.integers(8 * slot)
    samples = (gaussian_fsk(bits, 4 * quarter, 0.5, 0.3) * gate)[:, start : start + clock.count]
    low = torch.zeros_like(samples[0])
    for number in range(carriers):
        offset = (number - (carriers - 1) / 2) * spacing_hz / clock.rate_hz
        level = 10 ** (-rng.uniform(0, 10 if number else 0.1) / 20)
        low += samples[number] * phasor(offset, len(low), clock.device) * level
    return Baseband(clock.rate_hz, [(0, 0.0, low)])


def noise_burst(stretch, rng, stream, *, noise_hz, edge, tilt_db, burst_s, gap_s, step_db):
    """Gaussian noise within `noise_hz`.

    edge: share of the band over which each of its two edges falls. tilt_db: power at the upper edge over that at the lower.
    step_db: where not 0, the level is another one every `burst_s`, within that range; there are no gaps then.
    """
    clock = stretch.clock(1.02 * noise_hz)
    half = 0.5 / 1.02
    low = stream.complex_normal(clock.count, clock.device)
    if step_db:
        starts = np.arange(-rng.random() * burst_s - MARGIN / clock.rate_hz, stretch.duration_s + burst_s, burst_s)
        levels = 10 ** (-rng.uniform(0, step_db, len(starts)) / 20)
        # each level reaches into the next one's time, which is written after it
        low *= clock.gate([(start, 1.1 * burst_s) for start in starts], 0.0, levels)
    elif gap_s:
        low *= clock.gate(bursts(rng, stretch.duration_s, burst_s, gap_s, jitter=0.5), 0.0)
    shape = flat_response(half * (1 - 2 * edge), half)

    def response(frequency):
        return shape(frequency) * 10 ** (tilt_db * frequency / (2 * half) / 20)

    grid = np.linspace(-0.5, 0.5, 4097)
    return Baseband(clock.rate_hz, [(0, 0.0, low)], response, 0.5, float((response(grid) ** 2).mean()))


def pulses(stretch, rng, stream, *, system, **settings):
    """Pulses without modulation inside: `system` "mode_s", "dme" or "radar"."""
    return {"mode_s": _mode_s, "dme": _dme, "radar": _radar}[system](stretch, rng, stream, **settings)


MODE_S_PREAMBLE_CHIPS = (0, 2, 7, 9)  # ICAO Annex 10 volume IV 3.1.2.2: pulses at 0, 1, 3.5 and 4.5 µs; the data from 8 µs


def _mode_s(stretch, rng, stream, *, messages_a_s):
    """Mode S replies: after the preamble 56 or 112 bits, each a pulse in the first (1) or second (0) half of its µs."""
    clock = stretch.clock(16e6)
    chip = 8
    low = clock.zeros()
    starts = rng.uniform(-60e-6, stretch.duration_s, rng.poisson(messages_a_s * stretch.duration_s))
    starts = np.append(starts, rng.uniform(0, max(stretch.duration_s - 120e-6, 0)))
    nearest = rng.integers(len(starts))  # the aircraft whose level is the strongest
    for number, start_s in enumerate(starts):
        bits = rng.integers(0, 2, rng.choice([56, 112]))
        chips = np.zeros(16 + 2 * len(bits))
        chips[list(MODE_S_PREAMBLE_CHIPS)] = 1
        chips[16 + 2 * np.arange(len(bits)) + (1 - bits)] = 1
        shape = np.convolve(chips.repeat(chip), [0.25, 0.5, 0.25])
        level = 10 ** (-(0 if number == nearest else rng.uniform(0, 8)) / 20) * np.exp(2j * np.pi * rng.random())
        clock.write(low, clock.index(start_s), torch.from_numpy((shape * level).astype(np.complex64)).to(clock.device))
    return Baseband(clock.rate_hz, [(0, 0.0, low)], flat_response(0.22, 0.28), 0.28)


def _dme(stretch, rng, stream, *, pairs_a_s, spacing_s):
    """Pairs of Gaussian pulses 3.5 µs wide at half amplitude, at random moments (ICAO Annex 10 volume I 3.5)."""
    clock = stretch.clock(2e6)
    time_s = np.arange(-8e-6, spacing_s + 8e-6, 1 / clock.rate_hz)
    pair = sum(np.exp2(-(((time_s - t) / 1.75e-6) ** 2)) for t in (0.0, spacing_s))
    count = 1 + rng.poisson(pairs_a_s * stretch.duration_s)
    low = clock.zeros()
    for start_s in rng.uniform(0, max(stretch.duration_s - 2 * spacing_s, 0), count):
        samples = pair * np.exp(2j * np.pi * rng.random())
        clock.write(low, clock.index(start_s), torch.from_numpy(samples.astype(np.complex64)).to(clock.device))
    return Baseband(clock.rate_hz, [(0, 0.0, low)])


def _radar(stretch, rng, stream, *, burst_s, gap_s, stagger):
    """Pulses of `burst_s` with sin² edges of a fifth of it; gaps of `gap_s` varied by the share `stagger`."""
    clock = stretch.clock(16 / burst_s)
    times = bursts(rng, stretch.duration_s, burst_s, gap_s, stagger)
    return Baseband(clock.rate_hz, [(0, 0.0, clock.gate(times, burst_s / 5).to(torch.complex64))])
