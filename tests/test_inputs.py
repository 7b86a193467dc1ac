"""What people's tools write, and what hostile files hold: each ends well, or in one line that says why.

A row of `ROWS` is a command, a function that makes its input in a folder and returns the command's words, the exit
status, and words that standard error must hold.
"""

import io
import json
import os
import struct
import tarfile
import zlib

import numpy as np
import pytest
from matplotlib.figure import Figure
from support import NANO, ROOT, call, contents, write_sigmf

import engine_files
import engine_label
import main_download
import main_embed
import main_finetune
import main_pack
import main_pretrain
import main_segment
import main_synthesize
import models_mae
from data import tasks
from radio.recordings import find_recordings, open_recording
from util import console
from util.files import walk

CASES = ROOT.parent / "shared" / "cases"
WEIGHTS = ROOT / "weights" / "radio_seg_vit_tiny.safetensors"
RATE = 1.92e6
HUGE = 10**14


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A small model to pretrain, and pictures without anything in them."""
    monkeypatch.setitem(models_mae.PRESETS, "mae_vit_nano", NANO)
    monkeypatch.setattr(engine_label, "labelled_figure", lambda *_: Figure(figsize=(1, 1)))


# Recordings


def noise(count=20_000, dtype="<i2", level=0.05, seed=0):
    """I and Q of noise, full scale 1: bytes."""
    values = np.random.default_rng(seed).normal(0, level, 2 * count)
    if np.dtype(dtype).kind == "i":
        values = (values * 2 ** (8 * np.dtype(dtype).itemsize - 1)).round()
    return values.astype(dtype).tobytes()


def sigmf(folder, name="a", data=None, datatype="ci16_le", **about):
    """A recording of noise; returns its .sigmf-meta."""
    about = {"sample_rate": RATE, **about}
    return write_sigmf(folder, noise() if data is None else data, datatype, name, **about)


def annotation(label="LTE", low=-5e5, high=5e5, **more):
    edges = {"core:freq_lower_edge": low, "core:freq_upper_edge": high}
    return {"core:sample_start": 0, "core:sample_count": 1000, "core:label": label} | edges | more


def changed(path, change):
    """The metadata at a path after `change`, a function of them, which returns them or text."""
    content = change(json.loads(path.read_text()))
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def wav(path, data=None, bits=16, kind=1, channels=2, rate=96_000, size=None, chunks=b"", form=b"RIFF"):
    """A WAV file; `size` is the length that it states for the samples."""
    data = noise(4000) if data is None else data
    block = channels * bits // 8
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, kind, channels, rate, rate * block, block, bits)
    body = fmt + chunks + struct.pack("<4sI", b"data", len(data) if size is None else size) + data
    ds64 = struct.pack("<4sIQQQI", b"ds64", 28, 0, len(data), 0, 0) if form == b"RF64" else b""
    path.write_bytes(form + struct.pack("<I", 2**32 - 1) + b"WAVE" + ds64 + body)
    return path


def auxi(center_hz):
    return struct.pack("<4sI", b"auxi", 64) + bytes(32) + struct.pack("<I", center_hz) + bytes(28)


def archive(path, **fields):
    """A SigMF archive whose metadata's header has these fields."""
    member = tarfile.TarInfo("a.sigmf-meta")
    for name, value in fields.items():
        setattr(member, name, value)
    form = tarfile.PAX_FORMAT if member.pax_headers else tarfile.GNU_FORMAT
    path.write_bytes(member.tobuf(form) + bytes(1024))
    return path


def pax_archive(path):
    """An archive whose extended header is said to have 10^14 bytes."""
    member = tarfile.TarInfo("a.sigmf-meta")
    member.type, member.size = tarfile.XHDTYPE, HUGE
    path.write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    return path


def sparse(path, size=10**12):
    with open(path, "wb") as file:
        file.truncate(size)
    return path


def fifo(path):
    os.mkfifo(path)
    return path


def linked(path, target):
    path.symlink_to(target)
    return path


def npy_header(path, shape, dtype="<f4"):
    """An .npy file that has no more than its header."""
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": dtype, "fortran_order": False, "shape": tuple(shape)}
        )
        file.write(bytes(64))
    return path


def png_header(path, side):
    """A PNG file of so many rows and columns, by its header."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b"")]
    packed = [
        struct.pack(">I", len(data)) + n + data + struct.pack(">I", zlib.crc32(n + data))
        for n, data in chunks
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    return path


def beside_a_good_one(make):
    """The folder in which `make` has put something beside a recording named z."""

    def both(folder):
        sigmf(folder, "z")
        make(folder)
        return folder

    return both


def with_flags(make, *flags):
    return lambda folder: [make(folder), *flags]


def raw(name, data=None):
    def make(folder):
        (folder / name).write_bytes(noise() if data is None else data)
        return folder / name

    return make


def truth(**edges):
    return with_flags(lambda folder: sigmf(folder, annotations=[annotation(**edges)]), "--truth")


def meta(change, **about):
    return lambda folder: changed(sigmf(folder, **about), change)


def as_text(metadata):
    metadata["global"]["core:sample_rate"] = "1920000"
    metadata["captures"][0]["core:frequency"] = "806e6"
    return metadata


def out_of_order(folder):
    captures = [{"core:sample_start": start, "core:frequency": 8e8 + start} for start in (10_000, 0)]
    return sigmf(folder, captures=captures)


def two_names(link):
    """A recording, and its data under another name."""

    def make(folder):
        first = sigmf(folder)
        text = first.read_text()
        (folder / "b").mkdir()
        if link == "metadata":
            content = json.loads(text)
            content["global"]["core:dataset"] = "a.sigmf-data"
            text, other = json.dumps(content), folder / "b.sigmf-meta"
        else:
            other = folder / "b" / "c.sigmf-meta"
            getattr(os, link)(folder / "a.sigmf-data", other.with_suffix(".sigmf-data"))
        other.write_text(text)
        return folder

    return make


def floats(datatype="cf32_le", dtype="<f4", level=0.05):
    return lambda folder: sigmf(folder, data=noise(dtype=dtype, level=level), datatype=datatype)


def other_files(folder):
    for name in ("a.txt", "b.txt", "c"):
        (folder / name).write_text("x")


def slow(folder):
    return sigmf(folder, sample_rate=8e3)


def data_in_a_pipe(folder):
    recording = sigmf(folder)
    (folder / "a.sigmf-data").unlink()
    fifo(folder / "a.sigmf-data")
    return recording


def pipes(folder):
    for suffix in (".npy", ".png", ".sigmf-meta", ".wav"):
        fifo(folder / f"a{suffix}")


SEGMENT, PACK, PRETRAIN = "main_segment", "main_pack", "main_pretrain"
ANOTHER = "is the datatype, with its byte order, another one?"
OTHERS = "are left out: .txt (2), no suffix (1)"
LINKS = ("link", "symlink", "metadata")
ANY_SUFFIX = ("a.cfile", "a.complex", "a.data", "a", "a.sigmf-data", "a.png", "a.json")
PACKED = ("--window_ms", 5)
RAW_FLAGS = ("--sample_rate", "1.92M", "--datatype", "cs16")

# (command, function that makes its input, exit status, words)
ROWS = {
    # what writers do otherwise than SigMF
    "count is the end": (
        SEGMENT,
        meta(lambda m: m | {"annotations": [annotation(**{"core:sample_count": 30_000})]}),
        0,
        "annotation 0 ends after the last of the 20000 samples",
    ),
    "first capture without a start": (
        SEGMENT,
        meta(lambda m: m | {"captures": [{"core:frequency": 8e8}]}),
        0,
        "",
    ),
    "no captures": (SEGMENT, meta(lambda m: {"global": m["global"]}), 0, ""),
    "captures are an object": (
        SEGMENT,
        meta(lambda m: m | {"captures": m["captures"][0]}),
        0,
        "captures are an",
    ),
    "annotations are an object": (
        SEGMENT,
        meta(lambda m: m | {"annotations": annotation()}),
        0,
        "annotations are an",
    ),
    "extensions are an object": (
        SEGMENT,
        meta(lambda m: m["global"].update({"core:extensions": {"name": "x"}}) or m),
        0,
        "",
    ),
    "metadata below another key": (
        SEGMENT,
        meta(lambda m: {"_metadata": m, "data_file": "a"}),
        2,
        "a 'global' object, found '_metadata', 'data_file'",
    ),
    "a list": (SEGMENT, meta(lambda m: [m]), 2, "expected SigMF metadata"),
    "numbers as text": (SEGMENT, meta(as_text), 0, "numbers are written as text"),
    "captures out of order": (SEGMENT, out_of_order, 0, "captures are out of order"),
    "sc16": (
        SEGMENT,
        lambda folder: sigmf(folder, datatype="sc16"),
        0,
        "the datatype sc16 is read as ci16_le",
    ),
    "fc32": (SEGMENT, floats("fc32"), 0, "read as cf32_le"),
    "cf32": (SEGMENT, floats("cf32"), 0, ""),
    "a part of a sample": (
        SEGMENT,
        lambda folder: sigmf(folder, data=noise() + b"x"),
        0,
        "the last 1 bytes are no",
    ),
    "a part of a raw sample": (
        SEGMENT,
        with_flags(raw("a.cs16", noise() + b"xyz"), "--sample_rate", 2e6),
        0,
        "the last 3 bytes are no whole sample",
    ),
    # samples
    "doubles as floats": (SEGMENT, floats(dtype="<f8"), 2, ANOTHER),
    "big endian floats": (SEGMENT, floats(dtype=">f4"), 2, ANOTHER),
    "integers as floats": (SEGMENT, floats(dtype="<i2"), 2, ANOTHER),
    "integers in floats": (SEGMENT, floats(level=1e8), 0, ""),
    "no samples": (SEGMENT, lambda folder: sigmf(folder, data=b""), 2, "empty"),
    # sample rates
    "8 kHz": (SEGMENT, slow, 2, "expected 45000 Hz or more"),
    "8 kHz in a folder": (SEGMENT, beside_a_good_one(slow), 0, "skipped: expected 45000 Hz or more"),
    "10 samples": (SEGMENT, lambda folder: sigmf(folder, data=noise(10)), 2, "an FFT; found 10"),
    "10 samples in a folder": (
        SEGMENT,
        beside_a_good_one(lambda folder: sigmf(folder, data=noise(10))),
        0,
        "a.sigmf-meta: skipped",
    ),
    "8 kHz, packed": (PACK, with_flags(slow, "--front_end", "grid"), 2, "expected recordings of at least"),
    "8 kHz in a folder, packed": (PACK, with_flags(beside_a_good_one(slow), *PACKED), 0, "or of less than"),
    "no rate": (
        SEGMENT,
        lambda folder: sigmf(folder, sample_rate=None),
        2,
        "core:sample_rate or --sample_rate",
    ),
    "rate in words": (SEGMENT, with_flags(raw("a.cs16"), "--sample_rate", "20 MHz"), 0, ""),
    "rate in letters": (
        SEGMENT,
        with_flags(raw("a.cs16"), "--sample_rate", "fast"),
        2,
        "20MHz; found 'fast'",
    ),
    "rate of dots": (SEGMENT, with_flags(raw("a.cs16"), "--sample_rate", "1.2.3M"), 2, "found '1.2.3M'"),
    # names
    "a folder of several types": (SEGMENT, beside_a_good_one(other_files), 0, OTHERS),
    "a folder of several types, packed": (
        PACK,
        with_flags(beside_a_good_one(other_files), *PACKED),
        0,
        OTHERS,
    ),
    "a folder of other types": (
        SEGMENT,
        lambda folder: raw("a.raw")(folder).parent,
        2,
        "in this folder: .raw (1)",
    ),
    "gqrx": (
        SEGMENT,
        raw("gqrx_20240101_120000_806000000_1920000_fc.raw"),
        2,
        "--sample_rate 1920000 --center_freq 806000000 --datatype cf32_le",
    ),
    "rtl_433": (
        SEGMENT,
        raw("g001_433.92M_250k.cu8"),
        2,
        "suggests --sample_rate 250k --center_freq 433.92M",
    ),
    "SDR#": (SEGMENT, raw("SDRSharp_20150804_204845Z_106000000Hz_IQ.iq"), 2, "--center_freq 106000000"),
    "srsRAN": (SEGMENT, raw("signal.1.92M.dat"), 2, "--sample_rate 1.92M"),
    "a name of no rate": (SEGMENT, raw("a.cs16"), 2, "--sample_rate"),
    "a long name": (SEGMENT, lambda folder: folder / ("x" * 300 + ".cu8"), 2, "cannot be read"),
    "a name that leaves no room": (
        SEGMENT,
        with_flags(raw("x" * 246 + ".cs16"), *RAW_FLAGS),
        2,
        "a shorter name",
    ),
    "a name that leaves little room": (SEGMENT, with_flags(raw("x" * 240 + ".cs16"), *RAW_FLAGS), 0, ""),
    **{f"raw {name}": (SEGMENT, with_flags(raw(name), *RAW_FLAGS), 0, "") for name in ANY_SUFFIX},
    "raw, packed": (PACK, with_flags(raw("a.complex"), *RAW_FLAGS, *PACKED), 0, ""),
    "raw in a folder": (
        SEGMENT,
        with_flags(lambda folder: raw("a.sc16")(folder).parent, "--sample_rate", 2e6),
        0,
        "",
    ),
    # the same data twice
    **{f"data under two names, {link}": (SEGMENT, two_names(link), 0, "count once") for link in LINKS},
    **{
        f"data under two names, {link}, packed": (PACK, with_flags(two_names(link), *PACKED), 0, "count once")
        for link in LINKS
    },
    # WAV
    "WAV": (SEGMENT, lambda folder: wav(folder / "a.wav"), 0, ""),
    "WAV of music": (
        SEGMENT,
        lambda folder: wav(folder / "a.wav", channels=1),
        2,
        "expected IQ in two channels",
    ),
    "WAV of music in a folder": (
        SEGMENT,
        beside_a_good_one(lambda folder: wav(folder / "a.wav", channels=1)),
        0,
        "left out: .wav (1)",
    ),
    "WAV, cut": (
        SEGMENT,
        lambda folder: wav(folder / "a.wav", size=10**6),
        0,
        "names more samples than there are",
    ),
    "WAV, compressed": (
        SEGMENT,
        lambda folder: wav(folder / "a.wav", kind=2),
        2,
        "found 2 of 16 bits, format 2",
    ),
    "WAV, header alone": (SEGMENT, lambda folder: wav(folder / "a.wav", data=b""), 2, "empty"),
    "WAV, no WAV": (SEGMENT, raw("a.wav"), 2, "expected a WAV file"),
    "WAV, no chunk": (SEGMENT, raw("a.wav", b"RIFF1234WAVE"), 2, "found no chunk"),
    "WAV of many chunks": (
        SEGMENT,
        raw("a.wav", b"RIFF1234WAVE" + b"abcd\0\0\0\0" * 3000),
        2,
        "found no chunk",
    ),
    # annotations to compare with
    "edges reversed": (
        SEGMENT,
        truth(low=5e5, high=-5e5),
        2,
        "annotation LTE at sample 0: expected finite, ascending edges",
    ),
    "edges of text": (SEGMENT, truth(low="low"), 2, "expected numbers as core:freq_lower_edge"),
    "edges not a number": (SEGMENT, truth(low=float("nan")), 2, "expected numbers as core:freq_lower_edge"),
    "edges of 400 digits": (SEGMENT, truth(high=10**400), 2, "expected numbers as core:freq_lower_edge"),
    "edges of true": (SEGMENT, truth(low=True), 2, "expected numbers as core:freq_lower_edge"),
    "edges of text, not asked for": (
        SEGMENT,
        lambda folder: sigmf(folder, annotations=[annotation(low="low")]),
        0,
        "",
    ),
    "label of a list": (SEGMENT, truth(label=["LTE"]), 0, "left out of the truth"),
    # what is no plain file
    "metadata in a pipe": (
        SEGMENT,
        lambda folder: fifo(folder / "a.sigmf-meta"),
        2,
        "a plain file, found a pipe",
    ),
    "data in a pipe": (SEGMENT, data_in_a_pipe, 2, "found a pipe"),
    "archive in a pipe": (SEGMENT, lambda folder: fifo(folder / "a.sigmf"), 2, "found a pipe"),
    "npy in a pipe": (SEGMENT, lambda folder: fifo(folder / "a.npy"), 2, "found a pipe"),
    "WAV in a pipe": (SEGMENT, lambda folder: fifo(folder / "a.wav"), 2, "found a pipe"),
    "raw in a pipe": (SEGMENT, with_flags(lambda folder: fifo(folder / "a"), *RAW_FLAGS), 2, "found a pipe"),
    "pipes in a folder": (SEGMENT, beside_a_good_one(pipes), 0, ""),
    "metadata in a device": (
        SEGMENT,
        lambda folder: linked(folder / "a.sigmf-meta", "/dev/zero"),
        2,
        "a device",
    ),
    "npy in a device": (PRETRAIN, lambda folder: linked(folder / "a.npy", "/dev/zero"), 2, "found a device"),
    "npy in a pipe, pretrained": (PRETRAIN, lambda folder: fifo(folder / "a.npy"), 2, "found a pipe"),
    "png in a pipe, pretrained": (PRETRAIN, lambda folder: fifo(folder / "a.png"), 2, "found a pipe"),
    # sizes
    "sparse metadata": (SEGMENT, lambda folder: sparse(sigmf(folder)), 2, "expected metadata of at most"),
    "archive of 10^14 bytes": (
        SEGMENT,
        lambda folder: archive(folder / "a.sigmf", size=HUGE),
        2,
        "a.sigmf: ",
    ),
    "archive of fewer than none": (
        SEGMENT,
        lambda folder: archive(folder / "a.sigmf", size=-1024),
        2,
        "tar archive",
    ),
    "archive of a long header": (SEGMENT, lambda folder: pax_archive(folder / "a.sigmf"), 2, "tar archive"),
    "npy of 10^12 samples": (
        SEGMENT,
        with_flags(lambda folder: npy_header(folder / "a.npy", [10**12], "<c8"), "--sample_rate", 2e6),
        2,
        "truncated",
    ),
    "npy image of 10^14 cells": (
        PRETRAIN,
        lambda folder: npy_header(folder / "a.npy", [10**7] * 2),
        2,
        "an image",
    ),
    "npy image of 10^30 cells": (
        PRETRAIN,
        lambda folder: npy_header(folder / "a.npy", [10**15] * 2),
        2,
        "an image",
    ),
    "png of 10^10 cells": (
        PRETRAIN,
        lambda folder: png_header(folder / "a.png", 10**5),
        2,
        "expected an image",
    ),
}
COMMANDS = {
    SEGMENT: (
        main_segment,
        ["--weights", WEIGHTS, "--no-confirm", "--amp", "off", "--device", "cpu", "--output"],
        [],
    ),
    PACK: (main_pack, ["--device", "cpu", "--output"], ["--data_path"]),
    PRETRAIN: (
        main_pretrain,
        [
            "--model",
            "mae_vit_nano",
            "--input_size",
            16,
            "--device",
            "cpu",
            "--num_workers",
            0,
            "--output_dir",
        ],
        ["--data_path"],
    ),
}


def run(command, words, output):
    module, flags, first = COMMANDS[command]
    return call(module, *first, *words, *flags, output)


@pytest.mark.parametrize("row", ROWS)
def test_every_input_ends_well_or_in_one_line(row, tmp_path, capsys):
    command, make, status, words = ROWS[row]
    (tmp_path / "in").mkdir()
    made = make(tmp_path / "in")
    capsys.readouterr()

    assert run(command, made if isinstance(made, list) else [made], tmp_path / "out") == status

    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error:", "warning:"))]
    assert words in "\n".join(lines)
    assert sum(line.startswith("error:") for line in lines) == (status != 0)
    if status:
        assert lines[-1].startswith("error: ")
        assert not list((tmp_path / "out").rglob("*.sigmf-meta"))
    elif words == "":
        assert [line for line in lines if "invalid SigMF" not in line] == []
    else:
        assert sum(words in line for line in lines) == 1


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared cases are not there")
def test_the_shared_cases_are_as_their_table_says(tmp_path, capsys):
    def found(case, *flags):
        capsys.readouterr()
        status = run(SEGMENT, [CASES / case, *flags], tmp_path / case)
        return status, [json.loads(path.read_text()) for path in sorted((tmp_path / case).glob("*.json"))]

    for case in ("annotation_count_is_end", "capture_without_sample_start", "matlab_jsonencode"):
        assert found(case)[0] == 0, case
    for case in ("cf64_named_cf32", "oracle_genesys_meta"):
        assert found(case) == (2, []), case
    _, [labels] = found("real_valued_mirror")
    assert all(one["center_freq_hz"] > 0 for one in labels["carriers"])
    _, [labels] = found("sdrangel_rate_per_capture")
    stretches = [(one["num_samples"], one["sample_rate_hz"]) for one in labels["stretches"]]
    assert stretches == [(38400, 1.92e6), (76800, 3.84e6)]
    times_s = {0: (0.0, 0.02), 1: (0.02, 0.04)}
    for one in labels["carriers"]:
        first_s, last_s = times_s[one["stretch"]]
        assert first_s - 1e-6 <= one["start_s"] <= one["start_s"] + one["duration_s"] <= last_s + 1e-6


# The same data twice


def annotations_of(path):
    return json.loads(path.read_text())["annotations"]


def test_labelling_twice_gives_what_labelling_once_gives(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(engine_files, "COMPILE_WINDOWS", 10**9)
    tone = np.exp(2j * np.pi * 0.1 * np.arange(40_000)) * 0.3
    data = tone.astype(np.complex64).tobytes()
    captured = tmp_path / "captured"
    captured.mkdir()
    sigmf(captured, data=data, datatype="cf32_le", annotations=[annotation("mine")])
    sigmf(captured, "b", data=data[::-1][: len(data) // 2] * 0 + noise(dtype="<f4"), datatype="cf32_le")
    flags = ["--min_confidence", 0, "--min_duration_s", 0, "--min_bandwidth_hz", 0]
    labels = captured / "labels"
    assert run(SEGMENT, [captured, *flags], labels) == 0
    first = contents(labels)
    assert run(SEGMENT, [captured, *flags], labels) == 0  # its own output is not labelled
    assert contents(labels) == first
    assert sorted(name for name in first if name.endswith("meta")) == ["a.sigmf-meta", "b.sigmf-meta"]

    assert len(annotations_of(labels / "a.sigmf-meta")) > 1
    assert run(SEGMENT, [labels / "a.sigmf-meta", *flags], tmp_path / "again") == 0
    assert annotations_of(tmp_path / "again" / "a.sigmf-meta") == annotations_of(labels / "a.sigmf-meta")
    assert "mine" in {one["core:label"] for one in annotations_of(tmp_path / "again" / "a.sigmf-meta")}

    capsys.readouterr()
    assert len(find_recordings([captured])) == 2
    assert "2 recordings have the data of others, and count once" in capsys.readouterr().err
    [one] = [one for one in find_recordings([captured], annotated=True) if one.path.name == "b.sigmf-meta"]
    assert one.path.parent == (labels if one.annotations else captured)
    assert run(SEGMENT, [captured, "--copy"], captured / "copies") == 2
    assert "--output" in capsys.readouterr().err


def test_labels_of_scenes_are_kept(tmp_path):
    scene = sigmf(tmp_path, annotations=[annotation(**{"core:generator": "radio-mae"})])
    assert run(SEGMENT, [scene], tmp_path / "out") == 0
    assert annotation(**{"core:generator": "radio-mae"}) in annotations_of(tmp_path / "out" / "a.sigmf-meta")


def test_other_parts_of_one_data_file_are_other_recordings(tmp_path):
    data = noise(1000)
    for name, header, trailing in (("a", 0, 2000), ("b", 2000, 0)):
        captures = [{"core:sample_start": 0, "core:header_bytes": header}]
        sigmf(tmp_path, name, data, captures=captures, data_name="d", dataset="d", trailing_bytes=trailing)
    assert [one.num_samples for one in find_recordings([tmp_path])] == [500, 500]


# The truth


def test_cells_under_labels_that_are_no_class_do_not_count(tmp_path):
    cells = {}
    for name, label in (("class", "LTE"), ("none", "Radar")):
        recording = sigmf(tmp_path, name, annotations=[annotation(label, **{"core:sample_count": 20_000})])
        assert run(SEGMENT, [recording, "--truth"], tmp_path / "out") == 0
        cells[name] = json.loads((tmp_path / "out" / f"{name}.json").read_text())["truth"]["cells"]
    under = cells["class"]["classes"]["LTE"]["samples"]
    assert under > 0
    assert cells["none"]["samples"] == cells["class"]["samples"] - under
    assert cells["none"]["classes"]["Noise"]["samples"] == cells["class"]["classes"]["Noise"]["samples"]


# Many


def test_many_captures_with_many_annotations_open(tmp_path):
    captures = [{"core:sample_start": 10 * n, "core:frequency": 8e8 + n % 2} for n in range(10_000)]
    annotations = [{"core:sample_start": n, "core:sample_count": 12} for n in range(100_000 - 12)]
    found = open_recording(sigmf(tmp_path, data=noise(100_000), captures=captures, annotations=annotations))
    assert len(found) == 10_000
    of_fifth = [one["core:sample_start"] for one in found[5].annotations]
    assert of_fifth == list(range(-11, 10))


def test_annotations_that_all_cover_all_captures_are_refused(tmp_path, capsys):
    captures = [{"core:sample_start": 10 * n, "core:frequency": 8e8 + n % 2} for n in range(1500)]
    annotations = [{"core:sample_start": 0, "core:sample_count": 15_000}] * 1500
    recording = sigmf(tmp_path, data=noise(15_000), captures=captures, annotations=annotations)
    assert run(SEGMENT, [recording], tmp_path / "out") == 2
    assert "expected at most 1000000 annotations" in capsys.readouterr().err


# Names


LONG = "x" * 300


@pytest.mark.parametrize(
    ("module", "words"),
    [
        *(
            (main_finetune, ["--task", task, "--data_path", LONG, "--output_dir", "out"])
            for task in tasks.TASKS
        ),
        (main_finetune, ["--task", "sensing", "--data_path", "data", "--output_dir", LONG]),
        (main_pretrain, ["--data_path", LONG, "--output_dir", "out"]),
        (main_pretrain, ["--data_path", "data", "--output_dir", LONG]),
        (main_pack, ["--data_path", LONG, "--output", "out"]),
        (main_pack, ["--data_path", "data", "--output", LONG, "--window_ms", 5]),
        (main_segment, [LONG, "--weights", WEIGHTS, "--output", "out"]),
        (main_segment, ["data", "--weights", WEIGHTS, "--output", LONG]),
        (main_segment, ["data", "--weights", LONG, "--output", "out"]),
        (main_embed, [LONG, "--weights", WEIGHTS, "--output", "out.npz"]),
        (main_embed, ["data", "--weights", WEIGHTS, "--output", f"{LONG}.npz"]),
        (main_download, [LONG]),
        (main_synthesize, ["--output", LONG, "--train", 1, "--val", 1, "--test", 1]),
    ],
)
def test_names_of_300_bytes_end_in_one_line(tmp_path, capsys, monkeypatch, module, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    sigmf(tmp_path / "data")
    assert call(module, *words) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert LONG[:100] in errors[0] or "--task sensing" in str(words)


# What is read is right


def iq_of(path, *args, **kwargs):
    [one] = open_recording(path, *args, **kwargs)
    return one.read(0, one.num_samples)


@pytest.mark.parametrize(
    ("bits", "kind", "dtype"), [(8, 1, "u1"), (16, 1, "<i2"), (32, 1, "<i4"), (32, 3, "<f4"), (64, 3, "<f8")]
)
def test_wav_is_what_a_raw_file_of_its_samples_is(tmp_path, bits, kind, dtype):
    values = np.frombuffer(noise(1000, "<f8", 0.2), "<f8")
    if np.dtype(dtype).kind != "f":
        values = values * 2 ** (bits - 1) + (128 if dtype == "u1" else 0)
    data = values.astype(dtype).tobytes()
    (tmp_path / "a.raw").write_bytes(data)
    name = f"c{np.dtype(dtype).kind}{bits}"
    path = wav(tmp_path / "a.wav", data, bits, kind, chunks=auxi(806_000_000))
    np.testing.assert_array_equal(iq_of(path), iq_of(tmp_path / "a.raw", 1.0, name))
    [one] = open_recording(path)
    assert (one.sample_rate_hz, one.center_freq_hz) == (96_000, 806e6)


def test_wav_of_24_bits(tmp_path):
    values = np.array([0, 2**23 - 1, -(2**23), 1, -1, 4660], np.int32)
    data = b"".join(int(value).to_bytes(3, "little", signed=True) for value in values)
    path = wav(tmp_path / "a.wav", data, 24)
    np.testing.assert_array_equal(iq_of(path).view(np.float32), values / 2.0**23)
    [one] = open_recording(path)
    np.testing.assert_array_equal(one.read(1, 1).view(np.float32), values[2:4] / 2.0**23)
    wav(path, noise(3000, "<i2") + bytes(3000 * 2), 24)
    assert run(SEGMENT, [path], tmp_path / "out") == 0
    info = json.loads((tmp_path / "out" / "a.sigmf-meta").read_text())["global"]
    assert info["core:metadata_only"] is True


@pytest.mark.parametrize("size", [0, 2**32 - 1, 10**6])
@pytest.mark.parametrize("form", [b"RIFF", b"RF64"])
def test_wav_of_unknown_length_is_read_to_its_end(tmp_path, form, size):
    path = wav(tmp_path / "a.wav", size=size, form=form)
    assert iq_of(path).tobytes() == iq_of(wav(tmp_path / "b.wav")).tobytes()


def test_wav_beyond_4_gb(tmp_path):
    count = 2**30 + 100  # frames of 4 bytes; the length in 32 bits is 400
    path = wav(tmp_path / "a.wav", b"", size=4 * count % 2**32)
    os.truncate(path, path.stat().st_size + 4 * count)
    assert open_recording(path)[0].num_samples == count


def test_wav_of_sdr_console_says_its_centre_in_xml(tmp_path):
    text = '<?xml version="1.0"?><Definition RadioCenterFreq="1815300000"/>'.encode("utf-16-le")
    path = wav(tmp_path / "a.wav", chunks=struct.pack("<4sI", b"auxi", len(text)) + text)
    assert open_recording(path)[0].center_freq_hz == 1815.3e6


def test_labels_of_wav_refer_to_its_samples(tmp_path):
    path = wav(tmp_path / "a.wav", chunks=auxi(100_000_000))
    assert run(SEGMENT, [path], tmp_path / "out") == 0
    [one] = open_recording(tmp_path / "out" / "a.sigmf-meta")
    assert one.center_freq_hz == 100e6
    np.testing.assert_array_equal(one.read(0, one.num_samples), iq_of(path))


@pytest.mark.parametrize("dtype", ["<i2", "<f4", "<i4", "planes"])
def test_swapped_iq_is_mirrored_also_when_its_labels_are_read(tmp_path, dtype):
    if dtype == "planes":
        np.save(tmp_path / "a.npy", np.frombuffer(noise(dtype="<f4"), "<f4").reshape(2, -1))
        path, given = tmp_path / "a.npy", (RATE,)
    else:
        path = sigmf(tmp_path, data=noise(dtype=dtype), datatype=f"c{dtype[1]}{8 * int(dtype[2])}_le")
        given = ()
    straight, swapped = iq_of(path, *given), iq_of(path, *given, swap_iq=True)
    np.testing.assert_array_equal(swapped, straight.imag + 1j * straight.real)
    flags = ["--sample_rate", RATE] if given else []
    assert run(SEGMENT, [path, "--swap_iq", *flags], tmp_path / "out") == 0
    if dtype != "planes":
        np.testing.assert_array_equal(iq_of(tmp_path / "out" / "a.sigmf-meta"), swapped)


def test_captures_with_their_own_rate_are_stretches_of_that_rate(tmp_path):
    captures = [
        {"core:sample_start": 0, "sdrangel:sample_rate": 1e6},
        {"core:sample_start": 10_000, "sdrangel:sample_rate": 2e6},
    ]
    for rate in (1e6, None):
        found = open_recording(sigmf(tmp_path, captures=captures, sample_rate=rate))
        known = [(one.sample_rate_hz, one.num_samples, one.start_s) for one in found]
        assert known == [(1e6, 10_000, 0.0), (2e6, 10_000, 0.01)]


# Folders and standard output


def test_a_search_leaves_out_what_is_no_plain_file(tmp_path):
    sigmf(tmp_path)
    fifo(tmp_path / "p.npy")
    linked(tmp_path / "q.npy", tmp_path / "p.npy")
    linked(tmp_path / "folder", tmp_path)
    linked(tmp_path / "broken.npy", tmp_path / "none.npy")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b.npy").touch()
    names = [os.path.basename(path) for path in walk(tmp_path, pytest.fail, tmp_path / "out")[1]]
    assert names == ["a.sigmf-data", "a.sigmf-meta", "broken.npy"]


def test_output_that_nobody_reads_ends_nothing(capsys, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", stream)
        with console.lasting():
            print("x" * 10**6, flush=True)
            print("more", flush=True)
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full device")
def test_output_that_is_full_is_said_once(capsys, monkeypatch):
    with open("/dev/full", "w") as stream, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", stream)
        with console.lasting():
            print("x", flush=True)
            print("more", flush=True)
    err = capsys.readouterr().err
    assert err.count("standard output cannot be written (No space left on device)") == 1


def test_files_are_written_with_output_and_errors_closed(tmp_path, monkeypatch):
    for name in "stdout", "stderr":
        monkeypatch.setattr(f"sys.{name}", None)
    assert run(SEGMENT, [sigmf(tmp_path)], tmp_path / "out") == 0
    assert (tmp_path / "out" / "a.json").exists()


def test_a_closed_standard_input_is_no_stream(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    assert call(main_segment, "-", "--weights", WEIGHTS, "--sample_rate", "2M", "--datatype", "ci8") == 2
    assert "expected a stream on standard input; found it closed" in capsys.readouterr().err


def test_a_stream_of_a_rate_below_the_front_end(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(bytes(1000))))
    assert call(main_segment, "-", "--weights", WEIGHTS, "--sample_rate", "8k", "--datatype", "ci8") == 2
    assert "--sample_rate: expected 45000 Hz or more" in capsys.readouterr().err


def test_training_on_annotations_takes_the_labelled_name_of_data(tmp_path):
    sigmf(tmp_path, data=noise(60_000))
    (tmp_path / "labels").mkdir()
    content = json.loads((tmp_path / "a.sigmf-meta").read_text())
    content["annotations"] = [annotation(**{"core:sample_count": 60_000})]
    (tmp_path / "labels" / "a.sigmf-meta").write_text(json.dumps(content))
    (tmp_path / "labels" / "a.sigmf-data").symlink_to(tmp_path / "a.sigmf-data")
    [one] = find_recordings([tmp_path], annotated=True)
    assert one.path.parent == tmp_path / "labels"
