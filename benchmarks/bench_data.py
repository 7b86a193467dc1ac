"""How many windows a second each source delivers on one core, beside a loader that opens a TIFF for every sample.

    python benchmarks/bench_data.py

A window is 16 ms at 61.44 Msps; what is delivered are float32 batches [32, 1, 224, 224], ready for the model. All run in
one process on one core (affinity to it, one torch thread, no loading processes), by turns, from files written to a
temporary folder beforehand (0.9 GB) and in the page cache since: the disk is not measured. The process keeps the memory
that it frees (see `util.device.keep_freed_memory`), as the main scripts do, to the good of all; it grows to 2 GB.

- "TIFF a sample" is what the field's scripts do: a float32 TIFF of linear power (Hann 1024, hop 512: 1024 x 1919 values)
  opened with PIL, log, fixed range, antialiased bicubic resize, fixed mean and deviation, all in torch and torchvision,
  stacked by the DataLoader. Its STFT was done beforehand and is not in its time.
- The others are opened and batched as `main_pretrain.py` does it: front end, normalization and mask noise are in their
  time, and for recordings the STFT.
"""

import argparse
import itertools
import json
import tempfile
import time
from functools import partial
from pathlib import Path

import common
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from data import registry
from data.batches import EpochBatches, MaskedSamples, to_images
from data.feeding import make_loader
from data.set_writer import spectrogram_set_writer
from radio.spectrogram import Spectrogram
from util.device import keep_freed_memory
from util.errors import UserError, reported

SAMPLE_RATE_HZ = 61.44e6
BATCH_SIZE = 32
NUM_PATCHES = 196
SEED = 0
TURN_S = 2.0  # a turn goes on for at least so long

WINDOWS_A_RECORDING = 8
SET_COPIES = 64  # of every spectrogram, so that an epoch of the set takes about as long as the others'
PNG_SIZE = (256, 256)  # of the MathWorks frames
HABIT = "TIFF a sample"


def get_args_parser():
    parser = argparse.ArgumentParser(
        description="Windows per second of each data source on one core.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    common.add_arguments(parser, repeats=9)
    parser.add_argument("--windows", type=int, default=32, help="windows of 16 ms to write; each takes 27 MB")
    return parser


# The data


def ofdm_window(rng, num_samples):
    """An OFDM carrier that comes and goes in slots, over noise: complex64 [num_samples], magnitudes well below 1.

    Subcarriers of 30 kHz as in NR: 2048 samples at 61.44 Msps and a cyclic prefix of 144, 14 symbols a slot.
    """
    fft, prefix, symbols_a_slot = 2048, 144, 14
    slots = num_samples // ((fft + prefix) * symbols_a_slot)
    grid = np.zeros((slots * symbols_a_slot, fft), np.complex64)
    blocks = int(rng.integers(24, 163))
    first = int(rng.integers(fft - 12 * blocks))
    bits = rng.integers(0, 2, (2, len(grid), 12 * blocks), dtype=np.int8) * 2 - 1
    grid[:, first : first + 12 * blocks] = bits[0] + 1j * bits[1]
    grid *= np.repeat(rng.random(slots) < 0.7, symbols_a_slot)[:, None]
    symbols = np.fft.ifft(np.fft.ifftshift(grid, axes=1), axis=1)
    symbols *= 0.05 * fft / np.sqrt(24 * blocks)

    iq = rng.standard_normal((num_samples, 2), dtype=np.float32).view(np.complex64)[:, 0] * np.float32(1e-3)
    carrier = np.concatenate([symbols[:, -prefix:], symbols], axis=1).ravel()
    iq[: len(carrier)] += carrier
    return iq


def write_sigmf(path, iq):
    """Complex64 samples as a ci16_le recording: `path`.sigmf-data and .sigmf-meta."""
    np.round(iq.view(np.float32) * 32767).astype("<i2").tofile(path.with_suffix(".sigmf-data"))
    metadata = {
        "global": {"core:datatype": "ci16_le", "core:sample_rate": SAMPLE_RATE_HZ, "core:version": "1.2.0"},
        "captures": [{"core:sample_start": 0, "core:frequency": 3.5e9}],
        "annotations": [],
    }
    path.with_suffix(".sigmf-meta").write_text(json.dumps(metadata))


def write_tiff(path, iq):
    """Linear power of the STFT, relative to full scale, lowest frequency first: float32 [1024, frames]."""
    window = torch.hann_window(1024)
    spectrum = torch.stft(torch.from_numpy(iq), 1024, 512, window=window / window.sum(), center=False, return_complex=True)
    Image.fromarray(torch.fft.fftshift(spectrum.abs().square(), dim=0).numpy()).save(path)


def write_png(path, iq):
    """The 100 dB below the strongest cell as grey, high frequency at the top."""
    decibels = Spectrogram(image_size=PNG_SIZE, normalize="none")(torch.from_numpy(iq)[None])[0, 0]
    grey = (255 * (1 + (decibels - decibels.max()) / 100)).clamp(0, 255).to(torch.uint8)
    Image.fromarray(grey.flip(0).numpy()).save(path)


def write_data(folder, num_windows, front_end):
    """The same windows in every form, each in a folder of its own below `folder`."""
    rng = np.random.default_rng(SEED)
    num_samples = front_end.num_samples(SAMPLE_RATE_HZ)
    for kind in ("sigmf", "npy", "tiff", "png"):
        (folder / kind).mkdir()
    with spectrogram_set_writer(folder / "set", SET_COPIES * num_windows, front_end) as packed:
        for start in range(0, num_windows, WINDOWS_A_RECORDING):
            numbers = range(start, min(start + WINDOWS_A_RECORDING, num_windows))
            windows = [ofdm_window(rng, num_samples) for _ in numbers]
            recording = np.concatenate(windows)
            write_sigmf(folder / "sigmf" / f"{start:04}", recording)
            np.save(folder / "npy" / f"{start:04}.npy", recording)
            for number, iq in zip(numbers, windows, strict=True):
                write_tiff(folder / "tiff" / f"{number:04}.tif", iq)
                write_png(folder / "png" / f"{number:04}.png", iq)
                decibels = front_end.decibels(torch.from_numpy(iq)[None])[0].numpy()
                for copy in range(SET_COPIES):
                    packed.add(decibels, {"name": f"window {number}, copy {copy}", "path": f"{start:04}.sigmf-meta"})


# The loaders, each an endless stream of batches


class TiffASample(Dataset):
    """The field's habit, independent of the project's own images.py."""

    def __init__(self, folder):
        self.paths = sorted(folder.glob("*.tif"))

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        with Image.open(self.paths[index]) as picture:
            power = transforms.pil_to_tensor(picture)  # (1, 1024, 1919)
        decibels = 10 * torch.log10(power + 1e-12)
        scaled = (decibels + 120) / 119.5
        image = transforms.resize(scaled, [224, 224], InterpolationMode.BICUBIC, antialias=True)
        return transforms.normalize(image, mean=[0.451], std=[0.043])


def habit_stream(folder):
    loader = DataLoader(TiffASample(folder), batch_size=BATCH_SIZE, shuffle=True)
    while True:
        yield from loader


def project_stream(folder, *flags):
    """Batches of a folder as `main_pretrain.py` makes them, epoch after epoch."""
    parser = argparse.ArgumentParser()
    registry.add_data_arguments(parser)
    args = parser.parse_args(["--data_path", str(folder), *flags])
    found = registry.find(args.data_path)
    front_end = registry.front_end_for(found, args)
    source = registry.open_source(found, front_end, args)

    batches = EpochBatches(len(source), BATCH_SIZE, SEED, shuffle=True)
    loader = make_loader(MaskedSamples(source, NUM_PATCHES, SEED, training=True), batches, num_workers=0, pin_memory=False)
    device = torch.device("cpu")
    for batches.epoch in itertools.count():
        for batch in loader.batches(partial(to_images, front_end=front_end, device=device), device):
            yield batch["images"]


def streams(folder):
    """Name to stream, in the order of the table."""
    rate = ("--sample_rate", f"{SAMPLE_RATE_HZ:.0f}")
    return {
        HABIT: habit_stream(folder / "tiff"),
        "spectrogram set": project_stream(folder / "set"),
        "SigMF ci16, with STFT": project_stream(folder / "sigmf"),
        "npy complex64, with STFT": project_stream(folder / "npy", *rate),
        "TIFF images": project_stream(folder / "tiff"),
        "PNG images, 256 x 256": project_stream(folder / "png"),
    }


# The measurement


def check(images):
    """See that a batch is what a model takes."""
    if images.shape[1:] != (1, 224, 224) or images.dtype != torch.float32 or not images.isfinite().all():
        raise RuntimeError(f"expected finite float32 [N, 1, 224, 224]; found {images.dtype} {list(images.shape)}")


def windows_per_s(stream):
    """The rate over one turn."""
    windows, started = 0, time.perf_counter()
    while (elapsed_s := time.perf_counter() - started) < TURN_S:
        windows += len(next(stream))
    return windows / elapsed_s


def main(parser, args):
    common.check_args(args, "windows")
    common.use_one_core()
    keep_freed_memory()
    with tempfile.TemporaryDirectory(prefix="radio-mae-bench-") as folder:
        try:
            write_data(Path(folder), args.windows, Spectrogram())
        except OSError as error:
            raise UserError(f"{folder}: expected room for {args.windows} windows of 27 MB; {error}") from error
        candidates = streams(Path(folder))
        for stream in candidates.values():
            check(next(stream))
            windows_per_s(stream)  # a turn that does not count: the first batches wait for memory
        turns = {name: [] for name in candidates}
        for _ in range(args.repeats):
            for name, stream in candidates.items():
                turns[name].append(windows_per_s(stream))

    sources = {name: {"windows_per_s": common.spread(rates)} for name, rates in turns.items()}
    for found in sources.values():
        ratio = found["windows_per_s"]["median"] / sources[HABIT]["windows_per_s"]["median"]
        found["times_tiff_a_sample"] = float(f"{ratio:.3g}")
    print(f"{common.device_name(torch.device('cpu'))}, one core; {args.repeats} turns of {TURN_S:g} s each")
    common.print_table(
        ("source", "windows/s", "least .. greatest", f"times {HABIT}"),
        [(name, *common.columns(found["windows_per_s"]), f"{found['times_tiff_a_sample']:g}")
         for name, found in sources.items()],
    )  # fmt: skip
    results = {
        "window_s": 0.016, "sample_rate_hz": SAMPLE_RATE_HZ, "batch_size": BATCH_SIZE, "windows": args.windows,
        "repeats": args.repeats, "turn_s": TURN_S, "sources": sources,
    }  # fmt: skip
    common.write_results("bench_data", parser, args, torch.device("cpu"), ("torchvision", "pillow"), results)


if __name__ == "__main__":
    with reported():
        parser = get_args_parser()
        main(parser, parser.parse_args())
