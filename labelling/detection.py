"""How well found carriers agree with the true ones: which are found, and how far off their edges are."""

import statistics

IOU = 0.5  # of two rectangles in time and frequency that count as the same carrier


def intersection_over_union(a, b):
    """Of two `Carrier`s' rectangles, in seconds × Hz; 0 where they do not touch or one has no extent."""
    time_s = min(a.end_s, b.end_s) - max(a.start_s, b.start_s)
    band_hz = min(a.freq_upper_hz, b.freq_upper_hz) - max(a.freq_lower_hz, b.freq_lower_hz)
    if time_s <= 0 or band_hz <= 0:
        return 0.0
    shared = time_s * band_hz
    return shared / (a.duration_s * a.bandwidth_hz + b.duration_s * b.bandwidth_hz - shared)


def match(found, true, least=IOU):
    """Pairs (found, true) of one label that overlap by `least` or more, each carrier once, the best pairs first."""
    scores = [(intersection_over_union(one, other), i, j) for i, one in enumerate(found) for j, other in enumerate(true)
              if one.label == other.label]  # fmt: skip
    pairs, used = [], (set(), set())
    for score, i, j in sorted(scores, key=lambda one: (-one[0], one[1:])):
        if score >= least and i not in used[0] and j not in used[1]:
            pairs.append((found[i], true[j]))
            used[0].add(i)
            used[1].add(j)
    return pairs


def detection_figures(stretches, labels):
    """Precision and recall of carriers, and errors of those that were found.

    Args:
        stretches: pairs (found, true) of lists of `Carrier`, one for each stretch of a recording.
        labels: the classes to report; "all" is added.

    Returns:
        {label: dict of `true`, `found`, `matched`; `precision`, `recall` (None where there is nothing to divide by);
        `center_error_khz`, `bandwidth_error_khz` (median and greatest absolute error as a pair, or None)}.
    """
    matched = [pair for found, true in stretches for pair in match(found, true)]
    every = [[one for side in stretches for one in side[place]] for place in (0, 1)]
    return {label: _figures(*([one for one in side if label in ("all", one.label)] for side in every),
                            [pair for pair in matched if label in ("all", pair[1].label)])
            for label in (*labels, "all")}  # fmt: skip


def _figures(found, true, matched):
    center = [abs(one.center_freq_hz - other.center_freq_hz) / 1e3 for one, other in matched]
    width = [abs(one.bandwidth_hz - other.bandwidth_hz) / 1e3 for one, other in matched]
    return {
        "true": len(true), "found": len(found), "matched": len(matched),
        "precision": len(matched) / len(found) if found else None,
        "recall": len(matched) / len(true) if true else None,
        "center_error_khz": [statistics.median(center), max(center)] if matched else None,
        "bandwidth_error_khz": [statistics.median(width), max(width)] if matched else None,
    }  # fmt: skip


def detection_rows(figures):
    """The figures as rows of text, the header first, for a table on the console."""
    rows = [["carriers", "true", "found", "precision", "recall", "centre error kHz", "bandwidth error kHz"]]
    for label, row in figures.items():
        shares = ["-" if row[key] is None else f"{100 * row[key]:.1f}" for key in ("precision", "recall")]
        errors = ["-" if row[key] is None else "{:.1f} (at most {:.1f})".format(*row[key])
                  for key in ("center_error_khz", "bandwidth_error_khz")]  # fmt: skip
        rows.append([label, str(row["true"]), str(row["found"]), *shares, *errors])
    return rows
