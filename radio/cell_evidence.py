"""How much speaks for a cell where a PSS may be: the second, exact stage of cell search.

The evidence of one symbol is -(n - 1) ln(1 - r), with r = |<y, s>|² / (n |y|²) of its n subcarriers y and the
expected signal s. White noise of any power makes it exponential with a mean of 1; strong interference on a few
subcarriers makes it smaller. The evidence of several symbols has a gamma distribution.

What repeats is no new evidence. The rest of the symbols, without PSS or SSS, is compared between half-frames. A
sum of n equal terms with correlations k has a variance of n (1 + mean sum of k): the sum and the number of terms
are divided by that factor (Satterthwaite).
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import pad

from radio.cell_signals import NUM_ROOTS, Demodulator, turned

WIDTHS = (5, 17, None)  # subcarriers over which the channel is averaged; None: all
_PARTS = 3  # of the PSS, whose evidence is summed where the channel varies within it
HALF_FRAME_S = 5e-3
_PERIODS = (8, 4, 2, 1)  # half-frames between NR's SSBs; the longest stands for a single one
_MOST_DRIFT = 50e-6  # of the clocks against each other
_STEPS = (-0.25, -0.125, 0.0, 0.125, 0.25)  # of frequency, in subcarriers
_EXACT = 0.1  # between the three frequencies whose parabola has its top at the exact one
_TRIES = 3
_HEARD = 3.0  # decades of one PSS with its SSS, where a cell is known
_BATCH_VALUES = 2**22  # samples looked at together
_TINY = 1e-30


@dataclass(frozen=True)
class Candidate:
    """A PSS with its best SSS. Decades are -log10 of the probability that noise gives as much evidence.

    Attributes:
        pss, sss, both: decades of PSS, of SSS, and of the two together.
        freq_hz: of the subcarrier at the centre.
        starts_s: of the PSS in each half-frame that counts, ascending.
        heard_s: of those that count alone.
        half: of the frame that the first of `starts_s` is in.
    """

    pss: float
    sss: float
    both: float
    cell_id: int
    duplex: str
    freq_hz: float
    starts_s: tuple
    heard_s: tuple
    half: int
    snr_db: float


def weigh(iq, sample_rate_hz, sync, peaks):
    """`Candidate`s at the places in `radio.cell_peaks.Peaks`; none where no PSS with SSS is whole."""
    pairs = _Pairs(iq, sample_rate_hz, sync)
    count = max(1, _BATCH_VALUES // (pairs.halves * pairs.symbols.count))
    found = []
    for root in range(NUM_ROOTS):
        places = torch.nonzero(peaks.root == root)[:, 0]
        for some in places.split(count):
            if len(some):
                found += pairs.candidates(peaks.start_s[some].double(), peaks.freq_hz[some].double(), root)
    return found


def exact_freq_hz(iq, sample_rate_hz, sync, found):
    """The frequency of a `Candidate`, where the power of all of its known symbols is highest."""
    id_1, root = divmod(found.cell_id, 3)
    starts_s = torch.tensor([found.starts_s], dtype=torch.double)
    steps = (-_EXACT, 0.0, _EXACT)
    symbols = Demodulator(iq, sample_rate_hz, sync.spacing_hz, sync.tones, steps)
    sides = (found.half + np.arange(starts_s.shape[1])) % sync.sss.shape[1]
    known = (
        (0.0, sync.pss[root].conj()[None]),
        (sync.after_s[found.duplex], sync.sss[root, sides, id_1]),
    )
    freq_hz = found.freq_hz
    for _ in range(_TRIES):
        power = 0.0
        for after_s, sequence in known:
            values = symbols(starts_s + after_s, torch.tensor([freq_hz], dtype=torch.double))[0]
            values = values * torch.from_numpy(sequence)[:, None]  # (halves, steps, tones)
            power += sum(_power(part.sum(2)).sum(0) for part in values.tensor_split(_PARTS, 2))
        left, middle, right = power.tolist()
        bend = 2 * middle - left - right
        top = (right - left) / (2 * bend) if bend > 0 else math.copysign(1, right - left)
        freq_hz += min(max(top, -1), 1) * _EXACT * sync.spacing_hz
    return freq_hz


def decades(count, total):
    """-log10 of the probability that `count` exponentials of mean 1 sum up to `total`: float64 tensors."""
    count, total = torch.broadcast_tensors(count.double().clamp(min=1e-3), total.double().clamp(min=1e-3))
    probability = torch.special.gammaincc(count, total)
    # far out, where that underflows, the first terms of its asymptotic series
    beyond = total - (count - 1) * total.log() + torch.lgamma(count) - torch.log1p((count - 1) / total)
    far = probability < 1e-280
    return torch.where(far, beyond / math.log(10), -probability.masked_fill(far, 1.0).log10())


def _evidence(values, energy):
    """Of symbols freed of the expected signal, [..., tones], with energies |y|² [...]."""
    return _from_likeness(_power(values.sum(-1)), energy, values.shape[-1])


def _from_likeness(power, energy, count):
    likeness = power / (count * energy).clamp(min=_TINY)
    return torch.log1p(-likeness.clamp(max=1 - 1e-6)).mul_(1 - count)


def _power(values):
    return values.real.square() + values.imag.square()


def _averaged(values, width):
    """Moving average over the last dimension; None: the mean of all."""
    if width is None:
        return values.mean(-1, keepdim=True)
    count = values.shape[-1]
    sums, places = pad(values.cumsum(-1), (1, 0)), torch.arange(count)
    first, end = (places - width // 2).clamp(min=0), (places + width // 2 + 1).clamp(max=count)
    return (sums[..., end] - sums[..., first]) / (end - first)


def _where(chosen, new, old):
    """Rows of `new` where chosen [rows], else of `old`; both dicts of tensors, or None for an empty `old`."""
    if old is None:
        return new
    return {
        name: torch.where(chosen.view(-1, *[1] * (one.dim() - 1)), one, old[name])
        for name, one in new.items()
    }


class _Pairs:
    """PSS and SSS of a stretch. Tensors are [places, half-frames, ...]."""

    def __init__(self, iq, sample_rate_hz, sync):
        self.sync = sync
        self.first_s = -0.5 / sample_rate_hz
        self.last_s = (len(iq) + 0.5) / sample_rate_hz - sync.symbol_s  # start of a whole symbol
        self.halves = math.ceil(len(iq) / sample_rate_hz / HALF_FRAME_S)
        self.number = torch.arange(self.halves)
        self.tones = torch.from_numpy(sync.tones)
        self.symbols = Demodulator(iq, sample_rate_hz, sync.spacing_hz, sync.tones)
        self.stepped = Demodulator(iq, sample_rate_hz, sync.spacing_hz, sync.tones, _STEPS)
        self.pss = torch.from_numpy(sync.pss).conj()
        self.sss = torch.from_numpy(sync.sss)  # (roots, sides of a frame, N_ID_1, tones)
        self.periods = (1,) if sync.period_s else _PERIODS

    def candidates(self, start_s, freq_hz, root):
        starts_s, freq_hz, counted = self._refined(start_s, freq_hz, root)
        pss = self.symbols(starts_s, freq_hz)[:, :, 0] * self.pss[root]
        best = None
        for number, after_s in enumerate(self.sync.after_s.values()):
            usable = counted & self._is_whole(starts_s) & self._is_whole(starts_s + after_s)
            found = self._judged(pss, self.symbols(starts_s + after_s, freq_hz)[:, :, 0], usable, root)
            found |= {"usable": usable, "duplex": torch.full((len(pss),), number)}
            best = _where(best is None or found["sss"] > best["sss"], found, best)
        best |= {"freq_hz": freq_hz, "starts_s": starts_s}
        rows = zip(*(one.tolist() for one in best.values()), strict=True)
        rows = (dict(zip(best, row, strict=True)) for row in rows)
        return [self._candidate(row, root) for row in rows if any(row["usable"])]

    def _candidate(self, row, root):
        counted = [at for at, usable in enumerate(row["usable"]) if usable]
        return Candidate(
            **{name: row[name] for name in ("pss", "sss", "both", "freq_hz", "snr_db")},
            cell_id=3 * row["id_1"] + root,
            duplex=list(self.sync.after_s)[row["duplex"]],
            starts_s=tuple(row["starts_s"][at] for at in counted),
            heard_s=tuple(row["starts_s"][at] for at in counted if row["alone"][at] >= _HEARD),
            half=(row["side"] + counted[0]) % 2,
        )

    def _is_whole(self, start_s):
        return (start_s >= self.first_s) & (start_s <= self.last_s)

    def _refined(self, start_s, freq_hz, root):
        """Starts and frequency where the PSS fits best, and the half-frames that count: all, or every period.

        Clocks that differ move the PSS from one half-frame to the next.
        """
        own = (start_s / HALF_FRAME_S).floor()
        since = self.number - own[:, None].long()
        starts_s = start_s[:, None] + since * HALF_FRAME_S  # (places, halves)

        # evidence at each frequency and delay: (places, halves, steps, delays)
        delay_s = 1 / (4 * len(self.tones) * self.sync.spacing_hz)
        near = math.ceil(1.5 * self.sync.symbol_s / self.sync.points / delay_s)
        far = math.ceil(_MOST_DRIFT * (self.halves - 1) * HALF_FRAME_S / delay_s)
        delays = torch.arange(-near - far, near + far + 1)
        pss = self.stepped(starts_s, freq_hz) * self.pss[root]
        steering = turned(torch.outer(self.tones, delays * (delay_s * self.sync.spacing_hz)))
        energy = _power(pss).sum(-1, keepdim=True)
        evidence = _from_likeness(_power(pss @ steering), energy, len(self.tones))

        # the best sum over half-frames, for each drift and period
        counted = torch.stack([since % period == 0 for period in self.periods]) & self._is_whole(starts_s)
        drifts = torch.arange(-(far // 2), far // 2 + 1) * (
            2 / max(self.halves - 1, 1)
        )  # delays a half-frame
        window = torch.arange(2 * near + 1) + far
        sums = []
        for drift in drifts:
            index = (drift * since).round().long().clamp(-far, far)[..., None, None] + window
            moved = evidence.gather(3, index.expand(*index.shape[:2], len(_STEPS), -1))
            sums.append(torch.einsum("pch,chsd->pcsd", counted.float(), moved).flatten(2).max(2))
        total, drift = torch.stack([one.values for one in sums]).max(0)  # (periods, places)
        place = torch.stack([one.indices for one in sums]).gather(0, drift[None])[0]

        # the most improbable period
        period = decades(counted.sum(2), total).argmax(0)[None]
        drift, place = drift.gather(0, period)[0], place.gather(0, period)[0]
        step, delay = place // len(window), place % len(window)
        moved = (drifts[drift, None] * since).round().clamp(-far, far) + (delay - near)[:, None]
        freq_hz = freq_hz + torch.tensor(_STEPS, dtype=torch.double)[step] * self.sync.spacing_hz
        return starts_s + moved * delay_s, freq_hz, counted[period[0], torch.arange(len(starts_s))]

    def _judged(self, pss, sss, usable, root):
        """The evidence of PSS (freed of its sequence) and SSS, with the best identity: a dict of tensors."""
        count = usable.sum(1)
        energy = _power(pss).sum(2)
        whole = _evidence(pss, energy)
        parts = sum(_evidence(part, _power(part).sum(2)) for part in pss.tensor_split(_PARTS, 2))
        totals = [(one * usable).sum(1) for one in (whole, parts)]
        in_parts = decades(_PARTS * count, totals[1]) > decades(count, totals[0])
        pss_count, pss_total = (
            count * torch.where(in_parts, _PARTS, 1),
            torch.where(in_parts, totals[1], totals[0]),
        )

        # the SSS of every identity, on the channel that the PSS saw
        best = None
        for width in WIDTHS:
            channel = _averaged(pss, width)
            found = self._best_sss(sss * (channel.conj() / channel.abs().clamp(min=_TINY)), usable, root)
            best = _where(best is None or found["total"] > best["total"], found, best)
        sides = (best["side"][:, None] + self.number) % self.sss.shape[1]
        sss = sss * self.sss[root, sides, best["id_1"][:, None]]

        # what repeats, and the SNR: what PSS and SSS have in common is the channel
        repeats = torch.maximum(
            *(self._repeats(one - _averaged(one, WIDTHS[0]), usable) for one in (pss, sss))
        )
        common = ((pss * sss.conj()).sum(2).abs() * usable).sum(1)
        power = ((energy + _power(sss).sum(2)) / 2 * usable).sum(1)
        snr = common / torch.maximum(power - common, 1e-6 * power + _TINY)
        alone = torch.where(in_parts[:, None], parts, whole) + best.pop("evidence")
        return best | {
            "pss": decades(pss_count / repeats, pss_total / repeats),
            "sss": decades(count / repeats, best["total"] / repeats),
            "both": decades((pss_count + count) / repeats, (pss_total + best["total"]) / repeats),
            "alone": decades(torch.where(in_parts, _PARTS + 1, 2)[:, None], alone),
            "snr_db": 10 * snr.clamp(min=1e-6).log10(),
        }

    def _best_sss(self, sss, usable, root):
        """For symbols freed of the channel: the evidence of the best identity and the side of half-frame 0."""
        codes = self.sss[root]  # (places, sides of a frame, N_ID_1, tones)
        power = sum((part @ codes.flatten(0, 1).mT).square() for part in (sss.real, sss.imag))
        evidence = _from_likeness(power, _power(sss).sum(2, keepdim=True), len(self.tones))
        evidence = evidence.unflatten(2, codes.shape[:2])
        sides = len(codes)
        by_side = [evidence[:, self.number, (side + self.number) % sides] for side in range(sides)]
        by_side = torch.stack(by_side, 1)  # (places, sides, halves, N_ID_1)
        totals = torch.einsum("csht,ch->cst", by_side, usable.float())
        total, which = totals.flatten(1).max(1)
        side, id_1 = which // totals.shape[2], which % totals.shape[2]
        evidence = by_side[torch.arange(len(sss)), side, :, id_1]
        return {"total": total, "side": side, "id_1": id_1, "evidence": evidence}

    def _repeats(self, rest, usable):
        """1 + the mean sum of the half-frames' correlations: float32 [places]."""
        rest = rest * (usable / torch.linalg.vector_norm(rest, dim=2).clamp(min=_TINY))[..., None]
        chance = 1 / (len(self.tones) * (1 - 1 / WIDTHS[0]))
        pairs = usable[:, :, None] & usable[:, None] & ~torch.eye(self.halves, dtype=bool)
        total = ((_power(rest @ rest.mH) - chance) * pairs).sum((1, 2)).clamp(min=0)
        return 1 + total / usable.sum(1).clamp(min=1)
