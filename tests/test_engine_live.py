"""A stream that is read without a pause, and labelled as fast as the machine can."""

import io
import types
from collections import Counter

import numpy as np
import pytest

import engine_live
from engine_live import Windows, _Pace
from radio.samples import IqStream
from util.errors import UserError


def stream(count, extra=b""):
    return IqStream(io.BytesIO(np.arange(2 * count, dtype="<i2").tobytes() + extra), "ci16_le", "a stream")


def all_of(windows, count=10):
    """(first sample, number of samples) of each window."""
    found = []
    while len(iq := windows.read(count)):
        found.append((windows.start, len(iq)))
    return found


@pytest.mark.parametrize(
    ("every", "expected"),
    [(1, [(start, 10) for start in range(0, 90, 10)] + [(90, 5)]), (4, [(0, 10), (40, 10), (80, 10)])],
)
def test_each_nth_window_is_given_with_its_place(every, expected):
    assert all_of(Windows(stream(95), 1e3, every)) == expected


def test_what_is_wrong_with_the_stream_is_said_to_the_reader():
    windows = Windows(stream(15, b"x"), 1e3)
    windows.read(10)
    windows.read(10)
    with pytest.raises(UserError, match="expected whole samples of 4 bytes"):
        windows.read(10)


def test_a_window_has_the_time_at_which_it_began():
    windows = Windows(stream(20), 10.0)
    windows.read(10)
    first = windows.utc
    windows.read(10)
    assert windows.utc - first < 0.5  # both were there at once: a second of signal each
    assert abs(windows.utc - engine_live.datetime.now(engine_live.UTC).timestamp() + 1) < 60


@pytest.fixture
def paced(monkeypatch):
    """(windows, clock, label): `label(seconds)` labels a window of 10 ms in so many seconds."""
    clock = [0.0]
    monkeypatch.setattr(engine_live.time, "perf_counter", lambda: clock[0])
    windows = types.SimpleNamespace(every=1)
    segmenter = types.SimpleNamespace(timings=types.SimpleNamespace(seconds=Counter()))

    def pace(auto):
        pace_ = _Pace(windows, segmenter, auto)

        def label(seconds, waiting_s=0.0):
            segmenter.timings.seconds["reading"] += waiting_s
            clock[0] += seconds + waiting_s
            pace_.done(0.01)

        return label

    return windows, pace


def test_a_machine_that_is_too_slow_says_so_once(paced, capsys):
    windows, pace = paced
    label = pace(auto=False)
    for _ in range(20):
        label(0.035)
    assert capsys.readouterr().err == (
        "warning: standard input: labelled at 0.29 times the stream's speed: a receiver loses samples "
        "(--every 5 or --every auto labels fewer windows)\n"
    )
    assert windows.every == 1


def test_time_of_waiting_for_the_stream_does_not_count(paced, capsys):
    _, pace = paced
    label = pace(auto=False)
    for _ in range(20):
        label(0.004, waiting_s=0.05)
    assert capsys.readouterr().err == ""


def test_auto_labels_as_many_windows_as_it_can(paced, capsys):
    windows, pace = paced
    label = pace(auto=True)
    label(1.0)  # the first window takes longer
    for _ in range(20):
        label(0.035)
    assert windows.every == 5
    for _ in range(20):
        label(0.001)
    assert windows.every == 1
    assert capsys.readouterr().err == ""
