"""Runs Envoy and all TorchServes as one unit, until a signal comes: `imgcls serve --gateway`.

    start:  archive into the store ─► table ─► Envoy's files, validated ─► Envoy ─► servers ─► ready
    run:    what dies is started again, what differs from the table is mended, and whether all is ready is told
    stop:   not ready ─► what is in flight is answered ─► Envoy ─► servers

Everything it starts dies with it, should it be killed; started again, it restores what the table says.
"""

import json
import logging
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from imgcls.archive.contents import read_contents
from imgcls.errors import ImgclsError
from imgcls.files import write_atomic
from imgcls.gateway import access_log, envoy
from imgcls.gateway.access import watched_files
from imgcls.gateway.errors import EnvoyError, GatewayError
from imgcls.gateway.folder import GatewayFolder, SupervisorState
from imgcls.gateway.gateway import Gateway
from imgcls.gateway.health import Board, BoardServer, Judgement, judge
from imgcls.gateway.keeper import FIRST_BACK_OFF_S, LONGEST_BACK_OFF_S, Keeper
from imgcls.gateway.listeners import bootstrap
from imgcls.gateway.scaler import Scaler
from imgcls.gateway.settings import Settings
from imgcls.gateway.store import Store
from imgcls.gateway.table import Model, Table, Version, exclusive
from imgcls.serving import processes, server
from imgcls.serving.config import read_config
from imgcls.serving.errors import PreflightError
from imgcls.serving.ports import find_holder, free_port, is_free
from imgcls.serving.server import ServeOptions
from imgcls.serving.trust import find_trust_file
from model.cores import count_cores

log = logging.getLogger(__name__)

APPLY_EVERY_S = 10.0
ENVOY_START_S = 15.0


@dataclass(frozen=True)
class SuperviseOptions:
    """What to serve behind a gateway, and how."""

    serve: ServeOptions
    settings: Settings
    wish: Callable[[Store, Path | None], Table] | None = None  # what fills an empty table, instead of serve.archive


class Supervisor:
    """One gateway with its servers; `run` is its whole life."""

    def __init__(self, options: SuperviseOptions) -> None:
        self._options = options
        self._settings = options.settings
        self._folder = GatewayFolder(options.serve.state)
        self._id = uuid.uuid4().hex
        self._board = Board()
        self._is_draining = False
        self._envoy: subprocess.Popen[bytes] | None = None
        self._envoy_back_off_s = FIRST_BACK_OFF_S
        self._envoy_started_s = 0.0
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
            self._clear_up()
            trust = find_trust_file(self._options.serve.trust, config=self._options.serve.config)
            self._fill_table(trust)
            sockets = folder.make_sockets()
            self._gateway = Gateway(folder, folder.paths(sockets), self._settings)
            self._port = self._choose_port()
            state = SupervisorState(
                gateway_id=self._id,
                pid=os.getpid(),
                created_s=psutil.Process().create_time(),
                url=self._url(),
                sockets=sockets,
                settings=self._settings,
                trust=trust,
            )
            folder.write(state)
            with self._everything_ended(sockets):
                self._start_all()
                self._scaler.start()
                folder.write(state.model_copy(update={"has_started": True}))
                on_ready(state)
                while True:
                    self._tick()
                    time.sleep(self._settings.readiness.poll_s)

    def _clear_up(self) -> None:
        """Ends what a killed supervisor has left."""
        left = self._folder.read()
        if left is None:
            return
        for process in processes.find_marked(left.gateway_id):
            with suppress(psutil.Error):
                process.kill()
        for member in Gateway.of(self._folder, left).members:
            server.stop(member.folder)
        self._folder.forget(left.sockets)

    def _fill_table(self, trust: Path | None) -> None:
        """Adds the archive's model to the table, unless it is there from before: then the table holds."""
        if self._options.wish is not None:
            if self._folder.table.read().models:
                log.info("the table of before holds; imgcls apply brings it to the wish")
                return
            wanted = self._options.wish(self._folder.store, trust)
            self._folder.table.change(lambda table: table.model_copy(update={"models": wanted.models}))
            return
        stored = self._folder.store.add(self._options.serve.archive, trust=trust)
        known = self._folder.table.read().find(stored.name)
        if known is not None:
            row = known.find(stored.version)
            if row is None or row.tree_sha256 != stored.tree_sha256 or row.weight == 0:
                log.warning(
                    "the table of before holds: %s is served, not %s %s; roll it with imgcls rollout start, or begin "
                    "anew by removing %s",
                    ", ".join(f"{row.version} ({row.weight:g} %)" for row in known.versions if row.weight),
                    stored.version,
                    stored.tree_sha256[:12],
                    self._folder.table.path,
                )
            return
        row = Version(
            version=stored.version,
            archive=stored.file,
            tree_sha256=stored.tree_sha256,
            workers=self._options.serve.workers or _default_workers(self._options.serve),
            weight=100,
        )
        model = Model(name=stored.name, default=stored.version, versions=(row,))
        self._folder.table.change(lambda table: table.with_model(model))

    def _choose_port(self) -> int:
        port = self._settings.listen.port
        if port == 0:
            return free_port()
        if not is_free(port):
            raise PreflightError(
                f"listen.port is {port}, which {find_holder(port)} holds; name another with --gateway-port"
            )
        return port

    def _url(self) -> str:
        host = self._settings.listen.host
        shown = "127.0.0.1" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
        return f"{'https' if self._settings.listen.tls else 'http'}://{shown}:{self._port}"

    def _start_all(self) -> None:
        paths = self._gateway.paths
        self._gateway.apply()
        write_atomic(paths.bootstrap, json.dumps(bootstrap(self._settings, paths, port=self._port), indent=1))
        binary = envoy.find_envoy()
        envoy.validate(binary, paths.bootstrap)
        self._board_server = BoardServer(paths.supervisor_socket, self._board)
        self._command = envoy.command(binary, paths.bootstrap, drain_s=self._settings.drain_timeout_s)
        self._start_envoy()
        self._keepers = [
            Keeper(member, self._gateway, self._options_of(number), on_change=self._ask_to_apply)
            for number, member in enumerate(self._gateway.members)
        ]
        for keeper in self._keepers:
            keeper.start()
        self._scaler = Scaler(self._gateway, timeout_s=self._options.serve.timeout_s)
        while not (self._board.judgement.is_ready and all(keeper.has_been_up.is_set() for keeper in self._keepers)):
            for keeper in self._keepers:
                if keeper.failure is not None and not keeper.has_been_up.is_set():
                    raise keeper.failure
            self._tick()
            time.sleep(0.1)

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
        self._keep_envoy()
        table = self._gateway.table()
        due = time.monotonic() - self._applied_s > APPLY_EVERY_S
        stamps = [_stamp(path) for path in watched_files(self._settings)]
        if self._must_apply or due or table.generation != self._applied_generation or stamps != self._stamps:
            self._stamps = stamps
            self._apply(table)
        self._judge(table)
        access_log.rotate(self._gateway.paths, self._gateway.admin)

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

    def _start_envoy(self) -> None:
        paths = self._gateway.paths
        paths.admin_socket.unlink(missing_ok=True)
        self._envoy_started_s = time.monotonic()
        self._envoy = processes.launch(
            self._command,
            server_id=self._id,
            folder=paths.folder,
            log=paths.console_log,
            environment=dict(os.environ),
            dies_with_parent=True,
        )
        try:
            envoy.wait_for(
                lambda: self._gateway.admin.is_live() or self._envoy_has_ended(),
                timeout_s=ENVOY_START_S,
                what="Envoy starts",
            )
        finally:
            if self._envoy_has_ended():
                raise EnvoyError(f"Envoy has ended at once; see {paths.console_log}")

    def _envoy_has_ended(self) -> bool:
        return self._envoy is None or self._envoy.poll() is not None

    def _keep_envoy(self) -> None:
        if not self._envoy_has_ended():
            if time.monotonic() - self._envoy_started_s > LONGEST_BACK_OFF_S:
                self._envoy_back_off_s = FIRST_BACK_OFF_S
            return
        log.warning("Envoy has ended with status %s; starting it again", self._envoy and self._envoy.returncode)
        try:
            self._start_envoy()
        except EnvoyError as err:
            log.error("%s; trying again in %.1f s", err, self._envoy_back_off_s)
            time.sleep(self._envoy_back_off_s)
            self._envoy_back_off_s = min(LONGEST_BACK_OFF_S, 2 * self._envoy_back_off_s)

    @contextmanager
    def _everything_ended(self, sockets: Path) -> Iterator[None]:
        try:
            yield
        finally:
            if hasattr(self, "_scaler"):
                self._scaler.stop()
            self._drain()
            self._end_envoy()
            for keeper in getattr(self, "_keepers", ()):
                keeper.stop()
            if hasattr(self, "_board_server"):
                self._board_server.close()
            self._folder.forget(sockets)

    def _drain(self) -> None:
        """Says that it is not ready, and waits until what is in flight is answered."""
        if self._envoy_has_ended():
            return
        self._is_draining = True
        self._board.judgement = Judgement(False, ("it is being stopped",))
        time.sleep(self._settings.drain_notice_s)
        try:
            self._gateway.admin.drain()
            envoy.wait_for(
                lambda: not sum(self._gateway.admin.stats(r"^http\.public\.downstream_rq_active$").values()),
                timeout_s=self._settings.drain_timeout_s,
                what="what is in flight is answered",
            )
        except GatewayError as err:
            log.warning("%s", err)

    def _end_envoy(self) -> None:
        if self._envoy is None:
            return
        self._envoy.terminate()
        try:
            self._envoy.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._envoy.kill()
            self._envoy.wait()


def _stamp(path: Path) -> tuple[int, int] | None:
    """Returns what changes with a file, as keys are: None while it is not there."""
    try:
        status = path.stat()
        return status.st_ino, status.st_mtime_ns
    except OSError:
        return None


def _default_workers(options: ServeOptions) -> int:
    """Returns how many workers TorchServe would start: the archive's minWorkers, the configuration's, or one a core."""
    wanted = read_contents(options.archive).model_config.get("minWorkers")
    configured = read_config(options.config).get("default_workers_per_model", "")
    return int(wanted or (configured if configured.isdigit() else 0) or count_cores())
