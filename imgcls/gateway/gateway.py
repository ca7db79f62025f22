"""A running gateway as whoever changes it sees it: the supervisor, a rollout, `imgcls scale`, `imgcls apply`."""

import fcntl
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from imgcls.gateway.apply import EnvoyFiles
from imgcls.gateway.clusters import Endpoint
from imgcls.gateway.envoy import Admin
from imgcls.gateway.errors import TableError
from imgcls.gateway.folder import GatewayFolder, SupervisorState
from imgcls.gateway.listeners import EnvoyPaths
from imgcls.gateway.member import Member
from imgcls.gateway.settings import Settings
from imgcls.gateway.table import Table

log = logging.getLogger(__name__)


class Gateway:
    """Table, servers and Envoy of one state folder.

    Args:
        folder: the gateway's.
        paths: Envoy's files and sockets.
        settings: what it was started with.
    """

    def __init__(self, folder: GatewayFolder, paths: EnvoyPaths, settings: Settings) -> None:
        self.folder = folder
        self.paths = paths
        self.settings = settings
        self.admin = Admin(paths.admin_socket)
        self.members = tuple(
            Member(server.name, folder.server(server.name, is_first=number == 0), folder.store)
            for number, server in enumerate(settings.servers)
        )
        self._files = EnvoyFiles(paths, settings)
        self._known: Table | None = None

    @classmethod
    def of(cls, folder: GatewayFolder, state: SupervisorState) -> "Gateway":
        """Returns the gateway of a supervisor."""
        return cls(folder, folder.paths(state.sockets), state.settings)

    def table(self) -> Table:
        """Returns the table as it is now.

        Raises:
            TableError: its file is broken, or gone: without it no route would lead anywhere.
        """
        return self.folder.table.read(is_needed=True)

    def known_table(self) -> Table:
        """Returns the table, or as it was when it could last be read: a file broken by hand must not end what serves.

        Raises:
            TableError: it could never be read.
        """
        try:
            self._known = self.table()
        except TableError as err:
            if self._known is None:
                raise
            log.warning("the table of before holds: %s", err)
        return self._known

    def change(self, change: Callable[[Table], Table]) -> None:
        """Changes the table, and brings it into force at Envoy; TorchServe is not touched.

        Raises:
            TableError: the change would leave it broken.
            EnvoyError: Envoy runs and does not follow; the table is changed, and the supervisor tries again.
        """
        self.folder.table.change(change)
        self.apply()

    def apply(self) -> None:
        """Brings the table and the servers' addresses into force at Envoy."""
        with self._lock():
            self._files.apply(self.table(), self.endpoints())

    def endpoints(self) -> list[Endpoint]:
        """Returns where the servers that are up take requests."""
        return [endpoint for member in self.members if (endpoint := member.endpoint()) is not None]

    def members_of(self, servers: tuple[str, ...] | None) -> list[Member]:
        """Returns the servers with these names; all of them for None."""
        return [member for member in self.members if servers is None or member.name in servers]

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with (self.folder.path / "envoy.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
