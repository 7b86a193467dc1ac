"""Real captures as the judge: what a segmentation model finds in each of them, against what is known of it.

    python benchmarks/real_captures.py --weights weights/radio_seg_vit_tiny.safetensors
    python benchmarks/real_captures.py --weights model.safetensors --recordings captures/ --labels labelled

The captures are SigMF with annotations: NR and LTE where a carrier is known, other labels for what is known to be neither.
One without annotations holds neither. What lies outside the annotations of the others is not known and does not count.

- A found carrier *meets* an annotated one if it shares half or more of the narrower one's band. (An NR cell that is quiet
  shows a part of its band only, and of some only the band of the SSB is known.)
- An annotated carrier is *right* if carriers of its technology meet it for at least half of its time, and those of the other
  technology for at most a tenth. A signal that is neither is right if carriers meet it for at most a tenth of its time.
- A capture is right if all of that is, and if one without a carrier has nothing found in it.
- *Cells*: of the image cells in NR and LTE annotations, the share with that class; of those of a capture that holds
  neither, the share of noise. *Band*: intersection over union of an annotated carrier's band and that of the found one that
  meets it best, median over the carriers.
"""

import argparse
import contextlib
import io
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import common

import main_segment
from radio.carriers import CLASS_NAMES, from_annotation
from radio.recordings import find_recordings
from util.device import pick_device
from util.errors import UserError, reported

RECORDINGS = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "recordings"
NOISE, *TECHNOLOGIES = CLASS_NAMES
MEETS, RIGHT_FOR, WRONG_FOR = 0.5, 0.5, 0.1
HEADER = ("capture", "expected", "found", "right for", "wrong for", "band", "cells", "verdict")


@dataclass(frozen=True)
class Box:
    """A carrier: seconds from the file's beginning, Hz at RF or from the centre."""

    label: str
    start_s: float
    end_s: float
    low_hz: float
    high_hz: float

    def meets(self, other):
        """Whether they share `MEETS` of the narrower one's band, and some time."""
        narrower = min(self.high_hz - self.low_hz, other.high_hz - other.low_hz)
        shared = min(self.high_hz, other.high_hz) - max(self.low_hz, other.low_hz)
        return shared >= MEETS * narrower and min(self.end_s, other.end_s) > max(self.start_s, other.start_s)

    def band_iou(self, other):
        shared = min(self.high_hz, other.high_hz) - max(self.low_hz, other.low_hz)
        return max(0.0, shared / (max(self.high_hz, other.high_hz) - min(self.low_hz, other.low_hz)))


def time_share(box, others):
    """Share of a box's time in which at least one of the others is."""
    covered, reached = 0.0, box.start_s
    for start_s, end_s in sorted((one.start_s, min(one.end_s, box.end_s)) for one in others):
        covered += max(0.0, end_s - max(start_s, reached))
        reached = max(reached, end_s)
    return covered / (box.end_s - box.start_s)


def judged(expected, found):
    """How an annotated carrier fared.

    Returns:
        dict of `label`, the edges, `right_for` and `wrong_for` (shares of its time; what is neither has no right ones),
        `band_iou` (None where nothing right meets it) and `right`.
    """
    meeting = [one for one in found if one.meets(expected)]
    same = [one for one in meeting if one.label == expected.label]
    right_for = time_share(expected, same) if expected.label in TECHNOLOGIES else None
    wrong_for = time_share(expected, [one for one in meeting if one.label != expected.label])
    return {
        "label": expected.label, "freq_lower_hz": expected.low_hz, "freq_upper_hz": expected.high_hz,
        "right_for": right_for, "wrong_for": wrong_for,
        "band_iou": max((one.band_iou(expected) for one in same), default=None),
        "right": wrong_for <= WRONG_FOR and (right_for is None or right_for >= RIGHT_FOR),
    }  # fmt: skip


def verdict(expected, found, cells):
    """All that is said of a capture.

    Args:
        expected, found: `Box`es. cells: `util.metrics.figures` of the capture with its annotations as the truth.

    Returns:
        dict of `expected` (a `judged` for each), `found` (how many of each technology), `cells` (a share) and `right`.
    """
    rows = [judged(one, found) for one in expected]
    carriers = [one for one in expected if one.label in TECHNOLOGIES]
    if carriers:
        counted = [cells["classes"][label] for label in {one.label for one in carriers}]
        hits, total = (sum(values) for values in zip(*((one["accuracy"] * one["samples"], one["samples"])
                                                       for one in counted if one["samples"]), strict=True))  # fmt: skip
        share = hits / total
    else:
        share = cells["classes"][NOISE]["accuracy"]
    return {
        "expected": rows, "found": {label: sum(one.label == label for one in found) for label in TECHNOLOGIES},
        "cells": share, "right": all(row["right"] for row in rows) and bool(carriers or not found),
    }  # fmt: skip


def expected_boxes(recordings):
    """What a file's annotations say, of all of its stretches."""
    boxes = []
    for one in recordings:
        offset_s, half_hz = one.sample_start / one.sample_rate_hz, one.sample_rate_hz / 2
        center_hz = one.center_freq_hz or 0.0
        for carrier in (from_annotation(each, one.sample_rate_hz) for each in one.annotations or ()):
            if carrier is None or carrier.label == NOISE:
                continue
            low, high = max(carrier.freq_lower_hz, center_hz - half_hz), min(carrier.freq_upper_hz, center_hz + half_hz)
            start_s, end_s = max(0.0, carrier.start_s), min(carrier.end_s, one.duration_s)
            if low < high and start_s < end_s:
                boxes.append(Box(carrier.label, offset_s + start_s, offset_s + end_s, low, high))
    return boxes


def found_boxes(labelled):
    return [Box(one["label"], one["start_s"], one["start_s"] + one["duration_s"], one["freq_lower_hz"], one["freq_upper_hz"])
            for one in labelled["carriers"]]  # fmt: skip


def label(recordings, weights, device, folder, more=()):
    """Run main_segment.py on the recordings: {name of the recording: its JSON}. Its tables go nowhere."""
    command = [*map(str, recordings), "--weights", str(weights), "--output", str(folder), "--device", device, "--truth"]
    with contextlib.redirect_stdout(io.StringIO()):
        main_segment.main(main_segment.get_args_parser().parse_args([*command, *more]))
    return {one["recording"]: one for path in sorted(Path(folder).rglob("*.json")) if "recording" in (one := read(path))}


def read(path):
    return json.loads(Path(path).read_text("utf-8"))


def by_file(recordings):
    """{name of the file: its `Recording`s}, in the order of the names."""
    files, found = {}, find_recordings([str(path) for path in recordings])
    for one in sorted(found, key=lambda one: (one.path.name, one.sample_start)):
        files.setdefault(one.path.name, []).append(one)
    return files


def judge(recordings, weights, device="auto", labels=None, more=()):
    """{name of a capture: its `verdict`} for all captures in files and folders.

    Args:
        labels: folder for what main_segment.py writes; None: not kept. more: further flags of main_segment.py.
    """
    with contextlib.ExitStack() as stack:
        folder = labels or stack.enter_context(tempfile.TemporaryDirectory())
        labelled = label(recordings, weights, device, folder, more)
    return {name.removesuffix(".sigmf-meta"): verdict(expected_boxes(stretches), found_boxes(labelled[name]),
                                                      labelled[name]["truth"]["cells"])
            for name, stretches in by_file(recordings).items()}  # fmt: skip


def rows_of(verdicts):
    """The table, without its header."""
    rows = []
    for name, one in verdicts.items():
        carriers = [row for row in one["expected"] if row["right_for"] is not None]
        expected = ", ".join(f"{[row['label'] for row in one['expected']].count(label)} {label}"
                             for label in dict.fromkeys(row["label"] for row in one["expected"]))  # fmt: skip
        found = ", ".join(f"{count} {label}" for label, count in one["found"].items() if count)
        bands = [row["band_iou"] or 0.0 for row in carriers]
        rows.append([
            name, expected or "nothing", found or "nothing",
            " ".join(f"{100 * row['right_for']:.0f}" for row in carriers) or "-",
            " ".join(f"{100 * row['wrong_for']:.0f}" for row in one["expected"]) or "-",
            f"{statistics.median(bands):.2f}" if bands else "-", f"{100 * one['cells']:.1f}",
            "right" if one["right"] else "WRONG",
        ])  # fmt: skip
    return rows


def totals(verdicts):
    """Counts over all captures: right ones, right carriers by technology, captures without a carrier that are right."""
    rows = [row for one in verdicts.values() for row in one["expected"]]
    empty = [one for one in verdicts.values() if all(row["right_for"] is None for row in one["expected"])]
    return {
        "captures": [sum(one["right"] for one in verdicts.values()), len(verdicts)],
        **{label: [sum(row["right"] for row in rows if row["label"] == label), sum(row["label"] == label for row in rows)]
           for label in TECHNOLOGIES},
        "without_carriers": [sum(one["right"] for one in empty), len(empty)],
    }  # fmt: skip


def get_args_parser():
    parser = argparse.ArgumentParser(description="Label real captures and compare.", allow_abbrev=False,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)  # fmt: skip
    parser.add_argument("--weights", required=True, metavar="FILE|NAME", help="of a segmentation model")
    parser.add_argument("--recordings", nargs="+", metavar="PATH", help="SigMF; not given: the shared ones")
    parser.add_argument("--labels", metavar="FOLDER", help="keep what main_segment.py writes: annotations, JSON, pictures")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    parser.add_argument("--output", default="benchmarks/results", metavar="FOLDER", help="where the JSON file goes")
    return parser


def main(args):
    """Returns the verdicts, or None where the shared captures are not there."""
    if args.recordings is None and not RECORDINGS.is_dir():
        print("skipped: the shared captures are not beside this repository (--recordings names others)", file=sys.stderr)
        return None
    recordings = args.recordings or [RECORDINGS]
    try:
        Path(args.output).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {args.output}: expected a folder that can be written; {error.strerror}") from error
    verdicts = judge(recordings, args.weights, args.device, args.labels)
    common.print_table(HEADER, rows_of(verdicts))
    counts = totals(verdicts)
    print("; ".join(f"{name.replace('_', ' ')}: {right} of {all_} right" for name, (right, all_) in counts.items()))
    parser = get_args_parser()
    kept = argparse.Namespace(**vars(args) | {"labels": None, "weights": Path(args.weights).name,
                                              "recordings": args.recordings and [Path(one).name for one in args.recordings]})
    common.write_results("real_captures", parser, kept, pick_device(args.device), ("timm",),
                         {"totals": counts, "captures": verdicts})
    return verdicts


if __name__ == "__main__":
    with reported():
        main(get_args_parser().parse_args())
