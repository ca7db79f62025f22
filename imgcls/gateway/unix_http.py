"""HTTP over a Unix socket, which requests has no way for."""

import http.client
import socket
from pathlib import Path

TIMEOUT_S = 5.0


class UnixConnection(http.client.HTTPConnection):
    """A connection to a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        """Opens the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(str(self._path))


def ask(path: Path, target: str, *, method: str = "GET") -> tuple[int, bytes]:
    """Sends one request without a body, and returns status and body.

    Raises:
        OSError: nobody listens, or there is no answer.
    """
    connection = UnixConnection(path)
    try:
        connection.request(method, target)
        response = connection.getresponse()
        return response.status, response.read()
    except http.client.HTTPException as err:
        raise ConnectionError(f"{path}: {err!r}") from err
    finally:
        connection.close()
