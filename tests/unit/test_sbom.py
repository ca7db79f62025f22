import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from imgcls.archive.libraries import find_imports, resolve
from imgcls.archive.sbom import check_sbom, write_sbom
from imgcls.archive.stage import copy_package
from imgcls.checkout import hash_code
from imgcls.errors import ArchiveError
from model.engines.records import REFERENCE_RECORD, EngineRecord, dump_records
from model.spec import dump_spec, read_spec

PROJECT = Path(__file__).parents[2]
SCORES = {"samples": 1234, "accuracy": 0.5, "precision_macro": 0.25, "recall_macro": 0.125, "f1_macro": 0.0625}


def hash_weights(tree: Path) -> str:
    return hashlib.sha256((tree / "weights.safetensors").read_bytes()).hexdigest()


def make_sbom(tree: Path, **options: object) -> dict:
    write_sbom(tree, name="colors", version="1.5", weights_sha256=hash_weights(tree), **options)
    return json.loads((tree / "sbom.cdx.json").read_text())


def libraries(sbom: dict, scope: str = "required") -> set[str]:
    return {component["name"] for component in sbom["components"] if component["scope"] == scope}


@pytest.fixture
def tree(tmp_path, write_run) -> Path:
    """What a staged tree has that a bill of materials is made of."""
    tree = write_run(tmp_path / "tree")
    for package in ("model", "handler"):
        copy_package(PROJECT / package, tree / package)
    return tree


@pytest.mark.parametrize("source", ["def (", "x = 1\0"])
def test_code_that_is_no_python_is_named(tree, source: str):
    (tree / "handler" / "odd.py").write_text(source)
    with pytest.raises(ArchiveError, match=r"handler/odd\.py: is no Python \(.*\); mend it") as caught:
        make_sbom(tree)
    assert "\n" not in str(caught.value)


def test_it_is_cyclonedx_of_the_model_with_its_files(tree):
    sbom = make_sbom(tree, license="Apache-2.0")
    assert (sbom["bomFormat"], sbom["specVersion"]) == ("CycloneDX", "1.6")
    model = sbom["metadata"]["component"]
    assert (model["type"], model["name"], model["version"]) == ("machine-learning-model", "colors", "1.5")
    assert model["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    hashes = {part["bom-ref"]: part["hashes"] for part in model["components"]}
    assert hashes == {
        "weights": [{"alg": "SHA-256", "content": hash_weights(tree)}],
        "code": [{"alg": "SHA-256", "content": hash_code(tree, ("model", "handler"))}],
    }


def test_the_model_card_has_data_inputs_metrics_and_limits(tmp_path, tree, train_photos):
    train_photos(tmp_path / "run")
    for file in ("weights.safetensors", "spec.yaml", "train_record.json"):
        (tree / file).write_bytes((tmp_path / "run" / file).read_bytes())
    metrics = {"weights_sha256": hash_weights(tree), "test_sets": {"clean": SCORES}}
    (tree / "metrics.json").write_text(json.dumps(metrics))
    card = make_sbom(tree)["metadata"]["component"]["modelCard"]
    parameters = card["modelParameters"]
    assert (parameters["task"], parameters["modelArchitecture"]) == ("image classification", "simple_cnn")
    record = json.loads((tmp_path / "run" / "train_record.json").read_text())
    fingerprints = {
        split["sha256"]: next(
            each["contents"]["properties"] for each in parameters["datasets"] if each["name"].endswith(f", {name}")
        )
        for name, split in record["data"]["splits"].items()
    }
    assert len(fingerprints) == 3
    for sha256, properties in fingerprints.items():
        assert {"name": "imgcls:images_sha256", "value": sha256} in properties
    assert parameters["inputs"][0]["format"].startswith("RGB image, shorter side resized to 8 px")
    assert {"type": "accuracy", "value": "0.5", "slice": "clean"} in card["quantitativeAnalysis"]["performanceMetrics"]
    assert any("one of its classes" in limit for limit in card["considerations"]["technicalLimitations"])


@pytest.mark.parametrize(
    ("license", "expected"),
    [
        (None, None),
        ("MIT OR Apache-2.0", [{"expression": "MIT OR Apache-2.0"}]),
        ("ask the owner", [{"license": {"name": "ask the owner"}}]),
    ],
)
def test_a_licence_may_be_an_expression_words_or_nothing(tree, license, expected):
    assert make_sbom(tree, license=license)["metadata"]["component"].get("licenses") == expected


def test_it_lists_what_the_code_needs_with_all_that_this_requires(tree):
    sbom = make_sbom(tree)
    required = libraries(sbom)
    assert {
        "torch",
        "numpy",
        "pillow",
        "pydantic",
        "pyyaml",
        "safetensors",
        "torchserve",
        "psutil",
        "sympy",
    } <= required
    assert not {"timm", "torchvision", "scikit-learn", "cyclonedx-python-lib", "pytest", "onnxruntime"} & required
    assert "model-signing" in libraries(sbom, "optional")  # for the policy `signed` only
    for component in sbom["components"]:
        version = importlib.metadata.version(component["name"])
        assert component["purl"] == component["bom-ref"] == f"pkg:pypi/{component['name']}@{version}"


def test_what_only_some_archives_need_is_listed_for_these(tree):
    spec = read_spec(tree / "spec.yaml").model_copy(update={"network": "timm/resnet18", "parameters": {}})
    (tree / "spec.yaml").write_text(dump_spec(spec))
    engines = [REFERENCE_RECORD]
    for engine, status in (("openvino-int8", "accepted"), ("onnxruntime", "refused")):
        engines.append(EngineRecord(engine=engine, status=status, reason="because"))
    (tree / "engines.json").write_text(dump_records(engines))
    sbom = make_sbom(tree)
    assert {"timm", "torchvision", "huggingface-hub", "openvino"} <= libraries(sbom)
    assert "onnxruntime" not in {component["name"] for component in sbom["components"]}


def test_every_library_hangs_together_with_the_model(tree):
    sbom = make_sbom(tree)
    graph = {entry["ref"]: set(entry.get("dependsOn", ())) for entry in sbom["dependencies"]}
    reached, waiting = set(), ["model"]
    while waiting:
        if (ref := waiting.pop()) not in reached:
            reached.add(ref)
            waiting += graph[ref]
    assert reached == {"model"} | {component["bom-ref"] for component in sbom["components"]}
    assert f"pkg:pypi/sympy@{importlib.metadata.version('sympy')}" not in graph["model"]  # torch's, not ours


def test_imports_are_told_apart_by_when_they_happen(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "handler").mkdir()
    (tmp_path / "model" / "a.py").write_text(
        "from typing import TYPE_CHECKING\nimport numpy.typing\nfrom model import b\nfrom . import c\n"
        "try:\n    import yaml\nexcept ImportError:\n    yaml = None\n"
        "if TYPE_CHECKING:\n    import requests\n"
        "class A:\n    import PIL\n    def f(self):\n        import timm\n        import yaml\n"
    )
    (tmp_path / "handler" / "b.py").write_text("def f():\n    from torchvision import models\n")
    imports = find_imports(tmp_path)
    assert imports.at_load == {"numpy", "yaml", "PIL"}
    assert imports.later == {"timm", "torchvision"}


def test_extras_markers_and_circles_are_followed_as_an_installer_does(tmp_path, monkeypatch):
    requirements = {
        "Lib_A": ["lib-b[x]", "lib-a[y]"],
        "lib-b": ["lib-c; extra == 'x'", "lib-d; extra == 'z'", "lib-e; sys_platform == 'nowhere'", "lib-gone"],
        "lib-c": ["lib.a"],
        "lib-d": [],
        "lib-e": [],
    }
    for name, needs in requirements.items():
        folder = tmp_path / f"{name.replace('-', '_')}-1.0.dist-info"
        folder.mkdir()
        lines = [
            "Metadata-Version: 2.4",
            f"Name: {name}",
            "Version: 1.0",
            *(f"Requires-Dist: {need}" for need in needs),
        ]
        (folder / "METADATA").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = {library.name: library.needs for library in resolve(["lib-a", "lib-gone"]).values()}
    assert found == {"lib-a": ("lib-b",), "lib-b": ("lib-c",), "lib-c": ("lib-a",)}


def test_it_is_the_same_in_another_process_folder_and_time_zone(tree, tmp_path):
    make_sbom(tree)
    expected = (tree / "sbom.cdx.json").read_bytes()
    script = "import sys, pathlib; from imgcls.archive.sbom import write_sbom; "
    script += "write_sbom(pathlib.Path(sys.argv[1]), name='colors', version='1.5', weights_sha256=sys.argv[2])"
    tree.rename(tmp_path / "moved")
    environment = {**os.environ, "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "7", "HOME": "/nowhere"}
    command = [sys.executable, "-c", script, tmp_path / "moved", hash_weights(tmp_path / "moved")]
    subprocess.run(command, cwd=PROJECT, env=environment, check=True)
    assert (tmp_path / "moved" / "sbom.cdx.json").read_bytes() == expected


def test_it_has_a_time_only_where_one_is_given_and_its_number_is_of_its_content(tree):
    plain, again = make_sbom(tree), make_sbom(tree)
    timed = make_sbom(tree, created=datetime(2020, 1, 2, 3, 4, 6, tzinfo=UTC))
    assert "timestamp" not in plain["metadata"]
    assert timed["metadata"]["timestamp"] == "2020-01-02T03:04:06Z"
    assert plain["serialNumber"] == again["serialNumber"] != timed["serialNumber"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda sbom: sbom["metadata"]["component"]["modelCard"].update(purpose="none"),
        lambda sbom: sbom["metadata"]["component"]["modelCard"]["modelParameters"]["approach"].update(type="guessing"),
        lambda sbom: sbom["components"][0].pop("name"),
        lambda sbom: sbom.update(serialNumber="1"),
        lambda sbom: sbom.update(more=1),
        lambda sbom: sbom["metadata"].update(timestamp="yesterday"),
        lambda sbom: sbom["components"][0].update(licenses=[{"license": {"id": "Free"}}]),
        lambda sbom: sbom["components"][0].update(externalReferences=[{"type": "website", "url": "http://a b"}]),
    ],
)
def test_what_is_not_cyclonedx_is_refused_in_one_line(tree, spoil):
    sbom = make_sbom(tree)
    check_sbom(json.dumps(sbom))
    strict = JsonStrictValidator(SchemaVersion.V1_6)
    assert strict.validate_str(json.dumps(sbom)) is None
    spoil(sbom)
    assert strict.validate_str(json.dumps(sbom)) is not None, "cyclonedx-python-lib's own validator agrees"
    with pytest.raises(ArchiveError, match=r"^sbom\.cdx\.json: would not be CycloneDX 1\.6: ") as caught:
        check_sbom(json.dumps(sbom))
    assert "\n" not in str(caught.value)
