"""The LTE downlink resource grid, TS 36.211 with normal cyclic prefix: what a cell sends on each resource element.

Clauses and tables named here are those of TS 36.211 where no other document is named. Payloads are random: signals and
their places are the standard's, coded bits are not.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from radio.scenes import ofdm
from radio.scenes.sequences import gold, qpsk

SPACING_HZ = 15e3
RESOURCE_BLOCKS = {1.4: 6, 3: 15, 5: 25, 10: 50, 15: 75, 20: 100}  # channel bandwidth in MHz; TS 36.101 table 5.6-1
# Table 4.2-2: downlink, special and uplink subframes of a frame.
UPLINK_DOWNLINK = ("DSUUUDSUUU", "DSUUDDSUUD", "DSUDDDSUDD", "DSUUUDDDDD", "DSUUDDDDDD", "DSUDDDDDDD", "DSUUUDSUUD")
# Table 4.2-1, normal cyclic prefix: DwPTS of 6592, 19760, ... T_s, in OFDM symbols.
DWPTS_SYMBOLS = (3, 9, 10, 11, 12, 3, 9, 10, 11, 6)
CRS_SYMBOLS = ((0, 4), (0, 4), (1,), (1,))  # 6.10.1.2: of a slot, for each antenna port
_PSS_ROOTS = (25, 29, 34)  # table 6.11.1.1-1
_MAX_RB = 110  # N_RB^max,DL: the reference signals' sequence spans the widest carrier
_SUBFRAMES, _SYMBOLS = 10, 14  # of a frame, of a subframe
_SILENT, _PDSCH, _CONTROL, _PCFICH, _PBCH = range(5)


@dataclass(frozen=True)
class LteCell:
    """One cell's parameters.

    Args:
        num_rb: downlink bandwidth in resource blocks, one of `RESOURCE_BLOCKS`.
        cell_id: physical cell identity, 0 to 503.
        duplex: "FDD" or "TDD".
        uldl_config: uplink-downlink configuration, 0 to 6 (TDD only).
        special_config: special subframe configuration, 0 to 9 (TDD only).
        num_ports: antenna ports with cell-specific reference signals: 1, 2 or 4.
        control_symbols: OFDM symbols of the control region, 1 to 3, or 2 to 4 up to 10 resource blocks; TDD subframes 1
            and 6 have 2 at most (table 6.7-1).
        control_load: mean share of the control region's resource-element groups that carry PDCCH or PHICH, 0 to 1; the
            share of a subframe is uniform around it, as wide as fits between 0 and 1.
        crs_boost_db: power of reference signals above that of the PDSCH (all ports together) in a resource element.
        sync_boost_db: power of PSS, SSS and PBCH above that of the PDSCH.

    Raises:
        ValueError: a parameter outside these limits.
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
        if self.num_rb not in RESOURCE_BLOCKS.values():
            raise ValueError(f"expected num_rb to be one of {tuple(RESOURCE_BLOCKS.values())}: {self.num_rb=}")
        if self.cell_id not in range(504):
            raise ValueError(f"expected cell_id 0 to 503: {self.cell_id=}")
        if self.duplex not in ("FDD", "TDD"):
            raise ValueError(f"expected duplex FDD or TDD: {self.duplex=}")
        if self.uldl_config not in range(7):
            raise ValueError(f"expected uldl_config 0 to 6: {self.uldl_config=}")
        if self.special_config not in range(10):
            raise ValueError(f"expected special_config 0 to 9: {self.special_config=}")
        if self.num_ports not in (1, 2, 4):
            raise ValueError(f"expected num_ports 1, 2 or 4: {self.num_ports=}")
        first = 1 if self.num_rb > 10 else 2
        if self.control_symbols not in range(first, first + 3):
            raise ValueError(f"expected control_symbols {first} to {first + 2}: {self.control_symbols=} {self.num_rb=}")
        if not 0 <= self.control_load <= 1:
            raise ValueError(f"expected control_load 0 to 1: {self.control_load=}")
        if not (math.isfinite(self.crs_boost_db) and math.isfinite(self.sync_boost_db)):
            raise ValueError(f"expected finite boosts: {self.crs_boost_db=} {self.sync_boost_db=}")


def downlink_symbols(cell, subframe):
    """OFDM symbols that the cell sends in, from a subframe's first: 14, the length of DwPTS, or 0 (4.2)."""
    kind = "D" if cell.duplex == "FDD" else UPLINK_DOWNLINK[cell.uldl_config][subframe % _SUBFRAMES]
    return {"D": _SYMBOLS, "S": DWPTS_SYMBOLS[cell.special_config], "U": 0}[kind]


def pss(n_id_2):
    """Primary synchronization signal of cells with `cell_id % 3 == n_id_2`: complex64 [62], 6.11.1.1."""
    if n_id_2 not in range(3):
        raise ValueError(f"expected n_id_2 0 to 2: {n_id_2=}")
    n = np.arange(62)
    n += n > 30  # element 31, on DC, is left out of a Zadoff-Chu sequence of length 63
    phase = _PSS_ROOTS[n_id_2] * n * (n + 1) % 126  # of 126 steps around the circle
    return np.exp(-1j * np.pi / 63 * phase).astype(np.complex64)


def sss(cell_id, subframe):
    """Secondary synchronization signal in subframe 0 or 5 of each frame: float32 [62] of ±1, 6.11.2.1."""
    if subframe not in (0, 5) or cell_id not in range(504):
        raise ValueError(f"expected subframe 0 or 5, cell_id 0 to 503: {subframe=} {cell_id=}")
    n_id_1, n_id_2 = divmod(cell_id, 3)
    q = n_id_1 // 30
    q = (n_id_1 + q * (q + 1) // 2) // 30
    m = n_id_1 + q * (q + 1) // 2
    m0 = m % 31
    m1 = (m0 + m // 31 + 1) % 31
    even, odd = (m0, m1) if subframe == 0 else (m1, m0)

    n = np.arange(31)
    s, c, z = (_m_sequence(taps) for taps in ((2, 0), (3, 0), (4, 2, 1, 0)))
    signal = np.empty(62, np.float32)
    signal[0::2] = s[(n + even) % 31] * c[(n + n_id_2) % 31]
    signal[1::2] = s[(n + odd) % 31] * c[(n + n_id_2 + 3) % 31] * z[(n + even % 8) % 31]
    return signal


def _m_sequence(taps):
    """x(i + 5) = sum of x(i + tap) modulo 2 from 0, 0, 0, 0, 1 on, as ±1: int [31]."""
    x = [0, 0, 0, 0, 1]
    for i in range(26):
        x.append(sum(x[i + tap] for tap in taps) % 2)
    return 1 - 2 * np.array(x)


def crs(cell_id, num_rb, port, slot, symbol):
    """Cell-specific reference signal of an antenna port in one OFDM symbol of one or more slots, 6.10.1.

    Args:
        slot: number in the frame, 0 to 19, or an array of them.
        symbol: number in the slot: 0 or 4 for ports 0 and 1, 1 for ports 2 and 3.

    Returns:
        values: complex64, shape of `slot` + [2 * num_rb], unit power; offsets: int64, shape of `slot`: value m lies on
        subcarrier 6 m + offset, subcarriers counted from the lowest, DC left out.
    """
    if port not in range(4) or symbol not in CRS_SYMBOLS[port]:
        raise ValueError(f"expected a port and a symbol of {CRS_SYMBOLS}: {port=} {symbol=}")
    slot = np.asarray(slot)
    c_init = 1024 * (7 * (slot + 1) + symbol + 1) * (2 * cell_id + 1) + 2 * cell_id + 1  # N_CP = 1: normal prefix
    values = qpsk(gold(c_init, 4 * _MAX_RB))[..., _MAX_RB - num_rb : _MAX_RB + num_rb]
    v = 3 * (port + (slot % 2 if port > 1 else (symbol > 0) + 0 * slot))
    return values, (v + cell_id) % 6


def resource_grid(cell, first_subframe, schedule, stream, device="cpu", power_db=None):
    """What a cell sends in successive subframes.

    Always on in downlink subframes and DwPTS: CRS, PCFICH, PSS, SSS, PBCH. PDCCH and PHICH fill resource-element groups
    of the control region at random. The PDSCH has what is left of the resource blocks that the schedule names, in
    downlink subframes and in DwPTS of more than 3 symbols. Where several ports send, each has random symbols of its own
    and an equal share of the power; PSS and SSS are on port 0.

    Args:
        cell: an `LteCell`.
        first_subframe: number of the first subframe, counted from the start of system frame 0.
        schedule: uint8 [subframes, num_rb], array or tensor: bits a symbol of each resource block's PDSCH, 0 (idle), 2, 4,
            6 or 8.
        stream: a `radio.rng.Stream`.
        power_db: float [subframes, num_rb] or None: the PDSCH's power in each resource block, from nominal.

    Returns:
        `ofdm.Grid` on `device`: values [num_ports, 14 * subframes, 12 * num_rb + 1], DC in column 6 * num_rb.

    Raises:
        ValueError: a schedule or powers of another shape or with other values, a negative `first_subframe`.
    """
    schedule = torch.as_tensor(schedule)
    if schedule.dim() != 2 or len(schedule) < 1 or schedule.shape[1] != cell.num_rb:
        raise ValueError(f"expected a schedule [subframes, {cell.num_rb}]: {list(schedule.shape)}")
    if not torch.isin(schedule, torch.tensor((0, 2, 4, 6, 8), device=schedule.device)).all():
        raise ValueError(f"expected a schedule of 0, 2, 4, 6 or 8 bits a symbol: {schedule.unique().tolist()}")
    if first_subframe < 0:
        raise ValueError(f"expected first_subframe of 0 or more: {first_subframe=}")
    frame, count = _frame(cell), len(schedule)
    subframes = torch.arange(first_subframe, first_subframe + count, device=device) % _SUBFRAMES

    # bits a symbol of every resource element
    pdsch = torch.from_numpy(frame.pdsch).to(device)[subframes]  # (subframes, 14, subcarriers)
    order = pdsch * _on_subcarriers(schedule.to(device, torch.uint8))[:, None]
    order += torch.from_numpy(frame.qpsk).to(device)[subframes]
    active = torch.from_numpy(_active_groups(cell, count, frame, stream.child(1).generator())).to(device)
    groups = torch.from_numpy(frame.groups).to(device)  # (control symbols, subcarriers)
    control = torch.from_numpy(frame.control).to(device)[subframes]
    order[:, : len(groups)] += control * active.index_select(1, groups.flatten()).view(control.shape)

    # random symbols, the ports' share and the powers
    values = ofdm.random_symbols(order.expand(cell.num_ports, *order.shape), stream.child(0))
    if cell.num_ports > 1:
        values *= cell.num_ports**-0.5
    if power_db is not None:
        power_db = torch.as_tensor(power_db)
        if power_db.shape != schedule.shape or not power_db.isfinite().all():
            raise ValueError(f"expected finite power_db {list(schedule.shape)}: {list(power_db.shape)}")
        gain = _on_subcarriers((10 ** (power_db.float() / 20)).to(device))[:, None]
        torch.view_as_real(values).mul_(torch.where(pdsch > 0, gain, 1.0)[..., None])
    centre = 6 * cell.num_rb
    broadcast = values[:, -first_subframe % _SUBFRAMES :: _SUBFRAMES, 7:11, centre - 36 : centre + 37]
    broadcast *= 10 ** (cell.sync_boost_db / 20)

    # reference and synchronization signals
    values, occupied = values.flatten(1, 2), order.flatten(0, 1) > 0
    starts = np.arange(-(first_subframe % _SUBFRAMES), count, _SUBFRAMES) * _SYMBOLS  # of the frames, in rows of the grid
    rows = starts[:, None] + frame.rows  # (frames, elements)
    inside = (rows >= 0) & (rows < len(occupied))
    elements = torch.from_numpy((rows * occupied.shape[1] + frame.columns)[inside]).to(device)
    ports = torch.from_numpy(np.broadcast_to(frame.ports, rows.shape)[inside]).to(device)
    fixed = torch.from_numpy(np.broadcast_to(frame.values, rows.shape)[inside]).to(device)
    values.view(-1)[ports * occupied.numel() + elements] = fixed
    occupied.view(-1)[elements] = True
    return ofdm.Grid(values, occupied, SPACING_HZ, -centre * SPACING_HZ, _SYMBOLS * first_subframe)


def _on_subcarriers(blocks):
    """A value for each resource block to one for each subcarrier, DC's a zero: [n, num_rb] -> [n, 12 * num_rb + 1]."""
    low, high = blocks.repeat_interleave(12, dim=1).chunk(2, dim=1)
    return torch.cat([low, low.new_zeros(len(low), 1), high], dim=1)


def _active_groups(cell, subframes, frame, rng):
    """Bits a symbol of each resource-element group of the control region: uint8 [subframes, groups], 0 or 2."""
    reach = min(cell.control_load, 1 - cell.control_load)
    load = cell.control_load + reach * rng.uniform(-1, 1, (subframes, 1))
    return np.where(rng.random((subframes, frame.groups.max() + 1)) < load, 2, 0).astype(np.uint8)


class _Frame(NamedTuple):
    """Where a cell sends what in a frame, and the signals that are the same in each."""

    pdsch: np.ndarray  # uint8 [10, 14, subcarriers]: 1 where the PDSCH may be
    qpsk: np.ndarray  # uint8 [10, 14, subcarriers]: 2 on PCFICH and PBCH
    control: np.ndarray  # uint8 [10, control symbols, subcarriers]: 1 where PDCCH and PHICH may be
    groups: np.ndarray  # int64 [control symbols, subcarriers]: number of the resource-element group
    ports: np.ndarray  # int64 [elements]: of reference and synchronization signals
    rows: np.ndarray  # int64 [elements]: OFDM symbol in the frame
    columns: np.ndarray  # int64 [elements]: subcarrier, DC counted
    values: np.ndarray  # complex64 [elements]


@lru_cache(maxsize=8)
def _frame(cell):
    subcarriers, centre = 12 * cell.num_rb, 6 * cell.num_rb
    central = slice(centre - 36, centre + 36)
    lengths = np.array([downlink_symbols(cell, subframe) for subframe in range(_SUBFRAMES)])
    control = np.full(_SUBFRAMES, cell.control_symbols)
    if cell.duplex == "TDD":
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
    tdd = cell.duplex == "TDD"
    sync = []  # (row, signal)
    for subframe in (0, 5):
        sync.append((subframe * _SYMBOLS + (16 if tdd else 6), pss(cell.cell_id % 3)))
        sync.append((subframe * _SYMBOLS + (13 if tdd else 5), sss(cell.cell_id, subframe)))
    role.reshape(-1, subcarriers)[[row for row, _ in sync], central] = _SILENT
    role[0, 7:11, central] = _PBCH

    # room for reference signals: of all ports, but the PBCH leaves that of four (6.6.4), control of two or more (6.2.4)
    room = np.zeros((4, _SYMBOLS, subcarriers), bool)
    signals = []  # (port, rows [n, 1], subcarriers [n, m], values [n, m])
    slots = np.arange(2 * _SUBFRAMES)
    for port, symbols in enumerate(CRS_SYMBOLS):
        for number in symbols:
            values, offsets = crs(cell.cell_id, cell.num_rb, port, slots, number)
            places = offsets[:, None] + 6 * np.arange(2 * cell.num_rb)
            room[port, 7 * slots[:2, None] + number, places[:2]] = True
            rows = 7 * slots + number
            sent = rows % _SYMBOLS < lengths[rows // _SYMBOLS]
            if port < cell.num_ports:
                signals.append((port, rows[sent, None], places[sent], values[sent] * _amplitude(cell.crs_boost_db)))
    role[:, room[: cell.num_ports].any(0)] = _SILENT
    role[(role == _PBCH) & room.any(0)] = _SILENT
    role[((role == _CONTROL) | (role == _PCFICH)) & room[:2].any(0)] = _SILENT
    for row, signal in sync:
        places = np.arange(centre - 31, centre + 31)[None]
        signals.append((0, np.array([[row]]), places, signal[None] * _amplitude(cell.sync_boost_db)))

    # resource-element groups: 4 elements beside two reserved for reference signals, or 4 alone, 6.2.4
    groups = np.empty((cell.control_symbols, subcarriers), np.int64)
    numbered = 0
    for number in range(cell.control_symbols):
        size = 6 if number == 0 or (number == 1 and cell.num_ports == 4) else 4
        groups[number] = numbered + np.arange(subcarriers) // size
        numbered += subcarriers // size

    def with_dc(elements):
        return np.insert(elements, centre, 0, axis=-1)

    fixed = [[part.ravel() for part in np.broadcast_arrays(*signal)] for signal in signals]
    ports, rows, places, values = (np.concatenate(parts) for parts in zip(*fixed, strict=True))
    return _Frame(
        pdsch=with_dc((role == _PDSCH).astype(np.uint8)),
        qpsk=with_dc(((role == _PCFICH) | (role == _PBCH)).astype(np.uint8) * np.uint8(2)),
        control=with_dc((role == _CONTROL).astype(np.uint8))[:, : cell.control_symbols],
        groups=with_dc(groups),
        ports=ports,
        rows=rows,
        columns=places + (places >= centre),
        values=values.astype(np.complex64),
    )


def _amplitude(power_db):
    return np.float32(10 ** (power_db / 20))
