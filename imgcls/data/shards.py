"""Tar shards in the WebDataset convention: `key.jpg` with `key.cls`, or with `key.json` that holds `label`.

    train-000000.tar  train-000001.tar  val-000000.tar      splits from the names of the shards
    images-000.tar  images-001.tar                          no splits

`cls` is a class's name or number. `json` may hold `path`, which then names the image unless another has that name too,
and further columns, as a row of a table does; its label is a name where it is a text. A `classes.txt` (a name a line)
or `classes.json` (a list, or names by number) beside the shards names the numbers. A shard is read once from its first
header to its last, and remembered as places of images; these are read when they are asked for, in any order, so that
shuffling and resuming stay exact.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from imgcls.data.images import Problem
from imgcls.data.listing import IMAGE_SUFFIXES, SPLIT_NAMES, Entry, Listing, is_visible
from imgcls.data.tars import Member, list_members, read_slice
from imgcls.errors import DataError

_LABEL_BYTES = 1 << 20  # a cls or json that is longer is no label
_Classes = Mapping[int | str, str]  # each name by itself and by its number
_Parts = dict[str, Member]  # by what follows the first dot of the file's name, such as "jpg"


@dataclass(frozen=True)
class _Sample:
    """A labelled image under the name of its place, such as train-0.tar/0017.jpg, and the name that its JSON gives."""

    entry: Entry
    path: str


def find_shards(folder: Path) -> list[Path]:
    """Returns the .tar files of a folder that holds no visible folder; one that does has class folders."""
    paths = [path for path in folder.iterdir() if is_visible(PurePosixPath(path.name))]
    return [] if any(path.is_dir() for path in paths) else sorted(path for path in paths if path.suffix == ".tar")


def list_shards(paths: Sequence[Path]) -> Listing:
    """Lists the samples of shards.

    Raises:
        DataError: a file of class names is broken, or two shards have the same name.
        OSError: a shard cannot be read.
    """
    if len({path.name for path in paths}) < len(paths):
        raise DataError("two shards have the same name; expected the shards of one folder")
    splits = [_find_split(path) for path in paths]
    names = {folder: _read_classes(folder) for folder in {path.parent for path in paths}}
    found: list[_Sample | Problem] = []
    for path, split in zip(paths, splits, strict=True):
        if split is None and any(splits):
            found.append(Problem(path.name, f"of no split, as others are; expected such as train-{path.name}"))
        else:
            found += _list_shard(path, split, classes=names[path.parent])
    entries = tuple(_choose_names([item for item in found if isinstance(item, _Sample)]))
    return Listing(entries, tuple(item for item in found if isinstance(item, Problem)))


def _choose_names(samples: Sequence[_Sample]) -> Iterator[Entry]:
    """Yields the images under different names, since by its name an image is known in all that follows."""
    places = {sample.entry.name for sample in samples}
    counts = Counter(sample.path for sample in samples)
    for sample in samples:
        is_alone = counts[sample.path] == 1 and sample.path not in places
        yield replace(sample.entry, name=sample.path) if is_alone else sample.entry


def _list_shard(path: Path, split: str | None, *, classes: _Classes) -> Iterator[_Sample | Problem]:
    samples: dict[str, _Parts] = {}
    twice: set[str] = set()
    for member in list_members(path):
        if isinstance(member, Problem):
            yield Problem(member.name if member.name == path.name else f"{path.name}/{member.name}", member.reason)
            continue
        stem, _, kind = member.path.name.partition(".")
        key = str(member.path.with_name(stem))
        if samples.setdefault(key, {}).setdefault(kind.lower(), member) is not member:
            twice.add(key)
    for key, parts in samples.items():
        yield _classify(path, key, parts, split=split, classes=classes, is_twice=key in twice)


def _classify(
    shard: Path, key: str, parts: _Parts, *, split: str | None, classes: _Classes, is_twice: bool
) -> _Sample | Problem:
    """Returns a key's members as a labelled image, or why they are none."""
    images = [kind for kind in parts if f".{kind}" in IMAGE_SUFFIXES]
    name = f"{shard.name}/{parts[images[0]].path}" if images else f"{shard.name}/{key}"
    try:
        if is_twice:
            raise ValueError("the key is there twice; expected each key once in a shard")
        if len(images) != 1:
            raise ValueError(f"has {len(images)} images; expected one of {', '.join(IMAGE_SUFFIXES)}")
        fields = _read_json(shard, parts["json"]) if "json" in parts else {}
        label = _find_label(shard, parts, fields, classes=classes)
        columns = {column: str(value) for column, value in fields.items() if _is_column(column, value)}
    except ValueError as err:
        return Problem(name, str(err))
    image, path = parts[images[0]], fields.get("path")
    entry = Entry(name, label, split, partial(read_slice, shard, image.offset, image.size_bytes), columns)
    return _Sample(entry, path if isinstance(path, str) and path else name)


def _is_column(name: str, value: object) -> bool:
    return name not in ("path", "label") and isinstance(value, str | int | float)


def _find_label(shard: Path, parts: _Parts, fields: Mapping[str, Any], *, classes: _Classes) -> str:
    """Returns the name of a sample's class.

    Raises:
        ValueError: there is none, or it is not among those that are named.
    """
    label = fields.get("label")
    if label is None and "cls" in parts:
        text = _read_text(shard, parts["cls"]).strip()
        label = int(text) if text.isascii() and text.isdecimal() else text
    if isinstance(label, bool) or not isinstance(label, str | int) or label == "":
        raise ValueError("unlabelled: expected a .cls with a class's name or number, or a .json with label")
    if not classes:
        return str(label)
    if label not in classes:
        raise ValueError(f"label {label!r} is none of the {len(classes) // 2} classes that stand beside the shards")
    return classes[label]


def _read_json(shard: Path, member: Member) -> dict[str, Any]:
    try:
        fields = json.loads(_read_text(shard, member))
    except (json.JSONDecodeError, RecursionError) as err:
        raise ValueError(f"{member.path.name} is no JSON: {err}") from err
    if not isinstance(fields, dict):
        raise ValueError(f'{member.path.name} is no object; expected such as {{"label": "cat"}}')
    return fields


def _read_text(shard: Path, member: Member) -> str:
    if member.size_bytes > _LABEL_BYTES:
        raise ValueError(f"{member.path.name} has {member.size_bytes} bytes; expected at most {_LABEL_BYTES}")
    try:
        return read_slice(shard, member.offset, member.size_bytes).decode()
    except UnicodeDecodeError as err:
        raise ValueError(f"{member.path.name} is no UTF-8 text") from err


def _find_split(path: Path) -> str | None:
    """Returns the one split that a shard's name has as a word, such as train-000017 or birds_val_3."""
    words = re.split(r"[^a-z]+", path.stem.lower())
    found = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
    return found.pop() if len(found) == 1 else None


def _read_classes(folder: Path) -> _Classes:
    """Returns the names of the classes; empty where no file says them."""
    text, mapping = folder / "classes.txt", folder / "classes.json"
    path = text if text.is_file() else mapping
    if not path.is_file():
        return {}
    try:
        content = path.read_text(encoding="utf-8-sig")
        listed = content.rstrip("\n").split("\n") if path == text else json.loads(content)
        if not isinstance(listed, list | dict):
            raise ValueError(f"holds a {type(listed).__name__}; expected a list of names, or names by number")
        names = {int(key): name for key, name in (listed.items() if isinstance(listed, dict) else enumerate(listed))}
    except (UnicodeDecodeError, ValueError, RecursionError) as err:
        raise DataError(f"{path.name}: cannot be read as names of classes: {err}; mend it") from err
    if not all(isinstance(name, str) and name for name in names.values()) or len(set(names.values())) < len(names):
        raise DataError(f"{path.name}: a name is missing, or there twice; expected a different one for each class")
    return {**names, **{name: name for name in names.values()}}
