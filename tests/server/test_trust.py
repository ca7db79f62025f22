"""Archives that are changed, unsigned or signed by someone else, against a real TorchServe."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import requests

from handler.trust import TRUST_VARIABLE
from imgcls.archive.contents import extract
from imgcls.archive.golden import read_golden
from imgcls.archive.keys import create_keys
from imgcls.archive.pack import pack_tree, read_build_time, write_manifest
from imgcls.archive.signing import sign_archive, signer_with_key
from imgcls.archive.trust import detached_signature
from imgcls.client import Client
from imgcls.serving import config, processes
from imgcls.serving.access import inference_client, management_client
from imgcls.serving.java import find_java
from imgcls.serving.ports import ports_from
from imgcls.serving.server import ServeOptions, start, stop
from imgcls.serving.state import ServerState, StateFolder

Cli = Callable[..., subprocess.CompletedProcess[str]]


@dataclass(frozen=True)
class Site:
    """A folder as a deployment has it: model store, keys, configuration and trust file."""

    folder: Path

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def config(self) -> Path:
        return self.folder / "config.properties"

    @property
    def trust(self) -> Path:
        return self.folder / "trust.yaml"

    @property
    def archive(self) -> Path:
        return self.store / "imgcls.mar"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, archive: Path, ts_config: Path) -> Site:
    """Trusts the key release; imgcls.mar (1.0) and next.mar (1.1) are signed by it, others are as their names say."""
    site = Site(tmp_path_factory.mktemp("site"))
    keys = {name: create_keys(name, site.folder / "keys").private for name in ("release", "other")}
    site.trust.write_text("policy: signed\nkeys: [keys/release.pub]\n")
    site.config.write_text(ts_config.read_text().replace("enable_model_api=false", "enable_model_api=true"))
    site.store.mkdir()
    versions = {"imgcls": "1.0", "next": "1.1", "tampered": "2.0", "other_key": "3.0", "unsigned": "4.0"}
    for name, version in versions.items():
        repack(archive, site.store / f"{name}.mar", version=version)
        if name != "unsigned":
            sign_archive(
                site.store / f"{name}.mar", signer_with_key(keys["other" if name == "other_key" else "release"])
            )
    tamper(site.store / "tampered.mar", entry="weights.safetensors")
    return site


def repack(archive: Path, target: Path, *, version: str) -> None:
    """Packs the content of an archive anew under another version, which is quicker than to build it."""
    with tempfile.TemporaryDirectory() as temporary:
        tree = Path(temporary) / "tree"
        extract(archive, folder=tree)
        shutil.rmtree(tree / "MAR-INF")
        created = read_build_time()
        write_manifest(tree, name="imgcls", version=version, created=created)
        pack_tree(tree, target, created=created)


def tamper(mar: Path, *, entry: str) -> None:
    """Flips the last byte of one file, as someone would who writes a good zip; beside it lies no signature any more."""
    with zipfile.ZipFile(mar) as archive:
        data = {name: archive.read(name) for name in archive.namelist()}
    data[entry] = data[entry][:-1] + bytes([data[entry][-1] ^ 1])
    with zipfile.ZipFile(mar, "w") as archive:
        for name, content in data.items():
            archive.writestr(name, content)
    detached_signature(mar).unlink(missing_ok=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> StateFolder:
    return StateFolder(tmp_path_factory.mktemp("trusted") / "state")


@pytest.fixture(scope="module")
def server(site: Site, folder: StateFolder) -> Iterator[ServerState]:
    """Serves 1.0, under the trust file beside its configuration."""
    options = ServeOptions(archive=site.archive, config=site.config, state=folder.path, port=0, dies_with_parent=True)
    try:
        yield start(options)
    finally:
        stop(folder)


@pytest.fixture
def client(server: ServerState, folder: StateFolder) -> Client:
    return inference_client(server, folder)


class Asking(threading.Thread):
    """Asks a server without a pause, until told to end."""

    def __init__(self, client: Client, image: bytes) -> None:
        super().__init__()
        self.answers: list[str] = []
        self.error: Exception | None = None
        self._client, self._image, self._is_over = client, image, threading.Event()

    def run(self) -> None:
        try:
            while not self._is_over.is_set():
                self.answers.append(self._client.predict(self._image, top_k=1).version)
        except Exception as err:
            self.error = err

    def end(self) -> None:
        self._is_over.set()
        self.join()


def register(server: ServerState, folder: StateFolder, file: str) -> int:
    """Registers an archive of the store as one more version, and waits; returns TorchServe's status."""
    with management_client(server, folder) as management:
        session = management._session
        parameters = {"url": file, "initial_workers": "1", "synchronous": "true"}
        return session.post(f"{server.management_url}/models", params=parameters, timeout=60).status_code


def versions_in_status(cli: Cli, folder: StateFolder) -> dict[str, dict[str, object]]:
    report = json.loads(cli(["status", "--state", folder.path, "--json"]).stdout)
    assert report["ready"]
    return {version["version"]: version for version in report["versions"]}


def test_signed_archive_is_served_and_its_signer_shown(
    cli: Cli, client: Client, site: Site, folder: StateFolder
) -> None:
    item = read_golden(site.archive)[0]
    assert client.predict(item.data).best.index == item.index
    shown = cli(["status", "--state", folder.path])
    assert shown.returncode == 0
    assert f"trust     signed, signer release, {site.trust}" in shown.stdout.splitlines()
    assert "version   1.0 (default): 1 of 1 workers READY" in shown.stdout.splitlines()


REFUSED = {
    "tampered.mar": ("2.0", "weights.safetensors: is not the file that was recorded"),
    "other_key.mar": ("3.0", "MAR-INF/integrity.json.sig: signed by key "),
    "unsigned.mar": ("4.0", "MAR-INF/integrity.json.sig: the archive is not signed"),
}


@pytest.mark.parametrize("file", REFUSED)
def test_second_version_that_is_refused_leaves_the_first_alone(
    file: str, cli: Cli, server: ServerState, client: Client, site: Site, folder: StateFolder
) -> None:
    version, reason = REFUSED[file]
    asking = Asking(client, read_golden(site.archive)[0].data)
    asking.start()
    try:
        assert register(server, folder, file) == 500
    finally:
        asking.end()
    assert asking.error is None and set(asking.answers) == {"1.0"}
    found = versions_in_status(cli, folder)
    assert found["1.0"]["is_default"] and not found["1.0"]["problem"]
    assert reason in str(found[version]["problem"]) and not found[version]["ready_workers"]
    line = next(
        line
        for line in cli(["status", "--state", folder.path]).stdout.splitlines()
        if line.startswith(f"version   {version}")
    )
    assert reason in line


def test_second_version_by_the_trusted_key_is_served_beside_the_first(
    cli: Cli, server: ServerState, folder: StateFolder
) -> None:
    assert register(server, folder, "next.mar") == 200
    found = versions_in_status(cli, folder)
    assert [found[version]["ready_workers"] for version in ("1.0", "1.1")] == [1, 1]
    assert found["1.0"]["is_default"] and not found["1.1"]["problem"]


@pytest.mark.parametrize("file", REFUSED)
def test_serve_refuses_from_outside_before_java_starts(
    file: str, cli: Cli, site: Site, tmp_path: Path, ts_config: Path
) -> None:
    arguments = ["serve", site.store / file, "--ts-config", ts_config, "--port", "0", "--state", tmp_path / "state"]
    result = cli([*arguments, "--trust", site.trust])
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert result.stderr.startswith(f"error: {site.store / file}: ") and "do not serve it" in result.stderr
    assert not (tmp_path / "state").exists()
    from_environment = cli(arguments, **{TRUST_VARIABLE: str(site.trust)})
    assert from_environment.stderr == result.stderr


def test_trust_file_that_cannot_be_used_stops_the_start(cli: Cli, site: Site, tmp_path: Path) -> None:
    (tmp_path / "trust.yaml").write_text("policy: signed\nkeys: [gone.pub]\n")
    arguments = ["serve", site.archive, "--ts-config", site.config, "--port", "0", "--state", tmp_path / "state"]
    result = cli([*arguments, "--trust", tmp_path / "trust.yaml"])
    assert result.returncode == 2 and "gone.pub, which is no file" in result.stderr
    assert not (tmp_path / "state").exists()


def test_tree_that_is_changed_under_a_server_is_refused_by_the_next_worker(
    cli: Cli, site: Site, tmp_path: Path
) -> None:
    state = StateFolder(tmp_path / "state")
    options = ServeOptions(archive=site.archive, config=site.config, state=state.path, port=0, dies_with_parent=True)
    try:
        server = start(options)
        with management_client(server, state) as management:
            pid = management.describe("imgcls").workers[0].pid
        [source] = (server.temporary / "models").glob("*/model/network.py")
        source.write_text(source.read_text() + "# changed\n")
        psutil.Process(pid).kill()
        deadline_s = time.monotonic() + 60
        while "model/network.py: is not the file" not in (said := cli(["status", "--state", state.path]).stdout):
            assert time.monotonic() < deadline_s, said
            time.sleep(0.5)
        assert said.startswith("imgcls 1.0: not ready: 0 of 1 workers READY; handler.integrity.IntegrityError: model/")
    finally:
        stop(state)


def test_plain_torchserve_obeys_the_trust_file_of_its_environment(site: Site, tmp_path: Path) -> None:
    """No tool of ours stands between: the workers themselves refuse what is not trusted."""
    ports = ports_from(0)
    overlay = config.Overlay(site.store, ports=ports)
    merged = config.merge_config(config.read_config(site.config), overlay, folder=site.folder)
    config.write_config(tmp_path / "config.properties", merged)
    (tmp_path / "tmp").mkdir()
    command = [Path(sys.executable).parent / "torchserve", "--start", "--ncs", "--foreground"]
    command += ["--model-store", site.store, "--ts-config", "config.properties"]
    command += ["--models", "good=imgcls.mar", *(f"{Path(file).stem}={file}" for file in REFUSED)]
    variables = {"TMPDIR": tmp_path / "tmp", "TEMP": tmp_path / "tmp", "JAVA_HOME": find_java().parents[1]}
    variables |= {TRUST_VARIABLE: site.trust, processes.MARKER: "plain-trust"}
    environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
    with (tmp_path / "out.log").open("wb") as output:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=output, stderr=output)
    try:
        item = read_golden(site.archive)[0]
        deadline_s = time.monotonic() + 90
        reasons = {reason for _, reason in REFUSED.values()}
        answer, said = None, ""
        while answer is None or any(reason not in said for reason in reasons):
            said = (tmp_path / "out.log").read_text()
            assert process.poll() is None and time.monotonic() < deadline_s, said[-5000:]
            answer = answer or _ask_plain(ports.inference, tmp_path / "key_file.json", item.data)
            time.sleep(0.5)
        assert answer["version"] == "1.0" and answer["predictions"][0]["index"] == item.index
    finally:
        process.kill()
        process.wait()
        processes.end_all("plain-trust", frontend=None)


def _ask_plain(port: int, key_file: Path, image: bytes) -> dict[str, object] | None:
    """Asks a server that may not be up yet."""
    try:
        key = json.loads(key_file.read_text())["inference"]["key"]
        headers = {"Authorization": f"Bearer {key}"}
        url = f"http://127.0.0.1:{port}/predictions/good"
        response = requests.post(url, data=image, headers=headers, timeout=30)
    except (OSError, ValueError):
        return None
    return response.json() if response.ok else None
