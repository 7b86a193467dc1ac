"""The label of every task, a rectangle in time and frequency: to and from SigMF annotations, and to masks.

Sections named here are those of the SigMF specification, version 1.2.
"""

import math
import re
from dataclasses import dataclass
from reprlib import repr as _brief
from typing import TYPE_CHECKING

import numpy as np

from util.errors import UserError

if TYPE_CHECKING:
    from radio.cell_search import Cell

NOISE, NR, LTE, OTHER = "Noise", "NR", "LTE", "Other"
CLASS_NAMES = (NOISE, NR, LTE)  # by class id, of the published sets; OTHER follows where a set knows it

# SigMF has no field for a confidence. A comment holds `name=value` parts, separated by semicolons.
_CONFIDENCE = re.compile(r"(?:^|;)\s*confidence=(\d*\.?\d+(?:e[+-]?\d+)?)\s*(?:;|$)")


@dataclass(frozen=True)
class Carrier:
    """A carrier's transmission bandwidth for as long as it is on. Impossible values are a ValueError."""

    label: str  # a class name, or any text of a foreign annotation
    start_s: float  # from the first sample of the stretch; negative if the carrier began before
    duration_s: float  # infinite for "to the end of the stretch"
    freq_lower_hz: float  # at RF if the centre frequency is known, else from the centre
    freq_upper_hz: float
    confidence: float | None = None  # 0 to 1, of a carrier that a model found
    cell: "Cell | None" = None  # of a carrier in which a cell search heard one

    def __post_init__(self):
        if not (math.isfinite(self.start_s) and self.duration_s >= 0):
            raise ValueError(f"expected a finite start and extent: {self.start_s=} {self.duration_s=}")
        if not -math.inf < self.freq_lower_hz <= self.freq_upper_hz < math.inf:
            raise ValueError(f"expected finite, ascending edges: {self.freq_lower_hz=} {self.freq_upper_hz=}")
        if self.confidence is not None and not 0 <= self.confidence <= 1:
            raise ValueError(f"expected a confidence from 0 to 1: {self.confidence=}")

    @property
    def confirmed(self):
        """Whether a cell search heard its cell."""
        return self.cell is not None

    @property
    def end_s(self):
        return self.start_s + self.duration_s

    @property
    def center_freq_hz(self):
        return (self.freq_lower_hz + self.freq_upper_hz) / 2

    @property
    def bandwidth_hz(self):
        return self.freq_upper_hz - self.freq_lower_hz


def to_annotation(carrier, sample_rate_hz, sample_offset=0, num_samples=math.inf):
    """A carrier as a SigMF annotation (section "Annotations Array"), a dict; ends are rounded to samples.

    An infinite duration without `num_samples` gives no `core:sample_count`: "to the capture's end" in SigMF.

    Args:
        sample_offset: SigMF's index of the sample that the carrier's times count from. For a stretch of a
            recording, `Recording.sample_start` plus the file's `core:offset`.
        num_samples: of the stretch, to which the annotation is cut. A carrier outside has a count of 0.
    """
    start = min(max(0, round(carrier.start_s * sample_rate_hz)), num_samples)
    end = carrier.end_s * sample_rate_hz
    end = min(end if math.isinf(end) else round(end), num_samples)
    annotation = {"core:sample_start": int(sample_offset + start)}
    if not math.isinf(end):
        annotation["core:sample_count"] = int(max(0, end - start))
    annotation["core:freq_lower_edge"] = float(carrier.freq_lower_hz)
    annotation["core:freq_upper_edge"] = float(carrier.freq_upper_hz)
    annotation["core:label"] = carrier.label
    annotation["core:generator"] = "radio-mae"
    if carrier.confidence is not None:
        annotation["core:comment"] = f"confidence={float(carrier.confidence)!r}"
    return annotation


def from_annotation(annotation, sample_rate_hz, sample_offset=0):
    """A SigMF annotation as a carrier; None without frequency edges.

    The duration is infinite without `core:sample_count`, the label "" without `core:label`.
    An annotation without a count ends with its capture: only the stretch that it begins in should ask.

    Args:
        sample_offset: as in `to_annotation`.

    Raises:
        ValueError: edges that are not finite numbers or in the wrong order.
    """
    edges = [annotation.get(f"core:freq_{side}_edge") for side in ("lower", "upper")]
    if None in edges:
        return None
    # JSON has integers of any length: a float of them may overflow.
    if not all(type(edge) in (int, float) and abs(edge) < 1e15 for edge in edges):
        raise ValueError(
            f"expected numbers as core:freq_lower_edge and core:freq_upper_edge: {_brief(edges)}"
        )
    stated = _CONFIDENCE.search(str(annotation.get("core:comment", "")))
    confidence = float(stated[1]) if stated else math.inf
    return Carrier(
        label=str(annotation.get("core:label", "")),
        start_s=(annotation["core:sample_start"] - sample_offset) / sample_rate_hz,
        duration_s=annotation.get("core:sample_count", math.inf) / sample_rate_hz,
        freq_lower_hz=float(edges[0]),
        freq_upper_hz=float(edges[1]),
        confidence=confidence if confidence <= 1 else None,
    )


def annotated_carriers(recording):
    """Pairs of an annotation and its carrier (see `from_annotation`) of a `Recording`, in the file's order.

    Raises:
        UserError: impossible edges.
    """
    found = []
    for annotation in recording.annotations or ():
        try:
            found.append((annotation, from_annotation(annotation, recording.sample_rate_hz)))
        except (ValueError, OverflowError) as error:
            label, start = (
                annotation.get("core:label", ""),
                recording.sample_start + annotation["core:sample_start"],
            )
            about = f"annotation {str(label)[:60]} at sample {start}"
            raise UserError(f"{recording.path}: {about}: {error}") from error
    return found


def class_of(label, class_names):
    """The class that a label of an annotation names: itself, else one that differs in case alone, else None."""
    if label in class_names:
        return label
    folded = {name.casefold(): name for name in class_names}
    return folded.get(label.casefold())


def paint(
    carriers, front_end, sample_rate_hz, num_samples, center_freq_hz=0.0, class_names=CLASS_NAMES, first_row=0
):
    """The mask of a window of `num_samples`, on the cells of its spectrogram.

    A cell has a carrier's class if its centre lies in the rectangle, lower and first borders included.
    A carrier narrower or shorter than a cell has the row or column nearest to its middle.
    Later carriers cover earlier ones. A cell without a carrier is class 0.

    Args:
        carriers: times from the window's first sample; frequencies relative to `center_freq_hz`, None for 0.
        front_end: of `radio.front_end`.
        class_names: by class id.
        first_row: of the image in the plane of a `radio.grid.Grid`.

    Returns:
        uint8 [frequency, time], row 0 the lowest frequency.

    Raises:
        ValueError: a label that is not in `class_names`.
    """
    place = (first_row, front_end.image_size[0]) if front_end.pads else ()
    rows_hz = front_end.frequency_axis_hz(sample_rate_hz, center_freq_hz, *place).numpy()
    columns_s = front_end.time_axis_s(sample_rate_hz, num_samples).numpy()
    return paint_cells(carriers, rows_hz, columns_s, class_names)


def paint_cells(carriers, rows_hz, columns_s, class_names=CLASS_NAMES):
    """`paint` on cells with these centres: float64 [frequency] and [time], both ascending."""
    mask = np.zeros((len(rows_hz), len(columns_s)), np.uint8)
    for carrier in carriers:
        if carrier.label not in class_names:
            raise ValueError(f"expected a label among {tuple(class_names)}: {carrier.label=}")
        rows = _cells(rows_hz, carrier.freq_lower_hz, carrier.freq_upper_hz)
        columns = _cells(columns_s, carrier.start_s, carrier.end_s)
        mask[rows, columns] = class_names.index(carrier.label)
    return mask


def _cells(centres, low, high):
    """The slice of cells with these centres, ascending, whose centre lies in low to high; or the nearest one."""
    first, last = np.searchsorted(centres, (low, high))
    if first == last and len(centres) > 1 and high > low:
        cell, middle = centres[1] - centres[0], (low + high) / 2
        if centres[0] - cell / 2 <= middle < centres[-1] + cell / 2:
            first = int(np.abs(centres - middle).argmin())
            last = first + 1
    return slice(first, last)
