"""A plan keeps its promises over thousands of rollouts: good versions go through, bad ones go back, and soon."""

from pathlib import Path

import pytest

from imgcls.rollout.plan import Analysis, Plan
from imgcls.rollout.simulate import Truth, simulate
from imgcls.rollout.tables import list_needed_answers, list_outcomes

ROLLOUTS = 2000
PLAN = Plan(analysis=Analysis(max_wait_s=60.0))


def test_equal_version_is_hardly_ever_failed():
    outcomes = simulate(PLAN, Truth(), rollouts=ROLLOUTS)
    assert outcomes.failed <= 0.02
    assert outcomes.promoted >= 0.95


@pytest.mark.parametrize(
    "truth",
    [
        Truth(error_rate=0.02, stable_error_rate=0.019),
        Truth(error_rate=0.012),
        Truth(slowdown=1.5),
        Truth(agreement=0.95),
        Truth(drift=0.05),
    ],
    ids=["error_rate", "max_increase", "max_ratio", "agreement", "drift"],
)
def test_version_exactly_at_a_limit_is_neither_failed_nor_promoted_wrongly(truth):
    outcomes = simulate(PLAN, truth, rollouts=ROLLOUTS // 2)
    assert outcomes.failed <= 0.05
    assert outcomes.promoted <= 0.05


@pytest.mark.parametrize(
    ("truth", "answers"),
    [
        (Truth(error_rate=0.05), 500),
        (Truth(error_rate=1.0), 100),
        (Truth(slowdown=3.0), 500),
        (Truth(agreement=0.1, drift=0.5), 100),
    ],
    ids=["5 % errors", "only errors", "slow", "permuted labels"],
)
def test_bad_version_is_failed_within_few_answers(truth, answers):
    outcomes = simulate(Plan(), truth, rollouts=ROLLOUTS // 2)
    assert outcomes.failed == 1
    assert outcomes.answers_until_failed <= answers


def test_documented_tables_are_what_the_code_computes():
    text = (Path(__file__).parents[2] / "docs" / "rollout-analysis.md").read_text()
    for row in list_needed_answers():
        assert f"| {' | '.join(row[:3])} | {row[3]:,} |" in text
    for name, *_ in list_outcomes(rollouts=1):
        assert f"| {name} | " in text
