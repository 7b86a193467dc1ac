"""Find the files of MathWorks' frames; see `data.mathworks` for the layouts."""

import re
from dataclasses import dataclass
from pathlib import Path

from data.splits import PARTS
from util.errors import UserError
from util.files import walk

NAME = re.compile(r"(LTE_NR|LTE|NR)_(?:(spect|labels|metadata)_frame_(\d+)\.mat|frame_(\d+)\.(png|hdf|mat))")
ROLES = {
    "png": "image",
    "hdf": "labels",
    "mat": "parameters",
    "spect": "image",
    "labels": "labels",
    "metadata": "parameters",
}
COMBINED = "LTE_NR"
TECHNOLOGIES = ("NR", "LTE", COMBINED)


@dataclass(frozen=True)
class Frame:
    """One frame's files. `part` is None in a folder without parts, `parameters` in an edition without."""

    part: str | None
    technology: str
    number: int
    image: Path
    labels: Path
    parameters: Path | None

    @property
    def name(self):
        return f"{self.part or ''} {self.technology} frame {self.number}".lstrip()


def holds_frames(path):
    """Whether a folder holds frames, at any depth."""
    return any(NAME.fullmatch(file.name) for file in _files(path))


def find_frames(path):
    """The frames below a folder, sorted by part, then number, then NR, LTE, both.

    Frames have a part if some lie in `train`, all others in `val` or `test`. Each part has its own numbers.
    """
    found = {}
    for file in _files(path):
        if match := NAME.fullmatch(file.name):
            technology, resaved, resaved_number, number, suffix = match.groups()
            part = next((name for name in file.relative_to(path).parts[:-1] if name in PARTS), "")
            key = (part, int(resaved_number or number), TECHNOLOGIES.index(technology))
            files = found.setdefault(key, {})
            role = ROLES[resaved or suffix]
            if role in files:
                raise UserError(
                    f"{path}: expected one {role} file of {technology} frame {key[1]}; found {files[role]} and "
                    f"{file}"
                )
            files[role] = file
    if not found:
        raise UserError(
            f"{path}: expected MathWorks frames (NR_frame_1.png and NR_frame_1.hdf, or "
            f"LTE_NR_spect_frame_1.mat and LTE_NR_labels_frame_1.mat); found none"
        )
    parts = sorted({part for part, _, _ in found}, key=["", *PARTS].index)
    if len(parts) > 1 and ("" in parts or "train" not in parts):
        raise UserError(
            f"{path}: expected frames in train with val, test or both, or in none of these; found frames in "
            f"{', '.join(part or 'others' for part in parts)}"
        )
    frames = []
    for (part, number, kind), files in sorted(
        found.items(), key=lambda one: (parts.index(one[0][0]), one[0])
    ):
        for role in ("image", "labels"):
            if role not in files:
                other = next(iter(files.values()))
                raise UserError(
                    f"{other.with_name(_name(other, role))}: expected the {role} of {TECHNOLOGIES[kind]} frame "
                    f"{number}; found no such file beside {other.name}"
                )
        part = part if len(parts) > 1 else None
        frames.append(
            Frame(part, TECHNOLOGIES[kind], number, files["image"], files["labels"], files.get("parameters"))
        )
    return frames


def _files(path):
    def refuse(error):
        raise UserError(f"{path}: expected a folder that can be read; {error}") from error

    return map(Path, walk(path, refuse)[1])


def _name(file, role):
    """Name of the same frame's file with another role."""
    if NAME.fullmatch(file.name).group(2):
        return re.sub(
            "_(spect|labels|metadata)_", {"image": "_spect_", "labels": "_labels_"}[role], file.name
        )
    return file.stem + {"image": ".png", "labels": ".hdf"}[role]
