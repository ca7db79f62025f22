"""ModelSpec: everything needed to rebuild a network and feed it, except its weights.

Written by train.py as `spec.yaml`, packed into the archive, read by evaluation and by the handler.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import ConfigDict, Field, ValidationError, model_validator

from model.errors import SpecError, describe_validation_error
from model.written import Written

SPEC_FILE = "spec.yaml"
WEIGHTS_FILE = "weights.safetensors"

MAX_CHANNELS = 64
PICTURES = {1, 3, 4}  # channels that a picture may have: gray, RGB, RGBA

Channels = Annotated[int, Field(ge=1, le=MAX_CHANNELS)]
Sample = Annotated[int, Field(ge=0, le=65_535)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]


class ModelSpec(Written):
    """One classifier: network, input and classes.

    `channels` is 1 (grayscale), 3 (RGB) or 4 (RGBA); any other number, and these too where `ranges` is given, are bands
    (model.bands), and `ranges` has of each band the samples that become 0 and 255. `size` is the side of the square
    input in pixels; `resize` is the length that the image's shorter side is brought to before the centre crop of
    `size`. `mean` and `std` are per channel, on pixel values scaled to 0..1. `temperature` divides the logits before
    the softmax; `imgcls calibrate` fits it, and 1 changes nothing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    network: str = "simple_cnn"
    parameters: dict[str, Any] = Field(default_factory=dict)
    channels: Channels = 3
    ranges: tuple[tuple[Sample, Sample], ...] | None = None
    size: Annotated[int, Field(ge=1, le=4096)]
    resize: Annotated[int, Field(ge=1, le=8192)]
    interpolation: Interpolation = "bilinear"
    mean: tuple[Finite, ...]
    std: tuple[Annotated[Finite, Field(gt=0)], ...]
    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    temperature: Annotated[Finite, Field(gt=0)] = 1.0

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            got = f"mean has {len(self.mean)} and std {len(self.std)} values"
            raise ValueError(f"{got}; expected {self.channels} each, one a channel")
        if self.ranges is None and self.channels not in PICTURES:
            raise ValueError(f"channels is {self.channels} and ranges is missing; expected a range for each band")
        if self.ranges is not None and len(self.ranges) != self.channels:
            raise ValueError(f"ranges has {len(self.ranges)} ranges; expected {self.channels}, one a channel")
        for low, high in self.ranges or ():
            if low >= high:
                raise ValueError(f"ranges has {low} to {high}; expected the lower sample first")
        if self.resize < self.size:
            raise ValueError(f"resize is {self.resize}; expected at least size, which is {self.size}")
        if len(set(self.classes)) != len(self.classes):
            twice = sorted({name for name in self.classes if self.classes.count(name) > 1})
            raise ValueError(f"classes holds {', '.join(twice)} more than once; expected each name once")
        return self


def read_spec(path: Path) -> ModelSpec:
    """Reads a spec from YAML.

    Raises:
        SpecError: the file is missing, is not YAML, or a field is unknown, missing or out of range.
    """
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as err:  # ValueError: no UTF-8, or a date that is none
        raise SpecError(f"{path}: cannot be read as YAML: {_first_line(err)}") from err
    if not isinstance(fields, dict):
        raise SpecError(f"{path}: got {type(fields).__name__}, expected a mapping with the fields of ModelSpec")
    try:
        return ModelSpec(**fields)
    except ValidationError as err:
        raise SpecError(describe_validation_error(err, where=str(path))) from err


def dump_spec(spec: ModelSpec) -> str:
    """Returns the spec as YAML, fields in their declared order, so that equal specs are equal bytes."""
    fields = spec.model_dump(mode="json", exclude_none=True)
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=120)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
