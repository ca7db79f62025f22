"""What every Envoy resource needs: its type's URL, and durations and fractions as Envoy's JSON writes them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

Resource = dict[str, Any]

TYPES = "type.googleapis.com/envoy"
HUNDREDTHS = "TEN_THOUSAND"  # a fraction's denominator: hundredths of a percent


def typed(kind: str, /, **fields: Any) -> Resource:
    """Returns a message with its type, such as `config.route.v3.RouteConfiguration`."""
    return {"@type": f"{TYPES}.{kind}", **fields}


def extension(name: str, message: Resource) -> Resource:
    """Returns an entry of a list of filters, loggers or monitors."""
    return {"name": name, "typed_config": message}


def duration(seconds: float) -> str:
    """Returns a duration as protobuf's JSON has it."""
    return f"{seconds:.3f}s"


def fraction(percent: float) -> Resource:
    """Returns a runtime fraction of requests; Envoy compares one random number of a request with all of them."""
    return {"default_value": {"numerator": round(percent * 100), "denominator": HUNDREDTHS}}


def header(name: str, value: str, *, action: str = "OVERWRITE_IF_EXISTS_OR_ADD") -> Resource:
    """Returns a header to be set."""
    return {"header": {"key": name, "value": value}, "append_action": action}


def lua_filter(name: str, *scripts: str, values: Mapping[str, str] | None = None) -> Resource:
    """Returns a filter that runs scripts of the folder `lua`, one after the other, as one.

    Args:
        name: of the filter.
        scripts: the files.
        values: what replaces `${KEY}` in them.
    """
    folder = Path(__file__).parent / "lua"
    text = "\n".join((folder / script).read_text(encoding="utf-8") for script in scripts)
    for key, value in (values or {}).items():
        text = text.replace(f"${{{key}}}", value)
    return extension(name, typed("extensions.filters.http.lua.v3.Lua", default_source_code={"inline_string": text}))
