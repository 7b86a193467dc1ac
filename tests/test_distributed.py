"""How the processes of a run meet, agree and end."""

import json
import os
import re
import signal
from types import SimpleNamespace

import pytest
import torch
from support import finish, free_port, start, wait

from util import distributed, joining
from util.errors import StoppedError, UserError


def test_processes_exchange_small_things_and_one_of_them_speaks(tmp_path):
    [main, *others] = finish(tmp_path, 3, "at_work", "exchange")
    assert not any(rank.out + rank.err for rank in others)
    assert main.err == "warning: said once\n"
    for found in json.loads(main.out):
        assert found == {
            "world_size": 3,
            "device": "cpu",
            "sum": [3, 3],
            "max": 2,
            "gather": ["rank 0", "rank 1", "rank 2"],
            "added": [3, 3],
            "main": [[0, 1, 2], 2.5, [2, 2], "torch.bfloat16", []],
        }


def test_a_single_process_exchanges_with_itself(tmp_path):
    [one] = finish(tmp_path, 1, "at_work", "exchange")
    [found] = json.loads(one.out)
    assert (found["world_size"], found["sum"], found["max"], found["gather"]) == (1, [1, 0], 0, ["rank 0"])


def failed(folder, work, *flags):
    """Have three processes fail; ([their exit statuses], what they say in all).

    Exactly one of them speaks.
    """
    ranks = start(folder, 3, "at_work", work, *flags)
    statuses = wait(ranks)
    [said] = [rank.err for rank in ranks if rank.err]
    return statuses, said


@pytest.mark.parametrize(
    ("work", "rank", "status", "message"),
    [
        ("mistake", 1, 2, "error: rank 1 of 3: a.npy: expected 8 bytes; found 4\n"),
        ("main_fails_while_others_load", 0, 2, "error: rank 0 of 3: checkpoint-last.pth: expected a whole"),
        ("signalled_early", 1, 75, "stopped: rank 1 of 3: SIGTERM before the first step\n"),
    ],
)
def test_a_mistake_of_one_process_is_said_once_and_ends_all(tmp_path, work, rank, status, message):
    statuses, said = failed(tmp_path, work)
    assert said.startswith(message)
    assert statuses[rank] == status
    assert 0 not in statuses


@pytest.mark.parametrize(
    ("work", "flags", "message"),
    [
        ("same_mistake", (), "--epochs: expected at least 1; found 0"),
        ("exchange", ("--dist_backend", "nccl"), "--dist_backend nccl: expected GPUs; found cpu"),
    ],
)
def test_a_mistake_of_all_processes_is_said_once(tmp_path, work, flags, message):
    statuses, said = failed(tmp_path, work, *flags)
    assert statuses == [2, 2, 2]
    assert re.fullmatch(rf"error: rank \d of 3: {message}\n", said)


def test_a_bug_shows_its_traceback_once_and_ends_all(tmp_path):
    statuses, said = failed(tmp_path, "bug")
    assert statuses == [1, 1, 1]
    assert "ZeroDivisionError: by zero" in said


def test_a_killed_process_is_noticed(tmp_path):
    statuses, said = failed(tmp_path, "killed")
    assert statuses == [1, -signal.SIGKILL, 1]
    assert re.fullmatch(r"error: rank \d of 3: lost the other processes: .*\n", said)


def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path):
    [main, *_] = finish(tmp_path, 3, "at_work", "signalled")
    assert json.loads(main.out) == [[3, "SIGUSR1"]] * 3


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"WORLD_SIZE": "2"}, "RANK: expected a number in the environment, set by a launcher; found None"),
        (
            {"WORLD_SIZE": "two"},
            "WORLD_SIZE: expected a number in the environment, set by a launcher; found 'two'",
        ),
        ({"WORLD_SIZE": "2", "RANK": "5"}, "RANK: expected a number below WORLD_SIZE 2; found 5"),
        (
            {"WORLD_SIZE": "2", "RANK": "0"},
            "MASTER_ADDR, MASTER_PORT: expected the 2 processes of the run to meet at None:None",
        ),
        (
            {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "FREE"},
            "to meet at 127.0.0.1:",
        ),
        (
            {"SLURM_STEP_NUM_TASKS": "8"},
            "SLURM_STEP_NUM_TASKS: expected one task to a node, which runs torchrun",
        ),
    ],
)
def test_what_no_launcher_sets_is_said_in_a_line(monkeypatch, environment, words):
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, str(free_port()) if value == "FREE" else value)
    with pytest.raises(UserError) as error, joining.joined(flags(dist_timeout_s=1.0)):
        pass
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def flags(**changes):
    return SimpleNamespace(
        **{"device": "cpu", "dist_backend": "auto", "dist_timeout_s": 10.0, "shard": False} | changes
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shard": True}, "--shard: expected several processes"),
        ({"dist_timeout_s": 0.0}, "--dist_timeout_s: expected more than 0 seconds; found 0.0"),
    ],
)
def test_flags_that_cannot_be(changes, words):
    with pytest.raises(UserError, match=words), joining.joined(flags(**changes)):
        pass


def test_a_signal_stops_at_once_before_the_first_step_and_after_a_step_later():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(StoppedError, match="SIGTERM before the first step"), distributed.StopSignal():
        os.kill(os.getpid(), signal.SIGTERM)
    with distributed.StopSignal() as stop:
        stop.ask()
        assert stop.answer() is None
        stop.ask()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.answer() == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) == before


def test_nested_states_are_mapped_tensor_by_tensor():
    state = {"a": [torch.ones(2), 3], "b": (torch.zeros(1), {"c": None})}
    found = distributed.map_tensors(state, lambda tensor: tensor + 1)
    assert found["a"][0].tolist() == [2, 2]
    assert (found["a"][1], found["b"][0].tolist(), found["b"][1]) == (3, [1], {"c": None})
    assert isinstance(found["b"], tuple)
