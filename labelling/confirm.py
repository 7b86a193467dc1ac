"""Final carriers from a model's boxes, the cells that a cell search heard, and the energy in the image."""

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from labelling.regions import in_order, without_parts
from radio.carriers import LTE, NR, Carrier

# A search makes an error in at most one of 1,000 captures.
CONFIRMED = 0.999
# LTE synchronization repeats every 5 ms (TS 36.211, 6.11); an idle NR cell sends SSBs every 20 ms (TS 38.213, 4.1).
PERIOD_S = {LTE: 5e-3, NR: 20e-3}
LTE_BLOCKS = (6, 15, 25, 50, 75, 100)  # TS 36.101, table 5.6-1
# TS 38.101-1, table 5.3.2-1, by subcarrier spacing in kHz
NR_BLOCKS = {
    15: (25, 52, 79, 106, 133, 160, 216, 270),
    30: (11, 24, 38, 51, 65, 78, 106, 133, 162, 189, 217, 245, 273),
    60: (11, 18, 24, 31, 38, 51, 65, 79, 93, 107, 121, 135),
}
SSB_SUBCARRIERS = 240  # TS 38.211, 7.4.3
INSIDE = 0.5  # least share of a box in the carrier that it is a part of
# Confidence of a carrier in which no cell was heard, though it is so long and so strong, times this factor.
LEAST_SEARCHED_S, LEAST_SNR_DB = 20e-3, 10.0
DOUBT = {LTE: 0.8, NR: 0.9}
CONTRAST_DB = 6.0  # a smaller difference between loud and quiet times does not tell when a carrier is on
FITTING = 0.8  # least intersection over union of a box and a transmission bandwidth that fits it
FALL_DB = 1.0  # LTE's band may end where its power falls by so much


@dataclass(frozen=True)
class Energy:
    """Mean power of the image cells of a stretch.

    decibels: float [rows, columns], row 0 the lowest frequency.
    band_hz: the outer edges of the first and the last row. column_s: duration of a column.
    """

    decibels: np.ndarray
    band_hz: tuple
    column_s: float
    duration_s: float  # of the stretch, which may end inside the last column

    @property
    def row_hz(self):
        return (self.band_hz[1] - self.band_hz[0]) / len(self.decibels)

    def rows(self, low_hz, high_hz):
        """The slice of rows whose centres lie in a band; of a narrow band the row at its centre."""
        edges = (np.array([low_hz, high_hz]) - self.band_hz[0]) / self.row_hz
        first, end = np.clip(np.round(edges), 0, len(self.decibels)).astype(int).tolist()
        if first >= end:
            first = min(max(0, int(edges.mean())), len(self.decibels) - 1)
            end = first + 1
        return slice(first, end)

    def columns(self, start_s, end_s):
        """The slice of columns that a time touches, one or more."""
        count = self.decibels.shape[1]
        first = min(max(0, int(start_s / self.column_s)), count - 1)
        return slice(first, min(max(first + 1, math.ceil(end_s / self.column_s - 1e-6)), count))

    def by_column(self, rows):
        """dB of the mean power of rows: [columns]."""
        return 10 * np.log10((10 ** (self.decibels[rows] / 10)).mean(axis=0))

    def by_row(self, columns):
        """dB of the mean power of columns: [rows]."""
        return 10 * np.log10((10 ** (self.decibels[:, columns] / 10)).mean(axis=1))

    def snr_db(self, carrier):
        """Mean power of a carrier's cells over the floor, the lower quartile over time, then over rows."""
        floor_db = np.percentile(np.percentile(self.decibels, 25, axis=1), 25)
        columns = self.columns(carrier.start_s, carrier.end_s)
        cells = self.decibels[self.rows(carrier.freq_lower_hz, carrier.freq_upper_hz), columns]
        return float(10 * np.log10((10 ** (cells / 10)).mean()) - floor_db)


def confirm(found, weak, cells, energy, spans, min_confidence):
    """The final carriers of a stretch.

    A cell makes the boxes in its band one carrier, with its technology and identity, whatever the model says.
    NR and LTE carriers in which a cell should have been heard lose confidence.

    Args:
        found: the model's `Carrier`s, also parts of others. weak: those below `min_confidence`, which only a cell can use.
        cells: `radio.cell_search.Cell`s, frequencies as in `found`.
        energy: `Energy`.
        spans: (first s, last s, lowest Hz, highest Hz) of what was searched.

    Returns:
        (carriers sorted by start, the weak ones that no cell used, those that fell below `min_confidence`).
    """
    cells = _distinct(cells)
    confirmed = []
    for cell in cells:
        others = [_certain_band(other) for other in cells if other is not cell]
        confirmed.append(_carrier_of(cell, others, [*found, *weak], energy))
    alone, weak = ([rest for one in boxes if (rest := _without(one, confirmed))] for boxes in (found, weak))
    alone = [_doubted(one, energy, spans) for one in without_parts(alone, (NR, LTE))]
    kept = [one for one in alone if one.confidence >= min_confidence]
    fallen = [one for one in alone if one.confidence < min_confidence]
    return in_order([*confirmed, *kept]), weak, fallen


def _doubted(carrier, energy, spans):
    """With less confidence if a search should have heard its cell: long and strong enough, and seen whole."""
    if carrier.label not in DOUBT:
        return carrier
    low, high = energy.band_hz[0] + energy.row_hz, energy.band_hz[1] - energy.row_hz
    is_cut = carrier.freq_lower_hz < low or high < carrier.freq_upper_hz
    if searched_s(carrier, spans) < LEAST_SEARCHED_S or is_cut or energy.snr_db(carrier) < LEAST_SNR_DB:
        return carrier
    return replace(carrier, confidence=round(carrier.confidence * DOUBT[carrier.label], 4))


def searched_s(carrier, spans):
    """For how long the band of a carrier was searched while it was on; `spans` as in `confirm`."""
    band = carrier.freq_lower_hz, carrier.freq_upper_hz
    covering = [(start, end) for start, end, *other in spans if other[0] <= band[0] and band[1] <= other[1]]
    return sum(max(0.0, min(carrier.end_s, end) - max(carrier.start_s, start)) for start, end in covering)


def _without(box, carriers):
    """What a box covers beside the carriers at its time, or None if that is less than half of its band."""
    low, high = box.freq_lower_hz, box.freq_upper_hz
    for one in sorted(carriers, key=lambda one: one.freq_lower_hz):
        shared_s = min(box.end_s, one.end_s) - max(box.start_s, one.start_s)
        if shared_s < INSIDE * box.duration_s or one.freq_upper_hz <= low or high <= one.freq_lower_hz:
            continue
        if one.freq_lower_hz - low >= high - one.freq_upper_hz:  # the wider of the two sides
            high = one.freq_lower_hz
        else:
            low = one.freq_upper_hz
    if high - low < INSIDE * box.bandwidth_hz:
        return None
    return replace(box, freq_lower_hz=low, freq_upper_hz=high)


def _certain_band(cell):
    """(low, high) Hz that a cell surely uses: what it is known to send."""
    subcarriers = SSB_SUBCARRIERS if cell.technology == NR else 12 * (cell.num_rb or LTE_BLOCKS[0])
    half_hz = subcarriers / 2 * cell.spacing_hz
    return cell.center_freq_hz - half_hz, cell.center_freq_hz + half_hz


def _shared_hz(one, other):
    return min(one[1], other[1]) - max(one[0], other[0])


def _band_iou(one, other):
    return max(0.0, _shared_hz(one, other)) / (max(one[1], other[1]) - min(one[0], other[0]))


def _distinct(cells):
    """The strongest cell of each carrier: neighbouring cells may share one."""
    kept = []
    for cell in sorted(cells, key=lambda one: -one.metric):
        band = _certain_band(cell)

        def shares(other, band=band):
            narrower_hz = min(band[1] - band[0], other[1] - other[0])
            return _shared_hz(band, other) >= INSIDE * narrower_hz

        if not any(shares(_certain_band(other)) for other in kept):
            kept.append(cell)
    return kept


def _carrier_of(cell, others, boxes, energy):
    """The carrier of a cell. others: bands of other cells, which it does not reach into."""
    certain = _certain_band(cell)
    room = (
        max([energy.band_hz[0], *(high for low, high in others if high <= certain[0] + energy.row_hz)]),
        min([energy.band_hz[1], *(low for low, high in others if low >= certain[1] - energy.row_hz)]),
    )
    meeting = [one for one in boxes if _meets(one, certain)]
    if cell.technology == LTE:
        band = certain if cell.num_rb else _lte_band(cell, meeting, room, energy)
    else:
        band = _nr_band(cell, meeting, energy)
    low, high = max(band[0], room[0], energy.band_hz[0]), min(band[1], room[1], energy.band_hz[1])
    parts = [one for one in boxes if _band_share(one, (low, high)) >= INSIDE]
    start_s, end_s = _time_on(cell, certain, parts, energy)
    return Carrier(cell.technology, start_s, end_s - start_s, low, high, CONFIRMED, cell)


def _band_share(box, band):
    """Share of a box's band in another band."""
    return _shared_hz((box.freq_lower_hz, box.freq_upper_hz), band) / max(box.bandwidth_hz, 1e-9)


def _meets(box, band):
    """Whether a box and a band share half of the narrower one."""
    narrower_hz = min(box.bandwidth_hz, band[1] - band[0])
    return _shared_hz((box.freq_lower_hz, box.freq_upper_hz), band) >= INSIDE * narrower_hz


def _lte_band(cell, boxes, room, energy):
    """The transmission bandwidth that a box has, else the one at whose edges the power falls most."""
    block_hz, center_hz = 12 * cell.spacing_hz, cell.center_freq_hz
    bands = [(center_hz - number / 2 * block_hz, center_hz + number / 2 * block_hz) for number in LTE_BLOCKS]
    seen = [(max(low, energy.band_hz[0]), min(high, energy.band_hz[1])) for low, high in bands]
    fits = [
        (_band_iou((box.freq_lower_hz, box.freq_upper_hz), band), number)
        for box in boxes
        for number, band in enumerate(seen)
    ]
    fit, number = max(fits, default=(0.0, 0))
    if fit >= FITTING:
        return bands[number]
    end_s = max([cell.start_s + PERIOD_S[LTE], *(one.end_s for one in boxes)])
    profile = energy.by_row(energy.columns(cell.start_s, end_s))
    falls = [
        _fall_db(profile, band, energy) if room[0] <= one[0] and one[1] <= room[1] else 0.0
        for band, one in zip(bands, seen, strict=True)
    ]
    number = int(np.argmax(falls))
    return bands[number] if falls[number] >= FALL_DB else bands[0]


def _fall_db(profile, band, energy):
    """How far the power [rows] falls beyond both edges of a band; LTE leaves 5 % of its channel free there."""
    beside_hz = max((band[1] - band[0]) / 20, 2 * energy.row_hz)
    falls = []
    for edge, step in zip(band, (-beside_hz, beside_hz), strict=True):
        if energy.band_hz[0] <= edge + min(step, -step) and edge + max(step, -step) <= energy.band_hz[1]:
            inside, outside = (profile[energy.rows(*sorted((edge, edge + one)))] for one in (-step, step))
            falls.append(float(inside.mean() - outside.mean()))
    return min(falls, default=0.0)


def _nr_band(cell, boxes, energy):
    """What the boxes at the SSB cover, at least the SSB; a width of the standard where both edges allow it."""
    low, high = _certain_band(cell)
    boxes = [one for one in boxes if one.label == NR] or boxes
    longest_s = max((one.duration_s for one in boxes), default=0.0)
    lasting = [one for one in boxes if one.duration_s >= longest_s / 4]
    low = min([low, *(one.freq_lower_hz for one in lasting)])
    high = max([high, *(one.freq_upper_hz for one in lasting)])
    if low <= energy.band_hz[0] or energy.band_hz[1] <= high:
        return low, high
    block_hz = 12 * cell.spacing_hz
    widths = [blocks * block_hz for blocks in NR_BLOCKS.get(round(cell.spacing_hz / 1e3), ())]
    nearest = min(widths, key=lambda width: abs(width - (high - low)), default=0.0)
    move = (nearest - (high - low)) / 2
    return (low - move, high + move) if abs(move) <= energy.row_hz else (low, high)


def _time_on(cell, band, parts, energy):
    """When a cell is on: (first s, last s). Silences up to the period of its synchronization belong to it."""
    period_s = PERIOD_S[cell.technology]
    known = [(one, one) for one in (cell.start_s, *cell.occasions_s)]
    known += [(one.start_s, one.end_s) for one in parts]
    power = energy.by_column(energy.rows(*band))
    level = ndimage.maximum_filter1d(power, max(1, round(period_s / energy.column_s)))
    loud_db = float(np.median(np.concatenate([level[energy.columns(*span)] for span in known])))
    quiet_db = float(np.percentile(level, 5))
    if loud_db - quiet_db < CONTRAST_DB:
        return 0.0, energy.duration_s
    least_db = (loud_db + quiet_db) / 2
    runs, _ = ndimage.label(level >= least_db)
    heard = {int(number) for span in known for number in runs[energy.columns(*span)]} - {0}
    columns = np.flatnonzero(np.isin(runs, list(heard)) & (power >= least_db))
    spans = (
        [*known, (columns[0] * energy.column_s, (columns[-1] + 1) * energy.column_s)]
        if len(columns)
        else known
    )
    start_s, end_s = min(span[0] for span in spans), max(span[1] for span in spans)
    start_s = 0.0 if start_s < period_s else start_s
    end_s = energy.duration_s if energy.duration_s - end_s < period_s else min(end_s, energy.duration_s)
    return start_s, end_s
