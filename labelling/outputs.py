"""What is written about a labelled recording, and where: planned for all of them before anything is."""

import os
from collections import Counter
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from labelling import sigmf_output
from radio.recordings import META_SUFFIX
from util.errors import UserError


@dataclass(frozen=True)
class LabelledRecording:
    """A file of recordings, or a member of an archive.

    stretches: each a list of the `Recording`s of its channels. metadata: SigMF, as they were, or made for a file that has
    none. output: path of what is written, without suffix.
    """

    stretches: list
    metadata: dict
    output: Path

    @property
    def first(self):
        return self.stretches[0][0]

    def file(self, suffix):
        """Path of what is written with this suffix."""
        return self.output.with_name(self.output.name + suffix)

    @property
    def link(self):
        """Where the data file has to appear beside the new metadata, or None where these stand alone."""
        name = sigmf_output.dataset_name(self.metadata, self.output.name)
        return name and self.output.with_name(name)

    def make_link(self):
        """Have the data appear beside the new metadata without copying them; an older link is replaced."""
        data = self.first.layout.data_file.resolve()
        if self.link is None or self.link.resolve() == data:
            return
        self.link.unlink(missing_ok=True)
        self.link.symlink_to(os.path.relpath(data, self.link.parent.resolve()))


def tuned(recordings, center_freq_hz):
    """The recordings, those that do not say their centre frequency with this one; None: as they are."""
    if center_freq_hz is None:
        return recordings
    return [one if one.center_freq_hz is not None else replace(one, center_freq_hz=center_freq_hz) for one in recordings]


def by_stretch(recordings):
    """A file's `Recording`s as a list for each stretch, of its channels."""
    return [list(channels) for _, channels in groupby(recordings, key=lambda one: one.sample_start)]


def plan(recordings, names, output, center_freq_hz=None):
    """`LabelledRecording`s for all recordings.

    Args:
        recordings: of `find_recordings`; names: of their files, relative, one for each.
        output: folder.
        center_freq_hz: for captures that do not say theirs.

    Raises:
        UserError: a file would be written over: one that another recording writes, a recording's own metadata, or one that
            lies where a link to the data has to be.
    """
    members = Counter(path for path, _ in {(one.path, one.member) for one in recordings})
    planned, taken = [], {}
    for _, group in groupby(zip(recordings, names, strict=True), key=lambda pair: (pair[0].path, pair[0].member)):
        found, (name, *_) = (list(side) for side in zip(*group, strict=True))
        one = _labelled(found, Path(name), Path(output), members[found[0].path] > 1, center_freq_hz)
        if one.file(META_SUFFIX).resolve() == one.first.path.resolve():
            raise UserError(f"--output {output}: expected another folder than that of {one.first.path}, whose metadata "
                            "would be written over")  # fmt: skip
        for path in {one.file(META_SUFFIX), one.link} - {None}:
            if path in taken:
                raise UserError(f"{one.first.path}: expected names of their own for what is written; found {path} for "
                                f"{taken[path]} too: label them into two --output folders")  # fmt: skip
            taken[path] = one.first.path
        data = one.first.layout.data_file
        if one.link and one.link.exists() and not one.link.is_symlink() and not one.link.samefile(data):
            raise UserError(f"{one.link}: expected a free name for a link to {data}; found another file")
        planned.append(one)
    return planned


def _labelled(found, name, output, several_members, center_freq_hz):
    first = found[0]
    stem = name.name.removesuffix(META_SUFFIX) if first.annotations is not None and first.member is None else name.stem
    if several_members:
        stem += f"-{Path(first.member).name.removesuffix(META_SUFFIX)}"
    metadata = sigmf_output.read_metadata(first) or sigmf_output.new_metadata(found)
    metadata = sigmf_output.completed(metadata, first.sample_rate_hz, center_freq_hz)
    if first.member is not None:
        metadata = sigmf_output.without_data(metadata)
    return LabelledRecording(by_stretch(found), metadata, output / name.parent / stem)
