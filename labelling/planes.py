"""Planes of image cells over a stretch: the windows that tile it, their averages, and sums for a picture."""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

PICTURE_COLUMNS = 1600  # more than a picture has pixels


@dataclass(frozen=True)
class Tiling:
    """Windows over a stretch of samples, on one grid of image columns; `columns` of them make a window.

    Windows start a whole number of columns apart. The last one ends with the stretch.
    A stretch shorter than a window is one window, with shorter columns.
    """

    num_samples: int
    window: int  # samples
    columns: int  # of a window
    total: int  # columns of the stretch
    first_columns: tuple[int, ...]  # of the windows

    @classmethod
    def over(cls, num_samples, window, columns, overlap):
        """Windows of `window` samples; each shares `overlap` (0 to below 1) of its columns with the next."""
        window = min(window, num_samples)
        total = -(-num_samples * columns // window)  # the last column may be shorter
        step = max(1, round(columns * (1 - overlap)))
        first_columns = (*range(0, total - columns, step), total - columns)
        return cls(num_samples, window, columns, total, first_columns)

    @property
    def column_samples(self):
        return self.window / self.columns

    def start(self, first_column):
        """The first sample of the window that starts with this column."""
        return min(round(first_column * self.column_samples), self.num_samples - self.window)


@dataclass
class Run:
    """Consecutive columns of a stretch, in blocks that follow each other."""

    first: int  # column of the stretch
    ends: list[int]  # of the blocks, in columns of the stretch
    planes: torch.Tensor  # float32 [classes + 1, F, columns]: probabilities, and dB as the last plane

    @property
    def probabilities(self):
        return self.planes[:-1]

    def blocks(self):
        """(first column, end) of each block, counted from the run's first column."""
        ends = [end - self.first for end in self.ends]
        return list(zip([0, *ends[:-1]], ends, strict=True))


class Averages:
    """Means over windows that share columns. Only the columns that a later window may cover are kept."""

    def __init__(self):
        self.first = 0  # column of `sums[..., 0]`
        self.sums, self.counts = None, torch.zeros(0)

    def add(self, first_columns, planes, until):
        """Add windows in their order. Later windows begin at column `until` or after.

        Args:
            first_columns: of the windows.
            planes: [W, P, F, columns].

        Returns:
            The `Run` of all new columns before `until`: a block for each window, up to the next window.
        """
        columns, first, kept = planes.shape[3], self.first, len(self.counts)
        total = first_columns[-1] + columns - first
        sums, counts = planes.new_zeros(*planes.shape[1:3], total), torch.zeros(total)
        if kept:
            sums[..., :kept], counts[:kept] = self.sums, self.counts
        for column, window in zip(first_columns, planes, strict=True):
            sums[..., column - first :][..., :columns] += window
            counts[column - first :][:columns] += 1
        done = until - first
        self.first, self.sums, self.counts = until, sums[..., done:], counts[done:]
        means = sums[..., :done] / counts[:done].to(sums.device, non_blocking=True)
        return Run(first, [*first_columns[1:], until], means)


class Overview:
    """The picture of a stretch, in at most `PICTURE_COLUMNS` columns."""

    def __init__(self, total_columns, num_classes, rows, device="cpu"):
        self.total = total_columns
        self.per_column = -(-total_columns // PICTURE_COLUMNS)
        self.sums = torch.zeros(num_classes + 1, rows, -(-total_columns // self.per_column), device=device)

    def add(self, run):
        """Add a `Run`, in any order."""
        at, before = divmod(run.first, self.per_column)
        after = -(before + run.planes.shape[2]) % self.per_column
        sums = F.pad(run.planes, (before, after)).unflatten(2, (-1, self.per_column)).sum(dim=3)
        self.sums[..., at : at + sums.shape[2]] += sums

    @property
    def image(self):
        """Mean dB: numpy [F, columns]."""
        firsts = torch.arange(self.sums.shape[2]) * self.per_column
        return (self.sums[-1].cpu() / (self.total - firsts).clamp_max(self.per_column)).numpy()

    @property
    def classes(self):
        """The likeliest class: numpy uint8 [F, columns]."""
        return self.sums[:-1].argmax(dim=0).to(torch.uint8).cpu().numpy()
