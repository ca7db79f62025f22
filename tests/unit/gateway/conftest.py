"""A real Envoy with the generated configuration, and an upstream that remembers what reached it."""

import http.client
import json
import re
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from imgcls.files import write_atomic
from imgcls.gateway import envoy
from imgcls.gateway.apply import EnvoyFiles
from imgcls.gateway.clusters import Endpoint
from imgcls.gateway.listeners import EnvoyPaths, bootstrap
from imgcls.gateway.settings import Settings
from imgcls.gateway.table import Model, Table, Version
from tests.support.http import Server

TOKEN = "torchserve-token"
MODELS = ("flowers", "birds")
TIMEOUT_S = 10


@dataclass
class Answer:
    """What a client got."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Seen:
    """What reached the upstream."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Upstream(Server):
    """Stands where TorchServe would: answers with `status`, but for what it forgets, and remembers every request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seen: list[Seen] = []
        self.status = 200
        self.forgets = 0

    @property
    def port(self) -> int:
        return self.server_address[1]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet
    server: Upstream

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self._answer
        raise AttributeError(name)

    def _answer(self) -> None:
        if "chunked" in self.headers.get("transfer-encoding", ""):
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.seen.append(Seen(self.command, self.path, headers, body))
        if self.server.forgets > 0:
            self.server.forgets -= 1
            self.rfile.read()  # until Envoy gives up
            return
        self.send_response(self.server.status)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: Any) -> None:
        pass


@dataclass
class Gateway:
    """An Envoy that runs."""

    port: int
    settings: Settings
    paths: EnvoyPaths
    upstream: Upstream
    grpc_port: int
    files: EnvoyFiles
    table: Table
    admin: envoy.Admin
    seen: list[Seen] = field(init=False)

    def __post_init__(self) -> None:
        self.seen = self.upstream.seen

    def ask(
        self,
        path: str = "/predictions/flowers",
        *,
        method: str = "POST",
        body: bytes | None = b"picture",
        headers: dict[str, str] | None = None,
        key: str | None = None,
    ) -> Answer:
        """Sends one request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)
        try:
            given = {"X-API-Key": key} if key is not None else {}
            connection.request(method, path, body=body, headers=given | (headers or {}))
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def connect(self) -> socket.socket:
        """Returns a bare connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT_S)

    def send(self, text: str | bytes, *, listen_s: float = 0.0) -> bytes:
        """Sends bytes as they are; returns one answer, nothing where the gateway closes the connection without one.

        With `listen_s`, whatever else comes within that time of silence is returned too.
        """
        with self.connect() as connection:
            connection.sendall(text if isinstance(text, bytes) else text.encode())
            answer = read_answer(connection)
            connection.settimeout(listen_s)
            try:
                while listen_s and (piece := connection.recv(65536)):
                    answer += piece
            except (TimeoutError, ConnectionResetError):
                pass
            return answer

    def logged(self, count: int) -> list[dict[str, Any]]:
        """Waits for the access log to have so many entries."""
        envoy.wait_for(lambda: len(self._log_lines()) >= count, timeout_s=5, what="the access log is written")
        return [json.loads(line) for line in self._log_lines()]

    def _log_lines(self) -> list[str]:
        return self.paths.access_log.read_text().splitlines()

    def apply(self, settings: Settings | None = None) -> None:
        """Writes the routes again, as the supervisor does when a watched file has changed."""
        files = self.files if settings is None else EnvoyFiles(self.paths, settings)
        files.apply(self.table, [Endpoint("main", "127.0.0.1", self.upstream.port, self.grpc_port, TOKEN)])


def read_answer(connection: socket.socket) -> bytes:
    """Reads one answer; the gateway may keep the connection open after it."""
    received = b""
    try:
        while piece := connection.recv(65536):
            received += piece
            head, ended, body = received.partition(b"\r\n\r\n")
            length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
            if ended and length and len(body) >= int(length[1]):
                break
    except ConnectionResetError:
        pass
    return received


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def run_gateway(
    settings: Settings, *, grpc_port: int = 1, change: Callable[[dict], None] | None = None
) -> Iterator[Gateway]:
    """Starts Envoy before an upstream; `change` may change its bootstrap first."""
    program = envoy.find_envoy()
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="gw"))  # a short path, for its sockets
        stack.callback(shutil.rmtree, folder)
        upstream = stack.enter_context(Upstream())
        threading.Thread(target=upstream.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        stack.callback(upstream.shutdown)
        row = Version(version="1.0", archive="a.mar", tree_sha256="0", workers=1, weight=100)
        table = Table(models=tuple(Model(name=name, default="1.0", versions=(row,)) for name in MODELS))
        paths = EnvoyPaths(folder, folder)
        files = EnvoyFiles(paths, settings)
        admin = envoy.Admin(paths.admin_socket)
        gateway = Gateway(free_port(), settings, paths, upstream, grpc_port, files, table, admin)
        gateway.apply()
        config = bootstrap(settings, paths, port=gateway.port)
        if change is not None:
            change(config)
        write_atomic(paths.bootstrap, json.dumps(config))
        console = stack.enter_context(paths.console_log.open("wb"))
        command = envoy.command(program, paths.bootstrap, drain_s=1)
        process = subprocess.Popen([*command, "--concurrency", "2"], stdout=console, stderr=subprocess.STDOUT)
        stack.callback(process.wait)
        stack.callback(process.kill)
        try:
            envoy.wait_for(admin.is_live, timeout_s=20, what="Envoy is live")
            yield gateway
        finally:
            print(paths.console_log.read_text(errors="replace")[-4000:])  # shown where a test fails


Running = Callable[..., AbstractContextManager[Gateway]]


@pytest.fixture(scope="session")
def running() -> Running:
    """Starts a gateway for a with block; for a fixture of a module, as for a single test."""
    return run_gateway
