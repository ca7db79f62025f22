"""A run's history and metrics as TensorBoard event files, to lay beside those of other runs."""

import csv
import io
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter

from imgcls.errors import RunError
from imgcls.evaluation.reports import METRICS_FILE, TestReport, read_metrics

HISTORY_FILE = "history.csv"
_PATTERN = "events.out.tfevents.*"


def export_tensorboard(run: Path, folder: Path) -> int:
    """Writes event files into `folder`/NAME, in place of an earlier export; returns how many numbers it wrote.

    Raises:
        RunError: the run has neither a history nor metrics, or one of them is broken.
    """
    history = list(_read_history(run / HISTORY_FILE))
    tests = read_metrics(run / METRICS_FILE).test_sets if (run / METRICS_FILE).is_file() else {}
    if not history and not tests:
        raise RunError(f"{run}: has neither {HISTORY_FILE} nor {METRICS_FILE}; train and evaluate it first")
    target = folder / run.resolve().name
    for old in target.glob(_PATTERN):
        old.unlink()
    numbers = [
        *history,
        *((f"test/{name}/{key}", value, 0) for name, each in tests.items() for key, value in _list(each)),
    ]
    with SummaryWriter(str(target), flush_secs=3600) as writer:
        for tag, value, step in numbers:
            writer.add_scalar(tag, value, step)
        for name in tests:
            if (picture := run / f"confusion_{name}.png").is_file():
                pixels = np.asarray(Image.open(io.BytesIO(picture.read_bytes())).convert("RGB"))
                writer.add_image(f"confusion/{name}", pixels, 0, dataformats="HWC")
    return len(numbers)


def _read_history(path: Path) -> Iterator[tuple[str, float, int]]:
    """Yields tag, value and epoch of every number of the history, whatever its columns are."""
    if not path.is_file():
        return
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
        for row in rows:
            epoch = int(row["epoch"])
            for name, text in row.items():
                if name != "epoch" and text and math.isfinite(value := float(text)):
                    yield f"history/{name}", value, epoch
    except (OSError, UnicodeDecodeError, KeyError, ValueError, TypeError) as err:
        raise RunError(f"{path}: cannot be read: {err}; delete it to export without a history") from err


def _list(report: TestReport) -> Iterator[tuple[str, float]]:
    for key, value in report.model_dump(exclude={"samples", "skipped"}).items():
        if isinstance(value, float):
            yield key, value
    for key, interval in report.intervals.items():
        yield f"{key}_low", interval.low
        yield f"{key}_high", interval.high
