"""The gateway before a real TorchServe: what it lets through, what it answers itself, and how it ends."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import grpc
import pytest
import requests

from bench.tiny import make_tiny_run
from imgcls.serving.errors import ManagementError
from tests.support.archives import build
from tests.support.gateway import Live, live_gateway, run_imgcls, write_image

OCTETS = {"Content-Type": "application/octet-stream"}
PREDICTIONS = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions"
UNREGISTER = "/org.pytorch.serve.grpc.management.ManagementAPIsService/UnregisterModel"


@pytest.fixture(scope="module")
def mar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    return build(make_tiny_run(folder / "run"), folder / "store", version="1.0")


@pytest.fixture(scope="module")
def live(mar: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_gateway(mar, tmp_path_factory.mktemp("gateway") / "state") as live:
        yield live


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_image(tmp_path_factory.mktemp("image") / "image.png").read_bytes()


@pytest.fixture
def http() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        yield session


@pytest.mark.parametrize(
    "path",
    ["/predictions/imgcls", "/predictions/imgcls/1.0", "/v1/models/imgcls:predict", "/v2/models/imgcls/infer"],
)
def test_every_way_of_asking_is_answered_and_says_by_which_version(
    live: Live, http: requests.Session, image: bytes, path: str
) -> None:
    answer = http.post(live.state.url + path, data=image, headers=OCTETS)
    assert answer.status_code == 200, answer.text
    assert (answer.headers["x-imgcls-model"], answer.headers["x-imgcls-version"]) == ("imgcls", "1.0")
    assert answer.json()["version"] == "1.0"
    assert answer.headers["x-request-id"]


def test_grpc_is_answered_by_the_default_version_and_management_is_not_there(live: Live, image: bytes) -> None:
    with grpc.insecure_channel(live.state.url.removeprefix("http://")) as channel:
        predict = channel.unary_unary(PREDICTIONS, request_serializer=bytes, response_deserializer=bytes)
        answer = predict(text_field(1, b"imgcls") + text_field(3, text_field(1, b"data") + text_field(2, image)))
        assert b'"version": "1.0"' in answer
        unregister = channel.unary_unary(UNREGISTER, request_serializer=bytes, response_deserializer=bytes)
        with pytest.raises(grpc.RpcError) as refused:
            unregister(text_field(1, b"imgcls"))
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert list(live.member.versions("imgcls")) == ["1.0"]


@pytest.mark.parametrize(
    "path", ["/models", "/models/imgcls", "/api-description", "/metrics", "/token", "/", "/imgcls/predict"]
)
def test_what_is_not_inference_is_not_reachable(live: Live, http: requests.Session, path: str) -> None:
    for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS"):
        assert http.request(method, live.state.url + path).status_code in (404, 405)


def test_an_archive_from_elsewhere_is_not_registered_even_by_who_holds_the_management_token(live: Live) -> None:
    with serving_elsewhere() as (url, asked), live.member.management() as management:
        for source in (url, "file:///etc/passwd", "../../../../etc/passwd", "/etc/passwd"):
            with pytest.raises(ManagementError):
                management.register(source)
        assert not asked
        assert management.list_models() == ["imgcls"]
    assert list(live.member.versions("imgcls")) == ["1.0"]


def test_ready_and_live_say_so_and_why_not(live: Live, http: requests.Session) -> None:
    assert http.get(f"{live.state.url}/healthz/live").status_code == 200
    status, body = live.ready()
    assert (status, body["ready"], body["reasons"]) == (200, True, [])
    assert body["versions"] == [{"model": "imgcls", "version": "1.0", "weight": 100.0, "ready_workers": 1}]


def test_a_version_without_workers_is_not_ready_and_status_says_why(live: Live) -> None:
    with live.member.management() as management:
        management.scale("imgcls", 0, version="1.0")  # by hand, past the table
    deadline_s = time.monotonic() + 10
    while live.ready()[0] == 200:
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    status = live.imgcls("status")
    assert status.returncode == 1
    assert "imgcls 1.0: 0 of at least 1 workers READY" in status.stdout
    live.wait_until_ready()  # the supervisor mends what differs from the table


def test_a_deadline_is_kept_by_the_gateway_and_told_to_the_worker(
    live: Live, http: requests.Session, image: bytes
) -> None:
    answer = http.post(live.url, data=image, headers=OCTETS | {"X-Timeout-Ms": "1"})
    assert answer.status_code == 504
    told = answer.json()  # by the gateway's timer or by the worker that was told of the deadline, whoever was first
    assert told.get("code") == 504 or told["error"]["code"] == "deadline_exceeded"
    late = OCTETS | {"x-imgcls-deadline-ms": "1"}  # a client's own word does not count
    assert http.post(live.url, data=image, headers=late).status_code == 200


def test_the_access_log_and_the_workers_log_know_a_failed_request_by_the_same_id(
    live: Live, http: requests.Session
) -> None:
    with live.member.client("imgcls", "1.0") as client:
        token = client._session.auth._token
    late = OCTETS | {"x-imgcls-deadline-ms": "1", "x-request-id": "by-hand-1", "Authorization": f"Bearer {token}"}
    answer = http.post(f"{live.member.running().inference_url}/predictions/imgcls", data=b"x", headers=late)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
    wait_for_line(live.member.folder.model_log, "request by-hand-1: answered with 504")
    bad = http.post(live.url, data=b"no image", headers=OCTETS)
    assert bad.status_code == 415
    wait_for_line(live.folder.envoy / "access.log", bad.headers["x-request-id"])


def test_status_as_json_tells_all(live: Live) -> None:
    fields = json.loads(live.imgcls("status", "--json").stdout)
    assert fields["ready"] and fields["envoy"] and fields["servers"][0]["up"]
    assert fields["models"][0]["versions"][0]["version"] == "1.0"


def test_a_table_that_somebody_broke_by_hand_ends_nothing(live: Live, http: requests.Session, image: bytes) -> None:
    before = live.folder.table.path.read_bytes()
    pid = live.member.running().pid
    try:
        live.folder.table.path.write_text('{"models": [')
        time.sleep(4)  # several looks of supervisor and keeper
        assert http.post(live.url, data=image, headers=OCTETS).status_code == 200
        assert live.ready()[0] == 200
    finally:
        live.folder.table.path.write_bytes(before)
    assert live.member.running().pid == pid
    assert "the table of before holds" in live.log()


def test_a_second_gateway_in_the_same_folder_is_refused(live: Live, mar: Path) -> None:
    second = run_imgcls("serve", mar, "--gateway", "--gateway-port", 0, "--port", 0, "--state", live.folder.state)
    assert second.returncode == 1
    assert "a gateway runs here already" in second.stderr
    assert live.ready()[0] == 200


def test_what_is_in_flight_is_answered_before_the_end(mar: Path, tmp_path: Path, image: bytes) -> None:
    with live_gateway(mar, tmp_path / "state") as live:
        statuses: list[int] = []
        stop = threading.Event()

        def ask() -> None:
            with requests.Session() as session:
                session.trust_env = False
                while not stop.is_set():
                    try:
                        statuses.append(session.post(live.url, data=image, headers=OCTETS, timeout=10).status_code)
                    except requests.ConnectionError:
                        if not stop.is_set():
                            statuses.append(0)
                        return  # closed between two requests: the gateway has gone

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(1)
        stopped = live.imgcls("stop")
        stop.set()
        for thread in threads:
            thread.join()
    assert stopped.returncode == 0
    assert set(statuses) <= {200, 0} and statuses.count(0) <= len(threads)
    assert len(statuses) > 20
    assert not live.folder.supervisor_file.exists()


@contextmanager
def serving_elsewhere() -> Iterator[tuple[str, list[str]]]:
    """A web server with an archive on offer: its URL, and what it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(404)
            self.end_headers()

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/evil.mar", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def text_field(number: int, value: bytes) -> bytes:
    """Returns a field of a protobuf message; the messages are too small to need generated code."""
    size, length = len(value), b""
    while size > 127:
        length += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + value


def wait_for_line(log: Path, text: str) -> None:
    deadline_s = time.monotonic() + 10
    while text not in log.read_text():
        assert time.monotonic() < deadline_s, f"{text} is not in {log}"
        time.sleep(0.1)
