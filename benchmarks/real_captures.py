"""Real captures as the judge: what a segmentation model finds in each of them, against what is known of it.

    python benchmarks/real_captures.py --weights weights/radio_seg_vit_tiny.safetensors
    python benchmarks/real_captures.py --weights model.safetensors --recordings captures/

The captures are SigMF with annotations: NR and LTE where a carrier is known, other labels for signals that
are neither. A capture without annotations holds neither. What lies outside the annotations of the others
does not count.

- A found carrier *meets* an annotated one if it shares half or more of the narrower one's band. (A quiet NR
  cell shows only a part of its band, and of some only the band of the SSB is known.)
- An annotated carrier is *right* if carriers of its technology meet it for at least half of its time, and
  those of the other technology for at most a tenth. A signal that is neither is right if carriers meet it
  for at most a tenth.
- A capture is right if all its annotations are, and if one without a carrier has nothing found in it.
- *Cells*: of the image cells in NR and LTE annotations, the share with that class; of those of a capture
  that holds neither, the share of noise. *Band*: intersection over union of an annotated carrier's band and
  that of the found one that meets it best, median over the carriers.
"""

import contextlib
import io
import json
import statistics
import sys
import tempfile
from collections import Counter
from pathlib import Path

import common

import main_segment
from radio.carriers import CLASS_NAMES, Carrier, from_annotation
from radio.recordings import find_recordings
from util.device import pick_device
from util.errors import reported
from util.files import writable_folder
from util.metrics import aligned

RECORDINGS = common.ROOT.parent / "shared" / "data" / "recordings"
NOISE, *TECHNOLOGIES = CLASS_NAMES
MEETS, RIGHT_FOR, WRONG_FOR = 0.5, 0.5, 0.1
HEADER = ("capture", "expected", "found", "right for", "wrong for", "band", "cells", "verdict")


def shared_hz(one, other):
    return min(one.freq_upper_hz, other.freq_upper_hz) - max(one.freq_lower_hz, other.freq_lower_hz)


def meet(one, other):
    """Whether two carriers share `MEETS` of the narrower one's band, and some time."""
    in_time = min(one.end_s, other.end_s) > max(one.start_s, other.start_s)
    return in_time and shared_hz(one, other) >= MEETS * min(one.bandwidth_hz, other.bandwidth_hz)


def band_iou(one, other):
    shared = max(0.0, shared_hz(one, other))
    return shared / (one.bandwidth_hz + other.bandwidth_hz - shared)


def time_share(carrier, others):
    """Share of a carrier's time in which at least one of the others is."""
    covered, reached = 0.0, carrier.start_s
    for start_s, end_s in sorted((one.start_s, min(one.end_s, carrier.end_s)) for one in others):
        covered += max(0.0, end_s - max(start_s, reached))
        reached = max(reached, end_s)
    return covered / carrier.duration_s


def judged(expected, found):
    """How an annotated carrier fared.

    Returns:
        dict of `label`, the edges, `right_for` and `wrong_for` (shares of its time; `right_for` is None for a
        signal that is neither), `band_iou` (None where nothing right meets it) and `right`.
    """
    meeting = [one for one in found if meet(one, expected)]
    same = [one for one in meeting if one.label == expected.label]
    right_for = time_share(expected, same) if expected.label in TECHNOLOGIES else None
    wrong_for = time_share(expected, [one for one in meeting if one.label != expected.label])
    return {
        "label": expected.label,
        "freq_lower_hz": expected.freq_lower_hz,
        "freq_upper_hz": expected.freq_upper_hz,
        "right_for": right_for,
        "wrong_for": wrong_for,
        "band_iou": max((band_iou(one, expected) for one in same), default=None),
        "right": wrong_for <= WRONG_FOR and (right_for is None or right_for >= RIGHT_FOR),
    }


def verdict(expected, found, cells):
    """The verdict on a capture.

    Args:
        expected, found: `Carrier`s.
        cells: `util.metrics.figures` of the capture with its annotations as the truth.

    Returns:
        dict of `expected` (a `judged` for each), `found` (counts by label), `cells` (a share) and `right`.
    """
    rows = [judged(one, found) for one in expected]
    labels = {one.label for one in expected if one.label in TECHNOLOGIES}
    counted = [cells["classes"][label] for label in labels or {NOISE}]
    counted = [one for one in counted if one["samples"]]
    hits = sum(one["accuracy"] * one["samples"] for one in counted)
    return {
        "expected": rows,
        "found": {label: sum(one.label == label for one in found) for label in TECHNOLOGIES},
        "cells": hits / sum(one["samples"] for one in counted),
        "right": all(row["right"] for row in rows) and bool(labels or not found),
    }


def expected_carriers(recordings):
    """What a file's annotations say, of all of its stretches; times from the file's first sample."""
    carriers = []
    for one in recordings:
        offset_s, half_hz = one.sample_start / one.sample_rate_hz, one.sample_rate_hz / 2
        center_hz = one.center_freq_hz or 0.0
        for carrier in (from_annotation(each, one.sample_rate_hz) for each in one.annotations or ()):
            if carrier is None or carrier.label == NOISE:
                continue
            low_hz = max(carrier.freq_lower_hz, center_hz - half_hz)
            high_hz = min(carrier.freq_upper_hz, center_hz + half_hz)
            start_s, end_s = max(0.0, carrier.start_s), min(carrier.end_s, one.duration_s)
            if low_hz < high_hz and start_s < end_s:
                carriers.append(Carrier(carrier.label, offset_s + start_s, end_s - start_s, low_hz, high_hz))
    return carriers


def judge(recordings, weights, device="auto"):
    """{name of a capture: its `verdict`} for all captures in files and folders."""
    paths = [str(path) for path in recordings]
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--weights", str(weights), "--output", folder, "--device", device, "--truth"]
        with contextlib.redirect_stdout(io.StringIO()):
            main_segment.main(main_segment.get_args_parser().parse_args([*paths, *flags]))
        found = [json.loads(path.read_text("utf-8")) for path in sorted(Path(folder).rglob("*.json"))]
    labelled = {one["recording"]: one for one in found if "recording" in one}
    files = {}
    for one in sorted(find_recordings(paths), key=lambda one: (one.path.name, one.sample_start)):
        files.setdefault(one.path.name, []).append(one)
    fields = ("label", "start_s", "duration_s", "freq_lower_hz", "freq_upper_hz")
    verdicts = {}
    for name, stretches in files.items():
        carriers = [Carrier(*map(one.get, fields)) for one in labelled[name]["carriers"]]
        cells = labelled[name]["truth"]["cells"]
        verdicts[name.removesuffix(".sigmf-meta")] = verdict(expected_carriers(stretches), carriers, cells)
    return verdicts


def rows_of(verdicts):
    """The table, without its header."""
    rows = []
    for name, one in verdicts.items():
        carriers = [row for row in one["expected"] if row["right_for"] is not None]
        labels = Counter(row["label"] for row in one["expected"])
        right = " ".join(f"{100 * row['right_for']:.0f}" for row in carriers) or "-"
        wrong = " ".join(f"{100 * row['wrong_for']:.0f}" for row in one["expected"]) or "-"
        bands = [row["band_iou"] or 0.0 for row in carriers]
        band = f"{statistics.median(bands):.2f}" if bands else "-"
        cells, is_right = f"{100 * one['cells']:.1f}", "right" if one["right"] else "WRONG"
        rows.append([name, named(labels), named(one["found"]), right, wrong, band, cells, is_right])
    return rows


def named(numbers):
    return ", ".join(f"{count} {label}" for label, count in numbers.items() if count) or "nothing"


def totals(verdicts):
    """[right ones, all] of captures, of carriers by technology, and of captures without a carrier."""
    rows = [row for one in verdicts.values() for row in one["expected"]]
    empty = [one for one in verdicts.values() if all(row["right_for"] is None for row in one["expected"])]
    groups = {"captures": list(verdicts.values())}
    groups |= {label: [row for row in rows if row["label"] == label] for label in TECHNOLOGIES}
    groups["without_carriers"] = empty
    return {name: [sum(one["right"] for one in group), len(group)] for name, group in groups.items()}


def counts(found):
    texts = (f"{name}: {right} of {count}" for name, (right, count) in found.items())
    return "; ".join(texts).replace("_", " ")


def get_args_parser():
    parser = common.get_parser("Label real captures and compare.")
    parser.add_argument("--weights", required=True, metavar="FILE|NAME", help="of a segmentation model")
    parser.add_argument("--recordings", nargs="+", metavar="PATH", help="SigMF; not given: the shared ones")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    return parser


def main(args):
    if args.recordings is None and not RECORDINGS.is_dir():
        missing = "the shared captures are not beside this repository (--recordings names others)"
        print(f"skipped: {missing}", file=sys.stderr)
        return
    with writable_folder(args.output, f"--output {args.output}"):
        verdicts = judge(args.recordings or [RECORDINGS], args.weights, args.device)
        results = {"totals": totals(verdicts), "captures": verdicts}
        print(aligned([HEADER, *rows_of(verdicts)]))
        print(f"right: {counts(results['totals'])}")
        common.write_record("real_captures", args, pick_device(args.device), results)


if __name__ == "__main__":
    with reported():
        main(get_args_parser().parse_args())
