"""Fits the temperature of a run on its validation split and writes it into the run's spec."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from imgcls.data.pixels import load_pixels
from imgcls.errors import DataError, RunError
from imgcls.evaluation.calibration import fit_temperature, measure_ece, measure_nll, measure_reliability
from imgcls.evaluation.calibration_record import CALIBRATION_FILE, CalibrationRecord
from imgcls.evaluation.opening import Tell, describe_draw, open_images
from imgcls.evaluation.predict import rename_classes
from imgcls.evaluation.reports import hash_weights
from imgcls.evaluation.run import choose_device, describe_left_out, read_run_data
from imgcls.files import refuse_unwritable, write_atomic
from imgcls.training.record import describe_source
from model.classifier import Classifier, softmax
from model.errors import NumericError
from model.spec import SPEC_FILE, dump_spec

FEWEST = 20  # images; one number is fitted, but to fewer it means nothing
DIGITS = 4


@dataclass(frozen=True)
class Calibration:
    """What was fitted, and the temperature that the run had before."""

    record: CalibrationRecord
    previous: float


def calibrate_run(
    run: Path,
    *,
    source: str | None = None,
    device: str = "auto",
    batch_size: int = 256,
    progress: bool = True,
    on_note: Tell = lambda _: None,
) -> Calibration:
    """Fits the temperature, and writes spec.yaml and calibration.json.

    The archive must be built after it: the temperature travels in the spec. Metrics that were measured before are of
    another temperature; `imgcls evaluate` replaces them.

    Args:
        run: a run directory.
        source: what to fit on; None for the validation split of the run's own data.
        device: auto, cpu or cuda.
        batch_size: images a forward pass.
        progress: show bars on a terminal.
        on_note: told, in a line, where the images are a split that was drawn, and of files that were left out.

    Raises:
        DataError: there is no validation split, it has too few images, or no temperature fits them.
        RunError: the run cannot be read or written, or names no data.
        NumericError: the network answers with NaN or infinity.
    """
    config = read_run_data(run)
    text = source or (f"{config.data},split=val" if config.data else None)
    if text is None:
        raise RunError(f"{run}: train_config.yaml names no data; say what to fit on with --on SOURCE")
    opened = open_images(text, run=run, config=config)
    classifier = Classifier.load(run, device=choose_device(device))
    if note := describe_draw(opened):
        on_note(f"{text}: {note}")
    try:
        images = rename_classes(opened.splits[opened.chosen], classifier.spec.classes)
        loaded = load_pixels(images, classifier.spec, perturb=opened.perturb, progress=progress)
    except DataError as err:
        raise DataError(f"{text}: {err}") from err
    for line in describe_left_out(text, (*opened.problems, *loaded.problems)):
        on_note(line)
    if len(loaded) < FEWEST:
        raise DataError(f"{text}: has {len(loaded)} images; expected at least {FEWEST} to fit a temperature to")
    batches = torch.split(loaded.pixels, batch_size)
    logits = np.concatenate([classifier.logits(batch) for batch in batches])
    if not np.isfinite(logits).all():
        raise NumericError("the network answers with NaN or infinity; train again, more gently")
    described = describe_source(source or str(config.data))
    try:
        record = _fit(logits, loaded.labels.numpy(), run=run, source=described, split=opened.chosen)
    except DataError as err:
        advice = f"use more images with --on, or leave it at {classifier.spec.temperature:g}"
        raise DataError(f"{text}: {err}; {advice}") from err
    calibrated = classifier.spec.model_copy(update={"temperature": record.temperature})
    with refuse_unwritable(run, advice="make room or mend permissions"):
        write_atomic(run / CALIBRATION_FILE, record.model_dump_json(indent=1) + "\n")
        write_atomic(run / SPEC_FILE, dump_spec(calibrated))
    return Calibration(record, classifier.spec.temperature)


def _fit(
    logits: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    labels: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
    *,
    run: Path,
    source: str,
    split: str,
) -> CalibrationRecord:
    """Rounds the temperature, so that what is written is what was measured."""
    temperature = round(fit_temperature(logits, labels), DIGITS)

    def find_ece(value: float) -> float:
        return measure_ece(measure_reliability(labels, softmax(logits, temperature=value)))

    return CalibrationRecord(
        weights_sha256=hash_weights(run),
        temperature=temperature,
        source=source,
        split=split,
        images=len(labels),
        loss_before=measure_nll(logits, labels, temperature=1),
        loss_after=measure_nll(logits, labels, temperature=temperature),
        ece_before=find_ece(1),
        ece_after=find_ece(temperature),
    )
