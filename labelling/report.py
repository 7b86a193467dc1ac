"""What labelling says of carriers: JSON and the table on the console."""

from labelling.sigmf_output import cell_fields
from radio.carriers import NR
from util.metrics import aligned

STRETCH = ("sample_start", "num_samples", "sample_rate_hz", "center_freq_hz")
CARRIER = ("label", "start_s", "duration_s", "freq_lower_hz", "freq_upper_hz")
CARRIER += ("center_freq_hz", "bandwidth_hz", "confidence", "confirmed")
HEADER = ("label", "cell", "centre MHz", "bandwidth MHz", "start ms", "duration ms", "confidence")
# How the console says why carriers were left out, and which number it gives of the best of them.
BELOW = {
    "min_bandwidth_hz": "narrower than --min_bandwidth_hz",
    "min_duration_s": "shorter than --min_duration_s",
}
BELOW |= {"min_confidence": "below --min_confidence", "unconfirmed": "not confirmed by a cell"}


def stretch_fields(recording):
    """Of a `Recording`, for JSON."""
    return {name: getattr(recording, name) for name in STRETCH}


def carrier_fields(carrier):
    """Of a `Carrier`, for JSON; `cell` of a confirmed one."""
    fields = {name: getattr(carrier, name) for name in CARRIER}
    return fields | ({"cell": cell_fields(carrier)} if carrier.confirmed else {})


def identity(carrier):
    """The cell of a carrier in a few words; "-" without one."""
    if not carrier.confirmed:
        return "-"
    cell = carrier.cell
    more = f"SSB {cell.spacing_hz / 1e3:g} kHz" if cell.technology == NR else cell.duplex
    return f"{cell.cell_id} {more}" + (f" {cell.num_rb} RB" if cell.num_rb else "")


def carrier_rows(carriers):
    """Rows of a table, the header first."""
    rows = [list(HEADER)]
    for one in carriers:
        band = [f"{hz / 1e6:.3f}" for hz in (one.center_freq_hz, one.bandwidth_hz)]
        time_ms = [f"{seconds * 1e3:.2f}" for seconds in (one.start_s, one.duration_s)]
        rows.append([one.label, identity(one), *band, *time_ms, f"{one.confidence:.2f}"])
    return rows


def dropped_fields(stretches):
    """How many carriers of `LabelledStretch`es were left out, by the reason, and the best confidence of them."""
    fields = {}
    for name in BELOW:
        some = [one.confidence for each in stretches for one in each.dropped[name]]
        if some:
            fields[name] = {"count": len(some), "best_confidence": max(some)}
    return fields


def shown(name, stretches):
    """The text that the console shows of a recording; times from the file's first sample."""
    carriers = [carrier for stretch in stretches for carrier in stretch.carriers]
    known = all(stretch.recording.center_freq_hz is not None for stretch in stretches)
    found = f"{len(carriers)} carrier{'s' * (len(carriers) != 1)}"
    lines = [f"\n{name}: {found}{'' if known else ' (frequencies from the centre)'}"]
    lines += [aligned(carrier_rows(carriers))] if carriers else []
    texts = []
    for reason, of_reason in dropped_fields(stretches).items():
        best = (
            f", best {of_reason['best_confidence']:.2f}"
            if reason in ("min_confidence", "unconfirmed")
            else ""
        )
        texts.append(f"{of_reason['count']} {BELOW[reason]}{best}")
    if texts:
        lines.append(f"left out: {'; '.join(texts)}")
    elif not carriers:
        lines.append("nothing was found but noise")
    return "\n".join(lines)
