"""The channel "cp" of `radio.grid`: correlation of a signal with itself at the symbol lengths of LTE and NR.

A cyclic prefix repeats the end of its symbol, so OFDM correlates at the symbol's length without the prefix,
the inverse of its subcarrier spacing: 5 to 7 % for LTE and NR, about 3 % (of chance) for noise.
"""

import math
from functools import lru_cache

import torch
from scipy.fft import next_fast_len
from torch.nn import functional as F

# Symbol lengths of 15, 30 and 60 kHz spacing (TS 38.211 4.2), in blocks of the spectrogram.
LAGS_S = (1 / 15e3, 1 / 30e3, 1 / 60e3)
BLOCK_ROWS, BLOCK_COLUMNS = 8, 16  # cells that share a value
BAND_HZ = 1.44e6  # of a value: eight resource blocks of 15 kHz spacing
# White over this band: a resource block of 15 kHz spacing, and a whole number of the ripples of all lags.
WHITE_HZ = 180e3
STRONGEST = 8.0  # a bin counts at most this often as much as its neighbours' mean: spurs are in few bins
# Offset and scale of the channel: noise has a mean of 0 and a standard deviation of 0.4, since three planes
# of it should not outweigh the power in the loss of pretraining.
CP_MEAN, CP_SCALE = 0.03, 0.04
CP_MOST = 4.0
_BLOCK_VALUES = 2**17  # samples of the blocks that are transformed at once


def correlation(iq, exponent, columns, column_s, rows, row_hz, rate_hz):
    """Magnitude of the correlation at `LAGS_S`, offset and scaled: float32 [B, lags, rows, columns].

    A value stands for `BAND_HZ` and about a millisecond. The spectrum is white over `WHITE_HZ` first, so that
    the edges of resource blocks do not count. The correlation at a lag is the ripple of the spectrum with the
    period 1 / lag, so each block needs one FFT for all bands and lags.

    Args:
        iq: I and Q, float32, int16 or int8 [B, S, 2].
        exponent: of two, above that of the largest float samples: int32 [B].
        columns, column_s, rows, row_hz: number and size of the cells of the plane.
    """
    block_s = BLOCK_COLUMNS * column_s
    length = min(iq.shape[1], next_fast_len(math.ceil(2 * block_s * rate_hz)))
    count = -(-columns // BLOCK_COLUMNS)
    middles = (torch.arange(count, dtype=torch.float64) + 0.5) * (block_s * rate_hz)
    starts = (middles - length / 2).round().long().clamp_(0, iq.shape[1] - length).tolist()
    firsts, wide, window, turn, ahead = _tables(rate_hz, row_hz, rows, length, iq.device)
    group = max(1, round(WHITE_HZ / 12 * length / rate_hz))  # bins that share a mean of neighbours
    found = torch.empty(len(iq), count, len(firsts), len(LAGS_S), device=iq.device)
    at_a_time = max(1, _BLOCK_VALUES // (len(iq) * length))
    for at in range(0, count, at_a_time):
        blocks = torch.stack([iq[:, start : start + length] for start in starts[at : at + at_a_time]], dim=1)
        if blocks.is_floating_point():
            blocks = torch.ldexp(blocks, -exponent.float()[:, None, None, None])
        spectrum = torch.fft.fft(torch.view_as_complex(blocks.float()) * window)  # (B, n, length)
        real, imaginary = torch.view_as_real(spectrum).unbind(dim=-1)
        # a sum over pairs takes three times as long
        power = torch.fft.fftshift((real * real).addcmul_(imaginary, imaginary), dim=-1)

        # white over `WHITE_HZ`
        mean = F.avg_pool1d(power, group, group, ceil_mode=True, count_include_pad=False)
        mean = F.avg_pool1d(mean, 13, 1, padding=6, count_include_pad=False)
        mean = mean.repeat_interleave(group, dim=-1)[..., :length]
        flat = (power / mean.clamp_min_(torch.finfo(torch.float32).tiny)).clamp_max_(STRONGEST)

        # ripple of each step of rows, then of each band
        steps = torch.stack([flat[..., first : first + len(turn)] for first in firsts], dim=2)
        steps = steps @ turn  # (B, n, steps, 2 * lags + 1)
        real, imaginary, energy = steps.split((len(LAGS_S), len(LAGS_S), 1), dim=-1)
        ripple = torch.complex(real, imaginary) * ahead
        if wide > 1:
            ripple, energy = (_sums_of(one, wide) for one in (ripple, energy))
        found[:, at : at + at_a_time] = ripple.abs() / energy.clamp_min(1e-9)
    found = found.sub_(CP_MEAN).div_(CP_SCALE).clamp_max_(CP_MOST).permute(0, 3, 2, 1)
    found = found.repeat_interleave(BLOCK_ROWS, dim=2)[:, :, :rows]
    return found.repeat_interleave(BLOCK_COLUMNS, dim=3)[..., :columns]


@lru_cache(maxsize=32)
def _tables(rate_hz, row_hz, rows, length, device):
    """Tables for blocks of `length` samples.

    Returns:
        first bin of each step of rows, a list; steps of a band; window [length]; cosine and sine of the lags,
        and ones, [bins, 2 * lags + 1]; phase of each step's first bin [steps, lags].
    """
    bin_hz = rate_hz / length
    steps = -(-rows // BLOCK_ROWS)
    edges = (torch.arange(steps + 1) * BLOCK_ROWS - rows / 2) * row_hz / bin_hz + length // 2
    bins = max(1, min(length, round(BLOCK_ROWS * row_hz / bin_hz)))
    first = edges[:-1].round().long().clamp_(0, length - bins)
    lags = 2 * math.pi * bin_hz * torch.tensor(LAGS_S, dtype=torch.float64)
    inside = torch.arange(bins, dtype=torch.float64)[:, None] * lags
    turn = torch.cat([inside.cos(), inside.sin(), torch.ones(bins, 1)], dim=1).float()
    ahead = torch.polar(torch.ones(steps, len(LAGS_S), dtype=torch.float64), first[:, None] * lags)
    window = torch.hann_window(length, periodic=True)
    wide = min(steps, max(1, round(BAND_HZ / (BLOCK_ROWS * row_hz))))
    tables = (window, turn, ahead.to(torch.complex64))
    return first.tolist(), wide, *(table.to(device) for table in tables)


def _sums_of(values, wide):
    """Sums over `wide` neighbours in dimension 2, shifted inwards at the ends: [B, n, steps, X]."""
    sums = values.unfold(2, wide, 1).sum(dim=-1)
    place = torch.arange(values.shape[2], device=values.device) - wide // 2
    return sums[:, :, place.clamp_(0, values.shape[2] - wide)]
