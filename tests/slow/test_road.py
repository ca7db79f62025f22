"""The whole road, as `make demo` walks it, and what is left of a test run that was killed."""

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from imgcls.serving.processes import find_marked

ROOT = Path(__file__).parents[2]
MARKER = "IMGCLS_SLOW_TEST"


@pytest.fixture
def marked() -> dict[str, str]:
    """An environment by which every process started with it can be found."""
    return {**os.environ, MARKER: uuid.uuid4().hex}


def test_demo_trains_evaluates_packs_serves_and_answers(tmp_path: Path, marked: dict[str, str]) -> None:
    folders = {"BIN": str(Path(sys.executable).parent)}
    folders |= {name: str(tmp_path / name.lower()) for name in ("RUN", "STATE", "STORE")}
    demo = subprocess.run(
        [ROOT / "recipes" / "demo.sh"], env=marked | folders, capture_output=True, text=True, timeout=280, check=False
    )
    assert demo.returncode == 0, demo.stderr
    clean = re.search(r"clean\D+\d+\D+([\d.]+)%", demo.stdout)
    assert clean is not None, demo.stdout
    assert float(clean[1]) >= 97
    assert {"noisy", "rotated"} <= set(re.findall(r"\w+", demo.stdout))
    answers = re.findall(r"golden/(\d)\.png: (\d) ", demo.stdout)
    assert len(answers) == 4
    assert not find_marked(marked[MARKER], marker=MARKER)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_killed_test_run_leaves_no_server(number: signal.Signals, tmp_path: Path, marked: dict[str, str]) -> None:
    tests = ["tests/server/test_running_server.py", f"--basetemp={tmp_path / 'inner'}"]
    command = [sys.executable, "-m", "pytest", *tests]
    with subprocess.Popen(command, cwd=ROOT, env=marked, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        wait_until(lambda: any("java" in p.name() for p in find_marked(marked[MARKER], marker=MARKER)), timeout_s=90)
        run.send_signal(number)
        run.wait(60)
    wait_until(lambda: not find_marked(marked[MARKER], marker=MARKER), timeout_s=60)


def wait_until(condition, *, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)
