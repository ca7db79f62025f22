import io
import json
import pickle
import re
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from imgcls.cli.main import app
from imgcls.data.digests import hash_source, make_fingerprint
from imgcls.data.images import DataSource, count_files
from imgcls.data.pixels import load_pixels
from imgcls.data.shard_writer import parse_size, write_shards
from imgcls.data.sources import open_source
from imgcls.errors import DataError, UsageError
from model.spec import ModelSpec

KEY = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")  # as the package webdataset splits names


def encode_image(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (shade % 256, shade // 256, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, files: dict[str, bytes] | list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files.items() if isinstance(files, dict) else files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def make_samples(count: int, *, first: int = 0) -> dict[str, bytes]:
    files = {}
    for number in range(first, first + count):
        files |= {f"{number:04}.png": encode_image(number), f"{number:04}.cls": str(number % 2).encode()}
    return files


def count_splits(source: DataSource) -> dict[str, int]:
    return {name: len(images) for name, images in source.splits.items()}


def reasons(source: DataSource) -> dict[str, str]:
    return {problem.name: problem.reason for problem in source.problems}


def write_folder(root: Path, *, count: int = 10) -> Path:
    for place, name in enumerate(("cats", "dogs.and.wolves", "ä b")):
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number}.v2.png").write_bytes(encode_image(place * 256 + number))
    return root


def read_as_webdataset(path: Path) -> list[dict[str, bytes]]:
    """Groups neighbouring members by key, as readers that stream do."""
    samples: list[dict[str, bytes]] = []
    with tarfile.open(path, "r|") as tar:
        for member in tar:
            key, kind = KEY.match(member.name).groups()
            if not samples or samples[-1]["__key__"] != key:
                samples.append({"__key__": key})
            assert kind not in samples[-1]
            samples[-1][kind] = tar.extractfile(member).read()
    return samples


def test_splits_come_from_the_names_of_the_shards(tmp_path: Path) -> None:
    for name, first, count in (("train-000000", 0, 6), ("train-000001", 6, 4), ("val-0", 10, 4), ("birds_test", 14, 2)):
        write_tar(tmp_path / f"{name}.tar", make_samples(count, first=first))
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    source = open_source(str(tmp_path))
    assert count_splits(source) == {"train": 10, "val": 4, "test": 2}
    assert source.classes == ("cat", "dog")
    assert source.problems == ()
    sample = source.splits["train"].samples[7]
    assert (sample.name, sample.label, sample.read()) == ("train-000001.tar/0007.png", 1, encode_image(7))
    assert pickle.loads(pickle.dumps(sample)).read() == encode_image(7)


@pytest.mark.parametrize("what", ["folder", "pattern", "one"])
def test_shards_without_splits_are_drawn_into_three(tmp_path: Path, what: str) -> None:
    paths = [write_tar(tmp_path / f"part-{n}.tar", make_samples(20, first=20 * n)) for n in range(2)]
    text = {"folder": str(tmp_path), "pattern": str(tmp_path / "part-*.tar"), "one": str(paths[0])}[what]
    assert count_splits(open_source(text)) == (
        {"train": 14, "val": 3, "test": 3} if what == "one" else {"train": 28, "val": 6, "test": 6}
    )


def test_labels_are_names_numbers_or_json_with_columns(tmp_path: Path) -> None:
    files = {
        "./a/1.JPG": encode_image(1),
        "./a/1.cls": b"dog\n",
        "b.png": encode_image(2),
        "b.json": json.dumps({"label": "cat", "camera": 3, "boxes": [1], "path": "in/b.png"}).encode(),
        "c.png": encode_image(3),
        "c.json": b'{"label": 1}',
        "d.png": encode_image(4),
        "d.json": b'{"camera": "x"}',
        "d.cls": b"0",
        "d.txt": b"a caption is nothing to us",
        "d.seg.png": b"nor is a mask",
        "._d.png": b"nor what macOS leaves",
    }
    write_tar(tmp_path / "test-0.tar", files)
    (tmp_path / "classes.json").write_text('{"0": "cat", "1": "dog"}')
    source = open_source(str(tmp_path / "test-0.tar"))
    found = {s.name: (source.classes[s.label], dict(s.columns)) for s in source.splits["test"].samples}
    assert found == {
        "test-0.tar/a/1.JPG": ("dog", {}),
        "in/b.png": ("cat", {"camera": "3"}),
        "test-0.tar/c.png": ("dog", {}),
        "test-0.tar/d.png": ("cat", {"camera": "x"}),
    }
    assert source.problems == ()


def test_odd_entries_are_named_with_a_reason_and_nothing_is_unpacked(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "train-0.tar", make_samples(12))
    odd = [
        ("../up.png", encode_image(1)),
        ("/etc/passwd.png", encode_image(1)),
        ("nolabel.png", encode_image(1)),
        ("noimage.cls", b"1"),
        ("two.png", encode_image(1)),
        ("two.jpg", encode_image(1)),
        ("twice.png", encode_image(1)),
        ("twice.cls", b"0"),
        ("twice.png", encode_image(2)),
        ("broken.png", encode_image(1)),
        ("broken.json", b"{"),
        ("bytes.png", encode_image(1)),
        ("bytes.cls", b"\xff"),
        ("long.png", encode_image(1)),
        ("long.json", b" " * (1 << 20) + b"{}"),
        ("lone.png", encode_image(1)),
        ("lone.json", b'{"label": "\\ud800"}'),
        ("true.png", encode_image(1)),
        ("true.json", b'{"label": true}'),
    ]
    with tarfile.open(path, "a") as tar:
        for name, data in odd:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, kind in (
            ("link.png", tarfile.SYMTYPE),
            ("hard.png", tarfile.LNKTYPE),
            ("pipe.png", tarfile.FIFOTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "0001.png"
            tar.addfile(info)
    source = open_source(str(path))
    found = {name.removeprefix("train-0.tar/"): reason for name, reason in reasons(source).items()}
    expected = {
        "../up.png": "leads out",
        "/etc/passwd.png": "leads out",
        "nolabel.png": "unlabelled",
        "noimage": "has 0 images",
        "two.png": "has 2 images",
        "twice.png": "there twice",
        "broken.png": "no JSON",
        "bytes.png": "no UTF-8",
        "long.png": "at most 1048576",
        "lone.png": "not UTF-8",
        "true.png": "unlabelled",
        "link.png": "a link",
        "hard.png": "a link",
        "pipe.png": "a link",
    }
    assert set(found) == set(expected)
    assert all(said in found[name] for name, said in expected.items()), found
    assert sum(count_splits(source).values()) == 12


def test_number_that_classes_txt_does_not_name_is_a_problem(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", make_samples(12) | {"x.png": encode_image(1), "x.cls": b"7"})
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert "none of the 2 classes" in reasons(open_source(str(tmp_path)))["a.tar/x.png"]
    (tmp_path / "classes.txt").write_text("cat\ncat\n")
    with pytest.raises(DataError, match=r"classes\.txt: a name is missing, or there twice"):
        open_source(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "said"),
    [("[" * 100_000, "recursion"), ('"ab"', "holds a str; expected a list of names, or names by number"), ("7", "int")],
)
def test_names_of_classes_that_are_none_are_one_clear_line(tmp_path: Path, text: str, said: str) -> None:
    write_tar(tmp_path / "a.tar", make_samples(12))
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(DataError, match=rf"classes\.json: cannot be read as names of classes: [^\n]*{said}[^\n]*$"):
        open_source(str(tmp_path))


def test_images_of_one_name_are_named_by_their_places(tmp_path: Path) -> None:
    paths = {1: "same.png", 2: "same.png", 3: "own.png", 4: "b.tar/0021.png"}
    files = {f"{number:04}.json": json.dumps({"path": path}).encode() for number, path in paths.items()}
    write_tar(tmp_path / "a.tar", make_samples(20) | files)
    write_tar(tmp_path / "b.tar", make_samples(20, first=20) | {"0020.json": b'{"path": "same.png"}'})
    source = open_source(str(tmp_path))
    images = [sample for split in source.splits.values() for sample in split.samples]
    names = {sample.name for sample in images}
    assert len(names) == len(images) == 40
    assert {name for name in names if "tar" not in name} == {"own.png"}
    assert {"a.tar/0001.png", "a.tar/0002.png", "a.tar/0004.png", "b.tar/0020.png", "b.tar/0021.png"} <= names


def test_names_that_are_not_utf8_are_named_and_left_out(tmp_path: Path) -> None:
    bad = {"caf\udce9.png": encode_image(1), "caf\udce9.cls": b"0", "th\udce9.png": encode_image(2)}
    named = {"na\udce9.png": encode_image(3), "na\udce9.json": b'{"label": "0", "path": "fine.png"}'}
    write_tar(tmp_path / "a.tar", make_samples(12) | bad | named)
    source = open_source(str(tmp_path))
    assert reasons(source)["a.tar/caf\\udce9.png"] == "its name is not UTF-8; rename it"
    assert reasons(source)["a.tar/th\\udce9.png"].startswith("unlabelled")
    assert "fine.png" in {sample.name for split in source.splits.values() for sample in split.samples}


def test_what_stands_where_a_shard_should_end_is_named(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "a.tar", make_samples(12)).read_bytes()
    after = 24 * 1024  # of the last member
    (tmp_path / "b.tar").write_bytes(whole[:after])
    (tmp_path / "c.tar").write_bytes(whole * 2)
    (tmp_path / "d.tar").write_bytes(whole[: after + 512])  # some writers end with less zeros
    source = open_source(str(tmp_path))
    assert sum(count_splits(source).values()) == 48
    assert {name: reason.split(": ")[1] for name, reason in reasons(source).items()} == {
        "b.tar": "it has no end, so it may be cut short; pack it again",
        "c.tar": "something stands after its end, such as a second tar; pack it again",
    }


@pytest.mark.parametrize("damage", ["cut", "header", "negative size", "gzip", "empty"])
def test_damaged_shard_is_named_and_what_stands_before_is_used(tmp_path: Path, damage: str) -> None:
    write_tar(tmp_path / "a.tar", make_samples(12))
    path = write_tar(tmp_path / "b.tar", make_samples(12))
    data = bytearray(path.read_bytes())
    header = 20 * 1024  # of 0010.png: each member has a block of header and one of data
    if damage == "header":
        data[header : header + 512] = b"x" * 512
    if damage == "negative size":
        info = tarfile.TarInfo("bad.png")
        info.size = -4096
        data[header : header + 512] = info.tobuf(format=tarfile.GNU_FORMAT)
    whole = {"cut": data[: header + 520], "gzip": b"\x1f\x8b" + bytes(2000), "empty": b""}.get(damage, data)
    path.write_bytes(whole)
    source = open_source(str(tmp_path))
    assert "is no whole, uncompressed tar" in reasons(source)["b.tar"]
    assert sum(count_splits(source).values()) == (12 if damage in ("gzip", "empty") else 22)


def test_names_of_names_without_end_are_a_damaged_shard(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", make_samples(12))
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1
    (tmp_path / "b.tar").write_bytes((info.tobuf() + b"a".ljust(512, b"\0")) * 3000)
    assert "is no whole, uncompressed tar" in reasons(open_source(str(tmp_path)))["b.tar"]


def test_shard_that_is_cut_short_later_is_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", make_samples(12))
    source = open_source(str(path))
    path.write_bytes(path.read_bytes()[:600])
    assert all(digest is None for digest in hash_source(source, progress=False)["train"][1:])


def test_shard_of_no_split_beside_others_is_left_out(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", make_samples(12))
    write_tar(tmp_path / "more.tar", make_samples(12))
    assert reasons(open_source(str(tmp_path))) == {
        "more.tar": "of no split, as others are; expected such as train-more.tar"
    }


def test_folder_of_classes_stays_one_though_a_tar_lies_beside_them(tmp_path: Path) -> None:
    write_tar(write_folder(tmp_path) / "photos.tar", make_samples(2))
    assert open_source(str(tmp_path)).classes == ("cats", "dogs.and.wolves", "ä b")


def test_braces_and_patterns_without_a_match_are_refused() -> None:
    with pytest.raises(UsageError, match="has braces, which are not expanded"):
        open_source("shards/train-{000000..000009}.tar")
    with pytest.raises(UsageError, match=r"no such file, folder or name.*\.tar shards"):
        open_source("shards/none-*.tar")


def test_training_sees_the_same_from_shards_as_from_the_folder(tmp_path: Path) -> None:
    folder = open_source(str(write_folder(tmp_path / "photos")), seed=3)
    written = write_shards(folder, tmp_path / "shards", size_bytes=40_000, seed=3, progress=False)
    shards = open_source(str(tmp_path / "shards"))
    assert shards.problems == ()
    assert shards.classes == folder.classes
    assert written.shards["train"] > 1
    assert written.images == count_splits(folder) == count_splits(shards)
    spec = ModelSpec(size=4, resize=4, mean=(0.0,) * 3, std=(1.0,) * 3, classes=folder.classes)
    one, other = (hash_source(source, progress=False) for source in (folder, shards))
    for name, images in folder.splits.items():
        before, after = (load_pixels(split, spec, progress=False) for split in (images, shards.splits[name]))
        assert before.names == after.names
        assert torch.equal(before.labels, after.labels)
        assert np.array_equal(before.pixels, after.pixels)
        assert make_fingerprint(images, one[name]) == make_fingerprint(shards.splits[name], other[name])


def test_written_shards_follow_the_convention_and_their_size(tmp_path: Path) -> None:
    source = open_source(str(write_folder(tmp_path / "photos")))
    write_shards(source, tmp_path / "shards", size_bytes=40_000, progress=False)
    paths = sorted((tmp_path / "shards").glob("*.tar"))
    assert [path.name for path in paths][:2] == ["test-000000.tar", "train-000000.tar"]
    assert all(path.stat().st_size <= 40_000 for path in paths)
    samples = [sample for path in paths for sample in read_as_webdataset(path)]
    assert len(samples) == 30
    classes = json.loads((tmp_path / "shards" / "classes.json").read_text())
    for sample in samples:
        assert set(sample) == {"__key__", "png", "cls", "json"}
        assert json.loads(sample["json"])["label"] == classes[int(sample["cls"])]
    train = [sample for path in paths if "train" in path.name for sample in read_as_webdataset(path)]
    assert [sample["cls"] for sample in train] != sorted(sample["cls"] for sample in train)  # streams see them mixed


def test_equal_sources_write_equal_bytes_and_shards_can_be_cut_anew(tmp_path: Path) -> None:
    source = open_source(str(write_folder(tmp_path / "photos")))
    for name in ("a", "b"):
        write_shards(source, tmp_path / name, size_bytes=10**6, progress=False)
    write_shards(open_source(str(tmp_path / "a")), tmp_path / "c", size_bytes=10**6, progress=False)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
        assert path.read_bytes() == (tmp_path / "c" / path.name).read_bytes()


def test_no_shard_is_larger_than_its_size_whatever_that_is(tmp_path: Path) -> None:
    for path in write_folder(tmp_path / "photos").rglob("*.png"):
        path.write_bytes(path.read_bytes().ljust(4096, b"\0"))  # with its label, three end 512 bytes before a record
    source = open_source(str(tmp_path / "photos"))
    for size_bytes in (30_208, 30_719, 30_720):
        written = write_shards(source, tmp_path / str(size_bytes), size_bytes=size_bytes, progress=False)
        sizes = [path.stat().st_size for path in written.folder.glob("*.tar")]
        assert max(sizes) == size_bytes // 10_240 * 10_240


@pytest.mark.parametrize(
    ("chunk", "reason"),
    [
        (b"IHDR" + 2 * (100_000).to_bytes(4) + bytes([8, 2, 0, 0, 0]), "exceeds limit"),  # width and height
        (b"zTXtk\0\0" + zlib.compress(bytes(2 << 20)), "the image's header is broken: Decompressed data too large"),
    ],
    ids=["pixels", "text"],
)
def test_broken_header_without_a_suffix_is_left_out_by_name(tmp_path: Path, chunk: bytes, reason: str) -> None:
    rows = "".join(f"{number},{number % 2}\n" for number in range(13))
    for number in range(13):
        (tmp_path / f"{number}").write_bytes(encode_image(number))
    image, added = encode_image(1), (len(chunk) - 4).to_bytes(4) + chunk + zlib.crc32(chunk).to_bytes(4)
    (tmp_path / "12").write_bytes(image[:8] + added + image[33:] if chunk[:4] == b"IHDR" else image[:33] + added)
    (tmp_path / "t.csv").write_text("path,label\n" + rows)
    source = open_source(str(tmp_path / "t.csv"))
    written = write_shards(source, tmp_path / "shards", size_bytes=10**6, progress=False)
    assert sum(written.images.values()) == 12
    [problem] = written.problems
    assert problem.name == "12"
    assert reason in problem.reason


def test_columns_of_a_table_and_names_without_a_suffix_survive(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"{number}").write_bytes(encode_image(number))
    rows = "".join(f"{number},{'cat' if number % 2 else 'dog'},site {number % 3}\n" for number in range(12))
    (tmp_path / "t.csv").write_text("path,label,site\n" + rows)
    table = open_source(str(tmp_path / "t.csv"))
    write_shards(table, tmp_path / "shards", size_bytes=10**6, progress=False)
    shards = open_source(str(tmp_path / "shards"))
    for name, images in table.splits.items():
        assert [(s.name, s.label, s.columns, s.read()) for s in images.samples] == [
            (s.name, s.label, s.columns, s.read()) for s in shards.splits[name].samples
        ]


def test_command_writes_names_what_it_leaves_out_and_never_overwrites(tmp_path: Path) -> None:
    write_folder(tmp_path / "photos")
    (tmp_path / "photos" / "cats" / "notes.txt").write_text("x")
    (tmp_path / "photos" / "cats" / "\x1b[2J\nleft out: nothing").write_text("x")
    command = ["data", "shard", str(tmp_path / "photos"), str(tmp_path / "shards"), "--size", "1MB"]
    strict = CliRunner().invoke(app, [*command, "--strict"])
    assert isinstance(strict.exception, DataError)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
    shown = CliRunner().invoke(app, command, catch_exceptions=False)
    assert "wrote 30 images (train 21, val 5, test 4) in 3 shards" in shown.stdout
    assert "left out: cats/notes.txt: not an image file" in shown.stderr
    assert "left out: cats/\\x1b[2J\\nleft out: nothing: not an image file" in shown.stderr
    again = CliRunner().invoke(app, command)
    assert isinstance(again.exception, UsageError)
    assert "is there already" in str(again.exception)


def test_strict_shards_hold_no_image_that_cannot_be_decoded(tmp_path: Path) -> None:
    photos = write_folder(tmp_path / "photos")
    broken = next(path for path in sorted(photos.rglob("*")) if path.is_file())
    broken.write_bytes(broken.read_bytes()[:40])
    shown = CliRunner().invoke(app, ["data", "shard", str(photos), str(tmp_path / "strict"), "--strict"])
    assert isinstance(shown.exception, DataError)
    assert f"1 file cannot be used, first {broken.relative_to(photos)}" in str(shown.exception).replace("files", "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]
    assert CliRunner().invoke(app, ["data", "shard", str(photos), str(tmp_path / "all")]).exit_code == 0


def test_folder_that_cannot_be_finished_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(str(write_folder(tmp_path / "photos")))

    def fail(*_: object) -> None:
        raise OSError("disk is full")

    monkeypatch.setattr("imgcls.data.shard_writer.sync", fail)
    with pytest.raises(OSError, match="disk is full"):
        write_shards(source, tmp_path / "shards", size_bytes=10**6, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_perturbed_source_is_not_packed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="shards hold them as they are"):
        write_shards(open_source("digits,noise=5"), tmp_path / "shards", size_bytes=10**6, progress=False)


@pytest.mark.parametrize(
    ("text", "size"), [("500MB", 5 * 10**8), ("1.5 GB", 15 * 10**8), ("800kB", 8 * 10**5), ("7", 7)]
)
def test_sizes_are_read_with_their_units(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "5 bananas", "nan", "5MBB", "inf"])
def test_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--size is"):
        parse_size(text)


def test_problems_of_a_shard_count_as_files(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", make_samples(12) | {"x.png": encode_image(1)})
    assert count_files(open_source(str(tmp_path)).problems) == 1
