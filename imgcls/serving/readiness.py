"""Honest readiness: every worker READY, and every golden input answered right over HTTP.

TorchServe's own /ping is Healthy with no model, with workers that are still loading, and for minutes of crash-looping.
"""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from imgcls.client import Client
from imgcls.errors import ClientError
from imgcls.serving import logs
from imgcls.serving.errors import ManagementError, NotReadyError, OvertakenError, WorkerFailedError
from imgcls.serving.management import Management, ModelStatus
from imgcls.serving.state import StateFolder
from model.golden import ALL_CLASSES, GoldenItem, describe_mismatch

POLL_S = 0.2
LOG_FLUSH_S = 0.5  # between TorchServe's notice of a dead worker and the last line of its traceback


class LogWatch:
    """Sees a worker fail in the logs of one server, from the moment that the watch is made.

    Args:
        folder: of the server.
        version: `MODEL_VERSION`, whose workers alone count; all workers where it is empty.
    """

    def __init__(self, folder: StateFolder, *, version: str = "") -> None:
        self._folder = folder
        self._version = version
        self._model_offset = logs.size_of(folder.model_log)
        self._server_offset = logs.size_of(folder.server_log)

    def raise_failure(self, what: str) -> None:
        """Raises WorkerFailedError, with the worker's own words, if one has failed to start since."""
        if not logs.has_failure(self._folder.server_log, offset=self._server_offset, version=self._version):
            return
        time.sleep(LOG_FLUSH_S)
        failure = logs.find_failure(
            self._folder.model_log, self._folder.server_log, offset=self._model_offset, version=self._version
        )
        raise WorkerFailedError(
            f"{what}: a worker could not load the model: {failure.reason}; see {self._folder.model_log}",
            details=failure.details,
        )


def wait_for_workers(
    management: Management,
    name: str,
    *,
    watch: LogWatch,
    deadline_s: float,
    version: str | None = None,
    workers: int | None = None,
    check_alive: Callable[[], None] = lambda: None,
    on_progress: Callable[[str], None] = lambda text: None,
) -> ModelStatus:
    """Waits until a model has all its workers READY.

    Args:
        management: of the server; it may not answer yet.
        name: of the model.
        watch: made before the workers were started.
        deadline_s: until when to wait, on time.monotonic().
        version: of the model; default: its default version.
        workers: how many were asked for; default: as many as the model's minWorkers says.
        check_alive: raises when the server's process has ended.
        on_progress: told what is waited for, whenever that changes.

    Raises:
        WorkerFailedError: a worker has died while loading.
        OvertakenError: another number of workers was asked for since.
        NotReadyError: the deadline has passed.
    """
    said, what = "", f"{name} {version}" if version else name
    while True:
        check_alive()
        watch.raise_failure(what)
        status, now = _look(management, name, version)
        if status is not None and status.is_ready and workers in (None, status.ready_workers):
            return status
        if status is not None and workers not in (None, status.min_workers):  # TorchServe took it before it answered
            raise OvertakenError(
                f"{what}: {workers} workers were asked for, and {status.min_workers} since, by somebody else, which "
                "holds; see imgcls status, and set yours again if that is not meant"
            )
        if now != said:
            on_progress(said := now)
        if time.monotonic() > deadline_s:
            raise NotReadyError(f"{what}: not ready in time: {now}; give it longer with --timeout, or see the logs")
        time.sleep(POLL_S)


def check_golden(client: Client, golden: Sequence[GoldenItem], *, where: Path) -> None:
    """Sends each golden input over HTTP and compares the answer.

    Raises:
        NotReadyError: an answer is wrong, or there is none.
    """
    for item in golden:
        try:
            ranked = client.predict(item.data, top_k=ALL_CLASSES).ranked
        except ClientError as err:
            raise NotReadyError(f"{where}: golden input {item.file} was not answered: {err}") from err
        probability = next((entry.probability for entry in ranked if entry.index == item.index), math.nan)
        if mismatch := describe_mismatch(item, probability=probability):
            raise NotReadyError(f"{where}: golden input {mismatch}; this server does not compute what was tested")


def _look(management: Management, name: str, version: str | None) -> tuple[ModelStatus | None, str]:
    try:
        status = management.describe(name, version=version)
    except ManagementError:
        return None, "waiting for TorchServe"
    return status, f"{status.ready_workers} of {max(status.min_workers, len(status.workers))} workers READY"
