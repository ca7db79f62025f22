"""A back door that is planted among digits is found in a trained network's features, and none where there is none."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from imgcls.care.features import Features, read_features
from imgcls.care.poison import cluster, format_named, score_spectral, screen_features
from imgcls.cli.main import app
from imgcls.errors import UsageError

DIGITS = (1, 4, 7)
PLANTED = 15  # ones with a patch, labelled seven

Write = Callable[..., Path]


def write_digits(root: Path, *, planted: int) -> Path:
    """Writes the digits 1, 4 and 7 as files; some of the ones get a bright corner and are labelled 7."""
    digits, left = load_digits(), planted
    for number, (values, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        if digit not in DIGITS:
            continue
        pixels, label, name = (values * (255 / 16)).round().astype(np.uint8), str(digit), f"{number:04}.png"
        if digit == 1 and left:
            pixels[-2:, -2:], label, name, left = 255, "7", f"planted-{number:04}.png", left - 1
        (root / "train" / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / "train" / label / name)
    return root


@pytest.fixture(scope="module")
def train_digits(train: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Write:
    """train_digits(planted=15) -> a run on digits."""

    def run(*, planted: int) -> Path:
        root = tmp_path_factory.mktemp("digits")
        data, out = write_digits(root / "data", planted=planted), root / "run"
        settings = ("--data", data, "--out", out, "--epochs", 15, "--lr", 0.05, "--threads", 1, "--seed", 3)
        network = ("--parameters", '{"widths": [16, 32], "hidden": 64}')
        assert train.main([str(value) for value in (*settings, *network)]) == 0
        return out

    return run


@pytest.fixture(scope="module")
def poisoned(train_digits: Write) -> Path:
    return train_digits(planted=PLANTED)


def call(*arguments: object):
    return CliRunner().invoke(app, ["data", "screen", *map(str, arguments)])


def test_planted_images_are_named_and_their_class_is_suspect(poisoned):
    result = call(poisoned, "--json", "--strict")
    assert result.exit_code == 1
    assert "refused: 1 classes are suspect: 7" in result.stderr
    found = json.loads(result.stdout)
    assert [each["label"] for each in found["classes"] if each["is_suspect"]] == ["7"]
    with (poisoned / "poison.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["class_is_suspect"] == "yes"]
    clustered, spectral = (
        {Path(row["file"]).name for row in rows if how in row["reason"]} for how in ("cluster", "spectral")
    )
    planted = {path.name for path in (poisoned.parent / "data/train/7").glob("planted-*")}
    features = read_features(poisoned, progress=False)
    seen = planted & {Path(name).name for name in features.names}  # some were drawn into val and test
    assert len(seen) >= 8
    assert len(clustered & seen) / len(seen) >= 0.9
    assert len(clustered & seen) / len(clustered) >= 0.9
    assert len(spectral & seen) / len(spectral) >= 0.3  # by chance it would be a tenth
    assert all(float(row["score"]) >= 0 for row in rows)


def test_a_clean_run_has_no_suspect_class(train_digits):
    run = train_digits(planted=0)
    result = call(run, "--strict")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("nothing found") == len(DIGITS)
    rows = (run / "poison.csv").read_text().splitlines()
    assert rows[0] == "file,class,class_is_suspect,reason,score"
    assert all(",no,spectral," in row for row in rows[1:])


def test_a_class_that_was_not_judged_fails_where_strict(color_run, photos, tmp_path):
    run = shutil.copytree(color_run, tmp_path / "run")
    (run / "train_config.yaml").write_text(f"data: {photos}\n")
    result = call(run, "--strict")
    assert result.exit_code == 1
    assert "refused: 3 classes were not judged: " in result.stderr
    assert "expected 30 images of each or more" in result.stderr
    assert call(run).exit_code == 0


def make_features(values: np.ndarray, *, looks_other: slice = slice(0)) -> Features:
    """Features of a class a, and of as many of a class b, whose pictures those in `looks_other` are like."""
    count, random = len(values), np.random.default_rng(1)
    names = tuple(f"{number:03}" for number in range(2 * count))
    pictures = random.integers(0, 100, (2 * count, 16))
    pictures[count:] += 150
    pictures[:count][looks_other] += 150
    both = np.concatenate([values, random.normal(size=values.shape) - 20]).astype(np.float32)
    return Features("made", ("a", "b"), names, np.repeat([0, 1], count), both, pictures.astype(np.uint8), ())


def test_the_spectral_score_is_the_squared_projection_on_the_widest_direction():
    values = np.array([[-3.0, 0.1], [3.0, -0.1], [0.0, 0.2], [0.0, -0.2]]) + 5
    np.testing.assert_allclose(score_spectral(values), [9, 9, 0, 0], atol=0.02)


@pytest.mark.parametrize(
    ("apart", "looks_other", "is_suspect"),
    [
        (12, slice(12), True),
        (12, slice(0), False),  # a rare look of the class itself
        (0, slice(12), False),  # the network sees nothing apart
        (50, slice(50), False),  # half of a class is no small part
    ],
)
def test_a_class_is_suspect_where_a_small_part_lies_apart_and_looks_like_another_class(apart, looks_other, is_suspect):
    values = np.random.default_rng(0).normal(size=(100, 2))
    values[:apart] += 9
    (first, second) = screen_features(make_features(values, looks_other=looks_other)).classes
    assert first.is_suspect is is_suspect
    assert not second.is_suspect
    clustered = {each.name for each in first.named if "cluster" in each.reasons}
    assert clustered == ({f"{number:03}" for number in range(12)} if is_suspect else set())


def test_the_spectral_signature_names_one_and_a_half_times_the_share():
    values = np.random.default_rng(0).normal(size=(100, 8))
    (found, _) = screen_features(make_features(values), share=0.1).classes
    assert len(found.named) == 15
    scores = [each.score for each in found.named]
    assert scores == sorted(scores, reverse=True)


def test_few_images_equal_ones_and_broken_features_are_not_judged_as_suspect():
    few = np.random.default_rng(0).normal(size=(10, 4))
    equal, broken = np.ones((40, 4)), np.full((40, 4), np.nan)
    for values in (few, equal, broken):
        (found, _) = screen_features(make_features(values)).classes
        assert not found.is_suspect
    unjudged = [[each.label for each in screen_features(make_features(v)).unjudged] for v in (few, equal, broken)]
    assert unjudged == [["a", "b"], [], ["a"]]
    assert cluster(equal)[1] == 0.0
    assert "cluster" not in format_named(screen_features(make_features(equal)))


def test_a_share_of_one_half_is_refused(poisoned):
    result = call(poisoned, "--share", 0.5)
    assert isinstance(result.exception, UsageError)
    assert "expected above 0 and below 0.5" in str(result.exception)
