"""Class folders: layouts, kinds of samples, and what is wrong with a folder."""

import shutil

import numpy as np
import pytest
from support import write_ci16, write_png, write_pngs

from data.class_folders import ClassFolders, class_of_name
from data.images import load_image
from data.sampling import IMAGE, IQ
from data.splits import make_splits, sample_names
from radio.recordings import open_recording
from radio.spectrogram import Spectrogram
from util.errors import UserError

RATE = 200e3
SIZE = (16, 24)


def front_end(**kwargs):
    return Spectrogram(**{"n_fft": 64, "duration_s": 0.01, "image_size": SIZE} | kwargs)


def opened(path, **kwargs):
    return ClassFolders(path, front_end(), **kwargs)


# Images


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_pictures_have_the_class_of_their_folder(tmp_path, mode):
    write_pngs(tmp_path, mode=mode)
    (tmp_path / "ble" / ".hidden.png").write_bytes(b"")
    source = opened(tmp_path)
    assert source.class_names == ["LTE", "ble", "zigbee"]
    assert len(source) == 9
    assert source.parts() is None
    assert source.groups == {}
    assert (source.in_chans, source.image_size) == (1, SIZE)
    for index in range(9):
        folder, name = source.describe(index, None)["name"].split("/")
        assert source.class_names[source.target(index)] == folder
        kind, image = source.load(index, None)
        assert kind == IMAGE
        assert image.shape == (1, *SIZE)
        assert np.array_equal(image, load_image(tmp_path / folder / name, SIZE))
    assert len(set(sample_names(source))) == 9


def test_names_do_not_depend_on_where_the_folder_lies(tmp_path):
    write_pngs(tmp_path / "here")
    before = sample_names(opened(tmp_path / "here"))
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert sample_names(opened(tmp_path / "there")) == before
    assert before[0] == "LTE/0.png"


def test_spectrogram_arrays_and_folders_in_folders(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a/day1/x", "a/day2/x", "b/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / f"{name}.npy", rng.standard_normal((3, 20, 30)).astype(np.float32))
    source = opened(tmp_path)
    assert source.in_chans == 3
    assert source.load(2, None)[1].shape == (3, *SIZE)
    assert sample_names(source) == ["a/day1/x.npy", "a/day2/x.npy", "b/x.npy"]
    assert [source.target(index) for index in range(3)] == [0, 0, 1]


def test_files_are_read_when_they_are_loaded(tmp_path):
    write_pngs(tmp_path)
    broken = tmp_path / "zigbee" / "2.png"
    broken.write_bytes(broken.read_bytes()[:60])
    source = opened(tmp_path)
    source.load(7, None)
    with pytest.raises(UserError, match=r"zigbee/2\.png"):
        source.load(8, None)


def test_jpeg_lies_beside_png(tmp_path):
    write_pngs(tmp_path)
    write_png(tmp_path / "LTE" / "3.jpg", mode="RGB")
    write_png(tmp_path / "ble" / "3.JPEG")
    source = opened(tmp_path)
    assert len(source) == 11
    assert source.describe(3, None)["name"] == "LTE/3.jpg"
    assert source.load(3, None)[1].shape == (1, *SIZE)
    assert np.bincount(source.labels).tolist() == [4, 4, 3]


# Images named by their class


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("AM_001", "AM"),
        ("bluetooth-12", "bluetooth"),
        ("wifi3", "wifi"),
        ("LTE_NR_12", "LTE_NR"),
        ("802.11ax_3", "802.11ax"),
        ("qpsk-0001", "qpsk"),
        ("QAM16_12", "QAM16"),
        ("8PSK 7", "8PSK"),
        ("5G-NR_7", "5G-NR"),
        ("RS41-Radiosonde_3", "RS41-Radiosonde"),
        ("ads-b_4", "ads-b"),
        ("fm_103.7_001", "fm"),
        ("AM_3_b", "AM"),
        ("lora (2)", "lora"),
        ("vor", "vor"),
        ("AM-SSB", "AM-SSB"),
        ("0012", ""),
    ],
)
def test_a_label_is_what_comes_before_the_number(name, label):
    assert class_of_name(name) == label


def write_flat(folder, labels=("ads-b", "LTE_NR", "802.11ax"), count=3):
    for number, label in enumerate(labels):
        for sample in range(count):
            write_png(folder / f"{label}_{sample}.{('png', 'jpg', 'jpeg')[sample % 3]}", 10 * number + sample)


def test_a_flat_folder_has_the_classes_of_its_names(tmp_path, capsys):
    write_flat(tmp_path)
    (tmp_path / "LICENSE.txt").write_text("CC")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    source = opened(tmp_path)

    out, err = capsys.readouterr()
    assert out == f"{tmp_path}: classes by file name: 802.11ax (3), LTE_NR (3), ads-b (3)\n"
    assert ".txt (1)" in err
    assert source.class_names == ["802.11ax", "LTE_NR", "ads-b"]
    assert (len(source), source.parts(), source.groups) == (9, None, {})
    for index in range(9):
        name = source.describe(index, None)["name"]
        assert name.startswith(f"{source.class_names[source.target(index)]}_")
        assert np.array_equal(source.load(index, None)[1], load_image(tmp_path / name, SIZE))
    there = [path.name for path in tmp_path.iterdir() if path.suffix in (".png", ".jpg", ".jpeg")]
    assert sorted(sample_names(source)) == sorted(there)


def test_flat_folders_may_be_published_parts(tmp_path):
    write_flat(tmp_path / "train", count=4)
    write_flat(tmp_path / "test", count=2)
    source = opened(tmp_path)
    assert {name: len(indices) for name, indices in source.parts().items()} == {"train": 12, "test": 6}
    (tmp_path / "test" / "ads-b_0.png").unlink()
    (tmp_path / "test" / "ads-b_1.jpg").unlink()
    with pytest.raises(UserError, match=r"test: expected images of each class of .*; found none named ads-b"):
        opened(tmp_path)


def test_labels_before_an_underscore_are_found_where_no_number_follows(tmp_path):
    for name in ("fm_oslo", "fm_bergen", "sstv_a", "sstv_b"):
        write_png(tmp_path / f"{name}.png")
    assert opened(tmp_path).class_names == ["fm", "sstv"]


@pytest.mark.parametrize(
    "names",
    [
        ["AM_1", "AM_2"],
        ["AM_1", "FM_1", "PM_1"],
        ["1", "2", "3"],
        ["dog", "cat"],
        ["AM_1", "AM_2", "0001"],
    ],
)
def test_names_that_make_no_classes_are_refused(tmp_path, names):
    for name in names:
        write_png(tmp_path / f"{name}.png")
    with pytest.raises(
        UserError, match=rf"folders of two classes or more, or images .*; found {len(names)} images"
    ):
        opened(tmp_path)


# Parts


@pytest.mark.parametrize("parts", [("train", "test"), ("train", "val"), ("train", "val", "test")])
def test_published_parts_are_kept(tmp_path, parts):
    for number, part in enumerate(parts):
        write_pngs(tmp_path / part, count=4 + number)
    source = opened(tmp_path)
    assert source.class_names == ["LTE", "ble", "zigbee"]
    assert list(source.parts()) == [part for part in ("train", "val", "test") if part in parts]
    for part, indices in source.parts().items():
        assert len(indices) == 3 * (4 + parts.index(part))
        assert {source.describe(index, None)["name"].split("/")[0] for index in indices} == {part}
        assert np.array_equal(np.bincount(source.labels[indices]), [4 + parts.index(part)] * 3)
    made = make_splits(source, 0, 0.2, 0.2).parts
    for part in set(parts) - {"train"}:
        assert np.array_equal(made[part], source.parts()[part])
    assert set(made["train"]) <= set(source.parts()["train"])


# Recordings


def test_all_windows_of_a_recording_have_its_class(tmp_path, capsys):
    for name, duration_s, seed in (("b/x", 0.035, 0), ("a/x", 0.02, 1), ("a/y", 0.005, 2), ("a/z", 1e-4, 3)):
        folder, name = name.split("/")
        write_ci16(tmp_path / folder, name, duration_s, RATE, seed)
    source = opened(tmp_path)
    assert [source.target(index) for index in range(len(source))] == [0, 0, 0, 1, 1, 1]
    assert (
        source.groups["recording"].tolist()
        == [f"a/{name}.sigmf-meta" for name in "xxy"] + ["b/x.sigmf-meta"] * 3
    )
    assert source.describe(2, None)["name"] == "a/y.sigmf-meta"
    kind, values = source.load(4, None)
    assert kind == IQ
    assert np.array_equal(values, open_recording(tmp_path / "b" / "x.sigmf-meta")[0].read(2000, 2000))
    assert len(set(sample_names(source))) == 6
    assert "z.sigmf-meta" in capsys.readouterr().err


def test_raw_and_npy_recordings_are_opened_with_their_rate(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "raw.dat").write_bytes(bytes(2 * 2000))
        np.save(tmp_path / name / "iq.npy", np.zeros((2, 2000), np.float32))
    source = opened(tmp_path, sample_rate_hz=RATE, datatype="ci8")
    assert len(source) == 4
    with pytest.raises(UserError, match="--sample_rate"):
        opened(tmp_path, datatype="ci8")


# What is wrong


def without_class(path):
    write_pngs(path / "train")
    write_pngs(path / "test", classes=("zigbee", "ble"))


def with_class(path):
    write_pngs(path / "train")
    write_pngs(path / "test", classes=("zigbee", "LTE", "ble", "nr"))


def with_empty_class(path):
    write_pngs(path)
    (path / "nr").mkdir()
    (path / "nr" / "readme.txt").write_text("soon")


def with_two_kinds(path):
    write_pngs(path)
    write_ci16(path / "nr", "x", 0.02, RATE)


def with_pictures_and_arrays(path):
    write_pngs(path)
    np.save(path / "LTE" / "x.npy", np.zeros((20, 30)))


def with_parts_and_classes(path):
    write_pngs(path, classes=("train", "LTE"))


def with_training_alone(path):
    write_pngs(path / "train")


def with_one_class(path):
    write_pngs(path, classes=("LTE",))


def with_short_recordings(path):
    write_ci16(path / "LTE", "x", 0.02, RATE)
    write_ci16(path / "nr", "x", 1e-4, RATE)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (without_class, ["test: expected the classes of train", "LTE"]),
        (with_class, ["train: expected the classes of test", "nr"]),
        (with_empty_class, ["nr: expected recordings", "found none"]),
        (with_two_kinds, ["one kind", "PNG or JPEG (LTE/0.png)", "recordings (nr/x.sigmf-data)"]),
        (with_pictures_and_arrays, ["one kind", "PNG or JPEG (LTE/0.png)", ".npy spectrograms (LTE/x.npy)"]),
        (with_parts_and_classes, ["expected folders of classes, or train", "found LTE, train"]),
        (with_training_alone, ["expected folders of classes, or train", "found train"]),
        (with_one_class, ["two classes or more", "found LTE"]),
        (with_short_recordings, ["nr: expected recordings of at least an FFT"]),
        (lambda path: path.mkdir(), ["two classes or more", "found none"]),
        (lambda path: None, ["data: expected a folder with a folder for each class", "No such file"]),
        (lambda path: path.write_bytes(b"x"), ["data: expected a folder with a folder for each class"]),
    ],
)
def test_folders_that_hold_no_classes(tmp_path, make, says):
    make(tmp_path / "data")
    with pytest.raises(UserError) as error:
        opened(tmp_path / "data")
    assert all(part in str(error.value) for part in says)
    assert "\n" not in str(error.value)


def test_files_that_are_left_out_are_counted(tmp_path, capsys):
    write_pngs(tmp_path)
    write_png(tmp_path / "overview.png")
    for name in ("ble/a.gif", "ble/b.gif", "LTE/notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert len(opened(tmp_path)) == 9
    beside, others = capsys.readouterr().err.splitlines()
    assert "overview.png" in beside
    assert ".gif (2), .txt (1)" in others
