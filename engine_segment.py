"""Run a recording through a segmentation model: tiled windows, averaged probabilities, carriers."""

import contextlib
import math
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import torch

import models_weights
from labelling.planes import Averages, Tiling
from labelling.region_pool import SLOT_BYTES, SLOTS, RegionPool
from labelling.regions import CarrierFinder
from labelling.spans import Channels, spans_on, windows_of
from labelling.strong import without_doubtful_noise
from radio.spectrogram import PUBLISHED, Spectrogram
from util.device import DTYPES, mixed_precision, pick_amp, usable_cores
from util.errors import RunError, UserError, warn
from util.pretrained import read_weights
from util.state import check_names
from util.timings import Timings

# A CPU keeps the samples of one window at a time in its cache; an accelerator wants few launches.
BATCH_WINDOWS_CPU, BATCH_WINDOWS_ACCELERATOR = 4, 128
BATCH_SAMPLES = 2**28  # most samples of an accelerator's batch: 1 GB of int16, twice
READERS = 12  # most threads that read for a GPU


@dataclass
class Segmenter:
    """A model, in eval mode on `device`, with the front end that it was trained with."""

    model: torch.nn.Module  # [B, 1, rows, columns] -> logits [B, classes, rows, columns]
    front_end: torch.nn.Module  # of `radio.front_end`, on `device`
    class_names: list  # by class id
    device: torch.device
    autocast: object  # makes the context of the forward pass
    # Threads. For a GPU they read. On a CPU each computes its own batches, which beats torch's own threads.
    workers: int = 1
    pool: RegionPool | None = None  # finds regions; None: the calling thread does
    timings: Timings = field(default_factory=Timings)
    _compiled: object = None
    _full: int = 0  # images of a full batch
    _highest: list = field(default_factory=list)  # value of each batch's planes, on the device
    _reads: object = "standard input"  # for messages

    @contextlib.contextmanager
    def on_its_cores(self, pool=None):
        """Use all cores in this context; `pool` is a `RegionPool` for a GPU, or None."""
        if self.device.type == "cpu":
            threads = self.workers = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                yield
            finally:
                torch.set_num_threads(threads)
        else:
            self.workers, self.pool = min(READERS, -(-3 * len(usable_cores()) // 4)), pool
            with torch.accelerator.device_index(self.device.index):  # for streams and events
                yield

    @property
    def rate_expected(self):
        return f"expected {self.front_end.least_rate_hz:g} Hz or more, from which the model's front end works"

    def unusable(self, recording):
        """Why a stretch cannot be labelled, in a phrase; None if it can be."""
        if recording.sample_rate_hz < self.front_end.least_rate_hz:
            return f"{self.rate_expected}; found {recording.sample_rate_hz:g} Hz"
        least = self.front_end.least_samples(recording.sample_rate_hz)
        if recording.num_samples < least:
            return f"expected at least {least} samples, an FFT; found {recording.num_samples}"
        return None

    def compile(self):
        """Compile the model for full batches; a recording's last batch runs uncompiled."""
        self.model.is_graph = True  # see `models_mae.ViTEncoder`
        self._compiled = torch.compile(self.model, dynamic=False)

    def find(self, channels, tiling, finder, watchers=(), progress=None):
        """Give the regions of a stretch to its `CarrierFinder`, from left to right.

        Args:
            channels: `Recording`s of the same band, whose probabilities are averaged.
            tiling: of `tiling`; probabilities of overlapping windows are averaged.
            watchers: each gets every `labelling.planes.Run` through its method `add`.
            progress: called with the number of samples done since the last call.
        """
        waiting, done = deque(), 0
        self._reads = channels[0].path.with_name(channels[0].name)

        def join():
            run, regions = waiting.popleft()
            if self.pool:
                for (first, end), found in zip(run.blocks(), regions.result(), strict=True):
                    finder.join(found, run.first + first, end - first)
            else:
                probabilities = run.probabilities.cpu().numpy()
                for first, end in run.blocks():
                    finder.add(probabilities[:, :, first:end], run.first + first)

        for run in self.runs(channels, tiling):
            with self.timings.part("carriers"):
                for one in watchers:
                    one.add(run)
                waiting.append((run, self.pool and self.pool.submit(run)))
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
        self._check_finite()

    def _check_finite(self):
        """Raise a RunError if a probability or a level was NaN or infinite; -inf lies outside of a recording."""
        highest, self._highest = self._highest, []
        if highest and not all(one < math.inf for one in torch.stack(highest).tolist()):
            raise RunError(f"{self._reads}: expected finite levels and probabilities; found NaN or infinity")

    def runs(self, channels, tiling):
        """`labelling.planes.Run`s of a stretch on the device, from left to right; see `find`."""
        starts = list(tiling.first_columns)
        if self.device.type == "cpu":
            size, planes_of = BATCH_WINDOWS_CPU, self._planes_on_cpu
        else:
            planes_of = self._planes_on_accelerator
            rows = self.front_end.num_rows(channels[0].sample_rate_hz)
            slot_windows = SLOT_BYTES // (4 * len(self.class_names) * rows * tiling.columns) - 1
            size = min(BATCH_WINDOWS_ACCELERATOR, BATCH_SAMPLES // tiling.window, slot_windows)
        size = max(1, size // len(channels))
        rate_hz = channels[0].sample_rate_hz
        images = len(self.front_end.first_rows(rate_hz)) if self.front_end.pads else 1  # of a window
        self._full = size * len(channels) * images
        batches = [starts[place : place + size] for place in range(0, len(starts), size)]
        averages = Averages()
        nexts = [batch[0] for batch in batches[1:]] + [tiling.total]
        transform = partial(
            self.front_end.planes,
            sample_rate_hz=channels[0].sample_rate_hz,
            is_real=channels[0].is_real,
        )
        planes_of_batches = planes_of(Channels(channels), tiling, batches, transform)
        for batch, planes, until in zip(batches, planes_of_batches, nexts, strict=True):
            yield averages.add(batch, planes, until)
        self.timings.signal_s += channels[0].duration_s

    def tiling(self, recording, overlap):
        """A stretch's `Tiling` in windows as in training.

        Args:
            overlap: share of a window that the next window covers too; None: 0 for the front end `grid`, whose
                windows are long, and 0.25 for `band`.
        """
        if overlap is None:
            overlap = 0.0 if self.front_end.pads else 0.25
        rate_hz = recording.sample_rate_hz
        window = min(self.front_end.num_samples(rate_hz), recording.num_samples)
        columns = max(1, self.front_end.num_columns(window, rate_hz))
        return Tiling.over(recording.num_samples, window, columns, overlap)

    def _planes_on_cpu(self, channels, tiling, batches, transform):
        """Planes [W, classes + 1, F, T] of each batch, averaged over channels; threads compute ahead."""
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
                    windows = [rooms.room[None, :, number] for number in channels.numbers]
                    decibels += map(transform, windows)
            about = channels.sample_rate_hz, channels.is_real
            return self._means(torch.cat(decibels), len(batch), tiling.window, *about)

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

    def _planes_on_accelerator(self, channels, tiling, batches, transform):
        """`_planes_on_cpu` on an accelerator, which computes a batch while threads read the next."""
        starts = [[tiling.start(column) for column in batch] for batch in batches]
        spans = [(of_batch[0], of_batch[-1] + tiling.window - of_batch[0]) for of_batch in starts]
        reading = partial(self.timings.part, "reading", self.workers)
        coming = spans_on(self.device, channels, spans, self.workers, reading)
        for of_batch, samples in zip(starts, coming, strict=True):
            with torch.inference_mode():
                with self.timings.part("front end", device=self.device):
                    decibels = []
                    for number in channels.numbers:
                        windows = windows_of(samples[:, number], of_batch, tiling.window)
                        decibels.append(torch.cat([transform(one) for one in windows]))
                    decibels = torch.stack(decibels, dim=1).flatten(0, 1)  # channels of a window side by side
                about = channels.sample_rate_hz, channels.is_real
                planes = self._means(decibels, len(of_batch), tiling.window, *about)
            yield planes

    def _means(self, decibels, num_windows, window, sample_rate_hz, is_real):
        """Probabilities and dB, the last plane: [W * channels, C, F, T] -> float32 [W, classes + 1, F, T].

        The lower half of the band of real samples mirrors the upper one: it is class 0.
        """
        threads = self.workers if self.device.type == "cpu" else 1
        with self.timings.part("front end", threads, self.device):
            images = self.front_end.images_of(decibels, sample_rate_hz)
        with self.timings.part("network", threads, self.device):
            is_compiled = self._compiled is not None and len(images) >= self._full
            model = self._compiled if is_compiled else self.model
            with self.autocast():
                logits = model(images)
            chances = self.front_end.joined(logits.float().softmax(dim=1), decibels, sample_rate_hz)
            planes = torch.cat([chances, decibels[:, :1]], dim=1)
            self._highest.append(planes.amax())
            if self.device.type == "cpu":  # elsewhere it would wait for the device
                self._check_finite()
        if len(planes) > num_windows:
            planes = planes.unflatten(0, (num_windows, -1)).mean(dim=1)
        planes = without_doubtful_noise(planes, window / sample_rate_hz / planes.shape[3])
        if is_real:
            background = torch.arange(planes.shape[1] - 1, device=planes.device)[:, None, None] == 0
            planes[:, :-1, : planes.shape[2] // 2] = background.float()
        return planes

    def finder(self, sample_rate_hz, center_freq_hz, window, num_samples, limits):
        """A `CarrierFinder` for a stretch in windows of so many samples; a centre frequency of None is 0."""
        center, half = center_freq_hz or 0.0, sample_rate_hz / 2
        column_s = window / max(1, self.front_end.num_columns(window, sample_rate_hz)) / sample_rate_hz
        rows_hz = self.front_end.frequency_axis_hz(sample_rate_hz, center).numpy()
        band_hz, duration_s = (center - half, center + half), num_samples / sample_rate_hz
        return CarrierFinder(self.class_names, rows_hz, column_s, limits, band_hz, duration_s)

    def stream(self, source, sample_rate_hz, center_freq_hz, limits):
        """Windows of an `IqStream` as they come. The last may be shorter; one below an FFT is left out.

        Yields:
            (first sample, number of samples, carriers with times from that sample).
        """
        if sample_rate_hz < self.front_end.least_rate_hz:
            raise UserError(f"--sample_rate: {self.rate_expected}; found {sample_rate_hz:g} Hz")
        window, start = self.front_end.num_samples(sample_rate_hz), 0
        least = self.front_end.least_samples(sample_rate_hz)
        if self.device.type == "cpu":  # one window at a time has all cores
            torch.set_num_threads(self.workers)
            self.workers = 1
        while True:
            with self.timings.part("reading"):
                iq = source.read(window)
            if not len(iq):
                return
            if len(iq) >= least:
                finder = self.finder(sample_rate_hz, center_freq_hz, len(iq), len(iq), limits)
                finder.add(self._probabilities(iq, sample_rate_hz, source.components == 1), 0)
                self.timings.signal_s += len(iq) / sample_rate_hz
                yield start, len(iq), finder.finish()
            start += len(iq)

    @torch.inference_mode()
    def _probabilities(self, iq, sample_rate_hz, is_real):
        """Of one window: complex64 [samples] -> numpy float32 [classes, F, T]."""
        with self.timings.part("front end", device=self.device):
            samples = torch.from_numpy(iq)[None].to(self.device)
            decibels = self.front_end.planes(samples, sample_rate_hz, is_real)
        probabilities = self._means(decibels, 1, len(iq), sample_rate_hz, is_real)[0, :-1].cpu().numpy()
        self.timings.settle()
        self._check_finite()
        return probabilities


def open_segmenter(name, device, amp="auto", classes=None, norm_eps=None, offline=None):
    """The `Segmenter` of a file of weights.

    A file without a front end gets the published one and a warning. A patch embedding of other channels than
    the front end's becomes one of its channels.

    Args:
        name: a file of weights, or a name that `util.fetch` knows.
        device: torch.device.
        amp: of `util.device.AMP_CHOICES`.
        classes: names by class id, the background first; None: as the file says.
        norm_eps: see `models_weights.create_model`.
        offline: see `util.fetch.resolve`.

    Raises:
        UserError: the file has no weights or no segmentation head; its images are not made of IQ; or class
            names are missing, or differ from the file's.
    """
    weights = read_weights(name, offline)
    head = models_weights.head_of(weights)
    if head.get("task") != "segmentation":
        command = f"python main_finetune.py --task segmentation --finetune {name} --data_path ... trains one"
        raise UserError(f"{name}: expected weights with a segmentation head; found none ({command})")
    front_end = models_weights.front_end_of(weights, name)
    class_names = _class_names(classes, weights.classes, head["num_classes"], name)
    in_chans = front_end.in_chans if front_end else 1
    model = models_weights.create_model(weights, name, in_chans=in_chans, norm_eps=norm_eps)
    if front_end is None:
        rows, columns = models_weights.image_size_of(weights, name)
        front_end = Spectrogram(**PUBLISHED, image_size=(rows, columns))
        warn(
            f"{name}: the file has no front end; the published one is used (FFT of {front_end.n_fft}, "
            f"windows of {front_end.duration_s * 1e3:g} ms, images of {rows} x {columns}, each with zero "
            f"mean and unit variance); block norms have epsilon {model.norm_eps:g} (--norm_eps)"
        )
    report = models_weights.load(model, weights, name)
    if left := [one for one in report.left if one != "mask_token"] if report else []:
        found = f"{len(left)} tensors that it has not, first: {left[0]}"
        raise UserError(f"{name}: expected the weights of this model; found {found}")
    width = {"width": model.cls_token.shape[-1]} if report else {}
    amp = pick_amp(amp, device, **width)
    autocast, _ = mixed_precision(amp, device)
    if amp != "off":  # autocast would round the same weights again in every pass
        for module in model.modules():
            if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
                module.to(DTYPES[amp])
    return Segmenter(model.to(device).eval(), front_end.to(device), class_names, device, autocast)


def _class_names(given, own, number, name):
    """The names of a model's `number` classes: the given ones, else the file's own."""
    different = f"{number} different names, printable, one for each class of the head"
    check_names(given or own, "--classes" if given else name, different)
    names = list(given or own)
    if not names:
        expected = f"expected {number} names, the background first, as {name} has none"
        raise UserError(f"--classes: {expected}; found none")
    if given and own and names != list(own):
        raise UserError(f"--classes: expected {','.join(own)}, the names in {name}; found {','.join(names)}")
    if len(names) != number or len(set(names)) != number:
        expected = f"expected {number} different names, one for each class of the head"
        raise UserError(f"{'--classes' if given else name}: {expected}; found {','.join(map(str, names))}")
    return names
