"""How many images a second the training step takes, beside transformers' masked autoencoder and the field's habit.

    pip install -r requirements-bench.txt
    python benchmarks/bench_pretrain.py                                                             # a CPU
    python benchmarks/bench_pretrain.py --model mae_vit_small_patch16 --batch_size 1024 --steps 5   # a GPU

All get the same images [batch, 1, 224, 224] and mask noise, already on the device, and take turns in one process.

- radio-mae: the step of `engine_pretrain.py`: forward in mixed precision, backward, gradient norm, fused AdamW with weight
  decay on matrices alone; nothing is read on the host. On a GPU it is compiled as `main_pretrain.py` does it.
- transformers: `ViTMAEForPreTraining` of the same size, in the same step and precision, as it is, and on a GPU compiled too.
  It chooses its attention itself, which is torch's scaled dot product attention, as ours.
- the field's habit: MAE as it is usually written (all patches are embedded, then some of them taken; two sorts), AdamW as it
  comes, loss read on the host and device synchronized every step; fp16 with a scaler on a GPU, fp32 on a CPU.

MFU: the model's FLOPs by formula (see `util.flops`), the same for all, over what a large matrix product does in a second.
"""

import argparse
import gc
import math
import time

import common
import torch
from timm.optim import param_groups_weight_decay

import models_mae
from util.compiling import compile_model
from util.device import AMP_CHOICES, keep_freed_memory, mixed_precision, pick_amp, pick_device
from util.errors import UserError, reported
from util.flops import Utilization, peak_flops_per_s, pretraining_flops
from util.progress import peak_memory_bytes

IMAGE_SIZE = 224
MASK_RATIO = 0.75
SEED = 0
WARM_UP_STEPS = 3  # at least
OURS, THEIRS, HABIT = "radio-mae", "transformers", "the field's habit"


def get_args_parser():
    parser = argparse.ArgumentParser(
        description="Images per second of the pretraining step, beside transformers' and the field's habit.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model", nargs="+", default=["mae_vit_small_patch16"], metavar="PRESET",
                        help=", ".join(models_mae.PRESETS))
    parser.add_argument("--batch_size", nargs="+", type=int, default=[32], help="one, or one for each model")
    parser.add_argument("--amp", choices=AMP_CHOICES, help="mixed precision; where not given auto, on a CPU off too")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--compiled_peer", action=argparse.BooleanOptionalAction, default=True,
                        help="compile transformers' model on a GPU too, which takes a minute")
    parser.add_argument("--graphs", action="store_true", help="on a GPU --compile graphs too")
    parser.add_argument("--steps", type=int, default=2, help="training steps to a turn")
    common.add_arguments(parser, repeats=7)
    return parser


class AsUsuallyWritten(models_mae.MaskedAutoencoderViT):
    """MAE in the steps in which it is published: embed every patch, then take those that stay; sort to shuffle and back."""

    def embed(self, imgs, ids_keep=None):
        tokens = self.patch_embed(imgs) + self.pos_embed[:, 1:]
        if ids_keep is not None:
            tokens = torch.gather(tokens, 1, ids_keep[:, :, None].repeat(1, 1, tokens.shape[2]))
        cls_token = (self.cls_token + self.pos_embed[:, :1]).expand(len(tokens), -1, -1)
        return torch.cat([cls_token, tokens], dim=1)

    def masking(self, noise, mask_ratio):
        kept = int(self.num_patches * (1 - mask_ratio))
        ids_shuffle = torch.argsort(noise, dim=1)
        ids_restore = torch.argsort(ids_shuffle, dim=1)
        mask = torch.ones_like(noise)
        mask[:, :kept] = 0
        return ids_shuffle[:, :kept], ids_restore, torch.gather(mask, 1, ids_restore)


def transformers_model(preset):
    """transformers' model of the sizes of a preset, one channel."""
    try:
        from transformers import ViTMAEConfig, ViTMAEForPreTraining
    except ImportError as error:
        raise UserError(f"transformers: expected it installed (pip install -r requirements-bench.txt); {error}") from error
    sizes = models_mae.PRESETS[preset]
    config = ViTMAEConfig(
        image_size=IMAGE_SIZE,
        patch_size=sizes["patch_size"],
        num_channels=1,
        hidden_size=sizes["embed_dim"],
        num_hidden_layers=sizes["depth"],
        num_attention_heads=sizes["num_heads"],
        intermediate_size=4 * sizes["embed_dim"],
        decoder_hidden_size=sizes["decoder_embed_dim"],
        decoder_num_hidden_layers=sizes["decoder_depth"],
        decoder_num_attention_heads=sizes["decoder_num_heads"],
        decoder_intermediate_size=4 * sizes["decoder_embed_dim"],
        layer_norm_eps=1e-6,
        mask_ratio=MASK_RATIO,
        norm_pix_loss=True,
    )
    return ViTMAEForPreTraining(config)


def num_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def our_loss(model, images, noise):
    return model(images, MASK_RATIO, noise)[0]


def their_loss(model, images, noise):
    return model(images, noise=noise).loss


class Trainer:
    """A model with the optimizer and precision of `main_pretrain.py`.

    Args:
        loss_of: called with the model, images and noise; gives the loss.
    """

    def __init__(self, model, loss_of, amp, device):
        self.model = model.to(device).train()
        self.loss_of = loss_of
        groups = param_groups_weight_decay(model, 0.05)
        self.optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=True)
        self.autocast, self.scaler = mixed_precision(amp, device)

    def step(self, images, noise):
        """One training step, as in `engine_pretrain.train_one_epoch`; the loss stays on the device."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            loss = self.loss_of(self.model, images, noise)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), math.inf)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()


class HabitualTrainer(Trainer):
    """The field's loop: the optimizer as it comes, the loss read and the device synchronized in every step."""

    def __init__(self, model, device):
        super().__init__(model, our_loss, "fp16" if device.type == "cuda" else "off", device)
        self.optimizer = torch.optim.AdamW(param_groups_weight_decay(model, 0.05), lr=1e-4, betas=(0.9, 0.95))
        self.losses = []

    def step(self, images, noise):
        loss = super().step(images, noise)
        self.losses.append(loss.item())
        synchronize(images.device)
        return loss


def images_per_s(trainer, images, noise, steps):
    """The rate over one turn."""
    synchronize(images.device)
    started = time.perf_counter()
    for _ in range(steps):
        trainer.step(images, noise)
    synchronize(images.device)
    return steps * len(images) / (time.perf_counter() - started)


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def our_model(preset, **kwargs):
    return models_mae.create_model(preset, img_size=IMAGE_SIZE, norm_pix_loss=True, **kwargs)


def candidates(preset, batch_size, amp, device, args):
    """Makers of the trainers, by (name, precision, whether compiled)."""

    def ours(way):
        model = our_model(preset).to(device)
        compile_model(model, way, batch_size, amp, model.num_visible(MASK_RATIO))
        return Trainer(model, our_loss, amp, device)

    def theirs(compiled):
        model = transformers_model(preset)
        if compiled:
            model.compile(dynamic=False)
        return Trainer(model, their_loss, amp, device)

    on_gpu = device.type == "cuda"
    usual = HabitualTrainer(AsUsuallyWritten(**models_mae.PRESETS[preset], img_size=IMAGE_SIZE, norm_pix_loss=True), device)
    found = {(OURS, amp, "compiled"): lambda: ours("on")} if on_gpu else {}
    if on_gpu and args.graphs:
        found[OURS, amp, "graphs"] = lambda: ours("graphs")
    found |= {(OURS, amp, ""): lambda: ours("off"), (THEIRS, amp, ""): lambda: theirs(False)}
    if on_gpu and args.compiled_peer:
        found[THEIRS, amp, "compiled"] = lambda: theirs(True)
    found[HABIT, "fp16" if on_gpu else "off", ""] = lambda: usual
    return found


def compare(preset, batch_size, amp, device, args):
    """A dict of "images_per_s", "memory_bytes", "first_step_s" of each candidate, by (name, precision, whether compiled)."""
    made, found = {}, {}
    images = noise = None
    for key, make in candidates(preset, batch_size, amp, device, args).items():
        torch.manual_seed(SEED)
        if images is None:
            images = torch.randn(batch_size, 1, IMAGE_SIZE, IMAGE_SIZE).to(device)
            noise = torch.rand(batch_size, (IMAGE_SIZE // models_mae.PRESETS[preset]["patch_size"]) ** 2).to(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            held = torch.cuda.memory_allocated(device)
        started = time.perf_counter()
        made[key] = make()
        sizes = {num_parameters(trainer.model) for trainer in made.values()}
        if len(sizes) > 1:
            raise RuntimeError(f"expected models of one size; found {sizes} parameters")
        made[key].step(images, noise)
        synchronize(device)
        found[key] = {"parameters": sizes.pop(), "first_step_s": float(f"{time.perf_counter() - started:.3g}")}
        for _ in range(max(WARM_UP_STEPS, args.steps)):
            loss = made[key].step(images, noise)
        if not loss.isfinite():
            raise RuntimeError(f"{key}: expected a finite loss; found {loss.item()}")
        if device.type == "cuda":
            found[key]["memory_bytes"] = peak_memory_bytes(device) - held
    turns = {key: [] for key in made}
    for _ in range(args.repeats):
        for key, trainer in made.items():
            turns[key].append(images_per_s(trainer, images, noise, args.steps))
    made.clear()
    torch._dynamo.reset()
    gc.collect()
    for key, rates in turns.items():
        found[key]["images_per_s"] = common.spread(rates)
    return found


def main(parser, args):
    common.check_args(args, "steps")
    if len(args.batch_size) not in (1, len(args.model)) or min(args.batch_size) < 1:
        raise UserError(f"--batch_size: expected one number or as many as models, at least 1; found {args.batch_size}")
    if unknown := [name for name in args.model if name not in models_mae.PRESETS]:
        raise UserError(f"--model: expected some of {', '.join(models_mae.PRESETS)}; found {unknown[0]!r}")
    keep_freed_memory()
    device = pick_device(args.device)
    wanted = [args.amp] if args.amp else ["auto", "off"] if device.type == "cpu" else ["auto"]
    precisions = dict.fromkeys(pick_amp(name, device) for name in wanted)
    peaks = {amp: peak_flops_per_s("auto", amp, device) for amp in {*precisions, "off" if device.type == "cpu" else "fp16"}}

    rows, steps = [], []
    about = {
        "image_size": IMAGE_SIZE, "mask_ratio": MASK_RATIO, "steps": args.steps, "repeats": args.repeats,
        "peak_tflops": {amp: float(f"{peak / 1e12:.4g}") for amp, peak in peaks.items()}, "candidates": steps,
    }  # fmt: skip
    for number, preset in enumerate(args.model):
        batch_size = args.batch_size[number % len(args.batch_size)]
        flops = pretraining_flops(our_model(preset), MASK_RATIO)
        for amp in precisions:
            found = compare(preset, batch_size, amp, device, args)
            peer = found[THEIRS, amp, ""]["images_per_s"]["median"]
            for (name, precision, compiled), entry in found.items():
                rate = entry["images_per_s"]["median"]
                entry["mfu"] = float(f"{Utilization(flops, peaks[precision]).of(rate):.3g}")
                entry["times_transformers"] = float(f"{rate / peer:.3g}")
                steps.append({"model": preset, "batch_size": batch_size, "name": name, "amp": precision,
                              "compiled": compiled, "gflop_an_image": round(flops / 1e9, 2), **entry})  # fmt: skip
                rows.append((f"{name}{', ' * bool(compiled)}{compiled}", preset, str(batch_size), precision,
                             *common.columns(entry["images_per_s"]), f"{entry['mfu']:.1%}", f"{rate / peer:.2f}",
                             f"{entry.get('memory_bytes', 0) / 2**30:.1f}", f"{entry['first_step_s']:.1f}"))  # fmt: skip
        common.write_results("bench_pretrain", parser, args, device, ("timm", "transformers"), about)
    print(f"on {common.device_name(device)}, {torch.get_num_threads()} threads; {args.repeats} turns of {args.steps} steps; "
          + ", ".join(f"{amp} {peak / 1e12:.3g} TFLOP/s" for amp, peak in peaks.items()))  # fmt: skip
    common.print_table(("step", "model", "batch", "amp", "images/s", "least .. greatest", "MFU", f"times {THEIRS}", "GiB",
                        "first step, s"), rows)  # fmt: skip


if __name__ == "__main__":
    with reported():
        parser = get_args_parser()
        main(parser, parser.parse_args())
