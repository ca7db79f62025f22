import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from imgcls.files import write_atomic
from imgcls.scratch import ScratchFolder


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_bytes_and_text_are_written_and_replaced(tmp_path: Path):
    path = tmp_path / "file.txt"
    write_atomic(path, b"\x00old")
    assert path.read_bytes() == b"\x00old"
    write_atomic(path, "größer\n")
    assert path.read_bytes() == "größer\n".encode()
    assert names_in(tmp_path) == ["file.txt"]


def test_permissions_are_those_of_the_umask(tmp_path: Path):
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_a_failure_keeps_the_old_file_and_leaves_nothing_behind(tmp_path: Path):
    path = tmp_path / "file"
    write_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "\ud800")
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["file"]


def test_a_target_that_is_a_folder_is_an_error_that_leaves_nothing_behind(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomic(tmp_path / "folder", b"x")
    assert names_in(tmp_path) == ["folder"]


def test_a_missing_folder_is_an_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "nowhere" / "file", b"x")


def test_what_a_killed_process_left_goes_with_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    script = "import os; from imgcls.scratch import ScratchFolder as S; s = S('tune'); print(s.name, flush=True); "
    script += "os.kill(os.getpid(), 9)"
    ended = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"TMPDIR": str(tmp_path)}, capture_output=True, text=True
    )
    killed, unmarked, other = Path(ended.stdout.strip()), tmp_path / "imgcls-tune-unmarked", tmp_path / "other"
    assert (ended.returncode, killed.parent, killed.is_dir()) == (-signal.SIGKILL, tmp_path, True)
    for folder in (unmarked, other):
        folder.mkdir()
    (other / ".alive").touch()
    (tmp_path / "imgcls-link").symlink_to(other)
    with ScratchFolder("scan") as living:
        assert not killed.exists()
        with ScratchFolder("tune"):
            assert Path(living, ".alive").is_file()
    assert names_in(tmp_path) == ["imgcls-link", unmarked.name, "other"]
    assert names_in(other) == [".alive"]
