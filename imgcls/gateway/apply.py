"""Brings a table into force at Envoy, in an order in which no request meets a route without its cluster.

    endpoints ─► clusters, old and new ─► (warm) ─► routes ─► (in force) ─► endpoints and clusters that are gone

Each file is replaced by a rename, which Envoy watches. Where Envoy is down, the files wait for it.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from imgcls.errors import UsageError
from imgcls.files import write_atomic
from imgcls.gateway import access
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
from imgcls.gateway.listeners import EnvoyPaths
from imgcls.gateway.protos import Resource
from imgcls.gateway.routes import PUBLIC, public_routes, shadow_routes
from imgcls.gateway.settings import Settings
from imgcls.gateway.table import Table, Version
from imgcls.gateway.tls import tls_secret

log = logging.getLogger(__name__)

WARM_TIMEOUT_S = 10.0
ROUTES_TIMEOUT_S = 10.0


class EnvoyFiles:
    """The files that one Envoy watches."""

    def __init__(self, paths: EnvoyPaths, settings: Settings) -> None:
        self.paths = paths
        self._settings = settings
        self._admin = Admin(paths.admin_socket)

    def apply(self, table: Table, endpoints: Sequence[Endpoint]) -> None:
        """Writes all files, and returns once Envoy follows them, if it runs.

        Raises:
            EnvoyError: it runs and does not follow in time.
            UsageError: the key file or the signing keys are broken, and none are in force yet.
            OSError: a file cannot be written; the ones before it are, and all still fit together.
        """
        guard = self._guard()
        self._write_extensions()
        wanted = self._clusters(table, endpoints)
        old = _read_resources(self.paths.clusters)
        self._write_endpoints(table, endpoints, keep_last=True)
        self._write(self.paths.clusters, list((old | wanted).values()))
        is_live = self._admin.is_live()
        if is_live:
            wait_for(
                lambda: set(wanted) <= self._admin.warm_clusters(),
                timeout_s=WARM_TIMEOUT_S,
                what="Envoy takes the clusters",
            )
        self._write(self.paths.shadow_routes, [shadow_routes(table, self._settings)])
        version = self._write(self.paths.public_routes, [public_routes(table, self._settings, guard=guard)])
        if is_live:
            wait_for(
                lambda: self._admin.route_versions().get(PUBLIC) == version,
                timeout_s=ROUTES_TIMEOUT_S,
                what=f"Envoy takes the routes of generation {table.generation}",
            )
        self._write_endpoints(table, endpoints, keep_last=False)
        self._write(self.paths.clusters, list(wanted.values()))

    def _write_endpoints(self, table: Table, endpoints: Sequence[Endpoint], *, keep_last: bool) -> None:
        """Writes where each version is served.

        Args:
            table: the versions.
            endpoints: the servers that are up.
            keep_last: leave a version its last servers, as there may still be a route to it.
        """
        for model in table.models:
            for row in model.versions:
                name = cluster_name(model.name, row.version)
                path, able = self.paths.endpoints(name), find_able(endpoints, model.name, row)
                if able or not keep_last or not path.is_file():
                    self._write(path, [load_assignment(name, able, draining=row.draining)])
        draining = {server for model in table.models for server in model.get(model.default).draining}
        self._write(self.paths.endpoints(GRPC), [load_assignment(GRPC, endpoints, grpc=True, draining=draining)])

    def _guard(self) -> Resource:
        """Returns who may ask. A key file that somebody has broken must not keep weights from being changed."""
        try:
            return access.guard(self._settings)
        except UsageError as err:
            old = _read_resources(self.paths.public_routes).get(PUBLIC)
            if old is None:
                raise
            log.warning("the keys in force stay so: %s", err)
            return {field: old["virtual_hosts"][0][field] for field in ("metadata", "typed_per_filter_config")}

    def _write_extensions(self) -> None:
        """Writes what the public listener waits for when it starts."""
        tls, jwt = self._settings.listen.tls, self._settings.access.jwt
        if tls is not None:
            self._write(self.paths.tls_secret, [tls_secret(tls)])
        if jwt is None:
            return
        try:
            self._write(self.paths.jwt_filter, [access.jwt_filter(jwt)])
        except UsageError as err:
            if not self.paths.jwt_filter.is_file():
                raise
            log.warning("the signing keys in force stay so: %s", err)

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
            write_atomic(path, text, mode=0o600)  # endpoints hold tokens
        return version


def find_able(endpoints: Sequence[Endpoint], model: str, row: Version) -> list[Endpoint]:
    """Returns where a version may be asked: the servers with READY workers of it.

    Where none has one, all that shall have it: requests wait there for workers that start again, as after a crash.
    """
    having = [entry for entry in endpoints if row.servers is None or entry.server in row.servers]
    return [entry for entry in having if (model, row.version) in entry.ready] or having


def _version_of(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def _read_resources(path: Path) -> dict[str, Resource]:
    try:
        return {entry["name"]: entry for entry in json.loads(path.read_bytes())["resources"]}
    except (OSError, ValueError, KeyError):
        return {}
