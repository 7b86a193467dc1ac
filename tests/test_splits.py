"""Splits: what is kept together, what is in each part, and that a split is the same again."""

import collections
import itertools
import json

import numpy as np
import pytest
from support import write_ci16

from data.annotated import TiledRecordings
from data.images import ImageFiles
from data.splits import (
    PARTS,
    classes_of,
    fewer_labels,
    load_splits,
    make_splits,
    relative_paths,
    sample_names,
)
from radio.recordings import find_recordings
from radio.spectrogram import Spectrogram
from util.errors import UserError


class Fake:
    """A source of samples with classes, or with masks (`labels` None)."""

    def __init__(self, labels=None, size=None, groups=None, parts=None, about=None):
        self.task = "segmentation" if labels is None else "classification"
        self.size = len(labels) if size is None else size
        self.labels = None if labels is None else np.asarray(labels)
        self.class_names = [f"c{number}" for number in range(1 if labels is None else max(labels) + 1)]
        self.groups = {name: np.asarray(column) for name, column in (groups or {}).items()}
        self._parts, self.about = parts, about

    def __len__(self):
        return self.size

    def parts(self):
        return self._parts

    def target(self, index, epoch=0):
        return int(self.labels[index])

    def describe(self, index, rng, epoch=0):
        return self.about[index] if self.about else {"name": f"sample {index}"}


def check(source, splits):
    """Every sample in one part, none empty; returns the parts."""
    assert tuple(splits.parts) == PARTS
    assert all(indices.dtype == np.int64 and len(indices) for indices in splits.parts.values())
    together = np.concatenate(list(splits.parts.values()))
    assert np.array_equal(np.sort(together), np.arange(len(source)))
    return splits.parts


def same(a, b):
    return all(np.array_equal(a.parts[part], b.parts[part]) for part in PARTS)


# Drawing


def test_samples_with_masks_are_drawn_by_share_and_seed():
    source = Fake(size=1000)
    splits = make_splits(source, 3, 0.1, 0.2)
    assert [len(indices) for indices in check(source, splits).values()] == [700, 100, 200]
    assert same(splits, make_splits(source, 3, 0.1, 0.2))
    other = make_splits(source, 4, 0.1, 0.2)
    assert 10 < len(np.intersect1d(splits.parts["test"], other.parts["test"])) < 80  # 40 by chance, ± 5.1
    assert np.array_equal(splits.parts["test"], make_splits(source, 3, 0.3, 0.2).parts["test"])


@pytest.mark.parametrize("fractions", [(0.1, 0.2), (0.01, 0.01), (0.4, 0.5), (0.1, 0.85)])
def test_each_class_is_in_each_part_if_it_has_three_samples(fractions):
    counts = range(1, 30)
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(29), counts))
    parts = check(labels, make_splits(Fake(labels), 0, *fractions))
    for label, count in enumerate(counts):
        found = [int((labels[parts[part]] == label).sum()) for part in PARTS]
        assert found[0] >= 1
        assert min(found) >= 1 or count < 3
        if count > 1 / min(fractions) and sum(fractions) < 0.5:
            assert found[1:] == pytest.approx([fraction * count for fraction in fractions], abs=0.5)


def test_classes_are_found_with_and_without_an_array_of_them():
    source = Fake([0, 1, 1, 0])
    assert classes_of(source).tolist() == [0, 1, 1, 0]
    source.labels, source.target = None, lambda index: index % 2
    assert classes_of(source).tolist() == [0, 1, 0, 1]
    assert classes_of(Fake(size=4)) is None


def test_windows_of_a_recording_are_never_in_two_parts():
    recordings = np.random.default_rng(0).permutation(np.repeat([f"r{number}" for number in range(20)], 7))
    source = Fake(size=140, groups={"recording": recordings})
    parts = check(source, make_splits(source, 0, 0.1, 0.2))
    found = [set(recordings[indices]) for indices in parts.values()]
    assert [len(names) for names in found] == [14, 2, 4]


def test_recordings_of_one_class_are_drawn_by_class():
    labels, recordings = (
        np.repeat([0, 1, 2], [30, 12, 6]),
        np.repeat(np.arange(16), 3),
    )  # 10, 4 and 2 recordings
    parts = check(labels, make_splits(Fake(labels, groups={"recording": recordings}), 0, 0.1, 0.2))
    kept = {
        part: collections.Counter(np.unique(np.stack([labels[i], recordings[i]]), axis=1)[0].tolist())
        for part, i in parts.items()
    }
    assert kept == {"train": {0: 7, 1: 2, 2: 1}, "val": {0: 1, 1: 1}, "test": {0: 2, 1: 1, 2: 1}}


def test_published_parts_go_before_shares():
    labels, test = np.arange(60) % 3, np.arange(40, 60)
    parts = {"train": np.arange(40), "test": test}
    made = check(labels, make_splits(Fake(labels, parts=parts), 0, 0.25, 0.9))
    assert np.array_equal(made["test"], test)
    assert np.bincount(labels[made["val"]]).tolist() == [4, 3, 3]  # a quarter of 14, 13, 13
    with_val = {"train": np.arange(30), "val": np.arange(30, 40), "test": test}
    made = check(labels, make_splits(Fake(labels, parts=with_val), 0, 0.25, 0.9))
    assert all(np.array_equal(made[part], with_val[part]) for part in PARTS)
    only_val = {"train": np.arange(40), "val": test}
    made = check(labels, make_splits(Fake(labels, parts=only_val), 0, 0.9, 0.25))
    assert np.array_equal(made["val"], test)
    assert np.bincount(labels[made["test"]]).tolist() == [4, 3, 3]


# By column


def days(*names, per_day=12):
    labels = np.arange(len(names) * per_day) % 3
    return Fake(
        labels,
        groups={"day": np.repeat(names, per_day)},
        parts={"train": np.arange(20), "test": np.arange(20, 30)},
    )


def test_named_groups_are_the_test_and_a_single_day_is_divided_by_class():
    source = days("D1", "D2", "D3", "D4")
    parts = check(source, make_splits(source, 0, 0.25, 0.2, "day", ["D2", "D3", "D4"]))
    assert np.array_equal(parts["test"], np.arange(12, 48))
    assert np.bincount(source.labels[parts["val"]]).tolist() == [1, 1, 1]


def test_validation_has_whole_groups_where_they_make_up_its_share():
    source = days(1, 2, 3, 4, 5, 6)
    by_day = [check(source, make_splits(source, 0, fraction, 0.2, "day", ["6"])) for fraction in (0.2, 0.05)]
    column = source.groups["day"]
    found = [{part: set(column[indices].tolist()) for part, indices in parts.items()} for parts in by_day]
    assert len(found[0]["val"]) == 1  # of five
    assert not found[0]["val"] & found[0]["train"]
    assert found[1]["train"] == {1, 2, 3, 4, 5}  # a whole day would be four times what was asked for
    assert found[0]["test"] == found[1]["test"] == {6}


def test_groups_are_drawn_where_none_are_named():
    source = days(*"abcdefghij")
    parts = check(source, make_splits(source, 0, 0.1, 0.2, "day"))
    found = [set(source.groups["day"][indices]) for indices in parts.values()]
    assert [len(names) for names in found] == [7, 1, 2]
    assert len(set.union(*found)) == 10


@pytest.mark.parametrize(
    ("source", "flags", "says"),
    [
        (Fake(size=9), (0, 0.2), ["--val_fraction 0"]),
        (Fake(size=9), (0.2, -1), ["--test_fraction -1"]),
        (Fake(size=9), (0.5, 0.5), ["--test_fraction 0.5, --val_fraction 0.5"]),
        (Fake(size=9), (float("nan"), 0.5), ["--val_fraction nan"]),
        (Fake(size=2), (0.2, 0.2), ["1 in train, 0 in val, 1 in test", "sample out of 2"]),
        (Fake(size=9, groups={"recording": ["a"] * 9}), (0.2, 0.2), ["9 in train", "recording out of 1"]),
        (
            Fake(size=3, parts={"train": np.arange(1), "test": np.arange(1, 3)}),
            (0.2, 0.2),
            ["0 in val, 2 in test"],
        ),
        (days("a", "b"), (0.2, 0.2, "week"), ["--split_by", "(day)", "found week"]),
        (Fake(size=9), (0.2, 0.2, "day"), ["--split_by", "it has none"]),
        (days("a", "b"), (0.2, 0.2, None, ["a"]), ["--test_groups a", "--split_by"]),
        (days("a", "b"), (0.2, 0.2, "day", ["a", "c"]), ["--test_groups", "a, b", "found c"]),
        (days("a", "b"), (0.2, 0.2, "day", ["b", "a"]), ["--test_groups", "found all"]),
        (days("a", "b"), (0.2, 0.2, "day"), ["0 in val", "day out of 2"]),
        (
            Fake([0] * 6 + [1] * 3, groups={"day": [1] * 6 + [2] * 3}),
            (0.2, 0.2, "day", ["2"]),
            ["found none of c1"],
        ),
    ],
)
def test_splits_that_cannot_be(source, flags, says):
    with pytest.raises(UserError) as error:
        make_splits(source, 0, *flags)
    assert all(part in str(error.value) for part in says)
    assert "\n" not in str(error.value)


# Files


def test_a_saved_split_comes_back_in_whatever_order(tmp_path):
    about = [{"name": f"n{number}"} for number in range(50)]
    source = Fake(size=50, about=about)
    splits = make_splits(source, 7, 0.1, 0.2)
    splits.save(tmp_path / "split.json", source)
    assert [path.name for path in tmp_path.iterdir()] == ["split.json"]
    back = load_splits(tmp_path / "split.json", source)
    assert same(back, splits)
    assert back.seed == 7
    turned = load_splits(tmp_path / "split.json", Fake(size=50, about=about[::-1]))
    for part in PARTS:
        assert np.array_equal(turned.parts[part], np.sort(49 - splits.parts[part]))


def test_a_split_of_other_data_is_refused(tmp_path):
    source = Fake(size=50)
    make_splits(source, 7, 0.1, 0.2).save(tmp_path / "split.json", source)
    with pytest.raises(UserError, match="found 10 others: sample 4"):
        load_splits(tmp_path / "split.json", Fake(size=40))
    with pytest.raises(UserError, match="expected the data it was made of, 50 samples; found 51"):
        load_splits(tmp_path / "split.json", Fake(size=51))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda content: content["parts"].pop("val"), "KeyError"),
        (lambda content: content["parts"].update(val=[]), "each of train, val, test"),
        (lambda content: content["parts"].update(val=[1, 2]), "each of train, val, test"),
        (lambda content: content["parts"].update(more=["sample 1"]), "in train, val, test, more"),
        (lambda content: content["parts"]["val"].append(content["parts"]["test"][0]), "each sample once"),
        (lambda content: content.update(format=2), "found format 2"),
        (lambda content: content.update(parts=5), "TypeError"),
    ],
)
def test_a_damaged_split_is_refused(tmp_path, change, says):
    source, path = Fake(size=50), tmp_path / "split.json"
    make_splits(source, 7, 0.1, 0.2).save(path, source)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=says) as error:
        load_splits(path, source)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "5", None])
def test_what_is_no_split_is_refused(tmp_path, text):
    path = tmp_path / "split.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=r"expected a split\.json"):
        load_splits(path, Fake(size=5))


def test_a_split_that_cannot_be_written_leaves_nothing(tmp_path):
    source = Fake(size=50)
    with pytest.raises(UserError, match=r"missing/split\.json: expected a file that can be written"):
        make_splits(source, 7, 0.1, 0.2).save(tmp_path / "missing" / "split.json", source)
    assert not list(tmp_path.iterdir())


# Names


def test_names_that_repeat_get_folder_and_time(tmp_path):
    for folder in ("x", "y"):
        write_ci16(tmp_path / folder, "a", 0.02, 200e3)
    write_ci16(tmp_path / "y", "b", 0.01, 200e3)
    source = TiledRecordings(find_recordings(tmp_path), Spectrogram(64, 0.01, (8, 8)))
    assert sample_names(source) == [
        "x/a.sigmf-meta at 0.000000000 s",
        "x/a.sigmf-meta at 0.010000000 s",
        "y/a.sigmf-meta at 0.000000000 s",
        "y/a.sigmf-meta at 0.010000000 s",
        "b.sigmf-meta",
    ]


def test_samples_that_nothing_tells_apart_are_numbered():
    names = sample_names(Fake(size=4, about=[{"name": "a"}, {"name": "b"}, {"name": "a"}, {"name": "a"}]))
    assert names == ["a #1", "b", "a #2", "a #3"]


def test_a_source_may_name_its_samples_itself():
    source = Fake(size=3)
    source.sample_name = lambda index: f"frame {index}"
    assert sample_names(source) == ["frame 0", "frame 1", "frame 2"]


def test_images_of_one_name_are_told_apart(tmp_path):
    for folder in "xy":
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "1.npy", np.zeros((8, 8)))
    assert sample_names(ImageFiles([tmp_path / "x" / "1.npy", tmp_path / "y" / "1.npy"], (8, 8))) == [
        "x/1.npy",
        "y/1.npy",
    ]


def test_paths_are_seen_from_the_folder_in_common():
    assert relative_paths(["/d/x/a", "/d/y/z/b"]) == ["x/a", "y/z/b"]
    assert relative_paths(["/d/x/a", "/d/x/a"]) == ["a", "a"]
    assert relative_paths([]) == []


# Fewer labels


@pytest.mark.parametrize("with_classes", [True, False])
def test_fewer_labels_are_among_more(with_classes):
    rng = np.random.default_rng(0)
    indices = rng.permutation(5000)[:900]
    targets = rng.choice(4, 900, p=[0.7, 0.2, 0.09, 0.01])
    counts = np.bincount(targets)
    sets = []
    for fraction in (0.01, 0.05, 0.1, 0.5, 1):
        kept = fewer_labels(indices, targets if with_classes else None, fraction, seed=5)
        assert np.array_equal(kept, np.unique(kept))
        sets.append(set(kept.tolist()))
        if with_classes:
            own = np.bincount(targets[np.isin(indices, kept)], minlength=4)
            assert own == pytest.approx(np.maximum(1, fraction * counts), abs=0.5)
        else:
            assert len(kept) == round(fraction * 900)
    assert all(less < more for less, more in itertools.pairwise(sets))
    assert sets[-1] == set(indices.tolist())
    again = fewer_labels(
        np.sort(indices), targets[np.argsort(indices)] if with_classes else None, 0.1, seed=5
    )
    assert set(again.tolist()) == sets[2]  # in whatever order they come
    assert set(fewer_labels(indices, targets if with_classes else None, 0.1, seed=6).tolist()) != sets[2]


def test_a_number_of_each_class():
    targets = np.repeat([0, 1, 2], [50, 20, 5])
    few, more = (fewer_labels(np.arange(75), targets, 1.0, count) for count in (2, 5))
    assert np.bincount(targets[few]).tolist() == [2, 2, 2]
    assert np.bincount(targets[more]).tolist() == [5, 5, 5]
    assert set(few) < set(more)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"per_class": 6}, "at most 5, all there are of lte; found 6"),
        ({"per_class": 0}, "--labels_per_class: expected 1 or more"),
        ({"per_class": 2, "fraction": 0.5}, "without --label_fraction"),
        ({"per_class": 2, "targets": None}, "found masks"),
        ({"fraction": 0.0}, "--label_fraction"),
        ({"fraction": 1.1}, "--label_fraction"),
        ({"fraction": float("nan")}, "--label_fraction"),
    ],
)
def test_fewer_labels_that_cannot_be(settings, says):
    targets = np.repeat([0, 1], [20, 5])
    with pytest.raises(UserError, match=says):
        fewer_labels(np.arange(25), **{"targets": targets, "class_names": ["nr", "lte"]} | settings)
