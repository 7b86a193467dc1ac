"""From data sets to the device: worker processes read ahead of training.

A batch travels in pieces of at most `PIECE_BYTES`: several workers read one batch, and memory stays bounded.
"""

import functools
import itertools
import math
import mmap
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections import deque
from multiprocessing.reduction import DupFd

import torch
from torch.utils.data import DataLoader, Dataset

from data.sampling import is_iq
from util.errors import warn
from util.processes import end_with_parent

PIECE_BYTES = 2**25
WAITING_BYTES = 2**31  # limit of the pieces that wait for the main process; at least two pieces per worker
STEPS_QUEUED = 2  # limit of the training steps that wait on a GPU; each holds a batch of images


def make_loader(dataset, batches, num_workers, pin_memory):
    """A `Loader` over `EpochBatches` of a data set like `data.sampling.MaskedSamples`."""
    return Loader(dataset, batches, possible_workers(num_workers), pin_memory)


def possible_workers(num_workers):
    """The number of worker processes, or 0 with a warning if the system has no room for their locks."""
    try:
        context = multiprocessing.get_context()
        for _ in [context.Lock() for _ in range(4 * num_workers + 10 * bool(num_workers))]:
            pass  # a page each: the queues of the workers take no more
    except OSError as error:  # the locks are in /dev/shm, which may be full or read-only
        warn(
            f"--num_workers {num_workers}: expected room in /dev/shm; {error.strerror}: this process works alone"
        )
        return 0
    return num_workers


class Loader:
    """Reads batches in worker processes, which live as long as the loader, or in this process.

    Args:
        pin_memory: copy to a GPU from page-locked memory; other copies block training.
    """

    def __init__(self, dataset, batches, num_workers, pin_memory):
        self.dataset, self.batch_sampler, self._pin_memory = dataset, batches, pin_memory
        sample_bytes = max(1, dataset.sample_bytes)
        samples = max(1, min(batches.batch_size, PIECE_BYTES // sample_bytes))  # in a piece
        self._slots, ahead = None, None
        if num_workers:
            waiting = min(math.ceil(batches.batch_size / samples), WAITING_BYTES // (samples * sample_bytes))
            ahead = max(2, waiting // num_workers)
            if hasattr(os, "memfd_create"):
                # One more, because the main process still reads a piece when it requests the next one.
                self._slots = Slots(ahead * num_workers + 1, samples * (sample_bytes + 64) + 4096)
        pieces = _Pieces(dataset, batches, samples, self._slots)
        self._loader = DataLoader(
            pieces,
            sampler=pieces,
            batch_size=None,
            collate_fn=_uncollated,
            num_workers=num_workers,
            prefetch_factor=ahead,
            persistent_workers=num_workers > 0,
            worker_init_fn=stop_with_main_process,
            # The default generator would advance with each resume.
            generator=torch.Generator(),
        )

    @property
    def workers(self):
        """The worker processes, once they run."""
        return [] if self._loader._iterator is None else self._loader._iterator._workers

    def batches(self, images_of, device):
        """A `Feed` of the epoch's batches, from the batch sampler's first batch on."""
        return Feed(self, images_of, device)

    def pieces(self):
        """Iterate (whether the piece ends a batch, dict of tensors from `batch` of the data set).

        IQ that is not page-locked is valid until the next piece; all else stays valid.
        """
        for is_last, piece in self._loader:
            if self._slots:
                piece = self._slots.get(*piece)
            parts = piece.pop("parts")
            batch = {name: self._own(values) for name, values in piece.items()}
            batch["parts"] = [
                (kind, self._own(values, is_iq(kind)), places) for kind, values, places in parts
            ]
            yield is_last, batch

    def _own(self, values, is_iq=False):
        values = torch.from_numpy(values)
        if self._pin_memory:
            return values.pin_memory()
        return values.clone() if self._slots and not is_iq else values


class Feed:
    """Batches on the device: dicts of `images`, float32 [B, C, F, T], `noise`, and `target` if there is one.

    `index` stays on the CPU. On a GPU, a side stream copies and transforms the next batch during training.
    """

    def __init__(self, loader, images_of, device):
        self._loader, self._images_of, self._device = loader, images_of, device
        self._reading_s, self._stalls = 0.0, deque()

    def __iter__(self):
        return self._on_gpu() if self._device.type == "cuda" else self._transformed()

    def waited_s(self):
        """Seconds that training, or the GPU if there is one, waited for data since the last call."""
        waited_s, self._reading_s = self._reading_s, 0.0
        if self._device.type == "cuda":
            waited_s = 0.0
            while self._stalls and self._stalls[0][1].query():
                asked, given = self._stalls.popleft()
                waited_s += asked.elapsed_time(given) / 1e3
        return waited_s

    def _transformed(self):
        whole, asked = [], time.perf_counter()
        for is_last, piece in self._loader.pieces():
            self._reading_s += time.perf_counter() - asked
            piece["images"] = self._images_of(piece.pop("parts"))
            for name in piece.keys() - {"index"}:
                piece[name] = piece[name].to(self._device, non_blocking=True)
            whole.append(piece)
            if is_last:
                yield _joined(whole)
                whole = []
            asked = time.perf_counter()

    def _on_gpu(self):
        training, side = torch.cuda.current_stream(self._device), _side_stream(self._device)
        side.wait_stream(training)  # may still make the front end's tables
        steps = deque([_mark(training)])
        # In pairs: the next batch is queued before training gets this one.
        for (batch, done), _ in itertools.pairwise(itertools.chain(self._beside(side), [None])):
            training.wait_event(done)
            self._stalls.append((steps[-1], _mark(training)))
            for tensor in batch.values():
                if tensor.is_cuda:
                    tensor.record_stream(training)  # allocated on the side stream, freed while in use here
            yield batch
            steps.append(_mark(training))
            if len(steps) > STEPS_QUEUED:
                steps.popleft().synchronize()

    def _beside(self, side):
        """Iterate (batch, event at its end). The stream `side` copies and transforms the batches."""
        batches = self._transformed()
        while True:
            with torch.cuda.stream(side):  # not around the yield, because the caller uses another stream
                batch = next(batches, None)
            if batch is None:
                return
            yield batch, _mark(side)


@functools.cache
def _side_stream(device):
    """One stream for all epochs, since torch reuses memory only on the stream that freed it."""
    return torch.cuda.Stream(device)


def _mark(stream):
    event = torch.cuda.Event(enable_timing=True, blocking=True)  # the process sleeps while it waits
    event.record(stream)
    return event


def _joined(pieces):
    if len(pieces) == 1:
        return pieces[0]
    return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}


# Between the processes


class Slots:
    """Reused shared memory: a worker writes a piece into a slot, and the main process reads it.

    The memory is not in /dev/shm, which is small in containers.
    """

    # A DataLoader's own tensors take new memory for every batch. CPU time with slots, and with such tensors
    # in brackets, on 2 virtual cores: read 64 spectrograms 4.5 ms (11.5), send 250 MB of IQ 45 ms (290),
    # train mae_vit_tiny_patch16 on a batch of that IQ 1.2 s (1.5).

    def __init__(self, count, size, descriptor=None):
        self.count, self.size = count, size
        self._descriptor = descriptor.detach() if descriptor else os.memfd_create("batches")
        os.ftruncate(self._descriptor, count * size)
        self._memory = memoryview(mmap.mmap(self._descriptor, count * size))

    def __reduce__(self):
        return Slots, (self.count, self.size, DupFd(self._descriptor))

    def __del__(self):
        os.close(self._descriptor)

    def put(self, number, piece):
        """Write a piece's arrays, or pickle them if they do not fit. Returns the arguments of `get`."""
        first = end = number % self.count * self.size
        places = []

        def place(buffer):
            nonlocal end
            values = buffer.raw()
            if end + values.nbytes > first + self.size:
                return True  # pickle the array
            self._memory[end : end + values.nbytes] = values
            places.append((end, end + values.nbytes))
            end += -(-values.nbytes // 64) * 64
            return False

        return pickle.dumps(piece, protocol=5, buffer_callback=place), places

    def get(self, pickled, places):
        """The piece, whose arrays lie in the slot."""
        return pickle.loads(pickled, buffers=[self._memory[first:end] for first, end in places])


class _Pieces(Dataset):
    """The main process iterates tasks (number, whether it ends a batch, keys); workers read their pieces."""

    def __init__(self, dataset, batches, samples, slots):
        self.dataset, self.batches, self.samples, self.slots = dataset, batches, samples, slots

    def __len__(self):
        return len(self.dataset)

    def __iter__(self):
        numbers = itertools.count()
        for keys in self.batches:
            for first in range(0, len(keys), self.samples):
                end = first + self.samples
                yield next(numbers), end >= len(keys), keys[first:end]

    def __getitem__(self, task):
        number, is_last, keys = task
        piece = self.dataset.batch(keys)
        return is_last, self.slots.put(number, piece) if self.slots else piece


def _uncollated(piece):
    return piece


def stop_with_main_process(_worker):
    """End a worker by a SIGTERM from the main process only, or with it.

    A scheduler and Ctrl-C signal all processes of a job, and the main process still needs data until it has
    saved.
    """
    end_with_parent(signal.SIGKILL)
    numbers = {signal.SIGTERM, signal.SIGUSR1, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)

    def listen():
        while True:
            received = signal.sigwaitinfo(numbers)
            if received.si_signo == signal.SIGTERM and received.si_pid == os.getppid():
                os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
