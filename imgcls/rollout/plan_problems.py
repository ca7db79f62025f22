"""Words for what is wrong in a plan: the key as it is written in the file, what is there, what is expected."""

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

SHOWN = 3  # problems on one line
KINDS = {
    "bool": "true or false",
    "float": "a number",
    "int": "a whole number",
    "string": "a text",
    "model": "a section of keys",
    "dict": "a section of keys",
    "tuple": "a list",
    "finite": "a finite number",
}


def describe_problem(error: ValidationError, *, root: type[BaseModel], of: str = "of a plan") -> str:
    """Returns what is wrong on one line, such as `shadow.percent is 120; expected 0 to 100`."""
    items = [dict(item) for item in error.errors(include_url=False)]
    problems = [_describe(item, root, of) for item in items if not _is_consequence(item, items)]
    more = [f"{len(problems) - SHOWN} more problems"] if len(problems) > SHOWN else []
    return ". ".join(problems[:SHOWN] + more)


def suggest(key: str, known: Sequence[str]) -> str:
    """Returns what to write instead of an unknown key."""
    nearest = difflib.get_close_matches(key.replace("-", "_").lower(), known, n=1, cutoff=0.6)
    return f"meant {nearest[0]}?" if nearest else f"expected one of {', '.join(known)}"


def find_field(root: type[BaseModel], loc: Sequence[int | str]) -> FieldInfo | None:
    """Returns the field that a location leads to; None where it leads to no field of a section."""
    field: FieldInfo | None = None
    model: type[BaseModel] | None = root
    is_named = False  # in a dictionary of sections, such as hooks, the next part is a name of the user's
    for part in loc:
        if isinstance(part, int) or model is None or is_named:
            is_named = False
            continue
        field = model.model_fields.get(part)
        if field is None:
            return None
        is_named = get_origin(field.annotation) is dict
        model = next((each for each in _types_in(field.annotation) if _is_model(each)), None)
    return field


def _is_consequence(item: dict[str, Any], items: Sequence[dict[str, Any]]) -> bool:
    """Tells whether a list is too short only for its wrong entries, which pydantic does not count."""
    loc = item["loc"]
    return item["type"] == "too_short" and any(each["loc"][: len(loc)] == loc for each in items if each is not item)


def _describe(item: dict[str, Any], root: type[BaseModel], of: str) -> str:
    loc, kind, context = item["loc"], item["type"], item.get("ctx", {})
    if kind == "extra_forbidden":
        return _describe_unknown(loc, _keys_at(root, loc[:-1]), of)
    if kind == "rollout_key":
        return _describe_unknown((*loc, context["key"]), context["known"], of)
    if kind == "rollout":
        path = ".".join(part for part in (_path(loc), context["path"]) if part)
        return f"{path} is {_show(context['got'])}; {item['msg']}"
    if kind == "missing":
        return f"{_path(loc)} is missing; expected {_expected(item, find_field(root, loc))}"
    return f"{_path(loc) or 'it'} is {_show(item['input'])}; expected {_expected(item, find_field(root, loc))}"


def _describe_unknown(loc: Sequence[int | str], known: Sequence[str], of: str) -> str:
    return f"{_path(loc)} is no key {of}; {suggest(str(loc[-1]), known)}"


def _keys_at(root: type[BaseModel], loc: Sequence[int | str]) -> list[str]:
    if not loc:
        return list(root.model_fields)
    field = find_field(root, loc)
    models = [each for each in _types_in(field.annotation) if _is_model(each)] if field else []
    return list(models[0].model_fields) if models else []


def _expected(item: dict[str, Any], field: FieldInfo | None) -> str:
    context = item.get("ctx", {})
    if item["type"] == "literal_error":
        return str(context["expected"]).replace("'", "")
    if item["type"] == "string_pattern_mismatch":
        return "an http or https address"
    if item["type"] == "too_short":
        return "a command and its arguments" if item["loc"][-1] == "exec" else "at least one entry"
    kind = item["type"].split("_")[0]
    bounds = _describe_bounds(field)
    if kind in ("greater", "less", "float", "int", "missing", "finite") and bounds:
        return ("a whole number, " if kind == "int" else "") + bounds
    if kind == "missing" and field is not None:
        kind = getattr(field.annotation, "__name__", "")
    return KINDS.get(kind, str(item["msg"]))


def _describe_bounds(field: FieldInfo | None) -> str:
    """Returns "0 to 100", "above 0", … as the field's type says, also where that is optional; "" without bounds."""
    if field is None:
        return ""
    words: dict[type, str] = {}
    for each in (*field.metadata, *_metadata_in(field.annotation)):
        for kind, name in ((Ge, "ge"), (Gt, "gt"), (Le, "le"), (Lt, "lt")):
            if isinstance(each, kind):
                words[kind] = f"{getattr(each, name):.10g}"
    if Ge in words and Le in words:
        return f"{words[Ge]} to {words[Le]}"
    templates = ((Ge, "{} or above"), (Gt, "above {}"), (Le, "{} or below"), (Lt, "below {}"))
    return " and ".join(template.format(words[kind]) for kind, template in templates if kind in words)


def _types_in(annotation: Any) -> Iterator[Any]:
    """Yields a type and all those that it is made of."""
    yield annotation
    for each in get_args(annotation):
        yield from _types_in(each)


def _metadata_in(annotation: Any) -> Iterator[Any]:
    for each in _types_in(annotation):
        for found in getattr(each, "__metadata__", ()):
            yield from getattr(found, "metadata", None) or (found,)


def _is_model(each: Any) -> bool:
    return isinstance(each, type) and issubclass(each, BaseModel)


def _path(loc: Sequence[int | str]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return text.removeprefix(".")


def _show(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case str():
            return value if value in ("neither", "both") else repr(value)
        case dict() | list():
            return "a section" if isinstance(value, dict) else "a list"
    return "empty" if value is None else repr(value)
