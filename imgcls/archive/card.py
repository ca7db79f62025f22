"""MODEL_CARD.md: what a person wants to know of an archive before serving it."""

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from imgcls.errors import ArchiveError
from model.classifier import SPEC_FILE, WEIGHTS_FILE
from model.spec import ModelSpec, read_spec

_SCORES = ("samples", "accuracy", "precision_macro", "recall_macro", "f1_macro")


def write_card(folder: Path, *, name: str, version: str) -> None:
    """Writes MODEL_CARD.md into a staged archive, from the other files in it.

    Raises:
        ArchiveError: train_config.yaml or metrics.json is not what imgcls writes, or the metrics are of other weights.
    """
    spec = read_spec(folder / SPEC_FILE)
    parts = [
        f"# {name} {version}",
        f"An image classifier with {len(spec.classes)} classes, served by TorchServe.",
        "## Input and network",
        _describe_spec(spec, weights_bytes=(folder / WEIGHTS_FILE).stat().st_size),
        "## Data and training",
        _describe_training(folder / "train_config.yaml"),
        "## Measured on test sets",
        _describe_metrics(_read_test_sets(folder)),
        "## Classes",
        ", ".join(spec.classes),
        "## Limits",
        "It answers every image with one of its classes, also one that shows none of them. "
        "The figures above hold for images like those of the test sets.",
    ]
    (folder / "MODEL_CARD.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _describe_spec(spec: ModelSpec, *, weights_bytes: int) -> str:
    channels = {1: "grayscale", 3: "RGB", 4: "RGBA"}[spec.channels]
    return (
        f"- network: `{spec.network}` {spec.parameters or ''}\n"
        f"- weights: {weights_bytes:,} bytes of safetensors\n"
        f"- input: {channels}, shorter side resized to {spec.resize} px ({spec.interpolation}), "
        f"centre crop of {spec.size} px"
    )


def _describe_training(path: Path) -> str:
    if not path.is_file():
        return "Not recorded: the run directory holds no train_config.yaml."
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        return "\n".join(f"- {key}: `{value}`" for key, value in config.items() if value is not None)
    except (ValueError, AttributeError, yaml.YAMLError) as err:
        raise ArchiveError(f"{path.name}: is not what train.py writes ({_one_line(err)}); mend or delete it") from err


def _describe_metrics(sets: dict[str, dict[str, Any]]) -> str:
    if not sets:
        return "Not measured: the run directory holds no metrics.json. Run `imgcls evaluate RUN`."
    rows = ["| test set | " + " | ".join(_SCORES) + " |", "|---" * (len(_SCORES) + 1) + "|"]
    for name, scores in sets.items():
        cells = (f"{scores[key]:.4f}" if isinstance(scores[key], float) else str(scores[key]) for key in _SCORES)
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _read_test_sets(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns the scores that the card shows, by test set."""
    path = folder / "metrics.json"
    if not path.is_file():
        return {}
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        measured = metrics["weights_sha256"]
        sets = {name: {key: scores[key] for key in _SCORES} for name, scores in metrics["test_sets"].items()}
    except (ValueError, LookupError, TypeError, AttributeError) as err:
        raise ArchiveError(
            f"{path.name}: is not what imgcls evaluate writes ({_one_line(err)}); delete it, or evaluate the run again"
        ) from err
    if measured != hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest():
        raise ArchiveError(f"{path.name}: was measured on other weights than the run holds; evaluate the run again")
    return sets


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
