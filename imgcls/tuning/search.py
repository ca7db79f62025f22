"""The highest rate whose latency meets the SLO: bisection with a bounded count of stretches, hence a bounded time."""

from collections.abc import Callable
from dataclasses import dataclass

from imgcls.tuning.load import Stretch
from imgcls.tuning.slo import Slo

LOWEST_RATE = 0.2  # arrivals a second; below, a stretch of seconds says nothing
NEAR_STEP = 1.2
FIRST_SHARE = 0.75  # of what the server can do: where most servers still answer in time


@dataclass(frozen=True)
class RateFound:
    """The highest rate that was measured and met the SLO, and the lowest that did not.

    Attributes:
        rate: images a second, as answered; 0 where no stretch met the SLO.
        missed: arrivals a second of the lowest stretch that missed it; None where all met it.
        best: the stretch of `rate`, or the nearest miss where none met it.
        stretches: all, in the order in which they were measured.
    """

    rate: float
    missed: float | None
    best: Stretch
    stretches: tuple[Stretch, ...]


def find_rate(
    measure: Callable[[float], Stretch],
    slo: Slo,
    *,
    saturation: float,
    steps: int,
    near: float | None = None,
) -> RateFound:
    """Looks for the highest rate that meets the SLO.

    Args:
        measure: runs one open-loop stretch at a rate.
        slo: what to meet.
        saturation: images a second that a closed loop got answered: no rate above is tried.
        steps: stretches to measure, at least 1.
        near: the rate that an earlier search found, to start there; None: at FIRST_SHARE of the saturation.
    """
    met, missed = 0.0, max(saturation, LOWEST_RATE)
    rate = min(near or missed * FIRST_SHARE, missed)
    stretches: list[Stretch] = []
    for _ in range(max(1, steps)):
        stretch = measure(max(rate, LOWEST_RATE))
        stretches.append(stretch)
        if stretch.meets(slo):
            met = rate
        else:
            missed = rate
        if missed <= LOWEST_RATE or met >= missed:
            break
        rate = _next_rate(met, missed, is_near=near is not None)
    good = [stretch for stretch in stretches if stretch.meets(slo)]
    bad = [stretch for stretch in stretches if not stretch.meets(slo)]
    return RateFound(
        rate=max((stretch.images_per_s for stretch in good), default=0.0),
        missed=min((stretch.rate for stretch in bad if stretch.rate), default=None),
        best=max(good, key=lambda each: each.images_per_s) if good else min(bad, key=_nearness),
        stretches=tuple(stretches),
    )


def _next_rate(met: float, missed: float, *, is_near: bool) -> float:
    """Halves the interval; near a rate that is known from before, in steps that stay there."""
    half = (met + missed) / 2
    if not is_near:
        return half
    return min(half, met * NEAR_STEP) if met else max(half, missed / NEAR_STEP)


def _nearness(stretch: Stretch) -> tuple[int, float]:
    """Orders misses: first those that lost nothing, then by their latency; none at all comes last."""
    return stretch.failed + stretch.dropped, stretch.slo_ms or float("inf")
