"""Find the regions of blocks in other processes, which do not share Python's lock with this one."""

import math
import mmap
import multiprocessing
import os
import queue
import signal
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import torch

from labelling.rectangles import regions_of
from util.host_copy import host_copy
from util.processes import end_with_parent

SLOTS = 3  # runs at a time: one is copied, one is searched, one waits to be joined
SLOT_BYTES = 2**28  # address space of a slot; only the used part takes memory

_memory = None  # in a process of the pool: the memory that it shares with its parent


class RegionPool:
    """Processes that search blocks. Make the pool before a GPU is used: the processes are forks.

    Args:
        processes: how many.
    """

    def __init__(self, processes):
        self.processes = processes
        self._memory = mmap.mmap(-1, SLOTS * SLOT_BYTES)
        self._stream = None
        self._free = queue.SimpleQueue()
        for number in range(SLOTS):
            self._free.put(number)
        self._waiting = ThreadPoolExecutor(SLOTS)
        fork, arguments = multiprocessing.get_context("fork"), (self._memory, os.getpid())
        self._pool = ProcessPoolExecutor(processes, fork, _begin, arguments)
        self._pool.submit(int).result()  # the processes start now

    def submit(self, run):
        """A future of the regions of each block of a `labelling.planes.Run`; waits until a slot is free."""
        planes = run.probabilities
        if 4 * planes.numel() > SLOT_BYTES:
            raise ValueError(f"expected at most {SLOT_BYTES} bytes of probabilities: {list(planes.shape)}")
        number = self._free.get()
        copied = None
        if planes.is_cuda:
            self._stream = self._stream or torch.cuda.Stream(planes.device)
            self._stream.wait_stream(torch.cuda.current_stream(planes.device))
            with torch.cuda.stream(self._stream):
                run.planes.record_stream(self._stream)
                planes = host_copy(planes)
                copied = torch.cuda.Event(blocking=True)  # a thread that waits for it sleeps
                copied.record()
        return self._waiting.submit(self._regions, number, planes, copied, run.blocks())

    def _regions(self, number, planes, copied, blocks):
        try:
            if copied is not None:
                copied.synchronize()
            places, at = [], number * SLOT_BYTES
            for first, end in blocks:  # contiguous each: rows of the whole run lie too far apart for a cache
                block = planes[:, :, first:end].numpy()
                places.append((at, block.shape))
                np.copyto(_block(self._memory, *places[-1]), block)
                at += block.nbytes
            each = -(-len(places) // self.processes)
            parts = [places[first : first + each] for first in range(0, len(places), each)]
            return [found for part in self._pool.map(_find, parts) for found in part]
        finally:
            self._free.put(number)

    def close(self):
        self._waiting.shutdown(cancel_futures=True)
        self._pool.shutdown(cancel_futures=True)


def _block(memory, at, shape):
    return np.frombuffer(memory, np.float32, math.prod(shape), at).reshape(shape)


def _begin(memory, parent):
    global _memory
    _memory = memory
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent(signal.SIGKILL)
    if os.getppid() != parent:  # it died before
        os._exit(0)


def _find(places):
    return [regions_of(_block(_memory, *place)) for place in places]
