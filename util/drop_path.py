"""Stochastic depth that does not depend on how samples are put into batches."""

import torch
from torch import nn


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): in training a sample skips the branch with probability `rate`.

    A sample is skipped if its number in `numbers`, float [N] in [0, 1), is below `rate`. None: numbers are
    random.
    """

    def __init__(self, rate):
        super().__init__()
        self.rate = rate
        # Tensors, as torch.compile would compile each block anew for a Python number of its own.
        self.register_buffer("least", torch.tensor(rate), persistent=False)
        self.register_buffer("share", torch.tensor(1 - rate), persistent=False)
        self.numbers = None

    def forward(self, x):
        if not self.training:
            return x
        numbers = torch.rand(x.shape[0], device=x.device) if self.numbers is None else self.numbers
        kept = ((numbers >= self.least).float() / self.share).to(x.dtype)
        return x * kept.view(-1, *[1] * (x.dim() - 1))

    def extra_repr(self):
        return f"{self.rate:.3f}"
