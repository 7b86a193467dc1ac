"""Random numbers that are the same on every machine and device: Philox, a function of a key and a counter."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

# Philox4x64-10, Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011): multipliers and key increments.
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_INCREMENTS = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_ROUNDS = 10
_WORDS_A_BLOCK = 4

# Kinds of streams. Two purposes of one seed share no kind, so they share no key and counter.
TRAINING, VALIDATION, TEST = range(3)  # scenes, by part of a set; purpose 0 of VALIDATION chooses held-out groups
SPLIT, FEWER = 3, 4  # parts of labelled data; fewer labels
SAMPLING = 5  # what training draws for an epoch and a sample: order, noise of masks, augmentation
CSI = 16  # and those after it: Wi-Fi CSI scenes, by part of a set
FADING = 1000  # channels, which have seeds of their own


@dataclass(frozen=True)
class Stream:
    """The random numbers of one purpose: a function of (seed, kind, index, purpose), whatever the device.

    Args:
        seed: what the user gave.
        kind: what it is for: one of the kinds above, an integer.
        index: number of the sample.
        purpose: tells the streams of one sample apart; see `child`.
    """

    seed: int
    kind: int = 0
    index: int = 0
    purpose: int = 0

    def child(self, purpose):
        """An independent stream of the same sample. Children of children stay apart for purposes below 1000."""
        return replace(self, purpose=1000 * self.purpose + 1 + purpose)

    def _philox(self, block=0):
        # Counter word 1 is left to the carry of word 0, of which no stream uses more than 2^64 blocks.
        key = np.array([self.seed, self.kind], np.uint64)
        return np.random.Philox(key=key, counter=np.array([block, 0, self.purpose, self.index], np.uint64))

    def generator(self):
        """A numpy generator, for parameters that are drawn on the host."""
        return np.random.Generator(self._philox())

    def words(self, count, device="cpu", start=0):
        """Random 64-bit words `start` to `start + count`: int64 [count]; `start` is a multiple of 4."""
        if start % _WORDS_A_BLOCK:
            raise ValueError(f"expected a start that is a multiple of {_WORDS_A_BLOCK}: {start=}")
        block = start // _WORDS_A_BLOCK
        if torch.device(device).type == "cpu":
            return torch.from_numpy(self._philox(block).random_raw(count).view(np.int64))
        return philox_words((self.seed, self.kind), (self.purpose, self.index), block, count, device)

    def octets(self, count, device="cpu"):
        """Random bytes: uint8 [count]."""
        return self.words(-(-count // 8), device).view(torch.uint8)[:count]

    def complex_normal(self, count, device="cpu", start=0):
        """Circular complex Gaussian samples of unit mean power: complex64 [count]; `start` is a multiple of 4."""
        halves = self.words(count, device, start).view(torch.int32).view(-1, 2)
        uniform = (halves[:, 0] & (2**31 - 1)).float().add_(0.5).mul_(2.0**-31)  # (0, 1], finer towards 0
        magnitude = uniform.log_().neg_().sqrt_()
        return torch.polar(magnitude, halves[:, 1].float().mul_(math.pi * 2.0**-31))


def philox_words(key, upper, block, count, device):
    """Philox4x64-10 in torch's integers: words 0 to `count` from block number `block` on: int64 [count].

    Args:
        key: two numbers below 2^64.
        upper: counter words 2 and 3.
        block: counter word 0 of the first block; as numpy does, a block is computed after its counter is raised by one.
    """
    blocks = -(-count // _WORDS_A_BLOCK)
    words = [
        torch.arange(block + 1, block + 1 + blocks, device=device),
        *(torch.full((blocks,), _signed(value), device=device) for value in (0, *upper)),
    ]
    keys = list(key)
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(words[0], _MULTIPLIERS[0])
        high1, low1 = _multiply(words[2], _MULTIPLIERS[1])
        words = [high1 ^ words[1] ^ _signed(keys[0]), low1, high0 ^ words[3] ^ _signed(keys[1]), low0]
        keys = [value + increment for value, increment in zip(keys, _INCREMENTS, strict=True)]
    return torch.stack(words, dim=1).flatten()[:count]


def _signed(value):
    """A number modulo 2^64 as int64 holds it."""
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


def _multiply(words, factor):
    """Unsigned 64 × 64 bit product of int64 words and a number: (upper, lower) halves."""
    mask = 2**32 - 1
    low, high = words & mask, (words >> 32) & mask
    factor_low, factor_high = factor & mask, factor >> 32
    # Products of 32-bit halves may pass 2^63: their bits are right, and the masks below take the sign's copies away.
    low_low, low_high, high_low = low * factor_low, low * factor_high, high * factor_low
    middle = ((low_low >> 32) & mask) + (low_high & mask) + (high_low & mask)
    upper = high * factor_high + ((low_high >> 32) & mask) + ((high_low >> 32) & mask) + (middle >> 32)
    return upper, words * _signed(factor)
