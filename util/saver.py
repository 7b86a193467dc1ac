"""Writing a run's checkpoints while it trains: which stay, and what is said when one cannot be written."""

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

    With `background`, a save copies the state and returns, and a thread writes the copy. A save that fails is warned of, at
    every try, while an older whole checkpoint is there; else it is raised by the next call. Used as a context, it ends with
    `close`; an exception that passes through waits for the running write and goes on.

    Args:
        keep: how many epochs' checkpoints to keep; 0 keeps all.

    Attributes:
        waited_s, written_s: how long the last save held its caller, and how long its writing took, both in seconds;
        total_waited_s, total_written_s: the same of all.
    """

    def __init__(self, folder, keep=0, background=True):
        self.folder, self.keep, self.background = Path(folder), keep, background
        self.waited_s = self.written_s = self.total_waited_s = self.total_written_s = 0.0
        self._file_system = None  # where the last save went
        self._thread = None
        self._error = None  # to be raised on the caller's thread
        self._lost = None  # what to say if no later save makes up for one that failed

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
        """Write `checkpoint-last.pth`, and of the same save what else it is.

        Args:
            state: see `checkpoint.write`; with `background` it may change as soon as this returns.
            completed_epoch: index of the epoch that just ended, for `checkpoint-<epoch>.pth`; None in the middle of one.
            best: whether it is `checkpoint-best.pth` too.

        Raises:
            UserError: this save (the one before, with `background`) failed, and there is no older whole checkpoint.
        """
        started = time.perf_counter()
        self._wait()
        self.poll()
        copied = self._copied(state) if self.background else None
        if copied is not None:
            # No daemon: an interpreter that exits lets it finish.
            self._thread = threading.Thread(target=self._write, args=(copied, completed_epoch, best))
            self._thread.start()
        else:
            self._write(state, completed_epoch, best)
        self.waited_s = time.perf_counter() - started
        self.total_waited_s += self.waited_s
        if copied is None:
            self.poll()

    def poll(self):
        """Raise what writing in the background left to raise; does not wait."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self):
        """Wait for the write that is running.

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
        """Write, and leave to `poll` what is to be raised, whatever it is: nobody looks at the end of a thread."""
        started = time.perf_counter()
        try:
            try:
                self._put(state, completed_epoch, best)
                self._lost = None
            except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError
                self._report(f"{self.folder}: the checkpoint of step {state['step']} could not be written: {reason(error)}")
        except BaseException as error:
            self._error = error
        self.written_s = time.perf_counter() - started
        self.total_written_s += self.written_s

    def _report(self, failure):
        try:
            older, step, _ = checkpoint.search(self.folder)
        except OSError:  # the folder itself is out of reach
            older = None
        if older is None:
            raise UserError(f"{failure}; there is no older whole one")
        self._lost = f"{failure}; the newest whole one is of step {step} ({older.name})"
        warn(f"{failure}; training goes on, the newest whole one is of step {step} ({older.name})")

    def _put(self, state, completed_epoch, best):
        file_system = os.stat(self.folder).st_dev
        if file_system != (self._file_system or file_system) and not checkpoint.checkpoints(self.folder):
            raise OSError("another file system is there, without the checkpoints so far: was the folder unmounted?")
        before, _, _ = checkpoint.search(self.folder)
        names = [BEST] if best else []
        if completed_epoch is not None:
            names.append(f"checkpoint-{completed_epoch}.pth")
        epochs, surplus = self._epochs(names)
        # The save before stays too, under the name of an epoch or of its own.
        if before == self.folder / LAST:
            has_name = any(same(before, path) for path in epochs if path not in surplus)
        else:
            has_name = before in epochs
        with contextlib.ExitStack() as renames:  # the last to be entered is the first to be renamed
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
        """Checkpoints of epochs that a save under `names` leaves alone, and which of them are more than `keep` with it."""
        found = [path for path in checkpoint.epoch_checkpoints(self.folder) if path.name not in names]
        said = {path: checkpoint.read_comment(path) for path in found}
        found.sort(key=lambda path: said[path].number if said[path] else -1)
        surplus = len(found) + len(set(names) - {BEST}) - self.keep
        return found, found[: max(0, surplus)] if self.keep else []


def link_or_copy(whole, path):
    """Give a whole checkpoint another name, by a copy where the file system has no hard links."""
    path.unlink(missing_ok=True)  # what a killed process left may be another name of a checkpoint that counts
    try:
        os.link(whole, path)
    except OSError:
        shutil.copyfile(whole, path)
        if wrong := checkpoint.examine(path)[1]:
            raise OSError(f"a copy reads back with {wrong}") from None


def same(whole, other):
    """Whether a checkpoint is one with a whole one, or its whole copy."""
    if checkpoint.read_comment(whole) != checkpoint.read_comment(other):
        return False
    return os.path.samefile(whole, other) or not checkpoint.examine(other)[1]
