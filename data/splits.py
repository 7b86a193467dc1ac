"""Training, validation and test part of labelled data: drawn once, by a seed, and kept by the samples' names.

A source is asked for what it has of: `groups`, a dict of arrays of a value per sample, of which "recording" says what must
stay together; `parts()`, the parts that the data set itself publishes, {"train", "test" and maybe "val": indices}, or None;
`labels` or, where its `task` is "classification", `target`, the classes to stratify by.
"""

import hashlib
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from radio.rng import FEWER, SPLIT, Stream
from util.errors import UserError
from util.files import write_json

FORMAT = 1
PARTS = ("train", "val", "test")
RECORDING = "recording"


SHOWN = 4  # names in a message


@dataclass(frozen=True, eq=False)
class Splits:
    """`parts`: "train", "val" and "test" to sorted int64 indices into a source."""

    parts: dict
    seed: int

    def save(self, path, source):
        """Write the samples' names by part as JSON, whole or not at all.

        Raises:
            UserError: the file cannot be written.
        """
        names = sample_names(source)
        content = {
            "format": FORMAT,
            "seed": self.seed,
            "num_samples": len(names),
            "sha256": _hash(names),
            "parts": {part: [names[index] for index in indices] for part, indices in self.parts.items()},
        }
        try:
            write_json(path, content, indent=0)
        except OSError as error:
            raise UserError(f"{path}: expected a file that can be written; {error}") from error


def load_splits(path, source):
    """The `Splits` that `Splits.save` wrote for the same samples, in whatever order they are now.

    Raises:
        UserError: no such file, a damaged one, or one of other samples.
    """
    try:
        content = json.loads(Path(path).read_text())
        found, seed, sha256, listed = (content[key] for key in ("format", "seed", "sha256", "parts"))
        every = [name for part in PARTS for name in listed[part]]
        whole = all(isinstance(name, str) for name in every) and all(listed.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"--split {path}: expected a split.json of this program; {type(error).__name__}: {error}") from error
    if found != FORMAT or not whole or set(listed) != set(PARTS):
        raise UserError(f"--split {path}: expected format {FORMAT} with samples in each of {', '.join(PARTS)}; found "
                        f"format {found} with {len(every)} in {', '.join(listed)}")  # fmt: skip
    if repeated := [name for name, count in Counter(every).items() if count > 1]:
        raise UserError(f"--split {path}: expected each sample once; found twice or more: {_few(repeated)}")
    names = sample_names(source)
    place = {name: index for index, name in enumerate(names)}
    if unknown := [name for name in every if name not in place]:
        raise UserError(f"--split {path}: expected names of samples of --data_path; found {len(unknown)} others: "
                        f"{_few(unknown)}")  # fmt: skip
    if sha256 != _hash(names):
        raise UserError(f"--split {path}: expected the data it was made of, {content.get('num_samples')} samples; found "
                        f"{len(names)}, not the same ones")  # fmt: skip
    return Splits({part: np.sort(np.array([place[name] for name in listed[part]], np.int64)) for part in PARTS}, seed)


def make_splits(source, seed, val_fraction, test_fraction, split_by=None, test_groups=None):
    """Divide a source. Whole recordings go to one part where the source knows of recordings.

    The test part is, the first of these that there is: the samples of `test_groups`; some groups of the column `split_by`;
    what the data set publishes; a share of all. Validation is what the data set publishes, else a share of what is left: of
    whole groups of the column if a group or more make up that share, to the nearest, else of recordings or samples.
    Draws are stratified by class: each class is in each part if it has as many samples (or recordings) as there are parts.

    Args:
        val_fraction, test_fraction: share of what is drawn from; unused where nothing is.
        split_by: name of a column of `source.groups`, which goes before published parts.
        test_groups: values in that column, as text.

    Raises:
        UserError: no such column or group, a part would be empty, or training would lack a class.
    """
    labels, groups = classes_of(source), getattr(source, "groups", {})
    whole = groups.get(RECORDING)
    if split_by is None:
        if test_groups:
            raise UserError(f"--test_groups {','.join(test_groups)}: expected --split_by with it; found none")
        published = (source.parts() if hasattr(source, "parts") else None) or {}
        left = np.asarray(published.get("train", np.arange(len(source))))
        known = {part: np.asarray(published[part]) for part in ("test", "val") if part in published}
        column = None
    else:
        if split_by not in groups:
            columns = ", ".join(groups) or "it has none"
            raise UserError(f"--split_by: expected a column of the data ({columns}); found {split_by}")
        column, known, left = np.asarray(groups[split_by]).astype(str), {}, np.arange(len(source))
        if test_groups:
            is_test = _in_groups(column, split_by, test_groups)
            known, left = {"test": np.flatnonzero(is_test)}, np.flatnonzero(~is_test)

    fractions = {part: fraction for part, fraction in (("test", test_fraction), ("val", val_fraction)) if part not in known}
    shares = ", ".join(f"--{part}_fraction {fraction:g}" for part, fraction in fractions.items())
    if not all(fraction > 0 for fraction in fractions.values()) or sum(fractions.values()) >= 1:
        raise UserError(f"{shares}: expected shares above 0 that leave some to train on")
    what = "sample" if whole is None else RECORDING
    if column is not None:
        remaining = len(np.unique(column[left]))
        if "test" in fractions or 0 < round(val_fraction * remaining) < remaining:
            what, whole = split_by, column
    units, drawn = _draw(left, fractions, whole, labels, seed)
    parts = {part: np.sort(np.asarray(indices, np.int64)) for part, indices in {**drawn, **known}.items()}

    sizes = {part: len(parts[part]) for part in PARTS}
    if not all(sizes.values()):
        found = ", ".join(f"{size} in {part}" for part, size in sizes.items())
        raise UserError(f"{shares or 'published parts'}: expected samples in train, val and test; found {found}, drawn by "
                        f"{what} out of {units}")  # fmt: skip
    if labels is not None and (lacking := sorted(set(labels.tolist()) - set(labels[parts["train"]].tolist()))):
        names = _few([source.class_names[label] for label in lacking])
        raise UserError(f"{shares or 'published parts'}: expected samples of each class in train; found none of {names}")
    return Splits({part: parts[part] for part in PARTS}, seed)


def has_masks(source):
    """Whether a labelled source has a class for each cell; otherwise it has one for each sample."""
    task = getattr(source, "task", None)
    return task == "segmentation" or (task is None and getattr(source, "labels", None) is None)


def classes_of(source):
    """The class of each sample, int64 [N], or None where samples have masks."""
    if has_masks(source):
        return None
    labels = getattr(source, "labels", None)
    return np.array([source.target(index) for index in range(len(source))] if labels is None else labels, np.int64)


def fewer_labels(indices, targets=None, fraction=None, per_class=None, seed=0, class_names=None):
    """Some of the training samples, the others' labels being unknown: fewer of them are always among more of them.

    Args:
        indices: int [n].
        targets: class of each of `indices`, int [n]: every class keeps its share, and one sample or more. None: of masks.
        fraction: share to keep, or
        per_class: number of samples of each class.
        class_names: for messages.

    Returns:
        int64, sorted.

    Raises:
        UserError: a number out of range, both are given, or a class has fewer samples than `per_class`.
    """
    fraction = 1 if fraction is None else fraction
    if not 0 < fraction <= 1:
        raise UserError(f"--label_fraction: expected a number above 0, 1 at most; found {fraction:g}")
    if per_class is not None and fraction < 1:
        raise UserError(f"--labels_per_class: expected it without --label_fraction; found {per_class} and {fraction:g}")
    if per_class is not None and targets is None:
        raise UserError("--labels_per_class: expected samples with a class each; found masks")
    if per_class is not None and per_class < 1:
        raise UserError(f"--labels_per_class: expected 1 or more; found {per_class}")
    indices = np.asarray(indices, np.int64)
    targets = np.zeros(len(indices), np.int64) if targets is None else np.asarray(targets, np.int64)
    kept = []
    for label in np.unique(targets):
        own = np.sort(indices[targets == label])
        count = max(1, round(fraction * len(own))) if per_class is None else per_class
        if count > len(own):
            name = class_names[label] if class_names is not None else f"class {label}"
            raise UserError(f"--labels_per_class: expected at most {len(own)}, all there are of {name}; found {count}")
        kept.append(Stream(seed, FEWER, int(label)).generator().permutation(own)[:count])
    return np.sort(np.concatenate(kept)) if kept else indices


def sample_names(source):
    """A name for each sample that no other has, the same whatever folder the data lies in.

    It is `describe`'s, with the folder, below that which all have in common, and the time at which the sample starts added
    where names repeat, then a number. A source that is slow to describe has `sample_name(index)`.
    """
    if hasattr(source, "sample_name"):
        about = [{"name": source.sample_name(index)} for index in range(len(source))]
    else:
        about = [source.describe(index, None) for index in range(len(source))]
    names = [str(one["name"]) for one in about]
    if len(set(names)) == len(names):
        return names
    places = relative_paths([one.get("path") or "." for one in about])
    folders = [os.path.dirname(place) for place in places]
    names = _told_apart(names, [f"{folder}/{name}" if folder else name for folder, name in zip(folders, names, strict=True)])
    starts = [f" at {one['start_s']:.9f} s" if one.get("start_s") is not None else "" for one in about]
    names = _told_apart(names, [name + start for name, start in zip(names, starts, strict=True)])
    before, numbered = Counter(), []
    for name in names:
        before[name] += 1
        numbered.append(f"{name} #{before[name]}")
    return _told_apart(names, numbered)


def relative_paths(paths):
    """Paths as seen from the folder that all of them lie in, with forward slashes."""
    paths = [os.path.abspath(path) for path in paths]
    root = os.path.commonpath({os.path.dirname(path) for path in paths}) if paths else ""
    seen = {path: Path(os.path.relpath(path, root)).as_posix() for path in set(paths)}
    return [seen[path] for path in paths]


def _told_apart(names, longer):
    """The longer name for those that repeat."""
    count = Counter(names)
    return [more if count[name] > 1 else name for name, more in zip(names, longer, strict=True)]


def _hash(names):
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


def _few(names):
    return ", ".join(map(str, names[:SHOWN])) + (", ..." if len(names) > SHOWN else "")


def _in_groups(column, split_by, test_groups):
    """Which samples are of the groups: bool [N]."""
    there = np.unique(column).tolist()
    if unknown := [group for group in test_groups if group not in there]:
        raise UserError(f"--test_groups: expected groups of the column {split_by} ({_few(there)}); found {_few(unknown)}")
    if set(there) == set(test_groups):
        raise UserError(f"--test_groups: expected to leave a group of the column {split_by} to train on; found all of "
                        f"{_few(there)}")  # fmt: skip
    return np.isin(column, test_groups)


def _draw(left, fractions, whole, labels, seed):
    """Draw parts out of the samples `left`, by shares of units: of samples, or of groups that stay whole.

    Returns:
        number of units; dict of the parts' names and "train" to indices.
    """
    unit = np.arange(len(left)) if whole is None else np.unique(np.asarray(whole)[left], return_inverse=True)[1]
    units = int(unit.max()) + 1 if len(unit) else 0
    stratum = np.zeros(units, np.int64)
    if labels is not None and units:
        lowest, highest = np.full(units, labels.max()), np.zeros(units, np.int64)
        np.minimum.at(lowest, unit, labels[left])
        np.maximum.at(highest, unit, labels[left])
        if np.array_equal(lowest, highest):  # groups of several classes, such as days, can only be drawn as they are
            stratum = lowest
    part_of = np.zeros(units, np.int64)  # 0: train
    for label in np.unique(stratum):
        order = Stream(seed, SPLIT, int(label)).generator().permutation(np.flatnonzero(stratum == label))
        counts = [max(1, round(fraction * len(order))) for fraction in fractions.values()]
        while counts and sum(counts) >= len(order):  # training has the first claim, validation the last
            counts[max(range(len(counts)), key=lambda number: (counts[number], number))] -= 1
        part_of[order[: sum(counts)]] = np.repeat(np.arange(1, len(counts) + 1), counts)
    return units, {name: left[part_of[unit] == number] for number, name in enumerate(("train", *fractions))}
