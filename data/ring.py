"""Memory in slots that processes read and write without copying: a worker fills a slot, the main process empties it."""

import math
import mmap
import os
import weakref
from multiprocessing.reduction import DupFd
from typing import NamedTuple

import numpy as np

ALIGN = 4096


class Ring:
    """Slots of memory that processes share, and, in the process that has them written, whose turn it is in each.

    It takes no part of /dev/shm, which containers keep small, and no memory before it is written.
    """

    def __init__(self, slots, slot_bytes, descriptor=None):
        self.slots, self.slot_bytes = slots, -(-slot_bytes // ALIGN) * ALIGN
        self.descriptor = os.memfd_create("batches") if descriptor is None else descriptor
        os.ftruncate(self.descriptor, self.slots * self.slot_bytes)
        weakref.finalize(self, os.close, self.descriptor)
        self.bytes = np.frombuffer(mmap.mmap(self.descriptor, self.slots * self.slot_bytes), np.uint8)
        self._first_byte = self.bytes.ctypes.data
        self._busy = set()

    def __reduce__(self):
        return _attached, (self.slots, self.slot_bytes, DupFd(self.descriptor))

    def start(self):
        """Forget what was not finished."""
        self._busy.clear()

    def take(self, number):
        """A slot is to be written."""
        if number in self._busy:
            raise RuntimeError(f"slot {number} of {self.slots} was not given back")
        self._busy.add(number)

    def give_back(self, number):
        """Let a slot be written again."""
        self._busy.remove(number)

    def allocator(self, number):
        """`new` of `data.sampling.Source.load_many` for a slot: arrays in it, and elsewhere where it is full."""
        place, end = number * self.slot_bytes, (number + 1) * self.slot_bytes

        def new(shape, dtype):
            nonlocal place
            size = math.prod(shape) * np.dtype(dtype).itemsize
            if place + size > end:
                return np.empty(shape, dtype)
            array = self.bytes[place : place + size].view(dtype).reshape(shape)
            place += -(-size // 64) * 64
            return array

        return new

    def offset(self, array):
        """Where an array lies in it, or None: elsewhere."""
        offset = array.ctypes.data - self._first_byte
        return offset if 0 <= offset < self.bytes.nbytes else None

    def at(self, offset, shape, dtype):
        """The array that was there; see `Placed`."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        return self.bytes[offset : offset + size].view(dtype).reshape(shape)


def _attached(slots, slot_bytes, descriptor):
    return Ring(slots, slot_bytes, descriptor.detach())


class Slot(NamedTuple):
    ring: Ring
    number: int

    def give_back(self):
        self.ring.give_back(self.number)

    def own(self, tensor):
        """The tensor, or a copy of one that lies in the ring."""
        in_ring = tensor.device.type == "cpu" and self.ring.offset(tensor.numpy()) is not None
        return tensor.clone() if in_ring else tensor


class Placed(NamedTuple):
    """An array in the ring, on its way to another process."""

    offset: int
    shape: tuple
    dtype: str
