"""How fast recordings are labelled, by sample rate: from a file to written annotations and pictures.

    python benchmarks/bench_segment.py
    python benchmarks/bench_segment.py --weights output_finetune/checkpoint-best.pth --rates 20e6 61.44e6

The recordings are ci16 SigMF: `wild` scenes of 20 ms, one after another. `main_segment.py` labels them by turns
with its default flags, the cell search among them. Loading the model counts; starting Python and importing
torch do not.
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
from util.pretrained import read_weights
from util.progress import peak_memory_bytes

WEIGHTS = common.ROOT / "weights" / "radio_seg_vit_tiny.safetensors"
RATES_HZ = (1.92e6, 20e6, 61.44e6, 122.88e6)
SCENES, SCENE_S = 8, 0.02
SAMPLES, MOST_S = {"cpu": 100e6, "cuda": 2e9}, 10.0  # of a recording
THREADS = torch.get_num_threads()  # the command changes them


def get_args_parser():
    parser = common.get_parser("Real-time factor of labelling.", repeats=5)
    parser.add_argument("--weights", default=str(WEIGHTS), help="of a segmentation model")
    parser.add_argument("--rates", type=float, nargs="+", metavar="HZ", default=RATES_HZ)
    parser.add_argument("--seconds", type=float, help="of a recording; else 10, or fewer at high rates")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    return parser


def write_recording(folder, rate_hz, seconds):
    """A recording, and its seconds."""
    name = folder / f"{rate_hz / 1e6:g}"
    settings = f"sample_rates_hz={rate_hz:g} duration_ms={1e3 * SCENE_S:g} padded=0 real_valued=0"
    scenes = common.scenes_as_iq(folder / "scenes" / name.name, SCENES, "wild", settings)
    common.write_sigmf(name, b"", rate_hz)
    with open(f"{name}.sigmf-data", "wb") as file:
        for number in range(round(seconds / SCENE_S)):
            file.write(scenes[number % SCENES])
    return Path(f"{name}.sigmf-meta"), round(seconds / SCENE_S) * SCENE_S


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


def figures(turns, signal_s):
    """Of several turns on a recording."""
    seconds, memory = zip(*turns, strict=True)
    factors = common.spread([signal_s / one for one in seconds])
    return {"real_time_factor": factors, "signal_s": signal_s, "peak_memory_mb": round(max(memory) / 1e6)}


def measure(args):
    device = pick_device(args.device)
    with tempfile.TemporaryDirectory(prefix="radio-mae-bench-") as name:
        folder = Path(name)
        written = {}
        for rate_hz in args.rates:
            seconds = args.seconds or min(MOST_S, SAMPLES[device.type] / rate_hz)
            written[rate_hz] = write_recording(folder, rate_hz, seconds)
        candidates = {
            rate_hz: partial(turn, path, folder, device, args.weights)
            for rate_hz, (path, _) in written.items()
        }
        turns = common.by_turns(candidates, args.repeats)
    rates = {f"{rate_hz:g}": figures(found, written[rate_hz][1]) for rate_hz, found in turns.items()}
    front_end = read_weights(args.weights).front_end
    return device, {"front_end": front_end, "devices": {device.type: {"rates": rates}}}


if __name__ == "__main__":
    common.run_benchmark(get_args_parser(), measure)
