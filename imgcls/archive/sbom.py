"""sbom.cdx.json: a CycloneDX 1.6 bill of materials of an archive, with the model's card and its libraries.

    metadata.component   the machine-learning model: card, licence, and within it the weights and the code with hashes
    components           the libraries that the code needs at run time, as installed where the archive is built
    dependencies         which needs which

The same tree and the same libraries give the same bytes: the serial number is made of the content, and there is no
time unless SOURCE_DATE_EPOCH gives one. cyclonedx-python-lib writes it; the model card, which it has no class for, is
added to its JSON; its strict validator has the last word.
"""

import functools
import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jsonschema_rs
from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.schema._res import BOM_JSON_STRICT, CRYPTOGRAPHY_DEFS, JSF, SPDX_JSON
from packageurl import PackageURL

from imgcls import __version__
from imgcls.archive.facts import SCORES, Facts, read_facts
from imgcls.archive.libraries import OWN, SERVER, Imports, Library, find_distributions, find_imports, resolve
from imgcls.archive.words import describe_input, describe_limits, describe_purpose
from imgcls.checkout import hash_code
from imgcls.errors import ArchiveError
from imgcls.training.record import SplitRecord
from model.engines.kinds import parse_kind
from model.spec import WEIGHTS_FILE

SBOM_FILE = "sbom.cdx.json"
MODEL_REF, WEIGHTS_REF, CODE_REF = "model", "weights", "code"
_SCHEMAS = "http://cyclonedx.org/schema/"
_ORDER = ("$schema", "bomFormat", "specVersion", "serialNumber", "version", "metadata", "components", "dependencies")

Fields = dict[str, Any]


@dataclass(frozen=True)
class Libraries:
    """The libraries of one archive, by name."""

    known: dict[str, Library]
    direct: frozenset[str]  # that the code itself needs, always or for a policy or request that may never come
    required: frozenset[str]  # without which no worker starts, whoever needs them


def write_sbom(
    folder: Path,
    *,
    name: str,
    version: str,
    weights_sha256: str,
    license: str | None = None,
    created: datetime | None = None,
    imports: Imports | None = None,
) -> None:
    """Writes sbom.cdx.json into a staged tree.

    Args:
        folder: the tree, with its code, spec, record and metrics.
        name: the model's name.
        version: its version.
        weights_sha256: of the tree's weights.
        license: of the model: an SPDX expression, or any words; None states none.
        created: the time to state; None states none.
        imports: of the tree's code, where they are known; they are looked up otherwise.

    Raises:
        ArchiveError: a file of the tree is not what imgcls writes, or the result would not be CycloneDX 1.6.
    """
    facts = read_facts(folder, weights_sha256=weights_sha256)
    libraries = find_libraries(imports or find_imports(folder), facts)
    hashes = {WEIGHTS_REF: weights_sha256, CODE_REF: hash_code(folder, OWN)}
    model = _make_model(name, version, hashes=hashes, license=license)
    components = {each.name: _make_component(each, libraries=libraries) for each in libraries.known.values()}
    bom = Bom(components=components.values())
    bom.metadata.component = model
    bom.metadata.tools.components.add(Component(name="imgcls", version=__version__, type=ComponentType.APPLICATION))
    bom.register_dependency(model, [components[name] for name in libraries.direct if name in components])
    for each in libraries.known.values():
        bom.register_dependency(components[each.name], [components[need] for need in each.needs])
    fields = json.loads(JsonV1Dot6(bom).output_as_string())
    fields["metadata"]["component"]["modelCard"] = make_model_card(facts)
    text = _dump(fields, created=created)
    check_sbom(text)
    (folder / SBOM_FILE).write_text(text, encoding="utf-8")


@functools.cache
def make_validator() -> jsonschema_rs.Draft7Validator:
    """Returns what checks a bill of materials, with the schemas that cyclonedx-python-lib carries.

    It finds what the library's own validator finds, which takes a second to import.
    """
    resources = ((f"{_SCHEMAS}{Path(file).name}", _read_json(file)) for file in (SPDX_JSON, CRYPTOGRAPHY_DEFS, JSF))
    registry = jsonschema_rs.Registry(resources)
    schema = _read_json(str(BOM_JSON_STRICT[SchemaVersion.V1_6]))
    return jsonschema_rs.Draft7Validator(schema, registry=registry, validate_formats=True)


def _read_json(path: str) -> Fields:
    fields: Fields = json.loads(Path(path).read_bytes())
    return fields


def check_sbom(text: str) -> None:
    """Validates a bill of materials against the schema of CycloneDX 1.6, offline.

    Raises:
        ArchiveError: it does not hold.
    """
    if error := next(iter(make_validator().iter_errors(json.loads(text))), None):
        reason = f"{'/'.join(map(str, error.instance_path))}: {' '.join(error.message.split())}"
        raise ArchiveError(f"{SBOM_FILE}: would not be CycloneDX 1.6: {reason[:300]}")


def find_libraries(imports: Imports, facts: Facts) -> Libraries:
    """Finds what code with these imports needs for this model, as it is installed here."""
    runtimes = {parse_kind(engine.engine).runtime for engine in facts.engines if engine.is_accepted}
    is_used = {  # what only some archives need
        "timm": facts.spec.network.startswith("timm/"),
        "onnxruntime": "onnxruntime" in runtimes,
        "openvino": "openvino" in runtimes,
    }
    needed = {
        SERVER,
        *find_distributions(imports.at_load - is_used.keys()),
        *(name for name, used in is_used.items() if used),
    }
    direct = needed | set(find_distributions(imports.later - is_used.keys()))
    return Libraries(resolve(sorted(direct)), frozenset(direct), frozenset(resolve(sorted(needed))))


def make_model_card(facts: Facts) -> Fields:
    """Returns CycloneDX's modelCard of a model."""
    spec = facts.spec
    card: Fields = {
        "modelParameters": {
            "approach": {"type": "supervised"},
            "task": "image classification",
            "architectureFamily": "timm" if spec.network.startswith("timm/") else "convolutional neural network",
            "modelArchitecture": spec.network,
            "datasets": _list_datasets(facts),
            "inputs": [{"format": describe_input(spec)}],
            "outputs": [{"format": f"{len(spec.classes)} classes with a probability each, best first, as JSON"}],
        },
        "considerations": {"useCases": [describe_purpose(spec)], "technicalLimitations": describe_limits(facts)},
    }
    if facts.test_sets:
        card["quantitativeAnalysis"] = {
            "performanceMetrics": [
                {"type": score, "value": str(scores[score]), "slice": name}
                for name, scores in facts.test_sets.items()
                for score in SCORES
            ]
        }
    return card


def _list_datasets(facts: Facts) -> list[Fields]:
    if facts.record is None:
        return []
    source = facts.record.data.source
    return [_describe_split(source, name, split) for name, split in facts.record.data.splits.items()]


def _describe_split(source: str, name: str, split: SplitRecord) -> Fields:
    facts: Fields = {"split": name, "files": split.files, "classes": len(split.classes)}
    facts |= {"images_sha256": split.sha256} if split.sha256 else {}
    properties = [{"name": f"imgcls:{key}", "value": str(value)} for key, value in facts.items()]
    return {"type": "dataset", "name": f"{source}, {name}", "contents": {"properties": properties}}


def _make_model(name: str, version: str, *, hashes: Mapping[str, str], license: str | None) -> Component:
    return Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=MODEL_REF,
        name=name,
        version=version,
        licenses=_make_licenses(license),
        components=[
            _make_file(WEIGHTS_FILE, hashes[WEIGHTS_REF], ref=WEIGHTS_REF, what="the weights"),
            _make_file(
                "model/ and handler/", hashes[CODE_REF], ref=CODE_REF, what="the code, hashed as in-toto's dirHash"
            ),
        ],
    )


def _make_file(name: str, sha256: str, *, ref: str, what: str) -> Component:
    hashes = [HashType(alg=HashAlgorithm.SHA_256, content=sha256)]
    return Component(type=ComponentType.FILE, bom_ref=ref, name=name, description=what, hashes=hashes)


def _make_component(library: Library, *, libraries: Libraries) -> Component:
    purl = PackageURL("pypi", None, library.name, library.version)
    return Component(
        type=ComponentType.LIBRARY,
        bom_ref=str(purl),
        name=library.name,
        version=library.version,
        purl=purl,
        licenses=_make_licenses(library.license),
        scope=ComponentScope.REQUIRED if library.name in libraries.required else ComponentScope.OPTIONAL,
    )


def _make_licenses(text: str | None) -> Iterable[Any]:
    return [LicenseFactory().make_from_string(text)] if text else []


def _dump(fields: Fields, *, created: datetime | None) -> str:
    """Returns the text; the serial number is of everything else in it."""
    del fields["serialNumber"], fields["metadata"]["timestamp"]
    if created:
        fields["metadata"]["timestamp"] = created.strftime("%Y-%m-%dT%H:%M:%SZ")
    content = json.dumps(fields, sort_keys=True, ensure_ascii=False)
    fields["serialNumber"] = uuid.uuid5(uuid.NAMESPACE_OID, content).urn
    ordered = {key: fields.pop(key) for key in _ORDER if key in fields}
    return json.dumps(ordered | fields, indent=1, ensure_ascii=False) + "\n"
