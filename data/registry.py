"""The table of sources: find what a path on the command line holds, and open it."""

import os
from dataclasses import dataclass
from pathlib import Path

from data.formats import has_image_suffix, is_spectrogram_set, refuse_formats
from data.sampling import Concatenated
from data.spectrogram_set import SpectrogramSet
from data.windows import RecordingWindows
from radio.recordings import by_path, find_recordings, is_recording_file
from radio.spectrogram import PUBLISHED, Spectrogram
from util.errors import UserError, warn
from util.files import walk

SYNTHETIC = "synthetic"
DEFAULT_PRESET = "wild"

DEFAULT_IMAGE_SIZE = (224, 224)

READ = "recordings (.sigmf-meta, .sigmf, .npy, raw IQ), a spectrogram set or images (.tif, .png, .jpg, .npy)"


def add_data_arguments(parser, required=True):
    """The flags of the data that a command reads; returns their group."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data_path",
        nargs="+",
        required=required,
        metavar="PATH",
        help="recordings, spectrogram sets or images: files and folders; synthetic[:classic] for scenes",
    )
    add_recording_arguments(group)
    add_scene_arguments(group)
    group.add_argument("--scenes", type=int, default=4096, help="scenes in an epoch of --data_path synthetic")
    add_front_end_arguments(group)
    return group


def add_recording_arguments(group):
    """The flags of recordings whose files lack a rate or datatype."""
    group.add_argument(
        "--sample_rate", type=float, metavar="HZ", help="sample rate of raw and .npy recordings"
    )
    group.add_argument("--datatype", help="SigMF datatype of raw recordings, e.g. ci16_le")


def add_scene_arguments(group):
    """The flags of synthetic scenes."""
    group.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="fields of radio/scenes/config.py for synthetic scenes, e.g. snr_db=0,20 lte_ports=2",
    )


def add_front_end_arguments(group):
    group.add_argument(
        "--window_ms", type=float, help="length of a window; default 16, or that of the set or scenes"
    )
    group.add_argument("--n_fft", type=int, help="samples per FFT; default 1024, or those of the set")
    group.add_argument(
        "--input_size",
        type=int,
        nargs="+",
        metavar="CELLS",
        help="image size: one number, or rows and columns; default 224, or that of the set",
    )


@dataclass
class Found:
    """What paths hold: opened spectrogram sets, paths of recordings and images, and presets of scenes."""

    sets: list
    recordings: list
    images: list
    presets: list


def find(paths):
    """Look at files and folders. A folder holds sets, else recordings, else images; what comes first counts.

    A folder with the sets `train` and `val`, as from main_synthesize.py, is `train`, which holds out `val`.
    """
    found = Found([], [], [], [])
    for path in paths:
        name, _, preset = path.partition(":")
        if name == SYNTHETIC:
            if found.presets:
                raise UserError(f"--data_path {path}: expected synthetic once; found it twice")
            found.presets.append(preset or DEFAULT_PRESET)
            continue
        if not os.path.exists(path):
            raise UserError(f"--data_path {path}: expected a file or folder; found none")
        path = str(path)
        refuse_formats(path, READ)
        folders, files = walk(path, _refused) if os.path.isdir(path) else ([], [path])
        sets = [folder for folder in folders if is_spectrogram_set(folder)]
        recordings = [file for file in files if is_recording_file(file)]
        known = set(recordings)
        images = [file for file in files if file not in known and has_image_suffix(file)]
        if is_spectrogram_set(Path(path, "train")):
            held_out = Path(path, "val")
            found.sets.append(
                SpectrogramSet(Path(path, "train"), held_out if is_spectrogram_set(held_out) else None)
            )
        elif sets:
            found.sets += map(SpectrogramSet, sets)
        elif recordings:
            found.recordings += by_path(recordings)
            if images:
                warn(f"{path}: {len(images)} image files beside the recordings are left out")
        elif images:
            found.images += images
        else:
            raise UserError(f"--data_path {path}: expected {READ}; found none among {len(files)} files")
    return found


def scene_settings(preset, args):
    """The `SceneConfig` of a preset with the flags' settings."""
    from data.synthetic import scene_config

    return scene_config(preset, args.window_ms, args.set)


def _refused(error):
    raise UserError(
        f"--data_path {error.filename}: expected a folder that can be read; {error.strerror}"
    ) from error


def image_size(args):
    """(rows, columns) of `--input_size`, or None."""
    size = args.input_size
    if size is not None and (len(size) > 2 or min(size) < 1):
        raise UserError(f"--input_size: expected one or two positive numbers; found {size}")
    return size and (*size, *size)[:2]


def front_end_for(found, args, pretrained=None, flags_decide=False, silent=False):
    """The front end: that of the sets found, else of the flags, the pretrained weights or the defaults.

    Warns about a front end other than that of the weights.

    Args:
        args: of the parser with `add_data_arguments`.
        pretrained: front-end settings of the weights, or None.
        flags_decide: flags may differ from the weights; otherwise only sets and `--input_size` may.
        silent: do not warn.
    """
    if args.window_ms is not None and not 0 < args.window_ms < float("inf"):
        raise UserError(f"--window_ms: expected a positive number; found {args.window_ms}")
    size = image_size(args)
    given = {
        "n_fft": args.n_fft,
        "duration_s": args.window_ms and args.window_ms / 1e3,
        "image_size": size and list(size),
    }
    flags = {
        "n_fft": "--n_fft",
        "duration_s": "--window_ms",
        "image_size": "--input_size",
        "normalize": "normalize",
    }
    settings = {key: value for key, value in given.items() if value is not None}
    for preset in found.presets:
        durations = scene_settings(preset, args).duration_ms
        if len(durations) == 1:
            settings.setdefault("duration_s", durations[0] / 1e3)
    for spectrogram_set in found.sets:
        for key, value in spectrogram_set.front_end_settings.items():
            if settings.setdefault(key, value) != value:
                raise UserError(
                    f"{spectrogram_set.path}: expected a spectrogram set made with {flags[key]} "
                    f"{_shown(key, settings[key])}; found {_shown(key, value)}"
                )
    pretrained = pretrained if pretrained and "n_fft" in pretrained else {}
    for key, value in pretrained.items():
        free = flags_decide or found.sets or key == "image_size"
        if settings.setdefault(key, value) != value and not free:
            raise UserError(
                f"{flags[key]}: expected {_shown(key, value)}, which the weights were trained with; "
                f"found {_shown(key, settings[key])}"
            )
    defaults = {**PUBLISHED, "image_size": list(DEFAULT_IMAGE_SIZE)}
    try:
        front_end = Spectrogram(**{**defaults, **settings})
    except ValueError as error:
        raise UserError(f"--n_fft, --window_ms, --input_size: {error}") from error
    if not found.images and not silent:
        compare(front_end.settings(), pretrained)
    return front_end


def compare(ours, theirs):
    """Warn if weights were trained with cells of another duration or bandwidth.

    Args:
        ours: settings of a front end; theirs: those of the weights, empty or None without.
    """
    if not theirs or "n_fft" not in theirs:
        return
    (here, our_time, our_band), (there, their_time, their_band) = map(_cells, (ours, theirs))
    time, band = our_time / their_time, our_band / their_band
    if (our_time, our_band, ours["n_fft"]) != (their_time, their_band, theirs["n_fft"]):
        warn(
            f"front end: windows of {here}; the weights were trained on {there}: a patch spans {time:.3g} times the "
            f"time and {band:.3g} times the band, so expect to need more data or epochs"
        )


def _cells(settings):
    """(the front end in words, time and bandwidth of a cell, relative)."""
    (rows, columns), duration_s = settings["image_size"], settings["duration_s"]
    return (
        f"{1e3 * duration_s:g} ms as {rows} x {columns}, FFT {settings['n_fft']}",
        duration_s / columns,
        1 / rows,
    )


def _shown(key, value):
    return f"{value * 1e3:g}" if key == "duration_s" else value


def open_source(found, front_end, args, seed=0, on_device=False):
    """One source of everything found.

    Args:
        args: of the parser with `add_data_arguments`; seed: of scenes.
        on_device: make scenes on the training device.
    """
    if found.images and (found.sets or found.recordings or found.presets):
        raise UserError(
            "--data_path: expected images alone, or recordings, spectrogram sets and scenes; found both"
        )
    if args.set and not found.presets:
        raise UserError(f"--set: expected --data_path {SYNTHETIC} with it; found none")
    sources = list(found.sets)
    for preset in found.presets:
        from data.synthetic import SceneMaker, SyntheticScenes

        maker = SceneMaker(scene_settings(preset, args), seed)
        sources.append(SyntheticScenes(maker, args.scenes, front_end, on_device))
    if found.recordings:
        recordings = find_recordings(found.recordings, args.sample_rate, args.datatype)
        sources.append(RecordingWindows.from_recordings(recordings, front_end))
    if found.images:
        from data.images import ImageFiles

        sources.append(ImageFiles(found.images, front_end.image_size))
    return sources[0] if len(sources) == 1 else Concatenated(sources)
