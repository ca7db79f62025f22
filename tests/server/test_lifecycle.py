"""Starts that fail, servers that are killed, and what is left afterwards: nothing."""

import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from imgcls.serving import doctor, foreground, processes
from imgcls.serving.errors import PreflightError
from imgcls.serving.server import ServeOptions, start
from imgcls.serving.state import ServerState, StateFolder

Cli = Callable[..., subprocess.CompletedProcess[str]]


def rewrite(archive: Path, target: Path, *, entry: str, data: bytes) -> Path:
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(target, "w") as copy:
        for name in source.namelist():
            copy.writestr(name, data if name == entry else source.read(name))
    return target


def start_foreground(archive: Path, state: Path, *, config: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "imgcls.cli.main", "serve", archive, "--ts-config", config, "--foreground"]
    command += ["--port", "0", "--workers", "1", "--state", state]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_end(server_id: str, *, timeout_s: float) -> list[psutil.Process]:
    deadline = time.monotonic() + timeout_s
    while (left := processes.find_marked(server_id)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


def wait_until_ready(process: subprocess.Popen[str], folder: StateFolder) -> ServerState:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert " is ready at " in line, process.communicate(timeout=30)
    return folder.read_running()


def test_worker_that_fails_to_load_shows_its_traceback_within_seconds(
    cli: Cli, archive: Path, ts_config: Path, tmp_path: Path
) -> None:
    broken = rewrite(archive, tmp_path / "broken.mar", entry="weights.safetensors", data=b"no tensors")
    began = time.monotonic()
    (tmp_path / "trust.yaml").write_text("policy: off\n")
    arguments = ["serve", broken, "--ts-config", ts_config, "--port", "0", "--state", tmp_path / "state"]
    result = cli([*arguments, "--trust", tmp_path / "trust.yaml"])
    assert time.monotonic() - began < 30
    assert result.returncode == 1
    assert "Traceback (most recent call last)" in result.stderr and "in initialize" in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: imgcls: a worker could not load the model: model.errors.WeightsError")
    assert not (tmp_path / "state" / "state.json").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_while_starting_stops_everything(number: int, archive: Path, ts_config: Path, tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "state")
    process = start_foreground(archive, folder.path, config=ts_config)
    while not folder.state_file.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    state = folder.read()
    assert state is not None
    process.send_signal(number)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 0 and "Traceback" not in said
    assert processes.find_marked(state.server_id) == []
    assert not state.temporary.exists() and not folder.key_file.exists() and not folder.state_file.exists()


def test_foreground_server_survives_nothing(cli: Cli, archive: Path, ts_config: Path, tmp_path: Path) -> None:
    """A killed `imgcls serve --foreground` leaves no Java and no worker; the next stop clears its files."""
    folder = StateFolder(tmp_path / "state")
    process = start_foreground(archive, folder.path, config=ts_config)
    state = wait_until_ready(process, folder)
    process.kill()
    process.communicate()
    assert wait_for_end(state.server_id, timeout_s=10) == []
    status = cli(["status", "--state", folder.path])
    assert status.returncode == 1 and "is gone" in status.stderr
    assert "warning" in cli(["doctor", archive, "--ts-config", ts_config, "--port", "0", "--state", folder.path]).stdout
    for _ in range(2):
        assert cli(["stop", "--state", folder.path]).returncode == 0
    assert not state.temporary.exists()


def test_foreground_server_stops_cleanly_on_sigterm(archive: Path, ts_config: Path, tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / ("deep" * 22))  # too deep for a Unix socket: its temporary folder is elsewhere
    process = start_foreground(archive, folder.path, config=ts_config)
    state = wait_until_ready(process, folder)
    process.terminate()
    _, said = process.communicate(timeout=20)
    assert process.returncode == 0 and said.splitlines()[-1] == "stopped"
    assert processes.find_marked(state.server_id) == []
    assert not state.temporary.exists() and not folder.state_file.exists() and folder.model_log.exists()


def test_killed_frontend_leaves_no_worker_and_ends_the_foreground(
    archive: Path, ts_config: Path, tmp_path: Path
) -> None:
    folder = StateFolder(tmp_path / "state")
    process = start_foreground(archive, folder.path, config=ts_config)
    state = wait_until_ready(process, folder)
    os.kill(state.pid, signal.SIGKILL)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 1
    assert said.splitlines()[-1].startswith("error: TorchServe has ended")
    assert processes.find_marked(state.server_id) == []


def test_orphaned_worker_is_ended_by_stop(cli: Cli, tmp_path: Path) -> None:
    """A worker that outlives its frontend, as one does that is loading or busy, is found by its environment."""
    folder = StateFolder(tmp_path / "state")
    folder.prepare()
    orphan = processes.launch(
        [sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"],
        server_id="orphaned",
        folder=tmp_path,
        log=folder.console_log,
        environment=os.environ,
        dies_with_parent=True,
    )
    fields = {"inference": 1, "management": 2, "metrics": 3, "grpc_inference": 4, "grpc_management": 5}
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    folder.write(
        ServerState.model_validate(
            {
                "server_id": "orphaned",
                "pid": gone.pid,
                "created_s": 0,
                "ports": fields,
                "inference_url": "http://127.0.0.1:1",
                "management_url": "http://127.0.0.1:2",
                "token_required": False,
                "archive": "x.mar",
                "model": "imgcls",
                "version": "1.0",
                "temporary": tmp_path / "gone",
            }
        )
    )
    assert cli(["stop", "--state", folder.path]).returncode == 0
    assert orphan.wait(5) == -signal.SIGKILL


def test_a_start_that_cannot_be_told_leaves_no_server(archive: Path, ts_config: Path, tmp_path: Path) -> None:
    """As with `imgcls serve | head`: the command fails, so no server may stay behind."""
    folder = StateFolder(tmp_path / "state")

    def fail(server: object) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        foreground.serve(
            ServeOptions(archive=archive, config=ts_config, state=folder.path, port=0),
            is_foreground=False,
            on_progress=lambda text: None,
            on_ready=fail,
            on_log_line=lambda line: None,
        )
    assert folder.read() is None


def test_missing_pyyaml_is_named_before_the_start(archive: Path, ts_config: Path, tmp_path: Path) -> None:
    """TorchServe needs it and does not declare it: its workers die at import, while /ping stays Healthy."""
    shadow = tmp_path / "shadow"
    shadow.mkdir()
    (shadow / "yaml.py").write_text("raise ImportError('No module named yaml')\n")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={shadow} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    findings = doctor.check_packages(python, names=doctor.QUICK_PACKAGES)
    assert [(finding.status, finding.fix) for finding in findings if "pyyaml" in finding.name] == [
        ("error", "pip install 'pyyaml'")
    ]
    options = ServeOptions(archive=archive, config=ts_config, state=tmp_path / "state", port=0, python=python)
    with pytest.raises(PreflightError, match="pip install 'pyyaml'"):
        start(options)


def test_plain_torchserve_serves_with_the_projects_configuration(
    archive: Path, ts_config: Path, tmp_path: Path
) -> None:
    """`torchserve --start` works as documented, with only the ports changed."""
    import json

    import requests

    from imgcls.archive.golden import read_golden
    from imgcls.serving.config import GRPC_KEYS
    from imgcls.serving.java import find_java
    from imgcls.serving.ports import ports_from

    ports = ports_from(0)
    text = ts_config.read_text()
    for old, new in zip(("8080", "8081", "8082"), (ports.inference, ports.management, ports.metrics), strict=True):
        text = text.replace(f"127.0.0.1:{old}", f"127.0.0.1:{new}")
    for name, key in GRPC_KEYS.items():
        text = text.replace(f"{key}=70", f"{key}={getattr(ports, name)}\n#")
    (tmp_path / "config.properties").write_text(text)
    (tmp_path / "tmp").mkdir()
    command = [str(Path(sys.executable).parent / "torchserve"), "--start", "--ncs", "--foreground"]
    command += [
        "--model-store",
        str(archive.parent),
        "--models",
        "imgcls=imgcls.mar",
        "--ts-config",
        "config.properties",
    ]
    environment = {
        **os.environ,
        "TMPDIR": str(tmp_path / "tmp"),
        "TEMP": str(tmp_path / "tmp"),
        processes.MARKER: "plain",
    }
    environment["JAVA_HOME"] = str(find_java().parents[1])
    with (tmp_path / "out.log").open("wb") as output:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=output, stderr=output)
    try:
        item = read_golden(archive)[0]
        url = f"http://127.0.0.1:{ports.inference}/predictions/imgcls"
        deadline = time.monotonic() + 60
        while True:
            try:
                key = json.loads((tmp_path / "key_file.json").read_text())["inference"]["key"]
                response = requests.post(url, data=item.data, headers={"Authorization": f"Bearer {key}"}, timeout=60)
                break
            except (OSError, ValueError):
                assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "out.log").read_text()[
                    -3000:
                ]
                time.sleep(0.2)
        assert response.json()["predictions"][0]["index"] == item.index
    finally:
        process.kill()
        process.wait()
        processes.end_all("plain", frontend=None)


def test_serve_leaves_the_users_files_alone(cli: Cli, archive: Path, ts_config: Path, tmp_path: Path) -> None:
    for name in ("logs/mine.log", "tmp/mine", "key_file.json", "config.properties"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine=1\n")

    def look() -> dict[Path, tuple[int, int]]:
        return {path: (path.stat().st_mode, path.stat().st_mtime_ns) for path in (tmp_path, *tmp_path.rglob("*"))}

    before = look()
    for config in (ts_config, tmp_path / "config.properties"):
        result = cli(["serve", archive, "--ts-config", config, "--port", "0", "--state", tmp_path])
        assert result.returncode == 2
        assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
        assert look() == before


def test_starts_that_cannot_be_say_one_line(cli: Cli, archive: Path, ts_config: Path, tmp_path: Path) -> None:
    corrupt = tmp_path / "corrupt.mar"
    corrupt.write_bytes(archive.read_bytes()[:2000])
    foreign = tmp_path / "foreign.mar"
    with zipfile.ZipFile(foreign, "w") as zipped:
        zipped.writestr("MAR-INF/MANIFEST.json", "{}")
    bad_config = tmp_path / "bad.properties"
    bad_config.write_text("inference_address 8080\n")
    state = ["--state", tmp_path / "state", "--port", "0", "--ts-config", ts_config]
    cases: list[tuple[list[object], str]] = [
        ([corrupt], "cannot be read as a model archive"),
        ([foreign], "is not an archive of imgcls"),
        ([tmp_path / "empty" / "imgcls.mar"], "there is no such archive"),
        ([archive, "--java", str(tmp_path)], "is no executable"),
        ([archive, "--ts-config", tmp_path / "none.properties"], "cannot be read"),
        ([archive, "--ts-config", bad_config], "expected key=value"),
        ([archive, "--port", "65535"], "--port is 65535"),
    ]
    for arguments, expected in cases:
        result = cli(["serve", *state, *arguments])
        assert result.returncode == 1 and result.stdout == "", arguments
        assert result.stderr.startswith("error: ") and expected in result.stderr and result.stderr.count("\n") == 1
    result = cli(["serve", archive, *state], IMGCLS_JAVA=str(tmp_path))
    assert result.returncode == 1 and "is no executable" in result.stderr
