"""Verifies an archive from outside, without running anything of it and without torch.

Packs the archive again, in mind: its own content through `handler.layout`, compared byte for byte with the file.
So there is no byte that is not looked at, be it of an entry, a header or the zip's directory.
"""

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, cast

from handler.integrity import (
    INTEGRITY_FILE,
    SIGNATURE_FILE,
    FileRecord,
    Integrity,
    IntegrityError,
    hash_file,
    parse_integrity,
    refuse_difference,
)
from handler.layout import OnBytes, open_layout
from handler.packed import UNREADABLE_ZIP, ComparingSink, read_created
from imgcls.archive.contents import MANIFEST, refuse_no_file
from imgcls.errors import ArchiveError

# torch-model-archiver's own expression, by which archives are built; its package is not in the light install.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-.]*")
MAX_RECORD_BYTES = 64 << 20  # of integrity.json, the manifest or a signature


class NotVerifiedError(ArchiveError):
    """An archive that was read, and is not what was packed or not signed as demanded: not one that cannot be read."""


@dataclass(frozen=True)
class VerifiedArchive:
    """An archive whose every byte is as it was packed."""

    path: Path
    name: str
    version: str
    integrity: Integrity
    is_signed: bool  # it holds a signature; whose, and whether it is a trusted one, is not said here

    @property
    def archive_sha256(self) -> str:
        """SHA-256 of the file, which reads it once more."""
        return hash_file(self.path)


def verify_archive(mar: Path, *, on_bytes: OnBytes = lambda count: None) -> VerifiedArchive:
    """Checks that an archive is what its record says, to the byte.

    Args:
        mar: the archive.
        on_bytes: told how many bytes of entries were checked, as it goes on; all of them are the file's size, nearly.

    Raises:
        NotVerifiedError: it was not packed by imgcls, or is damaged or changed; names the entry.
        ArchiveError: it cannot be read.
    """
    refuse_no_file(mar)
    try:
        with mar.open("rb") as file:
            names = _list_names(file)
            integrity = parse_integrity(_read_small(file, INTEGRITY_FILE))
            refuse_difference(recorded=integrity.by_path(), found=names)
            _refuse_order(names, integrity)
            if SIGNATURE_FILE in names:
                _read_small(file, SIGNATURE_FILE)  # whose size no record gives, and which is read into memory later
            manifest = _parse_manifest(_read_small(file, MANIFEST))
            try:
                _compare(file, integrity, names=names, created=read_created(manifest), on_bytes=on_bytes)
            except IntegrityError as err:
                _name_changed_file(file, integrity)
                raise IntegrityError(f"every file is as recorded, but the zip is not as packed; {err}") from err
            model = manifest["model"]
            _refuse_bad_names(model)
            return VerifiedArchive(mar, model["modelName"], model["modelVersion"], integrity, SIGNATURE_FILE in names)
    except IntegrityError as err:
        raise NotVerifiedError(f"{mar}: {err}; do not serve it, fetch or build it again") from err
    except OSError as err:
        raise ArchiveError(f"{mar}: cannot be read: {err.strerror or err}") from err


def read_integrity(mar: Path) -> Integrity:
    """Reads an archive's record, and checks nothing else of it.

    Raises:
        ArchiveError: there is none that can be read.
    """
    try:
        with mar.open("rb") as file:
            _list_names(file)
            return parse_integrity(_read_small(file, INTEGRITY_FILE))
    except IntegrityError as err:
        raise ArchiveError(f"{mar}: {err}; fetch it again, or build it with ./build_mar.sh RUN") from err
    except OSError as err:
        raise ArchiveError(f"{mar}: cannot be read: {err.strerror or err}") from err


def _list_names(file: BinaryIO) -> list[str]:
    with _opened(file) as archive:
        names = archive.namelist()
    if INTEGRITY_FILE not in names:
        raise IntegrityError(f"it holds no {INTEGRITY_FILE}, so it was not packed by imgcls, or was changed since")
    if twice := sorted({name for name in names if names.count(name) > 1} if len(names) != len(set(names)) else ()):
        raise IntegrityError(f"{twice[0]}: is in the archive more than once")
    return names


def _read_small(file: BinaryIO, path: str) -> bytes:
    with _opened(file, path) as archive:
        info = archive.getinfo(path)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > MAX_RECORD_BYTES:
            raise IntegrityError(f"{path}: its entry in the zip's directory was changed")
        return archive.read(path)


@contextmanager
def _opened(file: BinaryIO, what: str = "the zip's directory") -> Iterator[zipfile.ZipFile]:
    """Opens the zip; whatever zipfile finds wrong with it is an IntegrityError of `what`."""
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except UNREADABLE_ZIP as err:
        raise IntegrityError(f"{what}: cannot be read ({' '.join(str(err).split())})") from err


def _parse_manifest(data: bytes) -> dict[str, Any]:
    try:
        manifest = json.loads(data)
        if not isinstance(manifest["model"]["modelName"], str) or not isinstance(
            manifest["model"]["modelVersion"], str
        ):
            raise TypeError
    except (ValueError, LookupError, TypeError, RecursionError) as err:
        raise IntegrityError(f"{MANIFEST}: is not what imgcls writes") from err
    return cast("dict[str, Any]", manifest)


def _refuse_bad_names(model: dict[str, Any]) -> None:
    """Raises IntegrityError for a name or version that no build takes; what prints them counts on that."""
    for key in ("modelName", "modelVersion"):
        if not NAME.fullmatch(model[key]):
            expected = "letters, digits, '_', '-' and '.', the first a letter or digit"
            raise IntegrityError(f"{MANIFEST}: its {key} is {model[key][:60]!r}; expected {expected}")


def _refuse_order(names: list[str], integrity: Integrity) -> None:
    signature = [SIGNATURE_FILE] if SIGNATURE_FILE in names else []
    for found, expected in zip(names, [*integrity.by_path(), INTEGRITY_FILE, *signature], strict=True):
        if found != expected:
            raise IntegrityError(f"{found}: stands where {expected} was packed; the entries were put in another order")


def _compare(file: BinaryIO, integrity: Integrity, *, names: list[str], created: datetime, on_bytes: OnBytes) -> None:
    recorded = integrity.by_path()
    sizes = _sizes(file, names)
    sink = ComparingSink(file)
    layout = open_layout(cast("BinaryIO", sink), created=created, on_bytes=on_bytes)
    with layout.file:
        for name in names:
            record = recorded.get(name)
            size_bytes = record.size_bytes if record else sizes[name]
            original = _Original(file, sink, size_bytes=size_bytes)
            written = layout.add(name, original, size_bytes=size_bytes)
            if record and FileRecord(name, written, original.sha256) != record:
                raise IntegrityError(f"{name}: does not lie where it was packed")
            sink.refuse_difference(f"{name}: its header in the zip, or the bytes before its data, were changed")
    sink.refuse_difference("the zip's directory: was changed")
    if file.seek(0, os.SEEK_END) != sink.tell():
        raise IntegrityError("the zip: bytes were added after its end")


def _name_changed_file(file: BinaryIO, integrity: Integrity) -> None:
    """Raises IntegrityError for a file whose content differs; the first difference of bytes may lie before it."""
    for record in integrity.files:
        with _opened(file) as archive:
            try:
                is_same = archive.getinfo(record.path).compress_type == zipfile.ZIP_STORED
                with archive.open(record.path) as source:
                    is_same &= hashlib.file_digest(source, "sha256").hexdigest() == record.sha256  # type: ignore[arg-type]
            except UNREADABLE_ZIP:
                is_same = False
        if not is_same:
            raise IntegrityError(f"{record.path}: is not the file that was recorded when the archive was built")


def _sizes(file: BinaryIO, names: list[str]) -> dict[str, int]:
    with _opened(file) as archive:
        return {name: archive.getinfo(name).file_size for name in names}


class _Original:
    """Reads an entry's data from where the sink is going to write it, and hashes it."""

    def __init__(self, file: BinaryIO, sink: ComparingSink, *, size_bytes: int) -> None:
        self._file, self._sink, self._left = file, sink, size_bytes
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Of what was read so far."""
        return self._digest.hexdigest()

    def read(self, size: int, /) -> bytes:
        self._file.seek(self._sink.tell())
        chunk = self._file.read(min(size, self._left))
        self._left -= len(chunk)
        self._sink.expect(chunk)
        self._digest.update(chunk)
        return chunk
