"""Carriers of a stream as events: one opens, is still there, closes."""

from dataclasses import dataclass, field, replace

from radio.carriers import Carrier

STILL_S = 5.0  # from one "still" of a carrier to the next
# A carrier closes if it is not found for so long: an idle NR cell shows in one window of four.
SILENCE_S = 1.0
SAME_BAND = 0.5  # least overlap of the bands of one carrier in two windows, as a share of the wider one


@dataclass
class _Open:
    number: int
    carrier: Carrier  # as it was found last
    first_s: float
    last_s: float
    told_s: float  # when an event told of it
    confidences: list = field(default_factory=list)  # since then


class Events:
    """Follows carriers from window to window: of one class, bands that overlap by more than half are one."""

    def __init__(self, still_s=STILL_S, silence_s=SILENCE_S):
        self.still_s, self.silence_s = still_s, silence_s
        self._open, self._count = [], 0

    def update(self, start_s, duration_s, carriers):
        """The events of a window: a list of (kind, number, first s, last s, `Carrier`).

        kind: "open", "still" or "close". number: of the carrier, from 1. The carrier has the last edges, and
        the mean confidence since its last event.

        Args:
            start_s, duration_s: of the window in the stream.
            carriers: found in it.
        """
        events, unseen, end_s = [], list(self._open), start_s + duration_s
        for carrier in carriers:
            same = [one for one in unseen if _is_same(one.carrier, carrier)]
            if same:
                one = max(same, key=lambda each: _overlap(each.carrier, carrier))
                unseen.remove(one)
                one.carrier, one.last_s = carrier, end_s
            else:
                self._count += 1
                one = _Open(self._count, carrier, start_s, end_s, start_s)
                self._open.append(one)
            one.confidences.append(carrier.confidence)
            if not same:
                events.append(self._event("open", one, end_s))
            elif end_s - one.told_s >= self.still_s:
                events.append(self._event("still", one, end_s))
        for one in unseen:
            if end_s - one.last_s >= self.silence_s:
                events.append(self._event("close", one, end_s))
        return events

    def finish(self):
        """The events of all carriers that are open when the stream ends."""
        return [self._event("close", one, one.last_s) for one in list(self._open)]

    def _event(self, kind, one, now_s):
        if kind == "close":
            self._open.remove(one)
        confidences = one.confidences or [one.carrier.confidence]
        confidence = round(sum(confidences) / len(confidences), 4)
        one.told_s, one.confidences = now_s, []
        return kind, one.number, one.first_s, one.last_s, replace(one.carrier, confidence=confidence)


def _is_same(one, other):
    return one.label == other.label and _overlap(one, other) > SAME_BAND


def _overlap(one, other):
    """Of two bands, as a share of the wider one."""
    shared_hz = min(one.freq_upper_hz, other.freq_upper_hz) - max(one.freq_lower_hz, other.freq_lower_hz)
    return shared_hz / max(one.bandwidth_hz, other.bandwidth_hz, 1e-9)
