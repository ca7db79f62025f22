"""Lays out an archive's tree from a run directory: what will be in the .mar, before it is packed.

MAR-INF/MANIFEST.json   torch-model-archiver's; MAR-INF/integrity.json is added by the packing
model-config.yaml       TorchServe's keys and our `handler:` section
spec.yaml  weights.safetensors  index_to_name.json  metrics.json  calibration.json
train_config.yaml  train_record.json
model/  handler/        the code, under the names it has in the repository
golden/                 inputs with their expected answers, written by `imgcls.archive.make_golden`
MODEL_CARD.md  provenance.json  sbom.cdx.json
gate.json               the verdict, where a gate was asked; written by `imgcls.archive.build`
"""

import json
import os
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

import handler
import imgcls
import model
from handler.layout import EARLIEST
from imgcls.archive.card import write_card
from imgcls.archive.facts import CALIBRATION_FILE, ELSEWHERE, METRICS_FILE, read_config, read_metrics, read_training
from imgcls.archive.facts import CONFIG_FILE as TRAIN_CONFIG_FILE
from imgcls.archive.libraries import Imports
from imgcls.archive.pack import CONFIG_FILE, write_manifest
from imgcls.archive.provenance import write_provenance
from imgcls.archive.sbom import write_sbom
from imgcls.checkout import hash_code, list_python
from imgcls.errors import ArchiveError
from imgcls.training.record import RECORD_FILE, describe_source, format_record
from model.labels import LABELS_FILE, read_labels
from model.spec import SPEC_FILE, WEIGHTS_FILE, read_spec

REQUIRED = (WEIGHTS_FILE, SPEC_FILE, LABELS_FILE)
OPTIONAL = (METRICS_FILE, CALIBRATION_FILE, TRAIN_CONFIG_FILE, RECORD_FILE)
TRAVELLING = (model, handler)
PACKAGES = tuple(package.__name__ for package in TRAVELLING)


@dataclass(frozen=True)
class ServingOptions:
    """What model-config.yaml tells TorchServe; None leaves TorchServe's default."""

    workers: int | None = None  # TorchServe's default: one a core, or one a GPU
    batch_size: int = 8
    max_batch_delay_ms: int = 1  # TorchServe waits this long for a batch to fill, a lone request too
    response_timeout_s: int = 60
    startup_timeout_s: int = 120
    engine: str = "auto"  # which engine a worker takes: auto, or a name
    decode: str = "cpu"  # where JPEGs are decoded: cpu or gpu
    license: str | None = None  # of the weights; stands in the card and the bill of materials
    max_retry_timeout_s: int = 30  # how long a crashing worker is started again; TorchServe's 300 hides it for minutes


def stage_archive(
    run: Path, folder: Path, *, name: str, version: str, options: ServingOptions, created: datetime
) -> None:
    """Fills an empty folder with the run's files, the code and TorchServe's settings.

    Raises:
        ArchiveError: the code on the path is not the checkout's, or the run's metrics.json, train_config.yaml or
            train_record.json is not what imgcls writes.
    """
    for file in (*REQUIRED, *OPTIONAL):
        if (run / file).is_file():
            link_file(run / file, folder / file)
    _publish_record(folder / RECORD_FILE)
    _publish_config(folder / TRAIN_CONFIG_FILE)
    _publish_metrics(folder / METRICS_FILE)
    refuse_foreign_packages()
    for package in TRAVELLING:
        copy_package(Path(str(package.__file__)).parent, folder / package.__name__)
    (folder / CONFIG_FILE).write_text(dump_model_config(options), encoding="utf-8")
    write_manifest(folder, name=name, version=version, created=created)


def describe_archive(
    folder: Path,
    *,
    name: str,
    version: str,
    options: ServingOptions,
    created: datetime,
    weights_sha256: str,
    imports: Imports | None = None,
) -> None:
    """Writes what tells of a staged archive where it came from, what it needs and what it can do.

    `imports` are those of its code, where they are known.

    Raises:
        ArchiveError: the run's metrics.json, train_config.yaml or train_record.json is not what imgcls writes.
    """
    code_sha256 = hash_code(folder, PACKAGES)
    stated = None if created == EARLIEST else created  # without SOURCE_DATE_EPOCH there is no time to state
    common = {"name": name, "version": version, "weights_sha256": weights_sha256}
    write_provenance(folder, **common, code_sha256=code_sha256, created=stated)
    write_sbom(folder, **common, license=options.license, created=stated, imports=imports)
    write_card(folder, **common, license=options.license)


def link_file(source: Path, target: Path) -> None:
    """Links a file of the run into the tree, so that large weights are read once; copies where links do not reach.

    A run's files are replaced, never written into, so a link holds on to what it was when the build began.
    """
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def _publish_record(path: Path) -> None:
    """Replaces the record of a private run by what may be published of it."""
    record = read_training(path)
    if record and record.privacy:
        _replace(path, format_record(record))


def _publish_config(path: Path) -> None:
    """Leaves of the folders of this machine, which a configuration may name, the last name."""
    config = read_config(path) or {}
    told = config | {key: describe_source(config[key]) for key in ELSEWHERE if isinstance(config.get(key), str)}
    if told != config:
        _replace(path, yaml.safe_dump(told, sort_keys=False, allow_unicode=True))


def _publish_metrics(path: Path) -> None:
    """Does the same with the sources of test sets."""
    metrics = read_metrics(path) or {"test_sets": {}}
    told = {
        name: scores | {"source": describe_source(scores["source"])}
        if isinstance(scores.get("source"), str)
        else scores
        for name, scores in metrics["test_sets"].items()
    }
    if told != metrics["test_sets"]:
        _replace(path, json.dumps(metrics | {"test_sets": told}, indent=1, ensure_ascii=False) + "\n")


def _replace(path: Path, text: str) -> None:
    path.unlink()  # a link: the run keeps its own
    path.write_text(text, encoding="utf-8")


def refuse_incomplete(run: Path) -> None:
    """Checks that a run directory holds what an archive needs, before anything is written.

    Raises:
        ArchiveError: it is missing or lacks a file.
        SpecError: its spec or its labels cannot be used.
    """
    if not run.is_dir():
        raise ArchiveError(f"{run}: there is no such run directory; make one with python train.py --out {run}")
    missing = [file for file in REQUIRED if not (run / file).is_file()]
    if missing:
        raise ArchiveError(f"{run}: is not a complete run, {', '.join(missing)} is not in it; train it with train.py")
    spec = read_spec(run / SPEC_FILE)
    read_labels(run / LABELS_FILE, count=len(spec.classes))


def refuse_foreign_packages() -> None:
    """Raises ArchiveError when the code that would be packed is not of the checkout or installation that packs it."""
    home = Path(str(imgcls.__file__)).parents[1]
    for package in TRAVELLING:
        if Path(str(package.__file__)).parents[1] != home:
            raise ArchiveError(
                f"{package.__file__} would be packed, and imgcls runs from {home}; take the other folder off PYTHONPATH"
            )


def copy_package(source: Path, target: Path) -> None:
    """Copies a package's Python files, and nothing that an editor or an interpreter left beside them."""
    for file in list_python(source):
        copy = target / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)


def dump_model_config(options: ServingOptions) -> str:
    """Returns the text of model-config.yaml."""
    config: dict[str, Any] = {
        "batchSize": options.batch_size,
        "maxBatchDelay": options.max_batch_delay_ms,
        "responseTimeout": options.response_timeout_s,
        "startupTimeout": options.startup_timeout_s,
        "maxRetryTimeoutInSec": options.max_retry_timeout_s,
        "handler": {"engine": options.engine, "threads": "auto", "decode": options.decode, "top_k": 5},
    }
    if options.workers is not None:
        config = {"minWorkers": options.workers, "maxWorkers": options.workers} | config
    return yaml.safe_dump(config, sort_keys=False)
