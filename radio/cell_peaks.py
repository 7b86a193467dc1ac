"""Where a PSS of LTE or NR may be: the first, coarse stage of cell search.

A stretch goes through overlapping FFTs of eight symbols. A slice of their bins, which mixes and decimates at
once, times the spectrum of a known signal, and back through an FFT, is the correlation at every delay. The
local power divides it: a strong signal looks no more like a PSS than a weak one. LTE's half-frames are summed.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import pad

from radio.cell_signals import NUM_ROOTS

_SYMBOLS = 8  # of a block
_FRAMES = 2 * (_SYMBOLS - 1)  # parts of its delays with a local power of their own
_STEPS = 2  # frequency hypotheses a subcarrier: halfway between two 0.9 dB are lost
_FLOOR = 1e-3  # of the mean power: where there is less, as in padding, nothing is searched for
_BEST_OF_TILE = 64
_GROUP = 4  # hypotheses of which one is kept: 30 kHz away the PSS of LTE looks like itself a little earlier
_CHUNK_ROWS = 128  # hypotheses whose evidence does
_CHUNK_VALUES = 2**17  # complex values that stay in a CPU's cache


class Peaks(NamedTuple):
    """Strongest first: evidence in standard deviations of noise, seconds, Hz and N_ID^(2), all [peaks]."""

    score: torch.Tensor
    start_s: torch.Tensor
    freq_hz: torch.Tensor
    root: torch.Tensor


def find_peaks(iq, sample_rate_hz, sync, bands_hz):
    """PSS-like places: `Peaks`, one at most for each 4 subcarriers and half a symbol.

    Args:
        iq: complex64 [samples].
        sync: `radio.cell_signals.Sync`.
        bands_hz: where the centre may be, [(low, high)], from the band's.
    """
    blocks = _Blocks(iq, sample_rate_hz, sync)
    found = [blocks.peaks(tile, *band) for band in bands_hz for tile in blocks.tiles()]
    if not found:
        return Peaks(*torch.empty(4, 0))
    merged = [torch.cat(one) for one in zip(*found, strict=True)]
    order = merged[0].argsort(descending=True)
    return Peaks(*(one[order] for one in merged))


class _Blocks:
    def __init__(self, iq, sample_rate_hz, sync):
        self.iq, self.sync, self.rate_hz = iq, sync, sample_rate_hz
        self.size = round(_SYMBOLS * sync.symbol_s * sample_rate_hz)
        self.points = _SYMBOLS * sync.points
        self.kept = (_SYMBOLS - 1) * sync.points
        self.delay_s = self.size / sample_rate_hz / self.points
        self.bin_hz = sample_rate_hz / self.size
        self.bins_a_step = _SYMBOLS // _STEPS
        self.step_hz = self.bins_a_step * self.bin_hz
        self.whole_s = len(iq) / sample_rate_hz - sync.symbol_s  # last start of a whole PSS

        # spectra of the parts
        count = round(sync.symbol_s * sample_rate_hz)
        time_s = np.arange(count) / sample_rate_hz
        bins = np.arange(self.points) - self.points // 2
        spectra = []
        for tones, values in sync.parts:
            signal = values @ np.exp(2j * np.pi * sync.spacing_hz * np.outer(tones, time_s))
            spectra.append(np.fft.fft(signal, self.size)[bins % self.size].conj() / self.size)
        self.spectra = torch.from_numpy(np.array(spectra, np.complex64))[:, None]  # (parts, 1, points)
        noise_power = float(torch.linalg.vector_norm(iq)) ** 2 / max(1, len(iq)) * count
        self.least_power = 1e-9 * noise_power + 1e-30

        # means over a frame and those beside it
        frame = np.arange(self.kept) // (self.kept // _FRAMES)
        beside = np.abs(frame[:, None] - np.arange(_FRAMES)) <= 1  # (delays, frames)
        self.means = torch.from_numpy((beside / beside.sum(0)).astype(np.float32))

    def tiles(self):
        """Starts in seconds of the blocks of each tile: those whose powers are summed."""
        step_s, period_s = self.kept * self.delay_s, self.sync.period_s
        end_s = max(self.whole_s, 0) + self.delay_s
        firsts = np.arange(0, min(period_s or end_s, end_s), step_s)
        repeats = np.arange(0, end_s, period_s) if period_s else np.zeros(1)
        return [first + repeats[first + repeats < end_s] for first in firsts] if self.whole_s >= 0 else []

    def peaks(self, tile, low_hz, high_hz):
        first, last = int(np.ceil(low_hz / self.step_hz)), int(np.floor(high_hz / self.step_hz))
        if last < first:
            first = last = round((low_hz + high_hz) / 2 / self.step_hz)
        shifts = [[(part, _STEPS * middle) for part, middle in root] for root in self.sync.roots]
        reach = [shift for root in shifts for _, shift in root]
        lowest, count = first + min(reach), last - first + 1
        energy = self._energy(tile, lowest, count + max(reach) - min(reach))

        # sum parts to roots, keep the best hypothesis of each group and each small region
        regions = torch.full((NUM_ROOTS, -(-count // _GROUP), _FRAMES), -torch.inf)
        sums = torch.full((_CHUNK_ROWS, self.kept), -torch.inf)
        for begin in range(0, count, _CHUNK_ROWS):
            rows = min(_CHUNK_ROWS, count - begin)
            sums[rows:] = -torch.inf
            for root in range(NUM_ROOTS):
                self._sum(energy, root, begin - lowest + first, sums[:rows])
                best = sums.unflatten(0, (-1, _GROUP)).amax(1).unflatten(1, (_FRAMES, -1)).amax(2)
                done = regions[root, begin // _GROUP :][: len(best)]
                done.copy_(best[: len(done)])

        # evidence of places that were heard in different numbers of half-frames
        length = self.kept // _FRAMES
        delays_s = torch.arange(_FRAMES) * (length * self.delay_s)
        heard = (torch.from_numpy(tile)[:, None] + delays_s <= self.whole_s).sum(0).float() * len(shifts[0])
        regions.sub_(heard).mul_(heard.rsqrt()).masked_fill_(heard == 0, -torch.inf)

        # the best places
        best, index = regions.flatten().topk(min(_BEST_OF_TILE, regions.numel()))
        root, group, frame = torch.unravel_index(index, regions.shape)
        peaks = []
        for one, low, at in zip(
            root.tolist(), (group * _GROUP).tolist(), (frame * length).tolist(), strict=True
        ):
            rows = min(_GROUP, count - low)
            patch = sums[:rows, :length]
            self._sum(energy[:, :, at : at + length], one, low - lowest + first, patch)
            peaks.append(int(patch.argmax()))
        step, delay = torch.unravel_index(torch.tensor(peaks, dtype=torch.int64), (_GROUP, length))
        start_s = float(tile[0]) + (frame * length + delay) * self.delay_s
        freq_hz = (first + group * _GROUP + step) * self.step_hz
        heard = best > -torch.inf
        return [one[heard] for one in (best, start_s, freq_hz, root)]

    def _sum(self, energy, root, first, out):
        """Add the energies of a root's parts, from the frequency numbered `first` on: out [frequencies, delays]."""
        views = [
            energy[part, first + _STEPS * middle :][: len(out)] for part, middle in self.sync.roots[root]
        ]
        if len(views) == 1:
            out.copy_(views[0])
        else:
            torch.add(*views[:2], out=out)
            for view in views[2:]:
                out.add_(view)

    def _energy(self, tile, lowest, count):
        """Correlation power over local power, summed over a tile's blocks: [parts, frequencies, delays].

        The mean for noise is the number of blocks.
        """
        reach = (lowest * self.bins_a_step - self.points // 2, (count - 1) * self.bins_a_step + self.points)
        index = torch.arange(reach[0], reach[0] + reach[1]) % self.size
        blocks = [self.iq[start : start + self.size] for start in np.round(tile * self.rate_hz).astype(int)]
        blocks = torch.stack([pad(block, (0, self.size - len(block))) for block in blocks])
        spectra = torch.fft.fft(blocks)[:, index]
        slices = spectra.as_strided((len(tile), count, self.points), (spectra.shape[1], self.bins_a_step, 1))
        parts = len(self.spectra)
        energy = torch.empty(parts, count, self.kept)
        rows = max(1, _CHUNK_VALUES // (parts * self.points))
        product = torch.empty(parts, rows, self.points, dtype=torch.complex64)
        power = torch.empty(parts, rows, self.kept)
        for begin in range(0, count, rows):
            some = min(rows, count - begin)
            sums = energy[:, begin : begin + some].unflatten(2, (_FRAMES, -1))
            for block in range(len(tile)):
                mixed = torch.mul(slices[block, begin : begin + some], self.spectra, out=product[:, :some])
                correlation = torch.view_as_real(torch.fft.ifft(mixed, norm="forward"))
                squares = correlation.mul_(correlation)[:, :, : self.kept]
                values = torch.add(squares[..., 0], squares[..., 1], out=power[:, :some])
                mean = values @ self.means  # (parts, some, frames)
                floor = _FLOOR * mean.mean(2, keepdim=True) + self.least_power
                scale = (1 / torch.maximum(mean, floor))[..., None]
                values = values.unflatten(2, (_FRAMES, -1))
                if block:
                    sums.addcmul_(values, scale)
                else:
                    torch.mul(values, scale, out=sums)
        return energy
