"""Changes a version's number of workers, on every server that has it, one server after the other."""

import time
from contextlib import ExitStack

from imgcls.gateway.drain import drained
from imgcls.gateway.errors import TableError
from imgcls.gateway.gateway import Gateway
from imgcls.gateway.member import Member, Progress
from imgcls.gateway.table import Autoscale, Table, Version


def scale(
    gateway: Gateway,
    workers: int,
    *,
    name: str | None = None,
    version: str | None = None,
    timeout_s: float,
    autoscale: Autoscale | None = None,
    only_if: Version | None = None,
    on_progress: Progress = lambda text: None,
) -> Version:
    """Changes the table and the servers, one after the other, and returns once the workers are READY.

    Args:
        gateway: whose.
        workers: on each server.
        name: the model; None where there is only one.
        version: of it; None: the default one.
        timeout_s: for all servers together.
        autoscale: lets them follow the load from now on; None: they stay.
        only_if: nothing is changed unless the version's row is still this one.
        on_progress: told what is waited for.

    Raises:
        TableError: there is no such model or version, or that would be fewer workers than its min_ready.
        ServingError: a server is down, or its workers are not READY in time; the table stays changed.
    """
    model = gateway.table().choose(name)
    wanted = model.get(version or model.default).model_copy(update={"workers": workers, "autoscale": autoscale})
    members = gateway.members_of(wanted.servers)
    most = (autoscale.min if autoscale else workers) * len(members)
    if wanted.weight > 0 and most < wanted.min_ready:
        raise TableError(
            f"{model.name} {wanted.version}: {most} workers are fewer than its min_ready, {wanted.min_ready}"
        )

    def change(table: Table) -> Table:
        now = table.get(model.name)
        row = now.get(wanted.version)  # it may have been taken away in the meantime
        if only_if is not None and row != only_if:
            return table
        changed = row.model_copy(update={"workers": workers, "autoscale": autoscale})
        rows = tuple(changed if each.version == wanted.version else each for each in now.versions)
        return table.with_model(now.model_copy(update={"versions": rows}))

    deadline_s = time.monotonic() + timeout_s
    with ExitStack() as locks:
        for member in members:  # before the table: or the supervisor would scale at the same time
            locks.enter_context(member.lock())
        gateway.change(change)
        wanted = gateway.table().get(model.name).get(wanted.version)
        for member in members:
            left_s = max(1.0, deadline_s - time.monotonic())
            scale_member(gateway, member, model.name, wanted, timeout_s=left_s, on_progress=on_progress)
    return wanted


def scale_member(
    gateway: Gateway,
    member: Member,
    model: str,
    row: Version,
    *,
    timeout_s: float,
    on_progress: Progress = lambda text: None,
) -> None:
    """Gives one server a version with its workers; one that loses workers has nothing in flight then.

    The caller holds the server's lock.

    Raises:
        ServingError: the server is down, a worker cannot load the version, or not in time.
    """
    has = member.versions(model).get(row.version)
    if has is None or has.min_workers <= row.workers:
        member.load(model, row, timeout_s=timeout_s, on_progress=on_progress)
        return
    on_progress(f"{member.name}: draining {model} {row.version}")
    with drained(gateway, member, model, row.version):
        member.load(model, row, timeout_s=timeout_s, on_progress=on_progress)
