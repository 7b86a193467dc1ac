"""The processes of one run: their ranks, small exchanges between them, and a stop after the same step.

`util.joining` connects and ends them. No other file knows of ranks.
"""

import os
import signal
import threading

import torch
import torch.distributed as dist

from util.errors import StoppedError, UserError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

_control = None  # gloo group of all processes, for small numbers: no device has to wait for them


def set_group(group):
    """Use this gloo group of all processes for the exchanges below; None for a run of one process."""
    global _control
    _control = group


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def world_size():
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main():
    """Whether this is the process that prints and writes."""
    return rank() == 0


def local_world_size():
    """Number of processes of the run on this machine."""
    return environment_number("LOCAL_WORLD_SIZE", 1)


def default_workers():
    """Data loading processes per process of the run: half of the cores together, at most 10 each."""
    return min(10, (os.cpu_count() or 1) // 2 // local_world_size())


def environment_number(name, default=None):
    """A number in an environment variable of a launcher; a UserError without one."""
    value = os.environ.get(name, default)
    try:
        return int(value)
    except (TypeError, ValueError):
        expected = "a number in the environment, set by a launcher"
        raise UserError(f"{name}: expected {expected}; found {value!r}") from None


class StopSignal:
    """Receives SIGTERM, SIGUSR1 and Ctrl-C, so that all processes stop after the same complete step.

    Before the first step there is nothing to save: the signal raises `StoppedError` at once. As a context it
    restores the signal handlers at the end.
    """

    def __init__(self):
        self.received = None
        self._training = False
        self._work = self._flag = None

    def __enter__(self):
        caught = SIGNALS if threading.current_thread() is threading.main_thread() else ()
        self._before = {number: signal.signal(number, self._receive) for number in caught}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number, _frame):
        self.received = signal.Signals(number).name
        if not self._training:
            raise StoppedError(f"{self.received} before the first step")

    def ask(self):
        """Start asking all processes whether one got a signal, without waiting; see `answer`."""
        self._training = True
        if _control is not None:
            number = SIGNALS.index(signal.Signals[self.received]) + 1 if self.received else 0
            self._flag = torch.tensor(number)
            self._work = dist.all_reduce(self._flag, dist.ReduceOp.MAX, group=_control, async_op=True)

    def answer(self):
        """The name of the signal that a process had got at `ask`, or None; the same on all processes."""
        if _control is None:
            return self.received
        self._work.wait()
        return SIGNALS[int(self._flag) - 1].name if int(self._flag) else None


def all_reduce_sum(values):
    """Sum a list of numbers over all processes, in float64."""
    if _control is None:
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(sums, group=_control)
    return sums.tolist()


def all_reduce_sum_(tensor):
    """Sum a tensor over all processes, in place and on its device."""
    if _control is not None:
        dist.all_reduce(tensor, group=_control if tensor.device.type == "cpu" else None)
    return tensor


def all_reduce_max(value):
    """The largest of the processes' numbers."""
    if _control is None:
        return value
    found = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(found, dist.ReduceOp.MAX, group=_control)
    return type(value)(found)


def all_gather(value):
    """The values of all processes, by rank."""
    if _control is None:
        return [value]
    found = [None] * world_size()
    dist.all_gather_object(found, value, group=_control)
    return found


def broadcast(function):
    """Call `function` on rank 0 only, and return its nested CPU tensors and plain values on all processes."""
    if _control is None:
        return function()
    tensors = []

    def placeholder(tensor):
        tensors.append(tensor.contiguous())
        return tensor.to("meta")

    box = [map_tensors(function(), placeholder) if is_main() else None]
    dist.broadcast_object_list(box, src=0, group=_control)

    def received(place):
        tensor = tensors.pop(0) if is_main() else torch.empty(place.shape, dtype=place.dtype)
        dist.broadcast(tensor, src=0, group=_control)
        return tensor

    return map_tensors(box[0], received)


def map_tensors(value, function):
    """A copy of nested dicts, lists and tuples with `function(tensor)` in place of each tensor."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: map_tensors(part, function) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(part, function) for part in value)
    return value
