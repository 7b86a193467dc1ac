"""How the processes of one run meet, fail and end together.

Plain python is a run of one process. torchrun, or whatever sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT,
starts several: torch.distributed connects them, over NCCL between GPUs and gloo between CPUs.
"""

import contextlib
import ctypes
import datetime
import json
import os
import signal
import sys
import threading
import time
import uuid

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from util import distributed
from util.device import pick_device
from util.distributed import environment_number
from util.errors import RunError, UserError, one_line, silent_warnings

BACKENDS = ("auto", "nccl", "gloo")
FLAGS = ("dist_backend", "dist_timeout_s", "shard")  # of `add_arguments`; none of them changes what is learnt
# Under these names the store in which the processes met holds what became of one that failed.
FAILURE, FAILURES = "radio_mae/failure", "radio_mae/failures"
ATTEMPT, DONE = "radio_mae/attempt", "radio_mae/done"
# A process says why it fails before it leaves, so the others, who notice it leave, do not wait long for its message. One
# that waits for a device does not notice, and is made to leave.
MESSAGE_WAIT_S, LEAVE_WITHIN_S, LOOK_EVERY_S = 3.0, 8.0, 0.5
# Rank 0, with whom the store goes, stays until the others are done with it. Long, for they may be slow; not so where one
# may have been killed, as the others end then with the same status whether they read it or not.
SEE_OFF_S, SEE_OFF_LOST_S = 10.0, 2.0
GONE = {"rank": 0, "status": RunError.status, "message": "the process that the others met at is gone"}
WRITE_WITHIN_S = 60.0
ANSWER_WAIT_S = 5.0  # for a store whose machine may be out of reach; of torch's own calls some wait without an end


def add_arguments(group):
    """The flags of both trainers about several processes."""
    group.add_argument("--dist_backend", default="auto", choices=BACKENDS, help="auto: nccl between GPUs, gloo between CPUs")
    group.add_argument("--dist_timeout_s", type=float, default=600, help="longest wait of a process for the others")
    group.add_argument("--shard", action="store_true",
                       help="divide weights, gradients and optimizer among the processes (FSDP2), not only the samples")


@contextlib.contextmanager
def joined(args):
    """Meet the other processes of the run, and end together; the device of this one.

    Only rank 0 prints and warns. Where a process fails its message, with its rank, is the one that is shown; the others end
    within seconds with its exit status.

    Args:
        args: with `device`, `dist_backend`, `dist_timeout_s` and `shard`.

    Raises:
        UserError: the environment is not a launcher's, or the others cannot be reached.
    """
    if not args.dist_timeout_s > 0:
        raise UserError(f"--dist_timeout_s: expected a positive number of seconds; found {args.dist_timeout_s}")
    if environment_number("WORLD_SIZE", 1) == 1:
        tasks = environment_number("SLURM_STEP_NUM_TASKS", 1)
        if tasks > 1 and "WORLD_SIZE" not in os.environ:
            raise UserError("SLURM_STEP_NUM_TASKS: expected one task to a node, which runs torchrun; found this command "
                            f"started {tasks} times by itself")  # fmt: skip
        if args.shard:
            raise UserError("--shard: expected several processes, started by torchrun; found one")
        yield pick_device(args.device)
        return
    store = _meet(args.dist_timeout_s)
    watch = _Watch(store)
    failed = True
    try:
        with contextlib.ExitStack() as quiet:
            if environment_number("RANK"):
                quiet.enter_context(contextlib.redirect_stdout(quiet.enter_context(open(os.devnull, "w"))))
                quiet.enter_context(silent_warnings())
            device, everyone = _connect(args, store)
            distributed.set_group(everyone)
            yield device
            dist.barrier(group=everyone)
        failed = False
    except BaseException as error:
        watch.end(getattr(error, "status", RunError.status))
        _fail(store, watch, error)
    finally:
        if not failed:
            watch.end()
        _leave(failed)
        if _keeps_store():
            _answer(_see_off, store, failed, wait_s=SEE_OFF_S + ANSWER_WAIT_S)
        elif not failed:
            _answer(_say_done, store)


def _meet(timeout_s):
    """The store in which the processes of the run find each other."""
    if environment_number("RANK") and not 0 <= environment_number("RANK") < environment_number("WORLD_SIZE"):
        raise UserError(f"RANK: expected a number below WORLD_SIZE {os.environ['WORLD_SIZE']}; found {os.environ['RANK']}")
    if os.environ.get("TORCHELASTIC_RUN_ID"):
        # A launcher that is killed leaves its processes behind; this has them asked to stop.
        pr_set_pdeathsig = 1  # <sys/prctl.h>
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
    timeout = datetime.timedelta(seconds=timeout_s)
    with _meeting():
        store, _, _ = next(dist.rendezvous("env://", timeout=timeout))
        store.set_timeout(timeout)
        return _of_this_attempt(store, timeout_s)


def _of_this_attempt(store, timeout_s):
    """The part of a store that nobody but the processes of this attempt has written to; waits until all are there.

    torchrun keeps one store for all attempts, with the addresses and the failures of those before, and its count of restarts
    may differ between machines. So rank 0 makes a name up, and each of the others goes by it once rank 0 has answered it.
    """
    own = uuid.uuid4().hex
    if not environment_number("RANK"):
        store.set(ATTEMPT, own)
        for rank in range(1, environment_number("WORLD_SIZE")):
            theirs = store.get(f"{ATTEMPT}/{own}/{rank}").decode()
            store.set(f"{ATTEMPT}/{own}/{theirs}", "")
        return dist.PrefixStore(own, store)
    deadline = time.monotonic() + timeout_s
    while True:
        attempt = store.get(ATTEMPT).decode()  # may be that of an attempt before
        store.set(f"{ATTEMPT}/{attempt}/{os.environ['RANK']}", own)
        if store.check([f"{ATTEMPT}/{attempt}/{own}"]):
            return dist.PrefixStore(attempt, store)
        if time.monotonic() > deadline:
            raise RuntimeError(f"rank 0 did not come within {timeout_s:g} s")
        time.sleep(0.1)


@contextlib.contextmanager
def _meeting():
    try:
        yield
    except (ValueError, RuntimeError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise UserError(f"MASTER_ADDR, MASTER_PORT: expected the {os.environ['WORLD_SIZE']} processes of the run to meet at "
                        f"{where}; {one_line(error)}") from error  # fmt: skip


def _connect(args, store):
    """Join the process group; the device of this process, and a group of all over gloo."""
    device = pick_device(args.device)
    if device.type == "cuda":
        local = environment_number("LOCAL_RANK")
        if device.index is not None or local >= torch.cuda.device_count():
            here = distributed.local_world_size()
            raise UserError(f"--device: expected cuda, and a GPU for each of the {here} processes on this machine; found "
                            f"{args.device}, {torch.cuda.device_count()} GPUs")  # fmt: skip
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if args.dist_backend == "nccl" and device.type != "cuda":
        raise UserError(f"--dist_backend nccl: expected GPUs; found {device.type}")
    over = args.dist_backend if args.dist_backend != "auto" else "nccl" if device.type == "cuda" else "gloo"
    timeout = datetime.timedelta(seconds=args.dist_timeout_s)
    with _meeting():
        dist.init_process_group(
            over, store=dist.PrefixStore("processes", store), rank=environment_number("RANK"),
            world_size=environment_number("WORLD_SIZE"), timeout=timeout, device_id=device if over == "nccl" else None,
        )  # fmt: skip
        return device, dist.new_group(backend="gloo", timeout=timeout)


def _leave(failed):
    distributed.set_group(None)
    # After a failure the others may not answer any more; the end of the process is the end of the group.
    if dist.is_initialized() and not (failed and dist.get_backend() == "nccl"):
        dist.destroy_process_group()


def _keeps_store():
    """Whether the store goes with this process; torchrun keeps its own."""
    return environment_number("RANK") == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


def _say_done(store):
    """Let the store go: this process has read or said why all end, or has ended well."""
    store.set(f"{DONE}/{environment_number('RANK')}", "")


def _see_off(store, failed):
    """Wait for the others to be done with the store: one that found it gone would not know why, and be told so by torch."""
    failure = read_failure(store)
    lost = failed and (failure is None or failure["status"] == RunError.status)
    deadline = time.monotonic() + (SEE_OFF_LOST_S if lost else SEE_OFF_S)
    others = [f"{DONE}/{rank}" for rank in range(1, environment_number("WORLD_SIZE"))]
    while not store.check(others) and time.monotonic() < deadline:
        time.sleep(0.02)


class _Watch(threading.Thread):
    """Looks whether another process has failed, and ends this one if it has not noticed within `LEAVE_WITHIN_S`.

    A process that waits for a GPU, or reads files, would otherwise stay until a timeout.

    Attributes:
        failure: of `read_failure`.
    """

    def __init__(self, store):
        super().__init__(name="watch", daemon=True)
        self._store = store.clone()  # the other connection may be waiting, and lets nobody else in
        self._ended, self._looks_no_more = threading.Event(), threading.Event()
        self._status = None  # to end with; None is well
        self.failure = None
        self.start()

    def end(self, status=None):
        """Look no more. With a status, of a process that is about to end: end it with that, should it not be gone soon."""
        self._status = status
        self._ended.set()
        self._looks_no_more.wait(ANSWER_WAIT_S)

    def run(self):
        while self.failure is None and not self._ended.wait(LOOK_EVERY_S):
            self.failure = read_failure(self._store)
        self._looks_no_more.set()
        status = self._status if self.failure is None else self.failure["status"]
        if status is None:
            return
        time.sleep(LEAVE_WITHIN_S)
        if self._ended.is_set() and _keeps_store():
            time.sleep(SEE_OFF_S)  # it is seeing the others off
        for thread in threading.enumerate():
            if not thread.daemon and thread is not threading.main_thread():
                thread.join(WRITE_WITHIN_S)  # a checkpoint that is being written
        sys.stderr.flush()
        os._exit(status)


def read_failure(store):
    """What the first process that failed has left in the store: dict of "rank", "status", "message"; None if none has.

    Whoever reads one is done with the store.
    """
    try:
        if not store.check([FAILURE]):
            return None
        failure = json.loads(store.get(FAILURE))
        _say_done(store)
        return failure
    except RuntimeError:
        return GONE


def _fail(store, watch, error):
    """End this process because of `error`: with its message, if it is the first to say it, or because another has failed."""
    if isinstance(error, KeyboardInterrupt | GeneratorExit | SystemExit):
        _answer(_say_done, store)
        raise error
    own, count = environment_number("RANK"), environment_number("WORLD_SIZE")
    if not isinstance(error, UserError) and _is_lost_connection(error):
        deadline = time.monotonic() + MESSAGE_WAIT_S
        while (failure := watch.failure or _answer(read_failure, store)) is None and time.monotonic() < deadline:
            time.sleep(0.1)
        if failure is not None and failure["rank"] != own:
            raise SystemExit(failure["status"]) from None
        error = RunError(f"lost the other processes: {one_line(error)}")
    message = one_line(error) if isinstance(error, UserError) else f"{type(error).__name__}: {one_line(error)}"
    status = error.status if isinstance(error, UserError) else RunError.status
    if watch.failure not in (None, GONE) and isinstance(error, UserError):
        raise SystemExit(watch.failure["status"]) from None  # what follows from the failure of another, or is the same
    if _answer(_say_failure, store, {"rank": own, "status": status, "message": message}):
        raise SystemExit(status) from None
    named = type(error)(f"rank {own} of {count}: {message}") if isinstance(error, UserError) else error
    if os.environ.get("TORCHELASTIC_ERROR_FILE"):
        get_error_handler().record_exception(named)  # what torchrun shows in its summary
    if named is error:
        raise error
    raise named from error


def _say_failure(store, failure):
    """Leave a failure in the store if it is the first; whether another process has said the same."""
    first = store.add(FAILURES, 1) == 1
    if first:
        store.set(FAILURE, json.dumps(failure))
    same = not first and json.loads(store.get(FAILURE))["message"] == failure["message"]
    _say_done(store)
    return same


def _answer(function, store, *values, wait_s=ANSWER_WAIT_S):
    """What `function` gets from the store; None where that is gone, or does not answer within `wait_s`."""
    answers = []

    def ask():
        with contextlib.suppress(RuntimeError):
            answers.append(function(store, *values))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(wait_s)
    return answers[0] if answers else None


def _is_lost_connection(error):
    """Whether an error of torch.distributed says that another process is not there any more."""
    if isinstance(error, dist.DistError):
        return True
    words = ("gloo", "nccl", "connection", "socket", "timed out")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
