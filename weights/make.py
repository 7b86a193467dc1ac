"""Make the weights in this folder: scenes, pretraining, fine-tuning, files. One command; the same one goes on.

    # all of it; weights/README.md has the flags that those in the repository were made with
    python weights/make.py --output made --scenes 40000

    # on the CPU of a laptop, in a night
    python weights/make.py --output made --scenes 12000 --pretrain_epochs 15 --finetune_epochs 12 --batch_size 32

    # scenes for at most five minutes, however many these are; then the rest
    python weights/make.py --output made --scenes 100000 --minutes 5 --only scenes
    python weights/make.py --output made --scenes 100000 --only join pretrain finetune

Nothing but scenes that main_synthesize.py draws goes into them. It writes OUTPUT/radio_mae_vit_SIZE.safetensors, encoder and
decoder, and OUTPUT/radio_seg_vit_SIZE.safetensors, for main_segment.py, and prints each command before it runs it.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

# Python looks for modules beside the script; the project lies above it and is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data.formats import is_spectrogram_set
from data.spectrogram_set import DESCRIPTION, LABELS, MASKS, METADATA, SPECTROGRAMS, SpectrogramSet
from util.errors import RunError, UserError, reported

ROOT = Path(__file__).resolve().parent.parent
STEPS = ("scenes", "join", "pretrain", "finetune")
LICENCE = "Apache-2.0"
SHARD = 1000  # scenes that a process makes before it begins anew: below a minute
# What most scenes are drawn from, beyond the preset `wild`; those that are held out, too.
SETTINGS = (
    # around the window that is labelled: shorter captures are used whole
    "duration_ms=2,12",
    # rates of receivers in use, as often as they are met with; none that takes most of the time that all take
    "sample_rates_hz=1.92e6,1.92e6,1.92e6,2.4e6,3.84e6,7.68e6,10e6,11.52e6,15.36e6,19.2e6,19.2e6,20e6,23.04e6,23.04e6,30.72e6,"
    "46.08e6,46.08e6,61.44e6",
    # carriers that can be seen: what lies 5 dB under the noise, or 40 dB under a neighbour, teaches to guess
    "snr_db=0,40", "power_range_db=30",
    # as many scenes with NR as with LTE: an NR carrier that is quiet is in no label
    "technologies=NR,NR,NR,LTE,LTE",
    # what is neither, alone in the band too; above all what looks like OFDM or comes in bursts
    "noise_only=0.2", "distractor_kinds=tone,fm,gfsk,hopping,qam,qam,ofdm,ofdm,ofdm,chirp,gsm,noise_burst,noise_burst,nbiot,"
    "pulses", "beyond=0.4",
    # gain that is switched many times, as between joined pieces of a recording; 8-bit receivers that clip
    "agc=0.15", "agc_steps=1,8", "overdriven=0.12",
)
# Flags of main_synthesize.py. "whole": carriers that are seen from edge to edge, as receivers are usually set; "frames": of
# the published work, a clean band of 5G NR and LTE; "pieces": one carrier in a recording that is joined of pieces, each with
# a gain of its own; "others": no carrier, but what may be taken for one, and noise whose level does not keep still.
RECIPES = {
    "wild": ("--set", *SETTINGS),
    "whole": ("--set", *SETTINGS, "duration_ms=4,12", "inside=0", "cut=0.1"),
    "frames": ("--preset", "classic", "--set", "duration_ms=2,12", "sample_rates_hz=23.04e6,30.72e6,61.44e6,61.44e6",
               "snr_db=0,40"),
    "pieces": ("--set", *SETTINGS, "inside=0", "cut=0.05", "num_carriers=1", "technologies=NR,NR,NR,LTE", "noise_only=0.1",
               "sample_rates_hz=11.52e6,15.36e6,23.04e6,23.04e6,30.72e6,46.08e6,46.08e6,61.44e6",
               "nr_bandwidths_mhz=10,15,20,20,40,40,50", "nr_spacings_khz=15,30,30", "nr_ssb_periods_ms=5,10,20",
               "agc=1", "agc_steps=1,12"),
    "others": ("--set", *SETTINGS, "noise_only=1", "num_distractors=0,1,1,1,1,2,3", "beyond=0.5",
               "sample_rates_hz=1.92e6,1.92e6,1.92e6,2.4e6,3.84e6,10e6,15.36e6,20e6,20e6,20e6,20e6,25e6,40e6",
               "distractor_kinds=ofdm,ofdm,ofdm,ofdm,ofdm,ofdm,qam,noise_burst,noise_burst,gsm,pulses",
               "agc=0.4", "agc_steps=10,200", "agc_step_db=-3,3"),
}  # fmt: skip
MIX = ("wild", "whole", "pieces", "wild", "frames", "others")  # of the shards, again and again


def get_args_parser():
    parser = argparse.ArgumentParser(description="Make the released weights.", allow_abbrev=False,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)  # fmt: skip
    parser.add_argument("--output", required=True, metavar="FOLDER", help="scenes, runs and weights")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS), help="steps to do")
    parser.add_argument("--size", default="tiny", help="of the Vision Transformer: tiny, small, ...")
    parser.add_argument("--seed", type=int, default=0)

    scenes = parser.add_argument_group("scenes")
    scenes.add_argument("--scenes", type=int, default=40000, help="to train on; the next multiple of a shard's")
    scenes.add_argument("--shard", type=int, default=SHARD, help="scenes of a shard")
    scenes.add_argument("--held_out", type=int, default=1000, help="scenes to test on; half as many to validate")
    scenes.add_argument("--minutes", type=float, help="begin no further shard after so long")
    scenes.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="changes what all scenes are drawn from")
    scenes.add_argument("--n_fft", type=int, default=512)
    scenes.add_argument("--window_ms", type=float, default=5.0, help="window that main_segment.py labels in")
    scenes.add_argument("--input_size", type=int, default=224, help="rows and columns of a spectrogram")
    scenes.add_argument("--num_workers", type=int, default=os.cpu_count() or 1, help="processes, for scenes and training")

    training = parser.add_argument_group("training")
    training.add_argument("--pretrain_epochs", type=int, default=30)
    training.add_argument("--finetune_epochs", type=int, default=12)
    training.add_argument("--batch_size", type=int, default=128)
    training.add_argument("--blr", type=float, default=2e-3, help="base learning rate of both")
    training.add_argument("--layer_decay", type=float, default=0.9, help="of fine-tuning")
    training.add_argument("--drop_path", type=float, default=0.05, help="of fine-tuning")
    training.add_argument("--device", default="auto")
    training.add_argument("--more", default="", metavar="FLAGS", help="further flags for both trainers, in quotes")
    return parser


def run(script, *flags, quiet=False):
    """Run one of the project's commands, as a user would; RunError where it fails. `quiet`: show the command alone."""
    words = [script, *(str(flag) for flag in flags)]
    print(f"\n$ python {shlex.join(words)}", flush=True)
    started, to = time.perf_counter(), subprocess.PIPE if quiet else None
    done = subprocess.run([sys.executable, str(ROOT / script), *words[1:]], check=False, text=True, stdout=to, stderr=to)
    if done.returncode:
        said = f"; {(done.stderr.strip().splitlines() or ['nothing'])[-1]}" if quiet else ""
        raise RunError(f"{script}: ended with status {done.returncode}{said}; the same command goes on")
    print(f"{script}: {time.perf_counter() - started:.0f} s", flush=True)


def scene_flags(args, recipe):
    return ["--n_fft", args.n_fft, "--window_ms", args.window_ms, "--input_size", args.input_size,
            *RECIPES[recipe], *args.set]  # fmt: skip


def shards(args):
    """(recipe, seed, folder) of each shard. The seeds are far from those of other runs."""
    found = []
    for number in range(-(-args.scenes // args.shard)):
        recipe = MIX[number % len(MIX)]
        among = sum(other == recipe for other, *_ in found)
        seed = args.seed + 1000 * (among + 1) + list(RECIPES).index(recipe)
        found.append((recipe, seed, Path(args.output, "shards", f"{recipe}-{among:03}")))
    return found


def make_scenes(args):
    """The held-out scenes, then shards of training scenes, one a process, until there are enough or time is up."""
    started = time.monotonic()
    run("main_synthesize.py", "--output", Path(args.output, "held_out"), "--train", 0, "--val", -(-args.held_out // 2),
        "--test", args.held_out, "--seed", args.seed, "--num_workers", args.num_workers,
        *scene_flags(args, "wild"))  # fmt: skip
    waiting = [one for one in shards(args) if not is_spectrogram_set(one[-1] / "train")]

    def work():
        while args.minutes is None or time.monotonic() - started <= 60 * args.minutes:
            try:
                recipe, seed, folder = waiting.pop(0)  # by one thread alone
            except IndexError:
                return
            run("main_synthesize.py", "--output", folder, "--train", args.shard, "--val", 0, "--test", 0, "--seed", seed,
                "--num_workers", 0, *scene_flags(args, recipe), quiet=True)  # fmt: skip

    if args.num_workers < 2:
        work()
    else:
        with ThreadPoolExecutor(args.num_workers) as pool:
            for done in [pool.submit(work) for _ in range(args.num_workers)]:
                done.result()
    print(f"{len(shards(args)) - len(waiting)} of {len(shards(args))} shards are there")


def join(args):
    """One folder with the sets train, val and test, of the shards that are there and the held-out scenes."""
    there = [folder / "train" for *_, folder in shards(args) if is_spectrogram_set(folder / "train")]
    if not there:
        raise UserError(f"--output {args.output}: expected scenes, of --only scenes; found none")
    scenes = Path(args.output, "scenes")
    if is_spectrogram_set(scenes / "train") and len(SpectrogramSet(scenes / "train")) == args.shard * len(there):
        return
    shutil.rmtree(scenes, ignore_errors=True)
    scenes.mkdir()
    for name in ("val", "test"):
        (scenes / name).symlink_to(os.path.relpath(Path(args.output, "held_out", name), scenes))
    join_sets(there, scenes / "train")
    print(f"{scenes}: {args.shard * len(there)} scenes to train on")


def join_sets(folders, output):
    """One spectrogram set of several of the same front end and classes: their samples in order."""
    described = [json.loads((folder / DESCRIPTION).read_text()) for folder in folders]
    for one in described:
        one.pop("resume_key", None)
    shapes = [one.pop("shape") for one in described]
    if any(one != described[0] for one in described) or any(shape[1:] != shapes[0][1:] for shape in shapes):
        raise UserError(f"{folders[0].parent.parent}: expected shards of one recipe; found several")
    temporary = output.with_name(f".{output.name}.tmp")
    temporary.mkdir()
    count = sum(shape[0] for shape in shapes)
    for name in (SPECTROGRAMS, MASKS, LABELS):
        if (folders[0] / name).exists():
            join_arrays([folder / name for folder in folders], temporary / name, count)
    with open(temporary / METADATA, "wb") as file:
        for folder in folders:
            file.write((folder / METADATA).read_bytes())
    (temporary / DESCRIPTION).write_text(json.dumps(described[0] | {"shape": [count, *shapes[0][1:]]}, indent=1) + "\n")
    temporary.rename(output)


def join_arrays(paths, output, count):
    """A .npy file of `count` samples, out of several: read and written in blocks, as they are larger than the memory."""
    arrays = [np.load(path, mmap_mode="r") for path in paths]
    joined = np.lib.format.open_memmap(output, "w+", arrays[0].dtype, (count, *arrays[0].shape[1:]))
    first = 0
    for array in arrays:
        joined[first : first + len(array)] = array
        first += len(array)
    joined.flush()


def training_flags(args, epochs):
    return ["--data_path", Path(args.output, "scenes"), "--batch_size", args.batch_size, "--epochs", epochs,
            "--warmup_epochs", max(1, epochs // 10), "--blr", args.blr, "--clip_grad", 1.0, "--seed", args.seed,
            "--num_workers", args.num_workers, "--device", args.device, "--export_dtype", "float16", "--licence", LICENCE,
            *shlex.split(args.more)]  # fmt: skip


def weights_of(args, kind):
    return Path(args.output, f"radio_{kind}_vit_{args.size}.safetensors")


def pretrain(args):
    run("main_pretrain.py", "--model", f"mae_vit_{args.size}_patch16", "--output_dir", Path(args.output, f"mae_{args.size}"),
        "--save_every_epochs", max(1, args.pretrain_epochs // 5), "--export", weights_of(args, "mae"),
        *training_flags(args, args.pretrain_epochs))  # fmt: skip


def finetune(args):
    run("main_finetune.py", "--task", "segmentation", "--model", f"vit_{args.size}_patch16",
        "--finetune", weights_of(args, "mae"), "--output_dir", Path(args.output, f"seg_{args.size}"),
        "--layer_decay", args.layer_decay, "--drop_path", args.drop_path, "--export", weights_of(args, "seg"),
        *training_flags(args, args.finetune_epochs))  # fmt: skip


def main(args):
    for name in ("scenes", "shard", "held_out", "pretrain_epochs", "finetune_epochs"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name}: expected at least 1; found {getattr(args, name)}")
    for name, step in (("scenes", make_scenes), ("join", join), ("pretrain", pretrain), ("finetune", finetune)):
        if name in args.only:
            step(args)


if __name__ == "__main__":
    with reported():
        main(get_args_parser().parse_args())
