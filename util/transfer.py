"""Download from a plain address, resumed and of limited size, and unpack archives inside their folder."""

import errno
import functools
import os
import re
import shutil
import tarfile
import time
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

from util.bars import Bar
from util.errors import UserError, one_line, warn
from util.files import read_json, write_json

CONNECT_S, READ_S = 5, 20
TRIES, FIRST_PAUSE_S = 5, 1  # the pauses are 1, 2, 4 and 8 s
WINDOW_S, SLOWEST = 60, 10_000  # a server fails if it sends fewer bytes/s for so long
DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def record_of(path):
    """The JSON file beside a download: its URL and version, or its checksum."""
    return path.with_name(f"{path.name}.json")


def forget(part):
    """Remove a partial download and its record."""
    for path in (part, record_of(part)):
        path.unlink(missing_ok=True)


def download(entry, part):
    """Fetch an entry into `part`; resume a part of the same version, also from an earlier process."""
    import requests
    from urllib3.exceptions import HTTPError

    furthest, tries, answered = _size(part), 0, False
    while True:
        try:
            return _request(entry, part)
        except (requests.RequestException, HTTPError) as error:
            answered = answered or isinstance(error, HTTPError)
            while cause := error.__cause__ or error.__context__:
                error = cause  # the deepest error, of the system, says what happened
            reason = getattr(error, "strerror", None) or str(error)
        except (ValueError, LookupError) as error:  # of an address that is none
            redirected = f"found a redirection that cannot be followed: {one_line(error)}"
            raise UserError(f"{entry.url}: expected a file; {redirected}") from error
        reached = _size(part)
        tries = 1 if reached > furthest + WINDOW_S * SLOWEST else tries + 1
        furthest = max(reached, furthest)
        if tries == TRIES or not answered:
            so_far = f"; the same command resumes at byte {reached}" if reached else ""
            raise UserError(f"{entry.url}: expected a file; found {reason}{so_far}")
        warn(f"{entry.name}: {reason}, at byte {reached}; trying again")
        time.sleep(FIRST_PAUSE_S * 2 ** (tries - 1))


def _request(entry, part):
    """One try: ask for the rest of `part`, or for the whole file if the server's version changed."""
    import requests
    from urllib3.exceptions import HTTPError

    known, offset = read_json(record_of(part)), _size(part)
    if known.get("url") != entry.url or not known.get("version"):
        offset = 0
    if offset and offset == known["length"]:
        return
    headers = {"Accept-Encoding": "identity"}
    if offset:
        headers |= {"Range": f"bytes={offset}-", "If-Range": known["version"]}
    with requests.get(entry.url, headers=headers, stream=True, timeout=(CONNECT_S, READ_S)) as response:
        said, status = response.headers, response.status_code
        schemes = {urlsplit(answer.url).scheme for answer in [*response.history, response]}
        if entry.url.startswith("https:") and schemes != {"https"}:
            raise UserError(f"{entry.url}: expected https throughout; found a redirection to {response.url}")
        compressed = said.get("Content-Encoding", "identity") != "identity"
        found = f"HTTP status {status} ({response.reason}){', a compressed body' if compressed else ''}"
        if status in (408, 425, 429, 500, 502, 503, 504):
            raise HTTPError(found)
        if status not in (200, 206, 416) or compressed:
            raise UserError(f"{entry.url}: expected a file; found {found}")
        etag = said.get("ETag", "")
        version = etag if etag.startswith('"') else said.get("Last-Modified")  # If-Range takes no weak ETag
        rest = re.fullmatch(rf"bytes {offset}-\d+/(\d+)", said.get("Content-Range", ""))
        if status != 200 and not (offset and rest and version in (None, known["version"])):
            forget(part)
            raise HTTPError("another file than before")

        if status == 200:
            offset = 0
        length = int(rest[1]) if offset else response.raw.length_remaining
        if length is not None:
            check_size(entry, length, entry.url)
        with (
            open(part, "ab" if offset else "wb") as file,
            Bar(entry.name, length or entry.size, "bytes", offset) as bar,
        ):
            if not offset:
                write_json(record_of(part), {"url": entry.url, "version": version, "length": length})
            seen, due = offset, time.monotonic() + WINDOW_S
            while offset <= entry.largest and (piece := response.raw.read1(2**16, decode_content=False)):
                file.write(piece)
                offset += len(piece)
                bar.add(len(piece))
                if time.monotonic() > due:
                    if offset < seen + WINDOW_S * SLOWEST:
                        raise HTTPError(f"fewer than {SLOWEST} bytes/s")
                    seen, due = offset, time.monotonic() + WINDOW_S
    if offset < (length or 0):
        raise HTTPError("the connection ended early")


def _size(path):
    return path.stat().st_size if path.exists() else 0


def check_size(entry, size, origin):
    if size != (entry.size or size) or size > entry.largest:
        expected = f"{entry.size} bytes" if entry.size else f"at most {entry.largest} bytes"
        raise UserError(f"{origin}: expected {expected}; found {size}")


def unpack(archive, folder, largest):
    """Unpack a tar (plain, .gz, .bz2, .xz) or zip archive of plain files into a new folder, or nothing."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # a killed process may have left it
    temporary.mkdir()
    left = largest
    try:
        for name, size, is_plain, extract in _members(archive):
            if not is_plain:
                raise UserError(f"{archive}: expected plain files that stay in their folder; found {name!r}")
            left -= size + 4096  # a small file fills a block
            if left < 0:
                raise UserError(f"{archive}: expected at most {largest} bytes when unpacked; found more")
            extract(temporary)
        if left == largest:
            raise UserError(f"{archive}: expected files; found an empty archive")
        os.rename(temporary, folder)
    except Exception as error:  # damaged archives raise errors of all kinds
        if isinstance(error, UserError) or getattr(error, "errno", None) in DISK_IS_FULL:
            raise
        raise UserError(f"{archive}: expected a whole tar or zip archive; found {one_line(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _members(archive):
    """Yield (name, bytes, whether it is allowed, function that extracts it into a folder) of each member."""
    if not tarfile.is_tarfile(archive):
        with zipfile.ZipFile(archive) as packed:  # keeps members inside the folder
            for member in packed.infolist():
                member.filename = member.filename.replace("\\", "/")
                # Other compressions can fill the memory.
                plain = member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
                yield member.filename, member.file_size, plain, functools.partial(packed.extract, member)
        return
    with tarfile.open(archive) as packed:
        packed.extraction_filter = getattr(tarfile, "data_filter", None)  # not in Python 3.11.3
        for member in packed:
            plain = member.isdir() or (member.isreg() and not member.issparse() and member.size >= 0)
            inside = not os.path.isabs(member.name) and ".." not in Path(member.name).parts
            yield member.name, member.size, plain and inside, functools.partial(packed.extract, member)
        # A whole archive ends in zeros, and the checksum of the compression.
        rest = packed.fileobj.read(2**24)
        if not rest or any(rest):
            raise tarfile.ReadError("a truncated or damaged one")
