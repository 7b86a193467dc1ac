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


def fill_in(args, own=()):
    """Give each flag that was not given the value of `--recipe`; what depends on the size of the data stays None.

    Args:
        args: `util.flags.Flags`, changed in place.
        own: dict of what the model's own recipe has otherwise (DeepLabV3's).
    """
    if args.recipe not in RECIPES:
        raise UserError(f"--recipe: expected one of {', '.join(RECIPES)}; found {args.recipe!r}")
    for name, value in (RECIPES[args.recipe] | dict(own)).items():
        if hasattr(args, name) and getattr(args, name) is None:
            setattr(args, name, value)


def fill_in_length(args, num_samples, effective_batch):
    """Epochs, warm-up and validations of a recipe whose length is in steps, for so many training samples."""
    recipe = RECIPES[args.recipe]
    if "steps" in recipe and args.epochs is None:
        args.epochs = max(1, round(recipe["steps"] / steps_per_epoch(num_samples, effective_batch)))
    if args.warmup_epochs is None:
        args.warmup_epochs = math.ceil(WARMUP * args.epochs) if args.epochs > 1 else 0
    if args.val_every is None:
        args.val_every = max(1, args.epochs // VALIDATIONS)


def steps_per_epoch(num_samples, effective_batch):
    return -(-num_samples // effective_batch)


def warn_of_few_steps(args, num_samples, effective_batch):
    """Name the recipe for few steps where another is followed in so few that it cannot move the weights."""
    steps = args.epochs * steps_per_epoch(num_samples, effective_batch)
    as_it_is = not args.given & {"lr", "blr"}
    if args.recipe == "published" and as_it_is and args.opt == "adamw" and steps < FEW_STEPS:
        warn(f"--recipe published: {steps} steps at a rate of {args.lr:.2g} hardly move the weights; --recipe few is made "
             "for so few")  # fmt: skip
    moved = steps * args.lr * LARS_TRUST / 2  # the mean of a cosine
    if args.opt == "lars" and moved < 1:
        warn(f"--opt lars: {steps} steps at a rate of {args.lr:.2g} move the linear layer by {moved:.1%} of its norm; a "
             "larger --blr or more --epochs is needed, or --recipe few --train probe"
             f"{' --head linear' * (args.task == 'segmentation')}")  # fmt: skip
