"""Defaults of fine-tuning by `--recipe`, and those that depend on the number of samples."""

import math

from util.errors import UserError, warn

_USUAL = {"opt": "adamw", "train": "full", "head": "decoder", "min_lr": 1e-6, "weight_decay": 0.05}
_USUAL |= {"drop_path": 0.1, "smoothing": 0.1, "class_weights": "none"}

# arXiv 2411.09996, segmentation
_PUBLISHED = {"batch_size": 64, "epochs": 50, "warmup_epochs": 5, "blr": 1e-3, "layer_decay": 0.75}
_PUBLISHED |= {"val_every": 1}
# Few labels, or few steps on a small machine: chosen on three sets of scenes, see RESULTS.md.
_FEW = {"batch_size": 16, "steps": 400, "blr": 1.6e-2, "layer_decay": 0.9}
# MAE's linear probe (arXiv 2111.06377, appendix A.1)
_LINPROBE = {"opt": "lars", "train": "probe", "head": "linear", "min_lr": 0.0, "weight_decay": 0.0}
_LINPROBE |= {"drop_path": 0.0, "smoothing": 0.0, "layer_decay": 1.0, "val_every": 1}
_LINPROBE |= {"batch_size": 512, "epochs": 90, "warmup_epochs": 10, "blr": 0.1}

RECIPES = {"published": _USUAL | _PUBLISHED, "few": _USUAL | _FEW, "linprobe": _USUAL | _LINPROBE}
OPTIMIZERS = ("adamw", "lars", "sgd")
WARMUP, VALIDATIONS = 0.1, 20  # of a recipe with "steps": share of warm-up, and about so many validations
FEW_STEPS = 500  # with fewer the published rate hardly moves the weights: see RESULTS.md
LARS_TRUST = 1e-3  # a step of LARS moves a weight by the rate times this share of its norm


def fill_in(args, own):
    """The flags with the values of `--recipe` for None; `own`, of the model, overrides them."""
    if args.recipe not in RECIPES:
        raise UserError(f"--recipe: expected one of {', '.join(RECIPES)}; found {args.recipe!r}")
    return args.with_defaults(RECIPES[args.recipe] | own)


def with_length(args, num_samples, effective_batch):
    """The flags with epochs, warm-up and validations for `num_samples`, if the recipe has "steps"."""
    steps_per_epoch = -(-num_samples // effective_batch)
    steps = RECIPES[args.recipe].get("steps", 0)
    args = args.with_defaults({"epochs": max(1, round(steps / steps_per_epoch))})
    warmup = math.ceil(WARMUP * args.epochs) if args.epochs > 1 else 0
    return args.with_defaults({"warmup_epochs": warmup, "val_every": max(1, args.epochs // VALIDATIONS)})


def warn_of_few_steps(run, steps):
    """Warn if a recipe has too few steps to move the weights.

    Args:
        run: a `util.run.Run`; steps: of the whole run.
    """
    args, lr = run.args, run.lr
    own_rate = args.given & {"lr", "blr"}
    if args.recipe == "published" and not own_rate and args.opt == "adamw" and steps < FEW_STEPS:
        done = f"{steps} steps at a rate of {lr:.2g} hardly move the weights"
        warn(f"--recipe published: {done}; --recipe few is made for so few")
    moved = steps * lr * LARS_TRUST / 2  # the mean of a cosine
    if args.opt == "lars" and moved < 1:
        done = f"{steps} steps at a rate of {lr:.2g} move the linear layer by {moved:.1%} of its norm"
        few = "--recipe few --train probe" + " --head linear" * (args.task == "segmentation")
        warn(f"--opt lars: {done}; a larger --blr or more --epochs is needed, or {few}")
