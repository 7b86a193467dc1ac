"""Fixed two-dimensional sine-cosine position embeddings, in the layout of MAE's state dicts."""

import torch


def sincos_2d(width, grid_size, cls_token=True):
    """Position embedding of a grid of patches.

    The first half of the channels encodes the time column, the second half the frequency row; each half is the sines,
    then the cosines, of position × 10000^(-i / (width / 4)) ("Attention Is All You Need", section 3.5, in two dimensions).

    Args:
        width: channels, a multiple of 4.
        grid_size: (frequency rows, time columns) in patches.
        cls_token: put a row of zeros before the patches, for the class token.

    Returns:
        float32 [1, (1 +) rows * columns, width], rows outermost.
    """
    if width % 4:
        raise ValueError(f"expected a multiple of 4: {width=}")
    rows, columns = grid_size
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    embedding = torch.cat([_sincos_1d(width // 2, column.flatten()), _sincos_1d(width // 2, row.flatten())], dim=1)
    if cls_token:
        embedding = torch.cat([embedding.new_zeros(1, width), embedding])
    return embedding.float()[None]


def _sincos_1d(width, positions):
    frequencies = 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angles = positions.double()[:, None] * frequencies  # (L, width / 2)
    return torch.cat([angles.sin(), angles.cos()], dim=1)
