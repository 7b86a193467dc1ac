"""Accuracy against the share of the labels: pretrained, from scratch, and a random encoder that stays as it
is.

    python benchmarks/label_efficiency.py --data_path scenes --finetune output_dir/checkpoint-last.pth

Every run is one of main_finetune.py, three seeds by default, with the same number of steps whatever the
share of the labels. Runs whose results are in `--runs` are not repeated: the same command continues a
benchmark that was stopped.
"""

import json
import shlex
import statistics
from pathlib import Path

import common
from matplotlib.figure import Figure

from util.errors import UserError, reported
from util.files import atomic_path, writable_folder
from util.metrics import aligned, overall

KINDS = {
    "pretrained": "{}",
    "from scratch": "--finetune ''",
    "random, frozen": "--finetune random --train head",
}

# Flags that main_finetune.py gets as they are, and their defaults here.
FORWARDED = {
    "task": "segmentation",
    "model": "vit_tiny_patch16",
    "batch_size": 16,
    "blr": 1.6e-2,
    "layer_decay": 1.0,
    "num_workers": 0,
}


def get_args_parser():
    parser = common.get_parser("Accuracy against the share of the labels.")
    parser.add_argument("--data_path", required=True, help="labelled data of --task")
    parser.add_argument("--finetune", required=True, help="pretrained checkpoint")
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.05, 0.2, 1.0], help="of the labels")
    parser.add_argument(
        "--seeds", type=common.positive, nargs="+", default=[3], help="how many: one, or one a share"
    )
    parser.add_argument("--epochs", type=int, default=6, help="with all labels; more with fewer")
    for name, default in FORWARDED.items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help="as main_finetune.py's")
    parser.add_argument("--runs", default="label_efficiency_runs", help="folder of the runs")
    return parser


def run(args, kind, fraction, seed):
    """The test figures of one run, read from its results if they are there."""
    folder = Path(args.runs) / f"{kind.replace(', ', '-').replace(' ', '-')}-{fraction:g}-{seed}"
    results = folder / "results.json"
    if not results.exists():
        epochs = max(1, round(args.epochs / fraction))
        flags = {name: getattr(args, name) for name in ("data_path", *FORWARDED)}
        flags |= {"label_fraction": fraction, "seed": seed, "output_dir": folder.resolve(), "epochs": epochs}
        flags |= {"warmup_epochs": max(1, epochs // 6), "val_every": max(1, epochs // 12)}
        words = [f"--{name} {shlex.quote(str(value))}" for name, value in flags.items()]
        start = KINDS[kind].format(f"--finetune {shlex.quote(args.finetune)}")
        common.run_command(f"main_finetune.py {' '.join(words)} {start}", Path.cwd())
    return json.loads(results.read_text())["test"]


def picture(curves, caption, title):
    """Mean and spread of each kind's accuracy against the share of the labels.

    Args:
        curves: {kind: {share: accuracies of its seeds}}; title: of the accuracy.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    for kind, points in curves.items():
        percents = [100 * float(share) for share in points]
        values = [[100 * value for value in seeds] for seeds in points.values()]
        [line] = axis.plot(percents, [statistics.mean(seeds) for seeds in values], marker="o", label=kind)
        low, high = [min(seeds) for seeds in values], [max(seeds) for seeds in values]
        axis.fill_between(percents, low, high, alpha=0.2, color=line.get_color())
    axis.set_xscale("log")
    axis.set_xticks(percents, [f"{percent:g} %" for percent in percents])
    axis.set_xlabel("share of the labels")
    axis.set_ylabel(f"{title}, %")
    axis.set_title(caption, fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


def main(args):
    counts = args.seeds * len(args.fractions) if len(args.seeds) == 1 else args.seeds
    if len(counts) != len(args.fractions) or not all(0 < fraction <= 1 for fraction in args.fractions):
        raise UserError(f"--fractions: expected shares up to 1 and their --seeds; found {args.fractions}")
    with writable_folder(args.output, f"--output {args.output}") as folder:
        curves, rows = {kind: {} for kind in KINDS}, []
        for fraction, count in sorted(zip(args.fractions, counts, strict=True)):
            for kind, points in curves.items():
                seeds = [run(args, kind, fraction, seed) for seed in range(count)]
                names = overall(seeds[0]), "mean_accuracy", "mean_iou"
                values = [[one[name] for one in seeds] for name in names]
                means = list(map(statistics.mean, values))
                point = [{"mean": mean, "seeds": each} for mean, each in zip(means, values, strict=True)]
                points[f"{fraction:g}"] = dict(zip(names, point, strict=True))
                by_seed = " ".join(f"{100 * value:.2f}" for value in values[0])
                rows.append(
                    (kind, f"{100 * fraction:g} %", *(f"{100 * mean:.2f}" for mean in means), by_seed)
                )
        titles = [name.replace("_", " ") for name in names]
        print(aligned([("encoder", "labels", *titles, f"{titles[0]} by seed"), *rows]))
        shown = {}
        for kind, points in curves.items():
            shown[kind] = {share: point[names[0]]["seeds"] for share, point in points.items()}
        with atomic_path(folder / "label_efficiency.png") as temporary:
            caption = f"{args.model}, seeds: {' '.join(map(str, counts))}"
            picture(shown, caption, titles[0]).savefig(temporary, format="png", dpi=110)
        common.write_record("label_efficiency", args, common.CPU, {"curves": curves})


if __name__ == "__main__":
    with reported():
        main(get_args_parser().parse_args())
