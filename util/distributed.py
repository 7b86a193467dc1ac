"""The processes of one run: who they are, how they agree and how they end. The only file that knows of ranks.

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

from util.device import pick_device
from util.errors import RunError, StoppedError, UserError, one_line, silent_warnings

BACKENDS = ("auto", "nccl", "gloo")
FLAGS = ("dist_backend", "dist_timeout_s", "shard")  # of `add_arguments`; none of them changes what is learnt
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
# Under these names the store in which the processes met holds what became of one that failed.
FAILURE, FAILURES = "radio_mae/failure", "radio_mae/failures"
ATTEMPT, LEFT = "radio_mae/attempt", "radio_mae/left"
# A process says why it fails before it leaves, so the others, who notice it leave, do not wait long for its message. One
# that waits for a device does not notice, and is made to leave.
MESSAGE_WAIT_S, LEAVE_WITHIN_S, LOOK_EVERY_S = 3.0, 8.0, 0.5
SEE_OFF_S = 2.0
WRITE_WITHIN_S = 60.0
ANSWER_WAIT_S = 5.0  # for a store whose machine may be out of reach; of torch's own calls some wait without an end

_control = None  # gloo between all processes, whatever the backend: small numbers, for which no device has to wait


def add_arguments(group):
    """The flags of both trainers about several processes."""
    group.add_argument("--dist_backend", default="auto", choices=BACKENDS, help="auto: nccl between GPUs, gloo between CPUs")
    group.add_argument("--dist_timeout_s", type=float, default=600, help="longest wait of a process for the others")
    group.add_argument("--shard", action="store_true",
                       help="divide weights, gradients and optimizer among the processes (FSDP2), not only the samples")


# Who is who


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def world_size():
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main():
    """Whether this is the process that prints and writes."""
    return rank() == 0


def local_world_size():
    """Processes of the run on this machine."""
    return _number("LOCAL_WORLD_SIZE", 1)


def default_workers():
    """Data loading processes for each process of the run: half of the cores of a machine between them, at most 10 each."""
    return min(10, (os.cpu_count() or 1) // 2 // local_world_size())


def _number(name, default=None):
    value = os.environ.get(name, default)
    try:
        return int(value)
    except (TypeError, ValueError):
        raise UserError(f"{name}: expected a number in the environment, set by a launcher; found {value!r}") from None


# Beginning and end


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
    if _number("WORLD_SIZE", 1) == 1:
        tasks = _number("SLURM_STEP_NUM_TASKS", 1)
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
            if _number("RANK"):
                quiet.enter_context(contextlib.redirect_stdout(quiet.enter_context(open(os.devnull, "w"))))
                quiet.enter_context(silent_warnings())
            yield _connect(args, store)
            dist.barrier(group=_control)
        failed = False
    except BaseException as error:
        watch.end(getattr(error, "status", RunError.status))
        _fail(store, error)
    finally:
        if not failed:
            watch.end()
        _leave(failed)
        _answer(_see_off, store)


def _meet(timeout_s):
    """The store in which the processes of the run find each other."""
    if _number("RANK") and not 0 <= _number("RANK") < _number("WORLD_SIZE"):
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
    if not _number("RANK"):
        store.set(ATTEMPT, own)
        for rank in range(1, _number("WORLD_SIZE")):
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
    """Join the process group; the device of this process."""
    global _control
    device = pick_device(args.device)
    if device.type == "cuda":
        local = _number("LOCAL_RANK")
        if device.index is not None or local >= torch.cuda.device_count():
            raise UserError(f"--device: expected cuda, and a GPU for each of the {local_world_size()} processes on this "
                            f"machine; found {args.device}, {torch.cuda.device_count()} GPUs")  # fmt: skip
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if args.dist_backend == "nccl" and device.type != "cuda":
        raise UserError(f"--dist_backend nccl: expected GPUs; found {device.type}")
    over = args.dist_backend if args.dist_backend != "auto" else "nccl" if device.type == "cuda" else "gloo"
    timeout = datetime.timedelta(seconds=args.dist_timeout_s)
    with _meeting():
        dist.init_process_group(
            over, store=dist.PrefixStore("processes", store), rank=_number("RANK"), world_size=_number("WORLD_SIZE"),
            timeout=timeout, device_id=device if over == "nccl" else None,
        )  # fmt: skip
        _control = dist.new_group(backend="gloo", timeout=timeout)
    return device


def _leave(failed):
    global _control
    _control = None
    # After a failure the others may not answer any more; the end of the process is the end of the group.
    if dist.is_initialized() and not (failed and dist.get_backend() == "nccl"):
        dist.destroy_process_group()


def _see_off(store):
    """Have the process that keeps the store leave last: torch would tell the others' users of a connection that is lost."""
    store.add(LEFT, 1)
    deadline = time.monotonic() + SEE_OFF_S
    while _number("RANK") == 0 and store.add(LEFT, 0) < _number("WORLD_SIZE") and time.monotonic() < deadline:
        time.sleep(0.02)


class _Watch(threading.Thread):
    """Looks whether another process has failed, and ends this one if it has not noticed within `LEAVE_WITHIN_S`.

    A process that waits for a GPU, or reads files, would otherwise stay until a timeout.
    """

    def __init__(self, store):
        super().__init__(name="watch", daemon=True)
        self._store = store.clone()  # the other connection may be waiting, and lets nobody else in
        self._ended, self._looks_no_more = threading.Event(), threading.Event()
        self._status = None  # to end with; None is well
        self.start()

    def end(self, status=None):
        """Look no more. With a status, of a process that is about to end: end it with that, should it not be gone soon."""
        self._status = status
        self._ended.set()
        self._looks_no_more.wait(ANSWER_WAIT_S)

    def run(self):
        failure = None
        while not self._ended.wait(LOOK_EVERY_S) and failure is None:
            failure = read_failure(self._store)
        self._looks_no_more.set()
        status = self._status if failure is None else failure["status"]
        if status is None:
            return
        time.sleep(LEAVE_WITHIN_S)
        for thread in threading.enumerate():
            if not thread.daemon and thread is not threading.main_thread():
                thread.join(WRITE_WITHIN_S)  # a checkpoint that is being written
        sys.stderr.flush()
        os._exit(status)


def read_failure(store):
    """What the first process that failed has left in the store: dict of "rank", "status", "message"; None if none has."""
    try:
        return json.loads(store.get(FAILURE)) if store.check([FAILURE]) else None
    except RuntimeError:
        # Whoever kept the store is gone.
        return {"rank": 0, "status": RunError.status, "message": "the process that the others met at is gone"}


def _fail(store, error):
    """End this process because of `error`: with its message, if it is the first to say it, or because another has failed."""
    if isinstance(error, KeyboardInterrupt | GeneratorExit | SystemExit):
        raise error
    own, count = _number("RANK"), _number("WORLD_SIZE")
    if not isinstance(error, UserError) and _is_lost_connection(error):
        deadline = time.monotonic() + MESSAGE_WAIT_S
        while (failure := _answer(read_failure, store)) is None and time.monotonic() < deadline:
            time.sleep(0.1)
        if failure is not None and failure["rank"] != own:
            raise SystemExit(failure["status"]) from None
        error = RunError(f"lost the other processes: {one_line(error)}")
    message = one_line(error) if isinstance(error, UserError) else f"{type(error).__name__}: {one_line(error)}"
    status = error.status if isinstance(error, UserError) else RunError.status
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
    if store.add(FAILURES, 1) == 1:
        store.set(FAILURE, json.dumps(failure))
        return False
    return json.loads(store.get(FAILURE))["message"] == failure["message"]


def _answer(function, store, *values):
    """What `function` gets from the store; None where that is gone, or does not answer within `ANSWER_WAIT_S`."""
    answers = []

    def ask():
        with contextlib.suppress(RuntimeError):
            answers.append(function(store, *values))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_WAIT_S)
    return answers[0] if answers else None


def _is_lost_connection(error):
    """Whether an error of torch.distributed says that another process is not there any more."""
    if isinstance(error, dist.DistError):
        return True
    words = ("gloo", "nccl", "connection", "socket", "timed out")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)


class StopSignal:
    """SIGTERM and SIGUSR1, which ask a run to stop: a step is finished and saved first, on all processes alike.

    Before the first step there is nothing to save, and the signal raises `StoppedError` at once. A context manager; it
    leaves the signals as it found them.
    """

    def __init__(self):
        self.received = None
        self._training = False
        self._work = self._flag = None

    def __enter__(self):
        main_thread = threading.current_thread() is threading.main_thread()
        self._before = {number: signal.signal(number, self._receive) for number in SIGNALS} if main_thread else {}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number, _frame):
        self.received = signal.Signals(number).name
        if not self._training:
            raise StoppedError(f"{self.received} before the first step")

    def ask(self):
        """Begin to ask all processes whether one was told to stop; `answer` says it. Nobody waits here."""
        self._training = True
        if _control is not None:
            self._flag = torch.tensor(SIGNALS.index(signal.Signals[self.received]) + 1 if self.received else 0)
            self._work = dist.all_reduce(self._flag, dist.ReduceOp.MAX, group=_control, async_op=True)

    def answer(self):
        """The name of the signal that a process had got at `ask`, or None; the same on all of them."""
        if _control is None:
            return self.received
        self._work.wait()
        return SIGNALS[int(self._flag) - 1].name if int(self._flag) else None


# Small exchanges, on the CPU


def total(values):
    """Sums over all processes of a list of numbers; float64."""
    if _control is None:
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(sums, group=_control)
    return sums.tolist()


def add_up(tensor):
    """Sum a tensor over all processes, in place and on its device."""
    if _control is not None:
        dist.all_reduce(tensor, group=_control if tensor.device.type == "cpu" else None)
    return tensor


def greatest(value):
    """The largest of a number that each process has."""
    if _control is None:
        return value
    found = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(found, dist.ReduceOp.MAX, group=_control)
    return type(value)(found)


def gathered(value):
    """What each process has, by rank."""
    if _control is None:
        return [value]
    found = [None] * world_size()
    dist.all_gather_object(found, value, group=_control)
    return found


def from_main(function):
    """What `function` returns on rank 0, which alone calls it: a nested state of tensors on the CPU and plain values."""
    if _control is None:
        return function()
    tensors = []

    def placeholder(tensor):
        tensors.append(tensor.contiguous())
        return tensor.to("meta")

    box = [map_tensors(function(), placeholder) if is_main() else None]
    dist.broadcast_object_list(box, src=0, group=_control)

    def received(place):
        tensor = tensors.pop(0) if is_main() else torch.empty(place.shape, dtype=place.dtype)
        dist.broadcast(tensor, src=0, group=_control)
        return tensor

    return map_tensors(box[0], received)


def map_tensors(value, function):
    """A nested state with `function` of each tensor in its place."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: map_tensors(part, function) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(part, function) for part in value)
    return value
