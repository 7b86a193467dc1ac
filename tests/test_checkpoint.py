"""Checkpoints are whole or absent, and what they refuse they name in a line."""

import os
import pickle

import pytest
import torch

from util import checkpoint
from util.errors import UserError


def state(value=0.0):
    dicts = {key: {} for key in ("optimizer", "args", "front_end", "progress")}
    weights = {"weight": torch.full((3,), value)}
    return dict.fromkeys(checkpoint.KEYS) | dicts | {"model": weights, "format": checkpoint.FORMAT}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_round_trip(tmp_path):
    checkpoint.save(state(7.0), tmp_path)
    assert names(tmp_path) == ["checkpoint-last.pth"]
    assert torch.equal(checkpoint.load(tmp_path / "checkpoint-last.pth")["model"]["weight"], torch.full((3,), 7.0))


def test_epoch_checkpoints_are_numbered_and_pruned(tmp_path):
    for epoch in range(12):
        checkpoint.save(state(epoch), tmp_path, epoch, keep=3)
    # Epoch 10 is newer than 9, though not to a sort of names.
    assert names(tmp_path) == ["checkpoint-10.pth", "checkpoint-11.pth", "checkpoint-9.pth", "checkpoint-last.pth"]
    assert checkpoint.newest(tmp_path).name == "checkpoint-last.pth"
    assert os.path.samefile(tmp_path / "checkpoint-11.pth", tmp_path / "checkpoint-last.pth")
    (tmp_path / "checkpoint-last.pth").unlink()
    assert checkpoint.newest(tmp_path).name == "checkpoint-11.pth"


def test_keep_zero_keeps_all(tmp_path):
    for epoch in range(5):
        checkpoint.save(state(), tmp_path, epoch, keep=0)
    assert len(names(tmp_path)) == 6


def test_a_later_step_does_not_change_an_epochs_checkpoint(tmp_path):
    checkpoint.save(state(1.0), tmp_path, 0)
    checkpoint.save(state(2.0), tmp_path)
    assert checkpoint.load(tmp_path / "checkpoint-0.pth")["model"]["weight"][0] == 1
    assert checkpoint.load(tmp_path / "checkpoint-last.pth")["model"]["weight"][0] == 2


def test_without_hard_links_both_are_written(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    checkpoint.save(state(3.0), tmp_path, 0)
    for name in ("checkpoint-0.pth", "checkpoint-last.pth"):
        assert checkpoint.load(tmp_path / name)["model"]["weight"][0] == 3


def test_a_save_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    checkpoint.save(state(1.0), tmp_path)

    def fail(_, path):
        path.write_bytes(b"half")
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
    assert calls == ["flush", "rename", "flush"]


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
    good = folder / "good.pth"
    torch.save(state(), good)
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
    torch.save(state() | {"format": 99}, later)
    yield "later", later, "format 1; found 99"


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
