"""The table of sources: find what a path on the command line holds, and open it."""

import os
from dataclasses import dataclass
from pathlib import Path

from data.formats import has_image_suffix, is_spectrogram_set, refuse_formats
from data.sampling import Concatenated
from data.spectrogram_set import SpectrogramSet
from data.windows import RecordingWindows
from radio.front_end import FRONT_ENDS, from_settings, kind_of, takes_iq
from radio.recordings import by_path, find_recordings, is_recording_file, warn_of_others
from radio.spectrogram import PUBLISHED
from util.errors import UserError, warn
from util.files import walk
from util.flags import hertz

SYNTHETIC = "synthetic"
DEFAULT_PRESET = "wild"

DEFAULT_IMAGE_SIZE = (224, 224)

# The flags of each front end, and the flag of each of its settings.
FLAGS = {"band": ("--window_ms", "--n_fft"), "grid": ("--row_khz", "--column_us", "--channels")}
FLAG_OF = {
    "kind": "--front_end",
    "n_fft": "--n_fft",
    "duration_s": "--window_ms",
    "image_size": "--input_size",
}
FLAG_OF |= {"normalize": "normalize", "row_khz": "--row_khz", "narrow_row_khz": "--row_khz"}
FLAG_OF |= {"column_us": "--column_us", "channels": "--channels"}
_ROWS = "grid: bandwidth of a row, and of the rows of narrow recordings; default 180 30"

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
        "--sample_rate", type=hertz, metavar="HZ", help="sample rate of raw and .npy recordings: 20e6, 20M"
    )
    group.add_argument("--datatype", help="SigMF datatype of raw recordings, e.g. ci16_le")
    group.add_argument("--swap_iq", action="store_true", help="in recordings, each Q comes before its I")


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
    add = group.add_argument
    add("--front_end", choices=FRONT_ENDS, help="band: the whole band in an image; grid: images of one scale")
    add("--window_ms", type=float, help="band: length of a window; default 16, or that of the set or scenes")
    add("--n_fft", type=int, help="band: samples per FFT; default 1024, or those of the set")
    add("--row_khz", type=float, nargs="+", metavar="KHZ", help=_ROWS)
    add("--column_us", type=float, metavar="US", help="grid: duration of a column; default 35.71")
    add("--channels", metavar="NAMES", help="grid: power, the default, or power,cp: cyclic prefixes too")
    sides = "image size: one number, or rows and columns; default 224 (grid: 112 560), or that of the set"
    add("--input_size", type=int, nargs="+", metavar="CELLS", help=sides)


@dataclass
class Found:
    """What paths hold: opened spectrogram sets, paths of recordings and images, and presets of scenes."""

    sets: list
    recordings: list
    images: list
    presets: list


def find(paths, raw=False):
    """Look at files and folders. A folder holds sets, else recordings, else images; what comes first counts.

    A folder with the sets `train` and `val`, as from main_synthesize.py, is `train`, which holds out `val`.
    `raw`: a file that is named, not found, is a recording whatever its suffix.
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
        if raw and not os.path.isdir(path):
            found.recordings.append(path)
            continue
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
            known |= set(images)
            warn_of_others(path, [file for file in files if file not in known])
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
    pretrained = pretrained if takes_iq(pretrained) else {}
    try:
        pretrained and from_settings(pretrained)
    except (TypeError, ValueError) as error:
        raise UserError(f"front end of the weights: expected settings that can be; {error}") from error
    if found.images:
        refuse_front_end(args, found.images[0])
    known = [one.front_end_settings for one in found.sets] or ([pretrained] if pretrained else [])
    kind = args.front_end or (kind_of(known[0]) if known else "band")
    if pretrained and kind != kind_of(pretrained) and not (flags_decide or found.sets):
        expected = f"{kind_of(pretrained)}, which the weights were trained with"
        raise UserError(f"--front_end: expected {expected}; found {kind}")
    settings = _given(found, args, kind)
    for spectrogram_set in found.sets:
        theirs = spectrogram_set.front_end_settings
        for key, value in ({"kind": kind_of(theirs)} | theirs).items():
            if settings.setdefault(key, value) != value:
                raise UserError(
                    f"{spectrogram_set.path}: expected a spectrogram set made with {FLAG_OF[key]} "
                    f"{_shown(key, settings[key])}; found {_shown(key, value)}"
                )
    for key, value in pretrained.items() if pretrained and kind == kind_of(pretrained) else ():
        free = flags_decide or found.sets or key == "image_size"
        if settings.setdefault(key, value) != value and not free:
            raise UserError(
                f"{FLAG_OF[key]}: expected {_shown(key, value)}, which the weights were trained with; "
                f"found {_shown(key, settings[key])}"
            )
    if kind == "band":
        settings = {**PUBLISHED, "image_size": list(DEFAULT_IMAGE_SIZE), **settings}
        settings.pop("kind")
    try:
        front_end = from_settings(settings)
    except (TypeError, ValueError) as error:
        raise UserError(f"{', '.join(FLAGS[kind])}, --input_size: {error}") from error
    if not found.images and not silent:
        compare(front_end.settings(), pretrained)
    return front_end


def refuse_front_end(args, path):
    """Raise a `UserError` for flags of a front end of IQ: the data at `path` are something else."""
    for flag in ("--front_end", *FLAGS["grid"]):
        if getattr(args, flag[2:], None) is not None:
            raise UserError(f"{flag}: expected IQ of a known sample rate with it; found {path}")


def _given(found, args, kind):
    """Settings of a front end by the flags, and by the length of scenes."""
    for other, names in FLAGS.items():
        given = [flag for flag in names if getattr(args, flag[2:], None) is not None]
        if other != kind and given:
            raise UserError(f"{given[0]}: expected --front_end {other} with it; found {kind}")
    settings = {"kind": kind}
    if size := image_size(args):
        settings["image_size"] = list(size)
    if kind == "grid":
        if rows := args.row_khz:
            if len(rows) > 2:
                raise UserError(f"--row_khz: expected one or two numbers; found {len(rows)}")
            settings |= {"row_khz": rows[0], "narrow_row_khz": rows[1] if len(rows) > 1 else None}
        if args.column_us is not None:
            settings["column_us"] = args.column_us
        if args.channels:
            settings["channels"] = args.channels.split(",")
        return settings
    if args.window_ms is not None:
        if not 0 < args.window_ms < float("inf"):
            raise UserError(f"--window_ms: expected a positive number; found {args.window_ms}")
        settings["duration_s"] = args.window_ms / 1e3
    if args.n_fft is not None:
        settings["n_fft"] = args.n_fft
    for preset in found.presets:
        durations = scene_settings(preset, args).duration_ms
        if len(durations) == 1:
            settings.setdefault("duration_s", durations[0] / 1e3)
    return settings


def compare(ours, theirs):
    """Warn if weights were trained with cells of another duration or bandwidth.

    Args:
        ours: settings of a front end; theirs: those of the weights, empty or None without.
    """
    if not takes_iq(theirs):
        return
    (here, our_time, our_band), (there, their_time, their_band) = map(_cells, (ours, theirs))
    if kind_of(ours) != kind_of(theirs):
        warn(f"front end: {here}; the weights were trained on {there}: expect to need more data or epochs")
        return
    time, band = our_time / their_time, our_band / their_band
    if here.partition(" as ")[0] != there.partition(" as ")[0] or (time, band) != (1, 1):
        warn(
            f"front end: {here}; the weights were trained on {there}: a patch spans {time:.3g} times the "
            f"time and {band:.3g} times the band, so expect to need more data or epochs"
        )


def _cells(settings):
    """(the front end in words, time and bandwidth of a cell, relative)."""
    front_end = from_settings(settings)
    rows, columns = front_end.image_size
    if front_end.pads:
        cells, channels = (
            f"{front_end.row_khz:g} kHz x {front_end.column_us:.4g} us",
            ",".join(front_end.channels),
        )
        return f"cells of {cells}, {channels}, as {rows} x {columns}", front_end.column_us, front_end.row_khz
    duration_s = settings["duration_s"]
    about = f"windows of {1e3 * duration_s:g} ms, FFT {settings['n_fft']}, as {rows} x {columns}"
    return about, duration_s / columns, 1 / rows


def _shown(key, value):
    if key == "duration_s":
        return f"{value * 1e3:g}"
    if key == "narrow_row_khz":
        return f"narrow rows of {value:g}" if value else "no narrow rows"
    return ",".join(value) if key == "channels" else value


def recordings_of(found, args, annotated=False):
    """The `Recording`s in what was found; `annotated`: see `find_recordings`."""
    given = args.sample_rate, args.datatype, args.swap_iq
    return find_recordings(found.recordings, *given, annotated=annotated)


def is_raw(args):
    """Whether the flags say how to read any file."""
    return args.sample_rate is not None and args.datatype is not None


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
        recordings = recordings_of(found, args)
        sources.append(RecordingWindows.from_recordings(recordings, front_end))
    if found.images:
        from data.images import ImageFiles

        sources.append(ImageFiles(found.images, front_end.image_size))
    return sources[0] if len(sources) == 1 else Concatenated(sources)
