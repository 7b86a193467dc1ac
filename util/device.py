"""Where a run computes, and in which precision."""

import contextlib
import ctypes
import math
import os
from functools import partial
from pathlib import Path

import torch

from util.errors import UserError

AMP_CHOICES = ("auto", "bf16", "fp16", "off")
CPUINFO = Path("/proc/cpuinfo")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": torch.float32}
# The narrowest model that trains faster in bf16, by what computes it. Measured: time of a block's training step in fp32 over
# that in bf16, two threads, by width.
#   AMX (Intel Xeon)                64: 0.7, 128: 1.0, 192: 1.3, 384: 1.8, 512: 2.0
#   AVX512-bf16 of AMD (EPYC)       64: 1.9, 128: 2.4, 192: 2.6, 384: 3.3, 512: 3.5
#   AVX512-bf16 of Intel, no AMX    0.6 at all widths
BF16_WIDTH = {"AMX": 192, "AVX512-bf16 of AMD": 64}


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

    "auto" is bf16 on GPUs that compute in it and fp16 on older ones. On a CPU it is bf16 where `BF16_WIDTH` says that
    a model of this `width` is faster with it, else off.

    Raises:
        UserError: fp16 asked for on a CPU, where no scaler works.
    """
    if name == "fp16" and device.type != "cuda":
        raise UserError("--amp fp16: expected a GPU; found a CPU, which takes bf16 or off")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    # A table, not a measurement at the start: equal commands must compute equally.
    return "bf16" if width >= BF16_WIDTH.get(cpu_bf16(), math.inf) else "off"


def cpu_bf16():
    """What computes bf16 on this machine's CPU: "AMX", "AVX512-bf16 of AMD", "AVX512-bf16", or None."""
    # torch offers no public test.
    if torch.cpu._is_amx_tile_supported():
        return "AMX"
    if not torch.cpu._is_avx512_bf16_supported():
        return None
    of_amd = CPUINFO.is_file() and "AuthenticAMD" in CPUINFO.read_text(errors="replace")
    return "AVX512-bf16 of AMD" if of_amd else "AVX512-bf16"


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
