"""How surely each judgement of a rollout has to be made, so that the whole rollout errs as seldom as it promises.

A hold is judged every few seconds. Whoever looks a hundred times at the 5 % level sees a false alarm almost
certainly. So what a rollout may err, alpha = 1 - confidence, is shared out beforehand (Bonferroni: it holds however
the looks depend on each other, and costs only the logarithm of their number in samples):

    failed       half of alpha to the looks that end a hold, 2/5 to all others that the plan foresees, 1/10 to those
                 beyond the plan (a pause, a restart): the j-th of these gets 1/(j (j+1)) of it, so it never runs out.
                 Each look's share is split evenly over the limits.
    successful   half of alpha to the look that ends the hold, half to those while waiting beyond it. Not split over
                 limits or steps: a bad version has to get past its own limit, and past all steps.
"""

from dataclasses import dataclass
from typing import Literal, TypedDict

Phase = Literal["hold", "end", "wait"]


class Errors(TypedDict):
    """Error probabilities of two one-sided bounds, as imgcls.rollout.statistics takes them."""

    low_error: float
    high_error: float


@dataclass(frozen=True)
class Levels:
    """The error probability of a single one-sided test."""

    fail: float
    succeed: float

    def for_maximum(self) -> Errors:
        """Returns the error probabilities of bounds held against an upper limit: to fail, `low` has to be above it."""
        return {"low_error": self.fail, "high_error": self.succeed}

    def for_minimum(self) -> Errors:
        """Returns those of bounds held against a lower limit, and of what is subtracted from the former."""
        return {"low_error": self.succeed, "high_error": self.fail}


@dataclass(frozen=True)
class Schedule:
    """How often a plan judges.

    Args:
        steps: that end with a verdict.
        interims: looks in all steps that do not end a hold: within holds, and while waiting beyond them.
        waits: looks of one step while waiting beyond its hold.
    """

    steps: int = 1
    interims: int = 0
    waits: int = 0

    def look(self, *, number: int, phase: Phase) -> "Look":
        """Returns one look of this schedule; see there."""
        return Look(self, number, phase)


@dataclass(frozen=True)
class Look:
    """Which of a rollout's looks one is.

    Args:
        schedule: of the plan.
        number: of the look among those that end no hold, from 1 over the whole rollout.
        phase: "hold", or "end" for the one look at the end of a hold, or "wait" beyond it.
    """

    schedule: Schedule = Schedule()
    number: int = 1
    phase: Phase = "end"

    def levels(self, *, confidence: float, limits: int) -> Levels:
        """Returns how surely a test must fail or succeed at this look.

        Args:
            confidence: of the rollout as a whole, 0..1.
            limits: how many are tested at each look.
        """
        alpha = 1 - confidence
        return Levels(fail=alpha * self._share_of_failure() / max(1, limits), succeed=alpha * self._share_of_success())

    def _share_of_failure(self) -> float:
        schedule = self.schedule
        if self.phase == "end":
            return 0.5 / schedule.steps
        beyond = self.number - schedule.interims
        return 0.4 / schedule.interims if beyond <= 0 else 0.1 / (beyond * (beyond + 1))

    def _share_of_success(self) -> float:
        if not self.schedule.waits:
            return 1.0
        return 0.5 / self.schedule.waits if self.phase == "wait" else 0.5
