"""What keeps requests away from a server that loses a worker, and from a model that is about to go."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from imgcls.gateway.clusters import Endpoint, load_assignment
from imgcls.gateway.errors import TableError
from imgcls.gateway.reconcile import first_version
from imgcls.gateway.settings import Scaling
from imgcls.gateway.table import Autoscale, Model, Table, TableFile, Version

ROW = Version(version="1", archive="m.mar", tree_sha256="a", workers=1, weight=100)
ENDPOINTS = [Endpoint(name, "127.0.0.1", port, port + 1, None) for name, port in (("a", 7000), ("b", 8000))]


def test_draining_server_is_told_to_envoy_and_keeps_its_place() -> None:
    hosts = load_assignment("m@1", ENDPOINTS, draining=("b",))["endpoints"][0]["lb_endpoints"]
    ports = [host["endpoint"]["address"]["socket_address"]["port_value"] for host in hosts]
    assert ports == [7000, 8000]
    assert [host["health_status"] for host in hosts] == ["HEALTHY", "DRAINING"]


def test_server_starts_with_the_default_version_that_it_shall_have() -> None:
    rows = (
        ROW.model_copy(update={"version": "2", "weight": 0.0}),
        ROW.model_copy(update={"servers": ("a",)}),
    )
    table = Table(models=(Model(name="m", default="1", versions=rows),))
    assert first_version(table, "a")[1].version == "1"
    assert first_version(table, "b")[1].version == "2"


def test_server_without_any_version_is_told() -> None:
    table = Table(models=(Model(name="m", default="1", versions=(ROW.model_copy(update={"servers": ("a",)}),)),))
    with pytest.raises(TableError, match="server b shall have no version"):
        first_version(table, "b")


def test_bounds_and_thresholds_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(ValidationError, match="min is 3; expected at most max, 2"):
        Autoscale(min=3, max=2)
    with pytest.raises(ValidationError, match=r"low is 0\.8; expected less than high, 0\.5"):
        Scaling(high=0.5, low=0.8)


def test_table_of_before_is_read_and_what_follows_the_load_survives(tmp_path: Path) -> None:
    file = TableFile(tmp_path / "table.json")
    file.path.write_text(
        '{"generation": 3, "models": [{"name": "m", "default": "1", "versions": [{"version": "1", "archive": "m.mar", '
        '"tree_sha256": "a", "workers": 1, "weight": 100}]}]}'
    )
    assert file.read().models[0].versions[0] == ROW
    follows = ROW.model_copy(update={"autoscale": Autoscale(min=1, max=4)})
    file.change(lambda table: table.with_model(Model(name="m", default="1", versions=(follows,))))
    assert file.read().models[0].versions[0].autoscale == Autoscale(min=1, max=4)
