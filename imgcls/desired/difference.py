"""What is missing between a wish and what is: pure functions of both tables and of what the servers have."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from imgcls.gateway.table import Model, Table, Version

NONE = "-"
# server -> model -> version -> workers; a server that is down is not in it
Held = Mapping[str, Mapping[str, Mapping[str, int]]]


@dataclass(frozen=True)
class Change:
    """One line of the difference."""

    what: str
    before: str
    after: str

    def as_dict(self) -> dict[str, Any]:
        """Returns it for machines."""
        return asdict(self)


def find_changes(now: Table, wanted: Table, held: Held) -> list[Change]:
    """Returns what has to change, in the table first, then on the servers, where these differ from the wish alone.

    Args:
        now: the table as it is.
        wanted: as it shall be; its generation does not matter.
        held: what the servers have.
    """
    changes: list[Change] = []
    for name in dict.fromkeys([model.name for model in (*wanted.models, *now.models)]):
        changes += _model_changes(name, now.find(name), wanted.find(name))
    for server, models in held.items():
        for model in wanted.models:
            changes += _server_changes(server, now.find(model.name), model, models.get(model.name, {}))
    return changes


def find_conflict(now: Table, wanted: Table) -> str:
    """Returns why a wish cannot be had beside what is; empty where it can."""
    for model in wanted.models:
        before = now.find(model.name)
        for row in model.versions:
            old = before.find(row.version) if before else None
            if old is not None and old.tree_sha256 != row.tree_sha256:
                return (
                    f"{model.name} {row.version} is served with other content ({old.tree_sha256[:12]}, not "
                    f"{row.tree_sha256[:12]}); build the new one with another --version"
                )
    return ""


def with_additions(now: Table, wanted: Table) -> Table:
    """Returns the table with what the wish adds to its models, and with requests as they are.

    Further versions have no requests; of those that are there, workers are the more of both. Servers stay as they are:
    one that is in a row gets requests, so that a further one has to be loaded before.
    """
    models = []
    for model in now.models:
        after = wanted.find(model.name)
        rows = [_with_more_workers(row, after.find(row.version) if after else None) for row in model.versions]
        further = [row for row in (after.versions if after else ()) if model.find(row.version) is None]
        rows += [row.model_copy(update={"weight": 0.0}) for row in further]
        models.append(model.model_copy(update={"versions": tuple(rows)}))
    return now.model_copy(update={"models": tuple(models)})


def with_requests_moved(now: Table, wanted: Table) -> Table:
    """Returns a table with all that is loaded, and requests as the wish has them; a model that shall go is closed."""
    models = []
    for model in now.models:
        after = wanted.find(model.name)
        if after is None:
            models.append(model.model_copy(update={"is_closed": True}))
            continue
        moved = model.with_weights({row.version: row.weight for row in after.versions})
        rows = tuple(_on_all_servers(row, after.find(row.version)) for row in moved.versions)
        changes: dict[str, object] = {"versions": rows}
        changes |= {"default": after.default, "shadow": None, "is_recorded": False, "is_closed": False}
        models.append(moved.model_copy(update=changes))
    further = tuple(model for model in wanted.models if now.find(model.name) is None)
    return now.model_copy(update={"models": (*models, *further)})


def without_idle(now: Table, wanted: Table) -> Table:
    """Returns the table without the models and versions that the wish does not name; they have no requests."""
    models = []
    for model in now.models:
        after = wanted.find(model.name)
        if after is not None:
            rows = tuple(row for row in model.versions if after.find(row.version) is not None)
            models.append(model.model_copy(update={"versions": rows}))
    return now.model_copy(update={"models": tuple(models)})


def on_fewer_servers(now: Table, *, model: str, version: str, server: str, servers: tuple[str, ...]) -> Table:
    """Returns the table with a version away from one server of all that there are."""
    known = now.get(model)
    row = known.get(version)
    left = tuple(name for name in servers_of(row, servers) if name != server)
    rows = tuple(
        row.model_copy(update={"servers": left}) if each.version == version else each for each in known.versions
    )
    return now.with_model(known.model_copy(update={"versions": rows}))


def with_workers_as_they_are(wanted: Table, now: Table) -> Table:
    """Returns the wish with the present number of workers wherever these follow the load, within its bounds."""
    models = []
    for model in wanted.models:
        before = now.find(model.name)
        rows = []
        for row in model.versions:
            old = before.find(row.version) if before else None
            if row.autoscale is not None:
                count = old.workers if old else row.workers
                row = row.model_copy(update={"workers": min(row.autoscale.max, max(row.autoscale.min, count))})
            rows.append(row)
        models.append(model.model_copy(update={"versions": tuple(rows)}))
    return wanted.model_copy(update={"models": tuple(models)})


def servers_of(row: Version, servers: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the servers that have a version."""
    return tuple(name for name in servers if row.servers is None or name in row.servers)


def placements(table: Table, servers: tuple[str, ...]) -> set[tuple[str, str, str]]:
    """Returns (model, version, server) of everything that a table wants to be loaded."""
    return {
        (model.name, row.version, server)
        for model in table.models
        for row in model.versions
        for server in servers_of(row, servers)
    }


def _with_more_workers(row: Version, wanted: Version | None) -> Version:
    return row if wanted is None else row.model_copy(update={"workers": max(row.workers, wanted.workers)})


def _on_all_servers(row: Version, wanted: Version | None) -> Version:
    """Returns a row on the servers of before and of the wish; which are too many are left once they are drained."""
    if wanted is None:
        return row
    servers = None if row.servers is None or wanted.servers is None else _union(row.servers, wanted.servers)
    return row.model_copy(update={"servers": servers})


def _union(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*first, *second)))


def _model_changes(name: str, now: Model | None, wanted: Model | None) -> Iterator[Change]:
    rows = [*(wanted.versions if wanted else ()), *(now.versions if now else ())]
    for version in dict.fromkeys(row.version for row in rows):
        before = now.find(version) if now else None
        after = wanted.find(version) if wanted else None
        what = f"{name} {version}"
        if before is None or after is None:
            yield Change(what, _describe(before), _describe(after))
            continue
        for word, one, two in (
            ("weight", f"{before.weight:g} %", f"{after.weight:g} %"),
            ("workers", str(before.workers), str(after.workers)),
            ("min_ready", str(before.min_ready), str(after.min_ready)),
            ("servers", _servers(before), _servers(after)),
            ("autoscale", _bounds(before), _bounds(after)),
        ):
            if one != two:
                yield Change(f"{what} {word}", one, two)
    if now and wanted and now.default != wanted.default:
        yield Change(f"{name} default", now.default, wanted.default)
    if now and wanted and now.shadow:
        yield Change(f"{name} shadow", f"{now.shadow.version} {now.shadow.percent:g} %", NONE)


def _server_changes(server: str, now: Model | None, wanted: Model, has: Mapping[str, int]) -> Iterator[Change]:
    """Yields where a server is not what the table has said already, as after something was done by hand."""
    for row in wanted.versions:
        before = now.find(row.version) if now else None
        if before is None or before.workers != row.workers or server not in servers_of(row, (server,)):
            continue  # said above
        if server in servers_of(before, (server,)) and has.get(row.version) != row.workers:
            found = f"{has[row.version]} workers" if row.version in has else NONE
            yield Change(f"{wanted.name} {row.version} on {server}", found, f"{row.workers} workers")
    for version, workers in has.items():
        if wanted.find(version) is None and (now is None or now.find(version) is None):
            yield Change(f"{wanted.name} {version} on {server}", f"{workers} workers", NONE)


def _describe(row: Version | None) -> str:
    if row is None:
        return NONE
    where = "" if row.servers is None else f" on {', '.join(row.servers)}"
    return f"{row.weight:g} %, {row.workers} workers{where}, {row.tree_sha256[:12]}"


def _servers(row: Version) -> str:
    return "all" if row.servers is None else ", ".join(row.servers)


def _bounds(row: Version) -> str:
    return NONE if row.autoscale is None else f"{row.autoscale.min} to {row.autoscale.max}"
