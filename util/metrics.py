"""Confusion matrices, summed over ranks, and their figures."""

import re
from itertools import zip_longest

import torch
from torchmetrics import Metric

FIGURES = ("accuracy", "iou", "precision", "recall", "f1")
# Name of the share of correct predictions, by what a matrix counts.
OVERALL = {"pixel": "pixel_accuracy", "sample": "accuracy"}
MEANS = (*OVERALL.values(), "mean_accuracy", "mean_iou", "mean_f1")
ABSENT = "absent"
IGNORED = -100  # target of a cell that does not count; also torch's default in cross-entropy


class GroupedConfusion(Metric):
    """A confusion matrix for each group of samples, for example an SNR range or a technology.

    `counts` is int64 [groups, classes, classes]: rows are true classes, columns predicted ones. `compute`
    sums it over all ranks, so give each sample to one rank only.

    Args:
        class_names: in the order of the ids.
        groups: names of all groups, the same on all ranks.
        device: of the matrices.
        unit: what they count, "pixel" or "sample".
    """

    full_state_update = False

    def __init__(self, class_names, groups, device="cpu", unit="pixel"):
        super().__init__()
        self.class_names, self.unit = list(class_names), unit
        self.groups = {name: number for number, name in enumerate(groups)}
        size = len(self.class_names)
        counts = torch.zeros(len(self.groups), size, size, dtype=torch.int64)
        self.add_state("counts", counts, dist_reduce_fx="sum")
        self.to(device)

    def update(self, pred, target, groups):
        """Count a batch.

        Args:
            pred: logits, float [B, classes, ...], or class ids, integer [B, ...].
            target: class ids, integer [B, ...]; `IGNORED` where a cell does not count.
            groups: B names.

        Raises:
            ValueError: other shapes, types or groups, or ids outside the classes.
        """
        if len(groups) != len(target) or not self.groups.keys() >= set(groups):
            raise ValueError(f"expected {len(target)} names out of {list(self.groups)}: {list(groups)}")
        size = len(self.class_names)
        if pred.is_floating_point() and pred.dim() == target.dim() + 1 and pred.shape[1] == size:
            pred = pred.argmax(dim=1)
        if pred.shape != target.shape or pred.is_floating_point() or target.is_floating_point():
            found = f"{pred.dtype} {list(pred.shape)}, {target.dtype} {list(target.shape)}"
            raise ValueError(f"expected logits [B, {size}, ...] or ids, and target ids [B, ...]: {found}")
        if not target.numel():
            return
        pred, target = pred.to(self.counts.device), target.to(self.counts.device)
        # The only wait for the device: an id outside would be counted in another row.
        ids = target.masked_fill(target == IGNORED, 0)
        low, high = torch.stack([*pred.aminmax(), *ids.aminmax()]).aminmax()
        if low < 0 or high >= size:
            raise ValueError(f"expected class ids 0 to {size - 1}: from {int(low)} to {int(high)}")
        group = torch.tensor([self.groups[name] for name in groups], device=self.counts.device)
        self.counts += _count(pred, target, group, *self.counts.shape[:2])

    def compute(self):
        """`counts` of all ranks, for torchmetrics; see `results`."""
        return self.counts

    def results(self):
        """{group: `figures`}, in the order of `groups`."""
        matrices = zip(self.groups, self.compute(), strict=True)
        return {name: figures(counts, self.class_names, self.unit) for name, counts in matrices}


class Confusion(GroupedConfusion):
    """One confusion matrix: a `GroupedConfusion` of one group."""

    def __init__(self, class_names, device="cpu", unit="pixel"):
        super().__init__(class_names, [""], device, unit)

    def update(self, pred, target):
        """Count a batch; see `GroupedConfusion.update`."""
        super().update(pred, target, [""] * len(target))

    def results(self):
        """See `figures`."""
        return super().results()[""]


def _count(pred, target, group, num_groups, size):
    """Confusion matrices int64 [num_groups, size, size] of ids [B, ...]; group: int64 [B]."""
    group = group.view(-1, *[1] * (target.dim() - 1))
    cells = (group * size + target.long()) * size + pred.long()
    last = num_groups * size * size
    cells = cells.masked_fill_(target == IGNORED, last)  # counted apart: choosing cells would make a GPU wait
    return torch.bincount(cells.flatten(), minlength=last + 1)[:last].view(num_groups, size, size)


def figures(counts, class_names, unit="pixel"):
    """Figures of a confusion matrix as plain values for JSON; fractions, not percent.

    A class without samples has None for its figures and is left out of the means. A class that was never
    predicted has precision None and is left out of the mean precision; its recall, F1 and IoU are 0. A mean
    of nothing is None.

    Args:
        counts: integers [classes, classes], rows are true classes, columns predicted ones.
        unit: what is counted, "pixel" or "sample".

    Returns:
        `samples`; `pixel_accuracy`, of samples `accuracy`; `mean_accuracy`, `mean_iou`, `mean_precision`,
        `mean_recall`, `mean_f1`; `classes`: {name: `samples`, `accuracy` (the same as `recall`), `iou`,
        `precision`, `recall`, `f1`};
        `confusion`: the counts.
    """
    counts = counts.tolist()  # Python's integers have no limit
    classes = {}
    for k, name in enumerate(class_names):
        hits, true, called = counts[k][k], sum(counts[k]), sum(row[k] for row in counts)
        recall = hits / true if true else None
        classes[name] = {
            "samples": true,
            "accuracy": recall,
            "iou": hits / (true + called - hits) if true else None,
            "precision": hits / called if true and called else None,
            "recall": recall,
            "f1": 2 * hits / (true + called) if true else None,
        }
    total = sum(map(sum, counts))
    return {
        "samples": total,
        OVERALL[unit]: sum(counts[k][k] for k in range(len(counts))) / total if total else None,
        **{f"mean_{figure}": _mean(row[figure] for row in classes.values()) for figure in FIGURES},
        "classes": classes,
        "confusion": counts,
    }


def _mean(values):
    """Mean of the values that are not None; None without any."""
    values = [value for value in values if value is not None]
    return sum(values) / len(values) if values else None


def overall(results):
    """Name of the share of correct predictions in `figures`: "pixel_accuracy" or "accuracy"."""
    return next(name for name in OVERALL.values() if name in results)


def means(results):
    """The single numbers of `figures`: {name: fraction or None}."""
    return {name: results[name] for name in MEANS if name in results}


def foreground_iou(pred, target, num_classes):
    """Mean IoU of each sample without the background.

    Args:
        pred, target: class ids, integer [B, F, T]; class 0 is the background.

    Returns:
        float64 [B]: mean over the classes in target or prediction except class 0; NaN without any.
    """
    sample = torch.arange(len(target), device=target.device)
    counts = _count(pred, target, sample, len(target), num_classes)
    hits = counts.diagonal(dim1=1, dim2=2)
    union = counts.sum(dim=1) + counts.sum(dim=2) - hits
    return (hits.double() / union)[:, 1:].nanmean(dim=1)  # absent classes are 0 / 0, NaN


def table(results):
    """`figures` as a console table in percent: a line per class, their mean, the share of correct ones."""
    figures_shown = ("accuracy", "precision", "f1", "iou")  # recall is the accuracy
    rows = [["class", "samples", "accuracy", "precision", "F1", "IoU"]]
    for name, row in results["classes"].items():
        without = "never called" if row["samples"] else ABSENT
        shown = [_percent(row[figure], without) for figure in figures_shown]
        rows.append([name, str(row["samples"]), *shown])
    rows.append(["mean", "", *(_percent(results[f"mean_{figure}"]) for figure in figures_shown)])
    name = overall(results)
    rows.append([name.replace("_", " "), str(results["samples"]), _percent(results[name])])
    return aligned(rows)


def table_by_group(results):
    """`GroupedConfusion.results` as a console table in percent: a line per group."""
    share = overall(next(iter(results.values())))
    rows = [["group", "samples", share.replace("_", " "), "mean accuracy", "mean F1", "mean IoU"]]
    for name, row in results.items():
        shown = (row[figure] for figure in (share, "mean_accuracy", "mean_f1", "mean_iou"))
        rows.append([name, str(row["samples"]), *map(_percent, shown)])
    return aligned(rows)


def _percent(fraction, without=ABSENT):
    return without if fraction is None else f"{100 * fraction:.2f}"


def aligned(rows):
    """Rows of text as a console table; the first column is aligned left, the others right."""
    widths = [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=False)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def natural(name):
    """Sort key that puts "-5 dB" before "10 dB"."""
    number = re.match(r"-?\d+(\.\d+)?", name)
    return (0, float(number[0]), name) if number else (1, 0.0, name)
