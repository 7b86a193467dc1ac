"""End a process with its parent."""

import contextlib
import ctypes
import signal

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def end_with_parent(number=signal.SIGTERM):
    """Make the kernel send this process a signal when its parent ends, even by SIGKILL; Linux only."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
