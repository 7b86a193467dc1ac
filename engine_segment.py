"""A recording through a segmentation model: windows that tile it, averaged probabilities in blocks, carriers from them."""

import contextlib
import itertools
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import torch

import models_weights
from labelling.planes import Averages, Overview, Tiling
from labelling.region_pool import SLOT_BYTES, SLOTS, RegionPool
from labelling.regions import CarrierFinder, regions_of
from labelling.spans import Channels, spans_on
from radio.spectrogram import PUBLISHED, Spectrogram
from util.device import mixed_precision, pick_amp, usable_cores
from util.errors import UserError, warn
from util.pretrained import read_weights
from util.timings import Timings

# A CPU has the samples of one window at a time in its cache; an accelerator wants many windows in few launches.
BATCH_WINDOWS_CPU, BATCH_WINDOWS_ACCELERATOR = 4, 128
# Samples of an accelerator's batch, so that memory does not grow with the sample rate: 1 GB of int16, twice.
BATCH_SAMPLES = 2**28
# With a GPU: threads that read, where the machine has cores for them.
READERS = 12


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

    @contextlib.contextmanager
    def on_its_cores(self, pool=None):
        """Divide the machine's cores for what is labelled in this context; on a CPU every thread takes batches of its own.

        Args:
            pool: with a GPU, a `RegionPool` or None.
        """
        if self.device.type == "cpu":
            self.workers = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                yield
            finally:
                torch.set_num_threads(self.workers)
        else:
            self.workers, self.pool = min(READERS, -(-3 * len(usable_cores()) // 4)), pool
            with torch.accelerator.device_index(self.device.index):  # streams and events are made on the current one
                yield

    def compile(self):
        """Have full batches computed by a compiled model. Others, of which every recording has one, are not worth it."""
        self._compiled = torch.compile(self.model, dynamic=False)

    def find(self, channels, tiling, finder, watchers=(), progress=None):
        """Give a stretch, from left to right, to its `CarrierFinder`.

        Args:
            channels: the `Recording`s of a stretch's channels, which see the same band: their probabilities are averaged.
            tiling: of `tiling`; where windows overlap, probabilities are averaged.
            watchers: `add` of each gets every `labelling.planes.Run`.
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
        """`labelling.planes.Run`s of a stretch on the device, from left to right, each of its columns once; see `find`."""
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


def open_segmenter(name, device, amp="auto", classes=None, norm_eps=None, offline=None):
    """A segmentation model with the front end and the class names that belong to it.

    A file without a front end gets the published one, images of the size that its position embeddings are for, and a
    warning; its patch embedding of several channels becomes one of a single channel.

    Args:
        name: a file of weights, or a name that `util.fetch` knows.
        device: torch.device.
        amp: of `util.device.AMP_CHOICES`.
        classes: names by class id, the background first; None: as the file says.
        norm_eps: see `models_weights.create_model`.
        offline: see `util.fetch.resolve`.

    Returns:
        A `Segmenter`.

    Raises:
        UserError: the file is none of weights, has no segmentation head, or was trained on images that are made of no IQ;
            or there are no class names, or others or more or fewer than the file has.
    """
    weights = read_weights(name, offline)
    head = models_weights.head_of(weights)
    if head.get("task") != "segmentation":
        raise UserError(f"{name}: expected weights with a segmentation head; found none (python main_finetune.py "
                        f"--task segmentation --finetune {name} --data_path ... trains one)")  # fmt: skip
    front_end = models_weights.front_end_of(weights, name)
    class_names = _class_names(classes, weights.classes, head["num_classes"], name)
    model = models_weights.create_model(weights, name, in_chans=1, norm_eps=norm_eps)
    if front_end is None:
        rows, columns = models_weights.image_size_of(weights, name)
        front_end = Spectrogram(**PUBLISHED, image_size=(rows, columns))
        warn(f"{name}: the file has no front end; the published one is used (FFT of {front_end.n_fft}, windows of "
             f"{front_end.duration_s * 1e3:g} ms, images of {rows} x {columns}, each with zero mean and unit variance); "
             f"block norms have epsilon {model.norm_eps:g} (--norm_eps)")  # fmt: skip
    report = models_weights.load(model, weights, name)
    if left := [one for one in report.left if one != "mask_token"] if report else []:
        raise UserError(f"{name}: expected the weights of this model; found {len(left)} tensors that it has not, first: "
                        f"{left[0]}")  # fmt: skip
    width = {"width": model.cls_token.shape[-1]} if report else {}
    autocast, _ = mixed_precision(pick_amp(amp, device, **width), device)
    return Segmenter(model.to(device).eval(), front_end.to(device), class_names, device, autocast)


def _class_names(given, own, number, name):
    """The names of a model's `number` classes: those of its file, or those given; see `open_segmenter`."""
    names = list(given or own)
    if not names:
        raise UserError(f"--classes: expected {number} names, the background first, as {name} has none; found none")
    if given and own and names != list(own):
        raise UserError(f"--classes: expected {','.join(own)}, the names in {name}; found {','.join(names)}")
    if len(names) != number or len(set(names)) != number:
        where = "--classes" if given else name
        raise UserError(f"{where}: expected {number} different names, one for each class of the head; found "
                        f"{','.join(map(str, names))}")  # fmt: skip
    return names
