"""data.mathworks: frames made as MathWorks' example describes them, by SciPy and Pillow."""

import struct

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from scipy.signal import spectrogram
from support import (
    FRAME_RATE_HZ,
    columns_of,
    hdf4,
    raster,
    through_parula,
    write_fork,
    write_frame,
    write_frames,
    write_resaved,
)

from data.mathworks import PROTOCOLS, MathWorksFrames
from data.mathworks_files import find_frames, holds_frames
from data.sampling import IMAGE
from data.splits import make_splits, sample_names
from util.errors import UserError


def one_frame(folder, picture, labels, **kwargs):
    write_frame(folder, "LTE_NR", 1, picture, labels)
    return MathWorksFrames(folder, "combined", **kwargs)


@pytest.fixture(scope="module")
def frames_folder(tmp_path_factory):
    return write_frames(tmp_path_factory.mktemp("frames") / "TrainingData")


def test_frequency_grows_downwards_and_time_to_the_right_from_iq_to_image(tmp_path):
    rng = np.random.default_rng(0)
    time_s = np.arange(2**18) / FRAME_RATE_HZ
    iq = 1e-3 * rng.standard_normal((len(time_s), 2)) @ [1, 1j]
    iq += np.exp(2j * np.pi * 20e6 * time_s) + np.exp(-2j * np.pi * 9e6 * time_s) * (time_s < time_s[-1] / 4)
    # The example: |STFT|² centred, transposed, dB to [0, 1], nearest pixels, upside down, colours.
    power = spectrogram(iq, FRAME_RATE_HZ, "hann", 256, 10, 4096, detrend=False, return_onesided=False)[2]
    decibels = 10 * np.log10(np.fft.fftshift(power, axes=0).T + np.finfo(float).eps)  # (time, frequency)
    levels = (decibels - decibels.min()) / np.ptp(decibels)
    nearest = [((np.arange(256) + 0.5) * side / 256).astype(int) for side in levels.shape]
    picture = through_parula(levels[np.ix_(*nearest)])[::-1]
    labels = columns_of(-10e6, -8e6, 127) + columns_of(19e6, 21e6, 255)

    source = one_frame(tmp_path, picture, labels)
    kind, image = source.load(0, None)
    classes = source.target(0)

    assert kind == IMAGE
    assert image.shape == (1, 256, 256)
    assert image.dtype == np.float32
    assert classes.dtype == np.uint8
    row_hz = (np.arange(256) + 0.5) / 256 * FRAME_RATE_HZ - FRAME_RATE_HZ / 2
    assert abs(row_hz[image[0, :, 200].argmax()] - 20e6) < 0.5e6
    off = image[0, :, 80:].mean(axis=1)
    assert (image[0, :, :60].mean(axis=1) - off).argmax() == np.abs(
        row_hz + 9e6
    ).argmin()  # on for the first quarter
    assert set(classes[np.abs(row_hz + 9e6) < 0.8e6].flat) == {1}
    assert set(classes[np.abs(row_hz - 20e6) < 0.8e6].flat) == {2}
    assert set(classes[np.abs(row_hz) < 7e6].flat) == {0}


def test_an_image_is_the_pictures_luma_with_zero_mean_and_unit_variance(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (32, 48, 3)).astype(np.uint8)
    luma = np.asarray(Image.fromarray(picture).convert("L"), float)[::-1].T

    _, image = one_frame(tmp_path, picture, np.full((32, 48), 127, np.uint8)).load(0, None)

    assert image.shape == (1, 48, 32)
    assert abs(image.mean()) < 1e-5
    assert abs(image.std() - 1) < 1e-5
    np.testing.assert_allclose(image[0], (luma - luma.mean()) / luma.std(), atol=0.6 / luma.std())


def test_the_colours_of_parula_keep_their_order(tmp_path):
    levels = np.tile(np.linspace(0, 1, 17), (4, 1))

    _, image = one_frame(tmp_path, through_parula(levels), np.full((4, 17), 127, np.uint8)).load(0, None)

    assert (np.diff(image[0, :, 0]) > 0).all()


def test_a_constant_picture_is_zero(tmp_path):
    source = one_frame(tmp_path, np.full((8, 8, 3), 80, np.uint8), np.full((8, 8), 127, np.uint8))

    assert not source.load(0, None)[1].any()


@pytest.mark.parametrize("image_size", [(224, 224), (100, 300), (512, 64)])
def test_resized_labels_are_the_nearest_ones_and_resized_images_lie_under_them(tmp_path, image_size):
    rng = np.random.default_rng(1)
    labels = np.repeat(np.repeat(rng.choice([0, 127, 255], (16, 16)), 16, axis=0), 16, axis=1).astype(
        np.uint8
    )

    source = one_frame(tmp_path, labels, labels, image_size=image_size)
    classes, (_, image) = source.target(0), source.load(0, None)

    rows, columns = (((np.arange(side) + 0.5) * 256 / side).astype(int) for side in image_size)
    np.testing.assert_array_equal(classes, (labels[::-1].T.astype(int) + 1)[np.ix_(rows, columns)] // 128)
    assert image.shape == (1, *image_size)
    assert np.corrcoef(image.ravel(), classes.ravel())[0, 1] > 0.95


def test_a_shrunken_image_is_averaged(tmp_path):
    picture = np.zeros((128, 128), np.uint8)
    picture[::4, :64:4], picture[::4, 64::4] = 250, 50  # one pixel of each cell, off its centre

    _, image = one_frame(tmp_path, picture, np.full((128, 128), 127, np.uint8), image_size=(32, 32)).load(
        0, None
    )

    assert image[0, 2:14, 2:30].std() < 0.01
    assert image[0, 2:14].mean() - image[0, 18:30].mean() == pytest.approx(
        2, abs=0.05
    )  # two halves, unit variance


def test_frames_are_sorted_by_number_and_described(tmp_path):
    for number in (10, 2, 1):
        params = {"SCS": 30, "SNRdB": 40 + number, "RC": "R.9", "Info": {"A": [1, 2]}}
        path = write_frame(tmp_path, "NR", number, params=params)
        write_frame(tmp_path, "LTE_NR", number)
    write_frame(tmp_path, "LTE", 2)
    (tmp_path / "lte_capture_result1.png").write_bytes(b"no frame")
    (tmp_path / "._NR_frame_7.png").write_bytes(b"hidden")

    source = MathWorksFrames(tmp_path)

    assert [(frame.number, frame.technology) for frame in source.frames] == [
        (1, "NR"),
        (1, "LTE_NR"),
        (2, "NR"),
        (2, "LTE"),
        (2, "LTE_NR"),
        (10, "NR"),
        (10, "LTE_NR"),
    ]
    assert source.describe(0, None) == {
        "name": "NR frame 1",
        "path": str(path),
        "technology": "NR",
        "snr_db": 41.0,
        "parameters": {"SCS": 30, "SNRdB": 41, "RC": "R.9"},
    }
    assert source.describe(1, None)["snr_db"] is None
    assert source.describe(1, None)["parameters"] == {}


def test_single_to_combined_trains_on_one_technology_and_tests_on_both(frames_folder):
    source = MathWorksFrames(frames_folder, "single_to_combined")
    parts = source.parts()

    assert {source.frames[index].technology for index in parts["train"]} == {"NR", "LTE"}
    assert {source.frames[index].technology for index in parts["test"]} == {"LTE_NR"}
    assert [len(parts[name]) for name in ("train", "test")] == [24, 12]


@pytest.mark.parametrize(
    ("protocol", "kinds"), [("combined", {"LTE_NR"}), ("mixed", {"NR", "LTE", "LTE_NR"})]
)
def test_parts_drawn_at_random_share_no_number_and_follow_the_seed(frames_folder, protocol, kinds):
    def numbers_and_kinds(seed):
        source = MathWorksFrames(frames_folder, protocol, test_fraction=0.25, split_seed=seed)
        parts = source.parts()
        assert sorted([*parts["train"], *parts["test"]]) == list(range(len(source)))
        for name in ("train", "test"):
            assert {source.frames[index].technology for index in parts[name]} == kinds
        return [{source.frames[index].number for index in parts[name]} for name in ("train", "test")]

    train, test = numbers_and_kinds(seed=0)
    assert (len(train), len(test), train & test) == (9, 3, set())
    assert numbers_and_kinds(seed=0) == [train, test]
    assert len({tuple(sorted(numbers_and_kinds(seed)[1])) for seed in range(5)}) > 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_is_held_out_for_validation_is_never_from_the_test_part(frames_folder, protocol):
    source = MathWorksFrames(frames_folder, protocol)
    train, held_out = source.split(0.2, seed=3)

    assert len(held_out) > 0
    assert sorted([*train.indices, *held_out.indices]) == source.parts()["train"].tolist()
    numbers = [{source.frames[index].number for index in part.indices} for part in (train, held_out)]
    assert not numbers[0] & numbers[1]


def test_four_classes_are_told_from_three(tmp_path):
    labels = np.zeros((8, 8), np.uint8)
    labels[:, 1], labels[:, 2], labels[:, 3] = 85, 170, 255

    source = one_frame(tmp_path / "four", labels, labels)
    assert source.class_names == ["Noise", "NR", "LTE", "Unknown"]
    assert source.target(0)[:, 0].tolist() == [0, 1, 2, 3, 0, 0, 0, 0]

    labels[:, 1], labels[:, 2] = 127, 255
    source = one_frame(tmp_path / "three", labels, labels)
    assert source.class_names == ["Noise", "NR", "LTE"]
    assert source.target(0)[:, 0].tolist() == [0, 1, 2, 2, 0, 0, 0, 0]


def test_values_that_both_editions_have_do_not_decide(tmp_path):
    lte = columns_of(0, 10e6, 255, size=8)
    write_frame(tmp_path, "LTE_NR", 1, labels=lte)
    write_frame(tmp_path, "LTE_NR", 2, labels=lte + columns_of(-20e6, -10e6, 85, size=8))

    assert MathWorksFrames(tmp_path, "combined").class_names[-1] == "Unknown"


def test_the_resaved_layout_gives_what_the_published_one_gives(tmp_path):
    levels = np.random.default_rng(0).integers(0, 256, (32, 32)).astype(np.uint8)
    labels = columns_of(-20e6, -10e6, 127, 32) + columns_of(5e6, 10e6, 255, 32)
    write_resaved(tmp_path / "mat", 0, 0.3 * levels - 90.0, labels, SNRdB=20.0, RC="R.2")
    resaved, published = (
        MathWorksFrames(tmp_path / "mat", "combined"),
        one_frame(tmp_path / "png", levels, labels),
    )

    assert resaved.image_size == published.image_size == (32, 32)
    np.testing.assert_allclose(resaved.load(0, None)[1], published.load(0, None)[1], atol=1e-5)
    np.testing.assert_array_equal(resaved.target(0), published.target(0))
    assert resaved.describe(0, None)["snr_db"] == 20
    assert resaved.describe(0, None)["parameters"] == {"SNRdB": 20, "RC": "R.2"}


def test_a_resaved_picture_in_colour_is_read_as_one(tmp_path):
    picture = through_parula(np.random.default_rng(0).random((16, 24)))
    labels = np.full((16, 24), 127, np.uint8)
    write_resaved(tmp_path / "mat", 3, picture, labels)
    resaved, published = (
        MathWorksFrames(tmp_path / "mat", "combined"),
        one_frame(tmp_path / "png", picture, labels),
    )

    assert resaved.image_size == (24, 16)
    np.testing.assert_array_equal(resaved.load(0, None)[1], published.load(0, None)[1])


def test_a_folder_is_recognised_by_the_names_in_it(tmp_path, frames_folder):
    (tmp_path / "NR_frame.png").write_bytes(b"")

    assert not holds_frames(tmp_path)
    assert holds_frames(frames_folder.parent)


# Divided by folders


@pytest.mark.parametrize("form", ["mat", "png"])
def test_frames_of_one_number_in_train_and_val_are_different_frames(tmp_path, form):
    source = MathWorksFrames(write_fork(tmp_path / "fork", form=form))

    assert [frame.name for frame in source.frames] == [
        *(f"train LTE_NR frame {number}" for number in range(6)),
        *(f"val LTE_NR frame {number}" for number in range(3)),
    ]
    assert len(set(sample_names(source))) == len(set(source.groups["recording"])) == 9
    for frame in source.frames:
        for file in (frame.image, frame.labels, frame.parameters):
            assert file is None or file.parent == tmp_path / "fork" / frame.part / "LTE_NR"
    if form == "mat":
        assert [source.describe(index, None)["snr_db"] for index in (2, 8)] == [2, 2]


@pytest.mark.parametrize(
    ("counts", "held_out"),
    [
        ((("train", 6), ("val", 3)), {"test": "val"}),
        ((("train", 6), ("test", 3)), {"test": "test"}),
        ((("train", 6), ("val", 2), ("test", 3)), {"test": "test", "val": "val"}),
    ],
)
@pytest.mark.parametrize("protocol", ["mixed", "combined"])
def test_folders_of_parts_are_the_parts(tmp_path, counts, held_out, protocol):
    source = MathWorksFrames(write_fork(tmp_path / "fork", counts), protocol)
    made = make_splits(source, 0, 0.2, 0.2).parts

    folders = {part: {source.frames[index].part for index in indices} for part, indices in made.items()}
    assert folders == {"train": {"train"}, "val": {"train"}} | {
        part: {folder} for part, folder in held_out.items()
    }
    for part, folder in held_out.items():
        assert len(made[part]) == dict(counts)[folder]
    assert not set(made["train"]) & set(made["val"])
    train, validation = source.split(0.2, seed=0)
    assert {source.frames[index].part for part in (train, validation) for index in part.indices} == {"train"}


def test_one_folder_of_parts_is_no_division(tmp_path):
    fork = write_fork(tmp_path / "fork")
    for path in (fork / "train", fork / "train" / "LTE_NR"):
        source = MathWorksFrames(path, "combined")
        assert [frame.name for frame in source.frames] == [f"LTE_NR frame {number}" for number in range(6)]
        assert source.groups["recording"].tolist() == list(range(6))


def test_frames_beside_the_parts_and_protocols_that_divide_again_are_errors(tmp_path):
    fork = write_fork(tmp_path / "fork")
    with pytest.raises(
        UserError, match="--protocol single_to_combined: expected frames without folders train"
    ):
        MathWorksFrames(fork, "single_to_combined")
    (fork / "val" / "LTE_NR" / "LTE_NR_labels_frame_1.mat").unlink()
    with pytest.raises(
        UserError, match=r"val/LTE_NR/LTE_NR_labels_frame_1\.mat: expected the labels of LTE_NR frame 1"
    ):
        MathWorksFrames(fork)
    write_frame(tmp_path / "beside", "LTE_NR", 1)
    write_fork(tmp_path / "beside")
    with pytest.raises(UserError, match="or in none of these; found frames in others, train, val"):
        MathWorksFrames(tmp_path / "beside")
    write_fork(tmp_path / "untrained", (("val", 2), ("test", 2)))
    with pytest.raises(UserError, match="found frames in val, test"):
        MathWorksFrames(tmp_path / "untrained")


@pytest.fixture
def folder(tmp_path):
    return write_frames(tmp_path / "TrainingData", count=2, size=8)


def test_a_file_that_is_missing_is_named_with_its_frame(folder):
    (folder / "LTE_frame_1.hdf").unlink()
    with pytest.raises(UserError, match=r"LTE_frame_1\.hdf: .*LTE frame 1"):
        find_frames(folder)

    (folder / "LTE_frame_1.png").rename(folder / "LTE_frame_1.hdf")
    with pytest.raises(UserError, match=r"LTE_frame_1\.png: .*LTE frame 1"):
        find_frames(folder)


@pytest.mark.parametrize("role", ["spect", "labels"])
def test_a_resaved_file_that_is_missing_is_named_with_its_frame(tmp_path, role):
    write_resaved(tmp_path, 4, np.ones((8, 8)), np.zeros((8, 8), np.uint8), SNRdB=1)
    (tmp_path / f"LTE_NR_{role}_frame_4.mat").unlink()

    with pytest.raises(UserError, match=rf"LTE_NR_{role}_frame_4\.mat: .*LTE_NR frame 4"):
        find_frames(tmp_path)


def test_a_frame_that_is_there_twice_is_an_error(folder):
    write_frame(folder / "again", "NR", 1)

    with pytest.raises(UserError, match="NR frame 1"):
        find_frames(folder)


def test_a_mask_of_another_size_than_its_image_is_an_error(folder):
    (folder / "NR_frame_1.hdf").write_bytes(hdf4(raster(np.zeros((8, 4), np.uint8))))

    with pytest.raises(UserError, match=r"NR_frame_1\.hdf: expected labels of \[8, 8\].*found \[8, 4\]"):
        MathWorksFrames(folder).target(3)


@pytest.mark.parametrize("value", [1, 85, 170, 128, 254])
def test_a_label_that_is_no_class_is_an_error(folder, value):
    (folder / "NR_frame_1.hdf").write_bytes(hdf4(raster(np.full((8, 8), value, np.uint8))))

    with pytest.raises(UserError, match=rf"NR_frame_1\.hdf: .*\[0, 127, 255\].*found {value} in NR frame 1"):
        MathWorksFrames(folder).target(3)


def test_damaged_files_of_a_frame_are_named(folder):
    source = MathWorksFrames(folder)
    for name, read in (
        ("NR_frame_1.hdf", source.target),
        ("NR_frame_1.png", lambda index: source.load(index, None)),
    ):
        content = (folder / name).read_bytes()
        for length in (0, 3, 60, len(content) // 2):
            (folder / name).write_bytes(content[:length])
            with pytest.raises(UserError, match=name):
                read(3)
        (folder / name).write_bytes(content)
        read(3)


@pytest.mark.parametrize("compress", [False, True])
def test_a_mat_file_cut_anywhere_is_an_error(tmp_path, compress):
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    write_resaved(tmp_path, 1, pixels, pixels // 64 + np.uint8(127))
    source = MathWorksFrames(tmp_path, "combined")
    path = tmp_path / "LTE_NR_spect_frame_1.mat"
    savemat(path, {"rxSpectrogram": pixels}, do_compression=compress)
    content = path.read_bytes()

    for length in range(len(content) - 8):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=path.name):
            source.load(0, None)


def test_a_mat_file_without_its_variable_is_an_error(tmp_path):
    write_resaved(tmp_path, 1, np.ones((8, 8)), np.full((8, 8), 127, np.uint8), names=np.ones(3))
    source = MathWorksFrames(tmp_path, "combined")
    reads = {
        ("labels", "data"): lambda: source.target(0),
        ("metadata", "params"): lambda: source.describe(0, None),
        ("spect", "rxSpectrogram"): lambda: source.load(0, None),
    }
    for (role, key), read in reads.items():
        path = tmp_path / f"LTE_NR_{role}_frame_1.mat"
        content = path.read_bytes()
        savemat(path, {"other": np.ones(3)})
        with pytest.raises(UserError, match=f"{path.name}: expected the variable {key}; found other"):
            read()
        if role == "spect":
            with pytest.raises(UserError, match=f"{path.name}: expected the variable {key}; found other"):
                MathWorksFrames(tmp_path, "combined")
        path.write_bytes(content)


def test_a_mat_file_of_version_73_is_named_as_such(tmp_path):
    write_resaved(tmp_path, 1, np.ones((8, 8)), np.full((8, 8), 127, np.uint8))
    source = MathWorksFrames(tmp_path, "combined")
    header = b"MATLAB 7.3 MAT-file".ljust(124) + struct.pack("<H", 0x0200) + b"IM"
    (tmp_path / "LTE_NR_labels_frame_1.mat").write_bytes(header + bytes(400))

    with pytest.raises(UserError, match=r"before version 7\.3"):
        source.target(0)


@pytest.mark.parametrize("value", [0.5, -1, 256, np.nan])
def test_resaved_labels_that_are_no_bytes_are_an_error(tmp_path, value):
    write_resaved(tmp_path, 1, np.ones((8, 8)), np.full((8, 8), 127.0))
    source = MathWorksFrames(tmp_path, "combined")
    write_resaved(tmp_path, 1, np.ones((8, 8)), np.full((8, 8), value))

    with pytest.raises(UserError, match="integers from 0 to 255"):
        source.target(0)


def test_a_spectrogram_that_is_not_finite_is_an_error(tmp_path):
    write_resaved(tmp_path, 1, np.full((8, 8), -np.inf), np.full((8, 8), 127, np.uint8))

    with pytest.raises(UserError, match="found NaN or infinity"):
        MathWorksFrames(tmp_path, "combined").load(0, None)


def test_what_does_not_fit_the_protocol_is_an_error(tmp_path, folder):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(
        UserError, match="--protocol: expected one of single_to_combined, combined, mixed; found half"
    ):
        MathWorksFrames(folder, "half")
    with pytest.raises(UserError, match="found none"):
        MathWorksFrames(empty)
    with pytest.raises(UserError, match=r"nowhere: .*No such file"):
        MathWorksFrames(tmp_path / "nowhere")

    write_frame(tmp_path / "single", "NR", 1)
    for protocol in PROTOCOLS:
        with pytest.raises(UserError, match=f"--protocol {protocol}; found 1 NR, 0 LTE, 0 LTE_NR"):
            MathWorksFrames(tmp_path / "single", protocol)
    write_frame(tmp_path / "combined", "LTE_NR", 1)
    for protocol in ("mixed", "single_to_combined"):
        with pytest.raises(UserError, match="found 0 NR, 0 LTE, 1 LTE_NR"):
            MathWorksFrames(tmp_path / "combined", protocol)
    with pytest.raises(UserError, match="two frame numbers"):
        MathWorksFrames(tmp_path / "combined", "combined").parts()
