"""A recording through a segmentation model: windows that tile it, averaged probabilities in blocks, carriers from them."""

import contextlib
import itertools
import threading
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch

from radio.carriers import from_annotation, paint_cells
from radio.planes import Averages, Overview
from radio.region_pool import SLOT_BYTES, SLOTS, RegionPool
from radio.regions import CarrierFinder, regions_of
from radio.spans import Channels, spans_on

# A CPU has the samples of one window at a time in its cache; an accelerator wants many windows in few launches.
BATCH_WINDOWS_CPU, BATCH_WINDOWS_ACCELERATOR = 4, 128
# Samples of an accelerator's batch, so that memory does not grow with the sample rate: 1 GB of int16, twice.
BATCH_SAMPLES = 2**28


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
    """Seconds of work by part: of what runs side by side the mean, of a GPU the time that it took itself."""

    seconds: Counter = field(default_factory=Counter)
    signal_s: float = 0.0
    _lock: object = field(default_factory=threading.Lock, repr=False)
    _on_gpu: list = field(default_factory=list, repr=False)  # (part, event before, event after), not yet waited for

    def add(self, name, seconds):
        with self._lock:
            self.seconds[name] += seconds

    @contextlib.contextmanager
    def part(self, name, beside=1, device=None):
        """Time what runs in this context, one of so many that do so side by side; on a GPU, what it is given there."""
        if device is not None and device.type == "cuda":
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record()
            yield
            after.record()
            self._on_gpu.append((name, before, after))
            return
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, (time.perf_counter() - started) / beside)

    def settle(self):
        """Wait for the GPU and take its times."""
        for name, before, after in self._on_gpu:
            after.synchronize()
            self.add(name, before.elapsed_time(after) / 1e3)
        self._on_gpu.clear()

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
        workers: threads. On a CPU each takes batches of its own, which is faster than torch's own threads within its
            operations; with a GPU they read.
        pool: a `RegionPool` that looks for carriers; None: the thread that asks for them does.
    """

    model: torch.nn.Module
    front_end: torch.nn.Module
    class_names: list
    device: torch.device
    autocast: object
    workers: int = 1
    pool: RegionPool | None = None
    timings: Timings = field(default_factory=Timings)
    _compiled: object = None
    _full: int = 0  # images of a batch that is not the last

    def compile(self):
        """Have full batches computed by a compiled model. Others, of which every recording has one, are not worth it."""
        self._compiled = torch.compile(self.model, dynamic=False)

    def find(self, channels, tiling, finder, watchers=(), progress=None):
        """Give a stretch, from left to right, to its `CarrierFinder`.

        Args:
            channels: the `Recording`s of a stretch's channels, which see the same band: their probabilities are averaged.
            tiling: of `tiling`; where windows overlap, probabilities are averaged.
            watchers: `add` of each gets every `radio.planes.Run`.
            progress: called with the number of samples that are done since the last call.
        """
        waiting, done = deque(), 0

        def join():
            run, regions = waiting.popleft()
            for (first, end), found in zip(run.blocks(), regions.result() if self.pool else regions, strict=True):
                finder.join(found, run.first + first, end - first)

        for run in self.runs(channels, tiling):
            with self.timings.part("carriers"):
                for one in watchers:
                    one.add(run)
                waiting.append((run, self.pool.submit(run) if self.pool else self._regions(run)))
                while len(waiting) > (SLOTS - 1 if self.pool else 0):
                    join()
            if progress is not None:
                until = tiling.num_samples if run.ends[-1] == tiling.total else tiling.start(run.ends[-1])
                progress(until - done)
                done = until
        with self.timings.part("carriers"):
            while waiting:
                join()
        self.timings.settle()

    @staticmethod
    def _regions(run):
        probabilities = run.probabilities.cpu().numpy()
        return [regions_of(probabilities[:, :, first:end]) for first, end in run.blocks()]

    def runs(self, channels, tiling):
        """`radio.planes.Run`s of a stretch on the device, from left to right, each of its columns once; see `find`."""
        starts = list(tiling.first_columns)
        if self.device.type == "cpu":
            size, planes_of = BATCH_WINDOWS_CPU, self._planes_on_cpu
        else:
            size, planes_of = BATCH_WINDOWS_ACCELERATOR, self._planes_on_accelerator
            rows, columns = self.front_end.image_size
            size = min(size, BATCH_SAMPLES // tiling.window, SLOT_BYTES // (4 * len(self.class_names) * rows * columns) - 1)
        size = max(1, size // len(channels))
        self._full = size * len(channels)
        batches = [starts[place : place + size] for place in range(0, len(starts), size)]
        averages = Averages()
        nexts = [batch[0] for batch in batches[1:]] + [tiling.total]
        for batch, planes, until in zip(batches, planes_of(Channels(channels), tiling, batches), nexts, strict=True):
            yield averages.add(batch, planes, until)
        self.timings.signal_s += channels[0].duration_s

    def tiling(self, recording, overlap):
        """A stretch's `Tiling` in the windows that the model was trained on, which share `overlap` with the next."""
        window = self.front_end.num_samples(recording.sample_rate_hz)
        return Tiling.over(recording.num_samples, window, self.front_end.image_size[1], overlap)

    def _planes_on_cpu(self, channels, tiling, batches):
        """Planes [W, classes + 1, F, T] of each batch, averaged over channels; threads compute those that come next."""
        rooms = threading.local()

        @torch.inference_mode()
        def planes(batch):
            if not hasattr(rooms, "room"):
                rooms.room = channels.empty(tiling.window)
            decibels = []
            for column in batch:
                with self.timings.part("reading", self.workers):
                    channels.read(tiling.start(column), rooms.room)
                with self.timings.part("front end", self.workers):
                    decibels += [self.front_end.decibels(rooms.room[None, :, number]) for number in channels.numbers]
            return self._means(torch.cat(decibels), len(batch))

        with ThreadPoolExecutor(self.workers) as pool:
            coming = deque()
            try:
                for batch in batches:
                    coming.append(pool.submit(planes, batch))
                    if len(coming) > self.workers:
                        yield coming.popleft().result()
                while coming:
                    yield coming.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _planes_on_accelerator(self, channels, tiling, batches):
        """`_planes_on_cpu`, on an accelerator, which computes one batch after another while the next is read."""
        starts = [[tiling.start(column) for column in batch] for batch in batches]
        spans = [(of_batch[0], of_batch[-1] + tiling.window - of_batch[0]) for of_batch in starts]
        reading = partial(self.timings.part, "reading", self.workers)
        coming = spans_on(self.device, channels, spans, self.workers, reading)
        for of_batch, samples in zip(starts, coming, strict=True):
            with torch.inference_mode():
                with self.timings.part("front end", device=self.device):
                    decibels = [torch.cat([self.front_end.decibels(windows) for windows in
                                           _windows(samples[:, number], of_batch, tiling.window)])
                                for number in channels.numbers]  # fmt: skip
                    decibels = torch.stack(decibels, dim=1).flatten(0, 1)  # the channels of a window side by side
                planes = self._means(decibels, len(of_batch))
            yield planes

    def _means(self, decibels, num_windows):
        """Probabilities and, as the last plane, dB: [W * channels, 1, F, T] -> float32 [W, classes + 1, F, T]."""
        with self.timings.part("front end", self._beside, self.device):
            images = self.front_end.from_decibels(decibels)
        with self.timings.part("network", self._beside, self.device):
            with self.autocast():
                logits = (self.model if self._compiled is None or len(images) < self._full else self._compiled)(images)
            planes = torch.cat([logits.float().softmax(dim=1), decibels], dim=1)
        if len(planes) == num_windows:
            return planes
        return planes.unflatten(0, (num_windows, -1)).mean(dim=1)

    @property
    def _beside(self):
        """Threads that compute side by side."""
        return self.workers if self.device.type == "cpu" else 1

    def finder(self, sample_rate_hz, center_freq_hz, window, num_samples, limits):
        """A `CarrierFinder` for a stretch tiled with windows of so many samples; an unknown centre frequency, None, is 0."""
        center, half = center_freq_hz or 0.0, sample_rate_hz / 2
        column_s = window / self.front_end.image_size[1] / sample_rate_hz
        rows_hz = self.front_end.frequency_axis_hz(sample_rate_hz, center).numpy()
        return CarrierFinder(self.class_names, rows_hz, column_s, limits, (center - half, center + half),
                             num_samples / sample_rate_hz)  # fmt: skip

    def overview(self, tiling):
        """An `Overview` for a stretch."""
        return Overview(tiling.total, len(self.class_names), self.front_end.image_size[0], self.device)

    def stream(self, source, sample_rate_hz, center_freq_hz, limits):
        """Windows of an `IqStream` side by side, as they come; the last may be shorter, but one below an FFT is left out.

        Yields:
            (first sample, number of samples, carriers with times from that sample).
        """
        window, start = self.front_end.num_samples(sample_rate_hz), 0
        while len(iq := self._next(source, window)):
            if len(iq) >= self.front_end.n_fft:
                finder = self.finder(sample_rate_hz, center_freq_hz, len(iq), len(iq), limits)
                finder.add(self._probabilities(iq), 0)
                self.timings.signal_s += len(iq) / sample_rate_hz
                yield start, len(iq), finder.finish()
            start += len(iq)

    def _next(self, source, window):
        with self.timings.part("reading"):
            return source.read(window)

    @torch.inference_mode()
    def _probabilities(self, iq):
        """Of one window: complex64 [samples] -> numpy float32 [classes, F, T]."""
        with self.timings.part("front end", device=self.device):
            decibels = self.front_end.decibels(torch.from_numpy(iq)[None].to(self.device))
        probabilities = self._means(decibels, 1)[0, :-1].cpu().numpy()
        self.timings.settle()
        return probabilities


def _windows(samples, starts, window):
    """Windows of samples [N, 2], the first at 0, as few tensors [W, window, 2] as equal steps allow; nothing is copied."""
    steps = [b - a for a, b in itertools.pairwise(starts)]
    first = 0
    while first < len(starts):
        end = first + 1
        while end < len(starts) and steps[end - 1] == steps[first]:
            end += 1
        step = steps[first] if end > first + 1 else 1
        from_first = slice(starts[first] - starts[0], starts[end - 1] - starts[0] + window)
        yield samples[from_first].unfold(0, window, step).transpose(1, 2)
        first = end


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
