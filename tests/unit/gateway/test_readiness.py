"""When the gateway calls itself ready, and what it says otherwise."""

import json
from pathlib import Path

import pytest

from imgcls.gateway.health import Board, BoardServer, Golden, Judgement, Seen, judge
from imgcls.gateway.table import Model, Table, Version
from imgcls.gateway.unix_http import ask

NOW_S = 1000.0


def table(*, canary: float = 0.0, min_ready: int = 1) -> Table:
    rows = tuple(
        Version(version=v, archive=v, tree_sha256="0", workers=2, weight=w, min_ready=min_ready)
        for v, w in (("1", 100.0 - canary), ("2", canary))
    )
    return Table(models=(Model(name="imgcls", default="1", versions=rows),))


def seen(version: str = "1", *, ready: int = 2, problem: str = "", golden: Golden | None = None) -> Seen:
    return Seen("main", "imgcls", version, ready, 2, problem, golden)


def look(wanted: Table, *found: Seen, **more) -> Judgement:
    return judge(wanted, found, **{"down": {}, "now_s": NOW_S, "golden_max_age_s": 60.0} | more)


def test_ready_means_that_every_version_with_requests_has_its_workers() -> None:
    assert look(table(), seen("1")).is_ready  # version 2 gets no requests
    judged = look(table(canary=5), seen("1"), seen("2", ready=0, problem="RuntimeError: no such device (12:00)"))
    assert judged.reasons == ("imgcls 2: 0 of at least 1 workers READY: RuntimeError: no such device (12:00)",)
    assert look(table(min_ready=3), seen("1")).reasons == ("imgcls 1: 2 of at least 3 workers READY",)


def test_a_server_that_is_down_is_named_where_it_matters() -> None:
    judged = look(table(), down={"main": "it is starting"})
    assert judged.reasons == ("imgcls 1: 0 of at least 1 workers READY: server main: it is starting",)
    assert look(table(), seen("1"), down={"b": "killed"}).is_ready


@pytest.mark.parametrize(
    ("golden", "reason"),
    [
        (Golden("right", NOW_S - 10), ""),
        (None, ""),
        (Golden("wrong", NOW_S, "got 0.2, expected 0.9"), "got 0.2, expected 0.9"),
        (Golden("unanswered", NOW_S - 10, "timeout"), ""),
        (Golden("unanswered", NOW_S - 61, "timeout"), "no right golden answer for 61 s: timeout"),
        (Golden("right", NOW_S - 61), "no right golden answer for 61 s: "),
    ],
)
def test_a_wrong_golden_answer_counts_at_once_and_a_missing_one_after_a_while(golden, reason) -> None:
    judged = look(table(), seen("1", golden=golden))
    assert judged.reasons == ((f"imgcls 1 on main: {reason}",) if reason else ())


def test_nothing_to_serve_and_being_stopped_are_not_ready() -> None:
    assert look(Table()).reasons == ("no model is served",)
    assert look(table(), seen("1"), is_draining=True).reasons == ("it is being stopped",)


def test_the_board_is_shown_over_a_socket_until_it_is_closed(tmp_path: Path) -> None:
    path, board = tmp_path / "ready.sock", Board()
    server = BoardServer(path, board)
    try:
        status, body = ask(path, "/ready")
        assert (status, json.loads(body)["reasons"]) == (503, ["it is starting"])
        board.judgement = Judgement(True)
        assert ask(path, "/ready")[0] == 200
        assert ask(path, "/ready", method="HEAD") == (200, b"")
    finally:
        server.close()
    with pytest.raises(OSError):
        ask(path, "/ready")
