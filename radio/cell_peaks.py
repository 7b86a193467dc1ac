"""Where a PSS of LTE or NR may be: the first, coarse stage of cell search.

A stretch goes through overlapping FFTs of eight symbols. A slice of their bins, which mixes and decimates at
once, times the spectrum of a known signal, and back through an FFT, is the correlation at every delay. Its mean
power around each delay divides it: strong signals look no more like a PSS than weak ones. LTE's half-frames are
summed.

Delays of every other frequency lie halfway between those of the others: the worst place between four hypotheses
is nearer to one of them, so fewer do.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import max_pool1d, pad

from radio.cell_signals import NUM_ROOTS

_SYMBOLS = 8  # of a block
_FRAMES = 2 * (_SYMBOLS - 1)  # stretches of a block's delays with a mean power of their own
_REGIONS = 2 * _FRAMES  # those of which one place is kept
_STEPS = 2  # frequency hypotheses a subcarrier: halfway between two 0.9 dB are lost
_FLOOR = 1e-3  # of the mean power: where there is less, as in padding, nothing stands out
_BEST_OF_TILE = 64
_GROUP = 4  # frequencies of which one is kept
_CHUNK_VALUES = 2**17  # complex values that stay in a CPU's cache
_ROWS = 64  # frequencies that are next to each other in memory
_CHUNK_ROWS = 256  # frequencies whose sums do


class Peaks(NamedTuple):
    """Strongest first: evidence in standard deviations of noise, seconds, Hz and N_ID^(2), all [peaks]."""

    score: torch.Tensor
    start_s: torch.Tensor
    freq_hz: torch.Tensor
    root: torch.Tensor


def find_peaks(iq, sample_rate_hz, sync, bands_hz, count):
    """The `count` places that look most like a PSS, as `Peaks`, and the places whose likeness they may be.

    Args:
        iq: complex64 [samples].
        sync: `radio.cell_signals.Sync`.
        bands_hz: where the centre may be, [(low, high)], from the band's.
    """
    blocks = _Blocks(iq, sample_rate_hz, sync)
    found = [blocks.peaks(tile, *band) for band in bands_hz for tile in blocks.tiles()]
    merged = [torch.cat(one) for one in zip(*found, strict=True)] if found else torch.empty(4, 0)
    best = merged[0].argsort(descending=True)[:count]
    score, start_s, freq_hz, root = (one[best] for one in merged)

    # a PSS some subcarriers higher looks like one a little later
    tones, late = (torch.tensor(one)[root.long()] for one in zip(*sync.images, strict=True))
    images = torch.tensor([0, 1, -1]) if any(tones) else torch.tensor([0])
    start_s = start_s[:, None] - images * late[:, None] * sync.symbol_s
    freq_hz = freq_hz[:, None] + images * tones[:, None] * sync.spacing_hz
    step_hz = blocks.step_hz
    inside = sum((low - step_hz <= freq_hz) & (freq_hz <= high + step_hz) for low, high in bands_hz) > 0
    score, root = (one[:, None].expand_as(freq_hz) for one in (score, root))
    return Peaks(*(one[inside] for one in (score, start_s, freq_hz, root)))


class _Blocks:
    def __init__(self, iq, sample_rate_hz, sync):
        self.iq, self.sync, self.rate_hz = iq, sync, sample_rate_hz
        self.buffers = {}  # of energies: new memory for each tile takes time
        self.size = round(_SYMBOLS * sync.symbol_s * sample_rate_hz)
        self.points = _SYMBOLS * sync.points
        self.kept = (_SYMBOLS - 1) * sync.points
        self.delay_s = self.size / sample_rate_hz / self.points
        self.bins_a_step = _SYMBOLS // _STEPS
        self.step_hz = self.bins_a_step * sample_rate_hz / self.size
        self.whole_s = len(iq) / sample_rate_hz - sync.symbol_s  # last start of a whole PSS

        # spectra of the parts
        count = round(sync.symbol_s * sample_rate_hz)
        time_s = np.arange(count) / sample_rate_hz
        bins = np.arange(self.points) - self.points // 2
        spectra = []
        for tones, values in sync.parts:
            signal = values @ np.exp(2j * np.pi * sync.spacing_hz * np.outer(tones, time_s))
            spectra.append(np.fft.fft(signal, self.size)[bins % self.size].conj() / self.size)
        halfway = np.exp(1j * np.pi * np.outer((0, 1), bins) / self.points)  # of every other frequency
        self.spectra = torch.from_numpy((np.array(spectra)[:, None] * halfway).astype(np.complex64))
        noise_power = float(torch.linalg.vector_norm(iq)) ** 2 / max(1, len(iq)) * count
        self.least_power = 1e-9 * noise_power + 1e-30

        # means over a frame and those beside it
        frame = np.arange(self.kept) // (self.kept // _FRAMES)
        beside = np.abs(frame[:, None] - np.arange(_FRAMES)) <= 1  # (delays, frames)
        self.means = torch.from_numpy((beside / beside.sum(0)).astype(np.float32))

    def tiles(self):
        """Starts in seconds of the blocks of each tile: those whose powers are summed."""
        if self.whole_s < 0:
            return []
        step_s, period_s, end_s = self.kept * self.delay_s, self.sync.period_s, self.whole_s + self.delay_s
        firsts = np.arange(0, min(period_s or end_s, end_s), step_s)
        repeats = np.arange(0, end_s, period_s) if period_s else np.zeros(1)
        return [first + repeats[first + repeats < end_s] for first in firsts]

    def peaks(self, tile, low_hz, high_hz):
        """The best places of a tile with centres in a band: [score, start_s, freq_hz, root]."""
        first = int(np.floor(low_hz / self.step_hz))
        count = int(np.ceil(high_hz / self.step_hz)) - first + 1
        starts = np.round(tile * self.rate_hz).astype(int)
        blocks = [pad(self.iq[start : start + self.size], (0, self.size))[: self.size] for start in starts]
        spectra = torch.fft.fft(torch.stack(blocks))
        if self.sync.period_s:  # a third of the frequencies where there are many, as each PSS has its images
            steps = [_Steps.thirds(first, count, _STEPS * tones) for tones, _ in self.sync.images]
            steps = steps if count > _ROWS else [_Steps.all(first, count)] * NUM_ROOTS
            energies = [[self._energy(spectra, part, one)] for part, one in enumerate(steps)]
        else:
            reach = [_STEPS * middle for root in self.sync.roots for _, middle in root]
            wide = _Steps.all(first + min(reach), count + max(reach) - min(reach))
            parts = [self._energy(spectra, part, wide) for part in range(len(self.spectra))]
            steps = [_Steps.all(first, count)] * NUM_ROOTS
            energies = [
                [parts[part][_STEPS * middle - min(reach) :][:count] for part, middle in root]
                for root in self.sync.roots
            ]
        found = [self._best(tile, one, steps[root].numbers, root) for root, one in enumerate(energies)]
        return [torch.cat(one) for one in zip(*found, strict=True)]

    def _energy(self, spectra, part, steps):
        """Correlation power over its mean around, summed over the blocks: float32 [frequencies, delays].

        The mean for noise is the number of blocks.
        """
        low = steps.first * self.bins_a_step - self.points // 2
        width = ((steps.periods - 1) * steps.period + steps.tested - 1) * self.bins_a_step + self.points
        wanted = spectra[:, torch.arange(low, low + width) % self.size]
        strides = (width, steps.period * self.bins_a_step, self.bins_a_step, 1)
        slices = wanted.as_strided((len(spectra), steps.periods, steps.tested, self.points), strides)

        energy = self.buffers.get((part, steps))
        if energy is None:
            energy = torch.empty(steps.periods, steps.tested, self.kept)
            self.buffers[part, steps] = energy
        some = max(1, _CHUNK_VALUES // (steps.tested * self.points))  # periods
        product = torch.empty(some, steps.tested, self.points, dtype=torch.complex64)
        power = torch.empty(some, steps.tested, self.kept)
        for begin in range(0, steps.periods, some):
            sums = energy[begin : begin + some].unflatten(2, (_FRAMES, -1))
            for block, one in enumerate(slices[:, begin : begin + some]):
                mixed = product[: len(one)]
                torch.mul(one.unflatten(1, (-1, 2)), self.spectra[part], out=mixed.unflatten(1, (-1, 2)))
                correlation = torch.view_as_real(torch.fft.ifft(mixed, norm="forward"))
                squares = correlation.mul_(correlation)[:, :, : self.kept]
                values = torch.add(squares[..., 0], squares[..., 1], out=power[: len(one)])
                # the highest mean nearby, so that echoes of a PSS into silence do not stand out more than itself
                mean = max_pool1d(values @ self.means, 3, 1, 1)
                floor = _FLOOR * mean.mean(2, keepdim=True) + self.least_power
                scale = (1 / torch.maximum(mean, floor))[..., None]
                values = values.unflatten(2, (_FRAMES, -1))
                if block:
                    sums.addcmul_(values, scale)
                else:
                    torch.mul(values, scale, out=sums)
        return energy.flatten(0, 1)

    def _best(self, tile, energies, numbers, root):
        """The best places by the sum of energies [frequencies, delays]: [score, start_s, freq_hz, root]."""
        count, length = len(energies[0]), self.kept // _REGIONS
        best = []
        for begin in range(0, count, _CHUNK_ROWS):
            rows = slice(begin, begin + _CHUNK_ROWS)
            sums = energies[0][rows]
            for other, one in enumerate(energies[1:]):
                sums = sums.add_(one[rows]) if other else sums + one[rows]
            sums = pad(sums, (0, 0, 0, -len(sums) % _GROUP), value=-torch.inf)
            best.append(max_pool1d(sums.unflatten(0, (-1, _GROUP)).amax(1), self.kept // _REGIONS))
        best = torch.cat(best)  # (groups, regions)

        # in standard deviations, as places are heard in different numbers of half-frames
        late_s = torch.arange(_REGIONS) * (length * self.delay_s)
        heard = (torch.from_numpy(tile)[:, None] + late_s <= self.whole_s).sum(0).float() * len(energies)
        best = ((best - heard) * heard.rsqrt()).masked_fill_(heard == 0, -torch.inf)

        score, index = best.flatten().topk(min(_BEST_OF_TILE, best.numel()))
        group, region = index // _REGIONS, index % _REGIONS
        row = (group[:, None] * _GROUP + torch.arange(_GROUP)).clamp(max=count - 1)
        delay = region[:, None] * length + torch.arange(length)
        patches = sum(one[row[:, :, None], delay[:, None]] for one in energies)
        within = patches.flatten(1).argmax(1)
        row = row.gather(1, within[:, None] // length)[:, 0]
        delay = delay.gather(1, within[:, None] % length)[:, 0] + row % 2 / 2
        start_s, step = float(tile[0]) + delay * self.delay_s, numbers[row]
        return [score, start_s, step * self.step_hz, torch.full_like(index, root)]


class _Steps(NamedTuple):
    """Frequencies by number: `tested` ones of each period."""

    first: int
    periods: int
    tested: int
    period: int

    @classmethod
    def all(cls, first, count):
        return cls(first, -(-count // _ROWS), _ROWS, _ROWS)

    @classmethod
    def thirds(cls, first, count, third):
        return cls(first + third, -(-count // (3 * third)), third, 3 * third)

    @property
    def numbers(self):
        return (
            self.first + self.period * torch.arange(self.periods)[:, None] + torch.arange(self.tested)
        ).flatten()
