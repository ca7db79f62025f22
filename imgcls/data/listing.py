"""A listing: every labelled file of a source, before classes are numbered and splits are made.

The layouts (folders, tables, builtin) each produce one; `imgcls.data.splits` makes the splits from it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from imgcls.data.images import Problem

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


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
