"""The record of an archive's files, and the check of an unpacked archive against it.

`MAR-INF/integrity.json` lists path, size and SHA-256 of every file of the archive but itself and its signature. A
worker checks the tree that TorchServe unpacked before it imports `model` or reads a weight; `imgcls.archive` writes the
record and checks the packed file. Standard library only: before the check runs nothing of the archive but this package.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

INTEGRITY_FILE = "MAR-INF/integrity.json"
LONGEST_NAME_BYTES = 255  # that Linux and macOS take
SIGNATURE_FILE = "MAR-INF/integrity.json.sig"
UNRECORDED = (INTEGRITY_FILE, SIGNATURE_FILE)
FORMAT = "imgcls-integrity/1"
# What is compiled before handler.entry forbids that, also under the name that it has while it is written; core dumps.
_APPEARS = re.compile(r"handler/__pycache__/(__init__|entry)\.[^/]*\.pyc(\.\d+)?|core(\.\d+)?")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class IntegrityError(Exception):
    """An archive is not what its record says, or has no record that can be read."""


@dataclass(frozen=True)
class FileRecord:
    """One file; `path` is relative to the archive's root, with forward slashes."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Integrity:
    """Every file of an archive, sorted by path, and one hash that stands for all of them."""

    files: tuple[FileRecord, ...]

    @property
    def tree_sha256(self) -> str:
        """SHA-256 of the lines that `sha256sum` prints for the files, in their order."""
        lines = "".join(f"{file.sha256}  {file.path}\n" for file in self.files)
        return hashlib.sha256(lines.encode()).hexdigest()

    def by_path(self) -> dict[str, FileRecord]:
        """Returns the records by path."""
        return {file.path: file for file in self.files}


def make_integrity(files: Iterable[FileRecord]) -> Integrity:
    """Returns the record of these files, in the order in which an archive holds them."""
    return Integrity(tuple(sorted(files, key=lambda file: file.path)))


def dump_integrity(integrity: Integrity) -> bytes:
    """Returns the content of integrity.json; equal records give equal bytes."""
    fields = {
        "format": FORMAT,
        "tree_sha256": integrity.tree_sha256,
        "files": [asdict(file) for file in integrity.files],
    }
    return (json.dumps(fields, indent=1, ensure_ascii=False) + "\n").encode()


def parse_integrity(data: bytes) -> Integrity:
    """Parses integrity.json.

    Raises:
        IntegrityError: it is not what `dump_integrity` writes, to the byte, or records a path that no build packs.
    """
    try:
        integrity = Integrity(tuple(FileRecord(**entry) for entry in json.loads(data)["files"]))
        paths = [file.path for file in integrity.files]
        in_order = paths == sorted(set(paths)) and not set(paths) & set(UNRECORDED)
        is_sound = in_order and all(map(_is_sound, integrity.files)) and dump_integrity(integrity) == data
    except (ValueError, LookupError, TypeError, RecursionError) as err:
        raise IntegrityError(f"{INTEGRITY_FILE}: cannot be read: {type(err).__name__}") from err
    if not is_sound:
        raise IntegrityError(f"{INTEGRITY_FILE}: is not a record that imgcls wrote; it was changed")
    folders = {folder.as_posix() for path in paths for folder in PurePosixPath(path).parents}
    for path in paths:
        reason = describe_unsafe_path(path) or ("is a folder too" if path in folders else None)
        if reason:
            raise IntegrityError(f"{INTEGRITY_FILE}: records a file {path!r}, which {reason}; no build packs that")
    return integrity


def describe_unsafe_path(path: str) -> str | None:
    """Returns why no archive may hold a file of this path, or None.

    It could be written outside the folder that an archive is unpacked into, or not at all, or would be more than one
    line of what `sha256sum` prints, so that two trees had one `tree_sha256`.
    """
    if "\\" in path or not path.isprintable():
        return "has a backslash or a control character in its name"
    if path.startswith("/") or PureWindowsPath(path).drive:
        return "has an absolute path"
    if not set(path.split("/")).isdisjoint({"", ".", ".."}):
        return "has '..', '.' or nothing between the slashes of its path"
    if max(len(os.fsencode(part)) for part in path.split("/")) > LONGEST_NAME_BYTES:
        return f"has a name of more than {LONGEST_NAME_BYTES} bytes"
    return None


def _is_sound(file: FileRecord) -> bool:
    is_size = type(file.size_bytes) is int and 0 <= file.size_bytes < 1 << 63
    return isinstance(file.path, str) and is_size and _SHA256.fullmatch(file.sha256) is not None


def check_tree(folder: Path) -> Integrity:
    """Compares an unpacked archive with its record: no file changed, missing or added.

    Not counted is what appears there by itself: the compiled form of the two modules that run before this check, and
    the core dump of a worker that crashed in its folder.

    Raises:
        IntegrityError: the record is missing or broken, or a file is not as recorded; the message names the file.
    """
    try:
        integrity = parse_integrity((folder / INTEGRITY_FILE).read_bytes())
    except OSError as err:
        raise IntegrityError(f"{INTEGRITY_FILE}: cannot be read: {err.strerror}; the archive proves nothing") from err
    found = {path: folder / path for path in list_files(folder)}
    refuse_difference(recorded=integrity.by_path(), found=found)
    for file in integrity.files:
        if found[file.path].is_symlink() or hash_file(found[file.path]) != file.sha256:
            raise IntegrityError(f"{file.path}: is not the file that was recorded when the archive was built")
    return integrity


def refuse_difference(*, recorded: Mapping[str, object], found: Iterable[str]) -> None:
    """Raises IntegrityError, which names a file, where the names that were found are not the recorded ones."""
    names = set(found) - set(UNRECORDED)
    if missing := sorted(recorded.keys() - names):
        raise IntegrityError(f"{missing[0]}: is recorded in {INTEGRITY_FILE}, but the archive does not hold it")
    if added := sorted(names - recorded.keys()):
        raise IntegrityError(f"{added[0]}: is not recorded in {INTEGRITY_FILE}; it was added to the archive")


def list_files(folder: Path) -> list[str]:
    """Returns the paths of all files under a folder, symbolic links among them, but for what appears by itself."""
    found = []
    for root, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        found += [(Path(root) / name).relative_to(folder).as_posix() for name in (*files, *links)]
    return sorted(path for path in found if not _APPEARS.fullmatch(path))


def hash_file(path: Path) -> str:
    """Returns a file's SHA-256, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
