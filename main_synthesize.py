"""Make labelled scenes of 5G NR, LTE and other signals: spectrogram sets with masks, and SigMF recordings.

    # training, validation and test sets, drawn from the preset `wild`
    python main_synthesize.py --output scenes --train 8000 --val 1000 --test 1000
    python main_pretrain.py --data_path scenes

    # the published MathWorks recipe
    python main_synthesize.py --output classic --preset classic --train 2700 --val 300 --test 0

    # ten recordings, with annotations, of TDD carriers in 20 MHz
    python main_synthesize.py --output air --iq only --train 10 --val 0 --test 0 \\
        --set sample_rates_hz=20e6 lte_tdd=1 nr_tdd=1

The same command resumes a stopped run; with --iq, it adds recordings to existing sets. Scene i of a set
depends on the seed and i alone.
"""

from util import interrupts  # noqa: F401, first: Ctrl-C may come while libraries are imported

# isort: split
import contextlib
import dataclasses
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from data import registry
from data.feeding import possible_workers, stop_with_main_process
from data.formats import is_spectrogram_set
from data.set_writer import differences, spectrogram_set_writer, writing
from data.spectrogram_set import SpectrogramSet
from data.synthetic import KINDS, SceneMaker, image_of, one_thread, scene_config, scene_mask, scene_metadata
from radio.carriers import OTHER, to_annotation
from radio.scenes.config import PRESETS
from radio.scenes.scene import render
from util.bars import Bar
from util.checkpoint import remove_torn
from util.device import keep_freed_memory
from util.errors import UserError, reported, stopped
from util.files import LOCK, atomic_path, locked, parse_json, writable_folder, write_json
from util.flags import Parser
from util.plots import scene_sheet

RUN_FILE = "synthesis.json"
SHEET = "contact_sheet.png"
SHEET_SCENES = 12
SHOWN_CHANGES = 4

# Of recordings, by the bits of the scene's receiver (0: no quantisation): SigMF's name, numpy's, full scale.
CI16 = ("ci16_le", "<i2", 2**15)
DATATYPES = {0: ("cf32_le", "<f4", 1), 8: ("ci8", "i1", 2**7), 12: CI16, 16: CI16}


def get_args_parser():
    parser = Parser("Make labelled scenes of 5G NR and LTE.")
    parser.add_argument(
        "--output", required=True, metavar="FOLDER", help="writes the sets FOLDER/train, val and test"
    )
    parser.add_argument(
        "--preset", default=registry.DEFAULT_PRESET, choices=PRESETS, help="ranges to draw scenes from"
    )
    registry.add_scene_arguments(parser)
    registry.add_front_end_arguments(parser)
    parser.add_argument("--train", type=int, default=8000, metavar="N", help="scenes to train on")
    parser.add_argument("--val", type=int, default=1000, metavar="N", help="scenes to validate on")
    parser.add_argument("--test", type=int, default=1000, metavar="N", help="scenes to test on")
    parser.add_argument(
        "--iq",
        nargs="?",
        const="too",
        choices=("too", "only"),
        help="also write SigMF recordings to FOLDER/iq, or write only these",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--num_workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="worker processes; 0: work in the main process",
    )
    return parser


class Scenes(Dataset):
    """Some scenes of a split, made in workers, which also write the recordings.

    An item is (float32 [C, F, T] in dB, metadata, uint8 mask [F, T]), or None for a scene that the set has.

    Args:
        numbers: of the scenes; first: number of the first scene that the set lacks.
        recordings: folder of recordings, or None.
    """

    def __init__(self, split, numbers, maker, front_end, first=0, recordings=None):
        self.split, self.numbers, self.maker, self.front_end = split, numbers, maker, front_end
        self.first, self.recordings = first, recordings

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, item):
        number = self.numbers[item]
        scene = self.maker.draw(KINDS[self.split], number)
        iq = render(scene)
        if self.recordings and not recording_path(self.recordings, number).exists():
            write_recording(recording_path(self.recordings, number), iq, scene, self.maker.config.classes)
        if number < self.first:
            return None
        metadata = {
            "name": f"scene {number}",
            "path": self.split,
            **scene_metadata(scene, self.front_end),
            "carriers": [dataclasses.asdict(carrier) for carrier in scene.carriers()],
            "scene": scene.parameters(),
        }
        # Arrays go through a pipe. Tensors would go through /dev/shm, and hang where that is full.
        image = image_of(scene, iq, self.front_end).numpy()
        return image, metadata, scene_mask(scene, self.front_end, self.maker.config.classes)


def recording_path(folder, number):
    return folder / f"{number:06}.sigmf-meta"


def write_recording(path, iq, scene, class_names):
    """Write a SigMF recording with an annotation for each carrier of these classes, atomically."""
    from sigmf import SigMFFile  # slow to import

    datatype, dtype, full_scale = DATATYPES[scene.receiver.bits]
    parts = torch.view_as_real(iq).numpy()
    if scene.is_real:
        datatype, parts = datatype.replace("c", "r", 1), parts[:, 0].copy()
    values = (parts * full_scale).astype(dtype)
    metadata = SigMFFile(
        global_info={
            "core:datatype": datatype,
            "core:sample_rate": scene.sample_rate_hz,
            "core:sha512": hashlib.sha512(values).hexdigest(),
            "core:description": f"scene {scene.stream.index} of seed {scene.stream.seed}, synthetic",
            "core:recorder": "radio-mae main_synthesize.py",
        }
    )
    metadata.add_capture(0, metadata={"core:frequency": scene.center_freq_hz})
    for carrier in scene.carriers():
        if carrier.label not in class_names:
            continue
        annotation = to_annotation(carrier, scene.sample_rate_hz, num_samples=scene.num_samples)
        for edge in ("core:freq_lower_edge", "core:freq_upper_edge"):
            annotation[edge] += scene.center_freq_hz
        start, length = annotation.pop("core:sample_start"), annotation.pop("core:sample_count")
        metadata.add_annotation(start, length, metadata=annotation)
    metadata.validate()
    data_path = path.with_suffix(".sigmf-data")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(data_path) as temporary:
            temporary.write_bytes(values)
        with atomic_path(path) as temporary:
            temporary.write_text(metadata.dumps(pretty=True) + "\n")
    except OSError as error:
        data_path.unlink(missing_ok=True)
        raise UserError(f"{data_path}: expected room for {values.nbytes / 1e6:.3g} MB; {error}") from error


def open_output(folder, description):
    """Begin in the output folder, or check that it belongs to a run with the same description."""
    run_file = folder / RUN_FILE
    with writing(f"--output {folder}"):
        remove_torn(folder)
        there = {path.name for path in folder.iterdir()} - {LOCK}
        if not run_file.exists() and there:
            raise UserError(
                f"--output {folder}: expected a new folder, or one of this command; found something else there"
            )
        if any(path.is_file() and path.name not in (RUN_FILE, LOCK) for path in folder.rglob("*")):
            try:
                changes = differences(parse_json(run_file.read_text("utf-8")), description)
            except ValueError as error:
                raise UserError(f"{run_file}: expected what the run in this folder makes; {error}") from error
            if changes:
                shown = "; ".join(changes[:SHOWN_CHANGES]) + (
                    f"; {len(changes)} in all" if changes[SHOWN_CHANGES:] else ""
                )
                raise UserError(
                    f"--output {folder}: expected to go on with the scenes there; found that they are made with "
                    f"other arguments ({shown}): give another folder"
                )
        write_json(run_file, description)


def write_split(split, count, maker, front_end, folder, args, description):
    """Write the missing samples and recordings of a split."""
    recordings = folder / "iq" / split if args.iq else None
    if recordings:
        remove_torn(recordings)
    with contextlib.ExitStack() as stack:
        first = count
        if args.iq != "only" and not is_spectrogram_set(folder / split):
            writer = spectrogram_set_writer(
                folder / split,
                count,
                front_end,
                class_names=maker.config.classes,
                masks=True,
                resume_key=description,
            )
            packed = stack.enter_context(writer)
            first = packed.done
        numbers = [
            number
            for number in range(count)
            if number >= first or (recordings and not recording_path(recordings, number).exists())
        ]
        scenes = Scenes(split, numbers, maker, front_end, first, recordings)
        # The bar closes before an error is printed, which would otherwise follow it on its line.
        for sample in stack.enter_context(contextlib.closing(made(scenes, args.num_workers, split, count))):
            if sample is not None:
                packed.add(*sample)


def made(scenes, num_workers, name, count):
    """Iterate scenes in order, with a bar that counts to `count`: the other scenes exist already."""
    workers = possible_workers(min(num_workers, len(scenes)))
    loader = DataLoader(
        scenes,
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=stop_with_main_process,
    )
    with Bar(name, count, "scenes", count - len(scenes)) as bar:
        for sample in loader:
            yield sample
            bar.add(1)


def _as_it_is(sample):
    return sample  # torch's collation would visit every value of the metadata


def contact_sheet(folder, split, count, maker, front_end, num_workers):
    """Draw a split's first scenes beside their masks, from its set if there is one."""
    numbers = range(min(count, SHEET_SCENES))
    if is_spectrogram_set(folder / split):
        made_set = SpectrogramSet(folder / split)
        samples = [
            (torch.tensor(made_set.spectrograms[number]), made_set.metadata[number], made_set.mask(number))
            for number in numbers
        ]
    else:
        samples = made(Scenes(split, numbers, maker, front_end), num_workers, "contact sheet", len(numbers))
    rows = []
    for decibels, about, mask in samples:
        rate, num_samples = about["sample_rate_hz"], about["num_samples"]
        title = f"{split} {about['name']}: {rate / 1e6:g} Msps, {num_samples / rate * 1e3:.1f} ms"
        sent = about["scene"]["transmissions"]
        carriers = [one for one in about["carriers"] if one["label"] != OTHER]
        if sent and len(sent) == len(carriers):  # else some carriers are silent in this window
            title += ", SNR " + ", ".join(f"{one['snr_db']:.0f}" for one in sent) + " dB"
        rows.append(
            {
                "title": title,
                "extent": front_end.extent_of(about | {"center_freq_hz": 0.0}),
                "mask": np.asarray(mask),
                "image": front_end.from_decibels(torch.as_tensor(decibels)[None])[0, 0].numpy(),
            }
        )
    with writing(f"--output {folder}"), atomic_path(folder / SHEET) as temporary:
        scene_sheet(rows, maker.config.classes).savefig(temporary, format="png")


@torch.inference_mode()
def main(args):
    counts = {split: getattr(args, split) for split in KINDS}
    args.check_ranges()
    if not any(counts.values()):
        raise UserError("--train, --val, --test: expected a scene or more; found 0")
    keep_freed_memory()

    config = scene_config(args.preset, args.window_ms, args.set)
    front_end = registry.front_end_for(registry.find([f"{registry.SYNTHETIC}:{args.preset}"]), args)
    maker = SceneMaker(config, args.seed)
    maker.check(front_end)
    description = {"seed": args.seed, **counts, "preset": args.preset, "front_end": front_end.settings()}
    description = json.loads(
        json.dumps(description | {"scenes": dataclasses.asdict(config)})
    )  # as read from a file

    folder = Path(args.output)
    owner = f"--output {folder}"
    with writable_folder(folder, owner), locked(folder, owner):
        open_output(folder, description)
        write_all(folder, counts, maker, front_end, args, description)


def write_all(folder, counts, maker, front_end, args, description):
    """Write what is missing of all splits, and the contact sheet."""
    asked = {split: count for split, count in counts.items() if count}
    try:
        with one_thread(), stopped(f"--output {folder}: whole scenes are kept"):
            for split, count in asked.items():
                write_split(split, count, maker, front_end, folder, args, description)
            if not (folder / SHEET).exists():
                contact_sheet(folder, *next(iter(asked.items())), maker, front_end, args.num_workers)
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise UserError(
            f"--num_workers {args.num_workers}: expected memory for as many scenes at once; found a worker killed; "
            "the same command with fewer workers resumes"
        ) from error
    print(
        f"{folder}: {', '.join(f'{count} {split}' for split, count in asked.items())} scenes; see {folder / SHEET}"
    )


if __name__ == "__main__":
    with reported():
        main(get_args_parser().parse_args())
