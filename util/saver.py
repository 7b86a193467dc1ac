"""Write a run's checkpoints while it trains, and keep the last ones."""

import contextlib
import os
import shutil
import threading
import time
from pathlib import Path

from util import checkpoint
from util.checkpoint import BEST, LAST, PREVIOUS, reason
from util.errors import UserError, warn
from util.files import atomic_path
from util.host_copy import host_copy_of_state


class Saver:
    """Writes the checkpoints of one run into its folder, one at a time, each whole or not at all.

    With `background` a save copies the state and returns; a thread writes the copy. A save that fails warns,
    if there is an older whole checkpoint; else the next call raises. As a context it ends with `close`; an
    exception waits for the running write.

    Args:
        keep: number of epochs' checkpoints to keep; 0 keeps all.

    Attributes:
        waited_s, written_s: seconds that the last save held its caller, and that writing took;
            total_waited_s, total_written_s: their sums over all saves.
    """

    def __init__(self, folder, keep=0, background=True):
        self.folder, self.keep, self.background = Path(folder), keep, background
        self.waited_s = self.written_s = self.total_waited_s = self.total_written_s = 0.0
        self._file_system = None  # of the last save
        self._thread = None
        self._error = None  # of the thread, to raise in the caller
        self._lost = None  # message about a failed save; a later save clears it

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is None:
            self.close()
            return
        self._wait()
        if self._error is not None:
            warn(self._error)
            self._error = None

    def save(self, state, completed_epoch=None, best=False):
        """Write `checkpoint-last.pth`, under its other names too.

        Args:
            state: see `checkpoint.write`; with `background` it may change as soon as this returns.
            completed_epoch: index of the epoch that just ended, for `checkpoint-<epoch>.pth`; None within an
                epoch.
            best: write `checkpoint-best.pth` too.

        Raises:
            UserError: this save (with `background`, the previous one) failed, and there is no older whole
                checkpoint.
        """
        started = time.perf_counter()
        self._wait()
        self.poll()
        copied = self._copied(state) if self.background else None
        if copied is not None:
            # No daemon: the interpreter waits for it at exit.
            self._thread = threading.Thread(target=self._write, args=(copied, completed_epoch, best))
            self._thread.start()
        else:
            self._write(state, completed_epoch, best)
        self.waited_s = time.perf_counter() - started
        self.total_waited_s += self.waited_s
        if copied is None:
            self.poll()

    def poll(self):
        """Raise the error of the last write in the background; does not wait."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self):
        """Wait for the running write.

        Raises:
            UserError: the last save failed.
        """
        self._wait()
        self.poll()
        lost, self._lost = self._lost, None
        if lost:
            raise UserError(lost)

    def _wait(self):
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _copied(self, state):
        try:
            return host_copy_of_state(state)
        except (OSError, RuntimeError, MemoryError) as error:
            copying = f"no memory to copy the state of step {state['step']}: {reason(error)}"
            warn(f"{self.folder}: {copying}; training waits until it is written")
            return None

    def _write(self, state, completed_epoch, best):
        """Write; keep any error for `poll`, as an error that ends a thread would be lost."""
        started = time.perf_counter()
        try:
            try:
                self._put(state, completed_epoch, best)
                self._lost = None
            except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError
                failure = f"the checkpoint of step {state['step']} could not be written: {reason(error)}"
                self._report(f"{self.folder}: {failure}")
        except BaseException as error:
            self._error = error
        self.written_s = time.perf_counter() - started
        self.total_written_s += self.written_s

    def _report(self, failure):
        try:
            older, step, _ = checkpoint.search(self.folder)
        except OSError:  # the folder is out of reach
            older = None
        if older is None:
            raise UserError(f"{failure}; there is no older whole one")
        self._lost = f"{failure}; the newest whole one is of step {step} ({older.name})"
        warn(f"{failure}; training goes on, the newest whole one is of step {step} ({older.name})")

    def _put(self, state, completed_epoch, best):
        file_system = os.stat(self.folder).st_dev
        if file_system != (self._file_system or file_system) and not checkpoint.checkpoints(self.folder):
            raise OSError("another file system, without the checkpoints so far: was the folder unmounted?")
        before, _, _ = checkpoint.search(self.folder)
        names = [BEST] if best else []
        if completed_epoch is not None:
            names.append(f"checkpoint-{completed_epoch}.pth")
        epochs, surplus = self._epochs(names)
        # The previous save stays too, under the name of an epoch or as `PREVIOUS`.
        if before == self.folder / LAST:
            has_name = any(same(before, path) for path in epochs if path not in surplus)
        else:
            has_name = before in epochs
        with contextlib.ExitStack() as renames:  # the last path entered is the first renamed
            if before == self.folder / LAST and not has_name:
                link_or_copy(before, renames.enter_context(atomic_path(self.folder / PREVIOUS)))
            temporary = renames.enter_context(atomic_path(self.folder / LAST))
            checkpoint.write(state, temporary, checkpoint.next_number(self.folder))
            for name in names:
                with atomic_path(self.folder / name) as named:
                    link_or_copy(temporary, named)
        self._file_system = file_system
        try:
            for path in surplus:
                if path != before:
                    path.unlink()
            if has_name:
                (self.folder / PREVIOUS).unlink(missing_ok=True)
        except OSError as error:
            warn(f"{self.folder}: an old checkpoint could not be removed: {reason(error)}")

    def _epochs(self, names):
        """(checkpoints of epochs not in `names`, those to remove so that `keep` stay with the new save)."""
        found = [path for path in checkpoint.epoch_checkpoints(self.folder) if path.name not in names]
        said = {path: checkpoint.read_comment(path) for path in found}
        found.sort(key=lambda path: said[path].number if said[path] else -1)
        surplus = len(found) + len(set(names) - {BEST}) - self.keep
        return found, found[: max(0, surplus)] if self.keep else []


def link_or_copy(whole, path):
    """Give a whole checkpoint another name: a hard link or, if the file system has none, a copy."""
    path.unlink(missing_ok=True)  # a killed process may have left a hard link to a checkpoint here
    try:
        os.link(whole, path)
    except OSError:
        shutil.copyfile(whole, path)
        if wrong := checkpoint.examine(path)[1]:
            raise OSError(f"a copy reads back with {wrong}") from None


def same(whole, other):
    """Whether a checkpoint is the same file as a whole one, or a whole copy."""
    if checkpoint.read_comment(whole) != checkpoint.read_comment(other):
        return False
    return os.path.samefile(whole, other) or not checkpoint.examine(other)[1]
