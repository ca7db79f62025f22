"""`imgcls serve` as a process: start a server; in the foreground show the model's log, and stop it on a signal."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from imgcls.serving import logs
from imgcls.serving.server import ServeOptions, check_alive, start, stop
from imgcls.serving.state import ServerState, StateFolder

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POLL_S = 0.5


class StopRequestedError(BaseException):
    """A signal asks to stop. No Exception, so that nothing on the way takes it for a failure."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def serve(
    options: ServeOptions,
    *,
    is_foreground: bool,
    on_progress: Callable[[str], None],
    on_ready: Callable[[ServerState], None],
    on_log_line: Callable[[str], None],
) -> None:
    """Starts a server, and in the foreground stays with it until a signal comes.

    Args:
        options: what to serve.
        is_foreground: stay; otherwise the server is left running.
        on_progress: told what is waited for.
        on_ready: told the server, once it answers right.
        on_log_line: told each line of the model's log, in the foreground.

    Raises:
        StopRequestedError: a signal came; nothing is left running.
        ServingError: see imgcls.serving.server.start; or the server has ended by itself.
    """
    folder = StateFolder(options.state)
    server = None
    with signals_raise():
        try:
            server = start(options, on_progress=on_progress)
            on_ready(server)
            if is_foreground:
                follow(server, folder, write=on_log_line)
        except BaseException:  # a signal, or a reader of our output that went away: no server without a success
            if server is not None:  # an interrupted start has cleaned up by itself; a server of someone else stays
                stop(folder)
            raise


@contextmanager
def signals_raise() -> Iterator[None]:
    """Makes the first signal raise StopRequestedError; further ones are ignored while the server is being stopped."""

    def raise_once(number: int, frame: FrameType | None) -> None:
        for signal_number in SIGNALS:
            signal.signal(signal_number, signal.SIG_IGN)
        raise StopRequestedError(number)

    before = {number: signal.signal(number, raise_once) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def follow(state: ServerState, folder: StateFolder, *, write: Callable[[str], None]) -> None:
    """Shows the model's log until a signal comes; whichever way it ends, the server is stopped.

    Raises:
        NotReadyError: the server has ended by itself.
    """
    offset = logs.size_of(folder.model_log)
    try:
        while True:
            lines, offset = logs.read_on(folder.model_log, offset=offset)
            for line in lines:
                write(line)
            check_alive(state, folder)
            time.sleep(POLL_S)
    finally:
        stop(folder)
