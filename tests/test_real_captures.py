"""benchmarks/real_captures.py: what counts as right, on boxes made by hand; and all of it on captures."""

import json
import sys

import numpy as np
import pytest
import torch
from support import NANO, ROOT, call, write_sigmf

import models_mae
import models_vit
from radio.carriers import CLASS_NAMES, Carrier
from radio.spectrogram import Spectrogram
from util.pretrained import write_weights

sys.path.insert(0, str(ROOT / "benchmarks"))  # as Python does for the script

import real_captures
from real_captures import HALVES, box_counts, boxes_of, judged, time_share, totals, verdict


def box(label, start_s, end_s, low_hz, high_hz):
    return Carrier(label, start_s, end_s - start_s, low_hz, high_hz)


LTE = box("LTE", 0.0, 1.0, -9e6, 9e6)


def cells(noise=0.9, nr=None, lte=None, count=100):
    shares = {"Noise": noise, "NR": nr, "LTE": lte}
    return {
        "classes": {
            name: {"accuracy": share, "samples": count * (share is not None)}
            for name, share in shares.items()
        }
    }


@pytest.mark.parametrize(
    ("found", "right_for", "wrong_for", "right"),
    [
        ([box("LTE", 0.0, 1.0, -9e6, 9e6)], 1.0, 0.0, True),
        ([box("LTE", 0.0, 1.0, -2e6, 2e6)], 1.0, 0.0, True),  # a part of its band
        ([box("LTE", 0.0, 1.0, -50e6, 50e6)], 1.0, 0.0, True),  # more than its band
        ([box("LTE", 0.0, 1.0, 5e6, 14e6)], 0.0, 0.0, False),  # most of it elsewhere
        ([box("LTE", 0.0, 0.4, -9e6, 9e6)], 0.4, 0.0, False),  # for too short a time
        ([box("LTE", 0.0, 0.4, -9e6, 0.0), box("LTE", 0.2, 0.6, 0.0, 9e6)], 0.6, 0.0, True),
        ([box("NR", 0.0, 1.0, -9e6, 9e6)], 0.0, 1.0, False),
        ([box("LTE", 0.0, 1.0, -9e6, 9e6), box("NR", 0.5, 0.55, 0.0, 5e6)], 1.0, 0.05, True),
        ([box("LTE", 0.0, 1.0, -9e6, 9e6), box("NR", 0.5, 0.65, 0.0, 5e6)], 1.0, 0.15, False),
        ([box("LTE", 0.0, 1.0, -9e6, 9e6), box("LTE", 0.2, 0.3, -9e6, 0.0)], 1.0, 0.0, True),
        ([box("LTE", start / 3, (start + 1) / 3, -9e6, 9e6) for start in range(3)], 1.0, 0.0, False),
        ([box("LTE", 0.0, 1.0, -9e6, 9e6), box("Other", 0.5, 0.65, 0.0, 5e6)], 1.0, 0.15, False),
        ([], 0.0, 0.0, False),
    ],
)
def test_a_carrier_is_right_where_its_technology_meets_it_for_most_of_its_time(
    found, right_for, wrong_for, right
):
    row = judged(LTE, found)
    assert (row["right_for"], row["wrong_for"]) == pytest.approx((right_for, wrong_for))
    assert row["right"] == right


def test_what_is_neither_must_not_be_called_either():
    other = box("other", 0.0, 1.0, 9.2e6, 9.4e6)
    assert judged(other, [LTE])["right"]
    assert judged(other, [box("Other", 0.0, 1.0, 9.2e6, 9.4e6)])["right"]
    row = judged(other, [box("LTE", 0.0, 0.3, -9e6, 9.6e6)])
    assert (row["right_for"], row["wrong_for"], row["right"]) == (None, pytest.approx(0.3), False)


def test_bands_of_adjacent_carriers_found_as_one_show_in_the_band():
    expected = [box("LTE", 0.0, 1.0, low, low + 9e6) for low in (-15e6, -5e6, 5e6)]
    rows = verdict(expected, [box("LTE", 0.0, 1.0, -15e6, 14e6)], cells(lte=1.0))["expected"]
    assert [row["band_iou"] for row in rows] == pytest.approx([9 / 29] * 3)


def test_time_in_which_several_are_counts_once():
    others = [
        box("NR", start, end, 0, 1)
        for start, end in ((-1.0, 0.1), (0.2, 0.5), (0.3, 0.4), (0.45, 0.6), (0.9, 2.0))
    ]
    assert time_share(LTE, others) == pytest.approx(0.1 + 0.4 + 0.1)


def test_captures_without_a_carrier_are_right_if_no_carrier_is_found():
    none = {"true": 0, "found": 0, "matched": 0, "outside": 0}
    assert verdict([], [], cells(noise=0.99)) == {
        "expected": [],
        "found": {},
        "boxes": {"NR": none, "LTE": none},
        "cells": 0.99,
        "strong": {"cells": 0, "noise": 0},
        "right": True,
    }
    assert verdict([], [box("Other", 0.0, 0.1, 0.0, 1e6)], cells())["right"]
    wrong = verdict([], [box("NR", 0.0, 0.1, 0.0, 1e6)], cells())
    assert not wrong["right"]
    assert wrong["boxes"]["NR"] == none | {"found": 1}  # false: nothing is unknown there


def test_boxes_match_once_and_those_outside_of_the_annotations_are_counted_apart():
    found = [
        LTE,
        box("LTE", 0.0, 0.9, -9e6, 9e6),  # meets the same annotation again: false
        box("LTE", 0.0, 1.0, 12e6, 20e6),  # nothing is known there
        box("LTE", 0.0, 1.0, 4e6, 13e6),  # most of it lies on the annotation
        box("NR", 0.0, 1.0, -9e6, 9e6),
        box("Other", 0.0, 1.0, -9e6, 9e6),
    ]
    assert boxes_of([LTE, box("other", 0.0, 1.0, 9.2e6, 9.4e6)], found) == {
        "NR": {"true": 0, "found": 1, "matched": 0, "outside": 0},
        "LTE": {"true": 1, "found": 4, "matched": 1, "outside": 1},
    }


def test_each_shared_capture_is_in_one_half():
    names = [path.name for path in real_captures.RECORDINGS.glob("*.sigmf-meta")]
    if not names:
        pytest.skip("the shared captures are not beside this repository")
    for name in names:
        assert sum(name.startswith(HALVES[half]) for half in ("a", "b")) == 1, name


def test_totals_count_captures_and_carriers():
    empty, nr = verdict([], [], cells()), box("NR", 0.0, 1.0, 10e6, 20e6)
    both = verdict([LTE, nr], [LTE], cells(nr=0.0, lte=1.0))
    assert both["cells"] == 0.5
    both["strong"] = {"cells": 2000, "noise": 500}
    found = totals({"a": empty, "b": both})
    assert found == {
        "captures": [1, 2],
        "NR": [0, 1],
        "LTE": [1, 1],
        "without_carriers": [1, 1],
        "boxes": {
            "NR": {"true": 1, "found": 0, "matched": 0, "outside": 0},
            "LTE": {"true": 1, "found": 1, "matched": 1, "outside": 0},
        },
        "strong": {"cells": 2000, "noise": 500},
    }
    assert box_counts(found) == (
        "NR: precision 0 of 0, recall 0 of 1, outside 0; LTE: precision 1 of 1, recall 1 of 1, outside 0; "
        "strong cells called Noise: 25.0 % of 2,000"
    )


def capture(folder, name, annotations):
    iq = np.random.default_rng(0).integers(-100, 100, 2 * 5000).astype("i1").tobytes()
    write_sigmf(folder, iq, "ci8", name, [{"core:sample_start": 0, "core:frequency": 1e9}], annotations)


def test_captures_are_labelled_judged_and_recorded(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(models_mae.PRESETS, "mae_vit_nano", NANO)
    monkeypatch.setitem(models_vit.PRESETS, "vit_nano", NANO)
    torch.manual_seed(0)
    model = models_vit.create_model("vit_nano", "segmentation", 3, (16, 16))
    with torch.no_grad():
        model.head.bias.copy_(
            torch.tensor([0.0, 0.0, 9.0]).repeat(len(model.head.bias) // 3)
        )  # LTE whatever there is
        model.head.weight.zero_()
    built = {
        "model": "vit_nano",
        "task": "segmentation",
        "head": "decoder",
        "head_depth": 2,
        "global_pool": True,
    }
    write_weights(
        tmp_path / "a.safetensors",
        model.state_dict(),
        holds="segmentation",
        preset="vit_nano",
        args=built,
        front_end=Spectrogram(64, 1e-3, (16, 16)).settings(),
        classes=CLASS_NAMES,
    )
    (tmp_path / "captures").mkdir()
    band = {
        "core:sample_start": 0,
        "core:sample_count": 5000,
        "core:freq_lower_edge": 1e9 - 4e5,
        "core:freq_upper_edge": 1e9 + 4e5,
    }
    capture(tmp_path / "captures", "lte", [band | {"core:label": "LTE"}])
    capture(tmp_path / "captures", "nr", [band | {"core:label": "NR"}])
    capture(tmp_path / "captures", "empty", [])

    assert (
        call(
            real_captures,
            "--weights",
            tmp_path / "a.safetensors",
            "--recordings",
            tmp_path / "captures",
            "--output",
            tmp_path,
            "--device",
            "cpu",
        )
        == 0
    )
    said = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[-1] for line in said.splitlines()}
    assert (rows["lte"], rows["nr"], rows["empty"]) == ("right", "WRONG", "WRONG")
    assert "right: captures: 1 of 3; NR: 0 of 1; LTE: 1 of 1; without carriers: 0 of 1" in said
    assert "LTE: precision 1 of 3, recall 1 of 1, outside 0" in said
    [path] = tmp_path.glob("*.json")
    record = json.loads(path.read_text())["real_captures"]
    assert record["captures"]["lte"]["expected"][0]["band_iou"] == pytest.approx(0.8, abs=0.02)
    assert record["captures"]["lte"]["cells"] == 1.0
    assert str(tmp_path) not in path.read_text()


def test_a_half_without_captures_is_a_mistake(tmp_path, capsys):
    (tmp_path / "captures").mkdir()
    capture(tmp_path / "captures", "lte", [])
    flags = "--weights", "a", "--recordings", tmp_path / "captures", "--output", tmp_path, "--half", "b"
    assert call(real_captures, *flags) == 2
    assert capsys.readouterr().err == "error: --half b: expected captures of this half; found none\n"


def test_without_the_shared_captures_it_says_that_it_skips(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(real_captures, "RECORDINGS", tmp_path / "none")
    assert call(real_captures, "--weights", tmp_path / "a.safetensors", "--output", tmp_path) == 0
    said = "skipped: the shared captures are not beside this repository (--recordings names others)\n"
    assert capsys.readouterr().err == said
    assert not list(tmp_path.iterdir())
