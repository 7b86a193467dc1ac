"""Find carriers in class probabilities on image cells: the inverse of `radio.carriers.paint`."""

import math
from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import compress

import numpy as np

from labelling.detection import area, overlap
from labelling.rectangles import regions_of
from radio.carriers import LTE, NR, Carrier

SAME_BAND = 0.5  # least intersection over union of the bands of consecutive rectangles of one carrier
# A radio frame of LTE and NR (TS 36.211, clause 4; TS 38.211, clause 4.3.1), the shortest carrier of either.
FRAME_S = 0.01
WITHIN = 0.5  # least share of a region's rows, or of a carrier's area, in the one that it is merged into
# An idle NR cell sends an SSB burst every 20 ms (TS 38.213, clause 4.1).
DEFAULT_BRIDGE_S = 0.02
DEFAULT_CONFIDENCE = 0.6  # most regions below are errors
DEFAULT_ROWS, DEFAULT_COLUMNS = 2, 2  # least size of a carrier
DEFAULT_DURATION_S = FRAME_S / 2  # of NR and LTE: LTE repeats its synchronisation after half a frame
LIMITS = ("min_bandwidth_hz", "min_duration_s", "min_confidence")


@dataclass(frozen=True)
class Limits:
    """What counts as a carrier."""

    min_bandwidth_hz: float | None = None  # None: two image rows
    # None: two image columns; for NR and LTE half a frame, or half of a shorter stretch
    min_duration_s: float | None = None
    min_confidence: float = DEFAULT_CONFIDENCE  # mean probability of the label over the rectangle
    bridge_s: float = DEFAULT_BRIDGE_S  # longest silence inside a carrier


class CarrierFinder:
    """Finds carriers in class probabilities, which come in blocks of columns from left to right.

    1. `regions_of` finds the rectangles of a block.
    2. Consecutive rectangles in one band become one carrier, unless the silence between them is longer than
       `limits.bridge_s` or their labels differ and both are sure.
    3. An NR or LTE region shorter than one frame (10 ms) joins the longest carrier that covers its band.
    4. Of the carriers within the limits, one that lies half or more in a larger one of its class joins it. NR
       and LTE are one class here, as their carriers do not overlap.

    Args:
        class_names: by class id; class 0 is the background.
        rows_hz: centres of the rows, ascending: [rows], two or more.
        column_s: duration of a column.
        limits: `Limits`, applied to whole carriers.
        band_hz: lowest and highest frequency of an edge.
        duration_s: of the stretch, which may end inside the last column.
    """

    def __init__(self, class_names, rows_hz, column_s, limits, band_hz, duration_s=math.inf):
        self.class_names = class_names
        self.rows_hz = np.asarray(rows_hz, np.float64)
        self.row_hz = float(self.rows_hz[1] - self.rows_hz[0])
        self.column_s = column_s
        self.limits = limits
        self.band_hz = band_hz
        self.duration_s = duration_s
        self._bridge = limits.bridge_s / column_s + 1e-6  # columns
        self._open, self._done = [], []
        self.dropped = {name: [] for name in LIMITS}

    def add(self, probabilities, first_column):
        """Add the next block: float [classes, rows, columns], which begins at this column of the stretch."""
        self.join(regions_of(probabilities), first_column, probabilities.shape[2])

    def join(self, regions, first_column, columns):
        """Add the next block of so many columns by what `regions_of` found in it."""
        for found in regions:
            region = replace(found, first=first_column + found.first, end=first_column + found.end)
            near = [one for one in self._open if one.end <= region.first <= one.end + self._bridge]
            near = [one for one in near if one.may_be(region) and one.same_band(region) >= SAME_BAND]
            if near:
                best = max(near, key=region.same_band)
                self._open = [one for one in self._open if one is not best]
                region = best.joined(region)
            self._open.append(region)
        end = first_column + columns
        self._done += [one for one in self._open if end - one.end > self._bridge]
        self._open = [one for one in self._open if end - one.end <= self._bridge]

    def finish(self):
        """All carriers, sorted by start; times from the beginning of the first column."""
        return without_parts(self.boxes(), (NR, LTE))

    def boxes(self):
        """All carriers within the limits, also those that are parts of others; in no order.

        `dropped` then has those outside of a limit, in lists by the limit's name.
        """
        found = []
        for region in self._without_scraps():
            carrier = self._carrier(region)
            broken = self._broken(carrier)
            (self.dropped[broken] if broken else found).append(carrier)
        self._open, self._done = [], []
        return found

    def _without_scraps(self):
        """All regions, after each scrap, the shortest first, has joined the longest region that covers it."""
        regions = sorted((*self._done, *self._open), key=lambda one: one.length)
        places = [place for place, one in enumerate(regions) if self.class_names[one.label] in (NR, LTE)]
        frame = FRAME_S / self.column_s - 1e-6

        def bins(first, end):  # of columns: an index, so that each scrap is compared with few regions
            return range(int(first // (frame + self._bridge)), int(end // (frame + self._bridge)) + 1)

        in_bin = defaultdict(set)
        for place in places:
            for number in bins(regions[place].first, regions[place].end):
                in_bin[number].add(place)
        gone = set()
        for place in places:
            scrap = regions[place]
            if scrap.length >= frame:
                continue

            def covers(other, scrap=scrap):
                in_time = other.first <= scrap.end + self._bridge and other.end >= scrap.first - self._bridge
                shared = scrap.shared_rows(other) >= WITHIN * (scrap.high - scrap.low)
                return in_time and shared and other.length > scrap.length

            numbers = bins(scrap.first - self._bridge, scrap.end + self._bridge)
            near = set().union(*(in_bin[number] for number in numbers)) - gone
            if covering := [other for other in near if covers(regions[other])]:
                longest = max(covering, key=lambda other: (regions[other].length, -other))
                regions[longest] = regions[longest].with_scrap(scrap)
                gone.add(place)
        return [one for place, one in enumerate(regions) if place not in gone]

    def _carrier(self, region):
        """In seconds and Hz."""
        edges = self.rows_hz[0] + self.row_hz * (np.array([region.low, region.high]) - 0.5)
        low, high = np.clip(edges, *self.band_hz).round(1).tolist()
        start_s = region.first * self.column_s
        duration_s = min(region.end * self.column_s, self.duration_s) - start_s
        confidence = min(1.0, round(float(region.chance[region.label]), 4))
        return Carrier(self.class_names[region.label], start_s, duration_s, low, high, confidence)

    def _broken(self, carrier):
        """The name of a limit that a carrier is outside of, or None."""
        least_hz, least_s = self.limits.min_bandwidth_hz, self.limits.min_duration_s
        if least_hz is None:
            least_hz = DEFAULT_ROWS * self.row_hz
        if least_s is None:
            least_s = DEFAULT_COLUMNS * self.column_s
            if carrier.label in (NR, LTE):
                least_s = max(least_s, min(DEFAULT_DURATION_S, self.duration_s / 2))
        short = carrier.duration_s < least_s - 1e-12
        narrow, weak = carrier.bandwidth_hz < least_hz - 1e-6, carrier.confidence < self.limits.min_confidence
        return next(compress(LIMITS, (narrow, short, weak)), None)


def without_parts(carriers, one_signal=()):
    """Carriers without those that lie half or more in a larger one, which then lasts as long as both.

    Args:
        one_signal: labels of signals that never overlap; others are compared with those of the same label.

    Returns:
        A list, sorted by start.
    """
    near = defaultdict(list)  # places of carriers at the same time
    active = []
    for place in sorted(range(len(carriers)), key=lambda place: carriers[place].start_s):
        active = [other for other in active if carriers[other].end_s > carriers[place].start_s]
        for other in active:
            near[place].append(other)
            near[other].append(place)
        active.append(place)

    kept = {}
    for place in sorted(range(len(carriers)), key=lambda place: -area(carriers[place])):
        part = carriers[place]
        for other in near[place]:
            whole = kept.get(other)
            may_be = whole and (whole.label == part.label or {whole.label, part.label} <= set(one_signal))
            if may_be and overlap(part, whole) >= WITHIN * area(part):
                start_s, end_s = min(part.start_s, whole.start_s), max(part.end_s, whole.end_s)
                kept[other] = replace(whole, start_s=start_s, duration_s=end_s - start_s)
                break
        else:
            kept[place] = part
    return in_order(kept.values())


def in_order(carriers):
    return sorted(carriers, key=lambda one: (one.start_s, one.freq_lower_hz, one.label))
