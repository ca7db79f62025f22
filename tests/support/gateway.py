"""A real gateway with a real TorchServe and a real Envoy, run as a user would, and looked at from outside."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import requests
from PIL import Image

from imgcls.gateway.folder import GatewayFolder, SupervisorState
from imgcls.gateway.gateway import Gateway
from imgcls.gateway.member import Member

PROJECT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Live:
    """A gateway that runs."""

    folder: GatewayFolder
    state: SupervisorState
    gateway: Gateway

    @property
    def url(self) -> str:
        return f"{self.state.url}/predictions/imgcls"

    @property
    def member(self) -> Member:
        return self.gateway.members[0]

    def imgcls(self, *arguments: object, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
        return run_imgcls(*arguments, "--state", self.folder.state, timeout_s=timeout_s)

    def rollout(self, *arguments: object) -> tuple[int, dict[str, Any]]:
        """Runs `imgcls rollout … --json`; returns the exit status and the rollout's state."""
        result = self.imgcls("rollout", *arguments, "--json")
        assert result.returncode in (0, 1), result.stderr
        return result.returncode, json.loads(result.stdout)

    def audit(self, rollout: str) -> list[dict[str, Any]]:
        lines = (self.folder.rollout / "audit.jsonl").read_text().splitlines()
        return [entry for line in lines if (entry := json.loads(line))["rollout"] == rollout]

    def worker_pids(self, version: str) -> list[int]:
        return [worker.pid for worker in self.member.versions("imgcls")[version].workers if worker.pid > 0]

    def envoy_pid(self) -> int:
        return next(
            process.pid
            for process in psutil.Process(self.state.pid).children()
            if process.name().startswith("envoy") or "envoy" in process.cmdline()[0]
        )

    def ready(self) -> tuple[int, dict[str, Any]]:
        """Asks /healthz/ready at the public port."""
        with requests.Session() as session:
            session.trust_env = False
            answer = session.get(f"{self.state.url}/healthz/ready", timeout=5)
            return answer.status_code, answer.json()

    def wait_until_ready(self, *, timeout_s: float = 90) -> float:
        """Returns how long it took."""
        began_s = time.monotonic()
        while True:
            try:
                if self.ready()[0] == 200:
                    return time.monotonic() - began_s
            except requests.RequestException:
                pass
            assert time.monotonic() - began_s < timeout_s, self.log()
            time.sleep(0.1)

    def log(self) -> str:
        return self.folder.supervisor_log.read_text()[-6000:]


def run_imgcls(*arguments: object, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "imgcls.cli.main", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=dict(os.environ),
        cwd=PROJECT,
        check=False,
    )


@contextmanager
def live_gateway(archive: Path, state: Path, *, workers: int = 1, options: Sequence[object] = ()) -> Iterator[Live]:
    """Serves an archive behind a gateway on free ports, and stops it all."""
    folder = GatewayFolder(state)
    command = ["serve", archive, "--gateway", "--gateway-port", 0, "--port", 0, "--workers", workers]
    result = run_imgcls(*command, "--state", state, *options)
    try:
        log = folder.supervisor_log.read_text() if folder.supervisor_log.exists() else ""
        assert result.returncode == 0, f"{result.stderr}\n{log}"
        found = folder.read_running()
        yield Live(folder, found, Gateway.of(folder, found))
    finally:
        run_imgcls("stop", "--state", state)


def write_image(path: Path) -> Path:
    Image.effect_noise((8, 8), 60).save(path)
    return path
