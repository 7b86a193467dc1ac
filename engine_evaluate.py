"""What a labelled task comes to: confusion matrices in which every sample counts once, and the pictures of them."""

import math
import re
import time

import numpy as np
import torch
from torch.nn import functional as F

from data.sampling import to_images
from data.splits import has_masks
from util import distributed
from util.errors import StoppedError
from util.metrics import Confusion, GroupedConfusion, foreground_iou, overall, table, table_by_group
from util.plots import confusion_figure, prediction_sheet

SHEET_SAMPLES = 9  # best, median and worst
SNR_STEP_DB = 5
MOST_SNRS = 32  # that are groups of their own; a data set with more has ranges


@torch.no_grad()
def evaluate(model, front_end, loader, device, autocast, class_names, stop, groupings=None):
    """Run over all samples of a part, each process over its own.

    Args:
        groupings: dict of a grouping's name to a list of each sample's group, by number: figures are given for each too.

    Returns:
        dict: `results` (see `util.metrics.figures`), `groups` ({grouping: {group: the same}}), `loss`, `seconds`, `scores`:
        float64 [N], of masks each sample's `util.metrics.foreground_iou`, otherwise 1 where the class is right and 0 where
        it is not. Of all processes.

    Raises:
        StoppedError: a signal asked for it.
    """
    model.eval()
    started = time.perf_counter()
    masks = has_masks(loader.dataset.part.source)
    unit = "pixel" if masks else "sample"
    confusion = Confusion(class_names, device, unit)
    groupings = groupings or {}
    grouped = {name: GroupedConfusion(class_names, sorted(set(of), key=natural), device, unit)
               for name, of in groupings.items()}  # fmt: skip
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    scores = torch.zeros(len(loader.dataset), dtype=torch.float64)
    for place, batch in enumerate(loader.batches(front_end, device)):
        stop.ask()
        with autocast():
            logits = model(batch["images"])
        real = loader.batch_sampler.real(place)
        if real:  # else it is a sample of another process, to have as many forward passes as that
            logits, index = logits[:real], batch["index"][:real]
            target = batch["target"][:real].long()
            loss_sum += F.cross_entropy(logits.float(), target).double() * real
            pred = logits.argmax(dim=1)
            confusion.update(pred, target)
            for name, matrices in grouped.items():
                matrices.update(pred, target, [groupings[name][int(number)] for number in index])
            scores[index] = (foreground_iou(pred, target, len(class_names)) if masks else (pred == target).double()).cpu()
        if name := stop.answer():
            raise StoppedError(f"{name} while evaluating")
    [loss_sum] = distributed.all_reduce_sum([float(loss_sum)])
    distributed.all_reduce_sum_(scores)
    return {"results": confusion.results(), "groups": {name: matrices.results() for name, matrices in grouped.items()},
            "loss": loss_sum / max(1, len(scores)), "seconds": round(time.perf_counter() - started, 2),
            "scores": scores}  # fmt: skip


def natural(name):
    """Sort key under which "-5 dB" comes before "10 dB"."""
    number = re.match(r"-?\d+(\.\d+)?", name)
    return (0, float(number[0]), name) if number else (1, 0.0, name)


def groupings(part):
    """Groups of every sample, for those that say what is in them: see `evaluate`.

    Scenes are grouped by SNR range and by technologies; samples of a source with the column "snr", in dB, by that.
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
        technology.append(" and ".join(sorted({carrier["technology"] for carrier in carriers})) or "no carrier")
    return {"SNR of the weakest carrier": snr, "technology": technology}


def _snr_range(snr_db):
    low = int(snr_db // SNR_STEP_DB) * SNR_STEP_DB
    return f"{low} to {low + SNR_STEP_DB} dB"


def _snr_names(snr_db):
    """A group for each of a few values, otherwise ranges: a list of names."""
    name_of = "{:g} dB".format if len(np.unique(snr_db)) <= MOST_SNRS else _snr_range
    return [name_of(value) if math.isfinite(value) else "unknown" for value in snr_db.tolist()]


def report(measured, model, front_end, dataset, device, autocast, class_names, log, step, title):
    """The tables on the console, the confusion matrix and, of masks, the sheet of best, median and worst samples.

    All processes call it: a model that is divided among them computes with all. Rank 0 prints and draws.

    Args:
        measured: what `evaluate` gave for the `LabelledSamples` `dataset`.
        log: a `RunLog`, which gets the pictures.

    Returns:
        The names of the pictures.
    """
    results = measured["results"]
    masks = has_masks(dataset.part.source)
    rows = predictions(model, front_end, dataset, measured["scores"], device, autocast) if masks else []
    if not distributed.is_main():
        return []
    print(table(results))
    for name, groups in measured["groups"].items():
        print(f"\nby {name}\n{table_by_group(groups)}")
    share = overall(results)
    caption = f"{title}\ntest part, {len(dataset)} samples, {share.replace('_', ' ')} {results[share]:.1%}"
    log.figure(step, confusion_figure(results["confusion"], class_names, caption), "confusion")
    if not masks:
        return ["confusion.png"]
    for row in rows:
        about = dataset.describe(0, row["number"])
        rate = about.get("sample_rate_hz")
        row["extent"] = rate and front_end.extent(rate, about.get("center_freq_hz"), about.get("num_samples"))
        empty = math.isnan(row["score"])
        row["title"] = f"{about['name']}: " + (f"all {class_names[0]}" if empty else f"{row['score']:.1%}")
    caption = f"{title}: best, median and worst test samples by mean IoU of the classes but {class_names[0]}"
    log.figure(step, prediction_sheet(rows, class_names, caption), "predictions")
    return ["confusion.png", "predictions.png"]


def shown(scores):
    """Numbers of the best, median and worst samples, best first. Those without a score come if there are no others."""
    order = torch.argsort(scores, descending=True, stable=True)
    rated = order[~scores[order].isnan()].tolist() or order.tolist()
    third = SHEET_SAMPLES // 3
    middle = max(0, (len(rated) - third) // 2)
    return list(dict.fromkeys([*rated[:third], *rated[middle : middle + third], *rated[-third:]]))


@torch.no_grad()
def predictions(model, front_end, dataset, scores, device, autocast):
    """What the sheet shows of the best, median and worst samples: dicts of number, image [F, T], target, prediction."""
    model.eval()
    rows = []
    for number in shown(scores):
        batch = dataset.batch([(0, number)])
        images = to_images(batch["parts"], front_end, device)
        with autocast():
            pred = model(images).argmax(dim=1)[0]
        rows.append({"number": number, "score": float(scores[number]), "image": images[0, 0].cpu().numpy(),
                     "target": batch["target"][0], "prediction": pred.cpu().numpy()})  # fmt: skip
    return rows
