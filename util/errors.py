"""Report a user's mistake in one line. Every floor imports this module, `radio/` too."""

import contextlib
import sys


class UserError(Exception):
    """A mistake in flags, files or data: exit status 2, and the user sees the message alone.

    The message is one line: the file or flag, what was expected, what was found.
    """

    status = 2
    kind = "error"


class RunError(UserError):
    """A run that failed although its input was valid (the loss is not finite): exit status 1."""

    status = 1


class StoppedError(UserError):
    """A run that a signal stopped and that can resume: exit status 75, "try again" in <sysexits.h>."""

    status = 75
    kind = "stopped"


def one_line(error: BaseException) -> str:
    """The message of an error as one line.

    A DataLoader re-raises a worker's exception with the traceback as its message; the last line is the
    original.
    """
    message = str(error).strip()
    if message.startswith("Caught "):
        message = message.splitlines()[-1].partition(": ")[2]
    return " ".join(message.split())


@contextlib.contextmanager
def reported():
    """Print a `UserError` as one line on stderr and exit with its status; also an `OSError` of a file."""
    try:
        yield
    except UserError as error:
        # One write: other processes may print at the same time.
        print(f"{error.kind}: {one_line(error)}\n", end="", file=sys.stderr, flush=True)
        sys.exit(error.status)
    except OSError as error:
        if error.filename is None:
            raise
        # A name that is too long, a folder that may not be searched: wherever it was met first.
        found = f"expected a file or folder that can be used; found {one_line(error)}"
        print(
            f"{UserError.kind}: {str(error.filename)[:300]}: {found[:300]}\n",
            end="",
            file=sys.stderr,
            flush=True,
        )
        sys.exit(UserError.status)


def warn(message):
    """Print a warning on stderr."""
    if not _silent:
        print(f"warning: {message}", file=sys.stderr)


@contextlib.contextmanager
def silent_warnings():
    """Suppress warnings, in processes that would repeat those of rank 0."""
    global _silent
    before, _silent = _silent, True
    try:
        yield
    finally:
        _silent = before


_silent = False
