"""Label recordings and arrays of IQ with a `Segmenter`: what main_segment.py and hubconf.py have in common."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from labelling.outputs import by_stretch, tuned
from labelling.regions import Limits
from radio.carriers import from_annotation, paint_cells
from radio.iq_array import recording_of
from radio.recordings import Recording, open_recording
from util.errors import UserError, warn
from util.plots import labelled_figure

DEFAULT_OVERLAP = 0.25
# From 0 to these, both included.
GREATEST = {"min_bandwidth_hz": math.inf, "min_duration_s": math.inf, "bridge_s": math.inf, "min_confidence": 1,
            "overlap": 0.95}  # fmt: skip
# A recording with more retunes than this has only its first in the picture.
PICTURE_STRETCHES = 8


def check_ranges(values, prefix=""):
    """Refuse what is out of range among `values`, a dict by name.

    Raises:
        UserError: naming it, with `prefix` before its name.
    """
    for name, greatest in GREATEST.items():
        value = values.get(name)
        if value is not None and not 0 <= value <= greatest:
            raise UserError(f"{prefix}{name}: expected 0 to {greatest}; found {value}")


@dataclass(frozen=True)
class LabelledStretch:
    """What was found in one contiguous stretch of a recording.

    recording: its first channel. found: list of `Carrier`, times from the stretch's first sample. image: mean dB of each
    cell, float32 [rows, columns], row 0 the lowest frequency. class_map: the likeliest class of each cell, uint8 [rows,
    columns]. Both have at most `labelling.planes.PICTURE_COLUMNS` columns: of a long stretch each stands for several of the
    model's. true: the `Carrier`s of its own annotations, or None where nobody asked.
    """

    recording: Recording
    found: list
    image: np.ndarray
    class_map: np.ndarray
    true: list | None = None

    @property
    def start_s(self):
        """Where it begins, from the file's first sample."""
        return self.recording.sample_start / self.recording.sample_rate_hz

    @property
    def carriers(self):
        """Those found, times from the file's first sample."""
        return [replace(one, start_s=self.start_s + one.start_s) for one in self.found]

    @property
    def extent(self):
        """Outer borders of the class map: (first s, last s, lowest Hz, highest Hz); times from the file's first sample."""
        half, center = self.recording.sample_rate_hz / 2, self.recording.center_freq_hz or 0.0
        return (self.start_s, self.start_s + self.recording.duration_s, center - half, center + half)

    @property
    def picture_row(self):
        """A row of `util.plots.labelled_figure`."""
        one = self.recording
        known = "" if one.center_freq_hz is not None else "; frequencies from the centre"
        about = f"{one.duration_s * 1e3:.6g} ms at {one.sample_rate_hz / 1e6:.6g} Msps"
        return {"title": f"{one.name}: {about}{known}", "image": self.image, "classes": self.class_map,
                "carriers": self.carriers, "extent": self.extent}  # fmt: skip


def label_stretches(segmenter, stretches, limits, overlap=DEFAULT_OVERLAP, truth=None, progress=None):
    """Find the carriers of each stretch of a file; one that is shorter than an FFT is passed over with a warning.

    Args:
        segmenter: `engine_segment.Segmenter`.
        stretches: of each, the list of the `Recording`s of its channels.
        limits: `labelling.regions.Limits`.
        overlap: share of a window that the next covers too.
        truth: makes a watcher with `carriers` from (recording, finder), see `Truth`; None: the annotations are not read.
        progress: called with the number of samples that are done since the last call.

    Yields:
        `LabelledStretch`.

    Raises:
        UserError: all stretches are shorter than an FFT, or a file cannot be read.
    """
    n_fft, longest = segmenter.front_end.n_fft, max(channels[0].num_samples for channels in stretches)
    if longest < n_fft:
        raise UserError(f"{stretches[0][0].path}: expected at least {n_fft} samples, an FFT; found {longest}")
    for channels in stretches:
        first = channels[0]
        if first.num_samples < n_fft:
            warn(f"{first.name}: passed over, {first.num_samples} samples are less than an FFT of {n_fft}")
            if progress:
                progress(first.num_samples)
            continue
        tiling = segmenter.tiling(first, overlap)
        if tiling.window < segmenter.front_end.num_samples(first.sample_rate_hz):
            warn(f"{first.name}: shorter ({first.duration_s * 1e3:g} ms) than the windows that the model was trained on "
                 f"({segmenter.front_end.duration_s * 1e3:g} ms): used whole")  # fmt: skip
        finder = segmenter.finder(first.sample_rate_hz, first.center_freq_hz, tiling.window, first.num_samples, limits)
        overview = segmenter.overview(tiling)
        judge = truth(first, finder) if truth else None
        segmenter.find(channels, tiling, finder, [overview, judge] if judge else [overview], progress)
        yield LabelledStretch(first, finder.finish(), overview.image, overview.classes, judge and judge.carriers)


def picture(rows, num_stretches, class_names, recording, weights):
    """`labelled_figure` of a recording of so many stretches; `recording` and `weights` are names for the caption."""
    caption = f"{recording}, labelled with {weights}"
    caption += f"; the first {len(rows)} of {num_stretches} stretches" if len(rows) < num_stretches else ""
    return labelled_figure(rows, class_names, caption)


class Labels(Sequence):
    """What was found in a recording: a sequence of `radio.carriers.Carrier`, with its class map and picture.

    Times count from the file's first sample; frequencies are at RF where the centre frequency is known.

    Args:
        stretches: list of `LabelledStretch`.
        class_names: by class id.
        weights: their name.
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
            raise UserError(f"{self.stretches[0].recording.path}: expected a recording of one stretch; found "
                            f"{len(self.stretches)}, each with a class map of its own in `stretches`")  # fmt: skip
        return self.stretches[0]

    @property
    def class_map(self):
        """The likeliest class of each cell, see `LabelledStretch`. Of a recording with retunes, ask each of `stretches`."""
        return self._only.class_map

    @property
    def extent(self):
        """Outer borders of the class map, see `LabelledStretch.extent`."""
        return self._only.extent

    def figure(self):
        """Waterfall with the carriers, beside the class map, a row for each of the first stretches: a matplotlib Figure."""
        rows = [one.picture_row for one in self.stretches[:PICTURE_STRETCHES]]
        return picture(rows, len(self.stretches), self.class_names, self.stretches[0].recording.path.name, self.weights)


class Labeller:
    """Labels recordings and arrays with one model.

    Args:
        segmenter: `engine_segment.Segmenter`.
        weights: a name for them.
        overlap: share of a window that the next covers too, 0 to 0.95.
        limits: the fields of `labelling.regions.Limits`.

    Raises:
        UserError: a value that is out of range.
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
        """Find the carriers in a recording.

        Args:
            recording: path of a SigMF, .npy or raw file; or complex samples [N], a NumPy array or a torch tensor.
            sample_rate_hz: of raw and .npy files and of arrays.
            datatype: SigMF's name, of raw files.
            center_freq_hz: of recordings that do not say.

        Returns:
            `Labels`.

        Raises:
            UserError: there is no such recording, it does not say what it is, or it is shorter than an FFT.
        """
        if isinstance(recording, str | os.PathLike):
            found = tuned(open_recording(recording, sample_rate_hz, datatype), center_freq_hz)
            if members := len({one.member for one in found}) - 1:
                raise UserError(f"{recording}: expected one recording; found an archive of {members + 1}")
        else:
            found = [recording_of(recording, sample_rate_hz, center_freq_hz)]
        with self.segmenter.on_its_cores():
            stretches = list(label_stretches(self.segmenter, by_stretch(found), self.limits, self.overlap))
        return Labels(stretches, self.class_names, self.weights)


class Truth:
    """What a recording's own annotations say, held against what was found in a stretch.

    Annotations of labels that are no classes, and those without frequency edges, count as the first class, as in training.

    Args:
        recording: any channel of the stretch.
        finder: the stretch's `CarrierFinder`, whose cells and band these are.
        confusion: a `util.metrics.Confusion`, which gets the cells of every run.
        left_out: a Counter of the labels that were left out.
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
                self._painted.append(replace(carrier, start_s=start, duration_s=end - start, freq_lower_hz=low,
                                             freq_upper_hz=high))  # fmt: skip

    @property
    def carriers(self):
        """What there is to be found: all but the first class."""
        return [one for one in self._painted if one.label != self.class_names[0]]

    def add(self, run):
        columns_s = (np.arange(run.first, run.ends[-1]) + 0.5) * self.finder.column_s
        target = paint_cells(self._painted, self.finder.rows_hz, columns_s, self.class_names)
        pred = run.probabilities.argmax(dim=0).cpu()
        self.confusion.update(pred[None], torch.from_numpy(target.astype(np.int64))[None])
