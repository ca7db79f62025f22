"""A listing: every labelled file of a source, before classes are numbered and splits are made.

The layouts (folders, tables, shards, builtin) each produce one; `imgcls.data.splits` makes the splits from it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from imgcls.data.images import Problem

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_LEFTOVERS = ("__MACOSX", "Thumbs.db", "desktop.ini")


@dataclass(frozen=True)
class Entry:
    """One labelled file; `split` is train, val, test, or None where the source does not say; `columns` as in Sample."""

    name: str
    class_name: str
    split: str | None
    read: Callable[[], bytes]
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Listing:
    """What a layout found."""

    entries: tuple[Entry, ...]
    problems: tuple[Problem, ...] = ()


def printable(text: str) -> str:
    """Returns a text with what UTF-8 cannot say escaped, such as the bytes of a file name in another encoding."""
    return text.encode(errors="backslashreplace").decode()


def make_printable(listing: Listing) -> Listing:
    """Returns a listing whose texts can all be printed and written; images of which one cannot are problems."""
    entries, problems = [], list(listing.problems)
    for entry in listing.entries:
        if reason := _find_unprintable(entry):
            problems.append(Problem(entry.name, reason))
        else:
            entries.append(entry)
    shown = (replace(each, name=printable(each.name), reason=printable(each.reason)) for each in problems)
    return Listing(tuple(entries), tuple(shown))


def _find_unprintable(entry: Entry) -> str:
    """Returns what UTF-8 cannot say of an image; empty where it can say all."""
    if printable(entry.name) != entry.name:
        return "its name is not UTF-8; rename it"
    told = (entry.class_name, *entry.columns, *entry.columns.values())
    return "" if all(printable(text) == text for text in told) else "its label or a column is not UTF-8; mend it"


def is_visible(path: PurePosixPath) -> bool:
    """Tells a user's file from a hidden one, and from what operating systems leave."""
    return not any(part.startswith(".") or part in _LEFTOVERS for part in path.parts)
