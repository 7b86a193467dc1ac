"""What a fine-tuning run starts from: a checkpoint, pretrained weights or nothing; its flags, data and model."""

from pathlib import Path
from typing import NamedTuple

import models_deeplab
import models_presets
import models_vit
from data import registry, tasks
from data.labelled import Part
from data.spectrogram_set import SpectrogramSet
from data.splits import fewer_labels
from radio.front_end import kind_of, takes_iq
from util import checkpoint, distributed, loading, lora, pretrained, recipes, resume
from util import run as runs
from util.errors import UserError, warn

# Flags that may differ when resuming: where things are and how fast they come (the front end itself is
# compared). Those of learning may differ with a warning, others may not.
FRONT_END_FLAGS = {"front_end", "input_size", "n_fft", "window_ms", "row_khz", "column_us", "channels"}
FREE_FLAGS = runs.FREE_FLAGS | FRONT_END_FLAGS | {"eval", "seeds", "val_every", "recipe"}
LEARNING_FLAGS = {"data_path", "epochs", "lr", "blr", "min_lr", "warmup_epochs", "clip_grad", "amp"}
LEARNING_FLAGS |= {"class_weights", "drop_path", "mixup", "cutmix", "smoothing", "time_shift", "flip"}
LEARNING_FLAGS |= {*resume.BATCH_FLAGS}
# How a command runs; the others come from a checkpoint that `--resume` names where they are not given.
OWN_FLAGS = FREE_FLAGS - FRONT_END_FLAGS - {"val_every", "recipe"}
ADAPTER_FLAGS = {"lora", "lora_alpha"}
MODEL_FLAGS = {"task", "model", "head", "head_depth", "global_pool", "head_norm", "norm_eps", *ADAPTER_FLAGS}
DIVIDING_FLAGS = {"seed", "val_fraction", "test_fraction", "split_by", "test_groups", "protocol", "split"}


class Start(NamedTuple):
    """A checkpoint with its path, or weights with their name; None where there is none."""

    path: Path | None
    saved: dict | None
    name: str
    weights: pretrained.Weights | None

    @property
    def front_end(self):
        """Settings of the front end that was trained with, or None."""
        return self.saved["front_end"] if self.saved else self.weights and self.weights.front_end

    @property
    def classes(self):
        """Class names of what was trained, background first; () if there are none."""
        return tuple(self.saved["classes"] if self.saved else (self.weights and self.weights.classes) or ())


def open_start(args, folder):
    """Find and read the `Start` of a run with this output folder.

    `--eval --resume` takes a file of weights too, which no run of ours left.
    """
    named = resume.is_named(args.resume)
    is_weights = args.eval and named and not checkpoint.read_comment(args.resume)
    name = str(args.resume if is_weights else args.finetune)
    path, saved = None, None
    if not is_weights and not (args.eval and not named):  # --eval --finetune: released weights
        path, saved = resume.find(args.resume, folder)
    if saved and "best_epoch" not in saved:
        raise UserError(f"{path}: expected a checkpoint of main_finetune.py; found one of another command")
    from_weights = not saved and name not in ("", "random")
    return Start(path, saved, name, pretrained.read_weights(name, args.offline) if from_weights else None)


def completed(args, start):
    """The flags with what the checkpoint or the weights say, and what `--recipe` says where they are silent.

    Raises:
        UserError: `--model` is not that of the weights.
    """
    if start.saved:
        args = resume.with_flags_of(args, start.saved, OWN_FLAGS)
        if "steps" in recipes.RECIPES[args.recipe]:
            theirs = start.saved["args"]
            length = {"epochs", "warmup_epochs", "val_every"} & theirs.keys() - args.given
            args = args.taken({name: theirs[name] for name in length}, start.path)
    weights, values = start.weights, {}
    if weights:
        preset = models_presets.preset_of(weights, start.name)
        if args.model and models_vit.encoder_sizes(args.model) != models_vit.encoder_sizes(preset):
            raise UserError(
                f"--model {args.model}: expected {preset}, the encoder of {start.name}; found another"
            )
        values["model"] = args.model or preset
        values["finetune"] = start.name
        if resume.is_named(args.resume):  # --eval --resume WEIGHTS
            values["resume"] = "none"
        if args.eval:
            head = models_vit.head_of(weights)
            values |= {name: head[name] for name in head.keys() & (MODEL_FLAGS - {"task"} - args.given)}
    args = args.replaced(**values, norm_eps=pretrained.pick_norm_eps(args.norm_eps, weights))
    return with_recipe(args.with_defaults({"model": models_presets.DEFAULT_PRESET}))


def with_recipe(args):
    """The flags with `--recipe`'s values, or those of DeepLabV3, where they say nothing."""
    values = {"head_norm": args.recipe == "linprobe"}
    if not args.finetune:
        values["layer_decay"] = 1.0  # from scratch no layer has anything to keep
    if args.lora:
        values["lora_alpha"] = 2.0 * args.lora
    args = args.with_defaults(values)
    args = recipes.fill_in(args, models_deeplab.RECIPE if args.model in models_deeplab.PRESETS else {})
    return args.replaced(train=None) if args.lora and "train" not in args.given else args


def check_args(args):
    """Refuse values that no run can have; the flags with their recipe.

    Raises:
        UserError: names the flag.
    """
    resume.require(args, "task", "data_path")
    args = with_recipe(args)
    runs.check_args(args)
    deeplab, classifies = args.model in models_deeplab.PRESETS, tasks.HEADS[args.task] == "classification"
    if not 0 < args.label_fraction <= 1:
        raise UserError(f"--label_fraction: expected a share above 0, up to 1; found {args.label_fraction}")
    if not 0 < args.layer_decay <= 1:
        raise UserError(f"--layer_decay: expected a factor above 0, up to 1; found {args.layer_decay}")
    _check_adapters(args)
    named = resume.is_named(args.resume)
    if args.eval and not named and (args.export or args.finetune in ("", "random")):
        raise UserError(
            "--eval: expected --resume CHECKPOINT or, without --export, --finetune WEIGHTS, what to evaluate; found none"
        )
    if named and args.seeds > 1:
        raise UserError(f"--seeds: expected one run, --seed, with --resume; found {args.seeds}")
    if args.export:
        from util import export

        if args.seeds > 1:
            raise UserError(f"--export: expected one run, --seeds 1; found {args.seeds}")
        export.check_args(args, onnx=True)
        if deeplab and export.encoder_alone(args.export):
            raise UserError(
                f"--export {args.export}: expected a Vision Transformer to take an encoder of; found {args.model}"
            )
    if args.finetune == "random" and args.train not in ("head", "probe"):
        raise UserError(f"--finetune random: expected --train head or probe; found {args.train}")
    if deeplab and (args.task != "segmentation" or args.finetune):
        found = f"{args.task} {args.finetune}".rstrip()
        raise UserError(
            f"--model {args.model}: expected --task segmentation, and no --finetune; found {found}"
        )
    if deeplab and args.shard:
        raise UserError(f"--shard: expected a Vision Transformer; found {args.model}")
    if deeplab and args.batch_size < 2:
        raise UserError(f"--batch_size: expected at least 2 for {args.model}; found {args.batch_size}")
    if args.labels_per_class is not None and (args.labels_per_class < 1 or not classifies):
        raise UserError(
            f"--labels_per_class: expected 1 or more, of classification; found {args.labels_per_class}"
        )
    if (args.mixup or args.cutmix) and not classifies:
        raise UserError(f"--mixup, --cutmix: expected a task that classifies samples; found {args.task}")


def _check_adapters(args):
    if args.lora is None:
        if "lora_alpha" in args.given:
            raise UserError(f"--lora_alpha {args.lora_alpha}: expected --lora RANK with it; found none")
        return
    if args.lora < 1:
        raise UserError(f"--lora: expected a rank of at least 1; found {args.lora}")
    if not args.lora_alpha > 0:
        raise UserError(f"--lora_alpha: expected a positive number; found {args.lora_alpha}")
    if args.finetune in ("", "random") and not args.eval and not resume.is_named(args.resume):
        raise UserError(
            f"--lora: expected --finetune WEIGHTS, which stay as they are; found {args.finetune or 'none'}"
        )
    others = ["--shard"] * args.shard + [f"--train {args.train}"] * ("train" in args.given)
    others += ["--recipe linprobe"] * (args.recipe == "linprobe")
    if others:
        raise UserError(f"--lora: expected the encoder with adapters to train, and copied; found {others[0]}")


def open_data(args, start, device):
    """The labelled data, with the front end that the model was trained with and as many labels as asked for."""
    saved, trained = start.saved, start.front_end
    # Weights may start a model with a front end of another kind, but cannot be evaluated or resumed with it.
    starts_anew = start.weights and not args.eval and takes_iq(trained)
    starts_anew = starts_anew and args.front_end not in (None, kind_of(trained))
    on_device, trained_with = device.type != "cpu", None if starts_anew else trained
    data = tasks.open_labelled(args, trained_with, on_device, start.classes)
    if starts_anew:
        registry.compare(data.front_end.settings(), trained)
    if saved and saved["classes"] != data.class_names:
        raise UserError(
            f"{start.path}: expected a model of the classes {data.class_names}; found {saved['classes']}"
        )
    if args.label_fraction < 1 or args.labels_per_class:
        part = data.parts["train"]
        targets = list(part.targets()) if tasks.HEADS[args.task] == "classification" else None
        fewer = args.label_fraction, args.labels_per_class, args.seed, data.class_names
        data.parts["train"] = Part(part.source, fewer_labels(part.indices, targets, *fewer))
        data.fresh = False
    data.fit(saved and saved["front_end"].get("normalization"))
    data.front_end = data.front_end.to(device)
    return data


def warn_unused(args, data):
    """Warn of flags that are given and that nothing of this run uses."""
    deeplab, classifies = args.model in models_deeplab.PRESETS, tasks.HEADS[args.task] == "classification"
    settings, sources = data.settings, {id(part.source) for part in data.parts.values()}
    of_images = not takes_iq(settings) and settings.get("kind") != "iq_rows"
    args.warn_unused(
        (
            deeplab,
            "drop_path layer_decay opt head head_depth head_norm norm_eps",
            "DeepLabV3 has its own recipe",
        ),
        (classifies, "head head_depth time_shift flip", f"--task {args.task} has no masks"),
        (not classifies, "smoothing global_pool", f"--task {args.task} has masks"),
        (args.head == "linear", "head_depth", "--head linear has no blocks"),
        (of_images, "n_fft window_ms sample_rate datatype", "the data are no IQ"),
        (isinstance(data.source, SpectrogramSet), "sample_rate datatype", "the data are a spectrogram set"),
        (len(sources) > 1 and not data.fresh, "val_fraction test_fraction", "the data are divided already"),
        *runs.unused(args),
    )


def build_model(args, data, start):
    """The model, with pretrained weights if there are any; prints what was loaded and what trains.

    Args:
        start: a `Start`, or None for an empty model.
    """
    num_classes, in_chans = len(data.class_names), data.source.in_chans
    weights = start and start.weights
    if args.model in models_deeplab.PRESETS:
        model = models_deeplab.DeepLabV3(args.model, num_classes, in_chans)
    else:
        names = ("drop_path", "head", "head_depth", "global_pool", "norm_eps", "head_norm")
        kwargs = {name: getattr(args, name) for name in names} | {"in_chans": in_chans}
        head, image_size = tasks.HEADS[args.task], data.front_end.image_size
        model = models_vit.create_model(args.model, head, num_classes, image_size, **kwargs)
    model.pads = data.front_end.pads
    if weights:
        loaded = weights.load_into(model, start.name)
        missing = [name for name in loaded.new if name not in models_vit.FIXED]
        if args.eval and (missing or (weights.classes or data.class_names) != data.class_names):
            classes = (
                weights.classes
                or f"{models_vit.head_of(weights).get('num_classes', 'no')} classes without names"
            )
            raise UserError(
                f"{start.name}: expected weights of this task, trained on {data.class_names}; found {classes}, and "
                f"{len(missing)} tensors missing"
            )
        print(loaded.summary())
        if args.eval and not weights.classes:
            order = ", ".join(data.class_names)
            warn(f"{start.name}: names no classes; its outputs are taken for {order}, in this order")
    if args.lora:
        lora.add(model, args.lora, args.lora_alpha)
    names = models_vit.trainable(model, args.train)
    if start and not args.eval:
        _report_trained(model, names, args)
    return model


def _report_trained(model, names, args):
    """Print which tensors train."""
    own = dict(model.named_parameters())
    plain = [name for name in names if not lora.is_adapter(name)]
    shown = ["adapters of query and value in every block"] * (len(plain) < len(names))
    shown += loading.by_module(plain, own.keys() - set(names))
    count, total = (sum(own[name].numel() for name in some) for some in (names, own))
    mode = f"--lora {args.lora}" if args.lora else f"--train {args.train}"
    if not args.finetune and mode in ("--train head", "--train probe"):
        warn(
            f"{mode}: no --finetune, so the encoder is random and stays so (--finetune random says that this is meant)"
        )
    print(f"{mode}: {len(names)} tensors train, {count:,} of {total:,} parameters: {', '.join(shown)}")


def check_division(args, start, data):
    """Check that the parts of the data are those of a checkpoint's run; an evaluation only warns.

    Raises:
        UserError: they are not, and the run is to continue.
    """
    path, saved = start.path, start.saved
    ours = distributed.broadcast(lambda: data.fingerprint) if saved.get("split") else None
    if ours in (None, saved["split"]):
        return
    data_path = ", ".join(map(str, args.data_path))
    what = f"{path}: expected the samples of its run in the same parts; found others in {data_path}"
    if not args.eval:
        raise UserError(f"{what} (a new run starts from it with --finetune {path})")
    warn(
        f"{what}: test samples may be among those that the model was trained on (--split with the run's split.json divides "
        "as it did)"
    )


def check_resumed(run, start):
    """Check that a checkpoint is of this run; an evaluation needs only its model and its parts of the data.

    A checkpoint that was found must have all flags of the run. One that `--resume` names may have other flags
    of learning, with a warning. With --split that file divides the data. Checkpoints of older versions lack
    flags that came later.
    """
    args, flags, path, theirs = run.args, run.flags, start.path, start.saved["args"]
    if args.resume == "auto":
        resume.check_flags(path, start.saved, run, flags, FREE_FLAGS)
    found = {name: (theirs[name], value) for name, value in flags.items() if theirs.get(name, value) != value}
    fixed = MODEL_FLAGS | DIVIDING_FLAGS if args.eval else flags.keys() - FREE_FLAGS - LEARNING_FLAGS
    if args.split:
        fixed = fixed - DIVIDING_FLAGS | (set() if args.eval else {"seed"})
    differ = [(name, *found[name]) for name in sorted(fixed & found.keys())]
    if differ:
        names, there, here = (", ".join(map(str, column)) for column in zip(*differ, strict=True))
        flags = names.replace(", ", ", --")
        raise UserError(f"--{flags}: expected {there}, as the run of {path} has it; found {here}")
    if not args.eval:
        learning = {name: flags[name] for name in LEARNING_FLAGS - {"data_path"}}
        resume.check_flags(path, start.saved, run, learning, ())
