import base64
import io
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from imgcls.cli.main import app
from imgcls.errors import ArchiveError, RunError
from imgcls.evaluation.numbers import read_numbers
from imgcls.evaluation.reports import drop_report
from imgcls.evaluation.robustness import measure_robustness
from imgcls.evaluation.run import evaluate_run
from imgcls.report.charts import draw_bars, draw_curves
from imgcls.report.collect import collect_run
from imgcls.report.render import render
from model.spec import ModelSpec

HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "a$b_$ & {{ 7*7 }}")
SPEC = ModelSpec(
    parameters={"widths": [3], "hidden": 3}, size=4, resize=4, mean=(0.0,) * 3, std=(1.0,) * 3, classes=HOSTILE
)


class Page(HTMLParser):
    """The tags, attributes and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of hostile names, classes and cameras; some are labelled wrongly."""
    root, rows = tmp_path_factory.mktemp("data"), ["path,label,split,camera"]
    for number in range(12):
        name = f"<b onclick=alert(3)> {number}.png"
        Image.new("RGB", (8, 8), [(255, 0, 0), (0, 255, 0), (0, 0, 255)][number % 3]).save(root / name)
        label = HOSTILE[(number + (number > 8)) % 3].replace('"', '""')
        rows.append(f'{name},"{label}",test,"</td><svg onload=alert(4)>"')
    path = root / "t.csv"
    path.write_text("\n".join(rows))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, write_run, table: Path) -> Path:
    run = write_run(tmp_path_factory.mktemp("runs") / "<i>run", spec=SPEC)
    (run / "train_config.yaml").write_text("data: '<script>alert(5)</script>'\nlr: 0.1\n")
    (run / "history.csv").write_text("epoch,lr,train_loss,val_loss,train_accuracy,val_accuracy\n1,0.1,2,3,0.4,0.3\n")
    evaluate_run(run, tests={"t": str(table)}, slices=["camera"])
    measure_robustness(run, tests={"t": str(table)}, corruptions=["fog"], severities=[1, 5])
    return run


@pytest.fixture(scope="module")
def page(run: Path, tmp_path_factory: pytest.TempPathFactory, write_run, table: Path) -> str:
    baseline = write_run(tmp_path_factory.mktemp("baseline") / "<u>old", spec=SPEC)
    evaluate_run(baseline, tests={"t": str(table)})
    CliRunner().invoke(app, ["report", str(run), "--against", str(baseline)], catch_exceptions=False)
    return (run / "report.html").read_text()


def test_hostile_names_are_shown_and_inject_nothing(page: str):
    parsed = Page(page)
    assert {"script", "b", "i", "u", "iframe", "object", "link"} & set(parsed.tags) <= {"b"}
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    texts = " ".join(parsed.texts)
    assert all(name in texts for name in HOSTILE)
    assert "<i>run" in texts
    assert "<b onclick=alert(3)>" in texts
    assert "</td><svg onload=alert(4)>" in texts
    assert "49" not in HOSTILE[2]  # no template in a template
    assert "{{ 7*7 }}" in texts


def test_page_is_one_file_that_loads_nothing(page: str):
    parsed = Page(page)
    sources = [value for name, value in parsed.attributes if name in {"src", "href", "xlink:href", "action", "data"}]
    assert sources
    assert all(value.startswith(("data:image/", "#")) for value in sources)
    assert "url(http" not in page
    assert ("http-equiv", "Content-Security-Policy") in parsed.attributes


def test_page_tells_every_part(page: str):
    texts = " ".join(Page(page).texts)
    for part in ("Confusion", "Reliability", "Worst mistakes", "Most confused pairs", "By camera", "Under corruption"):
        assert part in texts
    for part in ("Against <u>old", "McNemar", "Training", "Data", "Limits", "75.00 %"):
        assert part in texts
    picture = next(value for name, value in Page(page).attributes if name == "src")
    assert Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2]))).size == (112, 112)


def test_plots_share_no_ids_and_take_the_pages_colour():
    curves = [draw_curves({"loss": [2, 1]}, epochs=[1, 2], label=label) for label in ("one", "other")]
    ids = [{value for name, value in Page(each).attributes if name == "id"} for each in curves]
    assert "currentColor" in curves[0]
    clips = [{each for each in found if each.startswith("p") and len(each) > 9} for found in ids]
    assert clips[0] and not clips[0] & clips[1]
    bars = draw_bars({"train": {HOSTILE[0]: 3, "日本": 1}}, label="images")  # which our font lacks: no word of that
    assert "<script>" not in bars
    assert "日本" in bars


def test_run_that_was_not_evaluated_or_has_changed_is_refused(tmp_path: Path, write_run, table: Path):
    run = write_run(tmp_path / "run", spec=SPEC)
    with pytest.raises(RunError, match="was not evaluated; run imgcls evaluate"):
        collect_run(run)
    evaluate_run(run, tests={"t": str(table)})
    other = write_run(tmp_path / "other", spec=SPEC, change=lambda state: state["classifier.4.bias"].add_(1))
    (run / "weights.safetensors").write_bytes((other / "weights.safetensors").read_bytes())
    with pytest.raises(ArchiveError, match="measured on other weights"):
        collect_run(run)


def test_private_run_shows_no_digest_of_its_training_images(run: Path, tmp_path: Path):
    private = shutil.copytree(run, tmp_path / "private")
    splits = {
        name: {"files": 3, "unreadable": 0, "classes": {"a": 3}, "sha256": f"5ec2e7{name}"}
        for name in ("train", "test")
    }
    privacy = {"noise_multiplier": 1, "clip_norm": 1, "sample_rate": 0.1, "steps": 3, "epsilon": 2, "delta": 0.1}
    code = {"git_commit": None, "git_dirty": None, "sha256": "c0de", "locks": {}}
    record = {"code": code, "data": {"source": "photos", "splits": splits}, "seed": 0, "device": "cpu", "parent": None}
    (private / "train_record.json").write_text(json.dumps(record | {"versions": {}, "privacy": privacy}))
    page = render("run.html.j2", vars(collect_run(private)))
    assert "5ec2e7test" in page
    assert "5ec2e7train" not in page
    assert "left out: the run is private" in page


@pytest.mark.parametrize("is_former", [False, True])
def test_corruptions_of_other_images_are_left_out_with_a_note(run: Path, tmp_path: Path, table: Path, is_former):
    """Also of the record of an earlier version, which does not say which images they were."""
    copied = shutil.copytree(run, tmp_path / "run")
    path = copied / "evaluation" / "t.robustness.json"
    if is_former:
        fields = json.loads(path.read_text())
        path.write_text(json.dumps({key: fields[key] for key in fields if key not in {"images_sha256", "skipped"}}))
    else:
        measure_robustness(copied, tests={"t": f"{table},noise=5"}, corruptions=["fog"], severities=[1])
    [test] = collect_run(copied).tests
    page = " ".join(Page(render("run.html.j2", vars(collect_run(copied)))).texts)
    assert test.robustness is None
    assert "of its images under ImageNet-C" not in page
    assert f"not known to be of these images; measure it with imgcls robustness {copied} --test t={table}" in page


def test_run_of_which_a_killed_evaluation_left_no_numbers_is_refused(run: Path, tmp_path: Path):
    copied = shutil.copytree(run, tmp_path / "run")
    drop_report(copied, "t")
    with pytest.raises(RunError, match="was not evaluated; run imgcls evaluate"):
        collect_run(copied)


@pytest.mark.parametrize("history", ["lr,epoch\n0.1\n", f"epoch,lr\n1,{'9' * 200_000}\n"])
def test_a_history_that_is_broken_is_named_with_what_to_do(run: Path, tmp_path: Path, history: str):
    copied = shutil.copytree(run, tmp_path / "run")
    (copied / "history.csv").write_text(history)
    with pytest.raises(RunError, match=r"history\.csv: cannot be read: .*; delete it to report without curves"):
        collect_run(copied)
    with pytest.raises(RunError, match=r"history\.csv: cannot be read: .*; delete it to export without a history"):
        read_numbers(copied)


def test_a_baseline_that_is_no_run_is_refused(run: Path, tmp_path: Path):
    with pytest.raises(RunError, match="nowhere: is no run directory; make one with"):
        collect_run(run, baseline=tmp_path / "nowhere")


def test_baseline_without_the_test_set_is_told_not_refused(run: Path, tmp_path: Path, write_run):
    page = render("run.html.j2", vars(collect_run(run, baseline=write_run(tmp_path / "empty", spec=SPEC))))
    assert "Not compared: " in page
