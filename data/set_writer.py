"""Writing a spectrogram set: it appears when it is complete, and goes on where a writer was killed."""

import contextlib
import json
import os
import shutil
import time
import weakref
from pathlib import Path

import numpy as np

from data.spectrogram_set import (
    DESCRIPTION,
    FORMAT,
    LABELS,
    MASKS,
    METADATA,
    SPECTROGRAMS,
    array_parts,
    open_npy,
    whole_lines,
)
from util.errors import UserError

UNFINISHED = "unfinished.json"  # what becomes `set.json`, while samples are added

# What a writer that is killed loses of its work, at most; each commit waits for the disk.
COMMIT_S = 5.0

# Workers forked while a set is written outlive a killed writer by seconds, and must not hold its lock for so long.
_writers = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: [writer._close() for writer in _writers])


@contextlib.contextmanager
def spectrogram_set_writer(path, count, front_end, in_chans=1, class_names=(), masks=False, labels=False, resume_key=None):
    """Write a set of `count` spectrograms: yields a `SetWriter`, whose `add` is to be called until `count` are done.

    The folder appears under its name when it is complete and on disk; it is a hidden one beside that until then.
    Without a resume key, nothing is left behind if the block fails. With one, what is done stays in `.NAME.partial`,
    also if the process is killed, and the next writer of the same set goes on where that ended.

    Args:
        masks, labels: whether each spectrogram has a mask, has a label; they need `class_names`.
        resume_key: a dict of plain values that say what is being made: writers with equal keys would write equal samples.

    Raises:
        UserError: the path exists or cannot be written, the disk is full, another process is writing the set, or what
            is there of it was made with other arguments.
    """
    path = Path(path)
    if count < 1 or ((masks or labels) and not class_names):
        raise ValueError(f"expected 1 spectrogram or more, and classes for {masks=} or {labels=}: {count=} {class_names=}")
    resumes = resume_key is not None
    description = {
        "format": FORMAT,
        "shape": [count, in_chans, *front_end.image_size],
        "class_names": list(class_names),
        "masks": masks,
        "labels": labels,
        "front_end": front_end.settings(),
        **({"resume_key": resume_key} if resumes else {}),
    }
    with _reported(path):
        if path.exists():
            raise UserError(f"{path}: expected a new folder to write; it exists already")
        folder = path.with_name(f".{path.name}.partial" if resumes else f".{path.name}.{os.getpid()}.tmp")
        folder.mkdir(parents=True, exist_ok=resumes)

    writer = SetWriter(path, folder, description)
    try:
        writer._open()
        yield writer
        if writer.done != count:
            raise RuntimeError(f"expected {count} spectrograms, {writer.done} were added")
        writer._finish()
    except BaseException:
        writer._give_up(keep=resumes)
        raise
    finally:
        writer._close()


class SetWriter:
    """An unfinished set. `done`: samples that it has, those of an interrupted writer included: add the others.

    A sample's metadata line is written when its arrays are on the disk, so that as many samples are whole as there are
    whole lines, whether the process was killed or the power failed.
    """

    def __init__(self, path, folder, description):
        self.done = 0
        self._path, self._folder = path, folder
        self._description = json.loads(json.dumps(description, allow_nan=False))  # as it will be read
        self._parts = array_parts(self._description)
        self._files = {}  # name -> file descriptor
        self._begins = {}  # name of an array -> byte of its first sample
        # Where the next line goes, and the lines to go there: one value, so that Ctrl-C comes before or after its change.
        self._pending = (0, [])
        self._committed_s = time.monotonic()
        self._is_ours = False
        _writers.add(self)

    def add(self, decibels, metadata, mask=None, label=None):
        """Add the next sample.

        Args:
            decibels: float [C, F, T].
            metadata: a dict of plain values; a `path` tells the recordings of a set apart.
            mask: class ids, uint8 [F, T], and label: a class id, where the set has them.

        Raises:
            ValueError: the sample does not fit the set.
            UserError: it cannot be written.
        """
        level_db = float(decibels.mean())
        values = {SPECTROGRAMS: decibels - level_db, MASKS: mask, LABELS: label}
        values = {name: np.asarray(value) for name, value in values.items() if value is not None}
        found = {name: value.shape for name, value in values.items()}
        expected = {name: shape[1:] for name, (shape, _) in self._parts.items()}
        count, num_classes = self._description["shape"][0], len(self._description["class_names"])
        if found != expected or self.done == count:
            raise ValueError(f"expected {count} samples of {expected}: {self.done=} {found=}")
        for name in values.keys() - {SPECTROGRAMS}:
            ids = values[name]  # whole numbers: others were interpolated
            if ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= num_classes:
                raise ValueError(f"{name}: expected class ids below {num_classes}: {ids.dtype} {np.unique(ids)}")
        line = json.dumps({**metadata, "level_db": round(level_db, 3)}) + "\n"
        with _reported(self._path):
            for name, value in values.items():
                data = value.astype(self._parts[name][1]).tobytes()
                _write(self._files[name], data, self._begins[name] + self.done * len(data))
            self._pending[1].append(line.encode())
            self.done += 1
            if time.monotonic() - self._committed_s > COMMIT_S:
                self._commit()

    def _commit(self):
        for name in self._parts:
            os.fsync(self._files[name])
        start, lines = self._pending
        data = b"".join(lines)
        _write(self._files[METADATA], data, start)
        os.fsync(self._files[METADATA])
        self._pending = (start + len(data), [])
        self._committed_s = time.monotonic()

    def _open(self):
        """Begin the set, or go on with it."""
        with _reported(self._path):
            self._files[METADATA] = os.open(self._folder / METADATA, os.O_RDWR | os.O_CREAT, 0o666)
            self._lock()
            present = set(os.listdir(self._folder))
            stored = next((name for name in (UNFINISHED, DESCRIPTION) if name in present), None)
            if stored:
                self._resume(self._folder / stored)
            elif foreign := sorted(present - {SPECTROGRAMS, MASKS, LABELS, METADATA, f"{UNFINISHED}.tmp"}):
                raise UserError(f"{self._path}: expected {self._folder} to be an unfinished set; found {foreign[0]} in it")
            self._is_ours = True
            if not stored:
                self._begin(present - {METADATA})
            for name in self._parts:
                self._begins[name] = np.lib.format.open_memmap(self._folder / name, "r").offset
                self._files[name] = os.open(self._folder / name, os.O_RDWR)

    def _lock(self):
        import fcntl  # where there is none (Windows), sets can still be read

        try:
            fcntl.flock(self._files[METADATA], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{self._path}: expected no other writer; a process is writing {self._folder}") from error
        except OSError:
            pass  # a file system without locks

    def _begin(self, leftovers):
        """Take the room that all arrays need; the description comes last and says that they are there."""
        for name in leftovers:
            (self._folder / name).unlink()
        os.truncate(self._folder / METADATA, 0)
        for name, (shape, dtype) in self._parts.items():
            np.lib.format.open_memmap(self._folder / name, "w+", dtype, shape)
            with open(self._folder / name, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, os.path.getsize(file.name))
                os.fsync(file.fileno())
        with open(self._folder / f"{UNFINISHED}.tmp", "w") as file:
            file.write(json.dumps(self._description, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, self._folder / UNFINISHED)

    def _resume(self, stored):
        """Check that it is the same set, and count what is whole."""
        try:
            changes = differences(json.loads(stored.read_text()), self._description)
        except ValueError:
            changes = [f"{stored.name} cannot be read"]
        if changes:
            raise UserError(
                f"{self._path}: expected to go on with the unfinished set in {self._folder}; found it made with other "
                f"arguments ({'; '.join(changes)}): remove that folder to start anew"
            )
        for name, part in self._parts.items():
            open_npy(self._folder / name, *part)
        lines = (self._folder / METADATA).read_bytes().split(b"\n")[:-1]
        self.done = min(len(whole_lines(lines)), self._description["shape"][0])
        end = sum(len(line) + 1 for line in lines[: self.done])
        os.truncate(self._folder / METADATA, end)
        self._pending = (end, [])

    def _finish(self):
        with _reported(self._path):
            self._commit()
            if (self._folder / UNFINISHED).exists():
                os.replace(self._folder / UNFINISHED, self._folder / DESCRIPTION)
            os.replace(self._folder, self._path)

    def _give_up(self, keep):
        if self._is_ours and keep and self.done:
            with contextlib.suppress(OSError):
                self._commit()
        elif self._is_ours:
            self._close()
            shutil.rmtree(self._folder, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                self._folder.rmdir()  # where it is empty

    def _close(self):
        while self._files:
            os.close(self._files.popitem()[1])


@contextlib.contextmanager
def _reported(path):
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: expected a folder that can be written; {error}") from error


def _write(descriptor, data, position):
    """All of `data` at a position, through no buffer: what does not fit on the disk is an error here and nowhere else."""
    while data:
        written = os.pwrite(descriptor, data, position)
        data, position = data[written:], position + written


def differences(old, new, name=""):
    """What was `old` and is `new` now, in words, for JSON values."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [words for key in keys for words in differences(old.get(key), new.get(key), f"{name}.{key}".lstrip("."))]
    return [] if old == new else [f"{name} was {json.dumps(old)}, is {json.dumps(new)}"]
