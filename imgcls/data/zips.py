"""Reading images out of a zip, in place: nothing is unpacked, so a member's path can do no harm."""

import os
import threading
import zipfile
import zlib
from pathlib import Path


class ZipReader:
    """Reads members of one zip from any thread, and from any process that it was pickled or forked into."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._forget_handle()

    def _forget_handle(self) -> None:
        self._lock = threading.Lock()
        self._archive: zipfile.ZipFile | None = None
        self._owner_pid = 0

    def __getstate__(self) -> dict[str, Path]:
        """Leaves the open file and the lock behind."""
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Path]) -> None:
        """Starts without an open file."""
        self.path = state["path"]
        self._forget_handle()

    def names(self) -> list[str]:
        """Returns the members' paths; those of folders end with a slash.

        Raises:
            OSError: the file is no readable zip.
        """
        with self._lock:
            return self._opened().namelist()

    def read(self, name: str) -> bytes:
        """Returns a member's bytes.

        Raises:
            OSError: it is not there, damaged, encrypted, or packed in an unknown way.
        """
        with self._lock:
            try:
                return self._opened().read(name)
            except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, KeyError, EOFError) as err:
                raise OSError(f"cannot be read from the zip: {err}") from err

    def _opened(self) -> zipfile.ZipFile:
        if self._archive is None or self._owner_pid != os.getpid():  # forked processes would share one file position
            try:
                self._archive = zipfile.ZipFile(self.path)
            except zipfile.BadZipFile as err:
                raise OSError(f"is no zip: {err}") from err
            self._owner_pid = os.getpid()
        return self._archive
