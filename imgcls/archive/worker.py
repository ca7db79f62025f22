"""Does what a TorchServe worker does: loads an unpacked archive and answers batches, in this process.

Loading, parsing a request, calling the handler and writing the response are TorchServe's own code, as far as its worker
process runs it. Written anew here, after the Java code of TorchServe 0.12.0, is only the frontend's end of the socket:
how it hands a request over, and what it makes of the response.

`imgcls.archive.testing` and `imgcls.archive.selftest` are built on this. It imports nothing of imgcls, so that the
self-test can load it beside an archive's `model` and `handler`.
"""

import io
import json
import struct
import uuid
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal

with warnings.catch_warnings():
    warnings.simplefilter("ignore", ResourceWarning)  # TorchServe leaves a file open
    import ts
    from ts.metrics.metric_cache_abstract import MetricCacheAbstract
    from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
    from ts.model_loader import TsModelLoader
    from ts.protocol.otf_message_handler import retrieve_msg
    from ts.service import Service

MANIFEST = "MAR-INF/MANIFEST.json"
METRICS_CONFIG = Path(ts.__file__).parent / "configs" / "metrics.yaml"  # which metrics a worker knows unless told
FORMS = ("application/x-www-form-urlencoded", "multipart/")
_END = struct.pack("!i", -1)
_NOT_NETTYS = {208, 226, 306, 418, 425, 451, 508}  # statuses for which Java's Netty has no phrase, or another one
_KINDS = {1: "Informational", 2: "Success", 3: "Redirection", 4: "Client Error", 5: "Server Error"}


class WorkerError(Exception):
    """The handler has ended its worker, or has answered what the frontend cannot read."""


@dataclass(frozen=True)
class Part:
    """A file in a form; without a type of its own it is what the frontend takes it for."""

    data: bytes
    content_type: str = "application/octet-stream"


@dataclass(frozen=True)
class Request:
    """One request.

    Raises:
        ValueError: the body is of a type that the frontend takes apart as a form.
    """

    body: bytes = b""
    content_type: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)  # by the names that the client writes, capitals and all
    fields: Mapping[str, bytes | str | Part] | None = None  # a form instead of a body: bytes are a file, text is text
    query: Mapping[str, str] = field(default_factory=dict)  # of /NAME/predict; /predictions/NAME loses its query
    kind: Literal["predict", "explain", "describe"] = "predict"

    def __post_init__(self) -> None:  # noqa: D105
        if self.fields is None and self.content_type.lower().startswith(FORMS):
            raise ValueError(f"the frontend takes a body of {self.content_type} apart; give fields={{…}} instead")


@dataclass(frozen=True)
class Answer:
    """What a client gets, without the headers that the frontend adds to every answer."""

    status: int
    phrase: str  # the reason beside the status; empty where the handler gives none
    headers: Mapping[str, str]  # by names in lower case
    body: bytes
    parts: tuple[bytes, ...] = ()  # the body, as it was sent piece by piece where the handler streams it

    @property
    def content_type(self) -> str:
        """The type of the body; empty where the handler names none."""
        return self.headers.get("content-type", "")

    def json(self) -> Any:
        """Parses the body.

        Raises:
            ValueError: it is not JSON.
        """
        return json.loads(self.body)


def load_service(
    folder: Path, *, gpu_id: int | None = None, batch_size: int = 1, metrics_config: Path = METRICS_CONFIG
) -> Service:
    """Loads an unpacked archive, whose modules must be found on `sys.path`, with TorchServe's own loader.

    Raises:
        Exception: what the handler, or an import of it, raises.
    """
    model = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["model"]
    name, handler, envelope = model["modelName"], model["handler"], model.get("envelope") or None
    metrics = MetricsCacheYamlImpl(str(metrics_config))
    metrics.initialize_cache()
    metrics.model_name = name
    try:
        service = TsModelLoader().load(name, str(folder), handler, gpu_id, batch_size, envelope, True, metrics)
    except ModuleNotFoundError as err:
        # The loader looks among TorchServe's handlers next, and that there is none hides why the archive's fails.
        if isinstance(err.__context__, ImportError) and f"ts.torch_handler.{handler}".startswith(str(err.name)):
            raise err.__context__ from None
        raise
    service.set_cl_socket(_Outbox())
    return service


def ask(service: Service, requests: Sequence[Request]) -> list[Answer]:
    """Answers a batch, in its order.

    Raises:
        WorkerError: the handler ends the worker, or answers what the frontend cannot read.
    """
    batch = {str(uuid.uuid4()): request for request in requests}
    outbox = service.cl_socket
    outbox.messages.clear()
    try:
        _, parsed = retrieve_msg(_Inbox(_encode_batch(batch)))
        messages = [service.predict(parsed)]
    except (Exception, SystemExit) as err:
        reason = " ".join(f"{type(err).__name__}: {err}".split())
        raise WorkerError(f"the handler ends its worker ({reason}); the whole batch gets 500 Worker died.") from err
    return _decode_messages([*outbox.messages, *messages], ids=tuple(batch))


def metric_defaults() -> dict[str, list[Any]]:
    """Returns the default lists of dimensions of TorchServe's metrics API, by function.

    It adds the model's name to them, so that the first model of a process would name all others' metrics.
    """
    functions = {name: value for name, value in vars(MetricCacheAbstract).items() if name.startswith("add_")}
    defaults = ((name, value) for name, function in functions.items() for value in function.__defaults__ or ())
    return {name: value for name, value in defaults if isinstance(value, list)}


class _Outbox:
    """The socket to the frontend, for a handler that streams: it sends all parts but the last by itself."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []

    def sendall(self, message: bytes) -> None:
        self.messages.append(bytes(message))


class _Inbox:
    """The socket from the frontend."""

    def __init__(self, data: bytes) -> None:
        self.recv = io.BytesIO(data).read


def _encode_batch(batch: Mapping[str, Request]) -> bytes:
    """Writes requests as the frontend's ModelRequestEncoder does."""
    pieces = [b"I"]
    for request_id, request in batch.items():
        headers = _make_headers(request)
        pieces += [_encode(request_id), *(_encode(text) for header in headers.items() for text in header), _END]
        pieces += [_encode(value) for parameter in _list_parameters(request) for value in parameter]
        pieces.append(_END)
    return b"".join((*pieces, _END))


def _encode(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("!i", len(data)) + data


def _make_headers(request: Request) -> dict[str, str]:
    """Adds what the frontend adds, which wins over the client's."""
    if request.kind == "describe":
        return {**request.headers, "describe": "True"}
    content_type = request.content_type or ("" if request.fields is None else "multipart/form-data")
    first = {"Content-Type": content_type} if content_type else {}
    return {**first, **request.headers, "url_path": "", "explain": "True" if request.kind == "explain" else "False"}


def _list_parameters(request: Request) -> list[tuple[str, str, bytes]]:
    """Returns name, content type and value of each parameter, as the frontend finds them in a request."""
    found = [(name, "", value.encode()) for name, value in request.query.items()]
    if request.fields is not None:
        return found + [_make_parameter(name, value) for name, value in request.fields.items()]
    if request.kind == "describe":
        return found
    return [*found, ("body", request.content_type.partition(";")[0].strip(), bytes(request.body))]


def _make_parameter(name: str, value: bytes | str | Part) -> tuple[str, str, bytes]:
    if isinstance(value, str):
        return name, "", value.encode()
    part = value if isinstance(value, Part) else Part(bytes(value))
    return name, part.content_type, bytes(part.data)


def _decode_messages(messages: Iterable[bytes], *, ids: Sequence[str]) -> list[Answer]:
    """Returns what the frontend sends to each client."""
    found: dict[str, Answer] = {}
    for message in messages:
        try:
            code, reason, answers = _decode_message(message)
            found = _join(found, answers) if code == HTTPStatus.OK else dict.fromkeys(ids, _fail(code, reason))
        except (struct.error, ValueError) as err:
            cause = "TorchServe announces a phrase or content type that is not ASCII as shorter than it is"
            raise WorkerError(f"the frontend cannot read the handler's answer; use ASCII: {cause}") from err
    return [found[request_id] for request_id in ids]


def _join(found: Mapping[str, Answer], more: Mapping[str, Answer]) -> dict[str, Answer]:
    """Adds further parts of streams: status and headers are the first part's."""
    joined = dict(found)
    for request_id, answer in more.items():
        first = joined.get(request_id, Answer(answer.status, answer.phrase, answer.headers, b""))
        parts = (*first.parts, *answer.parts)
        joined[request_id] = Answer(first.status, first.phrase, first.headers, b"".join(parts), parts)
    return joined


def _decode_message(message: bytes) -> tuple[int, str, dict[str, Answer]]:
    """Reads a response as the frontend's ModelResponseDecoder does: ts.protocol.otf_message_handler writes it."""
    stream = io.BytesIO(message)

    def read_int() -> int:
        value: int = struct.unpack("!i", stream.read(4))[0]
        return value

    def read(length: int) -> bytes:
        data = stream.read(length) if length >= 0 else b""
        if len(data) != length:
            raise ValueError(f"{length} bytes announced, {len(data)} there")
        return data

    def read_text() -> str:
        return read(read_int()).decode(errors="replace")

    code, reason = read_int(), read_text()
    answers = {}
    while (length := read_int()) != -1:
        request_id, content_type = read(length).decode(), read_text()
        status, phrase = read_int(), read_text()
        headers = {"content-type": content_type} if content_type else {}
        headers |= {read_text().lower(): read_text() for _ in range(read_int())}
        body = read(read_int())
        answers[request_id] = Answer(status, phrase, headers, body, (body,))
    if stream.read(1):
        raise ValueError("bytes are left over")
    return code, reason, answers


def _fail(code: int, reason: str) -> Answer:
    """Returns what the frontend's NettyUtils.sendError sends to each client of a batch that failed as a whole."""
    status = 507 if code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE else code
    fields = {"code": status, "type": "InternalServerException", "message": reason}
    body = (json.dumps(fields, indent=2, ensure_ascii=False) + "\n").encode()
    is_known = status in set(HTTPStatus) - _NOT_NETTYS
    phrase = HTTPStatus(status).phrase if is_known else f"{_KINDS.get(status // 100, 'Unknown Status')} ({status})"
    return Answer(status, phrase, {"content-type": "application/json"}, body, (body,))
