"""Takes a rollout through its steps, one after the other; a step that fails, or an operator, takes everything back.

    verify ─► load ─► golden ─► shadow ─► canary … ─► promote ─► drain ─► keep-warm ─► retire
       └────────┴────────┴─────────┴─────────┴───────────┴─────────┴──────────┘
                        roll back: all requests to the stable version, then the new one is taken away

Each step can be done again: after a kill, it begins anew where it stood. What it changes is the table, which the
supervisor follows too, so nobody waits for this process.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from imgcls.errors import ArchiveError, ServingError, UsageError
from imgcls.gateway.clusters import cluster_name
from imgcls.gateway.errors import EnvoyError, NoGatewayError
from imgcls.gateway.gateway import Gateway
from imgcls.gateway.table import Table
from imgcls.rollout import traffic
from imgcls.rollout.analysis import judge
from imgcls.rollout.errors import HookError, RolloutError, StepFailedError
from imgcls.rollout.hooks import run_hook
from imgcls.rollout.labels import load_labels
from imgcls.rollout.looks import Phase
from imgcls.rollout.observe import Observer
from imgcls.rollout.samples import Sample
from imgcls.rollout.state import Release, RolloutFiles, RolloutState, StepState
from imgcls.rollout.verdicts import Report
from imgcls.rollout.window import Window

POLL_S = 0.1
DRAIN_POLL_S = 0.25
CLEAN_UP_S = 120.0  # how long a roll back tries to take the new version away from a server that is down
GONE_S = 5.0  # without a supervisor's file it was stopped; less, and one that was killed is being started again
AUDITED_METRICS = 12

OnChange = Callable[[RolloutState, Report | None, Sequence[Sample]], None]


class _AbortError(Exception):
    """An operator wants the stable version back."""


class Engine:
    """Runs one rollout; the caller holds the rollout's lock.

    Args:
        gateway: whose table is changed.
        files: of the rollouts.
        trust: the trust file that the gateway's archives are held to.
        operator: who runs it, for the audit log.
        on_change: told the state, the last verdict and its samples, whenever there is something new.
    """

    def __init__(
        self, gateway: Gateway, files: RolloutFiles, *, trust: Path | None, operator: str, on_change: OnChange
    ) -> None:
        self._gateway = gateway
        self._files = files
        self._trust = trust
        self._operator = operator
        self._on_change = on_change
        self._report: Report | None = None
        self._samples: Sequence[Sample] = ()

    def run(self, state: RolloutState) -> RolloutState:
        """Goes on from where a rollout stands until it is promoted or rolled back, and returns how it ended.

        Raises:
            NoGatewayError: the gateway was stopped meanwhile.
            ServingError: the gateway cannot be brought to what the rollout wants; its state says where it stands.
            RolloutError: the state cannot be written.
        """
        self._state = state
        self._files.take_request()  # of before
        try:
            if state.status == "rolling-back":
                return self._roll_back(state.reason)
            while (number := self._state.current()) is not None:
                self._run_step(number)
        except _AbortError:
            return self._roll_back(f"aborted by {self._operator}")
        except (StepFailedError, HookError) as err:
            return self._roll_back(str(err))
        return self._finish("promoted", "")

    def roll_back(self, state: RolloutState, reason: str) -> RolloutState:
        """Gives every request to the stable version, and takes the new one away."""
        self._state = state
        number = state.current()
        if number is not None and state.steps[number].status == "running":  # the process that was at it has ended
            self._state = state.with_step(number, status="failed", ended_s=time.time(), reason="aborted")
        return self._roll_back(reason)

    def _run_step(self, number: int) -> None:
        self._require_gateway()
        step = self._state.steps[number]
        self._set(self._state.with_step(number, status="running", started_s=time.time(), reason=""))
        self._audit("step begins", step=step.name)
        self._call_hooks("before", step)
        try:
            is_trial = step.kind in ("shadow", "canary")
            skipped = (self._state.status == "paused" and self._stay_paused() and is_trial) or self._perform(step)
        except (StepFailedError, _AbortError) as err:
            reason = str(err) or "aborted"
            self._set(self._state.with_step(number, status="failed", ended_s=time.time(), reason=reason))
            raise
        self._set(self._state.with_step(number, status="skipped" if skipped else "done", ended_s=time.time()))
        self._audit("step ends", step=step.name, skipped=skipped)
        self._call_hooks("after", step)

    def _perform(self, step: StepState) -> bool:
        """Does a step; returns whether an operator cut it short."""
        match step.kind:
            case "verify":
                self._verify()
            case "load":
                self._load()
            case "golden":
                self._ask_golden()
            case "shadow":
                return self._shadow(step)
            case "canary":
                return self._canary(step)
            case "promote":
                self._promote()
            case "drain":
                self._drain(self._state.stable.version)
            case "keep-warm":
                return self._wait(step.hold_s)
            case "retire":
                self._take_away(self._state.stable.version)
            case _:
                raise RolloutError(f"there is no step {step.kind}")
        return False

    def _verify(self) -> None:
        """Copies the archive into the store, checked from outside, and refuses one that cannot stand beside stable."""
        try:
            stored = self._gateway.folder.store.add(Path(self._state.source), trust=self._trust)
        except (ArchiveError, UsageError, ServingError) as err:
            raise StepFailedError(str(err)) from err
        if stored.name != self._state.model:
            raise StepFailedError(f"{self._state.source} is an archive of {stored.name}, not of {self._state.model}")
        table = self._gateway.table()
        row = table.get(self._state.model).find(stored.version)
        if row is not None and (row.tree_sha256 != stored.tree_sha256 or row.weight > 0):
            same = "the same content" if row.tree_sha256 == stored.tree_sha256 else "other content"
            raise StepFailedError(
                f"version {stored.version} of {stored.name} is served already, with {same}; build the new one with "
                "another --version"
            )
        release = Release(
            version=stored.version,
            archive=stored.file,
            tree_sha256=stored.tree_sha256,
            workers=self._state.plan.workers or self._state.stable.workers,
            signer=stored.trust.signer,
        )
        self._set(self._state.model_copy(update={"candidate": release}))
        self._audit("archive is verified", trust=stored.trust.policy, signer=stored.trust.signer)

    def _load(self) -> None:
        """Registers the new version beside the stable one on every server, until all its workers are READY."""
        release, model = self._candidate(), self._state.model
        with ExitStack() as locks:
            for member in self._gateway.members:  # before the table: or the supervisor would load it at the same time
                locks.enter_context(member.lock())
            self._change(lambda table: traffic.add_candidate(table, model, release))
            row = self._gateway.table().get(model).get(release.version)
            for member in self._gateway.members:
                try:
                    member.load(model, row, timeout_s=self._state.plan.ready_timeout_s)
                except ServingError as err:
                    raise StepFailedError(f"{release.version} cannot be loaded on {member.name}: {err}") from err

    def _ask_golden(self) -> None:
        model = self._state.model
        row = self._gateway.table().get(model).get(self._candidate().version)
        for member in self._gateway.members:
            try:
                member.check_golden(model, row)
            except ServingError as err:
                raise StepFailedError(f"on {member.name}: {err}") from err

    def _shadow(self, step: StepState) -> bool:
        version, shadow = self._candidate().version, self._state.plan.shadow
        self._change(lambda table: traffic.shadow(table, self._state.model, version, shadow.percent))
        return self._hold(step, min_samples=shadow.min_samples)

    def _canary(self, step: StepState) -> bool:
        stable, candidate, weight = self._state.stable.version, self._candidate().version, step.weight or 0.0
        self._change(
            lambda table: traffic.split(table, self._state.model, stable=stable, candidate=candidate, weight=weight)
        )
        return self._hold(step, min_samples=0)

    def _hold(self, step: StepState, *, min_samples: int) -> bool:
        """Watches a step until its verdict; returns whether an operator cut it short.

        Raises:
            StepFailedError: the verdict is failed, or stays inconclusive where the plan then aborts.
        """
        analysis = self._state.plan.analysis
        stable, candidate = self._state.stable.version, self._candidate().version
        observer = Observer(self._gateway.paths, model=self._state.model, versions=(stable, candidate))
        began_s = time.monotonic()
        has_ended = False
        while True:
            if self._wait(min(analysis.interval_s, max(POLL_S, step.hold_s))):
                return True
            held_s = time.monotonic() - began_s
            phase: Phase = "hold" if held_s < step.hold_s else "wait" if has_ended else "end"
            has_ended = has_ended or phase == "end"
            looks = self._state.looks + (phase != "end")
            self._samples = observer.read()
            window = Window(
                samples=self._samples,
                stable=stable,
                candidate=candidate,
                stage="shadow" if step.kind == "shadow" else "canary",
                look=self._state.plan.schedule().look(number=max(1, looks), phase=phase),
                labels=load_labels(self._files.labels_file),
                min_samples=min_samples,
            )
            self._report = report = judge(window, analysis.metrics, analysis.confidence)
            self._set(self._state.model_copy(update={"looks": looks}))
            if report.verdict == "failed":
                self._audit("verdict", step=step.name, **_numbers(report))
                raise StepFailedError(f"{step.name}: {report.reason}")
            if phase == "hold":
                continue
            if report.verdict == "successful":
                self._audit("verdict", step=step.name, **_numbers(report))
                return False
            if held_s >= step.hold_s + analysis.max_wait_s:
                self._audit("verdict", step=step.name, **_numbers(report))
                return self._decide_unknown(step, report)

    def _decide_unknown(self, step: StepState, report: Report) -> bool:
        reason = f"{step.name}: inconclusive: {report.reason}"
        match self._state.plan.analysis.on_inconclusive:
            case "abort":
                raise StepFailedError(reason)
            case "pause":
                self._set(self._state.model_copy(update={"status": "paused", "reason": reason}))
                self._audit("paused", reason=reason)
                self._stay_paused()
        return True

    def _promote(self) -> None:
        """Gives the new version every request, and makes it TorchServe's default, which gRPC asks."""
        version = self._candidate().version
        self._change(lambda table: traffic.give_all(table, self._state.model, version))
        self._set_default()
        self._audit("promoted", version=version)
        if not any(
            entry.get("rollout") == self._state.id for entry in self._files.read_lines(self._files.history_file)
        ):
            self._files.append(
                self._files.history_file,
                {
                    "time_s": time.time(),
                    "rollout": self._state.id,
                    "operator": self._operator,
                    "model": self._state.model,
                    "is_undo": self._state.is_undo,
                    "release": self._candidate().model_dump(),
                    "before": self._state.stable.model_dump(),
                },
            )

    def _set_default(self) -> None:
        model = self._gateway.table().get(self._state.model)
        for member in self._gateway.members:
            if member.state() is not None:  # one that is down gets it from the table when it starts
                member.set_default(model)

    def _drain(self, version: str) -> None:
        """Waits until a version without requests has answered all that it had."""
        cluster, model = cluster_name(self._state.model, version), self._state.model
        deadline_s = time.monotonic() + self._state.plan.drain_timeout_s
        idle = 0
        while idle < 2:  # twice in a row: a request may be between gateway and queue
            is_idle = self._in_flight(cluster) == 0 and all(
                member.is_idle(model, version) for member in self._gateway.members
            )
            idle = idle + 1 if is_idle else 0
            if time.monotonic() > deadline_s:
                self._audit("drain took too long", version=version)
                return
            time.sleep(DRAIN_POLL_S)

    def _in_flight(self, cluster: str) -> int:
        try:
            return self._gateway.admin.in_flight(cluster)
        except EnvoyError:  # it has ended, and all its connections with it
            return 0

    def _take_away(self, version: str) -> None:
        """Removes a version without requests from the table and the servers; its archive stays in the store."""
        self._drain(version)
        self._change(lambda table: traffic.remove(table, self._state.model, version))
        for member in self._gateway.members:
            with member.lock():
                if member.state() is not None:  # one that is down starts without it
                    member.unload(self._state.model, version)

    def _roll_back(self, reason: str) -> RolloutState:
        began_s = time.monotonic()
        stable = self._state.stable.version
        self._set(self._state.model_copy(update={"status": "rolling-back", "reason": reason}))
        self._change(lambda table: traffic.give_all(table, self._state.model, stable))
        took_s = time.monotonic() - began_s
        self._audit("requests are back", version=stable, reason=reason, seconds=round(took_s, 3))
        self._call_hooks("before", StepState(kind="abort"), ignore=True)
        self._clean_up()
        self._call_hooks("after", StepState(kind="abort"), ignore=True)
        return self._finish("rolled-back", reason)

    def _clean_up(self) -> None:
        candidate = self._state.candidate
        deadline_s = time.monotonic() + CLEAN_UP_S
        while True:
            try:
                self._set_default()
                if candidate is not None:
                    self._take_away(candidate.version)
                return
            except ServingError:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(1)

    def _finish(self, status: str, reason: str) -> RolloutState:
        self._set(self._state.model_copy(update={"status": status, "reason": reason, "ended_s": time.time()}))
        self._audit(status, reason=reason)
        return self._state

    def _wait(self, seconds: float) -> bool:
        """Waits, and does what an operator asks for meanwhile; returns whether that was to go on at once.

        Raises:
            _AbortError: it was to abort.
        """
        deadline_s = time.monotonic() + seconds
        while time.monotonic() < deadline_s:
            self._require_gateway()
            match self._files.take_request():
                case "abort":
                    raise _AbortError
                case "promote":
                    return True
                case "promote-full":
                    self._skip_to_promotion()
                    return True
                case "pause":
                    self._set(self._state.model_copy(update={"status": "paused", "reason": "paused by an operator"}))
                    self._audit("paused", reason="by an operator")
                    if self._stay_paused():
                        return True
            time.sleep(min(POLL_S, max(0.0, deadline_s - time.monotonic())))
        return False

    def _stay_paused(self) -> bool:
        """Waits until an operator goes on; the shares of requests stay as they are.

        Returns:
            Whether that was to skip what is left of the trials, the present one included.
        """
        while True:
            self._require_gateway()
            match self._files.take_request():
                case "abort":
                    raise _AbortError
                case "promote" | "promote-full" as request:
                    if request == "promote-full":
                        self._skip_to_promotion()
                    self._set(self._state.model_copy(update={"status": "running", "reason": ""}))
                    self._audit("resumed")
                    return request == "promote-full"
            time.sleep(POLL_S)

    def _require_gateway(self) -> None:
        """Raises NoGatewayError where the gateway was stopped; one that was killed is waited for, as it comes back."""
        deadline_s = time.monotonic() + GONE_S
        while not self._gateway.folder.supervisor_file.exists():
            if time.monotonic() > deadline_s:
                raise NoGatewayError(
                    "the gateway was stopped, and the rollout is left as it is; serve again with imgcls serve "
                    "--gateway, then continue with imgcls rollout start, or go back with imgcls rollout abort"
                )
            time.sleep(POLL_S)

    def _skip_to_promotion(self) -> None:
        current = self._state.current() or 0
        for number, step in enumerate(self._state.steps):
            if number > current and step.kind in ("shadow", "canary"):
                self._state = self._state.with_step(number, status="skipped", reason="promoted by an operator")
        self._set(self._state)

    def _candidate(self) -> Release:
        if self._state.candidate is None:
            raise RolloutError(f"rollout {self._state.id} has no verified archive; abort it, and start again")
        return self._state.candidate

    def _change(self, change: Callable[[Table], Table]) -> None:
        self._gateway.change(change)

    def _set(self, state: RolloutState) -> None:
        self._state = state
        self._files.write(state)
        self._on_change(state, self._report, self._samples)

    def _audit(self, event: str, **fields: object) -> None:
        candidate = self._state.candidate
        entry = {
            "time_s": round(time.time(), 3),
            "rollout": self._state.id,
            "operator": self._operator,
            "event": event,
            "model": self._state.model,
            "stable": self._state.stable.version,
            "candidate": candidate.version if candidate else None,
            "tree_sha256": candidate.tree_sha256 if candidate else None,
            **fields,
        }
        self._files.append(self._files.audit_file, entry)

    def _call_hooks(self, when: str, step: StepState, *, ignore: bool = False) -> None:
        point = f"{when}_{step.kind}"
        for hook in self._state.plan.hooks.get(point, ()):
            try:
                run_hook(hook, point=point, payload=self._state.model_dump(mode="json", exclude={"plan"}))
            except HookError as err:
                self._audit("hook failed", reason=str(err))
                if not ignore and hook.on_failure == "abort":
                    raise


def _numbers(report: Report) -> dict[str, object]:
    """Returns a verdict with its figures, for the audit log."""
    return {
        "verdict": report.verdict,
        "reason": report.reason,
        "metrics": [
            {"name": each.name, "verdict": each.verdict, "value": each.value, "limit": each.limit, "n": each.samples}
            for each in report.metrics[:AUDITED_METRICS]
        ],
    }
