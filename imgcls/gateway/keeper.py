"""Keeps one TorchServe alive: starts it, gives it what the table says, looks at it, and starts it again when it dies.

One thread a server, which lives as long as the supervisor: the kernel ends a Java process together with the thread that
started it, so nothing is left when the supervisor is killed.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from imgcls.errors import ClientError, ImgclsError
from imgcls.gateway.gateway import Gateway
from imgcls.gateway.health import Golden, Seen
from imgcls.gateway.member import Member
from imgcls.gateway.reconcile import first_version, reconcile
from imgcls.gateway.table import Version
from imgcls.serving import logs, server
from imgcls.serving.errors import ManagementError, NotReadyError
from imgcls.serving.logs import VersionFailure
from imgcls.serving.management import ModelStatus
from imgcls.serving.server import ServeOptions
from imgcls.serving.state import ServerState, find_process

log = logging.getLogger(__name__)

FIRST_BACK_OFF_S = 0.5
LONGEST_BACK_OFF_S = 30.0
HEALTHY_S = 60.0  # after which a death counts as the first one again
RECONCILE_EVERY_S = 5.0
STUCK_S = 45.0  # without its workers, while TorchServe has given up starting them
HUNG_S = 30.0  # without an answer of the management API


class Keeper(threading.Thread):
    """The thread of one server.

    Args:
        member: the server.
        gateway: whose table it follows.
        options: how it is started; the archive comes from the table.
        on_change: told that its address has changed.
    """

    def __init__(
        self, member: Member, gateway: Gateway, options: ServeOptions, *, on_change: Callable[[], None]
    ) -> None:
        super().__init__(name=f"keeper-{member.name}", daemon=True)
        self.member = member
        self.problem = "it is starting"  # empty while it is up
        self.failure: ImgclsError | None = None  # of the last start
        self.has_been_up = threading.Event()
        self.seen: tuple[Seen, ...] = ()
        self._gateway = gateway
        self._options = options
        self._on_change = on_change
        self._stopping = threading.Event()
        self._golden: dict[tuple[str, str], Golden] = {}
        self._asked_s: dict[tuple[str, str], float] = {}
        self._short_since_s: dict[tuple[str, str], float] = {}
        self._reconciled_s = 0.0

    def run(self) -> None:
        """Keeps the server until `stop`."""
        back_off_s = FIRST_BACK_OFF_S
        while not self._stopping.is_set():
            began_s = time.monotonic()
            try:
                self._keep(self._start())
            except Exception as err:  # a server that cannot be started now may be startable in a moment
                if self._stopping.is_set():
                    break
                self.problem, self.failure = str(err), err if isinstance(err, ImgclsError) else None
                log.warning("%s: %s", self.member.name, err, exc_info=None if self.failure else err)
            try:
                self._take_down()
            except (ImgclsError, OSError) as err:  # as on a disk that has become read-only; the next round tries again
                log.warning("%s: cannot be taken down: %s", self.member.name, err)
            if time.monotonic() - began_s > HEALTHY_S:
                back_off_s = FIRST_BACK_OFF_S
            log.warning("%s: starting it again in %.1f s", self.member.name, back_off_s)
            self._stopping.wait(back_off_s)
            back_off_s = min(LONGEST_BACK_OFF_S, 2 * back_off_s)

    def stop(self) -> None:
        """Ends the server and the thread, whatever it is at."""
        self._stopping.set()
        while self.is_alive():
            server.stop(self.member.folder)
            self.join(timeout=0.5)
        server.stop(self.member.folder)
        self.member.mark_down()

    def _start(self) -> ServerState:
        self.member.mark_down()
        model, row = first_version(self._gateway.known_table(), self.member.name)
        options = replace(
            self._options,
            archive=self._gateway.folder.store.path(row.archive),
            workers=row.workers,
            checks_packages=not self.has_been_up.is_set(),
        )
        self.problem = f"it is starting, with {model.name} {row.version}"
        log.info("%s: starting with %s %s, %d workers", self.member.name, model.name, row.version, row.workers)
        state = server.start(options, on_progress=lambda text: log.info("%s: %s", self.member.name, text))
        now_s = time.monotonic()
        self._golden = {(model.name, row.version): Golden("right", now_s)}  # start asks them
        self._asked_s = {(model.name, row.version): now_s}
        self._reconcile(state, waits=True)
        self.member.mark_up(state)
        self.problem, self.failure = "", None
        log.info("%s: up at %s", self.member.name, state.inference_url)
        self._look()
        self._on_change()
        self.has_been_up.set()
        return state

    def _keep(self, state: ServerState) -> None:
        """Looks at a server until it dies, hangs, or shall be stopped.

        Raises:
            NotReadyError: it has died, with the reason, or has been killed because it hung.
        """
        answered_s = time.monotonic()
        while not self._stopping.wait(self._gateway.settings.readiness.poll_s):
            server.check_alive(state, self.member.folder)
            try:
                self._look()
                answered_s = time.monotonic()
                self.problem = ""
            except ManagementError as err:
                silent_s = time.monotonic() - answered_s
                self.problem = f"it has not answered for {silent_s:.0f} s: {err}"
                if silent_s > HUNG_S:
                    raise NotReadyError(f"{self.problem}; it is killed") from err
                continue
            self._ask_golden()
            if time.monotonic() - self._reconciled_s > RECONCILE_EVERY_S:
                self._reconcile(state, waits=False)

    def _take_down(self) -> None:
        self.seen = ()
        self.member.mark_down()
        self._on_change()
        server.stop(self.member.folder)

    def _reconcile(self, state: ServerState, *, waits: bool) -> None:
        """Gives the server what it lacks; a version that cannot be loaded is told, and does not end the others.

        While it is up, it is looked at even when somebody else loads for minutes.
        """
        try:
            reconcile(
                self.member,
                self._gateway,
                timeout_s=self._options.timeout_s,
                waits=waits,
                on_progress=lambda text: log.info("%s", text),
            )
        except ImgclsError as err:
            if find_process(state) is None:
                raise
            log.warning("%s: not as the table says: %s", self.member.name, err)
        self._reconciled_s = time.monotonic()

    def _look(self) -> None:
        seen = []
        for model in self._gateway.known_table().models:
            has = self.member.versions(model.name)
            rows = [row for row in model.versions if row.servers is None or self.member.name in row.servers]
            failures: dict[str, VersionFailure] = {}
            if not all(row.version in has and has[row.version].is_ready for row in rows):  # the log may have 20 MB
                failures = logs.find_version_failures(self.member.folder.model_log, model.name)
            for row in rows:
                status = has.get(row.version)
                self._start_stuck(model.name, row, status)
                seen.append(
                    Seen(
                        self.member.name,
                        model.name,
                        row.version,
                        ready_workers=status.ready_workers if status else 0,
                        wanted_workers=row.workers,
                        problem=_problem(status, failures.get(row.version)),
                        golden=self._golden.get((model.name, row.version)),
                    )
                )
        before, self.seen = self.seen, tuple(seen)
        if [bool(each.ready_workers) for each in before] != [bool(each.ready_workers) for each in seen]:
            self._on_change()  # requests go to the servers that can answer them

    def _start_stuck(self, model: str, row: Version, status: ModelStatus | None) -> None:
        """Has TorchServe start workers that it has given up on, after crashes for as long as maxRetryTimeoutInSec."""
        key, now_s = (model, row.version), time.monotonic()
        if status is None or status.ready_workers >= status.min_workers:
            self._short_since_s.pop(key, None)
            return
        if now_s - self._short_since_s.setdefault(key, now_s) > STUCK_S:
            log.warning("%s: %s %s lacks workers; asking for them again", self.member.name, model, row.version)
            with self.member.management() as management:
                management.scale(model, row.workers, version=row.version)
            self._short_since_s[key] = now_s

    def _ask_golden(self) -> None:
        """Asks the golden inputs of the version with workers that was asked longest ago, if it is due."""
        due_s = time.monotonic() - self._gateway.settings.readiness.golden_every_s
        due = [
            (self._asked_s.get((model.name, row.version), 0.0), model.name, row)
            for model in self._gateway.known_table().models
            for row in model.versions
            if any(
                each.version == row.version and each.model == model.name and each.ready_workers for each in self.seen
            )
        ]
        due = [entry for entry in due if entry[0] <= due_s]
        if due:
            _, name, row = min(due, key=lambda entry: entry[0])
            self._asked_s[name, row.version] = time.monotonic()
            self._golden[name, row.version] = self._outcome(name, row)

    def _outcome(self, name: str, row: Version) -> Golden:
        now_s = time.monotonic()
        before = self._golden.get((name, row.version))
        try:
            self.member.check_golden(name, row)
        except (ImgclsError, OSError) as err:
            log.warning("%s: %s", self.member.name, err)
            # An archive that is gone from the store says nothing about the workers that were loaded from it.
            is_wrong = isinstance(err, NotReadyError) and not isinstance(err.__cause__, ClientError)
            outcome: Literal["wrong", "unanswered"] = "wrong" if is_wrong else "unanswered"
            return Golden(outcome, before.at_s if before else now_s, str(err))
        return Golden("right", now_s)


def _problem(status: ModelStatus | None, failure: VersionFailure | None) -> str:
    if status is not None and status.is_ready:
        return ""
    if failure is not None and not failure.has_loaded_since:
        return f"{failure.reason} ({failure.time})"
    return "not registered" if status is None else "workers are starting"
