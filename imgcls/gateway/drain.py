"""Waits until one server has nothing of a version in flight, so that what is taken away there takes no request along.

TorchServe ends a worker at once, whatever it is at: its requests are answered 500 `Worker died.`, or wait for another
worker. With several servers, new requests go to the others meanwhile. A server that is alone gets no pause: a moment is
waited for in which nothing is in flight, and where none comes, the gateway asks another worker for what was lost.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from imgcls.gateway.clusters import GRPC, cluster_name
from imgcls.gateway.errors import EnvoyError
from imgcls.gateway.gateway import Gateway
from imgcls.gateway.member import Member
from imgcls.gateway.table import Table

DRAIN_TIMEOUT_S = 60.0
CALM_TIMEOUT_S = 5.0  # for a server that is alone
POLL_S = 0.02
LOOKS = 2  # in a row: a request may be between gateway and queue


@contextmanager
def drained(gateway: Gateway, member: Member, model: str, version: str) -> Iterator[bool]:
    """Holds new requests of a version off one server for as long as the block takes.

    Yields:
        Whether nothing is in flight there.

    Raises:
        EnvoyError: Envoy runs and does not follow.
    """
    if not _has_others(gateway, member, model, version):
        yield wait_until_idle(gateway, member, model, version, timeout_s=CALM_TIMEOUT_S)
        return
    try:
        gateway.change(_draining(model, version, member.name, is_draining=True))
        yield wait_until_idle(gateway, member, model, version, timeout_s=DRAIN_TIMEOUT_S)
    finally:
        gateway.change(_draining(model, version, member.name, is_draining=False))


def wait_until_idle(gateway: Gateway, member: Member, model: str, version: str, *, timeout_s: float) -> bool:
    """Waits until a server has answered all that it had of a version; returns whether it has, in time."""
    deadline_s = time.monotonic() + timeout_s
    idle = 0
    while idle < LOOKS:
        if time.monotonic() > deadline_s:
            return False
        is_idle = _in_flight(gateway, member, model, version) == 0 and member.is_idle(model, version)
        idle = idle + 1 if is_idle else 0
        if idle < LOOKS:
            time.sleep(POLL_S)
    return True


def let_in(gateway: Gateway, member: Member) -> None:
    """Ends what a killed process has left draining; the caller holds the server's lock, so nobody drains it now."""
    stale = [
        (model.name, row.version)
        for model in gateway.table().models
        for row in model.versions
        if member.name in row.draining
    ]
    for model, version in stale:
        with suppress(EnvoyError):  # the supervisor tries again
            gateway.change(_draining(model, version, member.name, is_draining=False))


def _has_others(gateway: Gateway, member: Member, model: str, version: str) -> bool:
    """Whether further servers are up with this version, and with enough workers for its minimum."""
    known = gateway.table().find(model)
    row = known.find(version) if known else None
    if row is None or row.weight <= 0:
        return False
    ready = 0
    for other in gateway.members_of(row.servers):
        state = other.state()
        if other.name != member.name and other.name not in row.draining and state is not None and other.is_up(state):
            status = other.versions(model).get(version)
            ready += status.ready_workers if status else 0
    return ready >= max(1, row.min_ready)


def _in_flight(gateway: Gateway, member: Member, model: str, version: str) -> int:
    endpoint, known = member.endpoint(), gateway.table().find(model)
    if endpoint is None:
        return 0
    try:
        count = gateway.admin.in_flight_at(cluster_name(model, version), endpoint.port)
        if known is not None and known.default == version:
            count += gateway.admin.in_flight_at(GRPC, endpoint.grpc_port)
        return count
    except EnvoyError:  # it has ended, and all its connections with it
        return 0


def _draining(model: str, version: str, server: str, *, is_draining: bool) -> Callable[[Table], Table]:
    def change(table: Table) -> Table:
        known = table.find(model)
        if known is None:
            return table
        return table.with_model(known.with_draining(version, server, is_draining=is_draining))

    return change
