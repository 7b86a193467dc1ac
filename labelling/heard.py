"""Search a stretch of a recording for cells: at its start, and where a model's boxes begin later."""

from dataclasses import replace

from labelling.confirm import LEAST_SEARCHED_S, searched_s
from radio.carriers import LTE, NR
from radio.cell_search import search

SEARCHED_S = 0.04  # NR repeats its SSBs every 20 ms (TS 38.213, 4.1): two of them
MOST_SEARCHES = 8  # of a stretch, after the first


def heard(recording, carriers):
    """The cells in a stretch.

    The whole band is searched in the first 40 ms. NR and LTE boxes that begin later, where no cell was heard,
    are searched in their own band for 40 ms.

    Args:
        recording: a `Recording`. carriers: a model's boxes, times from its first sample.

    Returns:
        (cells, spans): `radio.cell_search.Cell`s with times from the first sample, and what was searched:
        (first s, last s, lowest Hz, highest Hz) each.
    """
    half_hz, center_hz = recording.sample_rate_hz / 2, recording.center_freq_hz or 0.0
    end_s = min(SEARCHED_S, recording.duration_s)
    spans = [(0.0, end_s, center_hz - half_hz, center_hz + half_hz)]
    cells = _search(recording, 0.0, end_s)
    for one in carriers:
        if len(spans) > MOST_SEARCHES:
            break
        low, high = one.freq_lower_hz, one.freq_upper_hz
        is_known = any(low <= cell.center_freq_hz <= high for cell in cells)
        long = one.duration_s >= LEAST_SEARCHED_S > searched_s(one, spans)
        if one.label in (NR, LTE) and long and not is_known:
            start_s = max(one.start_s, SEARCHED_S)
            spans.append((start_s, min(start_s + SEARCHED_S, one.end_s), low, high))
            cells += _search(recording, *spans[-1][:2], near_hz=[(low, high)])
    return cells, spans


def _search(recording, start_s, end_s, near_hz=None):
    rate_hz = recording.sample_rate_hz
    first = min(round(start_s * rate_hz), recording.num_samples)
    iq = recording.read(first, min(round(end_s * rate_hz), recording.num_samples) - first)
    is_real = recording.datatype.startswith("r")
    cells = search(iq, rate_hz, recording.center_freq_hz, is_real=is_real, near_hz=near_hz)
    return [_later(cell, first / rate_hz) for cell in cells]


def _later(cell, seconds):
    occasions_s = tuple(one + seconds for one in cell.occasions_s)
    return replace(cell, start_s=cell.start_s + seconds, occasions_s=occasions_s)
