"""Both trainers as several processes: the same result however it is spread, whole after any end, and gone on
from there.
"""

import functools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time

import pytest
import torch
from support import assert_same_run, finish, start, wait, write_ci16, write_scenes
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from util import checkpoint

# Three steps an epoch of 42 samples, and a last one of 10, which 4 processes share as 4, 4, 2 and none.
PRETRAIN = (
    "--model",
    "mae_vit_nano",
    "--input_size",
    16,
    "--n_fft",
    64,
    "--window_ms",
    10,
    "--warmup_epochs",
    1,
    "--blr",
    0.1,
    "--num_workers",
    0,
    "--device",
    "cpu",
    "--amp",
    "off",
    "--save_every_epochs",
    100,
)
FINETUNE = (
    "--model",
    "vit_nano",
    "--warmup_epochs",
    1,
    "--blr",
    0.1,
    "--num_workers",
    0,
    "--device",
    "cpu",
    "--amp",
    "off",
    "--drop_path",
    0.4,
    "--val_fraction",
    0.3,
)
LONG = ("--epochs", 20, "--val_fraction", 0, "--batch_size", 8)  # 140 steps of pretraining, for one process


@pytest.fixture(scope="module")
def air(tmp_path_factory):
    folder = tmp_path_factory.mktemp("air")
    for number in range(4):
        write_ci16(folder, f"r{number}", 0.145, seed=number)
    return folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """60 samples: 31 to train on, 17 to validate, 12 to test."""
    return write_scenes(tmp_path_factory.mktemp("scenes") / "set", 60)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("labelled") / "set", 60, ("labels",))


def pretrain(air, output, *flags):
    return ("main_pretrain", "--data_path", air, "--output_dir", output, *PRETRAIN, *flags)


def finetune(data, output, *flags, task="segmentation"):
    return ("main_finetune", "--task", task, "--data_path", data, "--output_dir", output, *FINETUNE, *flags)


@pytest.fixture(scope="module")
def through(air, tmp_path_factory):
    """The output folder of a pretraining run that nothing happens to, by its processes and flags; tests share
    it.
    """

    @functools.cache
    def run(count, *flags):
        folder = tmp_path_factory.mktemp("through")
        finish(folder, count, *pretrain(air, folder / "out", *flags))
        return folder / "out"

    return run


def losses(folder):
    """[(step, loss)] of TensorBoard, as it shows them: without what a run that went on has taken back."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("train/loss")]


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]


def assert_same_losses(first, second, count, rel=1e-5):
    ours, theirs = losses(first), losses(second)
    assert [step for step, _ in ours] == [step for step, _ in theirs] == list(range(1, count + 1))
    assert [loss for _, loss in theirs] == pytest.approx([loss for _, loss in ours], rel=rel)


def step_of(path):
    """The step of a checkpoint, 0 where there is none."""
    found = checkpoint.read_comment(path)
    return found.step if found else 0


def spreads(samples):
    """(processes, flags) by which a step sees so many samples."""
    return [
        (count, ("--batch_size", samples // count // accumulate, "--accum_iter", accumulate))
        for count, accumulate in ((1, 1), (4, 1), (2, 2))
    ]


# Spread


def test_pretraining_does_not_depend_on_how_it_is_spread(air, tmp_path):
    for number, (count, flags) in enumerate(spreads(16)):
        flags = (*flags, "--epochs", 4, "--clip_grad", 1.0, "--val_fraction", 0.3)
        [main, *others] = finish(tmp_path, count, *pretrain(air, tmp_path / f"{number}", *flags))
        assert not any(rank.out + rank.err for rank in others)  # one of them speaks
        assert main.err == ""
        assert_same_losses(tmp_path / "0", tmp_path / f"{number}", 12)
        for ours, theirs in zip(log_of(tmp_path / "0"), log_of(tmp_path / f"{number}"), strict=True):
            assert theirs["val_samples"] == ours["val_samples"] == 14
            for key in ("train_loss", "val_loss", "val_mean_loss", "lr"):
                assert theirs[key] == pytest.approx(ours[key], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "flags"),
    [
        ("segmentation", ("--class_weights", "median_frequency")),
        ("classification", ("--mixup", 0.8, "--cutmix", 1)),
    ],
)
def test_fine_tuning_does_not_depend_on_how_it_is_spread(scenes, labelled, tmp_path, task, flags):
    """Class weights, augmentation, mixing and drop path included; every sample of the evaluation counts once."""
    data = scenes if task == "segmentation" else labelled
    for number, (count, spread) in enumerate(spreads(8)):
        output = tmp_path / f"{number}"
        finish(tmp_path, count, *finetune(data, output, *spread, *flags, "--epochs", 3, task=task))
        assert_same_losses(tmp_path / "0", output, 12)
        ours, theirs = (
            json.loads((tmp_path / name / "results.json").read_text()) for name in ("0", f"{number}")
        )
        assert (theirs["test"], theirs["groups"]) == (ours["test"], ours["groups"])
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-5)
        assert [line["val_mean_iou"] for line in log_of(output)] == [
            line["val_mean_iou"] for line in log_of(tmp_path / "0")
        ]

    evaluated = finetune(
        data,
        tmp_path / "evaluated",
        "--eval",
        "--resume",
        tmp_path / "0" / checkpoint.BEST,
        "--batch_size",
        3,
        task=task,
    )
    finish(tmp_path, 3, *evaluated)  # 12 samples in shares of 3, 3 and 3, then 2, 1 and none
    again, ours = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("evaluated", "0"))
    assert (again["test"], again["groups"]) == (ours["test"], ours["groups"])


@pytest.mark.slow
def test_a_model_that_is_divided_trains_as_one_that_is_copied(air, scenes, through, tmp_path):
    """And its checkpoints are whole: a run of copies goes on from them."""
    flags = ("--batch_size", 8, "--val_fraction", 0.3)
    copied = through(2, *flags, "--epochs", 4)
    exported = ("--shard", "--export", tmp_path / "mae.safetensors")
    finish(tmp_path, 2, *pretrain(air, tmp_path / "divided", *flags, "--epochs", 4, *exported))
    assert_same_losses(copied, tmp_path / "divided", 12, rel=1e-4)
    # Attention's key biases have gradients of rounding errors alone: no loss depends on them.
    ours, theirs = (
        {
            name: value
            for name, value in checkpoint.load(folder / checkpoint.LAST)["model"].items()
            if not name.endswith("qkv.bias")
        }
        for folder in (copied, tmp_path / "divided")
    )
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    assert (tmp_path / "mae.safetensors").exists()

    last = ("--resume", tmp_path / "divided" / checkpoint.LAST, "--epochs", 5)
    finish(tmp_path, 1, *pretrain(air, tmp_path / "on", "--batch_size", 16, "--val_fraction", 0.3, *last))
    finish(tmp_path, 2, *pretrain(air, tmp_path / "divided", *flags, *last, "--shard"))
    ours, theirs = (log_of(tmp_path / name)[-1]["train_loss"] for name in ("on", "divided"))
    assert theirs == pytest.approx(ours, rel=1e-4)

    for name, more in (("a", ()), ("b", ("--shard",))):
        finish(tmp_path, 2, *finetune(scenes, tmp_path / name, "--batch_size", 4, "--epochs", 2, *more))
    assert_same_losses(tmp_path / "a", tmp_path / "b", 8, rel=1e-4)


# Going on


def stopped(ranks, output, step, number=signal.SIGTERM, who=0):
    """Have a run stopped after `step` or later by a signal to one of its processes; the step that it has
    saved last.
    """
    path, deadline = output / checkpoint.LAST, time.monotonic() + 60
    while time.monotonic() < deadline and all(rank.status is None for rank in ranks):
        if step_of(path) >= step:
            break
        time.sleep(0.005)
    os.kill(ranks[who].pid, number)
    assert wait(ranks) == [75] * len(ranks), ranks[who].err
    told = [line for rank in ranks for line in rank.err.splitlines()]
    assert len(told) == 1, told  # one speaks for all
    step = checkpoint.load(path)["step"]
    rank = "" if len(ranks) == 1 else r"rank \d of \d: "
    saved = re.escape(
        f"{number.name} after step {step}; saved in {output}, the same command goes on from there"
    )
    assert re.fullmatch(f"stopped: {rank}{saved}", told[0]), told
    return step


@pytest.mark.slow
def test_a_run_goes_on_with_any_number_of_processes(air, through, tmp_path):
    """Told to stop in the middle of an epoch with 2 processes, then with 4 that accumulate; finished by one."""
    whole, out = through(1, *LONG), tmp_path / "out"
    flags = (*LONG, "--save_every_steps", 1)
    first = start(tmp_path, 2, *pretrain(air, out, *flags, "--batch_size", 4))
    step = stopped(first, out, 10, who=1)
    second = start(tmp_path, 4, *pretrain(air, out, *flags, "--batch_size", 1, "--accum_iter", 2))
    assert step < stopped(second, out, step + 3, signal.SIGUSR1) < 140
    finish(tmp_path, 1, *pretrain(air, out, *flags))
    assert_same_losses(whole, out, 140)
    assert [line["epoch"] for line in log_of(out)] == list(range(20))


@pytest.mark.slow
@pytest.mark.parametrize(("count", "number"), [(1, signal.SIGUSR1), (4, signal.SIGTERM)])
def test_a_run_that_was_stopped_ends_the_same_to_the_bit(air, through, tmp_path, count, number):
    flags = ("--epochs", 7, "--val_fraction", 0, "--batch_size", 4 // count, "--accum_iter", 2)
    whole, out = through(count, *flags), tmp_path / "out"
    flags = (*flags, "--save_every_steps", 1)
    stopped(start(tmp_path, count, *pretrain(air, out, *flags)), out, 10, number)
    finish(tmp_path, count, *pretrain(air, out, *flags))
    assert_same_run(*(checkpoint.load(folder / checkpoint.LAST) for folder in (whole, out)))
    assert losses(out) == losses(whole)


@pytest.mark.slow
def test_fine_tuning_that_was_stopped_ends_the_same_to_the_bit(scenes, tmp_path):
    flags = ("--epochs", 6, "--save_every_steps", 1, "--batch_size", 2)
    finish(tmp_path, 2, *finetune(scenes, tmp_path / "through", *flags))
    out = tmp_path / "out"
    stopped(start(tmp_path, 2, *finetune(scenes, out, *flags)), out, 13)
    [main, _] = finish(tmp_path, 2, *finetune(scenes, out, *flags))
    assert "resumed from" in main.out
    for name in (checkpoint.LAST, checkpoint.BEST):
        assert_same_run(*(checkpoint.load(folder / name) for folder in (tmp_path / "through", out)))
    assert losses(out) == losses(tmp_path / "through")
    results = [json.loads((folder / "results.json").read_text()) for folder in (tmp_path / "through", out)]
    assert results[0]["test"] == results[1]["test"]


@pytest.mark.slow
def test_fewer_processes_accumulate_to_the_same_step_and_other_flags_are_named(air, through, tmp_path):
    flags = ("--val_fraction", 0, "--batch_size", 4)
    for name in ("through", "out"):
        shutil.copytree(through(2, *flags, "--epochs", 2), tmp_path / name)
    [one] = start(tmp_path, 1, *pretrain(air, tmp_path / "out", *flags, "--epochs", 2, "--batch_size", 5))
    assert wait([one]) == [2]
    assert "--batch_size x --accum_iter x processes 8 there, 5 here" in one.err

    last = ("--epochs", 3, "--resume", tmp_path / "out" / checkpoint.LAST)
    finish(tmp_path, 2, *pretrain(air, tmp_path / "through", *flags, *last))
    [one] = finish(tmp_path, 1, *pretrain(air, tmp_path / "out", *flags, *last))
    assert "1 processes: --accum_iter 2 keeps the 8 samples of a step" in one.out
    assert_same_losses(tmp_path / "through", tmp_path / "out", 21)


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_as_one_left_alone(air, through, tmp_path):
    """20 times, some of them within a save: the same weights to the last bit, and a log that has each step
    once.
    """
    flags = ("--epochs", 30, "--val_fraction", 0.3, "--batch_size", 4)
    whole, out, kills, torn = through(2, *flags), tmp_path / "out", 0, 0
    flags = (*flags, "--save_every_steps", 1)
    moments = random.Random(0)
    while kills < 20:
        ranks = start(tmp_path, 2, *pretrain(air, out, *flags))
        if kills % 2:  # within a save
            deadline, victim = time.monotonic() + 30, 0
            own = f".checkpoint*.{ranks[0].pid}.tmp"
            while not list(out.glob(own)) and ranks[0].status is None and time.monotonic() < deadline:
                pass
        else:
            victim, before = moments.randrange(2), step_of(out / checkpoint.LAST)
            deadline = time.monotonic() + 30
            while step_of(out / checkpoint.LAST) == before and time.monotonic() < deadline:
                time.sleep(0.002)
            time.sleep(moments.uniform(0, 0.2))
        os.kill(ranks[victim].pid, signal.SIGKILL)
        ranks[1 - victim].process.join(0.5)  # the other notices, unless it was done; a launcher helps
        if ranks[1 - victim].status is None:
            os.kill(ranks[1 - victim].pid, signal.SIGTERM)
        statuses = wait(ranks)
        assert statuses[victim] == -signal.SIGKILL
        assert statuses[1 - victim] in (0, 1, 75, 130, -signal.SIGTERM), ranks[1 - victim].err
        kills += 1
        torn += bool(list(out.glob(".checkpoint*.tmp")))
    assert torn >= 3
    finish(tmp_path, 2, *pretrain(air, out, *flags))
    assert_same_run(*(checkpoint.load(folder / checkpoint.LAST) for folder in (whole, out)))
    assert losses(out) == losses(whole)
    assert len(losses(out)) == len(log_of(out)) * 6 == 180
    assert not list(out.glob(".*.tmp"))


# Disks


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a file system is not permitted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.slow
def test_training_goes_on_while_saves_fail_and_says_so(air, through, tmp_path, small_disk):
    """A disk that fills up: each failing save is said, the last one ends the run with status 2."""
    out = small_disk / "out"
    flags = (*LONG, "--log_dir", tmp_path / "events", "--save_every_steps", 2)
    [rank] = start(tmp_path, 1, *pretrain(air, out, *flags))
    deadline = time.monotonic() + 60
    while step_of(out / checkpoint.LAST) < 10 and time.monotonic() < deadline:
        time.sleep(0.005)
    with open(small_disk / "ballast", "wb") as file:
        subprocess.run(["cat", "/dev/zero"], stdout=file, check=False, stderr=subprocess.DEVNULL)
    assert wait([rank]) == [2]
    warnings = [
        line
        for line in rank.err.splitlines()
        if line.startswith("warning: ") and "could not be written" in line
    ]
    assert len(warnings) > 5, rank.err
    assert "training goes on, the newest whole one is of step" in rank.err
    [error] = [line for line in rank.err.splitlines() if line.startswith("error: ")]
    assert "could not be written" in error
    assert "Traceback" not in rank.err

    (small_disk / "ballast").unlink()
    [rank] = finish(tmp_path, 1, *pretrain(air, out, *flags))
    assert "resumed from" in rank.out
    assert_same_run(*(checkpoint.load(folder / checkpoint.LAST) for folder in (through(1, *LONG), out)))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["cut", "flipped"])
def test_a_damaged_newest_checkpoint_is_passed_over(air, through, tmp_path, how):
    flags = ("--epochs", 3, "--val_fraction", 0, "--batch_size", 8, "--save_every_steps", 2)
    whole = through(1, *flags)
    shutil.copytree(whole, tmp_path / "out")
    newest = tmp_path / "out" / checkpoint.LAST
    (tmp_path / "out" / "checkpoint-2.pth").unlink()  # the same file under another name
    content = bytearray(newest.read_bytes())
    if how == "cut":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 3] ^= 1
    newest.write_bytes(content)
    [rank] = finish(tmp_path, 1, *pretrain(air, tmp_path / "out", *flags))
    assert f"warning: {newest}" in rank.err
    assert "steps" in rank.out.split("resumed from")[1]
    assert_same_run(checkpoint.load(whole / checkpoint.LAST), checkpoint.load(newest))


# Failures


@pytest.mark.slow
def test_data_that_are_cut_while_training_are_named_and_all_processes_end(air, tmp_path):
    data = shutil.copytree(air, tmp_path / "air")
    ranks = start(
        tmp_path,
        2,
        *pretrain(
            data,
            tmp_path / "out",
            "--epochs",
            10000,
            "--val_fraction",
            0,
            "--batch_size",
            4,
            "--save_every_steps",
            5,
        ),
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "out" / checkpoint.LAST).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.truncate(data / "r1.sigmf-data", 4000)
    statuses = wait(ranks)
    assert 2 in statuses
    assert 0 not in statuses
    [line] = [line for rank in ranks for line in rank.err.splitlines()]
    assert line.startswith("error: rank ")
    assert "r1.sigmf-" in line
    assert checkpoint.load(tmp_path / "out" / checkpoint.LAST)["step"] > 0
