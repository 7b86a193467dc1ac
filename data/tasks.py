"""The table of tasks: the labelled data of each task, and its parts."""

import argparse
import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data import registry
from data.annotated import AnnotatedWindows
from data.class_folders import ClassFolders
from data.csi import CsiFile, NtuFiHar, SyntheticCsi
from data.formats import is_hdf5_name, is_spectrogram_set, refuse_formats
from data.hdf5 import Hdf5Images, open_hdf5
from data.labelled import Part
from data.mathworks import MIXED, PROTOCOLS, MathWorksFrames
from data.mathworks_files import holds_frames
from data.spectrogram_set import SpectrogramSet
from data.splits import PARTS, RECORDING, Splits, load_splits, make_splits, sample_names
from data.synthetic import KINDS, SceneMaker, SyntheticScenes, scene_config
from radio.carriers import CLASS_NAMES
from radio.front_end import takes_iq
from radio.spectrogram import Spectrogram
from util.errors import UserError, warn
from util.files import write_json
from util.state import check_names

ROW_N_FFT = "row_n_fft"  # key of the samples of an FFT in the settings of rows of IQ


def add_label_arguments(parser):
    """The flags of labels and splits."""
    group = parser.add_argument_group("labels and splits")
    group.add_argument(
        "--classes",
        metavar="NAME,NAME",
        help=f"labels of annotations to learn, the background first; default the weights' or {','.join(CLASS_NAMES)}",
    )
    group.add_argument(
        "--protocol", choices=PROTOCOLS, help="MathWorks' frames to train and test on; default mixed"
    )
    group.add_argument(
        "--split", metavar="FILE", help="split.json of another run, to divide the data in the same way"
    )
    group.add_argument("--val_fraction", type=float, default=0.1, help="share of the samples for validation")
    group.add_argument(
        "--test_fraction", type=float, default=0.2, help="share of the samples for the final test"
    )
    group.add_argument(
        "--split_by", metavar="COLUMN", help="keep a column's groups together: recording, day, user, ..."
    )
    group.add_argument(
        "--test_groups", metavar="NAME,NAME", help="groups to test on; default: drawn at random"
    )
    group.add_argument(
        "--label_fraction", type=float, default=1.0, help="share of the training labels to use"
    )
    group.add_argument("--labels_per_class", type=int, help="training labels of each class to use")
    return group


@dataclass
class Labelled:
    """Opened data of a task: parts by name, and what a model needs to know about them."""

    parts: dict
    class_names: list
    front_end: Spectrogram
    settings: dict  # of the front end, for the checkpoint
    fresh: bool = False  # each epoch has new training samples

    @property
    def source(self):
        return self.parts["train"].source

    def save_split(self, path, seed):
        """Write the names of the samples in each part; see `data.splits`."""
        if len({id(part.source) for part in self.parts.values()}) == 1:
            Splits({name: part.indices for name, part in self.parts.items()}, seed).save(path, self.source)
            return
        write_json(path, {"seed": seed, "parts": self._names()}, indent=0)

    def _names(self):
        """Names of the samples by part."""
        names = {id(part.source): np.array(sample_names(part.source)) for part in self.parts.values()}
        return {name: names[id(part.source)][part.indices].tolist() for name, part in self.parts.items()}

    @functools.cached_property
    def fingerprint(self):
        """A digest of the names of the samples in each part; "" if each epoch has new samples."""
        return "" if self.fresh else hashlib.sha256(json.dumps(self._names()).encode()).hexdigest()

    def fit(self, saved=None):
        """Set the statistics of CSI sources: those `saved` in a checkpoint, else the training part's."""
        if not hasattr(self.source, "fit"):
            return
        if saved is None:
            self.source.fit(self.parts["train"].indices)
            saved = self.source.normalization()
        for part in self.parts.values():
            part.source.set_normalization(saved)
        self.settings["normalization"] = saved


def open_labelled(args, pretrained=None, on_device=False, classes=()):
    """Open the data of a task and divide it.

    Args:
        args: of a parser with `registry.add_data_arguments` and `add_label_arguments`, `task` and `seed`.
        pretrained: front-end settings of the pretrained weights, or None.
        on_device: make scenes on the training device.
        classes: names that the weights know, for annotations; `--classes` goes first.
    """
    if args.task != "segmentation" and len(args.data_path) != 1:
        raise UserError(f"--data_path: expected one path for --task {args.task}; found {len(args.data_path)}")
    opened = TASKS[args.task](args, pretrained, on_device, classes)
    if not takes_iq(opened.settings):
        registry.refuse_front_end(args, args.data_path[0])
    owner = f"--data_path {args.data_path[0]}"
    check_names(opened.class_names, owner, "two classes or more, of different printable names", least=2)
    source = opened.parts["train"].source if isinstance(opened.parts, dict) else opened.parts
    needs = {
        "set": (SyntheticScenes, "synthetic"),
        "protocol": (MathWorksFrames, "MathWorks' frames"),
        "classes": (AnnotatedWindows, "annotated recordings"),
    }
    for flag, (kind, what) in needs.items():
        if getattr(args, flag) and not isinstance(source, kind):
            raise UserError(f"--{flag}: expected {what} as --data_path; found {' '.join(args.data_path)}")
    if isinstance(opened.parts, dict):
        given = [f"--{name}" for name in ("split", "split_by", "test_groups") if getattr(args, name)]
        if given:
            raise UserError(
                f"{given[0]}: expected data that is not divided already; found {args.data_path[0]}"
            )
        return opened
    if args.split:
        splits = load_splits(args.split, source)
    else:
        groups = args.test_groups and args.test_groups.split(",")
        splits = make_splits(source, args.seed, args.val_fraction, args.test_fraction, args.split_by, groups)
    opened.parts = {name: Part(source, splits.parts[name]) for name in PARTS}
    return opened


def _whole(source):
    return Part(source, np.arange(len(source)))


def _segmentation(args, pretrained, on_device, classes=()):
    if len(args.data_path) == 1 and Path(args.data_path[0]).is_dir() and holds_frames(args.data_path[0]):
        size = _image_size(args, pretrained, default=None)
        source = MathWorksFrames(
            args.data_path[0], args.protocol or MIXED, size, args.test_fraction, args.seed
        )
        return _images(source, "mathworks")
    found = registry.find(args.data_path, registry.is_raw(args))
    kinds = (found.sets, found.recordings, found.presets)
    if found.images or sum(map(bool, kinds)) != 1 or max(len(found.sets), len(found.presets)) > 1:
        raise UserError(
            "--data_path: expected one spectrogram set, synthetic, annotated recordings or MathWorks' frames; "
            f"found {', '.join(map(str, args.data_path))}"
        )
    front_end = registry.front_end_for(found, args, pretrained)
    if found.presets:
        maker = SceneMaker(scene_config(found.presets[0], args.window_ms, args.set), args.seed)
        parts = {
            name: _whole(SyntheticScenes(maker, count, front_end, on_device, KINDS[name]))
            for name, count in _counts(args, 1).items()
        }
        return Labelled(parts, list(maker.config.classes), front_end, front_end.settings(), fresh=True)
    if found.recordings:
        classes = args.classes.split(",") if args.classes else list(classes or CLASS_NAMES)
        recordings = registry.recordings_of(found, args, annotated=True)
        return Labelled(
            AnnotatedWindows(recordings, front_end, classes), classes, front_end, front_end.settings()
        )
    return _set(found.sets[0], args.data_path[0], front_end, "masks")


def _counts(args, least):
    """Samples of each part: `--scenes` to train on, and shares of that number to validate and test on."""
    shares = (1.0, args.val_fraction, args.test_fraction)
    return {name: max(least, round(args.scenes * share)) for name, share in zip(PARTS, shares, strict=True)}


def _set(source, path, front_end, what):
    """A spectrogram set, which is then divided, or a folder with the sets train, val and test.

    Args:
        what: the targets, "masks" or "labels".
    """
    sources = {"train": source}
    if is_spectrogram_set(Path(path, "train")):
        there = [name for name in PARTS if is_spectrogram_set(Path(path, name))]
        if len(there) not in (1, len(PARTS)):
            raise UserError(
                f"{path}: expected the sets {', '.join(PARTS)}, or train alone; found {' and '.join(there)}"
            )
        # A set checks that its held-out set agrees with it.
        sources |= {name: SpectrogramSet(source.path, Path(path, name)).held_out for name in there[1:]}
    for one in sources.values():
        if getattr(one, what) is None:
            raise UserError(f"{one.path}: expected a spectrogram set with {what}.npy; found none")
        setattr(one, "labels" if what == "masks" else "masks", None)  # targets of another task
        paths = [str(line.get("path")) for line in one.metadata]
        one.groups = {RECORDING: np.array(paths)} if 1 < len(set(paths)) < len(paths) else {}
    parts = {name: _whole(one) for name, one in sources.items()} if len(sources) > 1 else source
    return Labelled(parts, source.class_names, front_end, front_end.settings())


def _image_size(args, pretrained, default=registry.DEFAULT_IMAGE_SIZE):
    """(rows, columns) for data of any size: the flag's, else the weights', else the default."""
    return registry.image_size(args) or tuple((pretrained or {}).get("image_size") or ()) or default


def _images(source, kind):
    """A source of images, which need no front end."""
    settings = {"kind": kind, "image_size": list(source.image_size)}
    return Labelled(source, source.class_names, Spectrogram(image_size=source.image_size), settings)


def _hdf5(path, args, pretrained):
    """Rows of an HDF5 file. A row of IQ is a window, and goes through the front end.

    The sample rate of rows is unknown, so a front end in milliseconds says nothing about their FFT.
    """
    source = open_hdf5(path)
    size = _image_size(args, pretrained)
    if isinstance(source, Hdf5Images):
        source.image_size = size
        return _images(source, "csi" if source.data == "csi" else "images")
    if args.window_ms is not None:
        raise UserError(
            f"--window_ms: expected none with {path}, whose rows of {source.num_samples} samples are the "
            f"windows; found {args.window_ms:g}"
        )
    theirs = pretrained or {}
    trained = theirs.get(ROW_N_FFT) if theirs.get("row_samples") == source.num_samples else None
    if args.n_fft and trained and args.n_fft != trained:
        raise UserError(
            f"--n_fft: expected {trained}, which the weights were trained with; found {args.n_fft}"
        )
    n_fft = args.n_fft or trained or source.default_n_fft
    if not 2 <= n_fft <= source.num_samples:
        raise UserError(
            f"--n_fft: expected 2 to {source.num_samples}, the samples in a row of {path}; found {n_fft}"
        )
    other = theirs.get("n_fft", theirs.get(ROW_N_FFT, n_fft))
    if other != n_fft:
        warn(
            f"{path}: rows of {source.num_samples} samples go through --n_fft {n_fft}; "
            f"the weights were trained with {other}"
        )
    source.image_size = size
    front_end = Spectrogram(n_fft, source.num_samples, size)  # at a sample rate of 1 Hz
    settings = {
        "kind": "iq_rows",
        "image_size": list(size),
        ROW_N_FFT: n_fft,
        "row_samples": source.num_samples,
    }
    return Labelled(source, source.class_names, front_end, settings)


def _sensing(args, pretrained, on_device, classes=()):
    [path] = args.data_path
    size = _image_size(args, pretrained)
    if path == registry.SYNTHETIC:
        sources = {
            name: SyntheticCsi(count, args.seed, KINDS[name], size)
            for name, count in _counts(args, 6).items()
        }
        opened = _images(sources["train"], "csi")
        opened.parts = {name: _whole(source) for name, source in sources.items()}
        return opened
    if not Path(path).exists():
        raise UserError(
            f"--data_path {path}: expected a folder of NTU-Fi HAR, a .npz of CSI or an .h5 file; found none"
        )
    if Path(path).is_file() and is_hdf5_name(path):
        return _hdf5(path, args, pretrained)
    refuse_formats(path, "a folder of NTU-Fi HAR, a .npz of CSI or one .h5 file")
    return _images(NtuFiHar(path, size) if Path(path).is_dir() else CsiFile(path, size), "csi")


def _classification(args, pretrained, on_device, classes=()):
    [path] = args.data_path
    if is_spectrogram_set(path) or is_spectrogram_set(Path(path, "train")):
        found = registry.find([path])
        return _set(found.sets[0], path, registry.front_end_for(found, args, pretrained), "labels")
    if Path(path).is_file() and is_hdf5_name(path):
        return _hdf5(path, args, pretrained)
    refuse_formats(path, "a folder for each class, a spectrogram set or one .h5 file")
    sized = argparse.Namespace(**vars(args) | {"input_size": _image_size(args, pretrained)})
    front_end = registry.front_end_for(registry.Found([], [], [], []), sized, pretrained, silent=True)
    source = ClassFolders(path, front_end, args.sample_rate, args.datatype, args.swap_iq)
    if source.holds_images:
        return _images(source, "images")
    registry.compare(front_end.settings(), pretrained)
    return Labelled(source, source.class_names, front_end, front_end.settings())


TASKS = {"segmentation": _segmentation, "sensing": _sensing, "classification": _classification}
HEADS = {"segmentation": "segmentation", "sensing": "classification", "classification": "classification"}
