"""What the commands do with rollouts: begin or continue one, ask a running one for something, go back to a version."""

import getpass
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from imgcls.archive.contents import read_contents
from imgcls.archive.verify import read_integrity
from imgcls.gateway.errors import BusyError, NoGatewayError
from imgcls.gateway.folder import GatewayFolder
from imgcls.gateway.gateway import Gateway
from imgcls.gateway.table import WHOLE, Model, exclusive, is_held
from imgcls.rollout.engine import roll_back, run_rollout
from imgcls.rollout.errors import NoRolloutError, RolloutError
from imgcls.rollout.plan import Plan, Shadow
from imgcls.rollout.progress import OnChange, Progress
from imgcls.rollout.prune import find_unneeded
from imgcls.rollout.state import Release, RolloutFiles, RolloutState, StepState
from imgcls.serving.capacity import refuse_workers

ABORT_TIMEOUT_S = 300.0
BUSY = "another process runs a rollout here; see imgcls rollout status, and ask it with pause, promote or abort"


class Rollouts:
    """The rollouts of one gateway."""

    def __init__(self, folder: GatewayFolder) -> None:
        self.supervisor = folder.read_running()
        self.gateway = Gateway.of(folder, self.supervisor)
        self.files = RolloutFiles(folder.rollout)

    def start(self, archive: Path | None, plan: Plan | None, *, on_change: OnChange) -> RolloutState:
        """Begins a rollout, or continues the one that a killed process has left.

        Args:
            archive: of the new version; None: continue.
            plan: of a new rollout, None for the built-in one; one that is continued keeps its own.
            on_change: see imgcls.rollout.progress.

        Raises:
            BusyError: another process runs a rollout.
            RolloutError: there is nothing to continue, or something else has to be finished first.
            UsageError: the plan wants more workers than could be.
            ServingError: see imgcls.rollout.engine.run_rollout.
        """
        with self._lock():
            last = self.files.read()
            if last is not None and not last.is_finished:
                if archive is not None and not is_same(last, archive, plan):
                    raise _unfinished_error(last)
                return run_rollout(self._progress(last, on_change))
            if archive is None:
                raise NoRolloutError("there is no rollout to continue; name an archive to begin one")
            if plan is not None and plan.workers is not None:
                refuse_workers(plan.workers, what="the plan's workers")
            model = self.gateway.table().get(read_contents(archive).name)
            state = new_rollout(model, archive.absolute(), plan or Plan(), operator=operator(), servers=self._servers())
            self.files.write(state)
            return run_rollout(self._progress(state, on_change))

    def undo(self, version: str | None, *, model: str | None, on_change: OnChange) -> RolloutState:
        """Goes back to a version of the history: to the one before, unless named.

        A rollout that is under way is aborted instead, when its stable version is meant.

        Raises:
            BusyError: another process runs a rollout.
            RolloutError: the history has no such version, or another rollout has to be finished first.
        """
        last = self.files.read()
        is_meant = last is not None and model in (None, last.model) and version in (None, last.stable.version)
        if last is not None and not last.is_finished and is_meant:
            return self.abort(on_change=on_change)
        with self._lock():
            last = self.files.read()
            if last is not None and not last.is_finished:
                raise _unfinished_error(last)
            row = self.gateway.table().choose(model)
            release = find_release(self.files.history(), version, model=row.name, now=row.default)
            source = self.gateway.folder.store.path(release.archive)
            if not source.is_file():
                raise RolloutError(f"{source}: the archive of {release.version} is gone; roll it from a copy")
            plan = Plan(shadow=Shadow(percent=0.0), keep_warm_s=0.0, workers=release.workers)
            state = new_rollout(row, source, plan, operator=operator(), is_undo=True, servers=self._servers())
            self.files.write(state)
            return run_rollout(self._progress(state, on_change))

    def ask(self, request: str) -> RolloutState:
        """Asks the process that runs a rollout to pause, or to go on.

        Raises:
            NoRolloutError: no rollout is under way, or no process runs it.
            RolloutError: it was asked to abort, and is about to.
        """
        state = self._unfinished()
        if not self.is_run():
            raise NoRolloutError(
                f"the rollout of {state.source} is {state.status}, and no process runs it; continue it with imgcls "
                "rollout start, or end it with imgcls rollout abort"
            )
        if self.files.read_request() == "abort":
            raise RolloutError(f"the rollout of {state.source} was asked to abort, and does so at its next step")
        self.files.put_request(request)
        return state

    def abort(self, *, on_change: OnChange) -> RolloutState:
        """Gives every request back to the stable version: by the process that runs the rollout, or else by this one.

        Raises:
            NoRolloutError: no rollout is under way.
            RolloutError: the process that runs it does not do it.
        """
        state = self._unfinished()
        try:
            with self._lock():
                return roll_back(self._progress(self._unfinished(), on_change), f"aborted by {operator()}")
        except BusyError:
            self.files.put_request("abort")
        deadline_s = time.monotonic() + ABORT_TIMEOUT_S
        while time.monotonic() < deadline_s:
            now = self.files.read()
            if now is not None and now.id == state.id and now.is_finished:
                return now
            if not self.is_run():  # it was killed meanwhile
                return self.abort(on_change=on_change)
            time.sleep(0.1)
        raise RolloutError(f"the rollout was asked to abort and has not within {ABORT_TIMEOUT_S:g} s; see its log")

    def prune(self, *, keep: int, remove: Callable[[Sequence[Path]], int]) -> tuple[list[Path], int]:
        """Finds archives of the store that nothing will ask for again, and removes them while no rollout begins.

        Args:
            keep: see `find_unneeded`.
            remove: does it, and returns how many bytes that freed.

        Raises:
            BusyError: another process runs a rollout.
        """
        with self._lock():
            paths = find_unneeded(
                sorted(self.gateway.folder.store.folder.glob("*.mar")),
                table=self.gateway.table(),
                history=self.files.history(),
                last=self.files.read(),
                keep=keep,
            )
            return paths, remove(paths)

    def classes(self) -> frozenset[str]:
        """Returns the classes of all versions that there are.

        Raises:
            ArchiveError: an archive is gone from the store, or cannot be read.
        """
        rows = [row for model in self.gateway.table().models for row in model.versions]
        store = self.gateway.folder.store
        return frozenset(name for row in rows for name in read_contents(store.path(row.archive)).classes)

    def is_run(self) -> bool:
        """Whether a process runs a rollout now."""
        return is_run(self.files)

    def _servers(self) -> tuple[str, ...]:
        return tuple(member.name for member in self.gateway.members)

    def _unfinished(self) -> RolloutState:
        state = self.files.read()
        if state is None or state.is_finished:
            raise NoRolloutError("no rollout is under way; imgcls rollout history shows those that ended")
        return state

    def _progress(self, state: RolloutState, on_change: OnChange) -> Progress:
        return Progress(
            self.gateway,
            self.files,
            trust=self.supervisor.trust,
            operator=operator(),
            on_change=on_change,
            state=state,
        )

    def _lock(self) -> AbstractContextManager[None]:
        return exclusive(self.files.lock_file, busy=BUSY)


def is_run(files: RolloutFiles) -> bool:
    """Whether a process runs a rollout now."""
    return is_held(files.lock_file)


def is_same(last: RolloutState, archive: Path, plan: Plan | None) -> bool:
    """Whether a rollout is of this archive, as it is now, and by this plan; None: whichever.

    Raises:
        ArchiveError: the archive cannot be read.
    """
    if str(archive.absolute()) != last.source or plan not in (None, last.plan):
        return False
    if last.candidate is None or not archive.exists():  # not copied yet; or the copy is all there is
        return True
    return read_integrity(archive).tree_sha256 == last.candidate.tree_sha256


def _unfinished_error(last: RolloutState) -> RolloutError:
    version = f", version {last.candidate.version}," if last.candidate else ""
    return RolloutError(
        f"the rollout of {last.source}{version} is {last.status}, and keeps its archive and plan; continue it with "
        "imgcls rollout start, naming neither, or end it with imgcls rollout abort, before another one"
    )


def read_files(folder: GatewayFolder) -> RolloutFiles:
    """Returns the files of a gateway's rollouts, whether or not it runs.

    Raises:
        NoGatewayError: there was none with this state folder.
    """
    if not folder.rollout.is_dir():
        raise NoGatewayError(f"no gateway was served with the state folder {folder.state}; name another with --state")
    return RolloutFiles(folder.rollout)


def new_rollout(
    model: Model, archive: Path, plan: Plan, *, operator: str, servers: Sequence[str] = (), is_undo: bool = False
) -> RolloutState:
    """Returns a rollout that has not begun.

    Args:
        model: as the table has it.
        archive: of the new version.
        plan: of the rollout.
        operator: who begins it.
        servers: the gateway's, in the order in which they are rolled where the plan wants one after the other.
        is_undo: it goes to a version of the history.

    Raises:
        RolloutError: requests are split already, so that there is no one stable version.
    """
    serving = [row for row in model.versions if row.weight > 0]
    if len(serving) != 1 or serving[0].weight != WHOLE:
        shares = ", ".join(f"{row.version} {row.weight:g} %" for row in serving)
        raise RolloutError(
            f"{model.name}: requests are split already ({shares}); give one version all of them with imgcls apply first"
        )
    row = serving[0]
    stable = Release(version=row.version, archive=row.archive, tree_sha256=row.tree_sha256, workers=row.workers)
    return RolloutState(
        id=uuid.uuid4().hex[:12],
        operator=operator,
        model=model.name,
        source=str(archive),
        is_undo=is_undo,
        stable=stable,
        plan=plan,
        steps=steps_of(plan, is_undo=is_undo, servers=servers),
        created_s=time.time(),
    )


def steps_of(plan: Plan, *, is_undo: bool = False, servers: Sequence[str] = ()) -> tuple[StepState, ...]:
    """Returns the steps of a plan; an undo tries nothing on requests, as its version has proved itself."""
    if plan.strategy == "instances":
        swaps = [StepState(kind="instance", server=server, hold_s=plan.instance_hold_s) for server in servers]
        return (StepState(kind="verify"), *swaps, StepState(kind="promote"), StepState(kind="retire"))
    steps = [StepState(kind="verify"), StepState(kind="load")]
    if plan.golden:
        steps.append(StepState(kind="golden"))
    if not is_undo:
        if plan.shadow.percent > 0:
            steps.append(StepState(kind="shadow", hold_s=plan.shadow.hold_s))
        steps += [StepState(kind="canary", weight=step.weight, hold_s=step.hold_s) for step in plan.canary.steps]
    steps += [StepState(kind="promote"), StepState(kind="drain")]
    if plan.keep_warm_s > 0:
        steps.append(StepState(kind="keep-warm", hold_s=plan.keep_warm_s))
    return (*steps, StepState(kind="retire"))


def find_release(history: list[dict[str, object]], version: str | None, *, model: str, now: str) -> Release:
    """Returns the newest release of a version in the history; without a version, the one before the present one.

    The last entry need not tell that one: its rollout may have been aborted while the old version was kept warm.

    Raises:
        RolloutError: there is none.
    """
    rolled = [
        (Release.model_validate(entry["before"]), Release.model_validate(entry["release"]))
        for entry in history
        if entry.get("model") == model
    ]
    releases = [release for pair in rolled for release in pair]
    known = ", ".join(dict.fromkeys(each.version for each in releases if each.version != now)) or "none"
    if version is None:
        if not rolled:
            raise RolloutError(f"{model}: no version was rolled yet, so there is none to go back to")
        found = [before for before, release in rolled if release.version == now]
        if not found:
            raise RolloutError(
                f"{model}: {now} is served, and the history has none before it; name the version to go to: {known}"
            )
        return found[-1]
    found = [release for release in releases if release.version == version]
    if not found or version == now:
        raise RolloutError(f"{model}: cannot go back to {version!r}; the history has {known}, and {now} is served")
    return found[-1]


def operator() -> str:
    """Returns who runs this: user and host."""
    return f"{getpass.getuser()}@{socket.gethostname()}"
