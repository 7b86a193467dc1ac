"""Wi-Fi channel state information (CSI) with classes: NTU-Fi HAR, `.npz` files, and synthetic scenes.

An image has an antenna in each channel, subcarriers as rows (lowest first) and packets as columns.
"""

import re
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from data import matlab
from data.labelled import ClassSource
from data.sampling import FITTING, IMAGE, stream
from radio.rng import CSI, Stream
from radio.scenes import csi_body, csi_room
from util.errors import UserError

DEFAULT_IMAGE_SIZE = (224, 224)

# A smaller standard deviation is that of a constant, for example of a subcarrier that is not reported.
CONSTANT_STD = 1e-6


# Their squares fit into float32.
MOST = 1e18


def _usable(values):
    return np.abs(values) < MOST  # NaN is not


def _odd(values):
    return "NaN or infinity" if not np.isfinite(values).all() else f"numbers beyond {MOST:g}"


class CsiSource(ClassSource):
    """The base of the sources below. Samples are standardised with statistics that `fit` takes.

    A subclass has `_values(index)`: float32 [C, F, T] before standardisation, of any T; `owner` names it.
    """

    owner = "CSI"
    _pooled_axes = (0, 1, 2)  # axes that share one mean and standard deviation
    _mean = _std = None

    def __init__(self, class_names, image_size):
        self.class_names = list(class_names)
        self.image_size = tuple(image_size)

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
        """Take mean and standard deviation from these samples; pass training samples only."""
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
        self._std = np.where(std > CONSTANT_STD, std, 1).astype(np.float32)

    def normalization(self):
        """The statistics as plain values: {"mean", "std"}, lists [C or 1][F or 1][1]."""
        if self._mean is None:
            raise RuntimeError("expected fit() or set_normalization() before normalization()")
        return {"mean": self._mean.tolist(), "std": self._std.tolist()}

    def set_normalization(self, settings):
        """Use the statistics that `normalization` returned, instead of `fit`."""
        mean, std = (np.array(settings[key], np.float64) for key in ("mean", "std"))
        expected = tuple(
            1 if axis in self._pooled_axes else size for axis, size in enumerate(self._values(0).shape)
        )
        if mean.shape != expected or std.shape != expected:
            raise UserError(
                f"{self.owner}: expected a model of CSI of {list(expected)} statistics, like this data; "
                f"found {list(mean.shape)}"
            )
        self._set(mean, std)


class NtuFiHar(CsiSource):
    """NTU-Fi HAR as SenseFi publishes it: dB of 3 antennas × 114 subcarriers, 2000 packets in 5 s.

    Reads `train_amp/<class>/*.mat` and `test_amp/<class>/*.mat` (also `train`, `test`), one folder of class
    folders, or files that are named by their class (`box12.mat`). A `.mat` has `CSIamp`, 342 × 2000. As in
    SenseFi, every fourth packet is taken. Reading a file takes 1 ms, 17 ms if compressed.

    Mean and standard deviation are over all antennas and subcarriers of the training samples. SenseFi's
    loader uses 42.32 and 4.98 for its training part.
    """

    KEY = "CSIamp"
    ANTENNAS, SUBCARRIERS, PACKETS = 3, 114, 500
    in_chans = ANTENNAS

    def __init__(self, folder, image_size=DEFAULT_IMAGE_SIZE):
        super().__init__(csi_body.ACTIVITIES, image_size)
        self.folder = self.owner = Path(folder)
        if not self.folder.is_dir():
            raise UserError(f"{folder}: expected a folder of NTU-Fi HAR; found none")
        found = {name: self._files(part) for name, part in self._part_folders().items()}
        files = [file for part in found.values() for file in part]
        self.paths = [path for path, _ in files]
        self.labels = np.array([label for _, label in files], np.int64)
        if None not in found:
            train = len(found["train"])
            self._parts = {"train": np.arange(train), "test": np.arange(train, len(files))}

    def _part_folders(self):
        """{"train": folder, "test": folder}, or {None: folder}."""
        for ending in ("_amp", ""):
            folders = {name: self.folder / f"{name}{ending}" for name in ("train", "test")}
            present = [path.name for path in folders.values() if path.is_dir()]
            if len(present) == 2:
                return folders
            if present:
                raise UserError(
                    f"{self.folder}: expected the folders train{ending} and test{ending}; found only {present[0]}"
                )
        return {None: self.folder}

    def _files(self, folder):
        """[(path, class)] of a part, sorted by class folder and name."""
        entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
        class_folders, files = [entry for entry in entries if entry.is_dir()], []
        for class_folder in class_folders:
            label = self._class(class_folder, class_folder.name)
            files += [(path, label) for path in sorted(class_folder.iterdir()) if _is_mat(path)]
        if not class_folders:
            names = {path: re.match("[a-z]*", path.stem.lower())[0] for path in filter(_is_mat, entries)}
            files = [(path, self._class(path, name)) for path, name in names.items()]
        if not files:
            raise UserError(
                f"{folder}: expected .mat files, in class folders or named like box12.mat; found none"
            )
        labels = {label for _, label in files}
        if missing := [name for number, name in enumerate(self.class_names) if number not in labels]:
            raise UserError(
                f"{folder}: expected .mat files of all classes {', '.join(self.class_names)}; found none of "
                f"{', '.join(missing)}"
            )
        return files

    def _class(self, path, name):
        if name not in self.class_names:
            raise UserError(
                f"{path}: expected the name of a class ({', '.join(self.class_names)}); found {path.name}"
            )
        return self.class_names.index(name)

    def describe(self, index, rng, epoch=0):
        return {"name": str(self.paths[index].relative_to(self.folder)), "path": str(self.paths[index])}

    def _values(self, index):
        path, rows = self.paths[index], self.ANTENNAS * self.SUBCARRIERS
        values = matlab.numbers(path, self.KEY)
        if values.ndim != 2 or len(values) != rows or values.shape[1] % self.PACKETS:
            raise UserError(
                f"{path}: expected {self.KEY} of {rows} × {4 * self.PACKETS}; found {list(values.shape)}"
            )
        values = values[:, :: values.shape[1] // self.PACKETS]
        if not _usable(values).all():
            raise UserError(f"{path}: expected finite numbers in {self.KEY}; found {_odd(values)}")
        return np.ascontiguousarray(values, np.float32).reshape(self.ANTENNAS, self.SUBCARRIERS, self.PACKETS)


def _is_mat(path):
    return path.suffix.lower() == ".mat" and not path.name.startswith(".")


class CsiFile(CsiSource):
    """CSI amplitudes, not in dB, of an `.npz` file with the arrays

    - `x` [N, subcarriers, packets] or [N, antennas, subcarriers, packets];
    - `label` [N], text or integers; and optionally:
    - `classes`: names in the order of their numbers; else the labels that occur, sorted;
    - `length` [N]: valid packets of a sample; the others are padding;
    - any other one-dimensional array of N: a column of `groups`.

    Each sample is divided by its root mean square, because automatic gain differs from day to day. Each
    subcarrier of each antenna is standardised on its own: an ESP32's filters double the amplitude of the
    middle subcarriers. A sample keeps its own mean per subcarrier, which says where things are.
    """

    _pooled_axes = (2,)

    def __init__(self, path, image_size=DEFAULT_IMAGE_SIZE):
        super().__init__((), image_size)
        self.path = self.owner = Path(path)
        arrays = _read_npz(self.path)
        if not {"x", "label"} <= arrays.keys():
            self._fail(f"the arrays x and label; found {', '.join(arrays) or 'none'}")
        x = arrays.pop("x")
        if x.ndim not in (3, 4) or x.dtype.kind not in "fiu" or 0 in x.shape:
            self._fail(f"x of numbers [N, (antennas,) subcarriers, packets]; found {x.dtype} {list(x.shape)}")
        if not _usable(x).all():
            bad = int(np.flatnonzero(~_usable(x).reshape(len(x), -1).all(axis=1))[0])
            self._fail(f"finite values in x; found {_odd(x[bad])} in sample {bad}")
        self._x = x[:, None] if x.ndim == 3 else x  # (N, C, F, T)
        self.in_chans = self._x.shape[1]
        classes = arrays.pop("classes", None)
        columns = {name: values for name, values in arrays.items() if values.ndim}
        for name, values in columns.items():
            if values.shape != (len(x),):
                self._fail(f"{name} of the length of x, [{len(x)}]; found {list(values.shape)}")
        self.class_names, self.labels = self._classes(columns.pop("label"), classes)
        packets = x.shape[-1]
        self._length = length = columns.pop("length", np.full(len(x), packets))
        if length.dtype.kind not in "iu" or length.min() < 1 or length.max() > packets:
            self._fail(
                f"length of integers from 1 to {packets}; found {length.dtype} {length.min()} to {length.max()}"
            )
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
            if unknown := sorted(set(label.tolist()) - set(names)):
                self._fail(f"labels among classes ({', '.join(names)}); found {', '.join(unknown)}")
            return names, np.array([names.index(value) for value in label.tolist()], np.int64)
        if label.min() < 0 or label.max() >= len(names):
            self._fail(
                f"labels from 0 to {len(names) - 1}, one for each of classes; found {label.min()} to {label.max()}"
            )
        return names, label.astype(np.int64)

    def describe(self, index, rng, epoch=0):
        columns = {name: values[index].item() for name, values in self.groups.items()}
        return {"name": f"{self.path.name} [{index}]", "path": str(self.path), **columns}

    def _values(self, index):
        values = self._x[index, :, :, : self._length[index]].astype(np.float32)
        rms = float(np.sqrt(np.square(values, dtype=np.float64).mean()))
        return values / np.float32(rms) if rms > 0 else values


def _read_npz(path):
    """All arrays of an `.npz`, by name."""
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise ValueError("a single array")
        with file:
            return dict(file)
    except Exception as error:  # a damaged archive ends in errors of all kinds, of memory too
        raise UserError(
            f"{path}: expected an .npz of numbers and text; found a damaged file or objects: {error}"
        ) from error


class SyntheticCsi(CsiSource):
    """A moving person by the ray model of `radio.scenes.csi_room`; the room and receiver change as well.

    As in NTU-Fi HAR: 3 antennas, 114 subcarriers of 40 MHz, 500 packets in 5 s, six classes, amplitude in dB.
    At 100 packets/s, Doppler shifts beyond 50 Hz (running, at 5 GHz) alias, as in that data. A sample depends
    on (seed, kind, index) alone, in every epoch. Classes take turns.

    Args:
        kind: an integer that tells sets of one seed apart (training, held out, ...).
    """

    in_chans = 3
    FITTED = 256  # samples that `fit` uses: levels differ by 2 dB, the mean of 256 by 0.1 dB

    def __init__(self, count, seed, kind=0, image_size=DEFAULT_IMAGE_SIZE):
        super().__init__(csi_body.ACTIVITIES, image_size)
        self.seed, self.kind = seed, kind
        self.labels = np.arange(count) % len(self.class_names)

    def scene(self, index):
        """The `radio.scenes.csi_room.CsiScene` of a sample."""
        return csi_room.draw(self.class_names[self.target(index)], Stream(self.seed, CSI + self.kind, index))

    def fit(self, indices):
        super().fit(stream(self.seed, FITTING).generator().permutation(indices)[: self.FITTED])

    def describe(self, index, rng, epoch=0):
        scene = self.scene(index)
        name = f"CSI scene {index} of seed {self.seed}"
        return {"name": name, "center_freq_hz": scene.carrier_hz, "snr_db": scene.snr_db}

    def _values(self, index):
        return csi_room.render(self.scene(index)).numpy()
