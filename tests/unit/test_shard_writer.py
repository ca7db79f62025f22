import json
import re
import signal
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from imgcls.cli.main import app
from imgcls.data.digests import hash_source, make_fingerprint
from imgcls.data.pixels import load_pixels
from imgcls.data.shard_writer import parse_size, write_shards
from imgcls.data.sources import open_source
from imgcls.errors import DataError, UsageError
from model.spec import ModelSpec
from tests.support.shards import count_splits, encode_image, write_folder

KEY = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")  # as the package webdataset splits names


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


def test_what_a_killed_process_wrote_goes_with_the_next_one(tmp_path: Path) -> None:
    write_folder(tmp_path / "photos")
    script = """
import os, sys
from dataclasses import replace
from pathlib import Path
from imgcls.data.shard_writer import write_shards
from imgcls.data.sources import open_source

source, shards = open_source(sys.argv[1]), Path(sys.argv[2])
split = source.splits["test"]
last = replace(split.samples[-1], read=lambda: os.kill(os.getpid(), 9))
splits = {**source.splits, "test": replace(split, samples=(*split.samples[:-1], last))}
write_shards(replace(source, splits=splits), shards, size_bytes=40_000, progress=False)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "photos"), str(tmp_path / "shards")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert list(tmp_path.rglob("train-000000.tar"))
    write_shards(open_source(str(tmp_path / "photos")), tmp_path / "others", size_bytes=40_000, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["others", "photos"]
