"""Weights and data sets: fetched from servers that behave badly, checked, unpacked, and found again."""

import contextlib
import gzip
import hashlib
import io
import json
import os
import random
import re
import socket
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
import requests
from huggingface_hub import constants
from safetensors import safe_open
from support import ROOT, command, files, largest_file, register, site, table_row

from util import fetch as module
from util import transfer
from util.errors import UserError
from util.fetch import entries, entry_of, fetch, hub_address, resolve

DATA = random.Random(0).randbytes(10**6)  # the same in all workers: names of tests hold its checksums
MD5, SHA256 = hashlib.md5(DATA).hexdigest(), hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def web(monkeypatch, tmp_path):
    with site(monkeypatch, tmp_path) as web:
        web.files["/tiny.pth"] = DATA
        register(tmp_path, table_row(url=web.url("/tiny.pth")))
        yield web


@pytest.fixture
def part(web, tmp_path):
    """A part of 600,000 bytes, as an earlier process left it."""
    part = tmp_path / "home" / "weights" / "tiny.pth.part"
    with largest_file(600_000), pytest.raises(UserError, match=r"folder that can be written.*File too large"):
        resolve("tiny")
    assert part.stat().st_size == 600_000
    web.requests.clear()
    return part


def kept(tmp_path):
    return files(tmp_path / "home")


def failed(reason, name="tiny"):
    with pytest.raises(UserError, match=reason) as error:
        resolve(name)
    return str(error.value)


# The registry


def test_the_registry():
    known = entries()
    assert len(known) == len(json.loads(module.REGISTRY.read_text()))
    for name, entry in known.items():
        assert name == name.lower()
        assert name.isidentifier()
        assert name not in ("list", "random")
        assert all(isinstance(text, str) and text for text in entry[:7])
        assert (entry.kind == module.WEIGHTS) == (entry.preset is not None) == ("PATH" not in entry.use)
        assert (entry.checksum or "md5:").partition(":")[0] in ("md5", "sha256")
        assert entry.url.startswith(("https://", "hf://")) or entry.place.is_file()
    assert {"mae_vit_base", "radio_vit_small_75", "mathworks_spectrum_sensing", "ntu_fi_har"} <= set(known)


def test_this_repositorys_own_weights_are_as_their_files_say():
    paths = sorted((ROOT / "weights").glob("*.safetensors"))
    for path in paths:
        entry = entries()[path.stem]
        with safe_open(path, "numpy") as file:
            about = file.metadata()
        assert resolve(path.stem, offline=True) == entry.place == path
        assert (entry.size, entry.preset, entry.licence) == (
            path.stat().st_size,
            about["preset"],
            about["licence"],
        )
        assert entry.holds == f"this project's own: {about['holds']}, trained on {about['data']}"
    assert len(paths) == sum("://" not in entry.url for entry in entries().values())


def test_the_entry_of_a_name():
    wavesfm = entries()["wavesfm"]
    for name in ("wavesfm", wavesfm.url, "ahmedaboulfo/wavesfm", "hf://ahmedaboulfo/wavesfm"):
        assert entry_of(name) == wavesfm
    for name in ("ahmedaboulfo/wave", "wavesfm.pth", Path("a/b.pth"), "hf://ahmedaboulfo"):
        assert entry_of(name) is None
    assert hub_address("facebook/vit-mae-base") == "hf://facebook/vit-mae-base"


# Names


def test_a_name_is_fetched_once(web, tmp_path, capsys):
    path = resolve("tiny")
    assert path == tmp_path / "home" / "weights" / "tiny.pth"
    assert path.read_bytes() == DATA
    assert resolve("tiny", offline=True) == path
    assert len(web.requests) == 1
    assert kept(tmp_path) == ["weights/tiny.pth"]
    captured = capsys.readouterr()
    assert captured.out.count("tiny: licence MIT") == 2
    assert f"tiny: checksum not published: sha256 {SHA256} recorded" in captured.out
    assert captured.err == ""  # a bar is for terminals


@pytest.mark.parametrize("checksum", [f"md5:{MD5}", f"md5:{MD5[:6].upper()}", f"sha256:{SHA256}"])
def test_checksums(web, tmp_path, checksum, capsys):
    url = web.url("/tiny.pth")
    wrong = checksum[:-1] + ("0" if checksum[-1] != "0" else "1")
    register(
        tmp_path,
        table_row(url=url, checksum=checksum, size=len(DATA), licence="CC-BY-NC-4.0"),
        table_row("other", url=url, checksum=wrong),
    )
    assert resolve("tiny").read_bytes() == DATA
    assert "warning: tiny: licence CC-BY-NC-4.0: NOT FOR COMMERCIAL USE\n" in capsys.readouterr().err
    failed(f"{url}: expected {wrong.replace(':', ' ').lower()}; found ({MD5}|{SHA256})$", "other")
    assert kept(tmp_path) == ["weights/tiny.pth"]


def test_files_and_mistakes(web, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    register(tmp_path, table_row(), table_row("tiniest"), table_row("other"), table_row("data", "dataset"))
    (tmp_path / "own").write_bytes(b"x")
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "saved").mkdir()
    for name in ("pytorch_model.bin", "model.safetensors"):  # as transformers saves a model
        (tmp_path / "saved" / name).touch()
        assert resolve("saved") == Path("saved") / name
    assert resolve("own") == Path("own")
    for name in ("none.pth", "none.onnx", "a/b.pth", "a/b/c", tmp_path / "none"):
        failed(f"^{name}: expected a file of weights; found no such file$", name)
    failed("^a/b: expected a file of weights; found a folder without model.safetensors or", "a/b")
    failed(r"Tinny: .*; found neither; the nearest names: tiny, tiniest$", "Tinny")
    failed("zzzz: .*; names: tiny, tiniest, other$", "zzzz")
    failed("data: expected weights; found the name of a data set", "data")
    assert web.requests == []


def test_offline(web, monkeypatch):
    for value in ("1", "true", "YES", "On"):
        monkeypatch.setenv("HF_HUB_OFFLINE", value)
        failed("tiny: expected it in the cache, being offline; found no .*tiny.pth")
    with pytest.raises(UserError, match="being offline"):
        resolve("tiny", offline=True)
    assert web.requests == []
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    resolve("tiny")


def test_a_file_that_changed_in_the_cache_or_at_its_address(web, capsys):
    path = resolve("tiny")
    os.utime(path, (1, 1))  # as a copy of the cache has it
    assert resolve("tiny", offline=True) == path
    path.write_bytes(DATA[::-1])
    failed(f"expected sha256 {SHA256}, as when it was fetched; found .*; remove the file")
    path.unlink()
    web.files["/tiny.pth"] = DATA[::-1]
    assert resolve("tiny").read_bytes() == DATA[::-1]
    assert f"has changed: sha256 {SHA256} at the first fetch, now " in capsys.readouterr().err


def test_where_the_cache_is(web, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("RADIO_MAE_HOME", str(tmp_path / "file"))
    failed("tiny: .*file .RADIO_MAE_HOME.: expected a folder that can be written")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for value, home in (("~/own", "own"), ("", ".cache/radio-mae")):
        monkeypatch.setenv("RADIO_MAE_HOME", value)
        assert module.home() == tmp_path / home


# Servers


@pytest.mark.parametrize("way", ["drop", "hang", "busy", "chunked"])
def test_tries_go_on_where_the_last_one_ended(web, way, capsys, monkeypatch):
    monkeypatch.setattr(transfer, "READ_S", 0.5)
    web.behaviours = [way] * 3
    assert resolve("tiny").read_bytes() == DATA
    starts = [int(asked[6:-1]) for _, asked in web.requests if asked]
    assert starts == sorted(set(starts))
    assert len(starts) == (3 if way in ("drop", "hang") else 0)
    warnings = re.findall(r"warning: tiny: .*, at byte \d+; trying again", capsys.readouterr().err)
    assert len(warnings) == (0 if way == "chunked" else 3)


def test_giving_up(web):
    web.always = "busy"
    message = failed("/tiny.pth: expected a file; found HTTP status 503")
    assert "resumes" not in message
    web.behaviours = ["drop"]
    failed("found HTTP status 503 .*; the same command resumes at byte 500000$")
    web.always = ""
    assert resolve("tiny").read_bytes() == DATA
    assert web.requests[-1] == ("/tiny.pth", "bytes=500000-")


def test_a_server_that_does_not_answer_is_asked_once(web, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "READ_S", 0.5)
    web.always = "silent"
    failed("expected a file; found timed out")
    assert len(web.requests) == 1
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        register(tmp_path, table_row(url=f"http://127.0.0.1:{closed.getsockname()[1]}/a"))
        failed("expected a file; found Connection refused")


def test_a_slow_server_is_given_up(web, monkeypatch):
    monkeypatch.setattr(transfer, "WINDOW_S", 0.1)
    web.always = "drip"
    failed("expected a file; found fewer than 10000 bytes/s; the same command resumes at byte")
    assert len(web.requests) == transfer.TRIES
    monkeypatch.setattr(transfer, "WINDOW_S", 60)
    web.always = ""
    assert resolve("tiny").read_bytes() == DATA


def test_a_part_goes_on(web, part):
    assert resolve("tiny").read_bytes() == DATA
    assert web.requests == [("/tiny.pth", "bytes=600000-")]


@pytest.mark.parametrize(
    ("headers", "asked"),
    [
        ({"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}, "bytes=600000-"),
        ({"ETag": 'W/"1"'}, None),
        ({}, None),
    ],
)
def test_a_part_goes_on_only_where_the_server_names_its_version(web, headers, asked):
    web.headers = headers
    with largest_file(600_000), pytest.raises(UserError):
        resolve("tiny")
    assert resolve("tiny").read_bytes() == DATA
    assert web.requests[1:] == [("/tiny.pth", asked)]


@pytest.mark.parametrize(
    "change", ["etag", "any version", "no range", "url", "damaged record", "no record", "shorter"]
)
def test_a_part_of_something_else_is_thrown_away(web, part, tmp_path, change):
    web.files["/tiny.pth"] = expected = DATA[::-1][: 5000 if change == "shorter" else None]
    record = part.with_name(f"{part.name}.json")
    if change in ("etag", "any version", "no range"):
        web.headers, web.always = {"ETag": '"2"'}, change
    elif change == "url":
        web.files["/b.pth"] = expected
        register(tmp_path, table_row(url=web.url("/b.pth")))
    elif change != "shorter":
        record.write_text("{") if change == "damaged record" else record.unlink()
    assert resolve("tiny").read_bytes() == expected


@pytest.mark.parametrize("way", ["", "chunked", "short"])
def test_sizes(web, tmp_path, monkeypatch, way):
    web.always = way
    found = {"": "1000000", "chunked": r"\d+", "short": "999000"}[way]
    register(tmp_path, table_row(url=web.url("/tiny.pth"), size=5))
    failed(f"expected 5 bytes; found {found}")
    monkeypatch.setitem(module.LARGEST, "weights", 5 * 10**5)
    register(tmp_path, table_row(url=web.url("/tiny.pth")))
    failed(f"expected at most 500000 bytes; found {found}")
    assert kept(tmp_path) == []


def test_compressed_web_page_and_not_found(web, tmp_path):
    web.files["/page"] = b"\n<!DOCTYPE html><title>Log in</title>"
    register(
        tmp_path,
        table_row(url=web.url("/tiny.pth")),
        table_row("page", url=web.url("/page")),
        table_row("none", url=web.url("/none")),
    )
    failed("page: expected what page holds; found a web page", "page")
    failed(r"none: expected a file; found HTTP status 404 \(Not Found\)", "none")
    web.behaviours = ["gzip"]
    failed("tiny.pth: expected a file; found HTTP status 200 .*, a compressed body")
    assert kept(tmp_path) == []


def test_redirections(web, tmp_path, monkeypatch):
    web.redirects = {"/here": "/there", "/there": web.url("/tiny.pth")}
    register(tmp_path, table_row(url=web.url("/here")), table_row("safe", url="https://a.invalid/"))
    assert resolve("tiny").read_bytes() == DATA
    real = requests.get
    monkeypatch.setattr(requests, "get", lambda url, **kwargs: real(web.url("/tiny.pth"), **kwargs))
    failed("expected https throughout; found a redirection to http:", "safe")


# Processes


PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from util import fetch
fetch.REGISTRY = Path({registry!r})
print(fetch.resolve("tiny"))
"""


def process(tmp_path):
    program = PROGRAM.format(root=str(ROOT), registry=str(tmp_path / "downloads.json"))
    return subprocess.Popen([sys.executable, "-c", program], stdout=-1, stderr=-1, text=True)


def wait_for(condition):
    while not condition():
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on(web, tmp_path):
    web.slow_s = 0.1
    part = tmp_path / "home" / "weights" / "tiny.pth.part"
    killed = process(tmp_path)
    wait_for(lambda: part.exists() and part.stat().st_size > 300_000)
    killed.kill()
    killed.communicate()
    web.slow_s, size = 0, part.stat().st_size
    assert not part.with_suffix("").exists()
    last = process(tmp_path)
    out, err = last.communicate(timeout=60)
    assert last.returncode == 0, err
    assert Path(out.splitlines()[-1]).read_bytes() == DATA
    assert web.requests[1:] == [("/tiny.pth", f"bytes={size}-")]
    assert kept(tmp_path) == ["weights/tiny.pth"]


def test_two_at_once_fetch_once(web, tmp_path):
    web.slow_s = 0.2
    first = process(tmp_path)
    wait_for(lambda: web.requests)
    second = process(tmp_path)
    results = [one.communicate(timeout=60) for one in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], results
    assert len({out.splitlines()[-1] for out, _ in results}) == 1
    assert len(web.requests) == 1
    assert "tiny: another process is fetching it; waiting" in results[1][1]


def test_importing_brings_nothing_along():
    packages = {"requests", "huggingface_hub", "filelock", "tqdm", "torch"}
    program = f"import sys, util.fetch; print({packages} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


# Data sets


def member(name, data=b"", kind=tarfile.REGTYPE, **fields):
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def tar(path, *members, mode="w:gz"):
    with tarfile.open(path, mode) as file:
        for info, data in members:
            file.addfile(info, io.BytesIO(data))
    return path


def zip_(path, *members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members:
            file.writestr(zipfile.ZipInfo(name), data, compression)
    return path


@pytest.fixture
def dataset(web, tmp_path):
    archive = tar(
        tmp_path / "set.tar.gz", member("NTU/train/1.mat", b"1"), member("NTU/test/2.mat", b"2", mode=0o6777)
    )
    web.files["/set"] = archive.read_bytes()
    hand = table_row("hand", "dataset", how="ask nicely")
    register(
        tmp_path, table_row("set", "dataset", url=web.url("/set"), largest_unpacked=10**6), hand, table_row()
    )
    return entries()["set"]


def test_what_a_person_has_to_fetch(web, dataset, tmp_path):
    hand, archive = entries()["hand"], tmp_path / "set.tar.gz"
    with pytest.raises(
        UserError, match=r"hand: a person must fetch .*: ask nicely; then: python .* hand --from FILE"
    ):
        fetch(hand)
    for source, found in ((tmp_path, "a folder"), (tmp_path / "none", "no such file")):
        with pytest.raises(UserError, match=f"--from {source}: expected a file; found {found}"):
            fetch(hand, source=source)
    with pytest.raises(UserError, match=f"{archive}: expected 5 bytes; found"):
        fetch(hand._replace(size=5), source=archive)
    assert kept(tmp_path) == []
    folder = fetch(hand, source=archive, offline=True)
    assert (folder / "NTU" / "test" / "2.mat").read_bytes() == b"2"
    assert fetch(hand) == folder
    with pytest.raises(UserError, match="expected a name that is not here yet; found"):
        fetch(hand, source=archive)
    tiny = entries()["tiny"]
    assert fetch(tiny, source=archive).read_bytes() == archive.read_bytes()
    assert web.requests == []


def test_a_full_disk_keeps_the_archive(web, dataset, tmp_path):
    web.files["/set"] = tar(tmp_path / "b.tar.xz", member("a", bytes(900_000)), mode="w:xz").read_bytes()
    with (
        largest_file(10**5),
        pytest.raises(UserError, match=r"set: .* folder that can be written.*too large"),
    ):
        fetch(dataset)
    assert kept(tmp_path) == ["datasets/set.part"]
    fetch(dataset)
    assert kept(tmp_path) == ["datasets/set/a"]
    assert len(web.requests) == 1


# Archives


def unpacked(tmp_path, archive):
    register(tmp_path, table_row("hand", "dataset", how="ask", largest_unpacked=10**6))
    return fetch(entries()["hand"], source=archive)


def refused(tmp_path, archive, reason):
    """The archive is refused in one line, and leaves nothing anywhere."""
    with pytest.raises(UserError, match=reason) as error:
        unpacked(tmp_path, archive)
    assert str(error.value).startswith(f"{archive}: expected ")
    names = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*")} - {"home", "downloads.json"}
    assert names == {archive.name}
    assert kept(tmp_path) == []


@pytest.mark.parametrize("kind", ["w", "w:gz", "w:bz2", "w:xz", "zip"])
def test_files_come_out_as_they_went_in(web, tmp_path, kind):
    contents = {"set/a.bin": DATA[:1000], "set/deep/b.txt": b"text\n", "set/empty": b""}
    archive = tmp_path / "archive"  # the name says nothing of the kind
    if kind == "zip":
        zip_(archive, ("set/bare/", b""), ("set\\back", b"slash"), *contents.items())
        contents["set/back"] = b"slash"
    else:
        folder = member("set/bare", kind=tarfile.DIRTYPE, mode=0o755)
        tar(archive, folder, *(member(name, data, mode=0o6777) for name, data in contents.items()), mode=kind)
    folder = unpacked(tmp_path, archive)
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    assert {name: path.read_bytes() for name, path in found.items()} == contents
    assert not any(path.stat().st_mode & 0o6022 for path in found.values())
    assert (folder / "set" / "bare").is_dir()


OUTSIDE = ("../evil", "a/../../evil", "/evil", "//evil", "a/..")
ODD = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)


@pytest.mark.parametrize(
    "odd",
    [*(member(name, b"x") for name in OUTSIDE), *(member("odd", kind=kind, linkname="/tmp") for kind in ODD)],
    ids=[*OUTSIDE, *map(str, ODD)],
)
def test_plain_files_in_the_folder_alone(web, tmp_path, odd):
    archive = tar(tmp_path / "a", member("good"), odd, member("odd/evil", b"x"))
    refused(tmp_path, archive, f"expected plain files that stay in their folder; found '{odd[0].name}'")


@pytest.mark.parametrize("name", [*OUTSIDE, "..\\evil"])
def test_a_zip_stays_in_its_folder(web, tmp_path, name):
    archive = zip_(tmp_path / "a", ("good", b"x"), (name, b"x"))  # Python leaves out what leads outside
    with contextlib.suppress(UserError):
        unpacked(tmp_path, archive)
    folder = tmp_path / "home" / "datasets" / "hand"
    assert all(path.is_relative_to(folder) for path in tmp_path.rglob("*") if path.name == "evil")


@pytest.mark.parametrize("pack", ["w:gz", "w:bz2", "w:xz", "zip", "many"])
def test_bombs(web, tmp_path, pack):
    reason = "expected at most 1000000 bytes when unpacked; found more"
    if pack == "zip":
        bomb = zip_(tmp_path / "a", ("a", bytes(4 * 10**6)))
        refused(tmp_path, bomb, reason)
        content, size = bomb.read_bytes(), (4 * 10**6).to_bytes(4, "little")
        assert content.count(size) == 2
        bomb.write_bytes(content.replace(size, (100).to_bytes(4, "little")))  # a header that lies
        refused(tmp_path, bomb, "expected a whole tar or zip archive; found")
    elif pack == "many":
        refused(tmp_path, tar(tmp_path / "a", *(member(str(number)) for number in range(300))), reason)
    else:
        refused(tmp_path, tar(tmp_path / "a", member("a", bytes(4 * 10**6)), mode=pack), reason)


@pytest.mark.parametrize("kind", ["w", "w:gz", "w:bz2", "w:xz", "zip"])
def test_truncated_and_damaged(web, tmp_path, kind):
    archive = tmp_path / "archive"
    if kind == "zip":
        zip_(archive, ("a", DATA[:3000]), ("b", DATA[:3000]))
    else:
        tar(archive, member("a", DATA[:3000]), member("b", DATA[:3000]), mode=kind)
    whole = archive.read_bytes()
    # The last of the zeros after a plain tar may be missing.
    for end in [600, 3584, 4000, 7168] if kind == "w" else [600, len(whole) // 2, len(whole) - 1]:
        archive.write_bytes(whole[:end])
        refused(tmp_path, archive, "expected a whole tar or zip archive; found")
    place = 3590 if kind == "w" else 2000  # a header: there is no checksum of the data
    archive.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
    refused(tmp_path, archive, "expected a whole tar or zip archive; found")


def test_empty_foreign_and_odd_archives(web, tmp_path):
    refused(tmp_path, zip_(tmp_path / "a"), "expected files; found an empty archive")
    refused(
        tmp_path, zip_(tmp_path / "a", ("a", bytes(10)), compression=zipfile.ZIP_LZMA), "expected plain files"
    )
    negative = bytearray(member("x")[0].tobuf(tarfile.GNU_FORMAT))  # a size of -4096
    negative[124:136] = b"\xff" * 10 + b"\xf0\x00"
    negative[148:156] = b" " * 8
    negative[148:156] = b"%06o\0 " % sum(negative)
    for content in (
        b"no archive at all" * 100,
        gzip.compress(DATA[:1000]),
        b"",
        bytes(negative) * 3 + bytes(1024),
    ):
        (tmp_path / "a").write_bytes(content)
        refused(tmp_path, tmp_path / "a", "expected a whole tar or zip|stay in their folder")


# The Hugging Face hub


@pytest.fixture
def hub(web, monkeypatch):
    """Repositories of some files each; a file holds its own name."""
    repositories = {
        "o/two/main": ["config.json", "model.safetensors", "pytorch_model.bin", "small.pth"],
        "o/two/v1": ["old.pth"],
        "o/bin/main": ["a.safetensors", "pytorch_model.bin", "z.pth"],
        "o/one/main": ["README.md", "sub/folder/a.pt"],
        "o/many/main": ["b.pth", "a.safetensors"],
        "o/none/main": ["README.md"],
    }
    for place, names in repositories.items():
        repository, _, revision = place.rpartition("/")
        commit = hashlib.sha1(revision.encode()).hexdigest()
        listed = [{"type": "file", "path": name, "size": len(name), "oid": name} for name in names]
        path = f"/api/models/{repository}/tree/{revision}"
        web.files[path], web.about[path] = json.dumps(listed).encode(), {"Content-Type": "application/json"}
        for name in names:
            path = f"/{repository}/resolve/{revision}/{name}"
            etag = hashlib.sha256(name.encode()).hexdigest()
            web.files[path], web.about[path] = name.encode(), {"ETag": f'"{etag}"', "X-Repo-Commit": commit}
    for path, code in (
        ("/o/two/resolve/main/none.pth", "EntryNotFound"),
        ("/o/two/resolve/v2/a.pth", "RevisionNotFound"),
        ("/api/models/o/missing/tree/main", "RepoNotFound"),
    ):
        web.about[path] = {"X-Error-Code": code}
    form = web.url("/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "ENDPOINT", web.url(""))
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", form)
    return web


def test_a_repository_is_its_weights_and_the_cache_knows_them(hub, tmp_path, monkeypatch):
    expected = {
        "hf://o/two/small.pth": "small.pth",
        "o/two": "model.safetensors",
        "hf://o/two@v1": "old.pth",
        "o/bin": "pytorch_model.bin",
        "hf://o/one": "sub/folder/a.pt",
        "hf://o/two/config.json": "config.json",
    }
    for url, name in expected.items():
        assert resolve(url).read_text() == name
    assert (tmp_path / "home" / "hub" / "models--o--two").is_dir()
    hub.requests.clear()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for url, name in expected.items():
        assert resolve(url).read_text() == resolve(url, offline=True).read_text() == name
    with pytest.raises(UserError, match=r"^hf://o/n: expected it in the cache, being offline"):
        resolve("o/n", offline=True)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf://o/two/none.pth", "expected a file of o/two; found none of this name"),
        ("hf://o/two@v2/a.pth", "expected a revision of o/two; found no v2"),
        ("hf://o/missing", "expected a repository that you may read; found none .`hf auth login`?."),
        ("hf://o/none", "expected one file of weights, or hf://o/none/FILE; found none"),
        ("hf://o/many", "expected one file of weights, or hf://o/many/FILE; found a.safetensors, b.pth"),
        ("hf://o/two/../f", r"expected hf://owner/name\[@revision\]\[/file\]; found another form"),
    ],
)
def test_what_the_hub_does_not_have(hub, name, message):
    failed(f"^{name}: {message}", name)


def test_without_a_network_there_is_a_line_and_nothing_else(web, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    done = command("main_download.py", "o/n")
    expected = (
        "hf://o/n: expected an answer of http://127.0.0.1:9; found none (without a network, fetch the file"
    )
    assert (done.returncode, done.stderr) == (2, f"error: {expected} elsewhere and give its path)\n")
