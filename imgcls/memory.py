"""How much memory there is: the machine's, or its container's where that has a limit (cgroup v2)."""

from contextlib import suppress
from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")  # of a container, where its limits stand


def count_memory_bytes() -> int:
    """Returns all the memory that processes here may have together."""
    total: int = psutil.virtual_memory().total
    return min(total, limit) if (limit := _read_limit()) is not None else total


def measure_free_bytes() -> int:
    """Returns the memory that is not taken; files that a container keeps in memory make way, so they count as free."""
    free: int = psutil.virtual_memory().available
    limit = _read_limit()
    if limit is None:
        return free
    with suppress(OSError, ValueError):
        rows = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        used = int((CGROUP / "memory.current").read_text()) - int(rows.get("inactive_file", 0))
        return min(free, max(0, limit - used))
    return min(free, limit)


def _read_limit() -> int | None:
    with suppress(OSError, ValueError):  # no container, no limit ("max"), or cgroups of version 1
        return int((CGROUP / "memory.max").read_text())
    return None
