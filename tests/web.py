"""A web server on this machine that behaves as badly as a test wants, and a registry of a test's own."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from util import fetch, transfer


class Web:
    """What is served, how, and what was asked for.

    files: {path: bytes}. headers: of all files; about: {path: headers}, also of files that are not there.
    redirects: {path: address}. behaviours: of the next answers to a GET, then good ones; always: of all.
    requests: [(path, Range or None)].

    Behaviours: "drop", the connection ends in the middle; "hang", nothing comes after the middle; "drip", a
    byte now and then; "silent", no answer; "busy", status 503; "no range", the whole file; "any version", the
    range of whatever is there now; "chunked", without a length; "gzip", said to be compressed; "short", too
    small a length.
    """

    def __init__(self):
        self.files, self.redirects, self.headers, self.about = {}, {}, {"ETag": '"1"'}, {}
        self.behaviours, self.always = [], ""
        self.requests = []
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
        web, asked, path = self.web, self.headers.get("Range"), self.path.partition("?")[0]
        way = web.always
        if self.command == "GET":
            web.requests.append((path, asked))
            way = web.behaviours.pop(0) if web.behaviours else way
        if way == "silent":
            web.released.wait(20)
        if path in web.redirects:
            return self.answer(302, b"", Location=web.redirects[path])
        if way == "busy" or path not in web.files:
            return self.answer(503 if way == "busy" else 404, b"none", **web.about.get(path, {}))
        data, headers = web.files[path], web.headers | web.about.get(path, {})
        current = self.headers.get("If-Range") in (None, *headers.values()) or way == "any version"
        if not asked or not current or way == "no range":
            return self.answer(200, data, way, **headers)
        start = int(asked.removeprefix("bytes=").rstrip("-"))
        if start >= len(data):
            return self.answer(416, b"")
        headers |= {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        return self.answer(206, data[start:], way, **headers)

    def do_HEAD(self):
        self.do_GET()

    def answer(self, status, body, way="", **headers):
        length = {"Content-Length": len(body) - 1000 * (way == "short")}
        headers |= {"Transfer-Encoding": "chunked"} if way == "chunked" else length
        headers |= {"Content-Encoding": "gzip"} if way == "gzip" else {}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            with contextlib.suppress(OSError):  # a client that is gone
                self.send_body(body[: len(body) // 2] if way in ("drop", "hang") else body, way)
        self.close_connection = way != ""

    def send_body(self, body, way):
        web, size = self.web, 1 if way == "drip" else 2**16
        for begin in range(0, len(body), size):
            piece = body[begin : begin + size]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if way == "chunked" else piece)
            if web.slow_s or way == "drip":
                web.released.wait(web.slow_s or 0.02)
        if way == "chunked":
            self.wfile.write(b"0\r\n\r\n")
        if way == "hang":
            web.released.wait(20)


@contextlib.contextmanager
def site(monkeypatch, tmp_path):
    """A `Web`, a registry of its own (see `register`), and an empty cache in `tmp_path / "home"`."""
    monkeypatch.setattr(transfer, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(fetch, "REGISTRY", tmp_path / "downloads.json")
    monkeypatch.setenv("RADIO_MAE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("no_proxy", "*")
    web = Web()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"web": web}))
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
