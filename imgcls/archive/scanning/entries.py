"""Walks a zip as TorchServe does, from one local header to the next, and compares with what other tools are shown.

TorchServe unpacks with Java's ZipInputStream: it begins at byte 0, takes a stored entry's size from the local header
and a deflated entry's end from its data, and stops at the first thing that is no local header. Sizes are limits here,
never promises: an entry is inflated in parts, and no further than it may.
"""

import tempfile
import zlib
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from io import SEEK_END, SEEK_SET, BufferedReader, RawIOBase
from typing import IO, TYPE_CHECKING

from imgcls.archive.scanning.findings import Finding
from imgcls.archive.scanning.headers import (
    DEFLATED,
    DESCRIPTOR,
    ENCRYPTED,
    HAS_DESCRIPTOR,
    IS_UTF8,
    MAX_ENTRIES,
    STORED,
    Directory,
    Header,
    read_local_header,
)
from imgcls.archive.scanning.names import check_name, check_names
from imgcls.archive.scanning.rules import find

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CHUNK_BYTES = 1 << 18
KEEP_IN_MEMORY_BYTES = 8 << 20  # a larger deflated entry is inflated into a temporary file
BOMB_BYTES = 64 << 20  # below it nothing is a bomb, whatever its ratio
BOMB_RATIO = 100  # weights deflate to about 0.9 of their size, text to about 0.2
TOTAL_BYTES, TOTAL_RATIO = 1 << 30, 20  # the same, for all entries together


@dataclass(frozen=True)
class Entry:
    """One entry; `content` is None where it cannot be read, and lasts until the next entry is asked for."""

    path: str
    header: Header
    content: IO[bytes] | None = None
    size_bytes: int = 0


@dataclass
class Walk:
    """The walk through one archive; `findings` and `is_bomb` are complete when `entries()` has ended."""

    file: IO[bytes]
    size_bytes: int
    directory: Directory
    findings: list[Finding] = field(default_factory=list)
    is_bomb: bool = False
    _inflated_bytes: int = 0

    def entries(self) -> Iterator[Entry]:
        """Yields every file that TorchServe sees, and those that only other tools see."""
        self.findings.extend(check_names(self.directory.headers))
        self._check_outside()
        unseen: dict[int, Header] = {}
        for header in self.directory.headers:
            if unseen.setdefault(header.offset, header) is not header:
                self.findings.append(find("overlapping-entries", header.name))
        position = count = 0
        while not self.is_bomb and (local := self._next_header(position, unseen)):
            count += 1
            if count > MAX_ENTRIES:
                self._stop(find("too-many-entries", "", f"more than {MAX_ENTRIES:,}"))
                return
            central = unseen.pop(local.offset, None)
            self._compare(local, central)
            entry, position = self._open(local, central or local)
            with entry.content or nullcontext():
                if not local.is_folder:
                    yield entry
                elif entry.size_bytes:
                    self._report_outside(entry.size_bytes, f"in the folder {local.name}")
        if not self.is_bomb:
            self.findings.extend(find("overlapping-entries", header.name) for header in unseen.values())

    def _next_header(self, position: int, unseen: dict[int, Header]) -> Header | None:
        """Returns the local header at a position or, where there is none, at the next one that the directory names."""
        if local := read_local_header(self.file, position):
            return local
        for offset in sorted(offset for offset in unseen if offset >= position):
            if local := read_local_header(self.file, offset):
                self._report_outside(offset - position, f"at byte {position:,}, before {local.name}")
                detail = "bytes that are no entry stand before it, where TorchServe stops"
                self.findings.append(find("hidden-entry", local.name, detail))
                return local
            self.findings.append(find("hidden-entry", unseen.pop(offset).name, "it has no local header"))
        self._report_outside(self.directory.start - position, f"at byte {position:,}, before the directory")
        return None

    def _open(self, local: Header, trusted: Header) -> tuple[Entry, int]:
        """Returns the entry and where the next header has to be."""
        has_descriptor = bool(local.flags & HAS_DESCRIPTOR)
        if local.method == STORED:
            data_bytes = trusted.size_bytes if has_descriptor else local.size_bytes
        else:
            data_bytes = trusted.packed_bytes if has_descriptor else local.packed_bytes
        end = min(self.size_bytes, local.data_offset + data_bytes)
        if (local.flags | trusted.flags) & ENCRYPTED:
            self.findings.append(find("encrypted-entry", local.name))
        elif local.method == DEFLATED:
            return self._inflate(local, trusted, end=end)
        elif local.method != STORED:
            self.findings.append(find("unknown-compression", local.name, f"method {local.method}"))
        elif end < local.data_offset + data_bytes:
            self.findings.append(find("damaged-entry", local.name, "its size reaches beyond the file"))
        else:
            window = BufferedReader(Window(self.file, local.data_offset, data_bytes))
            if has_descriptor:
                detail = "stored with its size behind it, which TorchServe does not read"
                self.findings.append(find("damaged-entry", local.name, detail))
                end += self._descriptor_bytes(end, crc=trusted.crc, packed_bytes=data_bytes, size_bytes=data_bytes)
            elif local.packed_bytes != local.size_bytes:
                self.findings.append(find("damaged-entry", local.name, "stored, and with two sizes"))
            return Entry(local.name, local, window, data_bytes), end
        return Entry(local.name, local), end

    def _inflate(self, local: Header, trusted: Header, *, end: int) -> tuple[Entry, int]:
        """Inflates an entry; what its headers say is compared with what came out."""
        content = tempfile.SpooledTemporaryFile(max_size=KEEP_IN_MEMORY_BYTES)  # noqa: SIM115 (closed with its entry)
        try:
            crc, size_bytes, position = self._inflate_into(content, local)
        except zlib.error as err:
            content.close()
            if not self.is_bomb:
                self.findings.append(find("damaged-entry", local.name, str(err)))
            return Entry(local.name, local), end
        packed_bytes = position - local.data_offset
        promises = {local, trusted}
        if local.flags & HAS_DESCRIPTOR:
            promises.discard(local)  # its numbers stand behind the data
            length = self._descriptor_bytes(position, crc=crc, packed_bytes=packed_bytes, size_bytes=size_bytes)
            if not length:
                self.findings.append(find("damaged-entry", local.name, "the size behind it is wrong"))
            position += length
        if any((said.crc, said.packed_bytes, said.size_bytes) != (crc, packed_bytes, size_bytes) for said in promises):
            detail = f"{packed_bytes:,} bytes inflate to {size_bytes:,}, and a header gives other sizes or checksum"
            self.findings.append(find("damaged-entry", local.name, detail))
        content.seek(0)
        return Entry(local.name, local, content, size_bytes), position

    def _inflate_into(self, content: IO[bytes], local: Header) -> tuple[int, int, int]:
        """Returns the checksum and size of what came out, and where its data ends in the archive.

        Raises:
            zlib.error: the data is no deflated data, ends too early, or is a bomb, which is then reported.
        """
        inflater, crc, size_bytes, position, data = zlib.decompressobj(-zlib.MAX_WBITS), 0, 0, local.data_offset, b""
        while not inflater.eof:
            if not data:
                data = self._read(position)
                position += len(data)
            part = inflater.decompress(data, CHUNK_BYTES)
            if not data and not part:
                raise zlib.error("its data ends too early")
            data = inflater.unconsumed_tail
            crc, size_bytes = zlib.crc32(part, crc), size_bytes + len(part)
            content.write(part)
            self._inflated_bytes += len(part)
            if self._is_bomb(local.name, size_bytes, packed_bytes=position - len(data) - local.data_offset):
                raise zlib.error("it is a bomb")
        return crc, size_bytes, position - len(inflater.unused_data)

    def _is_bomb(self, name: str, size_bytes: int, *, packed_bytes: int) -> bool:
        if size_bytes > max(BOMB_BYTES, BOMB_RATIO * packed_bytes):
            self._stop(find("size-bomb", name, f"{packed_bytes:,} bytes inflate to more than {size_bytes:,}"))
        elif self._inflated_bytes > max(TOTAL_BYTES, TOTAL_RATIO * self.size_bytes):
            detail = f"the archive's {self.size_bytes:,} bytes inflate to more than {self._inflated_bytes:,}"
            self._stop(find("size-bomb", name, detail))
        return self.is_bomb

    def _stop(self, finding: Finding) -> None:
        self.findings.append(finding)
        self.is_bomb = True

    def _descriptor_bytes(self, offset: int, *, crc: int, packed_bytes: int, size_bytes: int) -> int:
        """Returns the length of the data descriptor at an offset that says these numbers; 0 if there is none."""
        data = self._read(offset)[:24]
        for width in (4, 8):
            if max(packed_bytes, size_bytes) < 1 << (8 * width):
                sizes = packed_bytes.to_bytes(width, "little") + size_bytes.to_bytes(width, "little")
                for numbers in (crc.to_bytes(4, "little") + sizes, DESCRIPTOR + crc.to_bytes(4, "little") + sizes):
                    if data.startswith(numbers):
                        return len(numbers)
        return 0

    def _compare(self, local: Header, central: Header | None) -> None:
        """Reports where the local header, for TorchServe, and the directory, for other tools, are not of one mind."""
        if ambiguity := local.ambiguity or (central.ambiguity if central else ""):
            self.findings.append(find("ambiguous-header", local.name, ambiguity))
        if central is None:
            self.findings.append(find("smuggled-entry", local.name))
            self.findings.extend(check_name(local))
            return
        has_descriptor = bool(local.flags & HAS_DESCRIPTOR)
        flags = ENCRYPTED | HAS_DESCRIPTOR | IS_UTF8
        pairs = {
            "names": (local.name, central.name, local.raw_name != central.raw_name),
            "compressions": (local.method, central.method, local.method != central.method),
            "flags": (local.flags, central.flags, (local.flags ^ central.flags) & flags),
            "sizes": (local.size_bytes, central.size_bytes, not has_descriptor and _sizes(local) != _sizes(central)),
            "checksums": (local.crc, central.crc, not has_descriptor and local.crc != central.crc),
        }
        for what, (here, there, differ) in pairs.items():
            if differ:
                detail = f"{what} {here} before the data, {there} in the directory"
                self.findings.append(find("header-mismatch", local.name, detail))
        if local.raw_name != central.raw_name:
            self.findings.extend(check_name(local))

    def _check_outside(self) -> None:
        directory = self.directory
        self._report_outside(directory.comment_bytes, "as the archive's comment")
        self._report_outside(self.size_bytes - directory.end - directory.comment_bytes, "after the archive's end")
        self._report_outside(directory.loose_bytes, "inside the directory")

    def _report_outside(self, count: int, where: str) -> None:
        if count > 0:
            self.findings.append(find("outside-data", "", f"{count:,} bytes {where}"))
        elif count < 0:
            self.findings.append(find("overlapping-entries", "", f"{-count:,} bytes {where}"))

    def _read(self, offset: int) -> bytes:
        self.file.seek(offset)
        return self.file.read(CHUNK_BYTES)


class Window(RawIOBase):
    """A part of a file, readable and seekable as a file of its own."""

    def __init__(self, file: IO[bytes], offset: int, size_bytes: int) -> None:
        self._file, self._offset, self._size_bytes, self._position = file, offset, size_bytes, 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = SEEK_SET, /) -> int:
        """Moves the position, which may lie after the end but not before the beginning."""
        base = {SEEK_SET: 0, SEEK_END: self._size_bytes}.get(whence, self._position)
        if base + offset < 0:
            raise ValueError(f"cannot seek to {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        """Fills a buffer, as far as the part reaches."""
        view = memoryview(buffer).cast("B")
        self._file.seek(self._offset + self._position)
        data = self._file.read(min(len(view), max(0, self._size_bytes - self._position)))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)


def _sizes(header: Header) -> tuple[int, int]:
    return header.packed_bytes, header.size_bytes
