"""Starting from weights: what the files say need not be said again, and the cost of a run is said before its
first step.
"""

import argparse

import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file
from support import BAND, NANO, call, log_of, results, write_ci16, write_npz_of_days, write_scenes

import engine_evaluate
import engine_reconstruct
import main_finetune
import main_pretrain
import models_mae
import models_vit
from util import checkpoint, cost, flops, progress
from util.flags import OF_MAE
from util.loading import load_pretrained
from util.pretrained import read_weights
from util.recipes import RECIPES

WINDOWS = ("--n_fft", 64, "--window_ms", 10, "--input_size", 16)
QUICK = (
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
RUN = ("--num_workers", 0, "--device", "cpu", "--amp", "off")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A model of which a step takes milliseconds, under the name of a preset, and no pictures."""
    for presets, prefix in ((models_mae.PRESETS, "mae_"), (models_vit.PRESETS, "")):
        monkeypatch.setitem(presets, f"{prefix}vit_nano", NANO)
        monkeypatch.setitem(presets, f"{prefix}vit_small_patch16", NANO | {"embed_dim": 32})
    monkeypatch.setitem(flops.SIDE, "cpu", 64)
    monkeypatch.setattr(engine_reconstruct, "reconstruction_figure", lambda *_: Figure(figsize=(1, 1)))
    for name in ("confusion_figure", "prediction_sheet"):
        monkeypatch.setattr(engine_evaluate, name, lambda *_: Figure(figsize=(1, 1)))


@pytest.fixture
def air(tmp_path):
    for number in range(3):
        write_ci16(tmp_path / "air", f"r{number}", 0.054, seed=number)
    return tmp_path / "air"


@pytest.fixture
def scenes(tmp_path):
    return write_scenes(tmp_path / "scenes")


@pytest.fixture
def weights(air, tmp_path):
    """Encoder and decoder of the nano model, with their front end."""
    path = tmp_path / "mae.safetensors"
    assert (
        pretrain(
            "--data_path",
            air,
            "--model",
            "mae_vit_nano",
            *WINDOWS,
            *QUICK,
            "--val_fraction",
            0,
            "--output_dir",
            tmp_path / "first",
            "--norm_pix_loss",
            "--export",
            path,
        )
        == 0
    )
    return path


def pretrain(*flags):
    return call(main_pretrain, *flags)


def finetune(*flags):
    return call(main_finetune, "--task", "segmentation", *flags)


def args_of(folder):
    return checkpoint.load(folder / checkpoint.LAST)["args"]


# --init


def test_pretraining_goes_on_from_weights_that_say_model_and_front_end(air, weights, tmp_path, capsys):
    out = tmp_path / "out"
    flags = (
        "--data_path",
        air,
        "--init",
        weights,
        *QUICK,
        "--val_fraction",
        0.3,
        "--lr",
        0,
        "--output_dir",
        out,
    )
    assert pretrain(*flags) == 0
    said = capsys.readouterr()
    assert "new 0" in said.out
    state, there = checkpoint.load(out / checkpoint.LAST), read_weights(weights)
    assert (state["args"]["model"], state["front_end"]) == ("mae_vit_nano", there.front_end)
    assert state["args"]["norm_pix_loss"] is True
    assert all(
        torch.equal(value, there.state_dict[name]) for name, value in state["model"].items()
    )  # a rate of 0
    before, after = log_of(out)
    assert (before["epoch"], before["step"], after["epoch"]) == (-1, 0, 0)
    assert before["val_loss"] == pytest.approx(after["val_loss"])
    assert f"before the first step held out: loss {before['val_loss']:.4f}" in said.out
    assert "warning" not in said.err


def test_a_stopped_run_from_weights_goes_on_without_them(air, weights, tmp_path):
    flags = (
        "--data_path",
        air,
        "--init",
        weights,
        *QUICK[2:],
        "--val_fraction",
        0.3,
        "--output_dir",
        tmp_path / "out",
    )
    assert pretrain(*flags, "--epochs", 1) == 0
    (tmp_path / "moved").mkdir()
    path = tmp_path / "out" / checkpoint.LAST
    weights.rename(tmp_path / "moved" / "mae.safetensors")
    assert pretrain("--resume", path, "--epochs", 2, "--output_dir", tmp_path / "out") == 0
    assert [line["epoch"] for line in log_of(tmp_path / "out")] == [-1, 0, 1]
    assert args_of(tmp_path / "out")["model"] == "mae_vit_nano"


def test_from_rgb_weights_of_mae_to_one_channel(air, tmp_path, capsys):
    """The encoder answers a picture as its copy in three channels; the decoder predicts the mean of the
    three.
    """
    torch.manual_seed(3)
    rgb = models_mae.create_model("mae_vit_nano", img_size=16, in_chans=3).eval()
    namespace = argparse.Namespace(model="mae_vit_nano", norm_pix_loss=False)
    saved = {"model": rgb.state_dict(), "optimizer": {}, "epoch": 3, "scaler": {}, "args": namespace}
    torch.save(saved, tmp_path / "rgb.pth")
    flags = (
        "--data_path",
        air,
        "--init",
        tmp_path / "rgb.pth",
        *WINDOWS,
        *QUICK,
        "--val_fraction",
        0,
        "--lr",
        0,
    )
    assert pretrain(*flags, "--output_dir", tmp_path / "out") == 0
    out = capsys.readouterr().out
    assert "patch_embed.proj.weight 3 -> 1 channels" in out
    assert "decoder_pred.weight 3 -> 1 channels" in out
    one = models_mae.create_model("mae_vit_nano", img_size=16).eval()
    one.load_state_dict(checkpoint.load(tmp_path / "out" / checkpoint.LAST)["model"])
    images, noise = torch.randn(2, 1, 16, 16), torch.rand(2, 16)
    with torch.no_grad():
        _, pred, _ = one(images, 0.5, noise)
        _, of_rgb, _ = rgb(images.expand(-1, 3, -1, -1), 0.5, noise)
    torch.testing.assert_close(pred, of_rgb.unflatten(2, (16, 3)).mean(dim=3), atol=1e-5, rtol=1e-5)


def test_from_one_window_and_grid_to_another(air, weights, tmp_path, capsys):
    flags = (
        "--data_path",
        air,
        "--init",
        weights,
        *QUICK,
        "--val_fraction",
        0,
        "--window_ms",
        5,
        "--input_size",
        24,
        32,
    )
    assert pretrain(*flags, "--output_dir", tmp_path / "out") == 0
    said = capsys.readouterr()
    assert "pos_embed 4 x 4 -> 6 x 8" in said.out
    [line] = [line for line in said.err.splitlines() if "front end" in line]
    assert "windows of 5 ms, FFT 64, as 24 x 32" in line
    assert "trained on windows of 10 ms, FFT 64, as 16 x 16" in line
    assert "0.25 times the time and 0.667 times the band" in line
    assert checkpoint.load(tmp_path / "out" / checkpoint.LAST)["front_end"]["image_size"] == [24, 32]


def test_the_encoder_alone_starts_with_a_new_decoder(air, tmp_path, weights, capsys):
    state = {name: value for name, value in read_weights(weights).state_dict.items() if "decoder" not in name}
    torch.save(
        {"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "encoder.ckpt"
    )
    flags = (
        "--data_path",
        air,
        "--init",
        tmp_path / "encoder.ckpt",
        *WINDOWS,
        *QUICK,
        "--val_fraction",
        0,
        "--lr",
        0,
    )
    assert pretrain(*flags, "--output_dir", tmp_path / "out") == 0
    assert (
        "decoder_pos_embed, decoder_embed.*, decoder_blocks.0..2.*"
        in capsys.readouterr().out.partition("\nnew ")[2]
    )
    found = checkpoint.load(tmp_path / "out" / checkpoint.LAST)["model"]
    assert all(torch.equal(found[name], value) for name, value in state.items())


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--init", "a.pth", "--resume", "b.pth"), "--init, --resume: expected one of them"),
        (("--resume", "WEIGHTS"), "found weights alone, without optimizer|main_pretrain.py --init"),
        (("--init", "nowhere.pth"), "nowhere.pth: expected a file of weights; found no such file"),
        (
            ("--init", "WEIGHTS", "--model", "mae_vit_small_patch16"),
            "--model mae_vit_small_patch16: expected mae_vit_nano",
        ),
        (("--init", "MODULE"), "expected a file of weights|torch.nn.modules.linear.Linear"),
    ],
)
def test_mistakes_about_where_to_start(air, weights, tmp_path, capsys, flags, says):
    torch.save({"model": read_weights(weights).state_dict}, tmp_path / "weights.pth")
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "module.pth")
    there = {"WEIGHTS": tmp_path / "weights.pth", "MODULE": tmp_path / "module.pth"}
    capsys.readouterr()
    flags = [there.get(flag, flag) for flag in flags]
    assert pretrain("--data_path", air, *WINDOWS, *QUICK, *flags, "--output_dir", tmp_path / "out") == 2
    [line] = capsys.readouterr().err.splitlines()
    for words in says.split("|"):
        assert words in line
    assert not (tmp_path / "out").exists()


def test_an_empty_resume_is_none(air, weights, tmp_path):
    flags = (
        "--data_path",
        air,
        "--init",
        weights,
        *QUICK,
        "--val_fraction",
        0,
        "--resume",
        "",
        "--output_dir",
        tmp_path / "out",
    )
    assert pretrain(*flags) == 0
    assert pretrain(*flags) == 2  # it wants a folder without checkpoints


# What files already say


def test_finetuning_takes_the_model_of_the_weights(scenes, weights, tmp_path, capsys):
    assert (
        finetune("--data_path", scenes, "--finetune", weights, *QUICK, "--output_dir", tmp_path / "out") == 0
    )
    assert args_of(tmp_path / "out")["model"] == "vit_nano"
    assert finetune("--data_path", scenes, *QUICK, "--output_dir", tmp_path / "scratch") == 0
    assert args_of(tmp_path / "scratch")["model"] == "vit_small_patch16"
    capsys.readouterr()


def test_an_evaluation_needs_nothing_but_the_checkpoint(scenes, weights, tmp_path, capsys):
    run = tmp_path / "run"
    flags = (
        "--data_path",
        scenes,
        "--finetune",
        weights,
        *QUICK,
        "--test_fraction",
        0.3,
        "--head_depth",
        1,
        "--seed",
        7,
    )
    assert finetune(*flags, "--output_dir", run) == 0
    assert (
        call(
            main_finetune,
            "--eval",
            "--resume",
            run / checkpoint.BEST,
            *RUN,
            "--output_dir",
            tmp_path / "again",
        )
        == 0
    )
    assert results(tmp_path / "again")["test"] == results(run)["test"]
    assert (
        finetune("--eval", "--resume", run / checkpoint.BEST, "--seed", 8, "--output_dir", tmp_path / "other")
        == 2
    )
    assert "--seed: expected 7" in capsys.readouterr().err


def test_a_named_checkpoint_goes_on_with_its_flags(scenes, weights, tmp_path):
    run = tmp_path / "run"
    assert finetune("--data_path", scenes, "--finetune", weights, *QUICK, "--output_dir", run) == 0
    assert call(main_finetune, "--resume", run / checkpoint.LAST, "--epochs", 2, "--output_dir", run) == 0
    assert [line["epoch"] for line in log_of(run)] == [0, 1]


def test_weights_of_another_project_are_evaluated_under_the_names_of_the_data(scenes, tmp_path, capsys):
    """As the radio fork saves its segmentation model: its head is decoder_pred, and no class has a name."""
    torch.manual_seed(1)
    model = models_vit.create_model("vit_nano", "segmentation", 3, (16, 16), norm_eps=1e-5)
    state = {name.replace("head.", "decoder_pred."): value for name, value in model.state_dict().items()}
    path = tmp_path / "fork.pth"
    torch.save(
        {"model": state, "optimizer": {}, "epoch": 9, "scaler": {}, "args": argparse.Namespace(nb_classes=3)},
        path,
    )
    for number, flag in enumerate(("--finetune", "--resume")):
        out = tmp_path / f"out{number}"
        assert (
            finetune(
                "--data_path", scenes, "--eval", flag, path, "--norm_eps", 1e-5, *RUN, "--output_dir", out
            )
            == 0
        )
        assert "decoder_pred -> head" in (said := capsys.readouterr().out)
        assert "epsilon 1e-05" in said
    assert results(tmp_path / "out0")["test"] == results(tmp_path / "out1")["test"]
    own = tmp_path / "own.pth"
    torch.save(model.state_dict(), own)
    assert (
        finetune(
            "--data_path", scenes, "--eval", "--finetune", own, "--norm_eps", 1e-5, *RUN, "--output_dir", out
        )
        == 0
    )
    assert results(out)["test"] == results(tmp_path / "out0")["test"]


def test_a_sensing_model_of_the_radio_fork_is_evaluated(tmp_path, capsys):
    """timm's names, a head on the class token; the number of classes has to be that of the data."""
    data = write_npz_of_days(tmp_path / "csi.npz")
    torch.manual_seed(1)
    for classes, status in ((2, 0), (6, 2)):
        model = models_vit.create_model("vit_nano", "classification", classes, (16, 16), global_pool=False)
        path = tmp_path / f"{classes}.pth"
        torch.save(
            {"model": model.state_dict(), "args": argparse.Namespace(nb_classes=classes, output_dir=path)},
            path,
        )
        flags = (
            "--eval",
            "--finetune",
            path,
            "--task",
            "sensing",
            "--data_path",
            data,
            "--input_size",
            16,
            *RUN,
        )
        assert call(main_finetune, *flags, "--output_dir", tmp_path / f"out{classes}") == status
    said = capsys.readouterr().err
    assert "names no classes; its outputs are taken for sit, walk, in this order" in said
    assert "trained on ['sit', 'walk']; found 6 classes without names" in said
    assert 0 <= results(tmp_path / "out2")["test"]["accuracy"] <= 1


def test_a_set_with_a_front_end_of_its_own_is_learned_and_a_line_says_what_that_means(
    weights, tmp_path, capsys
):
    scenes = write_scenes(tmp_path / "larger", size=32)
    assert (
        finetune("--data_path", scenes, "--finetune", weights, *QUICK, "--output_dir", tmp_path / "out") == 0
    )
    [line] = [line for line in capsys.readouterr().err.splitlines() if "front end" in line]
    assert (
        "10 ms, FFT 64, as 32 x 32; the weights were trained on windows of 10 ms, FFT 64, as 16 x 16" in line
    )


# Adapters and recipes


def test_adapters_train_and_the_encoder_stays(scenes, weights, tmp_path, capsys):
    run, exported = tmp_path / "run", tmp_path / "adapted.safetensors"
    flags = (
        "--data_path",
        scenes,
        "--finetune",
        weights,
        "--lora",
        2,
        *QUICK[2:],
        "--epochs",
        2,
        "--blr",
        0.5,
    )
    assert finetune(*flags, "--output_dir", run, "--export", exported) == 0
    assert "--lora 2: " in capsys.readouterr().out
    before, after = read_weights(weights).state_dict, checkpoint.load(run / checkpoint.BEST)["model"]
    stem = "blocks.1.attn.qkv"
    assert torch.equal(after[f"{stem}.parametrizations.weight.original"], before[f"{stem}.weight"])
    assert torch.equal(after["blocks.1.mlp.fc1.weight"], before["blocks.1.mlp.fc1.weight"])
    assert after[f"{stem}.parametrizations.weight.0.b_query"].abs().max() > 0

    plain = load_file(exported)
    assert not any("parametrizations" in name for name in plain)
    moved = plain[f"{stem}.weight"] - before[f"{stem}.weight"]
    query, key, value = moved.chunk(3)
    assert query.abs().max() > 0
    assert value.abs().max() > 0
    assert torch.equal(key, torch.zeros_like(key))
    for number, flag in enumerate((("--resume", run / checkpoint.BEST), ("--finetune", exported))):
        out = tmp_path / f"eval{number}"
        assert finetune("--data_path", scenes, "--eval", *flag, *RUN, "--output_dir", out) == 0
        assert results(out)["test"] == results(run)["test"]
    assert call(main_finetune, "--resume", run / checkpoint.LAST, "--epochs", 3, "--output_dir", run) == 0


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--lora", 0), "--lora: expected a rank of at least 1; found 0"),
        (("--lora", 17), "--lora: expected a rank from 1 to 16, the width of the encoder; found 17"),
        (("--lora", 2, "--lora_alpha", 0), "--lora_alpha"),
        (("--lora", 2, "--finetune", ""), "--lora: expected --finetune WEIGHTS"),
        (
            ("--lora", 2, "--train", "head"),
            "--lora: expected the encoder with adapters to train|found --train head",
        ),
        (("--lora", 2, "--recipe", "linprobe"), "--lora: expected|found --recipe linprobe"),
        (("--lora_alpha", 4), "--lora_alpha 4.0: expected --lora RANK with it"),
        (("--init", "a.pth"), "--init: not a flag here: --finetune starts from weights"),
        (("--recipe", "fewer"), "--recipe"),
        (("--model", "vit_small_patch16"), "--model vit_small_patch16: expected vit_nano"),
        (("--world_size", 8), "--world_size: not a flag here: torchrun"),
        (("--lern_rate", 8), "--lern_rate: not a flag here"),
    ],
)
def test_mistakes_in_flags_are_one_line(scenes, weights, tmp_path, capsys, flags, says):
    capsys.readouterr()
    assert (
        finetune(
            "--data_path", scenes, "--finetune", weights, *QUICK, *flags, "--output_dir", tmp_path / "out"
        )
        == 2
    )
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert all(words in line for words in says.split("|"))
    assert not (tmp_path / "out").exists()


def test_an_evaluation_on_data_that_has_changed_says_so(scenes, weights, tmp_path, capsys):
    """Samples that the model was trained on may be among those that it is tested on now."""
    run = tmp_path / "run"
    assert finetune("--data_path", scenes, "--finetune", weights, *QUICK, "--output_dir", run) == 0
    assert call(main_finetune, "--eval", "--resume", run / checkpoint.BEST, *RUN) == 0
    assert results(run / "eval")["test"] == results(run)["test"]
    assert "same parts" not in capsys.readouterr().err
    moved = scenes.rename(tmp_path / "moved")
    evaluate = ("--eval", "--resume", run / checkpoint.BEST, *RUN)
    assert finetune(*evaluate, "--data_path", moved, "--output_dir", tmp_path / "a") == 0
    assert "same parts" not in capsys.readouterr().err
    more = write_scenes(tmp_path / "more", count=24)
    assert finetune(*evaluate, "--data_path", more, "--output_dir", tmp_path / "b") == 0
    assert "expected the samples of its run in the same parts; found others in" in capsys.readouterr().err


def test_weights_that_are_not_finite_are_named(scenes, weights, tmp_path, capsys):
    state = read_weights(weights).state_dict
    state["blocks.1.norm1.bias"][3] = float("nan")
    torch.save(state, tmp_path / "nan.pth")
    flags = (
        "--data_path",
        scenes,
        "--finetune",
        tmp_path / "nan.pth",
        *QUICK,
        "--output_dir",
        tmp_path / "out",
    )
    capsys.readouterr()
    assert finetune(*flags) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert "nan.pth: expected finite weights; found NaN or infinity in blocks.1.norm1.bias" in line


@pytest.mark.parametrize("flag", OF_MAE)
@pytest.mark.parametrize("module", [main_pretrain, main_finetune])
def test_what_mae_calls_otherwise_is_named(module, flag, capsys):
    known = {action.dest for action in module.get_args_parser()._actions}
    if flag in known:
        return
    with pytest.raises(SystemExit) as ended:
        module.get_args_parser().parse_args(["--data_path", "x", f"--{flag}", "1"])
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --{flag}: not a flag here: ")
    assert OF_MAE[flag] in line


def test_recipes(scenes, weights, tmp_path, capsys):
    for recipe in RECIPES:
        out = tmp_path / recipe
        given = () if recipe == "few" else QUICK[:4]
        flags = (
            "--data_path",
            scenes,
            "--finetune",
            weights,
            "--recipe",
            recipe,
            *given,
            *QUICK[6:],
            "--output_dir",
            out,
        )
        assert finetune(*flags) == 0
        found = args_of(out)
        for name, value in RECIPES[recipe].items():
            if name not in ("steps", "epochs", "warmup_epochs"):
                assert found[name] == value, name
        capsys.readouterr()
    steps_per_epoch = 1  # 14 of 20 scenes
    assert args_of(tmp_path / "few")["epochs"] == RECIPES["few"]["steps"] // steps_per_epoch
    probe = checkpoint.load(tmp_path / "linprobe" / checkpoint.LAST)
    assert "head_norm.running_mean" in probe["model"]
    before = read_weights(weights).state_dict
    assert all(
        torch.equal(value, before[name])
        for name, value in probe["model"].items()
        if name.startswith("blocks.")
    )
    assert (
        finetune(
            "--data_path",
            scenes,
            "--finetune",
            weights,
            "--recipe",
            "few",
            "--blr",
            0.25,
            *QUICK,
            "--output_dir",
            tmp_path / "own",
        )
        == 0
    )
    assert (args_of(tmp_path / "own")["blr"], args_of(tmp_path / "own")["epochs"]) == (0.25, 1)


def test_so_few_steps_that_nothing_moves_are_named(scenes, weights, tmp_path, capsys):
    flags = ("--data_path", scenes, "--finetune", weights, *QUICK)
    assert finetune(*flags, "--output_dir", tmp_path / "few") == 0
    assert "--recipe few" in capsys.readouterr().err
    assert finetune(*flags, "--blr", 0.1, "--output_dir", tmp_path / "own") == 0
    assert "--recipe few" not in capsys.readouterr().err
    assert finetune(*flags, "--recipe", "linprobe", "--output_dir", tmp_path / "probe") == 0
    assert "--opt lars: 4 steps at a rate of" in capsys.readouterr().err


def test_a_new_user_names_weights_data_and_classes(weights, tmp_path, capsys):
    labels = [BAND | {"core:label": "wifi"}, BAND | {"core:label": "bluetooth", "core:sample_start": 2000}]
    for number in range(10):
        write_ci16(tmp_path / "labelled", f"r{number}", 0.03, seed=number, annotations=labels)
    assert (
        finetune(
            "--finetune",
            weights,
            "--data_path",
            tmp_path / "labelled",
            "--classes",
            "noise,wifi,bluetooth",
            "--device",
            "cpu",
            "--output_dir",
            tmp_path / "out",
        )
        == 0
    )
    assert checkpoint.load(tmp_path / "out" / checkpoint.BEST)["classes"] == ["noise", "wifi", "bluetooth"]
    assert "parameters; memory: " in capsys.readouterr().out


# What a run will cost


def test_a_run_that_cannot_fit_is_refused_before_its_first_step(
    scenes, weights, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(cost, "free_bytes", lambda device: 2**28)
    assert (
        finetune("--data_path", scenes, "--finetune", weights, *QUICK, "--output_dir", tmp_path / "out") == 2
    )
    line = capsys.readouterr().err.splitlines()[-1]
    assert "--batch_size 4: expected a run within the 0.2 GiB of free memory" in line
    assert not (tmp_path / "out").exists()


def test_memory_grows_with_what_takes_it():
    model = models_vit.create_model("vit_tiny_patch16", "segmentation", 3, (224, 224))
    whole = cost.training_bytes(model, 32, "off")
    assert 1.1e9 < whole < 1.4e9  # 742 MiB measured at batch 16
    assert cost.training_bytes(model, 64, "off") > 1.8 * whole
    assert cost.training_bytes(model, 32, "bf16") < 0.8 * whole
    assert cost.training_bytes(model, 32, "off", grad_ckpt=True) < 0.3 * whole
    models_vit.trainable(model, "head")
    assert cost.training_bytes(model, 32, "off") < 0.3 * whole
    models_vit.trainable(model, "last:2")
    assert cost.training_bytes(model, 32, "off") < 0.5 * whole


def test_the_time_to_the_end_is_said_after_a_few_steps(air, weights, tmp_path, capsys):
    flags = (
        "--data_path",
        air,
        "--init",
        weights,
        *QUICK[2:],
        "--batch_size",
        1,
        "--epochs",
        2,
        "--val_fraction",
        0,
    )
    assert pretrain(*flags, "--output_dir", tmp_path / "out") == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if "to the end" in line]
    assert "25 steps of" in line  # 15 windows an epoch, of which 5 are done
    assert progress.time_line(2.5, 7200) == "about 5.0 hours of training to the end: 7,200 steps of 2.5 s"
    assert progress.time_line(0.5, 1000) == "about 8 minutes of training to the end: 1,000 steps of 0.5 s"


def test_the_report_and_the_header_carry_the_epsilon(scenes, weights, tmp_path, capsys):
    path = tmp_path / "out.safetensors"
    flags = (
        "--data_path",
        scenes,
        "--finetune",
        weights,
        "--norm_eps",
        1e-5,
        *QUICK,
        "--output_dir",
        tmp_path / "out",
    )
    assert finetune(*flags, "--export", path) == 0
    assert "norms inside blocks: epsilon 1e-05" in capsys.readouterr().out
    found = read_weights(path)
    assert found.norm_eps == found.args["norm_eps"] == 1e-5
    model = models_vit.create_model("vit_nano", "segmentation", 3, (16, 16), norm_eps=found.norm_eps)
    assert load_pretrained(model, found.state_dict, path, found.front_end).norm_eps == 1e-5
    assert {block.norm1.eps for block in (*model.blocks, *model.decoder_blocks)} == {1e-5}
    assert model.norm.eps == 1e-6
