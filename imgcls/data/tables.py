"""Tables of images: a .csv or .jsonl whose rows hold `path`, `label`, optionally `split`, and any other columns.

Relative paths are resolved against the table's folder. A row that cannot be used is a problem with its number; of a
.csv the header is row 1.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imgcls.data.images import Problem
from imgcls.data.listing import SPLIT_NAMES, Entry, Listing
from imgcls.errors import DataError

_OWN = ("path", "label", "split")
_Row = tuple[int, dict[str, Any]]


def list_table(path: Path) -> Listing:
    """Lists the rows of a table.

    Raises:
        DataError: the table is no UTF-8 text, or lacks the columns path and label.
    """
    try:
        rows = list(_read_csv(path) if path.suffix.lower() == ".csv" else _read_jsonl(path))
    except (OSError, UnicodeDecodeError, csv.Error) as err:
        raise DataError(f"{path}: cannot be read as a table: {err}; expected UTF-8 text") from err
    spelling = _find_spelling(rows)
    has_splits = any(_text(fields, "split") for _, fields in rows)
    found = [_classify(path, row, spelling=spelling, has_splits=has_splits) for row in rows]
    entries = tuple(item for item in found if isinstance(item, Entry))
    return Listing(entries, tuple(item for item in found if isinstance(item, Problem)))


def _classify(table: Path, row: _Row, *, spelling: dict[str, str], has_splits: bool) -> Entry | Problem:
    """Returns a row as a labelled image, or why it is none."""
    number, fields = row
    name, label, split = (_text(fields, key) for key in ("path", "label", "split"))
    reason = _find_fault(table, name, label, spelling=spelling)
    if not reason and has_splits and split.lower() not in SPLIT_NAMES:
        reason = f"split is {split!r}; expected train, val or test"
    if reason:
        return Problem(f"{table.name} row {number}" + (f" ({name})" if name else ""), reason)
    others = {key: _text(fields, key) for key in fields if key and key not in _OWN}
    return Entry(
        name, label, SPLIT_NAMES[split.lower()] if has_splits else None, (table.parent / name).read_bytes, others
    )


def _find_fault(table: Path, name: str, label: str, *, spelling: dict[str, str]) -> str:
    """Returns why a row's path or label cannot be used; empty where they can."""
    if not name:
        return "path is missing; expected the path of an image"
    if not label:
        return "unlabelled: label is missing; expected the name of a class"
    if label != spelling[label.casefold()]:
        return f"label {label!r} differs only in case from {spelling[label.casefold()]!r}; write it as that"
    try:
        return "" if (table.parent / name).is_file() else f"no such file in {table.parent}"
    except OSError as err:  # a name that is too long, or a folder that may not be looked into
        return f"cannot be read in {table.parent}: {err.strerror}"


def _find_spelling(rows: list[_Row]) -> dict[str, str]:
    """Returns the most frequent spelling of each label, by its casefolded form; the first one where they tie."""
    spelling: dict[str, str] = {}
    for label, _ in Counter(_text(fields, "label") for _, fields in rows).most_common():
        spelling.setdefault(label.casefold(), label)
    return spelling


def _text(fields: dict[str, Any], key: str) -> str:
    value = fields.get(key)
    return "" if value is None else str(value).strip()  # a label such as 7 may stand unquoted in JSON


def _read_csv(path: Path) -> Iterator[_Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        columns = [column.strip() for column in reader.fieldnames or []]
        if not {"path", "label"} <= set(columns):
            raise DataError(f"{path}: the header is {columns}; expected the columns path, label and optionally split")
        reader.fieldnames = columns
        yield from ((reader.line_num, fields) for fields in reader)


def _read_jsonl(path: Path) -> Iterator[_Row]:
    lines = path.read_text(encoding="utf-8-sig").split("\n")  # not splitlines: a text may hold U+2028 as it is
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as err:
            raise DataError(f"{path}: line {number} is no JSON: {err}") from err
        if not isinstance(fields, dict):
            raise DataError(f'{path}: line {number} is no object; expected such as {{"path": "1.jpg", "label": "cat"}}')
        if isinstance(fields.get("label"), list | dict):
            raise DataError(f"{path}: line {number}: label is {fields['label']}; expected the name of one class")
        yield number, fields
