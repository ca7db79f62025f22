"""The members of a tar shard, by their place in it: nothing is unpacked, so a member's path can do no harm.

`imgcls.data.shards` reads them; an image is later read by its offset and size, so its place in the order is free.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from imgcls.data.images import Problem
from imgcls.data.listing import is_visible

_BLOCK_BYTES = 512
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Member:
    """A file inside a shard: its path, where its bytes begin, and how many they are."""

    path: PurePosixPath
    offset: int
    size_bytes: int


def read_slice(path: Path, offset: int, size_bytes: int) -> bytes:
    """Returns a part of a file; it is opened for each, so that threads and processes share no position.

    Raises:
        OSError: it cannot be read, or is shorter than it was.
    """
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read(size_bytes)
    if len(data) != size_bytes:
        raise OSError(f"{path.name} ends before byte {offset + size_bytes}; it has changed or is cut short")
    return data


def list_members(path: Path) -> Iterator[Member | Problem]:
    """Yields the visible files of an uncompressed tar; whatever else is odd is a problem, folders are nothing.

    A tar that is damaged yields what stands before the damage, then a problem that says where.

    Raises:
        OSError: the file cannot be read.
    """
    end, reason = 0, ""
    length = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # which would grow with the file
                if member.size < 0 or member.offset < end or member.offset_data + member.size > length:
                    reason = f"the size of {member.name!r} cannot be"
                    break
                end = member.offset_data
                if found := _classify(member):
                    yield found
            else:
                end = tar.offset
                reason = _find_rest(path, end)
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as err:  # long names of long names recur
        reason = str(err)
    if reason:
        yield Problem(path.name, f"is no whole, uncompressed tar after byte {end}: {reason}; pack it again")


def _classify(member: tarfile.TarInfo) -> Member | Problem | None:
    path = PurePosixPath(member.name)
    if member.isdir():
        return None
    if path.is_absolute() or ".." in path.parts:
        return Problem(member.name, "its path leads out of the shard; expected such as 000017.jpg")
    if not is_visible(path):
        return None
    if not member.isreg() or member.issparse():
        return Problem(member.name, "a link or another special entry; expected a file")
    return Member(path, member.offset_data, member.size)


def _find_rest(path: Path, end: int) -> str:
    """Returns what is wrong with the bytes from where tarfile stopped, which should be zeros.

    It takes a damaged header for the end of the file, no more bytes too, and looks at nothing behind a block of zeros.
    """
    with path.open("rb") as file:
        file.seek(end)
        block = file.read(_BLOCK_BYTES)
        if block.strip(b"\0"):
            return "the next header is damaged"
        if len(block) < _BLOCK_BYTES:
            return "it has no end, so it may be cut short"
        rest = iter(partial(file.read, _READ_BYTES), b"")
        return "something stands after its end, such as a second tar" if any(each.strip(b"\0") for each in rest) else ""
