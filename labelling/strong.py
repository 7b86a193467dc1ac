"""Strong signals: cells far above the noise floor for long. They are not noise unless the model is sure of it."""

import torch

ABOVE_DB, LASTING_S, SHARE = 15.0, 2e-3, 0.75
_FLOOR = 0.25  # quantile over time, then over rows, that is the floor
_FLOOR_COLUMNS = 64  # enough of them for the quantile over time
# A receiver's filter leaves a band of noise far above the rest; there the model is as sure as this.
SURE_OF_NOISE = 0.9


def strong_blocks(decibels, column_s):
    """Which blocks of 2 ms of a row are strong: 75 % of their cells lie 15 dB above the floor.

    The rows at the centre are not, because receivers have DC there.

    Args:
        decibels: float32 [..., F, T]; cells outside of the recording are -inf.
        column_s: duration of a column.

    Returns:
        (bool [..., F, blocks], columns of a block); columns after the last whole block are in none.
    """
    rows, total = decibels.shape[-2:]
    size = max(1, round(LASTING_S / column_s))
    count = total // size
    some = decibels[..., :: max(1, total // _FLOOR_COLUMNS)]
    some = torch.where(some > -torch.inf, some, torch.nan)
    floor_db = some.nanquantile(_FLOOR, dim=-1).nanquantile(_FLOOR, dim=-1)[..., None, None]
    above = (decibels > floor_db + ABOVE_DB)[..., : count * size]
    strong = above.unflatten(-1, (count, size)).float().mean(-1) >= SHARE
    strong[..., (rows - 1) // 2 - 1 : rows // 2 + 2, :] = False
    return strong, size


def without_doubtful_noise(planes, column_s):
    """Take class 0 from the strong cells of which the model is not sure that they are noise; in place.

    Args:
        planes: probabilities and dB, float32 [..., classes + 1, F, T].
    """
    strong, size = strong_blocks(planes[..., -1, :, :], column_s)
    if planes.device.type == "cpu" and not strong.any():  # an accelerator would have to wait for the answer
        return planes
    strong = strong.repeat_interleave(size, dim=-1)
    chances = planes[..., :-1, :, : strong.shape[-1]]
    signal = 1 - chances[..., 0, :, :]
    taken = strong & (signal > 1 - SURE_OF_NOISE)
    scale = torch.where(taken, 1 / signal.clamp_min(1e-6), 1.0)
    chances.mul_(scale[..., None, :, :])
    chances[..., 0, :, :].masked_fill_(taken, 0)
    return planes
