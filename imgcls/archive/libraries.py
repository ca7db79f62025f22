"""Which libraries the code of a staged tree needs at run time: its imports, and all that these require in turn.

Reads the installed packages' own metadata; imports none of them.
"""

import ast
import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from imgcls.archive.syntax import parse_python
from imgcls.errors import ArchiveError

OWN = ("handler", "model")
SERVER = "torchserve"  # loads the code, and is not imported by it


@dataclass(frozen=True)
class Imports:
    """The top-level modules that code imports from elsewhere: when it is loaded, or only inside a function."""

    at_load: frozenset[str]
    later: frozenset[str]


@dataclass(frozen=True)
class Library:
    """One installed distribution; `needs` are the canonical names of those that it requires here."""

    name: str  # canonical
    version: str
    license: str  # an SPDX expression; empty where the package states none
    needs: tuple[str, ...]


def find_imports(folder: Path) -> Imports:
    """Finds what the Python files of a staged tree's model/ and handler/ import.

    Raises:
        ArchiveError: one of them is no Python.
    """
    found: dict[bool, set[str]] = {False: set(), True: set()}
    for file in (file for package in OWN for file in (folder / package).rglob("*.py")):
        try:
            tree = parse_python(file.read_bytes())
        except (SyntaxError, ValueError) as err:
            path = file.relative_to(folder).as_posix()
            raise ArchiveError(f"{path}: is no Python ({err}); mend it, it would be packed") from err
        for module, is_later in _walk(tree, is_later=False):
            found[is_later].add(module)
    foreign = {key: modules - sys.stdlib_module_names - set(OWN) for key, modules in found.items()}
    return Imports(frozenset(foreign[False]), frozenset(foreign[True] - foreign[False]))


def read_ahead(folder: Path) -> Imports:
    """Finds a staged tree's imports, and reads the metadata of all that they may need, which is then known."""
    imports = find_imports(folder)
    resolve([SERVER, *find_distributions(imports.at_load | imports.later)])
    return imports


def find_distributions(modules: frozenset[str]) -> tuple[str, ...]:
    """Returns the canonical names of the distributions that bring these modules, sorted; a module may have none."""
    brought = _list_distributions()
    return tuple(sorted({canonicalize_name(name) for module in modules for name in brought.get(module, ())}))


# What is installed stays so while a process packs.
@functools.cache
def _list_distributions() -> Mapping[str, Sequence[str]]:
    """Returns which distributions bring each module."""
    return metadata.packages_distributions()


def resolve(roots: Sequence[str]) -> dict[str, Library]:
    """Returns the installed ones of these distributions and of all that they require here, by name, sorted."""
    needs: dict[str, set[str]] = {}
    waiting = [(canonicalize_name(root), "") for root in roots]
    seen = set()
    while waiting:
        name, extra = task = waiting.pop()
        if task in seen or (required := _list_requirements(name, extra)) is None:
            continue
        seen.add(task)
        needs.setdefault(name, set()).update(canonicalize_name(need.name) for need in required)
        waiting += [(canonicalize_name(need.name), each) for need in required for each in ("", *need.extras)]
    return {
        name: _describe(name, needs=[need for need in needs[name] if need in needs and need != name])
        for name in sorted(needs)
    }


def _walk(node: ast.AST, *, is_later: bool) -> Iterator[tuple[str, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name.partition(".")[0], is_later) for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module and not child.level:
            yield child.module.partition(".")[0], is_later
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from (each for part in child.orelse for each in _walk(part, is_later=is_later))
        else:
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _walk(child, is_later=is_later or is_function)


def _list_requirements(name: str, extra: str) -> list[Requirement] | None:
    """Returns what a distribution requires here, with an extra or without; None where it is not installed."""
    requirements = _read_requirements(name)
    if requirements is None:
        return None
    return [each for each in requirements if each.marker is None or each.marker.evaluate({"extra": extra})]


@functools.cache
def _read_requirements(name: str) -> tuple[Requirement, ...] | None:
    try:
        return tuple(map(Requirement, metadata.requires(name) or ()))
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def _read_identity(name: str) -> tuple[str, str]:
    """Returns an installed distribution's version and licence."""
    fields = metadata.metadata(name)
    return fields["Version"], (fields.get_all("License-Expression") or [""])[0]


def _describe(name: str, *, needs: Sequence[str]) -> Library:
    version, license = _read_identity(name)
    return Library(name, version, license, tuple(sorted(needs)))
