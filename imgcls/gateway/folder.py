"""The gateway's part of a server's state folder.

.imgcls/serve/
  …                       the first server's own files (imgcls.serving.state)
  servers/NAME/           those of the further ones
  gateway/
    supervisor.json       who supervises, and where the gateway is reached; removed at stop
    table.json            the wish: versions, workers, weights
    store/                the archives that table and history name
    envoy/                what Envoy watches, and its logs
    rollout/              state, history and audit log of rollouts
    supervisor.log        and supervisor.log.1, of the one before
"""

import os
import shutil
import tempfile
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from imgcls.files import write_atomic
from imgcls.gateway.errors import GatewayError, NoGatewayError
from imgcls.gateway.listeners import EnvoyPaths
from imgcls.gateway.settings import Settings
from imgcls.gateway.store import Store
from imgcls.gateway.table import TABLE_FILE, TableFile
from imgcls.serving.state import LONGEST_TEMPORARY_PATH_BYTES, StateFolder, find_created


class SupervisorState(BaseModel):
    """The process that keeps a gateway and its servers alive."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    gateway_id: str  # stands in the environment of each of its processes
    pid: int
    created_s: float
    started: str | None = None  # as in ServerState
    url: str  # the public one
    sockets: Path
    settings: Settings
    trust: Path | None  # the trust file that holds for every archive
    has_started: bool = False  # it was ready once


class GatewayFolder:
    """Where everything of one gateway lies."""

    def __init__(self, state: Path) -> None:
        self.state = state.absolute()
        self.path = self.state / "gateway"
        self.supervisor_file = self.path / "supervisor.json"
        self.supervisor_log = self.path / "supervisor.log"
        self.lock_file = self.path / "lock"
        self.table = TableFile(self.path / TABLE_FILE)
        self.store = Store(self.path / "store")
        self.envoy = self.path / "envoy"
        self.rollout = self.path / "rollout"

    def server(self, name: str, *, is_first: bool) -> StateFolder:
        """Returns the state folder of one server."""
        return StateFolder(self.state if is_first else self.state / "servers" / name)

    def prepare(self) -> None:
        """Makes the folders; only their owner may look into them, as there are tokens in Envoy's files."""
        for folder in (self.path, self.store.folder, self.envoy, self.rollout):
            folder.mkdir(parents=True, exist_ok=True)
        self.path.chmod(0o700)

    def make_sockets(self) -> Path:
        """Makes the folder of the Unix sockets: here, or a short path where this one is too deep."""
        inside = self.path / "run"
        if len(os.fsencode(inside)) > LONGEST_TEMPORARY_PATH_BYTES:
            return Path(tempfile.mkdtemp(prefix="imgcls-"))
        shutil.rmtree(inside, ignore_errors=True)
        inside.mkdir()
        return inside

    def paths(self, sockets: Path) -> EnvoyPaths:
        """Returns Envoy's paths."""
        return EnvoyPaths(self.envoy, sockets)

    def write(self, state: SupervisorState) -> None:
        """Writes supervisor.json."""
        write_atomic(self.supervisor_file, state.model_dump_json(indent=2) + "\n")

    def read(self) -> SupervisorState | None:
        """Returns the recorded supervisor, alive or not; None when there is none.

        Raises:
            GatewayError: supervisor.json is broken.
        """
        try:
            return SupervisorState.model_validate_json(self.supervisor_file.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValidationError) as err:
            raise GatewayError(
                f"{self.supervisor_file}: cannot be read ({' '.join(str(err).split())[:200]}); end its process if one "
                "runs, and remove the file"
            ) from err

    def read_running(self) -> SupervisorState:
        """Returns the recorded supervisor, which is alive.

        Raises:
            NoGatewayError: there is none, or its process is gone.
            GatewayError: supervisor.json is broken.
        """
        state = self.read()
        if state is None:
            raise NoGatewayError(
                f"no gateway runs with the state folder {self.state}; start one with imgcls serve --gateway"
            )
        if find_supervisor(state) is None:
            raise NoGatewayError(
                f"the gateway of {self.state} is gone: its supervisor {state.pid} has ended; see "
                f"{self.supervisor_log}, and start it again with imgcls serve --gateway"
            )
        return state

    def forget(self, sockets: Path) -> None:
        """Removes what a stopped gateway leaves, but the table, the store, the history and the logs."""
        shutil.rmtree(sockets, ignore_errors=True)
        self.supervisor_file.unlink(missing_ok=True)


def find_supervisor(state: SupervisorState) -> psutil.Process | None:
    """Returns the supervisor's process, None when it has ended; never another process that got its pid."""
    return find_created(state.pid, created_s=state.created_s, started=state.started)
