"""From the data sets to the device: workers read batches into memory that all processes share, and on a GPU copies and the
front end run ahead of the training, on streams of their own.

A batch travels in pieces of `PIECE_BYTES` at most, so that several workers read one batch, and memory does not grow with it.
A piece is read into a slot of a `data.ring.Ring`, and leaves it at once: for a GPU, into page-locked memory of torch's own,
from where it is copied while the process does other things.
"""

import functools
import itertools
import math
import os
import signal
import threading
import time
from collections import deque

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from data.ring import ALIGN, Placed, Ring, Slot
from data.sampling import to_images

PIECE_BYTES = 2**25
RING_BYTES = 2**31  # of pieces that wait for the device; two for each worker where these are more

# Batches that are ready on a GPU before they are asked for, and steps of training that it may have before it at most: with
# one the GPU would wait for the process whenever that looks at a loss, and each holds a batch's images.
BATCHES_READY = 1
STEPS_QUEUED = 2
LOOK_EVERY_S = 2e-4  # whether the GPU is as far: nothing that drivers and sandboxes do differently, and a core that is free


def make_loader(dataset, batches, num_workers, pin_memory):
    """A `Loader` of a data set with `batch` and `sample_bytes` (see `data.sampling.MaskedSamples`) over `EpochBatches`."""
    return Loader(dataset, batches, num_workers, pin_memory)


class Loader:
    """Reads batches by worker processes that live as long as it does, or without any.

    Args:
        pin_memory: copy to a GPU by way of page-locked memory; without it such copies hold up the training.
    """

    def __init__(self, dataset, batches, num_workers, pin_memory):
        self.dataset, self.batch_sampler, self.pin_memory = dataset, batches, pin_memory
        sample_bytes = max(1, dataset.sample_bytes)
        self._piece = max(1, min(batches.batch_size, PIECE_BYTES // sample_bytes))  # samples
        self._ring, ahead = None, None
        if num_workers and hasattr(os, "memfd_create"):
            slot_bytes = self._piece * (sample_bytes + 64) + 16 * ALIGN
            ahead = max(2, self._pieces_ahead(RING_BYTES // slot_bytes) // num_workers)
            self._ring = Ring(ahead * num_workers + 1, slot_bytes)  # one that is being emptied
        else:
            self._piece = batches.batch_size
        self._loader = DataLoader(
            _Pieces(dataset, self._ring),
            batch_sampler=_Tasks(batches, self._piece, self._ring),
            collate_fn=_as_it_is,
            num_workers=num_workers,
            prefetch_factor=ahead,
            persistent_workers=num_workers > 0,
            worker_init_fn=_heed_the_main_process,
            # Its own generator: drawing the workers' seed from torch's would make the run depend on how often it resumed.
            generator=torch.Generator(),
        )

    def _pieces_ahead(self, room):
        """As many as there is room for, but no more than an epoch has, or one batch; for a GPU, which is faster, two."""
        a_batch = math.ceil(self.batch_sampler.batch_size / self._piece)
        return min(room, (2 if self.pin_memory else 1) * a_batch, a_batch * max(1, len(self.batch_sampler)))

    @property
    def workers(self):
        """The processes, once there are any."""
        return [] if self._loader._iterator is None else self._loader._iterator._workers

    def batches(self, front_end, device):
        """A `Feed` of the epoch's batches from the batch sampler's first on."""
        return Feed(self, front_end, device)

    def pieces(self):
        """(slot or None, whether it ends a batch, dict of tensors as `batch` of the data set gives it) in order.

        They lie in the ring until their slot is given back.
        """
        for number, is_last, batch in self._loader:
            slot = None if number is None else Slot(self._ring, number)
            yield slot, is_last, _map_arrays(batch, functools.partial(_received, ring=self._ring))


class Feed:
    """Batches on the device: dicts of `images`, float32 [B, C, F, T], `noise`, where there is one `target`, and `index`,
    which stays on the CPU. On a GPU the next batch is copied and transformed while the training computes with one."""

    def __init__(self, loader, front_end, device):
        self._loader, self._front_end, self._device = loader, front_end, device
        self._waited_s, self._stalls = 0.0, deque()

    def __iter__(self):
        return self._on_gpu() if self._device.type == "cuda" else self._on_cpu()

    def waited_s(self):
        """Seconds that the training waited for data since this was last asked: on a GPU, those in which that had none."""
        while self._stalls and self._stalls[0][1].query():
            asked, given = self._stalls.popleft()
            self._waited_s += asked.elapsed_time(given) / 1e3
        waited_s, self._waited_s = self._waited_s, 0.0
        return waited_s

    def _on_cpu(self):
        pieces, whole = self._loader.pieces(), []
        while True:
            asked = time.perf_counter()
            slot, is_last, batch = next(pieces, (None, None, None))
            self._waited_s += time.perf_counter() - asked
            if batch is None:
                return
            batch["images"] = to_images(batch.pop("parts"), self._front_end, self._device)
            if slot is not None:
                batch = {name: slot.own(tensor) for name, tensor in batch.items()}
                slot.give_back()
            whole.append({name: tensor if name == "index" else tensor.to(self._device) for name, tensor in batch.items()})
            if is_last:
                yield _joined(whole)
                whole = []

    def _on_gpu(self):
        training = torch.cuda.current_stream(self._device)
        copying, transforming = _streams(self._device)
        for stream in (copying, transforming):
            stream.wait_stream(training)  # for the front end
        batches, ready, queued = self._transformed(copying, transforming), deque(), deque()
        while True:
            asked = torch.cuda.Event(enable_timing=True)
            asked.record(training)
            queued.append(asked)
            if len(queued) > STEPS_QUEUED:
                _wait_for(queued.popleft())
            while len(ready) <= BATCHES_READY and (batch := next(batches, None)) is not None:
                done = torch.cuda.Event()
                done.record(transforming)
                ready.append((batch, done))
            if not ready:
                return
            batch, done = ready.popleft()
            training.wait_event(done)
            given = torch.cuda.Event(enable_timing=True)
            given.record(training)
            self._stalls.append((asked, given))
            for tensor in batch.values():
                if tensor.is_cuda:
                    tensor.record_stream(training)  # it was made on another stream, and may be freed while it is in use
            yield batch

    def _transformed(self, copying, transforming):
        """Batches whose copy and transformation are under way."""
        whole = []
        for slot, is_last, batch in self._loader.pieces():
            with torch.cuda.stream(copying):
                batch = {name: value if name == "index" else self._copied(value) for name, value in batch.items()}
            if slot is not None:
                slot.give_back()
            transforming.wait_stream(copying)
            with torch.cuda.stream(transforming):
                _map_arrays(batch, lambda tensor: tensor.record_stream(transforming) if tensor.is_cuda else None)
                batch["images"] = to_images(batch.pop("parts"), self._front_end, self._device)
                whole.append(batch)
                batch = _joined(whole) if is_last else None
            if is_last:  # not above, where the stream would be the current one of whoever asked
                whole = []
                yield batch

    def _copied(self, value):
        if isinstance(value, list):  # numbers from which something is made stay on the CPU, but not in their slot
            return [(kind, values.clone() if callable(kind) else self._copied(values), places)
                    for kind, values, places in value]  # fmt: skip
        return (value.pin_memory() if self._loader.pin_memory else value).to(self._device, non_blocking=True)


def _wait_for(event):
    while not event.query():
        time.sleep(LOOK_EVERY_S)


@functools.cache
def _streams(device):
    return torch.cuda.Stream(device), torch.cuda.Stream(device)


def _joined(pieces):
    if len(pieces) == 1:
        return pieces[0]
    return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}


# Between the processes


class _Tasks:
    """Batch sampler: pieces of batches, as (slot, whether it ends a batch, keys)."""

    def __init__(self, batches, piece, ring):
        self.batches, self.piece, self.ring = batches, piece, ring

    def __iter__(self):
        number, slot = 0, None
        if self.ring is not None:
            self.ring.start()
        for keys in self.batches:
            pieces = math.ceil(len(keys) / self.piece)
            borders = [piece * len(keys) // pieces for piece in range(pieces + 1)]
            for first, end in itertools.pairwise(borders):
                if self.ring is not None:
                    slot = number % self.ring.slots
                    self.ring.take(slot)
                yield slot, end == len(keys), keys[first:end]
                number += 1


class _Pieces(Dataset):
    """What the workers have of a data set: given a task, they read a piece into its slot."""

    def __init__(self, dataset, ring):
        self.dataset, self.ring = dataset, ring

    def __len__(self):
        return len(self.dataset)

    def __getitems__(self, task):
        slot, is_last, keys = task
        batch = self.dataset.batch(keys, np.empty if slot is None else self.ring.allocator(slot))
        if self.ring is not None:
            batch = _map_arrays(batch, self._sent)
        return slot, is_last, batch

    def _sent(self, array):
        offset = self.ring.offset(array)
        return array if offset is None else Placed(offset, array.shape, array.dtype.str)


def _received(value, ring):
    return torch.from_numpy(ring.at(*value) if isinstance(value, Placed) else value)


def _map_arrays(batch, function):
    """A batch with a function of each array in it."""
    return {name: [(kind, function(values), places) for kind, values, places in value] if name == "parts"
            else function(value) for name, value in batch.items()}  # fmt: skip


def _as_it_is(piece):
    return piece


def _heed_the_main_process(_worker):
    """Have a worker end by SIGTERM from the process that it works for, and from nobody else.

    A job that is told to stop is told in all its processes; the one that trains answers, and needs its data until it has.
    """
    numbers = {signal.SIGTERM, signal.SIGUSR1}
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)

    def listen():
        while True:
            told = signal.sigwaitinfo(numbers)
            if told.si_signo == signal.SIGTERM and told.si_pid == os.getppid():
                os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
