"""Label recordings and arrays of IQ with a `Segmenter`, for main_segment.py and hubconf.py."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from labelling.confirm import Energy, confirm
from labelling.heard import heard
from labelling.outputs import by_stretch, tuned
from labelling.planes import Overview
from labelling.regions import Limits, without_parts
from radio.carriers import LTE, NR, paint_cells
from radio.iq_array import recording_of
from radio.recordings import Recording, open_recording
from util.errors import UserError, warn
from util.plots import labelled_figure

# The least value of each is 0.
GREATEST = dict.fromkeys(("min_bandwidth_hz", "min_duration_s", "bridge_s"), math.inf)
GREATEST |= {"min_confidence": 1, "overlap": 0.95}
PICTURE_STRETCHES = 8  # most stretches in a picture
WEAK, UNCONFIRMED = "min_confidence", "unconfirmed"  # why carriers are dropped, beside the other limits


def check_ranges(values, prefix=""):
    """Refuse a value out of range in `values`, a dict by name; errors put `prefix` before the name."""
    for name, greatest in GREATEST.items():
        value = values.get(name)
        if value is not None and not 0 <= value <= greatest:
            raise UserError(f"{prefix}{name}: expected 0 to {greatest}; found {value}")


@dataclass(frozen=True)
class LabelledStretch:
    """The labels of one contiguous stretch of a recording."""

    recording: Recording  # the first channel
    found: list  # of `Carrier`, times from the stretch's first sample
    # of each cell, row 0 the lowest frequency, in at most `labelling.planes.PICTURE_COLUMNS` columns
    image: np.ndarray  # mean dB: float32 [rows, columns]
    class_map: np.ndarray  # the likeliest class: uint8 [rows, columns]
    dropped: dict  # lists of `Carrier`s that were left out, by the limit's name or "unconfirmed"
    true: list | None = None  # `Carrier`s of the annotations, if they were asked for

    @property
    def start_s(self):
        """Time of the stretch's first sample, from the file's first sample."""
        return self.recording.start_s

    @property
    def carriers(self):
        """The found carriers, times from the file's first sample."""
        return self._in_file(self.found)

    def _in_file(self, carriers):
        return [replace(one, start_s=self.start_s + one.start_s) for one in carriers]

    @property
    def column_s(self):
        return self.recording.duration_s / self.image.shape[1]

    def only_confirmed(self):
        """The same stretch; carriers without a cell are dropped."""
        alone = [one for one in self.found if not one.confirmed]
        dropped = self.dropped | {UNCONFIRMED: self.dropped[UNCONFIRMED] + alone}
        return replace(self, found=[one for one in self.found if one.confirmed], dropped=dropped)

    @property
    def extent(self):
        """Borders of the class map: (first s, last s, lowest Hz, highest Hz); times as in `carriers`."""
        half, center = self.recording.sample_rate_hz / 2, self.recording.center_freq_hz or 0.0
        return (self.start_s, self.start_s + self.recording.duration_s, center - half, center + half)

    @property
    def picture_row(self):
        """A row of `util.plots.labelled_figure`."""
        one = self.recording
        known = "" if one.center_freq_hz is not None else "; frequencies from the centre"
        about = f"{one.duration_s * 1e3:.6g} ms at {one.sample_rate_hz / 1e6:.6g} Msps"
        row = {"title": f"{one.name}: {about}{known}", "image": self.image, "classes": self.class_map}
        return row | {
            "carriers": self.carriers,
            "true": self._in_file(self.true or ()),
            "extent": self.extent,
        }


def hears_cells(class_names):
    """Whether a cell search can confirm what a model with these classes finds."""
    return {NR, LTE} <= set(class_names)


def label_stretches(segmenter, stretches, limits, overlap=None, truth=None, progress=None, hear=None):
    """Yield the `LabelledStretch` of each stretch of a file. Skip those `Segmenter.unusable`, with a warning.

    Args:
        segmenter: `engine_segment.Segmenter`.
        stretches: lists of `Recording`s, the channels of each stretch.
        limits: `labelling.regions.Limits`.
        overlap: see `engine_segment.Segmenter.tiling`.
        truth: makes a `labelling.truth.Truth` from (recording, finder); None: do not read the annotations.
        progress: called with the number of samples done since the last call.
        hear: `labelling.heard.heard`, to confirm carriers by a cell search; None: the model alone.

    Raises:
        UserError: no stretch can be used, or a file cannot be read.
    """
    front_end = segmenter.front_end
    longest = max((channels[0] for channels in stretches), key=lambda one: one.num_samples)
    if all(segmenter.unusable(channels[0]) for channels in stretches):
        raise UserError(f"{longest.path}: {segmenter.unusable(longest)}")
    for channels in stretches:
        first = channels[0]
        if why := segmenter.unusable(first):
            warn(f"{first.name}: skipped: {why}")
            if progress:
                progress(first.num_samples)
            continue
        tiling = segmenter.tiling(first, overlap)
        if tiling.window < front_end.num_samples(first.sample_rate_hz) and not front_end.pads:
            trained = f"the windows that the model was trained on ({front_end.duration_s * 1e3:g} ms)"
            warn(f"{first.name}: shorter ({first.duration_s * 1e3:g} ms) than {trained}: used whole")
        rate_hz, center_hz = first.sample_rate_hz, first.center_freq_hz
        rows = front_end.num_rows(rate_hz)
        finder = segmenter.finder(rate_hz, center_hz, tiling.window, first.num_samples, limits)
        overview = Overview(tiling.total, len(segmenter.class_names), rows, segmenter.device)
        judge = truth(first, finder) if truth else None
        segmenter.find(channels, tiling, finder, [overview, judge] if judge else [overview], progress)
        boxes, image = finder.boxes(), overview.image
        found, dropped = without_parts(boxes), finder.dropped | {UNCONFIRMED: []}
        if hear:
            with segmenter.timings.part("cell search"):
                cells, spans = hear(first, found)
            edges_hz = finder.rows_hz[[0, -1]] + finder.row_hz * np.array([-0.5, 0.5])
            column_s = finder.column_s * overview.per_column
            energy = Energy(_finite(image), tuple(edges_hz.tolist()), column_s, first.duration_s)
            weak = dropped[WEAK]
            found, dropped[WEAK], dropped[UNCONFIRMED] = confirm(
                boxes, weak, cells, energy, spans, limits.min_confidence
            )
            found = [_cut(one, *finder.band_hz) for one in found]  # the outer rows may reach beyond the band
        yield LabelledStretch(
            first,
            found,
            image,
            _with_cells(overview.classes, found, finder),
            dropped,
            judge and judge.carriers,
        )


def _finite(image):
    """An image in dB whose cells without power, or outside of the recording, are as weak as the weakest other."""
    weakest = np.min(image, initial=np.inf, where=np.isfinite(image))
    return np.maximum(image, weakest) if np.isfinite(weakest) else np.zeros_like(image)


def _with_cells(classes, found, finder):
    """A class map [rows, columns] in which confirmed carriers have their class."""
    heard = [one for one in found if one.confirmed]
    columns_s = (np.arange(classes.shape[1]) + 0.5) * finder.duration_s / classes.shape[1]
    painted = paint_cells(heard, finder.rows_hz, columns_s, finder.class_names)
    return np.where(painted > 0, painted, classes)


def _cut(carrier, low_hz, high_hz):
    edges = max(low_hz, carrier.freq_lower_hz), min(high_hz, carrier.freq_upper_hz)
    return replace(carrier, freq_lower_hz=edges[0], freq_upper_hz=edges[1])


def picture(rows, num_stretches, class_names, recording, weights):
    """`labelled_figure` of the first stretches; `recording` and `weights` are names for the caption."""
    caption = f"{recording}, labelled with {weights}"
    caption += f"; the first {len(rows)} of {num_stretches} stretches" if len(rows) < num_stretches else ""
    return labelled_figure(rows, class_names, caption)


class Labels(Sequence):
    """A sequence of the `radio.carriers.Carrier`s in a recording, with its class map and picture.

    Times count from the file's first sample. Frequencies are at RF if the centre frequency is known.
    `stretches` holds a `LabelledStretch` for each stretch of the recording.
    """

    def __init__(self, stretches, class_names, weights):
        self.stretches, self.class_names, self.weights = stretches, class_names, weights
        self.carriers = [carrier for one in stretches for carrier in one.carriers]

    def __getitem__(self, place):
        return self.carriers[place]

    def __len__(self):
        return len(self.carriers)

    def __repr__(self):
        return f"Labels({self.carriers!r})"

    @property
    def _only(self):
        if len(self.stretches) > 1:
            path, found = self.stretches[0].recording.path, f"{len(self.stretches)}: use `stretches`"
            raise UserError(f"{path}: expected a recording of one stretch; found {found}")
        return self.stretches[0]

    @property
    def class_map(self):
        """`LabelledStretch.class_map` of the only stretch; in a recording with retunes, use `stretches`."""
        return self._only.class_map

    @property
    def extent(self):
        """`LabelledStretch.extent` of the only stretch."""
        return self._only.extent

    def figure(self):
        """A matplotlib Figure: waterfall with carriers, and class map, for the first stretches."""
        rows = [one.picture_row for one in self.stretches[:PICTURE_STRETCHES]]
        name = self.stretches[0].recording.path.name
        return picture(rows, len(self.stretches), self.class_names, name, self.weights)


class Labeller:
    """Labels recordings and arrays with one model.

    Args:
        segmenter: `engine_segment.Segmenter`.
        weights: a name for them.
        overlap: 0 to 0.95, see `engine_segment.Segmenter.tiling`.
        confirm: search for LTE and NR cells, if the model has these classes.
        limits: the fields of `labelling.regions.Limits`.

    Raises:
        UserError: a value is out of range.
    """

    def __init__(self, segmenter, weights, overlap=None, confirm=True, **limits):
        check_ranges(limits | {"overlap": overlap})
        self.hear = heard if confirm and hears_cells(segmenter.class_names) else None
        self.segmenter, self.weights = segmenter, Path(weights).name
        self.overlap, self.limits = overlap, Limits(**limits)

    @property
    def class_names(self):
        """By class id."""
        return self.segmenter.class_names

    def label(self, recording, sample_rate_hz=None, datatype=None, center_freq_hz=None):
        """The `Labels` of a recording.

        Args:
            recording: path of a SigMF, .npy or raw file; or complex [samples], a NumPy array or torch tensor.
            sample_rate_hz: of raw and .npy files and arrays.
            datatype: SigMF's name, for raw files.
            center_freq_hz: for recordings that do not say.

        Raises:
            UserError: the recording is missing, does not say what it is, or is shorter than an FFT.
        """
        if isinstance(recording, str | os.PathLike):
            found = tuned(open_recording(recording, sample_rate_hz, datatype), center_freq_hz)
            members = len({one.member for one in found})
            if members > 1:
                raise UserError(f"{recording}: expected one recording; found an archive of {members}")
        else:
            found = [recording_of(recording, sample_rate_hz, center_freq_hz)]
        with self.segmenter.on_its_cores():
            settings = {"overlap": self.overlap, "hear": self.hear}
            stretches = list(label_stretches(self.segmenter, by_stretch(found), self.limits, **settings))
        return Labels(stretches, self.class_names, self.weights)
