"""The sequences of LTE and NR: pseudo-random bits, synchronization signals, cell-specific reference signals.

Exact, from TS 36.211 and TS 38.211 with normal cyclic prefix.
"""

from functools import lru_cache

import numpy as np
from scipy.signal import max_len_seq

_DISCARDED = 1600  # bits, N_C of TS 36.211 7.2 and TS 38.211 5.2.1
_REGISTER = 31
_PSS_ROOTS = (25, 29, 34)  # TS 36.211 table 6.11.1.1-1
_MAX_RB = 110  # N_RB^max,DL: the reference signals' sequence spans the widest carrier
CRS_SYMBOLS = ((0, 4), (0, 4), (1,), (1,))  # TS 36.211 6.10.1.2: of a slot, for each antenna port of LTE


def gold(c_init, length):
    """The length-31 Gold sequence c(0) ... c(length - 1) of TS 36.211 7.2, TS 38.211 5.2.1.

    c_init: a number below 2^31 or an array of numbers. Returns zeros and ones, uint8, `c_init`'s shape +
        [length].
    """
    first, second = _registers(length)
    # The second register is linear in its start: add, modulo 2, the outputs for each bit that is set.
    bits = np.asarray(c_init, np.int64)[..., None] >> np.arange(_REGISTER) & 1  # (..., 31)
    return first ^ ((bits.astype(np.float32) @ second).astype(np.int64) & 1).astype(np.uint8)


@lru_cache(maxsize=32)
def _registers(length):
    """x1: uint8 [length]; x2 of each single bit set at the start: float32 [31, length], from bit N_C on."""
    starts = np.eye(_REGISTER, dtype=np.int8)
    first = max_len_seq(_REGISTER, starts[0], _DISCARDED + length, taps=[3])[0]
    second = [max_len_seq(_REGISTER, start, _DISCARDED + length, taps=[3, 2, 1])[0] for start in starts]
    return first[_DISCARDED:].astype(np.uint8), np.stack(second)[:, _DISCARDED:].astype(np.float32)


def qpsk(bits):
    """QPSK symbols of unit power, TS 36.211 6.10.1.1, TS 38.211 7.4.1: bits [..., 2n] -> [..., n]."""
    signs = (1 - 2 * bits.astype(np.float32)) * np.float32(np.sqrt(0.5))
    return (signs[..., ::2] + 1j * signs[..., 1::2]).astype(np.complex64)


def lte_pss(n_id_2):
    """Primary synchronization signal of cells with `cell_id % 3 == n_id_2`: complex64 [62], TS 36.211 6.11.1.1."""
    n = np.delete(np.arange(63), 31)  # element 31 of the Zadoff-Chu sequence would lie on DC
    phase = _PSS_ROOTS[n_id_2] * n * (n + 1) % 126  # of 126 steps around the circle
    return np.exp(-1j * np.pi / 63 * phase).astype(np.complex64)


def lte_sss(cell_id, subframe):
    """Secondary synchronization signal in subframe 0 or 5: float32 [62] of ±1, TS 36.211 6.11.2.1."""
    n_id_1, n_id_2 = divmod(cell_id, 3)
    q = n_id_1 // 30
    q = (n_id_1 + q * (q + 1) // 2) // 30
    m = n_id_1 + q * (q + 1) // 2
    m0 = m % 31
    m1 = (m0 + m // 31 + 1) % 31
    even, odd = (m0, m1) if subframe == 0 else (m1, m0)

    n = np.arange(31)
    s, c, z = (1 - 2 * max_len_seq(5, (0, 0, 0, 0, 1), taps=taps)[0] for taps in ([2], [3], [4, 2, 1]))
    signal = np.empty(62, np.float32)
    signal[0::2] = s[(n + even) % 31] * c[(n + n_id_2) % 31]
    signal[1::2] = s[(n + odd) % 31] * c[(n + n_id_2 + 3) % 31] * z[(n + even % 8) % 31]
    return signal


def lte_crs(cell_id, num_rb, port, slot, symbol):
    """Cell-specific reference signal of a port in one symbol, a `CRS_SYMBOLS` of the port, TS 36.211 6.10.1.

    slot: number in the frame, 0 to 19, or an array of numbers. Returns values, complex64, shape of `slot` +
    [2 * num_rb], and offsets, int64, shape of `slot`: value m is on subcarrier 6 m + offset, DC not counted.
    """
    slot = np.asarray(slot)
    c_init = 1024 * (7 * (slot + 1) + symbol + 1) * (2 * cell_id + 1) + 2 * cell_id + 1  # N_CP = 1
    values = qpsk(gold(c_init, 4 * _MAX_RB))[..., _MAX_RB - num_rb : _MAX_RB + num_rb]
    is_shifted = slot % 2 if port > 1 else np.full_like(slot, symbol > 0)
    return values, (3 * (port + is_shifted) + cell_id) % 6


def nr_pss(n_id_2):
    """Primary synchronization signal, TS 38.211 7.4.2.2.1: float32 [127] of ±1. n_id_2: `cell_id % 3`."""
    sequence = 1 - 2 * max_len_seq(7, (0, 1, 1, 0, 1, 1, 1), taps=[4])[0]
    return np.roll(sequence, -43 * n_id_2).astype(np.float32)


def nr_sss(cell_id):
    """Secondary synchronization signal, TS 38.211 7.4.2.3.1: float32 [127] of ±1."""
    n_id_1, n_id_2 = divmod(cell_id, 3)
    m_0, m_1 = 15 * (n_id_1 // 112) + 5 * n_id_2, n_id_1 % 112
    first, second = (1 - 2 * max_len_seq(7, (1, 0, 0, 0, 0, 0, 0), taps=[tap])[0] for tap in (4, 1))
    return (np.roll(first, -m_0) * np.roll(second, -m_1)).astype(np.float32)
