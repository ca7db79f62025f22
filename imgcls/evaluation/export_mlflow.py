"""A run in MLflow: its settings, numbers, origin and files; exporting it again goes on with the same MLflow run.

A run is known again by the tag `imgcls.run`: the digest of its folder's name, its settings and what its record says of
code, data, seed and libraries. Settings and history never change under it; numbers of test sets may be measured anew.
MLflow's telemetry is off unless the environment says otherwise.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from imgcls.errors import RunError, UsageError
from imgcls.evaluation.numbers import Number, read_numbers
from imgcls.files import refuse_unwritable
from imgcls.training.record import RECORD_FILE, TrainRecord, format_record, read_published
from imgcls.yaml_once import load_yaml

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # with the password that it may have
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # of 7, which are minutes where no server answers

CONFIG_FILE = "train_config.yaml"
IDENTITY_TAG = "imgcls.run"
_NOT_SETTINGS = {"out"}  # a run that was moved is the same, and MLflow takes no second value of a parameter
ARTIFACTS = (
    *("weights.safetensors", "spec.yaml", "index_to_name.json", CONFIG_FILE, RECORD_FILE, "history.csv"),
    *("rejections.csv", "metrics.json", "calibration.json", "report.html", "confusion_*.png", "predictions_*.csv"),
)
_CHUNK = 100  # the least of MLflow's limits of a request
_PORT = r"\d+(?:[/?#\s]|$)"  # what a colon is followed by that stands behind a host


@dataclass(frozen=True)
class Exported:
    """Where a run is in MLflow; `numbers` and `files` are those that were sent now."""

    run_id: str
    is_new: bool
    numbers: int
    files: int


def export_mlflow(run: Path, where: str, *, experiment: str = "imgcls") -> Exported:
    """Logs a run to a tracking URI, or to a folder, which gets a database and the artifacts.

    Raises:
        UsageError: the URI is none, or of a kind that MLflow no longer writes.
        RunError: the run cannot be read, MLflow or a database's driver is not installed, MLflow fails, or it holds
            another history of the run.
    """
    history, tests = read_numbers(run)
    config, record = _read_config(run), _read_record(run)
    identity = _identify(run, config, record)
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError
    except ModuleNotFoundError as err:
        raise RunError(
            f"MLflow is not installed ({err.name} is missing); install it: pip install 'imgcls[mlflow]'"
        ) from err
    uri, artifacts = _locate(where)
    try:
        client = MlflowClient(uri)
        run_id, is_new = _find_run(client, experiment, run.resolve().name, identity, artifacts=artifacts)
        new = [*_choose_history(client, run_id, history), *_choose_tests(client, run_id, tests)]
        with _running(client, run_id):
            _log_params(client, run_id, config)
            for key, value in _describe_origin(record, config).items():
                client.set_tag(run_id, key, value)
            _log_numbers(client, run_id, new)
            files = [path for pattern in ARTIFACTS for path in sorted(run.glob(pattern)) if path.is_file()]
            for path in files:
                _log_file(client, run_id, path, record)
    except ModuleNotFoundError as err:  # of a database's driver
        raise RunError(
            f"{hide_password(where)}: MLflow needs the Python module {err.name!r} for it, which is not installed; "
            f"install it: pip install {err.name}"
        ) from err
    except (MlflowException, SQLAlchemyError, OSError, ValueError) as err:
        reason = str(err).strip().splitlines()[0] if str(err).strip() else type(err).__name__
        raise RunError(
            f"{hide_password(where)}: MLflow failed: {hide_password(reason)}; exporting again goes on"
        ) from err
    return Exported(run_id, is_new, numbers=len(new), files=len(files))


def hide_password(text: str) -> str:
    """Returns a text without the user and password that a URI in it has, before its host or as a parameter.

    A password may hold @ and, to SQLAlchemy, / and ?; where it is not clear what ends it, too much is left out.
    """
    text = re.sub(r"(?i)(passw(?:or)?d=)[^&\s]+", r"\1…", text)
    return re.sub(rf"//(?:[^\s/?#:]*:(?!{_PORT})\S*|[^\s?#]*)@", "//", text)


def _locate(where: str) -> tuple[str, str | None]:
    """Returns the tracking URI, and where a new experiment's artifacts go; None leaves that to MLflow."""
    try:
        urlsplit(where)
    except ValueError as err:
        raise UsageError(
            f"{hide_password(where)}: is no URI: {err}; expected a folder, or such as https://mlflow.example"
        ) from err
    if where.startswith("file:"):
        raise UsageError(f"{where}: MLflow no longer writes to file stores; give a folder, which gets a database")
    if where.startswith("sqlite:///"):  # MLflow would put artifacts into the working directory
        return where, (Path(where.removeprefix("sqlite:///")).resolve().parent / "artifacts").as_uri()
    if "://" in where or where == "databricks":
        return where, None
    folder = Path(where).resolve()
    if any(folder.glob("*/meta.yaml")):
        raise UsageError(
            f"{where}: is a file store, to which MLflow no longer writes; mlflow migrate-filestore moves it"
        )
    with refuse_unwritable(folder, advice="choose another folder with --mlflow"):
        folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder / 'mlflow.db'}", (folder / "artifacts").as_uri()


def _identify(run: Path, config: dict[str, Any], record: TrainRecord | None) -> str:
    """Returns the digest by which a run is known again; a part of it that was resumed leaves it as it was."""
    settings = {key: value for key, value in config.items() if key not in _NOT_SETTINGS}
    facts = {"code", "data", "seed", "parent", "versions"} | ({"teacher"} if record and record.teacher else set())
    start = record.model_dump(mode="json", include=facts) if record else None
    text = json.dumps([run.resolve().name, settings, start], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _find_run(client: Any, experiment: str, name: str, identity: str, *, artifacts: str | None) -> tuple[str, bool]:
    """Returns the MLflow run's id, and whether it was made now."""
    known = client.get_experiment_by_name(experiment)
    if known is not None and known.lifecycle_stage != "active":
        raise RunError(f"MLflow's experiment {experiment!r} is deleted; restore it, or give another with --experiment")
    experiment_id = known.experiment_id if known else client.create_experiment(experiment, artifact_location=artifacts)
    found = client.search_runs([experiment_id], filter_string=f"tags.`{IDENTITY_TAG}` = '{identity}'", max_results=1)
    if found:
        return found[0].info.run_id, False
    return client.create_run(experiment_id, run_name=name, tags={IDENTITY_TAG: identity}).info.run_id, True


@contextmanager
def _running(client: Any, run_id: str) -> Iterator[None]:
    """Within it MLflow shows the run as running, and then as finished or failed."""
    client.update_run(run_id, status="RUNNING")
    try:
        yield
        client.set_terminated(run_id)
    except BaseException:
        with suppress(Exception):  # the first error is the one to tell
            client.set_terminated(run_id, status="FAILED")
        raise


def _choose_history(client: Any, run_id: str, history: Sequence[Number]) -> Iterator[Number]:
    """Yields what MLflow does not have yet.

    Raises:
        RunError: it has another value of an epoch, which cannot be taken back.
    """
    for tag in dict.fromkeys(number.tag for number in history):
        logged = {metric.step: metric.value for metric in client.get_metric_history(run_id, tag)}
        for number in (number for number in history if number.tag == tag):
            if logged.get(number.step, number.value) != number.value:
                raise RunError(
                    f"MLflow run {run_id} has {tag} {logged[number.step]} of epoch {number.step}, and the run has "
                    f"{number.value}: it was trained anew; delete that run in MLflow, or rename the run's folder"
                )
            if number.step not in logged:
                yield number


def _choose_tests(client: Any, run_id: str, tests: Sequence[Number]) -> list[Number]:
    latest = client.get_run(run_id).data.metrics
    return [number for number in tests if latest.get(number.tag) != number.value]


def _log_params(client: Any, run_id: str, config: dict[str, Any]) -> None:
    from mlflow.entities import Param

    settings = {key: value for key, value in config.items() if value is not None and key not in _NOT_SETTINGS}
    params = [Param(key, _dump(value)) for key, value in settings.items()]
    for start in range(0, len(params), _CHUNK):
        client.log_batch(run_id, params=params[start : start + _CHUNK])


def _log_numbers(client: Any, run_id: str, numbers: Sequence[Number]) -> None:
    from mlflow.entities import Metric

    now_ms = int(time.time() * 1000)
    metrics = [Metric(number.tag, number.value, now_ms, number.step) for number in numbers]
    for start in range(0, len(metrics), _CHUNK):
        client.log_batch(run_id, metrics=metrics[start : start + _CHUNK])


def _log_file(client: Any, run_id: str, path: Path, record: TrainRecord | None) -> None:
    if record and path.name == RECORD_FILE:
        client.log_text(run_id, format_record(record), RECORD_FILE)  # what may be published of it
    else:
        client.log_artifact(run_id, str(path))


def _describe_origin(record: TrainRecord | None, config: dict[str, Any]) -> dict[str, str]:
    if record is None:
        return {}
    tags = {f"imgcls.data.{name}": split.sha256 for name, split in record.data.splits.items() if split.sha256}
    tags |= {"imgcls.data": record.data.source, "imgcls.code": record.code.sha256, "imgcls.device": record.device}
    if record.code.git_commit:
        tags |= {"mlflow.source.git.commit": record.code.git_commit, "imgcls.git_dirty": str(record.code.git_dirty)}
    return tags | {f"imgcls.version.{name}": version for name, version in record.versions.items()}


def _dump(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _read_config(run: Path) -> dict[str, Any]:
    path = run / CONFIG_FILE
    try:
        config = load_yaml(path.read_bytes()) if path.is_file() else {}
    except (OSError, yaml.YAMLError) as err:
        raise RunError(f"{path}: cannot be read: {' '.join(str(err).split())}; delete it to export without") from err
    if not isinstance(config, dict):
        raise RunError(f"{path}: is no mapping of settings; delete it to export without")
    return config


def _read_record(run: Path) -> TrainRecord | None:
    return read_published(run / RECORD_FILE) if (run / RECORD_FILE).is_file() else None
