"""Files of the Hugging Face hub, from one on this machine."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from support import ROOT
from web import without_proxies

from util import hub as hub_module
from util.errors import UserError
from util.hub import from_hub, page

DATA = os.urandom(10**5)
SHA256 = hashlib.sha256(DATA).hexdigest()
SMALL = b"small\n"
COMMIT = "a" * 40


def git_digest(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()



PROGRAM = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from util.download import resolve
from util.errors import UserError
for url in sys.argv[1:]:
    try:
        print("path", resolve(url))
    except UserError as error:
        print("error", " ".join(str(error).split()))
"""


class Handler(BaseHTTPRequestHandler):
    """A repository "o/n" with large.pth, small.txt, damaged.pth and, of revision v1, large.pth; and `server.repositories`.

    Those are {"owner/name": {revision: names of files}}; a file holds its own name.
    """

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self.server.fetched.append(self.path)
        self._answer(with_body=True)

    def _answer(self, with_body=False):
        if listed := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/?]+)\?.*", self.path):
            return self._list(*listed.groups())
        path = self.path.removeprefix("/o/n/resolve/")
        large = {f"{revision}/large.pth": (DATA, SHA256) for revision in ("main", "v1")}
        files = {**large, "main/small.txt": (SMALL, git_digest(SMALL)), "main/damaged.pth": (DATA[::-1], "0" * 64)}
        about = {"X-Repo-Commit": COMMIT}
        data = b""
        other = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        if other and other[3] in self.server.repositories.get(other[1], {}).get(other[2], ()):
            data, status = other[3].encode(), 200
            about |= {"ETag": f'"{git_digest(data)}"', "X-Repo-Commit": hashlib.sha1(other[2].encode()).hexdigest()}
        elif path in files:
            status, (data, etag) = 200, files[path]
            about |= {"ETag": f'"{etag}"', "X-Linked-Size": len(data)}
        else:
            status = 401 if self.path.startswith("/private/") else 404
            if status == 401 or not self.path.startswith("/o/n/"):
                about["X-Error-Code"] = "RepoNotFound"
            else:
                about["X-Error-Code"] = "EntryNotFound" if path.startswith("main/") else "RevisionNotFound"
        return self._send(status, about, data, with_body)

    def _list(self, repository, revision):
        revisions = self.server.repositories.get(repository)
        if revisions is None or revision not in revisions:
            return self._send(404, {"X-Error-Code": "RepoNotFound" if revisions is None else "RevisionNotFound"}, b"", False)
        files = [{"type": "file", "path": name, "size": len(name), "oid": git_digest(name.encode())}
                 for name in revisions[revision]]  # fmt: skip
        return self._send(200, {"Content-Type": "application/json"}, json.dumps(files).encode(), True)

    def _send(self, status, about, data, with_body):
        self.send_response(status)
        for name, value in {**about, "Content-Length": len(data)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if with_body:
            self.wfile.write(data)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.fetched, server.repositories = [], {}
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    without_proxies(monkeypatch)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for name, value in {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "hf"),
                        "RADIO_MAE_HOME": str(tmp_path / "home")}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def resolved(*urls):
    done = subprocess.run([sys.executable, "-c", PROGRAM, *urls], capture_output=True, text=True, timeout=120, check=True)
    return [line for line in done.stdout.splitlines() if line.startswith(("path", "error"))]


def test_the_hub(hub, tmp_path, monkeypatch):
    urls = [f"hf://o/n{rest}" for rest in ("/large.pth", "/small.txt", "@v1/large.pth")]
    folder = tmp_path / "home" / "hub" / "models--o--n" / "snapshots" / COMMIT
    for name in ("large.pth", "small.txt"):
        assert not (folder / name).exists()
    expected = [f"path {folder / name}" for name in ("large.pth", "small.txt", "large.pth")]
    assert resolved(*urls) == expected
    assert (folder / "large.pth").read_bytes() == DATA
    assert (folder / "small.txt").read_bytes() == SMALL
    asked = [path for path in hub.fetched if "/resolve/" in path]
    assert sorted(asked) == ["/o/n/resolve/main/large.pth", "/o/n/resolve/main/small.txt"]

    hub.fetched.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolved(*urls, "hf://o/n/other.pth") == [
        *expected, "error hf://o/n/other.pth: expected it in the cache, being offline; found none",
    ]  # fmt: skip
    assert hub.fetched == []


def test_what_the_hub_does_not_have(hub, tmp_path):
    errors = resolved("hf://o/n/none.pth", "hf://o/n@v2/large.pth", "hf://o/none/a.pth", "hf://private/n/a.pth",
                      "hf://o/n/damaged.pth")  # fmt: skip
    assert errors == [
        "error hf://o/n/none.pth: expected a file of o/n; found none of this name",
        "error hf://o/n@v2/large.pth: expected a revision of o/n; found no v2",
        "error hf://o/none/a.pth: expected a repository that you may read; found none (`hf auth login`?)",
        "error hf://private/n/a.pth: expected a repository that you may read; found none (`hf auth login`?)",
        f"error hf://o/n/damaged.pth: expected the checksum {'0' * 64}; found {hashlib.sha256(DATA[::-1]).hexdigest()}",
    ]
    assert [path for path in (tmp_path / "home" / "hub").rglob("*") if path.name in ("damaged.pth", "0" * 64)] == []


def names(lines):
    """The files that were found, which say in themselves how they are called."""
    return [Path(line.removeprefix("path ")).read_text() for line in lines]


@pytest.mark.parametrize(("files", "chosen"), [
    (["config.json", "model.safetensors", "other.pth", "pytorch_model.bin"], "model.safetensors"),
    (["a.safetensors", "pytorch_model.bin", "z.pth"], "pytorch_model.bin"),
    (["README.md", "config.json", "wavesfm-v1p0.pth"], "wavesfm-v1p0.pth"),
    (["README.md", "sub/folder/a.pt"], "sub/folder/a.pt"),
])  # fmt: skip
def test_a_repository_is_its_weights_and_the_cache_knows_them(hub, monkeypatch, files, chosen):
    hub.repositories["o/two"] = {"main": files}
    assert names(resolved("o/two", "hf://o/two")) == [chosen] * 2
    assert [path for path in hub.fetched if "/resolve/" in path] == [f"/o/two/resolve/main/{chosen}"]

    hub.fetched.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    *found, missing = resolved("o/two", "hf://o/two", f"hf://o/two/{chosen}", "o/none")
    assert names(found) == [chosen] * 3
    assert missing == "error hf://o/none: expected it in the cache, being offline; found none"
    assert hub.fetched == []
    # Without a network, and nothing that says so
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert names(resolved("o/two")) == [chosen]


def test_a_file_fetched_by_its_name_does_not_become_the_repositorys(hub, monkeypatch):
    hub.repositories["o/two"] = {"main": ["large.pth", "model.safetensors", "small.pth"]}
    assert names(resolved("hf://o/two/small.pth", "o/two")) == ["small.pth", "model.safetensors"]
    hub.repositories["o/three"] = {"main": ["large.pth", "small.pth"]}
    fetched, several = resolved("hf://o/three/small.pth", "o/three")
    assert names([fetched]) == ["small.pth"]
    assert several == "error hf://o/three: expected one file of weights, or hf://o/three/FILE; found large.pth, small.pth"


def test_revisions_have_their_own_weights(hub, monkeypatch):
    hub.repositories["o/two"] = {"main": ["new.pth"], "v1": ["old.pth"]}
    urls = ["o/two", "hf://o/two@v1"]
    assert names(resolved(*urls)) == ["new.pth", "old.pth"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert names(resolved(*urls)) == ["new.pth", "old.pth"]


def test_repositories_without_one_file_of_weights(hub):
    hub.repositories |= {"o/none": {"main": ["README.md", "config.json"]}, "o/many": {"main": ["b.pth", "a.safetensors"]}}
    assert resolved("o/none", "o/many", "o/missing", "hf://o/many@v9") == [
        "error hf://o/none: expected one file of weights, or hf://o/none/FILE; found none",
        "error hf://o/many: expected one file of weights, or hf://o/many/FILE; found a.safetensors, b.pth",
        "error hf://o/missing: expected a repository that you may read; found none (`hf auth login`?)",
        "error hf://o/many@v9: expected a revision of o/many; found no v9",
    ]


@pytest.mark.parametrize("name", ["o/n", "hf://o/n", "hf://o/n/f.pth"])
def test_without_a_network_there_is_a_line_and_nothing_else(tmp_path, monkeypatch, name):
    """The client alone would try for half a minute and print each try; the time limit is far below that."""
    without_proxies(monkeypatch)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for variable in ("HF_HOME", "RADIO_MAE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    script = [sys.executable, str(ROOT / "main_download.py"), name]
    done = subprocess.run(script, capture_output=True, text=True, timeout=25, check=False)
    assert done.returncode == 2
    address = name if name.startswith("hf://") else f"hf://{name}"
    assert done.stderr == (f"error: {address}: expected an answer of http://127.0.0.1:9; found none (without a network, "
                           "fetch the file elsewhere and give its path)\n")  # fmt: skip


@pytest.mark.parametrize(("error", "message"), [
    (LocalEntryNotFoundError("long\nstory"), "expected an answer of the hub; found none"),
    (RuntimeError("\nshort\nlong"), "could not be fetched from the hub: short"),
    (ValueError(), "could not be fetched from the hub: ValueError"),
])  # fmt: skip
def test_other_failures(monkeypatch, tmp_path, error, message):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setenv("RADIO_MAE_HOME", str(tmp_path))
    monkeypatch.setattr(hub_module, "_see_that_it_answers", lambda url: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(UserError, match=f"^hf://o/n/f.pth: {message}$"):
        from_hub("hf://o/n/f.pth")


@pytest.mark.parametrize("url", ["hf://", "hf://o", "hf://o/n/", "hf:///n/f", "hf://o/n/../f", "hf://o/n@/f"])
def test_addresses(url):
    with pytest.raises(UserError, match=r"expected hf://owner/name, with @revision or /file behind .*; found another form"):
        from_hub(url)
    with pytest.raises(UserError):
        page(url)


def test_the_page():
    assert page("hf://o/n@v1/sub/f.pth") == "https://huggingface.co/o/n"
