"""Fetch a file over HTTP, going on where an earlier try, or an earlier process, was stopped."""

import re
import sys
import time
from pathlib import Path

from util.cache import read_json, write_json
from util.errors import UserError, warn

CONNECT_S = 20
READ_S = 60  # without a byte

# Tries in a row that bring nothing new, and the pauses before them: 1, 2, 4, 8 s.
TRIES = 5
FIRST_PAUSE_S = 1
LONGEST_PAUSE_S = 60

CHUNK = 2**16
AGAIN = {408, 425, 429, 500, 502, 503, 504}


class _InterruptedError(Exception):
    """A try that failed though the next may not; `pause_s` is what the server asked for."""

    def __init__(self, reason, pause_s=0):
        super().__init__(reason)
        self.pause_s = pause_s


def transfer(url, part, title, size=None, checked=False):
    """Fetch `url` into the file `part`, which goes on if it is the beginning of the same resource.

    Beside it, `part`.json holds what tells that: the address, the server's ETag or time of change, and the length. Both stay
    when a transfer is stopped, and when it is complete. Proxies are those of the environment.

    Args:
        title: of the progress on stderr.
        size: bytes to expect, if known.
        checked: the caller checks the whole by a checksum; then a part is continued though the server names no version.

    Raises:
        UserError: there is no such file, its length is not `size`, the server cannot be reached or stays silent, or `part`
            cannot be written.
    """
    import requests  # here, since most commands fetch nothing
    from tqdm import tqdm

    passing = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError,
               requests.exceptions.ContentDecodingError, _InterruptedError)  # fmt: skip
    part = Path(part)
    furthest, failures = _length(part), 0
    # A log that is no terminal gets a line now and then.
    every_s = 0.2 if sys.stderr.isatty() else 30
    with tqdm(desc=title, total=size, unit="B", unit_scale=True, unit_divisor=1024, mininterval=every_s) as bar:
        while True:
            try:
                _attempt(url, part, size, checked, bar)
                return
            except passing as error:
                if "CERTIFICATE_VERIFY_FAILED" in str(error):
                    raise UserError(f"{url}: expected a valid certificate; found {error}") from error
                reached = _length(part)
                failures = 1 if reached > furthest else failures + 1
                furthest = max(furthest, reached)
                reason = _reason(error)
                if failures >= TRIES:
                    what = "a file" if bar.total is None else f"{bar.total} bytes"
                    so_far = f", after {reached} bytes: the same command goes on from there" if reached else ""
                    raise UserError(f"{url}: expected {what}; found, {failures} times: {reason}{so_far}") from error
                pause_s = min(max(FIRST_PAUSE_S * 2 ** (failures - 1), getattr(error, "pause_s", 0)), LONGEST_PAUSE_S)
                bar.clear()
                warn(f"{title}: {reason}, at byte {reached}; trying again in {pause_s:g} s")
                time.sleep(pause_s)
            except requests.RequestException as error:
                raise UserError(f"{url}: could not be fetched: {error}") from error
            except OSError as error:
                if error.errno is None:  # requests, of a setting
                    raise UserError(f"{url}: could not be fetched: {error}") from error
                raise UserError(f"{part}: could not be written: {error.strerror or error}") from error


def forget(part):
    """Remove a part and what is known of it."""
    for path in (Path(part), _side(part)):
        path.unlink(missing_ok=True)


def _attempt(url, part, size, checked, bar):
    """One request, from where the part ends; again from the beginning if the server's file is another by now."""
    import requests

    known = read_json(_side(part))
    offset = _length(part)
    if offset and (known.get("url") != url or not (known.get("version") or checked)):
        offset = 0
    if offset and offset == known.get("length"):
        return
    headers = {"Accept-Encoding": "identity"}  # bytes are those of the file
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if known.get("version"):
            headers["If-Range"] = known["version"]

    with requests.get(url, headers=headers, stream=True, timeout=(CONNECT_S, READ_S)) as response:
        if url.startswith("https:") and any(not hop.url.startswith("https:") for hop in (*response.history, response)):
            raise UserError(f"{url}: expected https throughout; found a redirection to {response.url}")
        status = response.status_code
        start, length = _content_range(response)
        if status == 416 and offset and length == offset:
            return
        if offset and (status == 416 or (status == 206 and not _same(known, offset, start, length, _version(response)))):
            forget(part)
            _attempt(url, part, size, checked, bar)
            return
        if status in AGAIN:
            asked = response.headers.get("Retry-After", "")
            raise _InterruptedError(f"HTTP status {status} ({response.reason})", int(asked) if asked.isdecimal() else 0)
        if status not in (200, 206) or (status == 206 and start != offset):
            raise UserError(f"{url}: expected a file; found HTTP status {status} ({response.reason})")

        if status == 200:
            offset, length = 0, _number(response.headers.get("Content-Length"))
        about = {"url": url, "version": _version(response), "length": length}
        if response.headers.get("Content-Encoding", "identity") != "identity":
            # In spite of the request: how long it comes out is not said, and a part of it cannot be asked for.
            about, length = {}, None
        if size is not None and length not in (None, size):
            forget(part)
            raise UserError(f"{url}: expected {size} bytes; found {length}")
        whole = size if length is None else length
        if not offset:
            forget(part)
        part.parent.mkdir(parents=True, exist_ok=True)
        write_json(_side(part), about)
        bar.reset(whole)
        bar.initial = bar.n = offset
        with open(part, "ab") as file:
            for chunk in response.iter_content(CHUNK):
                file.write(chunk)
                offset += len(chunk)
                bar.update(len(chunk))
                if whole is not None and offset > whole:
                    break
    if whole is not None and offset > whole:
        forget(part)
        raise UserError(f"{url}: expected {whole} bytes; found more")
    if whole is not None and offset < whole:
        raise _InterruptedError(f"the connection ended after {offset} of {whole} bytes")


def _same(known, offset, start, length, version):
    """Whether an answer is the rest of what is there."""
    return start == offset and all(
        ours is None or theirs is None or ours == theirs
        for ours, theirs in ((known.get("length"), length), (known.get("version"), version))
    )


def _version(response):
    """What tells one state of a resource from the next, as If-Range takes it: never a weak ETag (RFC 9110, 13.1.5)."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified")


def _content_range(response):
    """(first byte, length of the whole) of an answer, each None if it does not say."""
    match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", "").strip())
    return (_number(match[1]), _number(match[2])) if match else (None, None)


def _number(text):
    return int(text) if text and text.isdecimal() else None


def _reason(error):
    """What went wrong, in a few words: that of the system, deep within what requests raises."""
    if "timed out" in str(error):
        return "no answer in time"
    while error is not None:
        if isinstance(error, _InterruptedError):
            return str(error)
        if getattr(error, "strerror", None):
            return error.strerror
        error = error.__cause__ or error.__context__
    return "the connection was lost"


def _side(part):
    return Path(f"{part}.json")


def _length(path):
    return path.stat().st_size if path.exists() else 0
