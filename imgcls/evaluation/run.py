"""Evaluates a run directory on test sets, and writes what came out.

metrics.json                    every test set, also of earlier calls on the same weights
confusion_NAME.png              one picture a test set
predictions_NAME.csv            name, label, predicted, probability: to compare with served answers later
evaluation/NAME.npz             all probabilities, to compare runs by
evaluation/NAME.gallery.json    pictures of the worst mistakes, for the report
"""

import csv
import hashlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import yaml
from pydantic import ValidationError

from imgcls.data.digests import hash_source, make_fingerprint
from imgcls.data.images import DataSource, ImageSet, Problem, count_files
from imgcls.errors import DataError, RunError, UsageError
from imgcls.evaluation.calibration_record import refuse_stale_calibration
from imgcls.evaluation.gallery import Gallery, make_gallery
from imgcls.evaluation.metrics import compute_metrics
from imgcls.evaluation.opening import RunData, Tell, describe_draw, open_images
from imgcls.evaluation.plots import plot_confusion
from imgcls.evaluation.predict import Predictions, predict_images, rename_classes
from imgcls.evaluation.reports import TestReport, drop_report, hash_weights, save_reports
from imgcls.evaluation.slices import measure_slices, read_columns
from imgcls.evaluation.stored import EVALUATION_FOLDER, Stored, write_stored
from imgcls.files import lock_folder, refuse_unwritable, write_atomic
from imgcls.yaml_once import load_yaml
from model.classifier import SPEC_FILE, Classifier
from model.spec import read_spec

CONFIG_FILE = "train_config.yaml"
_TOLD = 5  # problems of a test set that are told each
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # it becomes part of file names


@dataclass(frozen=True)
class Evaluation:
    """One evaluated test set: its numbers, the files that could not be used, all answers, and the worst in pictures."""

    report: TestReport
    problems: tuple[Problem, ...]
    stored: Stored
    gallery: Gallery


def evaluate_run(
    run: Path,
    *,
    tests: Mapping[str, str],
    slices: Sequence[str] = (),
    out: Path | None = None,
    batch_size: int = 256,
    device: str = "auto",
    strict: bool = False,
    progress: bool = True,
    on_note: Tell = lambda _: None,
) -> dict[str, Evaluation]:
    """Evaluates a run on each test set and writes the files of the module's docstring.

    Args:
        run: a run directory.
        tests: source strings by name; empty for the data that the run was trained on. Of that, splits that it does not
            bring are drawn with the run's own seed and fractions, so that its training images stay out of them; any
            other source without splits counts whole.
        slices: columns of the test sets' tables to give numbers by.
        out: where to write; None for the run directory.
        batch_size: images a forward pass; it changes speed, not numbers.
        device: auto, cpu or cuda.
        strict: refuse a test set with unusable files instead of leaving them out.
        progress: show bars on a terminal.
        on_note: told, in a line, of each test set that was drawn.

    Returns:
        The evaluations by name, in the order of `tests`.

    Raises:
        UsageError, DataError, RunError, ModelError: as each says.
    """
    opened = open_tests(run, tests, strict=strict, on_note=on_note)
    temperature = read_spec(run / SPEC_FILE).temperature
    refuse_stale_calibration(run, temperature=temperature, weights_sha256=hash_weights(run))
    for source, images in opened.values():
        read_columns(images.samples, slices, where=source.text)  # refuses before anything is measured
    classifier = Classifier.load(run, device=choose_device(device))
    evaluations: dict[str, Evaluation] = {}
    for name, (source, images) in opened.items():
        evaluations[name], predictions = _evaluate_set(
            classifier, source, images, slices=slices, batch_size=batch_size, strict=strict, progress=progress
        )
        _write_files(out or run, name, evaluations[name], predictions, run=run)
    return evaluations


def open_tests(
    run: Path, tests: Mapping[str, str], *, strict: bool = False, on_note: Tell = lambda _: None
) -> dict[str, tuple[DataSource, ImageSet]]:
    """Opens test sets with a run's seed, fractions and classes; decodes nothing yet.

    Args:
        run: a run directory.
        tests: source strings by name; empty for the data that the run was trained on.
        strict: refuse sources with unusable files.
        on_note: told, in a line, of each test set that was drawn.

    Raises:
        UsageError, DataError, RunError: as each says.
    """
    config = read_run_data(run)
    sources = dict(tests) or {"test": _require_data(config, run)}
    _require_names(sources)
    classes = read_spec(run / SPEC_FILE).classes
    try:
        opened = {
            name: _open_test(text, run=run, config=config, classes=classes, strict=strict)
            for name, text in sources.items()
        }
    except UsageError as err:
        if tests:
            raise
        raise UsageError(f"{run / CONFIG_FILE}: data: {err}; say what to evaluate with --test NAME=SOURCE") from err
    for name, (source, _) in opened.items():
        if note := describe_draw(source):
            on_note(f"{name}: {note}")
    return opened


def describe_left_out(name: str, problems: Sequence[Problem]) -> Iterator[str]:
    """Says of a test set, a line each, which files were left out: the first few, and then how many in all."""
    for problem in problems[:_TOLD]:
        yield f"{name}: left out {problem}"
    if len(problems) > _TOLD:
        yield f"{name}: left out {count_files(problems)} files in all"


def parse_tests(texts: Sequence[str]) -> dict[str, str]:
    """Parses `NAME=SOURCE` texts.

    Raises:
        UsageError: one is not of this form, or a name is given twice.
    """
    tests: dict[str, str] = {}
    for text in texts:
        name, _, source = text.partition("=")
        if not source or not _NAME.fullmatch(name):
            raise UsageError(f"--test is {text!r}; expected NAME=SOURCE, such as noisy=digits,noise=25")
        if name in tests:
            raise UsageError(f"--test names {name!r} twice; expected each name once")
        tests[name] = source
    return tests


def read_run_data(run: Path) -> RunData:
    """Reads what a run was trained on; the defaults where it does not say.

    Raises:
        RunError: it is no run directory, or its train_config.yaml cannot be read.
    """
    if not (run / SPEC_FILE).is_file():
        raise RunError(
            f"{run}: is no run directory, {SPEC_FILE} is not in it; make one with python train.py --out {run}"
        )
    path = run / CONFIG_FILE
    if not path.exists():
        return RunData()
    try:
        return RunData.model_validate(load_yaml(path.read_bytes()))
    except (OSError, yaml.YAMLError, ValidationError) as err:
        raise RunError(f"{path}: cannot be read: {' '.join(str(err).split())}") from err


def _require_data(config: RunData, run: Path) -> str:
    if config.data is None:
        raise RunError(f"{run}: {CONFIG_FILE} names no data; say what to evaluate with --test NAME=SOURCE")
    return config.data


def _require_names(sources: Mapping[str, str]) -> None:
    for name in sources:
        if not _NAME.fullmatch(name):
            raise UsageError(f"a test set is named {name!r}; expected letters, digits, dots, dashes and underscores")


def choose_device(device: str) -> str:
    """Returns cpu or cuda.

    Raises:
        UsageError: CUDA is asked for and not there.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device is cuda, but torch sees no CUDA device here; use auto or cpu")
    return device


def _open_test(
    text: str, *, run: Path, config: RunData, classes: Sequence[str], strict: bool
) -> tuple[DataSource, ImageSet]:
    """Opens a test set and renames its classes to the run's; decodes nothing yet."""
    source = open_images(text, run=run, config=config)
    if strict and source.problems:
        first = source.problems[0]
        raise DataError(
            f"{text}: {count_files(source.problems)} files cannot be used, first {first.name}: {first.reason}"
        )
    try:
        return source, rename_classes(source.splits[source.chosen], classes)
    except DataError as err:
        raise DataError(f"{text}: {err}") from err


def _evaluate_set(
    classifier: Classifier,
    source: DataSource,
    images: ImageSet,
    *,
    slices: Sequence[str],
    batch_size: int,
    strict: bool,
    progress: bool,
) -> tuple[Evaluation, Predictions]:
    try:
        predictions = predict_images(
            classifier, images, perturb=source.perturb, batch_size=batch_size, strict=strict, progress=progress
        )
    except DataError as err:
        raise DataError(f"{source.text}: {err}") from err
    problems = (*source.problems, *predictions.problems)
    metrics = compute_metrics(predictions.labels, predictions.probabilities, classes=images.classes)
    stored = Stored(
        names=np.array(predictions.names),
        labels=predictions.labels,
        probabilities=predictions.probabilities,
        classes=images.classes,
        columns=read_columns(predictions.samples, slices, where=source.text),
        images_sha256=name_images(source, images, progress=progress),
    )
    report = TestReport(
        **metrics.model_dump(),
        source=source.text,
        split=source.chosen,
        skipped=count_files(problems),
        images_sha256=stored.images_sha256,
        slices=measure_slices(stored.labels, stored.answers, stored.columns, classes=len(images.classes)),
    )
    gallery = make_gallery(
        predictions.samples, stored.labels, stored.probabilities, spec=classifier.spec, perturb=source.perturb
    )
    return Evaluation(report, problems, stored, gallery), predictions


def name_images(source: DataSource, images: ImageSet, *, progress: bool) -> str:
    """Returns a hash of the images, their classes and what perturbs them: the `images_sha256` of all that is stored."""
    digests = hash_source(replace(source, splits={images.name: images}), progress=progress)
    fingerprint = make_fingerprint(images, digests[images.name]).sha256
    return hashlib.sha256(f"{fingerprint} {source.perturb!r}".encode()).hexdigest()


def _write_files(folder: Path, name: str, evaluation: Evaluation, predictions: Predictions, *, run: Path) -> None:
    """Writes one set's files; metrics.json loses the set first and gets it last, so that files fit what it lists.

    Evaluations of other sets, which run beside it, wait for it: each writes metrics.json with what it has read there.
    """
    report, classes = evaluation.report, evaluation.stored.classes
    title = f"{name}: accuracy {report.accuracy:.2%} of {report.samples:,} images"
    confusion = plot_confusion(report.confusion, classes=classes, title=title)
    with refuse_unwritable(folder, advice="choose another folder with --out"):
        folder.mkdir(parents=True, exist_ok=True)
        with lock_folder(folder):
            drop_report(folder, name)
            write_atomic(folder / f"confusion_{name}.png", confusion)
            write_atomic(folder / f"predictions_{name}.csv", _format_predictions(predictions, classes=classes))
            write_stored(folder, name, evaluation.stored, run=run)
            gallery = evaluation.gallery.model_dump_json(indent=1)
            write_atomic(folder / EVALUATION_FOLDER / f"{name}.gallery.json", gallery + "\n")
            save_reports(folder, {name: report}, run=run)


def _format_predictions(predictions: Predictions, *, classes: Sequence[str]) -> str:
    best = predictions.probabilities.argmax(axis=1)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["name", "label", "predicted", "probability"])
    for place, (name, label) in enumerate(zip(predictions.names, predictions.labels, strict=True)):
        probability = predictions.probabilities[place, best[place]]
        writer.writerow([name, classes[label], classes[best[place]], f"{probability:.6f}"])
    return buffer.getvalue()
