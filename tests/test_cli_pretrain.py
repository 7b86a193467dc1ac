"""main_pretrain.py as a user meets it: what a run leaves behind, exact resuming, and every mistake in one
line.
"""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from support import (
    CAPTURES,
    ROOT,
    assert_same_run,
    call,
    command,
    loaded,
    needs_captures,
    wait_for,
    write_ci16,
    write_sigmf,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import engine_reconstruct
import main_pack
import main_pretrain
import models_mae
from util import checkpoint, flops
from util.pretrained import read_weights
from util.saver import Saver

# Four patches, ten windows: a step takes milliseconds. Batches of 3, two to a step: 3 + 3 and 3 + 1 samples.
SMALL = (
    "--model",
    "mae_vit_tiny_patch16",
    "--input_size",
    32,
    "--n_fft",
    64,
    "--window_ms",
    10,
    "--batch_size",
    3,
    "--accum_iter",
    2,
    "--epochs",
    2,
    "--warmup_epochs",
    1,
    "--blr",
    0.1,
    "--val_fraction",
    0,
    "--num_workers",
    0,
    "--device",
    "cpu",
    "--amp",
    "off",
)
TINY = models_mae.PRESETS["mae_vit_tiny_patch16"]


@pytest.fixture(autouse=True)
def quick(monkeypatch, request):
    """Few weights under the preset's name, and pictures without anything in them where none looks at them.

    To draw, to have that many weights reach the disk, or to measure a matrix product takes longer than these
    runs train.
    """
    small = {"embed_dim": 48, "depth": 2, "decoder_embed_dim": 32, "decoder_depth": 1}
    monkeypatch.setitem(models_mae.PRESETS, "mae_vit_tiny_patch16", TINY | small)
    monkeypatch.setitem(flops.SIDE, "cpu", 64)
    if request.function not in (test_a_run_leaves_checkpoints_a_log_and_pictures, test_variants_train):
        monkeypatch.setattr(engine_reconstruct, "reconstruction_figure", lambda *_: Figure(figsize=(1, 1)))


@pytest.fixture
def air(tmp_path):
    """Two recordings of five windows each."""
    for number in range(2):
        write_ci16(tmp_path / "air", f"r{number}", 0.054, seed=number)
    return tmp_path / "air"


def train(data, output, *flags):
    return call(main_pretrain, "--data_path", data, "--output_dir", output, *SMALL, *flags)


def moved(state):
    torch.manual_seed(0)
    return bool(state["model"]["blocks.0.attn.qkv.bias"].any())


# What a run leaves behind


def test_a_run_leaves_checkpoints_a_log_and_pictures(air, tmp_path, capsys):
    assert train(air, tmp_path / "out", "--val_fraction", 0.5, "--log_dir", tmp_path / "events") == 0
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "checkpoint-0.pth",
        "checkpoint-1.pth",
        "checkpoint-last.pth",
        "log.txt",
        "reconstruction.png",
    ]
    lines = [json.loads(line) for line in (out / "log.txt").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1]
    assert [line["step"] for line in lines] == [1, 2]
    assert {
        "train_loss",
        "val_loss",
        "val_mean_loss",
        "lr",
        "images_per_s",
        "data_wait",
        "memory_bytes",
    } <= set(lines[0])
    assert lines[0]["val_mean_loss"] == lines[1]["val_mean_loss"]  # one fixed mask

    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert {"train/loss", "train/lr", "train/grad_norm", "val/loss", "val/mean_loss"} <= set(
        events.Tags()["scalars"]
    )
    assert events.Tags()["images"] == ["reconstruction"]
    assert [round(entry.value, 4) for entry in events.Scalars("val/loss")] == [
        round(line["val_loss"], 4) for line in lines
    ]

    with Image.open(out / "reconstruction.png") as picture:
        assert picture.size[0] > 800
    printed = capsys.readouterr().out
    for words in (
        "images/s",
        "data wait",
        "memory",
        "eta",
        "grad",
        "lr",
        "held out: loss",
        "predicting the mean",
    ):
        assert words in printed

    state = loaded(out)
    assert state["front_end"] == {
        "n_fft": 64,
        "duration_s": 0.01,
        "image_size": [32, 32],
        "normalize": "per_spectrogram",
    }
    assert state["args"]["model"] == "mae_vit_tiny_patch16"
    assert (state["epoch"], state["step"]) == (1, 2)
    assert moved(state)


def test_learning_rate_follows_batches_and_groups(air, tmp_path):
    """lr = blr * batch * accum / 256; the last step's is that of the schedule at its first batch."""
    assert train(air, tmp_path / "out") == 0
    state = loaded(tmp_path / "out")
    assert state["args"]["lr"] == pytest.approx(0.1 * 6 / 256)
    last = json.loads((tmp_path / "out" / "log.txt").read_text().splitlines()[-1])
    assert last["lr"] == pytest.approx(state["args"]["lr"] * 0.5 * (1 + np.cos(np.pi * 0.5)))
    groups = state["optimizer"]["param_groups"]
    assert {group["weight_decay"]: len(group["params"]) for group in groups}.keys() == {0.0, 0.05}
    assert groups[0]["betas"] == (0.9, 0.95)


def test_accumulated_batches_are_one_large_batch(air, tmp_path):
    """Two steps an epoch of 6 and 4 samples, however they are cut, the uneven last group included."""
    runs = {"6x1": (6, 1), "3x2": (3, 2), "2x3": (2, 3), "1x6": (1, 6)}
    for name, (batch, accumulate) in runs.items():
        flags = (
            "--batch_size",
            batch,
            "--accum_iter",
            accumulate,
            "--epochs",
            1,
            "--amp",
            "off",
            "--warmup_epochs",
            0,
        )
        assert train(air, tmp_path / name, *flags) == 0
    states = {name: loaded(tmp_path / name) for name in runs}
    assert {state["step"] for state in states.values()} == {2}
    for name, state in states.items():
        torch.testing.assert_close(
            state["optimizer"]["state"], states["6x1"]["optimizer"]["state"], atol=1e-5, rtol=1e-3
        )
        losses = [json.loads((tmp_path / n / "log.txt").read_text())["train_loss"] for n in (name, "6x1")]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_less_data_than_a_batch_trains(air, tmp_path):
    assert train(air, tmp_path / "out", "--batch_size", 64) == 0
    assert loaded(tmp_path / "out")["step"] == 2


def test_seed_decides_the_run_and_nothing_else_does(air, tmp_path):
    for name, flags in {"a": (), "b": ("--num_workers", 2), "c": ("--seed", 1)}.items():
        torch.rand(len(name))  # what happened before in the process does not matter
        assert train(air, tmp_path / name, "--epochs", 1, *flags) == 0
    assert_same_run(loaded(tmp_path / "a"), loaded(tmp_path / "b"))
    with pytest.raises(AssertionError):
        assert_same_run(loaded(tmp_path / "a"), loaded(tmp_path / "c"))


@pytest.mark.parametrize(
    "flags",
    [
        ("--norm_pix_loss",),
        ("--mask_kind", "time", "--mask_ratio", 0.5),
        ("--mask_ratio", 0),
        ("--clip_grad", 0.01),
        ("--input_size", 32, 64),
        ("--amp", "bf16"),
    ],
)
def test_variants_train(air, tmp_path, flags):
    assert train(air, tmp_path / "out", "--epochs", 1, *flags) == 0
    assert moved(loaded(tmp_path / "out"))


def test_clipping_limits_the_step(air, tmp_path, capsys):
    assert train(air, tmp_path / "free", "--epochs", 1) == 0
    assert train(air, tmp_path / "clipped", "--epochs", 1, "--clip_grad", 1e-3) == 0
    free, clipped = (loaded(tmp_path / name)["optimizer"]["state"] for name in ("free", "clipped"))
    norms = [
        sum(float(entry["exp_avg"].square().sum()) for entry in state.values()) ** 0.5
        for state in (free, clipped)
    ]
    assert norms[1] < 1e-3 < norms[0]


def test_a_packed_set_gives_the_losses_of_its_recordings(air, tmp_path):
    assert (
        call(
            main_pack,
            "--data_path",
            air,
            "--output",
            tmp_path / "set",
            "--n_fft",
            64,
            "--window_ms",
            10,
            "--input_size",
            32,
            "--device",
            "cpu",
        )
        == 0
    )
    flags = ("--epochs", 1, "--val_fraction", 0.5, "--lr", 0)
    assert train(air, tmp_path / "a", *flags) == 0
    assert train(tmp_path / "set", tmp_path / "b", *flags) == 0
    ours, packed = (json.loads((tmp_path / name / "log.txt").read_text()) for name in "ab")
    assert packed["val_samples"] == ours["val_samples"] == 5
    assert packed["val_loss"] == pytest.approx(ours["val_loss"], rel=1e-3)
    assert packed["val_mean_loss"] == pytest.approx(ours["val_mean_loss"], rel=1e-3)
    assert loaded(tmp_path / "a")["front_end"] == loaded(tmp_path / "b")["front_end"]


def test_images_train(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(4):
        power = np.random.default_rng(number).exponential(1e-6, (60, 70)).astype(np.float32)
        Image.fromarray(power).save(tmp_path / "images" / f"{number}.tif")
    flags = ("--val_fraction", 0.25, "--epochs", 1)
    assert train(tmp_path / "images", tmp_path / "out", *flags) == 0
    assert loaded(tmp_path / "out")["front_end"] == {"kind": "images", "image_size": [32, 32]}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("amp", ["auto", "fp16", "off"])
def test_a_gpu_trains_and_resumes(air, tmp_path, amp):
    flags = ("--device", "cuda", "--amp", amp, "--num_workers", 2, "--val_fraction", 0.5)
    assert train(air, tmp_path / "out", *flags) == 0
    assert moved(loaded(tmp_path / "out"))
    resumed = ("--epochs", 3, "--resume", tmp_path / "out" / checkpoint.LAST)
    assert train(air, tmp_path / "out", *flags, *resumed) == 0
    assert loaded(tmp_path / "out")["epoch"] == 2


# Export


def test_a_run_exports_its_weights_and_a_finished_one_without_training(air, tmp_path, capsys):
    flags = ("--norm_pix_loss", "--licence", "CC0-1.0")
    assert train(air, tmp_path / "out", *flags, "--export", tmp_path / "new" / "mae.safetensors") == 0
    state, found = loaded(tmp_path / "out"), read_weights(tmp_path / "new" / "mae.safetensors")
    assert found.state_dict.keys() == state["model"].keys()
    assert all(torch.equal(value, found.state_dict[name]) for name, value in state["model"].items())
    assert (found.front_end, found.classes) == (state["front_end"], [])
    assert (found.holds, found.preset, found.data, found.licence) == (
        "mae",
        "mae_vit_tiny_patch16",
        "air",
        "CC0-1.0",
    )
    assert found.args == {
        "model": "mae_vit_tiny_patch16",
        "in_chans": 1,
        "norm_pix_loss": True,
        "mask_kind": "random",
        "mask_ratio": 0.75,
        "norm_eps": 1e-6,
    }
    assert found.command.startswith("python main_pretrain.py --data_path air --window_ms 10.0 --n_fft 64 "), (
        found.command
    )
    assert "--norm_pix_loss" in found.command
    assert str(tmp_path).encode() not in (tmp_path / "new" / "mae.safetensors").read_bytes()

    files = {path: path.read_bytes() for path in (tmp_path / "out").glob("*.pth")}
    capsys.readouterr()
    for name in ("again.safetensors", "encoder.safetensors"):
        assert train(air, tmp_path / "out", *flags, "--export", tmp_path / name) == 0
    printed = capsys.readouterr().out
    assert "images/s" not in printed
    assert "encoder.safetensors: encoder, " in printed
    assert (tmp_path / "again.safetensors").read_bytes() == (
        tmp_path / "new" / "mae.safetensors"
    ).read_bytes()
    assert {path: path.read_bytes() for path in (tmp_path / "out").glob("*.pth")} == files
    encoder = read_weights(tmp_path / "encoder.safetensors")
    assert (encoder.holds, encoder.front_end) == ("encoder", state["front_end"])
    assert not [name for name in encoder.state_dict if name.startswith(("decoder", "mask_token"))]


# Resuming


@pytest.fixture
def every_step(air, tmp_path, monkeypatch):
    """A run of 3 epochs of 2 steps that keeps a copy of its checkpoint of every step, and the folder of the
    copies.
    """
    copies = tmp_path / "copies"
    copies.mkdir()
    save = Saver.save

    def save_and_copy(self, state, *args):
        save(self, state, *args)
        shutil.copy(self.folder / checkpoint.LAST, copies / f"{state['step']}.pth")

    monkeypatch.setattr(Saver, "save", save_and_copy)
    flags = ("--epochs", 3, "--save_every_steps", 1, "--no-async_save")
    assert train(air, tmp_path / "through", *flags) == 0
    monkeypatch.setattr(Saver, "save", save)
    assert sorted(path.stem for path in copies.iterdir()) == list("123456")
    return copies


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_resumed_after_any_step_ends_the_same_to_the_bit(air, tmp_path, every_step, workers):
    assert train(air, tmp_path / "unsaved", "--epochs", 3) == 0
    through = loaded(tmp_path / "through")
    assert_same_run(through, loaded(tmp_path / "unsaved"))
    for step in range(1, 6) if workers == 0 else [3]:
        out = tmp_path / f"from-{step}"
        flags = ("--epochs", 3, "--resume", every_step / f"{step}.pth", "--num_workers", workers)
        assert train(air, out, *flags) == 0
        assert_same_run(through, loaded(out))
        last = [
            json.loads((folder / "log.txt").read_text().splitlines()[-1])
            for folder in (tmp_path / "through", out)
        ]
        assert last[0]["train_loss"] == pytest.approx(last[1]["train_loss"], rel=1e-12)


@pytest.mark.slow
def test_a_killed_process_goes_on_by_the_same_command(air, tmp_path, monkeypatch):
    """SIGKILL, then the same command: it resumes by itself and ends as the run that was not killed."""
    monkeypatch.setitem(models_mae.PRESETS, "mae_vit_tiny_patch16", TINY)
    flags = ("--epochs", 3, "--save_every_steps", 1, "--batch_size", 1, "--accum_iter", 2)
    assert train(air, tmp_path / "through", *flags) == 0
    out = tmp_path / "out"
    line = [
        sys.executable,
        str(ROOT / "main_pretrain.py"),
        "--data_path",
        str(air),
        "--output_dir",
        str(out),
        *(str(flag) for flag in (*SMALL, *flags)),
    ]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL)
    wait_for((out / checkpoint.LAST).exists, lambda: process.poll() is None)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    step = loaded(out)["step"]
    assert 1 <= step < 15
    assert train(air, out, *flags) == 0
    assert_same_run(loaded(tmp_path / "through"), loaded(out))
    assert [json.loads(row)["epoch"] for row in (out / "log.txt").read_text().splitlines()] == [0, 1, 2]
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


def test_a_finished_run_is_left_as_it_is(air, tmp_path, capsys):
    assert train(air, tmp_path / "out") == 0
    before = (tmp_path / "out" / checkpoint.LAST).read_bytes()
    assert train(air, tmp_path / "out") == 0
    assert (tmp_path / "out" / checkpoint.LAST).read_bytes() == before
    assert "epoch 1 done" in capsys.readouterr().out


def test_start_epoch_skips_the_schedules_beginning(air, tmp_path):
    assert train(air, tmp_path / "out", "--start_epoch", 1) == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.txt").read_text().splitlines()]
    assert [(line["epoch"], line["step"]) for line in lines] == [(1, 4)]


def test_other_flags_stop_an_automatic_resume_and_are_named(air, tmp_path, capsys):
    assert train(air, tmp_path / "out", "--epochs", 1) == 0
    before = (tmp_path / "out" / checkpoint.LAST).read_bytes()
    assert train(air, tmp_path / "out", "--epochs", 3, "--blr", 0.2) == 2
    error = capsys.readouterr().err
    assert "--epochs 1 there, 3 here" in error
    assert "--blr 0.1 there, 0.2 here" in error
    assert (tmp_path / "out" / checkpoint.LAST).read_bytes() == before
    # Said outright, it goes on with the new ones.
    assert train(air, tmp_path / "out", "--epochs", 3, "--resume", tmp_path / "out" / checkpoint.LAST) == 0
    assert "--epochs 1 there, 3 here" in capsys.readouterr().err
    assert loaded(tmp_path / "out")["epoch"] == 2


# Mistakes


def failed(capsys, status, *words):
    """One line on stderr with these words, after warnings at most."""
    error = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
    assert len(error) == 1, error
    assert error[0].startswith("error: ")
    for word in words:
        assert str(word) in error[0], error[0]
    return status


def bad_npy(path, value):
    iq = np.ones(4000, np.complex64)
    iq[2345] = value
    np.save(path, iq)


RAW = ("--sample_rate", "200e3")

BAD_DATA = {
    "missing": (lambda air: air.rename(air.with_name("gone")), (), ("air", "found none")),
    "empty": (lambda air: [path.unlink() for path in air.iterdir()], (), ("air", "found none among 0 files")),
    "not JSON": (lambda air: (air / "r1.sigmf-meta").write_text("{"), (), ("r1.sigmf-meta", "JSON")),
    "no datatype": (lambda air: write_sigmf(air, bytes(9000), None, "x"), (), ("x.sigmf-meta", "datatype")),
    "unknown datatype": (lambda air: write_sigmf(air, bytes(9000), "cq9", "x"), (), ("x.sigmf-meta", "cq9")),
    "no sample rate": (
        lambda air: (air / "x.cs16").write_bytes(bytes(9000)),
        (),
        ("x.cs16", "--sample_rate"),
    ),
    "no raw datatype": (lambda air: (air / "x.iq").write_bytes(bytes(9000)), RAW, ("x.iq", "--datatype")),
    "NaN": (lambda air: bad_npy(air / "x.npy", np.nan), RAW, ("x.npy", "sample 2345")),
    "infinity": (lambda air: bad_npy(air / "x.npy", np.inf), RAW, ("x.npy", "sample 2345")),
    "pickle": (lambda air: np.save(air / "x.npy", np.array([{}], object)), RAW, ("x.npy",)),
    "all too short": (lambda air: None, ("--window_ms", 60), ("--window_ms", "60 ms", "longest 54 ms")),
}


@pytest.mark.parametrize("kind", BAD_DATA)
def test_bad_data(air, tmp_path, capsys, kind):
    spoil, flags, words = BAD_DATA[kind]
    spoil(air)
    # A pickle that claims to be a recording among others is an error when it is named.
    data = air / "x.npy" if kind == "pickle" else air
    assert train(data, tmp_path / "out", *flags) == failed(capsys, 2, *words)
    assert not (tmp_path / "out").exists()


def test_a_launcher_that_sets_too_little(air, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    assert train(air, tmp_path / "out") == failed(capsys, 2, "RANK: expected a number in the environment")


def test_bad_samples_met_by_a_worker_are_one_line_too(air, tmp_path, capsys):
    bad_npy(air / "x.npy", np.nan)
    assert train(air, tmp_path / "out", *RAW, "--num_workers", 2) == failed(capsys, 2, "x.npy", "sample 2345")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read any file")
def test_unreadable_data(air, tmp_path, capsys):
    (air / "r0.sigmf-meta").chmod(0)
    assert train(air, tmp_path / "out") == failed(capsys, 2, "r0.sigmf-meta")


def test_short_recordings_are_skipped_with_a_warning(air, tmp_path, capsys):
    write_ci16(air, "short", 0.004)
    assert train(air, tmp_path / "out", "--epochs", 1) == 0
    assert "warning: 1 of 3 recordings skipped" in capsys.readouterr().err


def test_silence_trains(tmp_path):
    write_sigmf(tmp_path, bytes(4 * 12000), "ci16_le", sample_rate=200e3)
    assert train(tmp_path, tmp_path / "out", "--epochs", 1) == 0
    weights = loaded(tmp_path / "out")["model"]
    assert all(torch.isfinite(value).all() for value in weights.values())
    assert json.loads((tmp_path / "out" / "log.txt").read_text())["train_loss"] < 10


BAD_FLAGS = [
    (("--model", "mae_vit_giant"), ("--model", "mae_vit_giant", "mae_vit_tiny_patch16")),
    (("--input_size", 40), ("--model", "patch_size=16", "40")),
    (("--mask_ratio", 1), ("--mask_ratio", "1.0")),
    (("--val_fraction", 1), ("--val_fraction",)),
    (("--batch_size", 0), ("--batch_size", "at least 1; found 0")),
    (("--seed", -1), ("--seed",)),
    (("--lr", "nan"), ("--lr", "nan")),
    (("--clip_grad", 0), ("--clip_grad",)),
    (("--start_epoch", 2), ("--start_epoch", "--epochs 2")),
    (("--device", "cuda:77"), ("--device", "cuda:77")),
    (("--resume", "none.pth"), ("none.pth", "no such file")),
    (("--amp", "fp16"), ("--amp fp16",)),
    (("--export", "a.onnx"), ("--export", ".safetensors", "main_finetune.py", "found a.onnx")),
    (("--export", "encoder"), ("--export", ".safetensors", "found encoder")),
    (
        ("--export", "main_pretrain.py/a.safetensors"),
        ("--export main_pretrain.py/a.safetensors", "can be written"),
    ),
]


@pytest.mark.parametrize(("flags", "words"), BAD_FLAGS, ids=[flags[0] for flags, _ in BAD_FLAGS])
def test_bad_flags(air, tmp_path, capsys, flags, words):
    assert train(air, tmp_path / "out", *flags) == failed(capsys, 2, *words)
    assert not (tmp_path / "out").exists()


def test_unknown_flags_and_abbreviations_fail(air, tmp_path, capsys):
    for flag in ("--mask_rate", "--mask"):
        assert train(air, tmp_path / "out", flag, 0.5) == 2
        assert flag in capsys.readouterr().err


@pytest.mark.parametrize("name", ["file/out", "file"])
def test_an_output_folder_that_cannot_be(air, tmp_path, capsys, name):
    (tmp_path / "file").write_text("mine")
    assert train(air, tmp_path / name) == failed(capsys, 2, "--output_dir", name)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_folder_that_is_read_only(air, tmp_path, capsys):
    (tmp_path / "out").mkdir(mode=0o500)
    assert train(air, tmp_path / "out") == failed(capsys, 2, "--output_dir")


def test_resume_none_wants_an_empty_folder(air, tmp_path, capsys):
    assert train(air, tmp_path / "out", "--epochs", 1) == 0
    capsys.readouterr()
    assert train(air, tmp_path / "out", "--epochs", 1, "--resume", "none") == failed(
        capsys, 2, "--resume none", "out"
    )


def test_resuming_from_what_does_not_fit(air, tmp_path, capsys):
    assert train(air, tmp_path / "out", "--epochs", 1) == 0
    path = tmp_path / "out" / checkpoint.LAST
    good = loaded(tmp_path / "out")
    other_model = dict(good["args"], model="mae_vit_small_patch16")
    other_front_end = dict(good["front_end"], n_fft=32)
    fewer_weights = {key: value for key, value in good["model"].items() if key != "norm.bias"}
    cases = [
        ({"args": other_model}, ("mae_vit_tiny_patch16; found one of mae_vit_small_patch16",)),
        ({"front_end": other_front_end}, ("front end", "'n_fft': 32")),
        ({"model": fewer_weights}, ("norm.bias is missing",)),
        ({"num_samples": 99}, ("10 training samples; found one on 99",)),
        ({"args": {}}, ("found one of None",)),
    ]
    for changes, words in cases:
        checkpoint.save(good | changes, tmp_path, name="other.pth")
        capsys.readouterr()
        status = train(air, tmp_path / "new", "--epochs", 1, "--resume", tmp_path / "other.pth")
        assert status == failed(capsys, 2, "other.pth", *words)
    path.write_bytes(path.read_bytes()[:-1000])
    assert train(air, tmp_path / "out", "--epochs", 1) == failed(capsys, 2, checkpoint.LAST, "damaged")
    assert not (tmp_path / "new").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_spares_the_last_checkpoint(air, tmp_path, capsys):
    flags = ("--lr", "1e30", "--warmup_epochs", 0, "--epochs", 30, "--save_every_steps", 1, "--amp", "off")
    assert train(air, tmp_path / "out", *flags) == failed(
        capsys, 1, "step", "epoch", "samples", ".sigmf-meta at "
    )
    state = loaded(tmp_path / "out")
    assert all(torch.isfinite(value).all() for value in state["model"].values())


# The real command


@pytest.mark.slow
def test_the_script_itself(air, tmp_path):
    """As a process in another folder: status, output, and one line without traceback for a mistake."""
    flags = ("--data_path", air, "--output_dir", "out", *SMALL, "--epochs", 1)
    done = command("main_pretrain.py", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "reconstruction.png" in done.stdout
    assert done.stderr == ""
    wrong = command("main_pretrain.py", "--data_path", "nowhere", cwd=tmp_path)
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines() == ["error: --data_path nowhere: expected a file or folder; found none"]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_recording(tmp_path):
    """A sparse recording of 4 GB: opened and trained on within 1.5 GB."""
    path = write_sigmf(tmp_path, b"", "ci16_le", sample_rate=61.44e6)
    os.truncate(path.with_suffix(".sigmf-data"), 4 * 10**9)
    flags = (
        "--data_path",
        path,
        "--output_dir",
        "out",
        "--model",
        "mae_vit_tiny_patch16",
        "--input_size",
        32,
        "--epochs",
        1,
        "--warmup_epochs",
        0,
        "--batch_size",
        16,
        "--val_fraction",
        0.05,
        "--num_workers",
        1,
    )
    script = f"""
import resource, sys
import torch
sys.argv = ["main_pretrain.py"] + {[str(flag) for flag in flags]!r}
sys.path.insert(0, {str(ROOT)!r})
import main_pretrain
main_pretrain.main(main_pretrain.get_args_parser().parse_args())
from util.progress import peak_memory_bytes
workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
print("peak", max(peak_memory_bytes(torch.device("cpu")), workers))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert 1e8 < int(done.stdout.rsplit(maxsplit=1)[-1]) < 1.5e9
    assert "966 training samples, 51 held out" in done.stdout  # 10^9 samples in windows of 983,040


@needs_captures
@pytest.mark.slow
def test_the_real_captures_train(tmp_path, capsys):
    """All of them in one run, at their nine sample rates."""
    flags = (
        "--window_ms",
        2,
        "--input_size",
        64,
        "--n_fft",
        256,
        "--batch_size",
        64,
        "--epochs",
        1,
        "--val_fraction",
        0.2,
    )
    assert train(CAPTURES, tmp_path / "out", *flags) == 0
    line = json.loads((tmp_path / "out" / "log.txt").read_text())
    assert line["val_samples"] > 50
    assert 0.5 < line["val_mean_loss"] < 1.5
    assert 0.5 < line["train_loss"] < 2
