"""What a fine-tuning run starts from: a checkpoint to go on with, pretrained weights, or nothing; and its model."""

import models_deeplab
import models_vit
from data import tasks
from util import checkpoint, compiling, distributed, joining, lora, pretrained, resume
from util.errors import UserError, warn

# Flags that may differ when resuming: where things are and how fast they come (the front end itself is compared). Those of
# learning may differ with a warning, others may not.
FREE_FLAGS = {"output_dir", "log_dir", "resume", "eval", "seeds", "device", "num_workers", "pin_mem", "val_every",
              "input_size", "n_fft", "window_ms", "export", "export_dtype", "licence", "async_save", "save_every_steps",
              "recipe", "offline", *compiling.FLAGS, *joining.FLAGS}  # fmt: skip
LEARNING_FLAGS = {"data_path", "epochs", *resume.BATCH_FLAGS, "lr", "blr", "min_lr", "warmup_epochs", "clip_grad",
                  "class_weights", "drop_path", "mixup", "cutmix", "smoothing", "time_shift", "flip", "amp"}  # fmt: skip
# How a command runs; the others come from a checkpoint that `--resume` names where they are not given.
OWN_FLAGS = FREE_FLAGS - {"input_size", "n_fft", "window_ms", "val_every", "recipe"}
ADAPTER_FLAGS = {"lora", "lora_alpha"}
MODEL_FLAGS = {"task", "model", "head", "head_depth", "global_pool", "head_norm", "norm_eps", *ADAPTER_FLAGS}
DIVIDING_FLAGS = {"seed", "val_fraction", "test_fraction", "split_by", "test_groups", "protocol", "split"}


def open_start(args, folder):
    """The checkpoint to go on from, or the weights to start from: (path, saved, weights), None each where there is none.

    `--eval --resume` takes a file of weights too: one that no run of ours left.
    """
    if args.eval and resume.is_named(args.resume) and not checkpoint.trailer(args.resume):
        args.finetune, args.resume = args.resume, "none"
    alone = args.eval and not resume.is_named(args.resume)  # released weights
    path, saved = (None, None) if alone else resume.find(args.resume, folder)
    if saved and "best_epoch" not in saved:
        raise UserError(f"{path}: expected a checkpoint of main_finetune.py; found one of another command")
    named = not saved and args.finetune not in ("", "random")
    return path, saved, pretrained.read_weights(args.finetune, args.offline) if named else None


def take_from(args, saved, weights):
    """Fill in what the checkpoint or the weights of `open_start` say of the model and of the run."""
    if saved:
        resume.take_flags(args, saved, OWN_FLAGS)
    if weights:
        preset = models_vit.preset_of(weights, args.finetune)
        if args.model is None:
            args.model = preset
        elif models_vit.encoder_sizes(args.model) != models_vit.encoder_sizes(preset):
            raise UserError(f"--model {args.model}: expected {preset}, the encoder of {args.finetune}; found another")
        if args.eval:
            for name, value in models_vit.head_of(weights).items():
                if name in MODEL_FLAGS - {"task"} - args.given:
                    setattr(args, name, value)
    if args.model is None:
        args.model = models_vit.DEFAULT_PRESET
    args.norm_eps = pretrained.pick_norm_eps(args.norm_eps, weights)


def build_model(args, data, weights):
    """The model, with pretrained weights where there are some: it says what was loaded, left and new, and what trains."""
    if args.model in models_deeplab.PRESETS:
        model = models_deeplab.create_model(args.model, len(data.class_names), data.source.in_chans)
    else:
        model = models_vit.create_model(
            args.model, tasks.HEADS[args.task], len(data.class_names), data.front_end.image_size,
            in_chans=data.source.in_chans, drop_path=args.drop_path, head=args.head, head_depth=args.head_depth,
            global_pool=args.global_pool, norm_eps=args.norm_eps, head_norm=args.head_norm,
        )  # fmt: skip
    if weights:
        loaded = weights.load_into(model, args.finetune)
        missing = [name for name in loaded.new if name not in models_vit.FIXED]
        if args.eval and (missing or (weights.classes or data.class_names) != data.class_names):
            classes = weights.classes or f"{models_vit.head_of(weights).get('num_classes', 'no')} classes without names"
            raise UserError(f"{args.finetune}: expected weights of this task, trained on {data.class_names}; found "
                            f"{classes}, and {len(missing)} tensors missing")  # fmt: skip
        print(loaded.summary())
        if args.eval and not weights.classes:
            order = ", ".join(data.class_names)
            warn(f"{args.finetune}: names no classes; its outputs are taken for {order}, in this order")
    if args.lora:
        lora.add(model, args.lora, args.lora_alpha)
    names = models_vit.trainable(model, args.train)
    if not args.eval:
        own = dict(model.named_parameters())
        plain = [name for name in names if not lora.is_adapter(name)]
        shown = ["adapters of query and value in every block"] * (len(plain) < len(names))
        shown += pretrained.by_module(plain, own.keys() - set(names))
        count, total = (sum(own[name].numel() for name in some) for some in (names, own))
        mode = f"--lora {args.lora}" if args.lora else f"--train {args.train}"
        if not args.finetune and mode in ("--train head", "--train probe"):
            warn(f"{mode}: no --finetune, so the encoder is random and stays so (--finetune random says that this is meant)")
        print(f"{mode}: {len(names)} tensors train, {count:,} of {total:,} parameters: {', '.join(shown)}")
    return model


def check_division(args, path, saved, data):
    """See that the samples are in the parts in which the run of a checkpoint had them; of an evaluation, warn.

    Raises:
        UserError: they are not, and the run is to go on.
    """
    ours = distributed.broadcast(lambda: data.fingerprint) if saved.get("split") else None
    if ours in (None, saved["split"]):
        return
    data_path = ", ".join(map(str, args.data_path))
    what = f"{path}: expected the samples of its run in the same parts; found others in {data_path}"
    if not args.eval:
        raise UserError(f"{what} (a new run starts from it with --finetune {path})")
    warn(f"{what}: test samples may be among those that the model was trained on (--split with the run's split.json divides "
         "as it did)")  # fmt: skip


def check_resumed(args, flags, path, saved):
    """See that a checkpoint is of this run; for an evaluation, that model and division of the data are the same.

    A run that goes on by itself is to have all its flags; one that was named may learn otherwise, with a warning. With
    --split the division is what that file says. Checkpoints of older versions lack flags that came later.
    """
    theirs = saved["args"]
    batch = resume.effective_batch(args)
    changed = resume.differences(saved, flags, FREE_FLAGS, batch)
    if args.resume == "auto" and changed:
        raise UserError(f"{path}: expected the flags of the run to resume; found {'; '.join(changed)} (give --resume {path} "
                        "to go on with the new ones, or another --output_dir)")
    found = {name: (theirs[name], value) for name, value in flags.items() if theirs.get(name, value) != value}
    fixed = MODEL_FLAGS | DIVIDING_FLAGS if args.eval else flags.keys() - FREE_FLAGS - LEARNING_FLAGS
    if args.split:
        fixed = fixed - DIVIDING_FLAGS | (set() if args.eval else {"seed"})
    for name in sorted(fixed & found.keys()):
        there, here = found[name]
        raise UserError(f"--{name}: expected {there}, as the run of {path} has it; found {here}")
    changed = resume.differences(saved, {name: flags[name] for name in LEARNING_FLAGS - {"data_path"}}, (), batch)
    if changed and not args.eval:
        warn(f"resuming {path} with other flags: {'; '.join(sorted(changed))}")
