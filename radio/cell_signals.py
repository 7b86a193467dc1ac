"""The synchronization signals of LTE and 5G NR (normal cyclic prefix), and how symbols are demodulated."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from radio.carriers import LTE, NR
from radio.sequences import lte_pss, lte_sss, nr_pss, nr_sss

NUM_ROOTS = 3
_CLIP = 3  # times the median, of subcarriers
_NR_SHIFT = 43  # subcarriers from one PSS to the next, TS 38.211 7.4.2.2.1


@dataclass(frozen=True, eq=False)
class Sync:
    """The synchronization signals of a standard at one subcarrier spacing. Times are those of useful parts.

    Attributes:
        tones: subcarriers of PSS and SSS from that at the centre, int64 [tones].
        pss: complex64 [3, tones], by N_ID^(2).
        sss: float32 [3, halves, N_ID^(1), tones]; halves: of LTE's frame.
        after_s: time from PSS to SSS, by duplex mode.
        period_s: from PSS to PSS; None if only single ones count.
        parts: what a correlator looks for: ((subcarriers from the part's middle, values), ...).
        roots: each PSS as ((part, where its middle lies from the centre), ...), in subcarriers.
        images: of each PSS: the subcarriers by which it is shifted to look like itself, but later, and by how much
            of a symbol; (0, 0.0) for none.
        points: delays a symbol that resolve the parts.
    """

    technology: str
    spacing_hz: float
    tones: np.ndarray
    pss: np.ndarray
    sss: np.ndarray
    after_s: dict
    period_s: float | None
    parts: tuple
    roots: tuple
    images: tuple
    points: int

    @property
    def symbol_s(self):
        return 1 / self.spacing_hz

    @property
    def half_hz(self):
        """Half of the width of PSS and SSS."""
        return (np.ptp(self.tones) + 1) * self.spacing_hz / 2


@lru_cache(maxsize=1)
def lte_sync():
    """TS 36.211 6.11; the distance of PSS and SSS is one or three symbols, clause 4 and table 6.12-1."""
    tones = np.delete(np.arange(-31, 32), 31)
    pss = np.stack([lte_pss(root) for root in range(NUM_ROOTS)])
    sss = [[[lte_sss(3 * one + root, half) for one in range(168)] for half in (0, 5)] for root in range(3)]
    after_s = {"FDD": -2192 / 30.72e6, "TDD": -(3 * 2192 + 16) / 30.72e6}
    parts = tuple((tones, values) for values in pss)
    roots = tuple(((root, 0),) for root in range(NUM_ROOTS))
    # A Zadoff-Chu sequence of root u, shifted by m places, has a phase that turns by u m / 63 from place to place.
    images = ((5, 1 / 63), (2, 5 / 63), (2, -5 / 63))  # u m = 2 · 63 - 1, 63 - 5, 63 + 5
    return Sync(LTE, 15e3, tones, pss, np.array(sss), after_s, 5e-3, parts, roots, images, 80)


@lru_cache(maxsize=2)
def nr_sync(spacing_hz):
    """TS 38.211 7.4.2 and 7.4.3. The centre is the SSB's subcarrier 120, which the raster refers to.

    The three PSS are cyclic shifts of one sequence. The powers of its three parts, each at any frequency, are
    those of every PSS: that takes a third of the time, stands more echoes, and costs 1 dB.
    """
    tones = np.arange(56, 183) - 120
    pss = np.stack([nr_pss(root) for root in range(NUM_ROOTS)])
    sss = [[[nr_sss(3 * one + root) for one in range(336)]] for root in range(NUM_ROOTS)]
    starts = np.arange(3) * _NR_SHIFT
    middle = _NR_SHIFT // 2
    parts = tuple((np.arange(len(part)) - middle, part) for part in np.split(pss[0], starts[1:]))
    first = (starts - np.arange(NUM_ROOTS)[:, None] * _NR_SHIFT) % len(tones)  # (roots, parts)
    roots = tuple(tuple(enumerate((tones[0] + one + middle).tolist())) for one in first)
    after_s, images = {"": 2 * 2192 / (2048 * spacing_hz)}, ((0, 0.0),) * NUM_ROOTS
    return Sync(
        NR,
        spacing_hz,
        tones,
        pss.astype(np.complex64),
        np.array(sss),
        after_s,
        None,
        parts,
        roots,
        images,
        48,
    )


class Demodulator:
    """Subcarriers of symbols at any time and frequency, by direct Fourier sums."""

    def __init__(self, iq, sample_rate_hz, spacing_hz, tones, steps=(0.0,)):
        """steps: frequencies that each symbol is looked at, from the centre in subcarriers."""
        self.iq, self.rate_hz, self.spacing_hz = iq, sample_rate_hz, spacing_hz
        self.tones = torch.as_tensor(tones)
        self.count = round(sample_rate_hz / spacing_hz)  # samples of a symbol
        self.steps = len(steps)
        shifted = (torch.tensor(steps, dtype=torch.double)[:, None] + self.tones).flatten()
        self.sums = turned(torch.outer(torch.arange(self.count) * (-spacing_hz / sample_rate_hz), shifted))

    def __call__(self, start_s, freq_hz):
        """Symbols whose useful parts begin at start_s, float64 [places, n], with the centre at freq_hz [places].

        FFTs begin a quarter of a prefix early. Subcarriers of three times the median or more, a receiver's spurs,
        are cut to that. Returns complex64 [places, n, steps, tones].
        """
        early_s = 1 / 56 / self.spacing_hz
        first = ((start_s - early_s) * self.rate_hz).round().long().clamp(0, len(self.iq) - self.count)
        samples = self.iq.unfold(0, self.count, 1)[first]
        samples *= turned(-freq_hz[:, None] * (torch.arange(self.count) / self.rate_hz))[:, None]
        values = (samples @ self.sums).unflatten(2, (self.steps, -1))
        late = (first / self.rate_hz - start_s) * self.spacing_hz
        values *= turned(-late[..., None] * self.tones)[:, :, None]
        size = values.abs()
        limit = _CLIP * size.median(-1, keepdim=True).values
        return values * (limit / size.clamp(min=torch.finfo(torch.float32).tiny)).clamp(max=1)


def turned(turns):
    """exp(j 2π turns) of float64 turns: complex64."""
    angles = ((turns % 1) * (2 * torch.pi)).float()
    return torch.polar(torch.ones_like(angles), angles)
