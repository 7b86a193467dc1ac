"""The tables of accuracy: a fixed list of runs, of which those that are missing are done, and what came out of them.

    python benchmarks/results.py --runs results_runs               # some hours on two cores; the same command goes on
    python benchmarks/results.py --runs results_runs --minutes 60  # begin no further run after an hour
    python benchmarks/results.py --runs results_runs --size small --device cuda
    python benchmarks/results.py --list                             # the commands, in their order
    python benchmarks/results.py --tables                           # run nothing, write the tables anew

Every run is a command of this project, as RESULTS.md names it, started in `--runs`; on CPUs one on each core at a time. What
it found goes to `benchmarks/accuracy/<size>.json` as soon as it ends, so that the tables need no runs; the order is that of
what a table is worth, so a stop leaves a sensible one.
"""

import argparse
import datetime
import importlib.metadata
import json
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path

import common
import results_tables

from util import checkpoint
from util.device import pick_device, usable_cores
from util.errors import UserError, reported
from util.files import write_json
from util.metrics import overall

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"
CSI = SHARED / "csi" / "geotec_esp32_csihar.npz"
RECORDS = Path(__file__).resolve().parent / "accuracy"
SEEDS = (0, 1, 2)
SIDE = 112  # cells: a quarter of those of 224 x 224, for time

# Sets of scenes: flags of main_synthesize.py. The preset's SNR of 40 to 100 dB would be no task for anything.
# "short" is seen as the captures are labelled: most of these last a few milliseconds.
COUNTS = ("--train", 1200, "--val", 150, "--test", 300)
CLASSIC = ("--preset", "classic", "--input_size", SIDE, *COUNTS, "--set", "snr_db=0,40")
SETS = {
    "combined": (*CLASSIC, "num_carriers=2", "one_technology=0"),
    "single": (*CLASSIC, "num_carriers=1"),
    "wild": ("--preset", "wild", "--input_size", SIDE, *COUNTS),
    "short": ("--preset", "wild", "--input_size", SIDE, *COUNTS, "--n_fft", 512, "--window_ms", 5,
              "--set", "duration_ms=2,12"),
}  # fmt: skip
# The shared captures in two halves, by place and transmitter: to pretrain on beside scenes, and to judge by.
HALVES = {
    "heard": ("lte-f1815.3-*", "lte-signal.*", "nr-srsran-*", "noise-noise", "other-wifi-*"),
    "held_back": ("lte-capbuf-*", "lte-f796-*", "lte-f806-*", "nr-amarisoft-*", "nr-cyberx-*", "nr-effnet-*", "nr-oai-*",
                  "noise-f*", "other-adsb-*", "other-v16-*"),
}  # fmt: skip
# Sets to fine-tune on: where training and validation come from, and the test part.
PROTOCOLS = {"classic, combined": ("combined", "combined"), "classic, single to combined": ("single", "combined"),
             "wild": ("wild", "wild")}  # fmt: skip
PRETRAIN_SETS = {"classic, combined": "combined", "classic, single to combined": "single", "wild": "wild"}
# Ways to pretrain, beyond a mask of 75 % of the patches at random.
PRETRAINED = {
    "75 %": (), "70 %": ("--mask_ratio", 0.7), "80 %": ("--mask_ratio", 0.8), "time": ("--mask_kind", "time"),
    "frequency": ("--mask_kind", "frequency"), "time and frequency": ("--mask_kind", "time_frequency"),
    "norm_pix_loss": ("--norm_pix_loss",),
}  # fmt: skip
SHARES = (0.01, 0.05, 0.2)
MODEL = "model.safetensors"  # what a run exports for the next
ALL, FROZEN = results_tables.KINDS[:2]
USUAL = ("--batch_size", 16, "--blr", 1.6e-2)  # of fine-tuning a Vision Transformer


@dataclass(frozen=True)
class Run:
    """A command and the file in which it leaves its results, both in the folder of runs."""

    name: str
    command: tuple
    result: str
    about: dict  # section, data, kind, seed: what the tables ask for

    @property
    def weights(self):
        """The file of another run that this one starts from, in the folder of runs, or None."""
        paths = (Path(str(word)) for word in self.command)
        weights = (path for path in paths if path.name in (checkpoint.LAST, MODEL))
        return next((path for path in weights if path.parent.name != self.name), None)

    @property
    def starts_from(self):
        """The name of that run, or ""."""
        return self.weights.parent.name if self.weights else ""


def slug(text):
    return text.replace(",", "").replace(" %", "").replace(" ", "-")


def pretrain_run(data, way, size, device, flags=(), more_data=()):
    folder = f"pretrain-{data}-{slug(way)}"
    command = ("main_pretrain.py", "--data_path", data, *more_data, "--model", f"mae_vit_{size}_patch16", "--batch_size", 16,
               "--epochs", 40, "--warmup_epochs", 4, "--blr", 1.6e-2, "--save_every_epochs", 40, "--num_workers", 0,
               "--device", device, "--output_dir", folder, *flags)  # fmt: skip
    return Run(folder, command, f"{folder}/log.txt", {"section": "pretraining", "data": data, "kind": way, "seed": 0})


def finetune_run(section, protocol, kind, seed, size, device, weights="", flags=(), epochs=6, model=None):
    folder = f"{section}-{slug(protocol)}-{slug(kind)}-{seed}"
    command = ("main_finetune.py", "--task", "segmentation", "--data_path", slug(protocol), "--model",
               model or f"vit_{size}_patch16", *(("--finetune", weights) if weights else ()), "--epochs", epochs,
               "--warmup_epochs", max(1, epochs // 6), "--val_every", max(1, epochs // 12), "--num_workers", 0,
               "--seed", seed, "--device", device, "--output_dir", folder, *flags)  # fmt: skip
    return Run(folder, command, f"{folder}/results.json",
               {"section": section, "data": protocol, "kind": kind, "seed": seed})  # fmt: skip


def runs(size, device):
    """Every run, in the order in which they are done: what a run needs comes before it."""
    order = []

    def add(run):
        if run not in order:
            order.append(run)

    def weights(data, way="75 %"):
        run = pretrain_run(data, way, size, device, PRETRAINED[way])
        add(run)
        return f"{run.name}/{checkpoint.LAST}"

    def kinds(protocol):
        pretrained = weights(PRETRAIN_SETS[protocol])
        return (
            (ALL, pretrained, (*USUAL, "--layer_decay", 1), None),
            ("from scratch", "", USUAL, None),
            (FROZEN, pretrained, (*USUAL, "--train", "head"), None),
            ("random, frozen", "random", (*USUAL, "--train", "head"), None),
            ("DeepLabV3-MobileNetV3", "", ("--batch_size", 8), "deeplabv3_mobilenet_v3_large"),
        )

    for seed in SEEDS:
        for protocol in PROTOCOLS:
            for kind, start, flags, model in kinds(protocol):
                add(finetune_run("segmentation", protocol, kind, seed, size, device, start, flags, model=model))
        for share in SHARES:
            for kind, start, flags, _ in (kinds("classic, combined")[place] for place in (0, 1, 3)):
                add(finetune_run("labels", "classic, combined", f"{kind}, {share:g}", seed, size, device, start,
                                 (*flags, "--label_fraction", share), epochs=round(6 / share)))  # fmt: skip
        if seed == SEEDS[0]:
            for run in (*sensing_runs(size, device, weights("combined")), *recordings_runs(size, device)):
                add(run)
    for way in PRETRAINED:
        start = weights("wild", way)
        for kind, more in ((ALL, ("--layer_decay", 1)), (FROZEN, ("--train", "head"))):
            add(finetune_run("masks", "wild", f"{kind}, {way}", 0, size, device, start, (*USUAL, *more)))
    return order


def recordings_runs(size, device):
    """With and without real captures among what is pretrained on, and then on captures of other places."""
    for kind, more_data in (("scenes", ()), ("scenes and captures", ("heard",))):
        pretraining = pretrain_run("short", kind, size, device, more_data=more_data)
        yield pretraining
        for seed in SEEDS:
            found = finetune_run("recordings", "short", kind, seed, size, device, f"{pretraining.name}/{checkpoint.LAST}",
                                 (*USUAL, "--layer_decay", 1))  # fmt: skip
            model = f"{found.name}/{MODEL}"
            yield replace(found, command=(*found.command, "--export", model))
            captures = f"captures-{found.name}"
            command = ("benchmarks/real_captures.py", "--weights", model, "--recordings", "held_back", "--device", device,
                       "--output", captures)  # fmt: skip
            yield Run(captures, command, captures, {**found.about, "section": "captures"})


def sensing_runs(size, device, weights):
    """From scratch and from an encoder that saw no CSI."""
    usual = ("--model", f"vit_{size}_patch16", "--input_size", SIDE, "--epochs", 20, "--batch_size", 32, "--blr", 8e-3,
             "--num_workers", 0, "--device", device)  # fmt: skip
    for data, flags in (
        ("synthetic", ("--data_path", "synthetic", "--scenes", 936)),
        ("ESP32, three later days", ("--data_path", CSI.name, "--split_by", "day", "--test_groups", "D2,D3,D4")),
    ):
        for kind, more in (("pretrained on scenes", ("--finetune", weights, "--layer_decay", 1)), ("from scratch", ())):
            for seed in SEEDS if data != "synthetic" else SEEDS[:1]:
                folder = f"sensing-{slug(data)}-{slug(kind)}-{seed}"
                command = ("main_finetune.py", "--task", "sensing", *flags, *usual, *more, "--seed", seed,
                           "--output_dir", folder)  # fmt: skip
                yield Run(folder, command, f"{folder}/results.json",
                          {"section": "sensing", "data": data, "kind": kind, "seed": seed})  # fmt: skip


# Doing them


def start(command, folder, printed=None, threads=None):
    """Run one of the project's commands there; UserError with its last line where it fails.

    Args:
        printed: file for what it prints, or None: the console. threads: to compute with, or None: what it takes itself.
    """
    words = [str(CSI if word == CSI.name else word) for word in command]
    print(f"$ python {shlex.join(map(str, command))}", flush=True)
    env = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    done = subprocess.run([sys.executable, str(ROOT / words[0]), *words[1:]], cwd=folder, env=env, check=False, text=True,
                          stdout=printed, stderr=subprocess.PIPE)  # fmt: skip
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise UserError(f"{command[0]}: expected it to end well; found status {done.returncode}: {said}")


def make_sets(folder):
    """The sets of scenes, a folder for each protocol with the parts that it takes, and one for each half of the captures."""
    for name, flags in SETS.items():
        start(("main_synthesize.py", "--output", name, *flags), folder)
    for protocol, (training, test) in PROTOCOLS.items():
        place = folder / slug(protocol)
        if place.name in SETS:
            continue
        place.mkdir(exist_ok=True)
        for part, source in (("train", training), ("val", training), ("test", test)):
            if not (place / part).exists():
                (place / part).symlink_to(Path("..", source, part))
    for half, patterns in HALVES.items():
        (folder / half).mkdir(exist_ok=True)
        for path in (path for pattern in patterns for path in (SHARED / "recordings").glob(f"{pattern}.sigmf-*")):
            link = folder / half / path.name
            if not link.exists():
                link.symlink_to(path.resolve())


def figures_of(run, folder):
    """What the tables need of a run's results."""
    if run.about["section"] == "captures":
        path = max((folder / run.result).glob("*.json"), key=os.path.getmtime)  # one for each machine that did it
        found = json.loads(path.read_text())["real_captures"]
        cells = statistics.mean(one["cells"] for one in found["captures"].values())
        return {"totals": found["totals"], "cells": cells}
    text = (folder / run.result).read_text()
    if run.about["section"] == "pretraining":
        return {"epochs": [json.loads(line) for line in text.splitlines()][-1:]}
    results = json.loads(text)
    share = overall(results["test"])
    keep = ("samples", share, "mean_accuracy", "mean_iou")
    snr = results.get("groups", {}).get("SNR of the weakest carrier", {})
    log = [json.loads(line) for line in (folder / run.name / "log.txt").read_text().splitlines()]
    return {
        **{name: results["test"][name] for name in keep},
        "by_snr": {band: {name: one[name] for name in keep} for band, one in snr.items()},
        "validation": {str(line["epoch"]): line[f"val_{share}"] for line in log if f"val_{share}" in line},
    }  # fmt: skip


def record_of(run, folder, seconds, device, threads):
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        **run.about, "command": f"python {shlex.join(map(str, run.command))}", "figures": figures_of(run, folder),
        "minutes": round(seconds / 60, 1), "device": common.device_name(device), "threads": threads,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(), "commit": commit.stdout.strip() or "unknown",
        "versions": {"python": platform.python_version(), "torch": importlib.metadata.version("torch")},
    }  # fmt: skip


def do(run, folder, device, threads):
    """Its record."""
    begun = time.monotonic()
    with open(folder / f"{run.name}.log", "w") as printed:
        start(run.command, folder, printed, threads)
    return record_of(run, folder, time.monotonic() - begun, device, threads)


def missing_runs(todo, records, folder):
    """Runs without a record, and again those whose weights they start from, where these are gone."""
    missing = {run.name for run in todo if run.name not in records}
    for run in reversed(todo):  # a run comes after the one that it starts from
        if run.name in missing and run.weights and not (folder / run.weights).exists():
            missing.add(run.starts_from)
    return [run for run in todo if run.name in missing]


def done_together(todo, at_once, do, stop):
    """Do runs in their order, several at once, none before the one that it starts from: yields (run, record) as they end.

    Args:
        todo: without those that are done; at_once: how many; do: gives a run's record; stop: whether to begin no other.

    Raises:
        UserError: one failed; those that ran beside it are given first.
    """
    waiting, running, failed = list(todo), {}, None
    with ThreadPoolExecutor(at_once) as pool:
        while True:
            not_done = {run.name for run in (*waiting, *running.values())}
            can_start = [run for run in waiting if run.starts_from not in not_done]
            for run in [] if failed or stop() else can_start[: at_once - len(running)]:
                waiting.remove(run)
                running[pool.submit(do, run)] = run
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                run = running.pop(future)
                try:
                    yield run, future.result()
                except UserError as error:
                    failed = failed or error
    if failed:
        raise failed


def read_records(size):
    path = RECORDS / f"{size}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def write_records(size, records):
    RECORDS.mkdir(exist_ok=True)
    write_json(RECORDS / f"{size}.json", records)


def get_args_parser():
    parser = argparse.ArgumentParser(description="Make the tables of accuracy.", allow_abbrev=False,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)  # fmt: skip
    parser.add_argument("--runs", default="results_runs", metavar="FOLDER", help="scenes and runs")
    parser.add_argument("--size", default="tiny", help="of the Vision Transformer: tiny, small, ...")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no further run after so long")
    parser.add_argument("--list", action="store_true", help="print the commands and run nothing")
    parser.add_argument("--tables", action="store_true", help="write the tables and run nothing")
    return parser


def main(args):
    todo = runs(args.size, args.device)
    records = read_records(args.size)
    if args.list:
        for run in todo:
            print(f"{'done' if run.name in records else '    '} python {shlex.join(map(str, run.command))}")
        return
    if args.tables:
        results_tables.update(RECORDS)
        return
    started, folder, device = time.monotonic(), Path(args.runs), pick_device(args.device)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--runs {args.runs}: expected a folder that can be written; {error.strerror}") from error
    make_sets(folder)
    here = [run for run in todo if SHARED.is_dir() or not {CSI.name, *HALVES} & set(run.command)]
    if len(here) < len(todo):
        print(f"{len(todo) - len(here)} runs left out: the shared data are not beside this repository", file=sys.stderr)
    # Of such small models, two runs of a thread each end sooner than one after the other with two.
    at_once, threads = (len(usable_cores()), 1) if device.type == "cpu" else (1, None)
    missing = missing_runs(here, records, folder)
    for run, record in done_together(missing, at_once, lambda run: do(run, folder, device, threads),
                                     lambda: time.monotonic() - started > 60 * args.minutes):  # fmt: skip
        records[run.name] = record
        # Rows stand in the order of the runs, whichever ended first.
        records = {one.name: records[one.name] for one in todo if one.name in records}
        write_records(args.size, records)
        results_tables.update(RECORDS)
        print(f"{run.name}: {record['minutes']} min, {sum(run.name in records for run in todo)} of {len(todo)}", flush=True)
    print(f"{sum(run.name in records for run in todo)} of {len(todo)} runs are there")


if __name__ == "__main__":
    with reported():
        main(get_args_parser().parse_args())
