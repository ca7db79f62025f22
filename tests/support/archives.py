"""Tiny archives for tests of several versions: made without training, and spoilt in one way each."""

from collections.abc import Mapping
from pathlib import Path

from handler.integrity import INTEGRITY_FILE, SIGNATURE_FILE
from imgcls.archive.build import build_archive
from imgcls.archive.contents import extract
from imgcls.archive.pack import pack_tree, read_build_time
from imgcls.archive.stage import ServingOptions

Edits = Mapping[str, tuple[str, str]]  # file -> what stands in it, and what shall


def build(run: Path, store: Path, *, version: str, workers: int = 1) -> Path:
    """Builds an archive in a folder of its own, as each is called imgcls.mar."""
    store.mkdir(parents=True, exist_ok=True)
    return build_archive(run, store, version=version, options=ServingOptions(workers=workers))


def spoil(mar: Path, target: Path, *, work: Path, edits: Edits) -> Path:
    """Packs an archive anew with changed code: whole by its record, and not what was tested."""
    extract(mar, folder=work)
    for name in (INTEGRITY_FILE, SIGNATURE_FILE):
        (work / name).unlink(missing_ok=True)
    for name, (old, new) in edits.items():
        text = (work / name).read_text()
        assert text.count(old) == 1, f"{name} has changed: {old!r} stands in it {text.count(old)} times"
        (work / name).write_text(text.replace(old, new))
    pack_tree(work, target, created=read_build_time())
    return target
