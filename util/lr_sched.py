"""Learning rate as a function of the position in the run."""

import math


def half_cosine(epoch, lr, min_lr, warmup_epochs, epochs):
    """Linear warm-up from 0 to `lr`, then half a cosine down to `min_lr`.

    Args:
        epoch: position in epochs (2.5 is the middle of the third epoch).
    """
    if epoch < warmup_epochs:
        return lr * epoch / warmup_epochs
    progress = (epoch - warmup_epochs) / max(epochs - warmup_epochs, 1e-9)
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * min(progress, 1)))


def set_lr(optimizer, lr):
    """Set the rate of every parameter group, times its `lr_scale` (layer-wise decay)."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
