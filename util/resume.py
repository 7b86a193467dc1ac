"""Going on with a run: which checkpoint, whether it is of this run, and with how many processes."""

from pathlib import Path

from util import checkpoint, device
from util.distributed import broadcast, world_size
from util.errors import UserError

# Compared as their product with the number of processes, which is what a step sees.
BATCH_FLAGS = ("batch_size", "accum_iter")


def find(resume, output_dir):
    """The checkpoint that `--resume` names, read by rank 0 for all processes: (path, state), or (None, None).

    Args:
        resume: "auto", the newest whole checkpoint of `output_dir`, if there is one; "none" (or "", MAE's default), which
            wants a folder without checkpoints; or a path.

    Raises:
        UserError: the file is no whole checkpoint, or the folder has some though none is wanted.
    """

    def read():
        if resume in ("", "none") and any(Path(output_dir).glob("checkpoint-*.pth")):
            raise UserError(f"--resume none: expected an --output_dir without checkpoints; found some in {output_dir}")
        path = checkpoint.newest(output_dir) if resume == "auto" else None if resume in ("", "none") else resume
        return (None, None) if path is None else (str(path), checkpoint.load(path))

    path, state = broadcast(read)
    return path and Path(path), state


def is_named(resume):
    """Whether `--resume` names a checkpoint."""
    return resume not in ("auto", "none", "")


def take_flags(args, state, free):
    """Give each flag that was not given the value that it has in a checkpoint's run: all if the checkpoint was named.

    Of a checkpoint that was found, the command's own flags count, but for `model`, which weights may have decided.

    Args:
        args: `util.flags.Flags`, changed in place; free: names of those that are no matter of the run.
    """
    theirs = state["args"]
    names = theirs.keys() - set(free) if is_named(args.resume) else {"model", "norm_eps", "norm_pix_loss"}
    take(args, state, *(name for name in names if hasattr(args, name)))


def take(args, state, *names):
    """Give these flags, where they were not given, the values that they have in a checkpoint's run."""
    for name in state["args"].keys() & set(names) - args.given:
        setattr(args, name, state["args"][name])


def require(args, *names):
    """Refuse flags that neither the command nor a checkpoint gave."""
    for name in names:
        if not getattr(args, name):
            raise UserError(f"--{name}: expected it, or --resume CHECKPOINT, which has it; found none")


def pick_amp(name, state, on, width):
    """`util.device.pick_amp` for all processes alike; for "auto" what the run of a checkpoint has, if the device can.

    Args:
        state: of the checkpoint, or None; on: the device; width: of the model.
    """
    theirs = state and state["args"].get("amp")
    if name == "auto" and theirs in ("bf16", "off") and on.type == "cpu":
        return theirs
    return broadcast(lambda: device.pick_amp(name, on, width))


def effective_batch(args):
    """Samples that an optimizer step sees, over all processes and accumulated batches."""
    return args.batch_size * args.accum_iter * world_size()


def keep_effective_batch(args, state):
    """With another number of processes than a checkpoint's run had, accumulate so that a step sees as many samples.

    Changes `args.accum_iter` where only the number of processes is another and divides the step's samples.
    """
    theirs = state["args"]
    same = all(theirs.get(name) == getattr(args, name) for name in BATCH_FLAGS)
    together = args.batch_size * world_size()
    wanted = state.get("effective_batch", 0)
    if same and wanted and effective_batch(args) != wanted and wanted % together == 0:
        args.accum_iter = wanted // together
        print(f"{world_size()} processes: --accum_iter {args.accum_iter} keeps the {wanted} samples of a step")


def differences(state, flags, free, batch):
    """What the run of a checkpoint has otherwise, as "--flag value there, value here".

    Args:
        flags: this run's, by name; free: names of those that may differ; batch: this run's `effective_batch`.
    """
    theirs = state["args"]
    changed = [f"--{name} {theirs.get(name)} there, {value} here" for name, value in flags.items()
               if name not in free and name not in BATCH_FLAGS and theirs.get(name, value) != value]  # fmt: skip
    if state["effective_batch"] != batch:
        changed.append(f"--batch_size x --accum_iter x processes {state['effective_batch']} there, {batch} here")
    return changed


def first_epoch(state, batch):
    """The epoch in which the run of a checkpoint goes on; the step in it is with its progress.

    Raises:
        UserError: it is in the middle of an epoch, of which other steps than this run's are done.
    """
    if state["progress"]["epoch_step"] and state["effective_batch"] != batch:
        raise UserError(f"--batch_size: expected {state['effective_batch']} samples to a step over all processes, to go on "
                        f"within an epoch; found {batch}")  # fmt: skip
    return state["epoch"] + 1


def batch_description(args):
    """ "batch 16 x 1", and of several processes how many."""
    return f"batch {args.batch_size} x {args.accum_iter}" + (f" x {world_size()} processes" if world_size() > 1 else "")
