import hashlib
import json
import os
import shutil
import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from imgcls.archive.stage import copy_package
from imgcls.checkout import hash_code, hash_locks, read_git
from imgcls.data.digests import hash_source, make_fingerprint
from imgcls.data.images import DataSource, ImageSet, Sample
from imgcls.data.sources import open_source
from imgcls.errors import RunError
from imgcls.training.config import TrainConfig
from imgcls.training.record import TrainRecord, describe_source, read_record
from imgcls.training.recording import make_record

PROJECT = Path(__file__).parents[2]


def read(run: Path) -> TrainRecord:
    return read_record(run / "train_record.json")


def fingerprints(data: Path) -> dict[str, str]:
    source = open_source(str(data))
    digests = hash_source(source)
    return {name: make_fingerprint(images, digests[name]).sha256 for name, images in source.splits.items()}


def test_equal_runs_in_two_folders_write_equal_records_that_name_no_folder(tmp_path, train_photos, photos):
    for side in ("one", "other"):
        data = shutil.copytree(photos, tmp_path / side / "photos")
        train_photos(tmp_path / side / "run", "--seed", 3, data=data)
    one, other = ((tmp_path / side / "run" / "train_record.json").read_text() for side in ("one", "other"))
    assert one == other
    assert str(tmp_path) not in one and os.fspath(PROJECT) not in one
    assert json.loads(one)["data"]["source"] == "photos"


def test_a_record_tells_data_code_seed_device_and_versions(tmp_path, train_photos):
    train_photos(tmp_path / "run", "--seed", 3, "--device", "cpu")
    record = read(tmp_path / "run")
    assert {name: split.files for name, split in record.data.splits.items()} == {"train": 26, "val": 5, "test": 5}
    assert set(record.data.splits["train"].classes) == {"red", "green", "blue"}
    assert (record.seed, record.device, record.parent, record.resumed) == (3, "cpu", None, ())
    assert record.code.sha256 == hash_code(PROJECT, ("imgcls", "model", "train.py"))
    assert record.code.locks == hash_locks(PROJECT) and len(record.code.locks) == 2
    assert {"python", "torch", "torchvision", "timm", "numpy", "pillow", "imgcls"} <= record.versions.keys()


def test_a_run_that_ends_in_its_first_epoch_has_its_record(tmp_path, train_photos):
    with pytest.raises(RunError, match="lower --lr"):
        train_photos(tmp_path / "run", "--lr", 1e30)
    assert read(tmp_path / "run").first_epoch == 1


def test_an_overwritten_run_loses_its_record_with_the_rest(tmp_path, train_photos):
    train_photos(tmp_path / "run", "--seed", 1)
    weights = tmp_path / "run" / "weights.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    train_photos(tmp_path / "run", "--seed", 2, "--overwrite", "--weights", weights)
    record = read(tmp_path / "run")
    assert record.seed == 2
    assert (record.parent.name, record.parent.sha256) == ("weights.safetensors", digest)


@pytest.mark.parametrize(
    ("network", "name"),
    [("timm/resnet18", "timm/resnet18.a1_in1k"), ("timm/resnet18.tv_in1k", "timm/resnet18.tv_in1k")],
)
def test_pretrained_weights_are_named_with_what_they_were_trained_on(photos, network, name):
    config = TrainConfig(data=str(photos), network=network, pretrained=True)
    source = open_source(str(photos))
    record = make_record(config, source, hash_source(source), device=torch.device("cpu"))
    assert record.parent.model_dump() == {"name": name, "sha256": None}


def test_a_resumed_run_keeps_its_start_and_adds_what_changed(tmp_path, train_photos, photos):
    run, data = tmp_path / "run", shutil.copytree(photos, tmp_path / "photos")
    train_photos(run, data=data)
    start = read(run)
    train_photos(run, "--resume", data=data, epochs=2)
    assert [(part.first_epoch, part.changed) for part in read(run).resumed] == [(2, {})]
    with (data / "red" / "00.png").open("ab") as file:
        file.write(b"\0")
    train_photos(run, "--resume", "--seed", 0, data=data, epochs=3)
    record = read(run)
    assert [part.first_epoch for part in record.resumed] == [2, 3]
    assert list(record.resumed[1].changed) == ["data"]
    assert record.model_copy(update={"resumed": ()}) == start


def test_a_part_that_ended_no_epoch_is_not_recorded_twice(tmp_path, train_photos):
    run = tmp_path / "run"
    train_photos(run)
    for _ in range(2):
        train_photos(run, "--resume")  # nothing is left to train
    assert [part.first_epoch for part in read(run).resumed] == [2]


def test_a_resumed_run_without_a_record_says_from_where_it_is_known(tmp_path, train_photos):
    run = tmp_path / "run"
    train_photos(run)
    (run / "train_record.json").unlink()
    train_photos(run, "--resume", epochs=2)
    assert read(run).first_epoch == 2


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": "imgcls-train-record/2"}'])
def test_a_record_that_cannot_be_read_stops_a_resumed_run(tmp_path, train_photos, text):
    run = tmp_path / "run"
    train_photos(run)
    (run / "train_record.json").write_text(text)
    with pytest.raises(RunError, match=r"train_record\.json: is not what train\.py writes .*; delete it") as caught:
        train_photos(run, "--resume", epochs=2)
    assert "\n" not in str(caught.value)


def test_a_fingerprint_is_of_contents_and_classes_not_of_names(tmp_path, photos):
    given, renamed, moved, changed = (tmp_path / name for name in ("given", "renamed", "moved", "changed"))
    for folder in (given, renamed, moved, changed):
        for split in ("train", "test"):
            shutil.copytree(photos, folder / split)
    (renamed / "test" / "red" / "00.png").rename(renamed / "test" / "red" / "zz.png")
    (moved / "test" / "red" / "00.png").rename(moved / "test" / "blue" / "99.png")
    with (changed / "test" / "red" / "00.png").open("ab") as file:
        file.write(b"\0")
    expected = fingerprints(given)
    assert fingerprints(renamed) == expected
    for folder in (moved, changed):
        found = fingerprints(folder)
        assert [name for name in expected if found[name] != expected[name]] == ["test"]


def test_a_fingerprint_can_be_made_with_sha256sum(photos):
    for split in open_source(str(photos)).splits.values():
        fingerprint = make_fingerprint(split, hash_source(open_source(str(photos)))[split.name])
        lines = [f"{hashlib.sha256(each.read()).hexdigest()}  {split.classes[each.label]}\n" for each in split.samples]
        assert fingerprint.sha256 == hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
        assert fingerprint.classes == split.count_classes()


def source_of(*reads: object) -> DataSource:
    images = ImageSet("test", ("a", "b"), tuple(Sample(str(place), 0, read) for place, read in enumerate(reads)))
    return DataSource("made", images.classes, {"test": images}, (), None)


def test_a_file_that_cannot_be_read_is_counted_and_not_hashed(tmp_path):
    source = source_of(lambda: b"one", (tmp_path / "gone").read_bytes)
    found = make_fingerprint(source.splits["test"], hash_source(source)["test"])
    assert (found.files, found.unreadable, found.classes) == (1, 1, {"a": 1, "b": 0})


def test_an_array_is_hashed_as_it_is_and_not_as_the_png_of_todays_pillow():
    def encode(_: np.ndarray) -> bytes:
        raise AssertionError("was encoded")

    pixels = np.arange(12, dtype=np.uint8)
    shapes = [pixels.reshape(3, 4), pixels.reshape(4, 3), pixels.reshape(3, 4).copy()]
    found = hash_source(source_of(*(partial(encode, shape) for shape in shapes)))["test"]
    assert found[0] == found[2] != found[1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("digits", "digits"),
        ("torchvision:CIFAR10", "torchvision:CIFAR10"),
        ("photos/cats", "photos/cats"),
        ("/home/someone/photos", "photos"),
        ("/home/someone/photos.zip,rotate=5", "photos.zip,rotate=5"),
        ("../../someone/photos", "photos"),
    ],
)
def test_a_source_is_told_without_what_it_tells_of_the_machine(text, expected):
    assert describe_source(text) == expected


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A git checkout with the folders that hold code, and one commit."""
    home = tmp_path / "checkout"
    for file in ("imgcls/__init__.py", "model/a.py", "handler/b.py", "train.py", "README.md", "requirements.lock"):
        (home / file).parent.mkdir(parents=True, exist_ok=True)
        (home / file).write_text("1\n")
    git(home, "init", "--quiet")
    git(home, "add", ".")
    git(home, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message", "one")
    return home


def git(home: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=home, capture_output=True, text=True, check=True).stdout.strip()


def test_the_commit_is_the_one_that_is_checked_out(checkout):
    state = read_git(checkout)
    assert (state.commit, state.is_dirty) == (git(checkout, "rev-parse", "HEAD"), False)


@pytest.mark.parametrize(
    ("file", "is_dirty"),
    [("model/a.py", True), ("handler/new.py", True), ("requirements.lock", True), ("README.md", False)],
)
def test_a_checkout_is_dirty_where_its_code_or_locks_are_not_the_commits(checkout, file, is_dirty):
    (checkout / file).write_text("2\n")
    assert read_git(checkout).is_dirty is is_dirty


def test_neither_the_environment_nor_the_owner_of_a_checkout_changes_what_git_says(checkout, monkeypatch):
    expected = read_git(checkout)
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    monkeypatch.setenv("HOME", "/nowhere")
    assert read_git(checkout) == expected


def test_without_git_there_is_no_commit_and_no_error(checkout, tmp_path, monkeypatch):
    assert read_git(tmp_path) is None  # no checkout
    installed = checkout / ".venv" / "site-packages"
    shutil.copytree(checkout / "imgcls", installed / "imgcls")
    assert read_git(installed) is None  # in someone's checkout, which does not know it
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_git(checkout) is None


def test_the_hash_of_code_is_the_one_that_sha256sum_makes(tmp_path):
    for package in ("model", "handler"):
        shutil.copytree(PROJECT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    command = "find model handler -type f | LC_ALL=C sort | xargs sha256sum | sha256sum"
    printed = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert hash_code(tmp_path, ("model", "handler")) == printed.split()[0]
    assert hash_code(PROJECT, ("model", "handler")) == printed.split()[0]


def test_hidden_files_are_no_code(tmp_path):
    """Those that Emacs, macOS and Jupyter leave beside the sources."""
    package = tmp_path / "model"
    package.mkdir()
    (package / "a.py").write_text("x = 1\n")
    alone = hash_code(tmp_path, ("model",))
    (package / ".#a.py").symlink_to("user@host.1234")
    (package / "._a.py").write_bytes(b"\0\5\26\7")
    (package / ".ipynb_checkpoints").mkdir()
    (package / ".ipynb_checkpoints" / "a-checkpoint.py").write_text("x = 1\n")
    (package / "folder.py").mkdir()
    assert hash_code(tmp_path, ("model",)) == alone
    copy_package(package, tmp_path / "copy")
    assert [file.name for file in (tmp_path / "copy").rglob("*")] == ["a.py"]
