"""The five ports of one server: choosing them, and who holds one that is not free."""

import socket

from pydantic import BaseModel, ConfigDict

from imgcls.serving.errors import ConfigError

LOOPBACK = "127.0.0.1"
HIGHEST_PORT = 65535


class Ports(BaseModel):
    """Where TorchServe listens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    inference: int
    management: int
    metrics: int
    grpc_inference: int
    grpc_management: int


def ports_from(first: int) -> Ports:
    """Returns the five ports from `first` on, in the order of Ports; five free ones when `first` is 0.

    Raises:
        ConfigError: the ports would end above 65535.
    """
    if first == 0:
        return Ports(**dict(zip(Ports.model_fields, _find_free(len(Ports.model_fields)), strict=True)))
    if not 0 < first <= HIGHEST_PORT - len(Ports.model_fields) + 1:
        raise ConfigError(f"--port is {first}; expected 0 for free ports, or 1 to 65531, as five in a row are used")
    return Ports(**{name: first + offset for offset, name in enumerate(Ports.model_fields)})


def free_port() -> int:
    """Returns a port that nobody listens on now."""
    return _find_free(1)[0]


def is_free(port: int) -> bool:
    """Tells whether a server could listen on this port of the loopback now."""
    with socket.socket() as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # as TorchServe: connections in TIME_WAIT do not matter
        try:
            probe.bind((LOOPBACK, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def find_holder(port: int) -> str:
    """Returns who listens on a port, such as `pid 42 (java)`; "another process" where that may not be seen."""
    import psutil  # not in the light install, which lints settings

    try:
        connections = psutil.net_connections(kind="tcp")
    except (psutil.Error, OSError):
        return "another process"
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,) and connection.pid:
            try:
                return f"pid {connection.pid} ({psutil.Process(connection.pid).name()})"
            except psutil.Error:
                break
    return "another process"


def _find_free(count: int) -> list[int]:
    # All are held until the last is found, so that no port is given twice. Another process may still take one before
    # TorchServe does; then it fails to start and says so.
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind((LOOPBACK, 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
