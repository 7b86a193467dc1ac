"""What changes a resource grid on its way to the receiver: a power amplifier and a fading multipath channel.

Both work on the grid, symbol by symbol. The channel is constant during a symbol, and its delays stay within
the cyclic prefix. The amplifier distorts the prefix and the end of a symbol alike.
"""

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import scipy.fft
import torch
from torch.nn.functional import pad

from radio.rng import FADING, Stream
from radio.scenes.expect import expect

MODELS = ("none", "flat", "TDL-A", "TDL-B", "TDL-C", "TDL-D", "TDL-E")

# Tables 7.7.2-1 to -5 of TR 38.901 in the package sionna-no-rt. Importing its code (`sionna.phy`) takes 2 s,
# seeds torch's global generators and starts CUDA, which a forked worker must not do.
_TABLES = "phy/channel/tr38901/models/v19_2/{}.json"

_SINUSOIDS = 16
_LINE_OF_SIGHT_DOPPLER = 0.7  # of the maximum Doppler shift, TR 38.901 7.7.2

# Values computed at once: those that fit in a CPU's cache, or few launches on an accelerator.
_CHUNK_VALUES_CPU = 2**17
_CHUNK_VALUES_ACCELERATOR = 2**21

_OVERSAMPLING = 4  # third-order products do not alias into the band, nor fifth-order products into the output


@dataclass(frozen=True)
class Fading:
    """A propagation channel with Rayleigh fading of the classic (Jakes) Doppler spectrum.

    Attributes:
        model: "none" (one path of gain 1), "flat" (one Rayleigh path), "TDL-A" to "TDL-E" (TR 38.901 7.7.2).
        delay_spread_s: rms delay spread of a TDL model, at most 10 µs.
        doppler_hz: maximum Doppler shift, at most 2 kHz.
        seed: below 2^31.
    """

    model: str = "flat"
    delay_spread_s: float = 0.0
    doppler_hz: float = 0.0
    seed: int = 0

    def __post_init__(self):
        expect(self.model in MODELS, f"model in {MODELS}: {self.model=}")
        expect(0 <= self.delay_spread_s <= 10e-6, f"delay_spread_s 0 to 10e-6: {self.delay_spread_s=}")
        expect(0 <= self.doppler_hz <= 2000, f"doppler_hz 0 to 2000: {self.doppler_hz=}")
        expect(0 <= self.seed < 2**31, f"seed 0 to 2^31 - 1: {self.seed=}")


def taps(fading, num_ports, num_times, interval_s):
    """The gain of each path at times `interval_s` apart. Ports fade independently with a mean power of 1.

    A path is a sum of 16 sinusoids. Each comes from a random angle in one of 16 equal sectors around the
    receiver and has a complex Gaussian weight. So gains are Gaussian at any time, and their mean
    autocorrelation over the seeds is J0(2π doppler_hz τ) exactly. (After Xiao, Zheng, Beaulieu, "Novel
    sum-of-sinusoids simulation models for Rayleigh and Rician fading channels", IEEE Trans. Wireless Commun.
    5(12), 2006, where weights are constant.)

    Returns:
        gains: complex64 [num_ports, paths, num_times], on the CPU. The same arguments give the same gains.
        delays_s: float64 [paths], on the CPU.
    """
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
        turns = pad(turns, (0, 1), value=fading.doppler_hz * interval_s * _LINE_OF_SIGHT_DOPPLER)
        weights = pad(weights, (0, 1))
        phases = 2 * math.pi * torch.from_numpy(rng.random(num_ports))
        weights[:, 0, -1] = torch.polar(torch.full_like(phases, math.sqrt(line_of_sight)), phases)

    # time is coarse × fine, the sum over sinusoids a product of two short tables
    fine = 1 << ((num_times - 1).bit_length() + 1) // 2
    coarse = fine * torch.arange(-(-num_times // fine))
    rows = _turned(turns[:, :, None, :] * coarse[:, None]) * weights.to(torch.complex64)[:, :, None, :]
    columns = _turned(turns[..., None] * torch.arange(fine))  # (ports, paths, sinusoids, fine)
    gains = (rows @ columns).flatten(2)[:, :, :num_times]
    return gains, delays * (0.0 if fading.model == "flat" else fading.delay_spread_s)


@lru_cache(maxsize=len(MODELS))
def _profile(model):
    """Delays and scattered powers for a delay spread of 1, float64 [paths]; power of the line of sight."""
    if model == "flat":
        return torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64), 0.0
    table = json.loads((resources.files("sionna") / _TABLES.format(model)).read_text())
    powers = 10 ** (torch.tensor(table["powers"], dtype=torch.float64) / 10)
    delays = torch.tensor(table["delays"], dtype=torch.float64)
    powers /= powers.sum()
    if not table["los"]:
        return delays, powers, 0.0
    return delays[1:], powers[1:], float(powers[0])  # the first row is the line of sight


def _turned(turns):
    """exp(j 2π turns): float64 -> complex64."""
    angles = ((turns % 1.0) * (2 * math.pi)).float()
    return torch.polar(torch.ones_like(angles), angles)


def propagate(values, frequencies_hz, gains, delays_s, out=None):
    """The received grid: the sum over ports of values × H, H = sum over paths of gain × exp(-j 2π f delay).

    Args:
        values: complex64 [ports, symbols, subcarriers] on any device.
        frequencies_hz: float64 [subcarriers], from the carrier's centre.
        gains, delays_s: complex64 [ports, paths, symbols] and float64 [paths]; see `taps`.
        out: complex64 [symbols, subcarriers] for the result; may be `values[0]`.

    Returns:
        complex64 [symbols, subcarriers] on the device of `values`.
    """
    ports, symbols, subcarriers = values.shape
    match = gains.shape == (ports, len(delays_s), symbols) and len(frequencies_hz) == subcarriers
    found = f"{values.shape=} {len(frequencies_hz)=} {gains.shape=} {len(delays_s)=}"
    expect(match, f"values, frequencies, gains and delays that match: {found}")
    device = values.device
    gains = gains.to(device).transpose(1, 2)  # (ports, symbols, paths)
    flat = len(delays_s) == 1 and not delays_s[0]
    if not flat:
        steering = _turned(-delays_s[:, None] * frequencies_hz).to(device)  # (paths, subcarriers)

    arrived = torch.empty(symbols, subcarriers, dtype=values.dtype, device=device) if out is None else out
    budget = _CHUNK_VALUES_CPU if device.type == "cpu" else _CHUNK_VALUES_ACCELERATOR
    rows = max(1, budget // (ports * subcarriers))
    for first in range(0, symbols, rows):
        part = slice(first, first + rows)
        response = gains[:, part]  # (ports, rows, subcarriers or 1)
        if not flat:
            response = (response.flatten(0, 1) @ steering).unflatten(0, (ports, -1))
        torch.mul(values[0, part], response[0], out=arrived[part])
        for port in range(1, ports):
            arrived[part].addcmul_(values[port, part], response[port])
    return arrived


def amplify(values, backoff_db, smoothness=2.0, keep=slice(None)):
    """A power amplifier near saturation compresses each symbol's time signal, which distorts and widens it.

    Rapp's model, |y| = |x| / (1 + |x|^2p)^(1/2p) with saturation at 1 (C. Rapp, "Effects of HPA-nonlinearity
    on a 4-DPSK/OFDM-signal for a digital sound broadcasting system", 2nd European Conference on Satellite
    Communications, 1991).

    Args:
        values: complex64 [ports, symbols, subcarriers] on any device.
        backoff_db: saturation power over mean input power (of all ports, without silent symbols).
        smoothness: p of Rapp's model, above 0; large for an amplifier that is linear up to saturation.
        keep: slice of the output's subcarriers to return.

    Returns:
        complex64 [ports, symbols, 3 × subcarriers][..., keep], with small-signal gain 1. The middle third
        holds the input's subcarriers. Silent symbols stay silent.
    """
    ports, symbols, subcarriers = values.shape
    amplified = values.new_zeros(ports * symbols, len(range(3 * subcarriers)[keep]))
    values = values.flatten(0, 1)
    sent = torch.nonzero(torch.view_as_real(values).abs().amax(dim=(1, 2))).flatten()
    if not len(sent):
        return amplified.unflatten(0, (ports, symbols))
    backoff = 10 ** (backoff_db / 10)
    scale = len(sent) / backoff / torch.linalg.vector_norm(values).square()  # 1 / power at saturation

    points = 128 * scipy.fft.next_fast_len(-(-_OVERSAMPLING * subcarriers // 128))  # mostly factors of 2
    budget = _CHUNK_VALUES_CPU if values.device.type == "cpu" else _CHUNK_VALUES_ACCELERATOR
    for rows in sent.split(max(1, budget // points)):
        # the band starts at bin 0: its place does not matter to the amplifier
        signal = torch.fft.ifft(values[rows], points, norm="forward")
        squares = torch.view_as_real(signal).square()
        power = (squares[..., 0] + squares[..., 1]).mul_(scale)
        gain = (1 + power**smoothness) ** (-0.5 / smoothness)
        spectrum = torch.fft.fft(signal.mul_(gain), norm="forward")
        amplified[rows] = spectrum.roll(subcarriers, dims=1)[:, : 3 * subcarriers][:, keep]
    return amplified.unflatten(0, (ports, symbols))
