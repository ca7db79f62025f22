"""Compares an archive's file with what it would be if it were packed again: no byte of it goes unseen.

TorchServe gives a worker the unpacked tree, not the file. Where `$IMGCLS_MODEL_STORE` names the model store, a worker
looks there for the file that its tree came from, and refuses to load where that one was changed in a way that unpacking
does not show: entries in another order, headers, bytes between or behind them.
"""

import json
import logging
import lzma
import mmap
import os
import struct
import zipfile
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, cast

from handler.integrity import INTEGRITY_FILE, SIGNATURE_FILE, IntegrityError, parse_integrity
from handler.layout import CREATED_FORMAT, open_layout

MAX_LARGER_BYTES = 1 << 20  # that another archive's record may have, and is read
STORE_VARIABLE = "IMGCLS_MODEL_STORE"
MANIFEST = "MAR-INF/MANIFEST.json"

EARLIEST_YEAR, LATEST_YEAR = 1980, 2107  # of a zip's times
# What zipfile raises for bytes that it does not understand.
UNREADABLE_ZIP = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, NotImplementedError, RuntimeError, LookupError),
    *(ValueError, EOFError, OSError),
)

logger = logging.getLogger(__name__)


class ComparingSink:
    """A file that compares what is written to it with another one, at the same place."""

    def __init__(self, original: BinaryIO) -> None:
        self._original, self._position, self._expected = original, 0, b""
        self._different: set[int] = set()  # places of writes that differed; a later one at the same place mends it

    def expect(self, chunk: bytes) -> None:
        """Names data that was just read from the original at the present place: no need to read it again."""
        self._expected = chunk

    def write(self, data: bytes) -> int:
        """Compares instead of writing; what zipfile writes anew at the same place counts alone."""
        if data is not self._expected:
            self._original.seek(self._position)
            self._different.discard(self._position)
            if self._original.read(len(data)) != data:
                self._different.add(self._position)
        self._position += len(data)
        return len(data)

    @property
    def is_different(self) -> bool:
        """Whether anything that was written is not in the original."""
        return bool(self._different)

    def refuse_difference(self, reason: str) -> None:
        """Raises IntegrityError where anything that was written is not in the original."""
        if self.is_different:
            raise IntegrityError(reason)

    def tell(self) -> int:
        """Returns the present place."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Goes to another place."""
        if whence != os.SEEK_SET:
            raise OSError("only absolute places can be sought")
        self._position = offset
        return offset

    def seekable(self) -> bool:
        """Tells zipfile that it may go back to a header."""
        return True

    def flush(self) -> None:
        """Does nothing: nothing is held back."""


def read_created(manifest: dict[str, Any]) -> datetime:
    """Returns the time that every entry of an archive carries.

    Raises:
        IntegrityError: the manifest's createdOn is not what imgcls writes.
    """
    try:
        created = datetime.strptime(manifest["createdOn"], CREATED_FORMAT).replace(tzinfo=UTC)
        if not EARLIEST_YEAR <= created.year <= LATEST_YEAR:
            raise ValueError
        return created
    except (LookupError, TypeError, ValueError) as err:
        raise IntegrityError(f"{MANIFEST}: createdOn is not what imgcls writes") from err


def check_store(folder: Path) -> None:
    """Finds the file that an unpacked archive came from in $IMGCLS_MODEL_STORE, and compares every byte of it.

    A file that has been replaced, changed, signed or removed since it was unpacked is no reason to refuse: what was
    unpacked has proved itself, and a worker that starts again must not fail for an upload.

    Raises:
        IntegrityError: the file was changed where the unpacked tree does not show it.
    """
    store = os.environ.get(STORE_VARIABLE)
    if not store:
        return
    faults = []
    unpacked_s = (folder / INTEGRITY_FILE).stat().st_mtime
    for mar in sorted(Path(store).glob("*.mar")):
        try:
            changed = mar.stat()
            is_later = max(changed.st_mtime, changed.st_ctime) > unpacked_s
            fault = None if is_later or not mar.is_file() else _find_fault(mar, folder)
        except OSError as err:
            logger.warning("%s cannot be compared with what was unpacked: %s", mar, err.strerror)
            continue
        if fault == "":
            return
        if fault:
            faults.append(f"{mar.name}: {fault}")
    if faults:
        raise IntegrityError(f"{faults[0]}; it is not as it was packed, fetch or build it again")
    logger.warning("%s holds no archive any more that is the one from which this was unpacked", store)


def _find_fault(mar: Path, folder: Path) -> str | None:
    """Returns what is wrong with the file, "" for nothing, None where it is another archive than the one unpacked."""
    with mar.open("rb") as file:
        if not _holds_record(file, (folder / INTEGRITY_FILE).read_bytes()):
            return None
        sink = ComparingSink(file)
        _pack_again(folder, sink)
        has_same_size = file.seek(0, os.SEEK_END) == sink.tell()
    if sink.is_different or not has_same_size:
        return "its entries stand in another order, or bytes beside their content were changed"
    return ""


def _holds_record(file: BinaryIO, record: bytes) -> bool:
    """Tells whether an archive has this record: where its directory says or, as that may be damaged, anywhere."""
    try:
        with zipfile.ZipFile(file) as archive:
            info = archive.NameToInfo.get(INTEGRITY_FILE)
            if info is not None and info.file_size <= len(record) + MAX_LARGER_BYTES:
                return archive.read(info) == record  # its checksum was right
    except UNREADABLE_ZIP:
        pass
    if not file.seek(0, os.SEEK_END):
        return False
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.rfind(record) >= 0  # imgcls stores it uncompressed, near the end


def _pack_again(folder: Path, sink: ComparingSink) -> None:
    integrity = parse_integrity((folder / INTEGRITY_FILE).read_bytes())
    created = read_created(json.loads((folder / MANIFEST).read_bytes()))
    signature = [SIGNATURE_FILE] if (folder / SIGNATURE_FILE).is_file() else []
    layout = open_layout(cast("BinaryIO", sink), created=created)
    with layout.file:
        for path in (*integrity.by_path(), INTEGRITY_FILE, *signature):
            with (folder / path).open("rb") as source:
                layout.add(path, source, size_bytes=(folder / path).stat().st_size)
