"""How the cost of a training step grows with batch, tokens, mask ratio and decoder depth: images a second
and memory.

    python benchmarks/bench_growth.py                                                 # a CPU
    python benchmarks/bench_growth.py --model mae_vit_small_patch16 --batch_size 256  # a GPU

One of them changes at a time; the others are those of the preset, `--batch_size`, 224 x 224 and 75 %.
Nothing is compiled. `--grad_ckpt` is measured at 448 x 448. Memory is measured on a GPU only.
"""

import bench_pretrain
import common
import torch
from bench_pretrain import MASK_RATIO, Trainer

import models_mae
from util.device import pick_amp, pick_device
from util.flops import pretraining_flops
from util.progress import peak_memory_bytes

IMAGE_SIZES = ((448, 448), (224, 1024))
MASK_RATIOS = (0.5, 0.9)
DECODER_DEPTHS = (1, 4, 8)
BATCH_SHARES = {"cpu": (0.25, 0.5, 1, 2), "cuda": (0.125, 0.25, 0.5, 1, 2, 4)}


def get_args_parser():
    parser = common.get_parser("Images per second and memory of the pretraining step as it grows.", repeats=3)
    parser = bench_pretrain.add_arguments(parser, steps=2)
    parser.add_argument("--model", default="mae_vit_tiny_patch16", choices=models_mae.PRESETS)
    parser.add_argument("--batch_size", type=common.positive, default=16)
    return parser


def settings(batch_size, preset, device):
    """What is measured: (what changes, its value, the arguments of `figures`)."""
    for share in BATCH_SHARES[device.type]:
        batch = max(1, round(share * batch_size))
        yield "batch", batch, {"batch_size": batch}
    for size in IMAGE_SIZES:
        yield "image", f"{size[0]} x {size[1]}", {"img_size": size}
    yield "image, --grad_ckpt", "448 x 448", {"img_size": (448, 448), "grad_ckpt": True}
    for mask_ratio in MASK_RATIOS:
        yield "mask ratio", mask_ratio, {"mask_ratio": mask_ratio}
    for depth in DECODER_DEPTHS:
        if depth != models_mae.PRESETS[preset]["decoder_depth"]:
            yield "decoder blocks", depth, {"decoder_depth": depth}


def figures(
    args, amp, device, batch_size, img_size=(224, 224), mask_ratio=MASK_RATIO, grad_ckpt=False, **more
):
    """A dict of "images_per_s", "tokens", "gflop_an_image" and on a GPU "memory_bytes"."""
    bench_pretrain.free(device)
    model = models_mae.MaskedAutoencoderViT(**models_mae.PRESETS[args.model] | more, img_size=img_size)
    model.grad_ckpt = grad_ckpt
    trainer = Trainer(model, lambda model, images, noise: model(images, mask_ratio, noise)[0], amp, device)
    batch = bench_pretrain.random_batch(batch_size, model.num_patches, device, img_size)
    turns = common.by_turns({"": lambda: trainer.images_per_s(*batch, args.steps)}, args.repeats)
    found = {"images_per_s": common.spread(turns[""]), "tokens": 1 + model.num_patches}
    found["gflop_an_image"] = round(pretraining_flops(model, mask_ratio) / 1e9, 2)
    return found | ({"memory_bytes": peak_memory_bytes(device)} if device.type == "cuda" else {})


def measure(args):
    device = pick_device(args.device)
    amp = pick_amp(args.amp or "auto", device)
    growth = []
    for what, value, given in settings(args.batch_size, args.model, device):
        try:
            found = figures(args, amp, device, **{"batch_size": args.batch_size, **given})
        except torch.OutOfMemoryError:
            print(f"{what} {value}: too little memory")
            continue
        growth.append({"what": what, "value": value, **found})
    about = {name: getattr(args, name) for name in ("model", "batch_size", "steps", "repeats")}
    return device, {**about, "amp": amp, "growth": growth}


if __name__ == "__main__":
    common.run_benchmark(get_args_parser(), measure)
