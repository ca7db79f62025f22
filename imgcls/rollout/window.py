"""Window: what is judged at one look; Finding: what it says about one limit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from imgcls.rollout.looks import Look
from imgcls.rollout.samples import Sample
from imgcls.rollout.statistics import Bounds
from imgcls.rollout.thresholds import Threshold


@dataclass(frozen=True)
class Window:
    """What is judged: the answers of one step, from its beginning until now.

    Args:
        samples: of both versions; others are left out.
        stable: version that serves.
        candidate: version that shall.
        stage: "shadow" asks for pairs of answers; in "canary" no request has two, so what needs them is not judged.
        look: which of the rollout's looks this is.
        labels: request id -> label, as far as any came back.
        min_samples: answers of the candidate without which the window does not succeed, whatever the metrics say.
    """

    samples: Sequence[Sample]
    stable: str
    candidate: str
    stage: Literal["shadow", "canary"] = "canary"
    look: Look = field(default_factory=Look)
    labels: Mapping[str, str] = field(default_factory=dict)
    min_samples: int = 0


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What is known about one limit.

    Args:
        name: the limit's key in the plan, below analysis.metrics.
        bounds: the truth's, at the levels of this look.
        limit: that must not be passed.
        is_max: whether it is an upper limit.
        unit: for people; "%" of values of 0..1, "ms", or "x" for a ratio.
        samples: of the candidate, that it rests on.
        stable_value: the metric of the stable version; None where it has none.
        threshold: says how many samples it needs and whether it has to succeed.
        can_fail: whether a failure may be said yet.
    """

    name: str
    bounds: Bounds
    limit: float
    is_max: bool
    unit: Literal["%", "ms", "x"]
    samples: int
    stable_value: float | None
    threshold: Threshold
    can_fail: bool
