"""Tiny archives for tests of several versions: made without training, and spoilt in one way each."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from handler.integrity import INTEGRITY_FILE, SIGNATURE_FILE
from imgcls.archive.build import build_archive
from imgcls.archive.contents import extract
from imgcls.archive.pack import pack_tree, read_build_time
from imgcls.archive.stage import ServingOptions
from model.labels import dump_labels
from model.network import build_network
from model.spec import ModelSpec, dump_spec

CLASSES = ("zero", "one", "two")
Edits = Mapping[str, tuple[str, str]]  # file -> what stands in it, and what shall


def make_run(folder: Path, *, classes: Sequence[str] = CLASSES, seed: int = 0) -> Path:
    """Writes a run directory of a network of 8 x 8 grey images with random weights."""
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    spec = ModelSpec(
        size=8,
        resize=8,
        channels=1,
        mean=(0.5,),
        std=(0.5,),
        classes=tuple(classes),
        parameters={"widths": [4]},
    )
    (folder / "spec.yaml").write_text(dump_spec(spec))
    (folder / "index_to_name.json").write_text(dump_labels(spec.classes))
    save_file(build_network(spec).state_dict(), folder / "weights.safetensors")
    return folder


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
