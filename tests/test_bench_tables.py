"""The tables of speed in the documents are those of the recorded results; the benchmarks run."""

import json
import sys

import pytest
from support import ROOT, call, command

sys.path.insert(0, str(ROOT / "benchmarks"))  # as Python does for the script

import bench
import common
import tables

LEAST = ("--repeats", 1, "--device", "cpu", "--amp", "off", "--steps", 1)


@pytest.mark.parametrize("document", tables.SPEED)
def test_the_documents_hold_what_was_measured(document):
    records = common.read_records(ROOT / "benchmarks" / "results")
    assert len(records) > 3
    made = common.with_tables(ROOT / document, tables.SPEED_MARKS, tables.speed(document, records))
    assert made == (ROOT / document).read_text(), "python benchmarks/bench.py --tables mends it"


def test_a_step_stands_beside_its_peers():
    def candidate(name, amp, median, compiled="", **more):
        spread = {"median": median, "min": median - 10.4, "max": median + 10}
        about = {"model": "m", "batch_size": 8, "name": name, "amp": amp, "compiled": compiled}
        return {**about, "images_per_s": spread, **more}

    entries = [
        candidate("radio-mae", "bf16", 3000.0, "compiled", mfu=0.314),
        candidate("radio-mae", "bf16", 2000.0),
        candidate("radio-mae", "bf16", 1900.0, "DDP"),
        candidate("transformers", "bf16", 1500.0),
        candidate("transformers", "bf16", 2500.0, "compiled"),
        candidate("the field's habit", "fp16", 900.0),
    ]
    records = [("bench_pretrain", {"device": "a GPU", "candidates": entries})]
    header, _, row = tables.steps(records, full=False).splitlines()
    assert header.startswith(
        "| pretraining step: model, batch | on | precision | radio-mae, images/s | MFU |"
    )
    assert row == "| `m`, 8 | a GPU | bf16 | 3,000 | 31% | 1,500 | 2,500 | 900 | 2.00 |"
    assert "| 3,000 (2,990 .. 3,010) | 31% |" in tables.steps(records, full=True)
    assert tables.speed("README.md", []) == ""


@pytest.mark.slow
def test_what_benchmarks_record_makes_rows(tmp_path):
    """Benchmarks that a small machine runs in seconds, on as little as there can be."""
    little = {
        "bench_end_to_end": (*LEAST, "--samples", 4, "--windows", 2, "--batch_size", 2),
        "bench_segment": ("--rates", "1.92e6", "--seconds", 0.04, "--repeats", 1, "--device", "cpu"),
    }
    for name, flags in little.items():
        run = command(f"benchmarks/{name}.py", *flags, "--output", tmp_path)
        assert run.returncode == 0, run.stderr
    [file] = tmp_path.glob("*.json")
    assert set(json.loads(file.read_text())) == set(little)
    found = tables.speed("docs/SPEED.md", common.read_records(tmp_path))
    for row in (
        "`mae_vit_tiny_patch16`, 2, spectrogram set |",
        "`mae_vit_tiny_patch16`, 2, SigMF ci16, STFT included |",
        "labelling 1.92 Msps ci16 with the shipped weights: s of signal a second |",
    ):
        assert row in found
    assert str(tmp_path) not in file.read_text()


@pytest.mark.slow
def test_errors_end_in_a_line(tmp_path, capsys):
    assert call(bench, "--only", "bench_nothing") == 2
    assert capsys.readouterr().err.startswith("error: --only: expected some of bench_data, ")
    (tmp_path / "file").touch()
    run = command("benchmarks/bench_segment.py", "--output", tmp_path / "file")
    assert run.returncode == 2
    assert "expected a folder that can be written" in run.stderr
