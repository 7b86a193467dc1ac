"""Where a run computes, and in which precision."""

import contextlib
import ctypes
from functools import partial

import torch

from util.errors import UserError

AMP_CHOICES = ("auto", "bf16", "fp16", "off")


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


def pick_amp(name, device):
    """The precision of `--amp` by name: "bf16", "fp16" or "off".

    "auto" is bf16 where the machine computes in it, fp16 on older GPUs, and off elsewhere.

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
    return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "off"


def mixed_precision(amp, device):
    """(maker of the autocast context, gradient scaler) for a precision of `pick_amp`."""
    scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")
    if amp == "off":
        return contextlib.nullcontext, scaler
    return partial(torch.autocast, device.type, dtype={"bf16": torch.bfloat16, "fp16": torch.float16}[amp]), scaler


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
