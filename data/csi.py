"""Wi-Fi channel state information (CSI) with classes: NTU-Fi HAR, `.npz` files, and scenes of `radio.scenes.csi_room`.

An image has an antenna in each channel, subcarriers as rows, lowest first, and packets as columns.
"""

import re
import zipfile
import zlib
from pathlib import Path

import numpy as np
import scipy.io
import torch
from torch.nn import functional as F

from data.sampling import FITTING, IMAGE, Source, stream
from radio.rng import CSI, Stream
from radio.scenes import csi_room
from util.errors import UserError
from util.files import not_read

DEFAULT_IMAGE_SIZE = (224, 224)

# A standard deviation below this is that of a constant: a subcarrier that nobody reports, say.
_CONSTANT = 1e-6


class CsiSource(Source):
    """What the sources below have in common. Samples have a class, and are standardised with statistics that `fit` takes.

    `groups` names arrays of a value per sample, for splits by session or person; `parts()` gives the split that the data
    set publishes, {"train": indices, "test": indices}, or None. A subclass has `labels` (int64 [N]) or its own `target`,
    and `_values(index)`: float32 [C, F, T] before standardisation, of any T.
    """

    task = "classification"
    _pooled_axes = (0, 1, 2)  # what statistics are taken over

    _mean = _std = None

    def __init__(self, class_names, image_size):
        self.class_names = list(class_names)
        self.groups = {}
        self.image_size = tuple(image_size)

    def __len__(self):
        return len(self.labels)

    def target(self, index, epoch=0):
        """Class of a sample: its place in `class_names`."""
        return int(self.labels[index])

    def parts(self):
        return None

    def load(self, index, rng, epoch=0):
        """(IMAGE, float32 [C, F, T]) of `image_size`, standardised.

        Raises:
            UserError: the sample is damaged.
            RuntimeError: neither `fit` nor `set_normalization` was called.
        """
        if self._mean is None:
            raise RuntimeError("expected fit() or set_normalization() before load()")
        values = torch.from_numpy((self._values(index) - self._mean) / self._std)[None]  # (1, C, F, T)
        return IMAGE, F.interpolate(values, size=self.image_size, mode="bilinear", antialias=True)[0].numpy()

    def fit(self, indices):
        """Take mean and standard deviation from these samples, those to train on, and from no others."""
        if len(indices) == 0:
            raise ValueError(f"expected samples to fit to: {indices=}")
        count, total, squares = 0, 0.0, 0.0
        for index in indices:
            values = self._values(int(index)).astype(np.float64)
            count += int(np.prod([values.shape[axis] for axis in self._pooled_axes]))
            total = total + values.sum(axis=self._pooled_axes, keepdims=True)
            squares = squares + np.square(values).sum(axis=self._pooled_axes, keepdims=True)
        mean = total / count
        self._set(mean, np.sqrt(np.maximum(squares / count - mean**2, 0)))

    def _set(self, mean, std):
        self._mean = np.asarray(mean, np.float32)
        self._std = np.where(std > _CONSTANT, std, 1).astype(np.float32)

    def normalization(self):
        """The statistics as plain values: {"mean", "std"}, lists [C or 1][F or 1][1]."""
        if self._mean is None:
            raise RuntimeError("expected fit() or set_normalization() before normalization()")
        return {"mean": self._mean.tolist(), "std": self._std.tolist()}

    def set_normalization(self, settings):
        """Use the statistics that `normalization` gave, instead of `fit`.

        Raises:
            UserError: they are of other antennas or subcarriers.
        """
        mean, std = (np.array(settings[key], np.float64) for key in ("mean", "std"))
        expected = tuple(1 if axis in self._pooled_axes else size for axis, size in enumerate(self._values(0).shape))
        if mean.shape != expected or std.shape != expected:
            raise UserError(f"{self._described()}: expected a model of CSI of {list(expected)} statistics, like this data; "
                            f"found {list(mean.shape)}")  # fmt: skip
        self._set(mean, std)

    def _described(self):
        return "CSI"


# NTU-Fi HAR


class NtuFiHar(CsiSource):
    """NTU-Fi HAR as SenseFi publishes it: amplitudes in dB of 3 antennas × 114 subcarriers, 2000 packets in 5 s.

    Reads `train_amp/<class>/*.mat` and `test_amp/<class>/*.mat` (also `train`, `test`), one folder of class folders, or
    files without class folders that are named for their class (`box12.mat`). A `.mat` has `CSIamp`, 342 × 2000; of the 2000
    packets every fourth is taken, as SenseFi does. Files are read when they are loaded: 1 ms each, 17 ms if compressed.

    Mean and standard deviation are over all antennas and subcarriers of the samples to train on. SenseFi's loader uses
    42.32 and 4.98 for its training part.

    Raises:
        UserError: no such folder, no files, a class without files in a part, a name that is no class.
    """

    KEY = "CSIamp"
    ANTENNAS, SUBCARRIERS, PACKETS = 3, 114, 500
    in_chans = ANTENNAS

    def __init__(self, folder, image_size=DEFAULT_IMAGE_SIZE):
        super().__init__(csi_room.ACTIVITIES, image_size)
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UserError(f"{folder}: expected a folder of NTU-Fi HAR; found none")
        self.paths, labels, self._parts = [], [], None
        folders = self._part_folders()
        for name, part in folders.items():
            found = self._files(part)
            if name is not None:
                self._parts = self._parts or {}
                self._parts[name] = np.arange(len(self.paths), len(self.paths) + len(found))
            self.paths += [path for path, _ in found]
            labels += [label for _, label in found]
        self.labels = np.array(labels, np.int64)

    def _part_folders(self):
        """{"train": folder, "test": folder}, or {None: folder}."""
        for ending in ("_amp", ""):
            folders = {name: self.folder / f"{name}{ending}" for name in ("train", "test")}
            there = [path.is_dir() for path in folders.values()]
            if all(there):
                return folders
            if any(there):
                names = [path.name for path in folders.values()]
                raise UserError(f"{self.folder}: expected the folders {' and '.join(names)}; found only "
                                f"{names[there.index(True)]}")  # fmt: skip
        return {None: self.folder}

    def _files(self, folder):
        """[(path, class)] of a part, sorted by class folder and name."""
        entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
        class_folders = [entry for entry in entries if entry.is_dir()]
        files = []
        if class_folders:
            for class_folder in class_folders:
                label = self._class(class_folder, class_folder.name)
                files += [(path, label) for path in sorted(class_folder.iterdir()) if _is_mat(path)]
        else:
            for path in filter(_is_mat, entries):
                files.append((path, self._class(path, re.match("[a-z]*", path.stem.lower())[0])))
        if not files:
            raise UserError(f"{folder}: expected .mat files, in class folders or named like box12.mat; found none")
        missing = [name for number, name in enumerate(self.class_names) if number not in {label for _, label in files}]
        if missing:
            raise UserError(f"{folder}: expected .mat files of all classes {', '.join(self.class_names)}; found none of "
                            f"{', '.join(missing)}")  # fmt: skip
        return files

    def _class(self, path, name):
        if name not in self.class_names:
            raise UserError(f"{path}: expected the name of a class ({', '.join(self.class_names)}); found {path.name}")
        return self.class_names.index(name)

    def parts(self):
        return self._parts

    def describe(self, index, rng, epoch=0):
        return {"name": str(self.paths[index].relative_to(self.folder)), "path": str(self.paths[index])}

    def _values(self, index):
        path = self.paths[index]
        values = _read_mat(path, self.KEY)
        rows = self.ANTENNAS * self.SUBCARRIERS
        if values.ndim != 2 or len(values) != rows or values.shape[1] % self.PACKETS or not values.size:
            raise UserError(f"{path}: expected {self.KEY} of {rows} × {4 * self.PACKETS}; found {list(values.shape)}")
        values = values[:, :: values.shape[1] // self.PACKETS]
        if values.dtype.kind not in "fiu" or not np.isfinite(values).all():
            raise UserError(f"{path}: expected finite numbers in {self.KEY}; found NaN, infinity or {values.dtype}")
        return np.ascontiguousarray(values, np.float32).reshape(self.ANTENNAS, self.SUBCARRIERS, self.PACKETS)

    def _described(self):
        return self.folder


def _is_mat(path):
    return path.suffix.lower() == ".mat" and not path.name.startswith(".")


def _read_mat(path, key):
    """An array of a MATLAB file.

    Raises:
        UserError: the file is damaged, of version 7.3, or has no such variable.
    """
    try:
        contents = scipy.io.loadmat(path, variable_names=[key])
        if key in contents:
            return contents[key]
        names = [name for name, _, _ in scipy.io.whosmat(path)]
    except NotImplementedError as error:
        raise UserError(f"{path}: expected a MATLAB file of version 5 to 7.2; found version 7.3 (HDF5): "
                        "save it again with -v7") from error  # fmt: skip
    # scipy reports a damaged file in many ways: what its reader happens to trip over.
    except Exception as error:
        raise UserError(f"{path}: expected a MATLAB file; found {not_read(path, error)}") from error
    raise UserError(f"{path}: expected the variable {key}; found {', '.join(names) or 'none'}")


# CSI in .npz files


class CsiFile(CsiSource):
    """CSI amplitudes, not in dB, of an `.npz` file.

    Its arrays: `x` [N, subcarriers, packets] or [N, antennas, subcarriers, packets]; `label` [N], text or integers; where
    given `classes`, the names in the order of their numbers (without it: the labels that occur, sorted); `length` [N], how
    many packets of a sample are valid, the rest being padding; every other one-dimensional array of N is a group.

    Each sample is divided by its root mean square: a receiver's automatic gain makes its level a matter of that gain, which
    differs from day to day. Then each subcarrier of each antenna gets the mean and standard deviation of the samples to
    train on: the filters of an ESP32 make its middle subcarriers twice as strong as the outer ones, which would otherwise
    be most of what an image shows. A sample's own mean per subcarrier is kept: it says where things are.

    Raises:
        UserError: the file is damaged, lacks an array, or its arrays do not agree or are not finite.
    """

    _pooled_axes = (2,)

    def __init__(self, path, image_size=DEFAULT_IMAGE_SIZE):
        super().__init__((), image_size)
        self.path = Path(path)
        arrays = _read_npz(self.path)
        for name in ("x", "label"):
            if name not in arrays:
                self._fail(f"the arrays x and label; found {', '.join(arrays) or 'none'}")
        x = arrays.pop("x")
        if x.ndim not in (3, 4) or x.dtype.kind not in "fiu" or 0 in x.shape:
            self._fail(f"x of numbers [N, (antennas,) subcarriers, packets]; found {x.dtype} {list(x.shape)}")
        if not np.isfinite(x).all():
            bad = int(np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(axis=1))[0])
            self._fail(f"finite values in x; found NaN or infinity in sample {bad}")
        self._x = x[:, None] if x.ndim == 3 else x  # (N, C, F, T)
        self.in_chans = self._x.shape[1]
        classes = arrays.pop("classes", None)
        columns = {name: values for name, values in arrays.items() if values.ndim}
        for name, values in columns.items():
            if values.shape != (len(x),):
                self._fail(f"{name} of the length of x, [{len(x)}]; found {list(values.shape)}")
        self.class_names, self.labels = self._classes(columns.pop("label"), classes)
        self._length = self._lengths(columns.pop("length", None))
        self.groups = columns

    def _fail(self, what):
        raise UserError(f"{self.path}: expected {what}")

    def _classes(self, label, classes):
        """(names, class of each sample)."""
        if label.dtype.kind not in "iuU":
            self._fail(f"label of text or integers; found {label.dtype}")
        if classes is None:
            names, labels = np.unique(label, return_inverse=True)
            return [str(name) for name in names], labels.astype(np.int64)
        names = [str(name) for name in classes.ravel()]
        if len(set(names)) < len(names):
            self._fail(f"classes that differ; found {', '.join(names)}")
        if label.dtype.kind == "U":
            unknown = sorted(set(label.tolist()) - set(names))
            if unknown:
                self._fail(f"labels among classes ({', '.join(names)}); found {', '.join(unknown)}")
            return names, np.array([names.index(value) for value in label.tolist()], np.int64)
        if label.min() < 0 or label.max() >= len(names):
            self._fail(f"labels from 0 to {len(names) - 1}, one for each of classes; found {label.min()} to {label.max()}")
        return names, label.astype(np.int64)

    def _lengths(self, length):
        packets = self._x.shape[3]
        if length is None:
            return np.full(len(self._x), packets)
        if length.dtype.kind not in "iu" or length.min() < 1 or length.max() > packets:
            self._fail(f"length of integers from 1 to {packets}; found {length.dtype} {length.min()} to {length.max()}")
        return length.astype(np.int64)

    def describe(self, index, rng, epoch=0):
        return {"name": f"{self.path.name} [{index}]", "path": str(self.path),
                **{name: values[index].item() for name, values in self.groups.items()}}  # fmt: skip

    def _values(self, index):
        values = self._x[index, :, :, : self._length[index]].astype(np.float32)
        rms = float(np.sqrt(np.square(values, dtype=np.float64).mean()))
        return values / np.float32(rms) if rms > 0 else values

    def _described(self):
        return self.path


def _read_npz(path):
    """All arrays of an `.npz`, by name.

    Raises:
        UserError: the file is missing, damaged, or holds pickled objects.
    """
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise ValueError("a single array")
        with file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: expected an .npz of numbers and text; found a damaged file or objects: {error}") from error


# Scenes of the ray model


class SyntheticCsi(CsiSource):
    """A moving person by the ray model of `radio.scenes.csi_room`; each sample has its own room, person and receiver.

    Like NTU-Fi HAR: 3 antennas, 114 subcarriers of 40 MHz, 500 packets in 5 s, the same six classes, amplitude in dB. At
    100 packets a second movement beyond 50 Hz of Doppler shift (running, at 5 GHz) is aliased, as it is there.
    A sample depends on (seed, kind, index) alone; all epochs hold the same. Classes take turns.

    Args:
        count: number of samples.
        seed: decides them.
        kind: tells sets of one seed apart (training, held out, ...), an integer.
    """

    in_chans = 3
    FITTED = 256  # samples that `fit` makes, of all it is given: levels differ by 2 dB, the mean of so many by 0.1 dB

    def __init__(self, count, seed, kind=0, image_size=DEFAULT_IMAGE_SIZE):
        super().__init__(csi_room.ACTIVITIES, image_size)
        self.seed, self.kind = seed, kind
        self.labels = np.arange(count) % len(self.class_names)

    def scene(self, index):
        """The `radio.scenes.csi_room.CsiScene` of a sample."""
        return csi_room.draw(self.class_names[self.target(index)], Stream(self.seed, CSI + self.kind, index))

    def fit(self, indices):
        super().fit(stream(self.seed, FITTING).generator().permutation(indices)[: self.FITTED])

    def describe(self, index, rng, epoch=0):
        scene = self.scene(index)
        return {"name": f"CSI scene {index} of seed {self.seed}", "center_freq_hz": scene.carrier_hz, "snr_db": scene.snr_db}

    def _values(self, index):
        return csi_room.render(self.scene(index)).numpy()
