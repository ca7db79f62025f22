import gzip
import io
import json
import math
import os
import struct
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from imgcls.cli.main import app
from imgcls.data.images import DataSource, count_files
from imgcls.data.sources import open_source
from imgcls.errors import DataError, UsageError


def encode_image(shade: int, *, size: int = 4) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (shade % 256, shade // 256, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write_images(folder: Path, *, count: int = 10) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number}.png").write_bytes(encode_image(number))


def count_splits(source: DataSource) -> dict[str, int]:
    return {name: len(images) for name, images in source.splits.items()}


def names(source: DataSource, split: str) -> set[str]:
    return {sample.name for sample in source.splits[split].samples}


def reasons(source: DataSource) -> dict[str, str]:
    return {problem.name: problem.reason for problem in source.problems}


def zip_folder(folder: Path, path: Path, *, top: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, top + str(file.relative_to(folder)))
    return path


def test_digits_are_split_into_three_with_every_class_in_each() -> None:
    source = open_source("digits")
    assert count_splits(source) == {"train": 1258, "val": 269, "test": 270}
    assert source.classes == tuple("0123456789")
    assert all(min(images.count_classes().values()) > 20 for images in source.splits.values())


def test_equal_seeds_draw_equal_splits_and_other_seeds_others() -> None:
    first, again, other = (names(open_source("digits", seed=seed), "test") for seed in (1, 1, 2))
    assert first == again != other


def test_drawn_splits_share_no_image(tmp_path: Path) -> None:
    for name in ("cats", "dogs", "emus"):
        write_images(tmp_path / name, count=7)
    source = open_source(str(tmp_path))
    drawn = [names(source, split) for split in ("train", "val", "test")]
    assert sum(map(len, drawn)) == len(set.union(*drawn)) == 21
    assert all(min(images.count_classes().values()) >= 1 for images in source.splits.values())


def test_digit_values_are_spread_over_the_grey_levels() -> None:
    sample = open_source("digits").splits["train"].samples[0]
    pixels = np.asarray(Image.open(io.BytesIO(sample.read())))
    assert pixels.shape == (8, 8)
    assert set(np.unique(pixels)) <= {round(level * 255 / 16) for level in range(17)}


@pytest.mark.parametrize("validation", ["val", "valid", "validation"])
def test_split_folders_are_kept_as_they_are(tmp_path: Path, validation: str) -> None:
    for split, count in (("train", 3), (validation, 2), ("test", 1)):
        for name in ("dogs", "cats"):
            write_images(tmp_path / split / name, count=count)
    source = open_source(str(tmp_path))
    assert count_splits(source) == {"train": 6, "val": 4, "test": 2}
    assert source.classes == ("cats", "dogs")


def test_missing_val_is_drawn_from_train_and_test_is_left_whole(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("cats", "dogs"):
            write_images(tmp_path / split / name, count=10)
    source = open_source(str(tmp_path), val_fraction=0.2)
    assert count_splits(source) == {"train": 16, "val": 4, "test": 20}
    assert source.splits["val"].count_classes() == {"cats": 2, "dogs": 2}


def test_source_of_test_images_only_stays_one_split(tmp_path: Path) -> None:
    write_images(tmp_path / "test" / "cats", count=3)
    assert count_splits(open_source(str(tmp_path))) == {"test": 3}


def test_source_without_splits_can_be_taken_whole(tmp_path: Path) -> None:
    write_images(tmp_path / "cats", count=1)  # of one class, and too few to draw from
    source = open_source(str(tmp_path), whole=True)
    assert (count_splits(source), source.chosen, source.drawn) == ({"test": 1}, "test", ())
    write_images(tmp_path / "dogs")
    write_images(tmp_path / "emus")
    with pytest.raises(DataError, match="class 'cats' has 1 image left to draw test from"):
        open_source(str(tmp_path))


def test_a_chosen_split_is_drawn_from_a_source_that_could_be_taken_whole() -> None:
    plain, chosen = open_source("digits"), open_source("digits,split=val", whole=True)
    assert names(chosen, "val") == names(plain, "val")
    assert chosen.drawn == plain.drawn == ("train", "val", "test")


def test_split_all_is_every_image_of_a_source_with_or_without_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("cats", "dogs"):
            write_images(tmp_path / split / name, count=3)
    divided = open_source(f"{tmp_path},split=all")
    undivided = open_source(f"{tmp_path / 'test'},split=all")
    assert (count_splits(divided), divided.chosen, divided.drawn) == ({"all": 12}, "all", ())
    assert count_splits(undivided) == {"all": 6}
    assert divided.splits["all"].count_classes() == {"cats": 6, "dogs": 6}


def test_only_what_is_drawn_is_called_drawn(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("cats", "dogs"):
            write_images(tmp_path / split / name)
    assert open_source(str(tmp_path)).drawn == ("train", "val")
    assert open_source(str(tmp_path), whole=True).drawn == ()


def test_class_called_train_is_no_split(tmp_path: Path) -> None:
    for name in ("bus", "train"):
        write_images(tmp_path / name)
    assert open_source(str(tmp_path)).classes == ("bus", "train")


@pytest.mark.parametrize("top", ["", "photos/"])
def test_zip_opens_as_its_folder_does_with_or_without_a_top_folder(tmp_path: Path, top: str) -> None:
    for name in ("cats", "dogs"):
        write_images(tmp_path / "images" / name)
    path = zip_folder(tmp_path / "images", tmp_path / "images.zip", top=top)
    folder, packed = open_source(str(tmp_path / "images")), open_source(str(path))
    assert packed.classes == folder.classes
    assert {top + name for name in names(folder, "test")} == names(packed, "test")
    assert packed.splits["test"].samples[0].read() == folder.splits["test"].samples[0].read()


def test_leftovers_of_operating_systems_are_ignored(tmp_path: Path) -> None:
    for name in ("cats", "dogs", "__MACOSX", ".cache"):
        write_images(tmp_path / name)
    (tmp_path / "cats" / ".DS_Store").write_bytes(b"x")
    source = open_source(str(tmp_path))
    assert source.classes == ("cats", "dogs")
    assert source.problems == ()


def test_files_that_cannot_be_used_are_named_with_a_reason(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for name in ("cats", "dogs"):
        write_images(root / name)
    (root / "cats" / "notes.txt").write_text("x")
    (root / "stray.png").write_bytes(encode_image(1))
    (root / "emus").mkdir()
    packed = open_source(str(zip_folder(root, tmp_path / "t.zip")))
    (root / "cats" / "gone.png").symlink_to("nowhere.png")
    (root / "cats" / "self.png").symlink_to("self.png")
    os.mkfifo(root / "cats" / "pipe.png")
    found = reasons(open_source(str(root)))
    assert set(reasons(packed)) == {"cats/notes.txt", "stray.png", "emus"}
    assert set(found) == {*reasons(packed), "cats/gone.png", "cats/self.png", "cats/pipe.png"}
    assert found["cats/notes.txt"].startswith("not an image file")
    assert found["stray.png"].startswith("unlabelled")
    assert "without images" in found["emus"]
    assert found["cats/gone.png"] == found["cats/self.png"] == "a link that leads to no file; expected an image"
    assert found["cats/pipe.png"].startswith("a pipe")


def test_link_to_a_folder_that_is_read_already_is_told(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("cats", "dogs"):
            write_images(tmp_path / split / name)
    (tmp_path / "train" / "cats" / "all").symlink_to("../..")  # leads back, and leaves nothing out
    (tmp_path / "val").symlink_to("test")
    source = open_source(str(tmp_path))
    assert count_splits(source) == {"train": 17, "val": 3, "test": 20}
    told = "a link to what is read as test already; its images are left out: copy it to have them twice"
    assert reasons(source) == {"val": told}
    assert count_files(source.problems) == 20


def test_names_that_are_not_utf8_are_named_and_the_rest_is_used(tmp_path: Path) -> None:
    for name in ("cats", "dogs", "\udcff"):
        write_images(tmp_path / "photos" / name)
    (tmp_path / "photos" / "cats" / "caf\udce9.png").write_bytes(encode_image(1))
    (tmp_path / "photos" / "cats" / "caf\udce9.txt").write_bytes(b"")
    source = open_source(str(tmp_path / "photos"))
    found = reasons(source)
    assert len(found) == 12
    assert found["cats/caf\\udce9.png"] == found["\\udcff/0.png"] == "its name is not UTF-8; rename it"
    assert found["cats/caf\\udce9.txt"].startswith("not an image file")
    assert source.classes == ("cats", "dogs")
    command = ["data", "report", str(tmp_path / "photos"), "--out", str(tmp_path / "r.html"), "--no-labels", "--json"]
    shown = CliRunner().invoke(app, command, catch_exceptions=False)
    assert json.loads(shown.stdout)["counts"]["corrupt"] == 12
    command = ["data", "shard", str(tmp_path / "photos"), str(tmp_path / "shards")]
    shown = CliRunner().invoke(app, command, catch_exceptions=False)
    assert "wrote 20 images" in shown.stdout
    assert "left out: cats/caf\\udce9.png: its name is not UTF-8" in shown.stderr


def test_label_that_utf8_cannot_say_is_a_problem(tmp_path: Path) -> None:
    write_images(tmp_path)
    rows = [{"path": f"{number}.png", "label": str(number % 2)} for number in range(8)]
    rows += [{"path": "8.png", "label": "\ud800"}, {"path": "9.png", "label": "1", "site": "\ud800"}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    told = reasons(open_source(str(tmp_path / "t.jsonl")))
    assert told == dict.fromkeys(("8.png", "9.png"), "its label or a column is not UTF-8; mend it")


def test_class_that_only_test_has_is_a_problem_not_a_class(tmp_path: Path) -> None:
    for split, classes in (("train", ("cats", "dogs")), ("test", ("cats", "dogs", "emus"))):
        for name in classes:
            write_images(tmp_path / split / name)
    source = open_source(str(tmp_path))
    assert source.classes == ("cats", "dogs")
    assert "its 10 images are left out" in reasons(source)["test/emus"]
    assert count_files(source.problems) == 10


@pytest.mark.parametrize("kind", ["empty folder", "no images", "one class", "empty zip", "no zip", "one image a class"])
def test_source_without_two_usable_classes_is_refused_by_path(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("data.zip" if "zip" in kind else "data")
    if kind == "no zip":
        path.write_bytes(b"PK not really")
    elif kind == "empty zip":
        zipfile.ZipFile(path, "w").close()
    else:
        path.mkdir()
    if kind == "no images":
        (path / "cats").mkdir()
        (path / "cats" / "a.txt").write_text("x")
    if kind == "one class":
        write_images(path / "cats")
    if kind == "one image a class":
        for name in ("cats", "dogs"):
            write_images(path / name, count=1)
    with pytest.raises(DataError) as caught:
        open_source(str(path))
    assert str(caught.value).startswith(str(path))


def test_csv_resolves_paths_against_its_folder_and_keeps_its_splits(tmp_path: Path) -> None:
    write_images(tmp_path / "img", count=6)
    rows = [
        f"img/{number}.png,{'cat' if number % 2 else 'dog'},{split}"
        for number, split in enumerate(["train"] * 4 + ["test"] * 2)
    ]
    (tmp_path / "t.csv").write_text("path,label,split\n" + "\n".join(rows))
    source = open_source(str(tmp_path / "t.csv"))
    assert count_splits(source) == {"train": 2, "val": 2, "test": 2}
    assert source.splits["test"].samples[0].read() == encode_image(4)


def test_jsonl_without_splits_is_split_into_three(tmp_path: Path) -> None:
    write_images(tmp_path, count=20)
    lines = [f'{{"path": "{number}.png", "label": {number % 2}, "note": "a\u2028b"}}' for number in range(20)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines), encoding="utf-8")
    source = open_source(str(tmp_path / "t.jsonl"))
    assert count_splits(source) == {"train": 14, "val": 3, "test": 3}
    assert source.classes == ("0", "1")


def test_csv_rows_that_cannot_be_used_are_named_by_row_number(tmp_path: Path) -> None:
    write_images(tmp_path, count=10)
    good = [f"{number}.png,{'cat' if number % 2 else 'dog'}" for number in range(8)]
    bad = ["8.png,Cat", "9.png,", "gone.png,cat", ",cat", f"{300 * 'x'},cat"]
    (tmp_path / "t.csv").write_text("path,label\n" + "\n".join(good + bad))
    found = reasons(open_source(str(tmp_path / "t.csv")))
    assert "differs only in case from 'cat'" in found["t.csv row 10 (8.png)"]
    assert found["t.csv row 11 (9.png)"].startswith("unlabelled")
    assert found["t.csv row 12 (gone.png)"].startswith("no such file")
    assert found["t.csv row 13"].startswith("path is missing")
    assert found[f"t.csv row 14 ({300 * 'x'})"].endswith("File name too long")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("t.csv", "file,label\na,b\n", "the header is"),
        ("t.jsonl", "{", "line 1 is no JSON"),
        ("t.jsonl", "[" * 100_000, "line 1 is no JSON: maximum recursion depth"),
        ("t.jsonl", "[1]", "line 1 is no object"),
        (
            "t.jsonl",
            '{"path": "0.png", "label": ["a", "b"]}',
            r"line 1: label is \['a', 'b'\]; expected the name of one",
        ),
        ("t.csv", "path,label\n", "no labelled images"),
    ],
)
def test_table_of_another_form_is_refused(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said):
        open_source(str(tmp_path / name))


@pytest.mark.parametrize("text", ["no-such-thing", ""])
def test_unknown_string_is_refused_with_what_is_accepted(text: str) -> None:
    told = f"^'{text}' is no such file, folder or name; accepted as data are digits, torchvision:NAME, a folder, a .zip"
    with pytest.raises(UsageError, match=told):
        open_source(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("digits,colour=3", "unknown key 'colour'.*accepted are noise, rotate, blur, brightness, jpeg and split"),
        ("digits,noise=loud", "noise is 'loud'; expected a number from 0 to 255"),
        ("digits,noise=nan", "noise is 'nan'"),
        ("digits,jpeg=0", "jpeg is '0'; expected a number from 1 to 100"),
        ("digits,split=some", "split is 'some'; expected train, val, test or all"),
        ("digits,noise=1,noise=2", "noise is given twice"),
    ],
)
def test_settings_that_are_not_accepted_are_named(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        open_source(text)


@pytest.mark.parametrize("command", ["report", "shard", "train.py"])
@pytest.mark.parametrize("setting", ["noise=25", "split=val"])
def test_settings_that_only_an_evaluation_heeds_are_refused_elsewhere(
    tmp_path: Path, train: ModuleType, command: str, setting: str
) -> None:
    data, out = f"digits,{setting}", str(tmp_path / "out")
    told = f"{data}: only an evaluation heeds {setting.split('=')[0]}=, and here it would do nothing"
    with pytest.raises(UsageError, match=told):
        if command == "train.py":
            train.main(["--data", data, "--out", out])
        else:
            arguments = [data, "--out", out] if command == "report" else [data, out]
            CliRunner().invoke(app, ["data", command, *arguments], catch_exceptions=False)
    assert not (tmp_path / "out").exists()


def test_path_that_looks_like_a_setting_is_taken_as_it_stands(tmp_path: Path) -> None:
    for name in ("cats", "dogs"):
        write_images(tmp_path / "run,noise=3" / name)
    plain, noisy = (open_source(f"{tmp_path}/run,noise=3{end}") for end in ("", ",noise=5,split=val"))
    assert plain.perturb is None
    assert noisy.perturb is not None
    assert noisy.chosen == "val"


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seed_that_is_none_is_refused(seed: int) -> None:
    with pytest.raises(UsageError, match=f"seed is {seed}; expected a whole number from 0 to 4294967295"):
        open_source("digits", seed=seed)


@pytest.mark.parametrize(("val", "test"), [(0.5, 0.5), (-0.1, 0.1), (math.nan, 0.1), (0.1, math.nan)])
def test_fractions_that_leave_nothing_to_train_on_are_refused(val: float, test: float) -> None:
    with pytest.raises(UsageError, match="their sum below 1"):
        open_source("digits", val_fraction=val, test_fraction=test)


def write_fashion_mnist(root: Path, *, count: int) -> None:
    raw = root / "data" / "torchvision" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix in ("train", "t10k"):
        pixels = np.arange(count * 784, dtype=np.uint32).astype(np.uint8)
        images = struct.pack(">IIII", 0x803, count, 28, 28) + pixels.tobytes()
        labels = struct.pack(">II", 0x801, count) + bytes(number % 10 for number in range(count))
        for kind, data in (("images-idx3", images), ("labels-idx1", labels)):
            (raw / f"{prefix}-{kind}-ubyte").write_bytes(data)
            (raw / f"{prefix}-{kind}-ubyte.gz").write_bytes(gzip.compress(data))


def test_torchvision_set_on_disk_is_read_with_its_class_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_fashion_mnist(tmp_path, count=40)
    monkeypatch.chdir(tmp_path)
    source = open_source("torchvision:FashionMNIST", download=False)
    assert count_splits(source) == {"train": 30, "val": 10, "test": 40}
    assert source.classes[0] == "Ankle boot"
    sample = source.splits["test"].samples[0]
    assert sample.name == "FashionMNIST/test/00"
    assert source.classes[sample.label] == "T-shirt/top"
    assert Image.open(io.BytesIO(sample.read())).size == (28, 28)


@pytest.mark.parametrize("name", ["CIFAR10", "FashionMNIST", "Flowers102"])
def test_torchvision_set_that_is_not_there_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"torchvision:{name}: not usable"):
        open_source(f"torchvision:{name}", download=False)


def test_unknown_torchvision_set_is_refused_with_those_known() -> None:
    with pytest.raises(UsageError, match="CIFAR10, CIFAR100"):
        open_source("torchvision:Imaginary")
