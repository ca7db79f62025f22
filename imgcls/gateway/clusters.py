"""Envoy's clusters: one a version, so that what is in flight, fails and takes long is counted version by version.

All versions of a server share its inference port. The server's token is metadata of its endpoint, and becomes a header
once Envoy has chosen the endpoint: clients never see it, and it may change with a restart.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from imgcls.gateway.protos import Resource, duration, extension, header, lua_filter, typed
from imgcls.gateway.settings import Limits

SHADOW = "shadow"  # the cluster that leads to the internal listener for copies
SUPERVISOR = "supervisor"
GRPC = "grpc"
VERSION_HEADER = "x-imgcls-version"
MODEL_HEADER = "x-imgcls-model"
HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
CONNECT_TIMEOUT_S = 1.0
EJECTION_S = 2.0


@dataclass(frozen=True)
class Endpoint:
    """Where one server takes requests."""

    server: str
    host: str
    port: int
    grpc_port: int
    token: str | None
    ready: frozenset[tuple[str, str]] = frozenset()  # models and versions that have a READY worker there


def cluster_name(model: str, version: str) -> str:
    """Returns the cluster of a version, as it stands in Envoy's statistics and in the access log."""
    return f"{model}@{version}"


def version_cluster(model: str, version: str, *, limits: Limits, servers: int, endpoints: Path) -> Resource:
    """Returns the cluster of a version.

    Args:
        model: its name.
        version: of it.
        limits: how much may be in flight on each server.
        servers: how many have the version.
        endpoints: the file that lists its endpoints, and that Envoy watches.
    """
    most = limits.max_in_flight * max(1, servers)
    return typed(
        "config.cluster.v3.Cluster",
        name=cluster_name(model, version),
        connect_timeout=duration(CONNECT_TIMEOUT_S),
        per_connection_buffer_limit_bytes=limits.max_body_bytes,
        lb_policy="LEAST_REQUEST",
        type="EDS",
        eds_cluster_config={"eds_config": watched(endpoints)},
        circuit_breakers={
            "thresholds": [
                {
                    "max_connections": most,
                    "max_pending_requests": most,
                    "max_requests": most,
                    "track_remaining": True,
                    "retry_budget": {"budget_percent": {"value": 25.0}, "min_retry_concurrency": 16},
                }
            ]
        },
        # A server that is gone is left out for a moment; never all of them, as one that restarts shall be tried.
        outlier_detection={
            "consecutive_gateway_failure": 2,
            "enforcing_consecutive_gateway_failure": 100,
            "enforcing_consecutive_5xx": 0,
            "enforcing_success_rate": 0,
            "base_ejection_time": duration(EJECTION_S),
            "max_ejection_percent": 50,
            "split_external_local_origin_errors": True,
            "consecutive_local_origin_failure": 1,
            "enforcing_consecutive_local_origin_failure": 100,
        },
        typed_extension_protocol_options={
            HTTP_OPTIONS: _http_options(
                {"http_protocol_options": {}},
                request=[_authorization()],
                response=[header(MODEL_HEADER, model), header(VERSION_HEADER, version)],
                filters=[lua_filter("imgcls.worker", "worker.lua")],
            )
        },
    )


def grpc_cluster(*, limits: Limits, endpoints: Path) -> Resource:
    """Returns the cluster of the servers' gRPC ports, where requests name their model themselves."""
    return typed(
        "config.cluster.v3.Cluster",
        name=GRPC,
        connect_timeout=duration(CONNECT_TIMEOUT_S),
        per_connection_buffer_limit_bytes=limits.max_body_bytes,
        lb_policy="LEAST_REQUEST",
        type="EDS",
        eds_cluster_config={"eds_config": watched(endpoints)},
        typed_extension_protocol_options={
            HTTP_OPTIONS: _http_options({"http2_protocol_options": {}}, request=[_authorization()], response=[])
        },
    )


def fixed_clusters(*, supervisor_socket: Path) -> list[Resource]:
    """Returns the two clusters that never change: the supervisor's readiness, and the way of the copies."""
    return [
        _static(SUPERVISOR, {"pipe": {"path": str(supervisor_socket)}}),
        _static(SHADOW, {"envoy_internal_address": {"server_listener_name": SHADOW}}),
    ]


def load_assignment(
    name: str, endpoints: Sequence[Endpoint], *, grpc: bool = False, draining: Collection[str] = ()
) -> Resource:
    """Returns the endpoints of a cluster; those that drain get no new requests, as long as there are others."""
    return typed(
        "config.endpoint.v3.ClusterLoadAssignment",
        cluster_name=name,
        endpoints=[{"lb_endpoints": [_lb_endpoint(each, grpc=grpc, draining=draining) for each in endpoints]}],
    )


def watched(path: Path) -> Resource:
    """Returns a source of resources: a file that is replaced by a rename."""
    return {"resource_api_version": "V3", "path_config_source": {"path": str(path)}}


def _lb_endpoint(endpoint: Endpoint, *, grpc: bool, draining: Collection[str]) -> Resource:
    port = endpoint.grpc_port if grpc else endpoint.port
    return {
        "endpoint": {"address": {"socket_address": {"address": endpoint.host, "port_value": port}}},
        "health_status": "DRAINING" if endpoint.server in draining else "HEALTHY",
        "metadata": {"filter_metadata": {"imgcls": {"authorization": f"Bearer {endpoint.token or 'none'}"}}},
    }


def _authorization() -> Resource:
    return header("authorization", "%UPSTREAM_METADATA(imgcls:authorization)%")


def _http_options(
    protocol: Resource, *, request: list[Resource], response: list[Resource], filters: Sequence[Resource] = ()
) -> Resource:
    mutations = {
        "request_mutations": [{"append": entry} for entry in request],
        "response_mutations": [{"append": entry} for entry in response],
    }
    return typed(
        "extensions.upstreams.http.v3.HttpProtocolOptions",
        explicit_http_config=protocol,
        http_filters=[
            *filters,
            extension(
                "envoy.filters.http.header_mutation",
                typed("extensions.filters.http.header_mutation.v3.HeaderMutation", mutations=mutations),
            ),
            extension(
                "envoy.filters.http.upstream_codec",
                typed("extensions.filters.http.upstream_codec.v3.UpstreamCodec"),
            ),
        ],
    )


def _static(name: str, address: Resource) -> Resource:
    return typed(
        "config.cluster.v3.Cluster",
        name=name,
        type="STATIC",
        connect_timeout=duration(CONNECT_TIMEOUT_S),
        load_assignment={
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    )
