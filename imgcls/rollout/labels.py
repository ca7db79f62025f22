"""Labels that come back: what requests really showed, told afterwards by people or by a later step of a process.

One append-only file of JSON lines beside a rollout's state; the last label of a request counts. Only one process
appends at a time; a line that a crash cut short is left out when reading, and does not spoil the next one.
"""

import csv
import io
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from imgcls.files import append_text
from imgcls.rollout.errors import LabelsError
from imgcls.rollout.samples import OK, Sample

SHOWN = 3  # names in a message


def read_labels(path: Path) -> dict[str, str]:
    """Reads labels that a user hands in: JSON lines or CSV with the columns request_id and label, by suffix.

    Returns:
        request id -> label; the last one of a request.

    Raises:
        LabelsError: it cannot be read, or a line has no request_id or label; the message names the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as err:
        raise LabelsError(f"{path}: cannot be read: {err}") from err
    match path.suffix.lower():
        case ".csv":
            reader = csv.DictReader(io.StringIO(text))
            try:
                return dict(_read_row(row, where=f"{path}:{reader.line_num}") for row in reader)
            except csv.Error as err:
                raise LabelsError(f"{path}: is not CSV after line {reader.line_num}: {err}") from err
        case ".jsonl":
            lines = ((number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip())
            return dict(_read_line(line, where=f"{path}:{number}") for number, line in lines)
    raise LabelsError(f"{path}: expected a .jsonl or .csv file with request_id and label")


def find_strange(labels: Mapping[str, str], classes: Collection[str], *, where: Path) -> list[str]:
    """Returns the labels that are no class, so that every answer to their requests counts as wrong.

    Raises:
        LabelsError: all are: they are written otherwise, and two versions that are never right look alike.
    """
    strange = sorted(set(labels.values()) - set(classes))
    if strange and len(strange) == len(set(labels.values())):
        names = ", ".join(repr(name) for name in sorted(classes)[:SHOWN])
        raise LabelsError(
            f"{where}: none of its {len(labels)} labels, such as {strange[0]!r}, is a class of a version that is "
            f"served; expected names such as {names}, as answers have them"
        )
    return strange


def append_labels(path: Path, labels: Mapping[str, str]) -> None:
    """Adds labels to the rollout's file and brings them to the disk.

    Raises:
        LabelsError: it cannot be written.
    """
    lines = "".join(json.dumps({"request_id": name, "label": label}) + "\n" for name, label in labels.items())
    try:
        append_text(path, lines)
    except OSError as err:
        raise LabelsError(f"{path}: labels cannot be written: {err}") from err


def load_labels(path: Path) -> dict[str, str]:
    """Returns the labels of a file that `append_labels` wrote; none where there is no file yet.

    Raises:
        LabelsError: it cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as err:
        raise LabelsError(f"{path}: cannot be read: {err}") from err
    labels = {}
    for line in lines:
        try:
            request_id, label = _read_line(line, where=str(path))
        except LabelsError:
            continue  # empty, or cut short by a crash
        labels[request_id] = label
    return labels


def count_unknown(labels: Mapping[str, str], samples: Iterable[Sample]) -> int:
    """Returns how many labels belong to no sampled request: mistyped ids, or requests before the rollout."""
    return len(labels.keys() - {sample.request_id for sample in samples})


def find_right(samples: Iterable[Sample], labels: Mapping[str, str], *, version: str) -> dict[str, bool]:
    """Says for each labelled request that a version answered with a class whether it answered right, by request id.

    Answers that name no one class, as those for many images, say nothing: taken for wrong, they would make two versions
    alike that are not.
    """
    return {
        sample.request_id: sample.label == labels[sample.request_id]
        for sample in samples
        if sample.version == version
        and sample.status == OK
        and sample.label is not None
        and sample.request_id in labels
    }


def _read_line(line: str, *, where: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
    except ValueError as err:
        raise LabelsError(f"{where}: is not JSON: {err}") from err
    return _read_row(row if isinstance(row, dict) else {}, where=where)


def _read_row(row: Mapping[str, object], *, where: str) -> tuple[str, str]:
    request_id, label = row.get("request_id"), row.get("label")
    if not isinstance(request_id, str) or not isinstance(label, str) or not request_id or not label:
        raise LabelsError(f"{where}: got {_keys(row)}; expected request_id and label, both texts")
    return request_id, label


def _keys(row: Mapping[str, object]) -> Sequence[str] | str:
    return ", ".join(f"{key}={value!r}" for key, value in row.items())[:80] or "nothing"
