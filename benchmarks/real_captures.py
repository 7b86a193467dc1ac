"""Real captures as the judge: what a segmentation model finds in each of them, against what is known of it.

    python benchmarks/real_captures.py --weights weights/radio_seg_vit_tiny.safetensors
    python benchmarks/real_captures.py --weights model.safetensors --half a
    python benchmarks/real_captures.py --weights model.safetensors --recordings captures/

The captures are SigMF with annotations: NR and LTE where a carrier is known, other labels for signals that
are neither. A capture without annotations holds neither. What lies outside the annotations of the others
does not count.

- A found carrier *meets* an annotated one if it shares half or more of the narrower one's band. (A quiet NR
  cell shows only a part of its band, and of some only the band of the SSB is known.)
- An annotated carrier is *right* if carriers of its technology meet it for at least half of its time, those
  of other classes for at most a tenth, and no more than two boxes of a class meet it. A signal that is
  neither is right if NR and LTE carriers meet it for at most a tenth.
- A capture is right if all its annotations are, and if one without a carrier has no NR and LTE found in it.
- *Boxes*: precision and recall of carriers at an intersection over union of 0.5 in time and frequency; each
  box meets at most one annotation. Boxes that lie mostly outside of all annotations are unknown, and counted
  apart. In a capture without a carrier each box is false.
- *Cells*: of the image cells in NR and LTE annotations, the share with that class; of those of a capture
  that holds neither, the share that is called neither. *Band*: intersection over union of an annotated carrier's band and
  that of the found one that meets it best, median over the carriers. *Strong*: see `labelling.detection`.

The captures are divided by site. Half A may guide choices; half B is for reports only.
"""

import contextlib
import io
import json
import statistics
import sys
import tempfile
from argparse import BooleanOptionalAction
from collections import Counter
from pathlib import Path

import common

import main_segment
from labelling.detection import area, match, overlap
from radio.carriers import CLASS_NAMES, Carrier, from_annotation
from radio.recordings import find_recordings
from util.device import pick_device
from util.errors import UserError, reported
from util.files import writable_folder
from util.metrics import aligned

RECORDINGS = common.ROOT.parent / "shared" / "data" / "recordings"
NOISE, *TECHNOLOGIES = CLASS_NAMES
# The recordings of each half begin with these names.
HALF_A = "lte-f1815.3- lte-signal. noise-f2646- noise-noise other-wifi- other-adsb- nr-srsran- nr-amarisoft-"
HALF_B = "lte-f796- lte-f806- lte-capbuf- nr-cyberx- nr-effnet- nr-oai- other-v16- noise-f826-"
HALVES = {"a": tuple(HALF_A.split()), "b": tuple(HALF_B.split()), "all": ("",)}
MEETS, RIGHT_FOR, WRONG_FOR, MOST_BOXES = 0.5, 0.5, 0.1, 2
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
        signal that is neither), `boxes` (most of one class that meet it), `band_iou` (None where nothing
        right meets it) and `right`.
    """
    is_carrier = expected.label in TECHNOLOGIES
    meeting = [one for one in found if meet(one, expected) and (is_carrier or one.label in TECHNOLOGIES)]
    boxes = max(Counter(one.label for one in meeting).values(), default=0)
    same = [one for one in meeting if one.label == expected.label]
    right_for = time_share(expected, same) if is_carrier else None
    wrong_for = time_share(expected, [one for one in meeting if one.label != expected.label])
    return {
        "label": expected.label,
        "freq_lower_hz": expected.freq_lower_hz,
        "freq_upper_hz": expected.freq_upper_hz,
        "right_for": right_for,
        "wrong_for": wrong_for,
        "boxes": boxes,
        "band_iou": max((band_iou(one, expected) for one in same), default=None),
        "right": wrong_for <= WRONG_FOR
        and (right_for is None or (right_for >= RIGHT_FOR and boxes <= MOST_BOXES)),
    }


def boxes_of(expected, found):
    """{technology: how many are `true`, `found`, `matched`, and `outside` of all annotations}."""
    outside = [
        one for one in found if expected and sum(overlap(one, each) for each in expected) < area(one) / 2
    ]
    pairs = match(found, expected)

    def count(carriers, label):
        return sum(one.label == label for one in carriers)

    return {
        label: {
            "true": count(expected, label),
            "found": count(found, label),
            "matched": count([one for one, _ in pairs], label),
            "outside": count([one for one in outside if all(one is not each for each, _ in pairs)], label),
        }
        for label in TECHNOLOGIES
    }


def share_of_cells(cells, labels):
    """Share of the cells of these classes that are called so; without classes, of all that are called neither."""
    names = list(cells["classes"])
    rows = {
        name: dict(zip(names, row, strict=True)) for name, row in zip(names, cells["confusion"], strict=True)
    }
    neither = [name for name in names if name not in TECHNOLOGIES]
    good = {label: [label] for label in labels} or dict.fromkeys(names, neither)
    hits = sum(rows[true][called] for true, right in good.items() for called in right)
    return hits / sum(sum(rows[true].values()) for true in good)


def verdict(expected, found, cells, strong=None):
    """The verdict on a capture.

    Args:
        expected, found: `Carrier`s.
        cells: `util.metrics.figures` of the capture with its annotations as the truth.
        strong: `labelling.detection.strong_cells` of it.

    Returns:
        dict of `expected` (a `judged` for each), `found` (counts by label), `boxes`, `cells` (a share),
        `strong` and `right`.
    """
    rows = [judged(one, found) for one in expected]
    labels = {one.label for one in expected if one.label in TECHNOLOGIES}
    return {
        "expected": rows,
        "found": dict(sorted(Counter(one.label for one in found).items())),
        "boxes": boxes_of(expected, found),
        "cells": share_of_cells(cells, labels),
        "strong": strong or {"cells": 0, "noise": 0},
        "right": all(row["right"] for row in rows)
        and (bool(labels) or all(one.label not in TECHNOLOGIES for one in found)),
    }


def expected_carriers(recordings):
    """What a file's annotations say, of all of its stretches; times from the file's first sample."""
    carriers = []
    for one in recordings:
        offset_s, half_hz = one.start_s, one.sample_rate_hz / 2
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


def judge(recordings, weights, device="auto", more=()):
    """{name of a capture: its `verdict`} for all captures in files and folders; more: flags of main_segment."""
    paths = [str(path) for path in recordings]
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--weights", str(weights), "--output", folder, "--device", device, "--truth", *more]
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
        truth = labelled[name]["truth"]
        expected = expected_carriers(stretches)
        short = name.removesuffix(".sigmf-meta")
        verdicts[short] = verdict(expected, carriers, truth["cells"], truth["strong"])
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
    """[right ones, all] of captures, of carriers by technology, and of captures without a carrier.

    And `boxes`, the sums of `boxes_of`, and `strong`, those of `strong_cells`.
    """
    rows = [row for one in verdicts.values() for row in one["expected"]]
    empty = [one for one in verdicts.values() if all(row["right_for"] is None for row in one["expected"])]
    groups = {"captures": list(verdicts.values())}
    groups |= {label: [row for row in rows if row["label"] == label] for label in TECHNOLOGIES}
    groups["without_carriers"] = empty
    found = {name: [sum(one["right"] for one in group), len(group)] for name, group in groups.items()}
    boxes = {label: sum_of(one["boxes"][label] for one in verdicts.values()) for label in TECHNOLOGIES}
    return found | {"boxes": boxes, "strong": sum_of(one["strong"] for one in verdicts.values())}


def sum_of(counts):
    total = Counter()
    for one in counts:
        total.update(one)
    return dict(total)


def counts(found):
    texts = [
        f"{name}: {found[name][0]} of {found[name][1]}" for name in found if name not in ("boxes", "strong")
    ]
    return "; ".join(texts).replace("_", " ")


def box_counts(found):
    texts = []
    for label, one in found["boxes"].items():
        inside = one["found"] - one["outside"]
        precision, recall = (f"{one['matched']} of {count}" for count in (inside, one["true"]))
        texts.append(f"{label}: precision {precision}, recall {recall}, outside {one['outside']}")
    noise, cells = found["strong"]["noise"], found["strong"]["cells"]
    return (
        f"{'; '.join(texts)}; strong cells called {NOISE}: {100 * noise / max(1, cells):.1f} % of {cells:,}"
    )


def get_args_parser():
    parser = common.get_parser("Label real captures and compare.")
    parser.add_argument("--weights", required=True, metavar="FILE|NAME", help="of a segmentation model")
    parser.add_argument("--recordings", nargs="+", metavar="PATH", help="SigMF; not given: the shared ones")
    parser.add_argument("--half", default="all", choices=sorted(HALVES), help="of the captures, by site")
    parser.add_argument("--confirm", default=True, action=BooleanOptionalAction, help="search for cells")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    return parser


def main(args):
    if args.recordings is None and not RECORDINGS.is_dir():
        missing = "the shared captures are not beside this repository (--recordings names others)"
        print(f"skipped: {missing}", file=sys.stderr)
        return
    with writable_folder(args.output, f"--output {args.output}"):
        paths = {one.path for one in find_recordings(args.recordings or [RECORDINGS])}
        paths = sorted(path for path in paths if path.name.startswith(HALVES[args.half]))
        if not paths:
            raise UserError(f"--half {args.half}: expected captures of this half; found none")
        verdicts = judge(paths, args.weights, args.device, () if args.confirm else ("--no-confirm",))
        results = {"totals": totals(verdicts), "captures": verdicts}
        print(aligned([HEADER, *rows_of(verdicts)]))
        print(f"right: {counts(results['totals'])}")
        print(f"boxes: {box_counts(results['totals'])}")
        common.write_record("real_captures", args, pick_device(args.device), results)


if __name__ == "__main__":
    with reported():
        main(get_args_parser().parse_args())
