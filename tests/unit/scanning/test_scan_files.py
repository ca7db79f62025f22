"""What is in the archive: by its bytes first, by its name second."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import handler
from imgcls.archive.libraries import find_imports
from imgcls.archive.scanning import ScanReport
from imgcls.archive.scanning.kinds import is_pickle

Rules = Callable[[Path], dict[tuple[str, str], str]]
Make = Callable[..., Path]
ELF, PE = b"\x7fELF\2\1\1" + bytes(200), b"MZ" + bytes(62) + b"PE\0\0" + bytes(100)
MACH_O, WASM = b"\xcf\xfa\xed\xfe" + bytes(100), b"\0asm\1\0\0\0"
PYC = b"\xa7\r\r\n" + bytes(12) + b"\xe3" + bytes(20)


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def safetensors(header: object, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize("content", [ELF, PE, MACH_O, WASM])
@pytest.mark.parametrize("name", ["weights.safetensors", "golden/0.png", "index_to_name.json", "model.pt"])
def test_compiled_code_under_another_name_is_critical(
    make_archive: Make, rules: Rules, name: str, content: bytes
) -> None:
    assert rules(make_archive({name: content}))["disguised-file", name] == "critical"


@pytest.mark.parametrize("name", ["engines/model.so", "libx.so.1.2", "x.dll", "x.pyd", "tool"])
def test_compiled_code_under_its_own_name_is_a_warning(make_archive: Make, rules: Rules, name: str) -> None:
    assert rules(make_archive({name: ELF})) == {("native-code", name): "warning"}


def test_a_library_by_name_alone_is_a_warning(make_archive: Make, rules: Rules) -> None:
    assert rules(make_archive({"x.so": b"not yet"})) == {("native-code", "x.so"): "warning"}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_known_by_its_bytes(evil_pickle: bytes, protocol: int) -> None:
    assert is_pickle(evil_pickle)
    assert is_pickle(pickle.dumps(np.float64(3), protocol=protocol))
    assert is_pickle(pickle.dumps(Path("x"), protocol=protocol)[:-1] + b"\xff and then anything")  # runs all the same


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"import os\nimport sys\n",  # an INST opcode with its two lines, to a naive reader
        b"from abc import ABC\nimport json\n",
        b"cat\ndog\nRabbit\n",  # a GLOBAL opcode, and a REDUCE that has nothing to reduce
        b"(cat\ndog\nice\n",
        b'{"0": "cat"}',
        b"\x80\x02 is how this text begins",
        bytes(range(256)),
        b"\x89PNG\r\n\x1a\n",
    ],
)
def test_other_files_are_no_pickles(text: bytes) -> None:
    assert not is_pickle(text)


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "index_to_name.json", "golden/0.png", "vocab.txt", "handler.py"]
)
def test_a_pickle_under_another_name_is_critical(
    make_archive: Make, rules: Rules, evil_pickle: bytes, name: str
) -> None:
    found = rules(make_archive({name: evil_pickle}))
    assert found["disguised-file", name] == "critical"
    assert found["pickle", name] == "warning"


@pytest.mark.parametrize("name", ["weights.pkl", "weights.pt", "weights.pth", "weights.bin", "weights"])
def test_a_pickle_under_its_own_name_is_a_warning(
    make_archive: Make, rules: Rules, evil_pickle: bytes, name: str
) -> None:
    assert rules(make_archive({name: evil_pickle})) == {("pickle", name): "warning"}


def test_a_pickle_in_a_zip_in_a_zip_is_found(make_archive: Make, rules: Rules, evil_pickle: bytes) -> None:
    found = rules(make_archive({"extra.zip": zipped({"a/deep.zip": zipped({"notes.txt": evil_pickle})})}))
    assert found["disguised-file", "extra.zip!a/deep.zip!notes.txt"] == "critical"
    assert found["nested-archive", "extra.zip"] == "warning"


def test_archives_deeper_than_three_are_not_judged(make_archive: Make, rules: Rules, evil_pickle: bytes) -> None:
    content = zipped({"evil": evil_pickle})
    for _ in range(3):
        content = zipped({"a": content})
    found = rules(make_archive({"a.zip": content}))
    assert found["not-judged", "a.zip!a!a!a"] == "warning"


def test_an_array_of_objects_is_a_pickle(make_archive: Make, rules: Rules) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}]), allow_pickle=True)
    assert rules(make_archive({"mean.npy": buffer.getvalue()})) == {("pickle", "mean.npy"): "warning"}
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    assert rules(make_archive({"mean.npy": buffer.getvalue()})) == {}


@pytest.mark.parametrize(
    "content",
    [
        safetensors({"w": {"dtype": "F32", "shape": [200], "data_offsets": [0, 8]}}, bytes(8)),
        safetensors({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(8) + b"hidden"),
        safetensors({"w": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}, bytes(16)),
        safetensors({n: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for n in "ab"}, bytes(8)),
        safetensors({"w": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
        safetensors({"w": {"dtype": "F32", "shape": [-2], "data_offsets": [0, -8]}}, b""),
        safetensors({"w": {"dtype": "F32", "shape": [2]}}, bytes(8)),
        safetensors({"__metadata__": {"a": 1}}, b""),
        safetensors(b'{"w": 1, "w": 2}', b""),
        safetensors(b"[1, 2, 3]", b""),
        safetensors(b"{", b""),
        b"\xff\xff\xff\xff\xff\xff\xff\x7f{}",
        b"",
        b"text",
    ],
)
def test_a_safetensors_header_that_lies_is_critical(make_archive: Make, rules: Rules, content: bytes) -> None:
    assert rules(make_archive({"weights.safetensors": content})) == {
        ("broken-tensors", "weights.safetensors"): "critical"
    }


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"__metadata__": {"format": "pt"}},
        {"a": {"dtype": "F4", "shape": [16], "data_offsets": [0, 8]}},
        {
            "b": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]},
            "e": {"dtype": "I64", "shape": [0], "data_offsets": [0, 0]},
        },
    ],
)
def test_honest_safetensors_pass(make_archive: Make, rules: Rules, header: dict[str, object]) -> None:
    data = bytes(8 if len(header) and "__metadata__" not in header else 0)
    assert rules(make_archive({"weights.safetensors": safetensors(header, data)})) == {}


def test_tensors_that_end_as_a_zip_are_critical(make_archive: Make, rules: Rules) -> None:
    code = zipped({"x.py": b"import os\nos.system('id')\n"})
    header = {"w": {"dtype": "U8", "shape": [len(code)], "data_offsets": [0, len(code)]}}
    found = rules(make_archive({"weights.safetensors": safetensors(header, code)}))
    assert found["disguised-file", "weights.safetensors"] == "critical"
    assert found["python-process", "weights.safetensors!x.py"] == "critical"


@pytest.mark.parametrize("name", ["sitecustomize.py", "sub/usercustomize.py", "x.pth"])
def test_what_python_runs_at_start_is_critical(make_archive: Make, rules: Rules, name: str) -> None:
    assert rules(make_archive({name: b"import sys\n"})) == {("startup-hook", name): "critical"}


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("requirements.txt", b"numpy\n", "requirements"),
        ("setup.py", b"", "install-hook"),
        ("pyproject.toml", b"", "install-hook"),
        ("run.sh", b"echo\n", "script"),
        ("run", b"#!/bin/sh\necho\n", "script"),
        ("__pycache__/handler.cpython-311.pyc", PYC, "bytecode"),
        ("handler2.pyc", b"short", "bytecode"),
        ("json.py", b"", "shadowed-module"),
        ("torch/__init__.py", b"", "shadowed-module"),
        ("lib.tar.gz", b"\x1f\x8b\x08" + bytes(20), "nested-archive"),
        ("lib.whl", zipped({"a": b"x"}), "nested-archive"),
    ],
)
def test_what_needs_a_decision_is_a_warning(
    make_archive: Make, rules: Rules, name: str, content: bytes, rule: str
) -> None:
    assert rules(make_archive({name: content})) == {(rule, name): "warning"}


def test_no_module_that_our_code_imports_from_elsewhere_may_stand_in_an_archive(
    make_archive: Make, rules: Rules
) -> None:
    """Some of them run before the worker checks the archive."""
    imports = find_imports(Path(str(handler.__file__)).parents[1])
    needed = imports.at_load | imports.later
    assert {"pydantic", "yaml", "torch"} <= needed
    needed |= {"annotated_types", "pydantic_core", "typing_inspection"}  # which pydantic imports then
    found = rules(make_archive({f"{name}.py": b"" for name in needed}))
    assert found == {("shadowed-module", f"{name}.py"): "warning" for name in needed}


def test_modules_in_packages_of_their_own_shadow_nothing(make_archive: Make, rules: Rules) -> None:
    assert rules(make_archive({"model/json.py": b"", "handler/__init__.py": b"", "torch_utils.py": b""})) == {}


@pytest.mark.parametrize(
    "tag", ["!!javax.script.ScriptEngineManager []", "!!python/object/apply:os.system ['id']", "!x 1"]
)
def test_yaml_that_creates_objects_is_critical(make_archive: Make, rules: Rules, tag: str) -> None:
    found = rules(make_archive({"model-config.yaml": f"handler:\n  a: {tag}\n"}))
    assert found == {("yaml-tag", "model-config.yaml"): "critical"}


def test_plain_yaml_passes_and_broken_yaml_needs_a_decision(make_archive: Make, rules: Rules) -> None:
    assert rules(make_archive({"model-config.yaml": "a: !!str 1\nb: [&x 1, *x]\n"})) == {}
    assert rules(make_archive({"a.yml": "a: [1"})) == {("not-judged", "a.yml"): "warning"}


def test_nothing_of_a_malicious_archive_runs(
    make_archive: Make, scan: Callable[..., ScanReport], evil_pickle: bytes, canary: Path
) -> None:
    """All of it at once; the fixture looks for the canary afterwards."""
    code = f"import os\nos.system('touch {canary}')\n".encode()
    names = ("handler.py", "sitecustomize.py", "x.pth", "setup.py", "model/__init__.py", "yaml.py", "zlib.py")
    pickles = ("a.pkl", "a.pt", "a.json", "a.npy", "weights.safetensors")
    changes = {**dict.fromkeys(names, code), **dict.fromkeys(pickles, evil_pickle)}
    changes["model-config.yaml"] = f"a: !!python/object/apply:os.system ['touch {canary}']\n"
    changes["nested.zip"] = zipped({"a.pkl": evil_pickle, "__main__.py": code})
    report = scan(make_archive(changes))
    assert {finding.path for finding in report.findings} >= {*names, *pickles, "model-config.yaml", "nested.zip!a.pkl"}
