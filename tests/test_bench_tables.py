"""The tables of speed in the documents are those that the recorded results give; the benchmarks that make these run."""

import json
import subprocess
import sys

import pytest
from support import ROOT


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))  # as its scripts see each other
    import tables

    return tables


@pytest.mark.parametrize("document", ["README.md", "docs/SPEED.md"])
def test_the_documents_hold_what_was_measured(tables, document):
    import common

    records = common.read_results(ROOT / "benchmarks" / "results")
    assert len(records) > 3
    assert tables.made(document, records) == (ROOT / document).read_text(), "python benchmarks/bench.py --tables mends it"


def test_a_step_stands_beside_its_peers(tables):
    def candidate(name, amp, median, compiled="", **more):
        spread = {"median": median, "min": median - 10.4, "max": median + 10}
        return {"model": "m", "batch_size": 8, "name": name, "amp": amp, "compiled": compiled, "images_per_s": spread,
                **more}  # fmt: skip

    entries = [candidate("radio-mae", "bf16", 3000.0, "compiled", mfu=0.314), candidate("radio-mae", "bf16", 2000.0),
               candidate("transformers", "bf16", 1500.0), candidate("transformers", "bf16", 2500.0, "compiled"),
               candidate("the field's habit", "fp16", 900.0)]  # fmt: skip
    records = [("bench_pretrain", {"device": "a GPU", "candidates": entries})]
    header, _, row = tables.steps(records, spread=False).splitlines()
    assert header.startswith("| pretraining step: model, batch | on | precision | radio-mae, images/s | MFU |")
    assert row == "| `m`, 8 | a GPU | bf16 | 3,000 | 31% | 1,500 | 2,500 | 900 | 2.00 |"
    assert "| 3,000 (2,990 .. 3,010) | 31% |" in tables.steps(records, spread=True)
    assert tables.text("README.md", []) == ""


def test_what_benchmarks_record_makes_rows(tables, tmp_path):
    """The step alone and main_pretrain.py fed from both sources; how the step grows: on as little as there can be."""
    import common

    least = {"bench_end_to_end": ("--samples", "4", "--windows", "2", "--batch_size", "2"),
             "bench_growth": ("--batch_size", "1")}  # fmt: skip
    for name, flags in least.items():
        command = [sys.executable, ROOT / "benchmarks" / f"{name}.py", *flags, "--steps", "1", "--repeats", "1",
                   "--output", tmp_path]  # fmt: skip
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
    [file] = tmp_path.glob("*.json")
    assert set(json.loads(file.read_text())) == set(least)
    found = tables.text("docs/SPEED.md", common.read_results(tmp_path))
    assert "`mae_vit_tiny_patch16`, 2, spectrogram set |" in found
    assert "`mae_vit_tiny_patch16`, 1: image 448 x 448 |" in found
    assert str(tmp_path) not in file.read_text()
