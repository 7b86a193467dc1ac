"""What training reads: windows of recordings, spectrogram sets, images, and how a path is recognised."""

import argparse
import errno
import itertools
import json
import os
import pickle
import re
import shutil
import signal
import tarfile
from functools import partial
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from support import (
    largest_file,
    write_ci16,
    write_frame,
    write_npz,
    write_ntu_fi,
    write_pngs,
    write_resaved,
    write_sigmf,
)

from data import registry, set_writer
from data.annotated import AnnotatedWindows
from data.batches import EpochBatches, MaskedSamples, to_images
from data.class_folders import ClassFolders
from data.csi import CsiFile, NtuFiHar
from data.feeding import make_loader
from data.images import ImageFiles, load_image
from data.labelled import LabelledSamples, Part
from data.mathworks import MathWorksFrames
from data.sampling import DECIBELS, IQ, SAMPLE, stream
from data.set_writer import spectrogram_set_writer
from data.spectrogram_set import SpectrogramSet
from data.windows import RecordingWindows
from radio.recordings import find_recordings
from radio.spectrogram import Spectrogram
from util.errors import UserError, one_line


def front_end(**kwargs):
    return Spectrogram(**{"n_fft": 64, "duration_s": 0.01, "image_size": (16, 24)} | kwargs)


def flags(*line):
    parser = argparse.ArgumentParser()
    registry.add_data_arguments(parser)
    return parser.parse_args(["--data_path", *map(str, line)])


def opened(*line):
    args = flags(*line)
    found = registry.find(args.data_path)
    made = registry.front_end_for(found, args)
    return registry.open_source(found, made, args), made


# Recordings


def test_windows_are_tiled_without_a_generator_and_anywhere_with_one(tmp_path):
    path = write_ci16(tmp_path, duration_s=0.0355, sample_rate_hz=100e3)
    windows = RecordingWindows.from_recordings(find_recordings(path), front_end())
    recording = find_recordings(path)[0]
    assert len(windows) == 3  # 35.5 ms hold three windows of 10 ms
    for index in range(3):
        kind, iq = windows.load(index, None)
        assert kind == IQ
        assert np.array_equal(iq, recording.read(index * 1000, 1000))
    starts = [windows.describe(0, stream(0, SAMPLE, index=i).generator())["sample_start"] for i in range(400)]
    assert min(starts) >= 0
    assert max(starts) <= 2550
    assert min(starts) < 100
    assert max(starts) > 2450
    ninth = stream(0, SAMPLE, index=9)
    start = windows.describe(1, ninth.generator())
    assert np.array_equal(windows.load(1, ninth.generator())[1], recording.read(start["sample_start"], 1000))
    assert start["start_s"] == pytest.approx(start["sample_start"] / 100e3)
    assert start["center_freq_hz"] == 2.4e9
    assert start["num_samples"] == 1000


def test_windows_have_one_duration_at_every_sample_rate(tmp_path):
    for name, rate in (("a", 100e3), ("b", 44.1e3), ("c", 250e3)):
        write_ci16(tmp_path, name, 0.02, rate)
    windows = RecordingWindows.from_recordings(find_recordings(tmp_path), front_end())
    assert [len(windows.load(index, None)[1]) for index in range(6)] == [1000, 1000, 441, 441, 2500, 2500]


def test_short_recordings_are_skipped_and_counted(tmp_path, capsys):
    write_ci16(tmp_path, "long", 0.02)
    write_ci16(tmp_path, "short", 0.009)
    write_ci16(tmp_path, "slow", 0.02, sample_rate_hz=5e3)  # 50 samples in 10 ms: less than an FFT
    windows = RecordingWindows.from_recordings(find_recordings(tmp_path), front_end())
    assert len(windows) == 2
    warning = capsys.readouterr().err
    assert warning.startswith("warning: 2 of 3 recordings skipped")
    assert "short.sigmf-meta, slow.sigmf-meta" in warning
    with pytest.raises(UserError, match=r"--window_ms.*50 ms.*found none.*longest 20 ms"):
        RecordingWindows.from_recordings(find_recordings(tmp_path), front_end(duration_s=0.05))


def test_whole_recordings_are_held_out(tmp_path):
    for number in range(5):
        write_ci16(tmp_path, f"r{number}", 0.03, seed=number)
    windows = RecordingWindows.from_recordings(find_recordings(tmp_path), front_end())
    training, held_out = windows.split(0.4, seed=3)
    names = [
        {part.describe(index, None)["name"] for index in range(len(part))} for part in (training, held_out)
    ]
    assert [len(part) for part in names] == [3, 2]
    assert not names[0] & names[1]
    assert len(training) + len(held_out) == 15


def test_channels_of_a_file_stay_on_one_side(tmp_path):
    for number in range(2):
        write_ci16(tmp_path, f"r{number}", 0.06, num_channels=2)
    windows = RecordingWindows.from_recordings(find_recordings(tmp_path), front_end())
    assert len(windows.spans) == 4
    training, held_out = windows.split(0.3, seed=0)
    assert len({span[0].path for span in training.spans} | {span[0].path for span in held_out.spans}) == 2
    assert len(training.spans) == len(held_out.spans) == 2


def test_the_end_of_a_single_recording_is_held_out(tmp_path):
    write_ci16(tmp_path, "only", 0.105)
    windows = RecordingWindows.from_recordings(find_recordings(tmp_path), front_end())
    training, held_out = windows.split(0.3, seed=0)
    assert (len(training), len(held_out)) == (7, 3)
    last_trained = (
        max(training.describe(0, stream(0, SAMPLE, index=i).generator())["start_s"] for i in range(200))
        + 0.01
    )
    assert last_trained <= held_out.describe(0, None)["start_s"] + 1e-9
    write_ci16(tmp_path, "only", 0.015)
    with pytest.raises(UserError, match=r"--val_fraction.*15 ms in only"):
        RecordingWindows.from_recordings(find_recordings(tmp_path), front_end()).split(0.3, seed=0)


# Spectrogram sets


def write_set(path, count=6, made=None, recordings=3):
    made = made or front_end()
    rng = np.random.default_rng(0)
    decibels = (rng.standard_normal((count, 1, *made.image_size)) * 5 - 60).astype(np.float32)
    with spectrogram_set_writer(path, count, made) as packed:
        for number, values in enumerate(decibels):
            name = f"r{number * recordings // count}"
            packed.add(
                values, {"name": name, "path": name, "start_s": 0.0, "num_samples": 9, "sample_rate_hz": 1e6}
            )
    return decibels


def test_a_set_comes_back(tmp_path):
    decibels = write_set(tmp_path / "set")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]
    read = SpectrogramSet(tmp_path / "set")
    assert len(read) == 6
    assert read.front_end_settings == front_end().settings()
    for index in range(6):
        kind, values = read.load(index, None)
        assert kind == DECIBELS
        assert values.dtype == np.float16
        level = read.describe(index, None)["level_db"]
        np.testing.assert_allclose(values + np.float32(level), decibels[index], atol=0.02)
    training, held_out = read.split(0.4, seed=0)
    names = [
        {part.describe(index, None)["name"] for index in range(len(part))} for part in (training, held_out)
    ]
    assert [len(part) for part in names] == [2, 1]
    assert not names[0] & names[1]


def test_a_set_of_one_recording_is_split_in_time(tmp_path):
    write_set(tmp_path / "set", recordings=1)
    training, held_out = SpectrogramSet(tmp_path / "set").split(0.3, seed=0)
    assert (list(training.indices), list(held_out.indices)) == ([0, 1, 2, 3], [4, 5])


def test_a_set_that_fails_half_way_is_not_there(tmp_path):
    def write(fail):
        with spectrogram_set_writer(tmp_path / "set", 3, front_end()) as packed:
            packed.add(np.zeros((1, 16, 24), np.float32), {})
            if fail:
                raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        write(fail=True)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError, match="expected 3"):
        write(fail=False)
    assert list(tmp_path.iterdir()) == []


def test_a_set_is_not_overwritten(tmp_path):
    write_set(tmp_path / "set")
    with pytest.raises(UserError, match=r"set: expected a new folder"):
        write_set(tmp_path / "set")


def edit_description(path, **changes):
    description = json.loads((path / "set.json").read_text()) | changes
    (path / "set.json").write_text(json.dumps(description))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda p: (p / "set.json").write_text("{"), "set.json"),
        (lambda p: (p / "set.json").write_text("[]"), "set.json"),
        (lambda p: edit_description(p, format=9), "expected format 1; found 9"),
        (lambda p: edit_description(p, front_end={"n_fft": -1}), "set.json"),
        (lambda p: edit_description(p, shape=[7, 1, 16, 24]), r"expected float16 \[7, 1, 16, 24\]"),
        (lambda p: (p / "spectrograms.npy").unlink(), "spectrograms.npy"),
        (
            lambda p: (p / "spectrograms.npy").write_bytes((p / "spectrograms.npy").read_bytes()[:-9]),
            "spectrograms.npy",
        ),
        (lambda p: np.save(p / "spectrograms.npy", np.array([{}], dtype=object)), "spectrograms.npy"),
        (lambda p: np.save(p / "spectrograms.npy", np.zeros((6, 1, 16, 24))), "found float64"),
    ],
)
def test_damaged_sets(tmp_path, damage, expected):
    write_set(tmp_path / "set")
    damage(tmp_path / "set")
    with pytest.raises(UserError, match=expected):
        SpectrogramSet(tmp_path / "set")


def test_metadata_of_another_length(tmp_path):
    write_set(tmp_path / "set")
    (tmp_path / "set" / "metadata.jsonl").write_text('{"path": "a"}\n')
    with pytest.raises(UserError, match="expected 6 lines; found 1"):
        SpectrogramSet(tmp_path / "set").split(0.5, 0)


# Sets with masks and labels, and writers that go on where another ended

CLASSES = ("Noise", "NR", "LTE")
KEY = {"seed": 1, "config": {"preset": "wild", "snr_db": [-5.0, 40.0]}}


def labelled(index):
    """A sample that its number decides, as scenes are: decibels, metadata, mask, label."""
    rng = np.random.default_rng(index)
    mask = rng.integers(0, 3, (16, 24), np.uint8)
    decibels = rng.normal(-60, 5, (1, 16, 24)).astype(np.float32)
    return decibels, {"name": f"scene {index}", "snr_db": rng.random()}, mask, index % 3


def labelled_writer(path, count=6, class_names=CLASSES, masks=True, labels=True, resume_key=KEY):
    return spectrogram_set_writer(path, count, front_end(), 1, class_names, masks, labels, resume_key)


def write_labelled(path, count=6, stop=None, sample=labelled, **kwargs):
    """Returns how many samples were there before."""
    with labelled_writer(path, count, **kwargs) as packed:
        found = packed.done
        for index in range(found, count):
            if index == stop:
                raise KeyboardInterrupt
            packed.add(*sample(index))
    return found


def contents(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.mark.parametrize("key", [None, KEY])
def test_masks_and_labels_come_back(tmp_path, key):
    write_labelled(tmp_path / "set", resume_key=key)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]
    assert set(contents(tmp_path / "set")) == {
        "set.json",
        "spectrograms.npy",
        "masks.npy",
        "labels.npy",
        "metadata.jsonl",
    }
    read = SpectrogramSet(tmp_path / "set")
    assert read.class_names == list(CLASSES)
    assert (read.masks.dtype, read.masks.shape, read.labels.dtype) == (np.uint8, (6, 16, 24), np.int64)
    assert [read.labels[index] for index in range(6)] == [0, 1, 2, 0, 1, 2]
    for index in range(6):
        decibels, metadata, mask, _ = labelled(index)
        np.testing.assert_allclose(read.load(index, None)[1] + decibels.mean(), decibels, atol=0.02)
        assert np.array_equal(read.mask(index), mask)
        assert np.array_equal(read.masks[index], mask)
        assert {key: read.describe(index, None)[key] for key in metadata} == metadata
    training, held_out = read.split(0.3, seed=0)  # of no recordings, so the last are held out
    assert (len(training), len(held_out)) == (4, 2)


def test_a_set_has_the_parts_it_was_given(tmp_path):
    write_labelled(tmp_path / "masks", labels=False, sample=lambda index: labelled(index)[:3])
    write_labelled(
        tmp_path / "labels", masks=False, sample=lambda i: (*labelled(i)[:2], None, labelled(i)[3])
    )
    assert SpectrogramSet(tmp_path / "masks").labels is None
    assert SpectrogramSet(tmp_path / "labels").masks is None
    assert SpectrogramSet(tmp_path / "labels").labels[5] == 2
    write_set(tmp_path / "plain")
    description = json.loads((tmp_path / "plain" / "set.json").read_text())
    assert (description.pop("masks"), description.pop("labels")) == (False, False)
    (tmp_path / "plain" / "set.json").write_text(json.dumps(description))  # as earlier versions wrote it
    plain = SpectrogramSet(tmp_path / "plain")
    assert (plain.masks, plain.labels) == (None, None)


@pytest.mark.parametrize(
    "changes",
    [
        {"mask": None},
        {"label": None},
        {"mask": np.zeros((16, 23), np.uint8)},
        {"mask": np.zeros((1, 16, 24), np.uint8)},
        {"mask": np.full((16, 24), 3)},
        {"mask": np.full((16, 24), -1)},
        {"mask": np.full((16, 24), 1.0)},
        {"label": 3},
        {"label": 0.5},
        {"label": [1]},
        {"decibels": np.zeros((16, 24))},
        {"decibels": np.zeros((2, 16, 24))},
    ],
)
def test_samples_that_do_not_fit_the_set(tmp_path, changes):
    sample = dict(zip(("decibels", "metadata", "mask", "label"), labelled(0), strict=True)) | changes
    with pytest.raises(ValueError, match=r"expected .*(samples of|class ids below 3)"):
        write_labelled(tmp_path / "set", sample=lambda _: sample.values())
    assert list(tmp_path.iterdir()) == []


def test_one_sample_too_many_and_sets_of_nothing(tmp_path):
    with labelled_writer(tmp_path / "set", 1) as packed:
        packed.add(*labelled(0))
        with pytest.raises(ValueError, match="expected 1 samples"):
            packed.add(*labelled(1))
    assert len(SpectrogramSet(tmp_path / "set")) == 1
    for wrong in ({"count": 0}, {"class_names": ()}):
        with pytest.raises(ValueError, match="expected 1 spectrogram or more, and classes"):
            write_labelled(tmp_path / "other", **wrong)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def overwrite(path, number, value):
    array = np.load(path)
    array[number] = value
    np.save(path, array)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda p: (p / "masks.npy").unlink(), "masks.npy: expected an array"),
        (
            lambda p: (p / "masks.npy").write_bytes((p / "masks.npy").read_bytes()[:-1]),
            "masks.npy: expected an array",
        ),
        (
            lambda p: np.save(p / "masks.npy", np.zeros((6, 24, 16), np.uint8)),
            r"masks.npy: expected uint8 \[6, 16, 24\]",
        ),
        (
            lambda p: np.save(p / "masks.npy", np.zeros((6, 16, 24), int)),
            "masks.npy: expected uint8.*found int64",
        ),
        (lambda p: (p / "labels.npy").unlink(), "labels.npy: expected an array"),
        (
            lambda p: np.save(p / "labels.npy", np.zeros((5,), int)),
            r"labels.npy: expected int64 \[6\]; found int64 \[5\]",
        ),
        (lambda p: overwrite(p / "labels.npy", 2, 3), "labels.npy: expected class ids below 3; found 0 to 3"),
        (
            lambda p: overwrite(p / "labels.npy", 2, -1),
            "labels.npy: expected class ids below 3; found -1 to 2",
        ),
        (
            lambda p: overwrite(p / "masks.npy", 4, 9),
            "masks.npy, spectrogram 4: expected class ids below 3; found 9 to 9",
        ),
        (
            lambda p: edit_description(p, class_names=["Noise", "NR"]),
            "labels.npy: expected class ids below 2; found 0 to 2",
        ),
        (lambda p: edit_description(p, class_names=3), "set.json"),
        (lambda p: edit_description(p, shape=[6, 16, 24]), "set.json"),
        (lambda p: (p / "metadata.jsonl").unlink(), "metadata.jsonl: expected a line a spectrogram"),
        (
            lambda p: (p / "metadata.jsonl").write_text("{}\n" * 5 + "{]\n"),
            "expected 6 lines; found 6, the first 5 whole",
        ),
        (lambda p: (p / "metadata.jsonl").write_text("{}\n" * 4 + "7\n{}\n"), "found 6, the first 4 whole"),
        (lambda p: (p / "metadata.jsonl").write_bytes(b"{}\n" * 5 + b"\xff\n"), "found 6, the first 5 whole"),
        (lambda p: (p / "metadata.jsonl").write_text("{}\n" * 7), "expected 6 lines; found 7"),
    ],
)
def test_damaged_sets_with_masks_and_labels(tmp_path, damage, expected):
    write_labelled(tmp_path / "set")
    damage(tmp_path / "set")

    def read_all():
        read = SpectrogramSet(tmp_path / "set")
        return [(read.describe(index, None), read.mask(index)) for index in range(6)]

    with pytest.raises(UserError, match=expected):
        read_all()


def test_a_set_of_its_own_is_held_out(tmp_path):
    write_labelled(tmp_path / "train")
    write_labelled(tmp_path / "val", count=3)
    training, held_out = SpectrogramSet(tmp_path / "train", tmp_path / "val").split(0.1, seed=0)
    assert (len(training), len(held_out)) == (6, 3)
    assert held_out.path == tmp_path / "val"
    edit_description(tmp_path / "val", class_names=["Noise", "LTE", "NR"])
    with pytest.raises(
        UserError, match=r"val: expected class_names \['Noise', 'NR', 'LTE'\].*train.*'LTE', 'NR'"
    ):
        SpectrogramSet(tmp_path / "train", tmp_path / "val")


def test_an_interrupted_set_goes_on(tmp_path):
    write_labelled(tmp_path / "whole" / "set")
    for stop in (2, 2, 5):  # once without a step forward
        with pytest.raises(KeyboardInterrupt):
            write_labelled(tmp_path / "set", stop=stop)
        assert sorted(path.name for path in tmp_path.iterdir()) == [".set.partial", "whole"]
    assert (
        registry.find([str(tmp_path)]).sets[0].path == tmp_path / "whole" / "set"
    )  # the other is passed over
    assert write_labelled(tmp_path / "set") == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "whole"]
    assert contents(tmp_path / "set") == contents(tmp_path / "whole" / "set")
    with pytest.raises(UserError, match="set: expected a new folder to write; it exists already"):
        write_labelled(tmp_path / "set")


def test_an_unfinished_set_without_samples_is_not_kept(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write_labelled(tmp_path / "set", stop=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"resume_key": KEY | {"seed": 2}}, r"\(resume_key.seed was 1, is 2\)"),
        (
            {"resume_key": {"seed": 1, "config": {"preset": "wild", "snr_db": [0.0, 40.0], "new": 1}}},
            r"\(resume_key.config.snr_db was \[-5.0, 40.0\], is \[0.0, 40.0\]; resume_key.config.new was null, is 1\)",
        ),
        ({"count": 7}, r"\(shape was \[6, 1, 16, 24\], is \[7, 1, 16, 24\]\)"),
        ({"labels": False}, r"\(labels was true, is false\)"),
        ({"class_names": ("Noise", "LTE", "NR")}, r"\(class_names was .*\)"),
    ],
)
def test_another_set_does_not_go_on(tmp_path, changes, words):
    with pytest.raises(KeyboardInterrupt):
        write_labelled(tmp_path / "set", stop=3)
    before = contents(tmp_path / ".set.partial")
    with pytest.raises(
        UserError, match=rf"set: expected to go on .*{words}: remove that folder to start anew"
    ):
        write_labelled(tmp_path / "set", **changes)
    assert contents(tmp_path / ".set.partial") == before
    shutil.rmtree(tmp_path / ".set.partial")
    parts = 4 if changes.get("labels", True) else 3
    assert write_labelled(tmp_path / "set", sample=lambda index: labelled(index)[:parts], **changes) == 0


def test_damaged_unfinished_sets(tmp_path):
    partial = tmp_path / ".set.partial"

    def begin():
        shutil.rmtree(partial, ignore_errors=True)
        with pytest.raises(KeyboardInterrupt):
            write_labelled(tmp_path / "set", stop=3)

    begin()
    (partial / "masks.npy").write_bytes((partial / "masks.npy").read_bytes()[:-1])
    with pytest.raises(
        UserError, match=r"\.set\.partial/masks.npy: expected an array; found a missing or damaged file"
    ):
        write_labelled(tmp_path / "set")
    begin()
    (partial / "unfinished.json").write_text("{")
    with pytest.raises(
        UserError, match=r"\.set\.partial; .*unfinished.json cannot be read.*remove that folder"
    ):
        write_labelled(tmp_path / "set")
    begin()
    (partial / "unfinished.json").unlink()
    (partial / "thesis.txt").touch()
    with pytest.raises(
        UserError, match=r"expected .*\.set\.partial to be an unfinished set; found thesis.txt in it"
    ):
        write_labelled(tmp_path / "set")
    assert (partial / "thesis.txt").exists()
    # Lines that a power cut tore or filled with zeros do not count, nor does what follows them.
    lines = [json.dumps({"name": f"scene {index}"}) + "\n" for index in range(3)]
    for tail, whole in (
        ("", 3),
        (lines[0][:-1], 3),
        ('{"na\n' + lines[0], 3),
        ("\0" * 40 + "\n" + lines[1], 3),
        ("7\n", 3),
    ):
        begin()
        with open(partial / "metadata.jsonl", "a") as file:
            file.write(tail)
        assert write_labelled(tmp_path / "set") == whole
        shutil.rmtree(tmp_path / "set")


def test_two_writers_of_one_set_do_not_meet(tmp_path):
    with labelled_writer(tmp_path / "set") as packed:
        packed.add(*labelled(0))
        with pytest.raises(
            UserError, match=r"set: expected no other writer; a process is writing .*\.set\.partial"
        ):
            write_labelled(tmp_path / "set")
        for index in range(1, 6):
            packed.add(*labelled(index))
    write_labelled(tmp_path / "alone" / "set")
    assert contents(tmp_path / "set") == contents(tmp_path / "alone" / "set")


@pytest.mark.parametrize("key", [None, KEY])
def test_a_full_disk(tmp_path, monkeypatch, key):
    write_labelled(tmp_path / "other")
    other, refused = contents(tmp_path / "other"), "set: expected a folder that can be written; "
    with largest_file(4000), pytest.raises(UserError, match=f"{refused}.*File too large"):
        write_labelled(tmp_path / "set", resume_key=key)
    monkeypatch.setattr(
        os, "posix_fallocate", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    )
    with pytest.raises(UserError, match=f"{refused}.*No space left on device"):
        write_labelled(tmp_path / "set", resume_key=key)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["other"]

    def wordy(index):
        decibels, metadata, *rest = labelled(index)
        return decibels, metadata | {"text": "x" * 9000}, *rest

    with largest_file(20000), pytest.raises(UserError, match=f"{refused}.*File too large"):
        write_labelled(tmp_path / "set", resume_key=key, sample=wordy)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".set.partial", "other"][0 if key else 1 :]
    assert contents(tmp_path / "other") == other
    if key:  # there is room again
        assert write_labelled(tmp_path / "set") == 2
        assert ["text" in line for line in SpectrogramSet(tmp_path / "set").metadata] == [True] * 2 + [
            False
        ] * 4


STEPS = ("open", "pwrite", "fsync", "replace", "truncate", "posix_fallocate", "mkdir")


def die_before(step):
    """Have this process killed in front of the `step`-th system call that writes, as by a power cut.

    Of a write that is due, half is done; what was written to arrays and not yet synced is lost, to lines it
    stays.
    """
    calls, unsynced = itertools.count(), {}

    def wrapped(name, function):
        def call(*args, **kwargs):
            if next(calls) == step:
                if name == "pwrite":
                    function(args[0], args[1][: len(args[1]) // 2], args[2])
                for descriptor, writes in unsynced.items():
                    if os.readlink(f"/proc/self/fd/{descriptor}").endswith(".npy"):
                        for size, position in writes:
                            real["pwrite"](descriptor, bytes(size), position)
                os.kill(os.getpid(), signal.SIGKILL)
            if name == "pwrite":
                unsynced.setdefault(args[0], []).append((len(args[1]), args[2]))
            if name == "fsync":
                unsynced.pop(args[0], None)
            return function(*args, **kwargs)

        return call

    real = {name: getattr(os, name) for name in STEPS}
    for name, function in real.items():
        setattr(os, name, wrapped(name, function))


def in_child(work):
    """Do it in a fork of this process; returns how that ended: its exit status, or -9 where it was killed."""
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.slow
def test_a_set_goes_on_wherever_its_writer_was_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(set_writer, "COMMIT_S", -1.0)  # after each sample
    write_labelled(tmp_path / "whole", count=4)
    whole, path, found = contents(tmp_path / "whole"), tmp_path / "set", []
    for step in itertools.count():
        status = in_child(lambda: (die_before(step), write_labelled(path, count=4)))  # noqa: B023
        if status == 0:
            break
        assert status == -signal.SIGKILL
        assert not path.exists()
        found.append(write_labelled(path, count=4))
        assert contents(path) == whole
        assert sorted(one.name for one in tmp_path.iterdir()) == ["set", "whole"]
        shutil.rmtree(path)
    assert contents(path) == whole
    assert found == sorted(found)
    assert set(found) == {0, 1, 2, 3, 4}
    assert len(found) > 40


def test_a_set_whose_writers_are_killed_again_and_again(tmp_path, monkeypatch):
    monkeypatch.setattr(set_writer, "COMMIT_S", -1.0)
    write_labelled(tmp_path / "whole", count=20)
    kills = 0
    while in_child(lambda: (die_before(31), write_labelled(tmp_path / "set", count=20))):
        kills += 1
        assert kills < 20
    assert kills > 3
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")


def test_a_killed_process_loses_what_it_did_since_the_last_commit(tmp_path):
    def sample(index):
        set_writer.COMMIT_S = -1.0 if index == 50 else float("inf")  # after sample 50 only
        if index == 100:
            os.kill(os.getpid(), signal.SIGKILL)
        return labelled(index)

    assert in_child(lambda: write_labelled(tmp_path / "set", count=120, sample=sample)) == -signal.SIGKILL
    assert write_labelled(tmp_path / "set", count=120) == 51
    write_labelled(tmp_path / "whole", count=120)
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")


# Images


def test_tiff_follows_the_published_recipe(tmp_path):
    power = np.random.default_rng(0).exponential(1e-6, (300, 500)).astype(np.float32)
    power[0] = 0
    Image.fromarray(power).save(tmp_path / "a.tif")
    image = load_image(tmp_path / "a.tif", (224, 224))
    decibels = torch.from_numpy((10 * np.log10(power.astype(np.float64) + 1e-12) + 120) / 119.5)[None, None]
    expected = torch.nn.functional.interpolate(decibels, (224, 224), mode="bicubic", antialias=True)
    np.testing.assert_allclose(image, ((expected - 0.451) / 0.043)[0], atol=2e-3)
    assert image.dtype == np.float32


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG"])
def test_pictures_are_turned_so_that_low_frequencies_come_first(tmp_path, suffix):
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[:20] = (255, 200, 0)  # the upper half, high frequencies
    Image.fromarray(picture).save(tmp_path / f"a{suffix}")
    image = load_image(tmp_path / f"a{suffix}", (32, 48))
    assert isinstance(opened(tmp_path)[0], ImageFiles)
    assert image.shape == (1, 32, 48)
    assert image[0, -10:].min() > 0.9
    assert image[0, :10].max() < -0.9
    assert abs(image.mean()) < 1e-5
    assert image.std() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("shape", [(30, 50), (3, 30, 50)])
def test_npy_images(tmp_path, shape):
    values = np.random.default_rng(0).standard_normal(shape) * 7 - 80
    np.save(tmp_path / "a.npy", values)
    source, made = opened(tmp_path, "--input_size", "16", "24")
    image = source.load(0, None)[1]
    channels = shape[0] if len(shape) == 3 else 1
    assert source.in_chans == channels
    assert image.shape == (channels, 16, 24)
    assert made.image_size == (16, 24)
    np.testing.assert_allclose(image.mean(axis=(1, 2)), 0, atol=1e-5)


def test_images_that_are_none(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    np.save(tmp_path / "objects.npy", np.array([{}, {}], dtype=object))
    np.save(tmp_path / "line.npy", np.zeros(5))
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "grey.tif")
    Image.fromarray(np.full((4, 4), -1, np.float32)).save(tmp_path / "negative.tif")
    np.save(tmp_path / "nan.npy", np.full((4, 4), np.nan))
    expected = {
        "text.png": "damaged",
        "objects.npy": "damaged",
        "line.npy": r"found float64 \[5\]",
        "grey.tif": "float power; found uint8",
        "negative.tif": "found -1",
        "nan.npy": "NaN",
    }
    for name, words in expected.items():
        with pytest.raises(UserError, match=words) as error:
            load_image(tmp_path / name, (8, 8))
        assert name in str(error.value)
    np.save(tmp_path / "colour.npy", np.zeros((3, 8, 8)))
    np.save(tmp_path / "plain.npy", np.zeros((8, 8)))
    both = ImageFiles([tmp_path / "colour.npy", tmp_path / "plain.npy"], (8, 8))
    with pytest.raises(UserError, match=r"plain.npy: expected 3 channels.*found 1"):
        both.load(1, None)


# Files that change while a run reads them


def spectrogram_set(tmp_path, name):
    parts = {
        "spectrograms.npy": ("load", {}),
        "masks.npy": ("target", {}),
        "labels.npy": (
            "target",
            {"masks": False, "sample": lambda i: (*labelled(i)[:2], None, labelled(i)[3])},
        ),
    }
    method, kwargs = parts[name]
    write_labelled(tmp_path / "set", **kwargs)
    return SpectrogramSet(tmp_path / "set"), method, tmp_path / "set" / name


def recording(tmp_path, name):
    samples = np.random.default_rng(0).integers(-99, 99, (10000, 2)).astype("<i2")
    data = path = tmp_path / name
    if name.startswith("a.sigmf"):
        meta = write_sigmf(tmp_path, samples.tobytes(), "ci16_le", sample_rate=200e3)
        data = path = meta.with_suffix(".sigmf-data")
        if name == "a.sigmf":
            path = tmp_path / name
            with tarfile.open(path, "w") as archive:
                for member in (meta, data):
                    archive.add(member, member.name)
                    member.unlink()
            data = path
    elif name.endswith(".npy"):
        values = samples.astype(np.float32)
        np.save(path, values.T.copy() if name == "planes.npy" else values.view(np.complex64)[:, 0])
    else:
        path.write_bytes(samples.tobytes())
    return RecordingWindows.from_recordings(find_recordings(path, 200e3), front_end()), "load", data


def annotated(tmp_path):
    about = {
        "core:sample_start": 0,
        "core:freq_lower_edge": 2.4e9,
        "core:freq_upper_edge": 2.41e9,
        "core:label": "NR",
    }
    path = write_ci16(tmp_path, annotations=[about])
    return AnnotatedWindows(find_recordings(path), front_end()), "load", path.with_suffix(".sigmf-data")


def images(tmp_path, name):
    paths = [tmp_path / f"{number}{name}" for number in range(2)]
    power = np.random.default_rng(0).random((40, 60), np.float32)
    for path in paths:
        if path.suffix == ".npy":
            np.save(path, power)
        else:
            picture = (
                Image.fromarray(power)
                if path.suffix == ".tif"
                else Image.fromarray((255 * power).astype(np.uint8))
            )
            picture.save(path, **({"compression": "tiff_lzw"} if "lzw" in name else {}))
    return ImageFiles(paths, (16, 24)), "load", paths[1]


def frames(tmp_path, name, method):
    for number in range(2):
        if name.endswith(".mat"):
            write_resaved(
                tmp_path, number, np.random.default_rng(0).random((16, 16)), np.eye(16, dtype=np.uint8) * 127
            )
        else:
            write_frame(tmp_path, "LTE_NR", number, labels=np.eye(16, dtype=np.uint8) * 127)
    path = next(tmp_path.rglob(name))
    return MathWorksFrames(tmp_path, "combined"), method, path


def ntu_fi(tmp_path):
    source = NtuFiHar(write_ntu_fi(tmp_path), (16, 24))
    source.fit([0])
    return source, "load", source.paths[-1]


def class_folders(tmp_path):
    write_pngs(tmp_path)
    return ClassFolders(tmp_path, front_end()), "load", tmp_path / "zigbee" / "2.png"


SAID_BY_SIZE = {
    **{name: (spectrogram_set, name) for name in ("spectrograms.npy", "masks.npy", "labels.npy")},
    **{
        name: (recording, name) for name in ("a.sigmf-meta", "a.sigmf", "a.cs16", "complex.npy", "planes.npy")
    },
    "annotated": (annotated,),
}
SAID_BY_THEIR_FORMAT = {
    **{name: (images, name) for name in (".tif", ".lzw.tif", ".png", ".jpg", ".npy")},
    **{
        name: (frames, name, method)
        for name, method in (
            ("LTE_NR_frame_1.png", "load"),
            ("LTE_NR_frame_1.hdf", "target"),
            ("LTE_NR_spect_frame_1.mat", "load"),
            ("LTE_NR_labels_frame_1.mat", "target"),
        )
    },
    "ntu_fi": (ntu_fi,),
    "class_folders": (class_folders,),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", [*SAID_BY_SIZE, *SAID_BY_THEIR_FORMAT])
def test_a_file_that_is_cut_or_deleted_during_a_run_is_named(tmp_path, kind):
    build, *args = (SAID_BY_SIZE | SAID_BY_THEIR_FORMAT)[kind]
    source, method, path = build(tmp_path, *args)

    def read(index):
        return source.target(index) if method == "target" else source.load(index, None)[1]

    def failure():
        with pytest.raises(UserError) as error:
            read(len(source) - 1)
        assert "\n" not in str(error.value)
        return str(error.value)

    first, last, whole = read(0), read(len(source) - 1), path.read_bytes()
    os.truncate(path, len(whole) // 2)
    if kind in SAID_BY_SIZE:
        found = re.fullmatch(
            re.escape(f"{path}: expected ") + r"(\d+) bytes or more, as when it was opened; found (\d+)",
            failure(),
        )
        assert found[2] == str(len(whole) // 2)
        assert found[1] == str(len(whole)) or (kind == "a.sigmf" and 40000 < int(found[1]) < len(whole))
    else:
        assert re.match(
            re.escape(f"{path}: expected ")
            + ".*; found a damaged or unreadable file|"
            + re.escape(f"{path}: expected an HDF4 raster image; found a cut file"),
            failure(),
        )
    path.write_bytes(whole + bytes(99) if kind in SAID_BY_SIZE else whole)  # to have grown is no harm
    assert np.array_equal(read(0), first)
    assert np.array_equal(read(len(source) - 1), last)
    path.unlink()
    assert failure().startswith(f"{path}: expected ")
    assert failure().endswith("; found no such file, though it was there when the run began")


def test_the_picture_that_labels_belong_to_is_named_too(tmp_path):
    source, _, path = frames(tmp_path, "LTE_NR_frame_1.png", "load")
    path.unlink()
    with pytest.raises(UserError, match=re.escape(f"{path}: expected an image; found no such file")):
        source.target(1)


def test_an_npz_of_csi_is_in_memory_since_it_was_opened(tmp_path):
    source = CsiFile(write_npz(tmp_path / "a.npz"))
    source.fit([0, 1])
    before = [source.load(index, None)[1] for index in range(6)]
    os.truncate(source.path, 100)
    assert all(np.array_equal(source.load(index, None)[1], before[index]) for index in range(6))
    source.path.unlink()
    assert [source.target(index) for index in range(6)] == [1, 0, 2] * 2
    assert all(np.array_equal(source.load(index, None)[1], before[index]) for index in range(6))


def test_what_was_loaded_of_a_set_stays_when_its_file_is_cut(tmp_path):
    """A batch is stacked long after its first sample was loaded, and a map of a cut file kills whoever
    touches it.
    """
    write_labelled(tmp_path / "set", 400)
    source = SpectrogramSet(tmp_path / "set")
    whole = [np.array(source.load(index, None)[1]) for index in range(400)]

    def stack():
        loaded = [source.load(index, None)[1] for index in range(400)]
        masks = [source.target(index) for index in range(400)]
        os.truncate(tmp_path / "set" / "spectrograms.npy", 200)
        os.truncate(tmp_path / "set" / "masks.npy", 200)
        assert np.array_equal(np.stack(loaded), whole)
        assert np.stack(masks).max() == 2

    assert in_child(stack) == 0


def test_a_set_that_is_cut_while_it_is_read_is_named(tmp_path, monkeypatch):
    """Cut and regrown between two system calls: the bytes count."""
    source, _, path = spectrogram_set(tmp_path, "spectrograms.npy")
    whole, preadv = path.read_bytes(), os.preadv

    def cut(*args):
        os.truncate(path, len(whole) - 100)
        found = preadv(*args)
        path.write_bytes(whole)
        return found

    monkeypatch.setattr(os, "preadv", cut)
    with pytest.raises(UserError, match=r"spectrograms.npy: expected 768 bytes of sample 5; found 668"):
        source.load(5, None)
    monkeypatch.setattr(os, "preadv", Mock(side_effect=OSError(errno.EIO, "Input/output error")))
    with pytest.raises(
        UserError, match=r"spectrograms.npy: expected a file that can be read; found .*Input/output error"
    ):
        source.load(5, None)


def test_sets_are_read_where_there_is_no_preadv(tmp_path, monkeypatch):
    write_labelled(tmp_path / "set")
    source = SpectrogramSet(tmp_path / "set")
    order = (5, 0, 3)
    before = [source.load(index, None)[1] for index in order]
    monkeypatch.delattr(os, "preadv")
    assert all(
        np.array_equal(source.load(index, None)[1], values)
        for index, values in zip(order, before, strict=True)
    )


def test_a_set_goes_to_another_process_without_its_arrays(tmp_path):
    write_labelled(tmp_path / "set", 40)
    source = SpectrogramSet(tmp_path / "set")
    sent = pickle.dumps(source)
    assert len(sent) < 3000  # the spectrograms alone are 31 kB
    again = pickle.loads(sent)
    assert np.array_equal(again.load(7, None)[1], source.load(7, None)[1])
    assert np.array_equal(again.target(7), source.target(7))
    for index in (-1, 40):
        with pytest.raises(IndexError, match="outside of 40"):
            source.spectrograms[index]
    os.truncate(tmp_path / "set" / "masks.npy", 1000)
    with pytest.raises(UserError, match=r"masks\.npy: expected an array"):
        pickle.loads(sent)


def test_a_set_of_columns_is_refused(tmp_path):
    write_labelled(tmp_path / "set")
    np.save(tmp_path / "set" / "masks.npy", np.zeros((6, 16, 24), np.uint8, order="F"))
    with pytest.raises(
        UserError, match=r"masks\.npy: expected an array in C order; found one in Fortran order"
    ):
        SpectrogramSet(tmp_path / "set")


def masked_loader(source):
    return make_loader(
        MaskedSamples(source, 4, 0, training=True), EpochBatches(len(source), 2, 0, shuffle=False), 1, False
    )


def labelled_loader(source):
    samples = LabelledSamples(Part(source, np.arange(len(source))), 0)
    return make_loader(samples, EpochBatches(len(samples), 2, 0, shuffle=False), 1, False)


@pytest.mark.parametrize("change", ["truncated", "deleted"])
@pytest.mark.parametrize(
    ("name", "loader"),
    [("a.sigmf-data", masked_loader), ("spectrograms.npy", masked_loader), ("masks.npy", labelled_loader)],
)
def test_a_worker_names_the_file_and_does_not_die(tmp_path, name, loader, change):
    if name.endswith(".npy"):
        write_labelled(tmp_path / "set", 200)
        source, path = SpectrogramSet(tmp_path / "set"), tmp_path / "set" / name
    else:
        path = write_ci16(tmp_path, duration_s=2).with_suffix(".sigmf-data")
        source = RecordingWindows.from_recordings(find_recordings(path), front_end())
    assert len(source) == 200
    loader = loader(source)
    batches = iter(
        loader.batches(
            partial(to_images, front_end=front_end(), device=torch.device("cpu")), torch.device("cpu")
        )
    )
    try:
        next(batches)
        [worker] = loader.workers
        size = path.stat().st_size
        path.unlink() if change == "deleted" else os.truncate(path, size // 4)
        with pytest.raises(UserError) as error:
            list(batches)
    finally:
        loader._loader._iterator._shutdown_workers()
    found = {
        "truncated": f"bytes or more, as when it was opened; found {size // 4}",
        "deleted": "; found no such file, though it was there when the run began",
    }[change]
    line = one_line(error.value)
    assert line.startswith(f"{path}: expected ")
    assert line.endswith(found)
    assert worker.exitcode == 0


# Paths


def test_a_path_is_what_it_holds(tmp_path):
    write_ci16(tmp_path / "air" / "day", "a", 0.05)
    Image.fromarray(np.ones((40, 60), np.float32)).save(tmp_path / "plain.tif")
    Image.fromarray(np.zeros((40, 60), np.uint8)).save(tmp_path / "air" / "preview.png")
    write_set(tmp_path / "sets" / "one")
    write_set(tmp_path / "sets" / "two")
    assert isinstance(opened(tmp_path / "air")[0], RecordingWindows)
    assert isinstance(opened(tmp_path / "air" / "day" / "a.sigmf-meta")[0], RecordingWindows)
    assert isinstance(opened(tmp_path / "plain.tif")[0], ImageFiles)
    assert isinstance(opened(tmp_path / "sets" / "one")[0], SpectrogramSet)
    assert len(opened(tmp_path / "sets")[0]) == 12
    source, made = opened(tmp_path / "sets" / "one", tmp_path / "air")
    assert made.settings() == front_end().settings()
    assert len(source) == 6 + 5


def test_images_beside_recordings_are_left_out_aloud(tmp_path, capsys):
    write_ci16(tmp_path, "a", 0.05)
    Image.fromarray(np.zeros((40, 60), np.uint8)).save(tmp_path / "a.png")
    assert registry.find([str(tmp_path)]).recordings == [str(tmp_path / "a.sigmf-meta")]
    assert "1 image files beside the recordings are left out" in capsys.readouterr().err


def test_paths_that_hold_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("x")
    for path, words in (("none", "found none"), ("empty", "among 0 files"), ("other", "among 1 files")):
        with pytest.raises(UserError, match=words) as error:
            registry.find([str(tmp_path / path)])
        assert f"--data_path {tmp_path / path}" in str(error.value)


def test_images_do_not_mix_with_what_has_a_front_end(tmp_path):
    write_ci16(tmp_path / "air", "a", 0.05)
    Image.fromarray(np.ones((40, 60), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match="--data_path: expected images alone"):
        opened(tmp_path / "air", tmp_path / "a.tif")


def test_defaults_of_the_front_end(tmp_path):
    write_ci16(tmp_path, "a", 0.05)
    assert opened(tmp_path)[1].settings() == Spectrogram().settings()
    made = opened(tmp_path, "--window_ms", "4", "--n_fft", "100", "--input_size", "32")[1]
    assert made.settings() == Spectrogram(100, 0.004, (32, 32)).settings()


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        (["--window_ms", "5"], "--window_ms 5; found 10"),
        (["--n_fft", "128"], "--n_fft 128; found 64"),
        (["--input_size", "32"], r"--input_size \[32, 32\]; found \[16, 24\]"),
    ],
)
def test_flags_must_agree_with_a_set(tmp_path, flag, words):
    write_set(tmp_path / "set")
    with pytest.raises(UserError, match=words):
        opened(tmp_path / "set", *flag)


def test_sets_must_agree_with_each_other(tmp_path):
    write_set(tmp_path / "one")
    write_set(tmp_path / "two", made=front_end(n_fft=32))
    with pytest.raises(UserError, match=r"two: expected a spectrogram set made with --n_fft 64; found 32"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        (["--window_ms", "0"], "--window_ms"),
        (["--window_ms", "nan"], "--window_ms"),
        (["--n_fft", "1"], "n_fft=1"),
        (["--input_size", "0"], "--input_size"),
        (["--input_size", "1", "2", "3"], "--input_size"),
    ],
)
def test_front_end_flags_out_of_range(tmp_path, flag, words):
    write_ci16(tmp_path, "a", 0.05)
    with pytest.raises(UserError, match=words):
        opened(tmp_path, *flag)
