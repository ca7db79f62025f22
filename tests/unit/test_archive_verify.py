import hashlib
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from handler.integrity import (
    INTEGRITY_FILE,
    SIGNATURE_FILE,
    FileRecord,
    IntegrityError,
    check_tree,
    dump_integrity,
    hash_file,
    make_integrity,
)
from handler.layout import PAGE_BYTES, open_layout
from imgcls.archive.pack import pack_tree, read_build_time, write_manifest
from imgcls.archive.publish import add_signature
from imgcls.archive.verify import verify_archive
from imgcls.cli.archive import app
from imgcls.errors import ArchiveError, UsageError

FILES = {"model/network.py": b"x = 1\n", "a.txt": b"", "weights.safetensors": bytes(range(256)) * 40}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tree")
    for path, content in FILES.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(content)
    write_manifest(folder, name="small", version="1.5", created=read_build_time())
    return folder


@pytest.fixture(scope="module")
def small(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """small.mar: a few files; read only."""
    mar = tmp_path_factory.mktemp("small") / "small.mar"
    pack_tree(tree, mar, created=read_build_time())
    return mar


def repack(mar: Path, target: Path, change: Callable[[list[tuple[str, bytes]]], object]) -> Path:
    """Writes a copy of the archive with another list of entries, by means of zipfile alone."""
    with zipfile.ZipFile(mar) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    change(entries)
    with zipfile.ZipFile(target, "w") as archive:
        for path, content in entries:
            archive.writestr(zipfile.ZipInfo(path), content)
    return target


def test_an_archive_as_packed_verifies(small: Path):
    verified = verify_archive(small)
    assert (verified.name, verified.version, verified.is_signed) == ("small", "1.5", False)
    assert [file.path for file in verified.integrity.files] == sorted([*FILES, "MAR-INF/MANIFEST.json"])
    assert verified.archive_sha256 == hash_file(small)


def test_the_tree_hash_is_what_sha256sum_says(small: Path, tmp_path: Path):
    with zipfile.ZipFile(small) as archive:
        archive.extractall(tmp_path)
    paths = [file.path for file in verify_archive(small).integrity.files]
    listing = subprocess.run(["sha256sum", *paths], cwd=tmp_path, capture_output=True, check=True).stdout
    whole = subprocess.run(["sha256sum"], input=listing, capture_output=True, check=True).stdout.decode().split()[0]
    assert whole == verify_archive(small).integrity.tree_sha256


def test_a_change_of_any_byte_is_found(small: Path, tmp_path: Path):
    content, spoilt = small.read_bytes(), tmp_path / "spoilt.mar"
    # Every byte of every header, the directory and the record; of plain data and its padding each 97th.
    start, end = _data_of(small, "weights.safetensors")
    plain = range(start - 2500, end)
    places = sorted(set(range(len(content))) - set(plain) | set(plain[::97]))
    for place in places:
        spoilt.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(ArchiveError, match="do not serve it"):
            verify_archive(spoilt)


def _data_of(mar: Path, path: str) -> tuple[int, int]:
    with zipfile.ZipFile(mar) as archive:
        info = archive.getinfo(path)
    with mar.open("rb") as file:
        file.seek(info.header_offset + 26)
        start = info.header_offset + 30 + sum(struct.unpack("<2H", file.read(4)))
    return start, start + info.file_size


def test_an_entry_of_a_page_or_more_begins_at_a_page(small: Path):
    assert _data_of(small, "weights.safetensors")[0] % PAGE_BYTES == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entries: entries.append(("extra.py", b"")), r"extra\.py: is not recorded"),
        (lambda entries: entries.pop(1), r"a\.txt: is recorded .* but the archive does not hold it"),
        (lambda entries: entries.__setitem__(1, ("b.txt", b"")), "b.txt: is not recorded|a.txt: is recorded"),
        (lambda entries: entries.insert(0, entries.pop(1)), "the entries were put in another order"),
        (lambda entries: entries.reverse(), "the entries were put in another order"),
        (lambda entries: entries.pop(), "integrity.json, so it was not packed by imgcls"),
        (
            lambda entries: None,
            "every file is as recorded, but the zip is not as packed",
        ),  # zipped by another tool, it does not begin at a page
        (
            lambda entries: entries.__setitem__(2, (entries[2][0], b"y = 2\n")),
            "network.py: is not the file that was recorded",
        ),
    ],
    ids=["added", "removed", "renamed", "moved", "reversed", "no record", "zipped again", "changed"],
)
def test_a_change_of_the_entries_is_named(small: Path, tmp_path: Path, change, message):
    with pytest.raises(ArchiveError, match=message) as caught:
        verify_archive(repack(small, tmp_path / "changed.mar", change))
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_entry_that_is_there_twice_is_named(small: Path, tmp_path: Path):
    twice = repack(small, tmp_path / "twice.mar", lambda entries: entries.insert(2, entries[1]))
    with pytest.raises(ArchiveError, match="more than once"):
        verify_archive(twice)


def test_bytes_around_the_zip_are_found(small: Path, tmp_path: Path):
    spoilt = tmp_path / "spoilt.mar"
    for content in (small.read_bytes() + b"x", b"x" + small.read_bytes(), small.read_bytes()[:-1], b"", b"no zip"):
        spoilt.write_bytes(content)
        with pytest.raises(ArchiveError, match="do not serve it"):
            verify_archive(spoilt)


def test_a_changed_file_with_a_record_to_fit_needs_a_signature_to_be_found(small: Path, tree: Path, tmp_path: Path):
    """What hashes alone cannot promise; docs/trust.md says so."""
    forged = shutil.copytree(tree, tmp_path / "tree")
    (forged / INTEGRITY_FILE).unlink(missing_ok=True)
    (forged / "a.txt").write_text("forged")
    pack_tree(forged, tmp_path / "forged.mar", created=read_build_time())
    verified = verify_archive(tmp_path / "forged.mar")
    assert verified.integrity.tree_sha256 != verify_archive(small).integrity.tree_sha256


def test_a_signature_changes_no_recorded_file(small: Path, tmp_path: Path):
    add_signature(small, b"first", tmp_path / "first.mar")
    add_signature(tmp_path / "first.mar", b"second", tmp_path / "second.mar")
    verified = verify_archive(tmp_path / "second.mar")
    assert verified.is_signed
    assert verified.integrity == verify_archive(small).integrity
    with zipfile.ZipFile(tmp_path / "second.mar") as archive:
        assert archive.namelist()[-2:] == [INTEGRITY_FILE, SIGNATURE_FILE]
        assert archive.read(SIGNATURE_FILE) == b"second"


def test_a_signature_that_is_too_large_for_memory_is_refused(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("imgcls.archive.verify.MAX_RECORD_BYTES", 10_000)
    for size_bytes in (10_000, 10_001):
        add_signature(small, bytes(size_bytes), tmp_path / f"{size_bytes}.mar")
    verify_archive(tmp_path / "10000.mar")
    with pytest.raises(ArchiveError, match=r"integrity\.json\.sig: its entry in the zip's directory was changed"):
        verify_archive(tmp_path / "10001.mar")


def test_two_trees_of_the_same_files_are_packed_to_the_same_bytes(small: Path, tmp_path: Path):
    """In another folder, written in another order, with other times, modes and umask, in another time zone."""
    script = """
import os, sys
from pathlib import Path
from imgcls.archive.pack import pack_tree, read_build_time, write_manifest
os.umask(0o077)
folder = Path(sys.argv[1])
for path, content in reversed(sorted(eval(sys.argv[2]).items())):
    (folder / path).parent.mkdir(exist_ok=True, parents=True)
    (folder / path).write_bytes(content)
    (folder / path).chmod(0o700)
    os.utime(folder / path, (1e9, 1e9))
write_manifest(folder, name="small", version="1.5", created=read_build_time())
pack_tree(folder, folder.with_suffix(".mar"), created=read_build_time())
"""
    environment = {**os.environ, "TZ": "Asia/Kolkata", "LC_ALL": "C", "PYTHONHASHSEED": "7"}
    environment.pop("SOURCE_DATE_EPOCH", None)
    command = [sys.executable, "-c", script, str(tmp_path / "elsewhere"), repr(FILES)]
    subprocess.run(command, env=environment, check=True)
    assert (tmp_path / "elsewhere.mar").read_bytes() == small.read_bytes()


def test_source_date_epoch_is_the_time_of_every_entry(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000001")
    other = shutil.copytree(tree, tmp_path / "tree")
    (other / INTEGRITY_FILE).unlink(missing_ok=True)
    created = read_build_time()
    write_manifest(other, name="small", version="1.5", created=created)
    pack_tree(other, tmp_path / "dated.mar", created=created)
    with zipfile.ZipFile(tmp_path / "dated.mar") as archive:
        assert {info.date_time for info in archive.infolist()} == {(2023, 11, 14, 22, 13, 20)}
    assert verify_archive(tmp_path / "dated.mar").name == "small"


@pytest.mark.parametrize("text", ["yesterday", "1.5", "0", "", "99999999999999"])
def test_a_source_date_epoch_that_is_no_time_of_a_zip_is_refused(monkeypatch: pytest.MonkeyPatch, text: str):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", text)
    with pytest.raises(UsageError, match=f"SOURCE_DATE_EPOCH is '{text}'; expected seconds since 1970"):
        read_build_time()


@pytest.fixture
def unpacked_small(small: Path, tmp_path: Path) -> Path:
    with zipfile.ZipFile(small) as archive:
        archive.extractall(tmp_path / "unpacked")
    return tmp_path / "unpacked"


def _link(folder: Path) -> None:
    (folder / "a.txt").unlink()
    (folder / "a.txt").symlink_to("/dev/null")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "model/network.py").write_text("x = 2\n"), r"model/network\.py: is not the file"),
        (lambda folder: (folder / "a.txt").unlink(), r"a\.txt: is recorded"),
        (lambda folder: (folder / "model/more.py").write_text(""), r"model/more\.py: is not recorded"),
        (lambda folder: (folder / "model/network.pyc").write_bytes(b""), r"model/network\.pyc: is not recorded"),
        (_link, r"a\.txt: is not the file"),
        (lambda folder: (folder / "link").symlink_to("/tmp"), "link: is not recorded"),
        (lambda folder: (folder / INTEGRITY_FILE).unlink(), "cannot be read"),
        (lambda folder: (folder / INTEGRITY_FILE).write_text("{}"), "cannot be read"),
        (lambda folder: (folder / INTEGRITY_FILE).write_text("[" * 100_000), "cannot be read"),
        (
            lambda folder: (folder / INTEGRITY_FILE).write_bytes((folder / INTEGRITY_FILE).read_bytes() + b" "),
            "it was changed",
        ),
    ],
)
def test_an_unpacked_archive_that_was_changed_is_refused(unpacked_small: Path, spoil, message):
    check_tree(unpacked_small)
    spoil(unpacked_small)
    with pytest.raises(IntegrityError, match=message):
        check_tree(unpacked_small)


@pytest.mark.parametrize(
    "name",
    [
        "handler/__pycache__/entry.cpython-311.pyc",
        "handler/__pycache__/__init__.cpython-311.pyc.14",
        "core",
        "core.1234",
    ],
)
def test_what_appears_in_a_worker_s_folder_by_itself_is_no_reason_to_refuse(unpacked_small: Path, name: str):
    (unpacked_small / name).parent.mkdir(exist_ok=True, parents=True)
    (unpacked_small / name).write_bytes(b"")
    check_tree(unpacked_small)


@pytest.mark.parametrize("name", ["model/__pycache__/network.cpython-311.pyc", "handler/__pycache__/trust.pyc"])
def test_compiled_python_that_would_run_instead_of_its_source_is_refused(unpacked_small: Path, name: str):
    (unpacked_small / name).parent.mkdir(parents=True)
    (unpacked_small / name).write_bytes(b"planted")
    with pytest.raises(IntegrityError, match="is not recorded"):
        check_tree(unpacked_small)


def spoil_directory(mar: Path, path: str, *, method: int) -> None:
    """Writes another compression method into an entry of the zip's directory."""
    content = bytearray(mar.read_bytes())
    place = content.rindex(path.encode()) - 46 + 10
    content[place : place + 2] = method.to_bytes(2, "little")
    mar.write_bytes(content)


@pytest.mark.parametrize("method", [8, 12, 14, 99])
@pytest.mark.parametrize("path", ["weights.safetensors", INTEGRITY_FILE, "MAR-INF/MANIFEST.json"])
def test_a_method_of_compression_that_is_not_ours_is_one_line(small: Path, tmp_path: Path, path: str, method: int):
    mar = tmp_path / "spoilt.mar"
    shutil.copyfile(small, mar)
    spoil_directory(mar, path, method=method)
    with pytest.raises(ArchiveError, match="do not serve it"):
        verify_archive(mar)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"size_bytes": 6', b'"size_bytes": null'),
        (b'"size_bytes": 6', b'"size_bytes": "6"'),
        (b'"size_bytes": 6', b'"size_bytes": -1'),
        (b'"size_bytes": 6', b'"size_bytes": 1.5'),
        (b'"size_bytes": 6', b'"size_bytes": ' + b"9" * 30),
        (b'"path": "a.txt"', b'"path": "\\ud800"'),
        (b'"path": "a.txt"', b'"path": 5'),
        (b'"sha256": "', b'"sha256": "x'),
    ],
)
def test_a_record_that_makes_no_sense_is_one_line(small: Path, tmp_path: Path, old: bytes, new: bytes):
    def change(entries: list[tuple[str, bytes]]) -> None:
        path, record = entries[-1]
        assert old in record
        entries[-1] = (path, record.replace(old, new, 1))

    with pytest.raises(ArchiveError, match=r"integrity\.json: ") as caught:
        verify_archive(repack(small, tmp_path / "spoilt.mar", change))
    assert "\n" not in str(caught.value)


def pack_files(files: dict[str, bytes], target: Path) -> str:
    """Packs files as a build would, whatever their paths; returns the tree's hash."""
    integrity = make_integrity(
        FileRecord(path, len(content), hashlib.sha256(content).hexdigest()) for path, content in files.items()
    )
    record = dump_integrity(integrity)
    with target.open("xb") as file:
        layout = open_layout(file, created=read_build_time())
        with layout.file:
            for path in integrity.by_path():
                layout.add(path, io.BytesIO(files[path]), size_bytes=len(files[path]))
            layout.add(INTEGRITY_FILE, io.BytesIO(record), size_bytes=len(record))
    return integrity.tree_sha256


@pytest.mark.parametrize(
    "path",
    [
        *("../up", "a/../b", "/root", "C:/x", "a//b", "./a", "", "folder/", "a\\b", "a\nb", "\x1b[2J"),
        *("MAR-INF", f"a/{256 * 'b'}", 128 * "\u00e4"),
    ],
)
def test_a_path_that_no_build_packs_is_refused_however_well_it_is_packed(small: Path, tmp_path: Path, path: str):
    with zipfile.ZipFile(small) as archive:
        files = {name: archive.read(name) for name in archive.namelist() if name != INTEGRITY_FILE}
    pack_files(files, tmp_path / "same.mar")
    assert (tmp_path / "same.mar").read_bytes() == small.read_bytes()
    pack_files({**files, path: b"x"}, tmp_path / "odd.mar")
    with pytest.raises(ArchiveError, match=r"integrity\.json: records a file .* no build packs that") as caught:
        verify_archive(tmp_path / "odd.mar")
    assert str(caught.value).isprintable()


def test_no_two_archives_that_verify_have_one_tree_hash(small: Path, tmp_path: Path):
    """A path that holds the line of another file would stand for both, and that file would not be there."""
    with zipfile.ZipFile(small) as archive:
        files = {name: archive.read(name) for name in archive.namelist() if name != INTEGRITY_FILE}
    first, second = sorted(files)[1:3]
    lost = hashlib.sha256(files.pop(second)).hexdigest()
    files[f"{first}\n{lost}  {second}"] = files.pop(first)
    assert pack_files(files, tmp_path / "double.mar") == verify_archive(small).integrity.tree_sha256
    with pytest.raises(ArchiveError, match="no build packs that"):
        verify_archive(tmp_path / "double.mar")


@pytest.mark.parametrize(
    "manifest",
    [
        b"no JSON",
        b"[" * 100_000,
        b"[]",
        b"{}",
        b'{"model": {"modelName": 5, "modelVersion": "1"}}',
        b'{"createdOn": "01/01/1970 00:00:00", "model": {"modelName": "a", "modelVersion": "1"}}',
        b'{"createdOn": "01/01/9999 00:00:00", "model": {"modelName": "a", "modelVersion": "1"}}',
        b'{"createdOn": 5, "model": {"modelName": "a", "modelVersion": "1"}}',
    ],
)
def test_a_manifest_that_makes_no_sense_is_one_line(tree: Path, tmp_path: Path, manifest: bytes):
    other = shutil.copytree(tree, tmp_path / "tree")
    (other / INTEGRITY_FILE).unlink(missing_ok=True)
    (other / "MAR-INF/MANIFEST.json").write_bytes(manifest)
    pack_tree(other, tmp_path / "odd.mar", created=read_build_time())
    with pytest.raises(ArchiveError, match=r"MANIFEST\.json: ") as caught:
        verify_archive(tmp_path / "odd.mar")
    assert "\n" not in str(caught.value)


def test_the_command_verifies_and_speaks_json(small: Path):
    result = CliRunner().invoke(app, ["verify", str(small), "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["tree_sha256"] == verify_archive(small).integrity.tree_sha256
    result = CliRunner().invoke(app, ["verify", str(small)], catch_exceptions=False)
    assert "small 1.5: all 4 files and every byte as packed" in result.stdout


def test_the_command_refuses_a_file_that_is_not_there(tmp_path: Path):
    result = CliRunner().invoke(app, ["verify", str(tmp_path / "none.mar")])
    assert isinstance(result.exception, ArchiveError)


def test_verifying_needs_no_torch(small: Path):
    script = "import sys; from imgcls.cli.main import app; app(sys.argv[1:], standalone_mode=False); " + (
        "sys.exit(sorted({'torch', 'numpy', 'PIL', 'ts'} & set(sys.modules)) or None)"
    )
    subprocess.run([sys.executable, "-c", script, "archive", "verify", str(small)], check=True, capture_output=True)
