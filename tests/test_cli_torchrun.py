"""main_pretrain.py under the real torchrun: killed workers and launchers, signals, two machines and the link
between them.

However a run is disturbed, it ends with the weights, the log and the curves of one that is not.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
import torch.distributed as dist
from support import ROOT, assert_same_run, finish, free_port, loaded, start, wait, write_ci16
from test_cli_distributed import losses, step_of

from util import checkpoint

TORCHRUN = Path(sys.executable).with_name("torchrun")
MARK = "RADIO_MAE_TEST_RUN"  # in the environment of all processes of a launcher, by which they are found
LIMIT_S = 240  # for anything to happen, on a machine that has other work
DIST_TIMEOUT_S = 15  # of two machines

# Four steps an epoch of 40 samples, as 5 from each of two processes.
STEPS_PER_EPOCH, EPOCHS = 4, 8  # so many that a stop has time to arrive on a busy machine
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
    5,
    "--epochs",
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
    "--amp",
    "off",
    "--save_every_epochs",
    100,
    "--save_every_steps",
    1,
    "--peak_tflops",
    1,
)


@pytest.fixture(scope="module")
def air(tmp_path_factory):
    folder = tmp_path_factory.mktemp("air")
    for number in range(4):
        write_ci16(folder, f"r{number}", 0.104, seed=number)
    return folder


def flags(air, output, *more):
    return [str(flag) for flag in ("--data_path", air, "--output_dir", output, *SMALL, *more)]


@pytest.fixture(scope="module")
def undisturbed(air, tmp_path_factory):
    """The output folder of a run of two processes that nothing happens to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(folder, 2, "main_pretrain", *flags(air, folder / "out", "--save_every_steps", 0))
    return folder / "out"


def assert_as_undisturbed(output, undisturbed):
    """The same to the last bit, and each epoch in log.txt and each step in TensorBoard once."""
    assert_same_run(loaded(output), loaded(undisturbed))
    kept = [
        [re.sub(r', "images_per_s.*', "", line) for line in (folder / "log.txt").read_text().splitlines()]
        for folder in (output, undisturbed)
    ]
    assert kept[0] == kept[1]
    assert losses(output) == losses(undisturbed)
    assert [step for step, _ in losses(output)] == list(range(1, STEPS_PER_EPOCH * EPOCHS + 1))


def until(condition, what, about):
    """Wait until a condition holds; what it returned. `about()` explains a failure."""
    deadline = time.monotonic() + LIMIT_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {LIMIT_S} s: {what}\n{about()}"
        time.sleep(0.05)
    return found


def saved_step(output):
    return step_of(output / checkpoint.LAST)


class Launcher:
    """A command with all the processes that it starts, whoever their parent is now."""

    def __init__(self, folder, *command, **environment):
        self.mark = uuid.uuid4().hex
        self.printed = folder / f"{self.mark}.txt"
        with open(self.printed, "w") as file:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                cwd=ROOT,
                stdout=file,
                stderr=file,
                start_new_session=True,
                env=os.environ | {MARK: self.mark} | environment,
            )

    @property
    def said(self):
        return self.printed.read_text()

    def alive(self):
        """{pid: environment} of its processes, itself included."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # ended meanwhile
                environment = (
                    (folder / "environ").read_text(errors="replace").split("\0")
                )  # of a zombie there is none
                if f"{MARK}={self.mark}" in environment:
                    found[int(folder.name)] = dict(entry.partition("=")[::2] for entry in environment)
        return found

    def workers(self):
        """{rank: pid} of the trainers."""
        return {
            int(environment["RANK"]): pid
            for pid, environment in self.alive().items()
            if "RANK" in environment
        }

    def trained(self, output, steps):
        """Wait until a step is saved; fails if the command ends before."""

        def there():
            assert self.process.poll() is None, self.said
            return saved_step(output) >= steps

        until(there, f"step {steps}", lambda: self.said)
        assert saved_step(output) < STEPS_PER_EPOCH * EPOCHS, "it was to be disturbed in the middle"

    def wait(self):
        """Its exit status."""
        until(lambda: self.process.poll() is not None, "the end of the launcher", lambda: self.said)
        return self.process.returncode

    def gone(self):
        """Wait until nothing of it is left."""
        until(lambda: not self.alive(), "the end of all processes", lambda: f"{self.alive()}\n{self.said}")

    def kill(self):
        while found := self.alive():
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()
            time.sleep(0.05)


@pytest.fixture
def launch(tmp_path):
    """Start commands, of which nothing is left after the test."""
    started = []

    def launch(*command, **environment):
        started.append(Launcher(tmp_path, *command, **environment))
        return started[-1]

    yield launch
    for launcher in started:
        launcher.kill()


# One machine


@pytest.mark.slow
def test_a_run_with_a_killed_worker_is_restarted_and_ends_as_if_it_had_not_been(
    air, undisturbed, launch, tmp_path
):
    out = tmp_path / "out"
    run = launch(TORCHRUN, "--nproc_per_node=2", "--max-restarts=3", "main_pretrain.py", *flags(air, out))
    run.trained(out, STEPS_PER_EPOCH + 1)
    os.kill(run.workers()[0], signal.SIGKILL)  # the one that writes
    assert run.wait() == 0, run.said
    run.gone()
    assert re.findall(r"resumed from .*checkpoint-.*: epoch (\d+) done", run.said), run.said
    assert_as_undisturbed(out, undisturbed)


@pytest.mark.slow
def test_an_attempt_does_not_see_what_the_one_before_left(tmp_path):
    """torchrun keeps its store, and in it the addresses and the failure of processes that have ended."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    torchrun = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    for work, status in (("signalled_early", 75), ("mistake", 2), ("killed", 1)):
        statuses = wait(start(tmp_path, 2, "at_work", work, **torchrun), 60)
        assert statuses == [status, -signal.SIGKILL if work == "killed" else status]
    finish(tmp_path, 2, "at_work", "exchange", **torchrun)


@pytest.mark.slow
def test_a_launcher_that_is_stopped_or_killed_leaves_no_process_and_nothing_undone(
    air, undisturbed, launch, tmp_path
):
    """SIGTERM reaches the workers through torchrun, SIGKILL through the kernel; they save either way."""
    out = tmp_path / "out"
    command = (TORCHRUN, "--nproc_per_node=2", "main_pretrain.py", *flags(air, out, "--num_workers", 1))
    step = 0
    for number in (signal.SIGTERM, signal.SIGKILL):
        run = launch(*command)
        run.trained(out, step + 3)
        run.process.send_signal(number)
        assert run.wait() != 0
        run.gone()
        step = saved_step(out)
        stopped = set(
            re.findall(r"^stopped: rank \d of 2: (.*), the same command goes on from there$", run.said, re.M)
        )
        assert stopped == {f"SIGTERM after step {step}; saved in {out}"}, run.said
        assert step < STEPS_PER_EPOCH * EPOCHS
    finish(tmp_path, 2, "main_pretrain", *flags(air, out))
    assert_as_undisturbed(out, undisturbed)


def test_a_worker_that_fails_is_named_once_and_ends_all(launch):
    run = launch(
        TORCHRUN,
        "--nproc_per_node=2",
        ROOT / "tests" / "at_work.py",
        "mistake_in_training",
        PYTHONPATH=str(ROOT),
    )
    until(lambda: "found 4" in run.said, "the error", lambda: run.said)
    assert run.wait() != 0
    run.gone()
    said = re.findall(r"^(?:error|stopped|warning): .*", run.said, re.M)
    assert said == ["error: rank 1 of 2: a.npy: expected 8 bytes; found 4"]
    # Processes that end in the same moment are listed in either order, one of them under "Root Cause".
    assert re.search(
        r"rank +: 1 \(local_rank: 1\)(.|\n)*UserError: a.npy: expected 8 bytes; found 4", run.said
    ), run.said


def test_a_bug_is_told_to_the_launcher_too(tmp_path):
    told = tmp_path / "error.json"
    assert wait(start(tmp_path, 2, "at_work", "bug", TORCHELASTIC_ERROR_FILE=str(told)), 60) == [1, 1]
    assert "ZeroDivisionError: by zero" in told.read_text()


# Two machines: network namespaces, joined by a pair of interfaces


class Machine:
    """One end of the link, with its launcher, which is started again if it fails, as systemd or Slurm would."""

    STARTS = 5

    def __init__(self, number, network, launch, command):
        self.name, self.interface = network.names[number], f"link{number}"
        self.address = network.addresses[number]
        self._start = lambda: launch(
            "ip",
            "netns",
            "exec",
            self.name,
            TORCHRUN,
            *command(self, number),
            GLOO_SOCKET_IFNAME=self.interface,
        )
        self.launchers = [self._start()]

    @property
    def launcher(self):
        return self.launchers[-1]

    @property
    def said(self):
        return "\n".join(
            f"{self.name}, start {count}:\n{launcher.said}" for count, launcher in enumerate(self.launchers)
        )

    def tend(self):
        """Start the launcher again if it has failed; whether it has ended well."""
        status = self.launcher.process.poll()
        if status:
            assert len(self.launchers) < self.STARTS, self.said
            self.launchers.append(self._start())
        return status == 0


class Network:
    def __init__(self):
        self.names = [f"radio-mae-{os.getpid()}-{end}" for end in "ab"]
        self.addresses = ["10.213.7.1", "10.213.7.2"]

    def ip(self, *words):
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True)

    def open(self):
        for name in self.names:
            self.ip("netns", "add", name)
            self.ip("-n", name, "link", "set", "lo", "up")
        first, second = self.names
        self.ip(
            "link", "add", "link0", "netns", first, "type", "veth", "peer", "name", "link1", "netns", second
        )
        for number, (name, address) in enumerate(zip(self.names, self.addresses, strict=True)):
            self.ip("-n", name, "addr", "add", f"{address}/24", "dev", f"link{number}")
            self.ip("-n", name, "link", "set", f"link{number}", "up")

    def link(self, state):
        self.ip("-n", self.names[0], "link", "set", "link0", state)

    def close(self):
        for name in self.names:
            with contextlib.suppress(subprocess.CalledProcessError):
                self.ip("netns", "del", name)


@pytest.fixture
def network():
    """Two namespaces; they go when the processes in them have, so `launch` is to be asked for after this."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("network namespaces need root and ip(8) of iproute2")
    network = Network()
    try:
        network.open()
    except subprocess.CalledProcessError as error:
        network.close()
        pytest.skip(f"network namespaces are not permitted here: {error.stderr.strip()}")
    yield network
    network.close()


@pytest.fixture
def machines(network, launch, air, tmp_path):
    port = free_port()

    def command(machine, number):
        return (
            "--nnodes=2",
            "--nproc_per_node=1",
            "--max-restarts=3",
            "--rdzv_backend=c10d",
            "--rdzv_id=run",
            f"--rdzv_endpoint={network.addresses[0]}:{port}",
            f"--rdzv_conf=is_host={1 - number}",
            f"--local_addr={machine.address}",
            "main_pretrain.py",
            *flags(air, tmp_path / "out", "--dist_timeout_s", DIST_TIMEOUT_S),
        )

    return [Machine(number, network, launch, command) for number in range(2)]


def trained(machines, output, steps):
    def there():
        for machine in machines:
            machine.tend()
        return saved_step(output) >= steps

    until(there, f"step {steps}", lambda: said(machines))
    assert saved_step(output) < STEPS_PER_EPOCH * EPOCHS, "it was to be disturbed in the middle"


def said(machines):
    return "\n".join(machine.said for machine in machines)


@pytest.mark.slow
def test_a_run_on_two_machines_survives_a_link_that_is_cut(machines, network, undisturbed, tmp_path):
    out = tmp_path / "out"
    trained(machines, out, STEPS_PER_EPOCH + 1)
    before = [machine.launcher.workers() for machine in machines]
    assert [list(workers) for workers in before] == [[0], [1]]
    network.link("down")
    # Nobody is told: a packet without an answer looks like a slow machine. Both workers end, though rank 1
    # cannot reach the store.
    until(
        lambda: not any(machine.launcher.workers() for machine in machines),
        "no workers",
        lambda: said(machines),
    )
    assert saved_step(out) < STEPS_PER_EPOCH * EPOCHS
    network.link("up")
    until(
        lambda: sum(machine.tend() for machine in machines) == 2, "the end of the run", lambda: said(machines)
    )
    assert_as_undisturbed(out, undisturbed)
