"""Envoy's bootstrap: the public listener, the internal one for copies, the access log, and limits of connections.

It is read once, when Envoy starts; what changes while it runs are routes, clusters and endpoints.
"""

from dataclasses import dataclass
from pathlib import Path

from imgcls.gateway.access import ANSWER_FILTER, access_filters, early_mutations
from imgcls.gateway.clusters import SHADOW, watched
from imgcls.gateway.hold import hold_filter
from imgcls.gateway.protos import Resource, duration, extension, lua_filter, typed
from imgcls.gateway.routes import PUBLIC
from imgcls.gateway.settings import Settings
from imgcls.gateway.tls import tls_socket

RETRY_AFTER_S = 1
STREAMS = 100  # of one HTTP/2 connection at a time: what RFC 9113 wants at least
LOG_FIELDS = {
    "time": "%START_TIME(%s.%3f)%",  # seconds since the epoch, of the request's first byte
    "request_id": "%REQ(X-REQUEST-ID)%",
    "client": "%REQ(X-IMGCLS-CLIENT)%",
    "method": "%REQ(:METHOD)%",
    "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
    "cluster": "%UPSTREAM_CLUSTER_RAW%",  # MODEL@VERSION
    "server": "%UPSTREAM_HOST%",
    "status": "%RESPONSE_CODE%",
    "flags": "%RESPONSE_FLAGS%",
    "details": "%RESPONSE_CODE_DETAILS%",
    "duration_ms": "%DURATION%",
    "bytes_in": "%BYTES_RECEIVED%",
    "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
    "refused": "%DYNAMIC_METADATA(imgcls:refused)%",  # why, where access control did
    "answer": "%DYNAMIC_METADATA(imgcls:answer)%",
}


@dataclass(frozen=True)
class EnvoyPaths:
    """The files and sockets of one Envoy."""

    folder: Path
    sockets: Path  # a short path: a Unix socket's is held to 107 bytes

    @property
    def bootstrap(self) -> Path:
        """What Envoy is started with."""
        return self.folder / "bootstrap.json"

    @property
    def public_routes(self) -> Path:
        """Routes of the public listener."""
        return self.folder / "routes.json"

    @property
    def shadow_routes(self) -> Path:
        """Routes of the copies."""
        return self.folder / "shadow.json"

    @property
    def clusters(self) -> Path:
        """The clusters."""
        return self.folder / "clusters.json"

    def endpoints(self, cluster: str) -> Path:
        """Endpoints of one cluster."""
        return self.folder / "endpoints" / f"{cluster}.json"

    @property
    def tls_secret(self) -> Path:
        """Which certificate and key the public listener has."""
        return self.folder / "tls.json"

    @property
    def jwt_filter(self) -> Path:
        """How tokens are verified."""
        return self.folder / "jwt.json"

    @property
    def access_log(self) -> Path:
        """One JSON object a request, and one a copy."""
        return self.folder / "access.log"

    @property
    def shadow_log(self) -> Path:
        """The same for copies."""
        return self.folder / "shadow.log"

    @property
    def console_log(self) -> Path:
        """What Envoy itself says."""
        return self.folder / "envoy.log"

    @property
    def admin_socket(self) -> Path:
        """Envoy's own administration."""
        return self.sockets / "admin.sock"

    @property
    def supervisor_socket(self) -> Path:
        """Where the supervisor says whether all is ready."""
        return self.sockets / "ready.sock"


def bootstrap(settings: Settings, paths: EnvoyPaths, *, port: int) -> Resource:
    """Returns Envoy's bootstrap.

    Args:
        settings: of the gateway.
        paths: of its files.
        port: the public one; settings may leave the choice open.
    """
    return {
        "node": {"id": "imgcls-gateway", "cluster": "imgcls"},
        "admin": {"address": {"pipe": {"path": str(paths.admin_socket), "mode": 0o600}}},
        "bootstrap_extensions": [
            extension(
                "envoy.bootstrap.internal_listener",
                typed("extensions.bootstrap.internal_listener.v3.InternalListener"),
            )
        ],
        "overload_manager": _overload(settings),
        "dynamic_resources": {"cds_config": watched(paths.clusters)},
        "static_resources": {
            "listeners": [
                _public_listener(settings, paths, port=port),
                {
                    "name": SHADOW,
                    "internal_listener": {},
                    "filter_chains": [{"filters": [_manager(SHADOW, settings, paths)]}],
                },
            ]
        },
    }


def _public_listener(settings: Settings, paths: EnvoyPaths, *, port: int) -> Resource:
    chain: Resource = {"filters": [_manager(PUBLIC, settings, paths)]}
    if settings.listen.tls is not None:
        chain["transport_socket"] = tls_socket(paths.tls_secret)
        chain["transport_socket_connect_timeout"] = duration(settings.limits.header_timeout_s)  # of the handshake
    return {
        "name": PUBLIC,
        "address": {"socket_address": {"address": settings.listen.host, "port_value": port}},
        "per_connection_buffer_limit_bytes": settings.limits.max_body_bytes,
        "filter_chains": [chain],
    }


def _manager(name: str, settings: Settings, paths: EnvoyPaths) -> Resource:
    """Returns the HTTP side of a listener; a copy passes neither keys nor limits again."""
    limits = settings.limits
    is_public = name == PUBLIC
    routes = paths.public_routes if is_public else paths.shadow_routes
    answer = lua_filter(ANSWER_FILTER, "answer.lua")
    return extension(
        "envoy.filters.network.http_connection_manager",
        typed(
            "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            stat_prefix=name,
            codec_type="AUTO",
            rds={"route_config_name": name, "config_source": watched(routes)},
            # An edge: what a client says of its own address, or of Envoy's timeouts, does not count.
            use_remote_address=is_public,
            xff_num_trusted_hops=0,
            generate_request_id=is_public,
            preserve_external_request_id=False,
            early_header_mutation_extensions=early_mutations() if is_public else [],
            always_set_request_id_in_response=is_public,
            normalize_path=is_public,
            merge_slashes=is_public,
            path_with_escaped_slashes_action="REJECT_REQUEST",
            server_header_transformation="PASS_THROUGH",
            common_http_protocol_options={
                "idle_timeout": duration(limits.idle_timeout_s),
                "headers_with_underscores_action": "ALLOW",  # top_k
                "max_headers_count": 100,
            },
            http2_protocol_options={"max_concurrent_streams": STREAMS},
            request_headers_timeout=duration(limits.header_timeout_s),
            request_timeout=duration(limits.body_timeout_s),
            stream_idle_timeout=duration(limits.request_timeout_s + 5),
            delayed_close_timeout="1s",
            access_log=[_access_log(paths.access_log if is_public else paths.shadow_log)],
            local_reply_config=_local_replies(),
            http_filters=[
                *(access_filters(settings, jwt_file=paths.jwt_filter) if is_public else ()),
                *((_buffer(limits.max_body_bytes),) if is_public else ()),
                hold_filter(),
                answer,
                extension("envoy.filters.http.router", typed("extensions.filters.http.router.v3.Router")),
            ],
        ),
    )


def _buffer(most: int) -> Resource:
    """Returns the filter that takes a request in whole before it is passed on: 413, and no slow client at a worker."""
    return extension(
        "envoy.filters.http.buffer", typed("extensions.filters.http.buffer.v3.Buffer", max_request_bytes=most)
    )


def _access_log(path: Path) -> Resource:
    return extension(
        "envoy.access_loggers.file",
        typed(
            "extensions.access_loggers.file.v3.FileAccessLog",
            path=str(path),
            log_format={"json_format": LOG_FIELDS},
        ),
    )


def _local_replies() -> Resource:
    """Returns how the gateway's own errors look: as TorchServe's, and with Retry-After where a retry makes sense."""
    retry = [{"header": {"key": "retry-after", "value": str(RETRY_AFTER_S)}, "append_action": "ADD_IF_ABSENT"}]
    return {
        "mappers": [
            {
                "filter": {
                    "status_code_filter": {
                        "comparison": {
                            "op": "EQ",
                            "value": {"default_value": status, "runtime_key": f"imgcls.{status}"},
                        }
                    }
                },
                "headers_to_add": retry,
            }
            for status in (429, 503)
        ],
        "body_format": {
            "json_format": {
                "code": "%RESPONSE_CODE%",
                "type": "Gateway",
                "message": "%LOCAL_REPLY_BODY%",
                "details": "%RESPONSE_CODE_DETAILS%",
                "request_id": "%REQ(X-REQUEST-ID)%",
            },
            "content_type": "application/json",
        },
    }


def _overload(settings: Settings) -> Resource:
    return {
        "refresh_interval": "0.25s",
        "resource_monitors": [
            extension(
                "envoy.resource_monitors.global_downstream_max_connections",
                typed(
                    "extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                    max_active_downstream_connections=settings.limits.max_connections,
                ),
            )
        ],
    }
