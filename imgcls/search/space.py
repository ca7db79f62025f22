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
    low = 0                        # whole numbers where both ends are
    high = 5

Any flag of train.py may be named, without its dashes in front; whether it is one is for train.py to say. `out`, `seed`,
`resume` and `overwrite` belong to the search.
"""

import hashlib
import tomllib
from pathlib import Path
from typing import Annotated, Self

import optuna
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from imgcls.errors import UsageError
from model.errors import describe_validation_error

Value = bool | int | float | str
_OWN = ("out", "seed", "resume", "overwrite", "config")


class Dimension(BaseModel):
    """What one flag may be: one of some choices, or a number between two ends."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    choices: Annotated[list[Value], Field(min_length=1)] | None = None
    low: int | float | None = None
    high: int | float | None = None
    step: Annotated[int | float, Field(gt=0)] | None = None
    log: bool = False

    def find_fault(self) -> str:
        """Returns what is wrong, or nothing."""
        has_choices = self.choices is not None
        if has_choices != (self.low is None and self.high is None) or (self.low is None) != (self.high is None):
            return "expected either choices, or low and high"
        if has_choices and (self.log or self.step):
            return "log and step are for low and high, not for choices"
        if self.low is not None and self.high is not None and self.low >= self.high:
            return f"low is {self.low} and high {self.high}; expected low below high"
        if self.log and ((self.low or 0) <= 0 or self.step):
            return "log needs low above 0, and no step"
        return ""

    def suggest(self, trial: optuna.Trial, name: str) -> Value:
        """Asks Optuna for a value."""
        if self.choices is not None:
            chosen: Value = trial.suggest_categorical(name, self.choices)  # type: ignore[assignment] # none is None
            return chosen
        low, high = self.low, self.high
        if isinstance(low, int) and isinstance(high, int):
            return trial.suggest_int(name, low, high, step=int(self.step or 1), log=self.log)
        return trial.suggest_float(name, float(low or 0), float(high or 0), step=self.step, log=self.log)


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
        for name, dimension in self.search.items():
            if fault := dimension.find_fault():
                raise ValueError(f"search.{name}: {fault}")
        return self

    def suggest(self, trial: optuna.Trial) -> dict[str, Value]:
        """Returns the flags of a trial."""
        return self.fixed | {name: dimension.suggest(trial, name) for name, dimension in self.search.items()}


def read_space(path: Path) -> tuple[Space, str]:
    """Reads a search space; returns it with the SHA-256 of its file.

    Raises:
        UsageError: it is missing, no TOML, or a field cannot be meant.
    """
    try:
        data = path.read_bytes()
        fields = tomllib.loads(data.decode())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as err:
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
