"""Draw what a carrier sends: LTE and NR cells, their PDSCH traffic, and the channel."""

import math

from radio.scenes import channel, lte, nr, nr_ssb, traffic

# Uplink-downlink patterns in use, by subcarrier spacing in kHz: periods of 2.5 and 5 ms.
_TDD_PATTERNS = {
    15: ("DDDSU", "DDSUU", "DSUUU"),
    30: ("DDDSU", "DDSUU", "DDDDDDDSUU", "DDDSUDDSUU"),
    60: ("DDDDDDDSUU", "DDDDDDDDDDDDDDSUUUUU"),
}
_CORESET_0_RB = (24, 48, 96)  # TS 38.213 tables 13-1 to 13-10


def draw_lte_cell(dice, width, spacing, idle):
    num_rb = lte.RESOURCE_BLOCKS[width]
    return lte.LteCell(
        num_rb=num_rb,
        cell_id=dice.integer("lte_cell_ids"),
        duplex="TDD" if dice.happens("lte_tdd") else "FDD",
        uldl_config=dice.choice("lte_uldl_configs"),
        special_config=dice.choice("lte_special_configs"),
        num_ports=dice.choice("lte_ports"),
        control_symbols=dice.choice("lte_control_symbols") + (num_rb <= 10),
        control_load=dice.number("lte_control_load") * (0.1 if idle else 1.0),
        crs_boost_db=dice.choice("lte_crs_boost_db"),
        sync_boost_db=dice.choice("lte_sync_boost_db"),
    )


def draw_nr_cell(dice, width, spacing, idle):
    rng = dice.rng
    num_rb = nr.RESOURCE_BLOCKS[spacing][width]
    pattern = dice.of(_TDD_PATTERNS[spacing]) if dice.happens("nr_tdd") else ""
    ssb = _ssb(dice, num_rb, spacing, pattern)
    coresets, symbols = _coresets(dice, num_rb, spacing, idle, ssb["ssb_offset_hz"])
    csi_rs = ()
    if dice.happens("nr_csi_rs") and not (idle and rng.random() < 0.5):
        csi_rs = _csi_rs(dice, num_rb)
    dmrs_position = 3 if symbols == 3 else dice.of((2, 2, 3))
    first_data = symbols if coresets and rng.random() < 0.8 else int(rng.integers(3))
    rest = 14 - first_data
    return nr.NrCarrier(
        spacing_khz=spacing,
        num_rb=num_rb,
        cell_id=dice.integer("nr_cell_ids"),
        tdd_pattern=pattern,
        special_symbols=dice.of((3, 6, 10, 10, 11)),
        **ssb,
        ssb_power_db=dice.number("nr_ssb_power_db"),
        coresets=coresets,
        csi_rs=csi_rs,
        pdsch_symbols=(first_data, rest if rng.random() < 0.8 else int(rng.integers(5, rest))),
        dmrs_type=dice.choice("nr_dmrs_types"),
        dmrs_position=dmrs_position,
        dmrs_additional=dice.choice("nr_dmrs_additional"),
        dmrs_power_db=dice.choice("nr_dmrs_power_db"),
    )


def _ssb(dice, num_rb, spacing, pattern):
    """Settings of the SSB. Carriers too narrow for 30 kHz (cases B and C) have case A, of 15 kHz."""
    rng = dice.rng
    bandwidth_hz = num_rb * 12e3 * spacing
    spacings_hz = {case: 1e3 * spacing_khz for case, (spacing_khz, *_) in nr_ssb.SSB_CASES.items()}
    cases = {15: ("A",), 30: ("B", "C", "C"), 60: ("A", "B", "C")}[spacing]
    case = dice.of([case for case in cases if 240 * spacings_hz[case] <= bandwidth_hz] or ["A"])
    unequal_hz = abs(1e3 * spacing - spacings_hz[case])  # bands lie half a subcarrier off their centres
    room = max(0, math.floor((bandwidth_hz - 240 * spacings_hz[case] - unequal_hz) / 2 / 15e3))
    offset_hz = 15e3 * int(rng.integers(-room, room + 1)) if dice.happens("nr_ssb_anywhere") else 0.0
    num_ssb, half_frame, period_ms = dice.of((4, 8)), int(rng.integers(2)), dice.choice("nr_ssb_periods_ms")
    beams = nr_ssb.downlink_beams(spacing, pattern, case, num_ssb, period_ms, half_frame)
    return {
        "ssb_case": case,
        "ssb_period_ms": period_ms,
        "ssb_half_frame": half_frame,
        "ssb_beams": tuple(sorted(rng.permutation(beams)[: int(dice.choice("nr_beams"))].tolist())),
        "num_ssb": num_ssb,
        "ssb_offset_hz": offset_hz,
    }


def _coresets(dice, num_rb, spacing, idle, ssb_offset_hz):
    """(CORESETs, their symbols): "initial" around the SSB, "full" over the carrier or a part of it."""
    rng = dice.rng
    kind = dice.choice("nr_coresets")
    symbols = dice.choice("nr_coreset_symbols")
    load = dice.number("nr_coreset_load") * (0.3 if idle else 1.0)
    coresets = []

    def add(first, count, period, offset=0):
        seed = int(rng.integers(2**31))
        coresets.append(nr.Coreset(first, count, symbols, 0, period, offset, load, seed))

    initial = [count for count in _CORESET_0_RB if count <= num_rb]
    if kind in ("initial", "both") and initial:
        count = dice.of(initial)
        middle = num_rb / 2 + ssb_offset_hz / (12e3 * spacing)
        first = min(max(0, round(middle - count / 2)), num_rb - count)
        add(first, count, dice.of((10, 20)) * spacing // 15, int(rng.integers(4)))
    if kind in ("full", "both") and not (idle and kind == "both"):
        whole = dice.happens("nr_coreset_whole")
        count = num_rb // 6 * 6 if whole else 6 * int(rng.integers(1, num_rb // 6 + 1))
        add(int(rng.integers(num_rb - count + 1)), count, dice.choice("nr_coreset_periods_slots"))
    return tuple(coresets), symbols


def _csi_rs(dice, num_rb):
    """Tracking reference signals (two symbols, two slots) or one CSI resource, over most of the carrier."""
    rng = dice.rng
    period = dice.of((10, 20, 40, 80))
    offset = int(rng.integers(period))
    blocks = min(num_rb, max(4, num_rb // 4 * 4 if rng.random() < 0.8 else num_rb // 2))
    power_db = dice.of((0.0, 0.0, 3.0))
    if rng.random() < 0.5:
        row, subcarrier, symbol = 1, int(rng.integers(4)), int(rng.integers(4, 7))
        places = [(at, (offset + later) % period) for later in (0, 1) for at in (symbol, symbol + 4)]
    else:
        row, subcarrier, symbol = 2, int(rng.integers(12)), int(rng.integers(5, 14))
        places = [(symbol, offset)]
    return tuple(nr.CsiRs(row, 0, blocks, at, subcarrier, period, slot, power_db) for at, slot in places)


def draw_traffic(dice, num_rb, idle, technology, spacing):
    config = dice.config
    blocks = bool(config.block_traffic) and dice.happens("block_traffic")
    full = (
        not idle and bool(config.full or not blocks) and dice.rng.random() * (1 - config.idle) < config.full
    )
    if blocks and not (idle or full):
        return traffic.Traffic(blocks=True, modulation_bits=config.modulation_bits)
    sizes = ((10, 1), (26, 2), (63, 3), (110, 4), (math.inf, 16))
    return traffic.Traffic(
        users=0 if idle else dice.choice("users"),
        busy=dice.number("busy"),
        filled=dice.number("filled"),
        dwell_slots=dice.number("dwell_slots"),
        scattered=dice.happens("scattered"),
        modulation_bits=config.modulation_bits,
        power_db=(min(config.user_power_db), max(config.user_power_db)),
        group_rb=next(size for most, size in sizes if num_rb <= most),
        broadcast=_broadcast(dice, num_rb, technology, spacing),
        full=full,
    )


def _broadcast(dice, num_rb, technology, spacing):
    """System information on PDSCH, also of idle cells: (period, offset in slots; first block, count).

    LTE sends SIB1 in subframe 5 of every other frame (TS 36.331 5.2.1.2). Some NR cells send none.
    """
    rng, slots_per_ms = dice.rng, spacing // 15
    messages = [(20, 5)] if technology == "LTE" else []
    for _ in range(int(rng.integers(3)) if technology == "LTE" or dice.happens("nr_broadcast") else 0):
        period = dice.of((10, 20, 40, 80)) * slots_per_ms
        messages.append((period, int(rng.integers(period))))
    broadcast = []
    for period, offset in messages:
        count = min(num_rb, int(rng.integers(4, 17)))
        broadcast.append((period, offset, int(rng.integers(num_rb - count + 1)), count))
    return tuple(broadcast)


def draw_fading(dice):
    model = dice.choice("fading_models")
    doppler_hz = 0.0 if dice.happens("still") else dice.number("doppler_hz")
    doppler_hz *= model != "none"
    delay_spread_s = dice.number("delay_spread_s") if model.startswith("TDL") else 0.0
    return channel.Fading(model, delay_spread_s, doppler_hz, int(dice.rng.integers(2**31)))
