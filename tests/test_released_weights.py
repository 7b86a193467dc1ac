"""The weights in the repository: small, plain, and good on fresh scenes and on captures of the air."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from support import CAPTURES, ROOT, call, command, needs_captures

import main_finetune
import main_synthesize
import models_weights
from data.spectrogram_set import SpectrogramSet
from radio.carriers import CLASS_NAMES, OTHER
from radio.front_end import from_settings
from util.pretrained import read_weights

sys.path.extend([str(ROOT / "benchmarks"), str(ROOT / "weights")])  # as Python does for the scripts

import make
import real_captures

MAE, SEG = (ROOT / "weights" / f"radio_{kind}_vit_tiny.safetensors" for kind in ("mae", "seg"))
# Some of each kind: 8-bit receivers and 12-bit ones, wide and narrow, carriers and none.
HEARD = (
    "lte-f1815.3-s19.2-bw20-0.08s-hackrf",
    "lte-f796-s1.92-bw1.2-0.08s-rtlsdr",
    "nr-srsran-n78-20MHz-23.04Msps",
    "nr-oai-n78-40mhz-3427.5-46.08Msps",
    "noise-noise",
)


def test_they_are_small_and_say_what_they_are():
    assert sum(path.stat().st_size for path in (ROOT / "weights").glob("*.safetensors")) < 27e6
    for path, holds in ((MAE, "mae"), (SEG, "segmentation")):
        with safe_open(path, "pt") as file:
            about = file.metadata()
        assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float16}
        assert about["holds"] == holds
        assert about["licence"] == "Apache-2.0"
        assert json.loads(about["front_end"])["kind"] == "grid"
        assert json.loads(about["front_end"])["channels"] == ["power", "cp"]
    assert json.loads(about["classes"]) == [*CLASS_NAMES, OTHER]


@pytest.mark.slow
def test_they_are_read_without_unpickling_and_without_a_network():
    program = f"""
import pickle, socket
def refuse(*_, **__): raise RuntimeError("not here")
from util.pretrained import read_weights
pickle.Unpickler = pickle.load = pickle.loads = socket.socket.connect = refuse
for path in {[str(MAE), str(SEG)]}:
    print(len(read_weights(path).state_dict))
"""
    line = [sys.executable, "-c", program]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert all(int(count) > 100 for count in done.stdout.split())


def fresh(folder, recipe, *counts):
    """Scenes of a recipe of the weights, of another seed than any that they saw, at 10 dB and above."""
    flags = f"--seed 987654 --num_workers 2 {make.FRONT_END} {make.RECIPES[recipe]} snr_db=10,40".split()
    assert call(main_synthesize, "--output", folder, *counts, *flags) == 0
    return folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return fresh(tmp_path_factory.mktemp("scenes"), "wild", "--train", 32, "--val", 16, "--test", 48)


def evaluated(data, output):
    """Figures of the labeller on the test part of a set."""
    flags = (
        "--task",
        "segmentation",
        "--data_path",
        data,
        "--model",
        "vit_tiny_patch16",
        "--finetune",
        SEG,
        "--eval",
        "--batch_size",
        16,
        "--num_workers",
        0,
        "--device",
        "cpu",
        "--output_dir",
        output,
    )
    assert call(main_finetune, *flags) == 0
    [results] = output.rglob("results.json")
    return json.loads(results.read_text())["test"]


@pytest.mark.slow
def test_fresh_scenes_are_segmented(scenes, tmp_path):
    figures = evaluated(scenes, tmp_path)
    assert figures["pixel_accuracy"] > 0.76
    assert figures["mean_iou"] > 0.52


@pytest.mark.slow
def test_frames_of_the_published_kind_are_segmented(tmp_path):
    figures = evaluated(
        fresh(tmp_path / "frames", "frames", "--train", 2, "--val", 2, "--test", 48), tmp_path / "out"
    )
    assert figures["pixel_accuracy"] > 0.97
    assert figures["mean_iou"] > 0.94


@pytest.mark.slow
def test_what_is_hidden_of_fresh_scenes_is_filled_in(scenes):
    """Better than the mean of what is seen, with which the loss would be about 1: images are of unit
    variance.
    """
    weights = read_weights(str(MAE))
    model = models_weights.create_model(weights, MAE.name, in_chans=4).eval()
    model.load_state_dict({name: value.float() for name, value in weights.state_dict.items()})
    decibels = torch.from_numpy(SpectrogramSet(scenes / "test").spectrograms.read(0, 48)).float()
    images = from_settings(weights.front_end).from_decibels(decibels)
    with torch.inference_mode():
        loss = model(
            images, 0.75, torch.rand(48, model.num_patches, generator=torch.Generator().manual_seed(0))
        )[0]
    assert loss < 0.6


@needs_captures
@pytest.mark.slow
def test_captures_of_the_air_are_labelled():
    verdicts = real_captures.judge([CAPTURES / f"{name}.sigmf-meta" for name in HEARD], SEG, "cpu")
    assert {name for name, one in verdicts.items() if one["right"]} == set(HEARD)


@pytest.mark.slow
def test_noise_is_left_empty(tmp_path):
    iq = np.random.default_rng(1).standard_normal((400_000, 2)) @ [1, 1j] * 0.01
    np.save(tmp_path / "noise.npy", iq.astype(np.complex64))
    done = command(
        "main_segment.py",
        tmp_path / "noise.npy",
        "--sample_rate",
        20e6,
        "--weights",
        SEG,
        "--device",
        "cpu",
        "--output",
        tmp_path / "labels",
    )
    assert done.returncode == 0, done.stderr
    assert "noise.npy: 0 carriers" in done.stdout
