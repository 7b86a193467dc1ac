"""Files that are whole or absent, files that change under a run that reads them, and folders that are seen to be writable
before hours of work end in them."""

import contextlib
import hashlib
import json
import os
from pathlib import Path

from util.errors import UserError


@contextlib.contextmanager
def atomic_path(path):
    """A temporary path beside `path`, flushed to disk and renamed to it if the block ends well, removed if not."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder):
    # A rename is on disk only when its folder is.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path, content, indent=1):
    """A JSON file that is whole or absent."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=indent) + "\n")


def read_json(path):
    """The dict in a JSON file; empty if the file is missing or damaged."""
    try:
        content = json.loads(Path(path).read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def digest(path, algorithm="sha256"):
    """The hexadecimal digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


@contextlib.contextmanager
def writable_folder(path, owner, what="a folder"):
    """A folder, created and seen to be writable; removed again if the block fails before anything is in it.

    Args:
        owner: what the error names, a flag and its value; what: what of it has to be written.

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
    except UserError:
        if not existed and not any(folder.iterdir()):
            folder.rmdir()
        raise


def check_size(path, size_bytes):
    """See that a file that was opened earlier is still there with all of its bytes. That it has grown is no harm.

    Raises:
        UserError: it was deleted or truncated, or cannot be reached.
    """
    try:
        found = os.stat(path).st_size
    except OSError as error:
        raise UserError(f"{path}: expected a file of {size_bytes} bytes; found {not_read(path, error)}") from error
    if found < size_bytes:
        raise UserError(f"{path}: expected {size_bytes} bytes or more, as when it was opened; found {found}")


def not_read(path, error):
    """What was found instead of a file that was there when the run began, in one line: the end of an error's message."""
    # SciPy says of a missing file that it needs a name.
    if isinstance(error, FileNotFoundError) or (getattr(error, "errno", None) is None and not os.path.exists(path)):
        return "no such file, though it was there when the run began"
    return f"a damaged or unreadable file: {' '.join(str(error).split())}"


def walk(folder, refuse):
    """(folders, files) below a folder, itself included, as strings: folder by folder, names sorted, hidden ones left out.

    Links to folders are not followed. `refuse` is called with the OSError of a folder that cannot be read.
    """
    folders, files = [], []
    for parent, names, file_names in os.walk(folder, onerror=refuse):
        names[:] = sorted(name for name in names if not name.startswith("."))
        folders.append(parent)
        files += [os.path.join(parent, name) for name in sorted(file_names) if not name.startswith(".")]
    return folders, files


def read_pieces(file, pieces, rows):
    """Read pieces of a file into the rows of an array, in the order of the file, neighbours by one system call.

    Args:
        file: unbuffered.
        pieces: a list of (first byte, row); rows: array [n, ...], each row as long as its piece.

    Returns:
        None, or (row, bytes that there were) of the first in the file that it ended in.

    Raises:
        OSError: it cannot be read.
    """
    size = rows.nbytes // max(len(rows), 1)
    if not size:
        return None
    rows = rows.reshape(len(rows), -1).view("u1")
    most = max(1, min(MOST_BUFFERS, MOST_BYTES // size))  # in a call
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


# What a system call takes: buffers (<limits.h>'s IOV_MAX), and bytes (Linux, see read(2), less a page).
MOST_BUFFERS, MOST_BYTES = 1024, 2**31 - 2**13


def _read_into(file, position, buffers):
    """Fill buffers with the bytes from a position on; how many there were."""
    if hasattr(os, "preadv"):  # its position is its own: forked workers share that of the file
        found = os.preadv(file.fileno(), buffers, position)
        if found == sum(map(len, buffers)):
            return found
    # The file ends here, or the system call was cut short.
    found = 0
    for buffer in map(memoryview, buffers):
        while len(buffer):
            if hasattr(os, "preadv"):
                got = os.preadv(file.fileno(), [buffer], position + found)
            else:
                file.seek(position + found)
                got = file.readinto(buffer)
            if not got:
                return found
            found, buffer = found + got, buffer[got:]
    return found
