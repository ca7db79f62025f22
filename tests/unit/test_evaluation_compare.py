import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from imgcls.cli.main import app
from imgcls.data.images import Sample
from imgcls.errors import DataError, RunError
from imgcls.evaluation.compare import compare, compare_runs, measure_mcnemar
from imgcls.evaluation.gallery import read_gallery
from imgcls.evaluation.reports import read_metrics
from imgcls.evaluation.run import evaluate_run
from imgcls.evaluation.slices import read_columns
from imgcls.evaluation.stored import Stored, read_stored

CLASSES = ("a", "b", "c")


def make(labels: np.ndarray, predicted: np.ndarray, *, classes: tuple[str, ...] = CLASSES) -> Stored:
    probabilities = (0.8 * np.eye(len(classes))[predicted] + 0.2 / len(classes)).astype(np.float32)
    names = np.array([f"{number:04}.png" for number in range(len(labels))])
    return Stored(names, labels, probabilities, classes, {}, "f" * 64)


def draw(accuracy: float, *, seed: int, images: int = 1000) -> Stored:
    random, labels = np.random.default_rng(seed), np.arange(images) % 3
    return make(labels, np.where(random.random(images) < accuracy, labels, (labels + 1) % 3))


def test_mcnemar_by_hand():
    labels = np.zeros(20, dtype=np.int64)
    run, baseline = labels.copy(), labels.copy()
    run[:1], baseline[4:12] = 1, 1  # 8 images only the run gets right, 1 only the baseline
    found = measure_mcnemar(make(labels, run), make(labels, baseline))
    assert (found.only_run, found.only_baseline) == (8, 1)
    assert found.p_value == pytest.approx(2 * (1 + 9) / 2**9)


def test_better_run_is_told_from_an_equal_one():
    better, equal, baseline = draw(0.9, seed=1), draw(0.8, seed=2), draw(0.8, seed=3)
    found = compare(better, baseline, name="t")
    assert found.mcnemar.p_value < 1e-5
    assert found.differences["accuracy"].interval.low > 0.03
    assert set(found.differences) == {"accuracy", "precision_macro", "recall_macro", "f1_macro", "auroc"}
    same = compare(equal, baseline, name="t").differences["f1_macro"]
    assert same.interval.low < 0 < same.interval.high


def test_images_and_classes_are_matched_by_name():
    run = draw(0.8, seed=1)
    rows, order = np.random.default_rng(0).permutation(1000), [2, 0, 1]
    shuffled = Stored(
        names=run.names[rows],
        labels=np.argsort(order)[run.labels[rows]],
        probabilities=run.probabilities[rows][:, order],
        classes=tuple(CLASSES[place] for place in order),
        columns={},
        images_sha256=run.images_sha256,
    )
    found = compare(run, shuffled, name="t")
    assert found.mcnemar.only_run == found.mcnemar.only_baseline == 0
    assert {each.difference for each in found.differences.values()} == {0.0}


@pytest.mark.parametrize("change", [{"images_sha256": "0" * 64}, {"classes": ("a", "b", "d")}])
def test_other_images_or_classes_are_refused(change):
    run = draw(0.8, seed=1)
    with pytest.raises(RunError, match=r"^t: the two runs "):
        compare(run, Stored(**{**vars(run), **change}), name="t")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """24 plain images with the camera and the hour that took them; what the night camera calls blue is green."""
    rows = ["path,label,split,camera,hour"]
    for number in range(24):
        color, shown = ("red", (255, 0, 0)) if number % 2 else ("blue", (0, 0, 255))
        camera = "night" if number < 8 else "day"
        if camera == "night" and color == "blue":
            shown = (0, 255, 0)
        Image.new("RGB", (8, 8), shown).save(tmp_path / f"{number:02}.png")
        rows.append(f"{number:02}.png,{color},test,{camera},{number}")
    path = tmp_path / "photos.csv"
    path.write_text("\n".join(rows))
    return path


def test_slices_tell_where_the_model_is_worse(tmp_path: Path, write_run, table: Path):
    run = write_run(tmp_path / "run")
    arguments = ["evaluate", str(run), "--test", f"t={table}", "--slice", "camera", "--slice", "hour"]
    shown = CliRunner().invoke(app, arguments, catch_exceptions=False).stdout
    assert "t by camera" in shown
    slices = read_metrics(run / "metrics.json").test_sets["t"].slices
    assert {name: (each.samples, each.accuracy) for name, each in slices["camera"].items()} == {
        "day": (16, 1.0),
        "night": (8, 0.5),
    }
    assert [each.samples for each in slices["hour"].values()] == [6, 6, 6, 6]  # quartiles
    assert (
        slices["camera"]["night"].intervals["accuracy"].low < 0.5 < slices["camera"]["night"].intervals["accuracy"].high
    )
    assert list(read_stored(run, "t").columns) == ["camera", "hour"]


def test_column_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path, write_run, table: Path, photos: Path):
    run = write_run(tmp_path / "run")
    with pytest.raises(DataError, match="has no column 'lens' to slice by; it has camera, hour"):
        evaluate_run(run, tests={"t": str(table)}, slices=["lens"])
    with pytest.raises(DataError, match=r"it has none; only \.csv, \.jsonl and \.tar sources do"):
        evaluate_run(run, tests={"t": str(photos)}, slices=["lens"])


def test_a_column_that_one_set_lacks_is_refused_before_any_is_measured(
    tmp_path: Path, write_run, table: Path, photos: Path
):
    run = write_run(tmp_path / "run")
    with pytest.raises(DataError, match="has no column 'camera'"):
        evaluate_run(run, tests={"t": str(table), "u": str(photos)}, slices=["camera"])
    assert not (run / "metrics.json").exists()


@pytest.mark.parametrize(
    ("first", "step", "expected"),
    [
        (1, 1, ["1: 1 to 7", "2: 7 to 13", "3: 13 to 19", "4: 19 to 25"]),
        (
            20240101,
            1,
            [f"{part}: {day} to {day + 6}" for part, day in enumerate(range(20240101, 20240120, 6), start=1)],
        ),
        (52.52, 1e-6, ["1: 52.52 to 52.520006", "2: 52.520006 to 52.520012"]),
        (1e17, 64, ["1: 1e+17 to 1.0000000000000038e+17"]),
    ],
)
def test_quartiles_of_numbers_that_lie_close_have_names_that_tell_them_apart(first, step, expected):
    texts = [repr(first + step * number) for number in range(25)]
    samples = [Sample(text, 0, bytes, columns={"at": text}) for text in texts]
    values = read_columns(samples, ["at"], where="t.csv")["at"]
    assert [str(value) for value in np.unique(values)][: len(expected)] == expected


def test_numbers_with_gaps_are_cut_too_and_the_gaps_are_a_slice():
    samples = [
        Sample(str(number), 0, bytes, columns={"age": str(number) if number % 3 else ""}) for number in range(90)
    ]
    values, counts = np.unique(read_columns(samples, ["age"], where="t.csv")["age"], return_counts=True)
    assert values[0] == "(empty)"
    assert counts.tolist() == [30, 15, 15, 15, 15]


def test_gallery_shows_the_mistakes_and_the_most_confused_pair(tmp_path: Path, write_run, table: Path):
    run = write_run(tmp_path / "run")
    evaluate_run(run, tests={"t": str(table)})
    gallery = read_gallery(run / "evaluation" / "t.gallery.json")
    assert sorted(picture.name for picture in gallery.worst) == ["00.png", "02.png", "04.png", "06.png"]
    [pair] = gallery.pairs
    assert (pair.label, pair.predicted, pair.count, pair.share) == ("blue", "green", 4, pytest.approx(4 / 12))
    assert pair.examples[0].image.startswith("data:image/png;base64,")


def test_answers_that_are_damaged_are_refused_wherever_the_damage_lies(tmp_path: Path, write_run, table: Path):
    run = write_run(tmp_path / "run")
    evaluate_run(run, tests={"t": str(table)}, slices=["camera"])
    path = run / "evaluation" / "t.npz"
    good = path.read_bytes()
    for place in range(0, len(good), 7):
        path.write_bytes(good[:place] + bytes([good[place] ^ 0xFF]) + good[place + 1 :])
        try:
            read_stored(run, "t")  # a time in the zip's directory may be any
        except RunError as err:
            assert "measure it with imgcls evaluate" in str(err)


def test_runs_are_compared_from_what_was_stored(tmp_path: Path, write_run, table: Path):
    run = write_run(tmp_path / "run")
    worse = write_run(tmp_path / "worse", change=lambda state: state["classifier.4.bias"][0].sub_(9))
    with pytest.raises(RunError, match="share no test set"):
        compare_runs(run, worse)
    with pytest.raises(RunError, match=r"nowhere: is no run directory; make one with python train\.py --out"):
        compare_runs(run, tmp_path / "nowhere")
    for each in (run, worse):
        evaluate_run(each, tests={"t": str(table)})
    shown = CliRunner().invoke(app, ["compare", str(run), str(worse), "--json"], catch_exceptions=False).stdout
    found = json.loads(shown)["t"]
    assert found["mcnemar"]["only_run"] == 12
    assert found["differences"]["accuracy"]["difference"] == pytest.approx(0.5)
    assert "p = 0.000488" in CliRunner().invoke(app, ["compare", str(run), str(worse)], catch_exceptions=False).stdout
