"""Ctrl-C in one line, from the first import of a command on: the libraries take seconds to import."""

import os
import sys


def _report(kind, error, trace):
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    print("stopped: by Ctrl-C before the command began", file=sys.stderr, flush=True)
    os._exit(130)


sys.excepthook = _report
