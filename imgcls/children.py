"""Child processes that end with this one, however it ends: a server behind a command, a training behind a search."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable

PR_SET_PDEATHSIG = 1


def end_with_parent(number: signal.Signals) -> Callable[[], None] | None:
    """Returns a preexec_fn: the child gets this signal when the calling thread ends; None where it is not Linux."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)  # before the fork: loading a library after it may deadlock
    parent = os.getpid()

    def set_death_signal() -> None:
        libc.prctl(PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it died before the call
            os._exit(1)

    return set_death_signal
