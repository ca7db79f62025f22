"""Judges a run by a policy.

A floor is successful where the whole interval lies at or above it, failed where the whole interval lies below, and
inconclusive between: then the test set is too small to tell. A drop is judged the same way by the interval of the
difference: a non-inferiority test with the allowed drop as its margin. Of accuracy and top 5 the intervals are score
tests', Wilson's of a floor and Tango's of a drop, as a bootstrap's are too short where few answers are wrong. Of other
numbers they are the bootstrap's, which says nothing of a drop where it has no width. Slices are judged each on their
own; nothing is corrected for their number, so of many slices some are inconclusive by chance, and none is passed by it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from imgcls.errors import RunError, UsageError
from imgcls.evaluation.bootstrap import (
    PROPORTIONS,
    TOP,
    Interval,
    bootstrap_auroc,
    bootstrap_scores,
    find_interval,
    find_wilson,
    measure_auroc,
    score,
)
from imgcls.evaluation.calibration import measure_ece, measure_reliability
from imgcls.evaluation.compare import align, measure_paired, resample_differences
from imgcls.evaluation.metrics import measure_loss
from imgcls.evaluation.reports import hash_weights
from imgcls.evaluation.stored import Stored, read_stored
from imgcls.gate.policy import Policy, Rule
from imgcls.gate.verdict import Finding, GateReport, Verdict, join_verdicts

_TINY = 1e-12  # sums of floats: 0.95 of 100 images is a floor of 0.95
Places = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Measured:
    """A number with its interval, where it has one."""

    value: float
    interval: Interval | None


def judge_run(run: Path, policy: Policy, *, policy_sha256: str, baseline: Path | None = None) -> GateReport:
    """Judges a run by what was stored of it.

    Raises:
        UsageError: the policy has a max_drop, and there is no baseline; or it is about top5 of five classes or fewer.
        RunError: a test set or a slice was not measured, or not on the same images.
    """
    if policy.needs_baseline and baseline is None:
        raise UsageError("the policy has a rule with max_drop and no baseline was given; name one with --against")
    names = sorted({rule.test for rule in policy.rule})
    stored = {name: _read(run, name, policy) for name in names}
    _refuse_idle_rules(policy, stored)
    compared = {rule.test for rule in policy.rule if rule.max_drop is not None}
    others = {name: align(stored[name], read_stored(baseline, name), name=name) for name in compared if baseline}
    findings = [
        finding
        for rule in policy.rule
        for finding in _judge_rule(rule, stored[rule.test], others.get(rule.test), policy=policy)
    ]
    verdict = join_verdicts(findings)
    return GateReport(
        verdict=verdict,
        is_passed=verdict == "successful" or (verdict == "inconclusive" and policy.inconclusive == "pass"),
        policy_sha256=policy_sha256,
        weights_sha256=hash_weights(run),
        baseline_sha256=hash_weights(baseline) if baseline else None,
        confidence=policy.confidence,
        findings=findings,
    )


def _refuse_idle_rules(policy: Policy, stored: Mapping[str, Stored]) -> None:
    """Raises UsageError for a rule that every run would meet."""
    for rule in policy.rule:
        classes = len(stored[rule.test].classes)
        if rule.metric == "top5" and classes <= TOP:
            raise UsageError(
                f"the rule on top5 of {rule.test}: the run has {classes} classes, and the best {TOP} are all of them; "
                f"expected more than {TOP}: put the rule on accuracy"
            )


def _read(run: Path, name: str, policy: Policy) -> Stored:
    stored = read_stored(run, name)
    wanted = policy.tests.get(name)
    if wanted and wanted.images_sha256 != stored.images_sha256:
        raise RunError(
            f"{name}: was measured on images {stored.images_sha256[:12]}…, and the policy demands "
            f"{wanted.images_sha256[:12]}…; evaluate on the images that the policy was written for"
        )
    return stored


def _judge_rule(rule: Rule, stored: Stored, other: Stored | None, *, policy: Policy) -> Iterator[Finding]:
    for value, places in _find_slices(rule, stored):
        fewest = rule.min_samples or policy.min_samples
        demands = {"min": rule.min, "max": rule.max, "max_drop": rule.max_drop}
        for demand, limit in demands.items():
            if limit is None:
                continue
            common = {"test": rule.test, "slice": value, "metric": rule.metric, "demand": demand, "limit": limit}
            if len(places) < fewest:
                reason = f"{len(places)} images; at least {fewest} are demanded"
                measured, verdict = None, "inconclusive"
            else:
                compared = other if demand == "max_drop" else None
                try:
                    measured = _measure(rule, stored, compared, places, policy=policy)
                except RunError as err:
                    raise RunError(f"{rule.test}{f' of {value}' if value else ''}: {err}") from err
                verdict, reason = _decide(measured, demand, limit, by=rule.by)
            yield Finding.model_validate(
                {
                    **common,
                    "samples": len(places),
                    "value": measured.value if measured else None,
                    "low": measured.interval.low if measured and measured.interval else None,
                    "high": measured.interval.high if measured and measured.interval else None,
                    "verdict": verdict,
                    "reason": reason,
                }
            )


def _find_slices(rule: Rule, stored: Stored) -> Iterator[tuple[str | None, Places]]:
    """Yields "column=value" and the places of its images; None and all of them for a rule without a slice."""
    if rule.slice is None:
        yield None, np.arange(len(stored.labels))
        return
    if rule.slice not in stored.columns:
        raise RunError(
            f"{rule.test}: was not measured by {rule.slice!r}; evaluate it with --slice {rule.slice}, which needs a "
            ".csv or .jsonl with that column"
        )
    column = stored.columns[rule.slice]
    found = [str(value) for value in np.unique(column)]
    if rule.value is not None and rule.value not in found:
        named = ", ".join(map(repr, found[:5])) + ", …" * (len(found) > 5)
        raise RunError(
            f"{rule.test}: none of its images has {rule.slice} = {rule.value!r}; they have {named}; mend the rule, or "
            "evaluate on images that have it"
        )
    values = [rule.value] if rule.value is not None else found
    for value in values:
        yield f"{rule.slice}={value}", np.flatnonzero(column == value)


def _measure(rule: Rule, stored: Stored, other: Stored | None, places: Places, *, policy: Policy) -> Measured:
    if other is not None and rule.metric in PROPORTIONS:
        return Measured(*measure_paired(stored, other, rule.metric, places=places, level=policy.confidence))
    if other is not None:
        value, drawn = resample_differences(stored, other, rule.metric, places=places)
        return Measured(value, find_interval(drawn, level=policy.confidence))
    labels, probabilities = stored.labels[places], stored.probabilities[places]
    if rule.metric == "ece":
        return Measured(measure_ece(measure_reliability(labels, probabilities)), None)
    if rule.metric == "loss":
        return Measured(measure_loss(labels, probabilities), None)
    if rule.metric == "auroc":
        area, resampled = measure_auroc(labels, probabilities), bootstrap_auroc(labels, [probabilities])
        if area is None or resampled is None:
            raise RunError("auroc is not defined where all images are of one class; take another metric")
        interval = find_interval(resampled[0], level=policy.confidence)
        return Measured(area, _widen(area, interval, labels, confidence=policy.confidence))
    return _measure_cells(rule.metric, stored, places, confidence=policy.confidence)


def _measure_cells(metric: str, stored: Stored, places: Places, *, confidence: float) -> Measured:
    labels, answers, classes = stored.labels[places], stored.answers.take(places), len(stored.classes)
    value = score(labels, answers, classes=classes)[metric]
    if metric in PROPORTIONS:
        return Measured(value, find_wilson(round(value * len(labels)), len(labels), level=confidence))
    [drawn] = bootstrap_scores(labels, [answers], classes=classes)
    interval = find_interval(drawn[metric], level=confidence)
    return Measured(value, _widen(value, interval, labels, confidence=confidence))


def _widen(value: float, interval: Interval, labels: npt.NDArray[np.int64], *, confidence: float) -> Interval:
    """Returns a faultless number's interval, which resampling leaves without width: Wilson's of its rarest class."""
    if min(value, interval.low) < 1 - _TINY:
        return interval
    rarest = int(np.unique(labels, return_counts=True)[1].min())
    return find_wilson(rarest, rarest, level=confidence)


def _decide(measured: Measured, demand: str, limit: float, *, by: str) -> tuple[Verdict, str]:
    """Compares a number with its limit; a demanded max of loss or ece has no interval to be unsure by."""
    if demand == "max":
        is_met = measured.value <= limit + _TINY
        return ("successful" if is_met else "failed"), f"{measured.value:.4f}, at most {limit:g}"
    floor = -limit if demand == "max_drop" else limit
    low, high = measured.value, measured.value
    if measured.interval and (by == "interval" or demand == "max_drop"):
        low, high = measured.interval.low, measured.interval.high
    text = f"{measured.value:+.4f}" if demand == "max_drop" else f"{measured.value:.4f}"
    wanted = f"a drop of at most {limit:g}" if demand == "max_drop" else f"at least {limit:g}"
    if demand == "max_drop" and low == high:
        return "inconclusive", f"{text}, the same in every resample, which proves nothing, {wanted}; judge accuracy"
    span = f" [{low:.4f}, {high:.4f}]" if low != high else ""
    if low >= floor - _TINY:
        return "successful", f"{text}{span}, {wanted}"
    if high < floor - _TINY:
        return "failed", f"{text}{span}, {wanted}"
    if demand == "min" and limit >= 1:
        return "inconclusive", f'{text}{span}, {wanted}, which no images prove; demand less, or by = "estimate"'
    return "inconclusive", f"{text}{span} lies on both sides of the limit, {wanted}; more images would tell"
