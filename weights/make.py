"""Make the weights in this folder: draw scenes, pretrain, fine-tune. Run the same command again to resume.

    # everything; weights/README.md has the flags of the released weights
    python weights/make.py --output made --scenes 40000

    # one night on a laptop's CPU
    python weights/make.py --output made --scenes 12000 --batch_size 32 --pretrain_epochs 15

    # scenes for five minutes at most; then the other steps on the scenes that are done
    python weights/make.py --output made --scenes 100000 --minutes 5 --only scenes
    python weights/make.py --output made --scenes 100000 --only join pretrain finetune

Trains only on scenes of main_synthesize.py. Prints each command before running it. Writes to OUTPUT:
radio_mae_vit_SIZE.safetensors (encoder and decoder), radio_seg_vit_SIZE.safetensors (for main_segment.py).
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# Python looks for modules beside the script; the project lies above it and is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data.formats import is_spectrogram_set
from data.spectrogram_set import SpectrogramSet, join_sets
from util.errors import RunError, UserError, reported

ROOT = Path(__file__).resolve().parent.parent
FRONT_END = "--front_end grid --channels power,cp"
# What most training scenes and all held-out scenes change in the preset `wild`.
SETTINGS = (
    "duration_ms=20 "  # an image of the front end
    # common receiver rates, more often the most common; higher rates would take most of the time
    "sample_rates_hz=1.92e6,1.92e6,1.92e6,2.4e6,3.84e6,7.68e6,10e6,11.52e6,15.36e6,19.2e6,19.2e6,19.2e6,20e6,"
    "20e6,23.04e6,23.04e6,30.72e6,30.72e6,40e6,46.08e6,61.44e6 "
    # visible carriers only: invisible ones teach the model to guess
    "snr_db=0,40 power_range_db=30 "
    # balances the labels: a quiet NR carrier is in none
    "technologies=NR,NR,NR,LTE,LTE noise_only=0.15 beyond=0.3 overdriven=0.1"
)
# Flags of main_synthesize.py.
RECIPES = {
    "wild": f"--set {SETTINGS}",
    # carriers seen from edge to edge
    "whole": f"--set {SETTINGS} inside=0 cut=0.1 num_carriers=1,1,2",
    # the NR and LTE frames of the published work, some of them fully loaded or idle
    "frames": "--preset classic --set duration_ms=20 classes=Noise,NR,LTE,Other full=0.3 block_traffic=0.8 "
    "sample_rates_hz=23.04e6,30.72e6,61.44e6,61.44e6 snr_db=0,40",
    # one carrier in a recording joined of pieces, each with its own gain
    "pieces": f"--set {SETTINGS} duration_ms=1,20 inside=0 cut=0.05 num_carriers=1 noise_only=0.1 "
    "sample_rates_hz=11.52e6,15.36e6,23.04e6,23.04e6,30.72e6,46.08e6,46.08e6,61.44e6 "
    "nr_bandwidths_mhz=10,15,20,20,40,40,50 nr_spacings_khz=15,30,30 agc=1 agc_steps=1,12",
    # no carrier, but signals that resemble one, humps, and noise of changing level
    "others": f"--set {SETTINGS} noise_only=1 num_distractors=0,1,1,1,1,2,3 beyond=0.5 hump=0.15 "
    "sample_rates_hz=1.92e6,1.92e6,2.4e6,3.84e6,10e6,15.36e6,20e6,20e6,20e6,20e6,25e6,40e6 "
    "distractor_snr_db=0,50 agc=0.2 agc_steps=1,100 agc_step_db=-3,3",
    # short captures, and those that no receiver or a poor one made
    "odd": f"--set {SETTINGS} duration_ms=0.5,20 noiseless=0.15 faint=0.2 real_valued=0.15 padded=0.25",
}
MIX = ("wild", "whole", "others", "frames", "wild", "pieces", "odd", "others")  # of the shards, repeated


def get_args_parser():
    parser = argparse.ArgumentParser(
        description="Make the released weights.",
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", required=True, metavar="FOLDER", help="scenes, runs and weights")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS), help="steps to run")
    parser.add_argument("--size", default="tiny", help="Vision Transformer: tiny, small, ...")
    parser.add_argument("--seed", type=int, default=0)

    add = parser.add_argument_group("scenes").add_argument
    add("--scenes", type=int, default=40000, help="training scenes, rounded up to whole shards")
    add("--shard", type=int, default=1000, help="scenes per shard")
    add("--held_out", type=int, default=1000, help="test scenes; half as many validate")
    add("--minutes", type=float, help="start no shard after this time")
    add("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of all scenes")
    add("--front_end", default=FRONT_END, metavar="FLAGS", help="flags of the front end, in quotes")
    add("--num_workers", type=int, default=os.cpu_count() or 1, help="for scenes and training")

    add = parser.add_argument_group("training").add_argument
    add("--pretrain_epochs", type=int, default=30)
    add("--finetune_epochs", type=int, default=12)
    add("--batch_size", type=int, default=128)
    add("--blr", type=float, default=2e-3, help="base learning rate of both trainings")
    add("--layer_decay", type=float, default=0.9, help="fine-tuning only")
    add("--drop_path", type=float, default=0.05, help="fine-tuning only")
    add("--device", default="auto")
    add("--more", default="", metavar="FLAGS", help="more flags for both trainers, in quotes")
    return parser


def run(script, *flags, quiet=False):
    """Run a command of the project. quiet: hide its output. RunError if the command fails."""
    words = [script, *(str(flag) for flag in flags)]
    print(f"\n$ python {shlex.join(words)}", flush=True)
    started, to = time.perf_counter(), subprocess.PIPE if quiet else None
    command = [sys.executable, str(ROOT / script), *words[1:]]
    done = subprocess.run(command, check=False, text=True, stdout=to, stderr=to)
    if done.returncode:
        last_line = f"; {(done.stderr.strip().splitlines() or ['no message'])[-1]}" if quiet else ""
        raise RunError(f"{script}: exit status {done.returncode}{last_line}; run the same command to resume")
    print(f"{script}: {time.perf_counter() - started:.0f} s", flush=True)


def scene_flags(args, recipe):
    return [*shlex.split(args.front_end), *RECIPES[recipe].split(), *args.set]


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
    """The held-out scenes, then the missing shards, one per process, until all are done or time is up."""
    started = time.monotonic()
    flags = f"--train 0 --val {-(-args.held_out // 2)} --test {args.held_out} --seed {args.seed}".split()
    flags += ["--num_workers", args.num_workers, *scene_flags(args, "wild")]
    run("main_synthesize.py", "--output", Path(args.output, "held_out"), *flags)

    def make_shard(recipe, seed, folder):
        if args.minutes is None or time.monotonic() - started <= 60 * args.minutes:
            flags = f"--train {args.shard} --val 0 --test 0 --num_workers 0 --seed {seed}".split()
            run("main_synthesize.py", "--output", folder, *flags, *scene_flags(args, recipe), quiet=True)

    missing = [shard for shard in shards(args) if not is_spectrogram_set(shard[-1] / "train")]
    with ThreadPoolExecutor(max(1, args.num_workers)) as pool:
        list(pool.map(make_shard, *zip(*missing, strict=True)))
    print(f"{len(finished_shards(args))} of {len(shards(args))} shards are done")


def finished_shards(args):
    return [folder / "train" for *_, folder in shards(args) if is_spectrogram_set(folder / "train")]


def join(args):
    """Make OUTPUT/scenes: train points to the finished shards; val and test link to the held-out scenes."""
    finished = finished_shards(args)
    if not finished:
        raise UserError(f"--output {args.output}: expected scenes; found none; run --only scenes first")
    scenes = Path(args.output, "scenes")
    count = args.shard * len(finished)
    if is_spectrogram_set(scenes / "train") and len(SpectrogramSet(scenes / "train")) == count:
        return
    shutil.rmtree(scenes, ignore_errors=True)
    scenes.mkdir()
    for name in ("val", "test"):
        (scenes / name).symlink_to(os.path.relpath(Path(args.output, "held_out", name), scenes))
    join_sets(finished, scenes / "train")
    print(f"{scenes}: {count} training scenes")


def train(args, script, kind, model, epochs, *flags):
    """Train a model and export it as OUTPUT/radio_KIND_vit_SIZE.safetensors."""
    common = (
        f"--model {model} --epochs {epochs} --warmup_epochs {max(1, epochs // 10)} "
        f"--batch_size {args.batch_size} --blr {args.blr} --clip_grad 1.0 --seed {args.seed} "
        f"--num_workers {args.num_workers} --device {args.device} --export_dtype float16 --licence Apache-2.0"
    )
    output = Path(args.output)
    flags = ["--data_path", output / "scenes", "--output_dir", output / f"{kind}_{args.size}", *flags]
    run(script, *flags, "--export", weights_of(args, kind), *common.split(), *shlex.split(args.more))


def weights_of(args, kind):
    return Path(args.output, f"radio_{kind}_vit_{args.size}.safetensors")


def pretrain(args):
    epochs = args.pretrain_epochs
    save_every = ("--save_every_epochs", max(1, epochs // 5))
    train(args, "main_pretrain.py", "mae", f"mae_vit_{args.size}_patch16", epochs, *save_every)


def finetune(args):
    flags = f"--task segmentation --layer_decay {args.layer_decay} --drop_path {args.drop_path}".split()
    flags += ["--finetune", weights_of(args, "mae")]
    train(args, "main_finetune.py", "seg", f"vit_{args.size}_patch16", args.finetune_epochs, *flags)


STEPS = {"scenes": make_scenes, "join": join, "pretrain": pretrain, "finetune": finetune}


def main(args):
    for name in ("scenes", "shard", "held_out", "pretrain_epochs", "finetune_epochs"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name}: expected at least 1; found {getattr(args, name)}")
    for name, step in STEPS.items():
        if name in args.only:
            step(args)


if __name__ == "__main__":
    with reported():
        main(get_args_parser().parse_args())
