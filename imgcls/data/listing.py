"""A listing: every labelled file of a source, before classes are numbered and splits are made.

The layouts (folders, tables, shards, builtin) each produce one; `imgcls.data.splits` makes the splits from it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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


def is_visible(path: PurePosixPath) -> bool:
    """Tells a user's file from a hidden one, and from what operating systems leave."""
    return not any(part.startswith(".") or part in _LEFTOVERS for part in path.parts)
