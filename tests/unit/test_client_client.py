import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import requests

from imgcls.client import Client
from imgcls.client.answers import error_of, parse_prediction
from imgcls.client.errors import (
    BadImageError,
    BadRequestError,
    ConnectionFailedError,
    ModelNotFoundError,
    NotAuthorisedError,
    OverloadedError,
    RequestTimeoutError,
    ServerError,
    UnexpectedAnswerError,
)
from imgcls.errors import ClientError
from imgcls.serving.errors import ManagementError, NotReadyError, OvertakenError
from imgcls.serving.management import Management
from imgcls.serving.readiness import LogWatch, check_golden, wait_for_workers
from imgcls.serving.state import StateFolder
from model.golden import GoldenItem
from tests.support.http import Server

ANSWER = {
    "model": "imgcls",
    "version": "1.0",
    "predictions": [
        {"label": "three", "index": 3, "probability": 0.9},
        {"label": "one", "index": 1, "probability": 0.1},
    ],
}


class Fake(Server):
    """Only the transport is faked: answers one after the other, the last one for ever."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[tuple[int, Any]] = [(200, ANSWER)]
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Fake

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.server.requests.append((self.path, dict(self.headers), data))
        answers = self.server.answers
        status, body = answers.pop(0) if len(answers) > 1 else answers[0]
        if status == 0:  # the connection breaks
            self.close_connection = True
            self.connection.close()
            return
        time.sleep(body.pop("delay_s", 0) if isinstance(body, dict) else 0)
        text = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self) -> None:
        self.do_POST()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def fake() -> Iterator[Fake]:
    server = Fake()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_prediction_is_typed_and_the_request_is_as_agreed(fake: Fake, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"png")
    with Client(fake.url + "/", token="secret", model="a b", version="2.0") as client:
        prediction = client.predict_file(tmp_path / "x.png", top_k=2)
    assert (prediction.best.label, prediction.best.index, len(prediction.ranked)) == ("three", 3, 2)
    path, headers, data = fake.requests[0]
    assert (path, data) == ("/predictions/a%20b/2.0", b"png")
    assert (headers["Authorization"], headers["top_k"]) == ("Bearer secret", "2")
    assert headers["Content-Type"] == "application/octet-stream"


def test_netrc_and_proxy_do_not_replace_the_token(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with Client(fake.url, token="secret") as client:
        client.predict(b"x")
    assert fake.requests[0][1]["Authorization"] == "Bearer secret"


def test_broken_connection_is_tried_again(fake: Fake) -> None:
    fake.answers = [(0, None), (0, None), (200, ANSWER)]
    with Client(fake.url, retries=2) as client:
        assert client.predict(b"x").best.index == 3
    assert len(fake.requests) == 3


def test_nobody_listening_is_said_so() -> None:
    with (
        Client("http://127.0.0.1:9", retries=1) as client,
        pytest.raises(ConnectionFailedError, match="nobody listens"),
    ):
        client.predict(b"x")


def test_refused_is_known_by_the_kind_of_error_and_not_by_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise requests.ConnectionError("refused.example cannot be resolved")

    monkeypatch.setattr(requests.Session, "request", fail)
    with Client("http://refused.example", retries=0) as client, pytest.raises(ConnectionFailedError) as caught:
        client.predict(b"x")
    assert "nobody listens" not in str(caught.value)


def test_timeout_is_not_tried_again(fake: Fake) -> None:
    fake.answers = [(200, {**ANSWER, "delay_s": 0.5})]
    with Client(fake.url, timeout_s=0.1, retries=3) as client, pytest.raises(RequestTimeoutError, match=r"0\.1 s"):
        client.predict(b"x")
    assert len(fake.requests) == 1


def test_status_is_not_tried_again(fake: Fake) -> None:
    fake.answers = [(503, {"code": 503, "type": "ServiceUnavailableException", "message": "no worker"})]
    with Client(fake.url, retries=3) as client, pytest.raises(OverloadedError):
        client.predict(b"x")
    assert len(fake.requests) == 1


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, {"error": {"code": "empty_image", "reason": "no bytes"}}, BadImageError),
        (422, {"error": {"code": "undecodable_image", "reason": "cut off"}}, BadImageError),
        (400, {"error": {"code": "bad_request", "reason": "top_k is 0"}}, BadRequestError),
        (500, {"error": {"code": "non_finite_answer", "reason": "NaN"}}, ServerError),
        (400, {"code": 400, "type": "InvalidKeyException", "message": "Token"}, NotAuthorisedError),
        (401, None, NotAuthorisedError),
        (404, {"code": 404, "type": "ModelNotFoundException", "message": "Model not found: x"}, ModelNotFoundError),
        (413, None, BadImageError),
        (429, None, OverloadedError),
        (503, {"message": "queue"}, OverloadedError),
        (507, {"message": "memory"}, ServerError),
        (418, "tea", BadRequestError),
    ],
)
def test_each_answer_has_its_error(status: int, body: object, kind: type[ClientError]) -> None:
    error = error_of(status, body, text="raw")
    assert type(error) is kind
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    "body",
    [
        *(None, [], {}),
        *(
            {**ANSWER, "predictions": ranked}
            for ranked in ([], [{"label": "x"}], [ANSWER["predictions"][0] | {"index": 1e400}])
        ),
    ],
)
def test_foreign_answer_is_refused(body: object) -> None:
    with pytest.raises(UnexpectedAnswerError, match=r"got an answer (that is none of imgcls' handler|with no class)"):
        parse_prediction(body)


DEEP, LONG = "[" * 100_000 + "]" * 100_000, f"[{'9' * 5000}]"
WORKERS = [{"id": "9000", "status": "READY", "pid": "x" * 300, "gpu": "\n"}] * 50


@pytest.mark.parametrize("text", [DEEP, LONG])
def test_answer_that_python_cannot_hold_is_none_of_ours(fake: Fake, text: str) -> None:
    fake.answers = [(200, text)]
    with Client(fake.url) as client, pytest.raises(UnexpectedAnswerError):
        client.predict(b"x")


@pytest.mark.parametrize(
    ("ask", "status", "body", "words"),
    [
        ("describe", 200, DEEP, "got 200 and no JSON; is this TorchServe"),
        ("describe", 200, LONG, "got 200 and no JSON; is this TorchServe"),
        ("describe", 200, [], "not TorchServe 0.12's (the whole: Tuple should have at least 1 item"),
        ("describe", 200, [{"modelName": "m", "workers": WORKERS}], "(0.modelVersion: Field required, got {"),
        ("describe", 500, {"message": "a\nb " + "x" * 1000}, "refused with 500: a b xxx"),
        ("describe", 500, [{}] * 1000, "refused with 500: [{}, {}"),
        ("list_models", 200, {"models": [{}]}, "(models.0.modelName: Field required"),
        ("list_models", 200, [], "not TorchServe 0.12's (the whole: "),
        ("ask_worker", 200, [], "not TorchServe 0.12's (the whole: "),
        ("ask_worker", 200, {"a": 1}, "not TorchServe 0.12's (the whole: "),
    ],
)
def test_management_answer_that_is_none_is_one_short_line(
    fake: Fake, ask: str, status: int, body: object, words: str
) -> None:
    fake.answers = [(status, body)]
    with Management(fake.url, token=None) as management, pytest.raises(ManagementError) as caught:
        match ask:
            case "describe":
                management.describe("m")
            case "list_models":
                management.list_models()
            case _:
                management.ask_worker("m", version="1")
    message = str(caught.value)
    assert words in message and "\n" not in message and len(message) < 500


def test_number_of_workers_that_somebody_else_replaced_is_not_waited_for(fake: Fake, tmp_path: Path) -> None:
    bounds = {"minWorkers": 2, "maxWorkers": 2, "batchSize": 8, "maxBatchDelay": 1}
    fake.answers = [(200, [{"modelName": "m", "modelVersion": "1", "workers": []} | bounds])]
    watch, deadline_s = LogWatch(StateFolder(tmp_path)), time.monotonic() + 2
    with Management(fake.url, token=None) as management:
        with pytest.raises(OvertakenError, match="m: 3 workers were asked for, and 2 since, by somebody else"):
            wait_for_workers(management, "m", watch=watch, deadline_s=deadline_s, workers=3)
        with pytest.raises(NotReadyError, match="0 of 2 workers READY"):  # as many as it wants: its own are awaited
            wait_for_workers(management, "m", watch=watch, deadline_s=time.monotonic(), workers=2)


def test_file_that_cannot_be_read_is_a_client_error(tmp_path: Path) -> None:
    with Client("http://127.0.0.1:9") as client, pytest.raises(ClientError, match="Is a directory"):
        client.predict_file(tmp_path)


@pytest.mark.parametrize("token", ["secret\n", "sec\r\nret", "secr€t"])
def test_token_that_no_header_can_carry_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(ClientError, match="the token holds a line break or another character") as refused:
        Client("http://127.0.0.1:9", token=token)
    assert "sec" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:8080", "ftp://x", "http://", "http://[::1", "http://localhost:port", "http://localhost:65536"],
)
def test_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ClientError, match="expected one such as"):
        Client(url)


def test_golden_answers_must_be_right(fake: Fake) -> None:
    right = GoldenItem(file="a.png", index=3, label="three", probability=0.9, data=b"x")
    with Client(fake.url) as client:
        check_golden(client, [right], where=Path("a.mar"))
        for change in ({"index": 2}, {"probability": 0.5}):
            with pytest.raises(NotReadyError, match=r"a\.mar: golden input a\.png"):
                check_golden(client, [right.model_copy(update=change)], where=Path("a.mar"))
        fake.answers = [(500, {"message": "broken"})]
        with pytest.raises(NotReadyError, match="was not answered"):
            check_golden(client, [right], where=Path("a.mar"))
