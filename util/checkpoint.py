"""Checkpoints: written whole or not at all, of tensors and plain values only.

A checkpoint is the zip archive of torch.save, so other programs can read it. The archive's checksums find
damage. Its comment has the number of the save in its folder and the step.
"""

import contextlib
import os
import pickle
import re
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import torch

from util import unpickle
from util.errors import UserError, warn
from util.files import atomic_path, locked, writable_folder
from util.state import check_fields, tensor_problem

FORMAT = 2  # 1 had no comment
LAST = "checkpoint-last.pth"
PREVIOUS = "checkpoint-previous.pth"
BEST = "checkpoint-best.pth"
WRITTEN = (".pth", ".json", ".txt", ".png")  # suffixes of what a run writes
DICTS = ("model", "optimizer", "args", "front_end", "progress")
KEYS = (*DICTS, "scaler", "epoch", "step", "rng", "classes", "format", "num_samples")

# The comment of the archive; "check" is the checksum of the words before it. Versions up to 0.16 had the
# length and checksum of the file instead.
COMMENT = re.compile(
    rb"(radio-mae checkpoint save=(\d{8}) step=(\d{12}) )"
    rb"(?:length=\d{16} crc32=[0-9a-f]{8}|check=([0-9a-f]{8}))"
)
NO_COMMENT = "no number of its save: damaged, or of another program"


class Save(NamedTuple):
    """The comment of a checkpoint."""

    number: int  # of the save in its folder: unlike steps, it never repeats
    step: int


def write(state, path, number):
    """Write a checkpoint to the disk and read it back. A file that fails stays: the caller removes it.

    Args:
        state: a dict with at least `KEYS`, of tensors and plain values.
        number: see `Save`.

    Raises:
        OSError, or torch's RuntimeError: writing failed, or reading back found damage.
    """
    Path(path).unlink(missing_ok=True)  # a killed process may have left a hard link to a checkpoint here
    words = b"radio-mae checkpoint save=%08d step=%012d " % (number, state["step"])
    comment = words + b"check=%08x" % zlib.crc32(words)
    with open(path, "wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # torch's writer hides the error of the system
            raise error.__context__ or error from None
        file.seek(-2, os.SEEK_END)  # the length of the comment is the last field of an archive
        file.write(len(comment).to_bytes(2, "little") + comment)
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):  # drop it from memory, so that it is read back from the disk
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if found := examine(path)[1]:
        raise OSError(f"it reads back with {found}")


def next_number(folder):
    """Number of the next save in a folder; see `Save`."""
    return 1 + max((found.number for found in map(read_comment, checkpoints(folder)) if found), default=0)


def save(state, folder, name=LAST):
    """Write one checkpoint, whole or not at all. A run writes its checkpoints by `util.saver`.

    Raises:
        UserError: writing failed.
    """
    folder = Path(folder)
    try:
        with atomic_path(folder / name) as temporary:
            write(state, temporary, next_number(folder))
    except (OSError, RuntimeError) as error:
        raise UserError(f"{folder / name}: the checkpoint could not be written: {reason(error)}") from error


def reason(error):
    """The message of an error of the system or of torch, in one line."""
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


def read_comment(path):
    """The `Save` in a file's comment, or None. It does not read the rest of the file."""
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            match = COMMENT.fullmatch(archive.comment)
            file.seek(-len(archive.comment), os.SEEK_END)
            at_end = file.read() == archive.comment
    except Exception:  # zipfile raises many kinds for a damaged archive
        return None
    if not match or not at_end or (match[4] and int(match[4], 16) != zlib.crc32(match[1])):
        return None
    return Save(int(match[2]), int(match[3]))


def examine(path):
    """Read all of a file: (its `Save` or None, what is wrong or "" for a whole checkpoint)."""
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
        unpickle.load(path, mmap=True)  # torch's reader finds damage in the archive's directory
    except OSError as error:
        return None, reason(error)
    except Exception as error:  # zipfile and torch raise many kinds for a damaged file
        return found, f"a damaged archive ({reason(error)})"
    return found, ""


@contextlib.contextmanager
def output_folder(path):
    """A run's `--output_dir` as `util.files.writable_folder`, without temporary files of a killed process.

    It is locked: a second run would remove the temporary files of the first.

    Raises:
        UserError: it cannot be written, or another process writes it.
    """
    owner = f"--output_dir {path}"
    with writable_folder(path, owner) as folder, locked(folder, owner):
        for one in folder.iterdir():
            if one.suffix in WRITTEN and one.is_dir():
                raise UserError(
                    f"{owner}: expected a file to write as {one.name}; found a folder of this name"
                )
        remove_torn(folder)
        yield folder


def remove_torn(folder):
    """Remove the temporary files of `atomic_path` that a killed process left in a folder."""
    for path in Path(folder).glob(".*.tmp"):
        path.unlink()


def epoch_checkpoints(folder):
    """`checkpoint-<epoch>.pth` of a folder, oldest epoch first."""
    found = [path for path in Path(folder).glob("*.pth") if re.fullmatch(r"checkpoint-\d+\.pth", path.name)]
    return sorted(found, key=lambda path: (int(path.stem.partition("-")[2]), path))


def checkpoints(folder):
    """Checkpoints to resume from, damaged or not: the last, those of epochs (newest first), the previous."""
    folder = Path(folder)
    found = (folder / LAST, *reversed(epoch_checkpoints(folder)), folder / PREVIOUS)
    return [path for path in found if os.path.exists(path)]


def search(folder):
    """Find the newest whole checkpoint of a folder by the number of its save.

    Returns:
        (path, step, damaged): path and step None without one; damaged {path: what is wrong}, those that may
        be newer.
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
    """The checkpoint to resume a folder's run from, or None. It warns of newer damaged checkpoints.

    Raises:
        UserError: all checkpoints are damaged.
    """
    try:
        chosen, step, damaged = search(folder)
    except OSError as error:
        raise UserError(f"{folder}: expected a folder of checkpoints; {reason(error)}") from error
    if chosen is None and damaged:
        first = next(path for path in checkpoints(folder) if path in damaged)
        found = f"{len(damaged)} damaged, the newest {first.name} with {damaged[first]}"
        raise UserError(f"{folder}: expected a whole checkpoint; found {found}")
    for path, wrong in damaged.items():
        found = f"expected a whole checkpoint; found {wrong}"
        warn(f"{path}: {found}; passed over for {chosen.name} of step {step}")
    return chosen


def read(path, what):
    """Read a file of torch.save onto the CPU, as tensors and plain values; see `util.unpickle`.

    Args:
        what: what is expected, for messages: "a checkpoint".

    Raises:
        UserError: the file is missing, damaged or holds pickled objects.
    """
    found, wrong = examine(path)
    if found and wrong:
        raise UserError(f"{path}: expected {what}; found a damaged file, with {wrong}")
    try:
        return unpickle.plain(unpickle.load(path))
    except FileNotFoundError as error:
        raise UserError(f"{path}: expected {what}; found no such file") from error
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        found = f"other pickled objects ({name[1]})" if name else "other pickled objects or a damaged file"
        raise UserError(f"{path}: expected {what} of tensors and plain values; found {found}") from error
    except Exception as error:  # torch raises many kinds for a damaged file, assertions included
        raise UserError(f"{path}: expected {what}; found a damaged or unreadable file") from error


def load(path):
    """Read a whole checkpoint of this program onto the CPU.

    Raises:
        UserError: the file is missing, damaged, has pickled objects, or is no checkpoint of this program.
    """
    state = read(path, "a whole checkpoint")
    missing = [key for key in KEYS if key not in state] if isinstance(state, dict) else KEYS
    if missing:
        what = "weights alone" if "optimizer" in missing else "another program's checkpoint"
        found = f"{what}, without {', '.join(missing)}"
        hint = "main_pretrain.py --init and main_finetune.py --finetune start from weights"
        raise UserError(f"{path}: expected a checkpoint of this program to resume; found {found} ({hint})")
    if odd := [key for key in DICTS if not isinstance(state[key], dict)]:
        found = f"{odd[0]} is a {type(state[odd[0]]).__name__}"
        raise UserError(f"{path}: expected dicts in a checkpoint; {found}")
    if state["format"] != FORMAT:
        raise UserError(f"{path}: expected checkpoint format {FORMAT}; found {state['format']}")
    if read_comment(path) is None:
        raise UserError(f"{path}: expected a whole checkpoint; found {NO_COMMENT}")
    check_fields(state, path)
    return state


def load_model(model, state_dict, path):
    """Load a state dict whose keys and shapes must be those of the model, and whose values must be finite.

    Raises:
        UserError: it names a key that is missing, unknown, of another shape or type, or not finite.
    """
    own = model.state_dict()
    wrong = [f"{key} is missing" for key in own if key not in state_dict]
    wrong += [f"{key} is unknown here" for key in state_dict if key not in own]
    for key in own if not wrong else ():
        if problem := tensor_problem(state_dict[key], own[key].shape, own[key].is_floating_point()):
            wrong.append(f"{key} is {problem}")
    if wrong:
        found = f"{len(wrong)} that differ, first: {wrong[0]}"
        raise UserError(f"{path}: expected the weights of this model; found {found}")
    model.load_state_dict(state_dict)


def random_state():
    """State of torch's random generators, as tensors."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state):
    """Restore a `random_state`. Generators of GPUs stay as they are if the number of GPUs differs.

    Raises:
        ValueError: it is no state of these generators.
    """
    try:
        torch.set_rng_state(state["cpu"])
        if torch.cuda.is_available() and len(state.get("cuda", [])) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda"])
    except (RuntimeError, TypeError) as error:
        raise ValueError(reason(error)) from error
