"""The files that labelling writes, planned for all recordings before the first one is labelled."""

import filecmp
import os
import shutil
from collections import Counter
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from labelling import sigmf_output
from radio.recordings import META_SUFFIX
from util.errors import UserError
from util.files import MOST_NAME_BYTES, atomic_path

SUFFIXES = (META_SUFFIX, ".json", ".png")


@dataclass(frozen=True)
class LabelledRecording:
    """A file of recordings, or one recording of an archive."""

    stretches: list  # lists of `Recording`s, the channels of each stretch
    metadata: dict  # SigMF
    output: Path  # of the files to write, without suffix
    copy: bool = False  # the data, instead of a link to them

    @property
    def first(self):
        return self.stretches[0][0]

    def file(self, suffix):
        """The file to write with this suffix."""
        return self.output.with_name(self.output.name + suffix)

    @property
    def data(self):
        """The link to the data, or their copy, beside the new metadata; None if the metadata stand alone."""
        name = sigmf_output.dataset_name(self.metadata, self.output.name)
        return name and self.output.with_name(name)

    def is_free(self):
        """Whether nothing is at the place of `data` but a link or the same data."""
        data, source = self.data, self.first.layout.data_file
        if data is None or data.is_symlink() or not data.exists() or data.samefile(source):
            return True
        return data.is_file() and filecmp.cmp(data, source, shallow=False)

    def remove(self):
        """Remove what an earlier run wrote."""
        for suffix in SUFFIXES:
            self.file(suffix).unlink(missing_ok=True)
        data = self.data
        if data and (data.is_symlink() or (data.exists() and not data.samefile(self.first.layout.data_file))):
            data.unlink()  # a link, or a copy of the same data: `plan` has checked

    def provide_data(self):
        """Link to the data or copy them; replace an older link. A copy that is there already stays."""
        data, source = self.data, self.first.layout.data_file.resolve()
        if data is None or (data.exists() and not data.is_symlink()):
            return
        if self.copy:
            with atomic_path(data) as temporary:
                shutil.copyfile(source, temporary)
        elif data.resolve() != source:
            data.unlink(missing_ok=True)
            data.symlink_to(os.path.relpath(source, data.parent.resolve()))


def tuned(recordings, center_freq_hz):
    """The recordings, with this centre frequency (or None) if they do not say theirs."""
    known = [center_freq_hz if one.center_freq_hz is None else one.center_freq_hz for one in recordings]
    return [replace(one, center_freq_hz=hz) for one, hz in zip(recordings, known, strict=True)]


def by_stretch(recordings):
    """A file's `Recording`s, grouped by stretch: a list of channels for each."""
    return [list(channels) for _, channels in groupby(recordings, key=lambda one: one.sample_start)]


def plan(recordings, names, output, center_freq_hz=None, copy=False):
    """A `LabelledRecording` for each file and archive member.

    Args:
        recordings: of `find_recordings`.
        names: relative path of each recording's file, for its place in the folder `output`.
        center_freq_hz: for captures that do not say theirs.
        copy: the data too, instead of a link to them.

    Raises:
        UserError: two recordings would write the same file, or an existing file would be lost: a recording's
            metadata, or a file where the data must be.
    """
    members = Counter(path for path, _ in {(one.path, one.member) for one in recordings})
    planned, taken = [], {}
    pairs = zip(recordings, names, strict=True)
    for _, group in groupby(pairs, key=lambda pair: (pair[0].path, pair[0].member)):
        found, (name, *_) = (list(side) for side in zip(*group, strict=True))
        planned_output = _output(found, Path(name), Path(output), members[found[0].path] > 1)
        metadata = sigmf_output.metadata_of(found, center_freq_hz)
        one = LabelledRecording(by_stretch(found), metadata, planned_output, copy)
        path = one.first.path
        if len(os.fsencode(one.file(META_SUFFIX).name)) > MOST_NAME_BYTES:
            raise UserError(
                f"{path}: expected a shorter name, as {META_SUFFIX} must fit behind it; found {name}"
            )
        if one.file(META_SUFFIX).resolve() == path.resolve():
            expected = f"another folder than that of {path}, whose metadata would be overwritten"
            raise UserError(f"--output {output}: expected {expected}")
        for file in {one.file(META_SUFFIX), one.data} - {None}:
            if other := taken.get(file):
                expected = f"an output file of its own; found {file} for {other} too"
                raise UserError(f"{path}: expected {expected}: label them into two --output folders")
            taken[file] = path
        if not one.is_free():
            free = f"a free name for the data of {path}"
            raise UserError(f"{one.data}: expected {free}; found another file")
        planned.append(one)
    return planned


def _output(found, name, output, several_members):
    """Where the files of a recording go, without suffix."""
    first, stem = found[0], name.stem
    if first.annotations is not None and first.member is None:
        stem = name.name.removesuffix(META_SUFFIX)
    if several_members:
        stem += f"-{Path(first.member).name.removesuffix(META_SUFFIX)}"
    return output / name.parent / stem
