import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest
from typer.testing import CliRunner

from imgcls.archive.build import build_archive
from imgcls.cli.main import app
from imgcls.errors import RunError, UsageError
from imgcls.evaluation.metrics import compute_metrics
from imgcls.evaluation.stored import Stored, write_stored
from imgcls.gate.judge import judge_run
from imgcls.gate.policy import read_policy

IMAGES = "a" * 64
CLASSES = ("red", "green", "blue")


def store(
    run: Path, *, right: int, images: int, name: str = "clean", images_sha256: str = IMAGES, seed: int = 0
) -> Path:
    """Writes answers as imgcls evaluate does: the first `right` of a seeded order are right."""
    labels = np.arange(images) % 3
    predicted = labels.copy()
    wrong = np.random.default_rng(seed).permutation(images)[right:]
    predicted[wrong] = (labels[wrong] + 1) % 3
    probabilities = (0.7 * np.eye(3)[predicted] + 0.1).astype(np.float32)
    camera = np.where(np.arange(images) < images // 2, "day", "night")
    names = np.array([f"{number:05}" for number in range(images)])
    write_stored(run, name, Stored(names, labels, probabilities, CLASSES, {"camera": camera}, images_sha256), run=run)
    return run


@pytest.fixture
def run(tmp_path: Path, write_run) -> Path:
    return store(write_run(tmp_path / "run"), right=950, images=1000)


@pytest.fixture
def baseline(tmp_path: Path, write_run) -> Path:
    run = write_run(tmp_path / "baseline", change=lambda state: state["classifier.4.bias"].add_(0.5))
    return store(run, right=955, images=1000, seed=1)


def judge(run: Path, text: str, *, baseline: Path | None = None):
    path = run.parent / "gate.toml"
    path.write_text(text)
    policy, sha256 = read_policy(path)
    return judge_run(run, policy, policy_sha256=sha256, baseline=baseline)


def rule(text: str) -> str:
    return f'[[rule]]\ntest = "clean"\n{text}\n'


@pytest.mark.parametrize(
    ("floor", "verdict"), [(0.9, "successful"), (0.945, "inconclusive"), (0.955, "inconclusive"), (0.99, "failed")]
)
def test_a_floor_is_judged_by_the_whole_interval(run: Path, floor, verdict):
    report = judge(run, rule(f'metric = "accuracy"\nmin = {floor}'))
    assert report.verdict == verdict
    assert report.is_passed == (verdict == "successful")


def test_a_floor_by_estimate_is_judged_by_the_number(run: Path):
    assert judge(run, rule('metric = "accuracy"\nmin = 0.95\nby = "estimate"')).verdict == "successful"
    assert judge(run, rule('metric = "accuracy"\nmin = 0.951\nby = "estimate"')).verdict == "failed"


def test_inconclusive_passes_only_where_the_policy_says_so(run: Path):
    text = rule('metric = "accuracy"\nmin = 0.945')
    assert not judge(run, text).is_passed
    assert judge(run, 'inconclusive = "pass"\n' + text).is_passed


@pytest.mark.parametrize(("drop", "verdict"), [(0.03, "successful"), (0.01, "inconclusive")])
def test_a_drop_within_its_margin_is_no_drop(run: Path, baseline: Path, drop, verdict):
    for metric in ("accuracy", "f1_macro"):
        report = judge(run, rule(f'metric = "{metric}"\nmax_drop = {drop}'), baseline=baseline)
        assert report.verdict == verdict, report.findings


@pytest.mark.parametrize(("images", "verdict"), [(100, "inconclusive"), (300, "inconclusive"), (400, "successful")])
def test_few_equal_answers_do_not_prove_that_nothing_was_lost(tmp_path: Path, write_run, images, verdict):
    """A run that loses one image of a hundred agrees on all of 300 images once in twenty times."""
    one, other = (store(write_run(tmp_path / name), right=images, images=images) for name in ("one", "other"))
    [finding] = judge(one, rule('metric = "accuracy"\nmax_drop = 0.01'), baseline=other).findings
    assert (finding.verdict, finding.value) == (verdict, 0)
    assert finding.low < 0 < finding.high


@pytest.mark.parametrize("metric", ["accuracy", "f1_macro", "recall_macro", "auroc"])
def test_no_drop_at_all_is_not_proved_by_equal_answers(tmp_path: Path, write_run, metric):
    one, other = (store(write_run(tmp_path / name), right=400, images=400) for name in ("one", "other"))
    report = judge(one, rule(f'metric = "{metric}"\nmax_drop = 0'), baseline=other)
    assert (report.verdict, report.is_passed) == ("inconclusive", False)


def test_a_drop_is_that_of_its_slice(tmp_path: Path, write_run):
    """The accuracy of the slice falls by a tenth, that of the whole by a twentieth."""
    good, worse = write_run(tmp_path / "good"), write_run(tmp_path / "worse")
    labels, names = np.zeros(1000, dtype=np.int64), np.array([f"{number:05}" for number in range(1000)])
    camera = np.where(np.arange(1000) < 500, "day", "night")
    for run, lost in ((good, 0), (worse, 50)):
        predicted = labels.copy()
        predicted[:lost] = 1
        answers = (0.7 * np.eye(3)[predicted] + 0.1).astype(np.float32)
        write_stored(run, "clean", Stored(names, labels, answers, CLASSES, {"camera": camera}, IMAGES), run=run)
    text = rule('metric = "accuracy"\nslice = "camera"\nmax_drop = 0.02')
    day, night = judge(worse, text, baseline=good).findings
    assert (day.verdict, day.value, day.samples) == ("failed", -0.1, 500)
    assert (night.verdict, night.value) == ("successful", 0)


def test_top5_of_five_classes_is_no_demand(run: Path, baseline: Path):
    for demand in ("min = 0.9", "max_drop = 0.1"):
        with pytest.raises(UsageError, match="top5 of clean: the run has 3 classes, and the best 5 are all of them"):
            judge(run, rule(f'metric = "top5"\n{demand}'), baseline=baseline)


def test_a_real_drop_fails(tmp_path: Path, write_run, baseline: Path):
    worse = store(write_run(tmp_path / "worse"), right=850, images=1000)
    [finding] = judge(worse, rule('metric = "accuracy"\nmax_drop = 0.02'), baseline=baseline).findings
    assert (finding.verdict, finding.value) == ("failed", pytest.approx(-0.105))
    [finding] = judge(worse, rule('metric = "auroc"\nmax_drop = 0.02'), baseline=baseline).findings
    assert finding.verdict == "failed"


def test_few_images_decide_nothing_however_good_they_are(tmp_path: Path, write_run):
    run = store(write_run(tmp_path / "few"), right=40, images=40)
    [finding] = judge(run, rule('metric = "accuracy"\nmin = 0.5')).findings
    assert (finding.verdict, finding.reason) == ("inconclusive", "40 images; at least 100 are demanded")
    assert judge(run, rule('metric = "accuracy"\nmin = 0.5\nmin_samples = 40')).verdict == "successful"


def test_a_faultless_test_set_does_not_prove_every_floor(tmp_path: Path, write_run):
    run = store(write_run(tmp_path / "all"), right=100, images=100)
    assert judge(run, rule('metric = "accuracy"\nmin = 0.99')).verdict == "inconclusive"
    assert judge(run, rule('metric = "accuracy"\nmin = 0.95')).verdict == "successful"
    for metric in ("f1_macro", "precision_macro", "auroc"):  # the rarest class has 33 images
        [finding] = judge(run, rule(f'metric = "{metric}"\nmin = 0.95')).findings
        assert (finding.verdict, finding.value, finding.high) == ("inconclusive", 1, 1)
        assert finding.low == pytest.approx(0.896, abs=0.001)
        assert judge(run, rule(f'metric = "{metric}"\nmin = 0.89')).verdict == "successful"
        assert judge(run, rule(f'metric = "{metric}"\nmin = 0.95\nby = "estimate"')).verdict == "successful"


@pytest.mark.parametrize(("right", "images", "floor"), [(100, 100, 0.965), (99, 100, 0.965), (995, 1000, 0.99)])
def test_a_mistake_does_not_help_over_a_floor(tmp_path: Path, write_run, right, images, floor):
    run = store(write_run(tmp_path / "run"), right=right, images=images)
    [finding] = judge(run, rule(f'metric = "accuracy"\nmin = {floor}')).findings
    expected = binomtest(right, images).proportion_ci(0.95, method="wilson")
    assert (finding.low, finding.high) == pytest.approx((expected.low, expected.high))
    assert finding.verdict == "inconclusive"


def test_no_images_prove_a_floor_of_one_and_that_is_said(run: Path, tmp_path: Path, write_run):
    faultless = store(write_run(tmp_path / "all"), right=100, images=100)
    [finding] = judge(faultless, rule('metric = "accuracy"\nmin = 1')).findings
    assert finding.verdict == "inconclusive"
    assert finding.reason.endswith('at least 1, which no images prove; demand less, or by = "estimate"')
    assert judge(run, rule('metric = "accuracy"\nmin = 1')).verdict == "failed"
    [finding] = judge(run, rule('metric = "accuracy"\nmin = 0.95')).findings
    assert finding.reason.endswith("more images would tell")


def test_a_slice_of_one_class_alone_is_named_where_auroc_is_judged(tmp_path: Path, write_run):
    labels = np.arange(300) % 3
    place = np.where(labels == 0, "north", "south")
    names = np.array([f"{number:05}" for number in range(300)])
    stored = Stored(names, labels, np.full((300, 3), 1 / 3, dtype=np.float32), CLASSES, {"place": place}, IMAGES)
    run = write_run(tmp_path / "run")
    write_stored(run, "clean", stored, run=run)
    for demand in ("min = 0.5", "max_drop = 0.5"):
        with pytest.raises(RunError, match="clean of place=north: auroc is not defined where all images are of one"):
            judge(run, rule(f'metric = "auroc"\nslice = "place"\n{demand}'), baseline=run)


def test_each_slice_is_judged(run: Path):
    report = judge(run, rule('metric = "accuracy"\nslice = "camera"\nmin = 0.9'))
    assert [finding.slice for finding in report.findings] == ["camera=day", "camera=night"]
    [finding] = judge(run, rule('metric = "recall_macro"\nslice = "camera"\nvalue = "night"\nmin = 0.5')).findings
    assert (finding.slice, finding.samples) == ("camera=night", 500)
    wrong = 'inconclusive = "pass"\n' + rule('metric = "accuracy"\nslice = "camera"\nvalue = "nihgt"\nmin = 0.5')
    with pytest.raises(RunError, match="none of its images has camera = 'nihgt'; they have 'day', 'night'; mend"):
        judge(run, wrong)


@pytest.mark.parametrize(("metric", "limit", "verdict"), [("ece", 0.2, "successful"), ("loss", 0.1, "failed")])
def test_loss_and_ece_have_a_ceiling(run: Path, metric, limit, verdict):
    assert judge(run, rule(f'metric = "{metric}"\nmax = {limit}')).verdict == verdict


def test_the_loss_of_answers_that_are_sure_and_wrong_is_that_of_metrics_json(run: Path):
    labels, probabilities = np.arange(300) % 3, np.eye(3, dtype=np.float32)[(np.arange(300) + 1) % 3]
    names = np.array([f"{number:05}" for number in range(300)])
    write_stored(run, "clean", Stored(names, labels, probabilities, CLASSES, {}, IMAGES), run=run)
    [finding] = judge(run, rule('metric = "loss"\nmax = 20.0')).findings
    assert finding.value == compute_metrics(labels, probabilities, classes=CLASSES).loss
    assert finding.verdict == "failed"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "rule"),
        (rule('metric = "accuracy"'), "demands nothing"),
        (rule('metric = "speed"\nmin = 1'), "speed"),
        (rule('metric = "loss"\nmin = 0.1'), "give it max alone"),
        (rule('metric = "accuracy"\nmax = 0.1'), "not max"),
        (rule('metric = "accuracy"\nmin = 95'), "expected 0..1"),
        (rule('metric = "accuracy"\nmin = 0.9\nvalue = "night"'), "no slice"),
        (rule('metric = "accuracy"\nmin = 0.9\ntypo = 1'), "typo"),
        (rule('metric = "accuracy"\nmax_drop = 0.1\nby = "estimate"'), "by is for a min"),
        (f'[tests.claen]\nimages_sha256 = "{"b" * 64}"\n' + rule('metric = "accuracy"\nmin = 0.9'), "one of clean"),
        ("confidence = 95\n" + rule('metric = "accuracy"\nmin = 0.9'), "confidence"),
        ("[[rule", "TOML"),
    ],
)
def test_a_policy_that_cannot_be_meant_is_refused(run: Path, text, message):
    with pytest.raises(UsageError, match=message):
        judge(run, text)


def test_what_was_not_measured_is_refused_with_what_to_do(run: Path, baseline: Path):
    with pytest.raises(RunError, match=r"night\.npz: is missing; measure it with imgcls evaluate"):
        judge(run, '[[rule]]\ntest = "night"\nmetric = "accuracy"\nmin = 0.5')
    with pytest.raises(RunError, match="evaluate it with --slice lens"):
        judge(run, rule('metric = "accuracy"\nmin = 0.5\nslice = "lens"'))
    with pytest.raises(UsageError, match="name one with --against"):
        judge(run, rule('metric = "accuracy"\nmax_drop = 0.1'))
    with pytest.raises(RunError, match="the policy demands bbbbbbbbbbbb"):
        judge(run, f'[tests.clean]\nimages_sha256 = "{"b" * 64}"\n' + rule('metric = "accuracy"\nmin = 0.5'))
    store(baseline, right=900, images=1000, images_sha256="c" * 64)
    with pytest.raises(RunError, match="not measured on the same images"):
        judge(run, rule('metric = "accuracy"\nmax_drop = 0.1'), baseline=baseline)


def test_exit_status_table_and_json(run: Path, baseline: Path, tmp_path: Path):
    policy = tmp_path / "gate.toml"

    def ask(text: str, *arguments: str):
        policy.write_text(text)
        return CliRunner().invoke(app, ["gate", str(run), "--policy", str(policy), *arguments])

    good = ask(rule('metric = "accuracy"\nmin = 0.9\nmax_drop = 0.05'), "--against", str(baseline), "--json")
    report = json.loads(good.stdout)
    assert (good.exit_code, report["verdict"], len(report["findings"])) == (0, "successful", 2)
    assert report["policy_sha256"] == hashlib.sha256(policy.read_bytes()).hexdigest()
    bad = ask(rule('metric = "accuracy"\nmin = 0.99'))
    assert bad.exit_code == 1
    assert "refused: failed (1 failed)" in bad.stdout
    assert isinstance(ask("nonsense").exception, UsageError)  # which main() ends with 2
    assert UsageError.exit_code == 2


def test_a_build_demands_the_gate_and_carries_its_verdict(run: Path, baseline: Path, tmp_path: Path):
    policy, mars = tmp_path / "gate.toml", tmp_path / "store"
    arguments = [
        "archive",
        "build",
        str(run),
        "--store",
        str(mars),
        "--gate",
        str(policy),
        "--gate-against",
        str(baseline),
    ]
    policy.write_text(rule('metric = "accuracy"\nmin = 0.99'))
    refused = CliRunner().invoke(app, arguments)
    assert "gate.toml refuses it, refused: failed (1 failed); nothing was built" in str(refused.exception)
    assert not mars.exists()
    policy.write_text(rule('metric = "accuracy"\nmin = 0.9\nmax_drop = 0.05'))
    CliRunner().invoke(app, arguments, catch_exceptions=False)
    with zipfile.ZipFile(mars / "imgcls.mar") as archive:
        text = archive.read("gate.json")
        statement = json.loads(archive.read("provenance.json"))
        assert "Gate: successful, 2 findings" in archive.read("MODEL_CARD.md").decode()
    [product] = [each for each in statement["predicate"]["runDetails"]["byproducts"] if each["name"] == "gate.json"]
    assert product["digest"]["sha256"] == hashlib.sha256(text).hexdigest()
    assert product["annotations"]["verdict"] == json.loads(text)["verdict"] == "successful"


def test_a_build_without_a_gate_has_no_verdict(run: Path, tmp_path: Path):
    with zipfile.ZipFile(build_archive(run, tmp_path / "store")) as archive:
        assert "gate.json" not in archive.namelist()
