"""What the tests of scanning share: archives made by hand, byte by byte where zipfile would not write them."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from imgcls.archive.scanning import Scanner, ScanReport, scan_archive, second_opinion

MANIFEST = {
    "createdOn": "01/01/2026 00:00:00",
    "runtime": "python",
    "model": {
        "modelName": "m",
        "serializedFile": "weights.safetensors",
        "handler": "handler.py",
        "modelVersion": "1.0",
    },
    "archiverVersion": "0.12.0",
}
TENSORS = {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
HANDLER = b"class Handler:\n    def handle(self, data, context):\n        return data\n"

Content = bytes | str
MakeArchive = Callable[..., Path]
Scan = Callable[..., ScanReport]


def tensors(header: object = TENSORS, data: bytes = bytes(8)) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def zip_bytes(files: Mapping[str, Content]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


class Shell:
    """A pickle of this runs a command when it is loaded."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, (self.command,)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file that exists once something of an archive has run; checked after each test that asks for it."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


@pytest.fixture
def evil_pickle(canary: Path) -> bytes:
    return pickle.dumps(Shell(f"touch {canary}"), protocol=2)


@pytest.fixture
def files() -> dict[str, Content]:
    """The files of a small honest archive; change them to make another."""
    return {
        "MAR-INF/MANIFEST.json": json.dumps(MANIFEST),
        "handler.py": HANDLER,
        "weights.safetensors": tensors(),
        "index_to_name.json": json.dumps({"0": "cat", "1": "dog"}),
    }


@pytest.fixture
def make_archive(tmp_path: Path, files: dict[str, Content]) -> MakeArchive:
    """make_archive({name: content}) -> a .mar of the honest files and these; None takes a file away."""

    def make(changes: Mapping[str, Content | None] | None = None, *, name: str = "m.mar") -> Path:
        merged = {**files, **(changes or {})}
        path = tmp_path / name
        path.write_bytes(zip_bytes({key: value for key, value in merged.items() if value is not None}))
        return path

    return make


@pytest.fixture
def scan(monkeypatch: pytest.MonkeyPatch) -> Scan:
    """scan_archive with a modelaudit that finds nothing: our own checks only, which take milliseconds."""
    silent = Scanner("modelaudit", "", "ran"), ()
    monkeypatch.setattr(second_opinion, "is_installed", lambda: True)
    monkeypatch.setattr(second_opinion, "ask_modelaudit", lambda archive, known, **_: silent)
    return scan_archive


@pytest.fixture
def scan_lightly(monkeypatch: pytest.MonkeyPatch) -> Scan:
    """scan_archive as on a light install, without modelaudit."""
    monkeypatch.setattr(second_opinion, "is_installed", lambda: False)
    return scan_archive


@pytest.fixture
def rules(scan: Scan) -> Callable[..., dict[tuple[str, str], str]]:
    """rules(mar) -> {(rule, path): severity} of our own checks."""

    def judge(mar: Path) -> dict[tuple[str, str], str]:
        return {(finding.rule, finding.path): str(finding.severity) for finding in scan(mar).findings}

    return judge
