"""The pseudo-random sequences that LTE and NR share."""

from functools import lru_cache

import numpy as np

# Bits of the generator that are discarded: N_C of TS 36.211 7.2 and TS 38.211 5.2.1.
_DISCARDED = 1600
_REGISTER = 31


def gold(c_init, length):
    """The length-31 Gold sequence c(0) ... c(length - 1) of TS 36.211 7.2, TS 38.211 5.2.1.

    Args:
        c_init: a number below 2^31, or an array of them.

    Returns:
        uint8, shape of `c_init` + [length], of zeros and ones.
    """
    c_init = np.asarray(c_init, np.int64)
    first, second = _components(length)
    # The second register is linear in its start: the sum, modulo 2, of what each of the set bits alone gives.
    bits = (c_init[..., None] >> np.arange(_REGISTER)) & 1  # (..., 31)
    return first ^ ((bits.astype(np.float32) @ second).astype(np.int64) & 1).astype(np.uint8)


@lru_cache(maxsize=32)
def _components(length):
    """(x1 uint8 [length], x2 float32 [31, length] for each single bit set at the start), from bit N_C on."""
    total = _DISCARDED + length
    first = np.zeros(total + _REGISTER, np.uint8)
    first[0] = 1
    second = np.zeros((_REGISTER, total + _REGISTER), np.uint8)
    second[:, :_REGISTER] = np.eye(_REGISTER, dtype=np.uint8)
    for n in range(total):
        first[n + 31] = first[n + 3] ^ first[n]
        second[:, n + 31] = second[:, n + 3] ^ second[:, n + 2] ^ second[:, n + 1] ^ second[:, n]
    return first[_DISCARDED:total], second[:, _DISCARDED:total].astype(np.float32)


def qpsk(bits):
    """Pairs of bits to QPSK symbols of unit power, (1 - 2 c(2m) + j (1 - 2 c(2m + 1))) / sqrt(2): [..., 2n] -> [..., n].

    The mapping of reference signals in TS 36.211 6.10.1.1 and TS 38.211 7.4.1: complex64.
    """
    signs = (1 - 2 * bits.astype(np.float32)) * np.float32(np.sqrt(0.5))
    return (signs[..., ::2] + 1j * signs[..., 1::2]).astype(np.complex64)
