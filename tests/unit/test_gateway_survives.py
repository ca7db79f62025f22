"""What the machine may refuse the supervisor for a while, without ending what it keeps alive."""

import errno
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from imgcls.gateway import keeper
from imgcls.gateway.envoy_process import EnvoyProcess
from imgcls.gateway.errors import BusyError
from imgcls.gateway.keeper import Keeper
from imgcls.gateway.member import Member
from imgcls.gateway.store import Store
from imgcls.gateway.table import Version
from imgcls.serving.errors import NotRunningError
from imgcls.serving.state import StateFolder

WAIT_S = 10.0


def refuse(*_: object, **__: object) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_a_server_is_started_again_once_the_disk_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "FIRST_BACK_OFF_S", 0.01)
    monkeypatch.setattr(keeper, "LONGEST_BACK_OFF_S", 0.01)
    monkeypatch.setattr(keeper.server, "stop", lambda _: False)
    started = threading.Event()
    member = SimpleNamespace(name="main", folder=None, mark_down=refuse)
    kept = Keeper(member, None, None, on_change=lambda: None)
    monkeypatch.setattr(kept, "_keep", lambda _: started.set())
    monkeypatch.setattr(kept, "_start", lambda: member.mark_down())
    kept.start()
    time.sleep(0.2)
    assert kept.is_alive() and not started.is_set()
    member.mark_down = lambda: None
    assert started.wait(WAIT_S)
    kept.stop()


def test_a_server_that_is_down_is_left_to_the_gateway_to_start(tmp_path: Path) -> None:
    member = Member("main", StateFolder(tmp_path), Store(tmp_path))
    with pytest.raises(NotRunningError, match=r"^server main is down; the gateway starts it again") as caught:
        member.load("m", Version(version="1", archive="m.mar", tree_sha256="0", workers=1, weight=100), timeout_s=1)
    assert "imgcls serve" not in str(caught.value)
    assert member.state() is None and member.is_idle("m", "1")


def test_whoever_waits_for_his_turn_at_a_server_says_so_and_not_for_ever(tmp_path: Path) -> None:
    first, second = (Member("main", StateFolder(tmp_path), Store(tmp_path)) for _ in range(2))
    said: list[str] = []
    with first.lock(timeout_s=0.1, on_progress=said.append), second.try_lock() as is_mine:
        assert not is_mine and not said
        with pytest.raises(BusyError, match=r"^main: another command, or the gateway itself, changes its versions"):
            second.lock(timeout_s=0.1, on_progress=said.append).__enter__()
    assert said == ["main: waiting for a rollout, an apply or a scale that changes its versions"]
    with second.lock(timeout_s=0.1):
        pass


def test_envoy_that_cannot_be_started_now_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    envoy = EnvoyProcess(
        SimpleNamespace(settings=SimpleNamespace(listen=SimpleNamespace(port=0)), paths=SimpleNamespace()), marker="x"
    )
    monkeypatch.setattr(envoy, "_launch", refuse)
    envoy.keep()
    assert envoy.has_ended
