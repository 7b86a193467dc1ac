"""Features of windows: rows kept on disk, the .npz, nearest neighbours, principal components."""

import contextlib
import json
import math
import os
import shutil
import time
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import Dataset

from data.batches import EpochBatches, to_images
from data.csi import CsiFile
from data.feeding import make_loader
from data.sampling import Concatenated
from data.set_writer import COMMIT_S, differences
from data.spectrogram_set import SpectrogramSet
from data.splits import RECORDING
from models_vit import mean_patch
from util.bars import Bar
from util.errors import RunError, UserError
from util.files import atomic_path, read_json, write_json
from util.metrics import Confusion

CHUNK_BYTES = 2**24  # of rows read back at a time
QUERIES, NEIGHBOURS = 1024, 8192  # rows of a matrix of similarities: 32 MB
TEMPERATURE = 0.07  # of the votes, as in DINO (arXiv 2104.14294, appendix F)


class Windows(Dataset):
    """All samples of the sources in order, for `data.feeding.Loader`.

    Args:
        leave_out: column of the sources' groups; None: the recording, else the file.

    Attributes:
        class_names: of the labelled sources; [] without any.
        names: files; file: int64 [N], each window's place in `names`.
        group: int64 [N], equal for equal values of `leave_out`; k-NN finds no neighbours in a window's own
            group.
        start_s, sample_rate_hz, center_freq_hz, first_row: float64 [N], NaN if unknown; first_row: of images
            of `radio.grid`.

    Raises:
        UserError: the sources differ in channels or classes, or one has no such column.
    """

    COLUMNS = ("start_s", "sample_rate_hz", "center_freq_hz", "first_row")

    def __init__(self, sources, leave_out=None):
        self.source = Concatenated(sources)
        every = [source.class_names for source in sources if is_labelled(source)]
        self.class_names = list(every[0]) if every else []
        if other := [names for names in every if names != self.class_names]:
            raise UserError(f"DATA: expected one list of classes; found {self.class_names} and {other[0]}")
        places, groups, index = {}, {}, 0
        self.file, self.group = np.empty((2, len(self)), np.int64)
        values = np.full((len(self.COLUMNS), len(self)), np.nan)
        self.start_s, self.sample_rate_hz, self.center_freq_hz, self.first_row = values
        for number, source in enumerate(sources):
            columns = getattr(source, "groups", {})
            if leave_out and leave_out not in columns:
                expected = f"a column of the data ({', '.join(columns) or 'it has none'})"
                raise UserError(f"--leave_out: expected {expected}; found {leave_out}")
            column = columns.get(leave_out or RECORDING)
            for own in range(len(source)):
                about = source.describe(own, None)
                self.file[index] = places.setdefault(file := _file(source, about), len(places))
                group = file if column is None else (number, str(column[own]))
                self.group[index] = groups.setdefault(group, len(groups))
                values[:, index] = [about.get(name) for name in self.COLUMNS]  # None becomes NaN
                index += 1
        self.names = list(places)

    def __len__(self):
        return len(self.source)

    @property
    def sample_bytes(self):
        return self.source.sample_bytes

    def batch(self, keys):
        """As `data.sampling.MaskedSamples.batch`, without noise; "target": int64 [B], -1 without a label."""
        indices = [index for _, index in keys]
        parts = self.source.load_many(indices, lambda place: None, 0)
        labels = np.array([self.label(index) for index in indices])
        return {"parts": parts, "index": np.array(indices), "target": labels}

    def label(self, index):
        """A window's class; of a mask, the class with the most cells, the background only if it is alone."""
        source, own = self.source.at(index)
        if not is_labelled(source):
            return -1
        target = np.asarray(source.target(own))
        if not target.ndim:
            return int(target)
        cells = np.bincount(target.ravel(), minlength=len(self.class_names))[1:]
        return 1 + int(cells.argmax()) if cells.any() else 0


def is_labelled(source):
    if isinstance(source, SpectrogramSet):
        return source.masks is not None or source.labels is not None
    return hasattr(source, "target")


def _file(source, about):
    if isinstance(source, CsiFile):  # one file of many recordings
        return str(source.path.with_name(about["name"]))
    return about.get("path") or str(source.path / about["name"])  # sets of scenes have no paths


class Rows:
    """Columns of rows in the files of a folder. Rows are committed every few seconds, so a killed process
    loses few.

    As a context it removes the folder at the end; an exception keeps a folder with rows.

    Args:
        folder: created; rows of an earlier process with an equal key are kept, and `done` counts them.
        columns: {name: (dtype, shape of a row)}.
        key: dict of plain values that decide the content of the rows.

    Raises:
        UserError: the folder has rows of another key, another process writes it, or it cannot be written.
    """

    STATE = "state.json"

    def __init__(self, folder, columns, key):
        self.folder, self.columns, self.done = Path(folder), columns, 0
        self._key, self._files, self._open = json.loads(json.dumps(key)), {}, contextlib.ExitStack()

    def row_bytes(self, name):
        dtype, shape = self.columns[name]
        return np.dtype(dtype).itemsize * math.prod(shape)

    def __enter__(self):
        with self._open, self._reported():
            self.folder.mkdir(exist_ok=True)
            self._lock()
            state = read_json(self.folder / self.STATE)
            if changes := differences(state.get("key", self._key), self._key):
                found = f"rows made with other arguments ({'; '.join(changes)})"
                remedy = "remove that folder to start anew"
                raise UserError(f"{self.folder}: expected rows of this command; found {found}: {remedy}")
            self.done = state.get("done", 0)
            for name in self.columns:
                file = self._open.enter_context(open(self.folder / name, "ab", buffering=0))
                whole, found = self.done * self.row_bytes(name), file.tell()
                if found < whole:
                    remedy = f"remove {self.folder} to start anew"
                    raise UserError(f"{file.name}: expected {whole} bytes or more; found {found}: {remedy}")
                file.truncate(whole)
                self._files[name] = file
            self._open = self._open.pop_all()
        self._committed_s = time.monotonic()
        return self

    def _lock(self):
        import fcntl  # not on Windows

        lock = self._open.enter_context((self.folder / "lock").open("w"))
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock, not inherited by forked workers
        except BlockingIOError as error:
            raise UserError(f"{self.folder}: expected no other writer; a process is writing it") from error

    def add(self, values):
        """Append rows: {name: array [n, ...]} of all columns."""
        with self._reported():
            for name, file in self._files.items():
                dtype, shape = self.columns[name]
                array = np.ascontiguousarray(values[name], dtype).reshape(-1, *shape)
                left = memoryview(array).cast("B")
                while left:
                    left = left[file.write(left) :]
            self.done += len(array)
            if time.monotonic() - self._committed_s > COMMIT_S:
                self.commit()

    def commit(self):
        """Flush all rows to the disk, then their number."""
        with self._reported():
            for file in self._files.values():
                os.fsync(file.fileno())
            write_json(self.folder / self.STATE, {"key": self._key, "done": self.done})
        self._committed_s = time.monotonic()

    def read(self, name, first, end):
        """Rows `first` to `end`: array [n, ...]."""
        dtype, shape = self.columns[name]
        end, size = min(end, self.done), self.row_bytes(name)
        count = (end - first) * math.prod(shape)
        return np.fromfile(self.folder / name, dtype, count, offset=first * size).reshape(-1, *shape)

    def chunks(self, name, rows=None):
        """Iterate (first row, array [n, ...]) by 16 MB or by `rows`."""
        rows = rows or max(1, CHUNK_BYTES // self.row_bytes(name))
        return ((first, self.read(name, first, first + rows)) for first in range(0, self.done, rows))

    @contextlib.contextmanager
    def _reported(self):
        try:
            yield
        except OSError as error:
            raise UserError(f"{self.folder}: expected a folder that can be written; {error}") from error

    def __exit__(self, kind, *_):
        with self._open, contextlib.suppress(UserError):
            if kind and self.done:
                self.commit()
        if not kind or not self.done:
            shutil.rmtree(self.folder, ignore_errors=True)


@torch.inference_mode()
def embed(model, windows, front_end, device, autocast, rows, batch_size, num_workers):
    """Add the missing `rows`: `cls`, `mean` and, if it has these columns, `patches` and `label`.

    The batches are those of an uninterrupted run.
    """
    batches = EpochBatches(len(windows), batch_size, seed=0, shuffle=False)
    batches.first_batch = -(-rows.done // batch_size)
    loader = make_loader(windows, batches, num_workers, device.type == "cuda")
    limit = np.finfo(np.float16).max if "patches" in rows.columns else math.inf
    with Bar("embedding", len(windows), "windows", rows.done) as bar:
        for batch in loader.batches(partial(to_images, front_end=front_end, device=device), device):
            with autocast():
                tokens = model(batch["images"]).float()  # (B, 1 + L, D)
            low, high = tokens.flatten(1).amin(dim=1), tokens.flatten(1).amax(dim=1)
            fits = ((low > -limit) & (high < limit)).cpu()
            if not fits.all():
                first = int(batch["index"][~fits][0])
                name = windows.names[windows.file[first]]
                raise RunError(
                    f"{name}: expected finite features below {limit:g}; found others in window {first}"
                )
            patches, present = tokens[:, 1:], model.inside(batch["images"])[2]
            mean = mean_patch(tokens, present)
            values = {"cls": tokens[:, 0], "mean": mean, "label": batch["target"]}
            if "patches" in rows.columns:
                values["patches"] = patches.half()
            rows.add({name: values[name].cpu().numpy() for name in rows.columns})
            bar.add(len(tokens))


def write_features(path, rows, windows, about):
    """Write the `.npz`, whole or not at all, without an array of features in memory.

    It has the columns of `rows`, those of `windows`, and `about`: {name: text or list of texts}.
    """
    wide = np.dtype(f"<U{max(map(len, windows.names))}")
    places = (windows.file[first : first + QUERIES] for first in range(0, rows.done, QUERIES))
    files = (np.array([windows.names[place] for place in some], wide) for some in places)
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, (dtype, shape) in rows.columns.items():
            chunks = (chunk for _, chunk in rows.chunks(name))
            _add_array(archive, name, np.dtype(dtype), (rows.done, *shape), chunks)
        _add_array(archive, "file", wide, (rows.done,), files)
        whole = {name: getattr(windows, name) for name in windows.COLUMNS} | about
        for name, value in whole.items():
            value = np.array(value)
            _add_array(archive, name, value.dtype, value.shape, [value])


def _add_array(archive, name, dtype, shape, chunks):
    # `ZipInfo` has a fixed date: equal features make equal bytes.
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in chunks:
            file.write(np.ascontiguousarray(chunk).tobytes())


def nearest_neighbours(rows, name, windows, scored, k, device="cpu"):
    """Classify each scored window by its `k` nearest labelled windows of other groups.

    Nearest is by cosine similarity s of the column `name`. A vote weighs exp(s / 0.07), as in DINO.

    Args:
        windows: a `Windows`, for `group`; scored: bool [N].

    Returns:
        `util.metrics.figures` of the scored windows.
    """
    confusion = Confusion(windows.class_names)
    labels = torch.from_numpy(rows.read("label", 0, rows.done)).to(device)
    group = torch.from_numpy(windows.group).to(device)
    for first, query in rows.chunks(name, QUERIES):
        query = F.normalize(torch.from_numpy(query).to(device), dim=1)  # (Q, D)
        own = slice(first, first + len(query))
        here = torch.from_numpy(scored[own]).to(device)
        best = query.new_full((len(query), k), -torch.inf)
        voters = labels.new_zeros((len(query), k))
        for start, keys in rows.chunks(name, NEIGHBOURS):
            keys = F.normalize(torch.from_numpy(keys).to(device), dim=1)  # (K, D)
            theirs = slice(start, start + len(keys))
            barred = (group[own, None] == group[theirs]) | (labels[theirs] < 0)
            similarity = (query @ keys.T).masked_fill_(barred, -torch.inf)
            best, place = torch.cat([best, similarity], dim=1).topk(k, dim=1)
            new = labels[theirs].clamp_min(0).expand(len(query), -1)
            voters = torch.cat([voters, new], dim=1).gather(1, place)
        votes = best.new_zeros((len(query), len(windows.class_names)))
        votes.scatter_add_(1, voters, (best / TEMPERATURE).exp())
        confusion.update(votes.argmax(dim=1)[here], labels[own][here])
    return confusion.results()


def principal_components(rows, name):
    """The first two principal components of a column [N, D].

    The largest weight of each is positive, so that equal features make equal pictures.

    Returns:
        (float64 [N, 2], shares of the variance: float64 [2]).
    """
    [size] = rows.columns[name][1]
    mean = sum(chunk.sum(axis=0, dtype=np.float64) for _, chunk in rows.chunks(name)) / rows.done
    covariance = np.zeros((size, size))
    for _, chunk in rows.chunks(name):
        centred = chunk - mean
        covariance += centred.T @ centred
    variances, axes = np.linalg.eigh(covariance)  # smallest first
    axes = axes[:, :-3:-1]  # (D, 2)
    axes *= np.sign(axes[np.abs(axes).argmax(axis=0), [0, 1]])
    points = np.concatenate([(chunk - mean) @ axes for _, chunk in rows.chunks(name)])
    return points, variances[:-3:-1] / max(variances.sum(), np.finfo(float).tiny)
