"""What a labelled task comes to: confusion matrices in which every sample counts once, and the pictures of them."""

import re
import time

import numpy as np
import torch
from torch.nn import functional as F

from data.sampling import to_images
from util import distributed
from util.errors import StoppedError
from util.metrics import Confusion, GroupedConfusion, table, table_by_group
from util.plots import confusion_figure, prediction_sheet

MEANS = ("pixel_accuracy", "mean_accuracy", "mean_iou", "mean_f1")
SHEET_SAMPLES = 9  # best, median and worst
SNR_STEP_DB = 5


@torch.no_grad()
def evaluate(model, front_end, loader, device, autocast, class_names, stop, groupings=None):
    """Run over all samples of a part, each process over its own.

    Args:
        groupings: dict of a grouping's name to a list of each sample's group, by number: figures are given for each too.

    Returns:
        dict: `results` (see `util.metrics.figures`), `groups` ({grouping: {group: the same}}), `loss`, `seconds`, `scores`:
        float [N], each sample's share of right cells (or 0 and 1). Of all processes.

    Raises:
        StoppedError: a signal asked for it.
    """
    model.eval()
    started = time.perf_counter()
    confusion = Confusion(class_names, device)
    groupings = groupings or {}
    grouped = {name: GroupedConfusion(class_names, sorted(set(of), key=natural), device) for name, of in groupings.items()}
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    scores = torch.zeros(len(loader.dataset))
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
            scores[index] = (pred == target).float().view(real, -1).mean(dim=1).cpu()
        if name := stop.answer():
            raise StoppedError(f"{name} while evaluating")
    [loss_sum] = distributed.total([float(loss_sum)])
    distributed.add_up(scores)
    return {"results": confusion.results(), "groups": {name: matrices.results() for name, matrices in grouped.items()},
            "loss": loss_sum / max(1, len(scores)), "seconds": round(time.perf_counter() - started, 2),
            "scores": scores}  # fmt: skip


def natural(name):
    """Sort key under which "-5 dB" comes before "10 dB"."""
    number = re.match(r"-?\d+(\.\d+)?", name)
    return (0, float(number[0]), name) if number else (1, 0.0, name)


def groupings(part):
    """Names of the SNR range and the technologies of every sample, for those that say what is in them: see `evaluate`."""
    snr, technology = [], []
    for number in range(len(part)):
        scene = part.describe(number).get("scene")
        if scene is None:
            return {}
        carriers = scene["transmissions"]
        low = min((int(carrier["snr_db"] // SNR_STEP_DB) * SNR_STEP_DB for carrier in carriers), default=None)
        snr.append("no carrier" if low is None else f"{low} to {low + SNR_STEP_DB} dB")
        technology.append(" and ".join(sorted({carrier["technology"] for carrier in carriers})) or "no carrier")
    return {"SNR of the weakest carrier": snr, "technology": technology}


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
    masks = np.ndim(next(dataset.part.targets())) == 2
    rows = predictions(model, front_end, dataset, measured["scores"], device, autocast) if masks else []
    if not distributed.is_main():
        return []
    print(table(results))
    for name, groups in measured["groups"].items():
        print(f"\nby {name}\n{table_by_group(groups)}")
    caption = f"{title}\ntest part, {len(dataset)} samples"
    log.figure(step, confusion_figure(results["confusion"], class_names, caption), "confusion")
    if not masks:
        return ["confusion.png"]
    for row in rows:
        about = dataset.describe(0, row["number"])
        rate = about.get("sample_rate_hz")
        row["extent"] = rate and front_end.extent(rate, about.get("center_freq_hz"), about.get("num_samples"))
        row["title"] = f"{about['name']}: {row['score']:.1%} right"
    log.figure(step, prediction_sheet(rows, class_names, f"{title}: best, median and worst test samples"), "predictions")
    return ["confusion.png", "predictions.png"]


@torch.no_grad()
def predictions(model, front_end, dataset, scores, device, autocast):
    """What the sheet shows of the best, median and worst samples: dicts of number, image [F, T], target, prediction."""
    model.eval()
    order = torch.argsort(scores, descending=True, stable=True).tolist()
    third = SHEET_SAMPLES // 3
    middle = max(0, (len(order) - third) // 2)
    chosen = list(dict.fromkeys([*order[:third], *order[middle : middle + third], *order[-third:]]))
    rows = []
    for number in chosen:
        batch = dataset.batch([(0, number)])
        images = to_images(batch["parts"], front_end, device)
        with autocast():
            pred = model(images).argmax(dim=1)[0]
        rows.append({"number": number, "score": float(scores[number]), "image": images[0, 0].cpu().numpy(),
                     "target": batch["target"][0], "prediction": pred.cpu().numpy()})  # fmt: skip
    return rows
