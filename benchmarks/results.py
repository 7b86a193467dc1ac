"""The tables of accuracy: a fixed list of runs. Does those that are missing and writes the tables.

    python benchmarks/results.py --runs results_runs               # hours on two cores; the same continues
    python benchmarks/results.py --runs results_runs --minutes 60  # start no further run after an hour
    python benchmarks/results.py --runs results_runs --size small --device cuda
    python benchmarks/results.py --tables                          # run nothing, write the tables anew

Every run is a command of this project, started in `--runs`; on a CPU one run on each core at a time. Its
figures go to `benchmarks/accuracy/<size>.json` as soon as it ends, so the tables need no runs. The most
valuable runs come first.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import common
import tables
from common import ROOT
from tables import ALL, BASELINE, FROZEN, RANDOM, SCRATCH

from util import checkpoint
from util.device import pick_device, usable_cores
from util.errors import reported
from util.files import writable_folder, write_json
from util.flags import Parser
from util.metrics import overall

SHARED = ROOT.parent / "shared" / "data"
CSI = SHARED / "csi" / "geotec_esp32_csihar.npz"
RECORDS = ROOT / "benchmarks" / "accuracy"
SEEDS = (0, 1, 2)
SIDE = 112  # cells: a quarter of those of 224 x 224, for time

# Sets of scenes: flags of main_synthesize.py. At the preset's SNR of 40 to 100 dB every model is right.
# "short" is seen as the captures are labelled: most of these last a few milliseconds.
COUNTS = f"--input_size {SIDE} --train 1200 --val 150 --test 300"
SETS = {
    "combined": f"--preset classic {COUNTS} --set snr_db=0,40 num_carriers=2 one_technology=0",
    "single": f"--preset classic {COUNTS} --set snr_db=0,40 num_carriers=1",
    "wild": f"--preset wild {COUNTS}",
    "short": f"--preset wild {COUNTS} --n_fft 512 --window_ms 5 --set duration_ms=2,12",
}
# The shared captures in two halves, by place and transmitter: to pretrain on beside scenes, and to judge by.
HALVES = {
    "heard": "lte-f1815.3-* lte-signal.* nr-srsran-* noise-noise other-wifi-*",
    "held_back": "lte-capbuf-* lte-f796-* lte-f806-* nr-amarisoft-* nr-cyberx-* nr-effnet-* nr-oai-* "
    "noise-f* other-adsb-* other-v16-*",
}
# Sets to fine-tune on: where training and validation come from, and the test part.
PROTOCOLS = {
    "classic, combined": ("combined", "combined"),
    "classic, single to combined": ("single", "combined"),
    "wild": ("wild", "wild"),
}
# How to pretrain, beyond a mask of 75 % of the patches at random.
PRETRAINED = {
    "75 %": "",
    "70 %": "--mask_ratio 0.7",
    "80 %": "--mask_ratio 0.8",
    "time": "--mask_kind time",
    "frequency": "--mask_kind frequency",
    "time and frequency": "--mask_kind time_frequency",
    "norm_pix_loss": "--norm_pix_loss",
}
SHARES = (0.01, 0.05, 0.2)
MODEL = "model.safetensors"  # what a run exports for the next
USUAL = "--batch_size 16 --blr 1.6e-2"  # of fine-tuning a Vision Transformer
# How a model is fine-tuned: (weights to start from or None for those of pretraining, flags).
KINDS = {
    ALL: (None, f"{USUAL} --layer_decay 1"),
    SCRATCH: ("", USUAL),
    FROZEN: (None, f"{USUAL} --train head"),
    RANDOM: ("random", f"{USUAL} --train head"),
    BASELINE: ("", "--batch_size 8"),
}
SENSING_FLAGS = f"--input_size {SIDE} --epochs 20 --batch_size 32 --blr 8e-3 --num_workers 0"
DAYS = f"--data_path {CSI.name} --split_by day --test_groups D2,D3,D4"
# Data of the sensing task: flags and seeds.
SENSING = {
    "synthetic": (f"--data_path synthetic --scenes 936 {SENSING_FLAGS}", SEEDS[:1]),
    "ESP32, three later days": (f"{DAYS} {SENSING_FLAGS}", SEEDS),
}


@dataclass(frozen=True)
class Run:
    """A command that leaves its results in the folder `name`; paths are relative to the folder of runs.

    `about` has the section, data, kind and seed: what the tables ask for.
    """

    name: str
    command: str
    about: dict

    @property
    def weights(self):
        """The file of another run that this one starts from, or ""."""
        files = [word for word in self.command.split() if word.endswith((f"/{checkpoint.LAST}", f"/{MODEL}"))]
        return next((path for path in files if not path.startswith(f"{self.name}/")), "")

    @property
    def starts_from(self):
        """The name of that run, or ""."""
        return self.weights.partition("/")[0]


def slug(text):
    return text.replace(",", "").replace(" %", "").replace(" ", "-")


def runs(size, device):
    """Every run, in the order in which they are done: a run comes after the one that it starts from."""
    order = {}

    def add(section, data, kind, seed, command):
        """Add a run, if it is new; in its command {folder} stands for its name, which is returned."""
        prefix = {"captures": "captures-recordings"}.get(section, section)
        name = f"{prefix}-{slug(data)}-{slug(kind)}-{seed}"
        if section == "pretraining":
            name = f"pretrain-{data}-{slug(kind)}"
        about = {"section": section, "data": data, "kind": kind, "seed": seed}
        order.setdefault(name, Run(name, " ".join(command.format(folder=name).split()), about))
        return name

    def pretrain(data, kind="75 %", flags="", more_data=""):
        model = f"--data_path {data} {more_data} --model mae_vit_{size}_patch16 --device {device}"
        length = "--epochs 40 --warmup_epochs 4 --save_every_epochs 40 --num_workers 0"
        command = f"main_pretrain.py {model} {USUAL} {length} --output_dir {{folder}} {flags}"
        return f"{add('pretraining', data, kind, 0, command)}/{checkpoint.LAST}"

    def finetune(section, data, name, seed, kind, weights=None, more="", epochs=6):
        start, flags = KINDS[kind]
        start = weights or pretrain(PROTOCOLS[data][0]) if start is None else start
        model = "deeplabv3_mobilenet_v3_large" if kind == BASELINE else f"vit_{size}_patch16"
        model = f"--data_path {slug(data)} --model {model} {f'--finetune {start}' if start else ''}"
        length = f"--epochs {epochs} --warmup_epochs {max(1, epochs // 6)} --val_every {max(1, epochs // 12)}"
        same = f"--num_workers 0 --seed {seed} --device {device} --output_dir {{folder}}"
        command = f"main_finetune.py --task segmentation {model} {length} {same} {flags} {more}"
        add(section, data, name, seed, command)

    for seed in SEEDS:
        for data in PROTOCOLS:
            for kind in KINDS:
                finetune("segmentation", data, kind, seed, kind)
        for share in SHARES:
            for kind in (ALL, SCRATCH, RANDOM):
                given = "labels", "classic, combined", f"{kind}, {share:g}", seed, kind
                finetune(*given, more=f"--label_fraction {share:g}", epochs=round(6 / share))
        if seed > SEEDS[0]:
            continue
        # from scratch and from an encoder that saw no CSI
        starts = f"--finetune {pretrain('combined')} --layer_decay 1", ""
        for data, (flags, seeds) in SENSING.items():
            for kind, start in zip(("pretrained on scenes", "from scratch"), starts, strict=True):
                for sensing_seed in seeds:
                    same = f"--device {device} {start} --seed {sensing_seed} --output_dir {{folder}}"
                    command = f"main_finetune.py --task sensing {flags} --model vit_{size}_patch16 {same}"
                    add("sensing", data, kind, sensing_seed, command)
        # with and without real captures in the pretraining data, and then on captures of other places
        for kind, more_data in (("scenes", ""), ("scenes and captures", "heard")):
            weights = pretrain("short", kind, more_data=more_data)
            for short_seed in SEEDS:
                export = f"--export {{folder}}/{MODEL}"
                finetune("recordings", "short", kind, short_seed, ALL, weights, export)
                model = f"recordings-short-{slug(kind)}-{short_seed}/{MODEL}"
                flags = f"--weights {model} --recordings held_back --device {device} --output {{folder}}"
                add("captures", "short", kind, short_seed, f"benchmarks/real_captures.py {flags}")
    for way, flags in PRETRAINED.items():
        for kind in (ALL, FROZEN):
            finetune("masks", "wild", f"{kind}, {way}", 0, kind, pretrain("wild", way, flags))
    return list(order.values())


def start(command, folder, threads=None, printed=None):
    """Run one of the commands in the folder of runs, with so many threads, what it prints in a file."""
    print(f"$ python {command}", flush=True)
    env = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    common.run_command(command.replace(CSI.name, str(CSI)), folder, env=env, stdout=printed)


def link(path, target):
    if not path.exists():
        path.symlink_to(target)


def make_sets(folder):
    """The sets of scenes, a folder of parts for each protocol, and one for each half of the captures."""
    for name, flags in SETS.items():
        start(f"main_synthesize.py --output {name} {flags}", folder)
    for protocol, (training, test) in PROTOCOLS.items():
        if slug(protocol) not in SETS:
            (folder / slug(protocol)).mkdir(exist_ok=True)
            for part, source in (("train", training), ("val", training), ("test", test)):
                link(folder / slug(protocol) / part, Path("..", source, part))
    for half, patterns in HALVES.items():
        (folder / half).mkdir(exist_ok=True)
        for pattern in patterns.split():
            for path in (SHARED / "recordings").glob(f"{pattern}.sigmf-*"):
                link(folder / half / path.name, path.resolve())


def figures_of(run, folder):
    """What the tables need of a run's results."""
    if run.about["section"] == "captures":
        newest = max((folder / run.name).glob("*.json"), key=os.path.getmtime)  # of the machines that did it
        found = json.loads(newest.read_text())["real_captures"]
        cells = statistics.mean(one["cells"] for one in found["captures"].values())
        return {"totals": found["totals"], "cells": cells}
    log = [json.loads(line) for line in (folder / run.name / "log.txt").read_text().splitlines()]
    if run.about["section"] == "pretraining":
        return {"epochs": log[-1:]}
    results = json.loads((folder / run.name / "results.json").read_text())
    share = overall(results["test"])
    keep = ("samples", share, "mean_accuracy", "mean_iou")
    snr = results.get("groups", {}).get("SNR of the weakest carrier", {})
    return {
        **{name: results["test"][name] for name in keep},
        "by_snr": {band: {name: one[name] for name in keep} for band, one in snr.items()},
        "validation": {str(line["epoch"]): line[f"val_{share}"] for line in log if f"val_{share}" in line},
    }


def do(run, folder, device, threads):
    """Do a run; its record."""
    begun = time.monotonic()
    with open(folder / f"{run.name}.log", "w") as printed:
        start(run.command, folder, threads, printed)
    minutes = round((time.monotonic() - begun) / 60, 1)
    git = ["git", "rev-parse", "--short", "HEAD"]
    said = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    about = {"command": f"python {run.command}", "figures": figures_of(run, folder), "minutes": minutes}
    machine = common.about_the_machine(device) | {"threads": threads, "commit": said or "unknown"}
    return {**run.about, **about, **machine}


def missing_runs(todo, records, folder):
    """Runs without a record, and those whose weights, now gone, a missing run starts from."""
    missing = {run.name for run in todo if run.name not in records}
    for run in reversed(todo):
        if run.name in missing and run.weights and not (folder / run.weights).exists():
            missing.add(run.starts_from)
    return [run for run in todo if run.name in missing]


def do_together(todo, at_once, do, stop):
    """Do runs in their order, several at once, none before the one that it starts from.

    Args:
        do: called with a run; stop: whether to start no other.

    Raises:
        UserError: one failed; runs that were started are done first, and no other is started.
    """
    begun, failed = {}, []

    def begin(run):
        if run.starts_from in begun:
            begun[run.starts_from].result()
        try:
            if not failed and not stop():
                do(run)
        except Exception as error:
            failed.append(error)

    with ThreadPoolExecutor(at_once) as pool:
        for run in todo:
            begun[run.name] = pool.submit(begin, run)
    if failed:
        raise failed[0]


def get_args_parser():
    parser = Parser("Make the tables of accuracy.")
    parser.add_argument("--runs", default="results_runs", metavar="FOLDER", help="scenes and runs")
    parser.add_argument("--size", default="tiny", help="of the Vision Transformer: tiny, small, ...")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no further run after so long")
    parser.add_argument("--tables", action="store_true", help="write the tables and run nothing")
    return parser


def main(args):
    if args.tables:
        tables.update_accuracy(RECORDS)
    else:
        with writable_folder(args.runs, f"--runs {args.runs}") as folder:
            do_missing(folder, args)


def do_missing(folder, args):
    todo, records = runs(args.size, args.device), tables.read_accuracy(RECORDS).get(args.size, {})
    end, device = time.monotonic() + 60 * args.minutes, pick_device(args.device)
    make_sets(folder)
    here = [run for run in todo if SHARED.is_dir() or not {CSI.name, *HALVES} & set(run.command.split())]
    if left_out := len(todo) - len(here):
        print(f"{left_out} runs left out: the shared data are not beside this repository", file=sys.stderr)
    # Of such small models, two runs of a thread each end sooner than one after the other with two.
    at_once, threads = (len(usable_cores()), 1) if device.type == "cpu" else (1, None)
    recording = threading.Lock()

    def do_and_record(run):
        record = do(run, folder, device, threads)
        with recording:
            records[run.name] = record
            RECORDS.mkdir(exist_ok=True)
            in_order = {one.name: records[one.name] for one in todo if one.name in records}
            write_json(RECORDS / f"{args.size}.json", in_order)
            tables.update_accuracy(RECORDS)
            print(f"{run.name}: {record['minutes']} min", flush=True)

    missing = missing_runs(here, records, folder)
    do_together(missing, at_once, do_and_record, lambda: time.monotonic() >= end)
    print(f"{sum(run.name in records for run in todo)} of {len(todo)} runs are there")


if __name__ == "__main__":
    with reported():
        main(get_args_parser().parse_args())
