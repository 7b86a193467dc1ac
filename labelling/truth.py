"""Compare the annotations of a stretch with a model's classes, cell by cell."""

import numpy as np
import torch

from radio.carriers import Carrier, annotated_carriers, class_of, paint_cells
from util.metrics import IGNORED

UNKNOWN = object()  # the label of annotations whose label is no class


class Truth:
    """Compares the annotations of a stretch with the model's classes, cell by cell.

    Cells under an annotation whose label is no class do not count, unless another annotation covers them.
    Cells of annotations without frequency edges are class 0, as in training.

    Args:
        recording: any channel of the stretch.
        finder: the stretch's `CarrierFinder`, for its cells and band.
        confusion: a `util.metrics.Confusion`, which gets the cells of every run.
        left_out: a Counter of the labels left out.
    """

    def __init__(self, recording, finder, confusion, left_out):
        self.finder, self.class_names, self.confusion = finder, finder.class_names, confusion
        self._painted = []  # cut to the stretch and its band
        self._names = [*self.class_names, UNKNOWN]
        for _, carrier in annotated_carriers(recording):
            label = carrier and (class_of(carrier.label, self.class_names) or UNKNOWN)
            if label in (None, UNKNOWN):
                left_out[carrier.label if carrier else "without frequency edges"] += 1
            if carrier is None:
                continue
            low, high = np.clip((carrier.freq_lower_hz, carrier.freq_upper_hz), *finder.band_hz).tolist()
            start, end = max(0.0, carrier.start_s), min(recording.duration_s, carrier.end_s)
            if low < high and start < end:
                cut = Carrier(label, start, end - start, low, high, carrier.confidence)
                self._painted.append(cut)
        self._painted.sort(key=lambda one: one.label != UNKNOWN)  # known labels are painted over the others
        self._times_s = np.array([(one.start_s, one.end_s) for one in self._painted]).reshape(-1, 2).T

    @property
    def carriers(self):
        """The annotated carriers of the model's classes, without the background."""
        return [one for one in self._painted if one.label not in (self.class_names[0], UNKNOWN)]

    def add(self, run):
        columns_s = (np.arange(run.first, run.ends[-1]) + 0.5) * self.finder.column_s
        begin_s, end_s = columns_s[0] - self.finder.column_s, columns_s[-1] + self.finder.column_s
        near = np.flatnonzero((self._times_s[0] < end_s) & (self._times_s[1] > begin_s))
        near = [self._painted[number] for number in near]
        target = paint_cells(near, self.finder.rows_hz, columns_s, self._names).astype(np.int64)
        target[target == len(self.class_names)] = IGNORED
        pred = run.probabilities.argmax(dim=0).cpu()
        self.confusion.update(pred[None], torch.from_numpy(target)[None])
