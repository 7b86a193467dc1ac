"""How the cost of a training step grows: images a second and memory against batch, tokens, mask ratio and decoder depth.

    python benchmarks/bench_growth.py                                                 # a CPU
    python benchmarks/bench_growth.py --model mae_vit_small_patch16 --batch_size 256  # a GPU

One of them is changed at a time; the others are those of the preset, `--batch_size`, 224 x 224 and 75 %. Nothing is
compiled, so that what grows is the work. `--grad_ckpt` is measured at 448 x 448. On a CPU the memory is left out:
it is the process's.
"""

import argparse
import gc

import bench_pretrain
import common
import torch
from bench_pretrain import Trainer, images_per_s

import models_mae
from util.device import AMP_CHOICES, keep_freed_memory, pick_amp, pick_device
from util.errors import UserError, reported
from util.flops import pretraining_flops
from util.progress import peak_memory_bytes

IMAGE_SIZES = ((224, 224), (448, 448), (224, 1024))
MASK_RATIOS = (0.5, 0.75, 0.9)
DECODER_DEPTHS = (1, 4, 8)
BATCH_SHARES = {"cpu": (0.25, 0.5, 1, 2), "cuda": (0.125, 0.25, 0.5, 1, 2, 4)}


def get_args_parser():
    parser = argparse.ArgumentParser(
        description="Images per second and memory of the pretraining step against what makes it larger.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model", default="mae_vit_tiny_patch16", metavar="PRESET", help=", ".join(models_mae.PRESETS))
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--amp", default="auto", choices=AMP_CHOICES, help="mixed precision")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--steps", type=int, default=2, help="training steps to a turn")
    common.add_arguments(parser, repeats=3)
    return parser


def settings(batch_size, preset, device):
    """What is measured: (what changes, its value, the arguments of `measure`)."""
    for share in BATCH_SHARES[device.type]:
        yield "batch", max(1, round(share * batch_size)), {"batch_size": max(1, round(share * batch_size))}
    for size in IMAGE_SIZES[1:]:
        yield "image", f"{size[0]} x {size[1]}", {"img_size": size}
    yield "image, --grad_ckpt", "448 x 448", {"img_size": (448, 448), "grad_ckpt": True}
    for mask_ratio in MASK_RATIOS:
        if mask_ratio != bench_pretrain.MASK_RATIO:
            yield "mask ratio", mask_ratio, {"mask_ratio": mask_ratio}
    for depth in DECODER_DEPTHS:
        if depth != models_mae.PRESETS[preset]["decoder_depth"]:
            yield "decoder blocks", depth, {"decoder_depth": depth}


def measure(preset, amp, device, args, batch_size, img_size=(224, 224), mask_ratio=bench_pretrain.MASK_RATIO,
            grad_ckpt=False, **sizes):  # fmt: skip
    """A dict of "images_per_s", "gflop_an_image" and on a GPU "memory_bytes"; None where the memory is too little."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    torch.manual_seed(bench_pretrain.SEED)
    model = models_mae.MaskedAutoencoderViT(**{**models_mae.PRESETS[preset], **sizes}, img_size=img_size)
    model.grad_ckpt = grad_ckpt
    trainer = Trainer(model, lambda model, images, noise: model(images, mask_ratio, noise)[0], amp, device)
    batch = torch.randn(batch_size, 1, *img_size).to(device), torch.rand(batch_size, model.num_patches).to(device)
    try:
        trainer.step(*batch)
        rates = [images_per_s(trainer, *batch, args.steps) for _ in range(args.repeats)]
    except torch.OutOfMemoryError:
        return None
    found = {"images_per_s": common.spread(rates), "tokens": 1 + model.num_patches,
             "gflop_an_image": round(pretraining_flops(model, mask_ratio) / 1e9, 2)}  # fmt: skip
    return found | ({"memory_bytes": peak_memory_bytes(device)} if device.type == "cuda" else {})


def main(parser, args):
    common.check_args(args, "steps", "batch_size")
    if args.model not in models_mae.PRESETS:
        raise UserError(f"--model: expected one of {', '.join(models_mae.PRESETS)}; found {args.model!r}")
    keep_freed_memory()
    device = pick_device(args.device)
    amp = pick_amp(args.amp, device)
    rows, measured = [], []
    for what, value, given in settings(args.batch_size, args.model, device):
        found = measure(args.model, amp, device, args, **{"batch_size": args.batch_size, **given})
        if found is None:
            rows.append((what, str(value), "too little memory", *[""] * 4))
            continue
        measured.append({"what": what, "value": value, **found})
        memory = f"{found['memory_bytes'] / 2**30:.2f}" if "memory_bytes" in found else ""
        rate = found["images_per_s"]["median"]
        rows.append((what, str(value), *common.columns(found["images_per_s"]), f"{found['gflop_an_image']:.1f}",
                     f"{found['gflop_an_image'] * rate / 1e3:.3g}", memory))  # fmt: skip
    print(f"{args.model}, batch {args.batch_size}, amp {amp}, on {common.device_name(device)}")
    header = ("what", "value", "images/s", "least .. greatest", "GFLOP an image", "TFLOP/s", "GiB")
    common.print_table(header, rows)
    results = {"model": args.model, "batch_size": args.batch_size, "amp": amp, "steps": args.steps, "repeats": args.repeats,
               "growth": measured}  # fmt: skip
    common.write_results("bench_growth", parser, args, device, ("timm",), results)


if __name__ == "__main__":
    with reported():
        parser = get_args_parser()
        main(parser, parser.parse_args())
