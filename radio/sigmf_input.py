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
import re
from reprlib import repr as _brief
from typing import NamedTuple

from radio.samples import component_of, full_datatype
from util.errors import UserError

DATA_SUFFIX = ".sigmf-data"
_DEFAULTS = {"core:num_channels": 1, "core:offset": 0}
_NUMBERS = (
    "sample_rate num_channels offset trailing_bytes sample_start sample_count global_index header_bytes "
)
_NUMBERS = {f"core:{name}" for name in (_NUMBERS + "frequency freq_lower_edge freq_upper_edge").split()}
MOST_META_BYTES = 2**28  # metadata of a million annotations
MOST_ANNOTATIONS = 10**6  # of a file, each counted once for each stretch that it overlaps


class Capture(NamedTuple):
    number: int | None  # place in `captures`; None: no capture describes these samples
    start: int  # first frame, counted from the beginning of the data file
    center_freq_hz: float | None
    sample_rate_hz: float
    skipped: int  # core:global_index less core:sample_start
    header_bytes: int  # of this and all earlier captures


class Described(NamedTuple):
    """A data file by its metadata."""

    datatype: str
    channels: int
    frame_bytes: int
    stretches: list  # of `Stretch`


class Stretch(NamedTuple):
    """Captures that follow one another and agree."""

    first: Capture
    stop: int  # in frames
    start_s: float  # from the file's first sample
    annotations: tuple  # as in `radio.recordings.Recording`


def parse(owner, text, note=None):
    """Metadata with "global", "captures" and "annotations"; errors call them `owner`.

    Some of what writers do otherwise than SigMF becomes SigMF: an object stands for a list of one, text for its
    number, and captures are sorted.

    Args:
        note: called with a phrase for each of these.
    """
    note = note or (lambda phrase: None)
    expected = "expected SigMF metadata, JSON with a 'global' object"
    try:
        content = json.loads(text)
        if not isinstance(content["global"], dict):
            raise TypeError(f"found {_brief(content['global'])}")
    except KeyError as error:
        keys = ", ".join(map(_brief, list(content)[:5])) or "an empty object"
        raise UserError(f"{owner}: {expected}, found {keys}") from error
    except Exception as error:  # JSON of any shape
        raise UserError(f"{owner}: {expected} ({short(error)})") from error
    lists = {}
    for name in ("captures", "annotations"):
        entries = content.get(name)
        if isinstance(entries, dict):  # MATLAB's jsonencode of one struct
            note(f"{name} are an object, read as a list of one")
            entries = [entries]
        lists[name] = [] if entries is None else entries
    if not all(
        isinstance(one, list) and all(isinstance(entry, dict) for entry in one) for one in lists.values()
    ):
        expected = "expected captures and annotations to be lists of objects"
        raise UserError(f"{owner}: {expected}, found {_brief(tuple(lists.values()))}")
    content = content | {
        name: [_with_numbers(one, note) for one in entries] for name, entries in lists.items()
    }
    content["global"] = _with_numbers(content["global"], note)
    if content["captures"]:  # libsigmf leaves a 0 out
        content["captures"][0].setdefault("core:sample_start", content["global"].get("core:offset") or 0)
    starts = [one.get("core:sample_start") for one in content["captures"]]
    if all(isinstance(one, int) for one in starts) and starts != sorted(starts):
        note("captures are out of order, and were sorted")
        content["captures"].sort(key=lambda one: one["core:sample_start"])
    return content


def _with_numbers(fields, note):
    """Fields whose numbers are no text."""
    found = {}
    for key in _NUMBERS & fields.keys():
        text = fields[key]
        if isinstance(text, str) and re.fullmatch(
            r"\s*[+-]?\d{1,30}(\.\d{0,30})?([eE][+-]?\d{1,2})?\s*", text
        ):
            found[key] = int(text) if text.strip().lstrip("+-").isdigit() else float(text)
    if found:
        note("numbers are written as text")
    return fields | found


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
    is_name = isinstance(dataset, str) and posixpath.basename(dataset) == dataset
    is_name = is_name and dataset not in (".", "..") and "\0" not in dataset
    if dataset and not is_name:
        expected = "expected core:dataset to be a file name without folder"
        raise UserError(f"{owner}: {expected}, found {_brief(dataset)}")
    names = [dataset, stem + DATA_SUFFIX] if dataset else [stem + DATA_SUFFIX]
    for name in names:
        if data := find(name):
            return data
    found = "metadata only (core:metadata_only)" if info.get("core:metadata_only") else "no such file"
    raise UserError(f"{owner}: expected its data file {names[0]} beside it, found {found}")


def describe(owner, metadata, num_bytes, sample_rate_hz, note):
    """What `num_bytes` of a data file hold, as `Described`.

    Args:
        sample_rate_hz: for metadata without a rate.
        note: called with a phrase for each fault that the data can be read in spite of.
    """
    info = metadata["global"]
    info = info | {key: value for key, value in _DEFAULTS.items() if info.get(key) is None}
    datatype = full_datatype(owner, info.get("core:datatype"))
    if not str(info["core:datatype"]).lower().startswith(datatype.partition("_")[0]):
        note(f"the datatype {info['core:datatype']} is read as {datatype}")
    channels = _number(info["core:num_channels"], owner, "core:num_channels", minimum=1)
    dtype, components = component_of(datatype)
    frame_bytes = dtype.itemsize * components * channels
    captures = _captures(owner, metadata, info, sample_rate_hz)
    trailing_bytes = _number(info.get("core:trailing_bytes", 0), owner, "core:trailing_bytes")
    num_bytes -= captures[-1].header_bytes + trailing_bytes
    total, torn_bytes = divmod(num_bytes, frame_bytes)
    if total <= 0:
        problem = "truncated" if num_bytes > 0 else "empty"
        expected = f"expected whole samples of {frame_bytes} bytes"
        raise UserError(f"{owner}: {problem}: {expected}, found {num_bytes}")
    if torn_bytes:
        note(f"the last {torn_bytes} bytes are no whole sample of {frame_bytes} bytes, and are left out")
    for one in captures:
        if one.start > total:
            found = f"expected {one.start} samples, found {total}"
            raise UserError(f"{owner}: capture {one.number}: less data than the metadata say: {found}")
    spans = _annotation_spans(owner, metadata, info["core:offset"], captures, total, note)
    return Described(datatype, channels, frame_bytes, _stretches(owner, captures, total, spans))


def _captures(owner, metadata, info, sample_rate_hz):
    """Section "Captures Array", after an entry for the samples before the first capture."""
    rate = info.get("core:sample_rate")
    own = [_own_rate(one) for one in metadata["captures"]]
    if rate is None and None not in own[:1]:
        rate = own[0] if own else None
    rate = checked_rate(owner, sample_rate_hz if rate is None else rate)
    found, header_bytes = [Capture(None, 0, None, rate, 0, 0)], 0
    # Section "Global Object": indices are absolute, and the file's first sample has index core:offset.
    offset = _number(info["core:offset"], owner, "core:offset")
    for number, one in enumerate(metadata["captures"]):
        where, least = f"{owner}: capture {number}", found[-1].start + offset
        index = _number(one.get("core:sample_start"), where, "core:sample_start", minimum=least)
        skipped = _number(one.get("core:global_index", index), where, "core:global_index") - index
        header_bytes += _number(one.get("core:header_bytes", 0), where, "core:header_bytes")
        center = one.get("core:frequency")
        if center is not None:
            center = _number(center, where, "core:frequency", kind=float, minimum=-1e12)
        own_rate = rate if own[number] is None else checked_rate(where, own[number])
        found.append(Capture(number, index - offset, center, own_rate, skipped, header_bytes))
    return found


def _own_rate(capture):
    """A sample rate in a capture, which SigMF does not have: SDRangel writes `sdrangel:sample_rate`."""
    keys = sorted(key for key in capture if key.endswith(":sample_rate"))
    return capture[keys[0]] if keys else None


def _annotation_spans(owner, metadata, offset, captures, total, note):
    """(first sample, end, annotation), in samples from the beginning of the data file."""
    borders = [*(one.start for one in captures), total]
    spans, beyond = [], []
    for number, one in enumerate(metadata["annotations"]):
        where = f"{owner}: annotation {number}"
        start = _number(one.get("core:sample_start"), where, "core:sample_start") - offset
        if "core:sample_count" in one:
            end = start + _number(one["core:sample_count"], where, "core:sample_count")
        else:  # to the end of its capture
            end = borders[min(bisect.bisect_right(borders, start), len(borders) - 1)]
        if max(start, end) > total:  # writers that give the last sample as the count
            beyond.append(number)
        spans.append((start, min(end, total), one))
    if beyond:
        more = f" and {len(beyond) - 1} more end" if len(beyond) > 1 else " ends"
        note(f"annotation {beyond[0]}{more} after the last of the {total} samples, and is cut there")
    return spans


def _stretches(owner, captures, total, spans):
    """A `Stretch` for each run of captures that hold samples, agree and follow one another."""
    stops = [*(one.start for one in captures[1:]), total]
    held = [(one, stop) for one, stop in zip(captures, stops, strict=True) if one.start < stop]
    runs = [list(run) for _, run in itertools.groupby(held, key=lambda pair: pair[0][2:])]
    borders = [(run[0][0], run[-1][1]) for run in runs]
    starts, of_stretch, left = [first.start for first, _ in borders], [[] for _ in borders], MOST_ANNOTATIONS
    for start, end, one in spans:
        number = max(0, bisect.bisect_right(starts, start) - 1)
        while number < len(borders) and starts[number] < end:
            first, stop = borders[number]
            if max(start, first.start) < min(end, stop):
                own = {**one, "core:sample_start": start - first.start, "core:sample_count": end - start}
                of_stretch[number].append(own)
                left -= 1
            number += 1
        if left < 0:
            expected = f"expected at most {MOST_ANNOTATIONS} annotations, counted for each stretch"
            raise UserError(f"{owner}: {expected}, found more")
    found, start_s = [], 0.0
    for (first, stop), own in zip(borders, of_stretch, strict=True):
        found.append(Stretch(first, stop, start_s, tuple(own)))
        start_s += (stop - first.start) / first.sample_rate_hz
    return found


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
