"""What a request may ask besides its image: how many classes to rank, which class to explain, and in which format."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from handler.errors import RequestError

OPTION_FIELDS = ("top_k", "target")


class Headers(Protocol):
    """What the handler uses of TorchServe's RequestProcessor."""

    def get_request_properties(self) -> dict[str, Any]:
        """Returns the request's headers as text, and beside them, under the names of its parts, each part's type."""


@dataclass(frozen=True)
class Options:
    """What is asked about one image.

    Attributes:
        top_k: how many classes to rank.
        target: index of the class to explain; None: the most probable one.
    """

    top_k: int
    target: int | None = None


def find_header(headers: Headers, name: str) -> str | None:
    """Returns a request header whatever its capitals, or None."""
    found = (value for key, value in headers.get_request_properties().items() if key.lower() == name)
    return next((value for value in found if isinstance(value, str)), None)


def find_options(values: Any) -> dict[str, Any]:
    """Returns the options among the fields of a JSON object or a form; null counts as not said."""
    if not isinstance(values, Mapping):
        return {}
    return {name: values[name] for name in OPTION_FIELDS if values.get(name) is not None}


def parse_options(values: Mapping[str, Any], *, defaults: Options, labels: Sequence[str]) -> Options:
    """Parses what was found.

    Raises:
        RequestError: `top_k` is no whole number from 1, or `target` is none of the classes.
    """
    top_k = parse_top_k(values["top_k"]) if "top_k" in values else defaults.top_k
    target = parse_target(values["target"], labels=labels) if "target" in values else defaults.target
    return Options(top_k=top_k, target=target)


def parse_top_k(value: Any) -> int:
    """Returns a number of classes.

    Raises:
        RequestError: it is no whole number from 1.
    """
    text = _to_text(value)
    number = _to_number(text)
    if not number:
        raise RequestError(f"top_k is {text[:40]!r}; expected a whole number from 1")
    return number


def parse_target(value: Any, *, labels: Sequence[str]) -> int:
    """Returns the index of the class that a label or an index names; text is a label first, as labels may be numbers.

    Raises:
        RequestError: it names no class, or several.
    """
    text = _to_text(value)
    named = [index for index, label in enumerate(labels) if label == text and not isinstance(value, int)]
    if len(named) > 1:
        raise RequestError(f"target is {text[:40]!r}, which {len(named)} classes are called; give the class's index")
    if named:
        return named[0]
    index = _to_number(text)
    if index is not None and index < len(labels):
        return index
    raise RequestError(
        f"target is {text[:40]!r}; expected an index from 0 to {len(labels) - 1}, or a label such as {labels[0]!r}"
    )


def wants_picture(headers: Headers) -> bool:
    """Whether the Accept header names PNG, and prefers it to JSON where it names that too."""
    weights: dict[str, float] = {}
    for entry in (find_header(headers, "accept") or "").lower().split(","):
        kind, *parameters = (part.strip() for part in entry.split(";"))
        weights[kind] = _parse_weight(parameters)
    return weights.get("image/png", weights.get("image/*", 0.0)) > weights.get("application/json", 0.0)


def _parse_weight(parameters: Sequence[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


def _to_number(text: str) -> int | None:
    """Returns the whole number of some digits, of many of them another one as large; None where they are none."""
    return int(text.lstrip("0")[:9] or 0) if text.isascii() and text.isdigit() else None


def _to_text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes | bytearray) else str(value)
