"""Images a second of the training step, beside transformers' masked autoencoder and the field's habit.

    pip install -r requirements-bench.txt
    python benchmarks/bench_pretrain.py                                                             # a CPU
    python benchmarks/bench_pretrain.py --model mae_vit_small_patch16 --batch_size 1024 --steps 5   # a GPU

All get the same images [batch, 1, 224, 224] and mask noise, already on the device, and take turns in one
process.

- radio-mae: the step of `main_pretrain.py` in mixed precision. Nothing is read on the host. On a GPU it is
  measured compiled too.
- transformers: `ViTMAEForPreTraining` of the same size in the same step and precision; also compiled.
- the field's habit: transformers' model with AdamW as it comes; every step reads the loss on the host and
  synchronizes the device; fp16 with a scaler on a GPU, fp32 on a CPU.

MFU: the model's FLOPs by formula (`util.flops`) over those of a large matrix product in the same time.
"""

import gc
import math
import time
from functools import partial

import common
import torch
from timm.optim import param_groups_weight_decay

import models_mae
from util.compiling import compile_model
from util.device import AMP_CHOICES, mixed_precision, pick_amp, pick_device
from util.errors import RunError, UserError
from util.flops import peak_flops_per_s, pretraining_flops
from util.progress import peak_memory_bytes

IMAGE_SIZE = 224
MASK_RATIO = 0.75
SEED = 0
WARM_UP_STEPS = 3
OURS, THEIRS, HABIT = "radio-mae", "transformers", "the field's habit"


def get_args_parser():
    parser = common.get_parser("Images per second of the pretraining step.", repeats=7)
    parser = add_arguments(parser, steps=2)
    parser.add_argument("--model", nargs="+", default=["mae_vit_small_patch16"], choices=models_mae.PRESETS)
    parser.add_argument(
        "--batch_size", nargs="+", type=common.positive, default=[32], help="one, or one a model"
    )
    return parser


def add_arguments(parser, steps):
    """The flags of all benchmarks of a training step."""
    parser.add_argument("--amp", choices=AMP_CHOICES, help="mixed precision; auto where not given")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--steps", type=common.positive, default=steps, help="training steps to a turn")
    return parser


def our_model(preset, **kwargs):
    return models_mae.create_model(preset, img_size=IMAGE_SIZE, norm_pix_loss=True, **kwargs)


def their_model(preset):
    """transformers' model with the sizes of a preset, one channel."""
    try:
        from transformers import ViTMAEConfig, ViTMAEForPreTraining
    except ImportError as error:
        raise UserError(f"transformers: expected requirements-bench.txt installed; found {error}") from error
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


class Trainer:
    """A model with the optimizer and the precision of `main_pretrain.py`.

    Args:
        loss_of: called with images and noise; gives the loss.
        habit: whether the loss is read in every step, and AdamW is not fused.
    """

    def __init__(self, model, loss_of, amp, device, habit=False):
        self.model, self.loss_of, self.habit = model.to(device).train(), loss_of, habit
        groups = param_groups_weight_decay(model, 0.05)
        self.optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=None if habit else True)
        self.autocast, self.scaler = mixed_precision(amp, device)

    def step(self, images, noise):
        """Take a training step; returns the loss on the device."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            loss = self.loss_of(images, noise)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), math.inf)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.habit:
            loss.item()
            common.synchronize(images.device)
        return loss.detach()

    def images_per_s(self, images, noise, steps):
        """The rate over one turn."""
        common.synchronize(images.device)
        started = time.perf_counter()
        for _ in range(steps):
            loss = self.step(images, noise)
        common.synchronize(images.device)
        elapsed_s = time.perf_counter() - started
        if not loss.isfinite():
            raise RunError(f"expected a finite loss; found {loss.item()}")
        return steps * len(images) / elapsed_s


def random_batch(batch_size, num_patches, device):
    """Images [batch, 1, F, T] and mask noise [batch, patches]; also seeds what follows."""
    torch.manual_seed(SEED)
    images = torch.randn(batch_size, 1, IMAGE_SIZE, IMAGE_SIZE).to(device)
    return images, torch.rand(batch_size, num_patches).to(device)


def usual_amp(device):
    """The precision of the field's habit."""
    return "fp16" if device.type == "cuda" else "off"


def free(device):
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def our_trainer(preset, way, batch_size, amp, device):
    """`way`: to compile, as `main_pretrain.py` has it."""
    model = our_model(preset).to(device)
    compile_model(model, way, batch_size, amp, model.num_visible(MASK_RATIO))
    return Trainer(model, lambda images, noise: model(images, MASK_RATIO, noise)[0], amp, device)


def their_trainer(preset, compiled, amp, device, habit=False):
    model = their_model(preset)
    if compiled:
        model.compile(dynamic=False)
    return Trainer(model, lambda images, noise: model(images, noise=noise).loss, amp, device, habit)


def trainers(preset, batch_size, amp, device):
    """Functions that make the trainers, by (name, precision, how it is compiled)."""
    made = {}
    for compiled in ("", "compiled") if device.type == "cuda" else ("",):
        way = "on" if compiled else "off"
        made[OURS, amp, compiled] = partial(our_trainer, preset, way, batch_size, amp, device)
        made[THEIRS, amp, compiled] = partial(their_trainer, preset, compiled, amp, device)
    usual = usual_amp(device)
    made[HABIT, usual, ""] = partial(their_trainer, preset, "", usual, device, habit=True)
    return made


def compare(preset, batch_size, amp, device, args):
    """A dict of figures of each candidate, by (name, precision, how it is compiled)."""
    batch = random_batch(batch_size, our_model(preset).num_patches, device)
    found, turns = {}, {}
    for key, make in trainers(preset, batch_size, amp, device).items():
        free(device)
        held = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        torch.manual_seed(SEED)
        trainer = make()
        found[key] = {"parameters": sum(parameter.numel() for parameter in trainer.model.parameters())}
        trainer.images_per_s(*batch, WARM_UP_STEPS)
        if device.type == "cuda":
            found[key]["memory_bytes"] = peak_memory_bytes(device) - held
        turns[key] = lambda trainer=trainer: trainer.images_per_s(*batch, args.steps)
    if len({figures["parameters"] for figures in found.values()}) > 1:
        raise RunError(f"expected models of one size; found {found}")
    for key, rates in common.by_turns(turns, args.repeats).items():
        found[key]["images_per_s"] = common.spread(rates)
    torch._dynamo.reset()
    return found


def measure(args):
    if len(args.batch_size) not in (1, len(args.model)):
        raise UserError(f"--batch_size: expected one number or as many as models; found {args.batch_size}")
    device = pick_device(args.device)
    wanted = [args.amp] if args.amp else ["auto", "off"] if device.type == "cpu" else ["auto"]
    precisions = dict.fromkeys(pick_amp(name, device) for name in wanted)
    peaks = {amp: peak_flops_per_s("auto", amp, device) for amp in {*precisions, usual_amp(device)}}
    candidates = []
    for number, preset in enumerate(args.model):
        batch_size = args.batch_size[number % len(args.batch_size)]
        flops = pretraining_flops(our_model(preset), MASK_RATIO)
        about = {"model": preset, "batch_size": batch_size, "gflop_an_image": round(flops / 1e9, 2)}
        for amp in precisions:
            found = compare(preset, batch_size, amp, device, args)
            for (name, precision, compiled), figures in found.items():
                rate = figures["images_per_s"]["median"]
                figures["mfu"] = common.digits(rate * flops / peaks[precision])
                candidates.append({**about, "name": name, "amp": precision, "compiled": compiled, **figures})
    about = {"image_size": IMAGE_SIZE, "mask_ratio": MASK_RATIO, "steps": args.steps, "repeats": args.repeats}
    about["peak_tflops"] = {amp: common.digits(peak / 1e12, 4) for amp, peak in peaks.items()}
    return device, {**about, "candidates": candidates}


if __name__ == "__main__":
    common.run_benchmark(get_args_parser(), measure)
