"""Read spans of a recording onto a device, in the type that they are stored in."""

import contextlib
import itertools
import queue
from concurrent.futures import ThreadPoolExecutor

import torch

from radio.samples import signed
from util.files import read_pieces

# A span is read in pieces by several threads: most bytes of a piece, and fewest that are worth a thread.
PIECE_BYTES, LEAST_BYTES = 2**25, 2**20
SPARE_BUFFERS = 4  # the device copies from these while threads read into others


class Channels:
    """The channels of one stretch, read together.

    Integers of 8 and 16 bits in native byte order stay integers, unsigned ones less half of their range.
    One read gives all channels of the file. Other types come as `Recording.read` gives them.

    Args:
        recordings: the `Recording`s of a stretch's channels.
    """

    def __init__(self, recordings):
        self.recordings = list(recordings)
        self.sample_rate_hz, self.is_real = self.recordings[0].sample_rate_hz, self.recordings[0].is_real
        layout = self.recordings[0].layout
        self.as_in_file = layout.stored_dtype == layout.dtype and not (layout.plane_bytes or layout.swap_iq)
        if self.as_in_file:
            self.dtype = {1: torch.int8, 2: torch.int16}[layout.dtype.itemsize]
            self.read_channels = layout.channels
            self.numbers = [one.layout.channel for one in self.recordings]
        else:
            self.dtype, self.read_channels = torch.float32, len(self.recordings)
            self.numbers = list(range(self.read_channels))
        self.sample_bytes = 2 * self.read_channels * self.dtype.itemsize  # of all channels

    def read(self, start, out):
        """Fill `out` [count, read_channels, 2], on the CPU, with I and Q from sample `start` on.

        The recordings are the channels `numbers`. Errors as in `Recording.read`.
        """
        first, count = self.recordings[0], len(out)
        if not self.as_in_file:
            for number, one in enumerate(self.recordings):
                out[:, number] = torch.view_as_real(torch.from_numpy(one.read(start, count)))
            return
        layout = first.layout
        offset = layout.byte_offset + first.checked_start(start, count) * layout.frame_bytes
        try:
            with open(layout.data_file, "rb", buffering=0) as file:
                short = read_pieces(file, [(offset, 0)], out.numpy()[None])
        except OSError as error:
            raise first.not_read(error) from error
        if short:
            raise first.cut(start, count, short[1] // layout.frame_bytes)
        signed(out.numpy().view(layout.dtype), in_place=True)

    def empty(self, count, **kwargs):
        """A tensor for `read`."""
        return torch.empty(count, self.read_channels, 2, dtype=self.dtype, **kwargs)


class _Staging:
    """Moves pieces of a span from the file to the device through buffers, which the device copies from."""

    def __init__(self, channels, device, longest, threads, busy):
        self.channels, self.busy, self.on_gpu = channels, busy, device.type == "cuda"
        share = max(LEAST_BYTES, -(-longest * channels.sample_bytes // threads))
        self.samples = max(1, min(PIECE_BYTES, share) // channels.sample_bytes)  # of a piece
        self.free = queue.SimpleQueue()
        for _ in range(threads + SPARE_BUFFERS):
            self.free.put((None, None))

    def fill(self, start, room, stream):
        """In a reading thread: copy samples from `start` on into `room` on the device."""
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
                    copied = torch.cuda.Event(blocking=True)  # a thread that waits for it sleeps
                    copied.record(stream)
        finally:
            self.free.put((buffer, copied))


def spans_on(device, channels, spans, threads, busy=contextlib.nullcontext):
    """Spans of a stretch, one after another, on a device.

    Threads read the next span, and a stream of its own copies it, while the caller computes with this one.

    Args:
        channels: `Channels`.
        spans: list of (first sample, number of samples).
        threads: that read.
        busy: makes a context, which a thread enters while it reads.

    Yields:
        [samples, read_channels, 2] of `channels.dtype`, for work that the current stream is given before the
        caller asks for the next span.
    """
    longest = max(count for _, count in spans)
    staging = _Staging(channels, device, longest, threads, busy)
    rooms = [channels.empty(longest, device=device) for _ in spans[:2]]
    streams = [torch.cuda.Stream(device) if staging.on_gpu else None for _ in rooms]
    coming = {}  # number of a span: futures of its pieces

    def begin(number):
        (start, count), room, stream = spans[number], rooms[number % 2], streams[number % 2]
        if stream:
            stream.wait_stream(torch.cuda.current_stream(device))  # it may still compute with this room
        pieces = [(first, min(first + staging.samples, count)) for first in range(0, count, staging.samples)]
        coming[number] = [
            pool.submit(staging.fill, start + first, room[first:end], stream) for first, end in pieces
        ]

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


def windows_of(samples, starts, window):
    """Windows of samples [N, 2], the first at 0, as views [W, window, 2], one for each run of equal steps."""
    steps = [b - a for a, b in itertools.pairwise(starts)]
    first = 0
    while first < len(starts):
        end = first + 1
        while end < len(starts) and steps[end - 1] == steps[first]:
            end += 1
        step = steps[first] if end > first + 1 else 1
        from_first = slice(starts[first] - starts[0], starts[end - 1] - starts[0] + window)
        yield samples[from_first].unfold(0, window, step).transpose(1, 2)
        first = end
