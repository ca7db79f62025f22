"""The supervisor as a process: in the foreground until a signal comes, in the background, and its end."""

import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from imgcls.gateway.errors import BusyError
from imgcls.gateway.folder import GatewayFolder, SupervisorState, find_supervisor
from imgcls.gateway.leftovers import end_leftovers
from imgcls.gateway.supervisor import SuperviseOptions, Supervisor
from imgcls.serving import processes
from imgcls.serving.errors import NotReadyError
from imgcls.serving.foreground import signals_raise

STOP_SPARE_S = 60.0  # for servers to end, beyond what draining may take
LOG_FORMAT = "%(asctime)s %(levelname)-7s %(message)s"


def run_foreground(options: SuperviseOptions, *, on_ready: Callable[[SupervisorState], None]) -> None:
    """Supervises until a signal comes.

    Raises:
        StopRequestedError: a signal came; nothing is left running.
        ImgclsError: it cannot be started; nothing is left running.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=LOG_FORMAT)
    with signals_raise():
        Supervisor(options).run(on_ready=on_ready)


def run_background(folder: GatewayFolder, arguments: Sequence[str], *, timeout_s: float) -> SupervisorState:
    """Starts a supervisor that stays behind, and returns once it is ready.

    Args:
        folder: of the gateway.
        arguments: of `imgcls`, which make it serve in the foreground.
        timeout_s: until it must be ready.

    Raises:
        BusyError: one runs here already; its log stays as it is.
        NotReadyError: it has ended, with its own words, or is not ready in time; nothing is left running.
    """
    folder.server("", is_first=True).claim()
    folder.path.mkdir(exist_ok=True)
    refuse_second(folder)
    if folder.supervisor_log.exists():  # it says why the last one ended
        folder.supervisor_log.replace(folder.supervisor_log.with_name(f"{folder.supervisor_log.name}.1"))
    with folder.supervisor_log.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "imgcls.cli.main", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    processes.keep(process)
    try:
        return _wait_until_ready(folder, process, timeout_s=timeout_s)
    except BaseException:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait()
        raise


def refuse_second(folder: GatewayFolder) -> None:
    """Raises BusyError where a supervisor runs with this folder; two that begin at once are told apart by its lock."""
    state = folder.read()
    if state is not None and find_supervisor(state) is not None:
        raise BusyError(f"{folder.state}: a gateway runs here already, at {state.url}; see imgcls status")


def stop(folder: GatewayFolder) -> bool:
    """Has a supervisor drain and end; ends what a killed one has left.

    Returns:
        Whether one was running.

    Raises:
        GatewayError: supervisor.json is broken.
        NotReadyError: it does not end.
    """
    state = folder.read()
    if state is None:
        return False
    process = find_supervisor(state)
    if process is None:
        end_leftovers(folder, state)
        return False
    process.terminate()
    settings = state.settings
    timeout_s = settings.drain_notice_s + settings.drain_timeout_s + STOP_SPARE_S
    deadline_s = time.monotonic() + timeout_s
    while find_supervisor(state) is not None:
        if time.monotonic() > deadline_s:
            raise NotReadyError(
                f"the supervisor {state.pid} has not ended within {timeout_s:g} s; see {folder.supervisor_log}"
            )
        time.sleep(0.05)
    return True


def _wait_until_ready(folder: GatewayFolder, process: subprocess.Popen[bytes], *, timeout_s: float) -> SupervisorState:
    deadline_s = time.monotonic() + timeout_s
    while process.poll() is None:
        state = folder.read()
        if state is not None and state.pid == process.pid and state.has_started:
            return state
        if time.monotonic() > deadline_s:
            raise NotReadyError(f"not ready within {timeout_s:g} s; see {folder.supervisor_log}")
        time.sleep(0.1)
    lines = [line for line in folder.supervisor_log.read_text(errors="replace").splitlines() if line.strip()]
    reason = lines[-1].removeprefix("error: ") if lines else "it ended without a word"
    raise NotReadyError(f"{reason} (see {folder.supervisor_log})")
