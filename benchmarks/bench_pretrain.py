"""How many images a second the training step takes, beside transformers' masked autoencoder of the same size.

    pip install -r requirements-bench.txt
    python benchmarks/bench_pretrain.py                                                            # a CPU
    python benchmarks/bench_pretrain.py --model mae_vit_base_patch16 --batch_size 64 --steps 50    # a GPU

Both take the step of `engine_pretrain.py`: forward in mixed precision, backward, gradient norm, fused AdamW with weight
decay on matrices alone; the loss is not read. Both get the same images [batch, 1, 224, 224] and mask noise, already on the
device, and nothing is compiled. They take turns in one process. transformers chooses its attention itself, which is torch's
scaled dot product attention, as ours.
"""

import argparse
import math
import time

import common
import torch
from timm.optim import param_groups_weight_decay

import models_mae
from util.device import AMP_CHOICES, keep_freed_memory, mixed_precision, pick_amp, pick_device
from util.errors import UserError, reported

IMAGE_SIZE = 224
MASK_RATIO = 0.75
SEED = 0
WARM_UP_STEPS = 3  # at least
OURS, THEIRS = "radio-mae", "transformers"


def get_args_parser():
    parser = argparse.ArgumentParser(
        description="Images per second of the pretraining step, beside transformers' ViTMAEForPreTraining.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model", default="mae_vit_small_patch16", metavar="PRESET", help=", ".join(models_mae.PRESETS))
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--amp", choices=AMP_CHOICES, help="mixed precision; where not given, off and what auto picks")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--steps", type=int, default=2, help="training steps to a turn")
    common.add_arguments(parser, repeats=7)
    return parser


def transformers_model(preset):
    """transformers' model of the sizes of a preset, one channel: (model, what it computes attention with)."""
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
    model = ViTMAEForPreTraining(config)
    return model, model.config._attn_implementation


def num_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


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


def compare(amp, device, args):
    """Rates of both in one precision: (dict of name to `common.spread`, parameters of each, attention of theirs)."""
    torch.manual_seed(SEED)
    ours = models_mae.create_model(args.model, img_size=IMAGE_SIZE, norm_pix_loss=True)
    theirs, attention = transformers_model(args.model)
    parameters, their_parameters = num_parameters(ours), num_parameters(theirs)
    if parameters != their_parameters:
        raise RuntimeError(f"expected two models of one size; found {parameters:,} and {their_parameters:,} parameters")
    images = torch.randn(args.batch_size, 1, IMAGE_SIZE, IMAGE_SIZE).to(device)
    noise = torch.rand(args.batch_size, ours.num_patches).to(device)
    trainers = {
        OURS: Trainer(ours, lambda model, images, noise: model(images, MASK_RATIO, noise)[0], amp, device),
        THEIRS: Trainer(theirs, lambda model, images, noise: model(images, noise=noise).loss, amp, device),
    }

    for name, trainer in trainers.items():
        for _ in range(max(WARM_UP_STEPS, args.steps)):
            loss = trainer.step(images, noise)
        if not loss.isfinite():
            raise RuntimeError(f"{name}, amp {amp}: expected a finite loss; found {loss.item()}")
    turns = {name: [] for name in trainers}
    for _ in range(args.repeats):
        for name, trainer in trainers.items():
            turns[name].append(images_per_s(trainer, images, noise, args.steps))
    return {name: common.spread(rates) for name, rates in turns.items()}, parameters, attention


def main(parser, args):
    common.check_args(args, "batch_size", "steps")
    keep_freed_memory()
    device = pick_device(args.device)
    precisions = dict.fromkeys(pick_amp(name, device) for name in ([args.amp] if args.amp else ["off", "auto"]))

    rows, compared = [], {}
    for amp in precisions:
        rates, parameters, attention = compare(amp, device, args)
        ratio = float(f"{rates[OURS]['median'] / rates[THEIRS]['median']:.3g}")
        compared[amp] = {"images_per_s": rates, "radio_mae_over_transformers": ratio}
        rows += [(name, amp, f"{parameters:,}", *common.columns(rates[name]), f"{of:.3g}")
                 for name, of in ((OURS, ratio), (THEIRS, 1))]  # fmt: skip
    print(f"{args.model}, batch {args.batch_size}, on {common.device_name(device)}, {torch.get_num_threads()} threads; "
          f"{args.repeats} turns of {args.steps} steps")
    common.print_table(("model", "amp", "parameters", "images/s", "least .. greatest", f"times {THEIRS}"), rows)
    results = {
        "model": args.model, "parameters": parameters, "batch_size": args.batch_size, "image_size": IMAGE_SIZE,
        "mask_ratio": MASK_RATIO, "attention_of_transformers": attention, "steps": args.steps, "repeats": args.repeats,
        "amp": compared,
    }  # fmt: skip
    common.write_results("bench_pretrain", parser, args, device, ("timm", "transformers"), results)


if __name__ == "__main__":
    with reported():
        parser = get_args_parser()
        main(parser, parser.parse_args())
