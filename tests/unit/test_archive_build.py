import hashlib
import io
import json
import os
import re
import resource
import shutil
import stat
import subprocess
import sys
import threading
import time
import traceback
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from handler.integrity import INTEGRITY_FILE, FileRecord, dump_integrity, hash_file, make_integrity, parse_integrity
from imgcls.archive.build import build_archive
from imgcls.archive.contents import read_contents
from imgcls.archive.golden import read_golden
from imgcls.archive.prove import self_test
from imgcls.archive.publish import lock_store
from imgcls.archive.stage import ServingOptions, dump_model_config
from imgcls.cli.archive import app
from imgcls.errors import ArchiveError, UsageError
from model.errors import NumericError, SpecError, WeightsError

PROJECT = Path(__file__).parents[2]
SCORES = {"samples": 3, "accuracy": 0.5, "precision_macro": 0.5, "recall_macro": 0.5, "f1_macro": 0.5}


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def replace_file(folder: Path, path: str, text: str) -> None:
    """Changes a file of an unpacked archive, and its record to fit, as someone who builds archives could."""
    (folder / path).write_text(text)
    integrity = parse_integrity((folder / INTEGRITY_FILE).read_bytes())
    sizes = {file.path: (folder / file.path).stat().st_size for file in integrity.files}
    files = [FileRecord(name, size_bytes, hash_file(folder / name)) for name, size_bytes in sizes.items()]
    (folder / INTEGRITY_FILE).write_bytes(dump_integrity(make_integrity(files)))


def write_metrics(run: Path, *, weights_sha256: str | None = None, scores: dict | None = None) -> None:
    measured = weights_sha256 or hashlib.sha256((run / "weights.safetensors").read_bytes()).hexdigest()
    metrics = {"weights_sha256": measured, "test_sets": {"clean": SCORES if scores is None else scores}}
    (run / "metrics.json").write_text(json.dumps(metrics))


def test_an_archive_holds_what_serving_needs_and_nothing_else(archive: Path, color_run: Path):
    code = {str(file.relative_to(PROJECT)) for room in ("model", "handler") for file in (PROJECT / room).rglob("*.py")}
    with zipfile.ZipFile(archive) as file:
        assert set(file.namelist()) == code | {
            *("MAR-INF/MANIFEST.json", "model-config.yaml", "spec.yaml", "index_to_name.json", "weights.safetensors"),
            *(
                "golden/0.png",
                "golden/expected.json",
                "engines.json",
                "MODEL_CARD.md",
                "provenance.json",
                "sbom.cdx.json",
            ),
            "MAR-INF/integrity.json",
        }
        assert file.read("weights.safetensors") == (color_run / "weights.safetensors").read_bytes()
        manifest = json.loads(file.read("MAR-INF/MANIFEST.json"))["model"]
    assert (manifest["handler"], manifest["configFile"]) == ("handler.entry", "model-config.yaml")
    assert names_in(archive.parent) == ["colors.mar"]


@pytest.fixture(scope="module")
def built_together(tmp_path_factory: pytest.TempPathFactory, write_run) -> Path:
    """A store into which 1.0 and 2.0 were built at the same time, of a run without golden images, under umask 077."""
    run, store = write_run(tmp_path_factory.mktemp("runs") / "run"), tmp_path_factory.mktemp("store")
    shutil.rmtree(run / "golden")
    write_metrics(run)
    (run / "train_config.yaml").write_text("lr: 0.1\nweights: null\n")
    before = os.umask(0o077)
    try:
        with ThreadPoolExecutor(2) as pool:
            built = pool.map(lambda version: build_archive(run, store, version=version), ("1.0", "2.0"))
            assert set(built) == {store / "imgcls.mar"}
    finally:
        os.umask(before)
    return store


def test_two_builds_at_the_same_time_do_not_clash(built_together: Path):
    assert read_contents(built_together / "imgcls.mar").version in {"1.0", "2.0"}
    assert names_in(built_together) == ["imgcls.mar"]


def test_everybody_may_read_an_archive_whatever_the_umask(built_together: Path):
    assert stat.S_IMODE((built_together / "imgcls.mar").stat().st_mode) == 0o644


def test_a_run_without_golden_images_gets_one_that_is_made(built_together: Path):
    [item] = read_golden(built_together / "imgcls.mar")
    assert Image.open(io.BytesIO(item.data)).size == (8, 8)


def test_the_model_card_shows_what_the_run_knows(built_together: Path):
    assert read_contents(built_together / "imgcls.mar").metrics["test_sets"]["clean"] == SCORES
    with zipfile.ZipFile(built_together / "imgcls.mar") as file:
        card = file.read("MODEL_CARD.md").decode()
    assert "| clean | 3 | 0.5000 | 0.5000 | 0.5000 | 0.5000 |" in card


def spoil_weights(run: Path) -> None:
    with (run / "weights.safetensors").open("r+b") as file:
        file.truncate(100)


def spoil_labels(run: Path) -> None:
    (run / "index_to_name.json").write_text('{"0": "red", "1": "green"}')


def change_network(run: Path) -> None:
    spec = yaml.safe_load((run / "spec.yaml").read_text())
    spec["parameters"]["hidden"] = 4
    (run / "spec.yaml").write_text(yaml.safe_dump(spec))


def spoil_numbers(run: Path) -> None:
    state = load_file(run / "weights.safetensors")
    state["classifier.4.bias"].fill_(float("nan"))
    save_file(state, run / "weights.safetensors")


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (spoil_weights, WeightsError, r"weights\.safetensors: cannot be read as safetensors"),
        (change_network, WeightsError, r"weights\.safetensors: does not fit .*size mismatch"),
        (spoil_numbers, NumericError, r"the weights answer golden input 0\.png with NaN"),
        (spoil_labels, SpecError, r'index_to_name\.json: got 2 keys; expected an object with the keys "0" to "2"'),
        (lambda run: (run / "weights.safetensors").unlink(), ArchiveError, "weights.safetensors is not in it"),
        (lambda run: (run / "spec.yaml").unlink(), ArchiveError, "spec.yaml is not in it"),
        (lambda run: (run / "spec.yaml").write_text("size: 4"), SpecError, "classes: Field required"),
        (shutil.rmtree, ArchiveError, "there is no such run directory"),
        (
            lambda run: (run / "golden" / "1.png").write_bytes(bytes(5_000_000)),
            ArchiveError,
            r"golden/1\.png: has more",
        ),
        (lambda run: (run / "golden" / "1.png").write_text("text"), ArchiveError, r"golden/1\.png: the bytes are not"),
        (
            lambda run: (run / "golden" / "0.png").rename(run / "golden" / "shot at 3\u202fPM.png"),
            ArchiveError,
            r"'golden/shot at 3\\u202fPM\.png' has a backslash or a control character .* rename it in the run",
        ),
        (lambda run: (run / "train_config.yaml").write_text("- a: ["), ArchiveError, "train_config.yaml: is not what"),
        (
            lambda run: (run / "metrics.json").write_text("{}"),
            ArchiveError,
            "metrics.json: is not what imgcls evaluate",
        ),
        (lambda run: write_metrics(run, scores={}), ArchiveError, "metrics.json: is not what imgcls evaluate"),
        (lambda run: write_metrics(run, weights_sha256="0"), ArchiveError, "measured on other weights"),
    ],
)
def test_a_run_that_cannot_be_served_keeps_the_old_archive(tmp_path: Path, write_run, spoil, error, message):
    run, store = write_run(tmp_path / "run"), tmp_path / "store"
    store.mkdir()
    (store / "imgcls.mar").write_text("old")
    spoil(run)
    with pytest.raises(error, match=message) as caught:
        build_archive(run, store)
    assert "\n" not in str(caught.value)
    assert str(store) not in str(caught.value)  # names the user's file, not a temporary copy
    assert names_in(store) == ["imgcls.mar"]
    assert (store / "imgcls.mar").read_text() == "old"


def test_what_a_killed_build_has_left_is_removed_by_a_later_one(write_run, tmp_path: Path):
    store = tmp_path / "store"
    for name, age_s in (("old.building", 7200), ("young.building", 60), ("old.signing", 7200), ("young.signing", 60)):
        (store / f".imgcls-{name}").mkdir(parents=True)
        (store / f".imgcls-{name}" / "imgcls.mar").write_text("part")
        os.utime(store / f".imgcls-{name}", (time.time() - age_s,) * 2)
    (store / ".imgcls-backup").mkdir()  # somebody's own
    os.utime(store / ".imgcls-backup", (time.time() - 7200,) * 2)
    run = write_run(tmp_path / "run")
    (run / "golden" / "1.png").write_bytes(bytes(5_000_000))  # refused at once, so that the test is quick
    with pytest.raises(ArchiveError):
        build_archive(run, store)
    assert names_in(store) == [".imgcls-backup", ".imgcls-young.building", ".imgcls-young.signing"]


def test_a_build_waits_for_a_command_that_holds_the_store_before_it_publishes(write_run, tmp_path: Path):
    run, store = write_run(tmp_path / "run"), tmp_path / "store"
    builder, held, seen = threading.get_ident(), threading.Event(), []

    def hold() -> None:
        with lock_store(store):
            held.set()
            while not seen:
                frames = traceback.extract_stack(sys._current_frames()[builder])
                if (store / "imgcls.mar").exists():
                    seen.append("published")
                elif any(frame.name == "lock_store" for frame in frames):
                    seen.append("waits")
                time.sleep(0.05)

    holder = threading.Thread(target=hold, daemon=True)

    def start_holder(count: int) -> None:
        if not held.is_set():
            holder.start()
            held.wait()

    built = build_archive(run, store, on_bytes=start_holder)
    holder.join()
    assert seen == ["waits"] and built.exists()


def test_a_run_of_links_is_packed_as_what_they_point_to(color_run: Path, archive: Path, tmp_path: Path):
    """As data version control leaves them."""
    run = shutil.copytree(color_run, tmp_path / "run")
    (tmp_path / "objects").mkdir()
    for name in ("weights.safetensors", "spec.yaml", "index_to_name.json"):
        (run / name).rename(tmp_path / "objects" / name)
        (run / name).symlink_to(f"../objects/{name}")
    options = ServingOptions(workers=2)
    built = build_archive(run, tmp_path / "store", name="colors", version="1.5", options=options)
    assert built.read_bytes() == archive.read_bytes()


def test_code_of_another_checkout_is_not_packed(color_run: Path, tmp_path: Path):
    for package in ("model", "handler"):
        shutil.copytree(PROJECT / package, tmp_path / "other" / package)
    imgcls = Path(sys.executable).with_name("imgcls")
    command = [imgcls, "archive", "build", color_run, "--store", tmp_path / "store"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "other")}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "take the other folder off PYTHONPATH" in result.stderr
    assert names_in(tmp_path / "store") == []


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "-flag", "two words", "ä", "line\n"])
def test_a_name_or_version_that_torchserve_does_not_accept_is_refused(color_run: Path, tmp_path: Path, name):
    for what in ("name", "version"):
        with pytest.raises(ArchiveError, match=re.escape(f"{what} is {name!r}; expected letters, digits")):
            build_archive(color_run, tmp_path / "store", **{what: name})
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(("name", "what"), [("store.mar", "is a file"), ("link", "is a link to nothing")])
@pytest.mark.parametrize("below", ["", "below"])
def test_a_store_that_is_no_folder_is_named_as_what_it_is(color_run: Path, tmp_path: Path, name, what, below):
    (tmp_path / "store.mar").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(ArchiveError, match=f"{name}: {what}; expected a folder, the model store that NAME.mar"):
        build_archive(color_run, tmp_path / name / below)
    assert (tmp_path / "store.mar").read_text() == "mine"
    assert names_in(tmp_path) == ["link", "store.mar"]


@pytest.mark.parametrize(
    ("options", "engines", "message"),
    [
        ({"engine": "eagr"}, ["eager"], "--engine: engine is 'eagr'; expected auto or one of .*; did you mean 'eager'"),
        ({"engine": "openvino"}, ["eager"], "--engine is openvino, which is not built; give --engines openvino too"),
        ({}, ["eager", "nosuch"], "--engines: engine is 'nosuch'"),
        ({"batch_size": 3_000_000_000}, ["eager"], "cannot be served: batchSize is 3000000000; expected a whole"),
        ({"decode": "tpu"}, ["eager"], "cannot be served: handler.decode is 'tpu'; expected one of cpu, gpu"),
    ],
)
def test_options_that_cannot_be_served_are_refused_before_anything_is_written(
    color_run: Path, tmp_path: Path, options, engines, message
):
    with pytest.raises(UsageError, match=message) as caught:
        build_archive(color_run, tmp_path / "store", options=ServingOptions(**options), engines=engines)
    assert "\n" not in str(caught.value) and names_in(tmp_path) == []


def test_a_full_disk_keeps_the_old_archive_and_leaves_nothing_behind(color_run: Path, tmp_path: Path):
    (tmp_path / "imgcls.mar").write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # each staged file fits, the archive does not
    try:
        with pytest.raises(ArchiveError, match=r"the archive cannot be written: \[Errno 27\] File too large"):
            build_archive(color_run, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names_in(tmp_path) == ["imgcls.mar"]
    assert (tmp_path / "imgcls.mar").read_text() == "old"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def broken(:", r"SyntaxError: .*\(image_classifier\.py, line 1\)"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("import os; os._exit(0)", "exit status 0"),
    ],
)
def test_the_self_test_says_in_one_line_why_a_handler_cannot_be_loaded(unpacked: Path, tmp_path: Path, code, message):
    folder = shutil.copytree(unpacked, tmp_path / "archive")
    replace_file(folder, "handler/image_classifier.py", code)
    with pytest.raises(ArchiveError, match=message) as caught:
        self_test(folder)
    assert "\n" not in str(caught.value)


def test_the_self_test_compares_the_answers(unpacked: Path, tmp_path: Path):
    folder = shutil.copytree(unpacked, tmp_path / "archive")
    code = (folder / "handler" / "image_classifier.py").read_text()
    broken = code.replace("predictions = rank(row,", "predictions = rank(row[::-1],")
    assert broken != code
    replace_file(folder, "handler/image_classifier.py", broken)
    with pytest.raises(
        ArchiveError,
        match=r"golden input 0\.png: got probability 0\.0\d+ for class 2 \(blue\), expected 0\.9867 .*; nothing",
    ):
        self_test(folder)


def test_golden_inputs_are_the_runs_images_with_their_answers(archive: Path, color_run: Path):
    [item] = read_golden(archive)
    assert (item.file, item.index, item.label) == ("0.png", 2, "blue")
    assert item.data == (color_run / "golden" / "0.png").read_bytes()


def test_serving_options_become_torchserves_keys():
    config = yaml.safe_load(dump_model_config(ServingOptions(workers=3, batch_size=4, max_batch_delay_ms=0)))
    assert (config["minWorkers"], config["maxWorkers"], config["batchSize"], config["maxBatchDelay"]) == (3, 3, 4, 0)
    assert "minWorkers" not in yaml.safe_load(dump_model_config(ServingOptions()))


def test_a_run_that_is_missing_is_one_error_for_the_command(tmp_path: Path):
    result = CliRunner().invoke(app, ["build", str(tmp_path / "none"), "--store", str(tmp_path / "store")])
    assert isinstance(result.exception, ArchiveError)
    assert not (tmp_path / "store").exists()
