"""Windows of SigMF recordings with the masks that their annotations say."""

from collections import Counter

import numpy as np

from data.sampling import IQ, Source
from data.splits import RECORDING, relative_paths
from data.windows import largest_window, read_windows
from radio.carriers import CLASS_NAMES, from_annotation, paint
from util.errors import UserError, warn


class TiledRecordings(Source):
    """Windows of recordings side by side; of a recording shorter than a window, all of it.

    Such a short window keeps its true duration: its image has the same columns, each of less time. The samples after a
    recording's last whole window are not used. `groups["recording"]` is the file's path below the folder common to all.

    Args:
        recordings: list of `radio.recordings.Recording`.
        front_end: says how many samples a window has at a sample rate.

    Raises:
        UserError: no recording holds an FFT, or windows are shorter than one.
    """

    def __init__(self, recordings, front_end):
        self.recordings, self.front_end = list(recordings), front_end
        self.image_size = front_end.image_size
        windows = np.array([front_end.num_samples(one.sample_rate_hz) for one in self.recordings], np.int64)
        lengths = np.array([one.num_samples for one in self.recordings], np.int64)
        used = np.minimum(windows, lengths)  # samples of a window, by recording
        counts = np.where(used >= front_end.n_fft, np.maximum(1, lengths // np.maximum(windows, 1)), 0)
        self._warn(counts == 0, used < windows)
        self.number = np.repeat(np.arange(len(counts)), counts)  # of a window's recording, [N]
        self.samples = used[self.number]
        self.start = (np.arange(len(self.number)) - np.repeat(np.cumsum(counts) - counts, counts)) * self.samples
        files = np.array(relative_paths([one.path for one in self.recordings]), object)
        self.groups = {RECORDING: files[self.number]}

    def _warn(self, too_short, whole):
        duration = f"{self.front_end.duration_s * 1e3:g} ms"
        if too_short.all():
            found = f"{len(too_short)} shorter" if len(too_short) else "none"
            raise UserError(f"--window_ms, --n_fft: expected recordings and windows ({duration}) of at least "
                            f"{self.front_end.n_fft} samples; found {found}{self._named(too_short)}")  # fmt: skip
        if too_short.any():
            warn(f"{too_short.sum()} of {len(too_short)} recordings skipped, they or a window of {duration} shorter than an "
                 f"FFT of {self.front_end.n_fft} samples{self._named(too_short)}")  # fmt: skip
        whole = whole & ~too_short
        if whole.any():
            warn(f"{whole.sum()} of {len(whole)} recordings are shorter than a window of {duration} and used whole"
                 f"{self._named(whole)}")  # fmt: skip

    def _named(self, which):
        names = [self.recordings[number].name for number in np.flatnonzero(which)[:5]]
        return f": {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}" if names else ""

    def __len__(self):
        return len(self.number)

    @property
    def sample_bytes(self):
        used = dict(zip(self.number.tolist(), self.samples.tolist(), strict=True))
        return largest_window((self.recordings[number], count) for number, count in used.items())

    def load(self, index, rng, epoch=0):
        """(IQ, complex64 [samples])."""
        return IQ, self.recordings[self.number[index]].read(self.start[index], self.samples[index])

    def load_many(self, indices, rng_of, epoch):
        windows = [(self.recordings[self.number[index]], int(self.start[index]), int(self.samples[index]))
                   for index in indices]  # fmt: skip
        return read_windows(windows)

    def describe(self, index, rng, epoch=0):
        recording = self.recordings[self.number[index]]
        start = recording.sample_start + int(self.start[index])
        return {
            "name": recording.name,
            "path": str(recording.path),
            "start_s": start / recording.sample_rate_hz,
            "sample_start": start,
            "num_samples": int(self.samples[index]),
            "sample_rate_hz": recording.sample_rate_hz,
            "center_freq_hz": recording.center_freq_hz,
        }


class AnnotatedWindows(TiledRecordings):
    """Windows as above, each with a mask: the annotations whose labels are among the classes, painted in the file's order.

    A SigMF recording without any annotation is the first class all over. An annotation of another label is left out, so
    that it counts as the first class where no other lies, and so is one without frequency edges or outside of the band;
    a warning each says how many there are.

    Args:
        classes: names by class id; the first is what nothing else is.

    Raises:
        UserError: the classes are no two or more names that differ, a recording of a format without annotations, an
            annotation with edges that make no sense, or none of the classes but the first is in the recordings.
    """

    task = "segmentation"

    def __init__(self, recordings, front_end, classes=CLASS_NAMES):
        self.class_names = list(classes)
        if not 2 <= len(set(classes)) == len(self.class_names) <= 256 or not all(self.class_names):
            raise UserError(f"--classes: expected 2 to 256 names that differ; found {','.join(self.class_names)}")
        if bare := [one for one in recordings if one.annotations is None]:
            raise UserError(f"{bare[0].path}: expected a SigMF recording, whose annotations are the labels; found another "
                            f"format ({len(bare)} of {len(recordings)} recordings)")  # fmt: skip
        super().__init__(recordings, front_end)
        self._kept = [[] for _ in self.recordings]
        self._read()

    def parts(self):
        return None

    def _read(self):
        """Keep the annotations to paint; say what is left out."""
        painted, others, bare, outside = set(), {}, set(), set()
        for number in np.unique(self.number):
            recording = self.recordings[number]
            low, high = (np.array([-0.5, 0.5]) * recording.sample_rate_hz + (recording.center_freq_hz or 0.0)).tolist()
            for annotation in recording.annotations:
                label = str(annotation.get("core:label", ""))
                # An annotation comes once for each channel and stretch that it is about.
                start = recording.sample_start + annotation["core:sample_start"]
                edges = [str(annotation.get(f"core:freq_{side}_edge")) for side in ("lower", "upper")]
                key = (recording.path, label, start, annotation["core:sample_count"], *edges)
                if label not in self.class_names:
                    others[key] = label or "(no label)"
                    continue
                try:
                    carrier = from_annotation(annotation, recording.sample_rate_hz)
                except (ValueError, OverflowError) as error:
                    raise UserError(f"{recording.path}: annotation {label} at sample {start}: {error}") from error
                if carrier is None:
                    bare.add(key)
                elif carrier.freq_lower_hz >= high or carrier.freq_upper_hz <= low:
                    outside.add(key)
                else:
                    painted.add(key)
                    self._kept[number].append(annotation)
        first, names = self.class_names[0], ", ".join(self.class_names[1:])
        found = ", ".join(f"{label} ({count})" for label, count in Counter(others.values()).most_common(8))
        for left_out, what in ((bare, "no frequency edges"), (outside - painted, "edges outside of the recorded band")):
            found += f"{', ' * bool(found and left_out)}{len(left_out)} with {what}" if left_out else ""
        if not any(key[1] != first for key in painted):
            raise UserError(f"--classes: expected annotations labelled {names} in the recordings; found {found or 'none'}")
        if found:
            warn(f"annotations that are left out, which leaves {first} where there is no other: {found}")

    def target(self, index, epoch=0):
        """Class ids: uint8 [F, T]."""
        number, start, count = (int(values[index]) for values in (self.number, self.start, self.samples))
        recording = self.recordings[number]
        rate = recording.sample_rate_hz
        carriers = [
            from_annotation(one, rate, start)
            for one in self._kept[number]
            if one["core:sample_start"] < start + count and one["core:sample_start"] + one["core:sample_count"] > start
        ]
        return paint(carriers, self.front_end, rate, count, recording.center_freq_hz, self.class_names)
