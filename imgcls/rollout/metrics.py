"""What a window says about each limit of a plan: an estimate between two bounds, for analysis.py to judge.

To add a metric: a section in thresholds.py, a function here, its name in `find_all`, docs/rollout-analysis.md.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

from imgcls.rollout.labels import find_right
from imgcls.rollout.looks import Errors, Levels
from imgcls.rollout.samples import OK, Sample, join_answers
from imgcls.rollout.statistics import (
    Array,
    Bounds,
    bound_difference,
    bound_mean,
    bound_paired_difference,
    bound_proportion,
    bound_quantile,
    bound_ratio,
    count_independent,
)
from imgcls.rollout.thresholds import (
    Accuracy,
    Agreement,
    ErrorRate,
    LatencyP99,
    ProbabilityDrift,
    Thresholds,
)
from imgcls.rollout.window import Finding, Window

P99 = 0.99
RECENT_S = 10.0  # long beside a burst of errors, short beside what clients bear


def find_all(window: Window, thresholds: Thresholds, levels: Levels) -> Iterator[Finding]:
    """Yields what the window says about each limit that is on and that its stage can tell."""
    stable = [sample for sample in window.samples if sample.version == window.stable and not sample.is_shadow]
    candidate = [sample for sample in window.samples if sample.version == window.candidate]
    if thresholds.error_rate:
        yield from _find_error_rate(stable, candidate, thresholds.error_rate, levels)
    if thresholds.p99_ms:
        yield from _find_p99(stable, candidate, thresholds.p99_ms, levels)
    if window.stage == "shadow":
        yield from _find_pairs(window, thresholds.agreement, thresholds.probability_drift, levels)
    if thresholds.accuracy and (window.labels or thresholds.accuracy.required):
        yield from _find_accuracy(window, stable, candidate, thresholds.accuracy, levels)


def _find_error_rate(
    stable: Sequence[Sample], candidate: Sequence[Sample], threshold: ErrorRate, levels: Levels
) -> Iterator[Finding]:
    """Clopper-Pearson, and MOVER with such bounds for the increase; on as many trials as bursts leave."""
    old, old_count = _bound_errors(stable, levels.for_minimum())
    new, count = _bound_errors(candidate, levels.for_maximum())
    limits = (
        ("error_rate.max", *_bound_errors_now(candidate, threshold.max, levels), threshold.max),
        ("error_rate.max_increase", bound_difference(new, old), count, threshold.max_increase),
    )
    for name, bounds, count, limit in limits:
        if limit is not None:
            yield Finding(
                name=name,
                bounds=bounds,
                limit=limit,
                is_max=True,
                unit="%",
                samples=count,
                stable_value=float(old.value) if old_count else None,
                threshold=threshold,
                can_fail=True,
            )


def _find_p99(
    stable: Sequence[Sample], candidate: Sequence[Sample], threshold: LatencyP99, levels: Levels
) -> Iterator[Finding]:
    """Order statistics, and MOVER of such bounds' logarithms for the ratio; of answers with status 200."""
    old, old_count = _bound_p99(stable, levels.for_minimum())
    new, count = _bound_p99(candidate, levels.for_maximum())
    limits: tuple[tuple[str, Bounds, float | None, Literal["ms", "x"]], ...] = (
        ("p99_ms.max", new, threshold.max, "ms"),
        ("p99_ms.max_ratio", bound_ratio(new, old), threshold.max_ratio, "x"),
    )
    for name, bounds, limit, unit in limits:
        if limit is not None:
            yield Finding(
                name=name,
                bounds=bounds,
                limit=limit,
                is_max=True,
                unit=unit,
                samples=count,
                stable_value=(float(old.value) if unit == "ms" else 1.0) if old_count else None,
                threshold=threshold,
                can_fail=count >= threshold.min_samples and _span_s(candidate) >= threshold.min_span_s,
            )


def _find_pairs(
    window: Window, agreement: Agreement | None, drift: ProbabilityDrift | None, levels: Levels
) -> Iterator[Finding]:
    """Clopper-Pearson of pairs that are alike; Hoeffding's bounds, with relative entropy, of the mean of |Δp|."""
    joined = join_answers(window.samples, stable=window.stable, candidate=window.candidate)
    if agreement and agreement.min is not None:
        alike, count = sum(pair.is_alike for pair in joined.pairs), len(joined.pairs) + joined.refused
        yield Finding(
            name="agreement.min",
            bounds=bound_proportion(alike, count, **levels.for_minimum()),
            limit=agreement.min,
            is_max=False,
            unit="%",
            samples=count,
            stable_value=None,
            threshold=agreement,
            can_fail=count >= agreement.min_samples,
        )
    if drift and drift.max is not None:
        moved = [each for each in (pair.drift for pair in joined.pairs) if each is not None]
        yield Finding(
            name="probability_drift.max",
            bounds=bound_mean(np.mean(moved) if moved else 0.0, len(moved), **levels.for_maximum()),
            limit=drift.max,
            is_max=True,
            unit="%",
            samples=len(moved),
            stable_value=None,
            threshold=drift,
            can_fail=len(moved) >= drift.min_samples,
        )


def _find_accuracy(
    window: Window, stable: Sequence[Sample], candidate: Sequence[Sample], threshold: Accuracy, levels: Levels
) -> Iterator[Finding]:
    """Clopper-Pearson; and for the drop McNemar's pairs where both answered enough labelled requests, else MOVER."""
    old = find_right(stable, window.labels, version=window.stable)
    new = find_right(candidate, window.labels, version=window.candidate)
    drop, samples = _bound_drop(old, new, threshold, levels)
    limits = (
        ("accuracy.min", _bound_right(new, levels.for_minimum()), threshold.min, False, len(new)),
        ("accuracy.max_drop", drop, threshold.max_drop, True, samples),
    )
    for name, bounds, limit, is_max, count in limits:
        if limit is not None:
            yield Finding(
                name=name,
                bounds=bounds,
                limit=limit,
                is_max=is_max,
                unit="%",
                samples=count,
                stable_value=sum(old.values()) / len(old) if old else None,
                threshold=threshold,
                can_fail=count >= threshold.min_samples,
            )


def _bound_drop(
    old: Mapping[str, bool], new: Mapping[str, bool], threshold: Accuracy, levels: Levels
) -> tuple[Bounds, int]:
    """Returns how much less accurate the candidate is, and the number of its answers that this rests on."""
    shared = old.keys() & new.keys()
    if len(shared) >= threshold.min_samples:
        lost = sum(old[name] and not new[name] for name in shared)
        won = sum(new[name] and not old[name] for name in shared)
        return bound_paired_difference(lost, won, len(shared), **levels.for_maximum()), len(shared)
    before, after = _bound_right(old, levels.for_maximum()), _bound_right(new, levels.for_minimum())
    return bound_difference(before, after), len(new)


def _bound_right(right: Mapping[str, bool], errors: Errors) -> Bounds:
    return bound_proportion(sum(right.values()), len(right), **errors)


def _bound_errors(samples: Sequence[Sample], errors: Errors) -> tuple[Bounds, int]:
    """Returns the bounds of a version's error rate and the number of answers that count."""
    counted = [sample for sample in samples if sample.is_counted]
    failed = np.fromiter((sample.is_error for sample in counted), float, len(counted))
    worth = count_independent(failed, _times(counted))
    return bound_proportion(failed.mean() * worth if counted else 0.0, worth, **errors), len(counted)


def _bound_errors_now(samples: Sequence[Sample], limit: float | None, levels: Levels) -> tuple[Bounds, int]:
    """Returns the bounds of all errors, or those of the last RECENT_S where these alone are beyond the limit.

    A version that breaks for good looks like one burst of errors in what went well before, which is worth little. The
    two share the error probability.
    """
    errors: Errors = {"low_error": levels.fail / 2, "high_error": levels.succeed}
    last_s = max((sample.time_s for sample in samples), default=0.0)
    now, count = _bound_errors([sample for sample in samples if sample.time_s > last_s - RECENT_S], errors)
    return (now, count) if limit is not None and now.low > limit else _bound_errors(samples, errors)


def _bound_p99(samples: Sequence[Sample], errors: Errors) -> tuple[Bounds, int]:
    """Returns the bounds of a version's p99 in ms and the number of answers with status 200."""
    answered = [sample for sample in samples if sample.status == OK]
    durations = np.fromiter((sample.duration_ms for sample in answered), float, len(answered))
    ordered = np.sort(durations)
    slow = durations > ordered[int(np.ceil(P99 * len(ordered))) - 1] if answered else durations
    worth = count_independent(slow.astype(float), _times(answered))
    return bound_quantile(ordered, P99, trials=worth, **errors), len(answered)


def _span_s(samples: Sequence[Sample]) -> float:
    times = _times(samples)
    return float(times.max() - times.min()) if len(times) else 0.0


def _times(samples: Sequence[Sample]) -> Array:
    return np.fromiter((sample.time_s for sample in samples), float, len(samples))
