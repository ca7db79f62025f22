"""What is missing between the table and one server, and making it so.

The decision is a pure function of both; a restarted server gets everything back this way, and so does one whose
version was taken away by hand. What the table does not name is left alone: a rollout unloads what it retires.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from imgcls.gateway.drain import let_in
from imgcls.gateway.errors import TableError
from imgcls.gateway.gateway import Gateway
from imgcls.gateway.member import Member, Progress
from imgcls.gateway.scaling import scale_member
from imgcls.gateway.table import Model, Table, Version
from imgcls.serving.management import ModelStatus

LOAD_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Action:
    """One step."""

    kind: Literal["load", "scale", "set-default"]
    model: str
    version: str
    detail: str = ""

    def __str__(self) -> str:
        """Returns it for people."""
        return f"{self.kind} {self.model} {self.version}{f' ({self.detail})' if self.detail else ''}"


def find_actions(model: Model, *, server: str, has: Mapping[str, ModelStatus], default: str | None) -> list[Action]:
    """Returns the steps that bring a server to what the table says of a model, in their order.

    Args:
        model: as it shall be.
        server: its name; a version may be on some servers only.
        has: what the server has, by version.
        default: the version that it takes for the default one; None when it has none.
    """
    actions = []
    wanted = [row for row in model.versions if row.servers is None or server in row.servers]
    for row in sorted(wanted, key=lambda row: row.version != model.default):  # the default one first
        status = has.get(row.version)
        if status is None:
            actions.append(Action("load", model.name, row.version, f"{row.workers} workers, {row.archive}"))
        elif status.min_workers != row.workers:
            actions.append(Action("scale", model.name, row.version, f"{status.min_workers} to {row.workers} workers"))
    if default != model.default and any(row.version == model.default for row in wanted):
        actions.append(Action("set-default", model.name, model.default))
    return actions


def reconcile(
    member: Member,
    gateway: Gateway,
    *,
    timeout_s: float = LOAD_TIMEOUT_S,
    waits: bool = True,
    on_progress: Progress = lambda text: None,
) -> list[Action]:
    """Brings one server to what the table says, and returns what was done.

    Args:
        member: the server.
        gateway: whose table it follows.
        timeout_s: for each version.
        waits: for whoever changes the server's versions now; False: nothing is done then.
        on_progress: told what is done.

    Raises:
        ServingError: the server is down, or a version cannot be loaded; what was done before stays.
    """
    done: list[Action] = []
    with member.lock() if waits else member.try_lock() as is_mine:
        if is_mine is False:
            return done
        let_in(gateway, member)
        for model in gateway.known_table().models:
            for action in actions_for(member, model):
                on_progress(f"{member.name}: {action}")
                row = model.find(action.version)
                if action.kind == "set-default":
                    member.set_default(model)
                elif row is not None:
                    scale_member(gateway, member, model.name, row, timeout_s=timeout_s, on_progress=on_progress)
                done.append(action)
    return done


def actions_for(member: Member, model: Model) -> list[Action]:
    """Looks at a server and returns what is missing."""
    has = member.versions(model.name)
    default = None
    if has:
        with member.management() as management:
            default = management.describe(model.name).model_version
    return find_actions(model, server=member.name, has=has, default=default)


def first_version(table: Table, server: str) -> tuple[Model, Version]:
    """Returns the version that a server is started with: the default one, or the first that it shall have.

    Raises:
        TableError: it shall have none.
    """
    for model in table.models:
        rows = [row for row in model.versions if row.servers is None or server in row.servers]
        if rows:
            return model, next((row for row in rows if row.version == model.default), rows[0])
    raise TableError(f"server {server} shall have no version; give it one with imgcls apply, or take it out of servers")
