"""What the analysis says: plain data, which views and the log of a rollout read without numpy."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["successful", "failed", "inconclusive"]
SAMPLES = "samples"  # the name of the verdict on their number


@dataclass(frozen=True)
class MetricVerdict:
    """What is said about one limit.

    Args:
        name: the limit's key in the plan, below analysis.metrics.
        verdict: on this limit alone.
        value: as measured; None without a sample.
        stable_value: the same figure of the stable version; None where there is none.
        limit: of the plan.
        interval: in which the truth lies, its two ends at the levels of this look; None is unbounded.
        samples: of the new version that it rests on.
        reason: one line for people.
        is_required: whether the rollout waits for it to succeed.
    """

    name: str
    verdict: Verdict
    value: float | None
    stable_value: float | None
    limit: float
    interval: tuple[float | None, float | None]
    samples: int
    reason: str
    is_required: bool = True


@dataclass(frozen=True)
class Report:
    """The verdict on the whole, the limits' own, and one line that says why."""

    verdict: Verdict
    metrics: tuple[MetricVerdict, ...]
    reason: str
