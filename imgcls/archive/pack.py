"""Packs a staged tree into a .mar: the same tree gives the same bytes, in any folder, on any day, under any user.

torch-model-archiver makes the manifest. Its zip is not used: it carries the time of the build and the order in which
the disk lists files. Its command line is not used either: it copies every input through one folder of the system's
temporary directory, named after the model, which two builds at once would share.
"""

import io
import json
import os
from datetime import UTC, datetime
from pathlib import Path

from model_archiver.model_archiver_config import ModelArchiverConfig
from model_archiver.model_archiver_error import ModelArchiverError
from model_archiver.model_packaging_utils import ModelExportUtils

from handler.integrity import INTEGRITY_FILE, Integrity, dump_integrity, list_files, make_integrity
from handler.layout import CREATED_FORMAT, EARLIEST, OnBytes, open_layout
from imgcls.archive.contents import MANIFEST
from imgcls.errors import ArchiveError, UsageError
from model.spec import WEIGHTS_FILE

CONFIG_FILE = "model-config.yaml"
HANDLER = "handler.entry"  # TorchServe imports it by this name from the unpacked archive


def refuse_bad_names(*, name: str, version: str) -> None:
    """Raises ArchiveError where TorchServe does not accept the name, or the version cannot be part of a URL."""
    for what, text in (("name", name), ("version", version)):
        try:
            ModelExportUtils.check_model_name_regex_or_exit(text)
        except ModelArchiverError as err:
            expected = "letters, digits, '_', '-' and '.', the first a letter or digit"
            raise ArchiveError(f"{what} is {text!r}; expected {expected}") from err


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


def pack_tree(tree: Path, target: Path, *, created: datetime, on_bytes: OnBytes = lambda count: None) -> Integrity:
    """Packs a staged tree as a new file, with the record of what was packed, which it writes into the tree too.

    Raises:
        ArchiveError: a file changed its size while it was packed.
    """
    with target.open("xb") as file:
        layout = open_layout(file, created=created, on_bytes=on_bytes)
        with layout.file:
            records = []
            for path in list_files(tree):
                size_bytes = (tree / path).stat().st_size
                with (tree / path).open("rb") as source:
                    records.append(layout.add(path, source, size_bytes=size_bytes))
                if records[-1].size_bytes != size_bytes:
                    raise ArchiveError(f"{path}: changed while it was packed; nothing was written, build again")
            integrity = make_integrity(records)
            record = dump_integrity(integrity)
            layout.add(INTEGRITY_FILE, io.BytesIO(record), size_bytes=len(record))
    (tree / INTEGRITY_FILE).write_bytes(record)
    return integrity
