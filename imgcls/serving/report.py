"""What `imgcls status` tells: the server, its workers and their processes, as they are now."""

import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from imgcls.errors import ServingError
from imgcls.serving import logs
from imgcls.serving.access import management_client
from imgcls.serving.logs import VersionFailure
from imgcls.serving.management import ModelStatus, Worker
from imgcls.serving.state import ServerState, StateFolder, find_process


@dataclass(frozen=True)
class WorkerReport:
    """One worker process."""

    id: str
    status: str
    pid: int
    memory_bytes: int | None  # resident; None when the process cannot be seen
    device: str


@dataclass(frozen=True)
class VersionReport:
    """One version of the model: registered, or known only by its failure, as TorchServe forgets what it refused."""

    version: str
    is_default: bool
    is_registered: bool
    ready_workers: int
    wanted_workers: int
    problem: str  # empty when it takes requests

    def as_text(self) -> str:
        """Returns it for people."""
        workers = f"{self.ready_workers} of {self.wanted_workers} workers READY" if self.is_registered else ""
        name = f"{self.version}{' (default)' if self.is_default else ''}"
        return f"{name}: " + "; ".join(filter(None, (workers, self.problem)))


@dataclass(frozen=True)
class ServerReport:
    """One server."""

    state: ServerState
    is_running: bool
    uptime_s: float
    model: ModelStatus | None
    workers: tuple[WorkerReport, ...]
    versions: tuple[VersionReport, ...]
    problem: str  # of the default version

    @property
    def is_ready(self) -> bool:
        """Whether it takes requests, with all the workers it wants."""
        return not self.problem

    def as_dict(self) -> dict[str, Any]:
        """Returns it for machines."""
        queue = self.model.queue if self.model else None
        return {
            "ready": self.is_ready,
            "problem": self.problem or None,
            "running": self.is_running,
            "model": self.state.model,
            "version": self.model.model_version if self.model else self.state.version,
            "versions": [asdict(version) for version in self.versions],
            "trust": self.state.trust.model_dump(mode="json") if self.state.trust else None,
            "workers": [asdict(worker) for worker in self.workers],
            "wanted_workers": self.model.min_workers if self.model else None,
            "pending_requests": queue.pending_requests if queue else None,
            "inference_url": self.state.inference_url,
            "management_url": self.state.management_url,
            "ports": self.state.ports.model_dump(),
            "pid": self.state.pid,
            "uptime_s": round(self.uptime_s, 1),
            "archive": str(self.state.archive),
        }

    def as_text(self) -> str:
        """Returns it for people, one fact a line."""
        fields = self.as_dict()
        lines = [
            f"{fields['model']} {fields['version']}: {self.problem or 'ready'}",
            f"url       {self.state.inference_url}",
            f"ports     {', '.join(f'{name} {port}' for name, port in fields['ports'].items())}",
            f"process   pid {self.state.pid}, up {_format_duration(self.uptime_s)}",
            f"archive   {self.state.archive}",
            f"trust     {self.state.trust or 'not known'}",
            *(f"version   {version.as_text()}" for version in self.versions),
        ]
        if fields["pending_requests"] is not None:
            lines.append(f"queue     {fields['pending_requests']} waiting")
        for worker in self.workers:
            memory = "memory ?" if worker.memory_bytes is None else f"{worker.memory_bytes / 1e6:,.0f} MB"
            lines.append(f"worker    {worker.id} {worker.status}, pid {worker.pid}, {memory}, {worker.device}")
        return "\n".join(lines)


def describe_server(folder: StateFolder) -> ServerReport:
    """Looks at a server.

    Raises:
        NotRunningError: there is none in this state folder, or its process is gone.
        ServingError: state.json is broken.
    """
    state = folder.read_running()
    model, versions, problem = _describe_model(state, folder)
    process, created_s = find_process(state), state.created_s
    with suppress(psutil.NoSuchProcess):  # it may end at any time
        created_s = process.create_time() if process else created_s  # by the clock as it is now set
    return ServerReport(
        state=state,
        is_running=process is not None,
        uptime_s=time.time() - created_s,
        model=model,
        workers=tuple(_describe_worker(worker) for worker in model.workers) if model else (),
        versions=versions,
        problem=problem,
    )


def _describe_model(
    state: ServerState, folder: StateFolder
) -> tuple[ModelStatus | None, tuple[VersionReport, ...], str]:
    failures = logs.find_version_failures(folder.model_log, state.model)
    try:
        with management_client(state, folder) as management:
            model, registered = management.describe(state.model), management.describe_all(state.model)
    except ServingError as err:
        return None, _describe_refused(failures, registered=()), f"not ready: {err}"
    versions = tuple(
        _describe_version(each, failures.get(each.model_version), is_default=each.model_version == model.model_version)
        for each in registered
    )
    refused = _describe_refused(failures, registered=[each.model_version for each in registered])
    default = next((each for each in versions if each.is_default), None)
    if default is None or model.is_ready:
        return model, versions + refused, ""
    return model, versions + refused, f"not ready: {default.as_text().partition(': ')[2]}"


def _describe_version(status: ModelStatus, failure: VersionFailure | None, *, is_default: bool) -> VersionReport:
    """A failure that workers have got over since is no problem."""
    problem = "" if status.is_ready else "not ready" if failure is None else f"{failure.reason} ({failure.time})"
    if not status.is_ready and not status.min_workers:
        problem = "no workers wanted"
    return VersionReport(
        version=status.model_version,
        is_default=is_default,
        is_registered=True,
        ready_workers=status.ready_workers,
        wanted_workers=status.min_workers,
        problem=problem,
    )


def _describe_refused(
    failures: Mapping[str, VersionFailure], *, registered: Collection[str]
) -> tuple[VersionReport, ...]:
    """A version that loaded after its failure was unregistered by someone's will, and is nothing to report."""
    return tuple(
        VersionReport(
            version, False, False, 0, 0, f"not registered; its last failure was: {failure.reason} ({failure.time})"
        )
        for version, failure in failures.items()
        if version not in registered and not failure.has_loaded_since
    )


def _describe_worker(worker: Worker) -> WorkerReport:
    return WorkerReport(
        id=worker.id,
        status=worker.status,
        pid=worker.pid,
        memory_bytes=_memory_of(worker.pid),
        device=f"GPU ({worker.gpu_usage})" if worker.gpu else "CPU",
    )


def _memory_of(pid: int) -> int | None:
    if pid <= 0:  # not told yet
        return None
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None


def _format_duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
