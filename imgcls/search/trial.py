"""One trial: train.py in a process of its own, its history watched, ended early where Optuna gives it up."""

import csv
import math
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from imgcls.children import end_with_parent
from imgcls.errors import RunError

HISTORY_FILE = "history.csv"
LOG_FILE = "train.log"
POLL_S = 0.25
PATIENCE_S = 30.0  # from SIGTERM to SIGKILL; train.py writes its state meanwhile


@dataclass(frozen=True)
class Outcome:
    """What a trial came to: its best value, the epochs it took, and whether it was given up."""

    value: float
    epochs: int
    is_pruned: bool


def run_trial(
    folder: Path,
    flags: Sequence[str],
    *,
    metric: str,
    maximise: bool,
    on_epoch: Callable[[int, float], bool],
    train: Path,
) -> Outcome:
    """Trains in `folder`, and returns the best value of a column of its history.

    Args:
        folder: the run directory; its log lies beside it, as train.py takes no folder with files in it.
        flags: of train.py.
        metric: the column.
        maximise: whether more of it is better.
        on_epoch: told each epoch's number and value; whether to give up.
        train: the training script.

    Raises:
        RunError: train.py failed, or its history lacks the column.
    """
    command = [sys.executable, str(train), "--out", str(folder), "--overwrite", *flags]
    log_path = folder.with_suffix(".log")
    with (
        log_path.open("wb") as log,
        subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            preexec_fn=end_with_parent(signal.SIGTERM),  # as `_end` does: it ends its step and writes its state
        ) as process,
    ):
        try:
            values, is_pruned = _watch(process, folder / HISTORY_FILE, metric=metric, on_epoch=on_epoch)
        finally:
            _end(process)
    if not is_pruned and process.returncode:
        raise RunError(f"train.py ended with {process.returncode}: {_last_line(log_path)}; see {log_path}")
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        raise RunError(f"{folder}: no epoch has a finite {metric}; see {log_path}")
    return Outcome(max(finite) if maximise else min(finite), len(values), is_pruned)


def read_values(path: Path, *, metric: str) -> list[float]:
    """Reads a column of a history; empty where there is none yet.

    Raises:
        RunError: it has no such column.
    """
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    except FileNotFoundError:
        return []
    if rows and metric not in rows[0]:
        raise RunError(f"{path}: has no column {metric!r}; it has {', '.join(rows[0])}: choose with --metric")
    return [float(row[metric] or "nan") for row in rows]


def _watch(
    process: subprocess.Popen[bytes], history: Path, *, metric: str, on_epoch: Callable[[int, float], bool]
) -> tuple[list[float], bool]:
    """Follows the history until the process ends or is given up; what it wrote last is read after its end."""
    told = 0
    while True:
        has_ended = process.poll() is not None
        values = read_values(history, metric=metric)
        for number, value in enumerate(values[told:], start=told + 1):
            told = number
            if on_epoch(number, value) and not has_ended:
                return values, True
        if has_ended:
            return values, False
        time.sleep(POLL_S)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _last_line(path: Path) -> str:
    lines = deque(path.read_text(encoding="utf-8", errors="replace").splitlines(), maxlen=1)
    return lines[0].removeprefix("error: ") if lines else "it wrote nothing"
