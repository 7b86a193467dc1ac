"""The resource grids of a 5G NR downlink carrier: SSB, PDCCH, PDSCH and CSI-RS.

Clauses are those of TS 38.211. Reference signals are exact; the bits of PBCH, PDCCH and PDSCH are random.
Where signals meet, SSB displaces CSI-RS, CSI-RS displaces PDCCH, and PDCCH displaces PDSCH.
"""

import math
from typing import NamedTuple

import numpy as np
import torch

from radio.rng import Stream
from radio.scenes.expect import expect
from radio.scenes.nr import DMRS_SHORTEST, dmrs_symbols
from radio.scenes.nr_ssb import SsbRows, ssb_grid, ssb_rows
from radio.scenes.ofdm import Grid, random_symbols, symbol_times
from radio.scenes.traffic import checked_schedule
from radio.sequences import gold, qpsk

# Subcarriers of reference signals: (step, first, length), runs of `length` that begin every `step`.
_DMRS_COMBS = {1: (2, 0, 1), 2: (6, 0, 2)}  # 7.4.1.1.2, CDM group 0 of each type
_PDCCH_COMB = (4, 1, 1)  # 7.4.1.3.2

_BULK, _BROADCAST = range(2)  # purposes of random streams


class _Plan(NamedTuple):
    """Where a carrier sends each signal, on the host. Rows are the symbols of a grid."""

    order: np.ndarray  # uint8 [slots, 14, resource blocks]: bits a symbol of PDSCH and PDCCH
    pdcch: np.ndarray  # bool [slots, 14, resource blocks]
    dmrs: np.ndarray  # bool [slots, 14, resource blocks]: PDSCH's
    csi_rs: list  # of bool [slots, resource blocks], one for each resource
    starts: np.ndarray  # int64 [rows + 1], T_c: the carrier's symbols
    ssb: SsbRows


def _plan(carrier, first_slot, schedule):
    expect(first_slot >= 0, f"first_slot >= 0: {first_slot=}")
    slots = first_slot + np.arange(len(schedule))
    downlink, pdsch, dmrs = _slot_symbols(carrier, slots)

    order = schedule[:, None] * pdsch[:, :, None]
    pdcch = np.zeros(order.shape, bool)
    for number, coreset in enumerate(carrier.coresets):
        symbols = slice(coreset.first_symbol, coreset.first_symbol + coreset.num_symbols)
        sent = _pdcch_blocks(coreset, Stream(coreset.seed, carrier.cell_id, number), slots)[:, None]
        blocks = slice(coreset.first_rb, coreset.first_rb + coreset.num_rb)
        pdcch[:, symbols, blocks] |= sent & downlink[:, symbols, None]
    order[pdcch] = 2

    # keep the resource blocks and symbols free that SSBs touch
    starts = symbol_times(1e3 * carrier.spacing_khz, 14 * first_slot, 14 * len(schedule))[0].numpy()
    ssb, touched = ssb_rows(carrier, starts)
    low, high = (np.array(carrier.ssb_band_hz) - carrier.band_hz[0]) / (12e3 * carrier.spacing_khz)
    free = np.ones((len(starts) - 1, carrier.num_rb), bool)
    for first, end in touched:
        free[first:end, math.floor(low) : math.ceil(high)] = False
    free = free.reshape(order.shape)
    order *= free
    pdcch &= free

    csi_rs = []
    for resource in carrier.csi_rs:
        sent = downlink[:, resource.symbol] & (slots % resource.period_slots == resource.offset_slots)
        mask = free[:, resource.symbol] & sent[:, None]
        mask[:, : resource.first_rb] = mask[:, resource.first_rb + resource.num_rb :] = False
        csi_rs.append(mask)
    return _Plan(order, pdcch, (order > 0) & ~pdcch & dmrs[..., None], csi_rs, starts, ssb)


def _slot_symbols(carrier, slots):
    """Symbols of the slots that are downlink, have PDSCH, and have its DM-RS: three of bool [slots, 14]."""
    pattern = carrier.tdd_pattern or "D"
    symbols = np.zeros((3, len(pattern), 14), bool)
    first, last_end = carrier.pdsch_symbols[0], sum(carrier.pdsch_symbols)
    for slot, letter in enumerate(pattern):
        num_downlink = {"D": 14, "S": carrier.special_symbols, "U": 0}[letter]
        symbols[0, slot, :num_downlink] = True
        end = min(last_end, num_downlink)
        if end >= max(first + 3, DMRS_SHORTEST[carrier.dmrs_position]):
            symbols[1, slot, first:end] = True
            symbols[2, slot, list(dmrs_symbols(carrier.dmrs_position, carrier.dmrs_additional, end))] = True
    return symbols[:, slots % len(pattern)]


def _pdcch_blocks(coreset, stream, slots):
    """Resource blocks of a CORESET that carry PDCCH in consecutive slots: bool [slots, num_rb]."""
    blocks_a_cce = 6 // coreset.num_symbols
    cces = coreset.num_rb // blocks_a_cce
    words_a_slot = -(-cces // 4) * 4  # a stream is entered at multiples of 4 words
    words = stream.words(len(slots) * words_a_slot, start=int(slots[0]) * words_a_slot).numpy()
    sent = (words.reshape(len(slots), -1)[:, :cces] >> 11) + 2**52 < coreset.load * 2**53
    sent &= (slots % coreset.period_slots == coreset.offset_slots)[:, None]
    return np.repeat(sent, blocks_a_cce, axis=1)


def resource_grids(carrier, first_slot, schedule, stream, device="cpu", power_db=None):
    """The resource grid of a carrier, and the grid of its SSBs, whose numerology and raster may differ.

    Args:
        first_slot: counted from the start of frame 0.
        schedule: [slots, num_rb]: bits a symbol of each resource block's PDSCH, 0 (none), 2, 4, 6 or 8.
        power_db: [slots, num_rb], of PDSCH and its DM-RS; 0 where None.

    Returns:
        [Grid, Grid] of one port each. The first has 14 × slots symbols of all resource blocks. The second has
        240 subcarriers in all symbols that overlap the same time, silent where there is no SSB.
    """
    schedule, power_db = checked_schedule(schedule, power_db, carrier.num_rb)
    num_slots, num_rb, cell_id = len(schedule), carrier.num_rb, carrier.cell_id
    plan = _plan(carrier, first_slot, schedule)

    # draw PDSCH and PDCCH
    order = torch.from_numpy(plan.order).to(device).repeat_interleave(12, dim=2)
    values, occupied = random_symbols(order, stream.child(_BULK)), order.bool()

    # reference signals are the same in every frame
    slots_a_frame = 10 * carrier.spacing_khz // 15
    slots, which = np.unique((first_slot + np.arange(num_slots)) % slots_a_frame, return_inverse=True)
    which = torch.from_numpy(which).to(device)

    def put(symbol, comb, mask, c_init, amplitude):
        """Put reference symbols r(m) on a comb of a symbol where `mask` [slots, resource blocks] is set."""
        step, first, length = comb
        count = 12 * num_rb // step * length
        bits = gold(c_init % 2**31, -(-2 * count // 512) * 512)[:, : 2 * count]  # `gold` caches a few lengths
        signal = torch.from_numpy((qpsk(bits) * amplitude).astype(np.complex64)).to(device)[which]
        mask = torch.from_numpy(mask).to(device).repeat_interleave(12 // step, dim=1)[..., None]
        runs = np.s_[:, symbol, :, first : first + length]
        target = values.unflatten(2, (-1, step))[runs]  # (slots, runs, length)
        target.copy_(torch.where(mask, signal.view(target.shape), target))
        occupied.unflatten(2, (-1, step))[runs] |= mask

    # put DM-RS into PDSCH (7.4.1.1.1, n_SCID 0) and PDCCH (7.4.1.3.1), whose c_init are the same
    pdsch_comb = _DMRS_COMBS[carrier.dmrs_type]
    for mask, comb, db in ((plan.dmrs, pdsch_comb, carrier.dmrs_power_db), (plan.pdcch, _PDCCH_COMB, 0.0)):
        for symbol in np.flatnonzero(mask.any((0, 2))):
            c_init = 2**17 * (14 * slots + symbol + 1) * (2 * cell_id + 1) + 2 * cell_id
            put(symbol, comb, mask[:, symbol], c_init, np.float32(10 ** (db / 20)))

    # set the power of PDSCH
    if power_db is not None:
        amplitude = np.where(plan.pdcch, np.float32(1), 10 ** (power_db[:, None] / 20))
        values.unflatten(2, (-1, 12)).mul_(torch.from_numpy(amplitude).to(device)[..., None])

    # put CSI-RS in, 7.4.1.5.2
    for resource, mask in zip(carrier.csi_rs, plan.csi_rs, strict=True):
        if mask.any():
            c_init = 2**10 * (14 * slots + resource.symbol + 1) * (2 * cell_id + 1) + cell_id
            comb = (resource.step, resource.subcarrier, 1)
            put(resource.symbol, comb, mask, c_init, np.float64(10 ** (resource.power_db / 20)))

    spacing_hz = 1e3 * carrier.spacing_khz
    lowest_hz = -6 * num_rb * spacing_hz
    grid = Grid(values.flatten(0, 1)[None], occupied.flatten(0, 1), spacing_hz, lowest_hz, 14 * first_slot)
    return [grid, ssb_grid(carrier, plan.ssb, stream.child(_BROADCAST), device)]


def used_band_hz(carrier, first_slot, schedule, first_symbol=0, num_symbols=None):
    """Edges of the subcarriers in use: (low, high) from the carrier's centre, or None if nothing is sent.

    Equal to what the grids of `resource_grids` occupy, at a small part of the cost.

    Args:
        first_symbol, num_symbols: rows of the carrier's grid to look at; None for all that follow.
            Rows beyond the grid are empty. SSBs count in the symbols that overlap the rows' time.
    """
    plan = _plan(carrier, first_slot, checked_schedule(schedule, None, carrier.num_rb)[0])
    rows = len(plan.starts) - 1
    end = rows if num_symbols is None else min(rows, first_symbol + num_symbols)
    first = max(0, first_symbol)
    if first >= end:
        return None

    used = np.repeat(plan.order.reshape(rows, -1)[first:end].any(0), 12)
    for resource, mask in zip(carrier.csi_rs, plan.csi_rs, strict=True):
        row = 14 * np.arange(len(mask)) + resource.symbol
        sent = mask[(row >= first) & (row < end)].any(0)
        used.reshape(-1, 12)[sent, resource.subcarrier :: resource.step] = True
    overlap = (plan.ssb.starts[1:] > plan.starts[first]) & (plan.ssb.starts[:-1] < plan.starts[end])
    ssb_used = plan.ssb.occupied[overlap].any(0)

    own_hz = carrier.band_hz[0] + np.flatnonzero(used) * 1e3 * carrier.spacing_khz
    ssb_hz = carrier.ssb_band_hz[0] + np.flatnonzero(ssb_used) * 1e3 * carrier.ssb_spacing_khz
    low_hz = np.concatenate([own_hz, ssb_hz])
    high_hz = np.concatenate([own_hz + 1e3 * carrier.spacing_khz, ssb_hz + 1e3 * carrier.ssb_spacing_khz])
    return (float(low_hz.min()), float(high_hz.max())) if len(low_hz) else None
