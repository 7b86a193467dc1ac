"""main_segment.py as an engineer meets it: what is in this capture, in every format, live, and how right it
is.
"""

import argparse
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import sigmf
import torch
from matplotlib.figure import Figure
from support import ROOT, call, command, contents, largest_file, write_sigmf

import engine_files
import engine_label
import engine_segment
import main_finetune
import main_pretrain
import main_segment
import main_synthesize
import models_deeplab
import models_mae
import models_vit
from data.annotated import AnnotatedWindows
from data.splits import Splits
from labelling.detection import match
from radio.carriers import from_annotation
from radio.cell_search import Cell
from radio.recordings import find_recordings, open_recording
from radio.spectrogram import Spectrogram
from util import checkpoint
from util.pretrained import write_weights

NANO = {
    "patch_size": 8,
    "embed_dim": 64,
    "depth": 2,
    "num_heads": 2,
    "decoder_embed_dim": 64,
    "decoder_depth": 2,
    "decoder_num_heads": 2,
}
# Five narrow carriers beside each other, LTE of 1.4 MHz and NR of 5, through flat channels.
RATE, DURATION_S, ROWS = 30.72e6, 5e-3, 64
ROW_HZ = RATE / ROWS
SETTINGS = (
    "--set",
    "num_carriers=5",
    "sample_rates_hz=30.72e6",
    "duration_ms=5",
    "lte_bandwidths_mhz=1.4",
    "nr_bandwidths_mhz=5",
    "nr_spacings_khz=15",
    "snr_db=20,30",
    "raster_hz=1",
    "gap_hz=5e5,1e6",
    "doppler_hz=0",
)
FRONT_END = ("--preset", "classic", "--n_fft", 512, "--input_size", ROWS, "--num_workers", 0)
SCENE = 3  # of those written: one with five carriers


def nano(patch):
    patch.setitem(models_mae.PRESETS, "mae_vit_nano", NANO)
    patch.setitem(models_vit.PRESETS, "vit_nano", NANO)


@pytest.fixture(autouse=True)
def quick(monkeypatch, request):
    """A small model, no cell heard, and pictures without anything in them where none looks at them."""
    nano(monkeypatch)
    monkeypatch.setattr(engine_files, "heard", lambda recording, carriers: ([], []))
    if "picture" not in request.function.__name__:
        monkeypatch.setattr(engine_label, "labelled_figure", lambda *_: Figure(figsize=(1, 1)))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with scenes as recordings in iq/, and a model that was trained on others for seconds in
    model/.
    """
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        nano(patch)
        patch.setattr(main_synthesize, "SHEET_SCENES", 1)
        sets, air = folder / "sets", folder / "air"
        assert (
            call(
                main_synthesize,
                "--output",
                sets,
                *FRONT_END,
                "--train",
                160,
                "--val",
                8,
                "--test",
                2,
                *SETTINGS,
            )
            == 0
        )
        assert (
            call(
                main_synthesize,
                "--output",
                air,
                *FRONT_END,
                "--train",
                0,
                "--val",
                0,
                "--test",
                6,
                "--iq",
                "only",
                *SETTINGS,
            )
            == 0
        )
        assert (
            call(
                main_finetune,
                "--task",
                "segmentation",
                "--data_path",
                sets,
                "--model",
                "vit_nano",
                "--epochs",
                30,
                "--warmup_epochs",
                2,
                "--batch_size",
                16,
                "--blr",
                8e-2,
                "--drop_path",
                0,
                "--val_every",
                8,
                "--num_workers",
                0,
                "--device",
                "cpu",
                "--amp",
                "off",
                "--output_dir",
                folder / "model",
            )
            == 0
        )
    shutil.move(air / "iq" / "test", folder / "iq")
    return folder


@pytest.fixture
def weights(made):
    return made / "model" / checkpoint.BEST


@pytest.fixture
def scene(made):
    return made / "iq" / f"{SCENE:06d}.sigmf-meta"


def segment(weights, output, *recordings_and_flags):
    """In float32, unless said otherwise: what is the faster on this machine differs from one time to another."""
    return call(
        main_segment,
        "--amp",
        "off",
        *recordings_and_flags,
        "--weights",
        weights,
        "--output",
        output,
        "--device",
        "cpu",
    )


def fails(capsys, weights, output, *recordings_and_flags):
    """Exit status 2 and one line, which is returned; nothing written."""
    capsys.readouterr()
    assert segment(weights, output, *recordings_and_flags) == 2
    assert not output.exists() or not any(path.is_file() for path in output.rglob("*"))
    *_, last = capsys.readouterr().err.removesuffix("\n").split("\n")
    assert last.startswith("error: ")
    return last


def found_in(output, name="000003"):
    return json.loads((output / f"{name}.json").read_text())["carriers"]


def carriers_of(meta, generator_only=True):
    """Carriers that a labelled recording's annotations tell of, read by the sigmf library."""
    handle = sigmf.fromfile(meta, skip_checksum=True)
    handle.validate()
    chosen = [
        one
        for one in handle.get_annotations()
        if "confidence" in one.get("core:comment", "") or not generator_only
    ]
    return [from_annotation(one, handle.sample_rate) for one in chosen]


def test_a_scene_of_five_carriers(made, weights, scene, tmp_path, capsys):
    assert segment(weights, tmp_path / "out", scene, "--truth") == 0
    shown = capsys.readouterr().out
    true = [from_annotation(one, RATE) for one in open_recording(scene)[0].annotations]
    assert len(true) == 5
    found = carriers_of(tmp_path / "out" / scene.name)
    pairs = match(found, true)
    assert len(pairs) == 5
    edges = [
        (one.freq_lower_hz - other.freq_lower_hz, one.freq_upper_hz - other.freq_upper_hz)
        for one, other in pairs
    ]
    assert np.abs(edges).max() <= 2 * ROW_HZ

    # the console says the same
    lines = shown.splitlines()
    start = lines.index(f"{scene.name}: {len(found)} carriers")
    header = ["label", "cell", "centre MHz", "bandwidth MHz", "start ms", "duration ms", "confidence"]
    assert re.split("  +", lines[start + 1]) == header
    for line, one in zip(lines[start + 2 : start + 2 + len(found)], found_in(tmp_path / "out"), strict=True):
        expected = [
            one["label"],
            "-",
            f"{one['center_freq_hz'] / 1e6:.3f}",
            f"{one['bandwidth_hz'] / 1e6:.3f}",
            f"{one['start_s'] * 1e3:.2f}",
            f"{one['duration_s'] * 1e3:.2f}",
            f"{one['confidence']:.2f}",
        ]
        assert line.split() == expected
    [row] = [line.split() for line in lines if line.startswith("all ")]
    assert row[1] == "5"
    assert row[4] == "100.0"
    assert re.search(
        r"real-time factor \d+\.\d\d \(reading .*, front end .*, network .*, writing .*\)", shown
    )
    truth = json.loads((tmp_path / "out" / "000003.json").read_text())["truth"]
    assert truth["carriers"]["all"]["matched"] == 5
    assert truth["cells"]["pixel_accuracy"] > 0.8

    # and again the same bytes, its pictures too
    assert segment(weights, tmp_path / "again", scene, "--truth") == 0
    assert contents(tmp_path / "again") == contents(tmp_path / "out")


def test_the_original_stays_whole_and_its_data_are_referred_to(made, weights, scene, tmp_path):
    before = contents(made / "iq")
    assert segment(weights, tmp_path / "out", scene) == 0
    assert contents(made / "iq") == before
    [old], [new] = open_recording(scene), open_recording(tmp_path / "out" / scene.name)
    assert (tmp_path / "out" / "000003.sigmf-data").is_symlink()
    np.testing.assert_array_equal(new.read(0, new.num_samples), old.read(0, old.num_samples))
    assert len(new.annotations) == len(old.annotations) + len(found_in(tmp_path / "out"))
    assert (
        sigmf.fromfile(tmp_path / "out" / scene.name)[:10] == old.read(0, 10)
    ).all()  # the checksum holds too


def test_copied_data_make_a_folder_that_stands_alone(made, weights, scene, tmp_path, capsys):
    assert segment(weights, tmp_path / "out", scene) == 0
    assert "; data: linked (--copy copies it)" in capsys.readouterr().out
    for _ in range(2):  # in place of the link; and the copy stays
        assert segment(weights, tmp_path / "out", scene, "--copy") == 0
        assert "; data: copied" in capsys.readouterr().out
        copied = tmp_path / "out" / "000003.sigmf-data"
        assert not copied.is_symlink()
        assert copied.read_bytes() == scene.with_suffix(".sigmf-data").read_bytes()
    shutil.move(tmp_path / "out", tmp_path / "elsewhere")
    assert len(sigmf.fromfile(tmp_path / "elsewhere" / scene.name)[:10]) == 10  # the checksum holds too


def test_replace_leaves_the_own_annotations_out(weights, scene, tmp_path):
    assert segment(weights, tmp_path / "out", scene, "--replace") == 0
    [new] = open_recording(tmp_path / "out" / scene.name)
    assert len(new.annotations) == len(found_in(tmp_path / "out"))


def test_the_cells_agree_with_main_finetune(made, weights, tmp_path, monkeypatch):
    """On windows side by side the model's confusion matrix is that of `--eval` on the same recordings."""
    monkeypatch.setattr(engine_segment, "without_doubtful_noise", lambda planes, column_s: planes)
    assert segment(weights, tmp_path / "out", made / "iq", "--truth", "--overlap", 0) == 0
    labelled = [json.loads((tmp_path / "out" / f"{number:06d}.json").read_text()) for number in range(2, 6)]
    confusion = sum(np.array(one["truth"]["cells"]["confusion"]) for one in labelled)
    windows = AnnotatedWindows(find_recordings(made / "iq"), Spectrogram(512, DURATION_S, (ROWS, ROWS)))
    parts = {"train": np.array([0]), "val": np.array([1]), "test": np.arange(2, 6)}
    Splits(parts, 0).save(tmp_path / "split.json", windows)
    assert (
        call(
            main_finetune,
            "--task",
            "segmentation",
            "--data_path",
            made / "iq",
            "--model",
            "vit_nano",
            "--eval",
            "--resume",
            weights,
            "--split",
            tmp_path / "split.json",
            "--num_workers",
            0,
            "--device",
            "cpu",
            "--amp",
            "off",
            "--output_dir",
            tmp_path / "eval",
        )
        == 0
    )
    assert (
        json.loads((tmp_path / "eval" / "results.json").read_text())["test"]["confusion"]
        == confusion.tolist()
    )


# Formats


def shifted(scene, output, datatype="ci16_le", times=1, gain=1.0):
    """The scene's samples as another recording's bytes."""
    [one] = open_recording(scene)
    iq = np.tile(one.read(0, one.num_samples), times)
    values = np.stack([iq.real, iq.imag], axis=1) / np.abs(iq.view(np.float32)).max() * gain
    kind = {"ci16_le": "<i2", "ci16_be": ">i2", "ci8": "i1", "cf32_le": "<f4", "cf32_be": ">f4", "cu8": "u1"}[
        datatype
    ]
    if datatype == "cu8":
        return np.round(values * 127 + 128).astype(kind).tobytes()
    return (
        (np.round(values * {"2": 32767, "1": 127}[kind[-1]]) if "i" in kind else values)
        .astype(kind)
        .tobytes()
    )


@pytest.mark.parametrize("datatype", ["ci16_be", "cf32_be", "cf32_le", "ci8", "cu8"])
def test_datatypes_and_byte_orders_agree(weights, scene, tmp_path, datatype):
    captures = [{"core:sample_start": 0, "core:frequency": 4e9}]
    results = []
    for kind in ("ci16_le", datatype):
        folder = tmp_path / kind
        folder.mkdir(parents=True)
        meta = write_sigmf(folder, shifted(scene, folder, kind), kind, captures=captures, sample_rate=RATE)
        assert segment(weights, folder / "out", meta) == 0
        results.append(carriers_of(folder / "out" / "a.sigmf-meta"))
    assert len(results[0]) >= 5
    assert len(match(results[0], results[1], 0.8)) >= 5


def test_edges_are_at_rf_in_each_capture_of_a_retuned_recording(made, weights, scene, tmp_path):
    """Two scenes, tuned to frequencies of their own, in one file whose indices begin at an offset."""
    other = made / "iq" / "000002.sigmf-meta"
    samples = open_recording(scene)[0].num_samples
    data = shifted(scene, tmp_path) + shifted(other, tmp_path)
    captures = [
        {"core:sample_start": 1000, "core:frequency": 700e6},
        {"core:sample_start": 1000 + samples, "core:frequency": 3.6e9, "acme:antenna": 2},
    ]
    meta = write_sigmf(tmp_path, data, "ci16_le", captures=captures, sample_rate=RATE, offset=1000)
    assert segment(weights, tmp_path / "out", meta) == 0
    written = open_recording(tmp_path / "out" / "a.sigmf-meta")
    assert [one.center_freq_hz for one in written] == [700e6, 3.6e9]
    for number, (source, center) in enumerate(((scene, 700e6), (other, 3.6e9))):
        alone = tmp_path / str(number)
        assert segment(weights, alone, source) == 0
        expected = [
            (one.label, one.freq_lower_hz - 4e9, one.freq_upper_hz - 4e9, one.start_s, one.duration_s)
            for one in carriers_of(alone / source.name)
        ]
        found = [from_annotation(one, RATE) for one in written[number].annotations]
        assert len(found) == len(expected)
        for one, (label, low, high, start_s, duration_s) in zip(found, expected, strict=True):
            assert one.label == label
            assert one.freq_lower_hz - center == pytest.approx(low, abs=ROW_HZ / 10)
            assert one.freq_upper_hz - center == pytest.approx(high, abs=ROW_HZ / 10)
            assert (one.start_s, one.duration_s) == pytest.approx((start_s, duration_s), abs=1e-4)
    carriers = json.loads((tmp_path / "out" / "a.json").read_text())["carriers"]
    assert {one["stretch"] for one in carriers} == {0, 1}
    assert all((one["start_s"] >= samples / RATE) == (one["stretch"] == 1) for one in carriers)


def test_what_the_metadata_say_beyond_the_standard_survives(weights, scene, tmp_path):
    captures = [{"core:sample_start": 0, "core:frequency": 4e9, "acme:gain": {"lna": [1, 2.50, None]}}]
    own = [
        {"core:sample_start": 5, "core:sample_count": 10, "core:label": "über", "acme:who": "me"},
        {"core:sample_start": 0, "core:comment": "no edges"},
    ]
    meta = write_sigmf(
        tmp_path,
        shifted(scene, tmp_path),
        "ci16_le",
        captures=captures,
        annotations=own,
        sample_rate=RATE,
        extensions=[{"name": "acme", "version": "1.0.0", "optional": True}],
        author="Ænne",
    )
    said = json.loads(meta.read_text())
    said["global"]["acme:site"] = "roof"
    said["acme:more"] = {"a": 1}
    meta.write_text(json.dumps(said))
    assert segment(weights, tmp_path / "out", meta) == 0
    written = json.loads((tmp_path / "out" / "a.sigmf-meta").read_text())
    annotations = written.pop("annotations")
    said["global"]["core:extensions"].append({"name": "radio_mae", "version": "1.0.0", "optional": True})
    assert written == {key: value for key, value in said.items() if key != "annotations"}
    assert [one for one in annotations if one in own] == [own[1], own[0]]  # sorted, as SigMF wants
    starts = [one["core:sample_start"] for one in annotations]
    assert starts == sorted(starts)
    assert len(annotations) > 2


def write_as(kind, folder, scene):
    """The scene as a file without metadata, or in an archive; returns it and whether SigMF can refer to its
    data.
    """
    folder.mkdir()
    data = shifted(scene, folder)
    values = np.frombuffer(data, "<i2").reshape(-1, 2)
    if kind == "cs16":
        (folder / "a.cs16").write_bytes(data)
        return folder / "a.cs16", True
    if kind == "archive":
        meta = write_sigmf(folder, data, "ci16_le", sample_rate=RATE)
        with tarfile.open(folder / "a.sigmf", "w") as tar:
            for path in (meta, meta.with_suffix(".sigmf-data")):
                tar.add(path, f"a/{path.name}")
                path.unlink()
        return folder / "a.sigmf", False
    np.save(folder / "a.npy", values if kind == "npy" else np.ascontiguousarray(values.T))
    return folder / "a.npy", kind == "npy"


@pytest.mark.parametrize("kind", ["npy", "npy_planes", "cs16", "archive"])
def test_other_formats_get_metadata_of_their_own(weights, scene, tmp_path, kind):
    """They name the file itself as dataset where SigMF can describe it, and stand alone where it cannot."""
    path, refers = write_as(kind, tmp_path / "in", scene)
    assert segment(weights, tmp_path / "out", path, "--sample_rate", RATE, "--center_freq", 4e9) == 0
    meta = tmp_path / "out" / "a.sigmf-meta"
    carriers = carriers_of(meta)
    assert len(carriers) >= 5
    assert all(abs(one.center_freq_hz - 4e9) < RATE / 2 for one in carriers)
    info = json.loads(meta.read_text())["global"]
    assert info.get("core:metadata_only", False) is not refers
    if refers:
        [written], [original] = open_recording(meta), open_recording(path, RATE)
        np.testing.assert_array_equal(written.read(0, 100), original.read(0, 100))
        assert written.num_samples == original.num_samples


def test_folders_are_labelled_with_their_subfolders_and_several_files_at_once(
    made, weights, scene, tmp_path, capsys
):
    (tmp_path / "in" / "day1").mkdir(parents=True)
    (tmp_path / "in" / "day2").mkdir()
    for day, number in (("day1", 0), ("day2", 0), ("day2", 1)):
        for suffix in (".sigmf-meta", ".sigmf-data"):
            shutil.copy(made / "iq" / f"{number:06d}{suffix}", tmp_path / "in" / day)
    assert segment(weights, tmp_path / "out", tmp_path / "in", "--truth") == 0
    assert {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.json")} == {
        "day1/000000.json",
        "day2/000000.json",
        "day2/000001.json",
    }
    assert "all 3 recordings" in capsys.readouterr().out


def test_a_long_recording_has_each_carrier_once(weights, scene, tmp_path):
    """Windows are joined over time, at a length that is no multiple of theirs."""
    data = shifted(scene, tmp_path, times=6)[: -4 * 33_333]
    meta = write_sigmf(tmp_path, data, "ci16_le", sample_rate=RATE)
    assert segment(weights, tmp_path / "out", meta, "--min_confidence", 0.6, "--min_duration_s", 0.01) == 0
    duration_s = len(data) / 4 / RATE
    whole = [one for one in found_in(tmp_path / "out", "a") if one["duration_s"] > 0.9 * duration_s]
    assert len(whole) == 5
    assert all(
        one["start_s"] + one["duration_s"] <= duration_s + 1e-12 for one in found_in(tmp_path / "out", "a")
    )


def test_a_recording_shorter_than_a_window_is_used_whole_and_said_to_be(weights, scene, tmp_path, capsys):
    data = shifted(scene, tmp_path)[: 4 * 90_001]
    meta = write_sigmf(tmp_path, data, "ci16_le", sample_rate=RATE)
    assert segment(weights, tmp_path / "out", meta) == 0
    captured = capsys.readouterr()
    assert "warning: a.sigmf-meta: shorter (2.92" in captured.err
    assert "windows that the model was trained on (5 ms): used whole" in captured.err
    assert max(one["duration_s"] for one in found_in(tmp_path / "out", "a")) == pytest.approx(90_001 / RATE)


def test_stretches_shorter_than_an_fft_are_skipped(weights, scene, tmp_path, capsys):
    captures = [
        {"core:sample_start": 0, "core:frequency": 4e9},
        {"core:sample_start": 153_000, "core:frequency": 5e9},
    ]
    meta = write_sigmf(
        tmp_path, shifted(scene, tmp_path)[: 4 * 153_500], "ci16_le", captures=captures, sample_rate=RATE
    )
    assert segment(weights, tmp_path / "out", meta) == 0
    assert "skipped: expected at least 512 samples, an FFT; found 500" in capsys.readouterr().err
    short = write_sigmf(tmp_path, bytes(400), "ci16_le", "short", sample_rate=RATE)
    line = fails(capsys, weights, tmp_path / "o", short)
    assert "short.sigmf-meta: expected at least 512 samples, an FFT; found 100" in line


def test_the_picture_shows_waterfall_boxes_and_class_map(weights, scene, tmp_path, monkeypatch):
    shown = []
    real = engine_label.labelled_figure
    monkeypatch.setattr(engine_label, "labelled_figure", lambda *args: shown.append(real(*args)) or shown[-1])
    assert segment(weights, tmp_path / "out", scene) == 0
    left, _, right = shown[0].axes
    assert left.get_ylabel() == right.get_ylabel() == "frequency (MHz)"
    assert left.get_xlabel() == "time (ms)"
    found = found_in(tmp_path / "out")
    for axis in (left, right):
        for outline in axis.collections[:2]:  # dark, and white on it
            boxes = [path.get_extents() for path in outline.get_paths()]
            assert [(*box.p0, box.width, box.height) for box in boxes] == [
                pytest.approx(
                    (
                        one["start_s"] * 1e3,
                        one["freq_lower_hz"] / 1e6,
                        one["duration_s"] * 1e3,
                        one["bandwidth_hz"] / 1e6,
                    )
                )
                for one in found
            ]
    assert [text.get_text() for text in left.texts] == [
        f"{one['label']} {one['confidence']:.2f}" for one in found
    ]
    assert (tmp_path / "out" / "000003.png").stat().st_size > 10_000


def test_the_picture_shows_the_truth_and_the_cells(weights, scene, tmp_path, monkeypatch):
    shown = []
    real = engine_label.labelled_figure
    monkeypatch.setattr(engine_label, "labelled_figure", lambda *args: shown.append(real(*args)) or shown[-1])
    hears(monkeypatch, [cell_of(0)])
    assert segment(weights, tmp_path / "out", scene, "--truth") == 0
    left = shown[0].axes[0]
    assert [len(outline.get_paths()) for outline in left.collections][2:] == [5, 5]
    assert left.collections[3].get_linestyle() != left.collections[1].get_linestyle()
    assert "LTE cell 7" in [text.get_text() for text in left.texts]


# Cells


def cell_of(offset_hz, start_s=1e-3, num_rb=6):
    return Cell("LTE", 7, 4e9 + offset_hz, 15e3, "FDD", start_s, num_rb, 30.0, 20.0, ())


def hears(monkeypatch, cells):
    """A search that hears these cells in every stretch."""
    spans = [(0.0, 0.04, 4e9 - RATE / 2, 4e9 + RATE / 2)]
    monkeypatch.setattr(engine_files, "heard", lambda recording, carriers: (list(cells), spans))


def test_a_cell_is_told_in_annotations_json_and_table(weights, scene, tmp_path, capsys, monkeypatch):
    """An NR cell where the model finds nothing, and an LTE cell."""
    ssb = Cell("NR", 500, 4e9 - 9e6, 15e3, "", 1e-3, None, 20.0, 5.0, (1e-3,))
    hears(monkeypatch, [cell_of(9e6), ssb])
    assert segment(weights, tmp_path / "out", scene, "--replace") == 0
    meta = json.loads((tmp_path / "out" / scene.name).read_text())
    sigmf.fromfile(tmp_path / "out" / scene.name, skip_checksum=True).validate()
    assert meta["global"]["core:extensions"] == [{"name": "radio_mae", "version": "1.0.0", "optional": True}]
    own = [
        {key: value for key, value in one.items() if key.startswith("radio_mae:")}
        for one in meta["annotations"]
        if one["radio_mae:confirmed"]
    ]
    assert own == [
        {
            "radio_mae:confidence": 0.999,
            "radio_mae:confirmed": True,
            "radio_mae:cell_id": 500,
            "radio_mae:ssb_center_freq": 4e9 - 9e6,
            "radio_mae:subcarrier_spacing": 15e3,
        },
        {
            "radio_mae:confidence": 0.999,
            "radio_mae:confirmed": True,
            "radio_mae:cell_id": 7,
            "radio_mae:duplex": "FDD",
            "radio_mae:subcarrier_spacing": 15e3,
            "radio_mae:resource_blocks": 6,
        },
    ]
    others = [one for one in meta["annotations"] if not one["radio_mae:confirmed"]]
    assert others
    assert all(one["core:comment"] == f"confidence={one['radio_mae:confidence']}" for one in others)
    found = found_in(tmp_path / "out")
    assert [one["cell"] for one in found if one["confirmed"]] == [
        {
            key.removeprefix("radio_mae:"): one[key]
            for key in one
            if not key.endswith(("confidence", "confirmed"))
        }
        for one in own
    ]
    shown = capsys.readouterr().out
    assert re.search(r"^LTE +7 FDD 6 RB +4009.000 +1.080 ", shown, re.MULTILINE)
    assert re.search(r"^NR +500 SSB 15 kHz +3\d+\.\d+ ", shown, re.MULTILINE)
    alone = tmp_path / "alone"
    assert segment(weights, alone, scene, "--no-confirm") == 0
    assert not any(one["confirmed"] for one in found_in(alone))


def test_only_confirmed_carriers_are_labels_to_train_on(made, weights, tmp_path, capsys, monkeypatch):
    """Half of the recordings have no cell: they get no files."""
    hears(monkeypatch, [cell_of(0)])
    real = engine_files.heard
    monkeypatch.setattr(
        engine_files, "heard", lambda one, found: real(one, found) if int(one.path.stem) % 2 else ([], [])
    )
    labelled = tmp_path / "labelled"
    assert segment(weights, labelled, made / "iq", "--copy") == 0
    assert len(list(labelled.iterdir())) == 24
    capsys.readouterr()
    assert segment(weights, labelled, made / "iq", "--only", "confirmed", "--replace") == 0
    shown = capsys.readouterr().out
    assert shown.count("no files: nothing was confirmed") == 3
    assert {path.name for path in labelled.iterdir()} == {
        f"00000{number}{suffix}"
        for number in (1, 3, 5)
        for suffix in (".sigmf-meta", ".sigmf-data", ".json", ".png")
    }
    for path in labelled.glob("*.sigmf-meta"):
        assert [(one.label, one.center_freq_hz) for one in carriers_of(path)] == [("LTE", 4e9)]
    assert re.search(r"left out: \d+ not confirmed by a cell, best 0\.\d\d", shown)
    training = ("--model", "vit_nano", "--n_fft", 512, "--window_ms", 1, "--input_size", ROWS, "--epochs", 1)
    training += ("--num_workers", 0, "--device", "cpu", "--output_dir", tmp_path / "trained")
    assert call(main_finetune, "--task", "segmentation", "--data_path", labelled, *training) == 0
    test = json.loads((tmp_path / "trained" / "results.json").read_text())["test"]
    assert test["classes"]["LTE"]["samples"] > 0


def test_what_is_left_out_is_said(weights, scene, tmp_path, capsys):
    assert segment(weights, tmp_path / "out", scene, "--min_confidence", 1) == 0
    shown = capsys.readouterr().out
    assert f"{scene.name}: 0 carriers" in shown
    said = re.search(r"left out: .*\b(\d+) below --min_confidence, best (0\.\d\d)", shown)
    left_out = json.loads((tmp_path / "out" / "000003.json").read_text())["left_out"]["min_confidence"]
    assert left_out["count"] == int(said[1]) >= 5
    assert f"{left_out['best_confidence']:.2f}" == said[2]


# Weights of other projects


def as_the_fork(weights, path, channels=1, **more):
    """The model as the radio fork saves it, with MAE's `save_model`, in a process of several; returns the
    file.
    """
    state = {
        name.replace("head.", "decoder_pred."): value
        for name, value in checkpoint.load(weights)["model"].items()
    }
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].repeat(1, channels, 1, 1) / channels
    torch.save(
        {
            "model": {f"module.{name}": value for name, value in state.items()} | more,
            "optimizer": {"state": {}},
            "epoch": 49,
            "scaler": {},
            "args": argparse.Namespace(lr=1e-3, output_dir=path.parent),
        },
        path,
    )
    return path


@pytest.mark.parametrize("channels", [1, 3])
def test_the_forks_segmentation_model(weights, scene, tmp_path, capsys, channels):
    """With the published front end; it finds what the same model finds that says so itself."""
    fork = as_the_fork(weights, tmp_path / "fork.pth", channels)
    assert segment(fork, tmp_path / "out", scene, "--classes", "Noise,NR,LTE") == 0
    [line] = [line for line in capsys.readouterr().err.splitlines() if "front end" in line]
    assert line == (
        f"warning: {fork}: the file has no front end; the published one is used (FFT of 1024, windows of 16 ms, "
        "images of 64 x 64, each with zero mean and unit variance); block norms have epsilon "
        "1e-06 (--norm_eps)"
    )
    about = json.loads((tmp_path / "out" / "000003.json").read_text())
    front_end = Spectrogram(1024, 0.016, (64, 64)).settings()
    assert (about["classes"], about["front_end"]) == (["Noise", "NR", "LTE"], front_end)

    torch.save(torch.load(weights) | {"front_end": front_end}, tmp_path / "ours.pth")
    assert segment(tmp_path / "ours.pth", tmp_path / "ours", scene) == 0
    assert len(found_in(tmp_path / "ours")) >= 3
    for one, other in zip(found_in(tmp_path / "out"), found_in(tmp_path / "ours"), strict=True):
        assert one.pop("label") == other.pop("label")
        assert one == pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), "--classes: expected 3 names, the background first, as "),
        (
            ("--classes", "Noise,NR"),
            "--classes: expected 3 different names, one for each class of the head; found Noise,NR",
        ),
        (("--classes", "Noise,NR,NR"), "--classes: expected 3 different names"),
        (
            ("--classes", "a,b,c", "--norm_eps", "0"),
            "--norm_eps: expected a number above 0 and below 1; found 0 (--help",
        ),
    ],
)
def test_class_names_that_do_not_fit(weights, scene, tmp_path, capsys, flags, expected):
    fork = as_the_fork(weights, tmp_path / "fork.pth")
    assert expected in fails(capsys, fork, tmp_path / "out", scene, *flags)


def test_class_names_that_contradict_the_file(weights, scene, tmp_path, capsys):
    line = fails(capsys, weights, tmp_path / "out", scene, "--classes", "Noise,LTE,NR")
    assert line == f"error: --classes: expected Noise,NR,LTE, the names in {weights}; found Noise,LTE,NR"
    assert segment(weights, tmp_path / "out", scene, "--classes", "Noise,NR,LTE") == 0


def test_the_epsilon_of_block_norms(weights, tmp_path):
    """The flag's, else the file's, else that of MAE."""
    fork, cpu = as_the_fork(weights, tmp_path / "fork.pth"), torch.device("cpu")
    state = torch.load(weights)
    torch.save(state | {"args": state["args"] | {"norm_eps": 1e-5}}, tmp_path / "ours.pth")
    for path, flag, expected in (
        (fork, None, 1e-6),
        (fork, 1e-5, 1e-5),
        (tmp_path / "ours.pth", None, 1e-5),
        (tmp_path / "ours.pth", 1e-3, 1e-3),
    ):
        model = engine_segment.open_segmenter(path, cpu, classes=["Noise", "NR", "LTE"], norm_eps=flag).model
        assert {block.norm1.eps for block in (*model.blocks, *model.decoder_blocks)} == {expected}
        assert model.norm.eps == model.decoder_norm.eps == 1e-6


def test_precision_is_picked_by_the_models_width(weights, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(engine_segment, "pick_amp", lambda *args, **more: asked.append(more) or "off")
    engine_segment.open_segmenter(weights, torch.device("cpu"))
    write_deeplab(tmp_path / "deeplab.safetensors")
    engine_segment.open_segmenter(tmp_path / "deeplab.safetensors", torch.device("cpu"))
    assert asked == [{"width": 64}, {}]


def write_deeplab(path):
    about = {"task": "segmentation", "model": "deeplabv3_mobilenet_v3_large"}
    model = models_deeplab.DeepLabV3(about["model"], 3, 1)
    write_weights(
        path,
        model.state_dict(),
        holds="segmentation",
        preset=about["model"],
        classes=["Noise", "NR", "LTE"],
        front_end=Spectrogram(512, DURATION_S, (ROWS, ROWS)).settings(),
        args=about,
    )


def test_deeplab(scene, tmp_path, capsys):
    write_deeplab(tmp_path / "deeplab.safetensors")
    assert segment(tmp_path / "deeplab.safetensors", tmp_path / "out", scene) == 0
    line = fails(capsys, tmp_path / "deeplab.safetensors", tmp_path / "o", scene, "--norm_eps", 1e-5)
    assert line == (
        "error: --norm_eps: expected a Vision Transformer, which has such norms; found "
        "deeplabv3_mobilenet_v3_large"
    )


def test_offline_fetches_nothing(scene, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RADIO_MAE_HOME", str(tmp_path / "home"))
    line = fails(capsys, "mae_vit_base", tmp_path / "out", scene, "--offline")
    assert line.startswith("error: mae_vit_base: expected it in the cache, being offline; found no")


# Live


# The command, with the small model of these tests.
COMMAND = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}]
import main_segment, models_mae, models_vit
from util.progress import peak_memory_bytes
models_mae.PRESETS["mae_vit_nano"] = models_vit.PRESETS["vit_nano"] = {NANO}
with main_segment.reported():
    main_segment.main(main_segment.get_args_parser().parse_args(sys.argv[1:]))
print("peak", peak_memory_bytes(main_segment.torch.device("cpu")), file=sys.stderr)
"""


def process(*flags, **kwargs):
    line = [sys.executable, "-c", COMMAND, *map(str, flags), "--device", "cpu"]
    return subprocess.run(line, capture_output=True, timeout=600, check=False, **kwargs)


def stream(weights, data, *more):
    return process("-", "--weights", weights, "--sample_rate", RATE, "--datatype", "ci16", *more, input=data)


def test_a_stream_is_labelled_a_line_a_window(weights, scene, tmp_path):
    """With --windows, as the file of the same samples is; the last window is shorter, and what is left is no
    whole sample.
    """
    window = round(DURATION_S * RATE)
    data = shifted(scene, tmp_path, times=3)[: 4 * (2 * window + 60_000)]
    done = stream(weights, data + b"abc", "--center_freq", 4e9, "--windows")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["utc"]) for line in lines)
    assert [(line["start_s"], line["duration_s"]) for line in lines] == [
        (0.0, window / RATE),
        (window / RATE, window / RATE),
        (2 * window / RATE, 60_000 / RATE),
    ]
    assert done.returncode == 2
    last = done.stderr.decode().splitlines()[-1]
    assert (
        last
        == "error: standard input: expected whole samples of 4 bytes (ci16_le); found 3 bytes after the last"
    )
    meta = write_sigmf(
        tmp_path,
        data[: 4 * window],
        "ci16_le",
        captures=[{"core:sample_start": 0, "core:frequency": 4e9}],
        sample_rate=RATE,
    )
    assert segment(weights, tmp_path / "out", meta, "--amp", "auto") == 0
    expected = [
        {key: value for key, value in one.items() if key != "stretch"}
        for one in found_in(tmp_path / "out", "a")
    ]
    assert len(expected) >= 5
    for one, other in zip(lines[0]["carriers"], expected, strict=True):
        assert one["label"] == other["label"]
        assert one["freq_lower_hz"] == pytest.approx(other["freq_lower_hz"], abs=ROW_HZ / 10)


def test_carriers_of_a_stream_open_and_close(weights, scene, tmp_path, capsys, monkeypatch):
    """A scene over and over; then each second of its windows is labelled."""
    window = round(DURATION_S * RATE)
    data = shifted(scene, tmp_path, times=4)[: 4 * 4 * window]
    live = ("-", "--sample_rate", RATE, "--datatype", "ci16", "--center_freq", 4e9)
    for every, last in (1, 4), (2, 3):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        capsys.readouterr()
        assert segment(weights, tmp_path / "out", *live, "--every", every) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        opened = {line["carrier"]: line for line in lines if line["event"] == "open"}
        closed = {line["carrier"]: line for line in lines if line["event"] == "close"}
        assert opened.keys() == closed.keys()
        through = [
            number
            for number, line in closed.items()
            if line["start_s"] == 0 and line["stream_s"] == pytest.approx(last * window / RATE)
        ]
        assert len(through) >= 5
        for number in through:
            assert opened[number]["stream_s"] == 0
            assert opened[number]["label"] == closed[number]["label"]


@pytest.mark.slow
def test_a_whole_stream_ends_well(weights, scene, tmp_path):
    done = stream(weights, shifted(scene, tmp_path)[: 4 * 200])  # less than an FFT: nothing to say
    assert (done.returncode, done.stdout) == (0, b"")
    assert b"real-time factor" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("end", ["reader", "signal"])
def test_a_stream_without_end_stops_when_it_is_enough(weights, end):
    """Nobody reads its lines any more, or Ctrl-C: no traceback, exit status 0."""
    line = [
        sys.executable,
        "-c",
        COMMAND,
        "-",
        "--weights",
        str(weights),
        "--sample_rate",
        str(RATE),
        "--datatype",
        "ci8",
        "--device",
        "cpu",
        "--windows",
    ]
    with (
        open("/dev/zero", "rb") as air,
        subprocess.Popen(
            line,
            stdin=air,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        ) as process_,
    ):
        assert json.loads(process_.stdout.readline())["start_s"] == 0
        if end == "reader":
            process_.stdout.close()
        else:
            process_.send_signal(signal.SIGINT)
            process_.stdout.read()
        said = process_.stderr.read().decode()
        assert process_.wait(60) == 0, said
    assert "Traceback" not in said
    assert "Exception ignored" not in said
    assert "real-time factor" in said


# Memory


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_four_gigabytes_in_constant_memory(weights, tmp_path):
    """A sparse file: its samples are zeros, but they are read and go through front end and network like any
    others.
    """
    meta = write_sigmf(tmp_path, b"", "cf64_le", sample_rate=RATE)
    with open(tmp_path / "a.sigmf-data", "wb") as file:
        file.truncate(4 * 2**30)
    done = process(meta, "--weights", weights, "--output", tmp_path / "out", "--overlap", 0, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stderr.split()[-1]) < 1.5e9
    assert "a.sigmf-meta: " in done.stdout


# Mistakes


def test_weights_without_a_segmentation_head_say_which_command_makes_one(made, scene, tmp_path, capsys):
    assert (
        call(
            main_pretrain,
            "--data_path",
            made / "iq",
            "--model",
            "mae_vit_nano",
            "--window_ms",
            5,
            "--n_fft",
            512,
            "--input_size",
            ROWS,
            "--epochs",
            1,
            "--warmup_epochs",
            0,
            "--num_workers",
            0,
            "--device",
            "cpu",
            "--output_dir",
            tmp_path / "pretrained",
        )
        == 0
    )
    line = fails(capsys, tmp_path / "pretrained" / checkpoint.LAST, tmp_path / "out", scene)
    assert (
        "expected weights with a segmentation head; found none (python main_finetune.py --task segmentation"
        in line
    )


class Evil:
    """What no weights may hold."""


def test_weights_that_cannot_be_used(weights, scene, tmp_path, capsys):
    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    assert "found other pickled objects" in fails(capsys, tmp_path / "evil.pth", tmp_path / "out", scene)
    (tmp_path / "cut.safetensors").write_bytes(bytes(100))
    for name, expected in (("cut.safetensors", "a damaged"), ("gone.pth", "no such file")):
        line = fails(capsys, tmp_path / name, tmp_path / "out", scene)
        assert f"{name}: expected a file of weights; found {expected}" in line
    state = checkpoint.load(weights)
    model = state["model"]
    shallow = {name: value for name, value in model.items() if not name.startswith("blocks.1.")}
    headless = {name: value for name, value in model.items() if not name.startswith("decoder_norm.")}
    for change, expected in (
        ({"front_end": {"kind": "csi", "image_size": [64, 64]}}, "trained on spectrograms of IQ"),
        ({"front_end": state["front_end"] | {"n_fft": 0}}, "expected valid front-end settings"),
        ({"model": shallow}, "expected the encoder of a preset"),
        ({"model": headless}, "found 2 tensors missing or of another shape, first: decoder_norm."),
        ({"model": model | {"gate": torch.ones(1)}}, "found 1 tensors that it has not, first: gate"),
        ({"classes": ["Noise", "NR"]}, "expected 3 different names, one for each class of the head"),
        ({"classes": []}, "--classes: expected 3 names, the background first, as "),
    ):
        torch.save(state | change, tmp_path / "changed.pth")
        assert expected in fails(capsys, tmp_path / "changed.pth", tmp_path / "out", scene)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--overlap", "1"), "--overlap: expected 0 to 0.95; found 1.0"),
        (("--min_confidence", "1.1"), "--min_confidence: expected 0 to 1"),
        (("--bridge_s", "-1"), "--bridge_s: expected 0"),
        (("--center_freq", "nan"), "--center_freq: expected a number of Hz"),
        (("-",), "-: expected a stream alone; found 1 recordings too"),
        (("--every", "2"), "--every: expected -, a stream; found recordings"),
        (("--windows",), "--windows: expected -, a stream; found recordings"),
        (
            ("--only", "confirmed", "--no-confirm"),
            "--only confirmed: expected a cell search; found --no-confirm",
        ),
    ],
)
def test_values_that_make_no_sense(weights, scene, tmp_path, capsys, flags, expected):
    assert expected in fails(capsys, weights, tmp_path / "out", scene, *flags)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--datatype", "ci8"), "--sample_rate: expected the stream's sample rate in Hz; found None"),
        (("--sample_rate", "1e6"), "--datatype: expected the stream's datatype"),
        (
            ("--sample_rate", "1e6", "--datatype", "ci7"),
            "standard input: core:datatype or --datatype: expected one of",
        ),
        (("--sample_rate", "1e6", "--datatype", "ci8", "--truth"), "--truth, --replace: expected recordings"),
        (("--sample_rate", "1e6", "--datatype", "ci8", "--copy"), "--copy: expected recordings; found -"),
        (
            ("--sample_rate", "1e6", "--datatype", "ci8", "--every", "0"),
            "--every: expected 1 or more windows",
        ),
    ],
)
def test_streams_that_do_not_say_what_they_are(weights, tmp_path, capsys, flags, expected):
    assert expected in fails(capsys, weights, tmp_path / "out", "-", *flags)


def test_a_recording_without_sample_rate(weights, scene, tmp_path, capsys):
    path, _ = write_as("cs16", tmp_path / "in", scene)
    assert "a.cs16: core:sample_rate or --sample_rate" in fails(capsys, weights, tmp_path / "out", path)


def test_nothing_is_written_over(made, weights, scene, tmp_path, capsys):
    before = contents(made / "iq")
    assert segment(weights, made / "iq", scene) == 2
    assert "expected another folder than that of" in capsys.readouterr().err
    assert contents(made / "iq") == before

    first, _ = write_as("cs16", tmp_path / "in", scene)
    shutil.copy(first, first.with_suffix(".cf32"))
    line = fails(capsys, weights, tmp_path / "out", first, first.with_suffix(".cf32"), "--sample_rate", RATE)
    assert "expected an output file of its own" in line

    (tmp_path / "out2").mkdir()
    (tmp_path / "out2" / "000003.sigmf-data").write_text("mine")
    assert segment(weights, tmp_path / "out2", scene) == 2
    assert "expected a free name for the data of" in capsys.readouterr().err
    assert (tmp_path / "out2" / "000003.sigmf-data").read_text() == "mine"


def test_an_output_that_cannot_be_written_is_said_before_anything_is_labelled(
    weights, scene, tmp_path, capsys
):
    (tmp_path / "out").write_text("a file")
    assert segment(weights, tmp_path / "out", scene) == 2
    captured = capsys.readouterr()
    assert "out: expected a folder that can be written; File exists" in captured.err
    assert "carriers" not in captured.out


def test_a_full_disk_leaves_no_half_file(weights, scene, tmp_path, capsys):
    with largest_file(1000):
        assert segment(weights, tmp_path / "out", scene) == 1
    assert "1 of 1 recordings could not be written" in capsys.readouterr().err
    assert all(path.is_symlink() for path in (tmp_path / "out").rglob("*"))


def test_a_compiler_that_does_not_work_is_said_to_be(weights, scene, tmp_path, capsys, monkeypatch):
    def backend(graph, inputs):
        raise RuntimeError("no C++ compiler")

    compiled = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda model, dynamic: compiled(model, dynamic=dynamic, backend=backend)
    )
    monkeypatch.setattr(engine_segment, "BATCH_WINDOWS_CPU", 1)
    line = fails(capsys, weights, tmp_path / "out", scene, "--compile", "on")
    assert line.startswith("error: --compile: expected a compiler that works (--compile off does without); ")
    assert "no C++ compiler" in line
    assert segment(weights, tmp_path / "out", scene) == 0


def test_truth_names_what_it_leaves_out(weights, scene, tmp_path, capsys):
    own = [
        {
            "core:sample_start": 0,
            "core:freq_lower_edge": 1.0,
            "core:freq_upper_edge": 2.0,
            "core:label": "radar",
        },
        {"core:sample_start": 0, "core:label": "NR"},
    ]
    meta = write_sigmf(tmp_path, shifted(scene, tmp_path), "ci16_le", annotations=own, sample_rate=RATE)
    assert segment(weights, tmp_path / "out", meta, "--truth") == 0
    assert "left out of the truth: radar (1), without frequency edges (1)" in capsys.readouterr().err


@pytest.mark.slow
def test_the_real_command(weights, tmp_path):
    """Without the small model of these tests: the manual, and a mistake in one line."""
    assert "--bridge_s" in command("main_segment.py", "--help").stdout
    done = command("main_segment.py", "nowhere.sigmf-meta", "--weights", "nothing.safetensors")
    assert done.returncode == 2
    assert done.stderr == "error: nothing.safetensors: expected a file of weights; found no such file\n"
