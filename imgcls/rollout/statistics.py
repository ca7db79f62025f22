"""Bounds that hold without assuming how latencies or probabilities are distributed.

Every function returns one-sided bounds: the truth lies below `low` with at most the error probability given for it, and
above `high` with at most that given for `high`. These probabilities get as small as 1e-5, where approximations by the
normal distribution are wrong by factors, most for rare events; so all single bounds are exact or conservative. All take
arrays as well as numbers. No I/O, no state, no chance.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import special

Array = npt.NDArray[np.float64]
Numbers = Any  # a float or an array of them
BLOCK_S = 2.0  # events nearer than this may have one cause: a stall, a worker that died with its batch


class Bounds(NamedTuple):
    """An estimate between its two one-sided bounds."""

    low: Numbers
    value: Numbers
    high: Numbers


def bound_proportion(events: Numbers, trials: Numbers, *, low_error: float, high_error: float) -> Bounds:
    """Clopper and Pearson's bounds of a proportion: exact, never too narrow.

    Chosen over Wilson's, whose lower bound errs 30 times too often for one event in a thousand at the 1e-4 level.
    `trials` need not be whole, as `count_independent` shrinks them.
    """
    events, trials = np.broadcast_arrays(np.asarray(events, float), np.asarray(trials, float))
    misses = trials - events
    low = np.where(events > 0, special.betaincinv(np.maximum(events, 1e-9), misses + 1, low_error), 0.0)
    high = np.where(misses > 1e-9, special.betaincinv(events + 1, np.maximum(misses, 1e-9), 1 - high_error), 1.0)
    value = np.divide(events, trials, out=np.zeros_like(trials), where=trials > 0)
    return Bounds(np.where(trials > 0, low, 0.0)[()], value[()], np.where(trials > 0, high, 1.0)[()])


def bound_difference(first: Bounds, second: Bounds, *, correlation: Numbers = 0.0) -> Bounds:
    """Bounds of first - second from the bounds of each, by MOVER: distances to the estimates, squared and added.

    Newcombe's interval of two proportions is this with Wilson's bounds; with exact ones it keeps its level for rare
    events too, and it is much narrower than first.low - second.high. The low bound comes from first.low and
    second.high, so these two need one error probability, and so do first.high and second.low.

    Source: Zou and Donner, Statistics in Medicine 27 (2008) 1693.
    """
    value = first.value - second.value
    down, up = first.value - first.low, first.high - first.value
    down_other, up_other = second.value - second.low, second.high - second.value
    low = value - np.sqrt(down**2 + up_other**2 - 2 * correlation * down * up_other)
    high = value + np.sqrt(up**2 + down_other**2 - 2 * correlation * up * down_other)
    return Bounds(low, value, high)


def bound_ratio(first: Bounds, second: Bounds) -> Bounds:
    """Bounds of first / second, both positive, by MOVER of their logarithms; see bound_difference."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # no lower bound is 0, no upper one infinite
        logarithms = bound_difference(Bounds(*np.log(first)), Bounds(*np.log(second)))
        return Bounds(*np.exp(logarithms))


def bound_paired_difference(
    only_first: int, only_second: int, pairs: int, *, low_error: float, high_error: float
) -> Bounds:
    """Bounds of the difference of two proportions of the same trials, from those in which they differ (McNemar).

    Args:
        only_first: pairs in which only the first counts.
        only_second: pairs in which only the second counts.
        pairs: all, those that are alike included.
        low_error: see the module.
        high_error: the same.
    """
    first = bound_proportion(only_first, pairs, low_error=low_error, high_error=high_error)
    second = bound_proportion(only_second, pairs, low_error=high_error, high_error=low_error)
    # The two shares are parts of one multinomial: where one grows the other must shrink.
    odds = first.value / (1 - first.value + 1e-12) * second.value / (1 - second.value + 1e-12)
    return bound_difference(first, second, correlation=-min(1.0, float(np.sqrt(odds))))


def bound_quantile(
    ordered: Array, quantile: float, *, low_error: float, high_error: float, trials: float | None = None
) -> Bounds:
    """Bounds of a quantile by order statistics: how many values lie below it is binomial, whatever their distribution.

    Args:
        ordered: the values, ascending.
        quantile: 0..1.
        low_error: see the module.
        high_error: the same. With too few values there is no upper bound: it is infinite.
        trials: how many independent values they are worth; all of them unless given.

    Source: David and Nagaraja, Order Statistics, 7.1.
    """
    count = len(ordered)
    if not count:
        return Bounds(0.0, np.nan, np.inf)
    worth = max(1, int(count if trials is None else trials))
    low_rank, high_rank = find_quantile_ranks(worth, quantile, low_error=low_error, high_error=high_error)
    below, above = int(low_rank / worth * count), int(np.ceil(high_rank / worth * count))
    value = ordered[max(0, int(np.ceil(quantile * count)) - 1)]
    return Bounds(
        ordered[below - 1] if below >= 1 else 0.0, value, ordered[above - 1] if high_rank <= worth else np.inf
    )


def find_quantile_ranks(trials: int, quantile: float, *, low_error: float, high_error: float) -> tuple[int, int]:
    """Returns the ranks, from 1, of the values that bound a quantile; 0, or trials + 1, where none does."""
    middle, reach = trials * quantile, 10 * np.sqrt(trials * quantile * (1 - quantile)) + 40
    ranks = np.arange(max(0, int(middle - reach)), min(trials, int(middle + reach)) + 1)
    below = special.bdtr(ranks, trials, quantile)  # (ranks,) P(at most `rank` values lie below the quantile)
    low = ranks[0] + int(np.searchsorted(below, low_error, side="right"))
    high = ranks[0] + int(np.searchsorted(below, 1 - high_error, side="left")) + 1
    return int(low), int(high)


def bound_mean(mean: Numbers, trials: Numbers, *, low_error: float, high_error: float) -> Bounds:
    """Bounds of the mean of values in 0..1 by Hoeffding's inequality in its first form, with relative entropy.

    The truth m is refused where trials * kl(mean, m) > ln(1 / error). It holds for every distribution and every
    number of values. |Δp| needs that: it is almost always near 0 and now and then near 1, where a t interval or a
    bootstrap of a few hundred values that happen to hold no jump is far too sure. For means near 0 it is many times
    narrower than the well-known form sqrt(ln(1 / error) / (2 trials)), which is its worst case, at 1/2.

    Source: Hoeffding, Journal of the American Statistical Association 58 (1963) 13, theorem 1.
    """
    mean, trials = np.asarray(mean, float), np.maximum(np.asarray(trials, float), 1e-9)
    low = _bisect_entropy(mean, np.zeros_like(mean), -np.log(low_error) / trials)
    high = _bisect_entropy(mean, np.ones_like(mean), -np.log(high_error) / trials)
    return Bounds(low[()], mean[()], high[()])


def count_independent(events: Array, times_s: Array) -> float:
    """Returns how many independent trials a proportion's trials are worth, as errors and stalls come in bursts.

    The trials are cut into blocks of BLOCK_S; as far as the events vary more from block to block than chance lets
    them, the trials are worth less (the design effect of cluster samples, never below 1).

    Args:
        events: (n,) 0 or 1 per trial.
        times_s: (n,) when each was.
    """
    trials, share = len(events), float(np.mean(events)) if len(events) else 0.0
    if trials < 2 or share in (0.0, 1.0):
        return float(trials)
    _, block = np.unique(np.floor(times_s / BLOCK_S), return_inverse=True)
    sizes, hits = np.bincount(block), np.bincount(block, weights=events)
    if len(sizes) < 2:
        return float(trials)
    excess = np.sum((hits - sizes * share) ** 2) * len(sizes) / (len(sizes) - 1)
    return trials / max(1.0, float(excess) / (trials * share * (1 - share)))


def _bisect_entropy(mean: Array, edge: Array, limit: Numbers) -> Array:
    """Returns the m farthest from the mean, towards an edge of 0..1, with kl(mean, m) <= limit."""
    near, far = mean.copy(), edge
    for _ in range(40):  # 2**-40 of the way
        middle = (near + far) / 2
        entropy = special.rel_entr(mean, middle) + special.rel_entr(1 - mean, 1 - middle)
        is_within = entropy <= limit
        near, far = np.where(is_within, middle, near), np.where(is_within, far, middle)
    return far  # outwards, to be on the safe side
