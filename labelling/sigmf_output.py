"""The SigMF metadata of a labelled recording: all that it said before, and an annotation for each carrier found.

Sections named here are those of the SigMF specification, version 1.2.
"""

import json
import tarfile
import warnings

from sigmf.validate import validate

from radio.carriers import to_annotation
from radio.recordings import Recording
from util.errors import UserError

VERSION = "1.2.0"


def read_metadata(recording: Recording) -> dict | None:
    """The metadata that a recording was opened with, whole, as they stand in the file; None for npy and raw files."""
    if recording.annotations is None:
        return None
    try:
        if recording.member is None:
            return json.loads(recording.path.read_bytes())
        with tarfile.open(recording.path, "r:") as tar:
            return json.loads(tar.extractfile(recording.member).read())
    except (OSError, ValueError, KeyError, tarfile.TarError) as error:
        raise UserError(f"{recording.path}: changed since it was opened: its metadata cannot be read ({error})") from error


def new_metadata(recordings: list[Recording]) -> dict:
    """Metadata for the one npy or raw file that `recordings` are the channels of.

    Header and trailing bytes make a file of samples with a header a "Non-Conforming Dataset" (section "SigMF Dataset
    Format"), which names the file in `core:dataset`. An array whose I and Q lie apart cannot be described so: then the
    metadata stand alone (`core:metadata_only`).
    """
    first, layout = recordings[0], recordings[0].layout
    info = {"core:datatype": first.datatype, "core:sample_rate": first.sample_rate_hz, "core:version": VERSION,
            "core:num_channels": layout.channels}  # fmt: skip
    capture = {"core:sample_start": 0}
    if first.center_freq_hz is not None:
        capture["core:frequency"] = first.center_freq_hz
    if layout.plane_bytes:
        info["core:metadata_only"] = True
    else:
        info["core:dataset"] = first.path.name
        end = layout.byte_offset + first.num_samples * layout.frame_bytes
        if trailing := first.path.stat().st_size - end:
            info["core:trailing_bytes"] = trailing
        if layout.byte_offset:
            capture["core:header_bytes"] = layout.byte_offset
    return {"global": info, "captures": [capture], "annotations": []}


def completed(metadata: dict, sample_rate_hz: float, center_freq_hz: float | None) -> dict:
    """A copy of the metadata with the sample rate, and captures with the centre frequency, where they did not say."""
    def with_default(entry, name, value):
        return entry if value is None or entry.get(name) is not None else {**entry, name: value}

    info = with_default(metadata["global"], "core:sample_rate", sample_rate_hz)
    captures = [with_default(one, "core:frequency", center_freq_hz) for one in metadata.get("captures", [])]
    return {**metadata, "global": info, "captures": captures}


def annotated(metadata: dict, stretches, replace=False) -> dict:
    """A copy of the metadata with the carriers of each stretch as annotations, in the order that SigMF wants.

    Args:
        metadata: whole; nothing in it is lost but, with `replace`, the annotations.
        stretches: pairs of a `Recording`, any channel of it, and its carriers, times from its first sample.
    """
    # Section "Global Object": indices count from core:offset, while a Recording's count from the file's first sample.
    offset = metadata.get("global", {}).get("core:offset", 0)
    kept = [] if replace else list(metadata.get("annotations", []))
    found = [to_annotation(carrier, one.sample_rate_hz, one.sample_start + int(offset), num_samples=one.num_samples)
             for one, carriers in stretches for carrier in carriers]  # fmt: skip
    return {**metadata, "annotations": sorted([*kept, *found], key=lambda one: one["core:sample_start"])}


def dataset_name(metadata: dict, stem: str) -> str | None:
    """The name that the data file has to have beside metadata called `stem` + .sigmf-meta; None for metadata alone."""
    info = metadata["global"]
    if info.get("core:metadata_only"):
        return None
    return info.get("core:dataset") or f"{stem}.sigmf-data"


def without_data(metadata: dict) -> dict:
    """The metadata of a recording whose data stay elsewhere: in an archive, or where no link can be made."""
    info = {key: value for key, value in metadata["global"].items() if key != "core:dataset"}
    return {**metadata, "global": {**info, "core:metadata_only": True}}


def problem(metadata: dict) -> str | None:
    """What the `sigmf` library finds wrong with metadata, in a line, or None."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of extensions that the file uses without declaring them
        try:
            validate(metadata)
        except Exception as error:  # it indexes what the schema may not have asked for
            return " ".join(str(error).split("\n\n")[0].split())
    return None


def to_text(metadata: dict) -> str:
    return json.dumps(metadata, indent=4, ensure_ascii=False) + "\n"
