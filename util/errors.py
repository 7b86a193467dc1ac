"""Report a user's mistake in one line. Every floor imports this module, `radio/` too."""

import contextlib
import errno
import signal
import sys
import threading

# Errors of the system that a name on the command line causes.
OF_NAMES = {
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EACCES,
    errno.ELOOP,
    errno.EINVAL,
}


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


class EndedError(StoppedError):
    """A run that a signal ended and that cannot resume: exit status 130, as of Ctrl-C."""

    status = 130


def one_line(error) -> str:
    """An error's message, or a text, as one line.

    A DataLoader re-raises a worker's exception with the traceback as its message; the last line is the
    original.
    """
    message = str(error).strip()
    if message.startswith("Caught "):
        message = message.splitlines()[-1].partition(": ")[2]
    return " ".join(message.split())


@contextlib.contextmanager
def reported():
    """Print a `UserError`, an error of the system or a stop as one line on stderr, and exit with its status.

    Ctrl-C and SIGTERM raise KeyboardInterrupt; a command that can go on turns it into a `StoppedError`.
    """
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _interrupt) if is_main else None
    for stream in (sys.stdout, sys.stderr):  # a file name may hold bytes that are no UTF-8
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    except UserError as error:
        _end(error.kind, error, error.status)
    except KeyboardInterrupt as error:
        _end("stopped", f"by {error}" if str(error) else "by Ctrl-C", 130)
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk, too many open files, a folder that vanished
        is_name = error.errno in OF_NAMES
        found = (
            f"expected a file or folder that can be used; found {one_line(error)}"
            if is_name
            else error.strerror
        )
        where = f"{str(error.filename)[:300]}: " if error.filename else ""
        _end("error", f"{where}{(found or str(error))[:300]}", 2 if is_name else 1)
    except MemoryError as error:
        _end("error", f"expected more memory; found none left ({one_line(error) or 'out of memory'})", 1)
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _end(kind, error, status):
    # One write: other processes may print at the same time.
    print(f"{kind}: {one_line(error)}\n", end="", file=sys.stderr, flush=True)
    sys.exit(status)


def _interrupt(number, _frame):
    raise KeyboardInterrupt(signal.Signals(number).name)


@contextlib.contextmanager
def stopped(message, goes_on=True):
    """Turn Ctrl-C and SIGTERM in the block into a `StoppedError`, or into an `EndedError` without `goes_on`."""
    try:
        yield
    except KeyboardInterrupt as error:
        if goes_on:
            raise StoppedError(f"{message}; the same command goes on") from error
        raise EndedError(f"{message}; the same command starts again") from error


def warn(message):
    """Print a warning on stderr."""
    if not _silent:
        print(f"warning: {one_line(message)}", file=sys.stderr)


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


def few(names, most=4, counted=False):
    """The first names of a list for a message, then "..." or, if counted, how many more there are."""
    names = [str(name) for name in names]
    shown, more = ", ".join(names[:most]), len(names) - most
    if more <= 0:
        return shown
    return f"{shown} and {more} more" if counted else f"{shown}, ..."
