"""The synchronization signal block against a second reading of TS 38.211 and 38.213: bit by bit, and when it
is sent.
"""

import itertools

import numpy as np
import pytest
import torch

from radio.scenes.nr import Coreset, CsiRs, NrCarrier
from radio.scenes.nr_grid import resource_grids
from radio.scenes.nr_ssb import downlink_beams, pbch_dmrs, pss, ssb, ssb_symbols, sss
from tests.test_nr import CASE_KHZ, STREAM, clock, reference, schedule

# The standard, read a second time


def shifted(register, taps, count):
    """x(i), x(i + 7) = the sum of x(i + tap), register = [x(6) ... x(0)] as the clauses print it."""
    register, bits = list(register), []
    for _ in range(count):
        bits.append(register[-1])
        register = [sum(register[6 - tap] for tap in taps) % 2, *register[:-1]]
    return bits


def blocks_between(carrier, begin, end):
    """(SSB index, half-frame, first symbol's number) of every SSB that overlaps the time, TS 38.213 4.1."""
    khz = CASE_KHZ[carrier.ssb_case]
    for half_frame in range(2 * 40):
        if (5 * half_frame - 5 * carrier.ssb_half_frame) % carrier.ssb_period_ms == 0:
            for index in carrier.ssb_beams:
                first = half_frame * 70 * khz // 15 + ssb_symbols(carrier.ssb_case, carrier.num_ssb)[index]
                if clock(khz, first) < end and clock(khz, first + 4) > begin:
                    yield index, half_frame % 2, first


# Sequences and elements


def test_pss_is_the_shift_register_of_its_clause():
    x = shifted((1, 1, 1, 0, 1, 1, 0), (4, 0), 127)
    for n_id_2 in range(3):
        assert pss(n_id_2).tolist() == [1 - 2 * x[(n + 43 * n_id_2) % 127] for n in range(127)]
    for one, other in itertools.product(range(3), repeat=2):
        correlation = [int(pss(one) @ np.roll(pss(other), lag)) for lag in range(127)]
        assert sorted(correlation) == [-1] * 126 + [127]  # an m-sequence's
        assert correlation.index(127) == 43 * (other - one) % 127


def test_sss_is_the_pair_of_shift_registers_of_its_clause_for_all_cells():
    x0, x1 = (shifted((0, 0, 0, 0, 0, 0, 1), taps, 127) for taps in ((4, 0), (1, 0)))
    sequences = np.stack([sss(cell_id) for cell_id in range(1008)])
    for cell_id in range(1008):
        n_id_1, n_id_2 = cell_id // 3, cell_id % 3
        m0, m1 = 15 * (n_id_1 // 112) + 5 * n_id_2, n_id_1 % 112
        expected = [(1 - 2 * x0[(n + m0) % 127]) * (1 - 2 * x1[(n + m1) % 127]) for n in range(127)]
        assert sequences[cell_id].tolist() == expected
    products = (sequences @ sequences.T).astype(int)
    assert (np.diag(products) == 127).all()
    np.fill_diagonal(products, -1)
    assert set(np.unique(products)) == {-17, -1, 15}  # those of Gold's codes of length 127


def ssb_elements(shift):
    """Table 7.4.3.1-1: (symbol, subcarrier) of what it lists."""
    return {
        "PSS": [(0, k) for k in range(56, 183)],
        "SSS": [(2, k) for k in range(56, 183)],
        "silent": [(0, k) for k in (*range(56), *range(183, 240))]
        + [(2, k) for k in (*range(48, 56), *range(183, 192))],
        "PBCH": [(s, k) for s in (1, 3) for k in range(240)]
        + [(2, k) for k in (*range(48), *range(192, 240))],
        "DM-RS": [(1, k + shift) for k in range(0, 240, 4)]
        + [(2, k + shift) for k in (*range(0, 48, 4), *range(192, 240, 4))]
        + [(3, k + shift) for k in range(0, 240, 4)],
    }


@pytest.mark.parametrize("num_ssb", [4, 8])
@pytest.mark.parametrize("half_frame", [0, 1])
@pytest.mark.parametrize("cell_id", [0, 1, 2, 3, 501, 1004, 1007])
def test_ssb_is_the_table_of_its_clause(cell_id, half_frame, num_ssb):
    index = (cell_id + 3 * half_frame) % num_ssb
    block = ssb(cell_id, index, half_frame, num_ssb, STREAM)
    assert block.dtype == torch.complex64
    block = block.numpy()
    elements = ssb_elements(cell_id % 4)

    i_bar = index + 4 * half_frame if num_ssb == 4 else index
    c_init = 2**11 * (i_bar + 1) * (cell_id // 4 + 1) + 2**6 * (i_bar + 1) + cell_id % 4
    expected = reference(c_init, 144)
    assert np.allclose(pbch_dmrs(cell_id, index, half_frame, num_ssb), expected)
    assert np.allclose([block[at] for at in elements["DM-RS"]], expected)
    assert np.array_equal([block[at] for at in elements["PSS"]], pss(cell_id % 3))
    assert not any(block[at] for at in elements["silent"])
    assert sorted(elements["silent"] + elements["PSS"] + elements["SSS"] + elements["PBCH"]) == [
        *np.ndindex(4, 240)
    ]
    payload = np.array([block[at] for at in set(elements["PBCH"]) - set(elements["DM-RS"])])
    assert len(payload) == 432  # TS 38.212 7.1.5: 864 bits
    assert np.allclose(np.abs(payload.real), 0.5**0.5)
    assert np.allclose(np.abs(payload.imag), 0.5**0.5)
    assert len(np.unique(payload)) == 4


def test_half_frame_tells_in_four_beams_only():
    assert not np.array_equal(pbch_dmrs(5, 1, 0, 4), pbch_dmrs(5, 1, 1, 4))
    assert np.array_equal(pbch_dmrs(5, 1, 0, 8), pbch_dmrs(5, 1, 1, 8))


# In time


def test_ssb_symbols_are_the_lists_of_38_213():
    assert ssb_symbols("A", 4) == ssb_symbols("C", 4) == (2, 8, 16, 22)
    assert ssb_symbols("A", 8) == ssb_symbols("C", 8) == (2, 8, 16, 22, 30, 36, 44, 50)
    assert ssb_symbols("B", 4) == (4, 8, 16, 20)
    assert ssb_symbols("B", 8) == (4, 8, 16, 20, 32, 36, 44, 48)


@pytest.mark.parametrize("case", ["A", "B", "C"])
@pytest.mark.parametrize("spacing_khz", [15, 30, 60])
@pytest.mark.parametrize(
    ("period_ms", "half_frame", "beams"),
    [(5, 0, (0, 3)), (10, 1, (1,)), (20, 0, tuple(range(8))), (40, 1, (7, 2))],
)
def test_ssbs_are_sent_when_their_period_says_and_nothing_else_is_there(
    spacing_khz, case, period_ms, half_frame, beams
):
    num_ssb, offset_hz = (
        8 if max(beams) > 3 else 4,
        0.0 if half_frame else 1.23e6,
    )  # with blocks in line, and not
    parts = {
        "coresets": (Coreset(0, 60, 2, 3, load=1.0),),
        "csi_rs": (CsiRs(1, 0, 60, 5, 3, 1), CsiRs(2, 0, 60, 9, 7, 1)),
    }
    carrier = NrCarrier(
        spacing_khz,
        60,
        77,
        ssb_case=case,
        ssb_period_ms=period_ms,
        ssb_half_frame=half_frame,
        ssb_beams=beams,
        num_ssb=num_ssb,
        ssb_offset_hz=offset_hz,
        ssb_power_db=6.0,
        pdsch_symbols=(0, 14),
        **parts,
    )
    slots_a_ms = spacing_khz // 15
    first_slot, slots = (
        40 * slots_a_ms + 1,
        60 * slots_a_ms - 3,
    )  # at 60 kHz, from the middle of an SSB of case A on
    own, ssbs = resource_grids(carrier, first_slot, schedule(slots, 60), STREAM)
    begin, end = clock(spacing_khz, own.first_symbol), clock(spacing_khz, own.first_symbol + 14 * slots)

    # the SSB grid covers the same time, with no symbol to spare
    khz = CASE_KHZ[case]
    assert ssbs.spacing_hz == khz * 1e3
    assert ssbs.lowest_hz + 120 * ssbs.spacing_hz == offset_hz
    rows = ssbs.values.shape[1]
    assert clock(khz, ssbs.first_symbol) <= begin < clock(khz, ssbs.first_symbol + 1)
    assert clock(khz, ssbs.first_symbol + rows - 1) < end <= clock(khz, ssbs.first_symbol + rows)

    # each SSB is in its place
    values = ssbs.values[0].numpy()
    expected = np.zeros(values.shape, bool)
    free = np.zeros((14 * slots, 60), bool)
    starts = np.array([clock(spacing_khz, own.first_symbol + row) for row in range(14 * slots + 1)])
    edges_hz = (-6 * 60 - 0.5 + 12 * np.arange(61)) * 1e3 * spacing_khz  # of resource blocks
    low_hz, high_hz = offset_hz - 120.5e3 * khz, offset_hz + 119.5e3 * khz
    blocks_touched = (edges_hz[1:] > low_hz) & (edges_hz[:-1] < high_hz)
    found = 0
    for index, half, first in blocks_between(carrier, begin, end):
        for symbol in range(4):
            row = first + symbol - ssbs.first_symbol
            if 0 <= row < rows:
                expected[row] = True
                expected[row][[k for s, k in ssb_elements(0)["silent"] if s == symbol]] = False
                if symbol == 1:
                    dmrs = pbch_dmrs(77, index, half, num_ssb)[:60]
                    assert np.allclose(values[row, 77 % 4 :: 4], 10 ** (6 / 20) * dmrs)
        symbols_touched = (starts[1:] > clock(khz, first)) & (starts[:-1] < clock(khz, first + 4))
        free |= symbols_touched[:, None] & blocks_touched
        found += 1
    assert found >= len(beams)
    assert np.array_equal(values != 0, expected)
    assert np.array_equal(ssbs.occupied.numpy(), expected)

    # the carrier leaves it free, and nothing more
    occupied = own.occupied.numpy().reshape(14 * slots, 60, 12)
    assert np.array_equal(occupied.any(2), ~free)
    assert np.array_equal(occupied.all(2), ~free)
    assert np.array_equal(own.values[0].numpy() != 0, own.occupied.numpy())


@pytest.mark.parametrize("spacing_khz", [15, 30])
@pytest.mark.parametrize("pattern", ["DSUUU", "DDDSU", "DDSUU", "DDDDDDDSUU", "UD"])
@pytest.mark.parametrize(
    ("case", "num_ssb", "period_ms", "half_frame"), [("A", 4, 20, 0), ("B", 8, 5, 0), ("C", 8, 20, 1)]
)
def test_downlink_beams_are_those_that_meet_no_uplink_slot(
    spacing_khz, pattern, case, num_ssb, period_ms, half_frame
):
    khz = CASE_KHZ[case]
    expected = []
    for index, first in enumerate(ssb_symbols(case, num_ssb)):
        letters = set()
        for half in range(half_frame, 4, period_ms // 5):
            begin, end = (clock(khz, half * 70 * khz // 15 + first + symbol) for symbol in (0, 4))
            for slot in range(20 * spacing_khz // 15):
                if clock(spacing_khz, 14 * slot) < end and clock(spacing_khz, 14 * slot + 14) > begin:
                    letters.add(pattern[slot % len(pattern)])
        if "U" not in letters:
            expected.append(index)
    beams = downlink_beams(spacing_khz, pattern, case, num_ssb, period_ms, half_frame)
    assert list(beams) == expected
    settings = {
        "ssb_case": case,
        "num_ssb": num_ssb,
        "ssb_period_ms": period_ms,
        "ssb_half_frame": half_frame,
    }
    NrCarrier(spacing_khz, 51, tdd_pattern=pattern, ssb_beams=beams, **settings)
    for index in set(range(num_ssb)) - set(beams):
        with pytest.raises(ValueError, match="U slots"):
            NrCarrier(spacing_khz, 51, tdd_pattern=pattern, ssb_beams=(index,), **settings)


def test_every_ssb_has_its_own_pbch():
    ssbs = resource_grids(NrCarrier(ssb_beams=(0, 1)), 0, schedule(60, 51, 0), STREAM)[1].values[0]
    rows = [2, 8, 560 + 2, 560 + 8]  # 20 ms are 560 symbols
    for one, other in itertools.combinations(rows, 2):
        assert torch.equal(ssbs[one], ssbs[other])  # PSS
        same = (ssbs[one + 1] == ssbs[other + 1])[1:][torch.arange(239) % 4 != 3]  # PBCH without DM-RS
        assert same.float().mean() == pytest.approx(0.25, abs=0.15)
