import io

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from imgcls.evaluation.metrics import compute_metrics
from imgcls.evaluation.plots import plot_confusion
from imgcls.evaluation.table import build_table
from model.errors import NumericError

CLASSES = ("cat", "dog", "emu")
LABELS = np.array([0, 0, 0, 1])
PROBABILITIES = np.array([[0.8, 0.1, 0.1], [0.6, 0.2, 0.2], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1]], dtype=np.float32)


def test_numbers_are_those_computed_by_hand() -> None:
    metrics = compute_metrics(LABELS, PROBABILITIES, classes=CLASSES)
    assert metrics.samples == 4
    assert metrics.accuracy == 0.75
    assert metrics.loss == pytest.approx(-np.log([0.8, 0.6, 0.2, 0.8]).mean(), rel=1e-6)
    assert metrics.confusion == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    cat, dog = metrics.per_class["cat"], metrics.per_class["dog"]
    assert (cat.precision, cat.recall, cat.support) == (1.0, pytest.approx(2 / 3), 3)
    assert (dog.precision, dog.recall, dog.support) == (0.5, 1.0, 1)
    assert metrics.f1_weighted == pytest.approx((3 * cat.f1 + dog.f1) / 4)


def test_class_that_the_test_set_lacks_does_not_lower_the_macro_average() -> None:
    metrics = compute_metrics(LABELS, PROBABILITIES, classes=CLASSES)
    assert metrics.per_class["emu"].support == 0
    assert metrics.recall_macro == pytest.approx((2 / 3 + 1) / 2)


def test_every_number_but_loss_and_calibration_error_has_an_interval() -> None:
    labels, random = np.arange(300) % 6, np.random.default_rng(0)
    probabilities = random.dirichlet(np.ones(6), size=300) + np.eye(6)[labels] * 0.05
    metrics = compute_metrics(labels, (probabilities / 1.05).astype(np.float32), classes=list("abcdef"))
    numbers = {name: value for name, value in metrics.model_dump().items() if isinstance(value, float)}
    assert set(metrics.intervals) == set(numbers) - {"loss", "ece"}
    for name, interval in metrics.intervals.items():
        assert interval.low < numbers[name] < interval.high


def test_nan_is_refused_with_its_count() -> None:
    broken = PROBABILITIES.copy()
    broken[1] = np.nan
    with pytest.raises(NumericError, match="1 of 4 answers"):
        compute_metrics(LABELS, broken, classes=CLASSES)


def test_table_shows_the_drop_against_the_first_set() -> None:
    good = compute_metrics(LABELS[:2], PROBABILITIES[:2], classes=CLASSES)
    worse = compute_metrics(LABELS, PROBABILITIES, classes=CLASSES)
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(build_table({"clean": good, "noisy": worse}, title="run"))
    shown = console.export_text()
    rows = {line.split()[1]: line.split() for line in shown.splitlines() if "%" in line}
    assert "100.00%" in rows["clean"]
    assert rows["noisy"][5:8] == ["75.00%", "│", "25.00"]
    assert good.intervals["accuracy"].method == "wilson"
    assert "interval of the accuracy, by bootstrap, or Wilson's" in " ".join(shown.split())


@pytest.mark.parametrize("count", [2, 20, 200])
def test_confusion_is_drawn_for_few_and_many_classes_of_any_name(count: int) -> None:
    names = [f"猫 $x_{number} " + "long " * 9 for number in range(count)]
    confusion = np.diag(np.arange(count)).tolist()  # the first class has no image
    picture = Image.open(io.BytesIO(plot_confusion(confusion, classes=names, title="a $ sign")))
    assert picture.format == "PNG"
    assert max(picture.size) <= 1600
    assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 10
