"""data.tasks: what each task makes of a path, and which samples end in which part."""

import argparse
import json

import numpy as np
import pytest
from support import (
    ACTIVITIES,
    CLASSES,
    FRONT_END,
    write_ci16,
    write_fork,
    write_frames,
    write_labelled_set,
    write_ntu_fi,
)

from data import registry, tasks
from data.mathworks import MathWorksFrames
from data.sampling import IQ
from radio.spectrogram import Spectrogram
from util.errors import UserError

NR = {
    "core:sample_start": 0,
    "core:sample_count": 1600,
    "core:freq_lower_edge": 2.4e9,
    "core:freq_upper_edge": 2.43e9,
    "core:label": "NR",
}


def options(*flags):
    parser = argparse.ArgumentParser()
    parser.add_argument("--task", default="segmentation")
    parser.add_argument("--seed", type=int, default=0)
    registry.add_data_arguments(parser)
    tasks.add_label_arguments(parser)
    return parser.parse_args([str(flag) for flag in flags])


def opened(task, path, *flags, pretrained=None):
    return tasks.open_labelled(options("--task", task, "--data_path", path, *flags), pretrained)


def names(data):
    """Of the samples of each part."""
    return {
        name: [part.describe(number)["name"] for number in range(len(part))]
        for name, part in data.parts.items()
    }


def refused(says, task, path, *flags, **kwargs):
    with pytest.raises(UserError) as caught:
        opened(task, path, *flags, **kwargs)
    for words in says.split("|"):
        assert words in str(caught.value)


# Spectrogram sets


def test_a_folder_with_three_sets_is_divided_already(tmp_path):
    counts = {"train": 6, "val": 3, "test": 4}
    for part, count in counts.items():
        write_labelled_set(tmp_path / part, count)
    data = opened("segmentation", tmp_path)

    assert names(data) == {
        part: [f"{part} {index}" for index in range(count)] for part, count in counts.items()
    }
    assert data.class_names == CLASSES
    assert data.settings == FRONT_END.settings()
    data.save_split(tmp_path / "split.json", 3)
    assert json.loads((tmp_path / "split.json").read_text()) == {"seed": 3, "parts": names(data)}
    refused("--split_by|divided already", "segmentation", tmp_path, "--split_by", "recording")


def test_a_set_that_is_named_itself_is_divided_and_those_beside_it_are_left_alone(tmp_path):
    for part in ("train", "val", "test"):
        write_labelled_set(tmp_path / part)
    found = names(opened("segmentation", tmp_path / "train"))

    assert [len(found[part]) for part in found] == [9, 1, 2]
    assert sorted(name for part in found.values() for name in part) == sorted(
        f"train {index}" for index in range(12)
    )


def test_a_folder_that_lacks_one_of_three_sets_is_refused(tmp_path):
    write_labelled_set(tmp_path / "train")
    write_labelled_set(tmp_path / "val")
    refused("train, val, test, or train alone; found train and val", "segmentation", tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"class_names": ["Noise", "LTE", "NR"]}, "test: expected class_names"),
        ({"front_end": Spectrogram(128, 0.01, (16, 16))}, "test: expected front_end"),
        ({"masks": False, "labels": True}, "test: expected a spectrogram set with masks.npy"),
    ],
)
def test_the_test_set_must_agree_with_the_training_set(tmp_path, change, says):
    write_labelled_set(tmp_path / "train")
    write_labelled_set(tmp_path / "val")
    write_labelled_set(tmp_path / "test", **change)
    refused(says, "segmentation", tmp_path)


def test_a_set_with_masks_and_labels_gives_each_task_its_own(tmp_path):
    path = write_labelled_set(tmp_path / "set", masks=True, labels=True)
    masks, labels = (
        list(opened(task, path).parts["train"].targets()) for task in ("segmentation", "classification")
    )

    assert {mask.shape for mask in masks} == {(16, 16)}
    assert {type(label) for label in labels} == {int}
    assert sorted(set(labels)) == [0, 1, 2]


def test_a_set_without_what_the_task_learns_is_refused(tmp_path):
    refused(
        "with masks.npy", "segmentation", write_labelled_set(tmp_path / "labels", masks=False, labels=True)
    )
    refused("with labels.npy", "classification", write_labelled_set(tmp_path / "masks"))


def test_spectrograms_of_a_recording_stay_together(tmp_path):
    data = opened("segmentation", write_labelled_set(tmp_path / "set", count=20, recordings=5))
    recordings = [
        {samples.describe(number)["path"] for number in range(len(samples))}
        for samples in data.parts.values()
    ]

    assert sum(map(len, recordings)) == len(set.union(*recordings)) == 5


def test_masks_outside_of_the_classes_are_said_when_they_are_read(tmp_path):
    data = opened("segmentation", write_labelled_set(tmp_path / "set"))
    masks = np.lib.format.open_memmap(tmp_path / "set" / "masks.npy", "r+")
    masks[:, 0, 0] = 7
    masks.flush()
    with pytest.raises(
        UserError, match=r"masks\.npy, spectrogram 0: expected class ids below 3; found 0 to 7"
    ):
        data.source.target(0)


# What the pretrained weights decide


def test_recordings_go_through_the_front_end_of_the_weights(tmp_path):
    for name, number in (("a", 0), ("a", 1), ("a", 2), ("b", 3), ("b", 4), ("b", 5)):
        write_ci16(tmp_path / "classes" / name, f"r{number}", 0.02, seed=number)
    settings = FRONT_END.settings()
    data = opened("classification", tmp_path / "classes", pretrained=settings)

    assert data.settings == settings
    assert data.class_names == ["a", "b"]
    kind, values = data.source.load(0, None)
    assert (kind, values.shape) == (IQ, (2000,))  # 10 ms at 200 kHz
    for flags, says in (
        (("--n_fft", 32), "--n_fft: expected 64, which the weights were trained with; found 32"),
        (("--window_ms", 5), "--window_ms: expected 10,"),
    ):
        refused(says, "classification", tmp_path / "classes", *flags, pretrained=settings)
    resized = opened("classification", tmp_path / "classes", "--input_size", 32, pretrained=settings)
    assert resized.settings == settings | {"image_size": [32, 32]}


@pytest.mark.parametrize(
    ("pretrained", "flags", "size"),
    [
        (None, (), None),
        ({"kind": "images", "image_size": [32, 48]}, (), (32, 48)),
        (FRONT_END.settings(), (), (16, 16)),
        (FRONT_END.settings(), ("--input_size", 8), (8, 8)),
        (None, ("--input_size", 8, 24), (8, 24)),
    ],
)
def test_images_have_the_size_of_the_flag_or_of_the_weights(tmp_path, pretrained, flags, size):
    for name in ("a", "b"):
        for number in range(3):
            (tmp_path / "npy" / name).mkdir(parents=True, exist_ok=True)
            np.save(tmp_path / "npy" / name / f"{number}.npy", np.random.default_rng(number).random((20, 20)))
    write_frames(tmp_path / "frames", count=5, size=20)
    write_ntu_fi(tmp_path / "csi", count=3)

    for task, path, default in (
        ("classification", "npy", (224, 224)),
        ("segmentation", "frames", (20, 20)),
        ("sensing", "csi", (224, 224)),
    ):
        data = opened(task, tmp_path / path, *flags, pretrained=pretrained)
        data.fit()
        assert data.source.load(0, None)[1].shape[1:] == (size or default)
        assert tuple(data.settings["image_size"]) == (size or default)


@pytest.mark.parametrize("size", [(0,), (1, 2, 3), (16, -1)])
@pytest.mark.parametrize("task", tasks.TASKS)
def test_image_sizes_that_are_none_are_refused(tmp_path, task, size):
    write_frames(tmp_path / "frames", count=2, size=20)
    path = {
        "segmentation": tmp_path / "frames",
        "sensing": "synthetic",
        "classification": tmp_path / "frames",
    }[task]
    refused("--input_size: expected one or two positive numbers", task, path, "--input_size", *size)


# CSI


def test_statistics_are_of_the_training_part_and_a_checkpoints_are_used_as_they_are(tmp_path):
    write_ntu_fi(tmp_path / "csi", ("train_amp",), count=3, level=40)
    write_ntu_fi(tmp_path / "csi", ("test_amp",), count=1, level=90)
    data = opened("sensing", tmp_path / "csi", "--input_size", 16)
    data.fit()

    assert data.class_names == ACTIVITIES
    assert np.ravel(data.settings["normalization"]["mean"]) == pytest.approx(40)
    again = opened("sensing", tmp_path / "csi", "--input_size", 16)
    again.fit({"mean": [[[50.0]]], "std": [[[2.0]]]})
    test = again.parts["test"]
    assert test.source.load(int(test.indices[0]), None)[1].mean() == pytest.approx(20)
    assert again.settings["normalization"] == {"mean": [[[50.0]]], "std": [[[2.0]]]}


def test_synthetic_parts_share_statistics_and_no_sample():
    data = opened("sensing", "synthetic", "--scenes", 12, "--val_fraction", 0.5, "--input_size", 16)
    data.fit()
    images = [part.source.load(0, None)[1] for part in data.parts.values()]

    assert [len(part) for part in data.parts.values()] == [12, 6, 6]
    assert len({image.tobytes() for image in images}) == 3
    assert len({json.dumps(part.source.normalization()) for part in data.parts.values()}) == 1


# Scenes


def test_scenes_to_train_on_are_new_in_each_epoch_and_others_are_held_out():
    data = opened("segmentation", "synthetic:classic", "--scenes", 10, "--input_size", 16)

    assert data.fresh
    assert [len(part) for part in data.parts.values()] == [10, 1, 2]
    train, val, test = (part.source.maker.draw(part.source.kind, 0) for part in data.parts.values())
    assert len({repr(scene) for scene in (train, val, test)}) == 3
    source = data.source
    assert not np.array_equal(source.load(0, None, 0)[1], source.load(0, None, 1)[1])
    assert any(not np.array_equal(source.target(index, 0), source.target(index, 1)) for index in range(3))


# Flags that the data has no use for


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--set", "snr_db=0,20"), "--set: expected synthetic"),
        (("--classes", "Noise,NR"), "--classes: expected annotated recordings"),
        (("--protocol", "mixed"), "--protocol: expected MathWorks"),
        (("--split_by", "day"), "--split_by: expected a column"),
        (("--test_groups", "D1"), "--test_groups D1: expected --split_by"),
        (("--split", "nowhere.json"), "--split nowhere.json: expected"),
        (("--val_fraction", 0.5, "--test_fraction", 0.5), "shares above 0 that leave some to train on"),
    ],
)
def test_flags_are_used_or_refused(tmp_path, flags, says):
    refused(says, "segmentation", write_labelled_set(tmp_path / "set"), *flags)


def test_frames_in_folders_of_parts_are_tested_on_what_is_held_out(tmp_path):
    for path, held_out in (
        (write_fork(tmp_path / "fork"), "val"),
        (write_fork(tmp_path / "three", (("train", 6), ("val", 2), ("test", 4))), "test"),
    ):
        found = names(opened("segmentation", path))
        assert {name.split()[0] for name in found["test"]} == {held_out}
        assert {name.split()[0] for name in found["train"]} == {"train"}
        assert {name.split()[0] for name in found["val"]} == {"train" if held_out == "val" else "val"}
        assert (
            sum(map(len, found.values()))
            == len(set().union(*found.values()))
            == len(list(path.rglob("*labels*")))
        )


def test_each_kind_of_data_takes_its_flags(tmp_path):
    write_frames(tmp_path / "frames", count=5, size=16)
    data = opened("segmentation", tmp_path / "frames", "--protocol", "single_to_combined")
    assert isinstance(data.source, MathWorksFrames)
    tested = {data.parts["test"].describe(number)["technology"] for number in range(len(data.parts["test"]))}
    assert tested == {"LTE_NR"}

    for number in range(4):
        write_ci16(
            tmp_path / "air",
            f"r{number}",
            0.03,
            seed=number,
            annotations=[NR | {"core:freq_lower_edge": 2.399e9}],
        )
    flags = ("--n_fft", 64, "--window_ms", 10, "--input_size", 16, "--val_fraction", 0.25)
    data = opened("segmentation", tmp_path / "air", "--classes", "Nothing,NR", *flags)
    assert data.class_names == ["Nothing", "NR"]
    assert set(np.unique(data.source.target(0))) == {0, 1}

    data = opened(
        "segmentation", "synthetic:classic", "--set", "snr_db=12,12", "--scenes", 2, "--input_size", 16
    )
    levels = {carrier["snr_db"] for carrier in data.source.describe(0, None)["scene"]["transmissions"]}
    assert levels == {12.0}


@pytest.mark.parametrize(
    ("task", "paths", "says"),
    [
        ("sensing", ["a", "b"], "expected one path"),
        ("classification", ["a", "b"], "expected one path"),
        ("sensing", ["nowhere"], "found none"),
        ("segmentation", ["nowhere"], "found none"),
        ("segmentation", ["synthetic:none"], "one of the presets"),
        ("segmentation", ["synthetic", "synthetic:wild"], "synthetic"),
    ],
)
def test_paths_that_a_task_cannot_take(task, paths, says):
    with pytest.raises(UserError, match=says):
        tasks.open_labelled(options("--task", task, "--data_path", *paths))
