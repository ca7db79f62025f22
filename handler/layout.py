"""The one layout of an archive's bytes: the same entries and the same time give the same file.

Entries lie in the order of their paths, then `MAR-INF/integrity.json`, then its signature where there is one. All are
stored uncompressed; the data of an entry of a page or more begins at a page, so that weights can be mapped into memory
from the archive itself. `imgcls.archive.pack` writes through here; `imgcls.archive.verify` writes again and compares.
"""

import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import IO, BinaryIO, Protocol

PAGE_BYTES = 4096
CHUNK_BYTES = 1 << 20
CREATED_FORMAT = "%d/%m/%Y %H:%M:%S"  # torch-model-archiver's, in the manifest's createdOn
EARLIEST = datetime(1980, 1, 1, tzinfo=UTC)  # a zip knows no earlier time
PADDING_ID = 0xD935  # the extra field that Android's zipalign pads with, which zip readers skip
UNIX = 3
MODE = 0o100644

OnBytes = Callable[[int], None]


class Reader(Protocol):
    """What gives an entry's data in parts; b"" ends it."""

    def read(self, size: int, /) -> bytes:
        """Returns the next part, of at most `size` bytes."""


@dataclass(frozen=True)
class Layout:
    """Writes entries to a zip in the canonical form."""

    file: zipfile.ZipFile
    target: IO[bytes]
    created: datetime
    on_bytes: OnBytes

    def add(self, path: str, source: Reader, *, size_bytes: int) -> int:
        """Writes one entry; returns how many bytes it got, which may be others than were announced."""
        info = self._describe(path, size_bytes=size_bytes)
        written = 0
        with self.file.open(info, "w", force_zip64=_is_large(size_bytes)) as entry:
            for chunk in read_chunks(source):
                entry.write(chunk)
                written += len(chunk)
                self.on_bytes(len(chunk))
        return written

    def _describe(self, path: str, *, size_bytes: int) -> zipfile.ZipInfo:
        info = zipfile.ZipInfo(path, date_time=self.created.timetuple()[:6])
        info.compress_type = zipfile.ZIP_STORED
        info.create_system = UNIX
        info.external_attr = MODE << 16
        info.file_size = size_bytes
        if size_bytes >= PAGE_BYTES:
            info.CRC = info.compress_size = 0
            header_bytes = len(info.FileHeader(zip64=_is_large(size_bytes)))
            gap = -(self.target.tell() + header_bytes + 4) % PAGE_BYTES
            info.extra = PADDING_ID.to_bytes(2, "little") + gap.to_bytes(2, "little") + bytes(gap)
        return info


def open_layout(target: BinaryIO, *, created: datetime, on_bytes: OnBytes = lambda count: None) -> Layout:
    """Begins an archive; close its `file` to end it."""
    return Layout(zipfile.ZipFile(target, "w"), target, created, on_bytes)


def read_chunks(source: Reader) -> Iterator[bytes]:
    """Yields a source's data in parts of at most CHUNK_BYTES."""
    while chunk := source.read(CHUNK_BYTES):
        yield chunk


def _is_large(size_bytes: int) -> bool:
    """Whether an entry takes zip64 fields: zipfile's own rule, which leaves room for growth."""
    return size_bytes * 1.05 > zipfile.ZIP64_LIMIT
