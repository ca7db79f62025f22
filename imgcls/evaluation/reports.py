"""metrics.json: the numbers of every test set of a run, kept from call to call as long as its answers are the same.

They are while weights and temperature are.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from imgcls.errors import RunError
from imgcls.evaluation.metrics import TestMetrics
from imgcls.evaluation.slices import SliceMetrics
from imgcls.files import write_atomic
from model.spec import SPEC_FILE, WEIGHTS_FILE, read_spec

METRICS_FILE = "metrics.json"


class TestReport(TestMetrics):
    """One test set's numbers and where they come from.

    `skipped` files of the source could not be used. `images_sha256` names the images, their classes and what changed
    them, whatever they are called; `slices` are by column and value.
    """

    source: str
    split: str
    skipped: int
    images_sha256: str | None = None
    slices: dict[str, dict[str, SliceMetrics]] = Field(default_factory=dict)


class MetricsFile(BaseModel):
    """The content of metrics.json; `weights_sha256` and `temperature` say whose numbers they are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights_sha256: str
    temperature: float = 1.0
    test_sets: dict[str, TestReport]


def read_metrics(path: Path) -> MetricsFile:
    """Reads a metrics.json.

    Raises:
        RunError: it is missing, or not what `save_reports` writes.
    """
    try:
        return MetricsFile.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as err:
        reason = str(err).splitlines()[0]
        raise RunError(f"{path}: cannot be read as metrics: {reason}; delete it and evaluate again") from err


def save_reports(folder: Path, reports: Mapping[str, TestReport], *, run: Path) -> MetricsFile:
    """Writes the reports to the folder's metrics.json, beside earlier ones of the same weights.

    Raises:
        RunError: an earlier metrics.json cannot be read.
    """
    path = folder / METRICS_FILE
    mine = (hash_weights(run), read_spec(run / SPEC_FILE).temperature)
    earlier = read_metrics(path) if path.exists() else None
    kept = earlier.test_sets if earlier and (earlier.weights_sha256, earlier.temperature) == mine else {}
    metrics = MetricsFile(weights_sha256=mine[0], temperature=mine[1], test_sets={**kept, **reports})
    write_atomic(path, metrics.model_dump_json(indent=1) + "\n")
    return metrics


def drop_report(folder: Path, name: str) -> None:
    """Takes a test set out of the folder's metrics.json: done before its other files are replaced.

    Whoever is killed between leaves a set to evaluate again, and no numbers of one measurement beside files of another.

    Raises:
        RunError: metrics.json cannot be read.
    """
    path = folder / METRICS_FILE
    metrics = read_metrics(path) if path.exists() else None
    if metrics and name in metrics.test_sets:
        kept = {other: report for other, report in metrics.test_sets.items() if other != name}
        write_atomic(path, metrics.model_copy(update={"test_sets": kept}).model_dump_json(indent=1) + "\n")


def hash_weights(run: Path) -> str:
    """Returns the SHA-256 of a run's weights, as hex."""
    with (run / WEIGHTS_FILE).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
