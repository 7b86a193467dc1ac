"""Names of weights and data sets: fetched once, checked, and found again."""

import dataclasses
import hashlib
import json
import os
import random
import subprocess
import sys
import time

import pytest
from safetensors.numpy import save_file
from support import ROOT, largest_file
from test_archives import member, tar, zip_
from web import Way, files, register, row, site

import models_mae
from util import cache, download
from util.download import Entry, entries, fetch, resolve
from util.errors import UserError

DATA = random.Random(0).randbytes(3 * 10**5)  # the same in all workers of pytest-xdist: names of tests have its checksums
MD5 = hashlib.md5(DATA).hexdigest()
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def web(monkeypatch, tmp_path):
    with site(monkeypatch, tmp_path) as web:
        web.files["/tiny.pth"] = DATA
        register(tmp_path, row(url=web.url("/tiny.pth")))
        yield web


# The registry as it is


def test_the_registry():
    rows = json.loads(download.REGISTRY.read_text())
    assert len({row["name"] for row in rows}) == len(rows)
    known = {row["name"]: Entry(**row) for row in rows}  # every field is there, and no other
    for name, entry in known.items():
        for field in dataclasses.fields(Entry):
            value = getattr(entry, field.name)
            optional = field.name in ("size", "checksum", "preset", "how", "largest_unpacked")
            assert isinstance(value, field.type) or (optional and value is None), (name, field.name)
            assert value != ""
        assert name == name.lower()
        assert name.isidentifier()
        assert name not in ("list", "random")
        assert entry.kind in download.KINDS
        assert entry.url.startswith(("https://", "hf://"))
        assert (entry.preset in models_mae.PRESETS) == (entry.kind == "weights")
        assert entry.checksum is None or entry.checksum.partition(":")[0] in ("md5", "sha256")
        assert entry.use.startswith("python main_finetune.py --task ")
        assert ("PATH" in entry.use) == (entry.kind == "dataset")
        assert name in entry.use or entry.kind == "dataset"
    assert set(known) >= {"mae_vit_base", "mae_vit_large", "mae_vit_huge", "radio_vit_small_75", "radio_vit_medium_75",
                          "mathworks_spectrum_sensing", "ntu_fi_har", "commrad_rf"}  # fmt: skip
    assert known["mae_vit_base"].non_commercial
    assert not known["ntu_fi_har"].non_commercial


# Weights by name


def test_a_name_is_fetched_once(web, tmp_path, capsys):
    path = resolve("tiny")
    assert path == tmp_path / "home" / "weights" / "tiny.pth"
    assert path.read_bytes() == DATA
    assert resolve("tiny", offline=True) == path
    assert len(web.requests) == 1
    assert files(tmp_path / "home") == ["weights/tiny.pth"]
    out = capsys.readouterr().out
    assert out.count("tiny: licence MIT") == 2
    assert f"tiny: checksum not published: size {len(DATA)} and sha256 {SHA256} recorded" in out
    record = json.loads((tmp_path / "home" / "weights" / "tiny.pth.json").read_text())
    assert (record["size"], record["sha256"], record["url"]) == (len(DATA), SHA256, web.url("/tiny.pth"))


@pytest.mark.parametrize(("checksum", "said"), [
    (f"md5:{MD5}", "md5 checked\n"), (f"md5:{MD5[:6].upper()}", "md5 checked as far as it is published: size"),
    (f"sha256:{SHA256}", "sha256 checked\n"),
])  # fmt: skip
def test_checksums(web, tmp_path, checksum, said, capsys):
    register(tmp_path, row(url=web.url("/tiny.pth"), checksum=checksum, size=len(DATA), licence="CC-BY-NC-4.0"))
    resolve("tiny")
    captured = capsys.readouterr()
    assert f"tiny: {said}" in captured.out
    assert "warning: tiny: licence CC-BY-NC-4.0: NOT FOR COMMERCIAL USE\n" in captured.err
    wrong = checksum[:-1] + ("0" if checksum[-1] != "0" else "1")
    register(tmp_path, row("other", url=web.url("/tiny.pth"), checksum=wrong))
    expected = f"{web.url('/tiny.pth')}: expected {wrong.replace(':', ' ').lower()}"
    with pytest.raises(UserError, match=rf"{expected}(\.\.\.)?; found ({MD5}|{SHA256})$"):
        resolve("other")
    assert files(tmp_path / "home") == ["weights/tiny.pth"]


def test_a_wrong_size_or_a_web_page(web, tmp_path):
    register(tmp_path, row(url=web.url("/tiny.pth"), size=7), row("page", url=web.url("/page.pth")))
    web.files["/page.pth"] = b"\n<!DOCTYPE html><title>Log in</title>"
    for name, reason in (("tiny", "expected 7 bytes; found 300000"), ("page", "expected what page holds; found a web page")):
        with pytest.raises(UserError, match=reason):
            resolve(name)
    assert files(tmp_path / "home") == []


def test_files_and_mistakes(web, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    assert resolve("own") == resolve(tmp_path / "own").relative_to(tmp_path)
    register(tmp_path, row(), row("tiniest"), row("other"), row("data", "dataset"))
    for name in ("none.pth", "none.safetensors", "none.onnx", "a/b.pth", "a/b/c", tmp_path / "none"):
        with pytest.raises(UserError, match=f"^{name}: expected a file of weights; found no such file$"):
            resolve(name)
    # Two names may be a repository of the hub.
    with pytest.raises(UserError, match=r"^hf://a/b: expected it in the cache, being offline; found none$"):
        resolve("a/b", offline=True)
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(UserError, match=r"^a/b: expected a file of weights; found a folder without"):
        resolve("a/b")
    with pytest.raises(UserError, match="folder: expected a file of weights; found a folder"):
        resolve("folder")
    with pytest.raises(UserError, match=r"Tinny: .*; found neither; the nearest names: tiny, tiniest$"):
        resolve("Tinny")
    with pytest.raises(UserError, match=r"zzzz: .*; names: tiny, tiniest, other$"):
        resolve("zzzz")
    with pytest.raises(UserError, match="data: expected weights; found the name of a data set"):
        resolve("data")
    assert web.requests == []


def test_this_repositorys_own_weights(web, tmp_path, capsys):
    (tmp_path / "released").mkdir()
    path = tmp_path / "released" / "radio_mae_tiny.safetensors"
    save_file({}, path, {"preset": "mae_vit_tiny_patch16", "licence": "CC0-1.0", "data": "scenes", "holds": "encoder"})
    assert resolve("radio_mae_tiny", offline=True) == path
    assert "radio_mae_tiny: licence CC0-1.0" in capsys.readouterr().out
    entry = entries()["radio_mae_tiny"]
    assert (entry.preset, entry.holds) == ("mae_vit_tiny_patch16", "this project's own: encoder, trained on scenes")
    path.write_bytes(b"damaged")
    assert entries()["radio_mae_tiny"].licence == "not stated"
    assert resolve("radio_mae_tiny") == path  # its reader says what is wrong


def test_offline(web, tmp_path, monkeypatch):
    for value in ("1", "true", "YES", "On"):
        monkeypatch.setenv("HF_HUB_OFFLINE", value)
        with pytest.raises(UserError, match=r"tiny: expected it in the cache, being offline; found no .*tiny.pth"):
            resolve("tiny")
    with pytest.raises(UserError, match="being offline"):
        resolve("tiny", offline=True)
    assert web.requests == []
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    resolve("tiny")


def test_a_file_that_changed_in_the_cache(web, tmp_path):
    path = resolve("tiny")
    os.utime(path, (1, 1))  # as a copy of the cache has it
    assert resolve("tiny") == path
    path.write_bytes(DATA[::-1])
    with pytest.raises(UserError, match=rf"expected sha256 {SHA256}, as when it was fetched; found .*; remove"):
        resolve("tiny")
    path.unlink()
    assert resolve("tiny").read_bytes() == DATA


def test_a_file_that_changed_at_its_address(web, tmp_path, capsys):
    resolve("tiny").unlink()
    web.files["/tiny.pth"] = DATA[::-1]
    resolve("tiny")
    assert f"has changed: sha256 {SHA256} when it was first fetched, now " in capsys.readouterr().err


def test_a_file_that_somebody_put_there(web, tmp_path):
    register(tmp_path, row(url=web.url("/tiny.pth"), checksum=f"md5:{MD5}"))
    place = tmp_path / "home" / "weights" / "tiny.pth"
    place.parent.mkdir(parents=True)
    place.write_bytes(DATA)
    assert resolve("tiny", offline=True) == place
    os.truncate(place, 5)
    with pytest.raises(UserError, match=r"tiny.pth: expected md5"):
        resolve("tiny", offline=True)


def test_a_cache_that_cannot_be_written(web, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("RADIO_MAE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="file: expected a folder that can be written"):
        resolve("tiny")
    monkeypatch.setenv("RADIO_MAE_HOME", str(tmp_path / "home"))
    with largest_file(10**5), pytest.raises(UserError, match="could not be written: File too large"):
        resolve("tiny")
    assert files(tmp_path / "home") == ["weights/tiny.pth.part"]
    web.sent = 0
    resolve("tiny")
    assert web.sent < len(DATA)
    assert files(tmp_path / "home") == ["weights/tiny.pth"]


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RADIO_MAE_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache.home() == tmp_path / ".cache" / "radio-mae"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.home() == tmp_path / "xdg" / "radio-mae"
    monkeypatch.setenv("RADIO_MAE_HOME", "~/own")
    assert cache.home() == tmp_path / "own"


# Data sets


@pytest.fixture
def dataset(web, tmp_path):
    archive = tar(tmp_path / "set.tar.gz", member("NTU/train_amp/box1.mat", b"1"), member("NTU/test_amp/box2.mat", b"2"))
    web.files["/set"] = archive.read_bytes()
    register(tmp_path, row("set", "dataset", url=web.url("/set")), row("hand", "dataset", how="ask nicely"))
    return entries()["set"]


def test_a_data_set_is_unpacked(web, dataset, tmp_path):
    folder = fetch(dataset)
    assert folder == tmp_path / "home" / "datasets" / "set"
    assert files(tmp_path / "home") == ["datasets/set/NTU/test_amp/box2.mat", "datasets/set/NTU/train_amp/box1.mat"]
    assert download.data_path(folder) == folder / "NTU"
    assert fetch(dataset, offline=True) == folder
    assert len(web.requests) == 1
    assert json.loads((folder.parent / "set.json").read_text())["size"] == len(web.files["/set"])


def test_a_refused_archive_is_not_kept(web, dataset, tmp_path):
    web.files["/set"] = zip_(tmp_path / "a.zip", ("../evil", b"x")).read_bytes()
    with pytest.raises(UserError, match=r"set.archive: expected members that stay in their folder"):
        fetch(dataset)
    assert files(tmp_path / "home") == []
    bomb = dataclasses.replace(dataset, largest_unpacked=1)
    web.files["/set"] = (tmp_path / "set.tar.gz").read_bytes()
    with pytest.raises(UserError, match="expected at most 1 bytes"):
        fetch(bomb)
    assert files(tmp_path / "home") == []


def test_a_disk_that_is_full_when_unpacking_keeps_the_archive(web, dataset, tmp_path):
    web.files["/set"] = tar(tmp_path / "b.tar.xz", member("a", bytes(10**6)), mode="w:xz").read_bytes()
    with largest_file(10**5), pytest.raises(UserError, match="could not be unpacked"):
        fetch(dataset)
    assert files(tmp_path / "home") == ["datasets/set.archive"]
    fetch(dataset)
    assert files(tmp_path / "home") == ["datasets/set/a"]
    assert len(web.requests) == 1


def test_what_a_person_has_to_fetch(web, dataset, tmp_path):
    hand = entries()["hand"]
    with pytest.raises(UserError, match=r"hand: it takes a person .*: ask nicely; then: python .* hand --from FILE"):
        fetch(hand)
    with pytest.raises(UserError, match="being offline"):
        fetch(hand, offline=True)
    archive = tmp_path / "set.tar.gz"
    folder = fetch(hand, source=archive, offline=True)
    assert (folder / "NTU" / "test_amp" / "box2.mat").read_bytes() == b"2"
    assert archive.exists()
    assert fetch(hand) == folder
    with pytest.raises(UserError, match="expected a name that is not in the cache; found"):
        fetch(hand, source=archive)
    assert web.requests == []


def test_a_file_that_a_person_fetched_is_checked(web, tmp_path):
    register(tmp_path, row(url="https://weights.invalid/a.pth", checksum=f"sha256:{SHA256}"), row("set", "dataset", size=5))
    own = tmp_path / "Downloads.pth"
    own.write_bytes(DATA[:-1])
    for name, reason in (("tiny", f"expected sha256 {SHA256}; found"), ("set", "expected 5 bytes; found 299999")):
        with pytest.raises(UserError, match=f"Downloads.pth: {reason}"):
            fetch(entries()[name], source=own)
    for source, found in ((tmp_path, "a folder"), (tmp_path / "none", "no such file")):
        with pytest.raises(UserError, match=f"--from {source}: expected a file; found {found}"):
            fetch(entries()["tiny"], source=source)
    assert own.exists()
    assert files(tmp_path / "home") == []
    own.write_bytes(DATA)
    with largest_file(10**5), pytest.raises(UserError, match="could not be written"):
        fetch(entries()["tiny"], source=own)
    assert files(tmp_path / "home") == []
    assert fetch(entries()["tiny"], source=own).read_bytes() == DATA
    assert own.exists()


# Processes


PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from util import download, transfer
download.REGISTRY = Path({registry!r})
transfer.FIRST_PAUSE_S = 0.01
print(download.resolve("tiny"))
"""


def process(tmp_path):
    program = PROGRAM.format(root=str(ROOT), registry=str(tmp_path / "downloads.json"))
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_killed_in_the_middle_it_goes_on(web, tmp_path):
    web.files["/tiny.pth"] = data = os.urandom(4 * 10**6)
    register(tmp_path, row(url=web.url("/tiny.pth"), checksum=f"sha256:{hashlib.sha256(data).hexdigest()}"))
    web.slow_s = 0.02
    part = tmp_path / "home" / "weights" / "tiny.pth.part"
    for share in (0.3, 0.6):
        killed = process(tmp_path)
        wait_for(lambda share=share: part.exists() and part.stat().st_size > share * len(data))
        killed.kill()
        killed.communicate()
        assert not part.with_suffix("").exists()
    web.slow_s = 0
    wait_for(lambda: len(web.requests) == 2)
    kept, web.sent = part.stat().st_size, 0
    last = process(tmp_path)
    out, err = last.communicate(timeout=60)
    assert last.returncode == 0, err
    assert (tmp_path / "home" / "weights" / "tiny.pth").read_bytes() == data
    assert str(tmp_path / "home" / "weights" / "tiny.pth") in out
    assert [asked is None for _, asked in web.requests] == [True, False, False]
    assert web.requests[-1][1] == f"bytes={kept}-"
    assert files(tmp_path / "home") == ["weights/tiny.pth"]


def test_two_at_once_fetch_once(web, tmp_path):
    web.slow_s = 0.4
    first = process(tmp_path)
    wait_for(lambda: web.requests)
    second = process(tmp_path)
    results = [one.communicate(timeout=60) for one in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], results
    assert len({out.splitlines()[-1] for out, _ in results}) == 1
    assert len(web.requests) == 1
    assert web.sent == len(DATA)
    assert "tiny: another process is fetching it; waiting" in results[1][1]


def test_retries_reach_the_name(web, tmp_path, capsys):
    web.behaviours = [Way.DROP, Way.UNAVAILABLE, Way.HANG]
    assert resolve("tiny").read_bytes() == DATA
    assert capsys.readouterr().err.count("trying again") == 3


def test_importing_brings_nothing_along():
    packages = {"requests", "huggingface_hub", "filelock", "tqdm", "torch"}
    program = f"import sys, util.download; print({packages} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
