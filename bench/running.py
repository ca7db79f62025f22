"""A server that runs: how it is asked, what it holds in memory, and its certain end.

Every process of a server carries an id in its environment; by that all are found, and ended.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests

from bench.bodies import Framing, frame, headers_of
from bench.environments import PeerError
from imgcls.serving.ports import ports_from
from imgcls.serving.processes import end_all, find_marked, launch

START_LIMIT_S = 180.0
POLL_S = 0.02
ROOT = Path(__file__).parents[1]
# Nobody's server reports home from here; one thread a worker, for whichever library asks.
QUIET = {
    "ORT_DISABLE_TELEMETRY": "1",
    "BENTOML_DO_NOT_TRACK": "True",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_raylet_start_wait_time_s": "80",  # 30 are not enough on a busy machine
    "PYTHONUNBUFFERED": "1",
}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Running:
    """A server that has answered; `start_s` is from its launch until its first 200 on an image."""

    server_id: str
    url: str
    framing: Framing
    headers: dict[str, str]
    start_s: float

    def ask(self, image: bytes) -> bytes:
        """Returns the answer to one image.

        Raises:
            PeerError: it is no 200.
        """
        answer = requests.post(self.url, data=frame(image, self.framing), headers=self.headers, timeout=60)
        if answer.status_code != 200:
            raise PeerError(f"answers {answer.status_code}: {answer.text[:200]}")
        return answer.content

    def measure_pss_mb(self) -> float:
        """Returns the proportional set size of all its processes: shared pages count by their share."""
        return sum(_pss_mb(process) for process in _tree(self.server_id))

    def measure_worker_mb(self) -> float | None:
        """Returns the proportional set size of one of TorchServe's workers, on average; None for other servers."""
        workers = [process for process in _tree(self.server_id) if _is_worker(process)]
        return sum(map(_pss_mb, workers)) / len(workers) if workers else None


def find_port() -> int:
    """Returns a free port of the loopback."""
    return ports_from(0).inference


@contextmanager
def run_server(
    command: list[str],
    *,
    url: str,
    framing: Framing,
    environment: Mapping[str, str],
    folder: Path,
    image: bytes,
) -> Iterator[Running]:
    """Starts a server, waits until it answers an image, and ends all of its processes afterwards.

    Args:
        command: to run in the foreground.
        url: of its predictions.
        framing: of its requests.
        environment: beyond the caller's.
        folder: of its log and its temporary files; made.
        image: to ask until the answer is 200.

    Raises:
        PeerError: it ends, or does not answer in time.
    """
    server_id, log = uuid.uuid4().hex, folder / "server.log"
    folder.mkdir(parents=True)
    temporary = tempfile.mkdtemp(prefix="ib-")  # short: Ray's Unix sockets lie 90 characters below it
    started = time.perf_counter()
    frontend: psutil.Process | None = None
    try:
        process = launch(
            command,
            server_id=server_id,
            folder=ROOT,
            log=log,
            environment={
                **clean_environment(),
                **environment,
                "TMPDIR": temporary,
                "TEMP": temporary,
                "HOME": temporary,
            },
            dies_with_parent=True,
        )
        with contextlib.suppress(psutil.NoSuchProcess):
            frontend = psutil.Process(process.pid)
        wait_for_200(url, framing=framing, image=image, check_alive=lambda: _refuse_ended(process, log))
        start_s = time.perf_counter() - started
        yield Running(server_id, url, framing, headers_of(framing), start_s)
    finally:
        end_all(server_id, frontend=frontend)
        shutil.rmtree(temporary, ignore_errors=True)


def wait_for_200(
    url: str,
    *,
    framing: Framing,
    image: bytes,
    check_alive: Callable[[], None] = lambda: None,
) -> None:
    """Asks until the answer is 200.

    Raises:
        PeerError: it is not in time.
    """
    body, headers, last = frame(image, framing), headers_of(framing), "nothing listens"
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        check_alive()
        with contextlib.suppress(requests.RequestException):
            answer = requests.post(url, data=body, headers=headers, timeout=30)
            if answer.status_code == 200:
                return
            last = f"{answer.status_code} {answer.text[:200]}"
        time.sleep(POLL_S)
    raise PeerError(f"did not answer with 200 within {START_LIMIT_S:.0f} s: {last}")


def clean_environment() -> dict[str, str]:
    """Returns this process's environment without what would lead a server astray, and with nothing reported home."""
    dropped = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", *ONE_THREAD}
    return {key: value for key, value in os.environ.items() if key not in dropped} | QUIET


def _refuse_ended(process: "subprocess.Popen[bytes]", log: Path) -> None:
    if (status := process.poll()) is not None:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise PeerError(f"ended with status {status}: {' | '.join(lines[-2:])[-300:]}")


def _tree(server_id: str) -> list[psutil.Process]:
    found = {process.pid: process for process in find_marked(server_id)}
    for process in list(found.values()):
        with contextlib.suppress(psutil.Error):
            found |= {child.pid: child for child in process.children(recursive=True)}
    return list(found.values())


def _is_worker(process: psutil.Process) -> bool:
    try:
        return any(word.endswith("model_service_worker.py") for word in process.cmdline())
    except psutil.Error:  # it has just ended
        return False


def _pss_mb(process: psutil.Process) -> float:
    try:
        return float(process.memory_full_info().pss) / 1e6
    except psutil.Error:  # it has just ended
        return 0.0
