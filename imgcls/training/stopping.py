"""Ctrl-C and SIGTERM during the loop: remembered, and heeded where the state of the run is whole."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):  # noqa: N818 (no error: somebody asked for it)
    """Raised by `Stop.check` once the run was asked to stop."""


class Stop:
    """Whether a signal has come."""

    def __init__(self) -> None:
        self.is_asked = False

    def check(self) -> None:
        """Raises Stopped where a signal has come: to be called between steps only, when a checkpoint can be written."""
        if self.is_asked:
            raise Stopped

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.is_asked:  # who asks twice does not want to wait for the step
            raise KeyboardInterrupt
        self.is_asked = True


@contextmanager
def catch_signals() -> Iterator[Stop]:
    """Within it, the first Ctrl-C or SIGTERM asks to stop, and the second ends at once, as KeyboardInterrupt."""
    stop = Stop()
    heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop._ask) for number in heeded}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
