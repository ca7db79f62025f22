"""Bounds err no more often than they say, also for rare events and small error probabilities; seeds are fixed."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from imgcls.rollout.looks import Look, Schedule
from imgcls.rollout.statistics import (
    bound_difference,
    bound_mean,
    bound_paired_difference,
    bound_proportion,
    bound_quantile,
    bound_ratio,
    count_independent,
    find_quantile_ranks,
)

ERROR = 0.005
DRAWS = 20_000
TOLERATED = ERROR + 4 * math.sqrt(ERROR / DRAWS)  # four standard deviations of the counting itself


def at(error):
    return {"low_error": error, "high_error": error}


@pytest.mark.parametrize(("events", "trials"), [(0, 10), (1, 400), (7, 50), (400, 400)])
def test_proportion_has_the_exact_bounds_of_scipy(events, trials):
    exact = stats.binomtest(events, trials).proportion_ci(0.95, method="exact")
    bounds = bound_proportion(events, trials, **at(0.025))
    assert (bounds.low, bounds.high) == pytest.approx((exact.low, exact.high), abs=1e-12)


def test_nothing_is_known_from_no_trials():
    assert bound_proportion(0, 0, **at(0.05)) == (0, 0, 1)
    assert bound_quantile(np.array([]), 0.99, **at(0.05)).high == math.inf


def test_no_error_in_368_answers_is_below_one_percent():
    needed = math.ceil(math.log(0.025) / math.log(0.99))
    assert needed == 368
    assert bound_proportion(0, needed, **at(0.025)).high <= 0.01
    assert bound_proportion(0, needed - 1, **at(0.025)).high > 0.01


@pytest.mark.parametrize(
    ("first", "second", "n_first", "n_second"),
    [(0.002, 0.002, 500, 9000), (0.012, 0.002, 500, 4500), (0.05, 0.04, 300, 300), (0.5, 0.5, 100, 100)],
)
def test_difference_of_proportions_errs_as_seldom_as_it_says(first, second, n_first, n_second):
    random = np.random.default_rng(1)
    one = bound_proportion(random.binomial(n_first, first, DRAWS), n_first, **at(ERROR))
    other = bound_proportion(random.binomial(n_second, second, DRAWS), n_second, **at(ERROR))
    bounds = bound_difference(one, other)
    assert np.mean(bounds.low > first - second) <= TOLERATED
    assert np.mean(bounds.high < first - second) <= TOLERATED


@pytest.mark.parametrize(("lost", "won"), [(0.02, 0.02), (0.06, 0.01), (0.3, 0.25)])
def test_paired_difference_errs_as_seldom_as_it_says(lost, won):
    random = np.random.default_rng(2)
    drawn = random.multinomial(300, [lost, won, 1 - lost - won], size=4000)
    bounds = [bound_paired_difference(only_old, only_new, 300, **at(0.01)) for only_old, only_new, _ in drawn]
    tolerated = 0.01 + 4 * math.sqrt(0.01 / 4000)
    assert np.mean([each.low > lost - won for each in bounds]) <= tolerated
    assert np.mean([each.high < lost - won for each in bounds]) <= tolerated


@pytest.mark.parametrize("trials", [100, 368, 1000, 5000])
def test_p99_errs_as_seldom_as_it_says(trials):
    low, high = find_quantile_ranks(trials, 0.99, **at(ERROR))
    below = np.random.default_rng(3).binomial(trials, 0.99, DRAWS)  # how many values lie below the true p99
    assert np.mean(below < low) <= TOLERATED
    assert np.mean(below >= high) <= TOLERATED


def test_p99_has_no_upper_bound_from_too_few_values():
    assert bound_quantile(np.arange(367.0), 0.99, **at(0.025)).high == math.inf
    assert bound_quantile(np.arange(368.0), 0.99, **at(0.025)).high == 367


def test_quantile_of_many_values_is_found_among_them():
    values = np.sort(np.random.default_rng(0).lognormal(3, 0.5, 100_000))
    bounds = bound_quantile(values, 0.99, **at(1e-5))
    truth = math.exp(3 + 0.5 * stats.norm.ppf(0.99))
    assert bounds.low < truth < bounds.high
    assert bounds.high / bounds.low < 1.1


@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_ratio_of_p99_errs_as_seldom_as_it_says(spread):
    random = np.random.default_rng(4)
    old = np.sort(random.lognormal(3, spread, (3000, 1500)))
    new = np.sort(random.lognormal(3, spread, (3000, 500)))
    bounds = [
        bound_ratio(bound_quantile(one, 0.99, **at(0.01)), bound_quantile(other, 0.99, **at(0.01)))
        for one, other in zip(new, old, strict=True)
    ]
    tolerated = 0.01 + 4 * math.sqrt(0.01 / 3000)
    assert np.mean([each.low > 1 for each in bounds]) <= tolerated
    assert np.mean([each.high < 1 for each in bounds]) <= tolerated


@pytest.mark.parametrize("jump", [1.0, 0.1])
def test_mean_errs_as_seldom_as_it_says_even_for_rare_jumps(jump):
    share = 0.004
    drawn = np.random.default_rng(5).binomial(300, share, DRAWS) * jump / 300
    bounds = bound_mean(drawn, 300, **at(ERROR))
    assert np.mean(bounds.low > share * jump) <= TOLERATED
    assert np.mean(bounds.high < share * jump) <= TOLERATED


def test_t_interval_would_be_too_sure_of_rare_jumps():
    # Why the mean is not bounded by a t interval: no jump in 300 values, and it is certain that there are none.
    drawn = np.random.default_rng(5).random((2000, 300)) < 0.004
    spread = drawn.std(axis=1, ddof=1) / math.sqrt(300)
    assert np.mean(drawn.mean(axis=1) + stats.t.ppf(1 - ERROR, 299) * spread < 0.004) > 20 * ERROR


@given(mean=st.floats(0, 1), trials=st.integers(1, 10_000), error=st.floats(1e-6, 0.5))
def test_mean_lies_between_its_bounds_and_within_hoeffdings_simple_form(mean, trials, error):
    bounds = bound_mean(mean, trials, **at(error))
    reach = math.sqrt(-math.log(error) / (2 * trials)) + 1e-9
    assert 0 <= bounds.low <= mean <= bounds.high <= 1
    assert mean - bounds.low <= reach
    assert bounds.high - mean <= reach


def test_bursts_are_worth_less_than_single_errors():
    random = np.random.default_rng(6)
    times = np.arange(10_000) / 50  # 200 seconds
    single = (random.random(10_000) < 0.02).astype(float)
    bursts = np.repeat(random.random(1000) < 0.02, 10).astype(float)  # ten in a row, as a batch that died
    assert count_independent(single, times) > 8000
    assert 600 < count_independent(bursts, times) < 1800
    assert count_independent(np.ones(20), times[:20]) == 20


@given(steps=st.integers(1, 8), interims=st.integers(1, 400), beyond=st.integers(0, 400), waits=st.integers(0, 60))
def test_all_looks_together_err_no_more_than_the_plan_allows(steps, interims, beyond, waits):
    schedule = Schedule(steps, interims, waits)
    alpha, limits = 0.05, 6
    inside = [
        Look(schedule, number, "hold").levels(confidence=0.95, limits=limits)
        for number in range(1, interims + beyond + 1)
    ]
    end = Look(schedule, interims, "end").levels(confidence=0.95, limits=limits)
    assert limits * (sum(each.fail for each in inside) + steps * end.fail) <= alpha + 1e-12
    waited = Look(schedule, 1, "wait").levels(confidence=0.95, limits=limits) if waits else None
    assert end.succeed + (waits * waited.succeed if waited else 0) <= alpha + 1e-12
