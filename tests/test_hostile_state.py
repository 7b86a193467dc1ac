"""Checkpoints, weights, flags and machines that are not as a run expects: one line each, and nothing lost.

A case is a row: what is wrong, a small function or flags that make it so, and words of the line.
"""

import contextlib
import copy
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
from support import ROOT, SHALLOW, call, largest_file, log_of, wait_for, write_ci16, write_npz, write_scenes

import engine_evaluate
import engine_files
import engine_reconstruct
import main_embed
import main_finetune
import main_pack
import main_pretrain
import main_segment
import main_synthesize
import models_mae
import models_vit
import util.record
from data.spectrogram_set import DESCRIPTION, SPECTROGRAMS
from util import checkpoint, flops
from util.bars import Bar
from util.errors import UserError
from util.files import LOCK, json_text, locked, parse_json

QUICK = ("--batch_size", 4, "--epochs", 2, "--warmup_epochs", 0, "--num_workers", 0, "--device", "cpu")
QUICK += ("--amp", "off")
NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module", autouse=True)
def small():
    """A tiny preset, and pictures without contents."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models_mae.PRESETS, "mae_vit_nano", SHALLOW)
        patch.setitem(models_vit.PRESETS, "vit_nano", SHALLOW)
        patch.setitem(flops.SIDE, "cpu", 16)
        patch.setattr(engine_reconstruct, "reconstruction_figure", lambda *_: Figure(figsize=(1, 1)))
        for name in ("confusion_figure", "prediction_sheet"):
            patch.setattr(engine_evaluate, name, lambda *_: Figure(figsize=(1, 1)))
        yield


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", 20)


def pretraining(scenes, output, *more):
    flags = ("--data_path", scenes, "--output_dir", output, "--model", "mae_vit_nano", "--input_size", 16)
    return call(main_pretrain, *flags, *QUICK, "--val_fraction", 0, *more)


def finetuning(scenes, output, *more):
    flags = ("--data_path", scenes, "--output_dir", output, "--model", "vit_nano", "--task", "segmentation")
    return call(main_finetune, *flags, *QUICK, *more)


RUNS = {"pretraining": pretraining, "finetuning": finetuning}


@pytest.fixture(scope="module")
def runs(scenes, tmp_path_factory):
    """{trainer: folder of a finished run}."""
    folders = {name: tmp_path_factory.mktemp(name) for name in RUNS}
    for name, train in RUNS.items():
        assert train(scenes, folders[name]) == 0
    return folders


def said(capsys, status, expected, *words):
    """Check a status and the last line of stderr; returns the line."""
    lines = capsys.readouterr().err.splitlines()
    assert "Traceback" not in "".join(lines)
    last = lines[-1] if lines else ""
    assert status == expected, last
    for word in words:
        assert word in last
    return last


# Checkpoints


def put(*path, value):
    """A change of a nested state: a value, or a function of the value before."""

    def change(state):
        for key in path[:-1]:
            state = state[key]
        state[path[-1]] = value(state[path[-1]]) if callable(value) else value

    return change


def drop(*path):
    def change(state):
        for key in path[:-1]:
            state = state[key]
        del state[path[-1]]

    return change


def moment(value, name="exp_avg", number=0):
    return put("optimizer", "state", number, name, value=value)


def weight(value):
    return put("model", "norm.weight", value=value)


STATE = "expected the optimizer's state of this model"
MODEL = "expected the weights of this model"
TAMPERED = {
    "a moment of another size": (moment(torch.zeros(3)), (STATE, "exp_avg of parameter 0: [3], expected")),
    "a moment of another rank": (moment(lambda one: one[..., None]), (STATE, "expected [")),
    "a moment with NaN": (moment(lambda one: one * NAN), (STATE, "NaN or infinity")),
    "a moment of integers": (moment(lambda one: one.long()), (STATE, "torch.int64")),
    "a complex moment": (moment(lambda one: one.cfloat()), (STATE, "torch.complex64")),
    "a moment that is none": (moment(None), (STATE, "a NoneType, expected a tensor")),
    "a negative square": (moment(lambda one: one - 1, "exp_avg_sq"), (STATE, "negative numbers")),
    "an infinite step": (moment(torch.tensor(INF), "step"), (STATE, "step of parameter 0: NaN or infinity")),
    "two steps": (moment(torch.zeros(2), "step"), (STATE, "step of parameter 0: [2], expected []")),
    "no moment": (drop("optimizer", "state", 0, "exp_avg"), (STATE, "expected exp_avg, exp_avg_sq, step")),
    "a moment too many": (moment(torch.zeros(1), "more"), (STATE, "more for parameter 0")),
    "a parameter's state as a list": (
        put("optimizer", "state", 0, value=[1]),
        (STATE, "list for parameter 0"),
    ),
    "an empty state": (put("optimizer", "state", value={}), (STATE, "none for")),
    "a parameter without state": (drop("optimizer", "state", 0), (STATE, "none for 1 of")),
    "state of another parameter": (put("optimizer", "state", 999, value={}), (STATE, "a parameter 999")),
    "no optimizer": (put("optimizer", value={}), (STATE, "nothing instead of")),
    "groups as a number": (put("optimizer", "param_groups", value=3), (STATE,)),
    "fewer groups": (put("optimizer", "param_groups", value=lambda one: one[:1]), (STATE, "1 groups")),
    "parameters twice": (put("optimizer", "param_groups", 0, "params", value=[0, 0]), (STATE, "groups")),
    "weights with NaN": (weight(lambda one: one * NAN), (MODEL, "norm.weight is NaN or infinity")),
    "weights of integers": (weight(lambda one: one.long()), (MODEL, "torch.int64")),
    "weights of truth values": (weight(lambda one: one.bool()), (MODEL, "torch.bool")),
    "complex weights": (weight(lambda one: one.cfloat()), (MODEL, "torch.complex64")),
    "weights as a list": (weight([1.0]), (MODEL, "a list, expected a tensor")),
    "sparse weights": (weight(lambda one: one.to_sparse()), (MODEL, "without plain values")),
    "an epoch beyond the end": (put("epoch", value=10**6), ("--epochs 2 at most", "epoch 1000000 is done")),
    "an epoch beyond all types": (put("epoch", value=2**70), ("expected a whole number", "'epoch'")),
    "an epoch before the first": (put("epoch", value=-5), ("expected a whole number from -1 on as 'epoch'",)),
    "an epoch as text": (put("epoch", value="3"), ("'epoch'; found '3'",)),
    "half an epoch": (put("epoch", value=0.5), ("'epoch'; found 0.5",)),
    "an epoch that is true": (put("epoch", value=True), ("'epoch'; found True",)),
    "a step that is a tensor": (put("step", value=torch.tensor(3)), ("'step'",)),
    "no position": (put("progress", value={}), ("without step",)),
    "more than a position": (put("progress", "more", value=1), ("'progress'",)),
    "a loss that is NaN": (put("progress", "loss_sum", value=NAN), ("'progress'",)),
    "a loss that is text": (put("progress", "loss_sum", value="a"), ("'progress'",)),
    "a step beyond its epoch": (put("progress", "epoch_step", value=10**9), ("steps an epoch",)),
    "a negative step": (put("progress", "epoch_step", value=-1), ("'progress'",)),
    "another step in all": (put("progress", "step", value=1), ("steps an epoch",)),
    "no random state": (put("rng", value={}), ("expected states of random generators",)),
    "a short random state": (put("rng", "cpu", value=torch.zeros(3).byte()), ("random generators",)),
    "a random state of zeros": (put("rng", "cpu", value=torch.zeros_like), ("random generators",)),
    "a random state of floats": (put("rng", "cpu", value=lambda one: one.float()), ("random generators",)),
    "a scaler of NaN": (put("scaler", value={"scale": NAN}), ("'scaler'",)),
    "no scaler": (put("scaler", value=None), ("'scaler'",)),
    "samples as text": (put("num_samples", value="a"), ("'num_samples'",)),
    "no samples in a step": (put("effective_batch", value=0), ("'effective_batch'",)),
    "without samples of a step": (drop("effective_batch"), ("without effective_batch",)),
    "names twice": (put("classes", value=["a", "a"]), ("different, printable names as 'classes'",)),
    "names as numbers": (put("classes", value=[1, 2, 3]), ("names as 'classes'",)),
    "a name that no screen shows": (put("classes", value=["a\n", "b"]), ("names as 'classes'",)),
    "a front end of no kind": (put("front_end", "kind", value=3), ("front end of the weights",)),
    "an image size as text": (put("front_end", "image_size", value="x"), ("'front_end'",)),
    "a negative image size": (put("front_end", "image_size", value=[-16, 16]), ("'front_end'",)),
    "an FFT of NaN": (put("front_end", "n_fft", value=NAN), ("front end of the weights",)),
    "an endless window": (put("front_end", "duration_s", value=1e300), ("front end of the weights",)),
    "a format as text": (put("format", value="2"), ("checkpoint format 2; found 2",)),
}


@pytest.mark.parametrize("trainer", RUNS)
@pytest.mark.parametrize("case", TAMPERED)
def test_a_tampered_checkpoint_is_one_line(scenes, runs, tmp_path, capsys, trainer, case):
    change, words = TAMPERED[case]
    folder = tmp_path / "out"
    shutil.copytree(runs[trainer], folder)
    for path in folder.glob("checkpoint-[0-9l]*.pth"):
        path.unlink()
    state = copy.deepcopy(checkpoint.load(runs[trainer] / checkpoint.LAST))
    change(state)
    checkpoint.save(state, folder, checkpoint.LAST)
    capsys.readouterr()
    said(capsys, RUNS[trainer](scenes, folder), 2, *words)
    if case.startswith("weights") and trainer == "finetuning":
        evaluate = ("--eval", "--resume", folder / checkpoint.LAST)
        said(capsys, finetuning(scenes, tmp_path / "eval", *evaluate), 2, *words)


FLAGS_OF_A_RUN = {
    "a model that is a number": ({"model": 5}, "--model"),
    "epochs as text": ({"epochs": "x"}, "--epochs"),
    "a rate that is NaN": ({"lr": NAN}, "--lr"),
    "a negative batch": ({"batch_size": -1}, "--batch_size"),
    "data that are a number": ({"data_path": 3}, "--data_path"),
    "a seed beyond its type": ({"seed": 2**64}, "--seed"),
    "an epsilon as text": ({"norm_eps": "abc"}, "--norm_eps"),
}


@pytest.mark.parametrize("module", [main_pretrain, main_finetune])
@pytest.mark.parametrize("case", FLAGS_OF_A_RUN)
def test_flags_of_a_tampered_checkpoint_are_checked_as_those_of_a_command(
    runs, tmp_path, capsys, module, case
):
    changes, flag = FLAGS_OF_A_RUN[case]
    name = "pretraining" if module is main_pretrain else "finetuning"
    state = copy.deepcopy(checkpoint.load(runs[name] / checkpoint.LAST))
    state["args"] |= changes
    checkpoint.save(state, tmp_path, "odd.pth")
    status = call(
        module, "--resume", tmp_path / "odd.pth", "--output_dir", tmp_path / "out", "--device", "cpu"
    )
    said(capsys, status, 2, flag)


def test_a_resumed_run_has_the_weight_decay_of_its_command(scenes, runs, tmp_path):
    """Those in the checkpoint's groups were taken before, whatever --weight_decay said."""
    more = ("--resume", runs["pretraining"] / checkpoint.LAST, "--epochs", 3, "--weight_decay", 0.3)
    assert pretraining(scenes, tmp_path / "out", *more) == 0
    groups = checkpoint.load(tmp_path / "out" / checkpoint.LAST)["optimizer"]["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.0, 0.3}


@pytest.mark.parametrize("trainer", RUNS)
def test_other_bytes_of_the_same_size_and_name_are_no_data_of_the_run(tmp_path, capsys, trainer):
    data = write_scenes(tmp_path / "scenes", 20)
    assert RUNS[trainer](data, tmp_path / "out") == 0
    path = data / SPECTROGRAMS
    content = path.read_bytes()
    os.utime(path, (1, 1))
    capsys.readouterr()
    assert RUNS[trainer](data, tmp_path / "out") == 0
    assert "1 of 4 data files were written since its run began" in capsys.readouterr().err
    path.write_bytes(content[:-64] + bytes(64))
    said(capsys, RUNS[trainer](data, tmp_path / "out"), 2, "found other bytes in", SPECTROGRAMS)


def test_a_second_run_in_a_folder_is_told_who_writes_it(scenes, tmp_path, capsys):
    """The lock is that of a process: another one takes it."""
    code = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from util.files import locked
with locked({str(tmp_path)!r}, "--output_dir"):
    print("locked", flush=True)
    sys.stdin.read()
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    other = subprocess.Popen([sys.executable, "-c", code], **pipes)
    assert other.stdout.readline() == "locked\n"
    (tmp_path / ".checkpoint-last.pth.1.tmp").touch()  # of the other run
    holder = f"process {other.pid} on "
    said(capsys, pretraining(scenes, tmp_path), 2, "no other command writes", holder)
    assert (tmp_path / ".checkpoint-last.pth.1.tmp").exists()
    out = ("--output", tmp_path, "--train", 1, "--val", 0, "--test", 0, "--num_workers", 0)
    said(capsys, call(main_synthesize, *out), 2, "no other command writes", holder)
    other.kill()
    other.wait()
    other.stdin.close()
    other.stdout.close()
    with locked(tmp_path, "--output_dir"):
        assert (tmp_path / LOCK).exists()
    assert not (tmp_path / LOCK).exists()


# Weights, images and logits that are not finite


def spoiled(scenes, folder, value=NAN, number=3):
    """A copy of a set with such a value in one spectrogram."""
    shutil.copytree(scenes, folder)
    values = np.load(folder / SPECTROGRAMS)
    values[number, 0, 2, 2] = value
    np.save(folder / SPECTROGRAMS, values)
    return folder


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("number", range(0, 20, 5))
def test_a_sample_that_is_not_finite_is_named_wherever_it_is(scenes, runs, tmp_path, capsys, value, number):
    data = spoiled(scenes, tmp_path / "odd", value, number)
    said(capsys, finetuning(data, tmp_path / "a"), 1, "samples ", f"(s{number})")
    said(capsys, pretraining(data, tmp_path / "b"), 1, f"{number} (s{number})")
    evaluate = ("--eval", "--resume", runs["finetuning"] / checkpoint.BEST, "--test_fraction", 0.2)
    status = finetuning(data, tmp_path / "c", *evaluate)
    assert status in (0, 1)  # 0: it is in another part
    assert status == 0 or f"(s{number})" in capsys.readouterr().err


def test_a_held_out_sample_that_is_not_finite_is_named(scenes, tmp_path, capsys):
    folder = tmp_path / "sets"
    shutil.copytree(scenes, folder / "train")
    spoiled(scenes, folder / "val")
    status = pretraining(folder, tmp_path / "out", "--val_fraction", 0.1)
    said(capsys, status, 1, "finite loss of held-out samples", "3 (s3)")


def weights_of(runs, path, change=lambda state: None):
    state = copy.deepcopy(checkpoint.load(runs["finetuning"] / checkpoint.BEST))
    state["args"]["model"] = "vit_nano"
    change(state)
    checkpoint.save(state, path.parent, path.name)
    return path


@pytest.mark.parametrize(
    "case", ["weights with NaN", "weights of integers", "complex weights", "names twice"]
)
@pytest.mark.parametrize("module", [main_segment, main_embed])
def test_weights_are_checked_by_whoever_reads_them(runs, tmp_path, capsys, monkeypatch, module, case):
    monkeypatch.setitem(sys.modules["models_presets"].PRESETS, "vit_nano", SHALLOW)
    path = weights_of(runs, tmp_path / "odd.pth", TAMPERED[case][0])
    recording = write_ci16(tmp_path / "air")
    output = tmp_path / ("out.npz" if module is main_embed else "out")
    status = call(module, recording, "--weights", path, "--output", output, "--device", "cpu")
    said(capsys, status, 2, "odd.pth: expected")
    assert not output.exists()


def test_logits_that_overflow_end_labelling_and_embedding(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules["models_presets"].PRESETS, "vit_nano", SHALLOW)
    huge = put("model", "norm.weight", value=lambda one: one * 0 + 3e38)
    path = weights_of(runs, tmp_path / "huge.pth", huge)
    flags = (write_ci16(tmp_path / "air"), "--weights", path, "--device", "cpu", "--amp", "off")
    status = call(main_segment, *flags, "--output", tmp_path / "out")
    said(capsys, status, 1, "a.sigmf-meta: expected finite levels and probabilities")
    status = call(main_embed, *flags, "--output", tmp_path / "out.npz", "--num_workers", 0)
    said(capsys, status, 1, "a.sigmf-meta: expected finite features")


@pytest.mark.parametrize("value", [1e38, -1e30])
def test_csi_beyond_what_squares_can_hold_is_named(tmp_path, capsys, value):
    x = np.ones((6, 4, 10))
    x[2, 1, 1] = value
    flags = ("--task", "sensing", "--data_path", write_npz(tmp_path / "a.npz", x=x), "--device", "cpu")
    said(
        capsys,
        call(main_finetune, *flags, "--output_dir", tmp_path / "o"),
        2,
        "numbers beyond 1e+18 in sample 2",
    )


# Flags

PRETRAIN = ("--data_path", "SET", "--model", "mae_vit_nano", *QUICK, "--output_dir", "OUT")
FINETUNE = (
    "--data_path",
    "SET",
    "--model",
    "vit_nano",
    "--task",
    "segmentation",
    *QUICK,
    "--output_dir",
    "OUT",
)
FLAGS = [
    *[
        (main_pretrain, (*PRETRAIN, f"--{name}", value), f"--{name}")
        for name, value in (
            ("lr", "inf"),
            ("lr", "1e39"),
            ("blr", "inf"),
            ("blr", "1e31"),
            ("blr", "nan"),
            ("weight_decay", "inf"),
            ("weight_decay", "1e300"),
            ("min_lr", "inf"),
            ("seed", 2**64),
            ("seed", -1),
            ("epochs", 2**63),
            ("batch_size", 2**63),
            ("accum_iter", 2**63),
            ("warmup_epochs", 2**70),
            ("save_every_steps", 2**70),
            ("keep", 2**70),
            ("num_workers", 2**40),
            ("dist_timeout_s", "inf"),
            ("mask_ratio", "nan"),
            ("clip_grad", "nan"),
            ("val_fraction", "inf"),
            ("peak_tflops", "inf"),
            ("norm_eps", "nan"),
            ("device", "meta"),
            ("device", "cuda:99999999999999"),
            ("device", "nonsense"),
            ("n_fft", 10**10),
            ("n_fft", 2**63),
            ("input_size", 10**9),
            ("input_size", 0),
            ("output_dir", ""),
            ("export", ""),
            ("log_dir", ""),
            ("data_path", ""),
            ("init", ""),
            ("model", ""),
        )
    ],
    *[
        (main_finetune, (*FINETUNE, f"--{name}", value), f"--{name}")
        for name, value in (
            ("lr", "inf"),
            ("blr", "1e31"),
            ("seed", 2**64),
            ("head_depth", 10**6),
            ("seeds", 2**40),
            ("lora", 2**40),
            ("mixup", "inf"),
            ("layer_decay", "nan"),
            ("smoothing", "nan"),
            ("classes", ""),
            ("label_fraction", "nan"),
            ("val_every", 2**63),
            ("export", ""),
            ("output_dir", ""),
            ("log_dir", ""),
            ("split", ""),
            ("device", "meta"),
        )
    ],
    (main_finetune, (*FINETUNE, "--blr", "1e29", "--weight_decay", "1e29"), "rate x --weight_decay"),
    (main_pretrain, (*PRETRAIN, "--learning_rate", 1), "--learning_rate: not a flag here"),
    (main_pretrain, (*PRETRAIN, "--warmup_epoch", 1), "the nearest: --warmup_epochs"),
    (main_synthesize, ("--outptu", "OUT"), "--outptu: not a flag here; the nearest: --output"),
    (main_synthesize, ("--output", ""), "--output: expected a value; found an empty one"),
    (main_synthesize, ("--output", "OUT", "--seed", 2**64), "--seed"),
    (main_synthesize, ("--output", "OUT", "--train", 2**63), "--train"),
    (main_synthesize, ("--output", "OUT", "--n_fft", 10**10), "--n_fft"),
    (main_pack, ("--data_path", "SET", "--output", ""), "--output: expected a value; found an empty one"),
    (main_segment, ("x", "--weights", "w", "--output", ""), "--output: expected a value; found an empty one"),
    (
        main_segment,
        ("x", "--weights", "w", "--classes", ""),
        "--classes: expected a value; found an empty one",
    ),
    (main_segment, ("x", "--weight", "w"), "--weight: not a flag here; the nearest: --weights"),
    (main_segment, ("x", "--weights", "w", "--device", "meta"), "--device"),
    (main_embed, ("x", "--weights", "w", "--output", ""), "--output: expected a value; found an empty one"),
    (main_embed, ("x", "--weights", "w", "--batch_size", 2**63), "--batch_size"),
]


@pytest.mark.parametrize(("module", "flags", "words"), FLAGS)
def test_flags_that_cannot_be_are_named_before_anything_happens(
    scenes, tmp_path, capsys, module, flags, words
):
    places = {"SET": scenes, "OUT": tmp_path / "out"}
    said(capsys, call(module, *(places.get(flag, flag) for flag in flags)), 2, words)
    assert not (tmp_path / "out").exists()


def test_flags_that_nothing_uses_are_named(scenes, tmp_path, capsys):
    more = (
        "--head",
        "linear",
        "--head_depth",
        3,
        "--smoothing",
        0.2,
        "--licence",
        "MIT",
        "--sample_rate",
        1e6,
    )
    assert finetuning(scenes, tmp_path / "out", "--scenes", 9, *more) == 0
    error = capsys.readouterr().err
    assert "warning: nothing here uses" in error
    for name in ("head_depth", "smoothing", "licence", "sample_rate", "scenes"):
        assert f"--{name} (" in error


def test_a_resumed_run_names_all_flags_that_differ(scenes, runs, tmp_path, capsys):
    flags = ("--eval", "--resume", runs["finetuning"] / checkpoint.BEST, "--seed", 7, "--val_fraction", 0.3)
    status = finetuning(scenes, tmp_path / "out", *flags)
    said(capsys, status, 2, "--seed, --val_fraction: expected 0, 0.1, as the run of", "found 7, 0.3")


# Files that cannot be written, names that cannot be drawn


def test_a_log_folder_that_takes_no_events_is_refused(scenes, tmp_path, capsys):
    (tmp_path / "file").touch()
    status = pretraining(scenes, tmp_path / "out", "--log_dir", tmp_path / "file")
    said(capsys, status, 2, "--log_dir", "expected a folder that can be written")


@pytest.mark.parametrize("name", ["results.json", "log.txt", "reconstruction.png", "split.json"])
def test_a_folder_in_a_files_place_is_named_before_the_first_step(scenes, tmp_path, capsys, name):
    (tmp_path / "out" / name).mkdir(parents=True)
    said(capsys, finetuning(scenes, tmp_path / "out"), 2, f"expected a file to write as {name}")


def test_a_picture_that_cannot_be_drawn_costs_nothing_else(scenes, tmp_path, capsys, monkeypatch):
    def fail(*_):
        raise RuntimeError("no such glyph")

    for module, name in (
        (engine_reconstruct, "reconstruction_figure"),
        (engine_evaluate, "confusion_figure"),
    ):
        monkeypatch.setattr(module, name, fail)
    for name, train in RUNS.items():
        assert train(scenes, tmp_path / name) == 0
        *_, last = capsys.readouterr().err.splitlines()
        picture = "reconstruction" if name == "pretraining" else "confusion"
        assert last.endswith(f"not written, or not completely: {picture}.png")
        assert checkpoint.load(tmp_path / name / checkpoint.LAST)["epoch"] == 1


def test_without_tensorboard_a_run_trains(scenes, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert pretraining(scenes, tmp_path / "out") == 0
    assert "TensorBoard's events" in capsys.readouterr().err
    assert len(log_of(tmp_path / "out")) == 2


def test_a_full_disk_at_the_results_is_told_last_and_the_model_is_kept(scenes, tmp_path, capsys, monkeypatch):
    def full(path, *_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(main_finetune, "write_json", full)
    said(capsys, finetuning(scenes, tmp_path / "out"), 1, "results.json: expected room to write it")
    assert checkpoint.load(tmp_path / "out" / checkpoint.BEST)


def test_a_full_disk_at_one_recording_leaves_the_others(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules["models_presets"].PRESETS, "vit_nano", SHALLOW)
    for seed, name in enumerate("abc"):
        write_ci16(tmp_path / "air", name, seed=seed)
    path, json_text_ = weights_of(runs, tmp_path / "good.pth"), engine_files.json_text

    def full(content, *more):
        if content.get("recording") == "b.sigmf-meta":
            raise OSError(28, "No space left on device")
        return json_text_(content, *more)

    monkeypatch.setattr(engine_files, "json_text", full)
    flags = ("--weights", path, "--device", "cpu", "--output", tmp_path / "out")
    said(capsys, call(main_segment, tmp_path / "air", *flags), 1, "1 of 3 recordings could not be written: b")
    assert {one.stem for one in (tmp_path / "out").glob("*.sigmf-meta")} == {"a", "c"}


def test_names_that_are_no_text_end_nothing(runs, scenes, tmp_path, capsys, monkeypatch):
    """Bytes that are no UTF-8, formulas of matplotlib, control characters."""
    monkeypatch.setitem(sys.modules["models_presets"].PRESETS, "vit_nano", SHALLOW)
    folder = tmp_path / "air"
    for seed, name in enumerate(("caf\udce9", "$a_$b^", "tab\there")):
        write_ci16(folder, name, seed=seed)
    flags = (
        "--weights",
        weights_of(runs, tmp_path / "good.pth"),
        "--device",
        "cpu",
        "--output",
        tmp_path / "out",
    )
    assert call(main_segment, folder, *flags) == 0
    assert "could not be drawn" not in capsys.readouterr().err
    written = [*(tmp_path / "out").glob("*.json")]
    assert len(written) == 3
    for path in written:
        assert json.loads(path.read_text("utf-8"))["recording"].endswith(".sigmf-meta")
    small = ("--input_size", 16, "--n_fft", 64, "--window_ms", 10, "--model", "mae_vit_nano", *QUICK)
    monkeypatch.undo()
    status = call(main_pretrain, "--data_path", folder, *small, "--output_dir", tmp_path / "run")
    assert status == 0
    assert "could not be written" not in capsys.readouterr().err


def test_a_set_that_was_killed_leaves_no_memory_of_it(tmp_path):
    """The next writer takes the place of the preallocated files."""
    write_ci16(tmp_path / "air")
    torn = tmp_path / ".set.tmp"
    torn.mkdir()
    (torn / SPECTROGRAMS).write_bytes(bytes(1000))
    (torn / "metadata.jsonl").touch()
    (torn / "unfinished.json").write_text("{}")
    flags = ("--data_path", tmp_path / "air", "--window_ms", 10, "--n_fft", 64, "--input_size", 16)
    assert call(main_pack, *flags, "--device", "cpu", "--output", tmp_path / "set") == 0
    assert not torn.exists()
    assert (tmp_path / "set" / DESCRIPTION).exists()


def test_a_log_line_is_whole_or_absent_on_a_full_disk(scenes, tmp_path, capsys):
    record = util.record.Record(tmp_path)
    with largest_file(100), record.tried("nothing"):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        for epoch in range(9):
            record.epoch({"epoch": epoch, "text": "x" * 20})
    lines = (tmp_path / "log.txt").read_text()
    assert lines.endswith("\n")
    assert 1 <= len(lines.splitlines()) < 9
    record.finish()
    assert "not written, or not completely: log.txt" in capsys.readouterr().err


# JSON, names of folders, signals


@pytest.mark.parametrize("text", ["[" * 10**5, '{"a": Infinity}', '{"a": NaN}', "", "{"])
def test_json_that_is_none(tmp_path, capsys, text):
    with pytest.raises(ValueError):  # noqa: PT011, Python's own words differ
        parse_json(text)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / DESCRIPTION).write_text(text)
    status = pretraining(tmp_path / "set", tmp_path / "out")
    said(capsys, status, 2, DESCRIPTION, "expected a spectrogram set's description")


def test_json_of_names_that_are_no_text_can_be_read():
    assert json_text({"a": "é"}) == '{"a": "é"}'
    assert json.loads(json_text({"a": "caf\udce9"})) == {"a": "caf\udce9"}


def test_a_home_of_nobody_is_named(monkeypatch):
    from util import fetch

    monkeypatch.setenv("RADIO_MAE_HOME", "~nosuchuser/x")
    with pytest.raises(UserError, match=r"RADIO_MAE_HOME: expected a folder, ~nosuchuser/x; found"):
        fetch.home()


def test_without_room_for_locks_this_process_works_alone(scenes, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("multiprocessing.context.BaseContext.Lock", full)
    assert pretraining(scenes, tmp_path / "out", "--num_workers", 2) == 0
    assert "--num_workers 2: expected room in /dev/shm; Read-only file system" in capsys.readouterr().err


def test_a_log_file_gets_plain_lines(monkeypatch, capsys):
    monkeypatch.setattr("util.bars.LINE_S", 0.0)
    with Bar("packing", 3, "windows") as bar:
        for _ in range(3):
            bar.add(1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("packing: 1 windows of 3, about 0 minutes left")
    assert len(lines) == 3


def test_too_many_open_files_are_one_line(capsys):
    from util.errors import reported

    with pytest.raises(SystemExit) as ended, reported():
        raise OSError(24, "Too many open files", "a.npy")
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: a.npy: Too many open files\n"


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_a_stop_is_one_line_in_every_command(capsys, number, name):
    from util.errors import reported, stopped

    before = signal.getsignal(signal.SIGTERM)
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    for goes_on, status in ((None, 130), (True, 75), (False, 130)):
        kept = contextlib.nullcontext() if goes_on is None else stopped("rows are kept", goes_on)
        with pytest.raises(SystemExit) as ended, reported(), kept:
            os.kill(os.getpid(), number)
        assert ended.value.code == status
        line = capsys.readouterr().err
        assert line.startswith("stopped: ")
        assert line.count("\n") == 1
        assert (f"by {name}" in line) == (goes_on is None)
    assert signal.getsignal(signal.SIGTERM) == before
    signal.signal(signal.SIGINT, ignored)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_control_c_is_the_twin_of_sigterm_in_training(scenes, tmp_path, number):
    """It saves, and the same command goes on."""
    script = ("main_pretrain.py", "--data_path", scenes, "--output_dir", tmp_path / "out", "--input_size", 16)
    small = ("--model", "mae_vit_tiny_patch16", *QUICK, "--epochs", 10**6, "--val_fraction", 0)
    line = [sys.executable, ROOT / script[0], *script[1:], *small, "--save_every_epochs", 10**6]
    with open(tmp_path / "err", "w") as errors, open(tmp_path / "out.txt", "w") as out:
        reset = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
        process = subprocess.Popen([str(one) for one in line], stdout=out, stderr=errors, preexec_fn=reset)
        wait_for(lambda: "epoch 1/" in (tmp_path / "out.txt").read_text(), lambda: process.poll() is None)
        process.send_signal(number)
        assert process.wait(120) == 75
    error = (tmp_path / "err").read_text()
    assert "Traceback" not in error
    assert error.splitlines()[-1].endswith("the same command goes on from there")
    assert checkpoint.newest(tmp_path / "out") is not None
