"""How many workers a version shall have, from how many of its requests are in flight: a pure decision on a trace.

In flight at the gateway is what waits and what is computed, on all servers together. Its mean, divided by the number of
workers, is how busy they are: below one, it is their utilisation; above, the rest is queue. It survives restarts of
TorchServe, whose queue length leaves out what is being computed, and whose queue time says nothing when nobody asks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from imgcls.gateway.settings import Scaling
from imgcls.gateway.table import Autoscale, Model, Version


@dataclass(frozen=True)
class Look:
    """One look at a version."""

    at_s: float  # time.monotonic()
    in_flight: int  # on all servers together


@dataclass(frozen=True)
class Load:
    """What a version can take."""

    workers: int  # on each server
    servers: int
    batch_size: int = 1  # requests that a worker takes at once

    def slots(self, workers: int) -> int:
        """Returns how many requests are computed at a time with a number of workers."""
        return workers * self.servers * self.batch_size


def may_shrink(model: Model, row: Version) -> bool:
    """Whether a version's workers may become fewer.

    Not while a rollout watches answers, nor while it is kept warm: every request may come back to it at any moment.
    """
    return row.weight > 0 and not model.is_recorded


def decide(looks: Sequence[Look], load: Load, *, bounds: Autoscale, rules: Scaling, changed_s: float) -> int:
    """Returns how many workers a version shall have on each server.

    More come once requests have waited for `up_after_s`, at most twice as many at a time. One goes when the others
    would have been little used for `down_after_s`. So a burst does not add, a pause does not take away, and what was
    just added is not taken at once.

    Args:
        looks: the trace, oldest first; since the last change only.
        load: what there is.
        bounds: how few and how many there may be.
        rules: thresholds and times.
        changed_s: when the number was last changed, as time.monotonic(); minus infinity for never.
    """
    now = min(bounds.max, max(bounds.min, load.workers))
    if now != load.workers or not looks:
        return now
    at_s = looks[-1].at_s
    recent = _mean(looks, since_s=max(at_s - rules.up_after_s, changed_s), span_s=rules.up_after_s)
    if recent is not None and recent > rules.high * load.slots(now):
        needed = math.ceil(recent / (rules.target * load.slots(1)))
        return max(now, min(bounds.max, 2 * now, max(now + 1, needed)))
    longer = _mean(looks, since_s=max(at_s - rules.down_after_s, changed_s), span_s=rules.down_after_s)
    if now > bounds.min and longer is not None and longer < rules.low * load.slots(now - 1):
        return now - 1
    return now


def _mean(looks: Sequence[Look], *, since_s: float, span_s: float) -> float | None:
    """Returns the mean over a span; None where the trace does not cover it yet."""
    if looks[-1].at_s - max(looks[0].at_s, since_s) < 0.9 * span_s:
        return None
    inside = [look.in_flight for look in looks if look.at_s >= since_s]
    return sum(inside) / len(inside)
