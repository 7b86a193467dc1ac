"""Which patches of an image are removed: at random, or whole rows and columns."""

import math

import torch

MASK_KINDS = ("random", "time", "frequency", "time_frequency")


def removal_order(noise, keep_share, grid_size, kind, present=None):
    """The order in which patches stay, by their noise.

    Args:
        noise: float [N, L].
        keep_share: share of the patches to keep; the number of patches, rows or columns is rounded down, but
            at least 1.
        grid_size: (rows, columns) of patches.
        kind: one of `MASK_KINDS`.
        present: bool [N, L], the patches to choose from; None: all.

    Returns:
        A value for each patch [N, L]; the number of patches with the smallest values that stay: an int, or
        int64 [N, 1] with `present`.
    """
    if present is None:
        return _order(noise, keep_share, grid_size, kind)
    order, _ = _order(noise, keep_share, grid_size, kind, present)
    if kind == "random":
        kept = (present.sum(dim=1, keepdim=True) * keep_share + 1e-6).floor().long().clamp_min(1)
        return order, kept
    # the patches at the crossings of kept rows and columns, as far as they are present; at least one
    stays = (order == 0) & present
    alone = noise.masked_fill(~present, torch.inf).argmin(dim=1, keepdim=True)
    stays |= ~stays.any(dim=1, keepdim=True) & torch.zeros_like(stays).scatter(1, alone, True)
    return (~stays).to(torch.uint8), stays.sum(dim=1, keepdim=True)


def _order(noise, keep_share, grid_size, kind, present=None):
    rows, columns = grid_size
    if kind == "random":
        order = noise if present is None else noise.masked_fill(~present, torch.inf)
        return order, _rounded_down(noise.shape[1] * keep_share)
    noise = noise.unflatten(1, grid_size)  # (N, rows, columns)
    if present is None:
        row_noise, column_noise = noise.mean(dim=2), noise.mean(dim=1)
        row_count, column_count = rows, columns
    else:
        present = present.unflatten(1, grid_size)
        row_noise, column_noise = (_mean_present(noise, present, dim) for dim in (2, 1))
        row_count, column_count = (present.any(dim=dim).sum(dim=1, keepdim=True) for dim in (2, 1))
    rows_kept, columns_kept = row_count, column_count
    if kind == "time":
        columns_kept = _rounded_down(column_count * keep_share)
    elif kind == "frequency":
        rows_kept = _rounded_down(row_count * keep_share)
    else:
        # About the same share of rows and columns: round the rows, then fit the columns to them.
        rows_kept = _rounded(row_count * math.sqrt(keep_share))
        columns_kept = _least(_rounded_down(row_count * column_count * keep_share / rows_kept), column_count)
    row_removed = _rank(row_noise) >= rows_kept  # (N, rows)
    column_removed = _rank(column_noise) >= columns_kept  # (N, columns)
    removed = row_removed[:, :, None] | column_removed[:, None, :]
    return removed.flatten(1).to(torch.uint8), rows_kept * columns_kept


def _mean_present(noise, present, dim):
    """Means of the present patches; infinite where there are none, so that those are removed first."""
    count = present.sum(dim=dim)
    mean = (noise * present).sum(dim=dim) / count.clamp_min(1)
    return mean.masked_fill(count == 0, torch.inf)


def _rounded_down(count):
    """Whole numbers of at least 1. The margin is for products such as 100 * (1 - 0.9), which is 9.999..."""
    if isinstance(count, torch.Tensor):
        return (count + 1e-6).floor().long().clamp_min(1)
    return max(1, math.floor(count + 1e-6))


def _rounded(count):
    return count.round().long().clamp_min(1) if isinstance(count, torch.Tensor) else max(1, round(count))


def _least(one, other):
    return torch.minimum(one, other) if isinstance(one, torch.Tensor) else min(one, other)


def _rank(values):
    """Place of each value in the ascending order of its row: [N, M] -> int64 [N, M]."""
    return torch.argsort(torch.argsort(values, dim=1, stable=True), dim=1)
