import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from imgcls.archive.build import build_archive
from imgcls.archive.contents import extract
from imgcls.cli.main import app
from imgcls.errors import ArchiveError, DataError, RunError
from imgcls.evaluation.calibrate import calibrate_run
from imgcls.evaluation.calibration import fit_temperature, measure_ece, measure_nll, measure_reliability
from imgcls.evaluation.reports import read_metrics
from imgcls.evaluation.run import evaluate_run
from imgcls.evaluation.stored import read_stored
from model.classifier import Classifier, softmax
from model.spec import ModelSpec, read_spec


def draw(temperature: float, *, images: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are too sure by this factor, and labels drawn from what they should say."""
    random = np.random.default_rng(1)
    logits = random.normal(size=(images, 4), scale=1.5).astype(np.float32)
    probabilities = softmax(logits, temperature=1)
    labels = (probabilities.cumsum(axis=1) < random.random((images, 1))).sum(axis=1).clip(max=3)
    return logits * np.float32(temperature), labels


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_temperature_is_found_and_lowers_the_error(temperature):
    logits, labels = draw(temperature)
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(temperature, rel=0.06)
    assert measure_nll(logits, labels, temperature=found) <= measure_nll(logits, labels, temperature=1)
    assert measure_ece(measure_reliability(labels, softmax(logits, temperature=found))) < 0.03


@pytest.mark.parametrize("margin", [0.1, 5.0, 2000.0])
def test_images_without_a_mistake_have_no_temperature(margin):
    """Whatever the margin: at 2000 the loss is 0 at many temperatures, and a search would stop at any of them."""
    labels = np.arange(36) % 3
    with pytest.raises(DataError, match="all 36 images are right: no finite temperature fits them"):
        fit_temperature(np.float32(margin) * np.eye(3, dtype=np.float32)[labels], labels)


def test_a_single_mistake_is_enough_for_a_temperature():
    labels = np.arange(36) % 3
    logits = 5 * np.eye(3, dtype=np.float32)[labels]
    labels[0] = 1
    assert fit_temperature(logits, labels) == pytest.approx(5 / np.log(70), rel=1e-3)  # 2 / (exp(5 / T) + 2) = 1 / 36


def test_a_temperature_beyond_the_bounds_is_refused():
    logits, labels = draw(0.01)
    with pytest.raises(DataError, match=r"fits best is at or below 0\.05"):
        fit_temperature(logits, labels)
    logits, labels = draw(1.0)
    with pytest.raises(DataError, match="fits best is at or above 20"):
        fit_temperature(-logits, labels)


def test_a_run_without_a_mistake_keeps_its_temperature(run: Path, photos: Path):
    before = (run / "spec.yaml").read_bytes()
    result = CliRunner().invoke(app, ["calibrate", str(run), "--on", str(photos)])
    why = "all 36 images are right: no finite temperature fits them"
    said = f"{photos}: {why}; use more images with --on, or leave it at 1"
    assert (type(result.exception), str(result.exception)) == (DataError, said)
    assert (run / "spec.yaml").read_bytes() == before
    assert not (run / "calibration.json").exists()


def test_a_run_that_cannot_be_written_is_named(run: Path):
    before = (run / "spec.yaml").read_bytes()
    (run / "calibration.json").mkdir()
    with pytest.raises(RunError, match="run: cannot be written: Is a directory; make room or mend permissions"):
        calibrate_run(run)
    assert (run / "spec.yaml").read_bytes() == before


def test_ece_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]], dtype=np.float32)
    bins = measure_reliability(np.array([0, 1, 0, 0]), probabilities)
    assert [(each.images, each.accuracy) for each in bins] == [(2, 1.0), (2, 0.5)]
    assert measure_ece(bins) == pytest.approx((0.4 + 0.4) / 2)


def test_probability_of_one_lies_in_the_last_bin():
    [last] = measure_reliability(np.array([1]), np.array([[0.0, 1.0]], dtype=np.float32))
    assert (last.high, last.confidence, last.accuracy) == (1.0, 1.0, 1.0)


@pytest.fixture
def run(tmp_path: Path, write_run, photos: Path) -> Path:
    """The run of colours, as if trained on noisy photographs of which some are labelled wrongly."""
    data = tmp_path / "mislabelled"
    for number, color in enumerate(("red", "green", "blue")):
        (data / color).mkdir(parents=True)
        for file in sorted((photos / color).iterdir()):
            (data / color / file.name).write_bytes(file.read_bytes())
        other = ("red", "green", "blue")[(number + 1) % 3]
        for file in sorted((photos / other).iterdir())[:4]:
            (data / color / f"wrong{file.name}").write_bytes(file.read_bytes())
    run = write_run(tmp_path / "run")
    (run / "train_config.yaml").write_text(f"data: {data}\nval_fraction: 0.5\ntest_fraction: 0.2\n")
    return run


def test_archive_serves_what_evaluation_measured(run: Path, tmp_path: Path, load):
    """The temperature travels in the spec: the handler, eager and an engine of other runtime divide by it."""
    evaluate_run(run, tests={})
    before = read_metrics(run / "metrics.json").test_sets["test"].loss
    shown = CliRunner().invoke(app, ["calibrate", str(run), "--json"], catch_exceptions=False)
    record = json.loads(shown.stdout)
    assert record["loss_after"] < record["loss_before"]
    temperature = read_spec(run / "spec.yaml").temperature
    assert temperature == record["temperature"] != 1
    with pytest.raises(ArchiveError, match="was measured at temperature 1"):
        build_archive(run, tmp_path / "store")
    evaluate_run(run, tests={})
    assert read_metrics(run / "metrics.json").test_sets["test"].loss != before

    archive = build_archive(run, tmp_path / "store", engines=["openvino"])
    image = Image.new("RGB", (4, 4), (150, 110, 90))
    pixels = np.array(image).transpose(2, 0, 1)[None]
    expected = Classifier.load(run).probabilities(pixels)
    plain = softmax(Classifier.load(run).logits(pixels), temperature=1)
    assert np.abs(expected - plain).max() > 0.01
    image.save(tmp_path / "small.png")
    for engine in ("eager", "openvino"):
        folder = tmp_path / engine
        extract(archive, folder=folder)
        config = folder / "model-config.yaml"
        config.write_text(config.read_text().replace("engine: auto", f"engine: {engine}"))
        answer = load(folder).predict([(tmp_path / "small.png").read_bytes()])[0].json()
        served = {each["index"]: each["probability"] for each in answer["predictions"]}
        assert [served[index] for index in range(3)] == pytest.approx(expected[0].tolist(), abs=1e-3), engine
    assert "were calibrated on validation images" in (tmp_path / "eager" / "MODEL_CARD.md").read_text()


def test_answers_of_another_temperature_are_not_taken_for_the_runs(run: Path):
    evaluate_run(run, tests={})
    read_stored(run, "test")
    calibrate_run(run)
    with pytest.raises(RunError, match="with other weights or another temperature than the run has"):
        read_stored(run, "test")


def test_temperature_of_other_weights_is_refused(run: Path, write_run, tmp_path: Path):
    calibrate_run(run)
    other = write_run(tmp_path / "other", change=lambda state: state["classifier.4.bias"].add_(1))
    (run / "weights.safetensors").write_bytes((other / "weights.safetensors").read_bytes())
    with pytest.raises(RunError, match=r"was fitted for other weights.*run imgcls calibrate again"):
        evaluate_run(run, tests={})
    with pytest.raises(ArchiveError, match="was fitted for other weights"):
        build_archive(run, tmp_path / "store")
    calibrate_run(run)
    evaluate_run(run, tests={})


def test_too_few_images_are_refused(run: Path, photos: Path):
    with pytest.raises(DataError, match="expected at least 20"):
        calibrate_run(run, source=f"{photos},split=val")


def test_images_that_cannot_be_decoded_are_named_and_do_not_count(run: Path, tmp_path: Path):
    """Of 48 images 42 are cut short, and the other six are too few."""
    for file in list((tmp_path / "mislabelled").glob("*/0*.png")) + list((tmp_path / "mislabelled").glob("*/wrong*")):
        file.write_bytes(file.read_bytes()[:60])
    told: list[str] = []
    with pytest.raises(DataError, match="has 6 images; expected at least 20"):
        calibrate_run(run, source=f"{tmp_path / 'mislabelled'},split=all", on_note=told.append)
    assert told[-1].endswith("left out 42 files in all")


def test_old_spec_has_temperature_1(color_run: Path, tmp_path: Path):
    lines = (color_run / "spec.yaml").read_text().splitlines(keepends=True)
    old = tmp_path / "spec.yaml"
    old.write_text("".join(line for line in lines if not line.startswith("temperature")))
    spec: ModelSpec = read_spec(old)
    assert spec.temperature == 1
    assert spec == read_spec(color_run / "spec.yaml")
