"""How much of the training step's speed is left when main_pretrain.py reads its data.

    python benchmarks/bench_end_to_end.py                                                           # a CPU
    python benchmarks/bench_end_to_end.py --model mae_vit_large_patch16 --batch_size 256 --samples 16384

The step alone is that of `bench_pretrain.py`: images and mask noise are on the device. `main_pretrain.py`
reads

- a spectrogram set of `--samples` random spectrograms;
- SigMF ci16 recordings at 61.44 Msps, whose windows of 16 ms (3.9 MB each) go through the STFT.

All lies in the page cache. Rates and shares of waiting are those of log.txt, without the first epoch.
"""

import argparse
import json
import os
import shlex
import subprocess
import tempfile
from pathlib import Path

import bench_pretrain
import common
import numpy as np

import models_mae
from data.set_writer import spectrogram_set_writer
from radio.spectrogram import Spectrogram
from util.compiling import pick_compile
from util.device import pick_amp, pick_device

SAMPLE_RATE_HZ, WINDOW_S = 61.44e6, 0.016
WINDOWS_A_RECORDING = 64
SOURCES = {"set": "spectrogram set", "sigmf": "SigMF ci16, STFT included"}


def get_args_parser():
    parser = common.get_parser("Images per second of main_pretrain.py beside its step alone.", repeats=3)
    parser = bench_pretrain.add_arguments(parser, steps=4)
    cores = os.cpu_count() or 1
    workers = 0 if cores < 4 else min(14, cores - 2)
    parser.add_argument("--model", default="mae_vit_tiny_patch16", choices=models_mae.PRESETS)
    parser.add_argument("--batch_size", type=common.positive, default=32)
    parser.add_argument("--samples", type=common.positive, default=256, help="spectrograms of the set")
    parser.add_argument("--windows", type=common.positive, default=128, help="windows of the recordings")
    parser.add_argument("--num_workers", type=int, default=workers)
    return parser


def write_data(folder, samples, windows):
    """A set of random spectrograms and recordings of noise: their content makes no difference to the time."""
    front_end = Spectrogram(duration_s=WINDOW_S)
    rng = np.random.default_rng(0)
    decibels = rng.standard_normal((8, 1, *front_end.image_size), dtype=np.float32) * 10 - 60
    with spectrogram_set_writer(folder / "set", samples, front_end) as packed:
        for number in range(samples):
            packed.add(decibels[number % len(decibels)], {"name": f"window {number}"})
    (folder / "sigmf").mkdir()
    count = min(windows, WINDOWS_A_RECORDING)
    noise = rng.integers(-3000, 3000, (count * round(WINDOW_S * SAMPLE_RATE_HZ), 2), dtype=np.int16)
    for number in range(windows // count):
        common.write_sigmf(folder / "sigmf" / f"{number:06}", noise, SAMPLE_RATE_HZ)


def step_alone(args, amp, device):
    """Rates of the step alone, one a turn."""
    way = pick_compile(argparse.Namespace(compile="auto", accum_iter=1, grad_ckpt=False), device, 1)
    trainer = bench_pretrain.our_trainer(args.model, way, args.batch_size, amp, device)
    batch = bench_pretrain.random_batch(args.batch_size, trainer.model.num_patches, device)
    trainer.images_per_s(*batch, bench_pretrain.WARM_UP_STEPS)
    return [trainer.images_per_s(*batch, args.steps) for _ in range(args.repeats)]


def train(data, output, args, amp):
    """Lines of log.txt of a run of main_pretrain.py, a dict for each epoch but the first."""
    flags = ["--norm_pix_loss", "--val_fraction", 0, "--warmup_epochs", 0, "--save_every_epochs", 1000]
    for name in ("model", "batch_size", "num_workers", "device"):
        flags += [f"--{name}", getattr(args, name)]
    flags += ["--data_path", data, "--output_dir", output, "--epochs", 1 + args.repeats, "--amp", amp]
    common.run_command(f"main_pretrain.py {shlex.join(map(str, flags))}", stdout=subprocess.DEVNULL)
    return [json.loads(line) for line in (output / "log.txt").read_text().splitlines()][1:]


def measure(args):
    device = pick_device(args.device)
    amp = pick_amp(args.amp or "auto", device)
    with tempfile.TemporaryDirectory(prefix="radio-mae-bench-") as name:
        folder = Path(name)
        write_data(folder, args.samples, args.windows)
        rates = step_alone(args, amp, device)
        bench_pretrain.free(device)
        logs = {source: train(folder / source, folder / f"run-{source}", args, amp) for source in SOURCES}
        rates += step_alone(args, amp, device)  # the speed of a machine may drift: both ends count
    alone = common.spread(rates)
    fed_from = {"the step alone": {"images_per_s": alone}}
    for source, epochs in logs.items():
        figures = ("images_per_s", "data_wait")
        found = {name: common.spread([epoch[name] for epoch in epochs]) for name in figures}
        found["of_the_step"] = common.digits(found["images_per_s"]["median"] / alone["median"])
        fed_from[SOURCES[source]] = found
    about = ("model", "batch_size", "num_workers", "samples", "windows", "repeats")
    memory = max(epoch["memory_bytes"] for epochs in logs.values() for epoch in epochs)
    results = {name: getattr(args, name) for name in about} | {"amp": amp, "fed_from": fed_from}
    return device, {**results, "memory_bytes": memory}


if __name__ == "__main__":
    common.run_benchmark(get_args_parser(), measure)
