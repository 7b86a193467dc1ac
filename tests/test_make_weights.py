"""weights/make.py: one command from scenes to files of half precision that label; stopped, short of time, and
again.
"""

import argparse
import importlib
import json
from collections import Counter

import numpy as np
import pytest
import torch
from support import NANO, call, command

import engine_segment
import main_finetune
import main_synthesize
import models_mae
import models_vit
from data.spectrogram_set import SpectrogramSet
from radio.scenes.config import PRESETS, with_settings
from util.errors import RunError, UserError
from util.pretrained import read_weights
from weights import make

TINY = (
    "--size",
    "nano",
    "--scenes",
    6,
    "--shard",
    4,
    "--held_out",
    2,
    "--front_end",
    "--front_end grid --channels power,cp --input_size 16 32",
    "--set",
    "duration_ms=1,4",
    "sample_rates_hz=1.92e6",
    "--num_workers",
    0,
    "--pretrain_epochs",
    2,
    "--finetune_epochs",
    2,
    "--batch_size",
    4,
    "--device",
    "cpu",
)


@pytest.fixture
def here(monkeypatch):
    """Commands run in this process, on a model of which a step takes milliseconds: the list of what was run."""
    monkeypatch.setitem(models_mae.PRESETS, "mae_vit_nano_patch16", NANO)
    monkeypatch.setitem(models_vit.PRESETS, "vit_nano_patch16", NANO)
    ran = []

    def run(script, *flags, quiet=False):
        ran.append(script)
        if call(importlib.import_module(script.removesuffix(".py")), *flags):
            raise RunError(script)

    monkeypatch.setattr(make, "run", run)
    return ran


def made(folder, *more):
    return call(make, "--output", folder, *TINY, *more)


@pytest.mark.slow
def test_one_command_makes_weights_that_label_and_again_makes_the_same(here, tmp_path):
    assert made(tmp_path) == 0
    assert here == ["main_synthesize.py"] * 3 + ["main_pretrain.py", "main_finetune.py"]
    shards = [SpectrogramSet(tmp_path / "shards" / name / "train") for name in ("wild-000", "whole-000")]
    joined = SpectrogramSet(tmp_path / "scenes" / "train")
    assert joined.shape == (8, 4, 16, 32)
    for arrays in ("spectrograms", "masks"):
        parts = [getattr(one, arrays).read(0, 4) for one in shards]
        assert np.array_equal(getattr(joined, arrays).read(0, 8), np.concatenate(parts))
        assert arrays == "masks" or not np.array_equal(*parts)
    assert joined.metadata == shards[0].metadata + shards[1].metadata

    mae, seg = (tmp_path / f"radio_{kind}_vit_nano.safetensors" for kind in ("mae", "seg"))
    for path, holds in ((mae, "mae"), (seg, "segmentation")):
        weights = read_weights(path)
        assert {value.dtype for value in weights.state_dict.values()} == {torch.float16}
        assert (weights.holds, weights.licence) == (holds, "Apache-2.0")
        assert (weights.front_end["kind"], weights.front_end["channels"]) == ("grid", ["power", "cp"])
        assert str(tmp_path) not in weights.command
    assert engine_segment.open_segmenter(seg, torch.device("cpu")).class_names == [
        "Noise",
        "NR",
        "LTE",
        "Other",
    ]

    # what --eval says of the file is what was measured after training, in single precision
    flags = (
        "--task",
        "segmentation",
        "--model",
        "vit_nano_patch16",
        "--data_path",
        tmp_path / "scenes",
        "--device",
        "cpu",
        "--num_workers",
        0,
        "--output_dir",
        tmp_path / "eval",
        "--eval",
        "--finetune",
    )
    assert call(main_finetune, *flags, seg) == 0
    trained, evaluated = (
        json.loads((tmp_path / name / "results.json").read_text()) for name in ("seg_nano", "eval")
    )
    assert evaluated["loss"] == pytest.approx(trained["loss"], abs=1e-3)
    assert evaluated["test"]["pixel_accuracy"] == pytest.approx(trained["test"]["pixel_accuracy"], abs=0.01)
    assert call(main_finetune, *flags, mae) == 2  # no head to evaluate

    before = mae.read_bytes(), seg.read_bytes()
    log = (tmp_path / "seg_nano" / "log.txt").read_text()
    assert made(tmp_path) == 0
    assert (mae.read_bytes(), seg.read_bytes()) == before
    assert (tmp_path / "seg_nano" / "log.txt").read_text() == log


def test_shards_are_of_every_recipe_and_each_of_a_seed_of_its_own(tmp_path):
    words = [str(word) for word in ("--output", tmp_path, *TINY, "--scenes", 48, "--set", "duration_ms=3")]
    args = make.get_args_parser().parse_args(words)
    found = make.shards(args)
    assert len({folder for *_, folder in found}) == len({seed for _, seed, _ in found}) == 12
    expected = {"wild": 3, "whole": 2, "others": 3, "frames": 2, "pieces": 1, "odd": 1}
    assert Counter(one[0] for one in found) == expected
    for recipe in make.RECIPES:
        flags = map(str, make.scene_flags(args, recipe))
        made_of = main_synthesize.get_args_parser().parse_args(["--output", "x", *flags])
        config = with_settings(PRESETS[made_of.preset], made_of.set)
        assert config.duration_ms == (3,)  # --set has the last word
        assert config.classes == ("Noise", "NR", "LTE", "Other")
        assert (config.inside, config.agc, config.noise_only, config.noiseless) == {
            "wild": (0.2, 0.08, 0.15, 0.04),
            "whole": (0, 0.08, 0.15, 0.04),
            "pieces": (0, 1, 0.1, 0.04),
            "frames": (0, 0, 0, 0),
            "others": (0.2, 0.2, 1, 0.04),
            "odd": (0.2, 0.08, 0.15, 0.15),
        }[recipe]


def test_where_time_is_up_the_shards_that_are_there_are_used(here, tmp_path, monkeypatch):
    assert made(tmp_path, "--only", "scenes", "--minutes", 0) == 0
    assert here == ["main_synthesize.py"]  # what is held out
    assert made(tmp_path, "--only", "join") == 2
    clock = iter([0.0, 30.0, 90.0])
    monkeypatch.setattr(make, "time", argparse.Namespace(monotonic=lambda: next(clock)))
    words = [str(word) for word in ("--output", tmp_path, *TINY, "--minutes", 1)]
    make.make_scenes(make.get_args_parser().parse_args(words))
    assert made(tmp_path, "--only", "join") == 0
    assert len(SpectrogramSet(tmp_path / "scenes" / "train")) == 4


def test_shards_of_several_recipes_are_not_joined(here, tmp_path):
    assert made(tmp_path, "--only", "scenes") == 0
    path = tmp_path / "shards" / "whole-000" / "train" / "set.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"class_names": ["Noise", "LTE", "NR"]}))
    folders = [tmp_path / "shards" / name / "train" for name in ("wild-000", "whole-000")]
    with pytest.raises(UserError, match=r"expected the front end and classes of .*; found others"):
        make.join_sets(folders, tmp_path / "joined")
    assert not (tmp_path / "joined").exists()


@pytest.mark.slow
def test_errors_end_in_a_line(tmp_path):
    done = command("weights/make.py", "--output", tmp_path / "new", "--scenes", 0)
    assert (done.returncode, done.stderr) == (2, "error: --scenes: expected at least 1; found 0\n")
    done = command("weights/make.py", "--output", tmp_path / "new", "--only", "pretrain", "--device", "cpu")
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "run the same command to resume" in done.stderr
