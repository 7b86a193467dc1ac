"""Write files whole or not at all, check folders before work starts, read files that may change meanwhile."""

import contextlib
import hashlib
import json
import os
import socket
import stat
from datetime import datetime
from pathlib import Path

from util.errors import UserError

MOST_NAME_BYTES = 255  # of a file, in every common file system
LOCK = ".lock"  # of a folder
ENDS_BYTES = 4096  # of a file's head, and of its tail, in its fingerprint


@contextlib.contextmanager
def atomic_path(path):
    """A temporary path beside `path`: at the end flushed to disk and renamed to it, on an error removed."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    if len(os.fsencode(temporary.name)) > MOST_NAME_BYTES:
        name = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
        temporary = path.with_name(f".{name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)  # a rename is on disk once its folder is
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path, content, indent=1):
    """Write a JSON file, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=indent) + "\n", "utf-8")


def read_json(path):
    """The dict in a JSON file; an empty one if the file is missing or damaged."""
    try:
        content = parse_json(Path(path).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def digest(path, algorithm="sha256"):
    """The hexadecimal digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


@contextlib.contextmanager
def writable_folder(path, owner, what="a folder"):
    """Create a folder and check that it is writable; remove a new one if the block fails and leaves it empty.

    Args:
        owner: flag and value for the error; what: what is written there, "a folder" or "a file".

    Raises:
        UserError: it cannot be written.
    """
    folder = Path(path)
    existed = folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{os.getpid()}.tmp"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{owner}: expected {what} that can be written; {error.strerror}") from error
    try:
        yield folder
    except (UserError, KeyboardInterrupt):
        with contextlib.suppress(OSError):
            if not existed and not any(folder.iterdir()):
                folder.rmdir()
        raise


def file_size(path):
    """Bytes of a file. Opening a pipe would wait, and a device has no end.

    Raises:
        OSError: there is none, or it may not be looked at.
        UserError: it is no plain file.
    """
    about = os.stat(path)
    if stat.S_ISREG(about.st_mode):
        return about.st_size
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    raise UserError(
        f"{path}: expected a plain file, found {kinds.get(stat.S_IFMT(about.st_mode), 'a device')}"
    )


def check_size(path, size_bytes):
    """Check that a file still has at least `size_bytes`.

    Raises:
        UserError: it was deleted or truncated, or cannot be reached.
    """
    try:
        found = os.stat(path).st_size
    except OSError as error:
        found = not_read(path, error)
        raise UserError(f"{path}: expected a file of {size_bytes} bytes; found {found}") from error
    if found < size_bytes:
        raise UserError(f"{path}: expected {size_bytes} bytes or more, as when it was opened; found {found}")


def not_read(path, error):
    """The end of an error message about a file that was readable when the run began, in one line."""
    # SciPy's error for a missing file has no errno.
    if isinstance(error, FileNotFoundError) or not (getattr(error, "errno", None) or os.path.exists(path)):
        return "no such file, though it was there when the run began"
    return f"a damaged or unreadable file: {' '.join(str(error).split())}"


def walk_by_folder(folder, refuse=None, left_out=None):
    """Yield (folder, its files) in and below a folder, as strings, sorted, without hidden ones.

    Links to folders are not followed. Pipes, sockets and devices are left out.

    Args:
        refuse: gets the OSError of a folder that cannot be read.
        left_out: a folder that is not entered, or None.
    """
    left_out = left_out and os.path.realpath(left_out)
    waiting = [os.fspath(folder)]
    while waiting:
        parent = waiting.pop()
        folders, files = [], []
        try:
            with os.scandir(parent) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path)):
                        files.append(entry.path)  # a broken link too, which opening reports
        except OSError as error:
            if refuse:
                refuse(error)
            continue
        yield parent, sorted(files)
        folders = [one for one in folders if left_out is None or os.path.realpath(one) != left_out]
        waiting += sorted(folders, reverse=True)


def walk(folder, refuse, left_out=None):
    """(folders, files) in and below a folder, see `walk_by_folder`."""
    folders, files = [], []
    for parent, own in walk_by_folder(folder, refuse, left_out):
        folders.append(parent)
        files += own
    return folders, files


def read_pieces(file, pieces, rows):
    """Read pieces of a file into the rows of an array, in the order of the file; adjacent pieces by one
    system call.

    Args:
        file: unbuffered.
        pieces: a list of (first byte, row); rows: array [n, ...], each row as long as its piece.

    Returns:
        None, or (row, bytes read) of the first piece that the file does not hold completely.
    """
    size = rows.nbytes // max(len(rows), 1)
    if not size:
        return None
    rows = rows.reshape(len(rows), -1).view("u1")
    most = max(1, min(MOST_BUFFERS, MOST_BYTES // size))  # rows in a call
    pieces = sorted(pieces)
    first = 0
    while first < len(pieces):
        end = first + 1
        while end < len(pieces) and end - first < most and pieces[end][0] == pieces[end - 1][0] + size:
            end += 1
        found = _read_into(file, pieces[first][0], [rows[row] for _, row in pieces[first:end]])
        if found < (end - first) * size:
            return pieces[first + found // size][1], found % size
        first = end
    return None


# Limits of a system call: buffers (IOV_MAX of <limits.h>), and bytes (Linux, see read(2), less a page).
MOST_BUFFERS, MOST_BYTES = 1024, 2**31 - 2**13


def _read_into(file, position, buffers):
    """Fill buffers from a position of a file; the number of bytes read."""
    found, buffers = 0, [memoryview(buffer) for buffer in buffers]
    while buffers:
        if hasattr(os, "preadv"):  # it leaves the position of the file, which forked workers share
            got = os.preadv(file.fileno(), buffers, position + found)
        else:
            file.seek(position + found)
            got = file.readinto(buffers[0])
        if not got:
            break
        found += got
        while buffers and got >= len(buffers[0]):
            got -= len(buffers.pop(0))
        if got:  # the system call stopped early
            buffers[0] = buffers[0][got:]
    return found


@contextlib.contextmanager
def locked(folder, owner):
    """Lock a folder against other processes, of other machines too, for the block.

    The system releases the lock of a process that dies. A file system without locks gives none.

    Args:
        owner: flag and value for the error.

    Raises:
        UserError: another process has the lock; it names the process.
    """
    try:
        import fcntl  # not on Windows
    except ImportError:
        yield
        return
    path = Path(folder, LOCK)
    file = _locked_file(fcntl, path, owner)
    try:
        yield
    finally:
        if file is not None:
            with contextlib.suppress(OSError):
                path.unlink()  # by its holder alone: see `_locked_file`
            file.close()


def _locked_file(fcntl, path, owner):
    """The open file of a lock that this process holds, or None without locks."""
    while True:
        try:
            file = open(path, "a+", encoding="utf-8")  # noqa: SIM115, closed by `locked`
        except OSError as error:
            raise UserError(f"{owner}: expected a folder that can be written; {error.strerror}") from error
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock, not inherited by forked workers
        except (BlockingIOError, PermissionError) as error:
            with file:
                file.seek(0)
                holder = file.read(200).strip() or "a process"
            raise UserError(
                f"{owner}: expected a folder that no other command writes; {holder} does"
            ) from error
        except OSError:  # a file system without locks
            file.close()
            return None
        try:
            is_there = os.path.samestat(os.fstat(file.fileno()), os.stat(path))
        except FileNotFoundError:
            is_there = False
        if is_there:
            break
        file.close()  # its holder removed it meanwhile
    file.truncate(0)
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    with contextlib.suppress(OSError):  # a full disk
        print(f"process {os.getpid()} on {socket.gethostname()}, since {since},", file=file, flush=True)
    return file


def parse_json(text):
    """The content of a JSON text. Raises ValueError, also for NaN, infinity and thousands of nested lists."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("too deeply nested") from error


def _refuse_constant(name):
    raise ValueError(f"{name} is no number of JSON")


def json_text(content, indent=None):
    """JSON that a file can hold: letters as they are, unless a name has bytes that are no UTF-8."""
    text = json.dumps(content, indent=indent, ensure_ascii=False)
    with contextlib.suppress(UnicodeEncodeError):
        text.encode()
        return text
    return json.dumps(content, indent=indent)


def fingerprints(files):
    """What tells the contents of files apart without reading all of them: a list of three int64 for each file.

    They are a digest of the name, one of the size with the first and last 4 kB, and the time of the last
    change.

    Args:
        files: {name: path}.
    """
    rows = []
    for name, path in sorted(files.items()):
        try:
            with open(path, "rb", buffering=0) as file:
                about = os.fstat(file.fileno())
                found = hashlib.blake2b(b"%d " % about.st_size, digest_size=8)
                found.update(file.read(ENDS_BYTES))
                if about.st_size > ENDS_BYTES:
                    file.seek(max(ENDS_BYTES, about.st_size - ENDS_BYTES))
                    found.update(file.read(ENDS_BYTES))
        except OSError:  # its reader says so better
            continue
        named = hashlib.blake2b(os.fsencode(name), digest_size=8).digest()
        digests = (int.from_bytes(one, "little", signed=True) for one in (named, found.digest()))
        rows.append((*digests, about.st_mtime_ns))
    return rows
