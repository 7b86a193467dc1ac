"""Scenes made during training: each sample of each epoch is a new scene."""

import contextlib
from dataclasses import dataclass, replace

import numpy as np
import torch

from data.sampling import DECIBELS, Source
from radio.carriers import paint
from radio.rng import TEST, TRAINING, VALIDATION, Stream
from radio.scenes.config import PRESETS, SceneConfig, with_settings
from radio.scenes.draw import draw
from radio.scenes.scene import render
from util.errors import UserError

VIEW = 900  # purpose of a scene's stream: where its image lies in the band
KINDS = {"train": TRAINING, "val": VALIDATION, "test": TEST}  # of scenes, by part


@dataclass(frozen=True)
class SceneMaker:
    """Scenes of one configuration and seed, by kind (see `KINDS`) and number.

    As the kind of a sample, it makes the scene on the training device: called with int64 [n, 2] of (kind,
    number), the front end and the device, it returns spectrograms in dB, float32 [n, 1, F, T].
    """

    config: SceneConfig
    seed: int

    def check(self, front_end):
        """Raise a `UserError` if the shortest scene is shorter than an FFT."""
        for rate_hz in self.config.sample_rates_hz:
            shortest = self.config.num_samples(min(self.config.duration_ms), rate_hz)
            if shortest < (least := front_end.least_samples(rate_hz)):
                raise UserError(f"--n_fft: expected at most {shortest}, the shortest scene; found {least}")

    def draw(self, kind, number):
        """The `Scene` of a number."""
        return draw(self.config, Stream(self.seed, kind, number))

    def decibels(self, scene, front_end, device="cpu"):
        """float32 [C, F, T] in dB."""
        with one_thread():
            return image_of(scene, render(scene, device), front_end)

    def __call__(self, numbers, front_end, device):
        return torch.stack([self.decibels(self.draw(*pair), front_end, device) for pair in numbers.tolist()])


class SyntheticScenes(Source):
    """Scenes as a source. No two epochs, workers or processes make the same training scene.

    Args:
        maker: a `SceneMaker`; count: scenes in an epoch.
        on_device: make scenes on the training device, instead of in the loader's workers.
        kind: of the scenes; only training scenes differ between epochs.
    """

    def __init__(self, maker, count, front_end, on_device=False, kind=TRAINING):
        maker.check(front_end)
        self.maker, self.count, self.front_end = maker, count, front_end
        self.on_device, self.kind = on_device, kind
        self.image_size, self.in_chans = front_end.image_size, front_end.in_chans

    def __len__(self):
        return self.count

    def number(self, index, epoch):
        """Number of a sample's scene."""
        return index + (epoch * self.count if self.kind == TRAINING else 0)

    def load(self, index, rng, epoch=0):
        number = self.number(index, epoch)
        if self.on_device:
            return self.maker, np.array([self.kind, number])
        return DECIBELS, self.maker.decibels(self.maker.draw(self.kind, number), self.front_end).numpy()

    def mask(self, index, epoch=0):
        """Class ids of the scene that `load` makes: uint8 [F, T]."""
        scene = self.maker.draw(self.kind, self.number(index, epoch))
        return scene_mask(scene, self.front_end, self.maker.config.classes)

    target = mask

    def describe(self, index, rng, epoch=0):
        number = self.number(index, epoch)
        scene = self.maker.draw(self.kind, number)
        name = f"scene {number} of seed {self.maker.seed}"
        return {"name": name, **scene_metadata(scene, self.front_end), "scene": scene.parameters()}

    def split(self, fraction, seed):
        """Itself, and further scenes to hold out: `fraction` of its number."""
        held_out = max(1, round(fraction * self.count))
        return self, SyntheticScenes(self.maker, held_out, self.front_end, self.on_device, VALIDATION)


@contextlib.contextmanager
def one_thread():
    """Compute on one thread, like a worker: more threads sum in another order, to other last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def first_row(scene, front_end):
    """The first row of a scene's image in its plane; 0 without a plane of rows."""
    if not front_end.pads:
        return 0
    rng = scene.stream.child(VIEW).generator()
    return front_end.draw_first_row(scene.sample_rate_hz, rng, scene.is_real)


def image_of(scene, iq, front_end):
    """The spectrogram of a scene's IQ, complex64 [samples], in dB: float32 [C, F, T]."""
    if not front_end.pads:
        return front_end.decibels(iq[None])[0]
    iq = iq[: front_end.num_samples(scene.sample_rate_hz)]
    row = first_row(scene, front_end)
    return front_end.decibels(iq[None], scene.sample_rate_hz, row, scene.is_real)[0]


def scene_metadata(scene, front_end):
    return {
        "start_s": 0.0,
        "sample_rate_hz": scene.sample_rate_hz,
        "num_samples": scene.num_samples,
        "center_freq_hz": scene.center_freq_hz,
        **({"first_row": first_row(scene, front_end), "is_real": scene.is_real} if front_end.pads else {}),
    }


def scene_mask(scene, front_end, class_names):
    """Class of every cell of a scene's spectrogram: uint8 [F, T]. What has no name among the classes is 0."""
    carriers = [carrier for carrier in scene.carriers() if carrier.label in class_names]
    place = {"class_names": class_names, "first_row": first_row(scene, front_end)}
    return paint(carriers, front_end, scene.sample_rate_hz, scene.num_samples, **place)


def scene_config(preset, window_ms=None, settings=()):
    """The `SceneConfig` of a preset, changed by `--window_ms`, if given, and then by the settings of `--set`."""
    if preset not in PRESETS:
        raise UserError(
            f"--data_path synthetic:{preset}: expected one of the presets {', '.join(PRESETS)}; found {preset}"
        )
    config = PRESETS[preset] if window_ms is None else replace(PRESETS[preset], duration_ms=(window_ms,))
    return with_settings(config, settings)
