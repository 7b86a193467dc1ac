"""Fine-tune a pretrained encoder on a labelled task, or train a baseline in the same way, and measure it.

    # segmentation into Noise, NR and LTE, from a pretrained checkpoint
    python main_finetune.py --task segmentation --finetune output_dir/checkpoint-last.pth --data_path scenes

    # few labels, from released weights; own classes of annotated recordings
    python main_finetune.py --task segmentation --finetune radio_mae_vit_tiny --data_path recordings/ \
        --classes noise,wifi,bluetooth --recipe few

    # low-rank adapters; a linear probe of human activities from Wi-Fi CSI
    python main_finetune.py --task segmentation --finetune mae_vit_base --data_path scenes --lora 8
    python main_finetune.py --task sensing --finetune mae_vit_base --data_path NTU-Fi_HAR --recipe linprobe

    # baselines: from scratch; DeepLabV3
    python main_finetune.py --task segmentation --data_path scenes
    python main_finetune.py --task segmentation --model deeplabv3_mobilenet_v3_large --data_path scenes

    # eight GPUs
    torchrun --nproc_per_node=8 main_finetune.py --task segmentation --finetune checkpoint.pth \
        --data_path scenes

    # continue a run that was stopped: the same command, or its checkpoint with other flags
    python main_finetune.py --resume output_finetune/checkpoint-last.pth --epochs 100

    # evaluate only; write the model for other programs, after training or with --eval
    python main_finetune.py --eval --resume output_finetune/checkpoint-best.pth
    python main_finetune.py --eval --resume output_finetune/checkpoint-best.pth --export model.onnx
"""

from util import interrupts  # noqa: F401, first: Ctrl-C may come while libraries are imported

# isort: split
import contextlib
import time
from argparse import BooleanOptionalAction
from pathlib import Path

import torch

import engine_finetune
import engine_start
import models_deeplab
import models_presets
import models_vit
from data import fingerprint, registry, tasks
from engine_evaluate import groupings, report, summary
from engine_start import check_args
from models_vit import ViTEncoder
from util import checkpoint, compiling, distributed, parallel, pretrained, recipes, resume
from util import run as runs
from util.errors import RunError, reported
from util.files import write_json
from util.flags import OF_MAE, Parser
from util.progress import Progress

RESULTS = "results.json"


def get_args_parser():
    elsewhere = OF_MAE | {"init": "--finetune starts from weights"}
    parser = Parser("Fine-tune and evaluate on a labelled task.", elsewhere)
    parser.add_argument("--task", choices=tasks.TASKS)
    registry.add_data_arguments(parser, required=False)
    tasks.add_label_arguments(parser)
    model = parser.add_argument_group("model")
    presets = ", ".join((*models_vit.PRESETS, *models_deeplab.PRESETS))
    default = f"where not given, that of --finetune or --resume, else {models_presets.DEFAULT_PRESET}"
    model.add_argument("--model", metavar="PRESET", help=f"{default}; {presets}")
    pretrained_help = "pretrained weights; nothing: from scratch; random: for --train head or probe"
    model.add_argument("--finetune", default="", metavar="FILE|NAME|random", help=pretrained_help)
    model.add_argument("--train", metavar="full|head|probe|last:N", help="what is trained")
    model.add_argument("--lora", type=int, metavar="RANK", help="train low-rank adapters and the head")
    model.add_argument(
        "--lora_alpha", type=float, help="scale of adapters times RANK; 2 RANK where not given"
    )
    pretrained.add_arguments(model)
    model.add_argument("--head", choices=models_vit.HEADS, help="of segmentation")
    model.add_argument("--head_depth", type=int, default=2, help="transformer blocks of the decoder head")
    model.add_argument("--head_norm", action=BooleanOptionalAction, help="batch norm before the last layer")
    model.add_argument("--global_pool", action="store_true", default=True, help="classify the mean patch")
    model.add_argument(
        "--cls_token", action="store_false", dest="global_pool", help="classify the class token"
    )
    model.add_argument("--drop_path", type=float)

    holds = "checkpoints, log.txt, results.json, pictures; with --eval, eval beside the checkpoint or ./output_eval"
    exports = '.safetensors, the encoder alone where the name has "encoder" in it; .onnx'
    training, run = runs.add_arguments(parser, "./output_finetune", holds, exports)
    training.description = "where not given, as --recipe has it; DeepLabV3: as published"
    recipe_help = "few: for few labels or few steps; linprobe: MAE's linear probe"
    training.add_argument("--recipe", default="published", choices=recipes.RECIPES, help=recipe_help)
    training.add_argument("--opt", choices=recipes.OPTIMIZERS)
    training.add_argument("--layer_decay", type=float, help="of the rate, layer by layer; from scratch 1")
    training.add_argument("--class_weights", choices=("none", "median_frequency"))
    training.add_argument("--time_shift", action=BooleanOptionalAction, default=True, help="of segmentation")
    training.add_argument("--flip", action=BooleanOptionalAction, default=True, help="of segmentation")
    training.add_argument("--mixup", type=float, default=0.0, help="classification: alpha of Mixup")
    training.add_argument("--cutmix", type=float, default=0.0, help="classification: alpha of CutMix")
    training.add_argument("--smoothing", type=float, help="classification: label smoothing")
    training.add_argument("--seeds", type=int, default=1, help="runs, with this seed and those after it")
    run.add_argument("--val_every", type=int, help="epochs between validations and checkpoints")
    run.add_argument("--eval", action="store_true", help="evaluate --resume, else --finetune")
    return parser


def run_seed(args, folder, log_dir, device, stop):
    """Train and test, or evaluate, one seed; returns the figures of the test part."""
    started = time.perf_counter()
    start = engine_start.open_start(args, folder)
    args = engine_start.completed(args, start)
    check_args(args)
    torch.manual_seed(args.seed)
    data = engine_start.open_data(args, start, device)
    num_samples = len(data.parts["train"])
    if not args.eval:
        args = recipes.with_length(args, num_samples, resume.effective_batch(args))
    about = {"num_samples": num_samples, "front_end": data.settings, "classes": list(data.class_names)}
    if not args.eval:
        about["data"] = fingerprint.fingerprint(*data.parts.values())
    if distributed.is_main() and not args.eval:
        about["split"] = data.fingerprint
    width = models_vit.PRESETS.get(args.model, {}).get("embed_dim", 512)
    schedule = models_deeplab.schedule if args.model in models_deeplab.PRESETS else runs.cosine
    run = runs.prepare(args, device, stop, start.saved, width, about, schedule, folder, log_dir)
    if start.saved:
        engine_start.check_resumed(run, start)
        engine_start.check_division(args, start, data)
        if not args.eval:
            resume.check_data(start.path, start.saved, run)
            fingerprint.check(start.path, start.saved.get("data"), *data.parts.values())
    model = engine_start.build_model(args, data, start)
    if not args.shard:
        model.to(device)
    if args.export:
        from util import export

        export.check_size(args.export, model)
    if start.saved:
        checkpoint.load_model(model, start.saved["model"], start.path)

    if args.eval:
        saved = start.saved or {"epoch": None, "step": 0}
        trained = {"best_epoch": saved["epoch"], "step": saved["step"], "seconds_training": 0.0}
    else:
        engine_start.warn_unused(args, data)
        trained = train(run, model, data, start)

    test = data.parts["test"]
    batches = engine_finetune.batches_of(test, data, run)
    measured = engine_finetune.evaluate(model, batches, run, data.class_names, groupings(test))
    tested = f"model of epoch {trained['best_epoch']}" if start.saved or not args.eval else start.name
    print(f"\ntest part, {len(test)} samples, {tested}")
    unwritten = ""
    if distributed.is_main():
        found = {
            name: measured[key] for name, key in (("test", "results"), ("groups", "groups"), ("loss", "loss"))
        }
        found |= trained | {"seconds": round(time.perf_counter() - started, 1), "args": run.flags}
        try:
            write_json(folder / RESULTS, found)
        except OSError as error:
            unwritten = f"{folder / RESULTS}: expected room to write it; found {error.strerror}"
    with run.record:
        pictures = report(measured, model, batches, run, data.class_names, trained["step"])
    names = [name for name in (RESULTS, *pictures) if (folder / name).exists()]
    print(f"see {', '.join(f'{folder}/{name}' for name in names)}")
    if args.export:
        model = parallel.unsharded(model, lambda: engine_start.build_model(args, data, None))
        write_export(run, model, start.saved if args.eval else None, data.source.in_chans)
    if unwritten:
        raise RunError(unwritten)
    return measured["results"]


def train(run, model, data, start):
    """Wire and train the model; returns dict of "best_epoch", "step" and "seconds_training"."""
    args, device, is_vit = run.args, run.device, isinstance(model, ViTEncoder)
    shape = (data.source.in_chans, *data.front_end.image_size)
    model.grad_ckpt = args.grad_ckpt
    trained = parallel.wrap(
        model, device, args.shard, same_graph=run.accum_iter == 1 and args.train == "full"
    )
    parallel.dry_run(trained, lambda: trained(torch.zeros(2, *shape, device=device)).sum())
    optimizer = engine_finetune.make_optimizer(model, run)
    objective = engine_finetune.Objective(args, data, device)
    drops = len(model.drop_paths) if is_vit else 0
    compile_mode = run.compile_mode if is_vit else "off"
    if compile_mode != "off":
        compiling.compile_model(model, compile_mode, args.batch_size, run.amp, model.num_patches)
    batches = engine_finetune.batches_of(data.parts["train"], data, run, training=True, more_numbers=drops)
    recipes.warn_of_few_steps(run, args.epochs * -(-len(batches.dataset) // run.effective_batch))
    # Labels that cannot be read should not show after hours of training.
    for name in ("val", "test"):
        for _ in data.parts[name].targets():
            pass

    progress, first_epoch = Progress(score={"best": -1.0, "best_epoch": -1, "seconds_training": 0.0}), 0
    if start.saved:
        best = distributed.broadcast(lambda: engine_finetune.best_so_far(start.path, start.saved))
        steps = -(-len(batches) // run.accum_iter)
        progress, first_epoch = resume.restore(start.path, start.saved, optimizer, run, steps)
        seconds = start.saved["seconds_training"]
        progress.score = {"best": best["best"], "best_epoch": best["best_epoch"], "seconds_training": seconds}
        if distributed.is_main() and best["best_epoch"] >= 0:
            checkpoint.save(best, run.record.folder, name=checkpoint.BEST)
    if is_vit:
        print(run.memory_line(model, len(batches.dataset)))
    counts = ", ".join(f"{len(part)} {name}" for name, part in data.parts.items())
    print(
        f"{args.model} on {device}, {run.precision()}; samples: {counts}; {run.description()}, {args.epochs} epochs"
    )
    if first_epoch == args.epochs:
        print(f"nothing is left to train: {first_epoch} epochs are done")

    engine_finetune.warm_up(trained, run, shape, drops, compile_mode)
    with run.record:
        best_epoch = engine_finetune.train(
            trained, optimizer, objective, batches, data, run, progress, first_epoch
        )
    seconds = round(progress.score["seconds_training"], 1)
    return {"best_epoch": best_epoch, "step": progress.step, "seconds_training": seconds}


def write_export(run, model, saved, in_chans):
    """Write `--export`: the model as it was tested, with the flags of the checkpoint that it is from."""
    from util import export

    if saved is None and distributed.is_main():
        saved = checkpoint.load(run.record.folder / checkpoint.BEST)
    if distributed.is_main():
        built = {
            name: getattr(run.args, name)
            for name in sorted(engine_start.MODEL_FLAGS - engine_start.ADAPTER_FLAGS)
        } | {"in_chans": in_chans}
        known = {
            "holds": tasks.HEADS[run.args.task],
            "front_end": saved["front_end"],
            "classes": saved["classes"],
        }
        known["args"] = built
        about = export.about("main_finetune.py", get_args_parser(), saved["args"], run.args.licence, **known)
        export.export(run.args.export, model, about, run.args.export_dtype)


def main(args):
    named = resume.is_named(args.resume)
    if args.eval and "output_dir" not in args.given:
        args = args.replaced(output_dir=str(Path(args.resume).parent / "eval") if named else "output_eval")
    every = []
    # The flags of a checkpoint that --resume names are checked when it is open.
    with runs.started(args, check=lambda args: named or check_args(args)) as (device, stop):
        for seed in range(args.seed, args.seed + args.seeds):
            name = f"seed-{seed}" if args.seeds > 1 else ""
            folder = Path(args.output_dir, name)
            log_dir = str(Path(args.log_dir, name) if args.log_dir else folder)
            opens = name and distributed.is_main()  # the folder of all seeds is open already
            with checkpoint.output_folder(folder) if opens else contextlib.nullcontext():
                every.append(run_seed(args.replaced(seed=seed), folder, log_dir, device, stop))
        if args.seeds > 1 and distributed.is_main():
            write_json(Path(args.output_dir, RESULTS), {"seeds": args.seeds, "test": summary(every)})


if __name__ == "__main__":
    with reported():
        main(get_args_parser().parse_args())
