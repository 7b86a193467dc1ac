"""benchmarks/results.py: its commands are the project's, no run is repeated, tables say what records do."""

import importlib
import json
import sys
import threading
from pathlib import Path

import pytest
from support import CAPTURES, ROOT, call, needs_captures

sys.path.insert(0, str(ROOT / "benchmarks"))  # as Python does for the script

import common
import results
import tables

from util.errors import UserError


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_every_command_is_one_of_the_projects(size):
    todo = results.runs(size, "cpu")
    assert len({run.name for run in todo}) == len(todo)
    there = {
        *results.SETS,
        *map(results.slug, results.PROTOCOLS),
        *results.HALVES,
        "synthetic",
        results.CSI.name,
    }
    for run in todo:
        script, *flags = run.command.split()
        args = importlib.import_module(Path(script).stem).get_args_parser().parse_args(flags)
        if script == "benchmarks/real_captures.py":
            assert args.recordings == ["held_back"]
            weights, output = args.weights, args.output
        else:
            assert there.issuperset(args.data_path if isinstance(args.data_path, list) else [args.data_path])
            weights, output = getattr(args, "finetune", ""), args.output_dir
        assert output == run.name
        # What it starts from was made before, and it says so.
        assert run.starts_from == (Path(weights).parent.name if weights not in ("", "random") else "")
        assert run.starts_from in ("", *there)
        there.add(output)
    for flags in results.SETS.values():
        importlib.import_module("main_synthesize").get_args_parser().parse_args(
            ["--output", "x", *flags.split()]
        )


def record(run, accuracy=0.9):
    figures = {
        "samples": 100,
        "pixel_accuracy": accuracy,
        "mean_accuracy": accuracy - 0.1,
        "mean_iou": accuracy - 0.2,
        "by_snr": {
            "no carrier": {"pixel_accuracy": 1.0},
            "0 to 5 dB": {"pixel_accuracy": accuracy - 0.05},
            "-5 to 0 dB": {"pixel_accuracy": 0.5},
        },
        "validation": {"0": 0.5, "5": accuracy},
        "totals": {"captures": [round(8 * accuracy), 13]},
        "cells": accuracy,
    }
    return {
        **run.about,
        "command": f"python {run.command}",
        "figures": figures,
        "minutes": 1.5,
        "device": "a CPU",
        "threads": 2,
        "date": "2026-11-26",
        "commit": "abc",
    }


def test_tables_say_what_the_records_do():
    todo = results.runs("tiny", "cpu")
    records = {
        run.name: record(run, 0.8 + 0.05 * run.about["seed"] + 0.02 * ("pretrained" in run.about["kind"]))
        for run in todo
    }
    text = tables.accuracy("RESULTS.md", {"tiny": records})
    for title in tables.SECTIONS:
        assert f"## {title}, ViT-tiny" in text
    assert "| classic, combined | from scratch | 3 | 85.00 (80.00 .. 90.00) | 75.00 (70.00 .. 80.00)" in text
    assert "| wild | pretrained, frozen | 3 | 87.00 (82.00 .. 92.00)" in text
    assert "| wild: pixel accuracy | -5 to 0 dB | 0 to 5 dB | no carrier |" in text
    assert "| from scratch | 50.0 | 80.0 | 100.0 |" in text
    assert "| wild | 1 | 85.00 | 6 | 6 |" in text  # epochs
    assert (
        "| scenes and captures | 3 | 85.00 (80.00 .. 90.00) | 65.00 (60.00 .. 70.00) | "
        "85.00 (80.00 .. 90.00) | 6 of 13, 7 of 13, 7 of 13 |" in text
    )
    text = tables.accuracy("README.md", {"tiny": records})
    assert text.startswith("| pixel accuracy with | 1 % of the labels |")
    assert "| from scratch | 85.00 (80.00 .. 90.00) |" in text
    assert "wild" not in text


def test_sensing_has_an_accuracy_and_older_records_a_pixel_accuracy(tmp_path):
    [run] = [one for one in results.runs("tiny", "cpu") if one.about["section"] == "sensing"][:1]
    (tmp_path / run.name).mkdir()
    figures = {"samples": 10, "accuracy": 0.7, "mean_accuracy": 0.6, "mean_iou": 0.5, "mean_f1": 0.4}
    (tmp_path / run.name / "results.json").write_text(
        json.dumps({"test": figures, "groups": {"SNR": {"0 dB": figures}}})
    )
    (tmp_path / run.name / "log.txt").write_text('{"epoch": 3, "val_accuracy": 0.8}\n')
    found = results.figures_of(run, tmp_path)
    assert (found["accuracy"], found["validation"]) == (0.7, {"3": 0.8})
    assert "pixel_accuracy" not in found

    new, old = record(run) | {"figures": found}, record(run, 0.9) | {"seed": 1}
    assert "| 2 | 80.00 (70.00 .. 90.00) | 70.00 (60.00 .. 80.00) |" in tables.sensing(
        {"new": new, "old": old}
    )


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Four runs: the third starts from the second, and the last fails once. A run leaves only its results."""
    ran, failing = [], ["labels-d-0"]

    def run(name, *flags):
        about = {"section": "labels", "data": "classic, combined", "kind": "from scratch, 0.05", "seed": 0}
        return results.Run(name, " ".join(("main_finetune.py", *flags, "--output_dir", name)), about)

    def start(command, folder, threads, printed):
        name = command.split()[-1]
        ran.append(name)
        if name in failing:
            failing.remove(name)
            raise UserError(f"{name}: it failed")
        (folder / name).mkdir()
        test = {"samples": 1, "pixel_accuracy": 0.5, "mean_accuracy": 0.5, "mean_iou": 0.5}
        (folder / name / "results.json").write_text(json.dumps({"test": test}))
        (folder / name / "log.txt").write_text('{"epoch": 0, "val_pixel_accuracy": 0.5}\n')

    todo = [
        run("labels-a-0"),
        run("labels-b-0"),
        run("labels-c-0", "--finetune", "labels-b-0/checkpoint-last.pth"),
        run("labels-d-0"),
    ]
    monkeypatch.setattr(results, "runs", lambda size, device: todo)
    monkeypatch.setattr(results, "start", start)
    monkeypatch.setattr(results, "usable_cores", lambda: {0})
    monkeypatch.setattr(results, "make_sets", lambda folder: None)
    monkeypatch.setattr(results, "RECORDS", tmp_path / "accuracy")
    monkeypatch.setattr(tables, "update_accuracy", lambda folder: None)
    return ran


def test_what_is_there_is_not_done_again(here, tmp_path, capsys):
    flags = ("--runs", tmp_path / "runs", "--device", "cpu")
    assert call(results, *flags, "--minutes", 0) == 0
    assert (here, tables.read_accuracy(results.RECORDS)) == ([], {})
    assert call(results, *flags) == 2
    assert capsys.readouterr().err == "error: labels-d-0: it failed\n"
    order = [f"labels-{name}-0" for name in "abcd"]
    assert (here, list(tables.read_accuracy(results.RECORDS)["tiny"])) == (order, order[:3])
    assert call(results, *flags) == 0
    assert here == [*order, "labels-d-0"]
    assert "4 of 4 runs are there" in capsys.readouterr().out
    assert tables.read_accuracy(results.RECORDS)["tiny"]["labels-c-0"]["figures"]["validation"] == {"0": 0.5}


def test_weights_that_are_gone_are_made_again_where_something_starts_from_them(tmp_path):
    def run(name, *weights):
        flags = " ".join(weights)
        return results.Run(name, f"main.py {flags} --output_dir {name} --export {name}/{results.MODEL}", {})

    todo = [
        run("a"),
        run("b", "a/checkpoint-last.pth"),
        run("c", f"b/{results.MODEL}"),
        run("d", "a/checkpoint-last.pth"),
    ]

    def missing(*records):
        return [one.name for one in results.missing_runs(todo, records, tmp_path)]

    assert missing("a", "b", "c", "d") == []
    assert missing("a", "b", "d") == ["a", "b", "c"]
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / results.MODEL).touch()
    assert missing("a", "b", "d") == ["c"]
    assert missing("a", "b", "c") == ["a", "d"]


def test_runs_side_by_side_end_before_a_failure_is_said():
    together, ended = threading.Barrier(2), []
    todo = [results.Run(name, "", {}) for name in "ab"]

    def do(run):
        together.wait(timeout=60)  # both were started
        if run.name == "a":
            raise UserError("a failed")
        ended.append(run.name)

    with pytest.raises(UserError, match="a failed"):
        results.do_together(todo, 2, do, lambda: False)
    assert ended == ["b"]


def test_a_run_waits_for_the_one_that_it_starts_from():
    todo = [results.Run("a", "", {}), results.Run("b", f"main.py --finetune a/{results.MODEL}", {})]
    ended = []

    def do(run):
        assert run.name == "a" or ended == ["a"]
        ended.append(run.name)

    results.do_together(todo, 2, do, lambda: False)
    assert ended == ["a", "b"]


@needs_captures
def test_every_capture_is_in_one_half():
    for path in CAPTURES.glob("*.sigmf-meta"):
        halves = [
            half
            for half, patterns in results.HALVES.items()
            if any(path.match(f"{one}.sigmf-*") for one in patterns.split())
        ]
        assert len(halves) == 1, path.name


@pytest.mark.parametrize("document", ["README.md", "RESULTS.md"])
def test_documents_have_the_tables_of_the_records(document):
    text = tables.accuracy(document, tables.read_accuracy(results.RECORDS))
    assert (ROOT / document).read_text() == common.with_tables(ROOT / document, tables.ACCURACY_MARKS, text)
