"""What a user can do wrong, said in one line.

The one module that every floor imports, `radio/` included: it knows nothing but how a mistake is reported.
"""

import contextlib
import sys


class UserError(Exception):
    """A mistake in the flags, files or data given to a command: exit status 2, and its message is all that is shown.

    The message names the file or flag, says what was expected and what was found, in one line.
    """


class RunError(UserError):
    """A run that had to stop though its input was well formed (a loss that is not finite): exit status 1."""


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
    except RunError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(1)
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)


def warn(message):
    """A line on stderr about something a user should know, though the command goes on."""
    print(f"warning: {message}", file=sys.stderr)
