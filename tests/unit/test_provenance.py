import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import psutil
import pytest
import typer
import yaml
from typer.testing import CliRunner

from handler.layout import EARLIEST
from imgcls.archive.origin import read_origin
from imgcls.archive.pack import pack_tree, write_manifest
from imgcls.archive.provenance import check_statement, write_provenance
from imgcls.archive.stage import ServingOptions, copy_package, describe_archive, stage_archive
from imgcls.checkout import GitState, hash_code
from imgcls.cli.provenance import provenance
from imgcls.errors import ArchiveError, UsageError
from imgcls.serving.errors import ManagementError
from imgcls.serving.ports import ports_from
from imgcls.serving.state import ServerState, StateFolder
from imgcls.training import record as training_record
from tests.support.http import Server

PROJECT = Path(__file__).parents[2]
SCORES = {"samples": 1234, "accuracy": 0.5, "precision_macro": 0.25, "recall_macro": 0.125, "f1_macro": 0.0625}
COMMIT = "c0ffee" * 6 + "beef"

app = typer.Typer()
app.command()(provenance)


def hash_weights(tree: Path) -> str:
    return hashlib.sha256((tree / "weights.safetensors").read_bytes()).hexdigest()


def make_statement(tree: Path, *, created: datetime | None = None) -> dict[str, Any]:
    code = hash_code(tree, ("model", "handler"))
    write_provenance(
        tree, name="colors", version="1.5", weights_sha256=hash_weights(tree), code_sha256=code, created=created
    )
    return json.loads((tree / "provenance.json").read_text())


def pack(tree: Path, target: Path) -> Path:
    """Packs the tree as it is; returns the archive."""
    write_manifest(tree, name="colors", version="1.5", created=EARLIEST)
    pack_tree(tree, target, created=EARLIEST)
    return target


def pack_with_provenance(tree: Path, target: Path) -> Path:
    make_statement(tree)
    return pack(tree, target)


def dependencies(statement: dict[str, Any], role: str) -> list[dict[str, Any]]:
    found = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    return [each for each in found if each["annotations"]["role"] == role]


def tell(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(each) for each in arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


@pytest.fixture(scope="session")
def trained(tmp_path_factory, train_photos) -> Path:
    """A run with metrics."""
    run = tmp_path_factory.mktemp("runs") / "trained"
    train_photos(run, "--seed", 7, "--lr", 0.125)
    metrics = {"weights_sha256": hash_weights(run), "test_sets": {"clean": SCORES | {"source": "/home/me/photos"}}}
    (run / "metrics.json").write_text(json.dumps(metrics))
    return run


@pytest.fixture
def make_tree(tmp_path) -> Callable[[Path, str], Path]:
    """Lays out of a run what a statement is made of."""

    def make(run: Path, name: str = "tree") -> Path:
        tree = tmp_path / name
        for package in ("model", "handler"):
            copy_package(PROJECT / package, tree / package)
        for file in run.iterdir():
            if file.suffix in {".json", ".yaml", ".safetensors"}:
                (tree / file.name).write_bytes(file.read_bytes())
        return tree

    return make


@pytest.fixture
def tree(make_tree, trained) -> Path:
    return make_tree(trained)


@pytest.fixture
def foreign(make_tree, color_run) -> Path:
    """A tree of weights from elsewhere: no record, no configuration, no metrics."""
    return make_tree(color_run, "foreign")


def test_it_is_an_in_toto_statement_about_the_weights_and_the_code(tree):
    statement = make_statement(tree)
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    assert statement["subject"] == [
        {"name": "weights.safetensors", "digest": {"sha256": hash_weights(tree)}},
        {"name": "model/ handler/", "digest": {"dirHash": hash_code(PROJECT, ("model", "handler"))}},
    ]


def test_it_says_which_data_which_code_and_which_numbers(tree):
    statement, record = make_statement(tree), json.loads((tree / "train_record.json").read_text())
    parameters = statement["predicate"]["buildDefinition"]["externalParameters"]
    assert parameters["model"] == {"name": "colors", "version": "1.5"}
    assert parameters["data"] == {"source": "photos0", "seed": 7}
    assert (parameters["training"]["lr"], parameters["training"]["seed"]) == (0.125, 7)
    splits = {each["annotations"]["split"]: each["digest"]["imgclsImages"] for each in dependencies(statement, "data")}
    assert splits == {name: split["sha256"] for name, split in record["data"]["splits"].items()}
    [code] = dependencies(statement, "training code")
    assert code["digest"]["dirHash"] == record["code"]["sha256"]
    locks = {each["name"]: each["digest"]["sha256"] for each in dependencies(statement, "training lock")}
    assert locks == record["code"]["locks"] != {}
    [metrics, rejections] = statement["predicate"]["runDetails"]["byproducts"]
    assert (rejections["name"], rejections["annotations"]["counts"]) == ("rejections.csv", {})
    assert metrics["annotations"]["testSets"]["clean"]["accuracy"] == 0.5
    assert metrics["digest"]["sha256"] == hashlib.sha256((tree / "metrics.json").read_bytes()).hexdigest()


def test_it_names_no_folder(tree, photos, trained):
    text = json.dumps(make_statement(tree))
    assert not [path for path in (photos.parent, trained.parent, PROJECT, "/home/me") if str(path) in text]


def test_no_folder_of_the_machine_leaves_the_run(trained, photos, tmp_path):
    run, tree, common = tmp_path / "run", tmp_path / "tree", {"name": "colors", "version": "1.5", "created": EARLIEST}
    shutil.copytree(trained, run)
    config = yaml.safe_load((run / "train_config.yaml").read_text()) | {"teacher": "/home/me/runs/tutor"}
    (run / "train_config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    tree.mkdir()
    stage_archive(run, tree, **common, options=ServingOptions())
    describe_archive(tree, **common, options=ServingOptions(), weights_sha256=hash_weights(tree))
    texts = [path.read_text() for path in tree.iterdir() if path.suffix in {".json", ".md", ".yaml"}]
    folders = (photos.parent, trained.parent, tmp_path, PROJECT, "/home/me")
    assert not [folder for folder in folders for text in texts if str(folder) in text]
    told = {"data": photos.name, "out": trained.name, "teacher": "tutor"}
    assert yaml.safe_load((tree / "train_config.yaml").read_text()) == config | told
    assert json.loads((tree / "metrics.json").read_text())["test_sets"] == {"clean": SCORES | {"source": "photos"}}
    assert yaml.safe_load((run / "train_config.yaml").read_text()) == config  # by which train.py repeats the run


@pytest.mark.parametrize(
    ("git", "digest", "notes"),
    [
        (GitState(COMMIT, False), {"gitCommit": COMMIT}, {"git": "clean"}),
        (GitState(COMMIT, True), {}, {"git": "dirty", "basedOnCommit": COMMIT}),
        (None, {}, {"git": "not recorded"}),
    ],
)
def test_a_commit_is_a_digest_of_the_code_only_where_the_code_is_the_commits(tree, monkeypatch, git, digest, notes):
    monkeypatch.setattr(training_record, "read_git", lambda: git)
    [code] = dependencies(make_statement(tree), "build code")
    assert code["digest"] == digest | {"dirHash": hash_code(PROJECT, ("imgcls",))}
    assert code["annotations"] == notes | {"role": "build code"}


def test_weights_from_elsewhere_are_told_as_not_recorded(foreign):
    definition = make_statement(foreign)["predicate"]["buildDefinition"]
    assert definition["externalParameters"]["data"] == definition["externalParameters"]["training"] == "not recorded"
    assert definition["internalParameters"] == {"train_record.json": "not recorded"}
    roles = {each["annotations"]["role"] for each in definition["resolvedDependencies"]}
    assert roles == {"build code", "build lock"}


def test_parent_weights_are_dependencies_by_their_hash(tmp_path, make_tree, trained, train_photos):
    train_photos(tmp_path / "run", "--weights", trained / "weights.safetensors")
    [parent] = dependencies(make_statement(make_tree(tmp_path / "run")), "parent weights")
    assert (parent["name"], parent["digest"]) == ("weights.safetensors", {"sha256": hash_weights(trained)})


def test_a_teacher_is_a_dependency_by_its_hash_and_told(tmp_path, make_tree, trained, train_photos):
    train_photos(tmp_path / "run", "--teacher", trained)
    tree = make_tree(tmp_path / "run")
    statement = make_statement(tree)
    [teacher] = dependencies(statement, "teacher weights")
    assert (teacher["name"], teacher["digest"]) == (trained.name, {"sha256": hash_weights(trained)})
    assert str(trained) not in json.dumps(statement)
    archive = pack_with_provenance(tree, tmp_path / "colors.mar")
    assert f"\nteacher    {trained.name} {hash_weights(trained)}\n" in tell(archive)
    assert json.loads(tell(archive, "--json"))["teacher"] == {"name": trained.name, "sha256": hash_weights(trained)}


def test_it_is_the_same_in_another_process_folder_umask_and_time_zone(make_tree, trained):
    one, other = make_tree(trained, "one"), make_tree(trained, "other")
    make_statement(one)
    script = (
        "import os, pathlib, sys; os.umask(0o077); from imgcls.archive.provenance import write_provenance; "
        "write_provenance(pathlib.Path(sys.argv[1]), name='colors', version='1.5', weights_sha256=sys.argv[2], "
        "code_sha256=sys.argv[3])"
    )
    command = [sys.executable, "-c", script, other, hash_weights(other), hash_code(other, ("model", "handler"))]
    environment = {"TZ": "Asia/Tokyo", "PYTHONHASHSEED": "7", "PYTHONPATH": str(PROJECT), "HOME": "/nowhere"}
    subprocess.run(command, cwd="/", env=environment, check=True)
    assert (other / "provenance.json").read_bytes() == (one / "provenance.json").read_bytes()


def test_it_has_a_time_only_where_one_is_given(tree):
    assert "metadata" not in make_statement(tree)["predicate"]["runDetails"]
    details = make_statement(tree, created=datetime(2020, 1, 2, 3, 4, 6, tzinfo=UTC))["predicate"]["runDetails"]
    assert details["metadata"] == {"finishedOn": "2020-01-02T03:04:06Z"}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda statement: statement.update(subject=[]),
        lambda statement: statement["subject"][0].pop("digest"),
        lambda statement: statement.update(_type="https://in-toto.io/Statement/v0.1"),
        lambda statement: statement["predicate"].update(metrics={}),
        lambda statement: statement["predicate"]["runDetails"].update(metadata={"finishedOn": "yesterday"}),
    ],
)
def test_what_is_no_statement_of_that_kind_is_refused_in_one_line(tree, spoil):
    statement = make_statement(tree)
    check_statement(statement)
    spoil(statement)
    with pytest.raises(ArchiveError, match="would be no in-toto statement with SLSA provenance") as caught:
        check_statement(statement)
    assert "\n" not in str(caught.value)


def test_the_command_tells_it_of_an_archive_on_one_screen(tree, tmp_path):
    archive = pack_with_provenance(tree, tmp_path / "colors.mar")
    record = json.loads((tree / "train_record.json").read_text())
    text = tell(archive)
    assert text.startswith(f"colors 1.5   {archive}\n")
    assert len(text.splitlines()) < 24
    for part in (
        read_origin(archive).tree_sha256,
        hash_weights(tree),
        "photos0, seed 7",
        f"26 images, 3 classes   {record['data']['splits']['train']['sha256']}",
        f"hash {record['code']['sha256'][:12]}",
        "lr 0.125",
        "none, random weights",
        "clean: accuracy 0.5000, precision 0.2500, recall 0.1250, F1 0.0625 on 1,234 images",
        f"torch {record['versions']['torch']}",
    ):
        assert part in text
    fields = json.loads(tell(archive, "--json"))
    assert fields["splits"]["train"]["fingerprint"] == record["data"]["splits"]["train"]["sha256"]
    assert (fields["test_sets"]["clean"]["accuracy"], fields["training"]["lr"], fields["served"]) == (0.5, 0.125, None)


@pytest.fixture(scope="session")
def private(tmp_path_factory, train_photos) -> Path:
    """A private run that was resumed with other code and other data."""
    run = tmp_path_factory.mktemp("runs") / "private"
    train_photos(run, "--dp-noise", 1, "--parameters", '{"widths": [3]}')
    record = json.loads((run / "train_record.json").read_text())
    changed = {"data": {"source": "other", "splits": {"train": {"sha256": "5ec2e7"}}}, "seed": 3}
    record["resumed"] = [{"first_epoch": 2, "first_step": 3, "changed": changed}]
    (run / "train_record.json").write_text(json.dumps(record))
    return run


def test_no_digest_of_a_private_runs_images_leaves_the_run_but_that_of_test(private, tmp_path):
    splits = json.loads((private / "train_record.json").read_text())["data"]["splits"]
    kept, left_out = splits["test"]["sha256"], [splits["train"]["sha256"], splits["val"]["sha256"], "5ec2e7"]
    (tmp_path / "tree").mkdir()
    tree, options = tmp_path / "tree", ServingOptions()
    common = {"name": "colors", "version": "1.5", "options": options, "created": EARLIEST}
    stage_archive(private, tree, **common)
    describe_archive(tree, **common, weights_sha256=hash_weights(tree))
    texts = {path.name: path.read_text() for path in tree.iterdir() if path.suffix in {".json", ".md", ".yaml"}}
    for name in ("train_record.json", "provenance.json", "sbom.cdx.json"):
        assert kept in texts[name]
    assert kept[:12] in texts["MODEL_CARD.md"]
    assert not [(name, each) for name, text in texts.items() for each in left_out if each[:12] in text]
    assert "| train | 26 | 3 | 8 to 9 | left out: the run is private |" in texts["MODEL_CARD.md"]
    assert splits["train"]["sha256"] in (private / "train_record.json").read_text()  # a link was not written into


def test_the_command_tells_of_a_private_run_how_many_images_it_had(private, make_tree, tmp_path):
    archive = pack_with_provenance(make_tree(private), tmp_path / "colors.mar")
    assert "26 images, 3 classes   fingerprint left out, as the run is private" in tell(archive)
    splits = json.loads(tell(archive, "--json"))["splits"]
    assert [name for name, split in splits.items() if split["fingerprint"] is None] == ["train", "val"]


def test_the_command_says_what_was_not_recorded(foreign, tmp_path):
    text = tell(pack_with_provenance(foreign, tmp_path / "colors.mar"))
    for label in ("data", "trained by", "training", "parent"):
        assert f"\n{label:<11}not recorded\n" in text
    assert "\ntest set   not measured\n" in text


def test_the_command_needs_no_torch(tree, tmp_path):
    archive = pack_with_provenance(tree, tmp_path / "colors.mar")
    blocked = "import sys; sys.modules.update(dict.fromkeys(['torch', 'torchvision', 'timm', 'numpy', 'PIL', "
    blocked += "'cyclonedx', 'in_toto_attestation', 'pydantic_settings', 'psutil'])); "
    script = "from pathlib import Path; from imgcls.cli.provenance import provenance; provenance(Path(sys.argv[1]))"
    command = [sys.executable, "-c", blocked + script, archive]
    shown = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("colors 1.5")


def rewrite(archive: Path, path: str, change: Callable[[bytes], bytes]) -> Path:
    """Replaces an entry; the zip itself stays sound."""
    with zipfile.ZipFile(archive) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    entries[path] = change(entries[path])
    with zipfile.ZipFile(archive, "w") as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return archive


@pytest.mark.parametrize(
    ("path", "change", "message"),
    [
        (
            "provenance.json",
            lambda data: data.replace(b"0.5", b"0.9"),
            "provenance.json is not the file that was recorded",
        ),
        ("MAR-INF/integrity.json", lambda data: data + b" ", "is not a record that imgcls wrote"),
    ],
)
def test_provenance_that_was_changed_after_packing_is_refused(tree, tmp_path, path, change, message):
    archive = rewrite(pack_with_provenance(tree, tmp_path / "colors.mar"), path, change)
    with pytest.raises(ArchiveError, match=message):
        read_origin(archive)


def test_an_archive_without_provenance_says_what_to_do(tree, tmp_path):
    pack(tree, tmp_path / "old.mar")
    with pytest.raises(ArchiveError, match=r"holds no provenance\.json; fetch it again, or build it with"):
        read_origin(tmp_path / "old.mar")
    with zipfile.ZipFile(tmp_path / "older.mar", "w") as file:
        file.writestr("MAR-INF/MANIFEST.json", "{}")
    with pytest.raises(ArchiveError, match=r"holds no MAR-INF/integrity\.json, so it was not packed by imgcls"):
        read_origin(tmp_path / "older.mar")


def test_provenance_of_other_weights_is_refused(tree, tmp_path):
    make_statement(tree)
    with (tree / "weights.safetensors").open("ab") as file:
        file.write(b"\0")
    pack(tree, tmp_path / "colors.mar")
    with pytest.raises(ArchiveError, match=r"provenance\.json is of other weights than it holds"):
        read_origin(tmp_path / "colors.mar")


class FakeTorchServe(Server):
    """Answers the management API's describe call; `held` is what a worker says that it holds."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.held: Any = None


class _Answer(BaseHTTPRequestHandler):
    server: FakeTorchServe

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        known = path in {"/models/colors", "/models/colors/1.5"}
        worker = {"id": "9000", "status": "READY", "pid": 1, "gpu": False}
        status: dict[str, Any] = {"modelName": "colors", "modelVersion": "1.5", "workers": [worker]}
        status |= {"minWorkers": 1, "maxWorkers": 1, "batchSize": 8, "maxBatchDelay": 2}
        if query == "customized=true" and self.server.held is not None:
            status["customizedMetadata"] = self.server.held
        body = json.dumps([status] if known else {"code": 404, "message": f"Model not found: {path}"}).encode()
        self.send_response(200 if known else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def served(tmp_path) -> Iterator[tuple[FakeTorchServe, Path, Path]]:
    """A server, its model store and its state folder."""
    server = FakeTorchServe()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    store, folder = tmp_path / "store", StateFolder(tmp_path / "state")
    store.mkdir()
    folder.prepare()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    folder.write(
        ServerState(
            server_id="x",
            pid=os.getpid(),
            created_s=psutil.Process().create_time(),
            ports=ports_from(9000),
            inference_url=url,
            management_url=url,
            token_required=False,
            archive=store / "colors.mar",
            model="colors",
            version="1.5",
            temporary=tmp_path,
        )
    )
    yield server, store, folder.path
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("as_text", [False, True])
def test_of_a_running_server_it_tells_the_archive_whose_content_the_workers_hold(served, tree, foreign, as_text):
    server, store, state = served
    pack_with_provenance(foreign, store / "colors.mar")  # built since, under the same name
    origin = read_origin(pack_with_provenance(tree, store / "kept.mar"))
    held = {"tree_sha256": origin.tree_sha256, "signer": "key release", "engine": "eager", "device": "cpu"}
    server.held = json.dumps(held) if as_text else held
    text = tell("--state", state)
    assert text.startswith(f"colors 1.5   {store / 'kept.mar'}\nserved     at http://127.0.0.1:")
    assert "signed by key release" in text and "photos0, seed 7" in text
    fields = json.loads(tell("--state", state, "--model", "colors", "--version", "1.5", "--json"))
    assert (fields["served"]["tree_sha256"], fields["data"]) == (origin.tree_sha256, "photos0, seed 7")


def test_it_refuses_when_no_archive_in_the_store_is_what_is_served(served, tree):
    server, store, state = served
    found = read_origin(pack_with_provenance(tree, store / "colors.mar")).tree_sha256
    (store / "junk.mar").write_bytes(b"junk")
    server.held = {"tree_sha256": "ab" * 32}
    message = (
        f"colors 1.5: its workers hold content abababababab, which .* \\(colors.mar is {found[:12]}, junk.mar is not"
    )
    with pytest.raises(ArchiveError, match=message):
        tell("--state", state)


@pytest.mark.parametrize("held", [None, {}, "no JSON", {"tree_sha256": None}, []])
def test_workers_that_do_not_say_what_they_hold_are_an_error(served, held):
    server, _, state = served
    server.held = held
    with pytest.raises(ManagementError, match="its workers do not tell which content they hold"):
        tell("--state", state)


def test_a_model_or_version_that_is_not_served_is_an_error(served):
    _, _, state = served
    for options in (("--model", "nope"), ("--version", "9")):
        with pytest.raises(ManagementError, match="Model not found"):
            tell("--state", state, *options)


def test_an_archive_and_a_served_version_are_not_asked_for_together(tmp_path):
    with pytest.raises(UsageError, match="give one or the other"):
        tell(tmp_path / "a.mar", "--version", "1")
