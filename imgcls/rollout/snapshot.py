"""Snapshot: all that the views of a rollout show, at one moment. Made by the engine."""

from dataclasses import dataclass
from typing import Literal

from imgcls.rollout.verdicts import MetricVerdict, Verdict

State = Literal["done", "running", "pending", "failed", "skipped"]
Outcome = Literal["running", "paused", "promoted", "aborted"]


@dataclass(frozen=True)
class StepView:
    """One step of the plan.

    Args:
        name: for people, such as "canary 10 %".
        state: how far it is.
        began_s: seconds since the epoch; None before it began.
        ended_s: the same; None before it ended.
        hold_s: how long it is planned to take; None where nobody knows.
    """

    name: str
    state: State = "pending"
    began_s: float | None = None
    ended_s: float | None = None
    hold_s: float | None = None

    def elapsed_s(self, now_s: float) -> float | None:
        """Returns how long it took, or takes already; None before it began."""
        if self.began_s is None:
            return None
        return max(0.0, (now_s if self.ended_s is None else self.ended_s) - self.began_s)


@dataclass(frozen=True)
class VersionView:
    """One version, as it answers now; what is not known is None.

    Args:
        version: its name.
        role: what it is to this rollout.
        weight: percent of clients' requests.
        shadow: percent of requests that are copied to it.
        workers_ready: READY workers.
        workers_wanted: workers that there shall be.
        requests_per_s: answered, shadows included.
        error_rate: of its answers, 0..1.
        p50_ms: median latency.
        p99_ms: of 99 of 100 answers.
    """

    version: str
    role: Literal["stable", "new"]
    weight: float
    shadow: float = 0.0
    workers_ready: int = 0
    workers_wanted: int = 0
    requests_per_s: float | None = None
    error_rate: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None


@dataclass(frozen=True)
class Event:
    """Something that happened, for the last lines of the view."""

    time_s: float
    text: str


@dataclass(frozen=True)
class Snapshot:
    """A rollout at one moment.

    Args:
        model: its name.
        stable: the version that serves.
        candidate: the new one.
        now_s: the moment, seconds since the epoch.
        began_s: when the rollout began.
        steps: of the plan, in order.
        agreement: part of pairs alike so far; None without pairs.
        drift: mean |Δp| so far; the same.
        verdict: of the last look; None before the first.
        reason: of that verdict, or of the outcome; one line.
        metrics: verdicts of the last look.
        events: the oldest first.
        outcome: how it stands.
    """

    model: str
    stable: VersionView
    candidate: VersionView
    now_s: float
    began_s: float
    steps: tuple[StepView, ...] = ()
    agreement: float | None = None
    drift: float | None = None
    verdict: Verdict | None = None
    reason: str = ""
    metrics: tuple[MetricVerdict, ...] = ()
    events: tuple[Event, ...] = ()
    outcome: Outcome = "running"

    @property
    def step(self) -> StepView | None:
        """The step that runs, or that the rollout ended or failed in; None before the first."""
        begun = [step for step in self.steps if step.state in ("running", "failed", "done")]
        unfinished = [step for step in begun if step.state != "done"]
        return next(reversed(unfinished or begun), None)


def has_changed(before: Snapshot | None, now: Snapshot) -> bool:
    """Says whether something happened that is worth a line where there is no terminal: not that numbers moved."""
    return before is None or _facts(before) != _facts(now)


def _facts(snapshot: Snapshot) -> tuple[object, ...]:
    versions = [
        (each.version, each.weight, each.shadow, each.workers_ready, each.workers_wanted)
        for each in (snapshot.stable, snapshot.candidate)
    ]
    steps = [(step.name, step.state) for step in snapshot.steps]
    return versions, steps, snapshot.verdict, snapshot.outcome
