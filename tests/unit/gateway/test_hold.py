"""Requests that wait at the gateway, as a server that is alone loses a worker."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgcls.gateway.routes import public_routes, shadow_routes
from imgcls.gateway.settings import Settings
from imgcls.gateway.table import Hold, Model, Shadow, Table, TableFile, Version

HOLD = Hold(server="main", seconds=1.0)


@pytest.fixture(scope="module")
def gateway(running) -> Iterator:
    with running(Settings()) as gateway:
        yield gateway


def asked_s(gateway, path: str) -> float:
    began_s = time.monotonic()
    answer = gateway.ask(path)
    assert (answer.status, answer.body) == (200, b"ok")
    return time.monotonic() - began_s


def test_requests_of_a_held_version_wait_their_time_and_those_of_others_do_not(gateway) -> None:
    model = gateway.table.get("flowers")
    gateway.table = gateway.table.with_model(model.with_hold("1.0", HOLD))
    gateway.apply()
    for path in ("/predictions/flowers", "/predictions/flowers/1.0", "/v2/models/flowers/infer"):
        assert asked_s(gateway, path) > 0.95  # timers differ by a little
    assert asked_s(gateway, "/predictions/birds") < 0.8
    gateway.table = gateway.table.with_model(model)
    gateway.apply()
    assert asked_s(gateway, "/predictions/flowers") < 0.8


def test_hold_reaches_copies_and_grpc() -> None:
    rows = [Version(version=name, archive="a", tree_sha256="0", workers=1) for name in ("1", "2")]
    rows[0] = rows[0].model_copy(update={"weight": 100.0})
    model = Model(name="m", default="1", versions=tuple(rows), shadow=Shadow(version="2", percent=50))
    copies = shadow_routes(Table(models=(model.with_hold("2", HOLD),)), Settings())
    route = copies["virtual_hosts"][0]["routes"][0]
    assert "1.000s" in str(route["typed_per_filter_config"])
    for held, expected in ((None, False), (HOLD, True)):
        routes = public_routes(Table(models=(model.with_hold("1", held),)), Settings(), guard={})
        grpc = [each for each in routes["virtual_hosts"][0]["routes"] if each["name"] == "grpc"]
        assert [("1.000s" in str(each["typed_per_filter_config"])) for each in grpc] == [expected] * len(grpc)


def test_hold_is_kept_on_disk(tmp_path: Path) -> None:
    row = Version(version="1", archive="a", tree_sha256="0", workers=1, weight=100)
    file = TableFile(tmp_path / "table.json")
    file.change(lambda table: table.with_model(Model(name="m", default="1", versions=(row,)).with_hold("1", HOLD)))
    assert file.read().get("m").get("1").hold == HOLD
    model = file.read().get("m")
    assert model.with_hold("1", None) == Model(name="m", default="1", versions=(row,))
    assert model.with_hold("2", HOLD) == model
