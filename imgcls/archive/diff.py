"""What changed between two archives, by its meaning: code, weights, preprocessing, labels, metrics and so on.

Each part is compared as what it is: weights tensor by tensor, settings key by key, labels index by index. Other files
are compared by their hash. Archives are compared as they are; whether they verify is another question.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from handler.layout import OnBytes
from imgcls.archive.contents import LABELS_FILE, open_archive, read_small
from imgcls.archive.scanning.findings import make_printable
from imgcls.archive.tensors import Tensor
from imgcls.archive.tree import CONTAINER, PAPERS, ArchiveTree, read_tree
from model.golden import GOLDEN_FOLDER
from model.spec import SPEC_FILE, WEIGHTS_FILE

Change = tuple[Any, Any]  # old and new; None where there is none
Changes = dict[str, Change]
Tensors = Mapping[str, tuple[Tensor, str]]


@dataclass(frozen=True)
class FileChanges:
    """Files by path, compared by their bytes."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]

    def __bool__(self) -> bool:
        """Whether there is any change."""
        return bool(self.added or self.removed or self.changed)


@dataclass(frozen=True)
class WeightChanges:
    """Tensors by name, as `F32 64x3x7x7`; `bytes_changed`, of `bytes_all`, are those of tensors with other values."""

    added: dict[str, str]
    removed: dict[str, str]
    reshaped: dict[str, tuple[str, str]]
    changed: tuple[str, ...]
    tensors: int
    bytes_changed: int
    bytes_all: int

    def __bool__(self) -> bool:
        """Whether there is any change."""
        return bool(self.added or self.removed or self.reshaped or self.changed)


@dataclass(frozen=True)
class LabelChanges:
    """Classes by index; one in `changed` means another class now to every client that goes by the index."""

    changed: dict[str, tuple[str, str]]
    added: dict[str, str]
    removed: dict[str, str]
    moved: dict[str, tuple[str, str]]  # old and new index by class

    def __bool__(self) -> bool:
        """Whether there is any change."""
        return bool(self.changed or self.added or self.removed)


@dataclass(frozen=True)
class Side:
    """One of the two archives."""

    path: str
    name: str
    version: str
    archive_sha256: str


@dataclass(frozen=True)
class ArchiveDiff:
    """All changes; what is empty did not change."""

    old: Side
    new: Side
    is_same_file: bool
    code: FileChanges
    weights: WeightChanges
    labels: LabelChanges
    network: Changes
    preprocessing: Changes
    metrics: Changes
    configuration: Changes
    engines: Changes
    training: Changes
    record: Changes  # train_record.json: which code, which data
    libraries: Changes
    model: Changes  # the manifest: name, version, handler
    golden: FileChanges
    papers: FileChanges  # card, provenance, bill of materials
    other: FileChanges
    container: FileChanges = field(metadata={"is_content": False})  # manifest, record and signature
    patch: str = field(metadata={"is_content": False})  # of the code; empty unless it was asked for

    @property
    def is_same_content(self) -> bool:
        """Whether at most the signature, the manifest's time and the way in which the files are packed differ."""
        return not any(getattr(self, name) for name in PARTS)


PARTS = tuple(
    name
    for name, part in ArchiveDiff.__dataclass_fields__.items()
    if name not in ("old", "new", "is_same_file") and part.metadata.get("is_content", True)
)


def diff_archives(
    old: Path, new: Path, *, with_patch: bool = False, on_bytes: OnBytes = lambda count: None
) -> ArchiveDiff:
    """Compares two archives; any .mar will do.

    Args:
        old: an archive.
        new: another one.
        with_patch: whether to add the code's unified diff.
        on_bytes: told how many bytes were read, twice the size of both files in all.

    Raises:
        ArchiveError: one of them cannot be read, or a description in it.
    """
    before, after = read_tree(old, on_bytes=on_bytes), read_tree(new, on_bytes=on_bytes)
    code = _compare_files(before, after, _is_code)
    weights = _compare_weights(before.tensors, after.tensors)
    labels = _compare_labels(before.labels, after.labels)
    parts = {name: _compare(before.parts[name], after.parts[name]) for name in before.parts}
    told = _list_told(before, after, parts=parts, weights=weights, labels=labels)
    return ArchiveDiff(
        old=_side(before),
        new=_side(after),
        is_same_file=before.archive_sha256 == after.archive_sha256,
        code=code,
        weights=weights,
        labels=labels,
        **parts,
        libraries=_compare(before.libraries, after.libraries),
        golden=_compare_files(before, after, lambda path: path.startswith(f"{GOLDEN_FOLDER}/")),
        papers=_compare_files(before, after, lambda path: path in PAPERS),
        other=_compare_files(before, after, lambda path: not _is_named(path) and path not in told),
        container=_compare_files(before, after, lambda path: path in CONTAINER),
        patch=_make_patch(old, new, code) if with_patch else "",
    )


def _side(tree: ArchiveTree) -> Side:
    return Side(tree.path, tree.name, tree.version, tree.archive_sha256)


def _is_code(path: str) -> bool:
    return path.endswith(".py")


def _is_named(path: str) -> bool:
    """Whether a file's part is told by files."""
    return _is_code(path) or path in (*PAPERS, *CONTAINER) or path.startswith(f"{GOLDEN_FOLDER}/")


def _list_told(
    before: ArchiveTree, after: ArchiveTree, *, parts: dict[str, Changes], weights: WeightChanges, labels: LabelChanges
) -> set[str | None]:
    """Returns the files whose change is told by its meaning, and none that says the same in other bytes."""
    told = {
        SPEC_FILE: parts["network"] or parts["preprocessing"] or labels,
        LABELS_FILE: labels,
        WEIGHTS_FILE: weights,
        "metrics.json": parts["metrics"],
        "train_config.yaml": parts["training"],
        "train_record.json": parts["record"],
        "engines.json": parts["engines"],
        before.config_file: parts["configuration"],
        after.config_file: parts["configuration"],
    }
    return {path for path, changes in told.items() if changes}


def _compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> Changes:
    keys = [*old, *(key for key in new if key not in old)]
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}


def _compare_files(old: ArchiveTree, new: ArchiveTree, is_meant: Callable[[str], bool]) -> FileChanges:
    before, after = ({path for path in tree.files if is_meant(path)} for tree in (old, new))
    return FileChanges(
        added=tuple(sorted(after - before)),
        removed=tuple(sorted(before - after)),
        changed=tuple(sorted(path for path in before & after if old.files[path] != new.files[path])),
    )


def _compare_weights(old: Tensors, new: Tensors) -> WeightChanges:
    kept = [(old[name], new[name]) for name in new if name in old]
    changed = [now for (was, before), (now, after) in kept if str(was) == str(now) and before != after]
    return WeightChanges(
        added={name: str(tensor) for name, (tensor, _) in new.items() if name not in old},
        removed={name: str(tensor) for name, (tensor, _) in old.items() if name not in new},
        reshaped={now.name: (str(was), str(now)) for (was, _), (now, _) in kept if str(was) != str(now)},
        changed=tuple(tensor.name for tensor in changed),
        tensors=len(new),
        bytes_changed=sum(tensor.size_bytes for tensor in changed),
        bytes_all=sum(tensor.size_bytes for tensor, _ in new.values()),
    )


def _compare_labels(old: Mapping[str, str], new: Mapping[str, str]) -> LabelChanges:
    places = {name: index for index, name in new.items()}
    return LabelChanges(
        changed={index: (old[index], new[index]) for index in old if index in new and old[index] != new[index]},
        added={index: name for index, name in new.items() if index not in old},
        removed={index: name for index, name in old.items() if index not in new},
        moved={name: (index, places[name]) for index, name in old.items() if places.get(name, index) != index},
    )


def _make_patch(old: Path, new: Path, code: FileChanges) -> str:
    paths = sorted((*code.added, *code.removed, *code.changed))
    before, after = _read_code(old, paths), _read_code(new, paths)
    lines = [
        line
        for path in paths
        for line in difflib.unified_diff(before.get(path, []), after.get(path, []), *_name_sides(path))
    ]
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def _name_sides(path: str) -> tuple[str, str]:
    """Returns what a patch calls a file; a name with the end of a line in it would forge lines of the patch."""
    return f"a/{make_printable(path)}", f"b/{make_printable(path)}"


def _read_code(mar: Path, paths: list[str]) -> dict[str, list[str]]:
    with open_archive(mar) as archive:
        held = [path for path in paths if path in archive.NameToInfo]
        return {path: read_small(archive, path).decode(errors="replace").splitlines(keepends=True) for path in held}
