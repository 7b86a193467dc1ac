"""A web server on this machine that behaves as badly as a test wants, and a registry and a cache of a test's own."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from util import fetch


class Web:
    """What is served, how, and what was asked for.

    files: {path: bytes}. redirects: {path: address}. behaviours: of the next answers to a GET, then good ones; always:
    of all answers. A behaviour is: "drop", the connection ends in the middle; "hang", nothing comes after the middle;
    "drip", a byte now and then; "silent", no answer; "busy", status 503; "no range", the whole file; "any version", the
    range of whatever is there now; "chunked", without a length; "gzip", said to be compressed; "short", the length is
    too small. headers: of all answers. requests: [(path, Range or None)]. sent: bytes of bodies.
    """

    def __init__(self):
        self.files, self.redirects, self.headers = {}, {}, {"ETag": '"1"'}
        self.behaviours, self.always = [], ""
        self.requests, self.sent = [], 0
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
        web, asked = self.web, self.headers.get("Range")
        web.requests.append((self.path, asked))
        way = web.behaviours.pop(0) if web.behaviours else web.always
        path = "/" + self.path.split("/", 3)[3] if "://" in self.path else self.path  # as a proxy is asked
        if way == "silent":
            web.released.wait(20)
        if path in web.redirects:
            return self.answer(302, b"", Location=web.redirects[path])
        if way == "busy" or path not in web.files:
            return self.answer(503 if way == "busy" else 404, b"none")
        data = web.files[path]
        current = self.headers.get("If-Range") in (None, *web.headers.values()) or way == "any version"
        if not asked or not current or way == "no range":
            return self.answer(200, data, way, **web.headers)
        start = int(asked.removeprefix("bytes=").rstrip("-"))
        if start >= len(data):
            return self.answer(416, b"", **{"Content-Range": f"bytes */{len(data)}"})
        where = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return self.answer(206, data[start:], way, **web.headers, **{"Content-Range": where})

    def answer(self, status, body, way="", **headers):
        length = {"Content-Length": len(body) - 1000 * (way == "short")}
        headers |= {"Transfer-Encoding": "chunked"} if way == "chunked" else length
        headers |= {"Content-Encoding": "gzip"} if way == "gzip" else {}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        with contextlib.suppress(OSError):  # a client that is gone
            self.send_body(body[: len(body) // 2] if way in ("drop", "hang") else body, way)
        self.close_connection = way != ""

    def send_body(self, body, way):
        web, size = self.web, 1 if way == "drip" else 2**16
        for begin in range(0, len(body), size):
            piece = body[begin : begin + size]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if way == "chunked" else piece)
            web.sent += len(piece)
            if web.slow_s or way == "drip":
                web.released.wait(web.slow_s or 0.02)
        if way == "chunked":
            self.wfile.write(b"0\r\n\r\n")
        if way == "hang":
            web.released.wait(20)


@contextlib.contextmanager
def serving(handler, web):
    """Serve for as long as the block lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (handler,), {"web": web}))
    server.daemon_threads, server.handle_error = True, lambda *args: None
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


@contextlib.contextmanager
def site(monkeypatch, tmp_path):
    """A `Web`, a registry of its own (see `register`), and an empty cache in `tmp_path / "home"`."""
    monkeypatch.setattr(fetch, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(fetch, "READ_S", 0.5)
    monkeypatch.setattr(fetch, "REGISTRY", tmp_path / "downloads.json")
    monkeypatch.setenv("RADIO_MAE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with serving(Handler, Web()) as web:
        yield web


def register(tmp_path, *rows):
    (tmp_path / "downloads.json").write_text(json.dumps(rows))


def row(name="tiny", kind="weights", **fields):
    fields = {
        "url": f"http://weights.invalid/{name}.pth",
        "licence": "MIT",
        "holds": f"what {name} holds",
        "citation": "Nobody",
        "use": f"python use.py {name} PATH",
    } | fields
    return {"name": name, "kind": kind, **fields}


def files(folder):
    """What is below a folder, without locks and records."""
    found = (str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())
    return sorted(name for name in found if not name.endswith((".lock", ".json")))
