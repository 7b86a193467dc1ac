"""main_download.py: what there is, and fetching it."""

import json
import os

import pytest
from support import ROOT, call, command, files, register, site, table_row
from test_fetch import member, tar

import main_download

DATA = os.urandom(3 * 10**5)


@pytest.fixture
def web(monkeypatch, tmp_path):
    """Weights, a data set, and one that takes a person."""
    tar(tmp_path / "set.tar.gz", member("inner/train/a.npy", b"1"), member("inner/test/a.npy", b"2"))
    with site(monkeypatch, tmp_path) as web:
        web.files = {"/tiny.pth": DATA, "/set": (tmp_path / "set.tar.gz").read_bytes()}
        register(
            tmp_path,
            table_row(url=web.url("/tiny.pth"), licence="CC-BY-NC-4.0"),
            table_row("set", "dataset", url=web.url("/set")),
            table_row("hand", "dataset", how="ask nicely", checksum="md5:00"),
        )
        yield web


def test_the_table(web, tmp_path, capsys):
    assert call(main_download, "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "kind", "bytes", "checksum", "licence", "here", "what", "it", "holds"]
    assert [line.split("  ")[0].strip() for line in lines[1:]] == ["tiny", "set", "hand"]
    assert lines[1].endswith("  what tiny holds")
    words = (("CC-BY-NC-4.0", " no ", "not published"), ("dataset", " no "), ("by hand", "md5:00"))
    assert all(word in line for line, own in zip(lines[1:], words, strict=True) for word in own)
    assert call(main_download, "tiny") == 0
    assert web.requests == [("/tiny.pth", None)]
    capsys.readouterr()
    call(main_download, "list")
    assert "  yes      " in capsys.readouterr().out.splitlines()[1]
    (tmp_path / "home" / "weights" / "tiny.pth").write_bytes(b"x")
    call(main_download, "list")
    assert "  changed  " in capsys.readouterr().out.splitlines()[1]


def test_names(web, tmp_path, capsys):
    web.behaviours = ["drop"]
    assert call(main_download, "tiny", "set", "tiny") == 0
    captured = capsys.readouterr()
    weights, folder = (
        tmp_path / "home" / "weights" / "tiny.pth",
        tmp_path / "home" / "datasets" / "set" / "inner",
    )
    assert weights.read_bytes() == DATA
    for line in (f"tiny: {weights}", "cite: Nobody", f"set: {folder}", f"use: python use.py set {folder}"):
        assert line in captured.out.splitlines()
    assert "warning: tiny: licence CC-BY-NC-4.0: NOT FOR COMMERCIAL USE" in captured.err
    assert (folder / "train" / "a.npy").read_bytes() == b"1"
    web.requests.clear()
    assert call(main_download, "tiny", "set", "--offline") == 0
    assert web.requests == []


def test_all_data_sets(web, tmp_path, capsys):
    for _ in range(2):
        assert call(main_download, "--all-datasets") == 2
        captured = capsys.readouterr()
        assert "hand: fetch it from http://weights.invalid/hand.pth: ask nicely" in captured.out
        assert (
            "error: --all-datasets: expected to fetch all; found hand, which a person must fetch"
            in captured.err
        )
        assert files(tmp_path / "home") == ["datasets/set/inner/test/a.npy", "datasets/set/inner/train/a.npy"]
    assert call(main_download, "hand", "--from", tmp_path / "set.tar.gz") == 2
    assert "set.tar.gz: expected md5 00; found" in capsys.readouterr().err
    registered = json.loads((tmp_path / "downloads.json").read_text())
    register(tmp_path, *(entry | {"checksum": None} for entry in registered))
    assert call(main_download, "hand", "--from", tmp_path / "set.tar.gz") == 0
    assert f"hand: {tmp_path / 'home' / 'datasets' / 'hand' / 'inner'}" in capsys.readouterr().out
    assert call(main_download, "--all_datasets") == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "expected list alone, or names, or --all-datasets; found none"),
        (("list", "tiny"), "found list tiny"),
        (
            ("tiny", "tyni"),
            "tyni: expected a file or a name of `main_download.py list`; found neither; the nearest names: tiny",
        ),
        (("tiny", "hf://a"), "hf://a: expected hf://owner/name[@revision][/file]"),
        (("a/b", "--offline"), "hf://a/b: expected it in the cache, being offline"),
        (("a/b", "--from", "x"), "--from x: expected one name of the list; found a/b"),
        (("tiny", "set", "--from", "x"), "--from x: expected one name of the list; found tiny set"),
        (("hf://a/b/c", "--from", "x"), "--from x: expected one name of the list; found hf://a/b/c"),
        (("tiny", "--from", "no/file"), "--from no/file: expected a file; found no such file"),
        (("hand",), "hand: a person must fetch http://weights.invalid/hand.pth: ask nicely; then:"),
        (("set", "--offline"), "set: expected it in the cache, being offline"),
    ],
)
def test_mistakes(web, tmp_path, capsys, flags, message):
    if "hf://a" in flags:
        flags = flags[1:]
    assert call(main_download, *flags) == 2
    err = [
        line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: tiny: licence")
    ]
    assert len(err) == 1
    assert err[0].startswith("error: ")
    assert message in err[0]
    assert files(tmp_path / "home") == []
    assert web.requests == []


def test_stopped(web, monkeypatch, capsys):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(main_download.fetch, "fetch", stop)
    assert call(main_download, "tiny") == 75
    assert capsys.readouterr().err == "stopped: the part that came is kept; the same command goes on\n"


def test_the_command(tmp_path):
    environment = {**os.environ, "RADIO_MAE_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    listed = command("main_download.py", "list", env=environment)
    assert listed.returncode == 0, listed.stderr
    assert "mae_vit_base                weights  not published  md5:8cad7c" in listed.stdout
    failed = command("main_download.py", "mae_vit_bas", env=environment, cwd=ROOT)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert "the nearest names: mae_vit_base, " in failed.stderr
    offline = command("main_download.py", "mae_vit_base", env=environment)
    assert offline.returncode == 2
    assert "NOT FOR COMMERCIAL USE" in offline.stderr
    assert "being offline" in offline.stderr.splitlines()[-1]
