"""The 5G NR downlink in FR1, normal cyclic prefix: a carrier's resource grid with SSB, PDCCH, PDSCH and CSI-RS.

Clauses are those of TS 38.211 where no other is named. Reference signals are exact; the bits of PBCH, PDCCH and PDSCH are
random. Common resource block 0 is the carrier's first. Where they meet, SSB displaces CSI-RS, that PDCCH, and that PDSCH.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from radio.rng import Stream
from radio.scenes.nr_ssb import SSB_CASES, SSB_PERIODS_MS, SsbRows, downlink_beams, ssb_band_edges_hz, ssb_grid, ssb_rows
from radio.scenes.ofdm import Grid, random_symbols, symbol_times
from radio.scenes.sequences import gold, qpsk

# Resource blocks of the channel bandwidths: {subcarrier spacing in kHz: {MHz: blocks}}, TS 38.101-1 table 5.3.2-1.
RESOURCE_BLOCKS = {
    15: {5: 25, 10: 52, 15: 79, 20: 106, 25: 133, 30: 160, 40: 216, 50: 270},
    30: {5: 11, 10: 24, 15: 38, 20: 51, 25: 65, 30: 78, 40: 106, 50: 133, 60: 162, 70: 189, 80: 217, 90: 245, 100: 273},
    60: {10: 11, 15: 18, 20: 24, 25: 31, 30: 38, 40: 51, 50: 65, 60: 79, 70: 93, 80: 107, 90: 121, 100: 135},
}
MAX_RESOURCE_BLOCKS = 275  # 4.4.2

# PDSCH's additional DM-RS symbols for dmrs_additional 1, 2 and 3, by duration l_d: table 7.4.1.1.2-3, mapping type A.
_DMRS_ADDITIONAL = {
    **dict.fromkeys((8, 9), ((7,), (7,), (7,))),
    **dict.fromkeys((10, 11), ((9,), (6, 9), (6, 9))),
    12: ((9,), (6, 9), (5, 8, 11)),
    **dict.fromkeys((13, 14), ((11,), (7, 11), (5, 8, 11))),
}
_DMRS_FIRST_END = {2: 3, 3: 5}  # least l_d for each l_0: 7.4.1.1.2 has durations 3 and 4 with l_0 = 2 only

# Combs of reference signals: (step, first, length), runs of subcarriers that begin every so many.
_DMRS_COMBS = {1: (2, 0, 1), 2: (6, 0, 2)}  # 7.4.1.1.2, CDM group 0 of each type
_PDCCH_COMB = (4, 1, 1)  # 7.4.1.3.2

# CSI-RS by row of table 7.4.1.5.3-1: density; k bar less k_0, and k', of its elements; k_0 allowed; comb's step.
_CSI_RS = {
    1: (3, (0, 4, 8), (0, 0, 0), range(4), 4),
    2: (1, (0,), (0,), range(12), 12),
    3: (1, (0, 0), (0, 1), range(0, 12, 2), 12),
    4: (1, (0, 0, 2, 2), (0, 1, 0, 1), range(0, 12, 4), 12),
}

_BULK, _BROADCAST = range(2)  # purposes of random streams


def _expect(condition, message):
    if not condition:
        raise ValueError(f"expected {message}")


def _expect_places(part):
    _expect(part.first_rb >= 0 and part.num_rb >= 1, f"first_rb >= 0 and num_rb >= 1: {part.first_rb=} {part.num_rb=}")
    _expect(0 <= part.offset_slots < part.period_slots, f"0 <= offset < period: {part.offset_slots=} {part.period_slots=}")


@dataclass(frozen=True)
class Coreset:
    """Where PDCCH is sent, 7.3.2.2, at 0 dB: a CCE is a bundle of 6 resource-element groups, CCEs are not interleaved.

    period_slots, offset_slots: slots in which it is sent, counted from frame 0 (so are those of `CsiRs`).
    load: the chance of each CCE to be sent in a slot. Which are is a function of seed, cell and absolute slot.
    """

    first_rb: int
    num_rb: int
    num_symbols: int = 1
    first_symbol: int = 0
    period_slots: int = 1
    offset_slots: int = 0
    load: float = 0.5
    seed: int = 0

    def __post_init__(self):
        _expect_places(self)
        _expect(self.num_rb % 6 == 0, f"num_rb a multiple of 6: {self.num_rb=}")
        _expect(self.num_symbols in (1, 2, 3), f"1 to 3 symbols: {self.num_symbols=}")
        last = self.first_symbol + self.num_symbols - 1
        _expect(self.first_symbol >= 0 and last < 14, f"symbols 0 to 13: {self.first_symbol=} {last=}")
        _expect(0 <= self.load <= 1, f"load 0 to 1: {self.load=}")
        _expect(0 <= self.seed < 2**64, f"seed 0 to 2^64 - 1: {self.seed=}")


@dataclass(frozen=True)
class CsiRs:
    """A CSI-RS resource, rows 1 to 4 of table 7.4.1.5.3-1 (1 is also the tracking reference signal); n_ID is the cell's.

    One antenna sends all ports, of a CDM pair the second at 90°, so that every element has the same power.
    subcarrier: k_0: row 1: 0 to 3, row 2: 0 to 11, row 3: even, row 4: 0, 4 or 8.
    half_density: rows 2 and 3: density 0.5, in every second resource block from `first_rb` on.
    """

    row: int
    first_rb: int
    num_rb: int
    symbol: int
    subcarrier: int = 0
    period_slots: int = 20
    offset_slots: int = 0
    power_db: float = 0.0
    half_density: bool = False

    def __post_init__(self):
        _expect_places(self)
        _expect(self.row in _CSI_RS, f"row 1 to 4: {self.row=}")
        _expect(0 <= self.symbol < 14, f"symbol 0 to 13: {self.symbol=}")
        _expect(self.subcarrier in _CSI_RS[self.row][3], f"a k_0 of the row: {self.row=} {self.subcarrier=}")
        _expect(not self.half_density or self.row in (2, 3), f"row 2 or 3 for density 0.5: {self.row=}")


@dataclass(frozen=True)
class NrCarrier:
    """A carrier, and all that it sends except for the PDSCH's schedule.

    tdd_pattern: "" for FDD, else a letter a slot, D, S or U, from frame 0 on, of a length that divides 20 ms. U slots are
        silent, S slots after their first `special_symbols` symbols. SSBs are sent in any case; one in a U slot is an error
        (see `downlink_beams`), one in the later symbols of an S slot is not (they are flexible).
    ssb_offset_hz: centre (subcarrier 120) of the SSBs from the carrier's, on no raster. ssb_beams: indices sent, or none.
    pdsch_symbols: first symbol and number; cut in S slots, and left out there if 7.4.1.1.2 has no DM-RS for what is left.
    dmrs_*: PDSCH's DM-RS, mapping type A, single-symbol, port 1000, n_SCID 0; power relative to PDSCH. The other
        subcarriers of its symbols carry PDSCH (one CDM group without data).
    """

    spacing_khz: int = 30
    num_rb: int = 51
    cell_id: int = 0
    tdd_pattern: str = ""
    special_symbols: int = 10
    ssb_case: str = "C"
    ssb_period_ms: int = 20
    ssb_half_frame: int = 0
    ssb_beams: tuple = (0,)
    num_ssb: int = 8
    ssb_offset_hz: float = 0.0
    ssb_power_db: float = 0.0
    coresets: tuple = ()
    csi_rs: tuple = ()
    pdsch_symbols: tuple = (2, 12)
    dmrs_type: int = 1
    dmrs_position: int = 2
    dmrs_additional: int = 0
    dmrs_power_db: float = 0.0

    def __post_init__(self):
        _expect(self.spacing_khz in RESOURCE_BLOCKS, f"spacing_khz 15, 30 or 60: {self.spacing_khz=}")
        _expect(1 <= self.num_rb <= MAX_RESOURCE_BLOCKS, f"num_rb 1 to {MAX_RESOURCE_BLOCKS}: {self.num_rb=}")
        _expect(0 <= self.cell_id <= 1007, f"cell_id 0 to 1007: {self.cell_id=}")
        _expect(0 <= self.special_symbols <= 14, f"special_symbols 0 to 14: {self.special_symbols=}")
        pattern = self.tdd_pattern
        _expect(set(pattern) <= set("DSU") and not (pattern and 20 * self.spacing_khz // 15 % len(pattern)),
                f"a pattern of D, S and U that divides 20 ms: {self.tdd_pattern=} {self.spacing_khz=}")
        _expect(self.ssb_period_ms in SSB_PERIODS_MS, f"ssb_period_ms one of {SSB_PERIODS_MS}: {self.ssb_period_ms=}")
        _expect(self.ssb_half_frame in (0, 1), f"ssb_half_frame 0 or 1: {self.ssb_half_frame=}")
        beams = downlink_beams(
            self.spacing_khz, pattern, self.ssb_case, self.num_ssb, self.ssb_period_ms, self.ssb_half_frame
        )
        _expect(set(self.ssb_beams) <= set(beams), f"ssb_beams of {beams}, not in U slots: {self.ssb_beams=} {pattern=}")
        (low, high), (ssb_low, ssb_high) = self.band_hz, self.ssb_band_hz
        _expect(not self.ssb_beams or (low <= ssb_low and ssb_high <= high),
                f"the SSB between {low} and {high} Hz: {self.ssb_offset_hz=} {self.ssb_case=} {self.num_rb=}")
        for part in (*self.coresets, *self.csi_rs):
            _expect(part.first_rb + part.num_rb <= self.num_rb, f"resource blocks of the carrier: {self.num_rb=} {part}")
        first, number = self.pdsch_symbols
        _expect(0 <= first <= self.dmrs_position and number >= 3 and first + number <= 14,
                f"3 PDSCH symbols or more in a slot, DM-RS among them: {self.pdsch_symbols=} {self.dmrs_position=}")
        _expect(self.dmrs_type in _DMRS_COMBS, f"dmrs_type 1 or 2: {self.dmrs_type=}")
        dmrs_symbols(self.dmrs_position, self.dmrs_additional, first + number)
        _expect(self.dmrs_position == 3 or all(coreset.num_symbols < 3 for coreset in self.coresets),
                f"dmrs_position 3 with coresets of 3 symbols, 7.3.2.2: {self.dmrs_position=}")

    @property
    def ssb_spacing_khz(self):
        return SSB_CASES[self.ssb_case][0]

    @property
    def band_hz(self):
        """Lower and upper edge of the resource blocks, from the carrier's centre, on which subcarrier 6 × num_rb lies."""
        return (-6 * self.num_rb - 0.5) * 1e3 * self.spacing_khz, (6 * self.num_rb - 0.5) * 1e3 * self.spacing_khz

    @property
    def ssb_band_hz(self):
        """Lower and upper edge of the SSBs, from the carrier's centre."""
        return tuple(self.ssb_offset_hz + edge * 1e3 * self.ssb_spacing_khz for edge in (-120.5, 119.5))


def dmrs_symbols(position, additional, end):
    """Symbols with PDSCH DM-RS, table 7.4.1.1.2-3 (mapping type A, single-symbol): an ascending tuple.

    position: 2 or 3, l_0. additional: 0 to 3, dmrs-AdditionalPosition. end: the symbol after the PDSCH's last, l_d.
    """
    _expect(position in _DMRS_FIRST_END and 0 <= additional <= 5 - position,
            f"dmrs_position 2 with dmrs_additional 0 to 3, or 3 with 0 to 2: {position=} {additional=}")
    _expect(_DMRS_FIRST_END[position] <= end <= 14, f"a PDSCH whose end has a row in table 7.4.1.1.2-3: {position=} {end=}")
    return (position, *(_DMRS_ADDITIONAL[end][additional - 1] if additional and end in _DMRS_ADDITIONAL else ()))


class _Plan(NamedTuple):
    """What is sent where, on the host. Rows are the symbols of a grid."""

    order: np.ndarray  # uint8 [slots, 14, resource blocks]: bits a symbol of PDSCH and PDCCH
    pdcch: np.ndarray  # bool [slots, 14, resource blocks]
    dmrs: np.ndarray  # bool [slots, 14]: PDSCH's
    csi_rs: list  # of bool [slots, resource blocks], one for each resource
    starts: np.ndarray  # int64 [rows + 1], T_c: the carrier's symbols
    ssb: SsbRows


def _plan(carrier, first_slot, schedule):
    schedule = np.asarray(schedule)
    _expect(schedule.ndim == 2 and len(schedule) and schedule.shape[1] == carrier.num_rb,
            f"a schedule of [slots, {carrier.num_rb}]: {schedule.shape}")
    _expect(np.isin(schedule, (0, 2, 4, 6, 8)).all(), f"0, 2, 4, 6 or 8 bits a symbol: {schedule.min()} to {schedule.max()}")
    _expect(first_slot >= 0, f"first_slot >= 0: {first_slot=}")
    slots = first_slot + np.arange(len(schedule))
    downlink, pdsch, dmrs = _slot_symbols(carrier, slots)

    order = schedule.astype(np.uint8)[:, None] * pdsch[:, :, None]
    pdcch = np.zeros(order.shape, bool)
    for number, coreset in enumerate(carrier.coresets):
        symbols = slice(coreset.first_symbol, coreset.first_symbol + coreset.num_symbols)
        sent = _pdcch_blocks(coreset, Stream(coreset.seed, carrier.cell_id, number), slots)[:, None]
        pdcch[:, symbols, coreset.first_rb : coreset.first_rb + coreset.num_rb] |= sent & downlink[:, symbols, None]
    order[pdcch] = 2

    # keep the resource blocks and symbols free that SSBs touch
    starts = symbol_times(1e3 * carrier.spacing_khz, 14 * first_slot, 14 * len(schedule))[0].numpy()
    ssb, touched = ssb_rows(carrier, starts)
    rbs = [(edge_hz - carrier.band_hz[0]) / (12e3 * carrier.spacing_khz) for edge_hz in carrier.ssb_band_hz]
    free = np.ones((order.shape[0] * 14, carrier.num_rb), bool)
    for first, end in touched:
        free[first:end, math.floor(rbs[0]) : math.ceil(rbs[1])] = False
    free = free.reshape(order.shape)
    order *= free
    pdcch &= free

    csi_rs = []
    for resource in carrier.csi_rs:
        block = np.arange(carrier.num_rb) - resource.first_rb
        block = (block >= 0) & (block < resource.num_rb) & (block % (1 + resource.half_density) == 0)
        slot = downlink[:, resource.symbol] & (slots % resource.period_slots == resource.offset_slots)
        csi_rs.append(free[:, resource.symbol] & slot[:, None] & block)
    return _Plan(order, pdcch, dmrs, csi_rs, starts, ssb)


def _slot_symbols(carrier, slots):
    """Which symbols of the slots are downlink, PDSCH, and its DM-RS: three of bool [slots, 14]."""
    pattern = carrier.tdd_pattern or "D"
    symbols = np.zeros((len(pattern), 3, 14), bool)
    first, last_end = carrier.pdsch_symbols[0], sum(carrier.pdsch_symbols)
    for slot, letter in zip(symbols, pattern, strict=True):
        downlink = {"D": 14, "S": carrier.special_symbols, "U": 0}[letter]
        slot[0, :downlink] = True
        end = min(last_end, downlink)
        if end >= max(first + 3, _DMRS_FIRST_END[carrier.dmrs_position]):
            slot[1, first:end] = True
            slot[2, list(dmrs_symbols(carrier.dmrs_position, carrier.dmrs_additional, end))] = True
    return symbols[slots % len(pattern)].swapaxes(0, 1)


def _pdcch_blocks(coreset, stream, slots):
    """Which resource blocks of a CORESET carry PDCCH in consecutive slots: bool [slots, num_rb]."""
    blocks_a_cce = 6 // coreset.num_symbols
    cces = coreset.num_rb // blocks_a_cce
    words_a_slot = -(-cces // 4) * 4  # a stream is entered at multiples of 4 words
    words = stream.words(len(slots) * words_a_slot, start=int(slots[0]) * words_a_slot).numpy().reshape(len(slots), -1)
    sent = (words[:, :cces] >> 11) + 2**52 < coreset.load * 2**53
    sent &= (slots % coreset.period_slots == coreset.offset_slots)[:, None]
    return np.repeat(sent, blocks_a_cce, axis=1)


def _reference(c_init, count):
    """Reference symbols r(0) ... r(count - 1) for each c_init: complex64 [len(c_init), count]."""
    length = -(-2 * count // 512) * 512  # `gold` remembers its work for a few lengths
    return qpsk(gold(c_init % 2**31, length)[:, : 2 * count])


def _dmrs_sequence(carrier, slots, symbol, comb, power_db):
    """DM-RS of PDSCH (7.4.1.1.1, n_SCID 0) or PDCCH (7.4.1.3.1), whose c_init are the same: complex64 [slots, elements]."""
    c_init = 2**17 * (14 * slots + symbol + 1) * (2 * carrier.cell_id + 1) + 2 * carrier.cell_id
    return _reference(c_init, 12 * carrier.num_rb // comb[0] * comb[2]) * np.float32(10 ** (power_db / 20))


def _csi_rs_sequence(carrier, slots, resource):
    """Elements of CSI-RS in all resource blocks, 7.4.1.5.2 and 7.4.1.5.3: complex64 [slots, elements]."""
    density, k_bar, k_prime, _, _ = _CSI_RS[resource.row]
    density, k_bar, k_prime = density / (1 + resource.half_density), np.array(k_bar), np.array(k_prime)
    is_cdm = k_prime.any()
    alpha = density * (1 + is_cdm)
    block = np.arange(carrier.num_rb)[:, None]
    index = np.floor(block * alpha) + k_prime + np.floor((resource.subcarrier + k_bar) * density / 12)  # (num_rb, elements)
    c_init = 2**10 * (14 * slots + resource.symbol + 1) * (2 * carrier.cell_id + 1) + carrier.cell_id
    sequence = _reference(c_init, int(index.max()) + 1)[:, index.astype(np.int64)]
    ports = (1 + 1j * (-1.0) ** k_prime) * math.sqrt(0.5) if is_cdm else np.ones(1)
    return (sequence * ports * 10 ** (resource.power_db / 20)).astype(np.complex64).reshape(len(slots), -1)


def _write(grid, symbol, comb, mask, values):
    """Puts values on the comb of a symbol, in the resource blocks where `mask` is set.

    grid: [slots, 14, subcarriers]. mask: bool [slots, resource blocks]. values: [slots, elements], or a number.
    """
    step, first, length = comb
    target = grid[:, symbol].unflatten(1, (-1, step))[..., first : first + length]  # (slots, runs, length)
    mask = mask.repeat_interleave(12 // step, dim=1)[..., None]
    target.copy_(torch.where(mask, values.view(target.shape) if torch.is_tensor(values) else values, target))


def resource_grids(carrier, first_slot, schedule, stream, device="cpu", power_db=None):
    """The resource grid of a carrier, and that of its SSBs, which may have another numerology and raster.

    Args:
        carrier: an `NrCarrier`. first_slot: counted from the start of frame 0.
        schedule: [slots, num_rb]: bits a symbol of each resource block's PDSCH, 0 (none), 2, 4, 6 or 8.
        stream: a `radio.rng.Stream`. power_db: [slots, num_rb], of PDSCH and its DM-RS; 0 where None.

    Returns:
        [Grid, Grid] of one port each: 14 × slots symbols of all resource blocks; and 240 subcarriers in all symbols that
        overlap the same time, silent where there is no SSB.

    Raises:
        ValueError: schedule or powers of another shape, or other values, than these.
    """
    plan = _plan(carrier, first_slot, schedule)
    num_slots = len(plan.order)
    slots_a_frame = 10 * carrier.spacing_khz // 15
    slots, which = np.unique((first_slot + np.arange(num_slots)) % slots_a_frame, return_inverse=True)
    which = torch.from_numpy(which).to(device)

    def write(grid, symbol, comb, mask, values):
        """`_write` for host arrays, the values being those of the frame's slots."""
        values = torch.from_numpy(values).to(device)[which] if isinstance(values, np.ndarray) else values
        _write(grid, symbol, comb, torch.from_numpy(mask).to(device), values)

    # draw PDSCH and PDCCH
    shape = (num_slots, 14, 12 * carrier.num_rb)
    if plan.order.any():
        order = torch.from_numpy(plan.order).to(device).repeat_interleave(12, dim=2)
        values, occupied = random_symbols(order, stream.child(_BULK)), order.bool()
    else:
        values = torch.zeros(shape, dtype=torch.complex64, device=device)
        occupied = torch.zeros(shape, dtype=torch.bool, device=device)

    # put their DM-RS in
    pdsch_dmrs = (plan.order > 0) & ~plan.pdcch & plan.dmrs[..., None]
    pdsch_comb = _DMRS_COMBS[carrier.dmrs_type]
    for mask, comb, dmrs_db in ((pdsch_dmrs, pdsch_comb, carrier.dmrs_power_db), (plan.pdcch, _PDCCH_COMB, 0.0)):
        for symbol in np.flatnonzero(mask.any((0, 2))):
            write(values, symbol, comb, mask[:, symbol], _dmrs_sequence(carrier, slots, symbol, comb, dmrs_db))

    # set PDSCH's power
    if power_db is not None:
        power_db = np.asarray(power_db, np.float32)
        _expect(power_db.shape == (num_slots, carrier.num_rb), f"power_db of {num_slots, carrier.num_rb}: {power_db.shape}")
        amplitude = np.where(plan.pdcch, np.float32(1), 10 ** (power_db[:, None] / 20))
        values.unflatten(2, (-1, 12)).mul_(torch.from_numpy(amplitude).to(device)[..., None])

    # put CSI-RS in
    for resource, mask in zip(carrier.csi_rs, plan.csi_rs, strict=True):
        if mask.any():
            _, k_bar, _, _, step = _CSI_RS[resource.row]
            comb = (step, resource.subcarrier, len(k_bar) * step // 12)
            write(values, resource.symbol, comb, mask, _csi_rs_sequence(carrier, slots, resource))
            write(occupied, resource.symbol, comb, mask, True)

    spacing_hz = 1e3 * carrier.spacing_khz
    lowest_hz = -6 * carrier.num_rb * spacing_hz
    grid = Grid(values.flatten(0, 1)[None], occupied.flatten(0, 1), spacing_hz, lowest_hz, 14 * first_slot)
    return [grid, ssb_grid(carrier, plan.ssb, stream.child(_BROADCAST), device)]


def used_band_hz(carrier, first_slot, schedule, first_symbol=None, num_symbols=None):
    """The outermost edges of the subcarriers that carry anything: (low, high) from the carrier's centre, None if none does.

    What `resource_grids` would say for the same arguments, at a small part of its cost.

    Args:
        first_symbol, num_symbols: rows of the carrier's grid to look at, all from first_symbol on where num_symbols is None.
            Rows beyond the grid are empty. SSB symbols count that overlap the rows' time.
    """
    plan = _plan(carrier, first_slot, schedule)
    count = len(plan.starts) - 1
    end = count if num_symbols is None else min(count, (first_symbol or 0) + num_symbols)
    first = max(0, first_symbol or 0)
    if first >= end:
        return None

    edges_hz = []
    uses = [(plan.order.reshape(count, -1)[first:end].any(0), 0, 12)]  # resource blocks; subcarriers of them: first, end
    for resource, mask in zip(carrier.csi_rs, plan.csi_rs, strict=True):
        rows = 14 * np.arange(len(mask)) + resource.symbol
        _, k_bar, k_prime, _, _ = _CSI_RS[resource.row]
        used = mask[(rows >= first) & (rows < end)].any(0)
        uses.append((used, resource.subcarrier, resource.subcarrier + k_bar[-1] + k_prime[-1] + 1))
    for used, low, high in uses:
        blocks = np.flatnonzero(used)
        for subcarrier in (12 * blocks[0] + low, 12 * blocks[-1] + high) if len(blocks) else ():
            edges_hz.append(carrier.band_hz[0] + subcarrier * 1e3 * carrier.spacing_khz)

    edges_hz += ssb_band_edges_hz(carrier, plan.ssb, plan.starts[first], plan.starts[end])
    return (float(min(edges_hz)), float(max(edges_hz))) if edges_hz else None
