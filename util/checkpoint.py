"""Checkpoints that are whole or absent, hold tensors and plain values only, and bring a run back exactly."""

import contextlib
import os
import pickle
import re
import warnings
from pathlib import Path

import torch

from util.errors import UserError
from util.files import atomic_path, writable_folder

FORMAT = 1
LAST = "checkpoint-last.pth"
BEST = "checkpoint-best.pth"
KEYS = (
    "model", "optimizer", "scaler", "epoch", "step", "rng", "args", "front_end", "classes", "format", "progress",
    "num_samples",
)  # fmt: skip


def save(state, folder, completed_epoch=None, keep=0, name=LAST):
    """Write `checkpoint-last.pth`, or `name`, and after an epoch `checkpoint-<epoch>.pth`, of which the newest `keep` stay.

    Both names are one file on disk where the file system has hard links.

    Args:
        state: a dict with the keys of `KEYS` and more, tensors and plain values throughout.
        completed_epoch: index of the epoch that just ended; None in the middle of one.
        keep: how many epochs' checkpoints to keep; 0 keeps all.
    """
    folder = Path(folder)
    try:
        if completed_epoch is None:
            with atomic_path(folder / name) as temporary:
                torch.save(state, temporary)
            return
        numbered = folder / f"checkpoint-{completed_epoch}.pth"
        with atomic_path(numbered) as temporary:
            torch.save(state, temporary)
        with atomic_path(folder / LAST) as temporary:
            try:
                os.link(numbered, temporary)
            except OSError:
                torch.save(state, temporary)
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError when the disk is full
        raise UserError(f"{folder}: the checkpoint could not be written: {error}") from error
    for old in epoch_checkpoints(folder)[: -keep or None] if keep else []:
        old.unlink()


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


def newest(folder):
    """The checkpoint that a run in this folder resumes from, or None."""
    last = Path(folder) / LAST
    if last.exists():
        return last
    return next(reversed(epoch_checkpoints(folder)), None)


def read(path, what):
    """What is in a file of torch's, on the CPU, without unpickling anything but tensors and plain values.

    Args:
        what: what is expected, for messages: "a checkpoint".

    Raises:
        UserError: the file is missing, damaged or holds pickled objects.
    """
    try:
        with warnings.catch_warnings():
            # What torch has to say of a foreign pickle, our error says.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path}: expected {what}; found no such file") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: expected {what} of tensors and plain values; found other pickled objects or a damaged file"
        ) from error
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: expected {what}; found a damaged or unreadable file") from error


def load(path):
    """Read a checkpoint onto the CPU, without unpickling anything but tensors and plain values.

    Raises:
        UserError: the file is missing, damaged, holds pickled objects, or is not a checkpoint of this project.
    """
    state = read(path, "a checkpoint")
    missing = [key for key in KEYS if key not in state] if isinstance(state, dict) else KEYS
    if missing:
        raise UserError(f"{path}: expected a checkpoint to resume from; found a file without {', '.join(missing)}")
    odd = [key for key in ("model", "optimizer", "args", "front_end", "progress") if not isinstance(state[key], dict)]
    if odd:
        raise UserError(f"{path}: expected dicts in a checkpoint; {odd[0]} is a {type(state[odd[0]]).__name__}")
    if state["format"] != FORMAT:
        raise UserError(f"{path}: expected checkpoint format {FORMAT}; found {state['format']}")
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
