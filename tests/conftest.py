"""What holds for all tests: the folder of a test decides its marker, and a run that make started ends with make."""

import ctypes
import os
import signal
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent
PR_SET_PDEATHSIG = 1


def pytest_configure() -> None:
    if "MAKELEVEL" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(ROOT).parts[0]
        if folder in {"server", "slow"}:
            item.add_marker(folder)
