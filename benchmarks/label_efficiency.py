"""Accuracy against the share of the labels: pretrained, from scratch, and a random encoder that stays as it is.

    python benchmarks/label_efficiency.py --data_path scenes --finetune output_dir/checkpoint-last.pth

Every run is one of main_finetune.py, three seeds by default, with the same number of steps whatever the share of the labels.
A run whose results are in `--runs` already is not done again, so that a benchmark that was stopped goes on.
"""

import argparse
import json
import statistics
from pathlib import Path

import common
import torch
from matplotlib.figure import Figure

import main_finetune
from util.errors import UserError, reported
from util.files import atomic_path
from util.metrics import overall

KINDS = {"pretrained": (), "from scratch": (), "random, frozen": ("--train", "head")}


def get_args_parser():
    parser = argparse.ArgumentParser(
        description="Accuracy against the share of the labels.", formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--data_path", required=True, help="labelled data of --task")
    parser.add_argument("--finetune", required=True, help="pretrained checkpoint")
    parser.add_argument("--task", default="segmentation")
    parser.add_argument("--model", default="vit_tiny_patch16")
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.05, 0.2, 1.0], help="shares of the labels")
    parser.add_argument("--seeds", type=int, nargs="+", default=[3], help="one number, or one for each share")
    parser.add_argument("--epochs", type=int, default=6, help="with all labels; more with fewer, for as many steps")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--blr", type=float, default=1.6e-2)
    parser.add_argument("--layer_decay", type=float, default=1.0, help="of the pretrained encoder")
    parser.add_argument("--num_workers", type=int, default=0)
    parser.add_argument("--runs", default="label_efficiency_runs", help="folder of the runs")
    parser.add_argument("--output", default="benchmarks/results", metavar="FOLDER", help="where the figures go")
    return parser


def run(args, kind, fraction, seed):
    """The test figures of one run, read from its results if it was done already."""
    folder = Path(args.runs) / f"{kind.replace(', ', '-').replace(' ', '-')}-{fraction:g}-{seed}"
    results = folder / main_finetune.RESULTS
    if not results.exists():
        epochs = max(1, round(args.epochs / fraction))
        flags = ["--task", args.task, "--data_path", args.data_path, "--model", args.model, "--label_fraction", fraction,
                 "--seed", seed, "--epochs", epochs, "--warmup_epochs", max(1, epochs // 6), "--batch_size", args.batch_size,
                 "--blr", args.blr, "--layer_decay", args.layer_decay, "--num_workers", args.num_workers,
                 "--output_dir", folder, "--val_every", max(1, epochs // 12), *KINDS[kind]]  # fmt: skip
        weights = {"pretrained": args.finetune, "from scratch": "", "random, frozen": "random"}[kind]
        main_finetune.main(main_finetune.get_args_parser().parse_args([*map(str, flags), "--finetune", weights]))
    return json.loads(results.read_text())["test"]


def picture(curves, caption):
    """Mean and spread of each kind's accuracy, of pixels or of samples, against the share of the labels."""
    share_right = overall(next(iter(next(iter(curves.values())).values())))
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    for kind, points in curves.items():
        shares = [100 * float(share) for share in points]
        values = [[100 * value for value in point[share_right]["seeds"]] for point in points.values()]
        [line] = axis.plot(shares, [statistics.mean(point) for point in values], marker="o", label=kind)
        axis.fill_between(shares, [min(point) for point in values], [max(point) for point in values], alpha=0.2,
                          color=line.get_color())  # fmt: skip
    axis.set_xscale("log")
    axis.set_xticks(shares, [f"{share:g} %" for share in shares])
    axis.set_xlabel("share of the labels")
    axis.set_ylabel(f"{share_right.replace('_', ' ')}, %")
    axis.set_title(caption, fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


def main(parser, args):
    counts = args.seeds * len(args.fractions) if len(args.seeds) == 1 else args.seeds
    if min(counts) < 1 or len(counts) != len(args.fractions) or not all(0 < fraction <= 1 for fraction in args.fractions):
        raise UserError(f"--seeds, --fractions: expected at least 1, shares up to 1; found {args.seeds}, {args.fractions}")
    curves = {}
    for fraction, count in sorted(zip(args.fractions, counts, strict=True)):
        for kind in KINDS:
            seeds = [run(args, kind, fraction, seed) for seed in range(count)]
            curves.setdefault(kind, {})[f"{fraction:g}"] = {
                figure: {"mean": statistics.mean(one[figure] for one in seeds), "seeds": [one[figure] for one in seeds]}
                for figure in (overall(seeds[0]), "mean_accuracy", "mean_iou")
            }
    points = [(kind, share, point) for kind, found in curves.items() for share, point in found.items()]
    titles = [figure.replace("_", " ") for figure in points[0][2]]  # first the accuracy of all
    rows = [(kind, f"{100 * float(share):g} %", *(f"{100 * figure['mean']:.2f}" for figure in point.values()),
             " ".join(f"{100 * value:.2f}" for value in point[overall(point)]["seeds"]))
            for kind, share, point in points]  # fmt: skip
    common.print_table(("encoder", "labels", *titles, f"{titles[0]} by seed"), rows)
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / "label_efficiency.png") as temporary:
        picture(curves, f"{args.model}, seeds: {' '.join(map(str, counts))}").savefig(temporary, format="png", dpi=110)
    args.data_path = args.finetune = "..."
    common.write_results("label_efficiency", parser, args, torch.device("cpu"), ("timm", "torchmetrics"), {"curves": curves})


if __name__ == "__main__":
    with reported():
        parser = get_args_parser()
        main(parser, parser.parse_args())
