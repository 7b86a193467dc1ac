"""Resume a run: find its checkpoint, compare its flags and data, and restore it."""

from pathlib import Path

from util import checkpoint, device, parallel
from util.distributed import broadcast, world_size
from util.errors import UserError, warn
from util.progress import Progress
from util.state import POSITION, check_optimizer

# Compared as their product with the number of processes: the samples of a step.
BATCH_FLAGS = ("batch_size", "accum_iter")


def find(resume, output_dir):
    """The checkpoint of `--resume`, read by rank 0 for all processes: (path, state), or (None, None).

    Args:
        resume: "auto": the newest whole checkpoint of `output_dir`, if any; "none" (or "", MAE's default): no
            checkpoint, and `output_dir` must have none; or a path.

    Raises:
        UserError: the file is no whole checkpoint, or with "none" the folder has checkpoints.
    """

    def read():
        if resume in ("", "none") and any(Path(output_dir).glob("checkpoint-*.pth")):
            raise UserError(
                f"--resume none: expected an --output_dir without checkpoints; found some in {output_dir}"
            )
        path = (
            checkpoint.newest(output_dir) if resume == "auto" else None if resume in ("", "none") else resume
        )
        if path is None:
            return None, None
        state = checkpoint.load(path)
        missing = [name for name in ("effective_batch",) if name not in state]
        if missing := missing + [name for name in POSITION if name not in state["progress"]]:
            raise UserError(
                f"{path}: expected a checkpoint of a training run; found one without {missing[0]}"
            )
        return str(path), state

    path, state = broadcast(read)
    return path and Path(path), state


def is_named(resume):
    """Whether `--resume` names a checkpoint."""
    return resume not in ("auto", "none", "")


def with_flags_of(args, state, free):
    """A copy of the flags with a checkpoint's values for flags that were not given.

    If `--resume` names the checkpoint, these are all flags but `free`. With "auto" they are only those of the
    model that weights may have decided.

    Args:
        args: `util.flags.Flags`; free: names of flags that may differ when resuming.
    """
    theirs = state["args"]
    names = theirs.keys() - set(free) if is_named(args.resume) else {"model", "norm_eps", "norm_pix_loss"}
    names = {name for name in names & theirs.keys() - args.given if hasattr(args, name)}
    return args.taken(
        {name: theirs[name] for name in names}, args.resume if is_named(args.resume) else args.output_dir
    )


def require(args, *names):
    """Refuse to run without these flags, from the command or a checkpoint."""
    for name in names:
        if not getattr(args, name):
            raise UserError(f"--{name}: expected it, or --resume CHECKPOINT, which has it; found none")


def pick_amp(name, state, on, width):
    """`util.device.pick_amp`, the same on all processes. "auto" on a CPU takes the checkpoint's precision.

    Args:
        state: of the checkpoint, or None; on: the device; width: of the model.
    """
    theirs = state and state["args"].get("amp")
    if name == "auto" and theirs in ("bf16", "off") and on.type == "cpu":
        return theirs
    return broadcast(lambda: device.pick_amp(name, on, width))


def effective_batch(args):
    """Samples per step of these flags, over all processes."""
    return args.batch_size * args.accum_iter * world_size()


def accumulation(args, state):
    """Batches per step. With another number of processes, a step keeps the checkpoint's number of samples.

    Args:
        state: of the checkpoint, or None.
    """
    theirs = state["args"] if state else {}
    together = args.batch_size * world_size()
    wanted = state["effective_batch"] if state else 0
    same = all(theirs.get(name) == getattr(args, name) for name in BATCH_FLAGS)
    if not same or not wanted or wanted % together or wanted == together * args.accum_iter:
        return args.accum_iter
    print(f"{world_size()} processes: --accum_iter {wanted // together} keeps the {wanted} samples of a step")
    return wanted // together


def differences(state, flags, free, batch):
    """Flags that differ from a checkpoint's run, as "--flag value there, value here".

    Args:
        flags: this run's, by name; free: names of flags that may differ; batch: this run's samples per step.
    """
    theirs = state["args"]
    changed = [
        f"--{name} {theirs.get(name)} there, {value} here"
        for name, value in flags.items()
        if name not in free and name not in BATCH_FLAGS and theirs.get(name, value) != value
    ]
    if state["effective_batch"] != batch:
        changed.append(
            f"--batch_size x --accum_iter x processes {state['effective_batch']} there, {batch} here"
        )
    return changed


def check_flags(path, state, run, flags, free):
    """Compare the flags with a checkpoint's; warn of differences if `--resume` names the checkpoint.

    Args:
        run: a `util.run.Run`; flags: its flags to compare; free: names of flags that may differ.

    Raises:
        UserError: flags differ with `--resume auto`.
    """
    changed = differences(state, flags, free, run.effective_batch)
    if changed and run.args.resume == "auto":
        raise UserError(
            f"{path}: expected the flags of the run to resume; found {'; '.join(changed)} (give --resume {path} to "
            "continue with the new ones, or another --output_dir)"
        )
    if changed:
        warn(f"resuming {path} with other flags: {'; '.join(sorted(changed))}")


def check_data(path, state, run):
    """Check that a checkpoint's run had the same front end and number of samples."""
    about = run.record.about
    if state["front_end"] != about["front_end"]:
        raise UserError(f"{path}: expected the front end {about['front_end']}; found {state['front_end']}")
    if state["num_samples"] != about["num_samples"]:
        here, there = about["num_samples"], state["num_samples"]
        raise UserError(f"{path}: expected a run on {here} training samples; found one on {there}")


def first_epoch(state, batch):
    """The epoch to continue a checkpoint's run in.

    Raises:
        UserError: the checkpoint is within an epoch, and its steps had another number of samples.
    """
    if state["progress"]["epoch_step"] and state["effective_batch"] != batch:
        raise UserError(
            f"--batch_size: expected {state['effective_batch']} samples to a step over all processes, to go on "
            f"within an epoch; found {batch}"
        )
    return state["epoch"] + 1


def restore(path, state, optimizer, run, steps_per_epoch):
    """Restore optimizer, scaler, random state and position of a checkpoint's run.

    Rates, weight decay and momentum stay those of this run.

    Returns:
        (`Progress`, the epoch to continue in).

    Raises:
        UserError: a part does not fit this run, or lies beyond its end.
    """
    epoch = first_epoch(state, run.effective_batch)
    check_position(path, state, run.args.epochs, steps_per_epoch)
    fp16, scaler = run.scaler.is_enabled(), state["scaler"]
    may_lack = fp16 or not state["step"]  # a scaler skips steps
    check_optimizer(state["optimizer"], optimizer, path, may_lack)
    groups = optimizer.state_dict()["param_groups"]
    parallel.load_optimizer(optimizer, {"state": state["optimizer"]["state"], "param_groups": groups})
    if fp16 and scaler:  # the run may have had another precision
        if scaler.keys() != run.scaler.state_dict().keys() or not scaler["scale"] > 0:
            raise UserError(f"{path}: expected the state of a gradient scaler; found {scaler}")
        run.scaler.load_state_dict(scaler)
    try:
        checkpoint.set_random_state(state["rng"])
    except ValueError as error:
        raise UserError(f"{path}: expected the state of random generators; found {error}") from error
    progress = Progress(**state["progress"])
    print(f"resumed from {path}: epoch {state['epoch']} done, {progress.step} steps")
    return progress, epoch


def check_position(path, state, epochs, steps_per_epoch):
    """Check that a checkpoint's position is within the run.

    Raises:
        UserError: its epoch or step is beyond the end, or its numbers contradict each other.
    """
    position, epoch = state["progress"], state["epoch"]
    if epoch >= epochs:
        raise UserError(
            f"{path}: expected a run of --epochs {epochs} at most; found one whose epoch {epoch} is done, "
            "counted from 0"
        )
    inside = position["epoch_step"]
    if position["step"] != state["step"] or inside > min(position["step"], steps_per_epoch):
        found = f"step {state['step']}, {position['step']} in all, {inside} of this epoch"
        raise UserError(f"{path}: expected a position within {steps_per_epoch} steps an epoch; found {found}")
    if inside and epoch + 1 >= epochs:
        raise UserError(f"{path}: expected {epochs} epochs; found step {inside} of epoch {epoch + 1}")
