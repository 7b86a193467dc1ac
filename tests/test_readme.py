"""Every command and every piece of Python in README.md does what it says, on data and models that take seconds.

What a command downloads, and how long it trains, is cut; what it is called with is not: the flags here only come after it.
"""

import importlib
import io
import re
import shlex
import sys

import numpy as np
import pytest
from safetensors.torch import save_file
from support import NANO, ROOT, call, write_ci16

import models_mae
import models_vit

TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
SHORT = {
    "main_pretrain": "--input_size 16 --n_fft 64 --window_ms 2 --batch_size 2 --epochs 1 --warmup_epochs 0 --num_workers 0 "
                     "--device cpu --peak_tflops 1 --export encoder.safetensors",
    "main_finetune": "--batch_size 4 --epochs 1 --warmup_epochs 0 --num_workers 0 --device cpu",
    "main_synthesize": "--input_size 16 --n_fft 64 --window_ms 2 --train 8 --val 4 --test 4 --num_workers 0 "
                       "--set duration_ms=2 sample_rates_hz=1.92e6",
    "main_segment": "--device cpu",
}  # fmt: skip
DOWNLOADED = re.compile(r"main_download\.py (?!list)|--finetune mae_vit_base")


def commands():
    """Each command of the blocks without a language, its continued lines joined."""
    lines = "".join(text for language, text in BLOCKS if not language).replace("\\\n", " ").splitlines()
    return [" ".join(line.partition("#")[0].split()) for line in lines if line.strip()]


def flags_of(command):
    """(module, flags) of a command that begins with python, or comes after a pipe."""
    script, *flags = shlex.split(command.rpartition("| ")[2].removeprefix("python "))
    return importlib.import_module(script.removesuffix(".py")), flags


@pytest.fixture
def user(tmp_path, monkeypatch):
    """The folder of a user: with recordings where the README has some, and a model of which a step takes milliseconds."""
    for presets, name in ((models_mae.PRESETS, "mae_vit_small_patch16"), (models_vit.PRESETS, "vit_small_patch16")):
        monkeypatch.setitem(presets, name, NANO)
    monkeypatch.chdir(tmp_path)
    for number in range(8):
        write_ci16(tmp_path / "iq", f"r{number}", 0.02, seed=number)
    write_ci16(tmp_path, "capture", sample_rate_hz=1e6)
    (tmp_path / "weights").symlink_to(ROOT / "weights")
    samples = np.random.default_rng(0).integers(-30, 30, 2 * 100_000, np.int8).tobytes()
    monkeypatch.setattr(sys, "stdin", stream(samples))
    return tmp_path


def stream(samples):
    return io.TextIOWrapper(io.BytesIO(samples))


def test_commands_in_their_order(user, capsys):
    ran = []
    for command in commands():
        if command.startswith("make "):
            assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), command
        elif command.startswith(("hackrf_transfer", "python ")):
            module, flags = flags_of(command.replace("/data/iq", "iq"))
            if DOWNLOADED.search(command):
                module.get_args_parser().parse_args(flags)
                continue
            assert call(module, *flags, *SHORT.get(module.__name__, "").split()) == 0, (command, capsys.readouterr().err)
            ran.append(module.__name__)
        else:
            raise AssertionError(f"not known how to run it: {command}")
    assert set(ran) == {*SHORT, "main_download"}
    assert (user / "output_dir" / "checkpoint-last.pth").exists()
    assert (user / "output_segment" / "capture.sigmf-meta").exists()


def test_python(user):
    """The encoder is one of a real size: what a reader has from --export."""
    weights = models_mae.mae_vit_tiny_patch16().state_dict()
    save_file({name: value for name, value in weights.items() if "decoder" not in name and name != "mask_token"},
              "encoder.safetensors")  # fmt: skip
    pieces = [text for language, text in BLOCKS if language == "python"]
    assert len(pieces) == 2
    shapes = []
    for piece in pieces:
        names = {}
        exec(piece, names)
        shapes.append(tuple(names["features" if "features" in names else "tokens"].shape))
    assert shapes == [(1, 197, 192), (8, 197, 192)]
