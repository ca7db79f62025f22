"""Which candidate is recommended and why, and whether the measurements are clear enough to say so."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from imgcls.tuning.candidates import Candidate
from imgcls.tuning.slo import Slo
from imgcls.tuning.trial import Trial

ENOUGH_FINALS = 2  # below, nothing is known of the noise
Word = Literal["successful", "failed", "inconclusive"]


@dataclass(frozen=True)
class Outcome:
    """All that was measured of one candidate; `finals` are its repeated trials, each with a server of its own."""

    candidate: Candidate
    trials: tuple[Trial, ...]
    finals: tuple[Trial, ...]

    @property
    def counted(self) -> tuple[Trial, ...]:
        """The trials that count: the repeated ones, or else the last."""
        return self.finals or self.trials[-1:]

    @property
    def rate(self) -> float:
        """Images a second at the SLO: the median of what counts."""
        return statistics.median(trial.rate for trial in self.counted)

    @property
    def spread(self) -> tuple[float, float] | None:
        """The lowest and the highest of the repeated trials; None where none was repeated."""
        rates = [trial.rate for trial in self.finals]
        return (min(rates), max(rates)) if len(rates) > 1 else None

    @property
    def shown(self) -> Trial:
        """The trial whose latencies stand beside the rate: the one nearest to the median."""
        return min(self.counted, key=lambda trial: abs(trial.rate - self.rate))

    @property
    def memory_bytes(self) -> int:
        """What the server took, workers and frontend."""
        return round(statistics.median(trial.memory_bytes for trial in self.counted))


@dataclass(frozen=True)
class Verdict:
    """`inconclusive` recommends too, but what it recommends may be no better than `rivals`."""

    word: Word
    recommended: Candidate | None
    rivals: tuple[Candidate, ...]
    reason: str


def judge(outcomes: Sequence[Outcome], *, slo: Slo) -> Verdict:
    """Says which candidate to take.

    The one with the highest rate at the SLO. Where the repeated measurements of others overlap with its own, they are
    within the noise, and the one with the least memory is taken. Where none of the repeated ones met the SLO again, one
    that there was no time to repeat is better than none.

    Args:
        outcomes: of the candidates, at least one.
        slo: what they had to meet.
    """
    repeated = [outcome for outcome in outcomes if outcome.finals] or outcomes
    finalists = sorted(repeated, key=lambda outcome: outcome.rate, reverse=True)
    best = finalists[0]
    if best.rate <= 0:
        unrepeated = [outcome for outcome in outcomes if outcome not in repeated and outcome.rate > 0]
        if not unrepeated:
            return Verdict("failed", None, (), describe_miss(outcomes, slo=slo))
        best = max(unrepeated, key=lambda outcome: outcome.rate)
        missed = "; ".join(str(outcome.candidate) for outcome in finalists)
        reason = (
            f"{_describe_rate(best)} at {slo}; there was no time to repeat it, and what was repeated missed: {missed}"
        )
        return Verdict("inconclusive", best.candidate, (), reason)
    others = [outcome for outcome in finalists if outcome is not best]
    if min(len(outcome.finals) for outcome in finalists) < ENOUGH_FINALS:
        which = "it and its rival" if others else "it"
        reason = f"{_describe_rate(best)} at {slo}; there was no time to repeat {which}, so the noise is not known"
        return Verdict("inconclusive", best.candidate, tuple(each.candidate for each in others[:1]), reason)
    rivals = [outcome for outcome in others if _overlap(outcome, best)]
    if not rivals:
        return Verdict("successful", best.candidate, (), _praise(best, others[0] if others else None, slo=slo))
    group = [best, *rivals]
    chosen = min(group, key=lambda outcome: outcome.memory_bytes)
    others = [outcome for outcome in group if outcome is not chosen]
    reason = (
        f"{len(group)} candidates lie within the noise of these measurements ("
        + "; ".join(f"{each.candidate}: {_describe_rate(each)}" for each in group)
        + f"); this one takes the least memory, {chosen.memory_bytes / 1e6:,.0f} MB. A longer --budget tells them apart"
    )
    return Verdict("inconclusive", chosen.candidate, tuple(each.candidate for each in others), reason)


def describe_miss(outcomes: Sequence[Outcome], *, slo: Slo) -> str:
    """Returns how near the best candidate came to the SLO, where none met it."""
    tried = [(trial.best, outcome) for outcome in outcomes for trial in outcome.trials + outcome.finals]
    whole = [pair for pair in tried if not pair[0].failed and not pair[0].dropped and pair[0].answered] or tried
    nearest, outcome = min(whole, key=lambda pair: pair[0].slo_ms or math.inf)
    if nearest.meets(slo):
        return f"no candidate meets {slo} again: {outcome.candidate} did once, at {nearest.images_per_s:.1f} images/s"
    lost = nearest.failed + nearest.dropped
    return (
        f"no candidate meets {slo}; nearest came {outcome.candidate}: p{slo.percentile:g} {nearest.slo_ms:.1f} ms at "
        f"{nearest.rate or 0:.1f} images/s" + (f", {lost} requests not answered" if lost else "")
    )


def _overlap(one: Outcome, other: Outcome) -> bool:
    """Whether the measurements of two candidates touch."""
    low_one, high_one = _interval(one)
    low_other, high_other = _interval(other)
    return low_one <= high_other and low_other <= high_one


def _interval(outcome: Outcome) -> tuple[float, float]:
    """From the lowest to the highest measured rate, and half a step of the search beyond, where the truth may lie."""
    rates = [trial.rate for trial in outcome.counted]
    steps = [trial.missed - trial.rate for trial in outcome.counted if trial.missed is not None]
    return min(rates), max(rates) + max(0.0, statistics.median(steps) / 2 if steps else 0.0)


def _praise(best: Outcome, second: Outcome | None, *, slo: Slo) -> str:
    head = f"{_describe_rate(best)} at {slo}, p{slo.percentile:g} {best.shown.best.slo_ms:.1f} ms"
    if second is None:
        return f"{head}; it is the only one that was measured to the end"
    ratio = f", {best.rate / second.rate:.2f} times" if second.rate else ", while"
    return f"{head}{ratio} {second.candidate} ({_describe_rate(second)}), beyond the noise"


def _describe_rate(outcome: Outcome) -> str:
    if outcome.spread is None:
        return f"{outcome.rate:.1f} images/s, measured once"
    low, high = outcome.spread
    return f"{outcome.rate:.1f} images/s, {low:.1f} to {high:.1f} in {len(outcome.finals)} runs"
