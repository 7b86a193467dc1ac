"""How fast a recording is labelled, by its length: from a file to written annotations, with the released
weights.

    python benchmarks/bench_segment.py
    python benchmarks/bench_segment.py --weights output_finetune/checkpoint-best.pth --durations 2 8 32

The recordings are ci16 SigMF at 61.44 Msps: the same four `classic` scenes repeated. `main_segment.py`
labels them by turns with its default flags. Loading the model counts; starting Python and importing torch do
not. A GPU, where there is one, is measured beside the CPU. The real-time factor is that of the longest
recording.
"""

import contextlib
import io
import tempfile
import time
from functools import partial
from pathlib import Path

import common
import torch

import main_segment
from util.errors import UserError
from util.pretrained import read_weights
from util.progress import peak_memory_bytes

WEIGHTS = common.ROOT / "weights" / "radio_seg_vit_tiny.safetensors"
SCENES, SCENE_S = 4, 0.04
RATE_HZ = 61.44e6
THREADS = torch.get_num_threads()  # the command changes them
DURATIONS_S = {"cpu": (1.0, 4.0), "cuda": (4.0, 32.0)}


def get_args_parser():
    parser = common.get_parser("Real-time factor of labelling.", repeats=5)
    parser.add_argument("--weights", default=str(WEIGHTS), help="of a segmentation model")
    parser.add_argument("--durations", type=float, nargs="+", metavar="S", help=f"else {DURATIONS_S}")
    parser.add_argument("--devices", nargs="+", choices=DURATIONS_S, help="where not given all")
    return parser


def write_recordings(folder, durations):
    scenes = common.classic_scenes(folder / "scenes", SCENES)
    for duration in durations:
        common.write_sigmf(folder / f"{duration:g}", b"", RATE_HZ)
        with open(folder / f"{duration:g}.sigmf-data", "wb") as file:
            for number in range(round(duration / SCENE_S)):
                file.write(scenes[number % SCENES])


def turn(recording, folder, device, weights):
    """One run of the command: (seconds, {part: seconds}, most bytes of the process's memory)."""
    torch.set_num_threads(THREADS)
    flags = [str(recording), "--weights", weights, "--output", str(folder / "out"), "--device", device]
    parsed = main_segment.get_args_parser().parse_args(flags)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: starts the peak memory anew
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        timings = main_segment.main(parsed)
    return time.perf_counter() - started, timings.seconds, peak_memory_bytes(common.CPU)


def figures(turns):
    """Of several turns at one length: seconds, parts of the fastest, memory."""
    seconds, parts, memory = zip(*turns, strict=True)
    best = {part: common.digits(value) for part, value in parts[seconds.index(min(seconds))].items()}
    return {"seconds": common.spread(seconds), "parts_s": best, "peak_memory_mb": round(max(memory) / 1e6)}


def measure(args):
    there = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    devices = {name: args.durations or DURATIONS_S[name] for name in there if name in (args.devices or there)}
    every = sorted({duration for durations in devices.values() for duration in durations})
    if not every or every[0] < SCENE_S:
        raise UserError(f"--durations, --devices: expected {SCENE_S} s or more on {there}; found others")
    results = {}
    with tempfile.TemporaryDirectory(prefix="radio-mae-bench-") as name:
        folder = Path(name)
        write_recordings(folder, every)
        for device, durations in devices.items():
            candidates = {
                duration: partial(turn, folder / f"{duration:g}.sigmf-meta", folder, device, args.weights)
                for duration in durations
            }
            turns = common.by_turns(candidates, args.repeats)
            longest = max(turns)
            results[device] = {
                "real_time_factor": common.spread([longest / seconds for seconds, *_ in turns[longest]]),
                "lengths": {f"{duration:g}": figures(found) for duration, found in turns.items()},
            }
    window_ms = 1e3 * read_weights(args.weights).front_end["duration_s"]
    return torch.device(list(devices)[-1]), {"window_ms": window_ms, "devices": results}


if __name__ == "__main__":
    common.run_benchmark(get_args_parser(), measure)
