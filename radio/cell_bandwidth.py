"""The bandwidth of an LTE cell, from its reference signals (CRS), which fill all of its band at any load."""

import numpy as np
import torch

from radio.cell_signals import Demodulator
from radio.sequences import CRS_SYMBOLS, lte_crs

SPACING_HZ = 15e3
NUM_RB = (6, 15, 25, 50, 75, 100)  # TS 36.101 table 5.6-1
_SYMBOL_S, _PREFIX_S = 2192 / 30.72e6, 160 / 30.72e6  # useful parts begin a prefix after the slot
_SLOT_S = 0.5e-3
_PSS_S = {"FDD": _PREFIX_S + 6 * _SYMBOL_S, "TDD": 1e-3 + _PREFIX_S + 2 * _SYMBOL_S}  # from the half-frame
_PORTS = (0, 1)
_INSIDE = 0.98  # of the band: where subcarriers are looked for
_LEAST_PAIRS = 3  # of reference signals in a ring
_SURE = 3.5  # standard deviations of a sum of random phasors: more is seen in 1 of 200,000
_THERE, _GONE = 0.3, 0.25  # coherence, as a share of the middle's: at least, at most


def lte_num_rb(iq, sample_rate_hz, cell_id, duplex, freq_hz, pss_s, half):
    """(Number of resource blocks, or None if the stretch does not tell; evidence that the cell is there).

    The evidence is that of the six middle resource blocks, in standard deviations of a sum of random phasors.

    Neighbouring reference signals see the same channel: their products, freed of the known signs, add up where the
    cell sends them, and cancel elsewhere. That is asked of each ring between two bandwidths, from the middle
    outwards. The last ring that is there counts if the next one is seen to be empty.

    Args:
        iq: complex64 [samples].
        freq_hz: the carrier's centre, from the band's.
        pss_s: start of a PSS; half: of the frame, 0 or 1, that it is in.
    """
    frame_s = pss_s - _PSS_S[duplex] - half * 5e-3
    slots = np.arange(int(np.ceil(-frame_s / _SLOT_S)), int((len(iq) / sample_rate_hz - frame_s) / _SLOT_S))
    if not len(slots):
        return None, 0.0
    turns = [_turns(iq, sample_rate_hz, cell_id, port, freq_hz, frame_s, slots) for port in _PORTS]

    # pairs of each ring that the band shows, as (coherence, its standard deviation in noise)
    places = np.arange(-NUM_RB[-1], NUM_RB[-1])
    inside = np.abs(freq_hz + (6 * places + 3) * SPACING_HZ) < _INSIDE * sample_rate_hz / 2
    distance = np.where(places < 0, -1 - places, places)
    ring = np.searchsorted(NUM_RB, distance, "right")
    pair = (ring[1:] == ring[:-1]) & (places[1:] != 0) & inside[1:] & inside[:-1]
    rings = []
    for number in range(len(NUM_RB)):
        chosen = pair & (ring[1:] == number)
        seen = max(abs(one[:, chosen].mean()) for one in turns) if chosen.any() else 0.0
        rings.append(
            (float(seen), 1 / np.sqrt(max(1, len(turns[0]) * chosen.sum())), chosen.sum() >= _LEAST_PAIRS)
        )
    return _outermost(rings), rings[0][0] / rings[0][1]


def _outermost(rings):
    middle = rings[0][0]
    if middle < _SURE * rings[0][1]:
        return None
    for number, (seen, noise, is_shown) in enumerate(rings):
        is_there = is_shown and seen > max(_SURE * noise, _THERE * middle)
        if is_there:
            continue
        is_empty = is_shown and seen < _GONE * middle and _SURE * noise < _THERE * middle
        return NUM_RB[number - 1] if is_empty else None
    return NUM_RB[-1]


def _turns(iq, sample_rate_hz, cell_id, port, freq_hz, frame_s, slots):
    """Phasors from one reference signal to the next: complex64 [symbols, 199], pairs by ascending frequency."""
    found = []
    for symbol in CRS_SYMBOLS[port]:
        start_s = torch.from_numpy(frame_s + slots * _SLOT_S + _PREFIX_S + symbol * _SYMBOL_S)[None]
        values, offsets = lte_crs(cell_id, NUM_RB[-1], port, slots % 20, symbol)
        tones = 6 * np.arange(-NUM_RB[-1], NUM_RB[-1]) + offsets[0]
        tones += tones >= 0  # DC is not counted
        symbols = Demodulator(iq, sample_rate_hz, SPACING_HZ, tones)
        channel = (
            symbols(start_s, torch.tensor([freq_hz], dtype=torch.double))[0, :, 0].numpy() * values.conj()
        )
        product = channel[:, 1:] * channel[:, :-1].conj()
        found.append(product / np.maximum(np.abs(product), 1e-30))
    return np.concatenate(found)
