"""From class probabilities on the image cells to carriers: the way back from `radio.carriers.paint`."""

import math
from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from scipy import ndimage

from radio.carriers import LTE, NR, Carrier

# A row or column belongs to a rectangle if at least this share of it has the rectangle's class.
FILLED = 0.5
# What hangs on a rectangle is a rectangle too if it has this share of its area, or of its length; else it is its fray.
LEFTOVER_AREA, LEFTOVER_LENGTH = 0.1, 0.5
# Rectangles that follow each other are one carrier if their bands agree to this intersection over union.
SAME_BAND = 0.5
# A class is told from another without doubt if it is so many times as likely.
SURE = 2
# A radio frame of LTE and NR (TS 36.211, clause 4; TS 38.211, clause 4.3.1). No carrier of them is on for less, so a region
# that lasts less is a part of the carrier in whose band it lies: its class, and how little of the band it has, are errors.
FRAME_S = 0.01
# It lies in the band of another if that holds this share of its rows.
WITHIN = 0.5
# Cells that share a side.
TOUCHING = ndimage.generate_binary_structure(2, 1)
# Smaller pieces are not looked at: fewer cells than a class can be told by, whatever they stand for in Hz and seconds.
LEAST_CELLS = 4
# An idle NR cell sends an SSB burst every 20 ms (TS 38.213, clause 4.1): what is quiet for no longer is one carrier.
DEFAULT_BRIDGE_S = 0.02
DEFAULT_CONFIDENCE = 0.6  # below it are mostly scraps of what the model is in doubt of
# Without limits given, a carrier has to be at least this many rows high and columns long; of NR and LTE half a frame, in
# which LTE repeats its synchronisation, or half of a shorter stretch: what is found for less is mostly none.
DEFAULT_ROWS, DEFAULT_COLUMNS = 2, 2
DEFAULT_DURATION_S = FRAME_S / 2


@dataclass(frozen=True)
class Limits:
    """What counts as a carrier.

    min_bandwidth_hz, min_duration_s: None for two rows and two columns of the image, but of NR and LTE half a radio frame or
    half of a shorter stretch. min_confidence: of the mean probability of the label over the rectangle. bridge_s: longest
    silence inside a carrier.
    """

    min_bandwidth_hz: float | None = None
    min_duration_s: float | None = None
    min_confidence: float = DEFAULT_CONFIDENCE
    bridge_s: float = DEFAULT_BRIDGE_S


@dataclass(frozen=True)
class _Region:
    """A rectangle in cells: columns `first` to `end`, rows `low` to `high` (borders, not centres)."""

    first: int
    end: int
    low: float
    high: float
    chance: np.ndarray  # mean probability of each class over its cells: [classes]
    columns: int  # that it has cells in: without the silences that were bridged

    @property
    def label(self):
        return 1 + int(self.chance[1:].argmax())

    def may_be(self, other):
        """Whether both can be one carrier: of one label, or of labels of which one is in doubt."""
        return self.label == other.label or not (_is_sure(self.chance) and _is_sure(other.chance))

    def same_band(self, other):
        """Intersection over union of the bands."""
        shared = min(self.high, other.high) - max(self.low, other.low)
        return shared / (max(self.high, other.high) - min(self.low, other.low))

    @property
    def length(self):
        return self.end - self.first

    def lies_in(self, other):
        """Whether the other has most of its band."""
        return min(self.high, other.high) - max(self.low, other.low) >= WITHIN * (self.high - self.low)

    def joined(self, later):
        """With one that follows: from the first to the last column, edges and chances as means over their columns."""
        columns = self.columns + later.columns
        share = later.columns / columns

        def mean(a, b):
            return a + share * (b - a)

        return _Region(self.first, max(self.end, later.end), mean(self.low, later.low), mean(self.high, later.high),
                       mean(self.chance, later.chance), columns)  # fmt: skip

    def with_scrap(self, scrap):
        """With one that is a part of it: longer where that reaches beyond it, chances as means over the cells of both."""
        first, end = min(self.first, scrap.first), max(self.end, scrap.end)
        own, its = self.columns * (self.high - self.low), scrap.columns * (scrap.high - scrap.low)
        chance = (own * self.chance + its * scrap.chance) / (own + its)
        return replace(self, first=first, end=end, chance=chance, columns=min(end - first, self.columns + scrap.columns))


def _is_sure(chance):
    """Whether the likeliest class but the first is `SURE` times as likely as the next."""
    *others, best = [0.0, *sorted(chance[1:].tolist())]
    return best >= SURE * others[-1]


class CarrierFinder:
    """Carriers in class probabilities that come in blocks of columns, from left to right; keeps no more than what is open.

    In a block, cells that touch and are likelier not of the first class become rectangles; a row or column is part of one
    if half of it is. Its edges lie where the probability of not being the first class, averaged over time, falls to half of
    its mean inside, between the centres of two rows: as `paint` puts a cell into a carrier by its centre. A carrier is of
    one class all over: a rectangle is divided by class only into bands that the model tells apart without doubt.
    Rectangles in one band that follow each other, in the same block or the next, are one carrier, unless there is a silence
    longer than `limits.bridge_s` or the model is sure that their classes differ. Of NR and LTE, one that lasts less than a
    radio frame is no carrier beside a longer one that has its band, of whichever class: it joins that one.

    Args:
        class_names: by class id; the first is what nothing else is.
        rows_hz: centres of the rows, ascending: [rows], two or more.
        column_s: duration of a column.
        limits: `Limits`, which are applied to whole carriers.
        band_hz: (lowest, highest) that an edge can have.
        duration_s: of the stretch, with which the last column may end early.
    """

    def __init__(self, class_names, rows_hz, column_s, limits, band_hz, duration_s=math.inf):
        self.class_names = class_names
        self.rows_hz = np.asarray(rows_hz, np.float64)
        self.row_hz = float(self.rows_hz[1] - self.rows_hz[0])
        self.column_s = column_s
        self.limits = limits
        self.band_hz = band_hz
        self.duration_s = duration_s
        least = limits.min_bandwidth_hz
        self._min_hz = DEFAULT_ROWS * self.row_hz if least is None else least
        self._open, self._done = [], []

    def add(self, probabilities, first_column):
        """The next block: float [classes, rows, columns], its first column counted from the beginning."""
        self.join(regions_of(probabilities), first_column, probabilities.shape[2])

    def join(self, regions, first_column, columns):
        """The next block, by what `regions_of` found in it: its first column, and how many it has."""
        bridge = self.limits.bridge_s / self.column_s + 1e-6
        for found in regions:
            region = replace(found, first=first_column + found.first, end=first_column + found.end)
            near = [one for one in self._open if one.end <= region.first <= one.end + bridge and one.may_be(region)
                    and one.same_band(region) >= SAME_BAND]  # fmt: skip
            if near:
                best = max(near, key=region.same_band)
                self._open = [one for one in self._open if one is not best]
                region = best.joined(region)
            self._open.append(region)
        # What ended too long ago for anything in the next block to follow it.
        end = first_column + columns
        self._done += [one for one in self._open if end - one.end > bridge]
        self._open = [one for one in self._open if end - one.end <= bridge]

    def finish(self):
        """All carriers, in the order of their beginnings; times from the beginning of the first column."""
        carriers = [carrier for one in self._without_scraps() if (carrier := self._carrier(one))]
        self._open, self._done = [], []
        return sorted(carriers, key=lambda one: (one.start_s, one.freq_lower_hz, one.label))

    def _without_scraps(self):
        """All regions, those that are scraps of another within it: from the shortest, each into the longest that has it."""
        regions = sorted((*self._done, *self._open), key=lambda one: one.length)
        frame, bridge = FRAME_S / self.column_s - 1e-6, self.limits.bridge_s / self.column_s + 1e-6
        places = [place for place, one in enumerate(regions) if self.class_names[one.label] in (NR, LTE)]

        def stretches(first, end):  # of so many columns that a scrap and what is near it lie in few of them
            return range(int(first // (frame + bridge)), int(end // (frame + bridge)) + 1)

        in_stretch = defaultdict(set)
        for place in places:
            for number in stretches(regions[place].first, regions[place].end):
                in_stretch[number].add(place)
        gone = set()
        for place in places:
            scrap = regions[place]
            if scrap.length >= frame:
                continue
            before, after = scrap.first - bridge, scrap.end + bridge
            near = set().union(*(in_stretch[number] for number in stretches(before, after))) - gone
            has_it = [(regions[other].length, -other) for other in near
                      if regions[other].first <= after and regions[other].end >= before
                      and regions[other].length > scrap.length and scrap.lies_in(regions[other])]  # fmt: skip
            if has_it:
                longest = -max(has_it)[1]
                regions[longest] = regions[longest].with_scrap(scrap)
                gone.add(place)
        return [one for place, one in enumerate(regions) if place not in gone]

    def _least_s(self, label):
        if self.limits.min_duration_s is not None:
            return self.limits.min_duration_s
        columns_s = DEFAULT_COLUMNS * self.column_s
        return max(columns_s, min(DEFAULT_DURATION_S, self.duration_s / 2)) if label in (NR, LTE) else columns_s

    def _carrier(self, region):
        """In seconds and Hz, or None where it is outside of the limits."""
        edges = self.rows_hz[0] + self.row_hz * (np.array([region.low, region.high]) - 0.5)
        low, high = np.clip(edges, *self.band_hz).round(1).tolist()
        start_s = region.first * self.column_s
        duration_s = min(region.end * self.column_s, self.duration_s) - start_s
        confidence = min(1.0, round(float(region.chance[region.label]), 4))
        label = self.class_names[region.label]
        too_short = duration_s < self._least_s(label) - 1e-12
        if high - low < self._min_hz - 1e-6 or too_short or confidence < self.limits.min_confidence:
            return None
        return Carrier(label, start_s, duration_s, low, high, confidence)


def regions_of(probabilities):
    """The regions of one block, float [classes, rows, columns], in the order of their beginnings; from column 0."""
    return sorted(_regions(probabilities), key=lambda one: (one.first, one.low))


def _regions(probabilities):
    occupied = 1 - probabilities[0]  # (rows, columns)
    waiting = [(*piece, 0, 0) for piece in _pieces(occupied >= 0.5)]
    while waiting:
        cells, row, column, area, length = waiting.pop()
        low, high, first, end = _rectangle(cells)
        if _is_fray(high - low, end - first, area, length):
            continue
        # means over time of the rectangle's rows, and of those that its edges are told by
        columns = slice(column + first, column + end)
        inside = probabilities[:, row + low : row + high, columns].mean(axis=2, dtype=np.float64)  # (classes, rows)
        around = slice(max(0, row + low - 1), row + high + 1)
        over_time = np.zeros(len(occupied))
        over_time[around] = occupied[around, columns].mean(axis=1, dtype=np.float64)
        lower, upper = _edges(over_time, row + low, row + high, over_time[row + low : row + high].mean() / 2)
        for below, above in _bands(inside):
            edges = (lower if below == 0 else row + low + below, upper if above == high - low else row + low + above)
            yield _Region(column + first, column + end, *edges, inside[:, below:above].mean(axis=1), end - first)

        # what the rectangle leaves of the piece, but for the frayed cells around it
        cells[max(0, low - 1) : high + 1, max(0, first - 1) : end + 1] = False
        size = (high - low) * (end - first), end - first
        waiting += [(rest, row + below, column + before, *size) for rest, below, before in _pieces(cells, *size)]


def _is_fray(height, width, area, length):
    """Whether a rectangle of this size is too little beside the one of this area and length that it hung on."""
    return height * width < LEFTOVER_AREA * area and width < LEFTOVER_LENGTH * length


def _bands(chances):
    """Where a rectangle is to be divided by class: consecutive (first row, end), for mean probabilities [classes, rows]."""
    rows = chances.shape[1]
    winners = chances[1:].argmax(axis=0)
    borders = np.flatnonzero(winners[1:] != winners[:-1]) + 1
    if not len(borders):
        return [(0, rows)]
    firsts, lengths = np.append(0, borders), np.diff(borders, prepend=0, append=rows)
    means = np.sort(np.add.reduceat(chances[1:], firsts, axis=1) / lengths, axis=0)  # as `_is_sure` has it, of all at once
    sure = (lengths >= DEFAULT_ROWS) & (means[-1] >= SURE * (means[-2] if len(means) > 1 else 0))
    cuts = [int(first) for before, first in pairwise(firsts[sure]) if winners[before] != winners[first]]
    return list(pairwise([0, *cuts, rows]))


def _pieces(cells, area=0, length=0):
    """Touching cells of a map, as (bool [rows, columns], first row, first column) each; but no fray, see `_is_fray`."""
    # A piece has no fewer cells than its box has rows and columns, less one.
    if np.count_nonzero(cells) < max(LEAST_CELLS, min(LEFTOVER_LENGTH * length, 2 * math.sqrt(LEFTOVER_AREA * area) - 1)):
        return []
    numbered, count = ndimage.label(cells, TOUCHING)
    found = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(numbered, count), 1):
        # first by the box around the piece: most are specks at the border of a rectangle
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if height * width < LEAST_CELLS or _is_fray(height, width, area, length):
            continue
        piece = numbered[rows, columns] == number
        if np.count_nonzero(piece) >= LEAST_CELLS:
            found.append((piece, rows.start, columns.start))
    return found


def _rectangle(cells):
    """The rectangle that most of a piece fills: rows low to high, columns first to end."""
    first, end = 0, cells.shape[1]
    settled = None
    # Which rows belong depends on which columns do, and the other way round: it settles in a few turns.
    for _ in range(3):
        by_row = cells[:, first:end].sum(axis=1)
        low, high = _run(by_row, FILLED * by_row.max())
        if (low, high) == settled:  # so nothing else changes
            break
        settled = low, high
        by_column = cells[low:high].sum(axis=0)
        first, end = _run(by_column, FILLED * by_column.max())
    return low, high, first, end


def _run(counts, least):
    """The consecutive places with counts of at least `least` that hold most: (first, end)."""
    enough = counts >= least
    changes = (np.flatnonzero(enough[1:] != enough[:-1]) + 1).tolist()
    borders = [*([0] if enough[0] else []), *changes, *([len(counts)] if enough[-1] else [])]
    runs = list(zip(borders[::2], borders[1::2], strict=True))
    return runs[0] if len(runs) == 1 else max(runs, key=lambda run: counts[run[0] : run[1]].sum())


def _edges(over_time, low, high, level):
    """Where the probability [rows] crosses a level below row `low` and above row `high - 1`, in rows from the first border.

    Never beyond the centres of the rows on both sides of the border; at the image's own border nothing is to be crossed.
    """
    lower = float(low) if low == 0 else low - 0.5 + _crossing(over_time[low - 1], over_time[low], level)
    upper = float(high) if high == len(over_time) else high + 0.5 - _crossing(over_time[high], over_time[high - 1], level)
    return lower, upper


def _crossing(outside, inside, level):
    """How far from the centre of the outer cell to that of the inner one the probability passes a level: 0 to below 1."""
    if not outside < inside:
        return 0.5
    return min(0.95, max(0.0, (level - outside) / (inside - outside)))  # a single row stays one that has a height
