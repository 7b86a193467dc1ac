"""Pretrain a masked autoencoder on IQ recordings, spectrogram sets or spectrogram images.

    # a GPU
    python main_pretrain.py --data_path recordings/ --model mae_vit_small_patch16 --norm_pix_loss

    # a laptop CPU
    python main_pretrain.py --data_path recordings/ --model mae_vit_tiny_patch16 --batch_size 32 --window_ms 2

    # scenes of NR, LTE and others, made while training
    python main_pretrain.py --data_path synthetic

    # eight GPUs; two machines of eight, the same line on both
    torchrun --nproc_per_node=8 main_pretrain.py --data_path recordings/ --model mae_vit_large_patch16
    torchrun --nnodes=2 --nproc_per_node=8 --rdzv_backend=c10d --rdzv_endpoint=first-machine:29500 --max-restarts=3 \
        main_pretrain.py --data_path recordings/ --model mae_vit_large_patch16

    # raw IQ, two folders
    python main_pretrain.py --data_path day1/ day2/ --sample_rate 20e6 --datatype ci16

    # start from weights: released ones, MAE's, those of another run
    python main_pretrain.py --data_path recordings/ --init radio_mae_vit_tiny
    python main_pretrain.py --data_path recordings/ --init mae_vit_base

    # go on with a run that was stopped: the same command, or from one of its checkpoints
    python main_pretrain.py --resume output_dir/checkpoint-40.pth

    # the encoder for other programs, also of a run that is finished: the same command and
    python main_pretrain.py --data_path recordings/ ... --export encoder.safetensors
"""

import contextlib
import time
from argparse import BooleanOptionalAction
from functools import partial

import torch
from timm.optim import param_groups_weight_decay

import models_mae
from data import registry
from data.feeding import make_loader
from data.sampling import EpochBatches, MaskedSamples, to_images
from engine_pretrain import Progress, evaluate, reconstruct, train_one_epoch
from util import checkpoint, compiling, cost, distributed, export, flops, joining, parallel, pretrained
from util import resume as resuming
from util.device import AMP_CHOICES, keep_freed_memory, mixed_precision, share_threads
from util.errors import StoppedError, UserError, reported, warn
from util.flags import OF_MAE, Parser
from util.plots import reconstruction_figure
from util.record import Record

# Flags that may differ between a run and the one that it resumes: where things are, and how fast they come.
FREE_FLAGS = {
    "output_dir", "log_dir", "device", "num_workers", "pin_mem", "resume", "keep", "save_every_steps", "save_every_epochs",
    "export", "export_dtype", "licence", "async_save", "peak_tflops", "init", "offline", *compiling.FLAGS, *joining.FLAGS,
}  # fmt: skip
PICTURES = 4


def get_args_parser():
    elsewhere = OF_MAE | {"finetune": "--init starts from weights"}
    parser = Parser("Pretrain a masked autoencoder on radio recordings.", elsewhere)
    data = registry.add_data_arguments(parser, required=False)
    data.add_argument("--val_fraction", type=float, default=0.1,
                      help="share of the recordings held out; of a single one, its end; 0 holds out none")

    model = parser.add_argument_group("model")
    model.add_argument("--init", metavar="FILE|NAME", help="weights to start from; without a decoder, the encoder alone")
    model.add_argument("--model", metavar="PRESET", help="where not given, that of --init or --resume, else "
                       f"{models_mae.DEFAULT_PRESET}; {', '.join(models_mae.PRESETS)}")  # fmt: skip
    pretrained.add_arguments(model)
    model.add_argument("--mask_ratio", type=float, default=0.75, help="share of the patches that is removed")
    model.add_argument("--mask_kind", default="random", choices=models_mae.MASK_KINDS)
    model.add_argument("--norm_pix_loss", action=BooleanOptionalAction, default=False,
                       help="predict patches of zero mean and unit variance; of --init, as the file has it")

    training = parser.add_argument_group("training")
    training.add_argument("--batch_size", type=int, default=64, help="samples of a process at a time")
    training.add_argument("--epochs", type=int, default=400)
    training.add_argument("--accum_iter", type=int, default=1, help="batches to a step")
    training.add_argument("--weight_decay", type=float, default=0.05)
    training.add_argument("--lr", type=float, help="learning rate; where not given blr * samples of a step / 256")
    training.add_argument("--blr", type=float, default=1e-3, help="base learning rate")
    training.add_argument("--min_lr", type=float, default=0.0, help="rate at the end of the cosine")
    training.add_argument("--warmup_epochs", type=int, default=40)
    training.add_argument("--clip_grad", type=float, help="largest norm of the gradient")
    training.add_argument("--start_epoch", type=int, default=0, help="first epoch of a run that resumes none")
    training.add_argument("--seed", type=int, default=0)

    run = parser.add_argument_group("run")
    run.add_argument("--output_dir", default="./output_dir", help="checkpoints, log.txt, reconstruction.png")
    run.add_argument("--log_dir", help="TensorBoard events; the output folder where not given")
    run.add_argument("--resume", default="auto", metavar="auto|none|PATH",
                     help="auto: go on with the run in the output folder, if there is one; none: start anew in an empty "
                          "one; a checkpoint: go on from it, with its flags where none are given")
    run.add_argument("--save_every_epochs", type=int, default=1, help="epochs from a checkpoint and picture to the next")
    run.add_argument("--save_every_steps", type=int, default=0, help="also write checkpoint-last.pth after so many steps")
    run.add_argument("--keep", type=int, default=3, help="newest checkpoint-<epoch>.pth to keep; 0 keeps all")
    run.add_argument("--async_save", action=BooleanOptionalAction, default=True,
                     help="write checkpoints while training goes on")
    run.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    run.add_argument("--amp", default="auto", choices=AMP_CHOICES, help="mixed precision; auto: as the machine computes")
    run.add_argument("--num_workers", type=int, default=distributed.default_workers(), help="data loading processes of each")
    run.add_argument("--pin_mem", action=BooleanOptionalAction, default=True,
                     help="page-locked buffers on the way to a GPU")
    compiling.add_arguments(run)
    run.add_argument("--peak_tflops", default="auto", metavar="TFLOPS",
                     help="what the log's MFU (model FLOPs utilization) is a share of; auto measures a matrix product")
    joining.add_arguments(run)
    export.add_arguments(run, ".safetensors, the encoder alone where the name has \"encoder\" in it, else the decoder too")
    return parser


def check_args(args):
    """Refuse values that no run can have, before anything is opened."""
    if args.init and resuming.is_named(args.resume):
        raise UserError(f"--init, --resume: expected one of them; found {args.init} and {args.resume}: --resume goes on "
                        "with a run, --init starts one from weights")  # fmt: skip
    at_least = {"batch_size": 1, "epochs": 1, "accum_iter": 1, "weight_decay": 0, "blr": 0, "lr": 0, "min_lr": 0,
                "warmup_epochs": 0, "start_epoch": 0, "seed": 0, "save_every_epochs": 1, "save_every_steps": 0, "keep": 0,
                "num_workers": 0, "scenes": 1}  # fmt: skip
    for name, least in at_least.items():
        value = getattr(args, name)
        if value is not None and not value >= least:
            raise UserError(f"--{name}: expected at least {least}; found {value}")
    if args.clip_grad is not None and not args.clip_grad > 0:
        raise UserError(f"--clip_grad: expected a positive number; found {args.clip_grad}")
    for name in ("mask_ratio", "val_fraction"):
        if not 0 <= getattr(args, name) < 1:
            raise UserError(f"--{name}: expected a share of at least 0 and below 1; found {getattr(args, name)}")
    if args.start_epoch >= args.epochs:
        raise UserError(f"--start_epoch: expected less than --epochs {args.epochs}; found {args.start_epoch}")
    export.check_args(args, onnx=False)


def open_data(args, device, trained_with):
    """Open what there is to train on.

    Args:
        trained_with: settings of the front end of the weights to start from or the run to resume, or None.

    Returns:
        (training source, held-out source or None, front end, front-end settings for the checkpoint).
    """
    found = registry.find(args.data_path)
    front_end = registry.front_end_for(found, args, trained_with, flags_decide=True)
    source = registry.open_source(found, front_end, args, args.seed, on_device=device.type != "cpu")
    settings = {"kind": "images", "image_size": list(front_end.image_size)} if found.images else front_end.settings()
    if not args.val_fraction:
        return source, None, front_end, settings
    return *source.split(args.val_fraction, args.seed), front_end, settings


def start_from(args, init):
    """Fill in what the weights of `--init` say of the model."""
    preset = models_mae.preset_of(init, args.init) if init else models_mae.DEFAULT_PRESET
    args.model = args.model or preset  # of a run to resume it is there already
    if init and models_mae.PRESETS.get(args.model) != models_mae.PRESETS[preset]:
        raise UserError(f"--model {args.model}: expected {preset}, whose sizes {args.init} has; found another")
    args.norm_eps = pretrained.pick_norm_eps(args.norm_eps, init)
    if init and "norm_pix_loss" not in args.given and isinstance(init.args.get("norm_pix_loss"), bool):
        args.norm_pix_loss = init.args["norm_pix_loss"]


def report_held_out(when, stats, log, step):
    print(f"{when} held out: loss {stats['val_loss']:.4f}, predicting the mean {stats['val_mean_loss']:.4f}  "
          f"({stats['val_samples']} samples)", flush=True)  # fmt: skip
    log.scalars(step, {"val/loss": stats["val_loss"], "val/mean_loss": stats["val_mean_loss"]})


def check_resumed(args, path, state, flags, settings, num_samples):
    """See that a checkpoint is of this run; warn of flags that have changed where it was named."""
    if state["args"].get("model") != args.model:
        raise UserError(f"{path}: expected a checkpoint of {args.model}; found one of {state['args'].get('model')}")
    if state["front_end"] != settings:
        raise UserError(f"{path}: expected the front end {settings}; found one trained with {state['front_end']}")
    changed = resuming.differences(state, flags, FREE_FLAGS, resuming.effective_batch(args))
    if changed and args.resume == "auto":
        raise UserError(f"{path}: expected the flags of the run to resume; found {'; '.join(changed)} (give --resume "
                        f"{path} to go on with the new ones, or another --output_dir)")
    if changed:
        warn(f"resuming {path} with other flags: {'; '.join(changed)}")
    if state["num_samples"] != num_samples:
        raise UserError(f"{path}: expected a run on {num_samples} training samples; found one on {state['num_samples']}")


def picture(model, front_end, source, dataset, args, device, epoch):
    """Reconstructions of a few samples, spread over the source, with axes where they are known; drawn by rank 0 alone.

    A model that is divided computes with all processes.
    """
    if not (distributed.is_main() or args.shard):
        return None
    count = min(PICTURES, len(dataset))
    chosen = [number * len(dataset) // count for number in range(count)]
    rows = []
    for index in chosen:
        batch = dataset.batch([(0, index)])
        images = to_images(batch["parts"], front_end, device)
        rebuilt, removed = reconstruct(model, images, torch.from_numpy(batch["noise"]).to(device), args.mask_ratio)
        about = source.describe(index, None)
        rate = about.get("sample_rate_hz")
        extent = rate and front_end.extent(rate, about["center_freq_hz"], about["num_samples"])
        at = f", {about['start_s'] * 1e3:.1f} ms in" if rate else ""
        rows.append({"title": about["name"] + at, "extent": extent, "original": images[0, 0].cpu().numpy(),
                     "reconstruction": rebuilt[0, 0].cpu().numpy(), "removed": removed[0, 0].cpu().numpy()})
    caption = f"{args.model}, epoch {epoch}, {args.mask_ratio:.0%} removed ({args.mask_kind}); visible patches as they are"
    if args.norm_pix_loss:
        caption += "; predicted patches are put back with the mean and variance of the original patches"
    return reconstruction_figure(rows, caption) if distributed.is_main() else None


def main(args):
    with joining.joined(args) as device, distributed.StopSignal() as stop:
        check_args(args)
        keep_freed_memory()
        if device.type == "cpu":
            share_threads(distributed.local_world_size())
        with contextlib.ExitStack() as opened:
            if distributed.is_main():
                opened.enter_context(checkpoint.output_folder(args.output_dir))
                opened.enter_context(export.destination(args.export))
            train(args, device, stop)


def train(args, device, stop):
    way = compiling.pick_compile(args, device, distributed.world_size())
    torch.manual_seed(args.seed)

    # what to start from
    path, state = resuming.find(args.resume, args.output_dir)
    if state:
        resuming.take_flags(args, state, FREE_FLAGS)
    resuming.require(args, "data_path")
    init = pretrained.read_weights(args.init, args.offline) if args.init and not state else None
    start_from(args, init)

    # data
    source, held_out, front_end, settings = open_data(args, device, state["front_end"] if state else init and init.front_end)
    width = models_mae.PRESETS.get(args.model, {}).get("embed_dim", 512)
    args.amp = resuming.pick_amp(args.amp, state, device, width)
    autocast, scaler = mixed_precision(args.amp, device)
    flags = vars(args).copy()
    if state:
        resuming.keep_effective_batch(args, state)
    args.lr = args.lr if args.lr is not None else args.blr * resuming.effective_batch(args) / 256
    flags["lr"] = args.lr

    # model
    create = partial(models_mae.create_model, args.model, img_size=front_end.image_size, in_chans=source.in_chans,
                     norm_pix_loss=args.norm_pix_loss, mask_kind=args.mask_kind, norm_eps=args.norm_eps)  # fmt: skip
    model = create()
    model.grad_ckpt = args.grad_ckpt
    front_end = front_end.to(device)
    if state:
        check_resumed(args, path, state, flags, settings, len(source))
        checkpoint.load_model(model, state["model"], path)
    elif init:
        print(init.load_into(model, args.init).summary())
    shape = (1, source.in_chans, *front_end.image_size)
    trained = parallel.wrap(model, device, args.shard, same_graph=args.accum_iter == 1)
    parallel.dry_run(trained, lambda: trained(torch.zeros(shape, device=device), args.mask_ratio)[0])
    compiling.compile_model(model, way, args.batch_size, args.amp, model.num_visible(args.mask_ratio))
    groups = param_groups_weight_decay(model, args.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95), fused=True)

    # batches
    dataset = MaskedSamples(source, model.num_patches, args.seed, training=True)
    ours = {"part": distributed.rank(), "parts": distributed.world_size()}
    batches = EpochBatches(len(dataset), args.batch_size, args.seed, shuffle=True, **ours)
    pin = args.pin_mem and device.type == "cuda"
    loader = make_loader(dataset, batches, args.num_workers, pin)
    if held_out is not None:
        held_out = MaskedSamples(held_out, model.num_patches, args.seed, training=False)
        held_out_batches = EpochBatches(len(held_out), args.batch_size, args.seed, shuffle=False, **ours)
        held_out_loader = make_loader(held_out, held_out_batches, args.num_workers, pin)
    steps_per_epoch = -(-len(batches) // args.accum_iter)

    # where to go on
    progress, first_epoch = Progress(args.start_epoch * steps_per_epoch), args.start_epoch
    if state:
        first_epoch = resuming.first_epoch(state, resuming.effective_batch(args))
        progress = Progress(**state["progress"])
        parallel.load_optimizer(optimizer, state["optimizer"])
        scaler.load_state_dict(state["scaler"])
        checkpoint.set_random_state(state["rng"])
        print(f"resumed from {path}: epoch {state['epoch']} done, {progress.step} steps")
        del state

    memory = cost.memory_line(model, device, min(args.batch_size, len(dataset)), args, model.num_visible(args.mask_ratio))
    print(f"{args.model}: {memory}, on {device}, amp {args.amp}, compile {way}")
    print(f"front end: {settings}")
    print(f"{len(dataset)} training samples, {len(held_out or ())} held out; {resuming.batch_description(args)}, "
          f"lr {args.lr:.3g}, {steps_per_epoch} steps an epoch")  # fmt: skip

    def loss_of_zeros():
        images = torch.zeros(args.batch_size, *shape[1:], device=device)
        with autocast():
            return trained(images, args.mask_ratio, torch.zeros(args.batch_size, model.num_patches, device=device))[0]

    compiling.warm_up(trained.train(), way, loss_of_zeros)
    utilization = flops.Utilization(flops.pretraining_flops(model, args.mask_ratio),
                                    flops.peak_flops_per_s(args.peak_tflops, args.amp, device))  # fmt: skip

    args.log_dir = args.log_dir or args.output_dir
    about = {"num_samples": len(dataset), "effective_batch": resuming.effective_batch(args), "args": flags,
             "front_end": settings, "classes": []}  # fmt: skip
    with Record(args.output_dir, args.log_dir, model, optimizer, scaler, progress, about, first_epoch, args.keep,
                args.async_save) as record:  # fmt: skip
        log = record.log
        started = time.perf_counter()
        if init and held_out is not None:
            stats = evaluate(model, front_end, held_out_loader, device, args.mask_ratio, autocast, stop)
            report_held_out("before the first step", stats, log, progress.step)
            log.epoch({"epoch": first_epoch - 1, "step": progress.step, **stats})
        for epoch in range(first_epoch, args.epochs):
            if progress.epoch_step == 0:
                progress.start_epoch()
            batches.epoch, batches.first_batch = epoch, progress.epoch_step * args.accum_iter
            try:
                stats = train_one_epoch(
                    trained, front_end, loader, optimizer, scaler, device, epoch, progress, log, args, autocast,
                    partial(record.save, epoch), stop, utilization,
                )  # fmt: skip
                if held_out is not None:
                    stats |= evaluate(model, front_end, held_out_loader, device, args.mask_ratio, autocast, stop)
            except StoppedError as reason:
                record.stop(reason, epoch)
            if held_out is not None:
                report_held_out(f"epoch {epoch}/{args.epochs}", stats, log, progress.step)
            log.epoch({"epoch": epoch, "step": progress.step, **stats})
            progress.start_epoch()
            if (epoch + 1) % args.save_every_epochs == 0 or epoch + 1 == args.epochs:
                shown = (held_out.source, held_out) if held_out is not None else (source, dataset)
                log.figure(progress.step, picture(model, front_end, *shown, args, device, epoch))
                record.save(epoch, completed=True, numbered=True)
            elif args.save_every_steps:
                record.save(epoch, completed=True)
        record.finish()
        print(f"trained to epoch {args.epochs} in {time.perf_counter() - started:.0f} s; see "
              f"{args.output_dir}/reconstruction.png, log.txt, {checkpoint.LAST}")
        if args.export:
            built = {"model": args.model, "in_chans": source.in_chans, "norm_pix_loss": args.norm_pix_loss,
                     "mask_kind": args.mask_kind, "mask_ratio": args.mask_ratio, "norm_eps": args.norm_eps}  # fmt: skip
            about = export.about("main_pretrain.py", get_args_parser(), flags, args.licence, holds="mae",
                                 front_end=settings, args=built)  # fmt: skip
            model = parallel.unsharded(model, create)
            if distributed.is_main():
                export.export(args.export, model, about, args.export_dtype)


if __name__ == "__main__":
    with reported():
        main(get_args_parser().parse_args())
