"""Compare the annotations of a stretch with a model's classes, cell by cell."""

import numpy as np
import torch

from radio.carriers import Carrier, from_annotation, paint_cells


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
