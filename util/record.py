"""Write a run's folder: checkpoints, log.txt, TensorBoard events and pictures."""

import contextlib
import json
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from util import VERSION, checkpoint, distributed, parallel
from util.errors import StoppedError, warn
from util.files import atomic_path
from util.saver import Saver

FIGURE_DPI = 110


class Record:
    """The log and the checkpoints of a run. Every process calls its methods; rank 0 writes.

    A log that cannot be written warns on every attempt; training goes on. Used as a context, it ends with
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
        with self._tried("log.txt"):
            lines = self._text.read_text().splitlines(keepends=True) if self._text.exists() else []
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["epoch"] < epoch]
            if kept != lines:
                with atomic_path(self._text) as temporary:
                    temporary.write_text("".join(kept))

    def scalars(self, step, values):
        """Write numbers to TensorBoard."""
        if self._saver is not None:
            with self._tried("TensorBoard's events"):
                for name, value in values.items():
                    self._writer.add_scalar(name, value, step)

    def steps(self, steps):
        """Write each `util.progress.Step` to TensorBoard."""
        for step in steps:
            self.scalars(
                step.number, {"train/loss": step.loss, "train/lr": step.lr, "train/grad_norm": step.grad_norm}
            )

    def figure(self, step, figure, name="reconstruction"):
        """Write a figure to `<name>.png` and to TensorBoard."""
        if self._saver is None:
            return
        figure.set_dpi(FIGURE_DPI)
        canvas = FigureCanvasAgg(figure)  # drawn once for both: it takes a second
        canvas.draw()
        picture = np.asarray(canvas.buffer_rgba())[..., :3]
        with self._tried(f"{name}.png"):
            with atomic_path(self.folder / f"{name}.png") as temporary:
                Image.fromarray(picture).save(temporary, format="png")
            self._writer.add_image(name, picture, step, dataformats="HWC")

    def epoch(self, values):
        """Append the line of an epoch to log.txt."""
        if self._saver is not None:
            with self._tried("log.txt"), open(self._text, "a") as file:
                file.write(json.dumps(values) + "\n")

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
        with self._tried("TensorBoard's events"):  # a checkpoint must not be ahead of the log
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
        with self._tried("TensorBoard's events"):
            if self._events is not None:
                self._events.close()
            self._events = self._purge_step = None
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
    def _tried(self, what):
        try:
            yield
        except OSError as error:
            warn(f"{self.folder}: {what} could not be written: {error.strerror or error}")
            self._events = None
