"""Who gets which resource blocks: schedules of the PDSCH, drawn at random."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Traffic:
    """Users whose bursts come and go.

    Attributes:
        users: how many there are; none is an idle carrier.
        busy: share of the slots in which a user has data.
        filled: share of the resource blocks that a user fills, on average.
        dwell_slots: mean length of a burst.
        scattered: whether a user's resource-block groups lie all over the carrier.
        modulation_bits: orders to choose from.
        power_db: (lowest, highest) power of a user's resource elements.
        group_rb: resource blocks that are given out together.
        broadcast: system information, whoever is there: tuples (period and offset in slots from frame 0, first resource
            block, resource blocks), QPSK at 0 dB.
        blocks: MathWorks' manner instead: 1 to 3 groups of slots and 1 to 3 of resource blocks, that repeat.
    """

    users: int = 1
    busy: float = 0.5
    filled: float = 0.5
    dwell_slots: float = 4.0
    scattered: bool = False
    modulation_bits: tuple = (2, 4, 6)
    power_db: tuple = (0.0, 0.0)
    group_rb: int = 4
    broadcast: tuple = ()
    blocks: bool = False


def schedule(traffic, first_slot, num_slots, num_rb, rng):
    """Draw a schedule.

    Args:
        first_slot: from the start of frame 0; decides when system information is sent.

    Returns:
        bits: uint8 [num_slots, num_rb], modulation order of each resource block, 0 where there is no PDSCH;
        power_db: float32 [num_slots, num_rb].
    """
    bits = np.zeros((num_slots, num_rb), np.uint8)
    power_db = np.zeros((num_slots, num_rb), np.float32)
    if traffic.blocks:
        slots = _some_groups(rng, 20, 0.1, 0.8)[np.arange(num_slots) % 20]
        bits[np.ix_(slots, _some_groups(rng, num_rb, 0.2, 0.7))] = rng.choice(traffic.modulation_bits)
        return bits, power_db
    groups = -(-num_rb // traffic.group_rb)
    for _ in range(traffic.users):
        order, power = rng.choice(traffic.modulation_bits), rng.uniform(*traffic.power_db)
        for begin, end in _bursts(rng, num_slots, traffic.busy, traffic.dwell_slots):
            count = min(groups, max(1, round(groups * traffic.filled * rng.uniform(0.4, 1.6))))
            if traffic.scattered:
                chosen = rng.permutation(groups)[:count]
            else:
                chosen = int(rng.integers(groups - count + 1)) + np.arange(count)
            blocks = (chosen[:, None] * traffic.group_rb + np.arange(traffic.group_rb)).ravel()
            blocks = blocks[blocks < num_rb]
            bits[begin:end, blocks], power_db[begin:end, blocks] = order, power
    slots = first_slot + np.arange(num_slots)
    for period, offset, first_rb, count in traffic.broadcast:
        sent = np.ix_(slots % period == offset, first_rb + np.arange(count))
        bits[sent], power_db[sent] = 2, 0.0
    return bits, power_db


def _bursts(rng, num_slots, busy, dwell_slots):
    """(first, last + 1) slots of bursts with random lengths and gaps; geometric, of the given mean and share."""
    if busy >= 1:
        return [(first, min(first + round(dwell_slots) or 1, num_slots))
                for first in range(0, num_slots, round(dwell_slots) or 1)]
    gap = max(dwell_slots * (1 - busy) / busy, 1e-3)
    bursts, at = [], 0
    sending = rng.random() < busy
    while at < num_slots:
        length = int(rng.geometric(min(1.0, 1 / max(1.0, dwell_slots)))) if sending else round(rng.exponential(gap))
        if sending:
            bursts.append((at, min(at + length, num_slots)))
        at += length
        sending = not sending
    return bursts


def _some_groups(rng, count, least, most):
    """1 to 3 runs of places, which together fill a random share between two limits: bool [count]."""
    chosen = np.zeros(count, bool)
    runs = int(rng.integers(1, 4))
    total = max(runs, round(count * rng.uniform(least, most)))
    lengths = rng.multinomial(total - runs, np.full(runs, 1 / runs)) + 1
    spare = rng.multinomial(count - min(total, count), np.full(runs + 1, 1 / (runs + 1)))
    at = 0
    for gap, length in zip(spare, lengths, strict=False):
        chosen[at + gap : at + gap + length] = True
        at += gap + length
    return chosen
