"""Puts finished archives in their place, whole or not at all; needs no torch.

    build ─ lock_store ─ replace_archive            sign ─ lock_store ( read ─ verify ─ sign ─ publish, twice )

One command at a time changes a store: a signature that was begun before a build must not end on top of it.
"""

import fcntl
import glob
import io
import logging
import os
import shutil
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from handler.integrity import SIGNATURE_FILE
from handler.layout import OnBytes, open_layout
from imgcls.archive.trust import detached_signature
from imgcls.errors import ArchiveError
from imgcls.files import sync

BUILDING, SIGNING = ".building", ".signing"  # of temporary folders, which are `.NAME-…` in the store
STALE_S = 3600
LOCK_WAIT_S = 600  # a login at Sigstore takes a person minutes
LOCK_POLL_S = 0.1

logger = logging.getLogger(__name__)


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

    The lock is on the folder itself, so it leaves no file that TorchServe or a listing would meet, and the kernel lets
    go of it when the process ends, however it does.

    A file system that has no such locks is only warned of.

    Raises:
        ArchiveError: another command held it all the time.
        OSError: the folder cannot be opened.
    """
    descriptor = os.open(store, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _wait_for_lock(descriptor, store, wait_s=wait_s)
        try:
            yield
        finally:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough where a fork has inherited it
    finally:
        os.close(descriptor)


def _wait_for_lock(descriptor: int, store: Path, *, wait_s: float) -> None:
    end = time.monotonic() + wait_s
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            if time.monotonic() > end:
                raise ArchiveError(
                    f"{store}: another imgcls archive sign or build is at work there, for {wait_s:g} s already; "
                    "wait for it, or end it"
                ) from err
        except OSError as err:  # NFS has none for folders
            reason = f"its file system has no such locks ({err.strerror})"
            return logger.warning("%s: is not locked, as %s; let no other sign or build work there now", store, reason)
        time.sleep(LOCK_POLL_S)


def sweep_store(store: Path, *, name: str) -> None:
    """Removes what commands that were killed have left; one that is still at work is younger."""
    for suffix in (BUILDING, SIGNING):
        for left in store.glob(f".{glob.escape(name)}-*{suffix}"):
            if left.is_dir() and time.time() - left.stat().st_mtime > STALE_S:
                shutil.rmtree(left, ignore_errors=True)
