"""Label a stream of IQ as it comes: read without a pause, label as many windows as the machine can."""

import json
import math
import os
import queue
import statistics
import sys
import threading
import time
from collections import deque
from datetime import UTC, datetime

from labelling.events import Events
from labelling.report import carrier_fields
from radio.samples import IqStream, full_datatype
from util.errors import warn

WAITING = 4  # most windows that wait to be labelled
JUDGED, LEAST_JUDGED = 9, 3  # windows whose median time tells how fast the machine is: most and least
SPARE = 1.2  # with --every auto, time for a window over the time that labelling takes


class Windows:
    """Every n-th window of an `IqStream`, read by a thread, so that a receiver's pipe does not fill up.

    `read` is that of an `IqStream`; `start`, `utc` are of the window that it gave last: its first sample in
    the stream, and when that came.

    Args:
        stream: an `IqStream`. every: which windows are given; it may be changed at any time.
    """

    def __init__(self, stream, sample_rate_hz, every=1):
        self.stream, self.rate_hz, self.every = stream, sample_rate_hz, every
        self.components = stream.components
        self.start, self.utc = 0, None
        self._ready = queue.Queue(WAITING)
        self._thread = None

    def read(self, count):
        """The next window of `count` samples: complex64; shorter, then empty, at the end. Errors as there."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, args=(count,), daemon=True)
            self._thread.start()
        found = self._ready.get()
        if isinstance(found, Exception):
            raise found
        self.start, self.utc, iq = found
        return iq

    def _run(self, count):
        try:
            skipped = math.inf  # the first window is given
            while True:
                start = self.stream.num_samples
                iq = self.stream.read(count)
                skipped += 1
                if len(iq) and skipped < self.every:
                    continue
                now = datetime.now(UTC).timestamp() - len(iq) / self.rate_hz
                self._ready.put((start, now, iq))
                skipped = 0
                if not len(iq):
                    return
        except Exception as error:
            self._ready.put(error)


def label_stream(segmenter, args, limits):
    """Print JSON lines of standard input until it ends, Ctrl-C, or the reader of the lines ends.

    A line for each event of a carrier (see `labelling.events`), or with `--windows` for each window.
    """
    # Without a buffer: a thread that waits in a buffer's lock when Python ends is a fatal error.
    raw = getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)
    stream = IqStream(raw, full_datatype("standard input", args.datatype), "standard input", args.swap_iq)
    windows = Windows(stream, args.sample_rate, 1 if args.every == "auto" else args.every)
    pace = _Pace(windows, segmenter, args.every == "auto")
    events = Events()
    try:
        try:
            for _, count, carriers in segmenter.stream(windows, args.sample_rate, args.center_freq, limits):
                start_s, duration_s = windows.start / args.sample_rate, count / args.sample_rate
                if args.windows:
                    _print(
                        start_s=start_s,
                        duration_s=duration_s,
                        utc=_iso(windows.utc),
                        carriers=[
                            carrier_fields(one) | {"start_s": start_s + one.start_s} for one in carriers
                        ],
                    )
                else:
                    _tell(events.update(start_s, duration_s, carriers), windows.utc - start_s)
                pace.done(duration_s)
        except KeyboardInterrupt:  # the usual end
            pass
        finally:
            if windows.utc is not None:
                _tell(events.finish(), windows.utc - windows.start / args.sample_rate)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains at its end


def _tell(events, zero_utc):
    """Print a line for each event. zero_utc: when the stream began."""
    for kind, number, first_s, last_s, carrier in events:
        fields = carrier_fields(carrier) | {"start_s": first_s, "duration_s": last_s - first_s}
        told_s = first_s if kind == "open" else last_s
        _print(event=kind, carrier=number, utc=_iso(zero_utc + told_s), stream_s=told_s, **fields)


def _print(**line):
    print(json.dumps(line, ensure_ascii=False), flush=True)


def _iso(utc):
    return datetime.fromtimestamp(utc, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Pace:
    """Whether the machine keeps up with the stream; with `auto`, it chooses which windows are labelled."""

    def __init__(self, windows, segmenter, auto):
        self.windows, self.timings, self.auto = windows, segmenter.timings, auto
        self.last = deque(maxlen=JUDGED)
        self.told = False
        self.began, self.read_s = time.perf_counter(), 0.0

    def done(self, duration_s):
        """A window of this duration is labelled."""
        now, read_s = time.perf_counter(), self.timings.seconds["reading"]
        self.last.append((now - self.began - (read_s - self.read_s)) / duration_s)  # waiting does not count
        self.began, self.read_s = now, read_s
        if len(self.last) < LEAST_JUDGED:
            return
        ratio = statistics.median(self.last)  # time that labelling takes, per signal
        if self.auto:
            self.windows.every = max(1, math.ceil(ratio * SPARE))
        elif ratio > self.windows.every and not self.told:
            self.told = True
            keeps = self.windows.every / ratio
            warn(
                f"standard input: labelled at {keeps:.2g} times the stream's speed: a receiver loses samples "
                f"(--every {math.ceil(ratio * SPARE)} or --every auto labels fewer windows)"
            )
