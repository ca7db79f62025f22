"""MODEL_CARD.md: what a person wants to know of an archive before serving it."""

import json
from pathlib import Path
from typing import Any

import yaml

from model.classifier import SPEC_FILE, WEIGHTS_FILE
from model.spec import ModelSpec, read_spec

_SCORES = ("samples", "accuracy", "precision_macro", "recall_macro", "f1_macro")


def write_card(folder: Path, *, name: str, version: str) -> None:
    """Writes MODEL_CARD.md into a staged archive, from the other files in it."""
    spec = read_spec(folder / SPEC_FILE)
    parts = [
        f"# {name} {version}",
        f"An image classifier with {len(spec.classes)} classes, served by TorchServe.",
        "## Input and network",
        _describe_spec(spec, weights_bytes=(folder / WEIGHTS_FILE).stat().st_size),
        "## Data and training",
        _describe_training(folder / "train_config.yaml"),
        "## Measured on test sets",
        _describe_metrics(folder / "metrics.json"),
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
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    return "\n".join(f"- {key}: `{value}`" for key, value in config.items() if value is not None)


def _describe_metrics(path: Path) -> str:
    sets = _read_test_sets(path)
    if not sets:
        return "Not measured: the run directory holds no metrics.json. Run `imgcls evaluate RUN`."
    rows = ["| test set | " + " | ".join(_SCORES) + " |", "|---" * (len(_SCORES) + 1) + "|"]
    for name, scores in sets.items():
        cells = (f"{scores[key]:.4f}" if isinstance(scores[key], float) else str(scores[key]) for key in _SCORES)
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _read_test_sets(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    sets: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")).get("test_sets", {})
    return sets
