"""Results of a test part: groups of its samples, tables and pictures."""

import math
import statistics

import numpy as np
import torch

from data.batches import to_images
from data.splits import has_masks
from util import distributed, parallel
from util.metrics import means, overall, table, table_by_group
from util.plots import confusion_figure, prediction_sheet

SHEET_SAMPLES = 9  # best, median and worst
SNR_STEP_DB = 5
MOST_SNRS = 32  # that are groups of their own; a data set with more has ranges


def groupings(part):
    """Groups of every sample, for those that say what is in them: see `evaluate`.

    Scenes are grouped by SNR range and by technologies; samples of a source with the column "snr", in dB, by
    that.
    """
    column = getattr(part.source, "groups", {}).get("snr")
    if column is not None and column.dtype.kind in "fiu":
        return {"SNR": _snr_names(column[part.indices])}
    snr, technology = [], []
    for number in range(len(part)):
        scene = part.describe(number).get("scene")
        if scene is None:
            return {}
        carriers = scene["transmissions"]
        snr.append(_snr_range(min(carrier["snr_db"] for carrier in carriers)) if carriers else "no carrier")
        technology.append(
            " and ".join(sorted({carrier["technology"] for carrier in carriers})) or "no carrier"
        )
    return {"SNR of the weakest carrier": snr, "technology": technology}


def _snr_range(snr_db):
    low = int(snr_db // SNR_STEP_DB) * SNR_STEP_DB
    return f"{low} to {low + SNR_STEP_DB} dB"


def _snr_names(snr_db):
    """A group for each of a few values, otherwise ranges: a list of names."""
    name_of = "{:g} dB".format if len(np.unique(snr_db)) <= MOST_SNRS else _snr_range
    return [name_of(value) if math.isfinite(value) else "unknown" for value in snr_db.tolist()]


def report(measured, model, batches, run, class_names, step):
    """Print the tables, and draw the confusion matrix and, of masks, the best, median and worst samples.

    Every process calls it, since a sharded model computes with all of them; rank 0 prints and draws.

    Args:
        measured: what `engine_finetune.evaluate` gave for `batches`.

    Returns:
        The names of the pictures.
    """
    results = measured["results"]
    dataset, front_end, title = batches.dataset, batches.front_end, run.args.model
    masks = has_masks(dataset.part.source)
    print(table(results))
    for name, groups in measured["groups"].items():
        print(f"\nby {name}\n{table_by_group(groups)}")
    share = overall(results)
    caption = f"{title}\ntest part, {len(dataset)} samples, {share.replace('_', ' ')} {results[share]:.1%}"
    run.record.figure(step, lambda: confusion_figure(results["confusion"], class_names, caption), "confusion")
    if not masks:
        return ["confusion.png"]

    def sheet():
        rows = predictions(model, batches, run, measured["scores"])
        for row in rows:
            about = dataset.describe(0, row["number"])
            row["extent"] = front_end.extent_of(about)
            empty = math.isnan(row["score"])
            row["title"] = f"{about['name']}: " + (
                f"all {class_names[0]}" if empty else f"{row['score']:.1%}"
            )
        shown = (
            f"{title}: best, median and worst test samples by mean IoU of the classes but {class_names[0]}"
        )
        return prediction_sheet(rows, class_names, shown) if distributed.is_main() else None

    run.record.figure(step, sheet, "predictions")
    return ["confusion.png", "predictions.png"]


def shown(scores):
    """Numbers of the best, median and worst samples, best first.

    Those without a score come if there are no others.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    rated = order[~scores[order].isnan()].tolist() or order.tolist()
    third = SHEET_SAMPLES // 3
    middle = max(0, (len(rated) - third) // 2)
    return list(dict.fromkeys([*rated[:third], *rated[middle : middle + third], *rated[-third:]]))


@torch.no_grad()
def predictions(model, batches, run, scores):
    """The best, median and worst samples: dicts of number, score, image [F, T], target, prediction."""
    model = parallel.unwrap(model).eval()
    rows = []
    for number in shown(scores):
        batch = batches.dataset.batch([(0, number)])
        images = to_images(batch["parts"], batches.front_end, run.device)
        with run.autocast():
            pred = model(images).argmax(dim=1)[0]
        rows.append(
            {
                "number": number,
                "score": float(scores[number]),
                "image": images[0, 0].cpu().numpy(),
                "target": batch["target"][0],
                "prediction": pred.cpu().numpy(),
            }
        )
    return rows


def summary(every):
    """Mean, minimum and maximum of the figures of several seeds."""
    found = {}
    for key in means(every[0]):
        values = [results[key] for results in every if results[key] is not None]
        if values:
            low, mean, high = min(values), statistics.mean(values), max(values)
            found[key] = {"mean": mean, "least": low, "greatest": high, "seeds": values}
            print(f"{key.replace('_', ' ')}: {mean:.2%} ({low:.2%} .. {high:.2%}), {len(values)} seeds")
    return found
