"""The resource grid of an LTE downlink cell, TS 36.211 with normal cyclic prefix.

Clauses and tables are those of TS 36.211 unless another is named. Signals are exact; payloads are random.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from radio.scenes import ofdm
from radio.scenes.expect import expect
from radio.scenes.traffic import checked_schedule
from radio.sequences import CRS_SYMBOLS
from radio.sequences import lte_crs as crs
from radio.sequences import lte_pss as pss
from radio.sequences import lte_sss as sss

SPACING_HZ = 15e3
RESOURCE_BLOCKS = {1.4: 6, 3: 15, 5: 25, 10: 50, 15: 75, 20: 100}  # by bandwidth in MHz, TS 36.101
# Table 4.2-2: downlink, special and uplink subframes of a frame, by uplink-downlink configuration.
_PATTERNS = ("DSUUUDSUUU", "DSUUDDSUUD", "DSUDDDSUDD", "DSUUUDDDDD", "DSUUDDDDDD", "DSUDDDDDDD", "DSUUUDSUUD")
# Table 4.2-1, normal cyclic prefix: DwPTS of 6592, 19760, ... T_s, in OFDM symbols.
DWPTS_SYMBOLS = (3, 9, 10, 11, 12, 3, 9, 10, 11, 6)
_SUBFRAMES, _SYMBOLS = 10, 14  # of a frame, of a subframe
_SILENT, _PDSCH, _CONTROL, _PCFICH, _PBCH = range(5)  # roles of resource elements; the last two carry QPSK


@dataclass(frozen=True)
class LteCell:
    """One cell's parameters. Parameters outside these limits raise a ValueError.

    Args:
        num_rb: downlink bandwidth in resource blocks, one of `RESOURCE_BLOCKS`.
        cell_id: physical cell identity, 0 to 503.
        duplex: "FDD" or "TDD".
        uldl_config: uplink-downlink configuration, 0 to 6 (TDD only).
        special_config: special subframe configuration, 0 to 9 (TDD only).
        num_ports: antenna ports with cell-specific reference signals: 1, 2 or 4.
        control_symbols: OFDM symbols of the control region: 1 to 3, or 2 to 4 up to 10 resource blocks.
            TDD subframes 1 and 6 have 2 at most (table 6.7-1).
        control_load: mean share of the resource-element groups that carry PDCCH or PHICH, 0 to 1.
            The share of each subframe is uniform around this mean, as wide as fits between 0 and 1.
        crs_boost_db: power of CRS above that of the PDSCH (all ports together) in a resource element.
        sync_boost_db: power of PSS, SSS and PBCH above that of the PDSCH.
    """

    num_rb: int = 50
    cell_id: int = 0
    duplex: str = "FDD"
    uldl_config: int = 0
    special_config: int = 7
    num_ports: int = 1
    control_symbols: int = 2
    control_load: float = 0.5
    crs_boost_db: float = 0.0
    sync_boost_db: float = 0.0

    def __post_init__(self):
        widths = tuple(RESOURCE_BLOCKS.values())
        expect(self.num_rb in widths, f"num_rb in {widths}: {self.num_rb=}")
        expect(self.cell_id in range(504), f"cell_id 0 to 503: {self.cell_id=}")
        expect(self.duplex in ("FDD", "TDD"), f"duplex FDD or TDD: {self.duplex=}")
        expect(self.uldl_config in range(7), f"uldl_config 0 to 6: {self.uldl_config=}")
        expect(self.special_config in range(10), f"special_config 0 to 9: {self.special_config=}")
        expect(self.num_ports in (1, 2, 4), f"num_ports 1, 2 or 4: {self.num_ports=}")
        lengths = (1, 2, 3) if self.num_rb > 10 else (2, 3, 4)
        expect(self.control_symbols in lengths, f"control_symbols in {lengths}: {self.control_symbols=}")
        expect(0 <= self.control_load <= 1, f"control_load 0 to 1: {self.control_load=}")
        expect(math.isfinite(self.crs_boost_db), f"a finite crs_boost_db: {self.crs_boost_db=}")
        expect(math.isfinite(self.sync_boost_db), f"a finite sync_boost_db: {self.sync_boost_db=}")


def downlink_symbols(cell, subframe):
    """OFDM symbols in which the cell sends, from a subframe's first: 14, the length of DwPTS, or 0 (4.2)."""
    kind = "D" if cell.duplex == "FDD" else _PATTERNS[cell.uldl_config][subframe % _SUBFRAMES]
    return {"D": _SYMBOLS, "S": DWPTS_SYMBOLS[cell.special_config], "U": 0}[kind]


def resource_grid(cell, first_subframe, schedule, stream, device="cpu", power_db=None):
    """What a cell sends in successive subframes.

    CRS, PCFICH, PSS, SSS and PBCH are always on in downlink subframes and DwPTS. PDCCH and PHICH fill groups
    of the control region at random. PDSCH fills the rest of the scheduled resource blocks, in downlink
    subframes and in DwPTS of more than 3 symbols. Each port has random symbols of its own and an equal share
    of power. PSS and SSS are on port 0.

    Args:
        first_subframe: number of the first subframe, counted from the start of system frame 0.
        schedule: [subframes, num_rb]: bits a symbol of each resource block's PDSCH, 0 (none), 2, 4, 6 or 8.
        power_db: [subframes, num_rb], of PDSCH; 0 where None.

    Returns:
        `ofdm.Grid` on `device`: values [num_ports, 14 * subframes, 12 * num_rb + 1], DC in column 6 * num_rb.
    """
    schedule, power_db = checked_schedule(schedule, power_db, cell.num_rb)
    expect(first_subframe >= 0, f"first_subframe >= 0: {first_subframe=}")
    frame_roles, groups, signals = _frame(cell)
    count, centre = len(schedule), 6 * cell.num_rb

    def to_device(array):
        return torch.from_numpy(array).to(device)

    # bits a symbol of every resource element
    subframes = torch.arange(first_subframe, first_subframe + count, device=device)
    role = to_device(frame_roles)[subframes % _SUBFRAMES]
    order = (role == _PDSCH) * _on_subcarriers(to_device(schedule))[:, None]  # (subframes, 14, subcarriers)
    order.masked_fill_(role >= _PCFICH, 2)
    rng = stream.child(1).generator()
    reach = min(cell.control_load, 1 - cell.control_load)
    load = cell.control_load + reach * rng.uniform(-1, 1, (count, 1))
    active = np.where(rng.random((count, groups.max() + 1)) < load, 2, 0).astype(np.uint8)
    region = slice(len(groups))
    order[:, region] += (role[:, region] == _CONTROL) * to_device(active)[:, to_device(groups)]

    # random symbols, the ports' share and the powers
    values = ofdm.random_symbols(order.expand(cell.num_ports, *order.shape), stream.child(0))
    if cell.num_ports > 1:
        values *= cell.num_ports**-0.5
    if power_db is not None:
        gain = _on_subcarriers(10 ** (torch.from_numpy(power_db) / 20)).to(device)[:, None]
        torch.view_as_real(values).mul_(torch.where(role == _PDSCH, gain, 1.0)[..., None])
    broadcast = values[:, -first_subframe % _SUBFRAMES :: _SUBFRAMES, 7:11, centre - 36 : centre + 37]
    broadcast *= 10 ** (cell.sync_boost_db / 20)

    # reference and synchronization signals
    values, occupied = values.flatten(1, 2), order.flatten(0, 1) > 0
    starts = np.arange(-(first_subframe % _SUBFRAMES), count, _SUBFRAMES) * _SYMBOLS  # of the frames, in rows
    ports, rows, columns, fixed = np.broadcast_arrays(signals[0], starts[:, None] + signals[1], *signals[2:])
    inside = (rows >= 0) & (rows < len(occupied))  # (frames, elements)
    ports, rows, columns, fixed = (to_device(part[inside]) for part in (ports, rows, columns, fixed))
    values[ports, rows, columns] = fixed
    occupied[rows, columns] = True
    return ofdm.Grid(values, occupied, SPACING_HZ, -centre * SPACING_HZ, _SYMBOLS * first_subframe)


def _on_subcarriers(blocks):
    """Values of resource blocks to values of subcarriers, 0 on DC: [n, num_rb] -> [n, 12 * num_rb + 1]."""
    low, high = blocks.repeat_interleave(12, dim=1).chunk(2, dim=1)
    return torch.cat([low, low.new_zeros(len(low), 1), high], dim=1)


@lru_cache(maxsize=8)
def _frame(cell):
    """What is the same in every frame of a cell, in three parts.

    Roles, uint8 [10, 14, subcarriers]; resource-element groups, int64 [control symbols, subcarriers];
    (ports, rows, columns, values) of CRS, PSS and SSS, int64 and complex64 [elements].
    """
    is_tdd = cell.duplex == "TDD"
    subcarriers, centre = 12 * cell.num_rb, 6 * cell.num_rb
    central = slice(centre - 36, centre + 36)
    lengths = np.array([downlink_symbols(cell, subframe) for subframe in range(_SUBFRAMES)])
    control = np.full(_SUBFRAMES, cell.control_symbols)
    if is_tdd:
        control[[1, 6]] = min(cell.control_symbols, 2)

    # PDSCH and control region; DwPTS of 3 symbols has no PDSCH (TS 36.213 7.1.7)
    symbol = np.arange(_SYMBOLS)
    role = np.full((_SUBFRAMES, _SYMBOLS, subcarriers), _SILENT, np.uint8)
    role[(symbol < lengths[:, None]) & (lengths[:, None] > 3)] = _PDSCH
    role[symbol < np.minimum(control, lengths)[:, None]] = _CONTROL

    # PCFICH: four groups of the first symbol, 6.7.4
    pcfich = (6 * (cell.cell_id % (2 * cell.num_rb)) + 6 * (np.arange(4) * cell.num_rb // 2)) % subcarriers
    role[np.ix_(lengths > 0, [0], (pcfich[:, None] + np.arange(6)).ravel())] = _PCFICH

    # PSS and SSS, with 5 reserved subcarriers on either side, 6.11; PBCH, 6.6.4
    sync = {}  # row: signal
    for subframe in (0, 5):
        sync[subframe * _SYMBOLS + (16 if is_tdd else 6)] = pss(cell.cell_id % 3)
        sync[subframe * _SYMBOLS + (13 if is_tdd else 5)] = sss(cell.cell_id, subframe)
    role.reshape(-1, subcarriers)[list(sync), central] = _SILENT
    role[0, 7:11, central] = _PBCH

    # CRS elements, silent for all ports; PBCH also spares those of four ports (6.6.4), control of two (6.2.4)
    room = np.zeros((4, _SYMBOLS, subcarriers), bool)
    signals = []  # (port, rows [n, 1], subcarriers [n, m], values [n, m])
    slots = np.arange(2 * _SUBFRAMES)
    boost = np.float32(10 ** (cell.crs_boost_db / 20))
    for port, symbols in enumerate(CRS_SYMBOLS):
        for number in symbols:
            values, offsets = crs(cell.cell_id, cell.num_rb, port, slots, number)
            places = offsets[:, None] + 6 * np.arange(2 * cell.num_rb)
            room[port, 7 * slots[:2, None] + number, places[:2]] = True
            rows = 7 * slots + number
            sent = rows % _SYMBOLS < lengths[rows // _SYMBOLS]
            if port < cell.num_ports:
                signals.append((port, rows[sent, None], places[sent], values[sent] * boost))
    role[:, room[: cell.num_ports].any(0)] = _SILENT
    role[(role == _PBCH) & room.any(0)] = _SILENT
    role[((role == _CONTROL) | (role == _PCFICH)) & room[:2].any(0)] = _SILENT
    boost = np.float32(10 ** (cell.sync_boost_db / 20))
    signals += [(0, row, np.arange(centre - 31, centre + 31), signal * boost) for row, signal in sync.items()]

    # resource-element groups: 4 elements beside two reserved for reference signals, or 4 alone, 6.2.4
    sizes = np.array([6, 6 if cell.num_ports == 4 else 4, 4, 4])[: cell.control_symbols, None]
    groups = np.cumsum(np.arange(subcarriers) % sizes == 0).reshape(-1, subcarriers) - 1

    fixed = [[part.ravel() for part in np.broadcast_arrays(*signal)] for signal in signals]
    ports, rows, places, values = (np.concatenate(parts) for parts in zip(*fixed, strict=True))
    role, groups = (np.insert(elements, centre, 0, axis=-1) for elements in (role, groups))  # DC
    return role, groups, (ports, rows, places + (places >= centre), values.astype(np.complex64))
