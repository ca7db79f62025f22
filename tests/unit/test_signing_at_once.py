"""Commands that change one store at the same time, and archives that change while they are signed."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from handler.trust import Trust
from imgcls.archive.keys import create_keys
from imgcls.archive.pack import pack_tree, write_manifest
from imgcls.archive.publish import lock_store, replace_archive
from imgcls.archive.signing import Signer, sign_archive, signer_with_key
from imgcls.archive.trust import check_archive_trust
from imgcls.archive.verify import verify_archive
from imgcls.errors import ArchiveError

CREATED = datetime(1980, 1, 1, tzinfo=UTC)


def write_archive(folder: Path, weights: bytes) -> Path:
    """An archive without a model worth the name."""
    tree = folder / "tree"
    tree.mkdir(parents=True)
    (tree / "weights.safetensors").write_bytes(weights)
    write_manifest(tree, name="imgcls", version="1.0", created=CREATED)
    pack_tree(tree, folder / "imgcls.mar", created=CREATED)
    return folder / "imgcls.mar"


@pytest.fixture
def mar(tmp_path: Path) -> Path:
    """The only file of its store."""
    store = tmp_path / "store"
    store.mkdir()
    return write_archive(tmp_path / "made", b"weights" * 100_000).rename(store / "imgcls.mar")


@pytest.fixture
def new(tmp_path: Path, mar: Path) -> Path:
    """Another archive, on the file system of the store."""
    return write_archive(tmp_path / "new", b"other" * 100_000)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    for name in ("release", "other"):
        create_keys(name, tmp_path / "keys")
    return tmp_path / "keys"


@dataclass(frozen=True)
class WatchedSigner(Signer):
    """Signs, and keeps the name of what it signed."""

    signed: list[str] = field(default_factory=list)

    def sign(self, content: Path, signature: Path) -> None:
        self.signed.append(content.name)
        super().sign(content, signature)


def watch(key: Path) -> WatchedSigner:
    return WatchedSigner(key.stem, signer_with_key(key).config)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def once(act: Callable[[], None], *, at_byte: int = 1) -> Callable[[int], None]:
    """Returns what acts when so many bytes were reported, and then never again."""
    seen = [0]

    def on_bytes(count: int) -> None:
        before, seen[0] = seen[0], seen[0] + count
        if before < at_byte <= seen[0]:
            act()

    return on_bytes


def count_bytes(mar: Path) -> int:
    counts: list[int] = []
    verify_archive(mar, on_bytes=counts.append)
    return sum(counts)


def test_second_signer_waits_for_the_first_and_both_leave_a_pair_that_holds(mar: Path, keys: Path) -> None:
    finished: list[str] = []

    def sign(name: str, on_bytes: Callable[[int], None] = lambda count: None) -> None:
        sign_archive(mar, signer_with_key(keys / f"{name}.key"), on_bytes=on_bytes)
        finished.append(name)

    second = threading.Thread(target=sign, args=("other",))

    def start_second() -> None:
        second.start()
        second.join(timeout=1)  # it would be done by now

    sign("release", once(start_second))
    second.join()
    assert finished == ["release", "other"]
    assert check_archive_trust(mar, Trust(policy="signed", keys=(keys / "other.pub",))) == "other"
    assert names_in(mar.parent) == ["imgcls.mar", "imgcls.mar.sig"]


def test_archive_that_is_published_while_the_old_one_is_signed_ends_on_top(mar: Path, new: Path, keys: Path) -> None:
    content = new.read_bytes()
    build = threading.Thread(target=replace_archive, args=(new, mar))

    def start_build() -> None:
        build.start()
        build.join(timeout=1)

    sign_archive(mar, signer_with_key(keys / "release.key"), on_bytes=once(start_build))
    build.join()
    assert mar.read_bytes() == content
    assert names_in(mar.parent) == ["imgcls.mar"]


def swap(mar: Path, new: Path) -> None:
    new.replace(mar)


def write_into(mar: Path, new: Path) -> None:
    shutil.copyfile(new, mar)


def spoil(mar: Path, new: Path) -> None:
    mar.write_bytes(b"no zip")


def remove(mar: Path, new: Path) -> None:
    mar.unlink()


@pytest.mark.parametrize("change", [swap, write_into, spoil, remove])
@pytest.mark.parametrize("is_verified", [True, False])
def test_archive_that_another_program_changes_meanwhile_gets_no_signature(
    mar: Path, new: Path, keys: Path, change: Callable[[Path, Path], None], is_verified: bool
) -> None:
    """When its last entry is verified, or while it is copied, which is after the record was signed, in private."""
    total, signer = count_bytes(mar), watch(keys / "release.key")
    acted: list[bytes] = []

    def act() -> None:
        change(mar, new)
        acted.append(mar.read_bytes() if mar.exists() else b"")

    in_place_while_verified = is_verified and change in (write_into, spoil)
    said = "do not serve it" if in_place_while_verified else r"imgcls\.mar: was changed while it was signed, so nothing"
    with pytest.raises(ArchiveError, match=said) as caught:
        sign_archive(mar, signer, on_bytes=once(act, at_byte=total if is_verified else total + 1))
    assert "\n" not in str(caught.value)
    assert signer.signed[:1] == ([] if is_verified else ["integrity.json"])
    assert [mar.read_bytes() if mar.exists() else b""] == acted
    assert names_in(mar.parent) == ([] if change is remove else ["imgcls.mar"])


def test_what_a_killed_signer_has_left_is_removed_by_a_later_one(mar: Path, keys: Path) -> None:
    for name, age_s in (("old.signing", 7200), ("young.signing", 60), ("old.building", 7200), ("old.kept", 7200)):
        left = mar.parent / f".imgcls-{name}"
        left.mkdir()
        (left / "imgcls.mar").write_bytes(b"copy")
        os.utime(left, (time.time() - age_s,) * 2)
    sign_archive(mar, signer_with_key(keys / "release.key"))
    assert names_in(mar.parent) == [".imgcls-old.kept", ".imgcls-young.signing", "imgcls.mar", "imgcls.mar.sig"]


def test_lock_of_a_store_is_no_file_and_ends_with_its_process(tmp_path: Path) -> None:
    script = """
import sys, time
from pathlib import Path
from imgcls.archive.publish import lock_store
with lock_store(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""
    holder = subprocess.Popen([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, text=True)
    with holder:
        try:
            assert holder.stdout and holder.stdout.readline() == "held\n"
            with (
                pytest.raises(ArchiveError, match=r"another imgcls archive sign or build is at work there, for 0\.2 s"),
                lock_store(tmp_path, wait_s=0.2),
            ):
                pass
            assert names_in(tmp_path) == []
        finally:
            holder.kill()
    with lock_store(tmp_path, wait_s=0.2), (tmp_path / "done").open("x"):
        pass
    with lock_store(tmp_path, wait_s=0):  # the one before has let go
        pass


def test_a_file_system_without_locks_is_warned_of(
    mar: Path, keys: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The kernel's answer is replaced: every file system of the machine that tests run on has locks."""

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))  # NFS, of a folder

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", refuse)
        sign_archive(mar, signer_with_key(keys / "release.key"))
    assert f"{mar.parent}: is not locked, as its file system has no such locks (Bad file descriptor)" in caplog.text
    assert names_in(mar.parent) == ["imgcls.mar", "imgcls.mar.sig"]
