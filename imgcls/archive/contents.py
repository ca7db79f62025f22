"""Reads what an archive says about itself and unpacks it, without torch and without running any of its code.

An archive is not trusted here: names, kinds and sizes of its entries are looked at before a byte is written.
"""

import json
import os
import shutil
import stat
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar

import yaml

from handler.integrity import describe_unsafe_path
from handler.packed import UNREADABLE_ZIP
from imgcls.errors import ArchiveError
from model.errors import SpecError

MANIFEST = "MAR-INF/MANIFEST.json"
LABELS_FILE = "index_to_name.json"  # as in model.labels, which needs numpy
NEEDED = (MANIFEST, "model-config.yaml", "spec.yaml", LABELS_FILE, "weights.safetensors")
MAX_TEXT_BYTES = 64 << 20  # of an entry that is read into memory
MAX_ENTRIES = 100_000
# A larger archive may unpack to this many times its size. Real weights shrink by a third at most.
MAX_RATIO = 100
SMALL_BYTES = 1 << 30
CHUNK_BYTES = 1 << 20
STALE_S = 3600
TEMPORARY_SUFFIX = ".unpacking"

# What zipfile, json, yaml and looking things up in their results raise on an archive that is not in order.
_UNREADABLE = (*UNREADABLE_ZIP, yaml.YAMLError, SpecError, TypeError, AttributeError)


@dataclass(frozen=True)
class ArchiveContents:
    """What an archive of this project holds."""

    name: str
    version: str
    classes: tuple[str, ...]
    network: str
    model_config: dict[str, Any]
    metrics: dict[str, Any]
    sizes: dict[str, int]  # bytes by path, uncompressed


def read_contents(mar: Path) -> ArchiveContents:
    """Reads the manifest, spec, labels and configuration of an archive built by this project.

    Raises:
        ArchiveError: the file is missing, is not a zip, or is not an archive of this project.
    """
    with open_archive(mar) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist() if not entry.is_dir()}
        missing = [path for path in NEEDED if path not in sizes]
        if missing:
            reason = f"is not an archive of imgcls, {', '.join(missing)} is not in it"
            raise ArchiveError(f"{mar}: {reason}; build one with ./build_mar.sh RUN")
        manifest = json.loads(read_small(archive, MANIFEST))["model"]
        spec = read_yaml(archive, "spec.yaml")
        return ArchiveContents(
            name=manifest["modelName"],
            version=manifest["modelVersion"],
            classes=tuple(json.loads(read_small(archive, LABELS_FILE)).values()),
            network=spec["network"],
            model_config=read_yaml(archive, "model-config.yaml") or {},
            metrics=json.loads(read_small(archive, "metrics.json")) if "metrics.json" in sizes else {},
            sizes=sizes,
        )


def read_small(archive: zipfile.ZipFile, path: str) -> bytes:
    """Reads an entry into memory; one of more than MAX_TEXT_BYTES, in an opened archive, is an ArchiveError."""
    if (size_bytes := archive.getinfo(path).file_size) > MAX_TEXT_BYTES:
        raise ValueError(f"{path} has {size_bytes:,} bytes; expected at most {MAX_TEXT_BYTES:,}")
    return archive.read(path)


def read_yaml(archive: zipfile.ZipFile, path: str) -> Any:
    """Reads a YAML entry; one with an alias, in an opened archive, is an ArchiveError."""
    try:
        return yaml.load(read_small(archive, path), Loader=_PlainLoader)
    except yaml.YAMLError as err:
        raise ValueError(f"{path}: {err}") from err


class _PlainLoader(yaml.SafeLoader):
    """Refuses aliases: a few lines of them are gigabytes when they are printed or copied, and imgcls writes none.

    What it makes of the rest can be written as JSON: dates and the like stay text.
    """

    yaml_constructors: ClassVar = yaml.SafeLoader.yaml_constructors | {
        "tag:yaml.org,2002:timestamp": yaml.SafeLoader.construct_yaml_str,
        "tag:yaml.org,2002:binary": yaml.SafeLoader.construct_yaml_str,
        "tag:yaml.org,2002:set": yaml.SafeLoader.construct_yaml_map,
    }

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            alias = self.peek_event()  # type: ignore[no-untyped-call]
            line = alias.start_mark.line + 1
            raise yaml.YAMLError(f"line {line} holds the alias *{alias.anchor}; expected YAML without aliases")
        return super().compose_node(parent, index)


def verify_entries(mar: Path) -> None:
    """Reads every entry and compares it with its checksum in the zip, which TorchServe would only do while it loads.

    Raises:
        ArchiveError: the archive cannot be read, or an entry is damaged.
    """
    with open_archive(mar) as archive:
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"{damaged} is damaged")


def extract(
    mar: Path, *, folder: Path, only: str | None = None, on_bytes: Callable[[int], None] = lambda count: None
) -> list[str]:
    """Unpacks an archive into a new folder: all that is wanted, or nothing.

    Nothing is written outside the folder, no link is made and no file is written twice. The files are written to a
    temporary folder beside it, which is renamed in the end; what a killed process has left is removed an hour later.

    Args:
        mar: the archive; any .mar, not only one of this project.
        folder: is missing or empty, and its parent is there.
        only: a pattern that the paths must match, as `golden/*`; `*` takes slashes too.
        on_bytes: told how many bytes were written, as it goes on.

    Returns:
        The paths of the files.

    Raises:
        ArchiveError: the archive cannot be read or is not safe to unpack, no path matches, or the folder cannot be
            written.
    """
    target = refuse_target(folder)
    with open_archive(mar) as archive:
        refuse_unsafe(mar, archive.infolist())
        wanted = [info for info in archive.infolist() if only is None or fnmatchcase(info.filename, only)]
        files = [info.filename for info in wanted if not info.is_dir()]
        if only is not None and not files:
            raise ArchiveError(f"{mar}: holds no file that matches {only!r}; imgcls archive inspect lists some")
        try:
            _refuse_full_disk(target.parent, wanted)
            _sweep(target)
            with _temporary_folder(target) as temporary:
                tree = Path(temporary) / "tree"  # its mode follows the umask, the temporary folder's does not
                tree.mkdir()
                for info in wanted:
                    _write_entry(archive, info, target=tree / info.filename, on_bytes=on_bytes)
                tree.rename(target)
        except OSError as err:
            raise ArchiveError(f"{mar}: cannot be unpacked into {folder}: {err.strerror or err}") from err
    return files


def refuse_target(folder: Path) -> Path:
    """Returns where a folder lies, behind links.

    Raises:
        ArchiveError: an archive cannot be unpacked into it: it holds something, has no parent, or is a loop of links.
    """
    target = Path(os.path.realpath(folder))  # Path.resolve raises at a loop, in Python 3.11 and 3.12
    if not target.parent.is_dir():
        raise ArchiveError(f"{folder}: its parent folder is missing; make it first with mkdir -p {folder.parent}")
    is_empty = target.is_dir() and not any(target.iterdir())
    if target == Path.cwd() or (os.path.lexists(target) and not is_empty):
        raise ArchiveError(f"{folder}: is there already; name a new folder to unpack into")
    return target


def refuse_unsafe(mar: Path, infos: Sequence[zipfile.ZipInfo]) -> None:
    """Raises ArchiveError where an archive's entries would leave the folder, overwrite each other or fill the disk."""
    for info in infos:
        if reason := describe_unsafe(info):
            raise ArchiveError(f"{mar}: entry {info.orig_filename!r} {reason}; do not unpack or serve this archive")
    if twice := find_overwritten(infos):
        reason = "is in the archive more than once, or is a file and a folder"
        raise ArchiveError(f"{mar}: entry {twice!r} {reason}; do not unpack or serve this archive")
    size_bytes = sum(info.file_size for info in infos)
    if len(infos) > MAX_ENTRIES or size_bytes > max(SMALL_BYTES, MAX_RATIO * mar.stat().st_size):
        got = f"{len(infos):,} entries of {size_bytes:,} bytes in all"
        raise ArchiveError(f"{mar}: would unpack to {got}; this is no model archive, do not unpack or serve it")


def describe_unsafe(info: zipfile.ZipInfo) -> str | None:
    """Returns why an entry must not be unpacked, or None."""
    name = info.orig_filename  # as it stands in the zip; zipfile cuts `filename` at a NUL
    if reason := describe_unsafe_path(name if name == "/" else name.removesuffix("/")):
        return reason
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device"
    return None


def find_overwritten(infos: Sequence[zipfile.ZipInfo]) -> str | None:
    """Returns the path of an entry that another one would be written over, or None."""
    seen: set[str] = set()
    folders: set[str] = set()
    for info in infos:
        path = info.filename.removesuffix("/")
        if path in seen:
            return path
        seen.add(path)
        parents = path.split("/")[:-1]
        folders.update("/".join(parents[: depth + 1]) for depth in range(len(parents)))
    files = {info.filename for info in infos if not info.is_dir()}
    return min(files & folders, default=None)


def _refuse_full_disk(parent: Path, wanted: Sequence[zipfile.ZipInfo]) -> None:
    needed_bytes, free_bytes = sum(info.file_size for info in wanted), shutil.disk_usage(parent).free
    if needed_bytes > free_bytes:
        raise ArchiveError(f"{parent}: has {free_bytes:,} bytes free, and {needed_bytes:,} are needed; make room")


def _temporary_folder(target: Path) -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix=f".{target.name}-", suffix=TEMPORARY_SUFFIX, dir=target.parent)


def _sweep(target: Path) -> None:
    """Removes what was left beside the target by processes that were killed; one that still runs is younger."""
    for left in target.parent.iterdir():
        is_ours = left.name.startswith(f".{target.name}-") and left.name.endswith(TEMPORARY_SUFFIX)
        if is_ours and left.is_dir() and time.time() - left.stat().st_mtime > STALE_S:
            shutil.rmtree(left, ignore_errors=True)


def _write_entry(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, *, target: Path, on_bytes: Callable[[int], None]
) -> None:
    if info.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(info) as source, target.open("xb") as file:
        while chunk := source.read(CHUNK_BYTES):
            file.write(chunk)
            on_bytes(len(chunk))


def refuse_no_file(mar: Path) -> None:
    """Raises ArchiveError where there is no file to read."""
    if mar.is_dir():
        raise ArchiveError(f"{mar}: is a folder; name a .mar file")
    if not mar.is_file():
        raise ArchiveError(f"{mar}: there is no such archive; build it with ./build_mar.sh RUN")


@contextmanager
def open_archive(mar: Path) -> Iterator[zipfile.ZipFile]:
    """Opens an archive for reading; whatever turns out to be wrong with it inside the block is an ArchiveError."""
    refuse_no_file(mar)
    try:
        with zipfile.ZipFile(mar) as archive:
            yield archive
    except _UNREADABLE as err:
        reason = " ".join(str(err).split()) or type(err).__name__
        raise ArchiveError(
            f"{mar}: cannot be read as a model archive ({reason}); fetch it again, or build it with ./build_mar.sh RUN"
        ) from err
