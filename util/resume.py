"""Going on with a run: which checkpoint, whether it is of this run, and with how many processes."""

from pathlib import Path

from util import checkpoint, device, parallel
from util.distributed import broadcast, world_size
from util.errors import UserError, warn
from util.progress import Progress

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
            raise UserError(
                f"--resume none: expected an --output_dir without checkpoints; found some in {output_dir}"
            )
        path = (
            checkpoint.newest(output_dir) if resume == "auto" else None if resume in ("", "none") else resume
        )
        return (None, None) if path is None else (str(path), checkpoint.load(path))

    path, state = broadcast(read)
    return path and Path(path), state


def is_named(resume):
    """Whether `--resume` names a checkpoint."""
    return resume not in ("auto", "none", "")


def with_flags_of(args, state, free):
    """A copy of the flags in which those that were not given have the values of a checkpoint's run.

    For a checkpoint that `--resume` names these are all flags. For one that was found, only those are that weights decided.

    Args:
        args: `util.flags.Flags`; free: names of flags that do not belong to the run.
    """
    theirs = state["args"]
    names = theirs.keys() - set(free) if is_named(args.resume) else {"model", "norm_eps", "norm_pix_loss"}
    names = {name for name in names & theirs.keys() - args.given if hasattr(args, name)}
    return args.replaced(**{name: theirs[name] for name in names})


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
    """Samples per step of these flags, over all processes."""
    return args.batch_size * args.accum_iter * world_size()


def accumulation(args, state):
    """Batches per step. With another number of processes than the checkpoint's run had, a step keeps its samples.

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
    """Flags that the run of a checkpoint has otherwise, as "--flag value there, value here".

    Args:
        flags: this run's, by name; free: names of those that may differ; batch: this run's samples per step.
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
    """Compare the flags of a checkpoint's run; warn of others where `--resume` names the checkpoint.

    Args:
        run: a `util.run.Run`; flags: its flags to compare; free: names of flags that may differ.

    Raises:
        UserError: others in a checkpoint that was found.
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
    """See that a checkpoint's run had this front end and as many samples."""
    about = run.record.about
    if state["front_end"] != about["front_end"]:
        raise UserError(f"{path}: expected the front end {about['front_end']}; found {state['front_end']}")
    if state["num_samples"] != about["num_samples"]:
        here, there = about["num_samples"], state["num_samples"]
        raise UserError(f"{path}: expected a run on {here} training samples; found one on {there}")


def first_epoch(state, batch):
    """The epoch in which the run of a checkpoint goes on; the step in it is with its progress.

    Raises:
        UserError: it is in the middle of an epoch, of which other steps than this run's are done.
    """
    if state["progress"]["epoch_step"] and state["effective_batch"] != batch:
        raise UserError(f"--batch_size: expected {state['effective_batch']} samples to a step over all processes, to go on "
                        f"within an epoch; found {batch}")  # fmt: skip
    return state["epoch"] + 1


def restore(path, state, optimizer, run):
    """Bring back optimizer, scaler, random state and position of a checkpoint's run.

    Returns:
        (`Progress`, the epoch to continue in).
    """
    epoch = first_epoch(state, run.effective_batch)
    parallel.load_optimizer(optimizer, state["optimizer"])
    run.scaler.load_state_dict(state["scaler"])
    checkpoint.set_random_state(state["rng"])
    progress = Progress(**state["progress"])
    print(f"resumed from {path}: epoch {state['epoch']} done, {progress.step} steps")
    return progress, epoch
