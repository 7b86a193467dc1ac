"""What is left of the training step's speed when it is fed: main_pretrain.py itself, from a set and from recordings.

    python benchmarks/bench_end_to_end.py                                                        # a CPU
    python benchmarks/bench_end_to_end.py --model mae_vit_large_patch16 --batch_size 256 --samples 16384    # a GPU

The step alone is that of `bench_pretrain.py`: images and mask noise are on the device, nothing is read. Beside it
`main_pretrain.py` is run on a spectrogram set of `--samples` random spectrograms and on SigMF ci16 recordings at 61.44 Msps,
whose windows of 16 ms (3.9 MB each) go through the STFT as they are read; both lie in the page cache. Rates are those of
its log.txt, of every epoch but the first, in which workers start; so are the shares of time waited for data.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import tempfile
from pathlib import Path

import bench_pretrain
import common
import numpy as np
import torch
from bench_data import SAMPLE_RATE_HZ, write_sigmf
from bench_pretrain import OURS, Trainer, images_per_s, our_loss, our_model

import main_pretrain
from data.set_writer import spectrogram_set_writer
from radio.spectrogram import Spectrogram
from util.compiling import compile_model, pick_compile
from util.device import keep_freed_memory, pick_amp, pick_device
from util.errors import reported
from util.progress import peak_memory_bytes

WINDOW_S = 0.016
WINDOWS_A_RECORDING = 64


def get_args_parser():
    parser = argparse.ArgumentParser(
        description="Images per second of main_pretrain.py beside its step alone.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model", default="mae_vit_tiny_patch16", metavar="PRESET")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--samples", type=int, default=256, help="spectrograms of the set")
    parser.add_argument("--windows", type=int, default=128, help="windows of the recordings; each takes 3.9 MB")
    parser.add_argument("--num_workers", type=int, default=0 if (os.cpu_count() or 1) < 4 else min(14, os.cpu_count() - 2))
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--amp", default="auto")
    parser.add_argument("--compile", default="auto")
    parser.add_argument("--steps", type=int, default=4, help="training steps to a turn of the step alone")
    common.add_arguments(parser, repeats=3)
    return parser


def write_set(folder, count, front_end):
    """Random spectrograms; what they hold makes no difference to the time."""
    rng = np.random.default_rng(0)
    decibels = rng.standard_normal((8, 1, *front_end.image_size), dtype=np.float32) * 10 - 60
    with spectrogram_set_writer(folder, count, front_end) as packed:
        for number in range(count):
            packed.add(decibels[number % len(decibels)], {"name": f"window {number}"})


def write_recordings(folder, count):
    """Recordings of noise, `WINDOWS_A_RECORDING` windows or fewer each: copies of one, as files of their own."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    window, windows = round(WINDOW_S * SAMPLE_RATE_HZ), min(count, WINDOWS_A_RECORDING)
    noise = rng.standard_normal((2 * window,), dtype=np.float32).view(np.complex64) * np.float32(0.1)
    first = folder / "000000"
    write_sigmf(first, np.concatenate([np.roll(noise, shift) for shift in range(windows)]))
    for number in range(1, count // windows):
        for suffix in (".sigmf-data", ".sigmf-meta"):
            shutil.copyfile(first.with_suffix(suffix), folder / f"{number:06}{suffix}")


def step_alone(args, amp, device):
    """The step's rate: a `common.spread`, as it was first measured and after everything else."""
    torch.manual_seed(bench_pretrain.SEED)
    model = our_model(args.model).to(device)
    way = pick_compile(argparse.Namespace(compile=args.compile, accum_iter=1, grad_ckpt=False), device, 1)
    compile_model(model, way, args.batch_size, amp, model.num_visible(bench_pretrain.MASK_RATIO))
    trainer = Trainer(model, our_loss, amp, device)
    images = torch.randn(args.batch_size, 1, *model.img_size).to(device)
    batch = images, torch.rand(args.batch_size, model.num_patches).to(device)
    for _ in range(max(bench_pretrain.WARM_UP_STEPS, args.steps)):
        trainer.step(*batch)
    return [images_per_s(trainer, *batch, args.steps) for _ in range(args.repeats)]


def end_to_end(data_path, args, amp, output_dir):
    """The epochs' lines of a run of main_pretrain.py, the first left out."""
    flags = {"data_path": data_path, "model": args.model, "batch_size": args.batch_size, "epochs": 1 + args.repeats,
             "num_workers": args.num_workers, "output_dir": output_dir, "val_fraction": 0, "save_every_epochs": 1000,
             "warmup_epochs": 0, "amp": amp, "device": args.device, "compile": args.compile}  # fmt: skip
    command = [str(part) for name, value in flags.items() for part in (f"--{name}", value)]
    with contextlib.redirect_stdout(io.StringIO()):
        main_pretrain.main(main_pretrain.get_args_parser().parse_args([*command, "--norm_pix_loss"]))
    return [json.loads(line) for line in (Path(output_dir) / "log.txt").read_text().splitlines()][1:]


def main(parser, args):
    common.check_args(args, "batch_size", "samples", "windows", "steps")
    keep_freed_memory()
    device = pick_device(args.device)
    amp = pick_amp(args.amp, device)
    front_end = Spectrogram(duration_s=WINDOW_S)
    with tempfile.TemporaryDirectory(prefix="radio-mae-bench-") as folder:
        folder = Path(folder)
        write_set(folder / "set", args.samples, front_end)
        write_recordings(folder / "sigmf", args.windows)
        alone = step_alone(args, amp, device)
        runs = {name: end_to_end(folder / name, args, amp, folder / f"run-{name}") for name in ("set", "sigmf")}
        alone += step_alone(args, amp, device)  # of a machine whose speed drifts both ends count

    alone = common.spread(alone)
    found = {"the step alone": {"images_per_s": alone}}
    for name, source in (("set", "spectrogram set"), ("sigmf", "SigMF ci16, STFT included")):
        rates, waits = ([epoch[key] for epoch in runs[name]] for key in ("images_per_s", "data_wait"))
        rates = common.spread(rates)
        found[source] = {"images_per_s": rates, "data_wait": common.spread(waits),
                         "of_the_step": float(f"{rates['median'] / alone['median']:.3g}")}  # fmt: skip
    print(f"{OURS}: {args.model}, batch {args.batch_size}, amp {amp}, {args.num_workers} workers, on "
          f"{common.device_name(device)}")  # fmt: skip
    common.print_table(
        ("fed from", "images/s", "least .. greatest", "of the step", "data wait"),
        [(name, *common.columns(entry["images_per_s"]), f"{entry.get('of_the_step', 1):.1%}",
          f"{entry['data_wait']['median']:.1%}" if "data_wait" in entry else "") for name, entry in found.items()],
    )  # fmt: skip
    results = {
        "model": args.model, "batch_size": args.batch_size, "amp": amp, "num_workers": args.num_workers,
        "samples": args.samples, "windows": args.windows, "repeats": args.repeats, "fed_from": found,
        "memory_bytes": peak_memory_bytes(device),
    }  # fmt: skip
    common.write_results("bench_end_to_end", parser, args, device, ("timm",), results)


if __name__ == "__main__":
    with reported():
        parser = get_args_parser()
        main(parser, parser.parse_args())
