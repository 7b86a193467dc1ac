"""The front end `grid` through the commands: scenes, pretraining, fine-tuning, labels, features, sets, exports."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from matplotlib.figure import Figure
from support import NANO, call, command, finish, loaded, log_of, results

import engine_evaluate
import engine_label
import engine_reconstruct
import hubconf
import main_embed
import main_finetune
import main_pack
import main_pretrain
import main_segment
import main_synthesize
import models_mae
import models_vit
from data.spectrogram_set import SpectrogramSet, join_sets
from data.windows import RecordingWindows
from radio.front_end import from_settings
from radio.grid import OUTSIDE, Grid
from radio.recordings import find_recordings
from util import checkpoint
from util.pretrained import read_weights

# 16 rows are 2.88 MHz, or 480 kHz in narrow rows; 24 columns are 2.4 ms
GRID = ("--front_end", "grid", "--channels", "power,cp", "--input_size", 16, 24, "--column_us", 100)
BAND = ("--n_fft", 64, "--input_size", 16, "--window_ms", 2)
SCENES = ("--num_workers", 0, "--set", "sample_rates_hz=0.4e6,2.4e6,10e6", "duration_ms=1,6", "noise_only=0")
SCENES += ("inside=1", "num_distractors=0,1", "snr_db=20,30", "center_freq_hz=1e9", "part_time=0")
RUN = (
    "--epochs",
    1,
    "--warmup_epochs",
    0,
    "--batch_size",
    4,
    "--num_workers",
    0,
    "--device",
    "cpu",
    "--amp",
    "off",
)


def nano(patch):
    patch.setitem(models_mae.PRESETS, "mae_vit_nano", NANO)
    patch.setitem(models_vit.PRESETS, "vit_nano", NANO)
    for preset in ("mae_vit_nano", "vit_nano"):
        patch.setattr(hubconf, preset, hubconf._of_preset(_create(preset), preset), raising=False)


def _create(preset):
    return models_mae.create_model if preset.startswith("mae") else models_vit.create_encoder


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A small model, and pictures without anything in them; `made` draws those that are looked at."""
    nano(monkeypatch)
    drawn = {engine_label: ["labelled_figure"], engine_reconstruct: ["reconstruction_figure"]}
    drawn |= {engine_evaluate: ["confusion_figure", "prediction_sheet"], main_embed: ["scatter_figure"]}
    for module, name in ((module, name) for module, names in drawn.items() for name in names):
        monkeypatch.setattr(module, name, lambda *_: Figure(figsize=(1, 1)))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """sets/ and air/ of scenes, pretrain/ and finetune/ of runs on the sets, band/ of a run on other cells."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        nano(patch)
        patch.setattr(main_synthesize, "SHEET_SCENES", 2)
        flags = ("--output", folder / "sets", "--train", 12, "--val", 4, "--test", 4, *GRID, *SCENES)
        assert call(main_synthesize, *flags) == 0
        flags = ("--output", folder / "air", "--iq", "only", "--train", 9, "--val", 0, "--test", 0, *SCENES)
        assert call(main_synthesize, *flags, *GRID, "--seed", 1) == 0
        assert pretrain(folder / "sets", folder / "pretrain") == 0
        weights = ("--finetune", folder / "pretrain" / checkpoint.LAST, "--flip", "--time_shift")
        assert finetune(folder / "sets", folder / "finetune", *weights) == 0
        assert pretrain(folder / "air" / "iq", folder / "band", *BAND, "--val_fraction", 0.2) == 0
    return folder


def pretrain(data, output, *flags):
    flags = ("--data_path", data, "--output_dir", output, "--model", "mae_vit_nano", *RUN, *flags)
    return call(main_pretrain, *flags)


def finetune(data, output, *flags, task="segmentation"):
    flags = ("--task", task, "--data_path", data, "--output_dir", output, "--model", "vit_nano", *RUN, *flags)
    return call(main_finetune, *flags)


def test_scenes_of_several_rates_have_one_scale(made):
    made_set = SpectrogramSet(made / "sets" / "train")
    assert made_set.shape == (12, 4, 16, 24)
    front_end = from_settings(made_set.front_end_settings)
    assert isinstance(front_end, Grid)
    assert {line["sample_rate_hz"] for line in made_set.metadata} == {0.4e6, 2.4e6, 10e6}
    outside, masks = 0, made_set.masks.read(0, 12)
    for index, about in enumerate(made_set.metadata):
        _, decibels = made_set.load(index, None)
        inside = front_end.inside_of(about).numpy()
        assert np.array_equal(decibels[0] != OUTSIDE, inside)
        outside += not inside.all()
    assert outside
    assert masks.any()
    assert (made / "sets" / "contact_sheet.png").stat().st_size > 10_000


def test_runs_keep_the_front_end_and_their_losses_are_finite(made):
    for run in ("pretrain", "finetune"):
        state = loaded(made / run)
        assert state["front_end"]["kind"] == "grid"
        assert state["front_end"]["channels"] == ["power", "cp"]
        assert state["model"]["patch_embed.proj.weight"].shape[1] == 4
        assert all(np.isfinite(line["train_loss"]) for line in log_of(made / run))
    assert (made / "pretrain" / "reconstruction.png").stat().st_size > 10_000
    assert (made / "finetune" / "predictions.png").stat().st_size > 10_000
    figures = results(made / "finetune")["test"]
    test_set = SpectrogramSet(made / "sets" / "test")
    inside = sum(int((test_set.load(index, None)[1][0] != OUTSIDE).sum()) for index in range(4))
    assert figures["samples"] == inside


def test_a_run_on_recordings_is_resumed_to_the_same_end(made, tmp_path):
    flags = (*GRID, "--val_fraction", 0.2, "--epochs", 2, "--mask_kind", "time_frequency", "--norm_pix_loss")
    assert pretrain(made / "air" / "iq", tmp_path / "whole", *flags) == 0
    assert pretrain(made / "air" / "iq", tmp_path / "parts", *flags) == 0
    (tmp_path / "parts" / checkpoint.LAST).unlink()
    (tmp_path / "parts" / "checkpoint-1.pth").unlink()
    assert pretrain(made / "air" / "iq", tmp_path / "parts", *flags) == 0
    first, second = loaded(tmp_path / "whole"), loaded(tmp_path / "parts")
    assert first["epoch"] == second["epoch"] == 1
    assert all(torch.equal(value, second["model"][name]) for name, value in first["model"].items())


def label(data, output, *flags, weights):
    return call(
        main_segment,
        data,
        "--output",
        output,
        "--weights",
        weights,
        "--device",
        "cpu",
        "--amp",
        "off",
        *flags,
    )


def labels_of(folder):
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.rglob("*.json"))}


def test_recordings_of_several_rates_are_labelled(made, tmp_path, monkeypatch):
    """Short, narrow and wide ones, and real samples; annotations of a model that finds carriers in everything."""
    weights = made / "finetune" / checkpoint.LAST
    assert (
        label(made / "air" / "iq", tmp_path / "out", "--truth", "--min_confidence", 0, weights=weights) == 0
    )
    found = labels_of(tmp_path / "out")
    assert len(found) == 9
    recordings = {one.path.stem: one for one in find_recordings(made / "air" / "iq")}
    for name, about in found.items():
        assert about["front_end"]["kind"] == "grid"
        one = recordings[name]
        for carrier in about["carriers"]:
            low, high = (carrier[f"freq_{side}_hz"] - one.center_freq_hz for side in ("lower", "upper"))
            assert -one.sample_rate_hz / 2 <= low < high <= one.sample_rate_hz / 2
            assert (
                0 <= carrier["start_s"] <= carrier["start_s"] + carrier["duration_s"] <= one.duration_s + 1e-9
            )
        assert about["truth"]["cells"]["samples"] > 0
    iq = np.random.default_rng(0).integers(-9, 9, 30_000).astype("<i2")
    (tmp_path / "real.iq").write_bytes(iq.tobytes())
    flags = ("--sample_rate", 2e6, "--datatype", "ri16_le", "--min_confidence", 0)
    assert label(tmp_path / "real.iq", tmp_path / "real", *flags, weights=weights) == 0
    [about] = labels_of(tmp_path / "real").values()
    row_hz = 180e3  # of 11 rows, the middle one straddles DC
    assert min((one["freq_lower_hz"] for one in about["carriers"]), default=0.0) > -row_hz


def test_a_recording_of_a_single_row_is_refused(made, tmp_path, capsys):
    (tmp_path / "low.iq").write_bytes(bytes(20_000))
    flags = ("--sample_rate", 40e3, "--datatype", "ci8")
    assert (
        label(tmp_path / "low.iq", tmp_path / "out", *flags, weights=made / "finetune" / checkpoint.LAST) == 2
    )
    assert (
        "expected 45000 Hz or more, from which the model's front end works; found 40000 Hz"
        in capsys.readouterr().err
    )


def test_a_stream_of_real_samples_is_labelled_as_the_file(made, tmp_path, monkeypatch, capsys):
    weights, iq = (
        made / "finetune" / checkpoint.LAST,
        np.random.default_rng(0).integers(-9, 9, 12_000).astype("i1"),
    )
    (tmp_path / "a.iq").write_bytes(iq.tobytes())
    flags = ("--sample_rate", 5e6, "--datatype", "ri8", "--min_confidence", 0)
    assert label(tmp_path / "a.iq", tmp_path / "out", *flags, "--overlap", 0, weights=weights) == 0
    [about] = labels_of(tmp_path / "out").values()
    capsys.readouterr()
    with open(tmp_path / "a.iq", "rb") as file:
        monkeypatch.setattr(main_segment.sys, "stdin", type("Stdin", (), {"buffer": file}))
        assert label("-", tmp_path / "none", *flags, "--windows", weights=weights) == 0
    [line] = capsys.readouterr().out.splitlines()
    fields = ("label", "freq_lower_hz", "freq_upper_hz", "start_s")
    shown = [
        [{key: one[key] for key in fields} for one in found["carriers"]]
        for found in (about, json.loads(line))
    ]
    assert shown[0] == shown[1]


def test_fine_tuning_on_annotations_and_on_class_folders(made, tmp_path):
    weights = (
        "--finetune",
        made / "pretrain" / checkpoint.LAST,
        "--val_fraction",
        0.2,
        "--test_fraction",
        0.2,
    )
    flags = (*weights, "--class_weights", "median_frequency", "--seed", 1)
    assert finetune(made / "air" / "iq", tmp_path / "annotated", *flags) == 0
    assert loaded(tmp_path / "annotated")["front_end"] == loaded(made / "pretrain")["front_end"]
    assert results(tmp_path / "annotated")["test"]["samples"] > 0
    for number, path in enumerate(sorted((made / "air" / "iq").rglob("*.sigmf-*"))):
        folder = tmp_path / "folders" / ("even" if number // 2 % 2 else "odd")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / path.name).symlink_to(path)
    assert (
        finetune(tmp_path / "folders", tmp_path / "classes", *weights, "--mixup", 0.8, task="classification")
        == 0
    )
    assert set(results(tmp_path / "classes")["test"]["classes"]) == {"even", "odd"}
    flags = ("--recipe", "linprobe", "--epochs", 1)
    assert finetune(made / "sets", tmp_path / "probe", *weights[:2], *flags) == 0


def test_a_packed_set_is_its_recordings(made, tmp_path, monkeypatch):
    transformed = []
    planes = Grid.planes
    monkeypatch.setattr(
        Grid, "planes", lambda self, iq, *rest: transformed.append(len(iq)) or planes(self, iq, *rest)
    )
    assert call(main_pack, "--data_path", made / "air" / "iq", "--output", tmp_path / "set", *GRID) == 0
    packed = SpectrogramSet(tmp_path / "set")
    windows = {(line["path"], line["sample_start"]) for line in packed.metadata}
    assert len(transformed) == len(windows) < len(packed)  # a transform for the images of a window together
    front_end = from_settings(packed.front_end_settings)
    source = RecordingWindows.from_recordings(find_recordings(made / "air" / "iq"), front_end)
    for index in range(len(source)):
        kind, iq = source.load(index, None)
        image = kind(torch.from_numpy(iq)[None], front_end, None)[0].numpy()
        _, decibels = packed.load(index, None)
        decibels = decibels.astype(np.float32)
        decibels[0] += packed.metadata[index]["level_db"]
        np.testing.assert_allclose(decibels, image, atol=0.05)
    join_sets([made / "sets" / "val", made / "sets" / "val"], tmp_path / "joined")
    assert pretrain(tmp_path / "set", tmp_path / "on_set", "--val_fraction", 0.2) == 0
    assert loaded(tmp_path / "on_set")["num_samples"] < len(packed)
    flags = ("--val_fraction", 0.25, "--test_fraction", 0.25)
    assert finetune(tmp_path / "joined", tmp_path / "on_joined", *flags) == 0


def test_features_of_recordings_and_sets(made, tmp_path):
    weights = ("--weights", made / "pretrain" / checkpoint.LAST, "--device", "cpu", "--num_workers", 0)
    join_sets([made / "sets" / "val", made / "sets" / "val"], tmp_path / "joined")
    for data in (made / "air" / "iq", tmp_path / "joined"):
        output = tmp_path / f"{data.name}.npz"
        assert call(main_embed, data, "--output", output, *weights, "--batch_size", 3, "--patches") == 0
        with np.load(output) as found:
            assert np.isfinite(found["mean"]).all()
            assert np.isfinite(found["cls"]).all()
            assert len(found["mean"]) == (8 if data.name == "joined" else len(found["file"]))
            assert json.loads(str(found["front_end"]))["kind"] == "grid"
            assert np.isfinite(found["first_row"]).all()
            places = zip(found["file"], found["start_s"], found["first_row"], strict=True)
            assert data.name == "joined" or len(set(places)) == len(found["mean"])


def test_weights_of_other_cells_are_adapted_and_that_is_said(made, tmp_path, capsys):
    """From `band` of one channel to `grid` of four: channels repeated, positions resampled."""
    band = made / "band" / checkpoint.LAST
    assert pretrain(made / "sets", tmp_path / "pretrain", "--init", band) == 0
    out, err = capsys.readouterr()
    assert "patch_embed.proj.weight 1 -> 4 channels" in out
    assert "pos_embed 4 x 4 -> 4 x 6" in out
    assert "the weights were trained on windows of 2 ms" in err
    assert finetune(made / "sets", tmp_path / "finetune", "--finetune", band) == 0
    out, err = capsys.readouterr()
    assert "patch_embed.proj.weight 1 -> 4 channels" in out
    assert "the weights were trained on windows of 2 ms" in err
    flags = (*GRID, "--val_fraction", 0.2, "--test_fraction", 0.2)
    assert finetune(made / "air" / "iq", tmp_path / "on_air", "--finetune", band, *flags) == 0
    assert "the weights were trained on windows of 2 ms" in capsys.readouterr().err
    assert loaded(tmp_path / "on_air")["front_end"]["kind"] == "grid"
    # evaluation and labelling keep what the weights were trained with
    flags = ("--resume", tmp_path / "on_air" / checkpoint.LAST, "--eval", "--front_end", "band")
    assert finetune(made / "air" / "iq", tmp_path / "eval", *flags) == 2
    assert (
        "--front_end: expected grid, which the weights were trained with; found band"
        in capsys.readouterr().err
    )


@pytest.mark.slow
def test_exports_answer_as_the_model_does_on_padded_images(made, tmp_path):
    checkpoint_of = ("--eval", "--resume", made / "finetune" / checkpoint.LAST)
    for name in ("model.onnx", "model.safetensors", "encoder.safetensors"):
        output = ("--export", tmp_path / name)
        assert finetune(made / "sets", tmp_path / "eval", *checkpoint_of, *output) == 0
    weights = read_weights(tmp_path / "model.safetensors")
    assert weights.front_end["channels"] == ["power", "cp"]
    segmenter = hubconf.labeller(tmp_path / "model.safetensors", device="cpu", amp="off").segmenter
    assert segmenter.model.pads
    test_set, front_end = SpectrogramSet(made / "sets" / "test"), segmenter.front_end
    images = front_end.from_decibels(
        torch.from_numpy(np.stack([test_set.load(index, None)[1] for index in range(4)]))
    )
    assert (images == OUTSIDE).any()
    with torch.inference_mode():
        expected = segmenter.model(images)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for part in (images, images[:1], images[:, :, :, :].nan_to_num(neginf=0.0)):
        [logits] = session.run(None, {"spectrogram": part.numpy()})
        with torch.inference_mode():
            torch.testing.assert_close(torch.from_numpy(logits), segmenter.model(part), atol=1e-4, rtol=1e-4)
    assert expected.isfinite().all()


def test_the_python_interface_knows_about_cells_outside(made):
    weights = made / "pretrain" / checkpoint.LAST
    for name in ("vit_nano", "mae_vit_nano"):
        model = getattr(hubconf, name)(weights).eval()
        assert model.pads
        assert model.in_chans == 4
        assert model.img_size == (16, 24)
        iq = torch.randn(1, 5000, dtype=torch.complex64)
        image = model.front_end(iq, 2.4e6)
        assert (image == OUTSIDE).any()
        out = model(image)
        assert (out if name == "vit_nano" else out[0]).isfinite().all()
    labels = hubconf.labeller(made / "finetune" / checkpoint.LAST, device="cpu", amp="off", min_confidence=0)
    found = labels.label(iq[0].numpy(), sample_rate_hz=2.4e6)
    assert found.class_map.shape[0] == 13  # rows of 180 kHz
    assert found.extent == (0.0, 5000 / 2.4e6, -1.2e6, 1.2e6)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--n_fft", 64), "--n_fft: expected --front_end band with it; found grid"),
        (("--window_ms", 5), "--window_ms: expected --front_end band with it; found grid"),
        (("--channels", "foo"), "--channels, --input_size: expected channels power or power,cp"),
        (("--row_khz", 0), "--row_khz, --column_us, --channels, --input_size: expected image sides >= 1"),
        (("--row_khz", 180, 0), "expected image sides >= 1, rows and columns above 0"),
        (("--row_khz", 180, 30, 10), "--row_khz: expected one or two numbers; found 3"),
        (("--column_us", "nan"), "--column_us: expected at least 0; found nan"),
        (("--input_size", 18, 24), "expected multiples of patch_size=4: img_size=(18, 24)"),
        (
            ("--front_end", "band", "--row_khz", 90),
            "--row_khz: expected --front_end grid with it; found band",
        ),
        (
            ("--front_end", "band", "--channels", "power"),
            "--channels: expected --front_end grid with it; found band",
        ),
    ],
)
def test_wrong_flags(made, tmp_path, capsys, flags, says):
    grid = () if "band" in flags else GRID[:2]
    assert pretrain(made / "air" / "iq", tmp_path / "out", *grid, *flags, "--val_fraction", 0) == 2
    err = capsys.readouterr().err
    assert says in err
    assert len(err.splitlines()) == 1


def test_sets_and_weights_of_another_front_end_are_refused(made, tmp_path, capsys):
    def refused(says, run, *args):
        assert run(*args) == 2
        assert says in capsys.readouterr().err

    sets, band, grid = made / "sets", made / "band" / checkpoint.LAST, made / "pretrain" / checkpoint.LAST
    out = tmp_path / "out"
    refused("--front_end band; found grid", pretrain, sets, out, "--front_end", "band")
    refused(
        "with --row_khz 90.0; found 180.0", pretrain, sets, out, "--front_end", "grid", "--row_khz", 90, 30
    )
    refused("with --channels power; found power,cp", pretrain, sets, out, *GRID[:2], "--channels", "power")
    annotated = (made / "air" / "iq", out, "--val_fraction", 0.2, "--test_fraction", 0.2)
    refused(
        "--row_khz: expected 180.0, which the weights",
        finetune,
        *annotated,
        "--finetune",
        grid,
        "--row_khz",
        90,
    )
    refused(
        "--window_ms: expected --front_end band with it; found grid",
        pretrain,
        made / "air" / "iq",
        out,
        "--resume",
        band,
        *GRID,
    )
    np.save(tmp_path / "image.npy", np.zeros((32, 32), np.float32))
    refused("--front_end: expected IQ of a known sample rate", pretrain, tmp_path / "image.npy", out, *GRID)
    flags = ("--weights", grid, "--output", tmp_path / "f.npz", "--front_end", "band")
    assert call(main_embed, made / "air" / "iq", *flags) == 2
    assert "--front_end: expected grid, which the weights were trained with" in capsys.readouterr().err


@pytest.mark.slow
def test_training_does_not_depend_on_how_it_is_spread(made, tmp_path):
    """A step of several processes or batches is that of one large batch, whatever lies outside."""
    data = ("--data_path", made / "sets", "--num_workers", 0, "--device", "cpu", "--amp", "off", "--blr", 0.1)
    flags = (*data, "--epochs", 2, "--warmup_epochs", 1)
    weighted = ("--task", "segmentation", "--class_weights", "median_frequency", "--model", "vit_nano")
    for module, more in (("main_pretrain", ("--model", "mae_vit_nano")), ("main_finetune", weighted)):
        logs = []
        for count, batch, accumulate in ((1, 8, 1), (2, 4, 1), (1, 4, 2)):
            output = tmp_path / f"{module}-{count}-{batch}"
            spread = ("--output_dir", output, "--batch_size", batch, "--accum_iter", accumulate)
            finish(tmp_path, count, module, *flags, *more, *spread)
            logs.append(log_of(output))
        for others in logs[1:]:
            for ours, theirs in zip(logs[0], others, strict=True):
                for key in ("train_loss", "val_loss"):
                    assert theirs[key] == pytest.approx(ours[key], rel=1e-5)


@pytest.mark.slow
def test_the_real_commands(tmp_path):
    """The default cells and the tiny model, as processes: scenes, two trainings, labels."""
    tiny = ("--epochs", 1, "--warmup_epochs", 0, "--batch_size", 2, "--num_workers", 0, "--device", "cpu")
    grid = ("--front_end", "grid", "--channels", "power,cp")
    wide = ("--set", "sample_rates_hz=20e6,30.72e6", "duration_ms=12,25", "noise_only=0")
    done = []

    def run(script, *flags):
        done.append(command(script, *flags, cwd=tmp_path))
        assert done[-1].returncode == 0, done[-1].stderr

    small = ("--train", 4, "--val", 2, "--test", 2, "--num_workers", 0, "--iq")
    run("main_synthesize.py", "--output", "scenes", *small, *grid, *wide)
    run(
        "main_pretrain.py",
        "--data_path",
        "scenes",
        "--model",
        "mae_vit_tiny_patch16",
        "--output_dir",
        "mae",
        *tiny,
    )
    weights = ("--finetune", f"mae/{checkpoint.LAST}")
    run(
        "main_finetune.py",
        "--task",
        "segmentation",
        "--data_path",
        "scenes",
        "--output_dir",
        "seg",
        *weights,
        *tiny,
    )
    run(
        "main_segment.py",
        "scenes/iq/test",
        "--weights",
        f"seg/{checkpoint.LAST}",
        "--device",
        "cpu",
        "--truth",
    )
    assert "cells of 180 kHz" not in done[-1].stderr
    assert SpectrogramSet(tmp_path / "scenes" / "train").shape == (4, 4, 112, 560)
