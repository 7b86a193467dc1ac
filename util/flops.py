"""What a training step computes, by formula, and the share that this is of what the device could."""

import time

import torch

from util.device import DTYPES
from util.errors import UserError

# Sides of the matrices whose product is timed. On a CPU one of 8192 would take as long as a short run.
SIDE = {"cuda": 8192, "cpu": 1024}
WARM_UP, TIMED = 1, 4


def pretraining_flops(model, mask_ratio):
    """Of forward and backward pass of a `models_mae.MaskedAutoencoderViT`, an image: matrix products alone.

    The encoder works on the visible patches, the decoder on all. The backward pass has two products for each of the forward
    pass, for the gradients of weights and inputs; images need none.
    """
    visible = model.num_visible(mask_ratio)
    width, decoder_width = model.cls_token.shape[-1], model.mask_token.shape[-1]
    values = model.patch_size**2 * model.in_chans
    embedding = 2 * visible * values * width
    forward = (
        embedding
        + len(model.blocks) * block_flops(1 + visible, width)
        + 2 * (1 + visible) * width * decoder_width
        + len(model.decoder_blocks) * block_flops(1 + model.num_patches, decoder_width)
        + 2 * (1 + model.num_patches) * decoder_width * values
    )
    return 3 * forward - embedding


def block_flops(tokens, width):
    """Of a transformer block's forward pass: 12 width² weights for each token, and attention's two products."""
    return 24 * tokens * width**2 + 4 * tokens**2 * width


def peak_flops_per_s(given, amp, device):
    """What `--peak_tflops` says, or for "auto" what a product of square matrices does in a run's precision on its device.

    Raises:
        UserError: neither "auto" nor a positive number.
    """
    if given != "auto":
        try:
            tflops = float(given)
        except ValueError:
            tflops = 0.0
        if not 0 < tflops < float("inf"):
            raise UserError(f"--peak_tflops: expected auto or a positive number; found {given}")
        return tflops * 1e12
    side = SIDE[device.type]
    # Zeros would be multiplied faster than data ever are.
    left, right = (torch.randn(side, side, generator=torch.Generator().manual_seed(seed)).to(device, DTYPES[amp])
                   for seed in (0, 1))  # fmt: skip
    seconds = []
    for number in range(WARM_UP + TIMED):
        started = time.perf_counter()
        torch.mm(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number >= WARM_UP:
            seconds.append(time.perf_counter() - started)
    return 2 * side**3 / min(seconds)
