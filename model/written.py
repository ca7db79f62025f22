"""Sections of files that people write, where `true` is no number; pydantic alone takes it for 1, and `no` for 0.

The base of what the handler and `imgcls` read from YAML.
"""

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationInfo, field_validator
from pydantic_core import PydanticKnownError


class Written(BaseModel):
    """A section whose numbers, alone or in lists, are not written as true or false."""

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_bool(cls, value: Any, info: ValidationInfo) -> Any:
        if _has_bool(value):
            kinds = set(_types_in(cls.model_fields[info.field_name or ""].annotation))
            if bool not in kinds and kinds & {int, float}:
                raise PydanticKnownError("float_type" if float in kinds else "int_type")
        return value


def _has_bool(value: Any) -> bool:
    return any(map(_has_bool, value)) if isinstance(value, list | tuple) else isinstance(value, bool)


def _types_in(annotation: Any) -> Iterator[Any]:
    """Yields a type and all those that it is made of."""
    yield from (annotation,) if isinstance(annotation, type) else ()
    for each in get_args(annotation):
        yield from _types_in(each)
