"""Verifies an archive from outside, without running anything of it and without torch.

Packs the archive again, in mind: its own content through `imgcls.archive.layout`, compared byte for byte with the file.
So there is no byte that is not looked at, be it of an entry, a header or the zip's directory.
"""

import json
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, cast

from handler.integrity import (
    INTEGRITY_FILE,
    SIGNATURE_FILE,
    Integrity,
    IntegrityError,
    hash_file,
    parse_integrity,
    refuse_difference,
)
from imgcls.archive.contents import MANIFEST
from imgcls.archive.layout import CREATED_FORMAT, OnBytes, open_layout
from imgcls.errors import ArchiveError

MAX_RECORD_BYTES = 64 << 20  # of integrity.json, the manifest or a signature


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
        ArchiveError: it cannot be read, was not packed by imgcls, or is damaged or changed; names the entry.
    """
    if not mar.is_file():
        raise ArchiveError(f"{mar}: there is no such archive; build it with ./build_mar.sh RUN")
    try:
        with mar.open("rb") as file:
            names = _list_names(file)
            integrity = parse_integrity(_read_small(file, INTEGRITY_FILE))
            refuse_difference(recorded=integrity.by_path(), found=names)
            _refuse_order(names, integrity)
            manifest = json.loads(_read_small(file, MANIFEST))
            _compare(file, integrity, names=names, created=_created(manifest), on_bytes=on_bytes)
            model = manifest["model"]
            return VerifiedArchive(mar, model["modelName"], model["modelVersion"], integrity, SIGNATURE_FILE in names)
    except IntegrityError as err:
        raise ArchiveError(f"{mar}: {err}; do not serve it, fetch or build it again") from err
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
        raise ArchiveError(f"{mar}: {err}; build it with ./build_mar.sh RUN") from err
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
    # All of these for bytes that it does not understand.
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, LookupError, ValueError, EOFError, OSError) as err:
        raise IntegrityError(f"{what}: cannot be read ({' '.join(str(err).split())})") from err


def _refuse_order(names: list[str], integrity: Integrity) -> None:
    signature = [SIGNATURE_FILE] if SIGNATURE_FILE in names else []
    for found, expected in zip(names, [*integrity.by_path(), INTEGRITY_FILE, *signature], strict=True):
        if found != expected:
            raise IntegrityError(f"{found}: stands where {expected} was packed; the entries were put in another order")


def _created(manifest: dict[str, Any]) -> datetime:
    try:
        return datetime.strptime(manifest["createdOn"], CREATED_FORMAT).replace(tzinfo=UTC)
    except (LookupError, TypeError, ValueError) as err:
        raise IntegrityError(f"{MANIFEST}: createdOn is not what imgcls writes") from err


def _compare(file: BinaryIO, integrity: Integrity, *, names: list[str], created: datetime, on_bytes: OnBytes) -> None:
    recorded = integrity.by_path()
    sizes = _sizes(file, names)
    sink = _ComparingSink(file)
    layout = open_layout(cast("BinaryIO", sink), created=created, on_bytes=on_bytes)
    with layout.file:
        for name in names:
            record = recorded.get(name)
            size_bytes = record.size_bytes if record else sizes[name]
            found = layout.add(name, _Original(file, sink, size_bytes=size_bytes), size_bytes=size_bytes)
            if record and found != record:
                raise IntegrityError(f"{name}: is not the file that was recorded when the archive was built")
            sink.refuse_difference(f"{name}: its header in the zip, or the bytes before its data, were changed")
    sink.refuse_difference("the zip's directory: was changed")
    if file.seek(0, os.SEEK_END) != sink.tell():
        raise IntegrityError("the zip: bytes were added after its end")


def _sizes(file: BinaryIO, names: list[str]) -> dict[str, int]:
    with _opened(file) as archive:
        return {name: archive.getinfo(name).file_size for name in names}


class _Original:
    """Reads an entry's data from where the sink is going to write it."""

    def __init__(self, file: BinaryIO, sink: "_ComparingSink", *, size_bytes: int) -> None:
        self._file, self._sink, self._left = file, sink, size_bytes

    def read(self, size: int, /) -> bytes:
        self._file.seek(self._sink.tell())
        chunk = self._file.read(min(size, self._left))
        self._left -= len(chunk)
        self._sink.expect(chunk)
        return chunk


class _ComparingSink:
    """A file that compares what is written to it with another one, at the same place."""

    def __init__(self, original: BinaryIO) -> None:
        self._original, self._position, self._expected = original, 0, b""
        self._different: set[int] = set()  # where a write differed, unless a later one mended it

    def expect(self, chunk: bytes) -> None:
        """Names data that was just read from the original at the present place: no need to read it again."""
        self._expected = chunk

    def write(self, data: bytes) -> int:
        if data is not self._expected:
            self._original.seek(self._position)
            is_same = self._original.read(len(data)) == data
            (self._different.discard if is_same else self._different.add)(self._position)
        self._position += len(data)
        return len(data)

    def refuse_difference(self, reason: str) -> None:
        """Raises IntegrityError where anything that was written is not in the original."""
        if self._different:
            raise IntegrityError(reason)

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence != os.SEEK_SET:
            raise OSError("only absolute places can be sought")
        self._position = offset
        return offset

    def seekable(self) -> bool:
        return True

    def flush(self) -> None:
        pass
