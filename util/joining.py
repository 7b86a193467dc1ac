"""Connect the processes of one run, and end them together.

Plain python starts one process. torchrun, or another launcher that sets RANK, WORLD_SIZE, LOCAL_RANK,
MASTER_ADDR and MASTER_PORT, starts several. NCCL connects GPUs, gloo connects CPUs.
"""

import contextlib
import json
import os
import re
import signal
import socket
import time
import uuid
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from util import distributed
from util.device import pick_device
from util.distributed import environment_number
from util.errors import RunError, UserError, one_line, silent_warnings
from util.processes import end_with_parent

BACKENDS = ("auto", "nccl", "gloo")
FLAGS = ("dist_backend", "dist_timeout_s", "shard")  # none changes the result of training
LOST_CONNECTION = re.compile("gloo|nccl|connection|socket|timed out", re.IGNORECASE)  # in torch's errors


def add_arguments(group):
    """The trainers' flags about several processes."""
    backends = "auto: nccl between GPUs, gloo between CPUs"
    group.add_argument("--dist_backend", default="auto", choices=BACKENDS, help=backends)
    longest = "longest wait of a process for the others"
    group.add_argument("--dist_timeout_s", type=float, default=600, help=longest)
    sharded = "shard weights, gradients and optimizer across the processes (FSDP2), not only the samples"
    group.add_argument("--shard", action="store_true", help=sharded)


@contextlib.contextmanager
def joined(args):
    """Connect the processes of the run; yields the device of this process.

    Only rank 0 prints and warns. The first process that fails prints its rank and error. The others end
    silently when they lose the connection, or when torchrun stops them.

    Args:
        args: with `device`, `dist_backend`, `dist_timeout_s` and `shard`.

    Raises:
        UserError: a variable of the launcher is missing or wrong, or the other processes cannot be reached.
        SystemExit: another process failed first; the status is the same.
    """
    if not args.dist_timeout_s > 0:
        raise UserError(f"--dist_timeout_s: expected more than 0 seconds; found {args.dist_timeout_s}")
    count = environment_number("WORLD_SIZE", 1)
    if count == 1:
        tasks = environment_number("SLURM_STEP_NUM_TASKS", 1)
        if tasks > 1 and "WORLD_SIZE" not in os.environ:
            expected = "expected one task to a node, which runs torchrun"
            raise UserError(f"SLURM_STEP_NUM_TASKS: {expected}; found this command started {tasks} times")
        if args.shard:
            raise UserError("--shard: expected several processes, started by torchrun; found one")
        yield pick_device(args.device)
        return
    rank = environment_number("RANK")
    if not 0 <= rank < count:
        raise UserError(f"RANK: expected a number below WORLD_SIZE {count}; found {rank}")
    with _meeting(count):
        store = _store_of_attempt(rank, count, args.dist_timeout_s)
    try:
        with contextlib.ExitStack() as quiet:
            if rank:
                quiet.enter_context(contextlib.redirect_stdout(quiet.enter_context(open(os.devnull, "w"))))
                quiet.enter_context(silent_warnings())
            device, group = _connect(args, store, rank, count)
            distributed.set_group(group)
            yield device
            dist.barrier(group=group)
            dist.destroy_process_group()
    except Exception as error:
        _fail(store, rank, count, error)
    finally:
        distributed.set_group(None)


@contextlib.contextmanager
def _meeting(count):
    try:
        yield
    except (ValueError, RuntimeError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        expected = f"expected the {count} processes of the run to meet at {where}"
        raise UserError(f"MASTER_ADDR, MASTER_PORT: {expected}; {one_line(error)}") from error


def _torchrun_keeps_store():
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _store_of_attempt(rank, count, timeout_s):
    """The store where the processes find each other, without keys of torchrun's earlier attempts.

    torchrun keeps one store for all attempts, with addresses of ended processes. Its count of restarts may
    differ between machines, so rank 0 names the attempt, and the others wait for its answer.
    """
    store, _, _ = next(dist.rendezvous("env://", timeout=timedelta(seconds=timeout_s)))
    if not _torchrun_keeps_store():
        return store
    end_with_parent()  # a killed torchrun would leave its processes behind
    own = uuid.uuid4().hex
    if rank == 0:
        store.set("attempt", own)
        for other in range(1, count):
            theirs = store.get(f"{own}/{other}").decode()
            store.set(f"{own}/{theirs}", "")
        return dist.PrefixStore(own, store)
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        name = store.get("attempt").decode()  # perhaps of an earlier attempt
        store.set(f"{name}/{rank}", own)
        if store.check([f"{name}/{own}"]):
            return dist.PrefixStore(name, store)
        time.sleep(0.1)
    raise RuntimeError(f"rank 0 did not come within {timeout_s:g} s")


def _connect(args, store, rank, count):
    """Join the process group: (device of this process, gloo group of all processes)."""
    device, backend = pick_device(args.device), args.dist_backend
    if device.type == "cuda":
        local, gpus = environment_number("LOCAL_RANK"), torch.cuda.device_count()
        if device.index is not None or local >= gpus:
            expected = f"cuda, and a GPU for each of the {distributed.local_world_size()} processes here"
            raise UserError(f"--device: expected {expected}; found {args.device}, {gpus} GPUs")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    elif backend == "nccl":
        raise UserError(f"--dist_backend nccl: expected GPUs; found {device.type}")
    if backend == "auto":
        backend = "nccl" if device.type == "cuda" else "gloo"
    both = {"backend": backend, "timeout": timedelta(seconds=args.dist_timeout_s)}
    on_gpu = {"device_id": device} if backend == "nccl" else {}
    with _meeting(count):
        dist.init_process_group(store=store, rank=rank, world_size=count, **both, **on_gpu)
        return device, dist.new_group(**both | {"backend": "gloo"})


def _fail(store, rank, count, error):
    """Raise the error with the rank if this process failed first; else exit silently with the same status."""
    words = isinstance(error, RuntimeError) and LOST_CONNECTION.search(str(error))
    lost = isinstance(error, dist.DistError) or bool(words)
    if lost:
        error = RunError(f"lost the other processes: {one_line(error)}")
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    message = f"rank {rank} of {count}: {kind}{one_line(error)}"
    own = [message, getattr(error, "status", RunError.status)]
    # Without torchrun the store ends with rank 0, so a process that lost a connection may find no store.
    with_rank_0 = not _torchrun_keeps_store()
    first = None if with_rank_0 and rank and lost else _first_failure(store, own)
    silent = first != own if first else lost
    first = first or own
    if with_rank_0 and rank == 0:
        time.sleep(1)  # others may fail at the same time and need the store
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's signal would change the exit status
    if isinstance(error, UserError):
        error = type(error)(message)
    try:
        raise UserError(first[0]) if silent else error
    except Exception as shown:
        # torchrun's summary shows any of the processes, so silent ones record the error too.
        if os.environ.get("TORCHELASTIC_ERROR_FILE"):
            get_error_handler().record_exception(shown)
        if silent:
            raise SystemExit(first[1]) from None
        raise


def _first_failure(store, own):
    """[message, status] of the first process to fail; None if the store is gone."""
    try:
        # torch prints C++ stacks if the store is gone, and waits forever if it is out of reach: try a socket
        # first.
        socket.create_connection((os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]), timeout=5).close()
        return json.loads(store.compare_set("failure", "", json.dumps(own)))
    except (OSError, RuntimeError):
        return None
