"""One real TorchServe for all tests of this folder, an archive made without training, and its log when a test fails."""

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from bench.tiny import make_tiny_run
from imgcls.archive.build import build_archive
from imgcls.archive.stage import ServingOptions
from imgcls.serving import processes
from imgcls.serving.logs import tail
from imgcls.serving.server import ServeOptions, start, stop
from imgcls.serving.state import ServerState, StateFolder

PROJECT = Path(__file__).parents[2]
CONFIG = PROJECT / "config.properties"
RUN_MARKER = "IMGCLS_TEST_RUN"  # in the environment of every process that these tests start


Cli = Callable[..., subprocess.CompletedProcess[str]]


def run_cli(arguments: Sequence[str], *, timeout_s: float = 60, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "imgcls.cli.main", *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, **variables},
        cwd=PROJECT,
        check=False,
    )


# Ends everything of a test run that has itself been killed: its standard input is a pipe that only pytest holds.
WATCHDOG = """
import sys
from imgcls.serving.processes import find_marked
sys.stdin.read()
while left := find_marked(sys.argv[1], marker=sys.argv[2]):
    for process in left:
        process.kill()
"""


@pytest.fixture(scope="session", autouse=True)
def _no_process_is_left() -> Iterator[None]:
    run_id = uuid.uuid4().hex
    watchdog = subprocess.Popen(
        [sys.executable, "-c", WATCHDOG, run_id, RUN_MARKER], stdin=subprocess.PIPE, start_new_session=True
    )
    os.environ[RUN_MARKER] = run_id
    yield
    watchdog.communicate()
    left = processes.find_marked(run_id, marker=RUN_MARKER)
    left = [process for process in left if process.pid != os.getpid()]
    names = [" ".join(process.cmdline())[:200] for process in left]
    for process in left:
        process.kill()
    assert not names, f"tests have left processes behind: {names}"


@pytest.fixture(scope="session")
def archive(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive of `run`, with one worker."""
    return build_archive(run, tmp_path_factory.mktemp("store"), options=ServingOptions(workers=1))


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny classifier of 8 x 8 images with random weights."""
    return make_tiny_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def server(archive: Path, folder: StateFolder) -> Iterator[ServerState]:
    """The shared server; `folder` is its state folder."""
    options = ServeOptions(archive=archive, config=CONFIG, state=folder.path, port=0, workers=1, dies_with_parent=True)
    try:
        yield start(options)
    finally:
        stop(folder)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> StateFolder:
    return StateFolder(tmp_path_factory.mktemp("server") / "state")


@pytest.fixture
def state_flag(server: ServerState, folder: StateFolder) -> list[str]:
    return ["--state", str(folder.path)]


@pytest.fixture(scope="session")
def ts_config() -> Path:
    return CONFIG


@pytest.fixture
def cli() -> Cli:
    return run_cli


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    report = yield
    if report.failed and isinstance(folder := getattr(item, "funcargs", {}).get("folder"), StateFolder):
        for log in (folder.model_log, folder.server_log, folder.console_log):
            report.sections.append((f"server log {log.name}", tail(log)))
    return report
