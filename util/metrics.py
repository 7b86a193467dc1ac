"""Confusion matrices that sum over ranks, and what is read off them."""

import re

import torch
from torchmetrics import Metric

FIGURES = ("accuracy", "iou", "precision", "recall", "f1")
# The share of all that is right, by what a matrix counts.
OVERALL = {"pixel": "pixel_accuracy", "sample": "accuracy"}
MEANS = (*OVERALL.values(), "mean_accuracy", "mean_iou", "mean_f1")
ABSENT = "absent"


class _Counts(Metric):
    """int64 [groups, classes, classes]: how many samples of each class (rows) were called what (columns).

    torchmetrics adds the matrices of all ranks in `compute`, so a sample that two ranks have both seen counts twice: give
    ranks uneven parts rather than padded ones.
    """

    full_state_update = False

    def __init__(self, num_groups, class_names, device, unit):
        super().__init__()
        self.class_names, self.unit = list(class_names), unit
        size = len(self.class_names)
        self.add_state("counts", torch.zeros(num_groups, size, size, dtype=torch.int64), dist_reduce_fx="sum")
        self.to(device)

    def _add(self, pred, target, group):
        """`group`: int64 [B], the matrix that each sample belongs to; the others as in `Confusion.update`."""
        size = len(self.class_names)
        if pred.is_floating_point() and pred.dim() == target.dim() + 1 and pred.shape[1] == size:
            pred = pred.argmax(dim=1)
        if pred.shape != target.shape or pred.is_floating_point() or target.is_floating_point():
            raise ValueError(f"expected logits [B, {size}, ...] or ids [B, ...], and ids [B, ...] to hold them against: "
                             f"{pred.dtype} {list(pred.shape)}, {target.dtype} {list(target.shape)}")  # fmt: skip
        if not target.numel():
            return
        device = self.counts.device
        pred, target = pred.to(device, torch.int64), target.to(device, torch.int64)
        # The one wait for the device: an id outside would be counted in another row.
        low, high = torch.stack([*pred.aminmax(), *target.aminmax()]).aminmax()
        if low < 0 or high >= size:
            raise ValueError(f"expected class ids 0 to {size - 1}: from {int(low)} to {int(high)}")
        group = group.to(device).view(-1, *[1] * (target.dim() - 1))
        cells = (group * size + target) * size + pred
        self.counts += torch.bincount(cells.flatten(), minlength=self.counts.numel()).view_as(self.counts)

    def compute(self):
        """The counts of all ranks; this is torchmetrics' name, and `results` what is meant to be called."""
        return self.counts


class Confusion(_Counts):
    """One confusion matrix.

    Args:
        class_names: in the order of the ids.
        device: where the matrix is kept.
        unit: what it counts, "pixel" or "sample".
    """

    def __init__(self, class_names, device="cpu", unit="pixel"):
        super().__init__(1, class_names, device, unit)

    def update(self, pred, target):
        """Count a batch.

        Args:
            pred: logits, float [B, classes, ...], or class ids, integer [B, ...].
            target: class ids, integer [B, ...].

        Raises:
            ValueError: other shapes or types, or ids outside the classes.
        """
        self._add(pred, target, torch.zeros(len(target), dtype=torch.int64))

    def results(self):
        """See `figures`."""
        return figures(self.compute()[0], self.class_names, self.unit)


class GroupedConfusion(_Counts):
    """A confusion matrix for each group of samples: an SNR range, a technology.

    Args:
        class_names: in the order of the ids.
        groups: names of all groups, known beforehand, so that ranks agree on them whatever each has seen.
        device: where the matrices are kept.
        unit: what they count, "pixel" or "sample".
    """

    def __init__(self, class_names, groups, device="cpu", unit="pixel"):
        super().__init__(len(groups), class_names, device, unit)
        self.groups = {name: number for number, name in enumerate(groups)}

    def update(self, pred, target, groups):
        """Count a batch: `groups` names the group of each of the B samples; the rest as `Confusion.update`."""
        if len(groups) != len(target) or not self.groups.keys() >= set(groups):
            raise ValueError(f"expected {len(target)} names out of {list(self.groups)}: {list(groups)}")
        self._add(pred, target, torch.tensor([self.groups[name] for name in groups], dtype=torch.int64))

    def results(self):
        """{group: `figures`}, in the order of `groups`; a group without samples has None for all of them."""
        counts = self.compute()
        return {name: figures(counts[number], self.class_names, self.unit) for name, number in self.groups.items()}


def figures(counts, class_names, unit="pixel"):
    """What a confusion matrix says, as plain values for JSON; fractions, not percent.

    A class without a sample is absent: its figures are None and it is left out of the means (where it was wrongly called,
    the class that was meant has lost the sample). A class that is there but was never called has no precision, None, and is
    left out of the mean precision alone: its recall, F1 and IoU are 0. Where there is nothing to average, a mean is None.

    Args:
        counts: integers [classes, classes], rows are what is true, columns what was called.
        unit: what is counted, "pixel" or "sample".

    Returns:
        `samples`; `pixel_accuracy`, for samples `accuracy`; `mean_accuracy`, `mean_iou`, `mean_precision`, `mean_recall`,
        `mean_f1`; `classes`: name -> `samples`, `accuracy` (the share of the class's own
        samples that was found: the same as `recall`), `iou`, `precision`, `recall`, `f1`; `confusion`: the counts.
    """
    counts = counts.tolist()  # Python's integers: exact whatever their size
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
    """Of those that are not None; None where all are."""
    values = [value for value in values if value is not None]
    return sum(values) / len(values) if values else None


def overall(results):
    """Name of the share of all that is right in `figures`: "pixel_accuracy" or "accuracy"."""
    return next(name for name in OVERALL.values() if name in results)


def means(results):
    """The figures that one number each says: {name: fraction or None}."""
    return {name: results[name] for name in MEANS if name in results}


def foreground_iou(pred, target, num_classes):
    """How well each sample's carriers are found, whatever the share of background.

    Args:
        pred, target: class ids, integer [B, F, T]; class 0 is the background.

    Returns:
        float64 [B]: mean IoU of the classes but the first that are in truth or prediction; NaN for a sample without any.
    """
    size, batch = num_classes, len(target)
    sample = torch.arange(batch, device=target.device).view(-1, *[1] * (target.dim() - 1))
    cells = (sample * size + target.long()) * size + pred.long()
    counts = torch.bincount(cells.flatten(), minlength=batch * size * size).view(batch, size, size)
    hits = counts.diagonal(dim1=1, dim2=2)
    union = counts.sum(dim=1) + counts.sum(dim=2) - hits
    return (hits.double() / union)[:, 1:].nanmean(dim=1)  # 0 / 0 is NaN, which the mean leaves out


def table(results):
    """The figures of one matrix as a table of percents for the console: a line a class, their mean, the share of all."""
    figures_shown = ("accuracy", "precision", "f1", "iou")  # recall is the accuracy
    rows = [["class", "samples", "accuracy", "precision", "F1", "IoU"]]
    for name, row in results["classes"].items():
        without = "never called" if row["samples"] else ABSENT
        rows.append([name, str(row["samples"]), *(_percent(row[figure], without) for figure in figures_shown)])
    rows.append(["mean", "", *(_percent(results[f"mean_{figure}"]) for figure in figures_shown)])
    name = overall(results)
    rows.append([name.replace("_", " "), str(results["samples"]), _percent(results[name])])
    return aligned(rows)


def table_by_group(results):
    """The figures of `GroupedConfusion.results` as a table of percents for the console: a line a group."""
    share = overall(next(iter(results.values())))
    rows = [["group", "samples", share.replace("_", " "), "mean accuracy", "mean F1", "mean IoU"]]
    for name, row in results.items():
        shown = (row[figure] for figure in (share, "mean_accuracy", "mean_f1", "mean_iou"))
        rows.append([name, str(row["samples"]), *map(_percent, shown)])
    return aligned(rows)


def _percent(fraction, without=ABSENT):
    return without if fraction is None else f"{100 * fraction:.2f}"


def aligned(rows):
    """Rows of text as a table for the console: columns as wide as they need, the first to the left, others to the right."""
    widths = [max(len(row[column]) for row in rows if column < len(row)) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.rjust(width) if column else cell.ljust(width)
                  for column, (cell, width) in enumerate(zip(row, widths, strict=False))).rstrip()
        for row in rows
    )  # fmt: skip


def natural(name):
    """Sort key under which "-5 dB" comes before "10 dB"."""
    number = re.match(r"-?\d+(\.\d+)?", name)
    return (0, float(number[0]), name) if number else (1, 0.0, name)
