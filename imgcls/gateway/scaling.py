"""Changes a version's number of workers, on every server that has it, one server after the other."""

import time
from contextlib import ExitStack

from imgcls.gateway.drain import drained
from imgcls.gateway.errors import InFlightError, TableError
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
    cuts_off: bool = False,
    on_progress: Progress = lambda text: None,
) -> Version:
    """Changes the table and the servers, one after the other, and returns once the workers are READY.

    No worker goes while it may be at work; where that never is, the table is put back as it was.

    Args:
        gateway: whose.
        workers: on each server.
        name: the model; None where there is only one.
        version: of it; None: the default one.
        timeout_s: for all servers together.
        autoscale: lets them follow the load from now on; None: they stay.
        only_if: nothing is changed unless the version's row is still this one.
        cuts_off: workers go even while requests are in flight; those are asked of another worker.
        on_progress: told what is waited for.

    Raises:
        TableError: there is no such model or version, or that would be fewer workers than its min_ready.
        InFlightError: requests are in flight all the time, so no worker can go.
        BusyError: somebody else changes a server's versions all the time; nothing was changed.
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

    replaced: list[Version] = []  # the row that was changed

    def set_workers(table: Table, workers: int, autoscale: Autoscale | None) -> Table:
        now = table.get(model.name)
        row = now.get(wanted.version)  # it may have been taken away in the meantime
        changed = row.model_copy(update={"workers": workers, "autoscale": autoscale})
        return table.with_model(now.with_row(changed))

    def change(table: Table) -> Table:
        row = table.get(model.name).get(wanted.version)
        if only_if is not None and row != only_if:
            return table
        replaced.append(row)
        return set_workers(table, workers, autoscale)

    deadline_s = time.monotonic() + timeout_s
    with ExitStack() as locks:
        for member in members:  # before the table: or the supervisor would scale at the same time
            locks.enter_context(member.lock(timeout_s=max(1.0, deadline_s - time.monotonic()), on_progress=on_progress))
        gateway.change(change)
        wanted = gateway.table().get(model.name).get(wanted.version)
        try:
            for member in members:
                left_s = max(1.0, deadline_s - time.monotonic())
                scale_member(
                    gateway,
                    member,
                    model.name,
                    wanted,
                    timeout_s=left_s,
                    cuts_off=cuts_off,
                    on_progress=on_progress,
                )
        except InFlightError:
            before = replaced[0] if replaced else wanted
            gateway.change(lambda table: set_workers(table, before.workers, before.autoscale))
            raise
    return wanted


def scale_member(
    gateway: Gateway,
    member: Member,
    model: str,
    row: Version,
    *,
    timeout_s: float,
    cuts_off: bool = True,
    on_progress: Progress = lambda text: None,
) -> None:
    """Gives one server a version with its workers; one that loses workers has nothing in flight then.

    The caller holds the server's lock.

    Args:
        gateway: whose.
        member: the server.
        model: the version's.
        row: the version.
        timeout_s: for the workers to be READY.
        cuts_off: where requests are in flight all the time, workers go all the same.
        on_progress: told what is waited for.

    Raises:
        InFlightError: requests are in flight all the time, and may not be cut off.
        ServingError: the server is down, a worker cannot load the version, or not in time.
    """
    has = member.versions(model).get(row.version)
    if has is None or has.min_workers <= row.workers:
        member.load(model, row, timeout_s=timeout_s, on_progress=on_progress)
        return
    on_progress(f"{member.name}: draining {model} {row.version}")
    with drained(gateway, member, model, row.version) as is_idle:
        if not is_idle:
            busy = f"{member.name}: {model} {row.version} has requests in flight all the time"
            if not cuts_off:
                raise InFlightError(f"{busy}; its workers stay: try again when less is asked, or cut off with --force")
            on_progress(f"{busy}; what the worker is at is asked of another one")
        member.scale(model, row)
    member.load(model, row, timeout_s=timeout_s, on_progress=on_progress)
