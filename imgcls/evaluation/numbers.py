"""A run's numbers as other tools want them: a tag, a value and a step each, from history.csv and metrics.json."""

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from imgcls.errors import RunError
from imgcls.evaluation.reports import METRICS_FILE, TestReport, read_metrics

HISTORY_FILE = "history.csv"


class Number(NamedTuple):
    """A finite number; its step is the epoch of a history, and 0 of a test set."""

    tag: str
    value: float
    step: int


def read_numbers(run: Path) -> tuple[list[Number], list[Number]]:
    """Reads the numbers of the history, tagged history/COLUMN, and of the test sets, tagged test/NAME/NUMBER.

    Raises:
        RunError: the run has neither a history nor metrics, or one of them is broken.
    """
    history = list(_read_history(run / HISTORY_FILE))
    reports = read_metrics(run / METRICS_FILE).test_sets if (run / METRICS_FILE).is_file() else {}
    if not history and not reports:
        raise RunError(f"{run}: has neither {HISTORY_FILE} nor {METRICS_FILE}; train and evaluate it first")
    tests = [Number(f"test/{name}/{key}", value, 0) for name, each in reports.items() for key, value in _list(each)]
    return history, tests


def _read_history(path: Path) -> Iterator[Number]:
    """Yields every number of the history by its epoch, whatever its columns are."""
    if not path.is_file():
        return
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
        for row in rows:
            epoch = int(row["epoch"])
            for name, text in row.items():
                if name != "epoch" and text and math.isfinite(value := float(text)):
                    yield Number(f"history/{name}", value, epoch)
    except (OSError, UnicodeDecodeError, KeyError, ValueError, TypeError, csv.Error) as err:
        raise RunError(f"{path}: cannot be read: {err}; delete it to export without a history") from err


def _list(report: TestReport) -> Iterator[tuple[str, float]]:
    for key, value in report.model_dump(exclude={"samples", "skipped"}).items():
        if isinstance(value, float):
            yield key, value
    for key, interval in report.intervals.items():
        yield f"{key}_low", interval.low
        yield f"{key}_high", interval.high
