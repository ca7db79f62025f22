"""Honest readiness: whether every version that gets requests can answer them, and if not, why.

The supervisor looks at the servers, judges, and puts the judgement on a board; a tiny HTTP server on a Unix socket
shows the board to Envoy, which shows it at /healthz/ready. Where the supervisor is gone, so is its socket, and Envoy
says 503.
"""

import json
import socketserver
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Literal

from imgcls.gateway.table import Table


@dataclass(frozen=True)
class Golden:
    """What became of a version's golden inputs on one server."""

    outcome: Literal["right", "wrong", "unanswered"]
    at_s: float  # time.monotonic() of the last right answers, or of the first look
    reason: str = ""


@dataclass(frozen=True)
class Seen:
    """What one server said about one version."""

    server: str
    model: str
    version: str
    ready_workers: int
    wanted_workers: int
    problem: str = ""  # why it has none, as far as its log tells
    golden: Golden | None = None  # None: not asked yet


@dataclass(frozen=True)
class Judgement:
    """Whether the gateway is ready."""

    is_ready: bool
    reasons: tuple[str, ...] = ()
    versions: tuple[dict[str, Any], ...] = ()

    def as_json(self) -> bytes:
        """Returns the body of /healthz/ready."""
        fields = {"ready": self.is_ready, "reasons": self.reasons, "versions": self.versions}
        return (json.dumps(fields, indent=1) + "\n").encode()


def judge(
    table: Table,
    seen: Sequence[Seen],
    *,
    down: Mapping[str, str],
    now_s: float,
    golden_max_age_s: float,
    is_draining: bool = False,
) -> Judgement:
    """Decides whether every version with a share of the requests can answer.

    Args:
        table: which versions shall.
        seen: what the servers that answer say.
        down: why a server does not answer, by its name.
        now_s: time.monotonic().
        golden_max_age_s: how old the last right golden answers may be.
        is_draining: it is being stopped.
    """
    reasons = ["it is being stopped"] if is_draining else []
    if not table.models:
        reasons.append("no model is served")
    rows = []
    for model in table.models:
        for row in model.versions:
            found = [each for each in seen if (each.model, each.version) == (model.name, row.version)]
            ready = sum(each.ready_workers for each in found)
            rows.append({"model": model.name, "version": row.version, "weight": row.weight, "ready_workers": ready})
            if row.weight <= 0:
                continue
            name = f"{model.name} {row.version}"
            if ready < row.min_ready:
                why = "; ".join([*(each.problem for each in found if each.problem), *_tell(down)])
                reasons.append(f"{name}: {ready} of at least {row.min_ready} workers READY{f': {why}' if why else ''}")
            reasons += [
                f"{name} on {each.server}: {problem}"
                for each in found
                if each.ready_workers and (problem := _golden_problem(each.golden, now_s, golden_max_age_s))
            ]
    return Judgement(not reasons, tuple(reasons), tuple(rows))


def _golden_problem(golden: Golden | None, now_s: float, max_age_s: float) -> str:
    if golden is None:  # READY a moment ago, after its own self-test; the keeper asks at its next look
        return ""
    if golden.outcome == "wrong":
        return golden.reason
    if now_s - golden.at_s > max_age_s:
        return f"no right golden answer for {now_s - golden.at_s:.0f} s: {golden.reason}"
    return ""


def _tell(down: Mapping[str, str]) -> list[str]:
    return [f"server {name}: {reason}" for name, reason in down.items()]


@dataclass
class Board:
    """The last judgement, for everyone to read."""

    judgement: Judgement = field(default_factory=lambda: Judgement(False, ("it is starting",)))


class BoardServer:
    """Shows a board at a Unix socket, until it is closed."""

    def __init__(self, path: Path, board: Board) -> None:
        path.unlink(missing_ok=True)
        self._server = _Server(str(path), _handler_of(board))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="readiness", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """Keeps quiet about a prober that did not wait for the answer."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def _handler_of(board: Board) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 10

        def do_GET(self) -> None:
            judgement = board.judgement
            body = judgement.as_json()
            self.send_response(200 if judgement.is_ready else 503)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body if self.command != "HEAD" else b"")

        do_HEAD = do_GET  # noqa: N815 - the name that http.server looks up

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing: a probe comes every second."""

        def address_string(self) -> str:
            return "gateway"  # a Unix socket's client has no address

    return Handler
