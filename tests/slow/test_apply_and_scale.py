"""Two real servers behind a gateway, under load: what is applied, scaled or killed costs no request."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.open_loop import Answer, open_loop
from bench.tiny import make_tiny_run
from imgcls.archive.build import build_archive
from imgcls.archive.stage import ServingOptions
from imgcls.gateway import drain
from imgcls.gateway.errors import InFlightError
from imgcls.gateway.scaling import scale
from imgcls.gateway.table import exclusive
from imgcls.rollout.state import RolloutFiles
from tests.support.archives import build, spoil
from tests.support.gateway import Live, live_gateway, write_image

RATE = 50
CUT_OFF = "Unexpected job in sendError()"  # what TorchServe logs of a worker that it ends while it computes
RUN = "            rows = run_decoded("
ENDED = "context canceled"  # what k6 says of a request that it has itself given up when it was ended
LOADS_NEVER = {
    "handler/image_classifier.py": (
        "        self.classifier = ",
        "        raise RuntimeError('no such device')\n        self.classifier = ",
    )
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Archives 1.0 to 3.0, of which the last does not load, and the gateway's settings."""
    folder = tmp_path_factory.mktemp("apply")
    run = make_tiny_run(folder / "run")
    for version in ("1.0", "2.0", "3.0"):
        build(run, folder / version, version=version)
    good = folder / "3.0" / "imgcls.mar"
    spoil(good, folder / "bad.mar", work=folder / "work", edits=LOADS_NEVER)
    (folder / "gateway.yaml").write_text("servers: [{name: a}, {name: b}]\n")
    return folder


@pytest.fixture(scope="module")
def live(folder: Path) -> Iterator[Live]:
    wish(folder, "1.0: 100")
    options = ("--gateway-config", folder / "gateway.yaml", "--desired", folder / "desired.yaml")
    with live_gateway(folder / "not-there.mar", folder / "state", options=options) as live:
        yield live


@pytest.fixture
def lost(live: Live, folder: Path) -> Callable[[Callable[[], object]], list[Answer]]:
    """Does something under load, and returns the requests that failed."""
    image = write_image(folder / "image.png")

    def watch(work: Callable[[], object]) -> list[Answer]:
        with open_loop(live.url, image, folder, rate=RATE) as load:
            work()
        assert load.dropped == 0 and len(load.answers) > RATE
        return [answer for answer in load.failed if answer.body != ENDED]

    return watch


def wish(folder: Path, *rows: str, archives: dict[str, str] | None = None) -> Path:
    """Writes a wish from rows such as `1.0: 70`."""
    lines = ["models:", "- name: imgcls", "  versions:"]
    for row in rows:
        version, _, weight = row.partition(": ")
        archive = (archives or {}).get(version, f"{version}/imgcls.mar")
        lines.append(f"  - {{version: '{version}', archive: {archive}, weight: {weight}}}")
    path = folder / "desired.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path


def weights(live: Live) -> dict[str, float]:
    return {row.version: row.weight for row in live.gateway.table().get("imgcls").versions}


def loaded(live: Live) -> list[set[str]]:
    return [set(member.versions("imgcls")) for member in live.gateway.members]


def tail_of(log: Path) -> int:
    return len(log.read_text())


def apply(live: Live, folder: Path, *rows: str, archives: dict[str, str] | None = None) -> str:
    done = live.imgcls("apply", wish(folder, *rows, archives=archives), "--yes")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_wish_is_made_under_load_and_once(live: Live, folder: Path, lost) -> None:
    assert weights(live) == {"1.0": 100}  # the empty table was filled from the wish

    def change() -> None:
        assert apply(live, folder, "1.0: 70", "2.0: 30").startswith("made")
        assert weights(live) == {"1.0": 70, "2.0": 30} and loaded(live) == [{"1.0", "2.0"}] * 2
        assert apply(live, folder, "1.0: 70", "2.0: 30") == "nothing to do"
        assert apply(live, folder, "2.0: 100").startswith("made")

    assert lost(change) == []
    assert weights(live) == {"2.0": 100} and loaded(live) == [{"2.0"}] * 2
    assert "not ready" not in live.log()


def test_version_that_does_not_load_changes_nothing(live: Live, folder: Path) -> None:
    before, had = weights(live), loaded(live)
    file = wish(folder, "2.0: 50", "3.0: 50", archives={"3.0": "bad.mar"})
    refused = live.imgcls("apply", file, "--yes", "--timeout", "60")
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith("error: nothing was changed: ")
    assert "a worker could not load the model" in refused.stderr
    assert weights(live) == before and loaded(live) == had


def test_wish_waits_for_a_rollout_and_for_a_yes(live: Live, folder: Path) -> None:
    file = wish(folder, "1.0: 100")
    before = live.gateway.table()
    with exclusive(RolloutFiles(live.folder.rollout).lock_file, busy=""):
        refused = live.imgcls("apply", file, "--yes")
        assert refused.returncode == 1 and "another process runs a rollout" in refused.stderr
    unasked = live.imgcls("apply", file)
    assert unasked.returncode == 2 and "add --yes" in unasked.stderr
    shown = live.imgcls("apply", file, "--dry-run")
    assert shown.returncode == 0 and "imgcls 1.0" in shown.stdout
    assert live.gateway.table() == before


def test_workers_come_and_go_under_load(live: Live, lost) -> None:
    def scale() -> None:
        for workers in (2, 1):
            done = live.imgcls("scale", workers)
            assert done.returncode == 0, done.stderr

    began = [tail_of(member.folder.server_log) for member in live.gateway.members]
    assert lost(scale) == []
    for member, offset in zip(live.gateway.members, began, strict=True):
        said = member.folder.server_log.read_text()[offset:]
        assert "WORKER_SCALED_DOWN" in said and CUT_OFF not in said
    assert all(not row.draining for row in live.gateway.table().get("imgcls").versions)


def test_killed_server_costs_nothing_and_comes_back_ready(live: Live, lost) -> None:
    member = live.member
    killed = member.running()

    def kill() -> None:
        os.kill(killed.pid, signal.SIGKILL)
        deadline_s = time.monotonic() + 60
        while (state := member.state()) is None or state.pid == killed.pid or not member.is_up(state):
            assert time.monotonic() < deadline_s, live.log()
            time.sleep(0.1)
        assert sum(status.ready_workers for status in member.versions("imgcls").values()) == 1
        time.sleep(2)

    assert lost(kill) == []
    live.wait_until_ready()


def test_workers_follow_the_load_and_go_with_nothing_in_flight(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One worker takes 6 requests a second here: 9 bring a second one, and 3 take it away again.

    The server is alone, so requests have to wait at the gateway meanwhile.
    """
    slow = {"handler/image_classifier.py": (RUN, f"            __import__('time').sleep(0.15)\n{RUN}")}
    quick = build_archive(folder / "run", tmp_path, options=ServingOptions(workers=1, batch_size=1), version="1.0")
    mar = spoil(quick, tmp_path / "slow.mar", work=tmp_path / "work", edits=slow)
    (tmp_path / "gateway.yaml").write_text("scaling: {up_after_s: 4, down_after_s: 8, low: 0.8}\n")
    image = write_image(tmp_path / "image.png")
    with live_gateway(mar, tmp_path / "state", options=("--gateway-config", tmp_path / "gateway.yaml")) as live:
        done = live.imgcls("scale", "--auto", "--min", 1, "--max", 2)
        assert done.returncode == 0, done.stderr
        for rate, workers in ((9, 2), (3, 1)):
            with open_loop(live.url, image, tmp_path, rate=rate) as load:
                wait_for_workers(live, workers)
            assert [answer for answer in load.failed if answer.body != ENDED] == []
        assert live.imgcls("scale", 2).returncode == 0
        row = live.gateway.table().get("imgcls").get("1.0")
        assert row.autoscale is None
        log = live.member.folder.server_log
        began = tail_of(log)
        with open_loop(live.url, image, tmp_path, rate=9) as load:  # one worker or both are at work all the time
            with monkeypatch.context() as patch:
                patch.setattr(drain, "HOLDS_S", (0.1,))
                with pytest.raises(InFlightError, match="in flight all the time; its workers stay"):
                    scale(live.gateway, 1, timeout_s=60)
            assert live.gateway.table().get("imgcls").get("1.0") == row
            done = live.imgcls("scale", 1)
            assert done.returncode == 0, done.stderr
        assert load.failed == [] and load.dropped == 0
        said = log.read_text()[began:]
        assert said.count("WORKER_SCALED_DOWN") == 1 and CUT_OFF not in said
        assert live.gateway.table().get("imgcls").get("1.0") == row.model_copy(update={"workers": 1})


def wait_for_workers(live: Live, workers: int) -> None:
    deadline_s = time.monotonic() + 90
    while True:
        status = live.member.versions("imgcls")["1.0"]
        if status.ready_workers == len(status.workers) == workers:
            return
        assert time.monotonic() < deadline_s, live.log()
        time.sleep(0.2)
