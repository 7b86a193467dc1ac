"""Find rectangles in one block of class probabilities on image cells."""

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from scipy import ndimage

FILLED = 0.5  # least share of a row or column that has the rectangle's class
# What a rectangle leaves of a piece is a rectangle too with this share of its area or length.
LEFTOVER_AREA, LEFTOVER_LENGTH = 0.1, 0.5
SURE = 2  # a class is sure if it is so many times as likely as the next
TOUCHING = ndimage.generate_binary_structure(2, 1)  # cells that share a side
LEAST_CELLS = 4  # fewer cells do not tell a class
LEAST_ROWS = 2  # of a band with a class of its own


@dataclass(frozen=True)
class Region:
    """A rectangle in cells: columns `first` to `end`, rows `low` to `high` (borders, not centres)."""

    first: int
    end: int
    low: float
    high: float
    chance: np.ndarray  # mean probability of each class: [classes]
    columns: int  # without bridged silences

    @property
    def label(self):
        return 1 + int(self.chance[1:].argmax())

    @property
    def length(self):
        return self.end - self.first

    def may_be(self, other):
        """Whether both can be one carrier: the labels agree, or one is not sure."""
        return self.label == other.label or not (_is_sure(self.chance) and _is_sure(other.chance))

    def shared_rows(self, other):
        return min(self.high, other.high) - max(self.low, other.low)

    def same_band(self, other):
        """Intersection over union of the bands."""
        return self.shared_rows(other) / (max(self.high, other.high) - min(self.low, other.low))

    def joined(self, later):
        """Merged with a later region of the same carrier; edges and chances are means over columns."""
        columns = self.columns + later.columns
        share = later.columns / columns
        low = self.low + share * (later.low - self.low)
        high = self.high + share * (later.high - self.high)
        chance = self.chance + share * (later.chance - self.chance)
        return Region(self.first, max(self.end, later.end), low, high, chance, columns)

    def with_scrap(self, scrap):
        """Merged with a scrap of it: longer if the scrap reaches beyond it; chances are means over cells."""
        first, end = min(self.first, scrap.first), max(self.end, scrap.end)
        own, its = self.columns * (self.high - self.low), scrap.columns * (scrap.high - scrap.low)
        chance = (own * self.chance + its * scrap.chance) / (own + its)
        columns = min(end - first, self.columns + scrap.columns)
        return replace(self, first=first, end=end, chance=chance, columns=columns)


def _is_sure(chance):
    *others, best = [0.0, *sorted(chance[1:].tolist())]
    return best >= SURE * others[-1]


def regions_of(probabilities):
    """The regions of one block, float [classes, rows, columns], sorted by start; columns from 0.

    Touching cells that are probably not background become rectangles. A row or column belongs to a rectangle
    if half of its cells do. An edge lies where the probability of not being background, averaged over time,
    falls to half of its mean inside. Classes divide a rectangle only into bands whose classes are sure.
    """
    return sorted(_regions(probabilities), key=lambda one: (one.first, one.low))


def _regions(probabilities):
    occupied = 1 - probabilities[0]  # (rows, columns)
    waiting = [(*piece, 0, 0) for piece in _pieces(occupied >= 0.5)]
    while waiting:
        cells, row, column, area, length = waiting.pop()
        low, high, first, end = _rectangle(cells)
        if _is_fray(high - low, end - first, area, length):
            continue
        # means over time: of each class inside, (classes, rows), and of the rows that the edges need
        columns = slice(column + first, column + end)
        inside = probabilities[:, row + low : row + high, columns].mean(axis=2, dtype=np.float64)
        around = slice(max(0, row + low - 1), row + high + 1)
        over_time = np.zeros(len(occupied))
        over_time[around] = occupied[around, columns].mean(axis=1, dtype=np.float64)
        lower, upper = _edges(over_time, row + low, row + high)
        for below, above in _bands(inside):
            band_low = lower if below == 0 else row + low + below
            band_high = upper if above == high - low else row + low + above
            chance = inside[:, below:above].mean(axis=1)
            yield Region(column + first, column + end, band_low, band_high, chance, end - first)

        # what the rectangle leaves of the piece, without the frayed cells around it
        cells[max(0, low - 1) : high + 1, max(0, first - 1) : end + 1] = False
        size = (high - low) * (end - first), end - first
        for rest, below, before in _pieces(cells, *size):
            waiting.append((rest, row + below, column + before, *size))


def _is_fray(height, width, area, length):
    """Whether a rectangle is too small beside its neighbour of this area and length."""
    return height * width < LEFTOVER_AREA * area and width < LEFTOVER_LENGTH * length


def _bands(chances):
    """Divide a rectangle by class: consecutive (first row, end), for mean probabilities [classes, rows]."""
    rows = chances.shape[1]
    winners = chances[1:].argmax(axis=0)
    borders = np.flatnonzero(winners[1:] != winners[:-1]) + 1
    if not len(borders):
        return [(0, rows)]
    firsts, lengths = np.append(0, borders), np.diff(borders, prepend=0, append=rows)
    means = np.sort(np.add.reduceat(chances[1:], firsts, axis=1) / lengths, axis=0)
    next_best = means[-2] if len(means) > 1 else 0
    sure = (lengths >= LEAST_ROWS) & (means[-1] >= SURE * next_best)
    cuts = [int(first) for before, first in pairwise(firsts[sure]) if winners[before] != winners[first]]
    return list(pairwise([0, *cuts, rows]))


def _pieces(cells, area=0, length=0):
    """Touching cells of a map, without fray: list of (bool [rows, columns], first row, first column)."""
    # A piece has at least as many cells as its box has rows and columns, less one.
    least = min(LEFTOVER_LENGTH * length, 2 * math.sqrt(LEFTOVER_AREA * area) - 1)
    if np.count_nonzero(cells) < max(LEAST_CELLS, least):
        return []
    numbered, count = ndimage.label(cells, TOUCHING)
    found = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(numbered, count), 1):
        # check the box first: most pieces are specks at the border of a rectangle
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
    # The rows depend on the columns, and the columns on the rows: they settle in a few turns.
    for _ in range(3):
        by_row = cells[:, first:end].sum(axis=1)
        low, high = _run(by_row, FILLED * by_row.max())
        if (low, high) == settled:
            break
        settled = low, high
        by_column = cells[low:high].sum(axis=0)
        first, end = _run(by_column, FILLED * by_column.max())
    return low, high, first, end


def _run(counts, least):
    """The run of consecutive counts from `least` with the largest sum: (first, end)."""
    enough = np.concatenate([[False], counts >= least, [False]])
    borders = np.flatnonzero(enough[1:] != enough[:-1]).tolist()
    runs = list(zip(borders[::2], borders[1::2], strict=True))
    return runs[0] if len(runs) == 1 else max(runs, key=lambda run: counts[run[0] : run[1]].sum())


def _edges(over_time, low, high):
    """Edges of rows `low` to `high`, where the probability [rows] falls to half of its mean inside.

    An edge moves no further than the centres of the rows beside it. The image's own border stays.
    """
    level, lower, upper = over_time[low:high].mean() / 2, float(low), float(high)
    if low > 0:
        lower = low - 0.5 + _crossing(over_time[low - 1], over_time[low], level)
    if high < len(over_time):
        upper = high + 0.5 - _crossing(over_time[high], over_time[high - 1], level)
    return lower, upper


def _crossing(outside, inside, level):
    """Where the probability passes a level: 0 at the outer cell's centre, to below 1 at the inner one's."""
    if not outside < inside:
        return 0.5
    return min(0.95, max(0.0, (level - outside) / (inside - outside)))  # a single row keeps some height
