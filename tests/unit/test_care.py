import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from typer.testing import CliRunner

from imgcls.care.check import check_data
from imgcls.care.findings import LOOKS, DataReport
from imgcls.cli.main import app
from imgcls.errors import DataError, UsageError
from model.errors import NumericError

COLORS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}


def draw(color: str, number: int, *, side: int = 48) -> Image.Image:
    """A picture of a colour with shapes of its own, so that no two look alike."""
    random = np.random.default_rng([number, *COLORS[color]])
    blobs = np.kron(random.integers(-60, 60, (6, 6, 3)), np.ones((8, 8, 1)))
    pixels = (blobs + COLORS[color] + random.integers(-9, 9, (48, 48, 3))).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels).resize((side, side))


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train and test folders with one fault of each kind."""
    root = tmp_path_factory.mktemp("spoilt")
    for split, count in (("train", 16), ("test", 6)):
        for color in COLORS:
            (root / split / color).mkdir(parents=True)
            for number in range(count):
                draw(color, number + 100 * (split == "test")).save(root / split / color / f"{number:02}.png")
    draw("red", 0).save(root / "test" / "red" / "leak.bmp")  # the same pixels in another format
    draw("red", 0).resize((60, 60)).save(root / "train" / "red" / "larger.png")  # near to that leak, too
    draw("red", 1).save(root / "train" / "red" / "copy.png")
    draw("blue", 2).save(root / "train" / "green" / "conflict.png")
    draw("green", 3).resize((60, 60)).save(root / "test" / "green" / "near.jpg", quality=85)
    Image.new("RGB", (48, 48), (1, 1, 1)).save(root / "train" / "blue" / "black.png")
    draw("green", 4).resize((480, 30)).save(root / "train" / "green" / "wide.png")
    draw("red", 5).filter(ImageFilter.GaussianBlur(12)).save(root / "train" / "red" / "soft.png")
    (root / "train" / "red" / "broken.png").write_bytes((root / "train" / "red" / "00.png").read_bytes()[:200])
    draw("blue", 50).save(root / "train" / "red" / "mislabelled.png")
    return root


@pytest.fixture(scope="module")
def report(spoilt: Path) -> DataReport:
    return check_data(str(spoilt), progress=False)


def names(report: DataReport, kind: str) -> list[set[str]]:
    return [{Path(image.name).name for image in each.images} for each in report.findings if each.kind == kind]


def test_each_fault_is_found_under_its_name(report: DataReport):
    assert names(report, "corrupt") == [{"broken.png"}]
    assert names(report, "leaks") == [{"00.png", "leak.bmp"}]
    assert names(report, "duplicates") == [{"01.png", "copy.png"}]
    assert names(report, "conflicts") == [{"02.png", "conflict.png"}]
    assert {"near.jpg", "03.png"} in names(report, "near-leaks")
    assert {"00.png", "larger.png", "leak.bmp"} in names(report, "near-leaks")
    assert {"01.png", "copy.png"} not in names(report, "near-duplicates")
    odd = {next(iter(each)) for each in names(report, "odd")}
    assert {"black.png", "wide.png"} <= odd


def test_mislabelled_image_is_suspected(report: DataReport):
    assert report.labels_checked
    suspects = names(report, "labels")
    assert {"mislabelled.png"} in suspects
    assert len(suspects) <= 6
    [finding] = [each for each in report.findings if each.images and each.images[0].name.endswith("mislabelled.png")]
    assert finding.detail.startswith("labelled red, looks like blue")


def test_facts_are_counted(report: DataReport):
    assert report.splits["test"].classes == {"blue": 6, "green": 7, "red": 7}
    assert report.images.widths == (48, 48, 480)
    assert report.images.formats["PNG"] > report.images.formats["JPEG"] == 1


def test_a_clean_set_has_no_findings(tmp_path: Path):
    for color in COLORS:
        (tmp_path / color).mkdir()
        for number in range(12):
            draw(color, number).save(tmp_path / color / f"{number}.png")
    report = check_data(str(tmp_path), progress=False)
    assert [each for each in report.findings if each.kind != "odd"] == []


def test_weak_network_accuses_nobody(tmp_path: Path):
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(20):
            Image.fromarray(random.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(
                tmp_path / name / f"{number}.png"
            )
    report = check_data(str(tmp_path), progress=False)
    assert not report.labels_checked
    assert "its doubt would say nothing; give a trained run with --run" in report.notes[-1]


def test_a_run_is_asked_about_what_it_was_not_trained_on(spoilt: Path, tmp_path: Path, write_run):
    for color in COLORS:
        (tmp_path / "data" / "test" / color).mkdir(parents=True)
        for number in range(8):
            Image.new("RGB", (8, 8), COLORS[color]).save(tmp_path / "data" / "test" / color / f"{number}.png")
    Image.new("RGB", (8, 8), COLORS["blue"]).save(tmp_path / "data" / "test" / "red" / "wrong.png")
    report = check_data(str(tmp_path / "data"), run=write_run(tmp_path / "run"), progress=False)
    assert names(report, "labels") == [{"wrong.png"}]
    assert "on the splits it was not trained on" in report.notes[-1]


def test_a_run_is_not_asked_about_splits_that_it_did_not_draw(tmp_path: Path, write_run):
    for color in COLORS:
        (tmp_path / "data" / color).mkdir(parents=True)
        for number in range(4):
            draw(color, number).save(tmp_path / "data" / color / f"{number}.png")
    run = write_run(tmp_path / "run")
    (run / "train_config.yaml").write_text(f"data: {tmp_path / 'data'}\nseed: 7\nval_fraction: 0.25\n")
    told = "was trained on other splits of .*; to ask it give --seed 7 --val-fraction 0.25 --test-fraction 0.15"
    with pytest.raises(UsageError, match=told):
        check_data(str(tmp_path / "data"), run=run, progress=False)
    assert check_data(str(tmp_path / "data"), run=run, seed=7, val_fraction=0.25, progress=False)


def test_a_run_that_answers_nan_is_no_judge_of_labels(tmp_path: Path, write_run):
    for color in COLORS:
        (tmp_path / "data" / "test" / color).mkdir(parents=True)
        Image.new("RGB", (8, 8), COLORS[color]).save(tmp_path / "data" / "test" / color / "0.png")
    run = write_run(tmp_path / "run", change=lambda state: state["classifier.4.bias"].fill_(float("nan")))
    with pytest.raises(NumericError, match="3 of 3 answers are NaN or infinite"):
        check_data(str(tmp_path / "data"), run=run, progress=False)


def test_uneven_and_missing_classes_are_told(tmp_path: Path):
    for split, counts in (("train", {"red": 48, "green": 3}), ("test", {"red": 3})):
        for color, count in counts.items():
            (tmp_path / split / color).mkdir(parents=True)
            for number in range(count):
                draw(color, number + 100 * (split == "test")).save(tmp_path / split / color / f"{number}.png")
    report = check_data(str(tmp_path), labels=False, progress=False)
    assert report.is_checked("odd")
    found = {each.kind: each.detail for each in report.findings}
    assert found["missing-classes"] == "test has no image of green"
    assert found["imbalance"].startswith("green has 3 images, red has ")


def test_exit_status_html_and_json_for_ci(spoilt: Path, tmp_path: Path):
    page = tmp_path / "page.html"

    def ask(*arguments: str):
        return CliRunner().invoke(app, ["data", "report", str(spoilt), "--no-labels", "--out", str(page), *arguments])

    failed = ask("--fail-on", "leaks,corrupt")
    assert failed.exit_code == 1
    assert "refused: 1 leaks, 1 corrupt" in failed.output
    assert ask("--fail-on", "missing-classes").exit_code == 0
    fields = json.loads(ask("--json").stdout)
    assert fields["counts"]["leaks"] == 1
    assert "image" not in fields["findings"][1]["images"][0]
    text = page.read_text()
    assert text.count('src="data:image/') > 6
    assert "<script" not in text
    assert isinstance(ask("--fail-on", "leaks,typos").exception, UsageError)
    assert isinstance(ask("--fail-on", "labels").exception, DataError)


@pytest.mark.parametrize("kind", LOOKS)
def test_what_no_image_is_large_enough_for_is_not_passed(tmp_path: Path, kind: str):
    for color in COLORS:
        (tmp_path / "test" / color).mkdir(parents=True)
        draw(color, 0, side=20).save(tmp_path / "test" / color / "0.png")
    command = ["data", "report", str(tmp_path), "--no-labels", "--out", str(tmp_path / "r.html"), "--fail-on", kind]
    asked = CliRunner().invoke(app, command)
    told = "no image was searched, and --fail-on asks for it: 3 images have a side below 24 pixels"
    assert str(asked.exception).startswith(f"{kind}: {told}")
    assert asked.stdout.count("│ not checked │") == 1 + len(LOOKS)
    assert (tmp_path / "r.html").read_text().count(">–</b>") == 1 + len(LOOKS)


def test_nothing_that_can_be_decoded_is_one_error(tmp_path: Path):
    (tmp_path / "test" / "red").mkdir(parents=True)
    (tmp_path / "test" / "red" / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"no image can be decoded, first test/red/a\.png"):
        check_data(str(tmp_path), progress=False)
