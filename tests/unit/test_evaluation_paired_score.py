"""The interval of a drop, against R's, against its definition, and by how often it lets a drop pass."""

from functools import cache

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from imgcls.evaluation.bootstrap import find_wilson
from imgcls.evaluation.paired_score import find_paired_score

DRAWS = 20_000


@pytest.mark.parametrize(
    ("gained", "lost", "images", "level", "expected"),
    [
        (20, 60, 1000, 0.95, (-0.0584, -0.0231)),  # R's PropCIs 0.3-0: scoreci.mp(60, 20, 1000, 0.95)
        (28, 25, 618, 0.90, (-0.0148, 0.0247)),  # scoreci.mp(25, 28, 618, 0.90)
    ],
)
def test_the_interval_is_rs(gained, lost, images, level, expected):
    assert find_paired_score(gained, lost, images, level=level) == pytest.approx(expected, abs=5e-5)


def test_without_a_difference_it_is_as_wide_as_wilsons():
    for images in (1, 100, 5000):
        low, high = find_paired_score(0, 0, images, level=0.95)
        assert -low == high == pytest.approx(find_wilson(0, images).high)


def test_it_mirrors_and_stays_within_one():
    low, high = find_paired_score(7, 31, 200, level=0.9)
    assert find_paired_score(31, 7, 200, level=0.9) == pytest.approx((-high, -low))
    assert find_paired_score(0, 50, 50, level=0.95) == (-1, pytest.approx(1 - 2 * find_wilson(50, 50).low))


@pytest.mark.parametrize(("gained", "lost", "images"), [(3, 9, 100), (0, 4, 60), (5, 0, 60)])
def test_its_ends_are_where_the_score_test_rejects(gained, lost, images):
    """The likeliest shares under a difference, found by search, give a statistic of 1.96 at both ends."""
    for difference in find_paired_score(gained, lost, images, level=0.95):

        def miss(share: float, difference: float = difference) -> float:
            shares = np.array([share + difference, share, 1 - 2 * share - difference])
            counts = np.array([gained, lost, images - gained - lost])
            return -float((counts * np.log(shares.clip(1e-300))).sum())

        bounds = max(0.0, -difference), (1 - difference) / 2
        share = minimize_scalar(miss, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
        variance = images * (2 * share + difference - difference**2)
        assert abs(gained - lost - images * difference) / np.sqrt(variance) == pytest.approx(1.96, abs=0.01)


@pytest.mark.parametrize(
    ("images", "drop", "others"),
    [(100, 0.01, 0.0), (300, 0.01, 0.0), (400, 0.01, 0.0), (1000, 0.01, 0.0), (200, 0.02, 0.02), (1000, 0.01, 0.03)],
)
def test_a_drop_as_large_as_is_allowed_passes_once_in_forty_times(images, drop, others):
    """`others` is the share of images on which the two differ without a gain or loss on the whole."""
    is_passed = cache(lambda gained, lost: find_paired_score(gained, lost, images, level=0.95)[0] >= -drop)
    shares = [others / 2, others / 2 + drop, 1 - others - drop]
    drawn = np.random.default_rng(0).multinomial(images, shares, size=DRAWS)
    passed = np.mean([is_passed(int(gained), int(lost)) for gained, lost, _ in drawn])
    assert passed <= 0.03


def test_a_run_that_is_as_good_passes():
    """Of 1,000 images on which one in fifty differs, either way, a drop of two points is excluded nearly always."""
    drawn = np.random.default_rng(0).multinomial(1000, [0.01, 0.01, 0.98], size=2000)
    is_passed = cache(lambda gained, lost: find_paired_score(gained, lost, 1000, level=0.95)[0] >= -0.02)
    assert np.mean([is_passed(int(gained), int(lost)) for gained, lost, _ in drawn]) > 0.95
