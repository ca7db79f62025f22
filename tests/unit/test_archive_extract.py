import json
import os
import resource
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from imgcls.archive import contents
from imgcls.archive.contents import extract
from imgcls.cli.main import app
from imgcls.errors import ArchiveError

MakeZip = Callable[..., Path]
LINK_MODE = 0o120777 << 16


@pytest.fixture
def make_zip(tmp_path: Path) -> MakeZip:
    """make_zip({path: bytes or (bytes, external attributes)}) -> a .mar with these entries."""

    def make(entries: dict[str, bytes | tuple[bytes, int]], *, method: int = zipfile.ZIP_STORED) -> Path:
        mar = tmp_path / "x.mar"
        with zipfile.ZipFile(mar, "w", method) as archive:
            for name, content in entries.items():
                data, attributes = content if isinstance(content, tuple) else (content, 0)
                info = zipfile.ZipInfo(name)
                info.compress_type, info.external_attr = method, attributes
                archive.writestr(info, data)
        return mar

    return make


def list_files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_all_files_are_unpacked_with_their_content(make_zip: MakeZip, tmp_path: Path):
    mar = make_zip({"a.txt": b"1", "b/c/d.bin": b"2" * 3_000_000, "empty/": b""}, method=zipfile.ZIP_DEFLATED)
    told: list[int] = []
    assert extract(mar, folder=tmp_path / "out", on_bytes=told.append) == ["a.txt", "b/c/d.bin"]
    assert list_files(tmp_path / "out") == ["a.txt", "b/c/d.bin"]
    assert (tmp_path / "out/b/c/d.bin").read_bytes() == b"2" * 3_000_000
    assert (tmp_path / "out/empty").is_dir()
    assert sum(told) == 3_000_001 and len(told) > 2
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_unpacked_folder_has_the_rights_that_the_umask_leaves(make_zip: MakeZip, tmp_path: Path):
    before = os.umask(0o022)
    try:
        extract(make_zip({"a": (b"", 0o100777 << 16)}), folder=tmp_path / "out")
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "out/a").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../evil", "has '..'"),
        ("a/../../evil", "has '..'"),
        ("a//b", "has '..', '.' or nothing"),
        ("./a", "has '..', '.' or nothing"),
        ("/etc/evil", "has an absolute path"),
        ("C:evil", "has an absolute path"),
        ("..\\evil", "has a backslash or a control character"),
        ("a\nb", "has a backslash or a control character"),
    ],
)
def test_path_that_leads_out_of_the_folder_is_refused(make_zip: MakeZip, tmp_path: Path, name: str, reason: str):
    mar = make_zip({"good": b"1", name: b"2"})
    with pytest.raises(ArchiveError, match=reason):
        extract(mar, folder=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["x.mar"]


def test_name_that_is_cut_at_a_nul_is_refused(make_zip: MakeZip, tmp_path: Path):
    mar = make_zip({"goodXevil": b""})
    mar.write_bytes(mar.read_bytes().replace(b"goodXevil", b"good\0evil"))
    with pytest.raises(ArchiveError, match=r"good\\x00evil.*control character"):
        extract(mar, folder=tmp_path / "out")


@pytest.mark.parametrize("mode", [LINK_MODE, 0o020666 << 16, 0o010666 << 16], ids=["link", "device", "pipe"])
def test_links_and_devices_are_refused(make_zip: MakeZip, tmp_path: Path, mode: int):
    with pytest.raises(ArchiveError, match="'a' is a link or a device"):
        extract(make_zip({"a": (b"/etc/passwd", mode)}), folder=tmp_path / "out")


@pytest.mark.parametrize("names", [("a", "a"), ("a", "a/b"), ("a/b", "a/b/"), ("a/b/c", "a")])
def test_entry_that_would_be_written_over_another_is_refused(make_zip: MakeZip, tmp_path: Path, names):
    mar = tmp_path / "x.mar"
    with zipfile.ZipFile(mar, "w") as archive, pytest.warns() if names[0] == names[1] else _nothing():
        for name in names:
            archive.writestr(name, b"")
    with pytest.raises(ArchiveError, match="more than once, or is a file and a folder"):
        extract(mar, folder=tmp_path / "out")


def _nothing():
    from contextlib import nullcontext

    return nullcontext()


def test_bomb_is_refused_before_a_byte_is_written(make_zip: MakeZip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(contents, "SMALL_BYTES", 1_000_000)
    bomb = make_zip({"bomb": bytes(20_000_000)}, method=zipfile.ZIP_DEFLATED)
    with pytest.raises(ArchiveError, match="would unpack to 1 entries of 20,000,000 bytes"):
        extract(bomb, folder=tmp_path / "out")
    monkeypatch.setattr(contents, "MAX_RATIO", 100_000)
    extract(bomb, folder=tmp_path / "out")
    monkeypatch.setattr(contents, "MAX_ENTRIES", 2)
    with pytest.raises(ArchiveError, match="would unpack to 3 entries"):
        extract(make_zip({"a": b"", "b": b"", "c": b""}), folder=tmp_path / "more")


def test_folder_that_holds_something_is_left_as_it_is(make_zip: MakeZip, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("mine")
    (tmp_path / "file").touch()
    for name in ("out", "file"):
        with pytest.raises(ArchiveError, match="is there already; name a new folder"):
            extract(make_zip({"a": b""}), folder=tmp_path / name)
    assert list_files(tmp_path / "out") == ["mine"]
    with pytest.raises(ArchiveError, match="its parent folder is missing; make it first with mkdir -p"):
        extract(make_zip({"a": b""}), folder=tmp_path / "no" / "out")


def test_loop_of_links_is_no_folder_to_unpack_into(make_zip: MakeZip, tmp_path: Path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ArchiveError, match="loop: is there already; name a new folder"):
        extract(make_zip({"a": b""}), folder=tmp_path / "loop")
    with pytest.raises(ArchiveError, match="loop/out: its parent folder is missing"):
        extract(make_zip({"a": b""}), folder=tmp_path / "loop" / "out")


def test_current_folder_is_refused_since_it_would_be_replaced(
    make_zip: MakeZip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ArchiveError, match="is there already"):
        extract(make_zip({"a": b""}), folder=Path())


def test_empty_folder_is_filled(make_zip: MakeZip, tmp_path: Path):
    (tmp_path / "out").mkdir()
    extract(make_zip({"a": b""}), folder=tmp_path / "out")
    assert list_files(tmp_path / "out") == ["a"]


def test_only_what_matches_is_unpacked(make_zip: MakeZip, tmp_path: Path):
    mar = make_zip({"golden/0.png": b"", "golden/deep/1.png": b"", "model/a.py": b""})
    assert extract(mar, folder=tmp_path / "out", only="golden/*") == ["golden/0.png", "golden/deep/1.png"]
    assert list_files(tmp_path / "out") == ["golden/0.png", "golden/deep/1.png"]
    with pytest.raises(ArchiveError, match=r"holds no file that matches '\*\.jpg'"):
        extract(mar, folder=tmp_path / "none", only="*.jpg")


def test_damaged_entry_leaves_nothing(make_zip: MakeZip, tmp_path: Path):
    mar = make_zip({"a": b"x" * 100, "b": b"damage me"})
    mar.write_bytes(mar.read_bytes().replace(b"damage me", b"damaged!!"))
    with pytest.raises(ArchiveError, match="Bad CRC-32 for file 'b'"):
        extract(mar, folder=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["x.mar"]


def test_disk_that_is_too_small_is_told_before(make_zip: MakeZip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(ArchiveError, match="has 10 bytes free, and 11 are needed"):
        extract(make_zip({"a": bytes(11)}), folder=tmp_path / "out")


SCRIPT = """
import os, signal, sys
from pathlib import Path
from imgcls.archive.contents import extract
kill = (lambda count: os.kill(os.getpid(), signal.SIGKILL)) if sys.argv[3] == "kill" else (lambda count: None)
extract(Path(sys.argv[1]), folder=Path(sys.argv[2]), on_bytes=kill)
"""


def run_script(mar: Path, folder: Path, how: str, **options: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", SCRIPT, str(mar), str(folder), how]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_write_that_fails_half_way_leaves_nothing(make_zip: MakeZip, tmp_path: Path):
    mar = make_zip({"a": bytes(100), "b": bytes(10_000)})

    def allow_small_files_only() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    result = run_script(mar, tmp_path / "out", "fill", preexec_fn=allow_small_files_only)
    assert result.stderr.strip().endswith(f"x.mar: cannot be unpacked into {tmp_path / 'out'}: File too large")
    assert [path.name for path in tmp_path.iterdir()] == ["x.mar"]


def test_killed_process_leaves_no_half_folder_and_the_next_one_cleans_up(make_zip: MakeZip, tmp_path: Path):
    mar = make_zip({"a": b"1", "b": b"2"})
    assert run_script(mar, tmp_path / "out", "kill").returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    [left] = [path for path in tmp_path.iterdir() if path.name.startswith(".out-")]
    extract(mar, folder=tmp_path / "out")
    assert left.exists(), "another process may still be writing it"
    os.utime(left, (0, 0))
    (tmp_path / ".out-notes").mkdir()
    os.utime(tmp_path / ".out-notes", (0, 0))
    (tmp_path / "out").rename(tmp_path / "first")
    extract(mar, folder=tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out-notes", "first", "out", "x.mar"]


def test_command_verifies_before_it_unpacks(archive: Path, tmp_path: Path):
    done = CliRunner().invoke(app, ["archive", "extract", str(archive), str(tmp_path / "out"), "--json"])
    answer = json.loads(done.stdout)
    assert answer["verified"] and "spec.yaml" in answer["files"]
    assert sorted(answer["files"]) == list_files(tmp_path / "out")

    data = bytearray(archive.read_bytes())

    data[-1] ^= 1  # the zip's comment length: no entry is touched
    changed = tmp_path / "changed.mar"
    changed.write_bytes(data)
    refused = CliRunner().invoke(app, ["archive", "extract", str(changed), str(tmp_path / "more")])
    assert isinstance(refused.exception, ArchiveError) and "--no-verify unpacks it as it is" in str(refused.exception)
    assert not (tmp_path / "more").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [("none.mar", "there is no such archive"), ("folder.mar", "is a folder; name a .mar file"), ("empty.mar", "zip")],
)
def test_no_verify_is_not_offered_where_it_would_not_help(tmp_path: Path, name: str, message: str):
    (tmp_path / "folder.mar").mkdir()
    (tmp_path / "empty.mar").touch()
    refused = CliRunner().invoke(app, ["archive", "extract", str(tmp_path / name), str(tmp_path / "out")])
    assert isinstance(refused.exception, ArchiveError)
    assert message in str(refused.exception) and "--no-verify" not in str(refused.exception)


def test_foreign_archive_is_unpacked_on_demand(make_zip: MakeZip, tmp_path: Path):
    mar = make_zip({"MAR-INF/MANIFEST.json": b"{}", "model.pt": b"x"})
    arguments = ["archive", "extract", str(mar), str(tmp_path / "out")]
    refused = CliRunner().invoke(app, arguments)
    assert "--no-verify" in str(refused.exception)
    done = CliRunner().invoke(app, [*arguments, "--no-verify"])
    assert done.output == f"unpacked 2 files into {tmp_path / 'out'}, not verified\n"
