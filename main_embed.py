"""Features of windows from a pretrained or fine-tuned encoder: an .npz with a row for each window, and a picture.

    python main_embed.py captures/ --weights checkpoint-last.pth --output features.npz
    python main_embed.py captures/ --weights model.safetensors --task segmentation --classes Noise,NR,LTE --knn
    python main_embed.py folder_a_class/ --weights model.safetensors --task classification --knn 10
    python main_embed.py sets/scenes --weights model.safetensors --patches
    python main_embed.py csi.npz --weights model.safetensors --knn --leave_out user

The same command goes on with a run that was stopped. `np.load("features.npz")` has, a row a window: `cls` (class token) and
`mean` (of the patches), float32 [N, D]; `patches`, float16 [N, L, D]; `file`, `start_s`, `sample_rate_hz`, `center_freq_hz`
(NaN where unknown); `label`, int64, a place in `classes` (-1 where unknown). And `weights`, `preset`, `front_end` (JSON).
"""

import hashlib
import json
import time
from pathlib import Path

import numpy as np
import torch

import models_presets
import models_vit
from data import registry, tasks
from data.annotated import AnnotatedWindows, TiledRecordings
from data.formats import is_spectrogram_set
from data.images import ImageFiles
from data.splits import PARTS, relative_paths
from engine_embed import Rows, Windows, embed, nearest_neighbours, principal_components, write_features
from radio.recordings import find_recordings
from util import distributed, pretrained
from util.device import AMP_CHOICES, keep_freed_memory, mixed_precision, pick_amp, pick_device
from util.errors import RunError, UserError, reported, warn
from util.files import atomic_path, writable_folder
from util.flags import Parser
from util.metrics import aligned
from util.plots import scatter_figure

DEFAULT_K = 20
PICTURE_POINTS = 20_000


def get_args_parser():
    parser = Parser("Features of windows from an encoder.")
    parser.add_argument("data_path", nargs="+", metavar="DATA",
                        help="recordings, spectrogram sets or images: files and folders; or what --task takes")
    parser.add_argument("--weights", required=True, metavar="FILE|NAME",
                        help="a checkpoint, an --export, a released name or an address on the Hugging Face hub")
    parser.add_argument("--output", default="features.npz", metavar="FILE.npz", help="with the picture FILE.png beside it")
    parser.add_argument("--patches", action="store_true", help="also keep the features of every patch")
    parser.add_argument("--knn", nargs="?", type=int, const=DEFAULT_K, metavar="K",
                        help=f"print k-nearest-neighbour accuracy on labels, each recording left out in turn; {DEFAULT_K}")
    parser.add_argument("--leave_out", metavar="COLUMN", help="what --knn leaves out, in place of the recording: user, ...")

    data = parser.add_argument_group("data")
    data.add_argument("--task", choices=tasks.TASKS, help="how DATA is labelled, as in main_finetune.py")
    data.add_argument("--classes", metavar="NAME,NAME", help="labels of annotations, first the background")
    registry.add_recording_arguments(data)
    registry.add_front_end_arguments(data)
    # What other commands ask of the tables of tasks and sources.
    parser.set_defaults(set=[], scenes=0, protocol=None, seed=0, val_fraction=0.1, test_fraction=0.2)

    run = parser.add_argument_group("run")
    run.add_argument("--batch_size", type=int, default=64)
    pretrained.add_arguments(run)
    run.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    run.add_argument("--amp", default="auto", choices=AMP_CHOICES, help="mixed precision; auto: as the machine computes")
    run.add_argument("--num_workers", type=int, default=distributed.default_workers(), help="data loading processes")
    return parser


def check_args(args):
    """Refuse values that no run can have, before anything is opened."""
    for name, low in (("batch_size", 1), ("num_workers", 0), ("knn", 1)):
        if (value := getattr(args, name)) is not None and value < low:
            raise UserError(f"--{name}: expected at least {low}; found {value}")
    if args.leave_out and not args.knn:
        raise UserError("--leave_out: expected --knn with it; found none")
    output = Path(args.output)
    if output.suffix != ".npz":
        raise UserError(f"--output {output}: expected a name that ends in .npz; found {output.suffix or 'no suffix'}")
    if output.exists():
        raise UserError(f"--output {output}: expected a new file; it exists already")
    if any(path.partition(":")[0] == registry.SYNTHETIC for path in args.data_path):
        raise UserError(f"DATA {registry.SYNTHETIC}: expected recordings, sets or images (main_synthesize.py makes them)")


def open_data(args, weights):
    """(sources, front end, its settings), with the front end that the weights were trained with."""
    try:
        sources, front_end, settings = (_labelled if args.task else _unlabelled)(args, weights.front_end)
    except UserError as error:
        raise UserError(str(error).replace("--data_path", "DATA")) from error
    if args.classes and not any(isinstance(source, AnnotatedWindows) for source in sources):
        raise UserError("--classes: expected --task segmentation and annotated recordings with it; found other data")
    if "n_fft" in settings and "n_fft" not in (weights.front_end or {}):
        warn(f"{args.weights}: states no front end for IQ; windows are as {settings}")
    for source in sources:
        if hasattr(source, "fit"):
            statistics = (weights.front_end or {}).get("normalization")
            source.set_normalization(statistics) if statistics else source.fit(range(len(source)))
            settings["normalization"] = source.normalization()
            print(f"CSI: mean and standard deviation {'of the weights' if statistics else 'of DATA'}")
    return sources, front_end, settings


def _labelled(args, pretrained):
    opened = tasks.TASKS[args.task](args, pretrained, False)
    parts = [part.source for part in opened.parts.values()] if isinstance(opened.parts, dict) else [opened.parts]
    return parts, opened.front_end, opened.settings


def _unlabelled(args, pretrained):
    """Sources of all that the paths hold; sets have the labels or masks that lie in them."""
    paths = []
    for path in args.data_path:
        paths += [part for name in PARTS if is_spectrogram_set(part := str(Path(path, name)))] or [path]
    found = registry.find(paths)
    front_end = registry.front_end_for(found, args, pretrained)
    for one in found.sets:
        one.masks = None if one.labels else one.masks
    sources = [*found.sets]
    if found.recordings:
        sources.append(TiledRecordings(find_recordings(found.recordings, args.sample_rate, args.datatype), front_end))
    if found.images:
        sources.append(ImageFiles(found.images, front_end.image_size))
    return sources, front_end, front_end.settings()


def open_encoder(args, weights, source):
    """(preset, `models_vit.Encoder` with the weights); prints what was loaded."""
    preset = models_presets.preset_of(weights, args.weights)
    args.norm_eps = pretrained.pick_norm_eps(args.norm_eps, weights)
    model = models_vit.create_encoder(preset, source.image_size, source.in_chans, norm_eps=args.norm_eps)
    loaded = weights.load_into(model, args.weights)
    adapted = f"; adapted: {', '.join(loaded.adapted)}" if loaded.adapted else ""
    print(f"{args.weights}: {preset}, {len(loaded.loaded)} tensors loaded, {len(loaded.left)} left{adapted}; epsilon of "
          f"norms inside blocks {loaded.norm_eps:g}")  # fmt: skip
    return preset, model.eval()


def digest(model):
    """sha256 of a model's tensors."""
    found = hashlib.sha256()
    for name, value in model.state_dict().items():
        found.update(name.encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def check_labels(windows):
    if not windows.class_names:
        raise UserError("--knn: expected labelled data (--task says how it is labelled); found no labels")
    if windows.group.max() == 0:
        raise UserError(f"--knn: expected two recordings or more, to leave each out in turn; found one, {windows.names[0]}")


def print_knn(rows, windows, args, device):
    """The accuracy of k nearest neighbours on both features, and what is left out of it."""
    names, labels = windows.class_names, rows.read("label", 0, rows.done)
    recordings = [len(np.unique(windows.group[labels == number])) for number in range(len(names))]
    scored = (labels >= 0) & (np.array(recordings)[labels] > 1)
    for name, count in zip(names, recordings, strict=True):
        if count == 1:
            print(f"k-NN: {name} is in one recording only, which leaves none to find it by: not scored")
    if not scored.any():
        warn("--knn: no class is in two recordings; there is nothing to score")
        return
    counts = np.bincount(labels[scored], minlength=len(names))
    print(f"k-NN: cosine, k = {args.knn}, votes weighted by exp(s / 0.07), leave-{args.leave_out or 'recording'}-out: "
          f"{scored.sum()} windows of {len(np.unique(windows.group[scored]))}")  # fmt: skip
    lines = [("", "accuracy", "mean of the classes")]
    for title, name in (("class token", "cls"), ("mean of patches", "mean")):
        results = nearest_neighbours(rows, name, windows, scored, args.knn, device)
        lines.append((title, f"{results['pixel_accuracy']:.1%}", f"{results['mean_accuracy']:.1%}"))
    chance = counts.max() / counts.sum()
    lines.append((f"chance (always {names[counts.argmax()]})", f"{chance:.1%}", f"{1 / (counts > 0).sum():.1%}"))
    print(aligned(lines))


def draw(path, rows, windows):
    """The picture: two principal components of the mean of patches, coloured by class, else by file."""
    points, shares = principal_components(rows, "mean")
    labelled = bool(windows.class_names)
    groups = rows.read("label", 0, rows.done) if labelled else windows.file
    names = windows.class_names if labelled else relative_paths(windows.names)
    step = -(-len(points) // PICTURE_POINTS)
    caption = f"mean of patches, {len(points)} windows by {'class' if labelled else 'file'}"
    caption += f", one in {step} drawn" if step > 1 else ""
    with atomic_path(path) as temporary:
        scatter_figure(points[::step], groups[::step], names, shares, caption).savefig(temporary, format="png")


def main(args):
    check_args(args)
    keep_freed_memory()
    device = pick_device(args.device)
    weights = pretrained.read_weights(args.weights, args.offline)
    args.task = args.task or ("sensing" if args.data_path[0].endswith(".npz") else None)
    sources, front_end, settings = open_data(args, weights)
    windows = Windows(sources, args.leave_out)
    if args.knn:
        check_labels(windows)
    preset, model = open_encoder(args, weights, windows.source)
    width = model.cls_token.shape[-1]
    args.amp = pick_amp(args.amp, device, width)
    autocast, _ = mixed_precision(args.amp, device)

    columns = {"cls": (np.float32, (width,)), "mean": (np.float32, (width,))}
    columns |= {"patches": (np.float16, (model.num_patches, width))} if args.patches else {}
    columns |= {"label": (np.int64, ())} if windows.class_names else {}
    about = {"weights": args.weights, "preset": preset, "front_end": json.dumps(settings),
             **({"classes": windows.class_names} if windows.class_names else {})}  # fmt: skip
    key = {"data": args.data_path, "windows": len(windows), "model": digest(model), "norm_eps": args.norm_eps, **about,
           "task": args.task, "columns": list(columns), "batch_size": args.batch_size, "amp": args.amp,
           "device": device.type}  # fmt: skip

    output = Path(args.output)
    picture, partial = output.with_suffix(".png"), output.with_name(f".{output.name}.partial")
    try:
        with writable_folder(output.parent, f"--output {output}"), Rows(partial, columns, key) as rows:
            before, started = rows.done, time.perf_counter()
            embed(model.to(device), windows, front_end.to(device), device, autocast, rows, args.batch_size, args.num_workers)
            speed = (rows.done - before) / (time.perf_counter() - started)
            if args.knn:
                print_knn(rows, windows, args, device)
            draw(picture, rows, windows)
            write_features(output, rows, windows, about)
    except KeyboardInterrupt as error:
        raise RunError(f"--output {output}: stopped; the same command goes on") from error
    except OSError as error:
        raise UserError(f"--output {output}: expected a file that can be written; {error}") from error
    print(f"{output}: {len(windows)} rows of {width}, {speed:.1f} windows/s; see {picture}")


if __name__ == "__main__":
    with reported():
        main(get_args_parser().parse_args())
