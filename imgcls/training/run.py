"""The run directory: what train.py writes, and evaluation and archive read.

    weights.safetensors  spec.yaml  index_to_name.json   the best epoch by validation; enough to serve
    train_config.yaml    history.csv  golden/            how it came about, and a few validation images
    train_record.json                                    which code, data and libraries it was trained with
    checkpoint.pt        everything of the last epoch, for --resume only; never packed
    metrics.json         written by the evaluation

Every file is written under a temporary name and renamed, so a killed run leaves the last complete state.
"""

import csv
import io
import math
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save
from torch import nn

from imgcls.data.images import ImageSet, Sample
from imgcls.errors import RunError
from imgcls.files import write_atomic
from imgcls.training.config import TrainConfig
from imgcls.training.record import RECORD_FILE
from model.classifier import SPEC_FILE, WEIGHTS_FILE
from model.errors import ImageError
from model.golden import GOLDEN_FOLDER
from model.images import decode_image
from model.labels import LABELS_FILE, dump_labels
from model.spec import ModelSpec, dump_spec, read_spec

CHECKPOINT_FILE = "checkpoint.pt"
GOLDEN_BYTES = 300_000  # of one golden image; a larger file is made smaller


@dataclass(frozen=True)
class Epoch:
    """One row of history.csv; losses are means a sample, accuracies lie in 0..1."""

    epoch: int
    lr: float
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    images_per_s: float


def open_run(config: TrainConfig) -> Path:
    """Makes the run directory; what an earlier run left in it stays until `write_setup`.

    Raises:
        RunError: a run is already there and neither overwrite nor resume is asked for, there is none to resume, or the
            folder cannot be made.
    """
    run = config.out
    has_run = any((run / name).exists() for name in (WEIGHTS_FILE, CHECKPOINT_FILE, SPEC_FILE))
    if run.is_dir() and any(run.iterdir()) and not has_run:
        raise RunError(f"{run}: holds files that are no run's; give another --out, so that nothing of yours is lost")
    if config.resume and not (run / CHECKPOINT_FILE).exists():
        raise RunError(f"{run}: has no {CHECKPOINT_FILE} to resume from; leave --resume off")
    if has_run and not (config.resume or config.overwrite):
        raise RunError(f"{run}: holds a run already; give another --out, or --overwrite, or --resume")
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise RunError(f"{run}: cannot be made: {err.strerror}; give another --out") from err
    return run


def write_setup(run: Path, *, spec: ModelSpec, val: ImageSet, golden: int) -> None:
    """Writes what is known before the first step: spec, labels and golden images.

    Only now, when nothing is left that the settings or the data could be refused for, an overwritten run is removed.
    """
    _clear(run)
    write_atomic(run / SPEC_FILE, dump_spec(spec))
    write_atomic(run / LABELS_FILE, dump_labels(spec.classes))
    _write_golden(run / GOLDEN_FOLDER, val, count=golden, spec=spec)


def write_config(run: Path, config: TrainConfig) -> None:
    """Writes train_config.yaml; a resumed run's replaces the earlier one, as it may train for more epochs."""
    write_atomic(run / "train_config.yaml", config.dump())


def write_weights(run: Path, network: nn.Module) -> None:
    """Writes the network's weights as safetensors."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    write_atomic(run / WEIGHTS_FILE, save(state))


def save_epoch(run: Path, epoch: Epoch, history: list[Epoch], *, network: nn.Module, state: dict[str, Any]) -> bool:
    """Adds an epoch to the history and to the disk: its weights, if they are the best by validation; its checkpoint.

    Args:
        run: the run directory.
        epoch: the one that has just ended.
        history: the ones before; the epoch is appended.
        network: whose weights to write.
        state: the other state dicts that a resumed run needs.

    Returns:
        Whether it is the best so far.
    """
    is_best = epoch.val_accuracy > max((row.val_accuracy for row in history), default=-1.0)
    if is_best:
        write_weights(run, network)
    history.append(epoch)
    write_history(run, history)
    write_checkpoint(run, state | {"network": network.state_dict()}, history=history)
    return is_best


def write_history(run: Path, history: list[Epoch]) -> None:
    """Writes history.csv, one row an epoch."""
    text = io.StringIO()
    rows = csv.DictWriter(text, [field.name for field in fields(Epoch)], lineterminator="\n")
    rows.writeheader()
    rows.writerows(asdict(epoch) for epoch in history)
    write_atomic(run / "history.csv", text.getvalue())


def write_checkpoint(run: Path, state: dict[str, Any], *, history: list[Epoch]) -> None:
    """Writes checkpoint.pt: the state dicts given, the history and torch's random state."""
    buffer = io.BytesIO()
    torch.save(state | {"history": [asdict(epoch) for epoch in history], "torch_random": torch.get_rng_state()}, buffer)
    write_atomic(run / CHECKPOINT_FILE, buffer.getvalue())


def read_checkpoint(run: Path, *, spec: ModelSpec) -> tuple[dict[str, Any], list[Epoch]]:
    """Reads checkpoint.pt (tensors and plain values only, never code) and restores torch's random state.

    Raises:
        RunError: it cannot be read, or the run has another spec.
        SpecError: the run's spec cannot be read.
    """
    path = run / CHECKPOINT_FILE
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        history = [Epoch(**row) for row in state.pop("history")]
        torch.set_rng_state(state.pop("torch_random"))
    except Exception as err:  # torch's readers raise anything on bytes that are no checkpoint
        reason = (str(err) or type(err).__name__).splitlines()[0]
        raise RunError(f"{path}: cannot be read: {reason}; train again with --overwrite") from err
    before = read_spec(run / SPEC_FILE)
    if changed := [name for name in ModelSpec.model_fields if not _is_same(name, before, spec)]:
        raise RunError(
            f"{run}: was trained with another {', '.join(changed)} than the settings and the data give now; "
            f"resume with --config {run}/train_config.yaml, or give another --out"
        )
    return state, history


def _is_same(name: str, one: ModelSpec, other: ModelSpec) -> bool:
    before, now = getattr(one, name), getattr(other, name)
    if name == "temperature":  # fitted after training; evaluate and build refuse it for weights that have changed
        return True
    if name in {"mean", "std"}:  # measured, where not given: other machines sum in another order
        return all(math.isclose(a, b, abs_tol=0.001) for a, b in zip(before, now, strict=False))
    return bool(before == now)


def _clear(run: Path) -> None:
    """Removes what an earlier run left, so that no file of it is taken for one of the new run's."""
    written = (
        WEIGHTS_FILE,
        CHECKPOINT_FILE,
        SPEC_FILE,
        LABELS_FILE,
        RECORD_FILE,
        "metrics.json",
        "calibration.json",
        "report.html",
        "history.csv",
    )
    for name in written:
        (run / name).unlink(missing_ok=True)
    for file in [*run.glob("confusion_*.png"), *run.glob("predictions_*.csv")]:
        file.unlink()
    for folder in (GOLDEN_FOLDER, "evaluation"):
        shutil.rmtree(run / folder, ignore_errors=True)


def _write_golden(folder: Path, val: ImageSet, *, count: int, spec: ModelSpec) -> None:
    """Copies the first readable image of each class, and then of each class again, until there are enough."""
    folder.mkdir(exist_ok=True)
    written = 0
    for sample in _round_robin(val):
        if written == count:
            return
        try:
            data = sample.read()
            data = _shrink(data, spec) if len(data) > GOLDEN_BYTES else data
            decode_image(data, channels=spec.channels)
        except (ImageError, OSError):
            continue
        extension = str(Image.open(io.BytesIO(data)).format).lower()
        write_atomic(folder / f"{written}.{extension}", data)
        written += 1


def _shrink(data: bytes, spec: ModelSpec) -> bytes:
    """Makes a large file small, as it travels in each archive and is sent to each server that starts."""
    image = decode_image(data, channels=spec.channels)
    image.thumbnail((2 * spec.resize, 2 * spec.resize))
    buffer = io.BytesIO()
    image.save(buffer, "PNG" if spec.channels == 4 else "JPEG", quality=95)
    return buffer.getvalue()


def _round_robin(images: ImageSet) -> Iterator[Sample]:
    by_class = [[s for s in images.samples if s.label == label] for label in range(len(images.classes))]
    for row in zip_longest(*by_class):
        yield from (sample for sample in row if sample is not None)
