"""The one Envoy of a gateway as a process: started with checked files, started again when it ends, drained, ended."""

import json
import logging
import os
import subprocess
import time

from imgcls.files import write_atomic
from imgcls.gateway import envoy
from imgcls.gateway.errors import EnvoyError, GatewayError
from imgcls.gateway.gateway import Gateway
from imgcls.gateway.keeper import FIRST_BACK_OFF_S, LONGEST_BACK_OFF_S
from imgcls.gateway.listeners import bootstrap
from imgcls.serving import processes
from imgcls.serving.errors import PreflightError
from imgcls.serving.ports import find_holder, free_port, is_free

log = logging.getLogger(__name__)

START_S = 15.0
END_S = 5.0


class EnvoyProcess:
    """Envoy before the servers of a gateway.

    Args:
        gateway: whose files it watches.
        marker: stands in its environment, so that it is found should the supervisor be killed.

    Raises:
        PreflightError: another process holds the public port.
    """

    def __init__(self, gateway: Gateway, *, marker: str) -> None:
        self._gateway = gateway
        self._marker = marker
        self._process: subprocess.Popen[bytes] | None = None
        self._back_off_s = FIRST_BACK_OFF_S
        self._started_s = 0.0
        self._port = _choose_port(gateway.settings.listen.port)

    @property
    def url(self) -> str:
        """Where this machine reaches the public port."""
        listen = self._gateway.settings.listen
        host = "127.0.0.1" if listen.host in ("0.0.0.0", "::") else listen.host
        return f"{'https' if listen.tls else 'http'}://{f'[{host}]' if ':' in host else host}:{self._port}"

    @property
    def has_ended(self) -> bool:
        """Whether it does not run."""
        return self._process is None or self._process.poll() is not None

    def start(self) -> None:
        """Writes its bootstrap, has it checked, and starts; routes and clusters have been written before.

        Raises:
            EnvoyError: it is not installed, refuses its configuration, or does not answer.
        """
        paths, settings = self._gateway.paths, self._gateway.settings
        write_atomic(paths.bootstrap, json.dumps(bootstrap(settings, paths, port=self._port), indent=1))
        binary = envoy.find_envoy()
        envoy.validate(binary, paths.bootstrap)
        self._command = envoy.command(binary, paths.bootstrap, drain_s=settings.drain_timeout_s)
        self._launch()

    def keep(self) -> None:
        """Starts it again if it has ended."""
        if not self.has_ended:
            if time.monotonic() - self._started_s > LONGEST_BACK_OFF_S:
                self._back_off_s = FIRST_BACK_OFF_S
            return
        log.warning("Envoy has ended with status %s; starting it again", self._process and self._process.returncode)
        try:
            self._launch()
        except (EnvoyError, OSError) as err:  # OSError: no memory or process to be had, or a disk that is read-only
            log.error("%s; trying again in %.1f s", err, self._back_off_s)
            time.sleep(self._back_off_s)
            self._back_off_s = min(LONGEST_BACK_OFF_S, 2 * self._back_off_s)

    def drain(self) -> None:
        """Takes no new connections, and waits until what is in flight is answered, as long as the settings say."""
        admin = self._gateway.admin
        try:
            admin.drain()
            envoy.wait_for(
                lambda: not sum(admin.stats(r"^http\.public\.downstream_rq_active$").values()),
                timeout_s=self._gateway.settings.drain_timeout_s,
                what="what is in flight is answered",
            )
        except GatewayError as err:
            log.warning("%s", err)

    def end(self) -> None:
        """Ends it."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _launch(self) -> None:
        paths = self._gateway.paths
        paths.admin_socket.unlink(missing_ok=True)
        self._started_s = time.monotonic()
        self._process = processes.launch(
            self._command,
            server_id=self._marker,
            folder=paths.folder,
            log=paths.console_log,
            environment=dict(os.environ),
            dies_with_parent=True,
        )
        envoy.wait_for(lambda: self._gateway.admin.is_live() or self.has_ended, timeout_s=START_S, what="Envoy starts")
        if self.has_ended:
            raise EnvoyError(f"Envoy has ended at once; see {paths.console_log}")


def _choose_port(port: int) -> int:
    if port == 0:
        return free_port()
    if not is_free(port):
        raise PreflightError(
            f"listen.port is {port}, which {find_holder(port)} holds; name another with --gateway-port"
        )
    return port
