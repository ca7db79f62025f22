"""One rollout that is under way: its state on the disk, its audit log, and what operators ask of it meanwhile."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from imgcls.gateway.errors import NoGatewayError
from imgcls.gateway.gateway import Gateway
from imgcls.gateway.table import Model, Table, Version
from imgcls.rollout.errors import HookError, RolloutError
from imgcls.rollout.hooks import run_hook
from imgcls.rollout.samples import Sample
from imgcls.rollout.state import Release, RolloutFiles, RolloutState, Status, StepState
from imgcls.rollout.verdicts import Report

POLL_S = 0.1
GONE_S = 5.0  # without a supervisor's file it was stopped; less, and one that was killed is being started again

OnChange = Callable[[RolloutState, Report | None, Sequence[Sample]], None]


class AbortRequestedError(Exception):
    """An operator wants the stable version back."""


class Progress:
    """What the steps of one rollout share; every change of the state is on the disk before anything follows from it.

    Args:
        gateway: whose table is changed.
        files: of the rollouts.
        trust: the trust file that the gateway's archives are held to.
        operator: who runs it, for the audit log.
        on_change: told the state, the last verdict and its samples, whenever there is something new.
        state: where the rollout stands.
    """

    def __init__(
        self,
        gateway: Gateway,
        files: RolloutFiles,
        *,
        trust: Path | None,
        operator: str,
        on_change: OnChange,
        state: RolloutState,
    ) -> None:
        self.gateway = gateway
        self.files = files
        self.trust = trust
        self.operator = operator
        self.state = state
        self.report: Report | None = None
        self.samples: Sequence[Sample] = ()
        self._on_change = on_change

    @property
    def candidate(self) -> Release:
        """The new version.

        Raises:
            RolloutError: it has not been verified yet.
        """
        if self.state.candidate is None:
            raise RolloutError(f"rollout {self.state.id} has no verified archive; abort it, and start again")
        return self.state.candidate

    def model(self) -> Model:
        """Returns the model as the table has it now."""
        return self.gateway.table().get(self.state.model)

    def candidate_row(self) -> Version:
        """Returns the new version as the table has it now."""
        return self.model().get(self.candidate.version)

    def change(self, change: Callable[[Table], Table]) -> None:
        """Changes the table, and brings it into force."""
        self.gateway.change(change)

    def set(self, state: RolloutState) -> None:
        """Writes the state."""
        self.state = state
        self.files.write(state)
        self._on_change(state, self.report, self.samples)

    def update(self, **changes: Any) -> None:
        """Writes the state with some fields changed."""
        self.set(self.state.model_copy(update=changes))

    def finish(self, status: Status, reason: str) -> RolloutState:
        """Writes how it ended, and returns it."""
        self.update(status=status, reason=reason, ended_s=time.time())
        self.audit(status, reason=reason)
        return self.state

    def audit(self, event: str, **fields: object) -> None:
        """Adds a line to the audit log."""
        candidate = self.state.candidate
        entry = {
            "time_s": round(time.time(), 3),
            "rollout": self.state.id,
            "operator": self.operator,
            "event": event,
            "model": self.state.model,
            "stable": self.state.stable.version,
            "candidate": candidate.version if candidate else None,
            "tree_sha256": candidate.tree_sha256 if candidate else None,
            **fields,
        }
        self.files.append(self.files.audit_file, entry)

    def call_hooks(self, when: str, step: StepState, *, ignore: bool = False) -> None:
        """Calls what the plan wants called around a step.

        Raises:
            HookError: one failed, and the plan does not ignore it.
        """
        point = f"{when}_{step.kind}"
        for hook in self.state.plan.hooks.get(point, ()):
            try:
                run_hook(hook, point=point, payload=self.state.model_dump(mode="json", exclude={"plan"}))
            except HookError as err:
                self.audit("hook failed", reason=str(err))
                if not ignore and hook.on_failure == "abort":
                    raise

    def wait(self, seconds: float) -> bool:
        """Waits, and does what an operator asks for meanwhile; returns whether that was to go on at once.

        Raises:
            AbortRequestedError: it was to abort.
        """
        deadline_s = time.monotonic() + seconds
        while time.monotonic() < deadline_s:
            self.require_gateway()
            match self.files.take_request():
                case "abort":
                    raise AbortRequestedError
                case "promote":
                    return True
                case "promote-full":
                    self._skip_to_promotion()
                    return True
                case "pause":
                    if self.pause("paused by an operator"):
                        return True
            time.sleep(min(POLL_S, max(0.0, deadline_s - time.monotonic())))
        return False

    def pause(self, reason: str) -> bool:
        """Waits until an operator goes on; the shares of requests stay as they are.

        Returns:
            Whether that was to skip what is left of the trials, the present one included.

        Raises:
            AbortRequestedError: the operator aborts instead.
        """
        self.update(status="paused", reason=reason)
        self.audit("paused", reason=reason)
        return self.stay_paused()

    def stay_paused(self) -> bool:
        """Goes on with a pause, as after a restart; see `pause`."""
        while True:
            self.require_gateway()
            match self.files.take_request():
                case "abort":
                    raise AbortRequestedError
                case "promote" | "promote-full" as request:
                    if request == "promote-full":
                        self._skip_to_promotion()
                    self.update(status="running", reason="")
                    self.audit("resumed")
                    return request == "promote-full"
            time.sleep(POLL_S)

    def require_gateway(self) -> None:
        """Raises NoGatewayError where the gateway was stopped; one that was killed is waited for, as it comes back."""
        deadline_s = time.monotonic() + GONE_S
        while not self.gateway.folder.supervisor_file.exists():
            if time.monotonic() > deadline_s:
                raise NoGatewayError(
                    "the gateway was stopped, and the rollout is left as it is; serve again with imgcls serve "
                    "--gateway, then continue with imgcls rollout start, or go back with imgcls rollout abort"
                )
            time.sleep(POLL_S)

    def _skip_to_promotion(self) -> None:
        current = self.state.current() or 0
        state = self.state
        for number, step in enumerate(state.steps):
            if number > current and step.kind in ("shadow", "canary"):
                state = state.with_step(number, status="skipped", reason="promoted by an operator")
        self.set(state)
