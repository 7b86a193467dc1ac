"""main_synthesize.py: sets and recordings of scenes, whatever stops it."""

import errno
import json
import os
import signal
import subprocess
import sys
from unittest.mock import Mock

import numpy as np
import pytest
import sigmf
import torch
from PIL import Image
from support import ROOT, call, command, contents, largest_file, wait_for

import main_synthesize
from data.spectrogram_set import SpectrogramSet
from data.synthetic import SceneMaker, SyntheticScenes, scene_mask
from radio.recordings import find_recordings
from radio.rng import TEST, TRAINING, VALIDATION, Stream
from radio.scenes.config import WILD, with_settings
from radio.scenes.draw import draw
from radio.scenes.scene import render
from radio.spectrogram import Spectrogram

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more processes than cores

# Scenes of milliseconds, on few cells.
SETTINGS = ["sample_rates_hz=1.92e6", "duration_ms=2"]
SMALL = ("--n_fft", 128, "--input_size", 32, "--num_workers", 0, "--set", *SETTINGS)
COUNTS = {"train": 12, "val": 4, "test": 3}
KINDS = {"train": TRAINING, "val": VALIDATION, "test": TEST}


def flags(output, counts=COUNTS, *more):
    return [
        "--output",
        output,
        *(word for name in KINDS for word in (f"--{name}", counts.get(name, 0))),
        *SMALL,
        *more,
    ]


def synthesize(output, counts=COUNTS, *more):
    return call(main_synthesize, *flags(output, counts, *more))


def scene_of(kind, number, settings=(), seed=0):
    return draw(with_settings(WILD, [*SETTINGS, *settings]), Stream(seed, kind, number))


def error_line(capsys):
    """The one line that is not of a bar, the last on stderr."""
    _, last = capsys.readouterr().err.removesuffix("\n").rsplit("error: ", 1)
    assert "\n" not in last
    return f"error: {last}"


@pytest.fixture(autouse=True)
def small_sheets(monkeypatch):
    """A contact sheet takes longer than the scenes."""
    monkeypatch.setattr(main_synthesize, "SHEET_SCENES", 1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What the command writes in one go, recordings included; read it only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main_synthesize, "SHEET_SCENES", 1)
        assert synthesize(tmp_path_factory.mktemp("whole") / "out", COUNTS, "--iq") == 0
    return tmp_path_factory.getbasetemp() / "whole0" / "out"


# Sets


def test_sets_hold_their_scenes(whole):
    front_end = Spectrogram(128, 0.002, (32, 32))
    assert sorted(path.name for path in whole.iterdir()) == [
        "contact_sheet.png",
        "iq",
        "synthesis.json",
        "test",
        "train",
        "val",
    ]
    for name, count in COUNTS.items():
        made = SpectrogramSet(whole / name)
        assert made.shape == (count, 1, 32, 32)
        assert made.class_names == ["Noise", "NR", "LTE", "Other"]
        assert made.front_end_settings == front_end.settings()
        for index in range(count):
            scene = scene_of(KINDS[name], index)
            line = made.describe(index, None)
            assert line["scene"] == json.loads(json.dumps(scene.parameters()))
            assert line["scene"]["stream"] == {"seed": 0, "kind": KINDS[name], "index": index, "purpose": 0}
            assert (line["sample_rate_hz"], line["num_samples"]) == (1.92e6, 3840)
            assert line["center_freq_hz"] == scene.center_freq_hz
            assert np.array_equal(made.mask(index), scene_mask(scene, front_end, WILD.classes))
            decibels = front_end.decibels(render(scene)[None])[0].numpy()
            stored = made.load(index, None)[1].astype(np.float64)
            np.testing.assert_allclose(stored + line["level_db"], decibels, atol=0.03)


def test_masks_are_the_rectangles_of_their_metadata(whole):
    """Each cell by its centre, by hand: rows of 1/32 of 1.92 MHz about -7.5 kHz, columns between the first
    and last FFT. What is narrower or shorter than a cell has the nearest.
    """
    low_hz = (np.arange(32) + 0.5) * 60e3 - 0.96e6 - 7.5e3
    seen = set()
    for name in COUNTS:
        made = SpectrogramSet(whole / name)
        starts_s = (
            Spectrogram(128, 0.002, (32, 32)).frame_starts(3840).view(32, -1).double().mean(dim=1).numpy()
            / 1.92e6
        )
        times_s = starts_s + 64 / 1.92e6
        for index in range(len(made)):
            expected = np.zeros((32, 32), np.uint8)
            for carrier in made.metadata[index]["carriers"]:
                rows = (low_hz >= carrier["freq_lower_hz"]) & (low_hz < carrier["freq_upper_hz"])
                end_s = carrier["start_s"] + carrier["duration_s"]
                columns = (times_s >= carrier["start_s"]) & (times_s < end_s)
                if not rows.any():
                    middle_hz = (carrier["freq_lower_hz"] + carrier["freq_upper_hz"]) / 2
                    rows = abs(low_hz - middle_hz) < 30e3
                if not columns.any():
                    middle_s = (carrier["start_s"] + end_s) / 2
                    columns = abs(times_s - middle_s) < (times_s[1] - times_s[0]) / 2
                expected[np.ix_(rows, columns)] = WILD.classes.index(carrier["label"])
            assert np.array_equal(made.mask(index), expected)
            seen |= set(np.unique(expected))
    assert seen == {0, 1, 2, 3}


@pytest.mark.parametrize("workers", [1, 4])
def test_the_number_of_processes_changes_no_byte(whole, tmp_path, workers):
    assert synthesize(tmp_path / "out", COUNTS, "--iq", "--num_workers", workers) == 0
    assert contents(tmp_path / "out") == contents(whole)


def test_no_scene_is_in_two_sets_and_seeds_differ(whole, tmp_path):
    assert synthesize(tmp_path / "other", {"train": 3}, "--seed", 1) == 0
    sets = [SpectrogramSet(whole / name) for name in COUNTS] + [SpectrogramSet(tmp_path / "other" / "train")]
    pictures = [made.spectrograms[index].tobytes() for made in sets for index in range(len(made))]
    assert len(set(pictures)) == len(pictures) == 22


def test_a_set_is_an_epoch_of_scenes_made_on_the_fly(whole):
    """To float16: values in standard deviations, as the model gets them."""
    front_end = Spectrogram(128, 0.002, (32, 32))
    scenes = SyntheticScenes(SceneMaker(with_settings(WILD, SETTINGS), 0), 12, front_end)
    cached = SpectrogramSet(whole / "train", whole / "val")
    for source, made in zip(scenes.split(4 / 12, 0), cached.split(0.1, 0), strict=True):
        assert len(source) == len(made)
        for index in range(len(made)):
            ours, theirs = (
                front_end.from_decibels(torch.tensor(one.load(index, None)[1])[None])
                for one in (source, made)
            )
            torch.testing.assert_close(theirs, ours, atol=5e-3, rtol=0)


# Recordings


@pytest.mark.parametrize(
    ("bits", "datatype", "sample_bytes", "step"),
    [(0, "cf32_le", 8, 0), (8, "ci8", 2, 2**-7), (12, "ci16_le", 4, 2**-11), (16, "ci16_le", 4, 2**-15)],
)
def test_recordings_hold_the_samples_of_their_scenes(tmp_path, bits, datatype, sample_bytes, step):
    assert synthesize(tmp_path / "out", {"val": 3}, "--iq", "only", "--set", *SETTINGS, f"bits={bits}") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "contact_sheet.png",
        "iq",
        "synthesis.json",
    ]
    recordings = find_recordings(tmp_path / "out" / "iq" / "val")
    assert [recording.path.name for recording in recordings] == [
        f"{number:06}.sigmf-meta" for number in range(3)
    ]
    for number, recording in enumerate(recordings):
        scene = scene_of(VALIDATION, number, [f"bits={bits}"])
        iq = render(scene).numpy()
        assert (recording.sample_rate_hz, recording.num_samples) == (1.92e6, 3840)
        assert recording.center_freq_hz == scene.center_freq_hz
        assert np.array_equal(recording.read(0, 3840), iq)
        assert np.array_equal(sigmf.fromfile(recording.path).read_samples(), iq)
        assert recording.path.with_suffix(".sigmf-data").stat().st_size == 3840 * sample_bytes
        assert json.loads(recording.path.read_text())["global"]["core:datatype"] == datatype
        if step:
            codes = iq.view(np.float32) / step
            assert np.array_equal(codes, np.round(codes))


def test_annotations_are_the_carriers_at_rf(whole):
    found = 0
    for name, count in COUNTS.items():
        for number in range(count):
            path = whole / "iq" / name / f"{number:06}.sigmf-meta"
            recording = sigmf.fromfile(path)
            recording.validate()
            scene = scene_of(KINDS[name], number)
            expected = sorted(
                (
                    round(carrier.start_s * 1.92e6),
                    min(3840, round(carrier.end_s * 1.92e6)),
                    carrier.label,
                    carrier.freq_lower_hz + scene.center_freq_hz,
                    carrier.freq_upper_hz + scene.center_freq_hz,
                )
                for carrier in scene.carriers()
            )
            annotations = recording.get_annotations()
            written = sorted(
                (
                    start := one["core:sample_start"],
                    start + one["core:sample_count"],
                    one["core:label"],
                    one["core:freq_lower_edge"],
                    one["core:freq_upper_edge"],
                )
                for one in annotations
            )
            assert written == expected
            assert all(one["core:generator"] == "radio-mae" for one in annotations)
            low, high = scene.center_freq_hz - 0.96e6, scene.center_freq_hz + 0.96e6
            assert all(low <= one[3] < one[4] <= high for one in written)
            found += len(written)
    assert found > 10


def test_recordings_and_sets_are_added_to_each_other(whole, tmp_path, monkeypatch):
    """Whichever is made first, they end the same, and nothing is made anew."""
    for name, first, second in (
        ("a", (), ("--iq",)),
        ("b", ("--iq", "only"), ("--iq",)),
        ("c", ("--iq", "only"), ()),
    ):
        assert synthesize(tmp_path / name, COUNTS, *first) == 0
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / name).rglob("*.*")}
        assert synthesize(tmp_path / name, COUNTS, *second) == 0
        after = contents(tmp_path / name)
        assert after.keys() == contents(whole).keys()
        same = [
            key for key in after if key != "contact_sheet.png" or name == "a"
        ]  # others: of values before float16
        assert all(after[key] == contents(whole)[key] for key in same)
        assert all(
            path.stat().st_mtime_ns == when for path, when in before.items() if path.name != "synthesis.json"
        )
    monkeypatch.setattr(main_synthesize, "render", lambda scene: pytest.fail("made anew"))
    assert synthesize(tmp_path / "a", COUNTS, "--iq") == 0


def test_recordings_of_real_samples_hold_real_samples(tmp_path):
    more = ("--iq", "only", "--set", *SETTINGS, "real_valued=1", "padded=0", "noiseless=0")
    assert synthesize(tmp_path / "out", {"train": 3}, *more) == 0
    recordings = find_recordings([tmp_path / "out" / "iq"])
    assert len(recordings) == 3
    for number, recording in enumerate(recordings):
        assert recording.is_real
        expected = render(scene_of(TRAINING, number, more[3:]))
        assert np.array_equal(recording.read(0, 3840), expected.numpy())


# The contact sheet


@pytest.mark.parametrize("iq", [(), ("--iq", "only")])
def test_the_contact_sheet_shows_what_there_is(tmp_path, monkeypatch, iq):
    monkeypatch.setattr(main_synthesize, "SHEET_SCENES", 12)
    rows, sheet = [], main_synthesize.scene_sheet
    monkeypatch.setattr(
        main_synthesize, "scene_sheet", lambda shown, names: rows.extend(shown) or sheet(shown, names)
    )
    assert synthesize(tmp_path / "out", {"val": 1, "test": 2}, *iq) == 0
    path = tmp_path / "out" / "contact_sheet.png"
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert len(picture.convert("RGB").getcolors(2**24)) > 100
    front_end, [row] = Spectrogram(128, 0.002, (32, 32)), rows  # of the first split, no more than it has
    scene = scene_of(VALIDATION, 0)
    np.testing.assert_allclose(row["image"], front_end(render(scene)[None])[0, 0], atol=5e-3)
    assert np.array_equal(row["mask"], scene_mask(scene, front_end, WILD.classes))
    assert row["title"].startswith("val scene 0: 1.92 Msps, 2.0 ms")
    path.unlink()
    assert synthesize(tmp_path / "out", {"val": 1, "test": 2}, *iq) == 0
    assert path.exists()


# Runs that are stopped


@pytest.fixture
def hold(tmp_path):
    """A file; while it exists, no process of `killed` gets beyond the scene that it names."""
    path = tmp_path / "hold"
    path.touch()
    yield path
    path.unlink(missing_ok=True)


def killed(hold, output, counts, *more, at, lines=10, signal_number=signal.SIGKILL):
    """Start the command as a process, and stop it when its set has so many lines: in scene `at`, or before.

    Returns how it ended: (status, stderr).
    """
    code = f"""
import os, signal, sys, time
sys.path.insert(0, {str(ROOT)!r})
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what it starts in the background ignore it
import main_synthesize as command
from data import set_writer
from util.errors import reported
set_writer.COMMIT_S = -1.0
render = command.render
def held(scene):
    while scene.stream.index == {at} and os.path.exists({str(hold)!r}):
        time.sleep(0.01)
    return render(scene)
command.render = held
with reported():
    command.main(command.get_args_parser().parse_args({[str(flag) for flag in flags(output, counts, *more)]!r}))
"""
    errors = output.with_name("stderr.txt")  # a pipe would be waited for until its workers are gone too
    with open(errors, "w") as file:
        process = subprocess.Popen([sys.executable, "-c", code], stderr=file)
    written = output / ".train.partial" / "metadata.jsonl"
    wait_for(
        lambda: written.exists() and written.read_bytes().count(b"\n") >= lines,
        lambda: process.poll() is None,
    )
    process.send_signal(signal_number)
    return process.wait(), errors.read_text()


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_stopped(hold, tmp_path, monkeypatch):
    counts = {"train": 60, "val": 2}
    assert synthesize(tmp_path / "through", counts, "--iq") == 0
    out = tmp_path / "out"
    assert killed(hold, out, counts, "--iq", "--num_workers", 2, at=40)[0] == -signal.SIGKILL
    assert not (out / "train").exists()
    lines = (out / ".train.partial" / "metadata.jsonl").read_bytes().count(b"\n")
    assert 10 <= lines < 60
    expected = contents(tmp_path / "through")
    for path in (out / "iq" / "train").glob("*.sigmf-meta"):  # whole or absent
        for part in (path, path.with_suffix(".sigmf-data")):
            assert part.read_bytes() == expected[str(part.relative_to(out))]
    (out / "iq" / "train" / ".000059.sigmf-data.1.tmp").write_bytes(b"torn")
    (out / ".synthesis.json.1.tmp").write_bytes(b"torn")

    made, render_ = [], main_synthesize.render
    monkeypatch.setattr(
        main_synthesize, "render", lambda scene: made.append(scene.stream.index) or render_(scene)
    )
    assert synthesize(out, counts, "--iq") == 0
    assert made == [*range(lines, 60), 0, 1]
    assert contents(out) == expected


def test_a_killed_run_of_recordings_goes_on(tmp_path, monkeypatch):
    """A data file without its metadata, which a kill may leave, is written anew."""
    assert synthesize(tmp_path / "out", {"train": 4}, "--iq", "only") == 0
    whole, folder = contents(tmp_path / "out"), tmp_path / "out" / "iq" / "train"
    (folder / "000001.sigmf-meta").unlink()
    (folder / "000001.sigmf-data").write_bytes(b"torn")
    (folder / "000003.sigmf-data").unlink()
    (folder / "000003.sigmf-meta").unlink()
    made, render_ = [], main_synthesize.render
    monkeypatch.setattr(
        main_synthesize, "render", lambda scene: made.append(scene.stream.index) or render_(scene)
    )
    assert synthesize(tmp_path / "out", {"train": 4}, "--iq", "only") == 0
    assert made == [1, 3]
    assert contents(tmp_path / "out") == whole


@pytest.mark.parametrize(
    "workers", [0, pytest.param(1, marks=pytest.mark.slow)]
)  # torch gives a worker 5 s to end
def test_control_c_is_one_line_and_loses_nothing(hold, tmp_path, workers):
    more = ("--num_workers", workers)
    status, error = killed(hold, tmp_path / "out", {"train": 20}, *more, at=12, signal_number=signal.SIGINT)
    assert status == 75
    line = f"stopped: --output {tmp_path / 'out'}: whole scenes are kept; the same command goes on\n"
    assert error.endswith(line)
    assert "Traceback" not in error
    assert (tmp_path / "out" / ".train.partial" / "metadata.jsonl").read_bytes().count(b"\n") >= 10


def test_a_worker_that_dies_is_one_line_and_loses_nothing(tmp_path, monkeypatch, capsys):
    def die(scene):
        if scene.stream.index == 8:
            os.kill(os.getpid(), signal.SIGKILL)
        return render(scene)

    monkeypatch.setattr(main_synthesize, "render", die)
    assert synthesize(tmp_path / "out", COUNTS, "--num_workers", 1) == 2
    assert error_line(capsys).startswith(
        "error: --num_workers 1: expected memory for as many scenes at once; found "
    )
    monkeypatch.undo()
    assert (tmp_path / "out" / ".train.partial").exists()
    assert synthesize(tmp_path / "out") == 0
    assert len(SpectrogramSet(tmp_path / "out" / "train")) == 12


def test_two_runs_in_one_folder_do_not_meet(tmp_path, monkeypatch, capsys):
    out, counts, second = tmp_path / "out", {"train": 10}, []

    def meet(scene):
        if scene.stream.index == 3:
            second.append((synthesize(out, counts), error_line(capsys)))
        return render(scene)

    monkeypatch.setattr(main_synthesize, "render", meet)
    assert synthesize(out, counts) == 0
    [(status, error)] = second
    assert status == 2
    assert error.startswith(f"error: {out / 'train'}: expected no other writer; a process is writing ")
    assert len(SpectrogramSet(out / "train")) == 10


@pytest.mark.slow
def test_workers_that_outlive_a_killed_run_do_not_hold_up_the_next(hold, tmp_path):
    """This one is in a scene when the next run begins."""
    assert (
        killed(hold, tmp_path / "out", {"train": 10}, "--num_workers", 1, at=4, lines=2)[0] == -signal.SIGKILL
    )
    assert synthesize(tmp_path / "out", {"train": 10}) == 0
    assert len(SpectrogramSet(tmp_path / "out" / "train")) == 10


# A disk that fills up


def test_a_full_disk_leaves_what_is_finished_and_a_second_run_goes_on(tmp_path, capsys):
    counts, out = {"train": 4, "val": 50}, tmp_path / "out"
    with largest_file(50_000):
        assert synthesize(out, counts) == 2
    error = error_line(capsys)
    assert error.startswith(f"error: {out / 'val'}: expected a folder that can be written; ")
    assert "File too large" in error
    assert sorted(path.name for path in out.iterdir()) == ["synthesis.json", "train"]
    finished = contents(out / "train")
    assert len(SpectrogramSet(out / "train")) == 4
    assert synthesize(out, counts) == 0
    assert contents(out / "train") == finished
    assert synthesize(tmp_path / "through", counts) == 0
    assert contents(out) == contents(tmp_path / "through")


def test_a_disk_that_fills_up_in_the_middle_of_a_set_keeps_what_is_there(tmp_path, capsys):
    """The lines of metadata grow while the arrays, which have their room, are filled."""
    out = tmp_path / "out"
    with largest_file(65_000):
        assert synthesize(out, {"train": 30}) == 2
    assert "File too large" in error_line(capsys)
    assert synthesize(out, {"train": 30}) == 0
    assert synthesize(tmp_path / "through", {"train": 30}) == 0
    assert contents(out) == contents(tmp_path / "through")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_disk_too_small_for_a_recording(tmp_path, capsys, workers):
    """3840 complex floats are 30,720 bytes; the first scene fails, and what was made of it is gone."""
    out = tmp_path / "out"
    with largest_file(30_000):
        assert (
            synthesize(out, {"train": 3}, "--iq", "--num_workers", workers, "--set", *SETTINGS, "bits=0") == 2
        )
    error = error_line(capsys)
    assert error.startswith(
        f"error: {out / 'iq' / 'train' / '000000.sigmf-data'}: expected room for 0.0307 MB; "
    )
    assert "File too large" in error
    assert [path.name for path in out.rglob("*") if path.is_file()] == ["synthesis.json"]
    assert synthesize(out, {"train": 2}) == 0  # nothing was made that other flags would contradict


def test_a_disk_without_room_for_the_metadata_of_a_recording(tmp_path, monkeypatch, capsys):
    no_room = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(sigmf.SigMFFile, "dumps", Mock(side_effect=no_room))
    assert synthesize(tmp_path / "out", {"train": 3}, "--iq", "only") == 2
    assert "000000.sigmf-data: expected room for 0.0" in error_line(capsys)
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["synthesis.json"]


def test_a_disk_too_small_for_the_contact_sheet(tmp_path, capsys):
    with largest_file(20_000):
        assert synthesize(tmp_path / "out", {"train": 2}) == 2
    assert error_line(capsys).startswith(
        f"error: --output {tmp_path / 'out'}: expected a folder that can be written; "
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["synthesis.json", "train"]
    assert synthesize(tmp_path / "out", {"train": 2}) == 0
    assert (tmp_path / "out" / "contact_sheet.png").exists()


# Mistakes


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (
            ("--set", "lte_bandwidths_mhz=7"),
            "--set lte_bandwidths_mhz: expected some of 1.4,3,5,10,15,20; found 7",
        ),
        (("--set", "nr_bandwidths_mhz=45"), "--set nr_bandwidths_mhz: expected some of"),
        (
            ("--set", *SETTINGS, "lte_bandwidths_mhz=20", "technologies=LTE", "inside=0", "cut=0"),
            "--set lte_bandwidths_mhz: expected a carrier that fits a band of 1.92 MHz, or inside or cut above 0; found 20",
        ),
        (("--set", "snr_db=20,0"), "--set snr_db: expected a range, the lower number first; found 20,0"),
        (("--set", "snr_db="), "--set snr_db: expected a range"),
        (("--set", "snr=1"), "--set snr=1: expected name=value with a field of SceneConfig"),
        (("--train", -1), "--train: expected at least 0; found -1"),
        (
            ("--train", 0, "--val", 0, "--test", 0),
            "--train, --val, --test: expected a scene or more; found 0",
        ),
        (("--seed", -1), "--seed: expected at least 0; found -1"),
        (("--num_workers", -1), "--num_workers: expected at least 0; found -1"),
        (("--n_fft", 4000), "--n_fft: expected at most 3840, the shortest scene; found 4000"),
        (("--input_size", 0), "--input_size: expected one or two positive numbers"),
        (("--window_ms", 0), "duration_ms: expected numbers from 0.05"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(tmp_path, capsys, wrong, words):
    line = flags(tmp_path / "out")
    if "--window_ms" in wrong:
        line.remove("duration_ms=2")
    assert call(main_synthesize, *line, *wrong) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert words in error
    assert not (tmp_path / "out").exists()


def test_an_output_that_holds_something_else(tmp_path, capsys):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = contents(tmp_path)
    for name, words in (
        ("thesis", "expected a new folder, or one of this command; found something else there"),
        ("file", "expected a folder that can be written; "),
        ("file/out", "expected a folder that can"),
    ):
        assert synthesize(tmp_path / name) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: --output {tmp_path / name}: {words}")
        assert error.count("\n") == 1
    assert contents(tmp_path) == before
    (tmp_path / "empty").mkdir()
    assert synthesize(tmp_path / "empty", {"train": 1}) == 0


def test_other_flags_are_named(tmp_path, capsys):
    out = tmp_path / "out"
    assert synthesize(out, {"train": 2}) == 0
    before = contents(out)
    for more, words in (
        (("--seed", 1), "(seed was 0, is 1)"),
        (("--train", 3, "--val", 1), "(train was 2, is 3; val was 0, is 1)"),
        (("--input_size", 16), "(front_end.image_size was [32, 32], is [16, 16])"),
        (("--set", *SETTINGS, "snr_db=0,20"), "(scenes.snr_db was [-5.0, 40.0], is [0, 20])"),
        (
            ("--set", "duration_ms=2", "--preset", "classic"),
            '(preset was "wild", is "classic"; scenes.classes was ',
        ),
    ):
        capsys.readouterr()
        assert synthesize(out, {"train": 2}, *more) == 2
        error = capsys.readouterr().err
        assert error.startswith(
            f"error: --output {out}: expected to go on with the scenes there; found that they are made "
        )
        assert words in error
        assert error.count("\n") == 1
        assert len(error) < 600
    (out / "synthesis.json").write_text("{")
    assert synthesize(out, {"train": 2}) == 2
    assert error_line(capsys).startswith(
        f"error: {out / 'synthesis.json'}: expected what the run in this folder makes"
    )
    assert contents(out) | {"synthesis.json": b""} == before | {"synthesis.json": b""}


def test_scenes_of_one_length_have_a_front_end_of_it(tmp_path):
    for name, more, expected_s in (
        ("set", (), 0.002),
        ("window", ("--set", SETTINGS[0], "--window_ms", 3), 0.003),
        ("several", ("--set", SETTINGS[0], "duration_ms=1,2,4"), 0.016),
    ):
        assert synthesize(tmp_path / name, {"train": 1}, *more) == 0
        made = SpectrogramSet(tmp_path / name / "train")
        assert made.front_end_settings["duration_s"] == expected_s
        if name == "window":
            assert made.metadata[0]["num_samples"] == 5760


def test_the_script_itself(tmp_path):
    done = command("main_synthesize.py", *flags("out", {"train": 2, "test": 1}), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "out: 2 train, 1 test scenes; see out/contact_sheet.png\n"
    assert "\r" not in done.stderr  # no bar in a log
    assert "Warning" not in done.stderr


@pytest.mark.slow
def test_sets_and_training_on_them_do_without_sigmf():
    hidden = "import sys; sys.modules['sigmf'] = None; import main_synthesize, main_pretrain, main_finetune"
    done = subprocess.run(
        [sys.executable, "-c", hidden], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
