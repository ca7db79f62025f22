"""The steps of a rollout that change something. Each can be done again: after a kill it begins anew."""

import time
from contextlib import ExitStack
from pathlib import Path

from imgcls.errors import ArchiveError, ServingError, UsageError
from imgcls.gateway.clusters import cluster_name
from imgcls.gateway.errors import EnvoyError
from imgcls.gateway.member import Member
from imgcls.rollout import traffic
from imgcls.rollout.errors import StepFailedError
from imgcls.rollout.progress import Progress
from imgcls.rollout.state import Release

DRAIN_POLL_S = 0.25


def verify(run: Progress) -> None:
    """Copies the archive into the store, checked from outside, and refuses one that cannot stand beside stable.

    Raises:
        StepFailedError: it is not what the trust file demands, of another model, or of a version that is served.
    """
    source, model = run.state.source, run.state.model
    try:
        stored = run.gateway.folder.store.add(Path(source), trust=run.trust)
    except (ArchiveError, UsageError, ServingError) as err:
        raise StepFailedError(str(err)) from err
    if stored.name != model:
        raise StepFailedError(f"{source} is an archive of {stored.name}, not of {model}")
    row = run.model().find(stored.version)
    if row is not None and (row.tree_sha256 != stored.tree_sha256 or stored.version == run.state.stable.version):
        same = "the same content" if row.tree_sha256 == stored.tree_sha256 else "other content"
        raise StepFailedError(
            f"version {stored.version} of {stored.name} is served already, with {same}; build the new one with "
            "another --version"
        )
    release = Release(
        version=stored.version,
        archive=stored.file,
        tree_sha256=stored.tree_sha256,
        workers=run.state.plan.workers or run.state.stable.workers,
        signer=stored.trust.signer,
    )
    run.update(candidate=release)
    run.audit("archive is verified", trust=stored.trust.policy, signer=stored.trust.signer)


def load(run: Progress) -> None:
    """Registers the new version beside the stable one on every server, until all its workers are READY.

    Raises:
        StepFailedError: a server could not load it.
    """
    release, model = run.candidate, run.state.model
    with ExitStack() as locks:
        for member in run.gateway.members:  # before the table: or the supervisor would load it at the same time
            locks.enter_context(member.lock())
        run.change(lambda table: traffic.add_candidate(table, model, release))
        for member in run.gateway.members:
            load_on(run, member)


def load_on(run: Progress, member: Member) -> None:
    """Loads the new version on one server, whose lock the caller holds; raises as `load`."""
    try:
        member.load(run.state.model, run.candidate_row(), timeout_s=run.state.plan.ready_timeout_s)
    except ServingError as err:
        raise StepFailedError(f"{run.candidate.version} cannot be loaded on {member.name}: {err}") from err


def ask_golden(run: Progress, *members: Member) -> None:
    """Asks the golden inputs of the new version on these servers, or on all.

    Raises:
        StepFailedError: an answer is wrong, or there is none.
    """
    for member in members or run.gateway.members:
        try:
            member.check_golden(run.state.model, run.candidate_row())
        except ServingError as err:
            raise StepFailedError(f"on {member.name}: {err}") from err


def promote(run: Progress) -> None:
    """Gives the new version every request, and makes it TorchServe's default, which gRPC asks."""
    version = run.candidate.version
    run.change(lambda table: traffic.give_all(table, run.state.model, version))
    set_default(run)
    run.audit("promoted", version=version)
    history = run.files.read_lines(run.files.history_file)
    if any(entry.get("rollout") == run.state.id for entry in history):  # by this step, before it was killed
        return
    run.files.append(
        run.files.history_file,
        {
            "time_s": time.time(),
            "rollout": run.state.id,
            "operator": run.operator,
            "model": run.state.model,
            "is_undo": run.state.is_undo,
            "release": run.candidate.model_dump(),
            "before": run.state.stable.model_dump(),
        },
    )


def set_default(run: Progress) -> None:
    """Makes the table's default version TorchServe's, on every server that is up and has it."""
    model = run.model()
    for member in run.gateway.members:
        if member.state() is not None and model.default in member.versions(model.name):
            member.set_default(model)  # one that is down gets it from the table when it starts


def drain(run: Progress, version: str) -> None:
    """Waits until a version without requests has answered all that it had, or for as long as the plan says."""
    cluster, model = cluster_name(run.state.model, version), run.state.model
    deadline_s = time.monotonic() + run.state.plan.drain_timeout_s
    idle = 0
    while idle < 2:  # twice in a row: a request may be between gateway and queue
        is_idle = _in_flight(run, cluster) == 0 and all(
            member.is_idle(model, version) for member in run.gateway.members
        )
        idle = idle + 1 if is_idle else 0
        if time.monotonic() > deadline_s:
            run.audit("drain took too long", version=version)
            return
        time.sleep(DRAIN_POLL_S)


def take_away(run: Progress, version: str) -> None:
    """Removes a version without requests from the table and the servers; its archive stays in the store."""
    drain(run, version)
    run.change(lambda table: traffic.remove(table, run.state.model, version))
    for member in run.gateway.members:
        with member.lock():
            if member.state() is not None:  # one that is down starts without it
                member.unload(run.state.model, version)


def _in_flight(run: Progress, cluster: str) -> int:
    try:
        return run.gateway.admin.in_flight(cluster)
    except EnvoyError:  # it has ended, and all its connections with it
        return 0
