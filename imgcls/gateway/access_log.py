"""Envoy's access logs: one JSON object a request, and one a copy. Kept small here, and read by rollouts."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgcls.gateway.envoy import Admin
from imgcls.gateway.listeners import EnvoyPaths

LARGEST_BYTES = 64 << 20
KEPT = 4  # older ones of each log


@dataclass(frozen=True)
class Record:
    """One request as the gateway saw it."""

    time_s: float  # since the epoch, when its first byte came
    request_id: str
    client: str | None
    model: str | None  # None: no version was asked
    version: str | None
    status: int  # 0: the client went away
    flags: str  # Envoy's, such as UO for overload or RL for a rate limit; - for none
    duration_ms: float
    answer: str | None


def rotate(paths: EnvoyPaths, admin: Admin, *, largest_bytes: int = LARGEST_BYTES) -> None:
    """Moves a log that has grown large away, and has Envoy begin a new one.

    Raises:
        EnvoyError: Envoy does not open its logs anew; it goes on writing to the moved file.
    """
    moved = False
    for log in (paths.access_log, paths.shadow_log):
        if log.exists() and log.stat().st_size > largest_bytes:
            for number in range(KEPT - 1, 0, -1):
                older = _numbered(log, number)
                if older.exists():
                    older.replace(_numbered(log, number + 1))
            log.replace(_numbered(log, 1))
            moved = True
    if moved and admin.is_live():
        admin.reopen_logs()


class LogTail:
    """Reads what is added to a log, across its rotation.

    Args:
        path: of the log, which need not be there yet.
        from_start: read what is there already too.
    """

    def __init__(self, path: Path, *, from_start: bool = False) -> None:
        self._path = path
        self._inode: int | None = None
        self._offset = 0
        self._rest = b""
        if not from_start and path.exists():
            status = path.stat()
            self._inode, self._offset = status.st_ino, status.st_size

    def read(self) -> Iterator[Record]:
        """Yields the records that have come since."""
        for path in self._files():
            with path.open("rb") as file:
                file.seek(self._offset)
                data = self._rest + file.read()
                self._offset = file.tell()
            *lines, self._rest = data.split(b"\n")
            for line in lines:
                if (record := parse_record(line)) is not None:
                    yield record

    def _files(self) -> Iterator[Path]:
        """Yields the file that was read last, where it has been moved, then the one that is written now."""
        try:
            now = self._path.stat().st_ino
        except FileNotFoundError:
            return
        if self._inode is not None and now != self._inode:
            moved = _numbered(self._path, 1)
            if moved.exists() and moved.stat().st_ino == self._inode:
                yield moved
            self._offset, self._rest = 0, b""
        self._inode = now
        yield self._path


def parse_record(line: bytes) -> Record | None:
    """Returns a line's record, None for one that is broken, as a crash may leave it."""
    try:
        fields: dict[str, Any] = json.loads(line)
        model, _, version = (fields.get("cluster") or "").partition("@")
        return Record(
            time_s=float(fields["time"]),
            request_id=str(fields.get("request_id") or ""),
            client=fields.get("client"),
            model=model if version else None,
            version=version or None,
            status=int(fields["status"]),
            flags=str(fields.get("flags") or "-"),
            duration_ms=float(fields["duration_ms"]),
            answer=fields.get("answer"),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _numbered(log: Path, number: int) -> Path:
    return log.with_name(f"{log.name}.{number}")
