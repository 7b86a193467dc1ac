"""The SigMF metadata of a labelled recording: its old metadata, with an annotation for each carrier found.

Sections named here are those of the SigMF specification, version 1.2.
"""

import warnings

from sigmf.validate import validate

from radio.carriers import NR, to_annotation
from radio.recording_files import SWAPPED, read_archive
from radio.samples import PACKED_24
from radio.sigmf_input import parse
from util.errors import UserError

VERSION = "1.2.0"
EXTENSION = {"name": "radio_mae", "version": "1.0.0", "optional": True}  # docs/DATA.md has its fields


def metadata_of(recordings, center_freq_hz=None):
    """The metadata of a file, new ones for npy and raw, by the `Recording`s of its stretches and channels.

    A missing sample rate is filled in, and `center_freq_hz` in captures without a frequency.
    Metadata from an archive stand alone (`core:metadata_only`): the data stay there.
    """
    first = recordings[0]
    metadata = _new_metadata(recordings) if first.annotations is None else _read_metadata(first)
    info = metadata["global"]
    if info.get("core:sample_rate") is None:
        info["core:sample_rate"] = first.sample_rate_hz
    for capture in metadata.get("captures", []):
        if capture.get("core:frequency") is None and center_freq_hz is not None:
            capture["core:frequency"] = center_freq_hz
    if first.member is not None:
        info.pop("core:dataset", None)
        info["core:metadata_only"] = True
    if first.layout.swap_iq:
        info[SWAPPED] = True
    return metadata


def _read_metadata(recording):
    try:
        if recording.member is None:
            return parse(recording.path, recording.path.read_bytes())
        return parse(recording.path, read_archive(recording.path)[1][recording.member])
    except (OSError, KeyError, UserError) as error:
        found = f"changed since it was opened: its metadata cannot be read ({error})"
        raise UserError(f"{recording.path}: {found}") from error


def _new_metadata(recordings):
    """A header or trailing bytes make the file a "Non-Conforming Dataset" (section "SigMF Dataset Format").

    SigMF cannot describe separate planes of I and Q, nor 24 bits: then the metadata stand alone.
    """
    first, layout = recordings[0], recordings[0].layout
    info = {
        "core:datatype": "ci32_le" if first.datatype == PACKED_24 else first.datatype,
        "core:sample_rate": first.sample_rate_hz,
        "core:version": VERSION,
        "core:num_channels": layout.channels,
    }
    capture = {"core:sample_start": 0}
    if first.center_freq_hz is not None:
        capture["core:frequency"] = first.center_freq_hz
    if layout.plane_bytes or first.datatype == PACKED_24:
        info["core:metadata_only"] = True
    else:
        info["core:dataset"] = first.path.name
        end = layout.byte_offset + first.num_samples * layout.frame_bytes
        if trailing := first.path.stat().st_size - end:
            info["core:trailing_bytes"] = trailing
        if layout.byte_offset:
            capture["core:header_bytes"] = layout.byte_offset
    return {"global": info, "captures": [capture], "annotations": []}


def annotated(metadata, stretches, replace=False):
    """A copy of the metadata with an annotation for each carrier, sorted by start as SigMF asks.

    Annotations of an earlier run are replaced.
    Fields of the extension `radio_mae` give confidence and cell.

    Args:
        stretches: pairs of a `Recording`, any channel of the stretch, and its carriers.
        replace: leave out all old annotations.
    """
    # Section "Global Object": indices count from core:offset, in a Recording from the file's first sample.
    offset = int(metadata["global"].get("core:offset") or 0)
    annotations = [] if replace else [one for one in metadata.get("annotations", []) if not is_ours(one)]
    for one, carriers in stretches:
        start, count = one.sample_start + offset, one.num_samples
        for each in carriers:
            annotation = to_annotation(each, one.sample_rate_hz, start, count)
            annotations.append(annotation | _extension_fields(each))
    info = dict(metadata["global"])
    known = info.get("core:extensions")
    known = known if isinstance(known, list) else [known] if isinstance(known, dict) else []
    declared = [each for each in known if not isinstance(each, dict) or each.get("name") != EXTENSION["name"]]
    if known:
        info["core:extensions"] = declared
    if SWAPPED in info or any(carriers for _, carriers in stretches):
        info["core:extensions"] = [*declared, EXTENSION]
    in_order = sorted(annotations, key=lambda one: one["core:sample_start"])
    return {**metadata, "global": info, "annotations": in_order}


def is_ours(annotation):
    """Whether `annotated` wrote it: it has fields of the extension. Labels of synthetic scenes have none."""
    return any(key.startswith(f"{EXTENSION['name']}:") for key in annotation)


def _extension_fields(carrier):
    fields = {"confidence": carrier.confidence, "confirmed": carrier.confirmed}
    fields |= cell_fields(carrier) if carrier.confirmed else {}
    return {f"{EXTENSION['name']}:{name}": value for name, value in fields.items() if value is not None}


def cell_fields(carrier):
    """The identity of a confirmed carrier, without what is unknown."""
    cell = carrier.cell
    fields = {
        "cell_id": cell.cell_id,
        "duplex": cell.duplex or None,
        "ssb_center_freq": cell.center_freq_hz if cell.technology == NR else None,
        "subcarrier_spacing": cell.spacing_hz,
        "resource_blocks": cell.num_rb,
    }
    return {name: value for name, value in fields.items() if value is not None}


def dataset_name(metadata, stem):
    """The data file's name beside `stem`.sigmf-meta; None if the metadata stand alone."""
    info = metadata["global"]
    if info.get("core:metadata_only"):
        return None
    return info.get("core:dataset") or f"{stem}.sigmf-data"


def problem(metadata):
    """The `sigmf` library's complaint about the metadata, in one line, or None."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of extensions that the file uses without declaring them
        try:
            validate(metadata)
        except Exception as error:  # it indexes fields that the schema may not require
            return " ".join(str(error).split("\n\n")[0].split())
    return None
