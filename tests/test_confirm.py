"""From a model's boxes and the cells of a search to final carriers, on hand-made energy."""

import numpy as np
import pytest

from labelling.confirm import CONFIRMED, DOUBT, Energy, confirm
from radio.carriers import Carrier
from radio.cell_search import Cell

ROWS, COLUMNS, COLUMN_S = 200, 400, 1e-4  # 40 ms of 20 MHz, rows of 100 kHz
BAND = (990e6, 1010e6)
ALL = [(0.0, 0.04, *BAND)]  # what was searched


def lte(center_hz, num_rb=None, start_s=2e-3, metric=40.0, cell_id=301):
    return Cell("LTE", cell_id, center_hz, 15e3, "FDD", start_s, num_rb, metric, 10.0, ())


def nr(center_hz, spacing_hz=30e3):
    return Cell("NR", 500, center_hz, spacing_hz, "", 2e-3, None, 40.0, 10.0, (2e-3, 22e-3))


def box(label, start_ms, end_ms, low_mhz, high_mhz, confidence=0.8):
    return Carrier(
        label, start_ms / 1e3, (end_ms - start_ms) / 1e3, low_mhz * 1e6, high_mhz * 1e6, confidence
    )


def energy(*signals):
    """Noise at -90 dB; signals are (start ms, end ms, low MHz, high MHz, dB above it)."""
    decibels = np.random.default_rng(0).normal(-90, 1, (ROWS, COLUMNS)).astype(np.float32)
    for start_ms, end_ms, low_mhz, high_mhz, level_db in signals:
        rows = slice(round((low_mhz - 990) * 10), round((high_mhz - 990) * 10))
        decibels[rows, round(start_ms * 10) : round(end_ms * 10)] += level_db
    return Energy(decibels, BAND, COLUMN_S, 0.04)


def of(found, cells, seen=None, weak=(), spans=ALL, least=0.6):
    return confirm(found, list(weak), cells, seen or energy(), spans, least)


def edges(carrier):
    return (
        carrier.freq_lower_hz / 1e6,
        carrier.freq_upper_hz / 1e6,
        carrier.start_s * 1e3,
        carrier.end_s * 1e3,
    )


@pytest.mark.parametrize(
    "found",
    [
        [],  # the model calls it noise
        [box("LTE", 0, 40, 995.3, 1004.2)],
        [box("NR", 0, 40, 995.3, 1004.2), box("LTE", 5, 12, 999, 1001)],  # the wrong technology
        [box("LTE", 0, 15, 995.5, 1004.5), box("LTE", 20, 40, 995.5, 999.5), box("NR", 3, 9, 1002, 1003)],
        [box("Other", 0, 40, 990, 1008)],
    ],
)
def test_a_cell_of_known_width_makes_one_carrier_of_whatever_the_model_finds(found):
    [one], weak, fallen = of(found, [lte(1000e6, 50)], energy((0, 40, 995.5, 1004.5, 20)))
    assert edges(one) == pytest.approx((995.5, 1004.5, 0, 40))
    assert (one.label, one.cell.cell_id, one.confirmed, one.confidence) == ("LTE", 301, True, CONFIRMED)
    assert (weak, fallen) == ([], [])


def test_weak_boxes_help_a_cell_and_no_other():
    weak = [box("NR", 0, 40, 992, 1000.3, 0.3), box("NR", 0, 40, 1005, 1008, 0.5)]
    found, unused, _ = of([], [nr(996e6)], energy(), weak)
    assert [edges(one)[:2] for one in found] == [pytest.approx((992, 1000.3), abs=0.2)]
    assert unused == weak[1:]


@pytest.mark.parametrize("num_rb", [6, 15, 25, 50, 75])
@pytest.mark.parametrize("level_db", [3, 25])
def test_the_width_of_lte_is_where_the_power_falls(num_rb, level_db):
    half_mhz = 0.09 * num_rb
    seen = energy((0, 40, 1000 - half_mhz, 1000 + half_mhz, level_db), (0, 40, 1008.5, 1010, 30))
    [one], *_ = of([], [lte(1000e6)], seen)
    assert edges(one)[:2] == pytest.approx((1000 - half_mhz, 1000 + half_mhz))


def test_the_width_of_lte_is_that_of_a_box_about_its_centre():
    found, *_ = of([box("LTE", 0, 40, 997.6, 1002.5)], [lte(1000e6)])
    assert [edges(one)[:2] for one in found] == [pytest.approx((997.75, 1002.25))]
    # a carrier wider than the band: what is seen of it
    found, *_ = of([box("LTE", 0, 40, 990, 1005.2)], [lte(996e6)])
    assert [edges(one)[:2] for one in found] == [pytest.approx((990, 1005))]


def test_adjacent_cells_share_a_box_that_joins_them():
    cells = [lte(995e6, 25), lte(1000e6, 25), lte(1005e6)]
    seen = energy(*((0, 40, center - 2.25, center + 2.25, 15) for center in (995, 1000, 1005)))
    found, *_ = of([box("LTE", 0, 40, 992.6, 1007.3)], cells, seen)
    assert [edges(one)[:2] for one in found] == [
        pytest.approx((low, low + 4.5)) for low in (992.75, 997.75, 1002.75)
    ]
    # of a box over a cell and a carrier beside it, the carrier stays
    found, *_ = of([box("LTE", 0, 40, 992.6, 1008)], [lte(995e6, 25)])
    assert [(one.label, one.confirmed) for one in found] == [("LTE", True), ("LTE", False)]
    assert edges(found[1])[:2] == pytest.approx((997.25, 1008))


def test_neighbouring_cells_on_one_frequency_are_one_carrier():
    cells = [lte(1000e6, 50, metric=20.0), lte(1000e6, 50, metric=60.0, cell_id=7)]
    [one], *_ = of([], cells)
    assert one.cell.cell_id == 7


def test_an_idle_nr_cell_gets_the_band_of_its_ssb():
    [one], *_ = of([], [nr(1003.45e6)])
    assert edges(one) == pytest.approx((999.85, 1007.05, 0, 40))
    [one], *_ = of([box("NR", 1, 3, 1001, 1006)], [nr(1003.45e6)])
    assert edges(one)[:2] == pytest.approx((999.85, 1007.05))


def test_an_nr_box_snaps_to_a_width_of_the_standard_within_an_image_row():
    """24 resource blocks of 30 kHz are 8.64 MHz wide, 38 are 13.68 MHz."""
    [one], *_ = of([box("NR", 0, 40, 996.05, 1004.6)], [nr(1000.1e6)])
    assert edges(one)[:2] == pytest.approx((996.005, 1004.645))
    [one], *_ = of([box("NR", 0, 40, 995, 1006.3)], [nr(1000.1e6)])
    assert edges(one)[:2] == pytest.approx((995, 1006.3))
    [one], *_ = of([box("NR", 0, 40, 990, 1003.6)], [nr(996e6)])  # the band cuts it
    assert edges(one)[:2] == pytest.approx((990, 1003.6))


def test_a_carrier_lasts_as_long_as_its_energy():
    seen = energy((0, 16, 997.75, 1002.25, 20))
    [one], *_ = of([], [lte(1000e6, 25)], seen)
    assert edges(one)[2:] == pytest.approx((0, 16))
    seen = energy((12, 40, 997.75, 1002.25, 20), (2, 3, 997.75, 1002.25, 20))  # a burst that is no part of it
    [one], *_ = of([], [lte(1000e6, 25, start_s=14e-3)], seen)
    assert edges(one)[2:] == pytest.approx((12, 40))
    # SSBs of an idle cell every 20 ms: it is on all the time
    seen = energy(*((start, start + 0.2, 996.4, 1003.6, 20) for start in (2, 22)))
    [one], *_ = of([], [nr(1000e6)], seen)
    assert edges(one)[2:] == pytest.approx((0, 40))


def test_without_a_cell_a_long_and_strong_carrier_is_doubted():
    seen = energy((0, 40, 994, 1000, 20))
    boxes = [box("LTE", 0, 40, 994, 1000, 0.7), box("NR", 0, 40, 1003, 1007, 0.65)]
    found, _, fallen = of(boxes, [], seen)
    assert [one.label for one in found] == ["NR"]  # too weak to be heard
    assert found[0].confidence == 0.65
    assert [one.confidence for one in fallen] == [pytest.approx(0.7 * DOUBT["LTE"])]
    for kept, spans in (
        (box("LTE", 0, 15, 994, 1000), ALL),  # too short
        (box("LTE", 0, 40, 990, 1000), ALL),  # its middle may be outside of the band
        (box("LTE", 0, 40, 994, 1000), [(0.0, 0.015, *BAND)]),  # not searched for long enough
        (box("LTE", 0, 40, 994, 1000), [(0.0, 0.04, 1000e6, 1010e6)]),
        (box("Wi-Fi", 0, 40, 994, 1000), ALL),
    ):
        found, _, fallen = of([kept], [], seen, spans=spans)
        assert (found, fallen) == ([kept], [])


def test_short_and_silent_stretches():
    for columns in (1, 3):
        seen = Energy(np.full((ROWS, columns), -90.0), BAND, 1e-3, columns * 1e-3)
        [one], *_ = of([], [lte(1000e6, start_s=0.0)], seen)
        assert edges(one) == pytest.approx((999.46, 1000.54, 0, columns))
    assert of([], []) == ([], [], [])
