"""The synchronization signal block (SSB) of 5G NR in FR1: its sequences, its timing and its resource grid.

Clauses are those of TS 38.211 unless another is named. PSS, SSS and DM-RS are exact; PBCH bits are random.
"""

from typing import NamedTuple

import numpy as np
import torch

from radio.scenes.expect import expect
from radio.scenes.ofdm import TC_PER_S, Grid, random_symbols, symbol_times
from radio.sequences import gold, qpsk
from radio.sequences import nr_pss as pss
from radio.sequences import nr_sss as sss

# TS 38.213 4.1: {case: (spacing in kHz, first symbols, period of these in symbols)}.
SSB_CASES = {"A": (15, (2, 8), 14), "B": (30, (4, 8, 16, 20), 28), "C": (30, (2, 8), 14)}
_SYMBOLS, _SUBCARRIERS = 4, 240
_SILENT, _SYNC, _PBCH = range(3)
_LAYOUT = np.full((_SYMBOLS, _SUBCARRIERS), _PBCH)  # table 7.4.3.1-1
_LAYOUT[0] = _LAYOUT[2, 48:192] = _SILENT
_LAYOUT[::2, 56:183] = _SYNC
_TC_PER_MS = TC_PER_S // 1000
_MARGIN = _SYMBOLS - 1  # rows before and after a grid that hold the rest of an SSB cut by its ends


def ssb_symbols(case, num_ssb):
    """First symbol of each SSB in its half-frame, TS 38.213 4.1. case: A, B or C. num_ssb: 4 or 8."""
    is_known = case in SSB_CASES and num_ssb in (4, 8)
    expect(is_known, f"ssb_case A, B or C and num_ssb 4 or 8: {case=} {num_ssb=}")
    _, firsts, period = SSB_CASES[case]
    return tuple(first + period * n for n in range(num_ssb // len(firsts)) for first in firsts)


def downlink_beams(spacing_khz, tdd_pattern, ssb_case, num_ssb=8, ssb_period_ms=20, ssb_half_frame=0):
    """SSB indices that never meet a U slot of the pattern (TS 38.213 11.1): a tuple."""
    firsts = ssb_symbols(ssb_case, num_ssb)
    slot = 14 * SSB_CASES[ssb_case][0]  # length of a slot in a unit in which an SSB symbol takes spacing_khz
    starts = [start_ms * spacing_khz // 15 for start_ms in range(5 * ssb_half_frame, 20, ssb_period_ms)]

    def is_downlink(first):
        touched = range(first * spacing_khz // slot, ((first + _SYMBOLS) * spacing_khz - 1) // slot + 1)
        slots = (start + number for start in starts for number in touched)
        return not tdd_pattern or all(tdd_pattern[slot % len(tdd_pattern)] != "U" for slot in slots)

    return tuple(beam for beam, first in enumerate(firsts) if is_downlink(first))


def pbch_dmrs(cell_id, ssb_index, half_frame, num_ssb):
    """DM-RS of PBCH, 7.4.1.4.1: complex64 [144]. half_frame: 0 or 1, matters only where num_ssb is 4."""
    number = 1 + ssb_index + (4 * half_frame if num_ssb == 4 else 0)
    c_init = 2**11 * number * (cell_id // 4 + 1) + 2**6 * number + cell_id % 4
    return qpsk(gold(c_init, 288))


def ssb(cell_id, ssb_index, half_frame, num_ssb, stream, device="cpu"):
    """An SSB, table 7.4.3.1-1, with random PBCH: complex64 [4, 240], elements of unit power or silent."""
    block = np.zeros(_LAYOUT.shape, np.complex64)
    block[_LAYOUT == _SYNC] = np.concatenate((pss(cell_id % 3), sss(cell_id)))
    comb = np.arange(_SUBCARRIERS) % 4 == cell_id % 4
    block[(_LAYOUT == _PBCH) & comb] = pbch_dmrs(cell_id, ssb_index, half_frame, num_ssb)
    payload = np.where((_LAYOUT == _PBCH) & ~comb, 2, 0).astype(np.uint8)
    return torch.from_numpy(block).to(device) + random_symbols(torch.from_numpy(payload).to(device), stream)


class SsbRows(NamedTuple):
    """The symbols of an SSB grid and the SSBs in them, on the host."""

    starts: np.ndarray  # int64 [rows + 1], T_c
    first_symbol: int  # number of the first row
    blocks: list  # (row + _MARGIN, index, half-frame) of every SSB, whole or in part
    occupied: np.ndarray  # bool [rows, 240]


def ssb_rows(carrier, starts):
    """The SSB symbols that cover the time of a carrier's rows, and the carrier's rows that each SSB touches.

    starts: int64 [rows + 1], T_c: of the carrier's symbols. Returns SsbRows and a list of (first row, end).
    """
    symbols_a_ms = 14 * carrier.ssb_spacing_khz // 15
    first_ms, end_ms = int(starts[0] // _TC_PER_MS) - 5, int(-(-starts[-1] // _TC_PER_MS)) + 5
    first_symbol, num_symbols = first_ms * symbols_a_ms, (end_ms - first_ms) * symbols_a_ms
    clock = symbol_times(1e3 * carrier.ssb_spacing_khz, first_symbol, num_symbols)[0].numpy()
    first = int(np.searchsorted(clock, starts[0], "right")) - 1
    end = int(np.searchsorted(clock, starts[-1]))

    blocks, touched = [], []
    occupied = np.zeros((end - first + 2 * _MARGIN, _SUBCARRIERS), bool)
    firsts = ssb_symbols(carrier.ssb_case, carrier.num_ssb)
    start_ms = first_ms + (5 * carrier.ssb_half_frame - first_ms) % carrier.ssb_period_ms
    for half_frame_ms in range(start_ms, end_ms - 4, carrier.ssb_period_ms):
        for index in sorted(set(carrier.ssb_beams)):
            at = (half_frame_ms - first_ms) * symbols_a_ms + firsts[index]
            if first - _SYMBOLS < at < end:
                row = at - first + _MARGIN
                blocks.append((row, index, half_frame_ms // 5 % 2))
                occupied[row : row + _SYMBOLS] = _LAYOUT != _SILENT
                touched_row = int(np.searchsorted(starts, clock[at], "right")) - 1
                touched.append((max(0, touched_row), int(np.searchsorted(starts, clock[at + _SYMBOLS]))))
    return SsbRows(clock[first : end + 1], first_symbol + first, blocks, occupied[_MARGIN:-_MARGIN]), touched


def ssb_grid(carrier, rows, stream, device):
    """`Grid` of an `NrCarrier`'s `SsbRows`: one port, 240 subcarriers; every SSB has a PBCH of its own."""
    shape = (len(rows.occupied) + 2 * _MARGIN, _SUBCARRIERS)
    values = torch.zeros(shape, dtype=torch.complex64, device=device)
    for number, (row, index, half_frame) in enumerate(rows.blocks):
        block = ssb(carrier.cell_id, index, half_frame, carrier.num_ssb, stream.child(number), device)
        values[row : row + _SYMBOLS] = block * 10 ** (carrier.ssb_power_db / 20)
    spacing_hz = 1e3 * carrier.ssb_spacing_khz
    lowest_hz = carrier.ssb_offset_hz - 120 * spacing_hz
    occupied = torch.from_numpy(rows.occupied).to(device)
    return Grid(values[None, _MARGIN:-_MARGIN], occupied, spacing_hz, lowest_hz, rows.first_symbol)
