"""submitit_launch.py: a job that is stopped, requeued and resumed; what Slurm is asked for; every mistake in
one line.

Slurm itself is not here: its commands are small scripts on PATH that do what the manual says.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import submitit
import torch
from support import ROOT, call, finish, wait_for, write_ci16

import submitit_launch
from util import checkpoint

EPOCHS, STEPS = 10, 30
SMALL = (
    "--model",
    "mae_vit_tiny_patch16",
    "--input_size",
    32,
    "--n_fft",
    64,
    "--window_ms",
    10,
    "--batch_size",
    2,
    "--epochs",
    EPOCHS,
    "--save_every_epochs",
    EPOCHS,
    "--warmup_epochs",
    1,
    "--blr",
    0.1,
    "--val_fraction",
    0,
    "--num_workers",
    0,
    "--device",
    "cpu",
    "--peak_tflops",
    1,
)

# Does what torchrun does, as far as its launcher sees: it ends with 1 when it was told to stop, after its
# processes have.
TORCHRUN = """#!/bin/bash
echo "torchrun $*"
[ -e fails ] && exit 1
[ -e ends ] && { echo trained; exit 0; }
trap 'echo told; sleep 0.3; echo saved; exit 1' TERM
echo ready $$
for _ in {1..300}; do sleep 0.1; done
"""
SLURM = {
    "sbatch": """[ -e full ] && { echo "sbatch: error: invalid partition" >&2; exit 1; }
cp "$1" submitted.sh; echo "Submitted batch job 12" """,
    # srun's process becomes the task, whose pid the test wants; a job of submitit may be started in any
    # folder
    "srun": """echo $$ > task; log=/dev/stdout
while [[ $1 == -* ]]; do [ "$1" = --output ] && { log=$2; shift; cd /; }; shift; done
log=${log//%j/12}; exec "$@" >> "${log//%t/0}" 2>&1""",
    "squeue": 'cat "$HERE/state"',
    "scontrol": """[ "$1" = show ] && { echo gpu3; echo gpu4; } || echo "$*" >> "$HERE/asked" """,
}
JOB = {
    "SLURM_JOB_ID": "12",
    "SLURM_NTASKS": "2",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_JOB_NODELIST": "gpu[3-4]",
    "SLURM_NODEID": "0",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_GPUS_ON_NODE": "8",
    "SLURM_CPUS_PER_TASK": "64",
}


def program(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text if text.startswith("#!") else f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A machine with Slurm's commands and a torchrun that starts at once; the test's folder is the current
    one.
    """
    for name, text in SLURM.items():
        program(tmp_path / "bin" / name, text)
    program(tmp_path / "bin" / "torchrun", TORCHRUN)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HERE", str(tmp_path))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr(submitit_launch, "TORCHRUN", ("torchrun",))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def text(path):
    return path.read_text() if path.exists() else ""


def alive(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


@contextlib.contextmanager
def local_job(capsys):
    """(pid of the job that was started last, its log); nothing of it is left behind."""
    printed = capsys.readouterr().out
    number, log = re.search(r"^job (\d+) \(local\).*\nits log: tail -F (.*)$", printed, re.MULTILINE).groups()
    try:
        yield int(number), Path(log)
    finally:
        for pid in (int(number), *task_of(int(number))):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # torchrun and the trainers are asked to stop by that


def task_of(pid):
    """What the controller of a local job has started, which submitit signals: a list of one pid, or none."""
    found = subprocess.run(["pgrep", "-P", str(pid)], stdout=subprocess.PIPE, text=True, check=False).stdout
    return [int(line) for line in found.split()]


# To the end, with the real trainer


@pytest.mark.slow
def test_a_stopped_job_saves_is_requeued_and_ends_the_same_to_the_bit(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        write_ci16(tmp_path / "air", f"r{number}", 0.054, seed=number)
    flags = [str(flag) for flag in ("--data_path", "air", *SMALL, "--output_dir", "out")]
    job_flags = ("--executor", "local", "--gpus_per_node", 0, "--processes_per_node", 2, "--max_restarts", 0)
    assert call(submitit_launch, *job_flags, "main_pretrain.py", *flags) == 0
    with local_job(capsys) as (pid, log):
        wait_for(lambda: text(tmp_path / "out" / "log.txt"))
        (task,) = task_of(pid)
        os.kill(task, signal.SIGUSR2)
        wait_for(lambda: "stopped: " in log.read_text())
        step = checkpoint.load(tmp_path / "out" / checkpoint.LAST)["step"]  # what is said to be saved is
        wait_for(lambda: not alive(pid))
        printed = log.read_text()

    order = re.findall(
        rf"stopped: .*SIGTERM after step {step}; saved in out, |resumed from out/checkpoint-last.pth: .*, "
        rf"{step} steps|trained to epoch {EPOCHS}",
        printed,
    )
    assert [line.split()[0] for line in order] == ["stopped:", "resumed", "trained"], printed[-3000:]
    assert 1 <= step < STEPS
    rows = [json.loads(line) for line in (tmp_path / "out" / "log.txt").read_text().splitlines()]
    assert [(row["epoch"], row["step"]) for row in rows] == [
        (epoch, 3 * epoch + 3) for epoch in range(EPOCHS)
    ]

    finish(tmp_path / "through", 2, "main_pretrain", *flags, "--output_dir", "through/out")
    ours, theirs = (
        checkpoint.load(folder / "out" / checkpoint.LAST) for folder in (tmp_path, tmp_path / "through")
    )
    assert ours["model"].keys() == theirs["model"].keys()
    assert all(torch.equal(value, theirs["model"][name]) for name, value in ours["model"].items())
    for number, moments in theirs["optimizer"]["state"].items():
        assert torch.equal(ours["optimizer"]["state"][number]["exp_avg_sq"], moments["exp_avg_sq"])


@pytest.mark.slow
def test_a_trainer_that_fails_ends_the_job_with_its_status_and_message(slurm, monkeypatch):
    """With the real torchrun, and two processes that fail as the trainers do."""
    monkeypatch.setattr(submitit_launch, "TORCHRUN", (sys.executable, "-m", "torch.distributed.run"))
    message = {
        "message": {"message": "UserError: rank 0 of 2: no such data", "extraInfo": {"timestamp": "1"}}
    }
    # The one that fails first has the other stopped, which may not have begun by then: so they wait for each
    # other.
    (slurm / "trainer.py").write_text(f"""
import os, pathlib, sys, time
open(os.environ["TORCHELASTIC_ERROR_FILE"], "w").write({json.dumps(message)!r})
attempt = "attempt " + os.environ["TORCHELASTIC_RESTART_COUNT"] + ", rank "
pathlib.Path(attempt + os.environ["RANK"]).touch()
while not all(pathlib.Path(attempt + rank).exists() for rank in "01"):
    time.sleep(0.01)
sys.exit(2)""")
    job = submitted(
        "--nodes", 1, "--gpus_per_node", 2, "--max_restarts", 1, command=[str(slurm / "trainer.py")]
    )
    assert job.start().wait(300) == 2
    assert job.log.read_text().splitlines()[-1] == (
        "error: trainer.py: expected it to end well; found status 2, rank 0 of 2: no such data"
    )
    assert {path.name for path in slurm.glob("attempt*")} == {
        f"attempt {n}, rank {rank}" for n in (0, 1) for rank in (0, 1)
    }
    assert not (slurm / "asked").exists()


# What Slurm is asked for, and what it does


class Submitted:
    log = Path("jobs/12_0_log.out")

    def start(self):
        """What Slurm does with the file that it got, on the first node."""
        return subprocess.Popen(["bash", "submitted.sh"], env=os.environ | JOB)

    def torchrun(self):
        """Its pid, once it runs."""
        return int(wait_for(lambda: re.search(r"ready (\d+)\n", text(self.log)))[1])

    def signal(self, number):
        os.kill(int(Path("task").read_text()), number)


def submitted(*flags, command=("main_pretrain.py",)):
    args = submitit_launch.get_args_parser().parse_args([*map(str, flags), "main_pretrain.py"])
    run = submitit_launch.Run("main_pretrain.py", [], args.nodes, args.gpus_per_node, args.max_restarts)
    run.command = list(command)
    submitit_launch.make_executor(args, args.gpus_per_node).submit(run)
    return Submitted()


def test_slurm_is_asked_for_what_the_flags_say(slurm, monkeypatch, capsys):
    flags = (
        "--nodes",
        2,
        "--gpus_per_node",
        8,
        "--timeout_min",
        1440,
        "--partition",
        "gpu",
        "--max_timeouts",
        7,
        "--max_restarts",
        2,
        "--sbatch",
        "account=radio",
        "--sbatch",
        "mem=200G",
        "--sbatch",
        "exclusive",
    )
    own = ("--data_path", "recordings/day 1", "--model", "mae_vit_large_patch16")
    assert call(submitit_launch, *flags, "main_pretrain.py", *own) == 0
    printed = capsys.readouterr().out
    assert "job 12 (slurm): main_pretrain.py, 2 x 8 processes" in printed
    assert f"tail -F {slurm}/jobs/12_0_log.out" in printed
    assert "scancel 12" in printed

    lines = (slurm / "submitted.sh").read_text().splitlines()
    asked = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2] for line in lines if line.startswith("#SBATCH")
    )
    expected = {
        "nodes": "2",
        "ntasks-per-node": "1",
        "gpus-per-node": "8",
        "cpus-per-task": "64",
        "time": "1440",
        "partition": "gpu",
        "mem": "200G",
        "signal": "USR2@120",
        "requeue": "",
        "open-mode": "append",
        "account": "radio",
        "exclusive": "",
        "job-name": "radio-mae",
    }
    assert {name: asked.get(name) for name in expected} == expected
    (step,) = (line for line in lines if line.startswith("srun "))
    assert " --cpus-per-task=64 env PYTHONPATH=" in step

    submission = submitit.core.utils.DelayedSubmission.load(slurm / "jobs" / "12_submitted.pkl")
    assert (submission._timeout_min, submission._timeout_countdown) == (1440, 7)
    for name, value in (JOB | {"SUBMITIT_EXECUTOR": "slurm"}).items():
        monkeypatch.setenv(name, value)
    assert submission.function.line(submitit.JobEnvironment()) == [
        "torchrun",
        "--nnodes=2",
        "--nproc_per_node=8",
        "--rdzv_backend=c10d",
        "--rdzv_endpoint=gpu3:10012",
        "--rdzv_id=12",
        "--max-restarts=2",
        f"{ROOT}/main_pretrain.py",
        *own,
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "state", "requeued"),
    [
        (signal.SIGUSR2, "", True),
        (signal.SIGUSR1, "", True),
        (signal.SIGTERM, "RUNNING", True),
        (signal.SIGTERM, "COMPLETING", False),
    ],
)
def test_a_signal_of_slurm(slurm, number, state, requeued):
    """The trainers save, then the job goes back into the queue, unless Slurm is ending it: then that is
    Slurm's to do.
    """
    (slurm / "state").write_text(f"{state}\n")
    job = submitted("--nodes", 2, "--gpus_per_node", 8)
    process = job.start()
    torchrun = job.torchrun()
    for other in (signal.SIGUSR1, signal.SIGUSR2):
        os.kill(
            torchrun, other
        )  # what a cluster that signals all processes of a job does: torchrun does not mind
    job.signal(number)
    wait_for(lambda: "told" in job.log.read_text())
    assert not (slurm / "asked").exists()
    status = process.wait(300)
    printed = job.log.read_text()
    assert printed.count("told") == printed.count("saved") == 1
    if not requeued:
        assert status == 75
        assert (
            printed.splitlines()[-1] == "stopped: SIGTERM: not requeued from here, as the job is COMPLETING"
        )
        assert not (slurm / "asked").exists()
        return
    assert status not in (0, 75)
    assert (slurm / "asked").read_text() == "requeue 12\n"
    if number == signal.SIGUSR2:
        # what is in the queue is the same
        (slurm / "ends").touch()
        assert job.start().wait(300) == 0
        assert len(set(re.findall("^torchrun .*", job.log.read_text(), re.MULTILINE))) == 1
        assert "trained" in job.log.read_text()


@pytest.mark.slow
def test_a_node_that_is_not_the_first_saves_and_waits_to_be_stopped_with_the_job(slurm, monkeypatch):
    """Were it to end, it might take the first one along, which has the job requeued."""
    monkeypatch.setitem(JOB, "SLURM_PROCID", "1")
    job = submitted("--nodes", 2, "--gpus_per_node", 8)
    process = job.start()
    job.torchrun()
    job.signal(signal.SIGUSR2)
    wait_for(lambda: "I am a slave" in job.log.read_text())
    assert "saved" in job.log.read_text()
    assert process.poll() is None
    job.signal(signal.SIGKILL)
    assert process.wait() == 128 + signal.SIGKILL  # it did not end by itself
    assert not (slurm / "asked").exists()


@pytest.mark.slow
def test_torchrun_does_not_outlive_a_task_that_is_killed(slurm):
    job = submitted("--nodes", 1, "--gpus_per_node", 2)
    process = job.start()
    job.torchrun()
    job.signal(signal.SIGKILL)
    wait_for(lambda: "saved" in job.log.read_text())
    process.wait(300)


@pytest.mark.slow
def test_torchrun_failing_without_a_word_is_no_reason_to_requeue(slurm):
    (slurm / "fails").touch()
    job = submitted("--nodes", 1, "--gpus_per_node", 2)
    assert job.start().wait(300) == 1
    assert job.log.read_text().splitlines()[-1] == (
        "error: main_pretrain.py: expected it to end well; found status 1, see above"
    )
    assert not (slurm / "asked").exists()


@pytest.mark.slow
def test_a_local_job_is_cancelled_with_kill_and_saves(slurm, capsys):
    assert call(submitit_launch, "--executor", "local", "main_pretrain.py", "--data_path", "air") == 0
    with local_job(capsys) as (pid, log):
        wait_for(lambda: "ready" in text(log))
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not alive(pid))
        printed = log.read_text()
    assert printed.count("torchrun") == printed.count("saved") == 1
    assert printed.splitlines()[-1] == "stopped: SIGTERM: not requeued from here, as the job is cancelled"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, None])
def test_the_sbatch_file_of_the_manual(slurm, number):
    """Requeued after a signal, which torchrun gets as SIGTERM, and not after a failure."""
    (script,) = re.findall(
        r"```bash\n(#!/bin/bash.*?)```", (ROOT / "docs" / "CLUSTER.md").read_text(), re.DOTALL
    )
    (slurm / "submitted.sh").write_text(script)
    if number is None:
        (slurm / "fails").touch()
    with open("log", "a") as log:
        process = subprocess.Popen(["bash", "submitted.sh"], env=os.environ | JOB, stdout=log)
        if number is not None:
            wait_for(lambda: "ready" in text(slurm / "log"))
            Submitted().signal(number)
        status = process.wait(300)
    printed = text(slurm / "log")
    assert "--nnodes=2 --nproc_per_node=8 " in printed
    assert " --rdzv_endpoint=gpu3:10012 --rdzv_id=12 " in printed
    assert (status, text(slurm / "asked")) == ((75, "requeue 12\n") if number is not None else (1, ""))
    assert printed.count("saved") == (number is not None)


# Mistakes


def failed(capsys, *words):
    """One line on stderr with these words."""
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line
    return 2


DATA = ("main_pretrain.py", "--data_path", "air")
MISTAKES = [
    (("--nodes", 0, *DATA), ("--nodes: expected at least 1; found 0",)),
    (("--gpus_per_node", -1, *DATA), ("--gpus_per_node", "found -1")),
    (("--timeout_min", 2, *DATA), ("--timeout_min", "at least 5; found 2")),
    (
        ("--gpus_per_node", 2, "--processes_per_node", 3, *DATA),
        ("--processes_per_node", "--gpus_per_node 2", "found 3"),
    ),
    (("--executor", "local", "--nodes", 2, *DATA), ("--nodes", "--executor local", "found 2")),
    (
        ("main_train.py", "--data_path", "air"),
        ("main_pretrain.py or main_finetune.py", "found main_train.py"),
    ),
    (("elsewhere/main_pretrain.py", "--data_path", "air"), ("found elsewhere/main_pretrain.py",)),
    ((*DATA, "--mask_ratio", 2), ("--mask_ratio", "found 2")),
    ((*DATA, "--nodes", 2), ("main_pretrain.py: --nodes: not a flag here",)),
    (("main_finetune.py", "--data_path", "air"), ("--task: expected it")),
    ((*DATA, "--resume", "none"), ("--resume: expected auto", "found none")),
    (("main_finetune.py", "--task", "sensing", "--data_path", "air", "--epochs", 0), ("--epochs", "found 0")),
]


@pytest.mark.parametrize(
    ("flags", "words"), MISTAKES, ids=[" ".join(map(str, flags)) for flags, _ in MISTAKES]
)
def test_mistakes(slurm, capsys, flags, words):
    assert call(submitit_launch, *flags) == failed(capsys, *words)
    assert not (slurm / "submitted.sh").exists()
    assert not (slurm / "jobs").exists()


def test_without_submitit(slurm, capsys, monkeypatch):
    monkeypatch.setattr(submitit_launch, "submitit", None)
    assert call(submitit_launch, *DATA) == failed(capsys, "pip install submitit")


def test_without_slurm(slurm, capsys, monkeypatch):
    (slurm / "bin" / "srun").unlink()
    assert call(submitit_launch, "--executor", "slurm", *DATA) == failed(capsys, "--executor slurm", "srun")
    assert not (slurm / "jobs").exists()


def test_a_job_that_slurm_refuses(slurm, capsys):
    (slurm / "full").touch()
    assert call(submitit_launch, *DATA) == failed(
        capsys, "expected slurm to take the job", "invalid partition"
    )
