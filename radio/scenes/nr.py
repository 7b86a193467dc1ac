"""The parameters of a 5G NR downlink carrier: FR1, normal cyclic prefix. `nr_grid` makes the resource grids.

Clauses are those of TS 38.211 unless another is named. Common resource block 0 is the carrier's first.
"""

from dataclasses import dataclass

from radio.scenes.expect import expect
from radio.scenes.nr_ssb import SSB_CASES, downlink_beams

# Resource blocks by subcarrier spacing in kHz and channel bandwidth in MHz, TS 38.101-1 table 5.3.2-1.
_MHZ = (5, 10, 15, 20, 25, 30, 40, 50, 60, 70, 80, 90, 100)
RESOURCE_BLOCKS = {
    15: dict(zip(_MHZ[:8], (25, 52, 79, 106, 133, 160, 216, 270), strict=True)),
    30: dict(zip(_MHZ, (11, 24, 38, 51, 65, 78, 106, 133, 162, 189, 217, 245, 273), strict=True)),
    60: dict(zip(_MHZ[1:], (11, 18, 24, 31, 38, 51, 65, 79, 93, 107, 121, 135), strict=True)),
}

# Additional DM-RS symbols of PDSCH for dmrs_additional 1, 2, 3 by duration l_d: table 7.4.1.1.2-3, type A.
_DMRS_ADDITIONAL = {
    **dict.fromkeys((8, 9), ((7,), (7,), (7,))),
    **dict.fromkeys((10, 11), ((9,), (6, 9), (6, 9))),
    12: ((9,), (6, 9), (5, 8, 11)),
    **dict.fromkeys((13, 14), ((11,), (7, 11), (5, 8, 11))),
}
DMRS_SHORTEST = {2: 3, 3: 5}  # shortest l_d by l_0: 7.4.1.1.2 has durations 3 and 4 with l_0 = 2 only

_CSI_RS_STEPS = {1: 4, 2: 12}  # subcarriers from one element to the next, by row of table 7.4.1.5.3-1


def _expect_places(part):
    expect(part.first_rb >= 0, f"first_rb >= 0: {part.first_rb=}")
    expect(part.num_rb >= 1, f"num_rb >= 1: {part.num_rb=}")
    in_period = 0 <= part.offset_slots < part.period_slots
    expect(in_period, f"0 <= offset_slots < period_slots: {part.offset_slots=} {part.period_slots=}")


@dataclass(frozen=True)
class Coreset:
    """A control resource set, 7.3.2.2: PDCCH at 0 dB in CCEs that are not interleaved.

    period_slots, offset_slots: the slots with PDCCH, counted from frame 0.
    load: probability that a CCE is sent in a slot. The draw depends only on seed, cell and absolute slot.
    """

    first_rb: int
    num_rb: int
    num_symbols: int = 1
    first_symbol: int = 0
    period_slots: int = 1
    offset_slots: int = 0
    load: float = 0.5
    seed: int = 0

    def __post_init__(self):
        _expect_places(self)
        expect(self.num_rb % 6 == 0, f"num_rb a multiple of 6: {self.num_rb=}")
        expect(self.num_symbols in (1, 2, 3), f"num_symbols 1 to 3: {self.num_symbols=}")
        last = self.first_symbol + self.num_symbols - 1
        expect(self.first_symbol >= 0 and last < 14, f"symbols 0 to 13: {self.first_symbol=} {last=}")
        expect(0 <= self.load <= 1, f"load 0 to 1: {self.load=}")
        expect(0 <= self.seed < 2**64, f"seed 0 to 2^64 - 1: {self.seed=}")


@dataclass(frozen=True)
class CsiRs:
    """A CSI-RS resource of one port, row 1 (also the tracking reference signal) or 2 of table 7.4.1.5.3-1.

    subcarrier: k_0, 0 to 3 in row 1, 0 to 11 in row 2.
    period_slots, offset_slots: the slots with CSI-RS, counted from frame 0.
    """

    row: int
    first_rb: int
    num_rb: int
    symbol: int
    subcarrier: int = 0
    period_slots: int = 20
    offset_slots: int = 0
    power_db: float = 0.0

    def __post_init__(self):
        _expect_places(self)
        expect(self.row in _CSI_RS_STEPS, f"row 1 or 2: {self.row=}")
        expect(0 <= self.symbol < 14, f"symbol 0 to 13: {self.symbol=}")
        expect(0 <= self.subcarrier < self.step, f"subcarrier 0 to {self.step - 1}: {self.subcarrier=}")

    @property
    def step(self):
        return _CSI_RS_STEPS[self.row]


@dataclass(frozen=True)
class NrCarrier:
    """A carrier and all that it sends, except for the schedule of PDSCH.

    tdd_pattern: "" for FDD, else a letter D, S or U for each slot from frame 0 on. Its length divides 20 ms.
        U slots are silent. S slots are silent after their first `special_symbols` symbols, except for SSBs.
        An SSB in a U slot is an error (see `downlink_beams`).
    ssb_offset_hz: centre of the SSBs (subcarrier 120) from the carrier's, on no raster.
    ssb_beams: indices of the SSBs that are sent; may be empty.
    pdsch_symbols: first symbol and number. S slots cut PDSCH, or omit it if 7.4.1.1.2 has no DM-RS.
    dmrs_*: DM-RS of PDSCH: mapping type A, single-symbol, port 1000, n_SCID 0; power relative to PDSCH.
        The other subcarriers of DM-RS symbols carry PDSCH (one CDM group without data).
    """

    spacing_khz: int = 30
    num_rb: int = 51
    cell_id: int = 0
    tdd_pattern: str = ""
    special_symbols: int = 10
    ssb_case: str = "C"
    ssb_period_ms: int = 20
    ssb_half_frame: int = 0
    ssb_beams: tuple = (0,)
    num_ssb: int = 8
    ssb_offset_hz: float = 0.0
    ssb_power_db: float = 0.0
    coresets: tuple = ()
    csi_rs: tuple = ()
    pdsch_symbols: tuple = (2, 12)
    dmrs_type: int = 1
    dmrs_position: int = 2
    dmrs_additional: int = 0
    dmrs_power_db: float = 0.0

    def __post_init__(self):
        expect(self.spacing_khz in RESOURCE_BLOCKS, f"spacing_khz 15, 30 or 60: {self.spacing_khz=}")
        expect(1 <= self.num_rb <= 275, f"num_rb 1 to 275 (4.4.2): {self.num_rb=}")
        expect(0 <= self.cell_id <= 1007, f"cell_id 0 to 1007: {self.cell_id=}")
        expect(0 <= self.special_symbols <= 14, f"special_symbols 0 to 14: {self.special_symbols=}")
        pattern, slots = self.tdd_pattern, 20 * self.spacing_khz // 15
        is_known = set(pattern) <= set("DSU") and (not pattern or slots % len(pattern) == 0)
        expect(is_known, f"tdd_pattern of D, S and U that divides {slots} slots (20 ms): {self.tdd_pattern=}")
        periods = (5, 10, 20, 40, 80, 160)
        expect(self.ssb_period_ms in periods, f"ssb_period_ms in {periods}: {self.ssb_period_ms=}")
        expect(self.ssb_half_frame in (0, 1), f"ssb_half_frame 0 or 1: {self.ssb_half_frame=}")
        timing = (self.ssb_case, self.num_ssb, self.ssb_period_ms, self.ssb_half_frame)
        beams = downlink_beams(self.spacing_khz, pattern, *timing)
        is_downlink = set(self.ssb_beams) <= set(beams)
        expect(is_downlink, f"ssb_beams of {beams}, not in U slots: {self.ssb_beams=} {self.tdd_pattern=}")
        (low, high), (ssb_low, ssb_high) = self.band_hz, self.ssb_band_hz
        is_inside = not self.ssb_beams or low <= ssb_low < ssb_high <= high
        expect(is_inside, f"an SSB in {low} to {high} Hz: {self.ssb_offset_hz=} {self.num_rb=}")
        for part in (*self.coresets, *self.csi_rs):
            end = part.first_rb + part.num_rb
            expect(end <= self.num_rb, f"resource blocks below {self.num_rb=}: {part}")
        first, number = self.pdsch_symbols
        holds_dmrs = 0 <= first <= self.dmrs_position and number >= 3 and first + number <= 14
        expect(holds_dmrs, f"3 PDSCH symbols or more with DM-RS: {self.pdsch_symbols=} {self.dmrs_position=}")
        expect(self.dmrs_type in (1, 2), f"dmrs_type 1 or 2: {self.dmrs_type=}")
        dmrs_symbols(self.dmrs_position, self.dmrs_additional, first + number)
        is_free = self.dmrs_position == 3 or all(coreset.num_symbols < 3 for coreset in self.coresets)
        expect(is_free, f"dmrs_position 3 with coresets of 3 symbols, 7.3.2.2: {self.dmrs_position=}")

    @property
    def ssb_spacing_khz(self):
        return SSB_CASES[self.ssb_case][0]

    @property
    def band_hz(self):
        """Lower and upper edge of the resource blocks, from the carrier's centre (subcarrier 6 × num_rb)."""
        return tuple((edge * self.num_rb - 0.5) * 1e3 * self.spacing_khz for edge in (-6, 6))

    @property
    def ssb_band_hz(self):
        """Lower and upper edge of the SSBs, from the carrier's centre."""
        return tuple(self.ssb_offset_hz + edge * 1e3 * self.ssb_spacing_khz for edge in (-120.5, 119.5))


def dmrs_symbols(position, additional, end):
    """Symbols with PDSCH DM-RS, table 7.4.1.1.2-3 (mapping type A, single-symbol): an ascending tuple.

    position: l_0, 2 or 3. additional: dmrs-AdditionalPosition, 0 to 3. end: l_d, the symbol after PDSCH.
    """
    is_known = position in DMRS_SHORTEST and 0 <= additional <= 5 - position
    expect(is_known, f"dmrs_additional 0 to 3, or 0 to 2 with dmrs_position 3: {position=} {additional=}")
    shortest = DMRS_SHORTEST[position]
    expect(shortest <= end <= 14, f"a PDSCH whose l_d is {shortest} to 14: {position=} {end=}")
    later = _DMRS_ADDITIONAL[end][additional - 1] if additional and end in _DMRS_ADDITIONAL else ()
    return (position, *later)
