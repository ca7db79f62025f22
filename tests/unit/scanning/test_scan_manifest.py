"""What TorchServe would load, by the manifest."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ts

from imgcls.archive.scanning.manifest import BUILT_IN_HANDLERS

Rules = Callable[[Path], dict[tuple[str, str], str]]
Make = Callable[..., Path]
PATH = "MAR-INF/MANIFEST.json"


def manifest(**model: Any) -> str:
    return json.dumps({"runtime": "python", "model": {"modelName": "m", "modelVersion": "1.0", **model}})


@pytest.mark.parametrize(
    "handler",
    ["handler.py", "handler", "handler:handle", "/home/user/handler.py:handle", "pkg.entry", "pkg", "image_classifier"],
)
def test_a_handler_in_the_archive_or_of_torchserve_passes(make_archive: Make, rules: Rules, handler: str) -> None:
    changes = {PATH: manifest(handler=handler), "pkg/__init__.py": b"", "pkg/entry.py": b""}
    assert rules(make_archive(changes)) == {}


@pytest.mark.parametrize("handler", ["os:system", "missing.py", "subprocess", "handler.py.py", "", "pkg.missing"])
def test_a_handler_from_elsewhere_is_critical(make_archive: Make, rules: Rules, handler: str) -> None:
    found = rules(make_archive({PATH: manifest(handler=handler), "pkg/__init__.py": b""}))
    assert found == {("foreign-handler", PATH): "critical"}


def test_the_built_in_handlers_are_those_of_torchserve() -> None:
    modules = {file.stem for file in (Path(ts.__file__).parent / "torch_handler").glob("*.py")}
    assert modules - {"__init__", "contractions"} == BUILT_IN_HANDLERS


def test_an_archive_without_a_manifest_is_critical(make_archive: Make, rules: Rules) -> None:
    assert rules(make_archive({PATH: None})) == {("missing-manifest", PATH): "critical"}


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "{}", "7", "null", '"model"', '{"model": []}', '{"model": {"modelName": "m"}}', "[" * 100_000),
        *(manifest(handler=7), '{"model": {"handler": "handler.py"}}', b"\xff\xfe"),
    ],
)
def test_a_broken_manifest_is_critical(make_archive: Make, rules: Rules, text: str | bytes) -> None:
    assert rules(make_archive({PATH: text})) == {("broken-manifest", PATH): "critical"}


@pytest.mark.parametrize("key", ["serializedFile", "modelFile", "requirementsFile", "configFile"])
def test_a_file_that_the_manifest_names_and_nobody_packed_is_a_warning(
    make_archive: Make, rules: Rules, key: str
) -> None:
    assert rules(make_archive({PATH: manifest(handler="handler.py", **{key: "gone.x"})})) == {
        ("missing-file", PATH): "warning"
    }


def test_requirements_under_another_name_are_a_warning(make_archive: Make, rules: Rules) -> None:
    changes = {PATH: manifest(handler="handler.py", requirementsFile="needs.txt"), "needs.txt": "numpy\n"}
    assert rules(make_archive(changes)) == {("requirements", "needs.txt"): "warning"}


def test_a_workflow_is_a_warning(make_archive: Make, rules: Rules) -> None:
    workflow = json.dumps({"workflow": {"workflowName": "w", "specFile": "w.yaml", "handler": "handler.py"}})
    assert rules(make_archive({PATH: workflow}))["workflow-archive", PATH] == "warning"
    assert rules(make_archive(name="m.war")) == {("workflow-archive", ""): "warning"}
