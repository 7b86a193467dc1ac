"""The processes of a distributed run, without the seconds that each takes to import torch: a server that has is forked."""

import contextlib
import importlib
import multiprocessing
import os
import random
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from support import NANO, ROOT

import engine_evaluate
import engine_reconstruct
import models_mae
import models_vit
from util import flops
from util.errors import reported

os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"  # for the server to find what it is to import
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["processes", "at_work", "pytest", "main_finetune", "torch.utils.tensorboard", "sigmf"])
SHALLOW = NANO | {"decoder_depth": 1}


def free_port():
    """Not of those that the kernel gives to connections (from 32768 on): other tests run meanwhile."""
    while True:
        port = random.SystemRandom().randrange(15000, 32768)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _begin(module, flags, environment, output):
    """What a process does: its command, with what it prints in two files, a tiny preset, and pictures without contents.

    What the machine could do at best, for the log, is measured with matrices that take no time.
    """
    os.environ.update(environment)
    for descriptor, suffix in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{output}.{suffix}", os.O_CREAT | os.O_WRONLY | os.O_APPEND), descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    models_mae.PRESETS["mae_vit_nano"] = models_vit.PRESETS["vit_nano"] = SHALLOW
    flops.SIDE = {"cpu": 16, "cuda": 16}
    engine_reconstruct.reconstruction_figure = lambda *_: Figure(figsize=(1, 1))
    engine_evaluate.confusion_figure = engine_evaluate.prediction_sheet = engine_reconstruct.reconstruction_figure
    module = importlib.import_module(module)
    with reported():
        module.main(module.get_args_parser().parse_args(flags))


@dataclass
class Rank:
    process: object
    output: Path

    @property
    def pid(self):
        return self.process.pid

    @property
    def status(self):
        """The exit status, a negative signal, or None of a process that still runs."""
        return self.process.exitcode

    @property
    def out(self):
        return Path(f"{self.output}.out").read_text()

    @property
    def err(self):
        return Path(f"{self.output}.err").read_text()


def start(folder, world_size, module, *flags, **environment):
    """Start the processes of a run, as a launcher does; a single one without what a launcher sets.

    Args:
        folder: where what they print goes; module: "main_pretrain", or another with `main` and `get_args_parser`.

    Returns:
        A list of `Rank`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shared = {"OMP_NUM_THREADS": "1"}
    if world_size > 1:
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world_size),
                   "LOCAL_WORLD_SIZE": str(world_size)}  # fmt: skip
    ranks = []
    for rank in range(world_size):
        own = shared | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if world_size > 1 else {}) | environment
        output = folder / f"{rank}-{time.monotonic_ns()}"
        process = _context.Process(target=_begin, args=(module, [str(flag) for flag in flags], own, output))
        process.start()
        ranks.append(Rank(process, output))
    return ranks


def wait(ranks, timeout_s=120):
    """Wait for all to end; those that do not are killed, and the test fails."""
    deadline = time.monotonic() + timeout_s
    for rank in ranks:
        rank.process.join(max(0, deadline - time.monotonic()))
    late = [number for number, rank in enumerate(ranks) if rank.process.is_alive()]
    for rank in ranks:
        rank.process.kill()
        rank.process.join()
    assert not late, f"ranks {late} did not end within {timeout_s} s: {[ranks[number].err[-2000:] for number in late]}"
    return [rank.status for rank in ranks]


def finish(folder, world_size, module, *flags, **environment):
    """Run to the end, which has to be a good one; the ranks."""
    ranks = start(folder, world_size, module, *flags, **environment)
    statuses = wait(ranks)
    assert statuses == [0] * world_size, [rank.err[-3000:] for rank in ranks]
    return ranks
