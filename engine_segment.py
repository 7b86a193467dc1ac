"""A recording through a segmentation model: windows that tile it, averaged probabilities in blocks, carriers from them."""

import contextlib
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch

from radio.carriers import from_annotation, paint_cells
from radio.regions import CarrierFinder

# Samples of all windows of a batch: 128 MB of complex64, so that memory does not grow with the sample rate.
BATCH_SAMPLES = 2**24
BATCH_WINDOWS_CPU, BATCH_WINDOWS_ACCELERATOR = 8, 64
# Columns of the picture: more than it has pixels would not be seen.
PICTURE_COLUMNS = 1600


@dataclass(frozen=True)
class Tiling:
    """Windows over a stretch of samples, each `columns` image columns, on one grid of columns for all of them.

    Windows start a whole number of columns apart, but for the last, which ends with the stretch. A stretch shorter than a
    window is one window of its own length, whose columns stand for less time.
    """

    num_samples: int
    window: int  # samples
    columns: int  # of a window
    total: int  # columns of the stretch
    first_columns: tuple[int, ...]  # of the windows

    @classmethod
    def over(cls, num_samples, window, columns, overlap):
        """Windows of `window` samples that share `overlap` (0 to below 1) of their columns with the one before."""
        window = min(window, num_samples)
        total = -(-num_samples * columns // window)  # the last column may stand for less than the others
        step = max(1, round(columns * (1 - overlap)))
        return cls(num_samples, window, columns, total, (*range(0, total - columns, step), total - columns))

    @property
    def column_samples(self):
        return self.window / self.columns

    def start(self, first_column):
        """The first sample of the window that starts with this column."""
        return min(round(first_column * self.column_samples), self.num_samples - self.window)


@dataclass
class Timings:
    """Seconds of work by part; of a GPU too, since every part ends with its results at hand."""

    seconds: Counter = field(default_factory=Counter)
    signal_s: float = 0.0

    @contextlib.contextmanager
    def part(self, name):
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - started

    def summary(self, elapsed_s):
        parts = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in self.seconds.items())
        return (f"{self.signal_s:.3f} s of signal in {elapsed_s:.2f} s: real-time factor "
                f"{self.signal_s / max(elapsed_s, 1e-9):.2f} ({parts})")  # fmt: skip


@dataclass
class Segmenter:
    """A model with the front end that it was trained with.

    Args:
        model: [B, 1, rows, columns] -> logits [B, classes, rows, columns], in eval mode on `device`.
        front_end: `radio.spectrogram.Spectrogram`, on `device`.
        class_names: by class id.
        autocast: makes the context of the forward pass.
        workers: threads that share the windows of a batch; on a CPU they are faster than torch's own within its operations.
    """

    model: torch.nn.Module
    front_end: torch.nn.Module
    class_names: list
    device: torch.device
    autocast: object
    workers: int = 1
    timings: Timings = field(default_factory=Timings)

    def windows(self, reads):
        """Windows of equal length.

        Args:
            reads: a function for each window, that gives its IQ: complex64 [samples].

        Returns:
            Probabilities [windows, classes, F, T], dB [windows, F, T]; float32.
        """
        parts = [reads[number :: self.workers] for number in range(min(len(reads), self.workers))]
        if len(parts) == 1:
            done = [self._windows(reads)]
        else:
            with ThreadPoolExecutor(len(parts)) as pool:
                done = list(pool.map(self._windows, parts))
        order = np.argsort(np.concatenate([np.arange(len(reads))[number :: self.workers] for number in range(len(parts))]))
        probabilities, decibels, timings = zip(*done, strict=True)
        for one in timings:  # they ran side by side
            self.timings.seconds.update({name: seconds / len(timings) for name, seconds in one.seconds.items()})
        return np.concatenate(probabilities)[order], np.concatenate(decibels)[order]

    @torch.inference_mode()
    def _windows(self, reads):
        timings, decibels = Timings(), []
        # A CPU makes one spectrogram at a time, while the samples are in its cache; a GPU wants them together.
        size = 1 if self.device.type == "cpu" else len(reads)
        for first in range(0, len(reads), size):
            with timings.part("reading"):
                iq = [read() for read in reads[first : first + size]]
            with timings.part("front end"):
                batch = torch.from_numpy(iq[0][None] if size == 1 else np.stack(iq))
                decibels.append(self.front_end.decibels(batch.to(self.device)))
        with timings.part("front end"):
            decibels = torch.cat(decibels)
            images = self.front_end.from_decibels(decibels)
            self._wait()
        with timings.part("network"):
            with self.autocast():
                logits = self.model(images)
            probabilities = logits.float().softmax(dim=1).cpu().numpy()
        return probabilities, decibels[:, 0].cpu().numpy(), timings

    def _wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def blocks(self, channels, tiling, progress=None):
        """A stretch from left to right, each of its columns once.

        Args:
            channels: the `Recording`s of a stretch's channels, which see the same band: their probabilities are averaged.
            tiling: of `tiling`; where windows overlap, probabilities are averaged.
            progress: called with the number of samples that are done since the last call.

        Yields:
            (first column, probabilities [classes, F, columns], dB [F, columns]), float32.
        """
        limit = BATCH_WINDOWS_CPU if self.device.type == "cpu" else BATCH_WINDOWS_ACCELERATOR
        size = max(1, min(limit // len(channels), BATCH_SAMPLES // (tiling.window * len(channels))))
        starts = list(tiling.first_columns)
        batches = [starts[place : place + size] for place in range(0, len(starts), size)]
        averages = _Averages(tiling.columns)
        with ThreadPoolExecutor(1) as ahead:  # computes the next batch while the caller looks at this one
            coming = ahead.submit(self._planes, channels, tiling, batches[0])
            for number, batch in enumerate(batches):
                planes = coming.result()
                if number + 1 < len(batches):
                    coming = ahead.submit(self._planes, channels, tiling, batches[number + 1])
                following = [*batch[1:], batches[number + 1][0] if number + 1 < len(batches) else tiling.total]
                for first_column, plane, until in zip(batch, planes, following, strict=True):
                    done = averages.add(first_column, plane, until)
                    yield first_column, done[:-1], done[-1]
                    if progress is not None:
                        progress(tiling.start(until) - tiling.start(first_column) if until < tiling.total
                                 else tiling.num_samples - tiling.start(first_column))  # fmt: skip
        self.timings.signal_s += channels[0].duration_s

    def tiling(self, recording, overlap):
        """A stretch's `Tiling` in the windows that the model was trained on, which share `overlap` with the next."""
        window = self.front_end.num_samples(recording.sample_rate_hz)
        return Tiling.over(recording.num_samples, window, self.front_end.image_size[1], overlap)

    def _planes(self, channels, tiling, batch):
        """Probabilities and, as the last plane, dB, averaged over channels: float32 [windows, classes + 1, F, T]."""
        reads = [partial(channel.read, tiling.start(column), tiling.window) for column in batch for channel in channels]
        probabilities, decibels = self.windows(reads)
        planes = np.concatenate([probabilities, decibels[:, None]], axis=1)
        if len(channels) == 1:
            return planes
        return planes.reshape(-1, len(channels), *planes.shape[1:]).mean(axis=1)

    def finder(self, sample_rate_hz, center_freq_hz, window, num_samples, limits):
        """A `CarrierFinder` for a stretch tiled with windows of so many samples; an unknown centre frequency, None, is 0."""
        center, half = center_freq_hz or 0.0, sample_rate_hz / 2
        column_s = window / self.front_end.image_size[1] / sample_rate_hz
        rows_hz = self.front_end.frequency_axis_hz(sample_rate_hz, center).numpy()
        return CarrierFinder(self.class_names, rows_hz, column_s, limits, (center - half, center + half),
                             num_samples / sample_rate_hz)  # fmt: skip

    def stream(self, source, sample_rate_hz, center_freq_hz, limits):
        """Windows of an `IqStream` side by side, as they come; the last may be shorter, but one below an FFT is left out.

        Yields:
            (first sample, number of samples, carriers with times from that sample).
        """
        window, start = self.front_end.num_samples(sample_rate_hz), 0
        while len(iq := self._next(source, window)):
            if len(iq) >= self.front_end.n_fft:
                finder = self.finder(sample_rate_hz, center_freq_hz, len(iq), len(iq), limits)
                finder.add(self.windows([lambda iq=iq: iq])[0][0], 0)
                self.timings.signal_s += len(iq) / sample_rate_hz
                yield start, len(iq), finder.finish()
            start += len(iq)

    def _next(self, source, window):
        with self.timings.part("reading"):
            return source.read(window)


class _Averages:
    """Means over windows that share columns; keeps the columns that a later window may still cover, and no others."""

    def __init__(self, columns):
        self.columns = columns
        self.first = 0  # column that `sums` begins with
        self.sums, self.counts = None, None

    def add(self, first_column, planes, until):
        """Add a window's planes [P, F, columns] at its first column; the means of all columns before `until`."""
        if self.sums is None or not self.sums.shape[-1]:
            self.first, self.sums = first_column, planes.copy()
            self.counts = np.ones(self.columns, np.float32)
        else:
            place = first_column - self.first
            missing = place + self.columns - self.sums.shape[-1]
            self.sums = np.pad(self.sums, ((0, 0), (0, 0), (0, missing)))
            self.counts = np.pad(self.counts, (0, missing))
            self.sums[..., place : place + self.columns] += planes
            self.counts[place : place + self.columns] += 1
        done = until - self.first
        means = self.sums[..., :done] / self.counts[:done]
        self.first, self.sums, self.counts = until, self.sums[..., done:], self.counts[done:]
        return means


class Overview:
    """What the picture shows of a stretch, in at most `PICTURE_COLUMNS` columns whatever its length."""

    def __init__(self, total_columns, num_classes, rows):
        self.per_column = -(-total_columns // PICTURE_COLUMNS)
        columns = -(-total_columns // self.per_column)
        self.sums = np.zeros((num_classes + 1, rows, columns), np.float32)
        self.counts = np.zeros(columns, np.float32)

    def add(self, first_column, probabilities, decibels):
        places = (first_column + np.arange(decibels.shape[1])) // self.per_column
        starts = np.flatnonzero(np.diff(places, prepend=-1))
        self.sums[:-1, :, places[starts]] += np.add.reduceat(probabilities, starts, axis=2)
        self.sums[-1, :, places[starts]] += np.add.reduceat(decibels, starts, axis=1).T  # numpy puts the places first
        self.counts[places[starts]] += np.diff(np.append(starts, len(places)))

    @property
    def image(self):
        """Mean dB: [F, columns]."""
        return self.sums[-1] / self.counts

    @property
    def classes(self):
        """The likeliest class: uint8 [F, columns]."""
        return self.sums[:-1].argmax(axis=0).astype(np.uint8)


class Truth:
    """What a recording's own annotations say, held against what was found in a stretch.

    Annotations of labels that are no classes, and those without frequency edges, count as the first class, as in training.

    Args:
        recording: any channel of the stretch.
        finder: the stretch's `CarrierFinder`, whose cells and band these are.
        confusion: a `util.metrics.Confusion`, which gets the cells of every block.
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

    def add(self, first_column, probabilities):
        columns_s = (first_column + np.arange(probabilities.shape[2]) + 0.5) * self.finder.column_s
        target = paint_cells(self._painted, self.finder.rows_hz, columns_s, self.class_names)
        pred = probabilities.argmax(axis=0)
        self.confusion.update(torch.from_numpy(pred)[None], torch.from_numpy(target.astype(np.int64))[None])
