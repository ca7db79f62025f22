import io
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from model_archiver.model_packaging_utils import ModelExportUtils
from rich.console import Console
from typer.testing import CliRunner

from handler.layout import EARLIEST
from imgcls.archive import contents
from imgcls.archive.describe import describe_archive
from imgcls.archive.keys import create_keys
from imgcls.archive.pack import pack_tree, write_manifest
from imgcls.archive.signing import sign_archive, signer_with_key
from imgcls.cli.archive.inspect import build_screen, print_screen
from imgcls.cli.main import app
from imgcls.errors import ArchiveError
from model.engines.records import REFERENCE_RECORD, Comparison, EngineRecord, dump_records

Make = Callable[..., Path]
WEIGHTS = {"a": [2, 3], "b": [4]}
SCORES = {"samples": 500, "accuracy": 0.9, "loss": 0.25, "f1_macro": 0.89, "per_class": {}, "confusion": []}
COMPARISON = Comparison(
    compared_on="test",
    images=1269,
    largest_logit_difference=0.3125,
    top1_agreement=0.9931,
    top1_loss=0.001,
    probability_shift=0.01,
    accuracy=0.908,
    reference_accuracy=0.91,
)
QUANTISED = EngineRecord(
    engine="onnxruntime-int8",
    file="engines/onnxruntime-int8.onnx",
    reproducible=False,
    comparison=COMPARISON,
    status="accepted",
    reason="within its tolerance on test",
)
UNLABELLED = COMPARISON.model_copy(update={"accuracy": None, "reference_accuracy": None})
HALF = QUANTISED.model_copy(
    update={"engine": "compiled-fp16", "device": "cuda", "reproducible": True, "comparison": UNLABELLED}
)
REFUSED = EngineRecord(engine="openvino-int8", status="refused", reason="openvino is not installed")
ENGINES = [REFERENCE_RECORD, QUANTISED, HALF, REFUSED]
RECORD = {
    "code": {"git_commit": "7367eb9" + 33 * "a", "git_dirty": True},
    "data": {"source": "cifar10", "splits": {"train": {"files": 45000}, "test": {"files": 10000}}},
    "seed": 0,
    "versions": {"torch": "2.15.0"},
}


def make_weights(shapes: dict[str, list[int]]) -> bytes:
    """A safetensors file of zeros, by hand."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 4
        for side in shape:
            size *= side
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(end)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """make(**{path: content or None}) -> a verifiable archive of pets with these files more, or less."""

    def make_archive(**changes: bytes | str | None) -> Path:
        spec = {"network": "simple_cnn", "parameters": {"widths": [8]}, "channels": 3, "size": 8, "resize": 9}
        spec |= {"interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3, "classes": ["cat", "dog"]}
        files = {
            "spec.yaml": yaml.safe_dump(spec),
            "index_to_name.json": '{"0": "cat", "1": "dog"}',
            "model-config.yaml": "batchSize: 8\nhandler: {top_k: 5}\n",
            "weights.safetensors": make_weights(WEIGHTS),
            "metrics.json": json.dumps({"weights_sha256": "", "test_sets": {"clean": SCORES}}),
            "model/network.py": "x = 1\n",
        }
        tree, mar = tmp_path / "tree", tmp_path / "pets.mar"
        shutil.rmtree(tree, ignore_errors=True)
        mar.unlink(missing_ok=True)
        for path, content in (files | changes).items():
            if content is not None:
                (tree / path).parent.mkdir(parents=True, exist_ok=True)
                (tree / path).write_bytes(content.encode() if isinstance(content, str) else content)
        write_manifest(tree, name="pets", version="1.0", created=EARLIEST)
        pack_tree(tree, mar, created=EARLIEST)
        return mar

    return make_archive


def inspect(mar: Path, *arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["archive", "inspect", str(mar), *map(str, arguments)])
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def line_of(output: str, name: str) -> str:
    """The line of that name, continued lines joined."""
    [found] = re.findall(rf"^{name} +(.*(?:\n +.*)*)", output, re.MULTILINE)
    return " ".join(found.split())


def test_one_screen_tells_what_an_archive_is(make: Make):
    mar = make(**{"train_record.json": json.dumps(RECORD), "train_config.yaml": "data: x\nepochs: 10\n"})
    output = inspect(mar)
    assert output.startswith("pets 1.0")
    assert line_of(output, "network") == "simple_cnn(widths=[8]): 10 values in 2 tensors, F32"
    assert "RGB image, shorter side resized to 9 px" in line_of(output, "input")
    assert line_of(output, "classes") == "2: cat, dog"
    assert line_of(output, "engines") == "eager: the reference, which the others are compared with"
    assert line_of(output, "test sets") == "clean: images 500, accuracy 0.9000, loss 0.2500, F1 macro 0.8900"
    assert line_of(output, "settings") == "batchSize 8, handler.top_k 5"
    trained = "commit 7367eb9aaaaa, with changes that were not committed, epochs 10, seed 0, torch 2.15.0"
    assert line_of(output, "trained") == trained
    assert line_of(output, "data") == "cifar10: train 45,000 files, test 10,000 files"
    assert line_of(output, "verified") == "yes: every byte is as it was packed"
    assert line_of(output, "signed") == "no"
    assert f"{mar.stat().st_size:,} bytes: weights" in line_of(output, "size")


def test_hashes_are_those_of_the_tree_and_of_the_file(make: Make):
    from hashlib import sha256

    from imgcls.archive.verify import verify_archive

    mar = make()
    output = inspect(mar)
    assert line_of(output, "tree") == f"sha256 {verify_archive(mar).integrity.tree_sha256}"
    assert line_of(output, "file") == f"sha256 {sha256(mar.read_bytes()).hexdigest()}"


def test_engines_are_told_with_their_parity(make: Make):
    mar = make(**{"engines.json": dump_records(ENGINES)})
    assert line_of(inspect(mar), "engines") == (
        "eager: the reference, which the others are compared with "
        "onnxruntime-int8: 99.31% same answers on 1,269 images, logits within 0.31, accuracy 0.9080 (eager 0.9100), "
        "not reproducible "
        "compiled-fp16 on cuda: 99.31% same answers on 1,269 images, logits within 0.31 "
        "openvino-int8 (refused: openvino is not installed)"
    )
    assert json.loads(inspect(mar, "--json"))["engines"] == [record.model_dump() for record in ENGINES]


def test_six_engines_are_shown_and_more_are_counted(make: Make):
    assert "more, see --json" not in inspect(make(**{"engines.json": dump_records([REFUSED] * 6)}))
    assert "and 2 more, see --json" in inspect(make(**{"engines.json": dump_records([REFUSED] * 8)}))


def test_engine_of_another_format_is_named(make: Make):
    output = inspect(make(**{"engines.json": '[{"engine": "npu", "speed": 9, "comparison": 3}]'}))
    assert line_of(output, "engines") == "npu: its record is not one that this version of imgcls can read"


def test_screen_stays_a_screen_whatever_the_archive_holds(make: Make):
    many = {
        "index_to_name.json": json.dumps({str(index): f"class number {index}" for index in range(1000)}),
        "metrics.json": json.dumps({"weights_sha256": "", "test_sets": {f"set {n}": SCORES for n in range(30)}}),
        "engines.json": dump_records(ENGINES * 10),
        "train_record.json": json.dumps(RECORD),
        **{f"model/file_{number}.py": "x = 1\n" * number for number in range(50)},
    }
    mar = make(**many)
    lines = inspect(mar).splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 100
    assert "and 26 more, see --json" in inspect(mar)
    assert len(json.loads(inspect(mar, "--json"))["classes"]) == 1000


def test_what_an_archive_does_not_tell_is_said(make: Make):
    output = inspect(make(**{"metrics.json": None}))
    assert line_of(output, "test sets").startswith("none measured")
    assert (line_of(output, "trained"), line_of(output, "data")) == ("no commit recorded", "not recorded")


def test_changed_archive_is_shown_refused_and_exits_1(make: Make):
    mar = make()
    mar.write_bytes(mar.read_bytes().replace(b"x = 1\n", b"x = 2\n"))
    output = inspect(mar, code=1)
    assert line_of(output, "verified").startswith("NO: model/network.py: is not the file that was recorded")
    answer = json.loads(inspect(mar, "--json", code=1))
    assert answer["proof"]["verified"] is False and answer["name"] == "pets"


@pytest.mark.parametrize("path", ["spec.yaml", "weights.safetensors", "index_to_name.json", "model-config.yaml"])
def test_archive_of_ours_without_a_needed_file_is_refused_and_not_called_foreign(make: Make, tmp_path: Path, path: str):
    lacking = tmp_path / "lacking.mar"
    with zipfile.ZipFile(make()) as whole, zipfile.ZipFile(lacking, "w") as archive:
        for info in whole.infolist():
            if info.filename != path:
                archive.writestr(info, whole.read(info))
    output = inspect(lacking, code=1)
    assert "not ours" not in output
    assert line_of(output, "missing") == f"it holds no {path}"
    assert line_of(output, "verified").startswith(f"NO: {path}: is recorded in MAR-INF/integrity.json")
    answer = json.loads(inspect(lacking, "--json", code=1))
    assert answer["is_imgcls"] and answer["missing"] == [path]


def test_signer_is_a_claim_until_a_trust_file_says_otherwise(make: Make, tmp_path: Path):
    mar = make()
    for name in ("release", "other"):
        create_keys(name, tmp_path / "keys")
        (tmp_path / f"{name}.yaml").write_text(f"policy: signed\nkeys: [keys/{name}.pub]\n")
    sign_archive(mar, signer_with_key(tmp_path / "keys/release.key"))
    claimed = line_of(inspect(mar), "signed")
    assert claimed.startswith("says to be, by key ") and "not checked against trusted keys" in claimed
    assert "MAR-INF/integrity.json.sig" in claimed and "pets.mar.sig" in claimed
    assert line_of(inspect(mar, "--trust", tmp_path / "release.yaml"), "signed") == "by release, who is trusted"
    refused = line_of(inspect(mar, "--trust", tmp_path / "other.yaml", code=1), "signed")
    assert refused.startswith("NOT as demanded:") and "not trusted" in refused


def test_signature_of_other_content_is_called_so(make: Make, tmp_path: Path):
    mar = make()
    create_keys("release", tmp_path / "keys")
    sign_archive(mar, signer_with_key(tmp_path / "keys/release.key"))
    signature = (tmp_path / "pets.mar.sig").read_bytes()
    make(**{"model/network.py": "x = 3\n"})
    (tmp_path / "pets.mar.sig").write_bytes(signature)
    assert "pets.mar.sig, OF OTHER CONTENT" in line_of(inspect(mar), "signed")
    (tmp_path / "pets.mar.sig").write_bytes(b"junk")
    assert "no bundle of model-signing" in line_of(inspect(mar), "signed")


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """An archive as torch-model-archiver makes it of somebody's handler."""
    tree = tmp_path / "theirs"
    (tree / "MAR-INF").mkdir(parents=True)
    (tree / "handler.py").write_text("def handle(data, context):\n    return data\n")
    (tree / "model.pt").write_bytes(bytes(1000))
    (tree / "index_to_name.json").write_text('{"0": ["n01440764", "tench"]}')
    manifest = {"createdOn": "01/02/2023 00:00:00", "runtime": "python", "archiverVersion": "0.7.0"}
    manifest |= {"model": {"modelName": "theirs", "modelVersion": "2.0", "handler": "handler.py"}}
    manifest["model"]["serializedFile"] = "model.pt"
    ModelExportUtils.archive(str(tmp_path), "theirs", str(tree), json.dumps(manifest))
    return tmp_path / "theirs.mar"


def test_foreign_archive_is_described_and_not_refused(foreign: Path):
    output = inspect(foreign)
    assert output.startswith("theirs 2.0")
    assert "imgcls has not built it: it holds no model-config.yaml" in line_of(output, "not ours")
    assert line_of(output, "handler") == "handler.py"
    assert line_of(output, "model") == "serializedFile model.pt"
    assert line_of(output, "manifest") == "runtime python, createdOn 01/02/2023 00:00:00, archiverVersion 0.7.0"
    assert line_of(output, "classes") == "1: n01440764 tench"
    assert line_of(output, "verified").startswith("no:")
    assert line_of(output, "files").startswith("model.pt 1,000")


def test_foreign_archive_is_not_what_a_trust_file_demands(foreign: Path, tmp_path: Path):
    create_keys("release", tmp_path / "keys")
    (tmp_path / "trust.yaml").write_text("policy: signed\nkeys: [keys/release.pub]\n")
    inspect(foreign, "--trust", tmp_path / "trust.yaml", code=1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.mar", "there is no such archive"),
        ("", "is a folder"),
        ("text.mar", r"not a zip file); fetch it again, or build it with ./build_mar.sh RUN"),
        ("empty.mar", r"not a zip file); fetch it again, or build it with ./build_mar.sh RUN"),
    ],
)
def test_what_is_no_archive_is_one_line(tmp_path: Path, name: str, message: str):
    (tmp_path / "text.mar").write_text("text")
    (tmp_path / "empty.mar").touch()
    result = CliRunner().invoke(app, ["archive", "inspect", str(tmp_path / name)])
    assert isinstance(result.exception, ArchiveError)
    assert message in str(result.exception) and "\n" not in str(result.exception)


def test_entry_that_is_too_large_for_text_is_not_read_into_memory(make: Make, monkeypatch: pytest.MonkeyPatch):
    mar = make()
    monkeypatch.setattr(contents, "MAX_TEXT_BYTES", 10)
    with pytest.raises(ArchiveError, match=r"MANIFEST\.json has [0-9]+ bytes; expected at most 10"):
        describe_archive(mar)


@pytest.mark.parametrize("content", [b"", b"12345678", (2).to_bytes(8, "little") + b"[]", make_weights(WEIGHTS)[:30]])
def test_weights_that_are_no_safetensors_are_one_line(make: Make, content: bytes):
    with pytest.raises(ArchiveError, match=r"pets\.mar: cannot be read as a model archive") as caught:
        describe_archive(make(**{"weights.safetensors": content}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("metrics.json", {"test_sets": {"clean": True}}),
        ("metrics.json", {"test_sets": {"clean": [1]}}),
        ("train_record.json", {"code": True}),
        ("train_record.json", {"code": {"git_commit": 5}}),
        ("train_record.json", {"versions": 5}),
        ("train_record.json", {"data": {"source": "photos", "splits": {"train": None}}}),
        ("train_record.json", {"data": {"source": "photos", "splits": {"train": {"files": "five"}}}}),
    ],
)
def test_descriptions_of_another_shape_are_one_line_and_shown_as_json(make: Make, path: str, content: object):
    mar = make(**{path: json.dumps(content)})
    result = CliRunner().invoke(app, ["archive", "inspect", str(mar)])
    assert isinstance(result.exception, ArchiveError)
    assert "what it says of itself is not what imgcls writes" in str(result.exception)
    assert "it is as it was packed; --json" in str(result.exception) and "\n" not in str(result.exception)
    assert json.loads(inspect(mar, "--json"))["proof"]["verified"]


def test_colours_are_for_terminals_and_only_where_wanted(make: Make, monkeypatch: pytest.MonkeyPatch):
    description = describe_archive(make())

    def draw(*, is_terminal: bool) -> str:
        file = io.StringIO()
        console = Console(file=file, force_terminal=is_terminal, width=100, color_system="standard")
        print_screen(build_screen(description), console=console)
        return file.getvalue()

    assert "\x1b[32m" in draw(is_terminal=True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[32m" not in draw(is_terminal=True)


def test_pipe_gets_plain_lines(make: Make):
    command = [sys.executable, "-m", "imgcls.cli.main", "archive", "inspect", str(make())]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stderr == ""
    assert "\x1b" not in result.stdout
    assert all(line == line.rstrip() and len(line) <= 100 for line in result.stdout.splitlines())
