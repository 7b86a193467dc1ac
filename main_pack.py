"""Pack recordings into a spectrogram set, so that later runs read spectrograms instead of computing them.

    python main_pack.py --data_path recordings/ --output sets/recordings-16ms
    python main_pretrain.py --data_path sets/recordings-16ms ...

Windows lie side by side. The set keeps its front end, and every run on the set uses it.
"""

from util import interrupts  # noqa: F401, first: Ctrl-C may come while libraries are imported

# isort: split
import torch

from data import registry
from data.batches import decibels_of
from data.set_writer import spectrogram_set_writer
from util.bars import Bar
from util.device import keep_freed_memory, pick_device
from util.errors import UserError, reported, stopped
from util.flags import Parser


def get_args_parser():
    parser = Parser("Pack recordings into a spectrogram set.")
    registry.add_data_arguments(parser)
    parser.add_argument("--output", required=True, metavar="FOLDER", help="the set to write, a new folder")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    return parser


@torch.inference_mode()
def main(args):
    args.check_ranges()
    keep_freed_memory()
    device = pick_device(args.device)
    found = registry.find(args.data_path, registry.is_raw(args))
    if found.sets or found.images:
        raise UserError("--data_path: expected recordings to pack; found spectrogram sets or images")
    front_end = registry.front_end_for(found, args)
    source = registry.open_source(found, front_end, args)
    front_end = front_end.to(device)

    ending = stopped(f"--output {args.output}: nothing is written", goes_on=False)
    with (
        ending,
        spectrogram_set_writer(args.output, len(source), front_end) as packed,
        Bar("packing", len(source), "windows") as bar,
    ):
        window, planes = None, None  # of the last image: images of a window follow each other
        for index in range(len(source)):
            about = source.describe(index, None)
            if front_end.pads and about.get("path"):
                key = about["name"], about["path"], about["sample_start"]
                if key != window:
                    kind, iq = source.load(index, None)
                    samples = torch.from_numpy(iq)[None].to(device)
                    window, planes = key, front_end.planes(samples, kind.sample_rate_hz, kind.is_real)
                decibels = front_end.cut(planes, about["first_row"])
            else:
                kind, values = source.load(index, None)
                decibels = decibels_of(kind, torch.from_numpy(values)[None], front_end, device)
            packed.add(decibels[0].cpu().numpy(), about)
            bar.add(1)
    print(f"wrote {len(source)} spectrograms of {front_end.settings()} to {args.output}")


if __name__ == "__main__":
    with reported():
        main(get_args_parser().parse_args())
