"""Runs any `.mar` in this process, so that a test of its handler takes no server.

    with load_archive("model_store/imgcls.mar") as served:
        [answer] = served.predict([Path("cat.jpg").read_bytes()])
    assert answer.status == 200

TorchServe's own loader, Service and Context do the work, as in a worker; the archive's modules are kept apart from
those of the test. What this shows and what only a server can: docs/testing-handlers.md. A pytest fixture:
`imgcls.archive.pytest_plugin`.
"""

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from imgcls.archive.contents import MANIFEST, extract
from imgcls.archive.isolation import Isolation
from imgcls.archive.worker import METRICS_CONFIG, Answer, Part, Request, WorkerError, ask, load_service
from imgcls.errors import ArchiveError
from imgcls.scratch import ScratchFolder
from imgcls.serving.lint_keys import MODEL_KEYS

if TYPE_CHECKING:
    from ts.service import Service

__all__ = ["Answer", "Metric", "Part", "Request", "ServedArchive", "load_archive"]

METRIC_LOGGERS = ("ts.metrics.caching_metric", "ts.service")
# The frontend reads metrics off the worker's output with this expression: org.pytorch.serve.metrics.Metric.
METRIC_LINE = re.compile(
    r"\[METRICS]\s*(?P<name>[\w\s]+)\.(?P<unit>[\w\s]+):(?P<value>[0-9\-,.e]+)\|#(?P<dimensions>[^|]*)"
    r"(\|#type:(?P<kind>[^|,]+))?\|#hostname:([^,]+),([^,]+)(,(.*))?",
    re.ASCII,
)


@dataclass(frozen=True)
class Metric:
    """A value that was recorded through TorchServe's metrics API."""

    name: str
    value: float
    unit: str  # as TorchServe writes it: ms is Milliseconds
    dimensions: Mapping[str, str]
    kind: str  # COUNTER, GAUGE or HISTOGRAM


@contextmanager
def load_archive(
    archive: Path | str,
    *,
    gpu_id: int | None = None,
    batch_size: int | None = None,
    metrics_config: Path = METRICS_CONFIG,
    decode_input_request: bool = True,
    environment: Mapping[str, str] | None = None,
    python_path: Sequence[Path] = (),
) -> Iterator["ServedArchive"]:
    """Loads an archive as a worker does.

    Args:
        archive: a `.mar`, or a folder with an unpacked one, which is used as it is.
        gpu_id: the GPU that the worker gets; None: none.
        batch_size: how many requests a batch may hold; None: `batchSize` of the archive's configuration, or 1 where
            TorchServe ignores it.
        metrics_config: which metrics the worker knows, as `metrics_config` of config.properties.
        decode_input_request: the key of that name in config.properties: whether JSON and text bodies are parsed.
        environment: variables that the server has and this process has not.
        python_path: what the server has in $PYTHONPATH; it stands before the archive.

    Raises:
        ArchiveError: it cannot be read, or its handler cannot be loaded; the handler's own error is the cause.
    """
    with ExitStack() as stack:
        folder = Path(archive).absolute()
        if not folder.is_dir():
            folder = Path(stack.enter_context(ScratchFolder("test"))).resolve() / "archive"
            extract(Path(archive), folder=folder)
        model, config = _read_model(Path(archive), folder)
        variables = {"TS_DECODE_INPUT_REQUEST": str(decode_input_request).lower(), **(environment or {})}
        isolation = Isolation(folder, python_path=python_path, environment=variables)
        stack.callback(isolation.close)
        served = ServedArchive(Path(archive), folder, model, isolation)
        served.batch_size = batch_size or _read_batch_size(config)
        served._load(gpu_id=gpu_id, metrics_config=metrics_config.absolute())
        stack.callback(served._end, "it is closed; ask inside the with block")
        yield served


class ServedArchive:
    """An archive in a worker; made by `load_archive`.

    Attributes:
        name: the model's, of the manifest.
        version: the model's, of the manifest.
        folder: the unpacked archive.
        batch_size: how many requests a batch may hold.
        service: TorchServe's Service; look into it, and what it refers to, inside `active()`.
    """

    batch_size: int
    service: "Service"

    def __init__(self, archive: Path, folder: Path, model: Mapping[str, Any], isolation: Isolation) -> None:
        self.name, self.version = str(model["modelName"]), str(model.get("modelVersion", ""))
        self.folder = folder
        self._archive, self._isolation = archive, isolation
        self._metric_lines: list[str] = []
        self._why_ended = ""

    def predict(self, requests: Sequence[Any]) -> list[Answer]:
        """Sends one batch, and returns each request's answer.

        Args:
            requests: each a `Request`; or bytes, a body without a type; or a dict with bytes among its values, the
                fields of a form; or else what JSON can hold, a body of type application/json.

        Raises:
            ArchiveError: the handler has ended its worker, or answers what TorchServe's frontend cannot read.
            TypeError: a request is nothing of these.
            ValueError: there is no request, or there are more than `batch_size`.
        """
        return self._ask([make_request(request) for request in requests])

    def explain(self, requests: Sequence[Any]) -> list[Answer]:
        """Sends one batch as `predict` does, to /explanations; in a mixed one, give a `Request` its kind."""
        return self._ask([replace(make_request(request), kind="explain") for request in requests])

    def describe(self) -> Answer:
        """Asks for what GET /models/NAME?customized=true shows as customizedMetadata."""
        [answer] = self._ask([Request(kind="describe")])
        return answer

    def metrics(self, name: str | None = None) -> list[Metric]:
        """Returns what was recorded so far through TorchServe's metrics API, of all names or one.

        TorchServe itself records PredictionTime for each batch that it answers.

        Raises:
            ArchiveError: a metric was recorded that TorchServe's frontend cannot read, and drops.
        """
        found = [_parse_metric(line) for line in self._metric_lines]
        return [metric for metric in found if name is None or metric.name == name]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Makes this process the archive's worker: inside, `import model` is the archive's module."""
        watch = _MetricFilter(self._metric_lines)
        with self._isolation.active():
            for logger in METRIC_LOGGERS:
                logging.getLogger(logger).addFilter(watch)
            try:
                yield
            finally:
                for logger in METRIC_LOGGERS:
                    logging.getLogger(logger).removeFilter(watch)

    def _load(self, *, gpu_id: int | None, metrics_config: Path) -> None:
        try:
            with self.active():
                if not logging.getLogger().handlers and logging.lastResort:
                    logging.getLogger().addHandler(logging.lastResort)  # else TorchServe would print every line
                self.service = load_service(
                    self.folder, gpu_id=gpu_id, batch_size=self.batch_size, metrics_config=metrics_config
                )
        except (Exception, SystemExit) as err:
            reason = " ".join(f"{type(err).__name__}: {err}".split())
            raise ArchiveError(f"{self._archive}: its handler cannot be loaded: {reason}") from err

    def _ask(self, requests: Sequence[Request]) -> list[Answer]:
        if self._why_ended:
            raise ArchiveError(f"{self._archive}: {self._why_ended}")
        if not 0 < len(requests) <= self.batch_size:
            expected = f"1 to {self.batch_size}, as TorchServe sends to this archive"
            raise ValueError(f"a batch of {len(requests)} requests; expected {expected}; batch_size=… changes that")
        try:
            with self.active():
                return ask(self.service, requests)
        except WorkerError as err:
            self._end(f"its worker has ended; load it again ({err})")
            raise ArchiveError(f"{self._archive}: {err}") from err

    def _end(self, reason: str) -> None:
        self._why_ended = self._why_ended or reason


def make_request(value: Any) -> Request:
    """Returns a request as `ServedArchive.predict` describes.

    Raises:
        TypeError: the value is a str, which could be text or JSON, or JSON cannot hold it.
    """
    if isinstance(value, Request):
        return value
    if isinstance(value, bytes | bytearray):
        return Request(body=bytes(value))
    if isinstance(value, Mapping) and any(isinstance(item, bytes | bytearray | Part) for item in value.values()):
        return Request(fields=value)
    if isinstance(value, str):
        raise TypeError('a request is a str; expected bytes, or Request(body=…, content_type="text/plain")')
    return Request(body=json.dumps(value).encode(), content_type="application/json")


class _MetricFilter(logging.Filter):
    """Copies the lines of metrics that pass a logger; a handler would change where all other lines go."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self._lines = lines

    def filter(self, record: logging.LogRecord) -> bool:
        if (line := record.getMessage()).startswith("[METRICS]"):
            self._lines.append(line)
        return True


def _parse_metric(line: str) -> Metric:
    match = METRIC_LINE.fullmatch(line)
    try:
        if match is None:
            raise ValueError("it does not match the frontend's expression")
        pairs = [pair.split(":") for pair in match["dimensions"].split(",")]
        dimensions = {pair[0]: pair[1] for pair in pairs if len(pair) == 2}
        return Metric(match["name"], float(match["value"]), match["unit"], dimensions, match["kind"] or "")
    except ValueError as err:
        raise ArchiveError(f"the frontend drops this metric, use letters, digits and _ in its name: {line}") from err


def _read_batch_size(config: Mapping[str, Any]) -> int:
    """Returns what TorchServe makes of `batchSize`: 1 where it is missing, no whole number, or out of range."""
    size = config.get("batchSize")
    return size if isinstance(size, int) and MODEL_KEYS["batchSize"](size) is None else 1


def _read_model(archive: Path, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns what the manifest says of the model, and the archive's configuration."""
    try:
        model = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["model"]
        file = folder / model["configFile"] if "configFile" in model else None
        config = yaml.safe_load(file.read_text(encoding="utf-8")) if file else None
        return {"modelName": model["modelName"], **model}, config if isinstance(config, dict) else {}
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError) as err:
        reason = " ".join(f"{type(err).__name__}: {err}".split())
        raise ArchiveError(f"{archive}: {MANIFEST} or the configuration it names cannot be read: {reason}") from err
