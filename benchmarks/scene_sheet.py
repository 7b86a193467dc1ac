"""Synthetic scenes and real captures, shuffled on one sheet without their names: which are real?

    python benchmarks/scene_sheet.py recordings/ --output sheet

Writes sheet.png, and sheet.txt, which says what is where.
"""

import argparse
from pathlib import Path

import common  # noqa: F401  (puts the project on the import path)
import numpy as np
import torch
from matplotlib.figure import Figure

from data.synthetic import SceneMaker
from radio.recordings import find_recordings
from radio.rng import TEST
from radio.scenes.config import PRESETS
from radio.scenes.scene import render
from radio.spectrogram import Spectrogram
from util.errors import reported

COLUMNS = 6
WINDOW_S = 0.01
N_FFTS = (1024, 256, 64)  # the longest that a window holds a few times


def picture(iq):
    """Standardised spectrogram of complex64 IQ [samples]: float32 [224, 224]."""
    n_fft = next((size for size in N_FFTS if len(iq) >= 4 * size), N_FFTS[-1])
    return Spectrogram(n_fft)(iq[None])[0, 0].numpy()


def get_args_parser():
    parser = argparse.ArgumentParser(description="Synthetic and real spectrograms on one sheet.", allow_abbrev=False)
    parser.add_argument("recordings", nargs="+", help="files and folders of real recordings")
    parser.add_argument("--scenes", type=int, default=12, help="synthetic scenes beside them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="sheet", help="name of the two files, without ending")
    return parser


@torch.inference_mode()
def main(args):
    maker = SceneMaker(PRESETS["wild"], args.seed)
    panels = []
    for number in range(args.scenes):
        scene = maker.draw(TEST, number)
        panels.append((f"scene {number}: {', '.join(sorted({t.label for t in scene.transmissions})) or 'no carrier'}",
                       picture(render(scene))))  # fmt: skip
    for recording in find_recordings(args.recordings, None, None):
        count = min(recording.num_samples, round(WINDOW_S * recording.sample_rate_hz))
        panels.append((recording.name, picture(torch.from_numpy(recording.read(0, count)))))

    order = np.random.default_rng(args.seed).permutation(len(panels))
    lines = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(3 * COLUMNS, 3 * lines), layout="constrained")
    for place, axis in enumerate(figure.subplots(lines, COLUMNS, squeeze=False).flat):
        axis.set_axis_off()
        if place < len(panels):
            axis.imshow(panels[order[place]][1], origin="lower", aspect="auto", vmin=-3, vmax=3)
            axis.set_title(str(place + 1))
    figure.savefig(f"{args.output}.png")
    names = [f"{place + 1}: {panels[number][0]}" for place, number in enumerate(order)]
    Path(f"{args.output}.txt").write_text("\n".join(names) + "\n")
    print(f"wrote {args.output}.png and {args.output}.txt")


if __name__ == "__main__":
    with reported():
        main(get_args_parser().parse_args())
