"""Pretrain a masked autoencoder on IQ recordings, spectrogram sets or spectrogram images.

    # a GPU
    python main_pretrain.py --data_path recordings/ --model mae_vit_small_patch16 --norm_pix_loss

    # scenes of NR, LTE and others, generated during training
    python main_pretrain.py --data_path synthetic

    # eight GPUs; two machines of eight, the same line on both
    torchrun --nproc_per_node=8 main_pretrain.py --data_path recordings/ --model mae_vit_large_patch16
    torchrun --nnodes=2 --nproc_per_node=8 --rdzv_backend=c10d --rdzv_endpoint=first-machine:29500 \
        --max-restarts=3 main_pretrain.py --data_path recordings/ --model mae_vit_large_patch16

    # raw IQ, two folders
    python main_pretrain.py --data_path day1/ day2/ --sample_rate 20e6 --datatype ci16

    # start from weights: released ones, MAE's, those of another run
    python main_pretrain.py --data_path recordings/ --init radio_mae_vit_tiny

    # continue a run that was stopped: the same command, or one of its checkpoints
    python main_pretrain.py --resume output_dir/checkpoint-40.pth

    # the encoder for other programs: the same command, also when the run is finished, and
    python main_pretrain.py --data_path recordings/ ... --export encoder.safetensors
"""

from util import interrupts  # noqa: F401, first: Ctrl-C may come while libraries are imported

# isort: split
from argparse import BooleanOptionalAction

import torch
from timm.optim import param_groups_weight_decay

import engine_pretrain
import models_mae
import models_presets
from data import fingerprint as data_fingerprint
from data import registry
from data.batches import Batches, MaskedSamples
from data.spectrogram_set import SpectrogramSet
from util import checkpoint, compiling, parallel, pretrained, resume
from util import run as runs
from util.errors import UserError, reported
from util.flags import OF_MAE, Parser
from util.progress import Progress

# Flags that may differ between a run and the one that it resumes.
FREE_FLAGS = runs.FREE_FLAGS | {"keep", "save_every_epochs", "peak_tflops", "init"}


def get_args_parser():
    elsewhere = OF_MAE | {"finetune": "--init starts from weights"}
    parser = Parser("Pretrain a masked autoencoder on radio recordings.", elsewhere)
    data = registry.add_data_arguments(parser, required=False)
    held_out = "share of the recordings held out; of a single one, its end; 0 holds out none"
    data.add_argument("--val_fraction", type=float, default=0.1, help=held_out)

    model = parser.add_argument_group("model")
    model.add_argument(
        "--init", metavar="FILE|NAME", help="weights to start from; the encoder may come alone"
    )
    default = f"where not given, that of --init or --resume, else {models_mae.DEFAULT_PRESET}"
    model.add_argument("--model", metavar="PRESET", help=f"{default}; {', '.join(models_mae.PRESETS)}")
    pretrained.add_arguments(model)
    model.add_argument("--mask_ratio", type=float, default=0.75, help="share of the patches that is removed")
    model.add_argument("--mask_kind", default="random", choices=models_mae.MASK_KINDS)
    normalized = "predict patches of zero mean and unit variance; with --init, as the file has it"
    model.add_argument("--norm_pix_loss", action=BooleanOptionalAction, default=False, help=normalized)

    holds = "checkpoints, log.txt, reconstruction.png"
    exports = '.safetensors, the encoder alone where the name has "encoder" in it, else the decoder too'
    training, run = runs.add_arguments(parser, "./output_dir", holds, exports)
    training.add_argument("--start_epoch", type=int, default=0, help="first epoch of a run that resumes none")
    run.add_argument("--save_every_epochs", type=int, default=1, help="epochs from checkpoint to checkpoint")
    run.add_argument("--keep", type=int, default=3, help="newest checkpoint-<epoch>.pth to keep; 0 keeps all")
    peak = "peak rate of the device, for the MFU (model FLOPs utilization) in the log; auto measures it"
    run.add_argument("--peak_tflops", default="auto", metavar="TFLOPS", help=peak)
    parser.set_defaults(batch_size=64, epochs=400, weight_decay=0.05, blr=1e-3, min_lr=0.0, warmup_epochs=40)
    return parser


def check_args(args):
    """Refuse values that no run can have, before anything is opened."""
    if args.init and resume.is_named(args.resume):
        raise UserError(
            f"--init, --resume: expected one of them; found {args.init} and {args.resume}: --resume continues a run, "
            "--init starts one from weights"
        )
    runs.check_args(args)
    if args.start_epoch >= args.epochs:
        raise UserError(f"--start_epoch: expected less than --epochs {args.epochs}; found {args.start_epoch}")
    if args.export:
        from util import export

        export.check_args(args, onnx=False)


def completed(args, state, init):
    """The flags with what the checkpoint of a run or the weights of `--init` say of the model."""
    if state:
        args = resume.with_flags_of(args, state, FREE_FLAGS)
    resume.require(args, "data_path")
    preset = f"mae_{models_presets.preset_of(init, args.init)}" if init else models_mae.DEFAULT_PRESET
    model = args.model or preset
    if init and models_mae.PRESETS.get(model) != models_mae.PRESETS[preset]:
        raise UserError(f"--model {model}: expected {preset}, whose sizes {args.init} has; found another")
    args = args.replaced(model=model, norm_eps=pretrained.pick_norm_eps(args.norm_eps, init))
    if init and "norm_pix_loss" not in args.given and isinstance(init.args.get("norm_pix_loss"), bool):
        args = args.replaced(norm_pix_loss=init.args["norm_pix_loss"])
    return args


def open_data(args, device, trained_with):
    """Open the data to train on.

    Args:
        trained_with: front-end settings of the weights to start from or of the run to resume, or None.

    Returns:
        (training source, held-out source or None, front end, front-end settings for the checkpoint).
    """
    found = registry.find(args.data_path, registry.is_raw(args))
    front_end = registry.front_end_for(found, args, trained_with, flags_decide=True)
    source = registry.open_source(found, front_end, args, args.seed, on_device=device.type != "cpu")
    images = {"kind": "images", "image_size": list(front_end.image_size)}
    settings = images if found.images else front_end.settings()
    source, held_out = source.split(args.val_fraction, args.seed) if args.val_fraction else (source, None)
    return source, held_out, front_end.to(device), settings


def create_model(args, image_size, in_chans):
    kwargs = {name: getattr(args, name) for name in ("norm_pix_loss", "mask_kind", "norm_eps")}
    model = models_mae.create_model(args.model, img_size=image_size, in_chans=in_chans, **kwargs)
    model.grad_ckpt = args.grad_ckpt
    return model


def load(model, path, state, init, run):
    """Load the checkpoint of a run or the weights of `--init`, if there are any."""
    if state:
        if state["args"].get("model") != run.args.model:
            raise UserError(
                f"{path}: expected a checkpoint of {run.args.model}; found one of {state['args'].get('model')}"
            )
        resume.check_flags(path, state, run, run.flags, FREE_FLAGS)
        resume.check_data(path, state, run)
        checkpoint.load_model(model, state["model"], path)
    elif init:
        print(init.load_into(model, run.args.init).summary())


def main(args):
    with runs.started(args, check_args) as (device, stop):
        torch.manual_seed(args.seed)
        path, state = resume.find(args.resume, args.output_dir)
        init = pretrained.read_weights(args.init, args.offline) if args.init and not state else None
        args = completed(args, state, init)
        runs.check_args(args)

        # data
        trained_with = state["front_end"] if state else init and init.front_end
        source, held_out, front_end, settings = open_data(args, device, trained_with)
        about = {"num_samples": len(source), "front_end": settings, "classes": []}
        about["data"] = data_fingerprint.fingerprint(source, held_out)
        width = models_mae.PRESETS.get(args.model, {}).get("embed_dim", 512)
        run = runs.prepare(args, device, stop, state, width, about)

        # model and optimizer
        model = create_model(args, front_end.image_size, source.in_chans)
        model.pads = front_end.pads
        load(model, path, state, init, run)
        if state:
            data_fingerprint.check(path, state.get("data"), source, held_out)
        sets = isinstance(source, SpectrogramSet) or settings.get("kind") == "images"
        ready = sets, "sample_rate datatype", "the data are no recordings"
        args.warn_unused(
            ready,
            (settings.get("kind") == "images", "n_fft window_ms", "the data are images"),
            *runs.unused(args),
        )
        visible, shape = model.num_visible(args.mask_ratio), (source.in_chans, *front_end.image_size)
        trained = parallel.wrap(model, device, args.shard, same_graph=run.accum_iter == 1)
        parallel.dry_run(trained, lambda: trained(torch.zeros(1, *shape, device=device), args.mask_ratio)[0])
        compiling.compile_model(model, run.compile_mode, args.batch_size, run.amp, visible)
        groups = param_groups_weight_decay(model, args.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=run.lr, betas=(0.9, 0.95), fused=True)

        # batches
        samples = MaskedSamples(source, model.num_patches, args.seed, training=True)
        batches = Batches(samples, front_end, device, args, shuffle=True)
        if held_out is not None:
            held_out = MaskedSamples(held_out, model.num_patches, args.seed, training=False)
            held_out = Batches(held_out, front_end, device, args)

        # train
        steps_per_epoch = -(-len(batches) // run.accum_iter)
        progress, first_epoch = Progress(args.start_epoch * steps_per_epoch), args.start_epoch
        if state:
            progress, first_epoch = resume.restore(path, state, optimizer, run, steps_per_epoch)
            del state
        memory = run.memory_line(model, len(samples), visible)
        print(f"{args.model}: {memory}, on {device}, {run.precision()}")
        print(f"front end: {settings}")
        counts = f"{len(samples)} training samples, {len(held_out.dataset) if held_out else 0} held out"
        print(f"{counts}; {run.description()}, {steps_per_epoch} steps an epoch")
        engine_pretrain.warm_up(trained, run, shape)
        with run.record:
            position = progress, first_epoch
            engine_pretrain.train(trained, optimizer, batches, held_out, run, *position, bool(init))
        if args.export:
            write_export(run, model, source.in_chans)


def write_export(run, model, in_chans):
    """Write the trained weights to `--export`."""
    from util import export

    args = run.args
    names = ("model", "norm_pix_loss", "mask_kind", "mask_ratio", "norm_eps")
    built = {name: getattr(args, name) for name in names} | {"in_chans": in_chans}
    known = {"holds": "mae", "front_end": run.record.about["front_end"], "args": built}
    about = export.about("main_pretrain.py", get_args_parser(), run.flags, args.licence, **known)
    model = parallel.unsharded(model, lambda: create_model(args, model.img_size, in_chans))
    export.export(args.export, model, about, args.export_dtype)


if __name__ == "__main__":
    with reported():
        main(get_args_parser().parse_args())
