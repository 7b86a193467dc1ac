"""Spectrograms kept as image files: float TIFF of linear power, PNG and JPEG pictures, NumPy arrays."""

import contextlib
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from data.sampling import IMAGE, Source, split_by_group
from radio.spectrogram import Spectrogram
from util.errors import UserError
from util.files import file_size, not_read

# The published recipe for TIFF spectrograms (arXiv 2411.09996, its later version): power to dB, dB to about
# [0, 1] over the range of its data, then standardised by its training set.
TIFF_FLOOR = 1e-12
TIFF_MIN_DB = -120.0
TIFF_RANGE_DB = 119.5
TIFF_MEAN = 0.451
TIFF_STD = 0.043

PICTURES = (".png", ".jpg", ".jpeg")


class ImageFiles(Source):
    """One image a file, resized to `image_size` (bicubic, antialiased).

    - TIFF: float linear power [frequency, time], lowest frequency first; the published recipe above.
    - PNG, JPEG: a picture, highest frequency at the top; converted to grey, row 0 the lowest frequency.
    - npy: float or int dB, [frequency, time] or [channel, frequency, time], lowest frequency first.

    All but TIFF get zero mean and unit variance each.
    """

    def __init__(self, paths, image_size):
        self.paths = [Path(path) for path in paths]
        self.image_size = tuple(image_size)
        self.in_chans = len(_read(self.paths[0]))

    def __len__(self):
        return len(self.paths)

    def load(self, index, rng, epoch=0):
        return IMAGE, load_image(self.paths[index], self.image_size, self.in_chans)

    def describe(self, index, rng, epoch=0):
        return {"name": self.paths[index].name, "path": str(self.paths[index])}

    def split(self, fraction, seed):
        """Hold out whole files."""
        return split_by_group(self, [str(path) for path in self.paths], fraction, seed, "images")


def load_image(path, image_size, in_chans=1):
    """An image file as model input: float32 [C, rows, columns]."""
    values = _read(path)
    if len(values) != in_chans:
        raise UserError(f"{path}: expected {in_chans} channels like the first image; found {len(values)}")
    if not np.isfinite(values).all():
        raise UserError(f"{path}: expected finite values; found NaN or infinity")
    is_tiff = Path(path).suffix.lower() in (".tif", ".tiff")
    if is_tiff:
        if values.min() < 0:
            raise UserError(f"{path}: expected linear power of at least 0; found {values.min():g}")
        values = (10 * np.log10(values + TIFF_FLOOR) - TIFF_MIN_DB) / TIFF_RANGE_DB
    image = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))[None]
    image = F.interpolate(image, size=tuple(image_size), mode="bicubic", antialias=True)
    image = (image - TIFF_MEAN) / TIFF_STD if is_tiff else Spectrogram.normalized(image)
    return image[0].numpy()


@contextlib.contextmanager
def reading(path):
    """Raise a `UserError` where reading an image file fails in the block."""
    try:
        file_size(path)
        # Pillow warns about a truncated TIFF before it fails, and about an image half as large as its limit.
        with warnings.catch_warnings(action="ignore"):
            yield
    except UserError:
        raise
    except Exception as error:  # a damaged file ends in errors of all kinds, of memory too
        raise UserError(f"{path}: expected an image; found {not_read(path, error)}") from error


def _read(path):
    """The values of a file: [C, rows, columns], row 0 the lowest frequency."""
    suffix = Path(path).suffix.lower()
    if suffix == ".npy":
        with reading(path):
            values = np.load(path, allow_pickle=False)
    else:
        with reading(path), Image.open(path) as picture:
            # Colour pictures are colour maps of one quantity; brightness grows with it in common maps.
            values = np.asarray(picture.convert("L") if suffix in PICTURES else picture)
    if suffix in PICTURES:
        values = values[::-1]
    elif suffix != ".npy" and not np.issubdtype(values.dtype, np.floating):
        raise UserError(f"{path}: expected a TIFF of float power; found {values.dtype}")
    if values.ndim == 2:
        values = values[None]
    if values.ndim != 3 or values.dtype.kind not in "fiu" or 0 in values.shape:
        found = f"{values.dtype} {list(values.shape)}"
        raise UserError(f"{path}: expected numbers [rows, columns] or [C, rows, columns]; found {found}")
    return values
