"""What is killed, hangs or is full while requests come: what clients see of it, and how it goes on.

Each test prints a line `fault: …` with its figures; docs/operations.md has the table.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests

from bench.open_loop import Load, open_loop
from bench.tiny import make_tiny_run
from imgcls.archive.build import build_archive
from imgcls.archive.stage import ServingOptions
from imgcls.gateway.routes import ASK_AGAIN_AFTER
from imgcls.rollout.plan import Plan
from imgcls.rollout.rollouts import steps_of
from imgcls.rollout.state import RolloutFiles
from tests.support.archives import build
from tests.support.gateway import Live, live_gateway, write_image

RATE = 60
CALM_RATE = 6  # so that what comes in the 30 s that a busy machine's workers take to start is within max_in_flight
RESPONSE_TIMEOUT_S = 4
REQUEST_TIMEOUT_S = 40
LOST_S = REQUEST_TIMEOUT_S * ASK_AGAIN_AFTER + 2  # by then what TorchServe has lost is asked again
PLAN = """
keep_warm_s = 1.0
[shadow]
percent = 20.0
hold_s = 1.0
min_samples = 5
[canary]
steps = [{weight = 30.0, hold_s = 1.0}]
[analysis]
interval_s = 0.5
max_wait_s = 1.0
on_inconclusive = "promote"
[analysis.metrics]
p99_ms = false
"""
KILL_ONCE = "test -e {mark} || { touch {mark}; kill -9 $PPID; sleep 1; }"
STEPS = tuple(dict.fromkeys(step.kind for step in steps_of(Plan())))


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("archives")
    run = make_tiny_run(folder / "run")
    (folder / "1.0").mkdir()
    options = ServingOptions(workers=2, response_timeout_s=RESPONSE_TIMEOUT_S)
    return {
        "1.0": build_archive(run, folder / "1.0", version="1.0", options=options),
        "2.0": build(run, folder / "2.0", version="2.0"),
    }


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image(tmp_path_factory.mktemp("image") / "image.png")


@pytest.fixture
def live(archives: dict[str, Path], tmp_path: Path) -> Iterator[Live]:
    options = ("--gateway-config", limited(tmp_path, REQUEST_TIMEOUT_S))
    with live_gateway(archives["1.0"], tmp_path / "state", workers=2, options=options) as live:
        yield live


def limited(folder: Path, request_timeout_s: int) -> Path:
    """Returns a gateway.yaml with that limit."""
    path = folder / "gateway.yaml"
    path.write_text(f"limits:\n  request_timeout_s: {request_timeout_s}\n")
    return path


def strike(
    live: Live,
    image: Path,
    folder: Path,
    fault: Callable[[], object],
    *,
    name: str,
    rate: int = RATE,
    at_least_s: float = 0,
) -> Load:
    """Does something under load, waits until all is ready again, and prints what clients saw."""
    workers = live.member.versions("imgcls")["1.0"].ready_workers
    with open_loop(live.url, image, folder, rate=rate) as load:
        began_s = time.monotonic()
        fault()
        time.sleep(1.5)  # for the supervisor to see it
        ready_s = 1.5 + live.wait_until_ready()
        wait_for_workers(live, workers)  # a batch of one that was killed is answered when that one is back
        time.sleep(max(2.0, at_least_s - (time.monotonic() - began_s)))
    print(
        f"fault: {name}: {len(load.answers)} requests, {len(load.failed)} failed {load.statuses()}, "
        f"interrupted {load.interruption_s():.1f} s, ready after {ready_s:.1f} s, dropped {load.dropped}"
    )
    return load


def wait_for_workers(live: Live, count: int, *, timeout_s: float = 60) -> None:
    deadline_s = time.monotonic() + timeout_s
    while live.member.versions("imgcls")["1.0"].ready_workers < count:
        assert time.monotonic() < deadline_s, live.log()
        time.sleep(0.2)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def test_a_killed_worker_costs_no_request(live: Live, image: Path, tmp_path: Path) -> None:
    load = strike(
        live,
        image,
        tmp_path,
        lambda: kill(live.worker_pids("1.0")[0]),
        name="kill -9 of one of two workers",
        at_least_s=LOST_S,
    )
    assert not load.failed


def test_all_workers_killed_cost_no_request_but_time(live: Live, image: Path, tmp_path: Path) -> None:
    load = strike(
        live,
        image,
        tmp_path,
        lambda: [kill(pid) for pid in live.worker_pids("1.0")],
        name="kill -9 of all workers",
        rate=CALM_RATE,
        at_least_s=LOST_S,
    )
    assert not load.failed


def test_what_torchserve_loses_with_a_worker_is_asked_again(image: Path, tmp_path: Path) -> None:
    """TorchServe forgets what it had taken from its queue for a batch that it still gathered (docs/torchserve.md)."""
    serving = ServingOptions(workers=1, max_batch_delay_ms=2000)
    archive = build_archive(make_tiny_run(tmp_path / "run"), tmp_path, version="1.0", options=serving)
    options = ("--gateway-config", limited(tmp_path, 16))
    with (
        live_gateway(archive, tmp_path / "state", options=options) as live,
        ThreadPoolExecutor(1) as pool,
    ):
        began_s = time.monotonic()
        answer = pool.submit(requests.post, live.url, data=image.read_bytes(), timeout=60)
        time.sleep(1)
        kill(live.worker_pids("1.0")[0])
        assert answer.result().status_code == 200, answer.result().text
        waited_s = time.monotonic() - began_s
    print(f"fault: kill -9 of a worker whose batch is gathered: answered after {waited_s:.1f} s")


def test_a_worker_that_hangs_is_replaced_and_its_batch_is_answered(live: Live, image: Path, tmp_path: Path) -> None:
    def hang() -> None:
        os.kill(live.worker_pids("1.0")[0], signal.SIGSTOP)
        time.sleep(RESPONSE_TIMEOUT_S + 2)

    load = strike(live, image, tmp_path, hang, name=f"a worker hangs (responseTimeout {RESPONSE_TIMEOUT_S} s)")
    assert not load.failed


def test_torchserve_comes_back_after_a_kill_with_what_it_served(live: Live, image: Path, tmp_path: Path) -> None:
    state = live.member.running()
    load = strike(live, image, tmp_path, lambda: kill(state.pid), name="kill -9 of TorchServe's JVM")
    assert {answer.status for answer in load.failed} == {503}  # at once, not after a timeout
    assert load.answers[-1].status == 200
    assert live.member.running().pid != state.pid


def test_envoy_comes_back_within_seconds(live: Live, image: Path, tmp_path: Path) -> None:
    load = strike(live, image, tmp_path, lambda: kill(live.envoy_pid()), name="kill -9 of Envoy")
    assert load.interruption_s() < 5
    assert load.answers[-1].status == 200


def test_nothing_outlives_a_killed_supervisor_and_a_new_one_restores_the_table(
    live: Live, archives: dict[str, Path], image: Path, tmp_path: Path
) -> None:
    children = psutil.Process(live.state.pid).children(recursive=True)
    kill(live.state.pid)
    _, alive = psutil.wait_procs(children, timeout=45)  # workers that load outlive their JVM by up to 36 s
    assert not alive
    with live_gateway(archives["1.0"], live.folder.state, workers=2) as again:
        assert again.ready()[0] == 200


@pytest.mark.parametrize(
    ("step", "then"),
    [*((step, "start") for step in STEPS), *((step, "abort") for step in ("verify", "canary", "drain"))],
)
def test_the_rollout_tool_is_killed_at_a_step(site: "RolloutSite", step: str, then: str, tmp_path: Path) -> None:
    """Clients see nothing of it, and the rollout is continued, or taken back."""
    live = site.live
    plan = tmp_path / "plan.toml"
    script = KILL_ONCE.replace("{mark}", str(tmp_path / "mark"))
    hook = f'[[hooks.before_{step}]]\nexec = ["sh", "-c", {json.dumps(script)}]\n'
    plan.write_text(PLAN + hook)
    with open_loop(live.url, site.image, tmp_path, rate=RATE) as load:
        killed = live.imgcls("rollout", "start", site.archives["2.0"], "--plan", plan)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        status = live.imgcls("rollout", "status")
        assert (status.returncode, "no process runs it" in status.stdout) == (1, True)
        code, state = live.rollout(then)
        assert code == 0, state
        table = live.gateway.table().get("imgcls")
        wanted = "2.0" if then == "start" else "1.0"
        assert [(row.version, row.weight) for row in table.versions] == [(wanted, 100.0)]
        assert list(live.member.versions("imgcls")) == [wanted]
        if then == "start":
            assert live.rollout("undo")[0] == 0
    seen = f"{len(load.answers)} requests, {len(load.failed)} failed"
    print(f"fault: kill -9 of imgcls rollout at {step}, then {then}: {seen}")
    assert not load.failed
    assert RolloutFiles(live.folder.rollout).read().is_finished


class RolloutSite:
    def __init__(self, live: Live, archives: dict[str, Path], image: Path) -> None:
        self.live, self.archives, self.image = live, archives, image


@pytest.fixture(scope="module")
def site(archives: dict[str, Path], image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RolloutSite]:
    with live_gateway(archives["1.0"], tmp_path_factory.mktemp("site") / "state") as live:
        yield RolloutSite(live, archives, image)


@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system can be mounted by root only")
def test_a_full_disk_refuses_a_rollout_and_nothing_else(
    live: Live, archives: dict[str, Path], image: Path, tmp_path: Path
) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(PLAN)
    store = live.folder.store.folder
    backup = tmp_path / "backup"
    backup.mkdir()
    for file in store.iterdir():
        (backup / file.name).write_bytes(file.read_bytes())
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", store], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        with open_loop(live.url, image, tmp_path, rate=RATE) as load:
            code, state = live.rollout("start", archives["2.0"], "--plan", plan)
    finally:
        subprocess.run(["umount", store], check=True)
    assert (code, state["status"]) == (1, "rolled-back")
    assert "MB are free" in state["reason"]
    assert not load.failed
    assert live.rollout("start", archives["2.0"], "--plan", plan)[0] == 0
