import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from imgcls.cli.main import app
from imgcls.data.corruptions import CORRUPTIONS, corrupt
from imgcls.errors import RunError, UsageError
from imgcls.evaluation.robustness import measure_robustness
from imgcls.evaluation.robustness_record import read_robustness
from imgcls.evaluation.run import evaluate_run
from model.errors import NumericError


def draw(side: int, channels: int) -> np.ndarray:
    """A picture with edges, a ramp and some grain, uint8 (C, H, W)."""
    rows, columns = np.mgrid[:side, :side] / side
    base = 60 + 100 * columns + 60 * (np.hypot(rows - 0.5, columns - 0.5) < 0.3)
    grain = np.random.default_rng(0).normal(0, 4, (channels, side, side))
    return (base + grain).clip(0, 255).astype(np.uint8)


# Of elastic_transform 2 is the widest; fog takes contrast, not brightness.
@pytest.mark.parametrize("name", sorted(set(CORRUPTIONS) - {"elastic_transform", "fog"}))
def test_each_corruption_grows_with_its_severity(name):
    pixels = draw(224, 3)
    before = pixels.copy()
    mild, strong = (corrupt(pixels, name, severity=severity, name="a").astype(float) for severity in (1, 5))
    assert (pixels == before).all()
    assert 0.5 < np.abs(mild - pixels).mean() < np.abs(strong - pixels).mean()


def test_fog_takes_contrast():
    pixels = draw(224, 3)
    mild, strong = (corrupt(pixels, "fog", severity=severity, name="a") for severity in (1, 5))
    assert pixels.std() > mild.std()
    assert pixels.std() > strong.std()


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize(("side", "channels"), [(8, 1), (33, 4)])
def test_small_gray_and_transparent_images_keep_their_shape(name, side, channels):
    pixels = draw(side, channels)
    for severity in (1, 5):
        changed = corrupt(pixels, name, severity=severity, name="a")
        assert (changed.shape, changed.dtype) == (pixels.shape, np.uint8)


def test_equal_names_are_corrupted_alike_and_alpha_stays():
    pixels = draw(32, 4)
    one, again, other = (corrupt(pixels, "snow", severity=3, name=name) for name in ("a", "a", "b"))
    assert (one == again).all()
    assert (one != other).any()
    assert (one[3] == pixels[3]).all()


def test_brightness_is_that_of_the_recipe():
    pixels = np.full((3, 4, 4), 100, dtype=np.uint8)
    assert corrupt(pixels, "brightness", severity=3, name="a")[0, 0, 0] == round((100 / 255 + 0.3) * 255)


def test_a_run_is_measured_and_stored_for_its_weights(tmp_path: Path, write_run, photos: Path):
    run = write_run(tmp_path / "run")
    arguments = ["robustness", str(run), "--test", f"t={photos}", "--corruption", "contrast", "--corruption", "snow"]
    shown = CliRunner().invoke(
        app, [*arguments, "--severity", "1", "--severity", "5", "--json"], catch_exceptions=False
    )
    found = json.loads(shown.stdout)["t"]
    assert [(each["corruption"], each["severity"]) for each in found["results"]] == [
        ("contrast", 1),
        ("contrast", 5),
        ("snow", 1),
        ("snow", 5),
    ]
    assert found["clean"] == 1.0
    assert found["results"][3]["accuracy"] < found["clean"]
    assert read_robustness(run, "t").mean == found["mean"]
    write_run(tmp_path / "other", change=lambda state: state["classifier.4.bias"].add_(1))
    (run / "weights.safetensors").write_bytes((tmp_path / "other" / "weights.safetensors").read_bytes())
    assert read_robustness(run, "t") is None


def test_unknown_corruptions_and_severities_are_refused(tmp_path: Path, write_run):
    run = write_run(tmp_path / "run")
    with pytest.raises(UsageError, match="'frost'; expected one of gaussian_noise"):
        measure_robustness(run, tests={"t": "digits"}, corruptions=["frost"])
    with pytest.raises(UsageError, match="expected 1 to 5"):
        measure_robustness(run, tests={"t": "digits"}, severities=[6])


def test_a_record_is_bound_to_the_images_that_evaluate_names(tmp_path: Path, write_run, photos: Path):
    run = write_run(tmp_path / "run")
    found = measure_robustness(
        run, tests={"t": f"{photos},noise=5"}, corruptions=["contrast"], severities=[1], limit=5, progress=False
    )
    report = evaluate_run(run, tests={"t": f"{photos},noise=5"})["t"].report
    assert (found["t"].samples, found["t"].images_sha256) == (5, report.images_sha256)


def test_answers_that_are_nan_have_no_accuracy(tmp_path: Path, write_run, photos: Path):
    run = write_run(tmp_path / "run", change=lambda state: state["classifier.4.bias"].fill_(torch.nan))
    with pytest.raises(NumericError, match="36 of 36 answers are NaN or infinite"):
        measure_robustness(run, tests={"t": str(photos)}, corruptions=["contrast"], severities=[1])
    assert not (run / "evaluation").exists()


def test_files_that_are_left_out_are_told_as_by_evaluate(tmp_path: Path, write_run, photos: Path):
    run, copied = write_run(tmp_path / "run"), shutil.copytree(photos, tmp_path / "photos")
    (copied / "red" / "03.png").write_bytes(b"")
    (copied / "red" / "notes.txt").write_text("x")
    arguments = [str(run), "--test", f"t={copied}"]
    evaluated = CliRunner().invoke(app, ["evaluate", *arguments], catch_exceptions=False)
    chosen = ["--corruption", "contrast", "--severity", "1"]
    measured = CliRunner().invoke(app, ["robustness", *arguments, *chosen], catch_exceptions=False)
    told = [line for line in evaluated.stderr.splitlines() if "left out" in line]
    assert len(told) == 2
    assert [line for line in measured.stderr.splitlines() if "left out" in line] == told
    assert (read_robustness(run, "t").samples, read_robustness(run, "t").skipped) == (35, 2)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, write_run, photos: Path):
    run = write_run(tmp_path / "run")
    (run / "evaluation" / "t.robustness.json").mkdir(parents=True)
    with pytest.raises(RunError, match=r"run/evaluation: cannot be written: Is a directory; make room or mend perm"):
        measure_robustness(run, tests={"t": str(photos)}, corruptions=["contrast"], severities=[1])
