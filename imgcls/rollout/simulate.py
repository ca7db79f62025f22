"""How often a plan errs and how fast it sees a bad version, by playing thousands of rollouts.

All rollouts advance look by look together, as arrays, with the bounds and levels that `judge` uses, so that a plan
can be tried before it is needed: `simulate(plan, Truth(error_rate=0.05), requests_per_s=50)`. Answers are independent
here; where they come in bursts `judge` takes fewer trials for granted and errs less often still.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from imgcls.rollout.looks import Errors, Levels, Phase
from imgcls.rollout.plan import Plan
from imgcls.rollout.statistics import (
    Array,
    Bounds,
    bound_difference,
    bound_mean,
    bound_proportion,
    bound_ratio,
    find_quantile_ranks,
)

Flags = npt.NDArray[np.bool_]
SPREAD = 0.5  # of the logarithm of latencies; p99 is three times the median


@dataclass(frozen=True)
class Truth:
    """What the new version is really like, and the stable one's error rate.

    Args:
        error_rate: of the new version.
        stable_error_rate: of the stable one.
        slowdown: the new version's latencies over the stable one's.
        agreement: part of requests to which both answer alike.
        drift: mean |Δp|, in whole steps from 0 to 1: the distribution that is hardest to tell.
    """

    error_rate: float = 0.002
    stable_error_rate: float = 0.002
    slowdown: float = 1.0
    agreement: float = 0.99
    drift: float = 0.01


@dataclass(frozen=True)
class Outcomes:
    """What became of the rollouts: shares of all, and the medians of those that failed and were promoted.

    Args:
        failed: share that the analysis sent back.
        promoted: share that got all traffic.
        paused: share that was still inconclusive when the time for it was over.
        answers_until_failed: of the new version, shadows included; NaN where none failed.
        failed_after_s: since the first step that is judged; NaN as well.
        promoted_after_s: the same.
    """

    failed: float
    promoted: float
    paused: float
    answers_until_failed: float
    failed_after_s: float
    promoted_after_s: float


class _Side:
    """One version's answers since the step began, in all rollouts; `rate` of them a second."""

    def __init__(self, rollouts: int, rate: float, random: np.random.Generator, longest_s: float) -> None:
        self.rate, self.random = rate, random
        slow = 0.01 * rate * longest_s
        self.kept = int(slow + 6 * np.sqrt(slow)) + 30  # so many of the slowest answers hold p99 and its bounds
        self.count, self.elapsed_s, self.errors = 0, 0.0, np.zeros(rollouts)
        self.slowest: Array = np.zeros((rollouts, 0))  # (rollouts, up to kept) ascending

    def advance(self, seconds: float, *, error_rate: float) -> int:
        """Draws what is answered in the next seconds; returns how many answers that are."""
        count = max(1, round(self.rate * seconds))
        self.count, self.elapsed_s = self.count + count, self.elapsed_s + seconds
        self.last_count, self.last_errors = count, self.random.binomial(count, error_rate, len(self.errors))
        self.errors = self.errors + self.last_errors
        drawn = _draw_slowest(self.random, len(self.errors), count, kept=min(count, self.kept))
        self.slowest = np.sort(np.concatenate([self.slowest, drawn], axis=1), axis=1)[:, -self.kept :]
        return count

    def p99(self, *, low_error: float, high_error: float) -> Bounds:
        """Returns bounds (rollouts,) of the 99th percentile."""
        low, high = find_quantile_ranks(self.count, 0.99, low_error=low_error, high_error=high_error)
        value = int(np.ceil(0.99 * self.count))
        low_ms = self._ranked(low) if low else np.zeros(len(self.errors))
        high_ms = self._ranked(high) if high <= self.count else np.full(len(self.errors), np.inf)
        return Bounds(low_ms, self._ranked(value), high_ms)

    def _ranked(self, rank: int) -> Array:
        return self.slowest[:, rank - self.count - 1]


class _Pairs:
    """What both versions answered to the same requests, in all rollouts."""

    def __init__(self, rollouts: int, random: np.random.Generator, truth: Truth) -> None:
        self.random, self.truth = random, truth
        self.unlike, self.moved = np.zeros(rollouts), np.zeros(rollouts)

    def advance(self, count: int) -> None:
        """Draws as many pairs more."""
        self.unlike = self.unlike + self.random.binomial(count, 1 - self.truth.agreement, len(self.unlike))
        self.moved = self.moved + self.random.binomial(count, self.truth.drift, len(self.moved))


def simulate(
    plan: Plan, truth: Truth, *, requests_per_s: float = 50.0, rollouts: int = 2000, seed: int = 0
) -> Outcomes:
    """Plays rollouts of a version of which the truth is known, under a plan, and says how they ended."""
    random = np.random.default_rng(seed)
    going, failed = np.ones(rollouts, bool), np.zeros(rollouts, bool)
    answers, spent_s = np.zeros(rollouts), np.zeros(rollouts)
    number = 0
    for step in _steps(plan):
        old, new = (_Side(rollouts, rate, random, step.longest_s) for rate in step.rates(requests_per_s))
        pairs = _Pairs(rollouts, random, truth) if step.is_shadow else None
        waiting = going.copy()
        for seconds, phase in _looks(plan, step.hold_s):
            number += phase != "end"
            levels = _levels(plan, number, phase)
            old.advance(seconds, error_rate=truth.stable_error_rate)
            count = new.advance(seconds, error_rate=truth.error_rate)
            if pairs:
                pairs.advance(count)
            answers[waiting] += count
            spent_s[waiting] += seconds
            is_bad, is_good = _judge(plan, levels, old, new, pairs, truth.slowdown)
            failed |= waiting & is_bad
            waiting &= ~(is_bad | is_good) if phase != "hold" else ~is_bad
            if not waiting.any():
                break
        going &= ~failed & ~waiting
    return Outcomes(
        failed=float(failed.mean()),
        promoted=float(going.mean()),
        paused=float((~failed & ~going).mean()),
        answers_until_failed=_median(answers[failed]),
        failed_after_s=_median(spent_s[failed]),
        promoted_after_s=_median(spent_s[going]),
    )


@dataclass(frozen=True)
class _Step:
    """A step that is judged."""

    percent: float
    hold_s: float
    is_shadow: bool
    longest_s: float

    def rates(self, requests_per_s: float) -> tuple[float, float]:
        """Returns how many answers a second the stable and the new version give."""
        share = self.percent / 100
        return requests_per_s * (1 if self.is_shadow else 1 - share), requests_per_s * share


def _steps(plan: Plan) -> Iterator[_Step]:
    beyond_s = plan.analysis.max_wait_s + plan.analysis.interval_s
    if plan.shadow.percent:
        yield _Step(plan.shadow.percent, plan.shadow.hold_s, True, plan.shadow.hold_s + beyond_s)
    for step in plan.canary.steps:
        yield _Step(step.weight, step.hold_s, False, step.hold_s + beyond_s)


def _levels(plan: Plan, number: int, phase: Phase) -> Levels:
    look = plan.schedule().look(number=max(1, number), phase=phase)
    return look.levels(confidence=plan.analysis.confidence, limits=plan.analysis.metrics.count_limits())


def _median(values: Array) -> float:
    return float(np.median(values)) if len(values) else float("nan")


def _looks(plan: Plan, hold_s: float) -> Iterator[tuple[float, Phase]]:
    """Yields for each look of a step the seconds since the one before, and its phase."""
    interval_s, left_s = plan.analysis.interval_s, hold_s
    while left_s > interval_s:
        yield interval_s, "hold"
        left_s -= interval_s
    yield left_s, "end"
    for _ in range(plan.schedule().waits):
        yield interval_s, "wait"


def _judge(
    plan: Plan, levels: Levels, old: _Side, new: _Side, pairs: _Pairs | None, slowdown: float
) -> tuple[Flags, Flags]:
    """Returns which rollouts have failed and which succeed at this look, (rollouts,) each."""
    metrics, upper, lower = plan.analysis.metrics, levels.for_maximum(), levels.for_minimum()
    findings: list[tuple[Flags, Flags]] = []
    if metrics.error_rate:
        before = bound_proportion(old.errors, old.count, **lower)
        after = bound_proportion(new.errors, new.count, **upper)
        has_enough = new.count >= metrics.error_rate.min_samples
        halved: Errors = {"low_error": levels.fail / 2, "high_error": levels.succeed}
        ever = bound_proportion(new.errors, new.count, **halved)
        now = bound_proportion(new.last_errors, new.last_count, **halved)
        either = Bounds(np.maximum(ever.low, now.low), ever.value, ever.high)
        findings += _hold(either, metrics.error_rate.max, has_enough, can_fail=True)
        findings += _hold(bound_difference(after, before), metrics.error_rate.max_increase, has_enough, can_fail=True)
    if metrics.p99_ms:
        ratio = Bounds(*(each * slowdown for each in bound_ratio(new.p99(**upper), old.p99(**lower))))
        has_enough = new.count >= metrics.p99_ms.min_samples
        can_fail = has_enough and new.elapsed_s >= metrics.p99_ms.min_span_s
        findings += _hold(ratio, metrics.p99_ms.max_ratio, has_enough, can_fail=can_fail)
    if pairs and metrics.agreement and metrics.agreement.min is not None:
        has_enough = new.count >= metrics.agreement.min_samples
        unlike = bound_proportion(pairs.unlike, new.count, **upper)
        findings += _hold(unlike, 1 - metrics.agreement.min, has_enough, can_fail=has_enough)
    if pairs and metrics.probability_drift:
        has_enough = new.count >= metrics.probability_drift.min_samples
        drift = bound_mean(pairs.moved / new.count, new.count, **upper)
        findings += _hold(drift, metrics.probability_drift.max, has_enough, can_fail=has_enough)
    bad, good = zip(*findings, strict=True)
    return np.logical_or.reduce(bad), np.logical_and.reduce(good)


def _hold(bounds: Bounds, limit: float | None, has_enough: bool, *, can_fail: bool) -> list[tuple[Flags, Flags]]:
    """Holds bounds against an upper limit; nothing where it is off."""
    if limit is None:
        return []
    return [((bounds.low > limit) & can_fail, (bounds.high <= limit) & has_enough)]


def _draw_slowest(random: np.random.Generator, rollouts: int, count: int, *, kept: int) -> Array:
    """Draws the slowest of `count` latencies without the others: uniform order statistics from the top, transformed.

    Returns:
        (rollouts, kept) in milliseconds, of a lognormal distribution.
    """
    steps = np.log(random.random((rollouts, kept))) / np.arange(count, count - kept, -1)
    ranks = np.exp(np.cumsum(steps, axis=1))  # the largest of `count` uniform numbers, the next, …
    return np.asarray(20 * np.exp(SPREAD * special.ndtri(ranks)))
