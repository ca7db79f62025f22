"""Where an archive comes from: its provenance.json, checked against its record and told in plain fields.

Torch-free, and runs nothing of the archive. It checks the files that it reads, not the weights: that is what
`imgcls archive verify` is for.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from imgcls.archive.contents import open_archive, read_small
from imgcls.archive.facts import NOT_RECORDED
from imgcls.archive.provenance import CODE_SUBJECT, IMAGES_DIGEST, PREDICATE_TYPE, PROVENANCE_FILE
from imgcls.archive.scanning.findings import make_printable
from imgcls.archive.verify import read_integrity
from imgcls.errors import ArchiveError
from model.spec import WEIGHTS_FILE

Fields = dict[str, Any]


@dataclass(frozen=True)
class Code:
    """The code that trained or built; without git the commit is None."""

    commit: str | None
    is_dirty: bool | None
    sha256: str  # dirHash
    locks: dict[str, str]

    def as_text(self) -> str:
        """Returns it for people."""
        git = f"git {self.commit}{', with uncommitted changes' if self.is_dirty else ''}" if self.commit else "no git"
        return f"{git}; hash {self.sha256[:12]}"


@dataclass(frozen=True)
class Split:
    """One split of the training data; equal fingerprints are equal images with equal classes, None is kept private."""

    files: int
    classes: int
    fingerprint: str | None


@dataclass(frozen=True)
class Origin:
    """What an archive was made from; what was not recorded is None or empty."""

    name: str
    version: str
    tree_sha256: str
    weights_sha256: str
    code_sha256: str
    data: str | None
    splits: dict[str, Split]
    parent: Fields | None
    teacher: Fields | None
    is_trained_here: bool  # the run has a record; without one nothing is known of code, data and parent weights
    training: Fields
    trained_with: dict[str, str]
    training_code: Code | None
    resumed: tuple[Fields, ...]
    test_sets: dict[str, Fields]
    built_with: dict[str, str]
    build_code: Code

    def as_dict(self) -> Fields:
        """Returns it for machines."""
        return asdict(self)

    def as_text(self) -> str:
        """Returns it for people, on one screen; what a terminal would act on is spelled out."""
        return "\n".join(f"{label:<11}{make_printable(text)}" for label, text in self._list_lines())

    def _list_lines(self) -> Iterator[tuple[str, str]]:
        yield "content", self.tree_sha256
        yield "weights", self.weights_sha256
        yield "data", NOT_RECORDED if self.data is None else self.data
        for name, split in self.splits.items():
            fingerprint = split.fingerprint or "fingerprint left out, as the run is private"
            yield "", f"{name:<6}{split.files:>9,} images, {split.classes} classes   {fingerprint}"
        yield "trained by", self.training_code.as_text() if self.training_code else NOT_RECORDED
        yield "packed by", self.build_code.as_text()
        yield "training", _join(self.training) or NOT_RECORDED
        yield "parent", self._describe_parent()
        if self.teacher:
            yield "teacher", _describe_weights(self.teacher)
        for part in self.resumed:
            changed = f", with another {', '.join(part['changed'])}" if part["changed"] else ""
            yield "resumed", f"at epoch {part['first_epoch']}{changed}"
        for name, scores in self.test_sets.items():
            yield "test set", f"{name}: {_describe_scores(scores)}"
        if not self.test_sets:
            yield "test set", "not measured"
        yield "libraries", _join(self.trained_with) or f"of the training: {NOT_RECORDED}"
        yield "", f"packed with {_join(self.built_with)}"

    def _describe_parent(self) -> str:
        if self.parent is None:
            return "none, random weights" if self.is_trained_here else NOT_RECORDED
        return _describe_weights(self.parent)


def read_origin(mar: Path) -> Origin:
    """Reads where an archive comes from.

    Raises:
        ArchiveError: the archive cannot be read, holds no provenance, or its provenance is not the recorded one.
    """
    with open_archive(mar) as archive:
        integrity = read_integrity(mar)
        recorded = integrity.by_path().get(PROVENANCE_FILE)
        if recorded is None:
            raise ArchiveError(
                f"{mar}: holds no {PROVENANCE_FILE}; fetch it again, or build it with ./build_mar.sh RUN"
            )
        data = read_small(archive, PROVENANCE_FILE)
        if hashlib.sha256(data).hexdigest() != recorded.sha256:
            raise ArchiveError(
                f"{mar}: {PROVENANCE_FILE} is not the file that was recorded when the archive was built; do not trust "
                "it, fetch or build it again"
            )
        origin = parse_origin(json.loads(data), tree_sha256=integrity.tree_sha256)
        origin.as_text()  # here, where a field that cannot be told makes it an archive that cannot be read
        if (weights := integrity.by_path().get(WEIGHTS_FILE)) is None or weights.sha256 != origin.weights_sha256:
            raise ArchiveError(f"{mar}: {PROVENANCE_FILE} is of other weights than it holds; build it again")
        return origin


def parse_origin(statement: Fields, *, tree_sha256: str) -> Origin:
    """Reads the statement that `write_provenance` writes.

    Raises:
        LookupError, TypeError, ValueError, AttributeError: it is another one.
    """
    if statement["predicateType"] != PREDICATE_TYPE:
        raise ValueError(f"{PROVENANCE_FILE}: predicateType is {statement['predicateType']!r}")
    definition, run = (statement["predicate"][key] for key in ("buildDefinition", "runDetails"))
    subjects = {entry["name"]: entry["digest"] for entry in statement["subject"]}
    chosen, done = definition["externalParameters"], definition["internalParameters"].get("trainingRun")
    entries = definition["resolvedDependencies"]
    build_code = _find_code(entries, "build")
    if build_code is None:
        raise LookupError(f"{PROVENANCE_FILE}: has no build code")
    return Origin(
        name=chosen["model"]["name"],
        version=chosen["model"]["version"],
        tree_sha256=tree_sha256,
        weights_sha256=subjects[WEIGHTS_FILE]["sha256"],
        code_sha256=subjects[CODE_SUBJECT]["dirHash"],
        data=None if done is None else f"{chosen['data']['source']}, seed {chosen['data']['seed']}",
        splits={
            entry["annotations"]["split"]: _read_split(entry)
            for entry in entries
            if entry["annotations"]["role"] == "data"
        },
        parent=_find_weights(entries, "parent"),
        teacher=_find_weights(entries, "teacher"),
        is_trained_here=done is not None and done["first_epoch"] == 1,
        training=chosen["training"] if isinstance(chosen["training"], dict) else {},
        trained_with=done["versions"] if done else {},
        training_code=_find_code(entries, "training"),
        resumed=tuple(done["resumed"]) if done else (),
        test_sets={name: scores for entry in run.get("byproducts", ()) for name, scores in _read_tests(entry).items()},
        built_with=run["builder"]["version"],
        build_code=build_code,
    )


def _find_code(entries: list[Fields], what: str) -> Code | None:
    by_role: dict[str, list[Fields]] = {}
    for entry in entries:
        by_role.setdefault(entry["annotations"]["role"], []).append(entry)
    if not (found := by_role.get(f"{what} code")):
        return None
    notes, digest = found[0]["annotations"], _digest(found[0])
    return Code(
        commit=digest.get("gitCommit", notes.get("basedOnCommit")),
        is_dirty={"clean": False, "dirty": True}.get(notes["git"]),
        sha256=digest["dirHash"],
        locks={entry["name"]: _digest(entry)["sha256"] for entry in by_role.get(f"{what} lock", [])},
    )


def _find_weights(entries: list[Fields], what: str) -> Fields | None:
    found = [entry for entry in entries if entry["annotations"]["role"] == f"{what} weights"]
    return {"name": found[0]["name"], **_digest(found[0])} if found else None


def _read_split(entry: Fields) -> Split:
    notes = entry["annotations"]
    classes = sum(1 for count in notes["classes"].values() if count)
    return Split(notes["files"], classes, _digest(entry).get(IMAGES_DIGEST))


def _read_tests(entry: Fields) -> dict[str, Fields]:
    return dict(entry.get("annotations", {}).get("testSets", {}))


def _digest(entry: Fields) -> dict[str, str]:
    return dict(entry.get("digest", {}))


def _describe_weights(weights: Fields) -> str:
    return " ".join(filter(None, (weights["name"], weights.get("sha256"))))


def _describe_scores(scores: Mapping[str, Any]) -> str:
    names = {"accuracy": "accuracy", "precision_macro": "precision", "recall_macro": "recall", "f1_macro": "F1"}
    found = ", ".join(f"{label} {scores[key]:.4f}" for key, label in names.items())
    return f"{found} on {scores['samples']:,} images"


def _join(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if value is not False and value not in ({}, []))
