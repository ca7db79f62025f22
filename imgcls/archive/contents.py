"""Reads what an archive says about itself, without torch and without running any of its code."""

import json
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from imgcls.errors import ArchiveError
from model.errors import SpecError

MANIFEST = "MAR-INF/MANIFEST.json"
NEEDED = (MANIFEST, "model-config.yaml", "spec.yaml", "index_to_name.json", "weights.safetensors")

# What zipfile, json, yaml and looking things up in their results raise on an archive that is not in order.
_UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, RuntimeError, OSError, EOFError, yaml.YAMLError, SpecError),
    *(LookupError, TypeError, ValueError, AttributeError),
)


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
        manifest = json.loads(archive.read(MANIFEST))["model"]
        spec = yaml.safe_load(archive.read("spec.yaml"))
        return ArchiveContents(
            name=manifest["modelName"],
            version=manifest["modelVersion"],
            classes=tuple(json.loads(archive.read("index_to_name.json")).values()),
            network=spec["network"],
            model_config=yaml.safe_load(archive.read("model-config.yaml")) or {},
            metrics=json.loads(archive.read("metrics.json")) if "metrics.json" in sizes else {},
            sizes=sizes,
        )


def verify_entries(mar: Path) -> None:
    """Reads every entry and compares it with its checksum in the zip, which TorchServe would only do while it loads.

    Raises:
        ArchiveError: the archive cannot be read, or an entry is damaged.
    """
    with open_archive(mar) as archive:
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"{damaged} is damaged")


def extract(mar: Path, *, folder: Path) -> None:
    """Unpacks an archive into a folder, as TorchServe would.

    Raises:
        ArchiveError: the archive cannot be read, or an entry is corrupt.
    """
    with open_archive(mar) as archive:
        archive.extractall(folder)


@contextmanager
def open_archive(mar: Path) -> Iterator[zipfile.ZipFile]:
    """Opens an archive for reading; whatever turns out to be wrong with it inside the block is an ArchiveError."""
    if not mar.is_file():
        raise ArchiveError(f"{mar}: there is no such archive; build it with ./build_mar.sh RUN")
    try:
        with zipfile.ZipFile(mar) as archive:
            yield archive
    except _UNREADABLE as err:
        reason = " ".join(str(err).split()) or type(err).__name__
        raise ArchiveError(
            f"{mar}: cannot be read as a model archive ({reason}); build it again with ./build_mar.sh RUN"
        ) from err
