"""How fast a recording is labelled: seconds of signal for a second of work, from a file to written annotations.

    python benchmarks/bench_segment.py
    python benchmarks/bench_segment.py --weights output_finetune/checkpoint-best.pth

The recording is ci16 SigMF at 61.44 Msps, four `classic` scenes over and over for `--duration_s`. main_segment.py labels it
in windows of 40 ms without overlap: reading, front end, network, carriers, and annotations, JSON and picture written.
Loading the model counts, starting Python and importing torch do not. Without `--weights` the model is an untrained
`vit_tiny_patch16`, in whose class map there is more to join than in that of a trained one. Where there is a GPU, it is done
there too.
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
from radio.scene import TEST, render
from radio.scene_config import PRESETS
from radio.spectrogram import Spectrogram
from util.errors import reported
from util.weights import write_weights

MODEL = "vit_tiny_patch16"
SCENES = 4
THREADS = torch.get_num_threads()  # the command takes them all for itself
RATE_HZ, WINDOW_S = 61.44e6, 0.04
PARTS = ("reading", "front end", "network", "carriers", "writing")


def get_args_parser():
    parser = argparse.ArgumentParser(
        description="Real-time factor of labelling.", formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--weights", help="of a segmentation model; an untrained one where not given")
    parser.add_argument("--duration_s", type=float, default=8.0, help="length of the recording")
    common.add_arguments(parser, repeats=5)
    return parser


def write_recording(folder, duration_s):
    """Four scenes, repeated; returns the .sigmf-meta."""
    maker = SceneMaker(PRESETS["classic"], seed=0)
    blocks = []
    for number in range(SCENES):
        values = torch.view_as_real(render(maker.draw(TEST, number), torch.device("cpu"))).numpy()
        blocks.append(np.round(values / np.abs(values).max() * 32767).astype("<i2").tobytes())
    with open(folder / "a.sigmf-data", "wb") as file:
        for number in range(round(duration_s / WINDOW_S)):
            file.write(blocks[number % SCENES])
        file.flush()
        os.fsync(file.fileno())  # else the first file that is written after it waits for this one too
    info = {"core:datatype": "ci16_le", "core:sample_rate": RATE_HZ, "core:version": "1.2.0"}
    meta = {"global": info, "captures": [{"core:sample_start": 0, "core:frequency": 4e9}], "annotations": []}
    (folder / "a.sigmf-meta").write_text(json.dumps(meta))
    return folder / "a.sigmf-meta"


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
    """(seconds, {part: seconds}) of one run of the command."""
    torch.set_num_threads(THREADS)
    args = main_segment.get_args_parser().parse_args(flags)
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        timings = main_segment.main(args)
    return time.perf_counter() - started, timings.seconds


def main(parser, args):
    common.check_args(args)
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    results, rows = {}, []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recording = write_recording(folder, args.duration_s)
        weights = args.weights or untrained(folder)
        for device in devices:
            flags = [str(recording), "--weights", str(weights), "--output", str(folder / "out"), "--overlap", "0",
                     "--device", device]  # fmt: skip
            turn(flags)  # a turn that does not count
            turns = [turn(flags) for _ in range(args.repeats)]
            factors = common.spread([args.duration_s / seconds for seconds, _ in turns])
            best = min(turns, key=lambda one: one[0])[1]
            parts = {part: float(f"{best.get(part, 0.0):.3g}") for part in PARTS}
            results[device] = {"real_time_factor": factors, "parts_s": parts}
            rows.append((device, *common.columns(factors), *(f"{value:.2f}" for value in parts.values())))
    common.print_table(("device", "real-time factor", "least .. greatest", *(f"{part}, s" for part in PARTS)), rows)
    args.weights = args.weights and "..."
    common.write_results("bench_segment", parser, args, torch.device(devices[-1]), ("timm", "sigmf"), {"devices": results})


if __name__ == "__main__":
    with reported():
        parser = get_args_parser()
        main(parser, parser.parse_args())
