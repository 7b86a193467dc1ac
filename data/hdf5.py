"""Labelled data in an HDF5 file: RadioML 2018.01A, and the caches that WavesFM's preprocessing writes.

- RadioML: `X` [N, samples, 2], I and Q; `Y` [N, classes], one-hot; `Z` [N, 1], SNR in dB. N is 2.5 million.
- WavesFM, images: `image` or `csi` [N, C, rows, columns], already normalized; `label` [N].
- WavesFM, IQ: `sample`, in later versions `iq`, [N, 2, antennas, samples]; `label` [N].

A data set `snr` [N] gives the SNR, `source_file` [N] the recording of a row. The file's attribute `labels`
names the classes: a JSON list. Rows are read when they are loaded. Each batch opens and closes the file:
forked workers share no handle, and pickles hold none.
"""

import contextlib
import json
from pathlib import Path

import h5py
import numpy as np
import torch
from torch.nn import functional as F

from data.formats import HDF5_EXPECTED
from data.labelled import ClassSource
from data.sampling import IMAGE, IQ
from data.splits import RECORDING
from util.errors import UserError, warn
from util.files import not_read

RADIOML = ("X", "Y")
IMAGES, SAMPLES = ("image", "csi"), ("sample", "iq")
LAYOUTS = (RADIOML, *((name, "label") for name in IMAGES + SAMPLES))

# The order of the columns of `Y`. The order of classes.txt, which came with the data, is wrong.
RADIOML_CLASSES = tuple(
    "OOK 4ASK 8ASK BPSK QPSK 8PSK 16PSK 32PSK 16APSK 32APSK 64APSK 128APSK 16QAM 32QAM 64QAM 128QAM 256QAM "  # noqa: SIM905
    "AM-SSB-WC AM-SSB-SC AM-DSB-WC AM-DSB-SC FM GMSK OQPSK".split()
)

BLOCK_ROWS = 2**16  # of one-hot labels, read at a time
SLOW_CHUNK_BYTES = 2**24  # of a compressed chunk, which is decompressed to read one row
MOST_NAMES = 8  # in a message

# What h5py raises on damaged files.
ERRORS = (OSError, KeyError, RuntimeError, ValueError, TypeError)


@contextlib.contextmanager
def opened(path):
    """An `h5py.File` to read."""
    try:
        # File systems mounted read-only have no locks.
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except ERRORS as error:
        raise UserError(f"{path}: expected an HDF5 file; found {not_read(path, error)}") from error


def open_hdf5(path):
    """An `Hdf5Iq` or `Hdf5Images`, by the data sets in the file."""
    with opened(path) as file:
        found = []
        file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
        data = next((data for data, labels in LAYOUTS if data in found and labels in found), None)
        if data is None:
            shown = ", ".join(found[:MOST_NAMES]) + (", ..." if len(found) > MOST_NAMES else "")
            raise UserError(f"{path}: expected the data sets {HDF5_EXPECTED}; found {shown or 'none'}")
        return (Hdf5Images if data in IMAGES else Hdf5Iq)(path, data, file)


class Hdf5Source(ClassSource):
    """Rows of a file. Labels and groups, "snr" in dB and "recording", are read once.

    A subclass has `SHAPES`, the shapes of rows that it reads, for messages, and `_fits(shape)`.

    Args:
        path: the file; data: name of the data set of rows; file: the open file.
    """

    def __init__(self, path, data, file):
        self.path, self.data = Path(path), data
        self.is_radioml = data == RADIOML[0]
        rows = file[data]
        self.row_shape = rows.shape[1:]
        if rows.dtype.kind not in "fi" or 0 in rows.shape or not self._fits(rows.shape):
            self._fail(
                f"numbers {self.SHAPES[self.is_radioml]} in {data}", f"{rows.dtype} {list(rows.shape)}"
            )
        chunk = rows.chunks or (1,)
        if rows.compression and chunk[0] > 1 and np.prod(chunk) * rows.dtype.itemsize > SLOW_CHUNK_BYTES:
            one = "x".join(map(str, (1, *self.row_shape)))
            warn(
                f"{path}: {chunk[0]} rows are decompressed to read one; "
                f"h5repack -l {data}:CHUNK={one} makes a faster file"
            )
        names = self._listed_names(file)
        self.labels, count = (
            self._one_hot(file["Y"]) if self.is_radioml else self._class_ids(file["label"], names)
        )
        if names and (len(names) != count or len(set(names)) < count):
            self._fail(f"{count} names that differ in the attribute labels", ", ".join(names))
        if not names and self.is_radioml and count == len(RADIOML_CLASSES):
            names = RADIOML_CLASSES
        self.class_names = list(names or (f"class {number}" for number in range(count)))
        if len(rows) != len(self.labels):
            self._fail(f"a label for each of the {len(rows)} rows of {data}", len(self.labels))
        self.groups = {}
        snr = "Z" if self.is_radioml else "snr"
        if snr in file:
            self.groups["snr"] = self._numbers(file[snr])
        if "source_file" in file:
            recordings = np.asarray(file["source_file"].asstr()[()])
            if 1 < len(set(recordings.tolist())) < len(recordings) == len(rows):
                self.groups[RECORDING] = recordings

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
                self._fail(
                    f"a single 1 in each row of Y, the others 0, as in row {first + row}", block[row].tolist()
                )
            labels[first : first + BLOCK_ROWS] = block.argmax(axis=1)
        return labels, flags.shape[1]

    def _class_ids(self, ids, names):
        """(class of each row, number of classes)."""
        if (
            ids.dtype.kind not in "iu"
            or not (ids.ndim == 1 or (ids.ndim == 2 and ids.shape[1] == 1))
            or not len(ids)
        ):
            found = f"{ids.dtype} {list(ids.shape)}"
            self._fail("label of integers [N], a class for each row (regression is no task here)", found)
        labels = ids[()].ravel().astype(np.int64)
        count = len(names) if names else int(labels.max()) + 1
        if labels.min() < 0 or labels.max() >= count or count < 2:
            self._fail(f"labels from 0 to {max(count, 2) - 1}", f"{labels.min()} to {labels.max()}")
        return labels, count

    def _listed_names(self, file):
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
        """A number for each row: [N], int64 if all are whole."""
        if values.dtype.kind not in "iuf" or values.size != len(self.labels):
            name = values.name.strip("/")
            self._fail(f"{len(self.labels)} numbers in {name}", f"{values.dtype} {list(values.shape)}")
        found = values[()].ravel()
        whole = found.dtype.kind == "f" and np.isfinite(found).all() and (found == np.round(found)).all()
        return found.astype(np.int64) if whole else found

    def sample_name(self, index):
        return f"row {index}"

    def describe(self, index, rng, epoch=0):
        about = {"name": f"{self.path.name} row {index}", "path": str(self.path)}
        if "snr" in self.groups:
            about["snr_db"] = float(self.groups["snr"][index])
        return about

    def read(self, indices):
        """Rows as stored: float32 [n, ...], in the order of the indices."""
        rows = np.empty((len(indices), *self.row_shape), np.float32)
        with opened(self.path) as file:
            data = file[self.data]
            if data.shape != (len(self), *self.row_shape):
                expected = f"{self.data} of {[len(self), *self.row_shape]}, as when it was opened"
                self._fail(expected, list(data.shape))
            for place in np.argsort(indices).tolist():  # in the order of the file
                data.read_direct(rows, np.s_[int(indices[place])], np.s_[place])
        if not np.isfinite(rows).all():
            bad = np.flatnonzero(~np.isfinite(rows).reshape(len(rows), -1).all(axis=1))[0]
            self._fail(f"finite values in {self.data}", f"NaN or infinity in row {int(indices[bad])}")
        return rows


class Hdf5Iq(Hdf5Source):
    """Rows of IQ of one length and unknown sample rate. Antennas are channels of an image."""

    SHAPES = ("[N, 2, antennas, samples]", "[N, samples, 2]")

    def __init__(self, path, data, file):
        super().__init__(path, data, file)
        self.antennas, self.num_samples = (1, self.row_shape[0]) if self.is_radioml else self.row_shape[1:]
        self.in_chans = self.antennas

    def _fits(self, shape):
        if self.is_radioml:
            return len(shape) == 3 and shape[2] == 2 and shape[1] > 1
        return len(shape) == 4 and shape[1] == 2 and shape[3] > 1

    @property
    def default_n_fft(self):
        """Samples of an FFT: a power of two, about an eighth of a row, to resolve both time and frequency."""
        return 2 ** max(1, int(np.log2(max(1, self.num_samples / 8))))

    @property
    def sample_bytes(self):
        return 8 * self.antennas * self.num_samples

    def load(self, index, rng, epoch=0):
        """(IQ, complex64 [samples]), or (`antenna_decibels`, float32 [antennas, samples, 2])."""
        [(kind, rows, _)] = self.load_many([index], None, epoch)
        return kind, rows[0].view(np.complex64)[:, 0] if kind == IQ else rows[0]

    def load_many(self, indices, rng_of, epoch):
        rows = self.read(indices)
        if not self.is_radioml:
            rows = np.moveaxis(rows, 1, 3)  # (n, antennas, samples, 2)
            rows = rows[:, 0] if self.antennas == 1 else rows
        rows = np.ascontiguousarray(rows)
        return [(IQ if self.antennas == 1 else antenna_decibels, rows, list(range(len(indices))))]

    def describe(self, index, rng, epoch=0):
        return super().describe(index, rng) | {"num_samples": self.num_samples}


def antenna_decibels(values, front_end, device):
    """IQ of several antennas, float32 [B, antennas, samples, 2], to dB [B, antennas, F, T]."""
    iq = torch.as_tensor(values).to(device, non_blocking=True)
    return front_end.decibels(iq.flatten(0, 1)).unflatten(0, iq.shape[:2])[:, :, 0]


class Hdf5Images(Hdf5Source):
    """Images, already normalized. They are resized (bicubic, antialiased) to `image_size`, to be set."""

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
