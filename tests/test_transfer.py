"""Fetching a file from servers that behave badly: what arrives is the file, and no byte is sent in vain."""

import gzip
import os
import re
import socket
import ssl

import pytest
import requests
from support import largest_file
from web import Way, serving, without_proxies

from util import transfer as module
from util.errors import UserError
from util.transfer import forget, transfer

DATA = os.urandom(10**6)
SLACK = 2 * module.CHUNK  # what a client may have been sent and not kept when a connection breaks


@pytest.fixture
def web(monkeypatch):
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(module, "READ_S", 0.4)
    without_proxies(monkeypatch)
    with serving() as web:
        web.files["/a.bin"] = DATA
        yield web


def fetched(web, part, **kwargs):
    transfer(web.url("/a.bin"), part, "a", **kwargs)
    return part.read_bytes() == web.files["/a.bin"]


def begin(web, part, kept=600_000):
    """A part as an earlier process left it."""
    web.behaviours = [Way.DROP]
    assert fetched(web, part)
    os.truncate(part, kept)
    web.requests.clear()
    web.sent = 0


def failed(web, part, reason, **kwargs):
    with pytest.raises(UserError, match=reason) as error:
        fetched(web, part, **kwargs)
    return str(error.value)


def test_a_good_server(web, tmp_path, capsys):
    assert fetched(web, tmp_path / "new" / "part", size=len(DATA))
    assert web.requests == [("/a.bin", None)]
    assert "a: 100%" in capsys.readouterr().err
    assert fetched(web, tmp_path / "new" / "part")  # complete: nothing is asked
    assert len(web.requests) == 1


def test_an_empty_file(web, tmp_path):
    web.files["/a.bin"] = b""
    assert fetched(web, tmp_path / "part")


@pytest.mark.parametrize("way", [Way.DROP, Way.HANG])
def test_a_connection_that_breaks_or_hangs_in_the_middle(web, tmp_path, way, capsys):
    web.behaviours = [way] * 3
    assert fetched(web, tmp_path / "part")
    starts = [int(asked[6:-1]) for _, asked in web.requests[1:]]
    assert starts == sorted(set(starts))
    assert len(starts) == 3
    assert web.sent < len(DATA) + 3 * SLACK
    err = capsys.readouterr().err
    assert len(re.findall(r"warning: a: .*, at byte \d+; trying again in 0.01 s", err)) == 3
    assert ("no answer in time" in err) == (way == Way.HANG)


@pytest.mark.parametrize("way", [Way.SILENT, Way.UNAVAILABLE])
def test_no_answer_at_first(web, tmp_path, way, monkeypatch):
    pauses = []
    monkeypatch.setattr(module.time, "sleep", pauses.append)
    web.behaviours = [way] * (module.TRIES - 1)
    assert fetched(web, tmp_path / "part")
    assert pauses == [0.01 * 2**number for number in range(module.TRIES - 1)]


def test_the_pause_that_a_server_asks_for(web, tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr(module.time, "sleep", pauses.append)
    response = requests.Response()
    response.status_code, response.reason, response.headers = 429, "Too Many Requests", {"Retry-After": "7"}
    response.raw, response.url = type("Raw", (), {"close": lambda self: None, "release_conn": lambda self: None})(), "http:"
    answers = [response]
    real = requests.get
    monkeypatch.setattr(requests, "get", lambda *args, **kwargs: answers.pop() if answers else real(*args, **kwargs))
    assert fetched(web, tmp_path / "part")
    assert pauses == [7]


@pytest.mark.parametrize(("way", "reason"), [(Way.UNAVAILABLE, "HTTP status 503"), (Way.SILENT, "no answer in time")])
def test_giving_up(web, tmp_path, way, reason):
    web.always = (way,)
    message = failed(web, tmp_path / "part", rf"expected a file; found, {module.TRIES} times: {reason}")
    assert len(web.requests) == module.TRIES
    assert "goes on" not in message
    assert not (tmp_path / "part").exists()


def test_giving_up_in_the_middle_keeps_the_part(web, tmp_path):
    web.always = (Way.DROP, Way.NO_RANGE)  # never further than the middle
    message = failed(web, tmp_path / "part", "expected 1000000 bytes; found, 5 times: ")
    assert "the same command goes on" in message
    assert len(web.requests) == module.TRIES
    web.always = ()
    web.sent = 0
    assert fetched(web, tmp_path / "part")
    assert web.sent < 0.6 * len(DATA) + SLACK


def test_nobody_there(web, tmp_path, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/a"
        with pytest.raises(UserError, match="expected a file; found, 5 times: Connection refused"):
            transfer(url, tmp_path / "part", "a")
    with pytest.raises(UserError, match="could not be fetched"):
        transfer("nothing://a", tmp_path / "part", "a")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"could not be fetched: .*CA"):
        transfer("https://127.0.0.1:9/a", tmp_path / "part", "a")


def test_a_certificate_that_is_not_valid_is_not_tried_again(web, tmp_path, monkeypatch):
    calls = []

    def refuse(*args, **kwargs):
        calls.append(args)
        raise requests.exceptions.SSLError(ssl.SSLCertVerificationError("CERTIFICATE_VERIFY_FAILED: self-signed"))

    monkeypatch.setattr(requests, "get", refuse)
    failed(web, tmp_path / "part", "expected a valid certificate")
    assert len(calls) == 1


def test_a_part_goes_on(web, tmp_path):
    begin(web, tmp_path / "part")
    assert fetched(web, tmp_path / "part")
    assert web.requests == [("/a.bin", "bytes=600000-")]
    assert web.sent == 400_000


@pytest.mark.parametrize(("etag", "modified"), [(None, "Mon, 01 Jan 2024 00:00:00 GMT"), ('W/"1"', None), (None, None)])
@pytest.mark.parametrize("checked", [False, True])
def test_a_part_goes_on_only_if_it_can_be_told_to_be_the_same(web, tmp_path, etag, modified, checked):
    web.etag, web.modified = etag, modified
    begin(web, tmp_path / "part")
    assert fetched(web, tmp_path / "part", checked=checked)
    assert web.sent == (400_000 if modified or checked else 1_000_000)


@pytest.mark.parametrize("change", ["etag", "etag in vain", "url", "side file", "no side file"])
def test_a_part_of_something_else_is_thrown_away(web, tmp_path, change):
    begin(web, tmp_path / "part")
    path = "/a.bin"
    web.files[path] = DATA[::-1]
    if change.startswith("etag"):
        web.etag = '"2"'
        web.always = (Way.ANY_VERSION,) if "vain" in change else ()
    elif change == "url":
        web.files[path], path = DATA, "/b.bin"
        web.files[path] = DATA[::-1]
    elif change == "side file":
        (tmp_path / "part.json").write_text("{")
    else:
        (tmp_path / "part.json").unlink()
    transfer(web.url(path), tmp_path / "part", "a")
    assert (tmp_path / "part").read_bytes() == DATA[::-1]
    assert len(web.requests) == (2 if change == "etag in vain" else 1)


@pytest.mark.parametrize("way", [Way.NO_RANGE, Way.WRONG_RANGE])
def test_without_ranges_or_with_wrong_ones_it_begins_anew(web, tmp_path, way):
    begin(web, tmp_path / "part")
    web.always = (way,)
    assert fetched(web, tmp_path / "part")
    assert web.sent >= 1_000_000


def test_a_range_that_ends_early_is_continued(web, tmp_path):
    begin(web, tmp_path / "part")
    web.behaviours = [Way.HALF_RANGE] * 2
    assert fetched(web, tmp_path / "part")
    assert web.sent == 400_000


def test_nothing_is_left_to_ask_for(web, tmp_path):
    begin(web, tmp_path / "part", len(DATA))
    (tmp_path / "part.json").write_text((tmp_path / "part.json").read_text().replace("1000000", "null"))
    assert fetched(web, tmp_path / "part")
    assert (web.requests, web.sent) == ([("/a.bin", "bytes=1000000-")], 0)
    (tmp_path / "part").write_bytes(DATA + b"more")  # than there is: begins anew
    assert fetched(web, tmp_path / "part")


def test_lies_about_the_length(web, tmp_path):
    web.behaviours = [Way.LONGER]  # then asks for the rest, of which there is none
    assert fetched(web, tmp_path / "part")
    forget(tmp_path / "part")
    web.always = (Way.LONGER, Way.NO_RANGE)
    failed(web, tmp_path / "part", "expected 1001000 bytes; found, 5 times")
    forget(tmp_path / "part")
    for way, found in ((Way.LONGER, 1001000), (Way.SHORTER, 999000)):
        web.always = (way,)
        failed(web, tmp_path / "part", f"expected 1000000 bytes; found {found}", size=len(DATA))
        assert list(tmp_path.iterdir()) == []
    web.always = ()
    failed(web, tmp_path / "part", "expected 5 bytes; found 1000000", size=5)


def test_not_found(web, tmp_path):
    with pytest.raises(UserError, match=r"/none: expected a file; found HTTP status 404 \(Not Found\)"):
        transfer(web.url("/none"), tmp_path / "part", "a")
    assert len(web.requests) == 1
    assert list(tmp_path.iterdir()) == []


def test_redirections(web, tmp_path):
    web.redirects = {"/here": "/there", "/there": web.url("/a.bin"), "/round": "/round"}
    transfer(web.url("/here"), tmp_path / "part", "a")
    assert (tmp_path / "part").read_bytes() == DATA
    os.truncate(tmp_path / "part", 10**5)
    web.sent = 0
    transfer(web.url("/here"), tmp_path / "part", "a")
    assert (tmp_path / "part").read_bytes() == DATA
    assert web.sent == 9 * 10**5
    with pytest.raises(UserError, match="could not be fetched: Exceeded 30 redirects"):
        transfer(web.url("/round"), tmp_path / "part", "a")


def test_no_way_from_https_to_http(web, tmp_path, monkeypatch):
    real = requests.get
    monkeypatch.setattr(requests, "get", lambda url, **kwargs: real(web.url("/a.bin"), **kwargs))
    with pytest.raises(UserError, match="expected https throughout; found a redirection to http:"):
        transfer("https://example.org/a.bin", tmp_path / "part", "a")
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_compresses_though_not_asked_to(web, tmp_path, monkeypatch):
    real = requests.get

    def compressed(*args, **kwargs):
        response = real(*args, **kwargs)
        response.headers["Content-Encoding"] = response.raw.headers["Content-Encoding"] = "gzip"
        return response

    monkeypatch.setattr(requests, "get", compressed)
    web.files["/a.bin"] = gzip.compress(DATA)
    transfer(web.url("/a.bin"), tmp_path / "part", "a", size=len(DATA))
    assert (tmp_path / "part").read_bytes() == DATA
    failed(web, tmp_path / "part", "expected 1000 bytes; found more", size=1000)
    assert not (tmp_path / "part").exists()


def test_a_proxy_of_the_environment(web, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", web.url(""))
    transfer("http://weights.invalid/a.bin", tmp_path / "part", "a")
    assert (tmp_path / "part").read_bytes() == DATA
    assert web.requests == [("http://weights.invalid/a.bin", None)]
    monkeypatch.setenv("no_proxy", "weights.invalid")
    with pytest.raises(UserError):
        transfer("http://weights.invalid/a.bin", tmp_path / "other", "a")


def test_a_full_disk(web, tmp_path):
    with largest_file(300_000):
        failed(web, tmp_path / "part", "part: could not be written: File too large")
    web.sent = 0
    assert fetched(web, tmp_path / "part")
    assert web.sent <= 700_000 + SLACK
    (tmp_path / "file").touch()
    failed(web, tmp_path / "file" / "part", "could not be written")


def test_stopping_keeps_the_part(web, tmp_path, monkeypatch):
    def stop(_):
        raise KeyboardInterrupt

    web.behaviours = [Way.DROP]
    monkeypatch.setattr(module.time, "sleep", stop)
    with pytest.raises(KeyboardInterrupt):
        fetched(web, tmp_path / "part")
    web.sent = 0
    assert fetched(web, tmp_path / "part")
    assert web.sent < 0.5 * len(DATA) + SLACK
