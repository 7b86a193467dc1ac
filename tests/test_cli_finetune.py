"""main_finetune.py as a user meets it: tasks, modes, kinds of data, exact resuming, honest figures, mistakes
in a line.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from support import (
    BAND,
    CLASSES,
    NANO,
    amplitudes,
    call,
    columns_of,
    log_of,
    results,
    write_ci16,
    write_fork,
    write_frame,
    write_frames,
    write_mat,
    write_npz_of_days,
    write_ntu_fi,
    write_radioml,
    write_resaved,
    write_scenes,
    write_wavesfm,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import engine_evaluate
import engine_finetune
import engine_reconstruct
import main_finetune
import main_pretrain
import models_mae
import models_vit
from data.spectrogram_set import SpectrogramSet
from util import checkpoint, convert
from util.metrics import Confusion
from util.pretrained import read_weights
from util.saver import Saver

QUICK = (
    "--model",
    "vit_nano",
    "--epochs",
    1,
    "--warmup_epochs",
    0,
    "--batch_size",
    4,
    "--blr",
    0.1,
    "--num_workers",
    0,
    "--device",
    "cpu",
    "--amp",
    "off",
    "--val_fraction",
    0.2,
)
SIZED = ("--input_size", 16)
WINDOWS = (*SIZED, "--n_fft", 64, "--window_ms", 10)


@pytest.fixture(autouse=True)
def quick(monkeypatch, request):
    """A model of which a step takes milliseconds, and pictures without anything in them where none looks at
    them.
    """
    monkeypatch.setitem(models_mae.PRESETS, "mae_vit_nano", NANO)
    monkeypatch.setitem(models_vit.PRESETS, "vit_nano", NANO)
    if "pictures" not in request.function.__name__:
        for name in ("confusion_figure", "prediction_sheet"):
            monkeypatch.setattr(engine_evaluate, name, lambda *_: Figure(figsize=(1, 1)))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes") / "set")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("labelled") / "set", 30, ("labels",))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A checkpoint of main_pretrain.py."""
    folder = tmp_path_factory.mktemp("pretrained")
    for number in range(2):
        write_ci16(folder / "air", f"r{number}", 0.054, seed=number)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models_mae.PRESETS, "mae_vit_nano", NANO)
        patch.setattr(engine_reconstruct, "reconstruction_figure", lambda *_: Figure(figsize=(1, 1)))
        flags = ("--model", "mae_vit_nano", *WINDOWS, *QUICK[2:10], "--device", "cpu", "--val_fraction", 0)
        assert call(main_pretrain, "--data_path", folder / "air", "--output_dir", folder / "out", *flags) == 0
    return folder / "out" / checkpoint.LAST


def finetune(data, output, *flags, task="segmentation"):
    return call(main_finetune, "--task", task, "--data_path", data, "--output_dir", output, *QUICK, *flags)


def parts(folder):
    return json.loads((folder / "split.json").read_text())["parts"]


def refused(capsys, says, data, output, *flags, **kwargs):
    """Status 2, one line with these words, and nothing left behind."""
    assert finetune(data, output, *flags, **kwargs) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    for words in says.split("|"):
        assert words in line
    assert not output.exists()


def leaves(value, name=""):
    """(name, leaf) of a nested state."""
    if isinstance(value, dict | list | tuple):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(part, f"{name}.{key}")
    else:
        yield name, value


def assert_same(
    first, second, keys=("model", "optimizer", "scaler", "rng", "step", "epoch", "best", "best_epoch")
):
    for key in keys:
        ours, theirs = dict(leaves(first[key])), dict(leaves(second[key]))
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            same = (
                torch.equal(value, theirs[name]) if isinstance(value, torch.Tensor) else value == theirs[name]
            )
            assert same, f"{key}{name}"


# What trains


@pytest.fixture
def before(monkeypatch):
    """The model's tensors before the first step, once there was one."""
    found = {}
    real = engine_finetune.make_optimizer

    def spied(model, *rest):
        found.update({name: value.clone() for name, value in model.state_dict().items()})
        return real(model, *rest)

    monkeypatch.setattr(engine_finetune, "make_optimizer", spied)
    return found


HEADS = {
    "segmentation": ("decoder_embed.", "decoder_blocks.", "decoder_norm.", "head."),
    "classification": ("fc_norm.", "head."),
}
ENCODER = ("cls_token", "patch_embed.", "blocks.", "norm.")
TRAINED = {"full": ENCODER, "head": (), "probe": (), "last:1": ("blocks.1.", "norm.")}


@pytest.mark.parametrize("mode", TRAINED)
@pytest.mark.parametrize("task", HEADS)
def test_a_mode_moves_what_it_says_and_prints_it(
    scenes, labelled, pretrained, before, tmp_path, capsys, task, mode
):
    data = scenes if task == "segmentation" else labelled
    assert finetune(data, tmp_path / "out", "--finetune", pretrained, "--train", mode, task=task) == 0

    after = checkpoint.load(tmp_path / "out" / checkpoint.LAST)["model"]
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    prefixes = TRAINED[mode] + (("head.",) if mode == "probe" else HEADS[task])
    assert moved == {name for name in after if name.startswith(prefixes)}
    encoder = torch.load(pretrained, weights_only=True)["model"]
    assert all(torch.equal(before[name], encoder[name]) for name in before if name.startswith("blocks."))
    printed = capsys.readouterr().out
    assert f"--train {mode}: {len(moved)} tensors train" in printed
    [shown] = [
        line.rpartition("parameters: ")[2] for line in printed.splitlines() if line.startswith("--train")
    ]
    modules = {name.split(".")[0] for name in moved}
    assert {name.split(".")[0].strip() for name in shown.split(",")} == modules


@pytest.mark.parametrize(("mode", "flags"), [("head", ()), ("probe", ("--head", "linear"))])
def test_the_random_control_keeps_its_random_encoder(scenes, before, tmp_path, capsys, mode, flags):
    assert finetune(scenes, tmp_path / "out", "--finetune", "random", "--train", mode, *flags) == 0
    after = checkpoint.load(tmp_path / "out" / checkpoint.LAST)["model"]
    for name in after:
        if name.startswith(ENCODER):
            assert torch.equal(after[name], before[name]), name
    assert not torch.equal(after["head.weight"], before["head.weight"])
    assert "loaded" not in capsys.readouterr().out


def test_from_scratch_trains_all_and_a_seed_makes_the_run(scenes, tmp_path, capsys):
    for name, seed in (("a", 0), ("again", 0), ("b", 1)):
        assert finetune(scenes, tmp_path / name, "--seed", seed) == 0
    first, again, other = (checkpoint.load(tmp_path / name / checkpoint.LAST) for name in ("a", "again", "b"))
    assert_same(first, again)
    assert not torch.equal(first["model"]["head.weight"], other["model"]["head.weight"])
    assert first["args"]["layer_decay"] == 1
    assert {group["lr_scale"] for group in first["optimizer"]["param_groups"]} == {1}
    assert "loaded" not in capsys.readouterr().out


def test_layers_of_pretrained_encoders_learn_at_rates_of_their_own(scenes, pretrained, tmp_path):
    """0.75 to the power of the layers above; embeddings, two blocks, head."""
    assert finetune(scenes, tmp_path / "out", "--finetune", pretrained) == 0
    groups = checkpoint.load(tmp_path / "out" / checkpoint.LAST)["optimizer"]["param_groups"]
    assert sorted({group["lr_scale"] for group in groups}) == pytest.approx([0.75**3, 0.75**2, 0.75, 1])


def test_what_was_loaded_left_and_new_is_printed(scenes, pretrained, tmp_path, capsys):
    assert finetune(scenes, tmp_path / "out", "--finetune", pretrained) == 0
    printed = capsys.readouterr().out.splitlines()
    lines = {
        line.split()[0]: line
        for line in printed
        if line.split() and line.split()[0] in ("loaded", "left", "new")
    }
    assert "blocks.0..1.*" in lines["loaded"]
    assert "decoder_blocks.0..1.*" in lines["loaded"]
    assert "decoder_blocks.2.*" in lines["left"]
    assert "mask_token" in lines["left"]
    assert "head.*" in lines["new"]


def test_a_checkpoint_of_maes_naming_in_colour_loads(scenes, tmp_path, capsys):
    model = models_mae.create_model("mae_vit_nano", img_size=32, in_chans=3)
    torch.save({"model": model.state_dict()}, tmp_path / "mae.pth")
    assert finetune(scenes, tmp_path / "out", "--finetune", tmp_path / "mae.pth", "--train", "head") == 0
    printed = capsys.readouterr().out
    assert "patch_embed.proj.weight 3 -> 1 channels" in printed
    assert "pos_embed 8 x 8 -> 4 x 4" in printed
    weight = checkpoint.load(tmp_path / "out" / checkpoint.LAST)["model"]["patch_embed.proj.weight"]
    torch.testing.assert_close(weight, model.patch_embed.proj.weight.detach().sum(1, keepdim=True))


# Figures


def test_figures_are_those_of_the_kept_model_with_each_sample_counted_once(scenes, tmp_path):
    """The test part is 4 samples in batches of 3: figures worked out one by one, by their definitions."""
    assert finetune(scenes, tmp_path / "out", "--batch_size", 3, "--epochs", 3) == 0
    found = results(tmp_path / "out")["test"]

    source = SpectrogramSet(scenes)
    names = parts(tmp_path / "out")["test"]
    model = models_vit.create_model("vit_nano", "segmentation", 3, (16, 16)).eval()
    model.load_state_dict(checkpoint.load(tmp_path / "out" / checkpoint.BEST)["model"])
    truth, called = [], []
    for index in range(len(source)):
        if source.metadata[index]["name"] in names:
            image = source.spectrograms[index].astype(np.float64)
            image = (image - image.mean()) / image.std()
            with torch.no_grad():
                called.append(model(torch.from_numpy(image[None]).float()).argmax(1)[0].numpy().ravel())
            truth.append(source.masks[index].ravel())
    truth, called = np.concatenate(truth), np.concatenate(called)
    assert found["samples"] == len(truth) == 4 * 256
    present = np.unique(truth)
    recall = {k: (called[truth == k] == k).mean() for k in present}
    iou = [((called == k) & (truth == k)).sum() / ((called == k) | (truth == k)).sum() for k in present]
    assert found["pixel_accuracy"] == pytest.approx((called == truth).mean())
    assert found["mean_accuracy"] == pytest.approx(np.mean(list(recall.values())))
    assert found["mean_iou"] == pytest.approx(np.mean(iou))
    assert found["mean_accuracy"] != pytest.approx(found["pixel_accuracy"])
    for k, value in recall.items():
        assert found["classes"][CLASSES[k]]["accuracy"] == pytest.approx(value)


def test_the_test_part_is_looked_at_once_with_the_model_that_validation_chose(scenes, tmp_path, monkeypatch):
    seen, real = [], engine_finetune.evaluate
    worth = iter((0.5, 0.9, 0.7, 0.2))  # of four epochs

    def spied(model, batches, *rest):
        measured = real(model, batches, *rest)
        names = [batches.dataset.describe(0, number)["name"] for number in range(len(batches.dataset))]
        seen.append((names, {key: value.clone() for key, value in model.state_dict().items()}))
        if len(seen) < 5:
            measured["results"]["mean_iou"] = next(worth)
        return measured

    monkeypatch.setattr(engine_finetune, "evaluate", spied)
    assert finetune(scenes, tmp_path / "out", "--epochs", 4) == 0

    split = parts(tmp_path / "out")
    assert [names for names, _ in seen] == [split["val"]] * 4 + [split["test"]]
    assert results(tmp_path / "out")["best_epoch"] == 1
    for key, value in seen[-1][1].items():
        assert torch.equal(value, seen[1][1][key])
    assert not torch.equal(seen[1][1]["head.weight"], seen[3][1]["head.weight"])
    assert not set(split["test"]) & {*split["val"], *split["train"]}


def test_a_class_without_samples_is_absent(tmp_path, capsys):
    data = write_scenes(tmp_path / "set", used=2)
    assert finetune(data, tmp_path / "out", "--class_weights", "median_frequency") == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("LTE ")]
    assert "absent" in line
    assert "0.00" not in line
    test = results(tmp_path / "out")["test"]
    assert test["classes"]["LTE"]["accuracy"] is None
    present = [test["classes"][name]["accuracy"] for name in ("Noise", "NR")]
    assert test["mean_accuracy"] == pytest.approx(sum(present) / 2)


def test_figures_of_scenes_are_given_by_snr_and_technology(scenes, tmp_path, capsys):
    assert finetune(scenes, tmp_path / "out", "--test_fraction", 0.6) == 0
    groups = results(tmp_path / "out")["groups"]
    assert list(groups["SNR of the weakest carrier"]) == ["5 to 10 dB", "15 to 20 dB", "no carrier"]
    assert set(groups["technology"]) == {"NR", "LTE", "no carrier"}
    assert sum(group["samples"] for group in groups["technology"].values()) == 12 * 256
    assert "by technology" in capsys.readouterr().out


def test_learning_works(tmp_path):
    """Bands of three levels are told apart; validated every ten epochs."""
    data = write_scenes(tmp_path / "set", 60)
    assert (
        finetune(
            data, tmp_path / "out", "--epochs", 40, "--warmup_epochs", 2, "--blr", 0.5, "--val_every", 10
        )
        == 0
    )
    assert results(tmp_path / "out")["test"]["mean_accuracy"] > 0.8
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.txt").read_text().splitlines()]
    assert [line["epoch"] for line in lines if "val_loss" in line] == [9, 19, 29, 39]


def test_a_run_leaves_figures_pictures_and_curves(scenes, tmp_path, capsys):
    assert finetune(scenes, tmp_path / "out", "--epochs", 2, "--log_dir", tmp_path / "events") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "checkpoint-best.pth",
        "checkpoint-last.pth",
        "checkpoint-previous.pth",
        "confusion.png",
        "log.txt",
        "predictions.png",
        "results.json",
        "split.json",
    ]
    printed = capsys.readouterr().out
    lines = log_of(tmp_path / "out")
    assert [line["epoch"] for line in lines] == [0, 1]
    assert {"train_loss", "val_loss", "val_mean_iou", "lr", "seconds"} <= set(lines[0])
    for name in ("confusion", "predictions"):
        with Image.open(tmp_path / "out" / f"{name}.png") as picture:
            assert len(picture.convert("RGB").getcolors(2**24)) > 50
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert {"train/loss", "train/lr", "val/loss", "val/mean_iou"} <= set(events.Tags()["scalars"])
    assert set(events.Tags()["images"]) == {"confusion", "predictions"}
    found = results(tmp_path / "out")
    assert (found["args"]["seed"], found["args"]["model"]) == (0, "vit_nano")
    assert found["seconds"] >= found["seconds_training"] >= 0
    for words in ("pixel accuracy", "mean", "IoU", "test part, 4 samples", "validation: loss"):
        assert words in printed


# Resuming and evaluating


def stop_after(monkeypatch, epochs):
    """Have a run die when the next epoch's checkpoint is due."""
    real = Saver.save

    def dying(self, state, *rest, **kwargs):
        if state["epoch"] == epochs:
            raise KeyboardInterrupt
        real(self, state, *rest, **kwargs)

    monkeypatch.setattr(Saver, "save", dying)
    return lambda: monkeypatch.setattr(Saver, "save", real)


@pytest.mark.parametrize(
    ("task", "flags"),
    [
        ("segmentation", ("--accum_iter", 2, "--class_weights", "median_frequency")),
        ("classification", ("--mixup", 0.8, "--cutmix", 1, "--batch_size", 5)),
    ],
)
def test_a_resumed_run_ends_as_one_that_was_never_stopped(
    scenes, labelled, tmp_path, monkeypatch, task, flags
):
    data = scenes if task == "segmentation" else labelled
    flags = (*flags, "--drop_path", 0.4, "--epochs", 4)
    assert finetune(data, tmp_path / "whole", *flags, task=task) == 0
    go_on = stop_after(monkeypatch, 2)
    assert finetune(data, tmp_path / "stopped", *flags, task=task) == 130
    go_on()
    torch.manual_seed(99)
    np.random.seed(99)
    last = tmp_path / "stopped" / checkpoint.LAST
    assert checkpoint.load(last)["epoch"] == 1
    assert finetune(data, tmp_path / "stopped", *flags, "--resume", last, task=task) == 0

    for name in (checkpoint.LAST, checkpoint.BEST):
        assert_same(*(checkpoint.load(tmp_path / folder / name) for folder in ("whole", "stopped")))
    whole, stopped = results(tmp_path / "whole"), results(tmp_path / "stopped")
    assert whole["test"] == stopped["test"]
    assert parts(tmp_path / "whole") == parts(tmp_path / "stopped")
    logs = [log_of(tmp_path / name) for name in ("whole", "stopped")]
    assert [[line["epoch"] for line in log] for log in logs] == [[0, 1, 2, 3]] * 2
    assert [line["train_loss"] for line in logs[0]] == [line["train_loss"] for line in logs[1]]


@pytest.fixture
def worse_and_worse(monkeypatch):
    """Runs whose first epoch is their best."""
    real, count = engine_finetune.evaluate, []

    def measured(*rest):
        count.append(1)
        found = real(*rest)
        found["results"]["mean_iou"] = 1 / (1 + len(count))
        return found

    monkeypatch.setattr(engine_finetune, "evaluate", measured)


def test_the_best_epoch_so_far_goes_along_to_another_folder(scenes, tmp_path, capsys, worse_and_worse):
    assert finetune(scenes, tmp_path / "a", "--epochs", 2) == 0
    resume = ("--epochs", 3, "--resume", tmp_path / "a" / checkpoint.LAST)
    assert finetune(scenes, tmp_path / "b", *resume) == 0
    first, best = (checkpoint.load(tmp_path / name / checkpoint.BEST) for name in "ab")
    assert_same(first, best)
    assert (best["epoch"], results(tmp_path / "b")["best_epoch"]) == (0, 0)
    assert results(tmp_path / "b")["test"]["confusion"] == results(tmp_path / "a")["test"]["confusion"]
    assert "other flags: --epochs 2 there, 3 here" in capsys.readouterr().err

    (tmp_path / "a" / checkpoint.BEST).unlink()
    assert finetune(scenes, tmp_path / "c", *resume) == 2
    assert "checkpoint-best.pth: expected a whole checkpoint; found no such file" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_what_was_stopped_between_its_two_checkpoints_keeps_the_best(scenes, tmp_path):
    assert finetune(scenes, tmp_path / "out") == 0
    (tmp_path / "out" / checkpoint.BEST).unlink()
    assert finetune(scenes, tmp_path / "out", "--resume", tmp_path / "out" / checkpoint.LAST) == 0
    assert_same(*(checkpoint.load(tmp_path / "out" / name) for name in (checkpoint.BEST, checkpoint.LAST)))


@pytest.fixture(scope="module")
def run(scenes, tmp_path_factory):
    """A finished run of two epochs."""
    folder = tmp_path_factory.mktemp("run") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models_vit.PRESETS, "vit_nano", NANO)
        for name in ("confusion_figure", "prediction_sheet"):
            patch.setattr(engine_evaluate, name, lambda *_: Figure(figsize=(1, 1)))
        assert finetune(scenes, folder, "--epochs", 2) == 0
    return folder


def test_an_evaluation_gives_the_figures_of_the_run_and_does_nothing_else(
    scenes, run, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(engine_finetune, "train_one_epoch", pytest.fail)
    monkeypatch.setattr(engine_finetune, "train", pytest.fail)
    folder = shutil.copytree(run, tmp_path / "same")
    for output in (tmp_path / "other", folder):
        assert finetune(scenes, output, "--eval", "--resume", run / checkpoint.BEST) == 0
        for key in ("test", "loss", "groups", "best_epoch"):
            assert results(output)[key] == results(run)[key]
    names = {path.name for path in (tmp_path / "other").iterdir() if not path.name.startswith("events")}
    assert names == {"results.json", "confusion.png", "predictions.png"}
    for name in ("log.txt", "split.json", checkpoint.LAST, checkpoint.BEST):
        assert (folder / name).read_bytes() == (run / name).read_bytes()
    assert [line["epoch"] for line in log_of(folder)] == [0, 1]
    assert "tensors train" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--eval", "--seed", 1), "--seed: expected 0, as the run of|found 1"),
        (("--eval", "--test_fraction", 0.5), "--test_fraction: expected 0.2"),
        (("--eval", "--head", "linear"), "--head: expected decoder"),
        (("--eval", "--model", "vit_tiny_patch16"), "--model: expected vit_nano"),
        (("--train", "head"), "--train: expected full"),
        (("--layer_decay", 0.5), "--layer_decay: expected 1.0"),
        (("--weight_decay", 0.5), "--weight_decay: expected 0.05"),
        (("--label_fraction", 0.5), "--label_fraction: expected 1.0"),
        (("--seeds", 2), "--seeds: expected one run"),
    ],
)
def test_a_checkpoint_is_resumed_and_evaluated_as_what_it_is(scenes, run, tmp_path, capsys, flags, says):
    refused(capsys, says, scenes, tmp_path / "out", "--resume", run / checkpoint.LAST, *flags)


def test_checkpoints_of_something_else_are_refused(scenes, labelled, run, pretrained, tmp_path, capsys):
    refused(
        capsys, "main_finetune.py|another command", scenes, tmp_path / "out", "--eval", "--resume", pretrained
    )
    refused(
        capsys,
        "--task: expected segmentation",
        labelled,
        tmp_path / "out",
        "--eval",
        "--resume",
        run / checkpoint.BEST,
        task="classification",
    )
    other = write_scenes(tmp_path / "other", classes=["Noise", "LTE", "NR"])
    refused(
        capsys,
        "expected a model of the classes",
        other,
        tmp_path / "out",
        "--eval",
        "--resume",
        run / checkpoint.BEST,
    )
    fewer = write_scenes(tmp_path / "fewer", count=15)
    flags = ("--epochs", 2, "--resume", run / checkpoint.LAST)
    refused(
        capsys,
        "expected the samples of its run in the same parts; found others in",
        fewer,
        tmp_path / "out",
        *flags,
    )
    torn = tmp_path / "torn.pth"
    torn.write_bytes((run / checkpoint.BEST).read_bytes()[:-2000])
    refused(
        capsys,
        "torn.pth: expected a file of weights; found",
        scenes,
        tmp_path / "out",
        "--eval",
        "--resume",
        torn,
    )


def test_an_evaluation_uses_the_statistics_of_the_run(tmp_path):
    data = write_ntu_fi(tmp_path / "csi", count=3)
    assert finetune(data, tmp_path / "out", "--input_size", 16, task="sensing") == 0
    saved = checkpoint.load(tmp_path / "out" / checkpoint.BEST)["front_end"]
    assert saved["image_size"] == [16, 16]
    # Other levels now, so that statistics taken anew would be others.
    write_ntu_fi(data, ("train_amp",), count=3, level=90)
    assert (
        finetune(
            data, tmp_path / "eval", "--eval", "--resume", tmp_path / "out" / checkpoint.BEST, task="sensing"
        )
        == 0
    )
    assert results(tmp_path / "eval")["test"] == results(tmp_path / "out")["test"]


# Seeds, splits and labels


def test_seeds_have_folders_of_their_own_and_a_mean(scenes, tmp_path, capsys):
    assert (
        finetune(scenes, tmp_path / "out", "--seeds", 3, "--seed", 4, "--log_dir", tmp_path / "events") == 0
    )
    each = [results(tmp_path / "out" / f"seed-{seed}")["test"] for seed in (4, 5, 6)]
    found, printed = results(tmp_path / "out"), capsys.readouterr().out
    assert found["seeds"] == 3
    for key in ("pixel_accuracy", "mean_accuracy", "mean_iou"):
        values = [one[key] for one in each]
        assert found["test"][key]["mean"] == pytest.approx(np.mean(values))
        assert (found["test"][key]["least"], found["test"][key]["greatest"]) == (min(values), max(values))
        spread = f"{np.mean(values):.2%} ({min(values):.2%} .. {max(values):.2%}), 3 seeds"
        assert f"{key.replace('_', ' ')}: {spread}" in printed
    assert len({json.dumps(parts(tmp_path / "out" / f"seed-{seed}")) for seed in (4, 5, 6)}) == 3
    assert sorted(path.name for path in (tmp_path / "events").iterdir()) == ["seed-4", "seed-5", "seed-6"]

    assert finetune(scenes, tmp_path / "one", "--seed", 5) == 0
    assert results(tmp_path / "one")["test"] == each[1]


def test_a_split_is_given_back(scenes, run, tmp_path):
    assert finetune(scenes, tmp_path / "drawn", "--seed", 5) == 0
    assert parts(tmp_path / "drawn") != parts(run)
    assert finetune(scenes, tmp_path / "given", "--seed", 5, "--split", run / "split.json") == 0
    assert parts(tmp_path / "given") == parts(run)
    flags = ("--eval", "--resume", tmp_path / "given" / checkpoint.BEST, "--split", run / "split.json")
    assert finetune(scenes, tmp_path / "eval", *flags) == 0
    assert results(tmp_path / "eval")["test"] == results(tmp_path / "given")["test"]


def test_fewer_labels_are_among_more_and_nothing_else_changes(labelled, tmp_path):
    found = {}
    for share in (0.2, 0.5, 1):
        assert (
            finetune(labelled, tmp_path / str(share), "--label_fraction", share, task="classification") == 0
        )
        found[share] = parts(tmp_path / str(share))
    assert set(found[0.2]["train"]) < set(found[0.5]["train"]) < set(found[1]["train"])
    assert [len(found[share]["train"]) for share in found] == [3, 9, 18]
    assert len({json.dumps([one["val"], one["test"]]) for one in found.values()}) == 1
    assert finetune(labelled, tmp_path / "2", "--labels_per_class", 2, task="classification") == 0
    assert len(parts(tmp_path / "2")["train"]) == 6


# Kinds of data


def classes_of(folder, write):
    """`folder/{a,b}/` with five samples each."""
    for number, name in enumerate("ab"):
        (folder / name).mkdir(parents=True)
        for sample in range(5):
            write(folder / name, f"{name}{sample}", number, np.random.default_rng(10 * number + sample))
    return folder


def write_png(folder, name, number, rng):
    Image.fromarray((rng.random((20, 20)) * 100 + 100 * number).astype(np.uint8)).save(folder / f"{name}.png")


def named(folder):
    folder.mkdir()
    for number in range(10):
        write_png(folder, f"{'ab'[number % 2]}_{number}", number % 2, np.random.default_rng(number))
    return folder


def write_npy(folder, name, number, rng):
    np.save(folder / f"{name}.npy", rng.random((20, 20)) + number)


def write_recording(folder, name, number, rng):
    write_ci16(folder, name, 0.02, seed=number)


def annotated(folder):
    for number in range(5):
        write_ci16(folder, f"r{number}", 0.03, seed=number, annotations=[BAND])
    return folder


def three_sets(folder):
    for name, count in (("train", 8), ("val", 4), ("test", 5)):
        write_scenes(folder / name, count)
    return folder


def resaved_frames(folder):
    for number in range(6):
        labels = columns_of(-20e6, -5e6, 127, 20) + columns_of(5e6, 25e6, 255, 20)
        write_resaved(folder, number, np.random.default_rng(number).normal(-80, 5, (20, 20)), labels)
    return folder


DEEPLAB = ("--model", "deeplabv3_mobilenet_v3_large", "--lr", 0.02)
SCENES = (*SIZED, "--scenes", 6)
KINDS = {
    "scenes made": ("segmentation", lambda folder: "synthetic:classic", (*SCENES, "--train", "head"), 1),
    "scenes again": (
        "segmentation",
        lambda folder: "synthetic:classic",
        (*SCENES, "--label_fraction", 0.5),
        1,
    ),
    "three sets": ("segmentation", three_sets, ("--train", "probe", "--head", "linear"), 5),
    "annotations": ("segmentation", annotated, (*WINDOWS, "--classes", "Quiet,NR", "--train", "last:2"), 3),
    "frames": (
        "segmentation",
        lambda folder: write_frames(folder, 5),
        ("--protocol", "single_to_combined"),
        5,
    ),
    "frames, mixed": (
        "segmentation",
        lambda folder: write_frames(folder, 6),
        ("--protocol", "mixed", "--head_depth", 1),
        3,
    ),
    "frames saved again": ("segmentation", resaved_frames, ("--protocol", "combined", "--train", "head"), 1),
    "frames in parts": ("segmentation", write_fork, ("--train", "probe", "--head", "linear"), 3),
    "activities made": (
        "sensing",
        lambda folder: "synthetic",
        (*SIZED, "--scenes", 12, "--train", "probe"),
        6,
    ),
    "NTU-Fi": (
        "sensing",
        lambda folder: write_ntu_fi(folder, count=3),
        (*SIZED, "--cls_token", "--smoothing", 0),
        18,
    ),
    "npz": (
        "sensing",
        lambda folder: write_npz_of_days(folder.with_suffix(".npz")),
        (*SIZED, "--split_by", "day", "--test_groups", "D2", "--train", "last:1"),
        8,
    ),
    "pictures": (
        "classification",
        lambda folder: classes_of(folder, write_png),
        (*SIZED, "--train", "head"),
        2,
    ),
    "RadioML": (
        "classification",
        lambda folder: write_radioml(folder.with_suffix(".hdf5"), classes=3, samples=128),
        (*SIZED, "--n_fft", 32, "--split_by", "snr", "--test_groups", "18"),
        12,
    ),
    "cache of images": (
        "sensing",
        lambda folder: write_wavesfm(folder.with_suffix(".h5")),
        (*SIZED, "--train", "probe"),
        6,
    ),
    "cache of IQ": (
        "classification",
        lambda folder: write_wavesfm(folder.with_suffix(".h5"), "iq", (2, 2, 64)),
        SIZED,
        6,
    ),
    "named pictures": ("classification", named, (*SIZED, "--train", "head"), 2),
    "arrays": ("classification", lambda folder: classes_of(folder, write_npy), (*SIZED, "--cutmix", 1), 2),
    "recordings": (
        "classification",
        lambda folder: classes_of(folder, write_recording),
        (*WINDOWS, "--train", "probe"),
        4,
    ),
    "DeepLabV3": (
        "segmentation",
        lambda folder: write_scenes(folder, 11, size=64),
        (*DEEPLAB, "--batch_size", 3),
        2,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_trains_is_tested_and_evaluated_again(tmp_path, kind):
    task, write, flags, tested = KINDS[kind]
    data = write(tmp_path / "data")
    assert finetune(data, tmp_path / "out", *flags, task=task) == 0
    found = results(tmp_path / "out")
    classes = checkpoint.load(tmp_path / "out" / checkpoint.BEST)["classes"]
    assert list(found["test"]["classes"]) == classes
    cells = 1
    if task == "segmentation":
        cells = np.prod(checkpoint.load(tmp_path / "out" / checkpoint.BEST)["front_end"]["image_size"])
    assert found["test"]["samples"] == np.sum(found["test"]["confusion"]) == tested * cells
    assert len(parts(tmp_path / "out")["test"]) == tested
    share, other = ("pixel_accuracy", "accuracy")[:: 1 if task == "segmentation" else -1]
    assert found["test"][share] == pytest.approx(
        np.trace(found["test"]["confusion"]) / found["test"]["samples"]
    )
    lines = log_of(tmp_path / "out")
    assert other not in found["test"]
    assert all(f"val_{share}" in line and f"val_{other}" not in line for line in lines)

    # the front end and the image size are the checkpoint's
    again = ("--eval", "--resume", tmp_path / "out" / checkpoint.BEST)
    assert finetune(data, tmp_path / "eval", *without_front_end(flags), *again, task=task) == 0
    assert results(tmp_path / "eval")["test"] == found["test"]


def without_front_end(flags):
    places = [place for place, flag in enumerate(flags) if flag in WINDOWS[::2]]
    return [flag for place, flag in enumerate(flags) if place not in places and place - 1 not in places]


def test_masks_are_never_blended(tmp_path, monkeypatch):
    """Labels of 0 and 255 beside each other, three times smaller: no cell of 127's class."""
    for number in range(4):
        labels = np.zeros((48, 48), np.uint8)
        labels[:, number + 10 : number + 27] = 255
        write_frame(tmp_path / "frames", "LTE_NR", number, labels=labels)
    seen, real = set(), Confusion.update
    monkeypatch.setattr(
        Confusion,
        "update",
        lambda self, pred, target: (seen.update(target.unique().tolist()), real(self, pred, target)),
    )
    assert finetune(tmp_path / "frames", tmp_path / "out", "--protocol", "combined", *SIZED) == 0
    assert seen == {0, 2}


def test_the_order_of_the_file_system_does_not_matter(tmp_path, monkeypatch):
    data = classes_of(tmp_path / "data", write_npy)
    assert finetune(data, tmp_path / "a", *SIZED, task="classification") == 0
    walk, iterdir = os.walk, Path.iterdir
    monkeypatch.setattr(os, "walk", lambda *a, **k: ((f, n, files[::-1]) for f, n, files in walk(*a, **k)))
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(sorted(iterdir(self), reverse=True)))
    assert finetune(data, tmp_path / "b", *SIZED, task="classification") == 0
    assert parts(tmp_path / "a") == parts(tmp_path / "b")
    assert_same(*(checkpoint.load(tmp_path / name / checkpoint.LAST) for name in "ab"))


# Export


def test_the_model_that_was_tested_is_exported_and_trains_on(scenes, tmp_path, capsys):
    """With its header, the same bytes from the run as from its checkpoint; it starts another run with its
    front end.
    """
    model, path = tmp_path / "new" / "model.safetensors", tmp_path / "out" / checkpoint.BEST
    flags = ("--epochs", 3, "--no-flip", "--head_depth", 1)
    assert finetune(scenes, tmp_path / "out", *flags, "--export", model, "--licence", "CC0-1.0") == 0
    assert f"wrote {model}: segmentation weights" in capsys.readouterr().out
    best, found = checkpoint.load(path), read_weights(model)
    assert found.state_dict.keys() == best["model"].keys()
    assert all(torch.equal(value, found.state_dict[name]) for name, value in best["model"].items())
    assert (found.front_end, found.classes) == (best["front_end"], CLASSES)
    assert (found.holds, found.preset, found.data, found.licence) == (
        "segmentation",
        "vit_nano",
        "set",
        "CC0-1.0",
    )
    assert found.args == {
        "model": "vit_nano",
        "task": "segmentation",
        "head": "decoder",
        "head_depth": 1,
        "global_pool": True,
        "in_chans": 1,
        "norm_eps": 1e-6,
        "head_norm": False,
    }
    assert found.command.startswith(
        "python main_finetune.py --task segmentation --data_path set --val_fraction 0.2 "
    )
    for flag in ("--model vit_nano", "--head_depth 1", "--epochs 3", "--no-flip"):
        assert flag in found.command
    assert str(tmp_path).encode() not in model.read_bytes()

    again = tmp_path / "again.safetensors"
    evaluated = ("--eval", "--resume", path, "--export", again, "--licence", "CC0-1.0")
    assert finetune(scenes, tmp_path / "eval", *flags, *evaluated) == 0
    assert again.read_bytes() == model.read_bytes()
    assert finetune(scenes, tmp_path / "more", "--finetune", model, "--head_depth", 1) == 0
    assert "left 0\nnew 0" in capsys.readouterr().out
    assert checkpoint.load(tmp_path / "more" / checkpoint.LAST)["front_end"] == best["front_end"]


@pytest.mark.slow
def test_a_checkpoint_is_exported_for_onnx_and_as_an_encoder(labelled, tmp_path, capsys):
    assert finetune(labelled, tmp_path / "out", task="classification") == 0
    best = checkpoint.load(tmp_path / "out" / checkpoint.BEST)
    for name in ("model.onnx", "encoder.safetensors"):
        flags = ("--eval", "--resume", tmp_path / "out" / checkpoint.BEST, "--export", tmp_path / name)
        assert finetune(labelled, tmp_path / "eval", *flags, task="classification") == 0
    assert capsys.readouterr().err == ""
    words = {entry.key: entry.value for entry in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert (words["holds"], words["preset"], json.loads(words["classes"])) == (
        "classification",
        "vit_nano",
        CLASSES,
    )
    assert json.loads(words["front_end"]) == best["front_end"]
    model = models_vit.create_model("vit_nano", "classification", 3, (16, 16)).eval()
    model.load_state_dict(best["model"])
    images = torch.randn(5, 1, 16, 16)
    [found] = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, {"spectrogram": images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), model(images), atol=1e-4, rtol=0)
    encoder = read_weights(tmp_path / "encoder.safetensors")
    assert (encoder.holds, encoder.args) == (
        "encoder",
        {"model": "vit_nano", "in_chans": 1, "norm_eps": 1e-6},
    )
    assert encoder.state_dict.keys() == {name for name in best["model"] if not name.startswith("head.")}


def test_weights_of_transformers_start_a_run_and_the_run_says_so(scenes, tmp_path, capsys):
    state = models_mae.create_model("mae_vit_nano", img_size=16).state_dict()
    torch.save(convert.to_transformers(state), tmp_path / "pytorch_model.bin")
    assert (
        finetune(scenes, tmp_path / "out", "--finetune", tmp_path / "pytorch_model.bin", "--train", "head")
        == 0
    )
    assert "adapted 1: names of transformers -> MAE's" in capsys.readouterr().out.splitlines()
    trained = checkpoint.load(tmp_path / "out" / checkpoint.LAST)["model"]
    assert all(torch.equal(trained[name], value) for name, value in state.items() if name.startswith(ENCODER))


def test_an_export_that_cannot_be_leaves_nothing(scenes, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for path in ("file/model.onnx", "new/model.safetensors"):
        flags = ("--export", tmp_path / path, "--train", "last:3")
        says = "--export" if path.startswith("file") else "--train"
        refused(capsys, says, scenes, tmp_path / "out", *flags)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


# Mistakes


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--export", "model.pth"), "--export: expected a file named .safetensors or .onnx; found model.pth"),
        (("--export", "a.onnx", "--seeds", 2), "--export: expected one run, --seeds 1; found 2"),
        (
            ("--export", "encoder.safetensors", "--model", "deeplabv3_resnet50"),
            "encoder.safetensors: expected a Vision Trans",
        ),
        (("--eval",), "--eval: expected --resume"),
        (
            ("--eval", "--resume", "nowhere.pth"),
            "nowhere.pth: expected a file of weights; found no such file",
        ),
        (("--finetune", "nowhere.pth"), "nowhere.pth: expected a file of weights; found no such file"),
        (("--finetune", "random"), "--finetune random: expected --train head or probe; found full"),
        (("--train", "last:3"), "--train: expected full, head, probe or last:N, N from 1 to 2"),
        (("--train", "decoder"), "--train: expected full"),
        (("--model", "vit_none"), "--model: expected one of"),
        (("--model", "deeplabv3_resnet50", "--finetune", "x.pth"), "no --finetune"),
        (("--model", "deeplabv3_resnet50", "--train", "head"), "--train: expected full"),
        (("--model", "deeplabv3_resnet50", "--batch_size", 1), "--batch_size: expected at least 2"),
        (
            ("--model", "deeplabv3_resnet50", "--label_fraction", 0.01),
            "2 samples or more to train on; found 1",
        ),
        (("--epochs", 0), "--epochs: expected at least 1"),
        (("--lr", "nan"), "--lr: expected at least 0"),
        (("--layer_decay", 0), "--layer_decay: expected a factor above 0"),
        (("--layer_decay", 1.5), "--layer_decay: expected a factor"),
        (("--drop_path", 1), "--drop_path: expected a share"),
        (("--label_fraction", 0), "--label_fraction: expected a share"),
        (("--labels_per_class", 5), "--labels_per_class: expected 1 or more, of classification"),
        (("--mixup", 0.8), "--mixup, --cutmix: expected a task that classifies"),
        (("--clip_grad", 0), "--clip_grad: expected a positive number"),
        (("--val_every", 0), "--val_every: expected at least 1"),
        (("--seeds", 0), "--seeds: expected at least 1"),
        (("--seeds", 2, "--n_fft", 128), "expected a spectrogram set made with --n_fft 128; found 64"),
        (("--device", "cuda:99"), "--device: expected"),
    ],
)
def test_flags_that_cannot_be_are_said_in_one_line(scenes, tmp_path, capsys, flags, says):
    refused(capsys, says, scenes, tmp_path / "out", *flags)


@pytest.mark.parametrize("flags", [("--see", 2), ("--fine_tune", "x"), ("--head", "conv")])
def test_flags_that_are_none_are_refused(scenes, tmp_path, flags):
    assert finetune(scenes, tmp_path / "out", *flags) == 2
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_width_is_refused(scenes, tmp_path, capsys, monkeypatch):
    wide = NANO | {"embed_dim": 32}
    monkeypatch.setitem(models_mae.PRESETS, "mae_vit_wide", wide)
    monkeypatch.setitem(models_vit.PRESETS, "vit_wide", wide)
    torch.save(models_mae.create_model("mae_vit_wide", img_size=16).state_dict(), tmp_path / "wide.pth")
    says = "--model vit_nano: expected vit_wide|wide.pth"
    refused(capsys, says, scenes, tmp_path / "out", "--finetune", tmp_path / "wide.pth")


def test_a_front_end_other_than_that_of_the_weights_is_refused(pretrained, tmp_path, capsys):
    data = classes_of(tmp_path / "data", write_recording)
    assert finetune(data, tmp_path / "same", "--finetune", pretrained, task="classification") == 0
    ours, theirs = (
        checkpoint.load(path)["front_end"] for path in (tmp_path / "same" / checkpoint.LAST, pretrained)
    )
    assert ours == theirs
    for flags, says in (
        (("--n_fft", 32), "--n_fft: expected 64"),
        (("--window_ms", 5), "--window_ms: expected 10"),
    ):
        refused(
            capsys,
            f"{says}|which the weights were trained with",
            data,
            tmp_path / "out",
            "--finetune",
            pretrained,
            *flags,
            task="classification",
        )


def bad_class_folders(folder):
    for part in ("train", "test"):
        classes_of(folder / part, write_npy)
    (folder / "test" / "b").rename(folder / "test" / "c")


def bad_set(folder):
    write_scenes(folder, 5)
    masks = np.lib.format.open_memmap(folder / "masks.npy", "r+")
    masks[:] = 3
    masks.flush()


def bad_frames(folder, change):
    write_frames(folder, 4)
    change(folder)


def another_size(folder):
    write_frame(
        folder, "NR", 0, picture=np.zeros((16, 20, 3), np.uint8), labels=columns_of(-1e6, 1e6, 127, 16)
    )


def odd_label(folder):
    for number in range(4):
        write_frame(folder, "NR", number, labels=columns_of(-1e6, 1e6, 90, 16))


def cut(folder):
    for number in range(4):
        path = folder / "LTE_NR" / f"LTE_NR_frame_{number}.hdf"
        path.write_bytes(path.read_bytes()[:-60])


def no_amplitude(folder):
    write_ntu_fi(folder, count=2)
    write_mat(folder / "train_amp" / "box" / "box1.mat", amplitudes(), key="CSIphase")


def missing_label(folder):
    (folder / "NR_frame_1.hdf").unlink()


BAD = {
    "class folders that differ": (
        "classification",
        bad_class_folders,
        "test: expected the classes of train; found no folder b",
    ),
    "values outside of the classes": (
        "segmentation",
        bad_set,
        "masks.npy|expected class ids below 3; found 3 to 3",
    ),
    "a mask of another size": (
        "segmentation",
        lambda folder: bad_frames(folder, another_size),
        "NR_frame_0.hdf: expected labels of [16, 20]",
    ),
    "a label of no class": (
        "segmentation",
        lambda folder: bad_frames(folder, odd_label),
        "NR_frame_|expected the values|found 90",
    ),
    "a missing label file": (
        "segmentation",
        lambda folder: bad_frames(folder, missing_label),
        "NR_frame_1.hdf: expected the labels",
    ),
    "an HDF4 file that is cut": (
        "segmentation",
        lambda folder: bad_frames(folder, cut),
        "LTE_NR_frame_|.hdf: expected",
    ),
    "a .mat without its key": (
        "sensing",
        no_amplitude,
        "box1.mat: expected the variable CSIamp; found CSIphase",
    ),
    "labels out of range": (
        "sensing",
        lambda folder: write_wavesfm(folder, label=np.arange(24)),
        "labels from 0 to 5; found 0 to 23",
        ".h5",
    ),
    "an HDF5 file of something else": (
        "classification",
        lambda folder: write_radioml(folder, X=None),
        "data sets X and Y|found Y, Z",
        ".hdf5",
    ),
    "values that are not finite": (
        "classification",
        lambda folder: write_radioml(folder, classes=2, X=np.full((24, 1024, 2), np.nan)),
        "finite values in X; found NaN or infinity in row",
        ".hdf5",
    ),
    "an HDF5 file where masks are learnt": (
        "segmentation",
        lambda folder: write_radioml(folder, classes=2),
        "found HDF5: --task classification",
        ".hdf5",
    ),
    "recordings without labels": ("segmentation", write_ci16, "--classes: expected annotations labelled NR"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_data_is_said_in_one_line_and_leaves_nothing(tmp_path, capsys, what):
    task, write, says, *suffix = BAD[what]
    data = tmp_path / f"data{''.join(suffix)}"
    write(data)
    flags = (
        WINDOWS
        if what == "recordings without labels"
        else SIZED
        if what != "values outside of the classes"
        else ()
    )
    capsys.readouterr()
    refused(capsys, says, data, tmp_path / "out", *flags, "--batch_size", 64, task=task)
    assert list(tmp_path.iterdir()) == [data]
