"""Formats of files, by name or first bytes, and the error for a format that a flag does not take."""

import os
import re
import shlex
from pathlib import Path

from util.errors import UserError
from util.files import file_size, walk_by_folder

IMAGE_SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".npy")
SET_DESCRIPTION = "set.json"  # of a spectrogram set
HDF5_SUFFIXES = (".h5", ".hdf5")
HDF5_EXPECTED = "X and Y (RadioML 2018.01A), or image, csi, sample or iq with label (WavesFM)"
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
MATLAB_HEADER_BYTES = 512  # before the HDF5 of a .mat of version 7.3
# A pickled dict or list, by protocol: 0; 1; 2 and 3; 4 and 5, which begin with their length.
PICKLE = re.compile(
    rb"\([dl]p?\d*\n|[}\]]q\x00|\x80[\x02\x03][}\]]q|\x80[\x04\x05]\x95.{8}[}\]\x8c]", re.DOTALL
)
PICKLE_SUFFIXES = (".pkl", ".pickle")
# A folder is refused if all files have one of these suffixes and the first is of a format that is not read.
SUFFIXES = (".h5", ".hdf5", ".mat", ".dat", *PICKLE_SUFFIXES)

HDF5, MATLAB, PICKLED = "HDF5", "MATLAB 7.3 (HDF5)", "a pickle"

# Converts RadioML 2016.10A, a dict (modulation, SNR) -> [n, 2, samples], to the layout of RadioML 2018.01A.
CONVERT = (
    "import sys, json, pickle, h5py, numpy as np; d = pickle.load(open(sys.argv[1], 'rb'), encoding='latin1'); "
    "keys = sorted(d); names = sorted({name for name, _ in keys}); f = h5py.File(sys.argv[2], 'w'); "
    "rows = [(names.index(name), snr) for name, snr in keys for _ in d[name, snr]]; "
    "f['X'] = np.concatenate([d[key] for key in keys]).transpose(0, 2, 1).astype('f4'); "
    "f['Y'] = np.eye(len(names), dtype='i8')[[number for number, _ in rows]]; "
    "f['Z'] = np.array([[snr] for _, snr in rows]); f.attrs['labels'] = json.dumps(names); f.close()"
)


def has_image_suffix(path):
    """Whether a file is an image by its name; a `.npy` may still be a recording."""
    return os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES


def is_hdf5_name(path):
    return Path(path).suffix.lower() in HDF5_SUFFIXES


def is_spectrogram_set(path):
    return (Path(path) / SET_DESCRIPTION).is_file()


def format_of(path):
    """`HDF5`, `MATLAB`, `PICKLED` or None, by a file's content or else its suffix."""
    try:
        file_size(path)  # a pipe or device is an error
        with open(path, "rb") as file:
            head = file.read(MATLAB_HEADER_BYTES + len(HDF5_MAGIC))
            file.seek(-min(1, len(head)), 2)
            last = file.read(1)
    except OSError:
        return None
    if head.endswith(HDF5_MAGIC) and head.startswith(b"MATLAB"):
        return MATLAB
    if head.startswith(HDF5_MAGIC) or is_hdf5_name(path):
        return HDF5
    is_pickle = PICKLE.match(head) and last == b"."
    return PICKLED if is_pickle or Path(path).suffix.lower() in PICKLE_SUFFIXES else None


def refuse_formats(path, expected):
    """Refuse a file of these formats, or a folder of files that all have a suffix of these formats.

    Args:
        path: file or folder; expected: what `--data_path` takes.
    """
    if os.path.isdir(path):
        first = None
        for file in (file for _, own in walk_by_folder(path) for file in own):
            if not file.lower().endswith(SUFFIXES):
                return  # most folders end here, at their first file
            first = first or file
        if first is None:
            return
        path = first
    found = format_of(path)
    if found is None:
        return
    converted = shlex.quote(f"{Path(path).stem}.hdf5")
    advice = {
        HDF5: f"--task classification and --task sensing read such a file, with the data sets {HDF5_EXPECTED}",
        MATLAB: "save it again with -v7",
        PICKLED: "RadioML 2016.10A pickles are not read; convert: "
        f'python -c "{CONVERT}" {shlex.quote(str(path))} {converted}',
    }
    raise UserError(f"--data_path {path}: expected {expected}; found {found}: {advice[found]}")
