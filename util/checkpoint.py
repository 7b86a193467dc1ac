"""Checkpoints that are whole or passed over, hold tensors and plain values only, and bring a run back exactly.

A checkpoint is the zip archive that torch.save writes, so any reader of such archives opens it. The archive's checksums
find damage; its comment says which save of its folder it is, and the step.
"""

import contextlib
import os
import pickle
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import torch

from util import unpickle
from util.errors import UserError, warn
from util.files import atomic_path, writable_folder

FORMAT = 2  # 1 had no comment
LAST = "checkpoint-last.pth"
PREVIOUS = "checkpoint-previous.pth"
BEST = "checkpoint-best.pth"
KEYS = (
    *("model", "optimizer", "scaler", "epoch", "step", "rng", "args", "front_end", "classes", "format", "progress"),
    "num_samples",
)

# The comment of the archive. The checksum is of the words before it; versions up to 0.16 also named length and checksum of
# the file, "length=%016d crc32=%08x", which cover what the archive's own checksums cover.
COMMENT = re.compile(
    rb"(radio-mae checkpoint save=(\d{8}) step=(\d{12}) )(?:length=\d{16} crc32=[0-9a-f]{8}|check=([0-9a-f]{8}))"
)
# What zipfile raises of an archive that is damaged.
DAMAGED = (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, struct.error)
NO_COMMENT = "no comment that says which save it is: damaged, or of another program"


class Save(NamedTuple):
    """What a checkpoint says of itself."""

    number: int  # of the save in its folder: a run that goes back to an earlier checkpoint has steps twice, saves never
    step: int


class _Kept:
    """A file for torch.save that keeps an error of the system: torch's writer would raise another."""

    def __init__(self, file):
        self.file, self.error = file, None

    def write(self, data):
        try:
            if self.error is None:
                self.file.write(data)
        except OSError as error:
            self.error = error
        return len(data)

    def flush(self):
        pass


def write(state, path, number):
    """Write a checkpoint to the disk and read it back; a file that fails is left to the caller.

    Args:
        state: a dict with the keys of `KEYS` and more, tensors and plain values throughout.
        number: see `Save`.

    Raises:
        OSError, or RuntimeError of torch's: it could not be written, or reads back as another.
    """
    Path(path).unlink(missing_ok=True)  # what a killed process left may be another name of a checkpoint that counts
    words = b"radio-mae checkpoint save=%08d step=%012d " % (number, state["step"])
    comment = words + b"check=%08x" % zlib.crc32(words)
    with open(path, "wb") as file:
        kept = _Kept(file)
        torch.save(state, kept)
        if kept.error:
            raise kept.error
        file.seek(-2, os.SEEK_END)  # the length of the comment is the last field of an archive
        file.write(len(comment).to_bytes(2, "little") + comment)
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):  # forget it, to be read back from the disk and not from memory
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if found := examine(path)[1]:
        raise OSError(f"it reads back with {found}")


def next_number(folder):
    """Number of the next save into a folder, see `Save`."""
    return 1 + max((found.number for found in map(read_comment, checkpoints(folder)) if found), default=0)


def save(state, folder, name=LAST):
    """Write one checkpoint, whole or not at all; for those of a run see `util.saver`.

    Raises:
        UserError: it could not be written.
    """
    folder = Path(folder)
    try:
        with atomic_path(folder / name) as temporary:
            write(state, temporary, next_number(folder))
    except (OSError, RuntimeError) as error:
        raise UserError(f"{folder / name}: the checkpoint could not be written: {reason(error)}") from error


def reason(error):
    """An error of the system or of torch in a line."""
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


def read_comment(path):
    """What a file says of itself, a `Save`, or None; the rest of the file is not looked at."""
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            match = COMMENT.fullmatch(archive.comment)
            file.seek(-len(archive.comment), os.SEEK_END)
            at_end = file.read() == archive.comment
    except (OSError, *DAMAGED):
        return None
    if not match or not at_end or (match[4] and int(match[4], 16) != zlib.crc32(match[1])):
        return None
    return Save(int(match[2]), int(match[3]))


def examine(path):
    """Read all of a file: (its `Save` or None, what is wrong with it, "" of a whole checkpoint)."""
    found = None
    try:
        if not zipfile.is_zipfile(path):
            return None, "no archive" if os.path.getsize(path) else "no bytes"
        found = read_comment(path)
        if found is None:
            return None, NO_COMMENT
        with zipfile.ZipFile(path) as archive:
            if min(entry.header_offset for entry in archive.infolist()):
                return found, "bytes before the archive"
            if damaged := archive.testzip():
                return found, f"a checksum that differs, of {damaged}"
        unpickle.load(path, mmap=True)  # torch's own reader refuses some damage to the directory
    except OSError as error:
        return None, reason(error)
    except Exception as error:  # zipfile and torch raise whatever a damaged file leads to
        return found, f"a damaged archive ({reason(error)})"
    return found, ""


def whole_step(path):
    """The step of a whole checkpoint, else None."""
    found, wrong = examine(path)
    return None if wrong else found.step


@contextlib.contextmanager
def output_folder(path):
    """A run's `--output_dir`, created and seen to be writable; removed again if the run fails before anything is in it.

    Raises:
        UserError: it cannot be written.
    """
    with writable_folder(path, f"--output_dir {path}") as folder:
        remove_torn(folder)
        yield folder


def remove_torn(folder):
    """Remove what a process that was killed while it wrote through `atomic_path` left in a run's folder."""
    for path in sorted(Path(folder).glob(".*.tmp")):
        path.unlink()


def epoch_checkpoints(folder):
    """`checkpoint-<epoch>.pth` of a folder, oldest epoch first."""
    found = [(re.fullmatch(r"checkpoint-(\d+)\.pth", path.name), path) for path in sorted(Path(folder).glob("*.pth"))]
    return [path for _, path in sorted((int(match[1]), path) for match, path in found if match)]


def checkpoints(folder):
    """What a run can resume from, damaged or not: the last, those of epochs from the newest on, the one before the last."""
    folder = Path(folder)
    found = (folder / LAST, *reversed(epoch_checkpoints(folder)), folder / PREVIOUS)
    return [path for path in found if os.path.exists(path)]


def search(folder):
    """The newest whole checkpoint of a folder, by the number of its save; the last is preferred to its other names.

    Returns:
        its path and its step, or None and None; {path: what is wrong} of the damaged ones that are newer, or may be.
    """
    found = checkpoints(folder)
    said = {path: read_comment(path) for path in found}
    damaged, chosen, step = {}, None, None
    for path in sorted(filter(said.get, found), key=lambda path: -said[path].number):
        whole, wrong = examine(path)
        if not wrong:
            chosen, step = path, whole.step
            break
        damaged[path] = wrong
    listed_before = found[: found.index(chosen)] if chosen else found
    damaged |= {path: examine(path)[1] for path in listed_before if not said[path]}
    return chosen, step, damaged


def newest(folder):
    """The checkpoint that a run in this folder resumes from, or None; warns of damaged ones that it passes over.

    Raises:
        UserError: there are checkpoints, and none is whole.
    """
    try:
        chosen, step, damaged = search(folder)
    except OSError as error:
        raise UserError(f"{folder}: expected a folder of checkpoints; {reason(error)}") from error
    if chosen is None and damaged:
        first = next(path for path in checkpoints(folder) if path in damaged)
        raise UserError(f"{folder}: expected a whole checkpoint; found {len(damaged)} damaged, the newest {first.name} with "
                        f"{damaged[first]}")  # fmt: skip
    for path, wrong in damaged.items():
        warn(f"{path}: expected a whole checkpoint; found {wrong}; passed over for {chosen.name} of step {step}")
    return chosen


def read(path, what):
    """What is in a file of torch's, on the CPU, as tensors and plain values; see `util.unpickle` for what is read.

    Args:
        what: what is expected, for messages: "a checkpoint".

    Raises:
        UserError: the file is missing, damaged or holds pickled objects.
    """
    _refuse_damaged(path, what)
    return _read(path, what)


def _refuse_damaged(path, what):
    """Raise for a checkpoint that is not whole; returns what is wrong with a file that says nothing of itself."""
    found, wrong = examine(path)
    if found and wrong:
        raise UserError(f"{path}: expected {what}; found a damaged file, with {wrong}")
    return wrong


def _read(path, what):
    try:
        return unpickle.plain(unpickle.load(path))
    except FileNotFoundError as error:
        raise UserError(f"{path}: expected {what}; found no such file") from error
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        found = f"other pickled objects ({found[1]})" if found else "other pickled objects or a damaged file"
        raise UserError(f"{path}: expected {what} of tensors and plain values; found {found}") from error
    except Exception as error:  # torch's reader raises whatever a damaged file leads to, assertions included
        raise UserError(f"{path}: expected {what}; found a damaged or unreadable file") from error


def load(path):
    """Read a whole checkpoint onto the CPU, without unpickling anything but tensors and plain values.

    Raises:
        UserError: the file is missing, damaged, holds pickled objects, or is not a checkpoint of this project.
    """
    wrong = _refuse_damaged(path, "a whole checkpoint")
    state = _read(path, "a whole checkpoint")
    missing = [key for key in KEYS if key not in state] if isinstance(state, dict) else KEYS
    if missing:
        what = "weights alone" if "optimizer" in missing else "another program's checkpoint"
        raise UserError(f"{path}: expected a checkpoint of this program to resume; found {what}, without "
                        f"{', '.join(missing)} (main_pretrain.py --init and main_finetune.py --finetune start from weights)")
    odd = [key for key in ("model", "optimizer", "args", "front_end", "progress") if not isinstance(state[key], dict)]
    if odd:
        raise UserError(f"{path}: expected dicts in a checkpoint; {odd[0]} is a {type(state[odd[0]]).__name__}")
    if state["format"] != FORMAT:
        raise UserError(f"{path}: expected checkpoint format {FORMAT}; found {state['format']}")
    if wrong:
        raise UserError(f"{path}: expected a whole checkpoint; found {wrong}")
    return state


def load_model(model, state_dict, path):
    """Load a state dict that must fit to the last key and shape.

    Raises:
        UserError: naming what is missing, left over, or of another shape.
    """
    own = model.state_dict()
    wrong = [f"{key} is missing" for key in own if key not in state_dict]
    wrong += [f"{key} is unknown here" for key in state_dict if key not in own]
    wrong += [
        f"{key} is {list(value.shape)}, expected {list(own[key].shape)}"
        for key, value in state_dict.items()
        if key in own and value.shape != own[key].shape
    ]
    if wrong:
        raise UserError(f"{path}: expected the weights of this model; found {len(wrong)} that differ, first: {wrong[0]}")
    model.load_state_dict(state_dict)


def random_state():
    """State of torch's random generators, as tensors."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state):
    """Put back what `random_state` returned; devices that the saving machine did not have keep their state."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and len(state.get("cuda", [])) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
