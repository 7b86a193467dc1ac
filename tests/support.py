"""What several test files need: recordings to read, and commands to run as a user would."""

import contextlib
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from util.errors import reported

ROOT = Path(__file__).parents[1]
CAPTURES = ROOT.parent / "shared" / "data" / "recordings"

# A model of which a step takes milliseconds, for `models_mae.PRESETS` and `models_vit.PRESETS`.
NANO = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2,
        "decoder_embed_dim": 8, "decoder_depth": 3, "decoder_num_heads": 2}  # fmt: skip

needs_captures = pytest.mark.skipif(not CAPTURES.is_dir(), reason=f"the shared captures are not there ({CAPTURES.name})")


def write_sigmf(folder: Path, data: bytes, datatype="cu8", name="a", captures=({"core:sample_start": 0},), annotations=(),
                data_name=None, **info) -> Path:
    """`info` without "core:"; a value of None leaves the key out. Returns the .sigmf-meta."""
    info = {"datatype": datatype, "version": "1.2.0", "sample_rate": 1e6, **info}
    info = {f"core:{key}": value for key, value in info.items() if value is not None}
    (folder / (data_name or f"{name}.sigmf-data")).write_bytes(data)
    meta = folder / f"{name}.sigmf-meta"
    meta.write_text(json.dumps({"global": info, "captures": list(captures), "annotations": list(annotations)}))
    return meta


def write_ci16(folder, name="a", duration_s=0.1, sample_rate_hz=200e3, seed=0, level=0.1, **info):
    """A ci16_le recording of noise and a tone that is switched on and off; returns the .sigmf-meta."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    time_s = np.arange(round(duration_s * sample_rate_hz)) / sample_rate_hz
    iq = rng.standard_normal((len(time_s), 2)) @ [1, 1j] * level / 10
    iq += level * np.exp(2j * np.pi * (seed + 1) * 7e3 * time_s) * (time_s * 100 % 1 < 0.5)
    parts = np.stack([iq.real, iq.imag], axis=1) * 2**15
    captures = [{"core:sample_start": 0, "core:frequency": 2.4e9}]
    return write_sigmf(folder, parts.astype("<i2").tobytes(), "ci16_le", name, captures, sample_rate=sample_rate_hz, **info)


def call(module, *flags):
    """Run a command's main in this process; returns its exit status."""
    try:
        with reported():
            module.main(module.get_args_parser().parse_args([str(flag) for flag in flags]))
    except SystemExit as exit_:
        return exit_.code
    return 0


def command(script, *flags, **kwargs):
    """The real command, as a process: subprocess.CompletedProcess with text output."""
    line = [sys.executable, str(ROOT / script), *(str(flag) for flag in flags)]
    return subprocess.run(line, capture_output=True, text=True, timeout=300, check=False, **kwargs)


def wait_for(condition, going_on=lambda: True, timeout_s=300):
    """What `condition` returns once that is true; fails as soon as `going_on` is false, or where nothing ever happens."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert going_on(), "ended too early"
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.01)
    return found


@contextlib.contextmanager
def largest_file(size_bytes):
    """A limit that the kernel keeps, on workers too: writing beyond it fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
