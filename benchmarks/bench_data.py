"""Windows a second of each data source on one core, beside a loader that opens a TIFF for every sample.

    python benchmarks/bench_data.py

A window is 16 ms at 61.44 Msps. The sources deliver float32 batches [32, 1, 224, 224], ready for the model.
All run by turns in one process, from 0.9 GB of files in the page cache: no disk is measured.

- "TIFF a sample" is the field's habit: a float32 TIFF of linear power (Hann 1024, hop 512: 1024 x 1919
  values), opened with PIL, then log, fixed range, antialiased bicubic resize, fixed mean and deviation. Its
  STFT was done beforehand.
- The others are opened and batched as `main_pretrain.py` does it. Front end, normalization, mask noise and,
  for recordings, the STFT are in their time.
"""

import argparse
import itertools
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
from util.errors import RunError

SAMPLE_RATE_HZ = 61.44e6
BATCH_SIZE = 32
NUM_PATCHES = 196
SEED = 0
TURN_S = 2.0  # a turn goes on for at least so long
WINDOWS_A_SCENE = 2
SET_COPIES = 64  # of every spectrogram, so that an epoch of the set takes about as long as the others'
HABIT = "TIFF a sample"


def get_args_parser():
    parser = common.get_parser("Windows per second of each data source on one core.", repeats=9)
    parser.add_argument("--windows", type=common.positive, default=32, help="windows to write, 27 MB each")
    return parser


def write_tiff(path, iq):
    """Linear power of the STFT, relative to full scale, lowest frequency first: float32 [1024, frames]."""
    window = torch.hann_window(1024)
    spectrum = torch.stft(iq, 1024, 512, window=window / window.sum(), center=False, return_complex=True)
    Image.fromarray(torch.fft.fftshift(spectrum.abs().square(), dim=0).numpy()).save(path)


def write_png(path, iq):
    """The 100 dB below the strongest cell as grey, high frequency at the top, 256 x 256."""
    decibels = Spectrogram(image_size=(256, 256), normalize="none")(iq[None])[0, 0]
    grey = (255 * (1 + (decibels - decibels.max()) / 100)).clamp(0, 255).to(torch.uint8)
    Image.fromarray(grey.flip(0).numpy()).save(path)


def write_data(folder, num_windows, front_end):
    """The same windows in every form, each in a folder of its own below `folder`."""
    for kind in ("sigmf", "npy", "tiff", "png"):
        (folder / kind).mkdir()
    scenes = common.scenes_as_iq(folder / "scenes", -(-num_windows // WINDOWS_A_SCENE), "classic")
    count = SET_COPIES * WINDOWS_A_SCENE * len(scenes)
    with spectrogram_set_writer(folder / "set", count, front_end) as packed:
        for number, scene in enumerate(scenes):
            samples = scene[: WINDOWS_A_SCENE * front_end.num_samples(SAMPLE_RATE_HZ)]
            common.write_sigmf(folder / "sigmf" / f"{number:04}", samples, SAMPLE_RATE_HZ)
            iq = (samples / np.float32(2**15)).view(np.complex64)[:, 0]
            np.save(folder / "npy" / f"{number:04}.npy", iq)
            for place, window in enumerate(torch.from_numpy(iq).chunk(WINDOWS_A_SCENE)):
                write_tiff(folder / "tiff" / f"{number:04}-{place}.tif", window)
                write_png(folder / "png" / f"{number:04}-{place}.png", window)
                decibels = front_end.decibels(window[None])[0].numpy()
                for copy in range(SET_COPIES):
                    packed.add(decibels, {"name": f"scene {number}, window {place}, copy {copy}"})


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
    samples = MaskedSamples(source, NUM_PATCHES, SEED, training=True)
    loader = make_loader(samples, batches, num_workers=0, pin_memory=False)
    for batches.epoch in itertools.count():
        images_of = partial(to_images, front_end=front_end, device=common.CPU)
        for batch in loader.batches(images_of, common.CPU):
            yield batch["images"]


def windows_per_s(stream):
    """The rate over one turn."""
    windows, started = 0, time.perf_counter()
    while (elapsed_s := time.perf_counter() - started) < TURN_S:
        images = next(stream)
        windows += len(images)
    if images.shape[1:] != (1, 224, 224) or images.dtype != torch.float32 or not images.isfinite().all():
        raise RunError(f"expected finite float32 [N, 1, 224, 224]; found {images.dtype} {list(images.shape)}")
    return windows / elapsed_s


def measure(args):
    common.use_one_core()
    with tempfile.TemporaryDirectory(prefix="radio-mae-bench-") as name:
        folder = Path(name)
        write_data(folder, args.windows, Spectrogram())
        rate = "--sample_rate", f"{SAMPLE_RATE_HZ:.0f}"
        streams = {
            HABIT: habit_stream(folder / "tiff"),
            "spectrogram set": project_stream(folder / "set"),
            "SigMF ci16, with STFT": project_stream(folder / "sigmf"),
            "npy complex64, with STFT": project_stream(folder / "npy", *rate),
            "TIFF images": project_stream(folder / "tiff"),
            "PNG images, 256 x 256": project_stream(folder / "png"),
        }
        candidates = {name: lambda stream=stream: windows_per_s(stream) for name, stream in streams.items()}
        turns = common.by_turns(candidates, args.repeats)
    sources = {name: {"windows_per_s": common.spread(rates)} for name, rates in turns.items()}
    for source in sources.values():
        ratio = source["windows_per_s"]["median"] / sources[HABIT]["windows_per_s"]["median"]
        source["times_tiff_a_sample"] = common.digits(ratio)
    about = {"batch_size": BATCH_SIZE, "windows": args.windows, "repeats": args.repeats, "turn_s": TURN_S}
    return common.CPU, {**about, "sources": sources}


if __name__ == "__main__":
    common.run_benchmark(get_args_parser(), measure)
