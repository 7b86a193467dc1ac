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

from radio.carriers import LTE, NR
from radio.cell_bandwidth import lte_num_rb
from radio.cell_evidence import HALF_FRAME_S, WIDTHS, exact_freq_hz, weigh
from radio.cell_peaks import find_peaks
from radio.cell_signals import lte_sync, nr_sync

FALSE_ALARMS = 1e-3  # captures without a cell in which one is found, at most
LONGEST_S = 0.04  # of a stretch that is searched, from its start
_NR_FIRST_S = 0.0204  # an SSB every 20 ms, the period that a UE assumes (TS 38.213 4.1), and the SSB itself
_LTE_FIRST_S = 0.02  # where PSS are looked for; all of the stretch then counts
_PLACES = {LTE: 64, NR: 128}  # weighed; of LTE's, which may be images, with those that they may be images of
_STANDARDS = 3  # LTE, NR with 15 and 30 kHz
# An LTE cell sends reference signals in each downlink subframe (TS 36.211 6.10.1): a cell without them is one by
# chance, unless its SSS leave no doubt. In standard deviations; in decades.
_LEAST_CRS, _SURE_SSS = 2.5, 10.0
_AGAIN = 3.0  # decades of SSS that make another SSB of a known identity and frequency
# A receiver's spur, with a cell's identity and timing, is this much weaker; carriers of one site differ less.
_IMAGE_DB = 20
_SAME_TIME_S = 2e-6
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
    Much weaker images of a cell at other frequencies are left out.

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
    channels = iq.to("cpu", torch.complex64).view(-1, *iq.shape[-1:]) if iq.numel() else []
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
    first = iq[: round((_LTE_FIRST_S if is_lte else _NR_FIRST_S) * sample_rate_hz)]
    peaks = find_peaks(first, sample_rate_hz, sync, bands, _PLACES[sync.technology])
    candidates = weigh(iq, sample_rate_hz, sync, peaks)
    cells = []
    for one in _sure(candidates, sync):
        starts_s, num_rb = one.starts_s, None
        freq_hz = exact_freq_hz(iq, sample_rate_hz, sync, one)
        if is_lte:
            known = (one.cell_id, one.duplex, freq_hz, one.starts_s[0], one.half)
            num_rb, crs = lte_num_rb(iq, sample_rate_hz, *known)
            if crs < _LEAST_CRS and one.sss < _SURE_SSS:
                continue
        else:
            starts_s = _occasions(one, candidates, sync)
        cells.append(
            Cell(
                technology=sync.technology,
                cell_id=one.cell_id,
                center_freq_hz=freq_hz - (0 if is_lte else sync.spacing_hz / 2),
                spacing_hz=sync.spacing_hz,
                duplex=one.duplex,
                start_s=starts_s[0],
                num_rb=num_rb,
                metric=one.both,
                snr_db=one.snr_db,
                occasions_s=() if is_lte else starts_s,
            )
        )
    return cells


def _sure(candidates, sync):
    """The candidates that count as cells, strongest first, one for each identity and frequency."""
    looks = sync.sss[0, ..., 0].size * len(sync.after_s) * len(WIDTHS)
    harmonic = sum(1 / rank for rank in range(1, len(candidates) + 1))
    kept = []
    for rank, one in enumerate(sorted(candidates, key=lambda one: -one.pss), 1):
        if one.sss >= math.log10(looks * rank * harmonic * _STANDARDS / FALSE_ALARMS):
            kept.append(one)
    distinct = []
    for one in sorted(kept, key=lambda one: -one.both):
        if not any(_is_same(one, other, sync) for other in distinct):
            distinct.append(one)
    return distinct


def _is_same(one, other, sync):
    return one.cell_id == other.cell_id and abs(one.freq_hz - other.freq_hz) < sync.spacing_hz


def _occasions(found, candidates, sync):
    """Starts of the SSBs with a cell's identity and frequency, ascending."""
    same = [one for one in candidates if _is_same(one, found, sync) and one.sss >= _AGAIN]
    starts_s = sorted(
        {*found.heard_s, *(start_s for one in same for start_s in one.heard_s)} or found.starts_s
    )
    later = zip(starts_s, [-math.inf, *starts_s], strict=False)
    return tuple(start_s for start_s, before_s in later if start_s - before_s > sync.symbol_s)


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
    """Without what stands before in the list: a cell's technology and identity at its centre, or its images."""
    kept = []
    for cell in cells:
        same = [one for one in kept if (one.technology, one.cell_id) == (cell.technology, cell.cell_id)]
        if not any(_is_again(cell, one) for one in same):
            kept.append(cell)
    return kept


def _is_again(cell, one):
    late_s = math.remainder(cell.start_s - one.start_s, HALF_FRAME_S)
    is_image = one.snr_db - cell.snr_db > _IMAGE_DB and abs(late_s) < _SAME_TIME_S
    return is_image or abs(one.center_freq_hz - cell.center_freq_hz) <= cell.spacing_hz
