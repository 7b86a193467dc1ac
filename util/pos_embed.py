"""Fixed two-dimensional sine-cosine position embeddings, in the layout of MAE's state dicts."""

import torch
import torch.nn.functional as F


def sincos_2d(width, grid_size):
    """Position embedding of a grid of patches.

    The first half of the channels encodes the time column, the second half the frequency row. Each half is
    the sines, then the cosines, of position × 10000^(-i / (width / 4)) ("Attention Is All You Need", section
    3.5).

    Args:
        width: channels, a multiple of 4; grid_size: (frequency rows, time columns) in patches.

    Returns:
        float32 [1, 1 + rows * columns, width], rows outermost; zeros for the class token come first.
    """
    if width % 4:
        raise ValueError(f"expected a multiple of 4: {width=}")
    rows, columns = grid_size
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    halves = [_sincos_1d(width // 2, column.flatten()), _sincos_1d(width // 2, row.flatten())]
    return F.pad(torch.cat(halves, dim=1).float(), (0, 0, 1, 0))[None]


def _sincos_1d(width, positions):
    frequencies = 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angles = positions.double()[:, None] * frequencies  # (L, width / 2)
    return torch.cat([angles.sin(), angles.cos()], dim=1)
