"""An archive with another model-config.yaml: what `imgcls archive build` gives with other options, from the archive.

A packed archive cannot be changed: its record holds the hash of every file, and each worker checks it. The server's
config.properties cannot help either: model-config.yaml stands over its `models=`, and TorchServe passes nothing else to
the handler. So the tuned settings need a new archive, with a record and a `tree_sha256` of its own. It is not signed.
"""

import hashlib
import io
import zipfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from handler.integrity import (
    INTEGRITY_FILE,
    SIGNATURE_FILE,
    FileRecord,
    Integrity,
    dump_integrity,
    make_integrity,
    parse_integrity,
)
from handler.layout import open_layout
from imgcls.archive.contents import open_archive, read_small
from imgcls.errors import ArchiveError
from imgcls.files import refuse_unwritable
from imgcls.tuning.candidates import Candidate
from model.engines.kinds import AUTO

CONFIG_FILE = "model-config.yaml"
SHORT = 12  # digits of a hash in a message


def make_model_config(model_config: Mapping[str, Any], candidate: Candidate, *, cores: int) -> str:
    """Returns the text of a model-config.yaml with a candidate's settings; all others stay.

    Args:
        model_config: the archive's.
        candidate: what to set.
        cores: of this machine; threads that the handler would count by itself stay `auto`.
    """
    is_auto = candidate.threads == max(1, cores // candidate.workers)
    counted = ("minWorkers", "maxWorkers")
    settings = {key: value for key, value in model_config.items() if key not in counted}
    settings |= {"batchSize": candidate.batch_size, "maxBatchDelay": candidate.max_batch_delay_ms}
    section = dict(settings.pop("handler", None) or {})
    section |= {"engine": candidate.engine, "threads": AUTO if is_auto else candidate.threads}
    config = dict.fromkeys(counted, candidate.workers) | settings | {"handler": section}
    return yaml.safe_dump(config, sort_keys=False)


def repack(mar: Path, target: Path, *, model_config: str, tree_sha256: str) -> Path:
    """Writes a copy of an archive with another model-config.yaml, recorded anew and unsigned.

    Args:
        mar: an archive that has been verified.
        target: the file to write; is not there.
        model_config: the new text.
        tree_sha256: the content that was verified; a build may have replaced it since.

    Raises:
        ArchiveError: the archive cannot be read, or is another one by now.
        RunError: the file cannot be written.
    """
    with open_archive(mar) as archive:
        record = parse_integrity(read_small(archive, INTEGRITY_FILE))
        if record.tree_sha256 != tree_sha256:
            raise ArchiveError(
                f"{mar}: was replaced while it was tuned: it is content {record.tree_sha256[:SHORT]} now, and what was "
                f"measured is {tree_sha256[:SHORT]}; tune it again"
            )
        with refuse_unwritable(target, advice="make room, and tune again"):
            _write_copy(archive, target, record=record, model_config=model_config.encode())
    return target


def _write_copy(archive: zipfile.ZipFile, target: Path, *, record: Integrity, model_config: bytes) -> None:
    own_record = FileRecord(CONFIG_FILE, len(model_config), hashlib.sha256(model_config).hexdigest())
    integrity = make_integrity([own_record, *(each for each in record.files if each.path != CONFIG_FILE)])
    own = {CONFIG_FILE: model_config, INTEGRITY_FILE: dump_integrity(integrity)}
    with target.open("xb") as file:
        layout = open_layout(file, created=_read_created(archive))
        with layout.file:
            for info in archive.infolist():
                if info.filename in own:
                    content = own[info.filename]
                    layout.add(info.filename, io.BytesIO(content), size_bytes=len(content))
                elif info.filename != SIGNATURE_FILE:
                    with archive.open(info) as source:
                        layout.add(info.filename, source, size_bytes=info.file_size)


def _read_created(archive: zipfile.ZipFile) -> datetime:
    return datetime(*archive.infolist()[0].date_time, tzinfo=UTC)
