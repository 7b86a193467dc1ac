"""How fast a recording is labelled, by its length: from a file to written annotations.

    python benchmarks/bench_segment.py
    python benchmarks/bench_segment.py --weights output_finetune/checkpoint-best.pth --durations 2 8 32

The recordings are ci16 SigMF at 61.44 Msps: the same four `classic` scenes repeated. `main_segment.py`
labels them by turns with its default flags. Loading the model counts; starting Python and importing torch do
not. The real-time factor is that of the longest recording.
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
from util.device import pick_device
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
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    return parser


def write_recordings(folder, durations):
    scenes = common.classic_scenes(folder / "scenes", SCENES)
    for duration in durations:
        common.write_sigmf(folder / f"{duration:g}", b"", RATE_HZ)
        with open(folder / f"{duration:g}.sigmf-data", "wb") as file:
            for number in range(round(duration / SCENE_S)):
                file.write(scenes[number % SCENES])


def turn(recording, folder, device, weights):
    """One run of the command: (seconds, most bytes of the process's memory)."""
    torch.set_num_threads(THREADS)
    flags = [str(recording), "--weights", weights, "--output", str(folder / "out"), "--device", str(device)]
    parsed = main_segment.get_args_parser().parse_args(flags)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: starts the peak memory anew
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        main_segment.main(parsed)
    return time.perf_counter() - started, peak_memory_bytes(common.CPU)


def figures(turns):
    """Of several turns at one length."""
    seconds, memory = zip(*turns, strict=True)
    return {"seconds": common.spread(seconds), "peak_memory_mb": round(max(memory) / 1e6)}


def measure(args):
    device = pick_device(args.device)
    durations = sorted(args.durations or DURATIONS_S[device.type])
    if durations[0] < SCENE_S:
        raise UserError(f"--durations: expected {SCENE_S} s or more; found {durations[0]:g}")
    with tempfile.TemporaryDirectory(prefix="radio-mae-bench-") as name:
        folder = Path(name)
        write_recordings(folder, durations)
        candidates = {
            duration: partial(turn, folder / f"{duration:g}.sigmf-meta", folder, device, args.weights)
            for duration in durations
        }
        turns = common.by_turns(candidates, args.repeats)
    result = {
        "real_time_factor": common.spread([durations[-1] / seconds for seconds, _ in turns[durations[-1]]]),
        "lengths": {f"{duration:g}": figures(found) for duration, found in turns.items()},
    }
    window_ms = 1e3 * read_weights(args.weights).front_end["duration_s"]
    return device, {"window_ms": window_ms, "devices": {device.type: result}}


if __name__ == "__main__":
    common.run_benchmark(get_args_parser(), measure)
