"""What a run says of itself: console lines, TensorBoard, and `log.txt` with a JSON line an epoch."""

import contextlib
import json
import re
import resource
import time
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from util.errors import warn
from util.files import atomic_path

FIGURE_DPI = 110


class RunLog:
    """Writes to a run's folders. Nothing is created before there is something to write.

    Args:
        output_dir: folder of `log.txt` and the pictures.
        log_dir: folder of the TensorBoard events.
        first_epoch, first_step: where this process takes over: what an interrupted one wrote from there on is dropped. None
            drops nothing.
    """

    def __init__(self, output_dir, log_dir, first_epoch=None, first_step=None):
        self.text_path = Path(output_dir) / "log.txt"
        self.output_dir = Path(output_dir)
        self.log_dir = log_dir
        self.first_step = first_step
        self._writer = None
        if first_epoch is not None:
            self._drop_from(first_epoch)

    def _drop_from(self, epoch):
        if not self.text_path.exists():
            return
        lines = self.text_path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["epoch"] < epoch]
        if kept != lines:
            with atomic_path(self.text_path) as temporary:
                temporary.write_text("".join(kept))

    @property
    def writer(self):
        if self._writer is None:
            # Imported when first needed: it takes longer to import than many commands take to fail.
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(self.log_dir, purge_step=None if self.first_step is None else self.first_step + 1)
        return self._writer

    def scalars(self, step, values):
        with self._tried("TensorBoard's events"):
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def steps(self, steps):
        """What each step of training came to, to TensorBoard."""
        for step in steps:
            self.scalars(step.number, {"train/loss": step.loss, "train/lr": step.lr, "train/grad_norm": step.grad_norm})

    def figure(self, step, figure, name="reconstruction"):
        """Save a figure as `<name>.png` of the run, and to TensorBoard."""
        # Drawn once for both: it takes a second.
        figure.set_dpi(FIGURE_DPI)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        picture = np.asarray(canvas.buffer_rgba())[..., :3]
        with self._tried(f"{name}.png"):
            with atomic_path(self.output_dir / f"{name}.png") as temporary:
                Image.fromarray(picture).save(temporary, format="png")
            self.writer.add_image(name, picture, step, dataformats="HWC")

    def epoch(self, values):
        """Append the line of an epoch to log.txt."""
        with self._tried("log.txt"), open(self.text_path, "a") as file:
            file.write(json.dumps(values) + "\n")

    def flush(self):
        """Hand TensorBoard's events to the system: a checkpoint must not be ahead of the log."""
        with self._tried("TensorBoard's events"):
            if self._writer is not None:
                self._writer.flush()

    def close(self):
        with self._tried("TensorBoard's events"):
            if self._writer is not None:
                self._writer.close()

    @contextlib.contextmanager
    def _tried(self, what):
        """A log that cannot be written is no reason to lose the training that it is about; it is said every time."""
        try:
            yield
        except OSError as error:
            warn(f"{self.output_dir}: {what} could not be written: {error.strerror or error}")
            self._writer = None


class NoLog:
    """What the processes of a run have that do not write: `RunLog` without a file."""

    def scalars(self, *_):
        pass

    steps = figure = epoch = flush = close = scalars


class Stopwatch:
    """Time and images since the last lap."""

    def __init__(self):
        self.lap()

    def lap(self):
        self.started = time.perf_counter()
        self.images = 0

    def read(self):
        """(seconds, images per second) since the last lap."""
        seconds = max(time.perf_counter() - self.started, 1e-9)
        return seconds, self.images / seconds


def report_steps(log, steps, where, eta_s, images_per_s, data_wait, memory_bytes, mfu=None):
    """Print a line about the last steps of training, and give TensorBoard what it says besides each step's own numbers.

    Args:
        log: a `RunLog`.
        steps: with `number`, `loss`, `weight`, `lr`, `grad_norm`, at least one.
        where: "epoch 3/50 step 20/75".
        eta_s: time that is left, in seconds.
        mfu: share of the device's matrix rate that the model's FLOPs are, where known.
    """
    hours, rest = divmod(round(eta_s), 3600)
    loss = sum(step.loss * step.weight for step in steps) / sum(step.weight for step in steps)
    last = steps[-1]
    share = "" if mfu is None else f"mfu {mfu:.1%}  "
    print(
        f"{where}  loss {loss:.4f}  lr {last.lr:.2e}  grad {last.grad_norm:.3f}  {images_per_s:.1f} images/s  "
        f"{share}data wait {data_wait:.1%}  memory {memory_bytes / 2**30:.2f} GiB  "
        f"eta {hours}:{rest // 60:02d}:{rest % 60:02d}",
        flush=True,
    )
    log.scalars(last.number, {
        "train/images_per_s": images_per_s, "train/data_wait": data_wait, "train/memory_bytes": memory_bytes,
        **({} if mfu is None else {"train/mfu": mfu}),
    })  # fmt: skip


def peak_memory_bytes(device):
    """Most memory used so far: the accelerator's by torch, or this process's resident set on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        # Linux's ru_maxrss starts at that of the process which started this one, be it a large one; this mark does not.
        return int(re.search(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)[1]) * 1024
    except (OSError, TypeError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
