"""What a run directory, or a tree that is staged from it, knows of the model: read once for card, provenance and SBOM.

Torch-free: the build stays small. A run without a record, metrics or configuration, such as weights from elsewhere, is
fine; one whose files are broken is not.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from imgcls.errors import ArchiveError, RunError
from imgcls.training.record import RECORD_FILE, TrainRecord, read_record
from model.engines.records import EngineRecord, read_records
from model.spec import SPEC_FILE, ModelSpec, read_spec

SCORES = ("samples", "accuracy", "precision_macro", "recall_macro", "f1_macro")
CONFIG_FILE = "train_config.yaml"
METRICS_FILE = "metrics.json"
NOT_RECORDED = "not recorded"
Scores = dict[str, Any]
_Parsed = TypeVar("_Parsed")


@dataclass(frozen=True)
class Facts:
    """One model, as its files tell; None, or nothing, where a file is not there."""

    spec: ModelSpec
    config: dict[str, Any] | None
    record: TrainRecord | None
    test_sets: dict[str, Scores]  # what metrics.json has of each, SCORES at least
    engines: tuple[EngineRecord, ...]  # the eager one at least


def read_facts(folder: Path, *, weights_sha256: str) -> Facts:
    """Reads the facts of a folder.

    Args:
        folder: a staged tree, or a run directory.
        weights_sha256: of its weights, which the metrics must have been measured on.

    Raises:
        ArchiveError: a file is not what imgcls writes, or the metrics are of other weights.
        ModelError: spec.yaml or engines.json cannot be used.
    """
    return Facts(
        spec=read_spec(folder / SPEC_FILE),
        config=_read(folder / CONFIG_FILE, _parse_config, writer="train.py", remedy="mend or delete it"),
        record=_read_record(folder / RECORD_FILE),
        test_sets=_read_test_sets(folder / METRICS_FILE, weights_sha256=weights_sha256),
        engines=read_records(folder),
    )


def _parse_config(text: str) -> dict[str, Any]:
    return dict(yaml.safe_load(text).items())


def _parse_metrics(text: str) -> tuple[str, dict[str, Scores]]:
    metrics = json.loads(text)
    sets = {name: dict(scores) for name, scores in metrics["test_sets"].items()}
    for scores in sets.values():
        if broken := [key for key in SCORES if not math.isfinite(scores.get(key, math.nan))]:
            raise ValueError(f"{broken[0]} is no number")
    return str(metrics["weights_sha256"]), sets


def _read(path: Path, parse: Callable[[str], _Parsed], *, writer: str, remedy: str) -> _Parsed | None:
    if not path.is_file():
        return None
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as err:
        reason = " ".join(str(err).split()) or type(err).__name__
        raise ArchiveError(f"{path.name}: is not what {writer} writes ({reason}); {remedy}") from err


def _read_test_sets(path: Path, *, weights_sha256: str) -> dict[str, Scores]:
    metrics = _read(path, _parse_metrics, writer="imgcls evaluate", remedy="delete it, or evaluate the run again")
    if metrics is None:
        return {}
    measured, sets = metrics
    if measured != weights_sha256:
        raise ArchiveError(f"{path.name}: was measured on other weights than the run holds; evaluate the run again")
    return sets


def _read_record(path: Path) -> TrainRecord | None:
    try:
        return read_record(path) if path.is_file() else None
    except RunError as err:  # it names a temporary copy
        raise ArchiveError(str(err).replace(str(path), path.name)) from err
