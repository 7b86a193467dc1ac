"""Low-rank adapters on the queries and values of attention (LoRA, arXiv 2106.09685)."""

import torch
from torch import nn
from torch.nn.utils import parametrize

from util.errors import UserError

# A weight with an adapter in a state dict: the names of the weight itself, and of the adapter's tensors.
ORIGINAL, ADAPTER = ".parametrizations.weight.original", ".parametrizations.weight.0."


class LowRank(nn.Module):
    """Adds scale · B A to the rows of queries and of values in a fused qkv weight [3 D, D]; keys stay.

    A is [rank, D], B is [D, rank], and scale is alpha / rank. B starts at zero, so the model starts
    unchanged.
    """

    def __init__(self, width, rank, alpha):
        super().__init__()
        self.a_query, self.a_value = (nn.Parameter(torch.empty(rank, width)) for _ in range(2))
        self.b_query, self.b_value = (nn.Parameter(torch.zeros(width, rank)) for _ in range(2))
        for down in (self.a_query, self.a_value):
            nn.init.kaiming_uniform_(down, a=5**0.5)
        self.register_buffer("scale", torch.tensor(alpha / rank))

    def forward(self, weight):
        query, value = self.b_query @ self.a_query, self.b_value @ self.a_value
        return weight + self.scale * torch.cat([query, torch.zeros_like(query), value])


def add(model, rank, alpha):
    """Give every attention of the encoder an adapter, in place.

    Raises:
        UserError: a rank below 1 or above the encoder's width.
    """
    width = model.cls_token.shape[-1]
    if not 1 <= rank <= width:
        raise UserError(f"--lora: expected a rank from 1 to {width}, the width of the encoder; found {rank}")
    for block in model.blocks:
        parametrize.register_parametrization(block.attn.qkv, "weight", LowRank(width, rank, alpha))


def merge(model):
    """Add all adapters of a model to their weights, in place; returns the model."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    return model


def is_adapter(name):
    """Whether a tensor of this name is an adapter's."""
    return ADAPTER in name


def modules(model):
    """The adapters of a model: a list of `LowRank`, empty without."""
    return [module for module in model.modules() if isinstance(module, LowRank)]


def merged(state_dict):
    """A state dict with each adapter added to its weight, under plain names.

    Raises:
        ValueError: another parametrization than `LowRank`.
    """
    plain = {name: tensor for name, tensor in state_dict.items() if ".parametrizations." not in name}
    for name, weight in state_dict.items():
        if name.endswith(ORIGINAL):
            stem = name.removesuffix(ORIGINAL)
            mine = [key for key in state_dict if key.startswith(stem)]
            own = {key.removeprefix(stem + ADAPTER): state_dict[key] for key in mine}
            try:
                adapter = LowRank(weight.shape[1], len(own["a_query"]), 1.0)
                adapter.load_state_dict({key: own[key] for key in adapter.state_dict()})
                plain[f"{stem}.weight"] = adapter(weight).detach()
            except (KeyError, IndexError, RuntimeError) as error:
                expected = f"a low-rank adapter of queries and values at {stem}"
                raise ValueError(f"expected {expected}; found another") from error
    return plain
