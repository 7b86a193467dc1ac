import numpy as np
import pytest
import torch
from scipy import stats
from timm.data import Mixup

from data.batches import EpochBatches, MaskedSamples
from data.csi import SyntheticCsi
from data.labelled import mix
from data.sampling import Source, hold_out
from data.splits import fewer_labels, make_splits
from radio.rng import TEST, TRAINING, VALIDATION, Stream, philox_words
from radio.scenes import csi_room
from radio.scenes.config import WILD, with_settings
from radio.scenes.draw import draw
from radio.scenes.scene import render

# Random123's known answer for philox4x64 with 10 rounds, counter and key zero (its file kat_vectors).
KNOWN = (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B)

SEED = 2**40 + 7
STREAMS = [Stream(0), Stream(5, 2, 7, 3), Stream(2**63 + 11, 1, 2**40, 999), Stream(1).child(2).child(3)]


def test_philox_in_torch_gives_the_published_answer():
    words = philox_words((0, 0), (0, 0), -1, 4, "cpu").numpy().view(np.uint64)
    assert tuple(map(int, words)) == KNOWN


@pytest.mark.parametrize("stream", STREAMS)
def test_the_numbers_of_torch_are_those_of_numpy(stream):
    """What an accelerator computes, here on the CPU, against numpy's own generator."""
    for start in (0, 4, 400):
        key, upper = (stream.seed, stream.kind), (stream.purpose, stream.index)
        assert torch.equal(stream.words(1003, start=start), philox_words(key, upper, start // 4, 1003, "cpu"))


def test_parts_of_a_stream_are_the_stream():
    whole = Stream(3, 1, 4).complex_normal(5000)
    parts = [
        Stream(3, 1, 4).complex_normal(count, start=start)
        for start, count in ((0, 1000), (1000, 3996), (4996, 4))
    ]
    assert torch.equal(whole, torch.cat(parts))
    with pytest.raises(ValueError, match="start=2"):
        Stream(0).words(4, start=2)


def test_streams_that_differ_in_anything_share_nothing():
    streams = [
        Stream(seed, kind, index).child(purpose)
        for seed in (0, 1)
        for kind in (0, 1)
        for index in (0, 1)
        for purpose in (0, 1)
    ]
    streams += [stream.child(0) for stream in streams]
    words = torch.stack([stream.words(64) for stream in streams]).flatten()
    assert len(words.unique()) == len(words)


def test_no_two_purposes_share_a_key_and_counter(monkeypatch):
    """Everything that a seed decides in pretraining, fine-tuning, splits, scenes and CSI, each purpose by
    itself.
    """
    config = with_settings(WILD, ["sample_rates_hz=1.92e6", "duration_ms=2"])
    of_csi = SyntheticCsi(60, SEED, image_size=(32, 32))
    mixup = Mixup(mixup_alpha=1.0, num_classes=2)
    purposes = (
        {
            f"scenes of part {kind}": lambda kind=kind: [
                render(draw(config, Stream(SEED, kind, index))) for index in range(8)
            ]
            for kind in (TRAINING, VALIDATION, TEST)
        }
        | {
            f"CSI of part {kind}": lambda kind=kind: csi_room.render(SyntheticCsi(3, SEED, kind).scene(2))
            for kind in (1, 2)
        }
        | {
            "CSI of part 0 and its levels": lambda: of_csi.fit(np.arange(3)),
            "samples in training": lambda: [
                MaskedSamples(Nameless(), 4, SEED, True).describe(1, i) for i in range(3)
            ],
            "held-out samples": lambda: [
                MaskedSamples(Nameless(), 4, SEED, False).describe(1, i) for i in range(3)
            ],
            "order": lambda: list(shuffled(4)),
            "mixup": lambda: mix(
                torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.long), mixup, SEED, 1, 0
            ),
            "held-out groups": lambda: hold_out(["a", "b", "c"], 0.5, SEED),
            "fewer labels": lambda: fewer_labels(np.arange(8), np.arange(8) % 2, per_class=2, seed=SEED),
            "parts of labelled data": lambda: make_splits(of_csi, SEED, 0.2, 0.2),
        }
    )
    taken, philox = {}, Stream._philox

    def noted(self, block=0):
        if self.seed == SEED:  # coresets, channels and the like have seeds of their own
            taken.setdefault((self.kind, self.purpose, self.index), set()).add(purpose)
        return philox(self, block)

    monkeypatch.setattr(Stream, "_philox", noted)
    for purpose, draw_all in purposes.items():  # noqa: B007
        draw_all()
    assert set().union(*taken.values()) == purposes.keys()
    assert not {key: by for key, by in taken.items() if len(by) > 1}


class Nameless(Source):
    def describe(self, index, rng, epoch=0):
        return {}


def shuffled(count):
    batches = EpochBatches(count, 2, SEED, shuffle=True)
    batches.epoch = 1
    return batches


def test_complex_normal_is_circular_gaussian_of_unit_power():
    samples = Stream(7).complex_normal(400_000).numpy()
    assert abs(np.mean(np.abs(samples) ** 2) - 1) < 0.01
    for part in (samples.real, samples.imag, (samples * np.exp(0.7j)).real):
        assert stats.kstest(part * np.sqrt(2), "norm").pvalue > 1e-3
    assert abs(np.mean(samples**2)) < 0.01
    assert np.abs(np.mean(samples[1:] * samples[:-1].conj())) < 0.01
    assert np.isfinite(samples).all()


def test_no_word_makes_a_sample_that_is_not_finite(monkeypatch):
    extremes = torch.tensor([0, -1, 2**63 - 1, -(2**63), -(2**31), 2**31, 2**31 - 1, -(2**32)])
    monkeypatch.setattr(Stream, "words", lambda self, count, device="cpu", start=0: extremes)
    assert Stream(0).complex_normal(8).isfinite().all()


def test_octets_are_uniform():
    counts = torch.bincount(Stream(9).octets(100_003).long(), minlength=256)
    assert counts.sum() == 100_003
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_the_same():
    stream = Stream(3, 1, 4).child(5)
    assert torch.equal(stream.words(10_001), stream.words(10_001, "cuda").cpu())
    torch.testing.assert_close(stream.complex_normal(10_001), stream.complex_normal(10_001, "cuda").cpu())
