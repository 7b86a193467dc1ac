"""engine_evaluate: what is counted of which task, the samples that the sheet shows, groups by SNR."""

import contextlib
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support import CLASSES, FRONT_END, write_labelled_set

import engine_evaluate
from data.batches import Batches
from data.labelled import LabelledSamples, Part
from data.spectrogram_set import SpectrogramSet
from engine_evaluate import groupings, report, shown
from engine_finetune import evaluate
from util import distributed
from util.metrics import natural

CPU = torch.device("cpu")
STOP = SimpleNamespace(ask=lambda: None, answer=lambda: None)


class Always(torch.nn.Module):
    """Calls every cell, or every sample, class 0."""

    def __init__(self, cells):
        super().__init__()
        self.cells = cells

    def forward(self, images):
        logits = torch.zeros(len(images), len(CLASSES), *(images.shape[2:] if self.cells else ()))
        logits[:, 0] = 1
        return logits


def run_with(figure=None):
    """What `evaluate` and `report` need of a `util.run.Run`."""
    args, record = SimpleNamespace(model="model"), SimpleNamespace(figure=figure)
    return SimpleNamespace(args=args, device=CPU, autocast=contextlib.nullcontext, stop=STOP, record=record)


def measured(source, cells):
    dataset = LabelledSamples(Part(source, np.arange(len(source))), 0)
    flags = SimpleNamespace(batch_size=5, seed=0, num_workers=0, pin_mem=False)
    batches = Batches(dataset, FRONT_END, CPU, flags)
    return batches, evaluate(Always(cells), batches, run_with(), CLASSES)


def open_set(path, masks):
    source = SpectrogramSet(write_labelled_set(path, 12, masks=masks, labels=not masks))
    source.groups = {}
    return source


def test_masks_are_counted_by_pixel_and_scored_by_their_carriers(tmp_path):
    """Sample i is class i % 3 in its upper half: of class 0 there is no carrier to find, of the others none
    is found.
    """
    _, found = measured(open_set(tmp_path / "set", True), True)

    assert found["results"]["samples"] == 12 * 256
    assert found["results"]["pixel_accuracy"] == pytest.approx(2 / 3)
    assert "accuracy" not in found["results"]
    assert torch.equal(found["scores"].isnan(), torch.tensor([True, False, False] * 4))
    assert found["scores"][~found["scores"].isnan()].tolist() == [0.0] * 8


def test_samples_are_counted_by_sample_and_right_or_wrong(tmp_path):
    _, found = measured(open_set(tmp_path / "set", False), False)

    assert found["results"]["samples"] == 12
    assert found["results"]["accuracy"] == pytest.approx(1 / 3)
    assert "pixel_accuracy" not in found["results"]
    assert found["scores"].tolist() == [1.0, 0.0, 0.0] * 4


def test_scores_of_several_processes_add_up_to_those_of_one(tmp_path, monkeypatch):
    """Each process scores its own samples, and has 0 for the others: the sum is exact, and NaN stays NaN."""
    source, together = open_set(tmp_path / "set", True), 0
    for rank in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(distributed, "rank", lambda rank=rank: rank)
            patch.setattr(distributed, "world_size", lambda: 3)
            together = together + measured(source, True)[1]["scores"]
    torch.testing.assert_close(together, measured(source, True)[1]["scores"], rtol=0, atol=0, equal_nan=True)


NONE = math.nan


@pytest.mark.parametrize(
    ("scores", "numbers"),
    [
        ([NONE, 0.5, NONE, 0.9, 0.1, NONE], [3, 1, 4]),
        ([NONE] * 4, [0, 1, 2, 3]),
        ([0.1 * number for number in range(10)] + [NONE] * 50, [9, 8, 7, 6, 5, 4, 2, 1, 0]),
    ],
)
def test_windows_without_a_carrier_are_shown_only_where_there_is_nothing_else(scores, numbers):
    assert shown(torch.tensor(scores, dtype=torch.float64)) == numbers


@pytest.mark.parametrize("masks", [True, False])
def test_pictures_and_console_say_what_their_numbers_are(tmp_path, monkeypatch, capsys, masks):
    drawn = {}
    monkeypatch.setattr(engine_evaluate, "confusion_figure", lambda counts, names, caption: caption)
    monkeypatch.setattr(
        engine_evaluate,
        "prediction_sheet",
        lambda rows, names, caption: ([row["title"] for row in rows], caption),
    )
    run = run_with(lambda step, draw, name: drawn.update({name: draw()}))
    batches, found = measured(open_set(tmp_path / "set", masks), masks)

    names = report(found, Always(masks), batches, run, CLASSES, 0)

    printed = capsys.readouterr().out
    if masks:
        assert names == ["confusion.png", "predictions.png"]
        assert drawn["confusion"].endswith("12 samples, pixel accuracy 66.7%")
        titles, caption = drawn["predictions"]
        assert caption.endswith("by mean IoU of the classes but Noise")
        assert titles == [f"set {number}: 0.0%" for number in (1, 2, 4, 5, 7, 8, 10, 11)]
        assert "pixel accuracy" in printed
    else:
        assert names == ["confusion.png"]
        assert drawn["confusion"].endswith("12 samples, accuracy 33.3%")
        assert "pixel" not in printed
        assert printed.splitlines()[-1].split() == ["accuracy", "12", "33.33"]


def test_a_column_of_snrs_groups_the_samples():
    def names(snr, indices=None):
        source = SimpleNamespace(groups={"snr": np.array(snr)})
        return groupings(Part(source, np.arange(len(snr)) if indices is None else np.array(indices)))

    assert names([-20, -18, 30, -20], [0, 2, 3]) == {"SNR": ["-20 dB", "30 dB", "-20 dB"]}
    found = names([*np.arange(40) + 0.25, np.nan])["SNR"]
    assert (found[0], found[7], found[-1]) == ("0 to 5 dB", "5 to 10 dB", "unknown")
    assert sorted(set(names([10, -5, 5])["SNR"]), key=natural) == ["-5 dB", "5 dB", "10 dB"]
