"""The tables of docs/rollout-analysis.md: how many answers a limit needs, and how often the default plan errs.

python -m imgcls.rollout.tables              about a minute
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from imgcls.rollout.looks import Errors
from imgcls.rollout.plan import Plan
from imgcls.rollout.simulate import Truth, simulate
from imgcls.rollout.statistics import Array, bound_difference, bound_mean, bound_proportion, find_quantile_ranks

COUNTS = np.arange(10, 40_001)
HALF = 0.025  # what the look that ends a hold may err at a confidence of 0.95
ERRORS: Errors = {"low_error": HALF, "high_error": HALF}
STABLE = 20_000  # answers of the stable version that are compared with


def list_needed_answers() -> Iterator[tuple[str, str, str, int]]:
    """Yields metric, limit, what is measured, and the answers of the new version from which on that succeeds."""
    for limit in (0.005, 0.01, 0.02, 0.05):
        for errors in (0.0, limit / 4):
            yield "error_rate.max", f"{limit:.1%}", f"{errors:.2%}", _first(_rate(errors) <= limit)
    for limit in (0.005, 0.01, 0.02):
        for errors in (0.0, 0.002):
            measured = f"{errors:.1%}, stable too"
            yield "error_rate.max_increase", f"{limit:.1%}", measured, _first(_rise(errors) <= limit)
    yield "p99_ms.max", "any", "p99 far below", find_first_p99()
    for limit in (0.90, 0.95, 0.98):
        for alike in (1.0, 1 - (1 - limit) / 4):
            needed = _first(_rate(1 - alike) <= 1 - limit)
            yield "agreement.min", f"{limit:.0%}", f"{alike:.1%}", needed
    for limit in (0.02, 0.05, 0.1):
        needed = _first(bound_mean(np.full(len(COUNTS), limit / 4), COUNTS, **ERRORS).high <= limit)
        yield "probability_drift.max", f"{limit:.0%}", f"{limit / 4:.2%}", needed
    for limit in (0.02, 0.05):
        needed = _first(_paired_drop() <= limit)
        yield "accuracy.max_drop", f"{limit:.0%}", "pairs; 2% lost, 2% won", needed
        needed = _first(_drop() <= limit)
        yield "accuracy.max_drop", f"{limit:.0%}", "no pairs; both 90%", needed


def list_outcomes(*, rollouts: int) -> Iterator[tuple[str, str, str, str, str, str]]:
    """Yields what a version is like, and how rollouts of it end: failed, promoted, paused, answers and seconds."""
    plan = Plan()
    hasty = plan.model_copy(update={"analysis": plan.analysis.model_copy(update={"max_wait_s": 60.0})})
    versions = {
        "equal to stable": (plan, Truth()),
        "at error_rate.max": (hasty, Truth(error_rate=0.02, stable_error_rate=0.019)),
        "at error_rate.max_increase": (hasty, Truth(error_rate=0.012)),
        "at p99_ms.max_ratio": (hasty, Truth(slowdown=1.5)),
        "at agreement.min": (hasty, Truth(agreement=0.95)),
        "at probability_drift.max": (hasty, Truth(drift=0.05)),
        "5% errors": (plan, Truth(error_rate=0.05)),
        "5% errors, no shadow": (_without_shadow(plan), Truth(error_rate=0.05)),
        "only errors": (plan, Truth(error_rate=1.0)),
        "twice as slow": (plan, Truth(slowdown=2.0)),
        "three times as slow": (plan, Truth(slowdown=3.0)),
        "10% of answers changed": (plan, Truth(agreement=0.9)),
        "labels permuted": (plan, Truth(agreement=0.1, drift=0.5)),
    }
    for name, (tried, truth) in versions.items():
        found = simulate(tried, truth, rollouts=rollouts)
        after = found.failed_after_s if found.failed > found.promoted else found.promoted_after_s
        yield (
            name,
            f"{found.failed:.2%}",
            f"{found.promoted:.2%}",
            f"{found.paused:.2%}",
            _number(found.answers_until_failed if found.failed > 0.5 else np.nan),
            _number(after if max(found.failed, found.promoted) > 0.5 else np.nan),
        )


def find_first_p99() -> int:
    """Returns how many answers p99 needs to have an upper bound at all."""
    return next(count for count in range(100, 2000) if find_quantile_ranks(count, 0.99, **ERRORS)[1] <= count)


def _first(kept: npt.NDArray[np.bool_]) -> int:
    """Returns the count from which on, and at all above, a limit is kept."""
    return int(COUNTS[np.flatnonzero(~kept)[-1] + 1])


def _rate(share: float) -> Array:
    return np.asarray(bound_proportion(COUNTS * share, COUNTS, **ERRORS).high)


def _rise(share: float) -> Array:
    old = bound_proportion(STABLE * share, STABLE, **ERRORS)
    new = bound_proportion(COUNTS * share, COUNTS, **ERRORS)
    return np.asarray(bound_difference(new, old).high)


def _drop() -> Array:
    """Both right in 90 %, each on requests of its own; as many of either."""
    right = bound_proportion(COUNTS * 0.9, COUNTS, **ERRORS)
    return np.asarray(bound_difference(right, right).high)


def _paired_drop() -> Array:
    """2 % of the same requests lost, 2 % won."""
    part = bound_proportion(COUNTS * 0.02, COUNTS, **ERRORS)
    return np.asarray(bound_difference(part, part, correlation=-0.02 / 0.98).high)


def _without_shadow(plan: Plan) -> Plan:
    return plan.model_copy(update={"shadow": plan.shadow.model_copy(update={"percent": 0.0})})


def _number(value: float) -> str:
    return "" if np.isnan(value) else f"{value:,.0f}"


def _print(title: tuple[str, ...], rows: Iterator[tuple[object, ...]]) -> None:
    print("|", " | ".join(title), "|")
    print("|" + "---|" * len(title))
    for row in rows:
        print("|", " | ".join(f"{each:,}" if isinstance(each, int) else str(each) for each in row), "|", flush=True)


if __name__ == "__main__":
    _print(("limit", "set to", "measured", "answers needed"), list_needed_answers())
    print()
    _print(("the new version is", "failed", "promoted", "paused", "answers", "seconds"), list_outcomes(rollouts=2000))
