"""What a file is by its name or first bytes, and an error that names a format that is not read where it was given."""

import os
import re
import shlex
from pathlib import Path

from util.errors import UserError

IMAGE_SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".npy")
SET_DESCRIPTION = "set.json"  # of a spectrogram set
HDF5_SUFFIXES = (".h5", ".hdf5")
HDF5_EXPECTED = "X and Y (RadioML 2018.01A), or image, csi, sample or iq with label (WavesFM)"
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
MATLAB_HEADER_BYTES = 512  # before the HDF5 of a .mat of version 7.3
# A dict or list, pickled: by protocol 0, 1, 2 to 3, and 4 to 5, which say their length.
PICKLE = re.compile(rb"\([dl]p?\d*\n|[}\]]q\x00|\x80[\x02\x03][}\]]q|\x80[\x04\x05]\x95.{8}[}\]\x8c]", re.DOTALL)
PICKLE_SUFFIXES = (".pkl", ".pickle")
# What a folder may hold that nothing reads: only where all files end like this is one of them looked into.
SUFFIXES = (".h5", ".hdf5", ".mat", ".dat", *PICKLE_SUFFIXES)

HDF5, MATLAB, PICKLED = "HDF5", "MATLAB 7.3 (HDF5)", "a pickle"

# Makes the layout of RadioML 2018.01A of a dict (modulation, SNR) -> [n, 2, samples], as RadioML 2016.10A is one.
CONVERT = (
    "import sys, json, pickle, h5py, numpy as np; d = pickle.load(open(sys.argv[1], 'rb'), encoding='latin1'); "
    "keys = sorted(d); names = sorted({name for name, _ in keys}); f = h5py.File(sys.argv[2], 'w'); "
    "rows = [(names.index(name), snr) for name, snr in keys for _ in d[name, snr]]; "
    "f['X'] = np.concatenate([d[key] for key in keys]).transpose(0, 2, 1).astype('f4'); "
    "f['Y'] = np.eye(len(names), dtype='i8')[[number for number, _ in rows]]; "
    "f['Z'] = np.array([[snr] for _, snr in rows]); f.attrs['labels'] = json.dumps(names); f.close()"
)


def has_image_suffix(path):
    """Whether a file is an image by its name; a `.npy` that holds IQ is a recording all the same."""
    return os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES


def is_hdf5_name(path):
    """Whether a path ends like that of an HDF5 file."""
    return Path(path).suffix.lower() in HDF5_SUFFIXES


def is_spectrogram_set(path):
    return (Path(path) / SET_DESCRIPTION).is_file()


def format_of(path):
    """`HDF5`, `MATLAB` or `PICKLED` where a file is one of these, by what is in it or else by its suffix, else None."""
    try:
        with open(path, "rb") as file:
            head = file.read(MATLAB_HEADER_BYTES + len(HDF5_MAGIC))
            file.seek(-min(1, len(head)), 2)
            last = file.read()
    except OSError:
        return None
    if head.endswith(HDF5_MAGIC) and head.startswith(b"MATLAB"):
        return MATLAB
    if head.startswith(HDF5_MAGIC) or is_hdf5_name(path):
        return HDF5
    is_pickle = PICKLE.match(head) and last == b"."
    return PICKLED if is_pickle or Path(path).suffix.lower() in PICKLE_SUFFIXES else None


def refuse_format(path, expected):
    """Say what a file is that is not read here.

    Args:
        path: a file; expected: what `--data_path` takes.

    Raises:
        UserError: the file is of one of these formats.
    """
    found = format_of(path)
    advice = {
        HDF5: f"--task classification and --task sensing read such a file, with the data sets {HDF5_EXPECTED}",
        MATLAB: "save it again with -v7",
        PICKLED: f"RadioML 2016.10A pickles are not read; convert: python -c \"{CONVERT}\" {shlex.quote(str(path))} "
                 f"{shlex.quote(Path(path).stem + '.hdf5')}",
    }  # fmt: skip
    if found:
        raise UserError(f"--data_path {path}: expected {expected}; found {found}: {advice[found]}")


def refuse_formats(path, expected):
    """`refuse_format` of a file, or of the first file in a folder whose files all have a suffix of such a format."""
    if not os.path.isdir(path):
        refuse_format(path, expected)
        return
    first = None
    for folder, names, files in os.walk(path):
        names[:] = sorted(name for name in names if not name.startswith("."))
        for name in sorted(name for name in files if not name.startswith(".")):
            if not name.lower().endswith(SUFFIXES):
                return
            first = first or os.path.join(folder, name)
    if first:
        refuse_format(first, expected)
