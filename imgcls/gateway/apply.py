"""Brings a table into force at Envoy, in an order in which no request meets a route without its cluster.

    endpoints ─► clusters, old and new ─► (warm) ─► routes ─► (in force) ─► clusters, new only

Each file is replaced by a rename, which Envoy watches. Where Envoy is down, the files wait for it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from imgcls.files import write_atomic
from imgcls.gateway.clusters import (
    GRPC,
    Endpoint,
    cluster_name,
    fixed_clusters,
    grpc_cluster,
    load_assignment,
    version_cluster,
)
from imgcls.gateway.envoy import Admin, wait_for
from imgcls.gateway.errors import EnvoyError
from imgcls.gateway.listeners import EnvoyPaths
from imgcls.gateway.protos import Resource
from imgcls.gateway.routes import PUBLIC, public_routes, shadow_routes
from imgcls.gateway.settings import Settings
from imgcls.gateway.table import Table

WARM_TIMEOUT_S = 10.0
ROUTES_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Applied:
    """What was written."""

    generation: int
    is_in_force: bool  # False: Envoy does not run, and will read the files when it starts


class EnvoyFiles:
    """The files that one Envoy watches."""

    def __init__(self, paths: EnvoyPaths, settings: Settings) -> None:
        self.paths = paths
        self._settings = settings
        self._admin = Admin(paths.admin_socket)

    def apply(self, table: Table, endpoints: Sequence[Endpoint]) -> Applied:
        """Writes all files, and returns once Envoy follows them, if it runs.

        Raises:
            EnvoyError: it runs and does not follow in time.
            OSError: a file cannot be written; the ones before it are, and all still fit together.
        """
        wanted = self._clusters(table, endpoints)
        old = _read_resources(self.paths.clusters)
        self.write_endpoints(table, endpoints)
        self._write(self.paths.clusters, list((old | wanted).values()))
        is_live = self._admin.is_live()
        if is_live:
            wait_for(
                lambda: set(wanted) <= self._admin.warm_clusters(),
                timeout_s=WARM_TIMEOUT_S,
                what="Envoy takes the clusters",
            )
        self._write(self.paths.shadow_routes, [shadow_routes(table, self._settings)])
        version = self._write(self.paths.public_routes, [public_routes(table, self._settings)])
        if is_live:
            wait_for(
                lambda: self._admin.route_versions().get(PUBLIC) == version,
                timeout_s=ROUTES_TIMEOUT_S,
                what=f"Envoy takes the routes of generation {table.generation}",
            )
        self._write(self.paths.clusters, list(wanted.values()))
        return Applied(table.generation, is_live)

    def write_endpoints(self, table: Table, endpoints: Sequence[Endpoint]) -> None:
        """Writes where each version is served; enough after a server has got new ports or a new token."""
        for model in table.models:
            for row in model.versions:
                name = cluster_name(model.name, row.version)
                having = [entry for entry in endpoints if row.servers is None or entry.server in row.servers]
                self._write(self.paths.endpoints(name), [load_assignment(name, having, draining=row.draining)])
        draining = {server for model in table.models for server in model.get(model.default).draining}
        self._write(self.paths.endpoints(GRPC), [load_assignment(GRPC, endpoints, grpc=True, draining=draining)])

    def _clusters(self, table: Table, endpoints: Sequence[Endpoint]) -> dict[str, Resource]:
        limits = self._settings.limits
        servers = len(self._settings.servers)
        clusters = fixed_clusters(supervisor_socket=self.paths.supervisor_socket)
        clusters.append(grpc_cluster(limits=limits, endpoints=self.paths.endpoints(GRPC)))
        for model in table.models:
            for row in model.versions:
                clusters.append(
                    version_cluster(
                        model.name,
                        row.version,
                        limits=limits,
                        servers=servers if row.servers is None else len(row.servers),
                        endpoints=self.paths.endpoints(cluster_name(model.name, row.version)),
                    )
                )
        return {cluster["name"]: cluster for cluster in clusters}

    def _write(self, path: Path, resources: list[Resource]) -> str:
        """Replaces a file, unless it says the same already; returns the version that stands in it."""
        body = json.dumps(resources, sort_keys=True)
        version = _version_of(body)
        text = json.dumps({"version_info": version, "resources": resources}, sort_keys=True, indent=1) + "\n"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_atomic(path, text)
        return version


def is_in_force(admin: Admin, paths: EnvoyPaths) -> bool:
    """Tells whether Envoy follows the routes that lie in its file."""
    try:
        wanted: Mapping[str, str] = json.loads(paths.public_routes.read_bytes())
        return admin.route_versions().get(PUBLIC) == wanted["version_info"]
    except (OSError, ValueError, KeyError, EnvoyError):
        return False


def _version_of(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def _read_resources(path: Path) -> dict[str, Resource]:
    try:
        return {entry["name"]: entry for entry in json.loads(path.read_bytes())["resources"]}
    except (OSError, ValueError, KeyError):
        return {}
