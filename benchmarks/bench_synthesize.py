"""How long a scene takes, from its parameters to its spectrogram, and how much memory it needs.

    python benchmarks/bench_synthesize.py

On one core, as a loader's worker makes scenes: the preset `classic`, 40 ms at 61.44 Msps, and `wild`, of
several rates and lengths. Every turn makes the same scenes. The memory is that of a process that makes the
largest scenes of `wild`. A GPU, where there is one, makes the scenes of both presets too.
"""

import time
from functools import partial

import common
import torch

from data.synthetic import SceneMaker
from radio.rng import TRAINING
from radio.scenes.config import PRESETS, with_settings
from radio.scenes.scene import render
from radio.spectrogram import Spectrogram
from util.progress import peak_memory_bytes

LARGEST = ("sample_rates_hz=122.88e6", "duration_ms=80")


def get_args_parser():
    parser = common.get_parser("Seconds a synthetic scene.", repeats=5)
    parser.add_argument("--scenes", type=common.positive, default=60, help="scenes in a turn")
    return parser


def seconds_a_scene(maker, count, device):
    front_end = Spectrogram().to(device)
    started = time.perf_counter()
    for number in range(count):
        iq = render(maker.draw(TRAINING, number), device)
        front_end.decibels(iq[None])
        del iq  # as a worker does, before the next
    common.synchronize(device)
    return (time.perf_counter() - started) / count


@torch.inference_mode()
def measure(args):
    common.use_one_core()
    devices = [common.CPU, *([torch.device("cuda")] if torch.cuda.is_available() else [])]
    largest = SceneMaker(with_settings(PRESETS["wild"], LARGEST), seed=0)
    seconds_a_scene(largest, min(args.scenes, 4), common.CPU)
    memory = peak_memory_bytes(common.CPU)  # before a GPU takes some
    candidates = {}
    for device in devices:
        for preset, config in PRESETS.items():
            made = partial(seconds_a_scene, SceneMaker(config, seed=0), args.scenes, device)
            candidates[f"{preset}, {device.type}"] = made
    turns = common.by_turns(candidates, args.repeats)
    presets = {name: {"seconds_a_scene": common.spread(found)} for name, found in turns.items()}
    about = {"scenes": args.scenes, "repeats": args.repeats}
    return devices[-1], {**about, "presets": presets, "worker_memory_bytes": memory}


if __name__ == "__main__":
    common.run_benchmark(get_args_parser(), measure)
