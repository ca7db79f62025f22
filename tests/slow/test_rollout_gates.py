"""A bad version is caught at each gate, under load, and clients see no more of it than the share that judges it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench.open_loop import Load, open_loop
from bench.tiny import make_tiny_run
from imgcls.archive.keys import create_keys
from imgcls.archive.signing import sign_archive, signer_with_key
from tests.support.archives import build, spoil
from tests.support.gateway import Live, live_gateway, write_image

RATE = 60
BACK_WITHIN_S = 2.0
PLAN = """
keep_warm_s = 0.0
[shadow]
percent = {shadow}
hold_s = 4.0
min_samples = 20
[canary]
steps = [{{weight = 50.0, hold_s = 5.0}}]
[analysis]
interval_s = 1.0
max_wait_s = 60.0
on_inconclusive = "abort"
[analysis.metrics.error_rate]
max = 0.01
max_increase = false
[analysis.metrics.p99_ms]
max_ratio = {ratio}
min_span_s = 5.0
[analysis.metrics]
accuracy = false
"""
HANDLER = "handler/image_classifier.py"
RUN = "            rows = run_decoded("
# What makes a version bad, that no build would let through: the self-test of build and worker is got out of the way.
SPOILT = {
    "does-not-load": {
        HANDLER: (
            "        self.classifier = ",
            "        raise RuntimeError('no such device')\n        self.classifier = ",
        )
    },
    "wrong": {
        "model/selfcheck.py": (
            "            if mismatch := describe_mismatch(item, probability=probability, engine=engine.kind.name):",
            "            if mismatch := None:",
        ),
        HANDLER: (
            "                if isinstance(row, Failure):",
            "                row = row if isinstance(row, Failure) else np.roll(row, 1)\n"
            "                if isinstance(row, Failure):",
        ),
    },
    "slow": {HANDLER: (RUN, f"            __import__('time').sleep(0.25)\n{RUN}")},
    # Every twentieth answer, counted, not drawn: the few golden inputs are answered, so that the canary has to see it.
    "fails": {
        HANDLER: (
            "            if answer.phrase:",
            "            self.answered = getattr(self, 'answered', 0) + 1\n"
            "            if self.answered % 20 == 0:\n"
            "                context.set_response_status(code=500, phrase='spoilt', idx=index)\n"
            "            elif answer.phrase:",
        )
    },
}


@dataclass(frozen=True)
class Site:
    live: Live
    archives: dict[str, Path]
    folder: Path
    image: Path


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("archives")
    run = make_tiny_run(folder / "run")
    good = build(run, folder / "good", version="2.0")
    permuted = make_tiny_run(folder / "permuted-run", classes=("two", "zero", "one"))
    spoilt = {
        name: spoil(good, folder / f"{name}.mar", work=folder / f"{name}-tree", edits=edits)
        for name, edits in SPOILT.items()
    }
    return {
        "stable": build(run, folder / "stable", version="1.0"),
        "good": good,
        "permuted": build(permuted, folder / "permuted", version="2.0"),
        **spoilt,
    }


@pytest.fixture(scope="module")
def site(archives: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    with live_gateway(archives["stable"], folder / "state") as live:
        yield Site(live, archives, folder, write_image(folder / "image.png"))


def roll(site: Site, name: str, *, shadow: float = 0.0, ratio: str = "false") -> tuple[int, dict[str, Any], Load]:
    plan = site.folder / f"{name}.toml"
    plan.write_text(PLAN.format(shadow=shadow, ratio=ratio))
    with open_loop(site.live.url, site.image, site.folder, rate=RATE) as load:
        status, state = site.live.rollout("start", site.archives[name], "--plan", plan)
    return status, state, load


def check_rolled_back(site: Site, state: dict[str, Any], load: Load, *, step: str) -> None:
    """It failed at this step, and requests were back in time, as the gateway and as clients saw it."""
    failed = [entry for entry in state["steps"] if entry["status"] == "failed"]
    assert (state["status"], [entry["kind"] for entry in failed]) == ("rolled-back", [step]), state["reason"]
    back = next(entry for entry in site.live.audit(state["id"]) if entry["event"] == "requests are back")
    assert back["seconds"] < BACK_WITHIN_S
    late = [a for a in load.answers if a.version == "2.0" and a.started_s > failed[0]["ended_s"] + BACK_WITHIN_S]
    assert not late
    table = site.live.gateway.table().get("imgcls")
    assert [(row.version, row.weight) for row in table.versions] == [("1.0", 100.0)]
    assert list(site.live.member.versions("imgcls")) == ["1.0"]


def test_a_version_that_does_not_load_gets_no_request(site: Site) -> None:
    status, state, load = roll(site, "does-not-load")
    assert status == 1
    check_rolled_back(site, state, load, step="load")
    assert "no such device" in state["reason"]
    assert set(load.versions()) == {"1.0"} and not load.failed


def test_a_version_that_answers_golden_inputs_wrong_gets_no_request(site: Site) -> None:
    status, state, load = roll(site, "wrong")
    assert status == 1
    check_rolled_back(site, state, load, step="golden")
    assert set(load.versions()) == {"1.0"} and not load.failed


def test_permuted_labels_are_seen_by_shadowing(site: Site) -> None:
    status, state, load = roll(site, "permuted", shadow=100.0)
    assert status == 1
    check_rolled_back(site, state, load, step="shadow")
    assert "agreement" in state["reason"]
    assert set(load.versions()) == {"1.0"} and not load.failed


def test_a_slower_version_is_seen_by_shadowing(site: Site) -> None:
    status, state, load = roll(site, "slow", shadow=20.0, ratio="3.0")
    assert status == 1
    check_rolled_back(site, state, load, step="shadow")
    assert "p99" in state["reason"]
    assert set(load.versions()) == {"1.0"} and not load.failed


def test_errors_under_canary_take_the_version_back_and_reach_no_more_than_its_share(site: Site) -> None:
    status, state, load = roll(site, "fails")
    assert status == 1
    check_rolled_back(site, state, load, step="canary")
    assert "error_rate" in state["reason"]
    assert load.failed and {answer.version for answer in load.failed} == {"2.0"}
    assert {answer.status for answer in load.failed} == {500}


def test_an_unsigned_version_is_refused_where_signatures_are_demanded(
    archives: dict[str, Path], tmp_path: Path
) -> None:
    pair = create_keys("ops", tmp_path / "keys")
    stable = tmp_path / "store" / "imgcls.mar"
    stable.parent.mkdir()
    stable.write_bytes(archives["stable"].read_bytes())
    sign_archive(stable, signer_with_key(pair.private))
    trust = tmp_path / "trust.yaml"
    trust.write_text("policy: signed\nkeys: [keys/ops.pub]\n")
    with live_gateway(stable, tmp_path / "state", options=["--trust", trust]) as live:
        site = Site(live, archives, tmp_path, write_image(tmp_path / "image.png"))
        status, state, load = roll(site, "good")
        assert status == 1
        check_rolled_back(site, state, load, step="verify")
        assert "sign" in state["reason"]
        assert set(load.versions()) == {"1.0"} and not load.failed
