"""The front end: windows of complex IQ to spectrogram images, and the images' axes."""

import math

import torch
from torch import nn

from radio.stft import column_power

# Weaker cells are raised to this far below the strongest cell, so that exact zeros do not set the image's
# scale. A 16-bit receiver spans 100 dB.
DYNAMIC_RANGE_DB = 100.0

CONSTANT_DB = 1e-3  # a spectrogram of a lower standard deviation is constant: zeros or constant samples

# Image rows in one matrix product on a CPU. Most weights are zero, so small products skip most of the work.
ROWS_A_PRODUCT = 32

NORMALIZATIONS = ("per_spectrogram", "none")

# The front end of the published models (arXiv 2411.09996), and the default.
PUBLISHED = {"n_fft": 1024, "duration_s": 0.016}


# Limits of what fits into memory.
MOST_FFT, MOST_CELLS, MOST_WEIGHTS, MOST_S = 2**22, 2**26, 2**28, 1e5


class Spectrogram(nn.Module):
    """Hann STFT, mean power of each image cell, dB, zero mean and unit variance per spectrogram.

    `columns × q` frames of `n_fft` samples spread evenly over a window of IQ. `q` is the smallest count for
    which frames overlap by half or more. An image column is the mean power of its `q` frames. An image row is
    the mean power of its FFT bins, weighted by the share of each bin in the row. So all columns and all rows
    stand for the same amount of signal, and mean power is kept.

    Powers are relative to full scale: a complex tone of magnitude 1 gives 0 dB in its FFT bin.
    Parameters outside these limits raise a ValueError.

    Args:
        n_fft: samples per FFT, at least 2; odd sizes work.
        duration_s: length of a window for `num_samples` and `time_axis_s`. The transform takes any length of
            at least `n_fft` samples.
        image_size: (frequency rows, time columns).
        normalize: "per_spectrogram" for zero mean and unit variance, "none" for dB.
    """

    kind = "band"
    pads = False  # its images show nothing but the window
    in_chans = 1

    def __init__(self, n_fft=1024, duration_s=0.016, image_size=(224, 224), normalize="per_spectrogram"):
        super().__init__()
        rows, columns = (int(size) for size in image_size)
        whole = n_fft == int(n_fft) and 2 <= n_fft <= MOST_FFT and rows * n_fft <= MOST_WEIGHTS
        if not whole or min(rows, columns) < 1 or rows * columns > MOST_CELLS or not 0 < duration_s <= MOST_S:
            found = f"{n_fft=} {image_size=} {duration_s=}"
            most = f"{MOST_FFT}, {MOST_CELLS} cells, {MOST_S:g} s at most"
            expected = f"n_fft >= 2, image sides >= 1, duration > 0, and {most}"
            raise ValueError(f"expected {expected}: {found}")
        if normalize not in NORMALIZATIONS:
            raise ValueError(f"expected normalize in {NORMALIZATIONS}: {normalize=}")
        self.n_fft = int(n_fft)
        self.duration_s = float(duration_s)
        self.image_size = (rows, columns)
        self.normalize = normalize

        window = torch.hann_window(self.n_fft, periodic=True, dtype=torch.float64)
        window = (window / window.sum()).float().repeat_interleave(2)  # for I and for Q
        self.register_buffer("window", window, persistent=False)  # [2 * n_fft]
        weights = _row_weights(self.n_fft, rows)
        self.register_buffer("row_weights", weights.float(), persistent=False)  # [n_fft, rows]
        self._products = _products(weights)
        self._starts = (None, None, None)  # samples, device, frame starts

    def settings(self):
        """The parameters as plain values: `Spectrogram(**settings)` makes the same front end."""
        names = ("n_fft", "duration_s", "image_size", "normalize")
        return {name: getattr(self, name) for name in names} | {"image_size": list(self.image_size)}

    def num_samples(self, sample_rate_hz):
        """Samples in a window of `duration_s`, rounded to the nearest."""
        return round(self.duration_s * sample_rate_hz)

    def num_rows(self, sample_rate_hz):
        """Rows of a window."""
        return self.image_size[0]

    def num_columns(self, num_samples, sample_rate_hz):
        """Columns of a window of any length."""
        return self.image_size[1]

    def least_samples(self, sample_rate_hz):
        """Samples of the shortest window: an FFT."""
        return self.n_fft

    @property
    def least_rate_hz(self):
        """The lowest sample rate at which a window is as long as an FFT."""
        return (self.n_fft - 0.5) / self.duration_s

    def forward(self, iq, sample_rate_hz=None):
        """IQ (see `decibels`) to images: float32 [B, 1, rows, columns]; row 0 is the lowest frequency.

        The images are the same at every sample rate; `radio.grid.Grid` needs the rate.
        """
        return self.from_decibels(self.decibels(iq))

    def from_decibels(self, decibels):
        """The last step, for spectrograms already in dB: [B, C, F, T] of any float type to float32."""
        return self.normalized(decibels) if self.normalize == "per_spectrogram" else decibels.float()

    def decibels(self, iq):
        """Mean power of each image cell in dB relative to full scale.

        Args:
            iq: complex [B, S], or I and Q as float32, int16 or int8 [B, S, 2], on any device, S >= `n_fft`.
                Integers are scaled to [-1, 1), bit by bit as `radio.samples` does. Windows may share memory
                (`unfold`).

        Returns:
            float32 [B, 1, rows, columns].
        """
        is_pair = iq.dtype in (torch.float32, torch.int16, torch.int8) and iq.dim() == 3 and iq.shape[2] == 2
        if not (is_pair or (iq.is_complex() and iq.dim() == 2)) or iq.shape[1] < self.n_fft:
            expected = f"complex [batch, samples >= {self.n_fft}], or float32, int16 or int8 [..., 2]"
            raise ValueError(f"expected {expected}: {iq.dtype} {list(iq.shape)}")
        if iq.is_complex():
            iq = torch.view_as_real(iq.to(torch.complex64).resolve_conj())
        if iq.stride()[1:] != (2, 1) or iq.stride(0) % 2:
            iq = iq.contiguous()
        starts = self._frame_starts(iq.shape[1], iq.device)  # (columns, q)
        with torch.autocast(iq.device.type, enabled=False):
            # scale by a power of two, so that no gain makes powers overflow or vanish
            components = iq.flatten(1)  # (B, 2 * S)
            # to float32 before the sign changes: int16 has no 32768; aminmax is 25 times slower
            peak = torch.maximum(components.amax(dim=1).float(), -components.amin(dim=1).float())  # (B,)
            exponent = torch.frexp(peak).exponent.clamp(-100, 100)
            window = torch.ldexp(torch.ones_like(peak), -exponent)[:, None] * self.window  # (B, 2 * n_fft)
            if not iq.is_floating_point():  # integers, not yet in [-1, 1)
                exponent = exponent - (8 * iq.element_size() - 1)

            power = self._row_power(column_power(iq, window, starts))  # (B, rows, columns)
            power = power.div_(starts.shape[1])
            floor = power.amax(dim=(1, 2), keepdim=True) * 10 ** (-DYNAMIC_RANGE_DB / 10)
            power = torch.maximum(power, floor).clamp_min_(torch.finfo(torch.float32).tiny)
            decibels = power.log10_().mul_(10).add_((20 * math.log10(2)) * exponent[:, None, None])
            return decibels[:, None]

    def _row_power(self, power):
        """Power of FFT bins [B, columns, n_fft] to mean power of rows [B, rows, columns]."""
        if power.device.type != "cpu":
            return (power @ self.row_weights).transpose(1, 2)
        out = power.new_empty((len(power), *self.image_size))
        for rows, bins in self._products:
            weights = self.row_weights[bins, rows].T
            for one, done in zip(power, out, strict=True):
                torch.mm(weights, one[:, bins].T, out=done[rows])
        return out

    @staticmethod
    def normalized(decibels):
        """Zero mean and unit variance for each spectrogram, zeros if constant: [B, C, F, T] to float32."""
        decibels = decibels.float()
        centred = decibels - decibels.mean(dim=(2, 3), keepdim=True)
        std = torch.linalg.vector_norm(centred, dim=(2, 3), keepdim=True) / math.sqrt(centred[0, 0].numel())
        return centred.mul_(torch.where(std > CONSTANT_DB, 1 / std, 0))

    def frame_starts(self, num_samples):
        """First sample of every STFT frame in a window of `num_samples`: int64 [columns * q]."""
        columns = self.image_size[1]
        half_overlapped = 2 * (num_samples - self.n_fft) / self.n_fft + 1
        count = columns * max(1, math.ceil(half_overlapped / columns))
        if count == 1:
            return torch.tensor([(num_samples - self.n_fft) // 2])
        return torch.linspace(0, num_samples - self.n_fft, count, dtype=torch.float64).round().long()

    def _frame_starts(self, num_samples, device):
        """`frame_starts` on a device, [columns, q]; the last is cached, as a copy would make a GPU wait."""
        if self._starts[:2] != (num_samples, device):
            starts = self.frame_starts(num_samples).view(self.image_size[1], -1).to(device)
            self._starts = (num_samples, device, starts)
        return self._starts[2]

    def frequency_edges_hz(self, sample_rate_hz, center_freq_hz=0.0):
        """Borders of the image rows in Hz, ascending: float64 [rows + 1]. A centre of None counts as 0."""
        rows = self.image_size[0]
        bins = torch.arange(rows + 1, dtype=torch.float64) * self.n_fft / rows - self.n_fft // 2 - 0.5
        return (center_freq_hz or 0.0) + bins * sample_rate_hz / self.n_fft

    def frequency_axis_hz(self, sample_rate_hz, center_freq_hz=0.0):
        """Centres of the image rows in Hz, ascending: float64 [rows]."""
        edges = self.frequency_edges_hz(sample_rate_hz, center_freq_hz)
        return (edges[1:] + edges[:-1]) / 2

    def time_axis_s(self, sample_rate_hz, num_samples=None):
        """Centres of the image columns in seconds after the window's first sample: float64 [columns]."""
        starts = self.frame_starts(num_samples or self.num_samples(sample_rate_hz)).double()
        # a periodic Hann window peaks n_fft / 2 samples after its first
        return (starts.unflatten(0, (self.image_size[1], -1)).mean(dim=1) + self.n_fft / 2) / sample_rate_hz

    def extent(self, sample_rate_hz, center_freq_hz=0.0, num_samples=None):
        """Outer borders of the image for matplotlib's `extent`: (first s, last s, lowest Hz, highest Hz)."""
        times = self.time_axis_s(sample_rate_hz, num_samples)
        # where all columns share one FFT, each spans that FFT
        half_column_s = (times[-1] - times[0]) / max(1, len(times) - 1) / 2 or self.n_fft / 2 / sample_rate_hz
        edges = self.frequency_edges_hz(sample_rate_hz, center_freq_hz)
        borders = (times[0] - half_column_s, times[-1] + half_column_s, edges[0], edges[-1])
        return tuple(float(border) for border in borders)

    def planes(self, iq, sample_rate_hz, is_real=False):
        """`decibels`, as `radio.grid.Grid` has it."""
        return self.decibels(iq)

    def images_of(self, planes, sample_rate_hz):
        """Images that cover the planes of windows, [B, C, F, T], ready for a model: here one each."""
        return self.from_decibels(planes)

    def joined(self, values, planes, sample_rate_hz):
        """The model's probabilities of `images_of`, [B, classes, F, T], on the cells of the planes."""
        return values

    def extent_of(self, about):
        """`extent` of a sample by what its source says of it (see `data.sampling`); None without a rate."""
        rate = about.get("sample_rate_hz")
        return rate and self.extent(rate, about.get("center_freq_hz"), about.get("num_samples"))


def _row_weights(n_fft, rows):
    """Shares of FFT bins in image rows, both ascending: float64 [n_fft, rows]; columns sum to 1."""
    bin_low = torch.arange(n_fft, dtype=torch.float64)[:, None]
    row_low = torch.arange(rows, dtype=torch.float64)[None, :] * n_fft / rows
    overlap = torch.minimum(bin_low + 1, row_low + n_fft / rows) - torch.maximum(bin_low, row_low)
    return overlap.clamp_min(0) * rows / n_fft


def _products(row_weights):
    """Pairs of slices: a few rows, and the bins in which these rows have weights."""
    found = []
    for first in range(0, row_weights.shape[1], ROWS_A_PRODUCT):
        rows = slice(first, first + ROWS_A_PRODUCT)
        bins = row_weights[:, rows].any(dim=1).nonzero().flatten().tolist()
        found.append((rows, slice(bins[0], bins[-1] + 1)))
    return found
