import numpy as np
import pytest
from scipy.stats import bootstrap
from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

from imgcls.evaluation.bootstrap import (
    Answers,
    bootstrap_auroc,
    bootstrap_scores,
    measure_auroc,
    measure_intervals,
    score,
)

CLASSES = 8


@pytest.fixture(scope="module")
def answers() -> tuple[np.ndarray, np.ndarray]:
    """Labels (400,) and probabilities (400, 8) that are right about two times in three."""
    random = np.random.default_rng(3)
    labels = random.choice(CLASSES, 400, p=[0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05])
    logits = random.normal(size=(400, CLASSES))
    logits[np.arange(400), labels] += 2
    powers = np.exp(logits)
    return labels, (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def test_scores_are_scikit_learns(answers):
    labels, probabilities = answers
    found = score(labels, Answers.of(labels, probabilities), classes=CLASSES)
    best = probabilities.argmax(axis=1)
    assert found["accuracy"] == pytest.approx((best == labels).mean())
    for how in ("macro", "weighted"):
        expected = precision_recall_fscore_support(labels, best, average=how)[:3]
        assert [found[f"{name}_{how}"] for name in ("precision", "recall", "f1")] == pytest.approx(expected)
    top = np.argsort(-probabilities, axis=1)[:, :5]
    assert found["top5"] == pytest.approx((top == labels[:, None]).any(axis=1).mean())


def test_of_equal_probabilities_the_first_count_among_the_five_best():
    labels, constant = np.arange(600) % 6, np.full((600, 6), 1 / 6, dtype=np.float32)
    assert score(labels, Answers.of(labels, constant), classes=6)["top5"] == pytest.approx(5 / 6)
    ranked = np.array([[0.1, 0.1, 0.3, 0.1, 0.1, 0.1, 0.2]] * 7, dtype=np.float32)  # 2 and 6, then 0, 1 and 3
    assert Answers.of(np.arange(7), ranked).in_top.tolist() == [True, True, True, True, False, False, True]


def test_auroc_is_scikit_learns_with_ties_too(answers):
    labels, probabilities = answers
    for scores in (probabilities, probabilities.round(1)):
        singles = [roc_auc_score(labels == index, scores[:, index]) for index in range(CLASSES)]
        assert measure_auroc(labels, scores) == pytest.approx(np.mean(singles))


def test_auroc_of_one_class_only_is_not_defined(answers):
    _, probabilities = answers
    assert measure_auroc(np.zeros(400, dtype=np.int64), probabilities) is None


def test_a_resample_of_one_class_alone_has_no_auroc():
    labels = np.eye(1, 40, dtype=np.int64)[0]  # one image against 39
    scores = np.linspace(0.9, 0.1, 40, dtype=np.float32)
    probabilities = np.stack([1 - scores, scores], axis=1)
    perfect, useless = bootstrap_auroc(labels, [probabilities, probabilities[:, ::-1]], seed=1) or []
    assert set(perfect) == {1.0}
    assert set(useless) == {0.0}
    assert len(perfect) == len(useless) == pytest.approx(2000 * (1 - (1 - 1 / 40) ** 40), abs=100)


def test_interval_is_that_of_scipys_bootstrap_of_the_images(answers):
    labels, probabilities = answers
    right = (probabilities.argmax(axis=1) == labels).astype(float)
    expected = bootstrap(
        (right,), np.mean, vectorized=True, n_resamples=5000, method="percentile", rng=1
    ).confidence_interval
    found = measure_intervals(labels, Answers.of(labels, probabilities), classes=CLASSES, resamples=5000)["accuracy"]
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.006)


def test_resampled_f1_is_that_of_resampled_images(answers):
    labels, probabilities = answers
    best, random = probabilities.argmax(axis=1), np.random.default_rng(5)
    slow = []
    for _ in range(300):
        drawn = random.integers(0, 400, 400)
        slow.append(
            [
                precision_recall_fscore_support(labels[drawn], best[drawn], average=how, zero_division=0)[2]
                for how in ("macro", "weighted")
            ]
        )
    [fast] = bootstrap_scores(labels, [Answers.of(labels, probabilities)], classes=CLASSES)
    for column, name in enumerate(("f1_macro", "f1_weighted")):
        expected = np.array(slow)[:, column]
        assert np.mean(fast[name]) == pytest.approx(np.mean(expected), abs=0.006)
        assert np.std(fast[name]) == pytest.approx(np.std(expected), rel=0.2)


def test_equal_seeds_draw_equal_resamples_and_models_share_them(answers):
    labels, probabilities = answers
    mine = Answers.of(labels, probabilities)
    one, other = bootstrap_scores(labels, [mine, mine], classes=CLASSES, seed=4)
    assert (one["f1_macro"] == other["f1_macro"]).all()
    assert (one["f1_macro"] == bootstrap_scores(labels, [mine, mine], classes=CLASSES, seed=4)[0]["f1_macro"]).all()
    assert (one["accuracy"] != bootstrap_scores(labels, [mine], classes=CLASSES, seed=5)[0]["accuracy"]).any()
    first, second = bootstrap_auroc(labels, [probabilities, probabilities], seed=1, resamples=50) or []
    assert (first == second).all()


def test_a_faultless_model_is_not_called_certain():
    labels = np.arange(30) % 3
    intervals = measure_intervals(labels, Answers.of(labels, np.eye(3, dtype=np.float32)[labels]), classes=3)
    assert intervals["accuracy"].method == "wilson"
    assert intervals["accuracy"].low == pytest.approx(0.886, abs=0.002)  # 30 of 30
    assert intervals["accuracy"].high == 1
    assert intervals["recall_weighted"] == intervals["accuracy"]


def test_ninety_five_of_a_hundred_intervals_hold_the_truth():
    random, held = np.random.default_rng(0), 0
    for number in range(200):
        labels = np.zeros(150, dtype=np.int64)
        predicted = (random.random(150) > 0.8).astype(np.int64)
        answers = Answers(predicted, predicted == labels)
        interval = measure_intervals(labels, answers, classes=2, seed=number, resamples=500)["accuracy"]
        held += interval.low <= 0.8 <= interval.high
    assert 0.89 <= held / 200 <= 0.99
