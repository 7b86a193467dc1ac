"""The device of a run, its precision, cores and buffers."""

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
# Smallest width of a model that trains faster in bf16, by the unit that computes bf16. Measured: time of a
# block's training step in fp32 over the time in bf16, two threads, by width.
#   AMX (Intel Xeon)                64: 0.7, 128: 1.0, 192: 1.3, 384: 1.8, 512: 2.0
#   AVX512-bf16 of AMD (EPYC)       64: 1.9, 128: 2.4, 192: 2.6, 384: 3.3, 512: 3.5
#   AVX512-bf16 of Intel, no AMX    0.6 at all widths
BF16_WIDTH = {"AMX": 192, "AVX512-bf16 of AMD": 64}


def pick_device(name):
    """The device of `--device`; "auto" takes a GPU if there is one.

    Raises:
        UserError: unknown, or not on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # the device `meta` holds no numbers
    except Exception as error:  # torch's are of many kinds
        found = f"{name!r}: {(str(error) or type(error).__name__).splitlines()[0]}"
        raise UserError(f"--device: expected auto, cpu or a GPU of this machine; found {found}") from error
    return device


def pick_amp(name, device, width=512):
    """The precision of `--amp`: "bf16", "fp16" or "off".

    "auto" is bf16 on GPUs that have it, and fp16 on older ones. On a CPU it is bf16 if a model of this
    `width` is faster in it by `BF16_WIDTH`, else off.

    Raises:
        UserError: fp16 on a CPU.
    """
    if name == "fp16" and device.type != "cuda":
        raise UserError("--amp fp16: expected a GPU; found a CPU, which takes bf16 or off")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    # A table instead of a measurement: equal commands must compute the same.
    return "bf16" if width >= BF16_WIDTH.get(cpu_bf16(), math.inf) else "off"


def cpu_bf16():
    """The unit that computes bf16 on this CPU: "AMX", "AVX512-bf16 of AMD", "AVX512-bf16", or None."""
    if torch.cpu._is_amx_tile_supported():
        return "AMX"
    if not torch.cpu._is_avx512_bf16_supported():
        return None
    of_amd = CPUINFO.is_file() and "AuthenticAMD" in CPUINFO.read_text(errors="replace")
    return "AVX512-bf16 of AMD" if of_amd else "AVX512-bf16"


def share_threads(processes):
    """Divide the cores of a machine among several processes, unless OMP_NUM_THREADS is above 1.

    torchrun sets OMP_NUM_THREADS to 1 by default, which would leave cores idle.
    """
    if processes > 1 and os.environ.get("OMP_NUM_THREADS", "1") == "1":
        torch.set_num_threads(max(1, len(usable_cores()) // processes))


def usable_cores():
    """The cores that this process may run on, by number."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def mixed_precision(amp, device):
    """(function that makes the autocast context, gradient scaler) for a precision of `pick_amp`."""
    scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")
    if amp == "off":
        return contextlib.nullcontext, scaler
    return partial(torch.autocast, device.type, dtype=DTYPES[amp]), scaler


def keep_freed_memory():
    """Make glibc keep freed memory for later buffers. Other C libraries ignore this.

    By default glibc returns some freed buffers of several MB to the system, depending on the layout of the
    heap. Equal processes then differ in speed, up to five times.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3  # <malloc.h>
    with contextlib.suppress(AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(m_trim_threshold, 2**30)
        mallopt(m_mmap_threshold, 2**25)  # the largest that glibc accepts
