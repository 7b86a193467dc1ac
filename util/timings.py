"""The time of a command, by part."""

import contextlib
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import torch


def least_seconds(function, device):
    """Least time of a call, with the work that it starts on a GPU."""
    seconds = []
    for _ in range(8):
        started = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds[3:])


@dataclass
class Timings:
    """Seconds by part: of a GPU its own time, of parallel workers their mean."""

    seconds: Counter = field(default_factory=Counter)
    signal_s: float = 0.0
    _lock: object = field(default_factory=threading.Lock, repr=False)
    _on_gpu: list = field(default_factory=list, repr=False)  # (part, event before, event after), for `settle`

    def add(self, name, seconds):
        with self._lock:
            self.seconds[name] += seconds

    @contextlib.contextmanager
    def part(self, name, beside=1, device=None):
        """Time this context, run by `beside` workers in parallel; for a GPU, the kernels started in it."""
        if device is not None and device.type == "cuda":
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record()
            yield
            after.record()
            self._on_gpu.append((name, before, after))
            return
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, (time.perf_counter() - started) / beside)

    def settle(self):
        """Wait for the GPU and add its times."""
        for name, before, after in self._on_gpu:
            after.synchronize()
            self.add(name, before.elapsed_time(after) / 1e3)
        self._on_gpu.clear()

    def summary(self, elapsed_s):
        parts = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in self.seconds.items())
        speed = f"real-time factor {self.signal_s / max(elapsed_s, 1e-9):.2f}"
        return f"{self.signal_s:.3f} s of signal in {elapsed_s:.2f} s: {speed} ({parts})"
