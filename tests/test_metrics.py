"""util.metrics: against figures worked out by hand and formulas written independently in NumPy."""

import json

import numpy as np
import pytest
import torch

from util.metrics import (
    Confusion,
    GroupedConfusion,
    figures,
    foreground_iou,
    means,
    overall,
    table,
    table_by_group,
)

NAMES = ["Noise", "NR", "LTE"]

# By hand: rows are true. Noise 90 of 100 found, NR 6 of 10, LTE 1 of 2.
BY_HAND = torch.tensor([[90, 8, 2], [3, 6, 1], [0, 1, 1]])


def samples(counts):
    """(pred, target) whose confusion matrix is `counts`."""
    cells = torch.repeat_interleave(torch.arange(counts.numel()), counts.flatten())
    return cells % len(counts), cells // len(counts)


def random_batch(seed=0, shape=(13, 8, 9), classes=3):
    rng = np.random.default_rng(seed)
    target = rng.choice(classes, size=shape, p=np.array([7, 2, 1][:classes]) / sum([7, 2, 1][:classes]))
    logits = rng.standard_normal((shape[0], classes, *shape[1:])) + 1.5 * np.moveaxis(
        np.eye(classes)[target], -1, 1
    )
    return torch.from_numpy(logits).float(), torch.from_numpy(target.astype(np.uint8))


def test_figures_worked_out_by_hand():
    results = figures(BY_HAND, NAMES)

    assert results["samples"] == 112
    assert results["pixel_accuracy"] == pytest.approx(97 / 112)
    expected = {
        "Noise": {
            "samples": 100,
            "accuracy": 0.9,
            "iou": 90 / 103,
            "precision": 90 / 93,
            "recall": 0.9,
            "f1": 180 / 193,
        },
        "NR": {"samples": 10, "accuracy": 0.6, "iou": 6 / 19, "precision": 0.4, "recall": 0.6, "f1": 0.48},
        "LTE": {"samples": 2, "accuracy": 0.5, "iou": 0.2, "precision": 0.25, "recall": 0.5, "f1": 1 / 3},
    }
    for name, row in expected.items():
        assert results["classes"][name] == pytest.approx(row)
    assert results["mean_accuracy"] == pytest.approx((0.9 + 0.6 + 0.5) / 3)
    assert results["mean_iou"] == pytest.approx((90 / 103 + 6 / 19 + 0.2) / 3)
    assert results["mean_precision"] == pytest.approx((90 / 93 + 0.4 + 0.25) / 3)
    assert results["mean_recall"] == results["mean_accuracy"]
    assert results["mean_f1"] == pytest.approx((180 / 193 + 0.48 + 1 / 3) / 3)


def test_mean_class_accuracy_is_not_pixel_accuracy_where_classes_are_unbalanced():
    confusion = Confusion(["Noise", "NR"])
    confusion.update(torch.zeros(1000, dtype=torch.int64), torch.tensor([0] * 990 + [1] * 10))
    results = confusion.results()

    assert results["pixel_accuracy"] == 0.99
    assert results["mean_accuracy"] == 0.5


def test_figures_agree_with_formulas_over_samples():
    logits, target = random_batch()
    confusion = Confusion(NAMES)
    confusion.update(logits, target)
    results = confusion.results()

    called, true = logits.numpy().argmax(axis=1), target.numpy()
    rows = {"recall": [], "precision": [], "iou": [], "f1": []}
    for k, name in enumerate(NAMES):
        is_true, is_called = true == k, called == k
        recall, precision = is_called[is_true].mean(), is_true[is_called].mean()
        own = {
            "recall": recall,
            "precision": precision,
            "iou": (is_true & is_called).sum() / (is_true | is_called).sum(),
            "f1": 2 / (1 / recall + 1 / precision),
        }
        for figure, value in own.items():
            rows[figure].append(value)
            assert results["classes"][name][figure] == pytest.approx(value)
    for figure, values in rows.items():
        assert results[f"mean_{figure}"] == pytest.approx(np.mean(values))
    assert results["pixel_accuracy"] == pytest.approx((called == true).mean())
    pairs = list(zip(true.flat, called.flat, strict=True))
    assert results["confusion"] == [[pairs.count((row, column)) for column in range(3)] for row in range(3)]


@pytest.mark.parametrize("shape", [(13, 8, 9), (13,), (13, 5)])
def test_batches_with_an_uneven_last_one_give_what_all_at_once_gives(shape):
    logits, target = random_batch(shape=shape)
    whole, parts = Confusion(NAMES), Confusion(NAMES)
    whole.update(logits, target)
    for start in range(0, 13, 4):
        parts.update(logits[start : start + 4], target[start : start + 4])

    assert parts.results() == whole.results()
    assert parts.results()["samples"] == target.numel()


def test_ids_count_as_the_logits_they_come_from():
    logits, target = random_batch()
    by_logits, by_ids = Confusion(NAMES), Confusion(NAMES)
    by_logits.update(logits.bfloat16(), target)
    by_ids.update(logits.bfloat16().argmax(dim=1).to(torch.uint8), target.to(torch.int32))

    assert by_ids.results() == by_logits.results()


def test_an_absent_class_has_no_figures_and_no_part_in_the_means():
    results = figures(torch.tensor([[6, 2, 2], [1, 9, 0], [0, 0, 0]]), NAMES)

    assert results["classes"]["LTE"] == {
        "samples": 0,
        "accuracy": None,
        "iou": None,
        "precision": None,
        "recall": None,
        "f1": None,
    }
    assert results["mean_accuracy"] == pytest.approx((0.6 + 0.9) / 2)
    assert results["mean_iou"] == pytest.approx((6 / 11 + 9 / 12) / 2)
    assert results["pixel_accuracy"] == 0.75
    line = table(results).splitlines()[3].split()
    assert line == ["LTE", "0", *["absent"] * 4]
    assert "nan" not in table(results).lower()


def test_a_class_that_is_never_called_has_no_precision_but_counts_elsewhere():
    results = figures(torch.tensor([[8, 0], [4, 0]]), ["Noise", "NR"])

    assert results["classes"]["NR"] == {
        "samples": 4,
        "accuracy": 0,
        "iou": 0,
        "precision": None,
        "recall": 0,
        "f1": 0,
    }
    assert results["mean_precision"] == pytest.approx(8 / 12)
    assert results["mean_f1"] == pytest.approx(0.8 / 2)
    assert results["mean_iou"] == pytest.approx(8 / 12 / 2)
    assert "never called" in table(results).splitlines()[2]


def test_nothing_counted_is_absent_everywhere():
    results = figures(torch.zeros(3, 3, dtype=torch.int64), NAMES)

    assert results["samples"] == 0
    assert {results[key] for key in results if key.startswith(("mean_", "pixel_"))} == {None}
    assert "0.00" not in table(results)


def test_results_go_to_json_and_back():
    for counts in (BY_HAND, torch.tensor([[5, 0, 0], [2, 0, 0], [0, 0, 0]])):
        results = figures(counts, NAMES)
        assert json.loads(json.dumps(results, allow_nan=False)) == results


def test_counts_beyond_what_float32_and_int32_hold_are_exact():
    confusion = Confusion(NAMES)
    big = torch.tensor([[2**33 + 1, 3, 0], [1, 2**24 + 1, 0], [0, 0, 2**40 + 7]])
    confusion.counts += big
    confusion.update(*samples(BY_HAND))

    expected = (big + BY_HAND).tolist()
    results = confusion.results()
    assert results["confusion"] == expected
    assert results["samples"] == sum(map(sum, expected))
    assert results["classes"]["Noise"]["recall"] == (2**33 + 91) / (2**33 + 104)


def test_a_reset_forgets():
    confusion = Confusion(NAMES)
    confusion.update(*samples(torch.eye(3, dtype=torch.int64) * 5))
    confusion.reset()
    confusion.update(*samples(BY_HAND))

    assert confusion.results() == figures(BY_HAND, NAMES)


def test_ranks_with_uneven_parts_add_up():
    logits, target = random_batch()
    whole, first, second = Confusion(NAMES), Confusion(NAMES), Confusion(NAMES)
    whole.update(logits, target)
    first.update(logits[:9], target[:9])
    second.update(logits[9:], target[9:])
    # The exchange is torchmetrics'; in place of a process group, the second matrix is handed over.
    first.distributed_available_fn = lambda: True
    first.dist_sync_fn = lambda counts, group: [counts, second.counts]

    assert first.results() == whole.results()
    assert first.counts.sum() == target[:9].numel()  # and each rank goes on with its own


def test_groups_are_matrices_of_their_own_samples():
    logits, target = random_batch()
    names = ["0..5 dB", "5..10 dB", "10..15 dB"]
    groups = [names[number % 2] for number in range(len(target))]
    grouped = GroupedConfusion(NAMES, names)
    grouped.update(logits[:5], target[:5], groups[:5])
    grouped.update(logits[5:], target[5:], groups[5:])
    results = grouped.results()

    assert list(results) == names
    for number, name in enumerate(names[:2]):
        alone = Confusion(NAMES)
        alone.update(logits[number::2], target[number::2])
        assert results[name] == alone.results()
    assert results["10..15 dB"]["samples"] == 0
    assert results["10..15 dB"]["mean_iou"] is None
    assert table_by_group(results).splitlines()[3].split()[-4:] == ["absent"] * 4


def test_tables_are_aligned_and_in_percent():
    lines = table(figures(BY_HAND, NAMES)).splitlines()

    assert [line.split()[0] for line in lines] == ["class", *NAMES, "mean", "pixel"]
    assert lines[1].split() == ["Noise", "100", "90.00", "96.77", "93.26", "87.38"]
    assert lines[5].split() == ["pixel", "accuracy", "112", "86.61"]
    assert len({len(line) for line in lines[:5]}) == 1
    by_group = table_by_group({"NR": figures(BY_HAND, NAMES)}).splitlines()
    assert by_group[1].split() == ["NR", "112", "86.61", "66.67", "58.20", "46.32"]
    assert len(by_group[0]) == len(by_group[1])


def test_samples_have_an_accuracy_and_pixels_a_pixel_accuracy():
    pixels, samples_ = figures(BY_HAND, NAMES), figures(BY_HAND, NAMES, "sample")

    assert (overall(pixels), overall(samples_)) == ("pixel_accuracy", "accuracy")
    assert samples_["accuracy"] == pixels["pixel_accuracy"] == pytest.approx(97 / 112)
    assert "pixel_accuracy" not in samples_
    assert list(means(samples_)) == ["accuracy", "mean_accuracy", "mean_iou", "mean_f1"]
    assert table(samples_).splitlines()[-1].split() == ["accuracy", "112", "86.61"]
    grouped = GroupedConfusion(NAMES, ["0 dB"], unit="sample")
    grouped.update(*samples(BY_HAND), ["0 dB"] * 112)
    assert grouped.results() == {"0 dB": samples_}
    assert "pixel" not in table_by_group(grouped.results())
    one = Confusion(NAMES, unit="sample")
    one.update(*samples(BY_HAND))
    assert one.results() == samples_


def test_the_iou_of_a_sample_is_that_of_its_carriers_alone():
    """By hand: NR half found; NR called where LTE is; noise called noise; NR called where nothing is; LTE
    found whole.
    """
    target = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 2], [0, 0, 0, 0], [0, 0, 0, 0], [2, 2, 0, 1]])[:, None]
    pred = torch.tensor([[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0], [2, 2, 1, 1]])[:, None]

    found = foreground_iou(pred, target.to(torch.uint8), 3)

    assert found.dtype == torch.float64
    assert found[2].isnan()
    assert found[[0, 1, 3, 4]].tolist() == [0.5, 0.0, 0.0, 0.75]


def test_the_iou_of_a_sample_agrees_with_sets_of_cells():
    logits, target = random_batch(shape=(13, 4, 5))
    pred = logits.argmax(dim=1)
    found = foreground_iou(pred, target, 3)

    for number, (called, true) in enumerate(zip(pred.numpy(), target.numpy(), strict=True)):
        ious = [
            ((called == k) & (true == k)).sum() / ((called == k) | (true == k)).sum()
            for k in (1, 2)
            if ((called == k) | (true == k)).any()
        ]
        assert found[number] == pytest.approx(np.mean(ious))


@pytest.mark.parametrize(
    ("pred", "target"),
    [
        (torch.zeros(4, dtype=torch.int64), torch.tensor([0, 1, 2, 3])),
        (torch.tensor([0, 1, 2, 3]), torch.zeros(4, dtype=torch.int64)),
        (torch.zeros(4, dtype=torch.int64), torch.tensor([0, 1, 2, -1])),
        (torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.uint8) + 255),
        (torch.zeros(4, dtype=torch.int64), torch.zeros(5, dtype=torch.int64)),
        (torch.zeros(4), torch.zeros(4, dtype=torch.int64)),
        (torch.zeros(4, dtype=torch.int64), torch.zeros(4)),
        (torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)),
        (torch.zeros(4, 3, 2, 2), torch.zeros(4, 3, dtype=torch.int64)),
    ],
)
def test_what_cannot_be_counted_is_an_error_and_counts_nothing(pred, target):
    confusion = Confusion(NAMES)

    with pytest.raises(ValueError, match="expected"):
        confusion.update(pred, target)
    assert not confusion.counts.any()


@pytest.mark.parametrize("groups", [["a"], ["a", "c"], ["a", "b", "b"]])
def test_groups_that_do_not_name_each_sample_are_an_error(groups):
    grouped = GroupedConfusion(NAMES, ["a", "b"])

    with pytest.raises(ValueError, match=r"expected 2 names out of \['a', 'b'\]"):
        grouped.update(torch.tensor([0, 1]), torch.tensor([0, 1]), groups)


def test_an_empty_batch_counts_nothing():
    confusion = Confusion(NAMES)
    confusion.update(torch.zeros(0, 3, 4), torch.zeros(0, 4, dtype=torch.int64))

    assert confusion.results()["samples"] == 0
