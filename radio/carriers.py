"""The label everywhere, a rectangle in time and frequency: to and from SigMF annotations, and to masks.

Sections named here are those of the SigMF specification, version 1.2.
"""

import math
import re
from dataclasses import dataclass

import numpy as np

NOISE, NR, LTE = "Noise", "NR", "LTE"
CLASS_NAMES = (NOISE, NR, LTE)  # by class id

GENERATOR = "radio-mae"

# SigMF's core has no field for it; a comment of `name=value` parts between semicolons is what people read best.
_CONFIDENCE = re.compile(r"(?:^|;)\s*confidence=([0-9.e+-]+)\s*(?:;|$)")


@dataclass(frozen=True)
class Carrier:
    """A carrier's transmission bandwidth for as long as it is on.

    Args:
        label: a class name; annotations of others may say anything.
        start_s: from the first sample of the stretch it belongs to; negative for what began before.
        duration_s: infinite for "to the end of the stretch".
        freq_lower_hz, freq_upper_hz: at RF where the centre frequency is known, else from the centre.
        confidence: 0 to 1, of what a model found.

    Raises:
        ValueError: a negative extent, or a value that is not finite or out of range.
    """

    label: str
    start_s: float
    duration_s: float
    freq_lower_hz: float
    freq_upper_hz: float
    confidence: float | None = None

    def __post_init__(self):
        if not (math.isfinite(self.start_s) and self.duration_s >= 0):
            raise ValueError(f"expected a finite start and a duration of 0 or more: {self.start_s=} {self.duration_s=}")
        if not -math.inf < self.freq_lower_hz <= self.freq_upper_hz < math.inf:
            raise ValueError(f"expected finite edges, the lower first: {self.freq_lower_hz=} {self.freq_upper_hz=}")
        if self.confidence is not None and not 0 <= self.confidence <= 1:
            raise ValueError(f"expected a confidence from 0 to 1: {self.confidence=}")

    @property
    def end_s(self):
        return self.start_s + self.duration_s

    @property
    def center_freq_hz(self):
        return (self.freq_lower_hz + self.freq_upper_hz) / 2

    @property
    def bandwidth_hz(self):
        return self.freq_upper_hz - self.freq_lower_hz


def to_annotation(carrier, sample_rate_hz, sample_offset=0, generator=GENERATOR, num_samples=None):
    """A carrier as SigMF annotation (section "Annotations Array"), its ends rounded to whole samples.

    Args:
        sample_offset: SigMF's index of the sample that the carrier's times count from. For a stretch of a recording:
            `Recording.sample_start` plus the file's `core:offset`.
        num_samples: of the stretch; what lies beyond is cut, as is what lies before its first sample. A carrier that is
            wholly outside has a count of 0. None: the stretch is as long as the carrier wants.

    Returns:
        A dict of plain values. A duration without end and without `num_samples` has no `core:sample_count`, which SigMF
        reads as "to the end of the capture". SigMF wants annotations sorted by `core:sample_start`.
    """
    stretch_end = math.inf if num_samples is None else num_samples
    start = min(max(0, round(carrier.start_s * sample_rate_hz)), stretch_end)
    end = carrier.end_s * sample_rate_hz
    end = min(end if math.isinf(end) else round(end), stretch_end)
    annotation = {"core:sample_start": int(sample_offset + start)}
    if not math.isinf(end):
        annotation["core:sample_count"] = int(max(0, end - start))
    annotation["core:freq_lower_edge"] = float(carrier.freq_lower_hz)
    annotation["core:freq_upper_edge"] = float(carrier.freq_upper_hz)
    annotation["core:label"] = carrier.label
    annotation["core:generator"] = generator
    if carrier.confidence is not None:
        annotation["core:comment"] = f"confidence={float(carrier.confidence)!r}"
    return annotation


def from_annotation(annotation, sample_rate_hz, sample_offset=0):
    """A SigMF annotation as carrier, or None where it has no frequency edges: it then is about time alone.

    Without `core:sample_count` the duration is infinite, without `core:label` the label is "". An annotation without a
    count ends with its capture: of several stretches, only the one that it begins in should be asked.

    Args:
        sample_offset: as in `to_annotation`.

    Raises:
        ValueError: edges that are no numbers or in the wrong order.
    """
    edges = [annotation.get(f"core:freq_{side}_edge") for side in ("lower", "upper")]
    if None in edges:
        return None
    if not all(isinstance(edge, int | float) for edge in edges):
        raise ValueError(f"expected numbers as core:freq_lower_edge and core:freq_upper_edge: {edges=}")
    count = annotation.get("core:sample_count", math.inf)
    stated = _CONFIDENCE.search(str(annotation.get("core:comment", "")))
    return Carrier(
        label=str(annotation.get("core:label", "")),
        start_s=(annotation["core:sample_start"] - sample_offset) / sample_rate_hz,
        duration_s=count / sample_rate_hz,
        freq_lower_hz=float(edges[0]),
        freq_upper_hz=float(edges[1]),
        confidence=_share(stated[1]) if stated else None,
    )


def _share(text):
    """The number from 0 to 1 that a comment states, or None: comments of others may say anything."""
    try:
        return float(text) if 0 <= float(text) <= 1 else None
    except ValueError:
        return None


def paint(carriers, front_end, sample_rate_hz, num_samples, center_freq_hz=0.0, class_names=CLASS_NAMES):
    """The mask of a window on the image cells of its spectrogram.

    A cell has the class of a carrier if the cell's centre lies inside the carrier's rectangle, lower and first borders
    included: the nearest neighbour, so that no class appears between two others. Later carriers lie over earlier ones;
    what is outside of the window is cut. No carrier is class 0.

    Args:
        carriers: times from the window's first sample; frequencies as `center_freq_hz` has them.
        front_end: `radio.spectrogram.Spectrogram`.
        num_samples: of the window.
        center_freq_hz: None, as in a recording that does not say, is 0.
        class_names: by class id.

    Returns:
        uint8 [frequency, time], row 0 the lowest frequency.

    Raises:
        ValueError: a label that is not among `class_names`.
    """
    rows_hz = front_end.frequency_axis_hz(sample_rate_hz, center_freq_hz).numpy()
    columns_s = front_end.time_axis_s(sample_rate_hz, num_samples).numpy()
    return paint_cells(carriers, rows_hz, columns_s, class_names)


def paint_cells(carriers, rows_hz, columns_s, class_names=CLASS_NAMES):
    """`paint` on cells with these centres: float64 [frequency] and [time], both ascending."""
    mask = np.zeros((len(rows_hz), len(columns_s)), np.uint8)
    for carrier in carriers:
        if carrier.label not in class_names:
            raise ValueError(f"expected a label among {tuple(class_names)}: {carrier.label=}")
        bottom, top = np.searchsorted(rows_hz, (carrier.freq_lower_hz, carrier.freq_upper_hz))
        first, last = np.searchsorted(columns_s, (carrier.start_s, carrier.end_s))
        mask[bottom:top, first:last] = class_names.index(carrier.label)
    return mask
