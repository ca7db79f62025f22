"""What a new version has to keep to: the section `analysis.metrics` of a plan.

Each metric is a section of limits, and `false` switches it, or one of its limits, off. The defaults suit a classifier
that shall answer as its predecessor does; a version that is meant to answer otherwise needs a looser `agreement` and
`probability_drift`.
"""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Section(BaseModel):
    """A part of a plan: every key is known, and nothing changes after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _read_off(value: Any) -> Any:
    return None if value is False else value


OFF = BeforeValidator(_read_off)  # TOML has no null
Fraction = Annotated[float, Field(ge=0, le=1, strict=True)]
Positive = Annotated[float, Field(gt=0, strict=True)]
LONGEST_S = 2_592_000  # 30 days; what waits so long and longer overflows at some number
Seconds = Annotated[float, Field(ge=0, le=LONGEST_S, strict=True)]
Timeout = Annotated[float, Field(gt=0, le=LONGEST_S, strict=True)]
Count = Annotated[int, Field(ge=1, le=1_000_000_000, strict=True)]
Limit = Annotated[Fraction | None, OFF]
Flag = Annotated[bool, Field(strict=True)]


class Threshold(Section):
    """The limits of one metric."""

    min_samples: Count = Field(100, description="answers of the new version without which nothing is said")
    required: Flag = Field(True, description="false: it can fail a rollout, but need not succeed")


class ErrorRate(Threshold):
    """Answers with a status of 500 or above, and none at all, in all answers; 4xx are the client's own."""

    min_samples: Count = Field(100, description="answers without which it cannot succeed; errors can fail it earlier")
    max: Limit = Field(0.02, description="at most this part may fail")
    max_increase: Limit = Field(0.01, description="at most this much more than of the stable version's answers")


class LatencyP99(Threshold):
    """The time that 99 of 100 answers with status 200 do not exceed."""

    min_span_s: Seconds = Field(
        30.0, description="seconds of answers without which it cannot fail: one version may have had a stall by chance"
    )
    max: Annotated[Positive | None, OFF] = Field(None, description="milliseconds")
    max_ratio: Annotated[Positive | None, OFF] = Field(1.5, description="times the stable version's")


class Agreement(Threshold):
    """The part of shadowed requests that both versions gave the same best class."""

    min: Limit = Field(0.95, description="at least this part alike; a refusal of what stable answers is unlike")


class ProbabilityDrift(Threshold):
    """How far the probability of the stable version's best class moves: the mean absolute difference over pairs."""

    max: Limit = Field(0.05, description="at most this far, of 0..1")


class Accuracy(Threshold):
    """The part of labelled requests that was answered right; judged where labels come back."""

    required: Flag = Field(False, description="true: without enough labels the rollout does not go on")
    min: Limit = Field(None, description="at least this part right")
    max_drop: Limit = Field(0.05, description="at most this much less than the stable version")


class Thresholds(Section):
    """All metrics; false switches one off."""

    error_rate: Annotated[ErrorRate | None, OFF] = Field(default_factory=ErrorRate, description="5xx and no answer")
    p99_ms: Annotated[LatencyP99 | None, OFF] = Field(default_factory=LatencyP99, description="latency")
    agreement: Annotated[Agreement | None, OFF] = Field(
        default_factory=Agreement, description="of shadowed requests, with the stable version's best class"
    )
    probability_drift: Annotated[ProbabilityDrift | None, OFF] = Field(
        default_factory=ProbabilityDrift, description="of shadowed requests, of the stable version's best class"
    )
    accuracy: Annotated[Accuracy | None, OFF] = Field(default_factory=Accuracy, description="where labels come back")

    def count_limits(self) -> int:
        """Returns how many tests a look makes at most: they share what a rollout may err."""
        names = ("max", "max_increase", "max_ratio", "min", "max_drop")
        metrics = [getattr(self, name) for name in type(self).model_fields]
        return sum(getattr(metric, name, None) is not None for metric in metrics for name in names)
