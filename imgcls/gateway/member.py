"""One TorchServe behind the gateway: what it has, and the steps that bring it nearer to the table."""

import fcntl
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from imgcls.archive.contents import read_contents
from imgcls.archive.golden import read_golden
from imgcls.client import Client
from imgcls.errors import ArchiveError, ServingError
from imgcls.files import write_atomic
from imgcls.gateway.clusters import Endpoint
from imgcls.gateway.errors import BusyError
from imgcls.gateway.store import Store
from imgcls.gateway.table import Model, Version
from imgcls.serving.access import inference_token, management_client
from imgcls.serving.doctor import check_room_for
from imgcls.serving.errors import AlreadyRegisteredError, NotRegisteredError, NotRunningError, PreflightError
from imgcls.serving.management import Management, ModelStatus
from imgcls.serving.ports import LOOPBACK
from imgcls.serving.readiness import LogWatch, check_golden, wait_for_workers
from imgcls.serving.server import check_alive
from imgcls.serving.state import ServerState, StateFolder, find_process

GOLDEN_TIMEOUT_S = 30.0
LOCK_POLL_S = 0.05
Progress = Callable[[str], None]


class Member:
    """One server by name; it may be down at any time."""

    def __init__(self, name: str, folder: StateFolder, store: Store) -> None:
        self.name = name
        self.folder = folder
        self._store = store
        self._up_file = folder.path / "up"

    @contextmanager
    def lock(self, *, timeout_s: float = math.inf, on_progress: Progress = lambda text: None) -> Iterator[None]:
        """Waits for its turn to load or unload versions here; read the table after it, not before.

        Raises:
            BusyError: somebody else loads, or drains, for longer than `timeout_s`.
        """
        deadline_s, is_told = time.monotonic() + timeout_s, False
        with (self.folder.path / "models.lock").open("w") as file:
            while not _take_lock(file):
                if not is_told:
                    on_progress(f"{self.name}: waiting for a rollout, an apply or a scale that changes its versions")
                    is_told = True
                if time.monotonic() > deadline_s:
                    raise BusyError(
                        f"{self.name}: another command, or the gateway itself, changes its versions for longer than "
                        f"{timeout_s:.0f} s; imgcls status and imgcls rollout status tell more, and --timeout waits "
                        "longer"
                    )
                time.sleep(LOCK_POLL_S)
            yield

    @contextmanager
    def try_lock(self) -> Iterator[bool]:
        """Takes its turn if nobody else has it; yields whether it has."""
        with (self.folder.path / "models.lock").open("w") as file:
            yield _take_lock(file)

    def mark_up(self, state: ServerState) -> None:
        """Lets the server take requests."""
        write_atomic(self._up_file, state.server_id)

    def mark_down(self) -> None:
        """Takes it out of every route."""
        self._up_file.unlink(missing_ok=True)

    def is_up(self, state: ServerState) -> bool:
        """Whether this very server, not one before it, may take requests."""
        try:
            return self._up_file.read_text(encoding="utf-8") == state.server_id
        except OSError:
            return False

    def state(self) -> ServerState | None:
        """Returns the server, None while it is down."""
        state = self.folder.read()
        return state if state is not None and find_process(state) is not None else None

    def running(self) -> ServerState:
        """Returns the server.

        Raises:
            NotRunningError: it is down.
        """
        try:
            return self.folder.read_running()
        except NotRunningError as err:  # whose advice is to start it, which is the supervisor's to do
            raise NotRunningError(
                f"server {self.name} is down; the gateway starts it again, with the versions and workers of its table, "
                f"which imgcls status shows; try again then. Why it ended: {self.folder.console_log}"
            ) from err

    def endpoint(self) -> Endpoint | None:
        """Returns where it takes requests, None while it is down or starting."""
        state = self.state()
        if state is None or not self.is_up(state):
            return None
        return Endpoint(
            self.name,
            LOOPBACK,
            state.ports.inference,
            state.ports.grpc_inference,
            inference_token(state, self.folder),
            self._ready(),
        )

    def _ready(self) -> frozenset[tuple[str, str]]:
        try:
            with self.management() as management:
                found = [status for name in management.list_models() for status in management.describe_all(name)]
        except ServingError:  # it hangs, or has ended just now: the gateway's own tries tell
            return frozenset()
        return frozenset((each.model_name, each.model_version) for each in found if each.ready_workers)

    def management(self) -> Management:
        """Returns its management API.

        Raises:
            NotRunningError: it is down.
        """
        return management_client(self.running(), self.folder)

    def versions(self, name: str) -> dict[str, ModelStatus]:
        """Returns what it has of a model, by version.

        Raises:
            NotRunningError: it is down.
            ManagementError: it does not answer.
        """
        with self.management() as management:
            try:
                return {status.model_version: status for status in management.describe_all(name)}
            except NotRegisteredError:
                return {}

    def load(self, model: str, row: Version, *, timeout_s: float, on_progress: Progress = lambda text: None) -> None:
        """Registers a version unless it is there, gives it its workers, and waits until all are READY.

        Raises:
            PreflightError: the server has no room to unpack it, or its archive is gone; nothing was registered.
            NotReadyError: a worker could not load it, or not in time; what was registered is left for `unload`.
            NotRunningError: the server is down.
            ManagementError: it refused.
        """
        watch = LogWatch(self.folder, version=f"{model}_{row.version}")
        state = self.running()
        deadline_s = time.monotonic() + timeout_s
        with self.management() as management:

            def wait(workers: int | None) -> ModelStatus:
                return wait_for_workers(
                    management,
                    model,
                    version=row.version,
                    watch=watch,
                    deadline_s=deadline_s,
                    workers=workers,
                    check_alive=lambda: check_alive(state, self.folder),
                    on_progress=on_progress,
                )

            try:
                if row.version not in self.versions(model):
                    self._refuse_full_disk(row.archive, state)
                management.register(row.archive)
                wait(None)  # as many as the archive's minWorkers says, whatever is asked for
            except AlreadyRegisteredError:
                pass
            if management.describe(model, version=row.version).min_workers != row.workers:
                management.scale(model, row.workers, version=row.version)
            if row.workers:
                wait(row.workers)

    def _refuse_full_disk(self, archive: str, state: ServerState) -> None:
        """Raises PreflightError where TorchServe could not unpack an archive, whose own words do not say why."""
        try:
            contents = read_contents(self._store.path(archive))
        except ArchiveError as err:
            raise PreflightError(str(err)) from err
        for finding in check_room_for(contents, state.temporary):
            raise PreflightError(f"{finding.detail}: make room, for instance by imgcls rollout prune, and try again")

    def scale(self, model: str, row: Version) -> None:
        """Gives a version that is there its number of workers, and does not wait for them.

        Raises:
            ManagementError: the server refused, or does not answer.
        """
        with self.management() as management:
            management.scale(model, row.workers, version=row.version)

    def unload(self, model: str, version: str) -> None:
        """Forgets a version with its workers, if it is there; whoever calls has seen to it that nothing is in flight.

        Raises:
            ManagementError: it is the default version of several, or the server does not answer.
        """
        with self.management() as management:
            try:
                management.unregister(model, version)
            except NotRegisteredError:
                return

    def set_default(self, model: Model) -> None:
        """Makes the table's default version TorchServe's own."""
        with self.management() as management:
            if management.describe(model.name).model_version != model.default:
                management.set_default(model.name, model.default)

    def check_golden(self, model: str, row: Version) -> None:
        """Asks the golden inputs of a version's archive over HTTP, past the gateway.

        Raises:
            NotReadyError: an answer is wrong, or there is none.
        """
        archive = self._store.path(row.archive)
        with self.client(model, row.version) as client:
            check_golden(client, read_golden(archive), where=Path(archive.name))

    def client(self, model: str, version: str) -> Client:
        """Returns a client of one version, past the gateway."""
        state = self.running()
        token = inference_token(state, self.folder)
        return Client(
            state.inference_url, token=token, model=model, version=version, timeout_s=GOLDEN_TIMEOUT_S, retries=0
        )

    def is_idle(self, model: str, version: str) -> bool:
        """Whether no request waits for a version's workers; a server that is down has none."""
        try:
            status = self.versions(model).get(version)
        except NotRunningError:
            return True
        return status is None or status.queue is None or status.queue.pending_requests == 0


def _take_lock(file: IO[str]) -> bool:
    """Takes a lock file if nobody has it; returns whether it did."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
