"""Writes a spectrogram set, which appears when it is complete. A writer resumes the work of a killed one."""

import contextlib
import json
import os
import shutil
import time
from multiprocessing.util import register_after_fork
from pathlib import Path

import numpy as np

from data.array_file import open_npy
from data.spectrogram_set import (
    DESCRIPTION,
    FORMAT,
    LABELS,
    MASKS,
    METADATA,
    SPECTROGRAMS,
    array_parts,
    whole_lines,
)
from radio.front_end import kind_of
from radio.grid import OUTSIDE, Grid
from util.errors import UserError
from util.files import parse_json, write_json

UNFINISHED = "unfinished.json"  # the description, until the set is complete

# A killed writer loses at most this much work. Each commit waits for the disk.
COMMIT_S = 5.0


@contextlib.contextmanager
def spectrogram_set_writer(
    path, count, front_end, in_chans=None, class_names=(), masks=False, labels=False, resume_key=None
):
    """Write a set of `count` spectrograms: yields a `SetWriter`; call `add` until its `done` is `count`.

    The folder appears under its name when it is complete and on disk. Without a resume key, a failure leaves
    nothing, and the next writer takes the place of one that was killed. With a resume key, finished samples
    stay in `.NAME.partial`, even if the process is killed, and the next writer resumes.

    Args:
        in_chans: channels of a spectrogram; None: as the front end makes.
        masks, labels: whether each spectrogram has a mask or a label; both need `class_names`.
        resume_key: dict of plain values that decide the samples. Equal keys must mean equal samples.
    """
    path = Path(path)
    if count < 1 or ((masks or labels) and not class_names):
        raise ValueError(
            f"expected 1 spectrogram or more, and classes for {masks=} or {labels=}: {count=} {class_names=}"
        )
    resumes = resume_key is not None
    description = {
        "format": FORMAT,
        "shape": [count, in_chans or front_end.in_chans, *front_end.image_size],
        "class_names": list(class_names),
        "masks": masks,
        "labels": labels,
        "front_end": front_end.settings(),
        **({"resume_key": resume_key} if resumes else {}),
    }
    with writing(path):
        if path.exists():
            raise UserError(f"{path}: expected a new folder to write; it exists already")
        folder = path.with_name(f".{path.name}.{'partial' if resumes else 'tmp'}")
        folder.mkdir(parents=True, exist_ok=True)
    writer = SetWriter(path, folder, description, resumes)
    try:
        with writing(path):
            writer.open()
        yield writer
        if writer.done != count:
            raise RuntimeError(f"expected {count} spectrograms, {writer.done} were added")
        with writing(path):
            writer.finish()
    except BaseException:
        writer.give_up(keep=resumes)
        raise
    finally:
        writer.close()


class SetWriter:
    """An unfinished set. `done` counts its samples, with those of an interrupted writer.

    A sample's line of metadata is written after its arrays are on disk. The whole lines therefore count the
    samples that a killed process or a power cut left.
    """

    def __init__(self, path, folder, description, resumes=True):
        self.done, self._resumes = 0, resumes
        self._path, self._folder = path, folder
        self._description = json.loads(json.dumps(description, allow_nan=False))  # as read from a file
        self._arrays = array_parts(self._description)
        self._is_grid = kind_of(self._description["front_end"]) == Grid.kind
        self._files = {}  # name -> file descriptor
        self._first_byte = {}  # name of an array -> byte of its first sample
        # (Byte of the next line, lines to write): one tuple, so that Ctrl-C cannot come between the changes.
        self._pending = (0, [])
        self._committed_s = time.monotonic()
        self._is_ours = False
        # Forked workers outlive a killed writer by seconds, and must not hold its lock.
        register_after_fork(self, SetWriter.close)

    def add(self, decibels, metadata, mask=None, label=None):
        """Add the next sample.

        Args:
            decibels: float [C, F, T].
            metadata: a dict of plain values; `path` tells recordings apart.
            mask: class ids, uint8 [F, T], and label: a class id; each if the set has them.

        Raises:
            ValueError: the sample does not fit the set.
            UserError: the sample cannot be written.
        """
        decibels = np.asarray(decibels).astype(np.float32)  # a copy
        power = decibels[:1] if self._is_grid else decibels  # the other channels of `grid` are no levels
        inside = power[power != OUTSIDE]
        level_db = float(inside.mean()) if inside.size else 0.0
        power -= level_db  # in place
        values = {SPECTROGRAMS: decibels, MASKS: mask, LABELS: label}
        values = {name: np.asarray(value) for name, value in values.items() if value is not None}
        found = {name: value.shape for name, value in values.items()}
        expected = {name: shape[1:] for name, (shape, _) in self._arrays.items()}
        count, num_classes = self._description["shape"][0], len(self._description["class_names"])
        if found != expected or self.done == count:
            raise ValueError(f"expected {count} samples of {expected}: {self.done=} {found=}")
        for name in values.keys() - {SPECTROGRAMS}:
            ids = values[name]  # floats would be interpolated ids
            if ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= num_classes:
                raise ValueError(
                    f"{name}: expected class ids below {num_classes}: {ids.dtype} {np.unique(ids)}"
                )
        line = json.dumps({**metadata, "level_db": round(level_db, 3)}) + "\n"
        with writing(self._path):
            for name, value in values.items():
                data = value.astype(self._arrays[name][1]).tobytes()
                _write(self._files[name], data, self._first_byte[name] + self.done * len(data))
            self._pending[1].append(line.encode())
            self.done += 1
            if time.monotonic() - self._committed_s > COMMIT_S:
                self._commit()

    def _commit(self):
        for name in self._arrays:
            os.fsync(self._files[name])
        start, lines = self._pending
        data = b"".join(lines)
        _write(self._files[METADATA], data, start)
        os.fsync(self._files[METADATA])
        self._pending = (start + len(data), [])
        self._committed_s = time.monotonic()

    def open(self):
        """Lock the folder, then begin the set or resume it."""
        import fcntl  # not on Windows, where sets can still be read

        folder = self._folder
        self._files[METADATA] = os.open(folder / METADATA, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._files[METADATA], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{self._path}: expected no other writer; a process is writing {folder}"
            ) from error
        except OSError:
            pass  # a file system without locks
        present = sorted(os.listdir(folder))
        stored = [name for name in (UNFINISHED, DESCRIPTION) if name in present]
        ours = (SPECTROGRAMS, MASKS, LABELS, METADATA)
        foreign = [name for name in present if name not in ours and not name.startswith(f".{UNFINISHED}.")]
        if stored and not self._resumes:
            for name in stored:
                (folder / name).unlink()  # of a killed writer: this one takes its place
            stored, foreign, present = [], [], sorted(os.listdir(folder))
        if stored:
            self._resume(folder / stored[0])
        elif foreign:
            raise UserError(
                f"{self._path}: expected {folder} to be an unfinished set; found {foreign[0]} in it"
            )
        self._is_ours = not stored
        if not stored:
            for name in set(present) - {METADATA}:
                (folder / name).unlink()  # left by a writer that was killed in `_begin`
            self._begin()
        for name, part in self._arrays.items():
            self._first_byte[name] = open_npy(folder / name, *part).first_byte
            self._files[name] = os.open(folder / name, os.O_RDWR)
        self._is_ours = True

    def _begin(self):
        """Allocate all arrays. The description comes last and says that they are complete."""
        os.truncate(self._folder / METADATA, 0)
        for name, (shape, dtype) in self._arrays.items():
            np.lib.format.open_memmap(self._folder / name, "w+", dtype, shape)
            with open(self._folder / name, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, os.path.getsize(file.name))
                os.fsync(file.fileno())
        write_json(self._folder / UNFINISHED, self._description)

    def _resume(self, stored):
        """Check that the description is equal, and count the whole samples."""
        try:
            changes = differences(parse_json(stored.read_text("utf-8")), self._description)
        except ValueError:
            changes = [f"{stored.name} cannot be read"]
        if changes:
            raise UserError(
                f"{self._path}: expected to go on with the unfinished set in {self._folder}; found it made with other "
                f"arguments ({'; '.join(changes)}): remove that folder to start anew"
            )
        lines = (self._folder / METADATA).read_bytes().split(b"\n")[:-1]
        self.done = min(len(whole_lines(lines)), self._description["shape"][0])
        end = sum(len(line) + 1 for line in lines[: self.done])
        os.truncate(self._folder / METADATA, end)
        self._pending = (end, [])

    def finish(self):
        self._commit()
        if (self._folder / UNFINISHED).exists():
            os.replace(self._folder / UNFINISHED, self._folder / DESCRIPTION)
        os.replace(self._folder, self._path)

    def give_up(self, keep):
        """Keep the samples, if there are any and `keep` is set; else remove the folder."""
        if self._is_ours and keep and self.done:
            with contextlib.suppress(OSError):
                self._commit()
        elif self._is_ours:
            self.close()
            shutil.rmtree(self._folder, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                self._folder.rmdir()  # where it is empty

    def close(self):
        while self._files:
            os.close(self._files.popitem()[1])


@contextlib.contextmanager
def writing(owner):
    """Raise a `UserError` that names `owner`, a path or a flag, where writing fails in the block."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{owner}: expected a folder that can be written; {error}") from error


def _write(descriptor, data, position):
    """Write all of `data` at a position, unbuffered: a full disk is an error here and nowhere else."""
    while data:
        written = os.pwrite(descriptor, data, position)
        data, position = data[written:], position + written


def differences(old, new, name=""):
    """The changes from `old` to `new`, JSON values, in words."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            words
            for key in old | new
            for words in differences(old.get(key), new.get(key), f"{name}.{key}".lstrip("."))
        ]
    return [] if old == new else [f"{name} was {json.dumps(old)}, is {json.dumps(new)}"]
