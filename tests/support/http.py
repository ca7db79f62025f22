"""A web server for tests whose clients may leave before they are answered."""

import sys
from http.server import ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Says nothing about clients that are gone: its words would land in the output that a later test reads."""

    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Prints what went wrong, but for a broken connection."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]
