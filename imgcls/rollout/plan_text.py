"""A plan as TOML, with each key's meaning beside it: what `Plan.as_toml` prints."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

COLUMN = 36  # where comments begin


def write_toml(plan: BaseModel) -> str:
    """Returns the whole plan, defaults included; reading it gives the same plan."""
    return "\n".join(_section(plan, path="")).strip() + "\n"


def _section(section: BaseModel, *, path: str) -> Iterator[str]:
    """Yields the section's own keys first, then the sections in it, as TOML wants it."""
    nested = []
    for key, field in type(section).model_fields.items():
        value = getattr(section, key)
        if isinstance(value, BaseModel) or _holds_sections(value):
            nested.append((f"{path}{key}", value, field.description))
        elif value is None:
            yield _unset(key, field.default is None, field.description)
        else:
            yield _line(f"{key} = {_value(value)}", field.description)
    for name, value, description in nested:
        yield from _nested(name, value, description)


def _nested(name: str, value: Any, description: str | None) -> Iterator[str]:
    if isinstance(value, BaseModel):
        yield from ("", _line(f"[{name}]", description), *_section(value, path=f"{name}."))
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _nested(f"{name}.{key}", each, description)
    else:
        for each in value:
            yield from ("", f"[[{name}]]", *_section(each, path=f"{name}."))


def _unset(key: str, is_default: bool, description: str | None) -> str:
    """TOML has no null: a limit that is off is false, and what is unset by default stays out."""
    return _line(
        f"# {key} =" if is_default else f"{key} = false", f"{description}; off" if not is_default else description
    )


def _line(text: str, comment: str | None) -> str:
    return f"{text.ljust(COLUMN)}  # {comment}" if comment else text


def _holds_sections(value: Any) -> bool:
    if isinstance(value, Mapping):
        return True
    return isinstance(value, tuple) and bool(value) and isinstance(value[0], BaseModel)


def _value(value: Any) -> str:
    """JSON's numbers, words and lists of texts are TOML's too; its texts are but for DEL, which TOML wants escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
