"""The `handler:` section of model-config.yaml, and how many threads a worker takes.

handler:
  engine: auto         # how the network is run: auto, or a name such as openvino-int8 (docs/architecture.md)
  threads: auto        # threads of one worker, to decode and to run the network; auto: cores over workers
  decode: cpu          # where JPEGs are decoded: cpu, or gpu (docs/preprocessing.md)
  top_k: 5             # classes in an answer, unless the request says otherwise
  max_pixels: 50000000 # width times height of the largest image that is decoded; a worker needs up to 20 bytes for each
  max_bytes: 100000000 # size of the largest image file; max_request_size of config.properties counts first
"""

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError, field_validator

from model.cores import count_cores
from model.decode_limits import MAX_BYTES, MAX_PIXELS
from model.engines.kinds import AUTO, parse_kind
from model.errors import EngineError, SpecError, describe_validation_error
from model.written import Written

Positive = Annotated[int, Field(ge=1)]
WORKERS_VARIABLE = "IMGCLS_WORKERS"
PILLOW_MAX_PIXELS = 178_956_970  # Pillow itself refuses larger images


class HandlerSettings(Written):
    """Settings of the handler; an unknown key is an error, because TorchServe would ignore it silently."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: str = AUTO
    threads: Positive | Literal["auto"] = "auto"
    decode: Literal["cpu", "gpu"] = "cpu"
    top_k: Positive = 5
    max_pixels: Annotated[int, Field(ge=1, le=PILLOW_MAX_PIXELS)] = MAX_PIXELS
    max_bytes: Positive = MAX_BYTES

    @field_validator("engine")
    @classmethod
    def _engine_is_known(cls, name: str) -> str:
        try:
            return name if name == AUTO else parse_kind(name).name
        except EngineError as err:
            raise ValueError(str(err)) from err


def read_settings(model_config: Mapping[str, Any]) -> HandlerSettings:
    """Reads the `handler:` section of a parsed model-config.yaml.

    Raises:
        SpecError: a key is unknown or a value out of range.
    """
    section = model_config.get("handler") or {}
    try:
        return HandlerSettings.model_validate(section)
    except ValidationError as err:
        raise SpecError(describe_validation_error(err, where="model-config.yaml, handler")) from err


def count_threads(
    settings: HandlerSettings, model_config: Mapping[str, Any], *, gpus: int = 0, cores: int | None = None
) -> int:
    """Returns how many threads one worker gets, so that all workers together do not oversubscribe the cores.

    The number of workers is what `imgcls serve --workers` set in the environment, or else `minWorkers` of
    model-config.yaml. Without either TorchServe starts one worker a GPU where there is one, else one a core.

    Args:
        settings: what may say it.
        model_config: the whole of model-config.yaml.
        gpus: that workers run on; 0: they run on the CPU.
        cores: of the machine; None: those that this process may use.
    """
    if settings.threads != "auto":
        return settings.threads
    cores = cores or count_cores()
    workers = int(os.environ.get(WORKERS_VARIABLE) or read_count(model_config, "minWorkers") or gpus or cores)
    return max(1, cores // max(1, workers))


def read_count(model_config: Mapping[str, Any], key: str) -> int | None:
    """Returns a number of model-config.yaml, None where TorchServe ignores it too: not set, or of another type."""
    value = model_config.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
