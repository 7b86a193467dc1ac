"""What SigMF metadata say of a data file: the format of its samples, and its contiguous stretches.

The `sigmf` library is not used: its objects take ten times as long to make as the JSON takes to parse.
Its schema is not used: a check takes 10 ms a file, and an odd comment would close a recording.
Sections named here are those of the SigMF specification, version 1.2.
"""

import bisect
import itertools
import json
import numbers
import posixpath
from reprlib import repr as _brief
from typing import NamedTuple

from radio.samples import component_of, full_datatype
from util.errors import UserError

DATA_SUFFIX = ".sigmf-data"
_DEFAULTS = {"core:num_channels": 1, "core:offset": 0}


class Capture(NamedTuple):
    number: int | None  # place in `captures`; None: no capture describes these samples
    start: int  # first frame, counted from the beginning of the data file
    center_freq_hz: float | None
    skipped: int  # core:global_index less core:sample_start
    header_bytes: int  # of this and all earlier captures


class Described(NamedTuple):
    """A data file by its metadata."""

    datatype: str
    sample_rate_hz: float
    channels: int
    frame_bytes: int
    stretches: list  # of (first `Capture`, end in frames, annotations as in `radio.recordings.Recording`)


def parse(owner, text):
    """Metadata with "global", "captures" and "annotations"; errors call them `owner`."""
    try:
        content = json.loads(text)
        info = content["global"]
        info = info | {key: value for key, value in _DEFAULTS.items() if info.get(key) is None}
        lists = content.get("captures", []), content.get("annotations", [])
    except Exception as error:  # JSON of any shape
        expected = "expected SigMF metadata, JSON with a 'global' object"
        raise UserError(f"{owner}: {expected} ({short(error)})") from error
    if not all(isinstance(one, list) and all(isinstance(entry, dict) for entry in one) for one in lists):
        expected = "expected captures and annotations to be lists of objects"
        raise UserError(f"{owner}: {expected}, found {_brief(lists)}")
    return {"global": info, "captures": lists[0], "annotations": lists[1]}


def of_samples(datatype):
    """Metadata of a file that holds samples only; `datatype` may be None."""
    return {"global": {"core:datatype": datatype, **_DEFAULTS}, "captures": [], "annotations": []}


def find_data(owner, metadata, stem, find):
    """What `find` gives for the data file's name, `core:dataset` or else `stem` + .sigmf-data.

    Raises:
        UserError: `find` gives None, or `core:dataset` is not the name of a file.
    """
    info = metadata["global"]
    dataset = info.get("core:dataset")
    if dataset and (not isinstance(dataset, str) or posixpath.basename(dataset) != dataset):
        expected = "expected core:dataset to be a file name without folder"
        raise UserError(f"{owner}: {expected}, found {_brief(dataset)}")
    names = [dataset, stem + DATA_SUFFIX] if dataset else [stem + DATA_SUFFIX]
    for name in names:
        if data := find(name):
            return data
    found = "metadata only (core:metadata_only)" if info.get("core:metadata_only") else "no such file"
    raise UserError(f"{owner}: expected its data file {names[0]} beside it, found {found}")


def describe(owner, metadata, num_bytes, sample_rate_hz):
    """What `num_bytes` of a data file hold; `sample_rate_hz` is for metadata without a rate."""
    info = metadata["global"]
    datatype = full_datatype(owner, info.get("core:datatype"))
    rate = info.get("core:sample_rate")
    rate = checked_rate(owner, sample_rate_hz if rate is None else rate)
    channels = _number(info["core:num_channels"], owner, "core:num_channels", minimum=1)
    dtype, components = component_of(datatype)
    frame_bytes = dtype.itemsize * components * channels
    captures = _captures(owner, metadata)
    trailing_bytes = _number(info.get("core:trailing_bytes", 0), owner, "core:trailing_bytes")
    num_bytes -= captures[-1].header_bytes + trailing_bytes
    if num_bytes <= 0 or num_bytes % frame_bytes:
        problem = "truncated" if num_bytes > 0 else "empty"
        expected = f"expected whole samples of {frame_bytes} bytes"
        raise UserError(f"{owner}: {problem}: {expected}, found {num_bytes}")
    total = num_bytes // frame_bytes
    for one in captures:
        _check_end(f"{owner}: capture {one.number}", one.start, total)
    spans = _annotation_spans(owner, metadata, captures, total)
    stretches = _stretches(captures, total)
    stretches = [(first, stop, _within(spans, first.start, stop)) for first, stop in stretches]
    return Described(datatype, rate, channels, frame_bytes, stretches)


def _captures(owner, metadata):
    """Section "Captures Array", after an entry for the samples before the first capture."""
    found, header_bytes = [Capture(None, 0, None, 0, 0)], 0
    # Section "Global Object": indices are absolute, and the file's first sample has index core:offset.
    offset = _number(metadata["global"]["core:offset"], owner, "core:offset")
    for number, one in enumerate(metadata["captures"]):
        where, least = f"{owner}: capture {number}", found[-1].start + offset
        index = _number(one.get("core:sample_start"), where, "core:sample_start", minimum=least)
        skipped = _number(one.get("core:global_index", index), where, "core:global_index") - index
        header_bytes += _number(one.get("core:header_bytes", 0), where, "core:header_bytes")
        center = one.get("core:frequency")
        if center is not None:
            center = _number(center, where, "core:frequency", kind=float, minimum=-1e12)
        found.append(Capture(number, index - offset, center, skipped, header_bytes))
    return found


def _annotation_spans(owner, metadata, captures, total):
    """(first sample, end, annotation), in samples from the beginning of the data file."""
    borders, offset = [*(one.start for one in captures), total], metadata["global"]["core:offset"]
    spans = []
    for number, one in enumerate(metadata["annotations"]):
        where = f"{owner}: annotation {number}"
        start = _number(one.get("core:sample_start"), where, "core:sample_start") - offset
        if "core:sample_count" in one:
            end = start + _number(one["core:sample_count"], where, "core:sample_count")
        else:  # to the end of its capture
            end = borders[min(bisect.bisect_right(borders, start), len(borders) - 1)]
        _check_end(where, max(start, end), total)
        spans.append((start, end, one))
    return spans


def _check_end(where, end, total):
    if end > total:
        raise UserError(f"{where}: less data than the metadata say: expected {end} samples, found {total}")


def _within(spans, first, stop):
    """The annotations that overlap samples `first` to `stop`; their start counts from `first`."""
    return tuple(
        {**one, "core:sample_start": start - first, "core:sample_count": end - start}
        for start, end, one in spans
        if max(start, first) < min(end, stop)
    )


def _stretches(captures, total):
    """First capture and end of each run of captures that hold samples, agree and follow one another."""
    stops = [*(one.start for one in captures[1:]), total]
    held = [(one, stop) for one, stop in zip(captures, stops, strict=True) if one.start < stop]
    runs = [list(run) for _, run in itertools.groupby(held, key=lambda pair: pair[0][2:])]
    return [(run[0][0], run[-1][1]) for run in runs]


def checked_rate(owner, value):
    return _number(value, owner, "core:sample_rate or --sample_rate (Hz)", kind=float, minimum=1e-3)


def _number(value, where, name, kind=int, minimum=0):
    # A float such as 44.0 is a whole number to JSON; true and false are no numbers.
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not (is_number and minimum <= value < 2**63 and value == kind(value)):
        noun = "whole number" if kind is int else "number"
        raise UserError(f"{where}: {name}: expected a {noun} of at least {minimum}, found {_brief(value)}")
    return kind(value)


def short(error):
    """An error's type and message in one short line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
