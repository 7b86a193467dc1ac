"""What only a GPU shows: that a training step never waits for it, that what is compiled computes the same,
and only once.
"""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import engine_pretrain
import main_pretrain
from data.batches import Batches, MaskedSamples
from data.sampling import IQ, Source, View
from models_mae import MaskedAutoencoderViT
from radio.grid import Grid
from radio.spectrogram import Spectrogram
from util import attention, compiling, progress
from util.progress import Progress
from util.run import prepare

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

GPU = torch.device("cuda")
BATCH, SAMPLES = 8, 8 * 6
SIZES = {
    "img_size": 64,
    "patch_size": 16,
    "in_chans": 1,
    "embed_dim": 64,
    "depth": 3,
    "num_heads": 2,
    "decoder_embed_dim": 32,
    "decoder_depth": 2,
    "decoder_num_heads": 2,
}


class Noise(Source):
    """Windows of noise."""

    image_size = (64, 64)
    sample_bytes = 8 * 4096

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def load(self, index, rng, epoch=0):
        numbers = np.random.default_rng(index).standard_normal((4096, 2), dtype=np.float32)
        return IQ, numbers.view(np.complex64)[:, 0]

    def describe(self, index, rng, epoch=0):
        return {"name": f"window {index}"}


class NeverStop:
    def ask(self):
        pass

    def answer(self):
        return None


class PaddedNoise(Noise):
    """Windows of noise for the front end `grid`: narrow and short, each in its way."""

    def load(self, index, rng, epoch=0):
        _, iq = super().load(index, rng)
        return View((2e6, 6e6)[index % 2], (0,)), iq[: 4096 - 512 * (index % 4 > 1)]

    def load_many(self, indices, rng_of, epoch):
        loaded = [self.load(index, None) for index in indices]
        return [(kind, iq[None], [place]) for place, (kind, iq) in enumerate(loaded)]


FRONT_ENDS = {
    Noise: Spectrogram(n_fft=64, duration_s=4096 / 1e6, image_size=(64, 64)),
    PaddedNoise: Grid(
        row_khz=50, narrow_row_khz=None, column_us=20, image_size=(64, 64), channels=("power", "cp")
    ),
}


def training(way="off", samples=SAMPLES, noise=Noise):
    """(model, function that trains an epoch of a number)."""
    torch.manual_seed(0)
    front_end = FRONT_ENDS[noise].to(GPU)
    model = MaskedAutoencoderViT(**SIZES | {"in_chans": front_end.in_chans}).to(GPU)
    model.pads = front_end.pads
    flags = [
        "--batch_size",
        str(BATCH),
        "--epochs",
        "10",
        "--warmup_epochs",
        "0",
        "--lr",
        "1e-3",
        "--num_workers",
        "0",
    ]
    args = main_pretrain.get_args_parser().parse_args(
        [*flags, "--amp", "bf16", "--compile", way, "--peak_tflops", "100"]
    )
    run = prepare(args, GPU, NeverStop(), None, 64, {})
    run = dataclasses.replace(run, record=SimpleNamespace(steps=lambda *_: None, scalars=lambda *_: None))
    dataset = MaskedSamples(noise(samples), model.num_patches, 0, training=True)
    batches = Batches(dataset, front_end, GPU, args, shuffle=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.lr, fused=True)
    compiling.compile_model(model, way, BATCH, "bf16", model.num_visible(0.75))
    position = Progress()

    def epoch(number):
        position.start_epoch()
        return engine_pretrain.train_one_epoch(model, batches, optimizer, run, number, position)

    return model, epoch


@pytest.mark.parametrize("noise", [Noise, PaddedNoise])
@pytest.mark.parametrize("way", ["off", "on"])
def test_a_step_never_waits_for_the_gpu(monkeypatch, way, noise):
    """Between prints nothing is read on the host: torch makes an error of it, from the second step to the
    last.
    """
    monkeypatch.setattr(progress, "PRINT_EVERY_STEPS", 10**6)
    _, epoch = training(way, noise=noise)
    epoch(0)  # compiles, and makes what is made once
    steps = []
    end_step = progress.Reporter.end_step

    def watched(self, *args):
        last = self.progress.epoch_step + 1 == self.steps_per_epoch
        torch.cuda.set_sync_debug_mode("default" if last else "error")
        steps.append(self.progress.epoch_step)
        end_step(self, *args)

    monkeypatch.setattr(progress.Reporter, "end_step", watched)
    try:
        epoch(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(steps) == SAMPLES // BATCH


@pytest.mark.parametrize(
    ("tokens", "heads", "width"), [(197, 16, 16), (197, 16, 32), (50, 8, 64), (256, 2, 32), (5, 3, 16)]
)
def test_short_attention_is_attention(tokens, heads, width):
    """As near to float64 as what torch has is, forward and backward."""
    torch.manual_seed(0)
    qkv = torch.randn(3, tokens, 3, heads, width, device=GPU)
    grad = torch.randn(3, tokens, heads, width, device=GPU)

    def computed(attend, dtype):
        given = qkv.to(dtype, copy=True).requires_grad_()
        out = attend(given)
        out.backward(grad.to(dtype))
        return out.double(), given.grad.double()

    exact = computed(attention.usual_attention, torch.float64)
    for ours, torchs, right in zip(
        computed(lambda given: attention.short_attention(given)[0], torch.bfloat16),
        computed(attention.usual_attention, torch.bfloat16),
        exact,
        strict=True,
    ):
        assert (ours - right).norm() <= 1.2 * (torchs - right).norm()
        assert (ours - right).norm() < 1e-2 * right.norm()


def test_what_is_compiled_trains_alike():
    losses = {way: training(way)[1](0)["train_loss"] for way in ("off", "on", "graphs")}
    assert all(math.isfinite(loss) for loss in losses.values())
    assert losses["on"] == pytest.approx(losses["off"], rel=5e-3)
    assert losses["graphs"] == pytest.approx(losses["off"], rel=5e-3)


def test_nothing_is_compiled_again():
    """Not in the next epoch, nor at a last, smaller batch."""
    _, epoch = training("on", SAMPLES + 3)
    epoch(0)
    with torch.compiler.set_stance("fail_on_recompile"):
        epoch(1)


def test_the_command_says_how_long_compiling_took_and_the_mfu(tmp_path, capsys):
    command = [
        "--data_path",
        "synthetic:classic",
        "--scenes",
        "20",
        "--model",
        "mae_vit_tiny_patch16",
        "--batch_size",
        "8",
        "--epochs",
        "2",
        "--warmup_epochs",
        "0",
        "--num_workers",
        "2",
        "--val_fraction",
        "0.5",
        "--output_dir",
        str(tmp_path),
    ]
    main_pretrain.main(main_pretrain.get_args_parser().parse_args(command))
    shown = capsys.readouterr().out
    assert "compile on" in shown
    assert "compiled in " in shown
    assert "mfu " in shown


def test_the_front_end_grid_computes_what_it_computes_on_a_cpu():
    front_end = Grid(image_size=(112, 60), channels=("power", "cp"))
    for rate_hz in (1.92e6, 10e6, 61.44e6):
        iq = torch.randn(2, front_end.num_samples(rate_hz), dtype=torch.complex64)
        expected, found = front_end.planes(iq, rate_hz), front_end.planes(iq.to(GPU), rate_hz).cpu()
        torch.testing.assert_close(found, expected, atol=1e-2, rtol=0)
