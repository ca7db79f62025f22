"""`imgcls tune` with a real TorchServe and the real k6: what it finds can be served, and nothing is left running."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from imgcls.archive.build import build_archive
from imgcls.archive.contents import read_contents
from imgcls.archive.stage import ServingOptions
from imgcls.archive.verify import verify_archive
from imgcls.serving.access import management_client
from imgcls.serving.logs import has_failure
from imgcls.serving.processes import find_marked
from imgcls.serving.server import ServeOptions, start, stop
from imgcls.serving.state import StateFolder
from model.labels import dump_labels
from model.network import build_network
from model.spec import ModelSpec, dump_spec

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "config.properties"
MARKER = "IMGCLS_SLOW_TEST"
SHORT = ("--stretch", "1s", "--budget", "1s")  # one candidate, measured once
Tune = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny.mar, with one worker, from random weights."""
    run = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    settings = {"mean": (0.5,), "std": (0.5,), "classes": ("zero", "one"), "parameters": {"widths": [4]}}
    spec = ModelSpec(size=8, resize=8, channels=1, **settings)
    (run / "spec.yaml").write_text(dump_spec(spec))
    (run / "index_to_name.json").write_text(dump_labels(spec.classes))
    save_file(build_network(spec).state_dict(), run / "weights.safetensors")
    options = ServingOptions(workers=1, batch_size=6)
    return build_archive(run, tmp_path_factory.mktemp("store"), name="tiny", options=options)


@pytest.fixture
def tune(archive: Path, tmp_path: Path) -> Iterator[Tune]:
    """tune("--slo", …) -> the command as a process; afterwards nothing that it started may run."""
    mark = uuid.uuid4().hex
    environment = {**os.environ, MARKER: mark, "TMPDIR": str(tmp_path)}

    def run(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "imgcls.cli.main", "tune", str(archive), "--out", str(tmp_path / "out")]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([*command, *arguments], env=environment, cwd=ROOT, **pipes)

    yield run
    left = find_marked(mark, marker=MARKER)
    names = [" ".join(process.cmdline())[:200] for process in left]
    for process in left:
        process.kill()
    assert not names
    assert not list(tmp_path.glob("imgcls-tune-*"))


def test_what_it_recommends_is_served_as_it_is_written(tune: Tune, archive: Path, tmp_path: Path) -> None:
    before = archive.read_bytes()
    process = tune("--slo", "p99=20s", *SHORT, "--json")
    said, told = process.communicate(timeout=200)
    assert process.returncode == 0, told
    result = json.loads(said)
    recommended = result["recommended"]
    assert result == json.loads((tmp_path / "out" / "tune.json").read_text()) | {"written": result["written"]}
    assert result["candidates"][0]["trials"][0]["memory_bytes"] > 50_000_000
    assert (tmp_path / "out" / "tune.png").read_bytes().startswith(b"\x89PNG")
    assert archive.read_bytes() == before

    tuned = tmp_path / "out" / "tiny.mar"
    verify_archive(tuned)
    assert (tmp_path / "out" / "model-config.yaml").read_text() != ""
    folder = StateFolder(tmp_path / "state")
    options = ServeOptions(tuned, config=tmp_path / "out" / "config.properties", state=folder.path, port=0)
    try:
        state = start(options)
        with management_client(state, folder) as management:
            status = management.describe("tiny")
            worker = management.ask_worker("tiny", version="1.0")
        os.kill(status.workers[0].pid, signal.SIGKILL)
        wait_until(lambda: has_failure(folder.server_log))  # the log has fewer lines, and this one still
        assert "Backend response time" not in folder.server_log.read_text()
    finally:
        stop(folder)
    assert (status.batch_size, status.max_batch_delay_ms) == (6, recommended["max_batch_delay_ms"])
    assert status.ready_workers == recommended["workers"] == 1
    assert (worker["engine"], worker["threads"]) == (recommended["engine"], recommended["threads"])


def test_objective_that_nothing_meets_exits_1_and_says_how_near(tune: Tune, tmp_path: Path) -> None:
    process = tune("--slo", "p50=0.01ms", *SHORT)
    said, told = process.communicate(timeout=200)
    assert process.returncode == 1, told
    assert "failed: no candidate meets p50=0.01ms; nearest came eager" in said
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"tune.json", "tune.png"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_signal_stops_the_server_and_writes_nothing(tune: Tune, tmp_path: Path, number: signal.Signals) -> None:
    process = tune("--slo", "p99=20s", *SHORT)
    wait_until(lambda: list(tmp_path.glob("imgcls-tune-*/trial-*/state/state.json")))
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert told.rstrip().endswith("stopped; nothing was written")
    assert not (tmp_path / "out").exists()


def test_config_properties_cannot_change_a_packed_model_config(archive: Path, tmp_path: Path) -> None:
    """Why the tuned settings travel in an archive of their own: `models=` loses against model-config.yaml."""
    models = {"tiny": {"1.0": {"marName": "tiny.mar", "minWorkers": 2, "maxWorkers": 2, "batchSize": 3}}}
    config = tmp_path / "config.properties"
    config.write_text(CONFIG.read_text() + f"models={json.dumps(models)}\n")
    folder = StateFolder(tmp_path / "state")
    try:
        state = start(ServeOptions(archive, config=config, state=folder.path, port=0))
        with management_client(state, folder) as management:
            status = management.describe("tiny")
    finally:
        stop(folder)
    packed = read_contents(archive).model_config
    assert (status.batch_size, status.min_workers) == (packed["batchSize"], packed["minWorkers"]) == (6, 1)


def wait_until(condition: Callable[[], object], *, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)
