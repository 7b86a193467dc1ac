"""Signals at a low rate of their own: what they are made of, and the way from there into a band.

A waveform is a `Baseband`; `place` interpolates it to the sample rate, shifts it to its frequency and adds it.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from radio.scenes.ofdm import phasor

# Samples of the low rate beyond both ends of the stretch, and what a block of `place` computes beyond its own on each side:
# what the responses below take to fade by 40 dB.
MARGIN = 64
_GUARD = 48
# Above this ratio of rates a signal is interpolated twice: an FFT of a moderate length serves neither one.
_MAX_RATIO, _FIRST_RATIO = 64, 32
_BAND_EDGE = 0.02  # of the sample rate: what lies beyond ±sample_rate / 2 is cut over an edge this wide

# Values of a block of output computed at once.
CHUNK_VALUES_CPU = 2**17
CHUNK_VALUES_ACCELERATOR = 2**24


class Stretch(NamedTuple):
    """The IQ that a waveform is rendered for."""

    sample_rate_hz: float
    num_samples: int
    device: torch.device

    @property
    def duration_s(self):
        return self.num_samples / self.sample_rate_hz

    def clock(self, rate_hz):
        """The low rate nearest to `rate_hz` that interpolates exactly to the sample rate (within some ten ppm)."""
        return Clock(snapped(rate_hz, self.sample_rate_hz), self.duration_s, self.device)


class Clock(NamedTuple):
    """A low rate, whose sample 0 lies `MARGIN` samples before the stretch."""

    rate_hz: float
    duration_s: float
    device: torch.device

    @property
    def count(self):
        return math.ceil(self.duration_s * self.rate_hz) + 2 * MARGIN

    def index(self, time_s):
        """Sample at `time_s` after the start of the stretch."""
        return MARGIN + round(time_s * self.rate_hz)

    def zeros(self, dtype=torch.complex64):
        return torch.zeros(self.count, dtype=dtype, device=self.device)

    def times(self):
        """Seconds since the start of the stretch: float64 [count]."""
        return (torch.arange(self.count, dtype=torch.float64, device=self.device) - MARGIN) / self.rate_hz

    def write(self, low, first, samples):
        """Put samples into `low` from index `first` on, as far as they lie inside."""
        begin, end = max(0, first), min(len(low), first + len(samples))
        if begin < end:
            low[begin:end] = samples[begin - first : end - first]

    def gate(self, bursts, edge_s, levels=None):
        """Amplitude of a signal that is on during `bursts`, [(start s, length s)], sin² edges included: float32 [count]."""
        gate = torch.zeros(self.count)
        edge = round(edge_s * self.rate_hz)
        ramp = torch.sin((torch.arange(edge) + 0.5) * (math.pi / 2 / max(1, edge))).square()
        for number, (start_s, length_s) in enumerate(bursts):
            window = torch.ones(max(2 * edge + 1, round(length_s * self.rate_hz)))
            window[:edge] = ramp
            window[len(window) - edge :] = ramp.flip(0)
            self.write(gate, self.index(start_s), window * (levels[number] if levels is not None else 1.0))
        return gate.to(self.device)


def flat_response(flat, stop):
    """A response that is 1 up to `flat` of the rate and falls to 0 at `stop` as a squared cosine."""
    return lambda frequency: np.cos(np.pi / 2 * ((abs(frequency) - flat) / (stop - flat)).clip(0, 1)) ** 2


_WIDE = flat_response(0.4, 0.5)


class Baseband(NamedTuple):
    """A signal at its low rate.

    parts: (index of the first sample, frequency from the signal's centre in Hz, complex64 [samples]) each.
    response: amplitude at a frequency in units of the rate (float64 array to array), up to `reach` of them; it may reach
        beyond half the rate, where the spectrum of the samples repeats (pulse shaping).
    shaping: mean power after the response by that before it.
    """

    rate_hz: float
    parts: list
    response: Callable = _WIDE
    reach: float = 0.5
    shaping: float = 1.0


def mean_power(baseband, clock):
    """Mean power of a signal in the stretch over the samples in which it sends, 0 where it never does.

    It sends in a sample whose power is over a hundredth of the mean of all powers, each weighted by itself: silence has no
    part in that mean, and neither ringing nor a Gaussian signal's rare low samples change the result by 0.1 dB.
    """
    power = torch.zeros(clock.count, device=clock.device)
    for first, _, samples in baseband.parts:
        begin, end = max(0, first), min(clock.count, first + len(samples))
        if begin < end:
            power[begin:end] += torch.view_as_real(samples[begin - first : end - first]).square().sum(dim=1)
    power = power[MARGIN : clock.count - MARGIN]
    sends = power > 1e-2 * power.square().mean() / power.mean().clamp_min(1e-30)
    return baseband.shaping * float((power * sends).sum(dtype=torch.float64) / sends.sum().clamp_min(1))


# From the low rate into the band


@lru_cache(maxsize=1)
def _smooth(limit=8192):
    """Numbers up to `limit` whose FFT is fast, without a prime factor above 31, ascending."""
    numbers = np.arange(1, limit + 1)
    rest = numbers.copy()
    for prime in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31):
        while (divisible := rest % prime == 0).any():
            rest[divisible] //= prime
    return numbers[rest == 1]


@lru_cache(maxsize=1024)
def _ratio(rate_hz, sample_rate_hz):
    """Smooth numbers (a, b) with rate / sample rate close to a / b."""
    ratio = sample_rate_hz / rate_hz
    smooth = _smooth()
    low = smooth[smooth <= max(1, min(2048, 6000 / ratio))]
    position = np.searchsorted(smooth, low * ratio).clip(1, len(smooth) - 1)
    high = smooth[position[:, None] - [1, 0]]  # (numbers, 2)
    error = abs(high / (low * ratio)[:, None] - 1) + 1e-8 * low[:, None]
    row, column = np.unravel_index(error.argmin(), error.shape)
    return int(low[row]), int(high[row, column])


def snapped(rate_hz, sample_rate_hz):
    """The rate near `rate_hz` that `place` interpolates to the sample rate exactly."""
    if sample_rate_hz / rate_hz > _MAX_RATIO:
        return snapped(rate_hz, sample_rate_hz / _FIRST_RATIO)
    low, high = _ratio(rate_hz, sample_rate_hz)
    return sample_rate_hz * low / high


def place(iq, low, first, rate_hz, offset_hz, sample_rate_hz, gain, response=_WIDE, reach=0.5):
    """Add samples of a low rate to a stretch of IQ, interpolated, shifted in frequency and cut at the band's edges.

    Overlapping blocks: an FFT at the low rate, its bins moved and weighted, an inverse FFT at the sample rate.

    Args:
        iq: complex64 [samples], added to in place.
        low: complex64 [low samples] on its device; before and behind them lies silence.
        first: time of the first of them, in samples of the low rate, from the start of `iq`; may be negative.
        rate_hz: as `snapped` gives it.
        offset_hz: frequency that 0 Hz of `low` moves to.
        gain: amplitude factor.
        response, reach: see `Baseband`.
    """
    if sample_rate_hz / rate_hz > _MAX_RATIO:
        # A silent margin of the intermediate rate around the samples takes the response's tails.
        between_hz = sample_rate_hz / _FIRST_RATIO
        margin = math.ceil(_GUARD * between_hz / rate_hz)
        start = math.floor(first * between_hz / rate_hz) - margin
        start = max(start, -MARGIN)
        end = min(math.ceil((first + len(low)) * between_hz / rate_hz) + margin, len(iq) // _FIRST_RATIO + MARGIN)
        if end <= start:
            return
        between = torch.zeros(end - start, dtype=torch.complex64, device=iq.device)
        # time of `low` as seen from the first sample of `between`: a fraction of a low sample is a phase per frequency
        shift = first - start * rate_hz / between_hz
        _interpolate(between, low, shift, rate_hz, 0.0, between_hz, gain, response, reach)
        place(iq, between, start, between_hz, offset_hz, sample_rate_hz, 1.0)
    else:
        _interpolate(iq, low, first, rate_hz, offset_hz, sample_rate_hz, gain, response, reach)


def _interpolate(iq, low, first, rate_hz, offset_hz, sample_rate_hz, gain, response, reach):
    a, b = _ratio(rate_hz, sample_rate_hz)
    guard = math.ceil(_GUARD * max(1 / a, 1.5 / b))  # the band's edges take as many samples at the sample rate
    smooth = _smooth()
    blocks = int(smooth[np.searchsorted(smooth, max(10 * guard, 512 / a))])
    size, out_size = a * blocks, b * blocks
    hop, out_hop = a * (blocks - 2 * guard), b * (blocks - 2 * guard)
    whole = math.floor(first)

    # weights of the bins that are sent, after the shift by a whole number of them
    moved = round(offset_hz / sample_rate_hz * out_size)
    bins = np.arange(-math.floor(reach * size), math.floor(reach * size) + 1)
    bins = bins[abs(bins + moved) < out_size / 2]
    if not len(bins):
        return
    weights = response(bins / size)
    edge = (0.5 - abs(bins + moved) / out_size) / _BAND_EDGE
    weights = weights * np.sin(np.pi / 2 * edge.clip(0, 1)) ** 2 * (gain / size)
    weights = weights * np.exp(-2j * np.pi * bins / size * (first - whole))
    weights = torch.from_numpy(weights.astype(np.complex64)).to(iq.device)
    source = torch.from_numpy(bins % size).to(iq.device)
    begins_at = int(bins[0] + moved) % out_size
    straight = min(len(bins), out_size - begins_at)  # the bins before the spectrum wraps around

    rest = offset_hz / rate_hz - moved / out_size * sample_rate_hz / rate_hz  # cycles a low sample
    mixer = phasor(rest, size, iq.device, first=-a * guard)
    budget = CHUNK_VALUES_CPU if iq.device.type == "cpu" else CHUNK_VALUES_ACCELERATOR
    rows = max(1, budget // out_size)
    begin = max(0, (whole - a * guard) // hop)
    end = min(-(-len(iq) // out_hop), (whole + len(low) + a * guard) // hop + 1)
    for row in range(begin, end, rows):
        count = min(rows, end - row)
        at = row * hop - a * guard - whole  # of the first sample, in `low`
        until = at + (count - 1) * hop + size
        piece = low[max(0, at) : max(0, until)]
        if iq.device.type == "cpu" and not piece.any():
            continue
        if at < 0 or until > len(low):
            piece = torch.nn.functional.pad(piece, (max(0, -at), max(0, until - max(len(low), at))))[: until - at]

        # the shift's phase at the first sample that the row is for: offset_hz × row × out_hop / sample_rate_hz
        cycles = (offset_hz / sample_rate_hz * out_hop) * torch.arange(row, row + count, dtype=torch.float64)
        turn = (2 * math.pi) * ((cycles - moved * b * guard / out_size) % 1.0)
        turn = torch.polar(torch.ones_like(turn), turn).to(torch.complex64).to(iq.device)
        spectrum = torch.fft.fft(piece.unfold(0, size, hop) * mixer)  # (count, size)
        sent = spectrum[:, source] * weights * turn[:, None]
        out = torch.zeros(count, out_size, dtype=torch.complex64, device=iq.device)
        out[:, begins_at : begins_at + straight] = sent[:, :straight]
        out[:, : len(bins) - straight] = sent[:, straight:]
        samples = torch.fft.ifft(out, norm="forward")[:, b * guard : b * guard + out_hop].flatten()
        target = iq[row * out_hop : (row + count) * out_hop]
        target += samples[: len(target)]


# Building blocks


def bursts(rng, duration_s, burst_s, gap_s, jitter=0.0):
    """When a signal is on: [(start s, length s)], one of them at least half inside; all the time where `gap_s` is 0.

    jitter: a gap is uniform within this share of `gap_s` around it.
    """
    if not gap_s:
        return [(-1.0, duration_s + 2.0)]
    start = rng.uniform(-0.5 * burst_s, min(gap_s, max(duration_s - burst_s / 2, 0.0)))
    times = []
    while start < duration_s:
        times.append((start, burst_s))
        start += burst_s + gap_s * (1 + jitter * rng.uniform(-1, 1))
    return times


def oscillate(cycles):
    """exp(j 2π cycles) of float64 cycles on any device: complex64."""
    angle = ((cycles % 1.0) * (2 * math.pi)).float()
    return torch.polar(torch.ones_like(angle), angle)


def gaussian_fsk(bits, samples_a_bit, index, bt):
    """Gaussian frequency shift keying of phase 0 at its start: uint8 [..., bits] -> complex64 [..., bits × samples_a_bit].

    index: modulation index, twice the deviation by the bit rate. bt: bandwidth-time product of the Gaussian filter; a bit
    reaches over its neighbours only, which holds for 0.3 and more.
    """
    time = (np.arange(3 * samples_a_bit) + 0.5) / samples_a_bit - 1.5
    scale = math.pi * bt * math.sqrt(2 / math.log(2))
    erf = np.array([math.erf(scale * (t + 0.5)) - math.erf(scale * (t - 0.5)) for t in time]) / 2
    pulse = erf.reshape(3, samples_a_bit)  # what the next, this and the previous bit give to this one's time
    signs = 1.0 - 2.0 * ((np.arange(8)[:, None] >> np.arange(3)) & 1)  # (8, 3): next, this, previous
    table = -torch.from_numpy(signs @ pulse * (index / 2 / samples_a_bit)).to(bits.device)  # cycles a sample
    bits = bits.long()
    following = torch.cat([bits[..., 1:], bits[..., -1:]], dim=-1)
    previous = torch.cat([bits[..., :1], bits[..., :-1]], dim=-1)
    steps = table[following + 2 * bits + 4 * previous].flatten(-2)
    return oscillate(steps.cumsum(-1))


def root_raised_cosine(roll_off):
    """Amplitude response of a root-raised-cosine filter; frequencies in units of the symbol rate."""
    return lambda frequency: np.cos(np.pi / 2 * ((abs(frequency) - (1 - roll_off) / 2) / roll_off).clip(0, 1))


def random_bits(stream, count, device):
    return stream.octets(count, device) & 1
