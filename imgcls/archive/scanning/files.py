"""Judges one file of an archive by its bytes and its name, and looks into archives inside the archive."""

import re
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO

import yaml

from imgcls.archive.scanning.entries import BOMB_BYTES, BOMB_RATIO, CHUNK_BYTES, KEEP_IN_MEMORY_BYTES
from imgcls.archive.scanning.findings import Finding
from imgcls.archive.scanning.headers import BrokenZipError, TooManyEntriesError, read_directory
from imgcls.archive.scanning.kinds import Kind, has_zip_at_end, identify
from imgcls.archive.scanning.rules import find
from imgcls.archive.scanning.source import check_source
from imgcls.archive.scanning.source_rules import MAX_SOURCE_BYTES
from imgcls.archive.scanning.tensors import BrokenTensorsError, check_tensors

MAX_DEPTH = 3
MAX_TEXT_BYTES = 2 << 20
ZIPS = (Kind.ZIP, Kind.TORCH_ZIP, Kind.TORCHSCRIPT)

_WEIGHTS = {"", ".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill", ".model", ".data", ".npy"}
# What a file of each kind is honestly called; under another name it is in disguise.
_HONEST = {
    Kind.NATIVE: {"", ".so", ".dll", ".dylib", ".pyd", ".exe", ".a", ".o", ".lib", ".class", ".wasm", ".cubin"},
    Kind.BYTECODE: {".pyc", ".pyo"},
    Kind.PICKLE: _WEIGHTS,
    Kind.TORCH_ZIP: _WEIGHTS | {".pt2", ".zip"},
    Kind.TORCHSCRIPT: _WEIGHTS | {".pt2", ".ptl", ".torchscript", ".zip"},
    Kind.ZIP: {"", ".zip", ".whl", ".egg", ".jar", ".mar", ".war", ".npz", ".pt2", ".keras", ".nemo"},
}
_RULE_BY_KIND = {
    Kind.NATIVE: "native-code",
    Kind.SCRIPT: "script",
    Kind.BYTECODE: "bytecode",
    Kind.PICKLE: "pickle",
    Kind.TORCH_ZIP: "pickle",
    Kind.TORCHSCRIPT: "torchscript",
    Kind.ZIP: "nested-archive",
    Kind.PACKED: "nested-archive",
}
_RULE_BY_NAME = {
    "requirements.txt": "requirements",
    **dict.fromkeys(("setup.py", "setup.cfg", "pyproject.toml", "conftest.py"), "install-hook"),
    **dict.fromkeys(("sitecustomize.py", "usercustomize.py"), "startup-hook"),
}
# Where the bytes do not tell: text, or not what the name promises.
_RULE_BY_SUFFIX = {
    ".pth": "startup-hook",
    **dict.fromkeys((".so", ".dll", ".dylib", ".pyd", ".exe"), "native-code"),
    **dict.fromkeys((".sh", ".bash", ".bat", ".cmd", ".ps1", ".vbs", ".js", ".ipynb"), "script"),
    **dict.fromkeys((".pyc", ".pyo"), "bytecode"),
    **dict.fromkeys((".pkl", ".pickle", ".joblib", ".dill"), "pickle"),
    **dict.fromkeys((".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".whl", ".egg"), "nested-archive"),
}
_YAML_TAGS = re.compile(r"!|tag:yaml\.org,2002:(str|int|float|bool|null|map|seq|set|omap|pairs|binary|timestamp|merge)")
_TORCH_DATA = re.compile(r"(.*/)?(data/\d+|(data|constants|attributes)\.pkl|code/.*|\.data/.*|version|byteorder)")


@dataclass
class Budget:
    """How many bytes of nested archives are still inflated, in one scan."""

    left_bytes: int = 2 << 30


def check_file(path: str, content: IO[bytes], *, size_bytes: int, budget: Budget) -> Iterator[Finding]:
    """Judges one file; a path such as `outer.zip!inner` lies in a nested archive."""
    name = PurePosixPath(path.rpartition("!")[2]).name.lower()
    kind, suffix = identify(content, size_bytes=size_bytes), _suffix(name)
    rules = {
        _RULE_BY_KIND.get(kind),
        _RULE_BY_NAME.get(name),
        _RULE_BY_SUFFIX.get(suffix) if kind is Kind.OTHER else None,
    }
    if suffix not in _HONEST.get(kind, {suffix}):
        yield find("disguised-file", path, f"it is {kind}")
    yield from (find(rule, path) for rule in rules if rule)
    if suffix == ".safetensors" and kind in (Kind.TENSORS, Kind.OTHER):
        yield from _check_tensors(path, content, size_bytes=size_bytes)
    if suffix in (".yaml", ".yml"):
        yield from _check_yaml(path, content, size_bytes=size_bytes)
    if suffix in (".py", ".pyw"):
        content.seek(0)
        yield from check_source(path, content.read(MAX_SOURCE_BYTES + 1))
    is_polyglot = kind not in ZIPS and has_zip_at_end(content, size_bytes=size_bytes)
    if is_polyglot:
        yield find("disguised-file", path, f"it is {kind}, and a zip archive from its end")
    if is_polyglot or kind in ZIPS:
        yield from _check_nested(path, content, size_bytes=size_bytes, budget=budget)


def are_plain_tensors(content: IO[bytes], *, size_bytes: int) -> bool:
    """Tells whether a file is safetensors to the last byte and nothing else, so that nothing in it can run."""
    if identify(content, size_bytes=size_bytes) is not Kind.TENSORS or has_zip_at_end(content, size_bytes=size_bytes):
        return False
    return not any(_check_tensors("", content, size_bytes=size_bytes))


def _suffix(name: str) -> str:
    return ".so" if re.search(r"\.so(\.\d+)+$", name) else PurePosixPath(name).suffix


def _check_tensors(path: str, content: IO[bytes], *, size_bytes: int) -> Iterator[Finding]:
    try:
        check_tensors(content, size_bytes=size_bytes)
    except BrokenTensorsError as err:
        yield find("broken-tensors", path, str(err))


def _check_yaml(path: str, content: IO[bytes], *, size_bytes: int) -> Iterator[Finding]:
    content.seek(0)
    try:
        if size_bytes > MAX_TEXT_BYTES:
            raise ValueError(f"{size_bytes:,} bytes")
        events = yaml.parse(content.read(MAX_TEXT_BYTES), Loader=yaml.SafeLoader)
        tags = {str(getattr(event, "tag", None) or "!") for event in events}
    except (yaml.YAMLError, RecursionError, ValueError) as err:
        yield find("not-judged", path, f"YAML that cannot be read ({' '.join(str(err).split())[:100]})")
        return
    yield from (find("yaml-tag", path, tag) for tag in tags if not _YAML_TAGS.fullmatch(tag))


def _check_nested(path: str, content: IO[bytes], *, size_bytes: int, budget: Budget) -> Iterator[Finding]:
    """Judges the files of a nested zip; what makes a PyTorch file one is judged already."""
    if path.count("!") >= MAX_DEPTH:
        yield find("not-judged", path, f"more than {MAX_DEPTH} archives deep")
        return
    try:
        read_directory(content, size_bytes=size_bytes)  # refuses what zipfile would read into memory whole
        with zipfile.ZipFile(content) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
            if any(info.filename.endswith(("data.pkl", "constants.pkl")) for info in infos):
                infos = [info for info in infos if not _TORCH_DATA.fullmatch(info.filename)]
            for info in infos:
                yield from _check_nested_file(archive, info, path=f"{path}!{info.filename}", budget=budget)
    except (BrokenZipError, TooManyEntriesError, *_UNREADABLE) as err:
        yield find("not-judged", path, f"the archive in it cannot be read ({' '.join(str(err).split())[:100]})")


_UNREADABLE = (zipfile.BadZipFile, zlib.error, RuntimeError, OSError, EOFError, ValueError)


def _check_nested_file(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, *, path: str, budget: Budget
) -> Iterator[Finding]:
    bomb_bytes = max(BOMB_BYTES, BOMB_RATIO * info.compress_size)
    size_bytes = 0
    with archive.open(info) as source, tempfile.SpooledTemporaryFile(max_size=KEEP_IN_MEMORY_BYTES) as copy:
        while chunk := source.read(CHUNK_BYTES):
            size_bytes += copy.write(chunk)
            budget.left_bytes -= len(chunk)
            if size_bytes > bomb_bytes:
                yield find("size-bomb", path, f"{info.compress_size:,} bytes inflate to more than {size_bytes:,}")
                return
            if budget.left_bytes < 0:
                yield find("not-judged", path, "too many bytes in nested archives")
                return
        yield from check_file(path, copy, size_bytes=size_bytes, budget=budget)
