"""Where a rollout stands, its steps, and what an operator may ask of it; the engine itself runs in tests/slow."""

import re
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.open_loop import Answer
from bench.rollout import Span, find_forbidden
from imgcls.errors import UsageError
from imgcls.gateway.folder import GatewayFolder
from imgcls.gateway.gateway import Gateway
from imgcls.gateway.listeners import EnvoyPaths
from imgcls.gateway.table import Model, Shadow, Table, Version
from imgcls.rollout import instances, traffic
from imgcls.rollout.errors import HookError, RolloutError
from imgcls.rollout.hold import hold
from imgcls.rollout.hooks import run_hook
from imgcls.rollout.plan import Canary, CanaryStep, Hook, Plan
from imgcls.rollout.plan import Shadow as ShadowPlan
from imgcls.rollout.progress import AbortRequestedError, Progress
from imgcls.rollout.rollouts import Rollouts, find_release, new_rollout, steps_of
from imgcls.rollout.state import Release, RolloutFiles, RolloutState
from imgcls.rollout.verdicts import Report
from imgcls.rollout.window import Window
from tests.support.http import Server


def row(version: str, **fields) -> Version:
    return Version(**{"version": version, "archive": f"{version}.mar", "tree_sha256": "0", "workers": 1} | fields)


def table(*rows: Version, **fields) -> Table:
    return Table(models=(Model(**{"name": "imgcls", "default": rows[0].version, "versions": rows} | fields),))


def release(version: str) -> Release:
    return Release(version=version, archive=f"{version}.mar", tree_sha256="0", workers=1)


def weights(table: Table) -> dict[str, float]:
    return {row.version: row.weight for row in table.get("imgcls").versions}


@pytest.fixture
def state() -> RolloutState:
    return new_rollout(table(row("1", weight=100)).get("imgcls"), Path("/2.mar"), Plan(), operator="ops@host")


def test_the_steps_follow_the_plan() -> None:
    assert [step.name for step in steps_of(Plan())] == [
        "verify",
        "load",
        "golden",
        "shadow",
        "canary 10 %",
        "canary 50 %",
        "promote",
        "drain",
        "keep-warm",
        "retire",
    ]
    bare = Plan(golden=False, keep_warm_s=0.0, shadow=ShadowPlan(percent=0.0))
    assert [step.kind for step in steps_of(bare, is_undo=True)] == ["verify", "load", "promote", "drain", "retire"]
    by_server = steps_of(Plan(strategy="instances"), servers=("a", "b"))
    assert [step.name for step in by_server] == ["verify", "instance a", "instance b", "promote", "retire"]


def test_a_split_of_requests_has_no_stable_version_to_roll_from() -> None:
    with pytest.raises(RolloutError, match="requests are split already"):
        new_rollout(table(row("1", weight=60), row("2", weight=40)).get("imgcls"), Path("x"), Plan(), operator="me")


def test_the_state_comes_back_from_the_disk_as_it_was(tmp_path: Path, state: RolloutState) -> None:
    files = RolloutFiles(tmp_path)
    assert files.read() is None
    state = state.with_step(0, status="done").model_copy(update={"candidate": release("2")})
    files.write(state)
    assert files.read() == state
    assert state.current() == 1
    files.state_file.write_text("{")
    with pytest.raises(RolloutError, match="cannot be read"):
        files.read()


def test_a_request_of_an_operator_is_taken_once_and_a_broken_one_never(tmp_path: Path) -> None:
    files = RolloutFiles(tmp_path)
    files.put_request("pause")
    assert [files.take_request(), files.take_request()] == ["pause", None]
    files.request_file.write_text("{")
    assert files.take_request() is None


def test_a_line_that_a_crash_cut_short_is_left_out_of_the_log_and_spoils_no_other(tmp_path: Path) -> None:
    files = RolloutFiles(tmp_path)
    files.append(files.audit_file, {"event": "a"})
    with files.audit_file.open("a") as file:
        file.write('{"event": "b')
    assert files.read_lines(files.audit_file) == [{"event": "a"}]
    files.append(files.audit_file, {"event": "c"})
    assert files.read_lines(files.audit_file) == [{"event": "a"}, {"event": "c"}]


def test_every_change_of_the_table_keeps_all_requests_routed() -> None:
    now = traffic.add_candidate(table(row("1", weight=100)), "imgcls", release("2"))
    assert weights(now) == {"1": 100, "2": 0}
    now = traffic.shadow(now, "imgcls", "2", 20)
    assert now.get("imgcls").shadow == Shadow(version="2", percent=20)
    now = traffic.split(now, "imgcls", stable="1", candidate="2", weight=12.5)
    assert (weights(now), now.get("imgcls").shadow) == ({"1": 87.5, "2": 12.5}, None)
    now = traffic.give_all(now, "imgcls", "2")
    assert (weights(now), now.get("imgcls").default) == ({"1": 0, "2": 100}, "2")
    assert weights(traffic.remove(now, "imgcls", "1")) == {"2": 100}


def test_server_by_server_the_share_of_requests_is_the_share_of_servers() -> None:
    servers, now = ("a", "b", "c"), table(row("1", weight=100))
    seen = []
    for server in servers:
        now = instances.leave(now, "imgcls", "1", server, servers=servers, heir=release("2"))
        now = instances.join(now, "imgcls", release("2"), server)
        now = instances.share(now, "imgcls", stable="1", candidate="2")
        seen.append((weights(now), now.get("imgcls").get("1").servers, now.get("imgcls").get("2").servers))
    assert seen == [
        ({"1": 66.67, "2": 33.33}, ("b", "c"), ("a",)),
        ({"1": 33.33, "2": 66.67}, ("c",), ("a", "b")),
        ({"1": 0, "2": 100}, (), ("a", "b", "c")),
    ]
    assert instances.spread(now, "imgcls", "2").get("imgcls").get("2").servers is None


def test_undo_goes_to_the_version_before_or_to_one_of_the_history() -> None:
    history = [
        {"model": "imgcls", "before": release("1").model_dump(), "release": release("2").model_dump()},
        {"model": "other", "before": release("7").model_dump(), "release": release("8").model_dump()},
        {"model": "imgcls", "before": release("2").model_dump(), "release": release("3").model_dump()},
    ]
    assert find_release(history, None, model="imgcls", now="3").version == "2"
    assert find_release(history, "1", model="imgcls", now="3").version == "1"
    with pytest.raises(RolloutError, match="the history has 1, 2, and 3 is served"):
        find_release(history, "8", model="imgcls", now="3")
    with pytest.raises(RolloutError, match="no version was rolled yet"):
        find_release([], None, model="imgcls", now="3")
    assert find_release(history, None, model="imgcls", now="2").version == "1"  # 3 was aborted while 2 was kept warm
    with pytest.raises(RolloutError, match=r"1 is served, and the history has none before it; name .*: 2, 3"):
        find_release(history, None, model="imgcls", now="1")


class FakeGateway:
    """A table without servers, so that every step of a rollout has nothing to wait for."""

    def __init__(self, folder: GatewayFolder) -> None:
        self.folder = folder
        self.members = ()
        self.admin = SimpleNamespace(in_flight=lambda _: 0)
        self.table = folder.table.read
        self.change = folder.table.change


@pytest.fixture
def rollouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rollouts:
    folder = GatewayFolder(tmp_path / "state")
    folder.prepare()
    folder.supervisor_file.touch()
    folder.table.change(lambda _: table(row("2", weight=100), row("1")))
    monkeypatch.setattr(GatewayFolder, "read_running", lambda _: SimpleNamespace(trust=None))
    monkeypatch.setattr(Gateway, "of", lambda folder, _: FakeGateway(folder))
    return Rollouts(folder)


def left_at(rollouts: Rollouts, state: RolloutState, kind: str) -> RolloutState:
    """Leaves a rollout as a killed process does."""
    kinds = [step.kind for step in state.steps]
    for number in range(kinds.index(kind)):
        state = state.with_step(number, status="done")
    state = state.with_step(kinds.index(kind), status="running").model_copy(update={"candidate": release("2")})
    rollouts.files.write(state)
    return state


def ignore(*_: object) -> None:
    pass


def test_a_rollout_whose_old_version_is_retired_is_over_even_where_it_shall_be_aborted(rollouts, state) -> None:
    rollouts.gateway.change(lambda now: traffic.remove(now, "imgcls", "1"))
    left_at(rollouts, state, "retire")
    ended = rollouts.abort(on_change=ignore)
    assert (ended.status, ended.current()) == ("promoted", None)
    assert re.fullmatch("aborted by .*; 1 had been retired by then, imgcls rollout undo loads it again", ended.reason)
    failing = Plan(hooks={"after_retire": (Hook(exec=("false",)),)})
    left_at(rollouts, state.model_copy(update={"plan": failing}), "retire")
    ended = rollouts.start(None, None, on_change=ignore)
    assert ended.status == "promoted"
    assert "false ended with exit status 1" in ended.reason


def test_a_server_that_is_gone_when_its_turn_comes_takes_the_rollout_back(rollouts, state) -> None:
    rollouts.gateway.change(lambda _: table(row("1", weight=100), row("2")))
    plan = Plan(strategy="instances")
    left_at(rollouts, state.model_copy(update={"plan": plan, "steps": steps_of(plan, servers=("b",))}), "instance")
    ended = rollouts.start(None, None, on_change=ignore)
    assert (ended.status, ended.reason) == ("rolled-back", "there is no server b any more; there is none")


def test_undo_of_another_version_or_model_leaves_a_rollout_under_way_alone(rollouts, state) -> None:
    left = left_at(rollouts, state, "keep-warm")
    before = rollouts.gateway.table()
    for version, model in (("0", None), ("0", "imgcls"), (None, "other")):
        with pytest.raises(RolloutError, match="version 2, is running, and keeps its archive"):
            rollouts.undo(version, model=model, on_change=ignore)
    assert (rollouts.files.read(), rollouts.gateway.table()) == (left, before)
    assert rollouts.undo(None, model="imgcls", on_change=ignore).status == "rolled-back"
    assert weights(rollouts.gateway.table()) == {"1": 100}


def test_a_rollout_is_not_continued_with_another_archive_or_plan(rollouts, state, tmp_path, monkeypatch) -> None:
    archive = tmp_path / "2.mar"
    archive.touch()
    left_at(rollouts, state.model_copy(update={"source": str(archive)}), "retire")
    trees = iter("10")
    monkeypatch.setattr("imgcls.rollout.rollouts.read_integrity", lambda _: SimpleNamespace(tree_sha256=next(trees)))
    for plan in (None, Plan(keep_warm_s=1.0)):  # built anew since; another plan
        with pytest.raises(RolloutError, match="keeps its archive and plan; continue it with imgcls rollout start,"):
            rollouts.start(archive, plan, on_change=ignore)
    assert rollouts.start(archive, Plan(), on_change=ignore).status == "promoted"


def test_a_plan_that_wants_more_workers_than_could_be_begins_nothing(rollouts, monkeypatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=2_000_000_000))
    with pytest.raises(UsageError, match="the plan's workers is 14; expected at most 13"):
        rollouts.start(Path("/2.mar"), Plan(workers=14), on_change=ignore)
    assert rollouts.files.read() is None


def test_nothing_that_is_asked_later_takes_the_place_of_an_abort(rollouts, state, monkeypatch) -> None:
    left_at(rollouts, state, "load")
    monkeypatch.setattr(rollouts, "is_run", lambda: True)
    rollouts.ask("pause")
    rollouts.files.put_request("abort")
    with pytest.raises(RolloutError, match="was asked to abort"):
        rollouts.ask("promote")
    assert rollouts.files.take_request() == "abort"


@pytest.fixture
def progress(tmp_path: Path, state: RolloutState) -> Progress:
    supervisor = tmp_path / "supervisor.json"
    supervisor.touch()
    gateway = SimpleNamespace(folder=SimpleNamespace(supervisor_file=supervisor))
    files = RolloutFiles(tmp_path)
    return Progress(gateway, files, trust=None, operator="ops", on_change=lambda *_: None, state=state)


@pytest.mark.parametrize(("request_text", "is_cut_short"), [("promote", True), ("promote-full", True), (None, False)])
def test_an_operator_can_cut_a_hold_short(progress: Progress, request_text, is_cut_short) -> None:
    if request_text:
        progress.files.put_request(request_text)
    assert progress.wait(0.3) is is_cut_short
    skipped = [step.kind for step in progress.state.steps if step.status == "skipped"]
    assert skipped == (["shadow", "canary", "canary"] if request_text == "promote-full" else [])


def test_an_operator_can_pause_and_go_on_or_abort(progress: Progress) -> None:
    progress.files.put_request("pause")
    waiting = threading.Thread(target=progress.wait, args=(0.5,))
    waiting.start()
    deadline_s = time.monotonic() + 5
    while progress.files.read() is None or progress.files.read().status != "paused":
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    progress.files.put_request("promote")
    waiting.join(timeout=5)
    assert progress.state.status == "running"
    progress.files.put_request("abort")
    with pytest.raises(AbortRequestedError):
        progress.wait(5)


@pytest.mark.parametrize("hold_s", [0.0, 3.0, 10.0, 25.0])
def test_a_hold_is_judged_no_more_often_than_its_schedule_foresees(progress, state, monkeypatch, hold_s) -> None:
    plan = Plan(shadow=ShadowPlan(percent=0.0), canary=Canary(steps=(CanaryStep(weight=50.0, hold_s=hold_s),)))
    step = next(step for step in steps_of(plan) if step.kind == "canary")
    progress.state = state.model_copy(update={"plan": plan, "steps": steps_of(plan), "candidate": release("2")})
    progress.gateway.paths = EnvoyPaths(progress.files.folder, progress.files.folder)
    now_s, looks = [0.0], []

    def wait(seconds: float) -> bool:
        now_s[0] += seconds
        return False

    def see(window: Window, *_: object) -> Report:
        looks.append(window.look)
        return Report("inconclusive", (), "")

    monkeypatch.setattr("imgcls.rollout.hold.time", SimpleNamespace(monotonic=lambda: now_s[0]))
    monkeypatch.setattr("imgcls.rollout.hold.judge", see)
    monkeypatch.setattr(progress, "wait", wait)
    monkeypatch.setattr(progress, "pause", lambda _: False)
    hold(progress, step)
    assert [look.phase for look in looks].count("end") == 1
    assert [look.phase for look in looks].count("wait") == plan.schedule().waits
    assert len(looks) == plan.schedule().interims + 1
    alpha_to_succeed = sum(look.levels(confidence=0.95, limits=1).succeed for look in looks if look.phase != "hold")
    assert alpha_to_succeed == pytest.approx(0.05)


def test_a_webhook_that_moved_has_not_been_told() -> None:
    class Moved(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(301)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with Server(("127.0.0.1", 0), Moved) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        hook = Hook(webhook=f"http://127.0.0.1:{server.server_address[1]}/")
        with pytest.raises(HookError, match="answered 301"):
            run_hook(hook, point="after_promote", payload={})
        server.shutdown()


def test_a_hook_may_say_what_is_no_text(tmp_path: Path) -> None:
    command = tmp_path / "say"
    command.write_text("#!/bin/sh\nprintf '\\377 no' >&2\nexit 3\n")
    command.chmod(0o755)
    with pytest.raises(HookError, match="exit status 3: \ufffd no"):
        run_hook(Hook(exec=(str(command),)), point="before_load", payload={})
    with pytest.raises(HookError, match="could not be run to its end: embedded null byte"):
        run_hook(Hook(exec=("a\0b",)), point="before_load", payload={})


def test_an_answer_of_a_version_that_was_not_allowed_is_found() -> None:
    spans = [Span("1", "2", 10.0, 20.0), Span("2", "3", 30.0, 40.0)]

    def answer(at_s: float, version: str, ms: float = 10) -> Answer:
        return Answer(at_s, 200, version, ms, "id", "-")

    good = [answer(5, "1"), answer(15, "1"), answer(15, "2"), answer(19.995, "1"), answer(25, "2"), answer(45, "3")]
    good += [answer(35, "2"), answer(35, "3"), answer(9.9, "2", ms=200)]
    bad = [answer(5, "2"), answer(25, "1"), answer(25, "3"), answer(45, "2"), answer(45, "1"), answer(20.1, "1")]
    assert find_forbidden(good, spans, first="1") == []
    assert find_forbidden(bad, spans, first="1") == bad
