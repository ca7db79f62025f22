"""Judges what an entry is called, and the file type and permissions that it carries."""

import stat
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from imgcls.archive.scanning.findings import Finding
from imgcls.archive.scanning.headers import IS_UTF8, Header
from imgcls.archive.scanning.rules import find

MAX_NAME_BYTES = 4096


def check_names(headers: Iterable[Header]) -> Iterator[Finding]:
    """Judges the names and modes of the directory's entries, and whether two names can be one file."""
    names: dict[str, str] = {}
    for header in headers:
        yield from check_name(header)
        yield from _check_mode(header)
        key = _key(header)
        if key in names:
            is_same = names[key] == header.name
            detail = "it is there twice" if is_same else f"the same as {names[key]} on some file systems"
            yield find("duplicate-entry", header.name, detail)
        names.setdefault(key, header.name)


def check_name(header: Header) -> Iterator[Finding]:
    """Judges one name, as bytes."""
    name = header.raw_name
    parts = name.removesuffix(b"/").split(b"/")
    problems = {
        "an absolute path": name.startswith(b"/"),
        "a drive letter": name[1:2] == b":",
        "a step upwards": b".." in parts,
        "a backslash": b"\\" in name,
        "a control character": any(byte < 32 or byte == 127 for byte in name),
        "an empty or idle part": not name.startswith(b"/") and (b"" in parts or b"." in parts),
        "longer than a path can be": len(name) > MAX_NAME_BYTES,
    }
    for problem, is_there in problems.items():
        if is_there:
            yield find("unsafe-name", header.name, problem)
    try:
        name.decode("utf-8" if header.flags & IS_UTF8 else "ascii")
    except UnicodeDecodeError:
        yield find("ambiguous-name", header.name, "not UTF-8" if header.flags & IS_UTF8 else "not marked as UTF-8")
    if header.has_unicode_path:
        yield find("ambiguous-name", header.name, "it has a second name in an extra field")


def _check_mode(header: Header) -> Iterator[Finding]:
    kind = stat.S_IFMT(header.mode)
    if kind == stat.S_IFLNK:
        yield find("symlink", header.name)
    elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        yield find("special-file", header.name, f"mode {header.mode:o}")
    elif not header.is_folder and header.mode & 0o7111:
        yield find("executable-bit", header.name, f"mode {header.mode & 0o7777:o}")


def _key(header: Header) -> str:
    """Returns what two names share that some file system takes for one."""
    text = header.raw_name.decode("utf-8", errors="backslashreplace").replace("\\", "/")
    return unicodedata.normalize("NFKC", PurePosixPath(text).as_posix()).casefold()
