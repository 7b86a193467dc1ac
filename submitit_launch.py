"""Run a trainer as a Slurm job that saves before it is stopped, is requeued, and resumes.

    # two nodes of eight GPUs; the trainer's command comes last
    python submitit_launch.py --nodes 2 --gpus_per_node 8 --timeout_min 1440 --partition gpu \\
        main_pretrain.py --data_path recordings/ --model mae_vit_large_patch16

    # any other options of sbatch
    python submitit_launch.py --gpus_per_node 4 --sbatch account=radio --sbatch constraint=a100 \\
        main_finetune.py --task segmentation --finetune checkpoint.pth --data_path scenes

    # nodes without GPUs; in the background of this machine, without Slurm
    python submitit_launch.py --gpus_per_node 0 --processes_per_node 2 --cpus_per_process 16 \\
        main_pretrain.py ...
    python submitit_launch.py --executor local --gpus_per_node 2 main_pretrain.py --data_path recordings/

Needs `pip install submitit`. Each node runs torchrun. On SIGTERM, SIGUSR1 or submitit's SIGUSR2 (two minutes
before the time limit), the trainers save at their next step. The job is then requeued, unless it was
cancelled, and resumes at its next start (--resume auto). A job whose trainer fails is not requeued. Paths are
relative to the current folder.
"""

from util import interrupts  # noqa: F401, first: Ctrl-C may come while libraries are imported

# isort: split
import argparse
import contextlib
import importlib
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from util.errors import RunError, StoppedError, UserError, one_line, reported
from util.files import writable_folder
from util.flags import Parser
from util.processes import end_with_parent

try:
    import submitit
except ImportError:
    submitit = None

ROOT = Path(os.path.abspath(__file__)).parent
TRAINERS = ("main_pretrain.py", "main_finetune.py")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
# Slurm signals this long before the end of the job; torchrun kills trainers this long after its own signal.
SIGNAL_DELAY_S, SHUTDOWN_S = 120, 90


def get_args_parser():
    parser = Parser("Run a trainer as a job that is requeued and resumed.")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus_per_node", type=int, default=1, help="one process per GPU; 0: train on CPUs")
    parser.add_argument("--processes_per_node", type=int, help="with --gpus_per_node 0; default 1")
    parser.add_argument(
        "--cpus_per_process", type=int, default=8, help="cores for each process and its data loading"
    )
    parser.add_argument(
        "--timeout_min", type=int, default=1440, help="time limit, after which the job is requeued"
    )
    parser.add_argument(
        "--max_timeouts", type=int, default=20, help="requeues after a time limit; not pre-emptions"
    )
    parser.add_argument(
        "--max_restarts", type=int, default=3, help="restarts within a job after a process failed"
    )
    parser.add_argument("--partition", help="partition; default: the cluster's")
    parser.add_argument(
        "--sbatch", action="append", default=[], metavar="OPTION[=VALUE]", help="another sbatch option"
    )
    parser.add_argument("--job_dir", default="./jobs", help="folder of logs and submitit's files")
    parser.add_argument(
        "--executor",
        default="auto",
        choices=("auto", "slurm", "local", "debug"),
        help="auto: slurm if srun exists, else local; debug: in this process",
    )
    parser.add_argument("script", metavar="|".join(TRAINERS), help="the trainer")
    parser.add_argument("flags", nargs=argparse.REMAINDER, metavar="...", help="the trainer's flags")
    return parser


def check_args(args):
    args.check_ranges()
    if args.gpus_per_node and args.processes_per_node not in (None, args.gpus_per_node):
        raise UserError(
            f"--processes_per_node: expected a process for each of --gpus_per_node {args.gpus_per_node}; "
            f"found {args.processes_per_node}"
        )
    if args.nodes > 1 and args.executor in ("local", "debug"):
        raise UserError(f"--nodes: expected 1 with --executor {args.executor}; found {args.nodes}")


def check_trainer(script, flags):
    """Check a trainer's flags, as far as possible without its data."""
    if Path(script).name not in TRAINERS or ROOT not in (
        Path(os.path.abspath(script)).parent,
        ROOT / Path(script).parent,
    ):
        raise UserError(f"expected {' or '.join(TRAINERS)} after the flags of the job; found {script}")

    def refuse(message):
        raise UserError(f"{Path(script).name}: {message}")

    trainer = importlib.import_module(Path(script).stem)
    parser = trainer.get_args_parser()
    parser.prog, parser.error = script, refuse
    args = parser.parse_args(flags)
    trainer.check_args(args)
    if args.resume != "auto" and not getattr(args, "eval", False):
        raise UserError(f"--resume: expected auto, for a requeued job to resume; found {args.resume}")


class Run:
    """Submitit's callable for each node: torchrun with the trainer, which saves when the job is stopped."""

    def __init__(self, script, flags, nodes, processes, max_restarts):
        self.command = [str(ROOT / script), *flags]
        self.nodes, self.processes, self.max_restarts = nodes, processes, max_restarts
        self.torchrun, self.folder = TORCHRUN, os.getcwd()

    def __call__(self):
        with reported(), tempfile.TemporaryDirectory() as scratch:
            self._run(submitit.JobEnvironment(), Path(scratch, "error.json"))

    def checkpoint(self):
        """Submitit's hook: the job to requeue. It runs after torchrun ended, when the trainers have saved."""
        return submitit.helpers.DelayedSubmission(self)

    def line(self, job):
        """The command of this node."""
        # The port is below the ephemeral ports of the kernel.
        meet = (
            f"{job.hostnames[0]}:{10000 + int(job.raw_job_id) % 20000}" if self.nodes > 1 else "localhost:0"
        )
        size = [f"--nnodes={self.nodes}", f"--nproc_per_node={self.processes}"]
        rendezvous = ["--rdzv_backend=c10d", f"--rdzv_endpoint={meet}", f"--rdzv_id={job.job_id}"]
        return [*self.torchrun, *size, *rendezvous, f"--max-restarts={self.max_restarts}", *self.command]

    def _run(self, job, error_file):
        user_signal = signal.Signals[f"SIG{job.USR_SIG}"]
        requeue = signal.getsignal(user_signal)
        received = []
        for number in (signal.SIGTERM, signal.SIGUSR1, user_signal):
            signal.signal(number, lambda number, _frame: received.append(signal.Signals(number)))

        def prepare():
            # Some clusters signal every process of a job. torchrun must hear one signal only, from here: a
            # second one would end its wait for the trainers. torchrun ends with this process.
            for number in (signal.SIGUSR1, user_signal):
                signal.signal(number, signal.SIG_IGN)
            end_with_parent()

        environment = {
            "TORCHELASTIC_ERROR_FILE": str(error_file),
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(SHUTDOWN_S),
        }
        process = subprocess.Popen(
            self.line(job), cwd=self.folder, env=os.environ | environment, preexec_fn=prepare
        )
        while process.poll() is None and not received:
            time.sleep(0.1)
        if received:
            process.terminate()  # does nothing if torchrun has ended
        status = process.wait()

        # torchrun exits with 1 after a failure and after a stop; its error file has a trainer's status.
        failed, message = read_failure(error_file)
        if status == 0:
            return
        if not received or failed not in (None, StoppedError.status):
            status = failed or status
            name = Path(self.command[0]).name
            error = RunError(
                f"{name}: expected it to end well; found status {status}, {message or 'see above'}"
            )
            error.status = status if status > 0 else 128 - status
            raise error
        names = ", ".join(number.name for number in received)
        if set(received) == {signal.SIGTERM} and (state := queue_state(job)) != "RUNNING":
            raise StoppedError(f"{names}: not requeued from here, as the job is {state}")
        if callable(requeue):
            requeue(user_signal, None)  # submitit's handler, which ends this process on the first node
            # Ending on another node would end the first node's process too: the job stops the others.
            time.sleep(SIGNAL_DELAY_S)
        raise StoppedError(names)


def read_failure(path):
    """(exit status, message) of the first failed process, from torchrun's error file, or (None, None)."""
    try:
        found = json.loads(path.read_text())["message"]
        return found["errorCode"], found["message"].partition(": ")[2]
    except (OSError, ValueError, LookupError, TypeError):
        return None, None


def queue_state(job):
    """Slurm's state of a job that received SIGTERM.

    A "RUNNING" job is about to be pre-empted, and is lost if it ends without requeueing. Slurm itself has
    cancelled or requeues a job in any other state.
    """
    if job.cluster != "slurm":
        return "cancelled"
    line = ["squeue", "--noheader", f"--jobs={job.job_id}", "--format=%T"]
    with contextlib.suppress(OSError):
        if state := subprocess.run(line, stdout=subprocess.PIPE, text=True, check=False).stdout.strip():
            return state
    return "unknown to squeue"


def make_executor(args, processes):
    paths = filter(
        None, [str(ROOT), os.environ.get("PYTHONPATH")]
    )  # for a job to find this file from any folder
    python = shlex.join(["env", f"PYTHONPATH={os.pathsep.join(paths)}", sys.executable])
    each = {}
    for executor in ("slurm", "local"):
        each |= {f"{executor}_python": python, f"{executor}_max_num_timeout": args.max_timeouts}
    try:
        executor = submitit.AutoExecutor(
            args.job_dir, None if args.executor == "auto" else args.executor, **each
        )
    except RuntimeError as error:
        raise UserError(f"--executor {args.executor}: {one_line(error)}") from error
    options = {"requeue": True}
    for option in args.sbatch:
        name, _, value = option.lstrip("-").partition("=")
        options[name.replace("-", "_")] = value or True
    cores = args.cpus_per_process * processes
    executor.update_parameters(
        name="radio-mae",
        nodes=args.nodes,
        tasks_per_node=1,
        gpus_per_node=args.gpus_per_node or None,
        cpus_per_task=cores,
        timeout_min=args.timeout_min,
        stderr_to_stdout=True,
        slurm_partition=args.partition,
        slurm_signal_delay_s=SIGNAL_DELAY_S,
        slurm_additional_parameters=options,
        slurm_srun_args=[
            f"--cpus-per-task={cores}"
        ],  # since Slurm 22.05, srun does not inherit it from sbatch
    )
    return executor


def main(args):
    if submitit is None:
        raise UserError("submitit: expected the package; found none (pip install submitit)")
    check_args(args)
    check_trainer(args.script, args.flags)
    processes = args.gpus_per_node or args.processes_per_node or 1
    with writable_folder(args.job_dir, f"--job_dir {args.job_dir}"), submitit.helpers.clean_env():
        executor = make_executor(args, processes)
        run = Run(Path(args.script).name, args.flags, args.nodes, processes, args.max_restarts)
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # the error repeats sbatch's message
                job = executor.submit(run)
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"expected {executor.cluster} to take the job; found {one_line(error)}"
            ) from error
    if executor.cluster == "debug":
        job.results()
        return
    stop = f"scancel {job.job_id}" if executor.cluster == "slurm" else f"kill {job.job_id}"
    print(
        f"job {job.job_id} ({executor.cluster}): {Path(args.script).name}, {args.nodes} x {processes} processes"
    )
    print(f"its log: tail -F {shlex.quote(str(job.paths.stdout))}")
    print(f"to cancel it, saved: {stop}")


if __name__ == "__main__":
    import submitit_launch  # a job unpickles `Run` by its module's name, which must not be __main__

    with reported():
        submitit_launch.main(get_args_parser().parse_args())
