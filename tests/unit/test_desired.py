"""What a wish says, what it lacks, and the tables that lead from one to the other."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from imgcls.desired.difference import (
    find_changes,
    find_conflict,
    on_fewer_servers,
    placements,
    with_additions,
    with_requests_moved,
    with_workers_as_they_are,
    without_idle,
)
from imgcls.desired.file import Desired, read_desired, to_table, write_desired
from imgcls.errors import UsageError
from imgcls.gateway.store import Store, Stored
from imgcls.gateway.table import Autoscale, Model, Table, Version
from imgcls.serving.state import ServerTrust

SERVERS = ("a", "b")


def row(version: str, *, weight: float = 0, workers: int = 1, servers: tuple[str, ...] | None = None) -> Version:
    return Version(
        version=version,
        archive=f"m-{version}",
        tree_sha256=version * 8,
        workers=workers,
        weight=weight,
        servers=servers,
    )


def table(*rows: Version, default: str | None = None, name: str = "m") -> Table:
    return Table(models=(Model(name=name, default=default or rows[0].version, versions=rows),))


def held(now: Table) -> dict[str, dict[str, dict[str, int]]]:
    return {
        server: {model.name: {each.version: each.workers for each in model.versions} for model in now.models}
        for server in SERVERS
    }


def write(folder: Path, text: str) -> Path:
    path = folder / "desired.yaml"
    path.write_text(text)
    return path


ONE = "models: [{name: m, versions: [{version: '1', archive: m.mar"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("models: []", "models is a list; expected at least one entry"),
        ("[1]", "desired.yaml: it is a list; expected a section of keys"),
        ("models: [" + "[" * 3000, "cannot be read"),
        (ONE.replace("'1'", "2026-02-30") + "}]}]", "cannot be read: day is out of range"),
        ("models: [{name: m, versions: [{version: 1.0, archive: m.mar}]}]", "expected a text"),
        ("{}", "models is missing"),
        (ONE + ", wieght: 100}]}]", "models[0].versions[0].wieght is no key here; meant weight?"),
        (ONE + ", weight: 40}]}]", "m has weights of 40 together; expected 100"),
        (ONE + ", weight: 140}]}]", "models[0].versions[0].weight is 140; expected 0 to 100"),
        (ONE + ", weight: 33.333}]}]", "models[0].versions[0].weight is 33.333; expected at most two decimals"),
        (ONE + ", weight: yes}]}]", "models[0].versions[0].weight is true; expected 0 to 100"),
        (ONE + ", autoscale: {min: true, max: 2}}]}]", "versions[0].autoscale.min is true; expected a whole number"),
        (ONE + ", workers: 8, autoscale: {min: 2, max: 4}}]}]", "version 1 has workers 8; expected 2 to 4"),
        (ONE + ", workers: 0}]}]", "models[0].versions[0].workers is 0; expected"),
        (ONE + ", workers: many}]}]", "models[0].versions[0].workers is 'many'"),
        (ONE + "}], default: '7'}]", "m has the default 7; expected one of 1"),
        (ONE + "}, {version: '1', archive: m.mar}]}]", "m has the versions 1, 1; expected each once"),
        ("models: [", "cannot be read"),
    ],
)
def test_wrong_file_is_one_line_that_names_the_key(tmp_path: Path, text: str, words: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        read_desired(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ") and words in said and "\n" not in said
    assert "command" not in said


def test_archives_are_meant_from_the_files_folder_and_a_lone_version_gets_all_requests(tmp_path: Path) -> None:
    desired = read_desired(write(tmp_path, ONE + "}]}]"))
    assert desired.models[0].versions[0].archive == tmp_path / "m.mar"
    assert desired.models[0].weights == {"1": 100.0} and desired.models[0].default_version == "1"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (", servers: [a, b, c]", "servers names c; expected some of a, b"),
        (", servers: [a]", "server b would have no version"),
        (", servers: [a, b, a]", "m 1: servers names a, b, a; expected each once"),
        (", workers: 2, min_ready: 5", "min_ready is 5; expected at most its 4 workers"),
        (", workers: 2, min_ready: 3, autoscale: {min: 1, max: 2}", "min_ready is 3; expected at most its 2 workers"),
    ],
)
def test_what_the_servers_cannot_give_is_refused(tmp_path: Path, changes: str, words: str) -> None:
    path = write(tmp_path, ONE + changes + "}]}]")
    with pytest.raises(UsageError, match=words):
        read_desired(path).check_servers(SERVERS, file=path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (", workers: 14", r"m 1: workers is 14; expected at most 13, as each .* 2\.0 GB"),
        (", autoscale: {min: 1, max: 14}", r"m 1: autoscale\.max is 14; expected at most 13"),
    ],
)
def test_workers_that_no_memory_could_hold_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: str, words: str
) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=2_000_000_000))
    path = write(tmp_path, ONE + changes + "}]}]")
    with pytest.raises(UsageError, match=words):
        read_desired(path).check_servers(SERVERS, file=path)


def test_default_without_requests_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, ONE + ", weight: 100}, {version: '2', archive: n.mar}], default: '2'}]")
    with pytest.raises(UsageError, match="it is the default and has no requests"):
        read_desired(path).check_servers(SERVERS, file=path)


def test_export_is_a_wish_for_what_is_there(tmp_path: Path) -> None:
    now = table(row("1", weight=80, workers=2), row("2", weight=20, servers=("a",)))
    text = write_desired(now, Store(tmp_path))
    desired = Desired.model_validate(yaml.safe_load(text))
    trust = ServerTrust(policy="hash", file=None, signer=None)
    wish = {("m", v): Stored("m", v, f"m-{v}", v * 8, trust) for v in ("1", "2")}
    assert to_table(desired, wish).models == now.models


def test_where_no_gateway_was_served_there_is_nothing_to_export(tmp_path: Path, command) -> None:
    status, out, err = command("apply", "--export", "--state", tmp_path / "nowhere")
    assert (status, out) == (1, "") and err.startswith("error: no gateway was served with the state folder")


@pytest.mark.parametrize(("now", "wanted"), [(3, 3), (9, 4), (1, 2)])
def test_workers_that_follow_the_load_are_no_difference_within_their_bounds(now: int, wanted: int) -> None:
    follows = row("1", weight=100, workers=2).model_copy(update={"autoscale": Autoscale(min=2, max=4)})
    present = table(follows.model_copy(update={"workers": now}))
    wish = with_workers_as_they_are(table(follows), present)
    assert wish.get("m").get("1").workers == wanted
    assert bool(find_changes(present, wish, held(present))) == (now != wanted)


def test_export_keeps_the_bounds(tmp_path: Path) -> None:
    follows = row("1", weight=100).model_copy(update={"autoscale": Autoscale(min=1, max=4)})
    text = write_desired(table(follows), Store(tmp_path))
    assert Desired.model_validate(yaml.safe_load(text)).models[0].versions[0].autoscale == follows.autoscale


def test_same_wish_again_has_no_changes() -> None:
    now = table(row("1", weight=100, workers=2))
    assert find_changes(now, now.model_copy(update={"generation": 7}), held(now)) == []


def test_changes_of_the_table_are_told_one_by_one() -> None:
    now = table(row("1", weight=100, workers=2))
    wanted = table(row("1", weight=75), row("2", weight=25, servers=("a",)), default="1")
    told = [(each.what, each.before, each.after) for each in find_changes(now, wanted, held(now))]
    assert told == [
        ("m 1 weight", "100 %", "75 %"),
        ("m 1 workers", "2", "1"),
        ("m 2", "-", "25 %, 1 workers on a, 22222222"),
    ]


def test_server_that_lost_or_got_something_by_hand_is_told() -> None:
    now = table(row("1", weight=100))
    has = {"a": {"m": {}}, "b": {"m": {"1": 1, "9": 3}}}
    told = [(each.what, each.before, each.after) for each in find_changes(now, now, has)]
    assert told == [("m 1 on a", "-", "1 workers"), ("m 9 on b", "3 workers", "-")]


def test_other_content_under_a_version_that_is_served_is_a_conflict() -> None:
    now = table(row("1", weight=100))
    other = table(row("1", weight=100).model_copy(update={"tree_sha256": "f" * 8}))
    assert "build the new one with another --version" in find_conflict(now, other)
    assert find_conflict(now, now) == ""


def test_no_request_moves_while_things_are_added_and_no_worker_is_taken() -> None:
    now = table(row("1", weight=100, workers=3, servers=("a",)))
    wanted = table(row("2", weight=90), row("1", weight=10, workers=1, servers=("b",)))
    larger = with_additions(now, wanted).get("m")
    assert {each.version: each.weight for each in larger.versions} == {"1": 100, "2": 0}
    assert larger.get("1").workers == 3 and larger.default == "1"


def test_further_server_gets_requests_once_it_has_the_version_and_an_old_one_until_it_is_drained() -> None:
    now, wanted = table(row("1", weight=100, servers=("a",))), table(row("1", weight=100, servers=("b",)))
    larger = with_additions(now, wanted)
    assert larger.get("m").get("1").servers == ("a",)
    moved = with_requests_moved(larger, wanted)
    assert moved.get("m").get("1").servers == ("a", "b")
    after = on_fewer_servers(moved, model="m", version="1", server="a", servers=SERVERS)
    assert after.models == wanted.models


def test_requests_move_before_anything_is_taken_away() -> None:
    now = with_additions(table(row("1", weight=100)), wanted := table(row("2", weight=100)))
    moved = with_requests_moved(now, wanted).get("m")
    assert {each.version: each.weight for each in moved.versions} == {"1": 0, "2": 100} and moved.default == "2"
    assert without_idle(with_requests_moved(now, wanted), wanted).models == wanted.models


def test_model_that_shall_go_loses_its_routes_before_its_versions() -> None:
    now = Table(models=(*table(row("1", weight=100)).models, *table(row("1", weight=100), name="n").models))
    wanted = table(row("1", weight=100))
    moved = with_requests_moved(now, wanted)
    assert moved.get("n").is_closed and not moved.get("m").is_closed
    assert without_idle(moved, wanted).find("n") is None


def test_further_model_has_no_route_until_requests_move() -> None:
    now, further = table(row("1", weight=100)), table(row("1", weight=100), name="n")
    wanted = Table(models=(*now.models, *further.models))
    assert with_additions(now, wanted).find("n") is None
    assert with_requests_moved(now, wanted).find("n") == further.get("n")


def test_version_leaves_one_server_at_a_time_and_stays_on_the_others() -> None:
    for now in (table(row("1", weight=100)), table(row("1", weight=100, servers=("a", "b", "c")))):
        after = on_fewer_servers(now, model="m", version="1", server="a", servers=("a", "b", "c"))
        assert placements(after, ("a", "b", "c")) == {("m", "1", "b"), ("m", "1", "c")}


def test_server_drains_and_takes_requests_again() -> None:
    model = table(row("1", weight=100)).get("m")
    drains = model.with_draining("1", "a", is_draining=True)
    assert drains.get("1").draining == ("a",)
    assert drains.with_draining("1", "a", is_draining=True) == drains
    assert drains.with_draining("1", "a", is_draining=False) == model
