"""What `imgcls status` tells of a gateway: whether it is ready, its servers, and who gets which requests."""

import json
from dataclasses import dataclass
from typing import Any

from imgcls.errors import ImgclsError
from imgcls.gateway.folder import GatewayFolder, SupervisorState
from imgcls.gateway.gateway import Gateway
from imgcls.gateway.table import Model, Table, Version
from imgcls.gateway.unix_http import ask


@dataclass(frozen=True)
class MemberReport:
    """One server."""

    name: str
    is_up: bool
    url: str | None
    pid: int | None
    ready: dict[str, dict[str, int]]  # workers, by model and version


@dataclass(frozen=True)
class GatewayReport:
    """One gateway."""

    state: SupervisorState
    is_ready: bool
    reasons: tuple[str, ...]
    is_envoy_live: bool
    members: tuple[MemberReport, ...]
    table: Table

    def as_dict(self) -> dict[str, Any]:
        """Returns it for machines."""
        return {
            "ready": self.is_ready,
            "reasons": list(self.reasons),
            "url": self.state.url,
            "pid": self.state.pid,
            "envoy": self.is_envoy_live,
            "servers": [
                {"name": member.name, "up": member.is_up, "url": member.url, "pid": member.pid}
                for member in self.members
            ],
            "generation": self.table.generation,
            "models": [
                {
                    "name": model.name,
                    "default": model.default,
                    "shadow": model.shadow.model_dump() if model.shadow else None,
                    "versions": [
                        {
                            **row.model_dump(mode="json", exclude={"servers"}),
                            "ready_workers": self._ready(model, row),
                        }
                        for row in model.versions
                    ],
                }
                for model in self.table.models
            ],
        }

    def as_text(self) -> str:
        """Returns it for people, one fact a line."""
        lines = [
            f"gateway   {self.state.url}: {'ready' if self.is_ready else 'NOT READY'}",
            *(f"reason    {reason}" for reason in self.reasons),
            f"process   pid {self.state.pid}, Envoy {'answers' if self.is_envoy_live else 'DOES NOT ANSWER'}",
        ]
        lines += [
            f"server    {member.name}: {f'up at {member.url}, pid {member.pid}' if member.is_up else 'DOWN'}"
            for member in self.members
        ]
        for model in self.table.models:
            lines += [f"version   {self._line(model, row)}" for row in model.versions]
        return "\n".join(lines)

    def _line(self, model: Model, row: Version) -> str:
        marks = ["default"] if row.version == model.default else []
        if model.shadow and model.shadow.version == row.version:
            marks.append(f"shadows {model.shadow.percent:g} %")
        if row.autoscale is not None:
            marks.append(f"{row.autoscale.min} to {row.autoscale.max} workers by load")
        marks += [f"drains on {name}" for name in row.draining]
        marks += [f"requests wait for {row.hold.server}, {row.hold.seconds:g} s each"] if row.hold else []
        mark = f" ({', '.join(marks)})" if marks else ""
        servers = len(self.members) if row.servers is None else len(row.servers)
        workers = f"{self._ready(model, row)} of {row.workers * servers} workers READY"
        return f"{model.name} {row.version}{mark}: {row.weight:g} % of requests, {workers}, {row.tree_sha256[:12]}"

    def _ready(self, model: Model, row: Version) -> int:
        return sum(member.ready.get(model.name, {}).get(row.version, 0) for member in self.members)


def describe_gateway(folder: GatewayFolder) -> GatewayReport:
    """Looks at a gateway.

    Raises:
        NoGatewayError: none runs here.
        GatewayError: its files are broken.
    """
    state = folder.read_running()
    gateway = Gateway.of(folder, state)
    table = gateway.table()
    is_ready, reasons = _read_board(gateway)
    return GatewayReport(
        state=state,
        is_ready=is_ready,
        reasons=reasons,
        is_envoy_live=gateway.admin.is_live(),
        members=tuple(_describe_members(gateway, table)),
        table=table,
    )


def _read_board(gateway: Gateway) -> tuple[bool, tuple[str, ...]]:
    try:
        status, body = ask(gateway.paths.supervisor_socket, "/ready")
        return status == 200, tuple(json.loads(body)["reasons"])
    except (OSError, ValueError, KeyError) as err:
        return False, (f"the supervisor does not tell ({err})",)


def _describe_members(gateway: Gateway, table: Table) -> list[MemberReport]:
    reports = []
    for member in gateway.members:
        state = member.state()
        ready: dict[str, dict[str, int]] = {}
        for model in table.models if state else ():
            try:
                has = member.versions(model.name)
            except ImgclsError:  # starting, or hung: it has no worker that takes requests
                continue
            ready[model.name] = {version: status.ready_workers for version, status in has.items()}
        is_up = state is not None and member.is_up(state)
        reports.append(
            MemberReport(
                member.name, is_up, state.inference_url if state else None, state.pid if state else None, ready
            )
        )
    return reports
