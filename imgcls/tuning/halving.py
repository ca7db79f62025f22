"""Successive halving within a budget: each candidate gets a short look, the better half a longer one, the best several.

    star ─► what won, combined ─► rest of the grid ─► better half, longer ─► … ─► finalists, in turn
    └──────── FIRST_SHARE of the budget ─────────┘                                until time is up

Pure of servers and clocks: both come as functions, so that a test can play them.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from imgcls.tuning.candidates import Candidate, Space, combine
from imgcls.tuning.errors import CandidateError
from imgcls.tuning.trial import Effort, Runner, Trial
from imgcls.tuning.verdict import Outcome

FIRST_SHARE = 0.45  # of the budget, for the first look at candidates
MIDDLE_SHARE = 0.65  # until which the field is halved
FINALISTS = 2
MOST_FINALS = 5  # trials of each finalist
FIRST_STEPS, MIDDLE_STEPS, FINAL_STEPS = 2, 3, 4
MIDDLE_LENGTH, FINAL_LENGTH = 1.5, 2.0  # of a stretch, to the first look's
LONGER = 1.3  # what a first trial of more effort is expected to take, to those of less


@dataclass
class Race:
    """The measurements as they come in."""

    run: Runner
    clock: Callable[[], float]  # seconds since the start
    budget_s: float
    stretch_s: float
    on_trial: Callable[[Candidate, Trial, str], None] = lambda candidate, trial, stage: None
    on_failure: Callable[[CandidateError], None] = lambda error: None
    trials: dict[Candidate, list[Trial]] = field(default_factory=dict)
    finals: dict[Candidate, list[Trial]] = field(default_factory=dict)
    failures: dict[Candidate, str] = field(default_factory=dict)
    not_reached: tuple[Candidate, ...] = ()
    walls_s: dict[Effort, list[float]] = field(default_factory=dict)

    def hold(self, space: Space) -> list[Outcome]:
        """Measures until the budget is spent; at least the first candidate is, whatever it costs.

        Where the first ones cannot be served, the next are tried until then.

        Raises:
            CandidateError: no candidate could be served.
        """
        self._first_look(space)
        field = self._halve(self._best_first(self.trials))
        self._finals(field[:FINALISTS])
        return [Outcome(each, tuple(trials), tuple(self.finals.get(each, ()))) for each, trials in self.trials.items()]

    def _first_look(self, space: Space) -> None:
        effort = Effort(self.stretch_s, FIRST_STEPS)
        for number, candidate in enumerate(self._in_order(space)):
            if number and not self._fits(effort, FIRST_SHARE if self.trials else 1.0):
                self.not_reached = tuple(
                    each for each in self._in_order(space) if each not in self.trials | self.failures
                )
                break
            self._try(candidate, effort, stage=f"first look {number + 1}")
        if not self.trials:
            raise CandidateError(
                f"no candidate could be served: {next(iter(self.failures.values()))}; try imgcls serve"
            )

    def _in_order(self, space: Space) -> Iterator[Candidate]:
        """Yields the star, then what its winners make together, then the grid; each once."""
        seen = set()
        for candidate in space.star():
            seen.add(candidate)
            yield candidate
        scores = {each: score(trials[-1]) for each, trials in self.trials.items()}
        for candidate in [*([combine(scores, space)] if scores else ()), *space.grid()]:
            if candidate not in seen:
                seen.add(candidate)
                yield candidate

    def _halve(self, field: list[Candidate]) -> list[Candidate]:
        while len(field) > FINALISTS:
            field = field[: max(FINALISTS, math.ceil(len(field) / 2))]
            if len(field) <= FINALISTS:
                break
            effort = Effort(self.stretch_s * MIDDLE_LENGTH, MIDDLE_STEPS)
            for candidate in field:
                if not self._fits(effort, MIDDLE_SHARE):
                    return self._best_first(field)
                self._try(candidate, effort, stage="second look")
            field = self._best_first(field)
        return field

    def _finals(self, field: Sequence[Candidate]) -> None:
        """Measures the finalists in turn, each time on a fresh server, so that what drifts meets them all."""
        effort = Effort(self.stretch_s * FINAL_LENGTH, FINAL_STEPS)
        for number in range(MOST_FINALS):
            for candidate in field if number % 2 == 0 else reversed(field):
                if not self._fits(effort, 1.0):
                    return
                self._try(candidate, effort, stage=f"final {number + 1}", into=self.finals)

    def _try(
        self,
        candidate: Candidate,
        effort: Effort,
        *,
        stage: str,
        into: dict[Candidate, list[Trial]] | None = None,
    ) -> None:
        earlier = self.trials.get(candidate, [])
        near = (earlier[-1].rate or None) if earlier else None
        try:
            trial = self.run(candidate, effort, near)
        except CandidateError as err:
            self.failures[candidate] = str(err)
            self.on_failure(err)
            return
        (self.trials if into is None else into).setdefault(candidate, []).append(trial)
        self.walls_s.setdefault(effort, []).append(trial.wall_s)
        self.on_trial(candidate, trial, stage)

    def _fits(self, effort: Effort, share: float) -> bool:
        """Whether a trial of this effort would end within a share of the budget, as far as earlier ones tell."""
        same = self.walls_s.get(effort) or [LONGER * wall_s for walls_s in self.walls_s.values() for wall_s in walls_s]
        return self.clock() + statistics.median(same or [0.0]) <= share * self.budget_s

    def _best_first(self, candidates: Sequence[Candidate] | dict[Candidate, list[Trial]]) -> list[Candidate]:
        return sorted(candidates, key=lambda each: score(self.trials[each][-1]), reverse=True)


def score(trial: Trial) -> float:
    """Returns the rate at the SLO; where none met it, minus the latency: the nearer, the better."""
    return trial.rate or -(trial.best.slo_ms or math.inf)
