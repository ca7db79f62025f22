"""Waits until one server has nothing of a version in flight, so that what is taken away there takes no request along.

TorchServe ends a worker at once, whatever it is at: its requests are answered 500 `Worker died.`, or wait for another
worker. With several servers, new requests go to the others meanwhile. Where a server is alone, they wait at the
gateway.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from imgcls.gateway.clusters import GRPC, cluster_name
from imgcls.gateway.errors import EnvoyError
from imgcls.gateway.gateway import Gateway
from imgcls.gateway.member import Member
from imgcls.gateway.table import Hold, Model, Table

DRAIN_TIMEOUT_S = 60.0
# For how long new requests of a server that is alone wait, each: another try where what is in flight takes longer.
HOLDS_S = (1.0, 3.0, 10.0)
PART_TO_ANSWER = 0.6  # of a hold, for what is in flight; the rest is for the worker to go
POLL_S = 0.02
LOOKS = 2  # in a row: a request may be between gateway and queue


@contextmanager
def drained(gateway: Gateway, member: Member, model: str, version: str) -> Iterator[bool]:
    """Holds new requests of a version off one server for as long as the block takes.

    Where there is no other server, they wait at the gateway; what the block takes away has to be gone within 0.4 s.

    Yields:
        Whether nothing is in flight there.

    Raises:
        EnvoyError: Envoy runs and does not follow.
    """
    if not _has_others(gateway, member, model, version):
        with _held(gateway, member, model, version) as is_idle:
            yield is_idle
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
    rows = [(model.name, row) for model in gateway.table().models for row in model.versions]
    for model, row in rows:
        with suppress(EnvoyError):  # the supervisor tries again
            if member.name in row.draining:
                gateway.change(_draining(model, row.version, member.name, is_draining=False))
            if row.hold is not None and row.hold.server == member.name:
                gateway.change(_letting_through(model, row.version, member.name))


@contextmanager
def _held(gateway: Gateway, member: Member, model: str, version: str) -> Iterator[bool]:
    """Holds new requests of a version at the gateway, longer with each try; yields whether nothing is in flight."""
    try:
        is_idle = False
        for seconds in HOLDS_S:
            gateway.change(_holding(model, version, Hold(server=member.name, seconds=seconds)))
            timeout_s = PART_TO_ANSWER * seconds
            if is_idle := wait_until_idle(gateway, member, model, version, timeout_s=timeout_s):
                break
        yield is_idle
    finally:
        gateway.change(_letting_through(model, version, member.name))


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
    return _changing(model, lambda known: known.with_draining(version, server, is_draining=is_draining))


def _holding(model: str, version: str, hold: Hold) -> Callable[[Table], Table]:
    return _changing(model, lambda known: known.with_hold(version, hold))


def _letting_through(model: str, version: str, server: str) -> Callable[[Table], Table]:
    """Ends a hold, unless another server has one of its own by now."""

    def change(known: Model) -> Model:
        row = known.find(version)
        is_own = row is not None and row.hold is not None and row.hold.server == server
        return known.with_hold(version, None) if is_own else known

    return _changing(model, change)


def _changing(model: str, change: Callable[[Model], Model]) -> Callable[[Table], Table]:
    def change_table(table: Table) -> Table:
        known = table.find(model)
        return table if known is None else table.with_model(change(known))

    return change_table
