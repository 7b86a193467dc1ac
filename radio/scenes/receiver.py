"""A receiver: what a front end and its converter do to complex baseband in which thermal noise has unit power per sample."""

import cmath
import math
from dataclasses import astuple, dataclass

import torch

OFF_DB = -200.0  # the power of what a receiver does not have

# Purposes of the streams. Noise sample n of the filter's input is number n + _REACH, so that there is some before the first.
_NOISE, _FLOOR, _PHASE = range(3)

# The channel filter: taps to either side of the centre, the FFT of its overlap-save blocks, and the window of its taps,
# with which responses blur by ±0.0015 of the sample rate and stopbands reach 80 dB.
_REACH = 1024
_BLOCK = 2**14
_KAISER_BETA = 9.0
_LEAST_TRANSITION = 0.003
_MOST_STOPBAND_DB = 80.0

# Samples worked on at once, a multiple of 4: what stays in a CPU's cache, and few launches on an accelerator.
_CHUNK_CPU = 2**18
_CHUNK_ACCELERATOR = 2**22

_PHASE_POINTS = 2**17  # of the phase noise of a stream, at most; straight lines between them


@dataclass(frozen=True)
class Receiver:
    """What a receiver does, in this order. `Receiver()` adds white noise of unit power per sample and nothing else.

    Attributes:
        noise: thermal noise, white, of unit power.
        passband: edges of the channel filter in units of the sample rate, -0.5 to 0.5; one at ±0.5 is none.
        transition: width of the roll-off outside each edge, at least 0.003 of the sample rate, raised cosine in dB.
        stopband_db: attenuation beyond it, at most 80 dB; 0 for no filter.
        tilt_db: the filter's gain at the upper end of the band less that at the lower, straight in dB, 0 at the centre.
        ripple_db, ripple_cycles, ripple_phase_deg: a cosine in the filter's gain, peak to peak, periods in the sample rate.
        floor_db: white noise behind the filter, relative to the thermal noise.
        phase_noise_dbc: power that phase noise moves from a carrier to both sides of it, the phase's variance in rad².
        phase_noise_hz: half-width of its Lorentzian spectrum, the bandwidth of the loop.
        iq_gain_db, iq_phase_deg: gain of Q relative to I, and by how much the two axes miss the right angle.
        dc_db, dc_phase_deg: a constant, its power relative to the thermal noise per sample.
        agc_steps: ((time_s, gain_db), ...), times ascending: the gain from then on until the next; before the first, 0 dB.
        bits: of the converter, 2 to 16; 0 for none.
        loading_db: rms of each of I and Q, over the stream, to which the converter's input is scaled, relative to full
            scale. What is beyond full scale clips. Of no effect without a converter.
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
        if not all(math.isfinite(number) for number in _flat(astuple(self))):
            raise ValueError(f"expected finite numbers: {self}")
        low, high = self.passband
        if not -0.5 <= low < high <= 0.5:
            raise ValueError(f"expected passband edges -0.5 to 0.5, the lower first: {self.passband=}")
        if not 0 <= self.stopband_db <= _MOST_STOPBAND_DB:
            raise ValueError(f"expected stopband_db 0 to {_MOST_STOPBAND_DB:g}: {self.stopband_db=}")
        edges = zip(self.passband, self.transition, strict=True)
        if self.stopband_db and any(abs(edge) < 0.5 and width < _LEAST_TRANSITION for edge, width in edges):
            raise ValueError(f"expected transition of at least {_LEAST_TRANSITION} at edges in the band: {self.transition=}")
        if self.ripple_db < 0:
            raise ValueError(f"expected ripple_db of at least 0: {self.ripple_db=}")
        if not self.phase_noise_hz > 0:
            raise ValueError(f"expected phase_noise_hz > 0: {self.phase_noise_hz=}")
        if any(len(step) != 2 for step in self.agc_steps):
            raise ValueError(f"expected agc_steps of (time_s, gain_db): {self.agc_steps=}")
        times = [time for time, _ in self.agc_steps]
        if times != sorted(times) or any(time < 0 for time in times):
            raise ValueError(f"expected agc_steps in the order of their times, from 0: {self.agc_steps=}")
        if self.bits not in (0, *range(2, 17)):
            raise ValueError(f"expected bits 0 or 2 to 16: {self.bits=}")

    @property
    def filters(self):
        """Whether its channel filter does anything."""
        return bool((self.stopband_db and self.passband != (-0.5, 0.5)) or self.tilt_db or self.ripple_db)


def _flat(values):
    for value in values:
        yield from _flat(value) if isinstance(value, tuple) else (value,)


def receive(iq, receiver, sample_rate_hz, stream):
    """Pass a stream through a receiver, in place.

    Args:
        iq: complex64 [samples] on any device, contiguous.
        receiver: a `Receiver`.
        stream: a `radio.rng.Stream`, of whose children all noise comes.

    Returns:
        `iq`: in units in which thermal noise has unit power per sample, or, where there is a converter, of full scale: the
        codes of `bits` bits over 2^(bits - 1), in [-1, 1).

    Raises:
        ValueError: not such a stream.
    """
    if iq.dim() != 1 or iq.dtype != torch.complex64 or not iq.is_contiguous():
        raise ValueError(f"expected contiguous complex64 [samples]: {iq.dtype} {list(iq.shape)}")
    if not len(iq):
        return iq

    # thermal noise and channel filter
    if receiver.noise:
        _add_noise(iq, stream.child(_NOISE), 1.0, _REACH)
    if receiver.filters:
        _filter(iq, receiver, stream.child(_NOISE))

    # what is added behind the filter
    if receiver.floor_db > OFF_DB:
        _add_noise(iq, stream.child(_FLOOR), 10 ** (receiver.floor_db / 20), 0)
    if receiver.phase_noise_dbc > OFF_DB:
        _turn(iq, receiver, sample_rate_hz, stream.child(_PHASE))
    if receiver.iq_gain_db or receiver.iq_phase_deg:
        # y = I + j g (Q cos φ - I sin φ): (1 + g exp(-jφ)) / 2 of the signal, (1 - g exp(jφ)) / 2 of its conjugate
        gain = cmath.rect(10 ** (receiver.iq_gain_db / 20), math.radians(receiver.iq_phase_deg))
        for part in iq.split(_chunk(iq)):
            in_phase, quadrature = torch.view_as_real(part).unbind(dim=1)
            quadrature.mul_(gain.real).sub_(in_phase, alpha=gain.imag)
    if receiver.dc_db > OFF_DB:
        iq += cmath.rect(10 ** (receiver.dc_db / 20), math.radians(receiver.dc_phase_deg))

    # gain steps
    starts = [min(len(iq), math.ceil(time_s * sample_rate_hz - 1e-6)) for time_s, _ in receiver.agc_steps]
    for start, stop, (_, gain_db) in zip(starts, [*starts, len(iq)][1:], receiver.agc_steps, strict=True):
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
    """Filter a stream in place, without delay: overlap-save.

    Noise has been there before the first sample and goes on behind the last, signals have not. `noise` is its stream.
    """
    before = iq.new_zeros(_REACH)
    after = iq.new_zeros(_REACH)
    if receiver.noise:
        before += noise.complex_normal(_REACH, iq.device)
        after += noise.complex_normal(_REACH, iq.device, _REACH + 4 * math.ceil(len(iq) / 4))

    response = _response(receiver).to(iq.device)
    new = _BLOCK - 2 * _REACH  # samples a block
    chunk = new * max(1, _chunk(iq) // new)
    for first in range(0, len(iq), chunk):
        last = min(first + chunk, len(iq))
        blocks = math.ceil((last - first) / new)
        source = iq.new_zeros(blocks * new + 2 * _REACH)
        ahead = torch.cat([iq[last : last + _REACH], after])[:_REACH]
        source[: last - first + 2 * _REACH] = torch.cat([before, iq[first:last], ahead])
        before = source[last - first : last - first + _REACH].clone()
        spectrum = torch.fft.fft(source.unfold(0, _BLOCK, new)).mul_(response)
        iq[first:last] = torch.fft.ifft(spectrum)[:, 2 * _REACH :].flatten()[: last - first]


def _response(receiver):
    """Response of the channel filter at the frequencies of the FFT of a block: complex64 [_BLOCK].

    The taps' delay of _REACH samples is in it.
    """
    frequency = torch.fft.fftfreq(_BLOCK, dtype=torch.float64)  # of the sample rate
    gain_db = receiver.tilt_db * frequency
    turns = receiver.ripple_cycles * frequency + receiver.ripple_phase_deg / 360
    gain_db += receiver.ripple_db / 2 * torch.cos(2 * math.pi * turns)
    for sign, edge, width in zip((-1, 1), receiver.passband, receiver.transition, strict=True):
        if abs(edge) < 0.5 and receiver.stopband_db:
            rolled = ((frequency - edge) * (sign / width)).clamp(0, 1)
            gain_db -= receiver.stopband_db * torch.sin(math.pi / 2 * rolled).square()
    taps = torch.fft.ifft(10 ** (gain_db / 20)).roll(_REACH)
    window = torch.kaiser_window(2 * _REACH + 1, periodic=False, beta=_KAISER_BETA, dtype=torch.float64)
    return torch.fft.fft(taps[: 2 * _REACH + 1] * window, _BLOCK).to(torch.complex64)


def _turn(iq, receiver, sample_rate_hz, stream):
    """Phase noise: a Gaussian process with autocorrelation variance × exp(-2π f |τ|), straight between its points."""
    step = math.ceil(len(iq) / _PHASE_POINTS)
    points = math.ceil(len(iq) / step) + 1
    kept = math.exp(-2 * math.pi * receiver.phase_noise_hz * step / sample_rate_hz)  # correlation from point to point

    # Straight lines have less variance than their ends, on the average over their samples by this.
    lost = (1 - 1 / step**2) / 3 * (1 - kept)
    rms = math.sqrt(10 ** (receiver.phase_noise_dbc / 10) / (1 - lost))

    # The recursion x[n] = kept × x[n - 1] + w[n] is 1 / (1 - kept z) = (1 + kept z)(1 + kept² z²)(1 + kept⁴ z⁴)...
    walk = torch.view_as_real(stream.complex_normal((points + 1) // 2, iq.device)).flatten()[:points] * (math.sqrt(2) * rms)
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
    """Scale a stream to the converter's loading, round to codes, clip: values are codes over 2^(bits - 1)."""
    parts = torch.view_as_real(iq).split(_chunk(iq))
    energy = sum(float(torch.linalg.vector_norm(part)) ** 2 for part in parts)
    rms = math.sqrt(energy / (2 * len(iq)))
    full_scale = 2.0 ** (receiver.bits - 1)
    scale = 10 ** (receiver.loading_db / 20) / rms if rms else 1.0
    for part in parts:
        part.mul_(scale * full_scale).round_().clamp_(-full_scale, full_scale - 1).mul_(1 / full_scale)
