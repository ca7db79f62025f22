"""Two TorchServes behind one gateway, rolled server by server under load."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.open_loop import open_loop
from bench.tiny import make_tiny_run
from tests.support.archives import build, spoil
from tests.support.gateway import Live, live_gateway, write_image

PLAN = """
strategy = "instances"
instance_hold_s = 3.0
[analysis]
interval_s = 1.0
max_wait_s = 30.0
on_inconclusive = "abort"
[analysis.metrics]
p99_ms = false
[analysis.metrics.error_rate]
max = 0.05
max_increase = 0.05
"""
FAILS = {
    "handler/image_classifier.py": (
        "            if answer.phrase:",
        "            if True:\n"
        "                context.set_response_status(code=500, phrase='spoilt', idx=index)\n"
        "            elif answer.phrase:",
    ),
}


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("archives")
    run = make_tiny_run(folder / "run")
    built = {version: build(run, folder / version, version=version) for version in ("1.0", "2.0", "3.0")}
    return built | {"fails": spoil(built["3.0"], folder / "fails.mar", work=folder / "tree", edits=FAILS)}


@pytest.fixture(scope="module")
def live(archives: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("site")
    settings = folder / "gateway.yaml"
    settings.write_text("servers: [{name: a}, {name: b}]\n")
    with live_gateway(archives["1.0"], folder / "state", options=["--gateway-config", settings]) as live:
        yield live


def has(live: Live) -> list[list[str]]:
    return [sorted(member.versions("imgcls")) for member in live.gateway.members]


def test_each_server_is_swapped_while_the_other_serves(live: Live, archives: dict[str, Path], tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(PLAN)
    image = write_image(tmp_path / "image.png")
    with open_loop(live.url, image, tmp_path, rate=40) as load:
        status, state = live.rollout("start", archives["2.0"], "--plan", plan)
    assert (status, state["status"]) == (0, "promoted"), state["reason"]
    assert [step["server"] for step in state["steps"] if step["kind"] == "instance"] == ["a", "b"]
    assert not load.failed, load.failed[:3]
    assert set(load.versions()) == {"1.0", "2.0"}
    assert has(live) == [["2.0"], ["2.0"]]
    assert [(row.version, row.weight, row.servers) for row in live.gateway.table().get("imgcls").versions] == [
        ("2.0", 100.0, None)
    ]


def test_a_bad_version_reaches_one_server_and_is_swapped_back(
    live: Live, archives: dict[str, Path], tmp_path: Path
) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(PLAN.replace('strategy = "instances"', 'strategy = "instances"\ngolden = false'))
    image = write_image(tmp_path / "image.png")
    serving = live.gateway.table().get("imgcls").default
    with open_loop(live.url, image, tmp_path, rate=40) as load:
        status, state = live.rollout("start", archives["fails"], "--plan", plan)
    assert (status, state["status"]) == (1, "rolled-back")
    failed = [step for step in state["steps"] if step["status"] == "failed"]
    assert [step["server"] for step in failed] == ["a"]
    assert {answer.version for answer in load.failed} == {"3.0"}
    late = [a for a in load.answers if a.version == "3.0" and a.started_s > failed[0]["ended_s"] + 2]
    assert not late
    assert has(live) == [[serving], [serving]]
