"""Fine-tune a pretrained encoder on a labelled task, or train a baseline under the same conditions; measure it.

    # segmentation into Noise, NR and LTE, from a pretrained checkpoint
    python main_finetune.py --task segmentation --finetune output_dir/checkpoint-last.pth --data_path scenes

    # few labels, from released weights; own classes of annotated recordings
    python main_finetune.py --task segmentation --finetune radio_mae_vit_tiny --data_path recordings/ \
        --classes noise,wifi,bluetooth --recipe few

    # low-rank adapters; a linear probe
    python main_finetune.py --task segmentation --finetune mae_vit_base --data_path scenes --lora 8
    python main_finetune.py --task sensing --finetune mae_vit_base --data_path NTU-Fi_HAR --recipe linprobe

    # the controls: from scratch; a random encoder that stays as it is; DeepLabV3
    python main_finetune.py --task segmentation --data_path scenes
    python main_finetune.py --task segmentation --finetune random --train head --data_path scenes
    python main_finetune.py --task segmentation --model deeplabv3_mobilenet_v3_large --data_path scenes

    # human activities from Wi-Fi CSI; any classes, a folder each
    python main_finetune.py --task sensing --finetune checkpoint.pth --data_path NTU-Fi_HAR
    python main_finetune.py --task classification --finetune checkpoint.pth --data_path folders

    # eight GPUs
    torchrun --nproc_per_node=8 main_finetune.py --task segmentation --finetune checkpoint.pth --data_path scenes

    # go on with a run that was stopped: the same command, or from its checkpoint with other flags
    python main_finetune.py --resume output_finetune/checkpoint-last.pth --epochs 100

    # evaluate only: a checkpoint; released weights
    python main_finetune.py --eval --resume output_finetune/checkpoint-best.pth
    python main_finetune.py --task segmentation --data_path scenes --eval --finetune model.safetensors

    # the model for other programs, after training or with --eval: all weights, the encoder alone, or for ONNX
    python main_finetune.py --task segmentation --data_path scenes ... --export model.safetensors
    python main_finetune.py --task segmentation --data_path scenes ... --export encoder.safetensors
    python main_finetune.py --task segmentation --data_path scenes ... --export model.onnx
"""

import contextlib
import copy
import json
import statistics
import time
from argparse import BooleanOptionalAction
from pathlib import Path

import torch

import models_deeplab
import models_vit
from data import registry, tasks
from data.labelled import Part
from data.splits import fewer_labels
from engine_evaluate import evaluate, groupings, report
from engine_finetune import loader_of, train
from engine_start import ADAPTER_FLAGS, MODEL_FLAGS, build_model, check_division, check_resumed, open_start, take_from
from util import checkpoint, compiling, distributed, export, joining, parallel, pretrained, recipes, resume
from util.device import AMP_CHOICES, keep_freed_memory, mixed_precision, share_threads
from util.errors import UserError, reported
from util.files import atomic_path
from util.flags import OF_MAE, Parser
from util.logger import NoLog, RunLog
from util.metrics import means

RESULTS = "results.json"


def get_args_parser():
    parser = Parser("Fine-tune and evaluate on a labelled task.", OF_MAE | {"init": "--finetune starts from weights"})
    parser.add_argument("--task", choices=tasks.TASKS)
    registry.add_data_arguments(parser, required=False)
    tasks.add_label_arguments(parser)

    model = parser.add_argument_group("model")
    presets = ", ".join((*models_vit.PRESETS, *models_deeplab.PRESETS))
    model.add_argument("--model", metavar="PRESET", help="where not given, that of --finetune or --resume, else "
                       f"{models_vit.DEFAULT_PRESET}; {presets}")  # fmt: skip
    model.add_argument("--finetune", default="", metavar="FILE|NAME|random",
                       help="pretrained weights; nothing: from scratch; random: a random encoder, for --train head or probe")
    model.add_argument("--train", metavar="full|head|probe|last:N", help="what is trained")
    model.add_argument("--lora", type=int, metavar="RANK", help="train low-rank adapters and the head")
    model.add_argument("--lora_alpha", type=float, help="adapters are scaled by alpha / RANK; 2 RANK where not given")
    pretrained.add_arguments(model)
    model.add_argument("--head", choices=models_vit.HEADS, help="of segmentation")
    model.add_argument("--head_depth", type=int, default=2, help="transformer blocks of the decoder head")
    model.add_argument("--head_norm", action=BooleanOptionalAction, help="batch norm without weights before the last layer")
    model.add_argument("--global_pool", action="store_true", default=True, help="classify the mean of the patches")
    model.add_argument("--cls_token", action="store_false", dest="global_pool", help="classify the class token")
    model.add_argument("--drop_path", type=float)

    training = parser.add_argument_group("training (where not given: as --recipe has it; DeepLabV3: as published)")
    training.add_argument("--recipe", default="published", choices=recipes.RECIPES,
                          help="few: for few labels or few steps; linprobe: MAE's linear probe")
    training.add_argument("--opt", choices=recipes.OPTIMIZERS)
    training.add_argument("--batch_size", type=int, help="samples of a process at a time")
    training.add_argument("--epochs", type=int)
    training.add_argument("--accum_iter", type=int, default=1, help="batches to a step")
    training.add_argument("--lr", type=float, help="learning rate; blr * samples of a step / 256; DeepLabV3 0.02")
    training.add_argument("--blr", type=float, help="base learning rate")
    training.add_argument("--layer_decay", type=float, help="from scratch 1, as no layer has anything to keep")
    training.add_argument("--min_lr", type=float)
    training.add_argument("--warmup_epochs", type=int)
    training.add_argument("--weight_decay", type=float)
    training.add_argument("--clip_grad", type=float, help="largest norm of the gradient")
    training.add_argument("--class_weights", choices=("none", "median_frequency"))
    training.add_argument("--time_shift", action=BooleanOptionalAction, default=True, help="of segmentation")
    training.add_argument("--flip", action=BooleanOptionalAction, default=True, help="of segmentation")
    training.add_argument("--mixup", type=float, default=0.0, help="classification: alpha of Mixup")
    training.add_argument("--cutmix", type=float, default=0.0, help="classification: alpha of CutMix")
    training.add_argument("--smoothing", type=float, help="classification: label smoothing")
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("--seeds", type=int, default=1, help="runs, with this seed and those after it")

    run = parser.add_argument_group("run")
    run.add_argument("--output_dir", default="./output_finetune", help="checkpoints, log.txt, results.json, pictures; where "
                     "not given, of --eval the folder eval beside the checkpoint, or ./output_eval")  # fmt: skip
    run.add_argument("--log_dir", help="TensorBoard events; the output folder where not given")
    run.add_argument("--resume", default="auto", metavar="auto|none|PATH",
                     help="checkpoint to go on with or to --eval, with its flags where none are given; auto: that of the "
                          "output folder, if there is one; none: start anew in an empty one")
    run.add_argument("--save_every_steps", type=int, default=0, help="also write checkpoint-last.pth after so many steps")
    run.add_argument("--async_save", action=BooleanOptionalAction, default=True,
                     help="write checkpoints while training goes on")
    run.add_argument("--val_every", type=int, help="epochs from a validation and checkpoint to the next")
    run.add_argument("--eval", action="store_true", help="evaluate --resume, else --finetune, on the test part")
    run.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    run.add_argument("--amp", default="auto", choices=AMP_CHOICES, help="mixed precision; auto: as the machine computes")
    run.add_argument("--num_workers", type=int, default=distributed.default_workers(), help="data loading processes of each")
    run.add_argument("--pin_mem", action=BooleanOptionalAction, default=True, help="page-locked buffers to a GPU")
    compiling.add_arguments(run)
    joining.add_arguments(run)
    export.add_arguments(run, ".safetensors, the encoder alone where the name has \"encoder\" in it; .onnx")
    return parser


def check_args(args):
    """Fill in the recipe of the model, and refuse values that no run can have."""
    resume.require(args, "task", "data_path")
    deeplab = args.model in models_deeplab.PRESETS
    if args.layer_decay is None and not args.finetune:
        args.layer_decay = 1.0
    if args.head_norm is None:
        args.head_norm = args.recipe == "linprobe"
    recipes.fill_in(args, models_deeplab.RECIPE if deeplab else ())
    least = {"batch_size": 1, "epochs": 1, "accum_iter": 1, "lr": 0, "blr": 0, "min_lr": 0, "warmup_epochs": 0, "seed": 0,
             "seeds": 1, "weight_decay": 0, "num_workers": 0, "head_depth": 1, "mixup": 0, "cutmix": 0, "smoothing": 0,
             "scenes": 1, "val_every": 1, "save_every_steps": 0}  # fmt: skip
    for name, low in least.items():
        if getattr(args, name) is not None and not getattr(args, name) >= low:
            raise UserError(f"--{name}: expected at least {low}; found {getattr(args, name)}")
    for name in ("val_fraction", "test_fraction", "drop_path", "smoothing"):
        if not 0 <= getattr(args, name) < 1:
            raise UserError(f"--{name}: expected a share of at least 0 and below 1; found {getattr(args, name)}")
    if not 0 < args.label_fraction <= 1:
        raise UserError(f"--label_fraction: expected a share above 0, up to 1; found {args.label_fraction}")
    if args.clip_grad is not None and not args.clip_grad > 0:
        raise UserError(f"--clip_grad: expected a positive number; found {args.clip_grad}")
    if not 0 < args.layer_decay <= 1:
        raise UserError(f"--layer_decay: expected a factor above 0, up to 1; found {args.layer_decay}")
    if args.lora is not None:
        check_adapters(args)
    elif "lora_alpha" in args.given:
        raise UserError(f"--lora_alpha {args.lora_alpha}: expected --lora RANK with it; found none")
    named = resume.is_named(args.resume)
    if args.eval and not named and (args.export or args.finetune in ("", "random")):
        raise UserError("--eval: expected --resume CHECKPOINT or, without --export, --finetune WEIGHTS, what to evaluate; "
                        "found none")
    if named and args.seeds > 1:
        raise UserError(f"--seeds: expected one run, --seed, with --resume; found {args.seeds}")
    if args.export and args.seeds > 1:
        raise UserError(f"--export: expected one run, --seeds 1; found {args.seeds}")
    export.check_args(args, onnx=True)
    if deeplab and args.export and export.encoder_alone(args.export):
        raise UserError(f"--export {args.export}: expected a Vision Transformer to take an encoder of; found {args.model}")
    if args.finetune == "random" and args.train not in ("head", "probe"):
        raise UserError(f"--finetune random: expected --train head or probe; found {args.train}")
    if deeplab and (args.task != "segmentation" or args.finetune):
        raise UserError(f"--model {args.model}: expected --task segmentation, and no --finetune; found "
                        f"{args.task} {args.finetune}".rstrip())  # fmt: skip
    if deeplab and args.shard:
        raise UserError(f"--shard: expected a Vision Transformer; found {args.model}")
    if deeplab and args.batch_size < 2:
        raise UserError(f"--batch_size: expected at least 2 for {args.model}; found {args.batch_size}")
    if args.labels_per_class is not None and (args.labels_per_class < 1 or tasks.HEADS[args.task] != "classification"):
        raise UserError(f"--labels_per_class: expected 1 or more, of classification; found {args.labels_per_class}")
    if (args.mixup or args.cutmix) and tasks.HEADS[args.task] != "classification":
        raise UserError(f"--mixup, --cutmix: expected a task that classifies samples; found {args.task}")


def check_adapters(args):
    if args.lora < 1:
        raise UserError(f"--lora: expected a rank of at least 1; found {args.lora}")
    if args.lora_alpha is None:
        args.lora_alpha = 2.0 * args.lora
    if not args.lora_alpha > 0:
        raise UserError(f"--lora_alpha: expected a positive number; found {args.lora_alpha}")
    if args.finetune in ("", "random") and not args.eval and not resume.is_named(args.resume):
        raise UserError(f"--lora: expected --finetune WEIGHTS, which stay as they are; found {args.finetune or 'none'}")
    others = ["--shard"] * args.shard + [f"--train {args.train}"] * ("train" in args.given) + (
        ["--recipe linprobe"] * (args.recipe == "linprobe"))  # fmt: skip
    if others:
        raise UserError(f"--lora: expected the encoder with adapters to train, and copied; found {others[0]}")
    args.train = None  # what trains is decided


def open_data(args, path, saved, weights, device):
    """The labelled data with the front end of the checkpoint or the pretrained weights, and as many labels as asked for."""
    data = tasks.open_labelled(args, saved["front_end"] if saved else weights and weights.front_end, device.type != "cpu")
    if saved and saved["classes"] != data.class_names:
        raise UserError(f"{path}: expected a model of the classes {data.class_names}; found {saved['classes']}")
    if args.label_fraction < 1 or args.labels_per_class:
        part = data.parts["train"]
        targets = list(part.targets()) if tasks.HEADS[args.task] == "classification" else None
        chosen = fewer_labels(part.indices, targets, args.label_fraction, args.labels_per_class, args.seed, data.class_names)
        data.parts["train"], data.fresh = Part(part.source, chosen), False
    data.fit(saved and saved["front_end"].get("normalization"))
    data.front_end = data.front_end.to(device)
    return data


def run(args, folder, device, stop):
    """Train and test, or evaluate, one seed: the figures of the test part."""
    started = time.perf_counter()
    path, saved, weights = open_start(args, folder)
    take_from(args, saved, weights)
    check_args(args)  # again, with what the files say
    way = compiling.pick_compile(args, device, distributed.world_size())
    torch.manual_seed(args.seed)
    width = models_vit.PRESETS.get(args.model, {}).get("embed_dim", 512)
    args.amp = resume.pick_amp(args.amp, saved, device, width)
    autocast, scaler = mixed_precision(args.amp, device)
    if saved and "steps" in recipes.RECIPES[args.recipe]:
        resume.take(args, saved, "epochs", "warmup_epochs", "val_every")
    flags = vars(args).copy()
    if saved and not args.eval:
        resume.keep_effective_batch(args, saved)
    if args.lr is None:
        args.lr = flags["lr"] = args.blr * resume.effective_batch(args) / 256
    if saved:
        check_resumed(args, flags, path, saved)
    data = open_data(args, path, saved, weights, device)
    if saved:
        check_division(args, path, saved, data)
    sizes = len(data.parts["train"]), resume.effective_batch(args)
    if not args.eval:
        recipes.fill_in_length(args, *sizes)
        flags |= {name: getattr(args, name) for name in ("epochs", "warmup_epochs", "val_every")}
    model = build_model(args, data, weights)
    if not args.eval:
        recipes.warn_of_few_steps(args, *sizes)
    if not args.shard:
        model.to(device)
    export.check_size(args.export, model)
    if saved:
        checkpoint.load_model(model, saved["model"], path)

    if args.eval:
        trained = {"best_epoch": saved and saved["epoch"], "step": saved["step"] if saved else 0, "seconds_training": 0.0}
    else:
        trained = train(args, flags, data, model, path, saved, folder, device, autocast, scaler, stop, way)

    test = data.parts["test"]
    loader = loader_of(test, args, device)
    measured = evaluate(model, data.front_end, loader, device, autocast, data.class_names, stop, groupings(test))
    tested = args.finetune if args.eval and not saved else f"model of epoch {trained['best_epoch']}"
    print(f"\ntest part, {len(test)} samples, {tested}")
    log = RunLog(folder, args.log_dir) if distributed.is_main() else NoLog()
    pictures = report(measured, model, data.front_end, loader.dataset, device, autocast, data.class_names, log,
                      trained["step"], args.model)  # fmt: skip
    log.close()
    if distributed.is_main():
        write_json(folder / RESULTS, {
            "test": measured["results"], "groups": measured["groups"], "loss": measured["loss"], **trained,
            "seconds": round(time.perf_counter() - started, 1), "args": flags,
        })  # fmt: skip
        print(f"see {', '.join(f'{folder}/{name}' for name in (RESULTS, *pictures))}")
    if args.export:
        model = parallel.unsharded(model, lambda: build_model(args, data, None))
        if distributed.is_main():
            tested = saved if args.eval else checkpoint.load(folder / checkpoint.BEST)
            export_model(args, model, tested, data.source.in_chans)
    return measured["results"]


def export_model(args, model, saved, in_chans):
    """Write `--export`: the model as it was tested, with the flags of the checkpoint that it is from."""
    built = {name: getattr(args, name) for name in sorted(MODEL_FLAGS - ADAPTER_FLAGS)} | {"in_chans": in_chans}
    about = export.about(
        "main_finetune.py", get_args_parser(), saved["args"], args.licence, holds=tasks.HEADS[args.task],
        front_end=saved["front_end"], classes=saved["classes"], args=built,
    )  # fmt: skip
    export.export(args.export, model, about, args.export_dtype)


def summary(every):
    """Mean, least and greatest of the figures of several seeds."""
    found = {}
    for key in means(every[0]):
        values = [results[key] for results in every if results[key] is not None]
        if values:
            found[key] = {"mean": statistics.mean(values), "least": min(values), "greatest": max(values), "seeds": values}
            print(f"{key.replace('_', ' ')}: {found[key]['mean']:.2%} ({min(values):.2%} .. {max(values):.2%}), "
                  f"{len(values)} seeds")  # fmt: skip
    return found


def write_json(path, content):
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def main(args):
    with joining.joined(args) as device, distributed.StopSignal() as stop:
        if not resume.is_named(args.resume):
            check_args(args)
        keep_freed_memory()
        if device.type == "cpu":
            share_threads(distributed.local_world_size())
        if args.eval and "output_dir" not in args.given:
            args.output_dir = str(Path(args.resume).parent / "eval") if resume.is_named(args.resume) else "output_eval"
        every = []
        with contextlib.ExitStack() as opened:
            if distributed.is_main():
                opened.enter_context(checkpoint.output_folder(args.output_dir))
                opened.enter_context(export.destination(args.export))
            for seed in range(args.seed, args.seed + args.seeds):
                own = copy.copy(args)
                own.seed, place = seed, Path(args.output_dir, f"seed-{seed}" if args.seeds > 1 else "")
                own.log_dir = str(Path(args.log_dir, place.name if args.seeds > 1 else "") if args.log_dir else place)
                with checkpoint.output_folder(place) if distributed.is_main() else contextlib.nullcontext():
                    every.append(run(own, place, device, stop))
            if args.seeds > 1 and distributed.is_main():
                write_json(Path(args.output_dir, RESULTS), {"seeds": args.seeds, "test": summary(every)})


if __name__ == "__main__":
    with reported():
        main(get_args_parser().parse_args())
