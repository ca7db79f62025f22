"""Makes the snapshot that the views show, from what the engine tells and from the gateway."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from statistics import median

from imgcls.errors import ImgclsError
from imgcls.gateway.gateway import Gateway
from imgcls.rollout.observe import Observer
from imgcls.rollout.samples import Sample, pair_answers
from imgcls.rollout.snapshot import Event, Outcome, Snapshot, StepView, VersionView
from imgcls.rollout.state import Release, RolloutState
from imgcls.rollout.verdicts import Report

SPAN_S = 15.0  # of the requests that rates and latencies are of
LEAST_S = 1.0  # of them, before a rate is told
MOST_EVENTS = 20
LOOK_EVERY_S = 1.0
OUTCOMES: dict[str, Outcome] = {"paused": "paused", "promoted": "promoted", "rolled-back": "aborted"}


class Watcher:
    """Keeps the last snapshot of a rollout; give it to the engine as `on_change`.

    The engine tells of verdicts and steps. Workers and requests change without it, while a step waits for minutes:
    within `looking` they are looked at each second, beside the engine.
    """

    def __init__(self, gateway: Gateway) -> None:
        self.snapshot: Snapshot | None = None
        self._gateway = gateway
        self._events: list[Event] = []
        self._said: tuple[str, ...] = ()
        self._ready: dict[str, int] = {}
        self._looked_s = 0.0
        self._state: RolloutState | None = None
        self._observer: Observer | None = None
        self._lock = threading.Lock()
        self._counting = threading.Lock()

    def __call__(self, state: RolloutState, report: Report | None, samples: Sequence[Sample]) -> None:
        """Takes what has changed."""
        self._look(state.model, is_last=bool(state.ended_s))
        agreement, drift = _compare(state, samples)
        with self._lock:
            now_s = time.time()
            self._note(state, now_s)
            self._observe(state)
            stable, candidate = self._view_both(state)
            self.snapshot = Snapshot(
                model=state.model,
                stable=stable,
                candidate=candidate,
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

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Within it, a thread keeps workers and requests as they are now."""
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(LOOK_EVERY_S):
                with suppress(ImgclsError, OSError):  # a file that cannot be read now may be read the next time
                    self.look()

        thread = threading.Thread(target=look, daemon=True)  # which may be waiting for a server that hangs
        thread.start()
        try:
            yield
        finally:
            ended.set()

    def look(self) -> None:
        """Looks at workers and requests."""
        if self._state is None:
            return
        self._look(self._state.model)
        with self._lock:
            if self.snapshot:
                stable, candidate = self._view_both(self._state)
                self.snapshot = replace(self.snapshot, stable=stable, candidate=candidate)

    def now(self) -> Snapshot | None:
        """Returns the last snapshot as of now, for a view whose clock goes on."""
        return replace(self.snapshot, now_s=time.time()) if self.snapshot else None

    def _look(self, model: str, *, is_last: bool = False) -> None:
        """Counts workers, at most once a second, and not while that is being done; the last time in any case."""
        is_due = is_last or time.monotonic() - self._looked_s >= LOOK_EVERY_S
        if not is_due or not self._counting.acquire(blocking=is_last):
            return
        try:
            self._looked_s = time.monotonic()
            ready: dict[str, int] = {}
            for member in self._gateway.members:
                try:
                    for version, status in member.versions(model).items():
                        ready[version] = ready.get(version, 0) + status.ready_workers
                except ImgclsError:  # it is down, or starting
                    continue
            self._ready = ready
        finally:
            self._counting.release()

    def _observe(self, state: RolloutState) -> None:
        """Follows the requests of both versions, from when both are known."""
        if state.candidate and (self._state is None or self._state.candidate != state.candidate):
            versions = (state.stable.version, state.candidate.version)
            self._observer = Observer(self._gateway.paths, model=state.model, versions=versions, keep_s=SPAN_S)
        self._state = state

    def _note(self, state: RolloutState, now_s: float) -> None:
        facts = (state.status, *(f"{step.name}: {step.status}" for step in state.steps))
        for fact in facts:
            if fact not in self._said and not fact.endswith("pending"):
                self._events.append(Event(now_s, fact))
        self._said = facts

    def _view_both(self, state: RolloutState) -> tuple[VersionView, VersionView]:
        recent = self._observer.read() if self._observer else []
        return (
            self._view(state, state.stable, recent, role="stable"),
            self._view(state, state.candidate, recent, role="new"),
        )

    def _view(
        self, state: RolloutState, release: Release | None, recent: Sequence[Sample], *, role: str
    ) -> VersionView:
        version = release.version if release else "?"
        model = self._gateway.table().find(state.model)
        row = model.find(version) if model else None
        shadow = model.shadow if model else None
        own = [sample for sample in recent if sample.version == version and sample.is_counted]
        durations = sorted(sample.duration_ms for sample in own if not sample.is_error)
        span_s = self._observer.span_s if self._observer else 0.0
        return VersionView(
            version=version,
            role="stable" if role == "stable" else "new",
            weight=row.weight if row else 0.0,
            shadow=shadow.percent if shadow and shadow.version == version else 0.0,
            workers_ready=self._ready.get(version, 0),
            workers_wanted=row.workers * len(self._gateway.members_of(row.servers)) if row else 0,
            requests_per_s=len(own) / span_s if span_s >= LEAST_S else None,
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
