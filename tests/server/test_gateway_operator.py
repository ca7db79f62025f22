"""An operator's mistakes and interruptions with a gateway that runs: one clear line each, and nothing half-done."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.tiny import make_tiny_run
from imgcls.rollout.state import RolloutFiles
from tests.support.archives import build
from tests.support.gateway import PROJECT, Live, live_gateway

PLAN = """
keep_warm_s = 0.0
[shadow]
percent = 0.0
[canary]
steps = [{weight = 50.0, hold_s = 60.0}]
"""


@dataclass(frozen=True)
class Site:
    live: Live
    archives: dict[str, Path]
    plan: Path

    def refused(self, *arguments: object, status: int = 1) -> str:
        """Runs a command that shall be refused, and returns its one line."""
        result = self.live.imgcls("rollout", *arguments)
        assert result.returncode == status, (result.stdout, result.stderr)
        (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        return line

    @contextmanager
    def rolling(self) -> Iterator[subprocess.Popen[str]]:
        """Starts a rollout of the new version, and goes on once it holds its canary."""
        command = [sys.executable, "-m", "imgcls.cli.main", "rollout", "start", str(self.archives["new"])]
        command += ["--plan", str(self.plan), "--state", str(self.live.folder.state)]
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=PROJECT,
            # A shell that runs the tests in the background has Ctrl-C ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as process:
            try:
                deadline_s = time.monotonic() + 120
                while self.live.gateway.table().get("imgcls").versions[-1].weight != 50:
                    assert process.poll() is None and time.monotonic() < deadline_s, self.live.log()
                    time.sleep(0.05)
                yield process
            finally:
                process.kill()

    def weights(self) -> dict[str, float]:
        return {row.version: row.weight for row in self.live.gateway.table().get("imgcls").versions}


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("archives")
    run, other = make_tiny_run(folder / "run"), make_tiny_run(folder / "other-run", seed=1)
    return {
        "stable": build(run, folder / "stable", version="1.0"),
        "new": build(run, folder / "new", version="2.0"),
        "same version": build(other, folder / "same", version="1.0"),
    }


@pytest.fixture(scope="module")
def site(archives: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    plan = folder / "plan.toml"
    plan.write_text(PLAN)
    settings = folder / "gateway.yaml"
    settings.write_text("readiness: {golden_every_s: 2}")
    with live_gateway(archives["stable"], folder / "state", options=["--gateway-config", settings]) as live:
        yield Site(live, archives, plan)


def test_commands_without_a_rollout_say_so(site: Site) -> None:
    assert "name an archive to begin one" in site.refused("start")
    assert "no rollout is under way" in site.refused("promote")
    assert "no version was rolled yet" in site.refused("undo")
    assert "cannot go back to '9'" in site.refused("undo", "9")
    assert "keeps its plan" in site.refused("start", "--plan", site.plan, status=2)


def test_a_version_that_is_served_already_is_not_rolled(site: Site) -> None:
    for name, words in (("stable", "with the same content"), ("same version", "with other content")):
        status, state = site.live.rollout("start", site.archives[name])
        assert (status, state["status"]) == (1, "rolled-back")
        assert words in state["reason"] and "another --version" in state["reason"]
    assert site.weights() == {"1.0": 100.0}


def test_ctrl_c_leaves_a_rollout_that_another_process_takes_back(site: Site) -> None:
    with site.rolling() as process:
        assert "another process runs a rollout" in site.refused("start", site.archives["new"])
        process.send_signal(signal.SIGINT)
        _, words = process.communicate(timeout=60)
    assert process.returncode == 130
    assert words.splitlines()[-1].startswith("left as it is, running; continue with imgcls rollout start")
    assert site.live.imgcls("rollout", "status").returncode == 1
    status, state = site.live.rollout("abort")
    assert (status, state["status"]) == (0, "rolled-back")
    assert "running" not in {step["status"] for step in state["steps"]}
    assert site.weights() == {"1.0": 100.0}


def test_promote_full_ends_a_pause_and_every_trial_and_undo_goes_back(site: Site) -> None:
    with site.rolling() as process:
        assert site.live.imgcls("rollout", "pause").returncode == 0
        while RolloutFiles(site.live.folder.rollout).read().status != "paused":
            assert process.poll() is None
            time.sleep(0.05)
        assert site.live.imgcls("rollout", "promote", "--full").returncode == 0
        out, err = process.communicate(timeout=45)  # less than the hold of 60 s
    assert process.returncode == 0 and "2.0: promoted" in out, err
    assert site.weights() == {"2.0": 100.0}
    status, state = site.live.rollout("undo")
    assert (status, state["status"]) == (0, "promoted")
    assert site.weights() == {"1.0": 100.0}


def test_an_archive_that_is_gone_from_the_store_does_not_end_the_server(site: Site) -> None:
    row = site.live.gateway.table().get("imgcls").versions[0]
    stored, pid = site.live.folder.store.path(row.archive), site.live.member.running().pid
    away = stored.rename(stored.with_suffix(".away"))
    try:
        deadline_s = time.monotonic() + 60
        while "there is no such archive" not in site.live.log() and time.monotonic() < deadline_s:
            time.sleep(0.2)
        assert "there is no such archive" in site.live.log()
        assert site.live.member.running().pid == pid
        assert site.live.ready()[0] == 200  # as long as the last right answer is not too old
    finally:
        away.rename(stored)


def test_stopping_the_gateway_leaves_a_rollout_as_it_is(site: Site) -> None:
    with site.rolling() as process:
        assert site.live.imgcls("stop").returncode == 0
        _, words = process.communicate(timeout=60)
    assert process.returncode == 1 and "the gateway was stopped, and the rollout is left as it is" in words
    assert site.weights() == {"1.0": 50.0, "2.0": 50.0}
    status = site.live.imgcls("rollout", "status")
    assert status.returncode == 1 and "no process runs it" in status.stdout
