"""Label recordings with a fine-tuned segmentation model: what is in this capture, when, and at which frequencies?

    # a SigMF recording; a folder of them; several
    python main_segment.py capture.sigmf-meta --weights output_finetune/checkpoint-best.pth
    python main_segment.py captures/ more.sigmf --weights model.safetensors --output labels

    # raw IQ or .npy
    python main_segment.py capture.cs16 --sample_rate 20e6 --center_freq 1.8153e9 --weights model.safetensors

    # the radio fork's fine-tuned file, which names no classes
    python main_segment.py capture.sigmf-meta --weights fork.pth --classes Noise,NR,LTE

    # the air, a JSON line a window
    hackrf_transfer -r - -f 1815300000 -s 20000000 | \\
        python main_segment.py - --sample_rate 20e6 --datatype ci8 --center_freq 1.8153e9 --weights model.safetensors

    # how right is it? against the recording's own annotations
    python main_segment.py capture.sigmf-meta --weights model.safetensors --truth

For each recording, `--output` gets NAME.sigmf-meta, the recording's metadata with an annotation for each carrier and a link
to its data beside it; NAME.json, the same as JSON; and NAME.png, waterfall and class map.
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
from labelling.detection import detection_figures, detection_rows
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
# With a GPU: processes that look for carriers, where the machine has cores for them.
FINDERS = 8
# What compiling pays from: it takes about a minute.
COMPILE_WINDOWS = 200_000
# What the JSON says of a stretch and of a carrier.
STRETCH = ("sample_start", "num_samples", "sample_rate_hz", "center_freq_hz")
CARRIER = ("label", "start_s", "duration_s", "freq_lower_hz", "freq_upper_hz", "center_freq_hz", "bandwidth_hz",
           "confidence")  # fmt: skip


def get_args_parser():
    parser = Parser("Label recordings with a fine-tuned segmentation model.")
    parser.add_argument("recordings", nargs="+", metavar="RECORDING",
                        help="SigMF, .npy or raw IQ: files and folders; - for a stream on standard input")
    parser.add_argument("--weights", required=True, metavar="FILE|NAME",
                        help="of main_finetune.py --task segmentation: a checkpoint, its --export, or a released name")
    parser.add_argument("--classes", metavar="NAME,NAME", help="class names of weights that have none, the background first")
    add_arguments(parser)
    parser.add_argument("--output", default="./output_segment", metavar="FOLDER", help="annotations, JSON and pictures")
    parser.add_argument("--replace", action="store_true", help="leave the recordings' own annotations out of the output")
    parser.add_argument("--truth", action="store_true", help="compare with the recordings' own annotations")

    data = parser.add_argument_group("recordings that do not say")
    data.add_argument("--sample_rate", type=float, metavar="HZ", help="of raw and .npy recordings and of a stream")
    data.add_argument("--datatype", help="SigMF datatype of raw recordings and of a stream, e.g. ci16_le")
    data.add_argument("--center_freq", type=float, metavar="HZ", help="centre frequency; edges are given at RF with it")

    carriers = parser.add_argument_group("what counts as a carrier")
    carriers.add_argument("--min_bandwidth_hz", type=float, help=f"{DEFAULT_ROWS} image rows where not given")
    carriers.add_argument("--min_duration_s", type=float, help=f"{DEFAULT_COLUMNS} image columns where not given, but of NR "
                          "and LTE half a frame, 5 ms, or half of a shorter stretch")  # fmt: skip
    carriers.add_argument("--min_confidence", type=float, default=DEFAULT_CONFIDENCE, help="mean probability of the label")
    carriers.add_argument("--bridge_s", type=float, default=DEFAULT_BRIDGE_S, help="longest silence inside a carrier")

    run = parser.add_argument_group("run")
    run.add_argument("--overlap", type=float, default=DEFAULT_OVERLAP,
                     help="share of a window that the next covers too, averaged")
    run.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    run.add_argument("--amp", default="auto", choices=AMP_CHOICES, help="mixed precision; auto: as the machine computes")
    run.add_argument("--compile", default="auto", choices=("auto", "on", "off"),
                     help="compile the model; auto: on a GPU, for recordings so long that it pays")
    return parser


def check_args(args):
    """Refuse values that no run can have, before anything is opened."""
    check_ranges(vars(args), "--")
    if args.center_freq is not None and not math.isfinite(args.center_freq):
        raise UserError(f"--center_freq: expected a number of Hz; found {args.center_freq}")
    if STREAM not in args.recordings:
        return
    if len(args.recordings) > 1:
        raise UserError(f"{STREAM}: expected a stream alone; found {len(args.recordings) - 1} recordings beside it")
    if args.truth or args.replace:
        raise UserError(f"--truth, --replace: expected recordings with annotations; found {STREAM}, a stream")
    if not args.sample_rate or not 0 < args.sample_rate < math.inf:
        raise UserError(f"--sample_rate: expected that of the stream in Hz; found {args.sample_rate}")
    if not args.datatype:
        raise UserError("--datatype: expected that of the stream, e.g. ci8 or ci16_le; found none")


def open_recordings(args):
    """What to label, as `labelling.outputs.LabelledRecording`s: nothing is written yet."""
    found = tuned(find_recordings(args.recordings, args.sample_rate, args.datatype), args.center_freq)
    return plan(found, relative_paths([one.path for one in found]), args.output, args.center_freq)


def label(one, segmenter, args, limits):
    """Find the carriers of a recording, write its files and print its table.

    Returns:
        A pair (found, true) of carriers for each stretch, for `detection_figures`; true is None without `--truth`.
    """
    stretches, rows, confusion, left_out = [], [], Confusion(segmenter.class_names), Counter()
    truth = partial(Truth, confusion=confusion, left_out=left_out) if args.truth else None
    total = sum(channels[0].num_samples for channels in one.stretches)
    with tqdm(total=total, desc=one.first.path.name, unit=" samples", unit_scale=True, disable=None) as bar:
        for stretch in label_stretches(segmenter, one.stretches, limits, args.overlap, truth, bar.update):
            if len(rows) < PICTURE_STRETCHES:
                rows.append(stretch.picture_row)
            stretches.append(replace(stretch, image=None, class_map=None))  # of thousands they would fill the memory

    pairs, scores = [(stretch.found, stretch.true) for stretch in stretches], {}
    if args.truth:
        scores = {"cells": confusion.results(), "carriers": detection_figures(pairs, segmenter.class_names[1:])}
    with segmenter.timings.part("writing"):
        write(one, stretches, rows, scores, segmenter, args)
    show(one, stretches)
    if args.truth:
        if left_out:
            named = ", ".join(f"{name or '(no label)'} ({count})" for name, count in sorted(left_out.items()))
            warn(f"{one.first.path}: annotations that are left out of the truth: {named}")
        print(f"\n{table(scores['cells'])}\n\n{aligned(detection_rows(scores['carriers']))}")
    return pairs


def write(one, stretches, rows, scores, segmenter, args):
    """The three files of a recording, all or none of them, and the link to its data."""
    metadata = sigmf_output.annotated(one.metadata, [(each.recording, each.found) for each in stretches], args.replace)
    try:
        one.output.parent.mkdir(parents=True, exist_ok=True)
        one.make_link()
    except OSError as error:
        raise UserError(f"--output {args.output}: expected a folder that can be written; {error.strerror}") from error
    if wrong := sigmf_output.problem(metadata):
        warn(f"{one.file(META_SUFFIX)}: no valid SigMF, for what it keeps of {one.first.path}: {wrong}")
    about = {
        "recording": one.first.path.name,
        "weights": Path(args.weights).name,
        "classes": segmenter.class_names,
        "front_end": segmenter.front_end.settings(),
        "stretches": [{name: getattr(each.recording, name) for name in STRETCH} for each in stretches],
        "carriers": [{"stretch": number, **as_json(carrier)}
                     for number, each in enumerate(stretches) for carrier in each.carriers],
        **({"truth": scores} if scores else {}),
    }  # fmt: skip
    figure = picture(rows, len(stretches), segmenter.class_names, about["recording"], about["weights"])
    try:
        with contextlib.ExitStack() as stack:  # all are written before any of them gets its name
            meta, plain, drawn = (stack.enter_context(atomic_path(one.file(suffix)))
                                  for suffix in (META_SUFFIX, ".json", ".png"))  # fmt: skip
            figure.savefig(drawn, format="png", dpi=100)
            plain.write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", "utf-8")
            meta.write_text(sigmf_output.to_text(metadata), "utf-8")
    except OSError as error:
        raise UserError(f"--output {args.output}: {one.output.name} could not be written: {error.strerror}") from error


def as_json(carrier):
    """A carrier as plain values."""
    return {name: getattr(carrier, name) for name in CARRIER}


def show(one, stretches):
    """The table of a recording's carriers, times from the file's first sample."""
    rows = [["label", "centre MHz", "bandwidth MHz", "start ms", "duration ms", "confidence"]]
    rows += [[carrier.label, f"{carrier.center_freq_hz / 1e6:.3f}", f"{carrier.bandwidth_hz / 1e6:.3f}",
              f"{carrier.start_s * 1e3:.2f}", f"{carrier.duration_s * 1e3:.2f}", f"{carrier.confidence:.2f}"]
             for stretch in stretches for carrier in stretch.carriers]  # fmt: skip
    known = all(stretch.recording.center_freq_hz is not None for stretch in stretches)
    found = f"{len(rows) - 1} carrier{'s' * (len(rows) != 2)}"
    print(f"\n{one.first.path.name}: {found}{'' if known else ' (frequencies from the centre)'}")
    print(aligned(rows) if len(rows) > 1 else "nothing was found but noise", flush=True)


def label_stream(segmenter, args, limits):
    """A JSON line for each window of standard input, until it ends, Ctrl-C, or nobody reads them any more."""
    source = IqStream(sys.stdin.buffer, full_datatype("standard input", args.datatype), "standard input")
    try:
        for start, count, carriers in segmenter.stream(source, args.sample_rate, args.center_freq, limits):
            start_s = start / args.sample_rate
            line = {"start_s": start_s, "duration_s": count / args.sample_rate,
                    "carriers": [as_json(replace(one, start_s=start_s + one.start_s)) for one in carriers]}  # fmt: skip
            print(json.dumps(line, ensure_ascii=False), flush=True)
    except KeyboardInterrupt:  # how the air is listened to until it is enough
        pass
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains of it again at its end


def label_recordings(segmenter, args, limits):
    """Every recording into the output folder, and with `--truth` how right all are together."""
    recordings = open_recordings(args)
    signal_s = sum(channels[0].duration_s for one in recordings for channels in one.stretches)
    windows = signal_s / segmenter.front_end.duration_s
    pays = windows > COMPILE_WINDOWS
    with writable_folder(args.output, f"--output {args.output}"), contextlib.ExitStack() as stack:
        if args.compile == "on" or (args.compile == "auto" and pays and can_compile(segmenter.device)):
            stack.enter_context(working_compiler("--compile"))
            segmenter.compile()
        pairs = [pair for one in recordings for pair in label(one, segmenter, args, limits)]
    if args.truth and len(recordings) > 1:
        figures = detection_figures(pairs, segmenter.class_names[1:])
        print(f"\nall {len(recordings)} recordings\n{aligned(detection_rows(figures))}")


def main(args):
    """Returns the `Timings`."""
    check_args(args)
    keep_freed_memory()
    live = STREAM in args.recordings
    # Its processes begin as copies of this one, so before there is a GPU's memory in it.
    on_gpu = args.device != "cpu" and torch.cuda.is_available() and hasattr(os, "fork")
    pool = RegionPool(min(FINDERS, -(-len(usable_cores()) // 2))) if on_gpu and not live else None
    try:
        classes = args.classes.split(",") if args.classes else None
        segmenter = open_segmenter(args.weights, pick_device(args.device), args.amp, classes, args.norm_eps, args.offline)
        limits = Limits(args.min_bandwidth_hz, args.min_duration_s, args.min_confidence, args.bridge_s)
        started = time.perf_counter()
        with segmenter.on_its_cores(pool):
            (label_stream if live else label_recordings)(segmenter, args, limits)
        summary = segmenter.timings.summary(time.perf_counter() - started)
        print(summary if live else f"\n{summary}\nsee {args.output}/: annotations, JSON, pictures",
              file=sys.stderr if live else sys.stdout)  # fmt: skip
    finally:
        if pool:
            pool.close()
    return segmenter.timings


if __name__ == "__main__":
    with reported():
        main(get_args_parser().parse_args())
