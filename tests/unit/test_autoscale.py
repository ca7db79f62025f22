"""Workers follow the load on traces: up when requests wait, down when nobody needs them, and not to and fro."""

from collections.abc import Callable

import pytest

from imgcls.gateway.autoscale import Load, Look, decide, may_shrink
from imgcls.gateway.settings import Scaling
from imgcls.gateway.table import Autoscale, Model, Table, Version
from imgcls.rollout import traffic

RULES = Scaling(up_after_s=10, down_after_s=60)
BOUNDS = Autoscale(min=1, max=4)


def follow(demand: Callable[[int], float], *, seconds: int, workers: int = 1, servers: int = 1, batch: int = 1):
    """Runs the decision once a second on a demand, as requests in flight at each second; returns (second, workers)."""
    looks: list[Look] = []
    changed_s, changes = float("-inf"), []
    for second in range(seconds):
        looks.append(Look(second, round(demand(second))))
        load = Load(workers, servers=servers, batch_size=batch)
        wanted = decide(looks, load, bounds=BOUNDS, rules=RULES, changed_s=changed_s)
        if wanted != workers:
            workers, changed_s, looks = wanted, second, []
            changes.append((second, workers))
    return changes


def test_requests_that_wait_bring_workers_and_idleness_takes_them_back_one_by_one() -> None:
    changes = follow(lambda second: 3 if second < 30 else 0, seconds=300)
    assert changes[0] == (9, 2)
    assert [workers for _, workers in changes] == [2, 1]
    assert 60 <= changes[1][0] - changes[0][0] <= 130


def test_load_is_not_chased_between_the_thresholds() -> None:
    assert follow(lambda second: 2, seconds=600, workers=2) == []


@pytest.mark.parametrize("burst", [1, 3, 5])
def test_burst_shorter_than_the_window_adds_nothing(burst: int) -> None:
    assert follow(lambda second: 2.5 if second % 60 < burst else 0, seconds=600) == []


def test_pause_shorter_than_the_window_takes_nothing_away() -> None:
    assert follow(lambda second: 0 if second % 60 < 20 else 3, seconds=600, workers=2) == []


def test_number_at_most_doubles_at_a_time_and_never_leaves_its_bounds() -> None:
    numbers = [workers for _, workers in follow(lambda second: 500, seconds=200)]
    assert numbers == [2, 4]
    assert [workers for _, workers in follow(lambda second: 0, seconds=600, workers=3)] == [2, 1]


def test_number_outside_its_bounds_is_brought_inside_at_once() -> None:
    assert follow(lambda second: 5, seconds=1, workers=9) == [(0, 4)]


def test_second_change_waits_for_the_window_after_the_first() -> None:
    times = [second for second, _ in follow(lambda second: 500, seconds=200)]
    assert times[1] - times[0] >= RULES.up_after_s


@pytest.mark.parametrize(("servers", "batch"), [(2, 1), (1, 8), (2, 4)])
def test_servers_and_batches_count(servers: int, batch: int) -> None:
    slots = servers * batch
    assert follow(lambda second: 1.4 * slots, seconds=100, servers=servers, batch=batch) == []
    assert follow(lambda second: 3 * slots, seconds=12, servers=servers, batch=batch) == [(9, 2)]


def test_trace_that_is_too_short_decides_nothing() -> None:
    looks = [Look(0, 100), Look(3, 100)]
    assert decide(looks, Load(1, servers=1), bounds=BOUNDS, rules=RULES, changed_s=float("-inf")) == 1


def test_no_worker_goes_while_requests_may_come_back_and_the_promoted_version_inherits() -> None:
    rows = [
        Version(version=name, archive="m.mar", tree_sha256=name, workers=2, weight=weight, autoscale=bounds)
        for name, weight, bounds in (("1", 100, BOUNDS), ("2", 0, None))
    ]
    table = Table(models=(Model(name="m", default="1", versions=tuple(rows)),))
    assert may_shrink(table.get("m"), table.get("m").get("1"))
    canary = traffic.split(table, "m", stable="1", candidate="2", weight=10).get("m")
    assert not may_shrink(canary, canary.get("1"))
    promoted = traffic.give_all(table, "m", "2").get("m")
    assert not may_shrink(promoted, promoted.get("1")) and may_shrink(promoted, promoted.get("2"))
    assert promoted.get("2").autoscale == BOUNDS
