"""What a run will cost, from the model's size: the memory that it needs beside the memory that there is."""

import re
from pathlib import Path

import torch

from util import distributed
from util.errors import UserError

GIB = 2**30
# Measured on a CPU at 224 x 224, ViT-tiny and ViT-S, pretraining and segmentation: peak less weights, gradients and moments,
# over tokens x width x blocks x samples. It came to 69 to 102 bytes in fp32 and 49 to 62 in bf16; these are the least, so
# that what does not fit by them does not fit.
ACTIVATION_BYTES = {"off": 68, "bf16": 48, "fp16": 48}
GPU_SHARE = 0.5  # a compiled step keeps less between its passes: not measured, so that nothing that fits is refused
STATE_BYTES, FROZEN_BYTES = 16, 4  # of a parameter: with its gradient and two moments; alone
PROGRAM_BYTES = 7 * GIB // 10  # torch itself, on a CPU


def training_bytes(model, batch_size, amp, grad_ckpt=False, visible=None, shards=1, kept=1.0):
    """Least memory of a training step: weights, gradients, optimizer and activations.

    Args:
        model: of `models_mae` or `models_vit`, its `requires_grad` set.
        visible: patches that the encoder sees, where it does not see all.
        shards: processes that weights, gradients and optimizer are divided among.
        kept: share of the activations of a CPU that is kept for the backward pass.
    """
    trained = [parameter.requires_grad for parameter in model.parameters()]
    sizes = [parameter.numel() for parameter in model.parameters()]
    state = sum(size * (STATE_BYTES if trains else FROZEN_BYTES) for size, trains in zip(sizes, trained, strict=True))
    per_sample = 0
    for blocks, patches in ((model.blocks, visible or model.num_patches), (getattr(model, "decoder_blocks", ()),
                                                                          model.num_patches)):  # fmt: skip
        values = [(1 + patches) * block.norm1.weight.numel() for block in _with_gradients(blocks, model)]
        if grad_ckpt:  # what enters each block, and one block at a time
            per_sample += 4 * sum(values) + max(values, default=0) * ACTIVATION_BYTES[amp]
        else:
            per_sample += sum(values) * ACTIVATION_BYTES[amp]
    return state // shards + round(kept * batch_size * per_sample)


def _with_gradients(blocks, model):
    """The blocks that a gradient passes through: all from the first that trains, or all where what lies before trains."""
    if model.patch_embed.proj.weight.requires_grad:
        return list(blocks)
    trains = [any(parameter.requires_grad for parameter in block.parameters()) for block in blocks]
    return list(blocks)[trains.index(True) :] if True in trains else []


def free_bytes(device):
    """Memory that a process may still take on a device, or None where nothing says it: a GPU's, or the machine's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        free = int(re.search(r"^MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)[1]) * 1024
    except (OSError, TypeError):
        return None
    group = Path("/sys/fs/cgroup")  # of a container, version 2
    try:
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        return min(free, limit - used)
    except (OSError, ValueError):  # none, or "max"
        return free


def memory_line(model, device, batch_size, args, amp, visible=None):
    """A line about the parameters and the memory of a process.

    Args:
        batch_size: samples at a time; args: flags with `grad_ckpt` and `shard`; amp: the precision.
        visible: see `training_bytes`.

    Raises:
        UserError: it cannot fit.
    """
    there = free_bytes(device)
    shards = distributed.world_size() if args.shard else 1
    kept = 1.0 if device.type == "cpu" else GPU_SHARE
    needed = training_bytes(model, batch_size, amp, args.grad_ckpt, visible, shards, kept)
    if device.type == "cpu":
        needed = (needed + PROGRAM_BYTES) * distributed.local_world_size()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    line = f"{parameters:,} parameters; memory: {needed / GIB:.1f} GiB or more"
    if there is None:
        return line
    if needed > there:
        raise UserError(f"--batch_size {batch_size}: expected a run within the {there / GIB:.1f} GiB of free memory; found "
                        f"{line}: a smaller --model, a smaller --batch_size with --accum_iter, or --grad_ckpt needs less")
    return f"{line}, {there / GIB:.1f} GiB free"
