"""OFDM as LTE and NR define it: resource grids, the times of symbols, exact synthesis at any sample rate."""

import math
from dataclasses import dataclass
from functools import lru_cache

import scipy.fft
import torch
from torch.nn.functional import pad

TC_PER_S = 480_000 * 4096  # T_c of TS 38.211 4.1, the unit of all durations
_KAPPA = 64

# Values of symbols computed at once: those that fit in a CPU's cache, or few launches on an accelerator.
CHUNK_VALUES_CPU = 2**17
CHUNK_VALUES_ACCELERATOR = 2**24


@dataclass
class Grid:
    """A resource grid: what each antenna port sends on each subcarrier during each OFDM symbol.

    Attributes:
        values: complex64 [ports, symbols, subcarriers]; occupied elements have unit mean power, boosts aside.
        occupied: bool [symbols, subcarriers]: the resource elements that carry anything.
        spacing_hz: subcarrier spacing, 15, 30 or 60 kHz.
        lowest_hz: frequency of subcarrier 0, from the carrier's centre; subcarriers ascend.
        first_symbol: number of the first row, from the start of system frame 0 (14 a slot).
    """

    values: torch.Tensor
    occupied: torch.Tensor
    spacing_hz: float
    lowest_hz: float
    first_symbol: int


def symbol_times(spacing_hz, first_symbol, num_symbols):
    """Starts and cyclic prefixes of symbols, normal cyclic prefix, TS 38.211 5.3.1 (TS 36.211 6.12).

    Returns:
        starts: int64 [num_symbols + 1], in T_c since the start of frame 0, with the end of the last symbol.
        prefixes: int64 [num_symbols], in T_c.
    """
    mu = {15e3: 0, 30e3: 1, 60e3: 2}[spacing_hz]
    useful = 2048 * _KAPPA >> mu
    short = 144 * _KAPPA >> mu
    half_subframe = 7 << mu  # symbols from one longer prefix to the next
    number = torch.arange(first_symbol, first_symbol + num_symbols + 1)
    longer = (number + half_subframe - 1) // half_subframe  # longer prefixes before symbol `number`
    starts = number * (useful + short) + longer * 16 * _KAPPA
    prefixes = short + 16 * _KAPPA * (number[:-1] % half_subframe == 0)
    return starts, prefixes


def carrier_phases(spacing_hz, first_symbol, num_symbols, carrier_hz):
    """Phase of NR's symbols that follows the carrier frequency, TS 38.211 5.4: complex64 [num_symbols].

    The carrier starts anew at the end of each cyclic prefix, while a receiver's oscillator goes on: symbol l
    arrives turned by -2π f (t_start,l + T_CP,l), from the start of its subframe.
    """
    starts, prefixes = symbol_times(spacing_hz, first_symbol, num_symbols)
    times_s = (starts[:-1] % (TC_PER_S // 1000) + prefixes).double() / TC_PER_S
    return _turns(-carrier_hz * times_s, "cpu")


def random_symbols(order, stream):
    """Random QAM symbols of unit mean power, complex64: the levels of TS 38.211 5.1, not its mapping of bits.

    order: uint8 of any shape and device: bits a symbol, 0 (nothing is sent), 2, 4, 6 or 8.
    """
    octets = stream.octets(order.numel(), order.device)
    table = _qam_table().to(order.device)
    symbols = torch.empty(order.shape, dtype=torch.complex64, device=order.device)
    budget = CHUNK_VALUES_CPU if order.device.type == "cpu" else CHUNK_VALUES_ACCELERATOR
    chunks = (values.flatten().split(budget) for values in (order, octets, symbols))
    for bits, octet, out in zip(*chunks, strict=True):
        torch.index_select(table, 0, (bits.int() << 7) + octet, out=out)  # row order / 2 of 256 values
    return symbols


@lru_cache(maxsize=1)
def _qam_table():
    """Symbol for each (order / 2, random byte): complex64 [5 * 256]. The byte's lowest bits choose it."""
    octets = torch.arange(256)
    rows = [torch.zeros(256, dtype=torch.complex64)]
    for bits_an_axis in (1, 2, 3, 4):
        levels = 2**bits_an_axis
        axis = 2.0 * torch.arange(levels) - (levels - 1)
        axis /= torch.sqrt(2 * axis.square().mean())
        rows.append(torch.complex(axis[octets % levels], axis[octets // levels % levels]))
    return torch.cat(rows)


def phasor(cycles, count, device, first=0):
    """exp(j 2π cycles n) for n = first ... first + count - 1: complex64 [count], accurate at any n."""
    fine = 1 << max(0, (count - 1).bit_length() // 2)
    coarse = -(-count // fine)
    inner = _turns(cycles * torch.arange(fine, dtype=torch.float64), device)
    outer = _turns(cycles * (first + fine * torch.arange(coarse, dtype=torch.float64)), device)
    return (outer[:, None] * inner).flatten()[:count]


def _turns(cycles, device):
    """exp(j 2π cycles) of float64 cycles: complex64 on the device."""
    angle = (2 * math.pi) * (cycles % 1.0)
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64).to(device)


def modulate(iq, values, grid, offset_hz, interval_s, start_s, edge_s=0.0):
    """Add an OFDM signal to a stretch of IQ. Every sample is exact: the standards' continuous-time formula.

    Subcarrier k of symbol l is exp(j 2π f_k (t - t_l - T_CP,l)) from the start t_l of the symbol to its end
    (TS 36.211 6.12, TS 38.211 5.3.1), shifted by `offset_hz`. Subcarriers outside the band are left out.
    An FFT computes the sum if `1 / (spacing × interval)` is a whole number, else a chirp z-transform.

    Args:
        iq: complex64 [samples], added to in place.
        values: complex64 [symbols, subcarriers] on the same device, received: channel applied, ports summed.
        grid: the `Grid` of the values; its own values are not used.
        offset_hz: frequency at which the carrier's centre is observed.
        interval_s: time from sample to sample on the carrier's clock.
        start_s: time of the first sample on the carrier's clock, from the start of frame 0.
        edge_s: length of the raised-cosine edges between symbols, at most half the shorter prefix.
            Edges lower the spectrum beside the carrier.
    """
    # subcarriers inside the band
    shift = offset_hz + grid.lowest_hz
    first = max(0, math.ceil((-0.5 / interval_s - shift) / grid.spacing_hz))
    last = min(values.shape[1], math.ceil((0.5 / interval_s - shift) / grid.spacing_hz))
    if first >= last:
        return
    values = values[:, first:last]
    lowest_hz = grid.lowest_hz + first * grid.spacing_hz

    # first sample of every symbol; from there to the useful part `whole` samples, less the fraction `rest_s`
    starts, prefixes = symbol_times(grid.spacing_hz, grid.first_symbol, len(values))
    starts_s = starts.double() / TC_PER_S - start_s
    prefixes_s = prefixes.double() / TC_PER_S
    samples = torch.ceil(starts_s / interval_s - 1e-6).long().clamp(0, len(iq))  # (symbols + 1,)
    lengths = samples.diff()
    before = (starts_s[:-1] + prefixes_s) / interval_s - samples[:-1]
    whole = before.round().long()
    rest_s = (whole - before) * interval_s
    edge = min(round(edge_s / interval_s), int(prefixes_s.min() / 2 / interval_s))
    sent = (values != 0).any(dim=1).cpu() & (lengths > 0)
    if not sent.any():
        return

    prefix = max(0, int(whole[sent].max()))
    length = prefix + int((lengths - whole)[sent].max()) + edge
    size = (values.shape[1], prefix, length)
    bodies = _Bodies(grid.spacing_hz, lowest_hz, offset_hz, interval_s, *size, values.device)
    budget = CHUNK_VALUES_CPU if values.device.type == "cpu" else CHUNK_VALUES_ACCELERATOR
    changes = pad(sent.int(), (1, 1)).diff().nonzero().flatten()
    for run in torch.arange(len(sent)).tensor_split(changes)[1::2]:  # successive symbols that are not silent
        for numbers in run.split(max(1, budget // length)):
            begin, end = int(numbers[0]), int(numbers[-1]) + 1
            part = slice(begin, end)
            turn = offset_hz * interval_s * (samples[part] + whole[part]).double()
            rows = bodies(values[part], rest_s[part], turn)
            rises = starts_s[part] > -interval_s  # a symbol that began before the stretch has full height
            _join(iq, rows, samples[begin : end + 1], prefix - whole[part], edge, rises)


class _Bodies:
    """Computes symbols with cyclic extension: rows of `length` samples, `prefix` before the useful part."""

    def __init__(self, spacing_hz, lowest_hz, offset_hz, interval_s, num_subcarriers, prefix, length, device):
        self.spacing_hz, self.lowest_hz, self.interval_s = spacing_hz, lowest_hz, interval_s
        self.num_subcarriers, self.prefix, self.length = num_subcarriers, prefix, length
        cycles = spacing_hz * interval_s
        self.points = round(1 / cycles)
        self.is_fft = abs(self.points * cycles - 1) * num_subcarriers < 1e-6
        if self.is_fft:
            self.bin = round((offset_hz + lowest_hz) / spacing_hz)
            off_bin_hz = offset_hz + lowest_hz - self.bin * spacing_hz
            self.mixer = phasor(off_bin_hz * interval_s, length, device, first=-prefix)  # (length,)
        else:
            # Bluestein: k m = (k² + m² - (m - k)²) / 2 makes the sum over subcarriers k a convolution
            time = torch.arange(-prefix, length - prefix, dtype=torch.float64)
            subcarrier = torch.arange(num_subcarriers, dtype=torch.float64)
            lag = torch.arange(-prefix - num_subcarriers + 1, length - prefix, dtype=torch.float64)
            self.points = scipy.fft.next_fast_len(len(lag))
            self.before = _turns(cycles / 2 * subcarrier**2, device)
            self.kernel = torch.fft.fft(_turns(-cycles / 2 * lag**2, device), self.points)
            self.mixer = _turns(cycles / 2 * time**2 + (offset_hz + lowest_hz) * interval_s * time, device)

    def __call__(self, values, rest_s, turn):
        """Values [n, subcarriers], delays [n] under a sample, phases [n] in turns: IQ [n, length]."""
        values = values * _turns(turn, values.device)[:, None]
        if rest_s.abs().max() > 1e-6 * self.interval_s:
            values = values * self._ramp(rest_s, values.device)
        if not self.is_fft:
            spectrum = torch.fft.fft(values * self.before, self.points) * self.kernel
            return torch.fft.ifft(spectrum)[:, self.num_subcarriers - 1 :][:, : self.length] * self.mixer
        spectrum = pad(values, (0, self.points - self.num_subcarriers)).roll(self.bin, dims=1)
        useful = torch.fft.ifft(spectrum, norm="forward")
        after = max(0, self.length - self.prefix - self.points)
        return pad(useful, (self.prefix, after), mode="circular")[:, : self.length].mul_(self.mixer)

    def _ramp(self, rest_s, device):
        """exp(j 2π f rest) of symbols and subcarriers, from two short tables: complex64 [n, subcarriers]."""
        fine = torch.arange(64, dtype=torch.float64)
        coarse = torch.arange(0, self.num_subcarriers, 64, dtype=torch.float64)
        low = _turns(rest_s[:, None] * (self.spacing_hz * fine), device)
        high = _turns(rest_s[:, None] * (self.lowest_hz + self.spacing_hz * coarse), device)
        return (high[:, :, None] * low[:, None, :]).flatten(1)[:, : self.num_subcarriers]


def _join(iq, rows, samples, first, edge, rises):
    """Add symbols to IQ, one after the other.

    rows: complex64 [n, length]. first: int64 [n], index in its row at which a symbol starts.
    samples: int64 [n + 1], the first sample of each symbol, and the end of the last.
    edge: samples over which a symbol rises, if bool [n] `rises` says so, and the symbol before it falls.
    """
    begin, end = int(samples[0]), int(samples[-1])
    flat, device = rows.flatten(), rows.device
    origin = torch.arange(len(rows)) * rows.shape[1] + first  # in `flat`
    index = torch.arange(end - begin) + (origin - samples[:-1] + begin).repeat_interleave(samples.diff())
    joined = flat[index.to(device)]
    if edge:
        ramp = torch.sin((torch.arange(edge) + 0.5) * (math.pi / 2 / edge)).square()
        rising = ((samples[:-1] - begin)[rises][:, None] + torch.arange(edge)).flatten()
        inside = rising < end - begin
        joined[rising[inside].to(device)] *= ramp.repeat(int(rises.sum()))[inside].to(device)

        falling = (samples[1:, None] + torch.arange(edge)).flatten()
        inside = falling < len(iq)
        source = ((origin + samples.diff())[:, None] + torch.arange(edge)).flatten()[inside]
        fall = ramp.flip(0).repeat(len(rows))[inside].to(device)
        iq[falling[inside].to(device)] += flat[source.to(device)] * fall
    iq[begin:end] += joined
