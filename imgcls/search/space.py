"""space.toml: which flags of train.py are searched, and which are fixed.

    [fixed]
    data = "photos/"
    epochs = 20

    [search.lr]
    low = 0.001
    high = 1.0
    log = true

    [search.batch-size]
    choices = [32, 64, 128]

    [search.warmup-epochs]
    low = 0                        # whole numbers where both ends and the step are
    high = 5

Any flag of train.py may be named, without its dashes in front; whether it is one is for train.py to say. `out`, `seed`,
`resume` and `overwrite` belong to the search.
"""

import hashlib
import math
import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Self

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from imgcls.errors import UsageError
from imgcls.training.config import TrainConfig
from model.errors import describe_validation_error

Value = bool | int | float | str
_MOST = 1e15  # of a number, and of steps between two; beyond, Optuna's sums are not exact, or end in an error
_OWN = ("out", "seed", "resume", "overwrite", "config")


class Dimension(BaseModel):
    """What one flag may be: one of some choices, or a number between two ends."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    choices: Annotated[list[Value], Field(min_length=1)] | None = None
    low: int | float | None = None
    high: int | float | None = None
    step: Annotated[int | float, Field(gt=0)] | None = None
    log: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether whole numbers are meant: both ends are, and so is the step."""
        return isinstance(self.low, int) and isinstance(self.high, int) and not (self.step or 1) % 1

    def find_fault(self, name: str) -> str:
        """Returns what is wrong for the flag `name`, or nothing."""
        has_choices = self.choices is not None
        if has_choices != (self.low is None and self.high is None) or (self.low is None) != (self.high is None):
            return "expected either choices, or low and high"
        if has_choices and (self.log or self.step):
            return "log and step are for low and high, not for choices"
        if endless := [value for value in self.choices or () if _is_endless(value)]:
            return f"choices hold {endless[0]}; expected a number"
        if self.low is None or self.high is None:
            return ""
        for key, value in (("low", self.low), ("high", self.high), ("step", self.step)):
            if value is not None and not abs(value) <= _MOST:  # nan is refused too
                return f"{key} is {value}; expected a number between {-_MOST:g} and {_MOST:g}"
        if self.low >= self.high:
            return f"low is {self.low} and high {self.high}; expected low below high"
        if self.log and (self.low <= 0 or self.step):
            return "log needs low above 0, and no step"
        span = Decimal(str(self.high)) - Decimal(str(self.low))  # 0.3 - 0.1 holds a step of 0.2
        least = span / Decimal(_MOST)
        if self.step and not least <= Decimal(str(self.step)) <= span:
            return f"step is {self.step}; expected high - low, {span}, or less, down to {least:g}"
        if self.step and self.step % 1 and _is_count(name):
            return f"step is {self.step}; expected a whole number, as {name} is one"
        return ""

    @property
    def distribution(self) -> BaseDistribution:
        """What Optuna draws from."""
        if self.choices is not None:
            return CategoricalDistribution(self.choices)
        low, high = self.low or 0, self.high or 0
        if self.is_whole:
            return IntDistribution(int(low), int(high), step=int(self.step or 1), log=self.log)
        return FloatDistribution(low, high, step=self.step, log=self.log)


class Space(BaseModel):
    """The content of space.toml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fixed: dict[str, Value] = Field(default_factory=dict)
    search: Annotated[dict[str, Dimension], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_are_free(self) -> Self:
        if taken := [name for name in (*self.fixed, *self.search) if name in _OWN]:
            raise ValueError(f"{taken[0]} is set by the search itself; leave it out")
        if twice := sorted(set(self.fixed) & set(self.search)):
            raise ValueError(f"{twice[0]} is both fixed and searched; leave one out")
        if endless := [name for name, value in self.fixed.items() if _is_endless(value)]:
            raise ValueError(f"fixed.{endless[0]} is {self.fixed[endless[0]]}; expected a number")
        for name, dimension in self.search.items():
            if fault := dimension.find_fault(name):
                raise ValueError(f"search.{name}: {fault}")
        return self

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """What Optuna draws each searched flag from."""
        return {name: dimension.distribution for name, dimension in self.search.items()}

    def ask(self, study: optuna.Study) -> tuple[optuna.Trial, dict[str, Value]]:
        """Begins a trial; returns it with its flags."""
        trial = study.ask(self.distributions)
        return trial, self.fixed | trial.params


def _is_endless(value: Value) -> bool:
    """Whether it is nan or inf, which TOML can hold and no flag can be."""
    return isinstance(value, float) and not math.isfinite(value)


def _is_count(name: str) -> bool:
    """Whether a flag takes whole numbers only; what is no flag is for train.py to say."""
    field = TrainConfig.model_fields.get(name.replace("-", "_"))
    kind: Any = field.annotation if field else Any
    try:
        TypeAdapter(kind).validate_python(0.5)
    except ValidationError as err:
        return any(fault["type"] == "int_from_float" for fault in err.errors())
    return False


def read_space(path: Path) -> tuple[Space, str]:
    """Reads a search space; returns it with the SHA-256 of its file.

    Raises:
        UsageError: it is missing, no TOML, or a field cannot be meant.
    """
    try:
        data = path.read_bytes()
        fields = tomllib.loads(data.decode())
    except (OSError, ValueError) as err:
        raise UsageError(f"{path}: cannot be read as TOML: {err}; expected a search space, see docs/search.md") from err
    try:
        return Space(**fields), hashlib.sha256(data).hexdigest()
    except ValidationError as err:
        raise UsageError(describe_validation_error(err, where=str(path))) from err


def to_flags(values: dict[str, Value]) -> list[str]:
    """Returns command-line flags; true and false become --name and --no-name."""
    flags: list[str] = []
    for name, value in values.items():
        if isinstance(value, bool):
            flags.append(f"--{name}" if value else f"--no-{name}")
        else:
            flags += [f"--{name}", str(value)]
    return flags
