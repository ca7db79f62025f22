"""Makes the snapshot that the views show, from what the engine tells and from the gateway."""

import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from imgcls.errors import ImgclsError
from imgcls.gateway.gateway import Gateway
from imgcls.rollout.samples import Sample, pair_answers
from imgcls.rollout.snapshot import Event, Outcome, Snapshot, StepView, VersionView
from imgcls.rollout.state import Release, RolloutState
from imgcls.rollout.verdicts import Report

SPAN_S = 15.0  # of the samples that rates and latencies are of
MOST_EVENTS = 20
LOOK_EVERY_S = 1.0
OUTCOMES: dict[str, Outcome] = {"paused": "paused", "promoted": "promoted", "rolled-back": "aborted"}


class Watcher:
    """Keeps the last snapshot of a rollout; give it to the engine as `on_change`."""

    def __init__(self, gateway: Gateway) -> None:
        self.snapshot: Snapshot | None = None
        self._gateway = gateway
        self._events: list[Event] = []
        self._said: tuple[str, ...] = ()
        self._ready: dict[str, int] = {}
        self._looked_s = 0.0

    def __call__(self, state: RolloutState, report: Report | None, samples: Sequence[Sample]) -> None:
        """Takes what has changed."""
        now_s = time.time()
        self._look(state.model)
        self._note(state, now_s)
        recent = [sample for sample in samples if sample.time_s > now_s - SPAN_S]
        agreement, drift = _compare(state, samples)
        self.snapshot = Snapshot(
            model=state.model,
            stable=self._view(state, state.stable, recent, role="stable"),
            candidate=self._view(state, state.candidate, recent, role="new"),
            now_s=now_s,
            began_s=state.created_s,
            steps=tuple(
                StepView(step.name, step.status, step.started_s, step.ended_s, step.hold_s or None)
                for step in state.steps
            ),
            agreement=agreement,
            drift=drift,
            verdict=report.verdict if report else None,
            reason=state.reason or (report.reason if report else ""),
            metrics=report.metrics if report else (),
            events=tuple(self._events[-MOST_EVENTS:]),
            outcome=OUTCOMES.get(state.status, "running"),
        )

    def now(self) -> Snapshot | None:
        """Returns the last snapshot as of now, for a view whose clock goes on."""
        return replace(self.snapshot, now_s=time.time()) if self.snapshot else None

    def _look(self, model: str) -> None:
        if time.monotonic() - self._looked_s < LOOK_EVERY_S:
            return
        self._looked_s = time.monotonic()
        ready: dict[str, int] = {}
        for member in self._gateway.members:
            try:
                for version, status in member.versions(model).items():
                    ready[version] = ready.get(version, 0) + status.ready_workers
            except ImgclsError:  # it is down, or starting
                continue
        self._ready = ready

    def _note(self, state: RolloutState, now_s: float) -> None:
        facts = (state.status, *(f"{step.name}: {step.status}" for step in state.steps))
        for fact in facts:
            if fact not in self._said and not fact.endswith("pending"):
                self._events.append(Event(now_s, fact))
        self._said = facts

    def _view(
        self, state: RolloutState, release: Release | None, recent: Sequence[Sample], *, role: str
    ) -> VersionView:
        version = release.version if release else "?"
        model = self._gateway.table().find(state.model)
        row = model.find(version) if model else None
        shadow = model.shadow if model else None
        own = [sample for sample in recent if sample.version == version and sample.is_counted]
        durations = sorted(sample.duration_ms for sample in own if not sample.is_error)
        return VersionView(
            version=version,
            role="stable" if role == "stable" else "new",
            weight=row.weight if row else 0.0,
            shadow=shadow.percent if shadow and shadow.version == version else 0.0,
            workers_ready=self._ready.get(version, 0),
            workers_wanted=row.workers * len(self._gateway.members_of(row.servers)) if row else 0,
            requests_per_s=len(own) / SPAN_S if own else None,
            error_rate=sum(sample.is_error for sample in own) / len(own) if own else None,
            p50_ms=median(durations) if durations else None,
            p99_ms=durations[int(0.99 * (len(durations) - 1))] if durations else None,
        )


def _compare(state: RolloutState, samples: Sequence[Sample]) -> tuple[float | None, float | None]:
    if state.candidate is None:
        return None, None
    pairs = pair_answers(samples, stable=state.stable.version, candidate=state.candidate.version)
    drifts = [pair.drift for pair in pairs if pair.drift is not None]
    return (
        sum(pair.is_alike for pair in pairs) / len(pairs) if pairs else None,
        sum(drifts) / len(drifts) if drifts else None,
    )
