"""provenance.json: what an archive was made from, as an in-toto Statement with SLSA's provenance v1.

    subject                  the weights, and the code that travels
    externalParameters       what the user chose: model name and version, data source, training configuration
    internalParameters       how it was carried out: device, library versions, later parts of a resumed run
    resolvedDependencies     by their `role`: the code (git commit), its locks, each split of the data (of a private
                             run with a digest for test only), parent and teacher weights
    byproducts               metrics.json, its numbers as annotations; gate.json, its verdict; rejections.csv, with
                             what it counts

It is a function of the staged tree and of the code that builds: no time (unless SOURCE_DATE_EPOCH gives one), path,
user or host. It says what was done; that nobody changed it since is for the archive's record and signature to prove.

Source: https://in-toto.io/Statement/v1, https://slsa.dev/spec/v1.0/provenance
"""

import json
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from handler.integrity import hash_file
from imgcls import __version__
from imgcls.archive.facts import (
    CALIBRATION_FILE,
    CONFIG_FILE,
    ELSEWHERE,
    GATE_FILE,
    METRICS_FILE,
    NOT_RECORDED,
    Facts,
    Scores,
    read_facts,
)
from imgcls.errors import ArchiveError
from imgcls.training.record import (
    RECORD_FILE,
    REJECTIONS_FILE,
    CodeRecord,
    TrainRecord,
    describe_code,
    describe_source,
    find_versions,
)
from model.spec import WEIGHTS_FILE

PROVENANCE_FILE = "provenance.json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:imgcls:train-and-pack:1"
BUILDER_ID = "urn:imgcls:archive-build:1"
IMAGES_DIGEST = "imgclsImages"  # imgcls.data.digests.Fingerprint.sha256
CODE_SUBJECT = "model/ handler/"
BUILD_LIBRARIES = ("numpy", "onnx", "onnxruntime", "openvino", "pillow", "safetensors", "timm", "torch", "torchserve")

_HASHED = (CONFIG_FILE, METRICS_FILE, CALIBRATION_FILE, GATE_FILE)

Fields = dict[str, Any]


def write_provenance(
    folder: Path, *, name: str, version: str, weights_sha256: str, code_sha256: str, created: datetime | None = None
) -> None:
    """Writes provenance.json into a staged tree.

    Args:
        folder: the tree; its train_record.json, train_config.yaml and metrics.json are read where they are.
        name: the model's name.
        version: its version.
        weights_sha256: of the tree's weights.
        code_sha256: `imgcls.checkout.hash_code` of the tree's model/ and handler/.
        created: the time to state; None states none.

    Raises:
        ArchiveError: a file of the tree is not what imgcls writes.
    """
    facts = read_facts(folder, weights_sha256=weights_sha256)
    files = {file: hash_file(folder / file) for file in _HASHED if (folder / file).is_file()}
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [
            {"name": WEIGHTS_FILE, "digest": {"sha256": weights_sha256}},
            {"name": CODE_SUBJECT, "digest": {"dirHash": code_sha256}},
        ],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": _describe_parameters(facts, name=name, version=version),
                "internalParameters": _describe_training(facts.record),
                "resolvedDependencies": _list_dependencies(facts.record, files=files),
            },
            "runDetails": _describe_run(facts, files=files, created=created),
        },
    }
    check_statement(statement)
    text = json.dumps(statement, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / PROVENANCE_FILE).write_text(text + "\n", encoding="utf-8")


def check_statement(statement: Fields) -> None:
    """Checks a statement with in-toto's own classes, which know no other fields than the specifications do.

    Raises:
        ArchiveError: it is no in-toto Statement v1, or its predicate is not SLSA's provenance v1.
    """
    from google.protobuf.json_format import ParseDict, ParseError
    from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
    from in_toto_attestation.v1.statement import Statement
    from in_toto_attestation.v1.statement_pb2 import Statement as StatementMessage

    try:
        Statement.copy_from_pb(ParseDict(statement, StatementMessage())).validate()
        ParseDict(statement["predicate"], Provenance())
    except (ParseError, ValueError) as err:
        reason = " ".join(str(err).split())
        raise ArchiveError(f"{PROVENANCE_FILE}: would be no in-toto statement with SLSA provenance: {reason}") from err


def _describe_parameters(facts: Facts, *, name: str, version: str) -> Fields:
    data: Fields | str = NOT_RECORDED
    training: Fields | str = NOT_RECORDED
    if facts.record:
        data = {"source": facts.record.data.source, "seed": facts.record.seed}
    if facts.config is not None:
        # Data and weights are told with their hashes.
        training = {key: value for key, value in facts.config.items() if key not in ELSEWHERE and value is not None}
    return {"model": {"name": name, "version": version}, "data": data, "training": _to_json(training)}


def _describe_training(record: TrainRecord | None) -> Fields:
    if record is None:
        return {RECORD_FILE: NOT_RECORDED}
    fields = record.model_dump(mode="json", include={"device", "versions", "first_epoch", "resumed"})
    privacy = {"privacy": record.privacy.model_dump(mode="json")} if record.privacy else {}
    return {"trainingRun": fields | privacy}


def _list_dependencies(record: TrainRecord | None, *, files: Mapping[str, str]) -> list[Fields]:
    dependencies = [*(_list_training(record) if record else ()), *_list_code("build", describe_code(("imgcls",)))]
    if CONFIG_FILE in files:
        digest = {"sha256": files[CONFIG_FILE]}
        dependencies.insert(
            0, {"name": CONFIG_FILE, "digest": digest, "annotations": {"role": "training configuration"}}
        )
    return dependencies


def _list_training(record: TrainRecord) -> list[Fields]:
    dependencies = _list_code("training", record.code)
    for split, images in record.data.splits.items():
        notes = {"role": "data", "split": split, **images.model_dump(include={"files", "unreadable", "classes"})}
        digest = {"digest": {IMAGES_DIGEST: images.sha256}} if images.sha256 else {}
        dependencies.append({"name": f"{split} images", **digest, "annotations": notes})
    for role, weights in (("parent", record.parent), ("teacher", record.teacher)):
        if weights:
            digest = {"digest": {"sha256": weights.sha256}} if weights.sha256 else {}
            dependencies.append({"name": weights.name, **digest, "annotations": {"role": f"{role} weights"}})
    return dependencies


def _list_code(what: str, code: CodeRecord) -> list[Fields]:
    """A commit is a digest of the code only where the code is the commit's: of a dirty checkout it is a remark."""
    digest, notes = {"dirHash": code.sha256}, {"role": f"{what} code", "git": NOT_RECORDED}
    if code.git_commit and code.git_dirty:
        notes |= {"git": "dirty", "basedOnCommit": code.git_commit}
    elif code.git_commit:
        digest["gitCommit"], notes["git"] = code.git_commit, "clean"
    locks = [
        {"name": name, "digest": {"sha256": sha256}, "annotations": {"role": f"{what} lock"}}
        for name, sha256 in code.locks.items()
    ]
    return [{"name": f"{what} code", "digest": digest, "annotations": notes}, *locks]


def _describe_run(facts: Facts, *, files: Mapping[str, str], created: datetime | None) -> Fields:
    python = ".".join(map(str, sys.version_info[:2]))  # the lock says no more of it
    versions = {"imgcls": __version__, "python": python, **find_versions(BUILD_LIBRARIES)}
    fields: Fields = {"builder": {"id": BUILDER_ID, "version": versions}}
    if created:
        fields["metadata"] = {"finishedOn": created.strftime("%Y-%m-%dT%H:%M:%SZ")}
    if byproducts := list(_list_byproducts(facts, files=files)):
        fields["byproducts"] = byproducts
    return fields


def _list_byproducts(facts: Facts, *, files: Mapping[str, str]) -> Iterator[Fields]:
    notes: dict[str, Fields] = {}
    if facts.test_sets:
        notes[METRICS_FILE] = {"testSets": {name: _describe_scores(each) for name, each in facts.test_sets.items()}}
    if CALIBRATION_FILE in files:
        notes[CALIBRATION_FILE] = {"temperature": facts.spec.temperature}
    if facts.gate:
        notes[GATE_FILE] = facts.gate.model_dump(mode="json", exclude={"findings", "weights_sha256"})
    for name, annotations in notes.items():
        yield {"name": name, "digest": {"sha256": files[name]}, "annotations": annotations}
    if facts.record and (rejected := facts.record.rejections):
        counts = {"role": "steps and samples that the backward filter left out", "counts": rejected.counts}
        yield {"name": REJECTIONS_FILE, "digest": {"sha256": rejected.sha256}, "annotations": counts}


def _describe_scores(scores: Scores) -> Fields:
    numbers = {key: value for key, value in scores.items() if isinstance(value, int | float)}
    texts = {key: describe_source(scores[key]) for key in ("source", "split") if isinstance(scores.get(key), str)}
    return numbers | texts


def _to_json(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))  # YAML knows dates
