from pathlib import Path

import pytest

from imgcls.files import write_atomic


def test_text_and_bytes_replace_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_atomic(path, b"old, and longer")
    write_atomic(path, "nëw")
    assert path.read_bytes() == "nëw".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "\ud800")
    with pytest.raises(OSError, match="No such file"):
        write_atomic(tmp_path / "none" / "a.txt", "x")
    for folder in (tmp_path, Path()):
        with pytest.raises(IsADirectoryError):
            write_atomic(folder, "x")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
