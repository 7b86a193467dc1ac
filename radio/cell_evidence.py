"""How much speaks for a cell where a PSS may be: the second, exact stage of cell search.

The evidence of one symbol is -(n - 1) ln(1 - r), with r = |<y, s>|² / (n |y|²) of its n subcarriers y and the
expected signal s. White noise of any power makes it exponential with a mean of 1; strong interference on a few
subcarriers makes it smaller. The evidence of several symbols has a gamma distribution.

What repeats is no new evidence. The rest of the symbols, without PSS or SSS, is compared between half-frames. A
sum of n equal terms with correlations k has a variance of n (1 + mean sum of k): the sum and the number of terms
are divided by that factor (Satterthwaite).
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import gammaincc, gammaln
from torch.nn.functional import pad

from radio.cell_signals import Demodulator, turned

HALF_FRAME_S = 5e-3
MOST_DRIFT = 50e-6  # of the clocks against each other
_STEPS = (-0.25, -0.125, 0.0, 0.125, 0.25)  # of frequency, in subcarriers
WIDTHS = (5, 17, None)  # subcarriers over which the channel is averaged; None: all
_PARTS = 3  # of the PSS that are summed in power where the channel varies within it
_NARROW = WIDTHS[0]
_SINGLE = 3.0  # decades of one PSS with its SSS, at a known place, that count as heard
_BATCH_VALUES = 2**22  # samples looked at together


@dataclass(frozen=True)
class Candidate:
    """A PSS with its best SSS.

    Attributes:
        metric: decades (-log10 of the probability in noise) of PSS and SSS.
        pss_metric, sss_metric: of PSS and of SSS alone.
        freq_hz: of the centre's subcarrier.
        starts_s: of the PSS in each half-frame that counts; heard: those whose PSS and SSS alone count.
        half: of the frame that the first of them is in.
    """

    metric: float
    pss_metric: float
    sss_metric: float
    cell_id: int
    duplex: str
    freq_hz: float
    starts_s: tuple
    heard: tuple
    half: int
    snr_db: float


def decades(count, total):
    """-log10 of the probability that `count` exponentials of mean 1 sum up to `total`: float64 arrays."""
    count, total = np.maximum(count, 1e-6), np.maximum(total, 1e-6)
    probability = gammaincc(count, total)
    # far out, where that underflows: the first terms of its asymptotic series
    beyond = (
        total - (count - 1) * np.log(total) + gammaln(count) - np.log1p(np.clip((count - 1) / total, 0, 1))
    )
    return np.where(probability > 1e-280, -np.log10(np.maximum(probability, 1e-300)), beyond / np.log(10))


def weigh(iq, sample_rate_hz, sync, peaks):
    """`Candidate`s at the places in `radio.cell_peaks.Peaks`; none where no PSS with SSS is whole."""
    pairs = _Pairs(iq, sample_rate_hz, sync)
    count = max(1, _BATCH_VALUES // (pairs.halves * pairs.symbols.count))
    parts = zip(*(one.split(count) for one in peaks[1:]), strict=True)
    return [candidate for part in parts for candidate in pairs.candidates(*part)]


def _evidence(correlation, energy, count):
    """Of |<y, s>|² and n |y|² with n = count."""
    likeness = correlation / energy.clamp(min=torch.finfo(torch.float32).tiny)
    return torch.log1p(-likeness.clamp(max=1 - 1e-6)).mul_(1 - count)


def _power(values):
    return values.real.square() + values.imag.square()


def _averaged(values, width):
    """Moving average over the last dimension; None: the mean of all."""
    if width is None:
        return values.mean(-1, keepdim=True)
    count = values.shape[-1]
    sums = pad(values.cumsum(-1), (1, 0))
    places = torch.arange(count)
    first, end = (places - width // 2).clamp(min=0), (places + width // 2 + 1).clamp(max=count)
    return (sums[..., end] - sums[..., first]) / (end - first)


class _Pairs:
    """PSS and SSS of a stretch. Arrays are [places, half-frames, ...]."""

    def __init__(self, iq, sample_rate_hz, sync):
        self.iq, self.rate_hz, self.sync = iq, sample_rate_hz, sync
        self.whole_s = len(iq) / sample_rate_hz
        self.halves = int(np.ceil(self.whole_s / HALF_FRAME_S))
        self.tones = torch.from_numpy(sync.tones)
        self.symbols = Demodulator(iq, sample_rate_hz, sync.spacing_hz, sync.tones)
        self.stepped = Demodulator(iq, sample_rate_hz, sync.spacing_hz, sync.tones, _STEPS)
        self.pss = torch.from_numpy(sync.pss).conj()
        self.sss = torch.from_numpy(sync.sss)  # (roots, halves, N_ID_1, tones)
        # LTE repeats after a half-frame, NR's SSB after 5, 10 or 20 ms or not at all
        self.periods = (1,) if sync.period_s else (self.halves, 4, 2, 1)

    def candidates(self, start_s, freq_hz, root):
        starts_s, freq_hz, counted = self._refined(start_s.double(), freq_hz.double(), root)
        pss = self.symbols(starts_s, freq_hz)[:, :, 0] * self.pss[root, None]
        best = None
        for duplex, after_s in self.sync.after_s.items():
            usable = counted & self._inside(starts_s) & self._inside(starts_s + after_s)
            found = self._judged(pss, self.symbols(starts_s + after_s, freq_hz)[:, :, 0], usable, root)
            found["duplex"] = np.full(len(root), duplex)
            better = found["metric"] > best["metric"] if best else np.full(len(root), True)
            best = {
                name: np.where(better.reshape(-1, *[1] * (values.ndim - 1)), values, best[name])
                if best
                else values
                for name, values in found.items()
            }
        candidates = []
        for at in np.flatnonzero(best["usable"].any(1)):
            places = np.flatnonzero(best["usable"][at])
            heard = places[best["single"][at, places] >= _SINGLE]
            candidates.append(
                Candidate(
                    float(best["metric"][at]),
                    float(best["pss_metric"][at]),
                    float(best["sss_metric"][at]),
                    int(best["cell_id"][at]),
                    str(best["duplex"][at]),
                    float(freq_hz[at]),
                    tuple(starts_s[at, places].tolist()),
                    tuple(starts_s[at, heard].tolist()),
                    int(best["half"][at] + places[0]) % 2,
                    float(best["snr_db"][at]),
                )
            )
        return candidates

    def _inside(self, start_s):
        return (start_s > -0.5 / self.rate_hz) & (
            start_s + self.sync.symbol_s < self.whole_s + 0.5 / self.rate_hz
        )

    def _refined(self, start_s, freq_hz, root):
        """Starts and frequency where the PSS fits best, and which half-frames count.

        Clocks that differ move the PSS from one half-frame to the next.
        """
        own = (start_s / HALF_FRAME_S).floor()
        number = torch.arange(self.halves)
        starts_s = (start_s - own * HALF_FRAME_S)[:, None] + number * HALF_FRAME_S  # (places, halves)
        inside = self._inside(starts_s)
        since = (number - own[:, None]).long()

        # evidence at each frequency and delay: (places, halves, steps, delays)
        step_s = 1 / (4 * len(self.tones) * self.sync.spacing_hz)
        near = int(np.ceil(1.5 * self.sync.symbol_s / self.sync.points / step_s))
        far = int(np.ceil(MOST_DRIFT * (self.halves - 1) * HALF_FRAME_S / step_s))
        delays = torch.arange(-near - far, near + far + 1)
        steering = turned(torch.outer(self.tones, delays * (step_s * self.sync.spacing_hz)))
        pss = self.stepped(starts_s, freq_hz) * self.pss[root, None, None]
        energy = len(self.tones) * _power(pss).sum(-1, keepdim=True)
        evidence = _evidence(_power(pss @ steering), energy, len(self.tones))

        # the best sum over half-frames, for each drift and period
        masks = torch.stack([inside & (since % period == 0) for period in self.periods]).float()
        drifts = torch.arange(-(far // 2), far // 2 + 1) * (2 / max(self.halves - 1, 1))  # steps a half-frame
        window = torch.arange(near + far - near, near + far + near + 1)
        totals, places = [], []
        for drift in drifts:
            index = (drift * since).round().long()[..., None, None] + window
            moved = evidence.gather(3, index.expand(*index.shape[:2], len(_STEPS), -1))
            sums = torch.einsum("pch,chsd->pcsd", masks, moved).flatten(2).max(2)
            totals.append(sums.values)
            places.append(sums.indices)
        totals, places = torch.stack(totals), torch.stack(places)  # (drifts, periods, places)
        total, which = totals.max(0)
        found = torch.from_numpy(decades(masks.sum(2).numpy(), total.numpy()))
        period = found.argmax(0)
        rows = torch.arange(len(root))
        which = which[period, rows]
        step, delay = torch.unravel_index(places[which, period, rows], (len(_STEPS), len(window)))
        moved = (drifts[which, None] * since).round() + (delay - near)[:, None]
        freq_hz = freq_hz + torch.tensor(_STEPS, dtype=torch.double)[step] * self.sync.spacing_hz
        return starts_s + moved * step_s, freq_hz, masks[period, rows] > 0

    def _judged(self, pss, sss, usable, root):
        """PSS (times its conjugate) and SSS with the best identity: a dict of arrays by place."""
        count = usable.sum(1).numpy()

        # PSS, whole or in parts
        energy = _power(pss)
        whole = _evidence(_power(pss.sum(2)), len(self.tones) * energy.sum(2), len(self.tones))
        parts = [
            _evidence(_power(part.sum(2)), part.shape[2] * power.sum(2), part.shape[2])
            for part, power in zip(pss.tensor_split(_PARTS, 2), energy.tensor_split(_PARTS, 2), strict=True)
        ]
        parts = sum(parts)
        totals = [(one * usable).sum(1).numpy() for one in (whole, parts)]
        in_parts = decades(_PARTS * count, totals[1]) > decades(count, totals[0])
        shape, total = np.where(in_parts, _PARTS * count, count), np.where(in_parts, totals[1], totals[0])

        # SSS of every identity, on the channel that the PSS saw
        best = None
        for width in WIDTHS:
            channel = _averaged(pss, width)
            turned = sss * torch.polar(torch.ones_like(channel.real), -channel.angle())
            found = self._best_sss(turned, usable, root)
            if best is None:
                best = found
            else:
                better = found[0] > best[0]
                best = [
                    torch.where(better.view(-1, *[1] * (one.dim() - 1)), other, one)
                    for one, other in zip(best, found, strict=True)
                ]
        sss_total, half, id_1, single = best
        sequence = self.sss[
            root[:, None], (half[:, None] + torch.arange(self.halves)) % self.sss.shape[1], id_1[:, None]
        ]

        # repetition
        rest = [pss - _averaged(pss, _NARROW), sss * sequence - _averaged(sss * sequence, _NARROW)]
        repeated = np.maximum(*(self._repeated(one, usable) for one in rest))
        sss_total = sss_total.numpy()
        metric = decades((shape + count) / repeated, (total + sss_total) / repeated)
        alone = torch.where(torch.from_numpy(in_parts)[:, None], parts, whole)

        # SNR: what the channels of both have in common
        mean = [(_power(one) * usable[..., None]).sum((1, 2)) / 2 for one in (pss, sss)]
        common = ((pss * (sss * sequence).conj()).sum(2).abs() * usable).sum(1)
        snr = common / (sum(mean) - common).clamp(min=1e-6 * sum(mean) + 1e-30)
        return {
            "metric": metric,
            "pss_metric": decades(shape / repeated, total / repeated),
            "sss_metric": decades(count / repeated, sss_total / repeated),
            "cell_id": (3 * id_1 + root).numpy(),
            "half": half.numpy(),
            "usable": usable.numpy(),
            "single": decades(np.where(in_parts, _PARTS + 1, 2)[:, None], (alone + single).numpy()),
            "snr_db": 10 * torch.log10(snr.clamp(min=1e-6)).numpy(),
        }

    def _best_sss(self, turned, usable, root):
        """(total, half of the frame of the first half-frame, N_ID_1, evidence by half-frame)."""
        parts = torch.view_as_real(turned).transpose(2, 3).flatten(1, 2)  # (places, halves * 2, tones)
        codes = self.sss[root]  # (places, halves of a frame, N_ID_1, tones)
        products = parts @ codes.flatten(1, 2).mT
        power = products.unflatten(1, (-1, 2)).square().sum(2)  # (places, halves, codes)
        energy = len(self.tones) * _power(turned).sum(2)
        evidence = _evidence(power, energy[..., None], len(self.tones)).unflatten(2, codes.shape[1:3])
        number, sides = torch.arange(self.halves), codes.shape[1]
        ordered = torch.stack([evidence[:, number, (side + number) % sides] for side in range(sides)], 1)
        totals = (ordered * usable[:, None, :, None]).sum(2)  # (places, sides, N_ID_1)
        total, which = totals.flatten(1).max(1)
        half, id_1 = torch.unravel_index(which, totals.shape[1:])
        return [total, half, id_1, ordered[torch.arange(len(root)), half, :, id_1]]

    def _repeated(self, rest, usable):
        """1 + the mean sum of correlations between half-frames: float64 [places]."""
        rest = rest / torch.linalg.vector_norm(rest, dim=2, keepdim=True).clamp(min=1e-30) * usable[..., None]
        likeness = _power(rest @ rest.mH)
        chance = 1 / (len(self.tones) * (1 - 1 / _NARROW))
        pairs = usable[:, :, None] & usable[:, None] & ~torch.eye(self.halves, dtype=bool)
        total = ((likeness - chance) * pairs).sum((1, 2)).clamp(min=0)
        return (1 + total / usable.sum(1).clamp(min=1)).double().numpy()
