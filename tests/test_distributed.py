"""How the processes of a run meet, agree and end."""

import json
import os
import signal
from types import SimpleNamespace

import pytest
import torch
from processes import finish, free_port, start, wait

from util import distributed, joining
from util.errors import StoppedError, UserError


def test_processes_exchange_small_things_and_one_of_them_speaks(tmp_path):
    [main, *others] = finish(tmp_path, 3, "at_work", "exchange")
    assert not any(rank.out + rank.err for rank in others)
    assert main.err == "warning: said once\n"
    for found in json.loads(main.out):
        assert found == {
            "world_size": 3, "device": "cpu", "sum": [3, 3], "max": 2, "gather": ["rank 0", "rank 1", "rank 2"],
            "added": [3, 3], "main": [[0, 1, 2], 2.5, [2, 2], "torch.bfloat16", []],
        }  # fmt: skip


def test_a_single_process_exchanges_with_itself(tmp_path):
    [one] = finish(tmp_path, 1, "at_work", "exchange")
    [found] = json.loads(one.out)
    assert (found["world_size"], found["sum"], found["max"], found["gather"]) == (1, [1, 0], 0, ["rank 0"])


@pytest.mark.parametrize(("work", "status", "message"), [
    ("mistake", 2, "error: rank 1 of 3: a.npy: expected 8 bytes; found 4"),
    ("same_mistake", 2, "error: rank 0 of 3: --epochs: expected at least 1; found 0"),
    ("main_fails_while_others_load", 2, "error: rank 0 of 3: checkpoint-last.pth: expected a whole checkpoint; found 3 "),
    ("signalled_early", 75, "stopped: rank 1 of 3: SIGTERM before the first step"),
])  # fmt: skip
@pytest.mark.parametrize("meanwhile", ["exchange", "wait"])
def test_a_mistake_of_one_process_is_said_once_and_ends_all(tmp_path, work, status, message, meanwhile):
    """Within seconds, also where the others wait for something else and notice nothing."""
    sooner = () if work == "mistake" else ("--leave_within_s", 1)
    ranks = start(tmp_path, 3, "at_work", work, "--meanwhile", meanwhile, *sooner)
    assert wait(ranks, 20) == [status] * 3
    [line] = [line for rank in ranks for line in rank.err.splitlines()]
    if work == "same_mistake":  # whoever is first
        line = line.replace("rank 1", "rank 0").replace("rank 2", "rank 0")
    assert line.startswith(message)


def test_a_mistake_of_the_process_that_keeps_the_store_is_known_to_those_that_end_after_it(tmp_path):
    ranks = start(tmp_path, 2, "at_work", "mistake_of_main")
    assert wait(ranks, 20) == [2, 2]
    assert (ranks[0].err, ranks[1].err) == ("error: rank 0 of 2: a.npy: expected 8 bytes; found 4\n", "")


def test_a_file_that_is_being_written_is_written_to_its_end(tmp_path):
    ranks = start(tmp_path, 2, "at_work", "mistake_while_writing", "--meanwhile", "wait", "--leave_within_s", 1)
    assert wait(ranks, 20) == [2, 2]
    assert ranks[0].out == "written\n"


@pytest.mark.parametrize("meanwhile", ["exchange", "wait"])
def test_a_bug_shows_its_traceback_once_and_ends_all(tmp_path, meanwhile):
    ranks = start(tmp_path, 3, "at_work", "bug", "--meanwhile", meanwhile, "--leave_within_s", 1)
    assert wait(ranks, 20) == [1, 1, 1]
    assert "ZeroDivisionError: by zero" in ranks[1].err
    assert not ranks[0].err + ranks[2].err


def test_a_killed_process_is_noticed(tmp_path):
    ranks = start(tmp_path, 3, "at_work", "killed")
    assert wait(ranks, 20) == [1, -signal.SIGKILL, 1]
    lines = [line for rank in ranks for line in rank.err.splitlines()]
    assert lines
    assert all(line.startswith("error: rank ") and "lost the other processes" in line for line in lines), lines


def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path):
    [main, *_] = finish(tmp_path, 3, "at_work", "signalled")
    assert json.loads(main.out) == [[3, "SIGUSR1"]] * 3


@pytest.mark.parametrize(("environment", "words"), [
    ({"WORLD_SIZE": "2"}, "RANK: expected a number in the environment, set by a launcher; found None"),
    ({"WORLD_SIZE": "two"}, "WORLD_SIZE: expected a number in the environment, set by a launcher; found 'two'"),
    ({"WORLD_SIZE": "2", "RANK": "5"}, "RANK: expected a number below WORLD_SIZE 2; found 5"),
    ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR, MASTER_PORT: expected the 2 processes of the run to meet at None:None"),
    ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "FREE"}, "to meet at 127.0.0.1:"),
    ({"SLURM_STEP_NUM_TASKS": "8"}, "SLURM_STEP_NUM_TASKS: expected one task to a node, which runs torchrun"),
])  # fmt: skip
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
    return SimpleNamespace(**{"device": "cpu", "dist_backend": "auto", "dist_timeout_s": 10.0, "shard": False} | changes)


@pytest.mark.parametrize(("changes", "words"), [
    ({"shard": True}, "--shard: expected several processes"),
    ({"dist_timeout_s": 0.0}, "--dist_timeout_s: expected a positive number of seconds; found 0.0"),
])  # fmt: skip
def test_flags_that_cannot_be(changes, words):
    with pytest.raises(UserError, match=words), joining.joined(flags(**changes)):
        pass


def test_nccl_is_for_gpus(tmp_path):
    ranks = start(tmp_path, 2, "at_work", "exchange", "--dist_backend", "nccl")
    assert wait(ranks, 20) == [2, 2]
    assert "--dist_backend nccl: expected GPUs; found cpu" in "".join(rank.err for rank in ranks)


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
