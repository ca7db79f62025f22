"""The run directory: what train.py writes, and evaluation and archive read.

    weights.safetensors  spec.yaml  index_to_name.json   the best epoch by validation, or the last; enough to serve
    train_config.yaml    history.csv  golden/            how it came about, and a few validation images
    train_record.json                                    which code, data and libraries it was trained with
    rejections.csv                                       which steps and samples the backward filter left out
    checkpoints/         all that decides how the run goes on, for --resume only; never packed
    metrics.json         written by the evaluation

Every file is written under a temporary name and renamed, so a killed run leaves the last complete state.
"""

import csv
import io
import shutil
from collections.abc import Iterator
from dataclasses import asdict, fields
from itertools import zip_longest
from pathlib import Path

from PIL import Image
from safetensors.torch import save
from torch import nn

from imgcls.data.images import ImageSet, Sample
from imgcls.errors import RunError
from imgcls.files import write_atomic
from imgcls.training.checkpoint import CHECKPOINTS_FOLDER, EARLIER_FILE, Epoch, read_newest
from imgcls.training.config import TrainConfig
from imgcls.training.distillation import check_teacher
from imgcls.training.record import RECORD_FILE, REJECTIONS_FILE
from model.bands import Bands, read_bands
from model.classifier import SPEC_FILE, WEIGHTS_FILE
from model.errors import ImageError
from model.golden import GOLDEN_FOLDER
from model.labels import LABELS_FILE, dump_labels
from model.preprocess import decode_whole
from model.spec import ModelSpec, dump_spec
from model.tiff import is_tiff, write_tiff

GOLDEN_BYTES = 300_000  # of one golden image; a larger file is made smaller


def open_run(config: TrainConfig) -> Path:
    """Makes the run directory; what an earlier run left in it stays until `write_setup`.

    Raises:
        RunError: a run is already there and neither overwrite nor resume is asked for, there is none to resume, or the
            folder cannot be made.
        UsageError: the teacher is no other run.
    """
    run = config.out
    if config.find_lr:
        return run  # nothing will be written
    has_run = any((run / name).exists() for name in (WEIGHTS_FILE, CHECKPOINTS_FOLDER, EARLIER_FILE, SPEC_FILE))
    if run.is_dir() and any(run.iterdir()) and not has_run:
        raise RunError(f"{run}: holds files that are no run's; give another --out, so that nothing of yours is lost")
    check_teacher(config)
    if config.resume:
        read_newest(run)  # now, as reading the images may take long
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


def write_history(run: Path, history: list[Epoch]) -> None:
    """Writes history.csv, one row an epoch."""
    text = io.StringIO()
    rows = csv.DictWriter(text, [field.name for field in fields(Epoch)], lineterminator="\n")
    rows.writeheader()
    rows.writerows(asdict(epoch) for epoch in history)
    write_atomic(run / "history.csv", text.getvalue())


def _clear(run: Path) -> None:
    """Removes what an earlier run left, so that no file of it is taken for one of the new run's."""
    written = (
        WEIGHTS_FILE,
        EARLIER_FILE,
        SPEC_FILE,
        LABELS_FILE,
        RECORD_FILE,
        REJECTIONS_FILE,
        "metrics.json",
        "calibration.json",
        "report.html",
        "history.csv",
        "poison.csv",
    )
    for name in written:
        (run / name).unlink(missing_ok=True)
    for file in [*run.glob("confusion_*.png"), *run.glob("predictions_*.csv")]:
        file.unlink()
    for folder in (GOLDEN_FOLDER, CHECKPOINTS_FOLDER, "evaluation"):
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
            decode_whole(data, spec)
        except (ImageError, OSError):
            continue
        extension = "tiff" if is_tiff(data) else str(Image.open(io.BytesIO(data)).format).lower()
        write_atomic(folder / f"{written}.{extension}", data)
        written += 1


def _shrink(data: bytes, spec: ModelSpec) -> bytes:
    """Makes a large file small, as it travels in each archive and is sent to each server that starts."""
    image = decode_whole(data, spec)
    if isinstance(image, Bands):  # every so many pixels, as a TIFF's samples have to stay what they are
        step = max(1, min(image.size) // (2 * spec.resize))
        samples, _ = read_bands(data, wanted=spec.channels)
        return write_tiff(samples[:, ::step, ::step])
    image.thumbnail((2 * spec.resize, 2 * spec.resize))
    buffer = io.BytesIO()
    image.save(buffer, "PNG" if spec.channels == 4 else "JPEG", quality=95)
    return buffer.getvalue()


def _round_robin(images: ImageSet) -> Iterator[Sample]:
    by_class = [[s for s in images.samples if s.label == label] for label in range(len(images.classes))]
    for row in zip_longest(*by_class):
        yield from (sample for sample in row if sample is not None)
