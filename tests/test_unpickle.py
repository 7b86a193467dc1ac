"""Files of torch.save from other projects: plain values are read, whatever would run code is refused in a
line.
"""

import argparse
import contextlib
import os
import pathlib

import numpy as np
import pytest
import torch
from support import call, write_ci16
from torch import nn

import main_segment
from util import checkpoint, unpickle
from util.errors import UserError
from util.pretrained import read_weights

STATE = {"norm.weight": torch.ones(3)}
SCALAR = np.float64(0).__reduce__()[0]


def save(path, content, zipped=True, replaced=()):
    """What torch writes; of the old format, bytes can be replaced by those of another version."""
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    for old, new in replaced:
        assert old in data
        data = data.replace(old, new)
    path.write_bytes(data)


class Call:
    """In a pickle: a call of any function, and then a state for the result."""

    def __init__(self, function, *args, state=None):
        self.function, self.args, self.state = function, args, state

    def __reduce__(self):
        return (self.function, self.args, self.state)


class Thing:
    """An object of another project."""


# What is read


@pytest.mark.parametrize("zipped", [True, False])
def test_arguments_of_a_run_become_plain_values(tmp_path, zipped):
    args = argparse.Namespace(
        lr=np.float64(0.5),
        half=np.float16(1.5),
        count=np.int64(-3),
        flag=np.bool_(True),
        name=np.str_("nr µ"),
        big_endian=np.array(7, ">i4")[()],
        path=pathlib.Path("/a/b"),
        pure=pathlib.PurePosixPath("c"),
        device=torch.device("cuda", 1),
        dtype=torch.bfloat16,
        kind=np.dtype("float32"),
        size=torch.Size([2, 3]),
        inner=argparse.Namespace(paths=[pathlib.Path("x"), (np.int8(1), None)]),
    )
    save(tmp_path / "a.pth", {"model": STATE, "args": args, np.int64(4): {"epoch": np.uint8(5)}}, zipped)
    found = checkpoint.read(tmp_path / "a.pth", "weights")
    assert found.keys() == {"model", "args", 4}
    assert found[4] == {"epoch": 5}
    assert torch.equal(found["model"]["norm.weight"], STATE["norm.weight"])
    assert found["args"] == {
        "lr": 0.5,
        "half": 1.5,
        "count": -3,
        "flag": True,
        "name": "nr µ",
        "big_endian": 7,
        "path": "/a/b",
        "pure": "c",
        "device": "cuda:1",
        "dtype": "torch.bfloat16",
        "kind": "float32",
        "size": (2, 3),
        "inner": {"paths": ["x", (1, None)]},
    }
    plain = {float, int, bool, str, dict, list, tuple, torch.Size}
    assert {type(value) for value in [*found["args"].values(), *found["args"]["inner"]["paths"]]} <= plain


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"),  # NumPy 2, and NumPy 1
        (
            b"cpathlib\nPosixPath\n",
            b"cpathlib._local\nPosixPath\n",
        ),  # Python up to 3.12 and from 3.14 on, and 3.13
        (b"cpathlib\nPosixPath\n", b"cpathlib\nPurePosixPath\n"),
    ],
)
def test_modules_of_other_versions(tmp_path, old, new):
    args = argparse.Namespace(lr=np.float64(0.5), path=pathlib.PosixPath("/a/b"))
    for replaced in ([], [(old, new)]):
        save(tmp_path / "a.pth", {"args": args}, zipped=False, replaced=replaced)
        assert checkpoint.read(tmp_path / "a.pth", "weights") == {"args": {"lr": 0.5, "path": "/a/b"}}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", [pathlib.WindowsPath, pathlib.PureWindowsPath])
def test_windows_paths_are_read_anywhere(tmp_path, kind, zipped):
    save(tmp_path / "a.pth", {"args": argparse.Namespace(path=Call(kind, "C:\\", "runs", "a"))}, zipped)
    assert checkpoint.read(tmp_path / "a.pth", "weights") == {"args": {"path": r"C:\runs\a"}}


def test_a_crafted_state_of_a_numpy_type_is_not_given_to_numpy(tmp_path):
    """NumPy takes the third of these values for an object: with its own `dtype.__setstate__` the process
    crashes.
    """
    crafted = Call(np.dtype, "f8", False, True, state=(3, "<", 20046, -1, -1, 0))
    save(tmp_path / "a.pth", {"epoch": Call(SCALAR, crafted, np.float64(1.5).tobytes())})
    assert checkpoint.read(tmp_path / "a.pth", "weights") == {"epoch": 1.5}


def test_the_allow_list_holds_for_these_files_alone(tmp_path):
    save(tmp_path / "a.pth", {"args": argparse.Namespace()})
    before = set(torch.serialization.get_safe_globals())
    unpickle.load(tmp_path / "a.pth")
    assert set(torch.serialization.get_safe_globals()) == before


# What is refused


def in_args(value):
    return {"model": STATE, "args": argparse.Namespace(lr=1, value=value)}


def endless():
    args = argparse.Namespace()
    args.args = args
    return {"model": STATE, "args": args}


BAD = {  # made with a command that leaves a mark
    "os.system": (lambda command: in_args(Call(os.system, command)), rf"{os.name}\.system"),
    "eval": (lambda command: in_args(Call(eval, f"__import__('os').system({command!r})")), "eval"),
    "in the optimizer": (
        lambda command: {"model": STATE, "optimizer": [Call(os.system, command)]},
        r"\.system",
    ),
    "beside tensors": (lambda command: {**STATE, "x": Call(os.system, command)}, r"\.system"),
    "object": (lambda command: in_args(Thing()), r"test_unpickle\.Thing"),
    "nested object": (
        lambda command: in_args(argparse.Namespace(a=[{"b": Thing()}])),
        r"test_unpickle\.Thing",
    ),
    "function": (lambda command: in_args(os.getcwd), "getcwd"),
    "class": (lambda command: in_args(torch.optim.AdamW), r"torch\.optim\.adamw\.AdamW"),
    "path that exists": (lambda command: in_args(Call(pathlib.Path, "/a")), r"pathlib\.Path"),
    "module": (lambda command: {"model": nn.Linear(2, 2)}, r"torch\.nn\.modules\.linear\.Linear"),
    "whole module": (lambda command: nn.Linear(2, 2), r"torch\.nn\.modules\.linear\.Linear"),
    "array": (lambda command: in_args(np.zeros(3)), "_reconstruct"),
    "type of objects": (lambda command: in_args(np.dtype(object)), "damaged"),
    "type with fields": (lambda command: in_args(np.dtype([("a", "O")])), "damaged"),
    "scalar of an object": (lambda command: in_args(Call(SCALAR, np.dtype(object), b"12345678")), "damaged"),
    "short scalar": (lambda command: in_args(Call(SCALAR, np.dtype("f8"), b"1234")), "damaged"),
    "large scalar": (lambda command: in_args(Call(SCALAR, Call(np.dtype, "S999999999"), b"1")), "damaged"),
    "endless": (lambda command: endless(), "damaged"),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", BAD)
def test_other_objects_are_refused_and_nothing_runs(tmp_path, kind, zipped):
    make, said = BAD[kind]
    path, mark = tmp_path / "a.pth", tmp_path / "mark"
    save(path, make(f"touch {mark}"), zipped)
    for read in (read_weights, lambda path: checkpoint.read(path, "weights"), checkpoint.load):
        with pytest.raises(UserError, match=rf"^{path}: expected .*; found .*{said}") as error:
            read(path)
        assert "\n" not in str(error.value)
    assert not mark.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_files_are_refused(tmp_path, zipped):
    """Bytes are changed, and the end is cut off, anywhere; torch's reader raises many kinds of errors."""
    save(tmp_path / "whole.pth", in_args(np.float64(1)), zipped)
    whole, path, generator = (
        (tmp_path / "whole.pth").read_bytes(),
        tmp_path / "a.pth",
        np.random.default_rng(0),
    )
    for _ in range(300):
        data = bytearray(whole)
        for place in generator.integers(0, min(len(data), 1500), generator.integers(1, 6)):
            data[place] = generator.integers(256)
        path.write_bytes(data[: len(data) if generator.random() < 0.8 else generator.integers(len(data))])
        # some changes do no harm
        with contextlib.suppress(UserError):
            checkpoint.read(path, "weights")


def test_a_command_says_it_in_a_line(tmp_path, capsys):
    mark = tmp_path / "mark"
    save(tmp_path / "a.pth", in_args(Call(os.system, f"touch {mark}")))
    recording = write_ci16(tmp_path / "recordings")
    assert call(main_segment, recording, "--weights", tmp_path / "a.pth", "--output", tmp_path / "out") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"error: {tmp_path / 'a.pth'}: expected a file of weights of tensors and plain values; found"
    )
    assert not mark.exists()
