"""Samples in a folder for each class: recordings, pictures or arrays; and pictures that are named by their class."""

import os
import re
from collections import Counter
from pathlib import Path

import numpy as np

from data.annotated import TiledRecordings
from data.formats import IMAGE_SUFFIXES
from data.images import PICTURES, ImageFiles
from data.sampling import Source
from data.splits import PARTS
from radio.recordings import SAMPLE_SUFFIXES, find_recordings, is_recording_file
from util.errors import UserError, warn

RECORDINGS = "recordings"
KINDS = {".tif": "TIFF", ".tiff": "TIFF", ".npy": ".npy spectrograms"} | dict.fromkeys(PICTURES, "PNG or JPEG")

# What follows the label in a file's name: a number that stands alone and all after it, or the digits at the end.
AFTER_LABEL = re.compile(r"[ _-]+\(?\d+\)?(?![A-Za-z0-9]).*|[ _.-]*\d+$")


class ClassFolders(Source):
    """Reads `path/{class}/*`, or `path/{train,val,test}/{class}/*`, of which `val` or `test` may be missing.

    Images may also lie side by side, without folders of classes, where a file's name begins with its class: see
    `class_of_name`. The classes that were found are printed with their numbers of images.

    Samples are of one kind, and lie in a class's folder or below it: recordings, of which every window has the class
    (see `data.annotated.TiledRecordings`); or images: PNG, JPEG, TIFF or .npy spectrograms, one a sample (see
    `data.images.ImageFiles`). Classes are sorted by name. Opening reads metadata and headers only.

    Args:
        front_end: of the windows; its image size is that of images too.
        sample_rate_hz, datatype: of recordings that do not say.

    Raises:
        UserError: there are no two classes, a class has no samples, parts differ in classes, samples differ in kind, or a
            file is damaged.
    """

    task = "classification"

    def __init__(self, path, front_end, sample_rate_hz=None, datatype=None):
        self.path = Path(path)
        parts = _part_folders(self.path)
        others = Counter()  # suffixes of what is no sample
        if all(_holds_images_alone(folder) for folder in parts.values()):
            self.class_names, files = _by_name(self.path, {part: _files(parts[part], others) for part in parts})
        else:
            self.class_names = _class_names(parts)
            files = {(part, name): _files(folder / name, others)
                     for part, folder in parts.items() for name in self.class_names}  # fmt: skip
        if others:
            found = ", ".join(f"{suffix or 'no suffix'} ({count})" for suffix, count in sorted(others.items()))
            warn(f"{path}: files that are neither recordings nor images are left out: {found}")
        kind = self._kind(files)
        self.holds_images = kind != RECORDINGS
        if kind == RECORDINGS:
            found = {place: find_recordings(own, sample_rate_hz, datatype) for place, own in files.items()}
            self._samples = TiledRecordings([one for own in found.values() for one in own], front_end)
            per_sample, self.groups = self._samples.number, self._samples.groups
        else:
            found = files
            self._samples = ImageFiles([file for own in found.values() for file in own], front_end.image_size)
            per_sample, self.groups = np.arange(len(self._samples)), {}
        self.in_chans, self.image_size = self._samples.in_chans, self._samples.image_size
        place = np.repeat(np.arange(len(found)), [len(own) for own in found.values()])[per_sample]  # of a sample in `found`
        if empty := sorted(set(range(len(found))) - set(place.tolist())):
            folder = self._folder(*list(found)[empty[0]])
            raise UserError(f"{folder}: expected recordings of at least {front_end.n_fft} samples; found none")
        self.labels = place % len(self.class_names)
        part = place // len(self.class_names)
        self._parts = None if None in parts else {name: np.flatnonzero(part == i) for i, name in enumerate(parts)}

    def _folder(self, part, name):
        return self.path / (part or "") / name

    def _kind(self, files):
        """What kind the samples are of, of (part, class) -> files."""
        kinds = {}
        for place, own in files.items():
            if not own:
                raise UserError(f"{self._folder(*place)}: expected recordings ({' '.join(SAMPLE_SUFFIXES)}) or images "
                                f"({' '.join(IMAGE_SUFFIXES)}); found none")  # fmt: skip
            for file in own:
                kinds.setdefault(_kind(file), file)
        if len(kinds) > 1:
            found = ", ".join(f"{kind} ({file.relative_to(self.path)})" for kind, file in kinds.items())
            raise UserError(f"{self.path}: expected samples of one kind; found {found}")
        return next(iter(kinds))

    def __len__(self):
        return len(self._samples)

    def load(self, index, rng, epoch=0):
        return self._samples.load(index, None, epoch)

    @property
    def sample_bytes(self):
        return self._samples.sample_bytes

    def load_many(self, indices, rng_of, epoch):
        return self._samples.load_many(indices, rng_of, epoch)

    def target(self, index, epoch=0):
        """Class of a sample: its place in `class_names`."""
        return int(self.labels[index])

    def describe(self, index, rng, epoch=0):
        about = self._samples.describe(index, None, epoch)
        folder = Path(about["path"]).parent.relative_to(self.path)
        return {**about, "name": (folder / about["name"]).as_posix()}

    def parts(self):
        """{"train", "val", "test": indices} of the folders that there are, or None."""
        return self._parts


def _entries(folder):
    """Names of the folders in a folder, and of the samples beside them, sorted."""
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
        folders = [entry.name for entry in entries if entry.is_dir()]
        return folders, [entry.name for entry in entries if _is_sample(entry) and entry.name not in folders]
    except OSError as error:
        raise UserError(f"{folder}: expected a folder with a folder for each class; {error.strerror}") from error


def _part_folders(path):
    """Folders of classes by part; None is the part where there are none."""
    names, _ = _entries(path)
    if not set(names) & set(PARTS):
        return {None: path}
    if names == ["train"] or "train" not in names or set(names) - set(PARTS):
        raise UserError(f"{path}: expected folders of classes, or train with val, test or both; found {', '.join(names)}")
    return {name: path / name for name in PARTS if name in names}


def _class_names(parts):
    """The classes, which all parts have."""
    names = {}
    for part, folder in parts.items():
        names[part], loose = _entries(folder)
        if names[part] and loose:
            warn(f"{folder}: {len(loose)} files beside the folders are of no class, and left out: {loose[0]}, ...")
    first, *others = parts
    for part in others:
        for ours, theirs in ((first, part), (part, first)):
            if extra := sorted(set(names[ours]) - set(names[theirs])):
                raise UserError(f"{parts[theirs]}: expected the classes of {ours}; found no folder {', '.join(extra)}")
    if len(names[first]) < 2:
        found = ", ".join(names[first]) or "none"
        raise UserError(f"{parts[first]}: expected folders of two classes or more; found {found}")
    return names[first]


def _holds_images_alone(folder):
    """Whether images, and no folders, lie in a folder."""
    folders, samples = _entries(folder)
    return not folders and any(not is_recording_file(folder / name) for name in samples)


def class_of_name(stem):
    """The class that a file's name begins with: all before the first number that stands alone, else before the last digits.

    AM_001, bluetooth-12, wifi3, LTE_NR_12, 802.11ax_3, QAM16-7_b: AM, bluetooth, wifi, LTE_NR, 802.11ax, QAM16.
    """
    return AFTER_LABEL.sub("", stem)


def _by_name(path, files):
    """(class names, {(part, class): files}) of images that are named by their class; `files`: by part.

    Where numbers tell every file from every other, the class is what comes before the first underscore.
    """
    every = [file for own in files.values() for file in own]
    class_of = {file: class_of_name(file.stem) for file in every}
    if len(set(class_of.values())) == len(every):
        class_of = {file: file.stem.partition("_")[0] for file in every}
    counts = Counter(class_of.values())
    if not 2 <= len(counts) < len(every) or "" in counts:
        found = ", ".join(file.name for file in every[:3]) + (", ..." if len(every) > 3 else "")
        raise UserError(f"{path}: expected folders of two classes or more, or images named by class and number, like "
                        f"AM_001.png; found {len(every)} images of {len(counts)} classes: {found}")  # fmt: skip
    names = sorted(counts)
    print(f"{path}: classes by file name: " + ", ".join(f"{name} ({counts[name]})" for name in names))
    found = {(part, name): [file for file in own if class_of[file] == name] for part, own in files.items() for name in names}
    for (part, name), own in found.items():
        if not own:
            raise UserError(f"{path / part}: expected images of each class of {path}; found none named {name}")
    return names, found


def _is_sample(path):
    return path.name.lower().endswith(SAMPLE_SUFFIXES + IMAGE_SUFFIXES)


def _files(folder, others):
    """The samples of a class, sorted."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(parent, name)
            if _is_sample(path) and not name.startswith("."):
                found.append(path)
            elif not name.startswith("."):
                others[path.suffix] += 1
    return found


def _kind(path):
    return RECORDINGS if is_recording_file(path) else KINDS[path.suffix.lower()]
