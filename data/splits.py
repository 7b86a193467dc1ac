"""Training, validation and test part of labelled data: drawn by a seed, and saved by the samples' names.

A source may have `groups`, a dict of columns [N], where "recording" keeps samples together; `parts()`, the
published parts {"train", "test" and maybe "val": indices} or None; and `labels`, or `target` for `task`
"classification", the classes to stratify by.
"""

import hashlib
import itertools
import os
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from radio.rng import FEWER, SPLIT, Stream
from util.errors import UserError, few
from util.files import parse_json, write_json

FORMAT = 1
PARTS = ("train", "val", "test")
RECORDING = "recording"


@dataclass(frozen=True, eq=False)
class Splits:
    """`parts`: {"train", "val", "test": sorted int64 indices into a source}."""

    parts: dict
    seed: int

    def save(self, path, source):
        """Write the samples' names by part as JSON, atomically; UserError if the file cannot be written."""
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
    """The `Splits` that `Splits.save` wrote for the same samples, in any order."""
    try:
        content = parse_json(Path(path).read_text("utf-8"))
        found, seed, sha256, listed = (content[key] for key in ("format", "seed", "sha256", "parts"))
        every = [name for part in PARTS for name in listed[part]]
        whole = all(isinstance(name, str) for name in every) and all(listed.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"--split {path}: expected a split.json of this program; {what}") from error

    def refuse(expected, what):
        raise UserError(f"--split {path}: expected {expected}; found {what}")

    if found != FORMAT or not whole or set(listed) != set(PARTS):
        what = f"format {found} with {len(every)} in {', '.join(listed)}"
        refuse(f"format {FORMAT} with samples in each of {', '.join(PARTS)}", what)
    if repeated := [name for name, count in Counter(every).items() if count > 1]:
        refuse("each sample once", f"twice or more: {few(repeated)}")
    names = sample_names(source)
    place = {name: index for index, name in enumerate(names)}
    if unknown := [name for name in every if name not in place]:
        refuse("names of samples of --data_path", f"{len(unknown)} others: {few(unknown)}")
    if sha256 != _hash(names):
        expected = f"the data it was made of, {content.get('num_samples')} samples"
        refuse(expected, f"{len(names)}, not the same ones")
    return Splits(
        {part: np.sort(np.array([place[name] for name in listed[part]], np.int64)) for part in PARTS}, seed
    )


def make_splits(source, seed, val_fraction, test_fraction, split_by=None, test_groups=None):
    """Divide a source. Recordings stay whole if the source has them.

    The test part is the first of these that applies: the samples of `test_groups`; drawn groups of the column
    `split_by`; the published part; a drawn share. The validation part is the published one, else a drawn
    share of the rest: whole groups of the column if it rounds to at least one, else recordings or samples.
    Draws are stratified: a class with as many samples (or recordings) as there are parts is in every part.

    Args:
        val_fraction, test_fraction: shares to draw; unused for parts that are not drawn.
        split_by: name of a column of `source.groups`; overrides published parts.
        test_groups: values in that column, as text.
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

    fractions = {
        part: fraction
        for part, fraction in (("test", test_fraction), ("val", val_fraction))
        if part not in known
    }
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
        expected = f"{shares or 'published parts'}: expected samples in train, val and test"
        raise UserError(f"{expected}; found {found}, drawn by {what} out of {units}")
    if labels is not None and (
        lacking := sorted(set(labels.tolist()) - set(labels[parts["train"]].tolist()))
    ):
        names = few([source.class_names[label] for label in lacking])
        raise UserError(
            f"{shares or 'published parts'}: expected samples of each class in train; found none of {names}"
        )
    return Splits({part: parts[part] for part in PARTS}, seed)


def has_masks(source):
    """Whether a labelled source has a class for each cell, not for each sample."""
    task = getattr(source, "task", None)
    return task == "segmentation" or (task is None and getattr(source, "labels", None) is None)


def classes_of(source):
    """The class of each sample, int64 [N], or None for masks."""
    if has_masks(source):
        return None
    labels = getattr(source, "labels", None)
    return np.array(
        [source.target(index) for index in range(len(source))] if labels is None else labels, np.int64
    )


def fewer_labels(indices, targets=None, fraction=None, per_class=None, seed=0, class_names=None):
    """The training samples whose labels are used. A smaller choice is a subset of a larger one.

    Args:
        indices: int [n].
        targets: class of each of `indices`, int [n], or None for masks. Each class keeps one sample or more.
        fraction: share to keep.
        per_class: samples of each class to keep, instead of `fraction`.
        class_names: for messages.

    Returns:
        int64, sorted.
    """
    fraction = 1 if fraction is None else fraction
    if not 0 < fraction <= 1:
        raise UserError(f"--label_fraction: expected a number above 0, 1 at most; found {fraction:g}")
    if per_class is not None and fraction < 1:
        raise UserError(
            f"--labels_per_class: expected it without --label_fraction; found {per_class} and {fraction:g}"
        )
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
            raise UserError(
                f"--labels_per_class: expected at most {len(own)}, all there are of {name}; found {count}"
            )
        kept.append(Stream(seed, FEWER, int(label)).generator().permutation(own)[:count])
    return np.sort(np.concatenate(kept)) if kept else indices


def sample_names(source):
    """A unique name for each sample, the same wherever the data lies.

    The name in `describe`; where names repeat, the folder below the common one is added, then the start time,
    then a number. A source that is slow to describe has `sample_name(index)`.
    """
    name = getattr(source, "sample_name", None)
    about = [{"name": name(index)} if name else source.describe(index, None) for index in range(len(source))]
    names = [str(one["name"]) for one in about]
    if len(set(names)) == len(names):
        return names
    places = relative_paths([one.get("path") or "." for one in about])
    folders = [os.path.dirname(place) for place in places]
    names = _told_apart(
        names, [f"{folder}/{name}" if folder else name for folder, name in zip(folders, names, strict=True)]
    )
    starts = [f" at {one['start_s']:.9f} s" if one.get("start_s") is not None else "" for one in about]
    names = _told_apart(names, map(str.__add__, names, starts))
    numbers = defaultdict(lambda: itertools.count(1))
    return _told_apart(names, [f"{name} #{next(numbers[name])}" for name in names])


def relative_paths(paths):
    """Paths relative to their common folder, with forward slashes."""
    paths = [os.path.abspath(path) for path in paths]
    root = os.path.commonpath({os.path.dirname(path) for path in paths}) if paths else ""
    seen = {path: Path(os.path.relpath(path, root)).as_posix() for path in set(paths)}
    return [seen[path] for path in paths]


def _told_apart(names, longer):
    """The longer name for each name that repeats."""
    count = Counter(names)
    return [more if count[name] > 1 else name for name, more in zip(names, longer, strict=True)]


def _hash(names):
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


def _in_groups(column, split_by, test_groups):
    """Whether each sample is in the test groups: bool [N]."""
    there = np.unique(column).tolist()
    if unknown := [group for group in test_groups if group not in there]:
        raise UserError(
            f"--test_groups: expected groups of the column {split_by} ({few(there)}); found {few(unknown)}"
        )
    if set(there) == set(test_groups):
        expected = f"expected to leave a group of the column {split_by} to train on"
        raise UserError(f"--test_groups: {expected}; found all of {few(there)}")
    return np.isin(column, test_groups)


def _draw(left, fractions, whole, labels, seed):
    """Draw parts from the samples `left`, by shares of units: samples, or groups that stay whole.

    Returns:
        (number of units, {part or "train": indices}).
    """
    unit = (
        np.arange(len(left)) if whole is None else np.unique(np.asarray(whole)[left], return_inverse=True)[1]
    )
    units = int(unit.max()) + 1 if len(unit) else 0
    stratum = np.zeros(units, np.int64)
    if labels is not None and units:
        lowest, highest = np.full(units, labels.max()), np.zeros(units, np.int64)
        np.minimum.at(lowest, unit, labels[left])
        np.maximum.at(highest, unit, labels[left])
        if np.array_equal(lowest, highest):  # groups of several classes, such as days, are not stratified
            stratum = lowest
    part_of = np.zeros(units, np.int64)  # 0: train
    for label in np.unique(stratum):
        order = Stream(seed, SPLIT, int(label)).generator().permutation(np.flatnonzero(stratum == label))
        counts = [max(1, round(fraction * len(order))) for fraction in fractions.values()]
        while counts and sum(counts) >= len(
            order
        ):  # of few units, training gets the first, validation the last
            counts[max(range(len(counts)), key=lambda number: (counts[number], number))] -= 1
        part_of[order[: sum(counts)]] = np.repeat(np.arange(1, len(counts) + 1), counts)
    return units, {name: left[part_of[unit] == number] for number, name in enumerate(("train", *fractions))}
