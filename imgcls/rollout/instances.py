"""Rolling server by server: each gives the stable version up for the new one, while the others serve.

For servers that have no room for two versions at once. The new version's share of requests is its share of servers, so
the first server is the canary.
"""

from functools import partial

from imgcls.gateway.drain import wait_until_idle
from imgcls.gateway.member import Member
from imgcls.gateway.table import WHOLE, Table, Version
from imgcls.rollout.errors import StepFailedError
from imgcls.rollout.hold import hold
from imgcls.rollout.progress import Progress
from imgcls.rollout.state import Release, StepState
from imgcls.rollout.steps import ask_golden, load_on
from imgcls.rollout.traffic import give_all


def swap(run: Progress, step: StepState) -> bool:
    """Gives one server the new version instead of the stable one; returns whether an operator cut the hold short.

    Raises:
        StepFailedError: the server is gone, too few of the stable version would be left, the new one cannot be
            loaded, or its verdict.
    """
    model, stable, names = run.state.model, run.state.stable, _names(run)
    member = next((member for member in run.gateway.members if member.name == step.server), None)
    if member is None:  # gateway.yaml was changed while the rollout was left
        raise StepFailedError(f"there is no server {step.server} any more; there is {', '.join(names) or 'none'}")
    _refuse_too_few(run, member)
    run.change(lambda table: leave(table, model, stable.version, member.name, servers=names, heir=run.candidate))
    _wait_until_idle(run, member, stable.version)
    with member.lock():
        run.change(lambda table: join(table, model, run.candidate, member.name))
        member.unload(model, stable.version)
        load_on(run, member)
    if run.state.plan.golden:
        ask_golden(run, member)
    run.change(lambda table: share(table, model, stable=stable.version, candidate=run.candidate.version))
    is_last = not run.model().get(stable.version).servers
    return False if is_last else hold(run, step)


def swap_back(run: Progress) -> None:
    """Gives every server the stable version again; requests have gone to those that still had it, if there were any."""
    model, stable, candidate = run.state.model, run.state.stable, run.state.candidate
    for member in run.gateway.members if candidate else ():
        row = run.model().get(stable.version)
        if candidate is None or row.servers is None or member.name in row.servers:
            continue
        _wait_until_idle(run, member, candidate.version)
        with member.lock():
            run.change(partial(_return, model=model, stable=stable, candidate=candidate.version, server=member.name))
            member.unload(model, candidate.version)
            member.load(model, run.model().get(stable.version), timeout_s=run.state.plan.ready_timeout_s)
        run.change(lambda table: give_all(table, model, stable.version))
    run.change(lambda table: spread(table, model, stable.version))


def leave(table: Table, model: str, version: str, server: str, *, servers: tuple[str, ...], heir: Release) -> Table:
    """A version is no longer on a server; when it leaves the last one, the new version has every request."""
    now = table.get(model)
    row = now.get(version)
    left = tuple(name for name in (row.servers if row.servers is not None else servers) if name != server)
    changed = table.with_model(now.with_version(row.model_copy(update={"servers": left})))
    return changed if left else give_all(changed, model, heir.version)


def join(table: Table, model: str, release: Release, server: str) -> Table:
    """The new version shall be on one more server; its share of requests stays for now."""
    now = table.get(model)
    row = now.find(release.version) or Version(
        version=release.version,
        archive=release.archive,
        tree_sha256=release.tree_sha256,
        workers=release.workers,
        servers=(),
    )
    has = (*(name for name in row.servers or () if name != server), server)
    return table.with_model(now.with_version(row.model_copy(update={"servers": has})))


def share(table: Table, model: str, *, stable: str, candidate: str) -> Table:
    """Requests are split as the servers are."""
    now = table.get(model)
    old, new = now.get(stable).servers or (), now.get(candidate).servers or ()
    if not old:
        return give_all(table, model, candidate)
    part = round(WHOLE * len(new) / (len(old) + len(new)), 2)
    changed = now.with_weights({stable: round(WHOLE - part, 2), candidate: part})
    return table.with_model(changed.model_copy(update={"is_recorded": True}))


def spread(table: Table, model: str, version: str) -> Table:
    """A version is on every server again, those to come too."""
    now = table.get(model)
    return table.with_model(now.with_version(now.get(version).model_copy(update={"servers": None})))


def _return(table: Table, *, model: str, stable: Release, candidate: str, server: str) -> Table:
    changed = join(table, model, stable, server)
    now = changed.get(model)
    row = now.find(candidate)
    if row is None:
        return changed
    left = tuple(name for name in row.servers or () if name != server)
    return changed.with_model(now.with_version(row.model_copy(update={"servers": left})))


def _refuse_too_few(run: Progress, member: Member) -> None:
    """Raises StepFailedError where the servers that go on serving would not have enough READY workers."""
    row = run.model().get(run.state.stable.version)
    has_new = run.model().find(run.candidate.version)
    ready = 0
    for other in run.gateway.members:
        if other.name != member.name and other.state() is not None:
            versions = other.versions(run.state.model)
            ready += sum(
                versions[name].ready_workers for name in (row.version, run.candidate.version) if name in versions
            )
    needed = max(row.min_ready, has_new.min_ready if has_new else 1)
    if ready < needed:
        raise StepFailedError(
            f"without {member.name}, {ready} workers would be READY, and at least {needed} have to be; roll version by "
            "version, or add a server"
        )


def _wait_until_idle(run: Progress, member: Member, version: str) -> None:
    """Waits until a server that gets no more requests of a version has answered those that it had.

    What a worker still has in hand after that, should it be ended, is asked of another server.
    """
    timeout_s = run.state.plan.drain_timeout_s
    if not wait_until_idle(run.gateway, member, run.state.model, version, timeout_s=timeout_s):
        run.audit("drain took too long", version=version, server=member.name)


def _names(run: Progress) -> tuple[str, ...]:
    return tuple(member.name for member in run.gateway.members)
