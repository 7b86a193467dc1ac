"""Labelled data in an HDF5 file: RadioML 2018.01A, and the caches that WavesFM's preprocessing writes.

- RadioML: `X` [N, samples, 2], I and Q; `Y` [N, classes], one-hot; `Z` [N, 1], SNR in dB. The file has 2.5 million rows.
- WavesFM, images: `image` or `csi` [N, C, rows, columns], normalized already; `label` [N].
- WavesFM, IQ: `sample`, in later versions `iq`, [N, 2, antennas, samples]; `label` [N].

A data set `snr` [N] gives the SNR, `source_file` [N] the recording that a row is from. The file's attribute `labels` names
the classes: text, a JSON list. Rows are read when they are loaded. Each batch opens the file and closes it, so that no
handle is shared with a forked worker or lies in a pickle.
"""

import contextlib
import json
from pathlib import Path

import h5py
import numpy as np
import torch
from torch.nn import functional as F

from data.formats import HDF5_EXPECTED
from data.sampling import IMAGE, IQ, Source
from data.splits import RECORDING
from util.errors import UserError, warn
from util.files import not_read

RADIOML = ("X", "Y")
IMAGES, SAMPLES = ("image", "csi"), ("sample", "iq")
LAYOUTS = (RADIOML, *((name, "label") for name in IMAGES + SAMPLES))

# The order that the columns of `Y` have. The list that came with the data, classes.txt, has another and is wrong.
RADIOML_CLASSES = ("OOK", "4ASK", "8ASK", "BPSK", "QPSK", "8PSK", "16PSK", "32PSK", "16APSK", "32APSK", "64APSK", "128APSK",
                   "16QAM", "32QAM", "64QAM", "128QAM", "256QAM", "AM-SSB-WC", "AM-SSB-SC", "AM-DSB-WC", "AM-DSB-SC", "FM",
                   "GMSK", "OQPSK")  # fmt: skip

BLOCK_ROWS = 2**16  # of labels that are read at a time
SLOW_CHUNK_BYTES = 2**24  # of compressed values, all of which are read for one row
MOST_NAMES = 8  # in a message

# What h5py raises on damaged files.
ERRORS = (OSError, KeyError, RuntimeError, ValueError, TypeError)


@contextlib.contextmanager
def opened(path):
    """An `h5py.File` to read.

    Raises:
        UserError: the file is missing, damaged or truncated, also where a read in the block finds that out.
    """
    try:
        # Without a lock: file systems that are mounted read-only have none.
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except ERRORS as error:
        raise UserError(f"{path}: expected an HDF5 file; found {not_read(path, error)}") from error


def open_hdf5(path):
    """An `Hdf5Iq` or an `Hdf5Images`, by the data sets in a file.

    Raises:
        UserError: the file is damaged, lacks data sets, or they do not agree.
    """
    with opened(path) as file:
        found = []
        file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
        data = next((data for data, labels in LAYOUTS if data in found and labels in found), None)
        if data is None:
            shown = ", ".join(found[:MOST_NAMES]) + (", ..." if len(found) > MOST_NAMES else "")
            raise UserError(f"{path}: expected the data sets {HDF5_EXPECTED}; found {shown or 'none'}")
        return (Hdf5Images if data in IMAGES else Hdf5Iq)(path, data, file)


class Hdf5Source(Source):
    """What both kinds have in common: labels and groups, read once, and rows.

    `groups`: "snr" in dB and "recording", where the file has them. `labels`: int64 [N].

    Args:
        path: the file; data: name of the data set of rows; file: the file, open.
    """

    task = "classification"
    image_size = None

    def __init__(self, path, data, file):
        self.path, self.data = Path(path), data
        rows = file[data]
        self.row_shape = rows.shape[1:]
        if rows.dtype.kind not in "fi" or 0 in rows.shape or not self._fits(rows.shape):
            self._fail(f"numbers {self.SHAPES[data == RADIOML[0]]} in {data}", f"{rows.dtype} {list(rows.shape)}")
        chunk = rows.chunks or (1,)
        if rows.compression and chunk[0] > 1 and np.prod(chunk) * rows.dtype.itemsize > SLOW_CHUNK_BYTES:
            one = "x".join(map(str, (1, *self.row_shape)))
            warn(f"{path}: {chunk[0]} rows are decompressed to read one; h5repack -l {data}:CHUNK={one} makes a faster file")
        self.labels, names = self._one_hot(file["Y"]) if data == RADIOML[0] else self._class_ids(file["label"], file)
        self.class_names = self._names(file, names)
        if len(rows) != len(self.labels):
            self._fail(f"a label for each of the {len(rows)} rows of {data}", len(self.labels))
        self.groups = {}
        snr = "Z" if data == RADIOML[0] else "snr"
        if snr in file:
            self.groups["snr"] = self._numbers(file[snr])
        if "source_file" in file:
            names = np.asarray(file["source_file"].asstr()[()])
            if 1 < len(set(names.tolist())) < len(names) == len(rows):
                self.groups[RECORDING] = names

    def _fail(self, expected, found):
        raise UserError(f"{self.path}: expected {expected}; found {found}")

    def _one_hot(self, flags):
        """(class of each row, number of classes)."""
        if flags.ndim != 2 or flags.dtype.kind not in "iufb" or flags.shape[1] < 2:
            self._fail("Y one-hot, [N, classes]", f"{flags.dtype} {list(flags.shape)}")
        labels = np.empty(len(flags), np.int64)
        for first in range(0, len(flags), BLOCK_ROWS):
            block = flags[first : first + BLOCK_ROWS]
            wrong = ((block != 0).sum(axis=1) != 1) | (block.max(axis=1) != 1)
            if wrong.any():
                row = int(np.flatnonzero(wrong)[0])
                self._fail(f"a single 1 in each row of Y, the others 0, as in row {first + row}", block[row].tolist())
            labels[first : first + BLOCK_ROWS] = block.argmax(axis=1)
        return labels, flags.shape[1]

    def _class_ids(self, ids, file):
        """(class of each row, number of classes)."""
        if ids.dtype.kind not in "iu" or not (ids.ndim == 1 or (ids.ndim == 2 and ids.shape[1] == 1)) or not len(ids):
            self._fail("label of integers [N], a class for each row (regression is no task here)",
                       f"{ids.dtype} {list(ids.shape)}")  # fmt: skip
        labels = ids[()].ravel().astype(np.int64)
        named = self._listed(file)
        count = len(named) if named else int(labels.max()) + 1
        if labels.min() < 0 or labels.max() >= count or count < 2:
            self._fail(f"labels from 0 to {max(count, 2) - 1}", f"{labels.min()} to {labels.max()}")
        return labels, count

    def _names(self, file, count):
        """Names of the classes: the file's, those of RadioML 2018.01A, or numbers."""
        if names := self._listed(file):
            if len(names) != count or len(set(names)) < count:
                self._fail(f"{count} names that differ in the attribute labels", ", ".join(names))
            return names
        if self.data == RADIOML[0] and count == len(RADIOML_CLASSES):
            return list(RADIOML_CLASSES)
        return [f"class {number}" for number in range(count)]

    def _listed(self, file):
        """The names in the attribute `labels`, or None."""
        value = file.attrs.get("labels")
        if value is None:
            return None
        try:
            names = json.loads(value) if isinstance(value, str | bytes) else np.asarray(value).tolist()
            return [name.decode() if isinstance(name, bytes) else str(name) for name in list(names)]
        except (ValueError, TypeError):
            self._fail("a JSON list of names in the attribute labels", repr(value)[:80])

    def _numbers(self, values):
        """A number for each row, integers where all are: [N]."""
        if values.dtype.kind not in "iuf" or values.size != len(self.labels):
            self._fail(f"{len(self.labels)} numbers in {values.name.strip('/')}", f"{values.dtype} {list(values.shape)}")
        found = values[()].ravel()
        whole = found.dtype.kind == "f" and np.isfinite(found).all() and (found == np.round(found)).all()
        return found.astype(np.int64) if whole else found

    def __len__(self):
        return len(self.labels)

    def target(self, index, epoch=0):
        """Class of a row: its place in `class_names`."""
        return int(self.labels[index])

    def target_many(self, indices, epoch):
        return np.array(self.labels[indices], np.int64)

    def parts(self):
        return None

    def sample_name(self, index):
        return f"row {index}"

    def describe(self, index, rng, epoch=0):
        about = {"name": f"{self.path.name} row {index}", "path": str(self.path)}
        if "snr" in self.groups:
            about["snr_db"] = float(self.groups["snr"][index])
        return about

    def read(self, indices):
        """Rows as they are stored: float32 [n, ...], in the order of the indices.

        Raises:
            UserError: the file has changed, cannot be read, or values are not finite.
        """
        rows = np.empty((len(indices), *self.row_shape), np.float32)
        with opened(self.path) as file:
            data = file[self.data]
            if data.shape != (len(self), *self.row_shape):
                self._fail(f"{self.data} of {[len(self), *self.row_shape]}, as when it was opened", list(data.shape))
            for place in np.argsort(indices).tolist():  # in the order of the file
                data.read_direct(rows, np.s_[int(indices[place])], np.s_[place])
        if not np.isfinite(rows).all():
            bad = np.flatnonzero(~np.isfinite(rows).reshape(len(rows), -1).all(axis=1))[0]
            self._fail(f"finite values in {self.data}", f"NaN or infinity in row {int(indices[bad])}")
        return rows


class Hdf5Iq(Hdf5Source):
    """Rows of IQ of one length, whose sample rate is not known. Several antennas are channels of an image."""

    SHAPES = ("[N, 2, antennas, samples]", "[N, samples, 2]")

    def __init__(self, path, data, file):
        super().__init__(path, data, file)
        self.antennas, self.num_samples = (1, self.row_shape[0]) if data == RADIOML[0] else self.row_shape[1:]
        self.in_chans = self.antennas

    def _fits(self, shape):
        if self.data == RADIOML[0]:
            return len(shape) == 3 and shape[2] == 2 and shape[1] > 1
        return len(shape) == 4 and shape[1] == 2 and shape[3] > 1

    @property
    def default_n_fft(self):
        """Samples of an FFT: a power of two, an eighth of a row, so that time and frequency are both resolved."""
        return 2 ** max(1, int(np.log2(max(1, self.num_samples / 8))))

    @property
    def sample_bytes(self):
        return 8 * self.antennas * self.num_samples

    def load(self, index, rng, epoch=0):
        """(IQ, complex64 [samples]), or of several antennas (`antenna_decibels`, float32 [antennas, samples, 2])."""
        [(kind, rows, _)] = self.load_many([index], None, epoch)
        return kind, rows[0].view(np.complex64)[:, 0] if kind == IQ else rows[0]

    def load_many(self, indices, rng_of, epoch):
        rows = self.read(indices)
        if self.data != RADIOML[0]:
            rows = np.moveaxis(rows, 1, 3)  # (n, antennas, samples, 2)
            rows = rows[:, 0] if self.antennas == 1 else rows
        rows = np.ascontiguousarray(rows)
        return [(IQ if self.antennas == 1 else antenna_decibels, rows, list(range(len(indices))))]

    def describe(self, index, rng, epoch=0):
        return super().describe(index, rng) | {"num_samples": self.num_samples}


def antenna_decibels(values, front_end, device):
    """IQ of several antennas, float32 [B, antennas, samples, 2], to spectrograms in dB [B, antennas, F, T]."""
    iq = torch.as_tensor(values).to(device, non_blocking=True)
    return front_end.decibels(iq.flatten(0, 1)).unflatten(0, iq.shape[:2])[:, :, 0]


class Hdf5Images(Hdf5Source):
    """Images that are normalized already: resized to `image_size`, which is to be set (bicubic, antialiased), no more."""

    SHAPES = ("[N, C, rows, columns]",)

    def __init__(self, path, data, file):
        super().__init__(path, data, file)
        self.in_chans = self.row_shape[0]

    def _fits(self, shape):
        return len(shape) == 4

    def load(self, index, rng, epoch=0):
        """(IMAGE, float32 [C, *image_size])."""
        [(kind, images, _)] = self.load_many([index], None, epoch)
        return kind, images[0]

    def load_many(self, indices, rng_of, epoch):
        images = torch.from_numpy(self.read(indices))
        if images.shape[2:] != tuple(self.image_size):
            images = F.interpolate(images, size=tuple(self.image_size), mode="bicubic", antialias=True)
        return [(IMAGE, images.numpy(), list(range(len(indices))))]
