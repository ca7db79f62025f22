import io
import json
import pickle
import re
import tarfile
from pathlib import Path

import pytest

from imgcls.data.digests import hash_source
from imgcls.data.images import DataSource, count_files
from imgcls.data.sources import open_source
from imgcls.errors import DataError, UsageError
from tests.support.shards import count_splits, encode_image, make_samples, write_folder, write_tar

KEY = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")  # as the package webdataset splits names


def reasons(source: DataSource) -> dict[str, str]:
    return {problem.name: problem.reason for problem in source.problems}


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


def test_problems_of_a_shard_count_as_files(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", make_samples(12) | {"x.png": encode_image(1)})
    assert count_files(open_source(str(tmp_path)).problems) == 1
