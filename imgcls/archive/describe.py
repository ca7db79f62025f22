"""What `imgcls archive inspect` tells of a .mar: ours, or any other that TorchServe would take.

What the archive says of itself is read tolerantly; what was checked stands apart, in `Proof`. Nothing of the archive is
run, and torch is not needed.
"""

import hashlib
import json
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from handler.integrity import INTEGRITY_FILE, SIGNATURE_FILE, IntegrityError
from handler.layout import OnBytes, Reader, read_chunks
from imgcls.archive.contents import LABELS_FILE, MANIFEST, NEEDED, open_archive, read_small, read_yaml
from imgcls.archive.tensors import read_tensors
from imgcls.archive.verify import verify_archive
from imgcls.archive.words import describe_input
from imgcls.errors import ArchiveError
from model.engines.records import ENGINES_FILE, REFERENCE_RECORD
from model.spec import SPEC_FILE, WEIGHTS_FILE, ModelSpec

if TYPE_CHECKING:
    from handler.trust import Trust

ROOMS = {"weights": (WEIGHTS_FILE,), "engines": ("engines/",), "code": ("model/", "handler/"), "golden": ("golden/",)}


@dataclass(frozen=True)
class Signature:
    """One signature of an archive and what it claims; `is_of_this` says whether it even claims to be of these bytes."""

    where: str
    signer: str
    is_of_this: bool


@dataclass(frozen=True)
class Proof:
    """What was checked; `problem` is empty where all that was asked for holds."""

    verified: bool
    problem: str
    tree_sha256: str | None
    archive_sha256: str
    trust_file: str | None  # None: there is none
    policy: str | None  # of the trust file
    trusted_signer: str | None


@dataclass(frozen=True)
class Description:
    """One archive; what its files do not tell is None or empty."""

    path: str
    is_imgcls: bool  # as it says by its record, or by holding what an archive of imgcls holds
    missing: tuple[str, ...]  # what an archive of imgcls would hold
    name: str
    version: str
    manifest: dict[str, Any]
    network: str | None
    parameters: dict[str, Any]
    input: str | None
    classes: tuple[str, ...]
    weights: dict[str, Any]  # tensors, elements, dtypes
    engines: list[dict[str, Any]]
    test_sets: dict[str, dict[str, Any]]
    model_config: dict[str, Any]
    record: dict[str, Any]  # train_record.json
    training: dict[str, Any]  # train_config.yaml
    signatures: tuple[Signature, ...]
    proof: Proof
    size_bytes: int
    rooms: dict[str, int]  # bytes by ROOMS' names, and the rest as `other`
    sizes: dict[str, int]  # bytes by path, the largest first


def describe_archive(
    mar: Path,
    *,
    trust: "Trust | None" = None,
    trust_file: Path | None = None,
    on_bytes: OnBytes = lambda count: None,
) -> Description:
    """Describes and checks an archive.

    Args:
        mar: any .mar.
        trust: whose signatures count; None: signatures are told as they claim to be.
        trust_file: where `trust` was read from.
        on_bytes: told how many bytes were read; twice the file's size in all.

    Raises:
        ArchiveError: it is no zip, or its manifest or one of its descriptions cannot be read.
        UsageError: a key that the trust file names cannot be used.
    """
    with open_archive(mar) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist() if not info.is_dir()}
        told = _read_told(archive, mar)
    missing = tuple(path for path in NEEDED if path not in sizes)
    file_sha256 = hash_archive(mar, on_bytes=on_bytes)
    return Description(
        path=str(mar),
        is_imgcls=INTEGRITY_FILE in sizes or not missing,
        missing=missing,
        signatures=_read_signatures(mar, archive_sha256=file_sha256),
        proof=_prove(mar, trust, trust_file=trust_file, archive_sha256=file_sha256, on_bytes=on_bytes),
        size_bytes=mar.stat().st_size,
        rooms=measure_rooms(sizes),
        sizes=dict(sorted(sizes.items(), key=lambda item: (-item[1], item[0]))),
        **told,
    )


def _read_told(archive: zipfile.ZipFile, mar: Path) -> dict[str, Any]:
    """Returns the fields of Description that the archive's files tell."""
    manifest = read_manifest(archive)
    spec = dict(read_document(archive, SPEC_FILE) or {})
    labels = read_document(archive, LABELS_FILE) or {}
    return {
        "name": str(manifest.get("model", {}).get("modelName", mar.stem)),
        "version": str(manifest.get("model", {}).get("modelVersion", "")),
        "manifest": manifest,
        "network": spec.get("network"),
        "parameters": dict(spec.get("parameters") or {}),
        "input": _describe_input(spec) if spec else None,
        "classes": tuple(" ".join(name) if isinstance(name, list) else str(name) for name in labels.values()),
        "weights": _read_weights(archive) if WEIGHTS_FILE in archive.NameToInfo else {},
        "engines": read_engines(archive),
        "test_sets": dict((read_document(archive, "metrics.json") or {}).get("test_sets", {})),
        "model_config": dict(read_document(archive, find_model_config(manifest)) or {}),
        "record": dict(read_document(archive, "train_record.json") or {}),
        "training": dict(read_document(archive, "train_config.yaml") or {}),
    }


def read_document(archive: zipfile.ZipFile, path: str | None) -> Any:
    """Reads a JSON or YAML entry; None where the archive does not hold it."""
    if path is None or path not in archive.NameToInfo:
        return None
    return json.loads(read_small(archive, path)) if path.endswith(".json") else read_yaml(archive, path)


def read_manifest(archive: zipfile.ZipFile) -> dict[str, Any]:
    """Reads the manifest; TorchServe serves no archive without one."""
    if MANIFEST not in archive.NameToInfo:
        raise ValueError(f"{MANIFEST} is not in it")
    return dict(json.loads(read_small(archive, MANIFEST)))


def find_model_config(manifest: dict[str, Any]) -> str | None:
    """Returns the path of the YAML file that the manifest names, if it names one."""
    name = manifest.get("model", {}).get("configFile")
    return None if name is None else str(name)


def read_engines(archive: zipfile.ZipFile) -> list[dict[str, Any]]:
    """Reads engines.json; an archive without it answers with the reference alone."""
    content = read_document(archive, ENGINES_FILE)
    if content is None:
        return [REFERENCE_RECORD.model_dump()] if WEIGHTS_FILE in archive.NameToInfo else []
    return [dict(engine) for engine in content]


def name_engine(engine: Mapping[str, Any]) -> str:
    """Returns what to call a record of engines.json; its device is said where it is not the CPU."""
    device = engine.get("device", "cpu")
    return f"{engine.get('engine')}{'' if device == 'cpu' else f' on {device}'}"


def measure_rooms(sizes: dict[str, int]) -> dict[str, int]:
    """Returns how many bytes weights, engines, code and golden inputs take, and the rest."""
    rooms = {room: sum(sizes[path] for path in sizes if path.startswith(begins)) for room, begins in ROOMS.items()}
    return rooms | {"other": sum(sizes.values()) - sum(rooms.values())}


def _describe_input(spec: dict[str, Any]) -> str:
    try:
        return describe_input(ModelSpec(**spec))
    except (ValueError, TypeError):  # ValueError: pydantic's
        return "its spec.yaml is not one that this version of imgcls can use"


def _read_weights(archive: zipfile.ZipFile) -> dict[str, Any]:
    with archive.open(WEIGHTS_FILE) as stream:
        tensors = read_tensors(stream)
    return {
        "tensors": len(tensors),
        "elements": sum(tensor.elements for tensor in tensors),
        "dtypes": sorted({tensor.dtype for tensor in tensors}),
    }


def hash_archive(mar: Path, *, on_bytes: OnBytes) -> str:
    """Returns a file's SHA-256, as hex; tells of its bytes as it goes on."""
    with mar.open("rb") as file:
        return hash_source(file, on_bytes=on_bytes)


def hash_source(source: Reader, *, on_bytes: OnBytes) -> str:
    """Returns the SHA-256 of what is left to read, as hex."""
    digest = hashlib.sha256()
    for chunk in read_chunks(source):
        digest.update(chunk)
        on_bytes(len(chunk))
    return digest.hexdigest()


def _prove(
    mar: Path, trust: "Trust | None", *, trust_file: Path | None, archive_sha256: str, on_bytes: OnBytes
) -> Proof:
    from imgcls.archive.trust import check_signatures

    proof = Proof(
        verified=False,
        problem="",
        tree_sha256=None,
        archive_sha256=archive_sha256,
        trust_file=str(trust_file) if trust_file else None,
        policy=trust.policy if trust else None,
        trusted_signer=None,
    )
    try:
        tree_sha256 = verify_archive(mar, on_bytes=on_bytes).integrity.tree_sha256
    except ArchiveError as err:
        return replace(proof, problem=_without_path(err, mar))
    proof = replace(proof, verified=True, tree_sha256=tree_sha256)
    try:
        return replace(proof, trusted_signer=check_signatures(mar, trust) if trust else None)
    except ArchiveError as err:
        return replace(proof, problem=_without_path(err, mar))


def _without_path(error: ArchiveError, mar: Path) -> str:
    return str(error).removeprefix(f"{mar}: ").removeprefix(f"{mar.resolve()}: ")


def _read_signatures(mar: Path, *, archive_sha256: str) -> tuple[Signature, ...]:
    from imgcls.archive.trust import detached_signature

    signatures = []
    with open_archive(mar) as archive, tempfile.TemporaryDirectory() as folder:
        if SIGNATURE_FILE in archive.NameToInfo and INTEGRITY_FILE in archive.NameToInfo:
            inner = Path(folder) / "signature"
            inner.write_bytes(read_small(archive, SIGNATURE_FILE))
            record_sha256 = hashlib.sha256(read_small(archive, INTEGRITY_FILE)).hexdigest()
            signatures.append(_read_signature(inner, where=SIGNATURE_FILE, sha256=record_sha256))
    beside = detached_signature(mar.resolve())
    if beside.is_file():
        signatures.append(_read_signature(beside, where=beside.name, sha256=archive_sha256))
    return tuple(signatures)


def _read_signature(path: Path, *, where: str, sha256: str) -> Signature:
    from handler.trust import read_bundle

    try:
        bundle = read_bundle(path, name=where)
    except IntegrityError as err:
        why = "cannot be read" if isinstance(err.__cause__, OSError) else "is no bundle of model-signing"
        return Signature(where, f"nobody that can be told: it {why}", is_of_this=False)
    return Signature(where, bundle.signer, is_of_this=bundle.sha256 == sha256)
