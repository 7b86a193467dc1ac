"""Carriers held against true ones: overlaps by hand, each counted once."""

from dataclasses import replace

import numpy as np
import pytest

from labelling.detection import (
    detection_figures,
    detection_rows,
    intersection_over_union,
    match,
    strong_cells,
)
from radio.carriers import Carrier

A = Carrier("LTE", 0.0, 1.0, 0.0, 10e6)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (A, 1.0),
        (replace(A, start_s=0.5), 1 / 3),
        (replace(A, freq_lower_hz=5e6, freq_upper_hz=15e6), 1 / 3),
        (replace(A, start_s=0.5, freq_lower_hz=5e6, freq_upper_hz=15e6), 1 / 7),
        (replace(A, start_s=1.0), 0.0),
        (replace(A, freq_lower_hz=10e6, freq_upper_hz=12e6), 0.0),
        (replace(A, freq_lower_hz=5e6, freq_upper_hz=5e6), 0.0),
    ],
)
def test_intersection_over_union(other, expected):
    assert intersection_over_union(A, other) == pytest.approx(expected)
    assert intersection_over_union(other, A) == pytest.approx(expected)


def test_each_carrier_is_matched_once_and_the_best_pairs_first():
    near, nearer = replace(A, start_s=0.2), replace(A, start_s=0.1)
    assert match([near, nearer], [A]) == [(nearer, A)]
    assert match([A], [near, nearer]) == [(A, nearer)]
    assert match([replace(A, label="NR")], [A]) == []
    assert match([replace(A, duration_s=0.5)], [A]) == [(replace(A, duration_s=0.5), A)]  # one half is enough
    assert match([replace(A, duration_s=0.49)], [A]) == []


def test_figures_of_several_stretches_do_not_mix_them():
    moved = replace(A, freq_lower_hz=20e3, freq_upper_hz=10.1e6, confidence=0.9)
    nr = Carrier("NR", 0.0, 1.0, 20e6, 30e6)
    figures = detection_figures([([moved, nr], [A]), ([], [A]), ([A], [])], ["NR", "LTE"])
    assert figures["LTE"] == {
        "true": 2,
        "found": 2,
        "matched": 1,
        "precision": 0.5,
        "recall": 0.5,
        "center_error_khz": pytest.approx([60.0, 60.0]),
        "bandwidth_error_khz": pytest.approx([80.0, 80.0]),
    }
    assert figures["NR"] == {
        "true": 0,
        "found": 1,
        "matched": 0,
        "precision": 0.0,
        "recall": None,
        "center_error_khz": None,
        "bandwidth_error_khz": None,
    }
    assert (figures["all"]["true"], figures["all"]["found"], figures["all"]["matched"]) == (2, 3, 1)
    rows = detection_rows(figures)
    assert rows[1][:5] == ["NR", "0", "1", "0.0", "-"]
    assert rows[2][5] == "60.0 (at most 60.0)"


def test_strong_cells_are_counted_where_a_signal_lasts():
    """Columns of 0.5 ms: four make a block. 20 dB above a noisy floor."""
    image = np.random.default_rng(0).normal(-90, 3, (64, 40))
    classes = np.zeros((64, 40), np.uint8)
    assert strong_cells(image, classes, 5e-4) == {"cells": 0, "noise": 0}
    image[5:9, 8:24] += 25  # rows of 8 ms
    image[50, 8] += 60  # a click is too short
    image[30:34] += 60  # at the centre: a receiver's DC
    classes[5:7] = 1
    assert strong_cells(image, classes, 5e-4) == {"cells": 4 * 16, "noise": 2 * 16}
    assert strong_cells(image[:, :3], classes[:, :3], 5e-4) == {"cells": 0, "noise": 0}
