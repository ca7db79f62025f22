"""A classifier so small that a server's own work is what is measured: 8 x 8 grey pixels or bands, random weights."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from model.labels import LABELS_FILE, dump_labels
from model.network import build_network
from model.spec import SPEC_FILE, WEIGHTS_FILE, ModelSpec, dump_spec

CLASSES = ("zero", "one", "two")


def make_tiny_run(
    folder: Path,
    *,
    classes: Sequence[str] = CLASSES,
    ranges: tuple[tuple[int, int], ...] | None = None,
    seed: int = 0,
) -> Path:
    """Writes a run directory; the same seed gives the same weights. With `ranges` it takes a band for each."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    channels = len(ranges) if ranges else 1
    spec = ModelSpec(
        size=8,
        resize=8,
        channels=channels,
        ranges=ranges,
        mean=(0.5,) * channels,
        std=(0.5,) * channels,
        classes=tuple(classes),
        parameters={"widths": [4]},
    )
    (folder / SPEC_FILE).write_text(dump_spec(spec), encoding="utf-8")
    (folder / LABELS_FILE).write_text(dump_labels(spec.classes), encoding="utf-8")
    save_file(build_network(spec).state_dict(), folder / WEIGHTS_FILE)
    return folder
