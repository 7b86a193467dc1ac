"""Windows of SigMF recordings, with masks painted from their annotations."""

from collections import Counter

import numpy as np

from data.splits import RECORDING, relative_paths
from data.windows import RecordingWindows, few_names, size_flags, works_at
from radio.carriers import CLASS_NAMES, annotated_carriers, class_of, from_annotation, paint
from util.errors import UserError, warn
from util.state import check_names


class TiledRecordings(RecordingWindows):
    """Windows of recordings, always side by side. A recording shorter than a window is one short window.

    A short window keeps its duration: its image has the same columns, each of less time, or with the front end
    `grid` columns outside of the recording. Samples after the last whole window are not used.
    `groups["recording"]` is the file's path below the folder common to all.
    `number` gives each window's place in `recordings`, int64 [N].

    Args:
        recordings: list of `radio.recordings.Recording`.
        front_end: gives the samples of a window at a sample rate.
    """

    def __init__(self, recordings, front_end):
        self.recordings = list(recordings)
        windows = np.array([front_end.num_samples(one.sample_rate_hz) for one in self.recordings], int)
        lengths = np.array([one.num_samples for one in self.recordings], int)
        least = np.array([front_end.least_samples(one.sample_rate_hz) for one in self.recordings], int)
        fits = np.minimum(windows, lengths) >= least
        fits &= np.array([works_at(front_end, one) for one in self.recordings], bool)
        self._warn(~fits, fits & (lengths < windows), front_end)
        super().__init__([(one, 0, one.num_samples) for one in self._chosen(fits)], front_end)
        self.number = np.repeat(np.flatnonzero(fits), self.counts)
        files = np.array(relative_paths([one.path for one in self.recordings]), object)
        self.groups = {RECORDING: files[self.number]}

    def _chosen(self, which):
        return [self.recordings[number] for number in np.flatnonzero(which)]

    def _warn(self, too_short, whole, front_end):
        duration, names = f"{front_end.duration_s * 1e3:g} ms", few_names(self._chosen(too_short))
        if too_short.all():
            raise UserError(
                f"{size_flags(front_end)}: expected recordings and windows ({duration}) of at least an FFT; "
                f"found {f'{len(too_short)} shorter: {names}' if names else 'none'}"
            )
        if names:
            warn(
                f"{too_short.sum()} of {len(too_short)} recordings skipped, they or a window of {duration} "
                f"shorter than an FFT, or of less than {front_end.least_rate_hz:g} Hz: {names}"
            )
        if whole.any() and not front_end.pads:
            warn(
                f"{whole.sum()} of {len(whole)} recordings are shorter than a window of {duration} "
                f"and used whole: {few_names(self._chosen(whole))}"
            )


class AnnotatedWindows(TiledRecordings):
    """Windows as above, each with a mask: annotations whose labels are classes, whatever their case, painted in
    the file's order.

    Cells without an annotation have class 0, the background. Annotations with other labels, without frequency
    edges or outside of the band are left out, with one warning.

    Args:
        classes: names by class id; class 0 is the background.
    """

    task = "segmentation"

    def __init__(self, recordings, front_end, classes=CLASS_NAMES):
        self.class_names = list(classes)
        check_names(self.class_names, "--classes", "2 to 256 names that differ", least=2)
        if bare := [one for one in recordings if one.annotations is None]:
            raise UserError(
                f"{bare[0].path}: expected a SigMF recording, whose annotations are the labels; found another "
                f"format ({len(bare)} of {len(recordings)} recordings)"
            )
        super().__init__(recordings, front_end)
        self._annotations = {}  # number of a recording -> those to paint
        self._read_annotations()

    def parts(self):
        return None

    def _read_annotations(self):
        painted, others, bare, outside = set(), {}, set(), set()
        for number in np.unique(self.number).tolist():
            recording, kept = self.recordings[number], self._annotations.setdefault(number, [])
            center, half_band = recording.center_freq_hz or 0.0, recording.sample_rate_hz / 2
            for annotation, carrier in annotated_carriers(recording):
                label = str(annotation.get("core:label", ""))
                known = class_of(label, self.class_names)
                # Each channel and stretch of a file has the annotation: count it once.
                start = recording.sample_start + annotation["core:sample_start"]
                edges = [str(annotation.get(f"core:freq_{side}_edge")) for side in ("lower", "upper")]
                key = (recording.path, label, start, annotation["core:sample_count"], *edges)
                if known is None:
                    others[key] = label or "(no label)"
                    continue
                if carrier is None:
                    bare.add(key)
                elif (
                    carrier.freq_lower_hz >= center + half_band or carrier.freq_upper_hz <= center - half_band
                ):
                    outside.add(key)
                else:
                    painted.add(key)
                    kept.append(annotation | {"core:label": known})
        background, names = self.class_names[0], ", ".join(self.class_names[1:])
        left_out = [f"{label} ({count})" for label, count in Counter(others.values()).most_common(8)]
        for keys, why in (
            (bare, "no frequency edges"),
            (outside - painted, "edges outside of the recorded band"),
        ):
            left_out += [f"{len(keys)} with {why}"] if keys else []
        found = ", ".join(left_out)
        if all(class_of(key[1], self.class_names) == background for key in painted):
            raise UserError(
                f"--classes: expected annotations labelled {names} in the recordings; found {found or 'none'}"
            )
        if found:
            warn(f"annotations are left out, and their cells count as {background}: {found}")

    def target(self, index, epoch=0):
        """Class ids: uint8 [F, T]."""
        recording, start, count, row = self.window(index)
        rate = recording.sample_rate_hz
        carriers = [
            from_annotation(one, rate, start)
            for one in self._annotations[int(self.number[index])]
            if one["core:sample_start"] < start + count
            and one["core:sample_start"] + one["core:sample_count"] > start
        ]
        center = recording.center_freq_hz
        return paint(carriers, self.front_end, rate, count, center, self.class_names, first_row=row)
