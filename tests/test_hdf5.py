"""data.hdf5 and data.formats: files as RadioML and WavesFM write them, and what is refused by the name of its
format.
"""

import pickle
import shlex
import struct
import subprocess
import sys
from functools import partial

import h5py
import numpy as np
import pytest
import torch
from support import WAVESFM_NAMES, write_hdf5, write_radioml, write_wavesfm
from test_tasks import opened, refused

from data import hdf5, registry
from data.batches import EpochBatches, to_images
from data.feeding import make_loader
from data.formats import HDF5, MATLAB, PICKLED, format_of
from data.hdf5 import RADIOML_CLASSES, open_hdf5
from data.labelled import LabelledSamples
from data.sampling import IMAGE, IQ
from data.splits import sample_names
from engine_evaluate import groupings
from radio.spectrogram import Spectrogram
from util.errors import UserError

CPU = torch.device("cpu")


def batches_of(data, name, workers=0):
    """The batches of a part, in its order, as training and evaluation get them."""
    part = data.parts[name]
    loader = make_loader(LabelledSamples(part, 0), EpochBatches(len(part), 5, 0, False), workers, False)
    return loader.batches(partial(to_images, front_end=data.front_end, device=CPU), CPU)


# RadioML 2018.01A


def test_radioml_is_read_as_it_lies(tmp_path):
    path = write_radioml(tmp_path / "GOLD.hdf5")
    data = opened("classification", path, "--input_size", 24, 32)
    source = data.source

    assert data.class_names == list(RADIOML_CLASSES)
    assert (RADIOML_CLASSES[3], RADIOML_CLASSES[21], len(set(RADIOML_CLASSES))) == ("BPSK", "FM", 24)
    assert (len(source), source.in_chans, source.image_size) == (24 * 12, 1, (24, 32))
    with h5py.File(path) as file:
        stored = file["X"][100]
        assert source.labels.tolist() == file["Y"][()].argmax(axis=1).tolist()
        assert source.groups["snr"].tolist() == file["Z"][:, 0].tolist()
    kind, iq = source.load(100, None)
    assert (kind, iq.dtype, iq.shape) == (IQ, np.complex64, (1024,))
    assert np.array_equal(iq, stored[:, 0] + 1j * stored[:, 1])
    assert (source.target(100), type(source.target(100))) == (8, int)
    assert source.describe(100, None) == {
        "name": "GOLD.hdf5 row 100",
        "path": str(path),
        "snr_db": source.groups["snr"][100],
        "num_samples": 1024,
    }
    assert len(set(sample_names(source))) == len(source)
    assert sum(map(len, data.parts.values())) == 288
    for part in data.parts.values():
        assert set(part.targets()) == set(range(24))


def test_batches_are_the_rows_in_the_order_that_was_asked_for(tmp_path):
    source = open_hdf5(write_radioml(tmp_path / "r.hdf5", classes=3))
    indices = [30, 2, 17, 2]
    [(kind, rows, places)] = source.load_many(indices, None, 0)

    assert (kind, places, rows.shape) == (IQ, [0, 1, 2, 3], (4, 1024, 2))
    for row, index in zip(rows, indices, strict=True):
        assert np.array_equal(row.view(np.complex64)[:, 0], source.load(index, None)[1])
    assert source.target_many(indices, 0).tolist() == [source.target(index) for index in indices]
    assert source.class_names == ["class 0", "class 1", "class 2"]


def test_the_spectrogram_of_a_row_shows_its_tone(tmp_path):
    data = opened("classification", write_radioml(tmp_path / "r.hdf5", classes=4), "--input_size", 32)
    assert data.front_end.n_fft == 128
    assert data.settings == {"kind": "iq_rows", "image_size": [32, 32], "row_n_fft": 128, "row_samples": 1024}
    for batch in batches_of(data, "train"):
        assert batch["images"].shape[1:] == (1, 32, 32)
        strongest = batch["images"][:, 0].mean(dim=2).argmax(dim=1)
        assert (strongest // 8).tolist() == batch["target"].tolist()


@pytest.mark.parametrize(("samples", "expected"), [(1024, 128), (128, 16), (1000, 64), (20, 2), (2, 2)])
def test_the_fft_is_an_eighth_of_a_row_unless_it_is_given(tmp_path, samples, expected):
    path = write_radioml(tmp_path / "r.hdf5", classes=2, samples=samples)
    assert opened("sensing", path).front_end.n_fft == expected
    assert opened("sensing", path, "--n_fft", 2).settings["row_n_fft"] == 2
    refused(
        f"--n_fft: expected 2 to {samples}, the samples in a row of {path}; found 1025",
        "sensing",
        path,
        "--n_fft",
        1025,
    )
    refused("--window_ms: expected none with", "sensing", path, "--window_ms", 16)


def test_weights_of_rows_keep_their_fft_and_others_are_named(tmp_path, capsys):
    path = write_radioml(tmp_path / "r.hdf5", classes=2)
    saved = opened("classification", path, "--n_fft", 64, "--input_size", 16).settings
    assert opened("classification", path, pretrained=saved).settings == saved
    refused(
        "--n_fft: expected 64, which the weights were trained with; found 32",
        "classification",
        path,
        "--n_fft",
        32,
        pretrained=saved,
    )
    assert capsys.readouterr().err == ""
    windows = Spectrogram(1024, 0.016, (16, 16)).settings()
    assert opened("classification", path, pretrained=windows).settings == saved | {"row_n_fft": 128}
    assert (
        "rows of 1024 samples go through --n_fft 128; the weights were trained with 1024"
        in capsys.readouterr().err
    )


def test_rows_are_split_and_measured_by_snr(tmp_path):
    path = write_radioml(tmp_path / "r.hdf5", classes=2)
    data = opened("classification", path, "--split_by", "snr", "--test_groups", "-20")
    test, train = (data.source.groups["snr"][data.parts[name].indices] for name in ("test", "train"))
    assert (set(test.tolist()), set(train.tolist())) == ({-20}, {0, 18})
    data = opened("classification", path)
    assert set(groupings(data.parts["train"])["SNR"]) == {"-20 dB", "0 dB", "18 dB"}


def test_more_labels_than_a_block_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(hdf5, "BLOCK_ROWS", 7)
    source = open_hdf5(write_radioml(tmp_path / "r.hdf5", classes=3))
    assert np.bincount(source.labels).tolist() == [12, 12, 12]


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_read_what_the_process_reads_though_it_has_read_before(tmp_path, workers):
    data = opened("classification", write_radioml(tmp_path / "r.hdf5", classes=2), "--input_size", 16)
    before = [data.source.load(int(index), None)[1] for index in data.parts["train"].indices]
    assert np.array_equal(
        pickle.loads(pickle.dumps(data.source)).load(0, None)[1], data.source.load(0, None)[1]
    )
    images = torch.cat([batch["images"] for batch in batches_of(data, "train", workers)])
    torch.testing.assert_close(images, data.front_end(torch.from_numpy(np.stack(before))))


# WavesFM's caches


@pytest.mark.parametrize(("data", "kind"), [("csi", "csi"), ("image", "images")])
@pytest.mark.parametrize("size", [20, 12])
def test_images_of_a_cache_are_resized_and_no_more(tmp_path, data, kind, size):
    path = write_wavesfm(tmp_path / "cache.h5", data)
    for task in ("sensing", "classification"):
        found = opened(task, path, "--input_size", size)
        assert found.class_names == WAVESFM_NAMES
        assert found.settings == {"kind": kind, "image_size": [size, size]}
        assert found.source.in_chans == 3
    image_kind, image = found.source.load(5, None)
    with h5py.File(path) as file:
        stored = torch.from_numpy(file[data][5])[None]
    if size != 20:
        stored = torch.nn.functional.interpolate(stored, (size, size), mode="bicubic", antialias=True)
    assert image_kind == IMAGE
    assert np.array_equal(image, stored[0].numpy())
    assert found.source.target(5) == 5


def test_recordings_and_snrs_of_a_cache_are_columns(tmp_path):
    files = [f"day{row // 6}.mat" for row in range(24)]
    snr = np.repeat(np.float32([0, 5.5]), 12)
    path = write_wavesfm(tmp_path / "cache.h5", snr=snr, source_file=files)
    data = opened("sensing", path, "--split_by", "snr", "--test_groups", "5.5")
    assert len(data.parts["test"]) == 12
    source = data.source
    assert source.groups["recording"].tolist() == files
    assert source.describe(20, None)["snr_db"] == 5.5
    of = [
        {source.groups["recording"][index] for index in part.indices}
        for part in opened("sensing", path).parts.values()
    ]
    assert sum(map(len, of)) == 4
    # A name for each row, or one for all, is nothing to keep together.
    for names in ([f"{row}.mat" for row in range(24)], ["all.mat"] * 24):
        assert "recording" not in open_hdf5(write_wavesfm(tmp_path / "other.h5", source_file=names)).groups


@pytest.mark.parametrize("data", ["sample", "iq"])
@pytest.mark.parametrize("antennas", [1, 3])
def test_iq_of_a_cache_has_an_antenna_in_each_channel(tmp_path, data, antennas):
    path = write_wavesfm(tmp_path / "iq.h5", data, (2, antennas, 256), names=None)
    found = opened("classification", path, "--input_size", 16)
    assert found.class_names == [f"class {number}" for number in range(6)]
    assert found.source.in_chans == antennas
    assert found.front_end.n_fft == 32
    part = found.parts["train"]
    images = torch.cat([batch["images"] for batch in batches_of(found, "train")])
    assert images.shape == (len(part), antennas, 16, 16)
    with h5py.File(path) as file:
        stored = file[data][()][part.indices]
    for antenna in range(antennas):
        iq = torch.complex(*torch.from_numpy(stored[:, :, antenna]).transpose(0, 1))
        torch.testing.assert_close(images[:, antenna], found.front_end(iq)[:, 0])


def test_names_may_be_an_array(tmp_path):
    path = write_wavesfm(tmp_path / "cache.h5", names=None)
    with h5py.File(path, "a") as file:
        file.attrs["labels"] = WAVESFM_NAMES
    assert open_hdf5(path).class_names == WAVESFM_NAMES


def test_compressed_chunks_of_many_rows_are_said_to_be_slow(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(hdf5, "SLOW_CHUNK_BYTES", 1000)
    open_hdf5(write_wavesfm(tmp_path / "plain.h5"))
    assert capsys.readouterr().err == ""
    path = tmp_path / "packed.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset(
            "csi", data=np.zeros((4, 1, 20, 20), np.float32), chunks=(4, 1, 20, 20), compression="gzip"
        )
        file["label"] = [0, 1, 0, 1]
    open_hdf5(path)
    assert "4 rows are decompressed to read one; h5repack -l csi:CHUNK=1x1x20x20" in capsys.readouterr().err


# What is wrong with a file


NAN = np.full((24, 3, 20, 20), np.nan, np.float32)
BAD = {
    "no data sets": (lambda path: write_hdf5(path, {}), "expected the data sets X and Y (RadioML|found none"),
    "other data sets": (
        lambda path: write_hdf5(path, {"a": [1], "b/c": [2.0]}),
        "the data sets X and Y|found a, b/c",
    ),
    "many others": (
        lambda path: write_hdf5(path, {f"d{n}": [1] for n in range(12)}),
        "found d0, d1, d10, d11, d2, d3, d4, d5, ...",
    ),
    "no labels": (lambda path: write_wavesfm(path, label=None), "found csi"),
    "no Y": (lambda path: write_radioml(path, classes=2, Y=None), "found X, Z"),
    "labels above": (
        lambda path: write_wavesfm(path, label=np.arange(24)),
        "expected labels from 0 to 5; found 0 to 23",
    ),
    "labels below": (
        lambda path: write_wavesfm(path, label=np.arange(24) % 6 - 1),
        "labels from 0 to 5; found -1 to 4",
    ),
    "one class": (
        lambda path: write_wavesfm(path, names=None, label=np.zeros(24, int)),
        "labels from 0 to 1; found 0 to 0",
    ),
    "a regression": (
        lambda path: write_wavesfm(path, label=np.zeros((24, 3), np.float32)),
        "label of integers [N], a class for each row (regression is no task here); found float32 [24, 3]",
    ),
    "fewer labels": (
        lambda path: write_wavesfm(path, label=np.arange(20) % 6),
        "for each of the 24 rows of csi; found 20",
    ),
    "names that repeat": (
        lambda path: write_wavesfm(path, names=["a", "b", "c", "d", "e", "a"]),
        "6 names that differ",
    ),
    "another number of SNRs": (
        lambda path: write_wavesfm(path, snr=np.zeros(3)),
        "24 numbers in snr; found float64 [3]",
    ),
    "rows of another shape": (
        lambda path: write_radioml(path, classes=2, X=np.zeros((24, 2, 1024), np.float32)),
        "numbers [N, samples, 2] in X; found float32 [24, 2, 1024]",
    ),
    "text for rows": (
        lambda path: write_wavesfm(path, "image", image=np.full((24, 1, 4, 4), b"a")),
        "numbers [N, C, rows, columns] in image; found |S1 [24, 1, 4, 4]",
    ),
    "two classes at once": (
        lambda path: write_radioml(path, classes=2, Y=np.ones((24, 2), int)),
        "a single 1 in each row of Y, the others 0, as in row 0; found [1, 1]",
    ),
    "a share of a class": (
        lambda path: write_radioml(path, classes=2, Y=np.full((24, 2), [0, 0.5])),
        "found [0.0, 0.5]",
    ),
    "Y of ids": (
        lambda path: write_radioml(path, classes=2, Y=np.zeros(24, int)),
        "Y one-hot, [N, classes]; found int64",
    ),
    "no HDF5": (lambda path: path.write_bytes(b"hello" * 100), "expected an HDF5 file; found a damaged"),
    "nothing": (lambda path: path.write_bytes(b""), "expected an HDF5 file; found a damaged"),
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("task", ["classification", "sensing"])
def test_bad_files_are_said_in_one_line_when_they_are_opened(tmp_path, task, what):
    write, says = BAD[what]
    path = tmp_path / "bad.h5"
    write(path)
    refused(f"{path}: |{says}", task, path, "--input_size", 16)
    with pytest.raises(UserError) as error:
        opened(task, path, "--input_size", 16)
    assert "\n" not in str(error.value)


def test_names_that_are_no_list_are_refused(tmp_path):
    path = write_wavesfm(tmp_path / "cache.h5", names=None)
    for value in ("walk, run", "5"):
        with h5py.File(path, "a") as file:
            file.attrs["labels"] = value
        refused("expected a JSON list of names in the attribute labels; found", "sensing", path)


@pytest.mark.parametrize("write", [write_radioml, write_wavesfm])
def test_a_file_that_is_cut_anywhere_is_named(tmp_path, write):
    path = write(tmp_path / "r.h5", classes=2)
    source, content = open_hdf5(path), path.read_bytes()
    for length in (0, 7, 100, 600, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        for read in (lambda: open_hdf5(path), lambda: source.read([0, len(source) - 1])):
            with pytest.raises(
                UserError, match=r"r\.h5: expected an HDF5 file; found a damaged or unreadable file"
            ):
                read()
    path.unlink()
    with pytest.raises(UserError, match="found no such file"):
        source.read([0])


def test_values_that_are_not_finite_are_named_by_their_row(tmp_path):
    path = write_wavesfm(tmp_path / "cache.h5")
    source = open_hdf5(path)
    source.image_size = (20, 20)
    for value in (np.nan, np.inf):
        with h5py.File(path, "a") as file:
            file["csi"][17, 2, 3, 4] = value
        source.load_many([16, 18], None, 0)
        with pytest.raises(
            UserError, match=r"cache\.h5: expected finite values in csi; found NaN or infinity in row 17"
        ):
            source.load_many([18, 17], None, 0)


def test_a_file_that_shrank_is_named(tmp_path):
    source = open_hdf5(write_radioml(tmp_path / "r.hdf5", classes=3))
    write_radioml(tmp_path / "r.hdf5", classes=2)
    with pytest.raises(
        UserError, match=r"X of \[36, 1024, 2\], as when it was opened; found \[24, 1024, 2\]"
    ):
        source.read([0])


# Formats that are not read


def rml2016(path, protocol=2):
    """As RML2016.10a_dict.pkl: a dict (modulation, SNR) -> float32 [n, 2, 128]."""
    rng = np.random.default_rng(0)
    content = {
        (name, snr): rng.standard_normal((5, 2, 128)).astype(np.float32) + number + 10 * (snr > 0)
        for number, name in enumerate(("QPSK", "8PSK", "AM-DSB"))
        for snr in (-2, 18)
    }
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return content


def mat73(path):
    """As MATLAB's -v7.3: a header of 512 bytes, then HDF5."""
    with h5py.File(path, "w", userblock_size=512) as file:
        file["rxSpectrogram"] = np.zeros((4, 4))
    with open(path, "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + struct.pack("<H", 0x0200) + b"IM")
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_are_told_by_what_is_in_them(tmp_path, protocol):
    for name in ("RML2016.10b.dat", "RML22.01A"):
        rml2016(tmp_path / name, protocol)
        assert format_of(tmp_path / name) == PICKLED
    (tmp_path / "iq.dat").write_bytes(
        np.random.default_rng(protocol).integers(0, 256, 4000, np.uint8).tobytes()
    )
    (tmp_path / "start.dat").write_bytes(b"\x80\x02" + bytes(1000))
    (tmp_path / "empty.dat").write_bytes(b"")
    assert [format_of(tmp_path / f"{name}.dat") for name in ("iq", "start", "empty")] == [None] * 3
    assert format_of(mat73(tmp_path / "a.mat")) == MATLAB
    assert format_of(write_hdf5(tmp_path / "a.hdf", {})) == HDF5


@pytest.mark.parametrize("name", ["RML2016.10a_dict.pkl", "RML2016.10b.dat", "a file.pickle"])
@pytest.mark.parametrize("in_folder", [False, True])
def test_pickles_are_refused_with_a_line_that_converts_them(tmp_path, name, in_folder):
    folder = tmp_path / "data"
    folder.mkdir()
    content = rml2016(folder / name)
    path = folder if in_folder else folder / name
    for task in ("classification", "sensing", "segmentation"):
        with pytest.raises(UserError) as error:
            opened(task, path)
        message = str(error.value)
        assert message.startswith(f"--data_path {folder / name}: expected ")
        assert "RadioML 2016.10A pickles are not read; convert: python -c " in message
    with pytest.raises(UserError, match="found a pickle"):
        registry.find([str(path)])

    # The line does what it says.
    _, code, given, made = shlex.split(message.split("convert: python ")[1])
    subprocess.run([sys.executable, "-c", code, given, made], check=True, cwd=tmp_path)
    data = opened("classification", tmp_path / made, "--input_size", 16)
    assert data.class_names == ["8PSK", "AM-DSB", "QPSK"]
    assert (len(data.source), data.front_end.n_fft) == (30, 16)
    keys = [
        (data.class_names[data.source.target(row)], int(data.source.groups["snr"][row])) for row in range(30)
    ]
    assert {key: keys.count(key) for key in keys} == dict.fromkeys(content, 5)
    iq = data.source.load(keys.index(("QPSK", 18)), None)[1]
    assert np.array_equal(np.stack([iq.real, iq.imag]), content["QPSK", 18][0])


@pytest.mark.parametrize("in_folder", [False, True])
def test_other_formats_are_named_wherever_they_are_given(tmp_path, in_folder):
    files = {
        "HDF5": write_radioml(tmp_path / "one" / "r.hdf5", classes=2),
        "MATLAB 7.3 (HDF5)": mat73(tmp_path / "a.mat"),
    }
    (tmp_path / "two").mkdir()
    files["MATLAB 7.3 (HDF5)"] = files["MATLAB 7.3 (HDF5)"].rename(tmp_path / "two" / "a.mat")
    for name, file in files.items():
        path = file.parent if in_folder else file
        for task in ("classification", "sensing", "segmentation"):
            if name == "HDF5" and task != "segmentation" and not in_folder:
                continue
            refused(f"--data_path {file}: expected |; found {name}: ", task, path)
        with pytest.raises(UserError) as error:
            registry.find([str(path)])
        assert "expected recordings (.sigmf-meta" in str(error.value)
        assert {"HDF5": "--task classification", "MATLAB 7.3 (HDF5)": "-v7"}[name] in str(error.value)


def test_folders_of_what_is_read_are_not_looked_into(tmp_path, monkeypatch):
    rml2016(tmp_path / "a.pkl")
    (tmp_path / "a.sigmf-meta").write_text("{}")
    assert registry.find([str(tmp_path)]).recordings == [str(tmp_path / "a.sigmf-meta")]
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.dat").write_bytes(bytes(100))
    assert registry.find([str(tmp_path / "raw")]).recordings == [str(tmp_path / "raw" / "a.dat")]
