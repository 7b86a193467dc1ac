"""Where and in which precision a run computes."""

import subprocess
import sys

import pytest
import torch
from support import ROOT

from util import device
from util.device import mixed_precision, pick_amp, pick_device
from util.errors import UserError

CPU = torch.device("cpu")


def test_devices():
    assert pick_device("cpu") == CPU
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "", "meta:x"])
def test_devices_that_are_not_here(name):
    with pytest.raises(UserError, match="--device") as error:
        pick_device(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("amx", "avx512", "vendor", "least"),
    [
        (True, True, "GenuineIntel", 192),
        (False, True, "AuthenticAMD", 64),
        (False, True, "GenuineIntel", None),
        (False, False, "AuthenticAMD", None),
    ],
)
def test_precision_of_a_cpu(monkeypatch, tmp_path, amx, avx512, vendor, least):
    """bf16 where it was measured to be faster, from the width on at which it is."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(device, "CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    widths = (16, 63, 64, 191, 192, 1024)
    expected = ["bf16" if least and width >= least else "off" for width in widths]
    assert [pick_amp("auto", CPU, width) for width in widths] == expected
    assert pick_amp("off", CPU, 1024) == "off"
    assert pick_amp("bf16", CPU, 16) == "bf16"
    with pytest.raises(UserError, match="--amp fp16"):
        pick_amp("fp16", CPU)


def test_processes_share_the_cores(monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(device, "usable_cores", lambda: set(range(12)))
    try:
        for given, processes, expected in (
            (None, 3, 4),
            ("1", 3, 4),
            ("2", 3, threads),
            (None, 1, threads),
            (None, 50, 1),
        ):
            torch.set_num_threads(threads)
            monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
            if given:
                monkeypatch.setenv("OMP_NUM_THREADS", given)
            device.share_threads(processes)
            assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "fp16")])
def test_precision_of_a_gpu(monkeypatch, native, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert pick_amp("auto", torch.device("cuda")) == expected
    assert pick_amp("fp16", torch.device("cuda")) == "fp16"


@pytest.mark.parametrize(("amp", "dtype"), [("off", torch.float32), ("bf16", torch.bfloat16)])
def test_mixed_precision(amp, dtype):
    autocast, scaler = mixed_precision(amp, CPU)
    assert not scaler.is_enabled()
    with autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the C library is another one")
def test_freed_memory_is_kept():
    """Buffers of 24 MB that come and go cost no page faults after the first; in processes of their own."""
    script = """
import resource, numpy, util.device
{call}
def use():
    buffers = [numpy.ones(3 * 2**20) for _ in range(4)]
use(); use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5): use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = []
    for call in ("", "util.device.keep_freed_memory()"):
        line = [sys.executable, "-c", script.format(call=call)]
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
        faults.append(int(done.stdout))
    assert faults[1] < 100  # a C library that keeps them anyway gives as few without
    assert faults[1] <= faults[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_fp16_has_a_scaler():
    autocast, scaler = mixed_precision("fp16", torch.device("cuda"))
    assert scaler.is_enabled()
    with autocast():
        assert (torch.ones(2, 2, device="cuda") @ torch.ones(2, 2, device="cuda")).dtype == torch.float16
