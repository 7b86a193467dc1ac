"""Planes of image cells over a stretch: the windows that tile it, averages where these overlap, sums for a picture."""

from dataclasses import dataclass

import torch

# Columns of the picture: more than it has pixels would not be seen.
PICTURE_COLUMNS = 1600


@dataclass(frozen=True)
class Tiling:
    """Windows over a stretch of samples, each `columns` image columns, on one grid of columns for all of them.

    Windows start a whole number of columns apart, but for the last, which ends with the stretch. A stretch shorter than a
    window is one window of its own length, whose columns stand for less time.
    """

    num_samples: int
    window: int  # samples
    columns: int  # of a window
    total: int  # columns of the stretch
    first_columns: tuple[int, ...]  # of the windows

    @classmethod
    def over(cls, num_samples, window, columns, overlap):
        """Windows of `window` samples that share `overlap` (0 to below 1) of their columns with the one before."""
        window = min(window, num_samples)
        total = -(-num_samples * columns // window)  # the last column may stand for less than the others
        step = max(1, round(columns * (1 - overlap)))
        return cls(num_samples, window, columns, total, (*range(0, total - columns, step), total - columns))

    @property
    def column_samples(self):
        return self.window / self.columns

    def start(self, first_column):
        """The first sample of the window that starts with this column."""
        return min(round(first_column * self.column_samples), self.num_samples - self.window)


@dataclass
class Run:
    """Consecutive columns of a stretch.

    first: number of the first. ends: of its blocks, which follow each other, counted from the first of the stretch.
    planes: float32 [classes + 1, F, columns], probabilities and as the last plane dB.
    """

    first: int
    ends: list[int]
    planes: torch.Tensor

    @property
    def probabilities(self):
        return self.planes[:-1]

    def blocks(self):
        """(first column, end) of each, counted from the run's first column."""
        ends = [end - self.first for end in self.ends]
        return list(zip([0, *ends[:-1]], ends, strict=True))


class Averages:
    """Means over windows that share columns; keeps the columns that a later window may still cover, and no others."""

    def __init__(self):
        self.first = 0  # column that `sums` begins with
        self.sums, self.counts = None, None

    def add(self, first_columns, planes, until):
        """Windows in their order: their first columns, planes [W, P, F, columns], and the first column that none of them,
        but a later window may cover. Returns the `Run` of all columns before that: a block for each window, up to the next.
        """
        columns, first = planes.shape[3], self.first
        total = first_columns[-1] + columns - first
        kept = 0 if self.sums is None else self.sums.shape[2]
        if not kept and total == len(planes) * columns:  # side by side
            sums, counts = planes.permute(1, 2, 0, 3).flatten(2), None
        else:
            sums, counts = planes.new_zeros(*planes.shape[1:3], total), torch.zeros(total)
            if kept:
                sums[..., :kept], counts[:kept] = self.sums, 1 if self.counts is None else self.counts
            for column, window in zip(first_columns, planes, strict=True):
                sums[..., column - first :][..., :columns] += window
                counts[column - first :][:columns] += 1
        done = until - first
        self.first, self.sums, self.counts = until, sums[..., done:], None if counts is None else counts[done:]
        means = sums[..., :done]
        if counts is not None:
            means = means / counts[:done].to(means.device, non_blocking=True)
        return Run(first, [*first_columns[1:], until], means)


class Overview:
    """What the picture shows of a stretch, in at most `PICTURE_COLUMNS` columns whatever its length."""

    def __init__(self, total_columns, num_classes, rows, device="cpu"):
        self.total = total_columns
        self.per_column = -(-total_columns // PICTURE_COLUMNS)
        self.sums = torch.zeros(num_classes + 1, rows, -(-total_columns // self.per_column), device=device)

    def add(self, run):
        planes, place = run.planes, run.first
        while planes.shape[2]:
            at, within = divmod(place, self.per_column)
            whole = planes.shape[2] // self.per_column
            if within or not whole:  # a part of one column of the picture
                taken, columns = min(self.per_column - within, planes.shape[2]), 1
            else:
                taken, columns = whole * self.per_column, whole
            self.sums[..., at : at + columns] += planes[..., :taken].unflatten(2, (columns, -1)).sum(dim=3)
            planes, place = planes[..., taken:], place + taken

    @property
    def image(self):
        """Mean dB: numpy [F, columns]."""
        firsts = torch.arange(self.sums.shape[2]) * self.per_column
        return (self.sums[-1].cpu() / (self.total - firsts).clamp_max(self.per_column)).numpy()

    @property
    def classes(self):
        """The likeliest class: numpy uint8 [F, columns]."""
        return self.sums[:-1].argmax(dim=0).to(torch.uint8).cpu().numpy()
