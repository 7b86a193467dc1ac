"""Where a stretch is searched for cells, and that the cells' times count from its first sample."""

import json

import numpy as np
import pytest
from support import CAPTURES, ROOT, call, needs_captures

import main_segment
from labelling import heard as room
from labelling.heard import MOST_SEARCHES, heard
from radio.carriers import Carrier
from radio.cell_search import Cell
from radio.iq_array import recording_of

RATE = 1e6


@pytest.fixture
def searched(monkeypatch):
    """What `search` is asked for: (samples, near_hz); it finds a cell in the first 40 ms alone."""
    asked = []
    cell = Cell("NR", 7, 1e9 - 3e5, 15e3, "", 1e-3, None, 20.0, 5.0, (1e-3, 21e-3))

    def search(iq, sample_rate_hz, center_freq_hz, is_real, near_hz):
        assert (sample_rate_hz, center_freq_hz, is_real) == (RATE, 1e9, False)
        asked.append((int(iq[0].real), len(iq), near_hz))
        return [cell] if len(asked) == 1 or near_hz == [(1e9, 1e9 + 1e5)] else []

    monkeypatch.setattr(room, "search", search)
    return asked


def stretch(duration_s):
    """The real part of a sample is its number."""
    return recording_of(np.arange(round(duration_s * RATE)).astype(np.complex64), RATE, 1e9)


def box(start_s, end_s, low_hz, high_hz, label="LTE"):
    return Carrier(label, start_s, end_s - start_s, 1e9 + low_hz, 1e9 + high_hz, 0.9)


def test_the_first_40_ms_are_searched_over_the_whole_band(searched):
    cells, spans = heard(stretch(0.1), [])
    assert searched == [(0, 40_000, None)]
    assert spans == [(0.0, 0.04, 1e9 - 5e5, 1e9 + 5e5)]
    assert [(cell.cell_id, cell.start_s) for cell in cells] == [(7, 1e-3)]
    heard(stretch(0.005), [])
    assert searched[1] == (0, 5000, None)


def test_what_begins_later_is_searched_where_it_is(searched):
    boxes = [
        box(0.0, 0.1, 2e5, 4e5),  # searched already
        box(0.06, 0.1, -4e5, -2e5),  # the cell that was heard lies in it
        box(0.06, 0.075, 2e5, 4e5),  # too short
        box(0.06, 0.1, 2e5, 4e5, "Other"),
        box(0.03, 0.2, 2e5, 4e5),  # its first 10 ms were searched
        box(0.3, 0.35, 0.0, 1e5),
    ]
    cells, spans = heard(stretch(0.5), boxes)
    assert searched[1:] == [
        (40_000, 40_000, [(1e9 + 2e5, 1e9 + 4e5)]),
        (300_000, 40_000, [(1e9, 1e9 + 1e5)]),
    ]
    assert spans[1:] == [(0.04, 0.08, 1e9 + 2e5, 1e9 + 4e5), (0.3, pytest.approx(0.34), 1e9, 1e9 + 1e5)]
    assert cells[1].start_s == pytest.approx(0.301)
    assert cells[1].occasions_s == pytest.approx((0.301, 0.321))


def test_a_stretch_has_a_bounded_number_of_searches(searched):
    heard(stretch(2.0), [box(0.1 * number, 0.1 * number + 0.05, 2e5, 4e5) for number in range(1, 20)])
    assert len(searched) == MOST_SEARCHES + 1


@needs_captures
def test_a_real_capture_is_confirmed(tmp_path):
    capture = CAPTURES / "lte-signal.1.92M.sigmf-meta"
    weights = ROOT / "weights" / "radio_seg_vit_tiny.safetensors"
    flags = ("--weights", weights, "--device", "cpu", "--output", tmp_path, "--only", "confirmed")
    assert call(main_segment, capture, *flags) == 0
    [carrier] = json.loads((tmp_path / "lte-signal.1.92M.json").read_text())["carriers"]
    assert (carrier["label"], carrier["cell"]["cell_id"], carrier["cell"]["duplex"]) == ("LTE", 150, "FDD")
    assert carrier["confidence"] == 0.999
