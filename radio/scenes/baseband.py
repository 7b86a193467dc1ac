"""Signals at a low sample rate. A waveform is a `Baseband`; `place` adds it to a band."""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from radio.scenes.ofdm import CHUNK_VALUES_ACCELERATOR, CHUNK_VALUES_CPU, phasor, random_symbols

# Low-rate samples beyond the stretch's ends and beyond a block of `place`: responses fade by 40 dB in them.
MARGIN = 64
_GUARD = 48
# Above this ratio of rates, a signal is interpolated in two steps: one step would need a very long FFT.
_MAX_RATIO, _FIRST_RATIO = 64, 32
_BAND_EDGE = 0.02  # width of the roll-off at the band's edges / sample rate


class Stretch(NamedTuple):
    """The IQ that a waveform is rendered for."""

    sample_rate_hz: float
    num_samples: int
    device: torch.device

    @property
    def duration_s(self):
        return self.num_samples / self.sample_rate_hz

    def clock(self, rate_hz):
        """The low rate near `rate_hz` (some ten ppm) that interpolates exactly to the sample rate."""
        return Clock(snapped(rate_hz, self.sample_rate_hz), self.duration_s, self.device)


class Clock(NamedTuple):
    """A low rate. Sample 0 lies `MARGIN` samples before the stretch."""

    rate_hz: float
    duration_s: float
    device: torch.device

    @property
    def count(self):
        return math.ceil(self.duration_s * self.rate_hz) + 2 * MARGIN

    def index(self, time_s):
        """Sample at `time_s` after the start of the stretch."""
        return MARGIN + round(time_s * self.rate_hz)

    def zeros(self):
        return torch.zeros(self.count, dtype=torch.complex64, device=self.device)

    def tensor(self, samples):
        """A numpy array as complex64 on the device."""
        return torch.from_numpy(samples.astype(np.complex64)).to(self.device)

    def times(self):
        """Seconds since the start of the stretch: float64 [count]."""
        return (torch.arange(self.count, dtype=torch.float64, device=self.device) - MARGIN) / self.rate_hz

    def write(self, low, first, samples):
        """Write samples into `low` from index `first`; cut those outside."""
        begin, end = max(0, first), min(len(low), first + len(samples))
        if begin < end:
            low[begin:end] = samples[begin - first : end - first]

    def points(self, shape, bits, stream):
        """Random QAM points of `bits` bits: complex64 of a shape."""
        return random_symbols(torch.full(shape, bits, dtype=torch.uint8, device=self.device), stream)

    def keyed(self, low, bursts, edge_s=0.0):
        """A signal that is on in its bursts; unchanged if the first has no end."""
        return low if math.isinf(bursts[0].length_s) else low * self.gate(bursts, edge_s)

    def gate(self, bursts, edge_s):
        """Amplitude over time of bursts, at their levels, with sin² edges inside: float32 [count].

        Where bursts overlap, the later one counts.
        """
        gate = torch.zeros(self.count)
        edge = round(edge_s * self.rate_hz)
        ramp = torch.sin((torch.arange(edge) + 0.5) * (math.pi / 2 / max(1, edge))).square()
        for burst in bursts:
            longest = self.count + edge - self.index(burst.start_s)
            window = torch.ones(max(2 * edge + 1, round(min(burst.length_s * self.rate_hz, longest))))
            window[:edge] = ramp
            window[len(window) - edge :] = ramp.flip(0)
            self.write(gate, self.index(burst.start_s), window * 10 ** (burst.level_db / 20))
        return gate.to(self.device)


def flat_response(flat, stop):
    """A response of 1 up to `flat` that falls to 0 at `stop` as a squared cosine, both / rate."""
    return lambda frequency: np.cos(np.pi / 2 * ((abs(frequency) - flat) / (stop - flat)).clip(0, 1)) ** 2


_WIDE = flat_response(0.4, 0.5)


class Baseband(NamedTuple):
    """A signal at its low rate.

    parts: [(index of the first sample, frequency from the signal's centre in Hz, complex64 [samples])].
    response: amplitude over frequency / rate up to `reach`, float64 array -> array. Pulse shaping may reach
        beyond 0.5, where the samples' spectrum repeats.
    shaping: mean power after the response / before it.
    """

    rate_hz: float
    parts: list
    response: Callable = _WIDE
    reach: float = 0.5
    shaping: float = 1.0


def mean_power(baseband, clock):
    """Mean power of a signal in the stretch over the samples in which it is on; 0 if it is never on.

    On: power above 1 % of the power-weighted mean power, which ignores silence. Ringing, and rare low samples
    of Gaussian signals, change the result by less than 0.1 dB.
    """
    power = torch.zeros(clock.count, device=clock.device)
    for first, _, samples in baseband.parts:
        begin, end = max(0, first), min(clock.count, first + len(samples))
        if begin < end:
            power[begin:end] += torch.view_as_real(samples[begin - first : end - first]).square().sum(dim=1)
    power = power[MARGIN : clock.count - MARGIN]
    on = power > 1e-2 * power.square().mean() / power.mean().clamp_min(1e-30)
    return baseband.shaping * float((power * on).sum(dtype=torch.float64) / on.sum().clamp_min(1))


# From the low rate into the band


@lru_cache(maxsize=1)
def _smooth(limit=8192):
    """FFT lengths up to `limit` without a prime factor above 31, ascending."""
    numbers = np.arange(1, limit + 1)
    rest = numbers.copy()
    for prime in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31):
        while (divisible := rest % prime == 0).any():
            rest[divisible] //= prime
    return numbers[rest == 1]


@lru_cache(maxsize=1024)
def _ratio(rate_hz, sample_rate_hz):
    """Smooth numbers (a, b): rate / sample rate is nearly a / b."""
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
    """Interpolate low-rate samples, shift their frequency, and add the part inside the band to IQ.

    Overlapping blocks: an FFT at the low rate, bins moved and weighted, an inverse FFT at the sample rate.

    Args:
        iq: complex64 [samples], changed in place.
        low: complex64 [low samples] on its device; silence surrounds them.
        first: position of `low` after the start of `iq`, in low samples; may be negative or a fraction.
        rate_hz: a result of `snapped`.
        offset_hz: new frequency of 0 Hz.
        gain: amplitude factor.
        response, reach: see `Baseband`.
    """
    if sample_rate_hz / rate_hz > _MAX_RATIO:
        # The response's tails lie in a margin at the intermediate rate.
        between_hz = sample_rate_hz / _FIRST_RATIO
        margin = math.ceil(_GUARD * between_hz / rate_hz)
        start = max(math.floor(first * between_hz / rate_hz) - margin, -MARGIN)
        end = math.ceil((first + len(low)) * between_hz / rate_hz) + margin
        end = min(end, len(iq) // _FIRST_RATIO + MARGIN)
        if end <= start:
            return
        between = torch.zeros(end - start, dtype=torch.complex64, device=iq.device)
        # position of `low` after the first sample of `between`
        shift = first - start * rate_hz / between_hz
        _interpolate(between, low, shift, rate_hz, 0.0, between_hz, gain, response, reach)
        place(iq, between, start, between_hz, offset_hz, sample_rate_hz, 1.0)
    else:
        _interpolate(iq, low, first, rate_hz, offset_hz, sample_rate_hz, gain, response, reach)


def _interpolate(iq, low, first, rate_hz, offset_hz, sample_rate_hz, gain, response, reach):
    a, b = _ratio(rate_hz, sample_rate_hz)
    guard = math.ceil(_GUARD * max(1 / a, 1.5 / b))  # enough for the band's edges too
    smooth = _smooth()
    blocks = int(smooth[np.searchsorted(smooth, max(10 * guard, 512 / a))])
    size, out_size = a * blocks, b * blocks
    hop, out_hop = a * (blocks - 2 * guard), b * (blocks - 2 * guard)
    whole = math.floor(first)

    # weights of the bins inside the band, after a shift by whole bins
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
        at = row * hop - a * guard - whole  # index in `low`
        until = at + (count - 1) * hop + size
        piece = low[max(0, at) : max(0, until)]
        if iq.device.type == "cpu" and not piece.any():
            continue
        if at < 0 or until > len(low):
            silence = (max(0, -at), max(0, until - max(len(low), at)))
            piece = torch.nn.functional.pad(piece, silence)[: until - at]

        # phase of the shift at each row's first output sample: offset_hz × row × out_hop / sample_rate_hz
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


def oscillate(cycles):
    """exp(j 2π cycles), float64 -> complex64."""
    angle = ((cycles % 1.0) * (2 * math.pi)).float()
    return torch.polar(torch.ones_like(angle), angle)


def gaussian_fsk(bits, samples_a_bit, index, bt):
    """Gaussian frequency shift keying: uint8 [..., bits] -> complex64 [..., bits × samples_a_bit].

    index: modulation index, 2 × deviation / bit rate. bt: bandwidth-time product of the Gaussian filter,
    at least 0.3: a bit reaches over its neighbours only.
    """
    time = (np.arange(3 * samples_a_bit) + 0.5) / samples_a_bit - 1.5
    scale = math.pi * bt * math.sqrt(2 / math.log(2))
    erf = np.array([math.erf(scale * (t + 0.5)) - math.erf(scale * (t - 0.5)) for t in time]) / 2
    pulse = erf.reshape(3, samples_a_bit)  # shares of the next, this and the previous bit
    signs = 1.0 - 2.0 * ((np.arange(8)[:, None] >> np.arange(3)) & 1)  # (8, 3): next, this, previous
    table = -torch.from_numpy(signs @ pulse * (index / 2 / samples_a_bit)).to(bits.device)  # cycles a sample
    bits = bits.long()
    following = torch.cat([bits[..., 1:], bits[..., -1:]], dim=-1)
    previous = torch.cat([bits[..., :1], bits[..., :-1]], dim=-1)
    steps = table[following + 2 * bits + 4 * previous].flatten(-2)
    return oscillate(steps.cumsum(-1))
