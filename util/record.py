"""Write a run's folder: checkpoints, log.txt, TensorBoard events and pictures."""

import contextlib
import json
import os
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from util import VERSION, checkpoint, distributed, parallel
from util.errors import StoppedError, UserError, one_line, warn
from util.files import atomic_path
from util.saver import Saver

FIGURE_DPI = 110
EVENTS = "TensorBoard's events"


class Record:
    """The log and the checkpoints of a run. Every process calls its methods; rank 0 writes.

    A log that cannot be written warns; training goes on, and the last line names it. Used as a context, it ends with
    `finish`.

    Args:
        folder: of the run; log_dir: of TensorBoard's events; None: `folder`.
        about: for checkpoints, besides states: "num_samples", "effective_batch", "args", "front_end",
            "classes".
        keep, background: see `util.saver.Saver`.
    """

    def __init__(self, folder, log_dir=None, about=None, keep=0, background=True):
        self.folder, self.log_dir, self.about = Path(folder), log_dir or folder, about or {}
        self._saver = Saver(folder, keep, background) if distributed.is_main() else None
        self._events = None  # TensorBoard's writer
        self._purge_step = None
        self._missing = {}  # what could not be written: the reason

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is None:
            self.finish()
        elif self._saver is not None:
            self._saver.__exit__(kind, error, trace)

    def take_over(self, epoch, step):
        """Remove an interrupted process's log from this epoch and step on."""
        if self._saver is None:
            return
        self._purge_step = step + 1
        with self.tried("log.txt"):
            lines = self._text.read_text().splitlines(keepends=True) if self._text.exists() else []
            kept = [line for line in lines if line.endswith("\n") and _epoch_of(line) < epoch]
            if kept != lines:
                with atomic_path(self._text) as temporary:
                    temporary.write_text("".join(kept))

    def scalars(self, step, values):
        """Write numbers to TensorBoard."""
        if self._saver is not None:
            with self.tried(EVENTS):
                for name, value in values.items():
                    self._writer.add_scalar(name, value, step)

    def steps(self, steps):
        """Write each `util.progress.Step` to TensorBoard."""
        for step in steps:
            self.scalars(
                step.number, {"train/loss": step.loss, "train/lr": step.lr, "train/grad_norm": step.grad_norm}
            )

    def figure(self, step, draw, name="reconstruction"):
        """Write a figure to `<name>.png` and to TensorBoard. Nothing that goes wrong ends the run.

        Args:
            draw: makes the figure. All processes call it, and may return None on others than rank 0.
        """
        with self.tried(f"{name}.png", Exception):
            figure = draw()
            if self._saver is None:
                return
            figure.set_dpi(FIGURE_DPI)
            canvas = FigureCanvasAgg(figure)  # drawn once for both: it takes a second
            canvas.draw()
            picture = np.asarray(canvas.buffer_rgba())[..., :3]
            with atomic_path(self.folder / f"{name}.png") as temporary:
                Image.fromarray(picture).save(temporary, format="png")
            with self.tried(EVENTS):
                self._writer.add_image(name, picture, step, dataformats="HWC")

    def epoch(self, values):
        """Append the line of an epoch to log.txt."""
        if self._saver is not None:
            with self.tried("log.txt"):
                before = self._text.stat().st_size if self._text.exists() else 0
                try:
                    with open(self._text, "a") as file:
                        file.write(json.dumps(values) + "\n")
                except OSError:
                    os.truncate(self._text, before)  # no half of a line
                    raise

    def save(self, model, optimizer, scaler, progress, epoch, completed=False, numbered=False, best=False):
        """Write a checkpoint.

        Args:
            epoch: the current epoch; completed: whether it and its evaluation are done.
            numbered: write `checkpoint-<epoch>.pth` too; best: `checkpoint-best.pth` too.
        """
        model = parallel.unwrap(model)
        states = parallel.full_tensors({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
        if self._saver is None:
            return
        with self.tried(EVENTS):  # a checkpoint must not be ahead of the log
            if self._events is not None:
                self._events.flush()
        state = {
            "format": checkpoint.FORMAT,
            "version": VERSION,
            **states,
            "scaler": scaler.state_dict(),
            "epoch": epoch if completed else epoch - 1,
            "step": progress.step,
            "progress": progress.state(),
            "rng": checkpoint.random_state(),
            **self.about,
            **progress.score,
        }
        self._saver.save(state, epoch if numbered else None, best)

    def stop(self, reason, *state):
        """Save an unfinished epoch, then raise `StoppedError` on all processes.

        Args:
            state: model, optimizer, scaler, progress, epoch, as `save` takes them.
        """
        self.save(*state)
        self.finish()
        distributed.all_reduce_max(0)  # wait for all: when one process ends, the others have only seconds
        raise StoppedError(f"{reason}; saved in {self.folder}, the same command goes on from there") from None

    def finish(self):
        """Close the log and wait for the last checkpoint; raises as `util.saver.Saver.close`."""
        if self._saver is None:
            return
        with self.tried(EVENTS):
            if self._events is not None:
                self._events.close()
            self._events = self._purge_step = None
        missing, self._missing = self._missing, {}
        if missing:
            warn(f"{self.folder}: not written, or not completely: {', '.join(missing)}")
        self._saver.close()

    @property
    def _text(self):
        return self.folder / "log.txt"

    @property
    def _writer(self):
        if self._events is None:
            # Imported late, as it takes seconds.
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(self.log_dir, purge_step=self._purge_step)
        return self._events

    @contextlib.contextmanager
    def tried(self, what, kinds=(OSError, ImportError, UserError)):
        """Warn of an error in the block, which writes `what`, and note it for the last line."""
        try:
            yield
        except kinds as error:
            reason = getattr(error, "strerror", None) or one_line(error) or type(error).__name__
            if what not in self._missing:
                warn(f"{self.folder}: {what} could not be written: {reason}")
            self._missing[what] = reason
            if what == EVENTS:
                self._events = None


def _epoch_of(line):
    """The epoch of a line of log.txt; -1 for a line of something else, which stays."""
    with contextlib.suppress(ValueError, RecursionError, TypeError, KeyError):
        return int(json.loads(line)["epoch"])
    return -1
