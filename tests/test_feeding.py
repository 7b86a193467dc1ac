"""Batches reach the training as their samples are, to the last bit, however they are read, sent and copied."""

import multiprocessing
import os
import re
import time
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from support import write_ci16, write_sigmf

from data import feeding
from data.annotated import AnnotatedWindows
from data.batches import EpochBatches, MaskedSamples, to_images
from data.feeding import Slots, make_loader
from data.images import ImageFiles
from data.labelled import LabelledSamples, Part
from data.sampling import DECIBELS, HELD_OUT_SAMPLE, IMAGE, IQ, SAMPLE, Concatenated, Source, Subset, stream
from data.set_writer import spectrogram_set_writer
from data.spectrogram_set import SpectrogramSet
from data.windows import RecordingWindows
from radio.recordings import find_recordings, open_recording
from radio.samples import DATATYPES, full_datatype, signed
from radio.spectrogram import Spectrogram
from util.errors import UserError

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
PATCHES = 5


def front_end(**kwargs):
    return Spectrogram(**{"n_fft": 64, "duration_s": 0.005, "image_size": (16, 24)} | kwargs)


def write_set(path, count=9):
    rng = np.random.default_rng(0)
    with spectrogram_set_writer(path, count, front_end(), class_names=["Noise", "NR"], masks=True) as packed:
        for number in range(count):
            decibels = rng.standard_normal((1, 16, 24), np.float32)
            packed.add(
                decibels,
                {"name": str(number), "path": str(number // 3)},
                rng.integers(0, 2, (16, 24), np.uint8),
            )
    return SpectrogramSet(path)


def recordings(folder):
    """A few windows of several rates, types and layouts."""
    rng = np.random.default_rng(1)

    def samples(dtype):
        size = np.dtype(dtype).itemsize
        return (
            rng.standard_normal(6000).astype(dtype)
            if np.dtype(dtype).kind == "f"
            else rng.integers(0, 256, 6000 * size, np.uint8).view(dtype)
        ).tobytes()

    folder.mkdir()
    for number, (datatype, dtype) in enumerate(
        (
            ("ci16_le", "<i2"),
            ("ci16_be", ">i2"),
            ("ci8", "i1"),
            ("cu8", "u1"),
            ("cu16_le", "<u2"),
            ("ri16_le", "<i2"),
            ("cf32_le", "<f4"),
            ("cf32_be", ">f4"),
            ("cf64_le", "<f8"),
            ("ci32_le", "<i4"),
        )
    ):
        write_sigmf(folder, samples(dtype), datatype, f"{number}", sample_rate=100e3 * (1 + number % 2))
    write_sigmf(folder, samples("<i2"), "ci16_le", "channels", sample_rate=100e3, num_channels=2)
    np.save(folder / "planes.npy", np.frombuffer(samples("<i2"), "<i2").reshape(2, 3000))
    np.save(folder / "pairs.npy", np.frombuffer(samples("<f4"), "<f4").reshape(3000, 2))
    return RecordingWindows.from_recordings(find_recordings(folder, 100e3), front_end())


def images(folder):
    folder.mkdir()
    rng = np.random.default_rng(2)
    for number in range(4):
        Image.fromarray(rng.integers(0, 256, (20, 30), np.uint8)).save(folder / f"{number}.png")
    return ImageFiles(sorted(folder.iterdir()), (16, 24))


def of_all_kinds(folder):
    air, packed = recordings(folder / "air"), write_set(folder / "set")
    return Concatenated([packed, air, images(folder / "images"), Subset(packed, [7, 1])])


def sample_alone(source, epoch, index, training, made):
    """(noise, image) as one sample at a time is loaded and transformed."""
    rng = stream(3, SAMPLE if training else HELD_OUT_SAMPLE, epoch if training else 0, index).generator()
    noise = rng.random(PATCHES, dtype=np.float32)
    kind, values = source.load(index, rng if training else None, epoch)
    values = torch.from_numpy(values)[None]
    image = {IQ: made, DECIBELS: made.from_decibels, IMAGE: torch.Tensor.float}[kind](values)
    return noise, image[0]


def delivered(
    source, training=True, workers=0, batch_size=7, epoch=2, device=CPU, made=None, pin=False, first_batch=0
):
    """{sample: (noise, image)} of an epoch."""
    batches = EpochBatches(len(source), batch_size, 3, shuffle=True)
    batches.epoch, batches.first_batch = epoch, first_batch
    loader = make_loader(MaskedSamples(source, PATCHES, 3, training), batches, workers, pin)
    found = {}
    for batch in loader.batches(partial(to_images, front_end=made or front_end(), device=device), device):
        for index, noise, image in zip(batch["index"].tolist(), batch["noise"], batch["images"], strict=True):
            assert index not in found
            found[index] = (noise.cpu().numpy(), image)
    return found


@pytest.mark.parametrize("training", [True, False])
def test_batches_are_their_samples_to_the_last_bit(tmp_path, monkeypatch, training):
    source, made = of_all_kinds(tmp_path), front_end()
    expected = {index: sample_alone(source, 2, index, training, made) for index in range(len(source))}
    for piece_bytes, workers in ((2**26, 0), (2**26, 2), (5000, 2)):
        monkeypatch.setattr(feeding, "PIECE_BYTES", piece_bytes)
        found = delivered(source, training, workers)
        assert found.keys() == expected.keys()
        for index, (noise, image) in found.items():
            assert np.array_equal(noise, expected[index][0])
            assert torch.equal(image, expected[index][1]), index


@pytest.mark.parametrize("name", [name for name in DATATYPES if name[0] == "c"])
def test_integers_go_to_the_device_as_they_are_stored(tmp_path, name):
    """All of small integers, and both ends of their range, come to the bits that `Recording.read` has."""
    datatype = full_datatype("a", name)
    dtype = np.dtype({"f": "<f", "i": "<i", "u": "<u"}[name[1]] + str(int(name[2:]) // 8))
    values = np.arange(2**17).astype(dtype) if dtype.kind != "f" else np.linspace(-2, 2, 2**17).astype(dtype)
    [recording] = open_recording(write_sigmf(tmp_path, values.tobytes(), datatype))
    stored = recording.read_stored(3, 60000)
    small = dtype.kind != "f" and dtype.itemsize <= 2
    assert stored.dtype == (dtype.newbyteorder("=") if small else np.complex64)
    values = signed(torch.from_numpy(stored))
    if small:
        values = torch.view_as_complex(values.float() / 2.0 ** (8 * dtype.itemsize - 1))
    assert np.array_equal(values.numpy(), recording.read(3, 60000))


def test_an_epoch_that_is_begun_in_the_middle_has_the_rest(tmp_path):
    source = write_set(tmp_path / "set")
    whole, rest = (
        delivered(source, workers=1, batch_size=2),
        delivered(source, workers=1, batch_size=2, first_batch=3),
    )
    assert list(rest) == list(whole)[6:]
    assert all(torch.equal(image, whole[index][1]) for index, (_, image) in rest.items())


# Reading


class Reads:
    """What `os.preadv` was asked for: (first byte, buffers)."""

    def __init__(self, monkeypatch):
        self.found, self.real = [], os.preadv
        monkeypatch.setattr(os, "preadv", self)

    def __call__(self, descriptor, buffers, position):
        self.found.append((position, len(buffers)))
        return self.real(descriptor, buffers, position)


def no_rng(_place):
    return None


def test_a_batch_of_a_set_is_read_in_order_neighbours_at_once(tmp_path, monkeypatch):
    source = write_set(tmp_path / "set", 12)
    one_by_one = {index: source.load(index, None)[1] for index in range(12)}
    reads = Reads(monkeypatch)
    order = [9, 2, 8, 0, 5, 1, 11, 2]  # one twice
    [(kind, values, places)] = source.load_many(order, no_rng, 0)
    assert (kind, places) == (DECIBELS, list(range(8)))
    assert all(np.array_equal(value, one_by_one[index]) for value, index in zip(values, order, strict=True))
    size = 2 * 16 * 24
    first = reads.found[0][0]
    assert reads.found == [
        (first, 3),
        (first + 2 * size, 1),
        (first + 5 * size, 1),
        (first + 8 * size, 2),
        (first + 11 * size, 1),
    ]
    masks = source.target_many(order, 0)
    assert all(np.array_equal(mask, source.mask(index)) for mask, index in zip(masks, order, strict=True))


def test_windows_side_by_side_are_read_at_once_and_each_file_is_opened_once(tmp_path, monkeypatch):
    for name in "ab":
        write_ci16(tmp_path, name, duration_s=0.05)
    source = RecordingWindows.from_recordings(find_recordings(tmp_path), front_end())
    order = [13, 3, 12, 1, 2, 19]
    expected = [source.load(index, None)[1] for index in order]
    reads, opened, real = Reads(monkeypatch), [], open
    monkeypatch.setattr(
        "builtins.open", lambda path, *args, **kwargs: opened.append(path) or real(path, *args, **kwargs)
    )
    [(kind, rows, places)] = source.load_many(order, no_rng, 0)
    assert (kind, rows.dtype, rows.shape, places) == (IQ, np.int16, (6, 1000, 2), list(range(6)))
    assert reads.found == [(8000, 2), (36000, 1), (4000, 3)]
    assert [os.path.basename(path) for path in opened] == ["b.sigmf-data", "a.sigmf-data"]
    for row, iq in zip(rows, expected, strict=True):
        assert np.array_equal(row.astype(np.float32).view(np.complex64)[:, 0] / 2**15, iq)


def test_a_system_call_may_be_cut_short(tmp_path, monkeypatch):
    source = write_set(tmp_path / "set", 12)
    whole = source.spectrograms.read(0, 12)
    real = os.preadv
    monkeypatch.setattr(
        os, "preadv", lambda file, buffers, at: real(file, [memoryview(buffers[0])[:100]], at)
    )
    assert np.array_equal(source.spectrograms.read_many([5, 1, 2, 3]), whole[[5, 1, 2, 3]])
    assert np.array_equal(source.spectrograms.read(0, 12), whole)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda path: os.truncate(path, 5000), "bytes or more, as when it was opened; found 5000"),
        (lambda path: path.unlink(), "; found no such file, though it was there when the run began"),
    ],
)
@pytest.mark.parametrize("what", ["recording", "spectrograms.npy", "masks.npy"])
def test_a_batch_names_the_file_that_was_cut_or_deleted(tmp_path, what, change, found):
    if what == "recording":
        path = write_ci16(tmp_path).with_suffix(".sigmf-data")
        source = RecordingWindows.from_recordings(find_recordings(path), front_end())
    else:
        source, path = write_set(tmp_path / "set", 40), tmp_path / "set" / what

    def read(indices):
        read = (
            source.target_many
            if what == "masks.npy"
            else lambda *args: source.load_many(args[0], no_rng, *args[1:])
        )
        return read(indices, 0)

    read([len(source) - 1, 0])
    change(path)
    with pytest.raises(UserError, match=re.escape(f"{path}: expected ") + ".*" + re.escape(found) + "$"):
        read([len(source) - 1, 0])


def test_samples_that_are_not_finite_are_named_in_a_batch(tmp_path):
    iq = np.ones(4000, np.complex64)
    iq[2600] = np.nan
    source = RecordingWindows.from_recordings(
        find_recordings(write_sigmf(tmp_path, iq.tobytes(), "cf32_le", sample_rate=100e3)), front_end()
    )
    source.load_many([0, 6], no_rng, 0)
    with pytest.raises(UserError, match=r"a\.sigmf-meta: expected finite samples, found .* at sample 2600;"):
        source.load_many([0, 5, 6], no_rng, 0)


def test_targets_come_with_their_samples(tmp_path):
    about = {
        "core:sample_start": 3000,
        "core:sample_count": 9000,
        "core:label": "NR",
        "core:freq_lower_edge": 2.4e9,
        "core:freq_upper_edge": 2.405e9,
    }
    air = AnnotatedWindows(find_recordings(write_ci16(tmp_path / "air", annotations=[about])), front_end())
    for source in (air, write_set(tmp_path / "set", 20)):
        part = Part(source, np.arange(len(source))[::-1])
        batches = EpochBatches(len(part), 8, 0, shuffle=True)
        for workers in (0, 1):
            numbers = []
            for batch in make_loader(LabelledSamples(part, 0), batches, workers, False).batches(
                partial(to_images, front_end=front_end(), device=CPU), CPU
            ):
                for number, image, target in zip(
                    batch["index"].tolist(), batch["images"], batch["target"], strict=True
                ):
                    index = len(source) - 1 - number
                    assert np.array_equal(target, source.target(index))
                    kind, values = source.load(index, None)
                    values = torch.from_numpy(values)[None]
                    alone = front_end()(values) if kind == IQ else front_end().from_decibels(values)
                    assert torch.equal(image, alone[0])
                    numbers.append(number)
            assert sorted(numbers) == list(range(len(part)))


# Sending


def piece_of(*arrays):
    return {"parts": [(IMAGE, values, [0]) for values in arrays], "index": np.arange(3)}


def same_piece(found, piece):
    return np.array_equal(found["index"], piece["index"]) and all(
        np.array_equal(ours, theirs) and ours.dtype == theirs.dtype and kind == IMAGE
        for (kind, ours, _), (_, theirs, _) in zip(found["parts"], piece["parts"], strict=True)
    )


def test_slots_hold_pieces_of_any_arrays():
    slots = Slots(3, 10000)
    rng = np.random.default_rng(0)
    pieces = [
        piece_of(
            rng.standard_normal((3, 5), np.float32),
            np.empty((0, 4), np.int64),
            np.array([1j, 2], np.complex64),
        ),
        piece_of(np.arange(3, dtype=">u2"), np.asfortranarray(rng.random((40, 25)))),
        piece_of(rng.random(5000), np.ones(7)),  # larger than a slot
    ]
    sent = [slots.put(number, piece) for number, piece in enumerate(pieces, start=7)]
    assert all(same_piece(slots.get(*one), piece) for one, piece in zip(sent, pieces, strict=True))
    again = slots.put(10, piece_of(np.zeros(9)))  # where the first was
    assert same_piece(slots.get(*again), piece_of(np.zeros(9)))
    assert same_piece(slots.get(*sent[1]), pieces[1])


def fill(slots, connection):
    connection.send(slots.put(1, piece_of(np.full(4, 5, np.int16))))


@pytest.mark.slow
def test_processes_that_are_no_copies_share_slots_too():
    """As they are by default from Python 3.14 on."""
    slots, (ours, theirs) = Slots(2, 1000), multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=fill, args=(slots, theirs))
    process.start()
    process.join(240)
    assert process.exitcode == 0
    assert same_piece(slots.get(*ours.recv()), piece_of(np.full(4, 5, np.int16)))


class Larger(Source):
    """Samples larger than it says."""

    image_size, sample_bytes = (16, 24), 10

    def __len__(self):
        return 12

    def load(self, index, rng, epoch=0):
        return IMAGE, np.full((1, 16, 24), index, np.float32)


def test_samples_may_be_larger_than_was_said():
    found = delivered(Larger(), workers=2, batch_size=5)
    assert [int(found[index][1].unique()) for index in range(12)] == list(range(12))


def test_a_feed_that_was_left_begins_again():
    for workers in (0, 2):
        batches = EpochBatches(12, 2, 0, shuffle=True)
        loader = make_loader(MaskedSamples(Larger(), PATCHES, 0, True), batches, workers, False)
        for _ in range(2):
            next(iter(loader.batches(partial(to_images, front_end=front_end(), device=CPU), CPU)))
        for epoch in range(3):
            batches.epoch = epoch
            feed = loader.batches(partial(to_images, front_end=front_end(), device=CPU), CPU)
            order = [index for batch in feed for index in batch["index"].tolist()]
            assert order == [index for keys in batches for _, index in keys]


def test_what_was_delivered_stays():
    """The images of a batch are its own: slots are written again while it may be in use."""
    batches = EpochBatches(12, 1, 0, shuffle=False)
    loader = make_loader(MaskedSamples(Larger(), PATCHES, 0, True), batches, 1, False)
    held = [
        batch
        for epoch in range(3)
        for batch in loader.batches(partial(to_images, front_end=front_end(), device=CPU), CPU)
    ]
    assert [int(batch["images"].unique()) for batch in held] == list(range(12)) * 3
    noises = torch.cat([batch["noise"] for batch in held]).view(3, 12, PATCHES)
    assert torch.equal(noises[0], noises[2])
    assert len(noises[0].unique()) == 12 * PATCHES


class Iq(Source):
    """256 samples of IQ, 256 KB each, full of the sample's number."""

    sample_bytes = 2**18

    def __len__(self):
        return 256

    def load(self, index, rng, epoch=0):
        return IQ, np.full((self.sample_bytes // 4, 2), index, np.int16)


class Levels:
    """A front end whose images say which number the IQ is full of."""

    def decibels(self, iq):
        assert (iq == iq[:, :1, :1]).all()
        return iq[:, :1, :1, None].float()

    def from_decibels(self, decibels):
        return decibels


@pytest.mark.parametrize(("waiting_bytes", "pieces"), [(2**31, 87), (2**24, 17), (0, 5)])
def test_memory_does_not_grow_with_the_batch(monkeypatch, waiting_bytes, pieces):
    """A batch of 64 MB is read and sent in pieces of 1 MB, of which no more wait than there is memory for."""
    monkeypatch.setattr(feeding, "PIECE_BYTES", 2**20)
    monkeypatch.setattr(feeding, "WAITING_BYTES", waiting_bytes)
    sizes, real = [], os.ftruncate

    def truncate(descriptor, size):
        sizes.append(size)
        real(descriptor, size)

    monkeypatch.setattr(os, "ftruncate", truncate)
    loader = make_loader(MaskedSamples(Iq(), PATCHES, 0, True), EpochBatches(256, 256, 0, True), 2, False)
    [batch] = loader.batches(partial(to_images, front_end=Levels(), device=CPU), CPU)
    assert batch["images"].flatten().tolist() == batch["index"].tolist()
    assert sum(sizes) < pieces * 1.1 * 2**20


def test_the_time_that_data_take_is_waited_for():
    class Slow(Larger):
        def load(self, index, rng, epoch=0):
            time.sleep(0.02)
            return super().load(index, rng)

    loader = make_loader(MaskedSamples(Slow(), PATCHES, 0, True), EpochBatches(12, 4, 0, True), 0, False)
    feed = loader.batches(partial(to_images, front_end=front_end(), device=CPU), CPU)
    assert len(list(feed)) == 3
    assert feed.waited_s() >= 0.24
    assert feed.waited_s() == 0


# On a GPU


@needs_gpu
@pytest.mark.parametrize("pin", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_gpu_gets_what_is_read(tmp_path, monkeypatch, workers, pin):
    gpu, source = torch.device("cuda"), of_all_kinds(tmp_path)
    made = front_end().to(gpu)
    monkeypatch.setattr(feeding, "PIECE_BYTES", 5000)
    expected = delivered(source)
    for _ in range(3):
        found = delivered(source, workers=workers, pin=pin, device=gpu, made=made)
        assert found.keys() == expected.keys()
        for index, (noise, image) in found.items():
            assert np.array_equal(noise, expected[index][0])
            torch.testing.assert_close(image.cpu(), expected[index][1], atol=2e-3, rtol=1e-3)


class Marked(Source):
    """Images full of their number, made slowly on the device."""

    image_size = (256, 256)

    def __init__(self, cycles):
        self.cycles = cycles

    def __len__(self):
        return 4096

    def load(self, index, rng, epoch=0):
        return self.made, np.array([index])

    def made(self, numbers, front_end, device):
        torch.cuda._sleep(self.cycles)
        return (
            numbers.to(device, non_blocking=True)[:, :, None, None].float().expand(-1, -1, 256, 256).clone()
        )


@needs_gpu
@pytest.mark.parametrize(("making", "training"), [(10**7, 0), (0, 10**7), (10**6, 10**6)])
def test_a_gpu_waits_for_its_images_and_keeps_them_while_they_are_used(making, training):
    """Whichever of the two streams is the slower, and though the process is ahead of both."""
    gpu = torch.device("cuda")
    batches = EpochBatches(4096, 64, 0, shuffle=True)
    loader = make_loader(MaskedSamples(Marked(making), PATCHES, 0, True), batches, 2, True)
    feed = loader.batches(partial(to_images, front_end=front_end(normalize="none"), device=gpu), gpu)
    sums, noises, numbers = [], [], []
    for batch in feed:
        assert torch.cuda.current_stream() == torch.cuda.default_stream()
        images, noise = batch.pop("images"), batch.pop("noise")
        torch.cuda._sleep(training)
        sums.append(images.double().sum(dim=(1, 2, 3)))
        noises.append(noise.double().sum(dim=1))
        numbers += batch["index"].tolist()
        del images, noise
    assert numbers == [index for keys in batches for _, index in keys]
    assert torch.equal(torch.cat(sums).cpu(), 65536 * torch.tensor(numbers, dtype=torch.float64))
    draws = [
        stream(0, SAMPLE, index=index).generator().random(PATCHES, dtype=np.float32) for index in numbers
    ]
    alone = torch.from_numpy(np.stack(draws))
    torch.testing.assert_close(torch.cat(noises).cpu(), alone.double().sum(dim=1))
    waited_s = feed.waited_s()
    assert waited_s > 0.05 if making > training else waited_s >= 0
