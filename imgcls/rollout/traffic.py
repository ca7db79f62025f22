"""The changes that a rollout makes to the table, as pure functions of it."""

from imgcls.gateway.table import WHOLE, Model, Shadow, Table, Version
from imgcls.rollout.state import Release


def add_candidate(table: Table, model: str, release: Release) -> Table:
    """A version beside the stable one, without requests."""
    now = table.get(model)
    if now.find(release.version) is not None:
        return table
    row = Version(
        version=release.version,
        archive=release.archive,
        tree_sha256=release.tree_sha256,
        workers=release.workers,
    )
    return table.with_model(now.with_version(row))


def shadow(table: Table, model: str, version: str, percent: float) -> Table:
    """Copies of requests go to a version, and answers are recorded."""
    return _change(table, model, shadow=Shadow(version=version, percent=percent), is_recorded=True)


def split(table: Table, model: str, *, stable: str, candidate: str, weight: float) -> Table:
    """The candidate gets a share of the requests; copies end."""
    now = table.get(model).with_weights({stable: round(WHOLE - weight, 2), candidate: weight})
    return table.with_model(now.model_copy(update={"shadow": None, "is_recorded": True}))


def give_all(table: Table, model: str, version: str) -> Table:
    """One version gets every request, and is the default; nothing is copied or recorded any more.

    Where the workers of the version before followed the load, so do its own.
    """
    before = table.get(model)
    row, last = before.get(version), before.get(before.default)
    heir = row.model_copy(update={"autoscale": row.autoscale or last.autoscale})
    rows = tuple(heir if each.version == version else each for each in before.versions)
    now = before.model_copy(update={"versions": rows}).with_weights({version: WHOLE})
    return table.with_model(now.model_copy(update={"shadow": None, "is_recorded": False, "default": version}))


def remove(table: Table, model: str, version: str) -> Table:
    """A version without requests is gone."""
    now = table.get(model)
    row = now.find(version)
    return table if row is None else table.with_model(now.without(version))


def _change(table: Table, name: str, **changes: object) -> Table:
    now: Model = table.get(name)
    return table.with_model(now.model_copy(update=changes))
