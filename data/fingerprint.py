"""A cheap fingerprint of the files that a run reads, so that a resumed run notices other data."""

import os

import torch

from data.spectrogram_set import DESCRIPTION, METADATA, SpectrogramSet
from data.splits import relative_paths
from util import distributed
from util.errors import UserError, few, warn
from util.files import fingerprints

SHOWN = 3  # files in a message


def files_of(*sources):
    """The files of sources (`data.sampling`) and of their parts, as paths."""
    found, waiting = set(), [one for one in sources if one is not None]
    while waiting:
        source = waiting.pop()
        for name in ("source", "held_out", "_samples"):
            waiting += [getattr(source, name)] if getattr(source, name, None) is not None else []
        waiting += [*getattr(source, "sources", ()), *getattr(source, "sets", ())]
        if isinstance(source, SpectrogramSet):
            own = () if source.sets else (*source.arrays, METADATA)
            found.update(source.path / name for name in (DESCRIPTION, *own))
        for recording, *_ in getattr(source, "spans", ()):
            found.update((recording.path, recording.layout.data_file))
        for frame in getattr(source, "frames", ()):
            found.update((frame.image, frame.labels))
        found.update(getattr(source, "paths", ()))
        found.add(getattr(source, "path", None))
    return {os.fspath(path) for path in found if path is not None and os.path.isfile(path)}


def fingerprint(*sources):
    """The files' fingerprint for a checkpoint: int64 [N, 3], see `util.files.fingerprints`."""

    def read():
        paths = sorted(files_of(*sources))
        rows = fingerprints(dict(zip(relative_paths(paths), paths, strict=True)))
        return torch.tensor(rows, dtype=torch.int64).reshape(-1, 3)

    return distributed.broadcast(read)


def check(path, saved, *sources):
    """Compare the files with those of a checkpoint's run, by name. New and missing files are not compared.

    Args:
        path: of the checkpoint, for messages; saved: its fingerprint, or None.

    Raises:
        UserError: a file has other bytes.
    """
    distributed.broadcast(lambda: _check(path, saved, *sources))


def _check(path, saved, *sources):
    if (
        not isinstance(saved, torch.Tensor)
        or saved.dtype != torch.int64
        or saved.ndim != 2
        or saved.shape[1] != 3
    ):
        return
    before = {name: (content, changed) for name, content, changed in saved.tolist()}
    paths = sorted(files_of(*sources))
    names, other, touched = relative_paths(paths), [], 0
    for name, file in zip(names, paths, strict=True):
        for key, content, changed in fingerprints({name: file}):
            known = before.get(key, (content, changed))
            other += [file] if known[0] != content else []
            touched += known[0] == content and known[1] != changed
    if other:
        raise UserError(
            f"{path}: expected the data of its run; found other bytes in {few(other, SHOWN, counted=True)}"
        )
    if touched:
        warn(
            f"{path}: {touched} of {len(paths)} data files were written since its run began; their sizes and ends are equal"
        )
