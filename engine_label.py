"""Label recordings and arrays of IQ with a `Segmenter`, for main_segment.py and hubconf.py."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from labelling.outputs import by_stretch, tuned
from labelling.planes import Overview
from labelling.regions import Limits
from radio.carriers import Carrier, from_annotation, paint_cells
from radio.iq_array import recording_of
from radio.recordings import Recording, open_recording
from util.errors import UserError, warn
from util.plots import labelled_figure

DEFAULT_OVERLAP = 0.25
# The least value of each is 0.
GREATEST = dict.fromkeys(("min_bandwidth_hz", "min_duration_s", "bridge_s"), math.inf)
GREATEST |= {"min_confidence": 1, "overlap": 0.95}
PICTURE_STRETCHES = 8  # most stretches in a picture


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
    true: list | None = None  # `Carrier`s of the annotations, if they were asked for

    @property
    def start_s(self):
        """Time of the stretch's first sample, from the file's first sample."""
        return self.recording.sample_start / self.recording.sample_rate_hz

    @property
    def carriers(self):
        """The found carriers, times from the file's first sample."""
        return [replace(one, start_s=self.start_s + one.start_s) for one in self.found]

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
        return row | {"carriers": self.carriers, "extent": self.extent}


def label_stretches(segmenter, stretches, limits, overlap=DEFAULT_OVERLAP, truth=None, progress=None):
    """Yield the `LabelledStretch` of each stretch of a file. Skip those shorter than an FFT, with a warning.

    Args:
        segmenter: `engine_segment.Segmenter`.
        stretches: lists of `Recording`s, the channels of each stretch.
        limits: `labelling.regions.Limits`.
        overlap: share of a window that the next window covers too.
        truth: makes a `Truth` from (recording, finder); None: do not read the annotations.
        progress: called with the number of samples done since the last call.

    Raises:
        UserError: all stretches are shorter than an FFT, or a file cannot be read.
    """
    front_end = segmenter.front_end
    n_fft = max(front_end.least_samples(channels[0].sample_rate_hz) for channels in stretches)
    longest = max(channels[0].num_samples for channels in stretches)
    if longest < n_fft:
        path = stretches[0][0].path
        raise UserError(f"{path}: expected at least {n_fft} samples, an FFT; found {longest}")
    for channels in stretches:
        first = channels[0]
        if first.num_samples < n_fft:
            warn(f"{first.name}: skipped, {first.num_samples} samples are less than an FFT of {n_fft}")
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
        true = judge and judge.carriers
        yield LabelledStretch(first, finder.finish(), overview.image, overview.classes, true)


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
        overlap: share of a window that the next window covers too, 0 to 0.95.
        limits: the fields of `labelling.regions.Limits`.

    Raises:
        UserError: a value is out of range.
    """

    def __init__(self, segmenter, weights, overlap=DEFAULT_OVERLAP, **limits):
        check_ranges(limits | {"overlap": overlap})
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
            stretches = list(label_stretches(self.segmenter, by_stretch(found), self.limits, self.overlap))
        return Labels(stretches, self.class_names, self.weights)


class Truth:
    """Compares the annotations of a stretch with the model's classes, cell by cell.

    Cells of unknown labels and of annotations without frequency edges count as class 0, as in training.

    Args:
        recording: any channel of the stretch.
        finder: the stretch's `CarrierFinder`, for its cells and band.
        confusion: a `util.metrics.Confusion`, which gets the cells of every run.
        left_out: a Counter of the labels left out.
    """

    def __init__(self, recording, finder, confusion, left_out):
        self.finder, self.class_names, self.confusion = finder, finder.class_names, confusion
        self._painted = []  # cut to the stretch and its band
        for annotation in recording.annotations or ():
            carrier = from_annotation(annotation, recording.sample_rate_hz)
            if carrier is None or carrier.label not in self.class_names:
                left_out[carrier.label if carrier else "without frequency edges"] += 1
                continue
            low, high = np.clip((carrier.freq_lower_hz, carrier.freq_upper_hz), *finder.band_hz).tolist()
            start, end = max(0.0, carrier.start_s), min(recording.duration_s, carrier.end_s)
            if low < high and start < end:
                cut = Carrier(carrier.label, start, end - start, low, high, carrier.confidence)
                self._painted.append(cut)

    @property
    def carriers(self):
        """The annotated carriers, without the background."""
        return [one for one in self._painted if one.label != self.class_names[0]]

    def add(self, run):
        columns_s = (np.arange(run.first, run.ends[-1]) + 0.5) * self.finder.column_s
        target = paint_cells(self._painted, self.finder.rows_hz, columns_s, self.class_names)
        pred = run.probabilities.argmax(dim=0).cpu()
        self.confusion.update(pred[None], torch.from_numpy(target.astype(np.int64))[None])
