"""Files that are whole or absent, files that change under a run that reads them, and folders that are seen to be writable
before hours of work end in them."""

import contextlib
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
