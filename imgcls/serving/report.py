"""What `imgcls status` tells: the server, its workers and their processes, as they are now."""

import time
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from imgcls.errors import ServingError
from imgcls.serving.access import management_client
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
class ServerReport:
    """One server."""

    state: ServerState
    is_running: bool
    uptime_s: float
    model: ModelStatus | None
    workers: tuple[WorkerReport, ...]
    problem: str

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
    model, problem = _describe_model(state, folder)
    return ServerReport(
        state=state,
        is_running=find_process(state) is not None,
        uptime_s=time.time() - state.created_s,
        model=model,
        workers=tuple(_describe_worker(worker) for worker in model.workers) if model else (),
        problem=problem,
    )


def _describe_model(state: ServerState, folder: StateFolder) -> tuple[ModelStatus | None, str]:
    try:
        with management_client(state, folder) as management:
            model = management.describe(state.model)
    except ServingError as err:
        return None, f"not ready: {err}"
    if not model.is_ready:
        return model, f"not ready: {model.ready_workers} of {model.min_workers} workers READY"
    return model, ""


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
