"""The frames of MathWorks' example "Spectrum Sensing with Deep Learning to Identify 5G and LTE Signals".

Two layouts, recognised by file names, at any depth of a folder:

- as published: `{NR|LTE|LTE_NR}_frame_{i}` with .png (the spectrogram, RGB through the colour map parula),
  .hdf (the labels, an HDF4 raster image) and, in most editions, .mat (`params`);
- re-saved: `LTE_NR_{spect|labels|metadata}_frame_{i}.mat` with the variables `rxSpectrogram` and `data`.

Folders `train`, `val` and `test` may hold the parts, each with frame numbers of its own: MAE's radio fork has
`train/LTE_NR/` and `val/LTE_NR/`. Without `test`, `val` is the test part, as in the fork; a share of `train`
then validates, so that no epoch is chosen on test data.

Frequency runs to the right and time upwards: the example transposes MATLAB's centred spectrogram [frequency,
time] and flips it upside down. Column 0 is the lowest frequency, the last row the earliest time. Labels fill
the same columns, over all rows. The time direction of re-saved spectrograms is not documented; they are read
like the pictures.

Frame i with both signals holds the waveforms of NR frame i and LTE frame i, at other frequencies and through
another channel and noise. Random splits therefore keep equal numbers together.
"""

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from data import matlab
from data.hdf4 import read_raster
from data.images import reading
from data.mathworks_files import COMBINED, TECHNOLOGIES, find_frames
from data.sampling import IMAGE, Source, Subset, hold_out
from data.splits import PARTS, RECORDING
from radio.spectrogram import Spectrogram
from util.errors import UserError

# Class k of n is painted as floor(255 k / (n - 1)): 0, 127, 255 or 0, 85, 170, 255.
EDITIONS = (("Noise", "NR", "LTE"), ("Noise", "NR", "LTE", "Unknown"))

# Luma of Recommendation ITU-R BT.601. It rises along parula, except about 40 % of the way up: there it falls
# by 3 levels of 255, and a tenth of the colours share their luma with another.
LUMA = np.float32([0.299, 0.587, 0.114])

SINGLE_TO_COMBINED, COMBINED_ONLY, MIXED = PROTOCOLS = ("single_to_combined", "combined", "mixed")


class MathWorksFrames(Source):
    """Labelled frames, sorted by number.

    An image is the picture's luma as [frequency, time], lowest frequency first, resized with a triangular
    antialiasing filter, with zero mean and unit variance. Labels are resized by nearest neighbour.

    Args:
        path: folder of the frames.
        protocol: "single_to_combined" trains on frames of one technology and tests on frames of both (which
            hold the same waveforms, see above); "combined" trains and tests on frames of both; "mixed" has
            all kinds on both sides. Frames in folders of parts keep their part, and need "combined" or
            "mixed".
        image_size: (frequency rows, time columns); None: the first frame's.
        test_fraction: share of the frame numbers to test on, where the protocol draws them.
        split_seed: draws those numbers.
    """

    task = "segmentation"
    in_chans = 1

    def __init__(self, path, protocol=MIXED, image_size=None, test_fraction=0.2, split_seed=0):
        if protocol not in PROTOCOLS:
            raise UserError(f"--protocol: expected one of {', '.join(PROTOCOLS)}; found {protocol}")
        frames = find_frames(path)
        divided = frames[0].part is not None
        if divided and protocol == SINGLE_TO_COMBINED:
            raise UserError(
                f"--protocol {protocol}: expected frames without folders train and val; found {path}"
            )
        counts = {name: sum(frame.technology == name for frame in frames) for name in TECHNOLOGIES}
        singles = len(frames) - counts[COMBINED]
        lacks_kind = not counts[COMBINED] or (protocol != COMBINED_ONLY and not singles)
        if lacks_kind and not (divided and protocol == MIXED):
            kinds = (
                f"{COMBINED} frames"
                if protocol == COMBINED_ONLY
                else f"frames of one technology and {COMBINED} frames"
            )
            found = ", ".join(f"{count} {name}" for name, count in counts.items())
            raise UserError(f"{path}: expected {kinds} for --protocol {protocol}; found {found}")
        self.frames = [frame for frame in frames if protocol != COMBINED_ONLY or frame.technology == COMBINED]
        self.protocol, self.divided = protocol, divided
        self.test_fraction, self.split_seed = test_fraction, split_seed
        self.class_names = list(_edition(self.frames))
        self.image_size = tuple(image_size or _image_shape(self.frames[0])[::-1])
        self._classes = np.full(256, 255, np.uint8)  # pixel value -> class id; 255: none
        self._classes[_values(self.class_names)] = range(len(self.class_names))
        self._parameters = {}  # index -> parameters: the files hold whole resource grids, and are slow to read

    def __len__(self):
        return len(self.frames)

    @property
    def groups(self):
        """Frames of one part and number stay together: they hold the same waveforms."""
        names = [f"{frame.part} {frame.number}" if self.divided else frame.number for frame in self.frames]
        return {RECORDING: np.array(names)}

    def sample_name(self, index):
        """The name in `describe`, without reading parameters."""
        return self.frames[index].name

    def load(self, index, rng, epoch=0):
        """(IMAGE, float32 [1, F, T])."""
        image = torch.from_numpy(_turned(_read_image(self.frames[index])))[None, None]
        if image.shape[2:] != self.image_size:
            image = F.interpolate(image, size=self.image_size, mode="bilinear", antialias=True)
        return IMAGE, Spectrogram.normalized(image)[0].numpy()

    def target(self, index, epoch=0):
        """Class ids: uint8 [F, T]."""
        frame = self.frames[index]
        values, size = _read_labels(frame), _image_shape(frame)
        if values.shape != size:
            raise UserError(
                f"{frame.labels}: expected labels of {list(size)}, as the image of {frame.name} has it; "
                f"found {list(values.shape)}"
            )
        classes = self._classes[values]
        if classes.max() == 255:
            raise UserError(
                f"{frame.labels}: expected the values {_values(self.class_names)} for {self.class_names}; "
                f"found {int(values[classes == 255][0])} in {frame.name}"
            )
        classes = torch.from_numpy(_turned(classes))[None, None]
        if classes.shape[2:] != self.image_size:
            # "nearest" samples the cells' corners: labels would lie half a cell off the image.
            classes = F.interpolate(classes, size=self.image_size, mode="nearest-exact")
        return classes[0, 0].numpy()

    def describe(self, index, rng, epoch=0):
        """`snr_db` is the file's, or None. It assumes a signal power of 0 dBW: the picture's SNR differs.

        `parameters` are the file's numbers and words under the file's names.
        """
        frame = self.frames[index]
        if index not in self._parameters:
            self._parameters[index] = _read_parameters(frame.parameters) if frame.parameters else {}
        parameters = self._parameters[index]
        return {
            "name": frame.name,
            "path": str(frame.image),
            "technology": frame.technology,
            "snr_db": float(parameters["SNRdB"]) if "SNRdB" in parameters else None,
            "parameters": parameters,
        }

    def parts(self):
        """{"train", "test" and maybe "val": int64 indices}, by folders of parts or else by the protocol."""
        if self.divided:
            part_of = np.array([frame.part for frame in self.frames])
            parts = {name: np.flatnonzero(part_of == name) for name in PARTS if name in part_of}
            return parts if "test" in parts else {"train": parts["train"], "test": parts["val"]}
        if self.protocol == SINGLE_TO_COMBINED:
            is_test = np.array([frame.technology == COMBINED for frame in self.frames])
        else:
            is_test = self._drawn(np.arange(len(self)), self.test_fraction, self.split_seed)
        return {"train": np.flatnonzero(~is_test), "test": np.flatnonzero(is_test)}

    def split(self, fraction, seed):
        """(training, held-out) frames, both from the part "train"."""
        train = self.parts()["train"]
        held_out = self._drawn(train, fraction, seed)
        return Subset(self, train[~held_out]), Subset(self, train[held_out])

    def _drawn(self, indices, fraction, seed):
        """Whether each frame has a held-out number: bool [len(indices)]."""
        numbers = np.array([self.frames[index].number for index in indices])
        if len(np.unique(numbers)) < 2:
            raise UserError(
                f"{self.frames[0].image.parent}: expected at least two frame numbers to hold one out; found one"
            )
        return np.isin(numbers, list(hold_out(numbers.tolist(), fraction, seed)))


def _values(class_names):
    """Pixel values of the classes."""
    return [255 * k // (len(class_names) - 1) for k in range(len(class_names))]


def _edition(frames):
    """Class names, from the first value that only one edition has; without one, three classes."""
    values = [set(_values(names)) for names in EDITIONS]
    for frame in frames:
        if own := set(np.unique(_read_labels(frame)).tolist()) & (values[0] ^ values[1]):
            return next(names for names, known in zip(EDITIONS, values, strict=True) if own & known)
    return EDITIONS[0]


def _turned(values):
    """[time upwards, frequency], as in the pictures, to [frequency, time]."""
    return np.ascontiguousarray(values[::-1].T)


def _read_image(frame):
    """float32 [rows, columns], as stored."""
    if frame.image.suffix == ".mat":
        values = matlab.numbers(frame.image, "rxSpectrogram")
    else:
        with reading(frame.image), Image.open(frame.image) as picture:
            values = np.asarray(picture.convert("RGB"))
    if values.ndim == 3 and values.shape[2] == 3:
        # .mat arrays are in Fortran order, in which some processors sum the product in another order.
        values = np.ascontiguousarray(values, np.float32) @ LUMA
    if values.ndim != 2:
        raise UserError(
            f"{frame.image}: expected [rows, columns], or 3 colours of it; found {list(values.shape)}"
        )
    values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise UserError(f"{frame.image}: expected finite values; found NaN or infinity")
    return values


def _image_shape(frame):
    """(rows, columns) of a frame's image, without its pixels."""
    if frame.image.suffix == ".mat":
        return tuple(matlab.shape(frame.image, "rxSpectrogram")[:2])
    with reading(frame.image), Image.open(frame.image) as picture:
        return picture.height, picture.width


def _read_labels(frame):
    """Pixel values: uint8 [rows, columns], as stored."""
    if frame.labels.suffix != ".mat":
        return read_raster(frame.labels)
    values = matlab.numbers(frame.labels, "data")
    if values.ndim != 2 or not np.isin(values, np.arange(256)).all():
        raise UserError(
            f"{frame.labels}: expected integers from 0 to 255 [rows, columns]; found {values.dtype} "
            f"{list(values.shape)} from {values.min()} to {values.max()}"
        )
    return values.astype(np.uint8)


def _read_parameters(path):
    """Numbers and words of the struct `params`, or else of the whole file (the re-saved metadata)."""
    content = matlab.variables(path)
    params = np.asarray(content.get("params"))
    if params.dtype.names:
        content = {name: params[name] for name in params.dtype.names}
    plain = {name: np.asarray(value).item() for name, value in content.items() if np.asarray(value).size == 1}
    plain = {name: value for name, value in plain.items() if isinstance(value, int | float | str)}
    if not plain:
        raise UserError(f"{path}: expected the variable params; found {', '.join(content) or 'none'}")
    return plain
