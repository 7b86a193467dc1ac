"""The settings of a training run besides model and data. `prepare` derives them from the flags once."""

import contextlib
from argparse import BooleanOptionalAction
from collections.abc import Callable
from dataclasses import dataclass

import torch

from util import checkpoint, compiling, cost, distributed, joining, resume
from util.device import AMP_CHOICES, keep_freed_memory, mixed_precision, share_threads
from util.errors import UserError
from util.files import writable_folder
from util.flags import MOST, Flags
from util.flops import peak_flops_per_s
from util.lr_sched import half_cosine
from util.record import Record

# Flags of `add_arguments` that may differ when resuming: folders and speed.
FREE_FLAGS = {
    *(
        "output_dir",
        "log_dir",
        "resume",
        "device",
        "num_workers",
        "pin_mem",
        "async_save",
        "save_every_steps",
    ),
    *("export", "export_dtype", "licence", "offline"),
    *compiling.FLAGS,
    *joining.FLAGS,
}


def add_arguments(parser, output_dir, holds, exports):
    """Add the flags of both trainers; returns the groups "training" and "run" for a trainer's own flags.

    Args:
        output_dir: default of `--output_dir`; holds: its content, for the help; exports: what `--export`
            writes.
    """
    training = parser.add_argument_group("training")
    training.add_argument("--batch_size", type=int, help="samples of a process at a time")
    training.add_argument("--epochs", type=int)
    training.add_argument("--accum_iter", type=int, default=1, help="batches per step")
    training.add_argument(
        "--lr", type=float, help="learning rate; blr * samples per step / 256 where not given"
    )
    training.add_argument("--blr", type=float, help="base learning rate")
    training.add_argument("--min_lr", type=float, help="rate at the end of the cosine")
    training.add_argument("--warmup_epochs", type=int)
    training.add_argument("--weight_decay", type=float)
    training.add_argument("--clip_grad", type=float, help="largest norm of the gradient")
    training.add_argument("--seed", type=int, default=0)

    run = parser.add_argument_group("run")
    run.add_argument("--output_dir", default=output_dir, help=holds)
    run.add_argument("--log_dir", help="TensorBoard events; the output folder where not given")
    run.add_argument(
        "--resume",
        default="auto",
        metavar="auto|none|PATH",
        help="auto: continue the run in the output folder, if there is one; none: start anew in an empty folder; "
        "a checkpoint: continue from it, with its flags where none are given",
    )
    run.add_argument(
        "--save_every_steps", type=int, default=0, help="also write checkpoint-last.pth after so many steps"
    )
    run.add_argument(
        "--async_save", action=BooleanOptionalAction, default=True, help="write checkpoints while training"
    )
    run.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    run.add_argument(
        "--amp", default="auto", choices=AMP_CHOICES, help="mixed precision; auto: what the machine has"
    )
    workers = distributed.default_workers()
    run.add_argument(
        "--num_workers", type=int, default=workers, help="data loading processes of each process"
    )
    run.add_argument(
        "--pin_mem", action=BooleanOptionalAction, default=True, help="page-locked buffers to a GPU"
    )
    compiling.add_arguments(run)
    joining.add_arguments(run)
    run.add_argument("--export", metavar="FILE", help=f"write the trained weights: {exports}")
    run.add_argument(
        "--export_dtype", choices=("float32", "float16"), default="float32", help="of .safetensors"
    )
    run.add_argument(
        "--licence", default="not stated", metavar="NAME", help="of the exported weights, for their header"
    )
    return training, run


@contextlib.contextmanager
def started(args, check):
    """Join the processes of the run, catch signals, call `check(args)`, and open the folders.

    Yields:
        (device, `util.distributed.StopSignal`).
    """
    with joining.joined(args) as device, distributed.StopSignal() as stop:
        check(args)
        keep_freed_memory()
        if device.type == "cpu":
            share_threads(distributed.local_world_size())
        with contextlib.ExitStack() as opened:
            if distributed.is_main():
                opened.enter_context(checkpoint.output_folder(args.output_dir))
                if args.log_dir:
                    opened.enter_context(writable_folder(args.log_dir, f"--log_dir {args.log_dir}"))
                if args.export:
                    from util import export

                    opened.enter_context(export.destination(args.export))
            yield device, stop


def cosine(epoch, lr, args):
    """Learning rate at a position in epochs: linear warm-up, then half a cosine."""
    return half_cosine(epoch, lr, args.min_lr, args.warmup_epochs, args.epochs)


@dataclass(frozen=True)
class Run:
    """A training run: where and how it computes, and where it writes.

    Attributes:
        args: the completed flags; nothing changes them.
        device, amp, autocast, scaler: precision by name, function that makes its context, gradient scaler.
        compile_mode: "on", "graphs" or "off".
        accum_iter: batches per step; effective_batch: samples per step, over all processes.
        lr: peak learning rate; schedule: (position in epochs, lr, args) -> rate.
        stop: a `util.distributed.StopSignal`; record: the `util.record.Record` for log and checkpoints.
        peak_flops_per_s: of a device, for the model FLOPs utilization; None: not shown.
    """

    args: Flags
    device: torch.device
    amp: str
    autocast: Callable
    scaler: torch.amp.GradScaler
    compile_mode: str
    accum_iter: int
    effective_batch: int
    lr: float
    schedule: Callable
    stop: distributed.StopSignal
    record: Record
    peak_flops_per_s: float | None = None

    @property
    def flags(self):
        """The flags for checkpoints: dict, with the chosen precision and rate."""
        return self.record.about["args"]

    def rate(self, epoch):
        """Learning rate at a position in epochs."""
        return self.schedule(epoch, self.lr, self.args)

    def precision(self):
        """Precision and compile mode, for the console."""
        return f"amp {self.amp}, compile {self.compile_mode}"

    def description(self):
        """Batch and rate, for the console."""
        several = f" x {distributed.world_size()} processes" if distributed.world_size() > 1 else ""
        return f"batch {self.args.batch_size} x {self.accum_iter}{several}, lr {self.lr:.3g}"

    def memory_line(self, model, num_samples, visible=None):
        """A line about parameters and memory; see `util.cost.memory_line`."""
        return cost.memory_line(
            model, self.device, min(self.args.batch_size, num_samples), self.args, self.amp, visible
        )


def prepare(args, device, stop, saved, width, about, schedule=cosine, folder=None, log_dir=None):
    """The `Run` of these flags.

    Args:
        saved: the checkpoint to resume from, or None; width: of the model, decides `--amp auto` on a CPU.
        about: for checkpoints: "num_samples", "front_end", "classes"; the flags are added.
        folder, log_dir: instead of those of the flags.
    """
    compile_mode = compiling.pick_compile(args, device, distributed.world_size())
    amp = resume.pick_amp(args.amp, saved, device, width)
    autocast, scaler = mixed_precision(amp, device)
    accum_iter = resume.accumulation(args, saved)
    effective_batch = args.batch_size * accum_iter * distributed.world_size()
    lr = args.blr * effective_batch / 256 if args.lr is None else args.lr
    for what, value in (
        ("--blr x samples of a step / 256", lr),
        ("rate x --weight_decay", lr * args.weight_decay),
    ):
        if not value <= MOST["lr"]:
            raise UserError(f"{what}: expected at most {MOST['lr']:g}; found {value:g}")
    about = {"effective_batch": effective_batch, "args": vars(args) | {"amp": amp, "lr": lr}, **about}
    record = Record(
        folder or args.output_dir, log_dir or args.log_dir, about, getattr(args, "keep", 0), args.async_save
    )
    peak = getattr(args, "peak_tflops", None)
    return Run(
        args,
        device,
        amp,
        autocast,
        scaler,
        compile_mode,
        accum_iter,
        effective_batch,
        lr,
        schedule,
        stop,
        record,
        peak and peak_flops_per_s(peak, amp, device),
    )


def unused(args):
    """Rows of `util.flags.Flags.warn_unused` for both trainers."""
    synthetic = any(str(path).partition(":")[0] == "synthetic" for path in args.data_path)
    named = resume.is_named(args.resume)
    return (
        (args.lr is not None and "lr" in args.given, "blr", "--lr goes first"),
        (not args.export, "export_dtype licence", "without --export"),
        (not synthetic, "scenes", "without --data_path synthetic"),
        (synthetic and len(args.data_path) == 1, "sample_rate datatype", "scenes have their own"),
        (named, "start_epoch", "a checkpoint says where to go on"),
    )


def check_args(args):
    """Check the flags of both trainers.

    Raises:
        UserError: names the flag.
    """
    args.check_ranges()
    for name in ("mask_ratio", "val_fraction", "test_fraction", "drop_path", "smoothing"):
        value = getattr(args, name, None)
        if value is not None and not 0 <= value < 1:
            raise UserError(f"--{name}: expected a share of at least 0 and below 1; found {value}")
    if args.clip_grad is not None and not args.clip_grad > 0:
        raise UserError(f"--clip_grad: expected a positive number; found {args.clip_grad}")
