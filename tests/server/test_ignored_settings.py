"""What TorchServe makes of settings that the lint rejects: it ignores them, or ends with a word of Java's."""

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from imgcls.serving.config import write_config
from imgcls.serving.java import find_java
from imgcls.serving.lint import lint_config, lint_model_config
from imgcls.serving.ports import Ports, ports_from

HOME = Path(importlib.util.find_spec("ts").origin).parents[1]
HANDLER = "def handle(data, context):\n    return [str(item) for item in data] if data else None\n"
TIMEOUT_S = 60


@dataclass
class Frontend:
    """A frontend of TorchServe that has started, or ended by itself."""

    process: subprocess.Popen
    log: Path
    ports: Ports

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self) -> bool:
        """Waits until it has started, or ended; returns whether it has started."""
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                return False
            if "Model server started." in self.said:
                return True
            time.sleep(0.1)
        raise AssertionError(self.said)

    def describe(self) -> dict[str, object]:
        return requests.get(f"http://127.0.0.1:{self.ports.management}/models/m", timeout=10).json()[0]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Frontend]]:
    """start(config, model_config) -> a frontend of its own with these settings, ended with its workers afterwards."""
    frontends: list[Frontend] = []

    def start_frontend(config: Mapping[str, str], model_config: str | None = None) -> Frontend:
        ports, store, log = ports_from(0), tmp_path / "store", tmp_path / "log"
        store.mkdir()
        settings = {"disable_token_authorization": "true", "number_of_gpu": "0", "allowed_urls": "none"}
        for name in ("inference", "management", "metrics"):
            settings[f"{name}_address"] = f"http://127.0.0.1:{getattr(ports, name)}"
        settings |= {f"{name}_port": str(getattr(ports, name)) for name in ("grpc_inference", "grpc_management")}
        write_config(tmp_path / "config.properties", settings | config)
        command = [find_java(), f"-Dmodel_server_home={HOME}", f"-Djava.io.tmpdir={tmp_path}"]
        command += ["-cp", f".:{HOME}/ts/frontend/*", "org.pytorch.serve.ModelServer", "--python", sys.executable]
        command += ["-f", tmp_path / "config.properties", "-s", store, "-ncs"]
        if model_config is not None:
            write_archive(store / "m.mar", model_config)
            command += ["-m", "m=m.mar"]
        with log.open("w") as file:
            process = subprocess.Popen(
                [str(part) for part in command],
                **{"stdout": file, "stderr": subprocess.STDOUT, "cwd": tmp_path, "start_new_session": True},
                env=os.environ | {"TMPDIR": str(tmp_path)},
            )
        frontends.append(Frontend(process, log, ports))
        return frontends[-1]

    yield start_frontend
    for frontend in frontends:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(frontend.process.pid, signal.SIGKILL)
        frontend.process.wait()


def write_archive(mar: Path, model_config: str) -> None:
    model = {"modelName": "m", "modelVersion": "1.0", "handler": "h.py", "configFile": "model-config.yaml"}
    manifest = {"createdOn": "now", "runtime": "python", "archiverVersion": "0.12.0", "model": model}
    with zipfile.ZipFile(mar, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        archive.writestr("model-config.yaml", model_config)
        archive.writestr("h.py", HANDLER)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"max_reqest_size": "10"}, "Maximum Request Size: 6553500"),
        ({"enable_model_api": "yes"}, "Model API enabled: false"),
        ({"enable_model_api": "true "}, "Model API enabled: false"),
        ({"metrics_mode": "prometheus2"}, "Metrics mode: LOG"),
    ],
)
def test_wrong_setting_is_ignored_and_the_server_starts(start: Callable[..., Frontend], config, said: str):
    assert lint_config("".join(f"{key}={value}\n" for key, value in config.items()), where="c")[-1].status == "error"
    frontend = start(config)
    assert frontend.wait()
    assert said in frontend.said


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"max_request_size": "1000000 "}, 'For input string: "1000000 "'),
        ({"inference_address": "http://[::1]:8080"}, "Invalid binding address"),
        ({"inference_address": "https://127.0.0.1:8443"}, "self-signed certificate"),
    ],
)
def test_wrong_setting_ends_the_server(start: Callable[..., Frontend], config, said: str):
    assert lint_config("".join(f"{key}={value}\n" for key, value in config.items()), where="c")[-1].status == "error"
    frontend = start(config)
    assert not frontend.wait()
    assert said in frontend.said


def test_model_settings_that_a_merge_key_brings_count(start: Callable[..., Frontend]):
    text = "handler: &shared {responseTimeout: 77, maxBatchDelay: 7}\n<<: *shared\nmaxBatchDelay: 9\n"
    frontend = start({"default_workers_per_model": "1"}, text)
    assert frontend.wait()
    got = frontend.describe()
    assert (got["responseTimeout"], got["maxBatchDelay"]) == (77, 9)


def test_wrong_model_settings_are_ignored(start: Callable[..., Frontend]):
    text = 'minWorkers: 1\nbatchSize: "8"\nmaxBatchDelay: 0\nresponseTimeout: 0\nmax_retry: 1\n'
    assert {finding.line for finding in lint_model_config(text) if finding.status == "error"} == {1, 2, 3, 4}
    frontend = start({"default_workers_per_model": "2"}, text)
    assert frontend.wait()
    assert "Invalid model config in mar, minWorkers:1, maxWorkers:0" in frontend.said
    got = frontend.describe()
    expected = {"minWorkers": 2, "batchSize": 1, "maxBatchDelay": 100, "responseTimeout": 120}
    assert {key: got[key] for key in expected} == expected


@pytest.mark.parametrize("text", ["", "1: 2\n"])
def test_model_settings_that_are_no_mapping_of_texts_end_the_server(start: Callable[..., Frontend], text: str):
    assert lint_model_config(text)[0].status == "error"
    frontend = start({}, text)
    assert not frontend.wait()
    assert re.search("NullPointerException|ClassCastException", frontend.said)
