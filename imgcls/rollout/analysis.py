"""The verdict on a window of answers: may the new version go on, must it go back, or is it not known yet?

A limit is `failed` where its interval lies wholly beyond it, `successful` where it lies wholly within, else
`inconclusive`. Called by the engine at each look; pure.
"""

import math

from imgcls.rollout.metrics import find_all
from imgcls.rollout.samples import Sample
from imgcls.rollout.thresholds import Thresholds
from imgcls.rollout.verdicts import SAMPLES, MetricVerdict, Report, Verdict
from imgcls.rollout.window import Finding, Window


def judge(window: Window, thresholds: Thresholds, confidence: float) -> Report:
    """Judges the new version.

    Within a hold (`look.phase` "hold") only a failure is to be acted on; there, a success is for people to see.

    Args:
        window: what was answered, and which of the rollout's looks this is.
        thresholds: of the plan.
        confidence: that a whole rollout is not failed wrongly, and that a version beyond a limit does not succeed.
    """
    levels = window.look.levels(confidence=confidence, limits=thresholds.count_limits())
    metrics = tuple(_judge(finding) for finding in find_all(window, thresholds, levels))
    if window.min_samples:
        metrics = (_judge_count(window), *metrics)
    failed = [metric for metric in metrics if metric.verdict == "failed"]
    unknown = [metric for metric in metrics if metric.verdict == "inconclusive" and metric.is_required]
    if failed:
        return Report("failed", metrics, "; ".join(metric.reason for metric in failed))
    if unknown:
        return Report("inconclusive", metrics, "; ".join(metric.reason for metric in unknown))
    return Report("successful", metrics, f"{_count(metrics)} kept" if metrics else "no limit applies")


def _judge(finding: Finding) -> MetricVerdict:
    low, value, high = (_finite(each) for each in finding.bounds)
    return MetricVerdict(
        name=finding.name,
        verdict=decide(finding),
        value=value if finding.samples else None,
        stable_value=finding.stable_value,
        limit=finding.limit,
        interval=(low, high),
        samples=finding.samples,
        reason=describe(finding),
        is_required=finding.threshold.required,
    )


def decide(finding: Finding) -> Verdict:
    """Says on which side of its limit the interval lies; NaN, from no samples, lies on none."""
    low, limit, high = finding.bounds.low, finding.limit, finding.bounds.high
    is_beyond, is_within = (low > limit, high <= limit) if finding.is_max else (high < limit, low >= limit)
    if is_beyond and finding.can_fail:
        return "failed"
    return "successful" if is_within and finding.samples >= finding.threshold.min_samples else "inconclusive"


def describe(finding: Finding) -> str:
    """Returns one line: what was measured, how sure that is, and the limit."""
    samples, least = finding.samples, finding.threshold.min_samples
    verdict = decide(finding)
    limit = f"the limit is {_show(finding.limit, finding)}"
    if not samples:
        return f"{finding.name}: no samples yet; needs {least}"
    measured = f"{finding.name}: {_show(finding.bounds.value, finding)} in {samples:,} samples"
    if finding.stable_value is not None and finding.unit != "x":
        measured += f" (stable {_show(finding.stable_value, finding)})"
    if samples < least and verdict != "failed":
        return f"{measured}; needs {least:,}"
    low, high = _show(finding.bounds.low, finding), _show(finding.bounds.high, finding)
    is_up = (verdict == "failed") == finding.is_max
    sure = f"surely above {low}" if is_up else f"surely below {high}"
    return f"{measured}, {sure if verdict != 'inconclusive' else f'between {low} and {high}'}; {limit}"


def _judge_count(window: Window) -> MetricVerdict:
    count = sum(_is_counted(sample, window) for sample in window.samples)
    has_enough = count >= window.min_samples
    return MetricVerdict(
        name=SAMPLES,
        verdict="successful" if has_enough else "inconclusive",
        value=float(count),
        stable_value=None,
        limit=float(window.min_samples),
        interval=(float(count), float(count)),
        samples=count,
        reason=f"{SAMPLES}: {count:,} answers of the new version; needs {window.min_samples:,}",
    )


def _is_counted(sample: Sample, window: Window) -> bool:
    return sample.version == window.candidate and sample.is_counted


def _count(metrics: tuple[MetricVerdict, ...]) -> str:
    kept = sum(metric.verdict == "successful" for metric in metrics)
    return f"{kept} of {len(metrics)} limits" if kept < len(metrics) else f"all {kept} limits"


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _show(value: float, finding: Finding) -> str:
    match finding.unit:
        case "%":
            return f"{100 * value:.2f} %"
        case "ms":
            return f"{value:.1f} ms" if math.isfinite(value) else "any time"
    return f"{value:.2f} times stable's" if math.isfinite(value) else "any ratio"
