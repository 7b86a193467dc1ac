"""FLOPs of a training step, by formula, and the peak FLOPs per second of a device, measured."""

import torch

from util.device import DTYPES
from util.errors import UserError
from util.timings import least_seconds

# Side of the square matrices whose product is timed; 8192 on a CPU would take as long as a short run.
SIDE = {"cuda": 8192, "cpu": 1024}


def pretraining_flops(model, mask_ratio):
    """FLOPs of the matrix products in a training step of a `models_mae.MaskedAutoencoderViT`, per image.

    The encoder computes the visible patches, the decoder all patches. For each product of the forward pass
    the backward pass has two, for the gradients of weights and inputs; images need no gradient.
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
    """FLOPs of a transformer block's forward pass: 12 width² weights per token, and attention."""
    return 24 * tokens * width**2 + 4 * tokens**2 * width


def peak_flops_per_s(given, amp, device):
    """`--peak_tflops` in FLOPs per second; "auto" measures a product of square matrices in a run's precision.

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
    # Not zeros: a device multiplies them faster.
    factors = torch.randn(2, side, side, generator=torch.Generator().manual_seed(0)).to(device, DTYPES[amp])
    return 2 * side**3 / least_seconds(lambda: torch.mm(*factors), device)
