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
from imgcls.evaluation.calibration_record import CALIBRATION_FILE as CALIBRATION_FILE
from imgcls.evaluation.calibration_record import refuse_stale_calibration
from imgcls.gate.verdict import GateReport
from imgcls.training.record import RECORD_FILE, TrainRecord, read_published
from model.engines.records import EngineRecord, read_records
from model.spec import SPEC_FILE, ModelSpec, read_spec

SCORES = ("samples", "accuracy", "precision_macro", "recall_macro", "f1_macro")
CONFIG_FILE = "train_config.yaml"
METRICS_FILE = "metrics.json"
GATE_FILE = "gate.json"
NOT_RECORDED = "not recorded"
ELSEWHERE = ("data", "out", "teacher", "weights")  # of train_config.yaml: where, not what
Scores = dict[str, Any]
_Parsed = TypeVar("_Parsed")


@dataclass(frozen=True)
class Facts:
    """One model, as its files tell; None, or nothing, where a file is not there."""

    spec: ModelSpec
    config: dict[str, Any] | None
    record: TrainRecord | None  # what may be published of it
    test_sets: dict[str, Scores]  # what metrics.json has of each, SCORES at least
    engines: tuple[EngineRecord, ...]  # the eager one at least
    gate: GateReport | None = None


def read_facts(folder: Path, *, weights_sha256: str) -> Facts:
    """Reads the facts of a folder.

    Args:
        folder: a staged tree, or a run directory.
        weights_sha256: of its weights, which the metrics must have been measured on.

    Raises:
        ArchiveError: a file is not what imgcls writes, or the metrics are of other weights.
        ModelError: spec.yaml or engines.json cannot be used.
    """
    spec = read_spec(folder / SPEC_FILE)
    try:
        refuse_stale_calibration(folder, temperature=spec.temperature, weights_sha256=weights_sha256)
    except RunError as err:
        raise ArchiveError(str(err)) from err
    return Facts(
        spec=spec,
        config=read_config(folder / CONFIG_FILE),
        record=read_training(folder / RECORD_FILE),
        test_sets=_read_test_sets(folder / METRICS_FILE, weights_sha256=weights_sha256, temperature=spec.temperature),
        engines=read_records(folder),
        gate=_read_gate(folder / GATE_FILE, weights_sha256=weights_sha256),
    )


def read_config(path: Path) -> dict[str, Any] | None:
    """Reads a train_config.yaml; None where there is none.

    Raises:
        ArchiveError: it is not what train.py writes.
    """
    return _read(path, _parse_config, writer="train.py", remedy="mend or delete it")


def _parse_config(text: str) -> dict[str, Any]:
    return dict(yaml.safe_load(text).items())


def read_metrics(path: Path) -> dict[str, Any] | None:
    """Reads a metrics.json; None where there is none.

    Raises:
        ArchiveError: it is not what `imgcls evaluate` writes.
    """
    return _read(path, _parse_metrics, writer="imgcls evaluate", remedy="delete it, or evaluate the run again")


def _parse_metrics(text: str) -> dict[str, Any]:
    metrics = json.loads(text)
    sets = {name: dict(scores) for name, scores in metrics["test_sets"].items()}
    for scores in sets.values():
        if broken := [key for key in SCORES if not math.isfinite(scores.get(key, math.nan))]:
            raise ValueError(f"{broken[0]} is no number")
    temperature = float(metrics.get("temperature", 1))
    return {**metrics, "weights_sha256": str(metrics["weights_sha256"]), "temperature": temperature, "test_sets": sets}


def _read(path: Path, parse: Callable[[str], _Parsed], *, writer: str, remedy: str) -> _Parsed | None:
    if not path.is_file():
        return None
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as err:
        reason = " ".join(str(err).split()) or type(err).__name__
        raise ArchiveError(f"{path.name}: is not what {writer} writes ({reason}); {remedy}") from err


def _read_test_sets(path: Path, *, weights_sha256: str, temperature: float) -> dict[str, Scores]:
    metrics = read_metrics(path)
    if metrics is None:
        return {}
    if metrics["weights_sha256"] != weights_sha256:
        raise ArchiveError(f"{path.name}: was measured on other weights than the run holds; evaluate the run again")
    if metrics["temperature"] != temperature:
        raise ArchiveError(
            f"{path.name}: was measured at temperature {metrics['temperature']:g}, and spec.yaml has {temperature:g}; "
            "evaluate the run again"
        )
    return dict(metrics["test_sets"])


def _read_gate(path: Path, *, weights_sha256: str) -> GateReport | None:
    gate = _read(path, GateReport.model_validate_json, writer="imgcls archive build", remedy="build again")
    if gate and gate.weights_sha256 != weights_sha256:
        raise ArchiveError(f"{path.name}: judged other weights than the run holds; build again")
    return gate


def read_training(path: Path) -> TrainRecord | None:
    """Reads what may be published of a train_record.json; None where there is none.

    Raises:
        ArchiveError: it is not what imgcls writes.
    """
    try:
        return read_published(path) if path.is_file() else None
    except RunError as err:  # it names a temporary copy
        raise ArchiveError(str(err).replace(str(path), path.name)) from err
