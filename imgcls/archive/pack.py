"""Packs a staged tree into a .mar: the same tree gives the same bytes, in any folder, on any day, under any user.

torch-model-archiver makes the manifest. Its zip is not used: it carries the time of the build and the order in which
the disk lists files. Its command line is not used either: it copies every input through one folder of the system's
temporary directory, named after the model, which two builds at once would share.
"""

import io
import json
import os
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

with warnings.catch_warnings():
    warnings.simplefilter("ignore", ResourceWarning)  # torch-model-archiver leaves a file open
    from model_archiver.model_archiver_config import ModelArchiverConfig
    from model_archiver.model_packaging_utils import ModelExportUtils

from handler.integrity import (
    INTEGRITY_FILE,
    FileRecord,
    Integrity,
    describe_unsafe_path,
    dump_integrity,
    hash_file,
    list_files,
    make_integrity,
)
from handler.layout import CREATED_FORMAT, EARLIEST, OnBytes, open_layout
from imgcls.archive.contents import MANIFEST
from imgcls.archive.verify import NAME
from imgcls.errors import ArchiveError, UsageError
from model.spec import WEIGHTS_FILE

CONFIG_FILE = "model-config.yaml"
HANDLER = "handler.entry"  # TorchServe imports it by this name from the unpacked archive


def refuse_bad_names(*, name: str, version: str) -> None:
    """Raises ArchiveError where TorchServe does not accept the name, or the version cannot be part of a URL."""
    for what, text in (("name", name), ("version", version)):
        if not NAME.fullmatch(text):
            expected = "letters, digits, '_', '-' and '.', the first a letter or digit"
            raise ArchiveError(f"{what} is {text!r}; expected {expected}")


def read_build_time() -> datetime:
    """Returns the time that the archive carries: SOURCE_DATE_EPOCH, or else the earliest that a zip knows.

    Raises:
        UsageError: SOURCE_DATE_EPOCH is no time that a zip can hold.

    Source: https://reproducible-builds.org/specs/source-date-epoch/
    """
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if text is None:
        return EARLIEST
    try:
        created = datetime.fromtimestamp(int(text), UTC)
        if not 1980 <= created.year < 2108:
            raise ValueError
    except (ValueError, OverflowError, OSError) as err:
        expected = "seconds since 1970, of a year from 1980 to 2107"
        raise UsageError(f"SOURCE_DATE_EPOCH is {text!r}; expected {expected}; unset it or give one") from err
    return created.replace(second=created.second // 2 * 2)  # a zip counts two seconds


def write_manifest(tree: Path, *, name: str, version: str, created: datetime) -> None:
    """Writes MAR-INF/MANIFEST.json into a staged tree, as torch-model-archiver does but for the time."""
    config = ModelArchiverConfig(
        model_name=name, handler=HANDLER, version=version, serialized_file=WEIGHTS_FILE, config_file=CONFIG_FILE
    )
    manifest = json.loads(ModelExportUtils.generate_manifest_json(config))
    manifest["createdOn"] = created.strftime(CREATED_FORMAT)
    (tree / MANIFEST).parent.mkdir(exist_ok=True)
    (tree / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def record_tree(tree: Path, *, known: Mapping[str, str] | None = None) -> Integrity:
    """Writes the record of a staged tree's files into it; the tree is then what TorchServe will unpack.

    Args:
        tree: the staged tree.
        known: the SHA-256 of files that have been hashed already, by path.

    Raises:
        ArchiveError: a file has a name under which no archive may hold it.
    """
    hashes, paths = known or {}, list_files(tree)
    for path in paths:
        if reason := describe_unsafe_path(path):
            raise ArchiveError(f"{path!r} {reason}, so it cannot be packed; rename it in the run directory")
    integrity = make_integrity(
        FileRecord(path, (tree / path).stat().st_size, hashes.get(path) or hash_file(tree / path))
        for path in paths
        if path != INTEGRITY_FILE
    )
    (tree / INTEGRITY_FILE).write_bytes(dump_integrity(integrity))
    return integrity


def pack_tree(
    tree: Path,
    target: Path,
    *,
    created: datetime,
    integrity: Integrity | None = None,
    on_bytes: OnBytes = lambda count: None,
) -> None:
    """Packs a staged tree as a new file.

    Args:
        tree: the staged tree.
        target: the file to write.
        created: the time that it carries.
        integrity: what `record_tree` returned; without it the tree is recorded here.
        on_bytes: told how many bytes were packed, as it goes on.

    Raises:
        ArchiveError: a file is not of the size that was recorded.
    """
    integrity = integrity or record_tree(tree)
    with target.open("xb") as file:
        layout = open_layout(file, created=created, on_bytes=on_bytes)
        with layout.file:
            for record in integrity.files:
                with (tree / record.path).open("rb") as source:
                    if layout.add(record.path, source, size_bytes=record.size_bytes) != record.size_bytes:
                        raise ArchiveError(f"{record.path}: changed while it was packed; build again")
            data = dump_integrity(integrity)
            layout.add(INTEGRITY_FILE, io.BytesIO(data), size_bytes=len(data))
