"""Recordings or images in a folder for each class, and images named by their class."""

import re
from collections import Counter
from pathlib import Path

import numpy as np

from data.annotated import TiledRecordings
from data.formats import IMAGE_SUFFIXES
from data.images import PICTURES, ImageFiles
from data.labelled import ClassSource
from data.splits import PARTS
from radio.recordings import SAMPLE_SUFFIXES, find_recordings, is_recording_file
from util.errors import UserError, warn
from util.files import walk

RECORDINGS = "recordings"
KINDS = {".tif": "TIFF", ".tiff": "TIFF", ".npy": ".npy spectrograms"} | dict.fromkeys(
    PICTURES, "PNG or JPEG"
)

# What follows the class in a file's name: a number that stands alone and all after it, or the last digits.
AFTER_LABEL = re.compile(r"[ _-]+\(?\d+\)?(?![A-Za-z0-9]).*|[ _.-]*\d+$")


class ClassFolders(ClassSource):
    """Reads `path/{class}/**`, or `path/{train,val,test}/{class}/**`, where `val` or `test` may be missing.

    Without class folders, images are named by their class (see `class_of_name`), and the classes are printed.

    All samples are of one kind: recordings, whose windows all have the class (see
    `data.annotated.TiledRecordings`), or PNG, JPEG, TIFF or .npy images (see `data.images.ImageFiles`).
    Classes are sorted by name. Opening reads metadata and headers only.

    Args:
        front_end: of the windows; images get its image size.
        sample_rate_hz, datatype, swap_iq: of recordings, see `find_recordings`.
    """

    def __init__(self, path, front_end, sample_rate_hz=None, datatype=None, swap_iq=False):
        self.path = Path(path)
        parts = _part_folders(self.path)
        others = Counter()  # suffixes of files that are no samples
        if all(_holds_images_alone(folder) for folder in parts.values()):
            files = {part: _files(folder, others) for part, folder in parts.items()}
            self.class_names, files = _by_name(self.path, files)
        else:
            self.class_names = _class_names(parts)
            files = {
                (part, name): _files(folder / name, others)
                for part, folder in parts.items()
                for name in self.class_names
            }
        if others:
            found = ", ".join(
                f"{suffix or 'no suffix'} ({count})" for suffix, count in sorted(others.items())
            )
            warn(f"{path}: files that are neither recordings nor images are left out: {found}")
        self.holds_images = self._kind(files) != RECORDINGS
        if self.holds_images:
            self._samples = ImageFiles([one for own in files.values() for one in own], front_end.image_size)
            self.groups, file_of_sample = {}, np.arange(len(self._samples))
        else:
            given = sample_rate_hz, datatype, swap_iq
            files = {place: find_recordings(own, *given) for place, own in files.items()}
            self._samples = TiledRecordings([one for own in files.values() for one in own], front_end)
            self.groups, file_of_sample = self._samples.groups, self._samples.number
        self.in_chans, self.image_size = self._samples.in_chans, self._samples.image_size

        # Files are listed by part, then class: the place of a (part, class) gives both.
        place = np.repeat(np.arange(len(files)), [len(own) for own in files.values()])[file_of_sample]
        if empty := sorted(set(range(len(files))) - set(place.tolist())):
            folder = self._folder(*list(files)[empty[0]])
            raise UserError(f"{folder}: expected recordings of at least an FFT of the front end; found none")
        part, self.labels = np.divmod(place, len(self.class_names))
        if None not in parts:
            self._parts = {name: np.flatnonzero(part == number) for number, name in enumerate(parts)}

    def _folder(self, part, name):
        return self.path / (part or "") / name

    def _kind(self, files):
        kinds = {}
        for place, own in files.items():
            if not own:
                raise UserError(
                    f"{self._folder(*place)}: expected recordings ({' '.join(SAMPLE_SUFFIXES)}) or images "
                    f"({' '.join(IMAGE_SUFFIXES)}); found none"
                )
            for file in own:
                kinds.setdefault(RECORDINGS if is_recording_file(file) else KINDS[file.suffix.lower()], file)
        if len(kinds) > 1:
            found = ", ".join(f"{kind} ({file.relative_to(self.path)})" for kind, file in kinds.items())
            raise UserError(f"{self.path}: expected samples of one kind; found {found}")
        return next(iter(kinds))

    def load(self, index, rng, epoch=0):
        return self._samples.load(index, None, epoch)

    @property
    def sample_bytes(self):
        return self._samples.sample_bytes

    def load_many(self, indices, rng_of, epoch):
        return self._samples.load_many(indices, rng_of, epoch)

    def describe(self, index, rng, epoch=0):
        about = self._samples.describe(index, None, epoch)
        folder = Path(about["path"]).parent.relative_to(self.path)
        return {**about, "name": (folder / about["name"]).as_posix()}


def _entries(folder):
    """(names of folders, names of samples) in a folder, sorted."""
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
        folders = [entry.name for entry in entries if entry.is_dir()]
        return folders, [entry.name for entry in entries if _is_sample(entry) and entry.name not in folders]
    except OSError as error:
        raise UserError(
            f"{folder}: expected a folder with a folder for each class; {error.strerror}"
        ) from error


def _part_folders(path):
    """{part: folder}, or {None: path} without folders of parts."""
    names, _ = _entries(path)
    if not set(names) & set(PARTS):
        return {None: path}
    if names == ["train"] or "train" not in names or set(names) - set(PARTS):
        found = ", ".join(names)
        raise UserError(
            f"{path}: expected folders of classes, or train with val, test or both; found {found}"
        )
    return {name: path / name for name in PARTS if name in names}


def _class_names(parts):
    """The classes, which all parts share."""
    names = {}
    for part, folder in parts.items():
        names[part], loose = _entries(folder)
        if names[part] and loose:
            warn(
                f"{folder}: {len(loose)} files beside the folders have no class and are left out: {loose[0]}, ..."
            )
    first, *others = parts
    for part in others:
        for ours, theirs in ((first, part), (part, first)):
            if extra := sorted(set(names[ours]) - set(names[theirs])):
                found = f"found no folder {', '.join(extra)}"
                raise UserError(f"{parts[theirs]}: expected the classes of {ours}; {found}")
    if len(names[first]) < 2:
        found = ", ".join(names[first]) or "none"
        raise UserError(f"{parts[first]}: expected folders of two classes or more; found {found}")
    return names[first]


def _holds_images_alone(folder):
    folders, samples = _entries(folder)
    return not folders and any(not is_recording_file(folder / name) for name in samples)


def class_of_name(stem):
    """The class in a file's name: all before the first number that stands alone, or before the last digits.

    AM_001, bluetooth-12, wifi3, LTE_NR_12, QAM16-7_b: AM, bluetooth, wifi, LTE_NR, QAM16.
    """
    return AFTER_LABEL.sub("", stem)


def _by_name(path, files):
    """(class names, {(part, class): files}) of images that are named by their class; `files`: by part.

    If every file would be a class of its own, the class is the text before the first underscore.
    """
    every = [one for own in files.values() for one in own]
    class_of = {file: class_of_name(file.stem) for file in every}
    if len(set(class_of.values())) == len(every):
        class_of = {file: file.stem.partition("_")[0] for file in every}
    counts = Counter(class_of.values())
    if not 2 <= len(counts) < len(every) or "" in counts:
        found = ", ".join(file.name for file in every[:3]) + ", ..." * (len(every) > 3)
        raise UserError(
            f"{path}: expected folders of two classes or more, or images named by class and number, like "
            f"AM_001.png; found {len(every)} images of {len(counts)} classes: {found}"
        )
    names = sorted(counts)
    print(f"{path}: classes by file name: " + ", ".join(f"{name} ({counts[name]})" for name in names))
    found = {
        (part, name): [file for file in own if class_of[file] == name]
        for part, own in files.items()
        for name in names
    }
    for (part, name), own in found.items():
        if not own:
            raise UserError(
                f"{path / part}: expected images of each class of {path}; found none named {name}"
            )
    return names, found


def _is_sample(path):
    return path.name.lower().endswith(SAMPLE_SUFFIXES + IMAGE_SUFFIXES)


def _files(folder, others):
    """The samples below a folder, sorted; `others` counts the suffixes of other files."""

    def refuse(error):
        raise UserError(f"{folder}: expected a folder that can be read; {error}") from error

    paths = list(map(Path, walk(folder, refuse)[1]))
    others.update(path.suffix for path in paths if not _is_sample(path))
    return list(filter(_is_sample, paths))
