"""What a gate answers: a verdict for each rule and one for the run."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

Verdict = Literal["successful", "failed", "inconclusive"]


class Finding(BaseModel):
    """One demand of one rule on one test set or slice.

    `value` is what was measured (of a drop: the run's less the baseline's), `low` and `high` its interval, `limit` what
    it was held to; `reason` says it in words.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    test: str
    slice: str | None
    metric: str
    demand: Literal["min", "max", "max_drop"]
    limit: float
    samples: int
    value: float | None
    low: float | None
    high: float | None
    verdict: Verdict
    reason: str


class GateReport(BaseModel):
    """The whole answer; `weights_sha256` and `baseline_sha256` say which runs it is about."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    verdict: Verdict
    is_passed: bool
    policy_sha256: str
    weights_sha256: str
    baseline_sha256: str | None
    confidence: float
    findings: list[Finding]


def join_verdicts(findings: list[Finding]) -> Verdict:
    """Returns failed where one is, else inconclusive where one is."""
    verdicts = {finding.verdict for finding in findings}
    return "failed" if "failed" in verdicts else "inconclusive" if "inconclusive" in verdicts else "successful"
