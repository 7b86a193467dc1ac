"""What a user can do wrong, said in one line.

The one module that every floor imports, `radio/` included: it knows nothing but how a mistake is reported.
"""

import contextlib
import sys


class UserError(Exception):
    """A mistake in the flags, files or data given to a command: exit status 2, and its message is all that is shown.

    The message names the file or flag, says what was expected and what was found, in one line.
    """

    status = 2
    kind = "error"


class RunError(UserError):
    """A run that had to stop though its input was well formed (a loss that is not finite): exit status 1."""

    status = 1


class StoppedError(UserError):
    """A run that was told to stop by a signal and can go on: exit status 75, <sysexits.h>'s for "try again"."""

    status = 75
    kind = "stopped"


def one_line(error: BaseException) -> str:
    """The message of a `UserError` as one line, also when a data-loading worker raised it.

    A DataLoader re-raises a worker's exception with the whole traceback as its message; the last line is ours.
    """
    message = str(error).strip()
    if message.startswith("Caught "):
        message = message.splitlines()[-1].partition(": ")[2]
    return " ".join(message.split())


@contextlib.contextmanager
def reported():
    """Run a command's main: a `UserError` becomes one line on stderr and the exit status, without a traceback."""
    try:
        yield
    except UserError as error:
        # In one write: other processes of the run may have something to say too.
        print(f"{error.kind}: {one_line(error)}\n", end="", file=sys.stderr, flush=True)
        sys.exit(error.status)


def warn(message):
    """A line on stderr about something a user should know, though the command goes on."""
    if not _silent:
        print(f"warning: {message}", file=sys.stderr)


@contextlib.contextmanager
def silent_warnings():
    """For the processes of a run that would say what the first one says."""
    global _silent
    before, _silent = _silent, True
    try:
        yield
    finally:
        _silent = before


_silent = False
