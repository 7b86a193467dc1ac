"""LTE's resource grid: against slow readings of TS 36.211, clause by clause, and against real cells."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.signal import fftconvolve
from support import CAPTURES, needs_captures

from radio.recordings import open_recording
from radio.rng import Stream
from radio.scenes import lte
from radio.scenes.lte import LteCell, resource_grid
from radio.sequences import gold

CELLS = [
    LteCell(6, 1, control_symbols=2),
    LteCell(6, 502, num_ports=2, control_symbols=4),
    LteCell(6, 77, "TDD", 1, 0, num_ports=4, control_symbols=3),
    LteCell(15, 301, num_ports=4, control_symbols=1),
    LteCell(25, 100, "TDD", 2, 7, num_ports=2, control_symbols=3),
    LteCell(25, 50, num_ports=2, control_symbols=3),
    LteCell(15, 29, "TDD", 4, 9, control_symbols=3),
    LteCell(15, 222, "TDD", 0, 5, control_symbols=1),
    LteCell(50, 503, "TDD", 6, 4, num_ports=4, control_symbols=2),
]


def named(cell):
    return f"{cell.num_rb}rb-{cell.cell_id}-{cell.duplex}{cell.uldl_config}.{cell.special_config}-{cell.num_ports}p"


each_cell = pytest.mark.parametrize("cell", CELLS, ids=named)


def idle(cell, subframes=10):
    return np.zeros((subframes, cell.num_rb), np.uint8)


def full(cell, subframes=10, bits=2):
    return np.full((subframes, cell.num_rb), bits, np.uint8)


def without_dc(elements, cell):
    return np.delete(np.asarray(elements), 6 * cell.num_rb, axis=-1)


# ---- the standard, read slowly


def slow_gold(c_init, length):
    """7.2, a bit at a time."""
    x1, x2 = [1] + [0] * 30, [c_init >> i & 1 for i in range(31)]
    for n in range(1600 + length - 31):
        x1.append((x1[n + 3] + x1[n]) % 2)
        x2.append((x2[n + 3] + x2[n + 2] + x2[n + 1] + x2[n]) % 2)
    return [(a + b) % 2 for a, b in zip(x1[1600:], x2[1600:], strict=True)]


@functools.cache
def slow_crs(cell_id, num_rb, slot, number):
    """r_{l,n_s}(m') of 6.10.1.1 and 6.10.1.2 for m = 0 to 2 num_rb - 1."""
    c = slow_gold(2**10 * (7 * (slot + 1) + number + 1) * (2 * cell_id + 1) + 2 * cell_id + 1, 440)
    r = [((1 - 2 * c[2 * m]) + 1j * (1 - 2 * c[2 * m + 1])) / 2**0.5 for m in range(220)]
    return [r[m + 110 - num_rb] for m in range(2 * num_rb)]


def slow_crs_port(cell_id, slot, number, k, ports):
    """The port whose reference signal has subcarrier k of a symbol, of the first `ports`, or None: 6.10.1.2."""
    for port in range(ports):
        if port < 2 and number in (0, 4):
            v = (0 if number == 0 else 3) if port == 0 else (3 if number == 0 else 0)
        elif port >= 2 and number == 1:
            v = 3 * (slot % 2) if port == 2 else 3 + 3 * (slot % 2)
        else:
            continue
        if k % 6 == (v + cell_id % 6) % 6:
            return port
    return None


PATTERNS = {  # table 4.2-2, as pairs (subframes of each kind)
    0: ("05", "16"),
    1: ("0459", "16"),
    2: ("034589", "16"),
    3: ("056789", "1"),
    4: ("0456789", "1"),
    5: ("03456789", "1"),
    6: ("059", "16"),
}
DWPTS_TS = (6592, 19760, 21952, 24144, 26336, 6592, 19760, 21952, 24144, 13168)  # table 4.2-1


def slow_length(cell, subframe):
    """Table 4.2-1 gives durations in T_s: prefixes of 160 and 144, 2048 useful."""
    if cell.duplex == "FDD":
        return 14
    downlink, special = PATTERNS[cell.uldl_config]
    if str(subframe % 10) in downlink:
        return 14
    if str(subframe % 10) not in special:
        return 0
    durations = np.cumsum([2048 + (160 if i % 7 == 0 else 144) for i in range(14)])
    return durations.tolist().index(DWPTS_TS[cell.special_config]) + 1


def slow_role(cell, subframe, symbol, k):
    """What a cell has on a resource element: a word, or "" for nothing."""
    length, slot, number = slow_length(cell, subframe), 2 * subframe + symbol // 7, symbol % 7
    if symbol >= length:
        return ""
    from_centre = k - 6 * cell.num_rb
    if slow_crs_port(cell.cell_id, slot, number, k, cell.num_ports) is not None:
        return "crs"
    pss = [(0, 6), (5, 6)] if cell.duplex == "FDD" else [(1, 2), (6, 2)]
    sss = [(0, 5), (5, 5)] if cell.duplex == "FDD" else [(0, 13), (5, 13)]
    if (subframe, symbol) in pss + sss and -36 <= from_centre < 36:
        return "sync" if -31 <= from_centre < 31 else ""
    if slot == 1 and number < 4 and -36 <= from_centre < 36:
        return "" if slow_crs_port(cell.cell_id, slot, number, k, 4) is not None else "pbch"
    control = (
        min(cell.control_symbols, 2) if cell.duplex == "TDD" and subframe in (1, 6) else cell.control_symbols
    )
    if symbol < control:
        if slow_crs_port(cell.cell_id, slot, number, k, max(2, cell.num_ports)) is not None:
            return ""
        for i in range(4):  # 6.7.4
            k_bar = 6 * (cell.cell_id % (2 * cell.num_rb))
            if symbol == 0 and 0 <= k - (k_bar + i * cell.num_rb // 2 * 6) % (12 * cell.num_rb) < 6:
                return "pcfich"
        return "control"
    return "pdsch" if length > 3 else ""


@functools.cache
def roles(cell):
    """[140, 12 num_rb] of the words of `slow_role`."""
    table = [[slow_role(cell, row // 14, row % 14, k) for k in range(12 * cell.num_rb)] for row in range(140)]
    return np.array(table)


# ---- sequences


@pytest.mark.parametrize("c_init", [0, 1, 2**30, 2**31 - 1, 123456789])
def test_gold_sequence_is_that_of_two_shift_registers(c_init):
    assert gold(c_init, 500).tolist() == slow_gold(c_init, 500)


def test_gold_sequences_of_many_starts_at_once():
    starts = np.array([[3, 5, 7], [11, 2**31 - 1, 0]])
    bits = gold(starts, 40)
    assert bits.shape == (2, 3, 40)
    assert all(bits[i, j].tolist() == slow_gold(int(starts[i, j]), 40) for i in range(2) for j in range(3))


@pytest.mark.parametrize(("n_id_2", "root"), [(0, 25), (1, 29), (2, 34)])
def test_pss_is_a_zadoff_chu_sequence_without_its_middle(n_id_2, root):
    chu = [1.0]  # by recurrence: x(n + 1) / x(n) = exp(-j 2 pi u (n + 1) / 63)
    for n in range(62):
        chu.append(chu[-1] * np.exp(-2j * np.pi * root * (n + 1) / 63))
    chu = np.array(chu)
    signal = lte.pss(n_id_2)
    assert signal.dtype == np.complex64
    np.testing.assert_allclose(signal, np.delete(chu, 31), atol=1e-5)
    np.testing.assert_allclose(np.abs(signal), 1, atol=1e-6)
    np.testing.assert_allclose(signal, signal[::-1], atol=1e-6)
    whole = np.insert(signal, 31, chu[31])
    correlation = np.fft.ifft(np.abs(np.fft.fft(whole)) ** 2)
    assert np.abs(correlation[1:]).max() < 1e-3 * correlation[0].real


def test_pss_of_two_cells_differ_and_two_roots_are_conjugates():
    signals = [lte.pss(i) for i in range(3)]
    np.testing.assert_allclose(signals[1], signals[2].conj(), atol=1e-6)  # 29 + 34 = 63
    for a, b in ((0, 1), (0, 2), (1, 2)):
        spectra = [np.fft.fft(np.insert(signals[i], 31, 0)) for i in (a, b)]
        assert np.abs(np.fft.ifft(spectra[0] * spectra[1].conj())).max() < 0.45 * 62


def shift_register(feedback):
    state, out = [0, 0, 0, 0, 1], []
    for _ in range(31):
        out.append(1 - 2 * state[0])
        state = [*state[1:], sum(state[i] for i in feedback) % 2]
    return out


def test_sss_of_all_cells_is_the_standards():
    # Table 6.11.2.1-1 lists the pairs m0 < m1 by their distance: (0, 1) ... (29, 30), (0, 2) ... up to the
    # 168th.
    pairs = [(m0, m0 + distance) for distance in range(1, 8) for m0 in range(31 - distance)][:168]
    assert pairs[30] == (0, 2)
    assert pairs[167] == (2, 9)
    s, c, z = shift_register([0, 2]), shift_register([0, 3]), shift_register([0, 1, 2, 4])
    for cell_id in range(504):
        (m0, m1), n_id_2 = pairs[cell_id // 3], cell_id % 3
        first, second = [], []
        for n in range(31):
            s0, s1 = s[(n + m0) % 31], s[(n + m1) % 31]
            c0, c1 = c[(n + n_id_2) % 31], c[(n + n_id_2 + 3) % 31]
            first += [s0 * c0, s1 * c1 * z[(n + m0 % 8) % 31]]
            second += [s1 * c0, s0 * c1 * z[(n + m1 % 8) % 31]]
        assert lte.sss(cell_id, 0).tolist() == first
        assert lte.sss(cell_id, 5).tolist() == second


def test_sss_of_all_cells_and_half_frames_are_distinct():
    signals = np.array([lte.sss(cell_id, subframe) for cell_id in range(504) for subframe in (0, 5)])
    assert set(np.unique(signals)) == {-1, 1}
    products = signals @ signals.T - 62 * np.eye(len(signals))
    assert products.max() < 62


@pytest.mark.parametrize(("cell_id", "num_rb"), [(0, 6), (1, 15), (168, 25), (77, 50), (503, 100)])
def test_crs_values_and_places_in_all_slots(cell_id, num_rb):
    for port, number in [(0, 0), (0, 4), (1, 0), (1, 4), (2, 1), (3, 1)]:
        values, offsets = lte.crs(cell_id, num_rb, port, np.arange(20), number)
        assert values.shape == (20, 2 * num_rb)
        assert values.dtype == np.complex64
        for slot in range(20):
            np.testing.assert_allclose(values[slot], slow_crs(cell_id, num_rb, slot, number), atol=1e-6)
            assert slow_crs_port(cell_id, slot, number, offsets[slot], 4) == port
        one = lte.crs(cell_id, num_rb, port, 7, number)
        assert np.array_equal(one[0], values[7])
        assert one[1] == offsets[7]


# ---- the grid


@each_cell
def test_always_on_signals_fill_just_their_places(cell):
    grid = resource_grid(replace(cell, control_load=0.0), 0, idle(cell), Stream(1))
    expected = np.isin(roles(cell), ["crs", "sync", "pbch", "pcfich"])
    assert np.array_equal(without_dc(grid.occupied, cell), expected)


@each_cell
def test_a_full_cell_fills_just_what_the_standard_leaves_it(cell):
    grid = resource_grid(replace(cell, control_load=1.0), 0, full(cell), Stream(1))
    assert np.array_equal(without_dc(grid.occupied, cell), roles(cell) != "")


@each_cell
def test_occupied_is_where_a_port_sends_and_dc_is_silent(cell):
    grid = resource_grid(cell, 7, full(cell, 23, 6), Stream(2))
    assert grid.values.dtype == torch.complex64
    assert grid.values.shape == (cell.num_ports, 23 * 14, 12 * cell.num_rb + 1)
    assert grid.occupied.shape == grid.values.shape[1:]
    assert torch.equal(grid.occupied, (grid.values != 0).any(0))
    assert not grid.occupied[:, 6 * cell.num_rb].any()
    assert (grid.spacing_hz, grid.lowest_hz, grid.first_symbol) == (15e3, -6 * cell.num_rb * 15e3, 7 * 14)


@each_cell
@pytest.mark.parametrize("first", [0, 3, 41])
def test_reference_and_synchronization_signals_are_in_every_frame(cell, first):
    """Symbol by symbol, also where the grid starts within a frame and ends within another."""
    grid = resource_grid(cell, first, full(cell, 14), Stream(3))
    values = without_dc(grid.values, cell)
    for row in range(values.shape[1]):
        subframe, symbol = (first + row // 14) % 10, row % 14
        slot, number = 2 * subframe + symbol // 7, symbol % 7
        role = roles(cell)[subframe * 14 + symbol]
        for port in range(cell.num_ports if "crs" in role else 0):
            owned = [
                slow_crs_port(cell.cell_id, slot, number, k, cell.num_ports) == port
                for k in range(12 * cell.num_rb)
            ]
            if any(owned):
                expected = slow_crs(cell.cell_id, cell.num_rb, slot, number)
                np.testing.assert_allclose(values[port, row, owned], expected, atol=1e-6)
            others = (role == "crs") & ~np.array(owned)
            assert not values[port, row, others].any()
        if "sync" in role:
            primary = symbol == (6 if cell.duplex == "FDD" else 2)
            signal = lte.pss(cell.cell_id % 3) if primary else lte.sss(cell.cell_id, subframe)
            np.testing.assert_allclose(values[0, row, role == "sync"], signal, atol=1e-6)
            assert not values[1:, row, role == "sync"].any()


def test_pbch_has_240_elements_whatever_the_ports():
    for ports in (1, 2, 4):
        cell = LteCell(25, 7, num_ports=ports, control_load=0.0)
        grid = resource_grid(cell, 0, idle(cell), Stream(4))
        block = np.where(roles(cell) == "pbch", without_dc(grid.values, cell), 0)
        for port in range(ports):
            rows, columns = np.nonzero(block[port])
            assert len(rows) == 240
            assert (rows.min(), rows.max()) == (7, 10)
            assert (columns.min() >= 150 - 36) & (columns.max() < 150 + 36)
            points = np.unique(np.round(block[port][rows, columns] * (2 * ports) ** 0.5, 4))
            assert set(points) == {1 + 1j, 1 - 1j, -1 + 1j, -1 - 1j}


@each_cell
def test_schedule_is_honoured(cell):
    rng = np.random.default_rng(5)
    quiet = replace(cell, control_load=0.0)
    schedule = rng.choice([0, 0, 2, 4, 6, 8], (12, cell.num_rb)).astype(np.uint8)
    first = 8
    grid = resource_grid(quiet, first, schedule, Stream(5))
    always = resource_grid(quiet, first, 0 * schedule, Stream(5)).occupied
    in_frame = np.concatenate([roles(cell)[112:], roles(cell)])[: 12 * 14]
    wanted = (in_frame == "pdsch") & np.repeat(np.repeat(schedule > 0, 12, axis=1), 14, axis=0)
    assert np.array_equal(without_dc(grid.occupied & ~always, cell), wanted)

    bits = np.repeat(np.repeat(schedule, 12, axis=1), 14, axis=0)
    for order in (2, 4, 6, 8):
        points = without_dc(grid.values, cell)[:, wanted & (bits == order)].flatten()
        levels = np.unique(np.round(points.real * cell.num_ports**0.5, 4))
        odd = np.arange(1 - 2 ** (order // 2), 2 ** (order // 2), 2)  # -3, -1, 1, 3 for 16-QAM
        np.testing.assert_allclose(levels, odd / np.sqrt(2 * np.mean(odd**2)), atol=1e-4)


@pytest.mark.parametrize("ports", [1, 2, 4])
def test_pdsch_has_unit_mean_power_over_all_ports_each_its_own_symbols(ports):
    cell = LteCell(50, 9, num_ports=ports)
    for bits in (2, 4, 6, 8):
        grid = resource_grid(cell, 0, full(cell, bits=bits), Stream(6))
        data = without_dc(grid.values, cell)[:, roles(cell) == "pdsch"]  # (ports, some 64000)
        covariance = data @ data.conj().T / data.shape[1]
        np.testing.assert_allclose(covariance, np.eye(ports) / ports, atol=0.02 / ports)
        assert abs(data.mean()) < 0.01


@pytest.mark.parametrize("first", [0, 7])
def test_powers_are_what_was_asked_for(first):
    cell = LteCell(25, 11, num_ports=2, control_load=1.0, crs_boost_db=3.0, sync_boost_db=-2.0)
    rng = np.random.default_rng(7)
    power_db = rng.uniform(-10, 10, (10, 25))
    grid = resource_grid(cell, first, full(cell), Stream(7), power_db=power_db)
    power = np.square(np.abs(without_dc(grid.values, cell))).sum(0)
    role = np.roll(roles(cell), -14 * first, axis=0)
    by_element = 10 ** (np.repeat(np.repeat(power_db, 12, axis=1), 14, axis=0) / 10)
    for word, expected in (
        ("crs", 10**0.3),
        ("sync", 10**-0.2),
        ("pbch", 10**-0.2),
        ("pcfich", 1),
        ("control", 1),
    ):
        np.testing.assert_allclose(power[role == word], expected, rtol=1e-5)
    np.testing.assert_allclose(power[role == "pdsch"], by_element[role == "pdsch"], rtol=1e-5)


# ---- control region


@each_cell
def test_control_groups_are_on_or_off_as_a_whole(cell):
    """6.2.4: groups of 4 elements fill each resource block, two where reference signals take 4 of 12, else
    three.
    """
    grid = resource_grid(cell, 0, idle(cell, 100), Stream(8))
    occupied = without_dc(grid.occupied, cell).reshape(10, 140, -1)
    changes = []
    for row in np.flatnonzero((roles(cell) == "control").any(1)):
        columns = np.flatnonzero(roles(cell)[row] == "control")
        assert len(columns) % 4 == 0
        states = occupied[:, row, columns].reshape(10, -1, 4)
        assert (states == states[..., :1]).all()
        assert all(column // 12 == columns[4 * i] // 12 for i, column in enumerate(columns[::4]))
        changes.append((states[:, 1:, 0] != states[:, :-1, 0]).ravel())
    # Neighbours are drawn apart: they differ with 2 p (1 - p), on average 1/3 for p uniform in 0 to 1.
    assert abs(np.concatenate(changes).mean() - 1 / 3) < 0.05


@pytest.mark.parametrize("load", [0.0, 0.1, 0.5, 0.8, 1.0])
def test_control_load_is_the_mean_share_and_varies(load):
    cell = LteCell(25, 3, control_symbols=3, control_load=load)
    grid = resource_grid(cell, 0, idle(cell, 400), Stream(9))
    control = np.tile(roles(cell) == "control", (40, 1))
    on = (without_dc(grid.occupied, cell) & control).reshape(400, -1).sum(1) / control.reshape(400, -1).sum(1)
    assert abs(on.mean() - load) < 0.04
    spread = min(load, 1 - load) / 3**0.5  # of the subframes' uniform shares
    assert spread * 0.9 <= on.std() <= spread * 1.1 + 0.04 * (spread > 0)


# ---- TDD


@pytest.mark.parametrize("config", range(7))
@pytest.mark.parametrize("special", range(10))
def test_tdd_sends_in_downlink_and_dwpts_only(config, special):
    cell = LteCell(6, 30, "TDD", config, special, control_load=1.0)
    grid = resource_grid(cell, 4, full(cell, 11), Stream(10))
    active = grid.occupied.any(1).view(11, 14).numpy()
    for i, subframe in enumerate(range(4, 15)):
        length = slow_length(cell, subframe)
        assert lte.downlink_symbols(cell, subframe) == length
        assert active[i].tolist() == [symbol < length for symbol in range(14)]


def test_fdd_sends_in_every_symbol():
    cell = LteCell(15, 30, control_load=1.0)
    assert [lte.downlink_symbols(cell, subframe) for subframe in range(20)] == [14] * 20
    assert resource_grid(cell, 0, full(cell), Stream(11)).occupied.any(1).all()


# ---- randomness and errors


def test_same_stream_same_grid_other_stream_other_data():
    cell = LteCell(25, 5, num_ports=2)
    schedule = full(cell, 3, 4)
    grid = resource_grid(cell, 2, schedule, Stream(1, 2, 3))
    again = resource_grid(
        cell, 2, torch.from_numpy(schedule).long(), Stream(1, 2, 3), power_db=torch.zeros(3, 25)
    )
    other = resource_grid(cell, 2, schedule, Stream(1, 2, 4))
    assert torch.equal(grid.values, again.values)
    assert torch.equal(grid.occupied, again.occupied)
    data = torch.from_numpy(np.insert(roles(cell)[28:70] == "pdsch", 150, False, axis=1))
    assert (grid.values[:, data] != other.values[:, data]).float().mean() > 0.9
    assert not torch.equal(grid.occupied, other.occupied)  # the control region's groups


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_same_grid_on_a_gpu():
    cell = LteCell(25, 5, num_ports=4, sync_boost_db=1.7)
    power_db = np.linspace(-5, 5, 250).reshape(10, 25)
    here, there = (
        resource_grid(cell, 0, full(cell, 10, 6), Stream(1), device, power_db) for device in ("cpu", "cuda")
    )
    assert torch.equal(here.occupied, there.occupied.cpu())
    torch.testing.assert_close(here.values, there.values.cpu(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_rb": 7},
        {"cell_id": 504},
        {"cell_id": -1},
        {"cell_id": 1.5},
        {"duplex": "fdd"},
        {"uldl_config": 7},
        {"special_config": 10},
        {"num_ports": 3},
        {"control_symbols": 0},
        {"control_symbols": 4},
        {"num_rb": 6, "control_symbols": 1},
        {"num_rb": 6, "control_symbols": 5},
        {"control_load": 1.1},
        {"control_load": float("nan")},
        {"crs_boost_db": float("inf")},
        {"sync_boost_db": float("nan")},
    ],
)
def test_parameters_that_are_not_the_standards(wrong):
    with pytest.raises(ValueError, match=f"{list(wrong)[-1]}.*{list(wrong.values())[-1]}"):
        LteCell(**wrong)


def test_schedules_that_fit_no_grid():
    cell = LteCell(6)
    for schedule in (np.zeros((2, 5), np.uint8), np.zeros((0, 6), np.uint8), np.zeros(6, np.uint8)):
        with pytest.raises(ValueError, match=r"schedule \[slots, 6\]"):
            resource_grid(cell, 0, schedule, Stream(1))
    for bits in (1, 10):
        with pytest.raises(ValueError, match=f"bits a symbol.*{bits}"):
            resource_grid(cell, 0, full(cell, bits=bits), Stream(1))
    with pytest.raises(ValueError, match="first_subframe=-1"):
        resource_grid(cell, -1, full(cell), Stream(1))
    for power_db in (np.zeros((10, 5)), np.full((10, 6), np.nan)):
        with pytest.raises(ValueError, match="power_db"):
            resource_grid(cell, 0, full(cell), Stream(1), power_db=power_db)


# ---- real cells


def demodulated(iq, start, useful, num_rb):
    """A frame's symbols: complex [140, 12 num_rb]; `start` is where the frame begins, `useful` the samples of
    1 / 15 kHz.
    """
    row = np.arange(140)
    long, short = useful * 10 // 128, useful * 9 // 128
    starts = start + row // 7 * useful * 15 // 2 + long + row % 7 * (useful + short)
    spectrum = np.fft.fft(iq[starts[:, None] + np.arange(useful)], axis=1)
    half = 6 * num_rb
    return np.concatenate([spectrum[:, -half:], spectrum[:, 1 : half + 1]], axis=1)


def frame_start(iq, useful, cell_id):
    """Where PSS and SSS say that a frame of cell `cell_id` begins."""
    spectrum = np.zeros(useful, complex)
    spectrum[-31:], spectrum[1:32] = np.split(lte.pss(cell_id % 3), 2)
    pulse = np.fft.ifft(spectrum)
    half_frame = useful * 75
    found = np.abs(fftconvolve(iq[:half_frame], pulse[::-1].conj(), "valid")).argmax()
    start = found - (useful * 10 // 128 + 6 * (useful + useful * 9 // 128))
    start += half_frame * (start < 0)
    fits = []
    for subframe in (0, 5):
        frame = demodulated(iq, start, useful, 6)
        signal = frame[5, 5:67] / frame[6, 5:67] * lte.pss(cell_id % 3)  # PSS stands for the channel
        fits.append(np.abs(signal @ lte.sss(cell_id, subframe)) / np.abs(signal).sum())
    return start if fits[0] > fits[1] else start + half_frame


def smoothness(frame, cell_id, num_rb, port, number):
    """1 for reference signals that a smooth channel turned, near 0 for anything else: [20]."""
    values, offsets = lte.crs(cell_id, num_rb, port, np.arange(20), number)
    received = frame[7 * np.arange(20)[:, None] + number, offsets[:, None] + 6 * np.arange(2 * num_rb)]
    turned = received * values.conj()
    steps = turned[:, 1:] * turned[:, :-1].conj()
    return np.abs(steps.sum(1)) / np.abs(steps).sum(1)


@needs_captures
def test_a_real_cell_of_six_resource_blocks():
    """The srsRAN project's test signal of an Amarisoft base station, cell 1, one port (its frame starts at
    sample 0).
    """
    (recording,) = open_recording(CAPTURES / "lte-signal.1.92M.amar.sigmf-meta")
    iq = recording.read(0, 19200)
    frame = demodulated(iq, 0, 128, 6)
    channel = frame[6, 5:67] / lte.pss(1)
    fits = [np.abs((frame[5, 5:67] / channel) @ lte.sss(cell_id, 0)) for cell_id in range(504)]
    assert np.argmax(fits) == 1
    for number in (0, 4):
        assert smoothness(frame, 1, 6, 0, number).min() > 0.97
        assert smoothness(frame, 2, 6, 0, number).mean() < 0.6

    # CRS, PSS, SSS, PBCH and PCFICH are on the air where the grid has them; what it keeps free beside them is
    # silent.
    cell = LteCell(6, 1, control_symbols=2, control_load=0.0)
    power = np.abs(frame) ** 2
    always = without_dc(resource_grid(cell, 0, idle(cell), Stream(1)).occupied, cell)
    assert power[always].min() > 3
    broadcast_rows = np.isin(np.arange(140), [5, 6, 7, 8, 9, 10, 75, 76])
    free = (roles(cell) == "") & broadcast_rows[:, None]
    assert (
        free.sum() == 4 * 10 + 12 + 24
    )  # beside PSS and SSS; port 1's CRS, and ports 2 and 3's, in the PBCH
    assert power[free].max() < 0.1


@needs_captures
def test_a_real_cell_of_fifty_resource_blocks_and_two_ports():
    """Cell 360 at 796 MHz, as the capture's annotation says; its oscillator was 5.8 kHz off."""
    (recording,) = open_recording(CAPTURES / "lte-f796-s19.2-bw20-0.08s-hackrf.sigmf-meta")
    iq = recording.read(0, 500_000)
    iq = iq * np.exp(-2j * np.pi * 5800 / 19.2e6 * np.arange(len(iq)))
    frame = demodulated(iq, frame_start(iq, 1280, 360) - 10, 1280, 50)
    for port in (0, 1):
        for number in (0, 4):
            assert smoothness(frame, 360, 50, port, number).min() > 0.9
            assert smoothness(frame, 361, 50, port, number).mean() < 0.5
