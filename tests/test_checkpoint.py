"""Checkpoints are whole or passed over, and what they refuse they name in a line."""

import errno
import io
import os
import pickle
import random
import shutil
import zipfile

import pytest
import torch
from support import largest_file

from util import checkpoint
from util.errors import UserError
from util.pretrained import read_weights


def state(value=0.0, step=0):
    dicts = {key: {} for key in ("optimizer", "args", "front_end", "progress")}
    weights = {"weight": torch.full((3,), value)}
    numbers = {"format": checkpoint.FORMAT, "step": step, "epoch": 0, "num_samples": 3}
    rest = {"scaler": {}, "classes": [], "rng": checkpoint.random_state()}
    return dicts | {"model": weights} | numbers | rest


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def saved(folder, *steps):
    """Write checkpoints under these names, of these steps, one after the other."""
    for name, step in steps:
        checkpoint.save(state(float(step), step), folder, name)
    return folder


def whole_step(path):
    """The step of a whole checkpoint, else None."""
    found, wrong = checkpoint.examine(path)
    return None if wrong else found.step


def flip(path, position=None):
    """Another byte at a position of a file; where none is given, in the name of a key."""
    content = bytearray(path.read_bytes())
    content[content.index(b"front_end") if position is None else position] ^= 0x20
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_round_trip(tmp_path):
    checkpoint.save(state(7.0, 41), tmp_path)
    assert names(tmp_path) == ["checkpoint-last.pth"]
    path = tmp_path / "checkpoint-last.pth"
    assert torch.equal(checkpoint.load(path)["model"]["weight"], torch.full((3,), 7.0))
    assert whole_step(path) == 41


def test_a_checkpoint_is_an_archive_to_every_reader(tmp_path):
    checkpoint.save(state(7.0, 41), tmp_path, checkpoint.BEST)
    path = tmp_path / checkpoint.BEST
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert any(name.endswith("data.pkl") for name in archive.namelist())
        says = archive.comment.decode()
    assert says.startswith("radio-mae checkpoint save=00000001 step=000000000041 ")
    for mmap in (False, True):
        found = torch.load(path, weights_only=True, mmap=mmap)
        assert torch.equal(found["model"]["weight"], torch.full((3,), 7.0))
    assert torch.equal(read_weights(path).state_dict["weight"], torch.full((3,), 7.0))


def test_a_byte_that_changes_is_noticed_or_does_no_harm(tmp_path):
    """Checksums cover the contents; what is between them (padding, dates) changes nothing that is read."""
    path = saved(tmp_path, (checkpoint.LAST, 3)) / checkpoint.LAST
    whole, good = path.read_bytes(), checkpoint.load(path)
    rng, noticed = random.Random(0), 0
    places = {*range(len(whole) - 90, len(whole)), *rng.sample(range(len(whole)), 400)}
    for place in sorted(places):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << rng.randrange(8))]) + whole[place + 1 :])
        if whole_step(path) is None:
            noticed += 1
            with pytest.raises(UserError, match=r"checkpoint-last\.pth: expected .*; found"):
                checkpoint.load(path)
        else:
            assert whole_step(path) == 3
            assert str(checkpoint.load(path)) == str(good)
    assert noticed > 100
    path.write_bytes(whole)
    assert whole_step(path) == 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:-1],
        lambda whole: b"",
        lambda whole: whole + b"0",
        lambda whole: b"0" + whole,
        lambda whole: whole[:200] + whole[300:],
        lambda whole: whole[:200] + b"more" + whole[200:],
        lambda whole: whole[-90:],
        lambda whole: whole[:700] + bytes(100) + whole[800:],
    ],
)
def test_a_file_of_another_size_or_content_is_refused(tmp_path, damage):
    path = saved(tmp_path, (checkpoint.LAST, 3)) / checkpoint.LAST
    path.write_bytes(damage(path.read_bytes()))
    assert whole_step(path) is None
    with pytest.raises(UserError, match=f"^{path}: expected a whole checkpoint.*; found .") as error:
        checkpoint.load(path)
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_an_older_version_is_whole(tmp_path):
    """Up to 0.16 the comment named the length and a checksum of the file."""
    path = saved(tmp_path, (checkpoint.LAST, 3)) / checkpoint.LAST
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        comment = archive.comment
    older = comment[: comment.index(b"check=")] + b"length=%016d crc32=0123abcd" % (
        len(content) - len(comment)
    )
    path.write_bytes(content[: -len(comment) - 2] + len(older).to_bytes(2, "little") + older)
    assert whole_step(path) == 3
    assert checkpoint.newest(tmp_path) == path


def test_weights_are_not_taken_from_a_damaged_checkpoint(tmp_path):
    path = saved(tmp_path, (checkpoint.LAST, 3)) / checkpoint.LAST
    content = path.read_bytes()
    place = content.index(torch.full((3,), 3.0).numpy().tobytes())
    flip(path, place)
    assert torch.load(path)["model"]["weight"][0] != 3  # torch does not notice
    with pytest.raises(
        UserError, match="expected a file of weights; found a damaged file, with a checksum that differs"
    ):
        read_weights(path)


def test_whole_step_of_what_is_no_file(tmp_path):
    assert whole_step(tmp_path / "none.pth") is None
    assert whole_step(tmp_path) is None


def test_a_checkpoint_of_the_first_format_is_named_as_such(tmp_path):
    torch.save(state() | {"format": 1}, tmp_path / "old.pth")
    with pytest.raises(UserError, match=r"old\.pth: expected checkpoint format 2; found 1$"):
        checkpoint.load(tmp_path / "old.pth")
    torch.save(state(), tmp_path / "new.pth")
    with pytest.raises(
        UserError, match=r"new\.pth: expected a whole checkpoint; found no number of its save"
    ):
        checkpoint.load(tmp_path / "new.pth")


def test_the_newest_is_of_the_latest_save(tmp_path):
    assert checkpoint.newest(tmp_path) is None
    assert checkpoint.newest(tmp_path / "none") is None
    saved(tmp_path, ("checkpoint-9.pth", 90))
    assert checkpoint.newest(tmp_path).name == "checkpoint-9.pth"
    saved(tmp_path, ("checkpoint-10.pth", 100))
    assert checkpoint.newest(tmp_path).name == "checkpoint-10.pth"
    saved(
        tmp_path,
        (checkpoint.PREVIOUS, 101),
        (checkpoint.LAST, 102),
        (checkpoint.BEST, 200),
        ("checkpoint-x.pth", 300),
    )
    assert checkpoint.newest(tmp_path).name == checkpoint.LAST
    # A run that went back to an earlier checkpoint: its steps are fewer, its saves later.
    saved(tmp_path, (checkpoint.LAST, 91))
    assert checkpoint.newest(tmp_path).name == checkpoint.LAST
    # One that was killed after the epoch's name and before the last's.
    saved(tmp_path, ("checkpoint-11.pth", 110))
    assert checkpoint.newest(tmp_path).name == "checkpoint-11.pth"
    # Two names of one.
    shutil.copy(tmp_path / "checkpoint-11.pth", tmp_path / checkpoint.LAST)
    assert checkpoint.newest(tmp_path).name == checkpoint.LAST


@pytest.mark.parametrize("damage", [flip, cut, lambda path: path.write_bytes(b"")])
def test_damaged_ones_are_passed_over_with_a_warning(tmp_path, capsys, damage):
    saved(
        tmp_path,
        ("checkpoint-1.pth", 10),
        ("checkpoint-2.pth", 20),
        (checkpoint.PREVIOUS, 21),
        (checkpoint.LAST, 22),
    )

    def chosen():
        name = checkpoint.newest(tmp_path).name
        warnings = capsys.readouterr().err.splitlines()
        assert all(
            line.startswith("warning: ") and f"passed over for {name} of step" in line for line in warnings
        )
        return name, [line.split(":")[1].rpartition("/")[2] for line in warnings]

    assert chosen() == (checkpoint.LAST, [])
    damage(tmp_path / checkpoint.LAST)
    assert chosen() == (checkpoint.PREVIOUS, [checkpoint.LAST])
    damage(tmp_path / checkpoint.PREVIOUS)
    name, passed = chosen()
    assert name == "checkpoint-2.pth"
    assert passed[0] == checkpoint.LAST
    damage(tmp_path / "checkpoint-2.pth")
    name, passed = chosen()
    assert name == "checkpoint-1.pth"
    assert {checkpoint.LAST, "checkpoint-2.pth"} <= set(passed)


def test_what_is_older_than_the_chosen_one_is_not_read(tmp_path, capsys, monkeypatch):
    saved(tmp_path, ("checkpoint-1.pth", 10), ("checkpoint-2.pth", 20), (checkpoint.LAST, 22))
    for name in ("checkpoint-1.pth", "checkpoint-2.pth"):
        flip(tmp_path / name)
    read, examine = [], checkpoint.examine
    monkeypatch.setattr(checkpoint, "examine", lambda path: (read.append(path.name), examine(path))[1])
    assert checkpoint.newest(tmp_path).name == checkpoint.LAST
    assert read == [checkpoint.LAST]
    assert not capsys.readouterr().err


def test_without_a_whole_one_there_is_no_newest(tmp_path):
    saved(tmp_path, ("checkpoint-2.pth", 20), (checkpoint.LAST, 22))
    flip(tmp_path / "checkpoint-2.pth")
    cut(tmp_path / checkpoint.LAST)
    with pytest.raises(
        UserError,
        match=f"^{tmp_path}: expected a whole checkpoint; found 2 damaged, the newest "
        f"{checkpoint.LAST} with no archive",
    ):
        checkpoint.newest(tmp_path)


def test_a_full_disk_leaves_the_old_one(tmp_path):
    saved(tmp_path, (checkpoint.LAST, 1))
    with (
        largest_file(1 << 16),
        pytest.raises(UserError, match=r"last\.pth: the checkpoint could not be written: File too"),
    ):
        checkpoint.save(state(step=2) | {"model": {"weight": torch.zeros(1 << 15)}}, tmp_path)
    assert names(tmp_path) == [checkpoint.LAST]
    assert whole_step(tmp_path / checkpoint.LAST) == 1


def test_an_error_that_passes_is_one_all_the_same(tmp_path, monkeypatch):
    class Flaky(io.FileIO):
        failures = 1

        def write(self, data):
            if self.failures:
                self.failures -= 1
                raise OSError(errno.EIO, "Input/output error")
            return super().write(data)

    monkeypatch.setattr(checkpoint, "open", lambda path, mode: Flaky(path, mode), raising=False)
    with pytest.raises(
        UserError, match=r"last\.pth: the checkpoint could not be written: Input/output error$"
    ):
        checkpoint.save(state(), tmp_path)
    assert not names(tmp_path)


def test_what_reads_back_as_another_does_not_get_the_name(tmp_path, monkeypatch):
    saved(tmp_path, (checkpoint.LAST, 1))
    fsync = os.fsync

    def lose_a_page(descriptor):
        fsync(descriptor)
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if path.endswith(".tmp"):
            with open(path, "r+b") as file:
                file.seek(700)
                file.write(bytes(50))

    monkeypatch.setattr(os, "fsync", lose_a_page)
    with pytest.raises(UserError, match="it reads back with a checksum that differs"):
        checkpoint.save(state(step=2), tmp_path)
    assert names(tmp_path) == [checkpoint.LAST]
    assert whole_step(tmp_path / checkpoint.LAST) == 1


def test_a_leftover_that_is_another_name_of_a_checkpoint_is_not_written_into(tmp_path):
    saved(tmp_path, ("checkpoint-0.pth", 1))
    os.link(tmp_path / "checkpoint-0.pth", tmp_path / f".{checkpoint.LAST}.{os.getpid()}.tmp")
    saved(tmp_path, (checkpoint.LAST, 2))
    assert whole_step(tmp_path / "checkpoint-0.pth") == 1


def test_a_save_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    checkpoint.save(state(1.0), tmp_path)

    def fail(_, file):
        file.write(b"half")
        raise RuntimeError("no space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(UserError, match="no space left"):
        checkpoint.save(state(2.0), tmp_path)
    assert names(tmp_path) == ["checkpoint-last.pth"]
    assert checkpoint.load(tmp_path / "checkpoint-last.pth")["model"]["weight"][0] == 1


def test_the_file_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(os, "fsync", lambda _: calls.append("flush"))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("rename"), replace(*paths)))
    checkpoint.save(state(), tmp_path)
    assert calls == ["flush", "flush", "rename", "flush"]


def test_torn_files_of_a_killed_process_are_removed(tmp_path):
    for name in (checkpoint.LAST, "reconstruction.png", "log.txt"):
        (tmp_path / f".{name}.123.tmp").write_bytes(b"half")
    (tmp_path / "mine.tmp").write_bytes(b"not ours")
    checkpoint.remove_torn(tmp_path)
    assert names(tmp_path) == ["mine.tmp"]


class Harmful:
    def __reduce__(self):
        return os.system, ("touch harmed",)


def damaged_files(folder):
    good = saved(folder, ("good.pth", 0)) / "good.pth"
    yield "missing", folder / "none.pth", "no such file"
    truncated = folder / "truncated.pth"
    truncated.write_bytes(good.read_bytes()[:-200])
    yield "truncated", truncated, "damaged"
    text = folder / "text.pth"
    text.write_text("hello")
    yield "text", text, "damaged"
    empty = folder / "empty.pth"
    empty.touch()
    yield "empty", empty, "damaged"
    yield "folder", folder, "unreadable"
    objects = folder / "objects.pth"
    torch.save(state() | {"args": Harmful()}, objects)
    yield "objects", objects, "pickled objects"
    pickled = folder / "pickled.pth"
    pickled.write_bytes(pickle.dumps(Harmful()))
    yield "pickled", pickled, "pickled objects"
    weights = folder / "weights.pth"
    torch.save({"model": {}}, weights)
    yield "weights", weights, "without optimizer"
    tensor = folder / "tensor.pth"
    torch.save(torch.zeros(3), tensor)
    yield "tensor", tensor, "without model"
    odd = folder / "odd.pth"
    torch.save(state() | {"args": [1, 2]}, odd)
    yield "odd", odd, "args is a list"
    later = folder / "later.pth"
    checkpoint.save(state() | {"format": 99}, folder, later.name)
    yield "later", later, "format 2; found 99"


def test_what_is_no_checkpoint_is_named_and_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []
    for kind, path, expected in damaged_files(tmp_path):
        with pytest.raises(UserError) as error:
            checkpoint.load(path)
        assert expected in str(error.value), kind
        assert str(path) in str(error.value), kind
        assert "\n" not in str(error.value), kind
        seen.append(kind)
    assert len(seen) == 11
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda s: s.pop("weight"), "weight is missing"),
        (lambda s: s.update(extra=torch.zeros(1)), "extra is unknown"),
        (lambda s: s.update(weight=torch.zeros(2, 2)), r"weight is \[2, 2\], expected \[4, 3\]"),
    ],
)
def test_weights_must_fit_to_the_last_key(change, expected):
    model = torch.nn.Linear(3, 4)
    weights = {key: torch.ones_like(value) for key, value in model.state_dict().items()}
    change(weights)
    with pytest.raises(UserError, match=f"here.pth.*{expected}"):
        checkpoint.load_model(model, weights, "here.pth")
    assert not torch.equal(model.bias, torch.ones(4))


def test_random_state():
    before = checkpoint.random_state()
    first = torch.rand(3)
    checkpoint.set_random_state(before)
    assert torch.equal(torch.rand(3), first)
