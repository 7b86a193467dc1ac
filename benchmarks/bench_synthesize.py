"""How long a scene takes, from its parameters to its spectrogram, and how much memory.

    python benchmarks/bench_synthesize.py

On one core (affinity to it, one torch thread), as a loader's worker makes them: scenes of the preset `classic`, which are
40 ms at 61.44 Msps, and of `wild`, whose rates and lengths differ. A turn makes `--scenes` scenes, the same in every turn.
The memory is that of a process of its own, which imports, makes scenes of both presets and the largest that `wild` has
(80 ms at 122.88 Msps). Where there is a GPU, the scenes of both presets are made there too.
"""

import argparse
import multiprocessing
import time

import common
import torch

from data.synthetic import SceneMaker
from radio.rng import TRAINING
from radio.scenes.config import PRESETS, with_settings
from radio.scenes.scene import render
from radio.spectrogram import Spectrogram
from util.device import keep_freed_memory
from util.errors import reported
from util.progress import peak_memory_bytes

CPU = torch.device("cpu")
PARTS = ("parameters", "IQ", "spectrogram")
LARGEST = ("sample_rates_hz=122.88e6", "duration_ms=80")


def get_args_parser():
    parser = argparse.ArgumentParser(
        description="Seconds a synthetic scene.", formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--scenes", type=int, default=60, help="scenes in a turn")
    common.add_arguments(parser, repeats=5)
    return parser


def turn(maker, front_end, count, device):
    """Seconds a scene of one turn: (all, [parameters, IQ, spectrogram]); on a GPU the parts are when they were launched."""
    sums, started = [0.0, 0.0, 0.0], time.perf_counter()
    for number in range(count):
        begun = time.perf_counter()
        scene = maker.draw(TRAINING, number)
        drawn = time.perf_counter()
        iq = render(scene, device)
        rendered = time.perf_counter()
        front_end.decibels(iq[None])
        del iq  # as a worker does, before the next
        sums = [total + part for total, part in
                zip(sums, (drawn - begun, rendered - drawn, time.perf_counter() - rendered), strict=True)]  # fmt: skip
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - started) / count, [total / count for total in sums]


def peak_memory(scenes):
    """Most memory that a process needs for scenes of every kind, in bytes; to be called in a fresh one."""
    torch.set_num_threads(1)
    keep_freed_memory()
    with torch.inference_mode():
        front_end = Spectrogram()
        for config in (*PRESETS.values(), with_settings(PRESETS["wild"], LARGEST)):
            turn(SceneMaker(config, seed=0), front_end, scenes, CPU)
    return peak_memory_bytes(CPU)


@torch.inference_mode()
def main(parser, args):
    common.check_args(args, "scenes")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        memory_bytes = pool.apply(peak_memory, (args.scenes,))
    common.use_one_core()
    keep_freed_memory()

    devices = [CPU] + ([torch.device("cuda")] if torch.cuda.is_available() else [])
    kinds, rows = {}, []
    for device in devices:
        front_end = Spectrogram().to(device)
        for preset, config in PRESETS.items():
            maker = SceneMaker(config, seed=0)
            turn(maker, front_end, args.scenes, device)  # a turn that does not count
            turns = [turn(maker, front_end, args.scenes, device) for _ in range(args.repeats)]
            seconds = common.spread([whole for whole, _ in turns])
            parts = {part: float(f"{min(shares[number] for _, shares in turns):.3g}") for number, part in enumerate(PARTS)}
            kinds[f"{preset}, {device.type}"] = {"seconds_a_scene": seconds, "parts_s": parts}
            rate, spread = common.columns(common.spread([1 / whole for whole, _ in turns]))
            rows.append((f"{preset}, {'one core' if device == CPU else common.device_name(device)}",
                         f"{seconds['median']:.4f}", rate, spread, *(f"{1e3 * value:.1f}" for value in parts.values())))

    common.print_table(("preset", "s a scene", "scenes/s", "least .. greatest", *(f"{part}, ms" for part in PARTS)), rows)
    print(f"memory of one worker: {memory_bytes / 1e6:.0f} MB")
    results = {"scenes": args.scenes, "repeats": args.repeats, "presets": kinds, "worker_memory_bytes": memory_bytes}
    common.write_results("bench_synthesize", parser, args, devices[-1], ("scipy", "sionna-no-rt"), results)


if __name__ == "__main__":
    with reported():
        parser = get_args_parser()
        main(parser, parser.parse_args())
