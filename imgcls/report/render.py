"""Fills the templates; everything in them is escaped, but the drawings that `charts` makes."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from imgcls.evaluation.bootstrap import Interval


def render(template: str, values: Mapping[str, Any]) -> str:
    """Returns a page as HTML."""
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("imgcls.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=_percent, span=_span, count=_count, short=_short)
    return environment


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f} %"


def _span(interval: Interval | None) -> str:
    return "" if interval is None else f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"


def _count(number: int) -> str:
    return f"{number:,}"


def _short(text: str, length: int = 40) -> str:
    return text if len(text) <= length else f"…{text[1 - length :]}"
