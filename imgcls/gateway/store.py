"""The gateway's own model store: archives under names that say their content, never overwritten.

A file in the user's model store may be built anew at any time; a server that restarts must get what it served before.
So an archive is copied here when its rollout begins, and stays for as long as someone may want to go back to it.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from handler.layout import CHUNK_BYTES
from imgcls.archive.contents import read_contents
from imgcls.archive.trust import detached_signature
from imgcls.archive.verify import read_integrity
from imgcls.errors import ArchiveError, UsageError
from imgcls.files import sync
from imgcls.gateway.errors import GatewayError
from imgcls.serving.state import ServerTrust
from imgcls.serving.trust import check_before_start

SHORT_HASH = 12
PARTIAL = ".partial"
SPARE_BYTES = 64 << 20  # that a copy leaves free on the disk
NAME_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


@dataclass(frozen=True)
class Stored:
    """An archive in the store."""

    name: str
    version: str
    file: str
    tree_sha256: str
    trust: ServerTrust


class Store:
    """A folder of archives."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, file: str) -> Path:
        """Returns where a file lies."""
        return self.folder / file

    def add(self, mar: Path, *, trust: Path | None) -> Stored:
        """Checks an archive from outside, copies it, and checks the copy as well: nobody can have changed it meanwhile.

        An archive that is here already stays.

        Args:
            mar: the archive; a detached signature beside it is copied too.
            trust: the trust file that holds, None where there is none.

        Raises:
            ArchiveError: it is not what the trust file demands, or is damaged.
            UsageError: the trust file cannot be used, or the archive's name cannot stand in a route.
            GatewayError: there is no room, or the copy cannot be written; nothing half-written is left.
        """
        stored = self.check(mar, trust=trust)
        target = self.path(stored.file)
        if not _is_sound(target, stored.tree_sha256, trust=trust):
            self._copy(mar, target)
            if not _is_sound(target, stored.tree_sha256, trust=trust):
                target.unlink(missing_ok=True)
                raise GatewayError(f"{target}: the copy is not the archive; is the disk broken? try again")
        return stored

    def check(self, mar: Path, *, trust: Path | None) -> Stored:
        """Checks an archive from outside, and returns what it would be in the store; see `add`."""
        contents = read_contents(mar)
        for what, text in (("name", contents.name), ("version", contents.version)):
            if not text or set(text) - NAME_LETTERS or text in (".", ".."):
                raise UsageError(f"{mar}: its {what} is {text!r}; expected letters, digits, `.`, `_` and `-` only")
        checked = check_before_start(mar, trust)
        tree = read_integrity(mar).tree_sha256
        return Stored(
            contents.name,
            contents.version,
            f"{contents.name}-{contents.version}-{tree[:SHORT_HASH]}.mar",
            tree,
            checked,
        )

    def _copy(self, mar: Path, target: Path) -> None:
        needed = mar.stat().st_size
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remove_partial()
            free = shutil.disk_usage(self.folder).free
            if free < needed + SPARE_BYTES:
                raise GatewayError(
                    f"{self.folder}: {free / 1e6:,.0f} MB are free, and {mar.name} has {needed / 1e6:,.0f} MB; make "
                    "room, for instance by imgcls rollout prune, and start again"
                )
            for source, copy in ((detached_signature(mar), detached_signature(target)), (mar, target)):
                if source.is_file():
                    _copy_file(source, copy)
        except OSError as err:
            raise GatewayError(
                f"{target}: the archive cannot be copied into the store ({err.strerror or err}); nothing was changed"
            ) from err
        finally:
            self._remove_partial()

    def _remove_partial(self) -> None:
        for left in self.folder.glob(f"*{PARTIAL}"):
            left.unlink(missing_ok=True)


def _is_sound(target: Path, tree_sha256: str, *, trust: Path | None) -> bool:
    """Tells whether a file of the store is there, has this content, and is what the trust file demands."""
    try:
        if not target.is_file():
            return False
        check_before_start(target, trust)
        return read_integrity(target).tree_sha256 == tree_sha256
    except ArchiveError:
        return False


def _copy_file(source: Path, target: Path) -> None:
    partial = target.with_name(target.name + PARTIAL)
    with source.open("rb") as reader, partial.open("wb") as writer:
        shutil.copyfileobj(reader, writer, length=CHUNK_BYTES)
    partial.chmod(0o644)
    sync(partial)
    partial.replace(target)
    sync(target.parent)
