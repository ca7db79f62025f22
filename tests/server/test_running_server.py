"""What the commands tell and do with a server that runs."""

import base64
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import requests

from imgcls.archive.golden import read_golden
from imgcls.client import Client
from imgcls.client.errors import BadImageError, ModelNotFoundError, NotAuthorisedError
from imgcls.serving.access import inference_client, inference_token
from imgcls.serving.state import ServerState, StateFolder
from imgcls.serving.tokens import read_tokens, renew_token

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def golden_files(archive: Path, tmp_path: Path) -> list[Path]:
    files = []
    for item in read_golden(archive):
        files.append(tmp_path / item.file)
        files[-1].write_bytes(item.data)
    return files


def test_predict_answers_the_golden_input(
    server: ServerState, cli: Cli, archive: Path, golden_files: list[Path], state_flag: list[str]
) -> None:
    result = cli(["predict", *golden_files, "--top-k", "2", "--json", *state_flag])
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)[0]
    assert answer["version"] == "1.0"
    assert [len(answer["predictions"]), answer["predictions"][0]["index"]] == [2, read_golden(archive)[0].index]


def test_a_failing_file_does_not_stop_the_others(
    server: ServerState, cli: Cli, golden_files: list[Path], tmp_path: Path, state_flag: list[str]
) -> None:
    junk = tmp_path / "junk.png"
    junk.write_bytes(b"no image")
    result = cli(["predict", junk, tmp_path / "missing.png", *golden_files, *state_flag])
    assert result.returncode == 1
    assert result.stdout.startswith(str(golden_files[0]))
    assert result.stderr.splitlines()[-1] == "error: 2 of 3 files could not be classified"
    assert "415" in result.stderr and "No such file" in result.stderr and "Traceback" not in result.stderr


def test_url_and_token_come_from_flags_or_environment(
    server: ServerState, cli: Cli, golden_files: list[Path], tmp_path: Path, folder: StateFolder
) -> None:
    token = inference_token(server, folder)
    nowhere = ["--state", tmp_path / "nowhere"]
    result = cli(["predict", *golden_files, *nowhere], IMGCLS_URL=server.inference_url, IMGCLS_TOKEN=str(token))
    assert result.returncode == 0, result.stderr
    result = cli(["predict", *golden_files, *nowhere, "--url", server.inference_url, "--token", "wrong"])
    assert result.returncode == 1
    assert re.fullmatch(r"error: the token is missing, wrong or expired .*\n", result.stderr)


def test_client_errors_are_typed(server: ServerState, folder: StateFolder) -> None:
    token = inference_token(server, folder)
    with inference_client(server, folder) as client:
        assert client.ping() == "Healthy"
        with pytest.raises(BadImageError) as caught:
            client.predict(b"")
        assert (caught.value.status, caught.value.code) == (400, "empty_image")
        with pytest.raises(BadImageError) as caught:
            client.predict(b"x" * 10_500_000)
        assert caught.value.status == 413
    with Client(server.inference_url, token=token, model="nope") as client, pytest.raises(ModelNotFoundError):
        client.predict(b"x")
    with Client(server.inference_url, token=token, version="9.0") as client, pytest.raises(ModelNotFoundError):
        client.predict(b"x")
    with Client(server.inference_url) as client, pytest.raises(NotAuthorisedError):
        client.ping()


def test_broken_json_body_is_answered_and_leaves_the_worker_alive(
    server: ServerState, archive: Path, folder: StateFolder
) -> None:
    headers = {
        "Authorization": f"Bearer {inference_token(server, folder)}",
        "Content-Type": "application/json",
    }
    url = f"{server.inference_url}/predictions/{server.model}"
    response = requests.post(url, data=b"{broken \xff", headers=headers, timeout=20)
    assert 400 <= response.status_code < 500
    assert "Traceback" not in folder.model_log.read_text()
    with inference_client(server, folder) as client:
        item = read_golden(archive)[0]
        assert client.predict(item.data).best.index == item.index


def test_top_k_comes_from_header_form_and_json_and_not_from_the_query(
    server: ServerState, archive: Path, folder: StateFolder
) -> None:
    """TorchServe drops the query of /predictions; only its legacy route passes one on."""
    item = read_golden(archive)[0]
    encoded = base64.b64encode(item.data).decode()
    token = {"Authorization": f"Bearer {inference_token(server, folder)}"}
    raw = {**token, "Content-Type": "image/png"}
    url = f"{server.inference_url}/predictions/{server.model}"
    legacy = f"{server.inference_url}/{server.model}/predict?top_k=1"

    def count(*arguments: str, **options: object) -> int:
        response = requests.post(*arguments, timeout=20, **options)
        assert response.status_code == 200, response.text
        return len(response.json()["predictions"])

    assert count(url, data=item.data, headers={**raw, "top_k": "1"}) == 1
    assert count(url, files={"image": item.data}, data={"top_k": "1"}, headers=token) == 1
    assert count(url, json={"image": encoded, "top_k": 1}, headers=token) == 1
    assert count(legacy, data=item.data, headers=raw) == 1
    assert count(f"{url}?top_k=1", data=item.data, headers=raw) == 3


def test_status_tells_workers_memory_and_ports(server: ServerState, cli: Cli, state_flag: list[str]) -> None:
    result = cli(["status", *state_flag])
    assert result.returncode == 0, result.stderr
    assert re.search(r"imgcls 1\.0: ready", result.stdout)
    assert re.search(r"worker +9000 READY, pid \d+, \d+ MB, CPU", result.stdout)
    report = json.loads(cli(["status", "--json", *state_flag]).stdout)
    assert report["ready"] and report["ports"]["inference"] == server.ports.inference


def test_workers_know_how_many_share_the_cores(server: ServerState, cli: Cli, state_flag: list[str]) -> None:
    (worker,) = json.loads(cli(["status", "--json", *state_flag]).stdout)["workers"]
    assert psutil.Process(worker["pid"]).environ()["IMGCLS_WORKERS"] == "1"


def test_scale_waits_until_all_are_ready(server: ServerState, cli: Cli, state_flag: list[str]) -> None:
    result = cli(["scale", "2", *state_flag])
    assert "2 workers READY" in result.stdout and "note: the threads of each worker stay" in result.stderr
    report = json.loads(cli(["status", "--json", *state_flag]).stdout)
    assert [worker["status"] for worker in report["workers"]] == ["READY", "READY"]
    assert "1 workers READY" in cli(["scale", "1", *state_flag]).stdout
    result = cli(["scale", "1", "--name", "nope", *state_flag])
    assert result.returncode == 1 and "Model not found: nope" in result.stderr


def test_renewed_token_ends_the_old_one(server: ServerState, folder: StateFolder) -> None:
    old = inference_token(server, folder)
    tokens = renew_token(folder.key_file, kind="inference", management_url=server.management_url)
    assert tokens.inference.key != old
    with Client(server.inference_url, token=old) as client, pytest.raises(NotAuthorisedError):
        client.ping()
    with Client(server.inference_url, token=tokens.inference.key) as client:
        assert client.ping() == "Healthy"
    assert not read_tokens(folder.key_file).inference.is_expired


def test_models_cannot_be_registered_over_the_api(server: ServerState, folder: StateFolder) -> None:
    headers = {"Authorization": f"Bearer {read_tokens(folder.key_file).management.key}"}
    url = f"{server.management_url}/models"
    assert requests.post(url, params={"url": "imgcls.mar"}, headers=headers, timeout=20).status_code == 405


def test_no_snapshot_is_written(server: ServerState, folder: StateFolder) -> None:
    assert not (folder.logs / "config").exists()


def test_tokens_are_for_the_owner_only(server: ServerState, folder: StateFolder) -> None:
    assert folder.path.stat().st_mode & 0o077 == 0


def test_a_second_server_in_the_same_state_folder_is_refused(
    server: ServerState, cli: Cli, archive: Path, state_flag: list[str]
) -> None:
    result = cli(["serve", archive, "--port", "0", *state_flag])
    assert result.returncode == 1
    assert re.fullmatch(r"error: .* is already served at .*\n", result.stderr)


def test_port_in_use_is_named_with_its_holder(server: ServerState, cli: Cli, archive: Path, tmp_path: Path) -> None:
    port = server.ports.inference
    result = cli(["serve", archive, "--port", str(port), "--state", tmp_path / "state"])
    assert result.returncode == 1
    in_use = rf"port {port} \(inference\)[^;]* (is|are) in use by pid {server.pid} \(java\)"
    assert re.search(in_use, result.stderr)
    assert result.stderr.count("\n") == 1
    result = cli(["doctor", archive, "--port", str(port), "--state", tmp_path / "state"])
    assert result.returncode == 1 and re.search(in_use, result.stdout)


def test_the_printed_curl_command_works(server: ServerState, golden_files: list[Path], folder: StateFolder) -> None:
    from imgcls.cli.serving import _describe_start

    text = _describe_start(server, folder, is_foreground=False)
    command = next(line for line in text.splitlines() if "curl" in line).strip().replace("@FILE", f"@{golden_files[0]}")
    result = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, timeout=30, check=True, env=os.environ
    )
    assert json.loads(result.stdout)["predictions"]


def test_status_is_honest_about_a_dead_worker(
    server: ServerState, cli: Cli, state_flag: list[str], archive: Path, folder: StateFolder
) -> None:
    """TorchServe starts it again by itself; until then its /ping goes on saying Healthy."""
    report = json.loads(cli(["status", "--json", *state_flag]).stdout)
    os.kill(report["workers"][0]["pid"], signal.SIGKILL)
    deadline = time.monotonic() + 30
    seen = []
    while time.monotonic() < deadline:
        result = cli(["status", *state_flag])
        seen.append(result.returncode)
        if result.returncode == 0 and 1 in seen:
            break
    assert seen[-1] == 0 and 1 in seen, result.stdout
    with inference_client(server, folder) as client:
        item = read_golden(archive)[0]
        assert client.predict(item.data).best.index == item.index
