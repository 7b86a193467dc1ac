"""Where a run computes, and in which precision."""

import contextlib
import ctypes
import os
import time
from functools import partial

import torch

from util.errors import UserError

AMP_CHOICES = ("auto", "bf16", "fp16", "off")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": torch.float32}


def pick_device(name):
    """The device of `--device`: "auto" takes the GPU where there is one.

    Raises:
        UserError: unknown, or not on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device: expected auto, cpu or a GPU of this machine; found {name!r}: {reason}") from error
    return device


def pick_amp(name, device, width=512):
    """The precision of `--amp` by name: "bf16", "fp16" or "off".

    "auto" is bf16 on GPUs that compute in it and fp16 on older ones; of a CPU that computes in bf16 what a transformer block
    of the model's `width` is trained faster in; off elsewhere.

    Raises:
        UserError: fp16 asked for on a CPU, where no scaler works.
    """
    if name == "fp16" and device.type != "cuda":
        raise UserError("--amp fp16: expected a GPU; found a CPU, which takes bf16 or off")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    # torch offers no public test for it.
    computes = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if computes and _block_s("bf16", width) < _block_s("off", width) else "off"


def _block_s(amp, width):
    """Seconds of a training step of one transformer block on the CPU; the least of some."""
    # Commands without a model do without these and their two seconds.
    from timm.models.vision_transformer import Block

    from util import attention

    # What is measured must not depend on, or change, where the run's random numbers are.
    with torch.random.fork_rng(devices=()):
        block = Block(width, max(1, width // 64), qkv_bias=True)
    attention.use([block])
    tokens = torch.ones(8, 50, width)  # a quarter of 14 x 14 patches, and the class token
    autocast, _ = mixed_precision(amp, torch.device("cpu"))
    seconds = []
    for _ in range(4):  # the first does not count: others are faster
        started = time.perf_counter()
        with autocast():
            loss = block(tokens).float().square().mean()
        loss.backward()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def share_threads(processes):
    """Have several processes that compute on the CPU of a machine share its cores, unless OMP_NUM_THREADS says otherwise.

    torchrun sets that to 1 where it is not set, which leaves cores idle where there are more of them.
    """
    if processes > 1 and os.environ.get("OMP_NUM_THREADS", "1") == "1":
        torch.set_num_threads(max(1, len(usable_cores()) // processes))


def usable_cores():
    """The cores that this process may run on, by number."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def mixed_precision(amp, device):
    """(maker of the autocast context, gradient scaler) for a precision of `pick_amp`."""
    scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")
    if amp == "off":
        return contextlib.nullcontext, scaler
    return partial(torch.autocast, device.type, dtype=DTYPES[amp]), scaler


def keep_freed_memory():
    """Have the C library keep the memory that this process frees, for the buffers that come next; elsewhere than on glibc,
    nothing.

    Left to itself, glibc gives buffers of some MB back to the system and takes them anew, page by page, or it does not:
    that depends on what happens to lie behind them in the heap, and makes the rates of two equal processes differ up to
    five times.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3  # <malloc.h>
    with contextlib.suppress(AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(m_trim_threshold, 2**30)
        mallopt(m_mmap_threshold, 2**25)  # the most that glibc takes
