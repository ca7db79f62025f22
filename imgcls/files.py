"""Writing files so that a reader, or a crash, never meets half of one."""

import errno
import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from imgcls.errors import RunError


def write_atomic(path: Path, data: bytes | str, *, mode: int = 0o666) -> None:
    """Writes a file under a temporary name beside it, brings it to the disk, and renames it into place.

    Text is written as UTF-8. The folder must exist. Where anything fails, the old file stays as it was. `mode` is what
    the file may be used for, less the umask; it is so from the first byte.

    Raises:
        OSError: the folder is missing or not writable, the path is that of a folder, or the disk is full.
    """
    if not path.name:  # as of "." and "/"
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def append_text(path: Path, lines: str) -> None:
    """Adds whole lines to a file, as UTF-8, and brings them to the disk.

    Half a line that a crash or a full disk left before is closed first, so that only that half is lost.

    Raises:
        OSError: they cannot be written, or not all of them.
    """
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            lines = lines if file.read(1) == b"\n" else "\n" + lines
        file.write(lines.encode())
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def wait_for_folder(path: Path) -> Iterator[None]:
    """Within it, no other process is within it for the same folder, so that what was read there may be written anew.

    The lock is on the folder itself: it leaves no file, and the kernel lets go when the process ends, however it does.

    Raises:
        OSError: the folder cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # NFS has no locks for folders; there it is as if each were alone
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def refuse_unwritable(path: Path, *, advice: str) -> Iterator[None]:
    """Within it, a failed write is one line that names what the user asked to be written, and no temporary file.

    Raises:
        RunError: in place of an OSError.
    """
    try:
        yield
    except BrokenPipeError:  # who reads our progress went away, which is not the disk's
        raise
    except OSError as err:
        raise RunError(f"{path}: cannot be written: {err.strerror or err}; {advice}") from err


def sync(path: Path) -> None:
    """Brings a file's content, or a folder's entries after a rename, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
