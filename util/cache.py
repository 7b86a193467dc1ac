"""The folder that downloads are kept in: where it is, who may write to it, and what is known of its files."""

import contextlib
import hashlib
import json
import os
import sys
from pathlib import Path

from util.errors import UserError
from util.files import atomic_path


def home():
    """RADIO_MAE_HOME, or radio-mae in the user's folder of caches."""
    if own := os.environ.get("RADIO_MAE_HOME"):
        return Path(own).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "radio-mae"


@contextlib.contextmanager
def alone(name):
    """Hold the lock of a name, waiting for it if need be; the system lets go of it when a process dies.

    Raises:
        UserError: the folder cannot be written.
    """
    from filelock import FileLock, Timeout  # here, since most commands fetch nothing

    lock = FileLock(home() / "locks" / f"{name}.lock")
    try:
        (home() / "locks").mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"{name}: another process is fetching it; waiting", file=sys.stderr)
            lock.acquire()
    except OSError as error:
        raise UserError(f"{home()}: expected a folder that can be written, for downloads (RADIO_MAE_HOME says where); "
                        f"{error.strerror or error}") from error  # fmt: skip
    try:
        yield
    finally:
        lock.release()


def digests(path, algorithms):
    """{algorithm: hexadecimal digest} of a file, in one pass."""
    running = {name: hashlib.new(name, usedforsecurity=False) for name in algorithms}
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            for digest in running.values():
                digest.update(chunk)
    return {name: digest.hexdigest() for name, digest in running.items()}


def write_json(path, content):
    """A small file that is whole or absent."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def read_json(path):
    """The dict in a small file; empty if it is missing or damaged."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
