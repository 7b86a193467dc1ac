"""A recording's samples to where they are computed with, as they lie in their file: nothing is converted on the way."""

import contextlib
import operator
import queue
from concurrent.futures import ThreadPoolExecutor

import torch

from radio.samples import signed
from util.errors import UserError
from util.files import read_pieces

# Most bytes of a read, and fewest where a span is divided among threads: asking for them costs little beside reading them.
PIECE_BYTES, LEAST_BYTES = 2**25, 2**20
# Buffers besides those that threads read into, which the device copies from meanwhile.
SPARE_BUFFERS = 4


class Channels:
    """The channels of one stretch, read together.

    Integers of 8 and 16 bits in the machine's byte order come as they lie in the file, all channels in one read, unsigned
    ones less half of their range; everything else comes as `Recording.read` gives it.

    Args:
        recordings: the `Recording`s of a stretch's channels.
    """

    def __init__(self, recordings):
        self.recordings = list(recordings)
        layout = self.recordings[0].layout
        small = layout.dtype.kind in "iu" and layout.dtype.itemsize <= 2 and layout.dtype.isnative
        self.as_in_file = small and layout.components == 2 and not layout.plane_bytes
        self.dtype = {1: torch.int8, 2: torch.int16}[layout.dtype.itemsize] if self.as_in_file else torch.float32
        numbers = [one.layout.channel for one in self.recordings] if self.as_in_file else range(len(self.recordings))
        self.numbers = list(numbers)  # of the channels, among those that are read
        self.read_channels = layout.channels if self.as_in_file else len(self.recordings)

    @property
    def sample_bytes(self):
        """Of all channels that are read."""
        return 2 * self.read_channels * self.dtype.itemsize

    def read(self, start, out):
        """Fill `out` [count, read_channels, 2], on the CPU, with I and Q from sample `start` on; `numbers` says which of the
        channels are the recordings'.

        Raises:
            ValueError, UserError: as `Recording.read`.
        """
        start, count, first = operator.index(start), len(out), self.recordings[0]
        if not self.as_in_file:
            for number, one in enumerate(self.recordings):
                out[:, number] = torch.view_as_real(torch.from_numpy(one.read(start, count)))
            return
        if start < 0 or start + count > first.num_samples:
            raise ValueError(f"{first.name}: {start=} {count=} is outside of the {first.num_samples} samples")
        room, filled = out.numpy()[None], 0
        offset = first.layout.byte_offset + start * first.layout.frame_bytes
        with contextlib.suppress(OSError), open(first.layout.data_file, "rb", buffering=0) as file:
            short = read_pieces(file, [(offset, 0)], room)
            filled = short[1] if short else room.nbytes
        if filled < room.nbytes:
            first.read(start, count)  # says what is wrong with the file
            raise UserError(f"{first.layout.data_file}: expected {room.nbytes} bytes from {offset}; found {filled}")
        signed(out.numpy().view(first.layout.dtype), in_place=True)

    def empty(self, count, **kwargs):
        """Room for `read`."""
        return torch.empty(count, self.read_channels, 2, dtype=self.dtype, **kwargs)


class _Staging:
    """Pieces of a span from the file to the device, by way of a ring of buffers that the device copies from by itself."""

    def __init__(self, channels, device, longest, threads, busy):
        self.channels, self.device, self.busy = channels, device, busy
        self.on_gpu = device.type == "cuda"
        share = max(LEAST_BYTES, -(-longest * channels.sample_bytes // threads))
        self.samples = max(1, min(PIECE_BYTES, share) // channels.sample_bytes)  # of a piece
        self.free = queue.SimpleQueue()
        for _ in range(threads + SPARE_BUFFERS):
            self.free.put((None, None))

    def fill(self, start, room, stream):
        """In a reading thread: samples from `start` on into `room` on the device."""
        buffer, copied = self.free.get()
        try:
            with torch.cuda.stream(stream) if self.on_gpu else contextlib.nullcontext():
                if buffer is None:
                    buffer = self.channels.empty(self.samples, pin_memory=self.on_gpu)
                if copied is not None:
                    copied.synchronize()
                part = buffer[: len(room)]
                with self.busy():
                    self.channels.read(start, part)
                room.copy_(part, non_blocking=True)
                if self.on_gpu:
                    copied = torch.cuda.Event(blocking=True)  # who waits for it sleeps
                    copied.record(stream)
        finally:
            self.free.put((buffer, copied))


def spans_on(device, channels, spans, threads, busy=contextlib.nullcontext):
    """Spans of a stretch, one after another, on a device.

    While one is computed with, the next is read by several threads and copied by a stream of its own.

    Args:
        channels: `Channels`.
        spans: list of (first sample, number of samples).
        threads: that read.
        busy: makes a context, which a thread enters while it reads.

    Yields:
        [samples, read_channels, 2] of `channels.dtype`. It holds, for what was given to the current stream before, until the
        next is asked for.
    """
    longest = max(count for _, count in spans)
    staging = _Staging(channels, device, longest, threads, busy)
    rooms = [channels.empty(longest, device=device) for _ in spans[:2]]
    streams = [torch.cuda.Stream(device) if staging.on_gpu else None for _ in rooms]
    coming = {}  # number of a span: futures of its pieces

    def begin(number):
        (start, count), room, stream = spans[number], rooms[number % 2], streams[number % 2]
        if stream:
            stream.wait_stream(torch.cuda.current_stream(device))  # which may still compute with what lies there
        coming[number] = [pool.submit(staging.fill, start + first, room[first : min(first + staging.samples, count)], stream)
                          for first in range(0, count, staging.samples)]  # fmt: skip

    with ThreadPoolExecutor(threads) as pool:
        try:
            for number in range(len(rooms)):
                begin(number)
            for number, (_, count) in enumerate(spans):
                for piece in coming.pop(number):
                    piece.result()
                if streams[number % 2]:
                    torch.cuda.current_stream(device).wait_stream(streams[number % 2])
                yield rooms[number % 2][:count]
                if number + 2 < len(spans):
                    begin(number + 2)
        finally:
            pool.shutdown(cancel_futures=True)
            for stream in filter(None, streams):
                stream.synchronize()  # before the memory that it copies goes back
