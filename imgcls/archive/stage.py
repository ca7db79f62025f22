"""Lays out an archive's tree from a run directory: what will be in the .mar, before it is packed.

MAR-INF/MANIFEST.json   written by torch-model-archiver when it packs
model-config.yaml       TorchServe's keys and our `handler:` section
spec.yaml  weights.safetensors  index_to_name.json  metrics.json  train_config.yaml
model/  handler/        the code, under the names it has in the repository
golden/                 inputs with their expected answers
MODEL_CARD.md
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import handler
import imgcls
import model
from imgcls.archive.card import write_card
from imgcls.archive.make_golden import write_golden
from imgcls.errors import ArchiveError
from model.classifier import SPEC_FILE, WEIGHTS_FILE
from model.labels import LABELS_FILE, read_labels
from model.spec import read_spec

CONFIG_FILE = "model-config.yaml"
REQUIRED = (WEIGHTS_FILE, SPEC_FILE, LABELS_FILE)
OPTIONAL = ("metrics.json", "train_config.yaml")
TRAVELLING = (model, handler)


@dataclass(frozen=True)
class ServingOptions:
    """What model-config.yaml tells TorchServe; None leaves TorchServe's default."""

    workers: int | None = None  # TorchServe's default: one a core, or one a GPU
    batch_size: int = 8
    max_batch_delay_ms: int = 2  # TorchServe waits this long for a batch to fill, a lone request too
    response_timeout_s: int = 60
    startup_timeout_s: int = 120
    max_retry_timeout_s: int = 30  # how long a crashing worker is started again; TorchServe's 300 hides it for minutes


def stage_archive(run: Path, folder: Path, *, name: str, version: str, options: ServingOptions) -> None:
    """Fills an empty folder with everything of the archive but its manifest.

    Raises:
        ArchiveError: the run's metrics.json or train_config.yaml is not what imgcls writes.
        ModelError: its weights or golden images cannot be used.
    """
    for file in (*REQUIRED, *OPTIONAL):
        if (run / file).is_file():
            shutil.copyfile(run / file, folder / file)
    refuse_foreign_packages()
    for package in TRAVELLING:
        copy_package(Path(str(package.__file__)).parent, folder / package.__name__)
    (folder / CONFIG_FILE).write_text(dump_model_config(options), encoding="utf-8")
    write_golden(run, folder)
    write_card(folder, name=name, version=version)


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
    for file in sorted(source.rglob("*.py")):
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
        "handler": {"threads": "auto", "top_k": 5},
    }
    if options.workers is not None:
        config = {"minWorkers": options.workers, "maxWorkers": options.workers} | config
    return yaml.safe_dump(config, sort_keys=False)
