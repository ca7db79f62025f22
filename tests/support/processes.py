"""The end of a process that is nobody's child any more."""

import time

import psutil


def wait_for_end(pid: int, *, timeout_s: float) -> None:
    """Waits until a process has ended; as a zombie it has, which a container without init never reaps."""
    deadline = time.monotonic() + timeout_s
    while _runs(pid):
        assert time.monotonic() < deadline, f"process {pid} runs on"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
