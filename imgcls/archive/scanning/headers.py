"""Reads a zip's headers as bytes: the central directory that tools read, and the local headers on TorchServe's way.

Python's zipfile is not used, as it shows only what it believes itself: it cuts names at a NUL, and never looks at the
local headers' sizes. Source: PKWARE's APPNOTE.TXT 6.3.10, sections 4.3 and 4.4.
"""

import struct
from dataclasses import dataclass
from typing import IO

LOCAL, CENTRAL, END = b"PK\3\4", b"PK\1\2", b"PK\5\6"
ZIP64_END, ZIP64_LOCATOR, DESCRIPTOR = b"PK\6\6", b"PK\6\7", b"PK\7\x08"
STORED, DEFLATED = 0, 8
ENCRYPTED, HAS_DESCRIPTOR, IS_UTF8 = 0x2041, 0x0008, 0x0800  # bits of the flags; three of them encrypt
MAX_ENTRIES = 10_000
MAX_DIRECTORY_BYTES = 16 << 20
_ZIP64_EXTRA, _UNICODE_PATH_EXTRA = 0x0001, 0x7075
_MAX_32 = 0xFFFFFFFF
_LOCAL_FIELDS = struct.Struct("<4s5H3L2H")
_CENTRAL_FIELDS = struct.Struct("<4s6H3L5H2L")
_END_FIELDS = struct.Struct("<4s4H2LH")
_ZIP64_END_FIELDS = struct.Struct("<4sQ2H2L4Q")
_ZIP64_LOCATOR_FIELDS = struct.Struct("<4sLQL")


class BrokenZipError(Exception):
    """The file is no zip, or its structure cannot be read."""


class TooManyEntriesError(Exception):
    """The central directory is larger than any model's."""


@dataclass(frozen=True)
class Header:
    """One header of an entry; a central one also knows `mode`, a local one where its data begins."""

    raw_name: bytes
    flags: int
    method: int
    crc: int
    packed_bytes: int
    size_bytes: int
    offset: int  # of the local header
    data_offset: int = 0
    mode: int = 0
    has_unicode_path: bool = False
    ambiguity: str = ""  # what of its extra field two readers take for two things

    @property
    def name(self) -> str:
        """The name as TorchServe reads it."""
        return self.raw_name.decode("utf-8", errors="backslashreplace")

    @property
    def is_folder(self) -> bool:
        """Whether readers make a folder of it and skip its data."""
        return self.raw_name.endswith(b"/")


@dataclass(frozen=True)
class Directory:
    """The central directory, and where it lies."""

    headers: tuple[Header, ...]
    start: int
    end: int  # the end of the last end record's fixed part
    comment_bytes: int
    loose_bytes: int  # between the directory and its end record
    shift: int  # by how much the offsets are wrong, as something was put in front


def read_directory(file: IO[bytes], *, size_bytes: int) -> Directory:
    """Reads the central directory; `size_bytes` is the file's size.

    Raises:
        BrokenZipError: there is none, or its records contradict each other.
        TooManyEntriesError: it has more than MAX_ENTRIES entries or MAX_DIRECTORY_BYTES bytes.
    """
    end = _find_end(file, size_bytes=size_bytes)
    fields = _END_FIELDS.unpack(_read(file, end, _END_FIELDS.size))
    _, disk, start_disk, disk_count, count, length, offset, comment_bytes = fields
    records_start = end
    if end >= _ZIP64_LOCATOR_FIELDS.size:
        locator = _read(file, end - _ZIP64_LOCATOR_FIELDS.size, _ZIP64_LOCATOR_FIELDS.size)
        if locator.startswith(ZIP64_LOCATOR):
            # Written right before its locator; a reader that follows the locator's offset instead must find the same.
            records_start = end - _ZIP64_LOCATOR_FIELDS.size - _ZIP64_END_FIELDS.size
            zip64 = _ZIP64_END_FIELDS.unpack(_read(file, records_start, _ZIP64_END_FIELDS.size))
            if zip64[0] != ZIP64_END or zip64[1] != _ZIP64_END_FIELDS.size - 12:
                raise BrokenZipError("the zip64 end record is not where it should be")
            disk, start_disk, disk_count, count, length, offset = zip64[4:]
    if disk or start_disk or disk_count != count:
        raise BrokenZipError("it is one part of a zip in several files")
    if count > MAX_ENTRIES or length > MAX_DIRECTORY_BYTES:
        raise TooManyEntriesError(f"{count:,} entries, {length:,} bytes of directory; at most {MAX_ENTRIES:,} are read")
    start = records_start - length
    shift = start - offset
    if start < 0 or shift < 0:
        raise BrokenZipError(f"its directory begins at byte {offset:,}, which is not in the file")
    headers, used = _parse_directory(_read(file, start, length), count=count, shift=shift)
    return Directory(headers, start, end + _END_FIELDS.size, comment_bytes, length - used, shift)


def read_local_header(file: IO[bytes], offset: int) -> Header | None:
    """Reads the local header at an offset; None where there is none."""
    file.seek(offset)
    data = file.read(_LOCAL_FIELDS.size)
    if len(data) < _LOCAL_FIELDS.size or not data.startswith(LOCAL):
        return None
    _, _, flags, method, _, _, crc, packed, size, name_length, extra_length = _LOCAL_FIELDS.unpack(data)
    name, extra = file.read(name_length), file.read(extra_length)
    if len(name) + len(extra) < name_length + extra_length:
        return None
    parts, ambiguity = parse_extra(extra)
    if _ZIP64_EXTRA in parts and (len(parts[_ZIP64_EXTRA]), size, packed) != (16, _MAX_32, _MAX_32):
        # Java takes both sizes from it where either is marked as too large, and neither where it is shorter.
        ambiguity = ambiguity or "its 64-bit sizes are not two, or stand beside sizes of 32 bits"
    size, packed, _ = _widen(parts, size, packed, 0)
    return Header(
        name,
        flags,
        method,
        crc,
        packed,
        size,
        offset,
        data_offset=offset + _LOCAL_FIELDS.size + name_length + extra_length,
        has_unicode_path=_UNICODE_PATH_EXTRA in parts,
        ambiguity=ambiguity,
    )


def parse_extra(data: bytes) -> tuple[dict[int, bytes], str]:
    """Returns the parts of an extra field by their numbers, and why two readers may find others in it.

    Of two parts of one number some readers take the first, Java the last; a part that is longer than the field Java
    leaves out. What is after such a part nobody reads.
    """
    parts: dict[int, bytes] = {}
    ambiguity, position = "", 0
    while position + 4 <= len(data):
        number, length = struct.unpack_from("<2H", data, position)
        position += 4
        if position + length > len(data):
            return parts, f"a part of its extra field, {number:#06x}, is cut off"
        if number in parts:
            ambiguity = f"its extra field has two parts {number:#06x}"
        parts.setdefault(number, data[position : position + length])
        position += length
    return parts, ambiguity


def _find_end(file: IO[bytes], *, size_bytes: int) -> int:
    """Returns where the end record begins: the last one of the file, as zipfile and unzip take it."""
    tail_bytes = min(size_bytes, _END_FIELDS.size + 0xFFFF)
    tail = _read(file, size_bytes - tail_bytes, tail_bytes)
    index = tail.rfind(END, 0, max(0, len(tail) - _END_FIELDS.size + len(END)))
    if index < 0:
        raise BrokenZipError("it is not a zip, or its end is missing")
    return size_bytes - tail_bytes + index


def _parse_directory(data: bytes, *, count: int, shift: int) -> tuple[tuple[Header, ...], int]:
    headers: list[Header] = []
    position = 0
    for _ in range(count):
        if len(data) < position + _CENTRAL_FIELDS.size or not data.startswith(CENTRAL, position):
            raise BrokenZipError(f"its directory announces {count} entries and holds {len(headers)}")
        fields = _CENTRAL_FIELDS.unpack_from(data, position)
        _, _, _, flags, method, _, _, crc, packed, size, name_length, extra_length, comment_length = fields[:13]
        attributes, offset = fields[15], fields[16]
        position += _CENTRAL_FIELDS.size
        name = data[position : position + name_length]
        parts, ambiguity = parse_extra(data[position + name_length : position + name_length + extra_length])
        position += name_length + extra_length + comment_length
        size, packed, offset = _widen(parts, size, packed, offset)
        header = Header(
            name,
            flags,
            method,
            crc,
            packed,
            size,
            offset + shift,
            mode=attributes >> 16,
            has_unicode_path=_UNICODE_PATH_EXTRA in parts,
            ambiguity=ambiguity,
        )
        headers.append(header)
    return tuple(headers), position


def _widen(parts: dict[int, bytes], size: int, packed: int, offset: int) -> tuple[int, int, int]:
    """Puts the 64-bit numbers of the extra field in place of those that are marked as too large for 32 bits."""
    numbers = [size, packed, offset]
    data = parts.get(_ZIP64_EXTRA, b"")
    for index, number in enumerate(numbers):
        if number == _MAX_32 and len(data) >= 8:
            numbers[index], data = int.from_bytes(data[:8], "little"), data[8:]
    return numbers[0], numbers[1], numbers[2]


def _read(file: IO[bytes], offset: int, length: int) -> bytes:
    if offset < 0:
        raise BrokenZipError("it is too short")
    file.seek(offset)
    data = file.read(length)
    if len(data) < length:
        raise BrokenZipError(f"it ends at byte {offset + len(data):,}, in the middle of a record")
    return data
