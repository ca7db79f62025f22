"""Runs Envoy and all TorchServes as one unit, until a signal comes: `imgcls serve --gateway`.

    start:  archive into the store ─► table ─► Envoy's files, validated ─► Envoy ─► servers ─► ready
    run:    what dies is started again, what differs from the table is mended, and whether all is ready is told
    stop:   not ready ─► what is in flight is answered ─► Envoy ─► servers

Everything it starts dies with it, should it be killed; started again, it restores what the table says.
"""

import logging
import os
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from imgcls.archive.trust import find_trust_file
from imgcls.errors import ImgclsError
from imgcls.gateway import access_log
from imgcls.gateway.access import watched_files
from imgcls.gateway.envoy_process import EnvoyProcess
from imgcls.gateway.first_table import Wish, fill_from_archive, fill_from_wish
from imgcls.gateway.folder import GatewayFolder, SupervisorState
from imgcls.gateway.gateway import Gateway
from imgcls.gateway.health import Board, BoardServer, Judgement, judge
from imgcls.gateway.keeper import Keeper
from imgcls.gateway.leftovers import end_leftovers
from imgcls.gateway.scaler import Scaler
from imgcls.gateway.settings import Settings
from imgcls.gateway.table import Table, exclusive
from imgcls.serving.server import ServeOptions
from imgcls.serving.state import read_start

log = logging.getLogger(__name__)

APPLY_EVERY_S = 10.0


@dataclass(frozen=True)
class SuperviseOptions:
    """What to serve behind a gateway, and how."""

    serve: ServeOptions
    settings: Settings
    wish: Wish | None = None  # what fills an empty table, instead of serve.archive


class Supervisor:
    """One gateway with its servers; `run` is its whole life."""

    def __init__(self, options: SuperviseOptions) -> None:
        self._options = options
        self._settings = options.settings
        self._folder = GatewayFolder(options.serve.state)
        self._id = uuid.uuid4().hex
        self._board = Board()
        self._is_draining = False
        self._applied_s = 0.0
        self._applied_generation = -1
        self._must_apply = True
        self._stamps: list[tuple[int, int] | None] = []

    def run(self, *, on_ready: Callable[[SupervisorState], None]) -> None:
        """Starts everything, tells once it is ready, and stays until an exception comes, as of a signal.

        Raises:
            ImgclsError: it cannot be started; nothing is left running.
        """
        folder = self._folder
        folder.server("", is_first=True).claim()
        folder.prepare()
        with exclusive(folder.lock_file, busy=f"{folder.state}: a gateway runs here already; see imgcls status"):
            if (left := folder.read()) is not None:
                end_leftovers(folder, left)
            trust = find_trust_file(self._options.serve.trust, config=self._options.serve.config)
            if self._options.wish is not None:
                fill_from_wish(folder, self._options.wish, trust=trust)
            else:
                fill_from_archive(folder, self._options.serve, trust=trust)
            sockets = folder.make_sockets()
            self._gateway = Gateway(folder, folder.paths(sockets), self._settings)
            self._envoy = EnvoyProcess(self._gateway, marker=self._id)
            state = SupervisorState(
                gateway_id=self._id,
                pid=os.getpid(),
                created_s=psutil.Process().create_time(),
                started=read_start(os.getpid()),
                url=self._envoy.url,
                sockets=sockets,
                settings=self._settings,
                trust=trust,
            )
            folder.write(state)
            with ExitStack() as ends:  # in the opposite order
                ends.callback(folder.forget, sockets)
                self._start(ends)
                folder.write(state.model_copy(update={"has_started": True}))
                on_ready(state)
                while True:
                    self._tick()
                    time.sleep(self._settings.readiness.poll_s)

    def _start(self, ends: ExitStack) -> None:
        """Starts everything, and returns once it is ready; how each part ends is put on the stack before it starts."""
        self._gateway.apply()
        ends.callback(BoardServer(self._gateway.paths.supervisor_socket, self._board).close)
        self._keepers = [
            Keeper(member, self._gateway, self._options_of(number), on_change=self._ask_to_apply)
            for number, member in enumerate(self._gateway.members)
        ]
        for keeper in self._keepers:
            ends.callback(keeper.stop)
        ends.callback(self._envoy.end)
        ends.callback(self._drain)
        self._envoy.start()
        for keeper in self._keepers:
            keeper.start()
        while not (self._board.judgement.is_ready and all(keeper.has_been_up.is_set() for keeper in self._keepers)):
            for keeper in self._keepers:
                if keeper.failure is not None and not keeper.has_been_up.is_set():
                    raise keeper.failure
            self._tick()
            time.sleep(0.1)
        scaler = Scaler(self._gateway, timeout_s=self._options.serve.timeout_s)
        ends.callback(scaler.stop)
        scaler.start()

    def _options_of(self, number: int) -> ServeOptions:
        """Returns how one server is started; the ports of the further ones are free ones."""
        member = self._gateway.members[number]
        return replace(
            self._options.serve,
            state=member.folder.path,
            port=self._options.serve.port if number == 0 else 0,
            dies_with_parent=True,
            model_api=True,
            gpus=self._settings.servers[number].gpus,
        )

    def _ask_to_apply(self) -> None:
        self._must_apply = True

    def _tick(self) -> None:
        self._envoy.keep()
        table = self._gateway.known_table()
        due = time.monotonic() - self._applied_s > APPLY_EVERY_S
        stamps = [_stamp(path) for path in watched_files(self._settings)]
        if self._must_apply or due or table.generation != self._applied_generation or stamps != self._stamps:
            self._stamps = stamps
            self._apply(table)
        self._judge(table)
        try:
            access_log.rotate(self._gateway.paths, self._gateway.admin)
        except (ImgclsError, OSError) as err:  # Envoy has ended just now, or the disk is full
            log.warning("the access log is not rotated: %s", err)

    def _apply(self, table: Table) -> None:
        self._must_apply = False
        try:
            self._gateway.apply()
            self._applied_s, self._applied_generation = time.monotonic(), table.generation
        except (ImgclsError, OSError) as err:
            log.warning("the table is not in force at Envoy: %s", err)
            self._must_apply = True

    def _judge(self, table: Table) -> None:
        before = self._board.judgement
        judgement = judge(
            table,
            [seen for keeper in self._keepers for seen in keeper.seen],
            down={keeper.member.name: keeper.problem for keeper in self._keepers if keeper.problem},
            now_s=time.monotonic(),
            golden_max_age_s=self._settings.readiness.golden_max_age_s,
            is_draining=self._is_draining,
        )
        self._board.judgement = judgement
        if judgement.is_ready != before.is_ready:
            log.info("%s", "ready" if judgement.is_ready else f"not ready: {'; '.join(judgement.reasons)}")

    def _drain(self) -> None:
        """Says that it is not ready, and waits until what is in flight is answered."""
        if self._envoy.has_ended:
            return
        self._is_draining = True
        self._board.judgement = Judgement(False, ("it is being stopped",))
        time.sleep(self._settings.drain_notice_s)
        self._envoy.drain()


def _stamp(path: Path) -> tuple[int, int] | None:
    """Returns what changes with a file, as keys are: None while it is not there."""
    try:
        status = path.stat()
        return status.st_ino, status.st_mtime_ns
    except OSError:
        return None
