"""Run a trainer as a job of a Slurm cluster: made to save before it is stopped, requeued, and resumed.

    # two nodes of eight GPUs; the trainer's own command comes last
    python submitit_launch.py --nodes 2 --gpus_per_node 8 --timeout_min 1440 --partition gpu \\
        main_pretrain.py --data_path recordings/ --model mae_vit_large_patch16

    # whatever else sbatch takes
    python submitit_launch.py --gpus_per_node 4 --sbatch account=radio --sbatch constraint=a100 \\
        main_finetune.py --task segmentation --finetune checkpoint.pth --data_path scenes

    # nodes without GPUs; the background of this machine, without Slurm
    python submitit_launch.py --gpus_per_node 0 --processes_per_node 2 --cpus_per_process 16 main_pretrain.py ...
    python submitit_launch.py --executor local --gpus_per_node 2 main_pretrain.py --data_path recordings/

Needs `pip install submitit`. Each node runs torchrun. SIGTERM, SIGUSR1 or submitit's signal (SIGUSR2; two minutes before the
time is up) has the trainers save at their next step; then the job goes back into the queue, unless it was cancelled, and its
next start goes on from there (--resume auto). A job whose trainer fails is not requeued. Paths are relative to the folder in
which this is started.
"""

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
from util.flags import Flags
from util.processes import end_with_parent

try:
    import submitit
except ImportError:
    submitit = None

ROOT = Path(os.path.abspath(__file__)).parent
TRAINERS = ("main_pretrain.py", "main_finetune.py")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
# Slurm's signal comes so long before the end of the job, and torchrun kills trainers that have not ended so long after it.
SIGNAL_DELAY_S, SHUTDOWN_S = 120, 90


def get_args_parser():
    parser = argparse.ArgumentParser(
        description="Run a trainer as a job that is requeued and resumed.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus_per_node", type=int, default=1, help="a process of the run for each; 0: train on CPUs")
    parser.add_argument("--processes_per_node", type=int, help="with --gpus_per_node 0; 1 where not given")
    parser.add_argument("--cpus_per_process", type=int, default=8, help="cores for each process and its data loading")
    parser.add_argument("--timeout_min", type=int, default=1440, help="time of the job, until it is requeued")
    parser.add_argument("--max_timeouts", type=int, default=20, help="how often it is; pre-emptions do not count")
    parser.add_argument("--max_restarts", type=int, default=3, help="of the processes within a job, after one has failed")
    parser.add_argument("--partition", help="of the cluster; its default where not given")
    parser.add_argument("--sbatch", action="append", default=[], metavar="OPTION[=VALUE]", help="any other option of sbatch")
    parser.add_argument("--job_dir", default="./jobs", help="logs, and what submitit keeps of a job")
    parser.add_argument("--executor", default="auto", choices=("auto", "slurm", "local", "debug"),
                        help="auto: slurm where there is srun, else local; debug: in this process")
    parser.add_argument("script", metavar="|".join(TRAINERS), help="what to run")
    parser.add_argument("flags", nargs=argparse.REMAINDER, metavar="...", help="its own flags")
    return parser


def check_args(args):
    Flags(**vars(args)).check_least()
    if args.gpus_per_node and args.processes_per_node not in (None, args.gpus_per_node):
        raise UserError(f"--processes_per_node: expected a process for each of --gpus_per_node {args.gpus_per_node}; found "
                        f"{args.processes_per_node}")  # fmt: skip
    if args.nodes > 1 and args.executor in ("local", "debug"):
        raise UserError(f"--nodes: expected 1 with --executor {args.executor}; found {args.nodes}")


def check_trainer(script, flags):
    """See that a trainer has these flags, as far as that shows without its data."""
    if Path(script).name not in TRAINERS or ROOT not in (Path(os.path.abspath(script)).parent, ROOT / Path(script).parent):
        raise UserError(f"expected {' or '.join(TRAINERS)} after the flags of the job; found {script}")

    def refuse(message):
        raise UserError(f"{Path(script).name}: {message}")

    trainer = importlib.import_module(Path(script).stem)
    parser = trainer.get_args_parser()
    parser.prog, parser.error = script, refuse
    args = parser.parse_args(flags)
    trainer.check_args(args)
    if args.resume != "auto" and not getattr(args, "eval", False):
        raise UserError(f"--resume: expected auto, for a requeued job to go on where it was; found {args.resume}")


class Run:
    """What submitit runs on each node: torchrun with the trainer, which saves when the job is told to stop."""

    def __init__(self, script, flags, nodes, processes, max_restarts):
        self.command = [str(ROOT / script), *flags]
        self.nodes, self.processes, self.max_restarts = nodes, processes, max_restarts
        self.torchrun, self.folder = TORCHRUN, os.getcwd()

    def __call__(self):
        with reported(), tempfile.TemporaryDirectory() as scratch:
            self._run(submitit.JobEnvironment(), Path(scratch, "error.json"))

    def checkpoint(self):
        """What submitit puts back into the queue. It asks after torchrun has ended, so the trainers have saved."""
        return submitit.helpers.DelayedSubmission(self)

    def line(self, job):
        """The command of this node."""
        # The port is below those that the kernel gives away.
        meet = f"{job.hostnames[0]}:{10000 + int(job.raw_job_id) % 20000}" if self.nodes > 1 else "localhost:0"
        return [*self.torchrun, f"--nnodes={self.nodes}", f"--nproc_per_node={self.processes}", "--rdzv_backend=c10d",
                f"--rdzv_endpoint={meet}", f"--rdzv_id={job.job_id}", f"--max-restarts={self.max_restarts}",
                *self.command]  # fmt: skip

    def _run(self, job, error_file):
        user_signal = signal.Signals[f"SIG{job.USR_SIG}"]
        requeue = signal.getsignal(user_signal)
        received = []
        for number in (signal.SIGTERM, signal.SIGUSR1, user_signal):
            signal.signal(number, lambda number, _frame: received.append(signal.Signals(number)))

        def prepare():
            # Some clusters signal every process of a job: torchrun is to hear of it from here, once. A second signal would
            # cut its wait for the trainers short. It does not outlive this process either.
            for number in (signal.SIGUSR1, user_signal):
                signal.signal(number, signal.SIG_IGN)
            end_with_parent()

        environment = {"TORCHELASTIC_ERROR_FILE": str(error_file), "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(SHUTDOWN_S)}
        process = subprocess.Popen(self.line(job), cwd=self.folder, env=os.environ | environment, preexec_fn=prepare)
        told = False
        while (status := process.poll()) is None:
            if received and not told:
                process.terminate()
                told = True
            time.sleep(0.1)

        # torchrun ends with 1 both after a failure and when it was told to stop; only of a failure it hands on the status.
        failed, message = read_failure(error_file)
        if status == 0:
            return
        if not received or failed not in (None, StoppedError.status):
            status = failed or status
            error = RunError(f"{Path(self.command[0]).name}: expected it to end well; found status {status}, "
                             f"{message or 'see above'}")  # fmt: skip
            error.status = status if status > 0 else 128 - status
            raise error
        names = ", ".join(number.name for number in received)
        if set(received) == {signal.SIGTERM} and (state := queue_state(job)) != "RUNNING":
            raise StoppedError(f"{names}: not requeued from here, as the job is {state}")
        if callable(requeue):
            requeue(user_signal, None)  # submitit's, which ends this process where it is the first node's
            # The others' would take the first node's along; they are stopped with the job.
            time.sleep(SIGNAL_DELAY_S)
        raise StoppedError(names)


def read_failure(path):
    """(exit status, message) of the process that failed first, of torchrun's error file; (None, None) without one."""
    try:
        found = json.loads(path.read_text())["message"]
        return found["errorCode"], found["message"].partition(": ")[2]
    except (OSError, ValueError, LookupError, TypeError):
        return None, None


def queue_state(job):
    """What Slurm says of a job that has got SIGTERM.

    One that is still "RUNNING" has a while until it is pre-empted, and is lost if it ends by itself. Any other has been
    cancelled, or is put back into the queue by Slurm.
    """
    if job.cluster != "slurm":
        return "cancelled"
    line = ["squeue", "--noheader", f"--jobs={job.job_id}", "--format=%T"]
    with contextlib.suppress(OSError):
        if state := subprocess.run(line, stdout=subprocess.PIPE, text=True, check=False).stdout.strip():
            return state
    return "unknown to squeue"


def make_executor(args, processes):
    paths = filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])  # for a job to find this file from any folder
    python = shlex.join(["env", f"PYTHONPATH={os.pathsep.join(paths)}", sys.executable])
    each = {"slurm_python": python, "local_python": python, "slurm_max_num_timeout": args.max_timeouts,
            "local_max_num_timeout": args.max_timeouts}  # fmt: skip
    try:
        executor = submitit.AutoExecutor(args.job_dir, None if args.executor == "auto" else args.executor, **each)
    except RuntimeError as error:
        raise UserError(f"--executor {args.executor}: {one_line(error)}") from error
    options = {"requeue": True}
    for option in args.sbatch:
        name, _, value = option.lstrip("-").partition("=")
        options[name.replace("-", "_")] = value or True
    cores = args.cpus_per_process * processes
    executor.update_parameters(
        name="radio-mae", nodes=args.nodes, tasks_per_node=1, gpus_per_node=args.gpus_per_node or None, cpus_per_task=cores,
        timeout_min=args.timeout_min, stderr_to_stdout=True, slurm_partition=args.partition,
        slurm_signal_delay_s=SIGNAL_DELAY_S, slurm_additional_parameters=options,
        slurm_srun_args=[f"--cpus-per-task={cores}"],  # which srun does not take from sbatch since Slurm 22.05
    )  # fmt: skip
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
            with contextlib.redirect_stderr(io.StringIO()):  # sbatch's message, which is in the error too
                job = executor.submit(run)
        except (RuntimeError, OSError) as error:
            raise UserError(f"expected {executor.cluster} to take the job; found {one_line(error)}") from error
    if executor.cluster == "debug":
        job.results()
        return
    stop = f"scancel {job.job_id}" if executor.cluster == "slurm" else f"kill {job.job_id}"
    print(f"job {job.job_id} ({executor.cluster}): {Path(args.script).name}, {args.nodes} x {processes} processes")
    print(f"its log: tail -F {shlex.quote(str(job.paths.stdout))}")
    print(f"to cancel it, saved: {stop}")


if __name__ == "__main__":
    import submitit_launch  # a job finds `Run` by its module's name, which is not __main__

    with reported():
        submitit_launch.main(get_args_parser().parse_args())
