"""Carriers of a stream: when they open, are still there, and close."""

from dataclasses import replace

import pytest

from labelling.events import Events
from radio.carriers import Carrier

LTE = Carrier("LTE", 0.0, 0.01, 100e6, 110e6, 0.9)


def told(events, *windows):
    """What is told of windows of 10 ms: (kind, number, first s, last s, confidence) by window."""
    found = []
    for start_s, carriers in windows:
        found.append(
            [
                (kind, number, pytest.approx(first), pytest.approx(last), pytest.approx(one.confidence))
                for kind, number, first, last, one in events.update(start_s, 0.01, carriers)
            ]
        )
    return found


def test_a_carrier_opens_once_and_closes_after_a_silence():
    events = Events(still_s=5, silence_s=1)
    moved = replace(LTE, freq_lower_hz=101e6, freq_upper_hz=111e6, confidence=0.7)
    windows = [(0.0, [LTE]), (0.01, [moved]), (0.02, []), (0.9, [LTE]), (1.5, []), (1.91, []), (1.92, [])]
    assert told(events, *windows) == [
        [("open", 1, 0.0, 0.01, 0.9)],
        [],
        [],
        [],
        [],
        [("close", 1, 0.0, 0.91, 0.8)],
        [],
    ]
    assert told(events, (2.0, [LTE])) == [[("open", 2, 2.0, 2.01, 0.9)]]


def test_it_is_told_now_and_then_that_a_carrier_is_still_there():
    events = Events(still_s=5, silence_s=1)
    windows = [(0.5 * number, [LTE]) for number in range(25)]
    kinds = [
        (start_s, one[0])
        for (start_s, _), found in zip(windows, told(events, *windows), strict=True)
        for one in found
    ]
    assert kinds == [(0.0, "open"), (5.0, "still"), (10.0, "still")]


@pytest.mark.parametrize(
    "other",
    [
        replace(LTE, label="NR"),
        replace(LTE, freq_lower_hz=105e6, freq_upper_hz=115e6),  # one half is not more than half
        replace(LTE, freq_lower_hz=103e6, freq_upper_hz=107e6),
    ],
)
def test_another_class_or_band_is_another_carrier(other):
    found = told(Events(), (0.0, [LTE]), (0.01, [other]))
    assert [one[:2] for window in found for one in window] == [("open", 1), ("open", 2)]


def test_two_at_a_time_are_told_apart():
    upper = replace(LTE, freq_lower_hz=104e6, freq_upper_hz=114e6)
    events = Events()
    told(events, (0.0, [LTE, upper]))
    assert told(events, (0.01, [upper, LTE])) == [[]]
    closed = events.finish()
    assert [(kind, number, one.freq_lower_hz) for kind, number, _, _, one in closed] == [
        ("close", 1, 100e6),
        ("close", 2, 104e6),
    ]
    assert events.finish() == []
