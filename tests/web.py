"""A web server on this machine that behaves as badly as a test wants."""

import contextlib
import enum
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from util import download, transfer


class Way(enum.Enum):
    """What an answer can be like."""

    DROP = "the connection ends in the middle"
    HANG = "nothing more comes after the middle"
    SILENT = "nothing comes at all"
    UNAVAILABLE = "status 503"
    NO_RANGE = "the whole, whatever was asked for"
    WRONG_RANGE = "the right part, said to be another"
    ANY_VERSION = "the part that was asked for, of whatever is there now"
    HALF_RANGE = "half of what was asked for"
    LONGER = "a Content-Length that is too large"
    SHORTER = "a Content-Length that is too small"


class Web:
    """What is served, how, and what was asked for.

    files: {path: bytes}; etag: of all, or None; behaviours: of the next answers, then good ones; always: of all answers;
    redirects: {path: address}. requests: [(path, Range or None)]; sent: bytes of bodies.
    """

    def __init__(self):
        self.files = {}
        self.etag = '"1"'
        self.modified = None
        self.behaviours = []
        self.always = ()
        self.redirects = {}
        self.requests = []
        self.sent = 0
        self.slow_s = 0  # between pieces of 64 KiB
        self.released = threading.Event()

    def url(self, path):
        return f"http://127.0.0.1:{self.port}{path}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    web = None

    def log_message(self, *args):
        pass

    def do_GET(self):
        web = self.web
        path = self.path
        if path.startswith("http://"):  # as a proxy is asked
            path = "/" + path.split("/", 3)[3]
        asked = self.headers.get("Range")
        web.requests.append((self.path, asked))
        ways = {*web.always, *([web.behaviours.pop(0)] if web.behaviours else [])}
        if path in web.redirects:
            return self._answer(302, b"", Location=web.redirects[path])
        if Way.UNAVAILABLE in ways:
            return self._answer(503, b"busy")
        if path not in web.files:
            return self._answer(404, b"none")
        if Way.SILENT in ways:
            web.released.wait(20)
            self.close_connection = True
            return None
        data = web.files[path]
        start, status, about = 0, 200, {}
        if web.etag:
            about["ETag"] = web.etag
        if web.modified:
            about["Last-Modified"] = web.modified
        current = Way.ANY_VERSION in ways or self.headers.get("If-Range") in (None, web.etag, web.modified)
        if asked and current and Way.NO_RANGE not in ways:
            start, status = int(asked.removeprefix("bytes=").rstrip("-")), 206
            if start >= len(data):
                return self._answer(416, b"", **{"Content-Range": f"bytes */{len(data)}"})
            said = 0 if Way.WRONG_RANGE in ways else start
            about["Content-Range"] = f"bytes {said}-{len(data) - 1}/{len(data)}"
        body = data[start:]
        if Way.HALF_RANGE in ways and status == 206:
            body = body[: len(body) // 2]
            about["Content-Range"] = f"bytes {start}-{start + len(body) - 1}/{len(data)}"
        length = len(body) + (1000 if Way.LONGER in ways else -1000 if Way.SHORTER in ways else 0)
        if Way.DROP in ways or Way.HANG in ways:
            body = body[: len(body) // 2]
        return self._answer(status, body, length, Way.HANG in ways, **about)

    def _answer(self, status, body, length=None, hang=False, **about):
        self.send_response(status)
        for name, value in {"Content-Length": len(body) if length is None else length, **about}.items():
            self.send_header(name, str(value))
        self.end_headers()
        with contextlib.suppress(OSError):  # of a client that is gone
            for begin in range(0, len(body), 2**16):
                self.wfile.write(body[begin : begin + 2**16])
                self.web.sent += len(body[begin : begin + 2**16])
                if self.web.slow_s:
                    threading.Event().wait(self.web.slow_s)
            self.wfile.flush()
        if hang:
            self.web.released.wait(20)
        if hang or length not in (None, len(body)):
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """A client that is gone is no news here."""


@contextlib.contextmanager
def serving():
    """A `Web` that is served for as long as the block lasts."""
    web = Web()
    server = Server(("127.0.0.1", 0), type("Handler", (Handler,), {"web": web}))
    web.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield web
    finally:
        web.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


def without_proxies(monkeypatch):
    """Reach this machine itself, whatever stands between it and others."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@contextlib.contextmanager
def site(monkeypatch, tmp_path):
    """A `Web`, a registry of its own (see `register`), and an empty cache in `tmp_path / "home"`."""
    monkeypatch.setattr(transfer, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(transfer, "READ_S", 0.5)
    monkeypatch.setattr(download, "REGISTRY", tmp_path / "downloads.json")
    monkeypatch.setattr(download, "RELEASED", tmp_path / "released")
    monkeypatch.setenv("RADIO_MAE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    without_proxies(monkeypatch)
    with serving() as web:
        yield web


def register(tmp_path, *rows):
    (tmp_path / "downloads.json").write_text(json.dumps(rows))


def row(name="tiny", kind="weights", **fields):
    fields = {"url": f"http://weights.invalid/{name}.pth", "size": None, "checksum": None, "licence": "MIT", "preset": None,
              "holds": f"what {name} holds", "citation": "Nobody", "how": None, "use": f"python use.py {name} PATH",
              "largest_unpacked": None} | fields  # fmt: skip
    return {"name": name, "kind": kind, **fields}


def files(folder):
    """What is below a folder, without locks and records."""
    found = (str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())
    return sorted(name for name in found if not name.endswith((".lock", ".json")))
