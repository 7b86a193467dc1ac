"""A small cell searcher for LTE and 5G NR, the judge of the synthesizer: it knows the 3GPP standards and none
of `radio`.

Normal cyclic prefix. A recording goes through one FFT; each frequency hypothesis is a slice of its bins,
which mixes and resamples at once, to 128 (LTE) or 256 (NR) samples a symbol. There the PSS is correlated,
normalised by the local power (for LTE summed over half-frames); around its strongest peaks every SSS is
tried, on the channel seen by the PSS; both together then fix delay and frequency; the PBCH DM-RS tells NR's
SSB index.
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from scipy import fft
from scipy.special import gammaln, logsumexp

# 750 searches of noise stayed under 6.1, those of captures without a cell under 5; each step of 1 is ten
# times rarer.
THRESHOLD = 10.0
DMRS_THRESHOLD = 0.3  # 1/6 is what noise gives, with a standard deviation of 0.03
CANDIDATES = 12
MOST_OTHERS = 3  # SSBs used beside the best: the frequency of one, at 10 dB and 30 kHz, has a standard deviation of 190 Hz
LTE_LONGEST_S = 0.04  # eight PSS are plenty, and clocks off by 20 ppm blur no more than a sample


@dataclass(frozen=True)
class Found:
    """A cell.

    frame_start_s: a radio-frame boundary from the first sample, modulo `frame_modulo_s`, as the strongest
    path arrives.
    frame_modulo_s: 10 ms; 5 ms for NR with eight SSBs, whose DM-RS do not tell the half-frames apart.
    offset_hz: the carrier's (SSB's) centre relative to the centre searched, CFO included.
    duplex: "FDD" or "TDD" for LTE (from the distance of SSS and PSS), "" for NR.
    ssb_index: of the SSB that was found; None for LTE.
    metric: minus the decimal logarithm of the probability that noise gives an SSS that good; `THRESHOLD` at
    least.
    """

    technology: str
    cell_id: int
    frame_start_s: float
    frame_modulo_s: float
    offset_hz: float
    duplex: str
    ssb_index: int | None
    metric: float


@dataclass(frozen=True)
class _Standard:
    """spacing_hz, size: of a subcarrier, of the FFT. tones: subcarriers of PSS and SSS. pss: [3, tones]. sss:
    [halves, N_ID_1, N_ID_2, tones]. sss_after: samples from PSS to SSS by duplex mode. period: samples
    between two PSS, or None.
    whole: samples from the start of a PSS to the end of what has to follow it."""

    spacing_hz: float
    size: int
    tones: np.ndarray
    pss: np.ndarray
    sss: np.ndarray
    sss_after: dict
    period: int | None
    whole: int

    @property
    def rate_hz(self):
        return self.size * self.spacing_hz


def find_lte(iq, sample_rate_hz, center_hz=0.0, max_offset_hz=15e3) -> Found | None:
    """The strongest LTE cell within `max_offset_hz` of `center_hz`, in the first 40 ms of iq (complex
    [samples]).

    Wants 5 ms at least, and a sample rate of 0.96 MHz (ValueError). TS 36.211 sections 4, 6.11 and 6.12.
    """
    iq = iq[: round(LTE_LONGEST_S * sample_rate_hz)]
    best = _best_cell(_Bins(iq, sample_rate_hz, LTE.rate_hz), LTE, center_hz, max_offset_hz)
    if best is None:
        return None
    # Cyclic prefixes of 10, then 9 samples: PSS in symbol 6 (FDD) or in symbol 2 of subframe 1 (TDD).
    since_frame = {"FDD": 832, "TDD": 1920 + 138 + 137 + 9}[best.duplex] + LTE.period * best.half
    start_s = (best.start - since_frame) / best.rate_hz % 0.01
    offset_hz = best.mixed_hz + best.residual_hz - center_hz
    return Found("LTE", best.cell_id, start_s, 0.01, offset_hz, best.duplex, None, best.metric)


def find_nr(iq, sample_rate_hz, ssb_center_hz=0.0, spacing_hz=30e3, max_offset_hz=15e3, case=None, num_ssb=8):
    """The NR cell with the strongest SSB within `max_offset_hz` of `ssb_center_hz` (its subcarrier 120):
    Found | None.

    spacing_hz: 15e3 or 30e3. case: "A", "B" or "C" of TS 38.213 4.1; by default A for 15 kHz and C for 30
    kHz. num_ssb: 4 (below 3 GHz) or 8, the most SSBs that a half-frame may have. Whole SSBs only. TS 38.211
    7.4.1.4, 7.4.2, 7.4.3.
    """
    case = case or {15e3: "A", 30e3: "C"}[spacing_hz]
    if (spacing_hz == 15e3) != (case == "A") or num_ssb not in (4, 8):
        raise ValueError(
            f"expected case A for 15 kHz, B or C for 30 kHz, 4 or 8 SSBs: {spacing_hz=} {case=} {num_ssb=}"
        )
    nr = _nr(spacing_hz)
    bins = _Bins(iq, sample_rate_hz, nr.rate_hz)
    best = _best_cell(bins, nr, ssb_center_hz, max_offset_hz)
    if best is None or (found := _known_dmrs(best, nr)) is None:
        return None
    index, dmrs = found
    for other in best.others[:MOST_OTHERS]:
        _refine(other, nr, _known(other, nr))
        later = round(other.start - best.start)
        if (found := _known_dmrs(best, nr, later)) is not None:
            best.again += (later,)
            dmrs += found[1]
    _refine(best, nr, _known(best, nr) + dmrs)
    best.residual_hz += (
        _prefix_residual_hz(best, nr) / 2
    )  # errors of their own in both: the mean is better than either
    ssb, half = (index, 0) if num_ssb == 8 else (index % 4, index // 4)
    symbol = 28 * (ssb // 4) + ((4, 8, 16, 20) if case == "B" else (2, 8, 16, 22))[ssb % 4]
    modulo_s = 0.005 if num_ssb == 8 else 0.01
    half_ms_symbols = round(7 * spacing_hz / 15e3)  # the first one has a longer prefix, by 16/30.72 µs
    longer = (1 + symbol // half_ms_symbols) * 16 / 30.72e6
    start_s = best.start / best.rate_hz - (symbol * 274 + 18) / nr.rate_hz - longer - half * 0.005
    offset_hz = best.mixed_hz + best.residual_hz - ssb_center_hz
    return Found("NR", best.cell_id, start_s % modulo_s, modulo_s, offset_hz, "", ssb, best.metric)


# Sequences


def _m_sequence(taps, length, start):
    """Bits x(i + degree) = sum of x(i + tap) mod 2, from x(0), x(1), ... = start."""
    x = list(start)
    while len(x) < length:
        x.append(sum(x[len(x) - len(start) + tap] for tap in taps) % 2)
    return np.array(x)


def _lte():
    n = np.arange(31)
    roots = np.array([25, 29, 34])[:, None]
    pss = np.exp(-1j * np.pi / 63 * np.hstack([roots * n * (n + 1), roots * (n + 32) * (n + 33)]))
    s, c, z = (1 - 2 * _m_sequence(taps, 31, [0, 0, 0, 0, 1]) for taps in ((0, 2), (0, 3), (0, 1, 2, 4)))
    sss = np.empty((2, 168, 3, 62))
    for id_1, id_2 in np.ndindex(168, 3):
        q = (id_1 + (id_1 // 30) * (id_1 // 30 + 1) // 2) // 30
        m = id_1 + q * (q + 1) // 2
        m_0, m_1 = m % 31, (m % 31 + m // 31 + 1) % 31
        for half, (even, odd) in enumerate([(m_0, m_1), (m_1, m_0)]):
            sss[half, id_1, id_2, 0::2] = s[(n + even) % 31] * c[(n + id_2) % 31]
            sss[half, id_1, id_2, 1::2] = s[(n + odd) % 31] * c[(n + id_2 + 3) % 31] * z[(n + even % 8) % 31]
    tones = np.r_[-31:0, 1:32]
    return _Standard(15e3, 128, tones, pss, sss, {"FDD": -137, "TDD": -412}, 9600, 128)


def _nr(spacing_hz):
    n = np.arange(127)
    x = 1 - 2 * _m_sequence((0, 4), 127, [0, 1, 1, 0, 1, 1, 1])
    pss = np.stack([x[(n + 43 * id_2) % 127] for id_2 in range(3)])
    x_0, x_1 = (1 - 2 * _m_sequence((0, tap), 127, [1, 0, 0, 0, 0, 0, 0]) for tap in (4, 1))
    id_1, id_2 = np.arange(336)[:, None, None], np.arange(3)[:, None]
    sss = x_0[(n + 15 * (id_1 // 112) + 5 * id_2) % 127] * x_1[(n + id_1 % 112) % 127]  # (336, 3, 127)
    return _Standard(spacing_hz, 256, n - 64, pss, sss[None], {"": 2 * 274}, None, 4 * 274)


def _gold(c_init, length):
    """Pseudo-random bits of TS 38.211 5.2.1 for each of c_init: [len(c_init), length]."""
    x_1 = _m_sequence((0, 3), 1600 + length, [1] + [0] * 30)[1600:]
    starts = np.asarray(c_init)[:, None] >> np.arange(31) & 1
    x_2 = np.stack([_m_sequence((0, 1, 2, 3), 1600 + length, start.tolist())[1600:] for start in starts])
    return x_1 ^ x_2


LTE = _lte()


# Search


class _Bins:
    """The recording's FFT, cut into frequency hypotheses at another sample rate."""

    def __init__(self, iq, sample_rate_hz, rate_hz):
        ratio = Fraction(rate_hz / sample_rate_hz).limit_denominator(4096)
        blocks = fft.next_fast_len(-(-len(iq) // ratio.denominator))
        self.total, self.count = ratio.denominator * blocks, ratio.numerator * blocks
        self.rate_hz = float(sample_rate_hz * ratio)
        self.valid = int(len(iq) * ratio)
        self.bin_hz = sample_rate_hz / self.total
        if sample_rate_hz < rate_hz / 2:
            raise ValueError(f"expected at least half of {rate_hz} Hz: {sample_rate_hz=}")
        # The mean goes: receivers' DC can be far above everything else, and rings where the zeros begin.
        self.bins = fft.fft(
            np.asarray(iq, np.complex64) - np.complex64(np.mean(iq, dtype=complex)), self.total
        )

    def cut(self, center_hz):
        """Bins around the one nearest to center_hz: complex64 [count] in FFT order, and that bin's frequency."""
        middle = round(center_hz / self.bin_hz)
        index = middle + fft.ifftshift(np.arange(self.count) - self.count // 2)
        inside = np.abs(index) < self.total / 2
        return self.bins[index % self.total] * inside, middle * self.bin_hz


@dataclass
class _Cell:
    """A PSS with its SSS.

    start: where the PSS begins after its prefix, in (fractional) samples of rate_hz. half: of the frame, 0 or
    1, that this PSS is in (LTE). iq: at rate_hz, mixed down by mixed_hz; residual_hz is left in it. others:
    further candidates with the same identity, best first. again: samples from this PSS to others that are
    used with it.
    """

    metric: float
    cell_id: int
    duplex: str
    half: int
    start: float
    rate_hz: float
    iq: np.ndarray
    mixed_hz: float = 0.0
    residual_hz: float = 0.0
    others: tuple = ()
    again: tuple = ()


def _best_cell(bins, standard, center_hz, max_offset_hz):
    """The best _Cell with a metric of THRESHOLD, or None."""
    step_hz = standard.spacing_hz / 3
    steps = np.ceil(2 * max_offset_hz / step_hz)
    hypotheses_hz = center_hz + np.linspace(-max_offset_hz, max_offset_hz, int(steps) + 1)
    cells, mixed = [], {}
    for offset_hz, root, start in _pss_candidates(bins, standard, hypotheses_hz):
        if offset_hz not in mixed:
            cut, exact_hz = bins.cut(offset_hz)
            mixed[offset_hz] = fft.ifft(cut)[: bins.valid], exact_hz
        iq, exact_hz = mixed[offset_hz]
        cell = _best_sss(iq, bins.rate_hz, standard, root, start, 0.0)
        if cell is not None:
            cell.mixed_hz = exact_hz
            cells.append(cell)
    if not cells:
        return None
    first = max(cells, key=lambda cell: cell.metric)
    _refine(first, standard, _known(first, standard))
    cell = _best_sss(
        first.iq, bins.rate_hz, standard, first.cell_id % 3, round(first.start), first.residual_hz
    )
    if cell is None or cell.metric < THRESHOLD:
        return None
    cell.mixed_hz, cell.residual_hz = first.mixed_hz, first.residual_hz
    others = [
        one for one in cells if one.cell_id == cell.cell_id and one is not first and one.metric >= THRESHOLD
    ]
    cell.others = tuple(sorted(others, key=lambda one: -one.metric))
    _refine(cell, standard, _known(cell, standard))
    return cell


def _pss_candidates(bins, standard, hypotheses_hz):
    """The strongest PSS correlations, some symbols or subcarriers apart: [(offset_hz, root, start)]."""
    count, size = bins.count, standard.size
    places = bins.valid - standard.whole + 1
    if places < 1:
        return []
    symbol = np.zeros((3, size), complex)
    symbol[:, standard.tones] = standard.pss
    matched = fft.fft(fft.ifft(symbol, norm="ortho").astype(np.complex64), count).conj()  # (3, count)
    matched /= np.sqrt(len(standard.tones))
    # Only the PSS's band, with room for the offset; white noise has this many complex dimensions in a symbol
    # there.
    half_band = round((len(standard.tones) / 2 + 4) / size * count)
    band = np.zeros(count, np.float32)
    band[:half_band] = band[-half_band:] = 1
    dimensions = 2 * half_band / count * size
    matched *= band
    period = min(standard.period or places, places)
    repeats = -(-places // period)
    heard = np.bincount(np.arange(places) % period, minlength=period)  # half-frames that a place was heard in

    peaks = []
    for offset_hz in hypotheses_hz:
        cut, _ = bins.cut(offset_hz)
        power = np.cumsum(np.abs(fft.ifft(cut * band)[: places + size - 1]) ** 2, dtype=float)
        power = power[size - 1 :] - np.r_[0, power[:-size]]
        power = np.maximum(power, 1e-3 * power.mean()) + np.finfo(np.float32).tiny  # (places,)
        for root in range(3):
            likeness = np.abs(fft.ifft(cut * matched[root])[:places]) ** 2 / power
            evidence = np.zeros(repeats * period)
            evidence[:places] = -(dimensions - 1) * np.log1p(
                -np.minimum(likeness, 0.999)
            )  # exponential for noise
            evidence = (evidence.reshape(repeats, period).sum(axis=0) - heard) / np.sqrt(heard)
            blocks = np.pad(evidence, (0, -period % size), constant_values=-np.inf).reshape(-1, size)
            best = np.argsort(blocks.max(axis=1))[-CANDIDATES:]
            places_of_best = best * size + blocks[best].argmax(axis=1)
            peaks += [(evidence[place], offset_hz, root, int(place)) for place in places_of_best]
    chosen = []
    for _, offset_hz, root, start in sorted(peaks, reverse=True):
        if len(chosen) < CANDIDATES and not any(
            abs(start - other) < size / 2 and abs(offset_hz - other_hz) < 2 * standard.spacing_hz
            for other_hz, _, other in chosen
        ):
            chosen.append((offset_hz, root, start))
    return chosen


def _symbols(iq, rate_hz, standard, starts, residual_hz, tones):
    """Subcarriers `tones` of the symbols at `starts`, from FFTs that begin a quarter of a prefix early:
    [starts, tones].

    Those far above the median (a receiver's spurs) are cut to three times that.
    """
    early = standard.size // 56
    index = np.arange(standard.size)
    mixer = np.exp(-2j * np.pi * residual_hz / rate_hz * index)
    spectrum = fft.fft(iq[np.maximum(np.asarray(starts)[:, None] - early + index, 0)] * mixer)
    values = spectrum[:, tones] * np.exp(2j * np.pi * early / standard.size * np.asarray(tones))
    size = np.abs(values)
    limit = 3 * np.median(size, axis=1, keepdims=True)
    return values * np.minimum(1, limit / np.maximum(size, np.finfo(np.float32).tiny))


def _pss_starts(iq, standard, start, after):
    """Starts of the PSS `start` and those whole periods away, of which this recording also has the SSS."""
    period = standard.period or len(iq)
    starts = np.arange(start % period, len(iq), period)
    whole = (np.minimum(starts, starts + after) >= 0) & (
        np.maximum(starts, starts + after) + standard.size <= len(iq)
    )
    return starts[whole]


def _best_sss(iq, rate_hz, standard, root, start, residual_hz):
    """The SSS that fits best to the PSS `root` at `start`, whatever its metric, or None if no pair is whole."""
    tones = standard.tones
    sss = standard.sss[:, :, root]  # (halves, N_ID_1, tones)
    halves, best = len(sss), None
    for duplex, after in standard.sss_after.items():
        starts = _pss_starts(iq, standard, start, after)
        if not len(starts):
            continue
        channel = _symbols(iq, rate_hz, standard, starts, residual_hz, tones) * standard.pss[root].conj()
        channel = fft.ifft(fft.fft(channel, 160) * SMOOTH)[:, : len(tones)]  # (starts, tones)
        symbol = _symbols(iq, rate_hz, standard, starts + after, residual_hz, tones)
        product = symbol * np.exp(-1j * np.angle(channel))
        # At most 1, and that only if all tones are equally strong: a spur on a few of them looks like many an
        # SSS.
        power = (
            len(tones)
            * np.maximum((np.abs(product) ** 2).sum(axis=1), np.finfo(np.float32).tiny)[:, None, None]
        )
        likeness = np.abs(np.einsum("st,hit->shi", product, sss, optimize=True)) ** 2 / power
        # For noise, 1 - likeness is beta distributed with (tones - 1, 1): this is exponential, and its sum
        # gamma.
        evidence = -(len(tones) - 1) * np.log1p(-np.minimum(likeness, 1 - 1e-6))  # (starts, halves, N_ID_1)
        index = np.arange(len(starts))
        for half in range(halves):
            total = evidence[index, (index + half) % halves].sum(axis=0)
            id_1 = int(total.argmax())
            terms = index * np.log(max(total[id_1], 1e-9)) - gammaln(index + 1)
            metric = float((total[id_1] - logsumexp(terms)) / np.log(10))
            if best is None or metric > best.metric:
                best = _Cell(metric, 3 * id_1 + root, duplex, half, int(starts[0]), rate_hz, iq)
    return best


# Moving average over five subcarriers, circular over 160.
SMOOTH = fft.fft(np.bincount([158, 159, 0, 1, 2], minlength=160) / 5)


def _known(cell, standard):
    """What the cell is known to send: [(starts, tones, values [starts, tones])], of its PSS and its SSS."""
    id_1, root = divmod(cell.cell_id, 3)
    after = standard.sss_after[cell.duplex]
    starts = _pss_starts(cell.iq, standard, round(cell.start), after)
    starts = np.r_[starts, [start + later for start in starts for later in cell.again]].astype(int)
    halves = (np.arange(len(starts)) + cell.half) % len(standard.sss)
    return [
        (starts, standard.tones, standard.pss[root]),
        (starts + after, standard.tones, standard.sss[halves, id_1, root]),
    ]


def _refine(cell, standard, known):
    """Sets the cell's start and the frequency left, from all that is known.

    The PSS of LTE alone mistakes a frequency offset for a delay.
    """

    def channels(residual_hz):  # [starts, tones] for each of `known`
        return [
            _symbols(cell.iq, cell.rate_hz, standard, starts, residual_hz, tones) * values.conj()
            for starts, tones, values in known
        ]

    residuals_hz = cell.residual_hz + standard.spacing_hz * np.linspace(-0.4, 0.4, 33)
    delays = np.arange(-8, 8.01, 0.125)
    steering = [np.exp(2j * np.pi / standard.size * np.outer(tones, delays)) for _, tones, _ in known]
    power = np.stack(
        [
            sum(
                (np.abs(channel @ steer) ** 2).sum(axis=0)
                for channel, steer in zip(channels(hz), steering, strict=True)
            )
            for hz in residuals_hz
        ]
    )  # (residuals, delays)
    row, column = np.unravel_index(power.argmax(), power.shape)
    cell.residual_hz = float(
        residuals_hz[row] + _vertex(power[:, column], row) * (residuals_hz[1] - residuals_hz[0])
    )
    cell.start = float(known[0][0][0] + delays[column] + _vertex(power[row], column) * 0.125)
    if standard.period:
        # The phase from PSS to SSS is finer, but repeats. NR gives each symbol a phase of its own (TS 38.211
        # 5.4).
        pss, sss = channels(cell.residual_hz)
        radians_per_hz = 2 * np.pi * standard.sss_after[cell.duplex] / cell.rate_hz
        turn = np.angle((sss * pss.conj()).sum() * np.exp(-1j * radians_per_hz * cell.residual_hz))
        cell.residual_hz += float(turn / radians_per_hz)


def _vertex(values, at):
    """Where the parabola through values[at - 1 : at + 2] has its top, relative to `at`."""
    if not 0 < at < len(values) - 1:
        return 0.0
    left, middle, right = values[at - 1 : at + 2]
    return (left - right) / 2 / (left - 2 * middle + right)


def _prefix_residual_hz(cell, standard):
    """Frequency that the prefixes of an SSB's four symbols see beyond `residual_hz`, from their last two
    thirds.
    """
    first = round(cell.start) + np.array([0, *cell.again])[:, None, None]
    prefix = first + 274 * np.arange(4)[:, None] - np.arange(1, 13)
    turn = np.vdot(cell.iq[np.maximum(prefix, 0)], cell.iq[prefix + standard.size])
    turn *= np.exp(-2j * np.pi * cell.residual_hz / standard.spacing_hz)
    return float(np.angle(turn) / (2 * np.pi) * standard.spacing_hz)


def _known_dmrs(cell, standard, later=0):
    """The three bits that the PBCH DM-RS carry (of the SSB index, or of half-frame and index), and the DM-RS
    as `_known` gives it; or None if none fits. later: samples from the cell's PSS to that of the SSB in
    question.
    """
    shift = cell.cell_id % 4
    every = np.arange(shift, 240, 4) - 120
    outer = every[(every < -72) | (every >= 72)]
    starts, tones = round(cell.start) + later + 274 * np.array([1, 2, 3]), (every, outer, every)
    if starts[-1] + standard.size > len(cell.iq):
        return None
    pilots = [
        _symbols(cell.iq, cell.rate_hz, standard, [start], cell.residual_hz, part)[0]
        for start, part in zip(starts, tones, strict=True)
    ]
    index = np.arange(8)
    bits = _gold((index + 1) * (cell.cell_id // 4 + 1) * 2**11 + (index + 1) * 2**6 + shift, 288)
    dmrs = (1 - 2 * bits[:, ::2] + 1j * (1 - 2 * bits[:, 1::2])) / np.sqrt(2)  # (8, 144)
    # Coherent over six pilots, that is 24 subcarriers.
    groups = (np.concatenate(pilots) * dmrs.conj()).reshape(8, 24, 6)
    power = np.maximum((np.abs(groups) ** 2).sum(axis=(1, 2)), np.finfo(np.float32).tiny)
    likeness = (np.abs(groups.sum(axis=2)) ** 2).sum(axis=1) / 6 / power
    if likeness.max() < DMRS_THRESHOLD:
        return None
    parts = np.split(dmrs[likeness.argmax()], [60, 84])
    return int(likeness.argmax()), [
        ([start], *part) for start, *part in zip(starts, tones, parts, strict=True)
    ]
