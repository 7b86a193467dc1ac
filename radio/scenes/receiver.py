"""A receiver: the effects of a front end and its converter on complex baseband."""

import cmath
import math
from dataclasses import astuple, dataclass

import torch
from torch.nn.functional import pad

from radio.scenes.expect import expect

OFF_DB = -200.0  # the power of an effect that is off

_NOISE, _FLOOR, _PHASE = range(3)  # purposes of the streams

# The channel filter. Its window blurs responses by ±0.0015 of the sample rate and limits stopbands to 80 dB.
_REACH = 1024  # taps to either side of the centre
_BLOCK = 2**14  # samples of an overlap-save FFT
_KAISER_BETA = 9.0

# Samples processed at once, a multiple of 4: they fit in a CPU's cache, or need few launches on an
# accelerator.
_CHUNK_CPU = 2**18
_CHUNK_ACCELERATOR = 2**22

_PHASE_POINTS = 2**17  # most points of a stream's phase noise, joined by straight lines


@dataclass(frozen=True)
class Receiver:
    """The effects of a receiver, in order. `Receiver()` only adds white noise of unit power per sample.

    Attributes:
        noise: add white thermal noise of unit power.
        passband: edges of the channel filter in units of the sample rate; ±0.5 for no edge.
        transition: width of the roll-off outside each edge, at least 0.003 of the sample rate, raised cosine
            in dB.
        stopband_db: attenuation beyond the roll-off, at most 80 dB; 0 for no filter.
        tilt_db: slope of the filter's gain from the lower to the upper end of the band, linear in dB.
        ripple_db, ripple_cycles, ripple_phase_deg: cosine in the filter's gain: peak to peak, periods in the
            band.
        floor_db: white noise after the filter, relative to the thermal noise.
        phase_noise_dbc: variance of the phase in rad², the power that moves from a carrier to both of its
            sides.
        phase_noise_hz: half-width of the Lorentzian spectrum, the bandwidth of the loop.
        iq_gain_db, iq_phase_deg: gain of Q relative to I, and error of the right angle between the two.
        dc_db, dc_phase_deg: a constant, relative to the thermal noise per sample.
        agc_steps: ((time_s, gain_db), ...), times ascending. Each gain holds until the next; 0 dB before the
            first.
        bits: of the converter, 2 to 16; 0 for no converter.
        loading_db: rms of I and of Q at the converter, relative to full scale; samples beyond full scale
            clip.
    """

    noise: bool = True
    passband: tuple = (-0.5, 0.5)
    transition: tuple = (0.0, 0.0)
    stopband_db: float = 0.0
    tilt_db: float = 0.0
    ripple_db: float = 0.0
    ripple_cycles: float = 3.0
    ripple_phase_deg: float = 0.0
    floor_db: float = OFF_DB
    phase_noise_dbc: float = OFF_DB
    phase_noise_hz: float = 1e3
    iq_gain_db: float = 0.0
    iq_phase_deg: float = 0.0
    dc_db: float = OFF_DB
    dc_phase_deg: float = 0.0
    agc_steps: tuple = ()
    bits: int = 0
    loading_db: float = -12.0

    def __post_init__(self):
        expect(all(map(math.isfinite, _flat(astuple(self)))), f"finite numbers: {self}")
        low, high = self.passband
        expect(-0.5 <= low < high <= 0.5, f"passband (low, high) within ±0.5: {self.passband=}")
        expect(0 <= self.stopband_db <= 80, f"stopband_db 0 to 80: {self.stopband_db=}")
        edges = zip(self.passband, self.transition, strict=True)
        is_narrow = any(abs(edge) < 0.5 and width < 0.003 for edge, width in edges)
        expect(not (self.stopband_db and is_narrow), f"transition of 0.003 or more: {self.transition=}")
        expect(self.ripple_db >= 0, f"ripple_db >= 0: {self.ripple_db=}")
        expect(self.phase_noise_hz > 0, f"phase_noise_hz > 0: {self.phase_noise_hz=}")
        times = [time for time, *rest in self.agc_steps if len(rest) == 1 and time >= 0]
        is_known = len(times) == len(self.agc_steps) and times == sorted(times)
        expect(is_known, f"agc_steps of (time_s, gain_db), ascending from 0: {self.agc_steps=}")
        expect(self.bits in (0, *range(2, 17)), f"bits 0 or 2 to 16: {self.bits=}")


def _flat(values):
    for value in values:
        yield from _flat(value) if isinstance(value, tuple) else (value,)


def receive(iq, receiver, sample_rate_hz, stream):
    """Pass `iq`, contiguous complex64 [samples] on any device, through a `Receiver` in place.

    Returns:
        `iq`, relative to thermal noise of unit power per sample. With a converter, relative to full scale:
        the codes of `bits` bits over 2^(bits - 1), in [-1, 1).
    """
    is_stream = iq.dim() == 1 and iq.dtype == torch.complex64 and iq.is_contiguous()
    expect(is_stream, f"contiguous complex64 [samples]: {iq.dtype} {list(iq.shape)}")
    if not len(iq):
        return iq

    # thermal noise and channel filter
    if receiver.noise:
        _add_noise(iq, stream.child(_NOISE), 1.0, _REACH)  # the first _REACH samples precede the stream
    if receiver.tilt_db or receiver.ripple_db or (receiver.stopband_db and receiver.passband != (-0.5, 0.5)):
        _filter(iq, receiver, stream.child(_NOISE))

    # effects after the filter
    if receiver.floor_db > OFF_DB:
        _add_noise(iq, stream.child(_FLOOR), 10 ** (receiver.floor_db / 20), 0)
    if receiver.phase_noise_dbc > OFF_DB:
        _turn(iq, receiver, sample_rate_hz, stream.child(_PHASE))
    if receiver.iq_gain_db or receiver.iq_phase_deg:
        # y = I + j g (Q cos φ - I sin φ)
        gain = cmath.rect(10 ** (receiver.iq_gain_db / 20), math.radians(receiver.iq_phase_deg))
        for part in iq.split(_chunk(iq)):
            in_phase, quadrature = torch.view_as_real(part).unbind(dim=1)
            quadrature.mul_(gain.real).sub_(in_phase, alpha=gain.imag)
    if receiver.dc_db > OFF_DB:
        iq += cmath.rect(10 ** (receiver.dc_db / 20), math.radians(receiver.dc_phase_deg))

    # gain steps
    starts = [math.ceil(time_s * sample_rate_hz - 1e-6) for time_s, _ in receiver.agc_steps]
    for start, stop, (_, gain_db) in zip(starts, [*starts, None][1:], receiver.agc_steps, strict=True):
        iq[start:stop] *= 10 ** (gain_db / 20)

    if receiver.bits:
        _quantise(iq, receiver)
    return iq


def _chunk(iq):
    return _CHUNK_CPU if iq.device.type == "cpu" else _CHUNK_ACCELERATOR


def _add_noise(iq, stream, amplitude, start):
    """Add white noise, samples `start` on of a stream; `start` is a multiple of 4."""
    for part in iq.split(_chunk(iq)):
        part.add_(stream.complex_normal(len(part), iq.device, start), alpha=amplitude)
        start += len(part)


def _filter(iq, receiver, noise):
    """Filter a stream in place by overlap-save, without delay. `noise` goes on beyond both ends."""
    before = after = iq.new_zeros(_REACH)
    if receiver.noise:
        before = noise.complex_normal(_REACH, iq.device)
        after = noise.complex_normal(_REACH, iq.device, _REACH + 4 * math.ceil(len(iq) / 4))

    response = _response(receiver).to(iq.device)
    new = _BLOCK - 2 * _REACH  # samples a block
    chunk = new * max(1, _chunk(iq) // new)
    for first in range(0, len(iq), chunk):
        last = min(first + chunk, len(iq))
        blocks = math.ceil((last - first) / new)
        ahead = torch.cat([iq[last : last + _REACH], after])[:_REACH]
        source = pad(torch.cat([before, iq[first:last], ahead]), (0, blocks * new - (last - first)))
        before = source[last - first : last - first + _REACH].clone()
        spectrum = torch.fft.fft(source.unfold(0, _BLOCK, new)).mul_(response)
        iq[first:last] = torch.fft.ifft(spectrum)[:, 2 * _REACH :].flatten()[: last - first]


def _response(receiver):
    """Frequency response of the channel filter, with a delay of _REACH samples: complex64 [_BLOCK]."""
    gain_db = _gain_db(receiver, torch.fft.fftfreq(_BLOCK, dtype=torch.float64))
    taps = torch.fft.ifft(10 ** (gain_db / 20)).roll(_REACH)
    window = torch.kaiser_window(2 * _REACH + 1, periodic=False, beta=_KAISER_BETA, dtype=torch.float64)
    return torch.fft.fft(taps[: 2 * _REACH + 1] * window, _BLOCK).to(torch.complex64)


def _gain_db(receiver, frequency):
    """Gain of the channel filter at frequencies / sample rate, float64 of any shape."""
    gain_db = receiver.tilt_db * frequency
    turns = receiver.ripple_cycles * frequency + receiver.ripple_phase_deg / 360
    gain_db += receiver.ripple_db / 2 * torch.cos(2 * math.pi * turns)
    for sign, edge, width in zip((-1, 1), receiver.passband, receiver.transition, strict=True):
        if abs(edge) < 0.5 and receiver.stopband_db:
            rolled = ((frequency - edge) * (sign / width)).clamp(0, 1)
            gain_db -= receiver.stopband_db * torch.sin(math.pi / 2 * rolled).square()
    return gain_db


def loss_db(receiver, frequency, later_noise=0.0):
    """What noise behind the channel filter takes from the SNR of a signal at a frequency / sample rate.

    Negative without thermal noise: the SNR is relative to it.

    later_noise: power of noise behind the floor, over the thermal noise.
    """
    later_noise += 10 ** (receiver.floor_db / 10)
    gain_db = 0.0
    if receiver.tilt_db or receiver.ripple_db or receiver.stopband_db:
        gain_db = float(_gain_db(receiver, torch.tensor(frequency, dtype=torch.float64)))
    return 10 * math.log10(receiver.noise + later_noise * 10 ** (-gain_db / 10))


def loading_db(codes, bits):
    """`Receiver.loading_db` that makes the rms of I and of Q a number of codes."""
    return 20 * math.log10(codes / 2 ** (bits - 1))


def _turn(iq, receiver, sample_rate_hz, stream):
    """Add phase noise: Gaussian of autocorrelation variance × exp(-2π f |τ|), linear between its points."""
    step = math.ceil(len(iq) / _PHASE_POINTS)
    points = math.ceil(len(iq) / step) + 1
    # correlation from point to point
    kept = math.exp(-2 * math.pi * receiver.phase_noise_hz * step / sample_rate_hz)

    # straight lines have less variance than their ends, on average over their samples
    lost = (1 - 1 / step**2) / 3 * (1 - kept)
    rms = math.sqrt(10 ** (receiver.phase_noise_dbc / 10) / (1 - lost))

    # x[n] = kept × x[n - 1] + w[n] is a filter 1 / (1 - kept z) = (1 + kept z)(1 + kept² z²)(1 + kept⁴ z⁴)…
    walk = torch.view_as_real(stream.complex_normal((points + 1) // 2, iq.device)).flatten()[:points]
    walk = walk * (math.sqrt(2) * rms)
    walk[1:] *= math.sqrt(-math.expm1(2 * math.log(kept))) if kept else 1.0
    lag, weight = 1, kept
    while lag < points and weight > 1e-9:
        walk = torch.cat([walk[:lag], torch.add(walk[lag:], walk[:-lag], alpha=weight)])
        lag, weight = 2 * lag, weight**2

    share = torch.arange(step, device=iq.device) / step
    rows = max(1, _chunk(iq) // step)
    for first in range(0, points - 1, rows):
        ends = walk[first : first + rows + 1]
        phase = torch.addcmul(ends[:-1, None], ends.diff()[:, None], share).flatten()
        part = iq[first * step : (first + rows) * step]
        part.mul_(torch.polar(torch.ones_like(phase), phase)[: len(part)])


def _quantise(iq, receiver):
    """Scale a stream to the converter's loading, round to codes and clip: codes over 2^(bits - 1)."""
    parts = torch.view_as_real(iq).split(_chunk(iq))
    energy = sum(float(torch.linalg.vector_norm(part)) ** 2 for part in parts)
    rms = math.sqrt(energy / (2 * len(iq)))
    full_scale = 2.0 ** (receiver.bits - 1)
    scale = 10 ** (receiver.loading_db / 20) / rms if rms else 1.0
    for part in parts:
        part.mul_(scale * full_scale).round_().clamp_(-full_scale, full_scale - 1).mul_(1 / full_scale)
