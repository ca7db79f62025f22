import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save
from typer.testing import CliRunner

from handler.layout import EARLIEST
from imgcls.archive.diff import PARTS, ArchiveDiff, diff_archives
from imgcls.archive.pack import pack_tree, write_manifest
from imgcls.archive.tensors import read_tensors
from imgcls.archive.tree import flatten
from imgcls.cli.main import app
from imgcls.errors import ArchiveError

Make = Callable[..., Path]
SPEC = {"network": "simple_cnn", "parameters": {"widths": [8]}, "size": 8, "resize": 9, "classes": ["cat", "dog"]}
SCORES = {"samples": 500, "accuracy": 0.9, "loss": 0.25, "f1_macro": 0.89, "per_class": {"cat": {}}, "confusion": [[1]]}
TENSORS = {"a": np.zeros((2, 3), np.float32), "b": np.ones(4, np.float32)}
RECORD = {"code": {"git_commit": "abc"}, "data": {"splits": {"train": {"sha256": "one"}}}}
ENGINE = {"engine": "onnxruntime-int8", "comparison": {"accuracy": 0.9}, "status": "accepted"}
EAGER = {"engine": "eager", "comparison": None, "status": "accepted"}


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """make("new", version="1.0", **{path: content or None}) -> an archive with these files changed."""

    def make_archive(name: str, *, version: str = "1.0", **changes: Any) -> Path:
        files = {
            "spec.yaml": SPEC,
            "index_to_name.json": {"0": "cat", "1": "dog"},
            "model-config.yaml": {"batchSize": 8, "handler": {"top_k": 5}},
            "weights.safetensors": save(TENSORS),
            "metrics.json": {"weights_sha256": "", "test_sets": {"clean": SCORES}},
            "train_config.yaml": {"epochs": 10},
            "train_record.json": RECORD,
            "sbom.cdx.json": {"components": [{"type": "library", "name": "torch", "version": "2.11"}]},
            "engines.json": [EAGER, ENGINE],
            "model/network.py": "x = 1\ny = 2\n",
            "golden/0.png": b"image",
            "MODEL_CARD.md": "# card\n",
        }
        tree, mar = tmp_path / f"{name}-tree", tmp_path / f"{name}.mar"
        shutil.rmtree(tree, ignore_errors=True)
        for path, content in (files | changes).items():
            if content is not None:
                (tree / path).parent.mkdir(parents=True, exist_ok=True)
                (tree / path).write_bytes(encode(path, content))
        write_manifest(tree, name="pets", version=version, created=EARLIEST)
        mar.unlink(missing_ok=True)
        pack_tree(tree, mar, created=EARLIEST)
        return mar

    return make_archive


def encode(path: str, content: Any) -> bytes:
    if isinstance(content, bytes):
        return content
    if isinstance(content, str):
        return content.encode()
    return (json.dumps(content) if path.endswith(".json") else yaml.safe_dump(content)).encode()


def changed_parts(diff: ArchiveDiff) -> set[str]:
    return {name for name in PARTS if getattr(diff, name)}


def show(old: Path, new: Path, *arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["archive", "diff", str(old), str(new), *arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


@pytest.mark.parametrize(
    ("changes", "part", "expected"),
    [
        ({"spec.yaml": SPEC | {"size": 9}}, "preprocessing", {"size": (8, 9)}),
        ({"spec.yaml": SPEC | {"network": "timm/x"}}, "network", {"network": ("simple_cnn", "timm/x")}),
        ({"spec.yaml": SPEC | {"parameters": {"widths": [9]}}}, "network", {"parameters.widths": ([8], [9])}),
        ({"model-config.yaml": {"batchSize": 8, "handler": {"top_k": 3}}}, "configuration", {"handler.top_k": (5, 3)}),
        ({"model-config.yaml": {"batchSize": 8}}, "configuration", {"handler.top_k": (5, None)}),
        ({"train_config.yaml": {"epochs": 11, "lr": 1}}, "training", {"epochs": (10, 11), "lr": (None, 1)}),
        ({"train_record.json": RECORD | {"code": {"git_commit": "d"}}}, "record", {"code.git_commit": ("abc", "d")}),
        ({"engines.json": [EAGER]}, "engines", {"onnxruntime-int8": (flatten(ENGINE), None)}),
        (
            {"sbom.cdx.json": {"components": [{"type": "library", "name": "torch", "version": "2.12"}]}},
            "libraries",
            {"torch": ("2.11", "2.12")},
        ),
        (
            {"metrics.json": {"test_sets": {"clean": SCORES | {"accuracy": 0.95}}}},
            "metrics",
            {"clean.accuracy": (0.9, 0.95)},
        ),
    ],
)
def test_each_change_is_told_where_it_belongs(make: Make, changes: dict[str, Any], part: str, expected: dict[str, Any]):
    diff = diff_archives(make("old"), make("new", **changes))
    assert getattr(diff, part) == expected
    assert changed_parts(diff) == {part} | ({"papers"} if part == "libraries" else set())
    assert not diff.is_same_content


def test_a_new_version_number_is_a_change_of_the_model(make: Make):
    diff = diff_archives(make("old"), make("new", version="1.1"))
    assert diff.model == {"model.modelVersion": ("1.0", "1.1")}
    assert (diff.old.version, diff.new.version) == ("1.0", "1.1")


def test_code_is_told_by_file_and_as_a_patch_on_demand(make: Make):
    new = {"model/network.py": "x = 1\ny = 3\n", "handler/more.py": "z = 1"}
    old = make("old", **{"handler/gone.py": "g = 1\n"})
    diff = diff_archives(old, make("new", **new))
    assert (diff.code.added, diff.code.removed) == (("handler/more.py",), ("handler/gone.py",))
    assert diff.code.changed == ("model/network.py",)
    assert diff.patch == ""
    patch = diff_archives(old, make("new", **new), with_patch=True).patch
    assert "--- a/model/network.py\n+++ b/model/network.py\n@@ -1,2 +1,2 @@\n x = 1\n-y = 2\n+y = 3\n" in patch
    assert "+z = 1\n\\ No newline at end of file\n" in patch and "-g = 1\n" in patch
    assert patch in show(old, make("new", **new), "--patch")


def test_weights_are_compared_tensor_by_tensor(make: Make):
    other = {"a": np.zeros((3, 2), np.float32), "b": np.full(4, 2, np.float32), "c": np.zeros((), np.int64)}
    diff = diff_archives(make("old"), make("new", **{"weights.safetensors": save(other)})).weights
    assert (diff.changed, diff.bytes_changed) == (("b",), 16)
    assert diff.reshaped == {"a": ("F32 2x3", "F32 3x2")}
    assert diff.added == {"c": "I64 scalar"} and diff.removed == {}
    assert (diff.tensors, diff.bytes_all) == (3, 24 + 16 + 8)
    back = diff_archives(make("new"), make("old", **{"weights.safetensors": save({"a": TENSORS["a"]})})).weights
    assert back.removed == {"b": "F32 4"} and back.changed == ()


def test_tensors_in_another_order_are_the_same_weights_in_other_bytes(make: Make):
    [a, b] = [TENSORS[name].tobytes() for name in "ab"]
    header = {
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [16, 40]},
        "b": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
    }
    text = json.dumps(header).encode()
    other = len(text).to_bytes(8, "little") + text + b + a
    diff = diff_archives(make("old"), make("new", **{"weights.safetensors": other}))
    assert not diff.weights
    assert diff.other.changed == ("weights.safetensors",)


def test_index_that_means_another_class_is_the_danger(make: Make):
    labels = {"0": "dog", "1": "cat", "2": "fish"}
    spec = SPEC | {"classes": list(labels.values())}
    old, new = make("old"), make("new", **{"index_to_name.json": labels, "spec.yaml": spec})
    diff = diff_archives(old, new)
    assert diff.labels.changed == {"0": ("cat", "dog"), "1": ("dog", "cat")}
    assert diff.labels.moved == {"cat": ("0", "1"), "dog": ("1", "0")}
    assert (diff.labels.added, diff.labels.removed) == ({"2": "fish"}, {})
    assert changed_parts(diff) == {"labels"}
    shown = show(old, new)
    assert "DANGER: 2 indices mean another class now" in shown and "index 0: cat -> dog" in shown


def test_class_that_is_added_at_the_end_is_no_danger(make: Make):
    shown = show(make("old"), make("new", **{"index_to_name.json": {"0": "cat", "1": "dog", "2": "fish"}}))
    assert "added    2: fish" in shown and "DANGER" not in shown


def test_file_that_says_the_same_in_other_bytes_is_not_called_the_same(make: Make):
    other_words = {
        "index_to_name.json": '{ "0": "cat",  "1": "dog" }',
        "metrics.json": {"test_sets": {"clean": SCORES}},
    }
    diff = diff_archives(make("old"), make("new", **other_words))
    assert changed_parts(diff) == {"other"}
    assert diff.other.changed == ("index_to_name.json", "metrics.json")


def test_golden_inputs_papers_and_other_files_are_told_by_name(make: Make):
    changes = {"golden/0.png": None, "golden/1.png": b"new", "MODEL_CARD.md": "# other", "engines/x.onnx": b"x"}
    diff = diff_archives(make("old"), make("new", **changes))
    assert (diff.golden.added, diff.golden.removed) == (("golden/1.png",), ("golden/0.png",))
    assert diff.papers.changed == ("MODEL_CARD.md",)
    assert diff.other.added == ("engines/x.onnx",)


def test_metrics_are_told_in_a_line_a_test_set_with_what_was_gained(make: Make):
    sets = {"clean": SCORES | {"accuracy": 0.95, "loss": 0.2}, "blurred": SCORES}
    shown = show(make("old"), make("new", **{"metrics.json": {"test_sets": sets}}))
    assert "clean: accuracy 0.9000 -> 0.9500 (+0.0500), loss 0.2500 -> 0.2000 (-0.0500)" in shown
    assert "blurred: images nothing -> 500, accuracy nothing -> 0.9000" in shown


def test_same_file_and_same_content_are_told_apart(make: Make, tmp_path: Path):
    old = make("old")
    assert "the same file, to the byte" in show(old, make("new"), "--exit-code")
    packed = tmp_path / "packed.mar"
    with zipfile.ZipFile(old) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
        target.writestr("MAR-INF/integrity.json.sig", "{}")
    shown = show(old, packed, "--exit-code")
    assert "every file is the same; the packing differs: MAR-INF/integrity.json.sig" in shown


def test_exit_code_is_0_unless_asked_for(make: Make):
    old, new = make("old"), make("new", version="2.0")
    show(old, new)
    show(old, new, "--exit-code", code=1)
    answer = json.loads(show(old, new, "--json"))
    assert answer["model"] == {"model.modelVersion": ["1.0", "2.0"]} and answer["is_same_content"] is False
    assert "unchanged  code, weights" in " ".join(show(old, new).split("\n")[-3:])


def test_foreign_archives_are_compared_too(make: Make, tmp_path: Path):
    theirs = tmp_path / "theirs.mar"
    with zipfile.ZipFile(theirs, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": {"modelName": "theirs", "handler": "h.py"}}))
        archive.writestr("h.py", "def handle(data, context): ...\n")
        archive.writestr("model.pt", b"weights")
        archive.writestr("index_to_name.json", '{"0": ["n01", "tench"]}')
    diff = diff_archives(theirs, make("new"))
    assert diff.code.removed == ("h.py",) and diff.other.removed == ("model.pt",)
    assert set(diff.weights.added) == {"a", "b"}
    assert "h.py" in show(theirs, make("new"))


def test_long_lists_are_cut_for_people_only(make: Make):
    old, new = make("old"), make("new", **{f"model/file_{number}.py": "" for number in range(40)})
    assert "and 28 more, see --json" in show(old, new)
    assert len(json.loads(show(old, new, "--json"))["code"]["added"]) == 40


def test_damaged_archive_is_named(make: Make, tmp_path: Path):
    old, new = make("old"), make("new")
    new.write_bytes(new.read_bytes().replace(b"y = 2", b"y = 4"))
    with pytest.raises(ArchiveError, match=r"new\.mar: cannot be read .*Bad CRC-32 for file 'model/network.py'"):
        diff_archives(old, new)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, "not where it must be"),
        ({"a": {"dtype": "F32", "shape": [1]}}, "described wrongly"),
        ({"a": 5}, "described wrongly"),
        ([], "no JSON object"),
    ],
)
def test_header_that_is_not_safetensors_is_refused(header: Any, message: str):
    import io

    text = json.dumps(header).encode()
    with pytest.raises(ValueError, match=message):
        read_tensors(io.BytesIO(len(text).to_bytes(8, "little") + text + bytes(8)))


def test_bytes_behind_the_last_tensor_are_no_same_content(make: Make):
    with pytest.raises(ArchiveError, match=r"new\.mar: cannot be read .* bytes follow its last tensor"):
        diff_archives(make("old"), make("new", **{"weights.safetensors": save(TENSORS) + b"more"}))


def test_progress_is_told_byte_by_byte(make: Make):
    told: list[int] = []
    old, new = make("old", **{"weights.safetensors": save({"a": np.zeros(2_000_000, np.float32)})}), make("new")
    diff_archives(old, new, on_bytes=told.append)
    assert max(told) <= 1 << 20
    assert sum(told) == pytest.approx(2 * (old.stat().st_size + new.stat().st_size), rel=0.01)
