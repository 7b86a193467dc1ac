"""CONTRIBUTING.md's trace of a pretraining step is the way that a run takes."""

import re
import sys
from pathlib import Path

import pytest
from support import call, write_ci16

import main_pretrain

ROOT = Path(__file__).parent.parent
FLAGS = (
    "--window_ms",
    5,
    "--n_fft",
    128,
    "--input_size",
    32,
    "--batch_size",
    2,
    "--epochs",
    1,
    "--num_workers",
    0,
)


def written():
    """(file, function) of each step in the document, in order, up to the loss."""
    text = (
        (ROOT / "CONTRIBUTING.md").read_text().partition("## One pretraining step")[2].partition("\n## ")[0]
    )
    steps = []
    for line in re.findall(r"^\d+\. (.*)$", text, re.MULTILINE):
        file, *functions = re.findall(r"`([\w./]+)`", line.partition(": ")[0])
        steps += [(file, function) for function in functions]
    return steps


class LossError(Exception):
    """The first loss is there."""


def test_a_step_calls_what_the_trace_names_in_its_order(tmp_path, monkeypatch):
    write_ci16(tmp_path / "air", duration_s=0.1)
    expected = written()
    assert expected[-1] == ("models_mae.py", "forward_loss")
    called = []

    def profile(frame, event, _):
        if event == "call":
            step = frame.f_code.co_filename.removeprefix(f"{ROOT}/"), frame.f_code.co_name
            if step in expected and step not in called:
                called.append(step)
            if step == expected[-1] and sys._getframe(1).f_code.co_name != "evaluate":
                sys.setprofile(None)
                raise LossError

    sys.setprofile(profile)
    try:
        with pytest.raises(LossError):
            call(main_pretrain, "--data_path", tmp_path / "air", "--output_dir", tmp_path / "out", *FLAGS)
    finally:
        sys.setprofile(None)
    assert called == expected


def test_the_trace_has_eight_files_at_most():
    assert len({file for file, _ in written()}) <= 8
