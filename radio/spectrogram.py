"""The front end: windows of complex IQ to spectrogram images, and the axes that belong to them."""

import math

import torch
from torch import nn

# Cells this far under the strongest cell of their spectrogram are set to it. 100 dB is what a 16-bit receiver spans;
# without a bound relative to the signal, stretches of exact zeros would set the scale of the whole image.
DYNAMIC_RANGE_DB = 100.0

# A spectrogram whose standard deviation is below this has nothing in it (all-zero or constant samples).
CONSTANT_DB = 1e-3

# Complex STFT values held at once (a 16 ms window at 61.44 Msps has 2 million): what stays in a CPU's cache is twice as
# fast there, while an accelerator wants few, large launches.
CHUNK_VALUES_CPU = 2**18
CHUNK_VALUES_ACCELERATOR = 2**26

NORMALIZATIONS = ("per_spectrogram", "none")


class Spectrogram(nn.Module):
    """Hann STFT, power, mean power over each image cell, dB, zero mean and unit variance per spectrogram.

    A window of IQ is cut into `columns × q` frames of `n_fft` samples, evenly spread from its first to its last sample;
    `q` is the smallest count for which frames overlap by half or more. An image column is the mean power of its `q`
    frames, an image row the mean power of the FFT bins that it covers, weighted by the share of each bin that lies in
    the row. So every column and row stands for the same amount of signal whatever the sizes, and mean power is kept.

    Powers are relative to full scale: a complex tone of magnitude 1 gives 0 dB in its FFT bin.

    Args:
        n_fft: samples per FFT, at least 2; odd sizes work.
        duration_s: length of the windows this front end is meant for. Used by `num_samples` and `time_axis_s`; the
            transform itself takes windows of any length of at least `n_fft` samples.
        image_size: (frequency rows, time columns).
        normalize: "per_spectrogram" for zero mean and unit variance, "none" for dB.

    Raises:
        ValueError: a parameter outside these limits.
    """

    def __init__(self, n_fft=1024, duration_s=0.016, image_size=(224, 224), normalize="per_spectrogram"):
        super().__init__()
        rows, columns = (int(size) for size in image_size)
        if n_fft < 2 or rows < 1 or columns < 1 or not 0 < duration_s < math.inf:
            raise ValueError(f"expected n_fft >= 2, image sides >= 1, duration > 0: {n_fft=} {image_size=} {duration_s=}")
        if normalize not in NORMALIZATIONS:
            raise ValueError(f"expected normalize to be one of {NORMALIZATIONS}: {normalize=}")
        self.n_fft = int(n_fft)
        self.duration_s = float(duration_s)
        self.image_size = (rows, columns)
        self.normalize = normalize

        window = torch.hann_window(self.n_fft, periodic=True, dtype=torch.float64)
        self.register_buffer("window", (window / window.sum()).float(), persistent=False)  # [n_fft]
        self.register_buffer("row_weights", _row_weights(self.n_fft, rows).float(), persistent=False)  # [n_fft, rows]

    def settings(self):
        """The parameters as plain values: `Spectrogram(**settings)` makes the same front end."""
        return {
            "n_fft": self.n_fft,
            "duration_s": self.duration_s,
            "image_size": list(self.image_size),
            "normalize": self.normalize,
        }

    def num_samples(self, sample_rate_hz):
        """Samples in a window of `duration_s`, rounded to the nearest."""
        return round(self.duration_s * sample_rate_hz)

    def forward(self, iq):
        """IQ windows to images.

        Args:
            iq: complex [batch, samples] on any device, at least `n_fft` samples.

        Returns:
            float32 [batch, 1, frequency, time]; row 0 is the lowest frequency.
        """
        return self.from_decibels(self.decibels(iq))

    def from_decibels(self, decibels):
        """The last step alone, for spectrograms already in dB: [B, C, F, T] of any float type -> float32."""
        return self.normalized(decibels) if self.normalize == "per_spectrogram" else decibels.float()

    def decibels(self, iq):
        """Mean power of each image cell in dB relative to full scale: complex [B, S] -> float32 [B, 1, rows, columns]."""
        if iq.dim() != 2 or not iq.is_complex() or iq.shape[1] < self.n_fft:
            raise ValueError(f"expected complex [batch, samples >= {self.n_fft}]: {iq.dtype} {list(iq.shape)}")
        starts = self.frame_starts(iq.shape[1]).view(self.image_size[1], -1).to(iq.device)  # (columns, q)
        budget = CHUNK_VALUES_CPU if iq.device.type == "cpu" else CHUNK_VALUES_ACCELERATOR
        windows = max(1, budget // (starts.numel() * self.n_fft))
        with torch.autocast(iq.device.type, enabled=False):
            return torch.cat([self._decibels(part, starts, budget) for part in iq.to(torch.complex64).split(windows)])

    def _decibels(self, iq, starts, budget):
        # Scale by a power of two, so that powers neither overflow nor vanish whatever the receiver's gain was.
        components = torch.view_as_real(iq).flatten(1)  # (B, 2 * S)
        peak = torch.maximum(components.amax(dim=1), -components.amin(dim=1))  # (B,); aminmax is 25 times slower
        exponent = torch.frexp(peak).exponent.clamp(-100, 100)
        window = torch.ldexp(torch.ones_like(peak), -exponent)[:, None, None] * self.window  # (B, 1, n_fft)

        columns = max(1, budget // (len(iq) * starts.shape[1] * self.n_fft))
        power = torch.cat([self._column_power(iq, window, block) for block in starts.split(columns)], dim=1)
        power = (power @ self.row_weights).transpose(1, 2)  # (B, rows, columns)

        floor = power.amax(dim=(1, 2), keepdim=True) * 10 ** (-DYNAMIC_RANGE_DB / 10)
        power = torch.maximum(power, floor).clamp_min(torch.finfo(torch.float32).tiny)
        decibels = 10 * torch.log10(power) + (20 * math.log10(2)) * exponent[:, None, None]
        return decibels[:, None]

    def _column_power(self, iq, window, starts):
        """Mean power in every FFT bin over the frames of each column.

        iq [B, S], window [B, 1, n_fft], starts [columns, q] -> [B, columns, n_fft].
        """
        frames = iq.unfold(1, self.n_fft, 1)[:, starts.flatten()] * window  # (B, columns * q, n_fft)
        # Squares of real and imaginary parts, side by side until the mean has left few of them to add.
        squares = torch.view_as_real(torch.fft.fft(frames)).flatten(2).square()  # (B, columns * q, 2 * n_fft)
        squares = squares.unflatten(1, starts.shape).mean(dim=2)
        return squares[..., ::2] + squares[..., 1::2]

    @staticmethod
    def normalized(decibels):
        """Zero mean and unit variance for each spectrogram: [B, C, F, T] -> float32; a constant one gives zeros."""
        decibels = decibels.float()
        centred = decibels - decibels.mean(dim=(2, 3), keepdim=True)
        std = torch.linalg.vector_norm(centred, dim=(2, 3), keepdim=True) / math.sqrt(centred[0, 0].numel())
        return centred.mul_(torch.where(std > CONSTANT_DB, 1 / std, 0))

    def frame_starts(self, num_samples):
        """First sample of every STFT frame: int64 [columns * q], evenly spread over a window of `num_samples`."""
        columns = self.image_size[1]
        half_overlapped = 2 * (num_samples - self.n_fft) / self.n_fft + 1
        count = columns * max(1, math.ceil(half_overlapped / columns))
        if count == 1:
            return torch.tensor([(num_samples - self.n_fft) // 2])
        return torch.linspace(0, num_samples - self.n_fft, count, dtype=torch.float64).round().long()

    def frequency_edges_hz(self, sample_rate_hz, center_freq_hz=0.0):
        """Borders of the image rows in Hz, ascending: float64 [rows + 1].

        FFT bin k is centred on k·fs/n_fft, so the image reaches half a bin below the lowest of them: rows are centred on
        DC only where `n_fft` is odd.
        """
        rows = self.image_size[0]
        bins = torch.arange(rows + 1, dtype=torch.float64) * self.n_fft / rows - self.n_fft // 2 - 0.5
        return (center_freq_hz or 0.0) + bins * sample_rate_hz / self.n_fft

    def frequency_axis_hz(self, sample_rate_hz, center_freq_hz=0.0):
        """Centres of the image rows in Hz, ascending: float64 [rows]; relative to the centre where that is unknown."""
        edges = self.frequency_edges_hz(sample_rate_hz, center_freq_hz)
        return (edges[1:] + edges[:-1]) / 2

    def time_axis_s(self, sample_rate_hz, num_samples=None):
        """Centres of the image columns in seconds after the window's first sample: float64 [columns]."""
        starts = self.frame_starts(num_samples or self.num_samples(sample_rate_hz)).double()
        # A periodic Hann window peaks n_fft / 2 samples after its first.
        return (starts.unflatten(0, (self.image_size[1], -1)).mean(dim=1) + self.n_fft / 2) / sample_rate_hz

    def extent(self, sample_rate_hz, center_freq_hz=0.0, num_samples=None):
        """Outer borders of the image: (first s, last s, lowest Hz, highest Hz), as matplotlib's `extent` takes them."""
        times = self.time_axis_s(sample_rate_hz, num_samples)
        # Columns share one FFT where the window holds no more: that is then what each of them spans.
        span_s = times[-1] - times[0] if len(times) > 1 and times[-1] > times[0] else None
        half_column_s = self.n_fft / 2 / sample_rate_hz if span_s is None else span_s / (len(times) - 1) / 2
        edges = self.frequency_edges_hz(sample_rate_hz, center_freq_hz)
        return (float(times[0] - half_column_s), float(times[-1] + half_column_s), float(edges[0]), float(edges[-1]))


def _row_weights(n_fft, rows):
    """Share of FFT bin k (in the order of the FFT: DC first) in image row r: float64 [n_fft, rows], columns sum to 1."""
    bin_low = torch.arange(n_fft, dtype=torch.float64)[:, None]
    row_low = torch.arange(rows, dtype=torch.float64)[None, :] * n_fft / rows
    overlap = torch.minimum(bin_low + 1, row_low + n_fft / rows) - torch.maximum(bin_low, row_low)
    return torch.fft.ifftshift(overlap.clamp_min(0) * rows / n_fft, dim=0)
