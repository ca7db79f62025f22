"""What the views are told of workers and requests, by a gateway's table and access log."""

import json
import time
from pathlib import Path

import pytest

from imgcls.gateway.folder import GatewayFolder
from imgcls.gateway.gateway import Gateway
from imgcls.gateway.settings import Settings
from imgcls.gateway.table import Model, Table, Version
from imgcls.rollout.plan import Plan
from imgcls.rollout.rollouts import new_rollout
from imgcls.rollout.snapshot import VersionView
from imgcls.rollout.state import Release, RolloutState
from imgcls.rollout.watch import Watcher


def row(version: str, weight: float) -> Version:
    return Version(version=version, archive=f"{version}.mar", tree_sha256="0", workers=2, weight=weight)


def set_weights(gateway: Gateway, *weights: float) -> None:
    rows = tuple(row(str(number), weight) for number, weight in enumerate(weights, start=1))
    gateway.folder.table.change(lambda _: Table(models=(Model(name="imgcls", default="1", versions=rows),)))


@pytest.fixture
def gateway(tmp_path: Path) -> Gateway:
    folder = GatewayFolder(tmp_path / "state")
    folder.prepare()
    gateway = Gateway(folder, folder.paths(folder.path / "run"), Settings())
    set_weights(gateway, 100, 0)
    gateway.paths.access_log.parent.mkdir(parents=True, exist_ok=True)
    return gateway


@pytest.fixture
def state(gateway: Gateway) -> RolloutState:
    state = new_rollout(gateway.table().get("imgcls"), Path("/2.mar"), Plan(), operator="ops@host")
    return state.model_copy(update={"candidate": Release(version="2", archive="2.mar", tree_sha256="0", workers=2)})


def answer(gateway: Gateway, version: str, count: int, *, status: int = 200) -> None:
    record = {"time": time.time(), "cluster": f"imgcls@{version}", "status": status, "duration_ms": 7}
    with gateway.paths.access_log.open("a") as log:
        log.writelines(json.dumps(record | {"request_id": str(number)}) + "\n" for number in range(count))


def wait_for(watcher: Watcher, version: str) -> VersionView:
    deadline_s = time.monotonic() + 20
    while time.monotonic() < deadline_s:
        views = [watcher.snapshot.stable, watcher.snapshot.candidate]
        [view] = [view for view in views if view.version == version]
        if view.requests_per_s:
            return view
        time.sleep(0.05)
    raise AssertionError(f"no request of {version} was seen")


def test_a_rate_is_of_the_time_that_was_watched(gateway: Gateway, state: RolloutState) -> None:
    watcher, began_s = Watcher(gateway), time.monotonic()
    watcher(state, None, ())
    assert watcher.snapshot.stable.requests_per_s is None
    answer(gateway, "1", 27)
    answer(gateway, "1", 3, status=503)
    time.sleep(1.2)
    watcher(state, None, ())
    stable, new = watcher.snapshot.stable, watcher.snapshot.candidate
    assert 30 / (time.monotonic() - began_s) <= stable.requests_per_s <= 30 / 1.2
    assert (stable.error_rate, stable.p50_ms, stable.weight, stable.workers_wanted) == (0.1, 7, 100, 2)
    assert (new.requests_per_s, new.error_rate, new.weight) == (0, None, 0)


def test_while_a_step_waits_the_view_sees_requests_and_shares(gateway: Gateway, state: RolloutState) -> None:
    watcher = Watcher(gateway)
    watcher(state, None, ())
    with watcher.looking():
        set_weights(gateway, 60, 40)
        answer(gateway, "2", 5)
        new = wait_for(watcher, "2")
    assert (new.weight, new.error_rate, new.p50_ms) == (40, 0, 7)
    assert watcher.now().stable.weight == 60


def test_what_cannot_be_read_for_a_moment_is_looked_at_again(gateway: Gateway, state: RolloutState) -> None:
    watcher = Watcher(gateway)
    watcher(state, None, ())
    table = gateway.folder.table.path.read_text()
    gateway.folder.table.path.write_text("{")
    with watcher.looking():
        time.sleep(1.5)
        assert watcher.snapshot.stable.weight == 100
        gateway.folder.table.path.write_text(table)
        answer(gateway, "1", 5)
        assert wait_for(watcher, "1").error_rate == 0
