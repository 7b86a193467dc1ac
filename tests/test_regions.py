"""From class probabilities to carriers: rectangles come back where they were painted, however the blocks are
cut.
"""

import itertools
import pickle
from dataclasses import replace

import numpy as np
import pytest

from labelling import regions
from labelling.detection import match, overlap
from labelling.rectangles import regions_of
from labelling.regions import CarrierFinder, Limits, without_parts
from radio.carriers import Carrier, paint_cells

CLASSES = ["Noise", "NR", "LTE"]
ROWS, COLUMNS = 64, 200
ROW_HZ, COLUMN_S = 100e3, 1e-3
ROWS_HZ = (np.arange(ROWS) - ROWS / 2 + 0.5) * ROW_HZ
BAND = (-ROWS * ROW_HZ / 2, ROWS * ROW_HZ / 2)
COLUMNS_S = (np.arange(COLUMNS) + 0.5) * COLUMN_S


def probabilities(mask, sure=0.9):
    """One-hot but for some doubt: [classes, rows, columns]."""
    hot = np.stack([(mask == number) for number in range(len(CLASSES))]).astype(np.float32)
    return hot * sure + (1 - hot) * (1 - sure) / 2


def find(probability, limits=None, cuts=()):
    finder = CarrierFinder(CLASSES, ROWS_HZ, COLUMN_S, limits or Limits(), BAND)
    for first, end in itertools.pairwise([0, *cuts, probability.shape[2]]):
        finder.add(probability[:, :, first:end], first)
    return finder.finish()


def close(found, true, rows=0.5, columns=1):
    """Whether two carriers agree to so many rows and columns."""
    edges = (
        np.subtract((found.freq_lower_hz, found.freq_upper_hz), (true.freq_lower_hz, true.freq_upper_hz))
        / ROW_HZ
    )
    times = np.subtract((found.start_s, found.end_s), (true.start_s, true.end_s)) / COLUMN_S
    return (
        found.label == true.label and abs(edges).max() <= rows + 1e-6 and abs(times).max() <= columns + 1e-6
    )


TWO = [Carrier("NR", 0.0, 0.2, -2.02e6, -0.47e6), Carrier("LTE", 0.05, 0.08, 0.31e6, 2.1e6)]


@pytest.mark.parametrize("cuts", [(), (100,), (1, 2, 3), (37, 60, 129, 199), tuple(range(10, 200, 10))])
def test_painted_carriers_come_back_whatever_the_blocks(cuts):
    found = find(probabilities(paint_cells(TWO, ROWS_HZ, COLUMNS_S, CLASSES)), cuts=cuts)
    assert [one.label for one in found] == ["NR", "LTE"]
    assert all(close(one, true) for one, true in zip(found, TWO, strict=True))
    assert [one.confidence for one in found] == pytest.approx([0.9, 0.9])


@pytest.mark.parametrize("seed", range(6))
def test_up_to_five_carriers_of_any_place_come_back(seed):
    """Side by side, one after another, with a row or more between those of one class, and with wrong cells
    strewn in.
    """
    rng = np.random.default_rng(seed)
    borders = np.sort(rng.choice(np.arange(1, 15), 6, replace=False)) * 4  # in rows, at least 4 apart
    true = []
    for low, high in itertools.pairwise(borders):
        if rng.random() < 0.2:
            continue
        start, length = rng.integers(0, 80), rng.integers(60, 120)
        edges = BAND[0] + ROW_HZ * np.array([low, high - 1])
        true.append(Carrier(CLASSES[rng.integers(1, 3)], start * COLUMN_S, length * COLUMN_S, *edges))
    mask = paint_cells(true, ROWS_HZ, COLUMNS_S, CLASSES)
    wrong = rng.random(mask.shape) < 0.03
    mask = np.where(wrong, rng.integers(0, 3, mask.shape), mask)
    found = find(probabilities(mask), Limits(bridge_s=3e-3), cuts=(64, 128))
    pairs = match(found, true, 0.8)
    assert len(found) == len(pairs) == len(true)
    assert all(close(*pair, rows=1.5, columns=2) for pair in pairs)


def test_edges_lie_where_the_averaged_probability_falls_to_half():
    chance = np.zeros((3, ROWS, COLUMNS), np.float32)
    chance[2, 20:30] = 1.0
    chance[2, 19], chance[2, 30] = 0.25, 0.45  # the doubt of a row says how much of it the carrier covers
    chance[0] = 1 - chance[2]
    found = find(chance)[0]
    low, high = ((found.freq_lower_hz - BAND[0]) / ROW_HZ, (found.freq_upper_hz - BAND[0]) / ROW_HZ)
    assert low == pytest.approx(19.5 + (0.5 - 0.25) / 0.75)
    assert high == pytest.approx(30.5 - (0.5 - 0.45) / 0.55)


def test_a_carrier_that_the_band_cuts_ends_with_the_band():
    mask = np.zeros((ROWS, COLUMNS), np.uint8)
    mask[:10] = 1
    mask[50:] = 2
    low, high = sorted(find(probabilities(mask)), key=lambda one: one.freq_lower_hz)
    assert (low.freq_lower_hz, high.freq_upper_hz) == BAND


def bursts(*spans):
    mask = np.zeros((ROWS, COLUMNS), np.uint8)
    for first, end in spans:
        mask[20:40, first:end] = 1
    return probabilities(mask)


@pytest.mark.parametrize("cuts", [(), (80,), (70, 75, 85)])
@pytest.mark.parametrize(("bridge_s", "count"), [(0.0, 3), (0.009, 3), (0.011, 2), (0.031, 1)])
def test_silences_are_bridged_up_to_the_limit_and_no_longer(cuts, bridge_s, count):
    """Of 10 and 30 columns; a silence counts as time of the carrier, but says nothing of its probability."""
    found = find(bursts((20, 60), (70, 100), (130, 170)), Limits(bridge_s=bridge_s), cuts)
    assert len(found) == count
    assert found[0].start_s == pytest.approx(0.02)
    assert found[-1].end_s == pytest.approx(0.17)
    assert all(one.confidence == pytest.approx(0.9) for one in found)


def test_another_band_or_another_class_is_another_carrier():
    mask = np.zeros((ROWS, COLUMNS), np.uint8)
    mask[10:30, :100] = 1
    mask[34:54, 100:] = 1
    mask[10:30, 100:] = 2
    found = find(probabilities(mask), cuts=(100,))
    assert sorted((one.label, round(one.start_s, 3)) for one in found) == [
        ("LTE", 0.1),
        ("NR", 0.0),
        ("NR", 0.1),
    ]


def test_a_carrier_is_of_one_class_all_over():
    """Where the model wavers, in patches or from block to block, what it finds likelier over the whole is the
    label.
    """
    mask = np.zeros((ROWS, COLUMNS), np.uint8)
    mask[10:40] = 1
    mask[10:26, 20:60] = mask[30:40, 120:150] = 2
    [found] = find(probabilities(mask), cuts=(100,))
    assert found.label == "NR"
    assert 0.5 < found.confidence < 0.9
    wavering = probabilities(mask * 0 + mask.astype(bool), 0.9)
    wavering[1, :, :80], wavering[2, :, :80] = 0.4 * wavering[1, :, :80], 0.5 * wavering[1, :, :80]
    [found] = find(wavering, cuts=(80,))
    assert found.label == "NR"
    assert found.duration_s == pytest.approx(0.2)


def test_bands_side_by_side_are_divided_where_the_model_tells_them_apart():
    mask = np.zeros((ROWS, COLUMNS), np.uint8)
    mask[10:25] = 1
    mask[25:45] = 2
    found = find(probabilities(mask))
    assert [one.label for one in found] == ["NR", "LTE"]
    assert found[0].freq_upper_hz == found[1].freq_lower_hz == pytest.approx(BAND[0] + 25 * ROW_HZ)


def test_carriers_that_a_few_wrong_cells_join_are_two():
    mask = np.zeros((ROWS, COLUMNS), np.uint8)
    mask[10:25] = 1
    mask[28:45] = 1
    mask[25:28, 90:100] = 1  # a thread across the guard band
    low, high = sorted(find(probabilities(mask)), key=lambda one: one.freq_lower_hz)
    assert (low.freq_upper_hz - BAND[0]) / ROW_HZ == pytest.approx(25, abs=0.5)
    assert (high.freq_lower_hz - BAND[0]) / ROW_HZ == pytest.approx(28, abs=0.5)


def test_limits_apply_to_whole_carriers():
    """A carrier of which each block has little is long all the same; specks and doubtful ones are left out."""
    whole = bursts((0, 200))
    assert len(find(whole, Limits(min_duration_s=0.2), cuts=tuple(range(5, 200, 5)))) == 1
    assert not find(bursts((0, 199)), Limits(min_duration_s=0.2))
    assert len(find(whole, Limits(min_bandwidth_hz=19.9 * ROW_HZ))) == 1
    assert not find(whole, Limits(min_bandwidth_hz=20.2 * ROW_HZ))
    assert len(find(whole, Limits(min_confidence=0.89))) == 1
    assert not find(whole, Limits(min_confidence=0.91))
    speck = np.zeros((ROWS, COLUMNS), np.uint8)
    speck[30, 50:90] = 2
    assert not find(probabilities(speck))
    assert len(find(probabilities(speck), Limits(min_bandwidth_hz=0))) == 1


def test_noise_and_an_empty_finder_give_nothing():
    assert not find(probabilities(np.zeros((ROWS, COLUMNS), np.uint8)))
    assert not CarrierFinder(CLASSES, ROWS_HZ, COLUMN_S, Limits(), BAND).finish()


def test_what_is_open_stays_small():
    """Ten thousand blocks with a burst each: only what a later block can continue is kept open."""
    finder = CarrierFinder(CLASSES, ROWS_HZ, COLUMN_S, Limits(bridge_s=5e-3), BAND)
    block = bursts((20, 60))
    for number in range(300):
        finder.add(block, number * COLUMNS)
        assert len(finder._open) <= 1
    assert len(finder.finish()) == 300


def test_blocks_may_be_looked_at_elsewhere_and_joined_here():
    """In any order, in other processes: what a block holds does not depend on those before it."""
    rng = np.random.default_rng(0)
    chance = probabilities(
        np.where(rng.random((ROWS, COLUMNS)) < 0.05, 1, paint_cells(TWO, ROWS_HZ, COLUMNS_S, CLASSES))
    )
    blocks = list(itertools.pairwise((0, 50, 120, 121, COLUMNS)))
    found = {first: regions_of(chance[:, :, first:end]) for first, end in reversed(blocks)}
    finder = CarrierFinder(CLASSES, ROWS_HZ, COLUMN_S, Limits(), BAND)
    for first, end in blocks:
        finder.join(pickle.loads(pickle.dumps(found[first])), first, end - first)
    assert finder.finish() == find(chance, cuts=(50, 120, 121))


def test_a_cut_by_class_needs_rows_of_one_class_that_are_sure():
    """Two rows of NR among LTE, once without doubt and once with it; and a row alone, which is too little."""
    for sure, rows, expected in ((0.9, 2, 3), (0.6, 2, 1), (0.9, 1, 1)):
        chance = np.zeros((3, ROWS, COLUMNS), np.float32)
        chance[2, 10:30] = 0.95
        chance[1:, 18 : 18 + rows] = np.array([sure, 0.95 - sure])[:, None, None]
        chance[0] = 1 - chance[1:].sum(axis=0)
        assert len(find(chance)) == expected


def with_scrap(label, rows, columns):
    """A carrier of NR on rows 10 to 40, and columns of some rows that are taken for another class."""
    mask = np.zeros((ROWS, COLUMNS), np.uint8)
    mask[10:40, 20:150] = 1
    mask[slice(*rows), slice(*columns)] = label
    return probabilities(mask)


@pytest.mark.parametrize("columns", [(60, 69), (20, 29), (141, 150), (150, 159), (155, 164), (11, 20)])
@pytest.mark.parametrize("rows", [(10, 40), (12, 24)])
@pytest.mark.parametrize("bridge_s", [0.0, 6e-3, 20e-3])
def test_what_lasts_less_than_a_frame_is_a_part_of_the_carrier_in_whose_band_it_lies(columns, rows, bridge_s):
    """A column is 1 ms: 9 of them are taken for LTE, within the carrier, at its ends, and after a silence of
    5.
    """
    chance = with_scrap(2, rows, columns)
    cuts = tuple(sorted({*columns, 20, 100, 150}))
    found = find(chance, Limits(bridge_s=bridge_s), cuts)
    if columns[0] == 155 and bridge_s < 5e-3:
        assert [(one.label, round(one.start_s, 6)) for one in found] == [("NR", 0.02), ("LTE", 0.155)]
        return
    assert {one.label for one in found} == {"NR"}
    first, last = min(20, columns[0]), max(150, columns[1])
    assert found[0].start_s == pytest.approx(first * COLUMN_S)
    assert found[-1].end_s == pytest.approx(last * COLUMN_S)
    assert sum(one.duration_s for one in found) == pytest.approx((last - first) * COLUMN_S)
    longest = max(found, key=lambda one: one.duration_s)
    edges = (np.array([longest.freq_lower_hz, longest.freq_upper_hz]) - BAND[0]) / ROW_HZ
    assert edges == pytest.approx([10, 40], abs=1)
    assert 0.7 < longest.confidence < 0.9  # the cells of the other class count


def test_nr_and_lte_do_not_overlap():
    """Half or more of a smaller carrier in a larger one makes it a part, of whatever length and technology."""
    for columns, rows, expected in (
        ((100, 112), (10, 40), [("NR", 0.02, 0.13)]),
        ((100, 112), (30, 49), [("NR", 0.02, 0.13)]),  # half of it
        ((100, 112), (32, 54), [("LTE", 0.1, 0.012), ("NR", 0.02, 0.13)]),
        ((138, 160), (10, 40), [("NR", 0.02, 0.14)]),  # which ends with its part
    ):
        finder = CarrierFinder(CLASSES, ROWS_HZ, COLUMN_S, Limits(bridge_s=0), BAND)
        whole = next(iter(regions_of(with_scrap(1, (10, 40), (20, 150)))))
        finder.join([whole], 0, COLUMNS)
        mask = np.zeros((ROWS, COLUMNS), np.uint8)
        mask[slice(*rows), slice(*columns)] = 2
        finder.join(regions_of(probabilities(mask)), 0, COLUMNS)
        found = finder.finish()
        assert (
            sorted((one.label, round(one.start_s, 3), round(one.duration_s, 3)) for one in found) == expected
        )


def test_other_classes_may_overlap():
    """A Bluetooth burst within Wi-Fi is a signal of its own; a piece of Wi-Fi within Wi-Fi is not."""
    wide = Carrier("Wi-Fi", 0.0, 0.1, 0.0, 20e6, 0.9)
    narrow = Carrier("Bluetooth", 0.02, 0.01, 5e6, 6e6, 0.8)
    assert without_parts([narrow, wide], ("NR", "LTE")) == [wide, narrow]
    assert without_parts([replace(narrow, label="Wi-Fi"), wide], ("NR", "LTE")) == [wide]
    assert without_parts([replace(narrow, label="Wi-Fi", start_s=0.2), wide]) == [
        wide,
        replace(narrow, label="Wi-Fi", start_s=0.2),
    ]


def test_what_is_outside_of_a_limit_is_told_apart():
    mask = np.zeros((ROWS, COLUMNS), np.uint8)
    mask[2, :] = mask[10:20, :3] = mask[30:40] = 1
    chance = probabilities(mask)
    chance[1, 30:40], chance[0, 30:40] = 0.55, 0.3
    finder = CarrierFinder(CLASSES, ROWS_HZ, COLUMN_S, Limits(), BAND)
    finder.add(chance, 0)
    assert finder.finish() == []
    dropped = {name: [one.confidence for one in some] for name, some in finder.dropped.items()}
    assert dropped == {
        "min_bandwidth_hz": [pytest.approx(0.9)],
        "min_duration_s": [pytest.approx(0.9)],
        "min_confidence": [pytest.approx(0.55)],
    }


def test_each_of_thousands_of_bursts_is_compared_with_few_others(monkeypatch):
    compared = []
    monkeypatch.setattr(regions, "overlap", lambda *pair: compared.append(pair) or overlap(*pair))
    bursts_ = [Carrier("NR", number * 1e-3, 5e-4, 0.0, 1e6, 0.9) for number in range(1000)]
    assert len(without_parts([*bursts_, Carrier("NR", 0.0, 2.0, 2e6, 20e6, 0.9)])) == 1001
    assert len(compared) == 1000


def test_a_scrap_beside_the_band_of_a_carrier_is_its_own():
    assert [one.label for one in find(with_scrap(2, (42, 60), (60, 69)), cuts=(60, 69))] == ["NR", "LTE"]


def test_of_two_that_last_equally_long_none_is_a_scrap():
    mask = np.zeros((ROWS, COLUMNS), np.uint8)
    mask[10:40, :8], mask[10:40, 8:16] = 1, 2
    assert [one.label for one in find(probabilities(mask), cuts=(8,))] == ["NR", "LTE"]


def test_classes_that_send_no_frames_may_last_less():
    finder = CarrierFinder(["Noise", "Wi-Fi", "Bluetooth"], ROWS_HZ, COLUMN_S, Limits(), BAND)
    chance = with_scrap(2, (10, 40), (60, 63))
    for first, end in ((0, 60), (60, 63), (63, COLUMNS)):
        finder.add(chance[:, :, first:end], first)
    assert sorted(one.label for one in finder.finish()) == ["Bluetooth", "Wi-Fi"]


@pytest.mark.parametrize(
    ("columns", "stretch", "count"), [(4, 200, 0), (5, 200, 1), (2, 6, 0), (3, 6, 1), (1, 2, 0)]
)
def test_without_a_limit_a_carrier_lasts_half_a_frame_or_half_of_a_shorter_stretch(columns, stretch, count):
    mask = np.zeros((ROWS, stretch), np.uint8)
    mask[10:40, :columns] = 2
    duration_s = stretch * COLUMN_S
    for names, limits, expected in (
        (CLASSES, Limits(), count),
        (CLASSES, Limits(min_duration_s=0), 1),
        (["Noise", "Wi-Fi", "Bluetooth"], Limits(), int(columns >= 2)),
    ):
        finder = CarrierFinder(names, ROWS_HZ, COLUMN_S, limits, BAND, duration_s)
        finder.add(probabilities(mask), 0)
        assert len(finder.finish()) == expected
