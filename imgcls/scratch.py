"""Temporary folders that do not outlast their process for long: what `kill -9` leaves of one, the next one removes.

A folder holds a file that its process keeps locked. The kernel lets go of the lock when the process ends, however it
does, so a lock that can be taken proves that nobody is left. A folder without such a file is nobody's business here.
"""

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

PREFIX = "imgcls-"
MARK = ".alive"


class ScratchFolder(tempfile.TemporaryDirectory[str]):
    """A temporary folder, `imgcls-KIND-…`, that is removed at the end of its block; and so are those of the dead.

    Args:
        kind: what it is for, a word.
        root: where it is made, hidden; None for the system's folder of temporary files. What shall be moved into place
            is made on the same disk.
    """

    def __init__(self, kind: str, *, root: Path | None = None) -> None:
        remove_dead(root or Path(tempfile.gettempdir()))
        super().__init__(prefix=f"{'.' if root else ''}{PREFIX}{kind}-", dir=root, ignore_cleanup_errors=True)
        mark = Path(self.name) / MARK
        self._lock = mark.with_suffix(".new").open("xb")
        with suppress(OSError):  # a file system without locks: the folder stays without a mark, and is never taken
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mark.with_suffix(".new").rename(mark)  # locked from the first moment that it can be seen

    def cleanup(self) -> None:
        """Removes it."""
        super().cleanup()
        self._lock.close()


def remove_dead(root: Path) -> None:
    """Removes the scratch folders of this user whose processes are gone."""
    for folder in (*root.glob(f"{PREFIX}*"), *root.glob(f".{PREFIX}*")):
        with suppress(OSError):  # it is another user's, or was removed meanwhile, or its process lives
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            with (folder / MARK).open("rb") as mark:
                fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
