"""Where the time of a command goes, part by part."""

import contextlib
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import torch


@dataclass
class Timings:
    """Seconds of work by part: of what runs side by side the mean, of a GPU the time that it took itself."""

    seconds: Counter = field(default_factory=Counter)
    signal_s: float = 0.0
    _lock: object = field(default_factory=threading.Lock, repr=False)
    _on_gpu: list = field(default_factory=list, repr=False)  # (part, event before, event after), not yet waited for

    def add(self, name, seconds):
        with self._lock:
            self.seconds[name] += seconds

    @contextlib.contextmanager
    def part(self, name, beside=1, device=None):
        """Time what runs in this context, one of so many that do so side by side; on a GPU, what it is given there."""
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
        """Wait for the GPU and take its times."""
        for name, before, after in self._on_gpu:
            after.synchronize()
            self.add(name, before.elapsed_time(after) / 1e3)
        self._on_gpu.clear()

    def summary(self, elapsed_s):
        parts = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in self.seconds.items())
        return (f"{self.signal_s:.3f} s of signal in {elapsed_s:.2f} s: real-time factor "
                f"{self.signal_s / max(elapsed_s, 1e-9):.2f} ({parts})")  # fmt: skip
