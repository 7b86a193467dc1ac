"""Compare the memory that a run needs, by the model's size, with the free memory."""

import re
from pathlib import Path

import torch

from util import distributed
from util.errors import UserError

GIB = 2**30
# Bytes per token x width x block x sample. Measured on a CPU at 224 x 224 with ViT-tiny and ViT-S,
# pretraining and segmentation, peak without weights, gradients and moments: 69 to 102 in fp32, 49 to 62 in
# bf16. The least, so that no run that fits is refused.
ACTIVATION_BYTES = {"off": 68, "bf16": 48, "fp16": 48}
GPU_SHARE = 0.5  # a compiled step keeps less between its passes; not measured, so low
STATE_BYTES, FROZEN_BYTES = 16, 4  # of a parameter: with gradient and two moments; alone
PROGRAM_BYTES = 7 * GIB // 10  # torch itself, on a CPU


def training_bytes(model, batch_size, amp, grad_ckpt=False, visible=None, shards=1, kept=1.0):
    """Least memory of a training step: weights, gradients, optimizer and activations.

    Args:
        model: of `models_mae` or `models_vit`, its `requires_grad` set.
        visible: patches that the encoder sees; None: all.
        shards: processes that weights, gradients and optimizer are sharded across.
        kept: activations kept for the backward pass, as a share of those on a CPU.
    """
    parameters = list(model.parameters())
    state = sum(one.numel() * (STATE_BYTES if one.requires_grad else FROZEN_BYTES) for one in parameters)
    per_sample = 0
    everything = model.num_patches
    decoder_blocks = getattr(model, "decoder_blocks", ())
    for blocks, patches in ((model.blocks, visible or everything), (decoder_blocks, everything)):
        values = [(1 + patches) * block.norm1.weight.numel() for block in _with_gradients(blocks, model)]
        if grad_ckpt:  # the inputs of all blocks, and the inside of one
            per_sample += 4 * sum(values) + max(values, default=0) * ACTIVATION_BYTES[amp]
        else:
            per_sample += sum(values) * ACTIVATION_BYTES[amp]
    return state // shards + round(kept * batch_size * per_sample)


def _with_gradients(blocks, model):
    """The blocks that a gradient passes: from the first that trains; all if the patch embedding trains."""
    if model.patch_embed.proj.weight.requires_grad:
        return list(blocks)
    trains = [any(parameter.requires_grad for parameter in block.parameters()) for block in blocks]
    return list(blocks)[trains.index(True) :] if True in trains else []


def free_bytes(device):
    """Free memory of a GPU, or of the machine or container for a CPU; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        meminfo = Path("/proc/meminfo").read_text()
        free = int(re.search(r"^MemAvailable:\s*(\d+) kB", meminfo, re.MULTILINE)[1]) * 1024
    except (OSError, TypeError):
        return None
    group = Path("/sys/fs/cgroup")  # of a container, version 2
    try:
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        return min(free, limit - used)
    except (OSError, ValueError):  # none, or "max"
        return free


def memory_line(model, device, batch_size, args, amp, visible=None):
    """A line about parameters and memory of a process.

    Args:
        args: flags with `grad_ckpt` and `shard`; visible: see `training_bytes`.

    Raises:
        UserError: the run needs more than the free memory.
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
        expected = f"a run within the {there / GIB:.1f} GiB of free memory"
        less = "a smaller --model, a smaller --batch_size with --accum_iter, or --grad_ckpt needs less"
        raise UserError(f"--batch_size {batch_size}: expected {expected}; found {line}: {less}")
    return f"{line}, {there / GIB:.1f} GiB free"
