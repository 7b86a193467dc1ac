"""OFDM as LTE and NR define it: the resource grid, the clock of its symbols, and exact synthesis at any sample rate."""

import math
from dataclasses import dataclass
from functools import lru_cache

import scipy.fft
import torch

# Every duration below is a whole number of these: T_c of TS 38.211 4.1, 1 / (480 kHz × 4096).
TC_PER_S = 480_000 * 4096
_KAPPA = 64

# Values of symbols computed at once: what a CPU's cache holds, and few launches on an accelerator.
CHUNK_VALUES_CPU = 2**17
CHUNK_VALUES_ACCELERATOR = 2**24


@dataclass
class Grid:
    """A resource grid: what each antenna port sends on each subcarrier during each OFDM symbol.

    Attributes:
        values: complex64 [ports, symbols, subcarriers]; an occupied element has unit mean power unless it is boosted.
        occupied: bool [symbols, subcarriers]: the resource elements that carry anything.
        spacing_hz: subcarrier spacing, 15, 30 or 60 kHz.
        lowest_hz: frequency of subcarrier 0, from the carrier's centre; subcarriers ascend.
        first_symbol: number of the first row, counted from the start of system frame 0 (14 a slot, normal cyclic prefix).
    """

    values: torch.Tensor
    occupied: torch.Tensor
    spacing_hz: float
    lowest_hz: float
    first_symbol: int


def symbol_times(spacing_hz, first_symbol, num_symbols):
    """When symbols start and how long their cyclic prefixes are, normal cyclic prefix, TS 38.211 5.3.1 (TS 36.211 6.12).

    Returns:
        starts: int64 [num_symbols + 1], in T_c (`TC_PER_S` to a second) since the start of frame 0, the end of the last
            symbol included; prefixes: int64 [num_symbols], in T_c.
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


def random_symbols(order, stream):
    """Random QAM symbols, unit mean power: QPSK, 16-, 64- and 256-QAM of TS 38.211 5.1 (the levels, not the bit mapping).

    Args:
        order: uint8 of any shape and device: bits a symbol, 0 (nothing is sent), 2, 4, 6 or 8.
        stream: a `radio.rng.Stream`.

    Returns:
        complex64, the shape and device of `order`.
    """
    octets = stream.octets(order.numel(), order.device)
    table = _qam_table().to(order.device)
    symbols = torch.empty(order.numel(), dtype=torch.complex64, device=order.device)
    budget = CHUNK_VALUES_CPU if order.device.type == "cpu" else CHUNK_VALUES_ACCELERATOR
    flat = order.flatten()
    for first in range(0, len(flat), budget):
        part = slice(first, first + budget)
        place = (flat[part].int() << 7) + octets[part]  # row order / 2 of 256 values
        torch.index_select(table, 0, place, out=symbols[part])
    return symbols.view(order.shape)


@lru_cache(maxsize=1)
def _qam_table():
    """Symbol for each (order / 2, random byte): complex64 [5 * 256]; a byte's lowest bits choose the symbol."""
    octets = torch.arange(256)
    rows = [torch.zeros(256, dtype=torch.complex64)]
    for bits_an_axis in (1, 2, 3, 4):
        levels = 2**bits_an_axis
        axis = 2.0 * torch.arange(levels) - (levels - 1)
        axis /= torch.sqrt(2 * axis.square().mean())
        rows.append(torch.complex(axis[octets % levels], axis[octets // levels % levels]))
    return torch.cat(rows)


def phasor(cycles, count, device, first=0):
    """exp(j 2π cycles n) for n = first ... first + count - 1: complex64 [count], exact to float32 however long."""
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
    """Add an OFDM signal to a stretch of IQ: every sample is what the standards' continuous-time formula gives there.

    Subcarrier k of symbol l is exp(j 2π f_k (t - t_l - T_CP,l)) from the start t_l of the symbol to its end (TS 36.211
    6.12, TS 38.211 5.3.1), all of it shifted by `offset_hz`. Where `1 / (spacing × interval)` is a whole number it is
    computed by an FFT of that length, at all other sample rates, and with a clock error, by a chirp z-transform. What lies
    beyond half the sample rate is not sent.

    Args:
        iq: complex64 [samples], added to in place.
        values: complex64 [symbols, subcarriers] on its device: what arrives, channel and ports summed.
        grid: the `Grid` that says where the values lie; its own values are not used.
        offset_hz: frequency at which the carrier's centre is observed.
        interval_s: time from sample to sample on the carrier's clock.
        start_s: time of the first sample on the carrier's clock, whose zero is the start of frame 0.
        edge_s: symbols follow each other over raised-cosine edges of this length, within the cyclic prefix, which keep the
            spectrum beside the carrier low; 0 for rectangular symbols. At most half the shorter prefix is used.
    """
    # subcarriers inside the band
    shift = offset_hz + grid.lowest_hz
    first, last = (math.ceil((edge - shift) / grid.spacing_hz) for edge in (-0.5 / interval_s, 0.5 / interval_s))
    first, last = max(0, first), min(values.shape[1], last)
    if first >= last:
        return
    values = values[:, first:last]
    lowest_hz = grid.lowest_hz + first * grid.spacing_hz

    # first sample of every symbol, and from it to the useful part, in samples: `whole`, and less than one in `rest_s`
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
    bodies = _Bodies(grid.spacing_hz, lowest_hz, offset_hz, interval_s, values.shape[1], prefix, length, values.device)
    budget = CHUNK_VALUES_CPU if values.device.type == "cpu" else CHUNK_VALUES_ACCELERATOR
    for begin, end in _runs(sent, max(1, budget // length)):
        part = slice(begin, end)
        turn = offset_hz * interval_s * (samples[part] + whole[part]).double()
        rows = bodies(values[part], rest_s[part], turn)
        rises = starts_s[part] > -interval_s  # a symbol that began before the stretch is inside it at full height
        _join(iq, rows, samples[begin : end + 1], prefix - whole[part], edge, rises)


def _runs(sent, most):
    """(first, last + 1) of every run of true values, cut into pieces of at most `most`."""
    change = torch.diff(sent.int(), prepend=torch.zeros(1, dtype=torch.int), append=torch.zeros(1, dtype=torch.int))
    begins, ends = (torch.nonzero(change == sign).flatten().tolist() for sign in (1, -1))
    for begin, end in zip(begins, ends, strict=True):
        for first in range(begin, end, most):
            yield first, min(first + most, end)


class _Bodies:
    """Computes symbols with their cyclic extension: rows of `length` samples, of which `prefix` precede the useful part."""

    def __init__(self, spacing_hz, lowest_hz, offset_hz, interval_s, num_subcarriers, prefix, length, device):
        self.spacing_hz, self.lowest_hz = spacing_hz, lowest_hz
        self.interval_s = interval_s
        self.num_subcarriers, self.prefix, self.length = num_subcarriers, prefix, length
        cycles = spacing_hz * interval_s
        self.points = round(1 / cycles)
        self.is_fft = abs(self.points * cycles - 1) * num_subcarriers < 1e-6
        if self.is_fft:
            self.bin = round((offset_hz + lowest_hz) / spacing_hz)
            off_bin_hz = offset_hz + lowest_hz - self.bin * spacing_hz
            self.mixer = phasor(off_bin_hz * interval_s, length, device, first=-prefix)  # (length,)
        else:
            # Bluestein: k m = (k² + m² - (m - k)²) / 2 makes the sum over subcarriers k a convolution.
            time = torch.arange(-prefix, length - prefix, dtype=torch.float64)
            subcarrier = torch.arange(num_subcarriers, dtype=torch.float64)
            lag = torch.arange(-prefix - num_subcarriers + 1, length - prefix, dtype=torch.float64)
            self.points = scipy.fft.next_fast_len(len(lag))
            self.before = _turns(cycles / 2 * subcarrier**2, device)
            self.kernel = torch.fft.fft(_turns(-cycles / 2 * lag**2, device), self.points)
            self.mixer = _turns(cycles / 2 * time**2 + (offset_hz + lowest_hz) * interval_s * time, device)

    def __call__(self, values, rest_s, turn):
        """complex64 [n, subcarriers], delays [n] of less than a sample, phases [n] in turns -> complex64 [n, length]."""
        values = values * _turns(turn, values.device)[:, None]
        if rest_s.abs().max() > 1e-6 * self.interval_s:
            values = values * self._ramp(rest_s, values.device)
        if not self.is_fft:
            spectrum = torch.fft.fft(values * self.before, self.points) * self.kernel
            return torch.fft.ifft(spectrum)[:, self.num_subcarriers - 1 :][:, : self.length] * self.mixer
        spectrum = values.new_zeros(len(values), self.points)
        first = self.bin % self.points
        wrapped = max(0, first + self.num_subcarriers - self.points)
        spectrum[:, first : first + self.num_subcarriers] = values[:, : self.num_subcarriers - wrapped]
        spectrum[:, :wrapped] = values[:, self.num_subcarriers - wrapped :]
        useful = torch.fft.ifft(spectrum, norm="forward")
        after = max(0, self.length - self.prefix)  # a stretch may end within the prefix of the only symbol in it
        extended = [useful[:, self.points - self.prefix :][:, : self.length], useful[:, :after]]
        if after > self.points:
            extended.append(useful[:, : after - self.points])
        return torch.cat(extended, dim=1).mul_(self.mixer)

    def _ramp(self, rest_s, device):
        """exp(j 2π f rest) for every symbol and subcarrier, as products of two short tables: complex64 [n, subcarriers]."""
        fine = 64
        low = self.spacing_hz * torch.arange(fine, dtype=torch.float64)
        high = self.lowest_hz + self.spacing_hz * torch.arange(0, self.num_subcarriers, fine, dtype=torch.float64)
        tables = [_turns(rest_s[:, None] * hz, device) for hz in (high, low)]
        return (tables[0][:, :, None] * tables[1][:, None, :]).flatten(1)[:, : self.num_subcarriers]


def _join(iq, rows, samples, first, edge, rises):
    """Add symbols to IQ, one behind the other.

    Args:
        rows: complex64 [n, length].
        samples: int64 [n + 1]: the first sample of each symbol, and the end of the last.
        first: int64 [n]: which value of its row a symbol starts with.
        edge: samples over which a symbol rises and the one before it falls.
        rises: bool [n]: whether a symbol does.
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
