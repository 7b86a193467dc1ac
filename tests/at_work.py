"""What the processes of tests/test_distributed.py do, as a command for tests/support.py to start: one of
`WORK` by its name.

It imports little, so it is what a launcher starts sooner than a trainer.
"""

import argparse
import json
import os
import signal

import torch
import torch.distributed as dist

from util import distributed, joining
from util.errors import UserError, reported, warn


def get_args_parser():
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=WORK)
    parser.add_argument("--device", default="cpu")
    joining.add_arguments(parser)
    return parser


def main(args):
    with joining.joined(args) as device:
        WORK[args.work](args, device)


def wait_for_the_failing_one():
    """Exchange with the others until one is gone."""
    while True:
        dist.all_reduce(torch.ones(1000))


def exchange(args, device):
    number = distributed.rank()
    warn("said once")
    state = {"a": [torch.arange(3), 2.5], "b": torch.zeros(2, 2, dtype=torch.bfloat16), "c": ()}
    tensors = distributed.broadcast(lambda: state)
    found = {
        "world_size": distributed.world_size(),
        "device": str(device),
        "sum": distributed.all_reduce_sum([1.0, number]),
        "max": distributed.all_reduce_max(number),
        "gather": distributed.all_gather(f"rank {number}"),
        "added": distributed.all_reduce_sum_(torch.tensor([number, 1])).tolist(),
        "main": [
            tensors["a"][0].tolist(),
            tensors["a"][1],
            list(tensors["b"].shape),
            str(tensors["b"].dtype),
            tensors["c"],
        ],
    }
    seen = distributed.all_gather(found)
    print(json.dumps(seen))


def mistake(args, device):
    if distributed.rank() == 1:
        raise UserError("a.npy: expected 8 bytes; found 4")
    wait_for_the_failing_one()


def mistake_in_training(args, device):
    """While a signal of the launcher would be for later."""
    with distributed.StopSignal() as stop:
        stop.ask()
        assert stop.answer() is None
        mistake(args, device)


def same_mistake(args, device):
    raise UserError("--epochs: expected at least 1; found 0")


def bug(args, device):
    if distributed.rank() == 1:
        raise ZeroDivisionError("by zero")
    wait_for_the_failing_one()


def killed(args, device):
    if distributed.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    wait_for_the_failing_one()


def main_fails_while_others_load(args, device):
    def load():
        raise UserError("checkpoint-last.pth: expected a whole checkpoint; found 3 bytes of 9")

    distributed.broadcast(load)


def signalled(args, device):
    """One process gets a signal in its third step; all say after which step they know."""
    with distributed.StopSignal() as stop:
        for step in range(1, 10):
            if step == 3 and distributed.rank() == 1:
                os.kill(os.getpid(), signal.SIGUSR1)
            stop.ask()
            name = stop.answer()
            if name:
                break
        print(json.dumps(distributed.all_gather([step, name])))


def signalled_early(args, device):
    with distributed.StopSignal():
        if distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        wait_for_the_failing_one()


WORK = {
    function.__name__: function
    for function in (
        exchange,
        mistake,
        mistake_in_training,
        same_mistake,
        bug,
        killed,
        main_fails_while_others_load,
        signalled,
        signalled_early,
    )
}


if __name__ == "__main__":
    with reported():
        main(get_args_parser().parse_args())
