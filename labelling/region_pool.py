"""Regions of many blocks, found by other processes beside the one that computes: Python's lock would hold up both."""

import math
import mmap
import multiprocessing
import os
import queue
import signal
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import torch

from labelling.regions import regions_of
from util.host_copy import host_copy
from util.processes import end_with_parent

# Runs that are on their way at a time: one is copied while one is looked at and one waits to be joined.
SLOTS = 3
# Memory that is set aside for each; what is not used of it is not taken.
SLOT_BYTES = 2**28

_memory = None  # in a process of the pool, what it shares with the one that began it


class RegionPool:
    """Processes that look at blocks. To be made before the device is used: they begin as copies of this process.

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
        self._pool = ProcessPoolExecutor(processes, multiprocessing.get_context("fork"), _begin, (self._memory, os.getpid()))
        self._pool.submit(int).result()

    def submit(self, run):
        """A `labelling.planes.Run` on any device; waits while `SLOTS` others are on their way.

        Returns:
            A future of a list for each block, of what `regions_of` finds in it.
        """
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
                copied = torch.cuda.Event(blocking=True)  # who waits for it sleeps
                copied.record()
        return self._waiting.submit(self._regions, number, planes, copied, run.blocks())

    def _regions(self, number, planes, copied, blocks):
        try:
            if copied is not None:
                copied.synchronize()
            places, at = [], number * SLOT_BYTES
            for first, end in blocks:  # each on its own: rows of all blocks lie too far apart for a cache
                block = planes[:, :, first:end].numpy()
                places.append((at, block.shape))
                np.copyto(_block(self._memory, *places[-1]), block)
                at += block.nbytes
            each = -(-len(places) // self.processes)
            parts = [self._pool.submit(_find, places[first : first + each]) for first in range(0, len(places), each)]
            return [found for part in parts for found in part.result()]
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that these work for
    end_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _find(places):
    return [regions_of(_block(_memory, *place)) for place in places]
