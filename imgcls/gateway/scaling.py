"""Changes a version's number of workers, on every server that has it."""

import time

from imgcls.gateway.gateway import Gateway
from imgcls.gateway.member import Progress
from imgcls.gateway.table import Table, Version


def scale(
    gateway: Gateway,
    workers: int,
    *,
    name: str | None = None,
    version: str | None = None,
    timeout_s: float,
    on_progress: Progress = lambda text: None,
) -> Version:
    """Changes the table and the servers, one after the other, and returns once the workers are READY.

    Args:
        gateway: whose.
        workers: on each server.
        name: the model; None where there is only one.
        version: of it; None: the default one.
        timeout_s: for all servers together.
        on_progress: told what is waited for.

    Raises:
        TableError: there is no such model or version.
        ServingError: a server is down, or its workers are not READY in time; the table stays changed.
    """
    model = gateway.table().choose(name)
    wanted = model.get(version or model.default).model_copy(update={"workers": workers})

    def change(table: Table) -> Table:
        now = table.get(model.name)
        now.get(wanted.version)  # it may have been taken away in the meantime
        rows = tuple(
            each.model_copy(update={"workers": workers}) if each.version == wanted.version else each
            for each in now.versions
        )
        return table.with_model(now.model_copy(update={"versions": rows}))

    gateway.change(change)
    deadline_s = time.monotonic() + timeout_s
    for member in gateway.members_of(wanted.servers):
        with member.lock():
            member.load(model.name, wanted, timeout_s=max(1.0, deadline_s - time.monotonic()), on_progress=on_progress)
    return wanted
