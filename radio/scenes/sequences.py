"""The pseudo-random sequences that LTE and NR share."""

from functools import lru_cache

import numpy as np
from scipy.signal import max_len_seq

_DISCARDED = 1600  # bits, N_C of TS 36.211 7.2 and TS 38.211 5.2.1
_REGISTER = 31


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
