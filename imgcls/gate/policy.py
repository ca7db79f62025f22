"""gate.toml: what a run must reach before it may go out.

confidence = 0.95              # of every interval
inconclusive = "refuse"        # or "pass": what becomes of a run of which the images cannot tell
min_samples = 100              # of each test set and slice that a rule is about

[tests.clean]                  # optional: a rule's test set must be of exactly these images
images_sha256 = "…"

[[rule]]
test = "clean"
metric = "accuracy"
min = 0.95                     # a floor; of loss and ece, max
max_drop = 0.01                # against the baseline

[[rule]]
test = "clean"
metric = "f1_macro"
slice = "camera"               # each value of this column on its own; value = "night" for one
min = 0.80
"""

import hashlib
import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from imgcls.errors import UsageError
from model.errors import describe_validation_error

Metric = Literal["accuracy", "top5", "precision_macro", "recall_macro", "f1_macro", "auroc", "loss", "ece"]
LOWER_IS_BETTER = ("loss", "ece")
Share = Annotated[float, Field(ge=0, le=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TestRule(_Part):
    """Which images a test set must be of: `images_sha256` of metrics.json."""

    __test__ = False

    images_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Rule(_Part):
    """One number of one test set: a floor, an allowed drop against the baseline, or both.

    `by` says what a floor is compared with: the interval, which takes the doubt into account, or the estimate alone.
    """

    test: Annotated[str, Field(min_length=1)]
    metric: Metric
    slice: Annotated[str, Field(min_length=1)] | None = None
    value: str | None = None
    min: Annotated[float, Field(allow_inf_nan=False)] | None = None
    max: Annotated[float, Field(allow_inf_nan=False)] | None = None
    max_drop: Share | None = None
    min_samples: Annotated[int, Field(ge=1)] | None = None
    by: Literal["interval", "estimate"] = "interval"

    @model_validator(mode="after")
    def _demands_something(self) -> Self:
        name = f"the rule on {self.metric} of {self.test}"
        is_low = self.metric in LOWER_IS_BETTER
        if self.min is None and self.max is None and self.max_drop is None:
            raise ValueError(f"{name} demands nothing; give it min, max or max_drop")
        if is_low and (self.min is not None or self.max_drop is not None):
            raise ValueError(f"{name}: lower is better, and it has no interval; give it max alone")
        if not is_low and self.max is not None:
            raise ValueError(f"{name}: higher is better; give it min or max_drop, not max")
        if self.min is not None and not 0 <= self.min <= 1:
            raise ValueError(f"{name}: min is {self.min}; expected 0..1")
        if self.value is not None and self.slice is None:
            raise ValueError(f"{name} has a value and no slice; name the column with slice")
        if self.by == "estimate" and self.min is None:
            raise ValueError(f"{name}: by is for a min, which it does not have; leave by off")
        return self


class Policy(_Part):
    """The content of gate.toml."""

    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95
    inconclusive: Literal["refuse", "pass"] = "refuse"
    min_samples: Annotated[int, Field(ge=1)] = 100
    tests: dict[str, TestRule] = Field(default_factory=dict)
    rule: Annotated[list[Rule], Field(min_length=1)]

    @model_validator(mode="after")
    def _pins_are_of_rules(self) -> Self:
        names = sorted({rule.test for rule in self.rule})
        if idle := sorted(set(self.tests) - set(names)):
            raise ValueError(f"tests.{idle[0]}: no rule has test = {idle[0]!r}; expected one of {', '.join(names)}")
        return self

    @property
    def needs_baseline(self) -> bool:
        """Whether a rule compares with a baseline."""
        return any(rule.max_drop is not None for rule in self.rule)


def read_policy(path: Path) -> tuple[Policy, str]:
    """Reads a policy; returns it with the SHA-256 of its file.

    Raises:
        UsageError: it is missing, no TOML, or a field is unknown, missing or out of range.
    """
    try:
        data = path.read_bytes()
        fields = tomllib.loads(data.decode())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as err:
        raise UsageError(f"{path}: cannot be read as TOML: {err}; expected a gate policy, see docs/gate.md") from err
    try:
        return Policy(**fields), hashlib.sha256(data).hexdigest()
    except ValidationError as err:
        raise UsageError(describe_validation_error(err, where=str(path))) from err
