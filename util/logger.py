"""What a run says of itself: console lines, TensorBoard, and `log.txt` with a JSON line an epoch."""

import json
import re
import resource
import time
from pathlib import Path

import torch

from util.checkpoint import atomic_path


class RunLog:
    """Writes to a run's folders. Nothing is created before there is something to write.

    Args:
        output_dir: folder of `log.txt` and `reconstruction.png`.
        log_dir: folder of the TensorBoard events.
        first_epoch, first_step: where this process takes over; later entries of an interrupted one are dropped.
    """

    def __init__(self, output_dir, log_dir, first_epoch=0, first_step=0):
        self.text_path = Path(output_dir) / "log.txt"
        self.picture_path = Path(output_dir) / "reconstruction.png"
        self.log_dir = log_dir
        self.first_step = first_step
        self._writer = None
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

            self._writer = SummaryWriter(self.log_dir, purge_step=self.first_step + 1 if self.first_step else None)
        return self._writer

    def scalars(self, step, values):
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def figure(self, step, figure):
        """Save a figure as the run's picture and to TensorBoard."""
        with atomic_path(self.picture_path) as temporary:
            figure.savefig(temporary, format="png", dpi=110)
        self.writer.add_figure("reconstruction", figure, step)

    def epoch(self, values):
        """Append the line of an epoch to log.txt."""
        with open(self.text_path, "a") as file:
            file.write(json.dumps(values) + "\n")

    def close(self):
        if self._writer is not None:
            self._writer.close()


class Stopwatch:
    """Time since the last lap, and the share of it spent waiting for data."""

    def __init__(self):
        self.lap()

    def lap(self):
        self.started = time.perf_counter()
        self.waited = 0.0
        self.images = 0

    def batches(self, loader):
        """Iterate a loader, counting the time until each batch is there."""
        iterator = iter(loader)
        while True:
            before = time.perf_counter()
            batch = next(iterator, None)
            self.waited += time.perf_counter() - before
            if batch is None:
                return
            yield batch

    def read(self):
        """(seconds, images per second, share of the time spent waiting for data) since the last lap."""
        seconds = max(time.perf_counter() - self.started, 1e-9)
        return seconds, self.images / seconds, self.waited / seconds


def peak_memory_bytes(device):
    """Most memory used so far: the accelerator's by torch, or this process's resident set on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        # Linux's ru_maxrss starts at that of the process which started this one, be it a large one; this mark does not.
        return int(re.search(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)[1]) * 1024
    except (OSError, TypeError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
