"""Random numbers that are the same on every device: Philox, a function of a key and a counter."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

# Philox4x64-10, Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_KEY_INCREMENTS = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_ROUNDS = 10
_WORDS_A_BLOCK = 4

# Kinds of streams. Each use of a seed has a kind of its own, so no two uses share a key and counter.
TRAINING, VALIDATION, TEST = range(3)  # scenes, by part of a set; purpose 0 of VALIDATION: held-out groups
SPLIT, FEWER = 3, 4  # parts of labelled data; fewer labels
SAMPLING = 5  # an epoch and a sample of training: order, noise of masks, augmentation
CSI = 16  # and the kinds after it: Wi-Fi CSI scenes, by part of a set
FADING = 1000  # channels, which have seeds of their own


@dataclass(frozen=True)
class Stream:
    """A random stream: a function of the user's seed, the kind, the sample's number and its purpose."""

    seed: int
    kind: int = 0
    index: int = 0
    purpose: int = 0

    def child(self, purpose):
        """An independent stream of the same sample. All descendants differ if purposes are below 1000."""
        return replace(self, purpose=1000 * self.purpose + 1 + purpose)

    def _philox(self, block=0):
        key = np.array([self.seed, self.kind], np.uint64)
        return np.random.Philox(key=key, counter=np.array([block, 0, self.purpose, self.index], np.uint64))

    def generator(self):
        """A numpy generator, for parameters drawn on the host."""
        return np.random.Generator(self._philox())

    def words(self, count, device="cpu", start=0):
        """Random 64-bit words `start` to `start + count`: int64 [count]. `start` is a multiple of 4."""
        if start % _WORDS_A_BLOCK:
            raise ValueError(f"expected a multiple of {_WORDS_A_BLOCK}: {start=}")
        block = start // _WORDS_A_BLOCK
        if torch.device(device).type == "cpu":
            return torch.from_numpy(self._philox(block).random_raw(count).view(np.int64))
        return philox_words((self.seed, self.kind), (self.purpose, self.index), block, count, device)

    def octets(self, count, device="cpu"):
        """Random bytes: uint8 [count]."""
        return self.words(-(-count // 8), device).view(torch.uint8)[:count]

    def complex_normal(self, count, device="cpu", start=0):
        """Circular complex Gaussian samples of unit power: complex64 [count]. `start` is a multiple of 4."""
        halves = self.words(count, device, start).view(torch.int32).view(-1, 2)
        uniform = (halves[:, 0] & (2**31 - 1)).float().add_(0.5).mul_(2.0**-31)  # (0, 1], finer towards 0
        magnitude = uniform.log_().neg_().sqrt_()
        return torch.polar(magnitude, halves[:, 1].float().mul_(math.pi * 2.0**-31))


def philox_words(key, upper, block, count, device):
    """Philox4x64-10 in torch's integers: `count` words from block number `block` on: int64 [count].

    key: two numbers below 2^64. upper: counter words 2 and 3. block: counter word 0 of the first block.
    """
    # like numpy, raise the counter before a block is computed
    counters = torch.arange(block + 1, block + 1 - (-count // _WORDS_A_BLOCK), device=device)
    words = [counters, *(torch.full_like(counters, _signed(value)) for value in (0, *upper))]
    for number in range(_ROUNDS):
        high0, low0 = _multiply(words[0], _MULTIPLIERS[0])
        high1, low1 = _multiply(words[2], _MULTIPLIERS[1])
        key0, key1 = (_signed(key[i] + number * _KEY_INCREMENTS[i]) for i in (0, 1))
        words = [high1 ^ words[1] ^ key0, low1, high0 ^ words[3] ^ key1, low0]
    return torch.stack(words, dim=1).flatten()[:count]


def _signed(value):
    """A number modulo 2^64 in the range of int64."""
    return (value + 2**63) % 2**64 - 2**63


def _multiply(words, factor):
    """Unsigned 64 × 64 bit product of int64 words and a number: (upper, lower) halves."""
    mask = 2**32 - 1
    low, high = words & mask, (words >> 32) & mask
    factor_low, factor_high = factor & mask, factor >> 32
    # products of 32-bit halves may pass 2^63: the bits are right, and masks remove the copies of the sign
    low_low, low_high, high_low = low * factor_low, low * factor_high, high * factor_low
    middle = ((low_low >> 32) & mask) + (low_high & mask) + (high_low & mask)
    upper = high * factor_high + ((low_high >> 32) & mask) + ((high_low >> 32) & mask) + (middle >> 32)
    return upper, words * _signed(factor)
