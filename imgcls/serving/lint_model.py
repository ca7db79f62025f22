"""Lint of model-config.yaml: what TorchServe, our handler, or nobody would read of it."""

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from imgcls.serving.lint_keys import CONFIG_KEYS, HANDLER_KEYS, MODEL_KEYS, OUR_KEYS, TORCHRUN_KEYS, VERSION
from imgcls.serving.lint_rules import Check, Finding, find_nearest

CONFIG_FILE = "model-config.yaml"
SIMILAR = 0.6  # to a key, of a section that may be somebody's own: a hint, where 0.75 makes an error


def lint_model_config(text: str, *, where: str = CONFIG_FILE, is_ours: bool = True) -> list[Finding]:
    """Judges the text of a model-config.yaml.

    Args:
        text: the file's content.
        where: the file's name, for the findings.
        is_ours: the handler that reads it is. Else what is in `handler:`, and every other section, is the handler's.
    """
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            return [_refuse_root(root, where=where)]
        findings = [*_find_twice(root, where=where)]
        loader.flatten_mapping(root)  # `<<: *shared` is no key, and what it brings counts
        values = {key: (line, value) for key, line, value in _items(loader, root)}
        if is_ours:
            findings += [each for node in _find_handlers(root) for each in _judge_handler(loader, node, where=where)]
    except (yaml.YAMLError, ValueError, RecursionError) as err:  # ValueError: a date that is none
        mark = getattr(err, "problem_mark", None)
        problem = f"is no YAML that TorchServe reads: {getattr(err, 'problem', None) or err}"
        return [Finding(where, mark.line + 1 if mark else 0, "", "error", problem, "correct it")]
    finally:
        loader.dispose()
    for key, (line, value) in values.items():
        findings += _judge(key, value, line=line, where=where, is_ours=is_ours)
    findings += _judge_workers(values, where=where)
    return sorted(findings, key=lambda finding: finding.line)


def _refuse_root(root: yaml.Node | None, *, where: str) -> Finding:
    got = "is empty" if root is None else "is a list or a single value"
    problem = f"{got}; expected keys with values, without which TorchServe ends at its start"
    return Finding(where, root.start_mark.line + 1 if root else 0, "", "error", problem, "write batchSize: 1, or so")


def _items(loader: yaml.SafeLoader, node: yaml.MappingNode) -> Iterator[tuple[Any, int, Any]]:
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is no text", key_node.start_mark)
        yield key, key_node.start_mark.line + 1, loader.construct_object(value_node, deep=True)


def _find_twice(node: yaml.Node, *, where: str) -> Iterator[Finding]:
    """Names keys that stand twice in one mapping: the last one wins silently."""
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if first := lines.get(key_node.value if isinstance(key_node, yaml.ScalarNode) else ""):
            problem = f"{key_node.value} is set in line {first} already; the last one wins"
            yield Finding(where, line, key_node.value, "error", problem, "remove one of the two")
        if isinstance(key_node, yaml.ScalarNode):
            lines[key_node.value] = line
        yield from _find_twice(value_node, where=where)


def _judge(key: str, value: Any, *, line: int, where: str, is_ours: bool) -> Iterator[Finding]:
    if check := (MODEL_KEYS | HANDLER_KEYS).get(key):
        yield from _judge_value(key, value, check, line=line, where=where)
        if key == "torchrun" and isinstance(value, dict):
            yield from _judge_torchrun(value, line=line, where=where)
        return
    nearest = find_nearest(key, MODEL_KEYS | HANDLER_KEYS)
    problem = f"{key} is no key of TorchServe {VERSION}, which ignores it"
    if nearest is not None:
        yield Finding(where, line, key, "error", problem, f"write {nearest}")
    elif key in CONFIG_KEYS:
        yield Finding(where, line, key, "error", problem, "it belongs into config.properties")
    elif is_ours or not isinstance(value, dict | list):  # a section is what handlers read their settings from
        yield Finding(where, line, key, "warning", problem, _suggest(key, is_ours=is_ours))


def _suggest(key: str, *, is_ours: bool) -> str:
    """What to do about a key that may be meant for a handler that is not known here."""
    if is_ours and key in OUR_KEYS:
        return "write it under handler:, unless a handler of your own reads it"
    similar = find_nearest(key, MODEL_KEYS | HANDLER_KEYS, cutoff=SIMILAR)
    write = f"write {similar} or remove it" if similar else "remove it"
    return f"{write}, unless {'a handler of your own' if is_ours else 'your handler'} reads it"


def _find_handlers(root: yaml.MappingNode) -> list[yaml.MappingNode]:
    """Returns the section that our handler reads; of several the last one counts."""
    found = [value for key, value in root.value if isinstance(key, yaml.ScalarNode) and key.value == "handler"]
    return [node for node in found[-1:] if isinstance(node, yaml.MappingNode)]


def _judge_handler(loader: yaml.SafeLoader, node: yaml.MappingNode, *, where: str) -> Iterator[Finding]:
    for key_node, value_node in node.value:
        key, line = loader.construct_object(key_node, deep=True), key_node.start_mark.line + 1
        value, name = loader.construct_object(value_node, deep=True), f"handler.{key}"
        if (check := OUR_KEYS.get(key)) is None:
            nearest = find_nearest(str(key), OUR_KEYS)
            problem = f"{name} is no setting of imgcls's handler, which does not start with it"
            fix = f"write {nearest}" if nearest else f"remove it; its settings are {', '.join(OUR_KEYS)}"
            yield Finding(where, line, name, "error", problem, fix)
        elif expected := check(value):
            problem = f"{name} is {value!r}; expected {expected}, without which no worker starts"
            yield Finding(where, line, name, "error", problem, "correct the value")


def _judge_torchrun(section: Mapping[Any, Any], *, line: int, where: str) -> Iterator[Finding]:
    for key, value in section.items():
        if not isinstance(key, str):
            problem = f"torchrun: the key {key!r} is no text, and TorchServe ends at its start"
            yield Finding(where, line, "torchrun", "error", problem, "correct it")
        elif check := TORCHRUN_KEYS.get(key):
            yield from _judge_value(f"torchrun.{key}", value, check, line=line, where=where)
        else:
            nearest = find_nearest(key, TORCHRUN_KEYS)
            problem = f"torchrun.{key} is no key of TorchServe {VERSION}, which ignores it"
            fix = f"write {nearest}" if nearest else "remove it"
            yield Finding(where, line, f"torchrun.{key}", "error", problem, fix)


def _judge_value(key: str, value: Any, check: Check, *, line: int, where: str) -> Iterator[Finding]:
    if expected := check(value):
        problem = f"{key} is {value!r}; expected {expected}, and TorchServe takes another value in its place"
        yield Finding(where, line, key, "error", problem, "correct the value")


def _judge_workers(values: Mapping[str, tuple[int, Any]], *, where: str) -> Iterator[Finding]:
    """Looks at minWorkers and maxWorkers, which count together only, and only in that order."""
    found = [(key, *values[key]) for key in ("minWorkers", "maxWorkers") if key in values]
    if len(found) == 1:
        key, line, _ = found[0]
        other = "maxWorkers" if key == "minWorkers" else "minWorkers"
        problem = f"{key} stands without {other}, so TorchServe ignores it and takes default_workers_per_model"
        yield Finding(where, line, key, "error", problem, f"give {other} too")
    elif found and all(type(value) is int for _, _, value in found) and found[0][2] > found[1][2]:
        problem = f"minWorkers is {found[0][2]} and maxWorkers {found[1][2]}, so TorchServe ignores both"
        yield Finding(where, found[0][1], "minWorkers", "error", problem, "raise maxWorkers")
