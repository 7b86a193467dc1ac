"""A run's checkpoints: written behind it, one older one always whole, and no failure unseen."""

import collections
import contextlib
import errno
import multiprocessing
import os
import random
import subprocess
import threading
import time

import pytest
import torch
from support import largest_file
from test_checkpoint import cut, flip, names, state

from util import checkpoint, saver
from util.checkpoint import BEST, LAST, PREVIOUS
from util.errors import UserError
from util.saver import Saver

BOTH = pytest.mark.parametrize("background", [False, True])


def value(path):
    """The one number that `state` fills the weights with; the checkpoint must be whole."""
    return checkpoint.load(path)["model"]["weight"][0].item()


def large(step, size_bytes):
    return state(step=step) | {"model": {"weight": torch.full((size_bytes // 4,), float(step))}}


def steps(folder):
    """{name: step, None if damaged} of a folder that holds checkpoints alone."""
    found = {path.name: checkpoint.examine(path) for path in folder.iterdir()}
    return {name: None if wrong else save.step for name, (save, wrong) in found.items()}


@contextlib.contextmanager
def mounted(folder, size_bytes):
    """A file system of its own, as small as asked for; skips where this process may not mount one."""
    folder.mkdir()
    line = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", folder]
    if os.geteuid() or subprocess.run(line, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system is not permitted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], capture_output=True, check=False)


@pytest.fixture
def held(monkeypatch):
    """Holds every write until it is set."""
    event, write = threading.Event(), checkpoint.write

    def wait_and_write(*args):
        assert event.wait(60)
        write(*args)

    monkeypatch.setattr(checkpoint, "write", wait_and_write)
    yield event
    event.set()


@pytest.fixture
def no_links(monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)


@BOTH
def test_names(tmp_path, background):
    with Saver(tmp_path, background=background) as saving:
        saving.save(state(1.0, 1))
        saving.save(state(2.0, 2), completed_epoch=0, best=True)
        saving.save(state(3.0, 3))
    assert steps(tmp_path) == {LAST: 3, "checkpoint-0.pth": 2, BEST: 2}
    assert [value(tmp_path / name) for name in (LAST, "checkpoint-0.pth", BEST)] == [3, 2, 2]
    assert os.path.samefile(tmp_path / "checkpoint-0.pth", tmp_path / BEST)


@BOTH
def test_the_save_before_the_last_is_kept_under_one_name_or_another(tmp_path, background):
    seen = []
    with Saver(tmp_path, keep=2, background=background) as saving:
        for step, epoch in enumerate((None, None, 0, 1, None, None, 2)):
            saving.save(state(step=step), epoch)
            saving._wait()
            seen.append(steps(tmp_path))
    zero, one, two = (f"checkpoint-{epoch}.pth" for epoch in range(3))
    assert seen == [
        {LAST: 0},
        {LAST: 1, PREVIOUS: 0},
        {LAST: 2, PREVIOUS: 1, zero: 2},
        {LAST: 3, zero: 2, one: 3},  # no need of another name for the one before
        {LAST: 4, zero: 2, one: 3},
        {LAST: 5, zero: 2, one: 3, PREVIOUS: 4},
        {LAST: 6, PREVIOUS: 5, one: 3, two: 6},
    ]


def test_the_newest_epochs_stay(tmp_path):
    with Saver(tmp_path, keep=3) as saving:
        for epoch in range(12):
            saving.save(state(step=epoch), epoch)
    # Epoch 10 is newer than 9, though not to a sort of names.
    assert names(tmp_path) == ["checkpoint-10.pth", "checkpoint-11.pth", "checkpoint-9.pth", LAST]
    assert os.path.samefile(tmp_path / "checkpoint-11.pth", tmp_path / LAST)
    (tmp_path / LAST).unlink()
    assert checkpoint.newest(tmp_path).name == "checkpoint-11.pth"


def test_keep_one_keeps_the_one_before_too(tmp_path):
    with Saver(tmp_path, keep=1) as saving:
        for epoch in range(4):
            saving.save(state(step=epoch), epoch)
    assert steps(tmp_path) == {LAST: 3, "checkpoint-3.pth": 3, PREVIOUS: 2}


def test_keep_zero_keeps_all(tmp_path):
    with Saver(tmp_path) as saving:
        for epoch in range(5):
            saving.save(state(step=epoch), epoch)
    assert len(names(tmp_path)) == 6


def test_a_run_that_goes_back_to_an_earlier_epoch_keeps_its_own(tmp_path):
    with Saver(tmp_path) as saving:
        for epoch in range(6):
            saving.save(state(0.0, epoch), epoch)
    with Saver(tmp_path, keep=2) as saving:
        for epoch in (2, 3):
            saving.save(state(1.0, epoch), epoch)
            saving._wait()
            assert value(checkpoint.newest(tmp_path)) == 1
    assert {path.name: value(path) for path in tmp_path.iterdir()} == {
        LAST: 1,
        "checkpoint-2.pth": 1,
        "checkpoint-3.pth": 1,
    }


@pytest.mark.parametrize("damage", [flip, cut])
def test_the_only_whole_one_is_not_rotated_away(tmp_path, capsys, damage):
    with Saver(tmp_path, keep=3) as saving:
        for epoch in range(3):
            saving.save(state(step=epoch), epoch)
        saving._wait()
        damage(tmp_path / "checkpoint-1.pth")
        damage(tmp_path / "checkpoint-2.pth")  # and with it the last, the same file
        assert checkpoint.newest(tmp_path).name == "checkpoint-0.pth"
        saving.keep = 1
        saving.save(state(step=3), 3)
    assert steps(tmp_path) == {LAST: 3, "checkpoint-3.pth": 3, "checkpoint-0.pth": 0}


def test_a_damaged_last_does_not_replace_a_whole_one_before_it(tmp_path):
    with Saver(tmp_path) as saving:
        for step in range(3):
            saving.save(state(step=step))
            if step == 1:
                saving._wait()
                flip(tmp_path / LAST)
    assert steps(tmp_path) == {LAST: 2, PREVIOUS: 0}


def test_without_hard_links_each_name_is_written(tmp_path, no_links):
    with Saver(tmp_path, keep=2) as saving:
        for step, epoch in enumerate((None, None, 0, 1, None, None)):
            saving.save(state(float(step), step), epoch, best=epoch == 1)
    assert steps(tmp_path) == {LAST: 5, PREVIOUS: 4, "checkpoint-0.pth": 2, "checkpoint-1.pth": 3, BEST: 3}
    assert [value(tmp_path / name) for name in (LAST, PREVIOUS, "checkpoint-1.pth", BEST)] == [5, 4, 3, 3]
    assert all(path.stat().st_nlink == 1 for path in tmp_path.iterdir())


def test_a_copy_that_is_damaged_does_not_count_as_the_one_before(tmp_path, no_links):
    with Saver(tmp_path) as saving:
        saving.save(state(step=0), 0)
        saving._wait()
        flip(tmp_path / "checkpoint-0.pth")
        saving.save(state(step=1))
    assert steps(tmp_path) == {LAST: 1, PREVIOUS: 0, "checkpoint-0.pth": None}


def test_what_is_written_is_the_state_when_save_was_called(tmp_path, held):
    weights = [torch.full((size,), 1.0) for size in (3, 1 << 16, 1 << 16)]
    weights[2] = weights[2].view(256, 256).T  # not contiguous
    now = state(step=1)
    now["model"] = collections.OrderedDict(a=weights[0], b=weights[1])
    now["optimizer"] = {
        "state": {0: {"exp_avg": weights[2], "step": torch.tensor(1.0)}},
        "param_groups": [{"lr": 1}],
    }
    now["rng"] = {"cpu": torch.get_rng_state(), "empty": torch.zeros(0, 3)}
    now["more"] = ["a", ("b", torch.ones(2, dtype=torch.bfloat16))]
    with Saver(tmp_path) as saving:
        saving.save(now)
        for tensor in (*weights, now["optimizer"]["state"][0]["step"], now["more"][1][1]):
            tensor.fill_(2)
        now["optimizer"]["param_groups"][0]["lr"] = 2
        now["step"] = 2
        now["more"].append("c")
        assert not list(tmp_path.glob("*.pth"))  # it did not wait
        held.set()
    found = checkpoint.load(tmp_path / LAST)
    assert all((found["model"][key] == 1).all() for key in "ab")
    assert (found["optimizer"]["state"][0]["exp_avg"] == 1).all()
    assert found["optimizer"]["state"][0]["step"] == 1
    assert found["optimizer"]["param_groups"] == [{"lr": 1}]
    assert torch.equal(found["rng"]["cpu"], torch.get_rng_state())
    assert found["rng"]["empty"].shape == (0, 3)
    assert found["step"] == 1
    assert found["more"][0] == "a"
    assert torch.equal(found["more"][1][1], torch.ones(2, dtype=torch.bfloat16))
    assert len(found["more"]) == 2


def test_a_second_save_waits_for_the_first(tmp_path, held):
    with Saver(tmp_path) as saving:
        saving.save(state(step=1))
        second = threading.Thread(target=saving.save, args=(state(step=2),))
        second.start()
        assert second.is_alive()
        held.set()
        second.join()
    assert 0 < saving.waited_s <= saving.total_waited_s
    assert steps(tmp_path) == {LAST: 2, PREVIOUS: 1}


def test_in_the_foreground_a_save_is_written_when_it_returns(tmp_path):
    saving = Saver(tmp_path, background=False)
    saving.save(state(step=1))
    assert steps(tmp_path) == {LAST: 1}
    assert saving.waited_s >= saving.written_s > 0


def test_without_memory_for_a_copy_training_waits(tmp_path, capsys, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(saver, "host_copy_of_state", fail)
    saving = Saver(tmp_path)
    saving.save(state(step=1))
    assert steps(tmp_path) == {LAST: 1}
    assert (
        f"warning: {tmp_path}: no memory to copy the state of step 1: MemoryError" in capsys.readouterr().err
    )


def failed(capsys, folder, step, why, newest, name=LAST):
    """See that one line was printed, that a save failed and training goes on."""
    assert capsys.readouterr().err == (
        f"warning: {folder}: the checkpoint of step {step} could not be written: {why}; training goes on, the newest whole "
        f"one is of step {newest} ({name})\n"
    )


@BOTH
def test_a_full_disk_is_warned_of_at_every_try_until_there_is_space(tmp_path, capsys, background):
    with Saver(tmp_path, background=background) as saving:
        saving.save(state(step=1), 0)
        saving._wait()
        with largest_file(1 << 16):
            for step in (2, 3, 4):
                saving.save(large(step, 1 << 17), step, best=True)
                saving._wait()
                failed(capsys, tmp_path, step, "File too large", 1)
                assert steps(tmp_path) == {LAST: 1, "checkpoint-0.pth": 1}
                saving.poll()
        saving.save(large(5, 1 << 17))
    assert steps(tmp_path) == {LAST: 5, "checkpoint-0.pth": 1}
    assert not capsys.readouterr().err


@BOTH
def test_a_file_system_that_is_full(tmp_path, capsys, background):
    with (
        mounted(tmp_path / "small", 1 << 20) as folder,
        Saver(folder, keep=1, background=background) as saving,
    ):
        saving.save(large(1, 1 << 18), 0)
        saving._wait()
        ballast = folder / "ballast"
        with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        for step in (2, 3):
            saving.save(large(step, 1 << 18), step)
            saving._wait()
            failed(capsys, folder, step, "No space left on device", 1)
            assert names(folder) == ["ballast", "checkpoint-0.pth", LAST]
        ballast.unlink()
        saving.save(large(4, 1 << 18), 4)
        saving.close()
        assert steps(folder) == {LAST: 4, "checkpoint-4.pth": 4, PREVIOUS: 1}


@BOTH
def test_a_file_system_that_turns_read_only(tmp_path, capsys, background):
    with mounted(tmp_path / "small", 1 << 20) as folder, Saver(folder, background=background) as saving:
        saving.save(state(step=1))
        saving._wait()
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        for step in (2, 3):
            saving.save(state(step=step))
            saving._wait()
            failed(capsys, folder, step, "Read-only file system", 1)
        subprocess.run(["mount", "-o", "remount,rw", folder], check=True)
        saving.save(state(step=4))
        saving.close()
        assert steps(folder) == {LAST: 4, PREVIOUS: 1}


@pytest.mark.skipif(os.geteuid() == 0, reason="to root every folder is writable")
def test_a_folder_that_turns_read_only(tmp_path, capsys):
    with Saver(tmp_path) as saving:
        saving.save(state(step=1))
        saving._wait()
        tmp_path.chmod(0o500)
        saving.save(state(step=2))
        saving._wait()
        tmp_path.chmod(0o700)
        failed(capsys, tmp_path, 2, "Permission denied", 1)
        saving.save(state(step=3))
    assert steps(tmp_path) == {LAST: 3, PREVIOUS: 1}


def test_a_mount_that_is_lost(tmp_path):
    with mounted(tmp_path / "small", 1 << 20) as folder:
        saving = Saver(folder)
        saving.save(state(step=1))
        saving._wait()
        subprocess.run(["umount", "-l", folder], check=True)
        saving.save(state(step=2))  # what is below the mount could be written
        with pytest.raises(
            UserError, match=f"^{folder}: the checkpoint of step 2 could not be written: another file"
        ):
            saving.close()
        assert not names(folder)


@BOTH
def test_a_folder_that_is_gone_is_an_error(tmp_path, background):
    folder = tmp_path / "run"
    folder.mkdir()
    saving = Saver(folder, background=background)
    saving.save(state(step=1))
    saving._wait()
    (folder / LAST).unlink()
    folder.rmdir()
    expected = f"^{folder}: the checkpoint of step 2 could not be written: No such file or directory; there is no older"
    if background:
        saving.save(state(step=2))
        saving._wait()
        with pytest.raises(UserError, match=expected):
            saving.poll()
        saving.poll()  # once
        saving.save(state(step=2))
        with pytest.raises(UserError, match=expected):
            saving.save(state(step=3))
    else:
        with pytest.raises(UserError, match=expected):
            saving.save(state(step=2))
    folder.mkdir()
    saving.save(state(step=4))
    saving.close()
    assert steps(folder) == {LAST: 4}


@pytest.mark.parametrize("damage", [flip, cut])
def test_a_failure_with_only_damaged_ones_left_is_an_error(tmp_path, damage):
    saving = Saver(tmp_path)
    for step in (1, 2):
        saving.save(state(step=step))
    saving._wait()
    damage(tmp_path / LAST)
    damage(tmp_path / PREVIOUS)
    with largest_file(1 << 16):
        saving.save(large(3, 1 << 17))
        with pytest.raises(
            UserError, match="step 3 could not be written: File too large; there is no older whole one"
        ):
            saving.close()
    assert names(tmp_path) == [LAST, PREVIOUS]


def test_the_first_save_that_fails_is_an_error(tmp_path):
    saving = Saver(tmp_path)
    with largest_file(1 << 16):
        saving.save(large(1, 1 << 17))
        with pytest.raises(
            UserError, match="step 1 could not be written: File too large; there is no older whole one"
        ):
            saving.close()
    assert not names(tmp_path)


@BOTH
def test_an_end_that_was_not_saved_is_an_error(tmp_path, capsys, background):
    saving = Saver(tmp_path, background=background)
    saving.save(state(step=1))
    saving._wait()
    with largest_file(1 << 16):
        saving.save(large(2, 1 << 17))
        with pytest.raises(
            UserError, match=r"step 2 .*: File too large; the newest whole one is of step 1 \(check"
        ):
            saving.close()
    failed(capsys, tmp_path, 2, "File too large", 1)
    saving.close()  # said once


def save_and_fail(folder, content):
    with Saver(folder) as saving:
        saving.save(content)
        raise ZeroDivisionError


def test_an_exception_goes_its_way_and_the_write_is_whole(tmp_path, held):
    threading.Timer(0.1, held.set).start()
    with pytest.raises(ZeroDivisionError):
        save_and_fail(tmp_path, state(step=1))
    assert steps(tmp_path) == {LAST: 1}


def test_an_exception_goes_its_way_and_a_failed_write_is_a_warning(tmp_path, capsys):
    with largest_file(1 << 16), pytest.raises(ZeroDivisionError):
        save_and_fail(tmp_path, large(1, 1 << 17))
    assert (
        f"warning: {tmp_path}: the checkpoint of step 1 could not be written: File too large"
        in capsys.readouterr().err
    )
    assert not names(tmp_path)


def test_what_the_thread_did_not_expect_is_raised(tmp_path, monkeypatch):
    def fail(*_):
        raise TypeError("a mistake of ours")

    monkeypatch.setattr(checkpoint, "write", fail)
    saving = Saver(tmp_path)
    saving.save(state(step=1))
    saving._wait()
    with pytest.raises(TypeError, match="a mistake of ours"):
        saving.poll()


def test_an_old_one_that_cannot_be_removed_is_no_failed_save(tmp_path, capsys, monkeypatch):
    with Saver(tmp_path, keep=1) as saving:
        saving.save(state(step=0), 0)
        saving._wait()
        (tmp_path / "checkpoint-0.pth").unlink()
        (tmp_path / "checkpoint-0.pth").mkdir()
        saving.save(state(step=1), 1)
    assert f"warning: {tmp_path}: an old checkpoint could not be removed" in capsys.readouterr().err
    assert checkpoint.load(tmp_path / LAST)["step"] == 1


def save_until_killed(folder):
    torch.set_num_threads(1)
    with Saver(folder, keep=2) as saving:
        for step in range(1, 100_000):
            epoch = step // 3 if step % 3 == 0 else None
            tensors = {str(index): torch.full((5000,), float(step)) for index in range(40)}
            saving.save(state(step=step) | {"model": tensors}, epoch, best=step % 2 == 0)


@pytest.mark.slow
def test_a_process_killed_at_any_moment_leaves_whole_ones(tmp_path):
    rng = random.Random(0)
    torn = 0
    for number in range(12):
        folder = tmp_path / str(number)
        folder.mkdir()
        process = multiprocessing.get_context("fork").Process(target=save_until_killed, args=(folder,))
        process.start()
        deadline = time.monotonic() + 60
        while not (folder / LAST).exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.15))
        process.kill()
        process.join()
        torn += any(path.name.endswith(".tmp") for path in folder.iterdir())
        checkpoint.remove_torn(folder)
        found = steps(folder)
        assert None not in found.values()
        found.pop(BEST, None)  # has its name before the last
        newest = max(found.values())
        assert len(set(found.values())) > 1 or newest < 3, found  # an older one from the second save on
        weights = checkpoint.load(checkpoint.newest(folder))["model"]
        assert {tensor.unique().item() for tensor in weights.values()} == {float(newest)}
    assert torn  # else no write was hit
