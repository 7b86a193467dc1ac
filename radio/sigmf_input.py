"""What SigMF metadata say of the samples in a data file: its format, and the contiguous stretches that it holds.

Read without the `sigmf` library, whose objects take ten times as long to make as the JSON takes to parse: recordings come
in hundreds of thousands. Its schema is not asked either: 10 ms a file, and an odd comment would close a recording. What
samples it gives, see `radio/samples.py`.
Sections named here are those of the SigMF specification, version 1.2.
"""

import bisect
import itertools
import json
import numbers
import posixpath
from dataclasses import dataclass
from reprlib import repr as _brief
from typing import NamedTuple

from radio.samples import component_of, full_datatype
from util.errors import UserError

DATA_SUFFIX = ".sigmf-data"


class Capture(NamedTuple):
    number: int | None  # place in `captures`; None: no capture describes these samples
    start: int  # first frame, counted from the beginning of the data file
    center_freq_hz: float | None
    skipped: int  # core:global_index less core:sample_start
    header_bytes: int  # of this and all earlier captures


@dataclass(frozen=True)
class Described:
    """A data file by its metadata. stretches: the first capture and the end of each, in frames; annotations: of each, as
    `radio.recordings.Recording` has them."""

    datatype: str
    sample_rate_hz: float
    channels: int
    frame_bytes: int
    stretches: list[tuple[Capture, int]]
    annotations: list[tuple[dict, ...]]


def parse(owner: str, text: bytes) -> dict:
    """Metadata with "global", "captures" and "annotations"; `owner` is how errors call them."""
    try:
        content = json.loads(text)
        info, captures, annotations = content["global"], content.get("captures", []), content.get("annotations", [])
        defaults = {"core:num_channels": 1, "core:offset": 0}
        info = info | {key: value for key, value in defaults.items() if info.get(key) is None}
    except Exception as error:  # JSON of any shape
        raise UserError(f"{owner}: expected SigMF metadata, JSON with a 'global' object ({short(error)})") from error
    lists = captures, annotations
    if not all(isinstance(one, list) and all(isinstance(entry, dict) for entry in one) for one in lists):
        raise UserError(f"{owner}: expected captures and annotations to be lists of objects, found {_brief(lists)}")
    return {"global": info, "captures": captures, "annotations": annotations}


def of_samples(datatype: str | None) -> dict:
    """Metadata of a file that is nothing but samples."""
    return {"global": {"core:datatype": datatype, "core:num_channels": 1, "core:offset": 0}, "captures": [],
            "annotations": []}  # fmt: skip


def data_names(owner: str, metadata: dict, stem: str) -> list[str]:
    """Names that the data file may have beside its metadata, that of `core:dataset` first."""
    dataset = metadata["global"].get("core:dataset")
    if dataset and (not isinstance(dataset, str) or posixpath.basename(dataset) != dataset):
        raise UserError(f"{owner}: expected core:dataset to be a file's name without folder, found {_brief(dataset)}")
    return [dataset, stem + DATA_SUFFIX] if dataset else [stem + DATA_SUFFIX]


def no_data(owner: str, metadata: dict, names: list[str]) -> UserError:
    only = "metadata only (core:metadata_only)" if metadata["global"].get("core:metadata_only") else "no such file"
    return UserError(f"{owner}: expected its data file {names[0]} beside it, found {only}")


def describe(owner: str, metadata: dict, num_bytes: int, sample_rate_hz: float | None) -> Described:
    """What the `num_bytes` of a data file hold; `sample_rate_hz` is for metadata that do not say."""
    info = metadata["global"]
    datatype = full_datatype(owner, info.get("core:datatype"))
    rate = checked_rate(owner, sample_rate_hz if info.get("core:sample_rate") is None else info["core:sample_rate"])
    channels = _number(info["core:num_channels"], owner, "core:num_channels", minimum=1)
    dtype, components = component_of(datatype)
    frame_bytes = dtype.itemsize * components * channels
    captures = _captures(owner, metadata)
    num_bytes -= captures[-1].header_bytes + _number(info.get("core:trailing_bytes", 0), owner, "trailing bytes")
    if num_bytes <= 0 or num_bytes % frame_bytes:
        what = "truncated" if num_bytes > 0 else "empty"
        raise UserError(f"{owner}: {what}: expected whole samples of {frame_bytes} bytes, found {num_bytes}")
    total = num_bytes // frame_bytes
    _check_reach(owner, metadata, captures, total)
    stretches = _stretches(captures, total)
    spans = _annotation_spans(metadata, captures, total)
    return Described(datatype, rate, channels, frame_bytes, stretches,
                     [_within(spans, first.start, stop) for first, stop in stretches])  # fmt: skip


def _captures(owner: str, metadata: dict) -> list[Capture]:
    """Section "Captures Array"; the first one stands for samples before the captures, and says nothing."""
    found = [Capture(None, 0, None, 0, 0)]
    # Section "Global Object": indices are absolute, and core:offset is that of the file's first sample.
    offset = _number(metadata["global"]["core:offset"], owner, "core:offset")
    for number, one in enumerate(metadata["captures"]):
        where = (owner, "capture", number)
        index = _number(one.get("core:sample_start"), *where, "core:sample_start", minimum=found[-1].start + offset)
        skipped = _number(one.get("core:global_index", index), *where, "core:global_index") - index
        header_bytes = found[-1].header_bytes + _number(one.get("core:header_bytes", 0), *where, "core:header_bytes")
        center = one.get("core:frequency")
        center = center if center is None else _number(center, *where, "core:frequency", kind=float, minimum=-1e12)
        found.append(Capture(number, index - offset, center, skipped, header_bytes))
    return found


def _check_reach(owner: str, metadata: dict, captures: list[Capture], total: int) -> None:
    ends = [(("capture", one.number), one.start) for one in captures]
    for number, one in enumerate(metadata["annotations"]):
        where = ("annotation", number)
        start = _number(one.get("core:sample_start"), owner, *where, "core:sample_start")
        count = _number(one.get("core:sample_count", 0), owner, *where, "core:sample_count")
        ends.append((where, start + count - metadata["global"]["core:offset"]))
    for (kind, number), end in ends:
        if end > total:
            raise UserError(f"{owner}: {kind} {number}: less data than the metadata say: expected {end} samples, found "
                            f"{total}")  # fmt: skip


def _annotation_spans(metadata: dict, captures: list[Capture], total: int) -> list[tuple[int, int, dict]]:
    """(first sample, end, annotation), in samples from the beginning of the data file."""
    borders = [*(one.start for one in captures), total]
    spans = []
    for one in metadata["annotations"]:
        start = int(one["core:sample_start"]) - metadata["global"]["core:offset"]
        capture_end = borders[min(bisect.bisect_right(borders, start), len(borders) - 1)]
        spans.append((start, start + int(one["core:sample_count"]) if "core:sample_count" in one else capture_end, one))
    return spans


def _within(spans: list[tuple[int, int, dict]], first: int, stop: int) -> tuple[dict, ...]:
    """The annotations that overlap samples `first` to `stop`, their start counted from `first`."""
    return tuple({**one, "core:sample_start": start - first, "core:sample_count": end - start}
                 for start, end, one in spans if max(start, first) < min(end, stop))


def _stretches(captures: list[Capture], total: int) -> list[tuple[Capture, int]]:
    """First capture and end of each run of captures that hold samples, agree and follow one another."""
    stops = [*(one.start for one in captures[1:]), total]
    held = [(one, stop) for one, stop in zip(captures, stops, strict=True) if one.start < stop]
    runs = [list(run) for _, run in itertools.groupby(held, key=lambda pair: pair[0][2:])]
    return [(run[0][0], run[-1][1]) for run in runs]


# Values that a user or a file gives


def checked_rate(owner: str, value) -> float:
    return _number(value, owner, "core:sample_rate or --sample_rate (Hz)", kind=float, minimum=1e-3)


def _number(value, owner, *where, kind=int, minimum=0):
    # A float such as 44.0 is a whole number to JSON; true and false are no numbers.
    is_number = type(value) in (int, float) or (isinstance(value, numbers.Real) and not isinstance(value, bool))
    if not (is_number and minimum <= value < 2**63 and value == kind(value)):
        noun = "whole number" if kind is int else "number"
        *place, name = where
        what = ": ".join([owner, *([" ".join(map(str, place))] if place else []), name])
        raise UserError(f"{what}: expected a {noun} of at least {minimum}, found {_brief(value)}")
    return kind(value)


def short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
