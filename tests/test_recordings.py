"""Every format, layout and mistake that `radio.recordings` knows, on real files written here."""

import gzip
import io
import json
import lzma
import math
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import textwrap
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import sigmf
from support import CAPTURES, ROOT, needs_captures, write_sigmf

from radio.recordings import DATATYPES, find_recordings, is_recording_file, open_recording
from util.errors import UserError

STRUCT_CODES = {"f64": "d", "f32": "f", "i32": "i", "i16": "h", "i8": "b", "u32": "I", "u16": "H", "u8": "B"}
ALL_DATATYPES = [
    base + order for base in DATATYPES for order in ([""] if base.endswith("8") else ["_le", "_be"])
]


def component_values(base: str, count: int) -> list:
    """Python numbers that a component of this datatype can hold exactly, the extremes first."""
    kind, bits = base[1], int(base[2:])
    rng = np.random.default_rng(bits)
    if kind == "f":
        return [0.0, -1.0, 1.5, *(float(np.float32(x)) for x in rng.normal(size=count - 3))]
    low, high = (0, 2**bits - 1) if kind == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    middle = (low + high + 1) // 2
    return [low, high, middle, middle + 1, *(int(x) for x in rng.integers(low, high, count - 4))]


def packed(base: str, order: str, values: list) -> bytes:
    return struct.pack((">" if order == "_be" else "<") + STRUCT_CODES[base[1:]] * len(values), *values)


def scaled(base: str, values: list) -> np.ndarray:
    """The definition, in Python's exact integers and doubles: float32."""
    if base[1] == "f":
        return np.array(values, np.float32)
    half = 2 ** (int(base[2:]) - 1)
    return np.array([(value - (half if base[1] == "u" else 0)) / half for value in values], np.float32)


def expected_iq(base: str, values: list, channels: int) -> np.ndarray:
    """complex64 [frames, channels]"""
    parts = scaled(base, values).reshape(-1, channels, 2 if base[0] == "c" else 1)
    return (parts[..., 0] + 1j * (parts[..., 1] if base[0] == "c" else 0)).astype(np.complex64)


def ramp(count: int, first=0) -> bytes:
    """cu8 samples whose I tells the index (modulo 251, a prime) and whose Q is 128, that is 0."""
    return bytes(x for n in range(first, first + count) for x in (n % 251, 128))


def ramp_iq(start: int, count: int) -> np.ndarray:
    return np.array([(n % 251 - 128) / 128 for n in range(start, start + count)], np.complex64)


def assert_refused(*words, path, **options):
    """Opening ends in a UserError of one line with all of `words` in it."""
    with pytest.raises(UserError) as caught:
        open_recording(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600 + 2 * len(str(path))
    for word in (Path(path).name, *words):
        assert str(word) in message


# SigMF: datatypes and channels


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("datatype", ALL_DATATYPES)
def test_every_datatype_reads_as_defined_and_as_sigmf_reads_it(tmp_path, datatype, channels):
    base, order = datatype[:-3] if "_" in datatype else datatype, datatype[-3:] if "_" in datatype else ""
    values = component_values(base, 40 * channels * (2 if base[0] == "c" else 1))
    expected = expected_iq(base, values, channels)
    meta = write_sigmf(tmp_path, packed(base, order, values), datatype, num_channels=channels)

    recordings = open_recording(meta)

    assert len(recordings) == channels
    library = sigmf.fromfile(meta, skip_checksum=True).read_samples().reshape(-1, channels)
    for channel, recording in enumerate(recordings):
        assert recording.name == "a.sigmf-meta" + (f" [channel {channel}]" if channels > 1 else "")
        assert (recording.num_samples, recording.datatype, recording.duration_s) == (40, datatype, 40 / 1e6)
        iq = recording.read(0, 40)
        assert iq.dtype == np.complex64
        np.testing.assert_array_equal(iq, expected[:, channel])
        np.testing.assert_array_equal(recording.read(7, 11), expected[7:18, channel])
        # sigmf takes half scale off 32-bit unsigned integers in float32, which rounds I and Q by up to 2^-24
        # each.
        tolerance = 2.0**-23 if base[1:] == "u32" else 0
        np.testing.assert_allclose(library[:, channel], expected[:, channel], rtol=0, atol=tolerance)


def test_weak_unsigned_32_bit_signals_survive(tmp_path):
    data = struct.pack("<4I", 2**31 + 1, 2**31 - 3, 2**31 + 5, 2**31)
    iq = open_recording(write_sigmf(tmp_path, data, "cu32_le"))[0].read(0, 2)
    np.testing.assert_array_equal(iq * 2**31, [1 - 3j, 5])


@pytest.mark.parametrize(("given", "meant"), [("ci16", "ci16_le"), ("ci8_le", "ci8"), ("CF32", "cf32_le")])
def test_datatype_names_are_completed(tmp_path, given, meant):
    assert open_recording(write_sigmf(tmp_path, bytes(16), given))[0].datatype == meant


def test_reading_costs_no_more_memory_than_the_window(tmp_path):
    count = 100_000
    floats = open_recording(write_sigmf(tmp_path, bytes(8 * count), "cf32_le", "floats"))[0]
    integers = open_recording(write_sigmf(tmp_path, bytes(4 * count), "ci16_le", "integers"))[0]
    for recording, bytes_per_sample in ((floats, 8), (integers, 4 + 8)):
        recording.read(0, 10)
        tracemalloc.start()
        recording.read(0, count)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1.1 * bytes_per_sample * count


def test_recordings_are_values(tmp_path):
    recording = open_recording(write_sigmf(tmp_path, ramp(20), num_channels=2))[1]
    copy = pickle.loads(pickle.dumps(recording))
    assert copy == recording
    assert hash(copy) == hash(recording)
    np.testing.assert_array_equal(copy.read(0, 10), recording.read(0, 10))


@pytest.mark.parametrize(("start", "count"), [(-1, 2), (0, 11), (10, 1), (3, -1)])
def test_read_out_of_range_is_a_value_error(tmp_path, start, count):
    recording = open_recording(write_sigmf(tmp_path, ramp(10)))[0]
    with pytest.raises(ValueError, match=f"start={start} count={count} .*10 samples"):
        recording.read(start, count)
    assert recording.read(10, 0).shape == (0,)


# SigMF: captures


def capture(start, frequency=None, **more):
    fields = {"sample_start": start, "frequency": frequency, **more}
    return {f"core:{key}": value for key, value in fields.items() if value is not None}


def summary(recordings):
    return [(one.sample_start, one.num_samples, one.center_freq_hz) for one in recordings]


@pytest.mark.parametrize(
    ("captures", "stretches"),
    [
        ([], [(0, 100, None)]),
        ([capture(0)], [(0, 100, None)]),
        ([capture(0, 1e9)], [(0, 100, 1e9)]),
        ([capture(0, 1e9), capture(40, 1e9), capture(70, 1e9)], [(0, 100, 1e9)]),
        ([capture(0, 1e9), capture(40, 2e9), capture(70, 2e9)], [(0, 40, 1e9), (40, 60, 2e9)]),
        ([capture(0, 1e9), capture(40, 2e9), capture(70, 1e9)], [(0, 40, 1e9), (40, 30, 2e9), (70, 30, 1e9)]),
        ([capture(0, 1e9), capture(40)], [(0, 40, 1e9), (40, 60, None)]),
        ([capture(30, 1e9)], [(0, 30, None), (30, 70, 1e9)]),
        ([capture(0, 1e9, global_index=500), capture(40, 1e9, global_index=540)], [(0, 100, 1e9)]),
        ([capture(0, 1e9, global_index=0), capture(40, 1e9, global_index=80)], [(0, 40, 1e9), (40, 60, 1e9)]),
        ([capture(0, 1e9), capture(50, 2e9), capture(50, 1e9), capture(100, 3e9)], [(0, 100, 1e9)]),
        ([capture(0.0, 1000000000, header_bytes=0)], [(0, 100, 1e9)]),
    ],
)
def test_captures_that_agree_and_follow_are_one_stretch(tmp_path, captures, stretches):
    recordings = open_recording(write_sigmf(tmp_path, ramp(100), captures=captures))
    assert summary(recordings) == stretches
    for one in recordings:
        np.testing.assert_array_equal(
            one.read(0, one.num_samples), ramp_iq(one.sample_start, one.num_samples)
        )


def test_stretches_and_channels_are_named_by_capture_and_channel(tmp_path):
    captures = [capture(5, 1e9), capture(10, 1e9), capture(20, 2e9)]
    names = [
        one.name
        for one in open_recording(write_sigmf(tmp_path, ramp(100), num_channels=2, captures=captures))
    ]
    parts = [" [before the captures]", " [capture 0]", " [capture 2]"]
    assert names == [f"a.sigmf-meta{part} [channel {channel}]" for part in parts for channel in (0, 1)]


def test_indices_are_counted_from_core_offset(tmp_path):
    captures = [capture(1000, 1e9), capture(1040, 2e9)]
    annotations = [{"core:sample_start": 1050, "core:sample_count": 50}]
    recordings = open_recording(
        write_sigmf(tmp_path, ramp(100), captures=captures, annotations=annotations, offset=1000)
    )
    assert summary(recordings) == [(0, 40, 1e9), (40, 60, 2e9)]
    np.testing.assert_array_equal(recordings[1].read(0, 60), ramp_iq(40, 60))
    meta = write_sigmf(tmp_path, ramp(100), captures=[capture(0)], offset=1000)
    assert_refused("capture 0: core:sample_start", "1000", "found 0", path=meta)


def test_headers_and_trailing_bytes_are_left_out(tmp_path):
    data = b"H" * 7 + ramp(50) + b"headr" + ramp(50, 50) + b"the end"
    captures = [capture(0, 1e9, header_bytes=7), capture(50, 1e9, header_bytes=5)]
    meta = write_sigmf(
        tmp_path, data, captures=captures, data_name="a.rec", dataset="a.rec", trailing_bytes=7
    )
    first, second = open_recording(meta)
    assert summary([first, second]) == [(0, 50, 1e9), (50, 50, 1e9)]
    np.testing.assert_array_equal(first.read(0, 50), ramp_iq(0, 50))
    np.testing.assert_array_equal(second.read(10, 40), ramp_iq(60, 40))


def test_header_of_several_channels_and_a_retune(tmp_path):
    data = b"HHH" + ramp(30) + ramp(30, 30)  # 15 + 15 frames of two channels
    meta = write_sigmf(
        tmp_path, data, num_channels=2, captures=[capture(0, 1e9, header_bytes=3), capture(15, 2e9)]
    )
    found = open_recording(meta)
    np.testing.assert_array_equal(found[1].read(0, 15), ramp_iq(0, 30)[1::2])
    np.testing.assert_array_equal(found[2].read(0, 15), ramp_iq(30, 30)[0::2])


def test_data_and_metadata_names_open_the_same(tmp_path):
    meta = write_sigmf(tmp_path, ramp(10), name="signal.1.92M")
    assert open_recording(tmp_path / "signal.1.92M.sigmf-data") == open_recording(str(meta))
    assert open_recording(meta)[0].path == meta


def test_sample_rate_fills_in_and_does_not_override(tmp_path):
    assert open_recording(write_sigmf(tmp_path, ramp(10)), sample_rate_hz=5.0)[0].sample_rate_hz == 1e6
    meta = write_sigmf(tmp_path, ramp(10), sample_rate=None)
    assert open_recording(meta, sample_rate_hz=5)[0].sample_rate_hz == 5.0
    assert_refused("core:sample_rate", "--sample_rate", path=meta)


def test_unsorted_annotations_and_foreign_keys_are_no_hindrance(tmp_path):
    annotations = [{"core:sample_start": 9}, {"core:sample_start": 2, "core:sample_count": 8, "other:key": 1}]
    meta = write_sigmf(tmp_path, ramp(10), annotations=annotations, license=7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_recording(meta)[0].num_samples == 10


# SigMF: mistakes


@pytest.mark.parametrize("rate", [0, -1.0, math.nan, math.inf, "fast", True, [1e6]])
def test_bad_sample_rates_are_refused(tmp_path, rate):
    assert_refused("core:sample_rate", repr(rate), path=write_sigmf(tmp_path, ramp(10), sample_rate=rate))
    (tmp_path / "b.cs8").write_bytes(ramp(10))
    assert_refused("--sample_rate", repr(rate), path=tmp_path / "b.cs8", sample_rate_hz=rate)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"datatype": "cf32_me"}, ["core:datatype", "cf32_me", "ci16"]),
        ({"datatype": "cf16_le"}, ["core:datatype", "cf16_le"]),
        ({"datatype": None}, ["core:datatype", "None"]),
        ({"data": b""}, ["empty", "found 0"]),
        ({"data": b"x"}, ["truncated", "2 bytes", "found 1"]),
        ({"num_channels": 11}, ["truncated", "22 bytes", "found 20"]),
        ({"num_channels": 0}, ["core:num_channels", "found 0"]),
        ({"trailing_bytes": 50}, ["empty", "found -30"]),
        ({"captures": [capture(0, header_bytes=20)]}, ["empty", "found 0"]),
        ({"captures": [capture(0), capture(11)]}, ["capture 1", "less data", "11 samples", "found 10"]),
        ({"captures": [capture(0), {}]}, ["capture 1", "core:sample_start", "None"]),
        ({"captures": [capture(0, "high")]}, ["capture 0", "core:frequency", "high"]),
        ({"dataset": "../a.bin"}, ["core:dataset", "../a.bin"]),
    ],
)
def test_metadata_that_do_not_fit_are_refused(tmp_path, options, words):
    options = {"data": ramp(10), **options}
    assert_refused(*words, path=write_sigmf(tmp_path, **options))


ODD_VALUES = [
    None,
    True,
    "x",
    "",
    -1,
    1.5,
    7,
    2**62,
    10**400,
    math.nan,
    math.inf,
    [],
    [1],
    {},
    {"a": [None]},
    "\0",
    ".",
]


def test_no_metadata_end_in_another_error(tmp_path):
    keys = [
        "datatype",
        "sample_rate",
        "num_channels",
        "offset",
        "trailing_bytes",
        "dataset",
        "metadata_only",
        "version",
    ]
    meta = write_sigmf(tmp_path, ramp(10))
    sound = json.loads(meta.read_text())
    spoilt = [
        {**sound, "global": {**sound["global"], f"core:{key}": odd}} for key in keys for odd in ODD_VALUES
    ]
    for key in ("sample_start", "frequency", "global_index", "header_bytes"):
        spoilt += [
            {**sound, "captures": [{"core:sample_start": 0, f"core:{key}": odd}]} for odd in ODD_VALUES
        ]
    for key in ("sample_start", "sample_count"):
        spoilt += [
            {**sound, "annotations": [{"core:sample_start": 0, f"core:{key}": odd}]} for odd in ODD_VALUES
        ]
    spoilt += [{**sound, part: odd} for part in ("global", "captures", "annotations") for odd in ODD_VALUES]
    messages = []
    for metadata in [*spoilt, *ODD_VALUES]:
        meta.write_text(json.dumps(metadata))
        try:
            open_recording(meta)
        except UserError as error:
            messages.append(str(error))
    assert len(messages) > len(spoilt) / 2
    assert all("a.sigmf-meta" in message and "\n" not in message for message in messages)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"\xff\xfe\x00", b"[1,\n 2", b'{"captures": []}', b"[" * 100_000]
)
def test_files_that_are_no_metadata_are_refused(tmp_path, text):
    meta = write_sigmf(tmp_path, ramp(10))
    meta.write_bytes(text)
    assert_refused("expected SigMF metadata", path=meta)


def test_missing_files_are_refused(tmp_path):
    assert_refused("no such file", path=tmp_path / "none.sigmf-meta")
    meta = write_sigmf(tmp_path, ramp(10))
    (tmp_path / "a.sigmf-data").unlink()
    assert_refused("a.sigmf-data", "no such file", path=meta)
    (tmp_path / "b.sigmf-data").write_bytes(ramp(10))
    assert_refused("b.sigmf-meta", path=tmp_path / "b.sigmf-data")
    meta = write_sigmf(tmp_path, ramp(10), name="c", metadata_only=True)
    assert open_recording(meta)[0].num_samples == 10
    (tmp_path / "c.sigmf-data").unlink()
    assert_refused("c.sigmf-data", "core:metadata_only", path=meta)
    meta = write_sigmf(tmp_path, ramp(10), name="d", data_name="e.bin", dataset="d.bin")
    assert_refused("d.bin", "no such file", path=meta)


def test_os_errors_are_reported(tmp_path):
    (tmp_path / "loop.cu8").symlink_to(tmp_path / "loop.cu8")
    assert_refused("cannot be read", path=tmp_path / "loop.cu8", sample_rate_hz=1)
    assert_refused("cannot be read", path=tmp_path / ("x" * 300 + ".cu8"), sample_rate_hz=1)
    assert_refused("folder", path=tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read any file")
def test_unreadable_files_are_reported(tmp_path):
    meta = write_sigmf(tmp_path, ramp(10))
    meta.chmod(0)
    assert_refused("Permission denied", path=meta)


def test_a_data_file_that_changes_after_opening_is_reported(tmp_path):
    recording = open_recording(write_sigmf(tmp_path, ramp(10)))[0]
    (tmp_path / "a.sigmf-data").write_bytes(ramp(6))
    assert len(recording.read(0, 6)) == 6
    with pytest.raises(
        UserError, match=r"a\.sigmf-data: expected 20 bytes or more, as when it was opened; found 12"
    ):
        recording.read(4, 5)
    (tmp_path / "a.sigmf-data").unlink()
    with pytest.raises(UserError, match=r"a\.sigmf-data: expected 20 bytes or more; found no such file"):
        recording.read(0, 1)


# Samples that are not finite


NOT_FINITE = [
    (datatype, bad)
    for datatype in ("cf32_le", "cf32_be", "cf64_le", "rf32_le", "rf64_be")
    for bad in (math.nan, math.inf, -math.inf, *([1e300] if "64" in datatype else []))
]


@pytest.mark.parametrize(("datatype", "bad"), NOT_FINITE)
def test_samples_that_are_not_finite_are_named(tmp_path, datatype, bad):
    components = 2 if datatype[0] == "c" else 1
    values = [0.5] * 100 * components
    values[70 * components + components - 1] = bad
    data = packed(datatype[:4], datatype[4:], values)
    recordings = open_recording(
        write_sigmf(tmp_path, data, datatype, captures=[capture(0, 1e9), capture(40, 2e9)])
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(
            UserError, match=r"a\.sigmf-meta \[capture 1\]: expected finite samples.* at sample 70;"
        ):
            recordings[1].read(10, 50)
        assert np.isfinite(recordings[1].read(31, 29)).all()


def test_the_channel_that_is_not_finite_is_named(tmp_path):
    iq = np.ones((50, 2), np.complex64)
    iq[9, 1] = np.nan
    left, right = open_recording(write_sigmf(tmp_path, iq.tobytes(), "cf32_le", num_channels=2))
    assert left.read(0, 50).sum() == 50
    with pytest.raises(UserError, match=r"\[channel 1\].* at sample 9;"):
        right.read(3, 40)


def test_large_finite_samples_pass(tmp_path):
    iq = np.full(50, 3e9 + 3e9j, np.complex64)
    recording = open_recording(write_sigmf(tmp_path, iq.tobytes(), "cf32_le"))[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(recording.read(0, 50), iq)


# Archives


def library_archive(folder: Path, name: str, data: bytes) -> Path:
    """A SigMF archive of two captures, as the library writes it."""
    meta = write_sigmf(folder, data, name="inner", captures=[capture(0, 1e9), capture(30, 2e9)])
    recording = sigmf.fromfile(meta, skip_checksum=True)
    recording.archive(str(folder / name))
    meta.unlink()
    (folder / "inner.sigmf-data").unlink()
    return folder / name


def tar_of(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def meta_text(**info) -> bytes:
    info = {"core:datatype": "cu8", "core:version": "1.2.0", "core:sample_rate": 1e6, **info}
    return json.dumps({"global": info, "captures": [{"core:sample_start": 0}], "annotations": []}).encode()


def test_archives_of_the_library_are_read_in_place(tmp_path):
    archive = library_archive(tmp_path, "a.sigmf", ramp(100))
    first, second = open_recording(archive)
    assert summary([first, second]) == [(0, 30, 1e9), (30, 70, 2e9)]
    assert (first.path, first.name, second.name) == (archive, "a.sigmf [capture 0]", "a.sigmf [capture 1]")
    np.testing.assert_array_equal(second.read(0, 70), ramp_iq(30, 70))
    assert os.listdir(tmp_path) == ["a.sigmf"]


def test_archives_of_several_recordings_are_opened_by_name(tmp_path):
    files = {
        "set/b.sigmf-meta": meta_text(),
        "set/a.sigmf-data": ramp(20, 5),
        "set/b.sigmf-data": ramp(30, 9),
        "set/._a.sigmf-meta": b"Finder",
        "set/all.sigmf-collection": b"{}",
        "set/a.sigmf-meta": meta_text(),
    }
    a, b = open_recording(tar_of(tmp_path / "two.sigmf", files))
    assert (a.name, b.name) == ("two.sigmf [a]", "two.sigmf [b]")
    np.testing.assert_array_equal(a.read(0, 20), ramp_iq(5, 20))
    np.testing.assert_array_equal(b.read(0, 30), ramp_iq(9, 30))


def test_archived_data_of_another_name(tmp_path):
    meta = json.loads(meta_text(**{"core:dataset": "x.bin", "core:trailing_bytes": 3}))
    meta["captures"][0]["core:header_bytes"] = 4
    files = {"./x/x.bin": b"head" + ramp(20) + b"end", "./x/x.sigmf-meta": json.dumps(meta).encode()}
    [recording] = open_recording(tar_of(tmp_path / "x.sigmf", files))
    np.testing.assert_array_equal(recording.read(0, 20), ramp_iq(0, 20))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a/a.sigmf-data": b"1234"}, ["expected a .sigmf-meta", "found 1"]),
        ({}, ["expected a .sigmf-meta", "found 0"]),
        (
            {"a/a.sigmf-meta": meta_text(), "b/a.sigmf-data": b"1234"},
            ["a/a.sigmf-meta", "a.sigmf-data", "no such file"],
        ),
        (
            {"a/a.sigmf-meta": meta_text(), "a/a.sigmf-data": b"1"},
            ["a/a.sigmf-meta", "truncated", "found 1"],
        ),
        ({"a/a.sigmf-meta": b"{", "a/a.sigmf-data": b"1234"}, ["a/a.sigmf-meta", "expected SigMF metadata"]),
    ],
)
def test_incomplete_archives_are_refused(tmp_path, files, words):
    assert_refused(*words, path=tar_of(tmp_path / "bad.sigmf", files))


def test_cut_and_foreign_archives_are_refused(tmp_path):
    whole = library_archive(tmp_path, "a.sigmf", ramp(3000)).read_bytes()
    end = whole.rindex(b"}") + 1  # of the metadata or the data, whichever comes last; zeros pad it
    end = max(end, whole.rindex(ramp(3000)) + 6000)
    for length in [0, 100, 512, 1000, *range(1024, end, 512)]:
        (tmp_path / "cut.sigmf").write_bytes(whole[:length])
        assert_refused(path=tmp_path / "cut.sigmf")
    (tmp_path / "cut.sigmf").write_bytes(b"no tar at all\n" * 100)
    assert_refused("tar archive", path=tmp_path / "cut.sigmf")


def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.sigmf-data", content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".gz", gzip.compress), (".xz", lzma.compress), (".zip", zipped)]
)
def test_compressed_archives_are_refused(tmp_path, suffix, compress):
    archive = library_archive(tmp_path, "a.sigmf", ramp(100))
    archive.write_bytes(compress(archive.read_bytes()))
    compressed = archive.rename(tmp_path / f"a.sigmf{suffix}")
    assert_refused("compressed", path=compressed)
    with pytest.raises(UserError, match="compressed"):
        find_recordings([tmp_path])
    compressed.rename(tmp_path / "a.sigmf")
    assert_refused("uncompressed tar", path=tmp_path / "a.sigmf")


# npy


NPY_IQ = np.array([0.5 - 0.25j, -1 + 0.75j, 0.125 + 0j, 0.25 - 1j, -0.5 + 0.5j])


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize(
    "dtype", ["<f4", ">f4", "<f8", ">f8", "i1", "<i2", ">i2", "<i4", ">i4", "u1", "<u2", ">u2", ">u4"]
)
def test_npy_of_components(tmp_path, dtype, columns, order):
    half = 2.0 ** (8 * np.dtype(dtype).itemsize - 1)
    parts = np.stack([NPY_IQ.real, NPY_IQ.imag], axis=1 if columns else 0)
    if np.dtype(dtype).kind != "f":
        parts = parts * half + (half if np.dtype(dtype).kind == "u" else 0)
    np.save(tmp_path / "a.npy", np.asarray(parts.astype(dtype), order=order))

    assert is_recording_file(tmp_path / "a.npy")
    [recording] = open_recording(tmp_path / "a.npy", sample_rate_hz=2e6)

    little = "" if dtype[-1] == "1" else "_be" if dtype[0] == ">" else "_le"
    assert recording.datatype == f"c{dtype[-2]}{8 * int(dtype[-1])}{little}"
    assert (recording.name, recording.sample_rate_hz, recording.center_freq_hz) == ("a.npy", 2e6, None)
    np.testing.assert_array_equal(recording.read(0, 5), NPY_IQ.astype(np.complex64))
    np.testing.assert_array_equal(recording.read(2, 2), NPY_IQ[2:4].astype(np.complex64))


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("dtype", ["<c8", ">c8", "<c16", ">c16"])
def test_npy_of_complex_and_every_header_version(tmp_path, dtype, version):
    with open(tmp_path / "a.npy", "wb") as file:
        np.lib.format.write_array(file, NPY_IQ.astype(dtype), version=version)
    [recording] = open_recording(tmp_path / "a.npy", sample_rate_hz=2e6)
    np.testing.assert_array_equal(recording.read(1, 4), NPY_IQ[1:].astype(np.complex64))


def test_npy_of_two_by_two_has_rows_i_and_q(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[1.0, 2.0], [3.0, 4.0]]))
    np.testing.assert_array_equal(open_recording(tmp_path / "a.npy", 1.0)[0].read(0, 2), [1 + 3j, 2 + 4j])


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_samples_that_are_not_finite_and_files_that_shrink(tmp_path, order):
    parts = np.ones((2, 50), np.float32, order=order)
    parts[1, 33] = np.nan
    np.save(tmp_path / "a.npy", parts)
    [recording] = open_recording(tmp_path / "a.npy", 1.0)
    with pytest.raises(UserError, match=r"a\.npy: .* at sample 33;"):
        recording.read(20, 30)
    os.truncate(tmp_path / "a.npy", 128 + 8 * 48)
    with pytest.raises(
        UserError, match=r"a\.npy: expected 528 bytes or more, as when it was opened; found 512"
    ):
        recording.read(40, 10)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros(8, np.float32), ["float32", "[8]"]),
        (np.zeros((3, 8)), ["float64", "[3, 8]"]),
        (np.zeros((1, 2, 8)), ["[1, 2, 8]"]),
        (np.zeros((2, 8), complex), ["complex128", "[2, 8]"]),
        (np.zeros((2, 8), np.float16), ["float16"]),
        (np.zeros((2, 8), np.int64), ["int64"]),
        (np.zeros((2, 8), bool), ["bool"]),
        (np.array([[1, None], [3, 4]], object), ["object", "not loaded"]),
        (np.zeros(8, [("i", "f4"), ("q", "f4")]), ["[8]"]),
    ],
)
def test_npy_that_is_not_iq_is_refused_alone_and_skipped_in_a_folder(tmp_path, array, words):
    np.save(tmp_path / "a.npy", array)
    assert not is_recording_file(tmp_path / "a.npy")
    assert_refused("[N, 2]", *words, path=tmp_path / "a.npy", sample_rate_hz=1.0)
    np.save(tmp_path / "b.npy", NPY_IQ)
    assert [one.name for one in find_recordings([tmp_path], 1.0)] == ["b.npy"]


def test_npy_that_is_damaged_is_refused_alone_and_in_a_folder(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, NPY_IQ)
    whole = path.read_bytes()
    assert_refused("--sample_rate", path=path)
    path.write_bytes(whole[:-1])
    assert_refused("truncated", "expected 80", "found 79", path=path, sample_rate_hz=1.0)
    spoilt = [whole[:n] for n in (0, 5, 9, 60)] + [
        whole.replace(b"{", b"(", 1),
        whole.replace(b"'<c16'", b"'\n\xff!'", 1),
    ]
    for content in [*spoilt, b"P" * 200]:
        path.write_bytes(content)
        assert is_recording_file(path)
        assert_refused("unreadable header", path=path, sample_rate_hz=1.0)
        with pytest.raises(UserError, match="unreadable header"):
            find_recordings([tmp_path], 1.0)
    np.save(path, np.zeros((2, 0)))
    assert_refused("empty", path=path, sample_rate_hz=1.0)


# Raw files


@pytest.mark.parametrize(
    ("suffix", "given", "datatype"),
    [
        (".cf32", None, "cf32_le"),
        (".cs16", None, "ci16_le"),
        (".cs8", None, "ci8"),
        (".cu8", None, "cu8"),
        (".CU8", None, "cu8"),
        (".cu8", "ci8", "ci8"),
        (".dat", "ci16_be", "ci16_be"),
        (".bin", "cs16", "ci16_le"),
        (".iq", "cs8", "ci8"),
        (".iq", "rf32", "rf32_le"),
        (".iq", "cs16_be", "ci16_be"),
    ],
)
def test_raw_files(tmp_path, suffix, given, datatype):
    base, order = datatype[:-3] if "_" in datatype else datatype, datatype[-3:] if "_" in datatype else ""
    values = component_values(base, 24)
    (tmp_path / f"a{suffix}").write_bytes(packed(base, order, values))
    [recording] = open_recording(tmp_path / f"a{suffix}", 3e6, given)
    assert (recording.datatype, recording.sample_rate_hz, recording.name) == (datatype, 3e6, f"a{suffix}")
    np.testing.assert_array_equal(
        recording.read(0, recording.num_samples), expected_iq(base, values, 1)[:, 0]
    )


def test_raw_files_without_what_they_need_are_refused(tmp_path):
    for name in ("a.iq", "a.dat", "a.bin", "a.cs16", ".iq"):
        (tmp_path / name).write_bytes(bytes(18))
    for name in ("a.iq", "a.dat", "a.bin"):
        assert_refused("--datatype", "ci16", path=tmp_path / name, sample_rate_hz=1.0)
    assert_refused("--sample_rate", path=tmp_path / "a.iq", datatype="ci8")
    assert_refused("--datatype", "cq9", "ru16", path=tmp_path / "a.iq", sample_rate_hz=1.0, datatype="cq9")
    assert_refused("suffix", path=tmp_path / ".iq", sample_rate_hz=1.0)
    (tmp_path / "a.cs16").write_bytes(b"")
    assert_refused("empty", path=tmp_path / "a.cs16", sample_rate_hz=1.0)
    (tmp_path / "a.txt").write_text("no IQ")
    assert_refused(".txt", ".sigmf-meta", path=tmp_path / "a.txt", sample_rate_hz=1.0)


# Folders


def test_folders_are_searched_in_sorted_order_without_hidden_names(tmp_path):
    for folder in ("b", "a", "a/deep", ".hidden", "a/.git"):
        (tmp_path / folder).mkdir(exist_ok=True)
    for stem in ("b/2", "b/10", "a/z", "a/deep/m", ".hidden/x", "a/.git/y", "b/._2"):
        write_sigmf((tmp_path / stem).parent, ramp(10), name=Path(stem).name)
    (tmp_path / "b" / "1.cu8").write_bytes(ramp(10))
    (tmp_path / "b" / "notes.txt").write_text("nothing")
    found = find_recordings([tmp_path], 1e6)
    names = [str(one.path.relative_to(tmp_path)) for one in found]
    assert names == ["a/deep/m.sigmf-meta", "a/z.sigmf-meta", "b/1.cu8", "b/10.sigmf-meta", "b/2.sigmf-meta"]
    order = [one.path.name for one in find_recordings([tmp_path / "b" / "2.sigmf-data", tmp_path / "a"], 1e6)]
    assert order == ["2.sigmf-meta", "m.sigmf-meta", "z.sigmf-meta"]


def test_a_file_reached_twice_is_opened_once(tmp_path, monkeypatch):
    meta = write_sigmf(tmp_path, ramp(10))
    monkeypatch.chdir(tmp_path)
    paths = [meta, "a.sigmf-meta", tmp_path / "a.sigmf-data", tmp_path, tmp_path / ".." / tmp_path.name]
    assert len(find_recordings(paths)) == 1
    assert len(find_recordings(str(meta))) == 1


def test_equal_metadata_linked_from_a_store_are_two_recordings(tmp_path):
    meta = write_sigmf(tmp_path, ramp(10), name="blob")
    (tmp_path / "set").mkdir()
    for name, data in (("a", ramp(10)), ("b", ramp(20))):
        (tmp_path / "set" / f"{name}.sigmf-meta").symlink_to(meta)
        (tmp_path / "set" / f"{name}.sigmf-data").write_bytes(data)
    assert [one.num_samples for one in find_recordings([tmp_path / "set"])] == [10, 20]


def test_data_that_metadata_describe_are_not_raw_files_too(tmp_path):
    write_sigmf(
        tmp_path,
        b"head" + ramp(10),
        name="z",
        captures=[capture(0, header_bytes=4)],
        data_name="a.bin",
        dataset="a.bin",
    )
    assert [one.name for one in find_recordings([tmp_path])] == ["z.sigmf-meta"]
    assert len(find_recordings([tmp_path / "a.bin"], 1.0, "cu8")) == 1


def test_paths_that_lead_nowhere_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    for path, words in (
        (tmp_path, "found none"),
        (tmp_path / "no", "no such file"),
        (tmp_path / "notes.txt", ".txt"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            find_recordings([path])
        assert str(path) in str(caught.value)
    (tmp_path / "orphan.sigmf-data").write_bytes(ramp(10))
    with pytest.raises(UserError, match=r"orphan\.sigmf-data: .*no orphan\.sigmf-meta"):
        find_recordings([tmp_path])


# Large files, real files


def test_a_4_gb_file_is_read_at_its_end_without_memory_or_open_files(tmp_path):
    num_samples = 2**30 + 1000  # ci16: 4 GiB and a little
    meta = write_sigmf(tmp_path, b"", "ci16_le", sha512="0" * 128)
    with open(tmp_path / "a.sigmf-data", "wb") as file:
        file.seek(4 * num_samples - 4)
        file.write(struct.pack("<2h", 16384, -8192))
    script = textwrap.dedent("""
        import os, resource, sys
        import numpy as np
        from radio.recordings import open_recording
        files = len(os.listdir("/proc/self/fd"))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        [recording] = open_recording(sys.argv[1])
        for start in range(0, 2**25, 2**20):  # 128 MiB of the file, which would stay if it were mapped
            recording.read(start, 2**20)
        iq = recording.read(np.int32(recording.num_samples - 1000), 1000)
        grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(recording.num_samples, complex(iq[-1]), np.count_nonzero(iq), grown_kib,
              len(os.listdir("/proc/self/fd")) - files)
    """)
    result = subprocess.run(
        [sys.executable, "-c", script, str(meta)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    total, last, nonzero, grown_kib, files_left_open = result.stdout.split()
    assert (int(total), complex(last), int(nonzero)) == (num_samples, 0.5 - 0.25j, 1)
    assert int(grown_kib) < 40_000  # one window: 4 MiB as integers, 8 MiB as complex64
    assert int(files_left_open) == 0
    assert result.stderr == ""


@needs_captures
def test_real_captures_are_what_their_readme_says():
    rows = [
        line.strip("|").split("|")
        for line in (CAPTURES / "README.md").read_text().splitlines()
        if line[:1] == "|"
    ]
    table = {row[0].strip(): (float(row[2]), float(row[3])) for row in rows[2:]}
    recordings = {one.path.name.removesuffix(".sigmf-meta"): one for one in find_recordings([CAPTURES])}
    assert recordings.keys() == table.keys()
    for name, (rate_msps, duration_ms) in table.items():
        recording = recordings[name]
        assert recording.sample_rate_hz == pytest.approx(1e6 * rate_msps)
        assert 1e3 * recording.duration_s == pytest.approx(duration_ms, abs=1e-3)
        iq = recording.read(0, recording.num_samples)
        assert np.isfinite(iq).all()
        assert np.abs(iq).max() > 0
