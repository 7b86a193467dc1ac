"""Who gets which resource blocks: schedules of PDSCH, drawn at random. A slot is a subframe in LTE."""

from dataclasses import dataclass

import numpy as np

from radio.scenes.expect import expect


@dataclass(frozen=True)
class Traffic:
    """Users whose bursts come and go.

    Attributes:
        users: number of users; 0 for an idle carrier.
        busy: share of the slots in which a user has data.
        filled: share of the resource blocks that a user fills, on average.
        dwell_slots: mean length of a burst.
        scattered: a user's resource-block groups lie all over the carrier, not side by side.
        modulation_bits: orders to choose from.
        power_db: (lowest, highest) power of a user's resource elements.
        group_rb: resource blocks in a group; users get whole groups.
        broadcast: system information, QPSK at 0 dB, sent always: tuples (period, offset, first resource
            block, resource blocks), in slots from frame 0.
        full: one more user fills every resource block of every slot that the others leave.
        blocks: draw as MathWorks does instead: 1 to 3 groups of slots and of resource blocks, every 20 slots.
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
    full: bool = False
    blocks: bool = False


def schedule(traffic, first_slot, num_slots, num_rb, rng):
    """Draw a schedule. `first_slot`, from the start of frame 0, decides when system information is sent.

    Returns:
        bits: uint8 [num_slots, num_rb], modulation order of each resource block, 0 where there is no PDSCH.
        power_db: float32 [num_slots, num_rb].
    """
    bits = np.zeros((num_slots, num_rb), np.uint8)
    power_db = np.zeros((num_slots, num_rb), np.float32)
    if traffic.blocks:
        slots = _some_groups(rng, 20, 0.1, 0.8)[np.arange(num_slots) % 20]
        bits[np.ix_(slots, _some_groups(rng, num_rb, 0.2, 0.7))] = rng.choice(traffic.modulation_bits)
        return bits, power_db
    if traffic.full:
        bits[:], power_db[:] = rng.choice(traffic.modulation_bits), rng.uniform(*traffic.power_db)
    groups = -(-num_rb // traffic.group_rb)
    for _ in range(traffic.users):
        order, power = rng.choice(traffic.modulation_bits), rng.uniform(*traffic.power_db)
        for burst in _bursts(rng, num_slots, traffic.busy, traffic.dwell_slots):
            count = min(groups, max(1, round(groups * traffic.filled * rng.uniform(0.4, 1.6))))
            if traffic.scattered:
                chosen = rng.permutation(groups)[:count]
            else:
                chosen = int(rng.integers(groups - count + 1)) + np.arange(count)
            blocks = (chosen[:, None] * traffic.group_rb + np.arange(traffic.group_rb)).ravel()
            blocks = blocks[blocks < num_rb]
            bits[burst, blocks], power_db[burst, blocks] = order, power
    slots = first_slot + np.arange(num_slots)
    for period, offset, first_rb, count in traffic.broadcast:
        sent = np.ix_(slots % period == offset, first_rb + np.arange(count))
        bits[sent], power_db[sent] = 2, 0.0
    return bits, power_db


def checked_schedule(bits, power_db, num_rb):
    """A schedule as uint8 and its powers as float32 or None. ValueError: unlike what `schedule` returns."""
    bits = np.asarray(bits)
    is_grid = bits.ndim == 2 and len(bits) and bits.shape[1] == num_rb
    expect(is_grid, f"a schedule [slots, {num_rb}]: {bits.shape}")
    expect(np.isin(bits, (0, 2, 4, 6, 8)).all(), f"0, 2, 4, 6 or 8 bits a symbol: {np.unique(bits)}")
    if power_db is not None:
        power_db = np.asarray(power_db, np.float32)
        is_known = power_db.shape == bits.shape and np.isfinite(power_db).all()
        expect(is_known, f"finite power_db {bits.shape}: {power_db.shape}")
    return bits.astype(np.uint8), power_db


def _bursts(rng, num_slots, busy, dwell_slots):
    """Slices of slots: bursts of geometric length with exponential gaps, or back to back if `busy` is 1."""
    if busy >= 1:
        length = max(1, round(dwell_slots))
        return [slice(first, first + length) for first in range(0, num_slots, length)]
    gap = max(dwell_slots * (1 - busy) / busy, 1e-3)
    bursts, at = [], 0
    sending = rng.random() < busy
    while at < num_slots:
        if sending:
            length = int(rng.geometric(min(1.0, 1 / max(1.0, dwell_slots))))
            bursts.append(slice(at, at + length))
        else:
            length = round(rng.exponential(gap))
        at += length
        sending = not sending
    return bursts


def _some_groups(rng, count, least, most):
    """1 to 3 runs of places that together fill a random share of `count`, `least` to `most`: bool [count]."""
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
