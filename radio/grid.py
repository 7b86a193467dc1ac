"""The front end `grid`: rows of a fixed bandwidth and columns of a fixed duration, whatever the sample rate.

A recording becomes one plane of cells. Images of a fixed size are cut from it. Cells outside of the recording
are `OUTSIDE`: they are no part of the signal, in normalization, loss and figures.
"""

import math
from functools import lru_cache

import torch
from scipy.fft import next_fast_len
from torch import nn

from radio import cyclic_prefix
from radio.stft import column_power

# Limits of an image, and of a row in kHz or a column in us.
MOST_CELLS, LEAST_WIDTH, MOST_WIDTH = 2**26, 1e-6, 1e9
OUTSIDE = -math.inf  # value of a cell that lies outside of the recorded band or time

POWER, CP = "power", "cp"
CHANNELS = (POWER, CP)

# Weaker cells are raised to this far below the strongest. Images of IQ without a noise floor would otherwise
# show little but the depth of their silence.
DYNAMIC_RANGE_DB = 70.0
CONSTANT_DB = 1e-3  # a plane of a lower standard deviation is constant


class Grid(nn.Module):
    """Hann STFT of a window of IQ, mean power of each cell in dB, normalized over the cells inside.

    Row 0 is the lowest frequency. The rows lie symmetric about DC; a row counts as inside if half of it is in
    the band. Frames last as long as a column, or twice the inverse of a row's bandwidth if that is longer, and
    two of them make a column. Frame lengths are rounded up to lengths of fast FFTs.

    The channel "cp" has a plane for each symbol length of 15, 30 and 60 kHz spacing; see
    `radio.cyclic_prefix`.

    Parameters outside these limits raise a ValueError.

    Args:
        row_khz: bandwidth of a row.
        narrow_row_khz: bandwidth of a row if an image of such rows holds the whole band; None: no such rows.
        column_us: duration of a column.
        image_size: (rows, columns) of an image.
        channels: "power", or "power" and "cp".
    """

    kind = "grid"
    pads = True  # its images may have cells that are `OUTSIDE`

    def __init__(
        self,
        row_khz=180.0,
        column_us=250 / 7,
        image_size=(112, 560),
        channels=(POWER,),
        narrow_row_khz=30.0,
        kind="grid",
    ):
        super().__init__()
        rows, columns = (int(side) for side in image_size)
        widths = (row_khz, column_us, row_khz if narrow_row_khz is None else narrow_row_khz)
        possible = min(rows, columns) >= 1 and rows * columns <= MOST_CELLS
        if not possible or not all(LEAST_WIDTH <= one <= MOST_WIDTH for one in widths):
            found = f"{image_size=} {row_khz=} {column_us=} {narrow_row_khz=}"
            raise ValueError(f"expected image sides >= 1, rows and columns above 0: {found}")
        if tuple(channels) not in ((POWER,), CHANNELS):
            raise ValueError(f"expected channels power or power,cp: {channels=}")
        self.row_khz, self.column_us = float(row_khz), float(column_us)
        self.narrow_row_khz = None if narrow_row_khz is None else float(narrow_row_khz)
        self.image_size, self.channels = (rows, columns), tuple(channels)
        self.in_chans = 1 + len(cyclic_prefix.LAGS_S) * (CP in self.channels)

    def settings(self):
        """The parameters as plain values: `Grid(**settings)` makes the same front end."""
        names = ("kind", "row_khz", "narrow_row_khz", "column_us")
        lists = {"image_size": list(self.image_size), "channels": list(self.channels)}
        return {name: getattr(self, name) for name in names} | lists

    # Sizes

    @property
    def duration_s(self):
        """Duration of an image."""
        return self.image_size[1] * self.column_us * 1e-6

    def row_hz(self, sample_rate_hz):
        """Bandwidth of a row at a sample rate."""
        narrow = self.narrow_row_khz
        is_narrow = narrow and sample_rate_hz <= self.image_size[0] * narrow * 1e3
        return 1e3 * (narrow if is_narrow else self.row_khz)

    def num_rows(self, sample_rate_hz):
        """Rows of the plane of a recording."""
        return max(1, math.floor(sample_rate_hz / self.row_hz(sample_rate_hz) + 0.5))

    def num_columns(self, num_samples, sample_rate_hz):
        """Columns of a window: those with half of their time inside."""
        return math.floor(num_samples / sample_rate_hz / (self.column_us * 1e-6) + 0.5 + 1e-9)

    def num_samples(self, sample_rate_hz):
        """Samples of an image, rounded to the nearest."""
        return round(self.duration_s * sample_rate_hz)

    def least_samples(self, sample_rate_hz):
        """Samples of the shortest window: a frame."""
        return _frame_samples(sample_rate_hz, self.row_hz(sample_rate_hz), self.column_us)

    @property
    def least_rate_hz(self):
        """The lowest sample rate of which a plane has two rows."""
        return 1.5e3 * min(self.row_khz, self.narrow_row_khz or self.row_khz)

    def first_rows(self, sample_rate_hz, overlap=16):
        """First rows of the images that cover a plane; neighbours share `overlap` rows or more."""
        rows, total = self.image_size[0], self.num_rows(sample_rate_hz)
        if total <= rows:
            return [-((rows - total) // 2)]
        overlap = min(overlap, rows // 2)
        count = math.ceil((total - overlap) / (rows - overlap))
        return [round(number * (total - rows) / (count - 1)) for number in range(count)]

    def draw_first_row(self, sample_rate_hz, rng, is_real=False):
        """The first row of a training image: anywhere, of real samples with half of the rows or more inside."""
        spare = self.num_rows(sample_rate_hz) - self.image_size[0]
        if spare <= 0:
            return self.first_rows(sample_rate_hz)[0]
        least = spare // 2 if is_real else 0
        return least + int(rng.integers(spare - least + 1))

    # Planes and images

    def forward(self, iq, sample_rate_hz, first_row=None, is_real=False):
        """IQ to images, float32 [B, C, rows, columns]; see `decibels`."""
        return self.from_decibels(self.decibels(iq, sample_rate_hz, first_row, is_real))

    def decibels(self, iq, sample_rate_hz, first_row=None, is_real=False):
        """An image of each window, before normalization: float32 [B, C, rows, columns].

        Args:
            first_row: of the plane; None: of the first image that covers it.
            iq, is_real: see `planes`.
        """
        first_row = self.first_rows(sample_rate_hz)[0] if first_row is None else first_row
        return self.cut(self.planes(iq, sample_rate_hz, is_real), first_row)

    def cut(self, planes, first_row):
        """Images [B, C, rows, columns] of planes [B, C, R, T], from a row on; `OUTSIDE` where they end."""
        rows, columns = self.image_size
        images = planes.new_full((*planes.shape[:2], rows, columns), OUTSIDE)
        low, high = max(0, first_row), min(planes.shape[2], first_row + rows)
        part = planes[:, :, low:high, :columns]
        images[:, :, low - first_row : high - first_row, : part.shape[3]] = part
        return images

    def planes(self, iq, sample_rate_hz, is_real=False):
        """The cells of each window: power in dB relative to full scale, then the lags of "cp".

        Args:
            iq: complex [B, S], or I and Q as float32, int16 or int8 [B, S, 2], S >= `least_samples`.
            is_real: the samples are real. Their spectrum is its own mirror image: only the upper half is
                inside.

        Returns:
            float32 [B, C, num_rows, num_columns]. Cells without any power, such as those of zero padding, are
            `OUTSIDE` too.
        """
        is_pair = iq.dtype in (torch.float32, torch.int16, torch.int8) and iq.dim() == 3 and iq.shape[2] == 2
        least = self.least_samples(sample_rate_hz)
        if not (is_pair or (iq.is_complex() and iq.dim() == 2)) or iq.shape[1] < least:
            expected = f"complex [batch, samples >= {least}], or float32, int16 or int8 [..., 2]"
            raise ValueError(f"expected {expected}: {iq.dtype} {list(iq.shape)}")
        if iq.is_complex():
            iq = torch.view_as_real(iq.to(torch.complex64).resolve_conj())
        if iq.stride()[1:] != (2, 1) or iq.stride(0) % 2:
            iq = iq.contiguous()
        scale = _Scale(sample_rate_hz, self.row_hz(sample_rate_hz), self.column_us)
        columns = max(1, self.num_columns(iq.shape[1], sample_rate_hz))
        with torch.autocast(iq.device.type, enabled=False):
            power, exponent = scale.power(iq, columns)
            inside = power > 0
            floor = power.amax(dim=(1, 2), keepdim=True) * 10 ** (-DYNAMIC_RANGE_DB / 10)
            power = torch.maximum(power, floor).clamp_min_(torch.finfo(torch.float32).tiny)
            planes = power.log10_().mul_(10).add_((20 * math.log10(2)) * exponent[:, None, None])[:, None]
            if CP in self.channels:
                cells = columns, scale.column_s, scale.rows, scale.row_hz, scale.rate_hz
                planes = torch.cat([planes, cyclic_prefix.correlation(iq, exponent, *cells)], dim=1)
            if is_real:
                inside[:, : scale.rows // 2] = False
            return planes.masked_fill_(~inside[:, None], OUTSIDE)

    def from_decibels(self, decibels):
        """The last step: power to zero mean and unit variance over the cells inside, float32.

        Args:
            decibels: of `decibels`, any float type, [B, C, F, T]; the power may have any offset.
        """
        images = decibels.float()
        power = images[:, :1]
        inside = power != OUTSIDE
        count = inside.sum(dim=(2, 3), keepdim=True).clamp_min(1)
        centred = torch.where(inside, power, 0)
        centred = torch.where(inside, centred - centred.sum(dim=(2, 3), keepdim=True) / count, 0)
        std = torch.linalg.vector_norm(centred, dim=(2, 3), keepdim=True) / count.sqrt()
        power = torch.where(inside, centred * torch.where(std > CONSTANT_DB, 1 / std, 0), OUTSIDE)
        return torch.cat([power, images[:, 1:]], dim=1)

    def inside_of(self, about):
        """Cells of a sample that lie in the recording: bool [rows, columns].

        Args:
            about: what the sample's source says of it (see `data.sampling`). Zero padding counts as inside.
        """
        rate_hz, (rows, columns) = about["sample_rate_hz"], self.image_size
        total = self.num_rows(rate_hz)
        row = about["first_row"] + torch.arange(rows)[:, None]
        column = torch.arange(columns)
        in_band = (row >= (total // 2 if about.get("is_real") else 0)) & (row < total)
        return in_band & (column < self.num_columns(about["num_samples"], rate_hz))

    # A model over planes

    def images_of(self, planes, sample_rate_hz):
        """Images that cover planes [B, C, R, T], ready for a model: [first rows · B, C, rows, columns]."""
        first_rows = self.first_rows(sample_rate_hz)
        return self.from_decibels(torch.cat([self.cut(planes, row) for row in first_rows]))

    def joined(self, values, planes, sample_rate_hz):
        """The model's probabilities of `images_of` on the cells of the planes: float [B, classes, R, T].

        Where images overlap, each counts the more the farther its border is. Cells outside are class 0.
        """
        first_rows, (rows, _) = self.first_rows(sample_rate_hz), self.image_size
        total, columns = planes.shape[2:]
        border = torch.arange(rows, device=values.device)
        weight = (torch.minimum(border, rows - 1 - border) + 1.0)[:, None]  # (rows, 1)
        sums = values.new_zeros(len(planes), values.shape[1], total, columns)
        weights = values.new_zeros(total, 1)
        for first, part in zip(first_rows, values.unflatten(0, (len(first_rows), -1)), strict=True):
            low, high = max(0, first), min(total, first + rows)
            inside = slice(low - first, high - first)
            sums[:, :, low:high] += part[:, :, inside, :columns] * weight[inside]
            weights[low:high] += weight[inside]
        outside = planes[:, :1] == OUTSIDE
        background = torch.arange(values.shape[1], device=values.device).view(1, -1, 1, 1) == 0
        return torch.where(outside, background.float(), sums / weights)

    # Axes

    def frequency_edges_hz(self, sample_rate_hz, center_freq_hz=0.0, first_row=0, rows=None):
        """Borders of rows in Hz, ascending: float64 [rows + 1]; None: of all rows of the plane."""
        total = self.num_rows(sample_rate_hz)
        number = first_row + torch.arange((total if rows is None else rows) + 1, dtype=torch.float64)
        return (center_freq_hz or 0.0) + (number - total / 2) * self.row_hz(sample_rate_hz)

    def frequency_axis_hz(self, sample_rate_hz, center_freq_hz=0.0, first_row=0, rows=None):
        """Centres of rows in Hz, ascending: float64 [rows]; None: of all rows of the plane."""
        edges = self.frequency_edges_hz(sample_rate_hz, center_freq_hz, first_row, rows)
        return (edges[1:] + edges[:-1]) / 2

    def time_axis_s(self, sample_rate_hz=None, num_samples=None):
        """Centres of an image's columns in seconds after the window's first sample: float64 [columns]."""
        return (torch.arange(self.image_size[1], dtype=torch.float64) + 0.5) * (self.column_us * 1e-6)

    def extent(self, sample_rate_hz, center_freq_hz=0.0, num_samples=None, first_row=None):
        """Outer borders of an image for matplotlib's `extent`: (first s, last s, lowest Hz, highest Hz)."""
        first_row = self.first_rows(sample_rate_hz)[0] if first_row is None else first_row
        edges = self.frequency_edges_hz(sample_rate_hz, center_freq_hz, first_row, self.image_size[0])
        return 0.0, self.duration_s, float(edges[0]), float(edges[-1])

    def extent_of(self, about):
        """`extent` of a sample by what its source says of it (see `data.sampling`); None without a rate."""
        rate = about.get("sample_rate_hz")
        return rate and self.extent(rate, about.get("center_freq_hz"), first_row=about.get("first_row"))


def _frame_samples(sample_rate_hz, row_hz, column_us):
    frame_s = max(column_us * 1e-6, 2 / row_hz)
    return next_fast_len(max(2, math.ceil(frame_s * sample_rate_hz)))


@lru_cache(maxsize=64)
def _frame_starts(num_samples, columns, hop, n_fft, device):
    """Kept on the device: a copy would make a GPU wait."""
    middles = (torch.arange(2 * columns, dtype=torch.float64) + 0.5) * hop
    starts = (middles - n_fft / 2).round().long().clamp_(0, num_samples - n_fft)
    return starts.view(columns, 2).to(device)


@lru_cache(maxsize=32)
class _Scale:
    """The tables of one sample rate."""

    def __init__(self, sample_rate_hz, row_hz, column_us):
        self.rate_hz, self.row_hz, self.column_s = sample_rate_hz, row_hz, column_us * 1e-6
        self.rows = max(1, math.floor(sample_rate_hz / row_hz + 0.5))
        self.n_fft = _frame_samples(sample_rate_hz, row_hz, column_us)
        window = torch.hann_window(self.n_fft, periodic=True, dtype=torch.float64)
        self._window = (window / window.sum()).float().repeat_interleave(2)  # for I and for Q
        self._weights, self._products = self._row_weights()
        self._on = {}  # device: tables on it

    def _row_weights(self):
        """Shares of FFT bins in rows [n_fft, rows], both ascending, and slices of a few rows and their bins."""
        bin_hz = self.rate_hz / self.n_fft
        bin_low = (torch.arange(self.n_fft, dtype=torch.float64) - self.n_fft // 2 - 0.5)[:, None] * bin_hz
        row_low = (torch.arange(self.rows, dtype=torch.float64) - self.rows / 2)[None, :] * self.row_hz
        overlap = torch.minimum(bin_low + bin_hz, row_low + self.row_hz) - torch.maximum(bin_low, row_low)
        weights = overlap.clamp_min_(0)
        weights = (weights / weights.sum(dim=0)).float()
        products = []
        for first in range(0, self.rows, 32):
            rows = slice(first, min(first + 32, self.rows))
            bins = weights[:, rows].any(dim=1).nonzero().flatten().tolist()
            products.append((rows, slice(bins[0], bins[-1] + 1)))
        return weights, products

    def _tables(self, device):
        if device not in self._on:
            self._on[device] = self._window.to(device), self._weights.to(device)
        return self._on[device]

    def power(self, iq, columns):
        """(mean power of cells [B, rows, columns], exponent of two that it lacks [B]) of IQ [B, S, 2]."""
        table, weights = self._tables(iq.device)
        # scale by a power of two, so that no gain makes powers overflow or vanish
        components = iq.flatten(1)
        peak = torch.maximum(components.amax(dim=1).float(), -components.amin(dim=1).float())  # (B,)
        exponent = torch.frexp(peak).exponent.clamp(-100, 100)
        window = torch.ldexp(torch.ones_like(peak), -exponent)[:, None] * table  # (B, 2 * n_fft)
        hop = self.column_s * self.rate_hz / 2
        starts = _frame_starts(iq.shape[1], columns, hop, self.n_fft, iq.device)  # (columns, 2)
        bins = column_power(iq, window, starts)  # (B, columns, n_fft)
        if not iq.is_floating_point():  # integers, not yet in [-1, 1)
            exponent = exponent - (8 * iq.element_size() - 1)
        if iq.device.type != "cpu":
            return (bins @ weights).transpose(1, 2) / 2, exponent
        power = bins.new_empty(len(iq), self.rows, columns)
        for rows, some in self._products:
            part = weights[some, rows].T
            for one, done in zip(bins, power, strict=True):
                torch.mm(part, one[:, some].T, out=done[rows])
        return power.div_(2), exponent
