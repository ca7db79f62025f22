"""What a gateway says about a request: by which id its logs know it, and until when somebody waits for the answer."""

import re
import time

from handler.errors import DeadlineExceededError
from handler.options import Headers, find_header

REQUEST_ID_HEADER = "x-request-id"
DEADLINE_HEADER = "x-imgcls-deadline-ms"  # since the epoch; both run on one machine, or on clocks that agree
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")  # nothing that could begin a line of its own in a log


def find_request_id(headers: Headers) -> str | None:
    """Returns the id of a request, None where it has none that can stand in a log."""
    text = find_header(headers, REQUEST_ID_HEADER) or ""
    return text if _REQUEST_ID.fullmatch(text) else None


def refuse_late(headers: Headers, *, now_s: float | None = None) -> None:
    """Refuses a request that nobody waits for any more, before anything is done for it.

    Raises:
        DeadlineExceededError: its deadline has passed while it waited for a worker.
    """
    text = find_header(headers, DEADLINE_HEADER) or ""
    if not (text.isascii() and text.isdigit()):
        return
    late_ms = (time.time() if now_s is None else now_s) * 1000 - int(text[:15])
    if late_ms > 0:
        raise DeadlineExceededError(f"the request waited until {late_ms:.0f} ms after its deadline")
