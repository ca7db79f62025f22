"""Plan: how a version is rolled out. `Plan()` alone is a sound one.

Called by the command line and the engine. Reads files; what a plan makes happen is the engine's.
"""

import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from imgcls.rollout.errors import PlanError
from imgcls.rollout.looks import Schedule
from imgcls.rollout.plan_problems import describe_problem
from imgcls.rollout.plan_text import write_toml
from imgcls.rollout.thresholds import Count, Flag, Seconds, Section, Thresholds, Timeout
from imgcls.yaml_once import load_yaml

Step = Literal[
    "verify", "load", "golden", "shadow", "canary", "promote", "drain", "keep-warm", "retire", "instance", "abort"
]
HOOK_POINTS = tuple(f"{when}_{step}" for step in get_args(Step) for when in ("before", "after"))


def _check_decimals(percent: float) -> float:
    if round(percent, 2) != percent:
        raise PydanticCustomError("rollout", "expected at most two decimals", {"path": "", "got": percent})
    return percent


Hundredths = AfterValidator(_check_decimals)  # what the gateway splits requests by


class Shadow(Section):
    """Copies of requests go to the new version too; clients see the stable version's answers alone."""

    percent: Annotated[float, Field(ge=0, le=100, strict=True), Hundredths] = Field(
        20.0, description="of requests that are copied; 0 skips the step"
    )
    hold_s: Seconds = Field(180.0, description="seconds of shadowing before the verdict counts")
    min_samples: Count = Field(100, description="copied requests without which the step does not end well")


class CanaryStep(Section):
    """One share of traffic, and how long it is watched."""

    weight: Annotated[float, Field(strict=True), Hundredths] = Field(
        description="percent of requests, rising from step to step"
    )
    hold_s: Seconds = Field(180.0, description="seconds before the verdict counts")


class Canary(Section):
    """The shares of traffic that the new version gets one after the other, before it gets all."""

    steps: tuple[CanaryStep, ...] = Field(
        (CanaryStep(weight=10.0, hold_s=300.0), CanaryStep(weight=50.0)), description="one after the other"
    )

    @model_validator(mode="after")
    def _weights_rise(self) -> Self:
        below = 0.0
        for index, step in enumerate(self.steps):
            if not below < step.weight < 100:
                context = {"path": f"steps[{index}].weight", "got": step.weight, "low": f"{below:g}"}
                raise PydanticCustomError("rollout", "expected above {low} and below 100", context)
            below = step.weight
        return self


class Analysis(Section):
    """How answers are judged during shadow and canary."""

    interval_s: Annotated[float, Field(ge=0.1, le=86_400, strict=True)] = Field(
        10.0, description="seconds from one judgement to the next"
    )
    confidence: Annotated[float, Field(ge=0.5, le=0.999, strict=True)] = Field(
        0.95, description="that a whole rollout is not failed wrongly, and no bad version succeeds"
    )
    max_wait_s: Seconds = Field(600.0, description="seconds beyond a hold that an inconclusive verdict is waited out")
    on_inconclusive: Literal["pause", "promote", "abort"] = Field(
        "pause", description="when that time is over: pause, promote or abort"
    )
    metrics: Thresholds = Field(default_factory=Thresholds, description="limits; false switches one off")


class Hook(Section):
    """A command or a web address that is called around a step."""

    exec: tuple[str, ...] | None = Field(None, min_length=1, description="a command and its arguments; no shell")
    webhook: str | None = Field(None, pattern="^https?://.", description="http or https address that gets a POST")
    timeout_s: Annotated[float, Field(gt=0, le=86_400, strict=True)] = Field(30.0, description="seconds it may take")
    on_failure: Literal["abort", "ignore"] = Field("abort", description="abort the rollout, or ignore")

    @model_validator(mode="after")
    def _is_one_of_two(self) -> Self:
        if (self.exec is None) == (self.webhook is None):
            got = "neither" if self.exec is None else "both"
            raise PydanticCustomError("rollout", "expected exec or webhook, one of them", {"path": "", "got": got})
        return self


class Plan(Section):
    """How a version is rolled out; every key has a default."""

    strategy: Literal["versions", "instances"] = Field(
        "versions", description="versions: both on every server; instances: server by server, where both have no room"
    )
    instance_hold_s: Seconds = Field(180.0, description="instances: seconds each server is watched before the next")
    workers: Annotated[Count, Field(le=1000)] | None = Field(
        None, description="of the new version; unset: as many as the stable version has"
    )
    ready_timeout_s: Timeout = Field(300.0, description="seconds until all workers have to be READY")
    golden: Flag = Field(True, description="the golden inputs have to be answered right before any traffic")
    keep_warm_s: Seconds = Field(600.0, description="seconds the old version keeps its workers, for undo in seconds")
    drain_timeout_s: Timeout = Field(60.0, description="seconds that requests in flight get before a version is left")
    shadow: Shadow = Field(default_factory=Shadow, description="copies of requests, no answer reaches a client")
    canary: Canary = Field(default_factory=Canary, description="shares of real traffic")
    analysis: Analysis = Field(default_factory=Analysis, description="how answers are judged")
    hooks: dict[str, tuple[Hook, ...]] = Field(
        default_factory=dict, description="before_STEP and after_STEP: " + ", ".join(get_args(Step))
    )

    @field_validator("hooks")
    @classmethod
    def _points_exist(cls, hooks: Mapping[str, tuple[Hook, ...]]) -> Mapping[str, tuple[Hook, ...]]:
        for point in hooks:
            if point not in HOOK_POINTS:
                context = {"path": "", "key": point, "known": HOOK_POINTS}
                raise PydanticCustomError("rollout_key", "unknown key", context)
        return hooks

    def as_toml(self) -> str:
        """Returns the effective plan as TOML with a comment for each key; `read_plan` gives the same plan from it."""
        return write_toml(self)

    def schedule(self) -> Schedule:
        """Returns how often this plan judges: what keeps repeated looks from raising false alarms."""
        analysis = self.analysis
        holds = [step.hold_s for step in self.canary.steps]
        holds += [self.shadow.hold_s] if self.shadow.percent else []
        if self.strategy == "instances":  # one hold is planned, as the servers are not known here
            holds = [self.instance_hold_s]
        waits = math.ceil(analysis.max_wait_s / analysis.interval_s)
        inside = sum(max(0, math.ceil(hold / analysis.interval_s) - 1) for hold in holds)
        return Schedule(steps=max(1, len(holds)), interims=inside + waits * len(holds), waits=waits)


def read_plan(path: Path) -> Plan:
    """Reads a plan from a .toml, .yaml or .yml file.

    Raises:
        PlanError: it cannot be read, or a key is unknown, of the wrong type or out of range. One line: file, key,
            what is there, what is expected.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise PlanError(f"{path}: cannot be read: {err}; expected a plan in TOML or YAML") from err
    content = _parse(path, text)
    if not isinstance(content, dict):
        raise PlanError(f"{path}: holds {type(content).__name__}; expected keys such as canary and analysis")
    try:
        return Plan.model_validate(content)
    except ValidationError as err:
        raise PlanError(f"{path}: {describe_problem(err, root=Plan)}") from err


def _parse(path: Path, text: str) -> Any:
    try:
        match path.suffix.lower():
            case ".toml":
                return tomllib.loads(text)
            case ".yaml" | ".yml":
                return load_yaml(text) or {}
    except (tomllib.TOMLDecodeError, yaml.YAMLError) as err:
        raise PlanError(f"{path}: {' '.join(str(err).split())}") from err
    raise PlanError(f"{path}: a plan's name ends in .toml, .yaml or .yml; got {path.suffix or 'no suffix'}")
