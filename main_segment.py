"""Label recordings with a fine-tuned segmentation model: what is in a capture, when, at which frequency?

    # a SigMF recording; a folder of them; several
    python main_segment.py capture.sigmf-meta --weights output_finetune/checkpoint-best.pth
    python main_segment.py captures/ more.sigmf --weights model.safetensors --output labels

    # raw IQ or .npy
    python main_segment.py capture.cs16 --sample_rate 20e6 --center_freq 1.8153e9 --weights model.safetensors

    # the radio fork's fine-tuned file, which names no classes
    python main_segment.py capture.sigmf-meta --weights fork.pth --classes Noise,NR,LTE

    # a live receiver: one JSON line for each window
    hackrf_transfer -r - -f 1815300000 -s 20000000 | \\
        python main_segment.py - --sample_rate 20e6 --datatype ci8 --center_freq 1.8153e9 --weights a.pth

    # compare with the recording's own annotations
    python main_segment.py capture.sigmf-meta --weights model.safetensors --truth

For each recording, `--output` gets three files: NAME.sigmf-meta, its metadata with an annotation for each
carrier, beside a link to the data; NAME.json, the same as JSON; and NAME.png, waterfall and class map.
"""

import contextlib
import json
import math
import os
import sys
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from data.splits import relative_paths
from engine_label import DEFAULT_OVERLAP, PICTURE_STRETCHES, Truth, check_ranges, label_stretches, picture
from engine_segment import open_segmenter
from labelling import sigmf_output
from labelling.detection import detection_figures, detection_rows, strong_cells
from labelling.outputs import plan, tuned
from labelling.region_pool import RegionPool
from labelling.regions import DEFAULT_BRIDGE_S, DEFAULT_COLUMNS, DEFAULT_CONFIDENCE, DEFAULT_ROWS, Limits
from radio.recordings import META_SUFFIX, find_recordings
from radio.samples import IqStream, full_datatype
from util.compiling import can_compile, working_compiler
from util.device import AMP_CHOICES, keep_freed_memory, pick_device, usable_cores
from util.errors import UserError, reported, warn
from util.files import atomic_path, writable_folder
from util.flags import Parser
from util.metrics import Confusion, aligned, table
from util.pretrained import add_arguments

STREAM = "-"
FINDERS = 8  # most processes that find carriers for a GPU
COMPILE_WINDOWS = 200_000  # compiling takes about a minute; it pays for more windows
# fields of a stretch and of a carrier in the JSON
STRETCH = ("sample_start", "num_samples", "sample_rate_hz", "center_freq_hz")
CARRIER = ("label", "start_s", "duration_s", "freq_lower_hz", "freq_upper_hz")
CARRIER += ("center_freq_hz", "bandwidth_hz", "confidence")


def get_args_parser():
    parser = Parser("Label recordings with a fine-tuned segmentation model.")
    add = parser.add_argument
    inputs = "SigMF, .npy or raw IQ: files and folders; - for a stream on standard input"
    weights = "a checkpoint or --export of main_finetune.py --task segmentation, or a released name"
    add("recordings", nargs="+", metavar="RECORDING", help=inputs)
    add("--weights", required=True, metavar="FILE|NAME", help=weights)
    add("--classes", metavar="NAME,NAME", help="class names, the background first, for weights without names")
    add_arguments(parser)
    add("--output", default="./output_segment", metavar="FOLDER", help="annotations, JSON and pictures")
    add("--replace", action="store_true", help="replace the recordings' own annotations")
    add("--truth", action="store_true", help="compare with the recordings' own annotations")

    add = parser.add_argument_group("recordings without this information").add_argument
    add("--sample_rate", type=float, metavar="HZ", help="for raw and .npy recordings and a stream")
    add("--datatype", help="SigMF datatype of raw recordings and a stream, e.g. ci16_le")
    add("--center_freq", type=float, metavar="HZ", help="centre frequency, so that edges are given at RF")

    add = parser.add_argument_group("what counts as a carrier").add_argument
    of_frame = "for NR and LTE half a frame, 5 ms, or half of a shorter stretch"
    add("--min_bandwidth_hz", type=float, help=f"without it, {DEFAULT_ROWS} image rows")
    add("--min_duration_s", type=float, help=f"without it, {DEFAULT_COLUMNS} image columns; {of_frame}")
    add("--min_confidence", type=float, default=DEFAULT_CONFIDENCE, help="mean probability of the label")
    add("--bridge_s", type=float, default=DEFAULT_BRIDGE_S, help="longest silence inside a carrier")

    add = parser.add_argument_group("run").add_argument
    on_or_off = ("auto", "on", "off")
    add("--overlap", type=float, default=DEFAULT_OVERLAP, help="share of a window that the next covers too")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    add("--amp", default="auto", choices=AMP_CHOICES, help="mixed precision; auto: by device and model")
    add("--compile", default="auto", choices=on_or_off, help="auto: on a GPU, for long recordings")
    return parser


def check_args(args):
    """Refuse impossible values before anything is opened."""
    check_ranges(vars(args), "--")
    if args.center_freq is not None and not math.isfinite(args.center_freq):
        raise UserError(f"--center_freq: expected a number of Hz; found {args.center_freq}")
    if STREAM not in args.recordings:
        return
    if len(args.recordings) > 1:
        raise UserError(f"{STREAM}: expected a stream alone; found {len(args.recordings) - 1} recordings too")
    if args.truth or args.replace:
        raise UserError(f"--truth, --replace: expected recordings with annotations; found {STREAM}, a stream")
    if not args.sample_rate or not 0 < args.sample_rate < math.inf:
        raise UserError(f"--sample_rate: expected the stream's sample rate in Hz; found {args.sample_rate}")
    if not args.datatype:
        raise UserError("--datatype: expected the stream's datatype, e.g. ci8 or ci16_le; found none")


def label(one, segmenter, args, limits):
    """Find the carriers of a `LabelledRecording`, write its files and print its table.

    Returns:
        A pair (found, true) for each stretch, as for `detection_figures`; true is None without `--truth`.
    """
    stretches, rows, confusion, left_out = [], [], Confusion(segmenter.class_names), Counter()
    strong = Counter(cells=0, noise=0)
    truth = partial(Truth, confusion=confusion, left_out=left_out) if args.truth else None
    total = sum(channels[0].num_samples for channels in one.stretches)
    with tqdm(total=total, desc=one.first.path.name, unit=" samples", unit_scale=True, disable=None) as bar:
        for stretch in label_stretches(segmenter, one.stretches, limits, args.overlap, truth, bar.update):
            if len(rows) < PICTURE_STRETCHES:
                rows.append(stretch.picture_row)
            if args.truth:
                column_s = stretch.recording.duration_s / stretch.image.shape[1]
                strong.update(strong_cells(stretch.image, stretch.class_map, column_s))
            stretches.append(replace(stretch, image=None, class_map=None))  # thousands would fill the memory

    pairs, scores = [(stretch.found, stretch.true) for stretch in stretches], {}
    if args.truth:
        figures = detection_figures(pairs, segmenter.class_names[1:])
        scores = {"cells": confusion.results(), "carriers": figures, "strong": dict(strong)}
    with segmenter.timings.part("writing"):
        write(one, stretches, rows, scores, segmenter, args)
    show(one, stretches)
    if args.truth:
        if left_out:
            named = ", ".join(f"{name or '(no label)'} ({count})" for name, count in sorted(left_out.items()))
            warn(f"{one.first.path}: annotations left out of the truth: {named}")
        print(f"\n{table(scores['cells'])}\n\n{aligned(detection_rows(scores['carriers']))}")
    return pairs


def write(one, stretches, rows, scores, segmenter, args):
    """Write the three files of a recording, or none of them, and the link to its data."""
    found = [(each.recording, each.found) for each in stretches]
    metadata = sigmf_output.annotated(one.metadata, found, args.replace)
    try:
        one.output.parent.mkdir(parents=True, exist_ok=True)
        one.make_link()
    except OSError as error:
        expected = f"expected a folder that can be written; {error.strerror}"
        raise UserError(f"--output {args.output}: {expected}") from error
    if wrong := sigmf_output.problem(metadata):
        warn(f"{one.file(META_SUFFIX)}: invalid SigMF, because of the metadata of {one.first.path}: {wrong}")
    carriers = [(number, carrier) for number, each in enumerate(stretches) for carrier in each.carriers]
    about = {
        "recording": one.first.path.name,
        "weights": Path(args.weights).name,
        "classes": segmenter.class_names,
        "front_end": segmenter.front_end.settings(),
        "stretches": [fields(each.recording, STRETCH) for each in stretches],
        "carriers": [{"stretch": number, **fields(carrier, CARRIER)} for number, carrier in carriers],
        **({"truth": scores} if scores else {}),
    }
    figure = picture(rows, len(stretches), segmenter.class_names, about["recording"], about["weights"])
    try:
        with contextlib.ExitStack() as stack:  # all files are written before any of them gets its name
            files = [one.file(suffix) for suffix in (META_SUFFIX, ".json", ".png")]
            meta, plain, drawn = (stack.enter_context(atomic_path(file)) for file in files)
            figure.savefig(drawn, format="png", dpi=100)
            plain.write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", "utf-8")
            meta.write_text(json.dumps(metadata, indent=4, ensure_ascii=False) + "\n", "utf-8")
    except OSError as error:
        problem = f"{one.output.name} could not be written: {error.strerror}"
        raise UserError(f"--output {args.output}: {problem}") from error


def fields(one, names):
    return {name: getattr(one, name) for name in names}


def show(one, stretches):
    """Print the table of a recording's carriers; times from the file's first sample."""
    rows = [["label", "centre MHz", "bandwidth MHz", "start ms", "duration ms", "confidence"]]
    for carrier in (carrier for stretch in stretches for carrier in stretch.carriers):
        band = [f"{hz / 1e6:.3f}" for hz in (carrier.center_freq_hz, carrier.bandwidth_hz)]
        time_ms = [f"{seconds * 1e3:.2f}" for seconds in (carrier.start_s, carrier.duration_s)]
        rows.append([carrier.label, *band, *time_ms, f"{carrier.confidence:.2f}"])
    known = all(stretch.recording.center_freq_hz is not None for stretch in stretches)
    found = f"{len(rows) - 1} carrier{'s' * (len(rows) != 2)}"
    print(f"\n{one.first.path.name}: {found}{'' if known else ' (frequencies from the centre)'}")
    print(aligned(rows) if len(rows) > 1 else "nothing was found but noise", flush=True)


def label_stream(segmenter, args, limits):
    """Print a JSON line for each window of standard input, until it ends, Ctrl-C, or the reader ends."""
    source = IqStream(sys.stdin.buffer, full_datatype("standard input", args.datatype), "standard input")
    try:
        for start, count, carriers in segmenter.stream(source, args.sample_rate, args.center_freq, limits):
            start_s, duration_s = start / args.sample_rate, count / args.sample_rate
            carriers = [replace(one, start_s=start_s + one.start_s) for one in carriers]
            carriers = [fields(one, CARRIER) for one in carriers]
            line = {"start_s": start_s, "duration_s": duration_s, "carriers": carriers}
            print(json.dumps(line, ensure_ascii=False), flush=True)
    except KeyboardInterrupt:  # the usual end
        pass
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains at its end


def label_recordings(segmenter, args, limits):
    """Label all recordings; with `--truth`, print the figures over all of them."""
    found = tuned(find_recordings(args.recordings, args.sample_rate, args.datatype), args.center_freq)
    recordings = plan(found, relative_paths([one.path for one in found]), args.output, args.center_freq)
    signal_s = sum(channels[0].duration_s for one in recordings for channels in one.stretches)
    pays = signal_s / segmenter.front_end.duration_s > COMPILE_WINDOWS
    with writable_folder(args.output, f"--output {args.output}"), contextlib.ExitStack() as stack:
        if args.compile == "on" or (args.compile == "auto" and pays and can_compile(segmenter.device)):
            stack.enter_context(working_compiler("--compile"))
            segmenter.compile()
        pairs = [pair for one in recordings for pair in label(one, segmenter, args, limits)]
    if args.truth and len(recordings) > 1:
        figures = detection_figures(pairs, segmenter.class_names[1:])
        print(f"\nall {len(recordings)} recordings\n{aligned(detection_rows(figures))}")


def main(args):
    """Label what the flags say, and return the `Timings`."""
    check_args(args)
    keep_freed_memory()
    live = STREAM in args.recordings
    # The pool forks this process, which must not use a GPU before.
    on_gpu = args.device != "cpu" and torch.cuda.is_available() and hasattr(os, "fork")
    pool = RegionPool(min(FINDERS, -(-len(usable_cores()) // 2))) if on_gpu and not live else None
    try:
        classes, device = args.classes.split(",") if args.classes else None, pick_device(args.device)
        segmenter = open_segmenter(args.weights, device, args.amp, classes, args.norm_eps, args.offline)
        limits = Limits(args.min_bandwidth_hz, args.min_duration_s, args.min_confidence, args.bridge_s)
        started = time.perf_counter()
        with segmenter.on_its_cores(pool):
            (label_stream if live else label_recordings)(segmenter, args, limits)
        summary = segmenter.timings.summary(time.perf_counter() - started)
        if live:
            print(summary, file=sys.stderr)
        else:
            print(f"\n{summary}\nsee {args.output}/: annotations, JSON, pictures")
    finally:
        if pool:
            pool.close()
    return segmenter.timings


if __name__ == "__main__":
    with reported():
        main(get_args_parser().parse_args())
