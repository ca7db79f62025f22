"""What a hostile client tries at a real Envoy, with a good key in its hand; the upstream tells what got through."""

import json
import socket
import time

import pytest

from imgcls.gateway.keys import create_key
from imgcls.gateway.settings import Access, Limits, Settings

MOST_BYTES = 4096
TIMEOUT_S = 0.5
SLACK_S = 2.0
OFFERED = "/predictions/flowers/1.0"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("keys") / "keys.yaml"


@pytest.fixture(scope="module")
def key(file):
    return create_key(file, "acme")[0]


@pytest.fixture(scope="module")
def settings(file):
    limits = Limits(max_body_bytes=MOST_BYTES, header_timeout_s=TIMEOUT_S, body_timeout_s=TIMEOUT_S)
    return Settings(access=Access(keys=file), limits=limits)


@pytest.fixture(scope="module")
def started(running, settings, key):
    with running(settings) as gateway:
        yield gateway


@pytest.fixture
def gateway(started):
    started.seen.clear()
    started.upstream.status = 200
    return started


def request(key, line="POST /predictions/flowers HTTP/1.1", *headers, body=""):
    lines = [line, "Host: gateway", "Connection: close", f"X-API-Key: {key}", *headers]
    return "\r\n".join(lines) + "\r\n\r\n" + body


def status_of(answer):
    """Returns the status of a raw answer, 0 where the connection was closed without one."""
    return int(answer.split(b" ", 2)[1]) if answer else 0


# Bodies


def test_a_body_of_the_greatest_size_passes_whole(gateway, key):
    body = bytes(range(256)) * (MOST_BYTES // 256)
    assert gateway.ask(key=key, body=body).status == 200
    assert gateway.seen[0].body == body


def test_a_body_that_says_it_is_too_long_is_refused(gateway, key):
    answer = gateway.send(
        request(key, "POST /predictions/flowers HTTP/1.1", f"Content-Length: {MOST_BYTES + 1}") + "x" * 5000
    )
    assert status_of(answer) == 413
    assert b'"code":413' in answer
    assert not gateway.seen


def test_a_body_of_unsaid_length_is_refused_once_it_is_too_long(gateway, key):
    chunk = f"{1000:x}\r\n{'x' * 1000}\r\n"
    answer = gateway.send(
        request(key, "POST /predictions/flowers HTTP/1.1", "Transfer-Encoding: chunked", body=chunk * 5 + "0\r\n\r\n")
    )
    assert status_of(answer) == 413
    assert not gateway.seen


def test_a_chunked_body_that_is_short_enough_passes(gateway, key):
    body = "3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n"
    answer = gateway.send(request(key, "POST /predictions/flowers HTTP/1.1", "Transfer-Encoding: chunked", body=body))
    assert status_of(answer) == 200
    assert gateway.seen[0].body == b"abcdefg"


def test_a_body_without_a_key_is_not_read(gateway):
    start_s = time.monotonic()
    answer = gateway.send("POST /predictions/flowers HTTP/1.1\r\nHost: x\r\nContent-Length: 4000\r\n\r\n")
    assert status_of(answer) == 401
    assert time.monotonic() - start_s < TIMEOUT_S + SLACK_S


# Slow and many


@pytest.mark.parametrize("is_dripping", [True, False])
@pytest.mark.parametrize("where", ["headers", "body"])
def test_a_slow_client_is_cut_off_and_no_worker_waits_for_it(gateway, key, where, is_dripping):
    sent = request(key, "POST /predictions/flowers HTTP/1.1", "Content-Length: 1000")
    if where == "headers":
        sent = sent[:-2] + "X-Slow: "  # the empty line that ends them does not come
    start_s = time.monotonic()
    with gateway.connect() as connection:
        connection.sendall(sent.encode())
        connection.settimeout(0.05 if is_dripping else 60)
        answer = None
        while answer is None:
            try:
                answer = connection.recv(65536)
            except TimeoutError:
                connection.sendall(b"x")
            except ConnectionResetError:
                answer = b""
    assert TIMEOUT_S / 2 < time.monotonic() - start_s < TIMEOUT_S + SLACK_S
    assert status_of(answer) in (0, 408)
    assert not gateway.seen


def test_slow_clients_do_not_hold_up_others(gateway, key):
    slow = [gateway.connect() for _ in range(50)]
    try:
        for connection in slow:
            connection.sendall(b"POST /predictions/flowers HTTP/1.1\r\nHost: x\r\n")
        start_s = time.monotonic()
        assert gateway.ask(key=key).status == 200
        assert time.monotonic() - start_s < TIMEOUT_S
    finally:
        for connection in slow:
            connection.close()


def test_more_connections_than_allowed_are_closed_at_once(running):
    with running(Settings(limits=Limits(max_connections=5))) as gateway:
        opened = [gateway.connect() for _ in range(5)]
        for connection in opened:
            connection.sendall(b"GET /healthz/live HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        assert gateway.send(b"GET /healthz/live HTTP/1.1\r\nHost: x\r\n\r\n") == b""
        opened.pop().close()
        deadline_s = time.monotonic() + 5
        while not (answer := gateway.send(b"GET /healthz/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")):
            assert time.monotonic() < deadline_s
        assert answer.startswith(b"HTTP/1.1 200")
        for connection in opened:
            connection.close()


# Paths


@pytest.mark.parametrize(
    "path",
    [
        "/models",
        "/models/",
        "/models/flowers",
        "/models?url=http://elsewhere.example/evil.mar",
        "/workflows",
        "/api-description",
        "/metrics",
        "/admin",
        "/config_dump",
        "/ready",
        "/predictions/../models",
        "/predictions/flowers/../../models",
        "/predictions/flowers/1.0/../../../models",
        "/./models",
        "/predictions/%2e%2e/models",
        "/predictions/%2E%2E/models",
        "/predictions/.%2e/models",
        "/predictions/%252e%252e/models",
        "/predictions/flowers%2f..%2f..%2fmodels",
        "/predictions/flowers%2F1.0",
        "/predictions%5c..%5cmodels",
        "/predictions\\..\\models",
        "\\models",
        "//models",
        "///models",
        "/predictions//../models",
        "/predictions/flowers;/../../models",
        "/predictions/flowers/2.0",
        "/predictions/flowers/1.0/metadata",
        "/predictions/flowers%00",
        "/predictions/flowers%20",
        "/Predictions/flowers",
        "/healthz/ready/../../models",
        "/healthz/live/../../models",
        "http://127.0.0.1:8081/models",
        "http://gateway//models",
        "http://gateway/predictions/../models",
        "*",
        "models",
        "@gateway/models",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
def test_a_path_that_is_not_offered_reaches_nobody(gateway, key, method, path):
    answer = gateway.send(request(key, f"{method} {path} HTTP/1.1", "Content-Length: 0"))
    assert status_of(answer) in (400, 404)
    assert not gateway.seen


@pytest.mark.parametrize(
    "path",
    [
        "/predictions/flowers",
        "//predictions///flowers",
        "/predictions/./flowers",
        "/nowhere/../predictions/flowers",
        "/predictions/flowers/1.0",
        "http://elsewhere.example/predictions/flowers",
    ],
)
def test_a_path_in_another_form_is_the_same_path_and_needs_the_same_key(gateway, key, path):
    line = f"POST {path} HTTP/1.1"
    assert status_of(gateway.send(request("imk_wrong", line, "Content-Length: 0"))) == 401
    assert status_of(gateway.send(request(key, line, "Content-Length: 0"))) == 200
    assert [seen.path for seen in gateway.seen] == [OFFERED]


def test_a_query_goes_along_and_is_no_path(gateway, key):
    assert gateway.ask("/predictions/flowers?a=/../../models&b=%2e%2e", key=key).status == 200
    assert gateway.seen[0].path == f"{OFFERED}?a=/../../models&b=%2e%2e"


# Methods and protocols


@pytest.mark.parametrize("method", ["TRACE", "DELETE", "PATCH", "PROPFIND", "BREW"])
def test_methods_that_nobody_needs_are_refused(gateway, key, method):
    answer = gateway.send(request(key, f"{method} /predictions/flowers HTTP/1.1"))
    assert status_of(answer) in (400, 405)
    assert not gateway.seen


@pytest.mark.parametrize(
    "line",
    [
        "CONNECT 127.0.0.1:8081 HTTP/1.1",
        "CONNECT /predictions/flowers HTTP/1.1",
        "POST /predictions/flowers HTTP/1.0",
        "POST /predictions/flowers HTTP/0.9",
        "POST /predictions/flowers",
    ],
)
def test_tunnels_and_old_protocols_are_refused(gateway, key, line):
    assert 400 <= status_of(gateway.send(request(key, line))) < 500
    assert not gateway.seen


@pytest.mark.parametrize("protocol", ["websocket", "connect-udp"])
def test_an_upgrade_is_refused(gateway, key, protocol):
    sent = request(key, "GET /predictions/flowers HTTP/1.1", f"Upgrade: {protocol}")
    assert status_of(gateway.send(sent.replace("Connection: close", "Connection: upgrade"))) in (400, 403, 404)
    assert not gateway.seen


# Smuggling


@pytest.mark.parametrize(
    "headers",
    [
        ["Transfer-Encoding: chunked", "Content-Length: 5"],
        ["Content-Length: 5", "Transfer-Encoding: chunked"],
        ["Content-Length: 5", "Content-Length: 6"],
        ["Content-Length: +5"],
        ["Content-Length: 5, 5"],
        ["Content-Length: 0x5"],
        ["Content-Length: -1"],
        ["Transfer-Encoding: xchunked"],
        ["Transfer-Encoding: chunked, identity"],
        ["Transfer-Encoding: identity, chunked"],
        ["Transfer-Encoding : chunked"],
        ["Transfer-Encoding:\x0bchunked"],
        ["X-A: \x00"],
        [": empty"],
    ],
)
def test_a_request_of_two_lengths_is_refused_and_what_hides_in_it_too(gateway, key, headers):
    hidden = request(key, "GET /predictions/birds HTTP/1.1")
    sent = request(key, "POST /predictions/flowers HTTP/1.1", *headers, body=f"0\r\n\r\n{hidden}")
    answer = gateway.send(sent.replace("Connection: close\r\n", "", 1), listen_s=0.1)
    assert status_of(answer) in (400, 501)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert not gateway.seen


@pytest.mark.parametrize("line_break", ["\r\n ", "\r\n\t", "\n ", "\n", "\r"])
def test_no_line_break_in_a_header_brings_a_name_with_it(gateway, key, line_break):
    line = "POST /predictions/flowers HTTP/1.1"
    answer = gateway.send(request(key, line, f"X-A: b{line_break}X-Imgcls-Client: boss", "Content-Length: 0"))
    assert status_of(answer) in (200, 400)
    assert [seen.headers["x-imgcls-client"] for seen in gateway.seen] in ([], ["acme"])


def test_a_bad_chunk_is_refused(gateway, key):
    body = "5;x\nabcde\r\n0\r\n\r\n"
    answer = gateway.send(request(key, "POST /predictions/flowers HTTP/1.1", "Transfer-Encoding: chunked", body=body))
    assert status_of(answer) in (0, 400)
    assert not gateway.seen


@pytest.mark.parametrize("headers", [[f"X-{number}: a" for number in range(150)], ["X-Long: " + "a" * 100_000]])
def test_too_many_and_too_long_headers_are_refused(gateway, key, headers):
    answer = gateway.send(request(key, "POST /predictions/flowers HTTP/1.1", *headers, "Content-Length: 0"))
    assert status_of(answer) in (0, 431)  # 0: it was still sending when the gateway had closed
    assert not gateway.seen


# Headers that only the gateway may set


def test_a_clients_word_on_what_the_gateway_says_counts_for_nothing(gateway, key):
    spoofed = {
        "X-Imgcls-Client": "boss",
        "X-Imgcls-Deadline-Ms": "9999999999999",
        "X-Imgcls-Answer": "1",
        "X-Request-Id": "spoofed",
        "X-Forwarded-For": "198.51.100.7",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "elsewhere.example",
        "Forwarded": "for=198.51.100.7",
        "X-Real-Ip": "198.51.100.7",
        "X-Envoy-External-Address": "198.51.100.7",
        "X-Envoy-Internal": "true",
        "X-Envoy-Original-Path": "/models",
        "X-Envoy-Attempt-Count": "7",
        "X-Envoy-Force-Trace": "1",
        "X-Envoy-Anything-To-Come": "1",
        "Describe": "True",
    }
    answer = gateway.ask(key=key, headers=spoofed)
    assert answer.status == 200
    headers = gateway.seen[0].headers
    assert headers["x-imgcls-client"] == "acme"
    assert headers["x-envoy-original-path"] == "/predictions/flowers"
    assert headers["x-request-id"] == answer.headers["x-request-id"]
    text = json.dumps(headers)
    for value in ("boss", "9999999999999", "spoofed", "198.51.100.7", "elsewhere", "/models", "anything"):
        assert value not in text
    assert headers["x-forwarded-proto"] == "http"
    removed = {"x-envoy-internal", "x-envoy-attempt-count", "x-envoy-force-trace", "x-imgcls-answer", "describe"}
    assert not removed & headers.keys()


def test_the_log_has_the_real_path_and_the_real_client(gateway, key):
    gateway.ask("/predictions/birds", key=key, headers={"X-Envoy-Original-Path": "/fake", "X-Imgcls-Client": "boss"})
    deadline_s = time.monotonic() + 5
    while b'"/predictions/birds"' not in gateway.paths.access_log.read_bytes():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    text = gateway.paths.access_log.read_text()
    assert "/fake" not in text
    assert "boss" not in text


def test_health_passes_no_spoofed_name_into_the_log(running, settings):
    with running(settings) as gateway:
        gateway.ask("/healthz/live", method="GET", headers={"X-Imgcls-Client": "boss"})
        assert gateway.logged(1)[0]["client"] is None


def test_a_client_can_neither_raise_nor_lower_envoys_timeouts(gateway, key):
    for name in ("X-Envoy-Upstream-Rq-Timeout-Ms", "X-Envoy-Upstream-Rq-Per-Try-Timeout-Ms"):
        for value in ("1", "999999"):
            assert gateway.ask(key=key, headers={name: value}).status == 200
    assert {seen.headers["x-envoy-expected-rq-timeout-ms"] for seen in gateway.seen} == {"60000"}


def test_a_client_cannot_cause_retries(gateway, key):
    gateway.upstream.status = 500
    asked = {
        "X-Envoy-Retry-On": "5xx,retriable-status-codes",
        "X-Envoy-Max-Retries": "10",
        "X-Envoy-Retriable-Status-Codes": "500",
        "X-Envoy-Hedge-On-Per-Try-Timeout": "true",
    }
    assert gateway.ask(key=key, headers=asked).status == 500
    assert len(gateway.seen) == 1


def test_a_client_cannot_widen_the_retries_that_there_are(gateway, key):
    gateway.upstream.status = 507
    assert gateway.ask(key=key, headers={"X-Envoy-Max-Retries": "10"}).status == 507
    assert len(gateway.seen) == 3  # the two of the route


def test_the_servers_token_never_reaches_a_client(gateway, key):
    answer = gateway.ask(key=key)
    assert "torchserve-token" not in json.dumps(answer.headers)
    gateway.upstream.status = 401
    assert "torchserve-token" not in json.dumps(gateway.ask(key=key).headers)


# Sockets


def test_envoys_administration_is_for_its_user_only(gateway):
    assert gateway.paths.admin_socket.stat().st_mode & 0o077 == 0
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", 9901), timeout=1):
        pass
