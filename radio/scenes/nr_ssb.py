"""The synchronization signal block of 5G NR in FR1: its sequences, when it is sent, and the resource grid of a carrier's.

Clauses are those of TS 38.211 where no other is named. PSS, SSS and the DM-RS of PBCH are exact; PBCH's bits are random.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from radio.scenes.ofdm import TC_PER_S, Grid, random_symbols, symbol_times
from radio.scenes.sequences import gold, qpsk

# TS 38.213 4.1: {case: (spacing in kHz, first symbols, symbols until they come again)}.
SSB_CASES = {"A": (15, (2, 8), 14), "B": (30, (4, 8, 16, 20), 28), "C": (30, (2, 8), 14)}
SSB_PERIODS_MS = (5, 10, 20, 40, 80, 160)
_SYMBOLS, _SUBCARRIERS = 4, 240
_SILENT, _SYNC, _PBCH = range(3)
_LAYOUT = np.full((_SYMBOLS, _SUBCARRIERS), _PBCH)  # table 7.4.3.1-1
_LAYOUT[0] = _LAYOUT[2, 48:192] = _SILENT
_LAYOUT[::2, 56:183] = _SYNC
_TC_PER_MS = TC_PER_S // 1000


def ssb_symbols(case, num_ssb):
    """First symbol of each SSB index in its half-frame, TS 38.213 4.1: `num_ssb` (4 or 8) numbers. Case A, B or C."""
    if case not in SSB_CASES or num_ssb not in (4, 8):
        raise ValueError(f"expected ssb_case A, B or C and num_ssb 4 or 8: {case=} {num_ssb=}")
    _, firsts, period = SSB_CASES[case]
    return tuple(first + period * n for n in range(num_ssb // len(firsts)) for first in firsts)


def downlink_beams(spacing_khz, tdd_pattern, ssb_case, num_ssb=8, ssb_period_ms=20, ssb_half_frame=0):
    """The SSB indices that never meet a U slot of the pattern (TS 38.213 11.1): what `ssb_beams` is chosen from."""
    firsts = ssb_symbols(ssb_case, num_ssb)
    slot = 14 * SSB_CASES[ssb_case][0]  # in units of which an SSB symbol is as long as spacing_khz

    def is_downlink(first):
        touched = range(first * spacing_khz // slot, ((first + _SYMBOLS) * spacing_khz - 1) // slot + 1)
        starts = (start_ms * spacing_khz // 15 for start_ms in range(5 * ssb_half_frame, 20, ssb_period_ms))
        return all(tdd_pattern[(start + number) % len(tdd_pattern)] != "U" for start in starts for number in touched)

    return tuple(beam for beam, first in enumerate(firsts) if not tdd_pattern or is_downlink(first))


@lru_cache(maxsize=4)
def _m_sequence(tap, start):
    """1 - 2 x(i) with x(i + 7) = x(i + tap) + x(i) modulo 2, from x(0) ... x(6) = `start`: float32 [127]."""
    x = list(start)
    for i in range(120):
        x.append(x[i + tap] ^ x[i])
    return 1 - 2 * np.array(x, np.float32)


def pss(n_id_2):
    """Primary synchronization signal, 7.4.2.2.1: float32 [127] of ±1. n_id_2: the cell identity modulo 3."""
    if n_id_2 not in (0, 1, 2):
        raise ValueError(f"expected n_id_2 0 to 2: {n_id_2=}")
    return np.roll(_m_sequence(4, (0, 1, 1, 0, 1, 1, 1)), -43 * n_id_2)


def sss(cell_id):
    """Secondary synchronization signal, 7.4.2.3.1: float32 [127] of ±1."""
    if not 0 <= cell_id <= 1007:
        raise ValueError(f"expected cell_id 0 to 1007: {cell_id=}")
    n_id_1, n_id_2 = divmod(cell_id, 3)
    m_0, m_1 = 15 * (n_id_1 // 112) + 5 * n_id_2, n_id_1 % 112
    start = (1, 0, 0, 0, 0, 0, 0)
    return np.roll(_m_sequence(4, start), -m_0) * np.roll(_m_sequence(1, start), -m_1)


def pbch_dmrs(cell_id, ssb_index, half_frame, num_ssb):
    """DM-RS of PBCH, 7.4.1.4.1: complex64 [144], as they are mapped. half_frame: 0 or 1, has a part where num_ssb is 4."""
    number = 1 + ssb_index + (4 * half_frame if num_ssb == 4 else 0)
    c_init = 2**11 * number * (cell_id // 4 + 1) + 2**6 * number + cell_id % 4
    return qpsk(gold(c_init, 288))


def ssb(cell_id, ssb_index, half_frame, num_ssb, stream, device="cpu"):
    """A synchronization signal block, table 7.4.3.1-1, with random PBCH: complex64 [4, 240] of unit power or silent."""
    block = np.zeros(_LAYOUT.shape, np.complex64)
    block[_LAYOUT == _SYNC] = np.concatenate((pss(cell_id % 3), sss(cell_id)))
    comb = np.arange(_SUBCARRIERS) % 4 == cell_id % 4
    block[(_LAYOUT == _PBCH) & comb] = pbch_dmrs(cell_id, ssb_index, half_frame, num_ssb)
    payload = np.where((_LAYOUT == _PBCH) & ~comb, 2, 0).astype(np.uint8)
    return torch.from_numpy(block).to(device) + random_symbols(torch.from_numpy(payload).to(device), stream)


class SsbRows(NamedTuple):
    """The symbols of an SSB grid, and the blocks in them, on the host."""

    starts: np.ndarray  # int64 [rows + 1], T_c
    first_symbol: int  # number of the first row
    blocks: list  # (row, index, half-frame) of every SSB; the first and last may reach beyond the rows


def ssb_rows(carrier, starts):
    """What covers the time of an `NrCarrier`'s own rows, and which of those each SSB touches: SsbRows, [(first, end)].

    starts: int64 [rows + 1], T_c: of the carrier's symbols.
    """
    symbols_a_ms = 14 * carrier.ssb_spacing_khz // 15
    first_ms, end_ms = int(starts[0] // _TC_PER_MS) - 5, int(-(-starts[-1] // _TC_PER_MS)) + 5
    clock = (first_ms * symbols_a_ms, (end_ms - first_ms) * symbols_a_ms)
    clock = symbol_times(1e3 * carrier.ssb_spacing_khz, *clock)[0].numpy()
    first = int(np.searchsorted(clock, starts[0], "right")) - 1
    end = int(np.searchsorted(clock, starts[-1]))

    blocks, touched = [], []
    firsts = ssb_symbols(carrier.ssb_case, carrier.num_ssb)
    for half_frame_ms in range(first_ms, end_ms - 4):
        if (half_frame_ms - 5 * carrier.ssb_half_frame) % carrier.ssb_period_ms:
            continue
        for index in sorted(set(carrier.ssb_beams)):
            at = (half_frame_ms - first_ms) * symbols_a_ms + firsts[index]
            if first - _SYMBOLS < at < end:
                blocks.append((at - first, index, half_frame_ms // 5 % 2))
                rows = np.searchsorted(starts, clock[at], "right") - 1, np.searchsorted(starts, clock[at + _SYMBOLS])
                touched.append((max(0, rows[0]), rows[1]))
    return SsbRows(clock[first : end + 1], first_ms * symbols_a_ms + first, blocks), touched


def ssb_grid(carrier, rows, stream, device):
    """`Grid` of an `NrCarrier`'s `SsbRows`, of one port, 240 subcarriers; every block has random PBCH of its own."""
    shape = (len(rows.starts) - 1, _SUBCARRIERS)
    values = torch.zeros(shape, dtype=torch.complex64, device=device)
    occupied = torch.zeros(shape, dtype=torch.bool, device=device)
    sent = torch.from_numpy(_LAYOUT != _SILENT).to(device)
    for number, (row, index, half_frame) in enumerate(rows.blocks):
        block = ssb(carrier.cell_id, index, half_frame, carrier.num_ssb, stream.child(number), device)
        covered, inside = slice(max(0, row), row + _SYMBOLS), slice(max(0, -row), shape[0] - row)
        values[covered] = block[inside] * 10 ** (carrier.ssb_power_db / 20)
        occupied[covered] = sent[inside]
    spacing_hz = 1e3 * carrier.ssb_spacing_khz
    return Grid(values[None], occupied, spacing_hz, carrier.ssb_offset_hz - 120 * spacing_hz, rows.first_symbol)


def ssb_band_edges_hz(carrier, rows, begin, end):
    """Lower and upper edge of each SSB's subcarriers in the symbols that overlap a time, in Hz from the carrier's centre.

    begin, end: T_c. A flat list, without the SSBs that have no such symbol.
    """
    edges_hz = []
    overlap = (rows.starts[1:] > begin) & (rows.starts[:-1] < end)
    for row, _, _ in rows.blocks:
        used = [number for number in range(_SYMBOLS) if 0 <= row + number < len(overlap) and overlap[row + number]]
        used = np.flatnonzero((_LAYOUT[used] != _SILENT).any(0))
        for subcarrier in (used[0], used[-1] + 1) if len(used) else ():
            edges_hz.append(carrier.ssb_band_hz[0] + subcarrier * 1e3 * carrier.ssb_spacing_khz)
    return edges_hz
