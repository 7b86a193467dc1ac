"""How far a command is: a bar on a terminal, else a plain line now and then."""

import sys
import time

LINE_S = 60.0  # between lines


class Bar:
    """Shows work that is done, on stderr. As a context it ends with the work.

    Args:
        name: of the work; total: amount of it, or None if unknown; unit: its plural; done: amount that is
            done already.
    """

    def __init__(self, name, total, unit, done=0):
        self.name, self.total, self.unit, self.done = name, total, unit, done
        self._bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm  # not for log files

            scaled = {"unit_scale": (total or 10**9) > 10**6, "smoothing": 0.05}
            self._bar = tqdm(total=total, initial=done, desc=name, unit=f" {unit}", file=sys.stderr, **scaled)
        self._began_with, self._began_s = done, time.monotonic()
        self._told_s = self._began_s

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._bar is not None:
            self._bar.close()

    def add(self, amount):
        """So much more is done."""
        self.done += amount
        if self._bar is not None:
            self._bar.update(amount)
            return
        now = time.monotonic()
        if now - self._told_s < LINE_S:
            return
        self._told_s = now
        line = f"{self.name}: {self.done:,} {self.unit}"
        if self.total:
            left_s = (self.total - self.done) * (now - self._began_s) / max(self.done - self._began_with, 1)
            line += f" of {self.total:,}, about {left_s / 60:.0f} minutes left"
        print(line, file=sys.stderr, flush=True)
