"""`imgcls archive diff`: what changed between two archives."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imgcls.cli.archive.inspect import SCORES, print_screen

if TYPE_CHECKING:
    from rich.table import Table

    from imgcls.archive.diff import ArchiveDiff, Changes, FileChanges, LabelChanges, WeightChanges

MOST_LINES = 12  # of one part
Line = tuple[str, str]  # text and style


def diff(
    old: Annotated[Path, typer.Argument(help="The .mar file to start from.")],
    new: Annotated[Path, typer.Argument(help="The .mar file to compare with it.")],
    *,
    patch: Annotated[
        bool, typer.Option(help="Add the changes of the code, as a unified diff; exact with --json only.")
    ] = False,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="Exit 1 when anything but the packing differs.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with nothing left out.")] = False,
) -> None:
    """Shows what changed between two archives: code, weights, preprocessing, labels, metrics and the rest.

    Verifies neither. Exits 0 also when they differ, unless --exit-code is given.
    """
    from dataclasses import asdict

    from rich.console import Console

    from imgcls.archive.diff import diff_archives
    from imgcls.cli.progress import show_bytes

    total = sum(2 * mar.stat().st_size for mar in (old, new) if mar.is_file())
    with show_bytes("comparing", total=total) as on_bytes:
        found = diff_archives(old, new, with_patch=patch, on_bytes=on_bytes)
    if as_json:
        print(json.dumps(asdict(found) | {"is_same_content": found.is_same_content}, indent=2))
    else:
        print_screen(build_screen(found), console=Console(highlight=False))
        if found.patch:
            print(f"\n{_make_patch_printable(found.patch)}", end="")
    if exit_code and not found.is_same_content:
        raise typer.Exit(1)


def _make_patch_printable(patch: str) -> str:
    """Spells out what a terminal would act on, but for the ends of lines and tabs."""
    from imgcls.archive.scanning.findings import make_printable

    return re.sub(r"[^\n\t]+", lambda found: make_printable(found[0]), patch)


def build_screen(found: ArchiveDiff) -> Table:
    """Returns the screen: each part that changed, and the names of those that did not."""
    from rich.table import Table
    from rich.text import Text

    from imgcls.archive.scanning.findings import make_printable

    screen = Table.grid(padding=(0, 2))
    screen.add_column(style="bold", no_wrap=True)
    screen.add_column(overflow="fold")
    for name, side in (("old", found.old), ("new", found.new)):
        screen.add_row(name, Text(f"{make_printable(f'{side.name} {side.version}')}  {side.path}"))
    for name, lines in _list_parts(found):
        for index, (text, style) in enumerate(_shorten(lines)):
            screen.add_row(name if index == 0 else "", Text(make_printable(text), style=style))
    return screen


def _list_parts(found: ArchiveDiff) -> Iterator[tuple[str, list[Line]]]:
    from imgcls.archive.diff import PARTS, FileChanges, LabelChanges, WeightChanges

    if found.is_same_file:
        yield "same", [("the same file, to the byte", "green")]
        return
    if found.is_same_content:
        differs = [*found.container.added, *found.container.removed, *found.container.changed]
        yield (
            "same",
            [(f"every file is the same; the packing differs: {', '.join(differs) or 'the zip itself'}", "green")],
        )
        return
    changed = [name for name in PARTS if getattr(found, name)]
    for name in changed:
        part = getattr(found, name)
        if isinstance(part, FileChanges):
            yield name, _describe_files(part)
        elif isinstance(part, WeightChanges):
            yield name, _describe_weights(part)
        elif isinstance(part, LabelChanges):
            yield name, _describe_labels(part)
        else:
            describe = {"metrics": _describe_metrics, "engines": _describe_engines}.get(name, _describe_changes)
            yield name, describe(part)
    yield "unchanged", [(", ".join(name for name in PARTS if name not in changed) or "nothing", "dim")]


def _describe_files(part: FileChanges) -> list[Line]:
    lines = [(f"changed  {path}", "yellow") for path in part.changed]
    lines += [(f"added    {path}", "green") for path in part.added]
    return lines + [(f"removed  {path}", "red") for path in part.removed]


def _describe_weights(part: WeightChanges) -> list[Line]:
    share = f"{part.bytes_changed:,} of {part.bytes_all:,} bytes"
    lines = [(f"{len(part.changed)} of {part.tensors} tensors have other values ({share})", "yellow")]
    lines += [(f"reshaped {name}: {old} -> {new}", "red") for name, (old, new) in part.reshaped.items()]
    lines += [(f"added    {name}: {kind}", "green") for name, kind in part.added.items()]
    return lines + [(f"removed  {name}: {kind}", "red") for name, kind in part.removed.items()]


def _describe_labels(part: LabelChanges) -> list[Line]:
    lines = []
    if part.changed:
        lines.append(
            (f"DANGER: {len(part.changed)} indices mean another class now to clients that go by the index", "bold red")
        )
    lines += [(f"index {index}: {old} -> {new}", "red") for index, (old, new) in part.changed.items()]
    lines += [(f"added    {index}: {name}", "green") for index, name in part.added.items()]
    lines += [(f"removed  {index}: {name}", "red") for index, name in part.removed.items()]
    return lines + [(f"moved    {name}: {old} -> {new}", "yellow") for name, (old, new) in part.moved.items()]


def _describe_metrics(part: Changes) -> list[Line]:
    """Gives each test set a line with the numbers that inspect shows too."""
    sets: dict[str, list[str]] = {}
    for key, (old, new) in part.items():
        name, _, metric = key.rpartition(".")
        told = sets.setdefault(name, [])
        if metric in SCORES:
            told.append(f"{SCORES[metric]} {_show(old)} -> {_show(new)}{_delta(old, new)}")
    return [(f"{name}: {', '.join(told) or 'other numbers, see --json'}", "") for name, told in sets.items()]


def _describe_engines(part: Changes) -> list[Line]:
    lines = []
    for name, (old, new) in part.items():
        if old is None or new is None:
            lines.append((f"added    {name}", "green") if old is None else (f"removed  {name}", "red"))
            continue
        changed = [key for key in old if key in new and old[key] != new[key]]
        told = [
            f"{key.removeprefix('comparison.')} {_show(old[key])} -> {_show(new[key])}{_delta(old[key], new[key])}"
            for key in changed
        ]
        lines.append((f"{name}: {', '.join(told) or 'is described in other words'}", ""))
    return lines


def _describe_changes(part: Changes) -> list[Line]:
    if len(part) > 3 and all(old is None for old, _ in part.values()):
        return [(f"{len(part)} values, where there were none", "green")]
    if len(part) > 3 and all(new is None for _, new in part.values()):
        return [(f"none, where there were {len(part)} values", "red")]
    return [(f"{key}: {_show(old)} -> {_show(new)}{_delta(old, new)}", "") for key, (old, new) in part.items()]


def _delta(old: Any, new: Any) -> str:
    numbers = all(isinstance(value, float) for value in (old, new))
    return f" ({new - old:+.4f})" if numbers else ""


def _show(value: Any) -> str:
    if value is None:
        return "nothing"
    return f"{value:.4f}" if isinstance(value, float) and abs(value) >= 0.001 else str(value)


def _shorten(lines: list[Line]) -> list[Line]:
    more = len(lines) - MOST_LINES
    return lines if more <= 1 else [*lines[:MOST_LINES], (f"and {more} more, see --json", "dim")]
