"""One archive, taken apart by the meaning of its files, as `imgcls.archive.diff` compares it.

Every file is hashed and weights tensor by tensor; memory stays flat. Nothing of the archive is run.
"""

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handler.integrity import INTEGRITY_FILE, SIGNATURE_FILE
from handler.layout import OnBytes
from imgcls.archive.contents import LABELS_FILE, MANIFEST, open_archive
from imgcls.archive.describe import (
    find_model_config,
    hash_archive,
    hash_source,
    name_engine,
    read_document,
    read_engines,
    read_manifest,
)
from imgcls.archive.tensors import Tensor, hash_tensors, read_tensors
from model.spec import SPEC_FILE, WEIGHTS_FILE

NETWORK_FIELDS = ("network", "parameters")
CONTAINER = (MANIFEST, INTEGRITY_FILE, SIGNATURE_FILE)
# Text about the archive, which is another one wherever anything is.
PAPERS = ("MODEL_CARD.md", "provenance.json", "sbom.cdx.json")
Fields = dict[str, Any]


@dataclass(frozen=True)
class ArchiveTree:
    """What an archive holds; settings are flat, `a.b` for the key b of section a."""

    path: str
    name: str
    version: str
    archive_sha256: str
    files: dict[str, str]  # SHA-256 by path; of the weights, their header's
    tensors: dict[str, tuple[Tensor, str]]  # with the SHA-256 of its values, by name
    parts: dict[str, Fields]  # what the files of PARTS say
    labels: dict[str, str]  # class by index
    libraries: Fields  # version by name
    config_file: str | None


def read_tree(mar: Path, *, on_bytes: OnBytes = lambda count: None) -> ArchiveTree:
    """Reads an archive; `on_bytes` is told of each byte twice.

    Raises:
        ArchiveError: it cannot be read, or one of its descriptions cannot.
    """
    with open_archive(mar) as archive:
        manifest = read_manifest(archive)
        model, config_file = manifest.get("model", {}), find_model_config(manifest)
        paths = [info.filename for info in archive.infolist() if not info.is_dir()]
        return ArchiveTree(
            path=str(mar),
            name=str(model.get("modelName", mar.stem)),
            version=str(model.get("modelVersion", "")),
            archive_sha256=hash_archive(mar, on_bytes=on_bytes),
            files={path: _hash_entry(archive, path, on_bytes=on_bytes) for path in paths},
            tensors=_hash_weights(archive, on_bytes=on_bytes) if WEIGHTS_FILE in paths else {},
            parts=_read_parts(archive, manifest, config_file=config_file),
            labels={str(index): str(name) for index, name in (read_document(archive, LABELS_FILE) or {}).items()},
            libraries=_read_libraries(archive),
            config_file=config_file,
        )


def _read_parts(archive: zipfile.ZipFile, manifest: Fields, *, config_file: str | None) -> dict[str, Fields]:
    spec = dict(read_document(archive, SPEC_FILE) or {})
    spec.pop("classes", None)  # the labels tell of them
    network = {key: spec.pop(key) for key in NETWORK_FIELDS if key in spec}
    record = dict(read_document(archive, "train_record.json") or {})
    return {
        "model": flatten({key: value for key, value in manifest.items() if key != "createdOn"}),
        "network": flatten(network),
        "preprocessing": flatten(spec),
        "metrics": _read_metrics(archive),
        "configuration": flatten(read_document(archive, config_file) or {}),
        "engines": {name_engine(engine): flatten(engine) for engine in read_engines(archive)},
        "training": flatten(read_document(archive, "train_config.yaml") or {}),
        "record": flatten(record),
    }


def flatten(fields: Mapping[str, Any], prefix: str = "") -> Fields:
    """Returns a.b.c for the keys of sections in sections; a list stays one value."""
    flat: Fields = {}
    for key, value in fields.items():
        is_section = isinstance(value, dict) and bool(value)
        flat |= flatten(value, f"{prefix}{key}.") if is_section else {f"{prefix}{key}": value}
    return flat


def _read_metrics(archive: zipfile.ZipFile) -> Fields:
    """Returns each test set's numbers; those of single classes and confusions would fill pages."""
    sets = (read_document(archive, "metrics.json") or {}).get("test_sets", {})
    flat = {f"{name}.{key}": value for name, scores in sets.items() for key, value in scores.items()}
    return {key: value for key, value in flat.items() if not isinstance(value, dict | list)}


def _read_libraries(archive: zipfile.ZipFile) -> Fields:
    components = (read_document(archive, "sbom.cdx.json") or {}).get("components", [])
    return {part["name"]: part.get("version") for part in components if part.get("type") == "library"}


def _hash_entry(archive: zipfile.ZipFile, path: str, *, on_bytes: OnBytes) -> str:
    with archive.open(path) as entry:
        if path != WEIGHTS_FILE:
            return hash_source(entry, on_bytes=on_bytes)
        read_tensors(entry)
        length = entry.tell()
    with archive.open(path) as entry:
        return hashlib.sha256(entry.read(length)).hexdigest()


def _hash_weights(archive: zipfile.ZipFile, *, on_bytes: OnBytes) -> dict[str, tuple[Tensor, str]]:
    with archive.open(WEIGHTS_FILE) as stream:
        return {tensor.name: (tensor, sha256) for tensor, sha256 in hash_tensors(stream, on_bytes=on_bytes).items()}
