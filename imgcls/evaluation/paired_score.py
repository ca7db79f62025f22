"""The interval of a difference of two shares that were counted on the same images, by Tango's score test.

It holds its level where few answers differ, and where none does. A bootstrap does not: of images that all agree it
resamples images that all agree, and calls a difference of zero certain.

Source: Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample
design", Statistics in Medicine 17 (1998), 891-908, equations 24 to 26.
"""

import math
from statistics import NormalDist

_HALVINGS = 60


def find_paired_score(gained: int, lost: int, images: int, *, level: float) -> tuple[float, float]:
    """Returns the interval of (gained - lost) / images: every difference that the score test does not reject.

    Args:
        gained: images that only the run gets right.
        lost: images that only the baseline gets right.
        images: all of them.
        level: of the interval, two-sided.
    """
    limit = NormalDist().inv_cdf((1 + level) / 2)
    return (
        -_find_upper(lost, gained, images, limit=limit),
        _find_upper(gained, lost, images, limit=limit),
    )


def _find_upper(gained: int, lost: int, images: int, *, limit: float) -> float:
    """Halves the way from the estimate, which is never rejected, to 1."""
    low, high = (gained - lost) / images, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _is_rejected(gained, lost, images, difference=middle, limit=limit):
            high = middle
        else:
            low = middle
    return high


def _is_rejected(gained: int, lost: int, images: int, *, difference: float, limit: float) -> bool:
    """Tests a difference; its variance is the one that is likeliest if it were true."""
    b = (2 * images - gained + lost) * difference - gained - lost
    c = -lost * difference * (1 - difference)
    only_lost = (math.sqrt(max(0.0, b * b - 8 * images * c)) - b) / (4 * images)  # as a share, restricted to difference
    variance = images * (2 * only_lost + difference * (1 - difference))
    return (gained - lost - images * difference) ** 2 > limit**2 * variance
