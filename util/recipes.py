"""How fine-tuning learns where the flags do not say: one table, and what follows from the size of the data."""

import math

from util.errors import UserError, warn

RECIPES = {
    # arXiv 2411.09996, segmentation
    "published": {
        "opt": "adamw", "train": "full", "head": "decoder", "batch_size": 64, "epochs": 50, "warmup_epochs": 5,
        "blr": 1e-3, "min_lr": 1e-6, "layer_decay": 0.75, "weight_decay": 0.05, "drop_path": 0.1,
        "class_weights": "none", "smoothing": 0.1, "val_every": 1,
    },
    # Few labels, or few steps on a small machine: chosen on three sets of scenes, see RESULTS.md. Its length is in steps.
    "few": {
        "opt": "adamw", "train": "full", "head": "decoder", "batch_size": 16, "steps": 400, "blr": 1.6e-2,
        "min_lr": 1e-6, "layer_decay": 0.9, "weight_decay": 0.05, "drop_path": 0.1,
        "class_weights": "none", "smoothing": 0.1,
    },
    # MAE's linear probe (arXiv 2111.06377, appendix A.1)
    "linprobe": {
        "opt": "lars", "train": "probe", "head": "linear", "batch_size": 512, "epochs": 90, "warmup_epochs": 10, "blr": 0.1,
        "min_lr": 0.0, "layer_decay": 1.0, "weight_decay": 0.0, "drop_path": 0.0, "class_weights": "none", "smoothing": 0.0,
        "val_every": 1,
    },
}  # fmt: skip
OPTIMIZERS = ("adamw", "lars", "sgd")
# What a run of so many steps may have: a share of warm-up, and about so many validations.
WARMUP, VALIDATIONS = 0.1, 20
# Below so many steps the published rate hardly moves the weights: see RESULTS.md.
FEW_STEPS = 500
LARS_TRUST = 1e-3  # a step of LARS moves a weight by the rate times this share of its norm


def fill_in(args, own):
    """The flags, those that are None with the value of `--recipe`; what depends on the size of the data stays None.

    Args:
        own: dict of what the model's own recipe has otherwise (DeepLabV3's).
    """
    if args.recipe not in RECIPES:
        raise UserError(f"--recipe: expected one of {', '.join(RECIPES)}; found {args.recipe!r}")
    return args.with_defaults(RECIPES[args.recipe] | own)


def with_length(args, num_samples, effective_batch):
    """The flags with epochs, warm-up and validations of a recipe whose length is in steps, for so many training samples."""
    steps_per_epoch = -(-num_samples // effective_batch)
    args = args.with_defaults({"epochs": max(1, round(RECIPES[args.recipe].get("steps", 0) / steps_per_epoch))})
    warmup_epochs = math.ceil(WARMUP * args.epochs) if args.epochs > 1 else 0
    return args.with_defaults({"warmup_epochs": warmup_epochs, "val_every": max(1, args.epochs // VALIDATIONS)})


def warn_of_few_steps(run, steps):
    """Warn where a recipe is followed in so few steps that it cannot move the weights; names the recipe for few steps.

    Args:
        run: a `util.run.Run`; steps: of the whole run.
    """
    args, lr = run.args, run.lr
    as_it_is = not args.given & {"lr", "blr"}
    if args.recipe == "published" and as_it_is and args.opt == "adamw" and steps < FEW_STEPS:
        warn(f"--recipe published: {steps} steps at a rate of {lr:.2g} hardly move the weights; --recipe few is made "
             "for so few")  # fmt: skip
    moved = steps * lr * LARS_TRUST / 2  # the mean of a cosine
    if args.opt == "lars" and moved < 1:
        warn(f"--opt lars: {steps} steps at a rate of {lr:.2g} move the linear layer by {moved:.1%} of its norm; a "
             "larger --blr or more --epochs is needed, or --recipe few --train probe"
             f"{' --head linear' * (args.task == 'segmentation')}")  # fmt: skip
