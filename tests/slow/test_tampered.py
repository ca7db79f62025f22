"""Whatever is done to an archive: `verify` names it, and a worker of a real TorchServe refuses it."""

import json
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imgcls.archive.verify import verify_archive
from imgcls.errors import ArchiveError
from imgcls.serving.access import management_client
from imgcls.serving.server import ServeOptions, start, stop
from imgcls.serving.state import ServerState, StateFolder

ROOT = Path(__file__).parents[2]
Entries = dict[str, bytes]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store with imgcls.mar 1.0 and next.mar 2.0, which only waits to be spoilt."""
    run, store = tmp_path_factory.mktemp("runs") / "digits", tmp_path_factory.mktemp("store")
    subprocess.run([sys.executable, "train.py", "--epochs", "1", "--out", run], cwd=ROOT, check=True)
    for version in ("1.0", "2.0"):
        command = [sys.executable, "-m", "imgcls.cli.main", "archive", "build", run, "--version", version]
        subprocess.run([*command, "--store", store / version, "--workers", "1"], cwd=ROOT, check=True)
    (store / "1.0" / "imgcls.mar").rename(store / "imgcls.mar")
    (store / "2.0" / "imgcls.mar").rename(store / "next.mar")
    return store


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> StateFolder:
    return StateFolder(tmp_path_factory.mktemp("server") / "state")


@pytest.fixture(scope="module")
def server(store: Path, folder: StateFolder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerState]:
    config = tmp_path_factory.mktemp("config") / "config.properties"
    text = (ROOT / "config.properties").read_text()
    config.write_text(text.replace("enable_model_api=false", "enable_model_api=true"))
    options = ServeOptions(store / "imgcls.mar", config=config, state=folder.path, port=0, dies_with_parent=True)
    try:
        yield start(options)
    finally:
        stop(folder)


def flip_data(path: str) -> Callable[[Path], None]:
    """Flips a byte of an entry, in a zip that is otherwise in order."""
    return zip_again(lambda entries: entries | {path: bytes([entries[path][0] ^ 1]) + entries[path][1:]})


def zip_again(change: Callable[[Entries], Entries]) -> Callable[[Path], None]:
    def spoil(mar: Path) -> None:
        with zipfile.ZipFile(mar) as archive:
            entries = change({name: archive.read(name) for name in archive.namelist()})
        with zipfile.ZipFile(mar, "w") as archive:
            for name, content in entries.items():
                archive.writestr(zipfile.ZipInfo(name), content)

    return spoil


def rename(entries: Entries) -> Entries:
    return {("model/colours.py" if name == "model/labels.py" else name): data for name, data in entries.items()}


def flip_bytes(find: Callable[[bytes], int]) -> Callable[[Path], None]:
    def spoil(mar: Path) -> None:
        content = bytearray(mar.read_bytes())
        content[find(bytes(content))] ^= 1
        mar.write_bytes(content)

    return spoil


def first_data(content: bytes) -> int:
    """Returns where the first entry's content begins: flipped there, its checksum in the zip does not fit either."""
    return 30 + sum(struct.unpack("<2H", content[26:30]))


SPOILT = {
    "flipped in the weights": (flip_data("weights.safetensors"), "weights.safetensors: is not the file"),
    "flipped in the code": (flip_data("model/network.py"), "model/network.py: is not the file"),
    "flipped in the record": (flip_data("MAR-INF/integrity.json"), "MAR-INF/integrity.json: "),
    "added": (zip_again(lambda entries: {**entries, "model/more.py": b""}), "model/more.py: is not recorded"),
    "removed": (
        zip_again(lambda entries: {name: data for name, data in entries.items() if name != "model/labels.py"}),
        "model/labels.py: is recorded",
    ),
    "renamed": (zip_again(rename), "model/labels.py: is recorded"),
    "reordered": (
        zip_again(lambda entries: dict(reversed(entries.items()))),
        "stands where|entries stand in another order",
    ),
    "flipped in a header": (flip_bytes(lambda content: 10), "its header in the zip|bytes beside their content"),
    "flipped in the directory": (flip_bytes(lambda content: len(content) - 1), "directory|bytes beside their content"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_tampering_is_named_from_outside_and_refused_by_a_worker(
    kind: str, store: Path, server: ServerState, folder: StateFolder
) -> None:
    spoil, message = SPOILT[kind]
    mar = store / f"{kind.replace(' ', '_')}.mar"
    mar.write_bytes((store / "next.mar").read_bytes())
    spoil(mar)
    with pytest.raises(ArchiveError, match=message):
        verify_archive(mar)
    hidden = (store / "next.mar").rename(store / "next.hidden")  # so that no whole archive of this version is there
    try:
        status, said = register(server, folder, mar.name)
    finally:
        hidden.rename(store / "next.mar")
        mar.unlink()
    assert status == 500, said
    with management_client(server, folder) as management:
        assert [model.model_version for model in management.describe_all("imgcls")] == ["1.0"]
    report = json.loads(imgcls("status", "--state", folder.path, "--json"))
    [refused] = [version for version in report["versions"] if version["version"] == "2.0"]
    assert any(part in str(refused["problem"]) for part in message.split("|")), refused


def test_data_that_does_not_fit_its_checksum_is_refused_by_torchserve_itself(
    store: Path, server: ServerState, folder: StateFolder
) -> None:
    mar = store / "checksum.mar"
    mar.write_bytes((store / "next.mar").read_bytes())
    flip_bytes(first_data)(mar)
    with pytest.raises(ArchiveError, match=r"MAR-INF/MANIFEST\.json"):
        verify_archive(mar)
    status, _ = register(server, folder, mar.name)
    assert status >= 400
    mar.unlink()


def test_the_whole_archive_is_served_beside_the_first(store: Path, server: ServerState, folder: StateFolder) -> None:
    """So that the refusals above mean something."""
    status, said = register(server, folder, "next.mar")
    assert status == 200, said


def register(server: ServerState, folder: StateFolder, file: str) -> tuple[int, str]:
    """Registers an archive of the store as one more version, and waits for its worker."""
    with management_client(server, folder) as management:
        parameters = {"url": file, "initial_workers": "1", "synchronous": "true"}
        answer = management._session.post(f"{server.management_url}/models", params=parameters, timeout=90)
        return answer.status_code, answer.text


def imgcls(*arguments: object) -> str:
    command = [sys.executable, "-m", "imgcls.cli.main", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
