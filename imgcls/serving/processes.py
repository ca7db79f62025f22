"""The processes of one server: the launch of its frontend, and the certain end of all of them.

TorchServe's workers outlive a frontend that is killed: for as long as a request takes, and while they load, up to 30 s
more (measured). Each process therefore carries the server's id in its environment, and stop ends all that do.
"""

import contextlib
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from imgcls.children import end_with_parent

MARKER = "IMGCLS_SERVER_ID"
GRACE_S = 10.0  # an idle TorchServe needs 2 to 4 s for SIGTERM
ORPHANS_GRACE_S = 0.5
SETTLE_S = 0.5

# Kept, because a Popen that is dropped while its process runs on, as it shall, gives a ResourceWarning.
_launched: list[subprocess.Popen[bytes]] = []


def launch(
    command: list[str],
    *,
    server_id: str,
    folder: Path,
    log: Path,
    environment: Mapping[str, str],
    dies_with_parent: bool,
) -> subprocess.Popen[bytes]:
    """Starts a process in a session of its own, without a terminal, its output in a file.

    Args:
        command: the executable and its arguments.
        server_id: what its processes will be found by.
        folder: its working directory.
        log: where its output goes.
        environment: of the process, and of its children.
        dies_with_parent: on Linux, it is killed when the calling thread ends, however that happens.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**environment, MARKER: server_id},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=end_with_parent(signal.SIGKILL) if dies_with_parent else None,
        )
    keep(process)
    return process


def keep(process: subprocess.Popen[bytes]) -> None:
    """Holds on to a process that shall run on after we are gone."""
    _launched.append(process)


def end_all(server_id: str, *, frontend: psutil.Process | None, grace_s: float = GRACE_S) -> int:
    """Ends a server's processes: the frontend by SIGTERM, after `grace_s` by SIGKILL, then every one that is left.

    Returns:
        How many had to be killed.
    """
    if frontend is not None:
        _terminate(frontend, grace_s=grace_s)
    killed = _end_orphans(server_id)
    for child in _launched:
        child.poll()
    return killed


def _end_orphans(server_id: str) -> int:
    """Gives a server's processes a moment to end by themselves, kills the others, and looks until none turns up.

    A frontend that is being stopped kills its workers and at once starts new ones (measured); one that is just being
    started has no readable environment, so looking once is not enough.
    """
    killed = 0
    began_s = seen_s = time.monotonic()
    while (now_s := time.monotonic()) - seen_s < SETTLE_S and now_s - began_s < GRACE_S:
        if left := find_marked(server_id):
            seen_s = now_s
        if now_s - began_s > ORPHANS_GRACE_S:
            for process in left:
                _kill(process)
            killed += len(left)
        time.sleep(0.05)
    return killed


def find_marked(server_id: str, *, marker: str = MARKER) -> list[psutil.Process]:
    """Returns the running processes that were started with a server's id in their environment."""
    return [process for process in psutil.process_iter() if _carries(process, server_id, marker=marker)]


def _carries(process: psutil.Process, server_id: str, *, marker: str) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(marker) == server_id
    except (psutil.Error, OSError):  # gone, or another user's
        return False


def _terminate(process: psutil.Process, *, grace_s: float) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.terminate()
    if not _wait_for_end(process, timeout_s=grace_s):
        _kill(process)


def _kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()
    _wait_for_end(process, timeout_s=GRACE_S)


def _wait_for_end(process: psutil.Process, *, timeout_s: float) -> bool:
    """Waits until a process has ended; as a zombie it has, which nobody may ever reap in a container without init."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False
