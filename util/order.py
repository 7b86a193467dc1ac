"""Orders of the values in each row of a tensor, and shares of a count."""

import math

import torch


def share_of(count):
    """A share of a count, rounded down, at least 1. The margin is for products such as 100 * (1 - 0.9), which is 9.999..."""
    return max(1, math.floor(count + 1e-6))


def inverse(order):
    """The inverse of the permutation in each row: int64 [N, M] -> int64 [N, M]."""
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)


def rank(values):
    """Place of each value in the ascending order of its row: [N, M] -> int64 [N, M]."""
    return inverse(torch.argsort(values, dim=1, stable=True))
