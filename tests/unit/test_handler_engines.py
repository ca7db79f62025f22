import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from imgcls.archive.contents import extract
from imgcls.cli.archive import app
from model.engines.open_vino import has_bf16, open_core

WORKER = """
import json, logging, sys
from pathlib import Path
from types import SimpleNamespace
from handler.image_classifier import ImageClassifier

logging.basicConfig(level=logging.INFO)
folder, config = Path(sys.argv[1]), json.loads(sys.argv[2])
context = SimpleNamespace(
    system_properties={"model_dir": str(folder), "gpu_id": None},
    model_yaml_config=config,
    manifest=json.loads((folder / "MAR-INF/MANIFEST.json").read_text()),
    request_processor=[SimpleNamespace(get_request_properties=dict)],
    set_response_content_type=lambda index, text: None,
)
classifier = ImageClassifier()
classifier.initialize(context)
[answer] = classifier.handle([{"body": (folder / "golden/0.png").read_bytes()}], context)
best = json.loads(answer)["predictions"][0]["label"]
print(json.dumps({"best": best, "torch": "torch" in sys.modules, **classifier.describe()}))
"""


@pytest.fixture(scope="module")
def archive_with_engines(tmp_path_factory: pytest.TempPathFactory, color_run: Path) -> Path:
    """The archive of colours with every engine that auto builds, unpacked; read only."""
    folder = tmp_path_factory.mktemp("engines")
    arguments = ["build", color_run, "--store", folder / "store", "--name", "colors", "--engines", "auto"]
    result = CliRunner().invoke(app, [str(value) for value in arguments], catch_exceptions=False)
    assert "engine openvino-int8: within its tolerance on 1 golden image" in result.stderr
    extract(folder / "store" / "colors.mar", folder=folder / "colors")
    return folder / "colors"


def work(folder: Path, handler: dict[str, object]) -> subprocess.CompletedProcess[str]:
    """Starts a worker's handler in a process of its own, and lets it answer the golden input."""
    config = json.dumps({"batchSize": 4, "handler": handler})
    return subprocess.run(
        [sys.executable, "-P", "-c", WORKER, str(folder), config],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
    )


@pytest.mark.parametrize(
    ("wanted", "picked"),
    [("auto", "openvino-int8"), ("onnxruntime-int8",) * 2, ("onnxruntime",) * 2, ("openvino",) * 2],
)
def test_a_worker_runs_the_engine_of_its_configuration_without_torch(archive_with_engines, wanted, picked):
    result = work(archive_with_engines, {"engine": wanted, "threads": 1})
    said = json.loads(result.stdout)
    assert (said["best"], said["torch"]) == ("blue", False)
    assert (said["engine"], said["threads"], said["engines_passed_over"]) == (picked, 1, [])
    assert f"'engine': '{picked}'" in result.stderr
    assert said["engine_reason"] in result.stderr


def test_eager_still_serves_and_imports_torch(archive_with_engines):
    said = json.loads(work(archive_with_engines, {"engine": "eager"}).stdout)
    assert (said["best"], said["engine"], said["torch"]) == ("blue", "eager", True)


def test_a_damaged_engine_is_passed_over_loudly_or_stops_the_worker(tmp_path, archive_with_engines):
    folder = shutil.copytree(archive_with_engines, tmp_path / "colors")
    (folder / "engines" / "int8.onnx").write_bytes(b"damaged")
    result = work(folder, {"engine": "auto"})
    said = json.loads(result.stdout)
    assert (said["best"], said["engine"]) == ("blue", "openvino-bf16" if has_bf16(open_core()) else "openvino")
    passed_over = [text.split(":")[0] for text in said["engines_passed_over"]]
    assert passed_over == ["engine openvino-int8", "engine onnxruntime-int8"]
    assert "WARNING:model.engines.choose:passed over: engine openvino-int8: int8.onnx cannot be loaded" in result.stderr
    named = work(folder, {"engine": "openvino-int8"})
    assert named.returncode == 1
    assert "EngineError: engine openvino-int8: int8.onnx cannot be loaded: " in named.stderr.splitlines()[-1]


def test_a_worker_whose_engine_answers_otherwise_than_it_was_tested_does_not_start(tmp_path, archive_with_engines):
    folder = shutil.copytree(archive_with_engines, tmp_path / "colors")
    expected = folder / "golden" / "expected.json"
    items = json.loads(expected.read_text())
    items[0]["engines"]["openvino-int8"]["probability"] = 0.5
    expected.write_text(json.dumps(items))
    assert json.loads(work(folder, {"engine": "auto"}).stdout)["engine"] == "onnxruntime-int8"
    result = work(folder, {"engine": "openvino-int8"})
    assert "NumericError: engine openvino-int8: golden input 0.png: got probability" in result.stderr.splitlines()[-1]


def test_an_unknown_engine_is_named_with_the_known_ones(archive_with_engines):
    result = work(archive_with_engines, {"engine": "openvino-int4"})
    assert "model-config.yaml, handler: engine is 'openvino-int4'; expected auto or one of" in result.stderr
