"""Archives of the kinds that TorchServe's examples build, made with torch-model-archiver: none of them is malicious."""

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from imgcls.archive.scanning import scan_archive

Rules = Callable[[Path], dict[tuple[str, str], str]]
Build = Callable[..., Path]

MODEL = "from torch import nn\n\n\nclass Net(nn.Linear):\n    def __init__(self):\n        super().__init__(4, 2)\n"
# The first lines of TorchServe's handlers are imports, which a naive reader takes for a pickle.
IMAGE_HANDLER = """import io
import base64
import torch
from torchvision import transforms
from ts.torch_handler.image_classifier import ImageClassifier


class DigitClassifier(ImageClassifier):
    image_processing = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])

    def postprocess(self, data):
        return data.argmax(1).tolist()
"""
TEXT_HANDLER = """import json
import logging
import os
import torch

logger = logging.getLogger(__name__)


class TextHandler:
    def initialize(self, context):
        folder = context.system_properties["model_dir"]
        self.model = torch.load(os.path.join(folder, "weights.pt"), weights_only=True)
        self.vocab = torch.load(os.path.join(folder, "source_vocab.pt"))

    def handle(self, data, context):
        return data
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    network = torch.nn.Linear(4, 2)
    torch.save(network.state_dict(), folder / "weights.pt")
    torch.save(network.state_dict(), folder / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save({"cat": 0}, folder / "source_vocab.pt")
    save_file(network.state_dict(), folder / "weights.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.script(network).save(str(folder / "script.pt"))
    (folder / "model.py").write_text(MODEL)
    (folder / "digit_handler.py").write_text(IMAGE_HANDLER)
    (folder / "own_text_handler.py").write_text(TEXT_HANDLER)
    (folder / "index_to_name.json").write_text(json.dumps({"0": "cat", "1": "dog"}))
    (folder / "requirements.txt").write_text("transformers==4.40.0\nnumpy>=1.20\n")
    (folder / "model-config.yaml").write_text("minWorkers: 1\nmaxWorkers: 4\nbatchSize: 2\n")
    return folder


@pytest.fixture
def build(inputs: Path, tmp_path: Path) -> Build:
    """build("--handler", "image_classifier", …) -> a .mar made by torch-model-archiver's command."""

    def archive(*arguments: str) -> Path:
        command = Path(sys.executable).with_name("torch-model-archiver")
        common = ["--model-name", "example", "--version", "1.0", "--export-path", str(tmp_path)]
        subprocess.run([str(command), *common, *arguments], cwd=inputs, check=True, capture_output=True)
        return tmp_path / "example.mar"

    return archive


def test_an_eager_model_with_its_own_handler_warns_of_its_pickle(build: Build, rules: Rules) -> None:
    mar = build("--model-file", "model.py", "--serialized-file", "weights.pt", "--handler", "digit_handler.py")
    assert rules(mar) == {("pickle", "weights.pt"): "warning"}


def test_a_built_in_handler_is_known(build: Build, rules: Rules) -> None:
    extra = ("--extra-files", "index_to_name.json", "--model-file", "model.py")
    mar = build("--serialized-file", "legacy.pt", "--handler", "image_classifier", *extra)
    assert rules(mar) == {("pickle", "legacy.pt"): "warning"}


def test_torchscript_is_a_warning(build: Build, rules: Rules) -> None:
    mar = build("--serialized-file", "script.pt", "--handler", "image_classifier")
    assert rules(mar) == {("torchscript", "script.pt"): "warning"}


def test_safetensors_with_a_configuration_pass(build: Build, rules: Rules) -> None:
    arguments = ("--handler", "digit_handler.py", "--config-file", "model-config.yaml")
    assert rules(build("--serialized-file", "weights.safetensors", *arguments)) == {}


def test_an_archive_stored_without_compression_passes(build: Build, rules: Rules) -> None:
    arguments = ("--handler", "digit_handler.py", "--archive-format", "zip-store")
    assert rules(build("--serialized-file", "weights.safetensors", *arguments)) == {}


def test_a_text_classifier_warns_of_each_pickle_and_of_loading_one(build: Build, rules: Rules) -> None:
    extra = ("--extra-files", "index_to_name.json,source_vocab.pt")
    mar = build("--serialized-file", "weights.pt", "--handler", "own_text_handler.py", *extra)
    assert rules(mar) == {
        ("pickle", "weights.pt"): "warning",
        ("pickle", "source_vocab.pt"): "warning",
        ("python-pickle", "own_text_handler.py"): "warning",
    }


def test_requirements_are_a_warning(build: Build, rules: Rules) -> None:
    arguments = ("--handler", "digit_handler.py", "--requirements-file", "requirements.txt")
    mar = build("--serialized-file", "weights.safetensors", *arguments)
    assert rules(mar) == {("requirements", "requirements.txt"): "warning"}


def test_modelaudit_agrees_on_an_eager_example(build: Build) -> None:
    """It takes the handler's two first imports for a pickle, and what follows for code in a model."""
    extra = ("--model-file", "model.py", "--extra-files", "index_to_name.json,source_vocab.pt")
    report = scan_archive(build("--serialized-file", "weights.pt", "--handler", "digit_handler.py", *extra))
    found = {(finding.rule, finding.path) for finding in report.findings if finding.is_blocking}
    assert found == {("pickle", "weights.pt"), ("pickle", "source_vocab.pt")}
    assert report.scanners[1].state == "ran"


def test_modelaudit_finds_nothing_critical_in_torchscript(build: Build) -> None:
    report = scan_archive(build("--serialized-file", "script.pt", "--handler", "image_classifier"))
    assert "critical" not in {str(finding.severity) for finding in report.findings}
    assert {finding.path.partition("!")[0] for finding in report.findings} <= {"", "script.pt"}
