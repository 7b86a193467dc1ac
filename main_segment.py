"""Label recordings with a fine-tuned segmentation model: what is in a capture, when, at which frequency?

    # a SigMF recording; a folder of them; several
    python main_segment.py capture.sigmf-meta --weights output_finetune/checkpoint-best.pth
    python main_segment.py captures/ more.sigmf --weights model.safetensors --output labels

    # raw IQ or .npy
    python main_segment.py capture.cs16 --sample_rate 20M --center_freq 1815.3M --weights model.safetensors

    # the radio fork's fine-tuned file, which names no classes
    python main_segment.py capture.sigmf-meta --weights fork.pth --classes Noise,NR,LTE

    # only carriers in which a cell search hears an LTE or NR cell: labels to train on
    python main_segment.py recordings/ --weights model.safetensors --only confirmed --output labelled

    # a live receiver: a JSON line when a carrier appears, while it is there, and when it is gone
    hackrf_transfer -r - -f 1815300000 -s 20000000 | \\
        python main_segment.py - --sample_rate 20e6 --datatype ci8 --center_freq 1.8153e9 --weights a.pth

    # compare with the recording's own annotations
    python main_segment.py capture.sigmf-meta --weights model.safetensors --truth

For each recording, `--output` gets three files: NAME.sigmf-meta, its metadata with an annotation for each
carrier, beside a link to the data or a copy; NAME.json, the same as JSON; and NAME.png, waterfall and class map.
"""

from util import interrupts  # noqa: F401, first: Ctrl-C may come while libraries are imported

# isort: split
import argparse
import math
import os
import sys
import time

import torch

from engine_files import label_files
from engine_label import check_ranges, hears_cells
from engine_live import label_stream
from engine_segment import open_segmenter
from labelling.region_pool import RegionPool
from labelling.regions import DEFAULT_BRIDGE_S, DEFAULT_COLUMNS, DEFAULT_CONFIDENCE, DEFAULT_ROWS, Limits
from util.console import lasting
from util.device import AMP_CHOICES, keep_freed_memory, pick_device, usable_cores
from util.errors import UserError, reported
from util.flags import Parser, hertz
from util.pretrained import add_arguments

STREAM = "-"
FINDERS = 8  # most processes that find carriers for a GPU


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
    add("--copy", action="store_true", help="copy the data to --output, instead of linking to it")
    add("--replace", action="store_true", help="replace the recordings' own annotations")
    add("--truth", action="store_true", help="compare with the recordings' own annotations")

    add = parser.add_argument_group("recordings without this information").add_argument
    add("--sample_rate", type=hertz, metavar="HZ", help="for raw and .npy recordings and a stream: 20e6, 20M")
    add("--datatype", help="SigMF datatype of raw recordings and a stream, e.g. ci16_le")
    add("--swap_iq", action="store_true", help="each Q comes before its I")
    add("--center_freq", type=hertz, metavar="HZ", help="centre frequency, so that edges are given at RF")

    add = parser.add_argument_group("what counts as a carrier").add_argument
    of_frame = "for NR and LTE half a frame, 5 ms, or half of a shorter stretch"
    add("--min_bandwidth_hz", type=float, help=f"without it, {DEFAULT_ROWS} image rows")
    add("--min_duration_s", type=float, help=f"without it, {DEFAULT_COLUMNS} image columns; {of_frame}")
    add("--min_confidence", type=float, default=DEFAULT_CONFIDENCE, help="mean probability of the label")
    add("--bridge_s", type=float, default=DEFAULT_BRIDGE_S, help="longest silence inside a carrier")
    alone = "the model alone, without the search for LTE and NR cells"
    add("--no-confirm", dest="confirm", action="store_false", help=alone)
    only = "leave out carriers without a cell, and recordings without any"
    add("--only", choices=("confirmed",), metavar="confirmed", help=only)

    add = parser.add_argument_group("a stream").add_argument
    add(
        "--every", type=_every, default=1, metavar="N", help="label each N-th window; auto: as many as it can"
    )
    add("--windows", action="store_true", help="a line for each window, instead of events of carriers")

    add = parser.add_argument_group("run").add_argument
    on_or_off = ("auto", "on", "off")
    more = "share of a window that the next covers too; not given: 0 with the front end grid, else 0.25"
    add("--overlap", type=float, help=more)
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    add("--amp", default="auto", choices=AMP_CHOICES, help="mixed precision; auto: by device and model")
    add("--compile", default="auto", choices=on_or_off, help="auto: on a GPU, for long recordings")
    return parser


def _every(text):
    """A number of windows, or "auto"."""
    if text != "auto" and not (text.isdigit() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"expected 1 or more windows, or auto; found {text}")
    return text if text == "auto" else int(text)


def check_args(args):
    """Refuse impossible values before anything is opened."""
    check_ranges(vars(args), "--")
    if args.center_freq is not None and not math.isfinite(args.center_freq):
        raise UserError(f"--center_freq: expected a number of Hz; found {args.center_freq}")
    if args.only and not args.confirm:
        raise UserError("--only confirmed: expected a cell search; found --no-confirm")
    if STREAM not in args.recordings:
        if flags := sorted({"every", "windows"} & args.given):
            raise UserError(f"--{flags[0]}: expected {STREAM}, a stream; found recordings")
        return
    if len(args.recordings) > 1:
        raise UserError(f"{STREAM}: expected a stream alone; found {len(args.recordings) - 1} recordings too")
    if args.truth or args.replace:
        raise UserError(f"--truth, --replace: expected recordings with annotations; found {STREAM}, a stream")
    if flags := sorted({"only", "copy", "confirm"} & args.given):
        name = "no-confirm" if flags[0] == "confirm" else flags[0]
        raise UserError(
            f"--{name}: expected recordings; found {STREAM}, a stream, labelled by the model alone"
        )
    if sys.stdin is None:
        raise UserError(f"{STREAM}: expected a stream on standard input; found it closed")
    if not args.sample_rate or not 0 < args.sample_rate < math.inf:
        raise UserError(f"--sample_rate: expected the stream's sample rate in Hz; found {args.sample_rate}")
    if not args.datatype:
        raise UserError("--datatype: expected the stream's datatype, e.g. ci8 or ci16_le; found none")


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
        if args.only and not hears_cells(segmenter.class_names):
            found = ",".join(segmenter.class_names)
            raise UserError(f"--only confirmed: expected a model of the classes NR and LTE; found {found}")
        limits = Limits(args.min_bandwidth_hz, args.min_duration_s, args.min_confidence, args.bridge_s)
        started = time.perf_counter()
        with segmenter.on_its_cores(pool):
            if live:
                label_stream(segmenter, args, limits)
            else:
                with lasting():
                    data = label_files(segmenter, args, limits)
        summary = segmenter.timings.summary(time.perf_counter() - started)
        if live:
            print(summary, file=sys.stderr)
        else:
            with lasting():
                print(
                    f"\n{summary}\nsee {args.output}/: annotations, JSON, pictures; data: {data}", flush=True
                )
    finally:
        if pool:
            pool.close()
    return segmenter.timings


if __name__ == "__main__":
    with reported():
        main(get_args_parser().parse_args())
