"""Brings a gateway to a wish, in an order in which no request is lost and nothing falls under its minimum.

    archives into the store ─► load beside (READY, golden answers right) ─► move requests ─► drain ─► unload ─► fewer
    workers

Nothing of a wish is made where a version cannot be loaded: what was loaded is taken away, and requests stay.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from imgcls.desired.difference import (
    Change,
    Held,
    find_changes,
    find_conflict,
    on_fewer_servers,
    placements,
    with_additions,
    with_requests_moved,
    with_workers_as_they_are,
    without_idle,
)
from imgcls.desired.file import Desired, read_desired, store_archives, to_table
from imgcls.errors import ImgclsError, UsageError
from imgcls.gateway.drain import DRAIN_TIMEOUT_S, drained, wait_until_idle
from imgcls.gateway.errors import BusyError, EnvoyError, GatewayError
from imgcls.gateway.folder import GatewayFolder
from imgcls.gateway.gateway import Gateway
from imgcls.gateway.member import Member, Progress
from imgcls.gateway.scaling import scale_member
from imgcls.gateway.table import Model, Table, Version, exclusive
from imgcls.rollout.rollouts import BUSY
from imgcls.rollout.state import RolloutFiles


@dataclass(frozen=True)
class Difference:
    """What a wish would change."""

    file: Path
    now: Table
    wanted: Table
    changes: Sequence[Change]


class Applier:
    """Applies wishes to one running gateway.

    Args:
        folder: the gateway's.
        timeout_s: for each version to be READY on a server.
        on_progress: told what is done.
    """

    def __init__(self, folder: GatewayFolder, *, timeout_s: float, on_progress: Progress = lambda text: None) -> None:
        self._supervisor = folder.read_running()
        self._gateway = Gateway.of(folder, self._supervisor)
        self._rollouts = RolloutFiles(folder.rollout)
        self._timeout_s = timeout_s
        self._tell = on_progress
        self._servers = tuple(member.name for member in self._gateway.members)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps rollouts and other applies out.

        Raises:
            BusyError: one is under way, or unfinished.
        """
        with exclusive(self._rollouts.lock_file, busy=BUSY):
            last = self._rollouts.read()
            if last is not None and not last.is_finished:
                raise BusyError(
                    f"the rollout of {last.source} is {last.status}; end it with imgcls rollout promote or imgcls "
                    "rollout abort before imgcls apply"
                )
            yield

    def compare(self, file: Path, *, copies: bool) -> Difference:
        """Reads a wish, verifies its archives, and returns what it would change.

        Args:
            file: desired.yaml.
            copies: the archives into the store; False: only looks, and changes nothing.

        Raises:
            UsageError: the file cannot be used.
            ArchiveError: an archive is not to be trusted, or damaged.
            GatewayError: there is no room for an archive.
        """
        desired: Desired = read_desired(file)
        desired.check_servers(self._servers, file=file)
        store = self._gateway.folder.store
        wanted = to_table(desired, store_archives(desired, store, trust=self._supervisor.trust, copies=copies))
        now = self._gateway.table()
        wanted = with_workers_as_they_are(wanted, now)
        if conflict := find_conflict(now, wanted):
            raise UsageError(f"{file}: {conflict}")
        return Difference(file, now, wanted, find_changes(now, wanted, self._held(now, wanted)))

    def make(self, difference: Difference) -> None:
        """Makes what `compare` has found; the caller holds `alone`.

        Raises:
            GatewayError: a version cannot be loaded; everything is as it was.
            ServingError: a server or Envoy does not follow; running it again goes on from there.
        """
        now, wanted = difference.now, difference.wanted
        self._load(now, wanted)
        self._move(wanted)
        self._take_away(wanted)
        self._finish(wanted)

    def _held(self, now: Table, wanted: Table) -> Held:
        """Returns what the servers have; one that is down gets everything from the table when it starts."""
        names = {model.name for model in (*now.models, *wanted.models)}
        return {
            member.name: {
                name: {version: status.min_workers for version, status in member.versions(name).items()}
                for name in names
            }
            for member in self._gateway.members
            if member.state() is not None
        }

    def _load(self, now: Table, wanted: Table) -> None:
        """Loads beside what is there, until all workers are READY and answer right."""
        added = placements(wanted, self._servers) - placements(now, self._servers)
        larger = with_additions(now, wanted)
        try:
            with self._locks():  # before the table: or the supervisor would load it at the same time
                self._gateway.change(lambda table: _like(table, larger))
                for member in self._gateway.members:
                    for model, row in _rows_on(wanted, member):
                        known = larger.find(model.name)
                        full = (known.find(row.version) if known else None) or row
                        self._scale(member, model.name, full)
                        if (model.name, row.version, member.name) in added:
                            member.check_golden(model.name, full)
        except BaseException as err:
            self._take_back(now, added)
            if isinstance(err, ImgclsError):
                raise GatewayError(f"nothing was changed: {err}") from err
            raise

    def _take_back(self, now: Table, added: set[tuple[str, str, str]]) -> None:
        self._tell("taking back what was loaded")
        with self._locks():
            with suppress(EnvoyError):  # the supervisor tries again
                self._gateway.change(lambda table: _like(table, now))
            for member in self._gateway.members:
                if member.state() is None:  # starts without it
                    continue
                for model, version, server in sorted(added):
                    if server == member.name:
                        member.unload(model, version)
                for known, row in _rows_on(now, member):
                    self._scale(member, known.name, row)

    def _move(self, wanted: Table) -> None:
        """Gives requests to those versions that shall have them; gRPC asks TorchServe's default version."""
        self._tell("moving requests")
        with self._locks():
            self._gateway.change(lambda table: with_requests_moved(table, wanted))
            for member in self._gateway.members:
                for model in wanted.models if member.state() is not None else ():
                    here = [row.version for each, row in _rows_on(wanted, member) if each.name == model.name]
                    if here:  # where it has not the default one, it must let go of what may be taken away
                        default = model.default if model.default in here else here[0]
                        member.set_default(model.model_copy(update={"default": default}))

    def _take_away(self, wanted: Table) -> None:
        """Unloads what is not wished, once it has answered everything."""
        keep = placements(wanted, self._servers)
        gone = [
            (member, name, version)
            for member in self._gateway.members
            for name, versions in self._held(self._gateway.table(), wanted).get(member.name, {}).items()
            for version in versions
            if (name, version, member.name) not in keep
        ]
        shrunk = [entry for entry in gone if (model := wanted.find(entry[1])) and model.find(entry[2])]
        idle = [entry for entry in gone if entry not in shrunk]
        for member, name, version in idle:
            self._tell(f"{member.name}: draining {name} {version}")
            if not wait_until_idle(self._gateway, member, name, version, timeout_s=DRAIN_TIMEOUT_S):
                self._tell(f"{member.name}: {name} {version} has not answered everything in {DRAIN_TIMEOUT_S:g} s")
        with self._locks():
            self._gateway.change(lambda table: without_idle(table, wanted))
            for member, name, version in idle:
                self._tell(f"{member.name}: unloading {name} {version}")
                member.unload(name, version)
            for member, name, version in shrunk:
                self._leave_server(member, name, version)

    def _leave_server(self, member: Member, name: str, version: str) -> None:
        """Unloads a version from one server, while others have it."""
        self._tell(f"{member.name}: draining and unloading {name} {version}")
        with drained(self._gateway, member, name, version):
            self._gateway.change(
                lambda table: on_fewer_servers(
                    table, model=name, version=version, server=member.name, servers=self._servers
                )
            )
            member.unload(name, version)

    def _finish(self, wanted: Table) -> None:
        """Takes workers away that are too many."""
        with self._locks():
            self._gateway.change(lambda table: _like(table, wanted))
            for member in self._gateway.members:
                for model, row in _rows_on(wanted, member) if member.state() is not None else ():
                    self._scale(member, model.name, row)

    def _scale(self, member: Member, model: str, row: Version) -> None:
        def tell(text: str) -> None:
            self._tell(f"{member.name}: {model} {row.version}: {text}")

        scale_member(self._gateway, member, model, row, timeout_s=self._timeout_s, on_progress=tell)

    @contextmanager
    def _locks(self) -> Iterator[None]:
        with ExitStack() as locks:
            for member in self._gateway.members:
                locks.enter_context(member.lock(on_progress=self._tell))
            yield


def _rows_on(table: Table, member: Member) -> list[tuple[Model, Version]]:
    """Returns the versions that a server shall have."""
    return [
        (model, row)
        for model in table.models
        for row in model.versions
        if row.servers is None or member.name in row.servers
    ]


def _like(table: Table, wanted: Table) -> Table:
    return table.model_copy(update={"models": wanted.models})
