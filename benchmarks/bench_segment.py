"""How fast a recording is labelled, and how that grows with its length: from a file to written annotations.

    python benchmarks/bench_segment.py
    python benchmarks/bench_segment.py --weights output_finetune/checkpoint-best.pth --durations 2 8 32

The recording is ci16 SigMF at 61.44 Msps, four `classic` scenes over and over. main_segment.py labels its first seconds, as
many as `--durations` says, by turns, in windows of 40 ms without overlap: reading, front end, network, carriers, and
annotations, JSON and picture written. Loading the model counts, starting Python and importing torch do not. Without
`--weights` the model is an untrained `vit_tiny_patch16`, in whose class map there is more to join than in that of a trained
one. Where there is a GPU, it is done there too.

The real-time factor is that of the longest. The line through the times of all says what a further second of signal takes
(its inverse is what a recording of hours comes near to), and what every recording does. Peak memory is that of the process.
"""

import argparse
import contextlib
import io
import json
import os
import tempfile
import time
from pathlib import Path

import common
import numpy as np
import torch

import main_segment
import models_vit
from data.synthetic import SceneMaker
from radio.carriers import CLASS_NAMES
from radio.rng import TEST
from radio.scenes.config import PRESETS
from radio.scenes.scene import render
from radio.spectrogram import Spectrogram
from util.errors import UserError, reported
from util.pretrained import write_weights
from util.progress import peak_memory_bytes

MODEL = "vit_tiny_patch16"
SCENES = 4
THREADS = torch.get_num_threads()  # the command takes them all for itself
RATE_HZ, WINDOW_S = 61.44e6, 0.04
PARTS = ("reading", "front end", "network", "carriers", "writing")
DURATIONS_S = {"cpu": (1.0, 4.0, 16.0), "cuda": (4.0, 16.0, 64.0)}


def get_args_parser():
    parser = argparse.ArgumentParser(
        description="Real-time factor of labelling.", formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--weights", help="of a segmentation model; an untrained one where not given")
    parser.add_argument("--durations", type=float, nargs="+", metavar="S",
                        help="lengths of the recordings; without it {cpu} on a CPU and {cuda} on a GPU".format(**{
                            kind: " ".join(f"{value:g}" for value in values) for kind, values in DURATIONS_S.items()}))
    parser.add_argument("--devices", nargs="+", choices=list(DURATIONS_S), help="of those there are; all without it")
    parser.add_argument("--compile", default="auto", choices=("auto", "on", "off"), help="as main_segment.py's")
    common.add_arguments(parser, repeats=5)
    return parser


def write_recording(folder, durations):
    """Four scenes, repeated for the longest duration: {duration: .sigmf-meta of the first seconds of them}."""
    maker = SceneMaker(PRESETS["classic"], seed=0)
    blocks = []
    for number in range(SCENES):
        values = torch.view_as_real(render(maker.draw(TEST, number), torch.device("cpu"))).numpy()
        blocks.append(np.round(values / np.abs(values).max() * 32767).astype("<i2").tobytes())
    windows = {duration: max(1, round(duration / WINDOW_S)) for duration in durations}
    with open(folder / "all.sigmf-data", "wb") as file:
        for number in range(max(windows.values())):
            file.write(blocks[number % SCENES])
        file.flush()
        os.fsync(file.fileno())  # else the first file that is written after it waits for this one too
    for duration, count in windows.items():
        left_out = (max(windows.values()) - count) * len(blocks[0])
        info = {"core:datatype": "ci16_le", "core:sample_rate": RATE_HZ, "core:version": "1.2.0",
                "core:dataset": "all.sigmf-data", "core:trailing_bytes": left_out}  # fmt: skip
        meta = {"global": info, "captures": [{"core:sample_start": 0, "core:frequency": 4e9}], "annotations": []}
        (folder / f"{duration:g}.sigmf-meta").write_text(json.dumps(meta))
    return {duration: folder / f"{duration:g}.sigmf-meta" for duration in durations}


def untrained(folder):
    torch.manual_seed(0)
    front_end = Spectrogram(duration_s=WINDOW_S)
    model = models_vit.create_model(MODEL, "segmentation", len(CLASS_NAMES), front_end.image_size)
    about = {"model": MODEL, "task": "segmentation", "head": "decoder", "head_depth": 2}
    write_weights(folder / "a.safetensors", model.state_dict(), holds="segmentation", preset=MODEL,
                  front_end=front_end.settings(), classes=list(CLASS_NAMES), args=about, command="", data="none",
                  licence="Apache-2.0")  # fmt: skip
    return folder / "a.safetensors"


def turn(flags):
    """One run of the command: (seconds, {part: seconds}, most bytes of the process's memory)."""
    torch.set_num_threads(THREADS)
    args = main_segment.get_args_parser().parse_args(flags)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the mark of the most memory begins anew
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        timings = main_segment.main(args)
    return time.perf_counter() - started, timings.seconds, peak_memory_bytes(torch.device("cpu"))


def measured(turns):
    """Of several turns at one length: seconds, parts of the fastest, memory."""
    best = min(turns, key=lambda one: one[0])[1]
    return {"seconds": common.spread([seconds for seconds, _, _ in turns]),
            "parts_s": {part: float(f"{best.get(part, 0.0):.3g}") for part in PARTS},
            "peak_memory_mb": round(max(memory for _, _, memory in turns) / 1e6)}  # fmt: skip


def growth(lengths):
    """Of {duration: `measured`}: seconds a further second of signal takes, and seconds of any recording, by a line."""
    medians = [one["seconds"]["median"] for one in lengths.values()]
    slope, fixed = np.polyfit(list(lengths), medians, 1) if len(lengths) > 1 else (medians[0] / next(iter(lengths)), 0.0)
    return {"seconds_a_second": float(f"{slope:.4g}"), "fixed_seconds": float(f"{fixed:.3g}"),
            "real_time_factor_of_hours": float(f"{1 / slope:.4g}")}  # fmt: skip


def main(parser, args):
    common.check_args(args)
    if args.durations and min(args.durations) < WINDOW_S:
        raise UserError(f"--durations: expected {WINDOW_S} s, a window, or more; found {min(args.durations):g}")
    there = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    devices = [device for device in there if device in (args.devices or there)]
    durations = {device: tuple(args.durations or DURATIONS_S[device]) for device in devices}
    results, rows = {}, []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recordings = write_recording(folder, sorted({one for device in devices for one in durations[device]}))
        weights = args.weights or untrained(folder)
        for device in devices:
            turns = {duration: [] for duration in sorted(durations[device])}
            for number in range(args.repeats + 1):
                for duration, done in turns.items():
                    found = turn([str(recordings[duration]), "--weights", str(weights), "--output", str(folder / "out"),
                                  "--overlap", "0", "--device", device, "--compile", args.compile])  # fmt: skip
                    done += [found] * bool(number)  # the first turn does not count
            lengths = {duration: measured(done) for duration, done in turns.items()}
            longest = max(lengths)
            factors = common.spread([longest / seconds for seconds, _, _ in turns[longest]])
            results[device] = {"real_time_factor": factors, "parts_s": lengths[longest]["parts_s"], **growth(lengths),
                               "lengths": {f"{duration:g}": one for duration, one in lengths.items()}}  # fmt: skip
            for duration, one in lengths.items():
                rows.append((device, f"{duration:g}", *common.columns(one["seconds"]),
                             f"{duration / one['seconds']['median']:.2f}", f"{one['peak_memory_mb']:,}",
                             *(f"{value:.2f}" for value in one["parts_s"].values())))  # fmt: skip
    common.print_table(("device", "signal, s", "seconds", "least .. greatest", "real-time factor", "memory, MB",
                        *(f"{part}, s" for part in PARTS)), rows)  # fmt: skip
    for device, one in results.items():
        print(f"{device}: {one['fixed_seconds']:g} s, and {one['seconds_a_second']:g} s for every second of signal "
              f"(real-time factor {one['real_time_factor_of_hours']:g})")  # fmt: skip
    args.weights = args.weights and "..."
    common.write_results("bench_segment", parser, args, torch.device(devices[-1]), ("timm", "sigmf"), {"devices": results})


if __name__ == "__main__":
    with reported():
        parser = get_args_parser()
        main(parser, parser.parse_args())
