"""Which images of a source an evaluation counts: all, or the split that training held back."""

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from imgcls.cli.main import app
from imgcls.errors import DataError
from imgcls.evaluation.calibrate import calibrate_run
from imgcls.evaluation.reports import read_metrics
from imgcls.evaluation.robustness import measure_robustness
from imgcls.evaluation.run import evaluate_run

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


@pytest.fixture
def run(tmp_path: Path, write_run, photos: Path) -> Path:
    """The run of colours, as if trained on the 36 photographs."""
    run = write_run(tmp_path / "run")
    (run / "train_config.yaml").write_text(f"data: {photos}\n")
    return run


def evaluate(run: Path, *tests: object) -> tuple[dict[str, int], str]:
    """Returns how many images imgcls evaluate counts of each test set, and what it prints on stderr."""
    arguments = [part for test in tests for part in ("--test", str(test))]
    shown = CliRunner().invoke(app, ["evaluate", str(run), "--json", *arguments], catch_exceptions=False)
    return {name: each["samples"] for name, each in json.loads(shown.stdout).items()}, shown.stderr


def test_other_data_without_splits_counts_whole(run: Path, photos: Path, tmp_path: Path):
    other = shutil.copytree(photos, tmp_path / "other")
    single = shutil.copytree(photos / "red", tmp_path / "single" / "red")
    rows = "".join(f"{single}/{number:02}.png,red\n" for number in range(5))
    (tmp_path / "five.csv").write_text(f"path,label\n{rows}")
    tests = f"other={other}", f"one_class={single.parent}", f"five={tmp_path / 'five.csv'}", f"noisy={other},noise=9"
    assert evaluate(run, *tests) == ({"other": 36, "one_class": 12, "five": 5, "noisy": 36}, "")


def test_one_image_is_a_test_set(run: Path, tmp_path: Path):
    (tmp_path / "tiny" / "blue").mkdir(parents=True)
    Image.new("RGB", (8, 8), COLORS["blue"]).save(tmp_path / "tiny" / "blue" / "1.png")
    assert evaluate(run, f"tiny={tmp_path / 'tiny'}") == ({"tiny": 1}, "")


def test_the_runs_own_data_is_drawn_and_that_is_said(run: Path, photos: Path, monkeypatch):
    assert evaluate(run) == ({"test": 5}, "test: 5 of 36 images, the drawn test split\n")
    monkeypatch.chdir(photos.parent)
    counts, said = evaluate(run, f"dark=./{photos.name}/,brightness=0.5", f"val={photos},split=val")
    assert counts == {"dark": 5, "val": 5}
    assert said.splitlines() == [
        "dark: 5 of 36 images, the drawn test split",
        "val: 5 of 36 images, the drawn val split",
    ]


def test_a_split_that_is_asked_for_is_drawn_from_other_data_too(run: Path, photos: Path, tmp_path: Path):
    other = shutil.copytree(photos, tmp_path / "other")
    assert evaluate(run, f"t={other},split=test") == ({"t": 5}, "t: 5 of 36 images, the drawn test split\n")


def test_split_all_takes_every_image(run: Path, photos: Path, tmp_path: Path):
    for split in ("train", "val", "test"):
        shutil.copytree(photos, tmp_path / "divided" / split)
    tests = f"own={photos},split=all", f"divided={tmp_path / 'divided'},split=all", f"test={tmp_path / 'divided'}"
    assert evaluate(run, *tests) == ({"own": 36, "divided": 108, "test": 36}, "")
    assert read_metrics(run / "metrics.json").test_sets["own"].split == "all"


def test_training_images_stay_out_where_the_data_was_moved(tmp_path: Path, train_photos, photos: Path):
    """The configuration names a folder that is gone: the run's record tells its images by their bytes."""
    data = shutil.copytree(photos, tmp_path / "data")
    run = tmp_path / "trained"
    assert train_photos(run, data=data) == 0
    moved = data.rename(tmp_path / "moved")
    other = shutil.copytree(moved, tmp_path / "other")
    for file in sorted(other.glob("*/*.png")):  # as many images, and none of them the run's
        Image.open(file).transpose(Image.Transpose.ROTATE_90).save(file)
    counts, said = evaluate(run, f"moved={moved}", f"other={other}")
    assert (counts, said) == ({"moved": 5, "other": 36}, "moved: 5 of 36 images, the drawn test split\n")


def test_calibration_and_corruption_count_alike(run: Path, photos: Path, tmp_path: Path):
    other = shutil.copytree(photos, tmp_path / "other")
    for number in range(4):
        shutil.copy(photos / "red" / f"{number:02}.png", other / "blue" / f"mislabelled{number}.png")
    told: list[str] = []
    assert calibrate_run(run, source=str(other), on_note=told.append).record.images == 40
    assert calibrate_run(run, source=f"{other},split=train", on_note=told.append).record.images == 28
    assert told == [f"{other},split=train: 28 of 40 images, the drawn train split"]
    arguments = ["robustness", str(run), "--corruption", "snow", "--severity", "1", "--json"]
    shown = CliRunner().invoke(app, [*arguments, "--test", f"t={other}"], catch_exceptions=False)
    assert (json.loads(shown.stdout)["t"]["samples"], shown.stderr) == (40, "")
    shown = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert (json.loads(shown.stdout)["test"]["samples"], shown.stderr) == (
        5,
        "test: 5 of 36 images, the drawn test split\n",
    )


def test_data_of_which_nothing_can_be_used_is_named_by_all(run: Path, tmp_path: Path):
    (tmp_path / "broken" / "red").mkdir(parents=True)
    (tmp_path / "broken" / "red" / "1.png").write_bytes(b"no picture")
    text = f"{tmp_path / 'broken'},split=all"
    for measure in (
        lambda: evaluate_run(run, tests={"t": text}),
        lambda: measure_robustness(run, tests={"t": text}, corruptions=["contrast"], severities=[1]),
        lambda: calibrate_run(run, source=text),
    ):
        with pytest.raises(DataError, match=rf"^{re.escape(text)}: .*1 of 1 files cannot be decoded"):
            measure()


def test_a_library_call_needs_no_listener(run: Path):
    assert evaluate_run(run, tests={})["test"].report.samples == 5
