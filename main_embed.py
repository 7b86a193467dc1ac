"""Compute features of windows by a pretrained or fine-tuned encoder: an .npz with a row per window, and a
picture.

    python main_embed.py captures/ --weights checkpoint-last.pth --output features.npz
    python main_embed.py captures/ --weights model.safetensors --task segmentation --classes Noise,NR,LTE
    --knn python main_embed.py folder_a_class/ --weights model.safetensors --task classification --knn 10
    python main_embed.py sets/scenes --weights model.safetensors --patches
    python main_embed.py csi.npz --weights model.safetensors --knn --leave_out user

The same command resumes a stopped run. `np.load("features.npz")` has a row per window: `cls` (class token)
and `mean` (of the patches), float32 [N, D]; `patches`, float16 [N, L, D]; `file`, `start_s`,
`sample_rate_hz`, `center_freq_hz`, `first_row` (of images of the front end `grid`; NaN if unknown); `label`,
int64, a place in `classes` (-1 if unknown). It also has `weights`, `preset`, `front_end` (JSON).
"""

from util import interrupts  # noqa: F401, first: Ctrl-C may come while libraries are imported

# isort: split
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
from radio.front_end import takes_iq
from util import distributed, pretrained
from util.device import AMP_CHOICES, keep_freed_memory, mixed_precision, pick_amp, pick_device
from util.errors import UserError, one_line, reported, stopped, warn
from util.files import atomic_path, writable_folder
from util.flags import Parser
from util.metrics import aligned
from util.plots import scatter_figure

DEFAULT_K = 20
PICTURE_POINTS = 20_000


def get_args_parser():
    parser = Parser("Features of windows from an encoder.")
    sources = "recordings, spectrogram sets or images: files and folders; or the data of --task"
    parser.add_argument("data_path", nargs="+", metavar="DATA", help=sources)
    weights = "a checkpoint, an --export, a released name or an address on the Hugging Face hub"
    parser.add_argument("--weights", required=True, metavar="FILE|NAME", help=weights)
    output = "the picture is FILE.png beside it"
    parser.add_argument("--output", default="features.npz", metavar="FILE.npz", help=output)
    parser.add_argument("--patches", action="store_true", help="also keep the features of every patch")
    knn = f"print k-nearest-neighbour accuracy on labels, leaving each recording out in turn; {DEFAULT_K}"
    parser.add_argument("--knn", nargs="?", type=int, const=DEFAULT_K, metavar="K", help=knn)
    parser.add_argument("--leave_out", metavar="COLUMN", help="for --knn, instead of the recording: user")

    data = parser.add_argument_group("data")
    data.add_argument("--task", choices=tasks.TASKS, help="how DATA is labelled, as in main_finetune.py")
    data.add_argument("--classes", metavar="NAME,NAME", help="labels of annotations, first the background")
    registry.add_recording_arguments(data)
    registry.add_front_end_arguments(data)
    # Flags of other commands that `data.tasks` and `data.registry` read.
    parser.set_defaults(set=[], scenes=1, protocol=None, seed=0, val_fraction=0.1, test_fraction=0.2)

    run = parser.add_argument_group("run")
    run.add_argument("--batch_size", type=int, default=64)
    pretrained.add_arguments(run)
    run.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    amp = "mixed precision; auto: by the machine"
    run.add_argument("--amp", default="auto", choices=AMP_CHOICES, help=amp)
    workers = distributed.default_workers()
    run.add_argument("--num_workers", type=int, default=workers, help="data loading processes")
    return parser


def check_args(args):
    """Check the flags before anything is opened."""
    args.check_ranges()
    if args.leave_out and not args.knn:
        raise UserError("--leave_out: expected --knn with it; found none")
    output = Path(args.output)
    if output.suffix != ".npz":
        found = output.suffix or "no suffix"
        raise UserError(f"--output {output}: expected a name that ends in .npz; found {found}")
    if output.exists():
        raise UserError(f"--output {output}: expected a new file; it exists already")
    if any(path.partition(":")[0] == registry.SYNTHETIC for path in args.data_path):
        expected = "recordings, sets or images (main_synthesize.py makes them)"
        raise UserError(f"DATA {registry.SYNTHETIC}: expected {expected}")


def open_data(args, weights):
    """(sources, front end, its settings); the front end is that of the weights."""
    try:
        sources, front_end, settings = (_labelled if args.task else _unlabelled)(args, weights.front_end)
    except UserError as error:
        raise UserError(str(error).replace("--data_path", "DATA")) from error
    if args.classes and not any(isinstance(source, AnnotatedWindows) for source in sources):
        expected = "--task segmentation and annotated recordings with it"
        raise UserError(f"--classes: expected {expected}; found other data")
    if takes_iq(settings) and not takes_iq(weights.front_end):
        warn(f"{args.weights}: no front end for IQ in the file; windows are as {settings}")
    for source in sources:
        if hasattr(source, "fit"):
            statistics = (weights.front_end or {}).get("normalization")
            source.set_normalization(statistics) if statistics else source.fit(range(len(source)))
            settings["normalization"] = source.normalization()
            print(f"CSI: mean and standard deviation {'of the weights' if statistics else 'of DATA'}")
    return sources, front_end, settings


def _labelled(args, pretrained):
    opened = tasks.TASKS[args.task](args, pretrained, False)
    parts = opened.parts
    sources = [part.source for part in parts.values()] if isinstance(parts, dict) else [parts]
    return sources, opened.front_end, opened.settings


def _unlabelled(args, pretrained):
    """All sources in the paths; spectrogram sets with their labels or masks."""
    paths = []
    for path in args.data_path:
        paths += [part for name in PARTS if is_spectrogram_set(part := str(Path(path, name)))] or [path]
    found = registry.find(paths, registry.is_raw(args))
    front_end = registry.front_end_for(found, args, pretrained)
    for one in found.sets:
        one.masks = None if one.labels else one.masks
    sources = [*found.sets]
    if found.recordings:
        recordings = registry.recordings_of(found, args)
        sources.append(TiledRecordings(recordings, front_end))
    if found.images:
        sources.append(ImageFiles(found.images, front_end.image_size))
    return sources, front_end, front_end.settings()


def open_encoder(args, weights, source, pads):
    """(preset, `models_vit.Encoder` with the weights); it prints a line about the tensors."""
    preset = models_presets.preset_of(weights, args.weights)
    args.norm_eps = pretrained.pick_norm_eps(args.norm_eps, weights)
    model = models_vit.create_encoder(preset, source.image_size, source.in_chans, norm_eps=args.norm_eps)
    model.pads = pads
    loaded = weights.load_into(model, args.weights)
    adapted = f"; adapted: {', '.join(loaded.adapted)}" if loaded.adapted else ""
    counts = f"{len(loaded.loaded)} tensors loaded, {len(loaded.left)} left{adapted}"
    print(f"{args.weights}: {preset}, {counts}; epsilon of norms inside blocks {loaded.norm_eps:g}")
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
        expected = "two recordings or more, to leave each out in turn"
        raise UserError(f"--knn: expected {expected}; found one, {windows.names[0]}")


def print_knn(rows, windows, args, device):
    """Print the accuracy of k nearest neighbours on both features, and the classes that are not scored."""
    names, labels = windows.class_names, rows.read("label", 0, rows.done)
    recordings = [len(np.unique(windows.group[labels == number])) for number in range(len(names))]
    scored = (labels >= 0) & (np.array(recordings)[labels] > 1)
    for name, count in zip(names, recordings, strict=True):
        if count == 1:
            print(f"k-NN: {name} is not scored: it is in one recording only")
    if not scored.any():
        warn("--knn: no class is in two recordings; there is nothing to score")
        return
    counts = np.bincount(labels[scored], minlength=len(names))
    apart = f"leave-{args.leave_out or 'recording'}-out"
    how = f"cosine, k = {args.knn}, votes weighted by exp(s / 0.07), {apart}"
    print(f"k-NN: {how}: {scored.sum()} windows of {len(np.unique(windows.group[scored]))}")
    lines = [("", "accuracy", "mean of the classes")]
    for title, name in (("class token", "cls"), ("mean of patches", "mean")):
        results = nearest_neighbours(rows, name, windows, scored, args.knn, device)
        lines.append((title, f"{results['pixel_accuracy']:.1%}", f"{results['mean_accuracy']:.1%}"))
    chance, mean_chance = counts.max() / counts.sum(), 1 / (counts > 0).sum()
    lines.append((f"chance (always {names[counts.argmax()]})", f"{chance:.1%}", f"{mean_chance:.1%}"))
    print(aligned(lines))


def draw(path, rows, windows):
    """Draw two principal components of `mean`, coloured by class, or by file without classes."""
    points, shares = principal_components(rows, "mean")
    labelled = bool(windows.class_names)
    groups = rows.read("label", 0, rows.done) if labelled else windows.file
    names = windows.class_names if labelled else relative_paths(windows.names)
    step = -(-len(points) // PICTURE_POINTS)
    caption = f"mean of patches, {len(points)} windows by {'class' if labelled else 'file'}"
    caption += f", one in {step} drawn" if step > 1 else ""
    figure = scatter_figure(points[::step], groups[::step], names, shares, caption)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


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
    preset, model = open_encoder(args, weights, windows.source, front_end.pads)
    width = model.cls_token.shape[-1]
    args.amp = pick_amp(args.amp, device, width)
    autocast, _ = mixed_precision(args.amp, device)

    columns = {"cls": (np.float32, (width,)), "mean": (np.float32, (width,))}
    columns |= {"patches": (np.float16, (model.num_patches, width))} if args.patches else {}
    columns |= {"label": (np.int64, ())} if windows.class_names else {}
    about = {"weights": args.weights, "preset": preset, "front_end": json.dumps(settings)}
    about |= {"classes": windows.class_names} if windows.class_names else {}
    key = {"data": args.data_path, "windows": len(windows), "model": digest(model), "columns": list(columns)}
    key |= {name: getattr(args, name) for name in ("norm_eps", "task", "batch_size", "amp")}
    key |= {"device": device.type, **about}

    output = Path(args.output)
    picture, partial = output.with_suffix(".png"), output.with_name(f".{output.name}.partial")
    kept = stopped(f"--output {output}: finished rows are kept")
    try:
        with kept, writable_folder(output.parent, f"--output {output}"), Rows(partial, columns, key) as rows:
            before, started = rows.done, time.perf_counter()
            loading = args.batch_size, args.num_workers
            embed(model.to(device), windows, front_end.to(device), device, autocast, rows, *loading)
            speed = (rows.done - before) / (time.perf_counter() - started)
            if args.knn:
                print_knn(rows, windows, args, device)
            write_features(output, rows, windows, about)
            try:
                draw(picture, rows, windows)
            except Exception as error:  # features do not depend on what a drawing library takes
                warn(f"{picture}: the picture could not be written: {one_line(error)}")
    except OSError as error:
        raise UserError(f"--output {output}: expected a file that can be written; {error}") from error
    print(f"{output}: {len(windows)} rows of {width}, {speed:.1f} windows/s; see {picture}")


if __name__ == "__main__":
    with reported():
        main(get_args_parser().parse_args())
