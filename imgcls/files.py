"""Writing files so that a reader, or a crash, never meets half of one."""

import errno
import fcntl
import logging
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from imgcls.errors import RunError

LOCK_WAIT_S = 600  # a login at Sigstore takes a person minutes
LOCK_POLL_S = 0.1

logger = logging.getLogger(__name__)


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
def lock_folder(path: Path, *, wait_s: float = LOCK_WAIT_S) -> Iterator[None]:
    """Keeps other processes that lock the folder too out of it, and waits for one that has it.

    The lock is on the folder itself, so it leaves no file that a listing would meet, and the kernel lets go of it when
    the process ends, however it does. A file system that has no such locks is only warned of.

    Raises:
        TimeoutError: another process held it all the time.
        OSError: the folder cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _wait_for_lock(descriptor, path, wait_s=wait_s)
        try:
            yield
        finally:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough where a fork has inherited it
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


def _wait_for_lock(descriptor: int, path: Path, *, wait_s: float) -> None:
    end = time.monotonic() + wait_s
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            if time.monotonic() > end:
                raise TimeoutError(f"another imgcls command is at work there, for {wait_s:g} s already") from err
        except OSError as err:  # NFS has none for folders
            reason = f"its file system has no such locks ({err.strerror})"
            return logger.warning("%s: is not locked, as %s; let no other command write there now", path, reason)
        time.sleep(LOCK_POLL_S)
