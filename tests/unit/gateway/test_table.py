"""The table: what it refuses, how it is changed, and what Envoy and TorchServe make of it."""

import json
import threading
from pathlib import Path

import pytest

from imgcls.gateway.access import guard
from imgcls.gateway.apply import find_able
from imgcls.gateway.clusters import Endpoint
from imgcls.gateway.errors import BusyError, TableError
from imgcls.gateway.folder import GatewayFolder
from imgcls.gateway.gateway import Gateway
from imgcls.gateway.reconcile import find_actions, first_version
from imgcls.gateway.routes import public_routes, shadow_routes, shares
from imgcls.gateway.settings import Settings
from imgcls.gateway.table import Model, Shadow, Table, TableFile, Version, exclusive
from imgcls.serving.management import ModelStatus


def row(version: str, **fields) -> Version:
    return Version(**{"version": version, "archive": f"{version}.mar", "tree_sha256": "0", "workers": 1} | fields)


def model(*rows: Version, **fields) -> Model:
    return Model(**{"name": "imgcls", "default": rows[0].version, "versions": rows} | fields)


def status(version: str, *, wanted: int = 1) -> ModelStatus:
    return ModelStatus(
        model_name="imgcls",
        model_version=version,
        min_workers=wanted,
        max_workers=wanted,
        batch_size=1,
        max_batch_delay_ms=1,
    )


@pytest.mark.parametrize(
    ("rows", "fields", "words"),
    [
        ([row("1", weight=99.0)], {}, "weights are 99 together"),
        ([row("1", weight=100), row("1")], {}, "expected each once"),
        ([row("1", weight=100)], {"default": "2"}, "default is 2; expected one of 1"),
        ([row("1", weight=100)], {"shadow": Shadow(version="2", percent=5)}, "shadow is 2"),
    ],
)
def test_a_model_that_would_route_to_nothing_is_refused(rows, fields, words) -> None:
    with pytest.raises(ValueError, match=words):
        model(*rows, **fields)


def test_a_change_is_written_whole_and_counted_and_a_bad_one_leaves_all_as_it_was(tmp_path: Path) -> None:
    file = TableFile(tmp_path / "table.json")
    assert file.read() == Table()
    first = file.change(lambda table: table.with_model(model(row("1", weight=100))))
    assert (first.generation, file.read()) == (1, first)
    assert file.change(lambda table: table).generation == 1
    with pytest.raises(TableError, match="weights are 50 together"):
        file.change(lambda table: table.with_model(table.get("imgcls").with_weights({"1": 50})))
    assert file.read() == first
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []


def test_changes_at_the_same_time_are_all_made(tmp_path: Path) -> None:
    file = TableFile(tmp_path / "table.json")
    file.change(lambda table: table.with_model(model(row("0", weight=100))))

    def add(number: int) -> None:
        file.change(lambda table: table.with_model(table.get("imgcls").with_version(row(str(number)))))

    threads = [threading.Thread(target=add, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each.version for each in file.read().get("imgcls").versions) == [str(n) for n in range(9)]


def test_a_broken_file_is_told_and_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text('{"models": [')
    with pytest.raises(TableError, match="is broken"):
        TableFile(tmp_path / "table.json").change(lambda table: table)
    assert (tmp_path / "table.json").read_text() == '{"models": ['


def test_a_table_that_is_gone_leaves_the_routes_as_they_are(tmp_path: Path) -> None:
    folder = GatewayFolder(tmp_path / "state")
    folder.prepare()
    table = folder.table.change(lambda _: Table(models=(model(row("1", weight=100)),)))
    gateway = Gateway(folder, folder.paths(folder.path / "run"), Settings())
    assert gateway.known_table() == table
    gateway.apply()
    before = gateway.paths.public_routes.read_bytes()
    folder.table.path.unlink()
    assert gateway.known_table() == table
    with pytest.raises(TableError, match=r"table\.json: is gone; restore a copy"):
        gateway.apply()
    assert gateway.paths.public_routes.read_bytes() == before and b"/predictions/imgcls/1" in before


def test_who_holds_a_lock_keeps_others_out(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with exclusive(lock, busy="busy"), pytest.raises(BusyError, match="busy"), exclusive(lock, busy="busy"):
        pass
    with exclusive(tmp_path / "lock", busy="busy"):
        pass


def test_a_model_is_chosen_by_name_or_because_it_is_the_only_one() -> None:
    one = Table(models=(model(row("1", weight=100)),))
    assert one.choose(None).name == one.choose("imgcls").name == "imgcls"
    two = one.with_model(model(row("1", weight=100), name="other"))
    with pytest.raises(TableError, match="there is imgcls, other; name one with --name"):
        two.choose(None)
    with pytest.raises(TableError, match="no model 'flowers' is served"):
        two.choose("flowers")


def test_fractions_are_cumulative_and_the_last_version_has_none() -> None:
    split = model(row("1", weight=70.5), row("2", weight=29.5), row("3"))
    assert [(each.version, reached) for each, reached in shares(split)] == [("1", 70.5), ("2", 100.0)]
    routes = public_routes(Table(models=(split,)), Settings(), guard=guard(Settings()))["virtual_hosts"][0]["routes"]
    own = [route for route in routes if route["match"].get("path") == "/predictions/imgcls"]
    fractions = [route["match"].get("runtime_fraction", {}).get("default_value") for route in own]
    assert fractions == [{"numerator": 7050, "denominator": "TEN_THOUSAND"}, None]
    paths = {route["match"].get("path") for route in routes}
    assert "/predictions/imgcls/2" in paths
    assert "/predictions/imgcls/3" not in paths  # it has no share of the requests


def test_copies_go_from_the_others_to_the_shadow_and_are_rewritten_to_it() -> None:
    table = Table(models=(model(row("1", weight=100), row("2"), shadow=Shadow(version="2", percent=12.5)),))
    routes = public_routes(table, Settings(), guard=guard(Settings()))["virtual_hosts"][0]["routes"]
    own = next(route for route in routes if route["match"].get("path") == "/predictions/imgcls")
    [copy] = own["route"]["request_mirror_policies"]
    assert copy["runtime_fraction"]["default_value"]["numerator"] == 1250
    text = json.dumps(shadow_routes(table, Settings()))
    assert '"substitution": "/predictions/imgcls/2"' in text


def test_what_a_server_lacks_is_loaded_scaled_and_made_the_default_in_this_order() -> None:
    wanted = model(row("1", weight=100, workers=2), row("2"), row("3", servers=("b",)))
    found = find_actions(wanted, server="a", has={}, default=None)
    assert [(each.kind, each.version) for each in found] == [("load", "1"), ("load", "2"), ("set-default", "1")]
    has = {"1": status("1"), "2": status("2"), "9": status("9")}
    found = find_actions(wanted, server="a", has=has, default="2")
    assert [(each.kind, each.version) for each in found] == [("scale", "1"), ("set-default", "1")]
    assert find_actions(wanted, server="a", has=has | {"1": status("1", wanted=2)}, default="1") == []


def test_a_server_starts_with_the_default_version_or_with_one_that_it_shall_have() -> None:
    one = model(row("1", weight=50), row("2", weight=50, servers=("b",)))
    table = Table(models=(one,))
    assert [first_version(table, name)[1].version for name in ("a", "b")] == ["1", "1"]
    split = Table(models=(model(row("1", weight=50, servers=("a",)), row("2", weight=50, servers=("b",))),))
    assert [first_version(split, name)[1].version for name in ("a", "b")] == ["1", "2"]
    with pytest.raises(TableError, match="server c shall have no version"):
        first_version(split, "c")


def test_requests_go_where_workers_are_ready_and_to_all_where_none_is() -> None:
    ready = frozenset({("imgcls", "1")})
    a = Endpoint("a", "127.0.0.1", 1, 2, None, ready)
    b = Endpoint("b", "127.0.0.1", 3, 4, None, frozenset())
    assert find_able([a, b], "imgcls", row("1")) == [a]
    assert find_able([a, b], "imgcls", row("2")) == [a, b]
    assert find_able([a, b], "imgcls", row("1", servers=("b",))) == [b]
