"""Compare found carriers with true ones, and count strong cells that are called noise."""

import itertools
import statistics

import torch

from labelling.strong import strong_blocks

IOU = 0.5  # two rectangles in time and frequency that overlap by this are the same carrier


def overlap(a, b):
    """The area that two `Carrier`s share, in seconds × Hz."""
    time_s = min(a.end_s, b.end_s) - max(a.start_s, b.start_s)
    band_hz = min(a.freq_upper_hz, b.freq_upper_hz) - max(a.freq_lower_hz, b.freq_lower_hz)
    return max(0.0, time_s) * max(0.0, band_hz)


def area(carrier):
    """Of a `Carrier`'s rectangle, in seconds × Hz."""
    return carrier.duration_s * carrier.bandwidth_hz


def intersection_over_union(a, b):
    """Of two `Carrier`s' rectangles, in seconds × Hz; 0 if one has no extent."""
    shared = overlap(a, b)
    return shared and shared / (area(a) + area(b) - shared)


def match(found, true, least=IOU):
    """Pairs (found, true) of one label with an overlap from `least`; each carrier once, best pairs first."""
    places = itertools.product(range(len(found)), range(len(true)))
    places = [(i, j) for i, j in places if found[i].label == true[j].label]
    scores = [(-intersection_over_union(found[i], true[j]), i, j) for i, j in places]
    pairs, used_found, used_true = [], set(), set()
    for score, i, j in sorted(scores):
        if -score >= least and i not in used_found and j not in used_true:
            pairs.append((found[i], true[j]))
            used_found.add(i)
            used_true.add(j)
    return pairs


def detection_figures(stretches, labels):
    """Precision and recall of carriers, and the errors of the matched ones.

    Args:
        stretches: pairs (found, true) of lists of `Carrier`, one for each stretch of a recording.
        labels: the classes to report; "all" is added.

    Returns:
        {label: dict of `true`, `found`, `matched`; `precision`, `recall` (None for 0 / 0);
        `center_error_khz`, `bandwidth_error_khz` (median and greatest absolute error, or None)}.
    """
    found = [one for side, _ in stretches for one in side]
    true = [one for _, side in stretches for one in side]
    matched = [pair for sides in stretches for pair in match(*sides)]
    figures = {}
    for label in labels:
        of_label = [[one for one in side if one.label == label] for side in (found, true)]
        figures[label] = _figures(*of_label, [pair for pair in matched if pair[1].label == label])
    return figures | {"all": _figures(found, true, matched)}


def _figures(found, true, matched):
    center = [abs(one.center_freq_hz - other.center_freq_hz) / 1e3 for one, other in matched]
    width = [abs(one.bandwidth_hz - other.bandwidth_hz) / 1e3 for one, other in matched]
    return {
        "true": len(true),
        "found": len(found),
        "matched": len(matched),
        "precision": len(matched) / len(found) if found else None,
        "recall": len(matched) / len(true) if true else None,
        "center_error_khz": [statistics.median(center), max(center)] if matched else None,
        "bandwidth_error_khz": [statistics.median(width), max(width)] if matched else None,
    }


def detection_rows(figures):
    """The figures as rows of text for a table, the header first."""
    rows = [["carriers", "true", "found", "precision", "recall", "centre error kHz", "bandwidth error kHz"]]
    for label, row in figures.items():
        shares = ["-" if row[key] is None else f"{100 * row[key]:.1f}" for key in ("precision", "recall")]
        errors = [row["center_error_khz"], row["bandwidth_error_khz"]]
        errors = ["-" if one is None else "{:.1f} (at most {:.1f})".format(*one) for one in errors]
        rows.append([label, str(row["true"]), str(row["found"]), *shares, *errors])
    return rows


def strong_cells(image, classes, column_s):
    """How many cells of a strong signal are called noise: an obvious signal should have a class.

    See `labelling.strong.strong_blocks`.

    Args:
        image: dB, float [F, T]; classes: class ids [F, T], 0 is the background.
        column_s: duration of a column.

    Returns:
        dict of `cells` in strong blocks, and `noise`, those of them with class 0.
    """
    strong, columns = strong_blocks(torch.from_numpy(image), column_s)
    strong = strong.numpy()
    noise = (classes == 0)[:, : strong.shape[1] * columns].reshape(*strong.shape, columns).sum(axis=2)
    return {"cells": int(strong.sum()) * columns, "noise": int(noise[strong].sum())}
