"""The 5G NR grid against a second reading of TS 38.211, 38.213 and 38.214: bit by bit, element by element,
and slow.
"""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from radio.rng import Stream
from radio.scenes.nr import RESOURCE_BLOCKS, Coreset, CsiRs, NrCarrier, dmrs_symbols
from radio.scenes.nr_grid import resource_grids, used_band_hz
from radio.scenes.nr_ssb import downlink_beams

STREAM = Stream(seed=11)
CASE_KHZ = {"A": 15, "B": 30, "C": 30}


def schedule(slots, num_rb, bits=4):
    return np.full((slots, num_rb), bits, np.uint8)


def carrier_grid(carrier, first_slot, bits, **kwargs):
    """(complex [slots, 14, blocks, 12], bool of the same shape) of the carrier's own grid."""
    grid = resource_grids(carrier, first_slot, bits, STREAM, **kwargs)[0]
    shape = (len(bits), 14, carrier.num_rb, 12)
    return grid.values.numpy().reshape(shape), grid.occupied.numpy().reshape(shape)


# The standard, read a second time


def gold_bits(c_init, count):
    """5.2.1, two shift registers."""
    x1, x2, bits = 1, c_init, []
    for n in range(1600 + count):
        if n >= 1600:
            bits.append((x1 ^ x2) & 1)
        x1 = x1 >> 1 | ((x1 >> 3 ^ x1) & 1) << 30
        x2 = x2 >> 1 | ((x2 >> 3 ^ x2 >> 2 ^ x2 >> 1 ^ x2) & 1) << 30
    return bits


def reference(c_init, count):
    """r(m) of 7.4.1.1.1, 7.4.1.3.1, 7.4.1.4.1 and 7.4.1.5.2."""
    c = gold_bits(c_init % 2**31, 2 * count)
    return np.array([(1 - 2 * c[2 * m] + 1j * (1 - 2 * c[2 * m + 1])) / 2**0.5 for m in range(count)])


def clock(spacing_khz, symbol):
    """When a symbol starts, in samples of 122.88 MHz; half-subframes of 61440, whose first symbol is 64
    longer (5.3.1).
    """
    length = {15: 8192 + 576, 30: 4096 + 288, 60: 2048 + 144}[spacing_khz]
    half_subframe, number = divmod(symbol, 7 * spacing_khz // 15)
    return half_subframe * 61440 + number * length + (64 if number else 0)


# PDSCH


def test_dmrs_symbols_are_the_rows_of_the_table():
    """Table 7.4.1.1.2-3, mapping type A, a row a line: l_d, then the additional symbols of pos0 | pos1 | pos2
    | pos3.
    """
    table = """
        3  : | | |
        4  : | | |
        5  : | | |
        6  : | | |
        7  : | | |
        8  : | 7 | 7 | 7
        9  : | 7 | 7 | 7
        10 : | 9 | 6 9 | 6 9
        11 : | 9 | 6 9 | 6 9
        12 : | 9 | 6 9 | 5 8 11
        13 : | 11 | 7 11 | 5 8 11
        14 : | 11 | 7 11 | 5 8 11"""
    for line in table.strip().splitlines():
        end, cells = line.split(":")
        for additional, cell in enumerate(cells.split("|")):
            later = tuple(int(symbol) for symbol in cell.split())
            assert dmrs_symbols(2, additional, int(end)) == (2, *later)
            if additional < 3 and int(end) > 4:
                assert dmrs_symbols(3, additional, int(end)) == (3, *later)


@pytest.mark.parametrize("dmrs_type", [1, 2])
@pytest.mark.parametrize(
    ("position", "additional", "pdsch_symbols"), [(2, 3, (2, 12)), (3, 1, (1, 13)), (2, 2, (0, 10))]
)
@pytest.mark.parametrize(("spacing_khz", "first_slot"), [(15, 9), (30, 18), (60, 39)])
def test_pdsch_dmrs_is_the_formula_of_its_clause(
    dmrs_type, position, additional, pdsch_symbols, spacing_khz, first_slot
):
    cell_id, num_rb, power_db = 1001, 7, 3.0
    carrier = NrCarrier(
        spacing_khz,
        num_rb,
        cell_id,
        ssb_beams=(),
        pdsch_symbols=pdsch_symbols,
        dmrs_type=dmrs_type,
        dmrs_position=position,
        dmrs_additional=additional,
        dmrs_power_db=power_db,
    )
    bits = schedule(3, num_rb, 8)
    bits[:, 3] = 0
    bits[1] = 0
    values, occupied = carrier_grid(carrier, first_slot, bits)
    assert not occupied[1].any()
    assert not occupied[:, :, 3].any()
    symbols = dmrs_symbols(position, additional, sum(pdsch_symbols))
    for slot, symbol in itertools.product((0, 2), symbols):
        number = (first_slot + slot) % (10 * spacing_khz // 15)  # in its frame
        r = reference(2**17 * (14 * number + symbol + 1) * (2 * cell_id + 1) + 2 * cell_id, 6 * num_rb)
        expected = {}
        for n, k_prime in itertools.product(range(3 * num_rb), (0, 1)):  # 7.4.1.1.2
            k = 4 * n + 2 * k_prime if dmrs_type == 1 else 6 * n + k_prime
            if k < 12 * num_rb and k // 12 != 3:
                expected[k] = r[2 * n + k_prime] * 10 ** (power_db / 20)
        got = values[slot, symbol].reshape(-1)
        assert np.allclose(got[list(expected)], list(expected.values()), atol=1e-6)
        # the rest of the symbol is data: 256-QAM is nowhere near a DM-RS comb
        others = [k for k in range(12 * num_rb) if k not in expected and k // 12 != 3]
        assert len(others) == 6 * 12 - len(expected)
        assert not np.isclose(np.abs(got[others]), 10 ** (power_db / 20)).all()
        assert (got[others] != 0).all()


def test_pdsch_follows_its_schedule_and_its_constellations():
    num_rb, rng = 40, np.random.default_rng(1)
    bits = rng.choice([0, 2, 4, 6, 8], (30, num_rb)).astype(np.uint8)
    carrier = NrCarrier(15, num_rb, 3, ssb_case="A", ssb_beams=(), pdsch_symbols=(1, 11))
    values, occupied = carrier_grid(carrier, 5, bits)
    expected = np.zeros(occupied.shape, bool)
    expected[:, 1:12] = (bits > 0)[:, None, :, None]
    assert np.array_equal(occupied, expected)
    assert np.array_equal(values != 0, expected)
    data = np.delete(values, [0, 2, 12, 13], axis=1)  # (slots, symbols, blocks, 12)
    for order in (2, 4, 6, 8):
        symbols = data.transpose(0, 2, 1, 3)[bits == order]
        assert len(np.unique(symbols)) == 2**order
        assert np.mean(np.abs(symbols) ** 2) == pytest.approx(1, abs=0.02)


def test_powers_are_those_asked_for():
    """PDSCH and DM-RS by block and slot; PDCCH and CSI-RS are not PDSCH."""
    num_rb, rng = 24, np.random.default_rng(2)
    power_db = rng.uniform(-10, 10, (8, num_rb))
    carrier = NrCarrier(
        30,
        num_rb,
        3,
        ssb_beams=(),
        dmrs_power_db=3.0,
        coresets=(Coreset(0, 24, 2, load=1.0),),
        csi_rs=(CsiRs(2, 0, 24, 13, 5, period_slots=1, power_db=-4.0),),
    )
    plain, _ = carrier_grid(carrier, 0, schedule(8, num_rb, 2))
    values, _ = carrier_grid(carrier, 0, schedule(8, num_rb, 2), power_db=power_db)
    level_db = 20 * np.log10(np.abs(values))
    assert np.allclose(level_db[:, :2], 0, atol=1e-4)  # PDCCH
    assert np.allclose(level_db[:, 13, :, 5], -4, atol=1e-4)
    assert np.allclose(level_db[:, 5], power_db[..., None], atol=1e-4)  # QPSK
    assert np.allclose(level_db[:, 2, :, 0::2], power_db[..., None] + 3, atol=1e-4)
    assert np.allclose(level_db[:, 2, :, 1::2], power_db[..., None], atol=1e-4)
    assert np.allclose(np.angle(values / plain), 0, atol=1e-5)


# PDCCH


@pytest.mark.parametrize("num_symbols", [1, 2, 3])
def test_pdcch_is_whole_cces_with_dmrs_in_every_group(num_symbols):
    cell_id, num_rb, first_rb, width = 420, 40, 4, 30
    coreset = Coreset(first_rb, width, num_symbols, first_symbol=1, period_slots=3, offset_slots=2, load=0.5)
    carrier = NrCarrier(30, num_rb, cell_id, ssb_beams=(), coresets=(coreset,), dmrs_position=3)
    values, occupied = carrier_grid(carrier, 7, schedule(100, num_rb, 0))
    slots = 7 + np.arange(100)
    monitored = slots % 3 == 2
    inside = occupied[:, 1 : 1 + num_symbols, first_rb : first_rb + width]
    assert occupied.sum() == inside.sum()
    assert not occupied[~monitored].any()
    # 7.3.2.2: groups are numbered symbol first, six of them are a CCE
    groups = inside[monitored].transpose(0, 2, 1, 3).reshape(monitored.sum(), -1, 6 * 12)
    assert np.array_equal(groups.any(2), groups.all(2))
    assert groups.all(2).mean() == pytest.approx(0.5, abs=0.12)
    assert len(np.unique(groups.all(2), axis=0)) > 10

    assert np.allclose(np.abs(values[occupied]), 1)  # QPSK
    for slot in np.flatnonzero(monitored)[:4]:
        for symbol in range(1, 1 + num_symbols):
            c_init = 2**17 * (14 * (slots[slot] % 20) + symbol + 1) * (2 * cell_id + 1) + 2 * cell_id
            r = reference(c_init, 3 * num_rb)
            for rb in np.flatnonzero(occupied[slot, symbol].all(1)):
                assert np.allclose(values[slot, symbol, rb, [1, 5, 9]], r[3 * rb : 3 * rb + 3])


def test_load_of_a_coreset_and_its_seed():
    def occupied(first_slot=0, slots=40, **settings):
        carrier = NrCarrier(30, 48, 1, ssb_beams=(), coresets=(Coreset(0, 48, 1, **settings),))
        return carrier_grid(carrier, first_slot, schedule(slots, 48, 0))[1]

    assert occupied(load=1.0)[:, 0].all()
    assert not occupied(load=0.0).any()
    assert occupied(load=0.2)[:, 0].mean() == pytest.approx(0.2, abs=0.06)
    assert np.array_equal(occupied()[13:33], occupied(13, 20))  # a function of the absolute slot
    assert not np.array_equal(occupied(), occupied(seed=1))


def test_pdcch_displaces_pdsch():
    """Its DM-RS, in symbol 2, too."""
    coreset = Coreset(6, 6, 2, first_symbol=1, load=1.0)
    carrier = NrCarrier(30, 12, ssb_beams=(), coresets=(coreset,), pdsch_symbols=(0, 14), dmrs_power_db=3.0)
    values, occupied = carrier_grid(carrier, 0, schedule(20, 12, 8))
    assert occupied.all()
    assert len(np.unique(values[:, 1:3, 6:])) == 4
    assert len(np.unique(values[:, :2, :6])) == len(np.unique(values[:, 0])) == 256


# CSI-RS


# Table 7.4.1.5.3-1: density, k bar - k_0.
CSI_RS_ROWS = {1: (3, (0, 4, 8)), 2: (1, (0,))}


@pytest.mark.parametrize(("row", "k_0"), [*((1, k_0) for k_0 in range(4)), *((2, k_0) for k_0 in range(12))])
def test_csi_rs_is_the_row_of_its_table(row, k_0):
    cell_id, num_rb, first_rb, width, symbol = 887, 30, 5, 20, 9
    resource = CsiRs(row, first_rb, width, symbol, k_0, 5, 3, power_db=2.0)
    carrier = NrCarrier(30, num_rb, cell_id, ssb_beams=(), csi_rs=(resource,))
    first_slot, slots = 15, 10
    values, occupied = carrier_grid(carrier, first_slot, schedule(slots, num_rb, 0))
    expected = np.zeros((slots, 14, 12 * num_rb), complex)
    density, shifts = CSI_RS_ROWS[row]
    for slot in range(slots):
        if (first_slot + slot) % 5 != 3:
            continue
        number = (first_slot + slot) % 20
        r = reference(2**10 * (14 * number + symbol + 1) * (2 * cell_id + 1) + cell_id, 3 * num_rb + 1)
        for n, shift in itertools.product(range(first_rb, first_rb + width), shifts):
            expected[slot, symbol, 12 * n + k_0 + shift] = r[n * density + int((k_0 + shift) * density / 12)]
    assert (expected != 0).any()
    assert np.allclose(values.reshape(expected.shape), expected * 10 ** (2 / 20), atol=1e-6)
    assert np.array_equal(occupied.reshape(expected.shape), expected != 0)


def test_csi_rs_displaces_pdsch_and_pdcch_only_where_it_is():
    resources = (CsiRs(1, 0, 12, 5, 2, 1), CsiRs(2, 0, 6, 0, 4, 1))
    shared = {"ssb_beams": (), "coresets": (Coreset(0, 12, 1, load=1.0),)}
    alone, sent = carrier_grid(NrCarrier(30, 12, 9, csi_rs=resources, ssb_beams=()), 0, schedule(6, 12, 0))
    plain, _ = carrier_grid(NrCarrier(30, 12, 9, **shared), 0, schedule(6, 12))
    both, occupied = carrier_grid(NrCarrier(30, 12, 9, csi_rs=resources, **shared), 0, schedule(6, 12))
    assert np.array_equal(both[sent], alone[sent])
    assert np.array_equal(both[~sent], plain[~sent])
    assert np.array_equal(occupied, both != 0)


# Duplex


def test_tdd_slots_are_silent_where_they_are_not_downlink():
    parts = {
        "coresets": (Coreset(0, 24, 1, load=1.0),),
        "csi_rs": (CsiRs(2, 0, 24, 5, 0, 1), CsiRs(2, 0, 24, 6, 0, 1)),
    }
    carrier = NrCarrier(30, 24, 1, "DDSUU", special_symbols=6, ssb_beams=(), pdsch_symbols=(2, 11), **parts)
    _, occupied = carrier_grid(carrier, 3, schedule(20, 24))
    symbols = occupied.any((2, 3))  # (slots, 14)
    for slot, row in zip(range(3, 23), symbols, strict=True):
        downlink = {"D": {0, *range(2, 13)}, "S": {0, 2, 3, 4, 5}, "U": set()}["DDSUU"[slot % 5]]
        assert set(np.flatnonzero(row)) == downlink


@pytest.mark.parametrize(
    ("position", "special_symbols", "first"), [(2, 4, 2), (2, 4, 1), (3, 4, 0), (3, 5, 2)]
)
def test_special_slots_have_pdsch_only_with_room_for_its_dmrs(position, special_symbols, first):
    """7.4.1.1.2: l_d of 3 and 4 with l_0 = 2 only; TS 38.214 table 5.1.2.1-1: mapping type A has 3 symbols or
    more.
    """
    carrier = NrCarrier(
        30,
        24,
        5,
        tdd_pattern="DS",
        special_symbols=special_symbols,
        ssb_beams=(),
        pdsch_symbols=(first, 14 - first),
        dmrs_position=position,
        dmrs_additional=2,
    )
    values, occupied = carrier_grid(carrier, 0, schedule(2, 24, 8))
    fits = special_symbols - first >= 3 and (position == 2 or special_symbols >= 5)
    assert set(np.flatnonzero(occupied[1].any((1, 2)))) == (
        set(range(first, special_symbols)) if fits else set()
    )
    if fits:
        assert np.allclose(np.abs(values[1, position, :, 0::2]), 1)


# Extent


def outermost_hz(grids, first, count):
    """The used band by the grids' own account, of `count` symbols of the first grid from row `first` on."""
    own = grids[0]
    khz = [round(grid.spacing_hz / 1e3) for grid in grids]
    begin, end = (clock(khz[0], own.first_symbol + row) for row in (first, first + count))
    edges = []
    for grid, spacing in zip(grids, khz, strict=True):
        starts = np.array([clock(spacing, grid.first_symbol + row) for row in range(len(grid.occupied) + 1)])
        rows = (starts[1:] > begin) & (starts[:-1] < end)
        used = np.flatnonzero(grid.occupied.numpy()[rows].any(0))
        if len(used):
            edges += [grid.lowest_hz + edge * grid.spacing_hz for edge in (used[0] - 0.5, used[-1] + 0.5)]
    return (min(edges), max(edges)) if edges else None


def random_carrier(rng):
    spacing = int(rng.choice([15, 30, 60]))
    num_rb = int(rng.choice([rb for rb in RESOURCE_BLOCKS[spacing].values() if 24 < rb < 110]))
    case, pattern = str(rng.choice(["A", "B", "C"])), str(rng.choice(["", "DDDSU", "DDDDDDDSUU"]))
    period_ms = int(rng.choice([5, 20]))
    beams = downlink_beams(spacing, pattern, case, 8, period_ms)
    width, symbols = 6 * int(rng.integers(1, num_rb // 6)), int(rng.integers(1, 3))
    coreset = Coreset(
        int(rng.integers(num_rb - width)), width, symbols, period_slots=4, load=rng.uniform(0, 0.3)
    )
    csi_rs = [
        CsiRs(row, int(rng.integers(num_rb - 12)), 12, int(rng.integers(14)), 0, 5, int(rng.integers(5)))
        for row in (1, 2, 1, 2)
    ]
    spare_hz = (6 * num_rb * spacing - 120 * CASE_KHZ[case]) * 1e3 - 10e3
    return NrCarrier(
        spacing,
        num_rb,
        int(rng.integers(1008)),
        pattern,
        ssb_case=case,
        ssb_period_ms=period_ms,
        ssb_beams=tuple(rng.choice(beams, int(rng.integers(0, 3))).tolist()) if beams else (),
        ssb_offset_hz=float(rng.uniform(-spare_hz, spare_hz)),
        dmrs_type=int(rng.integers(1, 3)),
        coresets=(coreset,) if rng.random() < 0.5 else (),
        csi_rs=tuple(csi_rs[: int(rng.integers(5))]),
    )


def test_used_band_is_what_the_grids_occupy():
    rng = np.random.default_rng(3)
    kinds = set()
    for _ in range(80):
        carrier = random_carrier(rng)
        slots, first_slot = int(rng.integers(1, 24)), int(rng.integers(200))
        bits = schedule(slots, carrier.num_rb, 0)
        if rng.random() < 0.4:
            first = int(rng.integers(carrier.num_rb))
            bits[int(rng.integers(slots)), first : first + 9] = 4
        grids = resource_grids(carrier, first_slot, bits, STREAM)
        assert_bands_equal(used_band_hz(carrier, first_slot, bits), outermost_hz(grids, 0, 14 * slots))
        for count in (1, 2, 9):
            row = int(rng.integers(14 * slots - count + 1))
            expected = outermost_hz(grids, row, count)
            kinds.add(expected is None)
            assert_bands_equal(used_band_hz(carrier, first_slot, bits, row, count), expected)
    assert kinds == {False, True}


def assert_bands_equal(band, expected):
    assert (band is None) == (expected is None)
    if band:
        assert band == pytest.approx(expected, abs=1e-3)


def test_rows_beyond_the_grid_have_no_band():
    carrier = NrCarrier(30, 24, ssb_beams=())
    bits = schedule(2, 24)
    assert used_band_hz(carrier, 0, bits, 28, 5) is None
    assert used_band_hz(carrier, 0, bits, -5, 5) is None
    assert used_band_hz(carrier, 0, bits, -5, 20) == used_band_hz(carrier, 0, bits) == carrier.band_hz


@pytest.mark.parametrize(
    ("spacing_khz", "case", "offset_hz"),
    [(15, "A", 0.0), (30, "A", -2e5), (60, "C", 1e6), (15, "B", 12345.0)],
)
def test_an_idle_carrier_is_as_wide_as_its_ssb(spacing_khz, case, offset_hz):
    carrier = NrCarrier(spacing_khz, 106, ssb_case=case, ssb_offset_hz=offset_hz)
    bits = schedule(20, 106, 0)
    own, ssbs = resource_grids(carrier, 0, bits, STREAM)
    assert not own.occupied.any()
    assert not own.values.any()
    assert int(ssbs.occupied.any(0).sum()) == 240
    low_hz, high_hz = used_band_hz(carrier, 0, bits)
    assert high_hz - low_hz == pytest.approx(240e3 * CASE_KHZ[case])
    assert (low_hz + high_hz) / 2 == pytest.approx(offset_hz - 500 * CASE_KHZ[case])
    assert used_band_hz(carrier, 20 * spacing_khz // 15 - 1, bits[:1]) is None  # the slot before the next SSB


@pytest.mark.parametrize(
    ("spacing_khz", "mhz"), [(khz, mhz) for khz, table in RESOURCE_BLOCKS.items() for mhz in table]
)
def test_every_bandwidth_fits_its_channel(spacing_khz, mhz):
    num_rb = RESOURCE_BLOCKS[spacing_khz][mhz]
    carrier = NrCarrier(spacing_khz, num_rb, 2, ssb_case="A", ssb_beams=(0, 1))  # 3.6 MHz, in any of them
    own, _ = resource_grids(carrier, 3, schedule(2, num_rb, 2), STREAM)
    assert own.values.shape == (1, 28, 12 * num_rb)
    assert (own.values.dtype, own.occupied.dtype) == (torch.complex64, torch.bool)
    assert (own.spacing_hz, own.lowest_hz, own.first_symbol) == (
        spacing_khz * 1e3,
        -6e3 * num_rb * spacing_khz,
        42,
    )
    low_hz, high_hz = used_band_hz(carrier, 3, schedule(2, num_rb, 2))
    assert high_hz - low_hz == pytest.approx(num_rb * 12e3 * spacing_khz)
    assert (
        0.75 * mhz * 1e6 < high_hz - low_hz < mhz * 1e6
    )  # TS 38.101-1 table 5.3.3-1: guard bands on both sides


# Numbers


def test_the_same_arguments_give_the_same_grid_and_another_stream_other_data():
    carrier = NrCarrier(30, 51, 8, coresets=(Coreset(0, 48),), csi_rs=(CsiRs(1, 0, 51, 4, 1, 1),))
    bits = schedule(4, 51)
    first, again, other = (
        resource_grids(carrier, 0, bits, stream) for stream in (STREAM, STREAM, Stream(seed=12))
    )
    for one, two, three in zip(first, again, other, strict=True):
        assert torch.equal(one.values, two.values)
        assert torch.equal(one.occupied, two.occupied)
        assert torch.equal(one.occupied, three.occupied)
        assert not torch.equal(one.values, three.values)
    same = (
        (first[0].values == other[0].values)[0].unflatten(0, (-1, 14)).unflatten(2, (-1, 12))
    )  # (slots, 14, blocks, 12)
    assert same[:, 4, :, 1::4].all()
    assert same[1:, 2, :, 0::2].all()  # slot 0 has the SSB
    assert first[0].values[first[0].occupied[None]].abs().square().mean() == pytest.approx(1, abs=0.02)


def test_parameters_are_plain_values():
    carrier = NrCarrier(coresets=(Coreset(0, 48),), csi_rs=(CsiRs(1, 0, 51, 4),))
    values = dataclasses.asdict(carrier)
    parts = {
        "coresets": tuple(Coreset(**part) for part in values["coresets"]),
        "csi_rs": tuple(CsiRs(**part) for part in values["csi_rs"]),
    }
    assert NrCarrier(**{**values, **parts}) == carrier


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"spacing_khz": 120}, "spacing_khz=120"),
        ({"num_rb": 276}, "num_rb=276"),
        ({"cell_id": 1008}, "cell_id=1008"),
        ({"cell_id": -1}, "cell_id=-1"),
        ({"tdd_pattern": "DDX"}, "DDX"),
        ({"tdd_pattern": "DDU"}, "DDU"),  # 1.5 ms
        ({"special_symbols": 15}, "special_symbols=15"),
        ({"ssb_case": "D"}, "'D'"),
        ({"num_ssb": 6}, "num_ssb=6"),
        ({"num_ssb": 4, "ssb_beams": (4,)}, r"\(4,\)"),
        ({"ssb_period_ms": 15}, "ssb_period_ms=15"),
        ({"ssb_half_frame": 2}, "ssb_half_frame=2"),
        ({"num_rb": 19}, "num_rb=19"),  # narrower than the SSB
        ({"num_rb": 20, "ssb_offset_hz": 1.0}, "ssb_offset_hz=1.0"),
        ({"pdsch_symbols": (3, 11)}, r"\(3, 11\)"),
        ({"pdsch_symbols": (2, 13)}, r"\(2, 13\)"),
        ({"pdsch_symbols": (1, 2)}, r"\(1, 2\)"),
        ({"pdsch_symbols": (0, 4), "dmrs_position": 3}, "end=4"),
        ({"dmrs_type": 3}, "dmrs_type=3"),
        ({"dmrs_position": 1, "pdsch_symbols": (0, 14)}, "position=1"),
        ({"dmrs_position": 3, "dmrs_additional": 3}, "additional=3"),
        ({"dmrs_additional": -1}, "additional=-1"),
        ({"coresets": (Coreset(0, 54),)}, "num_rb=54"),
        ({"coresets": (Coreset(0, 48, 3),)}, "dmrs_position=2"),
        ({"csi_rs": (CsiRs(1, 40, 12, 3),)}, "first_rb=40"),
    ],
)
def test_a_carrier_that_cannot_be_is_an_error_that_names_the_value(settings, named):
    with pytest.raises(ValueError, match=named):
        NrCarrier(**settings)


@pytest.mark.parametrize(
    ("part", "settings", "named"),
    [
        (Coreset, {"num_rb": 7}, "num_rb=7"),
        (Coreset, {"first_rb": -1}, "first_rb=-1"),
        (Coreset, {"num_symbols": 4}, "num_symbols=4"),
        (Coreset, {"num_symbols": 2, "first_symbol": 13}, "first_symbol=13"),
        (Coreset, {"load": 1.1}, "load=1.1"),
        (Coreset, {"seed": -1}, "seed=-1"),
        (Coreset, {"period_slots": 2, "offset_slots": 2}, "offset_slots=2"),
        (CsiRs, {"row": 3, "symbol": 0}, "row=3"),
        (CsiRs, {"row": 1, "symbol": 14}, "symbol=14"),
        (CsiRs, {"row": 1, "symbol": 0, "subcarrier": 4}, "subcarrier=4"),
        (CsiRs, {"row": 2, "symbol": 0, "subcarrier": 12}, "subcarrier=12"),
        (CsiRs, {"row": 1, "symbol": 0, "period_slots": 0}, "period_slots=0"),
    ],
)
def test_a_part_that_cannot_be_is_an_error_that_names_the_value(part, settings, named):
    with pytest.raises(ValueError, match=named):
        part(**{"first_rb": 0, "num_rb": 6, **settings})


@pytest.mark.parametrize(
    ("first_slot", "bits", "named"),
    [
        (0, schedule(2, 50), r"\(2, 50\)"),
        (0, schedule(0, 51), r"\(0, 51\)"),
        (0, schedule(2, 51, 3), r"\[3\]"),
        (0, schedule(2, 51, 10), r"\[10\]"),
        (-1, schedule(2, 51), "first_slot=-1"),
    ],
)
def test_a_schedule_that_cannot_be_is_an_error(first_slot, bits, named):
    with pytest.raises(ValueError, match=named):
        resource_grids(NrCarrier(), first_slot, bits, STREAM)
    with pytest.raises(ValueError, match=named):
        used_band_hz(NrCarrier(), first_slot, bits)
    with pytest.raises(ValueError, match=r"\(2, 50\)"):
        resource_grids(NrCarrier(), 0, schedule(2, 51), STREAM, power_db=np.zeros((2, 50)))
