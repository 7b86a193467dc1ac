"""Find LTE and 5G NR cells by their synchronization signals: identity, frequency, timing, LTE's bandwidth.

The search has two stages, for LTE and for NR with SSBs of 15 and 30 kHz (TS 38.213 4.1 has no others below
6 GHz). `cell_peaks` lists the places that look most like a PSS, at any frequency in the band. `cell_evidence`
weighs PSS and SSS there. Normal cyclic prefix only.

False alarms. The PSS orders the places; the SSS, another symbol, decides. Whatever is not a cell has an SSS
evidence of m decades at one of N looks with a probability of N · 10^-m at most. The place of rank r is allowed
a share of 1 / (r H) of a standard's `FALSE_ALARMS`, where H is the sum of 1 / r over all places. So the
threshold grows with the number of places and of identities, and not with the length or the band.

The whole band is searched even if its frequency is known. Rasters would save little: with clocks off by 50 ppm
most of LTE's frequencies remain, and NR's three PSS share their correlators only if all frequencies are there.
Nor do all SSBs lie on the synchronization raster (those of secondary cells need not, TS 38.104 5.4.3.1).
"""

import math
from dataclasses import dataclass, replace

import torch
from torch.nn.functional import pad

from radio.carriers import LTE
from radio.cell_bandwidth import lte_num_rb
from radio.cell_evidence import WIDTHS, weigh
from radio.cell_peaks import Peaks, find_peaks
from radio.cell_signals import lte_sync, nr_sync

FALSE_ALARMS = 1e-3  # captures without a cell in which one is found, at most
LONGEST_S = 0.04  # of a stretch that is searched, from its start
_NR_FIRST_S = 0.0204  # an SSB every 20 ms, the period that a UE assumes (TS 38.213 4.1), and the SSB itself
_LTE_FIRST_S = 0.02  # where PSS are looked for; all of the stretch then counts
_PLACES = 256  # weighed, of each standard
_STANDARDS = 3  # LTE, NR with 15 and 30 kHz
_HARMONIC = sum(1 / rank for rank in range(1, _PLACES + 1))
_AGAIN = 3.0  # decades of SSS that make another SSB of a known identity and frequency
_EDGE = 0.1  # of the PSS' width that may lie beyond the band

# Lines, DC and what surrounds it, and other narrow signals are cut to `_LIMIT` times what is around them.
_LIMIT = 20
_GROUP_HZ = 2e3
_AROUND = 128  # groups to either side
_HOP = 32  # groups that share what is around them


@dataclass(frozen=True)
class Cell:
    """A cell. Times are those of the useful part of its PSS, after the prefix, from the stretch's first sample.

    Attributes:
        technology: `radio.carriers.LTE` or `NR`.
        cell_id: physical cell identity, 0 to 503 or 0 to 1007.
        center_freq_hz: of LTE's carrier (its unused subcarrier), or of NR's SSB (halfway between its subcarriers
            119 and 120: the synchronization raster's frequency is half a subcarrier higher). As received: at RF
            if the stretch's frequency is known, else from the band's centre.
        spacing_hz: of its subcarriers, in NR of the SSB's.
        duplex: "FDD" or "TDD" of LTE, "" of NR.
        start_s: of the first PSS heard.
        num_rb: LTE's bandwidth in resource blocks; None if the reference signals do not tell, and for NR.
        metric: -log10 of the probability that noise gives PSS and SSS as much evidence at one place, for one
            identity.
        snr_db: of a resource element of PSS and SSS.
        occasions_s: NR's SSBs that were heard, ascending; () for LTE.
    """

    technology: str
    cell_id: int
    center_freq_hz: float
    spacing_hz: float
    duplex: str
    start_s: float
    num_rb: int | None
    metric: float
    snr_db: float
    occasions_s: tuple


def search(iq, sample_rate_hz, center_freq_hz=None, is_real=False, near_hz=None):
    """The cells in the first 40 ms of a stretch, strongest first: one for each technology, centre and identity.

    LTE needs a PSS with its SSS and 0.96 MHz, NR an SSB and 127 of its subcarriers. What is found are SSBs with
    periods of up to 20 ms, and others by chance.

    Args:
        iq: complex64 [samples] or [channels, samples], NumPy or torch; channels are searched one by one.
        center_freq_hz: of the band.
        is_real: real samples; only positive frequencies are searched.
        near_hz: (low, high) pairs, in the frequencies of `Cell.center_freq_hz`; other centres are not searched.

    Returns:
        A list of `Cell`; empty for short or silent stretches.

    Raises:
        ValueError: not complex samples, no positive sample rate, or samples or ranges that are not numbers.
    """
    iq = torch.as_tensor(iq)
    if iq.dim() not in (1, 2) or not iq.is_complex():
        raise ValueError(f"expected complex [samples] or [channels, samples]: {iq.dtype} {list(iq.shape)}")
    if not 0 < sample_rate_hz < math.inf:
        raise ValueError(f"expected a positive sample rate: {sample_rate_hz=}")
    origin_hz = center_freq_hz or 0.0
    near_hz = [(low - origin_hz, high - origin_hz) for low, high in near_hz] if near_hz is not None else None
    if near_hz is not None and not all(low <= high for low, high in near_hz):
        raise ValueError(f"expected (low, high) pairs in Hz: {near_hz=}")
    channels = iq.to("cpu", torch.complex64).reshape(-1, iq.shape[-1])
    found = [cell for one in channels for cell in _search(one, sample_rate_hz, is_real, near_hz)]
    found = _distinct(sorted(found, key=lambda cell: -cell.metric))
    return [replace(cell, center_freq_hz=origin_hz + cell.center_freq_hz) for cell in found]


def _search(iq, sample_rate_hz, is_real, near_hz):
    iq = iq[: round(LONGEST_S * sample_rate_hz)]
    if not torch.isfinite(torch.view_as_real(iq)).all():
        raise ValueError("expected finite samples")
    if not iq.any():
        return []
    iq = _without_lines(iq - iq.mean(), sample_rate_hz)
    found = []
    for sync in (lte_sync(), nr_sync(15e3), nr_sync(30e3)):
        bands = _bands(sync, sample_rate_hz, is_real, near_hz)
        if bands and len(iq) > 2 * sync.symbol_s * sample_rate_hz:
            found += _of_standard(iq, sample_rate_hz, sync, bands)
    return found


def _bands(sync, sample_rate_hz, is_real, near_hz):
    """Where the centre of a PSS may be, from the band's centre."""
    reach_hz = sample_rate_hz / 2 - (1 - 2 * _EDGE) * sync.half_hz
    lowest_hz = (1 - 2 * _EDGE) * sync.half_hz if is_real else -reach_hz
    offset_hz = 0.0 if sync.technology == LTE else sync.spacing_hz / 2
    near_hz = [(-math.inf, math.inf)] if near_hz is None else near_hz
    bands = [(max(low + offset_hz, lowest_hz), min(high + offset_hz, reach_hz)) for low, high in near_hz]
    return [(low, high) for low, high in bands if low <= high]


def _of_standard(iq, sample_rate_hz, sync, bands):
    is_lte = sync.technology == LTE
    first_s = _LTE_FIRST_S if is_lte else _NR_FIRST_S
    peaks = find_peaks(iq[: round(first_s * sample_rate_hz)], sample_rate_hz, sync, bands)
    candidates = weigh(iq, sample_rate_hz, sync, Peaks(*(one[:_PLACES] for one in peaks)))
    candidates.sort(key=lambda one: -one.pss_metric)
    looks = sync.sss[0, ..., 0].size * len(sync.after_s) * len(WIDTHS)
    needed = math.log10(looks * _HARMONIC * _STANDARDS / FALSE_ALARMS)
    sure = [one for rank, one in enumerate(candidates, 1) if one.sss_metric >= needed + math.log10(rank)]
    cells = []
    for one in sorted(sure, key=lambda one: -one.metric):
        if any(
            cell.cell_id == one.cell_id and abs(cell.center_freq_hz - one.freq_hz) < sync.spacing_hz
            for cell in cells
        ):
            continue
        num_rb, starts_s = None, one.starts_s
        if is_lte:
            num_rb = lte_num_rb(
                iq, sample_rate_hz, one.cell_id, one.duplex, one.freq_hz, one.starts_s[0], one.half
            )
        else:
            starts_s = _occasions(one, candidates, sync)
        cells.append(
            Cell(
                sync.technology,
                one.cell_id,
                one.freq_hz,
                sync.spacing_hz,
                one.duplex,
                max(0.0, starts_s[0]),
                num_rb,
                one.metric,
                one.snr_db,
                () if is_lte else starts_s,
            )
        )
    offset_hz = 0.0 if is_lte else sync.spacing_hz / 2
    return [replace(cell, center_freq_hz=cell.center_freq_hz - offset_hz) for cell in cells]


def _occasions(found, candidates, sync):
    """Starts of the SSBs with a cell's identity and frequency, ascending."""
    same = [one for one in candidates if one.cell_id == found.cell_id and one.sss_metric >= _AGAIN]
    near = [one for one in same if abs(one.freq_hz - found.freq_hz) < sync.spacing_hz / 2]
    starts_s = sorted({*found.heard, *(start for one in near for start in one.heard)} or found.starts_s)
    return tuple(
        one for one, before in zip(starts_s, [-1.0, *starts_s], strict=False) if one - before > sync.symbol_s
    )


def _without_lines(iq, sample_rate_hz):
    """Cut lines, DC and what surrounds it, and other narrow signals to `_LIMIT` times what is around them."""
    bins = torch.fft.fft(iq)
    size = max(1, round(_GROUP_HZ * len(iq) / sample_rate_hz))  # bins of a group
    groups = -(-len(iq) // size)
    squares = pad(bins.real.square() + bins.imag.square(), (0, groups * size - len(iq)))
    power = squares.view(groups, size).mean(1)
    middles = torch.arange(_HOP // 2, groups + _HOP // 2, _HOP)
    around = (middles[:, None] + torch.arange(-_AROUND, _AROUND + 1)) % groups  # the spectrum is a circle
    median = power[around].median(1).values.repeat_interleave(_HOP)[:groups]
    gain = (_LIMIT * median / power.clamp(min=torch.finfo(torch.float32).tiny)).clamp(max=1).sqrt()
    return torch.fft.ifft(bins * gain.repeat_interleave(size)[: len(iq)])


def _distinct(cells):
    """Without cells of a technology, identity and centre that stand before in the list."""
    kept = []
    for cell in cells:
        same = [one for one in kept if (one.technology, one.cell_id) == (cell.technology, cell.cell_id)]
        if all(abs(one.center_freq_hz - cell.center_freq_hz) > cell.spacing_hz for one in same):
            kept.append(cell)
    return kept
