"""Puts finished archives in their place, whole or not at all; needs no torch.

    build ─ lock_store ─ replace_archive            sign ─ lock_store ( read ─ verify ─ sign ─ publish, twice )

One command at a time changes a store: a signature that was begun before a build must not end on top of it.
"""

import glob
import io
import shutil
import time
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from handler.integrity import SIGNATURE_FILE
from handler.layout import OnBytes, open_layout
from imgcls.archive.trust import detached_signature
from imgcls.errors import ArchiveError
from imgcls.files import LOCK_WAIT_S, lock_folder, sync

BUILDING, SIGNING = ".building", ".signing"  # of temporary folders, which are `.NAME-…` in the store
STALE_S = 3600


def add_signature(mar: Path, signature: bytes, target: Path, *, on_bytes: OnBytes = lambda count: None) -> None:
    """Writes a copy of a verified archive that holds this signature, instead of the one that it may hold now."""
    with zipfile.ZipFile(mar) as archive, target.open("xb") as file:
        created = datetime(*archive.infolist()[0].date_time, tzinfo=UTC)
        layout = open_layout(file, created=created, on_bytes=on_bytes)
        with layout.file:
            for info in archive.infolist():
                if info.filename != SIGNATURE_FILE:
                    with archive.open(info) as source:
                        layout.add(info.filename, source, size_bytes=info.file_size)
            layout.add(SIGNATURE_FILE, io.BytesIO(signature), size_bytes=len(signature))


def publish(archive: Path, target: Path) -> None:
    """Moves a finished archive to its place at once: fsync, rename, fsync of the folder.

    Both must lie on one file system. A reader sees the old archive or the new one, never a part. Whatever the umask,
    everybody may read it: the server often runs as another user.
    """
    archive.chmod(0o644)
    sync(archive)
    archive.replace(target)
    sync(target.parent)


def replace_archive(archive: Path, target: Path) -> None:
    """Publishes an archive without a signature, and removes the detached one of the archive that goes.

    Waits for a command that signs in that folder: it would put the old archive back.

    Raises:
        ArchiveError: as of lock_store.
        OSError: it cannot be moved.
    """
    with lock_store(target.parent):
        detached_signature(target).unlink(missing_ok=True)
        publish(archive, target)


@contextmanager
def lock_store(store: Path, *, wait_s: float = LOCK_WAIT_S) -> Iterator[None]:
    """Keeps other commands from changing the archives of a folder, and waits for one that does.

    Raises:
        ArchiveError: another command held it all the time.
        OSError: the folder cannot be opened.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(lock_folder(store, wait_s=wait_s))
        except TimeoutError as err:
            raise ArchiveError(
                f"{store}: another imgcls archive sign or build is at work there, for {wait_s:g} s already; "
                "wait for it, or end it"
            ) from err
        yield


def sweep_store(store: Path, *, name: str) -> None:
    """Removes what commands that were killed have left; one that is still at work is younger."""
    for suffix in (BUILDING, SIGNING):
        for left in store.glob(f".{glob.escape(name)}-*{suffix}"):
            if left.is_dir() and time.time() - left.stat().st_mtime > STALE_S:
                shutil.rmtree(left, ignore_errors=True)
