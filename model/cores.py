"""How many cores a process may use: what workers count their threads by, and tuning its candidates."""

import os
from pathlib import Path


def count_cores(*, cpu_max: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Returns the cores this process may use: its affinity, held to the container's CPU limit (cgroup v2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = cpu_max.read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroup v2, or "max": no limit
        return cores
