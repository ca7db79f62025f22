"""`imgcls predict`, with a client that answers from memory."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner, Result

from imgcls.cli.main import app, main
from imgcls.client import Client, Prediction, RankedClass
from imgcls.client.errors import ConnectionFailedError
from imgcls.client.files import IMAGE_SUFFIXES
from imgcls.data import listing
from imgcls.errors import ClientError
from imgcls.gateway.folder import GatewayFolder, SupervisorState
from imgcls.gateway.settings import Settings
from imgcls.gateway.table import Model, Version

URL = ["--url", "http://127.0.0.1:9"]


@pytest.fixture(autouse=True)
def _answer_from_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def predict(self: Client, data: bytes, top_k: int = 5) -> Prediction:
        if data == b"gone":
            raise ConnectionFailedError("no connection")
        return Prediction("imgcls", "1.0", (RankedClass(data.decode(), 0, 1.0),))

    monkeypatch.setattr(Client, "predict", predict)


def run_predict(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["predict", *map(str, arguments)])


def test_folder_stands_for_its_image_files_sorted(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "notes.txt", "c.webp"):
        (tmp_path / name).write_text(name)
    (tmp_path / "folder.png").mkdir()
    result = run_predict(tmp_path, tmp_path / "notes.txt", *URL)
    assert result.exit_code == 0
    files = [Path(line.split(": ")[0]).name for line in result.stdout.splitlines()]
    assert files == ["a.JPG", "b.png", "c.webp", "notes.txt"]


def test_folder_without_an_image_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    result = run_predict(tmp_path, *URL)
    assert isinstance(result.exception, ClientError) and "no image file in this folder" in str(result.exception)


def test_image_files_are_those_that_training_reads() -> None:
    assert IMAGE_SUFFIXES == listing.IMAGE_SUFFIXES


def test_json_holds_what_was_answered_before_the_connection_broke(tmp_path: Path) -> None:
    for name, data in (("1.png", "three"), ("2.png", "gone"), ("3.png", "four")):
        (tmp_path / name).write_text(data)
    result = run_predict(tmp_path, "--json", *URL)
    assert isinstance(result.exception, ConnectionFailedError)
    (answer,) = json.loads(result.stdout)
    assert (answer["file"], answer["predictions"][0]["label"]) == (str(tmp_path / "1.png"), "three")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_name_that_the_terminal_cannot_show_stops_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    names = [os.fsdecode(b"\xff.png"), "\u732b.png"]
    for name in names:
        (tmp_path / name).write_text("cat")
    shown = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    monkeypatch.setattr("sys.stdout", shown)
    monkeypatch.setattr("sys.argv", ["imgcls", "predict", *(str(tmp_path / name) for name in names), *URL])
    monkeypatch.setattr("signal.signal", lambda number, action: None)
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert shown.buffer.getvalue().count(b".png: cat 1.0000\n") == 2


def test_behind_a_gateway_the_gateway_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Client, "predict", lambda self, data, top_k: Prediction(self.url + self._path, "2.0", ()))
    (tmp_path / "a.png").touch()
    own = psutil.Process()
    gateway = GatewayFolder(tmp_path / "state")
    gateway.prepare()
    gateway.write(
        SupervisorState(
            gateway_id="g",
            pid=own.pid,
            created_s=own.create_time(),
            url="http://127.0.0.1:9",
            sockets=tmp_path,
            settings=Settings(),
            trust=None,
        )
    )

    def predict_of(*names: str) -> Result:
        row = Version(version="2.0", archive="m.mar", tree_sha256="0" * 64, workers=1, weight=100)
        models = tuple(Model(name=name, default="2.0", versions=(row,)) for name in names)
        gateway.table.change(lambda table: table.model_copy(update={"models": models}))
        return run_predict(tmp_path / "a.png", "--json", "--state", gateway.state)

    (answer,) = json.loads(predict_of("birds").stdout)
    assert answer["model"] == "http://127.0.0.1:9/predictions/birds"
    assert "serves birds, cats; name one with --model" in str(predict_of("birds", "cats").exception)


def test_light_install_is_told_to_name_the_server(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    blocked = "import sys; sys.modules.update(dict.fromkeys(['psutil', 'torch', 'numpy', 'PIL']))"
    script = f"{blocked}; sys.argv[0] = 'imgcls'; from imgcls.cli.main import main; main()"

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", script, "predict", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    result = run(tmp_path / "a.jpg")
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert "psutil" in result.stderr and "give --url and --token" in result.stderr
    assert "nobody listens there" in run(tmp_path / "a.jpg", *URL).stderr
