"""Print to a standard output that may be closed, full, or a pipe whose reader is gone, without ending the command."""

import contextlib
import os
import sys

from util.errors import warn


class _Console:
    """Text goes to a stream until that fails, then nowhere. Other attributes are the stream's."""

    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def _try(self, method, *args):
        try:
            return getattr(self._stream, method)(*args)
        except OSError as error:
            with open(os.devnull, "w") as nowhere, contextlib.suppress(OSError, ValueError):
                os.dup2(nowhere.fileno(), self._stream.fileno())  # what is left in buffers, too
            if not isinstance(error, BrokenPipeError):  # `| head` has seen enough
                warn(f"standard output cannot be written ({error.strerror}); files are written all the same")

    def write(self, text):
        return self._try("write", text)

    def flush(self):
        return self._try("flush")


@contextlib.contextmanager
def lasting():
    """Standard output and standard error that never fail, in this context."""
    with contextlib.ExitStack() as stack:
        if sys.stderr is None:  # closed
            stack.enter_context(contextlib.redirect_stderr(stack.enter_context(open(os.devnull, "w"))))
        stream = sys.stdout or stack.enter_context(open(os.devnull, "w"))
        stack.enter_context(contextlib.redirect_stdout(_Console(stream)))
        yield
