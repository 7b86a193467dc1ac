"""The way of a resource grid to the receiver: a transmitter's power amplifier and a fading multipath channel.

Both work on the grid, symbol by symbol: a channel that stands still during a symbol, with delays within the cyclic prefix,
multiplies each subcarrier by a number; and a cyclic prefix passes an amplifier as the end of its symbol does.
"""

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import scipy.fft
import torch

from radio.rng import FADING, Stream

MODELS = ("none", "flat", "TDL-A", "TDL-B", "TDL-C", "TDL-D", "TDL-E")

# The tables 7.7.2-1 to -5 of TR 38.901 as the package sionna-no-rt holds them. Its code is left alone: importing
# `sionna.phy` takes 2 s, seeds torch's global generators anew and starts CUDA, which a forked worker must not do.
_TABLES = "phy/channel/tr38901/models/v19_2/{}.json"

_SINUSOIDS = 16
_LINE_OF_SIGHT_DOPPLER = 0.7  # of the maximum Doppler shift, TR 38.901 7.7.2

# Values of the channel's frequency response, or of time signals, held at once: what stays in a CPU's cache, and few
# launches on an accelerator.
_CHUNK_VALUES_CPU = 2**17
_CHUNK_VALUES_ACCELERATOR = 2**21

_OVERSAMPLING = 4  # products of the third order keep clear of the band's aliases, those of the fifth of the output's


@dataclass(frozen=True)
class Fading:
    """A propagation channel with Rayleigh fading of the classic (Jakes) Doppler spectrum.

    Attributes:
        model: "none" (a constant path of gain 1), "flat" (one Rayleigh path), "TDL-A" to "TDL-E" (TR 38.901 7.7.2).
        delay_spread_s: rms delay spread of a TDL model, at most 10 µs.
        doppler_hz: maximum Doppler shift, at most 2 kHz: the channel stands still during a symbol.
        seed: below 2^31.
    """

    model: str = "flat"
    delay_spread_s: float = 0.0
    doppler_hz: float = 0.0
    seed: int = 0

    def __post_init__(self):
        if self.model not in MODELS:
            raise ValueError(f"expected model to be one of {MODELS}: {self.model=}")
        if not 0 <= self.delay_spread_s <= 10e-6:
            raise ValueError(f"expected delay_spread_s 0 to 10e-6: {self.delay_spread_s=}")
        if not 0 <= self.doppler_hz <= 2000:
            raise ValueError(f"expected doppler_hz 0 to 2000: {self.doppler_hz=}")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"expected seed 0 to 2^31 - 1: {self.seed=}")


def taps(fading, num_ports, num_times, interval_s):
    """The gain of each path over time. Ports fade independently; the mean total power of each is 1.

    A path is a sum of sinusoids: one from each of 16 equal sectors around the receiver, at a random angle in it and with a
    complex Gaussian weight. So its gain is Gaussian at any time, and the mean of its autocorrelation over the seeds is
    J0(2π doppler_hz τ) exactly. (After Xiao, Zheng, Beaulieu, "Novel sum-of-sinusoids simulation models for Rayleigh and
    Rician fading channels", IEEE Trans. Wireless Commun. 5(12), 2006, where the weights are constant.)

    Args:
        fading: a `Fading`; the gains are a function of it and the other arguments alone.
        interval_s: from one time to the next.

    Returns:
        gains: complex64 [num_ports, paths, num_times] and delays: float64 [paths], in seconds, both on the CPU.
    """
    if num_ports < 1 or num_times < 1 or not interval_s > 0:
        raise ValueError(f"expected ports, times and an interval: {num_ports=} {num_times=} {interval_s=}")
    if fading.model == "none":
        return torch.ones(num_ports, 1, num_times, dtype=torch.complex64), torch.zeros(1, dtype=torch.float64)
    delays, powers, line_of_sight = _profile(fading.model)

    # weights and Doppler shifts of the sinusoids
    rng = Stream(fading.seed, FADING).generator()
    shape = (num_ports, len(delays), _SINUSOIDS)
    angles = (torch.arange(_SINUSOIDS) + torch.from_numpy(rng.random(shape))) * (2 * math.pi / _SINUSOIDS)
    turns = fading.doppler_hz * interval_s * torch.cos(angles)  # (ports, paths, sinusoids), from time to time
    weights = torch.view_as_complex(torch.from_numpy(rng.standard_normal((*shape, 2))))
    weights = weights * (powers / (2 * _SINUSOIDS)).sqrt()[:, None]
    if line_of_sight:
        phases = 2 * math.pi * torch.from_numpy(rng.random(num_ports))
        direct = torch.zeros(num_ports, len(delays), 1, dtype=torch.complex128)
        direct[:, 0, 0] = torch.polar(torch.full_like(phases, math.sqrt(line_of_sight)), phases)
        weights = torch.cat([weights, direct], dim=2)
        shift = fading.doppler_hz * interval_s * _LINE_OF_SIGHT_DOPPLER
        turns = torch.cat([turns, torch.full((num_ports, len(delays), 1), shift, dtype=torch.float64)], dim=2)

    # time is coarse × fine, the sum over sinusoids a product of two short tables
    fine = 1 << ((num_times - 1).bit_length() + 1) // 2
    coarse = fine * torch.arange(-(-num_times // fine))
    rows = _turned(turns[:, :, None, :] * coarse[:, None]) * weights.to(torch.complex64)[:, :, None, :]
    columns = _turned(turns[..., None] * torch.arange(fine))  # (ports, paths, sinusoids, fine)
    gains = (rows @ columns).flatten(2)[:, :, :num_times]
    return gains, delays * (0.0 if fading.model == "flat" else fading.delay_spread_s)


@lru_cache(maxsize=len(MODELS))
def _profile(model):
    """Power-delay profile of total power 1: delays for a delay spread of 1 [paths], powers of what scatters [paths] (both
    float64), power of the line of sight, which is part of the first path."""
    if model == "flat":
        return torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64), 0.0
    table = json.loads((resources.files("sionna") / _TABLES.format(model)).read_text())
    powers = 10 ** (torch.tensor(table["powers"], dtype=torch.float64) / 10)
    delays = torch.tensor(table["delays"], dtype=torch.float64)
    powers /= powers.sum()
    if not table["los"]:
        return delays, powers, 0.0
    return delays[1:], powers[1:], float(powers[0])  # the first row is the line of sight, the second scatters with it


def _turned(turns):
    """exp(j 2π turns): float64 -> complex64."""
    angles = ((turns % 1.0) * (2 * math.pi)).float()
    return torch.polar(torch.ones_like(angles), angles)


def propagate(values, frequencies_hz, gains, delays_s, out=None):
    """What arrives of a grid: the sum over ports of values × H, H = sum over paths of gain × exp(-j 2π f delay).

    Args:
        values: complex64 [ports, symbols, subcarriers] on any device.
        frequencies_hz: float64 [subcarriers], from the carrier's centre.
        gains, delays_s: complex64 [ports, paths, symbols] and float64 [paths]; see `taps`.
        out: where the result goes; may be `values[0]`.

    Returns:
        complex64 [symbols, subcarriers] on the device of `values`.
    """
    ports, symbols, subcarriers = values.shape
    if gains.shape != (ports, len(delays_s), symbols) or len(frequencies_hz) != subcarriers:
        found = f"{list(values.shape)}, {len(frequencies_hz)}, {list(gains.shape)} and {len(delays_s)}"
        raise ValueError(f"expected values, frequencies, gains and delays that match: {found}")
    device = values.device
    gains = gains.to(device).transpose(1, 2)  # (ports, symbols, paths)
    flat = len(delays_s) == 1 and not delays_s[0]
    if not flat:
        steering = _turned(-delays_s.cpu()[:, None] * frequencies_hz.cpu()).to(device)  # (paths, subcarriers)

    arrived = torch.empty(symbols, subcarriers, dtype=values.dtype, device=device) if out is None else out
    budget = _CHUNK_VALUES_CPU if device.type == "cpu" else _CHUNK_VALUES_ACCELERATOR
    rows = max(1, budget // (ports * subcarriers))
    for first in range(0, symbols, rows):
        part = slice(first, first + rows)
        response = gains[:, part]
        if not flat:
            response = (response.flatten(0, 1) @ steering).unflatten(0, (ports, -1))  # (ports, rows, subcarriers)
        torch.mul(values[0, part], response[0], out=arrived[part])
        for port in range(1, ports):
            arrived[part].addcmul_(values[port, part], response[port])
    return arrived


def amplify(values, backoff_db, smoothness=2.0, am_pm_deg=0.0, keep=slice(None)):
    """A power amplifier near saturation: each symbol's time signal is compressed, distorted in the band and beside it.

    Amplitudes are compressed by Rapp's model, |y| = |x| / (1 + |x|^2p)^(1/2p) with saturation at 1 (C. Rapp, "Effects of
    HPA-nonlinearity on a 4-DPSK/OFDM-signal for a digital sound broadcasting system", 2nd European Conference on Satellite
    Communications, 1991), and turned by am_pm × |x|² / (1 + |x|²) (Saleh's form, IEEE Trans. Commun. 29(11), 1981).

    Args:
        values: complex64 [ports, symbols, subcarriers] on any device.
        backoff_db: of the mean input power of the symbols that are not silent, of all ports, to saturation.
        smoothness: p of Rapp's model; large for an amplifier that is linear up to saturation.
        am_pm_deg: the turn far beyond saturation; half of it at saturation.
        keep: which subcarriers of the output are wanted, a slice.

    Returns:
        complex64 [ports, symbols, 3 × subcarriers], of the same centre and small-signal gain 1: the input's subcarriers
        come to lie in the middle third; of them those to keep. Silent symbols stay silent.
    """
    if not smoothness > 0:
        raise ValueError(f"expected smoothness > 0: {smoothness=}")
    ports, symbols, subcarriers = values.shape
    amplified = values.new_zeros(ports * symbols, len(range(3 * subcarriers)[keep]))
    values = values.flatten(0, 1)
    sent = torch.nonzero(torch.view_as_real(values).abs().amax(dim=(1, 2))).flatten()
    if not len(sent):
        return amplified.unflatten(0, (ports, symbols))
    scale = len(sent) / 10 ** (backoff_db / 10) / torch.linalg.vector_norm(values).square()  # 1 / power at saturation

    # In steps of 128, where the FFT's factors are mostly 2.
    points = 128 * scipy.fft.next_fast_len(-(-_OVERSAMPLING * subcarriers // 128))
    budget = _CHUNK_VALUES_CPU if values.device.type == "cpu" else _CHUNK_VALUES_ACCELERATOR
    for rows in sent.split(max(1, budget // points)):
        # Where in the spectrum the band lies does not matter to the amplifier: it starts at bin 0.
        signal = torch.fft.ifft(values[rows], points, norm="forward")
        squares = torch.view_as_real(signal).square()
        power = (squares[..., 0] + squares[..., 1]).mul_(scale)
        gain = (1 + power**smoothness) ** (-0.5 / smoothness)
        if am_pm_deg:
            gain = torch.polar(gain, math.radians(am_pm_deg) * power / (1 + power))
        spectrum = torch.fft.fft(signal.mul_(gain), norm="forward")
        amplified[rows] = torch.cat([spectrum[:, points - subcarriers :], spectrum[:, : 2 * subcarriers]], dim=1)[:, keep]
    return amplified.unflatten(0, (ports, symbols))
