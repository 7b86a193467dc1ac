"""Windows of IQ from recordings: drawn at random in training, side by side in validation."""

import numpy as np

from data.sampling import IQ, Source, View, hold_out
from util.errors import UserError, few, warn
from util.files import read_pieces


class RecordingWindows(Source):
    """Windows of one duration from recordings of any sample rate.

    An epoch has as many windows of a recording as fit side by side. A training window starts anywhere in its
    recording. Without a generator, windows lie side by side. A span shorter than a window is one window.
    With the front end `grid`, a wide recording has several images of each window, side by side in frequency.

    Args:
        spans: list of (recording, first sample, last sample + 1).
        front_end: gives the samples of a window at a sample rate.
    """

    def __init__(self, spans, front_end):
        self.spans, self.front_end = spans, front_end
        self.image_size, self.in_chans = front_end.image_size, front_end.in_chans
        windows = [front_end.num_samples(recording.sample_rate_hz) for recording, _, _ in spans]
        lengths = np.array([stop - start for _, start, stop in spans])
        self.window_samples = np.minimum(windows, lengths)
        self.first_rows = [_first_rows(front_end, recording) for recording, _, _ in spans]  # of images
        self.counts = lengths // self.window_samples * [len(rows) for rows in self.first_rows]
        self.ends = np.cumsum(self.counts)

    @classmethod
    def from_recordings(cls, recordings, front_end):
        """All windows of the recordings. Recordings shorter than a window are skipped with a warning.

        The front end `grid` takes them, down to the length of an FFT.
        """
        spans, short = [], []
        for recording in recordings:
            window = front_end.num_samples(recording.sample_rate_hz)
            least = front_end.least_samples(recording.sample_rate_hz)
            fits = (
                works_at(front_end, recording)
                and least <= window
                and (least if front_end.pads else window) <= recording.num_samples
            )
            (spans if fits else short).append((recording, 0, recording.num_samples))
        if short:
            duration, names = f"{front_end.duration_s * 1e3:g} ms", few_names([one[0] for one in short])
            least = "an FFT" if front_end.pads else duration
            if not spans:
                longest = max(recording.duration_s for recording, _, _ in short)
                raise UserError(
                    f"{size_flags(front_end)}: expected recordings of at least {least} and windows longer than "
                    f"an FFT; found none (longest {longest * 1e3:g} ms: {names})"
                )
            warn(
                f"{len(short)} of {len(recordings)} recordings skipped, shorter than {least} or a window of "
                f"{duration} shorter than an FFT, or of less than {front_end.least_rate_hz:g} Hz: {names}"
            )
        return cls(spans, front_end)

    def __len__(self):
        return int(self.ends[-1])

    def window(self, index, rng=None):
        """(recording, first sample, samples, first row) of a window; the row is 0 without a plane of rows."""
        number = int(np.searchsorted(self.ends, index, side="right"))
        recording, start, stop = self.spans[number]
        count, first_rows = int(self.window_samples[number]), self.first_rows[number]
        if rng is None:
            place = int(index) - int(self.ends[number] - self.counts[number])
            offset, row = place // len(first_rows) * count, first_rows[place % len(first_rows)]
        else:
            offset, row = int(rng.integers(stop - start - count + 1)), first_rows[0]
            if len(first_rows) > 1:
                row = self.front_end.draw_first_row(recording.sample_rate_hz, rng, recording.is_real)
        return recording, start + offset, count, row

    def kind(self, recording, *first_rows):
        """The kind of a window's sample, or of several; see `data.sampling`."""
        return View(recording.sample_rate_hz, first_rows, recording.is_real) if self.front_end.pads else IQ

    @property
    def sample_bytes(self):
        used = zip(self.spans, self.window_samples.tolist(), strict=True)
        return max(recording.layout.stored_bytes * samples for (recording, _, _), samples in used)

    def load(self, index, rng, epoch=0):
        """(kind, complex64 [samples])."""
        recording, start, count, row = self.window(index, rng)
        return self.kind(recording, row), recording.read(start, count)

    def load_many(self, indices, rng_of, epoch):
        """IQ in its stored type. Each file is opened once and read from beginning to end."""
        windows = [self.window(index, rng_of(place)) for place, index in enumerate(indices)]
        groups = {}
        for place, (recording, _, count, _) in enumerate(windows):
            key = recording.layout.stored_dtype, count, self.kind(recording)
            groups.setdefault(key, []).append(place)
        parts = []
        for (dtype, count, _), places in groups.items():
            kind = self.kind(windows[places[0]][0], *(windows[place][3] for place in places))
            rows = np.empty((len(places), count) if dtype.kind == "c" else (len(places), count, 2), dtype)
            _fill(rows, [windows[place][:2] for place in places])
            parts.append((kind, rows, places))
        return parts

    def describe(self, index, rng, epoch=0):
        recording, start, count, row = self.window(index, rng)
        return {
            "name": recording.name,
            "path": str(recording.path),
            "start_s": recording.start_s + start / recording.sample_rate_hz,
            "sample_start": recording.sample_start + start,
            "num_samples": count,
            "sample_rate_hz": recording.sample_rate_hz,
            "center_freq_hz": recording.center_freq_hz,
            **({"first_row": row, "is_real": recording.is_real} if self.front_end.pads else {}),
        }

    def split(self, fraction, seed):
        """Hold out whole files, whose channels and stretches share the air; of one file, hold out the end."""
        paths = [str(recording.path) for recording, _, _ in self.spans]
        if len(set(paths)) > 1:
            held_out = hold_out(paths, fraction, seed)
            parts = ([], [])
            for span, path in zip(self.spans, paths, strict=True):
                parts[path in held_out].append(span)
        else:
            parts = self._split_in_time(fraction)
        return RecordingWindows(parts[0], self.front_end), RecordingWindows(parts[1], self.front_end)

    def _split_in_time(self, fraction):
        training, held_out = [], []
        for (recording, start, stop), window in zip(self.spans, self.window_samples.tolist(), strict=True):
            border = stop - window * max(1, round(fraction * ((stop - start) // window)))
            if border - start >= window:
                training.append((recording, start, border))
                held_out.append((recording, border, stop))
            else:
                training.append((recording, start, stop))
        if not held_out:
            recording = self.spans[0][0]
            raise UserError(
                f"--val_fraction: expected room for a window to train on and one to hold out; found "
                f"{recording.duration_s * 1e3:g} ms in {recording.name}"
            )
        return training, held_out


def works_at(front_end, recording):
    """Whether a front end works at the sample rate of a recording."""
    return recording.sample_rate_hz >= front_end.least_rate_hz


def _first_rows(front_end, recording):
    if not front_end.pads:
        return [0]
    rate_hz, rows = recording.sample_rate_hz, front_end.image_size[0]
    least = front_end.num_rows(rate_hz) // 2 if recording.is_real else 0  # row inside the band
    return [row for row in front_end.first_rows(rate_hz) if row + rows > least]


def size_flags(front_end):
    """The flags that set the length of a window or of an FFT."""
    return "--column_us, --row_khz" if front_end.pads else "--window_ms, --n_fft"


def few_names(recordings):
    """The first names of a list of recordings, for a message."""
    return few(recording.name for recording in recordings)


def _fill(rows, windows):
    """Read windows, (recording, first sample) each, into rows."""
    count, pieces = rows.shape[1], {}
    for row, (recording, start) in enumerate(windows):
        layout = recording.layout
        if layout.is_as_stored:
            first_byte = layout.byte_offset + recording.checked_start(start, count) * layout.frame_bytes
            pieces.setdefault(layout.data_file, []).append((first_byte, row))
        else:
            rows[row] = recording.read_stored(start, count)
    for path, of_file in pieces.items():
        try:
            with open(path, "rb", buffering=0) as file:
                short = read_pieces(file, of_file, rows)
        except OSError as error:
            raise windows[of_file[0][1]][0].not_read(error) from error
        if short:
            row, found_bytes = short
            recording, start = windows[row]
            raise recording.cut(start, count, found_bytes // recording.layout.frame_bytes)
        for _, row in of_file:
            recording, start = windows[row]
            recording.check_finite(rows[row], start)
