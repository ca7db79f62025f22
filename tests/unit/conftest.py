"""What several unit tests share: runs made by hand, one built archive, a worker of it in this process, and train.py."""

import importlib.util
import io
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

import imgcls.archive.build  # noqa: F401 (here, as model_archiver leaves a file open while it is imported)
from imgcls.archive.contents import extract
from imgcls.archive.testing import ServedArchive, load_archive
from imgcls.cli.archive import app
from imgcls.cli.main import main
from model.labels import dump_labels
from model.network import build_network
from model.spec import ModelSpec, dump_spec

PROJECT = Path(__file__).parents[2]
COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
SPEC = ModelSpec(
    parameters={"widths": [3], "hidden": 3}, size=4, resize=4, mean=(0.0,) * 3, std=(1.0,) * 3, classes=tuple(COLORS)
)

Encode = Callable[..., bytes]
WriteRun = Callable[..., Path]
Load = Callable[..., ServedArchive]
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def encode() -> Encode:
    """encode(image or array, "PNG", **options) -> the bytes of a file."""

    def encode_image(image: Image.Image | np.ndarray, kind: str, **options: Any) -> bytes:
        buffer = io.BytesIO()
        (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
        return buffer.getvalue()

    return encode_image


@pytest.fixture(scope="session")
def write_run() -> WriteRun:
    """Writes a run, without training, that names the colour of a plain image; `change` may spoil its state dict."""

    def write(run: Path, *, spec: ModelSpec = SPEC, change: Callable[[dict[str, Tensor]], None] | None = None) -> Path:
        state = {name: torch.zeros_like(tensor) for name, tensor in build_network(spec).state_dict().items()}
        for index in range(min(3, spec.channels, len(spec.classes))):
            state["features.0.0.weight"][index, index, 1, 1] = 1.0
            state["classifier.1.weight"][index, 4 * index : 4 * index + 4] = 0.25
            state["classifier.4.weight"][index, index] = 5.0
        if change:
            change(state)
        (run / "golden").mkdir(parents=True)
        save_file(state, run / "weights.safetensors")
        (run / "spec.yaml").write_text(dump_spec(spec))
        (run / "index_to_name.json").write_text(dump_labels(spec.classes))
        Image.new("RGB", (8, 8), COLORS["blue"]).save(run / "golden" / "0.png")
        return run

    return write


@pytest.fixture(scope="session")
def color_run(tmp_path_factory: pytest.TempPathFactory, write_run: WriteRun) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "colors")


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory, color_run: Path) -> Path:
    """colors.mar 1.5, built with the command from the run of colours; read only."""
    store = tmp_path_factory.mktemp("archives") / "store"
    arguments = ["build", color_run, "--store", store, "--name", "colors", "--version", "1.5", "--workers", 2]
    result = CliRunner().invoke(app, [str(value) for value in arguments], catch_exceptions=False)
    assert "colors 1.5, golden inputs answered right\n" in result.stdout
    return store / "colors.mar"


@pytest.fixture(scope="session")
def unpacked(tmp_path_factory: pytest.TempPathFactory, archive: Path) -> Path:
    """The archive as TorchServe unpacks it; read only, copy it to change it."""
    folder = tmp_path_factory.mktemp("unpacked") / "colors"
    extract(archive, folder=folder)
    return folder


@pytest.fixture(scope="session")
def unchecked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a server that checks no archive: for archives that a test has changed."""
    trust = tmp_path_factory.mktemp("trust") / "trust.yaml"
    trust.write_text("policy: off")
    return {"IMGCLS_TRUST": str(trust)}


@pytest.fixture
def load(unchecked: dict[str, str]) -> Iterator[Load]:
    """Loads an unpacked archive, unchecked, until the test ends."""
    with ExitStack() as stack:
        yield lambda folder, **options: stack.enter_context(load_archive(folder, environment=unchecked, **options))


@pytest.fixture(scope="session")
def served(archive: Path) -> Iterator[ServedArchive]:
    """The archive of colours, as a worker has it."""
    with load_archive(archive, batch_size=16) as served:
        yield served


@pytest.fixture(autouse=True)
def _keep_process_state() -> Any:
    """Puts back what a worker or a training run sets for its whole process."""
    threads, level = torch.get_num_threads(), logging.getLogger().level
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(is_deterministic)
    logging.getLogger().setLevel(level)


@pytest.fixture(scope="session")
def train() -> ModuleType:
    """train.py as a module; `train.main(arguments)` trains in this process."""
    spec = importlib.util.spec_from_file_location("train", PROJECT / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def train_command() -> Callable[..., subprocess.Popen]:
    """Starts train.py in a process of its own."""

    def start(*arguments: object) -> subprocess.Popen:
        command = [sys.executable, str(PROJECT / "train.py"), *map(str, arguments), "--threads", "1"]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("IMGCLS_")}
        # Ignored where a shell runs the tests in the background, and a child inherits that.
        previous = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=PROJECT, env=environment)
        finally:
            signal.signal(signal.SIGINT, previous)

    return start


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder a colour of 12 noisy images each, 8 x 8 pixels; read only, copy it to change it."""
    root, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name, color in COLORS.items():
        (root / name).mkdir()
        for number in range(12):
            noise = random.integers(-60, 60, (8, 8, 3)) + np.array(color) * 0.5 + 60
            Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(root / name / f"{number:02}.png")
    return root


@pytest.fixture(scope="session")
def train_photos(train: ModuleType, photos: Path) -> Callable[..., int]:
    """train_photos(out, "--lr", 0.1, …) -> exit status, in this process, one epoch unless told."""

    def run(out: Path, *arguments: object, data: Path = photos, epochs: int = 1) -> int:
        settings: Sequence[object] = ("--data", data, "--out", out, "--epochs", epochs, "--batch-size", 8, *arguments)
        return train.main([str(value) for value in settings])

    return run


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """command("archive", "sign", …) -> exit status, stdout, stderr of imgcls."""
    monkeypatch.setattr("signal.signal", lambda number, action: None)
    monkeypatch.delenv("IMGCLS_TRUST", raising=False)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["imgcls", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run
