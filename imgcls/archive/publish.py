"""Puts finished archives in their place, whole or not at all; needs no torch."""

import io
import zipfile
from datetime import UTC, datetime
from pathlib import Path

from handler.integrity import SIGNATURE_FILE
from handler.layout import OnBytes, open_layout
from imgcls.files import sync


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
