"""What a run leaves in its folder while it trains: its log and its checkpoints, written by rank 0."""

import contextlib

from util import checkpoint, distributed, parallel
from util.errors import StoppedError
from util.logger import NoLog, RunLog
from util.saver import Saver


class Record(contextlib.ExitStack):
    """The `log` of a run and its checkpoints. All processes have one and call its methods; one of them writes.

    Args:
        folder: of the run, which is there; log_dir: of TensorBoard's events.
        model, optimizer, scaler, progress: what a checkpoint holds the state of.
        about: what it holds besides: "num_samples", "effective_batch", "args", "front_end", "classes".
        first_epoch: with `progress.step`, where this process takes over.
        keep, background: see `util.saver.Saver`.
    """

    def __init__(self, folder, log_dir, model, optimizer, scaler, progress, about, first_epoch, keep=0, background=True):
        super().__init__()
        self.folder, self.about = folder, about
        self.model, self.optimizer, self.scaler, self.progress = model, optimizer, scaler, progress
        self.log, self._saver = NoLog(), None
        if distributed.is_main():
            self._saver = self.enter_context(Saver(folder, keep, background))
            on_gpu = next(model.parameters()).is_cuda
            self._saver.reserve(3 * parallel.size_bytes(model), pinned=on_gpu)  # weights and two moments
            self.log = RunLog(folder, log_dir, first_epoch, progress.step)

    def save(self, epoch, completed=False, numbered=False, as_best=False, **more):
        """Write a checkpoint.

        Args:
            epoch: the current one; completed: whether it is over, its evaluation included.
            numbered: as `checkpoint-<epoch>.pth` too; as_best: as `checkpoint-best.pth` too.
            more: what the checkpoint holds besides.
        """
        whole = parallel.full_tensors({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()})
        self.log.flush()
        if self._saver is not None:
            self._saver.save({
                "format": checkpoint.FORMAT, **whole, "scaler": self.scaler.state_dict(),
                "epoch": epoch if completed else epoch - 1, "step": self.progress.step,
                "progress": vars(self.progress).copy(), "rng": checkpoint.random_state(), **self.about, **more,
            }, epoch if numbered else None, as_best)  # fmt: skip

    def stop(self, reason, epoch, **more):
        """Save the epoch that a `StoppedError` has cut short, and raise that, once it is written, on all processes."""
        self.save(epoch, **more)
        self.finish()
        distributed.all_reduce_max(0)  # all wait until it is written: where one process ends, the others have seconds
        raise StoppedError(f"{reason}; saved in {self.folder}, the same command goes on from there") from None

    def finish(self):
        """End the log, and wait for the last checkpoint; see `Saver.close` for what it raises."""
        self.log.close()
        if self._saver is not None:
            self._saver.close()
